"""Outlines without stairs and with fewer vertices, of objects alone and of objects that share walls.

What touches is shaped together, so that it still touches, without a gap and without an overlap: outlines are cut where
three walls or more meet (`geoseg.walls`), each wall is smoothed (`geoseg.smooth`) and simplified (Douglas & Peucker
1973) once and goes back into both outlines. Which objects may touch is told by the number of their block, and a block
is shaped for itself, so the result does not depend on what else is shaped with it. Where a wall would then meet another
(`geoseg.coverage`), both are not smoothed, and where that does not help, what the edges that meet stand for is left as
it was. That is decided for all walls in rounds, in which each is looked at on the ground that it lies on: so it takes
as much memory as the outlines, each once, and does not depend on how many are looked at together.

`shapely.coverage_simplify` does the same by the areas of triangles (Visvalingam & Whyatt 1993), but so a wall that is
almost level keeps every one of its long and low stairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.compiled import Compiled
from geoseg.coverage import meeting, twisted
from geoseg.runs import ragged
from geoseg.smooth import smoothed
from geoseg.walls import AT_ONCE, Lines, Walls, portions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["simplified", "simplified_alone", "simplified_together"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Floats: TypeAlias = NDArray[np.float64]
_Polygons: TypeAlias = NDArray[np.object_]
_IsValid: TypeAlias = "Callable[[_Polygons], _Bools]"

STEP_BACK: Final = 0.25
"""Pixels that a hole steps back from where it touches another ring, if its sides there are four times as long."""

LEAST_STEP: Final = 0.1
"""Of a step back: what is smaller is none."""

_UNSEEN: Final = 2.0**-10  # pixels from a line within which a vertex is on it
_ROUNDED: Final = 1e-9  # pixels


def simplified(
    polygons: _Polygons,
    block: _Ints,
    tolerance: float,
    smooth: float = 0.0,
    is_valid: _IsValid = shapely.is_valid,
) -> _Polygons:
    """Polygons (n,) whose vertices are whole numbers, smoothed over `smooth` pixels, then with fewer vertices.

    They are nowhere further than `tolerance` from what they were when they are smoothed; see `geoseg.smooth`. Those of
    one `block` (n,) share their walls afterwards if they did before; other blocks are of no consequence. Holes step
    back from other rings of their polygon that they touch, see `simplified_together`. `is_valid` tells which outlines
    will do, as the ones that were given do.
    """
    if not (tolerance or smooth) or not len(polygons):
        return polygons
    _, place, count = np.unique(block, return_inverse=True, return_counts=True)
    alone = count[place] == 1
    if smooth:  # a ring is a wall, and smoothed as such
        alone[:] = False
    alone[alone] = ~_touch_themselves(polygons[alone])
    out = polygons.copy()
    out[~alone] = simplified_together(polygons[~alone], block[~alone], tolerance, smooth, is_valid)
    out[alone] = simplified_alone(polygons[alone], tolerance, is_valid)
    return out


def _touch_themselves(polygons: _Polygons) -> _Bools:
    """(n,): whether an outline passes one point twice."""
    found = np.zeros(len(polygons), np.bool_)
    holed = np.flatnonzero(shapely.get_num_interior_rings(polygons))
    xy, owner = shapely.get_coordinates(polygons[holed], return_index=True)
    order = np.lexsort((xy[:, 0], xy[:, 1], owner))
    xy, owner = xy[order], owner[order]
    again = (np.diff(xy, axis=0) == 0).all(axis=1) & (np.diff(owner) == 0)
    rings = shapely.get_num_interior_rings(polygons[holed]) + 1  # each of which is closed
    found[holed] = np.bincount(owner[1:], again, len(holed)) > rings
    return found


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
    is_valid: _IsValid = shapely.is_valid,
) -> _Polygons:
    """Polygons that follow the pixels' sides, smoothed and simplified so that those of one block still share walls.

    Every block is a valid coverage afterwards: no overlaps, and where two touch, they have the same vertices.

    A hole that lies diagonally beside the outside, or another hole, shares a vertex with it: valid, but an outline that
    passes one point twice, which not every register takes. There the hole's vertex moves into the hole, by up to
    `STEP_BACK` pixels, and that of what fills the hole with it. It moves less far, or stays, where a wall would meet
    another or be further than `tolerance` from where it was.
    """
    if not len(polygons):
        return polygons
    net = _Net(Walls.of(polygons, block), len(polygons), tolerance, smooth, is_valid)
    net.settle()
    net.step_back()
    return net.outlines


@Compiled
def _simplified(xy: NDArray[np.int32], start: _Ints, tolerance: float) -> _Bools:
    """(vertices,): which of them lines of whole-numbered vertices keep, as `shapely.simplify` has it, to the bit.

    Without a stack: which section of a line is next, the vertices tell that are kept so far.
    """
    kept = np.zeros(len(xy), np.bool_)
    for line in range(len(start) - 1):
        begin, last = start[line], start[line + 1] - 1
        kept[begin] = kept[last] = True
        while begin < last:
            end = begin + 1
            while not kept[end]:
                end += 1
            x, y = np.float64(xy[begin, 0]), np.float64(xy[begin, 1])
            to_x, to_y = np.float64(xy[end, 0]), np.float64(xy[end, 1])
            along, down = to_x - x, to_y - y
            squared = along * along + down * down
            furthest, most = begin, -1.0
            for vertex in range(begin + 1, end):
                right, below = xy[vertex, 0] - x, xy[vertex, 1] - y
                share = (right * along + below * down) / squared if squared else 0.0
                if share <= 0:
                    apart = np.sqrt(right * right + below * below)
                elif share >= 1:
                    apart = np.sqrt((xy[vertex, 0] - to_x) ** 2 + (xy[vertex, 1] - to_y) ** 2)
                else:
                    apart = abs((right * down - below * along) / squared) * np.sqrt(squared)
                if apart > most:
                    furthest, most = vertex, apart
            if most > tolerance:
                kept[furthest] = True
            else:
                begin = end
    return kept


class _Net:
    """Walls as they are drawn so far, and the outlines that they make."""

    def __init__(self, walls: Walls, polygons: int, tolerance: float, smooth: float, is_valid: _IsValid) -> None:
        self._walls, self._tolerance, self._smooth, self._is_valid = walls, tolerance, smooth, is_valid
        self.outlines = np.empty(polygons, object)
        self._kept = _simplified(walls.exact.xy, walls.exact.start, tolerance)
        """(exact vertices,): whether their walls have them as they are simplified."""
        self._even = np.full(len(walls.exact), bool(smooth))
        """(walls,): whether they are smoothed, too, and have other vertices then."""
        self._lines = self._drawn(np.arange(len(walls.exact)))

    def _drawn(self, which: _Ints) -> Lines:
        """Some walls, as they are now."""
        exact, found = self._walls.exact, []
        for some in portions(exact.count[which], AT_ONCE):
            row, place = self._places(which[some])
            count = np.bincount(row, minlength=len(which[some]))
            lines = Lines(exact.xy[place].astype(np.float64), np.append(0, np.cumsum(count)))
            even = np.flatnonzero(self._even[which[some]])
            if len(even):
                without_stairs = smoothed(exact.select(which[some][even]).shapes(), self._smooth)
                few = shapely.simplify(without_stairs, max(self._tolerance, _UNSEEN), preserve_topology=False)
                lines = lines.with_others(even, Lines.of(few))
            found.append(lines)
        return Lines.concatenate(found)

    def _places(self, which: _Ints) -> tuple[_Ints, _Ints]:
        """The exact vertices that some walls have as they are simplified: whose they are among these, and where."""
        exact = self._walls.exact
        row, k = ragged(exact.count[which])
        place = exact.start[which][row] + k
        kept = self._kept[place]
        return row[kept], place[kept]

    def _give_way(self, begin: _Ints, whole: _Ints) -> _Bools:
        """Draw edges of walls less far from what they were, and whole walls; tell which walls are other ones now.

        Edges are told by the vertices that begin them. A wall that is smoothed is not any more; otherwise what an edge
        stands for is left as it was. With every round some are, so there is an end to it.
        """
        exact, lines = self._walls.exact, self._lines
        changed, kept = np.zeros(len(exact), np.bool_), self._kept.copy()
        wall = np.searchsorted(lines.start, begin, side="right") - 1
        even = np.unique(np.concatenate([wall, whole]))
        even = even[self._even[even]]
        plain = ~self._even[wall]
        begin, wall, whole = begin[plain], wall[plain], whole[~self._even[whole]]
        some, number = np.unique(wall, return_inverse=True)
        row, place = self._places(some)
        at = np.searchsorted(row, number) + begin - lines.start[wall]
        first, stop = place[at], place[at + 1]
        whole = np.unique(whole)
        first, stop = np.append(first, exact.start[whole]), np.append(stop, exact.start[whole + 1])
        row, k = ragged(stop - first)
        kept[first[row] + k] = True
        changed[np.searchsorted(exact.start, np.flatnonzero(kept != self._kept), side="right") - 1] = True
        changed[even] = True
        self._kept, self._even[even] = kept, False
        which = np.flatnonzero(changed)
        if len(which):
            self._lines = lines.with_others(which, self._drawn(which))
        return changed

    def settle(self) -> None:
        """Let walls give way until all is in order."""
        walls, stale = self._walls, np.zeros(len(self.outlines), np.bool_)
        asked, nothing = np.ones(len(walls.exact), np.bool_), np.zeros(0, np.int64)
        while asked.any():
            while asked.any():
                stale |= walls.polygons_of(asked)
                lines = self._lines
                turned = twisted(walls.exact, lines, walls.node, walls.nodes, walls.owner, asked)
                meets = meeting(lines, walls.node, walls.block, walls.owner, asked)
                begin = np.concatenate([meets, lines.start[turned], lines.start[turned + 1] - 2])
                asked = self._give_way(begin, walls.too_short(lines.count))
            asked = self._give_way(nothing, walls.of_polygons(self._outlined(self._lines, stale)))
            stale[:] = False

    def _outlined(self, lines: Lines, stale: _Bools) -> _Bools:
        """(n,): outline polygons, and tell which of them are not in order."""
        wrong, which = np.zeros(len(stale), np.bool_), np.flatnonzero(stale)
        for some in portions(self._walls.vertices(lines.count)[which], AT_ONCE):
            outlines, wrong[which[some]] = self._walls.outlines(lines, which[some])
            wrong[which[some]] |= ~self._is_valid(outlines)
            self.outlines[which[some]] = outlines
        return wrong

    def step_back(self) -> None:
        """Move vertices of holes away from other rings of their polygon that have the same; once all is settled."""
        walls, lines, moves = self._walls, self._lines, _Moves.of(self._walls, self._lines)
        share, stale = np.ones(len(moves.target)), np.zeros(len(self.outlines), np.bool_)
        # not further than may be, for it may come to lie so far from what was
        if not self._smooth:
            most = np.linalg.norm(moves.target - moves.origin, axis=1)
            share = np.minimum(share, self._tolerance / np.maximum(most, _UNSEEN))
        changed = np.ones(len(share), np.bool_)
        while changed.any():
            while changed.any():
                asked = np.zeros(len(lines), np.bool_)
                asked[moves.wall[changed]] = True
                stale |= walls.polygons_of(asked)
                moved, node = moves.applied(lines, walls, share)
                begin = meeting(moved, node, walls.block, walls.owner, asked)
                refused: _Bools = np.any(np.isin(moves.edge(lines), begin), axis=1)
                if not self._smooth:
                    some: _Bools = np.any(asked[moves.wall], axis=1)
                    refused |= moves.far(walls.exact, lines, moved, some, self._tolerance)
                changed = _halve(share, refused)
            of_wrong = walls.of_polygons(self._outlined(moved, stale))
            stale[:] = False
            refused = np.any(np.isin(moves.wall, of_wrong), axis=1)
            changed = _halve(share, refused)


def _halve(share: _Floats, some: _Bools) -> _Bools:
    """Of moves that are more than none, let some be half as far, or none; and tell which."""
    changed = some & (share > 0)
    share[changed] = np.where(share[changed] / 2 >= LEAST_STEP, share[changed] / 2, 0)
    return changed


@dataclass(frozen=True, eq=False)
class _Moves:
    """Vertices (n,) that are to move, each where a hole goes from one wall to another."""

    wall: _Ints
    """(n, 2): the wall before and the one behind, which may be the same."""
    end: _Ints
    """(n, 2): 0 where it is the wall's beginning, 1 where its end."""
    origin: _Floats
    """(n, 2)."""
    target: _Floats

    @classmethod
    def of(cls, walls: Walls, lines: Lines) -> _Moves:
        """Those of holes that have a vertex that an earlier ring of their polygon has."""
        piece, before = walls.touching()
        wall = np.stack([walls.wall[before], walls.wall[piece]], axis=1)
        end = np.stack([walls.forwards[before], ~walls.forwards[piece]], axis=1).astype(np.int64)
        origin, beside = (_vertex(lines, wall, end, k).astype(np.float64) for k in (0, 1))
        origin = origin[:, 0]
        ways = np.stack([origin - beside[:, 0], beside[:, 1] - origin])
        length = np.linalg.norm(ways, axis=2)
        ahead = (ways / length[..., np.newaxis]).sum(axis=0)
        inwards = np.column_stack([-ahead[:, 1], ahead[:, 0]]) * walls.turn[walls.ring[piece]][:, np.newaxis]
        far = np.minimum(STEP_BACK, length.min(axis=0) / 4) / np.maximum(np.linalg.norm(ahead, axis=1), _UNSEEN)
        return cls(wall, end, origin, origin + far[:, np.newaxis] * inwards)

    def applied(self, lines: Lines, walls: Walls, share: _Floats) -> tuple[Lines, _Ints]:
        """Lines of which so large a share of each move has been made; and their places, of which there are more."""
        xy, node = lines.xy.copy(), walls.node.copy()
        many = walls.nodes + len(lines)
        for side in range(2):
            wall, end = self.wall[:, side], self.end[:, side]
            moves = share > 0
            to = self.origin + share[:, np.newaxis] * (self.target - self.origin)
            xy[_at(lines, wall, end, 0)[moves]] = to[moves]
            node[wall[moves], end[moves]] = many + np.flatnonzero(moves)
        return Lines(xy, lines.start), node

    def edge(self, lines: Lines) -> _Ints:
        """(n, 2): the vertices that begin the edges that move."""
        return np.minimum(_at(lines, self.wall, self.end, 0), _at(lines, self.wall, self.end, 1))

    def far(self, exact: Lines, lines: Lines, moved: Lines, some: _Bools, tolerance: float) -> _Bools:
        """(n,): whether an edge, of `some` moves, is further from the part of the exact wall that it stands for."""
        found, which = np.zeros(len(some), np.bool_), np.flatnonzero(some)
        for side in range(2):
            wall, end = self.wall[which, side], self.end[which, side]
            for portion in portions(exact.count[wall], AT_ONCE):
                mine, begin = wall[portion], end[portion]
                count = exact.count[mine]
                row, k = ragged(count)
                xy = exact.xy[exact.start[mine][row] + np.where(begin[row] == 0, k, count[row] - 1 - k)]
                stop = _vertex(lines, mine, begin, 1)
                passed = np.flatnonzero((k > 0) & (xy == stop[row]).all(axis=1))
                last = np.full(len(mine), len(xy))
                np.minimum.at(last, row[passed], k[passed])
                inside = k <= last[row]
                row, xy = row[inside], xy[inside]
                one, two = (_vertex(moved, mine, begin, which_end)[row] for which_end in (0, 1))
                apart = shapely.distance(shapely.linestrings(np.stack([one, two], axis=1)), shapely.points(xy))
                found[which[portion][row[apart > tolerance + _ROUNDED]]] = True
        return found


def _at(lines: Lines, wall: _Ints, end: _Ints, k: int) -> _Ints:
    """Where the vertices of lines are that are the k-th from their beginning (end 0) or their end (1)."""
    return np.where(end == 0, lines.start[wall] + k, lines.start[wall + 1] - 1 - k)


def _vertex(lines: Lines, wall: _Ints, end: _Ints, k: int) -> NDArray[np.float64]:
    vertex: NDArray[np.float64] = lines.xy[_at(lines, wall, end, k)]
    return vertex
