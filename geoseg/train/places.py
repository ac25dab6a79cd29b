"""Places that crops are drawn from, at many resolutions: labelled rasters, and folders of small images.

A georeferenced raster with its labels is a torchgeo `GeoDataset`: asked for a rectangle of its CRS at a resolution (the
step of the slices), it gives image and label maps on that very grid. Pixels come through the same reader as in
prediction: bands, stretch and validity cannot differ.
"""

from __future__ import annotations

import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
import torch
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from torch.nn import functional
from torchgeo.datasets import GeoDataset
from torchgeo.samplers import GeoSampler

from geoseg.errors import OptionError
from geoseg.raster import crs_of
from geoseg.train.labels import Grid, classes_of, raster_maps
from geoseg.train.losses import IGNORED
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry
    from torchgeo.datasets.utils import GeoSlice

    from geoseg.io.pixels import SceneSource
    from geoseg.train.labels import Labels

HELD_BYTES = 2 << 30
"""Rasters up to this size, all bands, are held in memory with their coarser levels."""
LEVELS = 4
HALF = 127
"""A resampled pixel with more than this much validity, of 255, has data."""

Maps = dict[str, torch.Tensor]

Chip = tuple[tuple[Path, ...], Path]
"""The image of each date, and the label image."""


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


class LabelledRaster(GeoDataset):
    """One georeferenced raster with its labels, as torchgeo indexes ground: x, y, t slices, the step a resolution."""

    def __init__(
        self, source: SceneSource, labels: Labels, ground: BaseGeometry, hidden: BaseGeometry | None, fill: int
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

    def __init__(self, source: SceneSource) -> None:
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
    pairs: tuple[Chip, ...]
    kept: tuple[Chip, ...]
    """For validation."""
    values: NDArray[np.uint8]
    """(65536,): the class of each value of the label images, 255 = ignored."""
    bands: int
    """Of each date."""
    background: int | None
    classes: int
    fill: int
    rare: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """Bands of a sample: those of all dates."""
        return self.bands * max((len(images) for images, _ in (*self.pairs, *self.kept)), default=1)

    def draw(self, resolution: float, pixels: int, rng: np.random.Generator, *, rare: bool) -> Sample:
        """Chips side by side until the square is full, each at another place and cut at another one."""
        image = torch.full((self.channels, pixels, pixels), self.fill, dtype=torch.uint8)
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
                image = torch.full((self.channels, pixels, pixels), self.fill, dtype=torch.uint8)
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

    def _pick(self, rng: np.random.Generator, *, rare: bool) -> Chip:
        if rare and self.rare:
            having = np.flatnonzero([h[int(rng.choice(self.rare))] > 0 for h in self._histograms])
            if having.size:
                return self.pairs[int(rng.choice(having))]
        return self.pairs[int(rng.integers(len(self.pairs)))]

    @cached_property
    def _histograms(self) -> list[NDArray[np.float64]]:
        """Pixels of each class in each chip."""
        labels = (classes_of(read_chip(label)[0], self.values) for _, label in self.pairs)
        counts = [np.bincount(classes.ravel(), minlength=256) for classes in labels]
        return [c[: self.classes].astype(np.float64) for c in counts]

    def _scaled(self, chip: Chip, resolution: float) -> Sample:
        """A chip at another resolution than its own."""
        dates = [read_chip(path)[: self.bands] for path in chip[0]]
        labels = classes_of(read_chip(chip[1])[0], self.values)
        image = torch.from_numpy(np.concatenate(dates))
        scale = self.resolution / resolution
        shape = max(1, round(labels.shape[0] * scale)), max(1, round(labels.shape[1] * scale))
        centres = [((np.arange(n) + 0.5) * side / n).astype(int) for n, side in zip(shape, labels.shape, strict=True)]
        maps = raster_maps(labels[np.ix_(*centres)], self.background)
        return Sample(_resize(image, shape), {name: torch.from_numpy(values) for name, values in maps.items()})


def read_chip(path: Path) -> NDArray[Any]:
    """An image (bands, y, x), wherever it may be on the ground."""
    with chip_opened(path) as dataset:
        values: NDArray[Any] = dataset.read()
        return values


@contextmanager
def chip_opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """An image that may have no place on the ground."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            yield dataset
