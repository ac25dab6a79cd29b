"""The staircase of the pixels taken from lines that follow their sides: each point becomes a mean of what is near it.

A moving average along the line, whose reach is a length on the map, is the plainest of the kernels by which lines that
come from rasters are smoothed before they are compressed (Bodansky, Gribov & Pilouk 2002, "Smoothing and compression of
lines obtained by raster-to-vector conversion"). Level and upright stretches stay where they are, corners are cut.

All sums are exact, so a line is the same to the last bit whatever it is smoothed with.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.runs import ragged

__all__ = ["smoothed"]

_Ints: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]
_Lines: TypeAlias = NDArray[np.object_]

_FRACTION: Final = 64
"""The reach is a whole multiple of this part of a pixel: sums are exact then, and what is level stays so to the bit."""

_AT_ONCE: Final = 1 << 17
"""Sides of pixels: some 300 bytes of memory for each."""

_OF_RING: Final = 8
"""A closed line is not smoothed over more than twice this part of it, or small ones would vanish."""


def smoothed(lines: _Lines, reach: float) -> _Lines:
    """Lines (n,) of whole-numbered vertices and level or upright sides, in pixels, without their stairs.

    Each point is the mean of the line within `reach` pixels before and behind it, less towards the ends, which stay
    where they are; closed lines have none. So no point is moved by more than half of `reach`, and none further than
    that from a corner is moved at all. There are two vertices for each side of a pixel.
    """
    reach = np.rint(reach * _FRACTION) / _FRACTION
    if not reach or not len(lines):
        return lines
    portion = np.cumsum(shapely.length(lines)) // _AT_ONCE
    parts = np.split(lines, np.flatnonzero(np.diff(portion)) + 1)
    return np.concatenate([_averaged(part, reach) for part in parts])


def _averaged(lines: _Lines, reach: float) -> _Lines:
    sides, first, way = _sides(lines)
    closed = shapely.is_closed(lines)
    line, half = ragged(2 * sides + 1)
    at = half / 2
    end = sides[line]
    to_end = np.minimum(at, end - at)
    far = np.minimum(reach, np.where(closed[line], end / _OF_RING, to_end))
    # twice the sum of the positions of all sides before each, so that it is a whole number
    before = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(2 * first + way, axis=0)])
    begin = (np.cumsum(sides) - sides)[line]

    def integral(place: _Floats) -> _Floats:
        """(points, 2): of the positions along each point's line from its beginning to a place on it, or a turn away."""
        turn = np.where(closed[line], place // end, 0)
        place = place - turn * end
        whole = np.minimum(place.astype(np.int64), end - 1)
        part = (place - whole)[:, np.newaxis]
        side = begin + whole
        round_ = (before[begin + end] - before[begin]) / 2
        part_way = part * first[side] + part**2 / 2 * way[side]
        found: _Floats = turn[:, np.newaxis] * round_ + (before[side] - before[begin]) / 2 + part_way
        return found

    moves = far > 0
    width = np.where(moves, 2 * far, 1)[:, np.newaxis]
    mean = (integral(at + far) - integral(at - far)) / width
    ends = np.where((half == 0)[:, np.newaxis], first[begin], first[begin + end - 1] + way[begin + end - 1])
    xy = np.where(moves[:, np.newaxis], mean, ends)
    drawn: _Lines = shapely.linestrings(xy, indices=line)
    return drawn


def _sides(lines: _Lines) -> tuple[_Ints, _Ints, _Ints]:
    """(n,): how many sides of pixels each line has; and (sides, 2) where each of them begins, and which way it goes."""
    corners, owner = shapely.get_coordinates(lines, return_index=True)
    corners = corners.astype(np.int64)
    along = np.flatnonzero(owner[1:] == owner[:-1])
    move = corners[along + 1] - corners[along]
    edge, k = ragged(np.abs(move).sum(axis=1))
    way = np.sign(move)[edge]
    count = np.bincount(owner[along][edge], minlength=len(lines))
    return count, corners[along][edge] + k[:, np.newaxis] * way, way
