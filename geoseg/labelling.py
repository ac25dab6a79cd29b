"""From blended scores of cells to labels of pixels, in one pass over memory: what a CPU does.

`geoseg.predict` does the same with torch, operation by operation, on any other device. The scores of a pixel have the
same bits by both; of probabilities the last bits differ, for this one's exponential is its own.

Between reading a cell and writing a pixel nothing leaves the cache. A row of pixels lies between two rows of cells;
each row of cells is brought to pixels along itself once, and serves all rows of pixels around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geoseg.compiled import Compiled
from geoseg.raster import CONFIDENCE_STEPS, Band
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.tiling import Axis

NONE = -1


@dataclass(frozen=True)
class Between:
    """Pixels of an axis, and the cells around each: (pixel,) each."""

    near: NDArray[np.int32]
    far: NDArray[np.int32]
    share: NDArray[np.float32]
    """How far from the one to the other, 0 to 1."""

    @classmethod
    def of(cls, axis: Axis, low: int, high: int, origin: int) -> Between:
        """The pixels from `low` to `high` of an axis; cells are counted from the cell `origin`."""
        near, far, share = axis.around(np.arange(low, high))
        return cls((near - origin).astype(np.int32), (far - origin).astype(np.int32), share)


def label(
    sums: NDArray[np.float32],
    weights: NDArray[np.float32],
    rows: Between,
    cols: Between,
    background: int | None,
    threshold: float | None,
    band: Band,
) -> None:
    """Fill a band, as `Band.empty` makes it or some rows of one, with what pixels `rows` x `cols` are.

    Args:
        sums: Weighted scores (output, cell row, cell column), contiguous: logits of the classes, then auxiliary ones,
            of which there are as many as the band has.
        weights: What they are to be divided by (cell row, cell column). A cell of weight 0 has no score; what is
            missing around a pixel is left out.
        rows: The pixels' rows, in rows of these cells.
        cols: Their columns.
        background: The class that is no object, if any.
        threshold: Probability of being an object from which on a pixel is one; None = the most probable class.
        band: Where labels, confidence and codes go.
    """
    classes = len(sums) - len(band.auxiliary)
    by_threshold = threshold is not None and background is not None and classes > 1
    _label(
        sums,
        weights,
        rows.near,
        rows.far,
        rows.share,
        cols.near,
        cols.far,
        cols.share,
        background if by_threshold and background is not None else NONE,
        np.float32(threshold or 0),
        np.float32(CONFIDENCE_STEPS),
        band.labels,
        band.confidence,
        band.auxiliary.transpose(1, 0, 2),
    )


def ready() -> None:
    """Have at hand what `label` is compiled to, which takes a second: in a thread, while others are not yet at it."""
    pixel = Between(np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.float32))
    band = Band.empty(Window.of_shape((1, 1)), 0)
    label(np.zeros((2, 1, 1), np.float32), np.zeros((1, 1), np.float32), pixel, pixel, None, None, band)


@Compiled
def _label(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  one loop: a compiled function may call no other
    sums: NDArray[np.float32],
    weights: NDArray[np.float32],
    row_near: NDArray[np.int32],
    row_far: NDArray[np.int32],
    row_share: NDArray[np.float32],
    col_near: NDArray[np.int32],
    col_far: NDArray[np.int32],
    col_share: NDArray[np.float32],
    background: int,
    threshold: np.float32,
    steps: np.float32,
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    codes: NDArray[np.uint8],
) -> None:
    """`background` is that of a decision by threshold, or `NONE`; `codes` are (y, score, x).

    exp(-a) is (the first six terms of its series at -a / 32) to the power of 32, and exp(-20) from a = 20 on: beside
    1, to which it is always added, it is right to a few millionths, and every step of it is done for many pixels at a
    time. Adding 2^23 and taking it away again rounds to the nearest whole number, halves to the even one.
    """
    # numba takes a float for one of 64 bits, which would make everything else one, too
    zero, one, whole, most, part = (
        np.float32(0),
        np.float32(1),
        np.float32(1 << 23),
        np.float32(20),
        np.float32(-1 / 32),
    )
    half, third, quarter, fifth = np.float32(1 / 2), np.float32(1 / 3), np.float32(1 / 4), np.float32(1 / 5)
    outputs, width = sums.shape[0], labels.shape[1]
    classes = outputs - codes.shape[1]
    pair = classes == 2 and background < 0  # noqa: PLR2004  their difference says it all
    # as exponents, then as what they become: the classes below the best one, the best object, auxiliary scores
    many = 1 if pair else classes + (background >= 0)
    odds = np.empty((many + outputs - classes, width), np.float32)
    cells = np.zeros((outputs + 1, weights.shape[1]), np.float32)  # the last row: whether there is a score
    along = np.empty((2, outputs + 1, width), np.float32)  # of two rows of cells, at pixels; one has an even number
    held, lacking = np.full(2, -1, np.int64), np.zeros(2, np.bool_)
    scores = np.empty((outputs + 1, width), np.float32)
    best, total, other = np.empty(width, np.float32), np.empty(width, np.float32), np.empty(width, np.uint8)
    for y in range(labels.shape[0]):
        for cell in (row_near[y], row_far[y]):
            place = cell % 2
            if held[place] == cell:
                continue
            held[place], lacks = cell, False
            for c in range(col_near[0], col_far[width - 1] + 1):
                weight = weights[cell, c]
                lacks |= weight == zero
                cells[outputs, c] = weight > zero
                for k in range(outputs):
                    cells[k, c] = sums[k, cell, c] / (weight if weight > zero else one)
            lacking[place] = lacks
            for k in range(outputs + 1):
                source, target = cells[k], along[place, k]
                for x in range(width):
                    near = source[col_near[x]]
                    target[x] = (source[col_far[x]] - near) * col_share[x] + near
        low, high, share = along[row_near[y] % 2], along[row_far[y] % 2], row_share[y]
        for k in range(outputs + 1):
            nearer, farther, target = low[k], high[k], scores[k]
            for x in range(width):
                target[x] = (farther[x] - nearer[x]) * share + nearer[x]
        if lacking[row_near[y] % 2] or lacking[row_far[y] % 2]:
            seen = scores[outputs]
            for k in range(outputs):
                target = scores[k]
                for x in range(width):
                    target[x] = target[x] / (seen[x] if seen[x] > zero else one)

        chosen, sure = labels[y], confidence[y]
        if pair:
            this, that, target = scores[0], scores[1], odds[0]
            for x in range(width):
                difference = that[x] - this[x]
                chosen[x] = difference > zero
                target[x] = abs(difference)
        else:
            source = scores[0]
            for x in range(width):
                best[x], chosen[x] = source[x], 0
            for k in range(1, classes):
                source, value = scores[k], np.uint8(k)
                for x in range(width):
                    chosen[x] = value if source[x] > best[x] else chosen[x]
                    best[x] = max(source[x], best[x])
            for k in range(classes):
                source, target = scores[k], odds[k]
                for x in range(width):
                    target[x] = best[x] - source[x]
        if background >= 0:
            start = 1 if background == 0 else 0
            source = scores[start]
            for x in range(width):
                total[x], other[x] = source[x], start
            for k in range(start + 1, classes):
                if k != background:
                    source, value = scores[k], np.uint8(k)
                    for x in range(width):
                        other[x] = value if source[x] > total[x] else other[x]
                        total[x] = max(source[x], total[x])
            target = odds[classes]
            for x in range(width):
                target[x] = best[x] - total[x]
        for k in range(classes, outputs):
            source, target = scores[k], odds[many + k - classes]
            for x in range(width):
                target[x] = abs(source[x])

        for k in range(odds.shape[0]):
            target = odds[k]
            for x in range(width):
                a = min(target[x], most) * part
                power = one + a * (one + a * half * (one + a * third * (one + a * quarter * (one + a * fifth))))
                power = power * power
                power = power * power
                power = power * power
                power = power * power
                target[x] = power * power

        for x in range(width):
            total[x] = one if pair else zero
        for k in range(1 if pair else classes):
            source = odds[k]
            for x in range(width):
                total[x] = total[x] + source[x]
        if background < 0:
            for x in range(width):
                sure[x] = np.uint8((one / total[x] * steps + whole) - whole)
        else:
            empty, source, value = odds[background], odds[classes], np.uint8(background)
            for x in range(width):
                of_background = empty[x] / total[x]
                is_object = one - of_background >= threshold
                chosen[x] = other[x] if is_object else value
                sure[x] = np.uint8(((source[x] / total[x] if is_object else of_background) * steps + whole) - whole)
        for k in range(classes, outputs):
            score, source, target_codes = scores[k], odds[many + k - classes], codes[y, k - classes]
            for x in range(width):
                probability = (one if score[x] > zero else source[x]) / (one + source[x])
                target_codes[x] = np.uint8((probability * steps + whole) - whole)
