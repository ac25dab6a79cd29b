"""Polygons as WKB, little endian: written into one buffer by a compiled loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from geoseg.compiled import Compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Ints: TypeAlias = "NDArray[np.int64]"
_Bytes: TypeAlias = "NDArray[np.uint8]"


MOST_BYTES = 2**31 - 1
"""Of an array of binaries, whose places are numbers of 32 bits."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Polygons (n,) as buffers: vertices (vertices, 2), where rings begin among them, and polygons among the rings."""

    xy: NDArray[np.float64]
    rings: _Ints
    polygons: _Ints

    def wkb(self, order: _Ints) -> pa.ChunkedArray:
        """Binaries (n,), in an order of all of them; in as many arrays as it takes, each of 2 GB at most."""
        lengths: _Ints = 9 + 4 * np.diff(self.polygons) + 16 * np.diff(self.rings[self.polygons])
        ends = np.append(0, np.cumsum(lengths[order]))
        start = np.empty_like(order)
        start[order] = ends[:-1]
        buffer = np.empty(ends[-1], np.uint8)
        points = np.ascontiguousarray(self.xy, "<f8").view(np.uint8).ravel()
        _write(points, self.rings, self.polygons, start, buffer)
        arrays, begin = [], 0
        while begin < len(order):
            end = max(int(np.searchsorted(ends, ends[begin] + MOST_BYTES, "right")) - 1, begin + 1)
            places = (ends[begin : end + 1] - ends[begin]).astype(np.int32)
            buffers = [None, pa.py_buffer(places), pa.py_buffer(buffer[ends[begin] : ends[end]])]
            arrays.append(pa.BinaryArray.from_buffers(pa.binary(), end - begin, buffers))
            begin = end
        return pa.chunked_array(arrays, pa.binary())

    def boxes(self) -> NDArray[np.float64]:
        """(4, n): west, south, east and north, of their shells."""
        boxes = np.empty((4, len(self.polygons) - 1))
        _box(np.ascontiguousarray(self.xy), self.rings, self.polygons, boxes)
        return boxes


@Compiled
def _box(xy: NDArray[np.float64], rings: _Ints, polygons: _Ints, boxes: NDArray[np.float64]) -> None:
    for polygon in range(len(polygons) - 1):
        begin, end = rings[polygons[polygon]], rings[polygons[polygon] + 1]
        west, south = east, north = xy[begin, 0], xy[begin, 1]
        for vertex in range(begin + 1, end):
            x, y = xy[vertex, 0], xy[vertex, 1]
            west, east, south, north = min(west, x), max(east, x), min(south, y), max(north, y)
        boxes[0, polygon], boxes[1, polygon], boxes[2, polygon], boxes[3, polygon] = west, south, east, north


@Compiled
def _write(points: _Bytes, rings: _Ints, polygons: _Ints, start: _Ints, buffer: _Bytes) -> None:
    """`points`: the bytes of all vertices' coordinates, 16 for each; `start` (n,): where each polygon is to begin.

    Read one after the other and written wherever they belong: the other way round takes twice as long.
    """
    for polygon in range(len(polygons) - 1):
        at = start[polygon]
        first, stop = polygons[polygon], polygons[polygon + 1]
        buffer[at], buffer[at + 1] = 1, 3  # little endian, a polygon
        buffer[at + 2 : at + 5] = 0
        count = stop - first
        for byte in range(4):
            buffer[at + 5 + byte] = count >> 8 * byte & 255
        at += 9
        for ring in range(first, stop):
            begin, end = rings[ring], rings[ring + 1]
            count = end - begin
            for byte in range(4):
                buffer[at + byte] = count >> 8 * byte & 255
            at += 4
            ring_bytes, there = points[16 * begin : 16 * end], buffer[at : at + 16 * count]
            for byte in range(len(there)):  # so that it is one copy
                there[byte] = ring_bytes[byte]
            at += 16 * count
