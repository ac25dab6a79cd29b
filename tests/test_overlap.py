"""Seams: what differs beside the borders of patches, on cases where it can be counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from conftest import ArraySource, MixingPredict, legend_of, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.windows import Window as RasterioWindow
from test_cli import command  # noqa: F401  # a fixture

from geoseg import overlap
from geoseg.errors import ModelError, OptionError, SceneError
from geoseg.overlap import (
    COLUMNS,
    Block,
    Comparison,
    Laid,
    Seams,
    StrideSeams,
    Zones,
    boundary,
    counts_of,
    measure_seams,
    shifts_of,
    windows_of,
    zones_of,
)
from geoseg.predict import Decision, Engine, Lanes
from geoseg.raster import NODATA
from geoseg.tiling import Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

PATCH = 32
ZONES = Zones(near=3, far=6, tolerance=1, block=16)


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    each = Lanes(2)
    yield each
    each.close()


class Painted:
    """The class that a pixel shows (its first band above 127), but in the outermost pixels of each patch the other.

    Where the second band says so, the label depends on what the patch shows on the whole.
    """

    device, outputs = torch.device("cpu"), 2

    def __init__(self, rim: int = 0) -> None:
        self.rim, self.calls = rim, 0

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        assert patches.shape == (1, 2, *cells)
        self.calls += 1
        shown = patches[:, 0] > 127
        inside = torch.zeros(cells, dtype=torch.bool)
        inside[self.rim : cells[0] - self.rim, self.rim : cells[1] - self.rim] = True
        shown = torch.where(inside, shown, ~shown)
        shown = torch.where(patches[:, 1] > 127, bool(patches.sum() // 16 % 2), shown)
        return torch.stack([~shown, shown], 1).float()


def scene_of(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """A first band of squares, and an empty second one."""
    squares = np.random.default_rng(seed).integers(0, 256, (1, side // 4, side // 4), dtype=np.uint8)
    return np.concatenate([squares.repeat(4, 1).repeat(4, 2), np.zeros((1, side, side), np.uint8)])


def tiling_of(shape: tuple[int, int], stride: int) -> Tiling:
    return Tiling(shape, (PATCH, PATCH), (stride, stride), shape)


def compared(
    values: NDArray[np.uint8], predict: Any, strides: tuple[int, ...], lanes: Lanes, count: int = 4, **told: Any
) -> dict[int, StrideSeams]:
    source = ArraySource(values)
    reference = tiling_of(source.shape, PATCH // 8)
    comparison = Comparison(predict, Decision(legend_of(2)), (128,) * len(values), lanes)
    windows = list(windows_of(source, reference, count))
    tilings = {stride: tiling_of(source.shape, stride) for stride in strides}
    return {each.stride: each for each in comparison.run(source, reference, tilings, windows, ZONES, **told)}


# --- the measure


def test_a_network_that_does_not_mind_where_a_patch_lies_has_no_seams(lanes: Lanes) -> None:
    for each in compared(scene_of(8 * PATCH), Painted(), (32, 24, 16), lanes).values():
        assert (each.differ, each.near, each.far, each.excess, each.excess_error) == (0, 0, 0, 0, 0)
        assert (each.boundary_near, each.boundary_far, each.boundary_excess) == (0, 0, 0)


@pytest.mark.parametrize("rim", [1, 2, 3, 5])
def test_what_is_wrong_at_borders_is_counted(rim: int, lanes: Lanes) -> None:
    found = compared(scene_of(10 * PATCH), Painted(rim), (32, 16), lanes, count=1)  # away from where patches lie closer
    # the reference sees each pixel 64 times, its rims weigh next to nothing; a patch alone is wrong in all of its rim
    away = np.abs((np.arange(PATCH) + PATCH / 2) % PATCH - PATCH / 2 + 0.5)  # from the nearest border along an axis

    def share(width: int) -> float:
        return 1 - (away >= width).mean() ** 2

    alone = found[32]
    assert alone.differ == pytest.approx(share(rim))
    near, lattices = [], [part * PATCH // 4 for part in range(4)]
    for row in range(PATCH):
        for col in range(PATCH):
            apart = [min(away[(row - move) % PATCH], away[(col - move) % PATCH]) for move in lattices]
            beside = [each for each in apart if each < ZONES.near]
            if beside and max(apart) > ZONES.far:
                near.append(sum(each < rim for each in beside) / len(beside))
    assert alone.near == pytest.approx(np.mean(near))
    assert (alone.far, alone.excess) == (0, pytest.approx(alone.near))
    # half a patch of overlap leaves the rims of one patch to the middle of another
    assert abs(found[16].excess) < alone.excess / 10


def test_all_is_wrong_near_borders_if_the_rim_is_as_wide(lanes: Lanes) -> None:
    alone = compared(scene_of(10 * PATCH), Painted(ZONES.near), (32,), lanes, count=1)[32]
    assert (alone.near, alone.far, alone.excess, alone.excess_error) == (1, 0, 1, 0)
    assert alone.excess_of_all == pytest.approx(alone.differ)


def test_hard_ground_at_borders_is_no_seam(lanes: Lanes) -> None:
    """Labels that are a matter of chance, on ground that lies beside the borders of the lattice at the origin."""
    values = scene_of(8 * PATCH)
    away = np.abs((np.arange(8 * PATCH) + PATCH // 2) % PATCH - PATCH // 2 + 0.5)
    values[1, :, away < ZONES.near] = 255
    found = compared(values, Painted(), (32,), lanes)[32]
    assert found.near > 0.1
    assert abs(found.excess) < 0.15 * found.near
    assert abs(found.excess) < 2 * found.excess_error < found.near


def test_only_what_has_data_counts(lanes: Lanes) -> None:
    values = scene_of(8 * PATCH)
    valid = np.ones(values.shape[1:], bool)
    valid[:, 100:110] = False
    source, reference = ArraySource(values, valid), tiling_of(values.shape[1:], 4)
    comparison = Comparison(Painted(ZONES.near), Decision(legend_of(2)), (128, 0), lanes)
    windows = list(windows_of(source, reference, 99))
    (found,) = comparison.run(source, reference, {32: tiling_of(source.shape, 32)}, windows, ZONES)
    assert comparison.pixels == sum(int(valid[window.slices].sum()) for window in windows)
    assert (found.near, found.far) == (1, 0)


def test_boundaries_are_off_beyond_the_tolerance() -> None:
    expected = np.zeros((16, 16), np.uint8)
    expected[:, 8:] = 1
    everywhere = np.ones_like(expected, bool)
    for moved, off in ((0, 0.0), (1, 0.0), (2, 0.5), (3, 1.0)):
        labels = np.roll(expected, moved, 1)
        labels[:, :moved] = 0
        counts = counts_of(expected, [Laid(labels, everywhere, everywhere)], ZONES).sum(0)
        told = dict(zip(COLUMNS, counts, strict=True))
        # two columns of boundary in each map; moved by two, one of each is within a pixel of the other map's
        assert told["edge_near"] == told["edge_far"] == 4 * 16
        assert told["off_near"] / told["edge_near"] == off
        assert told["differ"] == 16 * moved


def test_nodata_makes_no_boundary() -> None:
    labels = np.array([[0, 0, 1, NODATA, 2], [0, 0, 1, NODATA, 2]], np.uint8)
    assert boundary(labels).tolist() == [[False, True, True, False, False]] * 2


@settings(max_examples=60)
@given(st.integers(33, 150), st.sampled_from([8, 12, 16, 24, 32]), st.integers(0, 3), st.data())
def test_zones_are_distances_from_the_sides_of_patches(size: int, stride: int, move: int, data: st.DataObject) -> None:
    shift = (move * 4, 0)
    window = Window(12, data.draw(st.integers(13, size)), 0, size)
    tiling = tiling_of((size, size), stride)
    near, far = zones_of(tiling, shift, window, ZONES)
    moved = replace(tiling, shape=(size - shift[0], size), tile=(size - shift[0], size))
    borders = [
        {at + first for start in axis.starts for at in (start, start + PATCH) if 0 < at < axis.size}
        for axis, first in zip(moved.axes, shift, strict=True)
    ]
    for row, col in ((12, 0), (window.row_stop - 1, size - 1), ((12 + window.row_stop) // 2, size // 2)):
        # the pixels between a border and this pixel, itself included
        along = [
            min((at - border + 1 if at >= border else border - at for border in sides), default=math.inf)
            for at, sides in zip((row, col), borders, strict=True)
        ]
        assert near[row - 12, col] == (min(along) <= ZONES.near)
        assert far[row - 12, col] == (min(along) > ZONES.far)


def test_more_windows_are_surer(lanes: Lanes) -> None:
    values = scene_of(12 * PATCH)
    values[1] = np.random.default_rng(1).random(values.shape[1:]) < 0.02  # a few pixels, of whatever class
    values[1] *= 255
    reference = tiling_of(values.shape[1:], 4)
    errors = []
    for count in (2, 18):
        comparison = Comparison(Painted(1), Decision(legend_of(2)), (128, 0), lanes)
        source = ArraySource(values)
        windows = list(windows_of(source, reference, count))
        (found,) = comparison.run(source, reference, {32: tiling_of(values.shape[1:], 32)}, windows, ZONES)
        assert abs(found.near - 1 / 3) < 0.1
        errors.append(found.excess_error)
    assert 1.5 < errors[0] / errors[1] < 6  # the root of 9, as far as chance lets it


# --- lattices and windows


@pytest.mark.parametrize("shape", [(150, 170), (80, 70)])  # the second leaves no room to move by 24, or by more than 4
def test_labels_are_those_of_a_run_of_the_scene_from_there_on(shape: tuple[int, int], lanes: Lanes) -> None:
    rng = np.random.default_rng(3)
    source = ArraySource(rng.integers(0, 256, (2, *shape), dtype=np.uint8), rng.random(shape) < 0.9)
    predict = MixingPredict(3, 2, (PATCH, PATCH))
    decision = Decision(legend_of(3))
    comparison = Comparison(predict, decision, (127, 3), lanes)
    tiling = tiling_of(source.shape, 24)
    for window in windows_of(source, tiling, 4):
        block = Block.read(source, window, tiling.patch)
        for shift in shifts_of(tiling, tiling_of(source.shape, 4), window):
            part = ArraySource(source.values[:, shift[0] :, shift[1] :], source.valid[shift[0] :, shift[1] :])
            whole = overlap._Labels(Window.of_shape(part.shape))
            cut = tiling_of(part.shape, 24)
            with Engine(predict, decision, (127, 3), 1, lanes) as engine:
                engine.run(part, next(cut.tiles()), cut, whole)
            expected = whole.labels[window.relative_to(Window(shift[0], shape[0], shift[1], shape[1])).slices]
            assert np.array_equal(comparison._labels(predict, block, tiling, shift, window), expected)


def test_a_patch_goes_through_the_network_once(lanes: Lanes) -> None:
    predict, told = Painted(), []
    values = scene_of(8 * PATCH)
    values[1, 0::2] = np.arange(8 * PATCH) % 100  # no two patches are the same
    values[1, 1::2] = np.arange(8 * PATCH // 2)[:, None] % 100
    compared(values, predict, (32, 28, 24, 20, 16), lanes, observe=lambda *state: told.append(state))
    assert told[-1] == ("comparing", predict.calls, predict.calls)
    window = 2 * PATCH + PATCH - 4  # of each of four windows, the others' patches are among the reference's
    assert predict.calls == 4 * (window // 4) ** 2


def test_scores_beyond_what_is_kept_are_found_again(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that are kept are what the network gave, however often they are blended."""
    values = np.random.default_rng(2).integers(0, 256, (2, 5 * PATCH, 5 * PATCH), dtype=np.uint8)
    all_kept = compared(values, MixingPredict(2, 2, (PATCH, PATCH)), (32, 24), lanes, count=1)
    calls = []
    for kept in (5, 0):
        monkeypatch.setattr(overlap, "KEPT", kept * 2 * PATCH * PATCH * 4)
        predict = MixingPredict(2, 2, (PATCH, PATCH))
        assert compared(values, predict, (32, 24), lanes, count=1) == all_kept
        calls.append(len(predict.shapes))
    assert 23**2 < calls[0] < calls[1]


def test_all_that_the_largest_patch_sees_is_read(lanes: Lanes) -> None:
    """Where a scene is resampled, patches of another stride may have a few pixels more."""
    source, reference = ArraySource(scene_of(8 * PATCH)), tiling_of((8 * PATCH, 8 * PATCH), 4)
    (window,) = windows_of(source, reference, 1)
    larger = replace(reference, patch=(PATCH + 4, PATCH), stride=(PATCH, PATCH))
    source.windows.clear()
    Comparison(Painted(), Decision(legend_of(2)), (128, 0), lanes).run(source, reference, {32: larger}, [window], ZONES)
    (row, row_stop), (col, col_stop) = window.row_range, window.col_range
    assert source.windows == [Window(row - PATCH - 4, row_stop + PATCH + 4, col - PATCH, col_stop + PATCH)]


@settings(max_examples=60)
@given(st.integers(1, 400), st.integers(33, 400), st.integers(1, 9))
def test_windows_lie_in_the_scene_and_apart(rows: int, cols: int, count: int) -> None:
    source, tiling = ArraySource(np.zeros((1, rows, cols), np.uint8)), tiling_of((rows, cols), 24)
    windows = list(windows_of(source, tiling, count))
    assert 1 <= len(windows) <= count
    seen = np.zeros((rows, cols), int)
    for window in windows:
        assert window.shape == (min(rows, 2 * PATCH), min(cols, 2 * PATCH))
        seen[window.slices] += 1
    assert seen.max() == 1
    assert seen.sum() == sum(window.size for window in windows)


def test_windows_without_data_are_passed_over() -> None:
    valid = np.zeros((10 * PATCH, 10 * PATCH), bool)
    valid[-3 * PATCH - PATCH // 2 :, -3 * PATCH - PATCH // 2 :] = True  # a little of the windows before the last, too
    source = ArraySource(np.zeros((1, *valid.shape), np.uint8), valid)
    for count in (1, 3):
        (each,) = windows_of(source, tiling_of(valid.shape, 24), count)
        assert valid[each.slices].all()
    source = ArraySource(np.zeros((1, *valid.shape), np.uint8), np.zeros_like(valid))
    with pytest.raises(SceneError, match=r"town.tif: none of 16 windows of 64 x 64 pixels has data in half of it"):
        list(windows_of(source, tiling_of(valid.shape, 24), 3, "town.tif"))


# --- the command


@pytest.fixture
def town(tmp_path: Path, shared_data: Path) -> Path:
    """A part of Banepa that is two patches by a patch and a half of the bundled model."""
    with rasterio.open(shared_data / "banepa" / "labelled_train.tif") as scene:
        part = RasterioWindow(900, 700, 900, 760)
        values, transform, crs = scene.read([1, 2, 3], window=part), scene.window_transform(part), scene.crs.to_string()
    return write_tif(tmp_path / "town.tif", values, crs, transform)


def test_a_real_town(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    town: Path,
    tmp_path: Path,
) -> None:
    status, out, err = command("seams", town, "--strides", "512,384,256", "--json", tmp_path / "seams.json")
    assert (status, err) == (0, "")
    told = json.loads((tmp_path / "seams.json").read_text("utf-8"))
    assert told["model"] == "buildings-deeplabv3plus"
    assert all(570 < side < 590 for side in told["patch_on_scene"])  # pixels of 0.13 m, brought to 0.15 m
    assert [each["stride"] for each in told["strides"]] == [512, 384, 256]
    for each in told["strides"]:
        assert each["stride_on_scene"] == [side * each["stride"] // 512 for side in told["patch_on_scene"]]
        assert 0 < each["differ"] < 0.2
        assert each["excess"] == pytest.approx(each["near"] - each["far"])
    assert [each["passes_per_megapixel"] for each in told["strides"]] == pytest.approx(
        [4 / 0.684, 4 / 0.684, 6 / 0.684]
    )
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines if line and line[0].rstrip("*").isdecimal()] == ["512", "384*", "256"]
    best = (
        "None of these has a seam excess under 0.10 %."
        if told["cheapest"] is None
        else f"The cheapest with a seam excess under 0.10 %: {told['cheapest']}."
    )
    assert best in out.splitlines()
    assert ("Not certain" in out) == bool(told["uncertain"])


def test_the_cheapest_is_under_the_limit_and_doubt_is_told() -> None:
    def of(*told: tuple[int, float, float]) -> Seams:
        strides = (StrideSeams(s, (s, s), 1, 1, 0, 0, 0, excess, error, 0, 0, 0, 0) for s, excess, error in told)
        return Seams("town.tif", "tiny", 64, (64, 64), 48, 8, 8, 16, (), 9, 0.001, tuple(strides))

    for strides, cheapest, uncertain in (
        (((64, 0.02, 0.005), (48, 0.0005, 0.0002), (32, 0.001, 0.01)), 48, []),
        (((64, 0.002, 0.0015), (48, 0.0005, 0.0002)), 48, [64]),
        (((64, 0.02, 0.005), (48, 0.0009, 0.0002), (32, -0.001, 0.01)), 48, [48]),
        (((64, 0.02, 0.005), (48, math.nan, math.nan)), None, []),
        (((64, 0.02, 0.03), (48, 0.001, 0.0001)), None, [64, 48]),
    ):
        told = of(*strides).to_dict()
        assert (told["cheapest"], told["uncertain"]) == (cheapest, uncertain)


def test_what_cannot_be_measured_is_told(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    small = write_tif(tmp_path / "small.tif", np.full((3, 60, 64), 9, np.uint8))
    large = write_tif(tmp_path / "large.tif", np.full((3, 90, 200), 9, np.uint8))
    empty = write_tif(tmp_path / "empty.tif", np.zeros((3, 90, 200), np.uint8), nodata=0)
    for arguments, says in (
        ((small, tiny_model), "small.tif: its 60 x 64 pixels are seen in one patch of 64 x 64"),
        ((empty, tiny_model), "empty.tif: none of 1 windows of 90 x 128 pixels has data"),
        ((large, tiny_model, "--strides", "65"), "--strides 65: must be from 1 to the patch of tiny, 64 pixels"),
        ((large, tiny_model, "--strides", "0"), "--strides 0: must be from 1"),
        ((large, tiny_model, "--strides", "64,half"), "64,half: write whole numbers of pixels"),
        ((large, tiny_model, "--windows", "0"), "--windows 0: must be 1 or more"),
        ((large, "roads"), "there is no model named 'roads'"),
        ((tmp_path / "none.tif", tiny_model), "none.tif"),
    ):
        status, out, err = command("seams", *arguments)
        assert (status, out) == (2, "")
        assert says in err
        assert "Traceback" not in err


def test_errors_have_their_types(tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "large.tif", np.full((3, 90, 200), 9, np.uint8))
    with pytest.raises(OptionError):
        measure_seams(scene, str(tiny_model), windows=0)
    with pytest.raises(ModelError):
        measure_seams(scene, "roads")


def test_nothing_is_told_of_what_was_not_seen(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    """Where all is of one class there are no boundaries; JSON knows no NaN."""
    scene = write_tif(tmp_path / "grey.tif", np.full((3, 256, 256), 9, np.uint8))
    status, out, _ = command("seams", scene, tiny_model, "--json", tmp_path / "seams.json")
    assert status == 0
    told = json.loads((tmp_path / "seams.json").read_text("utf-8"))
    assert [each["stride"] for each in told["strides"]] == [64, 56, 48, 40, 32]
    assert told["default_stride"] == 48
    assert told["pixels"] == sum((bottom - top) * (right - left) for top, bottom, left, right in told["windows"])
    assert "48*" in out
    alone, *_, half = told["strides"]
    assert alone["relative_time"] == 1
    assert half["relative_time"] == (7 / 4) ** 2
    assert half["passes_per_megapixel"] == pytest.approx(49 / 0.065536)
