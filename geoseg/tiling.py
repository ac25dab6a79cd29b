"""The two lattices of a scene: patches that the network sees, tiles that a task writes.

Both are anchored at the scene's origin. A network need not score every pixel: a patch has so many *cells* along each
axis, and a cell may be any part of a pixel count (37/8 pixels, say). Patches start at multiples of a *unit*, the
smallest number of pixels that is whole in cells, so the cells of all patches are one lattice, too. A pixel's score lies
between those of the cells around its centre (bilinear, pixel areas on cell areas; at the rim, the last cell's).

A tile predicts every patch that its core's scores come from, so a pixel gets the same patches, in the same order,
whatever the tiling: `tiled == whole` needs no halo and no seam code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_Pixels = TypeVar("_Pixels", int, "NDArray[np.int64]")

CHUNK = 1024
"""Rows and columns of a storage chunk: what a tile's core is aligned to."""


def patch_starts(size: int, patch: int, stride: int, unit: int = 1) -> list[int]:
    """Where patches of `patch` pixels start along an axis of `size` pixels, `stride` being a multiple of `unit`.

    The last one is pulled back to the edge, or to the first multiple of the unit from which it reaches the edge.

    >>> patch_starts(10, 4, 3)
    [0, 3, 6]
    >>> patch_starts(11, 4, 3)
    [0, 3, 6, 7]
    >>> patch_starts(11, 4, 4, unit=2)
    [0, 4, 8]
    >>> patch_starts(3, 4, 3)
    [0]
    """
    if size <= patch:
        return [0]
    last = -(-(size - patch) // unit) * unit
    return [*range(0, last, stride), last]


def taper(cells: int) -> NDArray[np.float64]:
    """Blending weight of each cell along one side of a patch: a Hann window sampled at the cells' centres.

    Strictly positive, so a cell at the scene's rim, which one patch alone sees, still has a weight.
    """
    return np.sin(np.pi * (np.arange(cells) + 0.5) / cells) ** 2


@dataclass(frozen=True)
class Axis:
    """Patches and cells along one axis of a scene, counted from its origin: patches in pixels, cells in cells."""

    size: int
    patch: int
    stride: int
    cells: int
    """How many there are along a patch."""

    @property
    def unit(self) -> int:
        """The smallest number of pixels that is whole in cells."""
        return self.patch // math.gcd(self.patch, self.cells)

    @cached_property
    def starts(self) -> list[int]:
        """Where patches start."""
        return patch_starts(self.size, self.patch, self.stride, self.unit)

    def cells_of(self, pixels: _Pixels) -> _Pixels:
        """How many cells there are in so many pixels, a multiple of the unit."""
        return pixels * self.cells // self.patch

    @cached_property
    def total_cells(self) -> int:
        """How many cells there are in all; the last ones may lie beyond the scene."""
        return self.cells_of(self.starts[-1] + self.patch)

    def around(self, pixels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Between which two cells the centre of each pixel lies: (pixel,) each.

        The first cell, the second, and how far from the one to the other (0 to 1). Counted in whole numbers, so that a
        pixel has the same share, to the last bit, wherever it is counted from. Where the first cell alone counts, the
        second is the same.
        """
        per_unit = self.unit * self.cells // self.patch
        # a pixel's centre from the first cell's, in parts of a cell of which there are 2 * unit
        parts = (2 * pixels + 1) * per_unit - self.unit
        first, rest = np.divmod(parts, 2 * self.unit)
        last = self.total_cells - 1
        second = np.clip(first + (rest > 0), 0, last)
        return np.clip(first, 0, last), second, (rest / (2 * self.unit)).astype(np.float32)

    def settled(self, cells: int) -> int:
        """How many pixels depend on none but the first `cells` cells."""
        if cells >= self.total_cells:
            return self.size
        per_unit = self.unit * self.cells // self.patch
        return min(self.size, ((2 * cells - 1) * self.unit + per_unit) // (2 * per_unit))

    def touching(self, low: int, high: int) -> tuple[int, ...]:
        """Where the patches start whose cells the pixels from `low` to `high` depend on."""
        first, second, _ = self.around(np.array([low, high - 1]))
        return tuple(
            start
            for start in self.starts
            if self.cells_of(start) <= second[1] and self.cells_of(start + self.patch) > first[0]
        )

    def touched(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many patches are `touching` each of the tiles that begin at `bounds`, the last of which ends there."""
        first, second = self.around(bounds[:-1])[0], self.around(bounds[1:] - 1)[1]
        begin = self.cells_of(np.array(self.starts))
        return np.searchsorted(begin, second, "right") - np.searchsorted(begin + self.cells, first, "right")


@dataclass(frozen=True)
class Tile:
    """What one task writes (`core`), and where the patches start that it depends on (scene pixels, ascending)."""

    core: Window
    patch_rows: tuple[int, ...]
    patch_cols: tuple[int, ...]

    def strip(self, row: int, patch: tuple[int, int]) -> Window:
        """What the patches see, of so many rows and columns, that start at a row."""
        return Window(row, row + patch[0], self.patch_cols[0], self.patch_cols[-1] + patch[1])


@dataclass(frozen=True)
class Tiling:
    """The lattices of one scene. All sizes are (rows, columns) in pixels of the scene."""

    shape: tuple[int, int]
    patch: tuple[int, int]
    stride: tuple[int, int]
    tile: tuple[int, int]
    """A multiple of `CHUNK` on each axis, except where one tile holds the whole axis."""
    cells: tuple[int, int] | None = None
    """How many scores a patch has along each axis; None: one for each pixel."""
    first: tuple[int, int] | None = None
    """The size of the first tile along each axis, where it is smaller than the others; None: it is not."""

    def __post_init__(self) -> None:
        """Refuse lattices that leave pixels out or do not fit each other, and tiles that would share a chunk."""
        for axis, tile in zip(self.axes, self.tile, strict=True):
            if not 1 <= axis.stride <= axis.patch:
                msg = f"the stride must be from 1 to the patch's {axis.patch} pixels, got {axis.stride}"
                raise ValueError(msg)
            if not 1 <= axis.cells <= axis.patch:
                msg = f"a patch of {axis.patch} pixels has from 1 to {axis.patch} cells, got {axis.cells}"
                raise ValueError(msg)
            if axis.stride % axis.unit:
                msg = f"the stride must be a multiple of {axis.unit} pixels, which {axis.cells} cells in "
                raise ValueError(msg + f"{axis.patch} pixels make the unit, got {axis.stride}")
            if tile < 1 or (tile % CHUNK and tile < axis.size):
                msg = f"a tile must be a multiple of the storage chunk of {CHUNK} pixels, got {tile}"
                raise ValueError(msg)
        for first, tile in zip(self.first or (), self.tile, strict=False):
            if not (first == tile or (first % CHUNK == 0 and 0 < first < tile)):
                msg = f"the first tile must be a multiple of {CHUNK} pixels and at most as long as the others, "
                raise ValueError(msg + f"got {first} and {tile}")

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """Patches and cells down a column, and along a row."""
        sides = zip(self.shape, self.patch, self.stride, self.cells or self.patch, strict=True)
        down, along = (Axis(*side) for side in sides)
        return down, along

    @cached_property
    def bounds(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where tiles begin along each axis, and behind them where the scene ends."""
        down, along = (
            np.array([0, *range(first, size, tile), size])
            for size, tile, first in zip(self.shape, self.tile, self.first or self.tile, strict=True)
        )
        return down, along

    def tiles(self) -> Iterator[Tile]:
        """Tiles whose cores are disjoint and cover the scene, row by row."""
        rows, cols = ([int(each) for each in bounds] for bounds in self.bounds)
        for row, row_stop in pairwise(rows):
            for col, col_stop in pairwise(cols):
                yield self.tile_of(Window(row, row_stop, col, col_stop))

    def tile_of(self, core: Window) -> Tile:
        """The tile with this core, which may be any part of the scene: what is left of a tile is a tile."""
        down, along = self.axes
        return Tile(core, down.touching(*core.row_range), along.touching(*core.col_range))

    def patches_per_pixel(self) -> float:
        """Pixels that the network sees for each pixel of the scene."""
        patches = sum(len(tile.patch_rows) * len(tile.patch_cols) for tile in self.tiles())
        return patches * self.patch[0] * self.patch[1] / (self.shape[0] * self.shape[1])
