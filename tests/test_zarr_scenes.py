"""Scenes in Zarr: the same pixels as the same values in a GeoTIFF, bit for bit, or a clear error."""

from __future__ import annotations

import datetime as dt
import json
import logging
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from conftest import BANEPA, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from test_archive import carry_out, job_of, picture
from test_inventory import items_of, made

from geoseg.archive import RunJob
from geoseg.errors import SceneError
from geoseg.io.remote import differs, state_of
from geoseg.io.scenes import estimate_stretch, open_scene, open_source, survey
from geoseg.io.zarr_scenes import ZarrSource, is_zarr
from geoseg.pipeline import segment
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RGB = ("red", "green", "blue")


def data_array(
    values: NDArray[Any], affine: rasterio.Affine = BANEPA, crs: Any = 32645, names: tuple[str, ...] = ()
) -> xr.DataArray:
    """Values (band, y, x) or (y, x) with coordinates and grid mapping, as odc-geo and rioxarray have them."""
    rows, cols = values.shape[-2:]
    geobox = GeoBox((rows, cols), affine, crs)
    coords = dict(xr_coords(geobox))
    dims = geobox.dimensions if values.ndim == 2 else ("band", *geobox.dimensions)
    if names:
        coords["band"] = xr.DataArray(list(names), dims=("band",))
    return xr.DataArray(values, coords, dims, name="image", attrs={"grid_mapping": "spatial_ref"})


def write_zarr(path: Path, what: xr.DataArray | xr.Dataset, version: int = 3, **encoding: Any) -> Path:
    dataset = what if isinstance(what, xr.Dataset) else what.to_dataset()
    per_array = {str(name): dict(encoding) for name in dataset.data_vars} if encoding else {}
    with warnings.catch_warnings():  # zarr's word on strings, which name bands here
        warnings.simplefilter("ignore", zarr.errors.UnstableSpecificationWarning)
        dataset.to_zarr(path, zarr_format=version, consolidated=False, encoding=per_array, mode="w")
    return path


def same(tif: Path, store: Path, windows: list[Window], wanted: tuple[str, ...] = RGB) -> None:
    """Both are read alike: bands, stretch, values, validity."""
    one, two = open_scene(tif), open_scene(store)
    bands = one.bands_for(wanted)
    assert two.bands_for(wanted) == bands
    assert (one.shape, one.dtype) == (two.shape, two.dtype)
    assert one.geobox.crs == two.geobox.crs
    np.testing.assert_allclose(two.geobox.affine, one.geobox.affine, rtol=0, atol=1e-6)
    stretch = estimate_stretch(one, bands)
    assert estimate_stretch(two, bands) == stretch
    expected, source = open_source(one, bands, stretch), open_source(two, bands, stretch)
    assert isinstance(source, ZarrSource)
    for window in windows:
        a, b = expected.read(window), source.read(window)
        np.testing.assert_array_equal(b.values, a.values)
        np.testing.assert_array_equal(b.valid, a.valid)
        assert b.values.dtype == np.uint8
    seen, expected_seen = survey(two).valid, survey(one).valid
    assert (seen is None) == (expected_seen is None)
    if seen is not None and expected_seen is not None:
        np.testing.assert_array_equal(seen, expected_seen)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    dtype = draw(st.sampled_from(["uint8", "uint16", "int16", "float32", "float64"]))
    bands, rows, cols = (
        draw(st.integers(1, 4).filter(lambda n: n != 2)),
        draw(st.integers(2, 40)),
        draw(st.integers(2, 40)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    values = (rng.random((bands, rows, cols)) * 200 + 1).astype(dtype)
    nodata = draw(st.sampled_from([None, 0, 7, *([-9999.0, np.nan] if dtype.startswith("float") else [])]))
    if nodata is not None:
        values[:, rng.random((rows, cols)) < 0.3] = nodata
        values[rng.random(values.shape) < 0.1] = nodata
    if dtype.startswith("float") and draw(st.booleans()):
        values[rng.random(values.shape) < 0.05] = draw(st.sampled_from([np.nan, np.inf]))
    window = [(draw(st.integers(-5, side + 3)), draw(st.integers(1, side + 9))) for side in (rows, cols)]
    return {
        "values": values,
        "nodata": nodata,
        "version": draw(st.sampled_from([2, 3])),
        "chunk": draw(st.sampled_from([(1, 7, 9), (4, 16, 16), (2, 50, 5)])),
        "window": Window(window[0][0], sum(window[0]), window[1][0], sum(window[1])),
        "flip": draw(st.sampled_from([(1, 1), (-1, 1), (1, -1), (-1, -1)])),
        "layout": draw(st.sampled_from(["deep", "flat", "last"])),
        "by": draw(st.sampled_from(["coordinates", "GeoTransform", "both"])),
    }


@settings(max_examples=40)
@given(case=cases())
def test_a_store_is_read_like_the_same_values_in_a_geotiff(
    case: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, values = tmp_path_factory.mktemp("pair"), case["values"]
    count, rows, cols = values.shape
    nodata = {} if case["nodata"] is None else {"nodata": case["nodata"]}
    tif = write_tif(folder / "a.tif", values, photometric="MINISBLACK", **nodata)
    down, along = case["flip"]
    affine = BANEPA
    if down < 0:
        affine = affine @ rasterio.Affine(1, 0, 0, 0, -1, rows)
    if along < 0:
        affine = affine @ rasterio.Affine(-1, 0, cols, 0, 1, 0)
    image = data_array(values[:, ::down, ::along], affine)
    if case["by"] != "both":
        image.spatial_ref.attrs.pop("GeoTransform", None)
    if case["by"] == "GeoTransform":
        image = image.drop_vars(["x", "y"])
        image.spatial_ref.attrs["GeoTransform"] = " ".join(map(str, affine.to_gdal()))
    if case["nodata"] is not None:
        image.attrs["_FillValue"] = np.asarray(case["nodata"]).astype(values.dtype)[()]
    what: xr.DataArray | xr.Dataset = image
    chunks: tuple[int, ...] = case["chunk"]
    if case["layout"] == "flat":
        what = xr.Dataset({f"B{k + 1:02d}": image[k].drop_vars("band", errors="ignore") for k in range(count)})
        chunks = chunks[1:]
    elif case["layout"] == "last":
        what, chunks = image.transpose("y", "x", "band"), (*chunks[1:], chunks[0])
    if case["nodata"] is None and case["version"] == 2:
        what.attrs.pop("_FillValue", None)
    store = write_zarr(folder / "a.zarr", what, case["version"], chunks=chunks)
    same(tif, store, [Window(0, rows, 0, cols), case["window"]])
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_the_stretch_and_outline_of_a_large_scene_are_those_of_the_same_overview(dtype: str, tmp_path: Path) -> None:
    values = (np.random.default_rng(1).random((3, 1100, 2300)) * 250 + 1).astype(dtype)
    values[:, 300:700, 1000:1013] = 0
    tif = write_tif(tmp_path / "a.tif", values, nodata=0, photometric="MINISBLACK", tiled=True, blockysize=256)
    image = data_array(values)
    image.attrs["_FillValue"] = np.asarray(0, dtype)[()]
    store = write_zarr(tmp_path / "a.zarr", image, chunks=(3, 256, 256))
    same(tif, store, [Window(290, 310, 990, 1040)])
    turned = data_array(values[:, ::-1], BANEPA @ rasterio.Affine(1, 0, 0, 0, -1, 1100))
    turned.attrs["_FillValue"] = np.asarray(0, dtype)[()]
    same(tif, write_zarr(tmp_path / "b.zarr", turned, chunks=(3, 256, 256)), [Window(290, 310, 990, 1040)])


@pytest.mark.parametrize("version", [2, 3])
def test_labels_are_the_same_bytes(version: int, tiny_model: Path, tmp_path: Path) -> None:
    values = picture(130, 90)
    values[:, 40:70, 45:] = 0
    write_tif(tmp_path / "a.tif", values, nodata=0)
    image = data_array(values, names=RGB)
    image.attrs["_FillValue"] = np.uint8(0)
    write_zarr(tmp_path / "z" / "a.zarr", image, version, chunks=(3, 32, 64))
    results = [
        segment(path, "buildings", tmp_path / out, model=str(tiny_model))
        for path, out in ((tmp_path / "a.tif", "one"), (tmp_path / "z" / "a.zarr", "two"))
    ]
    for name in ("labels.tif", "confidence.tif", "footprints.geojson"):
        assert (results[0].folder / name).read_bytes() == (results[1].folder / name).read_bytes(), name
    (source, *_) = [link for link in results[1].item["links"] if link["rel"] == "derived_from"]
    assert source["type"] == "application/vnd.zarr"


def test_jobs_and_catalogs_take_stores(tiny_model: Path, tmp_path: Path) -> None:
    image = data_array(picture(100, 80), names=RGB)
    image.attrs["_FillValue"] = np.uint8(0)
    write_zarr(tmp_path / "in" / "town_20240531.zarr", image)
    write_tif(tmp_path / "in" / "other.tif", picture(90, 70))
    report = made(tmp_path / "in", checksum=True)
    assert (report.made, report.faults) == (2, ())
    asset = items_of(report.path)["town_20240531"]["assets"]["visual"]
    assert (asset["href"], asset["type"]) == ("../town_20240531.zarr", "application/vnd.zarr")
    assert [band["eo:common_name"] for band in asset["bands"]] == list(RGB)
    assert made(tmp_path / "in").kept == 2
    scenes = {"catalogs": ["in/collection.json"]}
    job = RunJob.model_validate({"product": "buildings", "model": str(tiny_model), "scenes": scenes})
    assert carry_out(job, tmp_path).done == 2
    item = json.loads((tmp_path / "maps" / "town_20240531" / "item.json").read_text("utf-8"))
    assert item["properties"]["datetime"] == "2024-05-31T00:00:00Z"
    zarr.open_array(tmp_path / "in" / "town_20240531.zarr" / "image")[:, 3, 3] = 9  # in the middle of a chunk
    assert made(tmp_path / "in").made == 1
    again = carry_out(job_of(tiny_model, ["in/*.zarr"]), tmp_path, out=tmp_path / "maps2")
    assert again.done == 1


def test_a_changed_chunk_makes_another_file(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", data_array(picture(40, 40)), chunks=(1, 20, 20))
    before = state_of(str(store))
    assert before["bytes"] == sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    assert not differs(before, state_of(str(store)))
    chunk = store / "image" / "c" / "0" / "1" / "1"
    content = chunk.read_bytes()
    chunk.write_bytes(content)
    assert differs(before, state_of(str(store)))
    now = state_of(str(store))
    chunk.unlink()
    assert differs(now, state_of(str(store)))


# --- how stores tell things


def bare(path: Path, values: NDArray[Any], attributes: dict[str, Any], group: dict[str, Any] | None = None) -> Path:
    """A store that holds an array and its attributes alone."""
    root = zarr.open_group(path, mode="w", zarr_format=3, attributes=group or {})
    names = ["band", "y", "x"][-values.ndim :]
    root.create_array("image", data=values, chunks=values.shape, dimension_names=names, attributes=attributes)
    return path


def test_geozarr_and_gdal_tell_place_and_crs(tmp_path: Path) -> None:
    values = picture(30, 20)
    wkt, numbers = rasterio.CRS.from_epsg(32645).to_wkt(), list(BANEPA)[:6]
    shifted = list(BANEPA @ rasterio.Affine.translation(0.5, 0.5))[:6]
    url = {"_CRS": {"url": "http://www.opengis.net/def/crs/EPSG/0/32645"}}
    place = {"spatial:transform": numbers}
    for name, attributes, group in (
        ("code", {}, {"proj:code": "EPSG:32645", "spatial:dimensions": ["y", "x"], **place}),
        ("wkt", {"proj:wkt2": wkt, **place}, {}),
        ("node", {"proj:code": "EPSG:32645", "spatial:transform": shifted, "spatial:registration": "node"}, {}),
        ("gdal url", {**url, **place}, {}),
        ("gdal wkt", {"_CRS": {"wkt": wkt}, **place}, {}),
        ("gdal json", {"_CRS": {"projjson": rasterio.CRS.from_epsg(32645).to_dict(projjson=True)}, **place}, {}),
    ):
        scene = open_scene(bare(tmp_path / f"{name}.zarr", values, attributes, group))
        assert scene.geobox.crs.epsg == 32645, name
        np.testing.assert_allclose(scene.geobox.affine, BANEPA, rtol=0, atol=1e-6)
        source = open_source(scene, (1, 2, 3))
        np.testing.assert_array_equal(source.read(Window(0, 30, 0, 20)).values, values)


def test_names_of_bands(tmp_path: Path) -> None:
    values = picture(20, 20)
    deep = data_array(values)
    by_long_name = deep.copy()
    by_long_name.attrs["long_name"] = ["Red", "Green", "Blue"]
    flat = xr.Dataset({name: data_array(values[k]) for k, name in enumerate(("blue", "green", "red"))})
    numbered = xr.Dataset({f"b{k}": data_array(values[0]) for k in (10, 9, 2)})
    for name, what, expected in (
        ("deep", deep, ("", "", "")),
        ("named", data_array(values, names=("nir", "GREEN", "x")), ("nir", "green", "")),
        ("long", by_long_name, RGB),
        ("flat", flat, ("blue", "green", "red")),
        ("one", data_array(values[0]), ("grey",)),
        ("one deep", data_array(values[:1]), ("grey",)),
        ("numbered", numbered, ("", "", "")),
    ):
        scene = open_scene(write_zarr(tmp_path / f"{name}.zarr", what))
        assert scene.bands == expected, name
    assert survey(open_scene(tmp_path / "numbered.zarr")).names == ("b2", "b9", "b10")
    scene = open_scene(tmp_path / "flat.zarr")
    read = open_source(scene, scene.bands_for(RGB)).read(Window(0, 20, 0, 20)).values
    np.testing.assert_array_equal(read, values[::-1])


def test_an_alpha_band_tells_what_is_valid(tmp_path: Path) -> None:
    values = picture(20, 20)
    alpha = np.zeros((1, 20, 20), np.uint8)
    alpha[0, 3:9, 4:] = 1
    image = data_array(np.concatenate([values, alpha]), names=(*RGB, "alpha"))
    scene = open_scene(write_zarr(tmp_path / "a.zarr", image))
    raster = open_source(scene, scene.bands_for(RGB)).read(Window(0, 20, 0, 20))
    np.testing.assert_array_equal(raster.valid, alpha[0] > 0)
    np.testing.assert_array_equal(raster.values, values)
    np.testing.assert_array_equal(survey(scene).valid, alpha[0] > 0)


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_are_not_there_are_nodata(version: int, tmp_path: Path) -> None:
    values = picture(40, 40) // 2 + 1
    image = data_array(values)
    image.attrs["_FillValue"] = np.uint8(0)
    store = write_zarr(tmp_path / "a.zarr", image, version, chunks=(3, 20, 20))
    (store / "image" / ("0.1.0" if version == 2 else "c/0/1/0")).unlink()
    raster = open_source(open_scene(store), (1, 2, 3)).read(Window(0, 40, 0, 40))
    expected = np.ones((40, 40), bool)
    expected[20:, :20] = False
    np.testing.assert_array_equal(raster.valid, expected)
    np.testing.assert_array_equal(raster.values[:, expected], values[:, expected])


def test_an_own_fill_value_is_nodata_and_zarrs_zero_is_not(tmp_path: Path) -> None:
    for fill, expected in ((0, None), (255, 255.0)):
        root = zarr.open_group(
            tmp_path / f"{fill}.zarr", mode="w", zarr_format=3, attributes={"proj:code": "EPSG:32645"}
        )
        root.create_array(
            "image", shape=(30, 20), dtype="uint8", chunks=(10, 10), fill_value=fill, dimension_names=["y", "x"],
            attributes={"spatial:transform": list(BANEPA)[:6]},
        )  # fmt: skip
        seen = survey(open_scene(tmp_path / f"{fill}.zarr"))
        assert seen.nodata == (expected,)
        assert seen.valid is None if expected is None else not seen.valid.any()


@pytest.mark.parametrize("version", [2, 3])
def test_chunks_that_are_not_there_and_would_be_ground_are_told(
    version: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = write_zarr(tmp_path / "town.zarr", data_array(picture(70, 90)), version, chunks=(3, 32, 32))
    assert open_scene(store).shape == (70, 90)
    assert not caplog.records
    (array,) = (path.parent for path in store.rglob("image/*") if path.name in {".zarray", "zarr.json"})
    next(path for path in array.rglob("*") if path.is_file() and not path.name.startswith((".z", "zarr"))).unlink()
    open_scene(store)
    (told,) = caplog.messages
    assert "town.zarr: 1 of 9 chunks of image are not there, and count as 0, which Zarr allows" in told
    assert "--nodata 0" in told


def test_dates(tmp_path: Path) -> None:
    image = data_array(picture(20, 20))
    image.attrs["datetime"] = "2024-05-31T10:11:12Z"
    when = dt.datetime(2024, 5, 31, 10, 11, 12, tzinfo=dt.UTC)
    assert open_scene(write_zarr(tmp_path / "a.zarr", image)).datetime == when
    timed = data_array(picture(20, 20)).expand_dims(time=[np.datetime64("2024-05-31T10:11:12", "ns")])
    scene = open_scene(write_zarr(tmp_path / "b.zarr", timed))
    assert (scene.datetime, len(scene.bands)) == (when, 3)
    read = open_source(scene, (3, 1)).read(Window(0, 20, 0, 20)).values
    np.testing.assert_array_equal(read, picture(20, 20)[[2, 0]])
    layers = xr.Dataset({name: timed[:, k] for k, name in enumerate(RGB)})
    scene = open_scene(write_zarr(tmp_path / "d.zarr", layers))
    assert scene.bands == ("blue", "green", "red")
    read = open_source(scene, scene.bands_for(RGB)).read(Window(0, 20, 0, 20)).values
    np.testing.assert_array_equal(read, picture(20, 20))
    assert open_scene(write_zarr(tmp_path / "c.zarr", data_array(picture(20, 20)))).datetime is None


def test_degrees_and_float32_coordinates(tmp_path: Path) -> None:
    affine = rasterio.Affine(3e-6, 0, 85.5, 0, -3e-6, 27.6)
    image = data_array(picture(20, 30), affine, 4326).rename({"latitude": "lat", "longitude": "lon"})
    scene = open_scene(write_zarr(tmp_path / "a.zarr", image))
    np.testing.assert_allclose(scene.geobox.affine, affine, rtol=0, atol=1e-9)
    coarse = data_array(np.zeros((3, 4000, 50), np.uint8))
    coarse.spatial_ref.attrs.pop("GeoTransform", None)
    coarse = coarse.assign_coords(y=coarse.y.astype("float32"), x=coarse.x.astype("float32"))
    scene = open_scene(write_zarr(tmp_path / "b.zarr", coarse))
    assert scene.geobox.affine.e == pytest.approx(-0.3, rel=1e-3)  # the first two coordinates alone would say 0.25


# --- what is refused


def irregular(image: xr.DataArray) -> xr.DataArray:
    y = image.y.to_numpy().copy()
    y[5:] -= 0.1
    image.spatial_ref.attrs.pop("GeoTransform", None)
    return image.assign_coords(y=y)


def without_crs(image: xr.DataArray) -> xr.DataArray:
    for dim in ("x", "y"):
        image[dim].attrs.clear()  # which tell it, too
    return image.drop_vars("spatial_ref")


def without_place(image: xr.DataArray) -> xr.DataArray:
    image.spatial_ref.attrs.pop("GeoTransform", None)
    return image.drop_vars(["x", "y"])


def contradicting(image: xr.DataArray) -> xr.DataArray:
    image.spatial_ref.attrs["GeoTransform"] = " ".join(map(str, BANEPA.to_gdal()))
    return image.assign_coords(y=image.y.to_numpy()[::-1])


def no_numbers(image: xr.DataArray) -> xr.DataArray:
    image.spatial_ref.attrs["GeoTransform"] = "here"
    return image


def repeated(image: xr.DataArray) -> xr.DataArray:
    image.spatial_ref.attrs.pop("GeoTransform", None)
    return image.assign_coords(y=np.full(20, 3.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (irregular, "its coordinate y is not regular"),
        (repeated, "its coordinate y is not regular"),
        (without_crs, "has no CRS"),
        (without_place, "has no geotransform and no coordinates y and x"),
        (contradicting, "contradict each other"),
        (no_numbers, "no six numbers"),
    ],
)
def test_a_store_without_a_right_place_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", change(data_array(picture(20, 20))))
    with pytest.raises(SceneError, match=rf"a\.zarr: .*{says}"):
        open_scene(store)


def test_a_turned_grid_is_kept(tmp_path: Path) -> None:
    turned = BANEPA @ rasterio.Affine.rotation(30)
    scene = open_scene(
        bare(tmp_path / "a.zarr", picture(20, 20), {"proj:code": "EPSG:32645", "spatial:transform": list(turned)[:6]})
    )
    np.testing.assert_allclose(scene.geobox.affine, turned)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    image = data_array(picture(20, 20))
    two = xr.Dataset({"a": image, "b": image})
    with pytest.raises(SceneError, match=r"two\.zarr: which image is meant"):
        open_scene(write_zarr(tmp_path / "two.zarr", two))
    write_zarr(tmp_path / "deep.zarr", xr.Dataset({"table": ("n", [1, 2])}))
    with pytest.raises(SceneError, match=r"deep\.zarr: has no image: there are table"):
        open_scene(tmp_path / "deep.zarr")
    image.to_dataset().to_zarr(tmp_path / "deep.zarr", group="r10m", consolidated=False, mode="a")
    with pytest.raises(SceneError, match=r"name one of its groups: .*deep\.zarr/r10m"):
        open_scene(tmp_path / "deep.zarr")
    assert open_scene(tmp_path / "deep.zarr" / "r10m").id == "r10m"
    zarr.save_array(tmp_path / "array.zarr", np.ones((3, 4, 4), np.uint8))
    with pytest.raises(
        SceneError, match=r"array\.zarr: cannot be read as a Zarr group \(holds an array without a group"
    ):
        open_scene(tmp_path / "array.zarr")
    zarr.open_group(tmp_path / "unnamed.zarr", mode="w").create_array("a", data=np.ones((4, 4), np.uint8))
    with pytest.raises(SceneError, match=r"unnamed\.zarr: .*"):
        open_scene(tmp_path / "unnamed.zarr")
    (tmp_path / "torn.zarr").mkdir()
    (tmp_path / "torn.zarr" / "zarr.json").write_text("{", encoding="utf-8")
    with pytest.raises(SceneError, match=r"torn\.zarr: cannot be read as a Zarr group"):
        open_scene(tmp_path / "torn.zarr")
    (tmp_path / "empty.zarr").mkdir()
    assert not is_zarr(str(tmp_path / "empty.zarr"))
    with pytest.raises(SceneError, match=r"empty\.zarr: cannot be read as a raster"):
        open_scene(tmp_path / "empty.zarr")
    with pytest.raises(SceneError, match=r"gone\.zarr: there is no such file"):
        open_scene(tmp_path / "gone.zarr")


def test_a_damaged_chunk_is_an_error_not_data(tmp_path: Path) -> None:
    store = write_zarr(tmp_path / "a.zarr", data_array(picture(40, 40)), chunks=(3, 20, 20))
    chunk = store / "image" / "c" / "0" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    source = open_source(open_scene(store), (1, 2, 3), waits=(0.0,))
    assert source.read(Window(0, 20, 0, 40)).valid.all()
    with pytest.raises(SceneError, match=r"a\.zarr: rows 10 to 39 cannot be read: the file is damaged"):
        source.read(Window(10, 40, 0, 40))


# --- how it is read


def test_only_the_chunks_of_a_window_are_read(tmp_path: Path) -> None:
    """All others may be damaged."""
    store = write_zarr(tmp_path / "a.zarr", data_array(picture(100, 100)), chunks=(1, 10, 10))
    for chunk in (store / "image" / "c").rglob("*"):
        if chunk.is_file() and chunk.relative_to(store / "image" / "c").parts[1:] != ("3", "4"):
            chunk.write_bytes(b"damaged")
    raster = open_source(open_scene(store), (1, 2, 3)).read(Window(30, 40, 40, 50))
    np.testing.assert_array_equal(raster.values, picture(100, 100)[:, 30:40, 40:50])


def test_large_chunks_are_hinted_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = data_array(np.ones((1, 2100, 2100), np.uint8))
    store = write_zarr(tmp_path / "a.zarr", image, chunks=(1, 2100, 2100))
    fine = write_zarr(tmp_path / "b.zarr", image, chunks=(1, 700, 700))
    with caplog.at_level(logging.INFO, logger="geoseg"):
        for path in (store, fine):
            source = open_source(open_scene(path), (1, 1, 1))
            for row in (0, 100):
                source.read(Window(row, row + 40, 0, 40))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "a.zarr: its chunks of 1 x 2100 x 2100 are far larger" in told[0]


@pytest.mark.parametrize("name", ["scenes/RGB.byte.tif", "scenes/landsat7_rgb_3857.tif", "banepa/labelled_train.tif"])
def test_real_scenes(name: str, shared_data: Path, tmp_path: Path) -> None:
    with rasterio.open(shared_data / name) as dataset:
        place = rasterio.windows.Window(100, 200, 300, 260)
        values, affine = dataset.read((1, 2, 3), window=place), dataset.window_transform(place)
        crs, nodata = dataset.crs, dataset.nodata
    tif = write_tif(tmp_path / "a.tif", values, crs, affine, **({} if nodata is None else {"nodata": nodata}))
    image = data_array(values, affine, crs.to_wkt(), RGB)
    if nodata is not None:
        image.attrs["_FillValue"] = np.uint8(nodata)
    store = write_zarr(tmp_path / "a.zarr", image, 2, chunks=(1, 64, 64))
    same(tif, store, [Window(0, 260, 0, 300), Window(50, 300, 17, 90)])
