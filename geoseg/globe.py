"""Where grids lie on the globe: outlines in longitude and latitude, cut at the antimeridian, with poles inside them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import shapely
from pyproj import Transformer

from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

HALF_TURN = 180.0

POINTS = 16
"""Along the longer side of a grid at least, that lines keep to what is straight in its CRS."""


def outline_of(geobox: GeoBox, pixels: BaseGeometry | None = None) -> BaseGeometry:
    """Where a grid, or polygons in its pixels, lie in longitude and latitude, from -180 to 180.

    Empty where its CRS has no such place.
    """
    rows, cols = geobox.shape
    pixels = shapely.box(0, 0, cols, rows) if pixels is None else pixels
    dense = shapely.segmentize(pixels, max(rows, cols) / POINTS)
    outline = _within_globe(shapely.transform(dense, partial(_lonlat, geobox)))
    for pole in _poles_in(geobox, pixels):
        _, south, _, north = outline.bounds
        outline = shapely.box(-HALF_TURN, *((south, HALF_TURN, 90) if pole > 0 else (-90, HALF_TURN, north)))
    return outline


def _lonlat(geobox: GeoBox, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitude and latitude of pixels (n, 2), longitudes going on beyond 180 degrees."""
    to_lonlat = Transformer.from_crs(geobox.crs, 4326, always_xy=True)
    affine, (col, row) = geobox.affine, pixels.T
    x, y = affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f
    lon, lat = to_lonlat.transform(x, y)
    middle, _ = to_lonlat.transform(*(geobox.affine @ (geobox.shape[1] / 2, geobox.shape[0] / 2)))
    return np.stack([lon + 360 * np.round((middle - lon) / 360), lat], axis=1)


def _poles_in(geobox: GeoBox, pixels: BaseGeometry) -> Iterator[int]:
    """Latitudes of the poles that lie inside an outline, which no line around it can tell: 90, -90."""
    crs = crs_of(geobox)
    if crs.geographic:
        return
    from_lonlat = Transformer.from_crs(4326, crs, always_xy=True)
    for pole in (90, -90):
        x, y = from_lonlat.transform(0, pole)
        if np.isfinite([x, y]).all() and pixels.contains(shapely.Point(~geobox.affine @ (x, y))):
            yield pole


def _within_globe(outline: BaseGeometry) -> BaseGeometry:
    """The same, cut at the antimeridian."""
    if not np.isfinite(outline.bounds).all():
        return shapely.Polygon()
    whole = outline if outline.is_valid else shapely.make_valid(outline)
    turns = (-360, 0, 360)
    parts = [shapely.intersection(whole, shapely.box(turn - 180, -90, turn + 180, 90)) for turn in turns]
    return shapely.union_all(
        [shapely.transform(part, lambda xy, t=turn: xy - (t, 0)) for part, turn in zip(parts, turns, strict=True)]
    )


def bbox_of(outline: BaseGeometry) -> list[float]:
    """West, south, east, north; west is the larger one where the outline was cut at the antimeridian (RFC 7946)."""
    boxes = shapely.bounds(shapely.get_parts(outline))
    (west, south), (east, north) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    if west == -HALF_TURN and east == HALF_TURN and len(boxes) > 1:
        west, east = boxes[boxes[:, 0] > 0, 0].min(), boxes[boxes[:, 2] < 0, 2].max()
    return [float(value) for value in (west, south, east, north)]
