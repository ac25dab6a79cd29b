"""Change by one spectral index: the difference image that is thresholded, and by its sign what rose and what fell.

An index is a normalised difference of two bands, (a - b) / (a + b): NDVI (Rouse et al. 1974) is high where plants are,
NDBI (Zha et al. 2003) where ground is built up or bare, MNDWI (Xu 2006) where there is water. It is taken of
quantities, as far as scenes tell how their numbers become such. What is left of haze and season is taken off: the
median of the difference of the ground that both see is no change. The rest is as with change vectors
(`geoseg.changes.spectral`), of one band: the most alike pixel within the tolerance counts, and a mean over 3 x 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from geoseg.changes.spectral import LEAST, STEPS, inside, robust, weighted
from geoseg.raster import NODATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.io.pixels import SceneSource

Index: TypeAlias = Literal["ndvi", "ndbi", "mndwi"]

INDICES: Final[dict[Index, tuple[str, str]]] = {
    "ndvi": ("nir", "red"),
    "ndbi": ("swir16", "nir"),
    "mndwi": ("green", "swir16"),
}
"""Of each index the band that makes it larger, and the one that makes it smaller."""

UNITS: Final = 100
"""Codes of a difference of 1."""

SAME: Final = 125
"""The code of no difference: that of a rise of 0.01 is one more. Differences are told to 1.25."""

FINE: Final = 10_000
"""Parts of an index that are told apart when differences are added up, in whole numbers."""


@dataclass(frozen=True)
class Quantities:
    """How the bytes of both bands become quantities again: by steps from a start."""

    start: tuple[float, float]
    step: tuple[float, float]

    @classmethod
    def of(cls, source: SceneSource) -> Quantities:
        """Those of a source of two bands."""
        stretch, told = source.stretch, source.scene.scaling
        low, high = ((0.0, 0.0), (255.0, 255.0)) if stretch is None else (stretch.low, stretch.high)
        scaling = [told[band - 1] if told else (1.0, 0.0) for band in source.bands]
        start = [least * scale + offset for least, (scale, offset) in zip(low, scaling, strict=True)]
        step = [(most - least) / 255 * scale for least, most, (scale, _) in zip(low, high, scaling, strict=True)]
        return cls((start[0], start[1]), (step[0], step[1]))

    def index(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """The index (...) of bytes (band, ...), from -1 to 1; 0 where there is no light."""
        one, other = (
            np.float32(start) + values[band].astype(np.float32) * np.float32(step)
            for band, (start, step) in enumerate(zip(self.start, self.step, strict=True))
        )
        both = one + other
        index: NDArray[np.float32] = np.clip((one - other) / np.where(both > 0, both, 1), -1, 1)
        return np.where(both > 0, index, np.float32(0))


@dataclass(frozen=True)
class IndexScales:
    """What the index of both dates is measured in."""

    before: Quantities
    after: Quantities
    offset: float
    """Median of the index before, less that after."""
    noise: float
    """Robust deviation of the difference."""

    @classmethod
    def of(
        cls,
        quantities: tuple[Quantities, Quantities],
        before: NDArray[np.uint8],
        after: NDArray[np.uint8],
        seen: NDArray[np.bool_],
    ) -> IndexScales:
        """Of a sample (band, y, x) of both dates on one grid, of the pixels (y, x) that both see."""
        one, other = (each.index(values[:, seen]) for each, values in zip(quantities, (before, after), strict=True))
        centre, spread = robust((one.astype(np.float64) - other)[None], 1 / UNITS)
        return cls(*quantities, float(centre[0, 0]), float(spread[0, 0]))

    @property
    def least(self) -> int:
        """The code that no threshold is below."""
        return round(LEAST * self.noise * UNITS)

    def normalised(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The index (1, y, x) of both dates, so that a magnitude has the codes of a difference."""
        half, times = np.float32(self.offset / 2), np.float32(UNITS / STEPS)
        one, other = self.before.index(before), self.after.index(after)
        return ((one - half) * times)[None], ((other + half) * times)[None]


def signed(
    magnitudes: NDArray[np.uint8],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    reach: tuple[int, int],
) -> NDArray[np.uint8]:
    """Codes (y, x) of differences, from magnitudes and what is normalised (1, ...), `reach` and 1 more around them.

    The sign is that of the mean difference over 3 x 3 pixels; where that is 0, there is none.
    """
    rise = weighted(np.rint((after - before)[0][inside(reach)] * FINE).astype(np.int32))
    there = np.minimum(magnitudes, SAME).astype(np.int32)
    return np.where(magnitudes == NODATA, NODATA, SAME + np.sign(rise) * there).astype(np.uint8)


def unsigned(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Magnitudes of codes of differences; 255 stays."""
    apart = np.abs(codes.astype(np.int32) - SAME)
    return np.where(codes == NODATA, NODATA, apart).astype(np.uint8)
