"""Smoothing the pixels' staircase: against a plain average of many points, and the laws of what touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.polygonise import polygonise_whole
from geoseg.simplify import simplified
from geoseg.smooth import smoothed

if TYPE_CHECKING:
    from numpy.typing import NDArray


def walk(seed: int, steps: int, *, closed: bool) -> Any:
    """A line along pixels' sides that does not come back on itself at once; closed: round some of them."""
    rng = np.random.default_rng(seed)
    if closed:
        labels = np.pad((ndimage.gaussian_filter(rng.standard_normal((12, 12)), 1) > 0).astype(np.uint8), 1)
        labels[6, 6] = 1
        return shapely.get_exterior_ring(polygonise_whole(labels, background=0).geometry[0])
    ways = np.array([[1, 0], [0, 1]])[rng.integers(0, 2, steps)]
    line = shapely.linestrings(np.concatenate([np.zeros((1, 2)), np.cumsum(ways, axis=0)]))
    return shapely.simplify(line, 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 40),
    reach=st.sampled_from([0.25, 0.5, 1.0, 2.5, 7.0]),
    closed=st.booleans(),
)
def test_each_point_is_the_mean_of_what_is_near(seed: int, steps: int, reach: float, *, closed: bool) -> None:
    line = walk(seed, steps, closed=closed)
    length = line.length
    (found,) = smoothed(np.array([line]), reach)
    at = np.arange(0, 2 * round(length) + 1) / 2
    far = np.full_like(at, min(reach, length / 8)) if closed else np.minimum(reach, np.minimum(at, length - at))
    fine = (np.arange(2000) + 0.5) / 1000 - 1
    places = at[:, np.newaxis] + far[:, np.newaxis] * fine
    places = places % length if closed else places
    near = shapely.get_coordinates(shapely.line_interpolate_point(line, places.ravel())).reshape(*places.shape, 2)
    np.testing.assert_allclose(shapely.get_coordinates(found), near.mean(axis=1), atol=0.005)
    own = shapely.get_coordinates(shapely.line_interpolate_point(line, at))
    assert np.linalg.norm(shapely.get_coordinates(found) - own, axis=1).max() <= reach / 2 + 1e-9


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999), st.integers(1, 30), st.booleans()), min_size=1, max_size=8))
def test_a_line_is_the_same_in_any_company(wanted: list[tuple[int, int, bool]]) -> None:
    lines = np.array([walk(seed, steps, closed=closed) for seed, steps, closed in wanted], object)
    alone = [smoothed(np.array([line]), 1.7)[0] for line in lines]
    with pytest.MonkeyPatch.context() as patch:
        for at_once in (1 << 17, 20):
            patch.setattr("geoseg.smooth._AT_ONCE", at_once)
            assert shapely.to_wkb(smoothed(lines, 1.7)).tolist() == shapely.to_wkb(alone).tolist()


def test_what_is_level_stays_to_the_last_bit() -> None:
    corner = shapely.linestrings(np.array([[5003, 701], [5033, 701], [5033, 741]]))
    (found,) = smoothed(np.array([corner]), 1.7)
    xy = shapely.get_coordinates(found)
    own = shapely.get_coordinates(shapely.line_interpolate_point(corner, np.arange(len(xy)) / 2))
    away = np.abs(np.arange(len(xy)) / 2 - 30) > 1.7
    np.testing.assert_array_equal(xy[away], own[away])
    assert (xy[~away] != own[~away]).any(axis=1).all()


def test_stairs_become_a_line() -> None:
    """Of one pixel each, and of one pixel to four, as far as the reach goes over one of them."""
    for run, reach in ((1, 1.0), (4, 2.5)):
        ways = np.tile(np.repeat([[1, 0], [0, 1]], [run, 1], axis=0), (20, 1))
        xy = np.concatenate([np.zeros((1, 2)), np.cumsum(ways, axis=0)])
        (found,) = smoothed(np.array([shapely.simplify(shapely.linestrings(xy), 0)]), reach)
        inner = shapely.get_coordinates(found)[2 * (run + 1) : -2 * (run + 1)]
        beside = np.abs(inner @ np.array([1, -run]) - run / 2) / np.hypot(1, run)
        assert beside.max() < 1e-9 if run == 1 else beside.max() < 0.2


# --- holes that touch


def touched(shapes: NDArray[np.object_]) -> int:
    """How many pairs of rings of one polygon meet."""
    rings, owner = shapely.get_rings(shapes, return_index=True)
    one, two = shapely.STRtree(rings).query(rings, predicate="intersects")
    return int(((one < two) & (owner[one] == owner[two])).sum())


def patches(seed: int, classes: int, shape: tuple[int, int] = (80, 80)) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) for _ in range(classes)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    labels[rng.random(shape) < 0.02] = 0
    return labels


@pytest.mark.parametrize("background", [0, None])
@pytest.mark.parametrize(("tolerance", "smooth"), [(1.0, 0.0), (0.0, 1.0), (0.5, 2.0)])
def test_holes_step_back_from_where_they_touch(background: int | None, tolerance: float, smooth: float) -> None:
    before = after = 0
    for seed in range(3):
        objects = polygonise_whole(patches(seed, 3), background=background)
        block = np.zeros(len(objects), np.int64)
        shaped = simplified(objects.geometry, block, tolerance, smooth)
        before, after = before + touched(objects.geometry), after + touched(shaped)
        assert shapely.is_valid(shaped).all()
        if background is None:
            assert shapely.coverage_is_valid(shaped)
            assert shapely.area(shaped).sum() == pytest.approx(shapely.union_all(shaped).area)
        apart = shapely.hausdorff_distance(shapely.boundary(shaped), shapely.boundary(objects.geometry), 0.1)
        assert apart.max() <= tolerance + smooth / 2 + 0.25 + 1e-9
    assert before > 30
    assert after <= 1  # where a vertex of one lies on a side of another


def test_exact_outlines_stay_exact() -> None:
    objects = polygonise_whole(patches(0, 3), background=0)
    same = simplified(objects.geometry, np.zeros(len(objects), np.int64), 0.0)
    assert touched(same) == touched(objects.geometry) > 0
    assert shapely.equals_exact(same, objects.geometry).all()
