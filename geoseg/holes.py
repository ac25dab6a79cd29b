"""Holes that are filled and objects that are dropped, both by their area on the ground, before anything is shaped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from geoseg.pieces import Objects

__all__ = ["cleared"]

_Ints: TypeAlias = NDArray[np.int64]
_Polygons: TypeAlias = NDArray[np.object_]

SURELY = 4.0
"""How many times as large, or as small, as at the layer's centre a pixel may be on the ground elsewhere."""


def cleared(
    objects: Objects,
    fill: float,
    least: float,
    area_of: Callable[[_Polygons], NDArray[np.float64]],
    pixel_area: float,
    elsewhere: _Ints | None = None,
) -> tuple[Objects, _Ints]:
    """Objects without holes below `fill`, less those below `least`; and (256,) how many holes of each label are filled.

    Areas in square metres, as `area_of` tells them of polygons in pixels. A hole is filled unless an object lies in it
    that is kept itself; `elsewhere` (m, 2) are the first pixels (row, column) of such that are not among the objects.
    What is dropped is so by the area that it has when its holes are filled. `pixel_area` (square metres) saves looking
    closer where that need not be.
    """
    area = shapely.area(objects.geometry) * pixel_area
    near = area < SURELY * least
    area[near] = area_of(objects.geometry[near])
    if not fill or not len(objects):
        return objects.select(area >= least), np.zeros(256, np.int64)
    rings, owner = shapely.get_rings(objects.geometry, return_index=True)
    small = np.flatnonzero(np.append(False, owner[1:] == owner[:-1]))
    holes = shapely.polygons(rings[small])
    maybe = shapely.area(holes) * pixel_area < SURELY * fill
    small, holes = small[maybe], holes[maybe]
    size = area_of(holes)
    fits = size < fill
    small, holes, size = small[fits], holes[fits], size[fits]
    whose = owner[small]
    tree = shapely.STRtree(holes)
    inside, hole = tree.query(_inside(objects.first_row, objects.first_col), predicate="within")
    others = np.zeros(0, np.int64) if elsewhere is None else tree.query(_inside(*elsewhere.T), predicate="within")[1]
    is_kept, is_filled = np.ones(len(objects), np.bool_), np.zeros(len(holes), np.bool_)  # until more is known
    # what lies in the holes of an object is deeper than that, and known before it
    depth = np.bincount(inside, minlength=len(objects))
    for level in range(int(depth.max()), -1, -1):
        taken = np.append(others, hole[is_kept[inside]])
        is_filled = ~np.isin(np.arange(len(holes)), taken)
        whole = area + np.bincount(whose, size * is_filled, len(objects))
        is_kept[depth == level] = whole[depth == level] >= least
    filled = np.bincount(objects.label[whose[is_filled & is_kept[whose]]], minlength=256)
    return replace(objects, geometry=_without(objects, rings, owner, small[is_filled])).select(is_kept), filled


def _inside(row: _Ints, col: _Ints) -> NDArray[np.object_]:
    """The middles of pixels."""
    middles: NDArray[np.object_] = shapely.points(col + 0.5, row + 0.5)
    return middles


def _without(objects: Objects, rings: _Polygons, owner: _Ints, gone: _Ints) -> _Polygons:
    """The outlines of objects, all rings of which are given, without some of these."""
    if not len(gone):
        return objects.geometry
    keep = np.ones(len(rings), np.bool_)
    keep[gone] = False
    xy, ring = shapely.get_coordinates(rings[keep], return_index=True)
    ring_offsets = np.append(0, np.cumsum(np.bincount(ring)))
    polygon_offsets = np.searchsorted(owner[keep], np.arange(len(objects) + 1))
    whole: _Polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy, (ring_offsets, polygon_offsets))
    return whole
