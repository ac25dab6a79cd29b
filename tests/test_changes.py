"""What has changed between two maps: its laws, on numbers alone and on whole scenes."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pystac
import pytest
import rasterio
import rasterio.warp
import shapely
from conftest import BANEPA, legend_of, write_model, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pystac.validation import JsonSchemaSTACValidator
from scipy.ndimage import binary_dilation, fourier_shift, gaussian_filter, maximum_filter
from skimage.registration import phase_cross_correlation
from test_cli import command  # noqa: F401  # a fixture

import geoseg
from geoseg.catalog import Legend, LegendClass
from geoseg.changes import shift
from geoseg.changes.by_class import pixel_areas
from geoseg.changes.ground import Dated, Ground, blocks, common_ground, evidence, window_on
from geoseg.changes.objects import MIRROR, Events, Objects, Rules, _grown, compare, summary
from geoseg.changes.planned import job_of, matched, plan_change
from geoseg.changes.transitions import (
    MOST_CLASSES,
    joint_confidence,
    tally,
    transition_codes,
    transition_legend,
    transitions,
    within,
)
from geoseg.errors import ModelError, OptionError, OutputError, SceneError
from geoseg.evaluation.inputs import metric_crs
from geoseg.footprints import Layer, footprints
from geoseg.io.pixels import Stretch
from geoseg.io.scenes import open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

NODATA = 255
PIXEL = 0.3


# --- object by object, in memory


class InMemory:
    """A raster on its own grid."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.values = values

    def read(self, window: Window) -> NDArray[np.uint8]:
        assert Window.of_shape(self.values.shape).intersection(window) == window, "read beyond the grid"
        return self.values[window.slices]


def ground_of(*maps: NDArray[np.uint8], codes: tuple[Any, Any] = (230, 230)) -> Ground:
    """Two label maps in memory, with their confidence."""
    dates = [
        Dated(InMemory(labels), InMemory(np.where(labels == NODATA, NODATA, code).astype(np.uint8)))
        for labels, code in zip(maps, codes, strict=True)
    ]
    return Ground(GeoBox(maps[0].shape, BANEPA, "EPSG:32645"), *dates)


def outlined(labels: NDArray[np.uint8], grid: GeoBox, simplify: float = 0.0) -> gpd.GeoDataFrame:
    layer = Layer(grid, legend_of(2), "scene", simplify=simplify, confident=False)
    return footprints([(Window.of_shape(labels.shape), labels, None)], layer)


def compared(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    tolerance: float = 3.0,
    windows: tuple[int, int] = (1000, 1000),
    codes: tuple[Any, Any] = (230, 230),
    **rules: float,
) -> tuple[Events, Objects, Objects]:
    """What became of the objects of two label maps; `tolerance` in pixels."""
    ground = ground_of(before, after, codes=codes)
    layers = [outlined(labels, ground.grid) for labels in (before, after)]
    reach = (int(np.ceil(tolerance)),) * 2
    told, _ = evidence(ground, [layer.geometry.to_numpy() for layer in layers], 0, reach, ground.windows(windows))
    present = [(told[0].present_before, told[0].present_after), (told[1].present_after, told[1].present_before)]
    sides = [
        Objects(
            layer["id"].to_numpy(object),
            shapely.transform(layer.geometry.to_numpy(), lambda xy: xy - (BANEPA.c, BANEPA.f)),
            each.seen,
            own,
            1 - other,
        )
        for layer, each, (own, other) in zip(layers, told, present, strict=True)
    ]
    return compare(*sides, Rules(tolerance * PIXEL, **rules)), *sides


def statuses(*maps: NDArray[np.uint8], **options: Any) -> list[str]:
    return sorted(compared(*maps, **options)[0].table["status"])


def plot(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (60, 70)) -> NDArray[np.uint8]:
    """Labels with 1 in half-open boxes: first and last row, first and last column."""
    labels = np.zeros(shape, np.uint8)
    for top, bottom, left, right in boxes:
        labels[top:bottom, left:right] = 1
    return labels


@st.composite
def towns(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two label maps of one ground, each with its own errors and holes; sides are a multiple of nothing."""
    rows, cols = draw(st.integers(20, 47)), draw(st.integers(20, 53))
    maps = []
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    noise = gaussian_filter(rng.normal(size=(rows, cols)), 2.2)
    for _ in range(2):
        own = gaussian_filter(rng.normal(size=(rows, cols)), 1.8) * draw(st.sampled_from([0.0, 0.3, 1.0]))
        labels = (noise + own > 0.05).astype(np.uint8)
        if draw(st.booleans()):
            top, left = rng.integers(rows), rng.integers(cols)
            labels[top : top + 9, left : left + 14] = NODATA
        maps.append(labels)
    return maps[0], maps[1]


@settings(max_examples=30)
@given(towns(), st.sampled_from([0.0, 1.0, 2.5]))
def test_nothing_changes_between_a_map_and_itself(maps: tuple[NDArray[np.uint8], ...], tolerance: float) -> None:
    events, before, _ = compared(maps[0], maps[0], tolerance)
    assert set(events.table["status"]) <= {"unchanged"}
    assert list(events.table["id_before"]) == list(events.table["id_after"]) == list(before.id)
    assert (events.table["iou"] == 1).all()


@settings(max_examples=60)
@given(towns(), st.sampled_from([0.0, 1.0, 2.5]))
def test_exchanging_the_dates_mirrors_the_changes(maps: tuple[NDArray[np.uint8], ...], tolerance: float) -> None:
    there = compared(*maps, tolerance)[0].table
    back = compared(*maps[::-1], tolerance)[0].table
    back["status"] = back["status"].map(MIRROR)
    back = back.rename(columns={"id_before": "id_after", "id_after": "id_before"})
    back = back.rename(columns={"area_before_m2": "area_after_m2", "area_after_m2": "area_before_m2"})
    order = ["id_before", "id_after"]
    one, other = (t.sort_values(order).reset_index(drop=True)[there.columns.tolist()] for t in (there, back))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=0, atol=2e-4)


@settings(max_examples=40)
@given(towns(), st.sampled_from([(7, 11), (16, 5), (13, 60)]), st.sampled_from([0.0, 2.0]))
def test_windows_do_not_matter_to_what_is_known_of_objects(
    maps: tuple[NDArray[np.uint8], ...], windows: tuple[int, int], tolerance: float
) -> None:
    codes = tuple(np.random.default_rng(5 + i).integers(125, 251, maps[0].shape) for i in (0, 1))
    whole, cut = (compared(*maps, tolerance, size, codes) for size in ((1000, 1000), windows))
    pd.testing.assert_frame_equal(whole[0].table, cut[0].table, check_exact=True)
    for one, other in zip(whole[1:], cut[1:], strict=True):
        for name in ("seen", "present", "absent"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@settings(max_examples=40)
@given(towns(), st.sampled_from([0.0, 1.0, 2.5]))
def test_areas_balance_and_every_object_is_in_one_event(maps: tuple[NDArray[np.uint8], ...], tolerance: float) -> None:
    events, before, after = compared(*maps, tolerance)
    numbers = summary(events.table)
    every = numbers.pop("all")
    for when, side in (("before", before), ("after", after)):
        assert every[f"area_{when}_m2"] == pytest.approx(
            shapely.area(side.geometry).sum(), abs=0.005 * len(side) + 1e-9
        )
        ids = [name for text in events.table[f"id_{when}"].dropna() for name in text.split(";")]
        assert sorted(ids) == sorted(side.id)
    assert sum(row["count"] for row in numbers.values()) == every["count"] == len(events.table)
    gained = sum(round(row["difference_m2"] * 100) for row in numbers.values())
    assert round(every["area_before_m2"] * 100) + gained == round(every["area_after_m2"] * 100)


@settings(max_examples=50)
@given(towns(), st.sampled_from([0, 1, 2]))
def test_what_one_date_does_not_see_is_not_compared(maps: tuple[NDArray[np.uint8], ...], reach: int) -> None:
    """Counted pixel by pixel: an event that is a change has ground that both see, with the tolerance around it."""
    events, *sides = compared(*maps, float(reach))
    unseen = np.pad((maps[0] == NODATA) | (maps[1] == NODATA), reach + 1, constant_values=True)
    near = binary_dilation(unseen, np.ones((2 * reach + 1,) * 2))[reach + 1 : -reach - 1, reach + 1 : -reach - 1]
    status = events.table["status"].to_numpy()
    share = np.ones(len(status))
    for labels, side, of in zip(maps, sides, (events.of_before, events.of_after), strict=True):
        for place, event in enumerate(of):
            shape = shapely.transform(side.geometry[place], lambda xy: xy / (PIXEL, -PIXEL))
            rows, cols = np.nonzero(labels == 1)
            mine = shapely.contains_xy(shape, cols + 0.5, rows + 0.5)
            share[event] = min(share[event], 1 - near[rows[mine], cols[mine]].mean())
    assert (share[~np.isin(status, ["unchanged", "not_compared"])] >= 0.95).all()
    assert (share[status == "not_compared"] < 0.95).all()
    assert events.table["confidence"].isna().to_numpy().tolist() == (status == "not_compared").tolist()


@settings(max_examples=40)
@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(0, 2**20))
def test_a_shift_within_the_tolerance_changes_nothing(rows: int, cols: int, seed: int) -> None:
    """Houses of five pixels and more, terraced, with sheds beside them, some at the edge of what is seen."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((90, 110), np.uint8)
    for top in range(4, 80, 17):
        for left in range(4, 100, 14):
            height, width = rng.integers(5, 13), rng.integers(5, 11)
            labels[top : top + height, left : left + width] = rng.integers(2)
            if rng.random() < 0.5:
                labels[top : top + 5, left + width + 1 : left + width + 6] = 1
    moved = np.roll(labels, (rows, cols), (0, 1))
    tolerance = float(np.hypot(rows, cols))
    found = statuses(labels, moved, tolerance=tolerance)
    assert set(found) <= {"unchanged", "not_compared"}
    assert found.count("unchanged") >= 0.3 * len(found)
    if tolerance > 1:
        assert not set(statuses(labels, moved, tolerance=0.0)) <= {"unchanged", "not_compared"}


HOUSE = (20, 32, 20, 36)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [HOUSE], ["new"]),
        ([HOUSE], [], ["demolished"]),
        ([HOUSE], [(20, 32, 20, 37)], ["unchanged"]),
        ([HOUSE], [(20, 32, 20, 48)], ["enlarged"]),
        ([(20, 32, 20, 48)], [HOUSE], ["reduced"]),
        ([HOUSE], [(20, 32, 26, 42)], ["reshaped"]),
        ([HOUSE], [(20, 32, 20, 27), (20, 32, 28, 36)], ["split"]),
        ([(20, 32, 20, 27), (20, 32, 28, 36)], [HOUSE], ["merged"]),
        # two that exchanged a part of their ground, a third piece on either side
        ([HOUSE, (20, 32, 37, 40)], [(20, 32, 20, 24), (20, 32, 25, 40)], ["regrouped"]),
        # a house with a shed beside it stays one, though the shed lies in the house's tolerance
        ([HOUSE, (20, 24, 37, 40)], [HOUSE, (20, 24, 37, 40)], ["unchanged", "unchanged"]),
        ([HOUSE], [HOUSE, (20, 24, 37, 40)], ["new", "unchanged"]),
        ([HOUSE, (20, 24, 37, 40)], [HOUSE], ["demolished", "unchanged"]),
        # a shed in a house's tolerance is not what is left of the house
        ([HOUSE], [(20, 24, 37, 40)], ["demolished", "new"]),
        # a terrace that lies aside by half a house, within the tolerance: nobody is left over
        (
            [(20, 25, 20, 25), (20, 25, 26, 31), (20, 25, 32, 37)],
            [(20, 25, c, c + 5) for c in (23, 29, 35)],
            ["unchanged"] * 3,
        ),
        # what stands wholly elsewhere is another house, and so is what shares a corner
        ([HOUSE], [(40, 52, 20, 36)], ["demolished", "new"]),
        ([HOUSE], [(28, 44, 30, 46)], ["demolished", "new"]),
        ([], [], []),
    ],
)
def test_what_becomes_of_a_house(before: list[Any], after: list[Any], expected: list[str]) -> None:
    maps = plot(*before), plot(*after)
    assert statuses(*maps) == expected
    assert statuses(*maps[::-1]) == sorted(MIRROR[status] for status in expected)


def test_a_row_of_the_table_says_what_it_is_of() -> None:
    events, before, after = compared(plot(HOUSE), plot((20, 32, 20, 27), (20, 32, 28, 36), (45, 55, 5, 15)))
    split, new = (events.table.iloc[i] for i in (0, 1))
    assert (split["id_before"], split["id_after"], new["id_after"]) == ("r20c20", "r20c20;r20c28", "r45c5")
    assert pd.isna(new["id_before"])
    assert split["area_before_m2"] == round(12 * 16 * 0.09, 2)
    assert split["area_after_m2"] == round(12 * 15 * 0.09, 2)
    assert (split["iou"], new["iou"]) == (round(15 / 16, 4), 0)
    assert (list(events.of_before), list(events.of_after)) == ([0], [0, 0, 1])
    assert (len(before), len(after)) == (1, 3)


def test_confidence_comes_from_both_dates() -> None:
    """A doubtful roof is no news, and one where there may have been one before isn't either."""
    before, after = plot(), plot(HOUSE)
    for sure_before, sure_after, status in ((225, 200, "new"), (225, 130, "uncertain"), (130, 225, "uncertain")):
        table = compared(before, after, codes=(sure_before, sure_after))[0].table
        assert list(table["status"]) == [status]
        assert table["confidence"][0] == pytest.approx(sure_before / 250 * sure_after / 250, abs=1e-4)
    assert statuses(before, after, codes=(130, 225), min_confidence=0.4) == ["new"]
    table = compared(after, after, codes=(200, 225))[0].table
    assert table["confidence"][0] == pytest.approx(200 / 250 * 225 / 250, abs=1e-4)


def test_outlines_grow_by_no_less_than_the_tolerance() -> None:
    """A round corner's segments lie outside of its circle, so a shift of exactly the tolerance stays inside."""
    shape = np.array([shapely.Polygon([(0, 0), (5, 1), (3, 6)])], object)
    exact = shapely.buffer(shape, 1.5, quad_segs=500)
    grown = _grown(shape, 1.5)
    assert shapely.contains(grown, exact).all()
    assert shapely.area(grown) == pytest.approx(shapely.area(exact), rel=0.02)
    assert _grown(shape, 0.0)[0] is shape[0]


def test_rules_are_checked() -> None:
    for wrong in ({"tolerance": -1.0}, {"tolerance": np.inf}, {"tolerance": 1.0, "same": 1.5}):
        with pytest.raises(ValueError, match="tolerance"):
            Rules(**wrong)


# --- class by class, in memory


def changed(before: NDArray[np.uint8], after: NDArray[np.uint8], reach: tuple[int, int]) -> NDArray[np.uint8]:
    """Transitions on all of a map."""
    margin = [(2 * side, 2 * side) for side in reach]
    one, other = (np.pad(labels, margin, constant_values=NODATA) for labels in (before, after))
    return transitions(one, other, 4, reach)


def by_hand(before: NDArray[np.uint8], after: NDArray[np.uint8], reach: tuple[int, int]) -> NDArray[np.uint8]:
    """The definition, pixel by pixel."""
    table, (rows, cols) = transition_codes(4), before.shape
    sure = np.zeros(before.shape, bool)

    def around(labels: NDArray[Any], row: int, col: int) -> Any:
        for r, c in itertools.product(
            range(row - reach[0], row + reach[0] + 1), range(col - reach[1], col + reach[1] + 1)
        ):
            yield labels[r, c] if 0 <= r < rows and 0 <= c < cols else NODATA

    for row, col in np.argwhere((before != after) & (before != NODATA) & (after != NODATA)):
        was, now = before[row, col], after[row, col]
        sure[row, col] = not {now, NODATA} & set(around(before, row, col)) and not {was, NODATA} & set(
            around(after, row, col)
        )
    codes = np.zeros(before.shape, np.uint8)
    for row, col in np.ndindex(before.shape):
        if NODATA in (before[row, col], after[row, col]):
            codes[row, col] = NODATA
            continue
        code = table[before[row, col], after[row, col]]
        known = np.where(sure, table[before % 4, after % 4], 0)
        if code in set(around(known, row, col)):
            codes[row, col] = code
    return codes


@st.composite
def lands(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Two maps of four classes in patches, partly the same, partly not seen."""
    rows, cols = draw(st.integers(5, 23)), draw(st.integers(5, 27))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    size = draw(st.sampled_from([1, 3, 6]))

    def land() -> NDArray[np.uint8]:
        coarse = rng.integers(0, 4, (-(-rows // size), -(-cols // size))).astype(np.uint8)
        return coarse.repeat(size, 0).repeat(size, 1)[:rows, :cols].copy()

    before = land()
    after = np.where(rng.random(before.shape) < 0.1, land(), before)
    top, left = rng.integers(rows), rng.integers(cols)
    after[top : top + 9, left : left + 9] = land()[top : top + 9, left : left + 9]
    for labels in (before, after):
        if rng.random() < 0.5:
            labels[rng.integers(rows) :, rng.integers(cols) :] = NODATA
    return before, after


REACHES = st.tuples(st.integers(0, 2), st.integers(0, 2))


@settings(max_examples=60)
@given(lands(), REACHES)
def test_transitions_are_what_they_are_defined_to_be(
    maps: tuple[NDArray[np.uint8], ...], reach: tuple[int, int]
) -> None:
    np.testing.assert_array_equal(changed(*maps, reach), by_hand(*maps, reach))


@settings(max_examples=60)
@given(lands(), REACHES)
def test_land_has_the_laws_of_change(maps: tuple[NDArray[np.uint8], ...], reach: tuple[int, int]) -> None:
    """change(a, a) is empty, change(b, a) is change(a, b) with classes exchanged, and nodata is never a change."""
    before, after = maps
    assert set(np.unique(changed(before, before, reach))) <= {0, NODATA}
    there, back = changed(before, after, reach), changed(after, before, reach)
    unseen = (before == NODATA) | (after == NODATA)
    np.testing.assert_array_equal(there == NODATA, unseen)
    mirror = np.full(256, NODATA)
    mirror[transition_codes(4)] = transition_codes(4).T
    np.testing.assert_array_equal(mirror[there], back)
    if reach == (0, 0):
        np.testing.assert_array_equal(there != 0, (before != after) | unseen)


@settings(max_examples=60)
@given(lands(), st.integers(-2, 2), st.integers(-2, 2))
def test_land_that_is_shifted_within_the_tolerance_has_not_changed(
    maps: tuple[NDArray[np.uint8], ...], rows: int, cols: int
) -> None:
    """What comes in at one side is not known before, and what leaves at the other is not known after."""
    wide = np.pad(maps[0], 2, mode="edge")
    moved = wide[2 + rows :, 2 + cols :][: maps[0].shape[0], : maps[0].shape[1]]
    assert set(np.unique(changed(maps[0], moved, (abs(rows), abs(cols))))) <= {0, NODATA}


@settings(max_examples=40)
@given(lands(), REACHES, st.sampled_from([(4, 7), (9, 3), (30, 5)]))
def test_windows_do_not_matter_to_transitions(
    maps: tuple[NDArray[np.uint8], ...], reach: tuple[int, int], most: tuple[int, int]
) -> None:
    whole, ground = changed(*maps, reach), ground_of(*maps)
    areas = np.arange(1, len(whole) + 1)
    total = np.zeros((2, 4, 4), np.int64)
    for window in ground.windows(most):
        wider = Window(
            window.row_start - 2 * reach[0],
            window.row_stop + 2 * reach[0],
            window.col_start - 2 * reach[1],
            window.col_stop + 2 * reach[1],
        )
        before, after, *_ = ground.read(wider)
        codes = transitions(before, after, 4, reach)
        np.testing.assert_array_equal(codes, whole[window.slices])
        own = [labels[window.slices] for labels in maps]
        total += tally(*own, codes, areas[slice(*window.row_range)], 4)
    np.testing.assert_array_equal(total, tally(*maps, whole, areas, 4))
    seen = whole != NODATA
    for axis, labels in ((2, maps[0]), (1, maps[1])):
        held = [(areas[:, None] * (seen & (labels == value))).sum() for value in range(4)]
        np.testing.assert_array_equal(total.sum(axis=(0, axis)), held)
    for old, new in itertools.permutations(range(4), 2):
        counts = whole == transition_codes(4)[old, new]
        differs = (maps[0] == old) & (maps[1] == new)
        assert total[0, old, new] == (areas[:, None] * counts).sum()
        assert total[1, old, new] == (areas[:, None] * (differs & ~counts)).sum()


def test_a_field_that_was_built_on_is_found_to_its_border() -> None:
    before = np.full((40, 40), 2, np.uint8)
    after = before.copy()
    after[10:30, 8:25] = 1
    after[0:4, 30:34] = 3  # too small to be told from a border that is off
    codes = changed(before, after, (2, 2))
    expected = np.zeros((40, 40), np.uint8)
    expected[10:30, 8:25] = transition_codes(4)[2, 1]
    np.testing.assert_array_equal(codes, expected)


@given(st.integers(0, 2**20), st.integers(0, 9), st.integers(0, 4))
def test_within_is_a_union(seed: int, rows: int, cols: int) -> None:
    sets = (np.uint16(1) << np.random.default_rng(seed).integers(0, 16, (25, 17)).astype(np.uint16)).astype(np.uint16)
    found = within(sets, (rows, cols))
    for bit in range(16):
        one = maximum_filter((sets >> bit) & 1, (2 * rows + 1, 2 * cols + 1))
        np.testing.assert_array_equal((found >> bit) & 1, one[rows : 25 - rows, cols : 17 - cols])


def test_every_transition_has_a_code_a_name_and_a_colour() -> None:
    for classes in range(2, MOST_CLASSES + 1):
        codes = transition_codes(classes)
        off = ~np.eye(classes, dtype=bool)
        assert sorted(codes[off].tolist()) == list(range(1, classes * (classes - 1) + 1))
        assert codes.max() < NODATA
        assert not codes[~off].any()
    with pytest.raises(ValueError, match="at most 15"):
        transition_codes(16)
    legend = transition_legend(legend_of(3, None))
    assert legend.background == 0
    for old, new in itertools.permutations(range(3), 2):
        assert legend.name(transition_codes(3)[old, new]) == f"class {old} to class {new}"
    red, blue = (LegendClass(value, f"class {value}", colour) for value, colour in enumerate(("#c80000", "#0000c8")))
    colours = {c.name: c.colour for c in transition_legend(Legend((red, blue), None)).classes}
    assert colours["class 0 to class 1"] == "#320096"  # the later one's, with a quarter of the earlier one's
    assert colours["class 1 to class 0"] == "#960032"


def test_what_is_new_or_gone_has_a_colour_of_its_own() -> None:
    """Black is no colour to tell a demolished building by; two kinds of objects are told from each other, too."""
    black, red, blue = (LegendClass(i, f"class {i}", c) for i, c in enumerate(("#000000", "#c80000", "#0000c8")))
    colours = {c.name: c.colour for c in transition_legend(Legend((black, red, blue), 0)).classes}
    assert colours == {
        "unchanged": "#f2f2f2",
        "class 0 to class 1": "#325686",  # three quarters of the blue of new objects on pages, and a quarter of red
        "class 0 to class 2": "#0056b8",
        "class 1 to class 0": "#d24600",  # of the orange of demolished ones
        "class 2 to class 0": "#a04632",
        "class 1 to class 2": "#320096",
        "class 2 to class 1": "#960032",
    }
    last = Legend((LegendClass(0, "roof", "#c80000"), LegendClass(1, "ground", "#000000")), 1)
    assert [c.colour for c in transition_legend(last).classes[1:]] == ["#d24600", "#325686"]


def test_joint_confidence_is_a_product() -> None:
    every = np.arange(251, dtype=np.uint8)
    found = joint_confidence(every[:, None], every[None]) / 250
    np.testing.assert_allclose(found, np.outer(every / 250, every / 250), atol=0.5 / 250 + 1e-9)
    assert joint_confidence(np.uint8([[255, 3]]), np.uint8([[3, 255]])).tolist() == [[255, 255]]


def test_pixels_have_their_true_area_on_the_ground() -> None:
    """In Web Mercator a pixel at 27.6 degrees north is smaller than it says; in degrees, it shrinks to the north."""
    mercator = GeoBox((40, 30), rasterio.Affine(0.3, 0, 9_500_000, 0, -0.3, 3_200_000), "EPSG:3857")
    lat = np.degrees(2 * np.arctan(np.exp(3_200_000 / 6378137)) - np.pi / 2)
    assert pixel_areas(mercator) == pytest.approx((0.3 * np.cos(np.radians(lat))) ** 2, rel=0.01)
    degrees = GeoBox((40, 30), rasterio.Affine(0.1, 0, 80, 0, -0.1, 50), "EPSG:4326")
    areas = pixel_areas(degrees)
    assert (np.diff(areas) > 0).all()
    assert areas[0] / areas[-1] == pytest.approx(np.cos(np.radians(49.95)) / np.cos(np.radians(46.05)), rel=0.01)


# --- the shift between two images


def textured(seed: int, shape: tuple[int, int] = (200, 230)) -> NDArray[np.float64]:
    """Blocks and noise, as smooth as a camera sees them."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((shape[0] // 9 + 1, shape[1] // 9 + 1)).repeat(9, 0).repeat(9, 1)[: shape[0], : shape[1]]
    return gaussian_filter(coarse * 200 + rng.normal(size=shape) * 10, 1.2)


def moved_by(image: NDArray[np.float64], rows: float, cols: float) -> NDArray[np.float64]:
    """An image moved by parts of pixels, exactly but for its ends."""
    return np.fft.ifft2(fourier_shift(np.fft.fft2(image), (rows, cols))).real


@pytest.mark.parametrize(("rows", "cols"), [(0.0, 0.0), (3.0, -5.0), (0.5, 0.25), (-11.3, 17.8), (1.62, -0.44)])
def test_a_block_tells_a_shift_by_parts_of_pixels(rows: float, cols: float) -> None:
    """Against what was done to the image, and against scikit-image."""
    image = textured(4)
    after = moved_by(image, rows, cols)
    pair = (part[30:-30, 30:-30].astype(np.float32) for part in (image, after))
    found = shift.of_block(*pair)
    assert found == pytest.approx((rows, cols), abs=0.06)
    oracle, *_ = phase_cross_correlation(after, image, upsample_factor=50)
    assert found == pytest.approx(tuple(oracle), abs=0.06)


def pairs_of(*shifts: tuple[float, float], seed: int = 0) -> Any:
    for index, (rows, cols) in enumerate(shifts):
        image = textured(seed + index, (140, 150))
        yield image[20:-20, 20:-20].astype(np.float32), moved_by(image, rows, cols)[20:-20, 20:-20].astype(np.float32)


def test_most_blocks_are_believed() -> None:
    """Blocks that have changed, or see nothing, do not draw the answer aside."""
    found = shift.estimate(pairs_of(*[(2.3, -1.4)] * 5, (9.0, 9.0), (-20.0, 3.0), (0.0, 0.0)))
    assert (found.rows, found.cols) == pytest.approx((2.3, -1.4), abs=0.06)
    assert (found.blocks, found.agreeing, found.known) == (8, 5, True)
    assert found.spread < 0.1
    apart = shift.estimate(pairs_of((2.3, -1.4), (9.0, 9.0), (-20.0, 3.0), (0.0, 0.0)))
    assert not apart.known
    few = shift.estimate(pairs_of((2.3, -1.4), (2.3, -1.4)))
    assert (few.agreement, few.known) == (1.0, False)


def test_blocks_without_texture_or_data_are_left_out() -> None:
    image = textured(1, (100, 100)).astype(np.float32)
    half = image.copy()
    half[:, 40:] = np.nan
    flat = np.full_like(image, 7)
    assert shift.of_block(image, half) is None
    assert shift.of_block(image, flat) is None
    assert shift.of_block(image[:20], image[:20]) is None
    assert shift.estimate([]) == shift.Shift(0.0, 0.0, 0, 0, 0.0)
    holed = image.copy()
    holed[10:30, 50:70] = np.nan
    assert shift.of_block(holed, holed) == pytest.approx((0, 0), abs=0.02)


def estimated(before: Path, after: Path) -> tuple[float, float, shift.Shift]:
    """Rows and columns of the scene after, and what they came from."""
    sources = [open_source(open_scene(path), (1, 2, 3)) for path in (before, after)]
    overlap = window_on(sources[1].scene.geobox, sources[0].scene.geobox)
    assert overlap is not None
    cell, pairs = blocks(sources[0], sources[1], overlap)
    found = shift.estimate(pairs)
    return found.rows * cell, found.cols * cell, found


@pytest.mark.parametrize(("rows", "cols"), [(0.0, 0.0), (2.4, -3.7), (-6.25, 0.5)])
def test_a_known_shift_of_a_real_scene_is_found(shared_data: Path, tmp_path: Path, rows: float, cols: float) -> None:
    """Its second date is brighter, noisier, and has lost some of its roofs."""
    with rasterio.open(shared_data / "banepa" / "labelled_train.tif") as scene:
        values = scene.read(window=rasterio.windows.Window(300, 300, 1100, 1000)).astype(np.float64)
        transform, crs = scene.transform, scene.crs
    after = np.stack([moved_by(band, rows, cols) for band in values])
    after[:, 300:480, 500:640] = after[:, 600:780, 200:340]
    after = 1.15 * after + np.random.default_rng(0).normal(size=after.shape) * 6 + 10
    inner = (slice(None), slice(40, -40), slice(40, -40))
    paths = [
        write_tif(tmp_path / f"{name}.tif", np.clip(each[inner], 0, 255).round().astype(np.uint8), crs, transform)
        for name, each in (("before", values), ("after", after))
    ]
    down, along, found = estimated(*paths)
    assert (down, along) == pytest.approx((rows, cols), abs=0.1)
    assert found.known
    assert found.agreement >= 0.75


def test_a_shift_is_told_in_pixels_of_the_second_grid(tmp_path: Path) -> None:
    """Whatever the grid of the first: finer, on another origin, in another CRS."""
    image = np.stack([textured(8, (700, 800))] * 3)
    fine = write_tif(tmp_path / "fine.tif", image.astype(np.uint8))
    with rasterio.open(fine) as dataset:
        place, crs = dataset.transform, dataset.crs
    half = gaussian_filter(image, (0, 0.5, 0.5))[:, ::2, ::2]
    # the coarse one says that it lies 3 of its pixels to the north and 2 to the west of where it is
    coarse = (
        place @ rasterio.Affine.translation(-0.5, -0.5) @ rasterio.Affine.scale(2) @ rasterio.Affine.translation(-2, -3)
    )
    second = write_tif(tmp_path / "second.tif", half.astype(np.uint8), transform=coarse)
    rows, cols, found = estimated(fine, second)
    assert (rows, cols) == pytest.approx((-3, -2), abs=0.15)
    assert found.known
    geographic = rasterio.warp.calculate_default_transform(crs, "EPSG:4326", 800, 700, *rasterio.open(fine).bounds)
    warped = np.zeros((3, geographic[2], geographic[1]), np.uint8)
    rasterio.warp.reproject(
        image.astype(np.uint8),
        warped,
        src_transform=place,
        src_crs=crs,
        dst_transform=geographic[0],
        dst_crs="EPSG:4326",
        resampling=rasterio.warp.Resampling.cubic,
    )
    first = write_tif(tmp_path / "first.tif", warped, "EPSG:4326", geographic[0], nodata=0)
    rows, cols, found = estimated(first, fine)
    assert (rows, cols) == pytest.approx((0, 0), abs=0.15)
    assert found.known


# --- two maps on one grid


def maps_on_disk(folder: Path, labels: NDArray[np.uint8], crs: str, transform: rasterio.Affine) -> Path:
    for name, values in (("labels", labels), ("confidence", np.where(labels == NODATA, NODATA, 200 + labels))):
        write_tif(folder / f"{name}.tif", values.astype(np.uint8), crs, transform, nodata=NODATA)
    return folder


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:4326"])
@pytest.mark.parametrize("by", [(0.0, 0.0), (2.0, -3.0), (0.4, 1.7)])
def test_windows_do_not_matter_to_a_map_on_another_grid(tmp_path: Path, crs: str, by: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, (67, 83)).astype(np.uint8)
    labels[20:30, 10:40] = NODATA
    place = BANEPA @ rasterio.Affine.translation(7.3, -4.6) @ rasterio.Affine.scale(1.7)
    if crs == "EPSG:4326":
        bounds = rasterio.transform.array_bounds(67, 83, place)
        place, *_ = rasterio.warp.calculate_default_transform("EPSG:32645", crs, 83, 67, *bounds)
    before = maps_on_disk(tmp_path / "before", labels, crs, place)
    after = maps_on_disk(tmp_path / "after", rng.integers(0, 4, (90, 110)).astype(np.uint8), "EPSG:32645", BANEPA)
    ground = common_ground(before, after, by)
    whole = ground.read(Window(-9, 99, -5, 120))
    for window in Window(-9, 99, -5, 120).blocks((31, 47)):
        for part, values in zip(ground.read(window), whole, strict=True):
            np.testing.assert_array_equal(part, values[window.relative_to(Window(-9, 99, -5, 120)).slices])
    # by hand: the pixel whose centre is nearest to where each of the grid's came from
    rows, cols = np.mgrid[0:90, 0:110] + 0.5
    x, y = BANEPA @ (cols - by[1], rows - by[0])
    xs, ys = rasterio.warp.transform("EPSG:32645", crs, x.ravel().tolist(), y.ravel().tolist())
    col, row = ~place @ (np.array(xs), np.array(ys))
    inside = (row >= 0) & (row < 67) & (col >= 0) & (col < 83)
    expected = np.full(90 * 110, NODATA)
    expected[inside] = labels[row[inside].astype(int), col[inside].astype(int)]
    clear = np.abs(row - row.round()) + np.abs(col - col.round()) > 0.02  # not on the side of two pixels
    found = whole[0][9:99, 5:115].ravel()
    assert (found == expected)[clear].all()
    assert (found != NODATA).any()


def test_grids_that_do_not_meet_have_no_window() -> None:
    grid = GeoBox((50, 60), BANEPA, "EPSG:32645")
    aside = GeoBox((50, 60), BANEPA @ rasterio.Affine.translation(60, 0), "EPSG:32645")
    partly = GeoBox((50, 60), BANEPA @ rasterio.Affine.translation(40, -20), "EPSG:32645")
    assert window_on(grid, aside) is None
    assert window_on(grid, partly) == Window(0, 30, 40, 60)


# --- whole scenes


def picture(rows: int, cols: int, seed: int = 1) -> NDArray[np.uint8]:
    """Blocks and noise: of what the tiny model makes both classes."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((3, -(-rows // 8), -(-cols // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :cols]
    return (coarse * 180 + rng.random((3, rows, cols)) * 75).astype(np.uint8)


def scene(path: Path, values: NDArray[np.uint8], year: int | None = None, **profile: Any) -> Path:
    write_tif(path, values, **profile)
    if year is not None:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"{year}:07:25 10:11:12")
    return path


def two_dates(folder: Path, **profile: Any) -> tuple[Path, Path]:
    """A scene, and the same with another middle and a hole."""
    before = picture(170, 210)
    after = before.copy()
    after[:, 50:110, 60:140] = picture(60, 80, 7)
    after[:, 120:, :40] = 0
    return (
        scene(folder / "then.tif", before, 2019, nodata=0, **profile),
        scene(folder / "now.tif", after, 2024, nodata=0, **profile),
    )


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of scenes and of their maps; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    geoseg.change(*two_dates(folder), "buildings", folder / "maps", model=str(tiny_model))
    return folder


@pytest.fixture
def scenes(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "scenes")
    return tmp_path / "scenes"


def test_a_comparison_is_complete_and_says_where_it_came_from(finished: Path) -> None:
    folder = finished / "maps" / "then--now"
    names = {"changes.geojson", "changes.parquet", "changes.tif", "changes.tif.aux.xml", "summary.json", "item.json"}
    assert {path.name for path in folder.iterdir()} == names
    assert {path.name for path in (finished / "maps").iterdir()} == {"then", "now", "then--now", ".lock"}
    result = geoseg.Change(folder)
    changes, counts = result.changes, result.item["properties"]["geoseg:counts"]
    assert list(changes.columns) == [
        *("id", "status", "id_before", "id_after", "area_before_m2", "area_after_m2", "iou", "confidence"),
        *("date_before", "date_after", "geometry"),
    ]
    assert "unchanged" not in set(changes["status"])
    assert changes["status"].value_counts().to_dict() == {k: v for k, v in counts.items() if k != "unchanged"}
    assert changes["id"].is_unique
    assert {str(when) for when in changes["date_after"]} == {"2024-07-25 10:11:12+00:00"}
    assert counts["not_compared"] > 0
    assert counts["unchanged"] > 0
    told = json.loads((folder / "changes.geojson").read_text("utf-8"))["features"]
    assert [f["properties"]["id"] for f in told] == changes["id"].tolist()
    assert all(f["properties"]["confidence"] is None for f in told if f["properties"]["status"] == "not_compared")
    JsonSchemaSTACValidator().validate_core(result.item, pystac.STACObjectType.ITEM, result.item["stac_version"])
    item = pystac.Item.from_file(str(folder / "item.json"))
    assert (item.id, item.datetime) == ("then--now", None)
    assert [item.properties[f"{end}_datetime"][:4] for end in ("start", "end")] == ["2019", "2024"]
    sources = {Path(link.href) for link in item.links if link.rel == "derived_from"}
    assert {Path("../then/item.json"), Path("../now/item.json")} <= sources
    assert item.properties["geoseg:parameters"]["shift"]["known"]


def test_pixels_that_became_buildings_are_those_of_both_maps(finished: Path) -> None:
    """Transitions with the tolerance, where both dates are sure enough."""
    maps, folder = finished / "maps", finished / "maps" / "then--now"
    with rasterio.open(folder / "changes.tif") as dataset:
        codes = dataset.read(1)
    labels, sure = (
        [
            np.pad(rasterio.open(maps / name / f"{what}.tif").read(1), 12, constant_values=NODATA)
            for name in ("then", "now")
        ]
        for what in ("labels", "confidence")
    )
    reach = (5, 5)  # 1.5 m of pixels of 0.3 m
    trimmed = tuple(slice(12 - 2 * side, 2 * side - 12 or None) for side in reach)
    expected = transitions(labels[0][trimmed], labels[1][trimmed], 2, reach)
    joint = joint_confidence(sure[0][12:-12, 12:-12], sure[1][12:-12, 12:-12])
    expected[(joint < 125) & (expected != NODATA)] = 0
    np.testing.assert_array_equal(codes, expected)
    assert set(np.unique(codes)) == {0, 1, 2, NODATA}


def test_the_table_balances_and_is_of_the_footprints(finished: Path) -> None:
    maps = finished / "maps"
    numbers = geoseg.Change(maps / "then--now").summary["statuses"]
    every = numbers.pop("all")
    for when, name in (("before", "then"), ("after", "now")):
        layer = gpd.read_parquet(maps / name / "footprints.parquet")
        assert every[f"area_{when}_m2"] == pytest.approx(layer["area_m2"].sum(), abs=0.01 * len(layer))
        assert sum(round(row[f"area_{when}_m2"] * 100) for row in numbers.values()) == round(
            every[f"area_{when}_m2"] * 100
        )
    assert every["difference_m2"] == round(every["area_after_m2"] - every["area_before_m2"], 2)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_run_does_nothing_and_another_tolerance_maps_nothing(scenes: Path, tiny_model: Path) -> None:
    maps, model = scenes / "maps", str(tiny_model)
    # copies have other times, which is all that a plan can see of a file: so they are mapped once more
    again = {"model": model, "overwrite": True}
    paths = scenes / "then.tif", scenes / "now.tif"
    geoseg.change(*paths, "buildings", maps, **again)
    before = stamps(maps)
    geoseg.change(*paths, "buildings", maps, model=model)
    assert stamps(maps) == before
    other = geoseg.change(*paths, "buildings", maps, model=model, tolerance=0.0)
    assert other.summary["tolerance_m"] == 0
    after = stamps(maps)
    assert {Path(name).parent.name for name in before if before[name] != after[name]} == {"then--now"}
    geoseg.segment(paths[0], "buildings", maps, model=model)
    assert stamps(maps) == after
    (maps / "then--now" / "changes.parquet").unlink()
    assert geoseg.change(*paths, "buildings", maps, model=model, tolerance=0.0).changes is not None


def test_a_run_that_was_stopped_leaves_no_item(scenes: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = scenes / "then.tif", scenes / "now.tif"

    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr("geoseg.changes.by_object.write_parquet", full)
    with pytest.raises(OutputError, match="full"):
        geoseg.change(*paths, "buildings", scenes / "maps", model=str(tiny_model), overwrite=True)
    folder = scenes / "maps" / "then--now"
    assert not (folder / "item.json").exists()
    monkeypatch.undo()
    geoseg.change(*paths, "buildings", scenes / "maps", model=str(tiny_model))
    assert (folder / "item.json").exists()


def test_whole_scenes_have_the_laws_of_change(tiny_model: Path, tmp_path: Path) -> None:
    """change(a, a) is empty, change(b, a) mirrors change(a, b), and tiles do not matter."""
    then, now = two_dates(tmp_path)
    copied = scene(tmp_path / "copied.tif", picture(170, 210), 2020, nodata=0)
    maps, options = tmp_path / "maps", {"model": str(tiny_model), "any_order": True}
    same = geoseg.change(then, copied, "buildings", maps, **options)
    assert same.changes.empty
    assert set(same.summary["statuses"]) == {"unchanged", "all"}
    there = geoseg.change(then, now, "buildings", maps, **options)
    back = geoseg.change(now, then, "buildings", maps, **options).changes
    one = sorted(zip(there.changes["id"], there.changes["status"], strict=True))
    other = sorted(
        ("/".join(reversed(name.split("/"))), MIRROR[status])
        for name, status in zip(back["id"], back["status"], strict=True)
    )
    assert one == other
    assert len(one) > 5
    small = geoseg.change(then, now, "buildings", tmp_path / "small", tile=64, **options)
    for name in ("changes.geojson", "summary.json"):
        assert (small.folder / name).read_bytes() == (there.folder / name).read_bytes()


def test_a_scene_that_lies_aside_is_told_and_moved(tiny_model: Path, tmp_path: Path) -> None:
    """The same pixels, said to lie 24 pixels aside: patches see the same, but for the ground that one has alone."""
    then = scene(tmp_path / "then.tif", picture(240, 288))
    now = scene(tmp_path / "now.tif", picture(240, 288), transform=BANEPA @ rasterio.Affine.translation(24, -16))
    options = {"model": str(tiny_model)}
    told = geoseg.change(then, now, "buildings", tmp_path / "told", **options)
    assert told.summary["shift"]["known"]
    assert told.summary["shift"]["pixels"] == pytest.approx([-16, 24], abs=0.1)
    assert told.summary["shift"]["length_m"] == pytest.approx(0.3 * np.hypot(16, 24), rel=0.02)
    assert not told.summary["shift"]["applied"]
    assert set(told.summary["statuses"]) - {"unchanged", "not_compared", "all"}
    moved = geoseg.change(then, now, "buildings", tmp_path / "moved", align=True, **options)
    assert set(moved.summary["statuses"]) <= {"unchanged", "not_compared", "all"}
    assert moved.summary["statuses"]["unchanged"]["count"] > 3
    noise = scene(tmp_path / "noise.tif", picture(240, 288, 5))
    with pytest.raises(SceneError, match=r"--align: only .* leave --align out"):
        geoseg.change(noise, now, "buildings", tmp_path / "moved", align=True, **options)


def test_zones_have_their_own_numbers(scenes: Path, tiny_model: Path) -> None:
    place = BANEPA @ rasterio.Affine.scale(1)
    halves = [
        shapely.transform(shapely.box(*box), lambda xy: np.column_stack(place @ xy.T))
        for box in (
            (0, 0, 100, 170),
            (100, 0, 210, 170),
            (900, 900, 950, 950),
        )
    ]
    zones = gpd.GeoDataFrame({"name": ["west", "east", "beyond"]}, geometry=halves, crs="EPSG:32645")
    zones.to_crs(4326).to_file(scenes / "wards.gpkg")
    found = geoseg.change(
        scenes / "then.tif",
        scenes / "now.tif",
        "buildings",
        scenes / "maps",
        model=str(tiny_model),
        zones=scenes / "wards.gpkg",
        unchanged=True,
        overwrite=True,
    )
    every, told = found.summary["statuses"]["all"], found.summary["zones"]
    assert [zone["name"] for zone in told] == ["west", "east", "beyond"]
    counts = [zone["statuses"]["all"]["count"] for zone in told]
    assert counts[2] == 0
    assert min(counts[:2]) > 0
    assert sum(counts) == every["count"] == len(found.changes)
    assert sum(z["statuses"]["all"]["difference_m2"] for z in told) == pytest.approx(every["difference_m2"], abs=0.005)
    layer = gpd.read_file(found.folder / "zones.geojson")
    assert layer["all_count"].tolist() == counts
    assert all(np.issubdtype(layer[name].dtype, np.integer) for name in layer if name.endswith("_count"))
    assert "zones" in found.item["assets"]
    paths = scenes / "then.tif", scenes / "now.tif"
    geoseg.change(*paths, "buildings", scenes / "maps", model=str(tiny_model))
    assert not (found.folder / "zones.geojson").exists()  # its numbers were those of another one


# --- land cover


@pytest.fixture(scope="module")
def land_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with no background."""
    folder = write_model(tmp_path_factory.mktemp("models") / "land", "land")
    item = json.loads((folder / "item.json").read_text("utf-8"))
    item["properties"] |= {"geoseg:product": "landcover", "geoseg:background": None, "geoseg:separation": None}
    for place, name in enumerate(("meadow", "forest")):
        item["properties"]["mlm:output"][0]["classification:classes"][place]["name"] = name
    (folder / "item.json").write_text(json.dumps(item), encoding="utf-8")
    return folder


def test_land_is_compared_class_by_class(land_model: Path, tmp_path: Path) -> None:
    then, now = two_dates(tmp_path)
    maps = tmp_path / "maps"
    options = {"model": str(land_model), "tolerance": 0.6, "min_area": 2.0}
    result = geoseg.change(then, now, "landcover", maps, **options)
    with rasterio.open(result.folder / "transitions.tif") as dataset:
        codes, colours = dataset.read(1), dataset.colormap(1)
        assert (dataset.nodata, dataset.transform) == (NODATA, BANEPA)
    labels = [rasterio.open(maps / name / "labels.tif").read(1) for name in ("then", "now")]
    expected = np.pad(labels[0], 4, constant_values=NODATA), np.pad(labels[1], 4, constant_values=NODATA)
    np.testing.assert_array_equal(codes, transitions(*expected, 2, (2, 2)))
    assert {1, 2} <= set(np.unique(codes))
    assert colours[1] != colours[2]
    summary_ = result.summary
    hectares = np.array(summary_["hectares"]) + np.array(summary_["within_tolerance_hectares"])
    compared_ = (labels[0] != NODATA) & (labels[1] != NODATA)
    for axis, date in ((1, labels[0]), (0, labels[1])):
        pixels = [np.count_nonzero(compared_ & (date == value)) for value in range(2)]
        assert hectares.sum(axis=axis) == pytest.approx(np.array(pixels) * 0.09 / 1e4, rel=2e-3)
    changes = result.changes
    assert set(changes["status"]) <= {"meadow to forest", "forest to meadow"}
    assert (changes["status"] == changes["class_before"] + " to " + changes["class_after"]).all()
    assert (changes["area_m2"] >= 2).all()
    assert len(changes) == summary_["polygons"] > 0
    assert (changes["confidence"].between(0.25, 1)).all()
    rows = [line.split(",") for line in (result.folder / "transitions.csv").read_text("utf-8").splitlines()]
    assert rows[0] == ["hectares, from \\ to", "meadow", "forest", "within tolerance", "total before"] or len(rows) == 5
    matrix = pd.read_csv(result.folder / "transitions.csv", index_col=0)
    assert matrix.loc["meadow", "forest"] == pytest.approx(summary_["hectares"][0][1], abs=1e-6)
    assert matrix.loc["forest", "total before"] == pytest.approx(hectares[1].sum(), abs=2e-6)
    assert matrix.loc["total after", "meadow"] == pytest.approx(hectares[:, 0].sum(), abs=2e-6)
    assert "meadow to forest" in (result.folder / "transitions.tif.aux.xml").read_text("utf-8")
    assert {c["name"] for c in result.item["assets"]["transitions"]["classification:classes"]} >= {"unchanged"}
    before = stamps(maps)
    geoseg.change(then, now, "landcover", maps, **options)
    assert stamps(maps) == before
    same = scene(tmp_path / "same.tif", picture(170, 210), 2020, nodata=0)
    assert geoseg.change(then, same, "landcover", maps, **options).changes.empty


# --- brightness and contrast


@given(st.integers(0, 2**20), st.sampled_from([(0.0, 255.0), (300.0, 4000.0)]))
def test_matching_gives_bands_the_medians_and_spreads_of_others(seed: int, limits: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    values = rng.uniform(limits[0] + 0.2 * limits[1], 0.7 * limits[1], (2, 4000))
    own = Stretch((limits[0],) * 2, (limits[1],) * 2)
    before = own.apply(values[:, None])[:, 0]
    wanted = np.rint(before * rng.uniform(0.5, 1.2, (2, 1)) + rng.uniform(-9, 9, (2, 1))).clip(0, 255)
    made = matched(own, before, wanted).apply(values[:, None])[:, 0].astype(float)
    for one, other in zip(made, wanted, strict=True):
        assert np.median(one) == pytest.approx(np.median(other), abs=1)
        spreads = [np.median(np.abs(each - np.median(each))) for each in (one, other)]
        assert spreads[0] == pytest.approx(spreads[1], abs=2)


def test_a_darker_image_is_matched_before_it_is_mapped(tiny_model: Path, tmp_path: Path) -> None:
    """So that nothing has changed in a scene that was taken in less light."""
    values = picture(170, 210)
    now = scene(tmp_path / "now.tif", values, 2024)
    then = scene(tmp_path / "then.tif", (values * 0.5 + 30).astype(np.uint8), 2019)
    told = {}
    for match in (False, True):
        maps = tmp_path / f"maps-{match}"
        found = geoseg.change(then, now, "buildings", maps, model=str(tiny_model), match=match)
        with rasterio.open(found.folder / "changes.tif") as dataset:
            told[match] = np.isin(dataset.read(1), [1, 2]).sum()
    assert told[True] <= 0.1 * told[False]
    assert told[False] > 100


# --- what cannot be compared


def test_what_cannot_be_compared_is_told_before_anything_is_mapped(
    tiny_model: Path, land_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then, now = two_dates(tmp_path)
    twin = scene(tmp_path / "twin" / "now.tif", picture(170, 210))
    aside = scene(tmp_path / "aside.tif", picture(90, 90), transform=BANEPA @ rasterio.Affine.translation(3000, 0))
    elsewhere = scene(tmp_path / "far.tif", picture(90, 90), crs="EPSG:32633")
    wards = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)], crs=4326)
    wards.to_file(tmp_path / "wards.gpkg")

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("something was mapped")

    monkeypatch.setattr("geoseg.changes.pair.run", never)
    model = {"model": str(tiny_model)}
    for one, other, product, options, error, says in (
        (now, then, "buildings", model, OptionError, r"now.tif is of 2024-07-25, later than .*then.tif.*--any-order"),
        (twin, now, "buildings", model, OptionError, r"both are named 'now'.*ln -s .*now-before.tif"),
        (now, now, "buildings", model, OptionError, "both are named 'now'"),
        (then, aside, "buildings", model, SceneError, "no ground in common"),
        (then, elsewhere, "buildings", model, SceneError, "no ground in common"),
        (
            then,
            now,
            "buildings",
            model | {"tolerance": -1.0},
            OptionError,
            "--tolerance -1.0: must be 0 metres or more",
        ),
        (then, now, "buildings", model | {"tolerance": 400.0}, OptionError, "--tolerance: spans 13.. pixels"),
        (then, now, "buildings", model | {"min_confidence": 2.0}, OptionError, "--min-confidence 2.0: must be from 0"),
        (then, now, "buildings", model | {"zones": tmp_path / "none.gpkg"}, OptionError, "none.gpkg: cannot be read"),
        (then, tmp_path / "no.tif", "buildings", model, SceneError, "no such file"),
        (then, now, "roads", model, ModelError, "maps buildings, not roads"),
        (
            *(then, now, "landcover", {"model": str(land_model), "zones": tmp_path / "wards.gpkg"}),
            *(OptionError, "counts objects"),
        ),
    ):
        with pytest.raises(error, match=says):
            geoseg.change(one, other, product, tmp_path / "maps", **options)
    assert not (tmp_path / "maps").exists()
    assert plan_change(job_of(now, then, "buildings", tmp_path / "maps", any_order=True, **model)).complete is False


@pytest.mark.parametrize("product", ["buildings", "landcover"])
def test_scenes_that_see_nothing_in_common_are_told(
    product: str, tiny_model: Path, land_model: Path, tmp_path: Path
) -> None:
    values = picture(100, 120)
    left, right = values.copy(), values.copy()
    left[:, :, 60:], right[:, :, :60] = 0, 0
    paths = [scene(tmp_path / f"{name}.tif", each, nodata=0) for name, each in (("a", left), ("b", right))]
    model = tiny_model if product == "buildings" else land_model
    with pytest.raises(SceneError, match="no pixel has data in both"):
        geoseg.change(*paths, product, tmp_path / "maps", model=str(model))
    assert not (tmp_path / "maps" / "a--b" / "item.json").exists()


# --- the command


def test_the_command_prints_the_shift_and_the_table(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    scenes: Path,
    tiny_model: Path,
) -> None:
    arguments = ("change", scenes / "then.tif", scenes / "now.tif", "buildings", "--out", scenes / "anew")
    arguments += ("--model", tiny_model)
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert re.match(r"BEFORE lies 0\.0\d m \([+-]0\.\d\d rows, [+-]0\.\d\d columns; \d of \d blocks agree\) from", out)
    table = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    told = geoseg.Change(scenes / "anew" / "then--now").summary["statuses"]
    assert table["unchanged"][1] == str(told["unchanged"]["count"])
    assert table["all"][-1] == f"{told['all']['difference_m2']:.2f}"
    paths = [Path(line) for line in out.splitlines() if line.startswith("/")]
    files = ["changes.geojson", "changes.parquet", "summary.json", "changes.tif", "item.json"]
    assert [path.name for path in paths] == files
    assert all(path.is_file() for path in paths)
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Nothing left to do: ")
    status, out, err = command(*arguments[:1], *arguments[2:0:-1], *arguments[3:])
    assert (status, out) == (2, "")
    assert "--any-order" in err


def test_the_command_prints_what_land_has_become(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    land_model: Path,
    tmp_path: Path,
) -> None:
    then, now = two_dates(tmp_path)
    status, out, err = command("change", then, now, "landcover", "--out", tmp_path / "maps", "--model", land_model)
    assert (status, err) == (0, "")
    assert re.search(r"^the same class +0\.\d{4}$", out, re.MULTILINE)
    assert "transitions.csv" in out


def test_metres_are_metres_of_equal_area() -> None:
    """In degrees, too: what objects are compared in is not the scene's CRS."""
    grid = GeoBox((50, 60), rasterio.Affine(3e-6, 0, 85.5, 0, -3e-6, 27.6), "EPSG:4326")
    one = gpd.GeoSeries([shapely.box(85.5, 27.5999, 85.5001, 27.6)], crs=4326).to_crs(metric_crs(grid))
    assert one.area[0] == pytest.approx(9.87 * 11.08, rel=0.01)


def test_dates_are_told_or_not(tiny_model: Path, tmp_path: Path) -> None:
    values = picture(100, 120)
    then, now = scene(tmp_path / "a.tif", values), scene(tmp_path / "b.tif", values, 2024)
    found = geoseg.change(then, now, "buildings", tmp_path / "maps", model=str(tiny_model), unchanged=True)
    assert found.changes["date_before"].isna().all()
    assert found.summary["after"]["datetime"] == "2024-07-25T10:11:12Z"
    properties = found.item["properties"]
    assert not properties["geoseg:datetime_known"]
    assert dt.datetime.fromisoformat(properties["start_datetime"]).year == 1970
