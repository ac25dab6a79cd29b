"""What of a scene's results is seen from one place, drawn as it is asked for: for layers too large for a page.

From far, a footprint is its box: half a million of them are drawn in the time of a few tens of milliseconds. From near,
its outline is read from the GeoParquet by the box of what is in view.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import shapely
from PIL import Image
from rasterio.enums import Resampling

from geoseg.compiled import Compiled
from geoseg.io.geoparquet import read_box
from geoseg.io.vectors import to_pixels, to_world
from geoseg.pipeline import FOOTPRINTS
from geoseg.raster import CONFIDENCE_STEPS, NODATA
from geoseg.view.facts import MAP_FILES, Map, scene_below
from geoseg.view.pictures import ramp, read_map, read_part
from geoseg.view.review import footprint_table, svg_path
from geoseg.view.shapes import CATEGORIES
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.view.facts import Below

OUTLINES: Final = 3000
"""Footprints in view up to which their outlines are drawn; of more, their boxes."""

OVERVIEW: Final = 2048
"""Rows and columns at most of what is held of each raster, for looks from far."""

SCREEN: Final = 2400
"""Pixels along a picture at most."""

LAYERS: Final = ("scene", "labels", "confidence", "footprints")

STRENGTH: Final = {"scene": 1.0, "labels": 0.6, "confidence": 0.85, "footprints": 0.75}
"""How much of a layer covers what is below it."""

PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00", "#7a7a7a")

Pixels = Any
"""uint8 (y, x, 4): red, green, blue, and how much it covers."""


@dataclass(frozen=True)
class Look:
    """What of the grid is on the screen."""

    left: float
    """Of the screen, in pixels of the grid."""
    top: float
    step: float
    """Pixels of the grid for one of the screen."""
    width: int
    """Pixels of the screen."""
    height: int
    layers: tuple[str, ...] = LAYERS
    column: str = "confidence"
    """What footprints are coloured by."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Look:
        """As a browser tells it, kept within what can be drawn."""
        width, height = (int(np.clip(int(told[name]), 1, SCREEN)) for name in ("width", "height"))
        step = float(np.clip(float(told["step"]), 1e-3, 1e6))
        layers = tuple(name for name in LAYERS if name in told["layers"])
        left, top = (float(np.clip(float(told[name]), -1e9, 1e9)) for name in ("left", "top"))
        return cls(left, top, step, width, height, layers, str(told["column"]))

    @property
    def right(self) -> float:
        """Of the screen, in pixels of the grid."""
        return self.left + self.step * self.width

    @property
    def bottom(self) -> float:
        """The same downwards."""
        return self.top + self.step * self.height


@dataclass(frozen=True)
class Colours:
    """How footprints are coloured by one of their columns."""

    codes: NDArray[np.uint8]
    """(n,): the colour of each."""
    table: NDArray[np.uint8]
    """(256, 3)."""
    legend: dict[str, Any]
    """Range of a ramp, or colours and names."""


class Atlas:
    """The results of one scene, to be looked at from anywhere."""

    def __init__(self, folder: Path, source: str | Path | None = None) -> None:
        """`source`: where the scene is; None: where the results say. Raises `OutputError` for a folder without any."""
        self.mapped = Map.of(folder)
        self._source, self._path = source, folder / FOOTPRINTS
        self._colours: dict[str, Colours] = {}
        self._held: dict[str, tuple[Pixels, float]] = {}
        self.table = footprint_table(self._path, every=True)
        self._boxes = _in_pixels(self.table, self.mapped)

    @cached_property
    def below(self) -> Below:
        """The scene, or why it is not shown."""
        return scene_below(self.mapped, self._source)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        rows, cols = self.mapped.grid.shape
        return int(rows), int(cols)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """What footprints may be coloured by."""
        return tuple(str(name) for name in self.table.columns if _is_colourable(self.table[name]))

    def colours(self, column: str) -> Colours:
        """Of footprints, by a column; one colour for what is none."""
        if column not in self._colours:
            known = {name: colour for _, name, colour in self.mapped.classes}
            values = self.table[column] if column in self.columns else pd.Series(["footprint"] * len(self.table))
            self._colours[column] = _coloured(values, known)
        return self._colours[column]

    def picture(self, look: Look) -> bytes:
        """WebP (look.height, look.width) of the layers that a look asks for; boxes of footprints if they are many."""
        canvas = np.zeros((look.height, look.width, 4), np.uint8)
        for name in look.layers:
            drawn = self._boxes_drawn(look) if name == "footprints" else self._raster(name, look)
            if drawn is not None:
                _over(canvas, drawn, STRENGTH[name])
        stream = io.BytesIO()
        Image.fromarray(canvas).save(stream, "WEBP", quality=80, method=0)
        return stream.getvalue()

    def outlines(self, look: Look) -> list[tuple[str, str]]:
        """Colour and SVG's path, from the grid's origin, of each footprint in view; none if they are many."""
        if "footprints" not in look.layers or not 0 < self._in_view(look).sum() <= OUTLINES:
            return []
        frame = self._read(look.left, look.top, look.right, look.bottom)
        shapes = to_pixels(frame.geometry.to_numpy(), self.mapped.grid)
        colours = self.colours(look.column)
        codes = colours.codes[self.table.index.get_indexer(frame["id"])]
        whole = Window(0, 1, 0, 1)
        return [(_hex(colours.table[code]), svg_path(shape, whole)) for code, shape in zip(codes, shapes, strict=True)]

    def at(self, x: float, y: float, slack: float) -> tuple[list[tuple[str, str]], str] | None:
        """Attributes and outline of the smallest footprint at a place, or else of the nearest one within `slack`."""
        frame = self._read(x - slack, y - slack, x + slack, y + slack, None)
        if not len(frame):
            return None
        shapes = to_pixels(frame.geometry.to_numpy(), self.mapped.grid)
        away = shapely.distance(shapes, shapely.Point(x, y))
        best = int(np.lexsort((shapely.area(shapes), away))[0])
        if away[best] > slack:
            return None
        row = frame.drop(columns=frame.geometry.name).iloc[best]
        return [(str(name), _text(value)) for name, value in row.items()], svg_path(shapes[best], Window(0, 1, 0, 1))

    def centre(self, place: int) -> tuple[float, float] | None:
        """Where the footprint lies that has this place in the order of confidence, the least first."""
        if not len(self.table):
            return None
        west, north, east, south = self._boxes[place % len(self.table)]
        return float(west + east) / 2, float(north + south) / 2

    def _in_view(self, look: Look) -> NDArray[np.bool_]:
        west, north, east, south = self._boxes.T
        there: NDArray[np.bool_] = (west < look.right) & (east > look.left) & (north < look.bottom) & (south > look.top)
        return there

    def _boxes_drawn(self, look: Look) -> Pixels | None:
        seen = np.flatnonzero(self._in_view(look))
        if len(seen) <= OUTLINES:
            return None  # their outlines are drawn
        corner = np.array([look.left, look.top] * 2)
        places = ((self._boxes[seen] - corner) / look.step).astype(np.float32)
        colours = self.colours(look.column)
        index = np.zeros((look.height, look.width), np.int32)
        fill_boxes(np.ascontiguousarray(places), colours.codes[seen].astype(np.int32) + 1, index)
        return np.concatenate(
            [colours.table[np.maximum(index - 1, 0)], np.where(index, 255, 0).astype(np.uint8)[..., None]], axis=-1
        )

    def _read(self, left: float, top: float, right: float, bottom: float, columns: Any = ("id",)) -> Any:
        outline = to_world(np.array([shapely.box(left, top, right, bottom)]), self.mapped.grid)
        west, south, east, north = map(float, shapely.bounds(outline[0]))
        return read_box(self._path, (west, south, east, north), columns=columns)

    def _raster(self, name: str, look: Look) -> Pixels | None:
        """A layer of pixels as it is seen; None where it is not at hand or nothing of it is in view."""
        if name == "scene" and self.below.imagery is None:
            return None
        pixels, scale = self._overview(name)
        origin = (0, 0)
        if look.step < 0.75 * scale:
            part = self._part(name, look)
            if part is None:
                return None
            pixels, scale, origin = part
        return _sampled(pixels, scale, origin, look)

    def _overview(self, name: str) -> tuple[Pixels, float]:
        """All of a layer, and how many pixels of the grid are one of it."""
        if name not in self._held:
            pixels = self._scene_overview() if name == "scene" else self._painted(name, self._codes(name))
            self._held[name] = pixels, self.shape[0] / pixels.shape[0]
        return self._held[name]

    def _scene_overview(self) -> Pixels:
        imagery = self.below.imagery
        return _rgba(imagery.overview(OVERVIEW)) if imagery is not None else np.zeros((1, 1, 4), np.uint8)

    def _codes(self, name: str) -> NDArray[np.uint8]:
        return read_map(self.mapped.folder / MAP_FILES[name], OVERVIEW)

    def _part(self, name: str, look: Look) -> tuple[Pixels, float, tuple[int, int]] | None:
        """What is in view of a layer, in the resolution of the screen, with its scale and its first row and column."""
        asked = Window(int(look.top) - 1, int(look.bottom) + 2, int(look.left) - 1, int(look.right) + 2)
        window = Window.of_shape(self.shape).intersection(asked)
        if window is None:
            return None
        scale = max(1.0, look.step)
        rows, cols = (max(1, round(side / scale)) for side in window.shape)
        origin = window.row_range[0], window.col_range[0]
        if name == "scene" and self.below.imagery is not None:
            pixels = _rgba(self.below.imagery.part(window, (rows, cols)))
        else:
            path = self.mapped.folder / MAP_FILES[name]
            pixels = self._painted(name, read_part(path, window, (rows, cols), Resampling.nearest))
        return pixels, window.shape[0] / rows, origin

    def _painted(self, name: str, codes: NDArray[np.uint8]) -> Pixels:
        """Labels or confidence in their colours."""
        table = np.zeros((256, 4), np.uint8)
        if name == "confidence":
            steps = np.arange(CONFIDENCE_STEPS + 1) * 255 // CONFIDENCE_STEPS
            table[: CONFIDENCE_STEPS + 1] = np.column_stack([ramp()[steps], np.full(len(steps), 255)])
        else:
            for value, _, colour in self.mapped.classes:
                table[value] = (*bytes.fromhex(colour[1:]), 0 if value in self.mapped.background else 255)
        table[NODATA] = 0
        return table[codes]


@Compiled
def fill_boxes(boxes: NDArray[np.float32], values: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    """Write each value into the pixels that its box (west, north, east, south) covers, at least one."""
    rows, cols = out.shape
    for number in range(len(boxes)):
        west, north, east, south = boxes[number]
        first_row, first_col = max(0, int(np.floor(north))), max(0, int(np.floor(west)))
        last_row, last_col = min(rows, int(np.ceil(south))), min(cols, int(np.ceil(east)))
        for row in range(first_row, max(last_row, min(first_row + 1, rows))):
            for col in range(first_col, max(last_col, min(first_col + 1, cols))):
                out[row, col] = values[number]


def _in_pixels(table: pd.DataFrame, mapped: Map) -> NDArray[np.float64]:
    """(n, 4): boxes of footprints as west, north, east, south in pixels of the grid."""
    back = ~mapped.grid.affine
    west, south, east, north = (table[name].to_numpy() for name in ("xmin", "ymin", "xmax", "ymax"))
    corners = [(west, south), (west, north), (east, south), (east, north)]
    x = np.stack([back.a * one + back.b * other + back.c for one, other in corners])
    y = np.stack([back.d * one + back.e * other + back.f for one, other in corners])
    return np.column_stack([x.min(0), y.min(0), x.max(0), y.max(0)])


def _rgba(raster: Any) -> Pixels:
    bands, shape = raster.values, raster.valid.shape
    shown = np.broadcast_to(bands, (3, *shape)) if len(bands) == 1 else bands[:3]
    alpha = np.where(raster.valid, 255, 0).astype(np.uint8)[None]
    return np.ascontiguousarray(np.moveaxis(np.concatenate([shown.astype(np.uint8), alpha]), 0, -1))


def _sampled(pixels: Pixels, scale: float, origin: tuple[int, int], look: Look) -> Pixels:
    """The pixel below the centre of each of the screen's; clear beside them."""
    y = (look.top + (np.arange(look.height) + 0.5) * look.step - origin[0]) / scale
    x = (look.left + (np.arange(look.width) + 0.5) * look.step - origin[1]) / scale
    rows, cols = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    tall, wide = pixels.shape[:2]
    drawn = pixels[np.ix_(np.clip(rows, 0, tall - 1), np.clip(cols, 0, wide - 1))]
    drawn[(rows < 0) | (rows >= tall)] = 0
    drawn[:, (cols < 0) | (cols >= wide)] = 0
    return drawn


def _over(canvas: Pixels, drawn: Pixels, strength: float) -> None:
    """Draw one picture above another, in place (Porter and Duff 1984, "over")."""
    cover = drawn[..., 3:].astype(np.float32) * (strength / 255)
    below = canvas[..., 3:].astype(np.float32) / 255 * (1 - cover)
    whole = cover + below
    mixed = (drawn[..., :3] * cover + canvas[..., :3] * below) / np.maximum(whole, 1e-6)
    canvas[..., :3] = np.rint(mixed)
    canvas[..., 3:] = np.rint(whole * 255)


def _is_colourable(values: pd.Series) -> bool:
    if values.name in {"xmin", "ymin", "xmax", "ymax", "id"} or not len(values):
        return False
    numbers = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return bool(numbers or 1 < values.nunique(dropna=False) <= CATEGORIES)


def _coloured(values: pd.Series, known: dict[str, str]) -> Colours:
    """Numbers on the ramp between their 2nd and 98th percentile; else a colour for each value."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        there = numbers[np.isfinite(numbers)]
        low, high = map(float, np.percentile(there, (2, 98))) if there.size else (0.0, 1.0)
        share = np.nan_to_num((numbers - low) / ((high - low) or 1))
        return Colours((np.clip(share, 0, 1) * 255).astype(np.uint8), ramp(), {"range": [low, high]})
    codes, found = pd.factorize(values.map(_text))
    names = [str(name) for name in found]
    table = np.zeros((256, 3), np.uint8)
    told = [known.get(name, PALETTE[k % len(PALETTE)]) for k, name in enumerate(names)]
    for code, colour in enumerate(told):
        table[code] = tuple(bytes.fromhex(colour[1:]))
    legend = {"names": [[colour, name] for colour, name in zip(told, names, strict=True)]}
    return Colours(codes.astype(np.uint8), table, legend)


def _text(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        number = float(value)
        return f"{number:.4g}" if abs(number) < 1000 else f"{number:,.0f}"  # noqa: PLR2004  digits that count
    return str(value.isoformat() if isinstance(value, pd.Timestamp) else value)


def _hex(colour: NDArray[np.uint8]) -> str:
    return "#" + bytes(colour).hex()
