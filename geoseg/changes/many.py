"""Pairs of an archive's scenes: which are compared, and one comparison as a task of its own.

An archive run maps scenes; what the job's key `change` asks for comes after. A pair is told to a worker as two scene
orders and a few numbers, and what comes back is whether it is done. As with `geoseg change`, what is there of the same
parameters is kept.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from pydantic import Field

from geoseg.changes.pair import compare, measure
from geoseg.changes.planned import ChangeJob, ChangePlan, is_compared, planned_of
from geoseg.errors import GeosegError, OptionError, OutputError
from geoseg.globe import outline_of
from geoseg.io.catalogs import Fault
from geoseg.jobs import Strict
from geoseg.pipeline import Result

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from geoseg.catalog import Scene
    from geoseg.work import SceneOrder

log = logging.getLogger("geoseg")


class Comparison(Strict):
    """What of the scenes is compared, and how: the key `change` of a run's job."""

    pairs: tuple[tuple[str, str], ...] = Field(
        default=(), description="ids of scenes, [before, after] each; none: as `rule` finds them by place and date"
    )
    rule: Literal["previous", "first"] = Field(
        default="previous",
        description="what each scene is compared with: the latest one before it, or the first of all",
    )
    overlap: float = Field(
        default=0.2, gt=0, le=1, description="share of the smaller scene that a pair found by `rule` has in common"
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        description="metres by which outlines and borders may be off; None: 1.5, or three pixels where those are more",
    )
    align: bool = Field(default=False, description="move the map before by the shift between the images")
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="objects: below it, what is new or demolished is uncertain"
    )
    unchanged: bool = Field(default=False, description="objects: write those that did not change, too")
    zones: str | None = Field(default=None, description="objects: vector file; a summary for each of its polygons")

    def job(self, before: SceneOrder, after: SceneOrder, data: Path) -> ChangeJob:
        """The job of one pair; explicit pairs may be of any order."""
        names = ("tolerance", "align", "min_confidence", "unchanged")
        zones = None if self.zones is None else str((data / self.zones).absolute())
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ChangeJob(before.job, after.job, zones=zones, any_order=bool(self.pairs), **options)


@dataclass(frozen=True)
class PairOrder:
    """A comparison as it travels: all of its plan but open files."""

    job: ChangeJob
    before: SceneOrder
    after: SceneOrder

    def planned(self) -> ChangePlan:
        """The plan again. Raises `SceneError` if a scene has changed."""
        return planned_of(self.job, self.before.planned(), self.after.planned())


@dataclass(frozen=True)
class PairEntry:
    """One comparison of a run."""

    id: str
    order: PairOrder
    complete: bool
    """Whether nothing is to be done, once both scenes are mapped."""


@dataclass(frozen=True)
class PairOutcome:
    """What comes back for a pair."""

    seconds: float
    why: str | None = None
    """Why it failed, if it did."""
    hopeless: bool = False
    """Whether nothing else can be done either: the disk refuses."""


def plan_pairs(
    wanted: Comparison, orders: Mapping[str, tuple[SceneOrder, bool]], data: Path, *, overwrite: bool = False
) -> tuple[list[PairEntry], list[Fault]]:
    """The comparisons of a run, and what is wrong with some of them.

    `orders`: of each scene's id how it is mapped, and whether that is done. Raises `OptionError` if there are no pairs.
    """
    entries, faults = [], []
    for before, after in _pairs(wanted, {name: order.scene for name, (order, _) in orders.items()}):
        name = f"{before}--{after}"
        lacking = [each for each in (before, after) if each not in orders]
        if lacking:
            faults.append(Fault(name, f"change.pairs: {lacking[0]} is none of the scenes that can be mapped"))
            continue
        (one, one_done), (other, other_done) = orders[before], orders[after]
        try:
            order = PairOrder(wanted.job(one, other, data), one, other)
            planned = order.planned()
        except GeosegError as error:
            faults.append(Fault(name, str(error)))
            continue
        complete = is_compared(planned) and one_done and other_done and not overwrite
        entries.append(PairEntry(name, order, complete))
    if not entries and not faults:
        msg = "change: no two of the scenes have a date each and ground in common; name pairs: [[then, now]], give the "
        raise OptionError(msg + "scenes' dates ({href, datetime}), or leave change out")
    return entries, faults


def _pairs(wanted: Comparison, scenes: Mapping[str, Scene]) -> Iterator[tuple[str, str]]:
    """Ids, before and after: as the job has them, or by place and date."""
    if wanted.pairs:
        yield from wanted.pairs
        return
    dated = sorted((scene.datetime, name) for name, scene in scenes.items() if scene.datetime is not None)
    outlines = np.array([outline_of(scenes[name].geobox) for _, name in dated], object)
    tree = shapely.STRtree(outlines)
    for place, (when, name) in enumerate(dated):
        near = np.sort(tree.query(outlines[place]))
        earlier = [other for other in near.tolist() if dated[other][0] < when]
        meets = [other for other in earlier if _shared(outlines[other], outlines[place]) >= wanted.overlap]
        if meets:
            yield dated[meets[-1 if wanted.rule == "previous" else 0]][1], name


def _shared(one: shapely.Geometry, other: shapely.Geometry) -> float:
    """Share of the smaller outline that both cover, in degrees."""
    smaller = min(shapely.area(one), shapely.area(other))
    return float(shapely.area(shapely.intersection(one, other)) / smaller) if smaller else 0.0


def compare_pair(order: PairOrder) -> PairOutcome:
    """Compare two scenes that are mapped. Whatever goes wrong is told in the outcome, not raised."""
    began = time.perf_counter()
    try:
        planned = order.planned()
        maps = [_mapped(plan.folder) for plan in (planned.before, planned.after)]
        compare(planned, (maps[0], maps[1]), measure(planned, _quiet), _quiet)
    except Exception as error:  # a night's work goes on without this pair
        log.debug("", exc_info=error)
        why = str(error) if isinstance(error, GeosegError) else f"a defect: {type(error).__name__}: {error}"
        return PairOutcome(time.perf_counter() - began, why, isinstance(error, OutputError))
    return PairOutcome(time.perf_counter() - began)


def _mapped(folder: Path) -> Result:
    """The results of a scene. Raises `OptionError` if it has none."""
    if not (folder / "item.json").exists():
        msg = f"{folder.name} could not be mapped, so there is nothing to compare; see why, and run the same job again"
        raise OptionError(msg)
    return Result(folder)


def _quiet(stage: str, done: int, total: int) -> None:
    """An observer of what nobody watches."""
