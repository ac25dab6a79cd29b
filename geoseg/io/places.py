"""Where the pixels of one grid are in another, from their places alone: the same for every window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

PLACE_DIGITS = 9
"""Decimals of a pixel that count, so that what is meant to be whole is."""

TURNED = 1e-6
"""How much of a pixel's side an axis may lean, and still be taken for straight."""


def to_file(file: GeoBox, scene: GeoBox) -> Affine:
    """From places in a scene to places in a file of the same CRS, both in pixels, as column and row."""
    made: Affine = ~file.affine @ scene.affine
    return made


def applied(
    affine: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points moved by an affine transform: x and y."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def aligned(affine: Affine) -> bool:
    """Whether rows stay rows, and columns columns."""
    return bool(max(abs(affine.b), abs(affine.d)) < TURNED * min(abs(affine.a), abs(affine.e)))


def places(scale: float, start: float, pixels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Where the centres of a scene's pixels along an axis are in a file, in pixels from its outer edge."""
    found: NDArray[np.float64] = np.round((pixels + 0.5) * scale + start, PLACE_DIGITS)
    return found
