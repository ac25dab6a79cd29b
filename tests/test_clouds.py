"""Clouds and shadows: the classes of the package whose networks find them, and the same whatever the tiling."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from conftest import chunks_of, write_tif
from hypothesis import given
from hypothesis import strategies as st
from test_archive import carry_out, job_of

import geoseg
from geoseg.archive import plan_archive
from geoseg.audit import verify
from geoseg.errors import GeosegError
from geoseg.io import clouds
from geoseg.io.clouds import clouds_of, write_clouds
from geoseg.io.mosaics import written
from geoseg.io.scenes import open_scene, open_source
from geoseg.io.store import entries_of
from geoseg.pipeline import begin
from geoseg.planned import SegmentJob, plan
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytest.importorskip("ukis_csmask", reason="ukis-csmask is not installed: pip install 'geoseg[clouds]'")

TEN_METRES = rasterio.Affine(10.0, 0.0, 334_000.0, 0.0, -10.0, 3_057_000.0)
FOUR = ("blue", "green", "red", "nir")


def codes(folder: Path) -> NDArray[np.uint8]:
    with rasterio.open(folder / "clouds.tif") as dataset:
        made: NDArray[np.uint8] = dataset.read(1)
    return made


# --- real scenes, real networks


@pytest.mark.parametrize("name", ["paris/t2", "hongkong/t1"])
def test_classes_are_those_of_the_package(name: str, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "change_sentinel2" / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    found = clouds_of("l1c", open_scene(folder), {})
    counts = write_clouds(tmp_path, found)
    made = codes(tmp_path)
    values, _ = open_source(found.scene, found.bands).raw(Window.of_shape(found.scene.shape))
    means = np.empty((4, *made.shape), np.float32)
    high, wide = found.cell
    for row, col in np.ndindex(made.shape):
        block = values[:, row * high : (row + 1) * high, col * wide : (col + 1) * wide]
        means[:, row, col] = block.mean(axis=(1, 2)) * 0.0001
    with warnings.catch_warnings(action="ignore"):  # that the scene is small
        from ukis_csmask.mask import CSmask

        own = CSmask(np.ascontiguousarray(np.moveaxis(means, 0, -1)), list(FOUR), intra_op_num_threads=1)
    np.testing.assert_array_equal(np.where(made == clouds.BESIDE, clouds.CLEAR, made), own.csm[..., 0])
    np.testing.assert_array_equal(made == clouds.CLEAR, own.valid[..., 0] == 1)
    assert counts["cloud"] > 0
    assert counts["shadow"] > 0
    pixels = made.repeat(high, 0).repeat(wide, 1)[: values.shape[1], : values.shape[2]]
    assert counts["cloud"] == np.count_nonzero(pixels == clouds.CLOUD)


# --- what does not depend on the network


def network(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities that depend on all of a patch and on the place in it: two patches never agree about a cell."""
    place = np.linspace(0, 0.1, cells.shape[-1], dtype=np.float32)
    ramp = (place[:, None] + 2 * place) * cells.mean()
    bright = cells.mean(axis=0)
    return np.stack([0.5 + 0 * bright, bright - 0.2 + ramp, 0.6 - bright + ramp.T])


@pytest.fixture
def found_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "_network", lambda _: network)
    for name, value in (("PATCH", 32), ("OVERLAP", 6), ("STEP", 25)):  # many in a small scene
        monkeypatch.setattr(clouds, name, value)


def sentinel(path: Path, rows: int = 230, cols: int = 190, seed: int = 4) -> Path:
    """Four bands of 16 bits at 10 m, smooth on the large, with a hole."""
    rng = np.random.default_rng(seed)
    smooth = rng.random((1, 4, 4)).repeat(60, 1).repeat(60, 2)[:, :rows, :cols] * 8000
    values = (smooth + rng.random((4, rows, cols)) * 1500 + 1).astype("uint16")
    values[:, 40:90, 100:140] = 0
    write_tif(path, values, transform=TEN_METRES, nodata=0, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = FOUR
    return path


@pytest.fixture(scope="session")
def coarse_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as one for 10 m."""
    folder = tmp_path_factory.mktemp("coarse") / "coarse"
    shutil.copytree(tiny_model, folder)
    item = json.loads((folder / "item.json").read_text("utf-8"))
    item["properties"] |= {"geoseg:resolution": [5.0, 30.0], "mlm:name": "coarse"}
    (folder / "item.json").write_text(json.dumps(item), encoding="utf-8")
    return folder


@pytest.mark.usefixtures("found_by_rule")
def test_no_tiling_has_a_say(coarse_model: Path, tmp_path: Path) -> None:
    path = sentinel(tmp_path / "town.tif")
    how: dict[str, Any] = {"model": str(coarse_model), "mask_clouds": "l1c"}
    with chunks_of(32):
        whole = geoseg.segment(path, "buildings", tmp_path / "whole", **how)
        tiled = geoseg.segment(path, "buildings", tmp_path / "tiled", tile=64, **how)
        plain = geoseg.segment(path, "buildings", tmp_path / "plain", model=str(coarse_model))
    for name in ("clouds.tif", "labels.tif", "footprints.geojson"):
        assert (whole.folder / name).read_bytes() == (tiled.folder / name).read_bytes(), name
    made = codes(whole.folder)
    assert made.shape == (-(-230 // 3), -(-190 // 3))
    assert set(np.unique(made)) == {0, 1, 2, 3, 255}
    hidden = made.repeat(3, 0).repeat(3, 1)[:230, :190]
    seen = plain.labels.to_numpy() != 255
    np.testing.assert_array_equal(whole.labels.to_numpy() == 255, ~seen | (hidden != 0))
    counts = whole.item["properties"]["geoseg:counts"]
    for code, name in enumerate(("cloud", "shadow", "beside"), 1):
        assert counts[f"{name}_pixels"] == np.count_nonzero(seen & (hidden == code)) > 0
    assert counts["valid_pixels"] + sum(counts[f"{n}_pixels"] for n in ("cloud", "shadow", "beside")) == seen.sum()
    (told,) = [entry["clouds"] for entry in entries_of(whole.folder) if "clouds" in entry]
    assert told["cloud"] == counts["cloud_pixels"]
    assert whole.item["assets"]["clouds"]["href"] == "./clouds.tif"
    assert "cloud_pixels" not in plain.item["properties"]["geoseg:counts"]


# --- mosaics


def two_dates(folder: Path) -> tuple[Path, Path]:
    """Two scenes, each clouded elsewhere, the second one further south and east."""
    paths = sentinel(folder / "a.tif"), sentinel(folder / "b.tif", seed=5)
    with rasterio.open(paths[1], "r+") as dataset:
        dataset.transform = dataset.transform @ rasterio.Affine.translation(20, 30)
    return paths


@pytest.mark.usefixtures("found_by_rule")
def test_clouds_of_one_scene_are_filled_by_another(coarse_model: Path, tmp_path: Path) -> None:
    paths = two_dates(tmp_path / "dates")
    how: dict[str, Any] = {"model": str(coarse_model), "mask_clouds": "l1c"}
    with chunks_of(32):
        whole = geoseg.segment([*paths], "buildings", tmp_path / "whole", **how)
        tiled = geoseg.segment([*paths], "buildings", tmp_path / "tiled", tile=64, **how)
        plain = geoseg.segment([*paths], "buildings", tmp_path / "plain", model=str(coarse_model))
    for name in ("clouds-1.tif", "clouds-2.tif", "labels.tif", "footprints.geojson"):
        assert (whole.folder / name).read_bytes() == (tiled.folder / name).read_bytes(), name
    own = [geoseg.segment(path, "buildings", tmp_path / path.stem, **how) for path in paths]
    clear, counts = np.zeros((2, 260, 210), bool), dict.fromkeys(("cloud", "shadow", "beside"), 0)
    for k, (result, place) in enumerate(zip(own, ((0, 0), (30, 20)), strict=True)):
        assert codes(result.folder).tobytes() == codes_in(whole.folder / f"clouds-{k + 1}.tif").tobytes()
        seen = result.labels.to_numpy() != 255
        clear[k, place[0] : place[0] + 230, place[1] : place[1] + 190] = seen
        for name in counts:
            counts[name] += result.item["properties"]["geoseg:counts"][f"{name}_pixels"]
    labels = whole.labels.to_numpy()
    np.testing.assert_array_equal(labels != 255, clear.any(axis=0))
    assert (clear[1] & ~clear[0]).any()
    assert (~clear.any(axis=0) & (plain.labels.to_numpy() != 255)).any()
    told = whole.item["properties"]["geoseg:counts"]
    assert {name: told[f"{name}_pixels"] for name in counts} == counts
    entered = {entry["of"]: entry["clouds"] for entry in entries_of(whole.folder) if "clouds" in entry}
    assert [*entered] == ["clouds-1.tif", "clouds-2.tif"]
    assert entered["clouds-2.tif"]["cloud"] == own[1].item["properties"]["geoseg:counts"]["cloud_pixels"]
    assert [whole.item["assets"][f"clouds_{k}"]["href"] for k in (1, 2)] == ["./clouds-1.tif", "./clouds-2.tif"]
    planned = plan(SegmentJob(written([str(path) for path in paths]), "buildings", tmp_path / "whole", **how))
    values = planned.source.read(Window.of_shape((260, 210))).values
    alone = open_source(open_scene(paths[1]), planned.source.bands, planned.source.stretch).read(
        Window.of_shape((230, 190))
    )
    filled = (clear[1] & ~clear[0])[30:, 20:]
    np.testing.assert_array_equal(values[:, 30:, 20:][:, filled], alone.values[:, filled])


def codes_in(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as dataset:
        made: NDArray[np.uint8] = dataset.read(1)
    return made


@pytest.mark.usefixtures("found_by_rule")
def test_windows_of_a_mosaic_on_another_grid_are_those_of_the_whole(coarse_model: Path, tmp_path: Path) -> None:
    paths = two_dates(tmp_path)
    text = written([str(path) for path in paths])
    how: dict[str, Any] = {"model": str(coarse_model), "mask_clouds": "l1c", "resolution": 13.0, "crs": "EPSG:3857"}
    planned = plan(SegmentJob(text, "buildings", tmp_path / "maps", **how))
    begin(planned)
    whole = planned.source.read(Window.of_shape(planned.scene.shape))
    plain = plan(SegmentJob(text, "buildings", tmp_path / "maps2", **(how | {"mask_clouds": None})))
    clouded = plain.source.read(Window.of_shape(planned.scene.shape))
    assert 0.1 < whole.valid.sum() / clouded.valid.sum() < 0.95
    for window in (Window(3, 90, 5, 61), Window(100, 101, 0, 150), Window(60, 175, 80, 130)):
        raster = planned.source.read(window)
        np.testing.assert_array_equal(raster.valid, whole.valid[window.slices])
        np.testing.assert_array_equal(raster.values, whole.values[:, *window.slices])


@pytest.mark.usefixtures("found_by_rule")
def test_a_job_looks_for_clouds_in_each_scene_of_a_mosaic_once(coarse_model: Path, tmp_path: Path) -> None:
    two_dates(tmp_path / "dates")
    job = job_of(coarse_model, [], mask_clouds="l1c", scenes={"files": ["dates/*.tif"], "mosaic": {"id": "town"}})
    assert carry_out(job, tmp_path).done == 1
    assert verify(tmp_path / "maps").findings == ()
    folder = tmp_path / "maps" / "town"
    first = (folder / "clouds-1.tif").stat().st_mtime_ns
    (folder / "clouds-2.tif").unlink()
    assert [each.state for each in plan_archive(job, tmp_path).entries] == ["begun"]
    assert carry_out(job, tmp_path).done == 1
    assert (folder / "clouds-1.tif").stat().st_mtime_ns == first
    assert sum("clouds" in entry for entry in entries_of(folder)) == 3
    assert verify(tmp_path / "maps").findings == ()
    fewer = job_of(coarse_model, [], mask_clouds="l1c", scenes={"files": ["dates/a.tif"], "mosaic": {"id": "town"}})
    assert [each.state for each in plan_archive(fewer, tmp_path).entries] == ["changed"]
    assert carry_out(fewer, tmp_path).done == 1
    assert sorted(path.name for path in folder.glob("clouds*")) == ["clouds.tif", "clouds.tif.aux.xml"]


# --- jobs


@pytest.mark.usefixtures("found_by_rule")
def test_jobs_find_clouds_once_and_verify_proves_it(coarse_model: Path, tmp_path: Path) -> None:
    sentinel(tmp_path / "S2A_MSIL1C_20240531T101112_N0510_R051.tif")
    job = job_of(coarse_model, ["*.tif"], mask_clouds="auto")
    assert carry_out(job, tmp_path).done == 1
    assert verify(tmp_path / "maps").findings == ()
    plan = plan_archive(job, tmp_path)
    (entry,) = plan.entries
    assert entry.state == "complete"
    assert json.loads(entry.order.parameters)["clouds"]["offset"] == -0.1
    (changed,) = plan_archive(job_of(coarse_model, ["*.tif"], mask_clouds="l2a"), tmp_path).entries
    assert changed.state == "changed"
    (entry.order.folder / "clouds.tif").unlink()
    assert [each.state for each in plan_archive(job, tmp_path).entries] == ["begun"]
    assert carry_out(job, tmp_path).done == 1
    assert verify(tmp_path / "maps").findings == ()


@given(side=st.integers(1, 900), start=st.integers(0, 6))
def test_patches_cover_a_side_and_see_mirrors_beyond_it(side: int, start: int) -> None:
    starts = list(clouds._starts(side))
    inner = np.concatenate([np.arange(s, s + clouds.STEP) for s in starts])
    assert set(range(side)) <= set(inner.tolist())
    padded = np.pad(np.arange(side), (51, 51 + 257 + 256), mode="symmetric")
    first = starts[min(start, len(starts) - 1)]
    np.testing.assert_array_equal(clouds._mirrored(first, side), padded[first + 51 : first + 51 + 256])


def test_cells_are_means_of_pixels_with_data(tmp_path: Path) -> None:
    found = clouds_of("l1c,2,5", open_scene(sentinel(tmp_path / "a.tif", 100, 150)), {})
    seen = np.zeros(found.grid.shape, np.uint16)
    down, along = clouds._mirrored(0, 34), clouds._mirrored(0, 50)
    cells = clouds._cells(found, open_source(found.scene, found.bands), seen, down, along)[:, :34, :50]
    with rasterio.open(tmp_path / "a.tif") as dataset:
        values = dataset.read(masked=True)
    for row, col in ((0, 0), (13, 30), (13, 33), (13, 35), (20, 40), (33, 49)):
        block = values[:, 3 * row : 3 * row + 3, 3 * col : 3 * col + 3]
        count = int((~np.ma.getmaskarray(block)[0]).sum())
        assert seen[row, col] == count
        expected = 2 * block.mean(axis=(1, 2)) + 5 if count else np.zeros(4)
        np.testing.assert_allclose(cells[:, row, col], expected, rtol=1e-6)
    assert {0, 3, 9} <= {*seen.ravel().tolist()}


def test_reflectance_is_told_by_the_product(tmp_path: Path) -> None:
    for name, asked, expected in (
        ("S2B_MSIL2A_20210531T101112_N0300_R051.tif", "auto", ("l2a", 0.0001, 0.0)),
        ("S2B_MSIL2A_20240531T101112_N0510_R051.tif", "auto", ("l2a", 0.0001, -0.1)),
        ("S2B_MSIL1C_20240531T101112_N0510_R051.tif", "l1c", ("l1c", 0.0001, -0.1)),
        ("LC09_L2SP_193026_20240531_02_T1.tif", "auto", ("l2a", 0.0000275, -0.2)),
        ("LC08_L1TP_193026_20240531_02_T1.tif", "auto", ("l1c", 0.00002, -0.1)),
        ("town.tif", "l1c", ("l1c", 0.0001, 0.0)),
        ("town.tif", "l2a,0.5,1", ("l2a", 0.5, 1.0)),
    ):
        found = clouds_of(asked, open_scene(sentinel(tmp_path / name, 20, 20)), {})
        assert (found.level, found.scale, found.offset) == expected, name
        assert (found.cell, found.names) == ((3, 3), FOUR)
    assert clouds_of("l1c", open_scene(tmp_path / "town.tif"), {"nir": 1, "blue": 4}).bands == (4, 2, 3, 1)


def test_what_cannot_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    town = sentinel(tmp_path / "town.tif", 20, 20)
    bytes_ = write_tif(tmp_path / "bytes.tif", np.ones((4, 20, 20), np.uint8), transform=TEN_METRES)
    fine = write_tif(tmp_path / "fine.tif", np.ones((4, 20, 20), np.uint16), photometric="MINISBLACK")
    rgb = write_tif(tmp_path / "rgb.tif", np.ones((3, 20, 20), np.uint16), transform=TEN_METRES, photometric="RGB")
    for path, asked, says in (
        (town, "auto", r"--mask-clouds auto: the name of .*town\.tif does not tell its level; say it: l1c"),
        (town, "l3", r"--mask-clouds l3: write auto, l1c or l2a"),
        (town, "l2a,a,b", r"scale and offset are numbers"),
        (bytes_, "l1c", r"bytes\.tif holds bytes, which are no reflectance"),
        (
            fine,
            "l1c",
            r"fine\.tif: its pixels are 0\.3 x 0\.3 m on the ground, clouds are found in images of 3 to 61 m",
        ),
        (rgb, "l1c", r"rgb\.tif: clouds are found in blue, green, red and nir, and it has no nir; name its bands"),
    ):
        with pytest.raises(GeosegError, match=says):
            clouds_of(asked, open_scene(path), {})
    monkeypatch.setattr(clouds, "find_spec", lambda _: None)
    with pytest.raises(GeosegError, match=r"found with ukis-csmask: pip install 'geoseg\[clouds\]'"):
        clouds_of("l1c", open_scene(town), {})
