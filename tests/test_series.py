"""More than two dates: the laws of smoothed histories and of tracks, and what is written of them."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from conftest import BANEPA, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import command  # noqa: F401  # a fixture

import geoseg
from geoseg.changes.by_series import SeriesJob, open_series, run_series
from geoseg.changes.objects import Objects, Rules
from geoseg.changes.series import Stay, smoothed, tracks
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.records import alone_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

NODATA = 255


def quiet(*_: Any) -> None:
    """Nobody watches."""


@st.composite
def histories(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Stay]:
    """Labels and confidence (date, y, x) of a few pixels, some not seen, and how they change."""
    classes, dates = draw(st.integers(2, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    labels = rng.integers(0, classes, (dates, 5, 7)).astype(np.uint8)
    labels[rng.random(labels.shape) < draw(st.sampled_from([0.0, 0.3]))] = NODATA
    confidence = rng.integers(60, 251, labels.shape).astype(np.uint8)
    confidence[labels == NODATA] = NODATA
    return labels, confidence, Stay(classes, draw(st.sampled_from([0.5, 0.9, 0.99])))


def by_hand(labels: Sequence[int], confidence: Sequence[int], model: Stay) -> list[NDArray[np.float64]]:
    """The probability of each class at each date of one pixel: the sum over all histories there are."""
    n, seen = model.classes, [date for date, label in enumerate(labels) if label != NODATA]
    found = {date: np.zeros(n) for date in seen}
    for history in itertools.product(range(n), repeat=len(seen)):
        chance = 1 / n
        for one, other in itertools.pairwise(history):
            chance *= model.stay if one == other else (1 - model.stay) / (n - 1)
        for date, value in zip(seen, history, strict=True):
            own = min(max(confidence[date] / 250, 1 / n + 0.02), 0.99)
            chance *= own if labels[date] == value else (1 - own) / (n - 1)
        for date, value in zip(seen, history, strict=True):
            found[date][value] += chance
    return [found[date] / found[date].sum() if date in found else np.zeros(n) for date in range(len(labels))]


@settings(max_examples=25, deadline=None)
@given(histories())
def test_histories_are_the_most_probable_ones(history: tuple[Any, Any, Stay]) -> None:
    labels, confidence, model = history
    found, sure = smoothed(labels, confidence, model)
    np.testing.assert_array_equal(found == NODATA, labels == NODATA)
    for row, col in itertools.product(range(2), range(3)):
        expected = by_hand(labels[:, row, col], confidence[:, row, col], model)
        for date, chances in enumerate(expected):
            if labels[date, row, col] != NODATA:
                assert chances[found[date, row, col]] == pytest.approx(chances.max(), abs=1e-8)
                assert sure[date, row, col] == pytest.approx(250 * chances.max(), abs=0.51)


@settings(max_examples=40, deadline=None)
@given(histories())
def test_a_history_told_backwards_is_the_same_backwards(history: tuple[Any, Any, Stay]) -> None:
    labels, confidence, model = history
    there, back = smoothed(labels, confidence, model), smoothed(labels[::-1], confidence[::-1], model)
    for one, other in zip(there, back, strict=True):
        np.testing.assert_array_equal(one, other[::-1])


@settings(max_examples=40, deadline=None)
@given(histories(), st.integers(0, 6))
def test_a_date_that_sees_nothing_changes_nothing(history: tuple[Any, Any, Stay], place: int) -> None:
    labels, confidence, model = history
    place = min(place, len(labels))
    unseen = np.full((1, *labels.shape[1:]), NODATA, np.uint8)
    wider = [np.concatenate([each[:place], unseen, each[place:]]) for each in (labels, confidence)]
    for one, other in zip(smoothed(labels, confidence, model), smoothed(*wider, model), strict=True):
        np.testing.assert_array_equal(one, np.delete(other, place, axis=0))
        assert (other[place] == NODATA).all()


@settings(max_examples=40, deadline=None)
@given(histories())
def test_a_constant_history_stays(history: tuple[Any, Any, Stay]) -> None:
    labels, confidence, model = history
    constant = np.where(labels == NODATA, NODATA, labels[0] % model.classes).astype(np.uint8)
    found, sure = smoothed(constant, np.where(labels == NODATA, NODATA, confidence).astype(np.uint8), model)
    np.testing.assert_array_equal(found, constant)
    assert (sure[labels != NODATA] >= 250 // model.classes).all()


def test_one_doubtful_date_is_no_change_and_two_sure_ones_are() -> None:
    def told(labels: list[int], codes: list[int], stay: float = 0.9) -> list[int]:
        history = np.array(labels, np.uint8)[:, None, None], np.array(codes, np.uint8)[:, None, None]
        return smoothed(*history, Stay(2, stay))[0].ravel().tolist()

    assert told([0, 0, 1, 0, 0], [220, 220, 150, 220, 220]) == [0] * 5
    assert told([0, 0, 1, 1, 1], [220] * 5) == [0, 0, 1, 1, 1]
    assert told([0, 1], [240, 240]) == [0, 1]
    assert told([0, 1], [240, 150]) == [0, 0]
    for wrong in ({"classes": 1}, {"classes": 2, "stay": 0.4}, {"classes": 2, "stay": 1.0}):
        with pytest.raises(ValueError, match="stay must be"):
            Stay(**wrong)


# --- objects


def objects(*boxes: tuple[float, float, float, float]) -> Objects:
    one = np.ones(len(boxes))
    shapes = np.array([shapely.box(*box) for box in boxes], object).reshape(-1)
    return Objects(np.array([f"r{i}" for i in range(len(boxes))], object), shapes, one, one, one)


def test_an_object_keeps_its_number_through_a_series() -> None:
    house, other, far = (0, 0, 10, 8), (20, 0, 30, 8), (60, 0, 70, 8)
    larger, halves = (0, 0, 14, 8), ((0, 0, 6, 8), (8, 0, 14, 8))
    found = tracks(
        [objects(house, other), objects(house), objects(larger, far), objects(*halves, other), objects(other)],
        Rules(1.0),
    )
    # the other one was missed at two dates; what was split stays one; what comes is a number of its own
    assert [track.tolist() for track in found] == [[0, 1], [0], [0, 2], [0, 0, 1], [1]]
    assert [track.tolist() for track in tracks([objects(), objects(house), objects()], Rules(1.0))] == [[], [0], []]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 4))
def test_tracks_are_the_same_backwards(seed: int, dates: int) -> None:
    """Of objects that are there or not, each in its own place: the same ones are together."""
    rng = np.random.default_rng(seed)
    places = [[place for place in range(6) if rng.random() < 0.6] for _ in range(dates)]
    series = [objects(*((30.0 * p, 0.0, 30.0 * p + 9, 7.0) for p in each)) for each in places]
    for order in (1, -1):
        found = tracks(series[::order], Rules(1.5))[::order]
        number = {p: t for each, track in zip(places, found, strict=True) for p, t in zip(each, track, strict=True)}
        assert len(set(number.values())) == len(number)
        for each, track in zip(places, found, strict=True):
            assert [number[place] for place in each] == track.tolist()


# --- files


def land(folder: Path, name: str, labels: NDArray[np.uint8], year: int | None = None) -> Path:
    path = write_tif(folder / f"{name}.tif", labels[None], nodata=NODATA)
    if year is not None:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"{year}:07:25 10:11:12")
    return path


def four_years(folder: Path) -> tuple[list[Path], NDArray[np.uint8]]:
    """A field that is built on in the third year, a flicker in the second, a hole in the fourth."""
    first = np.zeros((70, 90), np.uint8)
    first[:, 60:] = 2
    second, third = first.copy(), first.copy()
    second[5:25, 65:85] = 1
    third[10:40, 10:40] = 1
    fourth = third.copy()
    fourth[50:, :20] = NODATA
    labels = np.stack([first, second, third, fourth])
    paths = [
        land(folder, f"land-{year}", each, year) for year, each in zip((2009, 2012, 2014, 2020), labels, strict=True)
    ]
    return paths, labels


def test_a_series_tells_when_land_became_another(tmp_path: Path) -> None:
    paths, labels = four_years(tmp_path)
    job = SeriesJob(tuple(paths), tmp_path / "out", tolerance=0.6, stay=0.95)
    out = run_series(open_series(job), quiet)
    since = rasterio.open(out / "since.tif").read(1)
    expected = np.zeros(labels.shape[1:], np.uint8)
    expected[10:40, 10:40] = 2
    np.testing.assert_array_equal(since, expected)
    (row,) = gpd.read_parquet(out / "changes.parquet").itertuples()
    assert (row.class_before, row.class_after) == ("0", "1") or row.status == "background to object"
    assert (row.last_seen.year, row.first_seen.year) == (2012, 2014)
    assert row.area_m2 == pytest.approx(30 * 30 * 0.09, rel=0.01)
    # the year without the flicker's neighbours is believed, if change is as probable as none
    jumpy = SeriesJob(tuple(paths), tmp_path / "jumpy", tolerance=0.6, stay=0.4)
    assert len(gpd.read_parquet(run_series(open_series(jumpy), quiet) / "changes.parquet")) == 3


def test_a_gap_is_no_date(tmp_path: Path) -> None:
    """What was last seen before the gap was last seen then."""
    before, after = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    after[8:30, 8:30] = 1
    paths = [
        land(tmp_path, name, each, year)
        for name, each, year in (
            ("a", before, 2009),
            ("b", np.full((40, 40), NODATA, np.uint8), 2012),
            ("c", after, 2015),
        )
    ]
    out = run_series(open_series(SeriesJob(tuple(paths), tmp_path / "out", tolerance=0.3, confidence=0.95)), quiet)
    (row,) = gpd.read_parquet(out / "changes.parquet").itertuples()
    assert (row.last_seen_in, row.first_seen_in) == ("a", "c")


def test_windows_do_not_matter_to_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, _ = four_years(tmp_path)
    outs = []
    for name, pixels in (("whole", 6_000_000), ("cut", 1)):
        monkeypatch.setattr("geoseg.changes.by_series.PIXELS_AT_ONCE", pixels)
        monkeypatch.setattr("geoseg.changes.by_series.AT_ONCE", (1024, 4096) if pixels > 1 else (23, 31))
        monkeypatch.setattr("geoseg.changes.by_series.LEAST_WINDOW", (64, 128) if pixels > 1 else (23, 31))
        job = SeriesJob(tuple(paths), tmp_path / name / "series", tolerance=0.6, stay=0.6)
        outs.append(run_series(open_series(job), quiet))
    for name in ("changes.geojson", "since.tif"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_buildings_have_one_id_and_dates(
    tiny_model: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
) -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((3, 18, 20)).repeat(8, 1).repeat(8, 2) * 180 + rng.random((3, 144, 160)) * 75).astype(np.uint8)
    for year in (2015, 2019, 2024):
        path = write_tif(tmp_path / f"town-{year}.tif", values)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"{year}:07:25 10:11:12")
        geoseg.segment(path, "buildings", tmp_path / "maps", model=str(tiny_model))
        values = values.copy()
        values[:, 40:100, 40:120] = rng.integers(0, 256, (3, 60, 80))
    folders = [tmp_path / "maps" / f"town-{year}" for year in (2015, 2019, 2024)]
    status, out, err = command("series", *folders, "--out", tmp_path / "maps" / "all")
    assert (status, err) == (0, "")
    assert "objects.geojson" in out
    layer = gpd.read_parquet(tmp_path / "maps" / "all" / "objects.parquet")
    assert layer["id"].is_unique
    ids = [name for text in layer["ids"] for name in text.split(";")]
    expected = [
        f"{each.name}:{name}" for each in folders for name in gpd.read_parquet(each / "footprints.parquet")["id"]
    ]
    assert sorted(ids) == sorted(expected)
    there = layer[layer["status"] == "there"]
    assert len(there) > 2
    assert {when.year for when in there["first_seen"]} == {2015}
    assert {when.year for when in there["last_seen"]} == {2024}
    assert (layer["first_seen"] <= layer["last_seen"]).all()
    summary = json.loads((tmp_path / "maps" / "all" / "summary.json").read_text("utf-8"))
    assert sum(summary["objects"].values()) == len(layer)


def test_what_is_no_series_is_told(tmp_path: Path) -> None:
    paths, labels = four_years(tmp_path)
    aside = write_tif(
        tmp_path / "aside.tif", labels[:1], nodata=NODATA, transform=BANEPA @ rasterio.Affine.translation(9000, 0)
    )
    for maps, options, error, says in (
        (paths[:1], {}, OptionError, "a series has 2 maps or more, got 1"),
        (paths[::-1], {}, OptionError, "is of 2020-07-25, not before .*order of their dates"),
        (paths, {"stay": 1.5}, OptionError, "--stay 1.5"),
        (paths, {"dates": (None,)}, OptionError, "4 maps and 1 dates"),
        ([paths[0], aside], {}, SceneError, "no pixel is seen at two dates"),
    ):
        with pytest.raises(error, match=says):
            run_series(open_series(SeriesJob(tuple(maps), tmp_path / "out", **options)), quiet)
    since = write_tif(tmp_path / "other" / "since.tif", labels[:1], nodata=NODATA)
    for maps, out in (([*paths, since], since.parent), ([tmp_path / "other", *paths], since.parent)):
        with pytest.raises(OptionError, match=r"one of the maps, is there and would be written over"):
            open_series(SeriesJob(tuple(maps), out))
    assert open_series(SeriesJob(tuple(paths), tmp_path)).maps  # beside maps of other names there is room
    with alone_in(tmp_path / "out"), pytest.raises(OutputError, match="another run"):
        run_series(open_series(SeriesJob(tuple(paths), tmp_path / "out")), quiet)


def test_three_dates_of_aerial_images(shared_data: Path, tmp_path: Path) -> None:
    """Water, plants and the rest by the near infrared, on three grids that are a pixel off each other."""
    paths = []
    for path in sorted((shared_data / "scenes" / "naip_5m_timeseries").glob("*.tif")):
        with rasterio.open(path) as dataset:
            red, near = (dataset.read(band).astype(np.float32) for band in (1, 4))
            index = (near - red) / np.maximum(near + red, 1)
            labels = np.where(near < 60, 2, index > 0.1).astype(np.uint8)
            labels[(dataset.read() == 0).all(axis=0)] = NODATA
            paths.append(
                write_tif(tmp_path / path.name, labels[None], str(dataset.crs), dataset.transform, nodata=NODATA)
            )
    out = run_series(open_series(SeriesJob(tuple(paths), tmp_path / "out")), quiet)
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert summary["tolerance_m"] == pytest.approx(15, rel=0.01)
    total = 723 * 934 * 25 / 10_000
    changed = sum(row["hectares"] for row in summary["hectares"])
    assert 0.001 * total < changed < 0.5 * total
