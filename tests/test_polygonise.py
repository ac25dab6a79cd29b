"""Laws of polygonisation: exact, valid, and the same however the scene is cut."""

from __future__ import annotations

import pickle
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.features import rasterize, shapes
from scipy import ndimage

from geoseg import seams as module
from geoseg.polygonise import NODATA, Objects, Piece, _by_part, join, polygonise, polygonise_whole
from geoseg.separate import Separation
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

LABELS = (0, 1, 2, 3, 77, 254)

# Two holes that meet in a point, a hole that meets the shell in one, and the same mirrored; nested rings.
HOLES_IN_A_ROW = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 0, 1, 1, 1, 1],
        [1, 1, 0, 1, 0, 1],
        [1, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 1, 0],
    ],
    np.uint8,
)
NESTED = np.pad(np.pad(np.pad(np.full((1, 1), 1, np.uint8), 1), 1, constant_values=1), 1)


@st.composite
def rasters(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Up to 6 classes and nodata: noise of single pixels, or blocks with some noise."""
    palette = st.sampled_from(LABELS[: draw(st.integers(1, len(LABELS)))] + (NODATA,) * draw(st.integers(0, 1)))
    side = st.integers(1, 12)
    labels = draw(hnp.arrays(np.uint8, st.tuples(side, side), elements=palette, fill=st.nothing()))
    blocks = draw(st.integers(1, 4))
    labels = labels.repeat(blocks, axis=0).repeat(draw(st.integers(1, 4)) if blocks > 1 else 1, axis=1)
    for place in draw(st.lists(st.integers(0, labels.size - 1), max_size=6)):
        labels.ravel()[place] = draw(palette)
    return labels


BACKGROUNDS = st.sampled_from([0, 0, None, 1, 77])


@st.composite
def covers(draw: st.DrawFn, shape: tuple[int, int]) -> list[Window]:
    """Disjoint windows that cover the shape, by recursive cuts, in any order."""

    def cut(window: Window, depth: int) -> Iterator[Window]:
        rows, cols = window.shape
        by_row = draw(st.booleans()) if rows > 1 and cols > 1 else rows > 1
        if depth == 0 or window.size == 1 or draw(st.integers(0, 5)) == 0:
            yield window
        elif by_row:
            at = window.row_start + draw(st.integers(1, rows - 1))
            yield from cut(window.rows(window.row_start, at), depth - 1)
            yield from cut(window.rows(at, window.row_stop), depth - 1)
        else:
            at = window.col_start + draw(st.integers(1, cols - 1))
            yield from cut(Window(window.row_start, window.row_stop, window.col_start, at), depth - 1)
            yield from cut(Window(window.row_start, window.row_stop, at, window.col_stop), depth - 1)

    return draw(st.permutations(list(cut(Window.of_shape(shape), 4))))


def random_confidence(shape: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


def polygonise_cover(
    labels: NDArray[np.uint8], windows: list[Window], background: int | None, confidence: NDArray[np.uint8] | None
) -> Objects:
    pieces: list[Piece] = []
    for window in windows:
        seen = None if confidence is None else confidence[window.slices]
        pieces.append(polygonise(labels[window.slices], window, background=background, confidence=seen))
    return Objects.concatenate([*(piece.complete for piece in pieces), join(iter(pieces), labels.shape)])


def assert_identical(one: Objects, other: Objects) -> None:
    for field in fields(Objects):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert a.dtype == b.dtype, field.name
        if field.name == "geometry":
            a, b = shapely.to_wkb(a), shapely.to_wkb(b)
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def is_object(labels: NDArray[np.uint8], background: int | None) -> NDArray[np.bool_]:
    owned: NDArray[np.bool_] = labels != NODATA
    return owned if background is None else owned & (labels != background)


def rings(objects: Objects) -> Iterator[tuple[NDArray[Any], bool]]:
    """Closed coordinates, and whether the ring is a hole."""
    for polygon in objects.geometry:
        yield np.asarray(polygon.exterior.coords), False
        for hole in polygon.interiors:
            yield np.asarray(hole.coords), True


@given(rasters(), BACKGROUNDS)
@example(HOLES_IN_A_ROW, 0)
@example(HOLES_IN_A_ROW[:, ::-1], None)
@example(NESTED, None)
def test_rasterising_the_polygons_gives_the_labels_back(labels: NDArray[np.uint8], background: int | None) -> None:
    objects = polygonise_whole(labels, background=background)
    expected = np.where(is_object(labels, background), labels, NODATA)
    burnt = np.full(labels.shape, NODATA, np.uint8)
    if len(objects):
        rasterize(zip(objects.geometry, objects.label.tolist(), strict=True), out=burnt)
    np.testing.assert_array_equal(burnt, expected)


@given(rasters(), BACKGROUNDS)
@example(HOLES_IN_A_ROW, 0)
@example(HOLES_IN_A_ROW[:, ::-1], None)
@example(NESTED, None)
def test_gdal_finds_the_same_polygons(labels: NDArray[np.uint8], background: int | None) -> None:
    objects = polygonise_whole(labels, background=background)
    found = {(label, shape.normalize().wkb) for shape, label in zip(objects.geometry, objects.label, strict=True)}
    theirs = shapes(labels, mask=is_object(labels, background), connectivity=4)
    expected = {(int(label), shapely.geometry.shape(shape).normalize().wkb) for shape, label in theirs}
    assert len(found) == len(objects)
    assert found == expected


@given(rasters(), BACKGROUNDS)
@example(HOLES_IN_A_ROW, 0)
def test_polygons_are_valid_and_canonical(labels: NDArray[np.uint8], background: int | None) -> None:
    objects = polygonise_whole(labels, background=background)
    assert shapely.is_valid(objects.geometry).all()
    np.testing.assert_array_equal(shapely.area(objects.geometry), objects.pixels)
    for ring, is_hole in rings(objects):
        steps = np.diff(ring, axis=0) != 0
        assert (steps.sum(axis=1) == 1).all()  # along one axis, and not of length 0
        assert (steps[:, 0] != np.roll(steps[:, 0], 1)).all()  # every vertex is a turn
        assert min((y, x) for x, y in ring) == (ring[0, 1], ring[0, 0])
        # shapely's y grows upwards, so what it sees is the mirror image of the screen.
        assert shapely.LinearRing(ring).is_ccw == is_hole
    for polygon in objects.geometry:
        begins = [hole.coords[0][::-1] for hole in polygon.interiors]
        assert begins == sorted(begins)


@settings(max_examples=300)
@given(st.data(), rasters(), BACKGROUNDS)
def test_every_cover_gives_the_same_objects(
    data: st.DataObject, labels: NDArray[np.uint8], background: int | None
) -> None:
    confidence = random_confidence(labels.shape)
    windows = data.draw(covers(labels.shape))
    whole = polygonise_whole(labels, background=background, confidence=confidence)
    assert_identical(polygonise_cover(labels, windows, background, confidence), whole)


@settings(max_examples=50)
@given(rasters(), st.integers(1, 9))
def test_how_much_of_a_whole_scene_is_looked_at_at_once_does_not_matter(
    labels: NDArray[np.uint8], at_once: int
) -> None:
    confidence = random_confidence(labels.shape)
    score = (np.arange(labels.size) % 251).astype(np.uint8).reshape(labels.shape)
    for more in ({}, {"score": score, "separation": Separation(0.5, 2)}):
        whole = polygonise_whole(labels, confidence=confidence, **more)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("geoseg.polygonise.AT_ONCE", at_once)
            assert_identical(polygonise_whole(labels, confidence=confidence, **more), whole)


def test_a_confidence_larger_than_the_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="confidence must be a uint8 array of shape"):
        polygonise_whole(np.ones((3, 3), np.uint8), confidence=np.ones((4, 3), np.uint8))


@settings(max_examples=50)
@given(st.data(), rasters(), st.integers(1, 40))
def test_how_many_are_outlined_at_once_does_not_matter(
    data: st.DataObject, labels: NDArray[np.uint8], at_once: int
) -> None:
    windows = data.draw(covers(labels.shape))
    whole = polygonise_cover(labels, windows, None, None)
    outlined: list[int] = []
    original = module.with_geometry

    def watched(parts: Any, corners: Any) -> Any:
        outlined.append(len(parts))
        return original(parts, corners)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "VERTICES_AT_ONCE", at_once)
        patched.setattr(module, "with_geometry", watched)
        pieces = [polygonise(labels[window.slices], window, background=None) for window in windows]
        before = len(outlined)
        joined = join(pieces, labels.shape)
    assert_identical(Objects.concatenate([*(piece.complete for piece in pieces), joined]), whole)
    if at_once == 1:
        assert outlined[before:] == [1] * len(joined)


@pytest.mark.parametrize("background", [0, None])
def test_every_pixel_a_window_of_its_own(background: int | None) -> None:
    labels = np.random.default_rng(3).choice(np.array([0, 1, 1, 2, NODATA], np.uint8), (17, 23))
    windows = [Window(r, r + 1, c, c + 1) for r in range(17) for c in range(23)]
    whole = polygonise_whole(labels, background=background)
    assert_identical(polygonise_cover(labels, windows, background, None), whole)


def edge_of(owned: NDArray[np.bool_], labels: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> tuple[int, int]:
    """Confidence on both sides of an outline, and how many sides there are, pixel by pixel."""
    total = count = 0
    for row, col in np.argwhere(owned):
        for down, along in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            other = row + down, col + along
            if not (0 <= other[0] < labels.shape[0] and 0 <= other[1] < labels.shape[1]):
                continue
            if labels[other] != labels[row, col] and confidence[other] != NODATA:
                total += int(confidence[row, col]) + int(confidence[other])
                count += 1
    return total, count


@given(rasters(), BACKGROUNDS)
def test_attributes_against_counting(labels: NDArray[np.uint8], background: int | None) -> None:
    confidence = random_confidence(labels.shape)
    objects = polygonise_whole(labels, background=background, confidence=confidence)
    near_nodata = ndimage.binary_dilation(labels == NODATA)
    edge = np.pad(np.zeros(np.maximum(np.array(labels.shape) - 2, 0), np.bool_), 1, constant_values=True)
    edge = edge[: labels.shape[0], : labels.shape[1]]
    expected = []
    for label in np.unique(labels[is_object(labels, background)]):
        numbers, count = ndimage.label(labels == label)
        for number in range(1, count + 1):
            owned = numbers == number
            first = np.argwhere(owned)[0].tolist()
            sums = [int(label), int(owned.sum()), int(confidence[owned].sum(dtype=np.int64))]
            outline = [int(confidence[owned].min()), *edge_of(owned, labels, confidence)]
            expected.append((*first, *sums, *outline, bool(near_nodata[owned].any()), bool(edge[owned].any())))
    names = ("first_row", "first_col", "label", "pixels", "confidence_sum", "confidence_min", "edge_sum", "edge_sides")
    names = (*names, "touches_nodata", "touches_edge")
    found = zip(*(getattr(objects, name).tolist() for name in names), strict=True)
    assert list(found) == sorted(expected)


@pytest.mark.parametrize("background", [0, None])
def test_long_rings(background: int | None) -> None:
    labels = (np.random.default_rng(11).random((120, 150)) < 0.63).astype(np.uint8)  # most of it hangs together
    whole = polygonise_whole(labels, background=background)
    assert shapely.get_num_coordinates(whole.geometry).max() > 2000
    theirs = shapes(labels, mask=is_object(labels, background), connectivity=4)
    expected = {shapely.geometry.shape(shape).normalize().wkb for shape, _ in theirs}
    assert {shape.normalize().wkb for shape in whole.geometry} == expected
    grid = [Window(r, min(r + 37, 120), c, min(c + 41, 150)) for r in range(0, 120, 37) for c in range(0, 150, 41)]
    assert_identical(polygonise_cover(labels, grid[::-1], background, None), whole)


@given(rasters(), st.integers(0, 50), st.integers(0, 50))
def test_complete_objects_and_borders_lie_where_the_window_lies(labels: NDArray[np.uint8], row: int, col: int) -> None:
    here = Window.of_shape(labels.shape)
    there = Window(row, row + here.row_stop, col, col + here.col_stop)
    moved, still = polygonise(labels, there).complete, polygonise(labels, here).complete
    np.testing.assert_array_equal(moved.first_row - row, still.first_row)
    shifted = shapely.transform(still.geometry, lambda xy: np.add(xy, (col, row)))
    np.testing.assert_array_equal(shapely.to_wkb(moved.geometry), shapely.to_wkb(shifted))
    assert not still.touches_edge.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 6)])
@pytest.mark.parametrize(("value", "background"), [(NODATA, 0), (NODATA, None), (0, 0), (9, 9), (NODATA, NODATA)])
def test_nothing_to_find(shape: tuple[int, int], value: int, background: int | None) -> None:
    assert_identical(polygonise_whole(np.full(shape, value, np.uint8), background=background), Objects.empty())


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 6)])
@pytest.mark.parametrize(("value", "background"), [(1, 0), (254, 0), (0, None)])
def test_one_object_fills_the_scene(shape: tuple[int, int], value: int, background: int | None) -> None:
    objects = polygonise_whole(np.full(shape, value, np.uint8), background=background)
    assert len(objects) == 1
    assert objects.geometry[0].equals_exact(shapely.box(0, 0, shape[1], shape[0]).normalize(), 0, normalize=True)
    assert (objects.label[0], objects.pixels[0]) == (value, shape[0] * shape[1])
    assert objects.touches_edge[0]
    assert not objects.touches_nodata[0]
    assert objects.confidence_sum[0] == 0


def test_one_row_of_many_labels() -> None:
    objects = polygonise_whole(np.array([[3, 3, 0, 1, NODATA, 2]], np.uint8))
    assert objects.label.tolist() == [3, 1, 2]
    assert objects.first_col.tolist() == [0, 3, 5]
    assert objects.touches_nodata.tolist() == [False, True, True]


def test_a_corner_joins_nothing() -> None:
    labels = np.array([[1, 0], [0, 1]], np.uint8)
    windows = [Window(r, r + 1, c, c + 1) for r in (0, 1) for c in (0, 1)]
    assert polygonise_cover(labels, windows, 0, None).pixels.tolist() == [1, 1]


def test_neighbours_of_other_labels_stay_apart_across_a_seam() -> None:
    labels = np.array([[1, 2], [1, 1]], np.uint8)
    windows = [Window(0, 2, 0, 1), Window(0, 2, 1, 2)]
    objects = polygonise_cover(labels, windows, 0, None)
    assert objects.label.tolist() == [1, 2]
    assert objects.pixels.tolist() == [3, 1]


def test_nodata_is_seen_across_a_seam() -> None:
    labels = np.array([[1, NODATA, 0, 1]], np.uint8)
    windows = [Window(0, 1, c, c + 1) for c in range(4)]
    assert polygonise_cover(labels, windows, 0, None).touches_nodata.tolist() == [True, False]


def test_a_large_confidence_is_added_up_exactly() -> None:
    full = np.full((300, 300), 255, np.uint8)
    objects = polygonise_whole(np.ones_like(full), confidence=full)
    assert objects.confidence_sum.tolist() == [255 * 300 * 300]


def test_pieces_survive_pickling_and_do_without_what_is_complete() -> None:
    labels = np.random.default_rng(5).integers(0, 3, (20, 30), dtype=np.uint8)
    windows = [Window(0, 20, 0, 11), Window(0, 20, 11, 30)]
    pieces = [pickle.loads(pickle.dumps(polygonise(labels[w.slices], w))) for w in windows]  # its own bytes  # noqa: S301  our own, from the line before
    light = [piece.without_complete() for piece in pieces]
    assert [len(piece.complete) for piece in light] == [0, 0]
    assert_identical(join(light, labels.shape), join(pieces, labels.shape))


def test_a_piece_is_as_large_as_what_touches_its_border() -> None:
    inner = np.pad(np.kron(np.indices((100, 100)).sum(axis=0) % 2, np.ones((3, 3))), 2).astype(np.uint8)
    piece = polygonise(inner, Window.of_shape(inner.shape)).without_complete()
    assert len(piece.parts) == len(piece.vertices.mask) == 0
    assert len(pickle.dumps(piece)) < 4 * 4 * len(inner) + 2000


@given(hnp.arrays(np.int32, st.integers(0, 30), elements=st.integers(0, 5) | st.integers(0, 200)))
def test_corners_of_a_part_come_together_in_their_order(part: NDArray[np.int32]) -> None:
    row, col = np.arange(2 * len(part), dtype=np.int32).reshape(2, -1)
    mask, order = row.astype(np.uint8), np.argsort(part, kind="stable")
    found = _by_part(part, row.copy(), col.copy(), mask, int(part.max(initial=-1)) + 1)
    for values, sorted_values in zip((part, row, col, mask), found, strict=True):
        np.testing.assert_array_equal(sorted_values, values[order])


def test_select_and_concatenate_keep_the_order() -> None:
    objects = polygonise_whole(np.random.default_rng(5).integers(0, 3, (20, 30), dtype=np.uint8))
    large = objects.pixels > 3
    parts = (objects.select(~large), objects.select(large))
    assert len(parts[1]) == np.count_nonzero(large)
    assert_identical(Objects.concatenate(iter(parts)), objects)
    assert_identical(Objects.concatenate([]), Objects.empty())


@pytest.mark.parametrize(
    "windows",
    [
        [],
        [Window(0, 4, 0, 3)],
        [Window(0, 4, 0, 3), Window(0, 4, 2, 5)],
        [Window(0, 4, 0, 5), Window(0, 4, 0, 5)],
        [Window(0, 4, 0, 4), Window(0, 3, 4, 5)],
        [Window(0, 4, 0, 6)],
        [Window(-1, 4, 0, 5)],
        [Window(0, 2, 0, 3), Window(2, 4, 2, 5), Window(0, 2, 3, 5), Window(2, 4, 1, 3)],
    ],
)
def test_windows_must_cover_the_scene_once(windows: list[Window]) -> None:
    pieces = [polygonise(np.ones(window.shape, np.uint8), window) for window in windows]
    with pytest.raises(ValueError, match="do not cover the scene"):
        join(pieces, (4, 5))


@pytest.mark.parametrize(
    "call",
    [
        lambda labels, window: polygonise(labels.astype(np.int64), window),
        lambda labels, window: polygonise(labels[1:], window),
        lambda labels, window: polygonise(labels, window, confidence=labels.astype(np.float32)),
        lambda labels, window: polygonise(labels, window, confidence=labels[:, 1:]),
    ],
)
def test_other_shapes_and_types_are_refused(call: Callable[[NDArray[np.uint8], Window], Piece]) -> None:
    with pytest.raises(ValueError, match="must be a uint8 array of shape"):
        call(np.ones((4, 5), np.uint8), Window(0, 4, 0, 5))
