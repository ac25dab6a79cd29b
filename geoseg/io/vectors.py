"""Vector files: areas of interest that are read, footprints that are written."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.features import rasterize

from geoseg.errors import OptionError
from geoseg.io.store import cannot_write
from geoseg.io.texts import DIGITS, STEPS, Ragged, decimal_texts, polygon_texts
from geoseg.io.wkb import polygon_wkb
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.window import Window

ROWS_TOGETHER = 16384
"""Rows of a row group, which a reader takes or leaves as a whole."""

LINES_TOGETHER = 4096
"""Features of GeoJSON that are written at once: what stays in the cache is faster."""


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
def beside(path: Path, *, keep_suffix: bool = False) -> Iterator[Path]:
    """A file that takes the place of `path` once it is whole. Raises `OutputError` if the disk refuses."""
    part = path.with_name(f".part.{path.name}" if keep_suffix else f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def write_parquet(footprints: gpd.GeoDataFrame, path: Path, order: NDArray[np.int64] | None = None) -> None:
    """GeoParquet 1.1 in the footprints' own CRS, with a bounding-box column for fast windows, in another order."""
    with beside(path) as part:
        writer = _ParquetParts(part)
        writer.write(footprints, order)
        writer.close()


@contextmanager
def parquet_file(path: Path) -> Iterator[Callable[[gpd.GeoDataFrame], None]]:
    """The same file from one frame after the other, all of the same columns and CRS, at least one: what takes them."""
    with beside(path) as part:
        writer = _ParquetParts(part)
        yield writer.add
        writer.close()


class _ParquetParts:
    """GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0) in row groups of `ROWS_TOGETHER`, however it came."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._held: list[gpd.GeoDataFrame] = []
        self._crs: Any = None
        self._types: set[int] = set()
        self._bounds = np.full((0, 4), np.nan)

    def add(self, footprints: gpd.GeoDataFrame) -> None:
        """Some more rows."""
        self._held.append(footprints)
        if sum(len(frame) for frame in self._held) >= ROWS_TOGETHER:
            held = pd.concat(self._held, ignore_index=True)
            whole = len(held) // ROWS_TOGETHER * ROWS_TOGETHER
            self.write(held.iloc[:whole])
            self._held = [held.iloc[whole:]]

    def close(self) -> None:
        """Write what is held, and what the file says of itself."""
        if held := [frame for frame in self._held if len(frame) or self._writer is None]:
            self.write(pd.concat(held, ignore_index=True))
        writer = self._writer
        column = {
            "encoding": "WKB",
            "geometry_types": sorted(_GEOMETRY_TYPES[kind] for kind in self._types),
            "crs": self._crs.to_json_dict(),
            "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
        }
        if len(self._bounds):
            column["bbox"] = [*self._bounds[:, :2].min(0).tolist(), *self._bounds[:, 2:].max(0).tolist()]
        about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        writer.add_key_value_metadata({"geo": json.dumps(about)})
        writer.close()

    def write(self, footprints: gpd.GeoDataFrame, order: NDArray[np.int64] | None = None) -> None:
        """Rows as they are, or in another order, in row groups of their own."""
        geometry = footprints.geometry.to_numpy()
        bounds = shapely.bounds(geometry)
        rows = pd.DataFrame(footprints.drop(columns=footprints.geometry.name))
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
        plain = [name for name in table.column_names if pa.types.is_floating(table.schema.field(name).type)]
        repeated = [name for name in table.column_names if name not in plain]
        table = table.append_column("geometry", wkb_of(geometry))
        table = table.append_column("bbox", pa.StructArray.from_arrays([pa.array(side) for side in bounds.T], _SIDES))
        if self._writer is None:
            ranged = [*plain, *repeated, *(f"bbox.{side}" for side in _SIDES)]  # what a reader may skip rows by
            self._writer = pq.ParquetWriter(
                self._path,
                table.schema,
                compression="zstd",
                use_dictionary=[name for name in repeated if name != "id"],  # no two are equal
                write_statistics=ranged,
            )
        self._writer.write_table(table if order is None else table.take(order), row_group_size=ROWS_TOGETHER)
        self._crs = footprints.crs
        self._types |= set(np.unique(shapely.get_type_id(geometry)).tolist())
        self._bounds = np.concatenate([self._bounds, _around(bounds)])


_SIDES = ("xmin", "ymin", "xmax", "ymax")

_GEOMETRY_TYPES = {t.value: t.name.title() for t in shapely.GeometryType} | {
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
    1: "LineString",
}


def wkb_of(geometry: NDArray[np.object_]) -> pa.Array:
    """Geometries as WKB, little endian; polygons are put together all at once."""
    is_polygon = (shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(geometry)
    if not is_polygon.all() or shapely.has_z(geometry).any() or not len(geometry):
        return pa.array(shapely.to_wkb(geometry, byte_order=1), pa.binary())
    rings, polygons = _offsets(geometry)
    return polygon_wkb(shapely.get_coordinates(geometry), rings, polygons)


def _is_plain(geometry: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(n,): whether each is a polygon without holes."""
    polygon = shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON
    plain: NDArray[np.bool_] = polygon & (shapely.get_num_interior_rings(geometry) == 0) & ~shapely.is_empty(geometry)
    return plain


def _around(bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """(0 or 1, 4): the bounds of all."""
    return np.concatenate([bounds[:, :2].min(0), bounds[:, 2:].max(0)])[None] if len(bounds) else bounds


def hilbert_order(footprints: gpd.GeoDataFrame) -> NDArray[np.int64]:
    """The order of rows along a Hilbert curve through the middle of their boxes: neighbours in a file are on the map.

    Rows in the same cell of the curve (a 65536th of the layer's width) stay in their order.
    """
    if not len(footprints):
        return np.zeros(0, np.int64)
    order: NDArray[np.int64] = np.argsort(footprints.geometry.hilbert_distance(level=16).to_numpy(), kind="stable")
    return order


def write_geojson(footprints: gpd.GeoDataFrame, path: Path) -> None:
    """GeoJSON as RFC 7946 wants it: WGS 84 longitude and latitude, 7 digits, exterior rings counterclockwise.

    What crosses the antimeridian is cut there.
    """
    with geojson_file(path) as write:
        write(footprints)


@contextmanager
def geojson_file(path: Path) -> Iterator[Callable[[gpd.GeoDataFrame], None]]:
    """The same file from one frame after the other: what takes them."""
    with beside(path) as part, part.open("wb") as stream:
        stream.write(b'{"type":"FeatureCollection","features":[')
        commas = chain([1], repeat(0))  # none before the first feature

        def write(footprints: gpd.GeoDataFrame) -> None:
            for features in _lines(footprints, ",\n", ""):
                stream.write(_content(features)[next(commas) :])

        yield write
        stream.write(b"\n]}\n")


def write_geojson_lines(footprints: gpd.GeoDataFrame, path: Path, mark: bytes = b"") -> None:
    """A feature of GeoJSON on each line, as `write_geojson` has it; `mark` comes before each (RFC 8142: 0x1E)."""
    with beside(path) as part, part.open("wb") as stream:
        for features in _lines(footprints, mark.decode(), "\n"):
            stream.write(_content(features))


def _content(texts: pa.LargeStringArray) -> memoryview:
    """All of them, one after the other."""
    end = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset + len(texts)]
    return memoryview(texts.buffers()[2])[:end]


def _lines(footprints: gpd.GeoDataFrame, before: str = "", behind: str = "") -> Iterator[pa.LargeStringArray]:
    """All features of GeoJSON in portions, with a text before and behind each.

    Some threads work ahead, as far as memory has a bound.
    """
    portions = (footprints.iloc[at : at + LINES_TOGETHER] for at in range(0, len(footprints), LINES_TOGETHER))
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = deque(pool.submit(_features, portion, before, behind) for portion in islice(portions, THREADS))
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(_features, portion, before, behind) for portion in islice(portions, 1))
            yield done


THREADS = min(4, os.cpu_count() or 1)
"""That write GeoJSON side by side: half of the work is done outside of Python."""


def _features(footprints: gpd.GeoDataFrame, before: str, behind: str) -> pa.LargeStringArray:
    """Features of GeoJSON, one at least, as texts."""
    columns = [name for name in footprints.columns if name != footprints.geometry.name]
    rows = pd.DataFrame(footprints[columns])
    values = {name: _json_of(rows, name) for name in columns}
    head = [before, '{"type":"Feature",']
    if "id" in columns:
        head += ['"id":', values["id"], ","]
    pairs = [[("," if place else "") + json.dumps(name) + ":", values[name]] for place, name in enumerate(columns)]
    head += ['"properties":{', *chain.from_iterable(pairs), "}"] if columns else ['"properties":null']
    whole = (*head, ',"geometry":', _geometry_texts(footprints), "}", behind)
    return pc.binary_join_element_wise(*_together(whole), _large(""))


def _together(texts: Iterable[Any]) -> Iterator[Any]:
    """The same with fewer joints: what is one text for all, and follows another such, is one with it."""
    so_far = ""
    for text in texts:
        if isinstance(text, str):
            so_far += text
            continue
        yield from (_large(so_far), text)
        so_far = ""
    yield _large(so_far)


def _large(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _json_of(rows: pd.DataFrame, name: str) -> pa.Array | str:
    """A column's values as JSON, or the one that all have.

    Numbers and plain text are written by columns, many times as fast as row by row.
    """
    values = rows[name].to_numpy()
    if values.dtype.kind in "biu":
        return pa.array(values).cast(pa.large_string())
    if values.dtype.kind == "f" and np.isfinite(values).all() and np.abs(values).max(initial=0) < _WHOLE:
        return decimal_texts(values.astype(np.float64), _DECIMALS)
    if isinstance(rows[name].dtype, pd.StringDtype):
        texts = pa.array(rows[name], pa.large_string())
        texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        if not texts.null_count:
            if pc.all(pc.equal(texts, texts[0])).as_py():
                return json.dumps(texts[0].as_py())
            if not pc.any(pc.match_substring_regex(texts, r"[^ !#-\[\]-~]")).as_py():
                return pc.binary_join_element_wise(_large('"'), texts, _large('"'), _large(""))
    told = rows[[name]].to_json(orient="records", lines=True, date_format="iso", double_precision=_DECIMALS)
    texts = pc.utf8_slice_codeunits(pa.array(told.splitlines(), pa.large_string()), len(json.dumps(name)) + 2, -1)
    return texts[0].as_py() if pc.all(pc.equal(texts, texts[0])).as_py() else texts


_DECIMALS, _WHOLE = 4, 1e11


def _geometry_texts(footprints: gpd.GeoDataFrame) -> pa.Array:
    """GeoJSON of geometries as `to_lonlat` has them; polygons are written all at once, the others one by one."""
    exact = footprints.geometry.to_numpy()
    lonlat = _lonlat_of(footprints)
    is_polygon = (shapely.get_type_id(exact) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(exact)
    if not is_polygon.all() or not np.isfinite(lonlat).all():
        return pa.array(shapely.to_geojson(to_lonlat(footprints)), pa.large_string())
    rings, polygons = _offsets(exact)
    shapes = Ragged(np.rint(lonlat * STEPS).astype(np.int64), rings, polygons)
    texts, sure = polygon_texts(shapes)
    asked = np.flatnonzero(~sure)
    if not len(asked):
        return texts
    vertex = np.repeat(~sure, np.diff(rings[polygons]))
    rounded = shapely.set_coordinates(exact[asked], shapes.xy[vertex] / STEPS)
    broken = asked[_is_broken(rounded)]
    if not len(broken):
        return texts
    mended = pa.array(shapely.to_geojson(to_lonlat(footprints.iloc[broken])), pa.large_string())
    return pc.replace_with_mask(texts, pa.array(np.isin(np.arange(len(exact)), broken)), mended)


def _offsets(polygons: NDArray[np.object_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where rings begin among vertices, and polygons among rings; and where all end."""
    if _is_plain(polygons).all():
        return np.append(0, np.cumsum(shapely.get_num_coordinates(polygons))), np.arange(len(polygons) + 1)
    rings, owner = shapely.get_rings(polygons, return_index=True)
    return (
        np.append(0, np.cumsum(shapely.get_num_coordinates(rings))),
        np.append(0, np.cumsum(np.bincount(owner, minlength=len(polygons)))),
    )


def _lonlat_of(footprints: gpd.GeoDataFrame) -> NDArray[np.float64]:
    """(vertices, 2): longitude and latitude of all."""
    transformer = Transformer.from_crs(footprints.crs, 4326, always_xy=True)
    xy = shapely.get_coordinates(footprints.geometry.to_numpy())
    return np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))


def _is_broken(rounded: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(n,): which of geometries in longitude and latitude are none: invalid, or wider than half the earth."""
    west, _, east, _ = shapely.bounds(rounded).T if len(rounded) else np.zeros((4, 0))
    broken: NDArray[np.bool_] = (east - west > HALF_TURN) | ~shapely.is_valid(rounded)
    return broken


def to_lonlat(footprints: gpd.GeoDataFrame) -> NDArray[np.object_]:
    """Polygons as RFC 7946 wants them, valid after rounding too."""
    exact, lonlat = footprints.geometry.to_numpy(), _lonlat_of(footprints)
    rounded = _with_coordinates(exact, np.round(lonlat, DIGITS))
    broken = np.flatnonzero(_is_broken(rounded))
    if len(broken):
        _, owner = shapely.get_coordinates(exact, return_index=True)
        again = shapely.set_coordinates(exact[broken], lonlat[np.isin(owner, broken)])
        # what crosses itself did so before, or does where the antimeridian is between two of its vertices
        whole = _only_polygons(shapely.make_valid(_cut_at_antimeridian(again)))
        rounded[broken] = shapely.set_precision(whole, 10.0**-DIGITS)
    oriented: NDArray[np.object_] = shapely.orient_polygons(rounded)
    return oriented


def _with_coordinates(geometry: NDArray[np.object_], xy: NDArray[np.float64]) -> NDArray[np.object_]:
    """The same geometries with other coordinates."""
    if not _is_plain(geometry).all():
        moved: NDArray[np.object_] = shapely.set_coordinates(geometry.copy(), xy)
        return moved
    rings = np.append(0, np.cumsum(shapely.get_num_coordinates(geometry)))
    offsets = (rings, np.arange(len(geometry) + 1))
    plain: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy, offsets)
    return plain


HALF_TURN = 180.0


def _cut_at_antimeridian(lonlat: NDArray[np.object_]) -> NDArray[np.object_]:
    """Geometries whose longitudes jump by more than half a turn, cut where they do (RFC 7946, section 3.1.9)."""
    west, _, east, _ = shapely.bounds(lonlat).T if len(lonlat) else np.zeros((4, 0))
    across = np.flatnonzero(east - west > HALF_TURN)
    for place in across:
        xy = shapely.get_coordinates(lonlat[place])
        if not (np.abs(np.diff(xy[:, 0])) > HALF_TURN).any():
            continue  # as wide as that
        whole = [_on_globe(each) for each in shapely.get_parts(lonlat[place])]
        lonlat[place] = shapely.multipolygons(
            [part for each in whole for part in shapely.get_parts(each) if part.area > 0]
        )
    return lonlat


def _on_globe(polygon: Any) -> Any:
    """A polygon whose longitudes jump, as what lies from -180 to 180."""
    holes = [_inside(ring) for ring in polygon.interiors]
    return shapely.difference(_inside(polygon.exterior), shapely.union_all(holes))


def _inside(ring: Any) -> Any:
    """What is inside a ring of longitudes and latitudes, from -180 to 180, with the pole that it goes round."""
    lon, lat = shapely.get_coordinates(ring).T
    lon = np.unwrap(lon, period=2 * HALF_TURN)
    if abs(lon[-1] - lon[0]) > HALF_TURN:
        pole = math.copysign(90, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    whole = shapely.make_valid(shapely.polygons(np.column_stack([lon, lat])))
    turns = 2 * HALF_TURN * np.arange(-2, 3)
    parts = shapely.intersection(whole, shapely.box(turns - HALF_TURN, -90, turns + HALF_TURN, 90))
    return shapely.union_all(
        [shapely.transform(part, lambda xy, turn=turn: xy - [turn, 0]) for part, turn in zip(parts, turns, strict=True)]
    )


def _only_polygons(geometry: NDArray[np.object_]) -> NDArray[np.object_]:
    """What of geometries has an area."""
    mixed = np.flatnonzero(shapely.get_type_id(geometry) == shapely.GeometryType.GEOMETRYCOLLECTION)
    for place in mixed:
        parts = shapely.get_parts(geometry[place])
        geometry[place] = shapely.union_all(parts[shapely.get_dimensions(parts) == 2])  # noqa: PLR2004  # of an area
    return geometry
