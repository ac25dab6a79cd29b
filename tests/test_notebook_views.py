"""How things look in a notebook and in QGIS: cards, the map in a frame, figures, and the project."""

from __future__ import annotations

import html
import json
import shutil
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pytest
import rasterio
from conftest import write_tif
from test_view import HOSTILE, Looked, make_hostile

import geoseg
from geoseg.changes.pair import Change
from geoseg.errors import OptionError, OutputError
from geoseg.pipeline import Result
from geoseg.view.qgis import write_project
from geoseg.view.report import report

if TYPE_CHECKING:
    from pathlib import Path

mpl.use("Agg")


@pytest.fixture
def town(results: Path, tmp_path: Path) -> Path:
    shutil.copytree(results.parent, tmp_path / "copy")
    return tmp_path / "copy" / "maps" / "town-2024"


# --- cards


def texts(card: str) -> str:
    return " ".join(text for found in Looked(card).texts.values() for text in found)


def rows(card: str) -> dict[str, str]:
    found = Looked(card).texts
    return dict(zip(found["th"], found["td"], strict=True))


def test_a_scene_shows_what_it_is(results: Path) -> None:
    card = geoseg.open_scene(results.parent / "imagery" / "town-2024.tif")._repr_html_()
    assert "240 x 160 pixels of 0.3 x 0.3 m" in texts(card)
    assert "EPSG:32645" in texts(card)
    assert "1 red, 2 green, 3 blue (uint8)" in texts(card)
    assert card.count("data:image/webp;base64,") == 1


def test_a_result_shows_its_map_and_where_it_came_from(results: Path) -> None:
    folder = results / "town-2024"
    card = Result(folder)._repr_html_()
    assert card.count("data:image/") == 2, "scene and labels"
    count = len(gpd.read_parquet(folder / "footprints.parquet"))
    assert rows(card)["Footprints"] == f"{count:,}"
    assert "building" in texts(card)
    widths = [float(value) for tag, name, value in Looked(card).attributes if (tag, name) == ("rect", "width")]
    assert sum(widths) == pytest.approx(100, abs=0.1)


def test_a_change_shows_its_numbers(results: Path) -> None:
    change = Change(results / "town-2019--town-2024")
    shown = rows(change._repr_html_())
    for status, row in change.summary["statuses"].items():
        assert shown[status.replace("_", " ")] == f"{row['count']:,}"


def test_a_change_shows_both_maps_if_they_are_beside_it(town: Path) -> None:
    change, before = Change(town.parent / "town-2019--town-2024"), town.parent / "town-2019"
    card = change._repr_html_()
    looked = [value for _, attribute, value in Looked(card).attributes if attribute == "src"]
    maps = [each for made in (before, town) for each in Looked(Result(made)._repr_html_()).attributes]
    assert looked == [value for _, attribute, value in maps if attribute == "src"][1::2], (
        "the same as in the maps' cards"
    )
    assert rows(card)["Grid"] == "240 x 160 pixels of 0.3 m, EPSG:32645"
    before.rename(town.parent / "elsewhere")
    assert "src=" not in change._repr_html_()
    assert rows(change._repr_html_())["Images"] == rows(card)["Images"]


def test_classes_that_changed_are_told_by_hectares(town: Path) -> None:
    folder = town.parent / "town-2019--town-2024"
    summary = json.loads((folder / "summary.json").read_text())
    del summary["statuses"]
    summary |= {"classes": ["a", "<b>"], "hectares": [[1, 2.5], [0.25, 3]]}
    (folder / "summary.json").write_text(json.dumps(summary))
    shown = rows(Change(folder)._repr_html_())
    assert list(shown.items())[:2] == [("a to <b>", "2.5 ha"), ("<b> to a", "0.25 ha")]


def test_hostile_metadata_are_text_in_cards_too(town: Path, tmp_path: Path) -> None:
    make_hostile(town)
    name = 'x"><script>alert(1)<!--'.replace("/", "")
    scene = geoseg.open_scene(write_tif(tmp_path / "a.tif", np.zeros((3, 40, 50), np.uint8)), name=name)
    for card in (Result(town)._repr_html_(), scene._repr_html_(), Result(tmp_path / name)._repr_html_()):
        looked = Looked(card)
        assert "script" not in looked.tags
        assert {tag for tag, attribute, _ in looked.attributes if attribute.startswith("on")} == set()
        assert all(value.startswith("data:image/") for tag, attribute, value in looked.attributes if attribute == "src")
    assert HOSTILE[:30] in texts(Result(town)._repr_html_())


def test_cards_ask_nobody_and_read_nothing_large(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from geoseg.view import cards

    scene = geoseg.open_scene(results.parent / "imagery" / "town-2024.tif")
    monkeypatch.setattr(cards, "open_source", lambda *_: pytest.fail("pixels are read"))
    assert "data:" not in replace(scene, path="https://localhost:1/a.tif")._repr_html_()
    monkeypatch.setattr(cards, "CHEAP", 100)
    assert "data:" not in scene._repr_html_(), "it has no overviews"


def test_what_is_not_there_is_told_and_raises_nothing(tmp_path: Path) -> None:
    assert "holds no complete result" in Result(tmp_path)._repr_html_()
    assert "holds no complete result" in Change(tmp_path)._repr_html_()


# --- the map in a frame


def test_a_scene_that_was_moved_can_be_named(town: Path) -> None:
    moved = (town.parents[1] / "imagery" / "town-2024.tif").rename(town / "moved.tif")
    assert '"id":"scene"' not in geoseg.explore(town).html
    assert '"id":"scene"' in geoseg.explore(town, source=moved).html
    change = town.parent / "town-2019--town-2024"
    before = town.parents[1] / "imagery" / "town-2019.tif"
    assert '"id":"after"' in geoseg.explore(change, source=(before, moved)).html
    with pytest.raises(OptionError, match="give it twice"):
        geoseg.explore(change, source=moved)


def test_a_map_stands_in_a_frame_of_its_own(results: Path, tmp_path: Path) -> None:
    explorer = geoseg.explore(Result(results / "town-2024"))
    frame = Looked(explorer._repr_html_())
    told = {name: value for tag, name, value in frame.attributes if tag == "iframe"}
    assert told["sandbox"] == "allow-scripts"
    assert told["srcdoc"] == explorer.html
    page = Looked(explorer.html)
    assert page.tags.count("canvas") == 1
    assert "h1" not in page.tags
    ids = [layer["id"] for layer in page.data["layers"]]
    assert ids == ["scene", "labels", "confidence", "footprints"]
    assert explorer.save(tmp_path / "map.html").read_text(encoding="utf-8") == explorer.html
    change = geoseg.explore(results / "town-2019--town-2024", height=400)
    assert "height:400px" in change._repr_html_()
    assert any(layer.get("side") == "before" for layer in Looked(change.html).data["layers"])


def test_only_one_result_can_be_explored(results: Path) -> None:
    with pytest.raises(OutputError, match="geoseg report"):
        geoseg.explore(results)


# --- figures


@pytest.mark.parametrize("layer", ["labels", "confidence"])
def test_a_figure_lies_where_the_map_does(results: Path, layer: str, tmp_path: Path) -> None:
    axes = Result(results / "town-2024").plot(layer, outlines=True)
    with rasterio.open(results / "town-2024" / "labels.tif") as dataset:
        box = dataset.bounds
    assert axes.get_xlim() == (box.left, box.right)
    assert axes.get_ylim() == (box.bottom, box.top)
    assert all(tuple(image.get_extent()) == (box.left, box.right, box.bottom, box.top) for image in axes.images)
    bar = axes.lines[-1]
    assert np.ptp(bar.get_xdata()) == pytest.approx(10, rel=1e-3), "10 m of 72"
    assert axes.texts[0].get_text() == "10 m"
    if layer == "labels":
        (building,) = axes.get_legend().get_patches()
        assert building.get_facecolor() == pytest.approx(mpl.colors.to_rgba("#e4572e"))
    axes.figure.savefig(tmp_path / "a.png")
    mpl.pyplot.close(axes.figure)


def test_a_folder_may_be_named_by_a_text(results: Path) -> None:
    for made, name in ((Result, "town-2024"), (Change, "town-2019--town-2024")):
        assert made(str(results / name)) == made(results / name)
        assert made(str(results / name))._repr_html_() == made(results / name)._repr_html_()


def test_layers_that_are_none_are_refused(results: Path) -> None:
    with pytest.raises(OptionError, match="labels or confidence"):
        Result(results / "town-2024").plot("height")  # type: ignore[arg-type]  # what is tested


# --- QGIS


def test_a_project_holds_each_layer_in_its_colours(town: Path) -> None:
    report(town)
    root = ET.parse(town / "project.qgs").getroot()  # noqa: S314  our own file
    layers = {layer.findtext("layername"): layer for layer in root.iter("maplayer")}
    assert list(layers) == ["footprints", "labels", "confidence", "town-2024"]
    for layer in layers.values():
        assert (town / layer.findtext("datasource")).exists()
        assert len(layer.findtext("id")) > 10, "QGIS takes no shorter one"
    entries = [(e.get("value"), e.get("label"), e.get("color"), e.get("alpha")) for e in root.iter("paletteEntry")]
    assert entries == [("0", "background", "#000000", "0"), ("1", "building", "#e4572e", "255")]
    for name in ("labels", "confidence"):  # what QGIS takes for a file that is dragged by itself
        style = ET.parse(town / f"{name}.qml").getroot()  # noqa: S314  our own file
        assert ET.tostring(style.find("pipe")).split() == ET.tostring(layers[name].find("pipe")).split()
    assert not (town / "footprints.qml").exists()
    assert not (town.parent.parent / "imagery" / "town-2024.qml").exists()
    tree = [each.get("id") for each in root.iter("layer-tree-layer")]
    assert tree == [layer.findtext("id") for layer in layers.values()]
    assert [each.text for each in root.iter("authid")] == ["EPSG:32645", "EPSG:4326", *["EPSG:32645"] * 4]
    with rasterio.open(town / "labels.tif") as dataset:
        extent = [float(root.findtext(f"mapcanvas/extent/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert extent == pytest.approx(list(dataset.bounds))


def test_a_project_of_a_change_has_a_colour_for_each_status(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results.parent, tmp_path / "copy")
    folder = tmp_path / "copy" / "maps" / "town-2019--town-2024"
    root = ET.parse(write_project(folder)).getroot()  # noqa: S314  our own file
    values = {category.get("value") for category in root.iter("category")}
    assert {"new", "demolished", "not_compared"} <= values
    assert "failed" not in values
    assert all((folder / layer.findtext("datasource")).exists() for layer in root.iter("maplayer"))


def test_a_project_is_xml_whatever_the_metadata_say(town: Path) -> None:
    make_hostile(town)
    item = json.loads((town / "item.json").read_text())
    item["properties"]["title"] = "\x00\x08</title> \ud800"
    (town / "item.json").write_text(json.dumps(item))
    root = ET.parse(write_project(town)).getroot()  # noqa: S314  our own file
    assert root.findtext("title") == "</title> "
    assert html.unescape(HOSTILE[:20]) in {entry.get("label")[:20] for entry in root.iter("paletteEntry")}
