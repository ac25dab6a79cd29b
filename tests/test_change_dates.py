"""When scenes were taken, if only their names tell it: the order of two dates, pairs, series, and the record."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pytest
from test_change_runs import job, pairs, scene, spectra
from test_selection import item
from test_two_dates import model as two_dates_model  # noqa: F401  # a fixture

import geoseg
from geoseg.archive import plan_archive, run_archive
from geoseg.changes.by_series import SeriesJob, open_series
from geoseg.errors import OptionError, SceneError

if TYPE_CHECKING:
    from pathlib import Path

THEN, NOW = dt.datetime(2019, 5, 31, tzinfo=dt.UTC), dt.datetime(2024, 7, 25, 10, 11, 12, tzinfo=dt.UTC)


@pytest.fixture
def town(tmp_path: Path) -> tuple[Path, Path]:
    """Two scenes whose names alone tell their dates."""
    return scene(tmp_path, None, "town_2019-05-31", 1), scene(tmp_path, None, "town_20240725T101112", 2)


@pytest.mark.parametrize("product", ["buildings", "spectral", "two dates"])
def test_names_tell_the_dates_that_files_do_not(
    product: str,
    town: tuple[Path, Path],
    tiny_model: Path,
    two_dates_model: Path,  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    models: dict[str, Any] = {"buildings": {"model": tiny_model}, "two dates": {"model": two_dates_model}}
    options = {name: str(path) for name, path in models.get(product, {}).items()}
    product = "buildings" if product == "two dates" else product
    then, now = town
    with pytest.raises(OptionError, match=r"112.tif is of 2024-07-25, later than .* of 2019-05-31; .*--any-order"):
        geoseg.change(now, then, product, tmp_path / "maps", **options)
    found = geoseg.change(then, now, product, tmp_path / "maps", **options)
    assert len(found.changes) > 0
    assert set(found.changes["date_before"]) == {THEN}
    assert set(found.changes["date_after"]) == {NOW}
    told = found.item["properties"]
    assert (told["start_datetime"], told["end_datetime"]) == ("2019-05-31T00:00:00Z", "2024-07-25T10:11:12Z")
    assert told["geoseg:datetime_known"] is True
    if isinstance(found, geoseg.Change):
        assert found.summary["after"]["datetime"] == "2024-07-25T10:11:12Z"


def test_maps_are_those_that_segment_makes(town: tuple[Path, Path], tiny_model: Path, tmp_path: Path) -> None:
    maps = [geoseg.segment(path, "buildings", tmp_path / "maps", model=str(tiny_model)).folder for path in town]
    made = [(folder / "item.json").stat().st_mtime_ns for folder in maps]
    geoseg.change(*town, "buildings", tmp_path / "maps", model=str(tiny_model))
    assert [(folder / "item.json").stat().st_mtime_ns for folder in maps] == made
    assert open_series(SeriesJob(tuple(maps), tmp_path / "series")).maps[1].date == NOW
    with pytest.raises(OptionError, match=r"is of 2024-07-25, not before .* of 2019-05-31"):
        open_series(SeriesJob(tuple(maps[::-1]), tmp_path / "series"))
    rasters = [(folder / "labels.tif").rename(tmp_path / f"{folder.name}.tif") for folder in maps]
    assert [each.date for each in open_series(SeriesJob(tuple(rasters), tmp_path / "series")).maps] == [THEN, NOW]


def test_what_a_file_says_goes_before_its_name(tiny_model: Path, tmp_path: Path) -> None:
    then, now = scene(tmp_path, 2015, "town_20240101"), scene(tmp_path, None, "town_20190531", 2)
    found = geoseg.change(then, now, "spectral", tmp_path / "maps")
    assert found.item["properties"]["start_datetime"] == "2015-07-25T10:11:12Z"
    with pytest.raises(OptionError, match=r"is of 2019-05-31, later than .*town_20240101.tif of 2015-07-25"):
        geoseg.change(now, then, "buildings", tmp_path / "maps", model=str(tiny_model))


@pytest.mark.parametrize("listed", ["files", "catalogs", "datetime"])
def test_a_job_chooses_by_the_same_dates(listed: str, tiny_model: Path, tmp_path: Path) -> None:
    """An item's, else a file's, else a name's; with none of these the scene cannot be chosen."""
    then, tagged = scene(tmp_path, None, "town_2019-05-31"), scene(tmp_path, 2020, "town_2024-01-01")
    now, hill = scene(tmp_path, None, "town_20240725T101112"), scene(tmp_path, None, "hill")
    paths = [then, tagged, now, hill]
    scenes: dict[str, Any] = {"files": [path.name for path in paths]}
    if listed == "datetime":
        scenes["files"][-1] = {"href": "hill.tif", "datetime": "2024-09-30"}
    if listed == "catalogs":
        items = {"type": "FeatureCollection", "features": [item(path.stem, path.name, None) for path in paths]}
        (tmp_path / "items.json").write_text(json.dumps(items))
        scenes = {"catalogs": ["items.json"]}
    scenes["dates"] = ["2024-01-01", None]
    wanted = job(tiny_model, scenes=scenes)
    if listed != "datetime":
        wanted = wanted.model_copy(update={"change": None})
    planned = plan_archive(wanted, tmp_path)
    found = {entry.order.scene.id for entry in planned.entries}
    assert (found - {"hill"}, planned.outside) == ({now.stem}, 2)
    if listed == "datetime":
        assert found == {now.stem, "hill"}
        assert [pair.id for pair in planned.pairs] == [f"{now.stem}--hill"]
    else:
        (fault,) = planned.faults
        assert "hill.tif: its date is unknown" in fault.why


def test_a_mosaic_goes_by_the_same_dates(tmp_path: Path) -> None:
    then, tagged = scene(tmp_path, None, "town_2019-05-31"), scene(tmp_path, 2020, "town_2024-01-01")
    now = scene(tmp_path, None, "town_20240725T101112")
    parts = geoseg.open_scene([str(then), str(now), str(tagged)], order="newest").parts
    assert [part.path for part in parts] == [str(now), str(tagged), str(then)]
    hill = scene(tmp_path, None, "hill")
    with pytest.raises(SceneError, match=r"hill.tif: its date is unknown, and oldest goes by it"):
        geoseg.open_scene([str(then), str(hill)], order="oldest")


def test_the_latest_view_of_a_building_is_that_of_the_same_dates(tiny_model: Path, tmp_path: Path) -> None:
    for year, name in ((None, "town_20240725T101112"), (2016, "town_2025-01-01")):
        scene(tmp_path, year, name)
    wanted = job(tiny_model, merge={"keep": "date"}).model_copy(update={"change": None})
    report = run_archive(plan_archive(wanted, tmp_path, tmp_path / "maps"))
    merged = gpd.read_parquet(tmp_path / "maps" / "footprints.parquet")
    assert report.merged is not None
    assert report.merged.duplicates == len(merged) > 0
    assert set(merged["scene"]) == {"town_20240725T101112"}


def test_a_run_finds_pairs_and_series_by_names(tiny_model: Path, town: tuple[Path, Path], tmp_path: Path) -> None:
    wanted = job(tiny_model, scenes={"files": [path.name for path in town]})
    name = "town_2019-05-31--town_20240725T101112"
    assert pairs(wanted, tmp_path) == [name]
    assert pairs(spectra(scenes={"files": [path.name for path in town]}), tmp_path) == [name]
    series = {"pairs": [[town[1].stem, town[0].stem, "hill"]]}
    scene(tmp_path, None, "hill")
    (fault,) = plan_archive(job(tiny_model, series, scenes={"files": ["*.tif"]}), tmp_path).faults
    assert "is of 2024-07-25, not before" in fault.why
