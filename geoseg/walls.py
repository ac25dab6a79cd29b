"""Outlines of polygons as walls: cut where three or more meet, each wall once, however many outlines walk along it.

All is kept in flat arrays of vertices, of which a portion is looked at at a time: what is cut, drawn or built in one
go has a bound, be it one polygon that winds through a whole scene. What is kept is 4 bytes for each vertex of the
outlines, and some hundred for each wall; while it is looked where walls meet, some 30 bytes for each vertex.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.compiled import Compiled
from geoseg.runs import ragged

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Lines", "Walls", "portions"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]

AT_ONCE: Final = 1 << 16
"""Vertices that are looked at together: some 200 bytes of memory for each."""


def portions(count: NDArray[np.integer[Any]], at_once: int) -> Iterator[slice]:
    """Slices of rows that hold so many things (n,) each, with about `at_once` of them, and a row at least."""
    ends, first = np.cumsum(count), 0
    while first < len(count):
        so_far = ends[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, so_far + at_once, side="right")))
        yield slice(first, stop)
        first = stop


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines (n,) as buffers."""

    xy: NDArray[Any]
    """(vertices, 2)."""
    start: _Ints
    """(n + 1,): where each begins, and where the last one ends."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.start) - 1

    @property
    def count(self) -> _Ints:
        """(n,): the vertices of each."""
        return np.diff(self.start)

    @classmethod
    def of(cls, shapes: NDArray[np.object_]) -> Self:
        """Those of linestrings."""
        return cls(shapely.get_coordinates(shapes), np.append(0, np.cumsum(shapely.get_num_coordinates(shapes))))

    @classmethod
    def concatenate(cls, lines: list[Self]) -> Self:
        """One after the other, one at least."""
        count = np.concatenate([each.count for each in lines])
        return cls(np.concatenate([each.xy for each in lines]), np.append(0, np.cumsum(count)))

    def select(self, which: _Ints | slice) -> Lines:
        """Some of them."""
        count = self.count[which]
        row, k = ragged(count)
        return Lines(self.xy[self.start[:-1][which][row] + k], np.append(0, np.cumsum(count)))

    def shapes(self) -> NDArray[np.object_]:
        """Linestrings."""
        lines: NDArray[np.object_] = shapely.linestrings(
            self.xy.astype(np.float64), indices=np.repeat(np.arange(len(self)), self.count)
        )
        return lines

    def with_others(self, which: _Ints, others: Lines) -> Lines:
        """The same but for some that have other vertices."""
        count = self.count
        count[which] = others.count
        start = np.append(0, np.cumsum(count))
        xy = np.empty((start[-1], 2), self.xy.dtype)
        kept = np.ones(len(self), np.bool_)
        kept[which] = False
        xy[np.repeat(kept, count)] = self.xy[np.repeat(kept, self.count)]
        row, k = ragged(others.count)
        xy[start[which][row] + k] = others.xy
        return Lines(xy, start)

    def boxes(self) -> NDArray[np.float64]:
        """(n, 4): the least x and y, and the greatest."""
        least, most = (end.reduceat(self.xy, self.start[:-1], axis=0) for end in (np.minimum, np.maximum))
        return np.concatenate([least, most], axis=1, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Walls:
    """The walls of some blocks of polygons, none of which has anything to do with another."""

    exact: Lines
    """Of each wall from the end whose side of a pixel comes first; closed if it meets no other. Without vertices along
    straight lines."""
    node: _Ints
    """(walls, 2): the number of the place where each begins and ends; a wall that meets no other has its own."""
    nodes: int
    """How many places there are where walls meet. Numbers from there on are of walls that meet no other."""
    block: _Ints
    """(walls,): the number of each one's block."""
    wall: _Ints
    """The wall of each of k pieces of rings, in the order of the rings."""
    forwards: _Bools
    """(k,): whether the ring walks the wall from its first vertex to its last."""
    ring: _Ints
    """(k,): the ring of each piece."""
    polygon: _Ints
    """(rings,): the polygon of each ring."""
    turn: NDArray[np.int8]
    """(rings,): 1 if x goes over into y on the way round, else -1."""

    @classmethod
    def of(cls, polygons: _Polygons, block: _Ints) -> Walls:
        """Cut the outlines of polygons (n,), one at least, of whole-numbered vertices and level and upright sides.

        Rings that are the same begin at the same vertex, as those of `geoseg.rings` do: with their topmost, then
        leftmost one.
        """
        _, group = np.unique(block, return_inverse=True)
        rings, polygon = _rings_of(polygons)
        lattice = _Lattice.of(rings.xy, group[polygon])
        xy, start, node, nodes, turn = _with_nodes(
            rings.xy, rings.start, lattice.group, lattice.left, lattice.top, lattice.rows, lattice.cols
        )
        return _cut(Lines(xy, start), node, nodes, lattice, polygon, turn)

    @cached_property
    def owner(self) -> _Ints:
        """(walls,): the polygon of a wall that has background on its other side; -1 of one that parts two polygons."""
        owner = np.empty(len(self.exact), np.int64)
        owner[self.wall] = self.polygon[self.ring]
        owner[np.bincount(self.wall) > 1] = -1
        return owner

    def of_polygons(self, chosen: _Bools) -> _Ints:
        """The walls of the polygons that a mask (n,) picks."""
        return np.unique(self.wall[chosen[self.polygon[self.ring]]])

    def polygons_of(self, chosen: _Bools) -> _Bools:
        """(n,): the polygons of the walls that a mask (walls,) picks."""
        many = int(self.polygon[-1]) + 1
        found: _Bools = np.bincount(self.polygon[self.ring[chosen[self.wall]]], minlength=many) > 0
        return found

    def vertices(self, count: _Ints) -> _Ints:
        """(n,): the vertices of each polygon if walls (walls,) have so many."""
        return np.bincount(self.polygon[self.ring], count[self.wall] - 1).astype(np.int64)

    def touching(self) -> tuple[_Ints, _Ints]:
        """The pieces that begin where an earlier ring of their polygon is, too; and the one before each in its ring."""
        start = self.node[self.wall, np.where(self.forwards, 0, 1)]
        owner = self.polygon[self.ring]
        order = np.lexsort((start, owner))  # stable, so earlier rings come first
        again = np.zeros(len(order), np.bool_)
        again[order[1:]] = (np.diff(owner[order]) == 0) & (np.diff(start[order]) == 0)
        piece = np.flatnonzero(again)
        first, stop = np.searchsorted(self.ring, np.stack([self.ring[piece], self.ring[piece] + 1]))
        return piece, np.where(piece > first, piece - 1, stop - 1)

    def too_short(self, count: _Ints) -> _Ints:
        """The walls of rings that have fewer than three vertices if walls (walls,) have so many."""
        vertices = np.bincount(self.ring, count[self.wall] - 1)
        return np.unique(self.wall[vertices[self.ring] < 3])  # noqa: PLR2004  # corners of a triangle

    def outlines(self, lines: Lines, some: _Ints) -> tuple[_Polygons, _Bools]:
        """Polygons, of whom a few, with these lines for their walls; and of each, whether a ring has turned round."""
        ring, which = _within(np.searchsorted(self.polygon, np.stack([some, some + 1])))
        piece, walked = _within(np.searchsorted(self.ring, np.stack([ring, ring + 1])))
        wall, forwards = self.wall[piece], self.forwards[piece]
        count = lines.count[wall]
        row, k = ragged(count - 1)  # the last vertex is the first of the next piece
        vertex = lines.xy[lines.start[wall][row] + np.where(forwards[row], k, count[row] - 1 - k)]
        walked = walked[row]
        stop = np.cumsum(np.bincount(walked) + 1)
        start = np.append(0, stop[:-1])
        closed = np.empty((stop[-1], 2))
        closed[np.arange(len(walked)) + walked] = vertex
        closed[stop - 1] = closed[start]
        offsets = np.searchsorted(which, np.arange(len(some) + 1))
        outlines: _Polygons = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, closed, (np.append(0, stop), offsets)
        )
        turned = np.sign(_doubled_areas(closed, start)) != self.turn[ring]
        return outlines, np.bincount(which, turned, len(some)) > 0


def _within(ranges: _Ints) -> tuple[_Ints, _Ints]:
    """All whole numbers in ranges (2, n) from one to before another, and the place of the range of each."""
    row, k = ragged(ranges[1] - ranges[0])
    return ranges[0][row] + k, row


def _doubled_areas(xy: NDArray[Any], start: _Ints) -> NDArray[np.float64]:
    """(rings,): twice the area that each encloses, with its sign; rings are closed."""
    own = xy[start[np.repeat(np.arange(len(start)), np.diff(start, append=len(xy)))]]
    x, y = (xy - own).astype(np.float64).T  # from the first vertex, for the sake of the last digits
    cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0)  # from one ring's end, which is 0, to the next one's begin
    doubled: NDArray[np.float64] = np.add.reduceat(cross, start)
    return doubled


# --- rings


def _rings_of(polygons: _Polygons) -> tuple[Lines, _Ints]:
    """All rings, closed; and the polygon of each."""
    lines, owner = [], []
    for some in portions(shapely.get_num_coordinates(polygons), AT_ONCE):
        rings, polygon = shapely.get_rings(polygons[some], return_index=True)
        found = Lines.of(rings)
        lines.append(Lines(found.xy.astype(np.int32), found.start))
        owner.append(polygon + some.start)
    return Lines.concatenate(lines), np.concatenate(owner)


@dataclass(frozen=True, eq=False)
class _Lattice:
    """Numbers for the corners of pixels, row by row and block by block, and for the sides between them."""

    left: int
    top: int
    rows: int
    cols: int
    group: _Ints
    """(rings,): the number of each one's block."""

    @classmethod
    def of(cls, xy: NDArray[np.int32], group: _Ints) -> _Lattice:
        left, top = (int(xy[:, axis].min()) for axis in (0, 1))  # ten times as fast as both at once
        right, bottom = (int(xy[:, axis].max()) for axis in (0, 1))
        return cls(left, top, bottom - top + 2, right - left + 2, group)

    def place(self, xy: NDArray[np.integer[Any]], ring: _Ints) -> _Ints:
        """(n,): the numbers of corners (n, 2) on rings (n,)."""
        found: _Ints = (self.group[ring] * self.rows + xy[:, 1] - self.top) * self.cols + xy[:, 0] - self.left
        return found

    def sides(self, xy: NDArray[np.integer[Any]], to: NDArray[np.integer[Any]], ring: _Ints) -> tuple[_Ints, _Bools]:
        """(n,): the side of a pixel by which each way from a corner to another begins, and whether it leads onwards."""
        step = np.sign(to.astype(np.int64) - xy)
        place = self.place(xy, ring)
        stride = step @ np.array([1, self.cols])
        return 2 * np.minimum(place, place + stride) + (step[:, 1] != 0), stride > 0


@Compiled
def _with_nodes(  # noqa: C901, PLR0912, PLR0915  # compiled functions call no others
    xy: NDArray[np.int32], start: _Ints, group: _Ints, left: int, top: int, rows: int, cols: int
) -> tuple[NDArray[np.int32], _Ints, NDArray[np.int32], int, NDArray[np.int8]]:
    """Rings, open, with a vertex at each node on their way; where they begin; nodes' numbers, or -1; how many nodes.

    And which way round each ring is walked, see `Walls.turn`.

    A node is a corner where more than two sides of pixels of a block meet, and some ring has a vertex there: where
    three or four sides meet, no two rings can both go straight on. So nodes are looked for among vertices, which are
    sorted by block, row and column, by counting. The corners that a ring passes in a row come one after the other then,
    and each knows the next one below. Memory: some 30 bytes for each vertex.
    """
    rings = len(start) - 1
    of_ring = np.empty(len(xy), np.int32)
    order, rank = np.empty(len(xy) - rings, np.int32), np.empty(len(xy), np.int32)
    count = 0
    turn = np.zeros(rings, np.int8)
    for ring in range(rings):
        of_ring[start[ring] : start[ring + 1]] = ring
        doubled, x, y = np.int64(0), np.int64(xy[start[ring], 0]), np.int64(xy[start[ring], 1])
        for vertex in range(start[ring], start[ring + 1] - 1):
            doubled += (xy[vertex, 0] - x) * (xy[vertex + 1, 1] - y) - (xy[vertex + 1, 0] - x) * (xy[vertex, 1] - y)
            rank[count] = vertex
            count += 1
        turn[ring] = np.sign(doubled)
    for key in range(3):
        first = np.zeros(max(cols, rows, group.max() + 1) + 1, np.int64)
        for place in range(count):
            vertex = rank[place]
            value = group[of_ring[vertex]]
            if key < 2:  # noqa: PLR2004  # column, row, group
                value = xy[vertex, key] - (top if key else left)
            first[value + 1] += 1
        for value in range(len(first) - 1):
            first[value + 1] += first[value]
        for place in range(count):
            vertex = rank[place]
            value = group[of_ring[vertex]]
            if key < 2:  # noqa: PLR2004
                value = xy[vertex, key] - (top if key else left)
            order[first[value]] = vertex
            first[value] += 1
        for place in range(count):  # an array at once takes a second longer to compile
            rank[place] = order[place]
    below, corners, before = order, 0, np.int32(-1)  # no corner comes before its first vertex
    latest, of_latest = np.full(cols, -1, np.int64), np.full(cols, -1, np.int64)
    for place in range(count):
        vertex = order[place]
        own, col = group[of_ring[vertex]], xy[vertex, 0] - left
        fresh = before < 0 or own != group[of_ring[before]]
        if fresh or xy[vertex, 0] != xy[before, 0] or xy[vertex, 1] != xy[before, 1]:
            below[corners] = -1
            if of_latest[col] == own:
                below[latest[col]] = corners
            latest[col], of_latest[col] = corners, own
            corners += 1
        rank[vertex] = corners - 1
        before = vertex
    ways = np.zeros(corners, np.uint8)  # where sides lead from a corner: right 1, left 2, down 4, up 8
    for ring in range(rings):
        rank[start[ring + 1] - 1] = rank[start[ring]]
        for vertex in range(start[ring], start[ring + 1] - 1):
            low, high = min(rank[vertex], rank[vertex + 1]), max(rank[vertex], rank[vertex + 1])
            upright = xy[vertex, 1] != xy[vertex + 1, 1]
            ways[low] |= 4 if upright else 1
            ways[high] |= 8 if upright else 2
            corner = below[low] if upright else low + 1
            while 0 <= corner < high:
                ways[corner] |= 12 if upright else 3
                corner = below[corner] if upright else corner + 1
    number, nodes = of_ring, 0
    for corner in range(corners):
        number[corner] = -1
        if ways[corner] in (7, 11, 13, 14, 15):
            number[corner] = nodes
            nodes += 1
    opened, node = np.zeros(rings + 1, np.int64), np.empty(0, np.int32)
    for writes in (False, True):  # the first time they are counted
        if writes:
            node = np.empty(opened[rings], np.int32)
        count = 0
        for ring in range(rings):
            for vertex in range(start[ring], start[ring + 1] - 1):
                one, other = rank[vertex], rank[vertex + 1]
                low, high = min(one, other), max(one, other)
                upright = xy[vertex, 1] != xy[vertex + 1, 1]
                if writes:
                    node[count] = one
                count += 1
                begin = count
                corner = below[low] if upright else low + 1
                while 0 <= corner < high:
                    if number[corner] >= 0:
                        if writes:
                            node[count] = corner
                        count += 1
                    corner = below[corner] if upright else corner + 1
                if writes and one == high:  # from there, the corners come the other way round
                    for k in range((count - begin) // 2):
                        node[begin + k], node[count - 1 - k] = node[count - 1 - k], node[begin + k]
            opened[ring + 1] = count
    for vertex in range(len(xy)):
        below[rank[vertex]] = vertex
    vertices = np.empty((count, 2), np.int32)
    for place in range(count):
        corner = node[place]
        vertices[place, 0], vertices[place, 1] = xy[below[corner], 0], xy[below[corner], 1]
        node[place] = number[corner]
    return vertices, opened, node, nodes, turn


def _cut(
    rings: Lines, node: NDArray[np.int32], nodes: int, lattice: _Lattice, polygon: _Ints, turn: NDArray[np.int8]
) -> Walls:
    """Cut rings, open, at the nodes on them; a ring that has none is a wall."""
    is_begin = node >= 0
    has_node = np.logical_or.reduceat(is_begin, rings.start[:-1])
    is_begin[rings.start[:-1][~has_node]] = True
    begin = np.flatnonzero(is_begin)
    ring = np.searchsorted(rings.start, begin, side="right") - 1
    first = np.searchsorted(ring, np.arange(len(rings)))
    size = rings.count[ring]
    follower = np.arange(1, len(begin) + 1)
    is_last = np.append(np.diff(ring) != 0, np.ones(min(len(ring), 1), np.bool_))
    follower[is_last] = first[ring[is_last]]
    length = (begin[follower] - begin - 1) % size + 1  # edges

    def vertex(piece: _Ints, k: _Ints) -> _Ints:
        """Where the k-th vertex of a piece is, which may be the first ones of its ring again."""
        origin = rings.start[ring[piece]]
        return origin + (begin[piece] - origin + k) % size[piece]

    every = np.arange(len(begin))
    one_in = rings.xy[vertex(every, np.ones(1, np.int64))]
    end, one_back = rings.xy[vertex(every, length)], rings.xy[vertex(every, length - 1)]
    leaving, onwards = lattice.sides(rings.xy[begin], one_in, ring)
    entering, _ = lattice.sides(end, one_back, ring)
    forwards = np.where(leaving == entering, onwards, leaving < entering)
    _, told, wall = np.unique(np.minimum(leaving, entering), return_index=True, return_inverse=True)
    lines = []
    for some in portions(length[told] + 1, AT_ONCE):
        count = length[told[some]] + 1
        row, k = ragged(count)
        piece = told[some][row]
        k = np.where(forwards[piece], k, count[row] - 1 - k)
        lines.append(Lines(rings.xy[vertex(piece, k)], np.append(0, np.cumsum(count))))
    ends = np.stack([node[begin[told]], node[begin[follower[told]]]], axis=1).astype(np.int64)
    ends = np.where(forwards[told, np.newaxis], ends, ends[:, ::-1])
    ends = np.where(ends < 0, nodes + np.arange(len(told))[:, np.newaxis], ends)
    block = lattice.group[ring[told]]
    return Walls(Lines.concatenate(lines), ends, nodes, block, wall, forwards, ring, polygon, turn)
