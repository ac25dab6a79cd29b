"""`segment` and `vectorize` as Python calls: complete, the same whatever the tiling, and never half done."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import math
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import xarray as xr
from click.testing import CliRunner
from conftest import BANEPA, chunks_of, write_tif
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pycocotools.coco import COCO
from pystac.validation import JsonSchemaSTACValidator

import geoseg
from geoseg.archive import RunJob
from geoseg.catalog import MULTIHASH_SHA256, read_model, sha256_of
from geoseg.cli import cli
from geoseg.errors import ModelError, OptionError, OutputError, SceneError
from geoseg.export import Exports
from geoseg.io.layers import read_layer
from geoseg.io.store import LEDGER
from geoseg.pipeline import Predictor, Result, run
from geoseg.planned import SegmentJob, patch_on_scene, plan
from geoseg.polygons import Shaping, trace
from geoseg.tiling import CHUNK, Tiling

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.raster import Raster
    from geoseg.window import Window

FILES = {
    "labels.tif",
    "labels.tif.aux.xml",
    "confidence.tif",
    "footprints.geojson",
    "footprints.parquet",
    "item.json",
    "ledger.jsonl",
    "result.zarr",
}


def picture(rows: int, cols: int, seed: int = 1) -> NDArray[np.uint8]:
    """Blocks and noise: of what the tiny model makes both classes."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((3, -(-rows // 8), -(-cols // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :cols]
    return (blocks * 180 + rng.random((3, rows, cols)) * 75).astype(np.uint8)


def town(path: Path, rows: int = 150, cols: int = 200, **profile: Any) -> Path:
    """A scene with a hole, and with its date."""
    values = picture(rows, cols)
    values[:, rows // 3 : rows // 2, cols // 2 :] = 0
    write_tif(path, values, nodata=0, **profile)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2022:07:25 10:11:12")
    return path


def pixels(path: Path) -> NDArray[np.uint8]:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


def everything(result: Result) -> tuple[bytes, ...]:
    """All that must not depend on how a run went."""
    layer = result.footprints
    return (
        pixels(result.folder / "labels.tif").tobytes(),
        pixels(result.folder / "confidence.tif").tobytes(),
        (result.folder / "footprints.geojson").read_bytes(),
        b"".join(shapely.to_wkb(layer.geometry.to_numpy())),
        layer.drop(columns="geometry").to_csv().encode(),
    )


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    return geoseg.segment(town(folder / "town.tif"), "buildings", folder / "maps", model=str(tiny_model))


# --- what is written


def test_all_files_are_there_and_belong_together(finished: Result) -> None:
    assert finished.folder.name == "town"
    assert {path.name for path in finished.folder.iterdir()} == FILES
    labels, confidence = pixels(finished.folder / "labels.tif"), pixels(finished.folder / "confidence.tif")
    with (
        rasterio.open(finished.folder.parents[1] / "town.tif") as scene,
        rasterio.open(finished.folder / "labels.tif") as made,
    ):
        assert (made.transform, made.crs, made.shape) == (scene.transform, scene.crs, scene.shape)
        valid = scene.dataset_mask() > 0
    np.testing.assert_array_equal(labels == 255, ~valid)
    np.testing.assert_array_equal(confidence == 255, ~valid)
    assert set(np.unique(labels)) == {0, 1, 255}
    assert 125 <= confidence[valid].min() <= confidence[valid].max() <= 250
    counts = finished.item["properties"]["geoseg:counts"]
    objects = int((labels == 1).sum())
    pixel_area = np.prod(geoseg.open_scene(finished.folder.parents[1] / "town.tif").ground_resolution)
    assert counts == {
        "valid_pixels": valid.sum(),
        "pixels": valid.size,
        "footprints": len(finished.footprints),
        "object_pixels": objects,
        "object_area_m2": pytest.approx(objects * pixel_area, abs=0.01),
        "footprint_area_m2": pytest.approx(finished.footprints["area_m2"].sum()),
    }
    assert counts["footprints"] > 0
    assert {str(when) for when in finished.footprints["datetime"]} == {"2022-07-25 10:11:12+00:00"}
    assert (finished.footprints["area_m2"] >= 4).all()


def test_the_item_is_valid_stac(finished: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the core schemas that come with pystac; those of the extensions are on the web, and not asked for."""

    def offline(*_: Any) -> None:
        pytest.fail("asked the network")

    monkeypatch.setattr(socket.socket, "connect", offline)
    JsonSchemaSTACValidator().validate_core(finished.item, pystac.STACObjectType.ITEM, finished.item["stac_version"])
    item = pystac.Item.from_file(str(finished.folder / "item.json"))
    assert item.id == "town"
    assert item.datetime is not None
    assert item.datetime.isoformat() == "2022-07-25T10:11:12+00:00"
    used = {key.partition(":")[0] for key in item.properties if ":" in key}
    used |= {key.partition(":")[0] for asset in item.assets.values() for key in asset.extra_fields if ":" in key}
    declared = {uri.split("/")[3]: uri for uri in item.stac_extensions}
    assert used - {"geoseg"} == {"processing", "proj", "file", "classification", "raster"}
    assert {"proj": "projection"}.keys() | declared.keys() >= used - {"geoseg"}
    assert "projection" in declared


def test_the_item_tells_how_it_came_about(finished: Result, tiny_model: Path) -> None:
    properties = finished.item["properties"]
    assert (properties["proj:code"], properties["proj:shape"]) == ("EPSG:32645", [150, 200])
    assert properties["proj:transform"][:6] == list(BANEPA)[:6]
    weights = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()
    assert properties["geoseg:model"] == {"name": "tiny", "sha256": weights}
    assert set(properties["processing:software"]) == {"geoseg", "torch", "openvino"}
    parameters = properties["geoseg:parameters"]
    given = {"stride": [48, 48], "patch": [64, 64], "cells": [16, 16]}
    given |= {"threshold": None, "min_area": 4.0, "simplify": 1.0, "aoi": None}
    assert {key: parameters[key] for key in given} == given
    assert parameters["device"] == "cpu"
    assert parameters["scene"]["name"] == "town.tif"
    west, south, east, north = finished.item["bbox"]
    assert shapely.geometry.shape(finished.item["geometry"]).bounds == pytest.approx((west, south, east, north))
    assert finished.footprints.to_crs(4326).total_bounds[0] >= west
    assert west == pytest.approx(GeoBox((150, 200), BANEPA, 32645).footprint(4326).boundingbox.left, abs=1e-6)
    classes = finished.item["assets"]["labels"]["classification:classes"]
    assert [(c["value"], c["name"]) for c in classes] == [(0, "background"), (1, "building")]
    assert all(len(c["color_hint"]) == 6 and c["color_hint"] == c["color_hint"].upper() for c in classes)
    assert finished.item["assets"]["confidence"]["raster:scale"] == 1 / 250


def test_checksums_are_those_of_the_files(finished: Result) -> None:
    assets = finished.item["assets"]
    assert {asset["href"] for asset in assets.values()} == {
        "./labels.tif",
        "./confidence.tif",
        "./footprints.geojson",
        "./footprints.parquet",
    }
    for asset in assets.values():
        content = (finished.folder / asset["href"]).read_bytes()
        assert asset["file:checksum"] == "1220" + hashlib.sha256(content).hexdigest()
        assert asset["file:size"] == len(content)


def test_a_scene_without_a_date_gets_an_interval(tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "undated.tif", picture(60, 60))
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model))
    JsonSchemaSTACValidator().validate_core(result.item, pystac.STACObjectType.ITEM, result.item["stac_version"])
    properties = result.item["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"].startswith("1970-01-01")
    assert properties["geoseg:datetime_known"] is False
    assert "datetime" not in result.footprints


# --- laws


def test_tiles_change_nothing(tiny_model: Path, tmp_path: Path) -> None:
    """One tile for the scene, or tiles of one storage chunk: the same bytes."""
    scene = town(tmp_path / "town.tif", CHUNK + 6, CHUNK + 66)
    results = [
        geoseg.segment(
            scene, "buildings", tmp_path / str(tile), model=str(tiny_model), stride=62, tile=tile, min_area=1
        )
        for tile in (None, 512, CHUNK)
    ]
    assert len(results[0].footprints) > 20
    for result in results[1:]:
        assert everything(result) == everything(results[0])


def test_objects_that_touch_are_told_apart_on_the_same_labels(tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path / "town.tif", 300, 280)
    options = {"model": str(tiny_model), "min_area": 0, "simplify": 0}
    apart = geoseg.segment(scene, "buildings", tmp_path / "apart", **options)
    blocks = geoseg.segment(scene, "buildings", tmp_path / "blocks", separate=False, **options)
    np.testing.assert_array_equal(pixels(apart.folder / "labels.tif"), pixels(blocks.folder / "labels.tif"))
    assert len(apart.footprints) > len(blocks.footprints) > 1
    assert apart.footprints.union_all().equals(blocks.footprints.union_all())
    assert apart.footprints.area.sum() == pytest.approx(blocks.footprints.area.sum())  # no overlaps either
    score = apart._store["interior"]
    assert float(score.max()) <= 1
    assert float(score.std()) > 0.01
    assert apart.item["properties"]["geoseg:parameters"]["separation"] == [0.5, 1.0]
    assert blocks.item["properties"]["geoseg:parameters"]["separation"] is None


SHAPED = {"fill_holes": 3.0, "min_area": 2.0, "smooth": 0.9, "simplify": 0.2}


def test_footprints_are_shaped_as_any_label_raster_is(tiny_model: Path, tmp_path: Path) -> None:
    """The same polygons as `vectorize` makes of the labels, by the same lengths and areas, whatever the tiles."""
    scene, model = town(tmp_path / "town.tif", 300, 280), str(tiny_model)
    options = {"model": model, "separate": False, "stride": 40}
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", **options, **SHAPED)
    traced = trace(result.folder / "labels.tif", Shaping(**SHAPED))
    assert traced.counts[0].holes_filled > 5
    assert traced.counts[0].dropped > 5
    assert list(result.footprints["id"]) == list(traced.frame["id"])
    assert shapely.equals_exact(result.footprints.geometry.to_numpy(), traced.frame.geometry.to_numpy()).all()
    for name in SHAPED:  # and each of them has a say
        other = trace(result.folder / "labels.tif", Shaping(**{**SHAPED, name: 0.0})).frame
        assert not (len(other) == len(traced.frame) and other.geometry.geom_equals(traced.frame.geometry).all())
    tiled = geoseg.segment(scene, "buildings", tmp_path / "tiled", tile=100, **options, **SHAPED)
    assert everything(tiled) == everything(result)


def test_shaping_is_told_where_it_is_not_the_default(finished: Result, tiny_model: Path) -> None:
    """So that a folder from before there were such options is complete still; one pixel is what was always meant."""
    scene, out, model = finished.folder.parents[1] / "town.tif", finished.folder.parent, str(tiny_model)
    assert not {"fill_holes", "smooth", "regularise"} & set(finished.item["properties"]["geoseg:parameters"])
    pixel = math.prod(geoseg.open_scene(scene).ground_resolution) ** 0.5
    for same in ({"fill_holes": 0}, {"smooth": 0}, {"simplify": pixel}):
        assert plan(SegmentJob(scene, "buildings", out, model=model, **same)).complete
    for name, value, says in (
        ("fill_holes", 2, "fill_holes was not set, now 2.0"),
        ("smooth", 0.5, "smooth was not set, now 0.5"),
        ("simplify", 2 * pixel, r"simplify was 1.0, now 2.0"),
    ):
        with pytest.raises(OutputError, match=rf"holds results of another job \({says}\)"):
            geoseg.segment(scene, "buildings", out, model=model, **{name: value})
    for name in ("fill_holes", "smooth", "simplify"):
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')} -1: must be from 0"):
            geoseg.segment(scene, "buildings", out, model=model, **{name: -1})


def test_a_job_of_many_scenes_shapes_them_the_same(tmp_path: Path) -> None:
    told = {"product": "buildings", "scenes": {"files": ["*.tif"]}}
    asked = RunJob.model_validate(told | SHAPED).segment_job("town.tif", tmp_path, tmp_path, "all")
    assert {name: getattr(asked, name) for name in SHAPED} == SHAPED
    plain = RunJob.model_validate(told).segment_job("town.tif", tmp_path, tmp_path, "all")
    alone = SegmentJob("town.tif", "buildings", tmp_path)
    assert all(getattr(plain, name) == getattr(alone, name) for name in SHAPED)
    fields = RunJob.model_json_schema()["properties"]
    assert all("metres" in fields[name]["description"] for name in SHAPED)


@pytest.mark.parametrize(("tile", "batch"), [(64, 1), (100, 3), (192, 1)])
def test_small_tiles_and_batches_change_no_label(tile: int, batch: int, tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path / "town.tif", 170, 210)
    with chunks_of(64):
        options = {"model": str(tiny_model), "batch": batch}
        whole = geoseg.segment(scene, "buildings", tmp_path / "whole", **options)
        tiled = geoseg.segment(scene, "buildings", tmp_path / "tiled", tile=tile, **options)
    assert everything(tiled) == everything(whole)


def test_the_first_rows_are_read_while_the_model_is_loaded_and_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(
        SegmentJob(town(tmp_path / "town.tif", 170, 210), "buildings", tmp_path, str(tiny_model), backend="torch")
    )
    original, began, windows = planned.source.read, threading.Event(), []

    def read(window: Window) -> Raster:
        windows.append(window)
        began.set()
        return original(window)

    def model(backend: str) -> Predictor:
        assert began.wait(60)
        return Predictor(planned.model, "cpu", backend=backend)

    monkeypatch.setattr(planned.source, "read", read)
    run(planned, lambda _stage, _done, _total: None, model=model)
    assert [window.row_start for window in windows] == [0, *(window.row_stop for window in windows[:-1])]
    assert windows[-1].row_stop >= 170


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_files_get_the_memory_of_the_network(
    backend: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, alive = list[weakref.ref[Any]](), list[bool]()
    predictor, counts = Predictor.__init__, Exports.counts

    def loaded(self: Predictor, *args: Any, **options: Any) -> None:
        predictor(self, *args, **options)
        made.extend((weakref.ref(self), weakref.ref(self._predict.network)))

    def counted(self: Exports) -> Any:
        alive.extend(each() is not None for each in made)
        return counts(self)

    monkeypatch.setattr(Predictor, "__init__", loaded)
    monkeypatch.setattr(Exports, "counts", counted)
    scene = town(tmp_path / "town.tif", 170, 210)
    geoseg.segment(scene, "buildings", tmp_path, model=str(tiny_model), backend=backend)
    assert alive == [False, False]


class Stop:
    """An observer that presses Ctrl-C once so much of a stage is done."""

    def __init__(self, stage: str, share: float) -> None:
        self.stage, self.share, self.first = stage, share, {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.first.setdefault(stage, done)
        if stage == self.stage and done >= self.share * total:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stage", "share"), [("predicting", 0.3), ("predicting", 1.0), ("outlining", 0.5), ("writing", 0.7)]
)
def test_stopped_and_resumed_is_run_through(stage: str, share: float, tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path / "town.tif", 200, 150)
    with chunks_of(64):
        model = str(tiny_model)
        through = geoseg.segment(scene, "buildings", tmp_path / "through", model=model)
        with pytest.raises(KeyboardInterrupt):
            geoseg.segment(scene, "buildings", tmp_path / "stopped", model=model, observe=Stop(stage, share))
        folder = tmp_path / "stopped" / "town"
        assert not (folder / "item.json").exists()
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        watch = Stop("never", 1)
        resumed = geoseg.segment(scene, "buildings", tmp_path / "stopped", model=model, observe=watch)
    assert everything(resumed) == everything(through)
    assert resumed.item["properties"]["geoseg:counts"] == through.item["properties"]["geoseg:counts"]
    assert watch.first.get("predicting", 200 * 150) >= share * 200 * 150


def test_files_are_made_while_the_network_predicts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later row of chunks is predicted before the first one was outlined and copied into both rasters."""
    reached = {stage: threading.Event() for stage in ("outlining", "writing")}

    def observe(stage: str, done: int, total: int) -> None:
        if stage in reached and done >= (1 + (stage == "writing")) * 64 * 150:
            reached[stage].set()
        if stage == "predicting" and 0 < done < total:
            assert all(event.wait(60) for event in reached.values())

    scene = town(tmp_path / "town.tif", 200, 150)
    with chunks_of(64):
        with monkeypatch.context() as patched:
            patched.setattr("geoseg.export.AT_ONCE", (64, 40))
            followed = geoseg.segment(scene, "buildings", tmp_path / "a", model=str(tiny_model), observe=observe)
        plain = geoseg.segment(scene, "buildings", tmp_path / "b", model=str(tiny_model))
    assert everything(followed) == everything(plain)


def test_a_file_that_fails_costs_no_prediction(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is told, what was predicted stays, and the next run predicts nothing."""

    def refuse(path: Path, *_: Any) -> None:
        raise OutputError(f"{path}: no")

    scene, options = town(tmp_path / "town.tif", 200, 150), {"out": tmp_path / "maps", "model": str(tiny_model)}
    with chunks_of(64):
        with monkeypatch.context() as patched:
            patched.setattr("geoseg.export.write_cog", refuse)
            with pytest.raises(OutputError, match=r"confidence\.tif: no"):
                geoseg.segment(scene, "buildings", **options)
        watch = Stop("never", 1)
        resumed = geoseg.segment(scene, "buildings", observe=watch, **options)
        whole = geoseg.segment(scene, "buildings", tmp_path / "whole", model=str(tiny_model))
    assert set(watch.first) == {"outlining", "writing"}
    assert everything(resumed) == everything(whole)


KILLED = """
    import os, signal, sys
    import geoseg

    def observe(stage, done, total):
        if stage == "predicting" and done >= total / 3:
            os.kill(os.getpid(), signal.SIGKILL)

    scene, out, model = sys.argv[1:]
    geoseg.segment(scene, "buildings", out, model=model, observe=observe)
"""


def test_killed_and_resumed_is_run_through(tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path / "town.tif", 2600, 70)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(scene), str(tmp_path / "killed"), str(tiny_model)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    ledger = tmp_path / "killed" / "town" / "ledger.jsonl"
    assert not (ledger.parent / "item.json").exists()
    with ledger.open("ab") as stream:
        stream.write(b'{"window": [0, 51')  # as if it had been killed in the middle of a line
    model = str(tiny_model)
    through = geoseg.segment(scene, "buildings", tmp_path / "through", model=model)
    watch = Stop("never", 1)
    resumed = geoseg.segment(scene, "buildings", tmp_path / "killed", model=model, observe=watch)
    assert everything(resumed) == everything(through)
    assert watch.first["predicting"] >= 1024 * 70


def test_a_second_run_does_nothing(finished: Result, tiny_model: Path) -> None:
    def mtimes() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*")}

    before = mtimes()
    watch = Stop("never", 1)
    scene = finished.folder.parents[1] / "town.tif"
    again = geoseg.segment(scene, "buildings", finished.folder.parent, model=str(tiny_model), observe=watch, tile=512)
    assert again.folder == finished.folder
    assert mtimes() == before
    assert not watch.first


def test_another_job_is_refused_and_named(finished: Result, tiny_model: Path, tmp_path: Path) -> None:
    scene, out, model = finished.folder.parents[1] / "town.tif", finished.folder.parent, str(tiny_model)
    for options, says in (
        ({"threshold": 0.3}, "threshold was not set, now 0.3"),
        ({"min_area": 9}, "min_area was 4.0, now 9"),
        ({"stride": 40}, r"stride was \[48, 48\], now \[40, 40\]"),
    ):
        with pytest.raises(OutputError, match=rf"holds results of another job \({says}\); use --overwrite or another"):
            geoseg.segment(scene, "buildings", out, model=model, **options)
    other = town(tmp_path / "town.tif", 70, 70)
    with pytest.raises(OutputError, match=r"\(scene shape was \[150, 200\], now \[70, 70\]; scene bytes was \d+, now"):
        geoseg.segment(other, "buildings", out, model=model)
    assert {path.name for path in finished.folder.iterdir()} == FILES


def test_a_store_of_another_blend_is_not_continued(tiny_model: Path, tmp_path: Path) -> None:
    """A ledger from before scores had cells: its pixels are another definition's."""
    scene, out, model = town(tmp_path / "town.tif", 70, 90), tmp_path / "maps", str(tiny_model)
    ledger = geoseg.segment(scene, "buildings", out, model=model).folder / LEDGER
    first, _, rest = ledger.read_text("utf-8").partition("\n")
    entry = json.loads(first)
    del entry["job"]["cells"]
    ledger.write_text(json.dumps(entry) + "\n" + rest, "utf-8")
    with pytest.raises(OutputError, match=r"another job \(cells was not set, now \[16, 16\]\); use --overwrite"):
        geoseg.segment(scene, "buildings", out, model=model)


def test_the_garbage_collector_gets_everything_back(tiny_model: Path, tmp_path: Path) -> None:
    scene, frozen = town(tmp_path / "town.tif", 70, 90), []
    gc.unfreeze()  # a worker's work, tried in this process, leaves it frozen
    geoseg.segment(
        scene,
        "buildings",
        tmp_path / "maps",
        model=str(tiny_model),
        observe=lambda *_: frozen.append(gc.get_freeze_count()),
    )
    assert max(frozen) > 0
    assert gc.get_freeze_count() == 0


def test_overwrite_redoes_it(tiny_model: Path, tmp_path: Path) -> None:
    scene, out, model = town(tmp_path / "town.tif", 70, 90), tmp_path / "maps", str(tiny_model)
    first = everything(geoseg.segment(scene, "buildings", out, model=model))
    strict = geoseg.segment(scene, "buildings", out, model=model, threshold=0.99, overwrite=True)
    assert (pixels(strict.folder / "labels.tif") == 1).sum() < np.frombuffer(first[0], np.uint8).tolist().count(1)
    assert strict.item["properties"]["geoseg:parameters"]["threshold"] == 0.99
    assert everything(geoseg.segment(scene, "buildings", out, model=model, overwrite=True)) == first


def test_a_stopped_overwrite_is_not_taken_for_what_was_there(tiny_model: Path, tmp_path: Path) -> None:
    scene, out, model = town(tmp_path / "town.tif", 200, 150), tmp_path / "maps", str(tiny_model)
    with chunks_of(64):
        geoseg.segment(scene, "buildings", out, model=model)
        with pytest.raises(KeyboardInterrupt):
            geoseg.segment(scene, "buildings", out, model=model, overwrite=True, observe=Stop("predicting", 0.3))
        assert not (out / "town" / "item.json").exists()
        watch = Stop("never", 1)
        geoseg.segment(scene, "buildings", out, model=model, observe=watch)
    assert watch.first["predicting"] >= 0.3 * 200 * 150


def test_overwrite_destroys_nothing_where_the_job_cannot_be_done(tiny_model: Path, tmp_path: Path) -> None:
    scene, out, model = town(tmp_path / "town.tif", 70, 90), tmp_path / "maps", str(tiny_model)
    before = everything(geoseg.segment(scene, "buildings", out, model=model))
    with pytest.raises(OptionError, match="device"):
        geoseg.segment(scene, "buildings", out, model=model, overwrite=True, device="cuda:99")
    assert everything(Result(out / "town")) == before
    assert (out / "town" / "item.json").exists()


# --- resolution


@settings(max_examples=60)
@given(
    st.sampled_from([64, 128, 320, 512, 1024]),
    st.sampled_from(["deeplabv3plus", "unet", "fcn"]),
    st.floats(0.03, 1.1),
    st.floats(0.5, 2),
    st.integers(1, 1024),
)
def test_patch_and_stride_fit_the_scene(
    tiny_model: Path, side: int, architecture: str, resolution: float, oblong: float, stride: int
) -> None:
    model = dataclasses.replace(read_model(tiny_model), patch=side, stride=side // 4 * 3, architecture=architecture)
    ground, asked = (resolution, resolution * oblong), min(stride, side)
    assume(max(ground) < 1.1)
    target = min(max((ground[0] * ground[1]) ** 0.5, 0.1), 0.6)
    assume(target / min(ground) <= 10)
    assume(max(ground) / target <= 2)
    usual, given = patch_on_scene(model, ground), patch_on_scene(model, ground, asked)
    own = side // {"deeplabv3plus": 4, "unet": 1, "fcn": 16}[architecture]
    for patch, step, cells in (usual, given):
        tiling = Tiling((5000, 4000), patch, step, (5000, 4000), cells)  # refuses what does not fit
        for axis, along in zip(tiling.axes, ground, strict=True):
            exact = side * target / along
            nominal = abs(along / target - 1) < 0.2 and axis.patch == side
            assert nominal or abs(axis.patch - exact) <= exact * 0.01 + 0.5
            assert axis.cells in {min(own, axis.patch), axis.patch}
            wanted = (asked if (patch, step, cells) == given else model.stride) / side * axis.patch
            assert min(1, 0.8 * wanted - 1) <= axis.stride <= max(1, wanted)
    if min(usual[0]) >= 256:  # so large that a unit is small, and more so a pixel
        assert all(step / patch == pytest.approx(0.75, abs=0.004) for patch, step in zip(*usual[:2], strict=True))


def test_patch_and_stride_at_banepa(tiny_model: Path) -> None:
    """At its own resolution a cell is a whole number of pixels; at another, no more than a part of one away."""
    model = dataclasses.replace(read_model(tiny_model), patch=512, stride=384, resolution=(0.15, 0.6))
    assert patch_on_scene(model, (0.3, 0.3)) == ((512, 512), (384, 384), (128, 128))
    assert patch_on_scene(model, (0.13, 0.13)) == ((592, 592), (444, 444), (128, 128))
    assert patch_on_scene(model, (0.3, 0.3), 127)[1] == (124, 124)
    assert patch_on_scene(model, (0.13, 0.13), 100)[1] == (111, 111)  # 115.6 pixels, of units of 37
    assert patch_on_scene(model, (0.13, 0.13), 2) == ((591, 591), (2, 2), (591, 591))  # a unit would be too long


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32645", rasterio.Affine(0.05, 0, 334_000, 0, -0.05, 3_057_000)),
        ("EPSG:32645", rasterio.Affine(1.0, 0, 334_000, 0, -1.0, 3_057_000)),
        ("EPSG:4326", rasterio.Affine(3e-6, 0, 10.75, 0, -3e-6, 60.0)),
    ],
    ids=["fine", "coarse", "degrees"],
)
def test_a_resampled_scene_keeps_its_grid(
    crs: str, transform: rasterio.Affine, tiny_model: Path, tmp_path: Path
) -> None:
    values = picture(170, 210)
    scene = write_tif(tmp_path / "town.tif", values, crs=crs, transform=transform)
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model), min_area=0)
    patch, ground = result.item["properties"]["geoseg:parameters"]["patch"], geoseg.open_scene(scene).ground_resolution
    assert patch != [64, 64]
    assert patch[0] * ground[0] == pytest.approx(patch[1] * ground[1], rel=0.02)  # the network sees square pixels
    for name in ("labels.tif", "confidence.tif"):
        with rasterio.open(result.folder / name) as made:
            assert (made.transform, made.crs.to_string(), made.shape) == (transform, crs, (170, 210))
            assert (made.read(1) != 255).all()
    assert set(np.unique(pixels(result.folder / "labels.tif"))) == {0, 1}


def test_a_scene_out_of_reach_is_refused_with_both_numbers(tiny_model: Path, tmp_path: Path) -> None:
    coarse = rasterio.Affine(10, 0, 334_000, 0, -10, 3_057_000)
    scene = write_tif(tmp_path / "coarse.tif", picture(100, 100), transform=coarse)
    with pytest.raises(ModelError, match=r"coarse\.tif: its pixels are 10 x 10 m .*0\.1 to 0\.6 m"):
        geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model))
    assert not (tmp_path / "maps").exists()


# --- area of interest


def test_outside_of_the_area_is_nodata(tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture(150, 200))
    x, y = BANEPA @ (50, 40)
    area = gpd.GeoSeries([shapely.box(x, y - 0.3 * 60, x + 0.3 * 90, y)], crs=32645).to_crs(4326)
    area.to_file(tmp_path / "aoi.geojson")
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model), aoi=tmp_path / "aoi.geojson")
    labels = pixels(result.folder / "labels.tif")
    inside = np.zeros(labels.shape, bool)
    inside[40:100, 50:140] = True
    np.testing.assert_array_equal(labels == 255, ~inside)
    assert set(np.unique(labels[inside])) == {0, 1}
    assert result.footprints["touches_nodata"].any()
    digest = hashlib.sha256((tmp_path / "aoi.geojson").read_bytes()).hexdigest()
    assert result.item["properties"]["geoseg:parameters"]["aoi"] == digest


# --- views and vectorize


def test_views_are_lazy_and_say_the_same_as_the_files(finished: Result) -> None:
    labels, confidence = finished.labels, finished.confidence
    assert labels.chunks is not None
    assert (labels.dtype, labels.dims) == ("uint8", ("y", "x"))
    np.testing.assert_array_equal(labels.to_numpy(), pixels(finished.folder / "labels.tif"))
    assert labels.odc.geobox == GeoBox((150, 200), BANEPA, 32645)
    steps = pixels(finished.folder / "confidence.tif").astype(float)
    np.testing.assert_allclose(confidence.to_numpy(), np.where(steps == 255, np.nan, steps / 250), rtol=1e-6)
    assert finished.footprints.crs.to_epsg() == 32645


def test_vectorize_is_exact_and_names_the_classes(finished: Result) -> None:
    labels = pixels(finished.folder / "labels.tif")
    of_file = geoseg.vectorize(finished.folder / "labels.tif")
    of_view = geoseg.vectorize(finished.labels)
    back = rasterio.features.rasterize(of_file.geometry, labels.shape, transform=BANEPA, dtype="uint8")
    np.testing.assert_array_equal(back == 1, labels == 1)
    assert of_file.geometry.equals(of_view.geometry)
    assert set(of_view["class"]) == {"building"}
    assert set(of_file["class"]) == {"building"}
    assert set(geoseg.vectorize(str(finished.folder / "labels.tif"), classes={1: "roof"})["class"]) == {"roof"}
    every = geoseg.vectorize(finished.labels, background=None)
    assert every.geometry.area.sum() == pytest.approx((labels != 255).sum() * 0.09)
    large = geoseg.vectorize(finished.labels, min_area=50)
    assert list(large["id"]) == [i for i, a in zip(of_view["id"], of_view["area_m2"], strict=True) if a >= 50]


def test_vectorize_refuses_what_is_no_label_raster(finished: Result, tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"rgb\.tif: a label raster has one band, this has 3 of uint8"):
        geoseg.vectorize(write_tif(tmp_path / "rgb.tif", picture(20, 20)))
    with pytest.raises(SceneError, match="must be uint8"):
        geoseg.vectorize(finished.confidence)
    with pytest.raises(SceneError, match="with a CRS"):
        geoseg.vectorize(xr.DataArray(np.zeros((4, 4), np.uint8), dims=("y", "x")))


# --- the front door


def test_the_public_names() -> None:
    assert geoseg.__all__ == [
        *(
            "Change",
            "Evaluation",
            "Result",
            "change",
            "evaluate",
            "explore",
            "open_scene",
            "report",
            "review",
            "segment",
        ),
        "vectorize",
    ]
    assert all(callable(getattr(geoseg, name)) for name in geoseg.__all__)
    assert dir(geoseg) == sorted(geoseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = geoseg.nothing


def test_importing_costs_nothing() -> None:
    code = "import geoseg, sys; print(sorted({'torch', 'rasterio', 'numpy', 'geopandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_mapping_imports_no_statistics() -> None:
    """`scipy.signal` brings them along, for a second of every start: only what finds clouds wants it."""
    code = "import geoseg.pipeline, sys; print(sorted({'scipy.stats', 'scipy.signal'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_scene_object_is_a_scene(tiny_model: Path, tmp_path: Path) -> None:
    scene = geoseg.open_scene(town(tmp_path / "town.tif", 60, 60))
    result = geoseg.segment(scene, "buildings", out=tmp_path / "maps", model=str(tiny_model))
    assert json.loads((result.folder / "item.json").read_text("utf-8"))["id"] == "town"
    assert plan(SegmentJob(scene.path, "buildings", tmp_path / "maps", model=str(tiny_model))).complete


def test_an_item_across_the_antimeridian_is_cut_there(tmp_path: Path, tiny_model: Path) -> None:
    """RFC 7946, sections 3.1.9 and 5.2."""
    place = rasterio.Affine(3e-6, 0, 179.9998, 0, -3e-6, -17)
    path = write_tif(tmp_path / "a.tif", np.full((3, 80, 150), 90, np.uint8), "EPSG:4326", place)
    item = geoseg.segment(path, "buildings", tmp_path / "out", model=str(tiny_model)).item
    assert item["bbox"] == [179.9998, -17.00024, -179.99975, -17.0]
    assert item["geometry"]["type"] == "MultiPolygon"
    assert len(item["geometry"]["coordinates"]) == 2


def test_a_scene_that_holds_a_pole_is_mapped(tmp_path: Path, tiny_model: Path) -> None:
    values = np.random.default_rng(1).integers(1, 255, (3, 150, 170)).astype(np.uint8)
    path = write_tif(tmp_path / "a.tif", values, "EPSG:3413", rasterio.Affine(0.3, 0, -20, 0, -0.3, 20))
    result = geoseg.segment(path, "buildings", tmp_path / "out", model=str(tiny_model), min_area=0)
    west, south, east, north = result.item["bbox"]
    assert (west, east, north) == (-180, 180, 90)
    assert 89.99 < south < 90
    shapes = gpd.read_file(result.folder / "footprints.geojson")
    assert len(shapes) == len(result.footprints)
    assert shapes.is_valid.all()


def test_footprints_in_further_formats(tiny_model: Path, tmp_path: Path) -> None:
    """They are in the item, the same polygons; they come with a later run that asks for them, and go with another."""
    scene, out, model = town(tmp_path / "town.tif", 70, 90), tmp_path / "maps", str(tiny_model)
    with pytest.raises(OptionError, match=r"footprints\.shp: its suffix stands for no format; choose one of"):
        geoseg.segment(scene, "buildings", out, model=model, formats=["shp"])
    assert not out.exists()
    first = geoseg.segment(scene, "buildings", out, model=model)
    before = (first.folder / LEDGER).stat().st_size
    asked = ["gpkg", ".FGB", "geojson", "geojsonl", "pmtiles", "coco.json"]
    result = geoseg.segment(scene, "buildings", out, model=model, formats=asked)
    assert (result.folder / LEDGER).stat().st_size == before, "nothing was predicted again"
    assets = result.item["assets"]
    for suffix in ("gpkg", "fgb", "geojsonl", "pmtiles", "coco.json"):
        asset = assets["footprints_" + suffix.replace(".", "_")]
        path = result.folder / asset["href"]
        assert path.name == f"footprints.{suffix}"
        assert asset["file:checksum"] == MULTIHASH_SHA256 + sha256_of(path)
        assert asset["type"].startswith("application/")
    assert {name for name in assets if name.startswith("footprints")} >= {"footprints", "footprints_parquet"}
    kept = result.footprints
    for suffix in ("gpkg", "fgb", "geojsonl"):
        back = read_layer(result.folder / f"footprints.{suffix}").set_index("id").loc[kept["id"]]
        assert len(back) == len(kept) > 0
        assert set(back.columns) == set(kept.columns) - {"id"}
        assert back["edge_sharpness"].to_numpy() == pytest.approx(kept["edge_sharpness"].to_numpy(), nan_ok=True)
    assert plan(SegmentJob(scene, "buildings", out, model, formats=("gpkg",))).complete
    again = geoseg.segment(scene, "buildings", out, model=model, overwrite=True)
    assert {path.name for path in again.folder.iterdir()} == FILES


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_coco_names_the_image_whose_pixels_it_is_told_in(tiny_model: Path, tmp_path: Path) -> None:
    """The scene that was mapped, as those who train look for it; on another grid the labels are the only such image."""
    scene, model = town(tmp_path / "imagery" / "town.tif", 70, 90), str(tiny_model)
    plain = geoseg.segment(scene, "buildings", tmp_path / "maps", model=model, formats=["coco.json"])
    other = geoseg.segment(
        scene, "buildings", tmp_path / "other", model=model, formats=["coco.json"], resolution=0.4, min_area=0
    )
    done = CliRunner().invoke(
        cli, ["vectorize", str(plain.folder / "labels.tif"), "--out", str(plain.folder / "again.coco.json")]
    )
    assert done.exit_code == 0, done.output
    for path, image in (
        (plain.folder / "footprints.coco.json", scene),
        (plain.folder / "again.coco.json", scene),
        (other.folder / "footprints.coco.json", other.folder / "labels.tif"),
    ):
        coco = COCO(path)
        (told,) = coco.loadImgs(coco.getImgIds())
        with rasterio.open(image.parent / told["file_name"]) as dataset:
            assert (dataset.name, dataset.shape) == (str(image), (told["height"], told["width"]))
        with rasterio.open(path.with_name("labels.tif")) as dataset:
            labels = dataset.read(1)
        masks = [coco.annToMask(each).astype(bool) for each in coco.loadAnns(coco.getAnnIds())]
        assert len(masks) > 0
        assert labels[np.any(masks, axis=0)].mean() > 0.8, "they lie where the labels are"


def test_no_footprints_are_files_in_every_format(tiny_model: Path, tmp_path: Path) -> None:
    scene = town(tmp_path / "town.tif", 70, 90)
    options = {"model": str(tiny_model), "min_area": 1e6, "formats": ["gpkg", "fgb", "pmtiles", "coco.json", "ndjson"]}
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", **options)
    assert result.item["properties"]["geoseg:counts"]["footprints"] == 0
    assert len(list(result.folder.glob("footprints.*"))) == 7


def test_footprints_name_their_model(finished: Result) -> None:
    assert set(finished.footprints["model"]) == {finished.item["properties"]["geoseg:parameters"]["model"]["name"]}
    columns = ["confidence", "confidence_min", "edge_sharpness", "touches_nodata", "touches_edge"]
    assert [name for name in finished.footprints.columns if name in {*columns}] == columns
    assert (finished.footprints["confidence_min"] <= finished.footprints["confidence"]).all()
    sharp = finished.footprints["edge_sharpness"]
    assert sharp.dropna().between(0, 1).all()
    assert sharp.isna().sum() <= 1, "one that has other houses on all sides"
