"""The live map: what is drawn for a look is what lies there, and half a million footprints are drawn at once."""

from __future__ import annotations

import io
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.features import rasterize
from test_view import HOSTILE

import geoseg
from geoseg.errors import OptionError
from geoseg.io.geoparquet import write_parquet
from geoseg.io.vectors import to_pixels
from geoseg.view import atlas as drawing
from geoseg.view.atlas import Atlas, Look, fill_boxes
from geoseg.view.explore import Explorer
from geoseg.view.live import about, answer
from geoseg.view.widget import WIDGETS

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture
def town(results: Path, tmp_path: Path) -> Path:
    shutil.copytree(results.parent, tmp_path / "copy")
    return tmp_path / "copy" / "maps" / "town-2024"


def look(**changes: Any) -> dict[str, Any]:
    """All of the town (160 rows, 240 columns), a pixel of the screen for each of its own."""
    whole = {"left": 0, "top": 0, "step": 1, "width": 240, "height": 160, "layers": ["labels"], "column": "confidence"}
    return whole | changes


def drawn(atlas: Atlas, **changes: Any) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(atlas.picture(Look.of(look(**changes))))).convert("RGBA"))


def labels_of(town: Path) -> NDArray[np.uint8]:
    with rasterio.open(town / "labels.tif") as dataset:
        return dataset.read(1)


def test_each_pixel_shows_its_label(town: Path) -> None:
    atlas, labels = Atlas(town), labels_of(town)
    np.testing.assert_array_equal(drawn(atlas)[..., 3] > 100, labels == 1)


@pytest.mark.parametrize("layer", ["scene", "labels", "confidence"])
def test_a_look_from_near_is_a_part_of_the_whole(town: Path, layer: str) -> None:
    atlas = Atlas(town)
    whole, part = (
        drawn(atlas, layers=[layer]),
        drawn(atlas, layers=[layer], left=40, top=30, width=300, height=200, step=0.25),
    )
    expected = whole[30:80, 40:115].repeat(4, 0).repeat(4, 1)
    solid = (expected[..., 3] == part[..., 3]).mean()
    assert solid > 0.99
    assert np.abs(part[..., :3].astype(int) - expected[..., :3])[expected[..., 3] > 0].mean() < 12  # lossy


def test_what_lies_beside_the_scene_is_clear(town: Path) -> None:
    atlas = Atlas(town)
    for step in (1, 0.1):
        picture = drawn(atlas, left=-30, top=-20, step=step, layers=["scene", "labels", "confidence"])
        assert not picture[: int(20 / step) - 1, :, 3].any()
        assert not picture[:, : int(30 / step) - 1, 3].any()
        assert picture[..., 3].any() == (step == 1)
        assert not drawn(atlas, left=5000, step=step, layers=["scene", "confidence"])[..., 3].any()


def test_many_are_drawn_as_boxes_and_few_as_outlines(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas, whole = Atlas(town), Look.of(look(layers=["footprints"], column="class"))
    assert len(atlas.outlines(whole)) == len(atlas.table)
    assert not drawn(atlas, layers=["footprints"])[..., 3].any(), "the browser draws them"
    monkeypatch.setattr(drawing, "OUTLINES", 3)
    assert atlas.outlines(whole) == []
    boxes = drawn(atlas, layers=["footprints"])[..., 3] > 100
    shapes = to_pixels(gpd.read_parquet(town / "footprints.parquet").geometry.to_numpy(), atlas.mapped.grid)
    expected = rasterize([shapely.box(*shape.bounds) for shape in shapes], (160, 240), all_touched=True) > 0
    assert (boxes != expected).mean() < 0.01
    assert atlas.outlines(Look.of(look(layers=["labels"]))) == []


finite = st.floats(-20, 60, width=32)


@given(st.lists(st.tuples(finite, finite, st.floats(0, 30, width=32), st.floats(0, 30, width=32)), max_size=8))
def test_boxes_are_filled_as_numpy_fills_them(corners: list[tuple[float, ...]]) -> None:
    boxes = np.array([(w, n, w + a, n + b) for w, n, a, b in corners], np.float32).reshape(-1, 4)
    found, expected = np.zeros((40, 30), np.int32), np.zeros((40, 30), np.int32)
    fill_boxes(boxes, np.arange(1, len(boxes) + 1, dtype=np.int32), found)
    for value, (west, north, east, south) in enumerate(boxes, 1):
        row, col = max(0, int(np.floor(north))), max(0, int(np.floor(west)))
        expected[row : max(int(np.ceil(south)), row + 1), col : max(int(np.ceil(east)), col + 1)] = value
        if south < 0 or east < 0:
            break  # what lies beside the picture is never asked for
    else:
        np.testing.assert_array_equal(found, expected)


def test_a_place_tells_its_footprint(town: Path) -> None:
    atlas = Atlas(town)
    frame = gpd.read_parquet(town / "footprints.parquet")
    shapes = to_pixels(frame.geometry.to_numpy(), atlas.mapped.grid)
    for row, shape in zip(frame.itertuples(), shapes, strict=True):
        point = shape.representative_point()
        told = answer(atlas, {"ask": "at", "x": point.x, "y": point.y, "slack": 0.5})
        assert told is not None
        assert ["id", row.id] in told[0]["rows"]
        assert told[0]["path"].startswith("M")
    far = answer(atlas, {"ask": "at", "x": -500, "y": -500, "slack": 5})
    assert far == ({"of": "at", "rows": [], "path": ""}, [])


def test_places_go_from_the_least_confident_on(town: Path) -> None:
    atlas = Atlas(town)
    frame = gpd.read_parquet(town / "footprints.parquet").sort_values("confidence", kind="stable")
    for place in (0, 1, len(frame)):
        told = answer(atlas, {"ask": "place", "place": place})
        assert told is not None
        x, y = told[0]["centre"]
        box = to_pixels(np.array([shapely.box(*frame.geometry.iloc[place % len(frame)].bounds)]), atlas.mapped.grid)
        assert shapely.distance(shapely.centroid(box)[0], shapely.Point(x, y)) < 1e-6


def test_what_a_browser_may_send_does_no_harm(town: Path) -> None:
    atlas = Atlas(town)
    huge = answer(atlas, {"ask": "look", **look(width=10**9, height=10**9, step=1e99, left=-1e99, column="<b>")})
    assert huge is not None
    assert huge[0]["look"]["width"] <= 2400
    assert answer(atlas, {"ask": "everything"}) is None
    with pytest.raises((KeyError, ValueError)):
        answer(atlas, {"ask": "look"})


def test_each_view_has_an_answer_of_its_own(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its numbers, and also where something breaks: a view that waits for ever shows nothing new."""
    pytest.importorskip("anywidget")
    widget, sent = geoseg.explore(town, live=True), []
    monkeypatch.setattr(type(widget), "send", lambda _self, told, buffers: sent.append((told, len(buffers))))
    asked = {"ask": "look", **look(), "number": 7, "view": "a"}
    widget._hear(widget, asked, [])
    widget._hear(widget, {"ask": "look", "number": 8, "view": "b"}, [])
    monkeypatch.setattr(Atlas, "picture", lambda *_: 1 / 0)
    widget._hear(widget, {**asked, "number": 9}, [])
    told = [(each["of"], each["number"], each["view"], buffers) for each, buffers in sent]
    assert told == [("look", 7, "a", 1), ("error", 8, "b", 0), ("error", 9, "a", 0)]
    assert sent[2][0]["why"] == "a defect: ZeroDivisionError: division by zero"


def test_one_question_waits_for_another(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JupyterLab asks from more than one thread; sources are read by one."""
    pytest.importorskip("anywidget")
    widget, at_once, most = geoseg.explore(town, live=True), [], []

    def picture(*_: Any) -> bytes:
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.05)
        at_once.pop()
        return b""

    monkeypatch.setattr(Atlas, "picture", picture)
    asked = [{"ask": "look", **look(), "number": n} for n in range(4)]
    threads = [threading.Thread(target=widget._hear, args=(widget, each, [])) for each in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_which_map_it_is(town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(geoseg.explore(town), Explorer)
    pytest.importorskip("anywidget")
    assert type(geoseg.explore(town, live=True)).__name__ == "LiveMap"
    monkeypatch.setattr("geoseg.view.explore.MANY", 3)
    assert type(geoseg.explore(town)).__name__ == "LiveMap"
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(OptionError, match=r"anywidget: pip install 'geoseg\[jupyter\]'"):
        geoseg.explore(town, live=True)
    monkeypatch.setitem(sys.modules, "lonboard", None)
    with pytest.raises(OptionError, match=r"lonboard: pip install 'geoseg\[jupyter\]'"):
        geoseg.explore(town, basemap=True)


def test_a_base_map_is_lonboards_and_only_on_request(town: Path) -> None:
    lonboard = pytest.importorskip("lonboard")
    shown = geoseg.explore(town, basemap=True)
    assert isinstance(shown, lonboard.Map)
    picture, polygons = shown.layers
    frame = gpd.read_parquet(town / "footprints.parquet").to_crs(4326)
    assert len(polygons.table) == len(frame)
    west, south, east, north = picture.bounds
    assert west <= frame.total_bounds[0] <= frame.total_bounds[2] <= east
    assert south <= frame.total_bounds[1] <= frame.total_bounds[3] <= north
    assert picture.image.startswith("data:image/")
    own = "".join((WIDGETS / name).read_text("utf-8") for name in ("live.js", "review.js", "live.css", "review.css"))
    assert "http" not in own.replace("http://www.w3.org/2000/svg", "")


def test_hostile_names_reach_the_browser_as_data(town: Path) -> None:
    frame = gpd.read_parquet(town / "footprints.parquet")
    frame["class"] = np.where(np.arange(len(frame)) % 2, HOSTILE.replace("\ud800", ""), "plain")
    write_parquet(frame, town / "footprints.parquet")
    atlas = Atlas(town)
    assert "class" in about(atlas, 300)["columns"]
    told = answer(atlas, {"ask": "look", **look(layers=["footprints"], column="class")})
    assert told is not None
    assert {name for _, name in told[0]["legend"]["names"]} == set(frame["class"])
    code = (WIDGETS / "live.js").read_text("utf-8")
    assert not any(name in code for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("))


def test_without_footprints_there_is_a_map_all_the_same(town: Path) -> None:
    write_parquet(gpd.read_parquet(town / "footprints.parquet").iloc[:0], town / "footprints.parquet")
    atlas = Atlas(town)
    assert drawn(atlas, layers=["labels", "footprints"])[..., 3].any()
    assert answer(atlas, {"ask": "place", "place": 0}) is None
    assert about(atlas, 300)["columns"] == []
