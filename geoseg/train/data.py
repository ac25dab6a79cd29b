"""From a job to its places, and from places to a stream of crops."""

from __future__ import annotations

import fnmatch
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import torch
from rasterio.errors import RasterioIOError
from torch.utils.data import IterableDataset

from geoseg.errors import OptionError, SceneError
from geoseg.io.layers import read_layer
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.io.stacks import stacked
from geoseg.raster import crs_of
from geoseg.train.job import Chips, Ground
from geoseg.train.labels import RasterLabels, VectorLabels, classes_of
from geoseg.train.losses import IGNORED
from geoseg.train.places import ChipPlace, GroundPlace, LabelledRaster, Maps, chip_opened
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from geoseg.catalog import Scene
    from geoseg.train.job import TrainJob
    from geoseg.train.labels import Labels
    from geoseg.train.places import Place, Sample

ROOM = 1.42
"""A crop is drawn so much larger than it is needed, so that it can be turned by any angle."""
NAMED_IN_A_JOB = "name its bands (gdal_edit.py -colorinterp_1 red ...), or other ones under `bands` in the job"
"""What is to be done where a scene lacks bands."""
LEAST_KNOWN = 0.3
"""Share of a crop's pixels that must have a label."""
TRIES = 50
RGB = 3
RARE = 0.5
"""A class is rare if it has fewer than this share of an equal part of the labels."""


def places_of(job: TrainJob, folder: Path) -> list[Place]:
    """The places of a job, whose paths count from `folder`.

    Raises `OptionError` or `SceneError` for what is not right.
    """
    places: list[Place] = []
    for number, data in enumerate(job.data):
        if isinstance(data, Chips):
            places.append(_chips(data, job, folder))
        else:
            places += _ground(data, job, folder, number)
    counts = sum(place.class_pixels() for place in places)
    missing = [c.name for c, count in zip(job.classes, np.asarray(counts), strict=True) if not count]
    missing = [name for name in missing if name != job.background]
    if missing:
        msg = f"{job.name}: no label of the data is of class {', '.join(missing)}; check `values` and `class_column`, "
        raise OptionError(msg + "and that labels, rasters and area lie on the same ground")
    return places


def _paths(folder: Path, pattern: str) -> list[Path]:
    """The files of a path or glob that counts from a folder."""
    found = sorted(folder.glob(pattern)) if any(c in pattern for c in "*?[") else [folder / pattern]
    if not found or not found[0].exists():
        msg = f"{folder / pattern}: there is no such file; paths of a job count from the folder given with --data"
        raise OptionError(msg)
    return found


def _class_values(job: TrainJob, values: dict[str, str] | None) -> dict[str, int]:
    """The value of the map's class for what a file calls it."""
    known = {c.name: value for value, c in enumerate(job.classes)}
    for called, name in (values or {}).items():
        if name not in known:
            msg = f"{job.name}: `values` calls {called!r} {name!r}, which is none of the classes {', '.join(known)}"
            raise OptionError(msg)
    return {called: known[name] for called, name in values.items()} if values is not None else known


def _value_table(job: TrainJob, values: dict[str, str] | None) -> NDArray[np.uint8]:
    """(65536,): the class of each value of a label raster, 255 = ignored."""
    table = np.full(1 << 16, IGNORED, np.uint8)
    if values is None:
        table[: len(job.classes)] = np.arange(len(job.classes))
    else:
        for called, value in _class_values(job, values).items():
            if not called.isdecimal() or int(called) >= len(table):
                msg = f"{job.name}: `values` has {called!r}: labels are rasters, so it is a whole number of theirs, "
                raise OptionError(msg + f"from 0 to {len(table) - 1}")
            table[int(called)] = value
    return table


def _chips(data: Chips, job: TrainJob, folder: Path) -> ChipPlace:
    dates = [_images(folder / name) for name in (data.images, data.after) if name is not None]
    labels = _images(folder / data.labels)
    both = sorted(labels.keys() & set.intersection(*(set(images) for images in dates)))
    if not both:
        where = " and ".join(str(folder / name) for name in (data.after, data.labels) if name is not None)
        msg = f"{folder / data.images}: no image has one of its name in {where}"
        raise OptionError(msg)
    for name in both:
        _check_chip([images[name] for images in dates], labels[name], job)
    kept = {name for pattern in data.validation for name in _matching(both, pattern)}
    if data.validation and not kept:
        msg = f"{folder / data.images}: no image is called {' or '.join(data.validation)}, so none would be kept for "
        raise OptionError(
            msg + "validation; correct `validation`: globs, or first..last, of names without their endings"
        )
    pairs = [(tuple(images[name] for images in dates), labels[name]) for name in both]
    return ChipPlace(
        name=data.images,
        weight=data.weight,
        resolution=data.resolution,
        pairs=tuple(pair for name, pair in zip(both, pairs, strict=True) if name not in kept),
        kept=tuple(pair for name, pair in zip(both, pairs, strict=True) if name in kept),
        values=_value_table(job, data.values),
        bands=len(job.bands),
        background=_background(job),
        classes=len(job.classes),
        fill=round(255 * job.mean),
    )


def _images(folder: Path) -> dict[str, Path]:
    """The images of a folder by their stems."""
    return {p.stem: p for p in sorted(folder.glob("*")) if p.suffix.lower() != ".xml"}


def _check_chip(images: Sequence[Path], label: Path, job: TrainJob) -> None:
    """Raises `SceneError` unless images are uint8 with the job's bands, labels integer, and all of one size."""
    first, wanted = images[0], len(job.bands)
    size = None
    for path in (*images, label):
        try:
            with chip_opened(path) as chip:
                count, shape, dtype = chip.count, chip.shape, np.dtype(chip.dtypes[0])
        except RasterioIOError as error:
            msg = f"{path}: cannot be read as an image ({' '.join(str(error).split())}); take it out of its folder"
            raise SceneError(msg) from error
        size = size or shape
        if shape != size:
            msg = f"{path}: has {shape[0]} x {shape[1]} pixels, {first} has {size[0]} x {size[1]}; the images of a "
            raise SceneError(msg + "place and its label image lie on each other pixel by pixel: cut them alike")
        if path is not label and dtype != np.uint8:
            msg = f"{path}: is {dtype}; images without georeference are taken as they are, so they must be uint8: "
            raise SceneError(msg + "bring all of them to 0 to 255 alike (gdal_translate -ot Byte -scale LOW HIGH)")
        if path is not label and count < wanted and (count, job.dates, wanted) != (1, 1, RGB):
            msg = f"{path}: has {count} bands, the job has {', '.join(job.bands)}; correct `bands`, or give images "
            raise SceneError(msg + "that have all of them, in this order")
        if path is label and dtype.kind not in "iu":
            raise SceneError(_not_whole(path, dtype))


def _not_whole(path: Path, dtype: np.dtype[Any]) -> str:
    return f"{path}: is {dtype}; the values of labels are whole numbers: convert it (gdal_translate -ot Byte)"


def _matching(names: list[str], pattern: str) -> list[str]:
    """Names that a glob matches, or that lie from one name to another in their order."""
    first, between, last = pattern.partition("..")
    return [n for n in names if (first <= n <= last if between else fnmatch.fnmatch(n, pattern))]


def _background(job: TrainJob) -> int | None:
    return next((value for value, c in enumerate(job.classes) if c.name == job.background), None)


def _ground(data: Ground, job: TrainJob, folder: Path, number: int) -> list[GroundPlace]:
    scenes = [open_scene(path) for pattern in data.rasters for path in _paths(folder, pattern)]
    if data.after is not None:
        later = [open_scene(path) for pattern in data.after for path in _paths(folder, pattern)]
        if len(later) != len(scenes):
            msg = f"data.{number}: has {len(scenes)} rasters and {len(later)} after; name as many, in the same order"
            raise OptionError(msg)
        scenes = [stacked(*pair, name=pair[0].id) for pair in zip(scenes, later, strict=True)]
    total = sum(s.shape[0] * s.shape[1] for s in scenes)
    places = []
    for scene in scenes:
        share = data.weight * scene.shape[0] * scene.shape[1] / total
        place = _ground_place(scene, data, job, folder, share, number)
        if place is not None:
            places.append(place)
    if not places:
        msg = f"data.{number}: none of the rasters {', '.join(data.rasters)} meets the area {data.area}; check that "
        raise OptionError(msg + "both are of one place")
    if data.validation_area is not None and all(place.validate is None for place in places):
        msg = f"data.{number}: nothing of its rasters and area is in the validation_area {data.validation_area}; check "
        raise OptionError(msg + "that it is of the same place")
    return places


def _ground_place(
    scene: Scene, data: Ground, job: TrainJob, folder: Path, weight: float, number: int
) -> GroundPlace | None:
    affine = scene.geobox.affine
    if affine.b or affine.d or affine.e >= 0 or affine.a <= 0:
        msg = f"{scene.path}: is turned or upside down; for training, warp it first (gdalwarp)"
        raise SceneError(msg)
    if scene.stacked:
        scene, bands = as_asked(scene, job.bands, Asked())
    else:
        bands = scene.bands_for(job.bands, NAMED_IN_A_JOB)
    source = open_source(scene, bands, estimate_stretch(scene, bands))
    unit = (scene.ground_resolution[0] / -affine.e + scene.ground_resolution[1] / affine.a) / 2
    outline = shapely.box(*scene.geobox.boundingbox)
    ground = outline if data.area is None else outline & _polygons(folder / data.area, scene)
    labels = _labels(scene, data, job, folder, unit, ground)
    kept = _kept(ground, data, job, unit, folder, scene, number)
    fill = round(255 * job.mean)
    kept = None if kept is None or kept.is_empty else kept
    to_learn = ground - kept if kept is not None else ground
    train = None
    if data.use != "validation" and not to_learn.is_empty:
        train = LabelledRaster(source, labels, to_learn, kept, fill)
    held = None if kept is None else LabelledRaster(source, labels, kept, None, fill)
    return None if train is None and held is None else GroundPlace(scene.id, weight, train, held, unit)


def _kept(
    ground: BaseGeometry, data: Ground, job: TrainJob, unit: float, folder: Path, scene: Scene, number: int
) -> BaseGeometry | None:
    """What of the ground is for validation."""
    if data.use == "validation":
        return ground
    if data.validation_area is not None:
        return ground & _polygons(folder / data.validation_area, scene)
    if job.split is None or data.use == "train":
        return None
    return ground & _blocks(ground, job.split.block / unit, job.split.share, job.split.seed + number)


def _blocks(ground: BaseGeometry, side: float, share: float, seed: int) -> BaseGeometry:
    """Some of the square blocks that cover a piece of ground: at least one, chosen by the seed."""
    west, south, east, north = ground.bounds
    cols, rows = max(1, math.ceil((east - west) / side)), max(1, math.ceil((north - south) / side))
    corners = [(west + c * side, south + r * side) for r in range(rows) for c in range(cols)]
    boxes = np.array([shapely.box(x, y, x + side, y + side) for x, y in corners])
    boxes = boxes[shapely.intersects(boxes, ground)]
    count = max(1, round(share * len(boxes)))
    return shapely.union_all(np.random.default_rng(seed).permutation(boxes)[:count])


def _frame(path: Path, scene: Scene) -> gpd.GeoDataFrame:
    """The polygons of a vector file in the scene's CRS."""
    frame = read_layer(path)
    if frame.crs is None:
        msg = f"{path}: has no CRS, so its place is unknown; assign one first (ogr2ogr -a_srs EPSG:XXXX)"
        raise OptionError(msg)
    frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])].to_crs(crs_of(scene.geobox).wkt)
    return frame.set_geometry(shapely.make_valid(frame.geometry.to_numpy()))


def _polygons(path: Path, scene: Scene) -> BaseGeometry:
    return shapely.union_all(_frame(path, scene).geometry.to_numpy())


def _labels(scene: Scene, data: Ground, job: TrainJob, folder: Path, unit: float, ground: BaseGeometry) -> Labels:
    """Those of a scene; what counts of them is on the ground."""
    path = folder / data.labels
    if path.is_dir():
        return _raster_labels(scene, data, job, path, ground)
    frame = _frame(path, scene)
    frame = frame[shapely.intersects(frame.geometry.to_numpy(), shapely.box(*scene.geobox.boundingbox))]
    known = _class_values(job, data.values)
    if data.class_column is None:
        objects = [value for value, c in enumerate(job.classes) if c.name != job.background]
        if len(objects) != 1:
            msg = f"{path}: with {len(objects)} classes, data needs `class_column`, the column that names each "
            raise OptionError(msg + "polygon's class")
        values = np.full(len(frame), objects[0])
    else:
        if data.class_column not in frame:
            msg = f"{path}: has no column {data.class_column!r}; there are {', '.join(map(str, frame.columns))}"
            raise OptionError(msg)
        values = frame[data.class_column].astype(str).map(known).fillna(IGNORED).to_numpy().astype(np.int64)
    background = _background(job)
    polygons = frame.geometry.explode()
    values = values[np.repeat(np.arange(len(frame)), shapely.get_num_geometries(frame.geometry.to_numpy()))]
    areal = polygons.geom_type.to_numpy() == "Polygon"
    background = IGNORED if background is None else background
    return VectorLabels(polygons.to_numpy()[areal], values[areal], background, len(job.classes), unit, ground)


def _raster_labels(scene: Scene, data: Ground, job: TrainJob, folder: Path, ground: BaseGeometry) -> RasterLabels:
    found = sorted(p for p in folder.glob(f"{scene.id}.*") if p.suffix.lower() not in {".xml", ".json"})
    if not found:
        msg = f"{folder}: has no label raster named like {scene.id}"
        raise OptionError(msg)
    truth = open_scene(found[0])
    if truth.geobox.crs != scene.geobox.crs:
        own, wanted = (crs_of(one.geobox) for one in (truth, scene))
        told = [f"EPSG:{crs.epsg}" if crs.epsg else crs.proj.name for crs in (own, wanted)]
        msg = f"{found[0]}: its CRS is {told[0]}, that of its image {told[1]}; warp it first "
        raise OptionError(msg + f"(gdalwarp -r near -t_srs {told[1]})")
    table = _value_table(job, data.values)
    raster = open_source(truth, (1,)).read(Window.of_shape(truth.shape))
    if raster.values.dtype.kind not in "iu":
        raise SceneError(_not_whole(found[0], raster.values.dtype))
    labels = np.where(raster.valid, classes_of(raster.values[0], table), IGNORED).astype(np.uint8)
    return RasterLabels(labels, truth.geobox.affine, _background(job), len(job.classes), ground)


# --- crops ------------------------------------------------------------------------------------------------------------


class Crops(IterableDataset[tuple[torch.Tensor, Maps]]):
    """An endless stream of augmented crops; the same seed gives the same stream, whatever the number of workers."""

    def __init__(self, job: TrainJob, places: Sequence[Place], start: int = 0) -> None:
        """`start`: the step that a run goes on from: the stream begins where an undisturbed run would be by then."""
        self.job, self.places, self.start = job, [p for p in places if not _only_validates(p)], start
        if not self.places:
            msg = (
                f"{job.name}: all of the data is for validation; nothing is left to train on: keep less of it, such as "
            )
            raise OptionError(msg + "by smaller blocks (split.block)")
        weights = np.array([place.weight for place in self.places])
        self._shares = weights / weights.sum()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Maps]]:
        """Image uint8 (dates x bands, crop, crop) and its maps."""
        info, wish = torch.utils.data.get_worker_info(), self.job.optimiser
        first, workers = (0, 1) if info is None else (info.id, info.num_workers)
        for batch in itertools.count(self.start * wish.accumulate + first, workers):  # a worker makes whole batches
            for number in range(batch * wish.batch, (batch + 1) * wish.batch):
                yield self._crop(number)

    def _crop(self, number: int) -> tuple[torch.Tensor, Maps]:
        """The crop of this number, for which chance begins anew."""
        rng = np.random.default_rng((self.job.seed, number))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        place = self.places[int(rng.choice(len(self.places), p=self._shares))]
        sample, size = self._draw(place, rng), (self.job.crop, self.job.crop)
        return self.job.augmentation.sample(
            sample.image, sample.maps, generator, size=size, background=_background(self.job), dates=self.job.dates
        )

    def _draw(self, place: Place, rng: np.random.Generator) -> Sample:
        low, high = self.job.drawn_at
        pixels = math.ceil(self.job.crop * ROOM)
        for _ in range(TRIES):
            resolution = math.exp(rng.uniform(math.log(low), math.log(high)))
            sample = place.draw(resolution, pixels, rng, rare=rng.random() < self.job.balance)
            if sample.known >= LEAST_KNOWN:
                return sample
        return sample


def _only_validates(place: Place) -> bool:
    if isinstance(place, GroundPlace):
        return place.train is None
    return isinstance(place, ChipPlace) and not place.pairs


def rare_classes(counts: NDArray[np.float64]) -> tuple[int, ...]:
    """Classes that are there, but with less than half of an equal share."""
    there = counts > 0
    return tuple(np.flatnonzero(there & (counts < RARE * counts.sum() / max(1, there.sum()))).tolist())
