"""`status` and `verify`: what they say of a run that is whole, and of one that somebody damaged."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pytest
import rasterio
import zarr
from conftest import chunks_of, write_tif
from test_archive import command, job_of, picture, scene  # noqa: F401  # a fixture among them

from geoseg.archive import plan_archive, run_archive
from geoseg.audit import status, verify
from geoseg.errors import OutputError
from geoseg.io.store import LEDGER, entries_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two scenes of several chunks each; to be copied before it is changed."""
    data = tmp_path_factory.mktemp("whole")
    scene(data / "a.tif", 1)
    scene(data / "b.tif", 2)
    with chunks_of(64):
        run_archive(plan_archive(job_of(tiny_model, ["*.tif"], tile=64), data))
    return data


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it with its scenes, at whose results a test may do what it wants: OUT."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "maps"


def wrong(out: Path) -> dict[str, list[str]]:
    with chunks_of(64):
        findings: dict[str, list[str]] = {}
        for name, what in verify(out).findings:
            findings.setdefault(name, []).append(what)
    return findings


def test_a_run_that_is_whole_is_proved(whole: Path) -> None:
    with chunks_of(64):
        proof = verify(whole / "maps")
        scenes, faults = status(whole / "maps")
    assert proof.findings == ()
    assert (proof.scenes, proof.again) == (2, 0)
    with rasterio.open(whole / "a.tif") as a, rasterio.open(whole / "b.tif") as b:
        assert proof.pixels == (a.dataset_mask() > 0).sum() + (b.dataset_mask() > 0).sum()
    assert proof.footprints == sum(len(gpd.read_parquet(whole / "maps" / n / "footprints.parquet")) for n in "ab")
    assert not faults
    assert [(s.id, s.how, s.pixels, s.predicted, s.why) for s in scenes] == [
        (name, "complete", 130 * 90, 130 * 90, None) for name in "ab"
    ]
    assert set(scenes[0].seconds) == {"read", "forward", "blend", "write"}


def test_a_label_that_somebody_changed_is_found(run: Path) -> None:
    labels = zarr.open_array(run / "a" / "result.zarr" / "labels", mode="r+")
    label = int(labels[5, 5])
    labels[5, 5] = 255
    found = wrong(run)["a"]
    assert any("rows 0 to 63: 1 valid pixels have no label, 0 labels have no valid pixel" in what for what in found)
    assert any("the ledger counted" in what for what in found)
    labels[5, 5] = 1 - label
    assert any("outlines are not the" in what for what in wrong(run)["a"])
    labels[5, 5] = label
    labels[50, 80] = 0  # in the hole
    assert any("0 valid pixels have no label, 1 labels have no valid pixel" in what for what in wrong(run)["a"])
    assert "b" not in wrong(run)


def test_files_that_somebody_changed_are_found(run: Path) -> None:
    with (run / "a" / "labels.tif").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"x")
    (run / "b" / "footprints.geojson").unlink()
    found = wrong(run)
    assert any(what.startswith("./labels.tif: its checksum") for what in found["a"])
    assert found["b"] == ["is not complete"]


def test_links_that_lead_nowhere_are_found(run: Path) -> None:
    item = json.loads((run / "a" / "item.json").read_text("utf-8"))
    item["links"].append({"rel": "derived_from", "href": "../gone.json"})
    (run / "a" / "item.json").write_text(json.dumps(item), "utf-8")
    collection = json.loads((run / "collection.json").read_text("utf-8"))
    collection["links"] = [link for link in collection["links"] if link["href"] != "./b/item.json"]
    (run / "collection.json").write_text(json.dumps(collection), "utf-8")
    found = wrong(run)
    assert found["a"] == ["its link derived_from leads to ../gone.json, which is not there"]
    assert any("does not have b" in what for what in found["collection"])
    (run / "collection.json").unlink()
    assert any("is not there" in what for what in wrong(run)["collection"])


def test_a_ledger_that_lacks_chunks_or_has_them_twice_is_found(run: Path) -> None:
    ledger = run / "a" / LEDGER
    lines = ledger.read_text("utf-8").splitlines(keepends=True)
    chunks = [line for line in lines if '"window"' in line]
    ledger.write_text("".join(line for line in lines if line != chunks[2]), "utf-8")
    assert any("1 of its 6 chunks were not predicted" in what for what in wrong(run)["a"])
    ledger.write_text("".join([*lines, chunks[2]]), "utf-8")
    with chunks_of(64):
        proof = verify(run)
    assert (proof.findings, proof.again) == ((), 1)


def test_what_is_not_done_is_told(
    tiny_model: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from geoseg.errors import ModelError
    from geoseg.pipeline import Predictor

    for seed, name in enumerate(("a.tif", "b.tif"), 1):
        write_tif(tmp_path / name, picture(130, 90, seed))
    (tmp_path / "bad.tif").write_text("nothing", encoding="utf-8")
    honest = Predictor.run

    def broken(self: Predictor, planned: Any, core: Any, *rest: Any) -> Any:
        if planned.scene.id == "a" and core.row_start == 64:
            raise ModelError("the network is tired")
        return honest(self, planned, core, *rest)

    with chunks_of(64):
        with monkeypatch.context() as patched:
            patched.setattr(Predictor, "run", broken)
            run_archive(plan_archive(job_of(tiny_model, ["*.tif"], tile=64), tmp_path))
        assert sum("failed" in entry for entry in entries_of(tmp_path / "maps" / "a")) == 2
        code, out, _ = command("status", tmp_path / "maps", "--json", tmp_path / "status.json")
        assert code == 3
        assert "2 scenes: 1 complete, 1 failed; 1 more cannot be mapped." in out
        assert "75.4% of 0.0 megapixels are predicted" in out
        assert "Failed: a: the network is tired" in out
        assert "Cannot be mapped: bad: " in out
        report = json.loads((tmp_path / "status.json").read_text("utf-8"))
        assert [s["how"] for s in report["scenes"]] == ["failed", "complete"]
        code, out, err = command("verify", tmp_path / "maps")
        assert code == 3
        assert "Wrong: a: is not complete" in err
        assert "Wrong: bad: " in err
        assert "2 wrong" in out
        (tmp_path / "bad.tif").unlink()
        run_archive(plan_archive(job_of(tiny_model, ["*.tif"], tile=64), tmp_path))
        assert command("status", tmp_path / "maps")[0] == 0
        code, out, err = command("verify", tmp_path / "maps")
        assert (code, err) == (0, "")
        assert out.endswith("nothing wrong.\n")


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    for look in (status, verify):
        with pytest.raises(OutputError, match="holds no archive run"):
            look(tmp_path)
