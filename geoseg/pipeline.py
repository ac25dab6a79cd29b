"""`segment`: one scene in, a folder of maps out. `plan` finds every error before the first pixel is read.

The folder `OUT/<scene id>/` holds the working store and its ledger (`geoseg.io.store`) and the files that people use.
`item.json` is written last: where it is and tells of the same job, there is nothing left to do; where only the store
is, the run goes on from what the ledger says is done.
"""

from __future__ import annotations

import datetime as dt
import gc
import json
import logging
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar

import rasterio

from geoseg import outlines
from geoseg.catalog import (
    ModelSpec,
    Provenance,
    Scene,
    file_asset,
    result_item,
)
from geoseg.errors import GeosegError, ModelError, OutputError
from geoseg.export import AT_ONCE, Count, Counts, Exports, Observer
from geoseg.footprints import GroundSeparation, Layer, in_pixels
from geoseg.io import clouds as sky
from geoseg.io.cog import Look
from geoseg.io.geoparquet import read_box
from geoseg.io.layers import format_of, layers_of, remove_layers
from geoseg.io.scenes import open_scene
from geoseg.io.store import STORE, ResultStore, cannot_write, entries_of, job_of
from geoseg.io.zarr_maps import MAPS, MEDIA_TYPE, remove_maps
from geoseg.memory import Tidying, give_back_freed_memory, keep_freed_memory
from geoseg.models.backends import AUTO, BACKENDS, TORCH
from geoseg.planned import Plan, SegmentJob, by_backend, plan
from geoseg.raster import CONFIDENCE_STEPS, NODATA

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    import geopandas as gpd
    import xarray as xr

    from geoseg.io.scenes import OneScene
    from geoseg.models.weights import NetworkPredict
    from geoseg.predict import Lanes, TileReport
    from geoseg.raster import Raster, Sink, Source
    from geoseg.window import Window

_P = ParamSpec("_P")
_R = TypeVar("_R")

log = logging.getLogger("geoseg")

Machine: TypeAlias = dict[str, Any]
"""Device, batch, and versions of the libraries that predict, by their names."""

FOOTPRINTS = "footprints.parquet"
"""The footprints of a scene, in its folder."""

HERE = "this process"
"""The worker that the ledger names where there is no other."""

LARGE = 1 << 26
"""Pixels of a scene from which on what is free is given back before its files are made, and after."""

TIDIED_EVERY = LARGE // 2
"""Pixels after which what is free is given back while a scene is predicted."""


@dataclass(frozen=True)
class Result:
    """The folder of a scene's results, and lazy views of what is in it."""

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        """`folder` holds the files; nothing of it is read yet."""
        object.__setattr__(self, "folder", Path(folder))

    @property
    def labels(self) -> xr.DataArray:
        """Labels (y, x) uint8, 255 = nodata, with coordinates and CRS; read when used."""
        return self._store["labels"]

    @property
    def confidence(self) -> xr.DataArray:
        """Probability of the label (y, x), 0..1, NaN = nodata; read when used."""
        return self._store["confidence"]

    @property
    def footprints(self) -> gpd.GeoDataFrame:
        """The footprints, in the scene's CRS; all of them, read when used. Of many, see `footprints_in`."""
        import geopandas as gpd

        return gpd.read_parquet(self.folder / FOOTPRINTS)

    def footprints_in(
        self,
        bbox: tuple[float, float, float, float],
        crs: Any = None,
        columns: Sequence[str] | None = None,
    ) -> gpd.GeoDataFrame:
        """The footprints whose own boxes meet a box, in the scene's CRS; most of what lies elsewhere is not read.

        `bbox`: west, south, east, north, in `crs` (anything that pyproj takes, such as "EPSG:4326"; None: the scene's).
        `columns`: those wanted besides the geometry. Raises `OptionError` for what is no box or not among the columns,
        `OutputError` for a file that cannot be read.
        """
        return read_box(self.folder / FOOTPRINTS, bbox, crs, columns)

    @property
    def item(self) -> dict[str, Any]:
        """The STAC item that tells how the results came about."""
        item: dict[str, Any] = json.loads((self.folder / "item.json").read_text(encoding="utf-8"))
        return item

    def plot(self, layer: Literal["labels", "confidence"] = "labels", *, outlines: bool = False, ax: Any = None) -> Any:
        """A figure with legend and scale bar: see `geoseg.view.explore.plot` (extra `notebooks`)."""
        from geoseg.view.explore import plot

        return plot(self.folder, layer, outlines=outlines, ax=ax)

    def _repr_html_(self) -> str:
        from geoseg.view.cards import result_card

        return result_card(self.folder)

    @property
    def _store(self) -> xr.Dataset:
        import xarray as xr

        store: xr.Dataset = xr.open_zarr(self.folder / STORE, consolidated=False)
        return store


def segment(
    scene: OneScene | Sequence[OneScene] | Scene,
    product: str,
    out: str | Path,
    *,
    name: str | None = None,
    select: Mapping[str, object] | None = None,
    observe: Observer | None = None,
    **options: Any,
) -> Result:
    """Map one scene: see `SegmentJob` for the options. Returns at once if the results are there already.

    `scene`: whatever `open_scene` takes, with `name` and `select`, or what it returns; arrays of xarray, and lists of
    scenes that are mapped as one, among it.

    Writes `OUT/<scene id>/` with labels.tif, confidence.tif, footprints.geojson, footprints.parquet and item.json, and
    with `zarr=True` labels.zarr, with `formats=["gpkg"]` footprints.gpkg.
    Raises the errors of `geoseg.errors`; what was computed until then is kept, and the same call goes on from there.
    """
    known = scene if isinstance(scene, Scene) else open_scene(scene, name=name, select=select)
    planned = plan(SegmentJob(known.path, product, out, **options), known)
    return Result(planned.folder) if planned.complete else run(planned, observe or (lambda _stage, _done, _total: None))


def run(
    planned: Plan, observe: Observer, *, keep_going: bool = False, model: Callable[[str], Predictor] | None = None
) -> Result:
    """Carry out a plan, going on from what an earlier run of the same job has left.

    A tile that fails is entered in the ledger; with `keep_going` its error is raised only when the others are done.
    `model` gives the model by a backend, if the caller has `decided` on one; None: it is loaded when it is needed.
    """
    keep_freed_memory()  # before there are threads, each of which would have a pool of its own
    if model is None:
        _beside(_import_ahead, planned)
        undecided = planned.job.backend == AUTO
        if undecided:
            observe("loading", 0, 1)  # a model that nobody has used here before takes seconds to be ready
        (planned,), model = decided(planned)
        if undecided:
            observe("loading", 1, 1)
    store = begin(planned)
    written = 4 * math.prod(AT_ONCE)  # bytes of what the exports put into the same cache
    with (
        _unfrozen_at_last(),
        rasterio.Env(GDAL_CACHEMAX=planned.source.cache_bytes() + written),
        exports_of(planned, store, observe) as exports,
    ):
        machine = _predict(planned, store, observe, model, keep_going=keep_going)
        del model  # where nobody else has it, the files get its memory
        _give_back_after(store)
        counts = exports.counts()
    result = complete(planned, store, counts, machine)
    _give_back_after(store)  # a process that ends touches a hundred megabytes of its libraries once more
    return result


def _give_back_after(store: ResultStore) -> None:
    """Give back what a stage of a large scene has left free: the next one takes as much in other places."""
    if math.prod(store.shape) >= LARGE:
        give_back_freed_memory()


def _beside(work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
    """Work in a thread of its own, which nobody waits for who does not ask for the result."""
    thread = ThreadPoolExecutor(1)
    result = thread.submit(work, *args, **kwargs)
    thread.shutdown(wait=False)
    return result


def _import_ahead(planned: Plan) -> None:
    """Import what the store and the outlines need: a third of a second, while the model is loaded outside of Python."""
    import numba  # noqa: F401
    from odc.geo.xr import xr_coords

    xr_coords(planned.scene.geobox)  # whatever xarray imports when it is used first


def decided(*plans: Plan) -> tuple[list[Plan], Callable[[str], Predictor]]:
    """Plans with one model on one device, each with its backend; and what gives the model by a backend."""
    first, undecided = plans[0], [each for each in plans if each.job.backend == AUTO]
    backend, loaded = TORCH, None
    if undecided:
        backend, loaded = fastest(undecided[0], sum(map(passes_of, undecided)))

    @cache
    def model(name: str) -> Predictor:
        return Predictor(first.model, first.job.device, backend=name, loaded=loaded if name == backend else None)

    return [by_backend(each, backend) if each.job.backend == AUTO else each for each in plans], model


def passes_of(planned: Plan) -> int:
    """Patches of a scene."""
    return math.prod(len(axis.starts) for axis in planned.tiling.axes)


def fastest(
    planned: Plan, patches: int, among: Collection[str] | None = None, lanes: int | None = None
) -> tuple[str, NetworkPredict | None]:
    """The backend for a run, and the model by it if it is loaded now: see `geoseg.tuning`.

    `patches`: all of the run; `among`: backends that everybody has; `lanes`: None: as the machine has cores.
    """
    from geoseg import tuning
    from geoseg.models.weights import choose_device
    from geoseg.predict import default_lanes

    device = choose_device(planned.job.device)
    batch, lanes = machine_of(planned.job)["batch"], lanes or default_lanes(device)
    known = planned.model, device, batch, lanes, planned.source, planned.tiling, patches
    return tuning.fastest(tuning.Work(*known), among)


@contextmanager
def _unfrozen_at_last() -> Iterator[None]:
    """Give back to the garbage collector what is frozen meanwhile, unless some was so already."""
    frozen = gc.get_freeze_count()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def begin(planned: Plan) -> ResultStore:
    """The store of a plan: what an earlier run of the same job has left, or else a new one."""
    folder = planned.folder
    (folder / "item.json").unlink(missing_ok=True)
    remove_maps(folder)
    remove_layers(folder)
    if planned.job.overwrite or job_of(folder) != planned.parameters:
        model = planned.model
        outlines.forget(folder)
        sky.remove_clouds(folder)
        store = ResultStore.create(folder, planned.scene.geobox, model.legend, planned.parameters, model.auxiliary)
    else:
        store = ResultStore.open(folder)
    for entry in sky.find_missing(folder, planned.clouds, entries_of(folder)):
        store.enter(entry)
    return store


def exports_of(planned: Plan, store: ResultStore, observe: Observer = lambda _stage, _done, _total: None) -> Exports:
    """What makes the files of a plan from its store."""
    model, layer = planned.model, layer_of(planned)
    tags = {"TIFFTAG_SOFTWARE": f"geoseg {version('geoseg')}", "GEOSEG_MODEL": model.name}
    layers = layers_of(planned.job.formats)
    look = Look(model.product, model.legend)
    return Exports(store, layer, look, tags, observe, in_zarr=planned.job.zarr, layers=layers)


def complete(planned: Plan, store: ResultStore, counts: Counts, machine: Machine) -> Result:
    """Write a scene's item, by which it is complete, beside its other files; `counts`: what was counted for these."""
    _write_item(planned, store, counts, machine)
    outlines.forget(planned.folder)
    return Result(planned.folder)


def machine_of(job: SegmentJob, batch: int | None = None) -> Machine:
    """What of this machine goes into the record; `batch` is what it came down to."""
    from geoseg.models.weights import choose_device
    from geoseg.predict import default_batch

    device = choose_device(job.device)
    versions = {"torch": version("torch")} | (BACKENDS[job.backend].versions if job.backend in BACKENDS else {})
    return {"device": device.type, "batch": batch or job.batch or default_batch(device), **versions}


class Predictor:
    """A model on a device: predicts tiles of any scene, with smaller batches once the device's memory was too small."""

    def __init__(
        self,
        model: ModelSpec,
        device: str,
        lanes: int | None = None,
        backend: str = TORCH,
        loaded: NetworkPredict | None = None,
    ) -> None:
        """Load the model onto a device.

        `lanes`: forward passes side by side; None: as the machine has cores. `loaded`: the model, if that is done.
        `run` may be called from several threads.
        """
        from geoseg.models.weights import choose_device, load_predict
        from geoseg.predict import default_lanes, one_torch_thread

        keep_freed_memory()
        if lanes is not None:
            one_torch_thread()
        where = choose_device(device)
        self._fill = tuple(round(255 * mean) for mean in model.mean) * model.dates
        self._count = lanes or default_lanes(where)
        self._idle: list[Lanes] = []
        self._predict = loaded or load_predict(model, where, backend)
        self._most = sys.maxsize

    def batch(self, job: SegmentJob) -> int:
        """Patches per forward pass: what a job wants, as far as the device's memory was large enough."""
        wanted: int = machine_of(job)["batch"]
        return min(wanted, self._most)

    def run(
        self, planned: Plan, core: Window, sink: Sink, observe: Callable[[int], None], source: Source | None = None
    ) -> TileReport:
        """Predict one tile's core into a sink; `observe` is told how many pixels were written.

        `source`: what to read from in place of the plan's own.
        """
        from geoseg.predict import Decision, Engine, OutOfMemory

        decision, tile = Decision(planned.model.legend, planned.job.threshold), planned.tiling.tile_of(core)
        while True:
            batch = self.batch(planned.job)
            try:
                self._predict.prepare(batch)
                lanes = self._lanes()
                with Engine(self._predict, decision, self._fill, batch, lanes) as engine:
                    report = engine.run(source or planned.source, tile, planned.tiling, sink, observe)
            except OutOfMemory as error:
                if batch == 1:
                    msg = f"{planned.model.name}: the device has too little memory for one patch; use --device cpu"
                    raise ModelError(msg) from error
                self._most = min(self._most, batch // 2)
                log.warning("the device has too little memory for %d patches at once; going on with fewer", batch)
            else:
                self._idle.append(lanes)
                return report

    def _lanes(self) -> Lanes:
        """Threads that are idle, or new ones."""
        from geoseg.predict import Lanes

        try:
            return self._idle.pop()
        except IndexError:  # none, or another thread was faster
            return Lanes(self._count)


class _Begun:
    """A source of which a window is read already, by a thread of its own, before anybody asks for it."""

    def __init__(self, source: Source, window: Window) -> None:
        self.shape = source.shape
        self._source, self._window = source, window
        self._raster: Future[Raster] | None = _beside(source.read, window)

    def read(self, window: Window) -> Raster:
        """The pixels of a window."""
        begun, self._raster = self._raster, None
        raster = None if begun is None else begun.result()  # also where another is asked for: one reads at a time
        return raster if raster is not None and window == self._window else self._source.read(window)


def _predict(
    planned: Plan, store: ResultStore, observe: Observer, model: Callable[[str], Predictor], *, keep_going: bool
) -> Machine:
    """Predict what the ledger does not say is done; returns how (device, batch, torch) for the record."""
    todo = [core for tile in planned.tiling.tiles() if (core := store.undone(tile.core)) is not None]
    if not todo:
        return machine_of(planned.job)
    total = planned.scene.shape[0] * planned.scene.shape[1]
    progress = Count(observe, "predicting", total, total - sum(core.size for core in todo))
    progress.add(0)
    tidying = Tidying(TIDIED_EVERY)

    def written(pixels: int) -> None:
        progress.add(pixels)
        tidying.after(pixels)

    first = planned.tiling.tile_of(todo[0])
    source = _Begun(planned.source, first.strip(first.patch_rows[0], planned.tiling.patch))
    predictor = model(planned.job.backend)
    gc.freeze()  # a million objects of libraries: looking through them again and again stops all threads, for nothing
    failures: list[GeosegError] = []
    for core in todo:
        try:
            report = predictor.run(planned, core, store, written, source)
        except GeosegError as error:
            store.enter(failed_entry(store.undone(core) or core, str(error), HERE))
            failures.append(error)
            if not keep_going or isinstance(error, OutputError):
                raise
            continue
        store.enter(tile_entry(report, HERE))
        seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in report.seconds.items())
        log.info("tile %s: %d patches, %d valid pixels; %s", core, report.patches, report.valid_pixels, seconds)
    if failures:
        raise failures[0]
    return machine_of(planned.job, predictor.batch(planned.job))


def failed_entry(core: Window, why: str, worker: str) -> dict[str, Any]:
    """What the ledger keeps of a tile that could not be predicted."""
    return {"failed": [*core.row_range, *core.col_range], "why": why, "worker": worker}


def tile_entry(report: TileReport, worker: str) -> dict[str, Any]:
    """What the ledger keeps of a tile besides its chunks: how it was made."""
    return {
        "tile": [*report.core.row_range, *report.core.col_range],
        "valid_pixels": report.valid_pixels,
        "patches": report.patches,
        "seconds": {stage: round(value, 3) for stage, value in report.seconds.items()},
        "worker": worker,
    }


def layer_of(planned: Plan) -> Layer:
    """What the footprints of a plan are of."""
    scene, model, job = planned.scene, planned.model, planned.job
    apart = GroundSeparation(*model.separation) if model.separation and job.separate else None
    return Layer(
        scene.geobox,
        model.legend,
        scene.id,
        scene.datetime,
        in_pixels(job.simplify, scene.geobox),
        job.min_area,
        separation=apart,
        fill_holes=job.fill_holes,
        smooth=in_pixels(job.smooth, scene.geobox),
        regularise=job.regularise,
        model=model.name,
    )


def _write_item(planned: Plan, store: ResultStore, counted: Counts, machine: Machine) -> None:
    total = planned.scene.shape[0] * planned.scene.shape[1]
    counts: Counts = {"valid_pixels": store.valid_pixels, "pixels": total, **dict(sorted(counted.items()))}
    hidden = sky.hidden_pixels(entries_of(planned.folder)) if planned.clouds else {}
    counts |= {f"{name}_pixels": count for name, count in hidden.items()}
    folder, now = planned.folder, dt.datetime.now(dt.UTC).replace(microsecond=0)
    classes = [
        {"value": c.value, "name": c.name, "color_hint": c.colour.removeprefix("#").upper()}
        for c in planned.model.legend.classes
    ]
    nodata = {"data_type": "uint8", "nodata": NODATA}
    cog, product = "image/tiff; application=geotiff; profile=cloud-optimized", planned.model.product
    geojson, parquet = "application/geo+json", "application/vnd.apache.parquet"
    assets = {
        "labels": ("labels.tif", cog, f"{product} label map", {**nodata, "classification:classes": classes}),
        "confidence": (
            "confidence.tif",
            cog,
            "probability of the label",
            {**nodata, "raster:scale": 1 / CONFIDENCE_STEPS},
        ),
        "footprints": ("footprints.geojson", geojson, f"{product} footprints, longitude and latitude", {}),
        "footprints_parquet": ("footprints.parquet", parquet, f"{product} footprints in the scene's CRS", {}),
    }
    for each in planned.clouds:
        legend = [{"value": c.value, "name": c.name} for c in sky.LEGEND.classes]
        title = f"clouds and their shadows in {each.scene.name}"
        key = Path(each.file).stem.replace("-", "_")
        assets[key] = (each.file, cog, title, {**nodata, "classification:classes": legend})
    for name in layers_of(planned.job.formats):
        key = name.replace(".", "_")
        assets[key] = (name, format_of(Path(name)).media_type, f"{product} {format_of(Path(name)).name}", {})
    if planned.job.zarr:
        title = f"{product} label map and confidence with overviews"
        assets["maps"] = (MAPS, MEDIA_TYPE, title, {**nodata, "classification:classes": classes})
    software = {name: told for name, told in machine.items() if name not in {"device", "batch"}}
    made = Provenance(
        planned.model,
        {"geoseg": version("geoseg"), **software},
        {**planned.parameters, "device": machine["device"], "batch": machine["batch"]},
        now,
        counts,
        planned.job.collection,
    )
    item = result_item(
        planned.scene,
        folder,
        {
            k: file_asset(folder / name, kind, title, ["data"], extra)
            for k, (name, kind, title, extra) in assets.items()
        },
        made,
    )
    part = folder / ".item.json.part"
    try:
        part.write_text(
            json.dumps(item.to_dict(include_self_link=False, transform_hrefs=False), indent=2) + "\n", encoding="utf-8"
        )
        part.replace(folder / "item.json")
    except OSError as error:
        raise cannot_write(folder / "item.json", error) from error
    finally:
        part.unlink(missing_ok=True)
