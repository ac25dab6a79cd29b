"""What land has become, class by class, from two label maps on one grid.

A label map's borders are never in quite the same place twice: images are a pixel or two aside, and a network draws a
border as it sees it. So a pixel that has another class than before is a change only if it is more than that. It is
**sure** if the class that it has now is found nowhere within a tolerance of it in the map before, and the class that it
had nowhere within the same tolerance in the map after. What was seen by one map only may be of any class. And a pixel
**counts** if a sure one of the same transition lies within the tolerance, which gives the sure ones their borders back
(an opening by reconstruction, with bounded reach). It follows that

- maps that differ by a shift of no more than the tolerance have no change between them,
- exchanging the maps exchanges the classes of each transition, and nothing else,
- a pixel depends on what lies within twice the tolerance, so windows with that margin know all.

"Within the tolerance" is meant along rows and along columns: a rectangle, the cheapest shape to look around in.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from geoseg.catalog import Legend, LegendClass
from geoseg.raster import CONFIDENCE_STEPS, NODATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bits: TypeAlias = "NDArray[np.uint16]"
"""A set of classes for each pixel: bit i stands for class i."""

MOST_CLASSES: Final = 15
"""As many as have less than 255 transitions between them."""

UNCHANGED: Final = 0
UNCHANGED_COLOUR: Final = "#f2f2f2"
NEW_COLOUR: Final = "#0072b2"
GONE_COLOUR: Final = "#d55e00"
"""Of what was background, and of what is background now, which has no colour of its own to be told by: those of new
and demolished objects on pages and in projects."""

ANY: Final = np.uint16(0xFFFF)


def transition_codes(classes: int) -> NDArray[np.uint8]:
    """(from, to): the code of each transition, in the order of `from` and then `to`; 0 where both are the same.

    >>> transition_codes(3)
    array([[0, 1, 2],
           [3, 0, 4],
           [5, 6, 0]], dtype=uint8)
    """
    if not 0 < classes <= MOST_CLASSES:
        msg = f"a byte has codes for the transitions between at most {MOST_CLASSES} classes, got {classes}"
        raise ValueError(msg)
    codes = np.zeros((classes, classes), np.uint8)
    codes[~np.eye(classes, dtype=bool)] = np.arange(1, classes * (classes - 1) + 1)
    return codes


def transition_legend(legend: Legend) -> Legend:
    """Names and colours of the transitions between a legend's classes: that of the new class, tinted by the old.

    To and from the background it is that of what is new or gone, tinted by the other class.
    """
    named = [LegendClass(UNCHANGED, "unchanged", UNCHANGED_COLOUR)]
    for old, new in itertools.permutations(legend.classes, 2):
        most, tint = new, old
        if old.value == legend.background:
            most, tint = replace(old, colour=NEW_COLOUR), new
        elif new.value == legend.background:
            most = replace(new, colour=GONE_COLOUR)
        red, green, blue = (round(0.75 * b + 0.25 * a) for a, b in zip(tint.rgb, most.rgb, strict=True))
        named.append(LegendClass(len(named), f"{old.name} to {new.name}", f"#{red:02x}{green:02x}{blue:02x}"))
    return Legend(tuple(named), background=UNCHANGED)


def transitions(
    before: NDArray[np.uint8], after: NDArray[np.uint8], classes: int, reach: tuple[int, int]
) -> NDArray[np.uint8]:
    """Codes (y, x) of a window from labels on it and twice `reach` around it; 0 = unchanged, 255 = not compared.

    `before`, `after`: uint8 (y + 4 * rows, x + 4 * cols) for a reach of (rows, cols), 255 = not seen, which is also
    what lies outside of a map. A pixel is compared where both maps see it.
    """
    once, twice = _inside(reach, 1), _inside(reach, 2)
    codes = _pairs(before, after, classes)
    sure = _sure(before, after, codes, reach)
    counts = np.zeros(codes[twice].shape, bool)
    for old in np.unique(before[once][sure]):
        of_old = sure & (before[once] == old)
        near = within(np.where(of_old, _bits(after[once]), np.uint16(0)), reach)
        counts |= (before[twice] == old) & _has(near, after[twice])
    codes = codes[twice]
    return np.where((codes == NODATA) | counts, codes, np.uint8(UNCHANGED))


def _pairs(before: NDArray[np.uint8], after: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """The code of each pixel's pair of labels, whether it counts or not."""
    table = np.full((NODATA + 1, NODATA + 1), NODATA, np.uint8)
    table[:classes, :classes] = transition_codes(classes)
    pairs: NDArray[np.uint8] = table[before, after]
    return pairs


def _sure(
    before: NDArray[np.uint8], after: NDArray[np.uint8], codes: NDArray[np.uint8], reach: tuple[int, int]
) -> NDArray[np.bool_]:
    """Which pixels, `reach` inside the arrays, have changed for sure: never one that a date does not see."""
    once = _inside(reach, 1)
    was_near, is_near = within(_bits(before), reach), within(_bits(after), reach)
    sure: NDArray[np.bool_] = (codes[once] != UNCHANGED) & ~_has(was_near, after[once]) & ~_has(is_near, before[once])
    return sure


def _inside(reach: tuple[int, int], times: int) -> tuple[slice, slice]:
    """What is left of an array when so many times the reach is taken off each side."""
    rows, cols = (slice(times * side, -times * side or None) for side in reach)
    return rows, cols


def _bits(labels: NDArray[np.uint8]) -> Bits:
    """The class of each pixel as a set; what is not seen may be any."""
    return np.where(labels == NODATA, ANY, np.uint16(1) << (labels & np.uint8(15)).astype(np.uint16)).astype(np.uint16)


def _has(sets: Bits, labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each pixel's class is in its set."""
    has: NDArray[np.bool_] = (sets & _bits(labels)) != 0
    return has


def within(sets: Bits, reach: tuple[int, int]) -> Bits:
    """The union of the sets within `reach` (rows, cols) of each pixel that lies as far inside the array."""
    return _along(_along(sets, reach[0]).T, reach[1]).T


def _along(sets: Bits, reach: int) -> Bits:
    """Unions of 2 * reach + 1 following rows, each step doubling how many are united."""
    length, have = 2 * reach + 1, 1
    while 2 * have <= length:
        sets, have = sets[:-have] | sets[have:], 2 * have
    return sets if have == length else sets[: have - length] | sets[length - have :]


def joint_confidence(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The product of two probabilities, as codes of 1/250; 255 where one is not known."""
    product = (before.astype(np.uint32) * after + CONFIDENCE_STEPS // 2) // CONFIDENCE_STEPS
    return np.where((before == NODATA) | (after == NODATA), NODATA, product).astype(np.uint8)


def tally(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    areas: NDArray[np.int64],
    classes: int,
) -> NDArray[np.int64]:
    """(2, from, to) area of the pixels of a window (y, x): of those that count or are the same, and of the others.

    `areas` (y,): what a pixel of each row covers, in whole numbers of a small unit, so that sums do not depend on
    their order; below 2**53 in all.
    """
    compared = codes != NODATA
    differs = (before != after) & compared
    tolerated = differs & (codes == UNCHANGED)
    cell = (tolerated[compared] * classes + before[compared]) * classes + after[compared]
    weight = np.broadcast_to(areas[:, None], codes.shape)[compared]
    found = np.bincount(cell.astype(np.int64), weight, 2 * classes * classes)
    return np.rint(found).astype(np.int64).reshape(2, classes, classes)
