"""Maps as a Zarr store with overviews, for xarray, notebooks and web maps: the same pixels as the GeoTIFFs.

    labels.zarr/labels, confidence      uint8 (y, x), 255 = nodata; coordinates y, x and spatial_ref
    labels.zarr/2, 4, 8 ...             the same at so many times coarser pixels, until a side fits into a chunk

Place and CRS are told thrice, for every reader: by coordinates (CF), by CF's grid mapping, and by GeoZarr's conventions
`spatial:`, `proj:` and `multiscales`.
"""

from __future__ import annotations

import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec

from geoseg.errors import OutputError
from geoseg.io.overviews import halved
from geoseg.io.store import cannot_write
from geoseg.raster import NODATA, crs_of
from geoseg.tiling import CHUNK
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.io.cog import Look

MAPS = "labels.zarr"

MEDIA_TYPE = "application/vnd.zarr; version=3"

CONVENTIONS = {
    "multiscales": "d35379db-88df-4056-af3a-620245f8e347",
    "proj": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "spatial": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
}
"""Zarr conventions whose attributes the store has, by the names that identify them."""

RULES = {True: "mode", False: "average"}
"""How the pixels of an overview are made: of classes, and of a quantity."""


def write_zarr(
    path: Path,
    blocks: Iterable[tuple[str, Window, NDArray[np.uint8]]],
    geobox: GeoBox,
    looks: Mapping[str, Look],
    tags: Mapping[str, str],
) -> None:
    """Write uint8 maps of one grid by name, 255 = nodata, block by block in bounded memory.

    Blocks are whole chunks, or reach to the scene's edge. `path` appears only when it is whole. Each overview is the
    one before, `halved`. Raises `OutputError` if the disk refuses.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        _remove(part)
        levels = _levels(geobox)
        arrays = [_create(part, level, grid, looks, tags) for level, grid in levels.items()]
        for name, window, values in blocks:
            arrays[0][name][window.slices] = values
        for finer, coarser in pairwise(arrays):
            for name, look in looks.items():
                _halve(finer[name], coarser[name], classes=look.legend is not None)
        zarr.open_group(part, mode="r+").attrs.update(_conventions(levels))
        _remove(path)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        _remove(part)


def remove_maps(folder: Path) -> None:
    """Remove the store of a folder of results that are to be made anew. Raises `OutputError` if the disk refuses."""
    try:
        _remove(folder / MAPS)
    except OSError as error:
        raise cannot_write(folder / MAPS, error) from error


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _levels(geobox: GeoBox) -> dict[str, GeoBox]:
    """The grids by the groups that hold them, the scene's own first."""
    grids, factor = {"": geobox}, 1
    while max(geobox.shape) > CHUNK * factor:
        factor *= 2
        shape = -(-geobox.shape[0] // factor), -(-geobox.shape[1] // factor)
        grids[str(factor)] = GeoBox(shape, geobox.affine @ Affine.scale(factor), geobox.crs)
    return grids


def _create(
    store: Path, group: str, geobox: GeoBox, looks: Mapping[str, Look], tags: Mapping[str, str]
) -> dict[str, zarr.Array[Any]]:
    """The empty arrays of a level, with coordinates and attributes."""
    import xarray as xr
    from odc.geo.xr import xr_coords

    grid = xr.Dataset(coords=xr_coords(geobox), attrs={**_place(geobox), **tags})
    grid.to_zarr(store, group=group or None, mode="a", zarr_format=3, consolidated=False)
    home = zarr.open_group(store, path=group, mode="r+")
    return {
        name: home.create_array(
            name,
            shape=geobox.shape,
            chunks=(CHUNK, CHUNK),
            dtype="uint8",
            fill_value=NODATA,
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="noshuffle", typesize=1),
            dimension_names=[str(d) for d in geobox.dimensions],
            attributes={"grid_mapping": "spatial_ref", "long_name": look.description, **_meaning(look)},
        )
        for name, look in looks.items()
    }


def _meaning(look: Look) -> dict[str, Any]:
    """What values mean. Labels stay bytes when xarray decodes them, so 255 is no `_FillValue` there."""
    if look.legend is not None:
        return {
            "flag_values": [c.value for c in look.legend.classes],
            "flag_meanings": " ".join(c.name.replace(" ", "_") for c in look.legend.classes),
            "flag_colors": " ".join(c.colour for c in look.legend.classes),
            "nodata": NODATA,
        }
    return {"_FillValue": NODATA, "scale_factor": look.scale or 1.0, "units": "1"}


def _place(geobox: GeoBox) -> dict[str, Any]:
    crs = crs_of(geobox)
    return {
        "spatial:dimensions": [str(d) for d in geobox.dimensions],
        "spatial:shape": [int(side) for side in geobox.shape],
        "spatial:transform": [float(number) for number in geobox.affine[:6]],
        **({"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg else {"proj:wkt2": crs.wkt}),
    }


def _conventions(levels: Mapping[str, GeoBox]) -> dict[str, Any]:
    """What a group says of its levels, each of which is told by its step from the one before."""
    names = [name or "." for name in levels]
    layout: list[dict[str, Any]] = [
        {"asset": name, "spatial:shape": list(map(int, grid.shape)), "spatial:transform": list(grid.affine[:6])}
        for name, grid in zip(names, levels.values(), strict=True)
    ]
    for finer, entry in zip(names, layout[1:], strict=False):
        entry |= {"derived_from": finer, "transform": {"scale": [2.0, 2.0], "translation": [0.0, 0.0]}}
    return {
        "zarr_conventions": [{"name": name, "uuid": uuid} for name, uuid in CONVENTIONS.items()],
        "multiscales": {"layout": layout},
    }


def _halve(finer: zarr.Array[Any], coarser: zarr.Array[Any], *, classes: bool) -> None:
    """Make an overview of the level before, chunk by chunk."""
    for window in Window.of_shape((coarser.shape[0], coarser.shape[1])).blocks((CHUNK, CHUNK)):
        rows, cols = (slice(2 * span.start, 2 * span.stop) for span in window.slices)
        coarser[window.slices] = halved(np.asarray(finer[rows, cols], np.uint8), classes=classes)
    coarser.attrs["resampling_method"] = RULES[classes]


def maps_grid(store: Path) -> GeoBox:
    """The grid of a store of maps. Raises `OutputError` if there is none."""
    try:
        told: dict[str, Any] = zarr.open_group(store, mode="r").attrs.asdict()
        code = told.get("proj:code") or told["proj:wkt2"]
        return GeoBox(tuple(told["spatial:shape"]), Affine(*told["spatial:transform"]), code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{store}: cannot be read as maps ({error}); make the result again with --zarr"
        raise OutputError(msg) from error


def read_maps(store: Path, name: str, window: Window, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A window of a map in so many rows and columns: the nearest pixels of the overview that fits, uint8 (y, x).

    Raises `OutputError` if it cannot be read.
    """
    level = level_for(store, min(side / to for side, to in zip(window.shape, shape, strict=True)))
    group = f"{level}/" * (level > 1)
    try:
        array = zarr.open_array(store, path=f"{group}{name}", mode="r")
        spans = [
            slice(start // level, min(-(-stop // level), side))
            for (start, stop), side in zip((window.row_range, window.col_range), array.shape, strict=True)
        ]
        values = np.asarray(array[spans[0], spans[1]], np.uint8)
    except (OSError, ValueError, KeyError) as error:
        msg = f"{store}/{group}{name}: cannot be read ({error}); make the result again with --zarr"
        raise OutputError(msg) from error
    places = [
        np.minimum((start + (np.arange(to) + 0.5) * (stop - start) / to) // level - span.start, len_ - 1).astype(int)
        for (start, stop), to, span, len_ in zip(
            (window.row_range, window.col_range), shape, spans, values.shape, strict=True
        )
    ]
    return values[np.ix_(*places)]


def level_for(store: Path, factor: float) -> int:
    """How many times coarser than the map the coarsest overview is that is not coarser than asked."""
    level = 1
    while 2 * level <= factor and (store / str(2 * level)).is_dir():
        level *= 2
    return level
