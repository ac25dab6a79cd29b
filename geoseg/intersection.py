"""How much of one polygon lies in another, for many pairs at once: the area alone, without the geometry.

A polygon is what lies below its edges that lead one way less what lies below those that lead the other way. So the area
that two have in common is a sum over pairs of edges, of the integral of the lower one where both are above one stretch
of the x axis. Nothing is sorted, no crossing is made a vertex, nothing has to be snapped.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.compiled import Compiled

__all__ = ["common_areas"]

MOST = 1 << 22
"""Pairs of edges that are looked at one by one, which takes some hundredths of a second."""

_Ints: TypeAlias = NDArray[np.int64]
_Floats: TypeAlias = NDArray[np.float64]
_Polygons: TypeAlias = NDArray[np.object_]


def common_areas(first: _Polygons, second: _Polygons) -> _Floats:
    """(n,): the area of the intersection of each of the `first` polygons (n,), all valid, with its `second` (n,).

    In squares of their unit. A pair takes time by the edges of the one times those of the other, so GEOS makes the
    intersection where these are more than `MOST`. Polygons with whole-numbered vertices have the same areas wherever
    they are.
    """
    edges = shapely.get_num_coordinates(first) * shapely.get_num_coordinates(second)
    few = edges <= MOST
    areas = np.empty(len(first))
    areas[~few] = shapely.area(shapely.intersection(first[~few], second[~few]))
    corner = shapely.bounds(first[few])[:, :2]
    areas[few] = _sums(*_edges(first[few], corner), *_edges(second[few], corner))
    return areas


def _edges(polygons: _Polygons, corner: _Floats) -> tuple[_Floats, _Ints]:
    """(edges, 4): x and y of both ends from each polygon's corner (n, 2), none upright; and where each's begin."""
    rings, polygon = shapely.get_rings(shapely.orient_polygons(polygons), return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    xy -= corner[polygon[ring]]
    along = np.flatnonzero((ring[1:] == ring[:-1]) & (xy[1:, 0] != xy[:-1, 0]))
    offsets = np.searchsorted(polygon[ring[along]], np.arange(len(polygons) + 1))
    return np.concatenate([xy[along], xy[along + 1]], axis=1), offsets


@Compiled
def _sums(one: _Floats, of_one: _Ints, two: _Floats, of_two: _Ints) -> _Floats:
    """Of each pair, the sum over its edges."""
    areas = np.zeros(len(of_one) - 1)
    for pair in range(len(areas)):
        for a in range(of_one[pair], of_one[pair + 1]):
            ax, ay, aslope = one[a, 0], one[a, 1], (one[a, 3] - one[a, 1]) / (one[a, 2] - one[a, 0])
            west, east = min(ax, one[a, 2]), max(ax, one[a, 2])
            for b in range(of_two[pair], of_two[pair + 1]):
                bx = two[b, 0]
                left, right = max(west, min(bx, two[b, 2])), min(east, max(bx, two[b, 2]))
                if left >= right:
                    continue
                by, bslope = two[b, 1], (two[b, 3] - two[b, 1]) / (two[b, 2] - two[b, 0])
                low, high = ay + (left - ax) * aslope, ay + (right - ax) * aslope
                above, beyond = by + (left - bx) * bslope - low, by + (right - bx) * bslope - high
                area = (low + high) / 2 * (right - left)
                # less what of that lies above the other edge
                if above < 0 and beyond < 0:
                    area += (above + beyond) / 2 * (right - left)
                elif above < 0:
                    area += above / 2 * (right - left) * above / (above - beyond)
                elif beyond < 0:
                    area += beyond / 2 * (right - left) * beyond / (beyond - above)
                same = (one[a, 2] > ax) == (two[b, 2] > bx)
                areas[pair] += area if same else -area
    return areas
