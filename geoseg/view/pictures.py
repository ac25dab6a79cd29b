"""Rasters as pictures: overviews of scenes, labels and confidence, thumbnails, and tiles at full resolution."""

from __future__ import annotations

import base64
import copy
import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import rasterio
import rasterio.windows
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.enums import Resampling

from geoseg.errors import OutputError
from geoseg.io.grids import on_grid
from geoseg.io.pixels import overview_shape
from geoseg.io.scenes import Asked, Stretch, as_asked, estimate_stretch, open_source
from geoseg.io.zarr_maps import MAPS, maps_grid, read_maps
from geoseg.raster import CONFIDENCE_STEPS, NODATA, Raster
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.io.pixels import SceneSource

VISIBLE: Final = ("red", "green", "blue")

RAMP: Final = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
"""From low to high, even in lightness and readable without red and green (Nuñez, Anderton and Renslow 2018)."""

QUALITY: Final = 72
"""Of lossy WebP; at this one its marks are not seen on imagery."""


class Imagery:
    """The visible bands of a scene, on the grid of a map."""

    def __init__(self, scene: Scene, parameters: Mapping[str, Any], grid: GeoBox | None = None) -> None:
        """`parameters` are those of the map's item: bands, nodata and stretch that were taken.

        `grid`: the map's; None: the scene's own. Raises `SceneError` or `OptionError` for bands that cannot be shown.
        """
        asked = Asked(
            tuple((str(name), int(band)) for name, band in dict(parameters.get("bands") or {}).items()),
            tuple(float(value) for value in parameters.get("nodata") or ()),
        )
        self.scene, self.bands = _visible(scene, asked)
        self.stretch = _stretch(parameters.get("stretch"), len(self.bands)) or estimate_stretch(self.scene, self.bands)
        self.grid = grid or self.scene.geobox
        self._whole: SceneSource | None = None

    def on(self, grid: GeoBox) -> Imagery:
        """The same scene on another map's grid."""
        moved = copy.copy(self)
        moved.__dict__.update(grid=grid, _whole=None)
        return moved

    def overview(self, most: int) -> Raster:
        """All of it with at most so many rows and columns: values uint8 (band, y, x)."""
        grid = overview_grid(self.grid, most)
        return self._on(grid).read(Window.of_shape(_shape(grid)))

    def read(self, window: Window) -> Raster:
        """Pixels of a window of the map's grid, which may reach beyond it."""
        self._whole = self._whole or self._on(self.grid)
        return self._whole.read(window)

    def part(self, window: Window, shape: tuple[int, int]) -> Raster:
        """A window of the map's grid, brought to another number of rows and columns."""
        place = self.grid.affine.translation(window.col_start, window.row_start)
        piece = type(self.grid)(window.shape, self.grid.affine @ place, self.grid.crs)
        return self._on(piece.zoom_to(shape)).read(Window.of_shape(shape))

    def _on(self, grid: GeoBox) -> SceneSource:
        scene = self.scene if grid == self.scene.geobox else on_grid(self.scene, grid)
        return open_source(scene, self.bands, self.stretch)


def _visible(scene: Scene, asked: Asked) -> tuple[Scene, tuple[int, ...]]:
    """What is looked at: red, green and blue as far as they are known, or else the first band."""
    from geoseg.errors import GeosegError

    names = VISIBLE if not asked.bands or set(VISIBLE) <= {n for n, _ in asked.bands} else (asked.bands[0][0],)
    try:
        return as_asked(scene, names, asked)
    except GeosegError:
        first = next((name for name in scene.bands if name and name != "alpha"), "grey")
        return as_asked(scene, (first,), Asked((), asked.nodata[:1]))


def _stretch(told: Mapping[str, Any] | None, bands: int) -> Stretch | None:
    if not told or len(told["low"]) != bands:
        return None
    return Stretch(tuple(told["low"]), tuple(told["high"]))


def _shape(grid: GeoBox) -> tuple[int, int]:
    rows, cols = grid.shape
    return int(rows), int(cols)


def overview_grid(grid: GeoBox, most: int) -> GeoBox:
    """The same ground in at most so many rows and columns."""
    shape = overview_shape(_shape(grid), most)
    return grid if shape == _shape(grid) else grid.zoom_to(shape)


def scene_picture(raster: Raster, quality: int = QUALITY) -> bytes:
    """Pixels as WebP, clear where there are no data."""
    values = np.broadcast_to(raster.values, (3, *raster.valid.shape)) if len(raster.values) == 1 else raster.values[:3]
    pixels = np.moveaxis(values.astype(np.uint8), 0, -1)
    if raster.valid.all():
        return _webp(Image.fromarray(np.ascontiguousarray(pixels)), quality)
    alpha = np.where(raster.valid, 255, 0).astype(np.uint8)[..., None]
    return _webp(Image.fromarray(np.concatenate([pixels * (alpha > 0), alpha], axis=-1)), quality)


def labels_picture(labels: NDArray[np.uint8], colours: Mapping[int, str], clear: set[int]) -> bytes:
    """Labels (y, x) as PNG in the legend's colours; clear: nodata, `clear`, and what has no colour."""
    palette = np.zeros((256, 4), np.uint8)
    for value, colour in colours.items():
        palette[value] = (*bytes.fromhex(colour.removeprefix("#")), 255)
    for value in {*clear, NODATA}:
        palette[value, 3] = 0
    image = Image.fromarray(labels)
    image.putpalette(palette[:, :3].tobytes())
    return _png(image, transparency=palette[:, 3].tobytes())


def confidence_picture(codes: NDArray[np.uint8], quality: int | None = QUALITY) -> bytes:
    """Codes of confidence (y, x) as WebP in the ramp's colours; clear: nodata. None: lossless, as PNG."""
    colours = ramp()[np.minimum(codes.astype(np.uint16) * 255 // CONFIDENCE_STEPS, 255)]
    alpha = np.where(codes == NODATA, 0, 255).astype(np.uint8)[..., None]
    whole = bool((codes != NODATA).all())
    image = Image.fromarray(colours if whole else np.concatenate([colours * (alpha > 0), alpha], axis=-1))
    return _webp(image, quality) if quality is not None else _png(image)


def ramp() -> NDArray[np.uint8]:
    """(256, 3) colours from low to high."""
    stops = np.array([list(bytes.fromhex(colour[1:])) for colour in RAMP], np.float64)
    at = np.linspace(0, len(RAMP) - 1, 256)
    return (
        np.stack([np.interp(at, np.arange(len(RAMP)), stops[:, c]) for c in range(3)], axis=1).round().astype(np.uint8)
    )


def read_map(path: Path, most: int, resampling: Resampling = Resampling.nearest) -> NDArray[np.uint8]:
    """A map (y, x) with at most so many rows and columns, from its overviews."""
    shape = _shape(map_grid(path))
    return read_part(path, Window.of_shape(shape), overview_shape(shape, most), resampling)


def read_part(
    path: Path, window: Window, shape: tuple[int, int], resampling: Resampling = Resampling.nearest
) -> NDArray[np.uint8]:
    """A window of a map, brought to another number of rows and columns: of the COG, or of the Zarr store beside it.

    Nothing but a GeoTIFF is taken for one: a VRT under its name could show any file. Raises `OutputError` if neither
    can be read.
    """
    if not path.exists() and (path.parent / MAPS).is_dir():
        return read_maps(path.parent / MAPS, path.stem, window, shape)
    (row, row_stop), (col, col_stop) = window.row_range, window.col_range
    try:
        with rasterio.open(path, driver="GTiff") as dataset:
            place = rasterio.windows.Window(col, row, col_stop - col, row_stop - row)
            values: NDArray[np.uint8] = dataset.read(1, window=place, out_shape=shape, resampling=resampling)
            return values
    except rasterio.errors.RasterioError as error:
        raise _unreadable(path, error) from error


def map_grid(path: Path) -> GeoBox:
    """The grid of a map: of the COG, or of the Zarr store beside it. Raises `OutputError` if neither can be read."""
    if not path.exists() and (path.parent / MAPS).is_dir():
        return maps_grid(path.parent / MAPS)
    try:
        with rasterio.open(path, driver="GTiff") as dataset:
            return GeoBox(dataset.shape, dataset.transform, dataset.crs)
    except rasterio.errors.RasterioError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"{path}: cannot be read ({error}); make the result again")


def data_uri(data: bytes) -> str:
    """A picture as an address that holds it."""
    kind = "png" if data.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def shrunk(raster: Raster, most: int) -> Raster:
    """The same with at most so many rows and columns, for thumbnails."""
    rows, cols = raster.valid.shape
    scale = most / max(rows, cols)
    if scale >= 1:
        return raster
    size = max(1, round(cols * scale)), max(1, round(rows * scale))
    bands = [np.asarray(Image.fromarray(band).resize(size, Image.Resampling.BILINEAR)) for band in raster.values]
    return Raster(np.stack(bands), np.asarray(Image.fromarray(raster.valid).resize(size, Image.Resampling.NEAREST)))


def _webp(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, method=2)
    return stream.getvalue()


def _png(image: Image.Image, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=6, **options)
    return stream.getvalue()
