"""What is to be compared, and whether it can be: `plan_change` finds every error before the first pixel is mapped."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from geoseg.catalog import sha256_of
from geoseg.changes.ground import sample, seen_by_both, window_on
from geoseg.changes.indices import INDICES, Index
from geoseg.changes.spectral import CUTS, Cut, robust
from geoseg.changes.transitions import MOST_CLASSES
from geoseg.errors import ModelError, OptionError, SceneError
from geoseg.io.grids import asked_of
from geoseg.io.pixels import Stretch
from geoseg.io.store import cannot_write
from geoseg.io.vectors import read_polygons
from geoseg.planned import Plan, SegmentJob, checked, look

if TYPE_CHECKING:
    import datetime as dt

    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.window import Window

LEAST_TOLERANCE_M, LEAST_TOLERANCE_PX = 1.5, 3.0
"""The default tolerance: so many metres, or so many of the coarser scene's pixels where those are larger.

Outlines of one building in two images differ by a pixel or two for the network, and by what the images are aside; roofs
that were seen from another side stand off by a metre and more.
"""

LARGEST_REACH: Final = 512
"""Pixels that a tolerance may span: a window is read with twice as many around it."""

BETWEEN: Final = "--"
"""Between the ids of both scenes in the name of a result."""

FILES: Final = ("item.json", "summary.json", "changes.geojson", "changes.parquet")

RASTERS: Final = ("changes.tif", "transitions.tif", "magnitude.tif", "difference.tif", "since.tif")
ALL_FILES: Final = (
    *(*FILES, "transitions.csv", "zones.geojson", "objects.geojson", "objects.parquet"),
    *(*RASTERS, *(f"{name}.aux.xml" for name in RASTERS)),
)
"""What comparisons of any kind, and series, leave in their folders."""


@dataclass(frozen=True)
class ChangeJob:
    """What the user asks for."""

    before: SegmentJob
    after: SegmentJob
    """How each scene is mapped: the same but for the scene."""
    tolerance: float | None = None
    """Metres by which outlines and borders may be off; None = 1.5, or three pixels where those are larger."""
    align: bool = False
    """Whether the map before is moved by the shift that was estimated between the images."""
    min_confidence: float = 0.5
    """Of objects: below it, what is new or gone is uncertain."""
    unchanged: bool = False
    """Of objects: whether those that did not change are in the files, too."""
    zones: str | Path | None = None
    """Of objects: a vector file with polygons, for each of which there is a summary."""
    any_order: bool = False
    """Whether the scene before may be the later one."""
    match: bool = False
    """Whether the scene before is brought to the brightness and contrast of the one after before it is mapped."""
    cut: Cut | float = "otsu"
    """Without a model: how the threshold is found from which on a pixel has changed, or what it is."""
    index: Index | None = None
    """Without a model: the spectral index whose difference is looked at; None: the vectors of all bands."""
    mad: bool = False
    """Without a model: whether vectors are of canonical variates of the bands (multivariate alteration detection)."""
    around: float = 0.0
    """Without a model: metres to each side of a pixel that the mean of its magnitude is taken over."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing. Raises `OptionError`."""
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            msg = f"--tolerance {self.tolerance}: must be 0 metres or more"
            raise OptionError(msg)
        if self.cut not in CUTS if isinstance(self.cut, str) else not 0 < self.cut < math.inf:
            msg = f"--cut {self.cut}: is one of {', '.join(CUTS)}, or a threshold above 0"
            raise OptionError(msg)
        if self.index is not None and self.index not in INDICES:
            msg = f"--index {self.index}: is one of {', '.join(INDICES)}"
            raise OptionError(msg)
        if not 0 <= self.around < math.inf:
            msg = f"--around {self.around}: must be 0 metres or more"
            raise OptionError(msg)
        if self.vectors and self.index is not None:
            msg = f"{self.vectors}: is of the vectors of all bands, and --index {self.index} is not; "
            msg += "leave one of both out"
            raise OptionError(msg)
        if not 0 <= self.min_confidence <= 1:
            msg = f"--min-confidence {self.min_confidence}: must be from 0 to 1"
            raise OptionError(msg)

    @property
    def vectors(self) -> str:
        """What is asked for that is of the vectors of all bands alone."""
        return "--mad" if self.mad else f"--around {self.around:g}" if self.around else ""


@dataclass(frozen=True)
class ChangePlan:
    """A job whose every input was looked at."""

    job: ChangeJob
    before: Plan
    after: Plan
    folder: Path
    overlap: Window
    """Pixels of the scene after that the scene before may reach."""
    tolerance: float
    """Metres."""
    parameters: dict[str, Any]
    """What the result depends on."""
    complete: bool
    """Whether the results are there already, those of both scenes among them."""

    @property
    def by_class(self) -> bool:
        """Whether the product has no background, so that all of the ground is compared, class by class."""
        return self.after.model.legend.background is None

    @property
    def reach(self) -> tuple[int, int]:
        """The tolerance in whole pixels of the scene after: rows, columns."""
        return reach_of(self.tolerance, self.after.scene)

    @property
    def scenes(self) -> tuple[Scene, Scene]:
        """Before and after."""
        return self.before.scene, self.after.scene

    @property
    def dates(self) -> dict[str, dt.datetime | None]:
        """When the scenes were taken, by the name of a column."""
        return {"date_before": self.before.scene.taken, "date_after": self.after.scene.taken}

    @property
    def files(self) -> tuple[str, ...]:
        """What a comparison leaves in its folder."""
        rasters = ("transitions.tif", "transitions.csv") if self.by_class else ("changes.tif",)
        return (*FILES, *rasters, *(("zones.geojson",) if self.job.zones is not None else ()))

    def nothing_seen(self) -> SceneError:
        """The error for scenes whose data nowhere meet."""
        return seen_by_both(*self.scenes)


def job_of(
    before: str | Path | Scene, after: str | Path | Scene, product: str, out: str | Path, **options: Any
) -> ChangeJob:
    """The job of two scenes: options are those of `ChangeJob`, and those of `SegmentJob` for both."""
    ours = {field.name for field in dataclasses.fields(ChangeJob)} & options.keys()
    mapping = {name: value for name, value in options.items() if name not in ours}
    one, other = (_mapping_job(scene, product, out, mapping) for scene in (before, after))
    return ChangeJob(one, other, **{name: options[name] for name in ours})


def _mapping_job(scene: str | Path | Scene, product: str, out: str | Path, options: dict[str, Any]) -> SegmentJob:
    """How one of the scenes is mapped: on its grid, where it was opened on another than its own."""
    if isinstance(scene, (str, Path)):
        return SegmentJob(scene, product, out, **options)
    return SegmentJob(scene.path, product, out, **{**asked_of(scene), **options})


def plan_change(job: ChangeJob) -> ChangePlan:
    """Look at every input of a job; reads headers, and overviews of scenes that are not uint8.

    Raises the errors of `geoseg.errors`, those of mapping each scene among them.
    """
    if job.match:
        job = dataclasses.replace(job, before=_matched(job))
    planned = planned_of(job, look(job.before), look(job.after))  # tells what is wrong before a folder is made
    before, after = checked(planned.before), checked(planned.after)
    complete = before.complete and after.complete and is_compared(planned)
    return dataclasses.replace(planned, before=before, after=after, complete=complete)


def _matched(job: ChangeJob) -> SegmentJob:
    """The scene before, read so that each band has the median and spread of the one after where both see ground.

    Linear, one for all of the scene (pseudo-invariant normalisation in its simplest form, most of the ground being what
    it was), so that nothing depends on windows. Raises `SceneError` if the scenes see nothing in common.
    """
    before, after = look(job.before), look(job.after)
    overlap = window_on(after.scene.geobox, before.scene.geobox)
    if overlap is None:
        raise no_ground(before.scene, after.scene)
    first, second = sample(before.source, after.source, overlap)
    seen = first.valid & second.valid
    if not seen.any():
        raise seen_by_both(before.scene, after.scene)
    own = before.source.stretch or Stretch((0.0,) * len(first.values), (255.0,) * len(first.values))
    return dataclasses.replace(job.before, stretch=matched(own, first.values[:, seen], second.values[:, seen]))


def matched(own: Stretch, before: NDArray[np.generic], after: NDArray[np.generic]) -> Stretch:
    """The stretch after which bytes (band, pixel) have the medians and robust deviations of others, given their own."""
    (centre, spread), (wanted, width) = robust(before.astype(np.float64)), robust(after.astype(np.float64))
    low, high = np.asarray(own.low), np.asarray(own.high)
    gain = (spread / width)[:, 0]
    start = low + (centre[:, 0] - wanted[:, 0] * gain) * (high - low) / 255
    stop = start + (high - low) * gain
    return Stretch(tuple(start.tolist()), tuple(stop.tolist()))


def no_ground(before: Scene, after: Scene) -> SceneError:
    """The error for scenes that do not meet."""
    msg = f"{before.path} and {after.path} have no ground in common; check that they are of one place"
    return SceneError(msg + ", and their CRS")


def planned_of(job: ChangeJob, before: Plan, after: Plan) -> ChangePlan:
    """The plan of a job both of whose scenes were looked at. Raises what is wrong with them as a pair."""
    check_order(job, before.scene, after.scene)
    overlap = window_on(after.scene.geobox, before.scene.geobox)
    if overlap is None:
        raise no_ground(before.scene, after.scene)
    tolerance = default_tolerance(before.scene, after.scene) if job.tolerance is None else job.tolerance
    _check_product(job, after, reach_of(tolerance, after.scene))
    folder = Path(job.after.out) / f"{before.scene.id}{BETWEEN}{after.scene.id}"
    parameters = {
        "before": before.parameters,
        "after": after.parameters,
        "tolerance": tolerance,
        "align": job.align,
        **({} if after.model.legend.background is None else _object_parameters(job)),
    }
    parameters = json.loads(json.dumps(parameters))  # as it will be read back
    planned = ChangePlan(job, before, after, folder, overlap, tolerance, parameters, complete=False)
    complete = before.complete and after.complete and is_compared(planned)
    return dataclasses.replace(planned, complete=complete)


def _object_parameters(job: ChangeJob) -> dict[str, Any]:
    if job.zones is not None:
        read_polygons(Path(job.zones))
    zones = None if job.zones is None else sha256_of(Path(job.zones))
    return {"min_confidence": job.min_confidence, "unchanged": job.unchanged, "zones": zones}


def check_order(job: ChangeJob, one: Scene, other: Scene) -> None:
    """Refuse scenes of one name, and the wrong order. Raises `OptionError`."""
    if one.id == other.id:
        msg = f"{one.path} and {other.path}: both are named {one.id!r}, and each scene has the folder of its name in "
        msg += f"{job.after.out}; give one another name, for instance with a link: ln -s {one.path} {one.id}-before"
        raise OptionError(msg + Path(one.path).suffix)
    if one.taken and other.taken and one.taken > other.taken and not job.any_order:
        msg = f"{one.path} is of {one.taken:%Y-%m-%d}, later than {other.path} of {other.taken:%Y-%m-%d}; "
        raise OptionError(msg + "the scene before comes first: exchange them, or use --any-order")


def _check_product(job: ChangeJob, after: Plan, reach: tuple[int, int]) -> None:
    """Refuse what one of the two kinds of comparison has no use for."""
    legend = after.model.legend
    given = job.vectors or ("" if job.index is None else f"--index {job.index}")
    if given:
        msg = f"{given}: is of the bands of scenes (PRODUCT spectral), and maps of {after.model.product} are compared; "
        raise OptionError(msg + "leave it out")
    if legend.background is None and job.zones is not None:
        msg = f"--zones {job.zones}: counts objects, and {after.model.product} has none; leave it out"
        raise OptionError(msg)
    if len(legend.classes) > MOST_CLASSES:
        msg = f"{after.model.name}: has {len(legend.classes)} classes; their transitions have codes in a byte for at "
        raise ModelError(msg + f"most {MOST_CLASSES}; choose a model with fewer")
    if max(reach) > LARGEST_REACH:
        msg = (
            f"--tolerance: spans {max(reach)} pixels of {after.scene.path}; at most {LARGEST_REACH} are looked through"
        )
        raise OptionError(msg)


def default_tolerance(before: Scene, after: Scene) -> float:
    """Metres by which outlines may be off where nothing else was asked for."""
    pixel = max(*before.ground_resolution, *after.ground_resolution)
    return round(max(LEAST_TOLERANCE_M, LEAST_TOLERANCE_PX * pixel), 3)


def reach_of(tolerance: float, scene: Scene) -> tuple[int, int]:
    """So many metres in whole pixels of a scene, rounded up: rows, columns."""
    down, along = (math.ceil(round(tolerance / side, 6)) for side in scene.ground_resolution)
    return down, along


def begun(folder: Path) -> Path:
    """A folder that is there, without what a comparison of another kind or with other options has left in it.

    Its item goes first: where it is the folder is complete. Raises `OutputError` if the disk refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ALL_FILES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def is_compared(planned: ChangePlan) -> bool:
    """Whether the folder holds the comparison of these parameters, and all of it."""
    try:
        item = json.loads((planned.folder / "item.json").read_text(encoding="utf-8"))
        told = item["properties"]["geoseg:parameters"]
    except (OSError, ValueError, KeyError):
        return False
    same = all(told.get(name) == value for name, value in planned.parameters.items())
    return same and all((planned.folder / name).exists() for name in planned.files)
