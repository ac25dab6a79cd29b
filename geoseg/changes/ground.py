"""A common ground: what two dates' maps say about one grid, window by window.

The grid is that of the map after. It is the ground that one looks at now, its pixels stay what they are, and one grid
is better than a third one that neither map is on. The map before is brought to it by nearest, so that its classes and
codes stay classes and codes; a pixel's value does not depend on the window that it is read in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import shapely
from odc.geo.geobox import GeoBox
from rasterio import Affine
from rasterio.features import rasterize

from geoseg.changes.transitions import within
from geoseg.errors import SceneError
from geoseg.evaluation.inputs import Labels, raster_on
from geoseg.io.grids import GridSource, on_grid
from geoseg.io.scenes import open_scene
from geoseg.io.vectors import to_pixels
from geoseg.raster import CONFIDENCE_STEPS, NODATA, crs_of
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.io.pixels import SceneSource
    from geoseg.raster import Raster

AT_ONCE: Final = (1024, 4096)
"""Rows and columns of the windows in which two maps are compared: some 30 bytes of memory for each pixel."""

CACHED: Final = 192 << 20
"""Bytes of blocks that GDAL may keep while maps are compared: those around some windows of a few rasters."""

BLOCKS: Final = 5
"""Blocks along each side of the ground in common, at most, from which a shift is estimated."""

BLOCK_SIDE: Final = 512
"""Cells of their sides, at most."""

LEAST_BLOCK_SIDE: Final = 128
"""The same where the ground in common is small, unless that is too small for two of them."""

CELL_M: Final = 0.25
"""Metres of a cell at least, as far as pixels are not coarser: a roof's edge needs no finer ones."""

READ_SIDE: Final = 4096
"""Pixels of a scene, along a side, that are read for a block at most."""

OUTLINE_POINTS: Final = 64
"""Points along each side of a grid that is looked for on another."""


@dataclass(frozen=True, eq=False)
class Dated:
    """One date's map, on a grid."""

    labels: Labels
    confidence: Labels


@dataclass(frozen=True, eq=False)
class Ground:
    """Two dates' maps on the grid of the second."""

    grid: GeoBox
    before: Dated
    after: Dated

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        rows, cols = self.grid.shape
        return int(rows), int(cols)

    def windows(self, most: tuple[int, int] = AT_ONCE) -> Iterator[Window]:
        """Windows that are disjoint and cover the grid."""
        return Window.of_shape(self.shape).blocks(most)

    def read(self, window: Window) -> tuple[NDArray[np.uint8], ...]:
        """Labels before and after, then confidence before and after, (y, x) uint8 of a window.

        It may reach beyond the grid; what lies there is not seen, and so is 255.
        """
        dates = (self.before, self.after)
        rasters = [date.labels for date in dates] + [date.confidence for date in dates]
        return tuple(padded(raster, window, self.shape) for raster in rasters)


def padded(raster: Labels, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Values (y, x) of a window of a raster on a grid of a shape; 255 where it reaches beyond."""
    inside = Window.of_shape(shape).intersection(window)
    if inside == window:
        return raster.read(window)
    values = np.full(window.shape, NODATA, np.uint8)
    if inside is not None:
        values[inside.relative_to(window).slices] = raster.read(inside)
    return values


def common_ground(before: Path, after: Path, shift: tuple[float, float] = (0.0, 0.0)) -> Ground:
    """The maps in two folders of results on the grid of the second, the first one moved by a shift.

    `shift`: pixels (rows, columns) of the second's grid. Moving the map before is reading it on a grid that is moved
    the other way. Raises `SceneError` for files that cannot be read.
    """
    grid = open_scene(after / "labels.tif").geobox
    rows, cols = shift
    elsewhere = GeoBox(grid.shape, grid.affine @ Affine.translation(-cols, -rows), grid.crs)

    def dated(folder: Path, on: GeoBox) -> Dated:
        return Dated(*(raster_on(open_scene(folder / f"{name}.tif"), on) for name in ("labels", "confidence")))

    return Ground(grid, dated(before, elsewhere if any(shift) else grid), dated(after, grid))


def seen_by_both(before: Scene, after: Scene) -> SceneError:
    """The error for scenes whose data nowhere meet."""
    return SceneError(
        f"{before.path} and {after.path}: no pixel has data in both of them, so nothing can be compared; check their "
        "nodata values, clouds, and --aoi"
    )


def has_data(source: SceneSource) -> bool:
    """Whether any pixel of a scene has data; reads until one has."""
    return any(source.read(window).valid.any() for window in Window.of_shape(source.shape).blocks(AT_ONCE))


def window_on(grid: GeoBox, other: GeoBox) -> Window | None:
    """The rectangle of a grid's pixels that another grid covers some of; None if they do not meet."""
    outline = other.footprint(crs_of(grid), buffer=0, npoints=OUTLINE_POINTS).geom
    placed = to_pixels(np.array([outline], object), grid)[0]
    rows, cols = grid.shape
    placed = shapely.intersection(placed, shapely.box(0, 0, cols, rows))
    if not shapely.area(placed) > 0:
        return None
    left, top, right, bottom = shapely.bounds(placed)
    return Window(int(top), int(np.ceil(bottom)), int(left), int(np.ceil(right)))


# --- what both dates say about the ground of an object


@dataclass(frozen=True, eq=False)
class Evidence:
    """What two maps say about the ground of n objects: a struct of arrays of length n."""

    seen: NDArray[np.float64]
    """Share of an object that both maps see, and around whose pixels both see all within a reach."""
    present_before: NDArray[np.float64]
    present_after: NDArray[np.float64]
    """Mean probability that an object is there, where both see; 0 if they see nothing of it."""


def evidence(
    ground: Ground,
    layers: Iterable[NDArray[np.object_]],
    background: int,
    reach: tuple[int, int],
    windows: Iterable[Window] | None = None,
    progress: Callable[[int], None] = lambda _pixels: None,
) -> tuple[list[Evidence], int]:
    """What both maps say about the ground of the polygons of some layers, in the grid's CRS; and pixels that both see.

    An object's ground is the pixels of the grid whose centre it holds; one that holds none is not seen. The windows
    must cover the grid once, and are of no consequence, for only whole numbers are added. `reach`: rows, columns.
    """
    looks = [_Look(to_pixels(layer, ground.grid, fraction=1024), ground.shape) for layer in layers]
    both = 0
    for window in windows or ground.windows():
        arrays = ground.read(around(window, reach))
        blind = (arrays[0] == NODATA) | (arrays[1] == NODATA)
        inner = tuple(slice(side, -side or None) for side in reach)
        clear = within(blind.astype(np.uint16), reach) == 0
        codes = [_presence(arrays[i][inner], arrays[i + 2][inner], background) for i in (0, 1)]
        seen = ~blind[inner]
        both += int(np.count_nonzero(seen))
        for look in looks:
            look.add(window, seen, clear, codes)
        progress(window.size)
    return [look.found() for look in looks], both


def around(window: Window, reach: tuple[int, int]) -> Window:
    """A window with so many rows and columns more on each side."""
    rows, cols = reach
    return Window(window.row_start - rows, window.row_stop + rows, window.col_start - cols, window.col_stop + cols)


def _presence(labels: NDArray[np.uint8], confidence: NDArray[np.uint8], background: int) -> NDArray[np.int64]:
    """Probability that an object is there, as codes; with two classes it is all that is left of the background's."""
    confident = confidence.astype(np.int64)
    return np.where(labels == background, CONFIDENCE_STEPS - confident, confident)


class _Look:
    """Counts what is seen of the polygons of one layer, in pixels of a grid."""

    def __init__(self, polygons: NDArray[np.object_], shape: tuple[int, int]) -> None:
        self._polygons, self._tree = polygons, shapely.STRtree(polygons)
        area = shapely.area(polygons)
        inside = shapely.area(shapely.intersection(polygons, shapely.box(0, 0, shape[1], shape[0])))
        self._inside = np.clip(inside / np.where(area > 0, area, 1), 0, 1)
        self._sums = np.zeros((5, len(polygons)), np.int64)

    def add(
        self, window: Window, both: NDArray[np.bool_], clear: NDArray[np.bool_], codes: list[NDArray[np.int64]]
    ) -> None:
        """What is in a window; arrays (y, x)."""
        (top, bottom), (left, right) = window.row_range, window.col_range
        here = np.sort(self._tree.query(shapely.box(left, top, right, bottom)))
        if not len(here):
            return
        shapes = zip(self._polygons[here], range(1, len(here) + 1), strict=True)
        place = Affine.translation(left, top)
        burnt = rasterize(shapes, window.shape, transform=place, dtype="int32")
        on, owner = burnt > 0, burnt[burnt > 0] - 1
        seen = both[on]
        for row, weight in enumerate((np.ones(len(owner)), seen, clear[on], codes[0][on] * seen, codes[1][on] * seen)):
            self._sums[row, here] += np.rint(np.bincount(owner, weight, len(here))).astype(np.int64)

    def found(self) -> Evidence:
        """Shares and means, all windows having been added."""
        pixels, both, clear, *codes = self._sums
        means = [code / np.maximum(both, 1) / CONFIDENCE_STEPS for code in codes]
        return Evidence(clear / np.maximum(pixels, 1) * self._inside, *means)


# --- samples of the ground in common

SAMPLE: Final = 1024
"""Rows and columns at most of a sample."""


def sample(
    before: SceneSource, after: SceneSource, overlap: Window, shift: tuple[float, float] = (0.0, 0.0)
) -> tuple[Raster, Raster]:
    """Both scenes' bytes, whatever their grids, on a grid of few cells over a window of the scene after.

    `shift`: rows, columns of the scene after that the one before is moved by.
    """
    grid = after.scene.geobox
    step = max(1.0, max(overlap.shape) / SAMPLE)
    shape = max(1, int(overlap.shape[0] / step)), max(1, int(overlap.shape[1] / step))
    place = grid.affine @ Affine.translation(overlap.col_start, overlap.row_start)
    elsewhere = Affine.translation(-shift[1], -shift[0])
    first, second = (
        on(source, GeoBox(shape, each @ Affine.scale(step), grid.crs)).read(Window.of_shape(shape))
        for source, each in ((before, place @ elsewhere), (after, place))
    )
    return first, second


def on(source: SceneSource, grid: GeoBox) -> SceneSource:
    """A scene's pixels on a grid."""
    if source.scene.geobox == grid:
        return source
    return GridSource(on_grid(source.scene, grid), source.bands, [source])


# --- blocks for the estimate of a shift


def blocks(
    before: SceneSource, after: SceneSource, overlap: Window
) -> tuple[float, Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Pixels of the scene after that a cell of the blocks has along its side, and the blocks' brightness.

    Blocks are spread evenly over a window of the scene after. However large the scenes and fine their pixels, few are
    read; each pair is (y, x) float32 before and after on one grid, NaN where there is no data.
    """
    grid = after.scene.geobox
    fine, coarse = sorted((max(before.scene.ground_resolution), max(after.scene.ground_resolution)))
    cell = max(coarse, CELL_M)
    step = cell / max(after.scene.ground_resolution)
    longest = min(BLOCK_SIDE, int(READ_SIDE * fine / cell))
    short = int(min(overlap.shape) / step)
    side = max(1, min(longest, short // 2, max(LEAST_BLOCK_SIDE, short // BLOCKS)))

    def pairs() -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        for top, left in _places(overlap, side * step):
            place = grid.affine @ Affine.translation(left, top) @ Affine.scale(step)
            block = GeoBox((side, side), place, grid.crs)
            yield _brightness(before, block), _brightness(after, block)

    return step, pairs()


def _places(overlap: Window, side: float) -> Iterator[tuple[float, float]]:
    """First row and column of blocks that stand apart evenly in a window."""
    starts = []
    for start, length in zip((overlap.row_start, overlap.col_start), overlap.shape, strict=True):
        count = min(BLOCKS, max(1, int(length / side)))
        gap = (length - count * side) / (count + 1)
        starts.append([start + gap + index * (side + gap) for index in range(count)])
    for top in starts[0]:
        for left in starts[1]:
            yield top, left


def _brightness(source: SceneSource, block: GeoBox) -> NDArray[np.float32]:
    """Mean of the bands (y, x) on a block's grid, NaN where there is no data."""
    raster = GridSource(on_grid(source.scene, block), source.bands, [source]).read(
        Window(0, block.shape[0], 0, block.shape[1])
    )
    return np.where(raster.valid, raster.values.mean(axis=0, dtype=np.float32), np.float32(np.nan))
