"""Polygons as WKB, little endian: written into one buffer by a compiled loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from geoseg.compiled import Compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Ints: TypeAlias = "NDArray[np.int64]"
_Bytes: TypeAlias = "NDArray[np.uint8]"


def polygon_wkb(xy: NDArray[np.float64], rings: _Ints, polygons: _Ints) -> pa.Array:
    """An array of binaries (n,): polygons of vertices (vertices, 2), and where rings and polygons begin among them."""
    length = 9 + 4 * np.diff(polygons) + 16 * np.diff(rings[polygons])
    ends = np.append(0, np.cumsum(length))
    buffer = np.empty(ends[-1], np.uint8)
    points = np.ascontiguousarray(xy, "<f8").view(np.uint8).ravel()
    _write(points, rings, polygons, buffer)
    buffers = [pa.py_buffer(ends), pa.py_buffer(buffer)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(length), [None, *buffers]).cast(pa.binary())


@Compiled
def _write(points: _Bytes, rings: _Ints, polygons: _Ints, buffer: _Bytes) -> None:
    """`points`: the bytes of all vertices' coordinates, 16 for each."""
    at = 0
    for polygon in range(len(polygons) - 1):
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
