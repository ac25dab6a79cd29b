"""What a worker does for an archive: predict one tile, or make the files of one scene.

A worker is told paths and windows, never pixels, networks or open files: an order is what a plan knows, small enough to
travel with every tile. The model is loaded once per process, a scene opened once per process and thread. A worker
writes its tile's chunks, which are nobody else's, and tells what is to be entered in the ledger, which one process
alone keeps. So the same tile may be done twice, by whomever, and nothing is different.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import socket
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import rasterio

from geoseg import outlines
from geoseg.catalog import find_model
from geoseg.errors import ModelError, OutputError, SceneError, reason_of
from geoseg.export import arrays_of, outlined
from geoseg.io.array_scenes import refuse
from geoseg.io.remote import REMOTE_WAITS, differs, is_gone, is_remote, state_of_scene
from geoseg.io.scenes import open_source
from geoseg.io.store import STORE, ResultStore
from geoseg.io.vectors import read_aoi
from geoseg.memory import Tidying
from geoseg.models.backends import TORCH, installed_backends
from geoseg.pipeline import (
    Machine,
    Predictor,
    complete,
    exports_of,
    failed_entry,
    fastest,
    layer_of,
    machine_of,
    tile_entry,
)
from geoseg.planned import Plan, SegmentJob, parameters_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from geoseg.catalog import ModelSpec, Scene
    from geoseg.export import Counts
    from geoseg.footprints import Layer
    from geoseg.io.clouds import Clouds
    from geoseg.io.pixels import Stretch
    from geoseg.raster import Band
    from geoseg.tiling import Tiling
    from geoseg.window import Window

log = logging.getLogger("geoseg")

WAITS = (0.3, 1.0)
"""Seconds to wait before a file is read again."""

SCENES_KEPT_OPEN = 8


@dataclass(frozen=True)
class SceneOrder:
    """A plan as it travels: all of it but open files and geometries."""

    job: SegmentJob
    """With absolute paths: a worker has another working directory."""
    scene: Scene
    model: ModelSpec
    bands: tuple[int, ...]
    stretch: Stretch | None
    tiling: Tiling
    folder: Path
    parameters: str
    """JSON."""
    clouds: tuple[Clouds, ...] = ()

    @classmethod
    def of(cls, planned: Plan) -> Self:
        """The order to carry out a plan. Raises `SceneError` for a scene that is in no file."""
        if planned.scene.memory is not None:
            refuse(planned.scene.path)
        source, parameters = planned.source, json.dumps(planned.parameters)
        known = planned.job, planned.scene, planned.model, source.bands, source.stretch, planned.tiling
        return cls(*known, planned.folder, parameters, planned.clouds)

    def by(self, backend: str) -> Self:
        """The same order, for a scene that is not begun and a backend that is decided now."""
        parameters = json.dumps(parameters_by(backend, json.loads(self.parameters)))
        return replace(self, job=replace(self.job, backend=backend), parameters=parameters)

    def planned(self) -> Plan:
        """The plan again, with a source that reads patiently. Raises `SceneError` if the scene has changed."""
        parameters = json.loads(self.parameters)
        _check_unchanged(self.scene, parameters["scene"])
        inside = None if self.job.aoi is None else read_aoi(Path(self.job.aoi), self.scene.geobox)
        waits = REMOTE_WAITS if is_remote(self.scene.path) else WAITS
        source = open_source(self.scene, self.bands, self.stretch, inside, waits)
        known = self.job, self.scene, self.model, self.folder, source, self.tiling, parameters
        return Plan(*known, complete=False, clouds=self.clouds)


def _check_unchanged(scene: Scene, planned: dict[str, Any]) -> None:
    """Raises `SceneError` if the file is another than the one that was planned, or gone."""
    now = state_of_scene(scene)
    before = {key: planned[key] for key in now}
    if differs(before, now):
        what = "is not there any more" if is_gone(before, now) else "has changed since the run was planned"
        msg = f"{scene.path}: {what}; when it is as it should be, run the same command again"
        raise SceneError(msg)


@dataclass(frozen=True)
class TileOutcome:
    """What comes back from a worker for a tile: a few numbers."""

    core: Window
    entries: tuple[dict[str, Any], ...]
    """For the ledger."""
    machine: Machine | None = None
    why: str | None = None
    """Why it failed, if it did."""
    hopeless: bool = False
    """Whether nothing else can be done either: the disk refuses."""

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return dict(self.entries[-1].get("seconds", {})) if self.entries else {}


@dataclass(frozen=True)
class FilesOutcome:
    """What comes back for files of a scene."""

    seconds: float
    counts: Counts = field(default_factory=dict)
    """What was counted for them."""
    why: str | None = None
    hopeless: bool = False


def fastest_backend(
    order: SceneOrder, patches: int, among: tuple[str, ...] | None = None, lanes: int | None = None
) -> str:
    """The backend that this process finds the fastest for so many patches: see `geoseg.pipeline.fastest`."""
    try:
        return fastest(order.planned(), patches, among, lanes)[0]
    except Exception as error:  # noqa: BLE001  # whatever is wrong with the scene, its tiles will tell
        log.info("%s: no backend was chosen: %s", order.scene.id, _why(error))
        return TORCH


def backends_here(device: str) -> tuple[str, ...]:
    """The backends that this process can choose for what `device` means here."""
    from geoseg.models.weights import choose_device

    return installed_backends(choose_device(device).type)


def predict_tile(order: SceneOrder, core: Window) -> TileOutcome:
    """Predict one tile into the scene's store. Whatever goes wrong with it is told in the outcome, not raised."""
    worker = f"{socket.gethostname()}:{os.getpid()}"
    try:
        with _borrowed(order) as planned, rasterio.Env(GDAL_CACHEMAX=planned.source.cache_bytes()):
            sink = _Unentered(_store_of(order), layer_of(planned))
            predictor = _predictor(order)
            report = predictor.run(planned, core, sink, lambda _: None)
            machine = machine_of(order.job, predictor.batch(order.job))
        _tidying.after(math.prod(core.shape))
    except Exception as error:  # noqa: BLE001  # a night's work goes on without this tile
        why = _why(error)
        return TileOutcome(core, (failed_entry(core, why, worker),), None, why, isinstance(error, OutputError))
    report.seconds["outline"] = sink.outlining
    report.seconds["write"] -= sink.outlining
    return TileOutcome(core, (*sink.entries, tile_entry(report, worker)), machine)


FILES = ("footprints", "confidence", "labels")
"""What is made of a scene that is predicted; the one that takes longest first."""

MAPS = "maps"
"""The same, where a job wants the maps as a Zarr store, too."""


def files_of(job: SegmentJob) -> tuple[str, ...]:
    """What is made of a job's scene."""
    return (*FILES, MAPS) if job.zarr else FILES


def make_files(order: SceneOrder, names: Sequence[str]) -> FilesOutcome:
    """Make some of the `files_of` a scene that is predicted. What goes wrong is told in the outcome."""

    def make(planned: Plan, store: ResultStore) -> Counts:
        exports = exports_of(planned, store)
        counts: Counts = {}
        for name in names:
            if name == "footprints":
                counts |= exports.write_footprints()
            elif name == MAPS:
                counts |= exports.write_maps()
            else:
                counts |= exports.write_raster(name)
        return counts

    return _finishing(order, make)


def make_item(order: SceneOrder, counts: Counts, machine: Machine | None) -> FilesOutcome:
    """Write the item of a scene whose files are made, by which it is complete. What goes wrong is told."""

    def make(planned: Plan, store: ResultStore) -> Counts:
        complete(planned, store, counts, machine or machine_of(order.job))
        remove_torn(order.folder)
        return {}

    return _finishing(order, make)


def _finishing(order: SceneOrder, make: Callable[[Plan, ResultStore], Counts]) -> FilesOutcome:
    began = time.perf_counter()
    try:
        planned = replace(order, job=replace(order.job, aoi=None)).planned()  # no pixel of the scene is read
        made = make(planned, ResultStore.open(order.folder))
    except Exception as error:  # noqa: BLE001  # a night's work goes on without this scene
        return FilesOutcome(time.perf_counter() - began, {}, _why(error), isinstance(error, OutputError))
    return FilesOutcome(time.perf_counter() - began, made)


def remove_torn(folder: Path) -> None:
    """Remove what writers that were killed have left of a store's chunks."""
    for torn in (folder / STORE).rglob("*.partial"):
        torn.unlink(missing_ok=True)


def _why(error: Exception) -> str:
    log.debug("", exc_info=error)
    return reason_of(error)


@dataclass
class _Unentered:
    """A `Sink` that writes chunks and outlines them, and keeps what is to be entered in the ledger."""

    store: ResultStore
    layer: Layer
    entries: list[dict[str, Any]] = field(default_factory=list)
    outlining: float = 0.0
    """Seconds."""

    def write(self, band: Band) -> None:
        """Write a band."""
        self.entries.append(self.store.put(band))
        began = time.perf_counter()
        scores = dict(zip(self.store.auxiliary, band.auxiliary, strict=True))
        arrays = {"labels": band.labels, "confidence": band.confidence, **scores}
        for each in outlined(band.window, [arrays[name] for name in arrays_of(self.layer)], self.layer):
            outlines.keep(self.store.folder, each)
        self.outlining += time.perf_counter() - began


def _store_of(order: SceneOrder) -> ResultStore:
    """The store, for writing chunks only: what of it is done is nothing a worker knows."""
    return ResultStore(order.folder, order.scene.shape, order.model.auxiliary, np.empty((0, 0), np.int64))


# --- what a process keeps


_tidying = Tidying(16 << 20)
_loading = threading.Lock()
_open: OrderedDict[tuple[Path, str], list[Plan]] = OrderedDict()
_opening = threading.Lock()


def _predictor(order: SceneOrder) -> Predictor:
    """The model of this process, loaded when it is first asked for, by one thread while the others wait."""
    with _loading:
        return _load(order.model, order.job.device, order.job.backend)


@lru_cache(maxsize=1)
def _load(model: ModelSpec, device: str, backend: str) -> Predictor:
    if not model.weights.exists():  # another machine, where geoseg is installed elsewhere
        here = find_model(model.product, model.name)
        if here.sha256 != model.sha256:
            msg = f"{here.weights}: this worker has other weights of {model.name}; install the same geoseg everywhere"
            raise ModelError(msg)
        model = here
    predictor = Predictor(model, device, lanes=1, backend=backend)
    gc.freeze()  # what libraries have made by now stays: the collector need not look through it for each tile
    return predictor


@contextmanager
def _borrowed(order: SceneOrder) -> Iterator[Plan]:
    """A plan whose open file no other thread reads; files stay open from one tile to the next."""
    key = order.folder, order.parameters
    with _opening:
        idle = _open.setdefault(key, [])
        _open.move_to_end(key)
        while len(_open) > SCENES_KEPT_OPEN:
            _open.popitem(last=False)
        planned = idle.pop() if idle else None
    if planned is None:
        planned = order.planned()
    else:
        _check_unchanged(order.scene, planned.parameters["scene"])
    yield planned
    with _opening:
        if key in _open:
            _open[key].append(planned)
