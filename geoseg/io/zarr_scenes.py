"""Scenes in Zarr stores, version 2 or 3: a group with an image (band, y, x) or (y, x), or with one array for each band.

    store.zarr, store.zarr/group            in a folder, or at an address: https, s3, gs, az (extra `remote`)
    store.zarr/image                        one array of a group that holds several
    store.zarr#time=2024-05-01              one step of a dimension

How a group tells what it holds and where: see `geoseg.io.cubes`. The array's own fill value stands for no data where it
is not what Zarr fills with unasked. xarray tells what there is; zarr itself reads a window in half the time.
"""

from __future__ import annotations

import html
import json
import logging
import lzma
import re
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.errors import SceneError
from geoseg.io.cubes import LONGEST, Cube, CubeSource, Image
from geoseg.io.hrefs import kind_of, scheme_of, split_labels
from geoseg.io.zarr_mended import mended

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.io.hrefs import Labels

log = logging.getLogger("geoseg")

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
"""A folder that holds one of these is a Zarr group or array."""

MEDIA_TYPE = "application/vnd.zarr"

REMOTE = re.compile(r"(?:https?|s3|gs|az)://.+\.zarr(?:/.*)?", re.IGNORECASE)
"""An address of a store: nothing can be asked for what a folder holds, so its name has to tell."""


def is_zarr(path: str) -> bool:
    """Whether a path is a Zarr store, or a group or array in one."""
    where, _ = split_labels(path)
    return bool(REMOTE.fullmatch(where)) if scheme_of(where) else _is_local(where)


def _is_local(path: str) -> bool:
    return any(kind_of(f"{path}/{name}") == "file" for name in METADATA)


def open_zarr(path: str) -> Scene:
    """What a store is: its grid, bands and date; no pixel is read. Raises `SceneError` if it is no scene."""
    where, _ = split_labels(path)
    image = _image(path)
    if not scheme_of(where):
        _tell_missing(where, image)
    return image.scene(Path(where).stem, file=where)


def _tell_missing(where: str, image: Image) -> None:
    """Say so if chunks are not there that would be taken for ground: Zarr has their fill value in their place."""
    array = _arrays_in(_group_of(Path(where))[0])
    bands = {name: nodata for (name, _), nodata in zip(image.bands, image.nodata, strict=True)}
    for name in sorted(name for name, nodata in bands.items() if nodata is None):
        band = array(name)
        try:
            missing = band.nchunks - band.nchunks_initialized
        except ZarrSource.errors:  # what is damaged is told when it is read
            continue
        if missing > 0:
            fill = 0 if band.fill_value is None else band.fill_value
            what = f"{missing} of {band.nchunks} chunks of {name} are not there, and count as {fill}, which Zarr allows"
            remedy = f"if they should be, copy the store again, or leave them out with --nodata {fill}"
            log.warning("%s: %s; %s", where, what, remedy)


class ZarrSource(CubeSource):
    """Pixels of a Zarr store."""

    errors = (OSError, ValueError, RuntimeError, EOFError, ArithmeticError, zlib.error, lzma.LZMAError)
    media_type = MEDIA_TYPE

    def _open(self) -> Image:
        return _image(self.scene.path)


def _image(path: str) -> Image:
    where, labels = split_labels(path)
    return Image.of(_at_address(path, where, labels) if scheme_of(where) else _in_folder(path, where, labels))


def _at_address(path: str, where: str, labels: Labels) -> Cube:
    from geoseg.io.objects import group_at
    from geoseg.io.zarr_bounds import bounded

    group, name = group_at(where)
    dataset = _dataset(group.store, path, group)

    def array(name: str) -> Any:
        with bounded():
            return group[name]

    def groups() -> list[str]:
        return [f"{where}/{key}" for key in sorted(group.group_keys())]

    return _cube(path, dataset if name is None else dataset[[name]], array, groups, labels)


def _in_folder(path: str, where: str, labels: Labels) -> Cube:
    home, name = _group_of(Path(where))
    _check_sides(path, home)
    dataset = _dataset(mended(home) or home, path)
    array = _arrays_in(home)

    def groups() -> list[str]:
        return sorted(str(below) for below in home.iterdir() if _is_local(str(below)))

    cube = _cube(path, dataset if name is None else dataset[[name]], array, groups, labels)
    return replace(cube, crs=_crs_beside(home))


def _arrays_in(home: Path) -> Callable[[str], Any]:
    """What opens an array of a group by its name."""
    import zarr

    from geoseg.io.zarr_bounds import bounded

    store: Any = mended(home) or home

    def array(name: str) -> Any:
        place: Any = (home / name, None) if store is home else (store, name)
        with bounded():
            return zarr.open_array(place[0], path=place[1], mode="r")

    return array


def _crs_beside(home: Path) -> str:
    """The CRS that GDAL has put beside the arrays of a store; "" where it has not."""
    try:
        found = re.search(r"<SRS[^>]*>([^<]+)</SRS>", (home / "pam.aux.xml").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return html.unescape(found[1]) if found else ""


def _cube(
    path: str, dataset: xr.Dataset, array: Callable[[str], Any], groups: Callable[[], list[str]], labels: Labels
) -> Cube:
    return Cube(
        path, dataset, lambda name: _reader(array(name)), lambda name: _fill(array(name)), groups, labels=labels
    )


def _reader(array: Any) -> Callable[[tuple[Any, ...]], NDArray[Any]]:
    """What reads a part of an array."""

    def read(index: tuple[Any, ...]) -> NDArray[Any]:
        plain = all(isinstance(part, (slice, int)) for part in index)
        values: NDArray[Any] = array[index] if plain else array.oindex[index]
        return values

    return read


def _fill(array: Any) -> Any:
    own = array.fill_value
    return own if own is not None and own != 0 else None


def _group_of(path: Path) -> tuple[Path, str | None]:
    """The group that a path means, and the array in it, if it is that of one."""
    if _is_array(path) and _is_local(str(path.parent)) and not _is_array(path.parent):
        return path.parent, path.name
    return path, None


def _dataset(store: Any, path: str, group: Any = None) -> xr.Dataset:
    """What xarray makes of a group; `group`: it is opened already, with its metadata in one piece if there is such."""
    import xarray as xr

    from geoseg.io.zarr_bounds import bounded

    try:
        with warnings.catch_warnings(), bounded():
            warnings.simplefilter("ignore")  # of codecs and consolidated metadata that have no say here
            dataset: xr.Dataset = xr.open_dataset(
                store,
                engine="zarr",
                chunks=None,
                cache=False,
                consolidated=group is not None and group.metadata.consolidated_metadata is not None,
                zarr_format=None if group is None else group.metadata.zarr_format,
                mask_and_scale=False,
                decode_times=False,
                decode_coords="all",
            )
            return dataset
    except Exception as error:  # whatever zarr, a codec or xarray makes of metadata that are none
        bare = (isinstance(store, Path) and _is_array(store)) or "dimension" in str(error).lower()
        what = "holds an array without a group or without names of dimensions" if bare else error
        msg = f"{path}: cannot be read as a Zarr group ({what}); write it with xarray, rioxarray or GDAL"
        raise SceneError(msg) from error


def _check_sides(path: str, home: Path) -> None:
    """Raises `SceneError` before xarray would fill the memory with a coordinate that no file can hold."""
    for file in (*home.glob("*/zarr.json"), *home.glob("*/.zarray")):
        try:
            shape = json.loads(file.read_text("utf-8")).get("shape")
        except (OSError, ValueError, AttributeError):
            continue  # xarray tells what is wrong with it
        if isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > LONGEST:
            msg = (
                f"{path}: {file.parent.name} has {shape[0]} values, at most {LONGEST} can be right; check its metadata"
            )
            raise SceneError(msg)


def _is_array(path: Path) -> bool:
    """Whether a folder is an array, not a group."""
    if (path / ".zarray").is_file():
        return True
    try:
        return bool(json.loads((path / "zarr.json").read_text("utf-8")).get("node_type") == "array")
    except (OSError, ValueError, AttributeError):
        return False
