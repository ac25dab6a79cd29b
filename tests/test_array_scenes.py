"""Scenes in memory: the same maps as from a GeoTIFF, computed window by window, and known again by their pixels."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
from conftest import BANEPA, write_tif
from test_archive import picture
from test_zarr_scenes import data_array

import geoseg
from geoseg.errors import InputError, OptionError, OutputError, SceneError
from geoseg.io import array_scenes
from geoseg.io.scenes import open_scene, open_source, survey
from geoseg.planned import SegmentJob, plan
from geoseg.window import Window
from geoseg.work import SceneOrder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RGB = ("red", "green", "blue")


class Counted:
    """A computation of Dask that tells which chunks were computed, and how often."""

    def __init__(self, values: NDArray[Any], chunks: tuple[int, ...]) -> None:
        self.starts: list[tuple[int, ...]] = []
        self._lock, self._values = threading.Lock(), values
        self.array = da.map_blocks(
            self._block, chunks=da.core.normalize_chunks(chunks, values.shape), dtype=values.dtype
        )

    def _block(self, block_info: Any = None) -> NDArray[Any]:
        place = block_info[None]["array-location"]
        with self._lock:
            self.starts.append(tuple(start for start, _ in place))
        return self._values[tuple(slice(*span) for span in place)]


def lazily(counted: Counted) -> xr.DataArray:
    rows, cols = counted.array.shape[1:]
    return data_array(np.zeros((3, rows, cols), np.uint8), names=RGB).copy(data=counted.array)


def test_rows_in_order_compute_each_chunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = picture(200, 90)
    counted = Counted(values, (3, 32, 40))
    scene = open_scene(lazily(counted), name="town")
    counted.starts.clear()  # what Dask tried to learn the type
    source = open_source(scene, (1, 2, 3))
    source.read(Window(0, 20, 0, 30))
    assert counted.starts == [(0, 0, 0)]  # of 21 chunks
    for top in range(0, 200, 13):
        raster = source.read(Window(top, top + 30, -4, 95))
        rows = slice(top, min(top + 30, 200))
        np.testing.assert_array_equal(raster.values[:, : rows.stop - top, 4:94], values[:, rows])
    assert len(counted.starts) == len(set(counted.starts)) == 7 * 3
    monkeypatch.setattr(array_scenes, "KEPT", 0)
    counted.starts.clear()
    fresh = open_source(open_scene(lazily(counted), name="town"), (1, 2, 3))
    for top in (0, 8, 16):
        fresh.read(Window(top, top + 8, 0, 40))
    assert counted.starts == [(0, 0, 0)] * 3


def test_no_more_than_a_windows_chunks_are_in_memory() -> None:
    counted = Counted(np.ones((3, 640, 320), np.uint8), (3, 64, 64))
    source = open_source(open_scene(lazily(counted), name="town"), (1, 2, 3))
    for row in range(0, 640, 16):
        source.read(Window(row, row + 80, 0, 320))
        ((spans, kept),) = source._opened().cube.pixels.__self__.kept.values()
        assert kept.shape[1] <= 192
        assert spans[1] == (row // 64 * 64, min(-(-(row + 80) // 64) * 64, 640))


@pytest.mark.parametrize("chunks", [None, {"y": 33, "x": 64}])
def test_labels_are_the_bytes_of_a_geotiff(chunks: dict[str, int] | None, tiny_model: Path, tmp_path: Path) -> None:
    values = picture(130, 90).astype("uint16") * 7
    values[:, 40:70, 45:] = 0
    tif = write_tif(tmp_path / "town.tif", values, nodata=0)
    with rioxarray.open_rasterio(tif) as read:
        array = read.load().rename("town")
    flat = xr.Dataset({name: array[k].drop_vars("band") for k, name in enumerate(RGB)}, attrs={"id": "town"})
    expected = geoseg.segment(tif, "buildings", tmp_path / "tif", model=str(tiny_model))
    for kind, given in {"array": array, "dataset": flat}.items():
        scene = given if chunks is None else given.chunk(chunks)
        result = geoseg.segment(scene, "buildings", tmp_path / kind, model=str(tiny_model))
        for name in ("labels.tif", "confidence.tif", "footprints.geojson"):
            assert (result.folder / name).read_bytes() == (expected.folder / name).read_bytes(), (kind, name)
        links = [link for link in result.item["links"] if link["rel"] == "derived_from"]
        assert [link["title"] for link in links] == ["item"]  # the model's alone: there is no file


def test_a_scene_in_memory_is_known_again_by_its_pixels(tiny_model: Path, tmp_path: Path) -> None:
    values, how = picture(70, 70), {"model": str(tiny_model), "name": "town"}
    first = geoseg.segment(data_array(values, names=RGB), "buildings", tmp_path, **how)
    made = (first.folder / "item.json").stat().st_mtime_ns
    geoseg.segment(data_array(values.copy(), names=RGB), "buildings", tmp_path, **how)
    assert (first.folder / "item.json").stat().st_mtime_ns == made
    other = values.copy()
    other[1, 69, 69] ^= 1
    with pytest.raises(OutputError, match=r"town: holds results of another job \(scene has other contents\)"):
        geoseg.segment(data_array(other, names=RGB), "buildings", tmp_path, **how)
    moved = BANEPA @ rasterio.Affine.translation(1, 0)
    with pytest.raises(OutputError, match="another job"):
        geoseg.segment(data_array(values, moved, names=RGB), "buildings", tmp_path, **how)


def test_an_array_of_dask_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from geoseg.io.remote import state_of_scene

    counted = Counted(picture(40, 40), (3, 20, 20))
    counted.starts.clear()
    state = state_of_scene(open_scene(lazily(counted), name="town"))
    assert state["dask"] == [counted.array.name]
    assert not counted.starts
    same, other = (data_array(picture(40, 40) + k).chunk(y=20) for k in (0, 1))
    again = data_array(picture(40, 40)).chunk(y=20)
    states = [state_of_scene(open_scene(each, name="town")) for each in (same, again, other)]
    assert states[0] == states[1] != states[2]
    monkeypatch.setattr(array_scenes, "AT_ONCE", 100)  # rows are digested one by one
    large = [state_of_scene(open_scene(data_array(picture(40, 40)), name="town")) for _ in range(2)]
    assert large[0] == large[1]


def test_places_and_crs_as_libraries_have_them() -> None:
    values = picture(30, 20)
    plain = data_array(values).drop_vars(["spatial_ref"]).drop_attrs(deep=True)
    code = plain.assign_attrs({"proj:code": "EPSG:32645"})
    by_rio = plain.rio.write_crs(32645)
    by_cf = plain.assign_coords(crs=((), 0, rasterio_cf(32645))).assign_attrs(grid_mapping="crs")
    no_axes = plain.drop_vars(["y", "x"]).rio.write_crs(32645).rio.write_transform(BANEPA)
    geozarr = code.drop_vars(["y", "x"]).assign_attrs({"spatial:transform": list(BANEPA)[:6]})
    mapping = xr.Dataset({"image": by_cf.drop_vars("crs"), "crs": by_cf.crs})
    for given in (code, by_rio, by_cf, no_axes, geozarr, data_array(values), mapping):
        scene = open_scene(given, name="town")
        assert scene.geobox.crs.epsg == 32645
        np.testing.assert_allclose(scene.geobox.affine, BANEPA, rtol=0, atol=1e-6)
    assert float(plain.x[0]) == pytest.approx(BANEPA.c + 0.15)  # coordinates are centres
    with pytest.raises(SceneError, match=r"xarray:town: has no CRS"):
        open_scene(plain, name="town")
    with pytest.raises(SceneError, match=r"xarray:town: has no geotransform and no coordinates"):
        open_scene(plain.drop_vars(["y", "x"]).rio.write_crs(32645), name="town")


def rasterio_cf(code: int) -> dict[str, Any]:
    """The parameters of a CRS in CF's words, without WKT."""
    from pyproj import CRS

    return {key: value for key, value in CRS.from_epsg(code).to_cf().items() if key not in {"crs_wkt", "spatial_ref"}}


def test_decoded_values_are_read_with_their_nan() -> None:
    values = picture(30, 20).astype("float32")
    values[:, 3:9] = np.nan
    scene = open_scene(data_array(values), name="town")
    assert not survey(scene).valid[3:9].any()
    marked = data_array(picture(30, 20)).assign_attrs(nodata=7)
    assert survey(open_scene(marked, name="town")).nodata == (7.0,) * 3


def test_one_step_of_an_array_is_chosen() -> None:
    values = picture(30, 20)
    times = np.array(["2024-05-01", "2024-06-01"], "datetime64[ns]")
    cube = xr.concat([data_array(values), data_array(values + 1)], xr.Variable("time", times))
    scene = open_scene(cube, name="town", select={"time": "2024-06"})
    assert (scene.id, str(scene.datetime)) == ("town_2024-06", "2024-06-01 00:00:00+00:00")
    np.testing.assert_array_equal(open_source(scene, (1, 2, 3)).read(Window(0, 30, 0, 20)).values, values + 1)
    with pytest.raises(SceneError, match=r"has 2 steps of time \(2024-05-01, 2024-06-01\); choose one: --select time="):
        open_scene(cube, name="town")
    states = [array_scenes.state_of_array(open_scene(cube, name="a", select={"time": t})) for t in times]
    assert states[0] != states[1]


def test_arrays_stay_in_their_process(tiny_model: Path, tmp_path: Path) -> None:
    array = data_array(picture(70, 70), names=RGB)
    scene = open_scene(array, name="town")
    planned = plan(SegmentJob(scene.path, "buildings", tmp_path, model=str(tiny_model)), scene)
    with pytest.raises(SceneError, match=r"xarray:town: is an array in the memory of one process.*to_zarr"):
        SceneOrder.of(planned)
    with pytest.raises(SceneError, match=r"xarray:town: is an array in the memory"):
        open_scene(scene.path)
    with pytest.raises(SceneError, match="needs a name"):
        open_scene(array.rename(None))
    with pytest.raises(SceneError, match="which image is meant"):
        open_scene(xr.Dataset({"a": array, "b": array}), name="town")
    with pytest.raises(OptionError, match=r"--select time: .*town\.tif has no dimensions to choose from"):
        open_scene(tmp_path / "town.tif", select={"time": "2024"})
    assert issubclass(SceneError, InputError)
