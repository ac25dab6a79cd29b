"""What decides about a pixel's value, for every format: the stretch to 8 bits, and what is valid.

All of it is fixed for the whole scene before the first window is read: which bands, which stretch, which pixels are
valid. A window's own content never does (scaling by tile shows as seams).
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from geoseg.errors import SceneError
from geoseg.raster import Raster, ground_resolution
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.io.masks import Mask

log = logging.getLogger("geoseg")

VISIBLE = {"red", "green", "blue", "coastal", "yellow", "pan"}
INFRARED = {"nir", "nir08", "nir09", "cirrus", "swir16", "swir22", "lwir", "lwir11", "lwir12"}
RED_EDGE = {"rededge", "rededge071", "rededge075", "rededge078"}
DESCRIBED = VISIBLE | RED_EDGE | INFRARED
"""STAC common names: what else a band is described as ("Band_1") says nothing about it."""

DAMAGED = "the file is damaged or incomplete; copy or download it again"

KEPT = 8 << 20
"""Pixels of a window up to which its validity is kept for the next of its size."""

OVERVIEW = 1024
"""Rows and columns at most of the overview that tells where a scene has data."""


@dataclass(frozen=True)
class Stretch:
    """How values of another type than uint8 become 0..255: linear between two values per band, the rest clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Values (band, y, x) of any real type as uint8; NaN becomes 0."""
        low, high = (np.asarray(v, np.float32)[:, None, None] for v in (self.low, self.high))
        with np.errstate(over="ignore", invalid="ignore"):  # nodata may be the lowest number that there is, or infinite
            scaled = (values.astype(np.float32) - low) * (255 / (high - low))
        bytes_: NDArray[np.uint8] = np.nan_to_num(np.clip(np.rint(scaled), 0, 255)).astype(np.uint8)
        return bytes_


def scaling_of(bands: Iterable[tuple[Any, Any]]) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each band as a scene has them."""
    told = tuple((float(scale), float(offset)) for scale, offset in bands)
    return told if any(each != (1.0, 0.0) for each in told) else ()


@dataclass(frozen=True)
class Survey:
    """What a catalog tells of a scene's file besides its grid, bands and date."""

    media_type: str | None
    """None: there is none for this format."""
    names: tuple[str, ...]
    """What the file itself calls each band; "" where it says nothing."""
    dtypes: tuple[str, ...]
    nodata: tuple[float | None, ...]
    valid: NDArray[np.bool_] | None
    """Which pixels (y, x) of an overview of the scene have data; None: all, as far as the file says."""


class SceneSource(ABC):
    """Pixels of a scene as the network wants them: chosen bands, uint8, with their validity.

    `inside` tells which pixels (y, x) of a window are wanted at all (an area of interest); what is not wanted is not
    valid, and is not read where nothing of a window is wanted. A format is a class below, with what reads its files.
    """

    errors: ClassVar[tuple[type[Exception], ...]]
    """What reading a damaged file raises."""

    def __init__(
        self,
        scene: Scene,
        bands: tuple[int, ...],
        stretch: Stretch | None = None,
        inside: Callable[[Window], NDArray[np.bool_]] | None = None,
        waits: tuple[float, ...] = (),
    ) -> None:
        """`waits`: seconds to wait before each further attempt, where a read has failed."""
        self.scene, self.bands, self.stretch, self.inside, self.waits = scene, bands, stretch, inside, waits
        self._extent = Window.of_shape(scene.shape)
        self._dataset: Any = None  # opened by whoever reads first, and again after an error
        self._masks: dict[tuple[str, str], Mask] = {}  # the same

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns of the scene."""
        return self.scene.shape

    def close(self) -> None:
        """Close its files; they are opened again when something is read."""
        self._dataset, self._masks = None, {}

    def read(self, window: Window) -> Raster:
        """Values uint8 (band, y, x) and validity (y, x) of a window, which may reach beyond the scene.

        Raises `SceneError` if the file is damaged there.
        """
        within = self._extent.intersection(window)
        if within == window:
            values, valid = self._read(window)
            return Raster(values, valid, self._grid(window))
        values = np.zeros((len(self.bands), *window.shape), np.uint8)
        valid = np.zeros(window.shape, bool)
        if within is not None:
            rows, cols = within.relative_to(window).slices
            values[:, rows, cols], valid[rows, cols] = self._read(within)
        return Raster(values, valid)

    def raw(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Chosen bands (band, y, x) as they are stored, and validity (y, x), of a window inside the scene.

        Raises `SceneError` if the file is damaged there.
        """
        return self._read_patiently(window)

    def _grid(self, window: Window) -> GeoBox:
        """The part of the scene's grid; slicing that does the same, and takes longer than to read a small window."""
        whole = self.scene.geobox
        return GeoBox(window.shape, whole.affine @ Affine.translation(window.col_start, window.row_start), whole.crs)

    def _read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        inside = None if self.inside is None else self.inside(window)
        if inside is not None and not inside.any():
            return np.zeros((len(self.bands), *window.shape), np.uint8), inside
        raw, valid = self._read_patiently(window)
        return self._bytes(raw), valid if inside is None else valid & inside

    def _bytes(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        return raw if self.stretch is None else self.stretch.apply(raw)

    def _read_patiently(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What the file holds, asked for again after each wait, for networks and disks have their moments."""
        for wait in self.waits:
            try:
                return self._read_asked(window)
            except self.errors + (SceneError,) as error:  # noqa: RUF005  # mypy cannot tell what is unpacked
                log.info("%s: %s; trying again in %.1f s", self.scene.path, error, wait)
                self._dataset, self._masks = None, {}
                time.sleep(wait)
        try:
            return self._read_asked(window)
        except self.errors as error:
            rows = f"rows {window.row_start} to {window.row_stop - 1}"
            msg = f"{self.scene.path}: {rows} cannot be read: {DAMAGED}"
            raise SceneError(msg) from error

    def _read_asked(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What the file holds, valid as far as the job has it."""
        values, valid = self._read_file(window)
        if self.scene.fill:
            valid = valid & self._not_fill(values)
        for what in (self.scene.mask, self.scene.clouds):
            if what is not None:
                valid = valid & self._told(what, *(np.arange(*span) for span in (window.row_range, window.col_range)))
        return values, valid

    def _not_fill(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        fill = np.asarray(self.scene.fill, np.float64).astype(values.dtype)
        return validity(values, values != fill[:, None, None])

    def _masked(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether pixels (y, x) are valid by the mask that the job names; clouds are found later than it is asked."""
        return self._told(self.scene.mask or ("mask", self.scene.path), rows, cols)

    def _told(self, what: tuple[str, str], rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether pixels (y, x) are valid by one of the scene's masks."""
        from geoseg.io.masks import Mask

        if what not in self._masks:
            self._masks[what] = Mask(self.scene.geobox, *what)
        return self._masks[what].valid(rows, cols)

    @abstractmethod
    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Chosen bands (band, y, x) as they are in the file, and validity (y, x), of a window inside the scene."""

    @abstractmethod
    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        """Chosen bands (band, y, x) by nearest, masked where the file says that a band has no data."""

    @abstractmethod
    def survey(self) -> Survey:
        """What a catalog wants to know; the chosen bands' overview tells where there is data. Raises `SceneError`."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """What GDAL's cache should hold so that reading rows in order decodes no block twice."""

    def overview(self, most: int) -> np.ma.MaskedArray[Any, Any]:
        """An overview of the chosen bands, with at most so many rows and columns. Raises `SceneError`."""
        shape = overview_shape(self.shape, most)
        try:
            values = self._read_overview(shape)
            missing = np.zeros(shape, bool)
            if self.scene.fill:
                missing |= ~self._not_fill(values.data)
            if self.scene.mask is not None:
                missing |= ~self._masked(*(nearest(*sides) for sides in zip(self.shape, shape, strict=True)))
            return np.ma.MaskedArray(values.data, np.ma.getmaskarray(values) | missing) if missing.any() else values
        except self.errors as error:
            msg = f"{self.scene.path}: cannot be read: {DAMAGED}"
            raise SceneError(msg) from error


def validity(values: NDArray[Any], has_data: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Which pixels (y, x) have data, of values and what is said of each (band, y, x); NaN and infinity never are.

    None: nothing is said, so all have. A pixel of integers is nodata when all bands are (a dark roof may well be 0 in
    one of them); of floats when any is. What it returns is not to be written to.
    """
    if np.issubdtype(values.dtype, np.floating):
        finite = np.isfinite(values)
        return np.asarray((finite if has_data is None else has_data & finite).all(axis=0), bool)
    rows, cols = values.shape[1:]
    return _everywhere(rows, cols) if has_data is None else np.asarray(has_data.any(axis=0), bool)


def _everywhere(rows: int, cols: int) -> NDArray[np.bool_]:
    """True for each pixel, always the same array: fresh memory costs half as much as to read uncompressed pixels."""
    return _all_valid(rows, cols) if rows * cols <= KEPT else np.ones((rows, cols), bool)


@lru_cache(maxsize=4)
def _all_valid(rows: int, cols: int) -> NDArray[np.bool_]:
    valid = np.ones((rows, cols), bool)
    valid.flags.writeable = False
    return valid


def nearest(side: int, count: int) -> NDArray[np.intp]:
    """Which pixels along a side an overview of so many of them holds: those that GDAL takes.

    >>> nearest(10, 4)
    array([1, 3, 6, 8])
    """
    return np.minimum(((np.arange(count) + 0.5) * (side / count) + 1e-10).astype(np.intp), side - 1)


def overview_shape(shape: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns of an overview with at most so many of them: every so-manieth pixel.

    >>> overview_shape((100, 30), 40)
    (34, 10)
    """
    factor = max(1, *(-(-side // most) for side in shape))
    return -(-shape[0] // factor), -(-shape[1] // factor)


def datetime_of(tags: dict[str, str]) -> dt.datetime | None:
    """When the scene was taken, if the file says so in one of the usual tags; taken as UTC."""
    for key in ("ACQUISITIONDATETIME", "acquisition_date", "TIFFTAG_DATETIME"):
        text = tags.get(key, "").strip()
        for form in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"):
            try:
                return dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC)
            except ValueError:
                continue
    return None


def resolution_of(geobox: GeoBox, path: str) -> tuple[float, float]:
    """Metres on the ground between pixels, down and along. Raises `SceneError` for a grid that lies nowhere."""
    try:
        resolution = ground_resolution(geobox)
    except ProjError as error:
        msg = f"{path}: its CRS cannot be brought to longitude and latitude ({error}); check it, or assign another one"
        raise SceneError(msg) from error
    if not all(np.isfinite(resolution)):
        msg = f"{path}: its centre lies outside what {geobox.crs} can describe; check its CRS and geotransform"
        raise SceneError(msg)
    return resolution
