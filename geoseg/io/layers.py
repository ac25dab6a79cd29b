"""Layers of polygons as files: one table says by what each format is written and read, chosen by the file's suffix."""

from __future__ import annotations

import gzip
import json
import math
import sqlite3
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import geopandas as gpd
import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError

from geoseg.errors import OptionError
from geoseg.io.coco import read_coco, write_coco
from geoseg.io.geopackage import write_geopackage
from geoseg.io.geoparquet import write_parquet
from geoseg.io.store import cannot_write
from geoseg.io.vectors import (
    beside,
    to_lonlat,
    write_geojson,
    write_geojson_lines,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from odc.geo.geobox import GeoBox

    Writer: TypeAlias = Callable[[gpd.GeoDataFrame, Path, "About"], None]


@dataclass(frozen=True)
class About:
    """What a file may say besides its polygons."""

    name: str = "footprints"
    """Of the layer."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """`#rrggbb` of classes."""
    geobox: GeoBox | None = None
    """The grid of the raster that the polygons come from."""
    image: str = "image.tif"
    """The raster's name."""


@dataclass(frozen=True)
class Format:
    """A format of vector files."""

    name: str
    suffixes: tuple[str, ...]
    write: Writer
    read: Callable[[Path], gpd.GeoDataFrame] | None
    """None: not to be read back."""
    media_type: str
    driver: str | None = None
    """Of GDAL that writes it, if one does."""


def _write_parquet(frame: gpd.GeoDataFrame, path: Path, _: About) -> None:
    write_parquet(frame, path, sort=True)


def _write_flatgeobuf(frame: gpd.GeoDataFrame, path: Path, about: About) -> None:
    with beside(path, keep_suffix=True) as part:
        pyogrio.write_dataframe(frame, part, driver="FlatGeobuf", layer=about.name, geometry_type=_kind(frame))


def _write_geopackage(frame: gpd.GeoDataFrame, path: Path, about: About) -> None:
    with beside(path, keep_suffix=True) as part:
        write_geopackage(frame, part, about.name, about.colours or _palette(frame), "class")


def _write_coco(frame: gpd.GeoDataFrame, path: Path, about: About) -> None:
    if about.geobox is None:
        msg = f"{path}: COCO is told in pixels; name the raster that they are of with --image"
        raise OptionError(msg)
    with beside(path) as part:
        write_coco(frame, part, about.geobox, about.image)


def _write_pmtiles(frame: gpd.GeoDataFrame, path: Path, about: About) -> None:
    """Vector tiles in one file, up to the zoom at which the smaller half of the outlines is still true."""
    if not len(frame):
        with beside(path) as part:
            part.write_bytes(_without_tiles(about.name))
        return
    lonlat = gpd.GeoDataFrame(frame.drop(columns=frame.geometry.name), geometry=to_lonlat(frame), crs=4326)
    lowest, highest = _zooms(lonlat)
    for name in lonlat.columns:
        if lonlat[name].dtype.kind == "M":  # tiles know no dates
            lonlat[name] = lonlat[name].map(lambda when: when.isoformat(), na_action="ignore").astype(str)
    with beside(path, keep_suffix=True) as part:
        zooms = {"MINZOOM": lowest, "MAXZOOM": highest, "MAX_SIZE": TILE_BYTES}
        pyogrio.write_dataframe(lonlat, part, driver="PMTiles", layer=about.name, NAME=about.name, **zooms)


def _without_tiles(layer: str) -> bytes:
    """A PMTiles archive, version 3, of one tile in which a layer has nothing: GDAL makes none.

    As https://github.com/protomaps/PMTiles/blob/main/spec/v3/spec.md has it: header, directory, metadata, tile.
    """
    name = layer.encode()[:100]
    told = b"\x0a" + bytes([len(name)]) + name + b"\x28\x80\x20\x78\x02"  # name, extent 4096, version 2
    tile = gzip.compress(b"\x1a" + bytes([len(told)]) + told, mtime=0)
    length = [len(tile) % 128 + 128, len(tile) // 128]
    directory = gzip.compress(bytes([1, 0, 1, *length, 1]), mtime=0)  # one tile, number 0, at the first byte
    about = {"name": layer, "vector_layers": [{"id": layer, "fields": {}, "minzoom": 0, "maxzoom": 0}]}
    metadata = gzip.compress(json.dumps(about).encode(), mtime=0)
    ends = [_HEADER, *(_HEADER + end for end in (len(directory), len(directory) + len(metadata)))]
    places = (ends[0], len(directory), ends[1], len(metadata), ends[2], 0, ends[2], len(tile), 1, 1, 1)
    gzipped, vectors = 2, 1
    kinds = (1, gzipped, gzipped, vectors, 0, 0)
    world = (-1_800_000_000, -850_000_000, 1_800_000_000, 850_000_000)
    header = struct.pack("<7sB11Q6B4iB2i", b"PMTiles", 3, *places, *kinds, *world, 0, 0, 0)
    return header + directory + metadata + tile


_HEADER = 127  # bytes

EARTH = 40_075_017.0  # metres round the equator
TILE_BYTES = 4 << 20
"""Of a tile at most, compressed; GDAL leaves out what is beyond without a word, by default from half a megabyte on."""
TILE_UNITS = 4096
"""Steps of a vector tile's coordinates along a side."""
ACROSS = 64
"""Steps across an outline of middle size that are needed to draw it."""


LEVELS = 5
"""Zooms at most: in one more, an outline of middle size would be a quarter of a pixel, and each takes as long."""


def _zooms(lonlat: gpd.GeoDataFrame) -> tuple[int, int]:
    """From the zoom at which half a tile holds all, or half of the outlines are visible, to where they are true.

    Of half a tile, for a map that shows all of it may be small, and shows nothing below the first zoom.
    """
    west, south, east, north = lonlat.total_bounds
    lowest = math.floor(math.log2(180 / max(east - west, north - south, 1e-6)))
    shapes = lonlat.geometry.to_numpy()
    # a line is as large as a quarter of it
    area = shapely.area(shapes)
    degrees = float(np.median(np.where(area > 0, np.sqrt(area), shapely.length(shapes) / 4)))
    step = max(degrees, 1e-6) * EARTH / 360 / ACROSS
    highest = math.ceil(math.log2(EARTH / TILE_UNITS / step))
    highest = min(max(highest, 4), 17)
    return min(max(lowest, highest - LEVELS + 1, 0), highest), highest


def _kind(frame: gpd.GeoDataFrame) -> str | None:
    return None if len(frame) else "Polygon"


_PALETTE = ("#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666")


def _palette(frame: gpd.GeoDataFrame) -> dict[str, str]:
    """Colours of classes of which none are known."""
    names = sorted(set(frame["class"].astype(str))) if "class" in frame else []
    return {name: _PALETTE[index % len(_PALETTE)] for index, name in enumerate(names)}


def _read_by_gdal(path: Path) -> gpd.GeoDataFrame:
    """The first layer of a file."""
    layers = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
    if not layers:
        msg = f"{path}: has no layer with geometries"
        raise OptionError(msg)
    return pyogrio.read_dataframe(path, layer=layers[0])


def _read_sequence(path: Path) -> gpd.GeoDataFrame:
    return pyogrio.read_dataframe(f"GeoJSONSeq:{path}")


FORMATS = (
    Format("COCO instances", (".coco.json",), _write_coco, read_coco, "application/json"),
    Format(
        "GeoJSON",
        (".geojson", ".json"),
        lambda frame, path, _: write_geojson(frame, path),
        _read_by_gdal,
        "application/geo+json",
    ),
    Format(
        "GeoJSON, one feature on each line",
        (".geojsonl", ".ndjson"),
        lambda frame, path, _: write_geojson_lines(frame, path),
        _read_sequence,
        "application/x-ndjson",
    ),
    Format(
        "GeoJSON text sequence",
        (".geojsons",),
        lambda frame, path, _: write_geojson_lines(frame, path, b"\x1e"),
        _read_sequence,
        "application/geo+json-seq",
    ),
    Format(
        "GeoParquet",
        (".parquet", ".geoparquet"),
        _write_parquet,
        gpd.read_parquet,
        "application/vnd.apache.parquet",
    ),
    Format("FlatGeobuf", (".fgb",), _write_flatgeobuf, _read_by_gdal, "application/vnd.flatgeobuf", "FlatGeobuf"),
    Format("GeoPackage", (".gpkg",), _write_geopackage, _read_by_gdal, "application/geopackage+sqlite3", "GPKG"),
    Format("PMTiles", (".pmtiles",), _write_pmtiles, None, "application/vnd.pmtiles", "PMTiles"),
)
"""What writes and reads a layer: the first that has its suffix."""


def format_of(path: Path) -> Format:
    """The format that a file's suffix stands for. Raises `OptionError` for one that none has, or that GDAL lacks."""
    for each in FORMATS:
        if path.name.lower().endswith(each.suffixes):
            if each.driver is not None and "w" not in pyogrio.list_drivers().get(each.driver, "w"):
                msg = f"{path}: this GDAL cannot write {each.name}; install pyogrio from its own wheels"
                raise OptionError(msg)
            return each
    known = ", ".join(suffix for each in FORMATS for suffix in each.suffixes)
    msg = f"{path}: its suffix stands for no format; choose one of {known}"
    raise OptionError(msg)


ALWAYS = (".geojson", ".parquet")
"""Formats of a run's footprints that nobody needs to ask for."""


def layers_of(formats: Iterable[str]) -> tuple[str, ...]:
    """Names of the files of a run's footprints in further formats, `gpkg` or `fgb`; each once, sorted.

    Raises `OptionError` for one that none has, or that GDAL lacks.
    """
    names = {f"footprints.{each.strip().removeprefix('.').lower()}" for each in formats}
    for name in names:
        format_of(Path(name))
    return tuple(sorted(name for name in names if not name.endswith(ALWAYS)))


def remove_layers(folder: Path) -> None:
    """Remove a run's footprints in further formats."""
    for each in FORMATS:
        for suffix in each.suffixes:
            if suffix not in ALWAYS:
                (folder / f"footprints{suffix}").unlink(missing_ok=True)


def write_layer(frame: gpd.GeoDataFrame, path: Path, about: About | None = None) -> None:
    """Write polygons in the format of the file's suffix; the file appears when it is whole.

    Raises `OptionError` for an unknown suffix or a frame without CRS, `OutputError` if the disk refuses.
    """
    if frame.crs is None:
        msg = f"{path}: the polygons have no CRS, so nobody would know where they are; assign one first"
        raise OptionError(msg)
    try:
        format_of(path).write(frame, path, about or About())
    except (
        DataSourceError,
        DataLayerError,
        sqlite3.Error,
    ) as error:  # how GDAL tells of a full disk
        raise cannot_write(path, OSError(str(error))) from error


def read_layer(path: Path) -> gpd.GeoDataFrame:
    """The polygons of a vector file of any format that is read, in its CRS. Raises `OptionError` for what is none."""
    if not path.exists():
        msg = f"{path}: there is no such file; check the path"
        raise OptionError(msg)
    known = [each for each in FORMATS if path.name.lower().endswith(each.suffixes)]
    if known and known[0].read is None:
        msg = f"{path}: {known[0].name} are for looking at, cut at the tiles' borders; give what they were made of"
        raise OptionError(msg)
    read: Any = known[0].read if known else _read_by_gdal
    try:
        frame = read(path)
    except OptionError:
        raise
    except shapely.errors.GEOSException as error:
        msg = (
            f"{path}: has a geometry that is none: {error}; a ring has four points at least, the last of which is its "
        )
        raise OptionError(msg + "first; mend it in the program that it comes from") from error
    except Exception as error:  # pyogrio and pyarrow raise various errors of their own
        msg = f"{path}: cannot be read as a vector file: {error}"
        raise OptionError(msg) from error
    if not isinstance(frame, gpd.GeoDataFrame):
        msg = f"{path}: has no geometries"
        raise OptionError(msg)
    return frame
