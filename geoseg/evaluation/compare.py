"""`evaluate`: a map against a reference, window by window.

**The grid.** Pixels are compared on the reference's grid; if that has none (polygons), on the prediction's; if neither
has one, on square metres about the reference. A raster is brought there by nearest, polygons are burnt where a pixel's
centre lies inside. **Compared** is a pixel that has data on both sides and its centre in the area of interest.

**Objects** are a vector layer's rows, or the 4-connected pixels of one class of a raster, of those that have data on
both sides. An object **counts** if the pixel that holds its representative point (GEOS's point on surface, always
inside it) is compared. The others can still be partners of those that count: see `geoseg.evaluation.objects`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import geopandas as gpd
import numpy as np
import shapely

from geoseg.errors import EvaluationError, OptionError
from geoseg.evaluation.boundaries import BoundaryCounts, BoundaryScores, Ruler, boundary_counts, boundary_scores
from geoseg.evaluation.changed import NAMES, ChangedPixels, open_changes
from geoseg.evaluation.inputs import (
    Labels,
    Side,
    background_of,
    classes_of,
    grid_of_layers,
    labels_on,
    legend_of,
    metric_crs,
    open_side,
    raster_on,
    values_of,
)
from geoseg.evaluation.objects import ObjectScores, object_scores
from geoseg.evaluation.pixels import (
    CalibrationScores,
    PixelScores,
    calibration_counts,
    calibration_scores,
    pixel_scores,
)
from geoseg.io.scenes import open_scene
from geoseg.io.vectors import read_aoi, to_pixels, to_world
from geoseg.polygonise import Objects, Piece, join, polygonise
from geoseg.raster import CONFIDENCE_STEPS, NODATA, crs_of
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

BLOCK = (2048, 2048)
"""Rows and columns that are compared at a time: some 40 bytes of memory for each pixel. Never changes the result."""

TOLERANCE = 1.0
"""Metres, or two pixels where those are larger."""

CAP = 20
"""Tolerances to which distances between boundaries are told, if that is not more than `CAP_PIXELS`."""

CAP_PIXELS = 256

RESOLUTION = 0.5
"""Metres: the pixels on which two vector layers are compared."""

OBJECT_NAMES = frozenset(
    name + plural
    for name in ("building", "house", "roof", "footprint", "car", "vehicle", "truck", "aircraft", "airplane", "ship",
                 "boat", "tree", "tank", "container", "tent", "pool", "solar panel")
    for plural in ("", "s")
)  # fmt: skip
"""What is an object in a map of several classes, unless it is told: the others have no number."""


BUILDINGS: Final = {0: "background", 1: "building"}
"""What a map's values are called if nothing tells, and there are no others."""


@dataclass(frozen=True)
class EvaluationJob:
    """What the user asks for; None stands for a default."""

    prediction: str | Path | gpd.GeoDataFrame
    """A label raster, a vector file, a folder of results of `geoseg segment`, or a layer."""
    reference: str | Path | gpd.GeoDataFrame
    aoi: str | Path | None = None
    """A vector file: only what is inside its polygons counts."""
    classes: dict[int, str] | None = None
    """Names of the class values; None = as the files have it."""
    class_column: str | None = None
    """Column of the reference's polygons that tells their class, by name or value; None = all are of one class."""
    objects: tuple[str, ...] | None = None
    """Classes to compare as objects, by name or value; () = none; None = the only one, or those of `OBJECT_NAMES`."""
    tolerance: float | None = None
    """Metres by which a boundary may be off; None = `TOLERANCE`."""
    iou: float = 0.5
    """What the IoU of a predicted and a reference object must exceed for them to match."""
    resolution: float | None = None
    """Metres per pixel on which two vector layers are compared; None = `RESOLUTION`."""
    confidence: str | Path | None = None
    """Raster of confidence codes of the prediction; None = that of its results folder."""
    task: Literal["map", "change"] = "map"
    """change: both tell what has changed, see `geoseg.evaluation.changed`."""


@dataclass(frozen=True)
class Coverage:
    """What was compared: pixels of the grid."""

    pixels: int
    compared: int
    outside_aoi: int
    prediction_nodata: int
    """Inside the area of interest; where neither has data, a pixel is counted here and below."""
    reference_nodata: int


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How well a prediction agrees with a reference."""

    prediction: str
    reference: str
    classes: tuple[tuple[int, str], ...]
    """(value, name) in the order of the confusion matrix."""
    crs: str
    pixel_m: tuple[float, float]
    """Metres on the ground from pixel to pixel of the grid, down a column and along a row."""
    ruler: Ruler
    iou_threshold: float
    coverage: Coverage
    pixels: PixelScores
    boundaries: tuple[BoundaryScores, ...]
    """By class, without the background."""
    objects: tuple[ObjectScores, ...]
    """By class, of those that have objects."""
    calibration: CalibrationScores | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it: None for what is undefined."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def evaluate(
    prediction: str | Path | gpd.GeoDataFrame,
    reference: str | Path | gpd.GeoDataFrame,
    *,
    observe: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Evaluation:
    """Compare a map with a reference: see `EvaluationJob` for what either may be, and for the options.

    `observe(stage, done, total)` is told how many pixels are done. Raises `EvaluationError` if the two cannot be
    compared, `SceneError` for a damaged raster, `OptionError` for an option that is out of range.
    """
    setting = _prepare(EvaluationJob(prediction, reference, **options))
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    counts = _Counts()
    total = setting.grid.shape[0] * setting.grid.shape[1]
    done = 0
    for core in Window.of_shape(setting.shape).blocks(BLOCK):
        counts += _count(setting, core, pieces)
        done += core.size
        if observe is not None:
            observe("comparing", done, total)
    _check_counts(setting, counts)
    setting = _renamed(setting, counts)
    values = _values_seen(setting, counts)
    names = [setting.names.get(value, str(value)) for value in values]
    things = [value for value in values if value != setting.background]
    boundaries = [(setting.names.get(v, str(v)), counts.boundaries.get(v)) for v in things]
    return Evaluation(
        prediction=setting.prediction.path,
        reference=setting.reference.path,
        classes=tuple(zip(values, names, strict=True)),
        crs=str(setting.grid.crs),
        pixel_m=setting.ruler.pixel,
        ruler=setting.ruler,
        iou_threshold=setting.job.iou,
        coverage=Coverage(total, *counts.coverage.tolist()),
        pixels=pixel_scores(counts.confusion[np.ix_(values, values)], names),
        boundaries=tuple(boundary_scores(c, setting.ruler, name) for name, c in boundaries if c is not None),
        objects=_compare_objects(setting, pieces, things),
        calibration=None if setting.confidence is None else calibration_scores(counts.calibration),
    )


# --- before the first pixel is read ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Setting:
    """A job whose every input was looked at."""

    job: EvaluationJob
    prediction: Side
    reference: Side
    grid: GeoBox
    names: dict[int, str]
    assumed: bool
    """Whether nothing tells the names, and `names` are those of a map of buildings."""
    background: int | None
    ruler: Ruler
    labels: tuple[Labels, Labels]
    """Of the prediction and the reference."""
    confidence: Labels | None
    inside: Callable[[Window], NDArray[np.bool_]] | None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns of the grid."""
        return int(self.grid.shape[0]), int(self.grid.shape[1])

    @cached_property
    def wanted(self) -> NDArray[np.bool_]:
        """(256,) whether a label's objects are compared."""
        return np.array([value != NODATA and self.may_be_object(value) for value in range(256)])

    @property
    def sides(self) -> tuple[Side, Side]:
        """Prediction and reference."""
        return self.prediction, self.reference

    def may_be_object(self, value: int) -> bool:
        """Whether a class's objects are compared."""
        if value == self.background:
            return False
        if self.job.objects is not None:
            return value in values_of(self.names, list(self.job.objects), "--objects")
        alone = set(self.names) <= {self.background, value}
        return (
            alone or self.names.get(value, "").casefold() in OBJECT_NAMES or all(s.raster is None for s in self.sides)
        )

    def in_area(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels (y, x) are inside the area of interest."""
        return np.ones(window.shape, bool) if self.inside is None else self.inside(window)


def _prepare(job: EvaluationJob) -> _Setting:
    """Look at every input; reads headers and vector files."""
    _check_numbers(job)
    prediction, reference = _sides(job)
    if reference.vector is not None and reference.raster is None and reference.vector.empty:
        msg = (
            f"{reference.path}: holds no polygons, so there is nothing to compare with; check that it is the right file"
        )
        raise EvaluationError(msg)
    told = NAMES if job.task == "change" else legend_of(prediction, reference, job.classes)
    names = told or BUILDINGS
    values_of(names, list(job.objects or ()), "--objects")
    grid, pixel = _grid(job, prediction, reference)
    tolerance = max(TOLERANCE, 2 * max(pixel)) if job.tolerance is None else job.tolerance
    confidence = job.confidence or prediction.confidence
    _check_overlap(prediction, reference, grid)
    return _Setting(
        job=job,
        prediction=prediction,
        reference=reference,
        grid=grid,
        names=names,
        assumed=not told,
        background=background_of(names),
        ruler=Ruler(pixel, tolerance, max(tolerance, min(CAP * tolerance, CAP_PIXELS * min(pixel)))),
        labels=(_labels(job, prediction, grid, names), _labels(job, reference, grid, names)),
        confidence=None if confidence is None else _confidence_on(Path(confidence), grid),
        inside=None if job.aoi is None else read_aoi(Path(job.aoi), grid),
    )


def _sides(job: EvaluationJob) -> tuple[Side, Side]:
    """Prediction and reference. Raises `OptionError` for what a task has no use for."""
    if job.task == "map":
        return open_side(job.prediction), open_side(job.reference, job.class_column)
    if job.classes is not None or job.class_column is not None:
        msg = "--task change: ground has changed or has not, whatever became of it; leave --classes and --class-column "
        raise OptionError(msg + "out")
    return open_changes(job.prediction, job.reference, job.resolution)


def _labels(job: EvaluationJob, side: Side, grid: GeoBox, names: dict[int, str]) -> Labels:
    """A side's labels on the grid of the comparison."""
    if job.task == "change" and side.raster is not None:
        return ChangedPixels(side.raster, grid)
    return labels_on(side, grid, names)


def _check_numbers(job: EvaluationJob) -> None:
    limits = (
        ("--tolerance", job.tolerance, 0, 10_000),
        ("--iou", job.iou, 0, 1),
        ("--resolution", job.resolution, 0, 10_000),
    )
    for name, value, low, high in limits:
        if value is not None and not low < value <= high - (name == "--iou") * 1e-9:
            msg = f"{name} {value}: must be above {low:g} and {'below' if name == '--iou' else 'at most'} {high:g}"
            raise OptionError(msg)
    unknown = [value for value in job.classes or () if not 0 <= value < NODATA]
    if unknown:
        msg = f"--classes: class values must be 0 to 254, got {unknown[0]}"
        raise OptionError(msg)


def _grid(job: EvaluationJob, prediction: Side, reference: Side) -> tuple[GeoBox, tuple[float, float]]:
    """The grid of the comparison and metres on the ground between its pixels, down a column and along a row."""
    for side in (reference, prediction):
        if side.raster is not None:
            return side.raster.geobox, side.raster.ground_resolution
    layers = [prediction.vector, reference.vector]
    area = None if job.aoi is None else open_side(job.aoi).vector
    resolution = job.resolution or RESOLUTION
    return grid_of_layers(layers, resolution, None if area is None else area.geometry), (resolution, resolution)


def _check_overlap(prediction: Side, reference: Side, grid: GeoBox) -> None:
    """Raises `EvaluationError` if the extents of the two do not overlap; a prediction without objects has none."""
    first, second = _extent(prediction, grid), _extent(reference, grid)
    if first is not None and second is not None and not shapely.intersects(first, second):
        msg = f"{prediction.path} and {reference.path} do not overlap on the ground; check that both are of one place"
        raise EvaluationError(msg)


def _extent(side: Side, grid: GeoBox) -> shapely.Geometry | None:
    """What a side covers at most, in pixels of the grid; None = nothing, or more than the CRS has a place for."""
    wkt = crs_of(grid).wkt
    if side.raster is not None:
        outline = side.raster.geobox.footprint(wkt, buffer=0, npoints=16).geom
        pixels = to_pixels(np.array([outline], object), grid)[0]
        return None if pixels.is_empty else pixels
    if side.vector is None or side.vector.empty:
        return None
    bounds = shapely.total_bounds(to_pixels(side.vector.to_crs(wkt).geometry.to_numpy(), grid))
    return shapely.box(*bounds) if np.isfinite(bounds).all() else shapely.Polygon()


def _confidence_on(path: Path, grid: GeoBox) -> Labels:
    scene = open_scene(path)
    if scene.dtype != "uint8" or len(scene.bands) != 1:
        msg = f"{path}: a confidence has one band of uint8 (0..250 = probability in steps of 1/250, 255 = nodata), "
        raise EvaluationError(msg + f"this has {len(scene.bands)} of {scene.dtype}; give a confidence.tif")
    return raster_on(scene, grid)


# --- pixels, window by window ----------------------------------------------------------------------------------------


class _Counts:
    """Everything that is counted; whole numbers, so the order of the windows is of no consequence."""

    def __init__(self) -> None:
        self.coverage = np.zeros(4, np.int64)
        self.confusion = np.zeros((NODATA, NODATA), np.int64)
        self.calibration = np.zeros((2, CONFIDENCE_STEPS + 1), np.int64)
        self.boundaries: dict[int, BoundaryCounts] = {}

    def __iadd__(self, other: _Counts) -> _Counts:  # noqa: PYI034  Self is for classes that have children
        self.coverage += other.coverage
        self.confusion += other.confusion
        self.calibration += other.calibration
        for value, counts in other.boundaries.items():
            mine = self.boundaries.get(value)
            self.boundaries[value] = counts if mine is None else mine + counts
        return self


def _count(setting: _Setting, core: Window, pieces: tuple[list[Piece], list[Piece]]) -> _Counts:
    """Count one window, and add its objects to `pieces`."""
    counts = _Counts()
    inside = setting.in_area(core)
    counts.coverage[1] = core.size - inside.sum()
    outlined = any(side.vector is None for side in setting.sides)
    if not inside.any() and not outlined:
        return counts
    outer = _grown(core, setting.ruler.margin, setting.shape)
    prediction, reference = (labels.read(outer) for labels in setting.labels)
    seen = (prediction != NODATA) & (reference != NODATA)
    here = core.relative_to(outer)
    p, r, both = prediction[here.slices], reference[here.slices], seen[here.slices]
    confidence = None if setting.confidence is None else setting.confidence.read(core)
    _outline(setting, core, (p, r), both, confidence, pieces)
    compared = seen & setting.in_area(outer)
    in_core = compared[here.slices]
    counts.coverage[:] = in_core.sum(), counts.coverage[1], *(int(((x == NODATA) & inside).sum()) for x in (p, r))
    place = r[in_core].astype(np.int64) * NODATA + p[in_core]
    counts.confusion += np.bincount(place, minlength=NODATA**2).reshape(NODATA, NODATA)
    if confidence is not None:
        counts.calibration += calibration_counts(p, r, np.where(in_core, confidence, np.uint8(NODATA)))
    for value in np.flatnonzero(counts.confusion.sum(axis=0) + counts.confusion.sum(axis=1)).tolist():
        if value != setting.background:
            counts.boundaries[value] = boundary_counts(
                prediction == value, reference == value, compared, here, setting.ruler
            )
    return counts


def _grown(core: Window, margin: tuple[int, int], shape: tuple[int, int]) -> Window:
    """A window with a margin, as far as the grid goes."""
    return Window(
        max(core.row_start - margin[0], 0),
        min(core.row_stop + margin[0], shape[0]),
        max(core.col_start - margin[1], 0),
        min(core.col_stop + margin[1], shape[1]),
    )


def _outline(
    setting: _Setting,
    core: Window,
    labels: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    seen: NDArray[np.bool_],
    confidence: NDArray[np.uint8] | None,
    pieces: tuple[list[Piece], list[Piece]],
) -> None:
    """Find the objects of those sides that have no vector layer of their own."""
    wanted = setting.wanted
    if not wanted.any():
        return
    for i, side in enumerate(setting.sides):
        if side.vector is None:
            things = np.where(seen & wanted[labels[i]], labels[i], np.uint8(NODATA))
            certain = confidence if i == 0 else None
            pieces[i].append(polygonise(things, core, background=None, confidence=certain))


def _values_seen(setting: _Setting, counts: _Counts) -> list[int]:
    seen = np.flatnonzero(counts.confusion.sum(axis=0) + counts.confusion.sum(axis=1)).tolist()
    return sorted({*seen, *setting.names})


def _renamed(setting: _Setting, counts: _Counts) -> _Setting:
    """Numbers for names where nothing tells the names and there are more classes than were assumed."""
    values = _values_seen(setting, counts)
    if not setting.assumed or set(values) <= set(BUILDINGS):
        return setting
    return replace(setting, names={value: str(value) for value in values})


def _check_counts(setting: _Setting, counts: _Counts) -> None:
    """Raises `EvaluationError` if nothing was compared, or not what was meant."""
    compared, _, *nodata = counts.coverage.tolist()
    sides = setting.sides
    if not compared:
        msg = f"{sides[0].path} and {sides[1].path} have no pixel in common that has data on both sides"
        what = "" if setting.job.aoi is None else f" and lies in {setting.job.aoi}"
        raise EvaluationError(f"{msg}{what}; check that both are of one place (255 is nodata)")
    raster = setting.reference.raster
    if setting.job.task == "map" and raster is not None and nodata[1] and counts.confusion[0].sum() == compared:
        msg = f"{raster.path}: holds nothing but 0 and nodata where it is compared, and 255 means nodata; "
        raise EvaluationError(msg + 'write the objects of a mask of 0 and 255 as 1 (gdal_calc.py --calc="A>0")')
    values = _values_seen(setting, counts)
    for side in sides:
        vague = side.raster is None and side.vector is not None and "class" not in side.vector
        if vague and len(values) > max(2, len(setting.names)):
            msg = f"{side.path}: the map has the classes {', '.join(map(str, values))}; name the column that tells "
            raise EvaluationError(msg + "them with --class-column, and what they are called with --classes")


# --- objects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Things:
    """The objects of one side: a struct of arrays of length n."""

    geometry: NDArray[np.object_]
    """In metres of equal area."""
    label: NDArray[np.uint8]
    confidence: NDArray[np.float64] | None
    counts: NDArray[np.bool_]


def _compare_objects(
    setting: _Setting, pieces: tuple[list[Piece], list[Piece]], values: list[int]
) -> tuple[ObjectScores, ...]:
    values = [value for value in values if setting.may_be_object(value)]
    if not values:
        return ()
    predicted, reference = (_things(setting, side, found) for side, found in zip(setting.sides, pieces, strict=True))
    scores = []
    for value in values:
        p, r = predicted.label == value, reference.label == value
        scores.append(
            object_scores(
                predicted.geometry[p],
                reference.geometry[r],
                None if predicted.confidence is None else predicted.confidence[p],
                threshold=setting.job.iou,
                predicted_counts=predicted.counts[p],
                reference_counts=reference.counts[r],
                name=setting.names.get(value, str(value)),
            )
        )
    return tuple(scores)


def _things(setting: _Setting, side: Side, pieces: list[Piece]) -> _Things:
    """A side's objects: its own layer, or what was outlined."""
    grid, crs = setting.grid, metric_crs(setting.grid)
    wkt = crs_of(grid).wkt
    if side.vector is None:
        objects = _joined(pieces, setting.shape)
        world, label = gpd.GeoSeries(to_world(objects.geometry, grid), crs=wkt), objects.label
        confidence = None
        if side is setting.prediction and setting.confidence is not None:
            confidence = objects.confidence_sum / np.maximum(objects.pixels, 1) / CONFIDENCE_STEPS
        return _Things(world.to_crs(crs).to_numpy(), label, confidence, _counting(setting, objects.geometry))
    on_grid = to_pixels(side.vector.to_crs(wkt).geometry.to_numpy(), grid)
    near = shapely.intersects(on_grid, shapely.box(0, 0, grid.shape[1], grid.shape[0]))
    kept = side.vector[near]
    return _Things(
        kept.geometry.to_crs(crs).to_numpy(),
        classes_of(side, setting.names)[near],
        kept["confidence"].to_numpy() if "confidence" in kept else None,
        _counting(setting, on_grid[near]),
    )


def _joined(pieces: list[Piece], shape: tuple[int, int]) -> Objects:
    """All objects of pieces that cover the grid."""
    seams: Iterable[Piece] = (piece.without_complete() for piece in pieces)
    return Objects.concatenate([*(piece.complete for piece in pieces), join(seams, shape)])


def _counting(setting: _Setting, geometry: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(n,) whether the pixel with an object's representative point is compared; geometry in pixels of the grid."""
    points = shapely.get_coordinates(shapely.point_on_surface(geometry))
    col, row = np.floor(points).astype(np.int64).T
    rows, cols = setting.shape
    counts: NDArray[np.bool_] = (row >= 0) & (row < rows) & (col >= 0) & (col < cols)
    if setting.inside is None and all(side.raster is None for side in setting.sides):
        return counts
    block = row // BLOCK[0] * (cols // BLOCK[1] + 1) + col // BLOCK[1]
    for number in np.unique(block[counts]):
        here = np.flatnonzero(counts & (block == number))
        window = Window(row[here].min(), row[here].max() + 1, col[here].min(), col[here].max() + 1)
        counts[here] = _compared(setting, window)[row[here] - window.row_start, col[here] - window.col_start]
    return counts


def _compared(setting: _Setting, window: Window) -> NDArray[np.bool_]:
    rasters = [labels for side, labels in zip(setting.sides, setting.labels, strict=True) if side.raster is not None]
    return reduce(np.logical_and, [labels.read(window) != NODATA for labels in rasters], setting.in_area(window))
