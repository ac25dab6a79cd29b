"""Scenes on another grid than their files': the one that is asked for, or the one that several scenes share.

A target grid's pixels have their edges at multiples of the resolution, so that scenes that are mapped one by one lie on
one lattice. Rows and columns of a scene on it count from its own corner as those of any scene.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import CRSError

from geoseg.errors import OptionError, SceneError
from geoseg.io.pixels import SceneSource, Survey, nearest, resolution_of
from geoseg.io.places import applied, to_file
from geoseg.io.resampling import CELL, Block, Route, moved, transformer_of, turn_of
from geoseg.raster import crs_of
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from geoseg.catalog import Scene

MOST_PIXELS = 10**11
"""Of a target grid: a hundred times the largest scenes that there are."""

WHOLE = 1e-3
"""Pixels by which grids may be off each other and still be one lattice, and by which the last pixel may be left."""

OUTLINE_POINTS = 65
"""Points along each side of a raster, and in it, that are looked for in another CRS."""

OPEN_AT_ONCE = 16
"""Scenes of a mosaic whose files are kept open."""

BLOCK = (512, 2048)
"""Rows and columns of the target that are made together, at most."""

BLOCK_SOURCE = 1 << 21
"""Pixels of a source that are read for them, at most, unless a single pixel needs more."""

DIGITS = 2
"""Of a resolution that nobody asked for."""

LAT_POLE = 90.0

LONLAT = CRS("EPSG:4326")


# --- which grid


def crs_asked(text: str | int) -> CRS:
    """The CRS of `EPSG:32645`, a number or WKT. Raises `OptionError` for what is none, or has no x and y."""
    try:
        found = pyproj.CRS.from_user_input(text)
    except CRSError as error:
        msg = f"--crs {text}: is no coordinate reference system that PROJ knows; write one like EPSG:32645, or its WKT"
        raise OptionError(msg) from error
    if not (found.is_projected or found.is_geographic):
        msg = f"--crs {text}: {found.name} is {found.type_name}, without x and y on the ground; choose a projected one"
        raise OptionError(msg)
    return CRS(found.to_epsg(min_confidence=100) or found.to_wkt())


def target_grid(scenes: Sequence[Scene], resolution: float | None = None, crs: CRS | None = None) -> GeoBox:
    """The grid on which scenes are read together: north up, with pixel edges at multiples of the resolution.

    `resolution` counts in the units of the CRS. Without it, it is what the finest scene's pixels are at its middle, to
    two digits; without a CRS, that of the finest scene (the first of those). With neither it is that scene's own
    lattice. Raises `OptionError` for a grid that cannot be, or holds nothing, or far too much.
    """
    finest = min(scenes, key=lambda scene: round(math.prod(scene.ground_resolution), 9))
    crs = crs or crs_of(finest.geobox)
    _check_place(scenes, crs)
    if resolution is None and crs == crs_of(finest.geobox):
        return _grid_over(scenes, finest.geobox.affine, crs, "")
    if resolution is not None and not 0 < resolution < math.inf:
        msg = f"--resolution {resolution:g}: must be above 0, in {_unit(crs)}"
        raise OptionError(msg)
    side = resolution or _own_resolution(finest, crs)
    return _grid_over(scenes, Affine(side, 0, 0, 0, -side, 0), crs, f"--resolution {side:g} ({_unit(crs)}): ")


def _unit(crs: CRS) -> str:
    return {"metre": "metres", "degree": "degrees"}.get(unit := crs.proj.axis_info[0].unit_name, unit)


def _grid_over(scenes: Sequence[Scene], lattice: Affine, crs: CRS, what: str) -> GeoBox:
    """The pixels of a lattice that scenes lie on."""
    first = scenes[0]
    middle = _middle(first.geobox, crs)
    spans = [_span(scene.geobox, GeoBox((1, 1), lattice, crs), middle) for scene in scenes]
    if not all(spans):
        path = scenes[spans.index(None)].path
        msg = f"{path}: cannot be described in {_name(crs)}; choose a CRS of its place, such as {_utm(first.geobox)}"
        raise SceneError(msg)
    top, bottom, left, right = (pick(s[i] for s in spans if s) for i, pick in enumerate((min, max, min, max)))
    side = abs(lattice.determinant) ** 0.5
    if max(bottom - top, right - left) < 1:
        msg = f"{what}a pixel would be larger than {first.path}, which is {side * (right - left):.3g} x "
        raise OptionError(msg + f"{side * (bottom - top):.3g} {_unit(crs)}; choose a finer one")
    rows, cols = (math.ceil(stop - WHOLE) - math.floor(start + WHOLE) for start, stop in ((top, bottom), (left, right)))
    if rows * cols > MOST_PIXELS:
        msg = f"{what}{first.path} would have {rows:.3g} x {cols:.3g} pixels; choose a coarser one"
        raise OptionError(msg + (", and scenes that lie closer together" if len(scenes) > 1 else ""))
    return GeoBox((rows, cols), lattice @ Affine.translation(math.floor(left + WHOLE), math.floor(top + WHOLE)), crs)


def _spread(grid: GeoBox, crs: CRS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points all over a grid, or its corners where the CRS is its own, as x and y in a CRS, as far as it has such.

    What goes round the earth is told as it is, so it may jump.
    """
    rows, cols = grid.shape
    count = 2 if crs == grid.crs else OUTLINE_POINTS
    col, row = np.meshgrid(np.linspace(0, cols, count), np.linspace(0, rows, count))
    x, y = applied(grid.affine, col.ravel(), row.ravel())
    transformer = transformer_of(crs_of(grid), crs)
    if transformer is not None:
        x, y = transformer.transform(x, y)
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _middle(grid: GeoBox, crs: CRS) -> float:
    """Where the middle of a grid is along x in a CRS, NaN where there is none."""
    x, y = grid.affine @ (grid.shape[1] / 2, grid.shape[0] / 2)
    transformer = transformer_of(crs_of(grid), crs)
    x = x if transformer is None else transformer.transform(x, y)[0]
    return x if math.isfinite(x) else math.nan


def _span(grid: GeoBox, onto: GeoBox, middle: float) -> tuple[float, float, float, float] | None:
    """From where to where a grid lies on a lattice: first and last row and column, in its pixels; None: nowhere."""
    crs = crs_of(onto)
    x, y = _spread(grid, crs)
    turn = turn_of(crs)
    if not len(x):
        return None
    if turn is not None and math.isfinite(middle):
        x = x + turn * np.rint((middle - x) / turn)  # the caller's
    along, down = applied(~onto.affine, x, y)
    return float(down.min()), float(down.max()), float(along.min()), float(along.max())


def _own_resolution(scene: Scene, crs: CRS) -> float:
    """What a scene's pixels are in the units of a CRS, at its middle."""
    grid = scene.geobox
    rows, cols = (side / 2 for side in grid.shape)
    transformer = transformer_of(crs_of(grid), crs)
    x, y = applied(grid.affine, np.array([cols, cols + 1, cols]), np.array([rows, rows, rows + 1]))
    if transformer is not None:
        x, y = transformer.transform(x, y)
    area = abs((x[1] - x[0]) * (y[2] - y[0]) - (x[2] - x[0]) * (y[1] - y[0]))
    if not math.isfinite(area):
        msg = f"{scene.path}: its middle cannot be described in {_name(crs)}; choose a CRS of its place, such as "
        raise SceneError(msg + _utm(grid))
    return float(f"{area**0.5:.{DIGITS}g}")


def _check_place(scenes: Sequence[Scene], crs: CRS) -> None:
    """Raises `OptionError` for a CRS that no scene is in the place of, or one that tears a scene apart."""
    others = [scene for scene in scenes if scene.geobox.crs != crs]
    for scene in others:
        if turn_of(crs) is not None and _holds_pole(scene.geobox):
            msg = f"--crs {_name(crs)}: {scene.path} holds a pole, which is a line in it; choose a polar one, "
            raise OptionError(msg + "such as EPSG:3413 in the north or EPSG:3031 in the south")
    area = crs.proj.area_of_use
    if len(others) < len(scenes) or area is None or any(_meets(scene, area) for scene in scenes):
        return
    grid = scenes[0].geobox
    where = f"longitude {area.west:g} to {area.east:g} and latitude {area.south:g} to {area.north:g}"
    msg = f"--crs {_name(crs)}: is meant for {where}, and {scenes[0].path} is elsewhere; choose one of its place, "
    raise OptionError(msg + f"such as {_utm(grid)}")


def _meets(scene: Scene, area: Any) -> bool:
    """Whether a scene lies in the area that a CRS is for, as far as its outline tells."""
    lon, lat = _spread(scene.geobox, LONLAT)
    if not len(lon):
        return False
    middle = _middle(scene.geobox, LONLAT)
    lon = lon + 360 * np.rint(((middle if math.isfinite(middle) else lon[0]) - lon) / 360)
    east = area.east + (360 if area.east < area.west else 0)
    turns = 360 * np.arange(-1, 2)
    along = (lon.max() >= area.west + turns) & (lon.min() <= east + turns)
    return bool(along.any() and lat.max() >= area.south and lat.min() <= area.north)


def _holds_pole(grid: GeoBox) -> bool:
    """Whether a pole lies inside a grid, for CRS in which it is a point."""
    if crs_of(grid).proj.is_geographic:
        return False
    lon, lat = np.zeros(2), np.array([-LAT_POLE, LAT_POLE])
    down, along = moved(lon, lat, grid, transformer_of(LONLAT, crs_of(grid)))
    rows, cols = grid.shape
    return bool(((down > 0) & (down < rows) & (along > 0) & (along < cols)).any())


def _utm(grid: GeoBox) -> str:
    """The UTM zone of a grid's middle, or the polar CRS of its pole."""
    x, y = grid.affine @ (grid.shape[1] / 2, grid.shape[0] / 2)
    lon, lat = pyproj.Transformer.from_crs(crs_of(grid).proj, 4326, always_xy=True).transform(x, y)
    if not (math.isfinite(lon) and math.isfinite(lat)):
        return "EPSG:3857"
    if not -80 <= lat <= 84:  # noqa: PLR2004  # as far as UTM reaches
        return "EPSG:3413" if lat > 0 else "EPSG:3031"
    return f"EPSG:{32600 if lat >= 0 else 32700}".removesuffix("00") + f"{int((lon + 180) % 360 // 6) + 1:02}"


def _name(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)


def asked_of(scene: Scene) -> dict[str, Any]:
    """The resolution and CRS by which a scene got its grid; nothing where it has the one that it has unasked."""
    grid = scene.geobox
    if not scene.parts or grid == target_grid(scene.parts):
        return {}
    return {"resolution": float(grid.resolution.x), "crs": str(grid.crs)}


def on_grid(scene: Scene, grid: GeoBox, *, by_nearest: bool = False) -> Scene:
    """A scene as it is read on another grid: what is between its pixels, or (for codes) the nearest of them.

    Bilinear; where the grid's pixels are larger, between means of as many of the scene's as they span.
    """
    return replace(
        scene,
        geobox=grid,
        ground_resolution=resolution_of(grid, scene.path),
        files=(),
        masks=(),
        fill=(),
        mask=None,
        parts=scene.parts or (scene,),
        by_nearest=by_nearest,
    )


# --- its pixels


class GridSource(SceneSource):
    """Pixels of a scene that is read on another grid than its parts' own."""

    errors = ()
    """None: its parts tell of their own."""

    def __init__(
        self,
        scene: Scene,
        bands: tuple[int, ...],
        sources: Sequence[SceneSource],
        inside: Callable[[Window], NDArray[np.bool_]] | None = None,
    ) -> None:
        """`sources`: of the scene's parts, that of the part that goes before the others first."""
        super().__init__(scene, bands, sources[0].stretch, inside)
        self._parts = [_Part(source, scene.geobox, by_nearest=scene.by_nearest) for source in sources]
        self._used: OrderedDict[_Part, None] = OrderedDict()

    def _bytes(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        return raw  # the parts have stretched them

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values = np.zeros((len(self.bands), *window.shape), np.uint8)
        valid = np.zeros(window.shape, bool)
        for part in self._parts:
            within = None if part.extent is None else part.extent.intersection(window)
            if within is None:
                continue
            there = within.relative_to(window).slices
            if not valid[there].all():
                self._use(part)
                part.read(within, values[:, *there], valid[there])
        return values, valid

    def _use(self, part: _Part) -> None:
        """Note that the files of a part are open, and close those that were not needed for longest."""
        self._used[part] = None
        self._used.move_to_end(part)
        while len(self._used) > OPEN_AT_ONCE:
            self._used.popitem(last=False)[0].source.close()

    def close(self) -> None:
        """Close the files of all parts."""
        for part in self._parts:
            part.source.close()
        self._used.clear()

    def overview(self, most: int) -> np.ma.MaskedArray[Any, Any]:
        """As `SceneSource` has it; of a single part its own."""
        return self._parts[0].source.overview(most) if len(self._parts) == 1 else super().overview(most)

    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        rows, cols = (nearest(side, count) + 0.5 for side, count in zip(self.shape, shape, strict=True))
        grid = np.meshgrid(rows, cols, indexing="ij")
        made = np.ma.MaskedArray(np.zeros((len(self.bands), *shape), self.scene.dtype), mask=True)
        step = self.shape[0] / shape[0]
        for part in self._parts:
            if part.extent is not None:
                part.add_to_overview(made, (grid[0], grid[1]), math.ceil(max(part.extent.shape) / step))
                part.source.close()
        return made

    def survey(self) -> Survey:
        """As the first part has it."""
        return self._parts[0].source.survey()

    def cache_bytes(self) -> int:
        """What the parts ask for, as far as the plan of a scene of this size counts with it."""
        counted = max(64 << 20, 2 * BLOCK[0] * self.shape[1] * len(self.bands))
        return min(sum(part.source.cache_bytes() for part in self._parts[:OPEN_AT_ONCE]), counted)


class _Part:
    """A scene, read on a target grid."""

    def __init__(self, source: SceneSource, target: GeoBox, *, by_nearest: bool) -> None:
        self.source = source
        own = source.scene.geobox
        self.extent = _extent(own, target)
        self._shift = _shift(own, target)
        self._route = Route(target, own)
        self._nearest = by_nearest
        span = (1.0, 1.0) if by_nearest or self.extent is None else self._route.scale()
        self._factors = max(1, round(span[0])), max(1, round(span[1]))

    def read(self, window: Window, values: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
        """Put values (band, y, x) where this part has some and `valid` (y, x) is false yet."""
        if self._shift is not None:
            there = Window(*(edge + by for edge, by in zip(_edges(window), self._shift, strict=True)))
            raster = self.source.read(there)
            _fill(values, valid, raster.values, raster.valid)
            return
        down, along = self._factors
        rows = max(CELL, min(BLOCK[0], (BLOCK[0] // down) // CELL * CELL))
        cols = max(CELL, min(BLOCK[1], (BLOCK[1] // along) // CELL * CELL))
        for block in window.blocks((rows, cols)):
            here = block.relative_to(window).slices
            if not valid[here].all():
                self._read(block, values[:, *here], valid[here])

    def _read(self, window: Window, values: NDArray[np.uint8], valid: NDArray[np.bool_]) -> None:
        lattice = self._route.lattice(window)
        needed = self._needed(lattice.bounds)
        if needed is None:
            return
        if needed.size > BLOCK_SOURCE and window.size > 1:  # turned, or torn apart by the antimeridian
            for half in _halves(window):
                here = half.relative_to(window).slices
                self._read(half, values[:, *here], valid[here])
            return
        raster = self.source.read(needed)
        if not raster.valid.any():
            return
        block = Block(
            raster.values.astype(np.uint8, copy=False),
            raster.valid,
            (needed.row_start, needed.col_start),
            self.source.shape,
        )
        mean = block if self._factors == (1, 1) else block.reduced(self._factors)
        made = np.empty((len(values), *window.shape), np.uint8)
        there = np.empty(window.shape, bool)
        for rows, down, along in lattice.slabs():
            there[rows] = block.valid_at(down, along)
            if self._nearest:
                block.nearest(down, along, made[:, rows])
            else:
                mean.bilinear(down / self._factors[0], along / self._factors[1], made[:, rows])
        _fill(values, valid, made, there)

    def _needed(self, bounds: tuple[float, float, float, float]) -> Window | None:
        """The pixels of the source that places within bounds depend on; None: there are none.

        Whole means, and one more on each side.
        """
        spans = []
        for start, stop, factor, side in zip(bounds[::2], bounds[1::2], self._factors, self.source.shape, strict=True):
            first = max(0, (math.floor(start / factor) - 1) * factor)
            last = min(side, (math.floor(stop / factor) + 2) * factor)
            if first >= last:
                return None
            spans += [first, last]
        return Window(*spans)

    def add_to_overview(
        self,
        made: np.ma.MaskedArray[Any, Any],
        points: tuple[NDArray[np.float64], NDArray[np.float64]],
        most: int,
    ) -> None:
        """Put this part's values at rows and columns of the target where an overview has none yet."""
        down, along = self._route.exact(*points)
        height, width = self.source.shape
        inside = (down >= 0) & (down < height) & (along >= 0) & (along < width) & made.mask.all(axis=0)
        if not inside.any():
            return
        overview = self.source.overview(most)
        row = (down[inside] * (overview.shape[1] / height)).astype(np.intp)
        col = (along[inside] * (overview.shape[2] / width)).astype(np.intp)
        made[:, inside] = overview[:, row, col]


def _edges(window: Window) -> tuple[int, int, int, int]:
    return *window.row_range, *window.col_range


def _halves(window: Window) -> tuple[Window, Window]:
    """A window cut across its longer side, between cells if it has several."""
    rows, cols = window.shape
    if rows >= cols:
        cut = (window.row_start + rows // 2) // CELL * CELL
        cut = cut if window.row_start < cut else window.row_start + rows // 2
        return window.rows(window.row_start, cut), window.rows(cut, window.row_stop)
    cut = (window.col_start + cols // 2) // CELL * CELL
    cut = cut if window.col_start < cut else window.col_start + cols // 2
    return (
        Window(*window.row_range, window.col_start, cut),
        Window(*window.row_range, cut, window.col_stop),
    )


def _fill(values: NDArray[np.uint8], valid: NDArray[np.bool_], new: NDArray[Any], there: NDArray[np.bool_]) -> None:
    """Add pixels (band, y, x) where some are missing."""
    if there.all() and not valid.any():  # as it is most often, and faster
        values[:], valid[:] = new, True
        return
    wanted = there & ~valid
    np.copyto(values, new, where=wanted)
    valid |= wanted


def _extent(own: GeoBox, target: GeoBox) -> Window | None:
    """The pixels of a target grid that a grid may cover some of; None: there are none."""
    middle, _ = target.affine @ (target.shape[1] / 2, target.shape[0] / 2)
    span = _span(own, target, middle)
    if span is None:
        return None
    slack = 2 + max(span[1] - span[0], span[3] - span[2]) / OUTLINE_POINTS  # between the points that were looked for
    top, bottom, left, right = (round(edge + side * slack) for edge, side in zip(span, (-1, 1, -1, 1), strict=True))
    rows, cols = target.shape
    return Window.of_shape((rows, cols)).intersection(Window(top, bottom, left, right))


def _shift(own: GeoBox, target: GeoBox) -> tuple[int, int, int, int] | None:
    """Rows and columns that a source's pixels are further on than the same ones of the target; None: others are."""
    if own.crs != target.crs:
        return None
    affine = to_file(_turned(own, target), target)
    whole = Affine.translation(round(affine.c), round(affine.f))
    rows, cols = target.shape
    off = max(
        np.abs(np.subtract(affine @ corner, whole @ corner)).max() for corner in ((0, 0), (cols, rows), (0, rows))
    )
    return None if off > WHOLE else (round(affine.f),) * 2 + (round(affine.c),) * 2


def _turned(own: GeoBox, target: GeoBox) -> GeoBox:
    """A grid as often round the earth as brings it nearest to another one of its CRS."""
    turn, crs = turn_of(crs_of(own)), crs_of(own)
    if turn is None:
        return own
    turns = round((_middle(target, crs) - _middle(own, crs)) / turn)
    return GeoBox(own.shape, Affine.translation(turn * turns, 0) @ own.affine, crs) if turns else own
