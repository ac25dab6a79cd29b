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
    half = np.empty((-(-rows // 2), -(-cols // 2)), np.uint8)
    beyond = np.full((2, 2 * half.shape[1]), NODATA, np.uint8)
    (_modes if classes else _means)(np.require(values, requirements=["C", "W"]), beyond, half)
    return half


@Compiled
def _modes(values: NDArray[np.uint8], two: NDArray[np.uint8], half: NDArray[np.uint8]) -> None:
    """`two`: room for two rows, which ends with nodata where the map does."""
    rows, cols = values.shape
    upper, lower = two[0], two[1]
    for y in range(half.shape[0]):
        upper[:cols] = values[2 * y]
        if 2 * y + 1 < rows:
            lower[:cols] = values[2 * y + 1]
        else:
            lower[:] = NODATA
        target = half[y]
        for x in range(half.shape[1]):
            a, b, c, d = upper[2 * x], upper[2 * x + 1], lower[2 * x], lower[2 * x + 1]
            pick, most = np.uint8(NODATA), 0
            for value in (a, b, c, d):
                count = ((value == a) + (value == b) + (value == c) + (value == d)) * (value != NODATA)
                pick = value if count > most else pick
                most = max(count, most)
            target[x] = pick


@Compiled
def _means(values: NDArray[np.uint8], two: NDArray[np.uint8], half: NDArray[np.uint8]) -> None:
    """`two`: room for two rows, which ends with nodata where the map does."""
    rows, cols = values.shape
    upper, lower = two[0], two[1]
    for y in range(half.shape[0]):
        upper[:cols] = values[2 * y]
        if 2 * y + 1 < rows:
            lower[:cols] = values[2 * y + 1]
        else:
            lower[:] = NODATA
        target = half[y]
        for x in range(half.shape[1]):
            count, total = np.int32(0), np.int32(0)
            for value in (upper[2 * x], upper[2 * x + 1], lower[2 * x], lower[2 * x + 1]):
                count += value != NODATA
                total += value if value != NODATA else 0
            # rounded as a float, for many at a time: a whole number and a half is exact, and so is what lies below
            target[x] = (
                np.uint8(np.float32(total) / np.float32(max(int(count), 1)) + np.float32(0.5)) if count else NODATA
            )
