"""Footprints on the ground and the files they are written to."""

from __future__ import annotations

import datetime as dt
import errno
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio.features
import shapely
from conftest import BANEPA
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio import Affine
from scipy import ndimage

from geoseg.catalog import Legend, LegendClass
from geoseg.errors import OutputError
from geoseg.footprints import Layer, footprints, measure
from geoseg.io.geoparquet import write_parquet
from geoseg.io.vectors import to_lonlat, to_pixels, to_world, write_geojson
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEGEND = Legend((LegendClass(0, "background", "#000000"), LegendClass(1, "building", "#ff0000")), 0)
WHEN = dt.datetime(2022, 7, 25, 10, 11, 12, tzinfo=dt.UTC)
SHAPE = (60, 80)


def mercator(lon: float, lat: float, pixel: float) -> GeoBox:
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    return GeoBox(SHAPE, Affine(pixel, 0, x, 0, -pixel, y), 3857)


GRIDS = {
    "UTM": GeoBox(SHAPE, BANEPA, 32645),
    "south up": GeoBox(SHAPE, Affine(0.3, 0, 334_000, 0, 0.3, 3_057_000), 32645),
    "turned": GeoBox(SHAPE, BANEPA @ Affine.rotation(33), 32645),
    "Mercator": mercator(10.75, 60.0, 0.6),
    "degrees": GeoBox(SHAPE, Affine(3e-6, 0, 10.75, 0, -2e-6, 60.0), 4326),
    "south of the equator": GeoBox(SHAPE, Affine(0.3, 0, 300_000, 0, -0.3, 9_300_000), 32737),
}


def picture() -> NDArray[np.uint8]:
    """A square, one with a hole that holds an island, a diagonal of single pixels, and one beside nodata."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:15, 5:15] = 1
    labels[20:50, 10:40] = 1
    labels[28:42, 18:32] = 0
    labels[33:36, 22:26] = 1
    labels[[2, 3, 4], [50, 51, 52]] = 1
    labels[30:40, 60:70] = 1
    labels[30:40, 70:] = 255
    return labels


def confidence_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    codes = np.random.default_rng(1).integers(126, 251, labels.shape).astype(np.uint8)
    codes[labels == 255] = 255
    return codes


def outlined(geobox: GeoBox, labels: NDArray[np.uint8], windows: list[Window] | None = None, **more: Any) -> Any:
    confidence = confidence_of(labels)
    windows = windows or [Window.of_shape((labels.shape[0], labels.shape[1]))]
    layer = Layer(geobox, LEGEND, "town", **{"datetime": WHEN, "simplify": 0.0, "model": "m", **more})
    return footprints(((w, labels[w.slices], confidence[w.slices]) for w in windows), layer)


# --- attributes


def test_columns_and_values() -> None:
    frame = outlined(GRIDS["UTM"], picture())
    columns = ["id", "class", "area_m2", "perimeter_m", "confidence", "confidence_min", "edge_sharpness"]
    columns += ["touches_nodata", "touches_edge", "vertices", "orientation_deg", "scene", "datetime", "model"]
    assert list(frame.columns) == [*columns, "geometry"]
    assert list(frame["id"]) == ["r2c50", "r3c51", "r4c52", "r5c5", "r20c10", "r30c60", "r33c22"]
    assert set(frame["class"]) == {"building"}
    assert set(frame["scene"]) == {"town"}
    assert (frame["datetime"] == WHEN).all()
    assert list(frame["touches_nodata"]) == [False] * 5 + [True, False]
    square = frame[frame["id"] == "r5c5"].iloc[0]
    expected = confidence_of(picture())[5:15, 5:15].mean() / 250
    assert square["confidence"] == pytest.approx(expected, abs=5e-5)
    assert square["confidence_min"] == pytest.approx(confidence_of(picture())[5:15, 5:15].min() / 250, abs=5e-5)
    assert list(frame["touches_edge"]) == [False] * 7
    assert list(frame["vertices"]) == [
        sum(len(ring.coords) - 1 for ring in (shape.exterior, *shape.interiors)) for shape in frame.geometry
    ]
    assert set(frame["model"]) == {"m"}
    x, y = BANEPA @ (5, 5)
    assert square.geometry.equals(shapely.box(x, y - 3, x + 3, y))
    assert frame.crs.to_epsg() == 32645


def test_what_is_unknown_has_no_column() -> None:
    frame = footprints([(Window(0, 60, 0, 80), picture(), None)], Layer(GRIDS["UTM"], LEGEND, "a", confident=False))
    assert not {"confidence", "confidence_min", "edge_sharpness", "datetime", "model"} & set(frame.columns)


def test_edge_sharpness_is_the_step_of_the_probability_across_the_outline() -> None:
    """0.9 inside and 0.7 beyond: 0.9 that it is one here, 0.3 there; the scene's edge and nodata are no outline."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:12, 0:9] = 1
    labels[2:9, 20:26] = 1
    labels[2:9, 26:] = 255
    codes = np.where(labels == 1, 225, 175).astype(np.uint8)
    codes[5:12, 3:6] = 100  # what happens in the middle, or far away, is of no consequence
    codes[5, 3:6] = codes[11, 3:6] = 225
    codes[18:] = 3
    codes[labels == 255] = 255
    for at_once in (SHAPE, (7, 5)):
        parts = [(w, labels[w.slices], codes[w.slices]) for w in Window.of_shape(SHAPE).blocks(at_once)]
        frame = footprints(parts, Layer(GRIDS["UTM"], LEGEND, "a"))
        assert frame["edge_sharpness"].tolist() == [0.6, 0.6]
        assert frame["touches_edge"].tolist() == [False, True]
    alone = np.ones(SHAPE, np.uint8)
    frame = footprints([(Window.of_shape(SHAPE), alone, alone * 200)], Layer(GRIDS["UTM"], LEGEND, "a"))
    assert frame["edge_sharpness"].isna().all()


def metres_per_degree(lat: float) -> tuple[float, float]:
    """Of longitude and of latitude, by the radii of curvature of WGS 84."""
    a, e2 = 6378137.0, 0.0066943799901413165
    w = 1 - e2 * np.sin(np.radians(lat)) ** 2
    return (
        float(np.radians(1) * a / w**0.5 * np.cos(np.radians(lat))),
        float(np.radians(1) * a * (1 - e2) / w**1.5),
    )


@pytest.mark.parametrize("name", GRIDS)
def test_areas_and_perimeters_are_those_on_the_ground(name: str) -> None:
    """Of a square of 10 pixels, within 0.2 %, whatever the CRS's unit and scale."""
    geobox = GRIDS[name]
    corners = np.array([geobox.affine @ corner for corner in ((5, 5), (15, 5), (15, 15), (5, 15), (5, 5))])
    onto = Transformer.from_crs(geobox.crs.wkt, 4326, always_xy=True)
    lon, lat = onto.transform(corners[:, 0], corners[:, 1])
    per_lon, per_lat = metres_per_degree(float(lat.mean()))
    metres = np.column_stack([(lon - lon[0]) * per_lon, (lat - lat[0]) * per_lat])
    square = outlined(geobox, picture()).set_index("id").loc["r5c5"]
    assert square["area_m2"] == pytest.approx(shapely.Polygon(metres).area, rel=2e-3, abs=0.005)
    assert square["perimeter_m"] == pytest.approx(shapely.LineString(metres).length, rel=2e-3, abs=0.005)


def test_areas_are_not_those_of_the_map() -> None:
    """Web Mercator at 60 degrees: four times too large. UTM on its central meridian: 0.08 % too small."""
    assert outlined(GRIDS["Mercator"], picture()).set_index("id").loc["r5c5", "area_m2"] == pytest.approx(9, rel=0.01)
    geobox = GeoBox(SHAPE, Affine(3, 0, 500_000, 0, -3, 3_057_000), 32645)
    area = outlined(geobox, picture()).set_index("id").loc["r5c5", "area_m2"]
    assert area == pytest.approx(900 / 0.9996**2, rel=5e-5)


def test_holes_count() -> None:
    frame = outlined(GRIDS["UTM"], picture()).set_index("id")
    ring = frame.loc["r20c10"]
    assert len(ring.geometry.interiors) == 1
    assert ring["area_m2"] == pytest.approx((900 - 196) * 0.09, rel=2e-3)
    assert ring["perimeter_m"] == pytest.approx((120 + 56) * 0.3, rel=2e-3)


@pytest.mark.parametrize("name", GRIDS)
def test_min_area_is_in_square_metres(name: str) -> None:
    everything = outlined(GRIDS[name], picture())
    square = everything.set_index("id").loc["r5c5", "area_m2"]
    kept = outlined(GRIDS[name], picture(), min_area=square * 0.99)
    assert list(kept["id"]) == ["r5c5", "r20c10", "r30c60"]
    assert list(kept["area_m2"]) == [a for a in everything["area_m2"] if a >= square * 0.99]
    assert list(outlined(GRIDS[name], picture(), min_area=square * 1.01)["id"]) == ["r20c10"]


@st.composite
def covers(draw: st.DrawFn) -> list[Window]:
    """Disjoint windows that cover the scene, in any order."""

    def cut(window: Window) -> list[Window]:
        rows, cols = window.shape
        if rows * cols < 600 or draw(st.integers(0, 3)) == 0:
            return [window]
        if rows > 1 and (cols == 1 or draw(st.booleans())):
            middle = draw(st.integers(window.row_start + 1, window.row_stop - 1))
            parts = [window.rows(window.row_start, middle), window.rows(middle, window.row_stop)]
        else:
            middle = draw(st.integers(window.col_start + 1, window.col_stop - 1))
            parts = [Window(*window.row_range, *c) for c in ((window.col_start, middle), (middle, window.col_stop))]
        return [piece for part in parts for piece in cut(part)]

    return draw(st.permutations(cut(Window.of_shape(SHAPE))))


@settings(max_examples=25)
@given(covers(), st.integers(0, 5), st.sampled_from([0.0, 1.0]))
@example([Window(row, row + 3, 0, 80) for row in range(0, 60, 3)], 0, 1.0)
def test_the_cover_changes_nothing(cover: list[Window], seed: int, simplify: float) -> None:
    """Same ids, attributes and geometry, bit for bit, and every id once."""
    labels = picture()
    if seed:
        rng = np.random.default_rng(seed)
        labels = rng.choice(np.array([0, 1, 255], np.uint8), (30, 40), p=[0.5, 0.45, 0.05]).repeat(2, 0).repeat(2, 1)
    options = {"simplify": simplify, "min_area": 0.5}
    whole, parts = outlined(GRIDS["turned"], labels, **options), outlined(GRIDS["turned"], labels, cover, **options)
    assert whole["id"].is_unique
    assert shapely.to_wkb(whole.geometry.to_numpy()).tolist() == shapely.to_wkb(parts.geometry.to_numpy()).tolist()
    pd.testing.assert_frame_equal(whole.drop(columns="geometry"), parts.drop(columns="geometry"), check_exact=True)


COVER = Legend(tuple(LegendClass(i, name, "#aa8800") for i, name in enumerate(("ground", "water", "wood"))), None)


@settings(max_examples=30, deadline=None)
@given(covers(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 2.5]))
@example([Window(0, 60, 0, 80)], 21822, 2.5)
def test_classes_that_touch_still_do_when_they_are_simplified(cover: list[Window], seed: int, simplify: float) -> None:
    """Land cover is one layer without gaps and overlaps, whatever the windows."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), 2)
    labels = np.digitize(noise, np.quantile(noise, [0.4, 0.7])).astype(np.uint8)
    labels[:4, :9] = 255
    layer = Layer(GRIDS["UTM"], COVER, "a", simplify=simplify, confident=False)
    frame = footprints([(w, labels[w.slices], None) for w in cover], layer)
    whole = footprints([(Window.of_shape(SHAPE), labels, None)], layer)
    assert frame.equals(whole)
    assert shapely.is_valid(frame.geometry.to_numpy()).all()
    pixels = to_pixels(frame.geometry.to_numpy(), GRIDS["UTM"], fraction=1024)
    assert simplify == 0 or shapely.coverage_is_valid(pixels)  # exact outlines leave out vertices of their neighbours
    ground, known = shapely.union_all(pixels), labels != 255
    assert shapely.area(pixels).sum() == pytest.approx(ground.area, abs=1e-6)
    exact = shapely.union_all(
        [shapely.geometry.shape(told) for told, _ in rasterio.features.shapes(labels, mask=known)]
    )
    assert exact.area == known.sum()
    assert shapely.hausdorff_distance(ground.boundary, exact.boundary) <= simplify + 1e-9
    assert len(frame) == sum(ndimage.label(labels == value)[1] for value in range(3))


def test_an_area_does_not_depend_on_its_company() -> None:
    """To the last bit, so that what stands at the limit of --min-area is dropped by any cover or by none."""
    geobox = GRIDS["Mercator"]
    squares = to_world(shapely.box(np.arange(30), np.arange(30), np.arange(30) + 5, np.arange(30) + 7), geobox)
    together, alone = measure(squares, geobox), [measure(squares[i : i + 1], geobox) for i in range(30)]
    assert together[0].tolist() == [area[0] for area, _ in alone]
    assert together[1].tolist() == [perimeter[0] for _, perimeter in alone]


def test_nothing_is_an_empty_layer() -> None:
    frame = outlined(GRIDS["UTM"], np.full(SHAPE, 255, np.uint8))
    assert len(frame) == 0
    assert list(frame.columns) == list(outlined(GRIDS["UTM"], picture()).columns)
    assert frame.crs.to_epsg() == 32645


# --- GeoJSON


@pytest.mark.parametrize("name", GRIDS)
def test_geojson_is_what_rfc_7946_wants(name: str, tmp_path: Path) -> None:
    frame = outlined(GRIDS[name], picture())
    write_geojson(frame, tmp_path / "a.geojson")
    collection = json.loads((tmp_path / "a.geojson").read_text("utf-8"))
    assert set(collection) == {"type", "features"}  # no crs member
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(frame)
    onto = Transformer.from_crs(frame.crs, 4326, always_xy=True)
    for feature, (_, row) in zip(collection["features"], frame.iterrows(), strict=True):
        assert feature["type"] == "Feature"
        assert feature["id"] == feature["properties"]["id"] == row["id"]
        assert feature["geometry"]["type"] == "Polygon"
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid
        rings = feature["geometry"]["coordinates"]
        assert all(ring[0] == ring[-1] for ring in rings)
        assert all(round(value, 7) == value for ring in rings for point in ring for value in point)
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)
        exact = shapely.transform(row.geometry, lambda xy: np.column_stack(onto.transform(xy[:, 0], xy[:, 1])))
        apart = shapely.hausdorff_distance(polygon, exact)
        assert apart * 111_700 < 0.01, "a centimetre"
    properties = collection["features"][3]["properties"]
    assert properties["class"] == "building"
    assert properties["touches_nodata"] is False
    assert properties["datetime"].startswith("2022-07-25T10:11:12")


@pytest.mark.parametrize("west", [180 - 20e-6, 190, -180 - 20e-6, -200])
def test_degrees_that_go_on_beyond_half_a_turn_are_turned_back(west: float, tmp_path: Path) -> None:
    frame = outlined(GeoBox(SHAPE, Affine(1e-6, 0, west, 0, -1e-6, -17.0), 4326), picture())
    write_geojson(frame, tmp_path / "a.geojson")
    told = gpd.read_file(tmp_path / "a.geojson")
    assert told.is_valid.all()
    bounds = shapely.bounds(shapely.get_parts(told.geometry.to_numpy()))
    assert (np.abs(bounds[:, [0, 2]]) <= 180).all()
    assert (bounds[:, 2] - bounds[:, 0] < 1e-4).all()
    areas = [shapely.area(each.geometry.to_numpy()) for each in (told, frame)]
    assert areas[0] == pytest.approx(areas[1], rel=0.2), "pixels are ten steps wide"
    shifted = shapely.transform(told.geometry.to_numpy(), lambda xy: np.column_stack([xy[:, 0] % 360, xy[:, 1]]))
    assert shapely.bounds(shifted)[:, 0].min() == pytest.approx(frame.total_bounds[0] % 360, abs=1e-6)


@pytest.mark.parametrize("kind", ["points", "lines", "multipolygons"])
def test_geojson_of_any_kind_has_seven_digits(kind: str, tmp_path: Path) -> None:
    xy = np.random.default_rng(0).uniform([85, 27], [86, 28], (400, 2))
    xy[:2, 0] = told_longer = 85.5199821, 85.5197018  # 85.51998209999999 as GEOS has it
    squares = shapely.box(np.arange(100), 0, np.arange(100) + np.sqrt(0.5), 1 / 3)
    squares[0] = shapely.box(min(told_longer), 0.5, max(told_longer), 0.6)
    shapes = {
        "points": shapely.points(xy),
        "lines": shapely.linestrings(xy.reshape(-1, 4, 2)),
        "multipolygons": shapely.multipolygons(squares.reshape(-1, 2)),
    }
    frame = gpd.GeoDataFrame(geometry=shapes[kind], crs=4326)
    write_geojson(frame, tmp_path / "a.geojson")
    found: list[str] = []
    told = json.loads((tmp_path / "a.geojson").read_text("utf-8"), parse_float=lambda n: found.append(n) or float(n))
    assert found
    assert all(-Decimal(number).as_tuple().exponent <= 7 for number in found)  # type: ignore[operator]  # finite
    back = gpd.GeoDataFrame.from_features(told)
    assert shapely.hausdorff_distance(back.geometry, frame.geometry).max() < 1e-7


def test_geojson_is_read_by_others(tmp_path: Path) -> None:
    frame = outlined(GRIDS["UTM"], picture())
    write_geojson(frame, tmp_path / "a.geojson")
    back = gpd.read_file(tmp_path / "a.geojson")
    assert back.crs.to_epsg() == 4326
    assert list(back["id"]) == list(frame["id"])
    np.testing.assert_allclose(back["area_m2"], frame["area_m2"])
    distance = back.to_crs(32645).geometry.hausdorff_distance(frame.geometry)
    assert distance.max() < 0.01


@pytest.mark.parametrize("dated", [WHEN, None])
def test_empty_files_are_files(dated: dt.datetime | None, tmp_path: Path) -> None:
    frame = outlined(GRIDS["UTM"], np.zeros(SHAPE, np.uint8), datetime=dated)
    write_geojson(frame, tmp_path / "a.geojson")
    write_parquet(frame, tmp_path / "a.parquet")
    assert json.loads((tmp_path / "a.geojson").read_text("utf-8")) == {"type": "FeatureCollection", "features": []}
    assert len(gpd.read_file(tmp_path / "a.geojson")) == 0
    back = gpd.read_parquet(tmp_path / "a.parquet")
    assert list(back.columns) == list(frame.columns)
    assert back.crs.to_epsg() == 32645


def test_polygons_that_rounding_breaks_are_mended(tmp_path: Path) -> None:
    """A gap of a tenth of a millimetre closes at seven digits."""
    narrow = shapely.Polygon([(0, 0), (10, 0), (10, 10), (5.00001, 10), (5, 1e-5), (4.99999, 10), (0, 10)])
    moved = shapely.transform(narrow, lambda xy: xy + np.array([334_000, 3_057_000]))
    frame = gpd.GeoDataFrame({"id": ["a"]}, geometry=[moved], crs=32645)
    write_geojson(frame, tmp_path / "a.geojson")
    (back,) = gpd.read_file(tmp_path / "a.geojson").geometry
    assert back.is_valid
    assert back.area > 0


# --- GeoParquet


@pytest.mark.parametrize("name", GRIDS)
def test_geoparquet_is_in_the_scenes_crs(name: str, tmp_path: Path) -> None:
    frame = outlined(GRIDS[name], picture())
    write_parquet(frame, tmp_path / "a.parquet")
    geo = json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    np.testing.assert_allclose(column["bbox"], frame.total_bounds)
    assert column["covering"]["bbox"] == {side: ["bbox", side] for side in ("xmin", "ymin", "xmax", "ymax")}
    assert column["crs"]["type"] in {"ProjectedCRS", "GeographicCRS"}
    table = pq.read_table(tmp_path / "a.parquet")
    np.testing.assert_allclose([b["xmin"] for b in table["bbox"].to_pylist()], frame.bounds["minx"])
    back = gpd.read_parquet(tmp_path / "a.parquet")
    assert back.crs == frame.crs
    assert shapely.to_wkb(back.geometry.to_numpy()).tolist() == shapely.to_wkb(frame.geometry.to_numpy()).tolist()
    pd.testing.assert_frame_equal(back.drop(columns="geometry"), frame.drop(columns="geometry"))
    x, y = frame.geometry.iloc[3].centroid.coords[0]
    assert "r5c5" in set(gpd.read_parquet(tmp_path / "a.parquet", bbox=(x, y, x, y))["id"])


@pytest.mark.parametrize("write", [write_geojson, write_parquet])
def test_a_full_disk_leaves_the_old_file(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame, path = outlined(GRIDS["UTM"], picture()), tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def refuse(*_: Any, **__: Any) -> None:
        (tmp_path / ".file.part").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(pq, "ParquetWriter", refuse)
    with pytest.raises(OutputError, match=r"file: cannot be written: No space left on device; .*--out"):
        write(frame, path)
    monkeypatch.undo()
    assert path.read_text("utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("crs", [3413, 3031])
def test_what_lies_round_a_pole_holds_the_same_ground_in_degrees(crs: int) -> None:
    """Polygons that hold the pole, go round it, touch the antimeridian beside it, or do none of that."""
    around = shapely.box(-40, -30, 50, 60)
    shapes = [
        around,
        shapely.difference(around, shapely.box(-10, -12, 14, 15)),  # a ring round the pole
        shapely.difference(around, shapely.box(20, 5, 30, 25)),  # the pole inside, a hole beside it
        *(shapely.box(x, y, x + 30, y + 20) for x in (-45, 2) for y in (-44, -10, 4)),
    ]
    frame = gpd.GeoDataFrame(geometry=shapes, crs=crs)
    made = to_lonlat(frame)
    assert shapely.is_valid(made).all()
    west, south, east, north = shapely.total_bounds(made)
    assert -180 <= west < east <= 180
    assert -90 <= south < north <= 90
    assert (np.abs([south, north]) == 90).any()
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-60, 60, (2, 4000))
    lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    # a straight line in degrees is none on the ground, short ones nearly are
    dense = to_lonlat(gpd.GeoDataFrame(geometry=shapely.segmentize(shapes, 0.2), crs=crs))
    for shape, there in zip(shapes, dense, strict=True):
        far = shapely.distance(shape.boundary, shapely.points(x, y)) > 0.1
        np.testing.assert_array_equal(shapely.contains_xy(there, lon, lat)[far], shapely.contains_xy(shape, x, y)[far])
