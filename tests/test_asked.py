"""What a job knows better than a scene's files: which band is which, what stands for no data, what is not valid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from click.testing import CliRunner
from conftest import BANEPA, write_tif
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

import geoseg
from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.cli import cli
from geoseg.errors import GeosegError, OptionError, OutputError, SceneError
from geoseg.io.masks import in_full
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.planned import SegmentJob, look, plan
from geoseg.window import Window
from geoseg.work import SceneOrder

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS, COLS = 60, 80
RGB = ("red", "green", "blue")
WHOLE = Window(0, ROWS, 0, COLS)


def noise(bands: int, dtype: str = "uint8", seed: int = 1) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 200, (bands, ROWS, COLS)).astype(dtype)


def plain(path: Path, values: NDArray[Any], **profile: Any) -> Path:
    return write_tif(path, values, photometric="MINISBLACK", **profile)


def source_of(path: Path | str, wanted: tuple[str, ...] = RGB, **asked: Any) -> Any:
    scene, bands = as_asked(open_scene(path), wanted, Asked(**asked))
    return open_source(scene, bands, estimate_stretch(scene, bands))


def valid_of(path: Path | str, **asked: Any) -> NDArray[np.bool_]:
    return source_of(path, **asked).read(WHOLE).valid


# --- bands


def test_bands_are_those_that_the_job_names(tmp_path: Path) -> None:
    values = noise(4)
    path = plain(tmp_path / "a.tif", values)
    source = source_of(path, bands=(("red", 4), ("green", 2), ("blue", 1)))
    np.testing.assert_array_equal(source.read(WHOLE).values, values[[3, 1, 0]])
    one = source_of(path, bands=(("red", 2), ("green", 2), ("blue", 2)))
    np.testing.assert_array_equal(one.read(WHOLE).values, values[[1, 1, 1]])


def test_what_the_job_names_goes_before_the_file_which_names_the_rest(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", noise(3))
    scene = open_scene(path)
    assert as_asked(scene, RGB, Asked(bands=(("red", 3), ("blue", 1))))[1] == (3, 2, 1)
    with pytest.raises(
        SceneError, match=r"a\.tif: the model needs blue, too; the scene has the bands 1 red, 2 green, 3"
    ):
        as_asked(scene, RGB, Asked(bands=(("red", 3),)))
    with pytest.raises(OptionError, match=r"--bands nir=4: .*a\.tif has the bands 1 red, 2 green, 3 blue"):
        as_asked(scene, RGB, Asked(bands=(("nir", 4),)))
    with pytest.raises(OptionError, match="--bands red=0"):
        as_asked(scene, RGB, Asked(bands=(("red", 0),)))


def test_bands_of_files_are_named_alike(tmp_path: Path) -> None:
    values = noise(3)
    for name, band in zip(("B02", "B03", "B04"), values, strict=True):
        write_tif(tmp_path / "s" / f"{name}.tif", band)
    source = source_of(tmp_path / "s", bands=(("red", 1), ("blue", 3)))
    np.testing.assert_array_equal(source.read(WHOLE).values, values[[0, 1, 2]])
    assert [Path(file).stem for file in source.scene.files] == ["B02", "B03", "B04"]


# --- values that stand for no data


def test_a_colour_is_no_data_where_all_bands_have_it(tmp_path: Path) -> None:
    values = noise(3)
    values[:, 5:9, 7:20] = 255
    values[0, 30] = 255
    values[:, 40] = np.array([10, 20, 30])[:, None]
    path = write_tif(tmp_path / "a.tif", values)
    assert valid_of(path).all()
    white = (values == 255).all(axis=0)
    assert white.sum() == 4 * 13
    np.testing.assert_array_equal(valid_of(path, nodata=(255.0,)), ~white)
    np.testing.assert_array_equal(valid_of(path, nodata=(255.0, 255.0, 255.0)), ~white)
    np.testing.assert_array_equal(
        valid_of(path, nodata=(10.0, 20.0, 30.0)), np.arange(ROWS)[:, None] + np.zeros(COLS) != 40
    )


def test_values_are_in_the_order_of_the_bands_that_are_read(tmp_path: Path) -> None:
    values = noise(3)
    values[:, 3] = np.array([1, 2, 3])[:, None]
    path = plain(tmp_path / "a.tif", values)
    bands = (("red", 3), ("green", 2), ("blue", 1))
    assert not valid_of(path, bands=bands, nodata=(3.0, 2.0, 1.0))[3].any()
    assert valid_of(path, bands=bands, nodata=(1.0, 2.0, 3.0))[3].all()


def test_a_value_of_the_job_and_one_of_the_file_both_count(tmp_path: Path) -> None:
    values = noise(3, "uint16")
    values[:, :4], values[:, -7:] = 0, 9999
    valid = valid_of(write_tif(tmp_path / "a.tif", values, nodata=0), nodata=(9999.0,))
    assert valid[4:-7].all()
    assert not valid[:4].any()
    assert not valid[-7:].any()


def test_of_floats_a_value_in_one_band_is_enough(tmp_path: Path) -> None:
    """As for a nodata tag."""
    values = noise(3, "float32")
    values[1, 2] = -9999
    values[2, 4] = np.float32(0.1)
    path = write_tif(tmp_path / "a.tif", values)
    assert list(np.flatnonzero(~valid_of(path, nodata=(-9999.0,)).all(axis=1))) == [2]
    assert list(np.flatnonzero(~valid_of(path, nodata=(0.1,)).all(axis=1))) == [4]


def test_the_stretch_does_not_see_what_is_no_data(tmp_path: Path) -> None:
    values = noise(3, "uint16")
    values[:, :30] = 60000
    path = write_tif(tmp_path / "a.tif", values)
    mask = write_tif(tmp_path / "mask.tif", (values[0] != 60000).astype(np.uint8))
    for asked in ({"nodata": (60000.0,)}, {"mask": str(mask)}):
        stretch = source_of(path, **asked).stretch
        assert max(stretch.high) < 200
        expected = np.percentile(values[0, 30:], (1, 99))
        assert (stretch.low[0], stretch.high[0]) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    ("dtype", "nodata", "says"),
    [
        ("uint8", (256.0,), r"--nodata 256: is no value of uint8, as .*a\.tif has them"),
        ("uint16", (-1.0,), "--nodata -1: is no value of uint16"),
        ("uint8", (0.5,), r"--nodata 0\.5: is no value"),
        ("int16", (float("nan"),), "--nodata nan: is no value of int16"),
        ("uint8", (255.0, 255.0), "--nodata: has 2 values; give one, or one for each of the 3 bands"),
    ],
)
def test_values_that_cannot_be_are_refused(dtype: str, nodata: tuple[float, ...], says: str, tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", noise(3, dtype))
    with pytest.raises(OptionError, match=says):
        source_of(path, nodata=nodata)


# --- masks


def test_a_mask_says_no_with_zero(tmp_path: Path) -> None:
    codes = noise(1)[0] % 3
    path = write_tif(tmp_path / "a.tif", noise(3))
    expected = codes != 0
    mask = write_tif(tmp_path / "mask.tif", codes)
    np.testing.assert_array_equal(valid_of(path, mask=str(mask)), expected)
    np.testing.assert_array_equal(valid_of(path, mask=f"mask={mask}"), expected)
    with_nodata = write_tif(tmp_path / "nodata.tif", codes, nodata=2)
    np.testing.assert_array_equal(valid_of(path, mask=str(with_nodata)), codes == 1)


def test_the_codes_of_sentinel_2(tmp_path: Path) -> None:
    """By the product's definition: 2 dark, 4 vegetation, 5 bare, 6 water, 7 unclassified and 11 snow are ground."""
    codes = (np.arange(ROWS * COLS) % 12).reshape(ROWS, COLS).astype(np.uint8)
    mask = write_tif(tmp_path / "x_SCL.tif", codes)
    valid = valid_of(write_tif(tmp_path / "a.tif", noise(3)), mask=f"scl={mask}")
    assert set(codes[valid]) == {2, 4, 5, 6, 7, 11}
    assert set(codes[~valid]) == {0, 1, 3, 8, 9, 10}


def test_the_codes_of_landsat(tmp_path: Path) -> None:
    """By the product's guide: 21824 clear land, 21952 clear water, 22280 cloud, 23888 shadow, 54596 cirrus, 1 fill."""
    told = {21824: True, 21952: True, 30048: True, 1: False, 21826: False, 22280: False, 23888: False, 54596: False}
    codes = np.resize(np.array(list(told), np.uint16), (ROWS, COLS))
    mask = write_tif(tmp_path / "QA_PIXEL.tif", codes)
    valid = valid_of(write_tif(tmp_path / "a.tif", noise(3)), mask=f"qa_pixel={mask}")
    for code, expected in told.items():
        assert (valid[codes == code] == expected).all(), code


def spans(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(-9, size + 5), st.integers(1, size + 20)).map(lambda s: (s[0], s[0] + s[1]))


GRIDS = {
    "the same": ("EPSG:32645", BANEPA),
    "twice as coarse": ("EPSG:32645", BANEPA @ rasterio.Affine.scale(2)),
    "finer": ("EPSG:32645", BANEPA @ rasterio.Affine.scale(0.7)),
    "shifted": ("EPSG:32645", BANEPA @ rasterio.Affine.translation(7.3, -4.2)),
    "turned": ("EPSG:32645", BANEPA @ rasterio.Affine.translation(20, 2) @ rasterio.Affine.rotation(30)),
    "another CRS": ("EPSG:4326", None),
    "the next zone": ("EPSG:32644", None),
}


@pytest.fixture(scope="module", params=GRIDS)
def masked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, NDArray[np.bool_]]:
    """A source with a mask, and GDAL's own idea of the mask on the scene's grid, by nearest."""
    folder = tmp_path_factory.mktemp("masks")
    crs, transform = GRIDS[request.param]
    if transform is None:
        x, y = Transformer.from_crs(32645, crs, always_xy=True).transform(*(BANEPA @ (-3, -3)))
        step = 0.41 if crs != "EPSG:4326" else 4e-6
        transform = rasterio.Affine(step, 0, x, 0, -step, y)
    codes = (np.random.default_rng(2).random((70, 75)) > 0.4).astype(np.uint8)
    mask = write_tif(folder / "mask.tif", codes, crs, transform)
    scene = write_tif(folder / "a.tif", noise(3))
    with (
        rasterio.open(mask) as dataset,
        WarpedVRT(
            dataset,
            crs="EPSG:32645",
            transform=BANEPA,
            width=COLS,
            height=ROWS,
            resampling=Resampling.nearest,
            tolerance=1e-6,
        ) as view,
    ):
        expected = view.read(1) != 0
    return source_of(scene, mask=str(mask)), expected


@settings(max_examples=25)
@given(rows=spans(ROWS), cols=spans(COLS))
@example(rows=(-9, ROWS + 9), cols=(-9, COLS + 9))
@example(rows=(ROWS - 1, ROWS), cols=(COLS - 1, COLS))
def test_a_mask_of_another_grid_is_what_gdal_makes_of_it(
    masked: tuple[Any, NDArray[np.bool_]], rows: tuple[int, int], cols: tuple[int, int]
) -> None:
    source, expected = masked
    padded = np.pad(expected, 200)[rows[0] + 200 : rows[1] + 200, cols[0] + 200 : cols[1] + 200]
    np.testing.assert_array_equal(source.read(Window(*rows, *cols)).valid, padded)


def test_a_mask_says_the_same_however_it_is_asked(masked: tuple[Any, NDArray[np.bool_]]) -> None:
    """Rows far apart, as for an overview."""
    source, expected = masked
    rows, cols = np.arange(3, ROWS, 7), np.arange(1, COLS, 3)
    np.testing.assert_array_equal(source._masked(rows, cols), expected[np.ix_(rows, cols)])


def test_masks_that_are_none_are_told(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", noise(3))
    floats = write_tif(tmp_path / "floats.tif", noise(1, "float32"))
    far = write_tif(tmp_path / "far.tif", noise(1), transform=BANEPA @ rasterio.Affine.translation(500, 0))
    for mask, kind, says in (
        (path, SceneError, r"a\.tif: a mask has one band, this has 3"),
        (tmp_path / "gone.tif", SceneError, r"gone\.tif: there is no such file"),
        (f"scl={floats}", SceneError, r"floats\.tif: scl codes are whole numbers, these are float32"),
        (far, SceneError, r"far\.tif: the mask covers nothing of .*a\.tif"),
        ("scl", OptionError, r"--mask scl: .*a\.tif comes with no scl raster .*there is none.*scl=FILE"),
        ("qa_pixel=", OptionError, "--mask qa_pixel="),
    ):
        with pytest.raises(kind, match=says):
            source_of(path, mask=str(mask))


def test_a_mask_that_is_damaged_later_is_told(tmp_path: Path) -> None:
    mask = write_tif(tmp_path / "mask.tif", noise(1), compress="deflate")
    source = source_of(write_tif(tmp_path / "a.tif", noise(3)), mask=str(mask))
    mask.write_bytes(mask.read_bytes()[:-2000])
    with pytest.raises(SceneError, match=r"mask\.tif: the mask cannot be read"):
        source.read(WHOLE)


def test_zarr_scenes_have_masks_and_values_too(tmp_path: Path) -> None:
    values = noise(3)
    values[:, 7] = 200
    codes = noise(1)[0] % 2
    array = xr.DataArray(
        values,
        dims=("band", "y", "x"),
        coords={
            "y": BANEPA.f + (np.arange(ROWS) + 0.5) * BANEPA.e,
            "x": BANEPA.c + (np.arange(COLS) + 0.5) * BANEPA.a,
        },
        attrs={"proj:code": "EPSG:32645", "long_name": list(RGB)},
    )
    array.to_dataset(name="image").to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    mask = write_tif(tmp_path / "mask.tif", codes)
    expected = (codes != 0) & (np.arange(ROWS) != 7)[:, None]
    np.testing.assert_array_equal(valid_of(tmp_path / "a.zarr", nodata=(200.0,), mask=str(mask)), expected)


def test_relative_masks_count_from_the_data_folder(tmp_path: Path) -> None:
    assert in_full("scl", tmp_path) == "scl"
    assert in_full("scl=a/b.tif", tmp_path) == f"scl={tmp_path / 'a/b.tif'}"
    assert in_full("a.tif", tmp_path) == str(tmp_path / "a.tif")
    assert in_full(str(tmp_path / "a.tif"), Path("/elsewhere")) == str(tmp_path / "a.tif")


# --- jobs


def town(folder: Path, name: str = "town.tif") -> Path:
    rng = np.random.default_rng(3)
    values = (rng.random((3, 12, 14)).repeat(8, 1).repeat(8, 2) * 200 + 20).astype(np.uint8)
    values[:, :20] = 255
    return write_tif(folder / name, values)


def test_what_is_asked_for_is_a_part_of_the_job(tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path)
    mask = write_tif(tmp_path / "mask.tif", np.ones((96, 112), np.uint8))
    options: list[dict[str, Any]] = [
        {},
        {"bands": {"red": 3, "blue": 1}},
        {"bands": {"red": 1, "blue": 3}},
        {"nodata": 255},
        {"nodata": [255, 255, 254]},
        {"mask": mask},
        {"mask": f"scl={mask}"},
    ]
    made = [
        look(SegmentJob(scene, "buildings", tmp_path, model=str(tiny_model), **each)).parameters for each in options
    ]
    assert len({json.dumps(each, sort_keys=True) for each in made}) == len(options)
    assert not {"bands", "nodata"} & set(made[0])
    before = made[5]
    mask.write_bytes(mask.read_bytes() + b"x")
    assert look(SegmentJob(scene, "buildings", tmp_path, model=str(tiny_model), mask=mask)).parameters != before


def test_another_choice_does_not_pass_for_what_is_there(tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path)
    job = SegmentJob(scene, "buildings", tmp_path / "maps", model=str(tiny_model), nodata=255)
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model), nodata=255)
    with rasterio.open(result.folder / "labels.tif") as dataset:
        labels = dataset.read(1)
    assert (labels[:20] == 255).all()
    assert (labels[20:] != 255).all()
    assert plan(job).complete
    for other in ({}, {"nodata": 254}, {"nodata": 255, "bands": {"red": 3}}):
        with pytest.raises((OutputError, SceneError), match=r"holds results of another job|needs blue"):
            plan(SegmentJob(scene, "buildings", tmp_path / "maps", model=str(tiny_model), **other))


def test_a_worker_sees_what_was_planned(tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path)
    mask = write_tif(tmp_path / "mask.tif", np.ones((96, 112), np.uint8))
    job = SegmentJob(scene, "buildings", tmp_path, model=str(tiny_model), nodata=255, mask=mask)
    order = SceneOrder.of(look(job))
    window = Window(0, 96, 0, 112)
    assert not order.planned().source.read(window).valid[:20].any()
    mask.write_bytes(mask.read_bytes() + b"x")
    with pytest.raises(SceneError, match=r"town\.tif: has changed since the run was planned"):
        order.planned()
    mask.unlink()
    with pytest.raises(SceneError, match="is not there any more"):
        order.planned()


def test_the_command_takes_all_of_it(tiny_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, seed in (("B02", 1), ("B03", 2), ("B04", 3)):
        values = (np.random.default_rng(seed).random((12, 14)).repeat(8, 0).repeat(8, 1) * 200 + 20).astype(np.uint8)
        write_tif(tmp_path / "s" / f"x_{name}.tif", np.where(np.arange(96)[:, None] < 20, 255, values).astype(np.uint8))
    codes = np.where(rng.random((48, 56)) > 0.5, 4, 9).astype(np.uint8)
    write_tif(tmp_path / "s" / "x_SCL.tif", codes, transform=BANEPA @ rasterio.Affine.scale(2))
    more = ["--out", str(tmp_path / "maps"), "--model", str(tiny_model), "--device", "cpu"]
    asked = ["--nodata", "255,255,255", "--mask", "scl", "--bands", "red=3,green=2,blue=1"]
    outcome = CliRunner().invoke(cli, ["segment", str(tmp_path / "s"), "buildings", *more, *asked])
    assert outcome.exit_code == 0, outcome.output
    with rasterio.open(tmp_path / "maps" / "s" / "labels.tif") as dataset:
        labels = dataset.read(1)
    expected = (codes == 4).repeat(2, 0).repeat(2, 1) & (np.arange(96) >= 20)[:, None]
    np.testing.assert_array_equal(labels != 255, expected)
    item = json.loads((tmp_path / "maps" / "s" / "item.json").read_text("utf-8"))
    parameters = item["properties"]["geoseg:parameters"]
    assert parameters["bands"] == {"red": 3, "green": 2, "blue": 1}
    assert parameters["nodata"] == ["255.0"] * 3
    assert parameters["scene"]["mask"]["name"] == "x_SCL.tif"


@pytest.mark.parametrize(
    ("option", "value"), [("--bands", "red"), ("--bands", "red=one"), ("--bands", "red=-1"), ("--nodata", "white")]
)
def test_the_command_refuses_what_is_no_choice(option: str, value: str, tmp_path: Path) -> None:
    outcome = CliRunner().invoke(cli, ["segment", "a.tif", "buildings", "--out", str(tmp_path), option, value])
    assert outcome.exit_code == 2
    assert f"{value}: write" in outcome.output


# --- archives


def item(folder: Path, name: str, assets: dict[str, str], names: dict[str, str]) -> Path:
    box = shapely.box(85, 27, 86, 28)
    made = {
        key: {"href": href, "type": "image/tiff", "roles": ["data"]}
        | ({"bands": [{"eo:common_name": names[key]}]} if key in names else {})
        for key, href in assets.items()
    }
    content = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "geometry": json.loads(shapely.to_geojson(box)),
        "bbox": list(box.bounds),
        "properties": {"datetime": "2024-05-01T10:00:00Z"},
        "links": [],
        "assets": made,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_job_maps_items_folders_and_pairs(tiny_model: Path, tmp_path: Path) -> None:
    names = {"B02": "blue", "B03": "green", "B04": "red"}
    for place in ("one", "two", "three"):
        for key in names:
            values = np.random.default_rng(ord(key[-1])).random((12, 14)).repeat(8, 0).repeat(8, 1) * 200 + 20
            write_tif(tmp_path / place / f"{key}.tif", values.astype(np.uint8))
        codes = np.where(np.arange(96)[:, None] < 30, 8, 4) + np.zeros(112)
        write_tif(tmp_path / place / "SCL.tif", codes.astype(np.uint8))
    item(tmp_path / "one", "item-one", {key: f"{key}.tif" for key in (*names, "SCL")}, names)
    pairs = "red=three/B04.tif,green=three/B03.tif,blue=three/B02.tif,scl=three/SCL.tif"
    scenes = {"catalogs": ["one/item-one.json"], "files": ["two", {"href": pairs, "id": "third"}]}
    settings = {"product": "buildings", "model": str(tiny_model), "scenes": scenes, "min_area": 1, "mask": "scl"}
    job = RunJob.model_validate(settings)
    planned = plan_archive(job, tmp_path)
    assert not planned.faults
    assert {entry.order.scene.id for entry in planned.entries} == {"item-one", "two", "third"}
    report = run_archive(planned)
    assert (report.done, report.failures) == (3, ())
    maps = [rasterio.open(tmp_path / "maps" / name / "labels.tif").read(1) for name in ("item-one", "two", "third")]
    for labels in maps:
        np.testing.assert_array_equal(labels, maps[0])
        np.testing.assert_array_equal(labels == 255, np.arange(96)[:, None] + np.zeros(112) < 30)
    assert {entry.state for entry in plan_archive(job, tmp_path).entries} == {"complete"}
    changed = job.model_copy(update={"nodata": 3.0})
    assert {entry.state for entry in plan_archive(changed, tmp_path).entries} == {"changed"}
    linked = json.loads((tmp_path / "maps" / "item-one" / "item.json").read_text("utf-8"))["links"]
    assert any(link["href"].endswith("item-one.json") for link in linked)


def test_a_job_names_the_assets_that_it_means(tiny_model: Path, tmp_path: Path) -> None:
    names = {"B02": "blue", "B03": "green", "B04": "red"}
    for key in names:
        write_tif(tmp_path / f"{key}.tif", noise(1)[0])
    write_tif(tmp_path / "visual.tif", noise(3))
    assets = {**{key: f"{key}.tif" for key in names}, "visual": "visual.tif"}
    path = item(tmp_path, "item", assets, names)
    for asset, expected in ((None, 0), ("visual", 0), (["B04", "B03", "B02"], 3)):
        settings = {
            "product": "buildings",
            "model": str(tiny_model),
            "scenes": {"catalogs": [path.name], "asset": asset},
        }
        planned = plan_archive(RunJob.model_validate(settings), tmp_path)
        assert not planned.faults
        assert len(planned.entries[0].order.scene.files) == expected
    settings["scenes"]["asset"] = ["B04", "visual"]
    why = plan_archive(RunJob.model_validate(settings), tmp_path).faults[0].why
    assert "its assets B04, visual are not a known band each" in why


def test_what_a_job_may_not_open_it_does_not_open_as_a_band(tiny_model: Path, tmp_path: Path) -> None:
    good = write_tif(tmp_path / "in" / "B04.tif", noise(1)[0])
    (tmp_path / "in" / "B03.tif").write_text("<VRTDataset/>", encoding="utf-8")
    elsewhere = write_tif(tmp_path / "B02.tif", noise(1)[0])
    files = ["in", f"red={good},green=/vsicurl/http://x/a.tif", f"red={good},green=https://x/a.tif"]
    settings = {"product": "buildings", "model": str(tiny_model), "scenes": {"files": files}}
    faults = plan_archive(RunJob.model_validate(settings), tmp_path).faults
    assert [fault.why.split(": ")[1].split()[0] for fault in faults] == ["is", "vsi", "https"]
    names = {"B02": "blue", "B04": "red"}
    item(tmp_path / "in", "item", {"B02": f"../{elsewhere.name}", "B04": "B04.tif"}, names)
    settings["scenes"] = {"catalogs": ["in/item.json"]}
    assert (
        "lies outside of its catalog's folder" in plan_archive(RunJob.model_validate(settings), tmp_path).faults[0].why
    )


def test_all_of_it_is_an_error_of_geoseg() -> None:
    assert issubclass(OptionError, GeosegError)
