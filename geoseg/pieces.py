"""What is known of the objects in one window: whole ones, and parts that go on beyond it; see `geoseg.polygonise`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable

    from geoseg.separate import Edges, Separation
    from geoseg.window import Window

__all__ = ["NODATA_PART", "Border", "Objects", "Parts", "Piece", "Rim", "Scores", "Vertices", "block_of"]

NODATA_PART: Final = -2

_Ints: TypeAlias = NDArray[np.int64]
_Index: TypeAlias = NDArray[np.bool_] | NDArray[np.integer[Any]] | slice

_DTYPES: Final[dict[str, type[np.generic]]] = {
    "label": np.uint8,
    "pixels": np.int64,
    "first_row": np.int64,
    "first_col": np.int64,
    "confidence_sum": np.int64,
    "confidence_min": np.uint8,
    "edge_sum": np.int64,
    "edge_sides": np.int64,
    "block": np.int64,
    "touches_nodata": np.bool_,
    "touches_edge": np.bool_,
    "geometry": np.object_,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Parts:
    """What is known of n objects, or of n parts of objects, without their outlines: a struct of arrays of length n.

    The first pixel is the topmost, then leftmost one: unique, independent of the tiling, and what everything here is
    sorted by. Rows and columns count from the scene's origin.
    """

    label: NDArray[np.uint8]
    pixels: NDArray[np.int64]
    first_row: NDArray[np.int64]
    first_col: NDArray[np.int64]
    confidence_sum: NDArray[np.int64]
    """Sum of a uint8 confidence over the pixels; 0 if no confidence was given."""
    confidence_min: NDArray[np.uint8]
    """The least of them; 0 if no confidence was given."""
    edge_sum: NDArray[np.int64]
    """Sum of the confidence on both sides of the outline, over all pixels' sides beyond which lies another label."""
    edge_sides: NDArray[np.int64]
    """How many those are. What lies outside the scene, or has no confidence (255), is not among them."""
    block: NDArray[np.int64]
    """The first pixel, row * 2**32 + column, of the connected pixels of one label that the object was parted from; its
    own if it was not. So objects of the same number touch."""
    touches_nodata: NDArray[np.bool_]
    """One of the 4-neighbours of one of the pixels is nodata. What lies outside the scene is not nodata."""
    touches_edge: NDArray[np.bool_]
    """One of the pixels lies at the scene's edge."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.label)

    def select(self, index: _Index) -> Self:
        """Those that a mask (n,) or an array of places picks."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name)[index] for f in fields(self)}
        return replace(self, **columns)

    @classmethod
    def empty(cls) -> Self:
        """Nothing at all, in the right dtypes."""
        return cls(**{f.name: np.empty(0, _DTYPES[f.name]) for f in fields(cls)})

    @classmethod
    def concatenate(cls, parts: Iterable[Self]) -> Self:
        """All of them, sorted by their first pixel."""
        every = [cls.empty(), *parts]
        chained = cls(**{f.name: np.concatenate([getattr(p, f.name) for p in every]) for f in fields(cls)})
        # sorted parts, one after the other: timsort sees that
        return chained.select(np.argsort(block_of(chained.first_row, chained.first_col), kind="stable"))


@dataclass(frozen=True, eq=False, kw_only=True)
class Objects(Parts):
    """Whole objects with their outlines, sorted by their first pixel: a struct of arrays of length n."""

    geometry: NDArray[np.object_]
    """Valid shapely Polygons in pixel corners, x = column and y = row, without collinear vertices."""

    def as_one_block(self) -> Objects:
        """The same, all of which may touch each other."""
        return replace(self, block=np.zeros(len(self), np.int64))


@dataclass(frozen=True, eq=False)
class Vertices:
    """Which of the four pixels round a lattice vertex a part owns: a struct of arrays of length m.

    Vertex (row, col) is the upper left corner of pixel (row, col). The mask's bits are 1 for the pixel in the north
    west, 2 north east, 4 south west, 8 south east.
    """

    part: NDArray[np.int32]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    mask: NDArray[np.uint8]

    def select(self, index: _Index) -> Vertices:
        """Those that a mask (m,) or an array of places picks."""
        return Vertices(self.part[index], self.row[index], self.col[index], self.mask[index])


@dataclass(frozen=True, eq=False)
class Border:
    """The outermost pixels of a window, inside it: the number of each pixel's part, -1 for none, -2 for nodata."""

    top: NDArray[np.int32]
    bottom: NDArray[np.int32]
    left: NDArray[np.int32]
    right: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Rim:
    """The confidence of the outermost pixels of a window, inside it."""

    top: NDArray[np.uint8]
    bottom: NDArray[np.uint8]
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Scores:
    """What `join` needs to know of the scores of one window to part what touches, beside its pieces' parts."""

    separation: Separation
    seed_pixels: NDArray[np.int64]
    """Of each part: the pixels of its seed, or of what may become one; 0 if it has none."""
    links: Edges
    """Between parts that may be one object."""
    top: NDArray[np.uint8]
    bottom: NDArray[np.uint8]
    left: NDArray[np.uint8]
    right: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Piece:
    """What one window of the raster contributes; small, and made to be sent between processes."""

    window: Window
    complete: Objects
    """Objects that touch no side of the window, nor does any that they touch and were parted from."""
    parts: Parts
    """The others, as far as this window sees them; whether they touch the scene's edge is not known yet."""
    vertices: Vertices
    """Of the parts: all corners."""
    border: Border
    scores: Scores | None = None
    """None if what touches is not parted."""
    rim: Rim | None = None
    """None if no confidence was given."""

    def without_complete(self) -> Piece:
        """What `join` needs: all but the objects that are whole already."""
        return replace(self, complete=Objects.empty())


def block_of(row: _Ints, col: _Ints) -> _Ints:
    """What a block whose first pixel is this one is called."""
    return (row << 32) + col
