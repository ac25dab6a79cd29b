"""Numbers and polygons as the texts of GeoJSON: written into one buffer by compiled loops, not one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import pyarrow as pa

from geoseg.compiled import Compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Ints: TypeAlias = "NDArray[np.int64]"
_Bytes: TypeAlias = "NDArray[np.uint8]"

DIGITS: Final = 7
"""Of a longitude or latitude: RFC 7946, section 11.2, suggests six (10 cm); a roof wants a centimetre."""

STEPS: Final = 10**DIGITS

_POINT: Final = 29
"""Bytes of a point at most: `[-180.0000000,-90.0000000],` and some."""

_HEAD: Final = np.frombuffer(b'{"type":"Polygon","coordinates":[', np.uint8).copy()
_LONGEST: Final = 21  # of a number: its sign, nineteen digits, a point

_TEN, _ZERO, _LEAST = 10, 48, 3
"""The base of numbers, the byte of the digit 0, and the edges of a triangle."""

_FEW: Final = 40
"""Vertices of a ring up to which each of its edges is compared with each other one."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """n polygons: where rings begin among vertices, and polygons among rings; one element more than there are."""

    xy: _Ints
    """(vertices, 2): longitude and latitude in steps of the last digit."""
    rings: _Ints
    polygons: _Ints


def polygon_texts(shapes: Ragged) -> tuple[pa.Array, NDArray[np.bool_]]:
    """GeoJSON of n polygons, shells counterclockwise and holes clockwise, and (n,) which of them are surely valid.

    Those are they that have no hole, few vertices and an outline that neither meets itself nor turns back. Of the
    others somebody else has to tell.
    """
    count = len(shapes.polygons) - 1
    room = len(_HEAD) * count + _POINT * len(shapes.xy) + 3 * len(shapes.rings) + 4 * count
    buffer, ends = np.empty(room, np.uint8), np.zeros(count + 1, np.int64)
    _write_polygons(shapes.xy, shapes.rings, shapes.polygons, _HEAD, buffer, ends)
    sure = _is_simple(shapes.xy, shapes.rings, shapes.polygons)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(buffer)]
    return pa.LargeStringArray.from_buffers(count, *buffers[1:]), sure


def decimal_texts(values: NDArray[np.float64], digits: int) -> pa.Array:
    """Finite numbers (n,) with so many decimals at most, and one at least; they are below 10**(15 - digits)."""
    whole = np.rint(values * 10.0**digits).astype(np.int64)
    buffer, ends = np.empty(_LONGEST * len(values), np.uint8), np.zeros(len(values) + 1, np.int64)
    _write_decimals(whole, digits, buffer, ends)
    return pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(buffer))


@Compiled
def _write_decimals(numbers: _Ints, digits: int, buffer: _Bytes, ends: _Ints) -> None:
    steps = 1
    for _ in range(digits):
        steps *= 10
    at = 0
    for place in range(len(numbers)):
        value = numbers[place]
        if value < 0:
            buffer[at] = 45
            at += 1
            value = -value
        whole = value // steps
        part = value - whole * steps
        left, length = whole, 1
        while left >= _TEN:
            left //= _TEN
            length += 1
        for each in range(at + length - 1, at - 1, -1):
            buffer[each] = 48 + whole % 10
            whole //= 10
        at += length
        buffer[at] = 46
        for each in range(at + digits, at, -1):
            buffer[each] = 48 + part % 10
            part //= 10
        first = at + 1
        at += digits
        while at > first and buffer[at] == _ZERO:
            at -= 1
        at += 1
        ends[place + 1] = at


@Compiled
def _write_polygons(  # noqa: C901, PLR0912  # compiled functions call no others
    xy: _Ints, rings: _Ints, polygons: _Ints, head: _Bytes, buffer: _Bytes, ends: _Ints
) -> None:
    at = 0
    for polygon in range(len(polygons) - 1):
        for byte in head:
            buffer[at] = byte
            at += 1
        for ring in range(polygons[polygon], polygons[polygon + 1]):
            first, stop = rings[ring], rings[ring + 1]
            twice = 0.0
            for place in range(first + 1, stop - 1):  # about the first vertex, so that no digit is lost
                x, y = float(xy[place, 0] - xy[first, 0]), float(xy[place, 1] - xy[first, 1])
                twice += x * float(xy[place + 1, 1] - xy[first, 1]) - y * float(xy[place + 1, 0] - xy[first, 0])
            is_hole = ring > polygons[polygon]
            backwards = twice > 0 if is_hole else twice < 0
            buffer[at] = 44 if is_hole else 91
            at += is_hole
            buffer[at] = 91
            at += 1
            for step in range(stop - first):
                place = stop - 1 - step if backwards else first + step
                if step:
                    buffer[at] = 44
                    at += 1
                buffer[at] = 91
                at += 1
                for axis in range(2):
                    value = xy[place, axis]
                    if value < 0:
                        buffer[at] = 45
                        at += 1
                        value = -value
                    whole = value // STEPS
                    part = value - whole * STEPS
                    if whole >= _TEN * _TEN:
                        buffer[at] = 48 + whole // 100
                        at += 1
                    if whole >= _TEN:
                        buffer[at] = 48 + whole // 10 % 10
                        at += 1
                    buffer[at] = 48 + whole % 10
                    at += 1
                    if part:
                        buffer[at] = 46
                        for each in range(at + DIGITS, at, -1):
                            buffer[each] = 48 + part % 10
                            part //= 10
                        at += DIGITS
                        while buffer[at] == _ZERO:
                            at -= 1
                        at += 1
                    buffer[at] = 93 if axis else 44
                    at += 1
            buffer[at] = 93
            at += 1
        buffer[at] = 93
        buffer[at + 1] = 125
        at += 2
        ends[polygon + 1] = at


@Compiled
def _is_simple(  # noqa: C901  # compiled functions call no others
    xy: _Ints, rings: _Ints, polygons: _Ints
) -> NDArray[np.bool_]:
    """In whole numbers, so that nothing is rounded: no two edges meet but neighbours, and those in one point only."""
    simple = np.zeros(len(polygons) - 1, np.bool_)
    for polygon in range(len(polygons) - 1):
        if polygons[polygon + 1] - polygons[polygon] != 1:
            continue
        first, stop = rings[polygons[polygon]], rings[polygons[polygon] + 1]
        edges = stop - first - 1
        if not _LEAST <= edges <= _FEW:
            continue
        good = True
        wide = 0
        for place in range(first, stop - 1):
            wide = max(wide, abs(xy[place, 0] - xy[first, 0]), abs(xy[place, 1] - xy[first, 1]))
        if wide > 1 << 29:  # products have room
            continue
        for one in range(edges):
            a, b = first + one, first + one + 1
            ux, uy = xy[b, 0] - xy[a, 0], xy[b, 1] - xy[a, 1]
            if ux == 0 and uy == 0:
                good = False
            # the next edge goes on from b, and does not come back over this one
            c = first + (one + 1) % edges + 1
            vx, vy = xy[c, 0] - xy[b, 0], xy[c, 1] - xy[b, 1]
            if ux * vy - uy * vx == 0 and ux * vx + uy * vy <= 0:
                good = False
            for two in range(one + 2, edges):
                if one == 0 and two == edges - 1:
                    continue
                c, d = first + two, first + two + 1
                if (
                    max(xy[c, 0], xy[d, 0]) < min(xy[a, 0], xy[b, 0])
                    or max(xy[a, 0], xy[b, 0]) < min(xy[c, 0], xy[d, 0])
                    or max(xy[c, 1], xy[d, 1]) < min(xy[a, 1], xy[b, 1])
                    or max(xy[a, 1], xy[b, 1]) < min(xy[c, 1], xy[d, 1])
                ):
                    continue
                vx, vy = xy[d, 0] - xy[c, 0], xy[d, 1] - xy[c, 1]
                c_side = ux * (xy[c, 1] - xy[a, 1]) - uy * (xy[c, 0] - xy[a, 0])
                d_side = ux * (xy[d, 1] - xy[a, 1]) - uy * (xy[d, 0] - xy[a, 0])
                a_side = vx * (xy[a, 1] - xy[c, 1]) - vy * (xy[a, 0] - xy[c, 0])
                b_side = vx * (xy[b, 1] - xy[c, 1]) - vy * (xy[b, 0] - xy[c, 0])
                apart = (c_side > 0 and d_side > 0) or (c_side < 0 and d_side < 0)
                apart |= (a_side > 0 and b_side > 0) or (a_side < 0 and b_side < 0)
                good &= apart
            if not good:
                break
        simple[polygon] = good
    return simple
