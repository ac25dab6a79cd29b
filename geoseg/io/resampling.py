"""Pixels of one grid made from those of another: where they lie, and what is between.

A pixel's value depends on its own row and column alone, never on the window that it is read in. GDAL's warper works the
transform between two CRS out exactly at a few places of each window, and scales its kernels by the window's extent, so
its pixels change with the window. Here the exact places are those of a fixed lattice of the target, every `CELL`
pixels; between them places are interpolated where that is as good, cell by cell, and computed where it is not: at a
pole, across the antimeridian, where pixels are large.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pyproj import Transformer

from geoseg.io.places import applied
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

    from geoseg.window import Window

CELL = 16
"""Pixels of the target along a cell's side."""

EXACT = 1e-3
"""Pixels of the source by which a place may be off."""

TIE = 1e-6
"""Pixels of the source: a centre this close to the next pixel belongs to it, so that rounding errors decide nothing."""

NOWHERE = -1e9
"""The place, in pixels, of what the source's CRS cannot describe."""

SLAB = 1 << 16
"""Pixels that are computed together: their arrays stay in the processor's cache."""


def turn_of(crs: CRS) -> float | None:
    """What once around the earth is in units of x; None for a CRS in which that leads nowhere."""
    proj = crs.proj
    if proj.is_geographic:
        return float(2 * np.pi / proj.axis_info[0].unit_conversion_factor)
    method = proj.coordinate_operation.method_name if proj.coordinate_operation else ""
    if "Pseudo Mercator" not in method or proj.ellipsoid is None:
        return None
    return float(2 * np.pi * proj.ellipsoid.semi_major_metre)


def moved(
    x: NDArray[np.float64], y: NDArray[np.float64], into: GeoBox, transformer: Transformer | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where points lie in a grid, in its pixels: down and along; far away what its CRS cannot describe.

    `transformer` brings them to the grid's CRS (None: they are in it). Where x goes round the earth, the turn is taken
    that is nearest to the grid's middle.
    """
    if transformer is not None:
        x, y = transformer.transform(x, y)
    turn = turn_of(crs_of(into))
    with np.errstate(invalid="ignore"):
        if turn is not None:
            middle, _ = into.affine @ (into.shape[1] / 2, into.shape[0] / 2)
            x = x + turn * np.rint((middle - x) / turn)  # x may be the caller's
        along, down = applied(~into.affine, x, y)
    known = np.isfinite(along) & np.isfinite(down)
    return np.where(known, down, NOWHERE), np.where(known, along, NOWHERE)


def transformer_of(one: CRS, other: CRS) -> Transformer | None:
    """What brings x and y from one CRS to another; None if they are the same."""
    return None if one == other else Transformer.from_crs(one.proj, other.proj, always_xy=True)


class Route:
    """From the pixels of a target grid to places in a source's."""

    def __init__(self, target: GeoBox, source: GeoBox) -> None:
        self._target, self._source = target, source
        self._transformer = transformer_of(crs_of(target), crs_of(source))

    def exact(
        self, rows: NDArray[np.float64], cols: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where points of the target are in the source, both in pixels from the outer corner: down and along."""
        x, y = applied(self._target.affine, cols, rows)
        return moved(x, y, self._source, self._transformer)

    def lattice(self, window: Window) -> Lattice:
        """The cells that a window of the target meets."""
        (top, bottom), (left, right) = window.row_range, window.col_range
        rows, cols = (
            np.arange(2 * (a // CELL), 2 * (-(-b // CELL)) + 1) * (CELL // 2) + 0.5
            for a, b in ((top, bottom), (left, right))
        )
        half = np.stack(self.exact(*np.meshgrid(rows, cols, indexing="ij")))
        bent = _bent(half)
        within = np.arange(CELL)
        down, along = np.nonzero(bent)
        pixels = np.broadcast_arrays(rows[2 * down, None, None] + within[:, None], cols[2 * along, None, None] + within)
        exact = np.stack(self.exact(*pixels))
        return Lattice(window, half[:, ::2, ::2], bent, exact)

    def scale(self) -> tuple[float, float]:
        """Pixels of the source that a pixel of the target spans down and along, at the middle of the source."""
        rows, cols = self._source.shape
        back = Route(self._source, self._target)
        row, col = back.exact(np.array([rows / 2]), np.array([cols / 2]))
        down, along = self.exact(row + np.array([1, 0, 0]), col + np.array([0, 0, 1]))
        return float(np.hypot(*np.diff(down))), float(np.hypot(*np.diff(along)))


def _bent(half: NDArray[np.float64]) -> NDArray[np.bool_]:
    """In which cells (y, x) interpolation is not exact enough, of places (2, 2y + 1, 2x + 1) at corners and between.

    The middles of the sides tell. That of the cell does not: places in one conformal map are harmonic functions of
    those in another, whose error there is that of one direction less that of the other, which is nothing.
    """
    down = np.abs(half[:, 1::2, ::2] - (half[:, :-1:2, ::2] + half[:, 2::2, ::2]) / 2).max(axis=0)
    along = np.abs(half[:, ::2, 1::2] - (half[:, ::2, :-1:2] + half[:, ::2, 2::2]) / 2).max(axis=0)
    down, along = np.maximum(down[:, :-1], down[:, 1:]), np.maximum(along[:-1], along[1:])
    return np.asarray(down + along > EXACT)


@dataclass(frozen=True, eq=False)
class Lattice:
    """Places in the source, in pixels, of the pixels of a window of the target."""

    window: Window
    corners: NDArray[np.float64]
    """(2, y + 1, x + 1): down and along, of the first pixel of each cell, and of the one behind the last."""
    bent: NDArray[np.bool_]
    """(y, x): cells whose places are not interpolated."""
    exact: NDArray[np.float64]
    """(2, cell, CELL, CELL): theirs."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Of all places within the cells: least and greatest, down and along."""
        known = [
            np.concatenate([corner.ravel(), exact.ravel()])
            for corner, exact in zip(self.corners, self.exact, strict=True)
        ]
        down, along = (place[place > NOWHERE / 2] for place in known)
        if not down.size:
            return NOWHERE, NOWHERE, NOWHERE, NOWHERE
        return float(down.min()), float(down.max()), float(along.min()), float(along.max())

    def slabs(self) -> Iterator[tuple[slice, NDArray[np.float64], NDArray[np.float64]]]:
        """Rows of the window from top to bottom, and how far down and along their pixels lie (y, x)."""
        (top, bottom), (left, right) = self.window.row_range, self.window.col_range
        first, cells = top // CELL, self.bent.shape[0]
        step = max(1, SLAB // (CELL * CELL * self.bent.shape[1]))
        for start in range(0, cells, step):
            above = (first + start) * CELL
            rows = slice(max(top, above), min(bottom, above + step * CELL))
            inner = slice(rows.start - above, rows.stop - above), slice(left % CELL, left % CELL + right - left)
            down, along = (place[inner] for place in self._places(start, min(cells, start + step)))
            yield slice(rows.start - top, rows.stop - top), down, along

    def _places(self, start: int, stop: int) -> list[NDArray[np.float64]]:
        """Down and along (y, x) of all pixels in some rows of cells."""
        share = np.arange(CELL) / CELL
        bent = self.bent[start:stop]
        before = int(np.count_nonzero(self.bent[:start]))
        made = []
        for corners, exact in zip(self.corners[:, start : stop + 1], self.exact, strict=True):
            sides = corners[:-1, None] + np.diff(corners, axis=0)[:, None] * share[:, None]
            places = sides[..., :-1, None] + np.diff(sides, axis=-1)[..., None] * share
            if bent.any():
                places.transpose(0, 2, 1, 3)[bent] = exact[before : before + np.count_nonzero(bent)]
            made.append(places.reshape(len(places) * CELL, -1))
        return made


# --- what is between pixels


@dataclass(frozen=True, eq=False)
class Block:
    """Pixels of a source that pixels of a target are made of."""

    values: NDArray[np.uint8]
    """(band, y, x)."""
    valid: NDArray[np.bool_]
    """(y, x)."""
    origin: tuple[int, int]
    """Row and column of the first, in the source."""
    shape: tuple[int, int]
    """Rows and columns of the source."""

    @cached_property
    def whole(self) -> bool:
        """Whether all of it is valid."""
        return bool(self.valid.all())

    def valid_at(self, down: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the pixels that places (y, x) lie in are valid; none is outside the source."""
        inside = (down >= -TIE) & (down < self.shape[0] - TIE) & (along >= -TIE) & (along < self.shape[1] - TIE)
        return inside if self.whole else inside & self.valid.take(self._nearest(down, along))

    def nearest(self, down: NDArray[np.float64], along: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
        """Put the values of the pixels that places (y, x) lie in into `out` (band, y, x)."""
        index = self._nearest(down, along)
        for values, made in zip(self.values, out, strict=True):
            made[:] = values.take(index)

    def _nearest(self, down: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.intp]:
        row, col = np.floor(down + TIE).astype(np.intp), np.floor(along + TIE).astype(np.intp)
        return self._row(row) + self._col(col)

    def _row(self, row: NDArray[np.intp]) -> NDArray[np.intp]:
        """Where rows of the source begin in the block; instead of one outside the block its first or last one."""
        return np.asarray(np.clip(row - self.origin[0], 0, self.valid.shape[0] - 1) * self.valid.shape[1])

    def _col(self, col: NDArray[np.intp]) -> NDArray[np.intp]:
        return np.asarray(np.clip(col - self.origin[1], 0, self.valid.shape[1] - 1))

    def bilinear(self, down: NDArray[np.float64], along: NDArray[np.float64], out: NDArray[np.uint8]) -> None:
        """Put what is between the four centres around places (y, x) into `out` (band, y, x).

        What is not valid has no weight. In single precision, rounded half up; every value comes from its own four
        pixels by the same steps, whatever stands beside it.
        """
        high, wide = np.floor(down - 0.5), np.floor(along - 0.5)
        lower, right = (down - 0.5 - high).astype(np.float32), (along - 0.5 - wide).astype(np.float32)
        row, col = high.astype(np.intp), wide.astype(np.intp)
        rows, cols = (self._row(row), self._row(row + 1)), (self._col(col), self._col(col + 1))
        index = [r + c for r in rows for c in cols]
        weights = [r * c for r in (1 - lower, lower) for c in (1 - right, right)]
        total = None if self.whole else self._drop_invalid(index, weights)
        for values, made in zip(self.values, out, strict=True):
            mixed = values.take(index[0]) * weights[0]
            for place, weight in zip(index[1:], weights[1:], strict=True):
                mixed += values.take(place) * weight
            if total is not None:
                mixed /= total
            mixed += 0.5
            made[:] = mixed

    def _drop_invalid(self, index: list[NDArray[np.intp]], weights: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Make weights 0 where there is nothing; what is left of them in all, 1 exactly where nothing was taken."""
        there = [self.valid.take(place) for place in index]
        for k, valid in enumerate(there):
            weights[k] *= valid
        total = weights[0] + weights[1] + weights[2] + weights[3]
        total[np.logical_and.reduce(there) | (total == 0)] = 1
        return total

    def reduced(self, factors: tuple[int, int]) -> Block:
        """Means of so many rows and columns, of what is valid of them; the block begins at a multiple of both.

        A mean is valid if any of its pixels is.
        """
        values = self.values if self.whole else np.where(self.valid, self.values, np.uint8(0))
        counts = (np.diff(np.r_[0:side:factor, side]) for side, factor in zip(self.valid.shape, factors, strict=True))
        count = np.outer(*counts)[None] if self.whole else _sums(self.valid[None], factors)
        sums = _sums(values, factors)
        means = ((2 * sums + count) // np.maximum(2 * count, 1)).astype(np.uint8)
        rows, cols = (first // factor for first, factor in zip(self.origin, factors, strict=True))
        shape = (-(-self.shape[0] // factors[0]), -(-self.shape[1] // factors[1]))
        return Block(means, count[0] > 0, (rows, cols), shape)


def _sums(values: NDArray[np.generic], factors: tuple[int, int]) -> NDArray[np.int64]:
    """Sums (band, y, x) of so many rows and columns; of fewer at the lower and right edge."""
    down, along = factors
    _, rows, cols = values.shape
    dtype = np.uint16 if 255 * down * along <= np.iinfo(np.uint16).max else np.uint32
    made = np.zeros((len(values), -(-rows // down), cols), dtype)
    for row in range(down):
        part = values[:, row::down]
        made[:, : part.shape[1]] += part
    sums = np.zeros((*made.shape[:2], -(-cols // along)), dtype)
    for col in range(along):
        part = made[:, :, col::along]
        sums[:, :, : part.shape[2]] += part
    return sums.astype(np.int64)
