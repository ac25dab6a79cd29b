"""Scenes in Zarr stores, version 2 or 3: a group with an image (band, y, x) or (y, x), or with one array for each band.

    CRS           CF grid mapping (`spatial_ref`, `crs_wkt`), GDAL's `_CRS`, GeoZarr's `proj:code`, `proj:wkt2` ...
    place         `GeoTransform`, GeoZarr's `spatial:transform`, or the centres of pixels in coordinates x and y
    bands         coordinate `band`, `long_name`, or the arrays' names
    nodata        `_FillValue`, or the array's own fill value where that is not what Zarr fills with unasked

Rows that go up, or columns that go left, are read the other way round, so that each scene is north up.
"""

from __future__ import annotations

import json
import logging
import lzma
import math
import re
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from geoseg.catalog import Scene
from geoseg.errors import SceneError
from geoseg.io.hrefs import kind_of
from geoseg.io.pixels import (
    DESCRIBED,
    OVERVIEW,
    SceneSource,
    Survey,
    datetime_of,
    nearest,
    resolution_of,
    validity,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.window import Window

log = logging.getLogger("geoseg")

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
"""A folder that holds one of these is a Zarr group or array."""

MEDIA_TYPE = "application/vnd.zarr"

AXES = (("y", "x"), ("Y", "X"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"))
"""What the dimensions of an image are called, besides what `spatial:dimensions` says."""

DEEP = 3
"""Dimensions of an image of several bands."""

LONGEST = 1 << 24
"""Values of a coordinate, which is read as a whole when a store is opened."""

OFF_GRID = 0.05
"""Pixels by which a coordinate may be off a regular grid."""

WASTEFUL, LARGE = 8, 4 << 20
"""How many times more pixels than a window has may be decoded for it, and how many in any case, without a hint."""


def is_zarr(path: str) -> bool:
    """Whether a path is a local Zarr store, or a group in one."""
    return (
        "://" not in path
        and not path.startswith("/vsi")
        and any(kind_of(f"{path}/{name}") == "file" for name in METADATA)
    )


def open_zarr(path: str) -> Scene:
    """What a store is: its grid, bands and date; no pixel is read. Raises `SceneError` if it is no scene."""
    image = _Image.open(path)
    return Scene(
        id=Path(path).stem,
        path=path,
        geobox=image.geobox,
        bands=image.common_names,
        dtype=str(image.dtype),
        datetime=image.datetime,
        ground_resolution=resolution_of(image.geobox, path),
    )


class ZarrSource(SceneSource):
    """Pixels of a Zarr store."""

    errors = (OSError, ValueError, RuntimeError, EOFError, ArithmeticError, zlib.error, lzma.LZMAError)

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        image = self._opened()
        rows, cols = window.slices
        return image.read(self.bands, rows, cols)

    def _opened(self) -> _Image:
        if self._dataset is None:
            self._dataset = _Image.open(self.scene.path)
        image: _Image = self._dataset
        return image

    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        image = self._opened()
        rows, cols = (nearest(side, count) for side, count in zip(self.shape, shape, strict=True))
        values, has_data = image.values(self.bands, rows, cols)
        return np.ma.MaskedArray(values, np.ma.nomask if has_data is None else ~has_data)

    def survey(self) -> Survey:
        """As `SceneSource` has it."""
        image = self._opened()
        valid = None
        if np.issubdtype(image.dtype, np.floating) or image.alpha or any(v is not None for v in image.nodata):
            values = self.overview(OVERVIEW)
            valid = validity(values.data, ~np.ma.getmaskarray(values))
        count = len(image.names)
        return Survey(MEDIA_TYPE, image.names, (str(image.dtype),) * count, image.nodata, valid)

    def cache_bytes(self) -> int:
        """Little: GDAL reads nothing here."""
        return 64 << 20


@dataclass(frozen=True)
class _Image:
    """The image in a store, and how its pixels are found."""

    path: str
    dataset: xr.Dataset
    bands: tuple[tuple[str, int | None], ...]
    """Of each band its array, and its place along that one's first dimension; None: the array is the band."""
    dims: tuple[str, str]
    """Names of the dimensions of rows and columns."""
    names: tuple[str, ...]
    """What the store calls each band."""
    nodata: tuple[float | None, ...]
    geobox: GeoBox
    """North up as far as it is not turned."""
    flipped: tuple[bool, bool]
    """Whether rows and columns are stored the other way round."""

    @classmethod
    def open(cls, path: str) -> _Image:
        """The image of a store. Raises `SceneError` if there is none, or none that can be placed."""
        dataset = _open(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odc-geo and xarray tell of CRS that they do not understand: we do, too
            dims, arrays = _arrays_of(dataset, path)
            bands = [
                (str(a.name), k) for a in arrays for k in (range(_count(a, dims)) if a.ndim > len(dims) else [None])
            ]
            shape = arrays[0].sizes[dims[0]], arrays[0].sizes[dims[1]]
            affine = _affine_of(dataset, arrays[0], dims, path)
            geobox = GeoBox(shape, affine, _crs_of(dataset, arrays[0], path))
        turned = bool(affine.b or affine.d)
        flipped = (not turned and affine.e > 0, not turned and affine.a < 0)
        nodata = {str(array.name): _nodata_of(array, path) for array in arrays}
        names = tuple(name for array in arrays for name in _names_of(array, dims))
        return cls(
            path,
            dataset,
            tuple(bands),
            dims,
            names,
            tuple(nodata[a] for a, _ in bands),
            _flip(geobox, flipped),
            flipped,
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type that holds every band's values."""
        return np.result_type(*(self.dataset[array].dtype for array, _ in self.bands))

    @property
    def common_names(self) -> tuple[str, ...]:
        """STAC common names, "" where unknown; the only band is grey unless it says otherwise, as GDAL has it."""
        known = DESCRIBED | {"grey", "alpha"}
        lower = [{"gray": "grey"}.get(name.lower(), name.lower()) for name in self.names]
        names = tuple(name if name in known else "" for name in lower)
        return ("grey",) if names == ("",) else names

    @property
    def alpha(self) -> tuple[int, ...]:
        """The band, from 1, that tells what is valid, if there is one."""
        names = self.common_names
        return (names.index("alpha") + 1,) if "alpha" in names else ()

    @property
    def datetime(self) -> Any:
        """When it was taken, as far as an attribute or the only time tells."""
        attributes = self.dataset[self.bands[0][0]].attrs | self.dataset.attrs
        texts = {str(key): str(value) for key, value in attributes.items()}
        texts.setdefault("acquisition_date", texts.get("datetime", _only_time(self.dataset)))
        return datetime_of(texts)

    def read(self, bands: tuple[int, ...], rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (band, y, x) as stored, and validity (y, x), of a window inside the scene."""
        distinct = tuple(sorted(set(bands)))
        values, has_data = self.values(distinct, rows, cols)
        valid = validity(values, has_data)
        return (values if distinct == bands else values[[distinct.index(b) for b in bands]]), valid

    def values(
        self, bands: tuple[int, ...], rows: slice | NDArray[np.intp], cols: slice | NDArray[np.intp]
    ) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
        """Values of bands, counted from 1, and where each has data (band, y, x); chunks that do not exist are fill.

        None: nothing says that any has not.
        """
        place = self._stored(0, rows), self._stored(1, cols)
        wanted = (*bands, *self.alpha)
        read = self._read(wanted, *place).astype(self.dtype, copy=False)
        read = read[:, :: -1 if self.flipped[0] else 1, :: -1 if self.flipped[1] else 1]
        if self.alpha:
            return read[:-1], np.broadcast_to(read[-1] > 0, read[:-1].shape)
        if all(self.nodata[band - 1] is None for band in bands):
            return np.ascontiguousarray(read), None
        has_data = np.ones(read.shape, bool)
        for layer, band in zip(range(len(bands)), bands, strict=True):
            if (nodata := self.nodata[band - 1]) is not None:
                has_data[layer] = read[layer] != np.asarray(nodata).astype(read.dtype)
        return np.ascontiguousarray(read), has_data

    def _stored(self, axis: int, pixels: slice | NDArray[np.intp]) -> slice | NDArray[np.intp]:
        """Where pixels of the scene are in the store, still in the store's order."""
        side = int(self.geobox.shape[axis])
        if not self.flipped[axis]:
            return pixels
        if isinstance(pixels, slice):
            return slice(side - pixels.stop, side - pixels.start)
        stored: NDArray[np.intp] = (side - 1 - pixels)[::-1]
        return stored

    def _read(self, bands: tuple[int, ...], rows: Any, cols: Any) -> NDArray[Any]:
        """Bands (band, y, x), each array of the store being read once."""
        found = [self.bands[band - 1] for band in bands]
        arrays: dict[str, NDArray[Any]] = {}
        places: dict[str, list[int]] = {}
        for name in dict.fromkeys(name for name, _ in found):
            places[name] = sorted({layer for array, layer in found if array == name and layer is not None})
            arrays[name] = self._stored_arrays[name].read(places[name], rows, cols)
            self._hint(name, {self.dims[0]: rows, self.dims[1]: cols})
        (name, layers), *others = places.items()
        if not others and [layer for _, layer in found] == layers:
            return arrays[name]
        return np.stack([arrays[n] if k is None else arrays[n][places[n].index(k)] for n, k in found])

    @cached_property
    def _stored_arrays(self) -> dict[str, _Stored]:
        """The arrays that hold bands. xarray has told what they are; zarr itself reads a window in half the time."""
        import zarr

        found = {}
        for name in dict.fromkeys(name for name, _ in self.bands):
            array, view = self.dataset[name], _without_time(self.dataset[name], self.dims)
            across = tuple(str(dim) for dim in view.dims if dim not in self.dims)
            stored: Any = zarr.open_array(Path(self.path) / name, mode="r")
            chunks = array.encoding.get("preferred_chunks") or {}
            found[name] = _Stored(stored, tuple(map(str, array.dims)), across, self.dims, chunks)
        return found

    def _hint(self, name: str, place: dict[str, Any]) -> None:
        """Tell, once for each store, of chunks that are far larger than the windows that are read of them."""
        stored = self._stored_arrays[name]
        spans = [(span, int(stored.chunks.get(dim, 1))) for dim, span in place.items() if isinstance(span, slice)]
        asked = math.prod(span.stop - span.start for span, _ in spans)
        decoded = math.prod((-(-span.stop // side) - span.start // side) * side for span, side in spans)
        if decoded > max(WASTEFUL * asked, LARGE) and self.path not in _told:
            _told.add(self.path)
            shape = " x ".join(str(stored.chunks.get(dim, 1)) for dim in (*stored.across, *self.dims))
            log.info("%s: its chunks of %s are far larger than the windows read; smaller are faster", self.path, shape)


@dataclass(frozen=True)
class _Stored:
    """An array of a store."""

    array: Any
    """A `zarr.Array`."""
    names: tuple[str, ...]
    """Of its dimensions."""
    across: tuple[str, ...]
    """The dimension of bands, if it has one."""
    dims: tuple[str, str]
    """Those of rows and columns; all others have one step."""
    chunks: dict[Any, int]
    """Sides of what is decoded together, by dimension."""

    def read(self, layers: list[int], rows: Any, cols: Any) -> NDArray[Any]:
        """Values (y, x), or (band, y, x) of these layers, at slices or lists of rows and columns."""
        place = {self.dims[0]: rows, self.dims[1]: cols} | {dim: _run(layers) for dim in self.across}
        index = tuple(place.get(dim, 0) for dim in self.names)
        plain = all(isinstance(part, (slice, int)) for part in index)
        read: NDArray[Any] = self.array[index] if plain else self.array.oindex[index]
        left = [dim for dim in self.names if dim in place]
        return read.transpose([left.index(dim) for dim in (*self.across, *self.dims)])


_told: set[str] = set()


def _run(layers: list[int]) -> slice | list[int]:
    """Places as a slice where they follow each other, which is read with less ado."""
    together = layers == list(range(layers[0], layers[-1] + 1))
    return slice(layers[0], layers[-1] + 1) if together else layers


def _open(path: str) -> xr.Dataset:
    import xarray as xr

    _check_coordinates(Path(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of codecs and consolidated metadata that have no say here
            dataset: xr.Dataset = xr.open_dataset(
                path,
                engine="zarr",
                chunks=None,
                cache=False,
                consolidated=False,
                mask_and_scale=False,
                decode_times=False,
                decode_coords="all",
            )
            return dataset
    except Exception as error:  # whatever zarr, a codec or xarray makes of metadata that are none
        what = "holds an array without a group or without names of dimensions" if _is_bare(Path(path), error) else error
        msg = f"{path}: cannot be read as a Zarr group ({what}); write it with xarray, rioxarray or GDAL"
        raise SceneError(msg) from error


def _check_coordinates(path: Path) -> None:
    """Raises `SceneError` before xarray would fill the memory with a coordinate that no file can hold."""
    for file in (*path.glob("*/zarr.json"), *path.glob("*/.zarray")):
        try:
            shape = json.loads(file.read_text("utf-8")).get("shape")
        except (OSError, ValueError, AttributeError):
            continue  # xarray tells what is wrong with it
        if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > LONGEST:
            msg = (
                f"{path}: {file.parent.name} has {shape[0]} values, at most {LONGEST} can be right; check its metadata"
            )
            raise SceneError(msg)


def _is_bare(path: Path, error: Exception) -> bool:
    if (path / ".zarray").is_file() or "dimension" in str(error).lower():
        return True
    try:
        return bool(json.loads((path / "zarr.json").read_text("utf-8")).get("node_type") == "array")
    except (OSError, ValueError):
        return False


# --- which arrays are the image


def _arrays_of(dataset: xr.Dataset, path: str) -> tuple[tuple[str, str], list[xr.DataArray]]:
    """Dimensions of rows and columns, and the arrays that hold bands, in order."""
    rows, cols = dataset.attrs.get("spatial:dimensions") or AXES[0]
    pairs = ((str(rows), str(cols)), *AXES)
    for dims in pairs:
        found = [
            _without_time(array, dims)
            for array in dataset.data_vars.values()
            if set(dims) <= set(array.dims) and array.dtype.kind in "iufc"
        ]
        if found:
            return dims, _one_image(found, dims, path)
    groups = sorted(p.name for p in Path(path).iterdir() if p.is_dir() and is_zarr(str(p)))
    there = ", ".join(map(str, dataset.variables)) or "no arrays"
    below = f"; or name one of its groups: {path}/{groups[0]}" if groups else ""
    msg = f"{path}: has no image: there are {there}; it needs an array (band, y, x), or arrays (y, x){below}"
    raise SceneError(msg)


def _without_time(array: xr.DataArray, dims: tuple[str, str]) -> xr.DataArray:
    """An array without dimensions of one step that are neither rows, columns nor bands."""
    others = [dim for dim in array.dims if dim not in dims and array.sizes[dim] == 1]
    return array.squeeze([dim for dim in others if array.ndim > DEEP or dim in {"time", "t"}], drop=True)


def _one_image(found: list[xr.DataArray], dims: tuple[str, str], path: str) -> list[xr.DataArray]:
    """The only array (band, y, x), or else all arrays (y, x) by name, numbers by their value."""
    deep = [array for array in found if array.ndim == DEEP]
    flat = [array for array in found if array.ndim == len(dims)]
    if len(deep) == 1:
        return deep
    if deep or not flat:
        what = ", ".join(f"{array.name} {array.dims}" for array in found)
        msg = f"{path}: which image is meant? There are {what}; keep one (band, y, x), or arrays (y, x), in a group"
        raise SceneError(msg)
    return sorted(flat, key=lambda array: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", str(array.name))])


def _count(array: xr.DataArray, dims: tuple[str, str]) -> int:
    return math.prod(array.sizes[dim] for dim in array.dims if dim not in dims)


def _names_of(array: xr.DataArray, dims: tuple[str, str]) -> list[str]:
    """What the bands of an array are called; "" where nothing is said."""
    across = next((dim for dim in array.dims if dim not in dims), None)
    own = array.attrs.get("long_name", array.attrs.get("COLOR_INTERPRETATION", ""))
    if across is None:
        candidates = [str(array.name), str(own), str(array.attrs.get("common_name", ""))]
        known = DESCRIBED | {"grey", "gray", "alpha"}
        return [next((name for name in candidates if name.lower() in known), candidates[0])]
    count = array.sizes[across]
    labels = array.coords[across].to_numpy() if across in array.coords else ()
    if len(labels) == count and all(isinstance(label, str) for label in labels):
        return [str(label) for label in labels]
    if isinstance(own, (list, tuple)) and len(own) == count:
        return [str(name) for name in own]
    return [""] * count


def _nodata_of(array: xr.DataArray, path: str) -> float | None:
    """The value that stands for none, in the array's type."""
    told = array.attrs.get("_FillValue", array.attrs.get("missing_value"))
    if told is None:
        import zarr

        own = zarr.open_array(Path(path) / str(array.name), mode="r").fill_value
        told = own if own is not None and own != 0 else None
    if told is None:
        return None
    value = float(np.asarray(told))
    fits = array.dtype.kind not in "iu" or np.iinfo(array.dtype).min <= value <= np.iinfo(array.dtype).max
    return value if fits else None


def _only_time(dataset: xr.Dataset) -> str:
    """The date of a coordinate `time` that has one value; nothing where there is none."""
    import xarray as xr

    try:
        times = xr.decode_cf(dataset[["time"]]).time.to_numpy().astype("datetime64[s]").ravel()
    except (KeyError, ValueError, TypeError):
        return ""
    return str(times[0]) if times.size == 1 else ""


# --- where it is


def _flip(geobox: GeoBox, flipped: tuple[bool, bool]) -> GeoBox:
    rows, cols = geobox.shape
    affine = geobox.affine
    if flipped[0]:
        affine = affine @ Affine(1, 0, 0, 0, -1, rows)
    if flipped[1]:
        affine = affine @ Affine(-1, 0, cols, 0, 1, 0)
    return GeoBox((rows, cols), affine, geobox.crs)


def _crs_of(dataset: xr.Dataset, array: xr.DataArray, path: str) -> CRS:
    from odc.geo.xr import ODCExtensionDa

    found = ODCExtensionDa(array).crs
    for attributes in (array.attrs, dataset.attrs):
        for text in () if found else _told_crs(attributes):
            try:
                found = found or CRS(text)
            except (ValueError, ProjError):
                continue
    if not isinstance(found, CRS):
        msg = f"{path}: has no CRS, so areas and coordinates are unknown; add one, as rioxarray's rio.write_crs does"
        raise SceneError(msg)
    return found


def _told_crs(attributes: dict[Any, Any]) -> Iterator[Any]:
    """What may be a CRS in GDAL's or GeoZarr's words."""
    own = attributes.get("_CRS")
    if isinstance(own, dict):
        code = re.search(r"EPSG/\w*/(\d+)$", str(own.get("url", "")))
        yield from (f"EPSG:{code[1]}",) if code else ()
        yield from (own[key] for key in ("wkt", "projjson") if key in own)
    for key in ("proj:code", "proj:wkt2", "proj:projjson", "proj:epsg"):
        if attributes.get(key):
            yield attributes[key]


def _affine_of(dataset: xr.Dataset, array: xr.DataArray, dims: tuple[str, str], path: str) -> Affine:
    """From pixels of the store to the CRS. Raises `SceneError` where it is unknown, irregular or contradicts itself."""
    told = _told_affine(dataset, array, path)
    axes = [array.coords[dim].to_numpy().astype(np.float64) if dim in array.coords else None for dim in dims]
    if told is not None and (told.b or told.d):
        return told
    lines = [
        None if axis is None or (len(axis) == 1 and told is not None) else _line(axis, dim, array, path)
        for axis, dim in zip(axes, dims, strict=True)
    ]
    vertical, horizontal = lines
    if told is None and vertical and horizontal:
        return Affine(horizontal[0], 0, horizontal[1], 0, vertical[0], vertical[1])
    if told is None:
        msg = f"{path}: has no geotransform and no coordinates {dims[0]} and {dims[1]}, so its place is unknown; "
        raise SceneError(msg + "add the coordinates of the pixels' centres")
    steps, sides = ((told.e, told.f), (told.a, told.c)), [array.sizes[dim] for dim in dims]
    for line, (step, start), side in zip(lines, steps, sides, strict=True):
        ends = () if line is None else (line[1] - start, line[1] + line[0] * side - start - step * side)
        if any(abs(off) > abs(step) / 2 for off in ends):
            msg = f"{path}: its geotransform {tuple(told)[:6]} and its coordinates contradict each other; remove one"
            raise SceneError(msg)
    if told.determinant == 0:
        msg = f"{path}: its geotransform {tuple(told)[:6]} gives pixels no area; correct it first"
        raise SceneError(msg)
    return told


def _told_affine(dataset: xr.Dataset, array: xr.DataArray, path: str) -> Affine | None:
    """The geotransform that an attribute tells: GDAL's order in a grid mapping, STAC's in GeoZarr."""
    mapping = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping", "spatial_ref"))
    where = array.coords.get(str(mapping).partition(":")[0])
    try:
        if where is not None and "GeoTransform" in where.attrs:
            text = where.attrs["GeoTransform"]
            numbers = text.split() if isinstance(text, str) else text
            return Affine.from_gdal(*map(float, numbers))
        for attributes in (array.attrs, dataset.attrs):
            if "spatial:transform" in attributes:
                made = Affine(*map(float, attributes["spatial:transform"][:6]))
                centred = attributes.get("spatial:registration") == "node"
                return made @ Affine.translation(-0.5, -0.5) if centred else made
    except (TypeError, ValueError) as error:
        msg = f"{path}: its geotransform is no six numbers: {error}; correct it, or remove it where coordinates tell"
        raise SceneError(msg) from error
    return None


def _line(axis: NDArray[np.float64], dim: str, array: xr.DataArray, path: str) -> tuple[float, float]:
    """Step and start (the first pixel's outer edge) of a coordinate. Raises `SceneError` if it is irregular."""
    count = len(axis)
    step = (axis[-1] - axis[0]) / (count - 1) if count > 1 else math.nan
    expected = axis[0] + step * np.arange(count)
    dtype = array.coords[dim].dtype
    rounding = 2 * float(np.abs(axis).max()) * float(np.finfo(dtype).eps) if dtype.kind == "f" else 0.0
    if not math.isfinite(step) or step == 0 or np.abs(axis - expected).max() > OFF_GRID * abs(step) + rounding:
        msg = f"{path}: its coordinate {dim} is not regular, so pixels have no one size; resample it to a regular grid"
        raise SceneError(msg)
    return float(step), float(axis[0] - step / 2)
