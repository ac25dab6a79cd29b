"""Outlines with fewer vertices, of objects alone and of objects that share walls.

What touches is simplified together, so that it still touches, without a gap and without an overlap: outlines are cut
where three walls meet, each wall is simplified once (Douglas-Peucker) and goes back into both outlines. Which objects
may touch is told by the number of their block, and a block is simplified for itself, so the result does not depend on
what else is simplified with it. Where a wall simplified crosses another, those of the objects concerned are left as
they were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["simplified", "simplified_alone", "simplified_together"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
_Polygons: TypeAlias = NDArray[np.object_]


def simplified(polygons: _Polygons, block: _Ints, tolerance: float) -> _Polygons:
    """Polygons (n,) whose vertices are whole numbers, with fewer of them, nowhere further than `tolerance` from before.

    Those of one `block` (n,) share their walls afterwards if they did before; at the corners of the pixels they may
    not overlap.
    """
    if not tolerance or not len(polygons):
        return polygons
    _, place, count = np.unique(block, return_inverse=True, return_counts=True)
    alone = count[place] == 1
    out = polygons.copy()
    out[alone] = simplified_alone(polygons[alone], tolerance)
    out[~alone] = simplified_together(polygons[~alone], block[~alone], tolerance)
    return out


def simplified_alone(polygons: _Polygons, tolerance: float) -> _Polygons:
    """Polygons of whole-numbered vertices with those left out that lie within `tolerance` of the outline; valid.

    Douglas-Peucker ring by ring, which is ten times faster than guarding topology on the way. Where rings would have
    crossed, GEOS mends them, which shows: the outline falls apart, vanishes, or gains a vertex at a crossing. Those are
    simplified once more with their topology guarded.
    """
    if not len(polygons):
        return polygons
    fast: _Polygons = shapely.simplify(polygons, tolerance, preserve_topology=False)
    xy, owner = shapely.get_coordinates(fast, return_index=True)
    mended = np.bincount(owner, (xy != np.rint(xy)).any(axis=1), minlength=len(fast)) > 0
    broken = mended | shapely.is_empty(fast) | (shapely.get_type_id(fast) != shapely.GeometryType.POLYGON)
    broken |= shapely.get_num_interior_rings(fast) > shapely.get_num_interior_rings(polygons)
    fast[broken] = shapely.simplify(polygons[broken], tolerance, preserve_topology=True)
    return fast


def simplified_together(polygons: _Polygons, block: _Ints, tolerance: float) -> _Polygons:
    """Polygons that follow the pixels' sides, simplified so that those of one block still share their walls.

    Every block is a valid coverage before and afterwards: no overlaps, and where two touch, they have the same
    vertices.
    """
    if not len(polygons):
        return polygons
    walls = _Walls.of(polygons, block)
    lines = shapely.simplify(walls.lines, tolerance, preserve_topology=False)
    keep = np.zeros(len(lines), np.bool_)
    unsure = np.ones(len(polygons), np.bool_)
    while True:
        outlines, too_short = walls.outlines(np.where(keep, walls.lines, lines))
        wrong = too_short if too_short.any() else walls.of_polygons(_crossing(outlines, block, unsure))
        if not wrong.any():
            return outlines
        if keep[wrong].all():  # what it crosses is not at fault by itself; give the blocks up
            wrong = walls.of_polygons(np.isin(block, block[walls.touched(wrong)]))
        keep = keep | wrong
        unsure = np.isin(block, block[walls.touched(wrong)])
