"""Scenes that GDAL reads: GeoTIFF, JPEG 2000, VRT and the many others, one file with all its bands."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.windows
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from geoseg.catalog import Scene
from geoseg.errors import SceneError
from geoseg.io.hrefs import kind_of, split_labels
from geoseg.io.pixels import (
    DAMAGED,
    DESCRIBED,
    OVERVIEW,
    SceneSource,
    Survey,
    datetime_of,
    overview_shape,
    resolution_of,
    scaling_of,
    validity,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from geoseg.window import Window

COMMON_NAMES = {
    ColorInterp.red: "red",
    ColorInterp.green: "green",
    ColorInterp.blue: "blue",
    ColorInterp.gray: "grey",
    ColorInterp.palette: "palette",
    ColorInterp.alpha: "alpha",
}


PIXEL = "pixel"
"""What stands behind a file that has no place: `photo.png#pixel=0.5` has pixels of half a metre."""

NOWHERE = "+proj=laea +lat_0=0 +lon_0=0 +datum=WGS84 +units=m +no_defs"
"""Where a file without a place is put: square metres about longitude and latitude 0, its first corner there."""


def file_of(path: str) -> tuple[str, float | None]:
    """The file of a path, and metres of its pixels if the path tells them. Raises `SceneError` for other labels.

    >>> file_of("photo.png#pixel=0.5")
    ('photo.png', 0.5)
    """
    where, labels = split_labels(path)
    if not labels or (labels[0][0] != PIXEL and not kind_of(where)):
        return path, None  # a name may hold a sign that begins a label elsewhere: roof#1=2.tif
    (name, text), *more = labels
    try:
        side = float(text)
    except ValueError:
        side = math.nan
    if more or name != PIXEL or not 0 < side < math.inf:
        msg = f"{path}: of {Path(where).name} nothing can be chosen; write {Path(where).name}#{PIXEL}=0.5 to tell how "
        raise SceneError(msg + "many metres a pixel of a picture without a place has along its side")
    return where, side


def open_raster(path: str) -> Scene:
    """What a file is that GDAL reads; no pixel is read. Raises `SceneError` if it is none, or has no place."""
    where, side = file_of(path)
    if not where.startswith("/vsi") and "://" not in where and not kind_of(where):
        msg = f"{where}: there is no such file; check the path"
        raise SceneError(msg)
    with open_dataset(where) as dataset:
        if dataset.count == 0:
            msg = f"{path}: holds no bands itself; name one of its subdatasets: {', '.join(dataset.subdatasets[:3])}"
            raise SceneError(msg)
        geobox = geobox_of(dataset, path) if side is None else _geobox_nowhere(dataset, where, side)
        return Scene(
            id=Path(where).stem,
            path=path,
            file=None if side is None else where,
            geobox=geobox,
            bands=tuple(_common_name(dataset, band) for band in range(1, dataset.count + 1)),
            dtype=str(np.result_type(*dataset.dtypes)),
            datetime=datetime_of(dataset.tags()),
            ground_resolution=resolution_of(geobox, path),
            scaling=scaling_of(zip(dataset.scales, dataset.offsets, strict=True)),
        )


UNREADABLE = (RasterioError, CRSError, UnicodeDecodeError)
"""What rasterio raises for a file that is damaged: also where a CRS, or what GDAL says of it, is no text."""

PATIENCE = {
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_RETRY_CODES": "0,429,500,502,503,504",
}
"""How GDAL asks a server again, unless the environment says it otherwise: 0 is a connection that dropped.

Left to itself it takes a file whose server hung up once for one that is not there, and remembers that.
"""


def open_dataset(path: str) -> Any:
    """A file opened with rasterio. Raises `SceneError` for what GDAL does not read."""
    if "://" in path or path.startswith("/vsi"):
        for option, value in PATIENCE.items():
            os.environ.setdefault(option, value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except UNREADABLE as error:
        msg = f"{path}: cannot be read as a raster ({error}); give a GeoTIFF or another raster that GDAL reads"
        raise SceneError(msg) from error


def geobox_of(dataset: Any, path: str) -> GeoBox:
    """The grid of a dataset. Raises `SceneError` if it lies nowhere."""
    if dataset.transform == rasterio.Affine.identity():
        what, remedy = _placed_by(dataset)
        msg = f"{path}: has {what}, so its place on the ground is unknown; georeference it first, for instance with "
        raise SceneError(msg + remedy)
    if dataset.crs is None:
        msg = (
            f"{path}: has no CRS, so areas and coordinates are unknown; assign one first: gdal_edit.py -a_srs EPSG:XXXX"
        )
        raise SceneError(msg)
    if dataset.transform.determinant == 0:
        msg = f"{path}: its geotransform {tuple(dataset.transform)[:6]} gives pixels no area; correct it first"
        raise SceneError(msg)
    return GeoBox(dataset.shape, dataset.transform, dataset.crs)


def _geobox_nowhere(dataset: Any, where: str, side: float) -> GeoBox:
    """A grid of square pixels for a file that has no place. Raises `SceneError` if it has one."""
    if has_place(dataset):
        msg = f"{where}#{PIXEL}={side:g}: the file tells its place and pixels itself; leave {PIXEL} out, and see "
        raise SceneError(msg + "--resolution for another one")
    return GeoBox(dataset.shape, rasterio.Affine.scale(side, -side), NOWHERE)


def has_place(dataset: Any) -> bool:
    """Whether anything tells where a dataset is."""
    return bool(dataset.transform != rasterio.Affine.identity() or dataset.gcps[0] or dataset.rpcs is not None)


def _placed_by(dataset: Any) -> tuple[str, str]:
    """What tells where a dataset without a geotransform is, and the command that makes one of it."""
    where = f"{Path(dataset.name).name} placed.tif"
    points, crs = dataset.gcps
    if points:
        code = f"EPSG:{crs.to_epsg()}" if crs and crs.to_epsg() else "EPSG:XXXX"
        return "ground control points only", f"gdalwarp -tps -t_srs {code} {where}"
    if dataset.rpcs is not None:
        return "rational polynomials (RPC) only", f"gdalwarp -rpc -to RPC_DEM=dem.tif -t_srs EPSG:XXXX {where}"
    placed = f"gdal_translate -a_srs EPSG:XXXX -a_ullr LEFT TOP RIGHT BOTTOM {where}"
    return "no geotransform", f"{placed}, or tell the metres of a pixel: {Path(dataset.name).name}#{PIXEL}=0.5"


def _common_name(dataset: Any, band: int) -> str:
    name = COMMON_NAMES.get(dataset.colorinterp[band - 1], "")
    description = (dataset.descriptions[band - 1] or "").strip().lower()
    # GDAL calls the only or first band of a file grey when nothing is known about it
    if name == "grey" and dataset.count > 1 and ColorInterp.alpha not in dataset.colorinterp[1:2]:
        name = ""
    return name or (description if description in DESCRIBED else "")


class GdalSource(SceneSource):
    """Pixels of what GDAL reads."""

    errors = UNREADABLE

    @property
    def _file(self) -> str:
        return self.scene.file or self.scene.path

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if self._dataset is None:
            self._dataset = open_dataset(self._file)
            self._flags = _flags(self._dataset, self.bands)
        place = rasterio.windows.Window(
            window.col_start, window.row_start, window.col_stop - window.col_start, window.row_stop - window.row_start
        )
        distinct = sorted(set(self.bands))
        read = self._dataset.read(distinct, window=place)
        valid = _validity(self._dataset, distinct, place, read, self._flags)
        return (read if tuple(distinct) == self.bands else read[[distinct.index(b) for b in self.bands]]), valid

    def cache_bytes(self) -> int:
        """What GDAL needs to keep so that reading rows in order decodes every block once: two rows of blocks."""
        with open_dataset(self._file) as dataset:
            blocks = [
                height * -(-dataset.width // width) * width * np.dtype(dtype).itemsize
                for (height, width), dtype in zip(dataset.block_shapes, dataset.dtypes, strict=True)
            ]
        return int(min(max(2 * sum(blocks), 64 << 20), 1 << 30))

    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        with open_dataset(self._file) as dataset:
            values: np.ma.MaskedArray[Any, Any] = dataset.read(
                list(self.bands), out_shape=(len(self.bands), *shape), masked=True
            )
            return values

    def survey(self) -> Survey:
        """As `SceneSource` has it."""
        with open_dataset(self._file) as dataset:
            try:
                return Survey(
                    media_type(dataset),
                    tuple((text or "").strip() for text in dataset.descriptions),
                    tuple(dataset.dtypes),
                    tuple(dataset.nodatavals),
                    _valid_overview(dataset, list(self.bands)),
                )
            except UNREADABLE as error:
                msg = f"{self.scene.path}: cannot be read: {DAMAGED}"
                raise SceneError(msg) from error


def _flags(dataset: Any, bands: Iterable[int]) -> set[MaskFlags]:
    """What tells which pixels of these bands have data."""
    return {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}


def _validity(
    dataset: Any, bands: list[int], place: Any, values: NDArray[Any], flags: set[MaskFlags]
) -> NDArray[np.bool_]:
    """Which pixels of values read from a place have data: by mask or alpha band or nodata value; see `validity`."""
    if MaskFlags.per_dataset in flags:
        mask = dataset.read_masks(bands[0], window=place, out_shape=values.shape[1:]) > 0
        return validity(values, np.broadcast_to(mask, values.shape))
    if MaskFlags.nodata in flags:
        return validity(values, dataset.read_masks(bands, window=place, out_shape=values.shape) > 0)
    return validity(values, None)


def _valid_overview(dataset: Any, bands: list[int]) -> NDArray[np.bool_] | None:
    flags = _flags(dataset, bands)
    if flags == {MaskFlags.all_valid} and np.issubdtype(np.result_type(*dataset.dtypes), np.integer):
        return None
    values = dataset.read(bands, out_shape=(len(bands), *overview_shape(dataset.shape, OVERVIEW)))
    return _validity(dataset, bands, None, values, flags)


def media_type_of(path: str) -> str | None:
    """The same of a file."""
    with open_dataset(path) as dataset:
        return media_type(dataset)


def media_type(dataset: Any) -> str | None:
    """What STAC calls a dataset's format, if it has a name for it."""
    if dataset.driver == "GTiff":
        cloud = dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == "COG"
        return "image/tiff; application=geotiff" + ("; profile=cloud-optimized" if cloud else "")
    return "image/jp2" if dataset.driver.startswith("JP2") else None
