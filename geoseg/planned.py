"""What is to be mapped, and whether it can be: `plan` finds every error before the first pixel is read."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from geoseg.catalog import (
    ModelSpec,
    Scene,
    find_model,
    sha256_of,
)
from geoseg.errors import ModelError, OptionError, OutputError
from geoseg.footprints import in_pixels
from geoseg.io import clouds as sky
from geoseg.io.layers import layers_of
from geoseg.io.remote import REMOTE_WAITS, is_remote, state_of_scene
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.io.store import cannot_write, job_of, told_apart
from geoseg.io.vectors import read_aoi
from geoseg.io.zarr_maps import MAPS
from geoseg.models.architectures import own_stride
from geoseg.models.backends import AUTO, TORCH, check_backend
from geoseg.raster import crs_of
from geoseg.tiling import CHUNK, Axis, Tiling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from geoseg.io.pixels import SceneSource, Stretch

MAX_UPSAMPLING, MAX_DOWNSAMPLING = 2.0, 10.0
"""How far from the model's resolution range a scene's pixels may be: beyond, what it knows cannot be seen."""

PATCH_WITHIN = 0.01
"""How far from the size that fits its resolution a patch may be, so that it is whole in units that are small."""

STRIDE_WITHIN = 0.8
"""How much of the stride that is asked for is left at least when it is rounded down to what is whole in cells."""

NATIVE_WITHIN = 1.02
"""How many times coarser than the coarsest pixels, or finer than the finest, a scene is seen as it is."""

SQUARE_WITHIN = 0.05
"""How much longer than wide a pixel may be on the ground before it is resampled to a square one."""

WIDEST_TILE = 12288
"""Columns of a default tile: one for most scenes, so nothing is predicted twice, and memory has a bound."""

BYTES_PER_PIXEL = 5.5
"""Disk space that a run may need for each pixel of the scene, at its worst moment."""

FILES = ("item.json", "labels.tif", "confidence.tif", "footprints.geojson", "footprints.parquet")


@dataclass(frozen=True)
class SegmentJob:
    """What the user asks for; None stands for the default that the model or the machine sets."""

    scene: str | Path
    product: str
    out: str | Path
    model: str | None = None
    tile: int | None = None
    """Side of a tile in pixels of the scene; rounded up to whole storage chunks. Does not change the result."""
    stride: int | None = None
    """Pixels from one patch to the next, of the network's input."""
    batch: int | None = None
    """Patches per forward pass."""
    device: str = "auto"
    backend: str = AUTO
    """Who does the forward passes: `torch`, or a name of `geoseg.models.backends`; auto: whoever did so in the folder
    of the results, or else the fastest here: see `geoseg.tuning`."""
    aoi: str | Path | None = None
    """A vector file; what is outside its polygons is nodata."""
    threshold: float | None = None
    """Probability of being an object from which on a pixel is one; None = the most probable class."""
    separate: bool = True
    """Whether objects that touch are told apart, by models that have a score for it."""
    fill_holes: float = 0.0
    """Square metres below which a hole in a footprint is filled, unless a footprint is in it."""
    min_area: float = 4.0
    """Square metres below which a footprint is dropped."""
    smooth: float = 0.0
    """Metres of the outline, before and behind each point, over which the pixels' staircase is smoothed."""
    simplify: float | None = None
    """Metres by which outlines may leave that, with fewer vertices; None = one pixel."""
    regularise: bool = False
    """Whether outlines are given straight walls and right angles, where they agree with them."""
    bands: Mapping[str, int] | None = None
    """Which bands of the scene, from 1, are the red one and so on; goes before what its files say."""
    nodata: float | Sequence[float] | None = None
    """A value for all bands that the model needs, or one for each in its order, that stands for no data."""
    mask: str | Path | None = None
    """A raster whose 0 is not valid, `scl=FILE` or `qa_pixel=FILE`; or `scl`, `qa_pixel` for one beside the scene."""
    resolution: float | None = None
    """Side of a pixel, in the units of the CRS, of the grid that the scene is read, predicted and written on."""
    crs: str | int | None = None
    """CRS of that grid: `EPSG:32645`, a number or WKT. None, both: the scene's own."""
    output_grid: Literal["target", "source"] = "target"
    """source: the network sees the resolution that is asked for, patch by patch, and the maps keep the scene's grid."""
    mask_clouds: str | None = None
    """Find clouds and shadows, which are not valid then: `auto`, `l1c`, `l2a` or `l2a,SCALE,OFFSET`; extra `clouds`."""
    select: Mapping[str, object] | None = None
    """Of a Zarr store or NetCDF file the one step of a dimension that is meant, as `{"time": "2024-05-01"}`."""
    zarr: bool = False
    """Whether the maps are written as a Zarr store with overviews, too; the pixels are the same."""
    formats: Sequence[str] = ()
    """Further ones in which footprints are written, by their suffix: `gpkg`, `fgb`; see `geoseg.io.layers`."""
    stretch: Stretch | None = None
    """How values become bytes; None: bytes as they are, and of other types what the scene's own numbers tell."""
    overwrite: bool = False
    collection: str | None = None
    """Id of the STAC collection of all results in `out`, if this is to be one of them."""


@dataclass(frozen=True)
class Plan:
    """A job whose every input was looked at: all that a run needs, and nothing that can still be wrong."""

    job: SegmentJob
    scene: Scene
    model: ModelSpec
    folder: Path
    source: SceneSource
    tiling: Tiling
    parameters: dict[str, Any]
    """What the result depends on: two jobs with equal parameters have equal results."""
    complete: bool
    """Whether the results are there already."""
    clouds: tuple[sky.Clouds, ...] = ()
    """How clouds are found, if that is wanted, in each part of a mosaic."""


def plan(job: SegmentJob, scene: Scene | None = None) -> Plan:
    """Look at every input of a job; reads headers, and an overview where values are not uint8.

    `scene`: what is already known of the job's.
    """
    return checked(look(job, scene))


def checked(seen: Plan) -> Plan:
    """The plan that `look` found, after a look at the machine and at the folder for results, which is made."""
    job = seen.job
    if not job.overwrite:
        _refuse_others(seen.folder, seen.parameters)
    complete = not job.overwrite and is_complete(seen.folder, seen.parameters, job)
    if not complete:
        check_machine(job.device, job.backend, seen.model)
        check_output(seen.folder, seen.scene)
    return dataclasses.replace(seen, complete=complete)


def look(job: SegmentJob, scene: Scene | None = None, model: ModelSpec | None = None) -> Plan:
    """The plan of a job, found without a look at the machine or at the folder for results, and not complete.

    `scene` and `model` are what is already known of the job's.
    """
    _check_numbers(job)
    layers_of(job.formats)
    scene = scene or open_scene(job.scene, select=job.select)
    model = model or find_model(job.product, job.model)
    if job.threshold is not None and model.legend.background is None:
        msg = f"--threshold {job.threshold}: {model.name} has no background class to tell objects from; leave it out"
        raise OptionError(msg)
    _check_dates(scene, model)
    whole = scene
    scene, bands = as_asked(scene, model.bands, asked_by(job))
    name = scene.path if job.resolution is None else f"{scene.path} at --resolution {job.resolution:g}"
    seen = _seen_resolution(job, scene, model)
    patch, stride, cells = patch_on_scene(model, scene.ground_resolution, job.stride, name, seen)
    tiling = Tiling(scene.shape, patch, stride, _tile_shape(job.tile, scene.shape), cells)
    stretch = job.stretch or estimate_stretch(scene, bands)
    inside = None if job.aoi is None else read_aoi(Path(job.aoi), scene.geobox)
    folder = Path(job.out) / scene.id
    clouds: tuple[sky.Clouds, ...] = ()
    if job.mask_clouds is not None:
        scene, clouds = sky.under_clouds(scene, whole, job.mask_clouds, job.bands or {}, asked_by(job).nodata, folder)
    parameters = {
        "scene": fingerprint(scene),
        "model": {"name": model.name, "sha256": model.sha256},
        "stride": list(stride),
        "patch": list(patch),
        "cells": list(cells),
        "stretch": None if stretch is None else dataclasses.asdict(stretch),
        "aoi": None if job.aoi is None else sha256_of(Path(job.aoi)),
        "threshold": job.threshold,
        "min_area": job.min_area,
        "simplify": in_pixels(job.simplify, scene.geobox),
        "separation": model.separation if job.separate else None,
        **_asked_parameters(job),
        **_grid_parameters(scene),
        **sky.parameters_of(clouds),
    }
    job = dataclasses.replace(job, backend=_backend_so_far(job, folder))
    parameters = parameters_by(job.backend, parameters)
    parameters = json.loads(json.dumps(parameters))  # as it will be read back
    source = open_source(scene, bands, stretch, inside, REMOTE_WAITS if is_remote(scene.path) else ())
    return Plan(job, scene, model, folder, source, tiling, parameters, complete=False, clouds=clouds)


def _check_dates(scene: Scene, model: ModelSpec) -> None:
    """Raises `ModelError` for one scene where the model compares two, and the other way round."""
    if model.dates > 1 and not scene.stacked:
        msg = f"{model.name}: tells what has changed between two scenes of one place, and {scene.path} is one; use "
        raise ModelError(msg + f"geoseg change BEFORE AFTER --model {model.name}, or another model (geoseg models)")
    if model.dates == 1 and scene.stacked:
        msg = f"{model.name}: maps one scene at a time, and {scene.path} is two; choose a model for two"
        raise ModelError(msg)


def asked_by(job: SegmentJob) -> Asked:
    """How the scene is to be read."""
    nodata = () if job.nodata is None else job.nodata
    values = (nodata,) if isinstance(nodata, (int, float)) else nodata
    return Asked(
        tuple((job.bands or {}).items()),
        tuple(float(value) for value in values),
        None if job.mask is None else str(job.mask),
        None if job.output_grid == "source" else job.resolution,
        None if job.output_grid == "source" else job.crs,
    )


def _seen_resolution(job: SegmentJob, scene: Scene, model: ModelSpec) -> float | None:
    """Metres on the ground of the pixels that the network is to see of a scene that keeps its grid; None: its own.

    Raises `OptionError` for what goes on another grid only.
    """
    if job.output_grid == "target":
        return None
    if str(job.output_grid) != "source" or job.crs is not None or job.resolution is None:
        msg = f"--output-grid {job.output_grid}: is target, or source with a --resolution and no --crs; the maps keep "
        raise OptionError(msg + "the scene's own grid then")
    if not 0 < job.resolution < math.inf:
        msg = f"--resolution {job.resolution:g}: must be above 0"
        raise OptionError(msg)
    own = abs(scene.geobox.affine.determinant) ** 0.5
    seen = float(job.resolution / own * math.prod(scene.ground_resolution) ** 0.5)
    finest, coarsest = model.resolution
    if not finest * (2 - NATIVE_WITHIN) <= seen <= coarsest * NATIVE_WITHIN:
        msg = f"{scene.path}: --resolution {job.resolution:g} is {seen:.3g} m on the ground, {model.name} sees "
        raise OptionError(msg + f"{finest:g} to {coarsest:g} m; choose one of these")
    return seen


def _asked_parameters(job: SegmentJob) -> dict[str, Any]:
    """The same as far as it is not the default, so that results of jobs without it stay what they are."""
    asked = asked_by(job)
    told = {
        "bands": dict(asked.bands),
        "nodata": [str(value) for value in asked.nodata],
        "regularise": job.regularise,
        "fill_holes": float(job.fill_holes),
        "smooth": float(job.smooth),
    }
    return {name: value for name, value in told.items() if value}


def _backend_so_far(job: SegmentJob, folder: Path) -> str:
    """The one that a job names, or that has done what is in the folder: its last bits would change with another."""
    before = None if job.overwrite or job.backend != AUTO else job_of(folder)
    return job.backend if before is None else before.get("backend", TORCH)


def parameters_by(backend: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The same parameters with a backend, which is told where it is not torch."""
    return parameters if backend in {AUTO, TORCH} else {**parameters, "backend": backend}


def by_backend(planned: Plan, backend: str) -> Plan:
    """The same plan, for a scene that is not begun and a backend that is decided now."""
    job, parameters = dataclasses.replace(planned.job, backend=backend), parameters_by(backend, planned.parameters)
    return dataclasses.replace(planned, job=job, parameters=parameters)


def _grid_parameters(scene: Scene) -> dict[str, Any]:
    """The grid of a scene that is not read on its own."""
    if not scene.parts:
        return {}
    crs = crs_of(scene.geobox)
    code = f"EPSG:{crs.epsg}" if crs.epsg else crs.wkt
    return {"grid": {"crs": code, "transform": [float(number) for number in scene.geobox.affine[:6]]}}


def _check_numbers(job: SegmentJob) -> None:
    limits = (
        ("--tile", job.tile, 1, 2**31),
        ("--stride", job.stride, 1, 2**31),
        ("--batch", job.batch, 1, 4096),
        ("--threshold", job.threshold, 0, 1),
        ("--fill-holes", job.fill_holes, 0, 1e12),
        ("--min-area", job.min_area, 0, 1e12),
        ("--smooth", job.smooth, 0, 1e6),
        ("--simplify", job.simplify, 0, 1e6),
    )
    for name, value, low, high in limits:
        if value is not None and not low <= value <= high:
            msg = f"{name} {value}: must be from {low:g} to {high:g}"
            raise OptionError(msg)


def patch_on_scene(
    model: ModelSpec,
    ground_resolution: tuple[float, float],
    stride: int | None = None,
    name: str = "the scene",
    seen: float | None = None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Patch and stride in pixels of the scene, and a patch's cells: what the network sees of it in one forward pass.

    The cells are the network's own scores, or one for each pixel where the scene's pixels are the coarser ones. The
    stride is rounded down to what is whole in cells. A scene outside the model's range is resampled, patch by patch, to
    the nearest resolution inside, or to `seen` metres; one whose pixels are not square on the ground, to square ones.
    Raises `ModelError` where that would ask too much.
    """
    finest, coarsest = model.resolution
    down, along = ground_resolution
    if stride is not None and stride > model.patch:
        msg = f"--stride {stride}: must be from 1 to the model's patch of {model.patch} pixels, or pixels are left out"
        raise OptionError(msg)
    target = seen or min(max((down * along) ** 0.5, finest), coarsest)
    if max(down, along) / target > MAX_UPSAMPLING or target / min(down, along) > MAX_DOWNSAMPLING:
        msg = (
            f"{name}: its pixels are {down:.3g} x {along:.3g} m on the ground, {model.name} was trained for "
            f"{finest:g} to {coarsest:g} m and takes {finest / MAX_DOWNSAMPLING:.2g} to "
            f"{coarsest * MAX_UPSAMPLING:g} m by resampling; choose a scene, a --resolution or a model that fits "
            "(geoseg models)"
        )
        raise ModelError(msg)
    step = stride or model.stride
    square = abs(down / along - 1) < SQUARE_WITHIN
    nearest, farthest = (seen, seen) if seen else (finest, coarsest)
    native = square and nearest * (2 - NATIVE_WITHIN) <= down <= farthest * NATIVE_WITHIN
    rows, cols = ((model.patch if native else _patch_side(model, target / side, step)) for side in (down, along))
    axes = [_axis(model, side, step) for side in (rows, cols)]
    return (rows, cols), (axes[0].stride, axes[1].stride), (axes[0].cells, axes[1].cells)


def _patch_side(model: ModelSpec, scale: float, step: int) -> int:
    """Pixels of the scene along a patch, `scale` of them to one of the network's.

    About as many as are exact: those that have the network's own cells, then those with the longest stride that is not
    above `step`, then those with the smallest unit. A cell is at least a pixel, so where that is all it is, every size
    has a unit of one.
    """
    exact = model.patch * scale
    slack = int(exact * PATCH_WITHIN)
    if round(exact) <= _axis(model, model.patch, step).cells:
        return max(1, round(exact))

    def merit(side: int) -> tuple[bool, float, int, float]:
        axis = _axis(model, side, step)
        own = axis.cells < side
        return own, axis.stride / side if own else 0, side // axis.unit if own else 0, -abs(side - exact)

    return max(range(max(1, round(exact) - slack), round(exact) + slack + 1), key=merit)


def _axis(model: ModelSpec, side: int, step: int) -> Axis:
    """A patch of `side` pixels of the scene, its cells, and the longest stride of at most `step` of the network's.

    The cells are the network's own, unless a stride that is whole in them would be far from what is asked for, as it is
    where a patch is small or the stride is short: then there is one for each pixel.
    """
    asked, own = step * side / model.patch, min(side, max(1, model.patch // own_stride(model.architecture)))
    units = math.gcd(side, own)
    stride = step * units // model.patch * (side // units)
    if stride >= STRIDE_WITHIN * asked:
        return Axis(side, side, stride, own)
    return Axis(side, side, max(1, int(asked)), side)


def _tile_shape(tile: int | None, shape: tuple[int, int]) -> tuple[int, int]:
    if tile is None:
        tiles = -(-shape[1] // WIDEST_TILE)  # of one width, as far as there are whole chunks
        return shape[0], min(shape[1], -(-shape[1] // (tiles * CHUNK)) * CHUNK)
    whole = -(-tile // CHUNK) * CHUNK
    return min(whole, shape[0]), min(whole, shape[1])


def fingerprint(scene: Scene) -> dict[str, Any]:
    """What tells whether a scene is still the same, each of its files and its mask, without reading them."""
    return {
        "name": scene.name,
        "shape": list(scene.shape),
        **state_of_scene(scene),
        **({"moved": list(scene.moved)} if any(scene.moved) else {}),
        "datetime": scene.datetime and scene.datetime.isoformat(),
    }


def is_complete(folder: Path, parameters: dict[str, Any], job: SegmentJob) -> bool:
    """Whether the folder holds the results of these parameters, and all files of them that a job wants."""
    files = (*FILES, *((MAPS,) if job.zarr else ()), *sky.files_of(parameters), *layers_of(job.formats))
    return job_of(folder) == parameters and all((folder / name).exists() for name in files)


def _refuse_others(folder: Path, parameters: dict[str, Any]) -> None:
    """Raises `OutputError` if the folder holds the results of other parameters."""
    before, parameters = ({"backend": TORCH} | each for each in (job_of(folder) or parameters, parameters))
    if what := "; ".join(told_apart(before, parameters)):
        msg = f"{folder}: holds results of another job ({what}); use --overwrite or another --out"
        raise OutputError(msg)


def check_machine(device: str, backend: str, model: ModelSpec) -> None:
    """Raises `OptionError` for a device or backend that is not there, `ModelError` for weights of another model."""
    from geoseg.models.weights import check_weights, choose_device

    check_backend(backend, choose_device(device).type)
    check_weights(model)


def check_output(folder: Path, scene: Scene) -> None:
    """Raises `OutputError` if the folder cannot be written or has too little room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise cannot_write(folder, error) from error
    needed = scene.shape[0] * scene.shape[1] * BYTES_PER_PIXEL
    if free < needed:
        msg = f"{folder}: the disk has {free / 1e6:.0f} MB free, this scene may need {needed / 1e6:.0f} MB; "
        raise OutputError(msg + "free some or choose another place with --out")
