"""The server of results: tiles are the files' pixels, and nothing but files of its folder is given out."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from PIL import Image

from geoseg.errors import OptionError, OutputError
from geoseg.view.facts import read_item
from geoseg.view.serve import Site, server_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Asked:
    """An answer."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.body, self.headers = answer.status, answer.read(), answer.headers

    @property
    def pixels(self) -> NDArray[np.uint8]:
        return np.asarray(Image.open(io.BytesIO(self.body)).convert("RGBA"))


class Client:
    """Asks for paths as they are, without the cleaning that libraries do."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, host: str | None = None, method: str = "GET") -> Asked:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host or f"localhost:{self.port}")
            connection.endheaders()
            return Asked(connection.getresponse())


@contextlib.contextmanager
def serving(out: Path, *data: Path) -> Iterator[Client]:
    server = server_of(out, data=data)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Client(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def copy(results: Path, tmp_path: Path) -> Path:
    """A copy of maps and imagery: of the maps."""
    shutil.copytree(results.parent, tmp_path / "copy")
    return tmp_path / "copy" / "maps"


def test_pages_are_served_with_tiles(results: Path) -> None:
    with serving(results, results.parent / "imagery") as client:
        overview, page = client.get("/"), client.get("/town-2024/report.html")
        assert overview.status == page.status == 200
        assert b'"town-2024/report.html"' in overview.body
        assert b'"tiles":"tiles/labels"' in page.body
        assert b'"tiles":"tiles/scene"' in page.body
        assert "img-src 'self' data:" in page.headers["Content-Security-Policy"]
        assert "http" not in page.headers["Content-Security-Policy"]
        assert client.get("/town-2019--town-2024/report.html").status == 200
        assert client.get("/nothing/report.html").status == 404
        head = client.get("/town-2024/report.html", method="HEAD")
        assert (head.status, head.body) == (200, b"")


def test_tiles_are_the_files_pixels(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.view.serve.TILE", 64)
    folder = results / "town-2024"
    with rasterio.open(folder / "labels.tif") as dataset:
        labels = dataset.read(1)
    with rasterio.open(results.parent / "imagery" / "town-2024.tif") as dataset:
        values = np.moveaxis(dataset.read(), 0, -1).astype(int)
    with serving(folder, results.parent / "imagery") as client:
        for row, col in ((0, 0), (1, 2), (2, 3)):
            part = labels[row * 64 : (row + 1) * 64, col * 64 : (col + 1) * 64]
            tile = client.get(f"/tiles/labels/0/{row}/{col}").pixels
            assert np.array_equal(tile[..., 3] > 0, part == 1), "buildings only"
            there = part != 255
            scene = client.get(f"/tiles/scene/0/{row}/{col}").pixels
            expected = values[row * 64 : (row + 1) * 64, col * 64 : (col + 1) * 64]
            assert np.array_equal(scene[..., 3] > 0, there)
            assert np.abs(scene[there][:, :3] - expected[there]).mean() < 12, "but for what WebP makes of noise"
        coarse = client.get("/tiles/labels/1/0/0").pixels
        assert coarse.shape[:2] == (64, 64)
        assert client.get("/tiles/labels/1/1/1").pixels.shape[:2] == (16, 56), "160 x 240 pixels end there"
        assert client.get("/tiles/labels/5/0/0").pixels.shape[:2] == (5, 8), "a last pixel that is half there counts"
        for path in ("labels/0/3/0", "labels/0/0/4", "labels/99/0/0", "item/0/0/0", "scene/0/-1/0", "labels/0/0/0/.."):
            assert client.get(f"/tiles/{path}").status == 404, path


def test_files_of_the_folder_are_downloads(results: Path) -> None:
    with serving(results) as client:
        answer = client.get("/town-2024/footprints.geojson")
        assert answer.body == (results / "town-2024" / "footprints.geojson").read_bytes()
        assert answer.headers["Content-Disposition"] == "attachment"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert client.get("/town-2024/result.zarr/labels/zarr.json").status == 200


def test_nothing_leads_out_of_the_folder(copy: Path) -> None:
    secret = copy.parent / "secret.txt"
    secret.write_text("keep me")
    (copy / "link.txt").symlink_to(secret)
    (copy / "away").symlink_to(copy.parent)
    (copy / ".hidden").write_text("keep me")
    (copy / "town-2024" / ".item.json.part").write_text("keep me")
    (copy / "within.txt").symlink_to(copy / "run.txt")
    (copy / "run.txt").write_text("mine")
    paths = (
        *(
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "/town-2024/../../secret.txt",
            "/town-2024/%2e%2e%2f%2e%2e%2fsecret.txt",
        ),
        *("/..%5csecret.txt", "/%2e%2e%5csecret.txt", "//" + str(secret), "/" + str(secret), "/%2f" + str(secret)),
        *(
            "/link.txt",
            "/away/secret.txt",
            "/away/maps/run.txt/../../secret.txt",
            "/.hidden",
            "/town-2024/.item.json.part",
        ),
        *(
            "/file:%2f%2f" + str(secret),
            "/run.txt%00",
            "/run.txt%ff",
            "/../imagery/town-2024.tif",
            "/town-2024",
            "/town-2024/",
        ),
        *("/away/report.html", "/../maps/report.html", "/%2e%2e/maps/report.html", "/%2e%2e/tiles/labels/0/0/0"),
    )
    with serving(copy) as client:
        for path in paths:
            answer = client.get(path)
            assert answer.status == 404, path
            assert b"keep me" not in answer.body
        assert client.get("/run.txt").body == client.get("/within.txt").body == b"mine"


def test_scenes_elsewhere_are_shown_only_from_named_folders(copy: Path) -> None:
    imagery = copy.parent / "imagery"
    with serving(copy / "town-2024") as client:
        page = client.get("/")
        assert b'"tiles":"tiles/scene"' not in page.body
        assert b"name its folder with --data" in page.body
        assert client.get("/tiles/scene/0/0/0").status == 404
        assert client.get("/tiles/labels/0/0/0").status == 200
    with serving(copy / "town-2024", imagery) as client:
        assert client.get("/tiles/scene/0/0/0").status == 200
    outside = copy.parent / "outside.tif"
    shutil.move(imagery / "town-2024.tif", outside)
    (imagery / "town-2024.tif").symlink_to(outside)
    with serving(copy / "town-2024", imagery) as client:
        assert client.get("/tiles/scene/0/0/0").status == 404, "a link that leads out of it"


def test_maps_that_are_links_are_not_compared(copy: Path) -> None:
    shutil.move(copy / "town-2019", copy.parent / "town-2019")
    (copy / "town-2019").symlink_to(copy.parent / "town-2019")
    with serving(copy) as client:
        for path in ("/town-2019--town-2024/report.html", "/town-2019--town-2024/tiles/labels-before/0/0/0"):
            assert client.get(path).status == 404


@pytest.mark.parametrize("href", ["/etc/passwd", "https://localhost:1/a.tif", "/vsicurl/https://localhost:1/a.tif"])
def test_an_items_absolute_links_are_refused(copy: Path, href: str) -> None:
    item = read_item(copy / "town-2024")
    next(link for link in item["links"] if link["type"] == "image/tiff")["href"] = href
    (copy / "town-2024" / "item.json").write_text(json.dumps(item))
    with serving(copy, copy.parent / "imagery") as client:
        assert b"name its folder with --data" in client.get("/town-2024/report.html").body
        assert client.get("/town-2024/tiles/scene/0/0/0").status == 404


def test_other_names_than_this_machines_are_refused(results: Path) -> None:
    with serving(results) as client:
        for host in (
            "evil.example:80",
            "localhost.evil.example",
            "localhost@evil.example",
            "",
            "127.0.0.1.evil.example:1",
        ):
            assert client.get("/", host=host or "x").status == 403, host
        for host in ("127.0.0.1", "LOCALHOST:1", "[::1]:8008"):
            assert client.get("/run.json", host=host).status == 404, host


def test_it_listens_on_this_machine_only_unless_told() -> None:
    from geoseg.cli.seeing import serve

    defaults = {option.name: option.default for option in serve.params}
    assert defaults["host"] == "127.0.0.1"


def test_what_cannot_be_served_is_told(results: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no results"):
        server_of(tmp_path)
    with server_of(results) as server, pytest.raises(OptionError, match="choose another port"):
        server_of(results, port=server.server_address[1])
    assert Site(results).within("town-2024/labels.tif") == (results / "town-2024" / "labels.tif").resolve()
    assert Path("/") != Site(results).within("")
