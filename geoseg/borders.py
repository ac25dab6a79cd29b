"""Where the ground that a scene saw ends, and buildings of which two scenes hold a piece each.

The edge of a scene is that of its raster, and wherever its nodata begins: sheets of two UTM zones meet at a meridian,
which runs aslant through both. It is found in the labels, not in the outlines, so that simplifying has no say and a
building that stands a pixel from the edge is none that the edge cuts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import shapely
from pyproj import CRS, Transformer
from scipy.ndimage import distance_transform_edt

from geoseg.io.vectors import to_pixels, to_world
from geoseg.raster import crs_of, ground_resolution
from geoseg.window import Window

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    import geopandas as gpd
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

JOIN_WITHIN = 2.0
"""How far apart, in pixels of the coarser scene, the edges of two scenes may run and still be one border."""

LEAST_CONTACT = 0.5
"""How much of a border, in the same pixels, two pieces share at least: a corner is no edge."""

BEYOND = 0.25
"""How far beyond the edge, in the same pixels, the other piece must still be."""

STEP = 0.5
"""How far apart, in the same pixels, it is looked where the other piece begins."""

FAR_BEYOND = 2 * JOIN_WITHIN
"""How far the ground goes on, in the same pixels, that a scene saw which does not end in the same place."""

NEARLY_ONE = 0.9
"""How far a polygon goes on, in the same pixels, that does not end in the same place."""

SHORT_OF = 1.25
"""How far from the edge, in its scene's pixels, a piece may end that another goes on from right behind it.

Along the rim a network sees half a neighbourhood, and its scores are coarser than pixels: what the edge cuts is often
a pixel short. Where outlines follow the pixels exactly, pieces are taken as exactly.
"""

LATTICE = 2.0**-20
"""Part of a pixel to which outlines are rounded where they are joined or cut: so grids that coincide do exactly."""

LEAST_PIXELS = 1e-4
"""Square pixels below which an area is what rounding has left."""

_NO_GAP = 1e-4

_STEPS = ((1, 0), (-1, 0), (0, 1), (0, -1))

DEPTH_CELLS = 512
"""Cells along the longer side of a scene in which the distance from its edge is known."""


class Results(Protocol):
    """What is read of a scene's results."""

    def footprints(self, bounds: tuple[float, float, float, float] | None = None) -> Iterator[gpd.GeoDataFrame]:
        """All footprints in the scene's CRS, a part at a time, in the order of their file; or those that meet bounds.

        `bounds`: west, south, east, north in the scene's CRS; a footprint meets them if its bounding box does.
        """
        ...

    def columns(self) -> frozenset[str]:
        """What the footprints tell of themselves."""
        ...

    def valid(self, window: Window, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """(y, x): which pixels of a window inside the scene have a label; fewer of them, evenly, in another shape."""
        ...


@dataclass(frozen=True, eq=False)
class View:
    """One scene's results, as merging sees them."""

    scene: str
    geobox: GeoBox
    results: Results
    datetime: dt.datetime | None = None
    simplify: float = 0.0
    """Pixels by which its outlines may leave the pixels' sides."""
    min_area: float = 0.0
    """Square metres below which a footprint is dropped."""

    @cached_property
    def crs(self) -> CRS:
        """The scene's."""
        return CRS.from_wkt(crs_of(self.geobox).wkt)

    @cached_property
    def side(self) -> float:
        """Metres on the ground along a pixel."""
        return math.sqrt(math.prod(ground_resolution(self.geobox)))

    @property
    def short_of(self) -> float:
        """Pixels before the edge in which a piece may end that the edge cuts."""
        return SHORT_OF if self.simplify else 0.0

    def outline(self, crs: CRS) -> Any:
        """The grid's outline in a CRS."""
        rows, cols = self.geobox.shape
        frame = shapely.segmentize(shapely.box(0, 0, cols, rows), max(rows, cols) / 16)
        return transformed(to_world(np.array([frame]), self.geobox), self.crs, crs)[0]

    def at_edge(self, pixels: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Which polygons, in pixel coordinates, reach the raster's edge as far as simplifying lets one say."""
        rows, cols = self.geobox.shape
        bounds, near = shapely.bounds(pixels), self.simplify + self.short_of + _NO_GAP
        reaching: NDArray[np.bool_] = (bounds[:, :2] <= near).any(1) | (
            bounds[:, 2:] >= (cols - near, rows - near)
        ).any(1)
        return reaching

    def depth(self, pixels: NDArray[np.object_]) -> NDArray[np.float64]:
        """Metres from the middle of polygons, in pixel coordinates, to where the valid ground ends."""
        depths = _depths(self)
        bounds = shapely.bounds(pixels)
        share = (bounds[:, [1, 0]] + bounds[:, [3, 2]]) / 2 / self.geobox.shape
        cell = np.floor(share * depths.shape).astype(int).clip(0, np.array(depths.shape) - 1)
        found: NDArray[np.float64] = depths[cell[:, 0], cell[:, 1]].astype(np.float64)
        return found

    def valid_around(self, window: Window) -> NDArray[np.bool_]:
        """(y, x): which pixels of a window have a label, none of those outside the scene having one."""
        valid = np.zeros(window.shape, np.bool_)
        within = Window.of_shape((self.geobox.shape[0], self.geobox.shape[1])).intersection(window)
        if within is not None:
            valid[within.relative_to(window).slices] = self.results.valid(within)
        return valid


@lru_cache(maxsize=32)
def _depths(view: View) -> NDArray[np.float32]:
    """Metres from each of a few cells of a scene to where its valid ground ends."""
    rows, cols = view.geobox.shape
    share = min(1.0, DEPTH_CELLS / max(rows, cols))
    shape = max(1, round(rows * share)), max(1, round(cols * share))
    valid = np.pad(view.results.valid(Window.of_shape((rows, cols)), shape), 1)
    down, along = ground_resolution(view.geobox)
    depths = distance_transform_edt(valid, (rows / shape[0] * down, cols / shape[1] * along))
    cropped: NDArray[np.float32] = depths[1:-1, 1:-1].astype(np.float32)
    return cropped


@lru_cache(maxsize=64)
def _transformer(source: CRS, target: CRS) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def transformed(geometry: NDArray[np.object_], source: CRS, target: CRS) -> NDArray[np.object_]:
    """Geometries brought from one CRS to another, vertex by vertex; themselves, to the bit, where it is the same."""
    if source == target:
        return geometry
    transformer = _transformer(source, target)
    moved: NDArray[np.object_] = shapely.transform(
        geometry, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))
    )
    return moved


def on_grid(geometry: NDArray[np.object_], source: View, target: View) -> NDArray[np.object_]:
    """Geometries brought from the pixel coordinates of one scene to those of another."""
    if source is target:
        return geometry
    return to_pixels(transformed(to_world(geometry, source.geobox), source.crs, target.crs), target.geobox)


@dataclass(frozen=True)
class Contact:
    """Where a border runs through a building."""

    line: Any
    """The border, in pixel coordinates of the first scene."""
    gap: float
    """Pixels between the two pieces at most, measured by way of the border."""


def goes_on(first: Any, second: Any, views: tuple[View, View], *, alike: bool) -> tuple[bool, bool]:
    """Whether the second polygon goes on where its scene's edge cuts the first, and the other way round."""
    behind = _both_cut(first, second, views, alike=alike)
    return len(behind[0]) > 0, len(behind[1]) > 0


def _both_cut(
    first: Any, second: Any, views: tuple[View, View], *, alike: bool = False
) -> tuple[NDArray[np.object_], NDArray[np.object_]]:
    """Where the edge of its scene cuts each of two polygons, the other going on behind; in pixels of its own scene.

    One of them may end a little before the edge.
    """
    one, other = views
    there, here = on_grid(np.array([second]), other, one)[0], on_grid(np.array([first]), one, other)[0]
    cut, back = _cut(first, there, one, other, alike=alike), _cut(second, here, other, one, alike=alike)
    if len(back) and not len(cut):
        cut = _cut(first, there, one, other, alike=alike, short_of=one.short_of)
    elif len(cut) and not len(back):
        back = _cut(second, here, other, one, alike=alike, short_of=other.short_of)
    return cut, back


def contact(first: Any, second: Any, views: tuple[View, View]) -> Contact | None:
    """Where two polygons are pieces of one, each cut by the edge of its own scene; None if they are not.

    Each polygon comes in the pixel coordinates of its own scene. Where one is cut, the other must go on behind: it must
    be the first that its scene saw there, within `JOIN_WITHIN` pixels; and the other way round. So sheets may leave a
    gap, meet or overlap.
    """
    one, other = views
    cut, back = _both_cut(first, second, views)
    if not len(cut) or not len(back):
        return None
    there = on_grid(np.array([second]), other, one)[0]
    lines = np.concatenate([cut, on_grid(back, other, one)])
    middle = shapely.line_interpolate_point(lines, 0.5, normalized=True)
    gap = float((shapely.distance(middle, first) + shapely.distance(middle, there)).max())
    return Contact(shapely.multilinestrings(lines), gap if gap > _NO_GAP else 0.0)


def _cut(
    polygon: Any, other: Any, view: View, beside: View, *, alike: bool = False, short_of: float = 0.0
) -> NDArray[np.object_]:
    """The sides of pixels where a polygon is cut and another one lies beyond; none if they are too few.

    It is also cut where it ends `short_of` pixels before the edge.

    Both polygons come in the pixel coordinates of `view`, the scene of the first. `alike`: they share so much ground
    that they may be views of one that the same edge cuts; the ground that `beside` saw must go on for some pixels then.
    """
    coarse = max(1.0, beside.side / view.side)
    within = JOIN_WITHIN * coarse
    a, b = shapely.bounds(polygon), shapely.bounds(other)
    low = np.floor(np.maximum(a[:2] - short_of, b[:2] - within)) - 1
    high = np.ceil(np.minimum(a[2:] + short_of, b[2:] + within)) + 1
    if not (low < high).all():
        return np.zeros(0, object)
    reaching = shapely.buffer(polygon, short_of, join_style="mitre") if short_of else polygon
    ends, outward = edge_of(reaching, view, Window(int(low[1]), int(high[1]), int(low[0]), int(high[0])))
    middle = ends.mean(axis=1)
    goes_on = _goes_on(middle, outward, np.arange(BEYOND, JOIN_WITHIN + BEYOND, STEP) * coarse, other, (view, beside))
    if alike:
        further = shapely.intersects(shapely.points(middle + outward * NEARLY_ONE * coarse), other)
        goes_on &= further | _is_valid(shapely.points(middle + outward * FAR_BEYOND * coarse), view, beside)
    cut = ends[goes_on]
    return np.asarray(shapely.linestrings(cut if len(cut) >= LEAST_CONTACT * coarse else cut[:0]))


def _goes_on(
    middle: NDArray[np.float64],
    outward: NDArray[np.int64],
    steps: NDArray[np.float64],
    other: Any,
    views: tuple[View, View],
) -> NDArray[np.bool_]:
    """(n,): whether on each way out, of so many pixels, the ground that another scene saw begins with its polygon."""
    view, beside = views
    # what simplifying may have taken from the polygon, or the rim
    slack = max(beside.simplify, beside.short_of) * beside.side / view.side + _NO_GAP
    ways = middle[:, None] + outward[:, None] * steps[:, None]
    inside = shapely.intersects(shapely.linestrings(np.stack([ways, ways + slack * outward[:, None]], axis=2)), other)
    seen = inside | _is_valid(shapely.points(ways), view, beside)
    first = seen.argmax(axis=1)
    goes_on: NDArray[np.bool_] = np.take_along_axis(inside, first[:, None], axis=1)[:, 0]
    return goes_on


def _is_valid(points: NDArray[np.object_], view: View, beside: View) -> NDArray[np.bool_]:
    """Whether points, in pixel coordinates of a scene, lie on valid pixels of another."""
    if not points.size:
        return np.zeros(points.shape, bool)
    pixel = np.floor(shapely.get_coordinates(on_grid(points.ravel(), view, beside))).astype(int)
    low, high = pixel.min(axis=0), pixel.max(axis=0) + 1
    valid = beside.valid_around(Window(int(low[1]), int(high[1]), int(low[0]), int(high[0])))
    col, row = (pixel - low).T
    found: NDArray[np.bool_] = valid[row, col].reshape(points.shape)
    return found


def edge_of(polygon: Any, view: View, window: Window) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sides of pixels in a polygon behind which its scene has no data: their ends, and the way out.

    (n, 2, x and y) and (n, x and y), in pixel coordinates. The outermost pixels of the window are only neighbours.
    """
    valid = view.valid_around(window)
    ends, outward = (np.concatenate(part) for part in zip(*(_sides(valid, step) for step in _STEPS), strict=True))
    ends = ends + np.array([window.col_start, window.row_start])
    centres = ends.mean(axis=1) - outward / 2
    mine = shapely.contains_xy(polygon, centres[:, 0], centres[:, 1])
    return ends[mine], outward[mine]


def _sides(valid: NDArray[np.bool_], step: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sides of valid pixels towards others, a step of x and y away, and the step for each."""
    along, down = step
    rows, cols = valid.shape
    beside = valid[1 + down : rows - 1 + down, 1 + along : cols - 1 + along]
    pixels = np.argwhere(valid[1:-1, 1:-1] & ~beside)[:, ::-1] + 1
    first = pixels + np.array([max(along, 0), max(down, 0)])
    last = first + np.array([abs(down), abs(along)])
    return np.stack([first, last], axis=1), np.tile(step, (len(pixels), 1))


def bridge(first: Any, second: Any, views: tuple[View, View]) -> Any:
    """What lies between two pieces along their border: polygons in pixel coordinates of the first scene."""
    found = contact(first, second, views)
    if found is None or not found.gap:
        return shapely.Polygon()
    reach = found.gap + LEAST_CONTACT + max(view.simplify for view in views)
    there = on_grid(np.array([second]), views[1], views[0])[0]
    around = [shapely.buffer(piece, reach, join_style="mitre") for piece in (first, there)]
    near = shapely.buffer(found.line, reach)
    between = shapely.convex_hull(
        shapely.intersection(shapely.union(first, there), shapely.buffer(found.line, 2 * reach))
    )
    gap = polygons_of(shapely.intersection_all([near, between, *around]))  # without bulges where the border ends
    rings = shapely.get_rings(shapely.get_parts(shapely.union_all([first, there, gap])))
    holes = shapely.polygons(rings)
    small = (shapely.area(holes) < (2 * reach) ** 2) & shapely.dwithin(holes, found.line, reach)
    return polygons_of(shapely.union_all([gap, *holes[small]]))


def polygons_of(geometry: Any) -> Any:
    """The polygons of what an overlay has left, without lines, points and what is rounding."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    parts = parts[shapely.area(parts) > LEAST_PIXELS]
    return parts[0] if len(parts) == 1 else shapely.multipolygons(parts)
