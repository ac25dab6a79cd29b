"""Laws of the lattices: cores partition a scene, patches cover it, and no pixel is without a weight."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from conftest import chunks_of
from hypothesis import example, given
from hypothesis import strategies as st

from geoseg.tiling import CHUNK, Tiling, patch_starts, taper, total_taper
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
def tilings(draw: st.DrawFn) -> Tiling:
    """With tiles of one to five chunks of 8 pixels."""
    shape, patch, stride = zip(*(draw(axes()) for _ in range(2)), strict=True)
    tile = tuple(draw(st.integers(1, 5).map(lambda n: n * 8) | st.just(size)) for size in shape)
    with chunks_of(8):
        return Tiling(shape, patch, stride, tile)


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


@given(axes())
def test_the_total_taper_is_the_sum_of_the_tapers(axis: tuple[int, int, int]) -> None:
    size, patch, stride = axis
    expected = [
        sum(0.5 - 0.5 * np.cos(2 * np.pi * (pixel - start + 0.5) / patch) for start in patch_starts(*axis)
            if start <= pixel < start + patch)
        for pixel in range(size)
    ]  # fmt: skip
    total = total_taper(size, patch, stride)
    assert total.shape == (size,)
    assert total.dtype == np.float32
    assert (total > 0).all()
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-9)


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
    seen = 0
    for tile in tiling.tiles():
        have = (tile.patch_rows, tile.patch_cols)
        for axis, core in enumerate((range(*tile.core.row_range), range(*tile.core.col_range))):
            patch = tiling.patch[axis]
            starts = patch_starts(tiling.shape[axis], patch, tiling.stride[axis])
            touching = [start for start in starts if range(max(start, core.start), min(start + patch, core.stop))]
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
