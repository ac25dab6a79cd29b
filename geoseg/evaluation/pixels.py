"""Scores from a confusion matrix, and of the probabilities that come with labels.

All state is whole-numbered counts that add up, so a scene may be counted in any pieces, in any order, by anybody.
What is undefined (the recall of a class that the reference does not have) is NaN, and no mean counts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from geoseg.raster import CONFIDENCE_STEPS, NODATA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

CALIBRATION_BINS = 15
"""As many as Guo et al. take."""


@dataclass(frozen=True)
class ClassScores:
    """How one class was found, from the pixels that are it in the map (P), in the reference (R), in both."""

    name: str
    iou: float
    """|P and R| / |P or R| (Jaccard 1912)."""
    dice: float
    """2 |P and R| / (|P| + |R|) (Dice 1945); the F1 score, which is the harmonic mean of precision and recall."""
    precision: float
    """|P and R| / |P|: user's accuracy."""
    recall: float
    """|P and R| / |R|: producer's accuracy."""
    predicted: int
    reference: int
    """Pixels."""


@dataclass(frozen=True, eq=False)
class PixelScores:
    """Scores of all compared pixels."""

    confusion: NDArray[np.int64]
    """(reference, prediction): pixels by their class here and there."""
    classes: tuple[ClassScores, ...]
    mean_iou: float
    """Mean over the classes that occur on either side (Everingham et al. 2015, Long et al. 2015)."""
    frequency_weighted_iou: float
    """IoU weighted by the classes' shares of the reference (Long et al. 2015)."""
    accuracy: float
    """Share of the pixels that have the reference's class."""
    balanced_accuracy: float
    """Mean recall of the classes that the reference has (Brodersen et al. 2010)."""


def confusion_of(prediction: NDArray[Any], reference: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """(classes, classes) pixels by the reference's class (row) and the prediction's (column), but where either is 255.

    Both are integer arrays of one shape with labels 0 to classes - 1. Raises `ValueError` for other labels or shapes.
    """
    if prediction.shape != reference.shape:
        msg = f"prediction {prediction.shape} and reference {reference.shape} are not of one shape"
        raise ValueError(msg)
    compared = (prediction != NODATA) & (reference != NODATA)
    p, r = prediction[compared].astype(np.int32), reference[compared].astype(np.int32)
    for name, labels in (("prediction", p), ("reference", r)):
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            msg = f"labels of the {name} must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
            raise ValueError(msg)
    return np.bincount(r * classes + p, minlength=classes**2).reshape(classes, classes)


def ratio(part: float, whole: float) -> float:
    """A quotient, NaN where there is nothing to divide by."""
    return float(part) / float(whole) if whole else math.nan


def pixel_scores(confusion: NDArray[np.int64], names: Sequence[str] | None = None) -> PixelScores:
    """All scores of a confusion matrix as `confusion_of` gives it; `names` of its classes, else their numbers."""
    found, predicted, reference = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    names = names or [str(value) for value in range(len(confusion))]
    classes = tuple(
        ClassScores(
            name,
            ratio(both, p + r - both),
            ratio(2 * both, p + r),
            ratio(both, p),
            ratio(both, r),
            int(p),
            int(r),
        )
        for name, both, p, r in zip(names, found, predicted, reference, strict=True)
    )
    total = confusion.sum()
    shares = [ratio(c.reference, total) for c in classes]
    return PixelScores(
        confusion=confusion,
        classes=classes,
        mean_iou=_mean([c.iou for c in classes]),
        frequency_weighted_iou=_total([s * c.iou for s, c in zip(shares, classes, strict=True) if c.reference]),
        accuracy=ratio(found.sum(), total),
        balanced_accuracy=_mean([c.recall for c in classes]),
    )


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return ratio(math.fsum(known), len(known))


def _total(values: list[float]) -> float:
    return math.fsum(values) if values else math.nan


@dataclass(frozen=True)
class Bin:
    """The pixels whose confidence is above `low` and not above `high`."""

    low: float
    high: float
    pixels: int
    confidence: float
    """Mean."""
    accuracy: float
    """Share of them whose label is the reference's."""

    @property
    def name(self) -> str:
        """Both ends, for a table."""
        return f"{self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True)
class CalibrationScores:
    """Whether labels are right as often as their confidence says."""

    expected_error: float
    """Mean of |accuracy - confidence| over the bins, weighted by their pixels (ECE; Guo et al. 2017)."""
    maximum_error: float
    """The largest |accuracy - confidence| of a bin (MCE; the same)."""
    bins: tuple[Bin, ...]
    """The reliability diagram; bins without pixels included, with NaN."""


def calibration_counts(
    prediction: NDArray[np.uint8], reference: NDArray[np.uint8], confidence: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """(2, 251) pixels whose label is wrong (0) or right (1) by their confidence code; 255 anywhere is left out."""
    codes = CONFIDENCE_STEPS + 1
    seen = (prediction != NODATA) & (reference != NODATA) & (confidence <= CONFIDENCE_STEPS)
    place = (prediction[seen] == reference[seen]) * codes + confidence[seen].astype(np.int64)
    return np.bincount(place, minlength=2 * codes).reshape(2, codes)


def calibration_scores(counts: NDArray[np.int64], bins: int = CALIBRATION_BINS) -> CalibrationScores:
    """Calibration from `calibration_counts`, in bins of equal width that hold their upper end (Guo et al. 2017)."""
    codes = np.arange(CONFIDENCE_STEPS + 1)
    number = np.maximum(-(-codes * bins // CONFIDENCE_STEPS) - 1, 0)  # in whole numbers: no code lies beside its bin
    pixels = np.bincount(number, counts.sum(axis=0), bins)
    right = np.bincount(number, counts[1], bins)
    said = np.bincount(number, counts.sum(axis=0) * codes / CONFIDENCE_STEPS, bins)
    diagram = tuple(
        Bin(i / bins, (i + 1) / bins, int(n), ratio(s, n), ratio(r, n))
        for i, (n, s, r) in enumerate(zip(pixels, said, right, strict=True))
    )
    gaps = [(abs(b.accuracy - b.confidence), b.pixels) for b in diagram if b.pixels]
    return CalibrationScores(
        expected_error=ratio(math.fsum(gap * n for gap, n in gaps), sum(n for _, n in gaps)),
        maximum_error=max((gap for gap, _ in gaps), default=math.nan),
        bins=diagram,
    )
