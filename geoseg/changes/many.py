"""What of an archive's scenes is compared: pairs and series, and one comparison as a task of its own.

An archive run maps scenes; what the job's key `change` asks for comes after. A comparison is told to a worker as orders
that name scenes and a few numbers, and what comes back is whether it is done. As with `geoseg change`, what is there of
the same parameters is kept. Where nothing maps the scenes one by one, there are comparisons alone: by their spectra, or
by a network for two dates, for which a pair is mapped as a scene is, tile by tile.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, Self, TypeAlias

import numpy as np
import shapely
from pydantic import Field

from geoseg.changes.by_network import PairPlan, has_changes, pair_of, tell_changes
from geoseg.changes.by_series import SeriesJob, check_dates, open_series, run_series
from geoseg.changes.by_spectrum import look_at_spectra, run_spectral
from geoseg.changes.ground import window_on
from geoseg.changes.indices import Index  # noqa: TC001  # pydantic wants it at run time
from geoseg.changes.pair import compare, measure
from geoseg.changes.planned import BETWEEN, ChangeJob, ChangePlan, is_compared, no_ground, planned_of
from geoseg.changes.spectral import Cut  # noqa: TC001  # pydantic wants it at run time
from geoseg.errors import GeosegError, OptionError, OutputError, SceneError, reason_of
from geoseg.globe import outline_of
from geoseg.io.catalogs import Fault
from geoseg.jobs import Strict
from geoseg.pipeline import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from geoseg.catalog import ModelSpec, Scene
    from geoseg.changes.alignment import Measured
    from geoseg.planned import SegmentJob
    from geoseg.work import SceneOrder

log = logging.getLogger("geoseg")

SERIES: Final = f"{BETWEEN}series"
"""Behind the ids of the first and the last scene in the name of a series."""


class Comparison(Strict):
    """What of the scenes is compared, and how: the key `change` of a run's job."""

    pairs: tuple[Annotated[tuple[str, ...], Field(min_length=2)], ...] = Field(
        default=(),
        description="ids of scenes, [before, after] each, or three and more dates as a series; none: as `rule` finds "
        "them by place and date",
    )
    rule: Literal["previous", "first", "series"] = Field(
        default="previous",
        description="what each scene is compared with: the latest one before it, or the first of all; series: all "
        "dates of a place as one series",
    )
    overlap: float = Field(
        default=0.2, gt=0, le=1, description="share of the smaller scene that a pair found by `rule` has in common"
    )
    tolerance: float | None = Field(
        default=None,
        ge=0,
        description="metres by which outlines and borders may be off; None: 1.5, or three pixels where those are more",
    )
    align: bool = Field(default=False, description="move what is before by the shift between the images")
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="objects: below it, what is new or demolished is uncertain"
    )
    unchanged: bool = Field(default=False, description="objects: write those that did not change, too")
    zones: str | None = Field(default=None, description="objects: vector file; a summary for each of its polygons")
    cut: Cut | Annotated[float, Field(gt=0)] = Field(
        default="otsu",
        description="spectral: how the threshold is found above which a pixel has changed, or what it is",
    )
    index: Index | None = Field(
        default=None, description="spectral: the index whose difference is looked at; None: the vectors of all bands"
    )
    mad: bool = Field(
        default=False, description="spectral: compare canonical variates of the bands (MAD), and not the bands"
    )
    around: float = Field(
        default=0.0, ge=0, description="spectral: metres to each side that the mean of magnitudes is taken over"
    )
    stay: float = Field(
        default=0.9, gt=0, lt=1, description="series: how probable it is that a pixel keeps its class to the next date"
    )

    def job(self, before: SegmentJob, after: SegmentJob, data: Path) -> ChangeJob:
        """The job of one pair; explicit pairs may be of any order."""
        names = ("tolerance", "align", "min_confidence", "unchanged", "cut", "index", "mad", "around")
        zones = None if self.zones is None else str((data / self.zones).absolute())
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        return ChangeJob(before, after, zones=zones, any_order=bool(self.pairs), **options)

    def is_series(self, ids: tuple[str, ...]) -> bool:
        """Whether scenes are compared as a series, and not as a pair."""
        return self.rule == "series" or len(ids) > 2  # noqa: PLR2004  # a pair

    def name(self, ids: tuple[str, ...]) -> str:
        """Of the folder of a comparison."""
        return f"{ids[0]}{BETWEEN}{ids[-1]}{SERIES if self.is_series(ids) else ''}"


# --- what is compared, as it travels


class Order(Protocol):
    """A comparison as it travels: all of its plan but open files."""

    @property
    def scene(self) -> Scene:
        """Where it is."""
        ...

    def decided(self, maps: Mapping[Path, SceneOrder]) -> Self:
        """The same with what was decided since, by the folders of maps, on how these are made."""
        ...

    def carry_out(self) -> None:
        """Make the comparison. Raises the errors of `geoseg.errors`, `SceneError` if a scene has changed."""
        ...


@dataclass(frozen=True)
class MapsOrder:
    """Two scenes that are mapped."""

    job: ChangeJob
    before: SceneOrder
    after: SceneOrder

    @property
    def scene(self) -> Scene:
        """The one after."""
        return self.after.scene

    def decided(self, maps: Mapping[Path, SceneOrder]) -> Self:
        """As `Order` has it."""
        before, after = (maps.get(each.folder, each) for each in (self.before, self.after))
        return replace(self, before=before, after=after)

    def planned(self) -> ChangePlan:
        """The plan again. Raises `SceneError` if a scene has changed."""
        return planned_of(self.job, self.before.planned(), self.after.planned())

    def carry_out(self) -> None:
        """As `Order` has it."""
        planned = self.planned()
        maps = [_mapped(plan.folder) for plan in (planned.before, planned.after)]
        compare(planned, (maps[0], maps[1]), measure(planned, _quiet), _quiet)


@dataclass(frozen=True)
class SeriesOrder:
    """Scenes that are mapped, in the order of their dates."""

    job: SeriesJob
    maps: tuple[SceneOrder, ...]

    @property
    def scene(self) -> Scene:
        """The last one."""
        return self.maps[-1].scene

    def decided(self, maps: Mapping[Path, SceneOrder]) -> Self:
        """As `Order` has it."""
        return replace(self, maps=tuple(maps.get(each.folder, each) for each in self.maps))

    def carry_out(self) -> None:
        """As `Order` has it."""
        for each in self.maps:
            _mapped(each.planned().folder)
        run_series(open_series(self.job), _quiet)


@dataclass(frozen=True)
class SpectraOrder:
    """Two scenes that nothing maps."""

    job: ChangeJob
    before: Scene
    after: Scene
    parameters: str
    """JSON."""

    @property
    def scene(self) -> Scene:
        """The one after."""
        return self.after

    def decided(self, maps: Mapping[Path, SceneOrder]) -> Self:  # noqa: ARG002  # there are none
        """As `Order` has it."""
        return self

    def carry_out(self) -> None:
        """As `Order` has it."""
        planned = look_at_spectra(self.job, self.before, self.after)
        if json.dumps(planned.parameters) != self.parameters:
            msg = f"{self.before.path} or {self.after.path}: has changed since the run was planned; when they are as "
            raise SceneError(msg + "they should be, run the same command again")
        run_spectral(planned, _quiet)


@dataclass(frozen=True)
class TwoDatesOrder:
    """Two scenes that a network maps as one."""

    job: ChangeJob
    before: Scene
    after: Scene
    measured: Measured | None
    pair: SceneOrder

    @property
    def scene(self) -> Scene:
        """Both."""
        return self.pair.scene

    def decided(self, maps: Mapping[Path, SceneOrder]) -> Self:
        """As `Order` has it."""
        return replace(self, pair=maps.get(self.pair.folder, self.pair))

    def carry_out(self) -> None:
        """As `Order` has it."""
        planned = self.pair.planned()
        _mapped(planned.folder)
        tell_changes(PairPlan(self.job, self.before, self.after, self.measured, planned, complete=False))


@dataclass(frozen=True)
class PairEntry:
    """One comparison of a run."""

    id: str
    order: Order
    complete: bool
    """Whether nothing is to be done, once the scenes are mapped."""


@dataclass(frozen=True)
class PairOutcome:
    """What comes back for a comparison."""

    seconds: float
    why: str | None = None
    """Why it failed, if it did."""
    hopeless: bool = False
    """Whether nothing else can be done either: the disk refuses."""


# --- the plan

Made: TypeAlias = "Callable[[tuple[str, ...]], PairEntry]"
"""What plans the comparison of some scenes, by their ids, or raises what is wrong with it."""


@dataclass(frozen=True)
class OfMaps:
    """Plans comparisons of scenes that are mapped."""

    wanted: Comparison
    orders: Mapping[str, tuple[SceneOrder, bool]]
    """Of each scene's id how it is mapped, and whether that is done."""
    data: Path

    def __call__(self, ids: tuple[str, ...]) -> PairEntry:
        """As `Made` has it."""
        orders, done = [self.orders[name][0] for name in ids], all(self.orders[name][1] for name in ids)
        name = self.wanted.name(ids)
        return (self._series if self.wanted.is_series(ids) else self._pair)(name, orders, done)

    def _pair(self, name: str, orders: list[SceneOrder], done: bool) -> PairEntry:  # noqa: FBT001  # what is known
        before, after = orders
        order = MapsOrder(self.wanted.job(before.job, after.job, self.data), before, after)
        return PairEntry(name, order, is_compared(order.planned()) and done)

    def _series(self, name: str, orders: list[SceneOrder], done: bool) -> PairEntry:  # noqa: FBT001  # the same
        scenes, last = [order.scene for order in orders], orders[-1]
        check_dates([(scene.path, scene.taken) for scene in scenes])
        for scene in scenes:
            if window_on(last.scene.geobox, scene.geobox) is None:
                raise no_ground(scene, last.scene)
        job = SeriesJob(
            tuple(order.folder for order in orders),
            last.folder.with_name(name),
            stay=self.wanted.stay,
            tolerance=self.wanted.tolerance,
            min_area=last.job.min_area,
            simplify=last.job.simplify,
            collection=last.job.collection,
        )
        return PairEntry(name, SeriesOrder(job, tuple(orders)), done and open_series(job).complete)


@dataclass(frozen=True)
class OfScenes:
    """Plans comparisons of scenes that nothing maps one by one."""

    wanted: Comparison
    scenes: Mapping[str, tuple[Scene, SegmentJob]]
    """Of each scene's id what it is, and how it is read."""
    data: Path
    model: ModelSpec | None
    """Which network takes both; None: they are compared by their spectra."""
    mapped: Callable[[Scene, SegmentJob], tuple[SceneOrder, bool]]
    """How a pair that is one scene is mapped, and whether that is done."""

    def __call__(self, ids: tuple[str, ...]) -> PairEntry:
        """As `Made` has it."""
        name = self.wanted.name(ids)
        if self.wanted.is_series(ids):
            msg = f"change: {name} is a series, which is of maps; compare pairs, or choose a model of one scene"
            raise OptionError(msg)
        (before, one), (after, other) = (self.scenes[each] for each in ids)
        job = self.wanted.job(one, other, self.data)
        if self.model is None:
            planned = look_at_spectra(job, before, after)
            order = SpectraOrder(job, before, after, json.dumps(planned.parameters))
            return PairEntry(name, order, planned.complete)
        scene, measured = pair_of(job, before, after, self.model)
        pair, done = self.mapped(scene, replace(other, scene=scene.path))
        complete = done and has_changes(pair.folder)
        return PairEntry(pair.scene.id, TwoDatesOrder(job, before, after, measured, pair), complete)


def plan_pairs(wanted: Comparison, scenes: Mapping[str, Scene], made: Made) -> tuple[list[PairEntry], list[Fault]]:
    """The comparisons of a run, and what is wrong with some of them. Raises `OptionError` if there are none."""
    entries, faults = [], []
    groups = list(dict.fromkeys(_groups(wanted, scenes)))
    often = Counter(wanted.name(ids) for ids in groups)
    for ids in groups:
        name = wanted.name(ids)
        lacking = [each for each in ids if each not in scenes]
        try:
            if lacking:
                msg = f"change.pairs: {lacking[0]} is none of the scenes that can be mapped"
                raise OptionError(msg)
            if often[name] > 1:
                msg = f"change.pairs: {name} would be of {often[name]} lists of scenes, and is one folder; leave one"
                raise OptionError(msg)
            entries.append(made(ids))
        except GeosegError as error:
            faults.append(Fault(name, str(error)))
    if not entries and not faults:
        msg = "change: no two of the scenes have a date each and ground in common; name pairs: [[then, now]], give the "
        raise OptionError(msg + "scenes' dates ({href, datetime}), or leave change out")
    return entries, faults


def _groups(wanted: Comparison, scenes: Mapping[str, Scene]) -> Iterator[tuple[str, ...]]:
    """Ids of what is compared, in the order of their dates: as the job has them, or by place and date."""
    if wanted.pairs:
        yield from wanted.pairs
    elif wanted.rule == "series":
        yield from _chains({after: before for before, after in _found(wanted, scenes)})
    else:
        yield from _found(wanted, scenes)


def _chains(before: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """Of each scene that none comes after, it and all that come before it, by what is the one before of each."""
    followed = set(before.values())
    for last in (name for name in before if name not in followed):
        chain = [last]
        while chain[-1] in before:
            chain.append(before[chain[-1]])
        yield tuple(reversed(chain))


def _found(wanted: Comparison, scenes: Mapping[str, Scene]) -> Iterator[tuple[str, str]]:
    """Pairs of ids, before and after, by place and date."""
    dated = sorted((scene.taken, name) for name, scene in scenes.items() if scene.taken is not None)
    outlines = np.array([outline_of(scenes[name].geobox) for _, name in dated], object)
    tree = shapely.STRtree(outlines)
    for place, (when, name) in enumerate(dated):
        near = np.sort(tree.query(outlines[place]))
        earlier = [other for other in near.tolist() if dated[other][0] < when]
        meets = [other for other in earlier if _shared(outlines[other], outlines[place]) >= wanted.overlap]
        if meets:
            yield dated[meets[0 if wanted.rule == "first" else -1]][1], name


def _shared(one: shapely.Geometry, other: shapely.Geometry) -> float:
    """Share of the smaller outline that both cover, in degrees, to four digits: so that all of it is 1.

    Areas are rounded, and sides that are straight on one grid are bent in degrees, where an outline has few vertices.
    """
    smaller = min(shapely.area(one), shapely.area(other))
    return round(float(shapely.area(shapely.intersection(one, other)) / smaller), 4) if smaller else 0.0


def compare_pair(order: Order) -> PairOutcome:
    """Compare scenes that are mapped, or that nothing maps. Whatever goes wrong is told in the outcome, not raised."""
    began = time.perf_counter()
    try:
        order.carry_out()
    except Exception as error:  # a night's work goes on without this one
        log.debug("", exc_info=error)
        return PairOutcome(time.perf_counter() - began, reason_of(error), isinstance(error, OutputError))
    return PairOutcome(time.perf_counter() - began)


def _mapped(folder: Path) -> Result:
    """The results of a scene. Raises `OptionError` if it has none."""
    if not (folder / "item.json").exists():
        msg = f"{folder.name} could not be mapped, so there is nothing to compare; see why, and run the same job again"
        raise OptionError(msg)
    return Result(folder)


def _quiet(stage: str, done: int, total: int) -> None:
    """An observer of what nobody watches."""
