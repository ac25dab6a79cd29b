"""Which objects of one date are those of another, and what became of them: from outlines and numbers alone.

Outlines are never in quite the same place twice, so whatever is asked of two of them is asked with a tolerance: an
object lies in another as far as it does not leave the other's outline grown by the tolerance. Two objects are a
**couple** if each lies in the other for the most part. Where there is a choice, couples are formed one to one so that
they are as good as they can be all together (an assignment; Kuhn 1955): in a terrace that lies aside by half a house,
the best choice of each would leave one over at either end. What has no partner then is **linked** to the object that
most of its ground is in, without any tolerance, if there is one: so the parts of a house that was split are all linked
to it, one that was doubled is found in it, and a shed beside a house stays a shed. What hangs together is one event.
All of it is the same with the dates exchanged, if the names of the statuses are, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIRROR: Final = {
    "unchanged": "unchanged",
    "new": "demolished",
    "demolished": "new",
    "enlarged": "reduced",
    "reduced": "enlarged",
    "reshaped": "reshaped",
    "split": "merged",
    "merged": "split",
    "regrouped": "regrouped",
    "uncertain": "uncertain",
    "not_compared": "not_compared",
}
"""Every status, and what it is when the dates are exchanged."""

QUARTER: Final = 8
"""Segments of a quarter of a circle, where an outline is grown round a corner."""

IOU_WEIGHT, TIE_WEIGHT = 1e-4, 1e-9
"""What decides between couples whose shares are equal, and between those whose IoU is, too."""

DIGITS: Final = 6
"""To how many of them shares are told apart, so that no last bit decides between equals."""

TOGETHER: Final = ";"
"""Between the ids of several objects of one event."""


@dataclass(frozen=True)
class Rules:
    """What counts as the same, and as a change."""

    tolerance: float
    """Metres by which outlines may be off."""
    min_confidence: float = 0.5
    """Below it, what is new or gone is uncertain."""
    same: float = 0.5
    """Share of an object that must lie in another if they are to be linked, and of each in the other for a couple."""
    significant: float = 0.1
    """Share of the smaller of two objects that must lie beyond the other's tolerance if the other has another shape."""
    seen: float = 0.95
    """Share of an object's ground that both dates must see, with the tolerance around it, if it is to be compared."""

    def __post_init__(self) -> None:
        """Refuse what no object or every object fulfils."""
        shares = (self.min_confidence, self.same, self.significant, self.seen)
        if not 0 <= self.tolerance < math.inf or not all(0 <= share <= 1 for share in shares):
            msg = f"a tolerance in metres must be finite and not below 0, and shares from 0 to 1, got {self}"
            raise ValueError(msg)


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one date, and what both dates say about their ground: a struct of arrays of length n."""

    id: NDArray[np.object_]
    geometry: NDArray[np.object_]
    """Valid polygons in metres of a projection of equal area, the same for both dates."""
    seen: NDArray[np.float64]
    """Share of the ground that both dates see, as `Rules.seen` has it."""
    present: NDArray[np.float64]
    """Mean probability over the ground, at its own date, that an object is there."""
    absent: NDArray[np.float64]
    """Mean probability over the ground, at the other date, that none is there."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.id)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Objects of both dates that come within the tolerance of each other: a struct of arrays of length m."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    shared: NDArray[np.float64]
    """Square metres of the ground of both."""
    before_in: NDArray[np.float64]
    after_in: NDArray[np.float64]
    """Share of the one that lies in the other, with the tolerance."""
    linked: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Events:
    """What became of the objects: those of one event have its number; the table has a row for each."""

    table: pd.DataFrame
    """Columns status, id_before, id_after (several ids with `;` between, None for none), area_before_m2,
    area_after_m2, iou, confidence (NaN where nothing is compared)."""
    of_before: NDArray[np.int64]
    of_after: NDArray[np.int64]
    """(objects,) the row of each object."""


def compare(before: Objects, after: Objects, rules: Rules) -> Events:
    """What became of the objects of one date, each in exactly one event.

    Events with objects after come first, in the order of the first of them, then the others in the order of those
    before. The areas of an event are those of its objects, to a hundredth of a square metre.
    """
    pairs = match(before, after, rules)
    of_before, of_after, count = _number(pairs, len(before), len(after))
    event = _Tally(before, after, of_before, of_after, count)
    status = _status(event, pairs, rules)
    together = of_before[pairs.before] == of_after[pairs.after]
    shared = np.bincount(of_before[pairs.before], pairs.shared * together, count)
    either = event.exact_before + event.exact_after - shared
    confidence = np.where(
        event.n_before == 0,
        event.present_after * event.absent_after,
        np.where(event.n_after == 0, event.present_before * event.absent_before, event.both),
    )
    doubtful = np.isin(status, ["new", "demolished"]) & (confidence.round(4) < rules.min_confidence)
    status[doubtful] = "uncertain"
    table = pd.DataFrame(
        {
            "status": pd.Series(status, dtype=str),
            "id_before": _ids(before.id, of_before, count),
            "id_after": _ids(after.id, of_after, count),
            "area_before_m2": event.area_before,
            "area_after_m2": event.area_after,
            "iou": np.clip(shared / np.where(either > 0, either, 1), 0, 1).round(4),
            "confidence": np.where(status == "not_compared", np.nan, confidence.round(4)),
        }
    )
    return Events(table, of_before, of_after)


def match_events(before: Objects, after: Objects, rules: Rules) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The event of each object of both dates, by number: what hangs together has one."""
    of_before, of_after, _ = _number(match(before, after, rules), len(before), len(after))
    return of_before, of_after


def match(before: Objects, after: Objects, rules: Rules) -> Pairs:
    """The pairs of objects that come within the tolerance of each other, and which of them are linked."""
    b, a = shapely.STRtree(after.geometry).query(before.geometry, predicate="dwithin", distance=rules.tolerance)
    old, new = before.geometry, after.geometry
    area_old, area_new = shapely.area(old)[b], shapely.area(new)[a]
    shared = shapely.area(shapely.intersection(old[b], new[a]))
    before_in = _share(shapely.area(shapely.intersection(old[b], _grown(new, rules.tolerance)[a])), area_old)
    after_in = _share(shapely.area(shapely.intersection(new[a], _grown(old, rules.tolerance)[b])), area_new)
    part_old, part_new = _share(shared, area_old), _share(shared, area_new)
    may_be = np.minimum(before_in, after_in) >= rules.same
    iou = _share(shared, area_old + area_new - shared)
    merit = before_in + after_in - 2 * rules.same + IOU_WEIGHT * iou + TIE_WEIGHT * _tie(old, new, b, a)
    couples = np.zeros(len(b), bool)
    couples[may_be] = _couples(b[may_be], a[may_be], merit[may_be])
    linked = couples.copy()
    for owner, part in ((b, part_old), (a, part_new)):
        alone = ~np.isin(owner, owner[couples])
        linked |= alone & (part >= rules.same) & _is_most(part, owner)
    return Pairs(b, a, shared, before_in, after_in, linked)


def _couples(before: NDArray[np.int64], after: NDArray[np.int64], merit: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pairs are couples: one to one, of the largest sum of merits, each from 0 to 3.

    Where it is not plain, as an assignment in a sparse graph, each object having a dummy that takes it if nobody does;
    the dummies of a couple take each other.
    """
    couples = (np.bincount(before)[before] == 1) & (np.bincount(after)[after] == 1) if len(merit) else merit > 0
    open_ = np.flatnonzero(~couples)
    if not len(open_):
        return couples
    olds, i = np.unique(before[open_], return_inverse=True)
    news, j = np.unique(after[open_], return_inverse=True)
    n, m = len(olds), len(news)
    rows = np.concatenate([i, n + j, np.arange(n), n + np.arange(m)])
    cols = np.concatenate([j, m + i, m + np.arange(n), np.arange(m)])
    pairs, singles = np.ones(len(open_)), np.full(n + m, 4.5)  # a couple's 8 - merit and 1, or twice 4.5
    cost = coo_array((np.concatenate([8 - merit[open_], pairs, singles]), (rows, cols)), shape=(n + m, n + m)).tocsr()
    taken = min_weight_full_bipartite_matching(cost)[1]
    couples[open_] = taken[i] == j
    return couples


def _tie(
    old: NDArray[np.object_], new: NDArray[np.object_], before: NDArray[np.int64], after: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A number from 0 to 1 for each pair, from where both are: tells equals apart, whichever date comes first."""
    (x_old, y_old), (x_new, y_new) = (shapely.get_coordinates(shapely.centroid(each)).round(3).T for each in (old, new))
    tie: NDArray[np.float64] = np.sin(
        12.9898 * (x_old[before] + x_new[after]) + 78.233 * (y_old[before] + y_new[after])
    )
    return (tie + 1) / 2


def _grown(polygons: NDArray[np.object_], by: float) -> NDArray[np.object_]:
    """Polygons grown by a distance at least: round corners have segments outside of the circle, not inside."""
    half = 1.5 * math.pi / (4 * QUARTER)  # of an angle between corners, which GEOS stretches by half at most
    radius = by / math.cos(half)
    grown: NDArray[np.object_] = shapely.buffer(polygons, radius, quad_segs=QUARTER) if by else polygons
    return grown


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    share: NDArray[np.float64] = np.clip(part / np.where(whole > 0, whole, 1), 0, 1).round(DIGITS)
    return share


def _is_most(part: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs have their owner's largest part; equals all have."""
    most = np.zeros(int(owner.max(initial=-1)) + 1)
    np.maximum.at(most, owner, part)
    is_most: NDArray[np.bool_] = part == most[owner]
    return is_most


def _number(pairs: Pairs, n_before: int, n_after: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """The event of each object, numbered in the order of the table, and how many there are."""
    every = n_before + n_after
    if not every:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0
    ends = pairs.after[pairs.linked], n_after + pairs.before[pairs.linked]
    graph = coo_array((np.ones(len(ends[0]), bool), ends), shape=(every, every))
    count, component = connected_components(graph, directed=False)
    first = np.full(count, every)
    np.minimum.at(first, component, np.arange(every))
    place = np.empty(count, np.int64)
    place[np.argsort(first)] = np.arange(count)
    number = place[component]
    return number[n_after:], number[:n_after], int(count)


class _Tally:
    """Sums over the objects of each event."""

    def __init__(
        self, before: Objects, after: Objects, of_before: NDArray[np.int64], of_after: NDArray[np.int64], count: int
    ) -> None:
        self.of_before = of_before
        self.n_before, self.n_after = (np.bincount(of, minlength=count) for of in (of_before, of_after))
        exact_before, exact_after = shapely.area(before.geometry), shapely.area(after.geometry)
        self.exact_before = np.bincount(of_before, exact_before, count)
        self.exact_after = np.bincount(of_after, exact_after, count)
        self.area_before = _hundredths(of_before, exact_before, count)
        self.area_after = _hundredths(of_after, exact_after, count)

        def mean(of: NDArray[np.int64], area: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.bincount(of, value * area, count) / np.maximum(np.bincount(of, area, count), 1e-12)

        self.present_before = mean(of_before, exact_before, before.present)
        self.present_after = mean(of_after, exact_after, after.present)
        self.absent_before = mean(of_before, exact_before, before.absent)
        self.absent_after = mean(of_after, exact_after, after.absent)
        self.both = self.present_before * self.present_after
        self.seen = np.ones(count)
        np.minimum.at(self.seen, of_before, before.seen)
        np.minimum.at(self.seen, of_after, after.seen)


def _hundredths(of: NDArray[np.int64], area: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Sums of areas that are each rounded to a hundredth, so that sums of sums are exact to one."""
    return (np.bincount(of, np.rint(area * 100), count) / 100).round(2)


def _status(event: _Tally, pairs: Pairs, rules: Rules) -> NDArray[np.object_]:
    """The status of each event, before doubts about what is new or gone."""
    grown, shrunk = _beyond(event, pairs, rules)
    one, other = event.n_before, event.n_after
    cases = [
        (one == 0, "new"),
        (other == 0, "demolished"),
        ((one == 1) & (other > 1), "split"),
        ((one > 1) & (other == 1), "merged"),
        (one > 1, "regrouped"),
        (grown & shrunk, "reshaped"),
        (grown, "enlarged"),
        (shrunk, "reduced"),
    ]
    status = np.select([case for case, _ in cases], [name for _, name in cases], "unchanged").astype(object)
    status[(status != "unchanged") & (event.seen < rules.seen)] = "not_compared"
    return status


def _beyond(event: _Tally, pairs: Pairs, rules: Rules) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each event, whether what is linked goes beyond the other by what is significant: after, and before."""
    linked, number = np.flatnonzero(pairs.linked), event.of_before[pairs.before[pairs.linked]]
    least = rules.significant * np.minimum(event.exact_before, event.exact_after)[number]
    grown, shrunk = np.zeros(len(event.n_before), bool), np.zeros(len(event.n_before), bool)
    for found, lies_in, area in (
        (grown, pairs.after_in, event.exact_after),
        (shrunk, pairs.before_in, event.exact_before),
    ):
        beyond = (1 - lies_in[linked]) * area[number]
        found[number[(beyond >= least) & (beyond > 0)]] = True
    return grown, shrunk


def _ids(ids: NDArray[np.object_], of: NDArray[np.int64], count: int) -> pd.Series:
    """The ids of each event's objects as one text, None where there is none."""
    joined = pd.Series(ids, dtype=object).groupby(of).agg(TOGETHER.join)
    return joined.reindex(range(count)).astype(object).where(lambda text: text.notna(), None)


def summary(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Count and square metres of each status that there is, and of all.

    What was there before plus the differences of all statuses is what is there after, to a hundredth of a square metre.
    """
    found = {status: table[table["status"] == status] for status in MIRROR if (table["status"] == status).any()}
    return {name: _sums(rows) for name, rows in (found | {"all": table}).items()}


def _sums(rows: pd.DataFrame) -> dict[str, float]:
    """Whole hundredths are added, so that nothing is lost to rounding."""
    before, after = (int(np.rint(rows[f"area_{when}_m2"] * 100).sum()) for when in ("before", "after"))
    return {
        "count": len(rows),
        "area_before_m2": before / 100,
        "area_after_m2": after / 100,
        "difference_m2": (after - before) / 100,
    }
