"""The documentation's site: built strictly, complete, and with nothing that is loaded from elsewhere."""

from __future__ import annotations

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_browser import DESKTOP, PHONE, chromium, opened

import geoseg
from geoseg.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["chromium"]

ROOT = Path(__file__).parents[1]
READY = "document.readyState === 'complete'"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, for whose sake links that lead nowhere and pages that nothing leads to are errors."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'geoseg[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_everything_has_its_page(site: Path) -> None:
    for job in (ROOT / "workflows").glob("*.yaml"):
        assert (site / "workflows" / f"{job.stem}.html").exists(), job.name
    for card in (ROOT / "catalogs" / "models").glob("*/README.md"):
        assert "From its STAC item" in (site / "models" / f"{card.parent.name}.html").read_text()
    commands = (site / "commands.html").read_text()
    for name in cli.commands:
        assert f'id="geoseg-{name}"' in commands
    api = (site / "api.html").read_text()
    for name in geoseg.__all__:
        assert f'id="{geoseg._HOME[name]}.{name}"' in api


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", path.read_text()):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), f"{path.name}: {tag}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", path.read_text()), path.name


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://localhost:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("page", ["index", "concepts", "api", "workflows/buildings"])
def test_the_site_fits_any_width(chromium: Any, address: str, page: str, size: tuple[int, int]) -> None:
    with opened(chromium, f"{address}/{page}.html", size, ready=READY) as seen:
        assert seen.evaluate("document.documentElement.scrollWidth") <= size[0]
        broken = "[...document.images].filter((each) => !each.complete || !each.naturalWidth).map((each) => each.src)"
        assert seen.evaluate(broken) == []
        assert seen.locator("h1").inner_text()
