"""Vector files: areas of interest that are read, footprints that are written."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.features import rasterize

from geoseg.errors import OptionError
from geoseg.io.store import cannot_write
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.window import Window

ROWS_TOGETHER = 16384
"""Rows of a row group, which a reader takes or leaves as a whole."""

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


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file that takes the place of `path` once it is whole. Raises `OutputError` if the disk refuses."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def write_parquet(footprints: gpd.GeoDataFrame, path: Path) -> None:
    """GeoParquet 1.1 in the footprints' own CRS, with a bounding-box column for fast windows."""
    options = {"compression": "zstd", "write_covering_bbox": True, "row_group_size": ROWS_TOGETHER}
    with _beside(path) as part:
        footprints.to_parquet(part, index=False, **options)


@contextmanager
def parquet_file(path: Path) -> Iterator[Callable[[gpd.GeoDataFrame], None]]:
    """The same file from one frame after the other, all of the same columns and CRS, at least one: what takes them."""
    with _beside(path) as part:
        writer = _ParquetParts(part)
        yield writer.add
        writer.close()


class _ParquetParts:
    """GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0) in row groups of `ROWS_TOGETHER`, however it came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._held: list[gpd.GeoDataFrame] = []
        self._types: set[str] = set()
        self._bounds = np.full((0, 4), np.nan)

    def add(self, footprints: gpd.GeoDataFrame) -> None:
        """Some more rows."""
        self._held.append(footprints)
        if sum(len(frame) for frame in self._held) >= ROWS_TOGETHER:
            held = pd.concat(self._held, ignore_index=True)
            whole = len(held) // ROWS_TOGETHER * ROWS_TOGETHER
            self._write(held.iloc[:whole])
            self._held = [held.iloc[whole:]]

    def close(self) -> None:
        """Write what is held, and what the file says of itself."""
        held = pd.concat(self._held, ignore_index=True)
        writer = self._write(held)
        sides = ("xmin", "ymin", "xmax", "ymax")
        column = {
            "encoding": "WKB",
            "geometry_types": sorted(self._types),
            "crs": held.crs.to_json_dict(),
            "covering": {"bbox": {side: ["bbox", side] for side in sides}},
        }
        if len(self._bounds):
            column["bbox"] = [*self._bounds[:, :2].min(0).tolist(), *self._bounds[:, 2:].max(0).tolist()]
        about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        writer.add_key_value_metadata({"geo": json.dumps(about)})
        writer.close()

    def _write(self, footprints: gpd.GeoDataFrame) -> Any:
        geometry = footprints.geometry.to_numpy()
        bounds = shapely.bounds(geometry)
        table = pa.Table.from_pandas(pd.DataFrame(footprints.drop(columns="geometry")), preserve_index=False)
        table = table.replace_schema_metadata(None)
        table = table.append_column("geometry", pa.array(shapely.to_wkb(geometry), pa.binary()))
        box = pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], ["xmin", "ymin", "xmax", "ymax"])
        table = table.append_column("bbox", box)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=ROWS_TOGETHER)
        self._types |= set(footprints.geom_type)
        self._bounds = np.concatenate([self._bounds, _around(bounds)])
        return self._writer


def _around(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(0 or 1, 4): the bounds of all."""
    return np.concatenate([bounds[:, :2].min(0), bounds[:, 2:].max(0)])[None] if len(bounds) else bounds


def write_geojson(footprints: gpd.GeoDataFrame, path: Path) -> None:
    """GeoJSON as RFC 7946 wants it: WGS 84 longitude and latitude, 7 digits, exterior rings counterclockwise."""
    with geojson_file(path) as write:
        write(footprints)


@contextmanager
def geojson_file(path: Path) -> Iterator[Callable[[gpd.GeoDataFrame], None]]:
    """The same file from one frame after the other: what takes them."""
    with _beside(path) as part, part.open("w", encoding="utf-8") as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        heads = chain(["\n"], repeat(",\n"))

        def write(footprints: gpd.GeoDataFrame) -> None:
            stream.writelines(_features(footprints, heads))

        yield write
        stream.write("\n]}\n")


def _features(footprints: gpd.GeoDataFrame, heads: Iterator[str]) -> Iterator[str]:
    """Lines of GeoJSON, each begun by the next of `heads`."""
    columns = [name for name in footprints.columns if name != footprints.geometry.name]
    records = json.loads(footprints[columns].to_json(orient="records", date_format="iso", double_precision=4))
    for shape, record in zip(shapely.to_geojson(to_lonlat(footprints)), records, strict=True):
        told = f'"id":{json.dumps(record["id"])},"properties":{json.dumps(record)}'
        yield f'{next(heads)}{{"type":"Feature",{told},"geometry":{shape}}}'


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
