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

**Seams.** An object that touches its window's border is not built; its piece keeps its corners, and `geoseg.seams`
makes it whole. Memory follows what lies on the seams.

Shells run counter-clockwise and holes clockwise as seen on the screen, y downwards, so that on a north-up map, y
upwards, they are seen the same way (RFC 7946's right-hand rule). A ring starts at its topmost, then leftmost vertex,
holes are sorted by theirs, and objects by their topmost, then leftmost pixel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoseg.compiled import Compiled
from geoseg.memory import no_collecting
from geoseg.pieces import NODATA_PART, Border, Objects, Parts, Piece, Rim, Scores, Vertices, block_of
from geoseg.raster import NODATA
from geoseg.rings import IS_CORNER, with_geometry
from geoseg.runs import NO_PART, Runs, first_of, pad, sides
from geoseg.seams import join
from geoseg.separate import Watershed, separate
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoseg.separate import Separation

__all__ = ["Objects", "Piece", "join", "polygonise", "polygonise_whole"]

AT_ONCE: Final = 4096
"""Rows and columns that `polygonise_whole` looks at in one go; their memory is used again for the next ones."""

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]


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
        complete=with_geometry(complete, _renumber(vertices.select(~open_ended), ~at_border)),
        parts=parts.select(at_border),
        vertices=_renumber(vertices.select(open_ended), at_border),
        border=_renumber_border(border, at_border),
        scores=_scores(water, component, at_border) if water else None,
        rim=None if confidence is None else Rim(*sides(confidence)),
    )


@no_collecting()
def polygonise_whole(
    labels: NDArray[np.uint8],
    *,
    background: int | None = 0,
    confidence: NDArray[np.uint8] | None = None,
    score: NDArray[np.uint8] | None = None,
    separation: Separation | None = None,
) -> Objects:
    """All objects of a scene that fits in memory; the arguments are those of `polygonise`.

    It is looked at in windows of `AT_ONCE`, which takes half the memory, and the time that the other half takes.
    """
    shape = (labels.shape[0], labels.shape[1])
    for raster, name in ((labels, "labels"), (confidence, "confidence"), (score, "score")):
        if raster is not None:
            _check(raster, Window.of_shape(shape), name)
    complete: list[Objects] = []

    def seams() -> Iterator[Piece]:
        for window in Window.of_shape(shape).blocks((AT_ONCE, AT_ONCE)):
            piece = polygonise(
                labels[window.slices],
                window,
                background=background,
                confidence=None if confidence is None else confidence[window.slices],
                score=None if score is None else score[window.slices],
                separation=separation,
            )
            complete.append(piece.complete)
            yield piece.without_complete()

    joined = join(seams(), shape)
    return Objects.concatenate([*complete, joined])


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
        block=block_of(row, col),
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
        part[seen == NODATA] = NODATA_PART
        lines.append(part)
    return Border(*lines)


def _renumber(vertices: Vertices, kept: _Bools) -> Vertices:
    """Count the vertices' parts among those that are `kept`."""
    return replace(vertices, part=(np.cumsum(kept, dtype=np.int32) - 1)[vertices.part])


def _renumber_border(border: Border, kept: _Bools) -> Border:
    """Count the border's parts among those that are `kept`, as all of them are."""
    # The two codes for no part are the last two places of the table.
    table = np.concatenate([np.cumsum(kept, dtype=np.int32) - 1, [NODATA_PART, NO_PART]]).astype(np.int32)
    return Border(table[border.top], table[border.bottom], table[border.left], table[border.right])


def _vertices(runs: Runs, component: NDArray[np.int32], window: Window) -> Vertices:
    """All corners of all components, sorted by component, row, column."""
    start = np.append(runs.start, len(runs.flat))
    found = _find_corners(start, component, IS_CORNER, runs.width)
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
