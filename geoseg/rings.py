"""Outlines of objects from their corners: all rings of all objects in one pass; see `geoseg.polygonise` for how."""

from __future__ import annotations

from dataclasses import fields
from typing import Final, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.compiled import Compiled
from geoseg.memory import no_collecting
from geoseg.pieces import Objects, Parts, Vertices

__all__ = ["IS_CORNER", "with_geometry"]

# Of a vertex's mask: see `Vertices`.
_SOUTH_EAST: Final = 8
_DIAGONAL: Final = 9
_ANTIDIAGONAL: Final = 6

IS_CORNER: Final[NDArray[np.bool_]] = np.isin(np.arange(16), [1, 2, 4, 8, 7, 11, 13, 14, _DIAGONAL, _ANTIDIAGONAL])
"""(16,): whether a vertex with this mask is a corner."""

_Ints: TypeAlias = NDArray[np.int64]


def with_geometry(parts: Parts, corners: Vertices) -> Objects:
    """Outline whole objects, given all their corners, sorted by part, row, column."""
    columns = {f.name: getattr(parts, f.name) for f in fields(parts)}
    return Objects(**columns, geometry=_outline(corners, len(parts)))


@no_collecting()
def _outline(corners: Vertices, count: int) -> NDArray[np.object_]:
    """(count,): the polygons of parts 0 to count - 1, all of whose corners are given, sorted by part, row, column."""
    coordinates, ring_offsets, polygon_offsets = _rings(corners.part, corners.row, corners.col, corners.mask, count)
    polygons: NDArray[np.object_] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, coordinates, (ring_offsets, polygon_offsets)
    )
    return polygons


@Compiled
def _rings(  # compiled functions call no others
    part: NDArray[np.int32], row: NDArray[np.int32], col: NDArray[np.int32], mask: NDArray[np.uint8], count: int
) -> tuple[NDArray[np.float64], _Ints, _Ints]:
    """Coordinates, where the rings begin among them, and where the polygons begin among the rings.

    A node is a corner; a saddle is two: first the one with the edge to the left, then the one with the edge to the
    right. Nodes 2k and 2k + 1 are the ends of a horizontal edge. Down a column, a node without an open edge above it
    opens one, and the next node closes it. At a saddle it depends which of the two is the upper one's.
    """
    nodes = len(part)
    left = right = 0
    for corner in range(len(part)):
        nodes += mask[corner] in (_DIAGONAL, _ANTIDIAGONAL)
        left, right = (min(left, col[corner]), max(right, col[corner])) if corner else (col[0], col[0])
    corner_of = np.empty(nodes, np.int32)
    vertical = np.empty(nodes, np.int32)
    opened = np.full(right - left + 1, -1, np.int32)
    node = 0
    for corner in range(len(part)):
        column = col[corner] - left
        saddle = mask[corner] in (_DIAGONAL, _ANTIDIAGONAL)
        corner_of[node] = corner
        if saddle:
            corner_of[node + 1] = corner
        upper, lower = (node + 1, node) if mask[corner] == _DIAGONAL else (node, node + 1)
        if opened[column] < 0:
            opened[column] = node
        else:
            vertical[upper], vertical[opened[column]] = opened[column], upper
            opened[column] = lower if saddle else -1
        node += 1 + saddle
    coordinates = np.empty((nodes + nodes // 4, 2))
    rings = np.zeros(nodes // 4 + 1, np.int64)
    polygons = np.zeros(count + 1, np.int64)
    walked = np.zeros(nodes, np.bool_)
    place = ring = 0
    for first in range(0, nodes, 2):  # the topmost, then leftmost node of a ring that was not walked yet
        if walked[first]:
            continue
        corner = corner_of[first]
        polygons[part[corner] + 1] += 1
        node, down = first, (mask[corner] & _SOUTH_EAST) != 0  # only a shell has its component below its topmost edge
        while True:
            walked[node] = True
            coordinates[place, 0], coordinates[place, 1] = col[corner_of[node]], row[corner_of[node]]
            place += 1
            node = vertical[node] if down else node ^ 1
            down = not down
            if node == first:
                break
        start = rings[ring]  # its first node again, and not by a row at once, which takes a second longer to compile
        coordinates[place, 0], coordinates[place, 1] = coordinates[start, 0], coordinates[start, 1]
        place += 1
        ring += 1
        rings[ring] = place
    return coordinates[:place].copy(), rings[: ring + 1].copy(), np.cumsum(polygons)
