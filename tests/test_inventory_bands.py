"""`geoseg catalog` of scenes with a file for each band: one item for each scene, which opens as the scene does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from conftest import write_tif
from test_archive import carry_out
from test_inventory import check, items_of, made

from geoseg.archive import RunJob
from geoseg.errors import SceneError
from geoseg.io.band_names import scenes_among
from geoseg.io.scenes import Asked, as_asked, open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

PLACE = rasterio.Affine(0.3, 0.0, 334_000.0, 0.0, -0.3, 3_057_000.0)


def band(path: Path, coarser: int = 1, seed: int = 1, right: int = 0, **profile: Any) -> Path:
    """A band of 80 x 60 pixels, or of a part of them on the same ground."""
    values = np.random.default_rng(seed).integers(1, 255, (80 // coarser, 60 // coarser)).astype("uint16")
    place = PLACE @ rasterio.Affine.translation(right, 0) @ rasterio.Affine.scale(coarser)
    return write_tif(path, values, transform=place, **profile)


def product(folder: Path, stamp: str = "20240531T101112") -> Path:
    """Sentinel-2's own folder."""
    home = folder / f"S2B_MSIL2A_{stamp}_N0510_R051.SAFE"
    data = home / "GRANULE" / "L2A_T45" / "IMG_DATA"
    for name, coarser in (("B02", 1), ("B03", 1), ("B04", 1), ("B08", 1)):
        band(data / "R10m" / f"T45_{stamp}_{name}_10m.tif", coarser)
    for name in ("B02", "B04", "B11", "SCL"):
        band(data / "R20m" / f"T45_{stamp}_{name}_20m.tif", 2)
    band(home / "GRANULE" / "L2A_T45" / "QI_DATA" / "MSK_CLDPRB_20m.tif", 2)
    return home


def test_a_product_is_one_item_with_an_asset_for_each_band(tmp_path: Path) -> None:
    home = product(tmp_path / "in")
    band(tmp_path / "in" / "town.tif")
    report = made(tmp_path / "in", checksum=True)
    check(report.path)
    items = items_of(report.path)
    assert (set(items), report.faults) == ({home.stem, "town"}, ())
    item = items[home.stem]
    assert item["properties"]["datetime"] == "2024-05-31T10:11:12Z"
    assets = item["assets"]
    assert {key: asset["gsd"] for key, asset in assets.items()} == pytest.approx(
        {"B02": 0.3, "B03": 0.3, "B04": 0.3, "B08": 0.3, "B11": 0.6, "SCL": 0.6}, rel=0.01
    )
    assert {key: [b["eo:common_name"] for b in a.get("bands", ())] for key, a in assets.items()} == {
        "B02": ["blue"], "B03": ["green"], "B04": ["red"], "B08": ["nir"], "B11": ["swir16"], "SCL": [],
    }  # fmt: skip
    assert assets["SCL"]["roles"] == ["data-mask"]
    assert assets["B11"]["href"].endswith("R20m/T45_20240531T101112_B11_20m.tif")
    assert all(asset["file:checksum"].startswith("1220") for asset in assets.values())
    assert items["town"]["assets"].keys() == {"data"}


def test_the_item_opens_as_the_folder_does(tmp_path: Path, tiny_model: Path) -> None:
    home = product(tmp_path / "in")
    report = made(tmp_path / "in")
    item = report.path.parent / "items" / f"{home.stem}.json"
    wanted = ("red", "green", "swir16")
    scenes = [as_asked(open_scene(path), wanted, Asked(mask="scl")) for path in (home, item)]
    one, other = (open_source(scene, bands) for scene, bands in scenes)
    a, b = (source.raw(Window(0, 80, 0, 60)) for source in (one, other))
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
    assert not a[1].all()
    scenes_ = {"catalogs": ["in/collection.json"]}
    job = RunJob.model_validate({"product": "buildings", "model": str(tiny_model), "scenes": scenes_})
    assert carry_out(job, tmp_path).done == 1
    assert (tmp_path / "maps" / home.stem / "labels.tif").exists()


def test_only_a_collection_that_links_an_item_widens_where_its_files_lie(tmp_path: Path) -> None:
    home = product(tmp_path / "in")
    report = made(tmp_path / "in")
    item = report.path.parent / "items" / f"{home.stem}.json"
    content = json.loads(report.path.read_text("utf-8"))
    content["links"] = [link for link in content["links"] if link["rel"] != "item"]
    report.path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SceneError, match="lies outside of its catalog's folder"):
        open_scene(item)
    report.path.write_text("[1]", encoding="utf-8")
    with pytest.raises(SceneError, match="lies outside of its catalog's folder"):
        open_scene(item)


def test_it_is_brought_up_to_date_band_by_band(tmp_path: Path) -> None:
    home = product(tmp_path)
    assert (made(tmp_path).made, made(tmp_path).kept) == (1, 1)
    (file,) = home.rglob("*B11_20m.tif")
    band(file, 2, seed=9)
    assert made(tmp_path).made == 1
    file.unlink()
    report = made(tmp_path)
    assert report.made == 1
    assert "B11" not in items_of(report.path)[home.stem]["assets"]


def test_scenes_that_share_a_folder_are_told_apart_by_name(tmp_path: Path) -> None:
    for scene in ("LC08_L2SP_193026_20240531_20240601_02_T1", "LE07_L2SP_193026_20030531_20200601_02_T1"):
        for number in (2, 3, 4):
            band(tmp_path / f"{scene}_SR_B{number}.TIF")
        band(tmp_path / f"{scene}_QA_PIXEL.TIF")
    for name in ("red", "green", "blue"):
        band(tmp_path / "aerial" / f"{name}.tif")
    report = made(tmp_path)
    items = items_of(report.path)
    assert set(items) == {
        "LC08_L2SP_193026_20240531_20240601_02_T1",
        "LE07_L2SP_193026_20030531_20200601_02_T1",
        "aerial",
    }
    names = {
        key[:4]: [a["bands"][0]["eo:common_name"] for a in item["assets"].values() if "bands" in a]
        for key, item in items.items()
    }
    assert names == {
        "LC08": ["blue", "green", "red"], "LE07": ["green", "red", "nir08"], "aeri": ["blue", "green", "red"],
    }  # fmt: skip
    assert set(items["aerial"]["assets"]) == {"red", "green", "blue"}


def test_what_does_not_lie_on_each_other_are_scenes_of_their_own(tmp_path: Path) -> None:
    """Sheets B02 and B03 of a map, say."""
    band(tmp_path / "sheet_B02.tif")
    band(tmp_path / "sheet_B03.tif", right=60)
    band(tmp_path / "house_red.tif")
    band(tmp_path / "barn_green.tif")
    report = made(tmp_path)
    assert (set(items_of(report.path)), report.faults) == ({"sheet_B02", "sheet_B03", "house_red", "barn_green"}, ())


def test_two_files_of_a_band_are_no_scene(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a_B02.tif", "a_B03.tif", "a_B02.jp2", "b_B02.tif")]
    assert [scene for scene, *_ in scenes_among(paths)] == paths
    paths = [tmp_path / name for name in ("a_B02_10m.tif", "a_B02_20m.tif", "a_B03_10m.tif")]
    assert [(scene, [*found.values()]) for scene, found, _ in scenes_among(paths)] == [
        (tmp_path / "a", [paths[0], paths[2]])
    ]


def test_a_real_scene_of_single_bands(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "change_sentinel2" / "paris" / "t1"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    report = made(folder, out=tmp_path)
    (item,) = items_of(report.path).values()
    assert set(item["assets"]) == {"B02", "B03", "B04", "B08", "B11"}
    check(report.path)
