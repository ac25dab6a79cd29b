"""Web maps of PMTiles: the legend's colours, in a real browser, and nothing asked for but the file beside the page."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pytest
import shapely
from PIL import Image
from pmtiles.reader import MmapSource, Reader
from test_browser import DESKTOP, PHONE, attributes, chromium, opened, wait_for
from test_serve import serving

from geoseg.errors import OptionError, OutputError
from geoseg.io.layers import About, write_layer
from geoseg.view.render import FOLDER
from geoseg.view.report import report
from geoseg.view.webmap import read_tiles, web_map

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["chromium"]

HOSTILE = "</script><img src=x onerror=alert(1)>"
MAP_READY = "window.geosegMap && geosegMap.map.loaded() && geosegMap.map.areTilesLoaded()"


def squares(**columns: list[Any]) -> gpd.GeoDataFrame:
    """Two squares of 0.001 degrees, side by side."""
    boxes = [shapely.box(85.5 + west, 27.6, 85.501 + west, 27.601) for west in (0, 0.002)]
    return gpd.GeoDataFrame({"id": ["a", "b"], **columns}, geometry=boxes, crs=4326)


@pytest.fixture
def town(tmp_path: Path) -> Path:
    frame = squares(**{"class": ["building", "water"], "confidence": [0.5, 0.9], "name": [HOSTILE, "lake"]})
    write_layer(frame, tmp_path / "town.pmtiles", About("town"))
    return tmp_path / "town.pmtiles"


@pytest.fixture
def mapped(results: Path, tmp_path: Path) -> Path:
    """A copy of results with PMTiles beside."""
    shutil.copytree(results.parent, tmp_path / "copy")
    folder = tmp_path / "copy" / "maps" / "town-2024"
    frame = gpd.read_parquet(folder / "footprints.parquet")
    write_layer(frame, folder / "footprints.pmtiles", About("footprints"))
    return folder


def test_the_header_is_read_as_others_read_it(town: Path) -> None:
    with town.open("rb") as stream:
        head = Reader(MmapSource(stream)).header()
    found = read_tiles(town)
    names = ("min_lon_e7", "min_lat_e7", "max_lon_e7", "max_lat_e7")
    assert found.bounds == tuple(head[name] / 1e7 for name in names)
    assert found.zooms == (head["min_zoom"], head["max_zoom"])
    assert found.layers == ("town",)


@pytest.mark.parametrize("content", [b"", b"PMTiles", b"PMTiles\x02" + bytes(200), b"x" * 200])
def test_what_is_no_pmtiles_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pmtiles").write_bytes(content)
    with pytest.raises(OutputError, match="geoseg convert"):
        web_map(tmp_path / "a.pmtiles")


def test_the_page_lies_beside_its_tiles(town: Path, tmp_path: Path) -> None:
    assert report(town) == town.with_suffix(".html")
    with pytest.raises(OptionError, match="beside it"):
        report(town, to=tmp_path / "elsewhere" / "town.html")


def test_colours_are_those_of_the_legend(mapped: Path, town: Path) -> None:
    item = json.loads((mapped / "item.json").read_text())
    classes = item["assets"]["labels"]["classification:classes"]
    colour = next(f"#{c['color_hint'].lower()}" for c in classes if c["name"] == "building")
    (layer,) = told(web_map(mapped / "footprints.pmtiles"))["layers"]
    column = next(c for c in layer["columns"] if c["name"] == "class")
    assert (layer["by"], column["names"], column["colours"]) == ("class", ["building"], [colour])
    (layer,) = told(web_map(town))["layers"]
    assert [c["name"] for c in layer["columns"]] == ["class", "confidence", "name"]
    assert layer["columns"][0]["names"] == ["building", "water"]


def told(html: str) -> dict[str, Any]:
    return json.loads(re.search(r'<script type="application/json" id="tiles">(.*?)</script>', html, re.DOTALL)[1])


def test_nothing_of_the_tiles_ends_the_page(town: Path) -> None:
    html = web_map(town)
    assert HOSTILE not in html
    assert html.count("</script>") == 3
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert "unsafe" not in policy
    assert "http" not in policy


def test_the_libraries_are_those_that_are_told() -> None:
    vendor = FOLDER / "vendor"
    rows = re.findall(r"\| `([\w.-]+)` \|.*`([0-9a-f]{64})` \|", (vendor / "README.md").read_text())
    assert {name for name, _ in rows} == {path.name for path in vendor.iterdir() if path.suffix in {".js", ".css"}}
    for name, checksum in rows:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == checksum, name


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_map_of_one_file(chromium: Any, town: Path, size: tuple[int, int]) -> None:
    with serving(town) as client:
        with opened(chromium, f"http://localhost:{client.port}/", size, ready=MAP_READY) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            click(page, 85.5005, 27.6005)
            found = attributes(page)
            assert found == {"id": "a", "class": "building", "confidence": "0.5", "name": HOSTILE}
            assert page.locator("#attributes img").count() == 0
            assert colour_at(page, 85.5005, 27.6005) != colour_at(page, 85.5025, 27.6005), "by class"
            page.get_by_label("coloured by").select_option("confidence")
            wait_for(page, MAP_READY)
            page.locator("canvas").focus()
            page.keyboard.press("Escape")
            assert attributes(page) == {}
        assert client.get("/town.html").status == client.get("/town.pmtiles").status == 200
        (town.parent / "other.txt").write_text("keep me")
        assert client.get("/other.txt").status == client.get("/report.html").status == 404


def click(page: Any, lon: float, lat: float) -> None:
    page.locator("#webmap").scroll_into_view_if_needed()
    at = page.evaluate("([lon, lat]) => geosegMap.map.project([lon, lat])", [lon, lat])
    page.locator("#webmap canvas").click(position={"x": at["x"], "y": at["y"]})


def colour_at(page: Any, lon: float, lat: float) -> tuple[int, ...]:
    """The colour that is seen of a place on the map."""
    box = page.locator("#webmap").bounding_box()
    at = page.evaluate("([lon, lat]) => geosegMap.map.project([lon, lat])", [lon, lat])
    seen = Image.open(io.BytesIO(page.screenshot()))
    return seen.getpixel((round(box["x"] + at["x"]), round(box["y"] + at["y"])))


def test_a_served_map_lies_on_the_scene(chromium: Any, mapped: Path) -> None:
    """Its layers are of the same ground: what is seen of a building is its label, too."""
    row = gpd.read_parquet(mapped / "footprints.parquet").to_crs(4326)
    place = row.geometry.iloc[row["area_m2"].argmax()].representative_point()
    with (
        serving(mapped, mapped.parents[1] / "imagery") as client,
        opened(chromium, f"http://localhost:{client.port}/footprints.html", ready=MAP_READY) as page,
    ):
        page.evaluate("([x, y]) => geosegMap.map.jumpTo({ center: [x, y], zoom: 21 })", [place.x, place.y])
        for layer in ("footprints", "Labels", "Confidence", "Scene"):
            wait_for(page, MAP_READY)
            before = colour_at(page, place.x, place.y)
            page.get_by_role("checkbox", name=layer).click()
            wait_for(page, MAP_READY)
            assert colour_at(page, place.x, place.y) != before, layer
            page.get_by_role("checkbox", name=layer).click()
        click(page, place.x, place.y)
        assert attributes(page)["id"] == row["id"].iloc[row["area_m2"].argmax()]


def test_a_page_without_a_server_says_what_to_do(chromium: Any, town: Path) -> None:
    with opened(chromium, report(town).as_uri(), ready="true") as page:
        assert "geoseg serve town.pmtiles" in page.locator("#notice").inner_text()
