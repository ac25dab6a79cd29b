"""Exact polygons of a label raster, whole or piece by piece.

Objects are the 4-connected components of one label. Their polygons follow the pixels' sides exactly, in the scene's
pixel corners: x is the column, y is the row and grows downwards. `polygonise` looks at one window, `join` makes the
objects whole that cross the borders between windows, and the two together give the same objects, bit for bit, however
the scene is cut. All loops over pixels, vertices and rings are compiled (see `geoseg.compiled`).

**Components.** The raster is cut into horizontal runs of equal label. Runs are linked where they meet in neighbouring
rows, and union-find over the runs finds the components of all classes at once. From here on all is sparse: whatever is
asked of a pixel is looked up in the sorted list of runs, and no raster of component numbers exists.

**Corners.** For a lattice vertex and a component, a 4-bit mask says which of the vertex's four pixels the component
owns. One bit or three make a corner. Two opposite bits make a saddle: two corners of the component in one place.

**Rings.** Along a row, the corners of a component in order of their column are left, right, left, right: the ends of
its horizontal edges; along a column the same gives its vertical edges (O'Rourke 1988, "Uniqueness of orthogonal
connect-the-dots", in Computational Morphology). So one look at the corners in their order links all rings of all
components, and each is walked once. The two corners of a saddle are linked round its two foreign pixels, not round
its own: a component is 4-connected, so the two foreign pixels lie in different gaps or one of them outside, each ring
passes a vertex at most once, and rings meet in points only, which is what a valid polygon needs.

**Seams.** An object that touches its window's border is not built; its piece keeps its corners. `join` adds the masks
of one object at one vertex, which own different pixels, drops what is no corner any more and runs the same linking. Two
pixels side by side are no corner, so a piece says nothing of a vertex where it has those; nor need it, for another
piece's pixel there makes a corner with them and without them, and its two pixels there make none. Memory follows what
lies on the seams.

Shells run counter-clockwise and holes clockwise as seen on the screen, y downwards, so that on a north-up map, y
upwards, they are seen the same way (RFC 7946's right-hand rule). A ring starts at its topmost, then leftmost vertex,
holes are sorted by theirs, and objects by their topmost, then leftmost pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.compiled import Compiled
from geoseg.memory import no_collecting
from geoseg.raster import NODATA
from geoseg.runs import NO_PART, Runs, connect, first_of, pad, sides
from geoseg.separate import Edges, Separation, Watershed, heights, merge, pair_keys, separate
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Border", "Objects", "Parts", "Piece", "Vertices", "join", "polygonise", "polygonise_whole"]

VERTICES_AT_ONCE: Final = 1 << 17
"""Of objects that are joined: some hundred bytes of memory for each while they are outlined."""

_NODATA_PART: Final = -2

# Bits of a vertex's mask, one for each pixel round it, in the order of the rows of `Runs.around`.
_SOUTH_EAST: Final = 8
_DIAGONAL: Final = 9
_ANTIDIAGONAL: Final = 6

_IS_CORNER: Final[NDArray[np.bool_]] = np.isin(np.arange(16), [1, 2, 4, 8, 7, 11, 13, 14, _DIAGONAL, _ANTIDIAGONAL])

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]
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
        return chained.select(np.argsort(_block(chained.first_row, chained.first_col), kind="stable"))


@dataclass(frozen=True, eq=False, kw_only=True)
class Objects(Parts):
    """Whole objects with their outlines, sorted by their first pixel: a struct of arrays of length n."""

    geometry: NDArray[np.object_]
    """Valid shapely Polygons in pixel corners, x = column and y = row, without collinear vertices."""


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


def polygonise(
    labels: NDArray[np.uint8],
    window: Window,
    *,
    background: int | None = 0,
    confidence: NDArray[np.uint8] | None = None,
    score: NDArray[np.uint8] | None = None,
    separation: Separation | None = None,
) -> Piece:
    """Find the objects in one window of a scene, and outline those that cannot reach beyond it.

    `labels`, `confidence` and `score` are uint8 arrays of the window's shape. Label 255 is nodata, and a confidence of
    255; `background` is the label that makes no objects, None if all do. With a `score`, which is high in the middle of
    each object (codes of 1/250, 255 = nodata), and a `separation`, objects that touch are parted, see
    `geoseg.separate`.
    """
    _check(labels, window, "labels")
    if confidence is not None:
        _check(confidence, window, "confidence")
    if (score is None) != (separation is None):
        msg = "a score and a separation go together, got only one of them"
        raise ValueError(msg)
    whole = Runs.of(_without(labels, background))
    block = whole.components()
    water, runs, component = None, whole, block
    if score is not None and separation is not None:
        _check(score, window, "score")
        water = separate(whole, block, score, window, separation)
        runs, component = water.runs, water.runs.components()
    parts = _describe(runs, component, window, labels, confidence)
    border = _border(runs, component, labels)
    at_border = np.zeros(len(parts), np.bool_)
    for line in (border.top, border.bottom, border.left, border.right):
        at_border[line[line >= 0]] = True
    if water:
        parts, at_border = _with_company(parts, at_border, block[whole.find(_places(parts, whole, window))])
    vertices = _vertices(runs, component, window)
    open_ended = at_border[vertices.part]
    complete = parts.select(~at_border)
    return Piece(
        window=window,
        complete=_with_geometry(complete, _renumber(vertices.select(~open_ended), ~at_border)),
        parts=parts.select(at_border),
        vertices=_renumber(vertices.select(open_ended), at_border),
        border=_renumber_border(border, at_border),
        scores=_scores(water, component, at_border) if water else None,
        rim=None if confidence is None else Rim(*sides(confidence)),
    )


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
    parts.touches_nodata[firsts[(firsts >= 0) & (seconds == _NODATA_PART)]] = True
    parts.touches_nodata[seconds[(seconds >= 0) & (firsts == _NODATA_PART)]] = True
    order = np.lexsort((parts.first_col, parts.first_row))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    if seams.separation:
        seams.mark_blocks(firsts[same], seconds[same])
    number = seams.numbers(contacts.select(same), place)
    objects, owner = _merge(parts.select(order), number), number[place[seams.vertices.part]]
    return Objects.concatenate(
        _with_geometry(objects.select(slice(first, stop)), _add_masks(replace(few, part=few.part - np.int32(first))))
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


def polygonise_whole(
    labels: NDArray[np.uint8],
    *,
    background: int | None = 0,
    confidence: NDArray[np.uint8] | None = None,
    score: NDArray[np.uint8] | None = None,
    separation: Separation | None = None,
) -> Objects:
    """All objects of a scene that fits in memory; the arguments are those of `polygonise`."""
    shape = (labels.shape[0], labels.shape[1])
    piece = polygonise(
        labels,
        Window.of_shape(shape),
        background=background,
        confidence=confidence,
        score=score,
        separation=separation,
    )
    return Objects.concatenate([piece.complete, join([piece], shape)])


def _check(raster: NDArray[np.uint8], window: Window, name: str) -> None:
    """Refuse a raster that is not uint8 or not of the window's shape."""
    if raster.dtype != np.uint8 or raster.shape != window.shape:
        msg = f"{name} must be a uint8 array of shape {window.shape}, got {raster.dtype} of shape {raster.shape}"
        raise ValueError(msg)


# --- components ------------------------------------------------------------------------------------------------------


def _places(parts: Parts, runs: Runs, window: Window) -> _Ints:
    """The parts' first pixels as places in the padded window."""
    return (parts.first_row - window.row_start + 1) * runs.width + parts.first_col - window.col_start + 1


def _without(labels: NDArray[np.uint8], background: int | None) -> NDArray[np.uint8]:
    """The labels, with 255 for the background, too; several times as fast as np.where."""
    return labels if background is None else np.maximum(labels, (labels == background) * np.uint8(NODATA))


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


def _describe(
    runs: Runs,
    component: NDArray[np.int32],
    window: Window,
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8] | None,
) -> Parts:
    """The components, in order."""
    count = int(component.max(initial=-1)) + 1
    known = np.zeros(1, np.uint8) if confidence is None else pad(confidence, NODATA).ravel()
    # in the runs the background is 255, too
    nodata = pad(labels, 0).ravel() if (labels == NODATA).any() else np.zeros(1, np.uint8)
    first, pixels, touches = _add_up(runs.start, component, count, runs.width, nodata)
    total, least, edge_sum, edge_sides = _sum_confidence(runs.start, component, count, runs.width, runs.flat, known)
    row, col = np.divmod(first, runs.width)
    row, col = row - 1 + window.row_start, col - 1 + window.col_start
    return Parts(
        label=runs.flat[first],
        pixels=pixels,
        first_row=row,
        first_col=col,
        confidence_sum=total,
        confidence_min=least,
        edge_sum=edge_sum,
        edge_sides=edge_sides,
        block=_block(row, col),
        touches_nodata=touches,
        touches_edge=np.zeros(count, np.bool_),
    )


@Compiled
def _add_up(
    start: _Ints, component: NDArray[np.int32], count: int, width: int, labels: NDArray[np.uint8]
) -> tuple[_Ints, _Ints, _Bools]:
    """Of each component: its first pixel, its pixels, and whether a 4-neighbour is nodata.

    `labels` are padded as the runs are; of length 1 where there is no nodata.
    """
    first = np.full(count, -1, np.int64)
    pixels = np.zeros(count, np.int64)
    touches = np.zeros(count, np.bool_)
    for run in range(len(start) - 1):  # the last one belongs to the frame
        one = component[run]
        if one < 0:
            continue
        if first[one] < 0:
            first[one] = start[run]
        pixels[one] += start[run + 1] - start[run]
        if len(labels) > 1 and not touches[one]:
            beside = labels[start[run] - 1] == NODATA or labels[start[run + 1]] == NODATA
            for pixel in range(start[run], start[run + 1]):
                beside |= labels[pixel - width] == NODATA or labels[pixel + width] == NODATA
            touches[one] = beside
    return first, pixels, touches


@Compiled
def _sum_confidence(  # noqa: C901, PLR0912  # compiled functions call no others
    start: _Ints,
    component: NDArray[np.int32],
    count: int,
    width: int,
    flat: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
) -> tuple[_Ints, NDArray[np.uint8], _Ints, _Ints]:
    """Of each component: the sum and the least of its confidence, and what `Parts` has of its edge.

    `confidence` is padded with 255 as the runs are, or of length 1 where none is known.
    """
    total, edge, sides = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    if len(confidence) == 1:
        return total, np.zeros(count, np.uint8), edge, sides
    least = np.full(count, 255, np.uint8)
    beside = np.zeros(2, np.int64)  # the runs above and below where a run begins
    for run in range(len(start) - 1):  # the last one belongs to the frame
        one = component[run]
        if one < 0:
            continue
        begin, stop, label = start[run], start[run + 1], flat[start[run]]
        of_run, low = np.uint32(0), least[one]
        for code in confidence[begin:stop]:  # in small numbers, and one thing at a time: several pixels in one go
            of_run += np.uint32(code)
        for code in confidence[begin:stop]:
            low = code if code < low else low  # noqa: FURB136  # twice as fast as min here
        total[one] += of_run
        least[one] = low
        for end, beyond in ((begin, begin - 1), (stop - 1, stop)):
            if flat[beyond] != label and confidence[beyond] != NODATA:
                edge[one] += np.int64(confidence[end]) + np.int64(confidence[beyond])
                sides[one] += 1
        for side, step in ((0, -width), (1, width)):
            while beside[side] + 1 < len(start) and start[beside[side] + 1] <= begin + step:
                beside[side] += 1
            other = beside[side]
            while other < len(start) and start[other] < stop + step:
                if flat[start[other]] != label:
                    last = min(start[other + 1], stop + step) if other + 1 < len(start) else stop + step
                    for place in range(max(start[other], begin + step), last):
                        if confidence[place] != NODATA:
                            edge[one] += np.int64(confidence[place - step]) + np.int64(confidence[place])
                            sides[one] += 1
                other += 1
    return total, least, edge, sides


def _block(row: _Ints, col: _Ints) -> _Ints:
    """What a block whose first pixel is this one is called."""
    return (row << 32) + col


def _with_company(parts: Parts, at_border: _Bools, block: NDArray[np.int32]) -> tuple[Parts, _Bools]:
    """Name the parts' blocks, numbers of which are given, and let all of a block be at the border if one part is."""
    first = first_of(block, int(block.max(initial=-1)) + 1)  # both are sorted by their first pixel, so it is the same
    open_block = np.zeros(len(first), np.bool_)
    open_block[block[at_border]] = True
    return replace(parts, block=parts.block[first][block]), open_block[block]


def _scores(water: Watershed, component: NDArray[np.int32], at_border: _Bools) -> Scores:
    """What the watershed tells of the parts that are at the border."""
    place = np.cumsum(at_border) - 1
    seed_pixels = np.zeros(len(at_border), np.int64)
    seed_pixels[component[water.runs.find(water.seeds)]] = water.seed_pixels
    first, second = (component[water.runs.find(pixels)] for pixels in (water.links.first, water.links.second))
    links = replace(water.links, first=place[first], second=place[second])
    return Scores(water.separation, seed_pixels[at_border], links, *water.sides)


# --- vertices and the window's border --------------------------------------------------------------------------------


def _border(runs: Runs, component: NDArray[np.int32], labels: NDArray[np.uint8]) -> Border:
    """Components along the four sides of the window."""
    lines = []
    for pixels, seen in zip(runs.sides(), sides(labels), strict=True):
        part = component[runs.find(pixels)]
        part[seen == NODATA] = _NODATA_PART
        lines.append(part)
    return Border(*lines)


def _renumber(vertices: Vertices, kept: _Bools) -> Vertices:
    """Count the vertices' parts among those that are `kept`."""
    return replace(vertices, part=(np.cumsum(kept, dtype=np.int32) - 1)[vertices.part])


def _renumber_border(border: Border, kept: _Bools) -> Border:
    """Count the border's parts among those that are `kept`, as all of them are."""
    # The two codes for no part are the last two places of the table.
    table = np.concatenate([np.cumsum(kept, dtype=np.int32) - 1, [_NODATA_PART, NO_PART]]).astype(np.int32)
    return Border(table[border.top], table[border.bottom], table[border.left], table[border.right])


def _vertices(runs: Runs, component: NDArray[np.int32], window: Window) -> Vertices:
    """All corners of all components, sorted by component, row, column."""
    start = np.append(runs.start, len(runs.flat))
    found = _find_corners(start, component, _IS_CORNER, runs.width)
    part, row, col, mask = _by_part(*found, int(component.max(initial=-1)) + 1)
    row += np.int32(window.row_start)
    col += np.int32(window.col_start)
    return Vertices(part, row, col, mask)


@Compiled
def _find_corners(  # noqa: C901  # compiled functions call no others
    start: _Ints,  # and where the raster ends
    component: NDArray[np.int32],
    is_corner: _Bools,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """In row-major order, counted from the window's corner: component, row, column, mask.

    Between two rows of pixels there is nothing to see but where a run starts in one of them.
    """
    part, row, col = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32)
    mask = np.empty(0, np.uint8)
    owners, masks = np.empty(4, np.int32), np.empty(4, np.uint8)
    count = above = below = 0
    for line in range(start[-1] // width - 1):
        if count + 4 * width > len(part):  # room for a whole line: looked at for each vertex it takes most of the time
            more = count + 4 * width
            part = np.concatenate((part, np.empty(more, np.int32)))
            row = np.concatenate((row, np.empty(more, np.int32)))
            col = np.concatenate((col, np.empty(more, np.int32)))
            mask = np.concatenate((mask, np.empty(more, np.uint8)))
        place = line * width
        end = place + width - 1
        while place < end:
            # the runs that hold the pixels in the north west and in the south west
            while start[above + 1] <= place:
                above += 1
            while start[below + 1] <= place + width:
                below += 1
            east_above = above + (start[above + 1] == place + 1)
            east_below = below + (start[below + 1] == place + width + 1)
            west, east = component[above], component[east_above]
            south_west, south_east = component[below], component[east_below]
            here = 0
            if west >= 0:
                owners[0] = west
                masks[0] = 1 | (east == west) << 1 | (south_west == west) << 2 | (south_east == west) << 3
                here = 1
            if east >= 0 and east != west:
                owners[here] = east
                masks[here] = 2 | (south_west == east) << 2 | (south_east == east) << 3
                here += 1
            if south_west >= 0 and south_west not in (west, east):
                owners[here] = south_west
                masks[here] = 4 | (south_east == south_west) << 3
                here += 1
            if south_east >= 0 and south_east not in (west, east, south_west):
                owners[here] = south_east
                masks[here] = 8
                here += 1
            for one in range(here):
                if is_corner[masks[one]]:
                    part[count], row[count], col[count] = owners[one], line, place - line * width
                    mask[count] = masks[one]
                    count += 1
            place = min(start[east_above + 1], start[east_below + 1] - width) - 1
    return part[:count].copy(), row[:count].copy(), col[:count].copy(), mask[:count].copy()


@Compiled
def _by_part(
    part: NDArray[np.int32], row: NDArray[np.int32], col: NDArray[np.int32], mask: NDArray[np.uint8], count: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """The same corners, those of each of `count` parts together and in their order; by counting."""
    place = np.zeros(count + 1, np.int64)
    for one in part:
        place[one + 1] += 1
    for one in range(count):
        place[one + 1] += place[one]
    parts, rows, cols, masks = np.empty_like(part), np.empty_like(row), np.empty_like(col), np.empty_like(mask)
    for corner in range(len(part)):
        one = part[corner]
        at = place[one]
        place[one] = at + 1
        parts[at], rows[at], cols[at], masks[at] = one, row[corner], col[corner], mask[corner]
    return parts, rows, cols, masks


# --- rings -----------------------------------------------------------------------------------------------------------


def _with_geometry(parts: Parts, corners: Vertices) -> Objects:
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
        coordinates[place] = coordinates[rings[ring]]
        place += 1
        ring += 1
        rings[ring] = place
    return coordinates[:place].copy(), rings[: ring + 1].copy(), np.cumsum(polygons)


# --- seams -----------------------------------------------------------------------------------------------------------


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
    return merged.select(_IS_CORNER[merged.mask])
