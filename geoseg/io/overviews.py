"""Overviews: a map at half its resolution, again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from geoseg.compiled import Compiled
from geoseg.raster import NODATA

if TYPE_CHECKING:
    from numpy.typing import NDArray


def halved(values: NDArray[np.uint8], *, classes: bool) -> NDArray[np.uint8]:
    """Values (y, x) uint8, 255 = nodata, at half the resolution, sides rounded up.

    Of the two by two pixels that have data, the most frequent class (of several, the one that comes first by row), or
    otherwise the mean, halves up; nodata where none has.
    """
    rows, cols = values.shape
    if rows % 2 or cols % 2:
        values = np.pad(values, ((0, rows % 2), (0, cols % 2)), constant_values=NODATA)
    half = np.empty((-(-rows // 2), -(-cols // 2)), np.uint8)
    (_modes if classes else _means)(np.require(values, requirements=["C", "W"]), half)
    return half


@Compiled
def _modes(values: NDArray[np.uint8], half: NDArray[np.uint8]) -> None:
    for y in range(half.shape[0]):
        upper, lower, target = values[2 * y], values[2 * y + 1], half[y]
        for x in range(half.shape[1]):
            a, b, c, d = upper[2 * x], upper[2 * x + 1], lower[2 * x], lower[2 * x + 1]
            pick, most = np.uint8(NODATA), 0
            for value in (a, b, c, d):
                count = ((value == a) + (value == b) + (value == c) + (value == d)) * (value != NODATA)
                pick = value if count > most else pick
                most = max(count, most)
            target[x] = pick


@Compiled
def _means(values: NDArray[np.uint8], half: NDArray[np.uint8]) -> None:
    for y in range(half.shape[0]):
        upper, lower, target = values[2 * y], values[2 * y + 1], half[y]
        for x in range(half.shape[1]):
            count, total = np.int32(0), np.int32(0)
            for value in (upper[2 * x], upper[2 * x + 1], lower[2 * x], lower[2 * x + 1]):
                count += value != NODATA
                total += value if value != NODATA else 0
            # rounded as a float, for many at a time: a whole number and a half is exact, and so is what lies below
            mean = np.float32(total) / np.float32(max(int(count), 1)) + np.float32(0.5)
            target[x] = np.uint8(mean) if count else NODATA
