"""`catalogs/`: one STAC catalog that can be browsed from its root, and tells what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pystac
import pytest
from click.testing import CliRunner
from pystac.validation import JsonSchemaSTACValidator

from geoseg.archive import RunJob, plan_archive
from geoseg.catalog import MULTIHASH_SHA256, bundled_models, catalogs_folder
from geoseg.cli import cli
from geoseg.errors import OutputError
from geoseg.samples import SAMPLES, cache_folder, put_catalog

if TYPE_CHECKING:
    from geoseg.samples import Sample

ROOT = catalogs_folder()
CACHE = cache_folder()
SAMPLE_ITEMS = {path.stem: path for path in (ROOT / "scenes" / "items").glob("*.json")}


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def test_everything_is_reached_from_the_root() -> None:
    root = pystac.Catalog.from_file(str(ROOT / "catalog.json"))
    items = {item.id for item in root.get_items(recursive=True)}
    assert items == {model.name for model in bundled_models()} | set(SAMPLES)
    assert {child.id for child in root.get_children()} == {"geoseg-models", "geoseg-samples"}


def test_nothing_lies_in_it_that_is_not_linked() -> None:
    reached, coming = set(), [ROOT / "catalog.json"]
    while coming:
        here = coming.pop()
        reached.add(here)
        for link in read(here)["links"]:
            target = (here.parent / link["href"]).resolve()
            assert not link["href"].startswith("/")
            assert target.is_file(), f"{here}: {link}"
            if link["rel"] in {"child", "item"}:
                coming.append(target)
                above = {each["rel"]: each["href"] for each in read(target)["links"]}
                assert (
                    link["rel"] == "child" or "parent" not in above or (target.parent / above["parent"]).samefile(here)
                )
    assert reached == {path.resolve() for path in ROOT.rglob("*.json")}


def test_all_of_it_is_valid() -> None:
    validator, kinds = JsonSchemaSTACValidator(), pystac.STACObjectType
    known = {"Feature": kinds.ITEM, "Catalog": kinds.CATALOG, "Collection": kinds.COLLECTION}
    for path in ROOT.rglob("*.json"):
        content = read(path)
        validator.validate_core(content, known[content["type"]], content["stac_version"])


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=list(SAMPLES))
def test_an_item_says_what_the_table_of_samples_says(sample: Sample) -> None:
    item = read(SAMPLE_ITEMS[sample.name])
    assert item["properties"]["title"] == sample.title
    assert item["properties"]["description"].startswith(sample.description)
    assert item["properties"]["geoseg:licence"] == sample.licence
    assert item["properties"]["geoseg:package"] == {"requirement": sample.requirement, "archive": sample.archive}
    assets = {Path(asset["href"]).name: asset for asset in item["assets"].values()}
    assert set(assets) == {file.name for file in sample.files}
    for file in sample.files:
        assert assets[file.name]["href"] == f"../{sample.name}/{file.name}"
        assert assets[file.name]["file:checksum"] == MULTIHASH_SHA256 + file.sha256
        assert file.member in assets[file.name]["description"]
    assert set(SAMPLE_ITEMS) == set(SAMPLES)


def test_no_imagery_lies_in_it() -> None:
    assert {path.suffix for path in (ROOT / "scenes").rglob("*") if path.is_file()} == {".json"}


def test_the_collection_can_be_put_beside_the_scenes(tmp_path: Path) -> None:
    path = put_catalog(tmp_path / "samples")
    assert put_catalog(tmp_path / "samples") == path
    collection = pystac.Collection.from_file(str(path))
    assert {item.id for item in collection.get_items()} == set(SAMPLES)
    for link in read(path)["links"]:
        assert (path.parent / link["href"]).is_file()
    path.write_text('{"id": "mine"}', encoding="utf-8")
    with pytest.raises(OutputError, match="is another collection"):
        put_catalog(tmp_path / "samples")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        put_catalog(tmp_path / "file")


def test_a_fetched_sample_is_mapped_from_the_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    """End to end, with what the cache holds: whoever has the file needs no network."""
    held = CACHE / "samples" / "amsterdam" / "amsterdam.tif"
    if not held.is_file():
        pytest.skip(f"the sample amsterdam was not fetched: there is no {held}")
    (tmp_path / "samples" / "amsterdam").mkdir(parents=True)
    (tmp_path / "samples" / "amsterdam" / "amsterdam.tif").symlink_to(held)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["sample", "amsterdam", "--into", "samples"])
    assert done.exit_code == 0
    assert done.output.splitlines() == ["samples/amsterdam/amsterdam.tif", "samples/collection.json"]
    scenes = {"catalogs": ["samples/collection.json"], "roots": [str(CACHE)]}
    job = {"product": "buildings", "model": str(tiny_model), "scenes": scenes}
    planned = plan_archive(RunJob.model_validate(job), tmp_path)
    (entry,) = planned.entries
    item = read(SAMPLE_ITEMS["amsterdam"])
    assert list(entry.order.scene.shape) == item["properties"]["proj:shape"]
    assert entry.order.scene.item == str(tmp_path / "samples" / "items" / "amsterdam.json")
    assert {fault.name for fault in planned.faults} == {"atlanta", "sentinel2"}


def test_the_command_takes_a_name_or_all() -> None:
    done = CliRunner().invoke(cli, ["sample", "amsterdam", "--all"])
    assert done.exit_code == 2
    assert "either NAME or --all" in done.output
