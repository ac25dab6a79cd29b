"""Areas that polygons have in common, against GEOS, which makes the intersection."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
import shapely.affinity
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from geoseg import intersection
from geoseg.intersection import common_areas
from geoseg.polygonise import polygonise_whole


def shapes(seed: int) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    """Objects of a random mask, holes and all: exact outlines, and as many that were turned and simplified."""
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.standard_normal((30, 40)), 1.5) > 0
    exact = polygonise_whole(mask.astype(np.uint8)).geometry
    angle = rng.uniform(-90, 90)
    turned = [shapely.affinity.rotate(p, angle, origin=(20, 15)).simplify(0.5).buffer(0) for p in exact]
    parts = shapely.get_parts(np.array(turned))
    return np.concatenate([exact, parts])


@given(st.integers(0, 10_000), st.sampled_from([0, 3_057_000]))
def test_areas_are_those_of_the_intersections(seed: int, far: int) -> None:
    """Also of exact outlines that share walls, and of a polygon with itself."""
    polygons = shapely.transform(shapes(seed), lambda xy: xy + far)
    one, two = (place.ravel() for place in np.indices((len(polygons), len(polygons))))
    found = common_areas(polygons[one], polygons[two])
    expected = shapely.area(shapely.intersection(polygons[one], polygons[two]))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 if not far else 1e-5)
    own = common_areas(polygons, polygons)
    np.testing.assert_allclose(own, shapely.area(polygons), rtol=1e-9 if not far else 1e-6)


@given(st.integers(0, 10_000), st.integers(-1_000_000, 1_000_000))
def test_place_has_no_say(seed: int, shift: int) -> None:
    polygons = shapely.set_precision(shapes(seed), 1 / 1024)
    polygons = polygons[(shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(polygons)]
    moved = shapely.transform(polygons, lambda xy: xy + np.array([shift, -3 * shift]))
    assert common_areas(moved, moved[::-1]).tolist() == common_areas(polygons, polygons[::-1]).tolist()


@pytest.mark.parametrize("ccw", [False, True])
def test_rings_may_be_walked_either_way(*, ccw: bool) -> None:
    yard = shapely.box(0, 0, 10, 10, ccw=ccw).exterior
    hole = shapely.box(2, 2, 5, 5, ccw=True).exterior
    polygon = np.array([shapely.Polygon(yard, [hole])])
    assert common_areas(polygon, np.array([shapely.box(4, 4, 20, 20)])).tolist() == [36 - 1]


def test_large_ones_are_left_to_geos(monkeypatch: pytest.MonkeyPatch) -> None:
    polygons = shapes(3)
    expected = common_areas(polygons, polygons[::-1])
    summed: list[int] = []

    def sums(*given: Any) -> Any:
        summed.append(len(given[1]) - 1)
        return honest(*given)

    honest = intersection._sums
    monkeypatch.setattr(intersection, "_sums", sums)
    pairs = shapely.get_num_coordinates(polygons) * shapely.get_num_coordinates(polygons[::-1])
    for most in (0, int(np.median(pairs)), int(pairs.max())):
        monkeypatch.setattr(intersection, "MOST", most)
        np.testing.assert_allclose(common_areas(polygons, polygons[::-1]), expected, rtol=1e-9, atol=1e-9)
        assert summed.pop() == np.count_nonzero(pairs <= most)


def test_nothing_in_common_is_zero() -> None:
    boxes = shapely.box(np.array([0.0, 0, 0]), 0, np.array([1.0, 1, 1]), 1)
    others = shapely.box(np.array([1.0, 0, 5]), np.array([0.0, 1, 5]), np.array([2.0, 1, 6]), np.array([1.0, 2, 6]))
    assert common_areas(boxes, others).tolist() == [0, 0, 0]
    assert common_areas(boxes[:0], others[:0]).tolist() == []
