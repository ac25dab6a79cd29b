"""Images in xarray's datasets, wherever these come from: which arrays hold bands, where they lie, how they are read.

    CRS           CF grid mapping (`spatial_ref`, `crs_wkt`), GDAL's `_CRS`, GeoZarr's `proj:code`, `proj:wkt2` ...
    place         `GeoTransform`, GeoZarr's `spatial:transform`, or the centres of pixels in coordinates x and y
    bands         coordinate `band`, `long_name`, or the arrays' names
    nodata        `_FillValue`, `missing_value`, `nodata`, or what the format itself says
    labels        of a dimension that is neither rows, columns nor bands, one step is chosen: `time=2024-05-01`

Rows that go up, or columns that go left, are read the other way round, so that each scene is north up.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyproj
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj.exceptions import ProjError

from geoseg.catalog import Scene
from geoseg.errors import SceneError
from geoseg.io.hrefs import labelled
from geoseg.io.pixels import (
    DESCRIBED,
    OVERVIEW,
    SceneSource,
    Survey,
    datetime_of,
    nearest,
    resolution_of,
    scaling_of,
    validity,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.io.hrefs import Labels
    from geoseg.window import Window

log = logging.getLogger("geoseg")

AXES = (("y", "x"), ("Y", "X"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"))
"""What the dimensions of an image are called, besides what `spatial:dimensions` says."""

TIMES = {"time", "t", "date", "datetime"}
"""What a dimension is called whose steps are no bands."""

DEEP = 3
"""Dimensions of an image of several bands."""

LONGEST = 1 << 24
"""Values of a coordinate, which is read as a whole when a store is opened."""

OFF_GRID = 0.05
"""Pixels by which a coordinate may be off a regular grid."""

WASTEFUL, LARGE = 8, 4 << 20
"""How many times more pixels than a window has may be decoded for it, and how many in any case, without a hint."""

LISTED = 8
"""Labels of a dimension that an error names at most."""


@dataclass(frozen=True)
class Cube:
    """A dataset as its format has opened it: nothing decoded but what coordinates and grid mappings mean."""

    path: str
    """For messages."""
    dataset: xr.Dataset
    pixels: Callable[[str], Callable[[tuple[Any, ...]], NDArray[Any]]]
    """Of an array by its name: what reads it at slices, lists or numbers of each of its dimensions."""
    fill: Callable[[str], Any] = lambda _: None
    """What the format itself says of an array's nodata, besides attributes."""
    groups: Callable[[], list[str]] = list
    """Paths of what lies below and may be meant, where this holds no image."""
    crs: str = ""
    """What the format itself says of it, besides attributes."""
    labels: Labels = ()
    """Dimensions, and the label of the one step that is meant."""


class CubeSource(SceneSource):
    """Pixels of an image in a dataset."""

    media_type: str

    @abstractmethod
    def _open(self) -> Image:
        """The scene's image."""

    def _opened(self) -> Image:
        if self._dataset is None:
            self._dataset = self._open()
        image: Image = self._dataset
        return image

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        rows, cols = window.slices
        return self._opened().read(self.bands, rows, cols)

    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        rows, cols = (nearest(side, count) for side, count in zip(self.shape, shape, strict=True))
        values, has_data = self._opened().values(self.bands, rows, cols)
        return np.ma.MaskedArray(values, np.ma.nomask if has_data is None else ~has_data)

    def survey(self) -> Survey:
        """As `SceneSource` has it."""
        image = self._opened()
        valid = None
        if np.issubdtype(image.dtype, np.floating) or image.alpha or any(v is not None for v in image.nodata):
            values = self.overview(OVERVIEW)
            valid = validity(values.data, ~np.ma.getmaskarray(values))
        count = len(image.names)
        return Survey(self.media_type, image.names, (str(image.dtype),) * count, image.nodata, valid)

    def cache_bytes(self) -> int:
        """Little: GDAL reads nothing here."""
        return 64 << 20


@dataclass(frozen=True)
class Image:
    """The image in a dataset, and how its pixels are found."""

    cube: Cube
    dataset: xr.Dataset
    """At the steps that were chosen."""
    steps: dict[str, int]
    """Which these are, by dimension."""
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
    def of(cls, cube: Cube) -> Image:
        """The image of a dataset. Raises `SceneError` if there is none, or none that can be placed."""
        path = cube.path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odc-geo and xarray tell of CRS that they do not understand: we do, too
            dataset, steps = _chosen(cube)
            dims, arrays = _arrays_of(cube, dataset)
            bands = [
                (str(a.name), k) for a in arrays for k in (range(_count(a, dims)) if a.ndim > len(dims) else [None])
            ]
            shape = arrays[0].sizes[dims[0]], arrays[0].sizes[dims[1]]
            affine = _affine_of(dataset, arrays[0], dims, path)
            geobox = GeoBox(shape, affine, _crs_of(dataset, arrays[0], cube))
        turned = bool(affine.b or affine.d)
        flipped = (not turned and affine.e > 0, not turned and affine.a < 0)
        nodata = {str(array.name): _nodata_of(array, cube) for array in arrays}
        names = tuple(name for array in arrays for name in _names_of(array, dims))
        return cls(
            cube,
            dataset,
            steps,
            tuple(bands),
            dims,
            names,
            tuple(nodata[a] for a, _ in bands),
            _flip(geobox, flipped),
            flipped,
        )

    def scene(self, name: str, **more: Any) -> Scene:
        """The scene of this image, called so; labels that were chosen are part of its name."""
        return Scene(
            id=labelled(name, self.cube.labels),
            path=self.cube.path,
            geobox=self.geobox,
            bands=self.common_names,
            dtype=str(self.dtype),
            datetime=self.datetime,
            ground_resolution=resolution_of(self.geobox, self.cube.path),
            scaling=self._scaling,
            **more,
        )

    @property
    def _scaling(self) -> tuple[tuple[float, float], ...]:
        told = (self.dataset[array] for array, _ in self.bands)
        known = ({**array.encoding, **array.attrs} for array in told)
        try:
            return scaling_of((each.get("scale_factor", 1), each.get("add_offset", 0)) for each in known)
        except (TypeError, ValueError):
            return ()  # no number is none

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
        if names[:1] == ("grey",) and not any(names[1:]):
            names = ("",) * len(names)  # so GDAL calls the first band when nothing is known
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
        """The arrays that hold bands."""
        found = {}
        for name in dict.fromkeys(name for name, _ in self.bands):
            array, view = self.cube.dataset[name], _without_time(self.dataset[name], self.dims)
            across = tuple(str(dim) for dim in view.dims if dim not in self.dims)
            chunks = array.encoding.get("preferred_chunks") or {}
            steps = {dim: step for dim, step in self.steps.items() if dim in array.dims}
            pixels = self.cube.pixels(name)
            found[name] = _Stored(pixels, tuple(map(str, array.dims)), across, self.dims, chunks, steps)
        return found

    def _hint(self, name: str, place: dict[str, Any]) -> None:
        """Tell, once for each store, of chunks that are far larger than the windows that are read of them."""
        stored = self._stored_arrays[name]
        spans = [(span, int(stored.chunks.get(dim, 1))) for dim, span in place.items() if isinstance(span, slice)]
        asked = math.prod(span.stop - span.start for span, _ in spans)
        decoded = math.prod((-(-span.stop // side) - span.start // side) * side for span, side in spans)
        if decoded > max(WASTEFUL * asked, LARGE) and self.cube.path not in _told:
            _told.add(self.cube.path)
            shape = " x ".join(str(stored.chunks.get(dim, 1)) for dim in (*stored.across, *self.dims))
            log.info(
                "%s: its chunks of %s are far larger than the windows read; smaller are faster", self.cube.path, shape
            )


@dataclass(frozen=True)
class _Stored:
    """An array of a store."""

    pixels: Callable[[tuple[Any, ...]], NDArray[Any]]
    names: tuple[str, ...]
    """Of its dimensions."""
    across: tuple[str, ...]
    """The dimension of bands, if it has one."""
    dims: tuple[str, str]
    """Those of rows and columns."""
    chunks: dict[Any, int]
    """Sides of what is decoded together, by dimension."""
    steps: dict[str, int]
    """Which step of other dimensions is read, where it is not the only one."""

    def read(self, layers: list[int], rows: Any, cols: Any) -> NDArray[Any]:
        """Values (y, x), or (band, y, x) of these layers, at slices or lists of rows and columns."""
        place = {self.dims[0]: rows, self.dims[1]: cols} | {dim: _run(layers) for dim in self.across}
        read = self.pixels(tuple(place.get(dim, self.steps.get(dim, 0)) for dim in self.names))
        left = [dim for dim in self.names if dim in place]
        return read.transpose([left.index(dim) for dim in (*self.across, *self.dims)])


_told: set[str] = set()


def _run(layers: list[int]) -> slice | list[int]:
    """Places as a slice where they follow each other, which is read with less ado."""
    together = layers == list(range(layers[0], layers[-1] + 1))
    return slice(layers[0], layers[-1] + 1) if together else layers


# --- which steps are meant


def _chosen(cube: Cube) -> tuple[xr.Dataset, dict[str, int]]:
    """The dataset at the labels that were chosen, and which steps these are. Raises `SceneError` for one there is not.

    What was not chosen, and has one step, is as it is.
    """
    steps = {dim: _step(cube, dim, label) for dim, label in cube.labels}
    return cube.dataset.isel(steps), steps


def _step(cube: Cube, dim: str, label: str) -> int:
    dataset = cube.dataset
    if dim not in dataset.dims:
        there = ", ".join(f"{name} ({size})" for name, size in dataset.sizes.items())
        msg = f"{cube.path}: has no dimension {dim} to choose {label} of; there are {there}"
        raise SceneError(msg)
    texts = labels_of(dataset, dim)
    fitting = [k for k, text in enumerate(texts) if text == label] or [
        k for k, text in enumerate(texts) if _means(text, label, dated=_is_time(dataset, dim))
    ]
    if len(fitting) == 1:
        return fitting[0]
    several = f"; {_listed([texts[k] for k in fitting])} all begin so" if fitting else f"; there are {_listed(texts)}"
    what = "is not one step alone" if fitting else "is no step"
    msg = f"{cube.path}: {dim}={label} {what} of its {len(texts)}{several}; choose one of them: --select {dim}=LABEL"
    raise SceneError(msg)


def _means(text: str, label: str, *, dated: bool) -> bool:
    """Whether a label that is written in another way is this one: a part of a date, another form of a number."""
    if dated:
        whole = text if "T" in text else f"{text}T00:00:00"
        return whole.startswith(re.sub(r"(\.0*)?Z?$", "", label.replace(" ", "T")))
    try:
        return float(text) == float(label)
    except ValueError:
        return False


def labels_of(dataset: xr.Dataset, dim: str) -> list[str]:
    """How the steps of a dimension are called: dates in ISO 8601, words, numbers; without a coordinate 1, 2, 3 ..."""
    if dim not in dataset.coords:
        return [str(k) for k in range(1, dataset.sizes[dim] + 1)]
    values = dataset.coords[dim].to_numpy()
    if _is_time(dataset, dim):
        values = _decoded(dataset, dim)
        if values.dtype.kind == "M":
            texts = [str(text) for text in np.datetime_as_string(values.astype("datetime64[s]"))]
            return [text.removesuffix("T00:00:00") for text in texts]
    return [f"{value:.15g}" if values.dtype.kind == "f" else str(value) for value in values]


def _is_time(dataset: xr.Dataset, dim: str) -> bool:
    """Whether the steps of a dimension are times, so that they are no bands."""
    if dim not in dataset.coords:
        return dim in TIMES
    axis = dataset.coords[dim]
    return dim in TIMES or axis.dtype.kind == "M" or " since " in str(axis.attrs.get("units", ""))


def _decoded(dataset: xr.Dataset, dim: str) -> NDArray[Any]:
    import xarray as xr

    try:
        values: NDArray[Any] = xr.decode_cf(dataset[[dim]])[dim].to_numpy()
    except (ValueError, TypeError, OverflowError):
        values = dataset.coords[dim].to_numpy()
    return values


def _listed(texts: list[str]) -> str:
    if len(texts) <= LISTED:
        return ", ".join(texts)
    return f"{', '.join(texts[: LISTED - 1])} ... {texts[-1]}"


def _check_chosen(cube: Cube, dataset: xr.Dataset, found: list[xr.DataArray], dims: tuple[str, str]) -> None:
    """Raises `SceneError` where a dimension has several steps that are no bands, and none was chosen."""
    for array in found:
        others = [str(dim) for dim in array.dims if dim not in dims and array.sizes[dim] > 1]
        times = [dim for dim in others if _is_time(dataset, dim)]
        for dim in times or (others if len(others) > 1 else ()):
            texts = labels_of(dataset, dim)
            msg = f"{cube.path}: {array.name} has {len(texts)} steps of {dim} ({_listed(texts)}); choose one: "
            raise SceneError(msg + f"--select {dim}={texts[-1]}")


# --- which arrays are the image


def _arrays_of(cube: Cube, dataset: xr.Dataset) -> tuple[tuple[str, str], list[xr.DataArray]]:
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
            _check_chosen(cube, dataset, found, dims)
            return dims, _one_image(found, dims, cube.path)
    there, groups = ", ".join(map(str, dataset.variables)) or "no arrays", cube.groups()
    below = f"; or name one of its groups: {groups[0]}" if groups else ""
    msg = f"{cube.path}: has no image: there are {there}; it needs an array (band, y, x), or arrays (y, x){below}"
    raise SceneError(msg)


def _without_time(array: xr.DataArray, dims: tuple[str, str]) -> xr.DataArray:
    """An array without dimensions of one step that are neither rows, columns nor bands."""
    others = [dim for dim in array.dims if dim not in dims and array.sizes[dim] == 1]
    return array.squeeze([dim for dim in others if array.ndim > DEEP or dim in TIMES], drop=True)


def _one_image(found: list[xr.DataArray], dims: tuple[str, str], path: str) -> list[xr.DataArray]:
    """The only array (band, y, x), or else all arrays (y, x) by name, numbers by their value."""
    deep = [array for array in found if array.ndim == DEEP]
    flat = [array for array in found if array.ndim == len(dims)]
    if len(deep) == 1:
        return deep
    if deep or not flat:
        what = ", ".join(f"{array.name} {array.dims}" for array in found)
        msg = f"{path}: which image is meant? There are {what}; keep one (band, y, x), or arrays (y, x), in a group"
        msg += f", or name one of them: {path.partition('#')[0]}/{found[0].name}"
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


def _nodata_of(array: xr.DataArray, cube: Cube) -> float | None:
    """The value that stands for none, in the array's type."""
    told = next((array.attrs[key] for key in ("_FillValue", "missing_value", "nodata") if key in array.attrs), None)
    told = cube.fill(str(array.name)) if told is None else told
    try:
        value = None if told is None else float(np.asarray(told).ravel()[0])
    except (TypeError, ValueError, IndexError) as error:
        msg = f"{cube.path}: its nodata value {told!r} is no number; correct _FillValue of {array.name}, or remove it"
        raise SceneError(msg) from error
    if value is None:
        return None
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


def _crs_of(dataset: xr.Dataset, array: xr.DataArray, cube: Cube) -> CRS:
    from odc.geo.xr import ODCExtensionDa

    found = ODCExtensionDa(array).crs
    mapping = array.coords.get(_mapping_of(array))
    for attributes in (array.attrs, dataset.attrs, {} if mapping is None else mapping.attrs, {"proj:wkt2": cube.crs}):
        for text in () if found else _told_crs(attributes):
            try:
                found = found or CRS(text)
            except (ValueError, ProjError):
                continue
    if not isinstance(found, CRS):
        msg = (
            f"{cube.path}: has no CRS, so areas and coordinates are unknown; add one, as rioxarray's rio.write_crs does"
        )
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
    if "grid_mapping_name" in attributes:
        with contextlib.suppress(ProjError, KeyError, ValueError, TypeError):
            yield pyproj.CRS.from_cf(attributes)


def _mapping_of(array: xr.DataArray) -> str:
    """The coordinate that tells of an array's CRS, as CF has it."""
    told = array.encoding.get("grid_mapping", array.attrs.get("grid_mapping", "spatial_ref"))
    return str(told).partition(":")[0]


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
    where = array.coords.get(_mapping_of(array))
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
