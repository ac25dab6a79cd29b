"""How well outlines agree, in metres on the ground, from counts that add up over windows.

A class's boundary are its pixels that have a 4-neighbour of another class. What is not compared (nodata on either
side, ground outside the area of interest, what lies beyond the scene) makes no boundary: the object may go on there.
Distances are those between pixel centres, on a grid of the scene's ground resolution.

A distance longer than the ruler's cap counts as the cap. So a window needs to see only that far round its core, and the
counts of a scene do not depend on how it was cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import KDTree

from geoseg.evaluation.pixels import ratio

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.window import Window

STEPS = 4000
"""Steps of a histogram of distances, from 0 to the cap."""

HAIR = 1e-6
"""Share of a step by which all limits are moved: two ways of adding up one distance differ by less, so they agree."""

LARGE_SHARE = 0.95
"""The share of a boundary that is not farther away than its Hausdorff distance; the rest may be stray pixels."""


@dataclass(frozen=True)
class Ruler:
    """What is measured with: metres on the ground."""

    pixel: tuple[float, float]
    """From pixel to pixel down a column and along a row."""
    tolerance: float
    """How far a boundary may lie from the reference's and still be right; the width of the band of the boundary IoU."""
    cap: float
    """Longest distance that is told from longer ones."""

    def __post_init__(self) -> None:
        """Refuse lengths that measure nothing."""
        if not (min(self.pixel) > 0 and 0 < self.tolerance <= self.cap < math.inf):
            msg = f"a ruler needs pixels above 0 and 0 < tolerance <= cap, got {self}"
            raise ValueError(msg)

    @property
    def resolution(self) -> float:
        """Metres to which distances are told: every one is off by half of it at most."""
        return self.cap / STEPS

    @cached_property
    def margin(self) -> tuple[int, int]:
        """Rows, columns round a window's core that have a say in its counts."""
        return self._reach(self.cap)

    @cached_property
    def band_margin(self) -> tuple[int, int]:
        """The same, for the bands along boundaries alone."""
        return self._reach(self.tolerance)

    def _reach(self, length: float) -> tuple[int, int]:
        # one more for a boundary's neighbour, one more for what rounding does to the quotient
        return math.ceil(length / self.pixel[0]) + 2, math.ceil(length / self.pixel[1]) + 2


@dataclass(frozen=True, eq=False)
class BoundaryCounts:
    """Of one class in some pixels; those of disjoint pixels add up."""

    both: int
    """Pixels in the bands of prediction and reference."""
    either: int
    predicted: NDArray[np.int64]
    """(STEPS + 1,) boundary pixels of the prediction by their distance to the reference's, the last being the cap."""
    reference: NDArray[np.int64]
    """The other way round."""
    predicted_near: int
    """Boundary pixels of the prediction within the tolerance of the reference's."""
    reference_near: int

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        """Counts of both sets of pixels."""
        return BoundaryCounts(
            self.both + other.both,
            self.either + other.either,
            self.predicted + other.predicted,
            self.reference + other.reference,
            self.predicted_near + other.predicted_near,
            self.reference_near + other.reference_near,
        )


@dataclass(frozen=True)
class BoundaryScores:
    """How well the outlines of one class agree."""

    name: str
    iou: float
    """Boundary IoU (Cheng et al. 2021): IoU of the class's pixels within the tolerance of ground that is not it."""
    f1: float
    """Harmonic mean of precision and recall: BF score (Csurka et al. 2013), F measure (Perazzi et al. 2016)."""
    precision: float
    """Share of the predicted boundary within the tolerance of the reference's."""
    recall: float
    """Share of the reference's boundary within the tolerance of the predicted one."""
    assd_m: float
    """Average symmetric surface distance (Heimann et al. 2009): mean over both boundaries to the other, capped."""
    hd95_m: float
    """95 % Hausdorff distance (Huttenlocher et al. 1993): that share of each boundary is not farther from the other."""
    capped: float
    """Share of both boundaries that is at the cap or farther."""


def boundary_counts(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    compared: NDArray[np.bool_],
    core: Window,
    ruler: Ruler,
) -> BoundaryCounts:
    """Counts of the pixels of `core`, a window of these arrays (y, x), which show what is round it.

    The arrays reach the ruler's margin beyond the core, or to the end of the scene. Two masks of one class, and where
    they are compared at all.
    """
    found, true = _boundary(prediction, compared), _boundary(reference, compared)
    predicted, predicted_near = _distances(found, true, core, ruler)
    expected, reference_near = _distances(true, found, core, ruler)
    # where neither has a boundary in reach, there is no band
    p, r = (_band(mask, compared, core, ruler) for mask in (prediction, reference))
    both, either = int((p & r).sum()), int((p | r).sum())
    return BoundaryCounts(both, either, predicted, expected, predicted_near, reference_near)


def boundary_scores(counts: BoundaryCounts, ruler: Ruler, name: str = "") -> BoundaryScores:
    """The scores that counts amount to.

    Where one side has no boundary, the other's is all at the cap, and F1 is 0; where neither has, all is NaN.
    """
    sides = (counts.predicted, counts.reference)
    total = sum(int(side.sum()) for side in sides)
    precision = ratio(counts.predicted_near, counts.predicted.sum())
    recall = ratio(counts.reference_near, counts.reference.sum())
    one_sided = math.isnan(precision) != math.isnan(recall)
    f1 = 0.0 if one_sided or precision + recall == 0 else 2 * precision * recall / (precision + recall)
    steps = np.arange(STEPS + 1)
    return BoundaryScores(
        name=name,
        iou=ratio(counts.both, counts.either),
        f1=f1,
        precision=precision,
        recall=recall,
        assd_m=ratio(sum(float(steps @ side) for side in sides) * ruler.resolution, total),
        hd95_m=max((_percentile(side) * ruler.resolution for side in sides if side.any()), default=math.nan),
        capped=ratio(sum(int(side[-1]) for side in sides), total),
    )


def _percentile(histogram: NDArray[np.int64]) -> int:
    """The lowest step that `LARGE_SHARE` of the counts do not exceed (nearest rank)."""
    rank = math.ceil(LARGE_SHARE * int(histogram.sum()) - HAIR)
    return int(np.searchsorted(np.cumsum(histogram), rank))


def _boundary(mask: NDArray[np.bool_], compared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Compared pixels of a mask beside compared ones that are not of it."""
    inner, outer = mask & compared, ~mask & compared
    edge = np.zeros_like(mask)
    edge[1:] |= outer[:-1]
    edge[:-1] |= outer[1:]
    edge[:, 1:] |= outer[:, :-1]
    edge[:, :-1] |= outer[:, 1:]
    return inner & edge


def _distances(
    start: NDArray[np.bool_], end: NDArray[np.bool_], core: Window, ruler: Ruler
) -> tuple[NDArray[np.int64], int]:
    """Histogram of the distances from boundary pixels of the core to the nearest of others, and how many are near."""
    points = np.argwhere(start[core.slices]) + np.array([core.row_start, core.col_start])
    targets = np.argwhere(end)
    if not len(points) or not len(targets):
        return np.bincount(np.full(len(points), STEPS), minlength=STEPS + 1), 0
    tree = KDTree(targets * ruler.pixel, balanced_tree=False, compact_nodes=False)
    distance, _ = tree.query(points * ruler.pixel, distance_upper_bound=ruler.cap + ruler.resolution)
    near = int((distance <= ruler.tolerance + HAIR * ruler.resolution).sum())
    step = np.floor(np.minimum(distance, ruler.cap) / ruler.resolution + 0.5 + HAIR).astype(np.int64)
    return np.bincount(step, minlength=STEPS + 1), near


def _band(mask: NDArray[np.bool_], compared: NDArray[np.bool_], core: Window, ruler: Ruler) -> NDArray[np.bool_]:
    """Compared pixels of the core (y, x) that are of the mask and within the tolerance of one that is not."""
    (up, left), (down, right) = ruler.band_margin, mask.shape
    top, rows = max(core.row_start - up, 0), slice(max(core.row_start - up, 0), min(core.row_stop + up, down))
    side = max(core.col_start - left, 0), min(core.col_stop + left, right)
    outer = (~mask & compared)[rows, side[0] : side[1]]
    near = np.zeros(core.shape, bool)
    own = (mask & compared)[core.slices]
    if not outer.any() or not own.any():
        return near
    away = _along_rows(outer)[:, core.col_start - side[0] :][:, : core.shape[1]]
    for step in range(-(up - 2), up - 1):
        first, last = max(core.row_start + step, rows.start), min(core.row_stop + step, rows.stop)
        here = slice(first - step - core.row_start, last - step - core.row_start)
        if first < last:
            near[here] |= away[first - top : last - top] <= _half_width(step, ruler)
    return near & own


def _half_width(row: int, ruler: Ruler) -> int:
    """Pixels along a row, so many rows off, that are within the tolerance; -1 = none."""
    squared = (ruler.tolerance + HAIR * ruler.resolution) ** 2 - (row * ruler.pixel[0]) ** 2
    return math.floor(math.sqrt(squared) / ruler.pixel[1]) if squared >= 0 else -1


def _along_rows(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(y, x) pixels to the nearest one of the mask in its row; where there is none, more than any tolerance has."""
    far = np.int32(2**29)
    col = np.arange(mask.shape[1], dtype=np.int32)
    before = np.maximum.accumulate(np.where(mask, col, -far), axis=1)
    behind = np.minimum.accumulate(np.where(mask, col, 2 * far)[:, ::-1], axis=1)[:, ::-1]
    distance: NDArray[np.int32] = np.minimum(col - before, behind - col)
    return distance
