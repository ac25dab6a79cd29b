"""Polygons as WKB, little endian, in any order: written into one buffer by a compiled loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from geoseg.compiled import Compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Ints: TypeAlias = "NDArray[np.int64]"
_Bytes: TypeAlias = "NDArray[np.uint8]"


def polygon_wkb(xy: NDArray[np.float64], rings: _Ints, polygons: _Ints, order: _Ints) -> pa.Array:
    """Polygons, as `Ragged` has them but in coordinates (vertices, 2), in another order (n,): an array of binaries."""
    length = 9 + 4 * np.diff(polygons) + 16 * np.diff(rings[polygons])
    ends = np.append(0, np.cumsum(length[order]))
    buffer = np.empty(ends[-1], np.uint8)
    points = np.ascontiguousarray(xy, "<f8").view(np.uint8)
    _write(points, rings, polygons, order, buffer)
    buffers = [pa.py_buffer(ends), pa.py_buffer(buffer)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(order), [None, *buffers]).cast(pa.binary())


@Compiled
def _write(points: _Bytes, rings: _Ints, polygons: _Ints, order: _Ints, buffer: _Bytes) -> None:
    """`points` (vertices, 16): bytes of both coordinates."""
    at = 0
    for polygon in order:
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
            for point in range(begin, end):
                for byte in range(16):
                    buffer[at + byte] = points[point, byte]
                at += 16
