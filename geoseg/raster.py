"""`Raster`: pixels with their validity and their place on the ground, and the seams `Source` and `Sink`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from pyproj import Geod, Transformer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

    from geoseg.window import Window

NODATA = 255
"""The label, and the confidence code, of a pixel that was not seen."""

CONFIDENCE_STEPS = 250
"""A confidence code is the probability of the label in steps of 1/250."""

WGS84 = Geod(ellps="WGS84")


@dataclass(frozen=True)
class Raster:
    """A window of a scene."""

    values: NDArray[np.generic]
    """(band, y, x)."""
    valid: NDArray[np.bool_]
    """(y, x); True means that the scene has data there."""
    geobox: GeoBox | None = None
    """The grid of these pixels; None where the window reaches beyond the scene."""

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together."""
        if self.values.shape[1:] != self.valid.shape:
            msg = f"values {self.values.shape} and valid {self.valid.shape} are not of one raster"
            raise ValueError(msg)


class Source(Protocol):
    """Where pixels come from.

    `read` may be called for any window, also one that reaches beyond the scene (what is outside is not valid), from
    one thread at a time, and not always from the same one.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns of the scene."""
        ...

    def read(self, window: Window) -> Raster:
        """The pixels of a window: values uint8 (band, y, x)."""
        ...


@dataclass(frozen=True)
class Band:
    """Finished rows of a tile."""

    window: Window
    labels: NDArray[np.uint8]
    """(y, x); 255 = nodata."""
    confidence: NDArray[np.uint8]
    """(y, x); probability of the label in steps of 1/250, 255 = nodata."""
    auxiliary: NDArray[np.uint8]
    """(score, y, x); what the network says besides the classes, blended like them, then as codes from 0 to 250 of
    what is between 0 and 1 (sigmoid), 255 = nodata."""

    @classmethod
    def empty(cls, window: Window, scores: int) -> Band:
        """A band to be filled, with so many auxiliary scores. What a few of its rows have lies together in memory."""
        labels, confidence = np.empty(window.shape, np.uint8), np.empty(window.shape, np.uint8)
        auxiliary = np.empty((window.shape[0], scores, window.shape[1]), np.uint8).transpose(1, 0, 2)
        return cls(window, labels, confidence, auxiliary)

    def rows(self, start: int, stop: int) -> Band:
        """Some of the rows, counted as the scene's are; of the same memory."""
        rows = slice(start - self.window.row_start, stop - self.window.row_start)
        window = self.window.rows(start, stop)
        return Band(window, self.labels[rows], self.confidence[rows], self.auxiliary[:, rows])


class Sink(Protocol):
    """Where finished pixels go."""

    def write(self, band: Band) -> None:
        """Take a band: whole rows of storage chunks (or the last rows) of a tile; each pixel comes once."""
        ...


def crs_of(geobox: GeoBox) -> CRS:
    """The CRS of a scene's grid: `open_scene` lets none pass without one."""
    if geobox.crs is None:
        msg = f"this grid has no CRS: {geobox}"
        raise ValueError(msg)
    return geobox.crs


def ground_resolution(geobox: GeoBox) -> tuple[float, float]:
    """Metres on the ground between pixel centres, down a column and along a row, at the scene's centre.

    Geodesic on WGS 84, so that map metres (Web Mercator) and degrees come out as what a tape would measure.
    """
    rows, cols = geobox.shape
    col, row = cols / 2, rows / 2
    corners = [geobox.affine @ point for point in ((col, row), (col, row + 1), (col + 1, row))]
    to_lonlat = Transformer.from_crs(geobox.crs, 4326, always_xy=True)
    lon, lat = to_lonlat.transform([x for x, _ in corners], [y for _, y in corners])
    _, _, down = WGS84.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, along = WGS84.inv(lon[0], lat[0], lon[2], lat[2])
    return float(down), float(along)
