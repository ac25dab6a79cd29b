"""Label rasters, ours or not, as polygons: nothing of the raster is lost, whatever is asked, however it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import xarray as xr
from click.testing import CliRunner
from conftest import BANEPA
from geopandas.testing import assert_geodataframe_equal
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from rasterio.features import rasterize
from scipy import ndimage

import geoseg
from geoseg import polygons
from geoseg.cli import cli
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.io.label_rasters import open_labels
from geoseg.polygons import Shaping, trace
from geoseg.raster import NODATA

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PIXEL = 0.3


def array(labels: NDArray[np.uint8]) -> xr.DataArray:
    return wrap_xr(labels, GeoBox((labels.shape[0], labels.shape[1]), BANEPA, 32645))


def blobs(shape: tuple[int, int], seed: int, classes: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(shape), 2) for _ in range(classes)]
    labels = np.argmax(fields, axis=0).astype(np.uint8)
    labels[rng.random(shape) < 0.03] = 0
    labels[ndimage.gaussian_filter(rng.standard_normal(shape), 3) > 0.12] = 255
    return labels


def to_file(path: Path, labels: NDArray[np.uint8], **more: Any) -> Path:
    rows, cols = labels.shape
    profile = {"driver": "GTiff", "height": rows, "width": cols, "count": 1, "dtype": labels.dtype}
    with rasterio.open(path, "w", **profile, crs=32645, transform=BANEPA, **more) as dataset:
        dataset.write(labels, 1)
    return path


# --- laws


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 10_000),
    windows=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shaping=st.builds(
        Shaping,
        fill_holes=st.sampled_from([0.0, 0.4, 3.0]),
        min_area=st.sampled_from([0.0, 0.5]),
        simplify=st.sampled_from([0.0, 0.3, 0.7]),
        smooth=st.sampled_from([0.0, 0.3, 1.0]),
        separate=st.sampled_from([0.0, 0.9, 1.7]),
    ),
    background=st.sampled_from([None, 0]),
)
@example((60, 60), 1, (7, 9), Shaping(1.7, 3.0, 0.5, 0.3, 0.7), 0)
@example((60, 60), 2, (7, 9), Shaping(0, 0, 0, 1.0, 0.7), None)
def test_windows_change_nothing(
    shape: tuple[int, int], seed: int, windows: tuple[int, int], shaping: Shaping, background: int | None
) -> None:
    labels = array(blobs(shape, seed))
    whole = trace(labels, shaping, background=background)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polygons, "AT_ONCE", windows)
        parts = trace(labels, shaping, background=background)
    assert_geodataframe_equal(whole.frame, parts.frame, check_less_precise=False)
    assert shapely.to_wkb(whole.frame.geometry).tolist() == shapely.to_wkb(parts.frame.geometry).tolist()
    assert whole.counts == parts.counts


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(2, 60), st.integers(2, 60)),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 0.7, 1.5]),
    st.sampled_from([0.5, 2.0]) | st.just(0.0),
)
@example((60, 60), 3, 1.5, 2.0)
@example((60, 60), 4, 0.0, 2.0)
def test_classes_that_touch_still_do(shape: tuple[int, int], seed: int, simplify: float, smooth: float) -> None:
    """A valid coverage in shapely's own eyes, with as many polygons, and nowhere further away than asked."""
    assume(simplify or smooth)  # exact outlines have no vertices where another's corner is
    labels = array(blobs(shape, seed))
    exact = trace(labels, Shaping(), background=None).frame
    shaped = trace(labels, Shaping(simplify=simplify, smooth=smooth), background=None).frame
    assert list(shaped["id"]) == list(exact["id"])
    assert shapely.is_valid(shaped.geometry).all()
    assert shapely.coverage_is_valid(shaped.geometry.to_numpy())
    assert shaped.geometry.area.sum() == pytest.approx(shaped.union_all().area)
    apart = shapely.hausdorff_distance(shaped.geometry.boundary.to_numpy(), exact.geometry.boundary.to_numpy(), 0.1)
    assert apart.max(initial=0) <= simplify + smooth + 1e-6


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 50), st.integers(1, 50)), st.integers(0, 10_000), st.sampled_from([0.0, 1.2, 2.0]))
def test_exact_polygons_give_the_raster_back(shape: tuple[int, int], seed: int, separate: float) -> None:
    labels = blobs(shape, seed)
    traced = trace(array(labels), Shaping(separate=separate), background=None)
    pairs = zip(traced.frame.geometry, traced.frame["class"].astype(int), strict=True)
    back = rasterize(pairs, shape, fill=255, transform=BANEPA, dtype="uint8") if len(traced.frame) else labels
    np.testing.assert_array_equal(back, labels)
    assert sum(each.pixels for each in traced.counts) == (labels != 255).sum()
    assert sum(each.area for each in traced.counts) == pytest.approx(
        (labels != 255).sum() * PIXEL**2, rel=3e-3, abs=0.05
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.2, 0.6, 3.0]), st.sampled_from([None, 0]))
def test_holes_are_filled_that_hold_nothing(seed: int, area: float, background: int | None) -> None:
    """Against a loop that looks into each hole."""
    labels = array(blobs((50, 50), seed, 2 if background is None else 3))
    exact = trace(labels, Shaping(), background=background).frame
    pixel = trace(labels, Shaping(), background=background).counts[0]
    limit = area / (pixel.raster_area / pixel.pixels) * PIXEL**2
    expected, filled = [], 0
    for polygon in exact.geometry:
        holes = [shapely.Polygon(ring) for ring in polygon.interiors]
        kept = [h for h in holes if h.area >= limit - 1e-6 or exact.intersects(h.buffer(-0.1)).any()]
        filled += len(holes) - len(kept)
        expected.append(shapely.Polygon(polygon.exterior, [hole.exterior for hole in kept]))
    found = trace(labels, Shaping(fill_holes=area), background=background)
    assert shapely.equals(found.frame.geometry.to_numpy(), np.array(expected, object)).all()
    assert sum(each.holes_filled for each in found.counts) == filled


def test_a_speck_that_is_dropped_does_not_keep_a_hole_open() -> None:
    labels = np.zeros((30, 30), np.uint8)
    labels[5:25, 5:25] = 1
    labels[10:20, 10:20] = 0
    labels[15, 15] = 1
    with_speck = trace(array(labels), Shaping(fill_holes=20))
    assert [len(p.interiors) for p in with_speck.frame.geometry] == [1, 0]
    (filled,) = trace(array(labels), Shaping(fill_holes=20, min_area=1)).frame.geometry
    assert len(filled.interiors) == 0


# --- separate


def dumbbell(neck: int) -> NDArray[np.uint8]:
    labels = np.zeros((30, 60), np.uint8)
    labels[5:25, 5:25] = labels[5:25, 35:55] = 1
    labels[15 - neck // 2 : 15 - neck // 2 + neck, 25:35] = 1
    return labels


@pytest.mark.parametrize(("neck", "parts"), [(2, 2), (4, 2), (8, 1)])
def test_objects_are_parted_where_they_are_narrow(neck: int, parts: int) -> None:
    shaping = Shaping(separate=6 * PIXEL)
    frame = trace(array(dumbbell(neck)), shaping).frame
    assert len(frame) == parts
    assert len(trace(array(dumbbell(neck)), Shaping()).frame) == 1
    if parts > 1:
        assert frame.geometry.area.min() > 19 * 20 * PIXEL**2
        assert frame.union_all().area == pytest.approx((dumbbell(neck) == 1).sum() * PIXEL**2)


def test_what_is_narrow_everywhere_stays_whole() -> None:
    labels = np.zeros((10, 40), np.uint8)
    labels[4:6, 2:38] = 1
    assert len(trace(array(labels), Shaping(separate=2)).frame) == 1


def test_narrow_is_told_on_the_ground_where_pixels_are_not_square() -> None:
    """A neck of 4 pixels of 0.3 m and one of 4 pixels of 1.2 m."""
    grid = GeoBox((30, 60), BANEPA @ rasterio.Affine.scale(1, 4), 32645)
    assert len(trace(wrap_xr(dumbbell(4), grid), Shaping(separate=6.5)).frame) == 2
    assert len(trace(wrap_xr(dumbbell(4), grid), Shaping(separate=4)).frame) == 1


# --- what values mean


def aux_xml(path: Path, content: str) -> None:
    root = f"<PAMDataset><PAMRasterBand band='1'>{content}</PAMRasterBand></PAMDataset>"
    path.with_name(f"{path.name}.aux.xml").write_text(root, encoding="utf-8")


CATEGORIES = "<CategoryNames><Category>none</Category><Category>green roof</Category></CategoryNames>"
TABLE = """<GDALRasterAttributeTable tableType="thematic">
  <FieldDefn index="0"><Name>Count</Name><Type>0</Type><Usage>1</Usage></FieldDefn>
  <FieldDefn index="1"><Name>VALUE</Name><Type>0</Type><Usage>0</Usage></FieldDefn>
  <FieldDefn index="2"><Name>Class_name</Name><Type>2</Type><Usage>0</Usage></FieldDefn>
  <Row index="0"><F>9</F><F>1</F><F>meadow</F></Row><Row index="1"><F>9</F><F>7</F><F>water</F></Row>
</GDALRasterAttributeTable>"""


def test_names_and_colours_are_gdals(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [1, 7]], np.uint8)
    path = to_file(tmp_path / "a.tif", labels, photometric="palette")
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 128, 0, 255)})
    assert open_labels(path).names == {}
    assert open_labels(path).colours[1] == "#ff8000"
    aux_xml(path, CATEGORIES)
    assert open_labels(path).names == {0: "none", 1: "green roof"}
    aux_xml(path, TABLE)
    assert open_labels(path).names == {1: "meadow", 7: "water"}
    assert set(geoseg.vectorize(path)["class"]) == {"meadow", "water"}
    assert set(geoseg.vectorize(path, classes={7: "lake"})["class"]) == {"meadow", "lake"}
    assert set(geoseg.vectorize(path, only=["water"])["class"]) == {"water"}
    with pytest.raises(OptionError, match=r"--class lake: .* names meadow, water"):
        geoseg.vectorize(path, only=["lake"])


def test_nodata_of_the_file_is_nodata(tmp_path: Path) -> None:
    labels = np.array([[3, 3, 1], [3, 255, 1]], np.uint8)
    frame = geoseg.vectorize(to_file(tmp_path / "a.tif", labels, nodata=3), background=None)
    assert list(frame["class"]) == ["1"]
    assert list(frame["touches_nodata"]) == [True]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_labels_may_be_of_any_type(tmp_path: Path, dtype: str) -> None:
    """As other programs write them, with a nodata of that type."""
    values = np.array([0, 60, np.iinfo(np.int8).max if dtype == "int8" else 254, NODATA], np.uint8)
    labels = values[np.minimum(blobs((30, 40), 3), 3)]
    nodata = {"u": 9, "i": -9, "f": np.nan}[np.dtype(dtype).kind]
    path = to_file(tmp_path / "a.tif", np.where(labels == NODATA, nodata, labels.astype(dtype)), nodata=nodata)
    (tmp_path / "b").mkdir()
    assert_geodataframe_equal(geoseg.vectorize(path), geoseg.vectorize(to_file(tmp_path / "b" / "a.tif", labels)))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("int16", -1), ("int16", 255), ("int16", 257), ("int32", 65_536), ("float32", 1.5), ("float64", 1e30)],
)
def test_what_is_no_label_is_told(tmp_path: Path, dtype: str, value: float) -> None:
    labels = np.array([[0, 1], [1, 2]], dtype)
    labels[1, 1] = value
    with pytest.raises(SceneError, match=rf"a\.tif: {labels[1, 1]} is no label: .* from 0 to 254".replace("+", r"\+")):
        geoseg.vectorize(to_file(tmp_path / "a.tif", labels))


def test_a_store_with_other_arrays_is_taken_by_its_labels(tmp_path: Path) -> None:
    labels = array(np.array([[0, 1], [4, 4]], np.uint8)).rename("kinds")
    labels.attrs |= {
        "flag_values": [0, 1, 4],
        "flag_meanings": "nothing road water",
        "flag_colors": "#000000 #aaaaaa x",
    }
    both = xr.Dataset({"kinds": labels, "height": array(np.zeros((2, 2), np.uint8))})
    labels = both["kinds"]
    both.to_zarr(tmp_path / "a.zarr", consolidated=False, zarr_format=3)
    raster = open_labels(tmp_path / "a.zarr")
    assert raster.names == {0: "nothing", 1: "road", 4: "water"}
    assert raster.colours == {0: "#000000", 1: "#aaaaaa"}
    assert list(geoseg.vectorize(tmp_path / "a.zarr")["class"]) == ["road", "water"]
    labels.attrs.clear()
    both.to_zarr(tmp_path / "b.zarr", consolidated=False, zarr_format=3)
    with pytest.raises(SceneError, match=r"b\.zarr: a label raster has one band, this has 2"):
        open_labels(tmp_path / "b.zarr")


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shaping=st.builds(
        Shaping,
        separate=st.just(1.5),
        min_area=st.sampled_from([0.0, 1.0]),
        simplify=st.just(0.3),
        regularise=st.booleans(),
    ),
)
@example(0, Shaping(separate=1.5, simplify=0.3, regularise=True))
def test_what_is_told_is_what_the_layer_has(seed: int, shaping: Shaping) -> None:
    """Also where straight walls would overlap, and are cut last of all; and each pixel is told of once."""
    labels = blobs((80, 100), seed)
    traced = trace(array(labels), shaping, classes={1: "roof"}, only=["roof"])
    (count,) = traced.counts
    assert count.area == pytest.approx(traced.frame["area_m2"].sum())
    assert count.kept == len(traced.frame)
    assert (count.pixels, traced.others, traced.nodata) == tuple(
        np.isin(labels, values).sum() for values in (1, [0, 2], 255)
    )


def test_only_some_classes_without_a_background() -> None:
    labels = blobs((40, 40), 5)
    frame = geoseg.vectorize(array(labels), classes={1: "b"}, background=None, only=["b"])
    assert set(frame["class"]) == {"b"}
    assert frame.geometry.area.sum() == pytest.approx((labels == 1).sum() * PIXEL**2)
    assert not frame["touches_nodata"].all(), "what was not asked for is not nodata"


# --- the command


def test_the_command_writes_and_counts(tmp_path: Path) -> None:
    labels = blobs((60, 60), 7)
    path = to_file(tmp_path / "a.tif", labels)
    arguments = [*("vectorize", str(path), "--out", str(tmp_path / "a.gpkg"), "--classes", "1=roof,2=road")]
    done = CliRunner().invoke(cli, [*arguments, "--min-area", "1", "--simplify", "0.3"], catch_exceptions=False)
    assert done.exit_code == 0
    shaping = Shaping(min_area=1, simplify=0.3)
    traced = trace(path, shaping, classes={1: "roof", 2: "road"})
    line = next(line.split() for line in done.output.splitlines() if line.startswith("roof"))
    assert line[1] == str((labels == 1).sum())
    assert [int(line[3]), int(line[4]), int(line[6])] == [
        *(traced.counts[0].objects, traced.counts[0].dropped, traced.counts[0].kept),
    ]
    counts = [np.isin(labels, values).sum() for values in ([1, 2], [0], [255])]
    assert f"Each of {counts[0]} pixels is in one of {sum(each.objects for each in traced.counts)} exact" in done.output
    assert f"of the others {counts[1]} make no object, and {counts[2]} are nodata (255, or" in done.output
    back = pyogrio.read_dataframe(tmp_path / "a.gpkg", layer="a")
    assert list(back["id"]) == list(traced.frame["id"])
    assert shapely.equals(back.geometry.to_numpy(), traced.frame.geometry.to_numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--out", "a.shape"], r"a\.shape: its suffix stands for no format; choose one of \.coco\.json, \.geojson"),
        (["--out", "a.gpkg", "--simplify", "-1"], "--simplify -1.0: must be 0 or more"),
        (["--out", "a.gpkg", "--background", "255"], "--background 255: is a value from 0 to 254, or none"),
        (["--out", "a.gpkg", "--class", "lake"], "--class lake: the raster has no class of this name"),
        (["--out", "a.gpkg", "--classes", "roof"], "--classes roof: 'roof' is not VALUE=NAME, such as 1=roof"),
        (["--out", "a.gpkg", "--dtm", "b.tif"], "add --dsm, or leave out --dtm b.tif"),
    ],
)
def test_what_is_refused(arguments: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    to_file(tmp_path / "a.tif", blobs((9, 9), 1))
    with pytest.raises(OptionError, match=error):
        CliRunner().invoke(cli, ["vectorize", "a.tif", *arguments], catch_exceptions=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.parametrize("out", ["none/b.gpkg", "a.tif/b.geojson", "folder.fgb", "none/b.pmtiles"])
@pytest.mark.parametrize(
    "asked", [["vectorize", "a.tif", "--out"], ["convert", "a.gpkg"], ["check", "a.gpkg", "--out"]]
)
def test_where_nothing_can_be_written(
    asked: list[str], out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told before anything is done, whichever library would write."""
    monkeypatch.chdir(tmp_path)
    to_file(tmp_path / "a.tif", blobs((9, 9), 1))
    (tmp_path / "folder.fgb").mkdir()
    gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 5, 5)], crs=32645).to_file("a.gpkg")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=f"^{out}: cannot be written: .*; make its folder, or choose another place$"):
        CliRunner().invoke(cli, [*asked, out], catch_exceptions=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_simplify_of_the_function_is_in_pixels() -> None:
    labels = array(blobs((50, 50), 9, 2))
    assert geoseg.vectorize(labels, simplify=1.0).geometry.equals(
        trace(labels, Shaping(simplify=1.0 * trace_pixel(labels))).frame.geometry
    )


def trace_pixel(labels: xr.DataArray) -> float:
    count = trace(labels, Shaping()).counts[0]
    return float((count.raster_area / count.pixels) ** 0.5)


def test_an_empty_raster_gives_an_empty_layer() -> None:
    traced = trace(array(np.zeros((5, 5), np.uint8)), Shaping(0, 1, 1, 1, 1))
    assert len(traced.frame) == 0
    assert traced.counts == ()
    assert isinstance(traced.frame, gpd.GeoDataFrame)
