"""From a label raster to polygons on the ground with their attributes.

Objects are outlined exactly and made whole across windows first (`geoseg.polygonise`), those that touch being told
apart by a score if there is one (`geoseg.separate`); only then are holes filled, small objects dropped, and outlines
smoothed, simplified (`geoseg.simplify`) and made regular, in this order, so that no sliver at a window's border is lost
and no shared edge torn.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj import CRS, Transformer

from geoseg.holes import cleared
from geoseg.io.vectors import to_world
from geoseg.memory import no_collecting
from geoseg.polygonise import Objects, Piece, join, polygonise
from geoseg.raster import CONFIDENCE_STEPS, WGS84, crs_of, ground_resolution
from geoseg.regularise import FINEST_STEP, regularised, without_overlaps
from geoseg.separate import Separation
from geoseg.simplify import simplified
from geoseg.walls import portions

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import Legend
    from geoseg.window import Window

SIMPLIFY_PIXELS = 1.0
"""How far the outlines of a run may leave the pixels' sides, unless a length is asked for."""

MOST_CUT = 0.1
"""Share of a regular building that may be cut where it would lie over a larger one; otherwise that one is cut."""

MEASURED_AT_ONCE = 1 << 17
"""Vertices of outlines: some 200 bytes of memory for each."""

COLUMNS = (
    "id",
    "class",
    "area_m2",
    "perimeter_m",
    "confidence",
    "confidence_min",
    "edge_sharpness",
    "touches_nodata",
    "touches_edge",
    "regularised",
    "vertices",
    "orientation_deg",
    "scene",
    "datetime",
    "model",
)
"""Of footprints, in this order, besides their geometry: see `footprints`; those that are known."""


@dataclass(frozen=True)
class GroundSeparation:
    """What the seed of an object is, on the ground: see `geoseg.separate`."""

    seed: float
    """The least score of its pixels, above 0 and not above 1."""
    min_seed_area: float = 0.0
    """Square metres that it covers at least; one pixel will always do for 0."""

    def __post_init__(self) -> None:
        """Refuse what no pixel or every pixel fulfils."""
        Separation(self.seed)
        if not 0 <= self.min_seed_area < math.inf:
            msg = f"the least area of a seed must be 0 square metres or more, got {self.min_seed_area}"
            raise ValueError(msg)

    def in_pixels(self, pixel_area: float) -> Separation:
        """The same where a pixel covers so many square metres."""
        return Separation(self.seed, max(1, math.ceil(round(self.min_seed_area / pixel_area, 6))))


@dataclass(frozen=True)
class Layer:
    """What footprints are of, and which of them are kept."""

    geobox: GeoBox
    legend: Legend
    scene: str
    datetime: dt.datetime | None = None
    simplify: float = SIMPLIFY_PIXELS
    """Tolerance of Douglas-Peucker simplification in pixels, walls shared by objects that were told apart staying
    shared, and each polygon valid; 0 = the pixels' sides."""
    min_area: float = 0.0
    """Square metres below which an object is dropped, by its exact outline without the holes that are filled."""
    confident: bool = True
    """Whether the labels come with a confidence."""
    separation: GroundSeparation | None = None
    """How objects that touch are told apart by the score that the labels then come with; None = not at all."""
    fill_holes: float = 0.0
    """Square metres below which a hole is filled in which no object lies that is kept."""
    smooth: float = 0.0
    """Pixels of the outline, before and behind each point, over which it is smoothed; 0 = corners stay sharp."""
    regularise: bool = False
    """Whether outlines are given straight walls and right angles, see `geoseg.regularise`, where they agree with it."""
    model: str | None = None
    """Name of the model that the labels are of, if one is known."""

    @cached_property
    def pixel_area(self) -> float:
        """Square metres that a pixel at the scene's centre covers on the ground."""
        down, along = ground_resolution(self.geobox)
        return down * along

    def is_valid(self, shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
        """(n,): whether outlines in pixels are valid on the ground, too, where a vertex on a line may lie beside it."""
        valid: NDArray[np.bool_] = shapely.is_valid(to_world(shapes, self.geobox))
        return valid

    def cleared(
        self, objects: Objects, elsewhere: NDArray[np.int64] | None = None
    ) -> tuple[Objects, NDArray[np.int64]]:
        """Objects with holes filled, less those that are too small: see `geoseg.holes`."""
        return cleared(objects, self.fill_holes, self.min_area, self._areas, self.pixel_area, elsewhere)

    def _areas(self, shapes: NDArray[np.object_]) -> NDArray[np.float64]:
        """Square metres on the ground, as `measure` has them, of polygons in pixels."""
        if not len(shapes):
            return np.zeros(0)
        areas: NDArray[np.float64] = shapely.area(_flat(to_world(shapes, self.geobox), self.geobox, None)[0])
        return areas

    @property
    def together(self) -> bool:
        """Whether outlines share walls that are shaped: several classes make objects, and lie side by side."""
        return self.legend.has_several and not self.regularise and bool(self.simplify or self.smooth)

    @property
    def apart(self) -> Separation | None:
        """The separation in pixels, if there is one."""
        return None if self.separation is None else self.separation.in_pixels(self.pixel_area)


def in_pixels(metres: float | None, geobox: GeoBox) -> float:
    """A length on the ground in pixels of a grid; None: that by which a run simplifies outlines if nobody says."""
    return SIMPLIFY_PIXELS if metres is None else metres / math.sqrt(math.prod(ground_resolution(geobox)))


@dataclass(frozen=True, eq=False)
class Outlined:
    """What one window contributes to a scene's footprints; small."""

    columns: dict[str, NDArray[Any]]
    """Of the footprints that are whole in this window, and kept; of a layer whose outlines are shaped together, of all
    objects that are, as `Objects` has them."""
    piece: Piece
    """What may go on beyond the window's borders."""


def footprints(
    parts: Iterable[
        tuple[Window, NDArray[np.uint8], NDArray[np.uint8] | None]
        | tuple[Window, NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.uint8] | None]
    ],
    layer: Layer,
) -> gpd.GeoDataFrame:
    """Footprints of all objects, in the grid's CRS, sorted by their first pixel (topmost, then leftmost).

    `parts`: windows that cover the scene once, each with labels, confidence codes (or None) and, if the layer has a
    separation, codes of the score that is high in the middle of each object, all uint8 (y, x), codes being 1/250 and
    255 nodata. The result does not depend on how the scene is cut. Memory: the footprints kept and what lies on the
    seams. ValueError if a layer with a separation gets no score; without one a score is of no consequence.

    Columns, those of them that are known:

    * id: `r<row>c<col>` of the first pixel; class, area_m2, perimeter_m;
    * confidence, confidence_min: the mean and the least probability of the pixels inside, 0..1;
    * edge_sharpness: by how much the probability rises across the outline, on average over the pixels' sides beyond
      which lies another class: that of the pixel inside and of the one beyond, less 1. It is 0 where the network is
      undecided, 1 where it is sure on both sides, NaN where no such side is known, as for a house among others;
    * touches_nodata, touches_edge (of the scene); regularised, if that was asked for;
    * vertices, orientation_deg: see `shape_of`;
    * scene, datetime, model.
    """
    return assemble((outline(*part, layer=layer) for part in parts), layer)


def outline(
    window: Window,
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8] | None,
    score: NDArray[np.uint8] | None = None,
    *,
    layer: Layer,
) -> Outlined:
    """What one window contributes; arrays as in `footprints`."""
    separation = layer.apart
    piece = polygonise(
        labels,
        window,
        background=layer.legend.background,
        confidence=confidence,
        score=score if separation else None,
        separation=separation,
    )
    whole = piece.complete
    columns = vars(whole) if layer.together else describe(layer.cleared(whole)[0], layer)
    return Outlined(columns, piece.without_complete())


def assemble(outlined: Iterable[Outlined], layer: Layer) -> gpd.GeoDataFrame:
    """The footprints of windows that cover the scene once.

    Where outlines are shaped together, memory follows the exact ones: some 40 bytes for each of their vertices.
    """
    found: list[dict[str, NDArray[Any]]] = []

    def seams() -> Iterable[Piece]:
        for each in outlined:
            found.append(each.columns)
            yield each.piece

    joined = join(seams(), (layer.geobox.shape[0], layer.geobox.shape[1]))
    if layer.together:
        objects, _ = layer.cleared(Objects.concatenate([*(Objects(**columns) for columns in found), joined]))
        return frame_of(describe(objects.as_one_block(), layer), layer)
    places = [np.column_stack([columns["row"], columns["col"]]) for columns in found]
    joined, _ = layer.cleared(joined, np.concatenate([np.zeros((0, 2), np.int64), *places]))
    with ThreadPoolExecutor(2) as pool:  # nothing else is left to do in a run, and other cores are idle
        found.extend(pool.map(describe, _halves(joined), repeat(layer)))
    return frame_of({name: np.concatenate([columns[name] for columns in found]) for name in found[0]}, layer)


def _halves(objects: Objects) -> Iterator[Objects]:
    """The objects in two parts, each block whole, for neighbours are simplified together."""
    _, block = np.unique(objects.block, return_inverse=True)
    return (objects.select(block % 2 == half) for half in range(2))


@no_collecting()
def describe(objects: Objects, layer: Layer) -> dict[str, NDArray[Any]]:
    """Columns of objects that are shaped and measured; what is the same for all of a scene comes at the end."""
    is_regular = np.zeros(len(objects), np.bool_)
    if layer.regularise:
        pixel = ground_resolution(layer.geobox)
        shapes, is_regular = regularised(
            objects.geometry, objects.block, layer.simplify, pixel, layer.is_valid, smooth=layer.smooth
        )
    else:
        shapes = simplified(objects.geometry, objects.block, layer.simplify, layer.smooth, layer.is_valid)
    world = to_world(shapes, layer.geobox)
    del shapes
    few = portions(shapely.get_num_coordinates(world), MEASURED_AT_ONCE)
    measured = [shape_of(world[some], layer.geobox)[1] for some in few] or [shape_of(world, layer.geobox)[1]]
    return {
        "row": objects.first_row,
        "col": objects.first_col,
        "class": objects.label,
        **{name: np.concatenate([each[name] for each in measured]) for name in measured[0]},
        **(_certainty(objects) if layer.confident else {}),
        "touches_nodata": objects.touches_nodata,
        "touches_edge": objects.touches_edge,
        **({"regularised": is_regular} if layer.regularise else {}),
        "geometry": world,
    }


def _certainty(objects: Objects) -> dict[str, NDArray[Any]]:
    """What the confidence tells of objects, 0..1."""
    step = CONFIDENCE_STEPS
    jump = objects.edge_sum / np.where(objects.edge_sides, objects.edge_sides, np.nan) / step - 1
    return {
        "confidence": (objects.confidence_sum / np.maximum(objects.pixels, 1) / step).round(4),
        "confidence_min": (objects.confidence_min / step).round(4),
        "edge_sharpness": np.clip(jump, 0, 1).round(4),
    }


@no_collecting()
def frame_of(columns: dict[str, NDArray[Any]], layer: Layer) -> gpd.GeoDataFrame:
    """The columns of all objects as footprints, sorted by their first pixel."""
    order = np.lexsort((columns["col"], columns["row"]))
    columns = {name: values[order] for name, values in columns.items()}
    if layer.regularise:
        _keep_apart(columns, layer)
    ids = [f"r{row}c{col}" for row, col in zip(columns["row"], columns["col"], strict=True)]
    names = np.array([c.name for c in layer.legend.classes], object)
    everything = {
        **columns,
        "id": pd.Series(ids, dtype=str),
        "class": pd.Series(names[columns["class"]], dtype=str),
        "scene": pd.Series([layer.scene] * len(order), dtype=str),
        "datetime": pd.Series([layer.datetime] * len(order), dtype="datetime64[us, UTC]"),
        "model": pd.Series([layer.model] * len(order), dtype=str),
    }
    unknown = {name for name, value in (("datetime", layer.datetime), ("model", layer.model)) if value is None}
    told = {name: everything[name] for name in COLUMNS if name in everything and name not in unknown}
    return gpd.GeoDataFrame(told, geometry=columns["geometry"], crs=crs_of(layer.geobox).wkt)


def _keep_apart(columns: dict[str, NDArray[Any]], layer: Layer) -> None:
    """Cut what straight walls have brought over those of other blocks, and measure it again."""
    before, firm = columns["geometry"], ~columns["regularised"]
    metres, shallow = _metres_of(layer), FINEST_STEP * max(ground_resolution(layer.geobox))
    apart, cut = without_overlaps(before, firm=firm, metres=metres, shallow=shallow)
    # a shed beside a hall is not to lose its wall, where the hall loses a sliver
    hurt = shapely.area(apart) < (1 - MOST_CUT) * shapely.area(before)
    while hurt.any():
        firm |= hurt
        apart, cut = without_overlaps(before, firm=firm, metres=metres, shallow=shallow)
        hurt = shapely.is_empty(apart)
    columns["geometry"] = apart
    for name, values in shape_of(apart[cut], layer.geobox)[1].items():
        columns[name][cut] = values


def _metres_of(layer: Layer) -> tuple[float, float]:
    """Metres on the ground that a unit of the grid's CRS is wide and high; the same where the grid is turned."""
    down, along = ground_resolution(layer.geobox)
    a, b, _, d, e, _ = layer.geobox.affine[:6]
    if b or d:
        unit = math.sqrt(layer.pixel_area / abs(a * e - b * d))
        return unit, unit
    return along / abs(a), down / abs(e)


def shape_of(
    polygons: NDArray[np.object_], geobox: GeoBox, crs: CRS | None = None
) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
    """Areas as `measure` has them, and what footprints say of their outlines; of polygons as `measure` takes them.

    The columns: area_m2 and perimeter_m, both to a hundredth; vertices (the last one of a ring, which is its first, not
    counted); orientation_deg (of the longer side of the smallest box on the ground, from north to east, 0 to 180).
    """
    area, perimeter, flat = _measured(polygons, geobox, crs)
    parts = shapely.get_num_geometries(polygons) + shapely.get_num_interior_rings(polygons)
    several = np.flatnonzero(shapely.get_num_geometries(polygons) != 1)
    parts[several] = [len(shapely.get_rings(shapely.get_parts(each))) for each in polygons[several]]
    columns = {
        "area_m2": area.round(2),
        "perimeter_m": perimeter.round(2),
        "vertices": (shapely.get_num_coordinates(polygons) - parts).astype(np.int64),
        "orientation_deg": _orientation(flat),
    }
    return area, columns


def _orientation(flat: NDArray[np.object_]) -> NDArray[np.float64]:
    """(n,): degrees from north to east of the longer side of the smallest box round each, 0 to 180."""
    boxes = shapely.oriented_envelope(flat)
    corners = shapely.get_coordinates(boxes)
    first = np.cumsum(np.append(0, shapely.get_num_coordinates(boxes)))
    third = np.minimum(first[:-1] + 2, first[1:] - 1)  # a box without any width is a line
    sides = np.diff(corners[np.stack([first[:-1], first[:-1] + 1, third], axis=1)], axis=1)
    longer = sides[np.arange(len(sides)), (sides**2).sum(axis=2).argmax(axis=1)]
    bearing: NDArray[np.float64] = (np.degrees(np.arctan2(longer[:, 0], longer[:, 1])) % 180).round(1) % 180
    return bearing


def measure(
    polygons: NDArray[np.object_], geobox: GeoBox, crs: CRS | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas in square metres and perimeters in metres on the ground of polygons on a grid, in its CRS or another `crs`.

    Areas by an equal-area projection about the grid's centre (Lambert azimuthal, Snyder 1987), so that a polygon's does
    not depend on its company; perimeters by geodesics between vertices (Karney 2013); both on the WGS 84 ellipsoid.
    Holes count: out of the area, into the perimeter.
    """
    area, perimeter, _ = _measured(polygons, geobox, crs)
    return area, perimeter


def _measured(
    polygons: NDArray[np.object_], geobox: GeoBox, crs: CRS | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.object_]]:
    """The same, and the polygons in metres of equal area about the grid's centre, north up there."""
    if not len(polygons):
        return np.zeros(0), np.zeros(0), polygons
    flat, lon, lat = _flat(polygons, geobox, crs)
    _, owner = shapely.get_coordinates(polygons, return_index=True)
    _, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(polygons)), return_index=True)
    same_ring = ring[1:] == ring[:-1]
    _, _, length = WGS84.inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    perimeter = np.bincount(owner[1:][same_ring], np.asarray(length)[same_ring], minlength=len(polygons))
    return shapely.area(flat), perimeter.astype(np.float64), flat


def _flat(
    polygons: NDArray[np.object_], geobox: GeoBox, crs: CRS | None
) -> tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]:
    """Polygons in metres of equal area about the grid's centre, and the longitude and latitude of their vertices."""
    to_lonlat, to_equal_area = _transformers(geobox, crs_of(geobox).wkt if crs is None else crs.to_wkt())
    xy = shapely.get_coordinates(polygons)
    lon, lat = to_lonlat.transform(xy[:, 0], xy[:, 1])
    flat = shapely.set_coordinates(polygons.copy(), np.column_stack(to_equal_area.transform(lon, lat)))
    return flat, lon, lat


@lru_cache(maxsize=4)
def _transformers(geobox: GeoBox, wkt: str) -> tuple[Transformer, Transformer]:
    """From a CRS to longitude and latitude, and from there to metres of equal area about a grid's centre."""
    to_lonlat = Transformer.from_crs(CRS.from_wkt(wkt), 4326, always_xy=True)
    of_grid = Transformer.from_crs(CRS.from_wkt(crs_of(geobox).wkt), 4326, always_xy=True)
    lon_0, lat_0 = of_grid.transform(*(geobox.affine @ (geobox.shape[1] / 2, geobox.shape[0] / 2)))
    equal_area = f"+proj=laea +lat_0={lat_0} +lon_0={lon_0} +ellps=WGS84"
    return to_lonlat, Transformer.from_crs(4326, equal_area, always_xy=True)
