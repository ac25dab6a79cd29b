"""Scenes as GDAL reads them: what a file is, and its pixels window by window.

All that decides about a pixel's value is fixed for the whole scene before the first window is read: which bands, which
stretch to 8 bits, which pixels are valid. A window's own content never does (scaling by tile shows as seams).
"""

from __future__ import annotations

import datetime as dt
import logging
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.windows
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geoseg.catalog import Scene
from geoseg.errors import SceneError
from geoseg.raster import Raster, ground_resolution
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

log = logging.getLogger("geoseg")

COMMON_NAMES = {
    ColorInterp.red: "red",
    ColorInterp.green: "green",
    ColorInterp.blue: "blue",
    ColorInterp.gray: "grey",
    ColorInterp.palette: "palette",
    ColorInterp.alpha: "alpha",
}

VISIBLE = {"red", "green", "blue", "coastal", "yellow", "pan"}
INFRARED = {"nir", "nir08", "nir09", "cirrus", "swir16", "swir22", "lwir", "lwir11", "lwir12"}
RED_EDGE = {"rededge", "rededge071", "rededge075", "rededge078"}
DESCRIBED = VISIBLE | RED_EDGE | INFRARED
"""STAC common names: what else a band is described as ("Band_1") says nothing about it."""

DAMAGED = "the file is damaged or incomplete; copy or download it again"

OVERVIEW = 1024
"""Rows and columns at most of the overview that tells where a scene has data."""

STRETCH_PERCENTILES = (1.0, 99.0)
STRETCH_SAMPLE = 1024
"""Rows and columns at most of the overview that a stretch is estimated from."""


def open_scene(path: str | Path) -> Scene:
    """What a raster file is: its grid, bands and date; no pixel is read.

    Raises `SceneError` if the file is missing, not a raster, or has no place on the ground.
    """
    path = str(path)
    if not path.startswith("/vsi") and "://" not in path and not Path(path).exists():
        msg = f"{path}: there is no such file; check the path"
        raise SceneError(msg)
    with _open(path) as dataset:
        if dataset.count == 0:
            msg = f"{path}: holds no bands itself; name one of its subdatasets: {', '.join(dataset.subdatasets[:3])}"
            raise SceneError(msg)
        geobox = _geobox_of(dataset, path)
        return Scene(
            id=Path(path).stem,
            path=path,
            geobox=geobox,
            bands=tuple(_common_name(dataset, band) for band in range(1, dataset.count + 1)),
            dtype=str(np.result_type(*dataset.dtypes)),
            datetime=_datetime_of(dataset.tags()),
            ground_resolution=_ground_resolution(geobox, path),
        )


def _open(path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        msg = f"{path}: cannot be read as a raster ({error}); give a GeoTIFF or another raster that GDAL reads"
        raise SceneError(msg) from error


def _geobox_of(dataset: Any, path: str) -> GeoBox:
    if dataset.transform == rasterio.Affine.identity():
        what = "ground control points only" if dataset.gcps[0] else "no geotransform"
        msg = f"{path}: has {what}, so its place on the ground is unknown; georeference it first, for instance "
        msg += "with gdalwarp or gdal_translate -a_ullr"
        raise SceneError(msg)
    if dataset.crs is None:
        msg = (
            f"{path}: has no CRS, so areas and coordinates are unknown; assign one first: gdal_edit.py -a_srs EPSG:XXXX"
        )
        raise SceneError(msg)
    if dataset.transform.determinant == 0:
        msg = f"{path}: its geotransform {tuple(dataset.transform)[:6]} gives pixels no area; correct it first"
        raise SceneError(msg)
    return GeoBox(dataset.shape, dataset.transform, dataset.crs)


def _ground_resolution(geobox: GeoBox, path: str) -> tuple[float, float]:
    resolution = ground_resolution(geobox)
    if not all(np.isfinite(resolution)):
        msg = f"{path}: its centre lies outside what {geobox.crs} can describe; check its CRS and geotransform"
        raise SceneError(msg)
    return resolution


def _common_name(dataset: Any, band: int) -> str:
    name = COMMON_NAMES.get(dataset.colorinterp[band - 1], "")
    description = (dataset.descriptions[band - 1] or "").strip().lower()
    # GDAL calls the only or first band of a file grey when nothing is known about it
    if name == "grey" and dataset.count > 1 and ColorInterp.alpha not in dataset.colorinterp[1:2]:
        name = ""
    return name or (description if description in DESCRIBED else "")


def _datetime_of(tags: dict[str, str]) -> dt.datetime | None:
    """When the scene was taken, if the file says so in one of the usual tags; taken as UTC."""
    for key in ("ACQUISITIONDATETIME", "acquisition_date", "TIFFTAG_DATETIME"):
        text = tags.get(key, "").strip()
        for form in ("%Y:%m:%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"):
            try:
                return dt.datetime.strptime(text, form).replace(tzinfo=dt.UTC)
            except ValueError:
                continue
    return None


@dataclass(frozen=True)
class Stretch:
    """How values of another type than uint8 become 0..255: linear between two values per band, the rest clipped."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Values (band, y, x) of any real type as uint8; NaN becomes 0."""
        low, high = (np.asarray(v, np.float32)[:, None, None] for v in (self.low, self.high))
        with np.errstate(over="ignore"):  # nodata may be the lowest number that there is
            scaled = (values.astype(np.float32) - low) * (255 / (high - low))
        bytes_: NDArray[np.uint8] = np.nan_to_num(np.clip(np.rint(scaled), 0, 255)).astype(np.uint8)
        return bytes_


class GdalSource:
    """Pixels of a scene as the network wants them: chosen bands, uint8, with their validity.

    `inside` tells which pixels (y, x) of a window are wanted at all (an area of interest); what is not wanted is not
    valid, and is not read where nothing of a window is wanted.
    """

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
        self._dataset: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns of the scene."""
        return self.scene.shape

    def read(self, window: Window) -> Raster:
        """Values uint8 (band, y, x) and validity (y, x) of a window, which may reach beyond the scene.

        Raises `SceneError` if the file is damaged there.
        """
        within = self._extent.intersection(window)
        if within == window:
            values, valid = self._read(window)
            return Raster(values, valid, self.scene.geobox[window.slices])
        values = np.zeros((len(self.bands), *window.shape), np.uint8)
        valid = np.zeros(window.shape, bool)
        if within is not None:
            rows, cols = within.relative_to(window).slices
            values[:, rows, cols], valid[rows, cols] = self._read(within)
        return Raster(values, valid)

    def _read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        inside = None if self.inside is None else self.inside(window)
        if inside is not None and not inside.any():
            return np.zeros((len(self.bands), *window.shape), np.uint8), inside
        raw, valid = self._read_patiently(window)
        values = raw if self.stretch is None else self.stretch.apply(raw)
        return values, valid if inside is None else valid & inside

    def _read_patiently(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What the file holds, asked for again after each wait, for networks and disks have their moments."""
        for wait in self.waits:
            try:
                return self._read_file(window)
            except (RasterioError, SceneError) as error:
                log.info("%s: %s; trying again in %.1f s", self.scene.path, error, wait)
                self._dataset = None
                time.sleep(wait)
        try:
            return self._read_file(window)
        except RasterioError as error:
            rows = f"rows {window.row_start} to {window.row_stop - 1}"
            msg = f"{self.scene.path}: {rows} cannot be read: {DAMAGED}"
            raise SceneError(msg) from error

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if self._dataset is None:
            self._dataset = _open(self.scene.path)
        place = rasterio.windows.Window(
            window.col_start, window.row_start, window.col_stop - window.col_start, window.row_stop - window.row_start
        )
        distinct = sorted(set(self.bands))
        read = self._dataset.read(distinct, window=place)
        valid = _validity(self._dataset, distinct, place, read)
        return (read if tuple(distinct) == self.bands else read[[distinct.index(b) for b in self.bands]]), valid

    def cache_bytes(self) -> int:
        """What GDAL needs to keep so that reading rows in order decodes every block once: two rows of blocks."""
        with _open(self.scene.path) as dataset:
            blocks = [
                height * -(-dataset.width // width) * width * np.dtype(dtype).itemsize
                for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True)
            ]
        return int(min(max(2 * sum(blocks), 64 << 20), 1 << 30))


def _validity(dataset: Any, bands: list[int], place: Any, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which pixels of values read from a place have data: by mask or alpha band, nodata value, never NaN or infinity.

    A pixel of integers is nodata when all bands are (a dark roof may well be 0 in one of them); of floats when any is.
    """
    flags = {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}
    valid: NDArray[np.bool_] = np.ones(values.shape[1:], bool)
    floating = np.issubdtype(values.dtype, np.floating)
    if MaskFlags.per_dataset in flags:
        valid = dataset.read_masks(bands[0], window=place, out_shape=values.shape[1:]) > 0
    elif MaskFlags.nodata in flags:
        masks = dataset.read_masks(bands, window=place, out_shape=values.shape) > 0
        valid = masks.all(axis=0) if floating else masks.any(axis=0)
    return valid & np.isfinite(values).all(axis=0) if floating else valid


def estimate_stretch(scene: Scene, bands: tuple[int, ...]) -> Stretch | None:
    """The stretch to 8 bits of a whole scene, from percentiles 1 and 99 of an overview; None if it is uint8 already.

    Raises `SceneError` if no pixel of the overview is valid.
    """
    if scene.dtype == "uint8":
        return None
    if np.issubdtype(np.dtype(scene.dtype), np.complexfloating):
        msg = f"{scene.path}: its values are complex ({scene.dtype}); geoseg maps real-valued imagery"
        raise SceneError(msg)
    with _open(scene.path) as dataset:
        shape = overview_shape(scene.shape, STRETCH_SAMPLE)
        try:
            values = dataset.read(list(bands), out_shape=(len(bands), *shape), masked=True)
        except RasterioError as error:
            msg = f"{scene.path}: cannot be read: {DAMAGED}"
            raise SceneError(msg) from error
    per_band = [band.compressed().astype(np.float64) for band in values]
    per_band = [band[np.isfinite(band)] for band in per_band]
    if not all(band.size for band in per_band):
        return Stretch((0.0,) * len(bands), (1.0,) * len(bands))
    limits = [np.percentile(band, STRETCH_PERCENTILES) for band in per_band]
    return Stretch(
        tuple(float(low) for low, _ in limits),
        tuple(float(high if high > low else low + 1) for low, high in limits),
    )


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


def survey(scene: Scene) -> Survey:
    """What a catalog wants to know of a scene's file; an overview is read where not all of it may have data.

    Raises `SceneError` if that cannot be read.
    """
    with _open(scene.path) as dataset:
        try:
            return Survey(
                _media_type(dataset),
                tuple((text or "").strip() for text in dataset.descriptions),
                tuple(dataset.dtypes),
                tuple(dataset.nodatavals),
                _valid_overview(dataset, [index for index, name in enumerate(scene.bands, 1) if name != "alpha"]),
            )
        except RasterioError as error:
            msg = f"{scene.path}: cannot be read: {DAMAGED}"
            raise SceneError(msg) from error


def _valid_overview(dataset: Any, bands: list[int]) -> NDArray[np.bool_] | None:
    flags = {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}
    if flags == {MaskFlags.all_valid} and np.issubdtype(np.result_type(*dataset.dtypes), np.integer):
        return None
    values = dataset.read(bands, out_shape=(len(bands), *overview_shape(dataset.shape, OVERVIEW)))
    return _validity(dataset, bands, None, values)


def overview_shape(shape: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns of an overview with at most so many of them: every so-manieth pixel.

    >>> overview_shape((100, 30), 40)
    (34, 10)
    """
    factor = max(1, *(-(-side // most) for side in shape))
    return -(-shape[0] // factor), -(-shape[1] // factor)


def _media_type(dataset: Any) -> str | None:
    if dataset.driver == "GTiff":
        cloud = dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
        return "image/tiff; application=geotiff" + ("; profile=cloud-optimized" if cloud else "")
    return "image/jp2" if dataset.driver.startswith("JP2") else None
