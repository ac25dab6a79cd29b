"""Scenes of several files, one for each band: those of Sentinel-2, Landsat, or what the user names.

Each band may have its own resolution. All are read on one grid, that of the finest band that is needed (the first of
those), by bilinear interpolation between the centres of pixels. The pixels of a window are computed from their places
in the scene alone, so no window gets other ones; GDAL's warper rounds a tie up in one window and down in another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.windows
from rasterio.enums import MaskFlags

from geoseg.catalog import Scene
from geoseg.errors import SceneError
from geoseg.io.band_names import folder_of, is_band_folder, is_item, is_pairs, item_of, pairs_of
from geoseg.io.gdal_scenes import UNREADABLE, geobox_of, media_type, open_dataset, open_raster
from geoseg.io.netcdf_scenes import is_netcdf, open_netcdf
from geoseg.io.pixels import OVERVIEW, SceneSource, Survey, scaling_of, validity
from geoseg.io.places import aligned, places, to_file
from geoseg.io.zarr_scenes import is_zarr, open_zarr
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from affine import Affine
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.io.band_names import BandFiles
    from geoseg.window import Window

SAME_PLACE = 1e-3
"""Pixels by which two grids may be off each other and still be the same one."""


def is_band_files(path: str) -> bool:
    """Whether a path names the files of several bands: pairs, a STAC item or a folder."""
    return is_pairs(path) or is_item(path) or is_band_folder(path)


def open_band_files(path: str) -> Scene:
    """The scene of all bands that a path names, on the grid of the finest; no pixel is read.

    Raises `SceneError` if a file is missing or has several bands, or if two do not lie on each other.
    """
    told = pairs_of(path) if is_pairs(path) else item_of(path) if is_item(path) else folder_of(path)
    if told.raster is None:
        return _scene(path, told)
    read = open_zarr if is_zarr(told.raster) else open_netcdf if is_netcdf(told.raster) else open_raster
    scene = read(told.raster)
    when = told.datetime or scene.datetime
    scene = replace(scene, item=told.item, masks=told.masks, cloud_cover=told.cloud_cover)
    return replace(scene, id=told.id, datetime=when)


def _scene(path: str, told: BandFiles) -> Scene:
    if not told.files:
        msg = f"{path}: names no band, only {', '.join(name for name, _ in told.masks)}; add one: red=FILE"
        raise SceneError(msg)
    headers = [_header(file) for _, file in told.files]
    finest = _finest(headers)
    for header in headers:
        _check_fits(header, finest)
    return Scene(
        id=told.id,
        path=path,
        geobox=finest.geobox,
        bands=tuple(name for name, _ in told.files),
        dtype=str(np.result_type(*(header.dtype for header in headers))),
        datetime=told.datetime or next((header.datetime for header in headers if header.datetime), None),
        ground_resolution=finest.ground_resolution,
        item=told.item,
        cloud_cover=told.cloud_cover,
        scaling=scaling_of(header.scaling[0] if header.scaling else (1, 0) for header in headers),
        files=tuple(file for _, file in told.files),
        masks=told.masks,
    )


def only_bands(scene: Scene, bands: tuple[int, ...]) -> Scene:
    """The scene of those of its files alone that hold these bands, in this order, on the grid of the finest of them.

    Other bands neither set the grid nor have a say in whether the scene has changed.
    """
    files = tuple(scene.files[band - 1] for band in bands)
    headers = [_header(file) for file in files]
    finest = _finest(headers)
    return replace(
        scene,
        geobox=finest.geobox,
        bands=tuple(scene.bands[band - 1] for band in bands),
        dtype=str(np.result_type(*(header.dtype for header in headers))),
        ground_resolution=finest.ground_resolution,
        files=files,
    )


def _header(path: str) -> Scene:
    """What a file tells of itself. Raises `SceneError` if it has several bands, or no place."""
    scene = open_raster(path)
    if len(scene.bands) != 1:
        msg = f"{path}: has {len(scene.bands)} bands where a file of one is meant; give it as the scene itself"
        raise SceneError(msg)
    return scene


def _finest(headers: list[Scene]) -> Scene:
    """The first of those with the smallest pixels."""
    return min(headers, key=lambda header: round(abs(header.geobox.affine.determinant) ** 0.5, 12))


def _check_fits(header: Scene, finest: Scene) -> None:
    """Raises `SceneError` unless a file lies on the grid's file, as far as CRS, axes and extent tell."""
    if header.geobox.crs != finest.geobox.crs:
        what = f"is in {_crs_name(header)}, {finest.path} in {_crs_name(finest)}"
        remedy = "warp one of them to the other's CRS first (gdalwarp -t_srs)"
    elif not aligned(affine := to_file(header.geobox, finest.geobox)):
        what, remedy = f"is turned against {finest.path}", "warp one of them to the other's grid first (gdalwarp)"
    elif not all(_covered(affine, finest.shape, header.shape)):
        what = f"covers nothing of {finest.path}"
        remedy = "give files of the same place"
    else:
        return
    msg = f"{header.path}: {what}, so they are no bands of one scene; {remedy}"
    raise SceneError(msg)


def _crs_name(scene: Scene) -> str:
    crs = crs_of(scene.geobox)
    return f"EPSG:{crs.epsg}" if crs.epsg else crs.proj.name


def _covered(affine: Affine, scene: tuple[int, int], file: tuple[int, int]) -> tuple[range, range]:
    """Rows and columns of a scene whose centres a file covers."""
    rows = _covered_along(affine.e, affine.f, scene[0], file[0])
    return rows, _covered_along(affine.a, affine.c, scene[1], file[1])


def _covered_along(scale: float, start: float, count: int, side: int) -> range:
    ends = sorted((-start / scale, (side - start) / scale))
    first, stop = max(0, math.floor(ends[0]) - 1), min(count, math.ceil(ends[1]) + 1)
    while first < stop and not 0 <= places(scale, start, np.array([first]))[0] < side:
        first += 1
    while first < stop and not 0 <= places(scale, start, np.array([stop - 1]))[0] < side:
        stop -= 1
    return range(first, stop) if first < stop else range(0)


@dataclass(frozen=True)
class _Axis:
    """How pixels along one side of a window are made of a file's."""

    first: int
    stop: int
    """The file's pixels that are needed."""
    near: NDArray[np.intp]
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    """Of each pixel the nearest of those, and the two whose centres it lies between; counted from the first."""
    share: NDArray[np.float64]
    """What the higher of the two counts."""
    inside: NDArray[np.bool_]
    """Whether the file covers the pixel's centre."""

    @classmethod
    def of(cls, scale: float, start: float, span: tuple[int, int], side: int) -> _Axis:
        """`span` of the scene's pixels; beyond its last pixel a file goes on with that one."""
        there = places(scale, start, np.arange(*span))
        lower = np.floor(there - 0.5).astype(np.intp)
        nearest = np.floor(there).astype(np.intp)
        low, high, near = (np.clip(index, 0, side - 1) for index in (lower, lower + 1, nearest))
        first, stop = int(low.min()), int(high.max()) + 1
        inside = (there >= 0) & (there < side)
        return cls(first, stop, near - first, low - first, high - first, there - 0.5 - lower, inside)


class _BandFile:
    """One open file, read on the scene's grid."""

    def __init__(self, path: str, scene: GeoBox) -> None:
        self._dataset = open_dataset(path)
        here = geobox_of(self._dataset, path)
        self._to_file = to_file(here, scene)
        self.shape = (int(here.shape[0]), int(here.shape[1]))
        corners = [(0, 0), scene.shape[::-1]]
        off = max(np.abs(np.subtract(self._to_file @ corner, corner)).max() for corner in corners)
        self._all_valid = self._dataset.mask_flag_enums[0] == [MaskFlags.all_valid]
        self.same = self.shape == tuple(scene.shape) and bool(off < SAME_PLACE)

    def read(self, window: Window, out: NDArray[Any]) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
        """Put values (y, x) of a window of the scene into `out`; tell where the file has data, and covers the scene.

        None: everywhere.
        """
        if self.same:
            place = _place(window.row_range, window.col_range)
            self._dataset.read(1, window=place, out=out)
            return self._has_data(out, place), None
        rows = _Axis.of(self._to_file.e, self._to_file.f, window.row_range, self.shape[0])
        cols = _Axis.of(self._to_file.a, self._to_file.c, window.col_range, self.shape[1])
        place = _place((rows.first, rows.stop), (cols.first, cols.stop))
        values = self._dataset.read(1, window=place)
        has_data = self._has_data(values, place)
        out[:] = _between(values, has_data, rows, cols)
        inside = None if rows.inside.all() and cols.inside.all() else np.logical_and.outer(rows.inside, cols.inside)
        return None if has_data is None else has_data[np.ix_(rows.near, cols.near)], inside

    def _has_data(self, values: NDArray[Any], place: Any, **how: Any) -> NDArray[np.bool_] | None:
        finite = np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else None
        if self._all_valid:
            return finite
        told = np.asarray(self._dataset.read_masks(1, window=place, **how) > 0, bool)
        return told if finite is None else told & finite

    def overview(self, scene: tuple[int, int], shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        """An overview (y, x) of the scene by nearest, masked where the file has no data or does not reach."""
        covered = _covered(self._to_file, scene, self.shape)
        axes = ((self._to_file.e, self._to_file.f), (self._to_file.a, self._to_file.c))
        spans, there = [], []
        for within, (scale, start), side, count in zip(covered, axes, scene, shape, strict=True):
            first, stop = within.start * count // side, -(-within.stop * count // side)
            ends = sorted((first * side / count * scale + start, stop * side / count * scale + start))
            spans.append(ends)
            there.append(slice(first, stop))
        (top, bottom), (left, right) = (
            (max(low, 0), min(high, limit)) for (low, high), limit in zip(spans, self.shape, strict=True)
        )
        place = rasterio.windows.Window(left, top, right - left, bottom - top)
        size = {"out_shape": (there[0].stop - there[0].start, there[1].stop - there[1].start)}
        values = self._dataset.read(1, window=place, **size)
        overview, missing = np.zeros(shape, values.dtype), np.ones(shape, bool)
        has_data = self._has_data(values, place, **size)
        overview[tuple(there)], missing[tuple(there)] = values, False if has_data is None else ~has_data
        return np.ma.MaskedArray(overview, missing)

    @property
    def block_bytes(self) -> int:
        """Bytes of a row of the file's blocks."""
        height, width = self._dataset.block_shapes[0]
        return int(height * -(-self.shape[1] // width) * width * np.dtype(self._dataset.dtypes[0]).itemsize)

    @property
    def told(self) -> tuple[str | None, str, float | None]:
        """Media type, description and nodata."""
        return media_type(self._dataset), self._dataset.descriptions[0] or "", self._dataset.nodatavals[0]


def _place(rows: tuple[int, int], cols: tuple[int, int]) -> Any:
    return rasterio.windows.Window(cols[0], rows[0], cols[1] - cols[0], rows[1] - rows[0])


def _between(values: NDArray[Any], has_data: NDArray[np.bool_] | None, rows: _Axis, cols: _Axis) -> NDArray[Any]:
    """Values (y, x) interpolated between those of pixels with data, in their own type."""
    if has_data is None or has_data.all():
        made = _blend(values.astype(np.float64), rows, cols)
    else:
        made = _blend(np.where(has_data, values, 0).astype(np.float64), rows, cols)
        weight = _blend(has_data.astype(np.float64), rows, cols)
        made = np.divide(made, weight, out=np.zeros_like(made), where=weight > 0)
    if np.issubdtype(values.dtype, np.integer):
        made = np.floor(made + 0.5)
    return made.astype(values.dtype)


def _blend(values: NDArray[np.float64], rows: _Axis, cols: _Axis) -> NDArray[np.float64]:
    across = values[:, cols.low] * (1 - cols.share) + values[:, cols.high] * cols.share
    down = rows.share[:, None]
    made: NDArray[np.float64] = across[rows.low] * (1 - down) + across[rows.high] * down
    return made


def _valid(values: NDArray[Any], has_data: list[NDArray[np.bool_] | None]) -> NDArray[np.bool_]:
    """What `validity` says of bands (band, y, x) of which some have data everywhere (None)."""
    known = [part for part in has_data if part is not None]
    if not known or (np.issubdtype(values.dtype, np.integer) and len(known) < len(has_data)):
        return validity(values, None)
    parts = [np.ones(values.shape[1:], bool) if part is None else part for part in has_data]
    return validity(values, np.stack(parts))


class BandFilesSource(SceneSource):
    """Pixels of several files, each with one band."""

    errors = UNREADABLE

    def _opened(self) -> dict[int, _BandFile]:
        """The files by band, those that are read alone."""
        if self._dataset is None:
            files = self.scene.files
            self._dataset = {band: _BandFile(files[band - 1], self.scene.geobox) for band in dict.fromkeys(self.bands)}
        opened: dict[int, _BandFile] = self._dataset
        return opened

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        files = self._opened()
        values = np.empty((len(self.bands), *window.shape), self.scene.dtype)
        told = [files[band].read(window, out) for band, out in zip(self.bands, values, strict=True)]
        valid = _valid(values, [has_data for has_data, _ in told])
        for _, inside in told:
            if inside is not None:
                valid = valid & inside
        return values, valid

    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        files = self._opened()
        overview: np.ma.MaskedArray[Any, Any] = np.ma.stack(
            [files[band].overview(self.shape, shape) for band in self.bands]
        )
        return overview

    def survey(self) -> Survey:
        """As `SceneSource` has it."""
        told = [self._opened()[band].told for band in self.bands]
        values = self.overview(OVERVIEW)
        return Survey(
            told[0][0],
            tuple(description for _, description, _ in told),
            (self.scene.dtype,) * len(told),
            tuple(nodata for *_, nodata in told),
            validity(values.data, ~np.ma.getmaskarray(values)),
        )

    def cache_bytes(self) -> int:
        """Two rows of each file's blocks, as for one file."""
        return int(min(max(2 * sum(file.block_bytes for file in self._opened().values()), 64 << 20), 1 << 30))
