"""Scenes behind a web server, a real one: whether they are still the same is told by size, date and entity tag."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from conftest import write_tif
from test_archive import job_of, picture

from geoseg.archive import ArchivePlan, plan_archive, run_archive
from geoseg.errors import SceneError
from geoseg.io import remote
from geoseg.io.remote import differs, state_of
from geoseg.io.store import entries_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVER = """
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

class Files(SimpleHTTPRequestHandler):
    def end_headers(self):
        self.send_header("ETag", Path("tag").read_text())
        super().end_headers()

    def do_HEAD(self):
        self.send_error(405) if Path("refuses").exists() else super().do_HEAD()

    def log_message(self, *_):
        pass

served = ThreadingHTTPServer(("127.0.0.1", 0), Files)
print(served.server_port, flush=True)
served.serve_forever()
"""


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder that is served, with the entity tag of the moment in a file; where `refuses` is, nothing is told."""
    folder = tmp_path / "served"
    folder.mkdir()
    write_tif(folder / "a.tif", picture(70, 90))
    (folder / "tag").write_text('"one"')
    return folder


@pytest.fixture
def server(served: Path) -> Iterator[str]:
    """Its address; in a process of its own, for GDAL waits for it without letting other threads of Python work."""
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=served, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def planned(server: str, model: Path, folder: Path) -> ArchivePlan:
    job = job_of(model, [], scenes={"files": [f"{server}/a.tif"], "allow": ["http"]})
    return plan_archive(job, folder, folder / "maps")


def test_a_remote_scene_is_mapped_once_and_again_when_its_tag_changes(
    server: str, served: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert run_archive(planned(server, tiny_model, tmp_path)).done == 1
    (first, *_) = entries_of(tmp_path / "maps" / "a")
    state = first["job"]["scene"]
    assert (state["etag"], state["bytes"]) == ('"one"', (served / "a.tif").stat().st_size)
    assert state["modified"].endswith("GMT")
    plan = planned(server, tiny_model, tmp_path)
    assert [entry.state for entry in plan.entries] == ["complete"]
    (served / "tag").write_text('"two"')
    plan = planned(server, tiny_model, tmp_path)
    assert [entry.state for entry in plan.entries] == ["changed"]
    assert run_archive(plan).done == 1


def test_a_remote_scene_that_changes_while_the_run_goes_on_fails(
    server: str, served: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (entry,) = planned(server, tiny_model, tmp_path).entries
    (served / "refuses").touch()
    entry.order.planned()  # whoever does not tell has not said that it is another file
    (served / "refuses").unlink()
    (served / "tag").write_text('"two"')
    with pytest.raises(SceneError, match=r"a\.tif: has changed since the run was planned"):
        entry.order.planned()


def test_what_nobody_tells_is_unknown(
    server: str, served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = {"bytes": None, "modified": None, "etag": None}
    assert state_of("s3://bucket/a.tif") == state_of("/vsigs/bucket/a.tif") == unknown
    (served / "refuses").touch()
    assert state_of(f"/vsicurl/{server}/a.tif") == unknown
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    assert state_of("http://127.0.0.1:9/a.tif") == unknown
    assert state_of(str(tmp_path / "none.tif")) == {"bytes": None, "modified": None}


def test_a_local_file_that_is_gone_is_another() -> None:
    before = {"bytes": 5, "modified": "then"}
    assert not differs(before, dict(before))
    assert differs(before, {"bytes": None, "modified": None})
    assert differs(before, {"bytes": 5, "modified": "now"})
