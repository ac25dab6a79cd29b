"""Numbers and polygons as texts of GeoJSON, against Python's own words and GEOS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st

from geoseg.io import vectors
from geoseg.io.texts import STEPS, Ragged, decimal_texts, polygon_texts
from geoseg.polygonise import polygonise_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

DEGREES = st.integers(-180 * STEPS, 180 * STEPS)


@given(st.lists(st.integers(-(10**15), 10**15), max_size=30), st.integers(1, 5))
@example([0, -1, 1, 9, 10, -10, 99999, 100000, 10**15], 4)
def test_decimals_are_read_back(numbers: list[int], digits: int) -> None:
    values = np.array(numbers, np.float64) / 10.0**digits
    texts = decimal_texts(values, digits).to_pylist()
    assert [float(text) for text in texts] == [round(value, digits) for value in values.tolist()]
    assert all(text == str(float(text)) or abs(float(text)) < 1e-3 for text in texts)
    for text in texts:
        whole, _, part = text.partition(".")
        assert 1 <= len(part) <= digits
        assert len(part) == 1 or not part.endswith("0")
        assert whole.lstrip("-") == str(abs(int(whole)))


def ragged(polygons: list[shapely.Polygon]) -> Ragged:
    _, xy, offsets = shapely.to_ragged_array(np.array(polygons, object))
    return Ragged(np.rint(xy).astype(np.int64), offsets[0].astype(np.int64), offsets[1].astype(np.int64))


@st.composite
def closed(draw: st.DrawFn) -> shapely.Polygon:
    """A ring of few whole numbers, so that it often meets itself."""
    points = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=8))
    shift = draw(st.sampled_from([(0, 0), (-3, 2), (179 * STEPS, -90 * STEPS)]))
    return shapely.Polygon([(x + shift[0], y + shift[1]) for x, y in points])


@settings(max_examples=400)
@given(st.lists(closed(), min_size=1, max_size=6))
@example([shapely.Polygon([(0, 0), (4, 0), (4, 4), (2, 0), (0, 4)])])  # a vertex on an edge
@example([shapely.Polygon([(0, 0), (4, 0), (2, 0), (2, 2)])])  # turns back
@example([shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])])  # a bow
@example([shapely.Polygon([(0, 0), (2, 0), (2, 2), (4, 2), (4, 4), (2, 2), (0, 2)])])  # touches itself
@example([shapely.Polygon([(0, 0), (0, 0), (2, 0), (2, 2)])])
def test_what_is_surely_valid_is(polygons: list[shapely.Polygon]) -> None:
    """And most of what is valid is known to be so; texts say what the polygons are, counterclockwise."""
    texts, sure = polygon_texts(ragged(polygons))
    for polygon, text, is_sure in zip(polygons, texts.to_pylist(), sure.tolist(), strict=True):
        repeats = (np.diff(shapely.get_coordinates(polygon), axis=0) == 0).all(axis=1).any()
        assert is_sure == (polygon.is_valid and not repeats)
        said = json.loads(text)
        (ring,) = said["coordinates"]
        own = [[x / STEPS, y / STEPS] for x, y in polygon.exterior.coords]
        assert ring in (own, own[::-1])
        if polygon.is_valid:
            assert shapely.LinearRing(np.array(ring) * STEPS).is_ccw


@settings(max_examples=60)
@given(
    st.integers(0, 2**20),
    st.sampled_from([(85.5, 27.6), (-179.99, -89.9), (0.0, 0.0), (-0.00005, 0.00002), (9.9999, 99.9 - 10)]),
    st.floats(1e-6, 1e-3),
    st.sampled_from([-1, 1]),
)
def test_rings_with_holes_are_as_geos_turns_them(seed: int, place: tuple[float, float], side: float, up: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 3, (9, 12)).astype(np.uint8)
    polygons = polygonise_whole(labels, background=None).geometry
    sign = np.array([side, side * up])
    frame = gpd.GeoDataFrame(geometry=shapely.transform(polygons, lambda xy: xy * sign + np.array(place)), crs=4326)
    texts = vectors._geometry_texts(frame).to_pylist()
    expected = shapely.to_geojson(vectors.to_lonlat(frame))
    assert [json.loads(text) for text in texts] == [json.loads(text) for text in expected]
    assert all(shapely.from_geojson(text).is_valid for text in texts)


def test_polygons_of_many_kinds_are_side_by_side() -> None:
    """What rounding breaks, what is large, what crosses the antimeridian, and parts, in one layer."""
    angle = np.linspace(0, 2 * np.pi, 400)
    shapes = [
        shapely.box(85, 27, 85.1, 27.1),
        shapely.Polygon([(0, 0), (1, 0), (1, 1), (0.50000001, 1), (0.5, 1e-9), (0.49999999, 1), (0, 1)]),
        shapely.Polygon(np.column_stack([np.cos(angle), np.sin(angle)])),
        shapely.Polygon([(179.9, 0), (-179.9, 0), (-179.9, 1), (179.9, 1)]),
        shapely.box(0, 0, 3, 3).difference(shapely.box(1, 1, 2, 2)),
    ]
    for more in ([], [shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 2, 3, 3)])]):
        frame = gpd.GeoDataFrame(geometry=[*shapes, *more], crs=4326)
        texts = vectors._geometry_texts(frame).to_pylist()
        expected = shapely.to_geojson(vectors.to_lonlat(frame))
        assert [json.loads(text) for text in texts] == [json.loads(text) for text in expected]
        assert json.loads(texts[3])["type"] == "MultiPolygon"
        assert all(shapely.from_geojson(text).is_valid for text in texts)


@pytest.mark.parametrize("values", [[0.1, np.nan], [1e14, 1.0], [np.inf, 2.0]])
def test_numbers_that_have_no_room_are_told_otherwise(values: list[float]) -> None:
    frame = gpd.GeoDataFrame({"n": values}, geometry=[shapely.box(0, 0, 1, 1)] * 2, crs=4326)
    (features,) = vectors._lines(frame)
    told = [json.loads(text)["properties"]["n"] for text in features.to_pylist()]
    assert told == [value if np.isfinite(value) else None for value in values]


def texts_of(numbers: NDArray[np.float64]) -> list[str]:
    texts: list[str] = decimal_texts(numbers, 4).to_pylist()
    return texts


def test_halves_are_rounded_as_numpy_rounds_them() -> None:
    values = np.random.default_rng(0).normal(0, 1000, 10_000)
    assert [float(text) for text in texts_of(values)] == values.round(4).tolist()
