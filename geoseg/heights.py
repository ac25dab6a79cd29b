"""Heights of polygons: what a surface model has above a terrain model inside each, in the middle of all its pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import shapely
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow
from scipy import ndimage

from geoseg.errors import OptionError, SceneError
from geoseg.io.gdal_scenes import open_dataset

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray

CELL = 2048
"""Pixels along a part of the surface model whose polygons are looked at together."""


def heights(frame: gpd.GeoDataFrame, dsm: str | Path, dtm: str | Path) -> NDArray[np.float64]:
    """(n,) metres: the median of surface minus terrain over the pixels whose centres lie in each polygon, to a cm.

    `dsm` and `dtm` are rasters of one band, in any CRS, with heights of one datum in metres; the terrain is brought to
    the surface's grid (bilinear). NaN where a polygon has no pixel that both know. Memory: a cell of `CELL` pixels, or
    the box of the largest polygon. Raises `SceneError` for what is no such raster, `OptionError` if the surface model
    does not meet the polygons at all.
    """
    found = np.full(len(frame), np.nan)
    try:
        with open_dataset(str(dsm)) as surface, open_dataset(str(dtm)) as terrain:
            for name, raster in ((dsm, surface), (dtm, terrain)):
                if raster.crs is None or raster.count != 1:
                    what = "no CRS" if raster.crs is None else f"{raster.count} bands"
                    msg = f"{name}: has {what}; heights are one band with a CRS"
                    raise SceneError(msg)
            grid = {"crs": surface.crs, "transform": surface.transform, "width": surface.width}
            with WarpedVRT(terrain, **grid, height=surface.height, resampling=Resampling.bilinear) as ground:
                pixels = _in_pixels(frame, surface)
                for some, window in _cells(pixels, surface.shape):
                    found[some] = _medians(pixels[some], _above(surface, ground, window), window)
    except rasterio.errors.RasterioError as error:
        msg = f"{dsm} and {dtm}: cannot be read as heights: {error}"
        raise SceneError(msg) from error
    if len(frame) and not np.isfinite(found).any():
        msg = f"{dsm}: has no height inside any of the polygons; check that it is the right area"
        raise OptionError(msg)
    return found.round(2)


def _in_pixels(frame: gpd.GeoDataFrame, raster: Any) -> NDArray[np.object_]:
    """Polygons in pixels of a raster: x = column, y = row."""
    back = ~raster.transform
    moved: NDArray[np.object_] = shapely.transform(
        frame.geometry.to_crs(raster.crs.to_wkt()).to_numpy(),
        lambda xy: np.column_stack(back @ (xy[:, 0], xy[:, 1])),
    )
    return moved


def _cells(pixels: NDArray[np.object_], shape: tuple[int, int]) -> Iterator[tuple[NDArray[np.int64], RasterioWindow]]:
    """Polygons that begin in the same cell, and a window that holds as much of them as the raster does."""
    bounds = shapely.bounds(pixels)
    inside = np.isfinite(bounds).all(axis=1)
    inside &= (bounds[:, :2] < (shape[1], shape[0])).all(axis=1) & (bounds[:, 2:] > 0).all(axis=1)
    places = np.flatnonzero(inside)
    _, cell = np.unique(np.floor(bounds[places, :2] / CELL), axis=0, return_inverse=True)
    order = np.argsort(cell.ravel(), kind="stable")
    for some in np.split(places[order], np.flatnonzero(np.diff(cell.ravel()[order])) + 1) if len(places) else ():
        west, north = np.maximum(np.floor(bounds[some, :2].min(axis=0)), 0).astype(int)
        east, south = np.minimum(np.ceil(bounds[some, 2:].max(axis=0)), (shape[1], shape[0])).astype(int)
        yield some, RasterioWindow(west, north, east - west, south - north)


def _above(surface: Any, ground: Any, window: RasterioWindow) -> NDArray[np.float64]:
    """(y, x): surface minus terrain, NaN where one of them is not known."""
    high, low = (
        raster.read(1, window=window, masked=True).astype(np.float64).filled(np.nan) for raster in (surface, ground)
    )
    above: NDArray[np.float64] = high - low
    return above


def _medians(pixels: NDArray[np.object_], values: NDArray[np.float64], window: RasterioWindow) -> NDArray[np.float64]:
    numbered = zip(pixels, range(1, len(pixels) + 1), strict=True)
    place = rasterio.Affine.translation(window.col_off, window.row_off)
    number = rasterize(numbered, values.shape, transform=place, dtype="int32")
    number[~np.isfinite(values)] = 0
    medians: NDArray[np.float64] = np.asarray(ndimage.median(values, number, np.arange(1, len(pixels) + 1)), np.float64)
    there = np.bincount(number.ravel(), minlength=len(pixels) + 1)[1:] > 0
    return np.where(there, medians, np.nan)
