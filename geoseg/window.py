"""`Window`: a half-open rectangle of pixels, always in row, column order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, order=True)
class Window:
    """The pixels with `row_start <= row < row_stop` and `col_start <= col < col_stop`, counted from a scene's origin.

    A window may reach beyond the scene; it may not be empty.
    """

    row_start: int
    row_stop: int
    col_start: int
    col_stop: int

    def __post_init__(self) -> None:
        """Refuse empty and inverted windows."""
        if self.row_start >= self.row_stop or self.col_start >= self.col_stop:
            msg = f"a window needs at least one pixel, got rows {self.row_start}:{self.row_stop}, "
            raise ValueError(msg + f"columns {self.col_start}:{self.col_stop}")

    @classmethod
    def of_shape(cls, shape: tuple[int, int]) -> Window:
        """All of a raster of this (rows, columns) shape.

        >>> Window.of_shape((2, 3))
        Window(row_start=0, row_stop=2, col_start=0, col_stop=3)
        """
        return cls(0, shape[0], 0, shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.row_stop - self.row_start, self.col_stop - self.col_start

    @property
    def row_range(self) -> tuple[int, int]:
        """First row, and the row behind the last."""
        return self.row_start, self.row_stop

    @property
    def col_range(self) -> tuple[int, int]:
        """First column, and the column behind the last."""
        return self.col_start, self.col_stop

    @property
    def size(self) -> int:
        """How many pixels there are."""
        return (self.row_stop - self.row_start) * (self.col_stop - self.col_start)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the window into an array whose first pixel is the scene's origin."""
        return slice(self.row_start, self.row_stop), slice(self.col_start, self.col_stop)

    def relative_to(self, other: Window) -> Window:
        """The same pixels, counted from the first pixel of `other`."""
        return Window(
            self.row_start - other.row_start,
            self.row_stop - other.row_start,
            self.col_start - other.col_start,
            self.col_stop - other.col_start,
        )

    def intersection(self, other: Window) -> Window | None:
        """The pixels that lie in both, or None.

        >>> Window(0, 4, 0, 4).intersection(Window(2, 9, 3, 9))
        Window(row_start=2, row_stop=4, col_start=3, col_stop=4)
        """
        rows = max(self.row_start, other.row_start), min(self.row_stop, other.row_stop)
        cols = max(self.col_start, other.col_start), min(self.col_stop, other.col_stop)
        return Window(*rows, *cols) if rows[0] < rows[1] and cols[0] < cols[1] else None

    def blocks(self, shape: tuple[int, int]) -> Iterator[Window]:
        """Windows of at most this shape that are disjoint and cover this one, row by row.

        >>> [window.col_range for window in Window(0, 2, 0, 3).blocks((2, 2))]
        [(0, 2), (2, 3)]
        """
        for row in range(self.row_start, self.row_stop, shape[0]):
            for col in range(self.col_start, self.col_stop, shape[1]):
                yield Window(row, min(row + shape[0], self.row_stop), col, min(col + shape[1], self.col_stop))

    def rows(self, start: int, stop: int) -> Window:
        """The same columns, other rows."""
        return Window(start, stop, self.col_start, self.col_stop)
