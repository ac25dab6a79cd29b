"""What several scenes saw of the same ground, as one layer: each footprint once, whole where it can be.

Four steps, each in bounded memory. Footprints of neighbouring scenes are compared, one cell of a grid at a time, and
only numbers are kept of those that have a partner. From the numbers alone it is decided which view of a building stays
(non-maximum suppression: in order of rank, one is kept unless those kept that match it cover enough of it) and which
pieces are one building that a border cuts. The outlines that change are made, again cell by cell. Then all is read
once more, scene by scene, and passed on.

No answer depends on the cells: a pair is looked at in the cell of a point that only the pair determines, and all
geometry is done in the layer's CRS or on a scene's own pixels.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from dataclasses import dataclass, field, fields, replace
from typing import IO, TYPE_CHECKING, Any, Literal, Self, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pydantic import Field
from pyproj import CRS

from geoseg.borders import (
    JOIN_WITHIN,
    LATTICE,
    LEAST_PIXELS,
    View,
    bridge,
    goes_on,
    on_grid,
    polygons_of,
    transformed,
)
from geoseg.errors import OptionError
from geoseg.footprints import COLUMNS, measure, shape_of
from geoseg.io.vectors import to_pixels, to_world
from geoseg.jobs import Strict
from geoseg.runs import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

Keep: TypeAlias = Literal["confidence", "date", "edge"]

CELL = 4000.0
"""Side of a grid's cell where the layer's CRS counts metres or feet."""

CELL_DEGREES = 0.04

FARTHEST_EAST = 179.9
"""Degrees of longitude beyond which a scene lies at the 180th meridian."""

METRES_PER_DEGREE = 110_000.0
"""A little less than there are, so that a reach in degrees is rather too long."""

OVERLAPPING, MATCHING, JOINED, FIRST_IS_PART, SECOND_IS_PART = range(5)
"""How two footprints of different scenes stand to each other: they share some ground, enough ground to be the same
building, or they are pieces of one that the border between the scenes cuts; or they match, and one is cut where the
other goes on."""


ALIKE = (MATCHING, FIRST_IS_PART, SECOND_IS_PART)

ROUNDING = 1e-6
"""Of a share of an area."""

DEEPEST = 8
"""How often a part may be a part of a part."""


class Merge(Strict):
    """How the footprints of overlapping scenes become one layer."""

    keep: Keep = Field(
        default="confidence",
        description="which view of a building stays: the most confident, the one of the latest date, or the one "
        "farthest from its scene's edge; one that the edge cuts always comes after one that is whole",
    )
    overlap: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of the smaller footprint that two scenes' footprints have in common if they are the same; "
        "one is left out only if better ones cover that share of it, too",
    )


@dataclass(frozen=True)
class Counts:
    """What became of footprints that had partners."""

    duplicates: int
    """Left out, because a better view of the same was kept."""
    joined: int
    """Of the layer, put together across borders."""
    covered: int
    """Left out, because less than the least area was left of them beside better ones."""


Observe: TypeAlias = "Callable[[str, int, int], None]"
"""Told a stage, and how many of how many cells or footprints are done."""


@dataclass(frozen=True, eq=False)
class OneLayer:
    """A layer that is decided upon; `frames` makes it."""

    views: tuple[View, ...]
    crs: CRS
    counts: Counts
    _nodes: Nodes
    _verdict: Verdict
    _changes: Changes

    def frames(self, observe: Observe = lambda _stage, _done, _total: None) -> Iterator[gpd.GeoDataFrame]:
        """All footprints, a part at a time: by scene, each in the order of its file. One frame at least.

        Columns: those that any scene's footprints have, the id being `<scene>/<id>`, and `views`: how many scenes saw
        it or a piece of it. Of an outline that is another than any scene's, the numbers are new: its shape is measured,
        its confidence is that of its pieces (the mean, by their areas, and the least), it touches what a piece does, it
        is not `regularised`, and its `edge_sharpness`, which only pixels tell, is not known. Nor is what an older
        result does not tell.
        """
        there = set().union(*(view.results.columns() for view in self.views))
        untold = {name for name in there for view in self.views if name not in view.results.columns()}
        for number, view in enumerate(self.views):
            observe("merging", number, len(self.views))
            for frame in view.results.footprints():
                yield self._merged(number, _completed(frame, view, there, untold))
        observe("merging", len(self.views), len(self.views))

    def _merged(self, number: int, frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        """What of a part of a scene's footprints is in the layer."""
        view, nodes = self.views[number], self._nodes
        node = nodes.find(number, keys_of(frame["id"]))
        known = node >= 0
        stays = np.ones(len(frame), bool)
        stays[known] = self._verdict.leads[node[known]] & ~self._changes.vanished[self._verdict.unit[node[known]]]
        frame, node = frame[stays].reset_index(drop=True), node[stays]
        columns = {name: frame[name].array.copy() for name in CHANGING if name in frame}
        views = np.ones(len(frame), np.int64)
        geometry = transformed(frame.geometry.to_numpy(), view.crs, self.crs).copy()
        for place in np.flatnonzero(node >= 0):
            unit = self._verdict.unit[node[place]]
            views[place] = self._verdict.views[unit]
            if (change := self._changes.of(unit)) is not None:
                geometry[place], values = change
                for name, column in columns.items():
                    column[place] = values[name]
        frame = pd.DataFrame(frame.drop(columns="geometry")).assign(**columns, views=views)
        frame["id"] = f"{view.scene}/" + frame["id"]
        return gpd.GeoDataFrame(frame, geometry=geometry, crs=self.crs)


CHANGING = (
    *("area_m2", "perimeter_m", "confidence", "confidence_min", "edge_sharpness", "touches_nodata", "touches_edge"),
    *("regularised", "vertices", "orientation_deg"),
)
"""Columns that are others where an outline is."""


def _completed(frame: gpd.GeoDataFrame, view: View, there: set[str], untold: set[str]) -> gpd.GeoDataFrame:
    """A part of a scene's footprints with all columns that are `there`, some of which are `untold` by some scene.

    What can be found out again is; the rest is null, and in types that have one for all scenes.
    """
    missing = [name for name in COLUMNS if name in there and name not in frame]
    added: dict[str, Any] = {}
    if {"vertices", "orientation_deg"} & set(missing):
        added |= shape_of(frame.geometry.to_numpy(), view.geobox, view.crs)[1]
    nothing: dict[str, tuple[object, Any]] = {
        "touches_edge": (None, "boolean"),
        "regularised": (False, bool),
        "datetime": (None, "datetime64[us, UTC]"),
        "model": (None, str),
    }
    for name in missing:
        value, kind = nothing.get(name, (np.nan, np.float64))
        frame = frame.assign(**{name: added.get(name, pd.Series([value] * len(frame), index=frame.index, dtype=kind))})
    if "touches_edge" in untold:
        frame = frame.astype({"touches_edge": "boolean"})
    return frame[[*(name for name in COLUMNS if name in there), "geometry"]]


def one_layer(
    views: Iterable[View],
    how: Merge,
    *,
    cell: float | None = None,
    spool: IO[bytes] | None = None,
    observe: Observe = lambda _stage, _done, _total: None,
) -> OneLayer:
    """Decide which footprints of scenes make one layer, and what of them changes.

    `cell`: side of the grid's cells in units of the layer's CRS, which never changes the result. `spool`: an
    empty file for the outlines that change, in which the layer reads later; None: in memory. The layer's CRS is that of
    the scenes, or else EPSG:4326.

    Raises `OptionError` if scenes in different CRSs lie on both sides of the 180th meridian.
    """
    ordered = tuple(sorted(views, key=lambda view: view.scene))
    crs = common_crs(ordered)
    cell = cell or (CELL_DEGREES if crs.is_geographic else CELL)
    grid = _Grid(ordered, crs, cell)
    nodes, pairs = _compare(grid, how, observe)
    verdict = decide(nodes, pairs, how.overlap)
    changes = Changes(len(verdict.rank), io.BytesIO() if spool is None else spool)
    _reshape(grid, how, nodes, pairs, verdict, changes, observe)
    pieces = np.bincount(verdict.unit[verdict.kept], minlength=len(changes.vanished))
    vanished = int(pieces[changes.vanished].sum())
    joined = int((pieces[~changes.vanished] > 1).sum())
    counts = Counts(int((~verdict.kept).sum()), joined, vanished)
    return OneLayer(ordered, crs, counts, nodes, verdict, changes)


def common_crs(views: Sequence[View]) -> CRS:
    """The CRS of a layer. Raises `OptionError` if that would be torn at the 180th meridian."""
    if all(view.crs == views[0].crs for view in views):
        return views[0].crs
    lonlat = CRS.from_epsg(4326)
    bounds = np.array([shapely.bounds(view.outline(lonlat)) for view in views])
    west, east = bounds[:, 0], bounds[:, 2]
    if east.max() > FARTHEST_EAST and west.min() < -FARTHEST_EAST:
        name = views[int(np.argmax(east))].scene
        msg = f"{name}: lies at the 180th meridian, where a layer of scenes in different CRSs would be torn; "
        raise OptionError(msg + "map the scenes of either side, or those of one CRS, into an --out of their own")
    return lonlat


# --- what is known of footprints


def keys_of(ids: Iterable[str]) -> NDArray[np.int64]:
    """The row and column of ids such as `r12c7`, as one number that sorts like the footprints of a scene."""
    pairs = [name[1:].split("c") for name in ids]
    return np.array([(int(row) << 32) | int(col) for row, col in pairs], np.int64)


@dataclass(frozen=True, eq=False)
class Nodes:
    """Numbers of n footprints: a struct of arrays of length n."""

    view: NDArray[np.int32]
    """Place of its scene among the views."""
    key: NDArray[np.int64]
    """See `keys_of`."""
    cut: NDArray[np.bool_]
    """Whether its scene's edge may cut it."""
    merit: NDArray[np.float64]
    """By what the better view is chosen; more is better."""
    area: NDArray[np.float64]
    """Square metres."""
    confidence: NDArray[np.float64]
    least: NDArray[np.float64]
    """Confidence of the least confident pixel; NaN where it is not told."""
    touches: NDArray[np.bool_]
    at_edge: NDArray[np.int8]
    """1 if it touches its scene's edge, 0 if not, -1 where it is not told."""
    bounds: NDArray[np.float64]
    """(n, 4), in the layer's CRS."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.view)

    def select(self, index: Any) -> Self:
        """Those that a mask or an array of places picks."""
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})

    def together(self, members: list[int]) -> dict[str, Any]:
        """What some of them say of themselves as one."""
        weights, edge = self.area[members], self.at_edge[members]
        confidence = float(np.average(self.confidence[members], weights=np.maximum(weights, 1e-9)))
        return {
            "confidence": round(confidence, 4),
            "confidence_min": float(self.least[members].min()),
            "edge_sharpness": math.nan,
            "touches_nodata": bool(self.touches[members].any()),
            "touches_edge": True if edge.max() > 0 else None if edge.min() < 0 else False,
        }

    def find(self, view: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of a scene's footprints among these, which are sorted by scene and key; -1 for those not here."""
        low, high = np.searchsorted(self.view, [view, view + 1])
        place = low + np.searchsorted(self.key[low:high], keys)
        found = place < high
        found[found] = self.key[place[found]] == keys[found]
        return np.where(found, place, -1)


@dataclass(frozen=True, eq=False)
class Pieces(Nodes):
    """Footprints with their outlines."""

    label: NDArray[np.object_]
    """Name of the class."""
    geometry: NDArray[np.object_]
    """In the layer's CRS."""
    pixels: NDArray[np.object_]
    """In pixel coordinates of the scene."""

    @property
    def numbers(self) -> Nodes:
        """The same without outlines."""
        return Nodes(**{f.name: getattr(self, f.name) for f in fields(Nodes)})


@dataclass(frozen=True, eq=False)
class Pairs:
    """Footprints of different scenes that have to do with each other, the one of the earlier scene first."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    relation: NDArray[np.int8]
    share: NDArray[np.float64]
    """(n, 2): how much of the first, and of the second, they have in common."""

    def of(self, *relations: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs of some relations."""
        wanted = np.isin(self.relation, relations)
        return self.first[wanted], self.second[wanted]


def _pieces(number: int, view: View, frame: gpd.GeoDataFrame, crs: CRS, keep: Keep) -> Pieces:
    own = frame.geometry.to_numpy()
    geometry, pixels = transformed(own, view.crs, crs), to_pixels(own, view.geobox)
    touches = frame["touches_nodata"].to_numpy(bool)
    confidence = frame["confidence"].to_numpy(np.float64)
    when = -math.inf if view.datetime is None else view.datetime.timestamp()
    merit = confidence if keep == "confidence" else np.full(len(frame), when)
    return Pieces(
        view=np.full(len(frame), number, np.int32),
        key=keys_of(frame["id"]),
        cut=touches | view.at_edge(pixels),
        merit=view.depth(pixels) if keep == "edge" else merit,
        area=frame["area_m2"].to_numpy(np.float64),
        confidence=confidence,
        least=frame["confidence_min"].to_numpy(np.float64)
        if "confidence_min" in frame
        else np.full(len(frame), np.nan),
        touches=touches,
        at_edge=frame["touches_edge"].to_numpy(np.int8)
        if "touches_edge" in frame
        else np.full(len(frame), -1, np.int8),
        bounds=shapely.bounds(geometry),
        label=frame["class"].to_numpy(object),
        geometry=geometry,
        pixels=pixels,
    )


# --- a grid over all scenes

_Cell: TypeAlias = tuple[int, int]


class _Grid:
    """Reads footprints by place."""

    def __init__(self, views: tuple[View, ...], crs: CRS, cell: float) -> None:
        self.views, self.crs, self.cell = views, crs, cell
        outlines = np.array([shapely.bounds(view.outline(crs)) for view in views])
        self.reach = 2 * JOIN_WITHIN * max(map(self._side, views, outlines))
        self.bounds = outlines + self.reach * np.array([-1, -1, 1, 1])

    def _side(self, view: View, bounds: NDArray[np.float64]) -> float:
        """The longest side of a scene's pixels in the layer's CRS, at least."""
        affine = view.geobox.affine
        if view.crs == self.crs:
            return max(math.hypot(affine.a, affine.d), math.hypot(affine.b, affine.e))
        shrunk = max(0.01, math.cos(math.radians(min(90.0, np.abs(bounds[[1, 3]]).max()))))
        return 2 * view.side / METRES_PER_DEGREE / shrunk

    def shared(self) -> list[tuple[_Cell, list[int]]]:
        """Cells that two scenes reach at least, and which do."""
        reached: defaultdict[_Cell, list[int]] = defaultdict(list)
        for number, bounds in enumerate(self.bounds):
            west, south, east, north = np.floor(bounds / self.cell).astype(int)
            for place in np.ndindex(east - west + 1, north - south + 1):
                reached[west + place[0], south + place[1]].append(number)
        return sorted((cell, numbers) for cell, numbers in reached.items() if len(numbers) > 1)

    def cell_of(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n, 2): the cell of each point (n, 2)."""
        return np.floor(points / self.cell).astype(np.int64)

    def box(self, cell: _Cell) -> NDArray[np.float64]:
        """West, south, east, north of a cell."""
        return np.array([*cell, cell[0] + 1, cell[1] + 1]) * self.cell

    def reaching(self, bounds: NDArray[np.float64]) -> list[int]:
        """The scenes whose footprints may lie in bounds."""
        apart = (self.bounds[:, :2] > bounds[2:]).any(1) | (self.bounds[:, 2:] < bounds[:2]).any(1)
        return [int(number) for number in np.flatnonzero(~apart)]

    def read(self, bounds: NDArray[np.float64], numbers: Iterable[int], keep: Keep) -> Pieces:
        """Footprints that meet bounds in the layer's CRS, widened by what a border may be wide; by scene and key."""
        margin = 2 * self.reach + 1e-3 * float((bounds[2:] - bounds[:2]).max())
        wide = bounds + margin * np.array([-1, -1, 1, 1])
        parts = []
        for number in numbers:
            view = self.views[number]
            around = shapely.segmentize(shapely.box(*wide), float((wide[2:] - wide[:2]).max()) / 16)
            own = shapely.bounds(transformed(np.array([around]), self.crs, view.crs)[0])
            west, south, east, north = map(float, own)
            frames = view.results.footprints((west, south, east, north))
            parts += [_pieces(number, view, frame, self.crs, keep) for frame in frames]
        return Pieces.concatenate(parts)


# --- first step: comparing


def _compare(grid: _Grid, how: Merge, observe: Observe) -> tuple[Nodes, Pairs]:
    """All footprints that have a partner in another scene, by scene and key, and the pairs."""
    cells = grid.shared()
    found: list[_Found] = []
    for done, (cell, numbers) in enumerate(cells):
        observe("comparing", done, len(cells))
        pieces = grid.read(grid.box(cell), numbers, how.keep)
        first, second = _candidates(grid, cell, pieces)
        relation, share = _relations(grid, pieces, first, second, how.overlap)
        related = relation >= 0
        one, other = (pieces.numbers.select(side[related]) for side in (first, second))
        found.append((one, other, relation[related], share[related]))
    observe("comparing", len(cells), len(cells))
    return _collect(found)


_Found: TypeAlias = tuple[Nodes, Nodes, "NDArray[np.int8]", "NDArray[np.float64]"]


def _collect(found: Sequence[_Found]) -> tuple[Nodes, Pairs]:
    if not found:
        empty = np.zeros(0, np.int64)
        none, false, edge = np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int8)
        nodes = Nodes(empty.astype(np.int32), empty, false, none, none, none, none, false, edge, np.zeros((0, 4)))
        return nodes, Pairs(empty, empty, np.zeros(0, np.int8), np.zeros((0, 2)))
    every = Nodes.concatenate([*(first for first, *_ in found), *(second for _, second, *_ in found)])
    names = np.empty(len(every), [("view", np.int32), ("key", np.int64)])
    names["view"], names["key"] = every.view, every.key
    _, place, number = np.unique(names, return_index=True, return_inverse=True)
    half = len(every) // 2
    relation, share = (np.concatenate([each[column] for each in found]) for column in (2, 3))
    order = np.lexsort((number[half:], number[:half]))
    return every.select(place), Pairs(number[:half][order], number[half:][order], relation[order], share[order])


def _candidates(grid: _Grid, cell: _Cell, pieces: Pieces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of different scenes that touch or nearly do, and that are this cell's: so each pair comes up once.

    Theirs is the cell of a point of the first one that is nearest to the second. Both are within reach of it.
    """
    wide = pieces.bounds + grid.reach * np.array([-1, -1, 1, 1])
    first, second = shapely.STRtree(pieces.geometry).query(shapely.box(*wide.T))
    other = pieces.view[first] < pieces.view[second]
    first, second = first[other], second[other]
    line = shapely.shortest_line(pieces.geometry[first], pieces.geometry[second])
    here = (grid.cell_of(shapely.get_coordinates(shapely.get_point(line, 0))) == cell).all(1)
    here &= shapely.length(line) <= grid.reach
    return first[here], second[here]


def _relations(
    grid: _Grid, pieces: Pieces, first: NDArray[np.int64], second: NDArray[np.int64], overlap: float
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """How the footprints of each pair stand to each other, -1 for not at all; and what of each both have in common."""
    geometry, area = pieces.geometry, shapely.area(pieces.geometry)
    common = shapely.area(shapely.intersection(geometry[first], geometry[second]))
    relation = np.full(len(first), -1, np.int8)
    for side in (first, second):
        per_unit = shapely.area(pieces.pixels[side]) / area[side]
        relation[common * per_unit > LEAST_PIXELS] = OVERLAPPING
    relation[(relation == OVERLAPPING) & (common >= overlap * np.minimum(area[first], area[second]))] = MATCHING
    alike = pieces.cut[first] & pieces.cut[second] & (pieces.label[first] == pieces.label[second])
    for pair in np.flatnonzero(alike):
        a, b = first[pair], second[pair]
        views = grid.views[pieces.view[a]], grid.views[pieces.view[b]]
        behind = goes_on(pieces.pixels[a], pieces.pixels[b], views, alike=relation[pair] == MATCHING)
        if all(behind):
            relation[pair] = JOINED
        elif any(behind) and relation[pair] == MATCHING:
            relation[pair] = FIRST_IS_PART if behind[0] else SECOND_IS_PART
    return relation, common[:, None] / np.stack([area[first], area[second]], axis=1)


# --- second step: deciding


@dataclass(frozen=True, eq=False)
class Verdict:
    """What becomes of n footprints that have partners; those that are kept make units, one for each of the layer's."""

    kept: NDArray[np.bool_]
    """(n,)."""
    unit: NDArray[np.int64]
    """(n,): the number of each one's unit; -1 if it is not kept."""
    leads: NDArray[np.bool_]
    """(n,): whether its unit has its name."""
    rank: NDArray[np.int64]
    """(units,): that of the best piece."""
    views: NDArray[np.int64]
    """(units,): how many scenes saw it or a piece of it."""


def decide(nodes: Nodes, pairs: Pairs, overlap: float) -> Verdict:
    """Keep the best view of each, and put pieces together."""
    place = ranks(nodes, pairs)
    kept = _suppress(place, pairs, overlap)
    first, second = pairs.of(JOINED)
    both = kept[first] & kept[second]
    number = connect(len(nodes), first[both], second[both])
    unit = np.full(len(nodes), -1, np.int64)
    _, unit[kept] = np.unique(number[kept], return_inverse=True)
    units = int(kept.sum() and unit.max() + 1)
    rank = np.full(units, len(nodes), np.int64)
    np.minimum.at(rank, unit[kept], place[kept])
    leads = np.zeros(len(nodes), bool)
    largest = np.lexsort((place, -nodes.area))
    largest = largest[kept[largest]]
    leads[largest[np.unique(unit[largest], return_index=True)[1]]] = True
    return Verdict(kept, unit, leads, rank, _views(nodes, pairs, unit, units))


def ranks(nodes: Nodes, pairs: Pairs) -> NDArray[np.int64]:
    """(n,): each one's place if the best come first.

    Whole ones before those that an edge cuts, those before what is only a part of them, and then by merit, scene and
    place in it.
    """
    part, whole = (
        np.concatenate(sides) for sides in zip(pairs.of(FIRST_IS_PART), pairs.of(SECOND_IS_PART)[::-1], strict=True)
    )
    depth = np.zeros(len(nodes), np.int64)
    for _ in range(DEEPEST):
        np.maximum.at(depth, part, depth[whole] + 1)
    place = np.empty(len(nodes), np.int64)
    place[np.lexsort((nodes.key, nodes.view, -nodes.merit, depth, nodes.cut))] = np.arange(len(nodes))
    return place


def _suppress(rank: NDArray[np.int64], pairs: Pairs, overlap: float) -> NDArray[np.bool_]:
    """(n,): greedily, in order of rank: whether those that match it and are kept leave enough of each one.

    One that is left out is there all the same, by that share at least: a shed does not stand for the house around it.
    """
    matches: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    alike = np.isin(pairs.relation, ALIKE)
    for a, b, shares in zip(
        pairs.first[alike].tolist(), pairs.second[alike].tolist(), pairs.share[alike].tolist(), strict=True
    ):
        matches[a].append((b, shares[0]))
        matches[b].append((a, shares[1]))
    kept = np.ones(len(rank), bool)
    for node in sorted(matches, key=lambda node: rank[node]):
        covered = sum(share for other, share in matches[node] if kept[other] and rank[other] < rank[node])
        kept[node] = covered < overlap - ROUNDING
    return kept


def _views(nodes: Nodes, pairs: Pairs, unit: NDArray[np.int64], units: int) -> NDArray[np.int64]:
    """(units,): the scenes of a unit's pieces and of all that match one of them."""
    kept = unit >= 0
    first, second = pairs.of(*ALIKE)
    whose = np.concatenate([unit[kept], unit[first], unit[second]])
    which = np.concatenate([nodes.view[kept], nodes.view[second], nodes.view[first]])
    seen = np.unique(np.stack([whose, which])[:, whose >= 0], axis=1)
    return np.bincount(seen[0], minlength=units)


# --- third step: outlines that change


class Changes:
    """Outlines and numbers that change: outlines in a file, numbers by unit."""

    def __init__(self, units: int, file: IO[bytes]) -> None:
        """Of so many units, with an empty file."""
        self._file = file
        self.vanished = np.zeros(units, bool)
        self._place = np.full((units, 2), -1, np.int64)
        self._values: dict[int, dict[str, Any]] = {}

    def put(self, unit: int, geometry: Any, values: dict[str, Any]) -> None:
        """The outline of a unit and what of it is `CHANGING`."""
        encoded = shapely.to_wkb(geometry)
        self._place[unit] = self._file.seek(0, 2), len(encoded)
        self._file.write(encoded)
        self._values[unit] = values

    def of(self, unit: int) -> tuple[Any, dict[str, Any]] | None:
        """What was put, or None."""
        start, length = self._place[unit].tolist()
        if start < 0:
            return None
        self._file.seek(start)
        return shapely.from_wkb(self._file.read(length)), self._values[unit]


def _reshape(
    grid: _Grid, how: Merge, nodes: Nodes, pairs: Pairs, verdict: Verdict, changes: Changes, observe: Observe
) -> None:
    """Join what borders cut, and take from each footprint what better ones cover."""
    units = _Units(nodes, pairs, verdict)
    batches = _batches(grid, nodes, verdict, units.changing())
    for done, batch in enumerate(batches):
        observe("joining", done, len(batches))
        needed = sorted(set(batch).union(*(units.better[unit] for unit in batch)))
        bounds = nodes.bounds[[node for unit in needed for node in units.members[unit]]]
        around = np.concatenate([bounds[:, :2].min(0), bounds[:, 2:].max(0)])
        pieces = grid.read(around, grid.reaching(around), how.keep)
        shapes = _Shapes(grid, pieces, nodes, verdict, units)
        for unit in batch:
            shapes.put(unit, changes)
    observe("joining", len(batches), len(batches))


def _batches(grid: _Grid, nodes: Nodes, verdict: Verdict, units: list[int]) -> list[list[int]]:
    """Units that are near each other, a cell's together."""
    batches: defaultdict[_Cell, list[int]] = defaultdict(list)
    lead = np.empty(len(verdict.rank), np.int64)
    lead[verdict.unit[verdict.leads]] = np.flatnonzero(verdict.leads)
    for unit, (x, y) in zip(units, grid.cell_of(nodes.bounds[lead[units], :2]).tolist(), strict=True):
        batches[x, y].append(unit)
    return [batches[cell] for cell in sorted(batches)]


@dataclass
class _Units:
    """Which footprints are in a unit, and which units take ground from it."""

    nodes: Nodes
    pairs: Pairs
    verdict: Verdict
    members: defaultdict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    better: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    joints: defaultdict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Pairs of pieces that are put together."""

    def __post_init__(self) -> None:
        unit, rank = self.verdict.unit, self.verdict.rank
        for a, b, relation in zip(self.pairs.first, self.pairs.second, self.pairs.relation, strict=True):
            one, other = int(unit[a]), int(unit[b])
            if min(one, other) >= 0 and one != other:
                better, worse = sorted((one, other), key=lambda number: rank[number])
                self.better[worse].add(better)
            elif one >= 0 and one == other and relation == JOINED:
                self.joints[one].append((int(a), int(b)))
        wanted = np.zeros(len(rank) + 1, bool)  # the last one is for those of no unit
        wanted[[*self.joints, *self.better, *(unit for units in self.better.values() for unit in units)]] = True
        for node in np.flatnonzero(wanted[unit]).tolist():
            self.members[int(unit[node])].append(node)

    def changing(self) -> list[int]:
        """Units that are not one footprint as it was."""
        return sorted({*self.better, *self.joints})


class _Shapes:
    """Outlines of units, from the footprints of a part of the ground."""

    def __init__(self, grid: _Grid, pieces: Pieces, nodes: Nodes, verdict: Verdict, units: _Units) -> None:
        self._grid, self._nodes, self._verdict, self._units = grid, nodes, verdict, units
        node = np.full(len(pieces), -1, np.int64)
        for number in np.unique(pieces.view):
            own = pieces.view == number
            node[own] = nodes.find(int(number), pieces.key[own])
        stays = (node < 0) | verdict.kept[node]
        self._pieces, self._node = pieces.select(stays), node[stays]
        self._place = {int(number): place for place, number in enumerate(self._node) if number >= 0}
        self._tree = shapely.STRtree(self._pieces.geometry)
        self._joined: dict[int, Any] = {}

    def put(self, unit: int, changes: Changes) -> None:
        """Enter a unit's outline and numbers, or that nothing is left of it."""
        members = self._units.members[unit]
        view = self._view(self._lead(unit))
        whole = self._outline(unit)
        better = sorted(self._units.better[unit], key=lambda number: int(self._verdict.rank[number]))
        for other in better:
            shape = self._to_pixels(self._ground(other), view)
            whole = shapely.difference(whole, shape, grid_size=LATTICE)
        parts = shapely.get_parts(np.array([polygons_of(whole)]))
        if len(parts):
            parts = parts[measure(to_world(parts, view.geobox), view.geobox)[0] >= view.min_area]
        if not len(parts):
            changes.vanished[unit] = True
            return
        outline = parts[0] if len(parts) == 1 else shapely.multipolygons(parts)
        # where rings begin would tell in which order pieces were joined
        world = shapely.orient_polygons(shapely.normalize(to_world(np.array([outline]), view.geobox)))
        shape = {name: value for name, (value,) in shape_of(world, view.geobox)[1].items()}
        ground = transformed(world, view.crs, self._grid.crs)[0]
        changes.put(unit, ground, {**shape, **self._nodes.together(members), "regularised": False})

    def _lead(self, unit: int) -> int:
        return next(node for node in self._units.members[unit] if self._verdict.leads[node])

    def _view(self, node: int) -> View:
        return self._grid.views[int(self._nodes.view[node])]

    def _ground(self, unit: int) -> Any:
        """What a unit covers, in the layer's CRS, before better ones take some of it."""
        members = self._units.members[unit]
        if len(members) == 1:
            return self._pieces.geometry[self._place[members[0]]]
        view = self._view(self._lead(unit))
        return transformed(to_world(np.array([self._outline(unit)]), view.geobox), view.crs, self._grid.crs)[0]

    def _to_pixels(self, ground: Any, view: View) -> Any:
        return to_pixels(transformed(np.array([ground]), self._grid.crs, view.crs), view.geobox)[0]

    def _outline(self, unit: int) -> Any:
        """The same in pixel coordinates of the scene that the unit is named after."""
        if unit not in self._joined:
            lead = self._lead(unit)
            pieces = [self._on(node, lead) for node in self._units.members[unit]]
            if len(pieces) > 1:
                pieces += self._bridges(unit, lead)
            self._joined[unit] = polygons_of(shapely.union_all(pieces, grid_size=LATTICE))
        return self._joined[unit]

    def _on(self, node: int, lead: int) -> Any:
        """A footprint in pixel coordinates of another's scene."""
        own = self._pieces.pixels[self._place[node]]
        return on_grid(np.array([own]), self._view(node), self._view(lead))[0]

    def _bridges(self, unit: int, lead: int) -> list[Any]:
        """What fills the gaps along a unit's borders, without the ground of others."""
        view, found = self._view(lead), []
        for gap in self._gaps(unit):
            rest = self._to_pixels(gap, view)
            for other in self._others(unit, gap):
                rest = shapely.difference(rest, self._to_pixels(other, view))
            found.append(rest)
        return found

    def _gaps(self, unit: int) -> list[Any]:
        """What lies between a unit's pieces, in the layer's CRS."""
        found = []
        for first, second in self._units.joints[unit]:
            if first in self._place and second in self._place:
                views = self._view(first), self._view(second)
                a, b = (self._pieces.pixels[self._place[node]] for node in (first, second))
                gap = to_world(np.array([bridge(a, b, views)]), views[0].geobox)
                found.append(transformed(gap, views[0].crs, self._grid.crs)[0])
        return [gap for gap in found if not gap.is_empty]

    def _others(self, unit: int, gap: Any) -> Iterator[Any]:
        """Footprints of others in a gap, and the gaps of better units, in the layer's CRS."""
        west, south, east, north = shapely.bounds(gap)
        reach = self._grid.reach
        near = np.sort(self._tree.query(shapely.box(west - reach, south - reach, east + reach, north + reach)))
        numbers = self._verdict.unit[self._node[near]]
        units = np.where(self._node[near] >= 0, numbers, -1) if len(numbers) else numbers
        yield from self._pieces.geometry[near[units != unit]]
        for other in sorted({int(number) for number in units if number >= 0 and number != unit}):
            if self._verdict.rank[other] < self._verdict.rank[unit]:
                yield from self._gaps(other)
