"""Vector files in every format of the table: written, read by somebody else, and brought from one into another."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import geopandas as gpd
import geoparquet_validator
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely
from click.testing import CliRunner
from conftest import BANEPA, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from odc.geo.geobox import GeoBox
from pmtiles.reader import MmapSource, Reader, all_tiles
from pycocotools.coco import COCO

from geoseg.cli import cli
from geoseg.errors import OptionError, OutputError
from geoseg.io import geoparquet, vectors
from geoseg.io.curve import along_curve, curve_keys
from geoseg.io.geoparquet import wkb_of
from geoseg.io.layers import FORMATS, About, layers_of, read_layer, write_layer
from geoseg.io.vectors import write_geojson

if TYPE_CHECKING:
    from pathlib import Path

GRID = GeoBox((400, 500), BANEPA, 32645)
ABOUT = About("town", {"building": "#ff8000", "it's <a> shed": "#00ff00"}, GRID, "town.tif")
SUFFIXES = [suffix for each in FORMATS for suffix in each.suffixes]
READ = [suffix for each in FORMATS for suffix in each.suffixes if each.read is not None]


def town(count: int = 40) -> gpd.GeoDataFrame:
    """Houses, one of them with a hole, one in two parts, with all kinds of attributes."""
    rng = np.random.default_rng(0)
    col, row = rng.permutation(50)[:count] * 10.0, rng.integers(0, 39, count) * 10.0
    shapes = shapely.box(col, row, col + rng.integers(3, 9, count), row + rng.integers(3, 9, count)).astype(object)
    shapes[3] = shapely.box(col[3], row[3], col[3] + 8, row[3] + 8) - shapely.box(
        col[3] + 2, row[3] + 3, col[3] + 5, row[3] + 7
    )
    shapes[5] = shapely.union(
        shapely.box(col[5], row[5], col[5] + 3, row[5] + 3), shapely.box(col[5] + 5, row[5], col[5] + 7, row[5] + 2)
    )
    world = vectors.to_world(np.asarray(shapes, object), GRID)
    columns: dict[str, Any] = {
        "id": [f"r{i}c{i}" for i in range(count)],
        "class": ["building", "it's <a> shed"] * (count // 2),
        "area_m2": shapely.area(world).round(2),
        "confidence": rng.random(count).round(4),
        "touches_nodata": rng.random(count) < 0.5,
        "datetime": pd.Series([pd.Timestamp("2022-07-25T10:11:12Z")] * count).astype("datetime64[ms, UTC]"),
    }
    return gpd.GeoDataFrame(columns, geometry=world, crs=32645)


def by_id(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    return frame.set_index("id").sort_index().to_crs(32645)


# --- all formats


@pytest.mark.parametrize("suffix", READ)
def test_what_is_written_is_read(suffix: str, tmp_path: Path) -> None:
    frame, path = town(), tmp_path / f"a{suffix}"
    write_layer(frame, path, ABOUT)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    back = read_layer(path)
    assert len(back) == len(frame)
    if suffix == ".coco.json":
        back["id"] = frame["id"]
    else:
        for name in ("class", "area_m2", "touches_nodata"):
            assert by_id(back)[name].tolist() == by_id(frame)[name].tolist()
        assert (pd.to_datetime(by_id(back)["datetime"], utc=True) == by_id(frame)["datetime"]).all()
    apart = by_id(back).geometry.symmetric_difference(by_id(frame).geometry, align=False).area
    assert apart.max() < 0.4, "centimetres along the outline"


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".pmtiles"])
def test_an_empty_layer_is_a_file(suffix: str, tmp_path: Path) -> None:
    write_layer(town().iloc[:0], tmp_path / f"a{suffix}", ABOUT)
    if suffix not in {".geojsonl", ".ndjson", ".geojsons"}:  # files without a byte
        assert len(read_layer(tmp_path / f"a{suffix}")) == 0


def test_what_cannot_be(tmp_path: Path) -> None:
    frame = town()
    with pytest.raises(OptionError, match="no CRS"):
        write_layer(frame.set_crs(None, allow_override=True), tmp_path / "a.fgb")
    with pytest.raises(OptionError, match=r"told in pixels; .* --image"):
        write_layer(frame, tmp_path / "a.coco.json")
    (tmp_path / "b.pmtiles").touch()
    with pytest.raises(OptionError, match="for looking at"):
        read_layer(tmp_path / "b.pmtiles")
    for name in ("a.gpkg", "a.coco.json", "a.parquet", "a.geojson"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
        with pytest.raises(OptionError, match=rf"{name}: "):
            read_layer(tmp_path / name)
    with pytest.raises(OptionError, match="no such file"):
        read_layer(tmp_path / "c.gpkg")
    with pytest.raises(OutputError, match="cannot be written"):
        write_layer(frame, tmp_path / "nowhere" / "a.geojson")


# --- one by one


def test_lines_of_geojson_are_features(tmp_path: Path) -> None:
    frame = town()
    for suffix in (".geojson", ".ndjson", ".geojsons"):
        write_layer(frame, tmp_path / f"a{suffix}")
    collection = json.loads((tmp_path / "a.geojson").read_text("utf-8"))
    lines = (tmp_path / "a.ndjson").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == collection["features"]
    sequence = (tmp_path / "a.geojsons").read_bytes()
    assert sequence.count(b"\x1e") == len(frame)
    assert sequence.replace(b"\x1e", b"") == (tmp_path / "a.ndjson").read_bytes()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 7), st.integers(1, 3))
def test_portions_and_threads_change_nothing(rows: int, portion: int, threads: int) -> None:
    """Whatever is written at once, against GDAL's reading of shapely's own words."""
    frame = town(50).iloc[:rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "LINES_TOGETHER", portion)
        patch.setattr(vectors, "THREADS", threads)
        texts = [text for lines in vectors._lines(frame) for text in lines.to_pylist()]
    assert [json.loads(text)["id"] for text in texts] == frame["id"].tolist()
    shapes = [json.loads(text)["geometry"] for text in texts]
    assert shapes == [json.loads(text) for text in shapely.to_geojson(vectors.to_lonlat(frame))]


def test_text_of_any_kind_is_json(tmp_path: Path) -> None:
    frame = town().iloc[:2].copy()
    said = 'say "yes" \\ no\n\u2028 \x1e'
    frame["note"] = [said, None]
    frame["id"] = ['a"b\\', "ä"]
    write_geojson(frame, tmp_path / "a.geojson")
    features = json.loads((tmp_path / "a.geojson").read_text("utf-8"))["features"]
    assert [f["properties"]["note"] for f in features] == [said, None]
    assert [f["id"] for f in features] == frame["id"].tolist()
    write_geojson(frame[["geometry"]], tmp_path / "b.geojson")
    assert [set(f) for f in json.loads((tmp_path / "b.geojson").read_text("utf-8"))["features"]] == [
        {"type", "properties", "geometry"}
    ] * 2


def test_geojson_is_cut_at_the_antimeridian(tmp_path: Path) -> None:
    """RFC 7946, section 3.1.9: a multipolygon, each part on one side, of the same area; holes are kept."""
    far = GeoBox((400, 500), BANEPA, 32601)
    square = shapely.box(-1000, -1000, 1000, 1000) - shapely.box(-100, -500, 300, 500)
    lake = shapely.box(2000, 0, 3000, 1000)
    origin = gpd.GeoSeries([shapely.Point(180, -17)], crs=4326).to_crs(32601).iloc[0]
    moved = shapely.transform([square, lake], lambda xy: xy + np.array([origin.x, origin.y]))
    frame = gpd.GeoDataFrame({"id": ["a", "b"]}, geometry=list(moved), crs=far.crs.wkt)
    write_geojson(frame, tmp_path / "a.geojson")
    cut, whole = json.loads((tmp_path / "a.geojson").read_text("utf-8"))["features"]
    assert (cut["geometry"]["type"], whole["geometry"]["type"]) == ("MultiPolygon", "Polygon")
    parts = shapely.get_parts(shapely.geometry.shape(cut["geometry"]))
    assert sorted((part.bounds[0] < 0, part.bounds[2] <= 180, part.is_valid) for part in parts) == [
        *((False, True, True), (True, True, True)),
    ]
    assert all(part.exterior.is_ccw for part in parts)
    assert max(part.bounds[2] - part.bounds[0] for part in parts) < 0.02
    back = gpd.GeoSeries(list(parts), crs=4326).to_crs(32601).area.sum()
    assert back == pytest.approx(square.area, rel=1e-4)


def test_geojson_of_what_crosses_itself_is_valid(tmp_path: Path) -> None:
    bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    moved = shapely.transform(bow, lambda xy: xy + np.array([334_000, 3_057_000]))
    write_geojson(gpd.GeoDataFrame({"id": ["a"]}, geometry=[moved], crs=32645), tmp_path / "a.geojson")
    (back,) = gpd.read_file(tmp_path / "a.geojson").to_crs(32645).geometry
    assert back.is_valid
    assert back.area == pytest.approx(50, rel=0.01)


def test_parquet_lies_along_a_curve_and_is_read_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geoparquet, "ROWS_TOGETHER", 50)
    rng = np.random.default_rng(1)
    xy = rng.random((1000, 2)) * 1000
    frame = gpd.GeoDataFrame({"id": np.arange(1000)}, geometry=shapely.box(*xy.T, *(xy.T + 1)), crs=32645)
    write_layer(frame, tmp_path / "a.parquet")
    window = (100, 100, 200, 200)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert metadata.num_row_groups == 20
    names = [metadata.row_group(0).column(i).path_in_schema for i in range(metadata.num_columns)]
    met = 0
    for group in range(20):
        of = {
            name: metadata.row_group(group).column(names.index(f"bbox.{name}")).statistics
            for name in ("xmin", "ymin", "xmax", "ymax")
        }
        met += of["xmin"].min <= 200 and of["xmax"].max >= 100 and of["ymin"].min <= 200 and of["ymax"].max >= 100
    assert met <= 4, "row groups that a reader of a hundredth of the layer cannot leave out"
    found = gpd.read_parquet(tmp_path / "a.parquet", bbox=window)
    assert set(found["id"]) == set(frame.cx[100:200, 100:200]["id"])
    assert sorted(along_curve(frame.bounds.to_numpy().T)) == list(range(1000))


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_the_curve_is_geopandas_and_equals_stay_in_their_order(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.integers(0, rng.integers(1, 40), (rows, 2)).astype(float)
    frame = gpd.GeoSeries(shapely.box(*xy.T, *(xy.T + rng.integers(1, 9, (2, rows)))))
    keys = curve_keys(frame.bounds.to_numpy().T)
    assert keys.tolist() == frame.hilbert_distance(level=16).tolist()
    assert along_curve(frame.bounds.to_numpy().T).tolist() == sorted(range(rows), key=keys.__getitem__)
    nowhere = frame.bounds.to_numpy().T.copy()
    nowhere[:, ::3] = np.nan
    assert along_curve(nowhere).tolist()[-len(range(0, rows, 3)) :] == list(range(0, rows, 3))
    assert (curve_keys(nowhere)[::3] > np.iinfo(np.uint32).max).all()


def test_what_has_no_place_comes_last_in_a_file_along_a_curve(tmp_path: Path) -> None:
    shapes = [shapely.box(5, 5, 6, 6), shapely.Polygon(), None, shapely.box(0, 0, 1, 1)]
    frame = gpd.GeoDataFrame({"id": [0, 1, 2, 3]}, geometry=shapes, crs=32645)
    write_layer(frame, tmp_path / "a.parquet")
    back = gpd.read_parquet(tmp_path / "a.parquet")
    assert back["id"].tolist() == [3, 0, 1, 2]
    assert back.geometry.is_empty.tolist() == [False, False, True, False]
    assert back.geometry.isna().tolist() == [False, False, False, True]
    about = json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[b"geo"])["columns"]["geometry"]
    assert (about["geometry_types"], about["bbox"]) == (["Polygon"], [0, 0, 6, 6])
    write_layer(frame.iloc[1:3], tmp_path / "none.parquet")
    assert len(gpd.read_parquet(tmp_path / "none.parquet")) == 2


@given(st.integers(0, 40))
def test_wkb_is_shapelys(rows: int) -> None:
    shapes = town().geometry.to_numpy()[:rows]
    plain = shapes[shapely.get_num_interior_rings(shapes) + (shapely.get_type_id(shapes) == 6) == 0]
    whole = shapes[shapely.get_type_id(shapes) == 3]
    for each in (shapes, plain, whole):
        assert wkb_of(each).to_pylist() == shapely.to_wkb(each, byte_order=1).tolist()
    high = shapely.force_3d(plain, 5.0)
    assert wkb_of(high).to_pylist() == shapely.to_wkb(high, byte_order=1).tolist()


def test_the_formats_own_validator_finds_nothing_wrong(tmp_path: Path) -> None:
    """Metadata, WKB, types, bounding boxes, and rows in an order by which a reader skips row groups."""
    rng = np.random.default_rng(0)
    xy = rng.random((20_000, 2)) * 1000
    many = gpd.GeoDataFrame({"id": range(20_000)}, geometry=shapely.box(*xy.T, *(xy + 5).T), crs=32645)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geoparquet, "ROWS_TOGETHER", 1000)
        patch.setattr(geoparquet, "ROWS_AHEAD", 3000)
        for name, frame, groups in (("town", town(), 1), ("none", town().iloc[:0], 0), ("many", many, 20)):
            path = tmp_path / f"{name}.parquet"
            write_layer(frame, path)
            assert pq.read_metadata(path).num_row_groups == groups
            outcomes = geoparquet_validator.check(str(path))["outcomes"]
            assert not [each for each in outcomes if each["status"] == "fail"]
            passed = {each["id"].removeprefix("/conf/") for each in outcomes if each["status"] == "pass"}
            assert {"core/geo-metadata", "core/wkb", "covering/bbox-paths"} <= passed
            assert ("distribution/spatial-order" in passed) == (name == "many")


def test_more_than_an_array_of_binaries_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places in it are of 32 bits, and files larger than that are written from several: as if that came much sooner."""
    plain = town()[shapely.get_type_id(town().geometry.to_numpy()) == 3]
    shapes = plain.geometry.to_numpy()
    for most in (1, 500):
        monkeypatch.setattr("geoseg.io.wkb.MOST_BYTES", most)
        told = wkb_of(shapes)
        assert told.num_chunks > 4
        assert told.to_pylist() == shapely.to_wkb(shapes, byte_order=1).tolist()
        write_layer(plain, tmp_path / "a.parquet")
        back = by_id(read_layer(tmp_path / "a.parquet"))
        assert shapely.equals_exact(back.geometry.to_numpy(), by_id(plain).geometry.to_numpy()).all()


SCHEMA = {
    "$defs": {
        "position": {
            "type": "array",
            "prefixItems": [
                {"type": "number", "minimum": -180, "maximum": 180},
                {"type": "number", "minimum": -90, "maximum": 90},
            ],
            "minItems": 2,
            "maxItems": 2,
        },
        "ring": {"type": "array", "minItems": 4, "items": {"$ref": "#/$defs/position"}},
        "polygon": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/ring"}},
        "geometry": {
            "oneOf": [
                {
                    "type": "object",
                    "required": ["type", "coordinates"],
                    "properties": {"type": {"const": kind}, "coordinates": coordinates},
                    "not": {"anyOf": [{"required": [name]} for name in ("geometry", "properties", "features", "crs")]},
                }
                for kind, coordinates in (
                    ("Polygon", {"$ref": "#/$defs/polygon"}),
                    ("MultiPolygon", {"type": "array", "items": {"$ref": "#/$defs/polygon"}}),
                )
            ]
        },
        "feature": {
            "type": "object",
            "required": ["type", "properties", "geometry"],
            "properties": {
                "type": {"const": "Feature"},
                "id": {"type": ["string", "number"]},
                "properties": {"type": ["object", "null"]},
                "geometry": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/geometry"}]},
            },
            "not": {"anyOf": [{"required": [name]} for name in ("coordinates", "geometries", "features", "crs")]},
        },
    },
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"const": "FeatureCollection"},
        "features": {"type": "array", "items": {"$ref": "#/$defs/feature"}},
    },
    "not": {"anyOf": [{"required": [name]} for name in ("coordinates", "geometries", "geometry", "properties", "crs")]},
}
"""What RFC 7946 says of polygons, as a JSON schema (draft 2020-12): sections 3.1.1, 3.1.6, 3.2, 3.3, 4 and 7.1."""


@pytest.mark.parametrize("suffix", [".geojson", ".geojsonl", ".geojsons"])
def test_geojson_follows_the_schema_of_rfc_7946(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    for frame in (town(), town().iloc[:0], town()[["geometry"]]):
        write_layer(frame, path, ABOUT)
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.replace("\x1e", "").splitlines()] if suffix != ".geojson" else []
        whole = {"type": "FeatureCollection", "features": lines} if suffix != ".geojson" else json.loads(text)
        Draft202012Validator(SCHEMA).validate(whole)
        assert len(whole["features"]) == len(frame)
        for feature in whole["features"]:
            kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            for shell, *holes in [coordinates] if kind == "Polygon" else coordinates:
                assert shapely.is_ccw(shapely.linearrings(shell))
                assert not any(shapely.is_ccw(shapely.linearrings(hole)) for hole in holes)
                assert all(ring[0] == ring[-1] for ring in (shell, *holes))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size can be set")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_disk_that_refuses_is_told_in_a_sentence(suffix: str, tmp_path: Path) -> None:
    """Midway, whoever writes: a file may not be larger than some kilobytes. What was there before stays."""
    write_layer(town(), tmp_path / "in.parquet")
    write_tif(tmp_path / "town.tif", np.zeros((3, *GRID.shape), np.uint8))
    out = tmp_path / f"out{suffix}"
    out.write_text("before")
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from geoseg.__main__ import program
import sys
sys.argv = ["geoseg", "convert", "in.parquet", {out.name!r}, *{["--image", "town.tif"] if "coco" in suffix else []}]
program()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{out.name}: cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in.parquet", "town.tif", out.name])


def test_geopackage_has_a_style_for_qgis(tmp_path: Path) -> None:
    write_layer(town(), tmp_path / "a.gpkg", ABOUT)
    with closing(sqlite3.connect(tmp_path / "a.gpkg")) as database:
        name, column, text, default = database.execute(
            "SELECT f_table_name, f_geometry_column, styleQML, useAsDefault FROM layer_styles"
        ).fetchone()
        geometry = database.execute("SELECT column_name FROM gpkg_geometry_columns WHERE table_name = 'town'")
        assert geometry.fetchone() == (column,)
        kinds = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents").fetchall())
    assert (name, default) == ("town", 1)
    assert kinds == {"town": "features", "layer_styles": "attributes"}
    renderer = ET.fromstring(text.split("\n", 1)[1]).find("renderer-v2")  # noqa: S314  # our own
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    categories = {c.get("value"): c.get("symbol") for c in renderer.iter("category")}
    colours = {
        s.get("name"): next(o.get("value") for o in s.iter("Option") if o.get("name") == "color")
        for s in renderer.iter("symbol")
    }
    assert colours[categories["building"]] == "255,128,0,128"
    assert set(categories) == set(ABOUT.colours)


def test_flatgeobuf_is_indexed(tmp_path: Path) -> None:
    frame = town()
    write_layer(frame, tmp_path / "a.fgb", ABOUT)
    info = pyogrio.read_info(tmp_path / "a.fgb")
    assert info["capabilities"]["fast_spatial_filter"]
    box = frame.geometry.iloc[7].bounds
    near = pyogrio.read_dataframe(tmp_path / "a.fgb", bbox=box)
    assert set(near["id"]) == set(frame[frame.intersects(shapely.box(*box))]["id"])


def test_pmtiles_of_nothing_are_a_file(tmp_path: Path) -> None:
    """A scene without buildings is no error: others read an archive of one tile in which the layer is empty."""
    write_layer(town().iloc[:0], tmp_path / "a.pmtiles", ABOUT)
    with (tmp_path / "a.pmtiles").open("rb") as stream:
        reader = Reader(MmapSource(stream))
        assert reader.metadata()["vector_layers"][0]["id"] == "town"
        header, tiles = reader.header(), dict(all_tiles(reader.get_bytes))
    assert list(tiles) == [(0, 0, 0)]
    assert b"town" in gzip.decompress(tiles[0, 0, 0])
    assert (header["min_lon_e7"], header["max_lon_e7"], header["max_zoom"]) == (-1800000000, 1800000000, 0)
    assert [name for name, _ in pyogrio.list_layers(tmp_path / "a.pmtiles")] == ["town"]


def test_pmtiles_hold_everything_at_the_last_zoom(tmp_path: Path) -> None:
    frame = town()
    write_layer(frame, tmp_path / "a.pmtiles", ABOUT)
    with (tmp_path / "a.pmtiles").open("rb") as stream:
        reader = Reader(MmapSource(stream))
        header, metadata = reader.header(), reader.metadata()
        tiles = dict(all_tiles(reader.get_bytes))
    assert metadata["vector_layers"][0]["id"] == "town"
    assert {zoom for zoom, _, _ in tiles} == set(range(header["min_zoom"], header["max_zoom"] + 1))
    assert all(gzip.decompress(tile) for tile in tiles.values())
    west, _, _, north = frame.to_crs(4326).total_bounds
    assert header["min_lon_e7"] / 1e7 == pytest.approx(west, abs=1e-4)
    assert header["max_lat_e7"] / 1e7 == pytest.approx(north, abs=1e-4)
    back = pyogrio.read_dataframe(tmp_path / "a.pmtiles", layer="town")
    assert set(back["id"]) == set(frame["id"])
    whole = pyogrio.read_dataframe(tmp_path / "a.pmtiles", layer="town", ZOOM_LEVEL=header["min_zoom"])
    assert set(whole["id"]) == set(frame["id"])
    area = back.dissolve("id").to_crs(32645).area
    np.testing.assert_allclose(area[frame["id"]], frame.area, rtol=0.15, atol=0.3)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_coco_is_what_pycocotools_reads(tmp_path: Path) -> None:
    """Masks of pixels as rasterio burns them, holes and parts included."""
    frame = town()
    write_layer(frame, tmp_path / "a.coco.json", ABOUT)
    coco = COCO(tmp_path / "a.coco.json")
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == ("town.tif", 400, 500)
    pixels = vectors.to_pixels(frame.geometry.to_numpy(), GRID)
    for annotation, polygon, name in zip(coco.loadAnns(coco.getAnnIds()), pixels, frame["class"], strict=True):
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"] == pytest.approx(polygon.area)
        rows, cols = np.nonzero(mask)
        assert shapely.contains_xy(polygon, cols + 0.5, rows + 0.5).all()
        left, top, width, height = annotation["bbox"]
        assert (cols.min(), rows.min(), cols.max() + 1 - left, rows.max() + 1 - top) == (left, top, width, height)
        assert coco.loadCats(annotation["category_id"])[0]["name"] == name


# --- the command


def test_convert_goes_from_any_to_any(tmp_path: Path) -> None:
    frame = town()
    write_layer(frame, tmp_path / "a.parquet", ABOUT)
    raster = write_tif(tmp_path / "town.tif", np.zeros((1, 400, 500), np.uint8))
    chain = ["a.parquet", "b.gpkg", "c.fgb", "d.geojson", "e.ndjson", "f.coco.json", "g.geojsons"]
    for before, after in pairwise(chain):
        more = ["--image", str(raster)] if after.endswith(".coco.json") else []
        arguments = ["convert", str(tmp_path / before), str(tmp_path / after), *more]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert done.exit_code == 0
        assert done.output.splitlines()[0] == "40 features"
    back = read_layer(tmp_path / "g.geojsons").to_crs(32645)
    assert sorted(back["class"]) == sorted(frame["class"])
    assert back.area.sum() == pytest.approx(frame.area.sum(), rel=1e-3)
    with pytest.raises(OptionError, match="its suffix stands for no format"):
        CliRunner().invoke(cli, ["convert", str(tmp_path / "b.gpkg"), "x.dwg"], catch_exceptions=False)


def test_a_runs_own_formats_are_no_further_ones() -> None:
    assert layers_of(["geojson", "GPKG", ".gpkg", "parquet", " fgb"]) == ("footprints.fgb", "footprints.gpkg")
