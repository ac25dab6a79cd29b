"""Outlines with fewer vertices, of objects alone and of objects that share walls.

What touches is simplified together, so that it still touches, without a gap and without an overlap: outlines are cut
where three walls or more meet, each wall is simplified once (Douglas & Peucker 1973) and goes back into both outlines.
Which objects may touch is told by the number of their block, and a block is simplified for itself, so the result does
not depend on what else is simplified with it. Where a simplified wall crosses another, the walls of the objects
concerned are left as they were.

`shapely.coverage_simplify` does the same by the areas of triangles (Visvalingam & Whyatt 1993), but so a wall that is
almost level keeps every one of its long and low stairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

__all__ = ["simplified", "simplified_alone", "simplified_together"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]

SIDES_AT_ONCE: Final = 1 << 17
"""Of objects that touch: some 200 bytes of memory for each."""

_LEAST_VERTICES: Final = 3  # of a ring, not counting the one that closes it
_ENDS: Final = 2  # of sides that meet where a wall simply goes on


def simplified(polygons: _Polygons, block: _Ints, tolerance: float) -> _Polygons:
    """Polygons (n,) whose vertices are whole numbers, with fewer of them, nowhere further than `tolerance` from before.

    Those of one `block` (n,) share their walls afterwards if they did before; at the corners of the pixels they may
    not overlap.
    """
    if not tolerance or not len(polygons):
        return polygons
    _, place, count = np.unique(block, return_inverse=True, return_counts=True)
    alone = count[place] == 1
    out = polygons.copy()
    out[alone] = simplified_alone(polygons[alone], tolerance)
    for some in _few_at_once(np.flatnonzero(~alone), polygons, block):
        out[some] = simplified_together(polygons[some], block[some], tolerance)
    return out


def _few_at_once(chosen: _Ints, polygons: _Polygons, block: _Ints) -> list[_Ints]:
    """The chosen polygons, whole blocks together, in parts of about `SIDES_AT_ONCE` sides of pixels."""
    if not len(chosen):
        return []
    chosen = chosen[np.argsort(block[chosen], kind="stable")]
    sides = np.cumsum(shapely.length(polygons[chosen]))
    ends = np.append(np.flatnonzero(np.diff(block[chosen])), len(chosen) - 1)
    return np.split(chosen, ends[:-1][np.diff(sides[ends] // SIDES_AT_ONCE) > 0] + 1)


def simplified_alone(polygons: _Polygons, tolerance: float) -> _Polygons:
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
    fast[broken] = shapely.simplify(polygons[broken], tolerance, preserve_topology=True)
    return fast


def simplified_together(polygons: _Polygons, block: _Ints, tolerance: float) -> _Polygons:
    """Polygons that follow the pixels' sides, simplified so that those of one block still share their walls.

    Every block is a valid coverage afterwards: no overlaps, and where two touch, they have the same vertices.
    """
    if not len(polygons):
        return polygons
    walls = _Walls.of(polygons, block)
    lines = shapely.simplify(walls.lines, tolerance, preserve_topology=False)
    unsure = np.ones(len(polygons), np.bool_)
    while True:
        short = walls.too_short(lines)
        lines[short] = walls.lines[short]
        outlines = walls.outlines(lines)
        wrong = _turned(outlines, polygons) | _overlapping(outlines, block, unsure)
        if not wrong.any():
            return outlines
        # With every round more walls are as they were, so this comes to an end.
        kept = walls.of_polygons(wrong)
        if shapely.equals_exact(lines[kept], walls.lines[kept]).all():
            return outlines  # as they were
        lines[kept] = walls.lines[kept]
        unsure = np.isin(block, block[wrong])


def _turned(outlines: _Polygons, polygons: _Polygons) -> _Bools:
    """(n,): whether a ring is walked the other way round than before."""
    before, owner = shapely.get_rings(polygons, return_index=True)
    turned: _Bools = shapely.is_ccw(before) != shapely.is_ccw(shapely.get_rings(outlines))
    found: _Bools = np.bincount(owner[turned], minlength=len(polygons)) > 0
    return found


def _overlapping(outlines: _Polygons, block: _Ints, unsure: _Bools) -> _Bools:
    """(n,): whether a polygon, if it is `unsure`, is invalid or not in order with another of its block.

    That is, overlaps it, or touches it where they have not the same vertices, as where a gap of a pixel has closed.
    """
    wrong = np.zeros(len(outlines), np.bool_)
    asked = np.flatnonzero(unsure)
    wrong[asked] = ~shapely.is_valid(outlines[asked])
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
class _Walls:
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
    def of(cls, polygons: _Polygons, block: _Ints) -> _Walls:
        """Cut the outlines of polygons (n,) of whole-numbered vertices and level and upright sides."""
        _, group = np.unique(block, return_inverse=True)
        rings, polygon = shapely.get_rings(polygons, return_index=True)
        steps = _Steps.of(rings, group[polygon])
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
        piece, k = _ragged(count_here - 1)  # the last vertex is the first of the next piece
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
class _Steps:
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
    def of(cls, rings: _Polygons, group: _Ints) -> _Steps:
        """Walk along the rings, given the number of the block that each belongs to."""
        corners, owner = shapely.get_coordinates(rings, return_index=True)
        corners = corners.astype(np.int64)
        along = np.flatnonzero(owner[1:] == owner[:-1])
        move = corners[along + 1] - corners[along]
        edge, k = _ragged(np.abs(move).sum(axis=1))
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
        line, k = _ragged(length + 1)
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


def _ragged(length: _Ints) -> tuple[_Ints, _Ints]:
    """For rows of these lengths one after the other: the row of each element, and its place in the row."""
    row = np.repeat(np.arange(len(length)), length)
    return row, np.arange(len(row)) - (np.cumsum(length) - length)[row]
