"""Labels as maps on a grid: vector labels and label rasters.

Vector labels are rasterised on the grid that is asked for, so a wall between two houses is as thin as the crop allows,
whatever the raster's own pixels are.

The maps: `labels` uint8 (y, x), 255 = ignored; `gap` float32 (y, x), 1 where two objects nearly touch; and `interior`
float32 (y, x): the distance to the object's outline over the radius of the largest circle inside it, 0 at walls and
outside, 1 in the middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import shapely
from rasterio.features import rasterize
from scipy import ndimage

from geoseg.train.losses import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import rasterio
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry


GAP = 1.2
"""Metres between two objects below which what lies between them is a gap."""


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
    """Polygons in the raster's CRS, each with the value of its class, 255 = ignored."""

    def __init__(
        self,
        polygons: NDArray[np.object_],
        values: NDArray[np.int64],
        background: int,
        classes: int,
        unit: float,
        ground: BaseGeometry | None = None,
    ) -> None:
        """`unit`: metres on the ground for one unit of the CRS; `ground`: where labels count, None: everywhere."""
        self.polygons, self.values, self.background = polygons, values, background
        # what rasterio turns a polygon into each time that it is burnt
        self._shapes = np.array([shapely.geometry.mapping(p) for p in polygons], object)
        self.tree = shapely.STRtree(polygons)
        areas = shapely.area(polygons if ground is None else shapely.intersection(polygons, ground))
        self.counts = np.bincount(values, areas, classes)[:classes].astype(np.float64)
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
        self,
        labels: NDArray[np.uint8],
        transform: rasterio.Affine,
        background: int | None,
        classes: int,
        ground: BaseGeometry | None = None,
    ) -> None:
        """`ground`: where labels count, None: everywhere."""
        self.labels, self.transform, self.background = labels, transform, background
        counted = labels if ground is None else labels[Grid(transform, labels.shape).burn([ground]) > 0]
        pixels = np.bincount(counted.ravel(), minlength=256)[:classes]
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


def classes_of(values: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The class of each value of a label raster (y, x) of whole numbers, by a table; 255 for those beyond it."""
    known = (values >= 0) & (values < len(table))
    return np.where(known, table[np.where(known, values, 0)], np.uint8(IGNORED))


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
