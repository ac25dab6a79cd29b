"""Vector files: areas of interest that are read, footprints that are written."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from pyproj import Transformer
from rasterio import Affine
from rasterio.features import rasterize

from geoseg.errors import OptionError, OutputError
from geoseg.io.store import cannot_write
from geoseg.io.texts import DIGITS, STEPS, Ragged, decimal_texts, polygon_texts
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.window import Window

LINES_TOGETHER = 4096
"""Features of GeoJSON that are written at once: what stays in the cache is faster."""


_ALL_ROUND: Final = 360  # degrees


def read_polygons(path: Path) -> gpd.GeoSeries:
    """All polygons of a vector file, one at least, in its CRS, valid ones made of those that cross themselves.

    Raises `OptionError` for what is no area of interest.
    """
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
    most = np.abs(polygons.total_bounds).max()
    if frame.crs.is_geographic and most > _ALL_ROUND:
        msg = f"{path}: {most:.0f} is no longitude or latitude; give the file its CRS, or write it in EPSG:4326"
        raise OptionError(msg)
    return polygons.make_valid(method="structure", keep_collapsed=False)


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
        with suppress(OSError):  # no folder to be in
            part.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise `OutputError` if no file can be written there."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror or error}; make its folder, or choose another place"
        raise OutputError(msg) from error


def _is_plain(geometry: NDArray[np.object_]) -> NDArray[np.bool_]:
    """(n,): whether each is a polygon without holes."""
    polygon = shapely.get_type_id(geometry) == shapely.GeometryType.POLYGON
    plain: NDArray[np.bool_] = polygon & (shapely.get_num_interior_rings(geometry) == 0) & ~shapely.is_empty(geometry)
    return plain


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
        return _one_by_one(footprints)
    rings, polygons = offsets(exact)
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
    mended = _one_by_one(footprints.iloc[broken])
    return pc.replace_with_mask(texts, pa.array(np.isin(np.arange(len(exact)), broken)), mended)


def _one_by_one(footprints: gpd.GeoDataFrame) -> pa.Array:
    """The same for geometries of any kind; some numbers come with more digits than they have."""
    texts = shapely.to_geojson(to_lonlat(footprints))
    short = [None if text is None else _LONG.sub(lambda n: repr(round(float(n[0]), DIGITS)), text) for text in texts]
    return pa.array(short, pa.large_string())


_LONG = re.compile(rf"-?\d+\.\d{{{DIGITS + 1},}}(?:e-?\d+)?")


def offsets(
    polygons: NDArray[np.object_], vertices: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of polygons (n,), none empty: where rings begin among vertices, and polygons among rings; and where all end.

    `vertices` (n,): how many each has, if that is known.
    """
    if not shapely.get_num_interior_rings(polygons).any():
        count = shapely.get_num_coordinates(polygons) if vertices is None else vertices
        return np.append(0, np.cumsum(count)), np.arange(len(polygons) + 1)
    rings, owner = shapely.get_rings(polygons, return_index=True)
    return (
        np.append(0, np.cumsum(shapely.get_num_coordinates(rings))),
        np.append(0, np.cumsum(np.bincount(owner, minlength=len(polygons)))),
    )


def _lonlat_of(footprints: gpd.GeoDataFrame) -> NDArray[np.float64]:
    """(vertices, 2): longitude, from -180 to 180 even if the CRS is geographic and goes on, and latitude of all."""
    transformer = Transformer.from_crs(footprints.crs, 4326, always_xy=True)
    xy = shapely.get_coordinates(footprints.geometry.to_numpy())
    lon, lat = transformer.transform(xy[:, 0], xy[:, 1])
    beyond = np.isfinite(lon) & (np.abs(lon) > HALF_TURN)
    lon[beyond] = (lon[beyond] + HALF_TURN) % (2 * HALF_TURN) - HALF_TURN
    return np.column_stack([lon, lat])


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
        if shapely.get_dimensions(lonlat[place]) == 1:
            parts = [_turned_back(shapely.linestrings(_unwrapped(each))) for each in shapely.get_parts(lonlat[place])]
            lonlat[place] = shapely.multilinestrings([line for part in parts for line in shapely.get_parts(part)])
            continue
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
    lon, lat = _unwrapped(ring).T
    if abs(lon[-1] - lon[0]) > HALF_TURN:
        pole = math.copysign(90, lat.mean())
        lon, lat = np.append(lon, [lon[-1], lon[0]]), np.append(lat, [pole, pole])
    return _turned_back(shapely.make_valid(shapely.polygons(np.column_stack([lon, lat]))))


def _unwrapped(line: Any) -> NDArray[np.float64]:
    """(vertices, 2): longitudes that go on where they jump, and latitudes."""
    lon, lat = shapely.get_coordinates(line).T
    return np.column_stack([np.unwrap(lon, period=2 * HALF_TURN), lat])


def _turned_back(whole: Any) -> Any:
    """What lies from -180 to 180 of a geometry that goes on beyond, by whole turns."""
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
