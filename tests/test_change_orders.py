"""What a run's job says of comparisons, and what each of them is told of it, before and after something went wrong."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import shapely
from conftest import BANEPA
from odc.geo.geobox import GeoBox
from rasterio import Affine
from test_change_runs import imagery, job, scene, spectra  # noqa: F401  # a fixture is among them
from test_two_dates import model as two_dates_model  # noqa: F401  # a fixture

import geoseg
from geoseg.archive import plan_archive, run_archive
from geoseg.changes.many import Comparison, PairEntry, SeriesOrder, compare_pair, plan_pairs
from geoseg.errors import OutputError
from geoseg.globe import outline_of
from geoseg.planned import SegmentJob

if TYPE_CHECKING:
    from pathlib import Path


SAID = {"tolerance": 2.5, "align": True, "min_confidence": 0.7, "unchanged": True, "cut": 0.4, "index": "ndvi"}
VECTORS = {"mad": True, "around": 30.0}


def test_what_a_job_says_of_pairs_reaches_each(tmp_path: Path) -> None:
    jobs = [SegmentJob(f"{name}.tif", "buildings", "maps") for name in ("then", "now")]
    found = Comparison.model_validate(SAID | {"zones": "wards.gpkg"}).job(jobs[0], jobs[1], tmp_path)
    assert (found.before, found.after) == (jobs[0], jobs[1])
    assert {name: getattr(found, name) for name in SAID} == SAID
    assert (found.zones, found.any_order) == (str(tmp_path / "wards.gpkg"), False)
    vectors = Comparison.model_validate(VECTORS).job(jobs[0], jobs[1], tmp_path)
    assert {name: getattr(vectors, name) for name in VECTORS} == VECTORS
    default = Comparison.model_validate({"pairs": [["then", "now"]]}).job(jobs[0], jobs[1], tmp_path)
    assert (default.zones, default.any_order) == (None, True)


def test_what_a_job_says_of_series_reaches_each(tiny_model: Path, imagery: Path) -> None:  # noqa: F811  # the fixture
    """And `plan` and `run` mean the same series, so what is done is found again."""
    wanted = job(tiny_model, {"rule": "series", "stay": 0.8, "tolerance": 2.5}, min_area=7.0, simplify=0.4)
    plan = plan_archive(wanted, imagery)
    orders = [pair.order for pair in plan.pairs]
    assert len(orders) == 2
    for order in orders:
        assert isinstance(order, SeriesOrder)
        asked = order.job
        assert (asked.stay, asked.tolerance, asked.min_area, asked.simplify) == (0.8, 2.5, 7.0, 0.4)
        assert asked.collection == order.maps[-1].job.collection is not None


def entry(ids: tuple[str, ...]) -> PairEntry:
    return PairEntry("--".join(ids), cast("Any", None), complete=False)


def test_all_of_a_scene_is_all_of_it_wherever_it_lies(tmp_path: Path) -> None:
    """Whatever its area and that of its part in a larger one are rounded to, and however bent its sides in degrees."""
    one, rng = geoseg.open_scene(scene(tmp_path, None, "any")), np.random.default_rng(0)
    for _ in range(40):
        place = BANEPA @ Affine.translation(*(rng.random(2) * 1e5))
        sizes = (int(rng.integers(900, 1900)), 1500), (int(rng.integers(50, 900)), 700)
        scenes = {
            name: replace(
                one,
                id=name,
                geobox=GeoBox(size, place, one.geobox.crs),
                datetime=dt.datetime(year, 1, 1, tzinfo=dt.UTC),
            )
            for name, size, year in zip(("then", "now"), sizes, (2019, 2024), strict=True)
        }
        wanted = Comparison.model_validate({"overlap": 1})
        (pair,), _ = plan_pairs(wanted, scenes, entry)
        assert pair.id == "then--now"


def test_each_scene_has_the_partner_that_it_has_by_trying_all(tmp_path: Path) -> None:
    """Sixty scenes, many at a place: more than one node of a tree holds; whatever order they are named in."""
    one, rng = geoseg.open_scene(scene(tmp_path, None, "any")), np.random.default_rng(3)
    scenes = {}
    for number in rng.permutation(60):
        rows, cols = rng.integers(50, 200, 2)
        place = BANEPA @ Affine.translation(*rng.integers(0, 300, 2))
        when = dt.datetime(2020, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=int(number) // 2)  # two on each day
        grid = GeoBox((int(rows), int(cols)), place, one.geobox.crs)
        scenes[f"s{number}"] = replace(one, id=f"s{number}", geobox=grid, datetime=when)
    for rule, last in (("previous", -1), ("first", 0)):
        wanted = Comparison.model_validate({"rule": rule, "overlap": 0.5})
        entries, faults = plan_pairs(wanted, scenes, entry)
        expected = []
        for name, each in scenes.items():
            whole, meets = outline_of(each.geobox), []
            for other, earlier in scenes.items():
                part = outline_of(earlier.geobox)
                shared = shapely.intersection(part, whole).area / min(part.area, whole.area)
                if earlier.datetime < each.datetime and shared >= 0.49995:
                    meets.append((earlier.datetime, other))
            if meets:
                expected.append(f"{sorted(meets)[last][1]}--{name}")
        assert faults == []
        assert len(expected) > 30
        assert sorted(each.id for each in entries) == sorted(expected)


def test_a_pair_that_is_named_twice_is_one(tiny_model: Path, imagery: Path) -> None:  # noqa: F811  # the fixture
    twice = {"pairs": [["town-2015", "town-2019"]] * 2}
    plan = plan_archive(job(tiny_model, twice), imagery)
    assert ([pair.id for pair in plan.pairs], plan.faults) == (["town-2015--town-2019"], ())


def test_a_comparison_waits_for_maps_that_are_to_be_made_anew(
    tiny_model: Path,
    imagery: Path,  # noqa: F811  # the fixture
) -> None:
    for change in ({}, {"rule": "series"}):
        wanted = job(tiny_model, change, scenes={"files": ["hill*.tif"]})
        run_archive(plan_archive(wanted, imagery))
        assert [pair.complete for pair in plan_archive(wanted, imagery).pairs] == [True]
        assert [pair.complete for pair in plan_archive(wanted, imagery, overwrite=True).pairs] == [False]
        (plan_archive(wanted, imagery).out / "hill-2016" / "labels.tif").unlink()
        assert [pair.complete for pair in plan_archive(wanted, imagery).pairs] == [False]
        report = run_archive(plan_archive(wanted, imagery))
        assert (report.compared, report.compared_before, report.failures) == (1, 0, ())


def test_what_is_not_mapped_is_told_as_such(
    tiny_model: Path,
    two_dates_model: Path,  # noqa: F811  # the fixture
    imagery: Path,  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    """Maps, a series of them, or a pair that is mapped as one scene: each says that there is nothing to compare."""
    for model, change in (
        (tiny_model, {}),
        (tiny_model, {"rule": "series"}),
        (two_dates_model, {}),
    ):
        (pair,) = plan_archive(job(model, change, scenes={"files": ["hill*.tif"]}), imagery, tmp_path / "maps").pairs
        outcome = compare_pair(pair.order)
        assert not outcome.hopeless
        assert "could not be mapped, so there is nothing to compare" in str(outcome.why)


def test_a_run_ends_where_the_disk_refuses(imagery: Path, tmp_path: Path) -> None:  # noqa: F811  # the fixture
    plan = plan_archive(spectra(), imagery, tmp_path / "maps")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / plan.pairs[0].id).write_text("a file where a folder is to be")
    assert compare_pair(plan.pairs[0].order).hopeless
    with pytest.raises(OutputError, match="cannot be written"):
        run_archive(plan)
    assert not list((tmp_path / "maps").glob("*/item.json"))
    broken = SimpleNamespace(carry_out=lambda: 1 / 0)
    assert not compare_pair(cast("Any", broken)).hopeless
