"""Maps as a Zarr store: the pixels of the GeoTIFFs, overviews by a rule, and what readers are told."""

from __future__ import annotations

import json
import subprocess
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
import zarr
from conftest import BANEPA, chunks_of, legend_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from test_archive import carry_out, job_of, scene

import geoseg
from geoseg.archive import plan_archive, run_archive
from geoseg.audit import verify
from geoseg.catalog import sha256_of
from geoseg.errors import OutputError
from geoseg.io import zarr_maps
from geoseg.io.cog import CONFIDENCE, Look, write_cog
from geoseg.io.overviews import halved
from geoseg.io.scenes import open_scene
from geoseg.io.zarr_maps import write_zarr
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.pipeline import Result

assert rioxarray  # gives arrays their `rio`


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    folder = tmp_path_factory.mktemp("maps")
    tif = scene(folder / "town.tif")
    with chunks_of(32):
        return geoseg.segment(tif, "buildings", folder / "out", model=str(tiny_model), zarr=True)


def band(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as dataset:
        values: NDArray[np.uint8] = dataset.read(1)
    return values


def test_the_pixels_are_those_of_the_geotiffs(finished: Result) -> None:
    maps = xr.open_zarr(finished.folder / "labels.zarr", consolidated=False, mask_and_scale=False)
    for name in ("labels", "confidence"):
        np.testing.assert_array_equal(maps[name], band(finished.folder / f"{name}.tif"))
        assert maps[name].dtype == np.uint8
    decoded = xr.open_zarr(finished.folder / "labels.zarr", consolidated=False)
    assert decoded.labels.dtype == np.uint8
    confidence = band(finished.folder / "confidence.tif")
    np.testing.assert_allclose(decoded.confidence, np.where(confidence == 255, np.nan, confidence / 250), rtol=1e-6)


def test_readers_find_place_crs_nodata_and_classes(finished: Result) -> None:
    with rasterio.open(finished.folder / "labels.tif") as dataset:
        affine, crs = dataset.transform, dataset.crs
    for group, factor in (("", 1), ("2", 2), ("4", 4), ("8", 8)):
        maps = xr.open_zarr(finished.folder / "labels.zarr", group=group or None, consolidated=False)
        assert maps.labels.rio.crs == crs
        np.testing.assert_allclose(maps.labels.rio.transform(), affine @ rasterio.Affine.scale(factor), atol=1e-9)
        assert float(maps.x[0]) == pytest.approx(affine.c + 0.15 * factor, abs=1e-6)
        assert maps.labels.rio.nodata == 255
        assert maps.labels.shape == (-(-130 // factor), -(-90 // factor))
        assert open_scene(finished.folder / "labels.zarr" / group / "labels").geobox.affine.a == 0.3 * factor
    assert "16" not in zarr.open_group(finished.folder / "labels.zarr", mode="r")
    attributes = xr.open_zarr(finished.folder / "labels.zarr", consolidated=False).labels.attrs
    assert attributes["flag_values"] == [0, 1]
    assert attributes["flag_meanings"] == "background building"
    classes = json.loads((finished.folder / "item.json").read_text("utf-8"))["assets"]["labels"][
        "classification:classes"
    ]
    assert attributes["flag_colors"].upper().split() == [f"#{each['color_hint']}" for each in classes]
    told = zarr.open_group(finished.folder / "labels.zarr", mode="r").attrs
    assert {each["name"] for each in told["zarr_conventions"]} == {"multiscales", "proj", "spatial"}
    layout = told["multiscales"]["layout"]
    assert [each["asset"] for each in layout] == [".", "2", "4", "8"]
    assert [each.get("derived_from") for each in layout] == [None, ".", "2", "4"]
    assert (told["proj:code"], told["spatial:shape"]) == (f"EPSG:{crs.to_epsg()}", [130, 90])


def test_overviews_are_made_of_the_level_before(finished: Result) -> None:
    root = zarr.open_group(finished.folder / "labels.zarr", mode="r")
    for name in ("labels", "confidence"):
        level = root[name][:]
        for group in ("2", "4", "8"):
            level = slowly_halved(level, classes=name == "labels")
            np.testing.assert_array_equal(root[group][name][:], level)


def slowly_halved(values: NDArray[np.uint8], *, classes: bool) -> NDArray[np.uint8]:
    """Pixel by pixel, as the docstring has it."""
    rows, cols = values.shape
    made = np.full((-(-rows // 2), -(-cols // 2)), 255, np.uint8)
    for row, col in np.ndindex(made.shape):
        seen = [int(v) for v in values[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].ravel() if v != 255]
        if seen:
            made[row, col] = Counter(seen).most_common(1)[0][0] if classes else int(np.mean(seen) + 0.5)
    return made


@given(
    values=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from([0, 1, 2, 249, 255])
    ),
    classes=st.booleans(),
)
def test_half_is_the_mode_or_the_mean_of_what_has_data(values: NDArray[np.uint8], classes: bool) -> None:  # noqa: FBT001
    np.testing.assert_array_equal(halved(values, classes=classes), slowly_halved(values, classes=classes))


def test_overviews_of_confidence_are_those_of_the_geotiff(tmp_path: Path) -> None:
    """GDAL's mean, where each has a whole number of pixels below it."""
    values = np.random.default_rng(3).integers(0, 251, (2048, 1024)).astype(np.uint8)
    values[300:700, 100:333] = 255
    geobox, window = GeoBox(values.shape, BANEPA, 32645), Window.of_shape(values.shape)
    write_cog(tmp_path / "a.tif", [(window, values)], geobox, CONFIDENCE, {})
    write_zarr(tmp_path / "a.zarr", [("confidence", window, values)], geobox, {"confidence": CONFIDENCE}, {})
    with rasterio.open(tmp_path / "a.tif", OVERVIEW_LEVEL=0) as dataset:
        np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr" / "2" / "confidence")[:], dataset.read(1))


def test_the_checksum_is_one_that_a_shell_prints(finished: Result) -> None:
    asset = finished.item["assets"]["maps"]
    command = "find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(
        ["/bin/sh", "-c", command], cwd=finished.folder / "labels.zarr", capture_output=True, check=True
    )
    assert asset["file:checksum"] == "1220" + printed.stdout.decode().split()[0]
    assert asset["file:size"] == sum(
        each.stat().st_size for each in (finished.folder / "labels.zarr").rglob("*") if each.is_file()
    )
    assert asset["href"] == "./labels.zarr"
    assert asset["type"].startswith("application/vnd.zarr")


def test_jobs_write_it_and_verify_proves_it(tiny_model: Path, tmp_path: Path) -> None:
    scene(tmp_path / "a.tif")
    assert carry_out(job_of(tiny_model, ["a.tif"]), tmp_path).done == 1
    maps = tmp_path / "maps" / "a" / "labels.zarr"
    assert not maps.exists()
    job = job_of(tiny_model, ["a.tif"], zarr=True)
    plan = plan_archive(job, tmp_path)
    assert [entry.state for entry in plan.entries] == ["begun"]
    before = (tmp_path / "maps" / "a" / "ledger.jsonl").stat().st_size
    assert run_archive(plan).done == 1
    assert (tmp_path / "maps" / "a" / "ledger.jsonl").stat().st_size == before  # nothing was predicted again
    assert verify(tmp_path / "maps").findings == ()
    assert plan_archive(job, tmp_path).pending == ()
    chunk = maps / "labels" / "c" / "0" / "0"
    content = chunk.read_bytes()
    chunk.write_bytes(content + b"x")
    ((_, what),) = verify(tmp_path / "maps").findings
    assert what == "./labels.zarr: its checksum is not that of its item; it was changed or damaged"
    chunk.write_bytes(content)
    chunk.rename(chunk.with_name("1"))
    assert len(verify(tmp_path / "maps").findings) == 1


def test_it_is_there_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    geobox, values = GeoBox((40, 50), BANEPA, 32645), np.ones((40, 50), np.uint8)
    how: dict[str, Any] = {"geobox": geobox, "looks": {"labels": Look("x", legend_of(2))}, "tags": {}}
    window = Window(0, 40, 0, 50)
    write_zarr(tmp_path / "a.zarr", [("labels", window, values)], **how)

    def fails() -> Iterator[Any]:
        yield "labels", window, values
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"a\.zarr: cannot be written: No space left"):
        write_zarr(tmp_path / "a.zarr", fails(), **how)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    digest = sha256_of(tmp_path / "a.zarr")
    write_zarr(tmp_path / "a.zarr", [("labels", window, values)], **how)
    assert sha256_of(tmp_path / "a.zarr") == digest
    monkeypatch.setattr(zarr_maps, "_halve", None)
    assert zarr.open_array(tmp_path / "a.zarr" / "labels")[:].sum() == 2000


def test_memory_has_a_bound(tmp_path: Path) -> None:
    """Of 64 million pixels, 200 million bytes would be the least at once."""
    geobox = GeoBox((8192, 8192), BANEPA, 32645)
    block = np.zeros((1024, 4096), np.uint8)

    def blocks() -> Iterator[tuple[str, Window, NDArray[np.uint8]]]:
        for window in Window.of_shape((8192, 8192)).blocks((1024, 4096)):
            block[:] = window.row_start // 1024
            yield "labels", window, block

    tracemalloc.start()
    write_zarr(tmp_path / "a.zarr", blocks(), geobox, {"labels": Look("x", legend_of(9))}, {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6
    root = zarr.open_group(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(root["8"]["labels"][:, 0], np.repeat(np.arange(8), 128))
