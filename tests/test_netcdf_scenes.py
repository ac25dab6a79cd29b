"""Scenes in NetCDF files, and one step of a dimension chosen by its label, here and in Zarr stores."""

from __future__ import annotations

import datetime as dt
import json
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from conftest import BANEPA, write_tif
from test_archive import carry_out, job_of, picture
from test_array_scenes import rasterio_cf
from test_zarr_scenes import data_array

import geoseg
from geoseg.archive import plan_archive
from geoseg.audit import verify
from geoseg.cli import cli
from geoseg.errors import GeosegError, OptionError, SceneError
from geoseg.io import netcdf_scenes
from geoseg.io.remote import state_of_scene
from geoseg.io.scenes import open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

TIMES = ("2024-05-01T10:20:31", "2024-05-01T10:30:31", "2024-06-10T10:20:31")


def cube(rows: int = 70, cols: int = 60) -> xr.DataArray:
    """Images (time, band, y, x) of three times; that of the second is `picture`."""
    images = [data_array(picture(rows, cols, seed)) for seed in (5, 1, 6)]
    made = xr.concat(images, xr.Variable("time", np.array(TIMES, "datetime64[ns]")))
    return made.rename("image").assign_attrs(long_name="red green blue")


def write(path: Path, what: xr.DataArray | xr.Dataset, encoding: dict[str, Any] | None = None, **how: Any) -> Path:
    what = what if isinstance(what, xr.Dataset) else what.to_dataset()
    for name in what.data_vars:
        what[name].attrs.pop("grid_mapping", None)
    mapped: dict[str, Any] = {n: {"grid_mapping": "spatial_ref"} for n in what.data_vars if "y" in what[n].dims}
    mapped |= {name: mapped.get(name, {}) | more for name, more in (encoding or {}).items()}
    what.to_netcdf(path, engine="h5netcdf", encoding=mapped, **how)
    return path


@pytest.fixture
def town(tmp_path: Path) -> Path:
    return write(tmp_path / "town.nc", cube())


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_one_step_is_chosen_by_its_label(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"town.{kind}"
    if kind == "nc":
        write(path, cube())
    else:
        cube().to_dataset().to_zarr(path, consolidated=False, encoding={"image": {"chunks": (1, 3, 32, 32)}})
    with pytest.raises(
        SceneError, match=rf"town\.{kind}: image has 3 steps of time \(2024-05-01T10:20:31, .*choose one"
    ):
        open_scene(path)
    for label, k in (("2024-05-01T10:30", 1), ("2024-06", 2), ("2024-05-01 10:20:31", 0), (TIMES[0] + "Z", 0)):
        scene = open_scene(path, select={"time": label})
        assert scene.path == f"{path}#time={label}"
        assert scene.datetime == dt.datetime.fromisoformat(TIMES[k]).replace(tzinfo=dt.UTC)
        read = open_source(scene, (1, 2, 3)).read(Window(3, 50, 2, 60)).values
        np.testing.assert_array_equal(read, cube()[k, :, 3:50, 2:60])
    one = (
        open_scene(f"{path}#time=2024-06,band=2")
        if kind == "nc"
        else open_scene(path, select={"time": "2024-06", "band": 2})
    )
    assert (one.id, one.bands) == ("town_2024-06_2", ("grey",))
    np.testing.assert_array_equal(open_source(one, (1,)).read(Window(0, 70, 0, 60)).values[0], cube()[2, 1])
    for label, says in (
        ("2024-05", r"time=2024-05 is not one step alone of its 3; 2024-05-01T10:20:31, 2024-05-01T10:30:31 all begin"),
        (
            "2023",
            r"time=2023 is no step of its 3; there are 2024-05-01T10:20:31, .*; choose one of them: --select time=",
        ),
    ):
        with pytest.raises(SceneError, match=says):
            open_scene(path, select={"time": label})
    with pytest.raises(SceneError, match=r"has no dimension level to choose 3 of; there are "):
        open_scene(path, select={"level": 3})
    with pytest.raises(OptionError, match=r"--select time=2023: .* says another time itself"):
        open_scene(f"{path}#time=2024", select={"time": "2023"})


def test_bands_and_numbers_are_chosen_by_label(tmp_path: Path) -> None:
    levels = xr.concat([data_array(picture(20, 20, k)[0]) for k in (1, 2, 3)], xr.Variable("depth", [0.1, 10.0, 300.0]))
    path = write(tmp_path / "sea.nc", levels.rename("temperature"))
    scene = open_scene(path, select={"depth": 10})
    np.testing.assert_array_equal(open_source(scene, (1,)).read(Window(0, 20, 0, 20)).values[0], picture(20, 20, 2)[0])
    named = data_array(picture(20, 20), names=("B04", "B03", "B02"))
    scene = open_scene(write(tmp_path / "s2.nc", named), select={"band": "B03"})
    np.testing.assert_array_equal(open_source(scene, (1,)).read(Window(0, 20, 0, 20)).values[0], picture(20, 20)[1])
    with pytest.raises(SceneError, match=r"band=red is no step of its 3; there are B04, B03, B02"):
        open_scene(tmp_path / "s2.nc", select={"band": "red"})
    both = levels.expand_dims(member=[1, 2]).rename("t")
    with pytest.raises(SceneError, match=r"t has 2 steps of member \(1, 2\); choose one: --select member=2"):
        open_scene(write(tmp_path / "many.nc", both))
    many = xr.concat(
        [data_array(picture(9, 9)[0])] * 20, xr.Variable("time", np.arange(20), {"units": "days since 2024-01-01"})
    )
    with pytest.raises(SceneError, match=r"20 steps of time \(2024-01-01, .*, 2024-01-07 ... 2024-01-20\)"):
        open_scene(write(tmp_path / "days.nc", many.rename("a")))


def test_groups_and_arrays_are_named_behind_the_file(tmp_path: Path) -> None:
    one, two = (data_array(picture(20, 20, seed)) for seed in (1, 2))
    path = write(tmp_path / "town.nc", xr.Dataset({"one": one, "two": two}))
    write(path, two, group="r10m", mode="a")
    with pytest.raises(SceneError, match=r"town\.nc: which image is meant\? .* or name one of them: .*town\.nc/one"):
        open_scene(path)
    for inside, seed in (("one", 1), ("two", 2), ("r10m", 2), ("r10m/image", 2)):
        scene = open_scene(path / inside)
        assert scene.id == inside.rpartition("/")[2]
        read = open_source(scene, (1, 2, 3)).read(Window(0, 20, 0, 20)).values
        np.testing.assert_array_equal(read, picture(20, 20, seed))
        assert state_of_scene(scene)["bytes"] == path.stat().st_size
    with pytest.raises(SceneError, match=r"town\.nc/three: has no group and no array three; there are one, two"):
        open_scene(path / "three")
    xr.Dataset({"one": one, "two": two}).to_zarr(tmp_path / "town.zarr", consolidated=False)
    read = open_source(open_scene(tmp_path / "town.zarr" / "two"), (1, 2, 3)).read(Window(0, 20, 0, 20)).values
    np.testing.assert_array_equal(read, picture(20, 20, 2))


def test_a_crs_in_cf_alone_is_understood(tmp_path: Path) -> None:
    image = data_array(picture(20, 20)).drop_vars("spatial_ref").assign_coords(spatial_ref=((), 0, rasterio_cf(32645)))
    scene = open_scene(write(tmp_path / "town.nc", image))
    assert scene.geobox.crs.epsg == 32645
    np.testing.assert_allclose(scene.geobox.affine, BANEPA, rtol=0, atol=1e-6)


def test_the_command_and_jobs_take_labels(town: Path, tiny_model: Path, tmp_path: Path) -> None:
    write_tif(tmp_path / "tif" / "town.tif", picture(70, 60))
    expected = geoseg.segment(tmp_path / "tif" / "town.tif", "buildings", tmp_path / "one", model=str(tiny_model))
    labels = (expected.folder / "labels.tif").read_bytes()
    asked = [str(town), "buildings", "--out", str(tmp_path / "two"), "--model", str(tiny_model)]
    told = CliRunner().invoke(cli, ["segment", *asked, "--select", "time=2024-05-01T10:30"])
    assert told.exit_code == 0, told.output
    assert (tmp_path / "two" / "town_2024-05-01T10_30" / "labels.tif").read_bytes() == labels
    told = CliRunner().invoke(cli, ["segment", *asked, "--select", "2024"])
    assert (told.exit_code, "write a dimension and one of its labels" in told.output) == (2, True)
    files = ["*.nc#time=2024-05-01T10:30", "town.nc#time=2024-06-10"]
    report = carry_out(job_of(tiny_model, files, min_area=4), tmp_path)
    assert (report.done, report.failures) == (2, ())
    assert (tmp_path / "maps" / "town_2024-05-01T10_30" / "labels.tif").read_bytes() == labels
    assert verify(tmp_path / "maps").findings == ()
    item = json.loads((tmp_path / "maps" / "town_2024-06-10" / "item.json").read_text("utf-8"))
    assert item["properties"]["datetime"] == "2024-06-10T10:20:31Z"
    (link,) = [link for link in item["links"] if link.get("type") == "application/netcdf"]
    assert link["href"] == "../../town.nc"
    chosen = job_of(tiny_model, [], scenes={"files": ["town.nc"], "select": {"time": dt.date(2024, 6, 10)}})
    (entry,) = plan_archive(chosen, tmp_path, tmp_path / "maps").entries
    assert (entry.order.scene.id, entry.state) == ("town_2024-06-10", "changed")  # by min_area alone
    plain = job_of(tiny_model, [], scenes={"files": ["town.nc", "tif/town.tif"], "select": {"time": "2023"}})
    faults = [fault.why for fault in plan_archive(plain, tmp_path).faults]
    assert "time=2023 is no step of its 3; there are 2024-05-01T10:20:31" in faults[0]
    assert "town.tif has no dimensions to choose from" in faults[1]


def test_what_is_missing_or_damaged_is_told(town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tmp_path / "cut.nc"
    cut.write_bytes(town.read_bytes()[:3000])
    with pytest.raises(SceneError, match=r"cut\.nc: cannot be read as NetCDF"):
        open_scene(cut)
    (tmp_path / "text.nc").write_text("nothing")
    with pytest.raises(SceneError, match=r"text\.nc: cannot be read as NetCDF"):
        open_scene(tmp_path / "text.nc")
    with pytest.raises(SceneError, match=r"gone\.nc: there is no such file"):
        open_scene(tmp_path / "gone.nc")
    with h5py.File(tmp_path / "long.nc", "w") as file:
        for name, shape in (("y", (10**9,)), ("x", (10**9,)), ("image", (10**9, 10**9))):
            file.create_dataset(name, shape=shape, dtype="f8", chunks=(100,) * len(shape))
        for k, name in enumerate(("y", "x")):
            file[name].make_scale(name)
            file["image"].dims[k].attach_scale(file[name])
    with pytest.raises(SceneError, match=r"long\.nc: [xy] has 1000000000 values, at most 16777216 can be right"):
        open_scene(tmp_path / "long.nc")
    monkeypatch.setattr(netcdf_scenes, "find_spec", lambda _: None)
    with pytest.raises(GeosegError, match=r"town\.nc: NetCDF is read with h5netcdf: pip install 'geoseg\[netcdf\]'"):
        open_scene(town)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("name", ["image", "x"])
def test_a_chunk_that_becomes_too_much_is_not_decoded(name: str, checksum: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A few kilobytes of deflated nothing, which HDF5 would make hundreds of megabytes of."""
    path = tmp_path / "bomb.nc"
    how = {"zlib": True, "fletcher32": checksum}
    chunks = {"image": {"chunksizes": (3, 70, 60)}, "x": {"chunksizes": (60,)}}
    write(path, cube().isel(time=1, drop=True), {each: how | more for each, more in chunks.items()})
    before = open_source(open_scene(path), (1, 2, 3)).read(Window(0, 70, 0, 60))
    with h5py.File(path, "r+") as file:
        array = file[name]
        stored = zlib.compress(bytes(1 << 28), 9)
        array.id.write_direct_chunk((0,) * array.ndim, stored + bytes(4 if checksum else 0))
    assert path.stat().st_size < 1_000_000
    assert before.values.any()
    with pytest.raises(SceneError, match=r"bomb\.nc: ") as told:
        open_source(open_scene(path), (1, 2, 3)).read(Window(0, 70, 0, 60))
    assert "a chunk becomes more than the" in f"{told.value} {told.value.__cause__}"
