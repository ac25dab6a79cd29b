"""Buildings with straight walls and right angles, neighbours with the same walls still.

Each building has one direction, found in its own outline; neighbours that share walls, and whose directions differ by
no more than their outlines leave open, have one together. Walls are cut into a few long edges, each of which is along
the direction or across it, unless it is long and clearly neither. Edges of one kind that follow each other are one
straight line, slanting ones if they hardly turn. What is along or across lies where the exact outline lies on average,
so areas stay what they are. Then steps that are no larger than an outline is rough are levelled, the shortest first.

Every coordinate is a variable that all vertices of a line share, a vertex where walls meet being one vertex, so what
was shared stays shared: the lines of all buildings are the components of a graph, and one weighted mean each. Round
outlines become circles. Where two overlap the smaller one gives way, at right angles if that costs little. A building
whose new outline is invalid or agrees too little with the exact one stays as it was simplified, and so do the walls it
shares. Nothing but giving way loops over buildings, nothing depends on other blocks.

The ideas are those of feature-edge reconstruction (Wei, Ji & Lu 2020, "Toward automatic building footprint delineation
from aerial images using CNN and regularization"); the shared walls are new here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.intersection import common_areas
from geoseg.runs import connect
from geoseg.simplify import simplified
from geoseg.steps import Steps, by_portions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Style", "regularised", "without_overlaps"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Floats: TypeAlias = NDArray[np.float64]
_Polygons: TypeAlias = NDArray[np.object_]

_FRACTION: Final = 1024
"""Coordinates are whole multiples of this part of a pixel: what rounding does to sums has no say."""

_LEAST_VERTICES: Final = 3


FINEST_EDGE, FINEST_STEP = 1.25, 2.5  # pixels: stairs of a wall that is not level are no shape of it


@dataclass(frozen=True)
class Style:
    """How buildings are built; metres and degrees."""

    edge: float = 0.5
    """How far the exact outline may be from a long edge of it."""
    step: float = 1.0
    """Shorter steps in a wall are levelled where the outline is rough."""
    rough: float = 12.0
    """How many times as large as an outline is rough a step has to be, where that is less; see `_Plan`."""
    small: float = 0.18
    """Neither is larger than this part of the side of a square as large as the building."""
    oblique: float = 5.0
    """Length from which on a wall may be neither along nor across."""
    slant: float = 20.0
    """Degrees from which on it is neither."""
    agree: tuple[float, float] = (1.0, 4.0)
    """Degrees by which the directions of neighbours may always differ that get one together, and at most."""
    unsure: float = 2.0
    """Between these: how many times their outlines' roughness by their size, in radians."""
    iou: float = 0.7
    """Intersection over union with the exact outline below which a building is left as it was."""
    round: float = 0.97
    """The same with a circle from which on a building is round, less what pixels' corners take from it."""
    least_radius: float = 8.0
    """Pixels of the radius from which on that can be seen."""
    shared: float = 0.25
    """Part of the shorter one of two walls along which they touch from which on they are one."""

    worth: float = 0.12
    """What smaller edges and steps have to gain in that agreement to be worth their corners."""

    def ladder(self, pixel: float) -> tuple[Style, ...]:
        """The same; for what has more corners, half as large; and for what is left then, a quarter as large.

        But nothing is smaller than what pixels of so many metres show.
        """
        half, quarter = (
            replace(
                self,
                edge=max(self.edge / d, FINEST_EDGE * pixel),
                step=max(self.step / d, FINEST_STEP * pixel),
                small=self.small / d,
                oblique=self.oblique / d,
            )
            for d in (2, 4)
        )
        return self, half, replace(quarter, worth=1.0)


def regularised(
    polygons: _Polygons,
    block: _Ints,
    tolerance: float,
    pixel: tuple[float, float],
    is_valid: Callable[[_Polygons], _Bools] = shapely.is_valid,
    style: Style | None = None,
    smooth: float = 0.0,
) -> tuple[_Polygons, _Bools]:
    """Exact outlines (n,) made regular, and (n,) which of them are; the others are simplified as `simplified` does.

    `polygons` have whole-numbered vertices, those of one `block` (n,) are neighbours; `tolerance`, `smooth` and
    `is_valid` as `simplified` has them; `pixel`: metres that one is high and wide. The result of a block depends on it
    alone.
    """
    out, done = polygons.copy(), np.zeros(len(polygons), np.bool_)
    for some in by_portions(np.arange(len(polygons)), polygons, block):
        simple = simplified(polygons[some], block[some], tolerance, smooth, is_valid)
        out[some], done[some] = _of_blocks(polygons[some], block[some], simple, pixel, is_valid, style or Style())
    return out, done


def _of_blocks(
    polygons: _Polygons,
    block: _Ints,
    simple: _Polygons,
    pixel: tuple[float, float],
    is_valid: Callable[[_Polygons], _Bools],
    style: Style,
) -> tuple[_Polygons, _Bools]:
    scale = np.array([pixel[1], pixel[0]])
    whole = _without_specks(polygons, style.step**2 / scale.prod())
    out, best = simple.copy(), np.zeros(len(polygons))
    for some in style.ladder(max(pixel)):
        # what agrees so well that nothing can be worth more is left, with its block
        asked = np.flatnonzero(np.isin(block, block[(best == 0) | (best + some.worth < 1)]))
        if not len(asked):
            break
        drawn = _Plan.of(whole[asked], block[asked], scale, some).drawn()
        agreement = np.zeros(len(asked))
        good = is_valid(drawn) & ~_turned_round(drawn, whole[asked])
        agreement[good] = _iou(drawn[good], polygons[asked[good]])
        before = best[asked]
        better = (agreement >= style.iou) & (agreement > before + np.where(before > 0, some.worth, 0))
        out[asked[better]], best[asked[better]] = drawn[better], agreement[better]
    done = best > 0
    circles, is_round = _circles(whole, block, pixel, is_valid, style)
    out[is_round], done[is_round] = circles[is_round], True
    apart, asked, shallow = out.copy(), np.arange(len(out)), FINEST_STEP * max(pixel)
    while len(asked):  # simplified ones share walls, and nothing is cut from them
        firm, pairs = ~done[asked], _same_block(out[asked], block[asked])
        apart[asked], is_cut = without_overlaps(out[asked], pairs, firm, (pixel[1], pixel[0]), shallow)
        cut = asked[is_cut & ~firm]
        lost = ~is_valid(apart[cut])
        lost[~lost] = _iou(apart[cut[~lost]], polygons[cut[~lost]]) < style.iou
        out[cut[lost]], done[cut[lost]] = simple[cut[lost]], False
        asked = np.flatnonzero(np.isin(block, block[cut[lost]]))
    return apart, done


def _without_specks(polygons: _Polygons, least: float) -> _Polygons:
    """Polygons (n,) without their holes of less than `least` pixels."""
    out = polygons.copy()
    some = np.flatnonzero(shapely.get_num_interior_rings(polygons))
    for place in some:
        holes = [ring for ring in polygons[place].interiors if shapely.Polygon(ring).area >= least]
        out[place] = shapely.Polygon(polygons[place].exterior, holes)
    return out


def _same_block(polygons: _Polygons, block: _Ints) -> tuple[_Ints, _Ints]:
    """Pairs of polygons of one block whose boxes meet."""
    one, two = shapely.STRtree(polygons).query(polygons)
    near = (one < two) & (block[one] == block[two])
    return one[near], two[near]


def _turned_round(drawn: _Polygons, polygons: _Polygons) -> _Bools:
    """(n,): whether a ring is walked the other way round than before."""
    before, owner = shapely.get_rings(polygons, return_index=True)
    other = shapely.is_ccw(before) != shapely.is_ccw(shapely.get_rings(drawn))
    found: _Bools = np.bincount(owner, other, len(polygons)) > 0
    return found


def _iou(first: _Polygons, second: _Polygons) -> _Floats:
    both = common_areas(first, second)
    iou: _Floats = both / (shapely.area(first) + shapely.area(second) - both)
    return iou


# --- outlines, and the long edges in them


@dataclass(frozen=True, eq=False)
class _Plan:
    """Rings as steps of one pixel, in metres, cut into edges, before any is moved."""

    polygon: _Ints
    """(rings,): the polygon of each, ascending."""
    xy: _Floats
    """(steps, 2): where each begins."""
    end: _Floats
    ring: _Ints
    """(steps,), ascending."""
    side: _Ints
    """(steps,): a number for the pixels' side, the same in both rings that follow it."""
    begin: _Ints
    """(edges,): the step with which each begins; the first of a ring begins one."""
    direction: _Floats
    """(n,): of each polygon, in radians."""
    family: _Ints
    """(n,): a number that neighbours of one direction share."""
    size: _Floats
    """(n,): the side of a square as large as the polygon."""
    rough: _Floats
    """(n,): standard deviation of its steps from straight lines through its edges, without pixels' stairs."""
    scale: _Floats
    style: Style

    @classmethod
    def of(cls, polygons: _Polygons, block: _Ints, scale: _Floats, style: Style) -> _Plan:
        """Look at polygons in pixels."""
        _, group = np.unique(block, return_inverse=True)
        rings, polygon = shapely.get_rings(polygons, return_index=True)
        steps = Steps.of(rings, group[polygon])
        size = np.sqrt(shapely.area(polygons) * scale.prod())
        xy, end = steps.xy * scale, steps.end * scale
        least = FINEST_EDGE * scale.max()
        begin = _cut(xy, steps.ring, np.clip(style.small * size, least, max(style.edge, least))[polygon])
        angle, weight, spread, length = _directions(xy, end, begin)
        turned = weight[:, np.newaxis] * np.column_stack([np.cos(4 * angle), np.sin(4 * angle)])
        owner = polygon[steps.ring[begin]]
        variance, total = (np.bincount(owner, sums, len(polygons)) for sums in (spread, length))
        rough = np.sqrt(np.maximum(variance / total - _OF_STAIRS * scale.prod(), 0))
        vectors: _Floats = np.stack([np.bincount(owner, axis, len(polygons)) for axis in turned.T], axis=1)
        first, second = _shared(steps.side)
        pairs = polygon[steps.ring[first]], polygon[steps.ring[second]]
        direction, family = _families(vectors, rough / size, *pairs, style)
        return cls(polygon, xy, end, steps.ring, steps.side, begin, direction, family, size, rough, scale, style)

    def drawn(self) -> _Polygons:
        """(n,): the polygons with straight edges, in pixels; whatever they are like."""
        polygon = self.polygon[self.ring[self.begin]]
        net = _Net(self, self.direction[polygon])
        seen = np.maximum(self.style.rough * self.rough, FINEST_STEP * self.scale.max())
        step = np.minimum(np.minimum(seen, self.style.step), self.style.small * self.size)[polygon]
        while net.level(step) or net.straighten():
            pass
        net.share(*self._shared_edges(net), self.style.step)
        xy = _turned(net.xy, -self.direction[polygon][net.left])
        return self._polygons(np.rint(xy / self.scale * _FRACTION) / _FRACTION, net.ring)

    def _polygons(self, xy: _Floats, ring: _Ints) -> _Polygons:
        first = np.flatnonzero(np.append(True, np.diff(ring) != 0))
        after = np.append(first[1:], len(ring))
        closed = np.insert(xy, after, xy[first], axis=0)
        rings = np.append(0, after + np.arange(1, len(first) + 1))
        offsets = np.searchsorted(self.polygon, np.arange(self.polygon[-1] + 2))
        drawn: _Polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, closed, (rings, offsets))
        return drawn

    def _shared_edges(self, net: _Net) -> tuple[_Ints, _Ints]:
        """Pairs of edges that are left in the net which share enough of the shorter one's steps, in one family."""
        # an edge belongs to the last vertex before it that is left, which for the first of a ring is its last
        ring = self.ring[self.begin]
        place = np.searchsorted(net.left, np.arange(len(self.begin)), side="right") - 1
        wrapped = (place < 0) | (net.ring[np.maximum(place, 0)] != ring)
        place = np.where(wrapped, np.searchsorted(net.ring, ring, side="right") - 1, place)
        is_first = np.zeros(len(self.xy), np.int64)
        is_first[self.begin] = 1
        edge = place[np.cumsum(is_first) - 1]
        first, second = _shared(self.side)
        family = self.family[self.polygon[self.ring]]
        related = family[first] == family[second]
        pairs = np.sort(np.column_stack([edge[first[related]], edge[second[related]]]), axis=1)
        if not len(pairs):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        pairs, count = np.unique(pairs, axis=0, return_counts=True)
        length = np.bincount(edge)
        alike = count >= self.style.shared * np.minimum(length[pairs[:, 0]], length[pairs[:, 1]])
        return pairs[alike, 0], pairs[alike, 1]


def _shared(side: _Ints) -> tuple[_Ints, _Ints]:
    """Pairs of steps that follow one side of a pixel."""
    order = np.argsort(side, kind="stable")
    same = np.flatnonzero(np.diff(side[order]) == 0)
    return order[same], order[same + 1]


_OF_STAIRS: Final = 1 / 12
"""Variance of a slanting line's pixels about it, in square pixels."""


def _families(vectors: _Floats, unsure: _Floats, first: _Ints, second: _Ints, style: Style) -> tuple[_Floats, _Ints]:
    """(n,) the direction of each polygon in radians, and (n,) the number of the family that has it, by neighbours.

    `unsure` (n,): roughness by size.
    """
    own = np.arctan2(vectors[:, 1], vectors[:, 0])
    apart = np.abs((own[first] - own[second] + np.pi) % (2 * np.pi) - np.pi)
    related = apart < 4 * np.clip(style.unsure * (unsure[first] + unsure[second]), *np.radians(style.agree))
    family = connect(len(own), first[related], second[related]).astype(np.int64)
    sums = [np.bincount(family, axis) for axis in vectors.T]
    return (np.arctan2(sums[1], sums[0]) / 4)[family], family


def _cut(xy: _Floats, ring: _Ints, tolerance: _Floats) -> _Ints:
    """The steps of rings that begin long edges, which the steps are no further from than the ring's tolerance."""
    first = np.flatnonzero(np.append(True, np.diff(ring) != 0))
    at = np.insert(np.arange(len(ring)), np.append(first[1:], len(ring)), first)
    lines = shapely.linestrings(xy[at], indices=ring[at])
    few = shapely.simplify(lines, tolerance[: len(lines)], preserve_topology=False)
    whole = shapely.get_num_coordinates(few) <= _LEAST_VERTICES
    few[whole] = shapely.simplify(lines[whole], 0, preserve_topology=False)
    corner, owner = shapely.get_coordinates(few, return_index=True)
    order = np.lexsort((xy[:, 1], xy[:, 0], ring))
    found = np.searchsorted(_keys(xy, ring)[order], _keys(corner, owner))
    return np.unique(order[found])


def _keys(xy: _Floats, ring: _Ints) -> NDArray[np.void]:
    keys = np.zeros(len(xy), np.dtype([("ring", "i8"), ("x", "f8"), ("y", "f8")]))
    keys["ring"], keys["x"], keys["y"] = ring, xy[:, 0], xy[:, 1]
    return keys


def _directions(xy: _Floats, end: _Floats, begin: _Ints) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """(edges,) each: the angle of the steps along each edge in radians (their principal axis), its length's square.

    And the sum of the squares of their distances to that axis, each weighted by its length, and of those lengths.
    """
    length = np.diff(np.append(begin, len(xy)))
    origin = np.repeat(xy[begin], length, axis=0)
    middle, way = (xy + end) / 2 - origin, end - xy
    weight = np.abs(way).sum(axis=1)
    total = np.add.reduceat(weight, begin)
    mean = [np.add.reduceat(weight * axis, begin) / total for axis in middle.T]
    moments = [
        np.add.reduceat(weight * (middle[:, i] * middle[:, j] + way[:, i] * way[:, j] / 12), begin)
        - total * mean[i] * mean[j]
        for i, j in ((0, 0), (0, 1), (1, 1))
    ]
    chord = end[np.append(begin[1:], len(xy)) - 1] - xy[begin]
    across = moments[0] - moments[2], 2 * moments[1]
    spread = (moments[0] + moments[2] - np.hypot(*across)) / 2
    return np.arctan2(across[1], across[0]) / 2, (chord**2).sum(axis=1), spread, total


def _turned(xy: _Floats, angle: _Floats) -> _Floats:
    """Points as they are seen by who is turned by an angle (points,)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.column_stack([cos * xy[:, 0] + sin * xy[:, 1], cos * xy[:, 1] - sin * xy[:, 0]])


# --- what is along and what across


_ALONG, _ACROSS, _OBLIQUE = 0, 1, 2


class _Net:
    """The vertices between edges of rings, seen along the buildings, while lines are laid and vertices forgotten."""

    def __init__(self, plan: _Plan, angle: _Floats) -> None:
        """Call each edge one of three kinds, and lay the first lines, where the steps are on average."""
        begin, self.style = plan.begin, plan.style
        self.left = np.arange(len(begin))
        self.xy = _turned(plan.xy[begin], angle)
        self.ring = plan.ring[begin]
        self.kind = np.full(len(begin), _OBLIQUE)
        self._link()
        length = np.diff(np.append(begin, len(plan.xy)))
        origin = np.repeat(plan.xy[begin], length, axis=0)
        one, two = plan.xy - origin, plan.end - origin
        area = np.add.reduceat(one[:, 0] * two[:, 1] - one[:, 1] * two[:, 0], begin) / 2
        while self.straighten():
            pass
        kind, is_straight, is_oblique = self._slants()
        self.kind = np.where(is_oblique, _OBLIQUE, kind)
        self._lay(is_straight, area[self.left])
        self._forget_vertices()

    def _slants(self) -> tuple[_Ints, _Bools, _Bools]:
        """(edges,) each: along or across, whichever is nearer; whether it is clearly that; whether clearly neither."""
        way = np.abs(self.xy[self._following] - self.xy)
        narrow, wide = np.sort(way, axis=1).T
        is_straight = narrow <= np.tan(np.radians(self.style.slant)) * wide
        is_oblique = ~is_straight & (np.hypot(narrow, wide) >= self.style.oblique)
        return np.where(way[:, 0] >= way[:, 1], _ALONG, _ACROSS), is_straight, is_oblique

    def straighten(self) -> bool:
        """Forget vertices between two slanting edges that are hardly a corner; whether there were any."""
        before, is_oblique = self._before, self._slants()[2]
        way = self.xy[self._following] - self.xy
        across = np.abs(way[before, 0] * way[:, 1] - way[before, 1] * way[:, 0])
        turn = np.arctan2(across, (way[before] * way).sum(axis=1))
        turn[~(is_oblique & is_oblique[before] & (turn < np.radians(self.style.slant)))] = np.inf
        # of two that follow each other the smaller one goes, of two as large the first
        return self._forget((turn < turn[before]) & (turn <= turn[self._following]))

    def _link(self) -> None:
        count = len(self.ring)
        first = np.flatnonzero(np.append(True, np.diff(self.ring) != 0))
        last = np.append(first[1:], count) - 1
        self._following, self._before = np.arange(1, count + 1), np.arange(-1, count - 1)
        self._following[last], self._before[first] = first, last

    def level(self, step: _Floats) -> bool:
        """Level the steps below `step` (all edges,) that are shorter than what is beside them; whether it did anything.

        A step is an edge between two of the other kind. A slanting edge that hardly slants, now that the walls beside
        it are laid, is none: it goes along or across, too.
        """
        length = np.hypot(*(self.xy[self._following] - self.xy).T)
        before, behind = self.kind[self._before], self.kind[self._following]
        is_step = (before == behind) & (before != _OBLIQUE) & (self.kind == 1 - before) & (length < step[self.left])
        # of two that follow each other the shorter one is levelled, of two as long the first
        is_step &= (length < length[self._before]) & (length <= length[self._following])
        nearer, _, is_oblique = self._slants()
        is_none = (self.kind == _OBLIQUE) & ~is_oblique
        is_step |= is_none
        if not is_step.any():
            return False
        self.kind = np.where(is_none, nearer, np.where(is_step, 1 - self.kind, self.kind))
        self._lay(~is_step, np.zeros(len(length)))
        return self._forget_vertices() or bool(is_none.any())

    def share(self, first: _Ints, second: _Ints, most: float) -> None:
        """Give the edges of both sides of a wall one line, unless they are more than `most` metres apart."""
        following = self._following
        length = np.hypot(*(self.xy[following] - self.xy).T)
        moved = self.xy.copy()
        for kind, axis in ((_ALONG, 1), (_ACROSS, 0)):
            alike = (self.kind[first] == kind) & (self.kind[second] == kind)
            alike &= np.abs(self.xy[first, axis] - self.xy[second, axis]) <= most
            line = connect(len(self.xy), first[alike], second[alike])
            joined = np.zeros(len(self.xy), np.bool_)
            joined[first[alike]] = joined[second[alike]] = True
            total = np.bincount(line[joined], length[joined], len(self.xy))[line]
            moment = np.bincount(line[joined], (length * self.xy[:, axis])[joined], len(self.xy))[line]
            mean = moment / np.where(total > 0, total, 1)
            moved[joined, axis] = mean[joined]
            moved[following[joined], axis] = mean[joined]
        self.xy = moved

    def _lay(self, has_say: _Bools, area: _Floats) -> None:
        """Give all vertices of a run one coordinate: the mean of its edges that have a say, by their lengths."""
        one, two = self.xy, self.xy[self._following]
        first = np.flatnonzero(np.append(True, np.diff(self.ring) != 0))
        last = np.append(first[1:], len(self.ring)) - 1
        begins = self.kind != self.kind[self._before]
        begins[first] = True
        run = np.cumsum(begins) - 1
        other = np.arange(run[-1] + 1)
        goes_on = self.kind[first] == self.kind[last]
        other[run[first[goes_on]]] = run[last[goes_on]]
        run = other[run]
        moved = self.xy.copy()
        for kind, axis, sign in ((_ALONG, 1, -1.0), (_ACROSS, 0, 1.0)):
            mine = self.kind == kind
            way = (two - one)[:, 1 - axis]
            weight = np.where(mine, np.abs(way) * np.where(has_say, 1.0, _HARDLY) + _HARDLY**2, 0)
            moment = weight * (one[:, axis] + two[:, axis]) / 2 + mine * has_say * np.sign(way) * sign * area
            total, sums = (np.bincount(run, values) for values in (weight, moment))
            mean = (sums / np.where(total > 0, total, 1))[run]
            moved[mine, axis] = mean[mine]
            moved[self._following[mine], axis] = mean[mine]
        self.xy = moved

    def _forget_vertices(self) -> bool:
        """Leave out vertices where a line simply goes on; whether there were any. Rings of one kind stay."""
        return self._forget((self.kind == self.kind[self._before]) & (self.kind != _OBLIQUE))

    def _forget(self, gone: _Bools) -> bool:
        left = np.bincount(self.ring[~gone], minlength=int(self.ring.max()) + 1)
        gone &= (left >= _LEAST_VERTICES)[self.ring]
        if not gone.any():
            return False
        keep = ~gone
        self.xy, self.ring, self.kind, self.left = self.xy[keep], self.ring[keep], self.kind[keep], self.left[keep]
        self._link()
        return True


_HARDLY: Final = 1e-9
"""What an edge has to say, for each metre, where it is none of those that are asked."""


# --- round buildings, and such that come too near


def _circles(
    polygons: _Polygons,
    block: _Ints,
    pixel: tuple[float, float],
    is_valid: Callable[[_Polygons], _Bools],
    style: Style,
) -> tuple[_Polygons, _Bools]:
    """Circles as large as polygons (n,) that stand alone, about their centres, and (n,) which of them are round."""
    down, along = pixel
    _, place, count = np.unique(block, return_inverse=True, return_counts=True)
    area = shapely.area(polygons) * down * along
    radius = np.sqrt(area / np.pi)
    is_round = (count[place] == 1) & (shapely.get_num_interior_rings(polygons) == 0)
    is_round &= radius >= style.least_radius * max(down, along)
    # a circle's hull is itself, and its box is as high as wide: few are looked at further
    west, north, east, south = shapely.bounds(polygons).T * np.array([along, down, along, down])[:, np.newaxis]
    is_round &= np.maximum(east - west, south - north) < 2 * radius * _LONGEST
    circles = polygons.copy()
    asked = np.flatnonzero(is_round)
    if not len(asked):
        return circles, is_round
    centre = shapely.get_coordinates(shapely.centroid(polygons[asked]))
    corners = np.clip(4 * np.ceil(radius[asked] / max(down, along) / 4), 16, 64).astype(np.int64)
    for few in np.unique(corners):
        some = corners == few
        turn = 2 * np.pi * np.arange(few) / few
        # a polygon of so many corners on a circle is smaller than the circle
        reach = radius[asked[some]] * np.sqrt(turn[1] / np.sin(turn[1]))
        ring = np.stack([np.cos(turn) / along, np.sin(turn) / down], axis=1)
        xy = centre[some][:, np.newaxis] + reach[:, np.newaxis, np.newaxis] * ring
        circles[asked[some]] = shapely.polygons(np.rint(xy * _FRACTION) / _FRACTION)
    least = np.maximum(style.round - max(down, along) / radius[asked] / 4, style.iou)
    is_round[asked] = is_valid(circles[asked]) & (_iou(circles[asked], polygons[asked]) >= least)
    return circles, is_round


_LONGEST: Final = 1.12


def without_overlaps(
    polygons: _Polygons,
    pairs: tuple[_Ints, _Ints] | None = None,
    firm: _Bools | None = None,
    metres: tuple[float, float] | None = None,
    shallow: float = 0.0,
) -> tuple[_Polygons, _Bools]:
    """Polygons (n,) that overlap in these pairs, or any: the smaller one gives way; and (n,) which are others now.

    One that is `firm` (n,) does so only before another. Of two as large it is the later one. What is cut off is a
    sliver; where nothing else would be left, those that it lies under give way instead. Only one that is not firm, and
    lies under firm ones alone, comes back empty. With `metres`, those that a unit is wide and high, it is cut along its
    own walls, at right angles, where that costs little more than along those of the other; and along the whole wall,
    without a step, where the cut is less than `shallow` metres deep.
    """
    if pairs is None:
        one, two = shapely.STRtree(polygons).query(polygons)
        pairs = one[one < two], two[one < two]
    one, two = pairs
    inside = shapely.area(shapely.intersection(polygons[one], polygons[two])) > 0
    one, two = one[inside], two[inside]
    area, rank = shapely.area(polygons), np.full(len(polygons), 2) if firm is None else 2 * firm
    out, asked = polygons.copy(), np.ones(len(polygons), np.bool_)
    cut, under = np.zeros((2, len(polygons)), np.bool_)
    while asked.any():
        # of those that lay under others, the larger one gives way
        is_first = np.where(under[one], area[one] <= area[two], area[one] >= area[two])
        is_first = np.where(rank[one] == rank[two], is_first, rank[one] > rank[two])
        first, second = np.where(is_first, one, two), np.where(is_first, two, one)
        out[asked], cut[asked] = polygons[asked], False
        order = np.lexsort((first, second))
        order = order[asked[second[order]]]
        for some in np.split(order, np.flatnonzero(np.diff(second[order])) + 1) if len(order) else ():
            place = second[some[0]]
            out[place] = _left_of(polygons[place], shapely.union_all(polygons[first[some]]), metres, shallow)
            cut[place] = True
        found = shapely.is_empty(out) & ~under
        under |= found
        rank += found
        near = found[one] | found[two]
        asked[:] = False
        asked[one[near]] = asked[two[near]] = True
    same = shapely.is_empty(out) & (rank > 1)  # ground of others that lay under others: cannot be shared out
    out[same], cut[same] = polygons[same], False
    return out, cut


def _left_of(
    polygon: shapely.Polygon, others: shapely.Geometry, metres: tuple[float, float] | None, shallow: float
) -> shapely.Polygon:
    """What is left of a polygon without others; empty where nothing is."""
    rest = _largest(shapely.difference(polygon, others))
    if rest is None:
        return shapely.Polygon()
    straight = metres and _cut_straight(polygon, others, np.array(metres), shallow)
    return straight if straight and straight.area >= LEAST_LEFT * rest.area else rest


LEAST_LEFT: Final = 0.93
"""Of what is left of a polygon that is cut along another's walls: what is to be left if it is cut along its own."""

NEAR: Final = 1.0
"""Metres from a corner within which a cut goes to it, that no step is left."""


def _cut_straight(
    polygon: shapely.Polygon, others: shapely.Geometry, metres: _Floats, shallow: float
) -> shapely.Polygon | None:
    """The largest part of a polygon without the boxes, along its longest wall, round what lies in others."""
    way = np.diff(shapely.get_coordinates(polygon.exterior) * metres, axis=0)
    longest = way[np.argmax((way**2).sum(axis=1))]
    angle = np.arctan2(longest[1], longest[0])

    def seen(xy: _Floats) -> _Floats:
        return _turned(xy * metres, np.full(len(xy), angle))

    def back(xy: _Floats) -> _Floats:
        return _turned(xy, np.full(len(xy), -angle)) / metres

    along = shapely.transform(polygon, seen)
    over = shapely.get_parts(shapely.transform(shapely.intersection(polygon, others), seen))
    corners = shapely.get_coordinates(along)
    boxes = [_widened(box, corners, shallow) for box in shapely.bounds(over[shapely.area(over) > 0])]
    left = _largest(shapely.difference(along, shapely.union_all(boxes)))
    return None if left is None else shapely.transform(left, back)


def _largest(geometry: shapely.Geometry) -> shapely.Polygon | None:
    parts = shapely.get_parts(geometry)
    parts = parts[shapely.area(parts) > 0]
    return parts[np.argmax(shapely.area(parts))] if len(parts) else None


def _widened(box: _Floats, corners: _Floats, shallow: float) -> shapely.Polygon:
    """A box (west, south, east, north) whose sides lie a little beyond the next corner outwards, if that is near.

    One that is less than `shallow` deep leaves no step: it goes on to both ends of the wall that it is cut from.
    """
    deep = box[2:] - box[:2]
    along = int(deep[1] > deep[0])
    wall = corners[np.abs(corners[:, 1 - along] - box[1 - along]) <= shallow, along]
    is_shallow = deep[1 - along] < min(shallow, deep[along])
    sides = box.copy()
    for side, sign in enumerate((-1, -1, 1, 1)):
        goes_on = is_shallow and side % 2 == along
        away = sign * ((wall if goes_on else corners[:, side % 2]) - box[side])
        near = away[(away >= 0) & (goes_on | (away <= NEAR))]
        sides[side] += sign * (near.min() + _PAST_CORNERS if len(near) else _BEYOND)
    return shapely.box(*sides)


_BEYOND: Final = 1e-6  # metres: more than computing does
_PAST_CORNERS: Final = 1e-3  # more than corners of one line are apart, whose coordinates are rounded
