"""Outlines with fewer vertices, of objects alone and of objects that share walls.

What touches is simplified together, so that it still touches, without a gap and without an overlap: outlines are cut
where three walls or more meet, each wall is simplified once (Douglas & Peucker 1973) and goes back into both outlines.
Which objects may touch is told by the number of their block, and a block is simplified for itself, so the result does
not depend on what else is simplified with it. Corners may be rounded afterwards, wall by wall, too. Where a wall would
then cross another, the walls of the objects concerned are not rounded, and where that does not help, left as they were.

`shapely.coverage_simplify` does the same by the areas of triangles (Visvalingam & Whyatt 1993), but so a wall that is
almost level keeps every one of its long and low stairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.runs import connect

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Steps",
    "Walls",
    "by_portions",
    "overlapping",
    "ragged",
    "settled",
    "simplified",
    "simplified_alone",
    "simplified_together",
    "touching",
    "turned",
]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]

SIDES_AT_ONCE: Final = 1 << 17
"""Of objects that touch: some 200 bytes of memory for each."""

_LEAST_VERTICES: Final = 3  # of a ring, not counting the one that closes it
_ENDS: Final = 2  # of sides that meet where a wall simply goes on


def simplified(
    polygons: _Polygons,
    block: _Ints,
    tolerance: float,
    rounding: float = 0.0,
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
) -> _Polygons:
    """Polygons (n,) whose vertices are whole numbers, with fewer of them, nowhere further than `tolerance` from before.

    Those of one `block` (n,) share their walls afterwards if they did before; at the corners of the pixels they may
    not overlap. Then corners are cut by curves that begin no further than `rounding` from them. `is_valid` tells which
    outlines will do, as the ones that were given do.
    """
    if not (tolerance or rounding) or not len(polygons):
        return polygons
    _, place, count = np.unique(block, return_inverse=True, return_counts=True)
    alone = count[place] == 1
    if rounding:  # a ring is a wall, and rounded as such
        alone[:] = False
    out = polygons.copy()
    for some in by_portions(np.flatnonzero(~alone), polygons, block):
        out[some] = simplified_together(polygons[some], block[some], tolerance, rounding, is_valid)
    out[alone] = simplified_alone(polygons[alone], tolerance, is_valid)
    return out


def touching(polygons: _Polygons) -> _Ints:
    """(n,): numbers of the groups that polygons of whole-numbered vertices make by sharing sides of pixels.

    A corner is no side. Some 60 bytes of memory for each side of a pixel.
    """
    if not len(polygons):
        return np.zeros(0, np.int64)
    rings, polygon = shapely.get_rings(polygons, return_index=True)
    side, ring = _sides(rings)
    order = np.argsort(side, kind="stable")
    owner = polygon[ring[order]]
    shared = np.flatnonzero(np.diff(side[order]) == 0)
    return connect(len(polygons), owner[shared], owner[shared + 1]).astype(np.int64)


def _sides(rings: _Polygons) -> tuple[_Ints, _Ints]:
    """All sides of pixels that rings follow, as numbers, and the ring of each."""
    corners, owner = shapely.get_coordinates(rings, return_index=True)
    corners = corners.astype(np.int64)
    corners -= corners.min(axis=0)
    along = np.flatnonzero(owner[1:] == owner[:-1])
    low = np.minimum(corners[along], corners[along + 1])
    length = np.abs(corners[along + 1] - corners[along])
    edge, k = ragged(length.sum(axis=1))
    upright = length[:, 1] > 0
    first = low[:, 1] * (corners[:, 0].max() + 1) + low[:, 0]
    step = np.where(upright, corners[:, 0].max() + 1, 1)
    return 2 * (first[edge] + k * step[edge]) + upright[edge], owner[along][edge]


def by_portions(chosen: _Ints, polygons: _Polygons, block: _Ints) -> list[_Ints]:
    """The chosen polygons, whole blocks together, in parts of about `SIDES_AT_ONCE` sides of pixels."""
    if not len(chosen):
        return []
    chosen = chosen[np.argsort(block[chosen], kind="stable")]
    sides = np.cumsum(shapely.length(polygons[chosen]))
    ends = np.append(np.flatnonzero(np.diff(block[chosen])), len(chosen) - 1)
    return np.split(chosen, ends[:-1][np.diff(sides[ends] // SIDES_AT_ONCE) > 0] + 1)


def simplified_alone(
    polygons: _Polygons, tolerance: float, is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid
) -> _Polygons:
    """Polygons of whole-numbered vertices with those left out that lie within `tolerance` of the outline; valid.

    Douglas-Peucker ring by ring, which is ten times faster than guarding topology on the way. Where rings would have
    crossed, GEOS mends them, which shows: the outline falls apart, vanishes, or gains a vertex at a crossing. Those are
    simplified once more with their topology guarded.
    """
    if not len(polygons):
        return polygons
    fast: _Polygons = shapely.simplify(polygons, tolerance, preserve_topology=False)
    xy, owner = shapely.get_coordinates(fast, return_index=True)
    mended = np.bincount(owner, (xy != np.rint(xy)).any(axis=1), minlength=len(fast)) > 0
    broken = mended | shapely.is_empty(fast) | (shapely.get_type_id(fast) != shapely.GeometryType.POLYGON)
    broken |= shapely.get_num_interior_rings(fast) > shapely.get_num_interior_rings(polygons)
    broken |= ~is_valid(fast)
    guarded = shapely.simplify(polygons[broken], tolerance, preserve_topology=True)
    fast[broken] = np.where(is_valid(guarded), guarded, polygons[broken])
    return fast


def simplified_together(
    polygons: _Polygons,
    block: _Ints,
    tolerance: float,
    rounding: float = 0.0,
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
) -> _Polygons:
    """Polygons that follow the pixels' sides, simplified so that those of one block still share their walls.

    Every block is a valid coverage afterwards: no overlaps, and where two touch, they have the same vertices.
    """
    if not len(polygons):
        return polygons
    walls = Walls.of(polygons, block)
    choices = [walls.lines, shapely.simplify(walls.lines, tolerance, preserve_topology=False)]
    if rounding:
        choices.append(_rounded(choices[-1], rounding))
    return walls.outlines(settled(walls, choices, polygons, block, is_valid))


def settled(
    walls: Walls,
    choices: list[_Polygons],
    polygons: _Polygons,
    block: _Ints,
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
) -> _Polygons:
    """(walls,): of each wall the last of some forms with which outlines are in order; the first is its own."""
    level = np.full(len(walls.lines), len(choices) - 1)
    unsure = np.ones(len(polygons), np.bool_)
    while True:
        lines = _chosen(choices, level)
        while len(short := walls.too_short(lines)):
            level[short] = np.maximum(level[short] - 1, 0)
            lines = _chosen(choices, level)
        outlines = walls.outlines(lines)
        wrong = turned(outlines, polygons) | overlapping(outlines, block, unsure, is_valid)
        if not wrong.any():
            return lines
        # With every round more walls are as they were, so this comes to an end.
        kept = walls.of_polygons(wrong)
        if shapely.equals_exact(lines[kept], walls.lines[kept]).all():
            return lines  # as they were
        level[kept] = np.maximum(level[kept] - 1, 0)
        unsure = np.isin(block, block[wrong])


def _chosen(choices: list[_Polygons], level: _Ints) -> _Polygons:
    """Of each wall, the form of its level."""
    lines: _Polygons = np.stack(choices)[level, np.arange(len(level))]
    return lines


_CURVE: Final = np.array([0.0, 1 / 3, 2 / 3, 1.0])
"""Where along the curve that cuts a corner its vertices lie."""

_HALF: Final = 0.5


def _rounded(lines: _Polygons, reach: float) -> _Polygons:
    """Lines whose corners are cut by quadratic Bezier curves that begin and end `reach` from them, or half-way.

    The ends stay where they are, but closed lines have none. No line is further from what it was than `reach`.
    """
    out = lines.copy()
    some = shapely.length(lines) > 0  # not what a ring is reduced to that lies within the tolerance
    if some.any():
        out[some] = _with_curves(lines[some], reach)
    return out


def _with_curves(lines: _Polygons, reach: float) -> _Polygons:
    """The same for lines of some length."""
    xy, line = _opened(lines)
    inner = np.flatnonzero((line[1:-1] == line[:-2]) & (line[1:-1] == line[2:])) + 1
    is_end = np.ones(len(line), np.bool_)
    is_end[inner] = False
    begin, end = (_towards(xy, inner, inner + step, is_end, reach) for step in (-1, 1))
    t = _CURVE[:, np.newaxis, np.newaxis]
    curve = (1 - t) ** 2 * begin + 2 * t * (1 - t) * xy[inner] + t**2 * end
    ends = np.flatnonzero(is_end)
    place = np.concatenate([ends * len(_CURVE), (inner * len(_CURVE) + np.arange(len(_CURVE))[:, np.newaxis]).ravel()])
    order = np.argsort(place)
    points = np.concatenate([xy[ends], curve.reshape(-1, 2)])[order]
    owner = np.concatenate([line[ends], np.tile(line[inner], len(_CURVE))])[order]
    new = np.append(True, (np.diff(points, axis=0) != 0).any(axis=1) | (np.diff(owner) != 0))
    rounded: _Polygons = shapely.linestrings(points[new], indices=owner[new])
    return rounded


def _towards(xy: NDArray[np.float64], corner: _Ints, other: _Ints, is_end: _Bools, reach: float) -> NDArray[np.float64]:
    """(corners, 2): the points on the way to other vertices where curves begin; two corners share what lies between."""
    way = xy[other] - xy[corner]
    length = np.hypot(way[:, 0], way[:, 1])
    part = np.minimum(reach / np.maximum(length, np.finfo(float).tiny), np.where(is_end[other], 1.0, _HALF))
    halved = (part == _HALF)[:, np.newaxis]
    # the middle is computed the same way from both sides
    middle = (xy[other] + xy[corner]) / 2
    found: NDArray[np.float64] = np.where(halved, middle, xy[corner] + part[:, np.newaxis] * way)
    return found


def _opened(lines: _Polygons) -> tuple[NDArray[np.float64], _Ints]:
    """Vertices of lines and the line of each; closed ones begin and end in the middle of their first side."""
    xy, line = shapely.get_coordinates(lines, return_index=True)
    count = shapely.get_num_coordinates(lines)
    stop = np.cumsum(count)
    closed = shapely.is_closed(lines)
    first, last = (stop - count)[closed], (stop - 1)[closed]
    middle = (xy[first] + xy[first + 1]) / 2
    # its first vertex gives way to the middle, its last one, the same, stays and is followed by the middle
    xy[first] = middle
    return np.insert(xy, last + 1, middle, axis=0), np.insert(line, last + 1, line[last])


def turned(outlines: _Polygons, polygons: _Polygons) -> _Bools:
    """(n,): whether a ring is walked the other way round than before."""
    before, owner = shapely.get_rings(polygons, return_index=True)
    turned: _Bools = shapely.is_ccw(before) != shapely.is_ccw(shapely.get_rings(outlines))
    found: _Bools = np.bincount(owner[turned], minlength=len(polygons)) > 0
    return found


def overlapping(outlines: _Polygons, block: _Ints, unsure: _Bools, is_valid: Callable[[_Polygons], _Bools]) -> _Bools:
    """(n,): whether a polygon, if it is `unsure`, is invalid or not in order with another of its block.

    That is, overlaps it, or touches it where they have not the same vertices, as where a gap of a pixel has closed.
    """
    wrong = np.zeros(len(outlines), np.bool_)
    asked = np.flatnonzero(unsure)
    wrong[asked] = ~is_valid(outlines[asked])
    asked = asked[~wrong[asked]]
    wrong[asked] = ~shapely.is_empty(shapely.coverage_invalid_edges(_blocks_apart(outlines[asked], block[asked])))
    return wrong


def _blocks_apart(outlines: _Polygons, block: _Ints) -> _Polygons:
    """The same with each block moved to where no other is."""
    if not len(outlines):
        return outlines
    _, number = np.unique(block, return_inverse=True)
    west, _, east, _ = shapely.total_bounds(outlines)
    xy, owner = shapely.get_coordinates(outlines, return_index=True)
    xy[:, 0] += (number * (np.ceil(east - west) + 1))[owner]
    apart: _Polygons = shapely.set_coordinates(outlines.copy(), xy)
    return apart


@dataclass(frozen=True, eq=False)
class Walls:
    """The outlines of some blocks, cut where more than two sides of pixels meet."""

    lines: _Polygons
    """(walls,): each wall once, from the end whose side of a pixel comes first; closed if it meets no other."""
    wall: _Ints
    """The wall of each of k pieces of rings, in the order of the rings."""
    forwards: _Bools
    """(k,): whether the ring walks the wall from its first vertex to its last."""
    ring: _Ints
    """(k,): the ring of each piece."""
    polygon: _Ints
    """(rings,): the polygon of each ring."""

    @classmethod
    def of(cls, polygons: _Polygons, block: _Ints) -> Walls:
        """Cut the outlines of polygons (n,) of whole-numbered vertices and level and upright sides."""
        _, group = np.unique(block, return_inverse=True)
        rings, polygon = shapely.get_rings(polygons, return_index=True)
        steps = Steps.of(rings, group[polygon])
        begin = np.flatnonzero(steps.is_cut)
        length = np.diff(begin, append=len(steps.ring))
        first, last = steps.side[begin], steps.side[begin + length - 1]
        forwards = np.where(first == last, steps.forwards[begin], first < last)
        _, one, wall = np.unique(np.minimum(first, last), return_index=True, return_inverse=True)
        lines = steps.lines(begin[one], length[one], forwards[one])
        return cls(lines, wall, forwards, steps.ring[begin], polygon)

    def of_polygons(self, chosen: _Bools) -> _Ints:
        """The walls of the polygons that a mask (n,) picks."""
        return np.unique(self.wall[chosen[self.polygon[self.ring]]])

    def too_short(self, lines: _Polygons) -> _Ints:
        """The walls of the rings that would have fewer than three vertices."""
        vertices = np.bincount(self.ring, shapely.get_num_coordinates(lines)[self.wall] - 1)
        return np.unique(self.wall[vertices[self.ring] < _LEAST_VERTICES])

    def outlines(self, lines: _Polygons) -> _Polygons:
        """(n,): the polygons with these lines for their walls."""
        xy, count = shapely.get_coordinates(lines), shapely.get_num_coordinates(lines)
        count_here, offset = count[self.wall], (np.cumsum(count) - count)[self.wall]
        piece, k = ragged(count_here - 1)  # the last vertex is the first of the next piece
        vertex = xy[offset[piece] + np.where(self.forwards[piece], k, count_here[piece] - 1 - k)]
        ring = self.ring[piece]
        size = np.bincount(ring) + 1
        stop = np.cumsum(size)
        closed = np.empty((stop[-1], 2))
        closed[np.arange(len(ring)) + ring] = vertex
        closed[stop - 1] = closed[stop - size]
        polygon_offsets = np.searchsorted(self.polygon, np.arange(self.polygon[-1] + 2))
        outlines: _Polygons = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, closed, (np.append(0, stop), polygon_offsets)
        )
        return outlines


@dataclass(frozen=True, eq=False)
class Steps:
    """Rings as steps of one pixel; a ring that is cut somewhere begins where it is."""

    xy: _Ints
    """(steps, 2): where each begins."""
    end: _Ints
    """(steps, 2): where it ends."""
    ring: _Ints
    side: _Ints
    """A number for the pixels' side that the step follows, the same in all rings of a block."""
    is_cut: _Bools
    """Whether a wall begins here."""

    @property
    def forwards(self) -> _Bools:
        """Whether each step leads to the right or downwards."""
        forwards: _Bools = (self.end - self.xy).sum(axis=1) > 0
        return forwards

    @classmethod
    def of(cls, rings: _Polygons, group: _Ints) -> Steps:
        """Walk along the rings, given the number of the block that each belongs to."""
        corners, owner = shapely.get_coordinates(rings, return_index=True)
        corners = corners.astype(np.int64)
        along = np.flatnonzero(owner[1:] == owner[:-1])
        move = corners[along + 1] - corners[along]
        edge, k = ragged(np.abs(move).sum(axis=1))
        ring, pace = owner[along][edge], np.sign(move)[edge]
        xy = corners[along][edge] + k[:, np.newaxis] * pace
        low = xy.min(axis=0) - 1
        cols, rows = xy.max(axis=0) - low + 1
        place = (group[ring] * rows + xy[:, 1] - low[1]) * cols + xy[:, 0] - low[0]
        stride = pace @ np.array([1, cols])
        side = 2 * np.minimum(place, place + stride) + (pace[:, 1] != 0)
        is_node = np.isin(place, _nodes(side, cols))
        size = np.bincount(ring)
        start = np.cumsum(size) - size
        first = np.full(len(size), len(ring))
        np.minimum.at(first, ring[is_node], np.flatnonzero(is_node))
        first = np.where(first == len(ring), start, first)
        is_node[first] = True
        order = start[ring] + (np.arange(len(ring)) - 2 * start[ring] + first[ring]) % size[ring]
        return cls(xy[order], (xy + pace)[order], ring, side[order], is_node[order])

    def lines(self, begin: _Ints, length: _Ints, forwards: _Bools) -> _Polygons:
        """The walls that begin with these steps, all of them forwards."""
        line, k = ragged(length + 1)
        k = np.where(forwards[line], k, length[line] - k)
        step = begin[line] + np.minimum(k, length[line] - 1)
        xy = np.where((k == length[line])[:, np.newaxis], self.end[step], self.xy[step])
        lines: _Polygons = shapely.linestrings(xy.astype(np.float64), indices=line)
        corners: _Polygons = shapely.simplify(lines, 0, preserve_topology=False)
        return corners


def _nodes(side: _Ints, cols: int) -> _Ints:
    """The vertices where more than two sides of pixels meet, each of which may be named more than once."""
    sides = np.sort(side)  # np.unique hashes first, which takes five times as long here
    sides = sides[np.diff(sides, prepend=-1) > 0]
    low = sides >> 1
    vertex, count = np.unique(np.concatenate([low, low + np.where(sides & 1, cols, 1)]), return_counts=True)
    return vertex[count > _ENDS]


def ragged(length: _Ints) -> tuple[_Ints, _Ints]:
    """For rows of these lengths one after the other: the row of each element, and its place in the row."""
    row = np.repeat(np.arange(len(length)), length)
    return row, np.arange(len(row)) - (np.cumsum(length) - length)[row]
