"""`geoseg run` in one process: what is mapped, what is told, what is done again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import stac_geoparquet.arrow
from conftest import BANEPA, chunks_of, write_tif
from pystac.validation import JsonSchemaSTACValidator

from geoseg.archive import RunJob, RunReport, plan_archive, run_archive
from geoseg.audit import verify
from geoseg.errors import ModelError, OptionError, OutputError
from geoseg.io.store import entries_of
from geoseg.jobs import read_job
from geoseg.records import alone_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WORKFLOWS = Path(__file__).parents[1] / "workflows"


def picture(rows: int, cols: int, seed: int = 1) -> NDArray[np.uint8]:
    """Blocks and noise: of what the tiny model makes both classes."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((3, -(-rows // 8), -(-cols // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :cols]
    return (blocks * 180 + rng.random((3, rows, cols)) * 75).astype(np.uint8)


def scene(path: Path, seed: int = 1, rows: int = 130, cols: int = 90, date: str | None = None) -> Path:
    """A scene with a hole, beside the one of another seed."""
    values = picture(rows, cols, seed)
    values[:, rows // 3 : rows // 2, cols // 2 :] = 0
    place = BANEPA @ rasterio.Affine.translation(seed * 200, 0)
    write_tif(path, values, nodata=0, transform=place)
    if date is not None:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=date)
    return path


def job_of(model: Path, files: list[Any], **options: Any) -> RunJob:
    return RunJob.model_validate(
        {"product": "buildings", "model": str(model), "scenes": {"files": files}, "min_area": 1, **options}
    )


def carry_out(job: RunJob, data: Path, **options: Any) -> RunReport:
    return run_archive(plan_archive(job, data, **options))


def results(folder: Path) -> dict[str, bytes]:
    """All of a scene's results that must not depend on how a run went."""
    names = ("labels.tif", "confidence.tif", "footprints.geojson", "footprints.parquet")
    kept = {name: (folder / name).read_bytes() for name in names}
    for path in sorted((folder / "result.zarr").rglob("*")):
        if path.is_file():
            kept[str(path.relative_to(folder))] = path.read_bytes()
    return kept


def states(job: RunJob, data: Path, **options: Any) -> dict[str, str]:
    return {entry.order.scene.id: entry.state for entry in plan_archive(job, data, **options).entries}


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunJob, RunReport]:
    """A run over two good scenes and three bad ones; not to be changed."""
    data = tmp_path_factory.mktemp("finished")
    scene(data / "in" / "a.tif", 1, date="2022:07:25 10:11:12")
    scene(data / "in" / "b.tif", 2, date="2023:07:25 10:11:12")
    write_tif(data / "in" / "coarse.tif", picture(80, 80), transform=rasterio.Affine(9, 0, 334_000, 0, -9, 3_057_000))
    (data / "in" / "text.tif").write_text("no raster", encoding="utf-8")
    job = job_of(tiny_model, ["in/*.tif", "in/gone.tif"], title="Two towns")
    return data, job, carry_out(job, data)


# --- what a run leaves


def test_good_scenes_are_mapped_and_bad_ones_told(finished: tuple[Path, RunJob, RunReport]) -> None:
    data, _, report = finished
    assert (report.done, report.kept, report.pixels) == (2, 0, 2 * 130 * 90)
    assert {path.name for path in (data / "maps").iterdir()} == {
        *("a", "b", "collection.json", "items.parquet", "failed.geojson", "run.json", ".lock")
    }
    why = {failure.scene: failure.why for failure in report.failures}
    assert set(why) == {"coarse", "text", "gone"}
    assert "its pixels are 9 x 9 m" in why["coarse"]
    assert "text.tif: cannot be read as a raster" in why["text"]
    assert "gone.tif: there is no such file" in why["gone"]
    features = json.loads((data / "maps" / "failed.geojson").read_text("utf-8"))["features"]
    assert {feature["properties"]["scene"]: feature["properties"]["why"] for feature in features} == why
    assert {"read", "forward", "blend", "write"} <= set(report.seconds)
    assert 0 < report.forward_share < 1
    assert report.footprints == sum(len(gpd.read_parquet(data / "maps" / n / "footprints.parquet")) for n in "ab") > 10


def test_the_results_are_a_valid_collection_whose_links_resolve(finished: tuple[Path, RunJob, RunReport]) -> None:
    data, _, _ = finished
    out = data / "maps"
    content = json.loads((out / "collection.json").read_text("utf-8"))
    validator = JsonSchemaSTACValidator()
    validator.validate_core(content, pystac.STACObjectType.COLLECTION, content["stac_version"])
    collection = pystac.Collection.from_file(str(out / "collection.json"))
    assert collection.title == "Two towns"
    items = {item.id: item for item in collection.get_items()}
    assert set(items) == {"a", "b"}
    assert [t.isoformat()[:4] for t in collection.extent.temporal.intervals[0] if t] == ["2022", "2023"]
    for name, item in items.items():
        raw = json.loads((out / name / "item.json").read_text("utf-8"))
        validator.validate_core(raw, pystac.STACObjectType.ITEM, raw["stac_version"])
        assert item.collection_id == collection.id
        assert (
            collection.extent.spatial.bboxes[0][0]
            <= item.bbox[0]
            < item.bbox[2]
            <= collection.extent.spatial.bboxes[0][2]
        )
        for link in raw["links"]:
            assert (out / name / link["href"]).exists(), link
        rels = [link["rel"] for link in raw["links"]]
        assert sorted(rels) == ["collection", "derived_from", "derived_from", "parent", "root"]
        parent = next(link["href"] for link in raw["links"] if link["rel"] == "collection")
        assert (out / name / parent).resolve() == (out / "collection.json").resolve()


def test_the_index_says_the_same_as_the_items(finished: tuple[Path, RunJob, RunReport]) -> None:
    import pyarrow.parquet as pq

    out = finished[0] / "maps"
    index = list(stac_geoparquet.arrow.stac_table_to_items(pq.read_table(out / "items.parquet")))
    assert [item["id"] for item in index] == ["a", "b"]
    for item in index:
        own = json.loads((out / item["id"] / "item.json").read_text("utf-8"))
        assert item["properties"]["geoseg:counts"] == own["properties"]["geoseg:counts"]
        for key, asset in item["assets"].items():
            assert (out / asset["href"]).samefile(out / item["id"] / own["assets"][key]["href"])
        assert all((out / link["href"]).exists() for link in item["links"])


def test_one_scene_is_mapped_as_segment_does(
    finished: tuple[Path, RunJob, RunReport], tiny_model: Path, tmp_path: Path
) -> None:
    import geoseg

    data, _, _ = finished
    alone = geoseg.segment(data / "in" / "a.tif", "buildings", tmp_path, model=str(tiny_model), min_area=1)
    assert results(alone.folder) == results(data / "maps" / "a")


# --- what is done again


def test_the_second_run_does_nothing(finished: tuple[Path, RunJob, RunReport]) -> None:
    data, job, _ = finished
    before = {path: path.stat().st_mtime_ns for name in "ab" for path in (data / "maps" / name).rglob("*")}
    assert states(job, data) == {"a": "complete", "b": "complete"}
    again = carry_out(job, data)
    assert (again.done, again.kept, again.pixels, len(again.failures)) == (0, 2, 0, 3)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_only_what_has_changed_is_done_again(tiny_model: Path, tmp_path: Path) -> None:
    scene(tmp_path / "a.tif", 1)
    scene(tmp_path / "b.tif", 2)
    job = job_of(tiny_model, ["*.tif"])
    assert carry_out(job, tmp_path).done == 2
    kept = results(tmp_path / "maps" / "a")
    untouched = (tmp_path / "maps" / "a" / "item.json").stat().st_mtime_ns
    old = results(tmp_path / "maps" / "b")
    size = (tmp_path / "b.tif").stat().st_size
    scene(tmp_path / "b.tif", 3)
    assert (tmp_path / "b.tif").stat().st_size == size  # only its time and pixels tell
    assert states(job, tmp_path) == {"a": "complete", "b": "changed"}
    report = carry_out(job, tmp_path)
    assert (report.done, report.kept, report.pixels) == (1, 1, 130 * 90)
    assert results(tmp_path / "maps" / "a") == kept
    assert (tmp_path / "maps" / "a" / "item.json").stat().st_mtime_ns == untouched
    assert results(tmp_path / "maps" / "b") != old
    strict = job.model_copy(update={"threshold": 0.9})
    assert set(states(strict, tmp_path).values()) == {"changed"}
    assert set(states(job, tmp_path, overwrite=True).values()) == {"changed"}
    (tmp_path / "c.tif").write_bytes((tmp_path / "a.tif").read_bytes())
    (tmp_path / "maps" / "a" / "labels.tif").unlink()
    assert states(job, tmp_path) == {"a": "begun", "b": "complete", "c": "new"}
    report = carry_out(job, tmp_path)
    assert (report.done, report.kept, report.pixels) == (2, 1, 130 * 90)  # of a, only the files were missing
    assert results(tmp_path / "maps" / "a") == kept


def test_results_are_no_scenes(tiny_model: Path, tmp_path: Path) -> None:
    """Although they lie below the folder that is searched for scenes."""
    scene(tmp_path / "a.tif")
    job = job_of(tiny_model, ["**/*.tif"])
    assert carry_out(job, tmp_path).done == 1
    assert (tmp_path / "maps" / "a" / "labels.tif").exists()
    assert states(job, tmp_path) == {"a": "complete"}


# --- what goes wrong on the way


def cut(path: Path) -> None:
    """Lose the last quarter of a file's pixels, its header staying whole; its time stays, too."""
    state = path.stat()
    with path.open("r+b") as stream:
        stream.seek(state.st_size * 3 // 4)
        stream.write(bytes(state.st_size - state.st_size * 3 // 4))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_damaged_scene_fails_alone_and_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.tif", "b.tif", "c.tif"), 1):
        write_tif(tmp_path / name, picture(200, 90, seed), compress="deflate", blockysize=8)
    job = job_of(tiny_model, ["?.tif"], tile=64)
    with chunks_of(64):
        carry_out(job, tmp_path, out=tmp_path / "through")
        good = (tmp_path / "b.tif").read_bytes(), (tmp_path / "b.tif").stat().st_mtime_ns
        cut(tmp_path / "b.tif")
        report = carry_out(job, tmp_path)
        assert (report.done, [failure.scene for failure in report.failures]) == (2, ["b"])
        assert "b.tif: rows" in report.failures[0].why
        failed = [entry for entry in entries_of(tmp_path / "maps" / "b") if "failed" in entry]
        assert failed
        assert "damaged" in failed[0]["why"]
        assert not (tmp_path / "maps" / "b" / "item.json").exists()
        assert {i["properties"]["scene"] for i in _features(tmp_path / "maps")} == {"b"}
        before = sum("tile" in entry for entry in entries_of(tmp_path / "maps" / "b"))
        assert before > 0
        (tmp_path / "b.tif").write_bytes(good[0])
        os.utime(tmp_path / "b.tif", ns=(good[1], good[1]))
        again = carry_out(job, tmp_path)
        assert (again.done, again.kept, again.failures) == (1, 2, ())
        assert 0 < again.pixels < 200 * 90
        for name in "abc":
            assert results(tmp_path / "maps" / name) == results(tmp_path / "through" / name)
    assert not (tmp_path / "maps" / "failed.geojson").exists()


def _features(out: Path) -> list[dict[str, Any]]:
    features: list[dict[str, Any]] = json.loads((out / "failed.geojson").read_text("utf-8"))["features"]
    return features


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_scene_that_is_not_what_was_planned_fails_alone(change: str, tiny_model: Path, tmp_path: Path) -> None:
    scene(tmp_path / "a.tif", 1)
    scene(tmp_path / "b.tif", 2)
    planned = plan_archive(job_of(tiny_model, ["*.tif"]), tmp_path)
    if change == "gone":
        (tmp_path / "a.tif").unlink()
    else:
        scene(tmp_path / "a.tif", 3)
    report = run_archive(planned)
    assert (report.done, [f.scene for f in report.failures]) == (1, ["a"])
    says = {"gone": "is not there any more", "other": "has changed since the run was planned"}
    assert says[change] in report.failures[0].why
    assert not (tmp_path / "maps" / "a" / "item.json").exists()


def test_a_read_that_fails_now_and_then_is_tried_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg.io.scenes import GdalSource

    scene(tmp_path / "a.tif")
    job = job_of(tiny_model, ["a.tif"])
    carry_out(job, tmp_path, out=tmp_path / "through")
    monkeypatch.setattr("geoseg.work.WAITS", (0.01, 0.01))
    honest, calls = GdalSource._read_file, []

    def flaky(self: GdalSource, window: Any) -> Any:
        calls.append(window)
        if len(calls) % 3:
            raise rasterio.errors.RasterioIOError("timeout")
        assert self._dataset is None or len(calls) == 3  # it was opened anew
        return honest(self, window)

    monkeypatch.setattr(GdalSource, "_read_file", flaky)
    assert not carry_out(job, tmp_path).failures
    assert len(calls) > 3
    assert results(tmp_path / "maps" / "a") == results(tmp_path / "through" / "a")


def test_a_device_that_is_too_small_gets_fewer_patches(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg.models.weights import NetworkPredict
    from geoseg.predict import OutOfMemory

    scene(tmp_path / "a.tif")
    honest, sizes = NetworkPredict.__call__, []

    def small(self: NetworkPredict, patches: Any, cells: Any) -> Any:
        sizes.append(len(patches))
        if len(patches) > 2:
            raise OutOfMemory("CUDA out of memory")
        return honest(self, patches, cells)

    monkeypatch.setattr(NetworkPredict, "__call__", small)
    carry_out(job_of(tiny_model, ["a.tif"], batch=2), tmp_path, out=tmp_path / "two")
    sizes.clear()
    report = carry_out(job_of(tiny_model, ["a.tif"], batch=9), tmp_path)
    assert not report.failures
    assert set(sizes) == {9, 4, 2}
    assert results(tmp_path / "maps" / "a") == results(tmp_path / "two" / "a")
    item = json.loads((tmp_path / "maps" / "a" / "item.json").read_text("utf-8"))
    assert item["properties"]["geoseg:parameters"]["batch"] == 2


def test_two_runs_do_not_meet_in_one_folder(tiny_model: Path, tmp_path: Path) -> None:
    scene(tmp_path / "a.tif")
    planned = plan_archive(job_of(tiny_model, ["a.tif"]), tmp_path)
    assert not (tmp_path / "maps").exists()  # a plan writes nothing
    (tmp_path / "maps").mkdir()
    with alone_in(tmp_path / "maps"), pytest.raises(OutputError, match="another run is at work here"):
        run_archive(planned)
    assert run_archive(planned).done == 1


# --- jobs


def test_the_shipped_jobs_are_jobs() -> None:
    for name, product in (("buildings", "buildings"), ("landcover", "landcover")):
        assert read_job(WORKFLOWS / f"{name}.yaml", RunJob).product == product


def test_every_key_is_documented() -> None:
    schema = RunJob.model_json_schema()
    for name, part in (("RunJob", schema), *schema["$defs"].items()):
        for key, field in part["properties"].items():
            assert key == "product" or len(field.get("description", "")) > 10, f"{name}.{key}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["stride=400", "stride=300"], "--set stride=300: stride=400 is given, too; leave one of them out"),
        (["bands={red: 1, red: 2}"], "value is no YAML"),
        (["treshold=0.4"], "treshold is not a key of this job; did you mean threshold?"),
        (["scenes.file=[a.tif]"], "scenes.file is not a key of this job; did you mean files?"),
        (["scenes={}"], "files, catalogs or search must say where scenes come from"),
        (["scenes.allow=[ftp]"], r"scenes.allow.0: should be 'http', 'https'"),
        (["threshold=3"], "threshold: should be less than or equal to 1, got 3$"),
        (["change={cut: often}"], "change.cut: should be 'triangle', 'otsu' or 'kittler' or a number, got 'often'$"),
        (["change={cut: 0}"], "change.cut: should be 'triangle', 'otsu' or 'kittler' or greater than 0, got 0$"),
        (["change={pairs: [5]}"], "change.pairs.0: should be a list, got 5$"),
        (["nodata=x", "crs=[1]"], r"nodata: should be a number or a list, got 'x'; crs: should be a text or a whole "),
        (['scenes.files=[{href: a.tif, id: "../a"}]'], "id: string should match pattern"),
    ],
)
def test_a_job_that_is_not_right_is_told(settings: list[str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        read_job(WORKFLOWS / "buildings.yaml", RunJob, settings)


def test_a_job_says_each_thing_once(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("product: buildings\nscenes: {files: [a.tif]}\nbands: {red: 1, green: 2, red: 3}\n")
    with pytest.raises(OptionError, match=r"job\.yaml: .*red comes twice; leave one of them out; .*line 3"):
        read_job(path, RunJob)
    path.write_text("product: buildings\nscenes: &s {files: [a.tif]}\n<<: {stride: 9, batch: 2}\nstride: 8\n")
    assert (read_job(path, RunJob).stride, read_job(path, RunJob).batch) == (8, 2), "what YAML itself calls a default"


def test_what_concerns_all_scenes_ends_the_plan(tiny_model: Path, tmp_path: Path) -> None:
    scene(tmp_path / "a.tif")
    with pytest.raises(ModelError, match="no model named 'none'"):
        plan_archive(job_of(Path("none"), ["a.tif"]), tmp_path)
    with pytest.raises(OptionError, match=r"no\.gpkg: there is no such file"):
        plan_archive(job_of(tiny_model, ["a.tif"], aoi="no.gpkg"), tmp_path)
    with pytest.raises(OptionError, match="device"):
        plan_archive(job_of(tiny_model, ["a.tif"], device="cuda:99"), tmp_path)


# --- the command


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`geoseg` in this process: status, output and errors."""
    import sys

    from geoseg.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoseg", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


def test_the_command_maps_and_tells(
    command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    scene(tmp_path / "data" / "a.tif")
    options = ("--data", tmp_path / "data", "--out", tmp_path / "out", "--set", f"model={tiny_model}")
    call = ("run", WORKFLOWS / "buildings.yaml", *options)
    status, out, err = command(*call, "--log-json", tmp_path / "log.jsonl")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("1 scenes mapped, 0 were there already, 0 failed; ")
    told = re.fullmatch(r"Raster: (\d+) pixels of objects, (\d+) m2; layer: (\d+) footprints, (\d+) m2\.", lines[1])
    assert told is not None
    with rasterio.open(tmp_path / "out" / "a" / "labels.tif") as labels:
        pixels, ground = int((labels.read(1) == 1).sum()), abs(labels.transform.determinant)
    frame = gpd.read_parquet(tmp_path / "out" / "a" / "footprints.parquet")
    assert [int(told[1]), int(told[3]), int(told[4])] == [pixels, len(frame), round(frame["area_m2"].sum())]
    assert int(told[2]) == pytest.approx(pixels * ground, rel=0.01, abs=1)
    assert [line.split()[0] for line in lines[2:7]] == ["stage", "read", "forward", "blend", "write"]
    assert "megapixels per second; forward passes are" in lines[-2]
    assert lines[-1] == str(tmp_path / "out" / "collection.json")
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [event["event"] for event in events] == ["scene begun", "scene done"]
    assert all(event["scene"] == "a" and event["time"] for event in events)
    status, out, err = command(*call)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].startswith("0 scenes mapped, 1 were there already, 0 failed; ")
    (tmp_path / "data" / "bad.tif").write_text("nothing", encoding="utf-8")
    status, out, err = command(*call)
    assert status == 3
    assert "Failed: bad: " in err
    assert out.splitlines()[-1] == str(tmp_path / "out" / "failed.geojson")


def test_the_schema_is_printed(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = command("run", "--schema")
    assert (status, err) == (0, "")
    assert json.loads(out) == RunJob.model_json_schema()
    assert command("run")[0] == 2


def test_bars_tell_how_many_are_done_and_failed(tiny_model: Path, tmp_path: Path) -> None:
    """On a terminal, as rich takes it for one."""
    for name in ("a", "b"):
        write_tif(tmp_path / f"{name}.tif", picture(70, 90), photometric="RGB")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:9000])
    job = RunJob.model_validate({"product": "buildings", "model": str(tiny_model), "scenes": {"files": ["*.tif"]}})
    (tmp_path / "job.yaml").write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    command = [sys.executable, "-m", "geoseg", "run", str(tmp_path / "job.yaml")]
    ended = subprocess.run(
        command, env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "160"}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3, ended.stderr
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", ended.stderr)
    assert "2 of 3 scenes, 1 failed" in plain


def test_jobs_write_further_formats_and_verify_proves_them(tiny_model: Path, tmp_path: Path) -> None:
    scene(tmp_path / "a.tif")
    assert carry_out(job_of(tiny_model, ["a.tif"]), tmp_path).done == 1
    job = job_of(tiny_model, ["a.tif"], formats=["gpkg", "pmtiles"])
    plan = plan_archive(job, tmp_path)
    assert [entry.state for entry in plan.entries] == ["begun"]
    assert run_archive(plan).done == 1
    assert verify(tmp_path / "maps").findings == ()
    assert plan_archive(job, tmp_path).pending == ()
    path = tmp_path / "maps" / "a" / "footprints.gpkg"
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    ((_, what),) = verify(tmp_path / "maps").findings
    assert what == "./footprints.gpkg: its checksum is not that of its item; it was changed or damaged"
    path.unlink()
    ((_, what),) = verify(tmp_path / "maps").findings
    assert what == "is not complete"
    with pytest.raises(OptionError, match=r"footprints\.shp: its suffix stands for no format"):
        job_of(tiny_model, ["a.tif"], formats=["shp"])
