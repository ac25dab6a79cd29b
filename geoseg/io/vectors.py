"""Vector files: areas of interest that are read, footprints that are written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.features import rasterize

from geoseg.errors import OptionError
from geoseg.io.store import cannot_write
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.window import Window

LONLAT_DIGITS = 7  # RFC 7946, section 11.2, suggests six (10 cm); a roof wants a centimetre


def read_polygons(path: Path) -> gpd.GeoSeries:
    """All polygons of a vector file, one at least, in its CRS. Raises `OptionError` for what is no area of interest."""
    if path.is_dir():
        msg = f"{path}: is a folder; name one vector file, such as a GeoPackage"
        raise OptionError(msg)
    try:
        frame = gpd.read_file(path)
    except Exception as error:  # pyogrio raises various errors of its own and of GDAL's
        msg = f"{path}: cannot be read as a vector file: {error}"
        raise OptionError(msg) from error
    polygons = frame.geometry[frame.geom_type.isin(["Polygon", "MultiPolygon"])]
    if frame.crs is None or polygons.empty:
        missing = "no CRS" if frame.crs is None else "no polygons"
        msg = f"{path}: has {missing}; an area of interest is one or more polygons with a CRS"
        raise OptionError(msg)
    return polygons


def read_aoi(path: Path, geobox: GeoBox) -> Callable[[Window], NDArray[np.bool_]]:
    """A function that tells which pixels of a window of the grid have their centre in the file's polygons.

    Any vector format that GDAL reads, any CRS. Raises `OptionError` if it holds no polygon that meets the grid.
    """
    polygons = read_polygons(path)
    # a fixed binary fraction of a pixel makes later shifts by whole pixels exact, so windows agree on every pixel
    pixels = to_pixels(polygons.to_crs(crs_of(geobox).wkt).to_numpy(), geobox, fraction=1024)
    pixels = pixels[shapely.intersects(pixels, shapely.box(0, 0, geobox.shape[1], geobox.shape[0]))]
    if not len(pixels):
        msg = f"{path}: its polygons do not meet the scene; check that it is the right area"
        raise OptionError(msg)

    def inside(window: Window) -> NDArray[np.bool_]:
        place = Affine.translation(window.col_start, window.row_start)
        mask: NDArray[np.bool_] = rasterize(pixels, window.shape, transform=place, dtype="uint8").astype(bool)
        return mask

    return inside


def _affine(affine: Affine, xy: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y = xy[:, 0], xy[:, 1]
    return np.column_stack([affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f])


def to_pixels(geometry: NDArray[np.object_], geobox: GeoBox, fraction: int = 0) -> NDArray[np.object_]:
    """Geometries in the grid's CRS brought to pixel coordinates (x = column, y = row).

    With a `fraction` their coordinates are rounded to that part of a pixel. What the CRS cannot describe (a place on
    the other side of the earth, infinitely far in it) becomes empty.
    """

    def move(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        pixels = _affine(~geobox.affine, xy)
        return np.rint(pixels * fraction) / fraction if fraction else pixels

    there = np.isfinite(shapely.bounds(geometry)).all(axis=1)
    moved = np.full(len(geometry), shapely.Polygon(), object)
    moved[there] = shapely.transform(geometry[there], move)
    return moved


def to_world(geometry: NDArray[np.object_], geobox: GeoBox) -> NDArray[np.object_]:
    """Polygons in pixel coordinates (x = column, y = row) brought to the grid's CRS."""
    moved: NDArray[np.object_] = shapely.transform(geometry, lambda xy: _affine(geobox.affine, xy))
    return moved


def write_parquet(footprints: gpd.GeoDataFrame, path: Path) -> None:
    """GeoParquet 1.1 in the footprints' own CRS, with a bounding-box column for fast windows."""
    part = path.with_name(f".{path.name}.part")
    try:
        footprints.to_parquet(part, index=False, compression="zstd", write_covering_bbox=True)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def write_geojson(footprints: gpd.GeoDataFrame, path: Path) -> None:
    """GeoJSON as RFC 7946 wants it: WGS 84 longitude and latitude, 7 digits, exterior rings counterclockwise."""
    part = path.with_name(f".{path.name}.part")
    geometry = to_lonlat(footprints)
    columns = [name for name in footprints.columns if name != footprints.geometry.name]
    records = json.loads(footprints[columns].to_json(orient="records", date_format="iso", double_precision=4))
    try:
        with part.open("w", encoding="utf-8") as stream:
            stream.write('{"type":"FeatureCollection","features":[')
            for index, (shape, record) in enumerate(zip(shapely.to_geojson(geometry), records, strict=True)):
                head = "\n" if index == 0 else ",\n"
                feature_id = json.dumps(record["id"])
                stream.write(f'{head}{{"type":"Feature","id":{feature_id},"properties":{json.dumps(record)},')
                stream.write(f'"geometry":{shape}}}')
            stream.write("\n]}\n")
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def to_lonlat(footprints: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """Polygons as RFC 7946 wants them, valid after rounding too."""
    transformer = Transformer.from_crs(footprints.crs, 4326, always_xy=True)
    exact = footprints.geometry.to_numpy()

    def project(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))

    lonlat = shapely.transform(exact, project)
    rounded = shapely.transform(lonlat, lambda xy: np.round(xy, LONLAT_DIGITS))
    broken = ~shapely.is_valid(rounded)
    if broken.any():
        rounded[broken] = shapely.set_precision(lonlat[broken], 10.0**-LONLAT_DIGITS)
    oriented: NDArray[np.object_] = shapely.orient_polygons(rounded)
    return oriented
