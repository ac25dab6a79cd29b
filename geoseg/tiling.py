"""The two lattices of a scene: patches that the network sees, tiles that a task writes.

Both are anchored at the scene's origin. A tile predicts every patch that touches its core, so a pixel gets the same
patches, in the same order, whatever the tiling: `tiled == whole` needs no halo and no seam code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHUNK = 1024
"""Rows and columns of a storage chunk: what a tile's core is aligned to."""


def patch_starts(size: int, patch: int, stride: int) -> list[int]:
    """Where patches of `patch` pixels start along an axis of `size` pixels; the last is pulled back to the edge.

    >>> patch_starts(10, 4, 3)
    [0, 3, 6]
    >>> patch_starts(11, 4, 3)
    [0, 3, 6, 7]
    >>> patch_starts(3, 4, 3)
    [0]
    """
    if size <= patch:
        return [0]
    return [*range(0, size - patch, stride), size - patch]


def taper(patch: int) -> NDArray[np.float64]:
    """Blending weight of each pixel along one side of a patch: a Hann window sampled at pixel centres.

    Strictly positive, so a pixel at the scene's rim, which one patch alone sees, still has a weight.
    """
    return np.sin(np.pi * (np.arange(patch) + 0.5) / patch) ** 2


def total_taper(size: int, patch: int, stride: int) -> NDArray[np.float32]:
    """Sum of the tapers of all patches along an axis of `size` pixels: what blended scores are divided by.

    The taper of a patch is the product of its two axes' tapers, and so is the total.
    """
    starts = patch_starts(size, patch, stride)
    total = np.zeros(max(size, patch))
    for start in starts:
        total[start : start + patch] += taper(patch)
    return total[:size].astype(np.float32)


@dataclass(frozen=True)
class Tile:
    """What one task writes (`core`), and where the patches start that touch it (scene pixels, ascending)."""

    core: Window
    patch_rows: tuple[int, ...]
    patch_cols: tuple[int, ...]


@dataclass(frozen=True)
class Tiling:
    """The lattices of one scene. All sizes are (rows, columns) in pixels of the scene."""

    shape: tuple[int, int]
    patch: tuple[int, int]
    stride: tuple[int, int]
    tile: tuple[int, int]
    """A multiple of `CHUNK` on each axis, except where one tile holds the whole axis."""

    def __post_init__(self) -> None:
        """Refuse lattices that leave pixels out, and tiles that would share a storage chunk."""
        for size, patch, stride, tile in zip(self.shape, self.patch, self.stride, self.tile, strict=True):
            if not 1 <= stride <= patch:
                msg = f"the stride must be from 1 to the patch's {patch} pixels, got {stride}"
                raise ValueError(msg)
            if tile < 1 or (tile % CHUNK and tile < size):
                msg = f"a tile must be a multiple of the storage chunk of {CHUNK} pixels, got {tile}"
                raise ValueError(msg)

    def tiles(self) -> Iterator[Tile]:
        """Tiles whose cores are disjoint and cover the scene, row by row."""
        for core in Window.of_shape(self.shape).blocks(self.tile):
            yield self.tile_of(core)

    def tile_of(self, core: Window) -> Tile:
        """The tile with this core, which may be any part of the scene: what is left of a tile is a tile."""
        return Tile(
            core,
            _touching(patch_starts(self.shape[0], self.patch[0], self.stride[0]), self.patch[0], *core.row_range),
            _touching(patch_starts(self.shape[1], self.patch[1], self.stride[1]), self.patch[1], *core.col_range),
        )

    def patches_per_pixel(self) -> float:
        """Pixels that the network sees for each pixel of the scene."""
        patches = sum(len(tile.patch_rows) * len(tile.patch_cols) for tile in self.tiles())
        return patches * self.patch[0] * self.patch[1] / (self.shape[0] * self.shape[1])


def _touching(starts: list[int], patch: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(start for start in starts if start < high and start + patch > low)
