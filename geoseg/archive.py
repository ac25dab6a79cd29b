"""`run`: many scenes, one job. The same maps on one process or on a cluster, and a run that survives what comes.

Every scene is looked at first, by its header alone; what cannot be mapped is told, and the rest goes on. Then scene
after scene is predicted tile by tile and exported, here or by a crew of workers. With a crew, tiles are handed out as
workers ask for them, from a list that is made while it is read; the tail of one scene overlaps with the next. Only this
process writes ledgers, from what workers report.

What a run leaves about itself lies in OUT: see `geoseg.records`.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field, field_validator

from geoseg.agreement import Crew, agreed
from geoseg.catalog import Scene, find_model
from geoseg.changes.by_spectrum import SPECTRAL
from geoseg.changes.many import (
    Comparison,
    Made,
    OfMaps,
    OfScenes,
    PairEntry,
    PairOutcome,
    compare_pair,
    plan_pairs,
)
from geoseg.duplicates import Merge  # noqa: TC001  # pydantic wants it at run time
from geoseg.errors import GeosegError, OptionError, OutputError, reason_of
from geoseg.export import Count, Observer
from geoseg.globe import outline_of
from geoseg.io.catalogs import Fault, SceneRef
from geoseg.io.layers import layers_of
from geoseg.io.masks import in_full
from geoseg.io.mosaics import mosaic, written
from geoseg.io.scenes import scene_of
from geoseg.io.store import entries_of, job_of
from geoseg.jobs import Strict
from geoseg.merge import Merged, check_background, merge_results
from geoseg.models.backends import AUTO
from geoseg.pipeline import (
    Predictor,
    SegmentJob,
    begin,
    check_machine,
    check_output,
    failed_entry,
    is_complete,
    look,
    run,
)
from geoseg.planning import (
    Estimate,
    estimate,
    fitting_tile,
    memory_here,
    read_bytes,
    seconds_per_pass,
    tile_for_many,
    tiles_of,
)
from geoseg.records import Failure, Listed, alone_in, write_changes, write_collection, write_failures, write_list
from geoseg.selection import Narrowing, Scenes, narrowing, select, unique
from geoseg.work import (
    FilesOutcome,
    SceneOrder,
    TileOutcome,
    files_of,
    make_files,
    make_item,
    predict_tile,
    remove_torn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from geoseg.catalog import ModelSpec
    from geoseg.io.store import ResultStore
    from geoseg.pipeline import Machine, Plan
    from geoseg.selection import Mosaic
    from geoseg.tiling import Tile, Tiling
    from geoseg.window import Window

log = logging.getLogger("geoseg")

NOTHING = Estimate(0, 0, 0, 0, 0.0, 0, 0)
"""What it takes to map no scene."""

State: TypeAlias = Literal["new", "begun", "changed", "complete"]

TRIES = 2
"""How often a tile is handed out whose workers all died."""

ITEM = "item"

FEW = 4096
"""Tiles of a scene up to which the largest are handed out first, so that nobody waits long for the last."""


class RunJob(Strict):
    """An archive run: `geoseg run JOB.yaml`."""

    product: str = Field(
        description="what to map, such as buildings; spectral: nothing, pairs are compared by their bands"
    )
    model: str | None = Field(
        default=None, description="a name of `geoseg models`, or a model's folder; None: the product's own"
    )
    title: str = Field(default="", description="of the collection of all results")
    license: str = Field(default="other", description="SPDX identifier of the licence of the results")
    scenes: Scenes = Field(description="which scenes are mapped")
    out: str = Field(default="maps", description="folder for all results; each scene gets one in it")
    aoi: str | None = Field(default=None, description="vector file: what is outside its polygons is nodata")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="call a pixel an object from this probability on; None: the best class"
    )
    separate: bool = Field(default=True, description="tell objects that touch apart, where the model can")
    fill_holes: float = Field(
        default=0.0,
        ge=0,
        le=1e12,
        description="square metres below which a hole in a footprint is filled, unless a footprint is in it",
    )
    min_area: float = Field(
        default=4.0, ge=0, le=1e12, description="square metres below which a footprint is dropped, its holes filled"
    )
    smooth: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="metres of the outline, before and behind each point, over which the pixels' staircase is smoothed",
    )
    simplify: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="metres by which outlines may leave that, with fewer vertices; None: one pixel, 0: not at all",
    )
    regularise: bool = Field(default=False, description="give buildings straight walls and right angles")
    merge: Merge | None = Field(
        default=None,
        description="at the end, make one layer of all footprints: each once where scenes overlap, whole where they "
        "meet; {} for the defaults, None: `geoseg merge` can do it later",
    )
    change: Comparison | None = Field(
        default=None,
        description="when scenes are mapped, compare pairs or series of them: what is new, gone or became another; "
        "{} for each scene with the latest one before it",
    )
    bands: dict[str, int] | None = Field(
        default=None, description="bands of each scene by number, from 1, such as {red: 4, green: 3, blue: 2}"
    )
    nodata: float | tuple[float, ...] | None = Field(
        default=None, description="value that stands for no data, or one for each band that the model needs"
    )
    mask: str | None = Field(
        default=None,
        description="what is not valid: scl or qa_pixel, of each scene's own, with =FILE of one for all; or a raster's "
        "path, whose 0 is not valid",
    )
    resolution: float | None = Field(
        default=None, gt=0, description="side of a pixel of all maps, in the units of the CRS; None: each scene's own"
    )
    crs: str | int | None = Field(
        default=None, description="CRS of all maps, such as EPSG:32645; None: each scene's own"
    )
    output_grid: Literal["target", "source"] = Field(
        default="target", description="source: models see the resolution, and the maps keep each scene's own grid"
    )
    mask_clouds: str | None = Field(
        default=None,
        description="find clouds and their shadows, which are not valid then (extra `clouds`): auto, by the scene's "
        "name, l1c, l2a, or l2a,SCALE,OFFSET",
    )
    zarr: bool = Field(default=False, description="write the maps as a Zarr store with overviews, too: labels.zarr")
    formats: tuple[str, ...] = Field(
        default=(), description="further formats of footprints, by their suffix, such as [gpkg, fgb, pmtiles]"
    )
    stride: int | None = Field(default=None, gt=0, description="pixels from one patch to the next; None: the model's")
    tile: int | None = Field(
        default=None, gt=0, description="side of a tile in pixels, which never changes the result; None: chosen"
    )
    batch: int | None = Field(default=None, gt=0, le=4096, description="patches per forward pass; None: chosen")
    max_memory: str | None = Field(
        default=None,
        description="what a worker may take, such as 2GB, for each of its threads: tile and batch are chosen, and in "
        "one process how many forward passes go side by side",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    backend: Literal["auto", "torch", "torch-bf16", "openvino", "onnxruntime", "openvino-bf16"] = Field(
        default="torch",
        description="who does the forward passes, of which the last bits of scores depend; auto: the fastest of those "
        "installed, measured before a long run, and for scenes that were begun the one that began; -bf16: in bfloat16, "
        "which is far faster on recent processors, and changes a label here and there",
    )
    cluster: str = Field(
        default="local", description="local, processes:N, tcp://host:port or a recipe (YAML); --cluster goes before it"
    )

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        layers_of(formats)
        return formats

    def segment_job(self, scene: str, out: Path, data: Path, collection: str) -> SegmentJob:
        """The job of one scene."""
        names = (
            "threshold",
            "separate",
            "fill_holes",
            "min_area",
            "smooth",
            "simplify",
            "regularise",
            "stride",
            "tile",
            "batch",
            "device",
            "backend",
            "bands",
            "nodata",
            "resolution",
            "crs",
            "output_grid",
            "zarr",
            "formats",
            "mask_clouds",
        )
        mask = None if self.mask is None else in_full(self.mask, data)
        aoi = None if self.aoi is None else str((data / self.aoi).absolute())
        options = {name: getattr(self, name) for name in names}
        return SegmentJob(
            scene, self.product, str(out), self.model, aoi=aoi, mask=mask, collection=collection, **options
        )


@dataclass(frozen=True)
class SceneEntry:
    """One scene of a plan."""

    order: SceneOrder
    state: State
    """complete: nothing is to be done; changed: the file, model or parameters are others than those of the results."""

    @property
    def pixels(self) -> int:
        """Of the whole scene."""
        return int(np.prod(self.order.scene.shape))


@dataclass(frozen=True)
class ArchivePlan:
    """A run whose every input was looked at."""

    job: RunJob
    data: Path
    """What the job's paths count from."""
    out: Path
    collection: str
    model: ModelSpec | None
    """None: nothing is mapped, and scenes are compared by their spectra."""
    entries: tuple[SceneEntry, ...]
    faults: tuple[Fault, ...]
    outside: int
    """Scenes that the job's area or dates ruled out."""
    lanes: int
    """Forward passes side by side in one worker."""
    pairs: tuple[PairEntry, ...] = ()
    """What is compared when all scenes are mapped."""

    @property
    def batch(self) -> int:
        """Patches per forward pass."""
        return max((entry.order.job.batch or 1 for entry in self.entries), default=1)

    def estimate(self) -> Estimate:
        """What is to be done will take; scenes that were begun count as a whole."""
        if self.model is None:
            return NOTHING
        tilings = (entry.order.tiling for entry in self.pending)
        return estimate(tilings, self.model, self.batch, self.lanes, zarr=self.job.zarr)

    @property
    def unfinished(self) -> bool:
        """Whether a scene is to be mapped, or a pair to be compared."""
        return bool(self.pending) or not all(pair.complete for pair in self.pairs)

    @property
    def pending(self) -> tuple[SceneEntry, ...]:
        """What is to be done."""
        return tuple(entry for entry in self.entries if entry.state != "complete")


@dataclass(frozen=True)
class RunReport:
    """How a run went."""

    done: int
    """Scenes mapped now."""
    kept: int
    """Scenes whose results were there."""
    failures: tuple[Failure, ...]
    pixels: int
    """Predicted now."""
    seconds: dict[str, float]
    """By stage, summed over all threads and workers: read, forward, blend, write, files."""
    wall: float
    footprints: int = 0
    merged: Merged | None = None
    """If the job asks for it and there are results."""
    compared: int = 0
    """Pairs that were compared now."""
    compared_before: int = 0
    """Pairs whose comparison was there."""
    counts: dict[str, float] = field(default_factory=dict)
    """Of all results together, as their items have them."""

    @property
    def forward_share(self) -> float:
        """Share of the forward passes in all stages' seconds; NaN if nothing was done."""
        total = sum(self.seconds.values())
        return self.seconds.get("forward", 0.0) / total if total else float("nan")


Tell: TypeAlias = "Callable[[dict[str, Any]], None]"
"""Who wants to know of events: `{"event": "scene done", "scene": ..., ...}`."""


def plan_archive(job: RunJob, data: Path, out: Path | None = None, *, overwrite: bool = False) -> ArchivePlan:
    """Look at every scene of a job, by its header; relative paths count from `data`. Writes nothing.

    Raises the errors of `geoseg.errors` for what concerns all scenes; what is wrong with one is among the faults.
    """
    out = (out or data / job.out).absolute()
    if job.model is not None and (data / job.model).exists():
        job = job.model_copy(update={"model": str((data / job.model).absolute())})
    if job.aoi is not None and not (data / job.aoi).exists():
        msg = f"{data / job.aoi}: there is no such file; check aoi in the job"
        raise OptionError(msg)
    model = None if job.product == SPECTRAL else find_model(job.product, job.model)
    _check_change(job, model)
    if model is not None:
        if job.merge is not None:
            check_background(job.product, model.legend.background)
        there = (job.device, job.backend) if job.cluster == "local" else ("cpu", AUTO)
        check_machine(*there, model)
    collection = f"{job.product}-{out.name}"
    fitting = _Fitting.of(job)
    looker = _Looker(job, data, out, collection, model, narrowing(job.scenes, data), fitting, overwrite=overwrite)
    found = list(looker.look_at(unique(select(job.scenes, data))))
    faults = [each for each in found if isinstance(each, Fault)]
    entries = [each for each in found if isinstance(each, SceneEntry)]
    pairs: list[PairEntry] = []
    if job.change is not None:
        made, scenes = looker.comparisons(job.change, entries)
        pairs, amiss = plan_pairs(job.change, scenes, made)
        faults += amiss
    entries += looker.stacks
    known = job, data.absolute(), out, collection, model, tuple(entries), tuple(faults), looker.outside
    return ArchivePlan(*known, fitting.lanes, tuple(pairs))


def _check_change(job: RunJob, model: ModelSpec | None) -> None:
    """Refuse what is of no use where scenes are compared, and not mapped one by one. Raises `OptionError`."""
    if model is not None and model.dates == 1:
        return
    what = SPECTRAL if model is None else f"{model.name}, which takes two scenes,"
    if job.change is None:
        msg = f"change: is missing, and {what} compares scenes; write change: {{}}"
        raise OptionError(msg)
    given = {"merge": job.merge, "scenes.mosaic": job.scenes.mosaic, "model": job.model if model is None else None}
    unfit = next((name for name, value in given.items() if value is not None), None)
    if unfit is not None:
        msg = f"{unfit}: is of no use with {what} for it compares pairs of scenes; leave it out"
        raise OptionError(msg)


@dataclass
class _Fitting:
    """How tile and batch are chosen where the job does not say."""

    many: bool
    """Whether there are workers to be kept busy."""
    lanes: int
    """Forward passes side by side: fewer from the first scene on that does not fit otherwise."""
    batch: int
    limit: int | None
    """Bytes that a worker may take."""

    @classmethod
    def of(cls, job: RunJob) -> _Fitting:
        """As the job has it. Raises `OptionError` for a limit that is none."""
        from geoseg.models.weights import choose_device
        from geoseg.predict import default_batch, default_lanes

        many = job.cluster != "local"
        device = choose_device("cpu" if many and job.device.startswith("cuda") else job.device)
        batch = job.batch or default_batch(device)
        limit = None if job.max_memory is None else read_bytes(job.max_memory)
        return cls(many, 1 if many else default_lanes(device), batch, limit)

    def fit(self, planned: Plan) -> Plan:
        """The same plan, its tile and batch fitting. Raises `OptionError` if the limit is too low."""
        tiling, job = planned.tiling, planned.job
        if self.many and job.tile is None:
            tiling = tile_for_many(tiling)
        if self.limit is not None:
            tiling, batch = self._within(self.limit, tiling, planned.model)
            job = replace(job, batch=batch)
        return replace(planned, tiling=tiling, job=job)

    def _within(self, limit: int, tiling: Tiling, model: ModelSpec) -> tuple[Tiling, int]:
        while True:
            try:
                return fitting_tile(tiling, model, self.batch, self.lanes, limit)
            except OptionError:
                if self.lanes == 1:
                    raise
                self.lanes -= 1


@dataclass
class _Looker:
    """Looks at one scene after the other."""

    job: RunJob
    data: Path
    out: Path
    collection: str
    model: ModelSpec | None
    wanted: Narrowing
    fitting: _Fitting
    overwrite: bool
    outside: int = 0
    scenes: dict[str, tuple[Scene, SegmentJob]] = field(default_factory=dict)
    """Those that nothing maps one by one."""
    stacks: list[SceneEntry] = field(default_factory=list)
    """Pairs of them that a network maps as one."""

    def look_at(self, refs: Iterable[SceneRef | Fault]) -> Iterator[SceneEntry | Fault | None]:
        """The entry of each scene, or of all of them as one; None for what the job does not want."""
        if self.job.scenes.mosaic is None:
            yield from (ref if isinstance(ref, Fault) else self.look(ref) for ref in refs)
            return
        seen = [ref if isinstance(ref, Fault) else self._scene(ref) for ref in refs]
        faults = [each for each in seen if isinstance(each, Fault)]
        parts = [each for each in seen if isinstance(each, Scene)]
        yield from faults
        if faults or not parts:  # a hole where a scene is missing would look like ground that nobody saw
            return
        yield self._together(parts, self.job.scenes.mosaic)

    def look(self, ref: SceneRef) -> SceneEntry | Fault | None:
        """The entry of a scene; None if the job does not want it, or if it is a result itself."""
        scene = self._scene(ref)
        if not isinstance(scene, Scene):
            return scene
        if self.model is None or self.model.dates > 1:
            self.scenes[scene.id] = scene, self._job(ref.href)
            return None
        return self._entry(scene, ref.href, ref.id)

    def comparisons(self, wanted: Comparison, entries: list[SceneEntry]) -> tuple[Made, dict[str, Scene]]:
        """What plans comparisons of the scenes that were looked at, and these."""
        if self.model is None or self.model.dates > 1:
            made = OfScenes(wanted, self.scenes, self.data, self.model, self._stack)
            return made, {name: scene for name, (scene, _) in self.scenes.items()}
        orders = {entry.order.scene.id: (entry.order, entry.state == "complete") for entry in entries}
        known = {name: order.scene for name, (order, _) in orders.items()}
        return OfMaps(wanted, orders, self.data), known

    def _stack(self, scene: Scene, asked: SegmentJob) -> tuple[SceneOrder, bool]:
        """How two scenes are mapped as one, and whether that is done; the run will do it. Raises what is wrong."""
        planned = self.fitting.fit(look(asked, scene, self.model))
        entry = SceneEntry(SceneOrder.of(planned), self._state(planned))
        self.stacks.append(entry)
        return entry.order, entry.state == "complete"

    def _scene(self, ref: SceneRef) -> Scene | Fault | None:
        if self.out in Path(ref.href).parents:
            return None
        try:
            scene = scene_of(ref)
            if self.wanted.wants(scene.path, outline_of(scene.geobox), scene.taken):
                return scene
        except GeosegError as error:
            return Fault(ref.id, str(error))
        self.outside += 1
        return None

    def _together(self, parts: list[Scene], wanted: Mosaic) -> SceneEntry | Fault:
        try:
            path = written([part.path for part in parts], wanted.order)
            scene = mosaic(parts, wanted.order, path, wanted.id)
        except GeosegError as error:
            return Fault(wanted.id, str(error))
        return self._entry(scene, path, wanted.id)

    def _entry(self, scene: Scene, path: str, name: str) -> SceneEntry | Fault:
        try:
            planned = self.fitting.fit(look(self._job(path), scene, self.model))
            return SceneEntry(SceneOrder.of(planned), self._state(planned))
        except GeosegError as error:
            return Fault(name, str(error))

    def _job(self, path: str) -> SegmentJob:
        asked = self.job.segment_job(path, self.out, self.data, self.collection)
        return replace(asked, overwrite=self.overwrite)

    def _state(self, planned: Plan) -> State:
        before = job_of(planned.folder)
        if before is None:
            return "new"
        if self.overwrite or before != planned.parameters:
            return "changed"
        return "complete" if is_complete(planned.folder, planned.parameters, planned.job) else "begun"


def workers_of(cluster: str) -> int | None:
    """How many workers a job's cluster has; None for this process, 1 where only the cluster knows."""
    if cluster == "local":
        return None
    kind, _, count = cluster.partition(":")
    return int(count) if kind == "processes" and count.isdecimal() else 1


def lacks(plan: ArchivePlan, crew: Crew | None = None) -> list[str]:
    """What a run would run out of, in sentences: the disk, and the memory of each machine that has workers."""
    wanted, found = plan.estimate(), []
    there = next(each for each in (plan.out, *plan.out.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < wanted.disk:
        need = f"the results take about {_gigabytes(wanted.disk)}"
        found.append(f"{plan.out}: the disk has {_gigabytes(free)} free, {need}; free some or choose another place")
    kind = plan.job.cluster.partition(":")[0]
    if crew is not None:
        machines: Counter[tuple[str, int]] = Counter()
        threads = crew.threads_by_worker
        for worker, machine in crew.ask(memory_here).items():
            machines[machine] += threads.get(worker, 1)  # each of its threads has a tile of its own
    else:  # of a cluster that is not there yet nobody knows the machines
        machines = Counter({memory_here(): workers_of(plan.job.cluster) or 1} if kind in {"local", "processes"} else {})
    for (name, memory), workers in sorted(machines.items()):
        if memory < workers * wanted.memory:
            need = f"{workers} workers may take {_gigabytes(workers * wanted.memory)}"
            remedy = "have fewer of them, or give --max-memory"
            found.append(f"{name}: has {_gigabytes(memory)} of memory, {need}; {remedy}")
    return found


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2g} GB"


def seconds_of(plan: ArchivePlan) -> float:
    """Seconds of a forward pass on this machine, measured now, with all that belongs to it."""
    order = plan.pending[0].order
    predictor = Predictor(order.model, order.job.device, lanes=1, backend=order.job.backend)
    return seconds_per_pass(order.planned(), predictor)


# --- the run


def run_archive(
    plan: ArchivePlan,
    crew: Crew | None = None,
    *,
    observe: Observer = lambda _stage, _done, _total: None,
    tell: Tell = lambda _event: None,
) -> RunReport:
    """Carry out a plan, here or by a crew, going on from what earlier runs have left.

    What fails is in the report, in the ledgers and in `failed.geojson`, and keeps nothing else from being done. Raises
    `OutputError` if OUT cannot be written or another run is at work in it, `ClusterError` if the crew is lost.
    """
    began = time.perf_counter()
    _check_room(plan)
    if crew is not None:
        _check_shared(plan.out, crew)
    plan = _decided(plan, crew)
    with alone_in(plan.out):
        listed = [Listed(e.order.scene.id, e.order.scene.path, e.order.scene.shape) for e in plan.entries]
        compared = [pair.id for pair in plan.pairs]
        write_list(plan.out, plan.job.model_dump(mode="json"), plan.data, listed, plan.faults, compared)
        done = _Done(plan, observe, tell)
        for fault in plan.faults:
            done.failed(Failure(fault.name, fault.why))
        try:
            if crew is None:
                _here(plan, done)
            else:
                _ByCrew(crew, done).run(plan.pending)
            _compare(plan, crew, done)
        finally:
            write_failures(plan.out, done.failures)
            about = plan.out, plan.collection, plan.job.title, plan.job.license
            counts = {} if plan.model is None else write_collection(*about, plan.model)
            write_changes(*about, plan.job.product)
        footprints = int(counts.get("footprints", 0))
        merged = merge_results(plan.out, plan.job.merge) if plan.job.merge is not None and footprints else None
    kept = len(plan.entries) - len(plan.pending)
    wall = time.perf_counter() - began
    told = done.scenes, kept, tuple(done.failures), done.pixels, done.seconds, wall, footprints, merged
    return RunReport(*told, done.pairs, sum(pair.complete for pair in plan.pairs), counts)


def _decided(plan: ArchivePlan, crew: Crew | None) -> ArchivePlan:
    """The same plan, each scene with its backend. Raises `OptionError` if a worker has not the one that is needed.

    Where scenes are compared, what was planned for that has told of their parameters already: they stay.
    """
    patches = 0 if plan.pairs else plan.estimate().passes
    decided = iter(agreed([entry.order for entry in plan.pending], patches, crew))
    entries = (entry if entry.state == "complete" else replace(entry, order=next(decided)) for entry in plan.entries)
    return replace(plan, entries=tuple(entries))


def _check_room(plan: ArchivePlan) -> None:
    """Raises `OutputError` if OUT cannot be written, or has too little room for the largest scene alone."""
    largest = max(plan.pending, key=lambda entry: entry.pixels, default=None)
    if largest is not None:
        check_output(plan.out, largest.order.scene)
    else:
        plan.out.mkdir(parents=True, exist_ok=True)


def _check_shared(out: Path, crew: Crew) -> None:
    """Raises `OutputError` if a worker does not see the folder for results."""
    probe = out / ".shared"
    probe.touch()
    try:
        blind = [worker for worker, sees in crew.ask(_sees, str(probe)).items() if not sees]
    finally:
        probe.unlink(missing_ok=True)
    if blind:
        msg = f"{out}: the workers {', '.join(blind[:3])} do not see this folder; choose one that all machines share"
        raise OutputError(msg)


def _sees(path: str) -> bool:
    return Path(path).exists()


class _Done:
    """Keeps count of a run."""

    def __init__(self, plan: ArchivePlan, observe: Observer, tell: Tell) -> None:
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = {}
        self.scenes = self.pixels = self.pairs = 0
        self._observe, self._tell = observe, tell
        total = sum(entry.pixels for entry in plan.pending)
        self._predicted = Count(observe, "predicting", total)
        self._finished = Count(observe, "finishing", total)

    def begun(self, order: SceneOrder) -> None:
        """A scene is begun."""
        self._tell({"event": "scene begun", "scene": order.scene.id})

    def skipped(self, pixels: int) -> None:
        """So many pixels were predicted by an earlier run."""
        self._predicted.add(pixels)

    def predicted(self, pixels: int) -> None:
        """Some pixels are predicted."""
        self.pixels += pixels
        self._predicted.add(pixels)

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Some more seconds went into stages."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def tile(self, order: SceneOrder, outcome: TileOutcome) -> None:
        """A tile came back."""
        window = [*outcome.core.row_range, *outcome.core.col_range]
        if outcome.why is None:
            self.predicted(outcome.core.size)
            self.spent(outcome.seconds)
            self._tell({"event": "tile done", "scene": order.scene.id, "tile": window, "seconds": outcome.seconds})
        else:
            self._tell({"event": "tile failed", "scene": order.scene.id, "tile": window, "why": outcome.why})

    def scene(self, order: SceneOrder, seconds: float) -> None:
        """A scene is complete."""
        self.scenes += 1
        self._finished.add(int(np.prod(order.scene.shape)))
        self._tell({"event": "scene done", "scene": order.scene.id, "seconds": round(seconds, 3)})

    def pair(self, entry: PairEntry, outcome: PairOutcome) -> None:
        """A comparison came back."""
        if outcome.why is not None:
            self.failed(Failure(entry.id, outcome.why, entry.order.scene.geobox))
            return
        self.pairs += 1
        self.spent({"compare": outcome.seconds})
        self._tell({"event": "pair done", "pair": entry.id, "seconds": round(outcome.seconds, 3)})

    def failed(self, failure: Failure) -> None:
        """A scene, or some of its tiles, failed."""
        self.failures.append(failure)
        self._tell({"event": "scene failed", "scene": failure.scene, "why": failure.why})
        log.info("%s: %s", failure.scene, failure.why)


def _here(plan: ArchivePlan, done: _Done) -> None:
    """Scene after scene in this process, each on all cores."""
    lanes = None if plan.job.max_memory is None else plan.lanes
    model = cache(lambda backend: Predictor(plan.pending[0].order.model, plan.job.device, lanes, backend))
    for entry in plan.pending:
        order, began = entry.order, time.perf_counter()
        done.begun(order)
        before = _count(order.folder, entry.state)
        try:
            run(order.planned(), _Predicted(done), keep_going=True, model=model)
            remove_torn(order.folder)
        except OutputError:
            raise  # there is no room for the other scenes either
        except Exception as error:
            log.debug("", exc_info=True)
            done.failed(_failure(order, reason_of(error)))
        else:
            done.scene(order, time.perf_counter() - began)
        for line in islice(entries_of(order.folder), before, None):
            done.spent(line.get("seconds", {}))


def _compare(plan: ArchivePlan, crew: Crew | None, done: _Done) -> None:
    """Make all comparisons that are not made yet, here or by the crew. Raises `OutputError` if the disk refuses."""
    lost: set[str] = set()

    def hand_out(pair: PairEntry) -> None:
        if crew is None:
            take(pair, compare_pair(pair.order))
        else:
            crew.submit(pair, compare_pair, pair.order)

    def take(pair: PairEntry, outcome: Any) -> None:
        if not isinstance(outcome, PairOutcome):
            if pair.id not in lost:
                lost.add(pair.id)
                hand_out(pair)
                return
            outcome = PairOutcome(0.0, outcome.why)
        if outcome.hopeless:
            raise OutputError(outcome.why)
        done.pair(pair, outcome)

    waiting = (pair for pair in plan.pairs if not pair.complete)
    _by_turns(crew, lambda: next(waiting, None), hand_out, take)


def _by_turns(
    crew: Crew | None, ask: Callable[[], Any], hand_out: Callable[[Any], None], take: Callable[[Any, Any], None]
) -> None:
    """Hand out what is asked for as workers are free, and take what comes back; without a crew, one by one.

    `ask` gives None where nothing is to be handed out, or not before something has come back.
    """
    while True:
        item = ask() if crew is None or crew.pending < max(1, crew.threads) else None
        if item is not None:
            hand_out(item)
        elif crew is not None and crew.pending:
            take(*crew.next())
        else:
            return


class _Predicted:
    """An observer of one scene that tells how many pixels were predicted."""

    def __init__(self, done: _Done) -> None:
        self._done, self._before = done, -1

    def __call__(self, stage: str, done: int, total: int) -> None:  # noqa: ARG002  # as observers are called
        """As `Observer` has it."""
        if stage != "predicting":
            return
        if self._before < 0:
            self._done.skipped(done)
        else:
            self._done.predicted(done - self._before)
        self._before = done


def _count(folder: Path, state: State) -> int:
    """How many entries of the ledger will stay."""
    return sum(1 for _ in entries_of(folder)) if state == "begun" else 0


def _failure(order: SceneOrder, why: str, windows: Iterable[Window] = ()) -> Failure:
    return Failure(order.scene.id, why, order.scene.geobox, tuple(windows))


# --- with a crew


@dataclass
class _Scene:
    """A scene that is under way."""

    order: SceneOrder
    store: ResultStore
    began: float
    waiting: int = 0
    """Tiles whose outcome is not known."""
    listed: bool = False
    """Whether all of its tiles were handed out."""
    machine: Machine | None = None
    failed: list[tuple[Window, str]] = field(default_factory=list)
    made: dict[str, FilesOutcome] = field(default_factory=dict)
    """What came of its files, and at last of its item."""


@dataclass(frozen=True)
class _Tile:
    """A tile that was handed out."""

    scene: _Scene
    core: Window
    tries: int = 1


@dataclass(frozen=True)
class _Files:
    """Some of a scene's files that are being made, or its item when they are there."""

    scene: _Scene
    names: tuple[str, ...]


class _ByCrew:
    """Hands out tiles, and then the files of each scene whose tiles are done."""

    def __init__(self, crew: Crew, done: _Done) -> None:
        self._crew, self._done = crew, done
        self._files: deque[_Files] = deque()
        """What can be made now. A call is handed out when a worker is free: given to one that is at work, it would wait
        for that one, while another may be done first."""

    def run(self, entries: Iterable[SceneEntry]) -> None:
        """Do all of it."""
        tiles = self._tiles(entries)
        _by_turns(
            self._crew,
            lambda: self._files.popleft() if self._files else next(tiles, None),
            self._hand_out,
            self._take,
        )

    def _tiles(self, entries: Iterable[SceneEntry]) -> Iterator[_Tile | _Scene]:
        """What is missing of all scenes, as it is asked for: tiles, then the scene, all of whose tiles were given.

        A scene's store is made when its first tile is.
        """
        for entry in entries:
            scene = self._begin(entry)
            if scene is None:
                continue
            for tile in _largest_first(entry.order.tiling):
                core = scene.store.undone(tile.core)
                self._done.skipped(tile.core.size - (0 if core is None else core.size))
                if core is not None:
                    yield _Tile(scene, core)
            scene.listed = True
            yield scene

    def _begin(self, entry: SceneEntry) -> _Scene | None:
        order = entry.order
        self._done.begun(order)
        try:
            return _Scene(order, begin(order.planned()), time.perf_counter())
        except GeosegError as error:
            self._done.failed(_failure(order, str(error)))
            return None

    def _hand_out(self, item: _Tile | _Scene | _Files) -> None:
        """A tile, or files; or a scene that has no more tiles."""
        if isinstance(item, _Scene):
            self._close(item)
            return
        if isinstance(item, _Files):
            self._have_made(item)
            return
        if item.tries == 1:
            item.scene.waiting += 1
        self._crew.submit(item, predict_tile, item.scene.order, item.core)

    def _take(self, tag: _Tile | _Files, outcome: Any) -> None:
        if isinstance(tag, _Tile):
            self._take_tile(tag, outcome)
        else:
            self._take_files(tag, outcome)

    def _take_tile(self, tile: _Tile, outcome: Any) -> None:
        scene = tile.scene
        if not isinstance(outcome, TileOutcome):
            if tile.tries < TRIES:
                self._hand_out(replace(tile, tries=tile.tries + 1))
                return
            outcome = TileOutcome(tile.core, (failed_entry(tile.core, outcome.why, "lost"),), None, outcome.why)
        if outcome.hopeless:
            raise OutputError(outcome.why)
        scene.waiting -= 1
        scene.store.enter(*outcome.entries)
        self._done.tile(scene.order, outcome)
        if outcome.why is None:
            scene.machine = outcome.machine
        else:
            scene.failed.append((tile.core, outcome.why))
        self._close(scene)

    def _close(self, scene: _Scene) -> None:
        """Have the files made of a scene whose last tile is done."""
        if not scene.listed or scene.waiting:
            return
        if scene.failed:
            what = f"{len(scene.failed)} of its tiles failed: {scene.failed[0][1]}"
            self._done.failed(_failure(scene.order, what, (core for core, _ in scene.failed)))
        else:
            many = tiles_of(scene.order.tiling) > 1
            files = files_of(scene.order.job)
            self._files.extend(_Files(scene, names) for names in ([(name,) for name in files] if many else [files]))

    def _have_made(self, files: _Files) -> None:
        scene = files.scene
        if files.names == (ITEM,):
            counts = {name: count for made in scene.made.values() for name, count in made.counts.items()}
            self._crew.submit(files, make_item, scene.order, counts, scene.machine)
        else:
            self._crew.submit(files, make_files, scene.order, files.names)

    def _take_files(self, made: _Files, outcome: Any) -> None:
        scene = made.scene
        if not isinstance(outcome, FilesOutcome):
            outcome = FilesOutcome(0.0, why=outcome.why)
        if outcome.hopeless:
            raise OutputError(outcome.why)
        self._done.spent({"files": outcome.seconds})
        scene.made |= dict.fromkeys(made.names, outcome)
        if len(scene.made) < len(files_of(scene.order.job)):
            return
        why = next((each.why for each in scene.made.values() if each.why), None)
        if why is not None:
            self._done.failed(_failure(scene.order, why))
        elif ITEM in scene.made:
            self._done.scene(scene.order, time.perf_counter() - scene.began)
        else:
            self._files.append(_Files(scene, (ITEM,)))


def _largest_first(tiling: Tiling) -> Iterable[Tile]:
    tiles = tiling.tiles()
    return tiles if tiles_of(tiling) > FEW else sorted(tiles, key=lambda tile: -tile.core.size)
