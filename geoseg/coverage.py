"""Whether walls that are drawn anew still make a coverage: no overlaps, and the same vertices where polygons touch.

Walls that part polygons do so still if they meet at their common ends alone, go out from there in the order in which
they did before, and each ring is walked the way round that it was. The first is asked edge by edge on tiles of the
ground: what meets, meets on one of them, so the tiles make no difference, and memory has a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.runs import ragged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoseg.walls import Lines

__all__ = ["meeting", "twisted"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Floats: TypeAlias = NDArray[np.float64]

TILE: Final = 256
"""Pixels that a tile is wide and high, the edges on which are held against each other in one go."""

_TURN: Final = 2 * np.pi
_LEAST_ANGLE: Final = 1e-9  # radians: more than computing does


def meeting(lines: Lines, node: _Ints, block: _Ints, owner: _Ints, asked: _Bools) -> _Ints:
    """The vertices that begin edges which meet another of their block elsewhere than at a place of both.

    `node` (lines, 2) numbers the places where lines begin and end, of which they may have some in common; no other
    vertex is another one's place. `owner` (lines,) is the polygon of a line that has background on its other side, else
    -1: two edges of two owners may be the same one. Only edges of lines that are `asked` (lines,) are held against all
    others.
    """
    found = [np.zeros(0, np.int64)]
    many = int(node.max(initial=-1)) + 1  # from where on vertices have numbers that are no node's
    for some, box in _on_tiles(lines, asked):
        count = lines.count[some] - 1
        row, k = ragged(count)
        begin = lines.start[some][row] + k
        ends = lines.xy[begin], lines.xy[begin + 1]
        here = ((np.maximum(*ends) >= box[0]) & (np.minimum(*ends) <= box[1])).all(axis=1)
        row, k, begin = row[here], k[here], begin[here]
        line, is_last = some[row], k == count[row] - 1
        first = np.where(k == 0, node[line, 0], many + begin)
        place = np.stack([first, np.where(is_last, node[line, 1], many + begin + 1)], axis=1)
        xy = np.stack([lines.xy[begin], lines.xy[begin + 1]], axis=1)
        one, other = _meet(xy, place, block[line], owner[line], asked[line])
        found += [begin[one], begin[other]]
    return np.unique(np.concatenate(found))


def _on_tiles(lines: Lines, asked: _Bools) -> Iterator[tuple[_Ints, _Floats]]:
    """The lines whose boxes meet each tile that those which are asked do; and its least and greatest corner."""
    if not asked.any():
        return
    boxes = np.floor(lines.boxes() / TILE).astype(np.int64)
    origin = boxes[:, :2].min(axis=0)
    low, wide = boxes[:, :2] - origin, boxes[:, 2:] - boxes[:, :2] + 1
    cols = int((low + wide)[:, 0].max())
    line, k = ragged(wide.prod(axis=1))
    down, along = np.divmod(k, wide[line, 0])
    tile = (low[line, 1] + down) * cols + low[line, 0] + along
    is_asked = np.zeros(int(tile.max()) + 1, np.bool_)
    is_asked[tile[asked[line]]] = True
    some = is_asked[tile]
    line, tile = line[some], tile[some]
    order = np.argsort(tile, kind="stable")
    line, tile = line[order], tile[order]
    starts = np.flatnonzero(np.diff(tile, prepend=-1))
    for start, stop in zip(starts, np.append(starts[1:], len(tile)), strict=True):
        corner = (np.array(divmod(int(tile[start]), cols)[::-1]) + origin) * float(TILE)
        yield line[start:stop], np.stack([corner, corner + TILE])


def _meet(xy: _Floats, place: _Ints, block: _Ints, owner: _Ints, asked: _Bools) -> tuple[_Ints, _Ints]:
    """Pairs of edges (n, 2 ends, 2) of one block that meet elsewhere than at a place (n, 2 ends) of both."""
    lines = shapely.linestrings(xy)
    of_asked = np.flatnonzero(asked)
    one, other = shapely.STRtree(lines).query(lines[of_asked])
    one = of_asked[one]
    fresh = ((one < other) | ~asked[other]) & (block[one] == block[other])
    one, other = one[fresh], other[fresh]
    same = place[one][:, :, np.newaxis] == place[other][:, np.newaxis]
    common: _Bools = np.any(same, axis=(1, 2))
    meets = np.zeros(len(one), np.bool_)
    meets[~common] = shapely.intersects(lines[one[~common]], lines[other[~common]])
    same, first, second = same[common], one[common], other[common]
    closed = (same.sum(axis=(1, 2)) == 2) & _have_a_gap(owner[first], owner[second])  # noqa: PLR2004  both ends
    meets[common] = _go_one_way(xy[first], xy[second], same) & ~closed
    return one[meets], other[meets]


def _have_a_gap(one: _Ints, other: _Ints) -> _Bools:
    """Whether what lies between neighbouring lines of such owners (n,) is background: of two polygons, not of one."""
    gap: _Bools = (one != other) & (one >= 0) & (other >= 0)
    return gap


def _go_one_way(one: _Floats, other: _Floats, same: _Bools) -> _Bools:
    """(n,): whether two edges (n, 2 ends, 2) that have the `same` end (n, 2, 2) go the same way from there."""
    row = np.arange(len(one))
    first, of_other = (np.argmax(np.any(same, axis=axis), axis=1) for axis in (2, 1))
    # of two that have both ends in common the same one is to be looked at
    of_other = np.where(same[row, first, of_other], of_other, 1 - of_other)
    corner = one[row, first]
    way, along = one[row, 1 - first] - corner, other[row, 1 - of_other] - corner
    way_too: _Bools = (way[:, 0] * along[:, 1] == way[:, 1] * along[:, 0]) & ((way * along).sum(axis=1) > 0)
    return way_too


def twisted(exact: Lines, lines: Lines, node: _Ints, nodes: int, owner: _Ints, asked: _Bools) -> _Ints:
    """The lines that go out from a place in another order than the exact ones do, or two of them the same way.

    `node` (lines, 2) and `owner` (lines,): see `meeting`, neighbours of two owners may go the same way; those from
    `nodes` on are of one line each. Places of lines that are `asked` (lines,) are looked at.
    """
    shared = node < nodes
    is_asked = np.zeros(int(node.max(initial=-1)) + 1, np.bool_)
    is_asked[node[asked]] = True
    line, end = np.nonzero(shared & is_asked[node])
    if not len(line):
        return np.zeros(0, np.int64)
    here = node[line, end]
    before, now = (_angles(each, line, end) for each in (exact, lines))
    order = np.lexsort((before, here))
    here, now, owner = here[order], now[order], owner[line[order]]
    first = np.flatnonzero(np.diff(here, prepend=-1))
    follower = np.arange(1, len(here) + 1)
    follower[np.append(first[1:], len(here)) - 1] = first
    turn = (now[follower] - now) % _TURN
    one_way = (turn < _LEAST_ANGLE) | (turn > _TURN - _LEAST_ANGLE)
    turn[one_way] = np.where(_have_a_gap(owner, owner[follower])[one_way], 0, 2 * _TURN)
    whole = np.add.reduceat(turn, first)
    wrong = np.repeat(whole > 1.5 * _TURN, np.diff(np.append(first, len(here))))
    return np.unique(line[order[wrong]])


def _angles(lines: Lines, line: _Ints, end: _Ints) -> _Floats:
    """(n,): which way lines go out from their beginning (end 0) or their end (1), in radians."""
    at = np.where(end == 0, lines.start[line], lines.start[line + 1] - 1)
    way = lines.xy[np.where(end == 0, at + 1, at - 1)].astype(np.float64) - lines.xy[at]
    angles: _Floats = np.arctan2(way[:, 1], way[:, 0])
    return angles
