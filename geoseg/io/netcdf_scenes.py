"""Scenes in NetCDF files, through xarray: NetCDF 4 with h5netcdf or netCDF4 (extra `netcdf`), classic files with SciPy.

    town.nc                         the only image (band, y, x) or (y, x), or one array for each band
    town.nc/image, town.nc/r10m     one of several arrays, or a group
    town.nc#time=2024-05-01         one step of a dimension

How a file tells what it holds and where: see `geoseg.io.cubes`. A window is read where it lies, never the whole.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geoseg.errors import SceneError
from geoseg.io.cubes import LONGEST, Cube, CubeSource, Image
from geoseg.io.hrefs import kind_of, split_labels

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.catalog import Scene

MEDIA_TYPE = "application/netcdf"

NAMED = re.compile(r"(.+?\.(?:nc|nc4|cdf|netcdf))(?:/(.+))?", re.IGNORECASE)
"""A file, and what of it is meant."""

CLASSIC = (b"CDF\x01", b"CDF\x02")
"""How files begin that SciPy reads."""

MOST_DEFLATED = 1032
"""How many times as many bytes as it has deflated data become at most (zlib's own documentation)."""

HARMLESS = 16 << 20
"""Bytes that a chunk may become in any case."""

CHECKSUM = 4
"""Bytes of a chunk's checksum (Fletcher 32), behind its data."""

CHUNKS_KEPT = 64 << 20
"""Bytes of chunks that HDF5 keeps decoded, so that rows in order decode each once."""


def is_netcdf(path: str) -> bool:
    """Whether a path is a local NetCDF file, or something in one."""
    found = NAMED.fullmatch(split_labels(path)[0])
    return found is not None and kind_of(found[1]) == "file"


def open_netcdf(path: str) -> Scene:
    """What a file is: its grid, bands and date; no pixel is read. Raises `SceneError` if it is no scene."""
    file, inside = _parts(path)
    return _image(path).scene(Path(inside or file).stem, file=file)


def _parts(path: str) -> tuple[str, str | None]:
    found = NAMED.fullmatch(split_labels(path)[0])
    return (found[1], found[2]) if found else (path, None)


class NetcdfSource(CubeSource):
    """Pixels of a NetCDF file."""

    errors = (OSError, ValueError, RuntimeError, EOFError, ArithmeticError, KeyError)
    media_type = MEDIA_TYPE

    def _open(self) -> Image:
        return _image(self.scene.path)


def _image(path: str) -> Image:
    file, inside = _parts(path)
    whole = _dataset(path, file, inside)
    dataset = whole or _alone(path, file, inside or "")
    group = (inside or "") if whole else (inside or "").rpartition("/")[0]

    def reader(name: str) -> Callable[[tuple[Any, ...]], NDArray[Any]]:
        is_hdf5 = _engine(path, file)[0] == "h5netcdf"
        return _reader(dataset, name, _Chunks(file, f"{group}/{name}") if is_hdf5 else None)

    return Image.of(Cube(path, dataset, reader, labels=split_labels(path)[1]))


def _alone(path: str, file: str, inside: str) -> xr.Dataset:
    """One array of a file or group, with what tells where that is. Raises `SceneError` if there is none."""
    home, _, name = inside.rpartition("/")
    above = _dataset(path, file, home or None)
    arrays = [] if above is None else [*map(str, above.data_vars)]
    if above is None or name not in arrays:
        msg = f"{path}: has no group and no array {inside}; there are {', '.join(arrays) or 'none'}; name one of these"
        raise SceneError(msg)
    alone: xr.Dataset = above[[name]]
    return alone


class _Chunks:
    """The compressed chunks of an HDF5 array: HDF5 would decode them however large they become."""

    def __init__(self, file: str, where: str) -> None:
        """`where`: the array's path in the file."""
        import h5py

        self._array = h5py.File(file).get(where)
        if not isinstance(self._array, h5py.Dataset):  # a coordinate of a group above
            self._deflated = False
            return
        made_by = self._array.id.get_create_plist()
        filters = [made_by.get_filter(number)[0] for number in range(made_by.get_nfilters())]
        self._deflated = h5py.h5z.FILTER_DEFLATE in filters
        self._checksum = CHECKSUM if filters[-1:] == [h5py.h5z.FILTER_FLETCHER32] else 0
        self._right: set[tuple[int, ...]] = set()

    def check(self, index: tuple[Any, ...]) -> None:
        """Raises `ValueError` if a chunk that is touched becomes more than a chunk is."""
        if not self._deflated:
            return
        shape, side = self._array.shape, self._array.chunks
        size = math.prod(side) * self._array.dtype.itemsize
        for chunk in itertools.product(*map(_touched, index, shape, side)):
            if chunk not in self._right:
                self._check(tuple(place * length for place, length in zip(chunk, side, strict=True)), size)
                self._right.add(chunk)

    def _check(self, offset: tuple[int, ...], size: int) -> None:
        told = self._array.id.get_chunk_info_by_coord(offset)
        if told.byte_offset is None or told.filter_mask or told.size * MOST_DEFLATED <= max(size, HARMLESS):
            return
        _, stored = self._array.id.read_direct_chunk(offset)
        if len(zlib.decompressobj().decompress(stored[: len(stored) - self._checksum], size + 1)) > size:
            msg = f"a chunk becomes more than the {size} bytes that a chunk has"
            raise ValueError(msg)


def _touched(index: Any, size: int, side: int) -> list[int]:
    """Which chunks of a dimension an index touches."""
    places = np.arange(size)[index] if isinstance(index, slice) else np.asarray(index)
    return [int(chunk) for chunk in np.unique(places // side)]


def _reader(dataset: xr.Dataset, name: str, chunks: _Chunks | None) -> Callable[[tuple[Any, ...]], NDArray[Any]]:
    variable = dataset.variables[name]

    def read(index: tuple[Any, ...]) -> NDArray[Any]:
        if chunks is not None:
            chunks.check(index)
        values: NDArray[Any] = variable[index].to_numpy()
        return values

    return read


def _dataset(path: str, file: str, group: str | None) -> xr.Dataset | None:
    """A file's dataset, or a group's; None if there is no such group."""
    import xarray as xr

    engine, how = _engine(path, file)
    how |= {} if group is None else {"group": group}
    try:
        if engine == "h5netcdf":
            _open_once(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what has no say here
            dataset: xr.Dataset = xr.open_dataset(
                file,
                engine=engine,
                chunks=None,
                cache=False,
                mask_and_scale=False,
                decode_times=False,
                decode_coords="all",
                create_default_indexes=False,  # which would read a coordinate before it was looked at
                **how,
            )
            _check_coordinates(path, dataset)
            for name, coordinate in dataset.coords.items() if engine == "h5netcdf" else ():
                _Chunks(file, f"{group or ''}/{name}").check((slice(None),) * coordinate.ndim)
            return dataset
    except SceneError:
        raise
    except Exception as error:  # whatever HDF5, a codec or xarray makes of a file that is none
        if group is not None:
            return None
        msg = f"{path}: cannot be read as NetCDF ({' '.join(str(error).split())}); copy it again, or check what it is"
        raise SceneError(msg) from error


def _open_once(file: str) -> None:
    """Raises what HDF5 makes of damaged attributes, of which h5netcdf would besides print a traceback of its own."""
    import h5py

    with h5py.File(file) as opened:
        opened.attrs.get("_nc3_strict")


def _check_coordinates(path: str, dataset: xr.Dataset) -> None:
    for name, size in dataset.sizes.items():
        if size > LONGEST:
            msg = f"{path}: {name} has {size} values, at most {LONGEST} can be right; check the file"
            raise SceneError(msg)


def _engine(path: str, file: str) -> tuple[str, dict[str, Any]]:
    """Which of xarray's engines reads a file, and how. Raises `SceneError` if it is not there."""
    try:
        with Path(file).open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        msg = f"{path}: cannot be read: {error.strerror or error}; check the file"
        raise SceneError(msg) from error
    if magic in CLASSIC:
        return "scipy", {"mmap": False}
    if find_spec("h5netcdf") is not None and find_spec("h5py") is not None:
        return "h5netcdf", {"driver_kwds": {"rdcc_nbytes": CHUNKS_KEPT}}
    if find_spec("netCDF4") is not None:
        return "netcdf4", {}
    msg = f"{path}: NetCDF is read with h5netcdf: pip install 'geoseg[netcdf]'"
    raise SceneError(msg)
