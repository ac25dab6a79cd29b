"""Change without any trained network: by how much the spectrum of a place differs from what is unchanged around it.

Change vector analysis (Malila 1980) on bands that both scenes have, measured by what the scenes themselves are like:

- **normalised**: each band of each date less its median, in robust deviations (1.4826 MAD) of the ground that both see.
  That most of it has not changed is all that is assumed, and it takes the place of a radiometric calibration.
- **difference**: the length of the vector of all bands' differences, each in robust deviations of that band's
  difference, to the most alike pixel within the tolerance at the other date, looked for both ways, the larger one
  counting (local co-registration adjustment; Theiler and Wohlberg 2012). So a shift within the tolerance is no change.
- **magnitude**: its mean over 3 x 3 pixels that both see, the middle one counting four times, its neighbours twice; if
  asked, the mean of that over all pixels around.
- **changed** is a pixel whose magnitude is above a threshold that the magnitudes' own histogram tells: the triangle's
  corner (Zack et al. 1977; as Rosin 2001 has it for changes), Otsu's (1979) or Kittler and Illingworth's (1986).

Nothing is taken from a window: medians and deviations come from a sample of the scene, the threshold from all of it. So
windows do not matter, and exchanging the dates changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

Cut: TypeAlias = Literal["triangle", "otsu", "kittler"]

STEPS: Final = 10
"""Codes of a magnitude of 1: of one robust deviation."""

LARGEST: Final = 250
"""The code of every magnitude from there on."""

NOT_SEEN: Final = 255
"""The code of what is not compared."""

LEAST: Final = 3.0
"""Magnitude that no threshold is below: what unchanged ground has by itself."""

MAD: Final = 1.4826
"""What a median of absolute deviations is multiplied by to be the standard deviation of normal noise."""

WEIGHTS: Final = np.array([1, 2, 1], np.int32)
"""Of three pixels in a row, in the mean that a magnitude is."""


@dataclass(frozen=True)
class Scales:
    """What numbers of each band are measured in, at both dates: (bands,) each, of bytes as they are read."""

    centre_before: tuple[float, ...]
    spread_before: tuple[float, ...]
    centre_after: tuple[float, ...]
    spread_after: tuple[float, ...]
    offset: tuple[float, ...]
    """Median of what is normalised before, less what is after."""
    noise: tuple[float, ...]
    """Robust deviation of that difference."""

    @property
    def least(self) -> int:
        """The code that no threshold is below."""
        return round(LEAST * STEPS)

    def normalised(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `normalised`."""
        return normalised(before, after, self)


def scales_of(before: NDArray[np.uint8], after: NDArray[np.uint8], seen: NDArray[np.bool_]) -> Scales:
    """The scales of a sample (band, y, x) of both dates on one grid, of the pixels (y, x) that both see."""
    one, other = before[:, seen].astype(np.float64), after[:, seen].astype(np.float64)
    (centre, spread), (centre_after, spread_after) = robust(one, 1.0), robust(other, 1.0)
    difference = (one - centre) / spread - (other - centre_after) / spread_after
    offset, noise = robust(difference, np.maximum(1 / spread, 1 / spread_after))
    columns = (centre, spread, centre_after, spread_after, offset, noise)
    return Scales(*(tuple(float(value) for value in column[:, 0]) for column in columns))


def robust(
    values: NDArray[np.float64], least: NDArray[np.float64] | float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(bands, 1) median and robust deviation of values (bands, pixels); the latter not below a step of a byte."""
    centre = np.median(values, axis=1, keepdims=True)
    return centre, np.maximum(MAD * np.median(np.abs(values - centre), axis=1, keepdims=True), least)


def normalised(
    before: NDArray[np.uint8], after: NDArray[np.uint8], scales: Scales
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Bands (band, y, x) of both dates in deviations of their difference, unchanged ground being alike at both."""

    def column(values: tuple[float, ...]) -> NDArray[np.float32]:
        return np.asarray(values, np.float32)[:, None, None]

    one = (before.astype(np.float32) - column(scales.centre_before)) / column(scales.spread_before)
    other = (after.astype(np.float32) - column(scales.centre_after)) / column(scales.spread_after)
    half = column(scales.offset) / 2  # half to each, so that exchanging the dates exchanges the results, to the bit
    noise = column(scales.noise)
    return ((one - half) / noise).astype(np.float32), ((other + half) / noise).astype(np.float32)


def magnitudes(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    seen_before: NDArray[np.bool_],
    seen_after: NDArray[np.bool_],
    reach: tuple[int, int],
) -> NDArray[np.uint8]:
    """Codes (y, x) of a window from normalised bands (band, ...) on it and 2 * reach + 1 around it; 255 = not compared.

    A pixel is compared where both dates see it. What one of them does not see is like nothing.
    """
    there = _to_most_alike(before, after, seen_before, seen_after, reach)
    back = _to_most_alike(after, before, seen_after, seen_before, reach)
    both = (seen_before & seen_after)[inside(reach)]
    codes = np.rint(np.minimum(np.sqrt(np.maximum(there, back)) * STEPS, LARGEST)).astype(np.int32)
    return _mean(codes, both)


def inside(reach: tuple[int, int]) -> tuple[slice, slice]:
    """What is left of an array when the reach is taken off each side."""
    rows, cols = (slice(side, -side or None) for side in reach)
    return rows, cols


def _to_most_alike(
    one: NDArray[np.float32],
    other: NDArray[np.float32],
    seen: NDArray[np.bool_],
    other_seen: NDArray[np.bool_],
    reach: tuple[int, int],
) -> NDArray[np.float32]:
    """Squared distance of each pixel of one, `reach` inside, to the most alike one of the other within the reach.

    Where it is not seen, or the other has nothing there, infinite.
    """
    rows, cols = (side - 2 * by for side, by in zip(seen.shape, reach, strict=True))
    mine, found = one[:, *inside(reach)], np.full((rows, cols), np.inf, np.float32)
    for down in range(2 * reach[0] + 1):
        for along in range(2 * reach[1] + 1):
            there = slice(down, down + rows), slice(along, along + cols)
            squared = np.zeros((rows, cols), np.float32)
            for band in range(len(one)):
                apart = mine[band] - other[band][there]
                squared += apart * apart
            np.minimum(found, squared, out=found, where=other_seen[there])
    return found


def _mean(codes: NDArray[np.int32], seen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Weighted means over 3 x 3 of codes (y, x), of a pixel more on each side than is given back, where it is seen."""
    total, weight = weighted(np.where(seen, codes, 0)), weighted(seen.astype(np.int32))
    mean = (2 * total + weight) // np.maximum(2 * weight, 1)
    return np.where(seen[1:-1, 1:-1], mean, NOT_SEEN).astype(np.uint8)


def mean_around(codes: NDArray[np.uint8], around: tuple[int, int]) -> NDArray[np.uint8]:
    """Means of codes (y, x) over all that are seen within so many rows and columns, by which the result is smaller.

    Changes are larger than pixels, and what is noise in one pixel is seldom so in those around it. Sums are of whole
    numbers, so windows do not matter.
    """
    seen = codes != NOT_SEEN
    total, count = (_sums(values, around) for values in (np.where(seen, codes, 0), seen))
    mean = (2 * total + count) // np.maximum(2 * count, 1)
    return np.where(seen[inside(around)], mean, NOT_SEEN).astype(np.uint8)


def _sums(values: NDArray[np.generic], around: tuple[int, int]) -> NDArray[np.int64]:
    """Sums over rectangles, from sums from the corner on."""
    rows, cols = (2 * side + 1 for side in around)
    corner = np.pad(values.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    sums: NDArray[np.int64] = (
        corner[rows:, cols:] - corner[:-rows, cols:] - corner[rows:, :-cols] + corner[:-rows, :-cols]
    )
    return sums


def weighted(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Sums over 3 x 3 of values (y, x), of a pixel more on each side than is given back, by their weights."""
    rows: NDArray[np.int32] = sum(w * values[i : len(values) - 2 + i] for i, w in enumerate(WEIGHTS))
    width = values.shape[1] - 2
    made: NDArray[np.int32] = sum(w * rows[:, i : width + i] for i, w in enumerate(WEIGHTS))
    return made


# --- where change begins


def threshold_of(histogram: NDArray[np.int64], cut: Cut = "otsu", least: int = round(LEAST * STEPS)) -> int:
    """The code above which a pixel has changed, from how many have each of the codes 0 to 250; not below the least."""
    if not histogram.sum():
        return LARGEST
    return max(CUTS[cut](histogram.astype(np.float64)), least)


def _triangle(histogram: NDArray[np.float64]) -> int:
    """The code that is farthest from the line between the highest bar and the last one."""
    peak, last = int(histogram.argmax()), int(np.flatnonzero(histogram)[-1])
    codes = np.arange(peak, last + 1)
    run, rise = last - peak, histogram[last] - histogram[peak]
    below = rise * (codes - peak) - run * (histogram[peak : last + 1] - histogram[peak])
    return int(codes[below.argmax()])


def _otsu(histogram: NDArray[np.float64]) -> int:
    """The code at which the variance between both sides is the largest."""
    share, sums = np.cumsum(histogram), np.cumsum(histogram * np.arange(len(histogram)))
    rest = share[-1] - share
    means = sums / np.maximum(share, 1) - (sums[-1] - sums) / np.maximum(rest, 1)
    return int((share * rest * means**2).argmax())


def _kittler(histogram: NDArray[np.float64]) -> int:
    """The code at which two normal distributions, one for each side, explain the histogram best."""
    codes = np.arange(len(histogram), dtype=np.float64)
    costs = np.full(len(histogram), np.inf)
    total = histogram.sum()
    for code in range(1, len(histogram) - 2):
        sides = [(histogram[: code + 1], codes[: code + 1]), (histogram[code + 1 :], codes[code + 1 :])]
        shares = [bars.sum() / total for bars, _ in sides]
        if min(shares) == 0:
            continue
        variances = [float(np.average((x - np.average(x, weights=b)) ** 2, weights=b)) for b, x in sides]
        if min(variances) > 0:
            costs[code] = sum(p * (np.log(v) - 2 * np.log(p)) for p, v in zip(shares, variances, strict=True))
    return int(costs.argmin())


CUTS: Final[Mapping[Cut, Callable[[NDArray[np.float64]], int]]] = {
    "triangle": _triangle,
    "otsu": _otsu,
    "kittler": _kittler,
}
"""How a threshold is found."""
