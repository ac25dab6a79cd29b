"""`check`: what is wrong with a layer of polygons, whoever has made it.

Everything is asked of all polygons at once; which ones lie beside each other is asked of a tree (Leutenegger et al.
1997, "STR: a simple and efficient algorithm for R-tree packing"), so time goes with their number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError

from geoseg.errors import OptionError
from geoseg.io.layers import read_layer

if TYPE_CHECKING:
    from pathlib import Path

_Polygons: TypeAlias = NDArray[np.object_]

KINDS = {
    "empty": "without a geometry",
    "invalid": "rings that cross themselves or each other",
    "touches itself": "an outline that passes one point twice",
    "duplicate": "the same polygon again",
    "overlap": "pairs of polygons that share ground",
    "sliver": "polygons narrower than asked for, on average",
    "area off": "area_m2 is not the polygon's area on the ground",
    "axis order": "coordinates that would be right the other way round, or nowhere on the earth",
    "crs member": "GeoJSON with a CRS of its own, which RFC 7946 does not know and readers overlook",
}
"""What is looked for, and what it means."""

FAR = 85.0  # degrees of latitude from which on nobody maps buildings


@dataclass(frozen=True)
class Limits:
    """From when on something is wrong."""

    overlap: float = 0.05
    """Square metres that two polygons share."""
    sliver: float = 0.1
    """Metres that a polygon is wide on average: twice its area over its perimeter."""
    area: float = 0.01
    """Part of its area by which `area_m2` is off, besides what rounding to a centimetre does to the outline."""


@dataclass(frozen=True, eq=False)
class Flaws:
    """What was found."""

    features: int
    places: gpd.GeoDataFrame
    """A point for each flaw: flaw, feature (its id, or else its number from 0), other (of a pair), m2 (shared)."""

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind."""
        found = self.places["flaw"].value_counts().to_dict()
        return {kind: int(found.get(kind, 0)) for kind in KINDS}


def check(path: Path, limits: Limits | None = None) -> Flaws:
    """Look for flaws in a vector file of any format that is read. Raises `OptionError` if it is none or has no CRS."""
    frame = read_layer(path)
    if frame.crs is None:
        msg = f"{path}: names no CRS, so nobody knows where it is; assign one first, as with ogr2ogr -a_srs EPSG:XXXX"
        raise OptionError(msg)
    flaws = flaws_of(frame, limits or Limits())
    if _has_crs_member(path):
        flaws = Flaws(flaws.features, pd.concat([_row(frame, "crs member"), flaws.places], ignore_index=True))
    return flaws


def flaws_of(frame: gpd.GeoDataFrame, limits: Limits) -> Flaws:
    """The flaws of a layer that can be seen in it alone."""
    ids = (frame["id"] if "id" in frame else pd.Series(range(len(frame)))).astype(str).to_numpy()
    shapes = frame.geometry.to_numpy()
    nothing = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    found = [_rows("empty", ids[nothing], np.full(nothing.sum(), shapely.Point(), object))]
    shapes, ids, frame = shapes[~nothing], ids[~nothing], frame[~nothing]
    misplaced = _is_misplaced(frame)
    flat = shapes if misplaced else _in_metres(shapes, frame.crs)
    points = shapely.point_on_surface(shapely.make_valid(shapes))
    valid = shapely.is_valid(flat)
    whole = flat.copy()
    whole[~valid] = shapely.make_valid(flat[~valid])
    touching, at = _touches_itself(shapes)
    single = {
        "invalid": ~shapely.is_valid(shapes),
        "touches itself": touching,
        "duplicate": _is_duplicate(shapes),
        "sliver": np.zeros(len(shapes), np.bool_) if misplaced else _is_sliver(whole, limits.sliver),
        "area off": np.zeros(len(shapes), np.bool_) if misplaced else _is_off(frame, whole, limits.area),
    }
    places = {"touches itself": at}
    found += [_rows(kind, ids[some], places.get(kind, points)[some]) for kind, some in single.items()]
    one, two, shared = _overlaps(whole, 0.0 if misplaced else limits.overlap)
    fresh = ~(single["duplicate"][one] | single["duplicate"][two])
    one, two, shared = one[fresh], two[fresh], shared[fresh]
    both = shapely.intersection(shapely.make_valid(shapes[one]), shapely.make_valid(shapes[two]))
    found.append(_rows("overlap", ids[one], shapely.point_on_surface(both), ids[two], shared))
    if misplaced:
        found.insert(0, _row(frame, "axis order"))
    table = pd.concat(found, ignore_index=True)
    return Flaws(len(nothing), gpd.GeoDataFrame(table, geometry="geometry", crs=frame.crs))


def _rows(kind: str, ids: Any, points: Any, others: Any = None, area: Any = None) -> pd.DataFrame:
    count = len(ids)
    return pd.DataFrame(
        {
            "flaw": pd.Series([kind] * count, dtype=str),
            "feature": pd.Series(list(ids), dtype=str),
            "other": pd.Series([""] * count if others is None else list(others), dtype=str),
            "m2": np.full(count, np.nan) if area is None else np.round(area, 3),
            "geometry": pd.Series(list(points), dtype=object),
        }
    )


def _row(frame: gpd.GeoDataFrame, kind: str) -> pd.DataFrame:
    """A flaw of the whole layer, in its middle."""
    west, south, east, north = frame.total_bounds
    middle = shapely.Point() if np.isnan(west) else shapely.Point((west + east) / 2, (south + north) / 2)
    return gpd.GeoDataFrame(_rows(kind, [""], [middle]), geometry="geometry", crs=frame.crs)


def _touches_itself(shapes: _Polygons) -> tuple[NDArray[np.bool_], NDArray[np.object_]]:
    """(n,): whether a vertex of a polygon's part is another of its vertices, too; and the point where that is."""
    parts, owner = shapely.get_parts(shapes, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    first = np.append(True, np.diff(ring) != 0) if len(ring) else np.zeros(0, np.bool_)
    again = (
        np.append(False, (np.diff(xy, axis=0) == 0).all(axis=1)) if len(ring) else first
    )  # twice in a row is no harm
    keep = ~first & ~(again & ~first)
    told = np.column_stack([part[ring[keep]], xy[keep]])
    _, place, count = np.unique(told, axis=0, return_inverse=True, return_counts=True)
    twice = np.flatnonzero(keep)[count[place.ravel()] > 1]
    touching, at = np.zeros(len(shapes), np.bool_), np.full(len(shapes), shapely.Point(), object)
    whose = owner[part[ring[twice]]]
    touching[whose], at[whose] = True, shapely.points(xy[twice])
    return touching, at


def _is_duplicate(shapes: _Polygons) -> NDArray[np.bool_]:
    """(n,): whether an earlier one is the same, wherever its rings begin."""
    told = pd.Series(shapely.to_wkb(shapely.normalize(shapes)))
    again: NDArray[np.bool_] = told.duplicated().to_numpy()
    return again


def _is_sliver(flat: _Polygons, width: float) -> NDArray[np.bool_]:
    area = shapely.get_dimensions(flat) == 2  # noqa: PLR2004  # lines have no width to be asked for
    narrow: NDArray[np.bool_] = area & (2 * shapely.area(flat) < width * shapely.length(flat))
    return narrow


def _is_off(frame: gpd.GeoDataFrame, flat: _Polygons, share: float) -> NDArray[np.bool_]:
    if "area_m2" not in frame:
        return np.zeros(len(frame), np.bool_)
    area = shapely.area(flat)
    told = pd.to_numeric(frame["area_m2"], errors="coerce").to_numpy(float)
    allowed = share * area + 0.01 * shapely.length(flat) + 0.01
    off: NDArray[np.bool_] = ~(np.abs(told - area) <= allowed)
    return off


def _overlaps(flat: _Polygons, least: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs that share more ground than `least`, and how much."""
    one, two = shapely.STRtree(flat).query(flat, predicate="intersects")
    one, two = one[one < two], two[one < two]
    shared = shapely.area(shapely.intersection(flat[one], flat[two]))
    some = shared > least
    return one[some], two[some], shared[some]


def _in_metres(shapes: _Polygons, crs: Any) -> _Polygons:
    """Polygons in metres of equal area about the middle of their layer."""
    if not len(shapes):
        return shapes
    to_lonlat = Transformer.from_crs(CRS.from_user_input(crs), 4326, always_xy=True)
    xy = shapely.get_coordinates(shapes)
    lon, lat = to_lonlat.transform(xy[:, 0], xy[:, 1])
    here = f"+proj=laea +lat_0={np.median(lat)} +lon_0={np.median(lon)} +ellps=WGS84"
    flat = Transformer.from_crs(4326, here, always_xy=True).transform(lon, lat)
    moved: _Polygons = shapely.set_coordinates(shapes.copy(), np.column_stack(flat))
    return moved


def _is_misplaced(frame: gpd.GeoDataFrame) -> bool:
    """Whether the layer lies nowhere, or where its CRS is not meant for while it is if x and y are exchanged."""
    if frame.crs is None or not len(frame):
        return False
    crs = CRS.from_user_input(frame.crs)
    west, south, east, north = frame.total_bounds
    inside, exchanged = (_is_inside(crs, *box) for box in ((west, south, east, north), (south, west, north, east)))
    return not inside and (exchanged or crs.is_geographic)


def _is_inside(crs: CRS, west: float, south: float, east: float, north: float) -> bool:
    """Whether the middle of a box lies where a CRS is used."""
    x, y = (west + east) / 2, (south + north) / 2
    if crs.is_geographic:
        return abs(west) <= 180 and abs(east) <= 180 and max(abs(south), abs(north)) <= FAR  # noqa: PLR2004  # a turn
    try:
        lon, lat = Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y, errcheck=True)
    except ProjError:
        return False
    area = crs.area_of_use
    if area is None:
        return bool(np.isfinite([lon, lat]).all())
    slack = 3.0  # degrees: a zone's neighbours are often mapped in it
    across = area.west > area.east
    beside = (
        lon >= area.west - slack or lon <= area.east + slack
        if across
        else area.west - slack <= lon <= area.east + slack
    )
    return bool(beside and area.south - slack <= lat <= area.north + slack)


def _has_crs_member(path: Path) -> bool:
    """Whether a file is GeoJSON that names a CRS before or behind its features."""
    if not path.name.lower().endswith((".geojson", ".json")):
        return False
    with path.open("rb") as stream:
        head, _, _ = stream.read(_ENDS).partition(b'"features"')
        stream.seek(max(path.stat().st_size - _ENDS, 0))
        *_, tail = re.split(rb"[\[}]\s*\]", stream.read())
    return any(re.search(rb'"crs"\s*:\s*\{', part) for part in (head, tail))


_ENDS = 1 << 16  # bytes
