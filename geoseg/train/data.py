"""Labelled ground as a network learns from it: crops of one size, at many resolutions, from places of any kind.

A georeferenced raster with its labels is a torchgeo `GeoDataset`: asked for a rectangle of its CRS at a resolution (the
step of the slices), it gives image and label maps on that very grid. Vector labels are rasterised on the grid that is
asked for, so a wall between two houses is as thin as the crop allows, whatever the raster's own pixels are. Pixels come
through the same reader as in prediction: bands, stretch and validity cannot differ.

Maps of a sample: `labels` uint8 (y, x), 255 = ignored; `gap` float32 (y, x), 1 where two objects nearly touch; and
`interior` float32 (y, x) where the job asks for it: the distance to the object's outline over the radius of the largest
circle inside it, 0 at walls and outside, 1 in the middle.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from rasterio.features import rasterize
from rasterio.transform import from_origin
from scipy import ndimage
from torch.nn import functional
from torch.utils.data import IterableDataset
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GeoSampler

from geoseg.errors import OptionError, SceneError
from geoseg.io.scenes import GdalSource, estimate_stretch, open_scene
from geoseg.raster import crs_of
from geoseg.train.job import Chips, Ground
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from torchgeo.datasets.utils import GeoSlice

    from geoseg.catalog import Scene
    from geoseg.train.job import TrainJob

IGNORED = 255
GAP = 1.2
"""Metres between two objects below which what lies between them is a gap."""
ROOM = 1.42
"""A crop is drawn so much larger than it is needed, so that it can be turned by any angle."""
HELD_BYTES = 2 << 30
"""Rasters up to this size, all bands, are held in memory with their coarser levels."""
LEVELS = 4
HALF = 127
"""A resampled pixel with more than this much validity, of 255, has data."""
LEAST_KNOWN = 0.3
"""Share of a crop's pixels that must have a label."""
TRIES = 50
RARE = 0.5
"""A class is rare if it has fewer than this share of an equal part of the labels."""

Maps = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """A square of ground with what is known of it."""

    image: torch.Tensor
    """uint8 (bands, y, x)."""
    maps: Maps

    @property
    def known(self) -> float:
        """Share of the pixels that have a label."""
        return float((self.maps["labels"] != IGNORED).float().mean())


class Place(Protocol):
    """Ground that crops are drawn from."""

    name: str
    weight: float
    rare: tuple[int, ...]
    """Classes that are rare over all places."""

    def draw(self, resolution: float, pixels: int, rng: np.random.Generator, *, rare: bool) -> Sample:
        """A square of `pixels` by `pixels` at a resolution in metres, somewhere; `rare`: centred on a rare class."""
        ...

    def validation(self, resolutions: Sequence[float], pixels: int) -> Iterator[Sample]:
        """Squares that cover the validation part, once for each resolution (empty: its own), always the same."""
        ...

    def class_pixels(self) -> NDArray[np.float64]:
        """(classes,): how much of each class there is to learn from, in square metres."""
        ...


# --- labels on a grid -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """North-up pixels that a sample is made on."""

    transform: rasterio.Affine
    shape: tuple[int, int]

    def burn(self, shapes: Sequence[Any], values: Sequence[int] | NDArray[Any] | int = 1) -> NDArray[np.int32]:
        """The value of the last polygon that holds each pixel's centre, 0 where none does."""
        if not len(shapes):
            return np.zeros(self.shape, np.int32)
        pairs = [(g, values) for g in shapes] if isinstance(values, int) else list(zip(shapes, values, strict=True))
        burnt: NDArray[np.int32] = rasterize(pairs, self.shape, transform=self.transform, dtype="int32")
        return burnt


class Labels(Protocol):
    """What is known of the classes on the ground of one raster."""

    counts: NDArray[np.float64]
    """(classes,): area of each, in units of the CRS squared."""

    def maps(self, grid: Grid, bounds: tuple[float, float, float, float]) -> dict[str, NDArray[Any]]:
        """`labels` uint8, `gap` and `interior` float32 on a grid."""
        ...

    def somewhere(self, value: int, rng: np.random.Generator) -> tuple[float, float] | None:
        """A point of this class, in the CRS of the raster, or None."""
        ...


class VectorLabels:
    """Polygons in the raster's CRS, each with the value of its class."""

    def __init__(
        self, polygons: NDArray[np.object_], values: NDArray[np.int64], background: int, classes: int, unit: float
    ) -> None:
        """`unit`: metres on the ground for one unit of the CRS."""
        self.polygons, self.values, self.background = polygons, values, background
        # what rasterio turns a polygon into each time that it is burnt
        self._shapes = np.array([shapely.geometry.mapping(p) for p in polygons], object)
        self.tree = shapely.STRtree(polygons)
        areas = shapely.area(polygons)
        self.counts = np.bincount(values, areas, classes).astype(np.float64)
        self.radius = shapely.length(shapely.maximum_inscribed_circle(polygons)) if len(polygons) else np.empty(0)
        self.gaps = _gaps(polygons, self.tree, GAP / unit)
        self.gap_tree = shapely.STRtree(self.gaps)
        self._gap_shapes = np.array([shapely.geometry.mapping(g) for g in self.gaps], object)

    def maps(self, grid: Grid, bounds: tuple[float, float, float, float]) -> dict[str, NDArray[Any]]:
        """`labels`, `gap` and `interior`; where two objects touch, one row of pixels is background."""
        box = shapely.box(*bounds)
        near = np.sort(self.tree.query(box))
        objects = grid.burn(self._shapes[near], near + 1)
        alone = objects * ~_walls(objects)
        labels = np.concatenate([[self.background], self.values])[alone].astype(np.uint8)
        gap = (grid.burn(self._gap_shapes[self.gap_tree.query(box)]) > 0) & (alone == 0)
        radius = np.concatenate([[np.inf], self.radius / grid.transform.a])[alone]
        return {"labels": labels, "gap": gap.astype(np.float32), "interior": _interior(objects, alone, radius)}

    def somewhere(self, value: int, rng: np.random.Generator) -> tuple[float, float] | None:
        """A point in a polygon of this class."""
        mine = np.flatnonzero(self.values == value)
        if not mine.size:
            return None
        point = self.polygons[rng.choice(mine)].representative_point()
        return point.x, point.y


class RasterLabels:
    """A label raster in memory, on the grid of its image or another of the same CRS."""

    def __init__(
        self, labels: NDArray[np.uint8], transform: rasterio.Affine, background: int | None, classes: int
    ) -> None:
        self.labels, self.transform, self.background = labels, transform, background
        pixels = np.bincount(labels.ravel(), minlength=256)[:classes]
        self.counts = pixels * abs(transform.a * transform.e)

    def maps(self, grid: Grid, bounds: tuple[float, float, float, float]) -> dict[str, NDArray[Any]]:  # noqa: ARG002
        """The label under each pixel's centre; objects are connected pixels of one class."""
        to_own = ~self.transform @ grid.transform
        rows = np.floor(to_own.e * (np.arange(grid.shape[0]) + 0.5) + to_own.f).astype(int)
        cols = np.floor(to_own.a * (np.arange(grid.shape[1]) + 0.5) + to_own.c).astype(int)
        within = [(index >= 0) & (index < side) for index, side in zip((rows, cols), self.labels.shape, strict=True)]
        labels = np.full(grid.shape, IGNORED, np.uint8)
        labels[np.ix_(*within)] = self.labels[np.ix_(rows[within[0]], cols[within[1]])]
        return raster_maps(labels, self.background)

    def somewhere(self, value: int, rng: np.random.Generator) -> tuple[float, float] | None:
        """A pixel of this class."""
        if value not in self._places:
            return None
        row, col = self._places[value][rng.integers(len(self._places[value]))]
        x, y = self.transform @ (col + 0.5, row + 0.5)
        return float(x), float(y)

    @cached_property
    def _places(self) -> dict[int, NDArray[np.int64]]:
        """Some pixels of each class."""
        rng = np.random.default_rng(0)
        found = {int(v): np.argwhere(self.labels == v) for v in np.unique(self.labels) if v != IGNORED}
        return {v: rng.permutation(places)[:10_000] for v, places in found.items()}


def raster_maps(labels: NDArray[np.uint8], background: int | None) -> dict[str, NDArray[Any]]:
    """`labels`, `gap` and `interior` of a label raster (y, x), whose objects are 4-connected pixels of one class."""
    objects = np.zeros(labels.shape, np.int32)
    for value in np.unique(labels):
        if value not in (background, IGNORED):
            found, _ = ndimage.label(labels == value)
            objects[found > 0] = found[found > 0] + objects.max()
    inner = ndimage.distance_transform_edt(np.pad(objects > 0, 1))[1:-1, 1:-1]
    largest = ndimage.maximum(inner, objects, np.arange(int(objects.max()) + 1))
    radius = np.where(objects > 0, np.asarray(largest)[objects], np.inf)
    gap = np.zeros(labels.shape, np.float32)
    return {"labels": labels, "gap": gap, "interior": _interior(objects, objects, radius)}


def _gaps(polygons: NDArray[np.object_], tree: shapely.STRtree, reach: float) -> NDArray[np.object_]:
    """The middle of what lies between each two polygons less than `reach` apart: wider, the closer they are."""
    if not len(polygons):
        return np.empty(0, object)
    first, second = tree.query(polygons, predicate="dwithin", distance=reach)
    first, second = first[first < second], second[first < second]
    wide = shapely.buffer(polygons, 0.6 * reach, quad_segs=2)
    gaps: NDArray[np.object_] = shapely.intersection(wide[first], wide[second])
    there: NDArray[np.bool_] = ~shapely.is_empty(gaps)
    return gaps[there]


def _walls(objects: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour belongs to another object: one row of pixels along every shared side."""
    walls = np.zeros(objects.shape, bool)
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        walls[here] |= (objects[here] != objects[there]) & (objects[here] > 0) & (objects[there] > 0)
    return walls


def _interior(objects: NDArray[np.int32], alone: NDArray[np.int32], radius: NDArray[np.float64]) -> NDArray[np.float32]:
    """How far inside its object each pixel lies, as a share of the object's `radius` (y, x) in pixels."""
    if not objects.any():
        return np.zeros(objects.shape, np.float32)
    # an object that the frame cuts goes on beyond it, so the frame is no outline
    inner: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(alone > 0, 1, mode="edge"))[1:-1, 1:-1]
    return np.minimum(inner / radius, 1).astype(np.float32)


# --- georeferenced places ---------------------------------------------------------------------------------------------


class LabelledRaster(GeoDataset):
    """One georeferenced raster with its labels, as torchgeo indexes ground: x, y, t slices, the step a resolution."""

    def __init__(
        self, source: GdalSource, labels: Labels, ground: BaseGeometry, hidden: BaseGeometry | None, fill: int
    ) -> None:
        """`ground`: where labels count, in the raster's CRS; `hidden`: what must not even be seen.

        `fill`: the value of pixels without data, as in prediction.
        """
        scene = source.scene
        when = pd.Timestamp(scene.datetime).tz_localize(None) if scene.datetime else pd.Timestamp(0)
        interval = pd.IntervalIndex.from_tuples([(when, when)], closed="both", name="datetime")
        self.paths = scene.path
        self.index = gpd.GeoDataFrame(
            {"filepath": [scene.path]}, index=interval, geometry=[ground], crs=crs_of(scene.geobox).wkt
        )
        self._res = (abs(scene.geobox.affine.a), abs(scene.geobox.affine.e))
        self.labels, self.ground, self.hidden, self.fill = labels, ground, hidden, fill
        self._pixels = _Pixels(source)

    def __getitem__(self, query: GeoSlice) -> dict[str, Any]:
        """`image` uint8 (bands, y, x) and the label maps of a rectangle, on the grid that the slices' steps tell."""
        x, y, _ = self._disambiguate_slice(query)
        shape = max(1, round((y.stop - y.start) / y.step)), max(1, round((x.stop - x.start) / x.step))
        grid = Grid(from_origin(x.start, y.stop, x.step, y.step), shape)
        bounds = (x.start, y.start, x.stop, y.stop)
        image, valid = self._pixels.read(bounds, shape)
        maps = self.labels.maps(grid, bounds)
        if self.hidden is not None:
            valid &= grid.burn([self.hidden]) == 0
        image[:, torch.from_numpy(~valid)] = self.fill
        maps["labels"][~valid | (grid.burn([self.ground]) == 0)] = IGNORED
        return {"image": image, **{name: torch.from_numpy(values) for name, values in maps.items()}}


class _Pixels:
    """A raster's pixels at any resolution, from coarser copies of itself where it fits into memory."""

    def __init__(self, source: GdalSource) -> None:
        self._source = source
        rows, cols = source.shape
        self._held = rows * cols * len(source.bands) <= HELD_BYTES

    def read(
        self, bounds: tuple[float, float, float, float], shape: tuple[int, int]
    ) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """Image uint8 (bands, y, x) and validity of a rectangle of the CRS, brought to a shape."""
        to_pixels = ~self._source.scene.geobox.affine
        left, top = to_pixels @ (bounds[0], bounds[3])
        right, bottom = to_pixels @ (bounds[2], bounds[1])
        shrink = (bottom - top) / shape[0]
        level = min(LEVELS - 1, max(0, int(math.log2(max(shrink, 1))))) if self._held else 0
        rows, cols = (
            (math.floor(low / 2**level), max(math.floor(low / 2**level) + 1, math.ceil(high / 2**level)))
            for low, high in ((top, bottom), (left, right))
        )
        both = self._window(level, Window(*rows, *cols))
        both = _resize(both, shape)
        return both[:-1], (both[-1] > HALF).numpy()

    def _window(self, level: int, window: Window) -> torch.Tensor:
        """Bands and validity (0 or 255) of a window of a level, uint8; what lies outside is not valid."""
        if not self._held:
            raster = self._source.read(window)
            return torch.from_numpy(np.concatenate([raster.values, raster.valid[None] * np.uint8(255)]))
        whole = self._levels[level]
        values = torch.zeros((len(whole), *window.shape), dtype=torch.uint8)
        within = Window.of_shape((whole.shape[1], whole.shape[2])).intersection(window)
        if within is not None:
            values[:, *within.relative_to(window).slices] = whole[:, *within.slices]
        return values

    @cached_property
    def _levels(self) -> list[torch.Tensor]:
        raster = self._source.read(Window.of_shape(self._source.shape))
        levels = [torch.from_numpy(np.concatenate([raster.values, raster.valid[None] * np.uint8(255)]))]
        while len(levels) < LEVELS and min(levels[-1].shape[1:]) > 1:
            levels.append(functional.avg_pool2d(levels[-1][None].float(), 2)[0].round().to(torch.uint8))
        return levels


def _resize(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Bilinear, every pixel counting where it shrinks: as patches are resampled in prediction."""
    if tuple(values.shape[1:]) == shape:
        return values
    return functional.interpolate(values[None], size=shape, mode="bilinear", antialias=True)[0]


class GroundSampler(GeoSampler):
    """Endless random squares of `pixels` by `pixels`, centred on labelled ground, each at a resolution of its own."""

    def __init__(self, dataset: LabelledRaster, pixels: int, unit: float, rng: np.random.Generator) -> None:
        super().__init__(dataset)
        self._ground, self._pixels, self._unit, self._rng = dataset.ground, pixels, unit, rng

    def square(self, resolution: float, centre: tuple[float, float] | None = None) -> tuple[slice, slice, slice]:
        """One square at a resolution in metres, about a point or anywhere."""
        x, y = centre or self._anywhere()
        step = resolution / self._unit
        half = self._pixels * step / 2
        return slice(x - half, x + half, step), slice(y - half, y + half, step), slice(self.toi.left, self.toi.right)

    def __iter__(self) -> Iterator[GeoSlice]:
        """Squares at the raster's own resolution."""
        while True:
            yield self.square(self.res[0] * self._unit)

    def __len__(self) -> int:
        """As many as would cover the ground."""
        squares: float = self._ground.area / (self._pixels * self.res[0]) ** 2
        return max(1, round(squares))

    def _anywhere(self) -> tuple[float, float]:
        west, south, east, north = self._ground.bounds
        for _ in range(1000):
            x, y = self._rng.uniform(west, east), self._rng.uniform(south, north)
            if shapely.contains_xy(self._ground, x, y):
                return x, y
        point = self._ground.representative_point()  # ground that is a thin sliver of its bounds
        return point.x, point.y


@dataclass
class GroundPlace:
    """A labelled raster: what is trained on of it, and what is kept for validation."""

    name: str
    weight: float
    train: LabelledRaster | None
    validate: LabelledRaster | None
    unit: float
    """Metres on the ground for one unit of the raster's CRS."""
    rare: tuple[int, ...] = ()
    resolution: float = field(init=False)

    def __post_init__(self) -> None:
        """Its own resolution in metres."""
        one = self.train or self.validate
        self.resolution = one.res[0] * self.unit if one else 0.0

    def draw(self, resolution: float, pixels: int, rng: np.random.Generator, *, rare: bool) -> Sample:
        """A random square of the training part."""
        if self.train is None:
            msg = f"{self.name}: nothing of it is for training"
            raise OptionError(msg)
        sampler = GroundSampler(self.train, pixels, self.unit, rng)
        centre = self.train.labels.somewhere(int(rng.choice(self.rare)), rng) if rare and self.rare else None
        return _sample(self.train[sampler.square(resolution, centre)])

    def validation(self, resolutions: Sequence[float], pixels: int) -> Iterator[Sample]:
        """Squares side by side over the validation part."""
        if self.validate is None:
            return
        for resolution in resolutions or (self.resolution,):
            for square in self._squares(self.validate, resolution, pixels):
                sample = _sample(self.validate[square])
                if sample.known > 0:
                    yield sample

    def _squares(self, raster: LabelledRaster, resolution: float, pixels: int) -> Iterator[GeoSlice]:
        """Side by side from the ground's south-western corner on, in whole pixels, until all of it is covered.

        torchgeo's own grid sampler leaves out ground that is narrower than a square.
        """
        sampler = GroundSampler(raster, pixels, self.unit, np.random.default_rng(0))
        west, south, east, north = raster.ground.bounds
        side = pixels * resolution / self.unit
        for y in np.arange(south, north - side * 1e-6, side):
            for x in np.arange(west, east - side * 1e-6, side):
                yield sampler.square(resolution, (x + side / 2, y + side / 2))

    def class_pixels(self) -> NDArray[np.float64]:
        """Areas of the classes, in square metres."""
        one = self.train or self.validate
        return np.zeros(0) if one is None else one.labels.counts * self.unit**2


def _sample(item: dict[str, Any]) -> Sample:
    return Sample(item.pop("image"), item)


# --- chips ------------------------------------------------------------------------------------------------------------


@dataclass
class ChipPlace:
    """A folder of small images of one resolution, without a place on the ground."""

    name: str
    weight: float
    resolution: float
    pairs: tuple[tuple[Path, Path], ...]
    kept: tuple[tuple[Path, Path], ...]
    """For validation."""
    values: NDArray[np.uint8]
    """(256,): the class of each value of the label images, 255 = ignored."""
    bands: int
    background: int | None
    classes: int
    fill: int
    rare: tuple[int, ...] = ()

    def draw(self, resolution: float, pixels: int, rng: np.random.Generator, *, rare: bool) -> Sample:
        """Chips side by side until the square is full, each at another place and cut at another one."""
        image = torch.full((self.bands, pixels, pixels), self.fill, dtype=torch.uint8)
        maps = {name: torch.zeros(pixels, pixels) for name in ("gap", "interior")}
        maps["labels"] = torch.full((pixels, pixels), IGNORED, dtype=torch.uint8)
        row = 0
        while row < pixels:
            col, height = 0, pixels
            while col < pixels:
                chip = self._scaled(self._pick(rng, rare=rare), resolution)
                rows, cols = min(chip.image.shape[1], pixels - row), min(chip.image.shape[2], pixels - col)
                top = int(rng.integers(0, chip.image.shape[1] - rows + 1))
                left = int(rng.integers(0, chip.image.shape[2] - cols + 1))
                here, there = np.s_[row : row + rows, col : col + cols], np.s_[top : top + rows, left : left + cols]
                image[:, *here] = chip.image[:, *there]
                for name, values in maps.items():
                    values[here] = chip.maps[name][there]
                col, height, rare = col + cols, min(height, rows), False
            row += height
        return Sample(image, maps)

    def validation(self, resolutions: Sequence[float], pixels: int) -> Iterator[Sample]:
        """Each kept chip, in a square of its own."""
        for resolution in resolutions or (self.resolution,):
            for pair in self.kept:
                chip = self._scaled(pair, resolution)
                rows, cols = (min(side, pixels) for side in chip.image.shape[1:])
                image = torch.full((self.bands, pixels, pixels), self.fill, dtype=torch.uint8)
                image[:, :rows, :cols] = chip.image[:, :rows, :cols]
                maps = {name: torch.zeros((pixels, pixels), dtype=v.dtype) for name, v in chip.maps.items()}
                maps["labels"][:] = IGNORED
                for name, values in chip.maps.items():
                    maps[name][:rows, :cols] = values[:rows, :cols]
                yield Sample(image, maps)

    def class_pixels(self) -> NDArray[np.float64]:
        """Areas of the classes, in square metres."""
        counts = sum((h for h in self._histograms), np.zeros(self.classes))
        return np.asarray(counts) * self.resolution**2

    def _pick(self, rng: np.random.Generator, *, rare: bool) -> tuple[Path, Path]:
        if rare and self.rare:
            having = np.flatnonzero([h[int(rng.choice(self.rare))] > 0 for h in self._histograms])
            if having.size:
                return self.pairs[int(rng.choice(having))]
        return self.pairs[int(rng.integers(len(self.pairs)))]

    @cached_property
    def _histograms(self) -> list[NDArray[np.float64]]:
        """Pixels of each class in each chip."""
        counts = [np.bincount(self.values[_read(label)[0]].ravel(), minlength=256) for _, label in self.pairs]
        return [c[: self.classes].astype(np.float64) for c in counts]

    def _scaled(self, pair: tuple[Path, Path], resolution: float) -> Sample:
        """A chip at another resolution than its own."""
        image, labels = torch.from_numpy(_read(pair[0])[: self.bands].copy()), self.values[_read(pair[1])[0]]
        scale = self.resolution / resolution
        shape = max(1, round(labels.shape[0] * scale)), max(1, round(labels.shape[1] * scale))
        centres = [((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(shape, labels.shape, strict=True)]
        maps = raster_maps(labels[np.ix_(*centres)], self.background)
        return Sample(_resize(image, shape), {name: torch.from_numpy(values) for name, values in maps.items()})


def _read(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as dataset:
        values: NDArray[np.uint8] = dataset.read()
        return values


# --- from a job to places ---------------------------------------------------------------------------------------------


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
        msg = f"{job.name}: no label of the data is of class {', '.join(missing)}; check `values` and `class_column`"
        raise OptionError(msg)
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


def _chips(data: Chips, job: TrainJob, folder: Path) -> ChipPlace:
    images = {p.stem: p for p in sorted((folder / data.images).glob("*")) if p.suffix.lower() != ".xml"}
    labels = {p.stem: p for p in sorted((folder / data.labels).glob("*")) if p.suffix.lower() != ".xml"}
    both = sorted(images.keys() & labels.keys())
    if not both:
        msg = f"{folder / data.images}: no image has a label image of its name in {folder / data.labels}"
        raise OptionError(msg)
    kept = {name for pattern in data.validation for name in _matching(both, pattern)}
    table = np.full(256, IGNORED, np.uint8)
    if data.values is None:
        table[: len(job.classes)] = np.arange(len(job.classes))
    for called, value in (_class_values(job, data.values) if data.values else {}).items():
        table[int(called)] = value
    pairs = [(images[name], labels[name]) for name in both]
    return ChipPlace(
        name=data.images,
        weight=data.weight,
        resolution=data.resolution,
        pairs=tuple(pair for name, pair in zip(both, pairs, strict=True) if name not in kept),
        kept=tuple(pair for name, pair in zip(both, pairs, strict=True) if name in kept),
        values=table,
        bands=len(job.bands),
        background=_background(job),
        classes=len(job.classes),
        fill=round(255 * job.mean),
    )


def _matching(names: list[str], pattern: str) -> list[str]:
    """Names that a glob matches, or that lie from one name to another in their order."""
    first, between, last = pattern.partition("..")
    return [n for n in names if (first <= n <= last if between else fnmatch.fnmatch(n, pattern))]


def _background(job: TrainJob) -> int | None:
    return next((value for value, c in enumerate(job.classes) if c.name == job.background), None)


def _ground(data: Ground, job: TrainJob, folder: Path, number: int) -> list[GroundPlace]:
    scenes = [open_scene(path) for pattern in data.rasters for path in _paths(folder, pattern)]
    total = sum(s.shape[0] * s.shape[1] for s in scenes)
    places = []
    for scene in scenes:
        share = data.weight * scene.shape[0] * scene.shape[1] / total
        place = _ground_place(scene, data, job, folder, share, number)
        if place is not None:
            places.append(place)
    if not places:
        msg = f"{data.labels}: none of the rasters of data.{number} meets its labels and area"
        raise OptionError(msg)
    return places


def _ground_place(
    scene: Scene, data: Ground, job: TrainJob, folder: Path, weight: float, number: int
) -> GroundPlace | None:
    affine = scene.geobox.affine
    if affine.b or affine.d or affine.e >= 0 or affine.a <= 0:
        msg = f"{scene.path}: is turned or upside down; for training, warp it first (gdalwarp)"
        raise SceneError(msg)
    bands = scene.bands_for(job.bands)
    source = GdalSource(scene, bands, estimate_stretch(scene, bands))
    unit = (scene.ground_resolution[0] / -affine.e + scene.ground_resolution[1] / affine.a) / 2
    outline = shapely.box(*scene.geobox.boundingbox)
    ground = outline if data.area is None else outline & _polygons(folder / data.area, scene)
    labels = _labels(scene, data, job, folder, unit)
    kept = _kept(ground, data, job, unit, folder, scene, number)
    fill = round(255 * job.mean)
    to_learn = ground - kept if kept is not None else ground
    train = None
    if data.use != "validation" and not to_learn.is_empty:
        train = LabelledRaster(source, labels, to_learn, kept, fill)
    held = None if kept is None or kept.is_empty else LabelledRaster(source, labels, kept, None, fill)
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
    try:
        frame = gpd.read_parquet(path) if path.suffix == ".parquet" else gpd.read_file(path)
    except Exception as error:  # pyogrio and pyarrow raise various errors of their own
        msg = f"{path}: cannot be read as a vector file: {error}"
        raise OptionError(msg) from error
    if frame.crs is None:
        msg = f"{path}: has no CRS, so its place is unknown; assign one first (ogr2ogr -a_srs EPSG:XXXX)"
        raise OptionError(msg)
    frame = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"])].to_crs(crs_of(scene.geobox).wkt)
    return frame.set_geometry(shapely.make_valid(frame.geometry.to_numpy()))


def _polygons(path: Path, scene: Scene) -> BaseGeometry:
    return shapely.union_all(_frame(path, scene).geometry.to_numpy())


def _labels(scene: Scene, data: Ground, job: TrainJob, folder: Path, unit: float) -> Labels:
    path = folder / data.labels
    if path.is_dir():
        return _raster_labels(scene, data, job, path)
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
        frame, values = frame[values != IGNORED], values[values != IGNORED]
    background = _background(job)
    polygons = frame.geometry.explode()
    values = values[np.repeat(np.arange(len(frame)), shapely.get_num_geometries(frame.geometry.to_numpy()))]
    areal = polygons.geom_type.to_numpy() == "Polygon"
    return VectorLabels(
        polygons.to_numpy()[areal], values[areal], IGNORED if background is None else background, len(job.classes), unit
    )


def _raster_labels(scene: Scene, data: Ground, job: TrainJob, folder: Path) -> RasterLabels:
    found = sorted(p for p in folder.glob(f"{scene.id}.*") if p.suffix.lower() not in {".xml", ".json"})
    if not found:
        msg = f"{folder}: has no label raster named like {scene.id}"
        raise OptionError(msg)
    truth = open_scene(found[0])
    if truth.geobox.crs != scene.geobox.crs:
        msg = f"{found[0]}: its CRS is {truth.geobox.crs}, that of its image {scene.geobox.crs}; warp it first"
        raise OptionError(msg)
    table = np.full(256, IGNORED, np.uint8)
    if data.values is None:
        table[: len(job.classes)] = np.arange(len(job.classes))
    else:
        for called, value in _class_values(job, data.values).items():
            table[int(called)] = value
    raster = GdalSource(truth, (1,)).read(Window.of_shape(truth.shape))
    labels = np.where(raster.valid, table[raster.values[0]], IGNORED).astype(np.uint8)
    return RasterLabels(labels, truth.geobox.affine, _background(job), len(job.classes))


# --- crops ------------------------------------------------------------------------------------------------------------


class Crops(IterableDataset[tuple[torch.Tensor, Maps]]):
    """An endless stream of augmented crops; the same seed gives the same stream, whatever the number of workers."""

    def __init__(self, job: TrainJob, places: Sequence[Place], start: int = 0) -> None:
        """`start`: the step that a run goes on from: the stream begins where an undisturbed run would be by then."""
        self.job, self.places, self.start = job, [p for p in places if not _only_validates(p)], start
        if not self.places:
            msg = f"{job.name}: all of the data is for validation; nothing is left to train on"
            raise OptionError(msg)
        weights = np.array([place.weight for place in self.places])
        self._shares = weights / weights.sum()

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Maps]]:
        """Image uint8 (bands, crop, crop) and its maps."""
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
            sample.image, sample.maps, generator, size=size, background=_background(self.job)
        )

    def _draw(self, place: Place, rng: np.random.Generator) -> Sample:
        low, high = self.job.scales or (self.job.resolution[0] * 0.7, self.job.resolution[1] * 1.1)
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
