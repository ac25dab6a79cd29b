"""Heights of polygons, against rasters whose heights are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner
from rasterio.features import geometry_mask

from geoseg import heights as module
from geoseg.cli import cli
from geoseg.errors import OptionError, SceneError
from geoseg.heights import heights

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PLACE = rasterio.Affine(0.5, 0, 334_000, 0, -0.5, 3_057_000)


def raster(path: Path, values: NDArray[np.float32], place: rasterio.Affine = PLACE, crs: str = "EPSG:32645") -> Path:
    profile = {"driver": "GTiff", "height": values.shape[0], "width": values.shape[1], "count": 1, "dtype": "float32"}
    with rasterio.open(path, "w", **profile, transform=place, crs=crs, nodata=-9999) as dataset:
        dataset.write(values, 1)
    return path


def boxes(*places: tuple[float, float, float, float]) -> gpd.GeoDataFrame:
    """Polygons from rows and columns of the surface model."""
    shapes = [shapely.box(*(PLACE @ (left, bottom)), *(PLACE @ (right, top))) for top, bottom, left, right in places]
    return gpd.GeoDataFrame(geometry=shapes, crs=32645)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A slope, at a coarser resolution, and two roofs on it, one with a chimney, one mostly not known."""
    row, col = np.mgrid[:200, :300]
    slope = (1300 + 0.05 * col + 0.02 * row).astype(np.float32)
    surface = slope.copy()
    surface[20:40, 30:60] += 6.25
    surface[25:28, 40:44] += 3
    surface[100:140, 200:240] += 12
    surface[100:140, 200:232] = -9999  # more than half of it
    place = PLACE @ rasterio.Affine.translation(-2, -2) @ rasterio.Affine.scale(4)
    coarse = np.mgrid[:55, :80] * 4.0 - 2 + 1.5
    terrain = (1300 + 0.05 * coarse[1] + 0.02 * coarse[0]).astype(np.float32)
    return raster(tmp_path / "dsm.tif", surface), raster(tmp_path / "dtm.tif", terrain, place)


def test_a_roof_is_as_high_as_it_is(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    frame = boxes((20, 40, 30, 60), (100, 140, 200, 240), (150, 180, 20, 80), (100, 140, 201, 215), (-90, -80, 0, 9))
    for cell in (2048, 16):
        monkeypatch.setattr(module, "CELL", cell)
        found = heights(frame, *models)
        assert found[:3].tolist() == pytest.approx([6.25, 12, 0], abs=0.011)
        assert np.isnan(found[3:]).all(), "where nothing is known, and beyond the raster"
        assert heights(frame.to_crs(4326), *models) == pytest.approx(found, abs=0.011, nan_ok=True)
    assert heights(frame.iloc[:0], *models).tolist() == []


def test_the_median_is_that_of_the_pixels_inside(tmp_path: Path) -> None:
    values = np.random.default_rng(3).normal(5, 3, (60, 80)).astype(np.float32)
    dsm, dtm = raster(tmp_path / "a.tif", values), raster(tmp_path / "b.tif", np.zeros_like(values))
    shape = shapely.Polygon([PLACE @ (10.2, 5.1), PLACE @ (61.7, 20.3), PLACE @ (30.4, 50.9)])
    inside = ~geometry_mask([shape], values.shape, PLACE)
    (found,) = heights(gpd.GeoDataFrame(geometry=[shape], crs=32645), dsm, dtm)
    assert found == pytest.approx(np.median(values[inside]), abs=0.006)


def test_what_is_no_height_is_told(models: tuple[Path, Path], tmp_path: Path) -> None:
    frame, (dsm, dtm) = boxes((20, 40, 30, 60)), models
    with pytest.raises(OptionError, match=r"dsm\.tif: has no height inside any"):
        heights(boxes((900, 910, 0, 9)), dsm, dtm)
    with pytest.raises(SceneError, match=r"c\.tif: cannot be read as a raster"):
        heights(frame, dsm, tmp_path / "c.tif")
    about = {"driver": "GTiff", "width": 3, "height": 3, "count": 2, "dtype": "uint8", "transform": PLACE}
    with rasterio.open(tmp_path / "d.tif", "w", **about) as two:
        two.write(np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(SceneError, match=r"d\.tif: has no CRS; heights are one band"):
        heights(frame, dsm, tmp_path / "d.tif")


def test_the_command_tells_heights(models: tuple[Path, Path], tmp_path: Path) -> None:
    labels = np.zeros((200, 300), np.uint8)
    labels[20:40, 30:60] = labels[150:180, 20:80] = 1
    profile = {"driver": "GTiff", "height": 200, "width": 300, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "labels.tif", "w", **profile, transform=PLACE, crs="EPSG:32645") as dataset:
        dataset.write(labels, 1)
    out, (dsm, dtm) = tmp_path / "a.gpkg", models
    asked = ["vectorize", str(tmp_path / "labels.tif"), "--out", str(out), "--dsm", str(dsm)]
    with pytest.raises(OptionError, match="--dsm and --dtm go together"):
        CliRunner().invoke(cli, asked, catch_exceptions=False)
    assert not out.exists()
    assert CliRunner().invoke(cli, [*asked, "--dtm", str(dtm)]).exit_code == 0
    assert gpd.read_file(out, layer="a")["height_m"].tolist() == pytest.approx([6.25, 0], abs=0.011)
