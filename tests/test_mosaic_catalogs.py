"""The scenes of a STAC catalog as one: on the command line and in Python as in a job, reaching no further."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import write_tif
from test_mosaics import cut, labels_of, picture, whole_of
from test_openers import changed

import geoseg
from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.cli import cli
from geoseg.errors import GeosegError, OptionError, SceneError
from geoseg.inventory import CatalogJob, write_catalog
from geoseg.io.scenes import open_scene

if TYPE_CHECKING:
    from pathlib import Path


def item(name: str, href: str, **properties: Any) -> dict[str, Any]:
    visual = {"href": href, "type": "image/tiff; application=geotiff", "roles": ["visual"]}
    other = {"href": "./none.tif", "type": "image/tiff", "roles": ["overview"]}
    dated = {"datetime": "2024-05-06T07:08:09Z", **properties}
    return {"type": "Feature", "id": name, "geometry": None, "properties": dated, "links": []} | {
        "assets": {"visual": visual, "other": other}
    }


def flat(path: Path, value: int) -> Path:
    return write_tif(path, np.full((3, 40, 50), value, np.uint8))


def collected(folder: Path, *items: dict[str, Any], **more: Any) -> Path:
    """An item collection, as a search is saved."""
    folder.mkdir(exist_ok=True)
    path = folder / "found.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items, **more}), encoding="utf-8")
    return path


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """An item collection of four scenes of one place, with dates and cloud cover."""
    items = []
    for k, (year, clouds) in enumerate(((2021, 30), (2023, 40.5), (2019, 70), (2022, 2)), 1):
        flat(tmp_path / f"{k}.tif", k)
        properties = {"datetime": f"{year}-05-06T07:08:09Z", "eo:cloud_cover": clouds}
        items.append(item(f"scene {k}", f"./{k}.tif", **properties))
    return collected(tmp_path, *items)


@pytest.mark.parametrize(
    ("order", "ranking"),
    [("", "1234"), ("-newest", "2413"), ("-oldest", "3142"), ("-least-cloud", "4123")],
)
def test_the_rule_orders_the_scenes_of_a_catalog(four: Path, order: str, ranking: str) -> None:
    scene = open_scene(f"mosaic{order}:{four}")
    assert [part.path[-5] for part in scene.parts] == list(ranking)
    assert whole_of(scene).values[0, 5, 5] == int(ranking[0])
    assert (scene.id, scene.datetime) == ("found", None)
    assert [part.id for part in scene.parts] == [f"scene_{k}" for k in ranking]
    assert open_scene([four], order=order.removeprefix("-") or "first").parts == scene.parts  # type: ignore[arg-type]


def test_a_catalog_and_files_may_be_mixed(four: Path, tmp_path: Path) -> None:
    flat(tmp_path / "own.tif", 9)
    scene = open_scene(f"mosaic:{tmp_path / 'own.tif'},{four}")
    assert [part.path[-5] for part in scene.parts] == ["n", "1", "2", "3", "4"]
    assert scene.id == "own_and_4_more"


def test_pieces_that_a_catalog_lists_are_that_scene(tmp_path: Path, tiny_model: Path) -> None:
    """As `geoseg catalog` lists them, on the command line and in a job."""
    values = picture()
    cut(values, tmp_path / "tiles", photometric="RGB")
    write_catalog(CatalogJob(tmp_path / "tiles", id="my town"))
    catalog = tmp_path / "tiles" / "collection.json"
    words = ["--out", str(tmp_path / "out"), "--model", str(tiny_model)]
    done = CliRunner().invoke(cli, ["segment", f"mosaic:{catalog}", "buildings", *words])
    assert done.exit_code == 0, done.output
    whole = write_tif(tmp_path / "whole.tif", values, nodata=0)
    expected = labels_of(geoseg.segment(whole, "buildings", tmp_path / "out", model=str(tiny_model)).folder)
    np.testing.assert_array_equal(labels_of(tmp_path / "out" / "my_town"), expected)
    scenes = {"catalogs": ["tiles/collection.json"], "mosaic": {"id": "town"}}
    job = RunJob(product="buildings", model=str(tiny_model), scenes=scenes)
    assert run_archive(plan_archive(job, tmp_path)).done == 1
    np.testing.assert_array_equal(labels_of(tmp_path / "maps" / "town"), expected)


def test_links_are_followed_as_in_jobs(tmp_path: Path) -> None:
    for k in (1, 2):
        (tmp_path / f"y{k}").mkdir()
        flat(tmp_path / f"y{k}" / "a.tif", k)
        (tmp_path / f"y{k}" / "a.json").write_text(json.dumps(item(f"a{k}", "./a.tif")), encoding="utf-8")
    links = [{"rel": "item", "href": f"./y{k}/a.json"} for k in (2, 1, 2)] + [{"rel": "root", "href": "./c.json"}]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"type": "Catalog", "id": "both", "links": links}), encoding="utf-8")
    scene = open_scene(f"mosaic:{path}")
    assert (scene.id, [part.id for part in scene.parts]) == ("both", ["a2", "a1"])
    assert [part.item for part in scene.parts] == [str(tmp_path / f"y{k}" / "a.json") for k in (2, 1)]


def test_assets_are_chosen_by_key_of_each_item(tmp_path: Path) -> None:
    items = []
    for k in (1, 2):
        assets = {}
        for number, band in enumerate(("B02", "B03", "B04")):
            write_tif(tmp_path / f"{k}_{band}.tif", np.full((1, 40, 50), 10 * k + number, np.uint8))
            assets[band] = {"href": f"{k}_{band}.tif", "type": "image/tiff"}
        items.append(item(f"s{k}", "none.tif") | {"assets": assets})
    path = collected(tmp_path, *items)
    scene = open_scene(f"mosaic:{path}#B04,B03,B02")
    assert scene.bands == ("red", "green", "blue")
    assert whole_of(scene).values[:, 3, 3].tolist() == [12, 11, 10]
    assert whole_of(open_scene(f"mosaic:{path}#B03"), (1,)).values[0, 3, 3] == 11


def test_a_saved_search_with_addresses_is_for_jobs(tmp_path: Path) -> None:
    path = collected(tmp_path, item("far", "https://example.invalid/a.tif"))
    with pytest.raises(SceneError, match=r"https is not allowed.*scenes\.allow: \[https\], as a job has them"):
        open_scene(f"mosaic:{path}")


def test_a_catalog_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    flat(tmp_path / "secret.tif", 1)
    path = collected(tmp_path / "sub", item("a", "../secret.tif"))
    with pytest.raises(SceneError, match=r"\.\./secret\.tif: lies outside of its catalog's folder"):
        open_scene(f"mosaic:{path}")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"type": "FeatureCollection", "features": []}, "holds no scenes; check the catalog"),
        ({"type": "Catalog", "id": "a"}, "holds no scenes; check the catalog"),
        ({"type": "FeatureCollection", "features": [1]}, "holds what is no item"),
        ({"type": "Catalog", "links": [{"rel": "item", "href": "none.json"}]}, "none.json: cannot be read as STAC"),
        ({"type": "Unknown"}, "is no STAC item but of type 'Unknown'"),
    ],
)
def test_what_is_no_catalog_is_told(tmp_path: Path, content: dict[str, Any], why: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SceneError, match=why) as told:
        open_scene(f"mosaic:{path}")
    assert str(path) in str(told.value)


def test_a_catalog_alone_is_no_scene_but_names_the_way(four: Path) -> None:
    with pytest.raises(SceneError, match=r"map the scenes of a catalog as one with mosaic:.*found\.json"):
        open_scene(four)


def test_clouds_that_nobody_told_are_missed(tmp_path: Path) -> None:
    flat(tmp_path / "1.tif", 1)
    flat(tmp_path / "2.tif", 2)
    for cover in (None, "few", float("nan")):
        path = collected(tmp_path, item("a", "1.tif", **{"eo:cloud_cover": 3}), item("b", "2.tif"))
        content = json.loads(path.read_text("utf-8"))
        content["features"][1]["properties"]["eo:cloud_cover"] = cover
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(SceneError, match=r"2\.tif: has no STAC item that tells its cloud cover"):
            open_scene(f"mosaic-least-cloud:{path}")


def test_a_job_orders_what_a_catalog_lists_by_clouds(four: Path, tiny_model: Path) -> None:
    scenes = {"catalogs": [four.name], "mosaic": {"order": "least-cloud", "id": "town"}}
    plan = plan_archive(RunJob(product="buildings", model=str(tiny_model), scenes=scenes), four.parent)
    assert [part.id[-1] for part in plan.entries[0].order.scene.parts] == ["4", "1", "2", "3"]


def test_stac_geoparquet_lists_scenes(four: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("stac_geoparquet.arrow", reason="the extra `archive` is not installed")
    items = json.loads(four.read_text("utf-8"))["features"]
    box = {"bbox": [0.0, 0.0, 1.0, 1.0], "stac_version": "1.1.0", "collection": "c"}
    square = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]}
    table = arrow.parse_stac_items_to_arrow([each | box | {"geometry": square} for each in items])
    arrow.to_parquet(table, tmp_path / "items.parquet")
    scene = open_scene(f"mosaic-least-cloud:{tmp_path / 'items.parquet'}")
    assert [part.id for part in scene.parts] == ["scene_4", "scene_1", "scene_2", "scene_3"]
    assert scene.id == "items"


def test_a_catalog_that_says_anything_is_read_or_told(four: Path) -> None:
    content, rng, outcomes = json.loads(four.read_text("utf-8")), random.Random(2), set()
    links = {"type": "Catalog", "id": "x", "links": [{"rel": "item", "href": "found.json"}]}
    for k in range(80):
        four.write_text(json.dumps(changed(content, rng, "../x.tif", "found.json", ".", "1.tif")), encoding="utf-8")
        (four.parent / "c.json").write_text(json.dumps(changed(links, rng, "found.json")), encoding="utf-8")
        order, name = ("", "-newest", "-least-cloud")[k % 3], ("found.json", "c.json")[k % 2]
        try:
            open_scene(f"mosaic{order}:{four.parent / name}")
        except GeosegError as error:
            outcomes.add("\n" in str(error))
        else:
            outcomes.add(None)
    assert outcomes == {None, False}


def test_an_unknown_order_is_told(four: Path) -> None:
    with pytest.raises(OptionError, match="order 'clearest': is none; choose one of first, newest"):
        open_scene(f"mosaic-clearest:{four}")


def test_a_new_item_makes_another_result(four: Path, tiny_model: Path) -> None:
    where = four.parent
    job = {"model": str(tiny_model)}
    geoseg.segment(f"mosaic:{four}", "buildings", where / "out", **job)
    content = json.loads(four.read_text("utf-8"))
    flat(where / "5.tif", 5)
    content["features"].append(item("new", "5.tif"))
    four.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(GeosegError, match="holds results of another job"):
        geoseg.segment(f"mosaic:{four}", "buildings", where / "out", **job)
