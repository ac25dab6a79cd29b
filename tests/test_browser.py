"""Pages in a real browser, Chromium through Playwright: nothing is asked for but the page and its own server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from test_serve import serving
from test_view import make_hostile

from geoseg.records import Listed, write_list
from geoseg.view.explore import explore
from geoseg.view.report import report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DESKTOP, PHONE = (1280, 900), (390, 844)
READY = "window.geosegViewer && geosegViewer.layers.every((layer) => layer.ready)"


@pytest.fixture(scope="module")  # not longer: Playwright has an event loop in this thread
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses root otherwise
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: Any, url: str, size: tuple[int, int] = DESKTOP, *, ready: str = READY, **options: Any
) -> Iterator[Any]:
    """A page that is looked at; whatever it complains of, or asks others for, is an error."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: is_complaint(message) and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: is_own(request.url, url) or wrong.append(request.url))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    page.goto(url)
    wait_for(page, ready)
    try:
        yield page
    finally:
        context.close()
    assert not wrong


def is_complaint(message: Any) -> bool:
    """Whether a message tells that something is wrong; a GPU of software says that it is slow to be photographed."""
    return message.type in {"error", "warning"} and "GPU stall due to ReadPixels" not in message.text


def wait_for(page: Any, condition: str) -> None:
    """Until an expression holds; Playwright's own way would evaluate a text, which the page's policy forbids."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(25)
    pytest.fail(f"{condition}: did not come about")


def is_own(asked: str, url: str) -> bool:
    own = url.rpartition("/")[0] if url.startswith("file:") else "/".join(url.split("/")[:3])
    return asked.startswith(("data:", "blob:", own))


def pixels(page: Any) -> str:
    """What is on the map, once it is drawn."""
    return page.evaluate(
        """() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
            done(geosegViewer.canvas.toDataURL());
        })))"""
    )


@pytest.fixture(scope="module")
def page_url(results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(results / "town-2024", to=tmp_path_factory.mktemp("pages") / "town.html").as_uri()


@pytest.fixture(scope="module")
def change_url(results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(results / "town-2019--town-2024", to=tmp_path_factory.mktemp("pages") / "change.html").as_uri()


def test_layers_are_shown_and_hidden(chromium: Any, page_url: str) -> None:
    with opened(chromium, page_url) as page:
        for layer in ("Scene", "Labels", "Confidence", "Footprints"):
            box, before = page.get_by_role("checkbox", name=layer), pixels(page)
            box.click()
            changed = pixels(page)
            assert changed != before, layer
            box.click()
            assert pixels(page) == before, layer
        before = pixels(page)
        page.get_by_label("Opacity of Scene").fill("30")
        assert pixels(page) != before
        before = pixels(page)
        page.get_by_label("coloured by").select_option("confidence")
        assert pixels(page) != before


def where(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where in the window a pixel of the grid is."""
    box = page.locator("canvas").bounding_box()
    at = page.evaluate("([x, y]) => geosegViewer.screen(x, y)", [x, y])
    return box["x"] + at[0], box["y"] + at[1]


def attributes(page: Any) -> dict[str, str]:
    rows = page.locator("#attributes tr").all()
    return {row.locator("th").inner_text(): row.locator("td").inner_text() for row in rows}


def inner_place(results: Path, row: Any) -> tuple[float, float]:
    """A pixel of the grid inside a footprint."""
    from geoseg.view.facts import Map

    point = row.geometry.representative_point()
    x, y = ~Map.of(results / "town-2024").grid.affine @ (point.x, point.y)
    return x, y


@pytest.mark.parametrize("touch", [False, True])
def test_a_click_shows_attributes(chromium: Any, page_url: str, results: Path, *, touch: bool) -> None:
    frame = gpd.read_parquet(results / "town-2024" / "footprints.parquet")
    row = frame.loc[frame["area_m2"].idxmax()]
    with opened(chromium, page_url, has_touch=touch) as page:
        x, y = where(page, *inner_place(results, row))
        (page.touchscreen.tap if touch else page.mouse.click)(x, y)
        told = attributes(page)
        assert told["id"] == row["id"]
        assert float(told["confidence"]) == pytest.approx(row["confidence"], abs=1e-3)
        assert float(told["area m2"].replace(",", "")) == pytest.approx(row["area_m2"], rel=1e-2)
        assert "EPSG:32645" in told["centre"]
        page.keyboard.press("Escape")
        assert attributes(page) == {} or touch


def test_the_mouse_moves_and_zooms(chromium: Any, page_url: str) -> None:
    with opened(chromium, page_url) as page:
        box = page.locator("canvas").bounding_box()
        x, y = box["x"] + 300, box["y"] + 200
        page.mouse.move(x, y)
        at = page.evaluate("geosegViewer.world(300, 200)")
        page.mouse.wheel(0, -300)
        wait_for(page, "geosegViewer.scale > geosegViewer.fitting() * 1.5")
        kept = page.evaluate("geosegViewer.world(300, 200)")
        assert np.allclose(at, kept, atol=1), "what is below the mouse stays there"
        before, scale = page.evaluate("[geosegViewer.x, geosegViewer.scale]")
        page.mouse.down()
        page.mouse.move(x - 60, y, steps=4)
        page.mouse.up()
        assert page.evaluate("geosegViewer.x") == pytest.approx(before + 60 / scale, abs=0.5)


def test_keys_do_what_the_mouse_does(chromium: Any, page_url: str, results: Path) -> None:
    frame = gpd.read_parquet(results / "town-2024" / "footprints.parquet")
    with opened(chromium, page_url) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        reached = set()
        for _ in range(30):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert {"theme", "CANVAS", "layer-scene", "by-footprints", "BUTTON"} <= reached
        page.locator("canvas").focus()
        x, scale = page.evaluate("[geosegViewer.x, geosegViewer.scale]")
        page.keyboard.press("+")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("geosegViewer.scale") > scale
        assert page.evaluate("geosegViewer.x") > x
        page.keyboard.press("0")
        assert page.evaluate("geosegViewer.scale") == pytest.approx(scale)
        page.keyboard.press("n")
        assert float(attributes(page)["confidence"]) == pytest.approx(frame["confidence"].min(), abs=1e-3)
        page.keyboard.press("n")
        second = float(attributes(page)["confidence"])
        assert second >= frame["confidence"].min() - 1e-3
        page.keyboard.press("p")
        assert float(attributes(page)["confidence"]) <= second
        page.keyboard.press("Escape")
        assert attributes(page) == {}
        assert "Click an outline" in page.locator("#attributes").inner_text()


def test_a_map_that_nobody_saw_at_first_shows_all_of_it(chromium: Any, results: Path, tmp_path: Path) -> None:
    """JupyterLab gives an output's frame its place after the frame's scripts have run."""
    shown = explore(results / "town-2024")._repr_html_()
    (tmp_path / "hidden.html").write_text(f"<link rel=icon href=data:,><div id=cell hidden>{shown}</div>")
    with opened(chromium, (tmp_path / "hidden.html").as_uri(), ready="window.frames.length === 1") as page:
        frame = page.frames[1]
        wait_for(frame, READY)
        assert frame.evaluate("geosegViewer.width") == 0
        page.evaluate("document.querySelector('#cell').hidden = false")
        wait_for(frame, "geosegViewer.width > 0")
        assert frame.evaluate("geosegViewer.scale") == pytest.approx(frame.evaluate("geosegViewer.fitting()") * 0.98)
        west, north, east, south = frame.evaluate(
            "[...geosegViewer.world(0, 0), ...geosegViewer.world(geosegViewer.width, geosegViewer.height)]"
        )
        assert west <= 0
        assert north <= 0
        assert east >= 240
        assert south >= 160
        frame.evaluate("geosegViewer.zoom(3)")
        near = frame.evaluate("geosegViewer.scale")
        for hidden in ("true", "false"):
            page.evaluate(f"document.querySelector('#cell').hidden = {hidden}")
            page.wait_for_timeout(100)
        assert frame.evaluate("geosegViewer.scale") == near, "it stays where one looked"


def test_a_thumbnail_leads_to_its_place(chromium: Any, page_url: str, results: Path) -> None:
    with opened(chromium, page_url) as page:
        first = page.locator(".worst a").first
        first.click()
        frame = gpd.read_parquet(results / "town-2024" / "footprints.parquet")
        row = frame.sort_values("confidence", kind="stable").iloc[0]
        assert attributes(page)["id"] == row["id"]
        assert page.evaluate("geosegViewer.scale > geosegViewer.fitting() * 1.5")


def test_the_swipe_moves(chromium: Any, change_url: str) -> None:
    with opened(chromium, change_url) as page:
        page.get_by_role("checkbox", name="What has changed").click()
        for side in ("before", "after"):
            page.evaluate("(side) => { geosegViewer.layer(side).opacity = side === 'before' ? 1 : 0; }", side)
        box = page.locator("canvas").bounding_box()
        half = page.evaluate("geosegViewer.swipe")
        middle = box["x"] + box["width"] / 2, box["y"] + 200
        page.mouse.move(*middle)
        page.mouse.down()
        page.mouse.move(middle[0] + 150, middle[1], steps=5)
        page.mouse.up()
        moved = page.evaluate("geosegViewer.swipe")
        assert moved == pytest.approx(half + 150 / box["width"], abs=0.01)
        assert covered(page) == pytest.approx(moved, abs=0.06), "the date before is seen on the left alone"
        slider = page.get_by_label("Swipe: town-2019 on the left, town-2024 on the right")
        assert slider.input_value() == str(round(moved * 100))
        slider.focus()
        page.keyboard.press("Home")
        assert page.evaluate("geosegViewer.swipe") == 0
        page.locator("canvas").focus()
        page.keyboard.press("]")
        assert page.evaluate("geosegViewer.swipe") == pytest.approx(0.02)


def covered(page: Any) -> float:
    """The last column of the map, as a share of its width, in which a picture is seen; the swipe itself is left out."""
    page.evaluate("() => { geosegViewer.paintSwipe = () => {}; geosegViewer.look(120, 80, 20); }")
    pixels(page)
    return page.evaluate(
        """() => {
            const c = geosegViewer.canvas, row = c.getContext("2d").getImageData(0, c.height / 2, c.width, 1).data;
            let last = 0;
            for (let i = 0; i < c.width; i++) if (row[4 * i + 3] > 200) last = i;
            return last / c.width;
        }"""
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_any_width_and_can_be_read(
    chromium: Any, page_url: str, change_url: str, size: tuple[int, int], scheme: str
) -> None:
    for url in (page_url, change_url):
        with opened(chromium, url, size, color_scheme=scheme) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            faint = page.evaluate(CONTRAST)
            assert not faint
            assert page.locator("canvas").bounding_box()["width"] > min(size[0] - 60, 800)


CONTRAST = """() => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const light = (text) => {
        const [r, g, b] = text.match(/[\\d.]+/g).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (e) => {
        for (; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$/.test(colour)) return colour;
        }
        return "rgb(255, 255, 255)";
    };
    const faint = [];
    for (const e of document.querySelectorAll("h1, h2, p, td, th, dt, dd, a, button, label, li, span, b")) {
        if (!e.textContent.trim() || !e.getClientRects().length) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((p, q) => q - p);
        if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(`${e.tagName} ${e.textContent.slice(0, 30)}`);
    }
    return faint;
}"""
"""Texts whose contrast is below 4.5, the least of WCAG 2.2's level AA."""


def test_light_and_dark_can_be_chosen(chromium: Any, page_url: str) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, page_url, color_scheme="light") as page:
        system, button = page.evaluate(colour), page.locator("#theme")
        button.click()
        assert page.evaluate(colour) == system
        button.click()
        assert page.evaluate(colour) != system
        page.reload()
        wait_for(page, READY)
        assert page.evaluate(colour) != system, "it is remembered"


def test_it_can_be_printed(chromium: Any, page_url: str) -> None:
    with opened(chromium, page_url) as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator(".tools").is_visible()
        assert page.locator("canvas").is_visible()
        assert page.locator("#layers > li").evaluate_all("(rows) => rows.map((each) => each.offsetHeight > 0)") == [
            True,  # footprints
            False,  # confidence, which is not on the map
            False,
            True,
        ]
        page.set_viewport_size({"width": 794, "height": 1123})  # A4
        wait_for(page, "geosegViewer.width < 600")
        assert page.evaluate("geosegViewer.scale") == pytest.approx(page.evaluate("geosegViewer.fitting()") * 0.98)
        assert page.pdf().startswith(b"%PDF")


def test_hostile_metadata_run_nothing(chromium: Any, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results.parent, tmp_path / "copy")
    town = tmp_path / "copy" / "maps" / "town-2024"
    make_hostile(town)
    with opened(chromium, report(town).as_uri()) as page:
        page.keyboard.press("Tab")
        page.locator("canvas").focus()
        page.keyboard.press("n")
        assert "<script>" in attributes(page)["class"]
        assert page.locator("img").count() == 0
        assert page.locator("script").count() == 2
        assert "alert(1)" in page.title()


def test_an_archive_is_sorted_filtered_and_opened(chromium: Any, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "maps"
    write_list(out, {"title": "Towns"}, out, [Listed("lost", "lost.tif", (9, 9))], [])
    with opened(chromium, report(out).as_uri()) as page:
        rows = page.locator("#scenes tbody tr")
        names = lambda: [row.locator("td").first.inner_text() for row in rows.all() if row.is_visible()]  # noqa: E731
        assert names() == ["town-2019", "town-2024", "lost"]
        page.get_by_role("button", name="Footprints").click()
        counts = [int(row.locator("td").nth(6).get_attribute("data-sort").split(".")[0]) for row in rows.all()]
        assert counts == sorted(counts)
        page.get_by_role("button", name="Footprints").click()
        assert names()[-1] == "lost"
        page.get_by_label("Filter").fill("2024 complete")
        assert names() == ["town-2024"]
        assert page.locator("#filtered").inner_text() == "1 of 3"
        page.locator("canvas").focus()
        page.keyboard.press("n")
        assert page.locator("#attributes a").get_attribute("href").endswith("/report.html")
        page.locator("#scenes a >> visible=true").click()
        wait_for(page, READY)
        assert page.locator("h1").inner_text().lower() == "buildings of town-2024"


def test_scenes_far_apart_can_be_seen(chromium: Any, results: Path, tmp_path: Path) -> None:
    shutil.copytree(results.parent, tmp_path / "copy")
    out = tmp_path / "copy" / "maps"
    item = json.loads((out / "town-2019" / "item.json").read_text())
    item["geometry"] = shapely.geometry.mapping(shapely.box(-84, 33, -83.999, 33.001))
    (out / "town-2019" / "item.json").write_text(json.dumps(item))
    with opened(chromium, report(out).as_uri()) as page:
        boxes = page.evaluate("geosegViewer.layers[0].shapes.boxes.length / 4")
        drawn = page.evaluate(
            """() => {
                const { width, height } = geosegViewer.canvas;
                const { data } = geosegViewer.context.getImageData(0, 0, width, height);
                let count = 0;
                for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
                return count;
            }"""
        )
        assert drawn >= boxes * 36


def test_a_served_page_has_the_files_own_pixels(chromium: Any, results: Path) -> None:
    with serving(results, results.parent / "imagery") as client:
        url = f"http://localhost:{client.port}/town-2024/report.html"
        with opened(chromium, url) as page:
            page.evaluate("geosegViewer.look(120, 80, 8)")
            wait_for(
                page,
                "geosegViewer.tiles.size > 0 && [...geosegViewer.tiles.values()].every((tile) => tile.naturalWidth)",
            )
            asked = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
            tiles = f"http://localhost:{client.port}/town-2024/tiles"
            assert {each for each in asked if not each.startswith("data:")} == {f"{tiles}/scene/0/0/0"}
            page.get_by_role("checkbox", name="Labels").click()
            wait_for(page, "geosegViewer.tiles.get('tiles/labels/0/0/0')?.naturalWidth === 240")
            shown = pixels(page)
            page.evaluate(
                """() => { for (const layer of geosegViewer.layers) if (layer.image) {
                    const { width, height } = layer.image;
                    layer.image = Object.assign(document.createElement("canvas"), { width, height });
                } geosegViewer.draw(); }"""
            )
            assert pixels(page) == shown, "the map is of tiles, and they lie where the overview does"
            page.evaluate("() => { for (const layer of geosegViewer.layers) layer.tiles = null; geosegViewer.draw(); }")
            assert pixels(page) != shown
