"""How large pages are, and how soon they are open: `python benchmarks/pages.py maps/scene [--source scene.tif]`.

Makes the page of a scene's results, and that of an archive of so many scenes (by giving the one a thousand places), and
opens both in Chromium through Playwright, until every layer is there and drawn.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import shapely
from playwright.sync_api import sync_playwright

import geoseg
from geoseg.view.overview import Archive, archive_page, entry_of
from geoseg.view.render import rendered, write_page

READY = "window.geosegViewer && geosegViewer.layers.every((layer) => layer.ready)"
DRAWN = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--source", action="append", default=[])
    options.add_argument("--scenes", type=int, default=1000)
    options.add_argument("--repeats", type=int, default=5)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        began = perf_counter()
        page = geoseg.report(asked.folder, to=Path(scratch) / "scene.html", sources=tuple(asked.source))
        tell("scene", page, perf_counter() - began, [opened(browser, page) for _ in range(asked.repeats)])
        began = perf_counter()
        page = write_page(Path(scratch) / "archive.html", rendered(archive_page(asked.folder, many(asked))))
        tell(
            f"{asked.scenes} scenes",
            page,
            perf_counter() - began,
            [opened(browser, page) for _ in range(asked.repeats)],
        )
        browser.close()


def many(asked: Any) -> Archive:
    """An archive of the same scene in many places."""
    one = entry_of(asked.folder)
    west, south, east, north = one.outline.bounds
    moved = [((i % 40) * (east - west) * 1.1, (i // 40) * (north - south) * 1.1) for i in range(asked.scenes)]
    return Archive(
        tuple(replace(one, outline=shapely.affinity.translate(one.outline, *by)) for by in moved), (), None, ()
    )


def opened(browser: Any, path: Path) -> float:
    """Seconds until all is drawn, in a window that has seen nothing before."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    began = perf_counter()
    page.goto(path.as_uri())
    while not page.evaluate(READY):
        page.wait_for_timeout(10)
    page.evaluate(DRAWN)
    seconds = perf_counter() - began
    context.close()
    return seconds


def tell(what: str, path: Path, made: float, seconds: list[float]) -> None:
    told = ", ".join(f"{each:.2f}" for each in sorted(seconds))
    print(f"{what}: made in {made:.1f} s, {path.stat().st_size / 1e6:.1f} MB, open after {told} s")


if __name__ == "__main__":
    main()
