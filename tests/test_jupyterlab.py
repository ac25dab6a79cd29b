"""Widgets in JupyterLab, in Chromium: a notebook is opened and run, and its widgets used with keys and the mouse.

The server answers this machine only and asks for a token; whatever a page asks of others is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import nbformat
import pytest
from test_browser import chromium  # noqa: F401  a fixture

from geoseg.view.review import FILE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

CELLS = {
    "review": "import geoseg\nwidget = geoseg.review('town-2024', classes=['shed'])\nwidget",
    "again": "import geoseg\ngeoseg.review('town-2024', classes=['shed'])",
    "explore": "import geoseg\ngeoseg.explore('town-2024')",
    "live": "import geoseg\ngeoseg.explore('town-2024', live=True)",
    "unwell": """import geoseg, geoseg.view.live as live
answer, lost = live.answer, []
def unwell(atlas, told):
    if "confidence" in told.get("layers", ()):
        raise ValueError("no such picture")
    if "scene" not in told.get("layers", ("scene",)) and not lost:
        lost.append(told)
        return None
    return answer(atlas, told)
live.answer = unwell
geoseg.explore('town-2024', live=True)""",
    "save": "print('saved', widget.save('labels').count)",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def lab(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A folder with results, the address of JupyterLab in it, and its token."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed: pip install 'geoseg[test]'")
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(results.parent, home / "work")
    folder, token, port = home / "work" / "maps", secrets.token_hex(16), free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    own = {name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "HOME")}
    environment = {**clean, **own, "PYTHONPATH": str(ROOT), "JUPYTER_TOKEN": token, "JUPYTER_PLATFORM_DIRS": "1"}
    settings = home / "jupyter_config_dir" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    options = [
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--no-browser",
        f"--ServerApp.root_dir={folder}",
    ]
    root = ["--allow-root"] if os.geteuid() == 0 else []
    command = [sys.executable, "-m", "jupyterlab", *options, *root, "--LabApp.extension_manager=readonly"]
    with (home / "log").open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/api?token={token}"), home / "log")
            yield folder, f"http://127.0.0.1:{port}", token
        finally:
            server.terminate()
            server.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  our own server
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until(condition: Any, log: Path | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.2)
    pytest.fail("it did not come about" + ("" if log is None else f": {log.read_text()[-2000:]}"))


@contextlib.contextmanager
def notebook(browser: Any, lab: tuple[Path, str, str], *cells: str, **options: Any) -> Iterator[Any]:
    """A notebook with these cells, opened and run in JupyterLab's simple interface."""
    folder, url, token = lab
    written = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELLS[name]) for name in cells])
    written.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    name = f"{'-'.join(cells)}.ipynb"
    nbformat.write(written, folder / name)
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or wrong.append(request.url))
    page.on("websocket", lambda each: each.url.startswith(url.replace("http", "ws")) or wrong.append(each.url))
    page.goto(f"{url}/doc/tree/{name}?token={token}&reset")
    page.locator(".jp-Notebook .jp-CodeCell").nth(len(cells) - 1).wait_for(timeout=60_000)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    for _ in cells:
        page.keyboard.press("Shift+Enter")
    try:
        yield page
    finally:
        page.close()
        context.close()
    assert not wrong


def decided(folder: Path) -> list[dict[str, Any]]:
    """What is on the disk."""
    path = folder / "town-2024" / FILE
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.exists() else []


def test_the_server_asks_for_a_token(lab: tuple[Path, str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{lab[1]}/api/contents", timeout=10)  # noqa: S310  our own server


def test_footprints_are_reviewed_with_keys(chromium: Any, lab: tuple[Path, str, str]) -> None:  # noqa: F811
    folder = lab[0]
    order = gpd.read_parquet(folder / "town-2024" / "footprints.parquet").sort_values("confidence", kind="stable")["id"]
    with notebook(chromium, lab, "review", "save") as page:
        widget = page.locator(".geoseg-review")
        widget.wait_for(timeout=60_000)
        cells = page.locator(".jp-Notebook .jp-CodeCell").count()
        assert widget.locator("image").count() == 1, "the scene"
        for name in (
            "Accept",
            "Reject",
            "Is building",
            "Is shed",
            "Skip",
            "Back",
            "All in view is right",
            "Hide outlines",
        ):
            assert widget.get_by_role("button", name=name).count() == 1
        widget.focus()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        for number, key in enumerate("ar2sbx", 1):  # b takes the s back; x says nothing
            page.keyboard.press(key)
            if key != "x":
                wait_until(lambda n=number: len(decided(folder)) == n)
                page.wait_for_timeout(150)
        told = decided(folder)
        assert [(d.get("ids"), d.get("verdict"), d.get("label")) for d in told[:4]] == [
            ([order.iloc[0]], "accept", None),
            ([order.iloc[1]], "reject", None),
            ([order.iloc[2]], "relabel", "shed"),
            ([order.iloc[3]], "skip", None),
        ]
        assert told[4]["undo"]
        assert widget.get_by_role("status").inner_text() == "Taken back."
        assert f"3 of {len(order)}" in widget.locator(".count").inner_text()
        assert order.iloc[3] in widget.locator("svg").get_attribute("aria-label")
        assert page.locator(".jp-Notebook .jp-CodeCell").count() == cells, "JupyterLab took no key for its own"
        widget.get_by_role("button", name="Hide outlines").click()
        assert not widget.locator("path.light").is_visible()
        widget.get_by_role("button", name="Accept").click()
        wait_until(lambda: len(decided(folder)) == 6)
        for _ in range(8):
            page.keyboard.press("Tab")
            assert page.evaluate(
                "document.activeElement.tagName + getComputedStyle(document.activeElement).outlineStyle"
            ) == ("BUTTONsolid") or not page.evaluate("document.activeElement.closest('.geoseg-review')")
    with notebook(chromium, lab, "again") as page:  # another kernel
        page.locator(".geoseg-review .count").wait_for(timeout=60_000)
        assert f"4 of {len(order)}: 2 accepted, 1 rejected" in page.locator(".geoseg-review .count").inner_text()


def test_the_map_shows_attributes(chromium: Any, lab: tuple[Path, str, str]) -> None:  # noqa: F811
    with notebook(chromium, lab, "explore") as page:
        page.locator("iframe[title=Map]").wait_for(timeout=60_000)
        frame = page.frame_locator("iframe[title=Map]")
        canvas = frame.locator("canvas")
        canvas.wait_for(timeout=30_000)
        frame.get_by_role("checkbox", name="Labels").wait_for(timeout=30_000)
        wait_until(lambda: frame.locator("#scale").inner_text() in {"5 m", "10 m", "20 m"})  # all of 72 m
        for _ in range(2):
            before = canvas.screenshot()
            frame.get_by_role("checkbox", name="Labels").click()
            wait_until(lambda before=before: canvas.screenshot() != before)
        canvas.focus()
        page.keyboard.press("n")
        frame.locator("#attributes tr").nth(5).wait_for(timeout=30_000)


def settled(page: Any) -> dict[str, float]:
    """The look of the live map, once the kernel has drawn it."""
    page.wait_for_timeout(100)
    page.locator(".geoseg-live[data-busy=false]").wait_for(timeout=30_000)
    page.wait_for_timeout(100)
    return dict(page.evaluate("document.querySelector('.geoseg-live').geosegLook()"))


def test_the_live_map_is_drawn_by_its_kernel(chromium: Any, lab: tuple[Path, str, str]) -> None:  # noqa: F811
    frame = gpd.read_parquet(lab[0] / "town-2024" / "footprints.parquet").sort_values("confidence", kind="stable")
    with notebook(chromium, lab, "live") as page:
        live = page.locator(".geoseg-live")
        live.wait_for(timeout=60_000)
        canvas, cells = live.locator("canvas"), page.locator(".jp-Notebook .jp-CodeCell").count()
        whole = settled(page)
        before = canvas.screenshot()
        for layer in ("Scene", "Labels", "Confidence", "Footprints"):
            live.get_by_role("checkbox", name=layer).click()
            settled(page)
            after = canvas.screenshot()
            assert after != before, layer
            before = after
        live.get_by_role("checkbox", name="Footprints").click()
        canvas.focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Shift+Tab")  # as a person without a mouse comes to it
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("+")
        near = settled(page)
        assert near["step"] < whole["step"]
        page.keyboard.press("ArrowRight")
        assert settled(page)["left"] > near["left"]
        page.keyboard.press("n")
        settled(page)
        rows = live.locator(".facts tr")
        rows.first.wait_for(timeout=10_000)
        assert rows.first.inner_text().split() == ["id", frame["id"].iloc[0]]
        live.get_by_label("coloured by").select_option("area_m2")
        settled(page)
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 300, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 250, box["y"] + 200, steps=5)
        page.mouse.up()
        moved = settled(page)
        page.mouse.wheel(0, 300)
        assert settled(page)["step"] > moved["step"]
        page.keyboard.press("0")
        assert settled(page) == whole
        assert page.locator(".jp-Notebook .jp-CodeCell").count() == cells


def test_the_live_map_goes_on_when_an_answer_is_wrong_or_lost(chromium: Any, lab: tuple[Path, str, str]) -> None:  # noqa: F811
    with notebook(chromium, lab, "unwell") as page:
        live = page.locator(".geoseg-live")
        live.wait_for(timeout=60_000)
        canvas, note = live.locator("canvas"), live.get_by_role("status")
        settled(page)
        before = canvas.screenshot()
        live.get_by_role("checkbox", name="Confidence").click()
        settled(page)
        assert note.inner_text() == "This cannot be drawn: a defect: ValueError: no such picture"
        live.get_by_role("checkbox", name="Confidence").click()
        settled(page)
        assert note.inner_text() == ""
        assert canvas.screenshot() == before
        live.get_by_role("checkbox", name="Scene").click()
        settled(page)  # asked again
        assert canvas.screenshot() != before
        _, url, token = lab
        mine = {"Authorization": f"token {token}"}
        for kernel in page.request.get(f"{url}/api/kernels", headers=mine).json():
            assert page.request.post(f"{url}/api/kernels/{kernel['id']}/restart", headers=mine).ok
        live.get_by_role("checkbox", name="Scene").click()
        wait_until(lambda: "run the cell again" in note.inner_text())
