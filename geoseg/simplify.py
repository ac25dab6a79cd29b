"""Outlines without stairs and with fewer vertices, of objects alone and of objects that share walls.

What touches is shaped together, so that it still touches, without a gap and without an overlap: outlines are cut where
three walls or more meet, each wall is smoothed (`geoseg.smooth`) and simplified (Douglas & Peucker 1973) once and goes
back into both outlines. Which objects may touch is told by the number of their block, and a block is shaped for itself,
so the result does not depend on what else is shaped with it. Where a wall would then cross another, the walls of the
objects concerned are not smoothed, and where that does not help, left as they were.

`shapely.coverage_simplify` does the same by the areas of triangles (Visvalingam & Whyatt 1993), but so a wall that is
almost level keeps every one of its long and low stairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from geoseg.coverage import clashing
from geoseg.runs import connect, ragged
from geoseg.smooth import smoothed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Steps",
    "Walls",
    "by_portions",
    "overlapping",
    "settled",
    "simplified",
    "simplified_alone",
    "simplified_together",
    "touching",
    "turned",
    "untouched",
]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]

SIDES_AT_ONCE: Final = 1 << 17
"""Of objects that touch: some 200 bytes of memory for each."""

_UNSEEN: Final = 2.0**-10  # pixels from a line within which a vertex is on it
_ROUNDED: Final = 1e-9  # pixels
_LOOKED_AT: Final = 0.1  # of an edge, from one place to the next where its distance is looked at
_LEAST_VERTICES: Final = 3  # of a ring, not counting the one that closes it
_ENDS: Final = 2  # of sides that meet where a wall simply goes on


def simplified(
    polygons: _Polygons,
    block: _Ints,
    tolerance: float,
    smooth: float = 0.0,
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
) -> _Polygons:
    """Polygons (n,) whose vertices are whole numbers, smoothed over `smooth` pixels, then with fewer vertices.

    They are nowhere further than `tolerance` from what they were when they are smoothed; see `geoseg.smooth`. Those of
    one `block` (n,) share their walls afterwards if they did before; at the corners of the pixels they may not overlap.
    Holes step back from other rings of their polygon that they touch, see `untouched`. `is_valid` tells which outlines
    will do, as the ones that were given do.
    """
    if not (tolerance or smooth) or not len(polygons):
        return polygons
    _, place, count = np.unique(block, return_inverse=True, return_counts=True)
    alone = count[place] == 1
    if smooth:  # a ring is a wall, and smoothed as such
        alone[:] = False
    out = polygons.copy()
    for some in by_portions(np.flatnonzero(~alone), polygons, block):
        out[some] = simplified_together(polygons[some], block[some], tolerance, smooth, is_valid)
    out[alone] = simplified_alone(polygons[alone], tolerance, is_valid)

    def is_near(which: _Ints, drawn: _Polygons) -> _Bools:
        if smooth:  # from what they were when they are smoothed, which is not at hand
            return np.ones(len(which), np.bool_)
        each = zip(polygons[which], out[which], drawn, strict=True)
        return np.array([_is_near(exact, was, now, tolerance) for exact, was, now in each], np.bool_)

    return untouched(out, block, is_valid, is_near)


def _is_near(exact: shapely.Polygon, was: shapely.Polygon, now: shapely.Polygon, tolerance: float) -> bool:
    """Whether an outline some of whose vertices have moved is within `tolerance` of the exact one where they have.

    What was further away, as a hole that has vanished, may stay as far. Elsewhere nothing is looked at, for distances
    between outlines as a whole take the product of their vertices.
    """
    sides, before, after = _edges(exact), _edges(was), _edges(now)
    moved = (before != after).any(axis=(1, 2))
    if not moved.any():
        return True
    beside = shapely.STRtree(shapely.linestrings(sides)).query(shapely.linestrings(before[moved]), "dwithin", tolerance)
    near_moved, moved_to = _places_on(sides[np.unique(beside[1])]), _places_on(after[moved])
    most = np.maximum(tolerance, _distances(near_moved, before)) + _ROUNDED
    return bool(
        (_distances(moved_to, sides) <= tolerance + _ROUNDED).all() and (_distances(near_moved, after) <= most).all()
    )


def _edges(polygon: shapely.Polygon) -> NDArray[np.float64]:
    """(edges, 2, 2): where each begins and ends."""
    xy, ring = shapely.get_coordinates(shapely.get_rings(polygon), return_index=True)
    along = np.flatnonzero(ring[1:] == ring[:-1])
    return np.stack([xy[along], xy[along + 1]], axis=1)


def _places_on(edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(places, 2): where the distances of edges are looked at."""
    begin, end = edges[:, np.newaxis, 0], edges[:, np.newaxis, 1]
    places: NDArray[np.float64] = begin + np.arange(0, 1, _LOOKED_AT)[:, np.newaxis] * (end - begin)
    return places.reshape(-1, 2)


def _distances(places: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """(places,): how far each is from the nearest of the edges."""
    tree = shapely.STRtree(shapely.linestrings(edges))
    _, distances = tree.query_nearest(shapely.points(places), return_distance=True, all_matches=False)
    return np.asarray(distances, np.float64)


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
    smooth: float = 0.0,
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
) -> _Polygons:
    """Polygons that follow the pixels' sides, smoothed and simplified so that those of one block still share walls.

    Every block is a valid coverage afterwards: no overlaps, and where two touch, they have the same vertices.
    """
    if not len(polygons):
        return polygons
    walls = Walls.of(polygons, block)
    choices = [walls.lines, shapely.simplify(walls.lines, tolerance, preserve_topology=False)]
    if smooth:
        choices.append(
            shapely.simplify(smoothed(walls.lines, smooth), max(tolerance, _UNSEEN), preserve_topology=False)
        )
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


# --- holes that touch


STEP_BACK: Final = 0.25
"""Pixels that a hole steps back from where it touches another ring, if its sides there are four times as long."""

LEAST_STEP: Final = 0.1
"""Of a step back: what is smaller is none."""


def untouched(
    outlines: _Polygons,
    block: _Ints,
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
    is_near: Callable[[_Ints, _Polygons], _Bools] = lambda which, _: np.ones(len(which), np.bool_),
) -> _Polygons:
    """Polygons (n,) whose holes touch neither the outer ring nor each other, as far as that can be.

    A hole that lies diagonally beside the outside shares a vertex with it: valid, but an outline that passes one point
    twice, which not every register takes. There the hole's vertex moves into the hole, by up to `STEP_BACK` pixels, and
    that of what fills the hole with it. It moves less far, or stays, where an outline would be invalid, overlap another
    of its block, or not be near enough: `is_near` tells that of outlines, by their numbers and how they are drawn.
    """
    holed = np.flatnonzero(shapely.get_num_interior_rings(outlines))
    corners = _Corners.of(outlines[holed])
    again = np.flatnonzero(corners.passed_before())
    if not len(again):
        return outlines
    _, number = np.unique(block, return_inverse=True)
    mine = number[holed][corners.polygon[again]]
    some = np.flatnonzero(np.isin(number, mine))
    corners_of_some = _Corners.of(outlines[some])
    keys = corners.keys(mine, again)
    # what fills the hole walks the same sides the other way round
    told = pd.DataFrame(np.concatenate([keys, keys[:, [0, 1, 2, 5, 6, 3, 4]]]))
    told["move"] = np.tile(np.arange(len(again)), 2)
    every = pd.DataFrame(corners_of_some.keys(number[some][corners_of_some.polygon]))
    move = every.merge(told, how="left", on=list(range(7)))["move"].fillna(-1).to_numpy(np.int64)
    target, triangles = corners.stepped_back(again)
    out = outlines.copy()

    def is_wrong(drawn: _Polygons, unsure: _Bools) -> _Bools:
        wrong = overlapping(drawn, number[some], unsure, is_valid)
        asked = np.flatnonzero(unsure & ~wrong)
        wrong[asked] = ~is_near(some[asked], drawn[asked])
        return wrong

    out[some] = _moved(outlines[some], corners_of_some, move, target, triangles, is_wrong)
    return out


def _moved(
    outlines: _Polygons,
    corners: _Corners,
    move: _Ints,
    target: NDArray[np.float64],
    triangles: _Polygons,
    is_wrong: Callable[[_Polygons, _Bools], _Bools],
) -> _Polygons:
    """Polygons with the corners that have a move, if it is not -1, at its target, or on the way if something is wrong.

    `is_wrong` tells of polygons as they are drawn, and which of them it need look at.
    """
    near = np.zeros(len(outlines), np.bool_)
    near[corners.polygon[move >= 0]] = True
    near[shapely.STRtree(outlines).query(triangles, predicate="intersects")[1]] = True
    share = np.ones(len(target))
    while True:
        moves = (move >= 0) & (share[move] > 0)
        xy = corners.xy.copy()
        xy[moves] += share[move[moves], np.newaxis] * (target[move[moves]] - xy[moves])
        drawn = corners.closed(outlines, xy)
        wrong = is_wrong(drawn, near)
        if not wrong.any() or not moves.any():
            return drawn
        refused = np.unique(move[moves & wrong[corners.polygon]])
        refused = refused if len(refused) else np.unique(move[moves])
        share[refused] = np.where(share[refused] / 2 >= LEAST_STEP, share[refused] / 2, 0)


@dataclass(frozen=True, eq=False)
class _Corners:
    """Vertices of polygons, the last one of each ring, which is its first, left out."""

    xy: NDArray[np.float64]
    ring: _Ints
    polygon: _Ints
    before: _Ints
    """The place of the vertex before each in its ring."""
    behind: _Ints

    @classmethod
    def of(cls, polygons: _Polygons) -> _Corners:
        rings, owner = shapely.get_rings(polygons, return_index=True)
        xy, ring = shapely.get_coordinates(rings, return_index=True)
        is_last = np.append(ring[1:] != ring[:-1], np.ones(min(len(ring), 1), np.bool_))
        xy, ring = xy[~is_last], ring[~is_last]
        size = np.bincount(ring, minlength=len(rings))
        start = (np.cumsum(size) - size)[ring]
        place = np.arange(len(ring)) - start
        before, behind = (start + (place + step) % size[ring] for step in (-1, 1))
        return cls(xy, ring, owner[ring], before, behind)

    def passed_before(self) -> _Bools:
        """(corners,): whether an earlier ring of the same polygon has the same vertex."""
        order = np.lexsort((self.ring, self.xy[:, 1], self.xy[:, 0], self.polygon))
        one, two = order[:-1], order[1:]
        found = np.zeros(len(order), np.bool_)
        found[two] = (self.polygon[one] == self.polygon[two]) & (self.xy[one] == self.xy[two]).all(axis=1)
        return found

    def keys(self, block: _Ints, some: _Ints | slice = slice(None)) -> NDArray[np.float64]:
        """(corners, 7): the number of the block (corners,), where each is, and where the ones before and behind are."""
        around = (self.xy[places[some]] for places in (self.before, self.behind))
        return np.column_stack([block, self.xy[some], *around])

    def stepped_back(self, some: _Ints) -> tuple[NDArray[np.float64], _Polygons]:
        """Where corners of holes go to, halfway between their sides; and the triangles that this adds."""
        xy, before, behind = (self.xy[places] for places in (some, self.before[some], self.behind[some]))
        ways = np.stack([xy - before, behind - xy])
        length = np.linalg.norm(ways, axis=2)
        ahead = (ways / length[..., np.newaxis]).sum(axis=0)
        area = np.bincount(self.ring, _cross(self.xy, self.xy[self.behind]))[self.ring[some]]
        inwards = np.column_stack([-ahead[:, 1], ahead[:, 0]]) * np.sign(area)[:, np.newaxis]
        far = np.minimum(STEP_BACK, length.min(axis=0) / 4) / np.maximum(np.linalg.norm(ahead, axis=1), _UNSEEN)
        target = xy + far[:, np.newaxis] * inwards
        return target, shapely.convex_hull(shapely.multipoints(np.stack([before, xy, behind, target], axis=1)))

    def closed(self, polygons: _Polygons, xy: NDArray[np.float64]) -> _Polygons:
        """The polygons that the corners are of, with others in their place."""
        last = np.flatnonzero(np.append(self.ring[1:] != self.ring[:-1], np.ones(min(len(self.ring), 1), np.bool_)))
        drawn: _Polygons = shapely.set_coordinates(
            polygons.copy(), np.insert(xy, last + 1, xy[self.behind[last]], axis=0)
        )
        return drawn


def _cross(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    return one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0]


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
    wrong[asked] = clashing(outlines[asked], block[asked])
    return wrong


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
