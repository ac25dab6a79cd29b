"""Objects that cross the borders between windows, made whole from their parts.

Only what lies on the seams is looked at: the outermost pixels of the windows, and the corners of the objects that reach
them. `join` adds the masks of one object at one vertex, which own different pixels, drops what is no corner any more
and outlines what is left as `geoseg.rings` does. Two pixels side by side are no corner, so a piece says nothing of a
vertex where it has those; nor need it, for another piece's pixel there makes a corner with them and without them, and
its two pixels there make none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoseg.pieces import NODATA_PART, Objects, Parts, Piece, Scores, Vertices
from geoseg.raster import NODATA
from geoseg.rings import IS_CORNER, with_geometry
from geoseg.runs import NO_PART, connect, first_of
from geoseg.separate import Edges, Separation, heights, merge, pair_keys
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

__all__ = ["join"]

VERTICES_AT_ONCE: Final = 1 << 17
"""Of objects that are joined: some hundred bytes of memory for each while they are outlined."""

_Ints: TypeAlias = NDArray[np.int64]
_Index: TypeAlias = "NDArray[np.bool_] | NDArray[np.integer[Any]] | slice"


def join(pieces: Iterable[Piece], scene_shape: tuple[int, int]) -> Objects:
    """Make the objects whole that touch the border of a piece's window; what is `complete` is not repeated.

    The windows must cover the scene of (rows, columns) `scene_shape` once; they need not form a grid, and their order
    is of no consequence. Only what lies on the seams is kept while `pieces` is being read.
    """
    seams = _Seams.of(pieces, scene_shape)
    parts = seams.parts
    contacts = seams.contacts()
    firsts, seconds = contacts.first, contacts.second
    same = (firsts >= 0) & (seconds >= 0)
    same[same] = parts.label[firsts[same]] == parts.label[seconds[same]]
    seams.add_edges()
    parts.touches_nodata[firsts[(firsts >= 0) & (seconds == NODATA_PART)]] = True
    parts.touches_nodata[seconds[(seconds >= 0) & (firsts == NODATA_PART)]] = True
    order = np.lexsort((parts.first_col, parts.first_row))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    if seams.separation:
        seams.mark_blocks(firsts[same], seconds[same])
    number = seams.numbers(contacts.select(same), place)
    objects, owner = _merge(parts.select(order), number), number[place[seams.vertices.part]]
    return Objects.concatenate(
        with_geometry(objects.select(slice(first, stop)), _add_masks(replace(few, part=few.part - np.int32(first))))
        for first, stop, few in _few_at_once(replace(seams.vertices, part=owner), len(objects))
    )


def _few_at_once(vertices: Vertices, count: int) -> Iterator[tuple[int, int, Vertices]]:
    """The vertices of `count` parts in portions of about `VERTICES_AT_ONCE`: from which part to which, and theirs."""
    order = np.argsort(vertices.part, kind="stable")
    ends = np.cumsum(np.bincount(vertices.part, minlength=count))
    first = begin = 0
    while first < count:
        stop = max(first + 1, int(np.searchsorted(ends, begin + VERTICES_AT_ONCE, side="right")))
        yield first, stop, vertices.select(order[begin : ends[stop - 1]])
        first, begin = stop, int(ends[stop - 1])


def _merge(parts: Parts, number: NDArray[np.int32]) -> Parts:
    """Add up the sorted parts that have the same number."""
    count = int(number.max(initial=-1)) + 1
    merged = parts.select(first_of(number, count))
    for name in ("pixels", "confidence_sum", "edge_sum", "edge_sides"):
        total: _Ints = getattr(merged, name)
        total[:] = 0
        np.add.at(total, number, getattr(parts, name))
    np.minimum.at(merged.confidence_min, number, parts.confidence_min)
    merged.touches_nodata[number[parts.touches_nodata]] = True
    merged.touches_edge[number[parts.touches_edge]] = True
    return merged


# --- the sides of windows


@dataclass(frozen=True, eq=False)
class _Line:
    """Pixels on one kind of side, of all windows: where they are, their score, the number of their part or -2."""

    key: _Ints
    part: _Ints
    score: NDArray[np.uint8]

    def select(self, index: _Index) -> _Line:
        """Those that a mask (n,) or an array of places picks."""
        return _Line(self.key[index], self.part[index], self.score[index])

    def labels_at(self, keys: _Ints, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels of the objects at keys, `label` being that of each part; 255 where there is none."""
        order = np.argsort(self.key)
        place = np.minimum(np.searchsorted(self.key, keys, sorter=order), len(order) - 1)
        found = np.full(len(keys), NODATA, np.uint8)
        if len(order):
            at = order[place]
            there = (self.key[at] == keys) & (self.part[at] >= 0)
            found[there] = label[self.part[at[there]]]
        return found


_BEYOND: Final = {"top": ("bottom", -1, 0), "bottom": ("top", 1, 0), "left": ("right", 0, -1), "right": ("left", 0, 1)}
"""What lies beyond a side of a window: a side of another one, so many rows and columns further."""


@dataclass(frozen=True, eq=False)
class _Known:
    """Confidence of all pixels on one kind of side, of all windows, object or not: a byte for each."""

    start: _Ints
    """(windows,): where the pixels of each begin, as `places` counts them; ascending."""
    offset: _Ints
    """(windows + 1,): where they begin among the codes."""
    codes: NDArray[np.uint8]

    @classmethod
    def of(cls, pieces: Sequence[Piece], side: str, scene_shape: tuple[int, int]) -> _Known:
        """Of the windows in which any is known."""
        told = [(_first_place(p.window, side, scene_shape), getattr(p.rim, side)) for p in pieces if p.rim]
        told.sort(key=lambda pair: pair[0])
        codes = [codes for _, codes in told]
        start = np.array([first for first, _ in told], np.int64)
        offset = np.cumsum([0, *map(len, codes)])
        return cls(start, offset, np.concatenate([np.empty(0, np.uint8), *codes]))

    def find(self, places: _Ints) -> NDArray[np.uint8]:
        """Codes at places; 255 where none is known."""
        if not len(self.codes):
            return np.full(len(places), NODATA, np.uint8)
        window = np.maximum(np.searchsorted(self.start, places, side="right") - 1, 0)
        inside = places - self.start[window]
        there = (inside >= 0) & (inside < np.diff(self.offset)[window])
        return np.where(there, self.codes[np.where(there, self.offset[window] + inside, 0)], np.uint8(NODATA))


def _first_place(window: Window, side: str, scene_shape: tuple[int, int]) -> int:
    """Where the pixels along one side of a window begin: those of a row, or of a column, are counted one by one."""
    if side in {"top", "bottom"}:
        return (window.row_start if side == "top" else window.row_stop - 1) * scene_shape[1] + window.col_start
    return (window.col_start if side == "left" else window.col_stop - 1) * scene_shape[0] + window.row_start


@dataclass(frozen=True, eq=False)
class _Seams:
    """All that touches the border of a window, numbered through. A pixel's key is row * (scene's columns + 1) + col."""

    parts: Parts
    vertices: Vertices
    top: _Line
    bottom: _Line
    left: _Line
    right: _Line
    stride: int
    """Difference between the keys of a pixel and of the one below; a row's last pixel and the next one's first differ
    by two."""
    separation: Separation | None
    links: Edges
    seed_pixels: _Ints
    known: dict[str, _Known]
    """By side."""
    scene_shape: tuple[int, int]

    @classmethod
    def of(cls, pieces: Iterable[Piece], scene_shape: tuple[int, int]) -> _Seams:
        """Number all parts through and mark those at the scene's edge."""
        kept = [piece.without_complete() for piece in pieces]
        _check_cover([piece.window for piece in kept], scene_shape)
        offsets = np.cumsum([0, *(len(piece.parts) for piece in kept)])
        stride = scene_shape[1] + 1
        sides = {side: _gather(kept, offsets, side, stride) for side in ("top", "bottom", "left", "right")}
        scores = [piece.scores for piece in kept if piece.scores]
        seams = cls(
            parts=_chain([p.parts for p in kept]),
            vertices=_chain_vertices(kept, offsets),
            **sides,
            stride=stride,
            separation=_same_separation(kept),
            links=_chain_links(scores, offsets),
            seed_pixels=np.concatenate([np.empty(0, np.int64), *(s.seed_pixels for s in scores)]),
            known={side: _Known.of(kept, side, scene_shape) for side in _BEYOND},
            scene_shape=scene_shape,
        )
        seams._mark_edge(scene_shape)
        return seams

    def _mark_edge(self, scene_shape: tuple[int, int]) -> None:
        """Note which parts touch the edge of the scene."""
        rows, cols = scene_shape
        at_edge = (
            self.top.part[self.top.key < cols],
            self.bottom.part[self.bottom.key >= (rows - 1) * self.stride],
            self.left.part[self.left.key % self.stride == 0],
            self.right.part[self.right.key % self.stride == cols - 1],
        )
        for part in at_edge:
            self.parts.touches_edge[part[part >= 0]] = True

    def contacts(self) -> Edges:
        """Of all pairs of pixels of objects or nodata that face each other across a seam: parts or -2, and scores."""
        return Edges.concatenate(
            [_facing(self.bottom, self.top, self.stride, 1), _facing(self.right, self.left, self.stride, 0)]
        )

    def add_edges(self) -> None:
        """Add to the parts' edges the pixels' sides along the seams beyond which lies another label."""
        if not any(len(known.codes) for known in self.known.values()):
            return
        for side, (other, down, along) in _BEYOND.items():
            line, beyond = getattr(self, side), getattr(self, other)
            line = line.select(line.part >= 0)
            row, col = np.divmod(line.key, self.stride)
            rows, cols = self.scene_shape
            if down:
                own, facing = row * cols + col, (row + down) * cols + col
            else:
                own, facing = col * rows + row, (col + along) * rows + row
            code = self.known[other].find(facing)
            label = beyond.labels_at(line.key + down * self.stride + along, self.parts.label)
            counted = (code != NODATA) & (label != self.parts.label[line.part])
            both = self.known[side].find(own)[counted].astype(np.int64) + code[counted]
            np.add.at(self.parts.edge_sum, line.part[counted], both)
            np.add.at(self.parts.edge_sides, line.part[counted], 1)

    def mark_blocks(self, firsts: _Ints, seconds: _Ints) -> None:
        """Give one name to all blocks that hang together, given the parts that do so across the seams."""
        names, block = np.unique(self.parts.block, return_inverse=True)
        number = connect(len(names), block[firsts], block[seconds])
        self.parts.block[:] = names[first_of(number, int(number.max(initial=-1)) + 1)][number[block]]

    def numbers(self, contacts: Edges, place: _Ints) -> NDArray[np.int32]:
        """(parts,): the number of each one's object, if the parts are sorted so that each has its `place`."""
        pairs = contacts.between(place)
        if self.separation is None:
            return connect(len(place), pairs.first, pairs.second)
        seed_pixels = np.empty_like(self.seed_pixels)
        seed_pixels[place] = self.seed_pixels
        return merge(Edges.concatenate([pairs, self.links.between(place)]), seed_pixels, self.separation)


def _facing(before: _Line, behind: _Line, stride: int, down: int) -> Edges:
    """Parts and scores of the pixels of two lines where the second lies right behind the first, or below it."""
    step = stride if down else 1
    key, i, j = np.intersect1d(before.key + step, behind.key, assume_unique=True, return_indices=True)
    place = pair_keys(*np.divmod(key - step, stride), down)
    return Edges(before.part[i], behind.part[j], heights(before.score[i], behind.score[j]), place)


def _same_separation(pieces: Sequence[Piece]) -> Separation | None:
    """What all pieces agree on."""
    found = {piece.scores.separation if piece.scores else None for piece in pieces}
    if len(found) > 1:
        msg = f"the pieces were parted in different ways: {', '.join(sorted(map(str, found)))}"
        raise ValueError(msg)
    return found.pop() if found else None


def _chain_links(scores: Sequence[Scores], offsets: _Ints) -> Edges:
    """All links, their parts numbered through."""
    many = [s.links for s in scores]
    return Edges.concatenate(
        replace(links, first=links.first + offset, second=links.second + offset)
        for links, offset in zip(many, offsets, strict=False)
    )


def _chain(parts: Sequence[Parts]) -> Parts:
    """All parts in the order of their pieces, unsorted, in arrays of their own."""
    return Parts(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Parts)})


def _chain_vertices(pieces: Sequence[Piece], offsets: _Ints) -> Vertices:
    """All vertices, their parts numbered through."""
    many = [piece.vertices for piece in pieces]
    return Vertices(
        part=np.concatenate([v.part + np.int32(offset) for v, offset in zip(many, offsets, strict=False)]),
        row=np.concatenate([v.row for v in many]),
        col=np.concatenate([v.col for v in many]),
        mask=np.concatenate([v.mask for v in many]),
    )


def _gather(pieces: Sequence[Piece], offsets: _Ints, side: str, stride: int) -> _Line:
    """One side of all pieces, their parts numbered through; without what is no object, which is most of it."""
    keys, parts, scores = [], [], []
    for piece, offset in zip(pieces, offsets, strict=False):
        part = getattr(piece.border, side)
        some = np.flatnonzero(part != NO_PART)
        part = part[some].astype(np.int64)
        scores.append(getattr(piece.scores, side)[some] if piece.scores else np.zeros(len(part), np.uint8))
        keys.append(_keys(piece.window, side, stride)[some])
        parts.append(np.where(part >= 0, part + offset, part))
    return _Line(np.concatenate(keys), np.concatenate(parts), np.concatenate(scores))


def _keys(window: Window, side: str, stride: int) -> _Ints:
    """Keys of the pixels along one side of a window."""
    if side in {"top", "bottom"}:
        row = window.row_start if side == "top" else window.row_stop - 1
        return row * stride + np.arange(window.col_start, window.col_stop)
    col = window.col_start if side == "left" else window.col_stop - 1
    return np.arange(window.row_start, window.row_stop) * stride + col


def _check_cover(windows: Sequence[Window], scene_shape: tuple[int, int]) -> None:
    """Refuse windows that do not cover the scene exactly once.

    How often a pixel is covered is the double running sum of +1 and -1 at the windows' corners. So the windows cover
    the scene once if and only if their corners, less the scene's, cancel.
    """
    boxes = np.array(
        [(w.row_start, w.row_stop, w.col_start, w.col_stop) for w in (*windows, Window.of_shape(scene_shape))]
    )
    sign = np.array([1, -1, -1, 1]) * np.append(np.ones(len(windows), np.int64), -1)[:, np.newaxis]
    corners = np.stack([boxes[:, [0, 0, 1, 1]], boxes[:, [2, 3, 2, 3]]], axis=-1).reshape(-1, 2)
    distinct, place = np.unique(corners, axis=0, return_inverse=True)
    total = np.zeros(len(distinct), np.int64)
    np.add.at(total, place, sign.ravel())
    if total.any():
        row, col = distinct[np.flatnonzero(total)[0]]
        msg = f"the pieces do not cover the scene of shape {scene_shape} once: see row {row}, column {col}; "
        raise ValueError(msg + "where nothing was predicted, a piece of nodata is needed")


def _add_masks(vertices: Vertices) -> Vertices:
    """Merge the vertices of one part in one place, and keep the corners; sorted by part, row, column."""
    ordered = vertices.select(np.lexsort((vertices.col, vertices.row, vertices.part)))
    is_new = np.ones(len(ordered.mask), np.bool_)
    is_new[1:] = np.diff(ordered.part) | np.diff(ordered.row) | np.diff(ordered.col)
    first = np.flatnonzero(is_new)
    if len(first) == 0:
        return ordered
    merged = replace(ordered.select(first), mask=np.add.reduceat(ordered.mask, first, dtype=np.uint8))
    return merged.select(IS_CORNER[merged.mask])
