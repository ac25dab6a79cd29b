"""Scenes in an object store: the same bytes as from a folder, no needless requests, and dropped connections.

The store is a server of this machine that speaks as much of S3 as reading takes: objects, parts of them, and lists.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio.shutil
import zarr
from conftest import write_tif
from test_archive import carry_out, job_of, picture
from test_zarr_scenes import data_array, write_zarr

import geoseg
from geoseg.errors import SceneError
from geoseg.io import objects, remote
from geoseg.io.remote import differs, state_of
from geoseg.io.scenes import open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = r"""
import hashlib, json, re, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

class Objects(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self, head=False):
        url = urlsplit(self.path)
        query, path = parse_qs(url.query), Path("." + unquote(url.path))
        with open("log", "a") as log:
            log.write(json.dumps([self.command, unquote(url.path), self.headers.get("Range"), url.query]) + "\n")
        if "list-type" in query:
            return self.answer(200, self.listed(path, query["prefix"][0] if "prefix" in query else ""), head)
        if Path("drops").exists() and path.suffix != ".xml" and path.is_file():
            left = int(Path("drops").read_text())
            Path("drops").write_text(str(left - 1)) if left > 1 else Path("drops").unlink()
            self.close_connection = True
            return self.connection.close() if head else self.torn(path)
        if Path("fails").exists():
            return self.answer(500, b"<Error><Code>InternalError</Code></Error>", head)
        if not path.is_file():
            return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>", head)
        data = path.read_bytes()
        more = {"ETag": '"' + hashlib.md5(data).hexdigest() + '"', "Last-Modified": "Tue, 01 Oct 2024 10:00:00 GMT"}
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if found:
            first = int(found[1]) if found[1] else len(data) - int(found[2])
            last = min(int(found[1] and found[2] or len(data)), len(data) - 1)
            more["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], head, more)
        self.answer(200, data, head, more)

    def do_HEAD(self):
        self.do_GET(head=True)

    def torn(self, path):
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size + 1000))
        self.end_headers()
        self.wfile.write(path.read_bytes()[:10])
        self.wfile.flush()
        self.connection.close()

    def listed(self, bucket, prefix):
        keys = sorted(p.relative_to(bucket).as_posix() for p in bucket.rglob("*") if p.is_file())
        keys = [key for key in keys if key.startswith(prefix)]
        below = sorted({prefix + key[len(prefix):].split("/")[0] + "/" for key in keys if "/" in key[len(prefix):]})
        contents = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2024-10-01T10:00:00.000Z</LastModified><ETag>x</ETag>"
            f"<Size>{(bucket / key).stat().st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in keys if "/" not in key[len(prefix):]
        )
        common = "".join(f"<CommonPrefixes><Prefix>{each}</Prefix></CommonPrefixes>" for each in below)
        text = f'<ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix><KeyCount>{len(keys)}</KeyCount>'
        return (text + f"<IsTruncated>false</IsTruncated>{contents}{common}</ListBucketResult>").encode()

    def answer(self, status, body, head, more={}):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *_):
        pass

served = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
print(served.server_port, flush=True)
served.serve_forever()
"""


class Bucket:
    """The server's folder, `bucket` in it, and what was asked of it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.path, self.port = folder, folder / "bucket", port

    def asked(self) -> list[tuple[str, str, str | None, str]]:
        """Method, path, range and query of each request since this was asked last."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [tuple(json.loads(line)) for line in lines]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket that everybody may read, named to GDAL alone; in a process of its own, for GDAL holds up threads."""
    folder = tmp_path / "served"
    (folder / "bucket").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        for name, value in {
            "AWS_S3_ENDPOINT": f"127.0.0.1:{port}",
            "AWS_HTTPS": "NO",
            "AWS_VIRTUAL_HOSTING": "FALSE",
            "AWS_NO_SIGN_REQUEST": "YES",
            "AWS_REGION": "eu-north-1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(remote, "REMOTE_WAITS", (0.05, 0.1))
        yield Bucket(folder, port)
        process.kill()


def town(bucket: Bucket, version: int = 3, **encoding: Any) -> str:
    """A store of 130 x 90 pixels in chunks of 3 x 32 x 64."""
    image = data_array(picture(130, 90), names=("red", "green", "blue"))
    write_zarr(bucket.path / "town.zarr", image, version, **({"chunks": (3, 32, 64)} | encoding))
    return "s3://bucket/town.zarr"


def test_maps_are_the_same_bytes_as_from_a_folder(bucket: Bucket, tiny_model: Path, tmp_path: Path) -> None:
    tif = write_tif(tmp_path / "town.tif", picture(130, 90), tiled=True, blockxsize=64, blockysize=32)
    rasterio.shutil.copy(tif, bucket.path / "town.tif", driver="COG", BLOCKSIZE=128)
    store = town(bucket)
    expected = geoseg.segment(tif, "buildings", tmp_path / "local", model=str(tiny_model))
    for k, path in enumerate(("s3://bucket/town.tif", store)):
        result = geoseg.segment(path, "buildings", tmp_path / str(k), model=str(tiny_model))
        for name in ("labels.tif", "confidence.tif", "footprints.geojson"):
            assert (result.folder / name).read_bytes() == (expected.folder / name).read_bytes(), (path, name)
        (href, *_) = [link["href"] for link in result.item["links"] if link["rel"] == "derived_from"]
        assert href == path
        asked = [each for each in bucket.asked() if each[0] == "GET"]
        if k:
            chunks = Counter(path for _, path, *_ in asked if "/image/c/" in path)
            assert len(chunks) == 5 * 2
            assert chunks.total() <= 2 * len(chunks)  # a row of chunks lies below two rows of patches
        else:
            assert len([each for each in asked if each[1].endswith("town.tif")]) <= 6
    job = job_of(tiny_model, [], scenes={"files": [store], "allow": ["s3"]}, min_area=4)
    assert carry_out(job, tmp_path).done == 1
    assert (tmp_path / "maps/town/labels.tif").read_bytes() == (expected.folder / "labels.tif").read_bytes()


@pytest.mark.parametrize("version", [2, 3])
def test_only_what_a_window_needs_is_asked_for(version: int, bucket: Bucket) -> None:
    store = town(bucket, version)
    source = open_source(open_scene(store), (1, 2, 3))
    source.read(Window(0, 1, 0, 1))
    bucket.asked()
    np.testing.assert_array_equal(source.read(Window(40, 60, 70, 80)).values, picture(130, 90)[:, 40:60, 70:80])
    (asked,) = bucket.asked()
    assert asked[1].endswith("image/c/0/1/1" if version == 3 else "image/0.1.1")


def test_shards_are_read_in_parts(bucket: Bucket) -> None:
    store = town(bucket, chunks=(3, 16, 16), shards=(3, 64, 64))
    source = open_source(open_scene(store), (1, 2, 3))
    source.read(Window(0, 1, 0, 1))
    bucket.asked()
    np.testing.assert_array_equal(source.read(Window(64, 80, 0, 16)).values, picture(130, 90)[:, 64:80, :16])
    asked = bucket.asked()
    assert {path for _, path, *_ in asked} == {"/bucket/town.zarr/image/c/0/1/0"}
    assert all(part for _, _, part, _ in asked)
    assert len(asked) <= 2


def test_a_web_server_needs_metadata_in_one_piece(bucket: Bucket) -> None:
    town(bucket)
    url = f"http://127.0.0.1:{bucket.port}/bucket/town.zarr"
    with pytest.raises(SceneError, match=r"town\.zarr: .*zarr\.consolidate_metadata"):
        open_scene(url)
    with warnings.catch_warnings(action="ignore"):  # there is no standard yet
        zarr.consolidate_metadata(bucket.path / "town.zarr")
    scene = open_scene(url)
    np.testing.assert_array_equal(open_source(scene, (1, 2, 3)).read(Window(0, 130, 0, 90)).values, picture(130, 90))
    assert (scene.id, scene.file) == ("town", url)


OPEN = """
import sys
from geoseg.io.scenes import open_scene
for path in sys.argv[1:]:
    print(*open_scene(path).shape)
"""


@pytest.mark.parametrize("scheme", ["s3://", "http://127.0.0.1:PORT/"])
def test_a_scene_is_opened_though_the_first_connection_drops(scheme: str, bucket: Bucket, tmp_path: Path) -> None:
    """In a process of its own: GDAL reads its options and remembers files once."""
    town(bucket)
    tif = write_tif(tmp_path / "town.tif", picture(130, 90))
    rasterio.shutil.copy(tif, bucket.path / "town.tif", driver="COG", BLOCKSIZE=128)
    (bucket.folder / "drops").write_text("1")
    path = scheme.replace("PORT", str(bucket.port)) + "bucket/town.tif"
    told = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=False)
    assert (told.stdout, told.returncode) == ("130 90\n", 0), told.stderr
    assert not (bucket.folder / "drops").exists()


def test_a_dropped_connection_is_tried_again(bucket: Bucket, tmp_path: Path) -> None:
    store = town(bucket)
    tif = write_tif(tmp_path / "town.tif", picture(130, 90))
    rasterio.shutil.copy(tif, bucket.path / "town.tif", driver="COG", BLOCKSIZE=128)
    for path in (store, "s3://bucket/town.tif"):
        scene = open_scene(path)
        source = open_source(scene, (1, 2, 3), waits=(0.05, 0.05, 0.05))
        (bucket.folder / "drops").write_text("1")
        values = source.read(Window(30, 60, 50, 80)).values
        np.testing.assert_array_equal(values, picture(130, 90)[:, 30:60, 50:80])
        assert not (bucket.folder / "drops").exists(), path
        (bucket.folder / "drops").write_text("1")
        assert open_scene(path).shape == (130, 90)
        (bucket.folder / "drops").unlink(missing_ok=True)


def test_an_error_is_no_missing_chunk(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objects.RETRY, "max_retries", 0)
    image = data_array(picture(130, 90)).assign_attrs(_FillValue=np.uint8(0))
    write_zarr(bucket.path / "town.zarr", image, chunks=(3, 32, 64))
    source = open_source(open_scene("s3://bucket/town.zarr"), (1, 2, 3))
    assert source.read(Window(0, 10, 0, 10)).valid.all()
    (bucket.folder / "fails").touch()
    with pytest.raises(SceneError, match=r"town\.zarr: rows 0 to 9 cannot be read"):
        source.read(Window(0, 10, 0, 10))
    (bucket.folder / "fails").unlink()
    (bucket.path / "town.zarr/image/c/0/0/0").unlink()
    raster = source.read(Window(0, 40, 0, 10))
    np.testing.assert_array_equal(raster.valid, np.arange(40)[:, None] >= np.full((1, 10), 32))
    with pytest.raises(SceneError, match=r"other\.zarr: cannot be read as a Zarr store"):
        open_scene("s3://bucket/other.zarr")
    monkeypatch.setattr(objects, "find_spec", lambda _: None)
    with pytest.raises(SceneError, match=r"pip install 'geoseg\[remote\]'"):
        open_scene("s3://bucket/town.zarr")


def test_what_has_changed_is_told_by_the_metadata(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = town(bucket)
    before = state_of(store)
    assert before["bytes"] == (bucket.path / "town.zarr/zarr.json").stat().st_size
    assert not differs(before, state_of(store))
    metadata = bucket.path / "town.zarr/zarr.json"
    metadata.write_text(metadata.read_text().replace(" ", "\t", 1))  # of the same size and, says the server, date
    assert differs(before, state_of(store))
    (bucket.path / "a.tif").write_bytes(b"12345")
    assert state_of("s3://bucket/a.tif")["bytes"] == 5
    assert state_of("s3://bucket/none.tif")["bytes"] is None
    monkeypatch.delenv("AWS_NO_SIGN_REQUEST")
    bucket.asked()
    assert state_of(store)["etag"] is None  # nobody may be asked
    assert not bucket.asked()
