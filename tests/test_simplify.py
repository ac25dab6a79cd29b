"""Outlines that share walls, as those of land cover do: the same however much of them is looked at together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from test_smooth import touched

from geoseg import coverage, simplify, walls
from geoseg.polygonise import polygonise_whole
from geoseg.simplify import simplified

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def classes(seed: int, shape: tuple[int, int] = (90, 110)) -> NDArray[np.uint8]:
    """Land cover of four classes: one that winds through all of it, and specks."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.random((4, *shape)), (0, 2, 2))
    fields[0] += 0.01
    labels = fields.argmax(axis=0).astype(np.uint8)
    specks = rng.random(shape) < 0.01
    labels[specks] = rng.integers(0, 4, shape)[specks]
    return labels


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    at_once=st.sampled_from([1, 40, 1000]),
    tile=st.sampled_from([3, 17, 64]),
    smooth=st.sampled_from([0.0, 1.5]),
    tolerance=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_how_much_is_looked_at_together_does_not_matter(
    seed: int, at_once: int, tile: int, smooth: float, tolerance: float
) -> None:
    """All of them touch, as land cover does."""
    objects = polygonise_whole(classes(seed, (40, 50)), background=None)
    block = np.zeros(len(objects), np.int64)
    shaped = simplified(objects.geometry, block, tolerance, smooth)
    assert shapely.is_valid(shaped).all()
    assert shapely.coverage_is_valid(shaped) or not (tolerance or smooth)  # exact ones lack vertices of neighbours
    whole = shapely.to_wkb(shaped).tolist()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(walls, "AT_ONCE", at_once)
        patched.setattr(simplify, "AT_ONCE", at_once)
        patched.setattr(coverage, "TILE", tile)
        assert shapely.to_wkb(simplified(objects.geometry, block, tolerance, smooth)).tolist() == whole


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    wide=st.sampled_from([2, 4, 300]),
    tolerance=st.sampled_from([0.0, 0.5, math.sqrt(0.5), 1.0, 2.5]),
    closed=st.booleans(),
)
def test_lines_keep_the_vertices_that_shapely_keeps(seed: int, wide: int, tolerance: float, *, closed: bool) -> None:
    """Of stairs, and of vertices that lie anyhow: also where two are equally far away, or as far as may be."""
    rng = np.random.default_rng(seed)
    stairs = (
        np.cumsum(rng.integers(-1, 2, (40, 2)) * rng.integers(0, 2, (40, 1)), axis=0) + np.arange(40)[:, np.newaxis]
    )
    lines = [stairs, rng.integers(-wide, wide, (30, 2)), rng.integers(-wide, wide, (2, 2))]
    if closed:
        lines = [np.concatenate([line, line[:1]]) for line in lines]
    xy, start = np.concatenate(lines).astype(np.int32), np.cumsum([0, *map(len, lines)])
    kept = simplify._simplified(xy, start, tolerance)
    for line, its in zip(lines, np.split(kept, start[1:-1]), strict=True):
        expected = shapely.simplify(shapely.linestrings(line.astype(float)), tolerance, preserve_topology=False)
        assert line[its].tolist() == shapely.get_coordinates(expected).tolist()


@pytest.mark.parametrize(("tolerance", "smooth"), [(1.0, 0.0), (0.5, 2.0)])
def test_real_land_cover_is_the_same_however_much_is_looked_at(
    shared_data: Path, tolerance: float, smooth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of labels drawn by hand: a coverage, with no more ground and no less."""
    chips = sorted((shared_data / "landcover_aerial" / "labels").glob("*.png"))[:9]
    labels = [np.asarray(Image.open(chip), np.uint8) for chip in chips]
    objects = polygonise_whole(np.block([labels[row : row + 3] for row in (0, 3, 6)]), background=None)
    block = np.zeros(len(objects), np.int64)
    whole = simplified(objects.geometry, block, tolerance, smooth)
    assert shapely.is_valid(whole).all()
    assert shapely.coverage_is_valid(whole)
    union = shapely.union_all(whole)  # smoothing cuts the raster's own corners
    assert shapely.area(whole).sum() == pytest.approx(union.area)
    assert union.area == pytest.approx(900 * 900, abs=0 if not smooth else 40)
    assert not len(union.interiors)
    assert shapely.get_num_coordinates(whole).sum() < 0.7 * shapely.get_num_coordinates(objects.geometry).sum()
    monkeypatch.setattr(walls, "AT_ONCE", 777)
    monkeypatch.setattr(simplify, "AT_ONCE", 500)
    monkeypatch.setattr(coverage, "TILE", 50)
    few = simplified(objects.geometry, block, tolerance, smooth)
    assert shapely.to_wkb(few).tolist() == shapely.to_wkb(whole).tolist()


@pytest.mark.parametrize("times", [1, 3])
def test_no_more_is_looked_at_together_than_asked_for(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the map is: vertices of walls, and edges held together."""
    objects = polygonise_whole(np.tile(classes(0), (times, times)), background=None)
    at_once, tile, most = 2000, 32, dict.fromkeys(("smoothed", "drawn", "edges"), 0)
    original = {
        "draw": simplify.smoothed,
        "meet": coverage._meet,
        "select": walls.Lines.select,
    }

    def drawn(lines: Any, reach: float) -> Any:
        most["smoothed"] = max(most["smoothed"], int(shapely.get_num_coordinates(lines).sum()))
        return original["draw"](lines, reach)

    def met(xy: Any, start: Any, *more: Any) -> Any:
        some, box = more[-3:-1]
        begin = np.concatenate([np.arange(start[line], start[line + 1] - 1) for line in some])
        ends = xy[begin], xy[begin + 1]
        here = ((np.maximum(*ends) >= box[0]) & (np.minimum(*ends) <= box[1])).all(axis=1)
        most["edges"] = max(most["edges"], int(here.sum()))
        return original["meet"](xy, start, *more)

    def selected(lines: Any, which: Any) -> Any:
        found = original["select"](lines, which)
        most["drawn"] = max(most["drawn"], len(found.xy))
        return found

    monkeypatch.setattr(walls, "AT_ONCE", at_once)
    monkeypatch.setattr(simplify, "AT_ONCE", at_once)
    monkeypatch.setattr(coverage, "TILE", tile)
    monkeypatch.setattr(simplify, "smoothed", drawn)
    monkeypatch.setattr(coverage, "_meet", met)
    monkeypatch.setattr(walls.Lines, "select", selected)
    simplified(objects.geometry, np.zeros(len(objects), np.int64), 1.0, 1.0)
    assert 0 < most["smoothed"] <= most["drawn"] <= at_once
    assert 0 < most["edges"] <= 4 * (tile + 2) ** 2
    assert shapely.get_num_coordinates(objects.geometry).sum() > 2 * at_once


def test_one_clash_leaves_the_rest_of_a_large_outline_simplified() -> None:
    """Stairs beside a strip one pixel wide that would close: other walls of the polygon are straight all the same."""
    labels = np.zeros((60, 60), np.uint8)
    row, col = np.mgrid[:60, :60]
    labels[col > 20 + row // 4] = 1  # a stair
    labels[5:9, 2:12] = 2
    labels[7, 3:11] = 0
    labels[6, 5:7] = labels[8, 8:9] = 0  # a strip in an island that a wall across it would close
    objects = polygonise_whole(labels, background=None)
    out = simplified(objects.geometry, np.zeros(len(objects), np.int64), 1.0)
    assert shapely.coverage_is_valid(out)
    (right,) = out[objects.label == 1]
    assert shapely.get_num_coordinates(right) == 5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.3, 0.5, 1.0, 2.0]), st.sampled_from([None, 0, 1]))
def test_holes_step_back_no_further_than_outlines_may_be(seed: int, tolerance: float, background: int | None) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((3, 40, 40)), (0, 1, 1))
    objects = polygonise_whole(noise.argmax(axis=0).astype(np.uint8), background=background)
    out = simplified(objects.geometry, np.zeros(len(objects), np.int64), tolerance)
    apart = shapely.hausdorff_distance(shapely.boundary(objects.geometry), shapely.boundary(out), densify=0.1)
    assert apart.max() <= tolerance + 1e-9


@pytest.mark.parametrize(("tolerance", "smooth"), [(0.0, 1.0), (3.0, 0.0)])
def test_holes_that_would_step_far_back_meet_nothing(
    tolerance: float, smooth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They step back so little that it hardly comes to that; here, by a quarter of their sides."""
    monkeypatch.setattr(simplify, "STEP_BACK", 50.0)
    for seed in range(4):
        objects = polygonise_whole(classes(seed, (50, 60)), background=None)
        out = simplified(objects.geometry, np.zeros(len(objects), np.int64), tolerance, smooth)
        assert shapely.is_valid(out).all()
        assert shapely.coverage_is_valid(out)


def test_holes_step_back_in_objects_that_stand_alone() -> None:
    before = after = 0
    for seed in range(4):
        objects = polygonise_whole((classes(seed) > 1).astype(np.uint8), background=0)
        out = simplified(objects.geometry, np.arange(len(objects)), 1.0)
        before, after = before + touched(objects.geometry), after + touched(out)
        assert shapely.is_valid(out).all()
    assert before > 10
    assert after <= 1


def test_a_ring_that_has_turned_round_is_not_in_order() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1] = 1
    net = simplify._Net(
        walls.Walls.of(polygonise_whole(labels, background=None).geometry, np.zeros(2, np.int64)),
        2,
        1.0,
        0.0,
        shapely.is_valid,
    )
    exact = net._walls.exact
    mirrored = walls.Lines(exact.xy[:, ::-1].astype(float), exact.start)
    every = np.ones(2, np.bool_)
    assert net._outlined(mirrored, every).all()
    assert not net._outlined(exact, every).any()


@pytest.mark.parametrize("tolerance", [2.0, 3.0])
def test_what_lies_across_a_strip_of_background_is_not_met(tolerance: float) -> None:
    """Where no polygon between them would tell, being invalid."""
    for seed in range(30):
        noise = ndimage.uniform_filter(np.random.default_rng(seed).random((40, 50)), 2)
        labels = np.digitize(noise, np.quantile(noise, [0.3, 0.6])).astype(np.uint8)
        objects = polygonise_whole(labels, background=0)
        out = simplified(objects.geometry, np.zeros(len(objects), np.int64), tolerance)
        assert shapely.is_valid(out).all()
        assert shapely.coverage_is_valid(out)
