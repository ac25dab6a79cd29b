"""By how much one image lies beside the other: phase correlation, block by block, and what blocks agree on.

The phase of the cross-power spectrum of two images that are shifted is a plane, and its transform a peak at the shift
(Kuglin and Hines 1975). It is taken of gradients' magnitude, because seasons and sun change brightness more than they
change edges, and its high frequencies, which are mostly noise and compression, count less. The peak's place between the
pixels is found on a finer lattice about it, by the transform as two matrix products (Guizar-Sicairos et al. 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_gradient_magnitude

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

FINENESS: Final = 50
"""Steps of a cell in which a shift is found."""

LEAST_SIDE: Final = 32
"""Cells of a block below which nothing is looked for."""

LEAST_SEEN: Final = 0.75
"""Share of a block that both images see if it is to be used."""

AGREE_WITHIN: Final = 1.0
"""Cells by which the shifts of two blocks may differ if they agree."""

LEAST_BLOCKS, LEAST_SHARE = 3, 0.5
"""How many blocks, and what share of those that were used, must agree before a shift is believed."""

LOW_PASS: Final = 0.15
"""Standard deviation, in cycles per cell, of the weight of the frequencies."""


@dataclass(frozen=True)
class Shift:
    """What blocks agree on: the image before, moved by so much, lies on the image after."""

    rows: float
    cols: float
    """Cells down and to the right; 0 if no block was used."""
    blocks: int
    """Blocks that had enough data and texture in both images."""
    agreeing: int
    """Those that the shift is the median of."""
    spread: float
    """Median distance of these from it, in cells."""

    @property
    def agreement(self) -> float:
        """Share of the blocks that agree."""
        return self.agreeing / self.blocks if self.blocks else 0.0

    @property
    def known(self) -> bool:
        """Whether enough blocks agree."""
        return self.agreeing >= LEAST_BLOCKS and self.agreement >= LEAST_SHARE


def estimate(pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> Shift:
    """The shift that most blocks agree on.

    `pairs`: of each block, the brightness (y, x) before and after on the same grid, NaN where there is no data. Only
    one pair is held at a time. The answer is the median of the largest set of blocks that are near one of them, so it
    is right as long as what has changed, or looks alike everywhere, is the smaller part.
    """
    found = np.array([shift for pair in pairs if (shift := of_block(*pair)) is not None]).reshape(-1, 2)
    if not len(found):
        return Shift(0.0, 0.0, 0, 0, 0.0)
    near = np.hypot(*np.moveaxis(found[:, None] - found[None], 2, 0)) <= AGREE_WITHIN
    agreeing = found[near[near.sum(axis=1).argmax()]]
    rows, cols = np.median(agreeing, axis=0)
    spread = np.median(np.hypot(*(agreeing - (rows, cols)).T))
    return Shift(float(rows), float(cols), len(found), len(agreeing), float(spread))


def of_block(before: NDArray[np.float32], after: NDArray[np.float32]) -> tuple[float, float] | None:
    """The shift (rows, cols) of one pair of images of one shape, or None if there is too little to go by.

    First to a cell, then to a part of it on what both have in common at that shift, so that the images' ends, which the
    window function holds in place, do not draw the answer to 0.
    """
    if min(before.shape) < LEAST_SIDE or (np.isfinite(before) & np.isfinite(after)).mean() < LEAST_SEEN:
        return None
    one, other = _edges(before), _edges(after)
    if not one.any() or not other.any():
        return None
    spectrum = _cross_power(one, other)
    rows, cols = _peak(spectrum)
    if 2 * abs(rows) >= one.shape[0] or 2 * abs(cols) >= one.shape[1]:
        return None
    spectrum = _cross_power(*_common(one, other, rows, cols))
    down, along = _fine_peak(spectrum, *_peak(spectrum))
    return rows + down, cols + along


def _edges(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Magnitude of the gradient, 0 where it is not known."""
    unknown = ~np.isfinite(image)
    filled = np.where(unknown, np.nanmean(image), image).astype(np.float64)
    edges: NDArray[np.float64] = gaussian_gradient_magnitude(filled, 1.0)
    edges[binary_dilation(unknown, iterations=4)] = 0  # as far as the Gaussian reaches
    return edges


def _common(
    one: NDArray[np.float64], other: NDArray[np.float64], rows: int, cols: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What two images have in common if the second is the first, moved by whole cells."""
    (row, row_stop), (col, col_stop) = (
        (max(0, by), min(side, side + by)) for by, side in zip((rows, cols), one.shape, strict=True)
    )
    return one[row - rows : row_stop - rows, col - cols : col_stop - cols], other[row:row_stop, col:col_stop]


def _cross_power(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.complex128]:
    """The phase of the cross-power spectrum, weighted."""
    down, along = (np.hanning(side + 2)[1:-1] for side in one.shape)
    taper = np.outer(down, along)
    first, second = (np.fft.fft2((image - image.mean()) * taper) for image in (one, other))
    product = second * np.conj(first)
    rows, cols = (np.fft.fftfreq(side) for side in one.shape)
    weight = np.exp(-(rows[:, None] ** 2 + cols**2) / (2 * LOW_PASS**2))
    phase: NDArray[np.complex128] = weight * product / np.maximum(np.abs(product), np.finfo(float).tiny)
    return phase


def _peak(spectrum: NDArray[np.complex128]) -> tuple[int, int]:
    """Where the correlation is highest, in whole cells about 0."""
    correlation = np.fft.ifft2(spectrum).real
    place = np.unravel_index(int(correlation.argmax()), correlation.shape)
    rows, cols = (int(p) - side * (2 * int(p) > side) for p, side in zip(place, correlation.shape, strict=True))
    return rows, cols


def _fine_peak(spectrum: NDArray[np.complex128], rows: int, cols: int) -> tuple[float, float]:
    """The same in parts of a cell: the inverse transform at places within a cell of the peak, as two products."""
    aside = np.arange(-FINENESS, FINENESS + 1) / FINENESS
    down, along = rows + aside, cols + aside
    of_rows = np.exp(2j * np.pi * np.outer(down, np.fft.fftfreq(spectrum.shape[0])))
    of_cols = np.exp(2j * np.pi * np.outer(np.fft.fftfreq(spectrum.shape[1]), along))
    correlation = (of_rows @ spectrum @ of_cols).real
    row, col = np.unravel_index(int(correlation.argmax()), correlation.shape)
    return float(down[row]), float(along[col])
