"""The server of results: tiles are the files' pixels, and nothing but files of its folder is given out."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.vrt
import rasterio.warp
from conftest import chunks_of, legend_of
from morecantile import tms
from PIL import Image
from xarray import open_zarr

from geoseg.errors import OptionError, OutputError
from geoseg.io.cog import Look
from geoseg.io.zarr_maps import write_zarr
from geoseg.view.facts import Map, read_item
from geoseg.view.pictures import ramp, read_part
from geoseg.view.serve import Site, server_of
from geoseg.window import Window

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

    def get(self, path: str, host: str | None = None, method: str = "GET", **headers: str) -> Asked:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True)
            connection.putheader("Host", host or f"localhost:{self.port}")
            for name, value in headers.items():
                connection.putheader(name, value)
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


def in_zarr(folder: Path) -> Path:
    """The same results with their maps in a Zarr store alone."""
    grid, blocks = Map.of(folder).grid, []
    for name in ("labels", "confidence"):
        with rasterio.open(folder / f"{name}.tif") as dataset:
            blocks.append((name, Window.of_shape(dataset.shape), dataset.read(1)))
        (folder / f"{name}.tif").unlink()
    legend = legend_of(2)
    write_zarr(folder / "labels.zarr", blocks, grid, {"labels": Look("", legend), "confidence": Look("")}, {})
    return folder


@chunks_of(64)
def test_maps_in_zarr_are_served_like_those_in_cogs(copy: Path, results: Path) -> None:
    folder, data = in_zarr(copy / "town-2024"), copy.parent / "imagery"
    with serving(folder, data) as zarr, serving(results / "town-2024", results.parent / "imagery") as cog:
        for path in ("tiles/labels/0/0/0", "tiles/confidence/0/0/0"):
            assert np.array_equal(zarr.get(f"/{path}").pixels, cog.get(f"/{path}").pixels), path
        web = [f"/web/{name}/tiles/{tile_over(results)}" for name in ("labels", "confidence", "scene")]
        for path in web:
            found, expected = zarr.get(path).pixels, cog.get(path).pixels
            assert (found[..., 3] > 0).any()
            assert (found != expected).any(axis=-1).mean() < 0.02, path
        assert b"Labels" in zarr.get("/").body
    levels = {each.name for each in (folder / "labels.zarr").iterdir() if each.name.isdigit()}
    assert levels == {"2", "4"}
    for level in (1, 2):
        store = open_zarr(folder / "labels.zarr", group=str(2**level), consolidated=False, mask_and_scale=False)
        window = Window(8, 136, 16, 208)
        part = read_part(folder / "labels.tif", window, (128 >> level, 192 >> level))
        spans = (slice(8 >> level, 136 >> level), slice(16 >> level, 208 >> level))
        assert np.array_equal(part, store.labels.values[spans]), "an overview, as it is"


def tile_over(results: Path, zoom: int = 19) -> str:
    """The web tile in the middle of a town."""
    west, south, east, north = read_item(results / "town-2024")["bbox"]
    place = tms.get("WebMercatorQuad").tile((west + east) / 2, (south + north) / 2, zoom)
    return f"WebMercatorQuad/{place.z}/{place.x}/{place.y}.png"


def test_web_tiles_lie_where_the_scene_does(results: Path) -> None:
    with serving(results, results.parent / "imagery") as client:
        told = json.loads(client.get("/town-2024/web/labels/WebMercatorQuad/tilejson.json").body)
        assert told["bounds"] == pytest.approx(read_item(results / "town-2024")["bbox"], abs=1e-4)
        assert told["tiles"][0].startswith(
            f"http://localhost:{client.port}/town-2024/web/labels/tiles/WebMercatorQuad/"
        )
        zoom = 20
        for name in ("labels", "confidence", "scene"):
            path = f"/town-2024/web/{name}/tiles/{tile_over(results, zoom)}"
            tile = client.get(path).pixels
            lonlat = tms.get("WebMercatorQuad").bounds(*(int(n) for n in path[:-4].split("/")[-2:]), zoom)
            expected = on_web(results, name, lonlat)
            assert np.abs(tile.astype(int) - expected).max(axis=-1).mean() < 8, name
        for path in ("labels/tiles/WebMercatorQuad/20/0/0.png", "item/tiles/WebMercatorQuad/0/0/0.png", "labels/info"):
            assert client.get(f"/town-2024/web/{path}").status == 404, path
        size = client.get(f"/town-2024/web/labels/tiles/{tile_over(results)}?tilesize=4096&url=/etc/passwd")
        assert size.pixels.shape[:2] == (256, 256), "nobody asks for more, or for other files"


def on_web(results: Path, name: str, bounds: Any) -> NDArray[np.uint8]:
    """What a tile of Web Mercator should show, by GDAL's own way there."""
    path = results.parent / "imagery" / "town-2024.tif" if name == "scene" else results / "town-2024" / f"{name}.tif"
    corners = rasterio.warp.transform_bounds("EPSG:4326", "EPSG:3857", *bounds)
    to = rasterio.transform.from_bounds(*corners, 256, 256)
    with (
        rasterio.open(path) as dataset,
        rasterio.vrt.WarpedVRT(dataset, crs="EPSG:3857", transform=to, width=256, height=256) as moved,
    ):
        values, there = moved.read(), moved.dataset_mask() > 0
    if name == "scene":
        seen = np.moveaxis(np.concatenate([values, 255 * there[None]]), 0, -1)
    elif name == "labels":
        classes = {value: bytes.fromhex(colour[1:]) for value, _, colour in Map.of(results / "town-2024").classes}
        seen = np.zeros((256, 256, 4), np.uint8)
        seen[values[0] == 1] = (*classes[1], 255)
        there = values[0] == 1
    else:
        codes = np.minimum(values[0].astype(int) * 255 // 250, 255)
        seen = np.concatenate([ramp()[codes], np.full((256, 256, 1), 255)], axis=-1)
    return np.where(there[..., None], seen, 0)


def test_parts_of_files_are_given_out(results: Path) -> None:
    whole = (results / "town-2024" / "labels.tif").read_bytes()
    with serving(results) as client:
        part = client.get("/town-2024/labels.tif", Range="bytes=10-19")
        assert (part.status, part.body) == (206, whole[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(whole)}"
        assert part.headers["Content-Security-Policy"] == "sandbox"
        assert client.get("/town-2024/labels.tif", Range=f"bytes={len(whole)}-").status == 416


@pytest.mark.parametrize("name", ["labels.tif", "footprints.parquet", "labels.zarr"])
def test_results_that_lead_elsewhere_are_not_shown(copy: Path, name: str) -> None:
    outside = copy.parent / "outside"
    outside.mkdir()
    link = copy / "town-2024" / name
    if link.exists():
        shutil.move(link, outside / name)
    link.symlink_to(outside / name)
    with serving(copy, copy.parent / "imagery") as client:
        for path in ("report.html", "tiles/labels/0/0/0", "web/labels/WebMercatorQuad/tilejson.json", name):
            assert client.get(f"/town-2024/{path}").status == 404, path


def test_a_description_of_other_files_is_no_map(copy: Path) -> None:
    path, other = copy / "town-2024" / "labels.tif", copy.parent / "imagery" / "town-2019.tif"
    path.unlink()
    rasterio.shutil.copy(other, path.with_suffix(".vrt"), driver="VRT")
    path.with_suffix(".vrt").rename(path)
    with serving(copy) as client:
        for address in ("report.html", "tiles/labels/0/0/0", f"web/labels/tiles/{tile_over(copy)}"):
            assert client.get(f"/town-2024/{address}").status in {404, 500}, address


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
