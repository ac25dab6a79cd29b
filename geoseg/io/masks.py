"""Rasters that tell which pixels of a scene are valid: the user's own, or those that come with satellite scenes.

    mask        as GDAL's masks have it (RFC 15): 0 is not valid, all else is
    scl         Sentinel-2's scene classification: no data, saturated, cloud shadows, clouds and cirrus are not valid
    qa_pixel    Landsat Collection 2: fill, dilated cloud, cirrus, cloud and cloud shadow are not valid
    clouds      what `geoseg.io.clouds` has found: clouds, shadows and what is beside them

Any grid and CRS will do: a pixel takes what lies below its centre. Where the raster has no data or does not reach,
nothing is valid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.windows
from pyproj import Transformer

from geoseg.errors import OptionError, SceneError
from geoseg.globe import outline_of
from geoseg.io.gdal_scenes import UNREADABLE, open_dataset, open_raster
from geoseg.io.hrefs import absolute, kind_of
from geoseg.io.places import aligned, places, to_file
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import Scene

SCL_INVALID = (0, 1, 3, 8, 9, 10)
"""No data, saturated or defective, cloud shadow, cloud of medium and high probability, thin cirrus."""

QA_INVALID = 0b11111
"""Bits 0 to 4: fill, dilated cloud, cirrus, cloud, cloud shadow."""

KINDS: dict[str, Callable[[NDArray[Any]], NDArray[np.bool_]]] = {
    "mask": lambda codes: np.asarray(codes != 0),
    "scl": lambda codes: ~np.isin(codes, SCL_INVALID),
    "qa_pixel": lambda codes: np.asarray(codes & QA_INVALID == 0),
    "clouds": lambda codes: np.asarray(codes == 0),
}
"""Which codes are valid."""

SPAN = (1024, 8192)
"""Rows and columns of the scene below which codes are read together."""


def chosen(asked: str, scene: Scene) -> tuple[str, str]:
    """What a mask is and where: of `FILE`, `scl=FILE`, or `scl` for one that comes with the scene.

    Raises `OptionError` if there is none, `SceneError` if it is no such raster.
    """
    kind, equals, path = asked.partition("=")
    if kind not in KINDS or kind_of(asked):
        kind, path = "mask", asked
    elif not equals:
        path = dict(scene.masks).get(kind, "")
    if not path:
        have = ", ".join(name for name, _ in scene.masks) or "none"
        msg = f"--mask {asked}: {scene.path} comes with no {kind} raster that may be read (there is {have}); "
        raise OptionError(msg + f"name its file: {kind}=FILE")
    raster = open_raster(path)
    if [name for name in raster.bands if name != "alpha"] != list(raster.bands[:1]):
        msg = f"{path}: a mask has one band, this has {len(raster.bands)}; cut it out first: gdal_translate -b 1"
        raise SceneError(msg)
    if kind != "mask" and not np.issubdtype(np.dtype(raster.dtype), np.integer):
        msg = f"{path}: {kind} codes are whole numbers, these are {raster.dtype}; give the raster as it was published"
        raise SceneError(msg)
    if not outline_of(raster.geobox).intersects(outline_of(scene.geobox)):
        msg = f"{path}: the mask covers nothing of {scene.path}, so nothing would be valid; give that of this scene"
        raise SceneError(msg)
    return kind, path


def in_full(asked: str, home: Path) -> str:
    """The same with a relative path counted from a folder."""
    kind, equals, path = asked.partition("=")
    if kind not in KINDS:
        return absolute(asked, str(home.absolute() / "_"))
    return kind + equals + (absolute(path, str(home.absolute() / "_")) if path else "")


def _runs(pixels: NDArray[np.intp], span: int) -> list[NDArray[np.intp]]:
    """Ascending pixels in parts that reach over less than so many."""
    return np.split(pixels, np.flatnonzero(np.diff((pixels - pixels[0]) // span)) + 1)


class Mask:
    """Which pixels of a scene's grid its mask calls valid."""

    def __init__(self, grid: GeoBox, kind: str, path: str) -> None:
        """`kind` is one of `KINDS`."""
        here = open_raster(path).geobox
        self._path, self._valid, self._scene, self._there = path, KINDS[kind], grid, here
        self._dataset = open_dataset(path)
        self._transformer = None
        if grid.crs != here.crs or not aligned(to_file(here, grid)):
            self._transformer = Transformer.from_crs(crs_of(grid).proj, crs_of(here).proj, always_xy=True)

    def valid(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether pixels (y, x) in these rows and columns of the scene are valid. Raises `SceneError`.

        Memory is bounded also where they are far from each other, or the mask is turned against the scene.
        """
        parts = [[self._read(down, along) for along in _runs(cols, SPAN[1])] for down in _runs(rows, SPAN[0])]
        return parts[0][0] if len(parts) == len(parts[0]) == 1 else np.asarray(np.block(parts), bool)

    def _read(self, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.bool_]:
        try:
            down, along = self._places(rows, cols)
            return self._at(down, along)
        except UNREADABLE as error:
            msg = f"{self._path}: the mask cannot be read: the file is damaged or incomplete; copy it again"
            raise SceneError(msg) from error

    def _places(
        self, rows: NDArray[np.intp], cols: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the centres of pixels are in the mask, in its pixels: (y, 1) and (1, x), or both (y, x)."""
        if self._transformer is None:
            affine = to_file(self._there, self._scene)
            return places(affine.e, affine.f, rows)[:, None], places(affine.a, affine.c, cols)[None]
        grid = np.meshgrid(cols + 0.5, rows + 0.5)
        x, y = self._transformer.transform(*(self._scene.affine @ grid))
        along, down = ~self._there.affine @ (x, y)
        return down, along

    def _at(self, down: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.bool_]:
        height, width = self._there.shape
        inside = (down >= 0) & (down < height) & (along >= 0) & (along < width)
        if not inside.any():
            return inside
        row, col = (
            np.clip(np.nan_to_num(place, posinf=0, neginf=0), 0, side - 1).astype(np.intp)
            for place, side in ((down, height), (along, width))
        )
        top, left = int(row.min()), int(col.min())
        window = rasterio.windows.Window(left, top, int(col.max()) + 1 - left, int(row.max()) + 1 - top)
        codes = self._dataset.read(1, window=window)
        valid = self._valid(codes) & (self._dataset.read_masks(1, window=window) > 0)
        return np.asarray(inside & valid[row - top, col - left], bool)
