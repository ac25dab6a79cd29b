"""Pairs of an archive's scenes: which are compared, by whom, and what a run leaves of it."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import pytest
import rasterio
from conftest import BANEPA, chunks_of, write_tif
from pydantic import ValidationError
from pystac.validation import JsonSchemaSTACValidator
from test_cli import command  # noqa: F401  # a fixture
from test_two_dates import model as two_dates_model  # noqa: F401  # a fixture

import geoseg
from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.audit import verify
from geoseg.changes.by_series import SeriesJob, open_series
from geoseg.changes.pair import run_change
from geoseg.changes.planned import job_of as change_job
from geoseg.changes.planned import plan_change
from geoseg.cluster import crew, recipe_of
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


def test_the_overlap_is_a_share_of_the_smaller_scene(tiny_model: Path, imagery: Path) -> None:
    """All of a part of a town is in the town, and all of a town in itself."""
    assert pairs(job(tiny_model, {"overlap": 1}), imagery) == ["town-2015--town-2019", "town-2019--town-2024"]
    scene(imagery, 2022, "town-part", rows=80)
    scene(imagery, None, "town-undated")  # is compared with nothing
    found = pairs(job(tiny_model, {"overlap": 0.99}), imagery)
    assert {"town-2015--town-2019", "town-2019--town-part", "town-part--town-2024"} == set(found)


def test_dates_that_the_job_tells_go_with_those_of_files(tiny_model: Path, imagery: Path) -> None:
    listed = {"href": "town-2024.tif", "id": "later", "datetime": "2026-01-01"}
    wanted = job(tiny_model, scenes={"files": ["town-2015.tif", listed]})
    assert pairs(wanted, imagery) == ["town-2015--later"]


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


def everything(out: Path) -> dict[str, bytes]:
    """All that a run leaves and that does not tell when it was made, nor how fast."""
    wanted = (".tif", ".geojson", ".csv")
    paths = [path for path in sorted(out.glob("*/*")) if path.suffix in wanted or path.name == "summary.json"]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in paths}


def test_a_series_of_each_place(tiny_model: Path, imagery: Path, tmp_path: Path) -> None:
    """By the rule, or of three ids; here and by workers the same; again, nothing is done."""
    wanted = job(tiny_model, {"rule": "series"})
    plan = plan_archive(wanted, imagery, tmp_path / "maps")
    assert sorted(pair.id for pair in plan.pairs) == ["hill-2016--hill-2020--series", "town-2015--town-2024--series"]
    report = run_archive(plan)
    assert (report.compared, report.failures) == (2, ())
    folder = plan.out / "town-2015--town-2024--series"
    told = json.loads((folder / "summary.json").read_text("utf-8"))
    assert [each["datetime"][:4] for each in told["maps"]] == ["2015", "2019", "2024"]
    alone = open_series(SeriesJob(tuple(plan.out / f"town-{year}" for year in (2015, 2019, 2024)), folder))
    assert alone.complete
    assert not replace(alone, job=replace(alone.job, stay=0.8)).complete
    item = json.loads((folder / "item.json").read_text("utf-8"))
    JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
    assert (item["properties"]["start_datetime"][:4], item["properties"]["end_datetime"][:4]) == ("2015", "2024")
    sources = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert set(sources) >= {f"../town-{year}/item.json" for year in (2015, 2019, 2024)}
    assert item["id"] in (plan.out / "changes.json").read_text("utf-8")
    assert verify(plan.out).findings == ()
    again = plan_archive(wanted, imagery, tmp_path / "maps")
    assert not again.unfinished
    (folder / "since.tif").unlink()
    again = plan_archive(wanted, imagery, tmp_path / "maps")
    assert [pair.complete for pair in again.pairs] == [pair.id[:4] == "hill" for pair in again.pairs]
    assert ("town-2015--town-2024--series", "was not compared") in verify(plan.out).findings
    three = job(tiny_model, {"pairs": [["town-2015", "town-2019", "town-2024"]]}, cluster="processes:2")
    workers = Pickled()
    assert run_archive(plan_archive(three, imagery, tmp_path / "there"), workers).compared == 1
    assert workers.functions.count("compare_pair") == 1
    here, there = everything(tmp_path / "maps"), everything(tmp_path / "there")
    paths = [name for name in there if name.startswith(folder.name) and "summary" not in name]
    assert len(paths) == 3
    assert all(here.get(name, there[name]) == there[name] for name in paths)


def test_a_series_that_cannot_be_is_told_before_anything_is_mapped(tiny_model: Path, imagery: Path) -> None:
    backwards, elsewhere = ["town-2019", "town-2015", "town-2024"], ["hill-2016", "town-2019", "town-2024"]
    twice = [["town-2015", "town-2019", "town-2024"], ["town-2015", "hill-2020", "town-2024"]]
    plan = plan_archive(job(tiny_model, {"pairs": [backwards, elsewhere, *twice]}), imagery)
    assert plan.pairs == ()
    why = [fault.why for fault in plan.faults]
    assert "is of 2019-07-25, not before" in why[0]
    assert "no ground in common" in why[1]
    assert all("town-2015--town-2024--series would be of 2 lists of scenes" in each for each in why[2:])
    for alone in (["town-2015"], []):
        with pytest.raises(ValidationError, match="at least 2 items"):
            job(tiny_model, {"pairs": [alone]})


def spectra(change: dict[str, Any] | None = None, **options: Any) -> RunJob:
    values = {"product": "spectral", "scenes": {"files": ["*.tif"]}, "change": change or {}}
    return RunJob.model_validate(values | options)


def test_spectra_are_compared_without_any_map(imagery: Path, tmp_path: Path) -> None:
    """Here and by workers the same, and as the command for two scenes has it; one that is gone stops no other."""
    plan = plan_archive(spectra(), imagery, tmp_path / "here")
    assert not plan.out.exists()
    assert (plan.entries, plan.estimate().tiles) == ((), 0)
    assert len(plan.pairs) == 3
    report = run_archive(plan)
    assert (report.compared, report.done, report.failures) == (3, 0, ())
    assert [path.name for path in plan.out.glob("*") if path.is_dir() and "--" not in path.name] == []
    assert '"town-2019--town-2024"' in (plan.out / "town-2019--town-2024" / "item.json").read_text("utf-8")
    item = geoseg.Change(plan.out / "town-2019--town-2024").item
    sources = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert [path.rsplit("/", 1)[1] for path in sources] == ["town-2019.tif", "town-2024.tif"]
    assert (item["properties"]["start_datetime"][:4], item["properties"]["end_datetime"][:4]) == ("2019", "2024")
    collection = json.loads((plan.out / "changes.json").read_text("utf-8"))
    assert len([link for link in collection["links"] if link["rel"] == "item"]) == 3
    assert verify(plan.out).findings == ()
    assert not plan_archive(spectra(), imagery, tmp_path / "here").unfinished
    assert plan_archive(spectra({"cut": "triangle"}), imagery, tmp_path / "here").unfinished
    workers = Pickled()
    run_archive(plan_archive(spectra(cluster="processes:2"), imagery, tmp_path / "there"), workers)
    assert workers.functions.count("compare_pair") == 3
    assert len(everything(tmp_path / "here")) == 12
    assert everything(tmp_path / "here") == everything(tmp_path / "there")
    one = geoseg.change(imagery / "town-2019.tif", imagery / "town-2024.tif", "spectral", tmp_path / "one").folder
    assert (one / "changes.tif").read_bytes() == (tmp_path / "here" / one.name / "changes.tif").read_bytes()
    plan = plan_archive(spectra(), imagery, tmp_path / "gone")
    scene(imagery, 2024, "town-2024", 9)
    report = run_archive(plan)
    ((failed, why),) = [(failure.scene, failure.why) for failure in report.failures]
    assert (failed, report.compared) == ("town-2019--town-2024", 2)
    assert "has changed since the run was planned" in why


def test_a_network_for_two_dates_maps_pairs_tile_by_tile(
    two_dates_model: Path,  # noqa: F811  # the fixture
    imagery: Path,
    tmp_path: Path,
) -> None:
    wanted = job(two_dates_model)
    plan = plan_archive(wanted, imagery, tmp_path / "here")
    assert not plan.out.exists()
    names = [f"{pair}--toy-change" for pair in ("hill-2016--hill-2020", "town-2015--town-2019", "town-2019--town-2024")]
    assert sorted(pair.id for pair in plan.pairs) == names == sorted(entry.order.scene.id for entry in plan.entries)
    report = run_archive(plan)
    assert (report.done, report.compared, report.failures) == (3, 3, ())
    one = geoseg.change(
        imagery / "town-2015.tif", imagery / "town-2019.tif", "buildings", tmp_path / "one", model=str(two_dates_model)
    ).folder
    assert (one / "changes.geojson").read_bytes() == (plan.out / one.name / "changes.geojson").read_bytes()
    assert names[0] in (plan.out / "changes.json").read_text("utf-8")
    assert not (plan.out / "collection.json").exists()
    assert verify(plan.out).findings == ()
    # what was stopped between the map and its changes goes on with these
    (plan.out / names[1] / "changes.parquet").unlink()
    again = run_archive(plan_archive(wanted, imagery, tmp_path / "here"))
    assert (again.done, again.compared, again.compared_before) == (0, 1, 2)
    workers = Pickled()
    with chunks_of(64):
        many = wanted.model_copy(update={"cluster": "processes:2", "tile": 64})
        run_archive(plan_archive(many, imagery, tmp_path / "there"), workers)
    assert workers.functions.count("predict_tile") > 3 * 2
    here, there = everything(tmp_path / "here"), everything(tmp_path / "there")
    paths = [name for name in here if name.endswith(("changes.geojson", "confidence.tif"))]
    assert len(paths) == 6
    assert all(here[name] == there[name] for name in paths if name.endswith(".geojson"))
    # one that cannot be mapped stops no other
    plan = plan_archive(wanted, imagery, tmp_path / "gone")
    scene(imagery, 2024, "town-2024", 9)
    report = run_archive(plan)
    assert ({failure.scene for failure in report.failures}, report.compared) == ({names[2]}, 2)


def test_what_comparisons_without_maps_have_no_use_for_is_told(
    two_dates_model: Path,  # noqa: F811  # the fixture
    imagery: Path,
) -> None:
    for wanted, expected in (
        (spectra(change=None).model_copy(update={"change": None}), "change: is missing, and spectral compares scenes"),
        (spectra(merge={}), "merge: is of no use with spectral"),
        (spectra(model="buildings-segformer"), "model: is of no use with spectral"),
        (spectra(scenes={"files": ["town*.tif"], "mosaic": {}}), "scenes.mosaic: is of no use with spectral"),
        (job(two_dates_model).model_copy(update={"change": None}), "toy-change, which takes two scenes, compares"),
    ):
        with pytest.raises(OptionError, match=expected):
            plan_archive(wanted, imagery)
    faults = plan_archive(spectra({"rule": "series"}), imagery).faults
    assert all("is a series, which is of maps" in fault.why for fault in faults)
    assert len(faults) == 2
    (fault, *_) = plan_archive(spectra({"zones": "town-2015.tif"}), imagery).faults
    assert "knows no objects; leave it out" in fault.why


class Mortal(Pickled):
    """The same, whose first comparison dies with its worker, or each."""

    def __init__(self, deaths: int) -> None:
        super().__init__()
        self.deaths = deaths

    def next(self) -> tuple[Any, Any]:
        if self.deaths and self.functions[-1] == "compare_pair":
            self.deaths -= 1
            return self.calls.pop()[0], SimpleNamespace(why="its worker died")
        return super().next()


@pytest.mark.parametrize(("deaths", "compared"), [(1, 1), (2, 0)])
def test_a_comparison_whose_worker_died_is_tried_once_more(imagery: Path, deaths: int, compared: int) -> None:
    wanted = spectra({"pairs": [["town-2015", "town-2019"]]}, cluster="processes:2")
    report = run_archive(plan_archive(wanted, imagery), Mortal(deaths))
    assert report.compared == compared
    assert [failure.why for failure in report.failures] == ["its worker died"] * (1 - compared)


def test_real_workers_compare_real_dates(shared_data: Path, tmp_path: Path) -> None:
    """Three flights over one place, by spectra, as the command does it with `--cluster processes:2`."""
    folder = shared_data / "scenes" / "naip_5m_timeseries"
    files = [
        {"href": str(path), "id": f"naip-{path.stem[-8:-4]}", "datetime": f"{path.stem[-8:-4]}-07-25"}
        for path in sorted(folder.glob("*.tif"))
    ]
    wanted = spectra(scenes={"files": files}, bands={"red": 1, "green": 2, "blue": 3, "nir": 4})
    here = run_archive(plan_archive(wanted, tmp_path, tmp_path / "here"))
    assert (here.compared, here.failures) == (2, ())
    many = plan_archive(wanted.model_copy(update={"cluster": "processes:2"}), tmp_path, tmp_path / "there")
    with crew(recipe_of("processes:2")) as workers:
        there = run_archive(many, workers)
    assert (there.compared, there.failures) == (2, ())
    assert len(everything(tmp_path / "here")) == 8
    assert everything(tmp_path / "here") == everything(tmp_path / "there")


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
    assert "comparisons            3 (0 complete)" in out
    status, out, err = command("run", *arguments)
    assert (status, err) == (0, "")
    assert "3 comparisons made, 0 were there already." in out
    assert str(tmp_path / "maps" / "changes.json") in out
    status, out, _ = command("status", tmp_path / "maps")
    assert (status, out.splitlines()[-1]) == (0, "3 of 3 comparisons are there.")
    status, out, err = command(
        "run", workflow, "--data", imagery, "--out", tmp_path / "spectra", "--set", "product=spectral"
    )
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "3 comparisons made, 0 were there already, 0 failed."
    status, out, _ = command("run", "--schema")
    keys = json.loads(out)["$defs"]["Comparison"]["properties"]
    assert all(key["description"] for key in keys.values())
    assert {"pairs", "rule", "cut", "index", "stay", "align"} <= keys.keys()
    status, _, err = command("plan", *arguments, "--no-time", "--set", "change.stays=0.8")
    assert (status, "change.stays is not a key of this job; did you mean stay?" in err) == (2, True), err


def test_what_two_dates_cannot_be_is_one_sentence(tiny_model: Path, imagery: Path, tmp_path: Path) -> None:
    """Another model for each date, a band that is missing, a date that is all cloud."""
    then, now, options = imagery / "town-2015.tif", imagery / "town-2019.tif", {"model": str(tiny_model)}
    maps = tmp_path / "maps"
    geoseg.segment(then, "buildings", maps, model="buildings-segformer")
    with pytest.raises(OutputError, match=r"job \(model name was buildings-segformer, now tiny; "):
        geoseg.change(then, now, "buildings", maps, **options)
    two = write_tif(tmp_path / "two.tif", np.full((2, 110, 140), 9, np.uint8))
    with pytest.raises(SceneError, match=r"two.tif: the model needs the bands red, green, blue"):
        geoseg.change(two, now, "buildings", maps, **options)
    overcast = write_tif(tmp_path / "overcast.tif", np.zeros((3, 110, 140), np.uint8), nodata=0)
    for product in ("buildings", "spectral"):
        for pair in ((overcast, now), (now, overcast)):  # and told before the other one is mapped
            with pytest.raises(SceneError, match=r"overcast.tif: no pixel has data, so nothing can be compared"):
                geoseg.change(*pair, product, tmp_path / product, **(options if product == "buildings" else {}))
        assert not list(tmp_path.glob(f"{product}/*/item.json"))
    clouds = write_tif(tmp_path / "clouds.tif", np.zeros((1, 110, 140), np.uint8))
    with pytest.raises(SceneError, match=r"town-2015.tif: no pixel has data, .* check its nodata value, --mask and"):
        geoseg.change(then, now, "buildings", tmp_path / "clouded", mask=clouds, **options)
    geoseg.segment(now, "buildings", tmp_path / "other", **options)
    with pytest.raises(OptionError, match="are maps of buildings-segformer and tiny; a series"):
        open_series(SeriesJob((maps / "town-2015", tmp_path / "other" / "town-2019"), tmp_path / "series"))
