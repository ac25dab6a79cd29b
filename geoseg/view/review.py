"""Verdicts of a person on footprints, from the least confident to the most, as labels that `geoseg train` takes.

Each verdict is appended to a file before the next footprint is asked for, so neither a kernel that dies nor a lost
connection costs any. What nobody has looked at is neither label nor background: it is left out of the area.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import shapely

from geoseg.catalog import sha256_of
from geoseg.errors import OptionError, OutputError
from geoseg.io.geoparquet import read_box
from geoseg.io.store import cannot_write
from geoseg.io.vectors import to_pixels, to_world, write_geojson
from geoseg.pipeline import FOOTPRINTS
from geoseg.raster import crs_of
from geoseg.view.facts import Map, scene_below
from geoseg.view.pages import footprints_in
from geoseg.view.pictures import scene_picture
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from geoseg.view.facts import Below

Verdict: TypeAlias = Literal["accept", "reject", "relabel", "skip"]

FILE: Final = "review.jsonl"
"""Where verdicts are kept, in the folder of the results."""

RIM: Final = 1.0
"""Metres around an outline that was looked at which count as seen, so that training learns where an object ends."""

AROUND: Final = 2.5
"""How much more than the footprint itself a piece of the scene shows."""

LEAST: Final = 30.0
"""Metres along a piece at least: less shows no surroundings to judge by."""

ACROSS: Final = 640
"""Pixels along a picture at most."""

SHOWN: Final = ("id", "class", "area_m2", "confidence")
"""Columns that a person is told."""

NEIGHBOURS: Final = 500
"""Outlines besides the one that is asked for, at most."""


@dataclass(frozen=True)
class Decision:
    """What a person has said of one footprint, or of all in a piece of the scene."""

    ids: tuple[str, ...]
    verdict: Verdict
    label: str | None = None
    """The class, where it is another than the footprint's."""
    view: tuple[int, int, int, int] | None = None
    """First row, end of rows, first column, end of columns: all in these is as it should be, and nothing missing."""

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        if self.verdict not in get_args(Verdict) or (self.verdict == "relabel") != (self.label is not None):
            msg = f"verdict {self.verdict!r}, label {self.label!r}: is accept, reject or skip, or relabel and a label"
            raise OptionError(msg)
        if not self.ids and self.view is None:
            msg = f"verdict {self.verdict!r}: names no footprint"
            raise OptionError(msg)


class Verdicts:
    """Decisions in a file of JSON lines, the first of which tells of which footprints they are."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        """Take up what is there. Raises `OptionError` for a file of other footprints or another kind."""
        self.path, self._about = path, about
        self.decisions: list[Decision] = []
        self._size = self._end = 0
        self._read()

    def _read(self) -> None:
        """Take up what is there, unless it is known: another widget may have said more of the same footprints."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size == self._size:
            return
        lines = self.path.read_bytes().splitlines(keepends=True) if size else []
        whole = [line for line in lines if line.endswith(b"\n")]  # the last one may have been cut off by a crash
        self._size, self._end = size, sum(map(len, whole))
        self.decisions = []
        if whole:
            self._check(whole[0])
        for line in whole[1:]:
            self._replay(json.loads(line))

    def add(self, decision: Decision) -> None:
        """One more. Raises `OutputError` if the disk refuses; it is not counted, then."""
        self._append({**asdict(decision), "time": _now()})
        self.decisions.append(decision)

    def undo(self) -> Decision | None:
        """Take back the last one, and say which; None if there is none."""
        self._read()
        if not self.decisions:
            return None
        self._append({"undo": True, "time": _now()})
        return self.decisions.pop()

    def _check(self, line: bytes) -> None:
        try:
            same = json.loads(line) == self._about
        except ValueError:
            same = False
        if not same:
            msg = f"{self.path}: holds verdicts on other footprints than there are now; move it away, or name another "
            raise OptionError(msg + "file with `into`")

    def _replay(self, told: dict[str, Any]) -> None:
        if told.get("undo"):
            self.decisions.pop()
            return
        view = told["view"]
        self.decisions.append(
            Decision(tuple(told["ids"]), told["verdict"], told["label"], None if view is None else tuple(view))
        )

    def _append(self, told: dict[str, Any]) -> None:
        """A line that is on the disk when this returns, in the place of one that was cut off."""
        try:
            self._read()
            text = "".join(json.dumps(each) + "\n" for each in ([] if self._end else [self._about]) + [told])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("r+b" if self.path.exists() else "xb") as file:
                file.seek(self._end)
                file.truncate()
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
                self._size = self._end = file.tell()
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Piece:
    """One footprint and the ground around it, as it is shown."""

    id: str
    window: Window
    """Of the scene's grid."""
    outline: str
    """SVG's path, in pixels of the window."""
    others: tuple[tuple[str, str], ...]
    """Path and state (open, accept, reject, relabel, skip) of what else lies there."""
    told: tuple[tuple[str, str], ...]
    """Names and texts."""
    picture: bytes
    """WebP; empty where the scene is not at hand."""


@dataclass(frozen=True)
class Reviewed:
    """What `geoseg train` takes."""

    labels: Path
    """GeoJSON of what is there, its column `class` naming what it is."""
    area: Path
    """GeoJSON of the ground on which that is all there is."""
    count: int
    hectares: float
    """Of the area."""


class Review:
    """Footprints of one scene in the order of their confidence, and what was said of them."""

    def __init__(
        self,
        folder: Path,
        *,
        classes: Sequence[str] = (),
        source: str | Path | None = None,
        into: Path | None = None,
    ) -> None:
        """`classes`: further ones to relabel to. `source`: where the scene is; None: where the results say.

        Raises `OutputError` for a folder without results, `OptionError` for verdicts on other footprints.
        """
        self.mapped = Map.of(folder)
        self._table = footprint_table(folder / FOOTPRINTS)
        own = [name for value, name, _ in self.mapped.classes if value not in self.mapped.background]
        self.classes = tuple(dict.fromkeys([*own, *classes]))
        about = {"geoseg:review": 1, "footprints": sha256_of(folder / FOOTPRINTS)}
        self.verdicts = Verdicts(into or folder / FILE, about)
        self._source = source

    @cached_property
    def below(self) -> Below:
        """The scene, or why it is not shown."""
        return scene_below(self.mapped, self._source)

    @property
    def count(self) -> int:
        """Footprints."""
        return len(self._table)

    @property
    def states(self) -> dict[str, Decision]:
        """The last decision on each footprint that has one."""
        return {id_: decision for decision in self.verdicts.decisions for id_ in decision.ids}

    @property
    def next_id(self) -> str | None:
        """The least confident footprint that nobody has said anything of; None if there is none."""
        said = self.states
        return next((id_ for id_ in self._table.index if id_ not in said), None)

    def decide(self, id_: str, verdict: Verdict, label: str | None = None) -> None:
        """Say something of one footprint.

        Raises `OptionError` for a footprint or label that is not known, `OutputError` if the disk refuses.
        """
        if id_ not in self._table.index:
            msg = f"{self.mapped.folder / FOOTPRINTS}: has no footprint {id_!r}"
            raise OptionError(msg)
        if label is not None and label not in self.classes:
            msg = f"label {label!r}: is none of {', '.join(self.classes)}; name further ones with `classes`"
            raise OptionError(msg)
        self.verdicts.add(Decision((id_,), verdict, label))

    def all_right(self, window: Window) -> None:
        """Say that a piece of the scene is as it should be: each outline that no other verdict is on, and no other."""
        rows, cols = self.mapped.grid.shape
        within = Window.of_shape((int(rows), int(cols))).intersection(window)
        if within is None:
            return
        open_ = [id_ for id_ in self._within(within) if self.states.get(id_, _OPEN).verdict == "skip"]
        self.verdicts.add(Decision(tuple(open_), "accept", None, (*within.row_range, *within.col_range)))

    def undo(self) -> str | None:
        """Take back what was said last; the footprint that it was said of, if it was one."""
        last = self.verdicts.undo()
        return last.ids[0] if last is not None and last.ids else None

    def piece(self, id_: str) -> Piece:
        """What is shown of a footprint. Raises `OutputError` if the footprints cannot be read."""
        row = self._table.loc[id_]
        window = self._window(row)
        near = self._read(window).sort_values("id", key=lambda ids: ids != id_, kind="stable").iloc[: NEIGHBOURS + 1]
        shapes = to_pixels(near.geometry.to_numpy(), self.mapped.grid)
        paths = dict(zip(near["id"], (svg_path(shape, window) for shape in shapes), strict=True))
        states = self.states
        others = [
            (path, states[other].verdict if other in states else "open")
            for other, path in paths.items()
            if other != id_
        ]
        return Piece(id_, window, paths.get(id_, ""), tuple(others), tuple(_told(row)), self._picture(window))

    def save(self, folder: str | Path) -> Reviewed:
        """Write labels.geojson and area.geojson into a folder. Raises `OptionError` if nothing was decided yet."""
        folder, states = Path(folder), self.states
        views = [decision.view for decision in self.verdicts.decisions if decision.view is not None]
        if not views and all(decision.verdict == "skip" for decision in states.values()):
            msg = f"{self.verdicts.path}: nothing has been accepted, rejected or relabelled yet"
            raise OptionError(msg)
        frame = footprints_in(self.mapped.folder)
        frame["verdict"] = [states.get(id_, _OPEN).verdict for id_ in frame["id"]]
        frame["class"] = [
            states.get(id_, _OPEN).label or own for id_, own in zip(frame["id"], frame["class"], strict=True)
        ]
        pixels = to_pixels(frame.geometry.to_numpy(), self.mapped.grid)
        seen = shapely.union_all([shapely.box(west, north, east, south) for north, south, west, east in views])
        area = _area(pixels, frame["verdict"].to_numpy(), seen, RIM / self.mapped.metres)
        there = _is_there(pixels, frame["verdict"].to_numpy(), seen)
        told = [name for name in ("id", "class", "verdict", "confidence") if name in frame]
        return self._written(folder, frame.loc[there, [*told, frame.geometry.name]], area)

    def _written(self, folder: Path, labels: gpd.GeoDataFrame, area: NDArray[np.object_]) -> Reviewed:
        crs = crs_of(self.mapped.grid).wkt
        scene = [self.mapped.folder.name] * len(area)
        ground = gpd.GeoDataFrame({"scene": scene}, geometry=to_world(area, self.mapped.grid), crs=crs)
        made = folder / "labels.geojson", folder / "area.geojson"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        write_geojson(labels, made[0])
        write_geojson(ground, made[1])
        hectares = float(shapely.area(area).sum()) * self.mapped.metres**2 / 10_000
        return Reviewed(*made, len(labels), hectares)

    def _window(self, row: pd.Series) -> Window:
        """A square about a footprint, on the scene as far as that is large enough."""
        box = to_pixels(np.array([shapely.box(*row[["xmin", "ymin", "xmax", "ymax"]].astype(float))]), self.mapped.grid)
        west, north, east, south = shapely.bounds(box[0])
        side = round(max(AROUND * max(east - west, south - north), LEAST / self.mapped.metres, 8))
        rows, cols = self.mapped.grid.shape
        top, left = (
            _shifted((low + high) / 2, side, int(end)) for low, high, end in ((north, south, rows), (west, east, cols))
        )
        return Window(top, top + side, left, left + side)

    def _read(self, window: Window) -> gpd.GeoDataFrame:
        """Footprints that a window may show."""
        (top, bottom), (left, right) = window.row_range, window.col_range
        outline = to_world(np.array([shapely.box(left, top, right, bottom)]), self.mapped.grid)
        west, south, east, north = map(float, shapely.bounds(outline[0]))
        return read_box(self.mapped.folder / FOOTPRINTS, (west, south, east, north), columns=["id"])

    def _within(self, window: Window) -> Iterator[str]:
        """Footprints that lie in a window as a whole."""
        (top, bottom), (left, right) = window.row_range, window.col_range
        near = self._read(window)
        west, north, east, south = shapely.bounds(to_pixels(near.geometry.to_numpy(), self.mapped.grid)).T
        inside = (west >= left - 0.01) & (east <= right + 0.01) & (north >= top - 0.01) & (south <= bottom + 0.01)
        yield from near["id"][inside]

    def _picture(self, window: Window) -> bytes:
        if self.below.imagery is None:
            return b""
        side = min(ACROSS, window.shape[0])
        return scene_picture(self.below.imagery.part(window, (side, side)), 85)


_OPEN: Final = Decision(("",), "skip")
"""What is said of a footprint that nothing is said of: no more than of one that was skipped."""


def footprint_table(path: Path, *, every: bool = False) -> pd.DataFrame:
    """Id (the index), class, confidence and box of all footprints, the least confident first; no outlines.

    `every`: further columns, too. Raises `OutputError` for a file that cannot be read.
    """
    try:
        known = pq.read_schema(path).names
        told = [name for name in known if name in SHOWN or (every and name not in {"geometry", "bbox"})]
        table = pq.read_table(path, columns=[*told, "bbox"]).flatten().to_pandas()
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read ({error}); make the result again"
        raise OutputError(msg) from error
    table.columns = [str(name).removeprefix("bbox.") for name in table.columns]
    table = table.set_index("id")
    return table.sort_values("confidence", kind="stable") if "confidence" in table else table


def _shifted(centre: float, side: int, end: int) -> int:
    """Where a stretch about a centre begins, so that it lies within 0 to `end`; about it anyhow if it is longer."""
    begin = round(centre - side / 2)
    return min(max(begin, 0), end - side) if side <= end else begin


def _told(row: pd.Series) -> Iterator[tuple[str, str]]:
    yield "class", str(row["class"])
    if "confidence" in row and np.isfinite(row["confidence"]):
        yield "confidence", f"{row['confidence']:.2f}"
    if "area_m2" in row:
        yield "area", f"{row['area_m2']:,.0f} m²"


def svg_path(shape: Any, window: Window) -> str:
    """An outline in pixels as SVG's path, from the corner of a window."""
    (top, _), (left, _) = window.row_range, window.col_range
    rings = shapely.get_rings(shapely.get_parts(shape))
    lines = (np.round(shapely.get_coordinates(ring)[:-1] - (left, top), 1).tolist() for ring in rings)
    return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) + "Z" for line in lines)


def _area(pixels: NDArray[np.object_], verdicts: NDArray[np.object_], seen: Any, rim: float) -> NDArray[np.object_]:
    """Polygons of the ground that was looked at: outlines with their rim but for what is open, and whole views."""
    decided = verdicts != "skip"
    rims = shapely.union_all(shapely.buffer(pixels[decided], rim, quad_segs=2))
    known = shapely.difference(rims, shapely.union_all(pixels[~decided & shapely.intersects(pixels, rims)]))
    parts = shapely.get_parts(shapely.union(known, seen))
    polygons: NDArray[np.object_] = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return polygons


def _is_there(pixels: NDArray[np.object_], verdicts: NDArray[np.object_], seen: Any) -> NDArray[np.bool_]:
    """(n,): whether each outline is of an object, as far as that was said; views say it of what they cut, too."""
    kept: NDArray[np.bool_] = np.isin(verdicts, ["accept", "relabel"])
    there: NDArray[np.bool_] = kept | ((verdicts == "skip") & shapely.intersects(pixels, seen))
    return there
