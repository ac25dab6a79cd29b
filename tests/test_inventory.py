"""`geoseg catalog`: every scene of a folder in a valid catalog, once; what cannot be is told."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.shutil
import shapely
from click.testing import CliRunner
from conftest import BANEPA, write_tif
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from pystac.validation import JsonSchemaSTACValidator
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from scipy import ndimage
from test_archive import carry_out, scene

from geoseg.archive import RunJob
from geoseg.catalog import Scene, sha256_of
from geoseg.cli import cli
from geoseg.dates import date_reader
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.inventory import (
    CatalogJob,
    CatalogReport,
    bbox_of,
    footprint,
    ids_of,
    scenes_below,
    write_catalog,
)
from geoseg.selection import SceneRef, Scenes, select

if TYPE_CHECKING:
    from numpy.typing import NDArray


def made(folder: Path, **options: Any) -> CatalogReport:
    return write_catalog(CatalogJob(folder, **options))


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def items_of(collection: Path) -> dict[str, dict[str, Any]]:
    """By id, as the collection links them."""
    links = [link for link in read(collection)["links"] if link["rel"] == "item"]
    items = [read(collection.parent / link["href"]) for link in links]
    return {item["id"]: item for item in items}


def check(collection: Path) -> None:
    """All of a catalog is valid, is linked both ways, and names files that are there."""
    validator, content = JsonSchemaSTACValidator(), read(collection)
    validator.validate_core(content, pystac.STACObjectType.COLLECTION, content["stac_version"])
    files = {link["href"] for link in content["links"] if link["rel"] == "item"}
    assert files == {f"./items/{path.name}" for path in (collection.parent / "items").iterdir()}
    for name, item in items_of(collection).items():
        validator.validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
        for link in item["links"]:
            assert (collection.parent / "items" / link["href"]).resolve() == collection.resolve()
        for asset in item["assets"].values():
            assert (collection.parent / "items" / asset["href"]).is_file()
        assert item["collection"] == content["id"]
        geometry = shapely.from_geojson(json.dumps(item["geometry"]))
        assert geometry.is_valid
        assert shapely.get_parts(geometry)[0].exterior.is_ccw
        assert name
    seen = pystac.Collection.from_file(str(collection))
    assert {item.id for item in seen.get_items()} == set(items_of(collection))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "town archive"
    scene(folder / "a.tif", 1, date="2022:07:25 10:11:12")
    scene(folder / "2023" / "b_20230801T101112.tif", 2)
    write_tif(folder / "2023" / "undated.tif", np.full((3, 40, 50), 7, np.uint8))
    return folder


# --- what is written


def test_a_folder_is_a_valid_collection(archive: Path) -> None:
    report = made(archive, license="CC-BY-4.0", title="Two towns")
    assert (report.made, report.kept, report.removed, report.faults) == (3, 0, 0, ())
    assert report.path == archive / "collection.json"
    check(report.path)
    content, items = read(report.path), items_of(report.path)
    assert (content["id"], content["title"], content["license"]) == ("town_archive", "Two towns", "CC-BY-4.0")
    assert content["extent"]["temporal"]["interval"] == [["2022-07-25T10:11:12Z", "2023-08-01T10:11:12Z"]]
    boxes = np.array([item["bbox"] for item in items.values()])
    around = [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
    assert content["extent"]["spatial"]["bbox"] == [pytest.approx(around, abs=1e-12)]
    assert content["summaries"]["proj:code"] == ["EPSG:32645"]
    assert content["summaries"]["eo:common_name"] == ["blue", "green", "red"]
    sizes = [item["properties"]["gsd"] for item in items.values()]
    assert content["summaries"]["gsd"] == {"minimum": min(sizes), "maximum": max(sizes)}
    assert sizes == pytest.approx([0.3] * 3, rel=0.01)


def test_an_item_tells_what_the_file_is(archive: Path) -> None:
    path = archive / "2023" / "b_20230801T101112.tif"
    item = items_of(made(archive, checksum=True).path)["b_20230801T101112"]
    with rasterio.open(path) as dataset:
        assert item["properties"]["proj:shape"] == list(dataset.shape)
        assert item["properties"]["proj:transform"] == list(dataset.transform)
        assert item["properties"]["proj:code"] == f"EPSG:{dataset.crs.to_epsg()}"
    asset = item["assets"]["visual"]
    assert asset["href"] == "../2023/b_20230801T101112.tif"
    assert asset["type"] == "image/tiff; application=geotiff"
    assert asset["roles"] == ["data", "visual"]
    assert asset["file:size"] == path.stat().st_size
    assert asset["file:checksum"] == "1220" + sha256_of(path)
    told = dt.datetime.fromisoformat(asset["updated"])
    assert abs(told.timestamp() - path.stat().st_mtime) < 1e-3
    assert asset["bands"] == [
        {"name": name, "eo:common_name": name, "data_type": "uint8", "nodata": 0} for name in ("red", "green", "blue")
    ]
    assert item["properties"]["license"] == "other"


def test_bands_are_told_as_they_are(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "floats.tif", np.ones((3, 20, 30), np.float32), nodata=np.nan)
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = ("NIR", "weight", "")
    write_tif(tmp_path / "pan.tif", np.ones((20, 30), np.uint16), nodata=0)
    rgba = write_tif(tmp_path / "rgba.tif", np.full((4, 20, 30), 255, np.uint8))
    with rasterio.open(rgba, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    rasterio.shutil.copy(rgba, tmp_path / "cloud.tif", driver="COG")
    items = items_of(made(tmp_path).path)
    kind = {"data_type": "float32", "nodata": "nan"}
    assert items["floats"]["assets"]["data"]["bands"] == [
        {"name": "NIR", "eo:common_name": "nir", **kind},
        {"name": "weight", **kind},
        {"name": "band 3", **kind},
    ]
    assert items["pan"]["assets"]["data"]["bands"] == [{"name": "grey", "data_type": "uint16", "nodata": 0}]
    names = [band["name"] for band in items["rgba"]["assets"]["visual"]["bands"]]
    assert names == ["red", "green", "blue", "alpha"]
    assert items["cloud"]["assets"]["visual"]["type"].endswith("profile=cloud-optimized")
    check(tmp_path / "collection.json")


def test_a_grid_without_a_code_is_told_in_words(tmp_path: Path) -> None:
    crs = "+proj=laea +lat_0=27 +lon_0=85 +datum=WGS84 +units=m"
    write_tif(tmp_path / "a.tif", np.ones((3, 20, 30), np.uint8), crs=crs, transform=rasterio.Affine(2, 0, 5, 0, -2, 9))
    properties = items_of(made(tmp_path).path)["a"]["properties"]
    assert properties.get("proj:code") is None
    assert "Lambert Azimuthal" in properties["proj:wkt2"]


def test_what_has_no_date_gets_an_interval_and_no_run_takes_it_for_one(archive: Path) -> None:
    properties = items_of(made(archive).path)["undated"]["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] == "1970-01-01T00:00:00Z"
    assert properties["end_datetime"] > "2020"
    refs = {
        ref.id: ref
        for ref in select(Scenes.model_validate({"catalogs": ["collection.json"]}), archive)
        if isinstance(ref, SceneRef)
    }
    assert refs["undated"].datetime is None
    assert refs["a"].datetime == dt.datetime(2022, 7, 25, 10, 11, 12, tzinfo=dt.UTC)


def test_a_run_takes_the_catalog(archive: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Also when all of it was moved: bands, dates and where it came from."""
    (archive / "2023" / "undated.tif").unlink()
    made(archive)
    moved = tmp_path / "elsewhere"
    archive.rename(moved)
    scenes = {"catalogs": ["collection.json"]}
    job = RunJob.model_validate({"product": "buildings", "model": str(tiny_model), "scenes": scenes, "min_area": 1})
    report = carry_out(job, moved, out=tmp_path / "maps")
    assert (report.done, report.failures) == (2, ())
    for name, when in (("a", "2022-07-25T10:11:12Z"), ("b_20230801T101112", "2023-08-01T10:11:12Z")):
        result = read(tmp_path / "maps" / name / "item.json")
        assert result["properties"]["datetime"] == when
        derived = [link["href"] for link in result["links"] if link["rel"] == "derived_from"]
        assert (tmp_path / "maps" / name / derived[1]).resolve() == moved / "items" / f"{name}.json"


def test_results_of_a_run_are_no_scenes(archive: Path, tiny_model: Path) -> None:
    carry_out(
        RunJob.model_validate({"product": "buildings", "model": str(tiny_model), "scenes": {"files": ["a.tif"]}}),
        archive,
    )
    assert (archive / "maps" / "a" / "labels.tif").exists()
    assert made(archive).made == 3


# --- where there is data


@st.composite
def overviews(draw: st.DrawFn) -> NDArray[np.bool_]:
    rows, cols, seed = draw(st.integers(8, 60)), draw(st.integers(8, 60)), draw(st.integers(0, 9999))
    rng, share = np.random.default_rng(seed), draw(st.sampled_from([0.01, 0.3, 0.6, 0.99]))
    block = draw(st.sampled_from([1, 4, 13]))
    coarse = rng.random((-(-rows // block), -(-cols // block))) < share
    return coarse.repeat(block, 0).repeat(block, 1)[:rows, :cols]


def place(rows: int, cols: int, affine: rasterio.Affine = BANEPA, crs: Any = 32645) -> Scene:
    return Scene("a", "a.tif", GeoBox((rows, cols), affine, crs), ("grey",), "uint8", None, (0.3, 0.3))


TURNED = BANEPA @ rasterio.Affine.rotation(33)
UPSIDE_DOWN = BANEPA @ rasterio.Affine.scale(1, -1)


THIN = np.array([[int(bit) for bit in f"{row:08b}"] for row in (112, 21, 44, 0, 128, 2, 149, 54)], bool)


@settings(max_examples=40)
@example(valid=THIN, affine=BANEPA, times=1)  # with its gaps closed, two lines run side by side
@given(valid=overviews(), affine=st.sampled_from([BANEPA, TURNED, UPSIDE_DOWN]), times=st.sampled_from([1, 3]))
def test_a_footprint_covers_what_is_valid_and_little_else(
    valid: NDArray[np.bool_], affine: rasterio.Affine, times: int
) -> None:
    rows, cols = valid.shape
    here = place(rows * times, cols * times, affine)
    if not valid.any():
        with pytest.raises(SceneError, match="has no data"):
            footprint(here, valid)
        return
    outline = footprint(here, valid)
    assert outline.is_valid
    assert all(part.exterior.is_ccw for part in shapely.get_parts(outline))
    np.testing.assert_array_equal(shapely.get_coordinates(outline).round(7), shapely.get_coordinates(outline))
    back = Transformer.from_crs(4326, 32645, always_xy=True)
    pixels = shapely.transform(
        outline, lambda xy: np.stack(~affine @ back.transform(xy[:, 0], xy[:, 1]), axis=1) / times
    )
    centres = np.argwhere(valid)[:, ::-1] + 0.5
    assert shapely.distance(shapely.points(centres), pixels).max() <= 2.05
    if valid.all():
        assert pixels.area == pytest.approx(rows * cols, rel=0.01)  # a centimetre is what 7 digits tell
    if _few(valid):  # nothing was closed
        near = shapely.buffer(shapely.multipoints(centres), 0.71 + 2.05)
        assert shapely.area(shapely.difference(pixels, near)) <= 1e-3 * rows * cols


def _few(valid: NDArray[np.bool_]) -> bool:
    return bool(ndimage.label(valid)[1] + ndimage.label(~valid)[1] <= 6)


def test_salt_and_pepper_has_a_simple_outline() -> None:
    valid = np.zeros((400, 300), bool)
    valid[50:350, 20:280] = np.random.default_rng(1).random((300, 260)) < 0.5
    outline = footprint(place(400, 300), valid)
    assert len(shapely.get_coordinates(outline)) < 300
    full = np.zeros((400, 300), bool)
    full[50:350, 20:280] = True
    expected = footprint(place(400, 300), full)
    assert shapely.intersection(outline, expected).area / shapely.union(outline, expected).area > 0.97


def test_a_scene_on_the_antimeridian_is_cut_there() -> None:
    affine = rasterio.Affine(100, 0, 580_000, 0, -100, 8_000_000)  # of zone 60, which ends at 180 degrees
    outline = footprint(place(400, 600, affine, 32660), None)
    assert shapely.get_num_geometries(outline) == 2
    west, south, east, north = bbox_of(outline)
    assert 170 < west < 180
    assert -180 < east < -170
    assert south < north
    centre = Transformer.from_crs(32660, 4326, always_xy=True).transform(*(affine @ (300.0, 200.0)))
    assert outline.covers(shapely.Point(centre))
    assert outline.area < 20


def test_a_scene_around_a_pole_reaches_all_longitudes() -> None:
    for crs, expected in ((3413, (-180, 84, 180, 90)), (3031, (-180, -90, 180, -84))):
        affine = rasterio.Affine(1000, 0, -400_000, 0, -1000, 400_000)
        outline = footprint(place(800, 800, affine, crs), None)
        assert outline.bounds == pytest.approx(expected, abs=1.1)
    away = footprint(place(800, 800, rasterio.Affine(1000, 0, 400_000, 0, -1000, 400_000), 3413), None)
    assert away.bounds[3] < 87


def test_a_scene_without_data_is_told_and_left_out(tmp_path: Path) -> None:
    write_tif(tmp_path / "empty.tif", np.zeros((3, 40, 50), np.uint8), nodata=0)
    write_tif(tmp_path / "nan.tif", np.full((3, 40, 50), np.nan, np.float32))
    write_tif(tmp_path / "good.tif", np.ones((3, 40, 50), np.float32))
    report = made(tmp_path)
    assert report.made == 1
    assert [Path(fault.name).name for fault in report.faults] == ["empty.tif", "nan.tif"]
    assert all("has no data" in fault.why for fault in report.faults)


@pytest.mark.parametrize("name", ["RGB.byte.tif", "landsat7_rgb_3857.tif"])
def test_footprints_of_real_scenes(name: str, shared_data: Path, tmp_path: Path) -> None:
    shutil.copyfile(shared_data / "scenes" / name, tmp_path / name)
    item = next(iter(items_of(made(tmp_path).path).values()))
    check(tmp_path / "collection.json")
    with rasterio.open(tmp_path / name) as dataset:
        outline = shapely.from_geojson(json.dumps(item["geometry"]))
        to_crs = Transformer.from_crs(4326, dataset.crs, always_xy=True)
        mask = dataset.read_masks().max(0) > 0
        there = shapely.transform(
            outline, lambda xy: np.stack(~dataset.transform @ to_crs.transform(xy[:, 0], xy[:, 1]), axis=1)
        )
        drawn = rasterize(shapely.get_parts(there), mask.shape).astype(bool)
    assert (drawn & mask).sum() / mask.sum() > 0.995
    assert (drawn & mask).sum() / (drawn | mask).sum() > (0.98 if name.startswith("RGB") else 0.9)  # many gaps
    assert len(shapely.get_coordinates(outline)) < 300


# --- names and dates


def _joined(parts: tuple[list[str], str, str]) -> str:
    return "/".join((*parts[0], parts[1] + parts[2]))


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(["a", "b", "A", "a_b"]), max_size=2),
            st.sampled_from(["x", "X", "a_x", "x y", "x_y", ".x", "é"]),
            st.sampled_from([".tif", ".TIF", ".jp2"]),
        ),
        min_size=1,
        unique_by=_joined,
    )
)
@example([(["a"], "x", ".tif"), (["b"], "x", ".tif"), ([], "a_x", ".tif")])
@example([(["a", "b"], "x", ".tif"), (["a_b"], "x", ".tif")])
def test_ids_are_unique_and_a_stem_where_that_is_enough(parts: list[tuple[list[str], str, str]]) -> None:
    root = Path("/r")
    paths = [root.joinpath(*folders, stem + suffix) for folders, stem, suffix in parts]
    ids = ids_of(paths, root)
    assert sorted(ids.values()) == sorted(paths)
    assert len({name.casefold() for name in ids}) == len(paths)
    for name, path in ids.items():
        assert name.replace("_", "a").replace("-", "a").replace(".", "a").isalnum()
        assert not name.startswith(".")
        namesakes = [p for p in paths if p.stem.casefold() == path.stem.casefold()]
        if len(namesakes) > 1 and path.parent != root:
            assert name != path.stem or path.stem.startswith(".")
    assert ids_of(reversed(paths), root) == ids


def test_ids_are_stems() -> None:
    root = Path("/r")
    assert list(ids_of([root / "a.tif", root / "s" / "b.tif"], root)) == ["a", "b"]
    assert list(ids_of([root / "s" / "b.tif", root / "t" / "b.tif"], root)) == ["s_b", "t_b"]
    assert list(ids_of([root / "s" / "b.tif", root / "s" / "b.jp2"], root)) == ["s_b_tif", "s_b_jp2"]


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("m_4709963_se_14_1_20200831", "2020-08-31T00:00:00"),
        ("2018-10-13, Sentinel-2B L1C, B02", "2018-10-13T00:00:00"),
        ("S2A_MSIL1C_20200831T155911_N0209_R097_T18TVL_20200831T194532", "2020-08-31T15:59:11"),
        ("20180203_153056_0f3c_3B", "2018-02-03T15:30:56"),
        ("DJI_20220725101112", "2022-07-25T10:11:12"),
        ("2024-05-31T10:11:12Z", "2024-05-31T10:11:12"),
        ("20200831_999999", "2020-08-31T00:00:00"),  # no such time: a number
        ("20200230_20200301", "2020-03-01T00:00:00"),  # no such day
        ("town_20201301", None),
        ("town_2020-0531", None),
        ("120200831", None),
        ("202008311", None),
        ("scene_19991231", "1999-12-31T00:00:00"),
        ("scene_20000229", "2000-02-29T00:00:00"),
        ("18991231", None),
        ("1985", None),
    ],
)
def test_dates_in_names(name: str, when: str | None) -> None:
    found = date_reader(None)(name)
    assert (found and found.replace(tzinfo=None).isoformat()) == when
    assert found is None or found.tzinfo == dt.UTC


@given(st.integers(0, int(dt.datetime(2068, 1, 1, tzinfo=dt.UTC).timestamp())))
def test_a_pattern_reads_what_strftime_writes(seconds: int) -> None:
    when = dt.datetime.fromtimestamp(seconds, dt.UTC)
    for pattern in ("%d.%m.%Y %H-%M-%S", "%y%m%d%H%M%S", "x%Y_%j(%H%M%S)", "100%%%Y%m%dT%H%M%S"):
        found = date_reader(pattern)(f"a {when.strftime(pattern)} b")
        assert found == when
    day = date_reader(r"(?P<year>\d{4})-(?P<yearday>\d+)")(when.strftime("%Y-%j"))
    assert day == when.replace(hour=0, minute=0, second=0)


def test_patterns_that_cannot_be_are_refused() -> None:
    for pattern, says in (
        ("%Q%Y", "%Q is not understood"),
        ("%m%d", "tells no year"),
        ("(?P<year>", "no regular expression"),
        ("town", "tells no year"),
        ("(?P<month>..)", "tells no year"),
        ("%Y%Y", "no regular expression"),
    ):
        with pytest.raises(OptionError, match=says):
            date_reader(pattern)
    assert date_reader("%Y-%j")("2023-366") is None
    assert date_reader("%Y-%j")("2024-366") is not None


def test_the_users_pattern_goes_first_then_the_file_then_the_name(tmp_path: Path) -> None:
    scene(tmp_path / "31052024_20240601.tif", date="2022:07:25 10:11:12")
    scene(tmp_path / "x_20240601.tif", date="2022:07:25 10:11:12")
    assert {i["properties"]["datetime"] for i in items_of(made(tmp_path).path).values()} == {"2022-07-25T10:11:12Z"}
    report = made(tmp_path, datetime_pattern="%d%m%Y_")
    dates = {name: item["properties"]["datetime"] for name, item in items_of(report.path).items()}
    assert dates == {"31052024_20240601": "2024-05-31T00:00:00Z", "x_20240601": "2022-07-25T10:11:12Z"}
    assert report.made == 2


# --- bringing it up to date


def test_what_is_unchanged_keeps_its_item(archive: Path) -> None:
    path = made(archive, license="CC0-1.0", id="towns", checksum=True).path
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (archive / "items").iterdir()}
    (archive / "2023" / "undated.tif").unlink()
    os.utime(archive / "a.tif", ns=(1, 1_600_000_000_000_000_000))
    scene(archive / "new.tif", 3)
    report = made(archive)
    assert (report.made, report.kept, report.removed) == (2, 1, 1)
    check(path)
    after = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in (archive / "items").iterdir()}
    assert set(after) == {"a.json", "b_20230801T101112.json", "new.json"}
    assert after["b_20230801T101112.json"] == before["b_20230801T101112.json"]
    assert after["a.json"][0] != before["a.json"][0]
    new = read(archive / "items" / "new.json")  # options that are not given stay
    assert (new["properties"]["license"], new["collection"]) == ("CC0-1.0", "towns")
    assert "file:checksum" in new["assets"]["visual"]
    again = made(archive)
    assert (again.made, again.kept) == (0, 3)
    renewed = made(archive, license="CC-BY-4.0")
    assert (renewed.made, renewed.kept) == (3, 0)
    assert made(archive, checksum=False).made == 3
    titled = made(archive, title="Towns")
    assert (titled.made, titled.kept) == (0, 3)
    assert read(path)["title"] == "Towns"


def test_a_file_of_another_size_at_the_same_time_is_another_file(archive: Path) -> None:
    made(archive)
    state = (archive / "a.tif").stat()
    write_tif(archive / "a.tif", np.ones((3, 77, 50), np.uint8))
    os.utime(archive / "a.tif", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert made(archive).made == 1


def test_a_damaged_item_is_made_anew(archive: Path) -> None:
    made(archive)
    (archive / "items" / "a.json").write_text("{", encoding="utf-8")
    assert made(archive).made == 1
    check(archive / "collection.json")


def test_what_a_stopped_command_left_is_taken_up(archive: Path) -> None:
    made(archive)
    (archive / "collection.json").unlink()
    assert made(archive).made == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"type": "Collection", "id": "town_archive"}'])
def test_a_foreign_catalog_is_left_alone(content: str, archive: Path) -> None:
    (archive / "collection.json").write_text(content, encoding="utf-8")
    with pytest.raises(OutputError, match=r"collection\.json: was not written by geoseg catalog.*--out"):
        made(archive)
    assert (archive / "collection.json").read_text("utf-8") == content
    assert not (archive / "items").exists()
    report = made(archive, out=archive / "scenes.json")
    assert report.path == archive / "scenes.json"
    assert report.made == 3
    check(report.path)


def test_foreign_items_are_left_alone(archive: Path) -> None:
    (archive / "items").mkdir()
    foreign = '{"type": "Feature", "collection": "other", "properties": {"geoseg:datetime_known": true}}'
    (archive / "items" / "a.json").write_text(foreign, encoding="utf-8")
    (archive / "items" / "note.json").write_text("{}", encoding="utf-8")
    with pytest.raises(OutputError, match=r"a\.json: belongs to another catalog.*--out"):
        made(archive)
    assert (archive / "items" / "a.json").read_text("utf-8") == foreign
    (archive / "items" / "a.json").unlink()
    made(archive)
    (archive / "a.tif").unlink()
    content = read(archive / "collection.json")
    content["links"].append({"rel": "item", "href": "../precious.json"})
    (archive / "collection.json").write_text(json.dumps(content), encoding="utf-8")
    (archive.parent / "precious.json").write_text("{}", encoding="utf-8")
    made(archive)
    assert (archive / "items" / "note.json").exists()
    assert (archive.parent / "precious.json").exists()


def test_a_catalog_may_lie_elsewhere(archive: Path, tmp_path: Path) -> None:
    report = made(archive, out=tmp_path / "stac" / "towns")
    check(report.path)
    scenes = {"catalogs": ["stac/towns/collection.json"]}
    assert all(not isinstance(r, SceneRef) for r in select(Scenes.model_validate(scenes), tmp_path))
    allowed = list(select(Scenes.model_validate(scenes | {"roots": ["town archive"]}), tmp_path))
    assert sum(isinstance(r, SceneRef) for r in allowed) == 3


# --- what is found


def test_links_that_lead_out_are_not_followed(archive: Path, tmp_path: Path) -> None:
    secret = write_tif(tmp_path / "secrets" / "secret.tif", np.ones((3, 40, 50), np.uint8))
    (archive / "way").symlink_to(secret.parent)
    (archive / "secret.tif").symlink_to(secret)
    (archive / "again.tif").symlink_to(archive / "a.tif")  # is there already
    (archive / "note.txt").symlink_to(secret)
    report = made(archive)
    assert report.made == 3
    assert report.outside == (archive / "secret.tif", archive / "way")
    assert "secret" not in " ".join(items_of(report.path))


def test_all_kinds_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in (
        "a.tif",
        "b.TIFF",
        "c/d/e.jp2",
        "f.vrt",
        ".g.tif",
        ".h/i.tif",
        "j.tif.aux.xml",
        "k.png",
        "l.tif/m.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, outside = scenes_below(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.tif", "b.TIFF", "c/d/e.jp2", "f.vrt"]
    assert not outside


def test_a_bad_file_is_told_and_the_others_go_on(archive: Path) -> None:
    (archive / "text.tif").write_text("no raster", encoding="utf-8")
    (archive / "disguised.tif").write_text("<VRTDataset/>", encoding="utf-8")
    write_tif(archive / "nowhere.tif", np.ones((3, 40, 50), np.uint8), crs=None)
    noise = np.random.default_rng(1).random((3, 200, 200), np.float32)
    torn = write_tif(archive / "torn.tif", noise)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    done = CliRunner().invoke(cli, ["catalog", str(archive)])
    assert done.exit_code == 3
    assert "3 scenes catalogued, 0 were there already, 0 are gone, 4 left out." in done.output
    for says in (
        "text.tif: cannot be read as a raster",
        "disguised.tif: is a description",
        "nowhere.tif: has no CRS",
        "torn.tif: cannot be read: the file is damaged",
    ):
        assert says in done.output
    check(archive / "collection.json")


def test_a_virtual_raster_is_a_scene_that_jobs_have_to_allow(archive: Path) -> None:
    rasterio.shutil.copy(archive / "a.tif", archive / "mosaic.vrt", driver="VRT")
    done = CliRunner().invoke(cli, ["catalog", str(archive)])
    assert done.exit_code == 0
    assert "1 are descriptions of other files (VRT)" in done.output
    assert "type" not in items_of(archive / "collection.json")["mosaic"]["assets"]["visual"]


def test_folders_without_scenes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no scenes"):
        made(tmp_path)
    with pytest.raises(OptionError, match="is no folder"):
        made(tmp_path / "none")
    (tmp_path / "a.tif").touch()
    with pytest.raises(SceneError, match=r"none of its 1 scenes can be catalogued.*a\.tif"):
        made(tmp_path)
    assert not (tmp_path / "collection.json").exists()


def test_the_command_says_what_it_did(archive: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["catalog", str(archive), "--out", str(tmp_path / "stac")])
    assert done.exit_code == 0
    assert str(tmp_path / "stac" / "collection.json") in done.output
    assert f"scenes.roots: [{archive}]" in done.output
    with pytest.raises(OptionError, match="SPDX"):
        CliRunner().invoke(cli, ["catalog", str(archive), "--license", "my own"], catch_exceptions=False)
