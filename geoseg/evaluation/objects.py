"""How well objects were found: pairs of predicted and reference polygons, counted as detections.

Polygons are in metres of a projection of equal area, so that IoU means the same everywhere. One row is one object, of
however many parts. An object that does not count (its place is not compared) can still be a partner: a reference
that counts is found by it, and a prediction that counts is not a false alarm for lying on it (the "ignore" of COCO).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely

from geoseg.evaluation.pixels import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

AP_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""As COCO's own evaluation has them, to the last bit."""

RECALLS = np.linspace(0, 1, 101)
POLIS_AT_ONCE = 4096
"""Pairs whose vertices are held in memory as points."""

SAME = 1 - 1e-10
"""An IoU that counts as 1."""


@dataclass(frozen=True)
class ObjectScores:
    """How well the objects of one class were found."""

    name: str
    predicted: int
    reference: int
    """Objects that count."""
    matched: int
    """Reference objects that have their prediction: IoU above the threshold, one to one."""
    precision: float
    """matched / (matched + predictions without partner)."""
    recall: float
    """matched / reference."""
    f1: float
    ap50: float
    ap75: float
    """Average precision at IoU .50 and .75 (COCO; Lin et al. 2014): precision at 101 recalls."""
    ap: float
    """Mean of it at .50, .55 ... .95."""
    panoptic_quality: float
    """PQ = SQ x RQ (Kirillov et al. 2019), of pairs with IoU above .50."""
    segmentation_quality: float
    """SQ: mean IoU of the pairs."""
    recognition_quality: float
    """RQ: pairs / (pairs + half of those without partner on either side)."""
    count_error: float
    """predicted / reference - 1."""
    polis_m: float
    """Mean PoLiS distance of the matched pairs, metres (Avbelj et al. 2015)."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Predicted and reference objects that overlap: a struct of arrays of length m, and what is known of their ends."""

    predicted: NDArray[np.int64]
    reference: NDArray[np.int64]
    iou: NDArray[np.float64]
    confidence: NDArray[np.float64]
    """(predicted objects,)."""
    predicted_counts: NDArray[np.bool_]
    reference_counts: NDArray[np.bool_]


def object_scores(
    predicted: NDArray[np.object_],
    reference: NDArray[np.object_],
    confidence: NDArray[np.float64] | None = None,
    *,
    threshold: float = 0.5,
    predicted_counts: NDArray[np.bool_] | None = None,
    reference_counts: NDArray[np.bool_] | None = None,
    name: str = "",
) -> ObjectScores:
    """Scores of two arrays of shapely (Multi)Polygons in metres.

    `confidence` orders the predictions where the more certain goes first; without it, and among equals, all go at once
    (average precision has one point for each distinct confidence, so nothing depends on the order of a file; COCO takes
    equals as they come). `threshold` is for `matched`, precision, recall, F1 and PoLiS. The masks say which count, all
    if None. Invalid polygons are mended.
    """
    predicted, reference = _valid(predicted), _valid(reference)
    certain = np.ones(len(predicted)) if confidence is None else np.asarray(confidence, np.float64)
    counted = [
        np.ones(len(side), bool) if counts is None else counts
        for side, counts in ((predicted, predicted_counts), (reference, reference_counts))
    ]
    pairs = Pairs(*overlaps(predicted, reference), certain, *counted)
    found = match(pairs, threshold)
    half = match(pairs, 0.5)
    matched, alarms = _outcome(pairs, found)
    n_reference = int(pairs.reference_counts.sum())
    good, false = _outcome(pairs, half)
    quality = ratio(pairs.iou[half[good]].sum(), good.sum())
    recognition = ratio(good.sum(), (good.sum() + false.sum() + n_reference) / 2)
    ap = [average_precision(pairs, t) for t in AP_THRESHOLDS]
    kept = found[matched]
    distance = polis(predicted[pairs.predicted[kept]], reference[pairs.reference[kept]])
    return ObjectScores(
        name=name,
        predicted=int(pairs.predicted_counts.sum()),
        reference=n_reference,
        matched=int(matched.sum()),
        precision=ratio(matched.sum(), matched.sum() + alarms.sum()),
        recall=ratio(matched.sum(), n_reference),
        f1=ratio(2 * matched.sum(), matched.sum() + alarms.sum() + n_reference),
        ap50=ap[0],
        ap75=ap[len(ap) // 2],
        ap=float(np.mean(ap)),
        panoptic_quality=0.0 if recognition == 0 else quality * recognition,
        segmentation_quality=quality,
        recognition_quality=recognition,
        count_error=ratio(pairs.predicted_counts.sum(), n_reference) - 1,
        polis_m=float(distance.mean()) if len(distance) else math.nan,
    )


def _valid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    polygons = np.array(polygons, dtype=object)
    broken = ~shapely.is_valid(polygons)
    polygons[broken] = shapely.make_valid(polygons[broken], method="structure", keep_collapsed=False)
    return polygons


def overlaps(
    predicted: NDArray[np.object_], reference: NDArray[np.object_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Indices and IoU of all pairs of valid polygons that share some area."""
    p, r = shapely.STRtree(reference).query(predicted, predicate="intersects")
    shared = shapely.area(shapely.intersection(predicted[p], reference[r]))
    touching = shared > 0
    p, r, shared = p[touching], r[touching], shared[touching]
    either = shapely.area(predicted)[p] + shapely.area(reference)[r] - shared
    return p, r, shared / either


def match(pairs: Pairs, threshold: float, *, inclusive: bool = False) -> NDArray[np.int64]:
    """Which pairs are matches, one to one: IoU above the threshold (or, `inclusive`, at it).

    The more confident prediction chooses first, and takes the reference of the highest IoU that is left, those that
    count before the others (Lin et al. 2014, as in COCO's own evaluation). Where objects of one side do not overlap,
    a pair above 0.5 is the only one of its ends, and nothing is to be chosen (Kirillov et al. 2019).
    """
    low = min(threshold, SAME)
    kept = np.flatnonzero(pairs.iou >= low if inclusive else pairs.iou > low)
    p, r = pairs.predicted[kept], pairs.reference[kept]
    alone = (np.bincount(p)[p] == 1) & (np.bincount(r)[r] == 1) if len(kept) else np.zeros(0, bool)
    return np.sort(np.concatenate([kept[alone], _greedy(pairs, kept[~alone])]))


def _greedy(pairs: Pairs, kept: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs that come about when predictions choose one after the other."""
    p, r, iou = pairs.predicted[kept], pairs.reference[kept], pairs.iou[kept]
    best = np.zeros(len(pairs.confidence))
    np.maximum.at(best, p, iou)
    # of equal IoU the last reference, as COCO has it
    order = np.lexsort((-r, -iou, ~pairs.reference_counts[r], p, -best[p], -pairs.confidence[p]))
    taken_p: set[int] = set()
    taken_r: set[int] = set()
    matches = []
    for pair, one, other in zip(kept[order].tolist(), p[order].tolist(), r[order].tolist(), strict=True):
        if one not in taken_p and other not in taken_r:
            taken_p.add(one)
            taken_r.add(other)
            matches.append(pair)
    return np.array(matches, np.int64)


def _outcome(pairs: Pairs, matches: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the matches find a reference that counts, and which predictions (all of them) are false alarms."""
    alarm = pairs.predicted_counts.copy()
    alarm[pairs.predicted[matches]] = False
    return pairs.reference_counts[pairs.reference[matches]], alarm


def average_precision(pairs: Pairs, threshold: float) -> float:
    """Area under the precision-recall curve, from precision at 101 recalls (COCO; Lin et al. 2014).

    Predictions are taken in falling confidence; the precision at a recall is the highest at that recall or a higher
    one, and 0 at recalls that are never reached.
    """
    total = int(pairs.reference_counts.sum())
    if not total:
        return math.nan
    matches = match(pairs, threshold, inclusive=True)
    hit, alarm = _outcome(pairs, matches)
    right = np.zeros(len(alarm), bool)
    right[pairs.predicted[matches[hit]]] = True
    order = np.argsort(-pairs.confidence, kind="stable")
    order = order[(right | alarm)[order]]
    last = np.flatnonzero(np.diff(pairs.confidence[order], append=np.nan) != 0)
    true = np.cumsum(right[order])[last]
    precision = np.maximum.accumulate((true / (last + 1))[::-1])[::-1]
    place = np.searchsorted(true / total, RECALLS)
    return float(np.append(precision, 0.0)[place].mean())


def polis(predicted: NDArray[np.object_], reference: NDArray[np.object_]) -> NDArray[np.float64]:
    """(n,) PoLiS distances of n pairs of polygons (Avbelj, Mueller, Bamler 2015), in their unit.

    Half the mean distance of one's vertices to the other's outline, plus the same the other way round. Vertices and
    outlines of holes and of all parts count; a ring's last vertex is its first and counts once.
    """
    chunks = [slice(start, start + POLIS_AT_ONCE) for start in range(0, len(predicted), POLIS_AT_ONCE)]
    both = ((predicted[chunk], reference[chunk]) for chunk in chunks)
    return np.concatenate([np.zeros(0), *((_vertex_distance(p, r) + _vertex_distance(r, p)) / 2 for p, r in both)])


def _vertex_distance(polygons: NDArray[np.object_], others: NDArray[np.object_]) -> NDArray[np.float64]:
    """(n,) mean distance of each polygon's vertices to the other's outline."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    kept = np.diff(ring, append=-1) == 0  # all but the last of a ring
    xy, polygon = xy[kept], owner[part[ring[kept]]]
    outlines = shapely.boundary(others)
    distance = shapely.distance(outlines[polygon], shapely.points(xy))
    n = len(polygons)
    mean: NDArray[np.float64] = np.bincount(polygon, distance, n) / np.bincount(polygon, minlength=n)
    return mean
