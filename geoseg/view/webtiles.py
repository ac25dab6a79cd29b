"""Maps and scenes as tiles of Web Mercator for web maps and QGIS, by TiTiler: XYZ and TileJSON.

The pages themselves take tiles of the map's own grid, which are the file's pixels (`geoseg.view.serve`); these here are
brought to another grid, labels by the nearest pixel.
"""

# No postponed annotations: FastAPI reads those of endpoints.
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from fastapi import APIRouter, Depends
from morecantile import Tile, TileMatrixSet
from morecantile.defaults import TileMatrixSets, tms
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from PIL import Image
from pyproj import Transformer
from rio_tiler.errors import TileOutsideBounds
from rio_tiler.io import BaseReader, Reader, XarrayReader
from rio_tiler.models import BandStatistics, ImageData, Info, PointData
from titiler.core.factory import TilerFactory
from titiler.core.resources.enums import ImageType

from geoseg.io.zarr_maps import level_for
from geoseg.raster import NODATA, Raster, crs_of
from geoseg.view.pictures import Imagery
from geoseg.view.serve import Layer
from geoseg.window import Window

GRID = "WebMercatorQuad"

ALONE, WITHIN = "/web/{layer}", "/{folder}/web/{layer}"
"""Below which addresses the tiles of a scene's folder are, and those of many."""


KINDS = {"jpeg": "JPEG", "jpg": "JPEG", "webp": "WEBP"}
"""Kinds of pictures besides PNG."""


class SceneReader(BaseReader):
    """A scene of any kind, read and stretched as it is for the pages."""

    def __init__(self, imagery: Imagery, tms: TileMatrixSet, whole: tuple[GeoBox, Raster]) -> None:
        """On Web Mercator's grid of tiles; `whole` is all of it in few pixels, for tiles that are as coarse."""
        grid = imagery.grid
        self.input, self.tms, self.whole = imagery, tms, whole
        self.crs = _crs(grid)
        west, south, east, north = (float(side) for side in grid.boundingbox)
        self.bounds = west, south, east, north
        self.transform, (self.height, self.width) = grid.affine, grid.shape
        self.minzoom, self.maxzoom = self._minzoom, self._maxzoom

    def tile(self, tile_x: int, tile_y: int, tile_z: int, **_: Any) -> ImageData:
        """Red, green and blue of a tile; clear where there are no data."""
        if not self.tile_exists(tile_x, tile_y, tile_z):
            msg = f"tile {tile_z}/{tile_x}/{tile_y} is outside of the scene"
            raise TileOutsideBounds(msg)
        bounds, side = self.tms.xy_bounds(Tile(tile_x, tile_y, tile_z)), 256
        step = (bounds.right - bounds.left) / side
        grid = GeoBox((side, side), Affine(step, 0, bounds.left, 0, -step, bounds.top), 3857)
        fewer = self.whole[0].shape[0] / self.input.grid.shape[0]
        if 2.0 ** (self.maxzoom - tile_z) * fewer >= 1:
            raster = _warped(*self.whole, grid)
        else:
            raster = self.input.on(grid).read(Window.of_shape((side, side)))
        values = np.broadcast_to(raster.values[:3], (3, side, side)).astype(np.uint8)
        masked = np.ma.MaskedArray(values, np.broadcast_to(~raster.valid, values.shape))
        return ImageData(masked, bounds=tuple(bounds), crs=self.tms.rasterio_crs)

    def info(self) -> Info:
        """What TileJSON tells."""
        told: dict[str, Any] = {"band_metadata": [(f"b{band}", {}) for band in (1, 2, 3)], "band_descriptions": []}
        return Info(bounds=self.bounds, crs=self.crs.to_wkt(), dtype="uint8", nodata_type="Mask", **told)

    def statistics(self, *_: Any, **__: Any) -> dict[str, BandStatistics]:
        """Not told."""
        raise NotImplementedError

    def part(self, *_: Any, **__: Any) -> ImageData:
        """Not given out."""
        raise NotImplementedError

    preview = feature = part

    def point(self, *_: Any, **__: Any) -> PointData:
        """Not told."""
        raise NotImplementedError


def _warped(grid: GeoBox, raster: Raster, to: GeoBox) -> Raster:
    """The nearest pixels on another grid."""
    cols, rows = np.meshgrid(np.arange(to.shape[1]) + 0.5, np.arange(to.shape[0]) + 0.5)
    moved = Transformer.from_crs(to.crs, grid.crs, always_xy=True).transform(*_placed(to.affine, cols, rows))
    col, row = _placed(~grid.affine, *moved)
    inside = (row >= 0) & (row < grid.shape[0]) & (col >= 0) & (col < grid.shape[1])  # infinite is outside, too
    row, col = (np.where(inside, place, 0).astype(int) for place in (row, col))
    return Raster(raster.values[:, row, col], raster.valid[row, col] & inside)


def _placed(
    affine: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def _crs(grid: GeoBox) -> rasterio.crs.CRS:
    return rasterio.crs.CRS.from_wkt(crs_of(grid).to_wkt())


class ZarrReader(XarrayReader):
    """A map in a Zarr store with overviews."""

    def __init__(self, path: Path, tms: TileMatrixSet) -> None:
        """`path`: of the array, in the store."""
        self.path = path
        super().__init__(_array(path, 1), tms)

    def tile(self, tile_x: int, tile_y: int, tile_z: int, *args: Any, **options: Any) -> ImageData:
        """A tile from the overview that fits."""
        level = level_for(self.path.parent, 2.0 ** max(0, self.maxzoom - tile_z))
        return XarrayReader(_array(self.path, level), self.tms).tile(tile_x, tile_y, tile_z, *args, **options)


def _array(path: Path, level: int) -> xr.DataArray:
    store: xr.Dataset = xr.open_zarr(
        path.parent,
        group=str(level) if level > 1 else None,
        chunks=None,
        consolidated=False,
        mask_and_scale=False,
        decode_coords="all",
    )
    made: xr.DataArray = store[path.name].rio.write_nodata(NODATA)
    return made


def reader_of(layer: Layer, tms: TileMatrixSet, **_: Any) -> AbstractContextManager[BaseReader]:
    """What reads a layer."""
    if isinstance(layer.source, Imagery):
        assert layer.whole is not None, "a scene comes with all of it in few pixels"  # noqa: S101  for mypy
        return SceneReader(layer.source, tms, layer.whole)
    if not layer.source.suffix:
        return ZarrReader(layer.source, tms)
    return Reader(str(layer.source), dataset=rasterio.open(layer.source, driver="GTiff"), tms=tms)


def encoded(
    image: ImageData, colormap: Any = None, output_format: ImageType | None = None, **_: Any
) -> tuple[bytes, str]:
    """A tile as a PNG, or what else is asked for, with its type; what has no data is clear.

    TiTiler's own way goes through a file of GDAL's and silences a warning in all threads at once, which fails now and
    then where several answer.
    """
    shown = image.apply_colormap(colormap) if colormap else image
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in (*shown.data, shown.mask)]
    picture = Image.merge("LA" if shown.count == 1 else "RGBA", bands)
    kind = KINDS.get(output_format.value if output_format else "", "PNG")
    stream = io.BytesIO()
    (picture.convert("RGB") if kind == "JPEG" else picture).save(stream, kind)
    return stream.getvalue(), f"image/{kind.lower()}"


class Tiles(TilerFactory):
    """Tiles and their TileJSON, and nothing else of what TiTiler can give out."""

    def register_routes(self) -> None:
        """Of the two."""
        self.tile()  # type: ignore[no-untyped-call]  # theirs
        self.tilejson()  # type: ignore[no-untyped-call]  # the same


def web_tiles(layer_of: Callable[[str, str], Layer], *, within: bool) -> APIRouter:
    """Routes below `{folder}/web/{layer}`, or below `web/{layer}` if the layers are not `within` a folder."""

    def named(folder: str, layer: str) -> Layer:
        return layer_of(folder, layer)

    def alone(layer: str) -> Layer:
        return layer_of("", layer)

    which = named if within else alone

    def colours(layer: Annotated[Layer, Depends(which)]) -> dict[int, tuple[int, int, int, int]] | None:
        return layer.colours

    made = Tiles(
        render_func=encoded,
        router_prefix=WITHIN if within else ALONE,
        reader=reader_of,  # type: ignore[arg-type]  # called, and nothing else
        path_dependency=which,
        colormap_dependency=colours,
        supported_tms=TileMatrixSets({GRID: tms.get(GRID)}),
    )
    return made.router
