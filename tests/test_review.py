"""Reviews: the order, what is kept and survives, and labels that a training run reads as they were meant."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from test_view import HOSTILE, make_hostile

import geoseg
from geoseg.errors import OptionError, OutputError
from geoseg.io.geoparquet import write_parquet
from geoseg.io.vectors import to_pixels
from geoseg.train.data import places_of
from geoseg.train.job import TrainJob
from geoseg.train.losses import IGNORED
from geoseg.train.run import train
from geoseg.view import reviewing
from geoseg.view.review import FILE, Decision, Review, Verdicts
from geoseg.view.widget import WIDGETS
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def town(results: Path, tmp_path: Path) -> Path:
    shutil.copytree(results.parent, tmp_path / "copy")
    return tmp_path / "copy" / "maps" / "town-2024"


def frame_of(town: Path) -> gpd.GeoDataFrame:
    return gpd.read_parquet(town / "footprints.parquet")


# --- the order, and going on


def test_the_least_confident_come_first(town: Path) -> None:
    review, seen = Review(town), []
    while (id_ := review.next_id) is not None:
        seen.append(id_)
        review.decide(id_, "accept")
    frame = frame_of(town).set_index("id")
    assert sorted(seen) == sorted(frame.index)
    assert frame["confidence"][seen].is_monotonic_increasing
    assert len(seen) > 5


def test_a_new_kernel_goes_on_where_the_last_one_stopped(town: Path) -> None:
    first = Review(town, classes=["shed"])
    for verdict, label in (("accept", None), ("relabel", "shed"), ("reject", None), ("skip", None)):
        first.decide(str(first.next_id), verdict, label)
    first.undo()
    again = Review(town, classes=["shed"])
    assert again.verdicts.decisions == first.verdicts.decisions
    assert [decision.verdict for decision in again.verdicts.decisions] == ["accept", "relabel", "reject"]
    assert again.next_id == first.next_id


def test_back_is_back(town: Path) -> None:
    review = Review(town)
    one = str(review.next_id)
    review.decide(one, "reject")
    two = str(review.next_id)
    assert one != two
    assert review.undo() == one
    assert review.next_id == one
    assert review.undo() is None
    assert Review(town).verdicts.decisions == []


@pytest.mark.parametrize("torn", [1, 30, 80])
def test_a_line_cut_off_by_a_crash_costs_that_line_only(town: Path, torn: int) -> None:
    review = Review(town)
    for _ in range(3):
        review.decide(str(review.next_id), "accept")
    path = town / FILE
    path.write_bytes(path.read_bytes()[:-torn])
    again = Review(town)
    assert len(again.verdicts.decisions) == 2
    again.decide(str(again.next_id), "reject")
    assert [d.verdict for d in Review(town).verdicts.decisions] == ["accept", "accept", "reject"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_two_widgets_of_the_same_footprints_lose_nothing(town: Path) -> None:
    one, other = Review(town), Review(town)
    for number in range(4):
        (one, other)[number % 2].decide(str(frame_of(town)["id"].iloc[number]), "accept")
    other.undo()
    one.decide(str(frame_of(town)["id"].iloc[5]), "reject")
    said = [(d.ids[0], d.verdict) for d in Review(town).verdicts.decisions]
    ids = list(frame_of(town)["id"])
    assert said == [(ids[0], "accept"), (ids[1], "accept"), (ids[2], "accept"), (ids[5], "reject")]
    assert one.verdicts.decisions == Review(town).verdicts.decisions


SAID = st.one_of(st.none(), st.sampled_from(["accept", "reject", "skip"]))


@settings(max_examples=30)
@given(st.lists(SAID, max_size=12))
def test_what_is_read_back_is_what_was_said(tmp_path_factory: pytest.TempPathFactory, said: list[str | None]) -> None:
    path, expected = tmp_path_factory.mktemp("said") / "a.jsonl", []
    for number, verdict in enumerate(said):
        verdicts = Verdicts(path, {"of": "these"})  # a new one each time
        if verdict is None:
            assert verdicts.undo() == (expected.pop() if expected else None)
        else:
            expected.append(Decision((f"r{number}c0",), verdict))
            verdicts.add(expected[-1])
    assert Verdicts(path, {"of": "these"}).decisions == expected


def test_other_footprints_have_other_verdicts(town: Path) -> None:
    review = Review(town)
    review.decide(str(review.next_id), "accept")
    shutil.copy(town.parent / "town-2019" / "footprints.parquet", town / "footprints.parquet")
    with pytest.raises(OptionError, match=r"review\.jsonl: holds verdicts on other footprints"):
        Review(town)
    assert Review(town, into=town / "new" / "mine.jsonl").verdicts.decisions == []
    (town / FILE).write_text("what is that\n")
    with pytest.raises(OptionError, match="other footprints"):
        Review(town)


def test_what_is_refused(town: Path, tmp_path: Path) -> None:
    review = Review(town)
    with pytest.raises(OptionError, match="no footprint 'r9999c9999'"):
        review.decide("r9999c9999", "accept")
    with pytest.raises(OptionError, match="label 'castle': is none of building; name further ones"):
        review.decide(str(review.next_id), "relabel", "castle")
    for verdict, label in (("accept", "building"), ("relabel", None), ("perhaps", None)):
        with pytest.raises(OptionError, match="is accept, reject or skip, or relabel and a label"):
            review.decide(str(review.next_id), verdict, label)  # type: ignore[arg-type]  that is what is tried
    with pytest.raises(OptionError, match="nothing has been accepted"):
        review.save(tmp_path / "out")
    with pytest.raises(OutputError, match="holds no complete result"):
        Review(tmp_path)
    assert not (town / FILE).exists()


# --- what is shown


def test_a_piece_shows_the_outline_where_it_is(town: Path) -> None:
    review = Review(town)
    grid, frame = review.mapped.grid, frame_of(town).set_index("id")
    for id_ in frame.index:
        piece = review.piece(id_)
        (top, _), (left, _) = piece.window.row_range, piece.window.col_range
        ring = np.array([pair.split() for pair in piece.outline.strip("MZ").split("Z")[0].split("L")], float)
        exterior = shapely.get_exterior_ring(to_pixels(np.array([frame.geometry[id_]]), grid)[0])
        np.testing.assert_allclose(ring + np.array([left, top]), shapely.get_coordinates(exterior)[:-1], atol=0.06)
        assert ring.min() >= -0.01
        assert ring.max() <= piece.window.shape[0] + 0.01
        assert piece.window.shape[0] == piece.window.shape[1] >= 30 / 0.3
        assert piece.picture.startswith(b"RIFF")


def test_a_piece_tells_what_was_said_of_its_neighbours(town: Path) -> None:
    review = Review(town)
    id_ = str(review.next_id)
    others = [str(other) for other in review._read(review.piece(id_).window)["id"] if other != id_]
    assert len(others) > 2
    review.decide(others[0], "reject")
    review.decide(others[1], "accept")
    states = [state for _, state in review.piece(id_).others]
    assert sorted(states) == sorted(["reject", "accept"] + ["open"] * (len(others) - 2))


def test_without_the_scene_outlines_are_shown_all_the_same(town: Path) -> None:
    shutil.rmtree(town.parents[1] / "imagery")
    review = Review(town)
    assert review.piece(str(review.next_id)).picture == b""
    assert "The scene is not shown" in review.below.why


# --- labels


def pixels_of(path: Path, town: Path) -> list[shapely.Polygon]:
    grid = Review(town).mapped.grid
    shapes = gpd.read_file(path).to_crs(grid.crs.wkt).geometry.to_numpy()
    return list(to_pixels(shapes, grid))


def reviewed(town: Path, tmp_path: Path) -> tuple[Review, dict[str, str], Path]:
    """Half of all said, in turn; what was said of each, and the folder with labels."""
    review, said = Review(town, classes=["shed"]), {}
    turns = [("accept", None), ("reject", None), ("relabel", "shed")]
    for number in range(review.count // 2):
        id_, (verdict, label) = str(review.next_id), turns[number % 3]
        review.decide(id_, verdict, label)
        said[id_] = label or verdict
    review.save(tmp_path / "labels")
    return review, said, tmp_path / "labels"


def test_labels_are_what_was_accepted_and_relabelled(town: Path, tmp_path: Path) -> None:
    _, said, folder = reviewed(town, tmp_path)
    labels = gpd.read_file(folder / "labels.geojson").set_index("id")
    assert dict(labels["class"]) == {k: "building" if v == "accept" else v for k, v in said.items() if v != "reject"}
    assert labels.crs.to_epsg() == 4326
    own = frame_of(town).set_index("id").loc[labels.index].to_crs(4326)
    assert shapely.hausdorff_distance(labels.geometry.to_numpy(), own.geometry.to_numpy()).max() < 2e-7


def test_the_area_is_what_was_looked_at(town: Path, tmp_path: Path) -> None:
    review, said, folder = reviewed(town, tmp_path)
    area = shapely.union_all(pixels_of(folder / "area.geojson", town))
    frame = frame_of(town)
    shapes = dict(zip(frame["id"], to_pixels(frame.geometry.to_numpy(), review.mapped.grid), strict=True))
    inner = {id_: shapely.buffer(shape, -0.2) for id_, shape in shapes.items()}
    others = shapely.union_all([shape for id_, shape in inner.items() if id_ not in said])
    seen = shapely.union_all([shape for id_, shape in inner.items() if id_ in said])
    assert shapely.covers(area, seen)
    assert shapely.intersection(area, others).area < 1e-3 * others.area
    rim = shapely.union_all([shapely.buffer(shapes[id_], 1 / 0.3) for id_ in said])
    assert shapely.difference(area, shapely.buffer(rim, 0.3)).area < 1
    assert area.area > seen.area * 1.02


def test_a_view_that_is_all_right_is_labelled_as_a_whole(town: Path, tmp_path: Path) -> None:
    review = Review(town)
    window = Window(-10, 90, 40, 140)
    frame = frame_of(town)
    shapes = to_pixels(frame.geometry.to_numpy(), review.mapped.grid)
    view = shapely.box(40, 0, 140, 90)
    inside = list(frame["id"][shapely.within(shapes, view)])
    review.decide(inside[0], "reject")
    review.decide(inside[1], "skip")
    review.all_right(window)
    assert {id_ for id_, decision in review.states.items() if decision.verdict == "accept"} == set(inside[1:])
    made = review.save(tmp_path / "labels")
    assert shapely.covers(shapely.buffer(shapely.union_all(pixels_of(made.area, town)), 0.1), view)
    touching = set(frame["id"][shapely.intersects(shapes, view)])
    assert set(gpd.read_file(made.labels)["id"]) == touching - {inside[0]}
    assert made.count == len(touching) - 1
    assert made.hectares == pytest.approx(0.09 * 9000 / 1e4, rel=0.2)
    review.undo()
    assert set(review.states) == {inside[0], inside[1]}


JOB = {
    "name": "reviewed",
    "product": "buildings",
    "resolution": [0.2, 0.6],
    "patch": 64,
    "stride": 48,
    "crop": 64,
    "scales": [0.3, 0.3],
    "optimiser": {"steps": 2, "batch": 2, "warm_up": 1, "averaging": 0},
    "workers": 0,
}


def test_a_training_run_takes_them(town: Path, tmp_path: Path, tiny_model: Path) -> None:
    """What its labels are: accepted outlines, background at rejected ones, and nothing of the others."""
    review, said, folder = reviewed(town, tmp_path)
    shutil.copy(town.parents[1] / "imagery" / "town-2024.tif", folder)
    data = {"rasters": ["town-2024.tif"], "labels": "labels.geojson", "area": "area.geojson", "class_column": "class"}
    job = TrainJob.model_validate(
        {**JOB, "start": str(tiny_model), "data": [data | {"values": {"building": "building"}}]}
    )
    from geoseg.catalog import find_model
    from geoseg.train.run import _filled

    (place,) = places_of(_filled(job, find_model(None, str(tiny_model))), folder)
    box = review.mapped.grid.boundingbox
    maps = place.train[slice(box.left, box.right, 0.3), slice(box.bottom, box.top, 0.3)]
    labels = maps["labels"].numpy()
    frame = frame_of(town)
    shapes = to_pixels(frame.geometry.to_numpy(), review.mapped.grid)
    deep = shapely.points([(col + 0.5, row + 0.5) for row in range(160) for col in range(240)])
    expected = {"accept": 1, "reject": 0}
    for id_, shape in zip(frame["id"], shapes, strict=True):
        inside = shapely.contains(shapely.buffer(shape, -1.5), deep).reshape(160, 240)
        found = set(np.unique(labels[inside])) - ({0} if said.get(id_) == "shed" else set())
        assert found <= {expected.get(said.get(id_, ""), IGNORED)}, (id_, said.get(id_))
    assert (labels == IGNORED).mean() > 0.2
    made = train(job, folder, tmp_path / "models", device="cpu")
    assert (made / "item.json").exists()


# --- the widget, as far as no browser is needed


def test_the_extra_is_named(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(OptionError, match=r"review\(\) needs anywidget: pip install 'geoseg\[jupyter\]'"):
        geoseg.review(town)


def test_what_the_browser_asks_is_done_once(town: Path) -> None:
    pytest.importorskip("anywidget")
    widget = geoseg.review(geoseg.Result(town), classes=["shed"])
    assert widget.classes == ["building", "shed"]
    first = widget.piece["id"]
    widget._hear(widget, {"does": "accept", "id": first}, [])
    second = widget.piece["id"]
    widget._hear(widget, {"does": "accept", "id": first}, [])  # pressed twice
    assert widget.piece["id"] == second != first
    widget._hear(widget, {"does": "relabel", "id": second, "label": "castle"}, [])
    assert "is none of building, shed" in widget.said["error"]
    widget._hear(widget, {"does": "relabel", "id": second, "label": "shed"}, [])
    assert {k: v for k, v in widget.progress.items() if v} == {
        "count": widget.review.count,
        "done": 2,
        "accept": 1,
        "relabel": 1,
    }
    widget._hear(widget, {"does": "undo", "id": None}, [])
    assert widget.piece["id"] == second
    widget._hear(widget, {"does": "explode", "id": second}, [])
    assert widget.piece["id"] == second
    widget._hear(widget, {"does": "view", "id": second}, [])
    assert second in widget.review.states
    while widget.piece:
        widget._hear(widget, {"does": "skip", "id": widget.piece["id"]}, [])
    assert widget.picture == b""
    assert widget.progress["done"] == widget.progress["count"] == len(frame_of(town))
    assert widget.save(town / "labels").labels.exists()


def test_each_question_has_an_answer(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that hears nothing new goes on waiting: also for the same answer twice, and where something breaks."""
    pytest.importorskip("anywidget")
    widget, heard = geoseg.review(town), []
    widget.observe(lambda change: heard.append(change["new"]), "said")
    for _ in range(2):
        widget._hear(widget, {"does": "undo", "id": None}, [])  # there is nothing to take back
    for _ in range(2):
        widget._hear(widget, {"does": "relabel", "id": widget.piece["id"], "label": "castle"}, [])
    monkeypatch.setattr(Review, "piece", lambda *_: 1 / 0)
    widget._hear(widget, {"does": "accept", "id": widget.piece["id"]}, [])
    assert len(heard) == 5
    assert "castle" in heard[3]["error"]
    assert heard[4]["error"] == "a defect: ZeroDivisionError: division by zero"


def test_a_footprint_among_many_is_outlined(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.view.review.NEIGHBOURS", 1)
    review = Review(town)
    for id_ in frame_of(town)["id"]:
        piece = review.piece(id_)
        assert piece.outline
        assert len(piece.others) <= 1


def test_hostile_metadata_reach_the_browser_as_data(town: Path) -> None:
    """Nothing is put together as HTML: the browser's side sets texts only."""
    make_hostile(town)
    write_parquet(frame_of(town), town / "footprints.parquet")  # with boxes again
    told, _ = reviewing.shown(Review(town), Review(town).next_id)
    assert any(HOSTILE[:20] in text for _, text in told["told"])
    code = (WIDGETS / "review.js").read_text("utf-8")
    assert not any(name in code for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("))
