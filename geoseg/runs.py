"""A label raster as horizontal runs, and the components that they make.

From here on all is sparse: whatever is asked of a pixel is looked up in the sorted list of runs, and no raster of
component numbers exists.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from geoseg.compiled import Compiled
from geoseg.raster import NODATA

NO_PART: Final = -1

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]


def pad(raster: NDArray[np.uint8], value: int) -> NDArray[np.uint8]:
    """(rows + 2, columns + 2): a frame of one pixel, so that every pixel has neighbours and no run leaves its row."""
    padded = np.full((raster.shape[0] + 2, raster.shape[1] + 2), value, np.uint8)
    padded[1:-1, 1:-1] = raster
    return padded


def sides(raster: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], ...]:
    """Copies of the outermost pixels: top, bottom, left, right."""
    return raster[0].copy(), raster[-1].copy(), raster[:, 0].copy(), raster[:, -1].copy()


@dataclass(frozen=True, eq=False)
class Runs:
    """A padded raster in row-major order, cut where its value changes. What belongs to no object is 255.

    A pixel is its place in the flat raster. A vertex has the place of the pixel in its north west, and counted from
    the window's corner, it is the vertex of that padded row and column.
    """

    flat: NDArray[np.uint8]
    width: int
    down: _Bools
    """Whether a pixel and the one below are parted; `width` elements less than `flat`."""
    start: _Ints

    @classmethod
    def of(cls, labels: NDArray[np.uint8]) -> Runs:
        """Cut `labels` (rows, columns), which has no background any more."""
        flat, width = pad(labels, NODATA).ravel(), labels.shape[1] + 2
        start = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
        return cls(flat, width, flat[width:] != flat[:-width], start)

    def walled(self, across: _Ints, down: _Ints) -> Runs:
        """The same with walls to the right of pixels `across`, sorted, none of which ends a run, and below `down`."""
        below = self.down.copy()
        below[down] = True
        return replace(self, down=below, start=np.sort(np.concatenate([self.start, across + 1]), kind="stable"))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns without the frame."""
        return len(self.flat) // self.width - 2, self.width - 2

    @property
    def lengths(self) -> _Ints:
        """(runs,): the pixels of each."""
        return np.diff(self.start, append=len(self.flat))

    def find(self, pixels: _Ints) -> _Ints:
        """Number of the run that each pixel lies in."""
        return np.searchsorted(self.start, pixels, side="right") - 1

    def sides(self) -> tuple[_Ints, _Ints, _Ints, _Ints]:
        """The outermost pixels inside the frame: top, bottom, left, right."""
        rows, cols = self.shape
        corner = self.width + 1
        along, down = corner + np.arange(cols), corner + self.width * np.arange(rows)
        return along, along + (rows - 1) * self.width, down, down + cols - 1

    def components(self) -> NDArray[np.int32]:
        """(runs,): the number of each one's component, counted in the order of their first pixels; -1 for no object."""
        return components(self.start, self.flat[self.start] != NODATA, self.down, self.width)


@Compiled
def components(  # noqa: C901  # compiled functions call no others
    start: _Ints, is_object: _Bools, down: _Bools, width: int
) -> NDArray[np.int32]:
    """(runs,): as `Runs` has them, of runs that cover a padded raster and may be shorter ones; -1 for no object.

    By union-find with the smallest number as the root, which makes the order of roots that of first pixels.

    Runs of one label in neighbouring rows are one component where no wall lies between them. A wall parts whole runs,
    so any column that they share tells.
    """
    count = len(start)
    root = np.arange(count).astype(np.int32)
    above = 0
    for run in range(1, count):  # the first one belongs to the frame
        if not is_object[run]:
            continue
        begin, end = start[run] - width, start[run + 1] - width  # the last one belongs to the frame, too
        while start[above + 1] <= begin:
            above += 1
        other = above
        while start[other] < end:
            if is_object[other] and not down[max(start[other], begin)]:
                one, two = run, other
                while root[one] != one:
                    root[one] = root[root[one]]
                    one = root[one]
                while root[two] != two:
                    root[two] = root[root[two]]
                    two = root[two]
                root[max(one, two)] = min(one, two)
            other += 1
    number = np.full(count, NO_PART, np.int32)
    found = 0
    for run in range(count):
        if is_object[run]:
            if root[run] == run:
                number[run] = found
                found += 1
            else:
                number[run] = number[root[run]]  # which is smaller, and in the same component
    return number


def connect(count: int, firsts: NDArray[np.integer[Any]], seconds: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """(count,): the number of each node's connected component, counted in the order of their first nodes."""
    links = coo_array((np.ones(len(firsts), np.bool_), (firsts, seconds)), shape=(count, count))
    components, number = connected_components(links, directed=False)
    first = first_of(number, components)
    rank = np.empty(components, np.int32)
    rank[np.argsort(first)] = np.arange(components)
    ranked: NDArray[np.int32] = rank[number]
    return ranked


def first_of(number: NDArray[np.int32], count: int) -> _Ints:
    """(count,): where each of the numbers 0 to count - 1, none of which is missing, comes first."""
    first = np.empty(count, np.int64)
    first[number[::-1]] = np.arange(len(number))[::-1]
    return first


def ragged(length: _Ints) -> tuple[_Ints, _Ints]:
    """For rows of these lengths one after the other: the row of each element, and its place in the row."""
    row = np.repeat(np.arange(len(length)), length)
    return row, np.arange(len(row)) - (np.cumsum(length) - length)[row]
