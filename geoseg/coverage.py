"""Whether polygons that lie beside each other are a coverage: no overlaps, and the same vertices where they touch.

`shapely.coverage_invalid_edges` tells the same, but indexes all neighbours of each polygon anew: where one polygon
winds through a whole scene and touches all others, as ground does among houses and trees, it takes the product of their
number and its size. Here each edge is looked at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["clashing"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Floats: TypeAlias = NDArray[np.float64]

_TURN: Final = 2 * np.pi
_AT_ONCE: Final = 1 << 15
"""Edges that are held against all others in one go: what lies near them takes memory."""

_SIDES: Final = 2  # of a wall
_LEAST_ANGLE: Final = 1e-9  # radians: more than computing does


def clashing(polygons: NDArray[np.object_], block: _Ints) -> _Bools:
    """(n,): whether a polygon overlaps another of its block, or touches it where one of both has no vertex.

    The polygons are valid. Those of a block hang together by their sides, so that none can lie in another without being
    across its outline, or on it, somewhere. Edges may meet at ends alone, and around each end the polygons' corners
    have to lie beside each other.
    """
    wrong = np.zeros(len(polygons), np.bool_)
    rings, polygon = shapely.get_rings(polygons, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    if not len(xy):
        return wrong
    owner = polygon[ring]
    point = _numbers((block[owner], xy[:, 0], xy[:, 1]))
    begin = np.flatnonzero(ring[1:] == ring[:-1])  # the last vertex of a ring begins no edge
    wrong[owner[begin[_meets_elsewhere(xy, point, begin, owner, block)]]] = True
    wrong[owner[begin[_overlaps_at_corner(xy, point, begin, owner, rings, ring)]]] = True
    return wrong


def _numbers(columns: Sequence[NDArray[np.generic]]) -> _Ints:
    """(n,): a number for each row, the same for equal ones."""
    order = np.lexsort(columns)
    differs = np.zeros(len(order), np.bool_)
    for column in columns:
        differs[1:] |= np.diff(column[order]) != 0
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.cumsum(differs)
    return numbers


def _meets_elsewhere(xy: _Floats, point: _Ints, begin: _Ints, owner: _Ints, block: _Ints) -> _Bools:
    """(edges,): whether an edge meets one of another polygon of its block elsewhere than at a vertex of both."""
    place = np.empty(len(point), np.int64)
    place[point] = np.arange(len(point))
    ends = np.sort(np.column_stack([point[begin], point[begin + 1]]), axis=1)
    number = _numbers((ends[:, 0], ends[:, 1]))
    _, first = np.unique(number, return_index=True)  # of each edge that two polygons have, one
    ends = place[ends[first]]
    lowest, highest = np.full(len(first), len(xy)), np.full(len(first), -1)
    np.minimum.at(lowest, number, owner[begin])
    np.maximum.at(highest, number, owner[begin])
    lines = shapely.linestrings(xy[ends])
    tree, found = shapely.STRtree(lines), np.zeros(len(first), np.bool_)
    for begins in range(0, len(lines), _AT_ONCE):
        one, other = tree.query(lines[begins : begins + _AT_ONCE])
        one += begins
        asked = (one < other) & (block[lowest[one]] == block[lowest[other]])
        # a valid polygon may meet itself
        asked &= np.minimum(lowest[one], lowest[other]) < np.maximum(highest[one], highest[other])
        one, other = one[asked], other[asked]
        same = ends[one][:, :, np.newaxis] == ends[other][:, np.newaxis]
        common: _Bools = np.any(same, axis=(1, 2))
        meets = np.zeros(len(one), np.bool_)
        meets[~common] = shapely.intersects(lines[one[~common]], lines[other[~common]])
        meets[common] = _go_one_way(xy, ends[one[common]], ends[other[common]], same[common])
        found[one[meets]] = found[other[meets]] = True
    return found[number]


def _go_one_way(xy: _Floats, one: _Ints, other: _Ints, same: _Bools) -> _Bools:
    """(n,): whether two edges (n, 2 ends) that have the `same` end (n, 2, 2) go the same way from there."""
    first, of_other = np.any(same, axis=2)[:, 0], np.any(same, axis=1)[:, 0]
    corner = xy[np.where(first, one[:, 0], one[:, 1])]
    way = xy[np.where(first, one[:, 1], one[:, 0])] - corner
    along = xy[np.where(of_other, other[:, 1], other[:, 0])] - corner
    way_too: _Bools = (way[:, 0] * along[:, 1] == way[:, 1] * along[:, 0]) & ((way * along).sum(axis=1) > 0)
    return way_too


def _overlaps_at_corner(
    xy: _Floats, point: _Ints, begin: _Ints, owner: _Ints, rings: NDArray[np.object_], ring: _Ints
) -> _Bools:
    """(edges,): whether the corner that an edge begins at overlaps that of another polygon there."""
    first = np.flatnonzero(np.append(True, np.diff(ring[begin]) != 0))
    is_shell = np.append(True, np.diff(owner[begin[first]]) != 0)
    on_left = (shapely.is_ccw(rings) == is_shell)[ring[begin]]
    before = np.arange(-1, len(begin) - 1)
    before[first] = np.append(first[1:], len(begin)) - 1
    found = np.zeros(len(begin), np.bool_)
    chosen = np.flatnonzero(~_is_along_wall(point[begin], point[begin + 1], point[begin[before]], on_left))
    if not len(chosen):
        return found
    on_left, end_of, begin = on_left[chosen], begin[before[chosen]], begin[chosen]
    ways = xy[begin + 1] - xy[begin], xy[end_of] - xy[begin]
    ahead, back = (np.arctan2(way[:, 1], way[:, 0]) for way in ways)
    start, end = np.where(on_left, ahead, back), np.where(on_left, back, ahead)
    # where a hole touches its outline, the polygon goes from where one ring lets it in to where another one ends it
    here, who = (np.tile(each, 2) for each in (point[begin], owner[begin]))
    angle = np.concatenate([start, end])
    order = np.lexsort((angle, who, here))
    behind = _next_around((here[order], who[order]))
    width = np.empty(len(order))
    width[order] = (angle[order[behind]] - angle[order]) % _TURN
    here, width = here[: len(start)], width[: len(start)]
    order = np.lexsort((start, here))
    behind = _next_around((here[order],))
    room = start[order[behind]] - start[order]
    room[behind <= np.arange(len(order))] += _TURN
    overlaps = width[order] > room + _LEAST_ANGLE
    found[chosen[order[overlaps]]] = found[chosen[order[behind[overlaps]]]] = True
    return found


def _is_along_wall(here: _Ints, ahead: _Ints, back: _Ints, on_left: _Bools) -> _Bools:
    """(corners,): whether one has its point for itself, or with a single other one that walks there the other way.

    Most do, and all is well there. `ahead` and `back` are the points next to each; `on_left`: where it has its inside.
    """
    count = np.bincount(here)[here]
    is_wall = count == _SIDES
    for mine, theirs in ((ahead, back), (back, ahead), (on_left, on_left)):
        # one's own and that of the other one, added up
        is_wall &= np.bincount(here, mine)[here] == mine.astype(np.int64) + theirs
    alone: _Bools = (count == 1) | is_wall
    return alone


def _next_around(columns: Sequence[NDArray[np.generic]]) -> _Ints:
    """(n,): of sorted rows, the one behind each that is equal in these columns, or else the first of its equals."""
    ends = np.zeros(len(columns[0]), np.bool_)
    for column in columns:
        ends[:-1] |= np.diff(column) != 0
    ends[-1:] = True
    last = np.flatnonzero(ends)
    behind = np.arange(1, len(ends) + 1)
    behind[last] = np.append(0, last[:-1] + 1)
    return behind
