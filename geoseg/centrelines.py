"""`vectorize --lines`: roads, rivers and the like as lines along their middle, joined where they meet.

Each class is thinned to a skeleton one pixel wide (Zhang & Suen 1984, "A fast parallel algorithm for thinning digital
patterns"), whose pixels are linked to their neighbours and chained into lines from one end or crossing to the next. Of
the skeleton's many short ends, which point to corners of the outline, the shortest one at each crossing is taken away
again and again, until all that are left are long enough. The raster is looked at as a whole: some 40 bytes of memory
for each pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from scipy.ndimage import distance_transform_edt

from geoseg.errors import OptionError
from geoseg.io.label_rasters import open_labels
from geoseg.io.vectors import to_world
from geoseg.polygons import legend_of, wanted_labels
from geoseg.raster import WGS84, crs_of, ground_resolution
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import xarray as xr
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import Legend

__all__ = ["Centrelines", "Thinning", "centrelines"]

_Lines: TypeAlias = NDArray[np.object_]

SPUR_WIDTHS: Final = 1.5
"""An end that is shorter than so many times the distance from its crossing to the outline points to a corner of it."""

_WAYS: Final = {"e": (0, 1), "s": (1, 0), "se": (1, 1), "sw": (1, -1)}
"""From a pixel to those of its neighbours that come after it: rows and columns."""


@dataclass(frozen=True)
class Thinning:
    """What is made of skeletons; metres on the ground."""

    spur: float = 0.0
    """Ends, and lines on their own, that are shorter are left out; ends that point to corners always are."""
    simplify: float = 0.0
    """How far lines may leave the skeleton, with fewer vertices (Douglas-Peucker); their ends stay where they are,
    and loops stay loops. Of lines between the same ends that become the same, one stays."""

    def __post_init__(self) -> None:
        """Refuse what is no length."""
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                msg = f"--{name} {value}: must be 0 or more"
                raise OptionError(msg)


@dataclass(frozen=True, eq=False)
class Centrelines:
    """A layer of lines, and the legend and grid of its raster."""

    frame: gpd.GeoDataFrame
    legend: Legend
    geobox: Any


def centrelines(
    labels: str | Path | xr.DataArray,
    thinning: Thinning | None = None,
    *,
    classes: dict[int, str] | None = None,
    background: int | None = 0,
    only: Sequence[str] = (),
) -> Centrelines:
    """Lines along the middle of what a label raster has of each class, in its CRS; arguments as of `vectorize`.

    Columns: id (the pixel of the line's middle and the way it goes on from there: the same in every run, and no other
    line's), class, length_m, width_m (twice the distance to the outline, on average along the line; known to a pixel),
    touches_edge (of the raster), scene. Raises `SceneError` for what is no label raster, `OptionError` for a class that
    it does not have.
    """
    thinning = thinning or Thinning()
    raster = open_labels(labels)
    raster = replace(raster, names=raster.names | (classes or {}))
    legend = legend_of(raster, background)
    wanted, _ = wanted_labels(legend, only)
    values = raster.read(Window.of_shape((raster.geobox.shape[0], raster.geobox.shape[1])))
    found = [
        _of_class(values == value, thinning, raster.geobox).assign(**{"class": legend.name(int(value))})
        for value in np.unique(values)
        if wanted[value]
    ]
    columns = ["id", "class", "length_m", "width_m", "touches_edge", "scene", "geometry"]
    rows = pd.concat([_frame(np.zeros(0, object), {}), *found], ignore_index=True).assign(scene=raster.name)
    told = {name: rows[name] for name in columns[:-1]}
    told |= {name: told[name].astype(str) for name in ("id", "class", "scene")}
    told["touches_edge"] = told["touches_edge"].astype(bool)
    frame = gpd.GeoDataFrame(told, geometry=rows["geometry"].to_numpy(), crs=crs_of(raster.geobox).wkt)
    return Centrelines(frame, legend, raster.geobox)


def _frame(lines: _Lines, columns: dict[str, Any]) -> pd.DataFrame:
    empty = {"id": [], "class": [], "length_m": np.zeros(0), "width_m": np.zeros(0), "touches_edge": np.zeros(0, bool)}
    return pd.DataFrame({**(empty if not columns else {}), **columns, "geometry": lines})


def _of_class(mask: NDArray[np.bool_], thinning: Thinning, geobox: GeoBox) -> pd.DataFrame:
    """Lines of the pixels of one class (y, x)."""
    from skimage.morphology import skeletonize  # not before it is needed

    metres = np.array(ground_resolution(geobox))
    reach = math.ceil(min(distance_transform_edt(mask).max(), max(mask.shape))) + 1
    # what touches the raster's edge goes on there, so that its line reaches it
    padded = np.pad(mask, reach, mode="edge")
    inner = (slice(reach, -reach),) * 2
    skeleton = skeletonize(padded)[inner]
    distance = distance_transform_edt(padded, metres)[inner]
    lines = _pruned(_chained(_links(skeleton)), distance, mask.shape, metres, thinning.spur)
    row, col, line = _pixels(lines)
    count = np.maximum(np.bincount(line, minlength=len(lines)), 1)
    # from the middle of a pixel to that of the next one beyond the outline
    width = 2 * np.bincount(line, distance[row, col], len(lines)) / count - math.sqrt(metres.prod())
    columns = {
        "id": _names(lines),
        "touches_edge": np.bincount(line, _at_edge(row, col, mask.shape), len(lines)) > 0,
        "width_m": np.maximum(width, 0).round(2),
    }
    if thinning.simplify:
        lines = shapely.simplify(lines, thinning.simplify / math.sqrt(metres.prod()))
    world = to_world(lines, geobox)
    rows = _frame(world, {**columns, "length_m": _length(world, geobox).round(2)})
    return rows[~pd.Series(shapely.to_wkb(lines)).duplicated()]


def _links(skeleton: NDArray[np.bool_]) -> _Lines:
    """(n,): lines from the middle of each pixel to its neighbours; aslant only where no third pixel joins the two."""
    found = []
    rows, cols = skeleton.shape
    for down, along in _WAYS.values():
        here = skeleton[: rows - down, max(-along, 0) : cols - max(along, 0)]
        there = skeleton[down:, max(along, 0) : cols - max(-along, 0)]
        linked = here & there
        if down and along:
            beside = skeleton[: rows - 1, max(along, 0) : cols - max(-along, 0)]
            below = skeleton[1:, max(-along, 0) : cols - max(along, 0)]
            linked &= ~beside & ~below
        first = np.argwhere(linked)[:, ::-1] + (max(-along, 0) + 0.5, 0.5)
        found.append(np.stack([first, first + np.array([along, down])], axis=1))
    return np.asarray(shapely.linestrings(np.concatenate(found)), object)


def _chained(lines: _Lines) -> _Lines:
    """Lines joined wherever just two of them meet; their order and directions do not depend on those given."""
    if not len(lines):
        return lines
    merged = shapely.get_parts(shapely.line_merge(shapely.multilinestrings(lines)))
    merged = shapely.normalize(merged)
    middle = shapely.get_coordinates(shapely.line_interpolate_point(merged, 0.5, normalized=True))
    chained: _Lines = merged[np.lexsort((middle[:, 0], middle[:, 1]))]  # no two have the same
    return chained


def _pruned(
    lines: _Lines, distance: NDArray[np.float64], shape: tuple[int, ...], metres: NDArray[np.float64], spur: float
) -> _Lines:
    """Lines without ends that are too short: of those at one crossing the shortest first."""
    while len(lines):
        length = _flat_length(lines, metres)
        ends = np.stack([shapely.get_coordinates(shapely.get_point(lines, end)) for end in (0, -1)], axis=1)
        col, row = np.floor(ends).astype(np.int64).transpose(2, 0, 1)
        _, node, count = np.unique(row * shape[1] + col, return_inverse=True, return_counts=True)
        node = node.reshape(row.shape)
        free = (count[node] == 1) & ~_at_edge(row, col, shape)
        alone = free.all(axis=1)
        crossing = np.where(free[:, 0], 1, 0)  # which end of a line is the other one
        at = np.arange(len(lines))
        limit = np.maximum(spur, SPUR_WIDTHS * distance[row, col][at, crossing])
        is_spur = (free.sum(axis=1) == 1) & (count[node][at, crossing] > 1) & (length < limit)
        is_short = alone & (length < spur)
        asked = np.flatnonzero(is_spur)
        order = asked[np.lexsort((length[asked], node[asked, crossing[asked]]))]
        _, first = np.unique(node[order, crossing[order]], return_index=True)
        gone = is_short
        gone[order[first]] = True
        if not gone.any():
            return lines
        lines = _chained(lines[~gone])
    return lines


def _flat_length(lines: _Lines, metres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,): metres, in pixels of so many metres down and along."""
    length: NDArray[np.float64] = shapely.length(shapely.transform(lines, lambda xy: xy * metres[::-1]))
    return length


def _at_edge(row: NDArray[np.int64], col: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    edge: NDArray[np.bool_] = (row == 0) | (col == 0) | (row == shape[0] - 1) | (col == shape[1] - 1)
    return edge


def _pixels(lines: _Lines) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of every pixel along lines, and the number of its line."""
    xy, line = shapely.get_coordinates(lines, return_index=True)
    col, row = np.floor(xy).astype(np.int64).T if len(xy) else np.zeros((2, 0), np.int64)
    return row, col, line


def _names(lines: _Lines) -> list[str]:
    """The link in the middle of each line, which no other one has: its first pixel and the way from there."""
    letters = {step: letter for letter, step in _WAYS.items()}
    half = (shapely.get_num_coordinates(lines) - 2) // 2
    first, second = (shapely.get_coordinates(shapely.get_point(lines, half + more)) for more in (0, 1))
    pixels = np.floor(np.stack([first, second], axis=1)).astype(np.int64)[:, :, ::-1].tolist()
    found = []
    for pair in pixels:
        (row, col), (next_row, next_col) = sorted(pair)
        found.append(f"r{row}c{col}{letters[next_row - row, next_col - col]}")
    return found


def _length(lines: _Lines, geobox: GeoBox) -> NDArray[np.float64]:
    """(n,): metres along geodesics between vertices (Karney 2013)."""
    xy, line = shapely.get_coordinates(lines, return_index=True)
    if not len(xy):
        return np.zeros(0)
    lon, lat = Transformer.from_crs(CRS.from_wkt(crs_of(geobox).wkt), 4326, always_xy=True).transform(*xy.T)
    _, _, length = WGS84.inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
    same = line[1:] == line[:-1]
    return np.bincount(line[1:][same], np.asarray(length)[same], len(lines)).astype(np.float64)
