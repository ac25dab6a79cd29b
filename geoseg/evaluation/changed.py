"""What is compared when two maps of changes are: ground that has changed, and ground that has not.

A raster tells it by 0 and anything else, whatever the numbers are called; 255 is nodata where the file says so, and a
change in a mask of 0 and 255. Polygons are the places that have changed; those that say that they have not, or that it
is not known (a column `status`), are none. What has no place on the ground (a mask in PNG) lies on the other side's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox

from geoseg.errors import EvaluationError
from geoseg.evaluation.inputs import Side, is_raster, open_side, read_vector
from geoseg.io.gdal_scenes import PIXEL, file_of, has_place, open_dataset
from geoseg.io.grids import on_grid
from geoseg.io.pixels import Stretch, resolution_of
from geoseg.io.scenes import open_scene, open_source
from geoseg.raster import NODATA

if TYPE_CHECKING:
    import geopandas as gpd
    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.window import Window

NAMES: Final = {0: "unchanged", 1: "changed"}

RASTERS: Final = ("changes.tif", "transitions.tif")
"""What tells of pixels in a folder that `geoseg change` wrote."""

NO_CHANGE: Final = ("unchanged", "uncertain", "not_compared")
"""What a row says that is no change, or not known to be one."""

ASPECT_WITHIN: Final = 0.02
"""How much longer or wider than the other side's a picture without a place may be, to lie on the same ground."""


def open_changes(
    prediction: str | Path | gpd.GeoDataFrame, reference: str | Path | gpd.GeoDataFrame, pixel: float | None
) -> tuple[Side, Side]:
    """Both sides; `pixel`: metres of a pixel where neither tells its place, 1 for None.

    Raises `EvaluationError` for what is neither a raster of one band of bytes nor polygons, or of another shape.
    """
    opened = [_open(given) for given in (prediction, reference)]
    grids = [side.raster.geobox for side in opened if side.raster is not None and not _nowhere(side.raster)]
    sides = [_placed(side, grids[0] if grids else None, pixel or 1.0) for side in opened]
    path = next((side.path for side in sides if side.raster is not None), None)
    if not grids and path is not None and any(side.vector is not None for side in sides):
        msg = f"{path}: has no place on the ground, so polygons cannot be laid on it; give a raster in their stead, or "
        raise EvaluationError(msg + "georeference it")
    return sides[0], sides[1]


def _open(given: str | Path | gpd.GeoDataFrame) -> Side:
    if isinstance(given, (str, Path)):
        path = _in_folder(Path(given)) if Path(given).is_dir() else str(given)
        if is_raster(file_of(path)[0]):
            return Side(str(given), raster=_raster(path))
    frame: gpd.GeoDataFrame = read_vector(given) if isinstance(given, (str, Path)) else given
    if "status" in frame:
        frame = frame[~frame["status"].isin(NO_CHANGE)]
    columns = [name for name in ("confidence", frame.geometry.name) if name in frame]
    return replace(open_side(frame[columns]), path=str(given) if isinstance(given, (str, Path)) else "the given layer")


def _in_folder(folder: Path) -> str:
    for name in RASTERS:
        if (folder / name).exists():
            return str(folder / name)
    msg = f"{folder}: holds neither {' nor '.join(RASTERS)}; name a folder that `geoseg change` wrote, or one file"
    raise EvaluationError(msg)


def _raster(path: str) -> Scene:
    """A raster of one band, in pixels of a metre about nowhere if it has no place."""
    with open_dataset(file_of(path)[0]) as dataset:
        placed = has_place(dataset) or file_of(path)[1] is not None
    scene = open_scene(path if placed else f"{path}#{PIXEL}=1")
    if len(scene.bands) != 1:
        msg = f"{path}: changes are told by one band, this has {len(scene.bands)} of {scene.dtype}; choose one "
        raise EvaluationError(msg + "(gdal_translate -b 1)")
    return scene


def _nowhere(scene: Scene) -> bool:
    return scene.path.endswith(f"#{PIXEL}=1")


def _placed(side: Side, grid: GeoBox | None, pixel: float) -> Side:
    """A side whose raster, if it has no place, lies on the ground of a grid, or of pixels of so many metres."""
    scene = side.raster
    if scene is None or not _nowhere(scene):
        return side
    if grid is None:
        box = GeoBox(scene.shape, scene.geobox.affine @ rasterio.Affine.scale(pixel), scene.geobox.crs)
    else:
        down, along = (theirs / own for theirs, own in zip(grid.shape, scene.shape, strict=True))
        if abs(down / along - 1) > ASPECT_WITHIN:
            msg = f"{side.path}: has no place on the ground and {scene.shape[0]} x {scene.shape[1]} pixels, the other "
            raise EvaluationError(msg + f"side has {grid.shape[0]} x {grid.shape[1]}; georeference it, or cut it alike")
        box = GeoBox(scene.shape, grid.affine @ rasterio.Affine.scale(along, down), grid.crs)
    return replace(side, raster=replace(scene, geobox=box, ground_resolution=resolution_of(box, side.path)))


class _Whether(Stretch):
    """How values of any type tell of a change: 1 for all but 0."""

    def apply(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """0 and 1, of any shape."""
        changed: NDArray[np.uint8] = (values != 0).astype(np.uint8)
        return changed


class ChangedPixels:
    """A raster of changes on a grid, by nearest: 1 where anything has changed."""

    def __init__(self, scene: Scene, grid: GeoBox) -> None:
        scene = scene if scene.geobox == grid else on_grid(scene, grid, by_nearest=True)
        self._source = open_source(scene, (1,), _Whether((0.0,), (1.0,)))

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Labels (y, x) of a window: 0, 1, and 255 where the file says that there is no data."""
        raster = self._source.read(window)
        changed: NDArray[np.uint8] = np.where(raster.valid, raster.values[0], NODATA).astype(np.uint8)
        return changed
