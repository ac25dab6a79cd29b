"""What a run is about, from headers alone: every scene looked at, what is to be done, and what it will take."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from geoseg.agreement import agreed
from geoseg.catalog import Scene, find_model
from geoseg.changes.by_spectrum import SPECTRAL
from geoseg.changes.many import Comparison, Made, OfMaps, OfScenes, PairEntry, plan_pairs
from geoseg.errors import GeosegError, OptionError
from geoseg.globe import outline_of
from geoseg.io.catalogs import Fault, SceneRef
from geoseg.io.mosaics import mosaic, written
from geoseg.io.scenes import scene_of
from geoseg.io.store import job_of
from geoseg.merge import check_background
from geoseg.models.backends import AUTO
from geoseg.pipeline import Predictor
from geoseg.planned import SegmentJob, check_machine, is_complete, look
from geoseg.planning import Estimate, estimate, fitting_tile, memory_here, read_bytes, seconds_per_pass, tile_for_many
from geoseg.selection import Narrowing, narrowing, select, unique
from geoseg.work import SceneOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from geoseg.agreement import Crew
    from geoseg.archive.job import RunJob
    from geoseg.catalog import ModelSpec
    from geoseg.planned import Plan
    from geoseg.selection import Mosaic
    from geoseg.tiling import Tiling

NOTHING = Estimate(0, 0, 0, 0, 0.0, 0, 0)
"""What it takes to map no scene."""


State: TypeAlias = Literal["new", "begun", "changed", "complete"]


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
    (order,) = agreed([plan.pending[0].order], plan.estimate().passes, None)
    predictor = Predictor(order.model, order.job.device, lanes=1, backend=order.job.backend)
    return seconds_per_pass(order.planned(), predictor)
