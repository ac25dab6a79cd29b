"""Pairs of an archive's scenes: which are compared, by whom, and what a run leaves of it."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import pytest
import rasterio
from conftest import BANEPA, write_tif
from pystac.validation import JsonSchemaSTACValidator
from test_cli import command  # noqa: F401  # a fixture

import geoseg
from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.audit import verify
from geoseg.changes.by_series import SeriesJob, open_series
from geoseg.changes.pair import run_change
from geoseg.changes.planned import job_of as change_job
from geoseg.changes.planned import plan_change
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.records import alone_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def scene(folder: Path, year: int | None, name: str, seed: int = 1, aside: int = 0, rows: int = 110) -> Path:
    """Blocks and noise with a middle of its own, so many pixels aside."""
    rng = np.random.default_rng(4)
    coarse = rng.random((3, 14, 18)).repeat(8, 1).repeat(8, 2)[:, :rows, :140] * 180
    values = (coarse + rng.random(coarse.shape) * 75).astype(np.uint8)
    middle = np.random.default_rng(seed).random((3, 6, 8)).repeat(8, 1).repeat(8, 2) * 240
    values[:, 30:78, 40:104] = middle.astype(np.uint8)
    path = write_tif(folder / f"{name}.tif", values, transform=BANEPA @ rasterio.Affine.translation(aside, 0))
    if year is not None:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"{year}:07:25 10:11:12")
    return path


@pytest.fixture
def imagery(tmp_path: Path) -> Path:
    """Three dates of one place, two of another, and one that has no partner."""
    folder = tmp_path / "imagery"
    for number, year in enumerate((2015, 2019, 2024)):
        scene(folder, year, f"town-{year}", number)
    scene(folder, 2016, "hill-2016", 5, 5000)
    scene(folder, 2020, "hill-2020", 6, 5030)
    scene(folder, 2020, "lake-2020", 7, 9000)
    return folder


def job(model: Path, change: dict[str, Any] | None = None, **options: Any) -> RunJob:
    values = {"product": "buildings", "model": str(model), "scenes": {"files": ["*.tif"]}, "change": change or {}}
    return RunJob.model_validate(values | options)


def pairs(wanted: RunJob, imagery: Path) -> list[str]:
    return [pair.id for pair in plan_archive(wanted, imagery).pairs]


def test_pairs_are_found_by_place_and_date(tiny_model: Path, imagery: Path) -> None:
    previous = ["hill-2016--hill-2020", "town-2015--town-2019", "town-2019--town-2024"]
    assert sorted(pairs(job(tiny_model), imagery)) == previous
    first = job(tiny_model, {"rule": "first"})
    assert sorted(pairs(first, imagery)) == [*previous[:2], "town-2015--town-2024"]
    assert "hill-2016--hill-2020" not in pairs(job(tiny_model, {"overlap": 0.9}), imagery)
    # by name, in whatever order
    named = {"pairs": [["town-2024", "town-2015"]]}
    assert pairs(job(tiny_model, named), imagery) == ["town-2024--town-2015"]
    (fault,) = plan_archive(job(tiny_model, {"pairs": [["town-2015", "moon"]]}), imagery).faults
    assert (fault.name, fault.why) == (
        "town-2015--moon",
        "change.pairs: moon is none of the scenes that can be mapped",
    )
    with pytest.raises(OptionError, match=r"no two of the scenes have a date each .*pairs: \[\[then, now\]\]"):
        plan_archive(job(tiny_model, scenes={"files": ["lake*.tif", "town-2015.tif"]}), imagery)


def contents(out: Path) -> dict[str, bytes]:
    """What does not tell when it was made."""
    names = ("changes.geojson", "changes.tif", "summary.json")
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for name in names for path in out.glob(f"*--*/{name}")}


def test_a_run_compares_pairs_and_one_that_fails_stops_no_other(tiny_model: Path, imagery: Path) -> None:
    wanted = job(tiny_model, {"pairs": [["town-2015", "town-2019"], ["town-2015", "hill-2020"]]})
    plan = plan_archive(wanted, imagery)
    (fault,) = plan.faults
    assert fault.name == "town-2015--hill-2020"
    assert "no ground in common" in fault.why
    out = plan.out
    report = run_archive(plan)
    assert (report.compared, report.compared_before, [f.scene for f in report.failures]) == (1, 0, [fault.name])
    assert geoseg.Change(out / "town-2015--town-2019").summary["statuses"]["all"]["count"] > 3
    collection = json.loads((out / "changes.json").read_text("utf-8"))
    JsonSchemaSTACValidator().validate_core(collection, pystac.STACObjectType.COLLECTION, collection["stac_version"])
    assert [link["href"] for link in collection["links"] if link["rel"] == "item"] == [
        "./town-2015--town-2019/item.json"
    ]
    assert collection["extent"]["temporal"]["interval"][0][0].startswith("2015")
    item = geoseg.Change(out / "town-2015--town-2019").item
    assert item["collection"] == collection["id"] != json.loads((out / "collection.json").read_text("utf-8"))["id"]
    assert [name for name, _ in verify(out).findings] == [fault.name]
    # the same again does nothing; another tolerance compares again and maps nothing
    again = run_archive(plan_archive(wanted, imagery))
    assert (again.done, again.compared, again.compared_before) == (0, 0, 1)
    wanted = wanted.model_copy(update={"change": wanted.change.model_copy(update={"tolerance": 0.3})})
    again = run_archive(plan_archive(wanted, imagery))
    assert (again.done, again.compared) == (0, 1)
    assert geoseg.Change(out / "town-2015--town-2019").summary["tolerance_m"] == 0.3


def test_a_scene_that_cannot_be_mapped_fails_its_pairs_alone(tiny_model: Path, imagery: Path) -> None:
    plan = plan_archive(job(tiny_model), imagery)
    broken = imagery / "town-2024.tif"
    broken.write_bytes(broken.read_bytes()[:-9000])
    report = run_archive(plan)
    failed = {failure.scene: failure.why for failure in report.failures}
    assert set(failed) == {"town-2024", "town-2019--town-2024"}
    assert "has changed since the run was planned" in failed["town-2019--town-2024"]
    assert report.compared == 2


class Pickled:
    """A crew of two in this process: what is handed out and what comes back is bytes, and the last one ends first."""

    threads, threads_by_worker = 2, {"here": 2}

    def __init__(self) -> None:
        self.calls: list[tuple[Any, bytes]] = []
        self.functions: list[str] = []

    @property
    def pending(self) -> int:
        return len(self.calls)

    def ask(self, function: Any, *args: Any) -> dict[str, Any]:
        return {"here": function(*args)}

    def submit(self, tag: Any, function: Any, *args: Any) -> None:
        self.functions.append(function.__name__)
        self.calls.append((tag, pickle.dumps((function, args))))

    def next(self) -> tuple[Any, Any]:
        tag, call = self.calls.pop()
        function, args = pickle.loads(call)  # noqa: S301  # it was made above
        return tag, pickle.loads(pickle.dumps(function(*args)))  # noqa: S301  # the same


def test_workers_make_the_same_comparisons(tiny_model: Path, imagery: Path, tmp_path: Path) -> None:
    wanted = job(tiny_model)
    run_archive(plan_archive(wanted, imagery, tmp_path / "here"))
    many = plan_archive(wanted.model_copy(update={"cluster": "processes:2"}), imagery, tmp_path / "there")
    workers = Pickled()
    report = run_archive(many, workers)
    assert (report.compared, report.failures) == (3, ())
    assert workers.functions.count("compare_pair") == 3
    here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
    assert len(here) == 9
    assert here == there


def test_one_run_at_a_time_in_a_folder(tiny_model: Path, imagery: Path, tmp_path: Path) -> None:
    paths = imagery / "town-2015.tif", imagery / "town-2019.tif"
    (tmp_path / "maps").mkdir()
    planned = plan_change(change_job(*paths, "buildings", tmp_path / "maps", model=str(tiny_model)))
    with alone_in(tmp_path / "maps"), pytest.raises(OutputError, match="another run is at work here"):
        run_change(planned, lambda *_: None)
    assert not list((tmp_path / "maps").glob("*/item.json"))


def test_the_command_runs_the_workflow(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tiny_model: Path,
    imagery: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    workflow = request.config.rootpath / "workflows" / "change.yaml"
    arguments = (workflow, "--data", imagery, "--out", tmp_path / "maps", "--set", f"model={tiny_model}")
    status, out, err = command("plan", *arguments, "--no-time")
    assert (status, err) == (0, "")
    assert "pairs                  3 (0 complete)" in out
    status, out, err = command("run", *arguments)
    assert (status, err) == (0, "")
    assert "3 pairs compared, 0 were there already." in out
    assert str(tmp_path / "maps" / "changes.json") in out
    status, out, _ = command("run", "--schema")
    assert "Comparison" in json.loads(out)["$defs"]


def test_what_two_dates_cannot_be_is_one_sentence(tiny_model: Path, imagery: Path, tmp_path: Path) -> None:
    """Another model for each date, a band that is missing, a date that is all cloud."""
    then, now, options = imagery / "town-2015.tif", imagery / "town-2019.tif", {"model": str(tiny_model)}
    maps = tmp_path / "maps"
    geoseg.segment(then, "buildings", maps, model="buildings-segformer")
    with pytest.raises(OutputError, match=r"model was .*buildings-segformer.*now .*tiny"):
        geoseg.change(then, now, "buildings", maps, **options)
    two = write_tif(tmp_path / "two.tif", np.full((2, 110, 140), 9, np.uint8))
    with pytest.raises(SceneError, match=r"two.tif: the model needs the bands red, green, blue"):
        geoseg.change(two, now, "buildings", maps, **options)
    overcast = write_tif(tmp_path / "overcast.tif", np.zeros((3, 110, 140), np.uint8), nodata=0)
    for product in ("buildings", "spectral"):
        with pytest.raises(SceneError, match="no pixel has data"):
            geoseg.change(overcast, now, product, tmp_path / product, **(options if product == "buildings" else {}))
    clouds = write_tif(tmp_path / "clouds.tif", np.zeros((1, 110, 140), np.uint8))
    with pytest.raises(SceneError, match="no pixel has data in both of them"):
        geoseg.change(then, now, "buildings", tmp_path / "clouded", mask=clouds, **options)
    geoseg.segment(now, "buildings", tmp_path / "other", **options)
    with pytest.raises(OptionError, match="are maps of buildings-segformer and tiny; a series"):
        open_series(SeriesJob((maps / "town-2015", tmp_path / "other" / "town-2019"), tmp_path / "series"))
