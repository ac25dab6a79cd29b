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

from geoseg.compiled import Compiled
from geoseg.runs import ragged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoseg.walls import Lines

__all__ = ["meeting", "twisted"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Floats: TypeAlias = NDArray[np.float64]

TILE: Final = 4096
"""Pixels that a tile is wide and high, the edges on which are held against each other in one go."""

_CELL: Final = 16.0  # pixels that a part of a tile is wide and high, in which each edge is held against each
_UNSURE: Final = 1e-15  # of what a cross product is the difference of: more than computing does (Shewchuk 1997)

_TURN: Final = 2 * np.pi
_LEAST_ANGLE: Final = 1e-9  # radians: more than computing does


def meeting(lines: Lines, node: _Ints, block: _Ints, owner: _Ints, asked: _Bools) -> _Ints:
    """The vertices that begin edges which meet another of their block elsewhere than at a place of both.

    `node` (lines, 2) numbers the places where lines begin and end, of which they may have some in common; no other
    vertex is another one's place. `owner` (lines,) is the polygon of a line that has background on its other side, else
    -1: two edges of two owners may be the same one. Only edges of lines that are `asked` (lines,) are held against all
    others.
    """
    many = int(node.max(initial=-1)) + 1  # from where on vertices have numbers that are no node's
    xy, node = np.ascontiguousarray(lines.xy, np.float64), np.ascontiguousarray(node)
    meets = np.zeros(len(xy), np.bool_)
    for some, box in _on_tiles(lines, asked):
        first = np.concatenate([some[asked[some]], some[~asked[some]]])
        unsure = _meet(xy, lines.start, node, many, block, owner, asked, first, box, meets)
        edges = shapely.linestrings(xy[unsure[..., np.newaxis] + np.arange(2)])
        meets[unsure[shapely.intersects(edges[:, 0], edges[:, 1])]] = True
    return np.flatnonzero(meets)


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


@Compiled
def _meet(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  # compiled functions call no others
    xy: _Floats,
    start: _Ints,
    node: _Ints,
    many: int,
    block: _Ints,
    owner: _Ints,
    asked: _Bools,
    some: _Ints,
    box: _Floats,
    meets: _Bools,
) -> _Ints:
    """Mark the vertices that begin edges, of `some` lines on a tile, which meet; lines that are asked come first.

    What rounding leaves open is not decided: (n, 2) the vertices that begin the two edges then.

    A cell of the tile knows the edges of lines that are asked which pass it: the last one that came, and each the one
    before it. Two edges that meet pass one cell, so there each that comes is held against those that it knows.
    """
    left, top, right, bottom = box[0, 0], box[0, 1], box[1, 0], box[1, 1]
    cols, rows = int((right - left) / _CELL) + 1, int((bottom - top) / _CELL) + 1
    last = np.full(cols * rows, -1, np.int64)
    chain = np.empty((1 << 10, 3), np.int64)  # the vertex that begins an edge, its line, and the link before
    unsure = np.empty((1 << 4, 2), np.int64)
    links = undecided = 0
    for line in some:
        for begin in range(start[line], start[line + 1] - 1):
            x, y, to_x, to_y = xy[begin, 0], xy[begin, 1], xy[begin + 1, 0], xy[begin + 1, 1]
            least_x, most_x = (x, to_x) if x < to_x else (to_x, x)
            least_y, most_y = (y, to_y) if y < to_y else (to_y, y)
            if most_x < left or least_x > right or most_y < top or least_y > bottom:
                continue
            here = node[line, 0] if begin == start[line] else many + begin
            there = node[line, 1] if begin == start[line + 1] - 2 else many + begin + 1
            first_row = int((max(least_y, top) - top) / _CELL)
            last_row = int((min(most_y, bottom) - top) / _CELL)
            for row in range(first_row, last_row + 1):
                low, high = least_x, most_x
                if first_row < last_row:  # a long edge does not pass all cells that its box meets
                    slope = (to_x - x) / (to_y - y)
                    enters = x + (top + row * _CELL - y) * slope
                    leaves = x + (top + (row + 1) * _CELL - y) * slope
                    low = max(low, min(enters, leaves) - 1)  # and what computing does
                    high = min(high, max(enters, leaves) + 1)
                if high < left or low > right:
                    continue
                first_cell = row * cols + int((max(low, left) - left) / _CELL)
                last_cell = row * cols + int((min(high, right) - left) / _CELL)
                for cell in range(first_cell, last_cell + 1):
                    link = last[cell]
                    while link >= 0:
                        other, its_line = chain[link, 0], chain[link, 1]
                        link = chain[link, 2]
                        if block[its_line] != block[line] or (meets[other] and meets[begin]):
                            continue
                        ax, ay, bx, by = xy[other, 0], xy[other, 1], xy[other + 1, 0], xy[other + 1, 1]
                        if (ax < least_x and bx < least_x) or (ax > most_x and bx > most_x):
                            continue
                        if (ay < least_y and by < least_y) or (ay > most_y and by > most_y):
                            continue
                        a = node[its_line, 0] if other == start[its_line] else many + other
                        b = node[its_line, 1] if other == start[its_line + 1] - 2 else many + other + 1
                        common = (a == here) + (a == there) + (b == here) + (b == there)
                        if common:  # they meet if they go one way from there, unless a gap closes
                            if b in (here, there) and a not in (here, there):
                                ax, ay, bx, by, a = bx, by, ax, ay, b
                            along_x, along_y = (to_x - ax, to_y - ay) if a == here else (x - ax, y - ay)
                            way_x, way_y = bx - ax, by - ay
                            one, two = owner[its_line], owner[line]
                            closed = common == 2 and one != two and one >= 0 and two >= 0  # noqa: PLR2004  both ends
                            if way_x * along_y == way_y * along_x and way_x * along_x + way_y * along_y > 0:
                                meets[other] |= not closed
                                meets[begin] |= not closed
                            continue
                        # on which side of the one edge the ends of the other are, and the other way round
                        plus, minus = (ax - x) * (by - y), (ay - y) * (bx - x)
                        of_here = plus - minus
                        sure = abs(of_here) > _UNSURE * (abs(plus) + abs(minus))
                        plus, minus = (ax - to_x) * (by - to_y), (ay - to_y) * (bx - to_x)
                        of_there = plus - minus
                        sure &= abs(of_there) > _UNSURE * (abs(plus) + abs(minus))
                        if sure and (of_here > 0) == (of_there > 0):
                            continue
                        plus, minus = (x - ax) * (to_y - ay), (y - ay) * (to_x - ax)
                        of_a = plus - minus
                        sure_too = abs(of_a) > _UNSURE * (abs(plus) + abs(minus))
                        plus, minus = (x - bx) * (to_y - by), (y - by) * (to_x - bx)
                        of_b = plus - minus
                        sure_too &= abs(of_b) > _UNSURE * (abs(plus) + abs(minus))
                        if sure_too and (of_a > 0) == (of_b > 0):
                            continue
                        if sure and sure_too:
                            meets[other] = meets[begin] = True
                            continue
                        if undecided == len(unsure):
                            unsure = np.concatenate((unsure, np.empty_like(unsure)))
                        unsure[undecided, 0], unsure[undecided, 1] = other, begin
                        undecided += 1
                    if asked[line]:
                        if links == len(chain):
                            chain = np.concatenate((chain, np.empty_like(chain)))
                        chain[links, 0], chain[links, 1], chain[links, 2] = begin, line, last[cell]
                        last[cell] = links
                        links += 1
    return unsure[:undecided].copy()


def _have_a_gap(one: _Ints, other: _Ints) -> _Bools:
    """Whether what lies between neighbouring lines of such owners (n,) is background: of two polygons, not of one."""
    gap: _Bools = (one != other) & (one >= 0) & (other >= 0)
    return gap


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
