"""Scenes in memory: an `xarray.DataArray` (band, y, x) or (y, x), or a `Dataset` with one array for each band.

How it tells where it lies: see `geoseg.io.cubes`; rioxarray's and odc-geo's `spatial_ref` is what it mostly has. Arrays
of Dask are computed window by window, in whole chunks, and the chunks of a window are kept for the next, so that rows
in order compute each chunk once.

Such a scene has no file that could tell whether it is still the same, so its pixels do: an array in memory is known by
a digest of all its values, one of Dask by the name that Dask gave it, which is the same for the same computation as far
as its parts are told apart by what they are (files by path and time of change). Where Dask had to draw a name, another
process does not know the scene again, and maps it anew with --overwrite.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from geoseg.errors import SceneError
from geoseg.io.cubes import Cube, CubeSource, Image

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray
    from typing_extensions import TypeIs

    from geoseg.catalog import Scene
    from geoseg.io.hrefs import Labels

PREFIX = "xarray:"
"""How the path of a scene in memory begins, which nothing can be opened by."""

AT_ONCE = 64 << 20
"""Bytes that are brought into memory at once for a digest."""

KEPT = 256 << 20
"""Bytes of computed chunks that are kept for the next window at most."""


def is_array(scene: Any) -> TypeIs[xr.DataArray | xr.Dataset]:
    """Whether this is one of xarray's, which nobody has where xarray was not imported."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(scene, (xarray.DataArray, xarray.Dataset))


def is_in_memory(path: str) -> bool:
    """Whether a path is that of a scene in memory."""
    return path.startswith(PREFIX)


def open_array(array: xr.DataArray | xr.Dataset, name: str | None = None, labels: Labels = ()) -> Scene:
    """What an array is as a scene; nothing is computed. `name` is its id; None: the array's own name.

    Raises `SceneError` if it has no name, or is no scene.
    """
    told = name or str(getattr(array, "name", None) or array.attrs.get("id") or "")
    plain = re.sub(r"[^\w .-]+", "_", told).lstrip(". ")
    if not plain:
        msg = "a scene in memory needs a name, after which the folder of its results is called: name='town'"
        raise SceneError(msg)
    dataset = _dataset_of(array, plain)
    path = PREFIX + plain
    image = Image.of(Cube(path, dataset, _Computed(dataset).reader, labels=labels))
    return image.scene(plain, memory=image)


def refuse(path: str) -> Scene:
    """Raises `SceneError`: a path alone opens no scene in memory."""
    msg = f"{path}: is an array in the memory of one process, and tasks are told paths; write it to a Zarr store first "
    raise SceneError(msg + "(array.to_zarr), and name that")


def state_of_array(scene: Scene) -> dict[str, Any]:
    """What tells whether a scene in memory is still the same: reads all of what is not Dask's."""
    image: Image = scene.memory
    digest, names = sha256(), []
    for name in dict.fromkeys(name for name, _ in image.bands):
        variable = image.dataset[name].variable
        digest.update(repr((name, variable.dims, variable.shape, str(variable.dtype))).encode())
        if variable.chunks is not None:
            names.append(str(variable.data.name))
            continue
        for part in _parts(variable.shape, variable.dtype.itemsize):
            digest.update(np.ascontiguousarray(variable[part].to_numpy()).tobytes())
    digest.update(repr((image.bands, image.names, image.nodata, image.flipped, image.geobox)).encode())
    return {"sha256": digest.hexdigest(), **({"dask": names} if names else {})}


def _parts(shape: tuple[int, ...], itemsize: int) -> list[tuple[slice, ...]]:
    """Parts of an array along its first dimension, each so large that it can be in memory."""
    size = int(np.prod(shape[1:], dtype=np.int64)) * itemsize
    step = max(1, AT_ONCE // max(size, 1))
    return [(slice(k, k + step),) for k in range(0, shape[0], step)] if shape else [()]


def _dataset_of(array: xr.DataArray | xr.Dataset, name: str) -> xr.Dataset:
    """An array as a dataset of one; what a grid mapping is called by arrays is a coordinate."""
    if hasattr(array, "data_vars"):
        mappings = {str(a.attrs.get("grid_mapping")) for a in array.data_vars.values()} & {*map(str, array.data_vars)}
        return array.set_coords(sorted(mappings))
    own = str(array.name or name)
    return array.to_dataset(name=own if own not in {*map(str, array.coords), *map(str, array.dims)} else "image")


class ArraySource(CubeSource):
    """Pixels of a scene in memory."""

    errors = (OSError, ValueError, RuntimeError, KeyError, ArithmeticError)
    media_type = "application/x-xarray"

    def _open(self) -> Image:
        image: Image = self.scene.memory
        return image


@dataclass
class _Computed:
    """Reads arrays of a dataset, those of Dask in whole chunks."""

    dataset: xr.Dataset
    kept: dict[str, tuple[tuple[Any, ...], NDArray[Any]]] = field(default_factory=dict)
    """Of each array where the chunks of the last window lie, and what they hold."""

    def reader(self, name: str) -> Callable[[tuple[Any, ...]], NDArray[Any]]:
        """What reads an array."""
        variable = self.dataset.variables[name]

        def read(index: tuple[Any, ...]) -> NDArray[Any]:
            values: NDArray[Any] = variable[index].to_numpy()
            return values

        return read if variable.chunks is None else lambda index: self._read(name, index)

    def _read(self, name: str, index: tuple[Any, ...]) -> NDArray[Any]:
        variable = self.dataset.variables[name]
        if not all(isinstance(part, (slice, int)) for part in index):
            scattered: NDArray[Any] = variable[index].to_numpy()
            return scattered
        wanted = [(part, part + 1) if isinstance(part, int) else (part.start, part.stop) for part in index]
        chunks: tuple[tuple[int, ...], ...] = variable.chunks or ()
        spans = tuple(_whole(start, stop, sides) for (start, stop), sides in zip(wanted, chunks, strict=True))
        values = self._chunks(name, spans)
        inner = tuple(
            part - start if isinstance(part, int) else slice(part.start - start, part.stop - start)
            for part, (start, _) in zip(index, spans, strict=True)
        )
        return values[inner]

    def _chunks(self, name: str, spans: tuple[tuple[int, int], ...]) -> NDArray[Any]:
        """All of these chunks; only those that the last window did not have are computed."""
        variable = self.dataset.variables[name]
        before = self.kept.pop(name, None)
        values = None
        if before is not None:
            values = _further(before, spans, lambda more: variable[_slices(more)].to_numpy())
        if values is None:
            values = variable[_slices(spans)].to_numpy()
        if values.nbytes <= KEPT:
            self.kept[name] = spans, values
        return values


def _slices(spans: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(*span) for span in spans)


def _whole(start: int, stop: int, sides: tuple[int, ...]) -> tuple[int, int]:
    """The span of the chunks that a span touches."""
    ends = np.cumsum(sides)
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, max(stop - 1, start), side="right")
    return int(ends[first] - sides[int(first)]), int(ends[last])


def _further(
    before: tuple[tuple[Any, ...], NDArray[Any]],
    spans: tuple[tuple[int, int], ...],
    compute: Callable[[tuple[tuple[int, int], ...]], NDArray[Any]],
) -> NDArray[Any] | None:
    """Chunks of which some are there: those computed before, if they differ along one dimension and begin there.

    None: they are elsewhere.
    """
    old, values = before
    if old == spans:
        return values
    axes = [axis for axis, (one, other) in enumerate(zip(old, spans, strict=True)) if one != other]
    (axis, *more) = axes
    (start, stop), (first, last) = old[axis], spans[axis]
    if more or not start <= first < stop <= last:
        return None
    left = values[(slice(None),) * axis + (slice(first - start, None),)]
    if stop == last:
        return left
    return np.concatenate([left, compute((*spans[:axis], (stop, last), *spans[axis + 1 :]))], axis=axis)
