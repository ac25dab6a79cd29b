"""Scenes of a file for each band: what is one scene, on which grid, and pixels that no window changes."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import shapely
from conftest import write_tif
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

import geoseg
from geoseg.errors import SceneError
from geoseg.io.band_names import is_pairs, join_pairs, split_pairs
from geoseg.io.remote import differs, is_gone, state_of_scene
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.planned import SegmentJob, look
from geoseg.raster import Raster
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROWS, COLS = 132, 96
"""Of the finest band: both whole in 6."""

LEFT, TOP = 600_000.0, 5_000_000.0


def grid(metres: float, right: float = 0.0, down: float = 0.0) -> rasterio.Affine:
    """Pixels of so many metres, the scene's corner being shifted by metres."""
    return rasterio.Affine(metres, 0, LEFT + right, 0, -metres, TOP - down)


def noise(rows: int, cols: int, dtype: str = "uint16", seed: int = 1) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(1, 200 if dtype == "uint8" else 5000, (rows, cols)).astype(dtype)


def put(path: Path, metres: float, seed: int = 1, dtype: str = "uint16", **profile: Any) -> Path:
    factor = metres / 10
    values = noise(round(ROWS / factor), round(COLS / factor), dtype, seed)
    return write_tif(path, values, "EPSG:32618", profile.pop("transform", grid(metres)), **profile)


def sentinel(folder: Path, **metres: float) -> Path:
    for seed, (band, side) in enumerate(metres.items()):
        put(folder / f"S2B_T18_{band}.tif", side, seed)
    return folder


def source_of(scene: str | Path | dict[str, Any], *wanted: str) -> Any:
    found, bands = as_asked(open_scene(scene), wanted, Asked())
    return open_source(found, bands)


def raw(source: Any, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    return source._read_file(window)


# --- pixels


def warped(path: Path, rows: int, cols: int, transform: rasterio.Affine) -> NDArray[np.float64]:
    """What GDAL's warper makes of a file on another grid, before it is rounded."""
    with rasterio.open(path) as dataset:
        values, profile = dataset.read().astype("float64"), dataset.profile
    exact = path.with_suffix(".float.tif")
    with rasterio.open(exact, "w", **{**profile, "dtype": "float64"}) as dataset:
        dataset.write(values)
    with (
        rasterio.open(exact) as dataset,
        WarpedVRT(
            dataset, crs=dataset.crs, transform=transform, width=cols, height=rows, resampling=Resampling.bilinear
        ) as view,
    ):
        return view.read(1)


CASES: dict[str, dict[str, Any]] = {
    "the same grid": {"metres": 10},
    "twice": {"metres": 20},
    "six times": {"metres": 60},
    "half as much again": {"metres": 15},
    "bytes": {"metres": 20, "dtype": "uint8"},
    "signed": {"metres": 20, "dtype": "int16"},
    "floats": {"metres": 60, "dtype": "float32"},
    "doubles": {"metres": 15, "dtype": "float64"},
    "shifted": {"metres": 20, "transform": grid(20, right=7.3, down=-3.1)},
    "shifted by half a pixel": {"metres": 10, "transform": grid(10, right=5, down=5)},
    "south up": {"metres": 20, "transform": rasterio.Affine(20, 0, LEFT, 0, 20, TOP - 10 * ROWS)},
    "tiles and deflate": {"metres": 20, "tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
}


@dataclasses.dataclass
class Made:
    source: Any
    exact: NDArray[np.float64]
    inside: NDArray[np.bool_]
    integer: bool


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("bands")
    case = CASES[request.param]
    red = put(folder / "red.tif", 10, 5, case.get("dtype", "uint16"))
    nir = put(folder / "nir.tif", seed=6, **case)
    with rasterio.open(nir) as dataset:
        cols, rows = np.meshgrid(np.arange(COLS) + 0.5, np.arange(ROWS) + 0.5)
        x, y = ~dataset.transform @ (grid(10) @ (cols, rows))
        inside = (x >= 0) & (x < dataset.width) & (y >= 0) & (y < dataset.height)
        integer = np.issubdtype(np.dtype(dataset.dtypes[0]), np.integer)
    return Made(
        source_of({"red": red, "nir": nir}, "red", "nir"), warped(nir, ROWS, COLS, grid(10)), inside, bool(integer)
    )


def spans(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(0, size - 1).flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, size)))


@settings(max_examples=30)
@given(rows=spans(ROWS), cols=spans(COLS))
@example(rows=(0, ROWS), cols=(0, COLS))
@example(rows=(0, 1), cols=(0, 1))
@example(rows=(ROWS - 1, ROWS), cols=(COLS - 1, COLS))
@example(rows=(0, 1), cols=(COLS - 1, COLS))
@example(rows=(5, 8), cols=(0, COLS))
def test_a_window_is_what_gdals_warper_makes_of_the_whole(
    made: Made, rows: tuple[int, int], cols: tuple[int, int]
) -> None:
    values, valid = raw(made.source, Window(*rows, *cols))
    there = slice(*rows), slice(*cols)
    inside = made.inside[there]
    np.testing.assert_array_equal(valid, inside)
    exact = made.exact[there]
    if made.integer:
        tied = np.abs(exact - np.floor(exact) - 0.5) < 1e-6
        np.testing.assert_array_equal(values[1][inside & ~tied], np.floor(exact + 0.5)[inside & ~tied])
        assert (np.abs(values[1] - exact)[inside & tied] < 0.5 + 1e-6).all()
    else:
        np.testing.assert_allclose(values[1][inside], exact[inside], rtol=1e-6)


@settings(max_examples=30)
@given(rows=spans(ROWS), cols=spans(COLS))
def test_a_window_is_a_part_of_the_whole(made: Made, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    """To the last bit, ties and beyond the files' extents included."""
    values, valid = raw(made.source, Window(*rows, *cols))
    all_values, all_valid = raw(made.source, Window(0, ROWS, 0, COLS))
    np.testing.assert_array_equal(values, all_values[:, slice(*rows), slice(*cols)])
    np.testing.assert_array_equal(valid, all_valid[slice(*rows), slice(*cols)])


def test_what_gdal_itself_makes_of_nested_grids_is_the_same(tmp_path: Path) -> None:
    """No ties with 3 to 1, so GDAL's own integers can be compared."""
    nir = put(tmp_path / "nir.tif", 30)
    source = source_of({"red": put(tmp_path / "red.tif", 10), "nir": nir}, "red", "nir")
    with (
        rasterio.open(nir) as dataset,
        WarpedVRT(
            dataset, crs=dataset.crs, transform=grid(10), width=COLS, height=ROWS, resampling=Resampling.bilinear
        ) as view,
    ):
        np.testing.assert_array_equal(raw(source, Window(0, ROWS, 0, COLS))[0][1], view.read(1))


def test_bands_on_the_grid_are_read_as_they_are(tmp_path: Path) -> None:
    files = {name: put(tmp_path / f"{name}.tif", 10, seed) for seed, name in enumerate(("red", "green", "blue"))}
    source = source_of(files, "blue", "green", "red")
    window = Window(3, 70, 11, 90)
    for values, name in zip(raw(source, window)[0], ("blue", "green", "red"), strict=True):
        with rasterio.open(files[name]) as dataset:
            np.testing.assert_array_equal(values, dataset.read(1)[window.slices])


def test_pixels_without_data_neither_count_nor_spread(tmp_path: Path) -> None:
    """Nearest for what has data; what is beside a hole is made of the other neighbours alone."""
    values = np.full((ROWS // 2, COLS // 2), 700, np.uint16)
    values[10:20, 10:20] = 0
    nir = write_tif(tmp_path / "nir.tif", values, "EPSG:32618", grid(20), nodata=0)
    red = write_tif(tmp_path / "red.tif", np.zeros((ROWS, COLS), np.uint16), "EPSG:32618", grid(10), nodata=0)
    found, valid = raw(source_of({"red": red, "nir": nir}, "red", "nir"), Window(0, ROWS, 0, COLS))
    expected = (values != 0).repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(valid, expected)
    assert set(found[1][valid]) == {700}


def test_not_a_number_stays_where_it_is(tmp_path: Path) -> None:
    values = np.full((ROWS // 2, COLS // 2), 0.25, np.float32)
    values[5, 7] = np.nan
    nir = write_tif(tmp_path / "nir.tif", values, "EPSG:32618", grid(20))
    source = source_of({"red": put(tmp_path / "red.tif", 10, dtype="float32"), "nir": nir}, "red", "nir")
    found, valid = raw(source, Window(0, ROWS, 0, COLS))
    np.testing.assert_array_equal(valid, np.isfinite(values).repeat(2, 0).repeat(2, 1))
    assert (found[1][valid] == 0.25).all()


@pytest.mark.parametrize("internal", [True, False])
def test_masks_of_the_files_count(*, internal: bool, tmp_path: Path) -> None:
    nir = put(tmp_path / "nir.tif", 20)
    mask = noise(ROWS // 2, COLS // 2) % 3 > 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(nir, "r+") as dataset:
        dataset.write_mask(mask)
    red = put(tmp_path / "red.tif", 10, nodata=0)
    with rasterio.open(red, "r+") as dataset:
        dataset.write(np.zeros((1, ROWS, COLS), np.uint16))
    _, valid = raw(source_of({"red": red, "nir": nir}, "red", "nir"), Window(0, ROWS, 0, COLS))
    np.testing.assert_array_equal(valid, mask.repeat(2, 0).repeat(2, 1))


def test_where_a_file_does_not_reach_nothing_is_valid(tmp_path: Path) -> None:
    red = put(tmp_path / "red.tif", 10)
    nir = put(tmp_path / "nir.tif", 20, transform=grid(20, right=200, down=-100))
    source = source_of({"red": red, "nir": nir}, "red", "nir")
    valid = source.read(Window(-5, ROWS + 5, -5, COLS + 5)).valid
    expected = np.zeros((ROWS + 10, COLS + 10), bool)
    expected[5 : 5 + ROWS - 10, 25 : 5 + COLS] = True
    np.testing.assert_array_equal(valid, expected)


def test_the_stretch_is_of_the_bands_that_are_read(tmp_path: Path) -> None:
    folder = sentinel(tmp_path / "scene", B02=10, B08=20, B09=60)
    scene, bands = as_asked(open_scene(folder), ("nir", "blue"), Asked())
    stretch = estimate_stretch(scene, bands)
    assert stretch is not None
    for k, name in enumerate(("B08", "B02")):
        with rasterio.open(folder / f"S2B_T18_{name}.tif") as dataset:
            low, high = np.percentile(dataset.read(1), (1, 99))
        assert (stretch.low[k], stretch.high[k]) == (pytest.approx(low, abs=9), pytest.approx(high, abs=9))


def test_the_overview_shows_what_is_there(tmp_path: Path) -> None:
    red = put(tmp_path / "red.tif", 10)
    nir = put(tmp_path / "nir.tif", 20, transform=grid(20, right=200, down=-100))
    overview = source_of({"red": red, "nir": nir}, "red", "nir").overview(ROWS // 2)
    assert overview.shape == (2, ROWS // 2, COLS // 2)
    with rasterio.open(red) as dataset:
        np.testing.assert_array_equal(overview[0], dataset.read(1, out_shape=(ROWS // 2, COLS // 2)))
    with rasterio.open(nir) as dataset:
        np.testing.assert_array_equal(overview[1, : ROWS // 2 - 5, 10:].data, dataset.read(1)[5:, : COLS // 2 - 10])
    expected = np.zeros((ROWS // 2, COLS // 2), bool)
    expected[: ROWS // 2 - 5, 10:] = True
    np.testing.assert_array_equal(~np.ma.getmaskarray(overview[1]), expected)


# --- grids


def test_the_grid_is_that_of_the_finest_band_that_is_needed(tmp_path: Path) -> None:
    scene = open_scene(sentinel(tmp_path / "scene", B01=60, B05=20, B11=20, B02=10))
    assert (scene.id, scene.shape, scene.dtype) == ("scene", (ROWS, COLS), "uint16")
    assert scene.bands == ("coastal", "blue", "rededge071", "swir16")
    for wanted, shape in ((("coastal", "swir16"), (ROWS // 2, COLS // 2)), (("coastal",), (ROWS // 6, COLS // 6))):
        found, bands = as_asked(scene, wanted, Asked())
        assert (found.shape, found.bands, bands) == (shape, wanted, tuple(range(1, len(wanted) + 1)))
        assert found.ground_resolution[0] == pytest.approx(10 * ROWS / shape[0], rel=1e-3)
    with pytest.raises(SceneError, match="the model needs the bands red, the scene has coastal, blue"):
        as_asked(scene, ("red",), Asked())


def test_of_equal_grids_the_first_that_is_needed_counts(tmp_path: Path) -> None:
    red = put(tmp_path / "red.tif", 10)
    nir = put(tmp_path / "nir.tif", 10, transform=grid(10, right=20))
    scene = open_scene({"nir": nir, "red": red})
    assert as_asked(scene, ("red", "nir"), Asked())[0].geobox.affine == grid(10)
    assert as_asked(scene, ("nir", "red"), Asked())[0].geobox.affine == grid(10, right=20)


@pytest.mark.parametrize(
    ("crs", "transform", "says"),
    [
        ("EPSG:32617", grid(20), r"nir\.tif: is in EPSG:32617, .*red\.tif in EPSG:32618.*gdalwarp"),
        ("EPSG:32618", grid(20, right=10 * COLS), r"nir\.tif: covers nothing of .*red\.tif"),
        ("EPSG:32618", grid(20) @ rasterio.Affine.rotation(3), r"nir\.tif: is turned against .*red\.tif"),
    ],
)
def test_files_that_are_no_one_scene_are_both_named(
    crs: str, transform: rasterio.Affine, says: str, tmp_path: Path
) -> None:
    red = put(tmp_path / "red.tif", 10)
    nir = write_tif(tmp_path / "nir.tif", noise(ROWS // 2, COLS // 2), crs, transform)
    with pytest.raises(SceneError, match=says):
        open_scene({"red": red, "nir": nir})


def test_files_that_are_no_bands_are_told(tmp_path: Path) -> None:
    red = put(tmp_path / "red.tif", 10)
    rgb = write_tif(tmp_path / "rgb.tif", np.zeros((3, 8, 8), np.uint8), "EPSG:32618", grid(10))
    for files, says in (
        ({"red": rgb}, r"rgb\.tif: has 3 bands where a file of one is meant"),
        ({"red": red, "nir": tmp_path / "gone.tif"}, r"gone\.tif: there is no such file"),
        ({"scl": red}, "names no band, only scl"),
        ({"red": red, "reed": red}, "reed is no band; bands are called .*nir.*or B01 to B12"),
        ({"red": red, "B04": red}, "has two files for red"),
        ({"red": red, "nir": ""}, "names no file for nir"),
    ):
        with pytest.raises(SceneError, match=says):
            open_scene(files)


# --- who names the files


@given(
    st.dictionaries(
        st.sampled_from(["red", "nir", "B8A", "scl"]), st.text("ab ,./-_1", min_size=1, max_size=12), min_size=1
    )
)
@example({"red": "2018-10-13, Sentinel-2B L1C, B04.tiff", "nir": "a, b=c.tif"})
def test_pairs_are_taken_apart_as_they_were_put_together(files: dict[str, str]) -> None:
    files = {name: file.strip() for name, file in files.items()}
    try:
        text = join_pairs(files)
    except SceneError:
        assert any(re.search(r"(?:^|,)\s*[A-Za-z]\w*=", file) for file in files.values())
        return
    assert dict(split_pairs(text)) == files


def test_a_path_that_would_be_taken_for_pairs_is_refused() -> None:
    with pytest.raises(SceneError, match="rename the file"):
        join_pairs({"red": "a,nir=b.tif"})


def test_folders_called_like_a_key_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = put(tmp_path / "red=2020" / "a.tif", 10)
    assert not is_pairs("year=2020/a.tif")
    assert not is_pairs("red=2020/a.tif")
    assert open_scene("red=2020/a.tif").id == "a"
    assert open_scene(path).bands == ("grey",)


def test_many_files_make_a_text_that_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
    for key in names:
        put(tmp_path / f"{'long' * 30}_{key}.tif", 10)
    text = ",".join(f"{name}={'long' * 30}_{key}.tif" for key, name in names.items())
    assert len(text) > 255
    assert open_scene(text).bands == tuple(names.values())
    with pytest.raises(SceneError, match="there is no such file"):
        open_scene(text.replace("=", "-"))


def test_a_scene_of_files_has_their_name(tmp_path: Path) -> None:
    for files, expected in (
        (["S2B_T18_B04.tif", "S2B_T18_B08.tif"], "S2B_T18"),
        (["one/B04.tif", "one/B08_10m.tif"], "one"),
        (
            ["2018-10-13, Sentinel-2B L1C, B04.tiff", "2018-10-13, Sentinel-2B L1C, B08.tiff"],
            "2018-10-13_ Sentinel-2B L1C",
        ),
        (["two/a_red.tif", "two/b_nir.tif"], "two"),
    ):
        paths = [put(tmp_path / name, 10) for name in files]
        assert open_scene(dict(zip(("red", "nir"), paths, strict=True))).id == expected


def test_a_folder_is_a_scene(tmp_path: Path) -> None:
    sentinel(tmp_path / "a", B02=10, B04=10, SCL=20)
    (tmp_path / "a" / "readme.txt").touch()
    write_tif(tmp_path / "a" / "S2B_T18_TCI.tif", np.zeros((3, 8, 8), np.uint8), "EPSG:32618", grid(10))
    scene = open_scene(tmp_path / "a")
    assert scene.bands == ("blue", "red")
    assert [Path(file).name for file in scene.files] == ["S2B_T18_B02.tif", "S2B_T18_B04.tif"]
    assert [(kind, Path(file).name) for kind, file in scene.masks] == [("scl", "S2B_T18_SCL.tif")]
    for name in ("red.tif", "scene_nir.tif", "GREEN.TIF"):
        put(tmp_path / "b" / name, 10)
    assert set(open_scene(tmp_path / "b").bands) == {"red", "nir", "green"}


def test_of_a_safe_folder_the_finest_files_are_taken(tmp_path: Path) -> None:
    safe = tmp_path / "S2B_MSIL2A_20181013.SAFE"
    images = safe / "GRANULE" / "L2A_T18" / "IMG_DATA"
    for metres, bands in ((10, ("B02", "B04")), (20, ("B02", "B05", "SCL")), (60, ("B02", "B05", "B01"))):
        for band in bands:
            put(images / f"R{metres}m" / f"T18_2018_{band}_{metres}m.tif", metres)
    put(safe / "GRANULE" / "L2A_T18" / "QI_DATA" / "MSK_B02.tif", 10)
    scene = open_scene(safe)
    assert scene.id == "S2B_MSIL2A_20181013"
    found = {band: Path(file).stem[-3:] for band, file in zip(scene.bands, scene.files, strict=True)}
    assert found == {"blue": "10m", "red": "10m", "rededge071": "20m", "coastal": "60m"}
    assert dict(scene.masks)["scl"].endswith("SCL_20m.tif")


@pytest.mark.parametrize(("satellite", "red"), [("LC08", "B4"), ("LC09", "B4"), ("LE07", "B3"), ("LT05", "B3")])
def test_landsats_numbers_mean_what_they_mean_on_that_satellite(satellite: str, red: str, tmp_path: Path) -> None:
    name = f"{satellite}_L2SP_015034_20201010_20201105_02_T1"
    for band in ("SR_B3", "SR_B4", "QA_PIXEL", "QA_RADSAT"):
        put(tmp_path / "a" / f"{name}_{band}.TIF", 30)
    scene = open_scene(tmp_path / "a")
    assert Path(dict(zip(scene.bands, scene.files, strict=True))["red"]).stem == f"{name}_SR_{red}"
    assert [kind for kind, _ in scene.masks] == ["qa_pixel"]


def test_a_folder_that_tells_too_little_or_too_much_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "a" / "one.tif", 10)
    with pytest.raises(SceneError, match=r"a: cannot be read .* no name ends in one .* there are one\.tif"):
        open_scene(tmp_path / "a")
    put(tmp_path / "b" / "x_B04.tif", 10)
    put(tmp_path / "b" / "y_B04.tif", 10)
    with pytest.raises(SceneError, match=r"b: x_B04\.tif and y_B04\.tif are both red; .* red=y_B04\.tif"):
        open_scene(tmp_path / "b")
    (tmp_path / "c").mkdir()
    with pytest.raises(SceneError, match="c: cannot be read as a raster"):
        open_scene(tmp_path / "c")


# --- STAC items


def item(path: Path, assets: dict[str, dict[str, Any]]) -> Path:
    box = shapely.box(10, 50, 11, 51)
    content = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": "S2B 18/T",
        "geometry": json.loads(shapely.to_geojson(box)),
        "bbox": list(box.bounds),
        "properties": {"datetime": "2024-05-01T10:00:00Z"},
        "links": [],
        "assets": assets,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def asset(href: str, **extra: Any) -> dict[str, Any]:
    return {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"], **extra}


STYLES: dict[str, Callable[[str], dict[str, Any]]] = {
    "eo:bands of 1.0": lambda name: {"eo:bands": [{"name": "x", "common_name": name}]},
    "bands of 1.1": lambda name: {"bands": [{"eo:common_name": name}]},
    "the asset's own": lambda name: {"eo:common_name": name},
}


@pytest.mark.parametrize("style", STYLES)
def test_an_item_with_an_asset_for_each_band_is_a_scene(style: str, tmp_path: Path) -> None:
    sentinel(tmp_path, B02=10, B04=10, B08=20, SCL=20)
    named = {"B02": "blue", "B04": "red", "B08": "nir"}
    assets = {key: asset(f"./S2B_T18_{key}.tif", **STYLES[style](name)) for key, name in named.items()}
    assets |= {"scl": asset("./S2B_T18_SCL.tif"), "picture": {"href": "a.png", "type": "image/png"}}
    path = item(tmp_path / "item.json", assets)
    scene = open_scene(path)
    assert (scene.id, scene.bands, scene.item) == ("S2B_18_T", ("blue", "red", "nir"), str(path))
    assert scene.datetime == dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC)
    assert [Path(file).name for file in scene.files] == [f"S2B_T18_{key}.tif" for key in named]
    assert [(kind, Path(file).name) for kind, file in scene.masks] == [("scl", "S2B_T18_SCL.tif")]
    some = open_scene(f"{path}#B08,B02")
    assert some.bands == ("nir", "blue")


def test_of_several_assets_for_a_band_the_finest_geotiff_is_taken(tmp_path: Path) -> None:
    sentinel(tmp_path, B04=10, B05=20, B06=20)
    red = {"bands": [{"eo:common_name": "red"}]}
    edge = (
        {"eo:bands": [{"name": "B05", "common_name": "rededge"}]},
        {"eo:bands": [{"name": "B06", "common_name": "rededge"}]},
    )
    assets = {
        "B04_60m": asset("none.tif", **red),
        "B04_10m-jp2": {**asset("none.jp2", **red, gsd=10), "type": "image/jp2"},
        "B04_10m": asset("S2B_T18_B04.tif", **red),
        "thumb": asset("none.tif", **red) | {"roles": ["thumbnail"]},
        "e1": asset("S2B_T18_B05.tif", **edge[0]),
        "e2": asset("S2B_T18_B06.tif", **edge[1]),
    }
    scene = open_scene(item(tmp_path / "item.json", assets))
    assert scene.bands == ("red", "rededge071", "rededge075")
    assert [Path(file).stem[-3:] for file in scene.files] == ["B04", "B05", "B06"]


def test_an_item_with_one_raster_is_that_raster(tmp_path: Path) -> None:
    raster = write_tif(tmp_path / "rgb.tif", np.zeros((3, 8, 8), np.uint8), "EPSG:32618", grid(10))
    put(tmp_path / "S2B_T18_SCL.tif", 20)
    path = item(tmp_path / "item.json", {"visual": asset("rgb.tif"), "scl": asset("S2B_T18_SCL.tif", roles=["x"])})
    scene = open_scene(f"{path}#visual")
    assert (scene.id, scene.path, scene.bands) == ("S2B_18_T", str(raster), ("red", "green", "blue"))
    assert [kind for kind, _ in scene.masks] == ["scl"]
    assert open_source(scene, (1, 2, 3)).read(Window(0, 8, 0, 8)).valid.all()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "not a STAC item that can be used"),
        ("{", "not a STAC item that can be used"),
        ('{"type": "Collection"}', "is no STAC item but of type 'Collection'"),
        ('{"type": "Feature", "id": "a", "assets": {}}', "which of its assets is to be read"),
        ('{"type": "Feature", "id": "a", "assets": {"a": 3}}', "not a STAC item that can be used"),
        (
            '{"type": "Feature", "id": "a", "assets": {"a": {"href": "../a.tif"}}}',
            "lies outside of its catalog's folder",
        ),
        ('{"type": "Feature", "id": "a", "assets": {"a": {"href": "/vsicurl/x"}}}', "vsi is not allowed"),
        ('{"type": "Feature", "id": "a", "assets": {"a": {"href": "https://x/a.tif"}}}', "https is not allowed"),
        ('{"type": "Feature", "id": "a", "assets": {"a": {"href": "item.json"}}}', "cannot be read as a raster"),
    ],
)
def test_an_item_that_cannot_be_used_is_told(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text(content, encoding="utf-8")
    with pytest.raises(SceneError, match=says):
        open_scene(tmp_path / "item.json")


# --- identity


def test_every_file_that_is_read_tells_whether_the_scene_has_changed(tmp_path: Path) -> None:
    folder = sentinel(tmp_path / "scene", B02=10, B04=10, B08=20, SCL=20)
    scene, _ = as_asked(open_scene(folder), ("red", "nir"), Asked(mask="scl"))
    before = state_of_scene(scene)
    assert set(before["files"]) == {"red", "nir"}
    for name, changes in (("B02", False), ("B04", True), ("B08", True), ("SCL", True)):
        path = folder / f"S2B_T18_{name}.tif"
        old = path.read_bytes()
        path.write_bytes(old + b"x")
        assert differs(before, state_of_scene(scene)) == changes
        path.write_bytes(old)
        before = state_of_scene(scene)
    assert not is_gone(before, state_of_scene(scene))
    (folder / "S2B_T18_B08.tif").unlink()
    assert is_gone(before, state_of_scene(scene))


def test_the_same_files_for_other_bands_are_another_job(tiny_model: Path, tmp_path: Path) -> None:
    """Sizes and times alone would not tell."""
    paths = [put(tmp_path / f"{name}.tif", 10, dtype="uint8", transform=grid(0.3)) for name in "abc"]
    jobs = [
        look(SegmentJob(join_pairs(zip(names, paths, strict=True)), "buildings", tmp_path, model=str(tiny_model)))
        for names in (("red", "green", "blue"), ("red", "blue", "green"))
    ]
    assert jobs[0].parameters["scene"]["files"] != jobs[1].parameters["scene"]["files"]
    assert jobs[0].source.read(Window(0, 9, 0, 9)).values.shape == (3, 9, 9)


def test_files_are_mapped_as_one_file_is(tiny_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = (rng.random((3, 20, 24)).repeat(6, 1).repeat(6, 2) * 200 + 20).astype(np.uint8)
    whole = write_tif(tmp_path / "whole.tif", values)
    names = ("red", "green", "blue")
    files = {name: write_tif(tmp_path / f"{name}.tif", band) for name, band in zip(names, values, strict=True)}
    results = [geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model)) for scene in (whole, files)]
    maps = [rasterio.open(result.folder / "labels.tif").read(1) for result in results]
    np.testing.assert_array_equal(*maps)
    assert results[1].folder.name == tmp_path.name
    links = [link["href"] for link in results[1].item["links"] if link["rel"] == "derived_from"]
    assert {Path(link).name for link in links} == {"red.tif", "green.tif", "blue.tif", "item.json"}


def test_a_raster_knows_no_place_of_its_own(tmp_path: Path) -> None:
    source = source_of({"red": put(tmp_path / "red.tif", 10), "nir": put(tmp_path / "nir.tif", 20)}, "red", "nir")
    raster = source.read(Window(2, 4, 6, 9))
    assert isinstance(raster, Raster)
    assert raster.geobox is not None
    assert raster.geobox.affine @ (0, 0) == pytest.approx(grid(10) @ (6, 2))


# --- real data


def test_a_real_folder_opens(shared_data: Path) -> None:
    folder = shared_data / "scenes" / "sentinel2_rachel_carson_2018"
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}")
    scene, bands = as_asked(open_scene(folder), ("red", "green", "blue"), Asked())
    raster = open_source(scene, bands).read(Window(1000, 1200, 1000, 1300))
    for values, name in zip(raster.values, ("B04", "B03", "B02"), strict=True):
        with rasterio.open(folder / f"2018-10-13, Sentinel-2B L1C, {name}.tiff") as dataset:
            np.testing.assert_array_equal(values, dataset.read(1)[1000:1200, 1000:1300])
