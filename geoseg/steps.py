"""Outlines as steps of one pixel, in portions of whole blocks: what straight walls are laid by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.runs import ragged

__all__ = ["Steps", "by_portions"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]

SIDES_AT_ONCE: Final = 1 << 17
"""Of objects that touch: some 200 bytes of memory for each."""

_ENDS: Final = 2  # of sides that meet where a wall simply goes on


def by_portions(chosen: _Ints, polygons: _Polygons, block: _Ints) -> list[_Ints]:
    """The chosen polygons, whole blocks together, in parts of about `SIDES_AT_ONCE` sides of pixels."""
    if not len(chosen):
        return []
    chosen = chosen[np.argsort(block[chosen], kind="stable")]
    sides = np.cumsum(shapely.length(polygons[chosen]))
    ends = np.append(np.flatnonzero(np.diff(block[chosen])), len(chosen) - 1)
    return np.split(chosen, ends[:-1][np.diff(sides[ends] // SIDES_AT_ONCE) > 0] + 1)


@dataclass(frozen=True, eq=False)
class Steps:
    """Rings as steps of one pixel; a ring that is cut somewhere begins where it is."""

    xy: _Ints
    """(steps, 2): where each begins."""
    end: _Ints
    """(steps, 2): where it ends."""
    ring: _Ints
    side: _Ints
    """A number for the pixels' side that the step follows, the same in all rings of a block."""
    is_cut: _Bools
    """Whether a wall begins here."""

    @property
    def forwards(self) -> _Bools:
        """Whether each step leads to the right or downwards."""
        forwards: _Bools = (self.end - self.xy).sum(axis=1) > 0
        return forwards

    @classmethod
    def of(cls, rings: _Polygons, group: _Ints) -> Steps:
        """Walk along the rings, given the number of the block that each belongs to."""
        corners, owner = shapely.get_coordinates(rings, return_index=True)
        corners = corners.astype(np.int64)
        along = np.flatnonzero(owner[1:] == owner[:-1])
        move = corners[along + 1] - corners[along]
        edge, k = ragged(np.abs(move).sum(axis=1))
        ring, pace = owner[along][edge], np.sign(move)[edge]
        xy = corners[along][edge] + k[:, np.newaxis] * pace
        low = xy.min(axis=0) - 1
        cols, rows = xy.max(axis=0) - low + 1
        place = (group[ring] * rows + xy[:, 1] - low[1]) * cols + xy[:, 0] - low[0]
        stride = pace @ np.array([1, cols])
        side = 2 * np.minimum(place, place + stride) + (pace[:, 1] != 0)
        is_node = np.isin(place, _nodes(side, cols))
        size = np.bincount(ring)
        start = np.cumsum(size) - size
        first = np.full(len(size), len(ring))
        np.minimum.at(first, ring[is_node], np.flatnonzero(is_node))
        first = np.where(first == len(ring), start, first)
        is_node[first] = True
        order = start[ring] + (np.arange(len(ring)) - 2 * start[ring] + first[ring]) % size[ring]
        return cls(xy[order], (xy + pace)[order], ring, side[order], is_node[order])


def _nodes(side: _Ints, cols: int) -> _Ints:
    """The vertices where more than two sides of pixels meet, each of which may be named more than once."""
    sides = np.sort(side)  # np.unique hashes first, which takes five times as long here
    sides = sides[np.diff(sides, prepend=-1) > 0]
    low = sides >> 1
    vertex, count = np.unique(np.concatenate([low, low + np.where(sides & 1, cols, 1)]), return_counts=True)
    return vertex[count > _ENDS]
