"""Laws of the lattices: cores partition a scene, patches cover it, and no pixel is without a weight."""

from __future__ import annotations

from dataclasses import astuple
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from conftest import chunks_of
from hypothesis import example, given
from hypothesis import strategies as st

from geoseg.tiling import CHUNK, Axis, Tiling, patch_starts, taper
from geoseg.window import Window

PIXELS = st.integers(-20, 20)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    row, col = draw(PIXELS), draw(PIXELS)
    return Window(row, row + draw(st.integers(1, 12)), col, col + draw(st.integers(1, 12)))


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Size, patch and stride along an axis."""
    patch = draw(st.integers(1, 40))
    return draw(st.integers(1, 120)), patch, draw(st.integers(1, patch))


@st.composite
def axes_in_cells(draw: st.DrawFn) -> Axis:
    """With cells of one pixel or more, which need not be whole pixels."""
    per_unit = draw(st.integers(1, 5))
    unit, units = draw(st.integers(per_unit, 4 * per_unit)), draw(st.integers(1, 6))
    stride = unit * draw(st.integers(1, units))
    return Axis(draw(st.integers(1, 120)), unit * units, stride, per_unit * units)


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    """With tiles of one to five chunks of 8 pixels."""
    sides = [draw(axes().map(lambda axis: (*axis, axis[1])) | axes_in_cells().map(astuple)) for _ in range(2)]
    shape, patch, stride, cells = zip(*sides, strict=True)
    tile = tuple(draw(st.integers(1, 5).map(lambda n: n * 8) | st.just(size)) for size in shape)
    with chunks_of(8):
        return Tiling(shape, patch, stride, tile, None if cells == patch else cells)


def pixels(window: Window | None) -> set[tuple[int, int]]:
    if window is None:
        return set()
    return {(row, col) for row in range(*window.row_range) for col in range(*window.col_range)}


@given(windows(), windows())
def test_intersection_is_that_of_the_pixels(one: Window, other: Window) -> None:
    assert pixels(one.intersection(other)) == pixels(one) & pixels(other)
    assert one.intersection(other) == other.intersection(one)


@given(windows(), windows())
def test_relative_windows_are_the_same_pixels(window: Window, origin: Window) -> None:
    relative = window.relative_to(origin)
    back = {(row + origin.row_start, col + origin.col_start) for row, col in pixels(relative)}
    assert back == pixels(window)
    assert relative.shape == window.shape
    assert window.size == len(back)


def test_slices_index_rows_then_columns() -> None:
    array = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(array[Window(1, 3, 2, 5).slices], array[1:3, 2:5])
    assert Window.of_shape((4, 5)).shape == (4, 5)
    assert Window(1, 3, 2, 5).rows(0, 4) == Window(0, 4, 2, 5)


@pytest.mark.parametrize("edges", [(0, 0, 0, 1), (0, 1, 3, 3), (2, 1, 0, 1), (0, 1, 5, 4)])
def test_a_window_without_pixels_is_refused(edges: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Window(*edges)


@given(axes())
@example((1, 1, 1))
@example((120, 40, 40))
def test_patches_cover_an_axis_and_stay_on_it(axis: tuple[int, int, int]) -> None:
    size, patch, stride = axis
    starts = patch_starts(size, patch, stride)
    assert {pixel for start in starts for pixel in range(start, start + patch)} >= set(range(size))
    if size <= patch:
        assert starts == [0]
        return
    assert all(0 <= start <= size - patch for start in starts)
    assert all(0 < following - start <= stride for start, following in pairwise(starts))
    assert all(start % stride == 0 for start in starts[:-1])
    assert starts[-1] == size - patch


@pytest.mark.parametrize("patch", [1, 2, 3, 64, 511, 512, 4096])
def test_the_taper_is_positive_up_to_the_rim(patch: int) -> None:
    weights = taper(patch)
    assert ((weights[:, None] * weights).astype(np.float32) > 0).all()
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, weights[::-1], atol=1e-12)
    assert (np.diff(weights[: (patch + 1) // 2]) > 0).all()


@given(axes_in_cells())
@example(Axis(8704, 592, 444, 128))
@example(Axis(500, 512, 384, 128))
def test_the_cells_of_all_patches_are_one_lattice(axis: Axis) -> None:
    side = Fraction(axis.patch, axis.cells)
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.patch >= axis.size
    assert axis.starts[-1] == 0 or axis.starts[-1] + axis.patch < axis.size + axis.unit
    assert all(0 < following - start <= axis.stride for start, following in pairwise(axis.starts))
    for start in axis.starts:
        assert axis.cells_of(start) * side == start
    assert axis.total_cells * side == axis.starts[-1] + axis.patch
    whole = [pixels for pixels in range(1, axis.patch + 1) if (pixels / side).denominator == 1]
    assert axis.unit == whole[0]
    assert axis.patch % axis.unit == 0


def around_by_definition(axis: Axis, pixel: int) -> tuple[int, int, Fraction]:
    """Cells around a pixel's centre, and how far it is from the first to the second, in exact fractions."""
    place = Fraction(2 * pixel + 1, 2) * axis.cells / axis.patch - Fraction(1, 2)
    first = place.numerator // place.denominator
    second = first if place == first else first + 1
    last = axis.total_cells - 1
    return min(max(first, 0), last), min(max(second, 0), last), place - first


@given(axes_in_cells(), st.data())
def test_a_pixel_lies_between_the_cells_around_its_centre(axis: Axis, data: st.DataObject) -> None:
    low = data.draw(st.integers(0, axis.size - 1))
    high = data.draw(st.integers(low + 1, axis.size))
    first, second, share = axis.around(np.arange(low, high))
    assert share.dtype == np.float32
    for index, pixel in enumerate(range(low, high)):
        expected = around_by_definition(axis, pixel)
        assert (first[index], second[index]) == expected[:2]
        assert share[index] == np.float32(float(expected[2]))
        assert (2 * pixel + 1) * axis.cells // (2 * axis.patch) in (first[index], second[index])  # the one it lies in
    whole = axis.around(np.arange(axis.size))
    for part, all_of in zip((first, second, share), whole, strict=True):
        np.testing.assert_array_equal(part, all_of[low:high])


@given(axes_in_cells(), st.data())
def test_what_is_settled_depends_on_no_later_cell(axis: Axis, data: st.DataObject) -> None:
    cells = data.draw(st.integers(1, axis.total_cells))
    expected = sum(around_by_definition(axis, pixel)[1] < cells for pixel in range(axis.size))
    assert axis.settled(cells) == expected


@given(tilings())
def test_cores_partition_the_scene(tiling: Tiling) -> None:
    times = np.zeros(tiling.shape, int)
    cores = [tile.core for tile in tiling.tiles()]
    for core in cores:
        times[core.slices] += 1
        assert core.row_start % 8 == core.col_start % 8 == 0
        assert Window.of_shape(tiling.shape).intersection(core) == core
    assert (times == 1).all()
    assert cores == sorted(cores)


@given(tilings())
def test_a_tile_has_every_patch_that_touches_its_core_and_no_other(tiling: Tiling) -> None:
    """Where cells are larger than pixels, every patch of which a core's pixel has a part of a cell."""
    seen = 0
    for tile in tiling.tiles():
        have = (tile.patch_rows, tile.patch_cols)
        for axis, core in enumerate((range(*tile.core.row_range), range(*tile.core.col_range))):
            patch, cells = tiling.patch[axis], (tiling.cells or tiling.patch)[axis]
            unit = next(side for side in range(1, patch + 1) if patch % side == 0 and side * cells % patch == 0)
            starts = patch_starts(tiling.shape[axis], patch, tiling.stride[axis], unit)
            if cells == patch:
                touching = [start for start in starts if range(max(start, core.start), min(start + patch, core.stop))]
            else:
                around = [around_by_definition(tiling.axes[axis], pixel)[:2] for pixel in core]
                needed = {cell for pair in around for cell in pair}
                of = {start: range(start * cells // patch, (start + patch) * cells // patch) for start in starts}
                touching = [start for start in starts if needed & set(of[start])]
            assert list(have[axis]) == touching
        seen += len(tile.patch_rows) * len(tile.patch_cols) * tiling.patch[0] * tiling.patch[1]
    assert tiling.patches_per_pixel() == pytest.approx(seen / (tiling.shape[0] * tiling.shape[1]))


def test_what_is_left_of_a_tile_is_a_tile() -> None:
    tiling = Tiling((3 * CHUNK, 900), (CHUNK, 512), (CHUNK - 128, 384), (3 * CHUNK, 900))
    (whole,) = tiling.tiles()
    rest = tiling.tile_of(whole.core.rows(CHUNK, 3 * CHUNK))
    assert rest.core == Window(CHUNK, 3 * CHUNK, 0, 900)
    assert rest.patch_cols == whole.patch_cols == (0, 384, 388)
    assert whole.patch_rows == (0, CHUNK - 128, 2 * CHUNK - 256, 2 * CHUNK)
    assert rest.patch_rows == whole.patch_rows[1:]


@pytest.mark.parametrize("stride", [0, -1, 65])
def test_a_stride_that_leaves_pixels_out_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to the patch's 64 pixels, got {stride}"):
        Tiling((100, 100), (64, 64), (64, stride), (100, 100))


@pytest.mark.parametrize("tile", [0, -512, 100, CHUNK + 1])
def test_a_tile_that_would_share_a_chunk_is_refused(tile: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of the storage chunk of {CHUNK} pixels, got {tile}"):
        Tiling((9999, 9999), (64, 64), (64, 64), (CHUNK, tile))


@pytest.mark.parametrize("first", [0, -512, 100, CHUNK + 1, 3 * CHUNK])
def test_a_first_tile_that_would_share_a_chunk_or_be_the_largest_is_refused(first: int) -> None:
    with pytest.raises(ValueError, match=f"first tile must be a multiple of {CHUNK} pixels .* got {first}"):
        Tiling((9999, 9999), (64, 64), (64, 64), (CHUNK, 2 * CHUNK), first=(CHUNK, first))


@pytest.mark.parametrize("cells", [0, -1, 65])
def test_cells_that_are_none_or_smaller_than_pixels_are_refused(cells: int) -> None:
    with pytest.raises(ValueError, match=f"a patch of 64 pixels has from 1 to 64 cells, got {cells}"):
        Tiling((100, 100), (64, 64), (64, 64), (100, 100), (64, cells))


def test_a_stride_that_is_not_whole_in_cells_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 37 pixels, which 128 cells in 592 pixels make the unit, got 4"):
        Tiling((999, 999), (592, 592), (444, 443), (999, 999), (128, 128))
    assert Tiling((999, 999), (592, 592), (444, 444), (999, 999), (128, 128)).axes[0].starts == [0, 407]
