"""Scenes: what a file is, and its pixels window by window, whatever the format; and what a job knows better."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from geoseg.errors import OptionError, SceneError
from geoseg.io import masks
from geoseg.io.array_scenes import ArraySource, is_array, is_in_memory, open_array, refuse
from geoseg.io.band_files import BandFilesSource, is_band_files, only_bands, open_band_files
from geoseg.io.band_names import join_pairs
from geoseg.io.catalogs import Fault, SceneRef, catalog_of, refs_of
from geoseg.io.gdal_scenes import GdalSource, open_raster
from geoseg.io.grids import GridSource, crs_asked, on_grid, target_grid
from geoseg.io.hrefs import Rule, join_labels, split_labels
from geoseg.io.mosaics import Order, is_mosaic, mosaic, read_from, written
from geoseg.io.netcdf_scenes import NetcdfSource, is_netcdf, open_netcdf
from geoseg.io.pixels import SceneSource, Stretch, Survey
from geoseg.io.stacks import StackSource, parts_on, stretch_of, stretches_of
from geoseg.io.zarr_scenes import ZarrSource, is_zarr, open_zarr
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.window import Window

    OneScene: TypeAlias = str | Path | Mapping[str, str | Path] | xr.DataArray | xr.Dataset

__all__ = [
    "KINDS",
    "GdalSource",
    "Stretch",
    "as_asked",
    "estimate_stretch",
    "open_scene",
    "open_source",
    "selected",
    "survey",
]

# --- which format is read by what


@dataclass(frozen=True)
class Kind:
    """A kind of scene."""

    recognises: Callable[[str], bool]
    open: Callable[[str], Scene]
    source: type[SceneSource]


KINDS = (
    Kind(is_in_memory, refuse, ArraySource),
    Kind(is_zarr, open_zarr, ZarrSource),
    Kind(is_netcdf, open_netcdf, NetcdfSource),
    Kind(is_band_files, open_band_files, BandFilesSource),
    Kind(lambda _: True, open_raster, GdalSource),
)
"""What reads a scene: the first that recognises its path."""


def _kind(path: str) -> Kind:
    return next(kind for kind in KINDS if kind.recognises(path))


def open_scene(
    path: OneScene | Sequence[OneScene],
    *,
    name: str | None = None,
    select: Mapping[str, object] | None = None,
    resolution: float | None = None,
    crs: str | int | None = None,
    order: Order = "first",
) -> Scene:
    """What a scene is: its grid, bands and date; no pixel is read.

    `path`: a raster file, a Zarr store, a NetCDF file, a STAC item (.json), a folder with a file for each band, or the
    files by the common names of their bands, as `{"red": "B04.tif", ...}` or `red=B04.tif,green=B03.tif`; an array of
    xarray (band, y, x) or (y, x), or a dataset with one for each band; or several files or stores, as a list or as
    `geoseg.io.mosaics` has it, which takes STAC catalogs, too: where they overlap, a pixel is that of the first by the
    `order` of the list (first, newest, oldest, least-cloud) that is valid there.

    `name` is the scene's id in place of its own. `select`: of a store, file or array the one step of a dimension that
    is meant, as `{"time": "2024-05-01"}`. `resolution` (in the units of the CRS) and `crs` (`EPSG:32645`, a number,
    WKT): the grid that it is read on instead of its own.

    Raises `SceneError` if it is missing, not a raster, or has no place on the ground, `OptionError` for a grid that
    cannot be.
    """
    if is_array(path):
        scene = open_array(path, name, tuple((dim, str(label)) for dim, label in (select or {}).items()))
    else:
        text = written([_text(each) for each in path], order) if isinstance(path, (list, tuple)) else _text(path)
        scene = _open_files(text, select)
        scene = scene if name is None else replace(scene, id=name)
    return _regridded(scene, resolution, crs)


def _open_files(text: str, select: Mapping[str, object] | None) -> Scene:
    if is_mosaic(text):
        order, name, paths = read_from(text)
        return mosaic([part for path in paths for part in _parts(path, select)], order, text, name)
    path = selected(text, select)
    return _kind(path).open(path)


def _parts(path: str, select: Mapping[str, object] | None) -> Iterator[Scene]:
    """The scenes of a catalog, or the one that a path is. Raises `SceneError` if one of them cannot be used."""
    catalog = catalog_of(path)
    if catalog is None:
        yield open_scene(path, select=select)
        return
    where, keys = catalog
    for ref in refs_of(where, keys, Rule((), (Path(where).resolve().parent,))):
        if isinstance(ref, Fault):
            msg = f"{where}: {ref.why}"
            raise SceneError(
                msg + ("" if "scenes." not in ref.why else ", as a job has them, which takes catalogs, too")
            )
        yield scene_of(replace(ref, href=selected(ref.href, select)))


def scene_of(ref: SceneRef) -> Scene:
    """What the file of a scene is, with what a list or catalog knows better. Raises `SceneError`."""
    scene = open_scene(ref.href)
    unnamed = not any(name for name in scene.bands if name != "alpha")
    bands = ref.bands if unnamed and len(ref.bands) == len(scene.bands) else scene.bands
    when, item, masks = ref.datetime or scene.datetime, ref.item or scene.item, ref.masks or scene.masks
    if when is not None and when.tzinfo is None:
        when = when.replace(tzinfo=dt.UTC)  # so that it goes with those that files tell
    covered = scene.cloud_cover if ref.cloud_cover is None else ref.cloud_cover
    return replace(scene, id=ref.id, bands=bands, datetime=when, item=item, masks=masks, cloud_cover=covered)


def _text(path: Any) -> str:
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else join_pairs(path)


def _regridded(scene: Scene, resolution: float | None, crs: str | int | None) -> Scene:
    """A scene on the grid that is asked for; as it is if that is nothing else."""
    if resolution is None and crs is None:
        return scene
    wanted = crs_of(scene.geobox) if crs is None else crs_asked(crs)
    grid = target_grid(scene.parts or (scene,), resolution, wanted)
    return scene if grid == scene.geobox else on_grid(scene, grid)


def selected(path: str, select: Mapping[str, object] | None) -> str:
    """A path with the labels that are chosen of it: `cube.zarr#time=2024-05-01`.

    Raises `OptionError` for what has no dimensions to choose from, or says another label itself.
    """
    if not select:
        return path
    where, before = split_labels(path)
    if not (is_zarr(where) or is_netcdf(where)):
        msg = f"--select {next(iter(select))}: {path} has no dimensions to choose from, as Zarr and NetCDF have"
        raise OptionError(msg + "; leave it out")
    labels = {dim: str(label) for dim, label in select.items()}
    both = next((dim for dim, label in before if labels.get(dim, label) != label), None)
    if both is not None:
        msg = f"--select {both}={labels[both]}: {path} says another {both} itself; leave one of them out"
        raise OptionError(msg)
    return join_labels(where, tuple((dict(before) | labels).items()))


@dataclass(frozen=True)
class Asked:
    """What a job knows better than a scene's files."""

    bands: tuple[tuple[str, int], ...] = ()
    """Common names, and which bands of the scene, from 1, they are."""
    nodata: tuple[float, ...] = ()
    """A value for all bands that are read, or one for each, that stands for no data."""
    mask: str | None = None
    """See `masks.chosen`."""
    resolution: float | None = None
    """Side of a pixel in the units of the CRS; None: the scene's own."""
    crs: str | int | None = None
    """None: the scene's own."""


def as_asked(scene: Scene, wanted: tuple[str, ...], asked: Asked) -> tuple[Scene, tuple[int, ...]]:
    """The scene as it is to be read for a network that wants these bands, and which of its bands they are.

    Raises `SceneError` or `OptionError` if that cannot be.
    """
    if scene.stacked:
        return _stacked_as_asked(scene, wanted, asked)
    if not scene.parts:
        scene, bands = _files_as_asked(scene, wanted, asked)
        return _regridded(scene, asked.resolution, asked.crs), bands
    shared = len(scene.parts) > 1 and asked.mask is not None and asked.mask not in masks.KINDS
    own = replace(asked, mask=None) if shared else asked
    each = [_files_as_asked(part, wanted, own) for part in scene.parts]
    parts = tuple(part for part, _ in each)
    scene = replace(scene, parts=parts, dtype=str(np.result_type(*(part.dtype for part in parts))))
    scene = _regridded(scene, asked.resolution, asked.crs)
    if shared and asked.mask is not None:  # one raster for all of them, which no single one may meet
        scene = replace(scene, mask=masks.chosen(asked.mask, scene))
    return scene, each[0][1]


def _stacked_as_asked(scene: Scene, wanted: tuple[str, ...], asked: Asked) -> tuple[Scene, tuple[int, ...]]:
    """The same of two dates, each with its own files, on the grid of the later one or that which is asked for."""
    own = replace(asked, resolution=None, crs=None)
    each = [as_asked(part, wanted, own) for part in scene.parts]
    last = _regridded(each[-1][0], asked.resolution, asked.crs)
    parts = parts_on([part for part, _ in each], last.geobox, scene.moved)
    scene = replace(scene, parts=parts, geobox=last.geobox, ground_resolution=last.ground_resolution)
    return scene, tuple(band for _, bands in each for band in bands)


def _files_as_asked(scene: Scene, wanted: tuple[str, ...], asked: Asked) -> tuple[Scene, tuple[int, ...]]:
    """The same of a scene on its own grid."""
    bands = _named(scene, wanted, dict(asked.bands))
    scene, bands = only_these(scene, bands)
    if asked.nodata:
        _check_fill(scene, bands, asked.nodata)
        scene = replace(scene, fill=asked.nodata)
    if asked.mask is not None:
        scene = replace(scene, mask=masks.chosen(asked.mask, scene))
    return scene, bands


def only_these(scene: Scene, bands: tuple[int, ...]) -> tuple[Scene, tuple[int, ...]]:
    """The scene as it is to be read for some of its bands, on the grid of the finest of them, and which these are."""
    return (only_bands(scene, bands), tuple(range(1, len(bands) + 1))) if scene.files else (scene, bands)


def _named(scene: Scene, wanted: tuple[str, ...], named: dict[str, int]) -> tuple[int, ...]:
    """Which bands are wanted, where the job names some or all."""
    there = ", ".join(f"{index} {name or 'unnamed'}" for index, name in enumerate(scene.bands, 1))
    for name, band in named.items():
        if not 1 <= band <= len(scene.bands):
            msg = f"--bands {name}={band}: {scene.path} has the bands {there}; choose one of them"
            raise OptionError(msg)
    if not named:
        return scene.bands_for(wanted)
    own = {name: index for index, name in enumerate(scene.bands, 1) if name and index not in named.values()}
    missing = [name for name in wanted if name not in own | named]
    if missing:
        msg = f"{scene.path}: the model needs {', '.join(missing)}, too; the scene has the bands {there}; "
        raise SceneError(msg + f"name it with the others: --bands {missing[0]}=NUMBER")
    return tuple((own | named)[name] for name in wanted)


def _check_fill(scene: Scene, bands: tuple[int, ...], fill: tuple[float, ...]) -> None:
    if len(fill) not in {1, len(bands)}:
        msg = f"--nodata: has {len(fill)} values; give one, or one for each of the {len(bands)} bands that are read"
        raise OptionError(msg)
    dtype = np.dtype(scene.dtype)
    for value in fill:
        with np.errstate(all="ignore"):
            held = np.isnan(value) if dtype.kind == "f" else False
            fits = held or float(np.float64(value).astype(dtype)) == value or dtype.kind == "f"
        if not fits:
            msg = f"--nodata {value:g}: is no value of {dtype}, as {scene.path} has them; choose another"
            raise OptionError(msg)


def open_source(
    scene: Scene,
    bands: tuple[int, ...],
    stretch: Stretch | None = None,
    inside: Callable[[Window], NDArray[np.bool_]] | None = None,
    waits: tuple[float, ...] = (),
) -> SceneSource:
    """Pixels of a scene: see `SceneSource`."""
    if scene.stacked:
        each = zip(scene.parts, _shares(bands, scene), stretches_of(stretch, len(scene.parts)), strict=True)
        return StackSource(scene, bands, [open_source(*one, None, waits) for one in each], inside)
    if scene.parts:
        return GridSource(
            scene, bands, [open_source(part, bands, stretch, None, waits) for part in scene.parts], inside
        )
    return _kind(scene.path).source(scene, bands, stretch, inside, waits)


def _shares(bands: tuple[int, ...], scene: Scene) -> list[tuple[int, ...]]:
    """The bands of each part of two dates that lie one behind the other."""
    count = len(bands) // len(scene.parts)
    return [bands[first * count : (first + 1) * count] for first in range(len(scene.parts))]


def survey(scene: Scene) -> Survey:
    """What a catalog wants to know of a scene's file; an overview is read where not all of it may have data.

    Raises `SceneError` if that cannot be read.
    """
    bands = tuple(index for index, name in enumerate(scene.bands, 1) if name != "alpha")
    return open_source(scene, bands).survey()


STRETCH_PERCENTILES = (1.0, 99.0)
STRETCH_SAMPLE = 1024
"""Rows and columns at most of the overview that a stretch is estimated from."""


def estimate_stretch(scene: Scene, bands: tuple[int, ...]) -> Stretch | None:
    """The stretch to 8 bits of a whole scene, from percentiles 1 and 99 of an overview; None if it is uint8 already.

    Raises `SceneError` if no pixel of the overview is valid.
    """
    if scene.stacked:
        shares = _shares(bands, scene)
        each = [estimate_stretch(part, share) for part, share in zip(scene.parts, shares, strict=True)]
        return stretch_of(each, len(shares[0]))
    if scene.dtype == "uint8":
        return None
    if np.issubdtype(np.dtype(scene.dtype), np.complexfloating):
        msg = f"{scene.path}: its values are complex ({scene.dtype}); geoseg maps real-valued imagery"
        raise SceneError(msg)
    values = open_source(scene, bands).overview(STRETCH_SAMPLE)
    with np.errstate(invalid="ignore"):  # damaged numbers
        per_band = [band.compressed().astype(np.float64) for band in values]
    per_band = [band[np.isfinite(band)] for band in per_band]
    if not all(band.size for band in per_band):
        return Stretch((0.0,) * len(bands), (1.0,) * len(bands))
    limits = [np.percentile(band, STRETCH_PERCENTILES) for band in per_band]
    return Stretch(
        tuple(float(low) for low, _ in limits),
        tuple(float(high if high > low else low + 1) for low, high in limits),
    )
