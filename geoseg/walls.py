"""Outlines of polygons as walls: cut where three or more meet, each wall once, however many outlines walk along it.

All is kept in flat arrays of vertices, of which a portion is looked at at a time: what is cut, drawn or built in one
go has a bound, be it one polygon that winds through a whole scene. What is kept is 4 bytes for each vertex of the
outlines, and some hundred for each wall.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.runs import ragged

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Lines", "Walls", "portions"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]

AT_ONCE: Final = 1 << 16
"""Vertices, or sides of pixels, that are looked at together: some 200 bytes of memory for each."""

_ENDS: Final = 2  # of sides that meet where a wall simply goes on


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
        rings, polygon, turn = _rings_of(polygons)
        lattice = _Lattice.of(rings.xy, group[polygon])
        nodes = _nodes(rings, lattice)
        rings, node = _with_nodes(rings, lattice, nodes)
        return _cut(rings, node, len(nodes), lattice, polygon, turn)

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


def _rings_of(polygons: _Polygons) -> tuple[Lines, _Ints, NDArray[np.int8]]:
    """All rings, closed; and of each its polygon, and which way round it is walked."""
    lines, owner, turn = [], [], []
    for some in portions(shapely.get_num_coordinates(polygons), AT_ONCE):
        rings, polygon = shapely.get_rings(polygons[some], return_index=True)
        found = Lines.of(rings)
        turn.append(np.sign(_doubled_areas(found.xy, found.start[:-1])).astype(np.int8))
        lines.append(Lines(found.xy.astype(np.int32), found.start))
        owner.append(polygon + some.start)
    return Lines.concatenate(lines), np.concatenate(owner), np.concatenate(turn)


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
        left, top = (int(least) for least in xy.min(axis=0))
        right, bottom = (int(most) for most in xy.max(axis=0))
        return cls(left, top, bottom - top + 2, right - left + 2, group)

    def place(self, xy: NDArray[np.integer[Any]], ring: _Ints) -> _Ints:
        """(n,): the numbers of corners (n, 2) on rings (n,)."""
        found: _Ints = (self.group[ring] * self.rows + xy[:, 1] - self.top) * self.cols + xy[:, 0] - self.left
        return found

    def upright(self, place: _Ints) -> _Ints:
        """(n,): other numbers of the same corners, column by column in each block."""
        row, col = np.divmod(place, self.cols)
        group, row = np.divmod(row, self.rows)
        return (group * self.cols + col) * self.rows + row

    def corners(self, place: _Ints) -> NDArray[np.int32]:
        """(n, 2): where corners are."""
        row, col = np.divmod(place, self.cols)
        return np.column_stack([col + self.left, row % self.rows + self.top]).astype(np.int32)

    def sides(self, xy: NDArray[np.integer[Any]], to: NDArray[np.integer[Any]], ring: _Ints) -> tuple[_Ints, _Bools]:
        """(n,): the side of a pixel by which each way from a corner to another begins, and whether it leads onwards."""
        step = np.sign(to.astype(np.int64) - xy)
        place = self.place(xy, ring)
        stride = step @ np.array([1, self.cols])
        return 2 * np.minimum(place, place + stride) + (step[:, 1] != 0), stride > 0


def _edges(rings: Lines) -> Iterator[tuple[_Ints, _Ints]]:
    """In portions: the vertices that begin edges, and the ring of each."""
    for begin in range(0, len(rings.xy), AT_ONCE):
        yield _beginning(rings, np.arange(begin, min(begin + AT_ONCE, len(rings.xy))))


def _beginning(rings: Lines, vertex: _Ints) -> tuple[_Ints, _Ints]:
    """Those of vertices that begin edges, as the last one of a ring does not; and the ring of each."""
    ring = np.searchsorted(rings.start, vertex, side="right") - 1
    some = vertex + 1 < rings.start[ring + 1]
    return vertex[some], ring[some]


def _nodes(rings: Lines, lattice: _Lattice) -> _Ints:
    """The corners where more than two sides of pixels meet, ascending."""
    per_row = np.zeros(lattice.rows + 1, np.int64)
    for vertex, _ in _edges(rings):
        ends = np.stack([rings.xy[vertex], rings.xy[vertex + 1]]).astype(np.int64)
        low, high = ends.min(axis=0), ends.max(axis=0)
        row = low[:, 1] - lattice.top
        per_row[:-1] += np.bincount(row, high[:, 0] - low[:, 0], lattice.rows).astype(np.int64)
        upright = np.flatnonzero(high[:, 1] > low[:, 1])  # one in each row that it goes through
        change = np.bincount(row[upright], minlength=lattice.rows + 1)
        change -= np.bincount(high[upright, 1] - lattice.top, minlength=lattice.rows + 1)
        per_row += np.cumsum(change)
    at = np.arange(0, len(rings.xy), AT_ONCE)
    spans = np.array([_span(rings.xy[begin : begin + AT_ONCE + 1, 1]) for begin in at])
    found = [np.empty(0, np.int64)]
    for rows in portions(per_row[:-1], AT_ONCE):
        first, stop = lattice.top + rows.start, lattice.top + rows.stop
        near = at[(spans[:, 0] < stop) & (spans[:, 1] >= first)]
        found.append(_nodes_in(rings, lattice, first, stop, near))
    return np.sort(np.concatenate(found))


def _span(values: NDArray[np.int32]) -> tuple[int, int]:
    return int(values.min()), int(values.max())


def _nodes_in(rings: Lines, lattice: _Lattice, first: int, stop: int, portions_near: _Ints) -> _Ints:
    """Those in some rows of corners, through which edges of some portions of vertices lead."""
    many = []
    for begin in portions_near:
        y = rings.xy[begin : begin + AT_ONCE + 1, 1]
        near = np.flatnonzero((np.minimum(y[:-1], y[1:]) < stop) & (np.maximum(y[:-1], y[1:]) >= first))
        vertex, ring = _beginning(rings, begin + near)
        ends = np.stack([rings.xy[vertex], rings.xy[vertex + 1]]).astype(np.int64)
        low, high = ends.min(axis=0), ends.max(axis=0)
        upright = high[:, 1] > low[:, 1]
        # also the sides that lead into the rows and out of them
        low[upright, 1] = np.maximum(low[upright, 1], first - 1)
        high[upright, 1] = np.minimum(high[upright, 1], stop)
        edge, k = ragged((high - low).sum(axis=1))
        step = np.where(upright, lattice.cols, 1)
        place = lattice.place(low, ring)[edge] + k * step[edge]
        many.append(2 * place + upright[edge])
    sides = np.sort(np.concatenate([np.empty(0, np.int64), *many]))
    sides = sides[np.diff(sides, prepend=-2) > 0]
    low = sides >> 1
    corner, count = np.unique(np.concatenate([low, low + np.where(sides & 1, lattice.cols, 1)]), return_counts=True)
    row = corner // lattice.cols % lattice.rows + lattice.top
    return corner[(count > _ENDS) & (row >= first) & (row < stop)]


def _with_nodes(rings: Lines, lattice: _Lattice, nodes: _Ints) -> tuple[Lines, NDArray[np.int32]]:
    """Rings, open, with a vertex at each node on their way; and of each vertex the number of its node, or -1."""
    upright_key = lattice.upright(nodes)
    by_column = np.argsort(upright_key)
    upright_key = upright_key[by_column]
    corners = lattice.corners(nodes)
    xy, node, count = [], [], np.zeros(len(rings), np.int64)
    for vertex, ring in _edges(rings):
        here, there = rings.xy[vertex], rings.xy[vertex + 1]
        place, to = lattice.place(here, ring), lattice.place(there, ring)
        upright = here[:, 0] == there[:, 0]
        low, high = np.minimum(place, to), np.maximum(place, to)
        first = np.searchsorted(nodes, low, side="right")
        stop = np.searchsorted(nodes, high)
        up_low, up_high = lattice.upright(low[upright]), lattice.upright(high[upright])
        first[upright] = np.searchsorted(upright_key, up_low, side="right")
        stop[upright] = np.searchsorted(upright_key, up_high)
        edge, k = ragged(1 + stop - first)
        at = np.where((place < to)[edge], first[edge] + k - 1, stop[edge] - k)
        is_begin = k == 0
        number = np.where(is_begin, 0, at)
        between = ~is_begin & upright[edge]
        number[between] = by_column[at[between]]
        if len(nodes):
            found = np.minimum(np.searchsorted(nodes, place), len(nodes) - 1)
            number[is_begin] = np.where(nodes[found] == place, found, -1)
        else:
            number[is_begin] = -1
        xy.append(np.where(is_begin[:, np.newaxis], here[edge], corners[number] if len(nodes) else here[edge]))
        node.append(number.astype(np.int32))
        count += np.bincount(ring[edge], minlength=len(rings))
    return Lines(np.concatenate(xy), np.append(0, np.cumsum(count))), np.concatenate(node)


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
