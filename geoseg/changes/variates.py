"""Change by multivariate alteration detection (MAD; Nielsen, Conradsen and Simpson 1998).

Of each date those sums of its bands are taken that go best with such sums of the other date's: canonical variates, the
first pair as correlated as any can be, each further one as much as is left. Their differences are uncorrelated, and
each is measured in its standard deviation, the root of 2 (1 - correlation). The rest is as with change vectors
(`geoseg.changes.spectral`), of variates in place of bands: the most alike pixel within the tolerance counts, a mean
over 3 x 3, a threshold.

Gains, offsets and mixtures of a date's bands are of no consequence, so it needs no radiometric calibration; and
what bands have in common counts once. The reweighting that leaves out what has changed (IR-MAD; Nielsen 2007) is not
done: in a scene of water and land it comes to rest on the water, and then all land has changed.

Bytes are whole numbers, so that their sums are exact: neither the number of threads nor the order of the dates matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from geoseg.changes.spectral import LEAST, STEPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MIDDLE: Final = 128
"""Taken off bytes before they are multiplied: any constant would do, this one keeps the sums small."""

ROUNDING: Final = 1 / 12
"""Variance of what rounding to whole numbers takes away."""

SHARED: Final = 1e-3
"""Variance that is added to each band, the same to both dates: next to nothing, but never nothing."""


@dataclass(frozen=True)
class VariateScales:
    """What numbers of each band are measured in, at both dates, of bytes as they are read."""

    centre_before: tuple[float, ...]
    """(bands,): means."""
    centre_after: tuple[float, ...]
    weights_before: tuple[tuple[float, ...], ...]
    """(variates, bands): what a variate has of each band less its mean, in deviations of the variates' difference."""
    weights_after: tuple[tuple[float, ...], ...]
    correlations: tuple[float, ...]
    """(variates,): between both dates, the largest first."""

    @classmethod
    def of(cls, before: NDArray[np.uint8], after: NDArray[np.uint8], seen: NDArray[np.bool_]) -> VariateScales:
        """Of a sample (band, y, x) of both dates on one grid, of the pixels (y, x) that both see; there must be one."""
        dates = [each[:, seen].astype(np.float64) - MIDDLE for each in (before, after)]
        count = dates[0].shape[1]
        means = [each.sum(axis=1) / count for each in dates]
        own = [each @ each.T / count - np.outer(mean, mean) for each, mean in zip(dates, means, strict=True)]
        cross = dates[0] @ dates[1].T / count - np.outer(*means)
        # So bands that are alike, or the same everywhere, have variates as well, and a scene and itself the same ones.
        shared = SHARED * np.eye(len(cross))
        one, other, correlations = canonical(own[0] + shared, own[1] + shared, cross + shared)
        rounding = ROUNDING * ((one**2).sum(axis=1) + (other**2).sum(axis=1))  # no difference is surer than that
        deviation = np.sqrt(np.maximum(2 * (1 - correlations), rounding))[:, None]
        centre, centre_after = (tuple((mean + MIDDLE).tolist()) for mean in means)
        weights, weights_after = (tuple(map(tuple, (each / deviation).tolist())) for each in (one, other))
        return cls(centre, centre_after, weights, weights_after, tuple(correlations.tolist()))

    @property
    def least(self) -> int:
        """The code that no threshold is below."""
        return round(LEAST * STEPS)

    def normalised(
        self, before: NDArray[np.uint8], after: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The variates (variate, y, x) of both dates of bands (band, y, x), in deviations of their difference."""
        return (
            _sums(before, self.centre_before, self.weights_before),
            _sums(after, self.centre_after, self.weights_after),
        )


def canonical(before: Floats, after: Floats, cross: Floats) -> tuple[Floats, Floats, Floats]:
    """Canonical correlation analysis (Hotelling 1936) of covariances (bands, bands), which must be positive definite.

    Returns the weights of both dates' variates, (variates, bands) each, which have the variance 1, and their
    correlations (variates,), falling. Exchanging the dates exchanges the weights, to the bit.
    """
    if (after.tobytes(), cross.T.tobytes()) < (before.tobytes(), cross.tobytes()):
        other, one, correlations = canonical(after, before, cross.T)
        return one, other, correlations
    roots = np.linalg.cholesky(before), np.linalg.cholesky(after)
    whitened = np.linalg.solve(roots[1], np.linalg.solve(roots[0], cross).T).T
    left, correlations, right = np.linalg.svd(whitened)
    one, other = (np.linalg.solve(root.T, turn).T for root, turn in zip(roots, (left, right.T), strict=True))
    return one, other, np.minimum(correlations, 1.0)


def _sums(
    values: NDArray[np.uint8], centre: tuple[float, ...], weights: tuple[tuple[float, ...], ...]
) -> NDArray[np.float32]:
    """Band by band, and not as a product of matrices, whose last bits depend on the size of a window."""
    bands = [band.astype(np.float32) - np.float32(mean) for band, mean in zip(values, centre, strict=True)]
    made = np.zeros((len(weights), *values.shape[1:]), np.float32)
    for row, sums in zip(weights, made, strict=True):
        for weight, band in zip(row, bands, strict=True):
            np.add(sums, np.float32(weight) * band, out=sums)
    return made
