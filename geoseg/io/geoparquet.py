"""GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0): with bounding boxes, along a curve, in small row groups.

Boxes, the order along the curve and WKB are made of the coordinates' buffers: each geometry is asked for everything
once. So sorting costs no more than GEOS takes to write WKB one by one. Rows are put together and written portion by
portion, side by side.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError

from geoseg.errors import OptionError, OutputError
from geoseg.io.curve import along_curve
from geoseg.io.vectors import beside, offsets
from geoseg.io.wkb import Polygons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from numpy.typing import NDArray

ROWS_TOGETHER = 16384
"""Rows of a row group, which a reader takes or leaves as a whole."""

ROWS_AHEAD = 4 * ROWS_TOGETHER
"""Rows that are put together while others are written."""

_SIDES = ("xmin", "ymin", "xmax", "ymax")

_GEOMETRY_TYPES = {t.value: t.name.title() for t in shapely.GeometryType} | {
    4: "MultiPoint",
    5: "MultiLineString",
    6: "MultiPolygon",
    7: "GeometryCollection",
    1: "LineString",
}


Box: TypeAlias = tuple[float, float, float, float]
"""West, south, east, north."""


def read_box(path: Path, box: Box, crs: Any = None, columns: Sequence[str] | None = None) -> gpd.GeoDataFrame:
    """The rows of a file of ours whose own boxes meet a box; row groups that hold none of them are not read.

    `crs`: that of the box; None: the file's. Raises `OptionError` for what is no box, CRS or column, `OutputError` for
    a file that cannot be read.
    """
    try:
        known = pq.read_metadata(path)
        meant = _box_in(box, crs, json.loads(known.metadata[b"geo"])["columns"]["geometry"]["crs"])
        wanted = None if columns is None else _wanted(columns, known.schema.to_arrow_schema().names)
        return gpd.read_parquet(path, columns=wanted, bbox=meant)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        msg = f"{path}: cannot be read ({error}); make the result again"
        raise OutputError(msg) from error


def _box_in(box: Box, crs: Any, own: Any) -> Box:
    """A box in the CRS of a file, all of whose points are in it."""
    west, south, east, north = map(float, box)
    if not (np.isfinite([west, south, east, north]).all() and west <= east and south <= north):
        msg = f"bbox {tuple(box)}: give west, south, east, north, each a number, the lesser one first"
        raise OptionError(msg)
    if crs is None:
        return west, south, east, north
    try:
        there = Transformer.from_crs(CRS.from_user_input(crs), CRS.from_json_dict(own), always_xy=True)
    except CRSError as error:
        msg = f"crs {crs!r}: is no CRS that is known; say it as in EPSG:4326"
        raise OptionError(msg) from error
    moved: Box = there.transform_bounds(west, south, east, north)
    return moved


def _wanted(columns: Sequence[str], known: Sequence[str]) -> list[str]:
    there = [name for name in known if name not in {"geometry", "bbox"}]
    if unknown := [name for name in columns if name not in {*there, "geometry"}]:
        msg = f"there is no column {', '.join(unknown)}; there are {', '.join(there)}"
        raise OptionError(msg)
    return [*(name for name in columns if name != "geometry"), "geometry"]


def write_parquet(footprints: gpd.GeoDataFrame, path: Path, *, sort: bool = False) -> None:
    """In the footprints' own CRS, with a bounding-box column for fast windows; sorted, rows are along a curve."""
    with beside(path) as part:
        writer = _ParquetParts(part)
        writer.write(footprints, sort=sort)
        writer.close()


@contextmanager
def parquet_file(path: Path) -> Iterator[Callable[[gpd.GeoDataFrame], None]]:
    """The same file from one frame after the other, all of the same columns and CRS, at least one: what takes them."""
    with beside(path) as part:
        writer = _ParquetParts(part)
        yield writer.add
        writer.close()


class _ParquetParts:
    """A file in row groups of `ROWS_TOGETHER`, however it came."""

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

    def write(self, footprints: gpd.GeoDataFrame, *, sort: bool = False) -> None:
        """Rows as they are, or along a curve, in row groups of their own."""
        geometry = footprints.geometry.to_numpy()
        kinds, boxes, wkb = _told(geometry)
        rows = pd.DataFrame(footprints.drop(columns=footprints.geometry.name))
        table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None).combine_chunks()
        alike = {name for name in table.column_names if _is_alike(table[name])}
        order = along_curve(boxes) if sort else np.arange(len(geometry))

        binaries = wkb(order)

        def portion(at: int) -> pa.Table:
            some = order[at : at + ROWS_AHEAD]
            columns = {
                name: table[name].slice(0, len(some)) if name in alike else table[name].take(some)
                for name in table.column_names
            }
            sides = [pa.array(side) for side in np.take(boxes, some, axis=1)]  # thrice as fast as boxes[:, some]
            return pa.table(
                {
                    **columns,
                    "geometry": binaries.slice(at, len(some)),
                    "bbox": pa.StructArray.from_arrays(sides, _SIDES),
                }
            )

        with ThreadPoolExecutor(1) as pool:  # one portion is compressed while the next one is put together
            written: Future[None] | None = None
            for at in range(0, max(len(order), 1), ROWS_AHEAD):
                ready = portion(at)
                if self._writer is None:
                    self._writer = _opened(self._path, ready)
                if written is not None:
                    written.result()
                if len(ready):  # a row group of nothing has no statistics
                    written = pool.submit(self._writer.write_table, ready, row_group_size=ROWS_TOGETHER)
            if written is not None:
                written.result()
        self._crs = footprints.crs
        self._types |= kinds
        self._bounds = np.concatenate([self._bounds, _around(boxes)])


def _is_alike(column: pa.ChunkedArray) -> bool:
    """Whether all values of a column are one, so that their order makes no difference."""
    return bool(len(column) and not column.null_count and pc.all(pc.equal(column, column[0])).as_py())


def _opened(path: Path, table: pa.Table) -> pq.ParquetWriter:
    names = [name for name in table.column_names if name not in {"geometry", "bbox"}]
    plain = [name for name in names if pa.types.is_floating(table.schema.field(name).type)]
    repeated = [name for name in names if name not in plain]
    return pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        # coordinates hardly become smaller by more: outlines along pixels by a twentieth
        compression_level={"geometry": -1},
        use_dictionary=[name for name in repeated if name != "id"],  # no two are equal
        # what a reader may skip rows by
        write_statistics=[*plain, *repeated, *(f"bbox.{side}" for side in _SIDES)],
    )


def _told(
    geometry: NDArray[np.object_],
) -> tuple[set[int], NDArray[np.float64], Callable[[NDArray[np.int64]], pa.Array | pa.ChunkedArray]]:
    """Of geometries (n,): the kinds that there are, their boxes (4, n), and what makes WKB of them in any order."""
    kinds = set(np.unique(shapely.get_type_id(geometry)).tolist()) - {shapely.GeometryType.MISSING.value}
    vertices = shapely.get_num_coordinates(geometry)
    if kinds != {shapely.GeometryType.POLYGON.value} or not vertices.all() or shapely.has_z(geometry).any():
        boxes = np.ascontiguousarray(shapely.bounds(geometry).reshape(-1, 4).T)
        return kinds, boxes, lambda order: pa.array(shapely.to_wkb(geometry[order], byte_order=1), pa.binary())
    polygons = Polygons(shapely.get_coordinates(geometry), *offsets(geometry, vertices))
    return kinds, polygons.boxes(), polygons.wkb


def wkb_of(geometry: NDArray[np.object_]) -> pa.Array | pa.ChunkedArray:
    """Geometries as WKB, little endian; polygons are put together all at once."""
    _, _, wkb = _told(geometry)
    return wkb(np.arange(len(geometry)))


def _around(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(0 or 1, 4): the box of all that have one."""
    there = boxes if not np.isnan(boxes[0]).any() else boxes[:, ~np.isnan(boxes[0])]
    return np.array([[*there[:2].min(1), *there[2:].max(1)]]) if there.size else np.zeros((0, 4))
