"""A plan carried out: scenes here or by a crew, then comparisons, one layer and the records of a run."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.agreement import Crew, agreed
from geoseg.archive.crew import ByCrew, by_turns
from geoseg.archive.tally import Done, Tell, failure_of
from geoseg.changes.many import PairEntry, PairOutcome, compare_pair
from geoseg.errors import OutputError, reason_of
from geoseg.io.store import entries_of
from geoseg.merge import Merged, merge_results
from geoseg.pipeline import Predictor, run
from geoseg.planned import check_output
from geoseg.records import Failure, Listed, alone_in, write_changes, write_collection, write_failures, write_list
from geoseg.work import remove_torn

if TYPE_CHECKING:
    from geoseg.archive.plan import ArchivePlan, State
    from geoseg.export import Observer

log = logging.getLogger("geoseg")


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
    with alone_in(plan.out):
        if plan.pending:
            observe("loading", 0, 1)  # a model that nobody has used here before takes seconds to be ready
            plan = _decided(plan, crew)
            observe("loading", 1, 1)
        listed = [Listed(e.order.scene.id, e.order.scene.path, e.order.scene.shape) for e in plan.entries]
        compared = [pair.id for pair in plan.pairs]
        write_list(plan.out, plan.job.model_dump(mode="json"), plan.data, listed, plan.faults, compared)
        done = Done(plan, observe, tell)
        for fault in plan.faults:
            done.failed(Failure(fault.name, fault.why))
        try:
            if crew is None:
                _here(plan, done)
            else:
                ByCrew(crew, done).run(plan.pending)
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
    """The same plan, each scene with its backend. Raises `OptionError` if a worker has not the one that is needed."""
    decided = agreed([entry.order for entry in plan.pending], plan.estimate().passes, crew)
    orders = {order.folder: order for order in decided}
    entries = (replace(entry, order=orders.get(entry.order.folder, entry.order)) for entry in plan.entries)
    pairs = (replace(pair, order=pair.order.decided(orders)) for pair in plan.pairs)
    return replace(plan, entries=tuple(entries), pairs=tuple(pairs))


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


def _here(plan: ArchivePlan, done: Done) -> None:
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
            done.failed(failure_of(order, reason_of(error)))
        else:
            done.scene(order, time.perf_counter() - began)
        for line in islice(entries_of(order.folder), before, None):
            done.spent(line.get("seconds", {}))


def _compare(plan: ArchivePlan, crew: Crew | None, done: Done) -> None:
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
    by_turns(crew, lambda: next(waiting, None), hand_out, take)


class _Predicted:
    """An observer of one scene that tells how many pixels were predicted."""

    def __init__(self, done: Done) -> None:
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
