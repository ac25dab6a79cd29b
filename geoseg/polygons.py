"""`vectorize`: any label raster as polygons, its classes side by side, objects counted and areas balanced on the way.

The raster is read window by window, and objects are made whole across windows first (`geoseg.polygonise`). Holes that
are filled, walls that classes share and outlines that are straightened are then looked at all together, so nothing
depends on the windows. Memory: some windows, and the exact outlines of the layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from scipy.ndimage import distance_transform_edt

from geoseg.catalog import Legend, LegendClass
from geoseg.errors import OptionError
from geoseg.footprints import Layer, describe, frame_of
from geoseg.io.label_rasters import LabelRaster, open_labels
from geoseg.memory import no_collecting
from geoseg.polygonise import Objects, join, polygonise
from geoseg.raster import CONFIDENCE_STEPS, NODATA, ground_resolution
from geoseg.separate import Separation
from geoseg.tiling import CHUNK
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import geopandas as gpd
    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.polygonise import Piece

AT_ONCE = (CHUNK, 4 * CHUNK)
"""Rows and columns of what is outlined in one go: 20 bytes of memory for each pixel, 60 where objects are parted."""

UNKNOWN = "#808080"
"""The colour of a class of which the raster tells none."""

SQUARE_WITHIN = 0.01
"""How much longer than wide a pixel may be on the ground before distances are not counted in pixels any more."""


@dataclass(frozen=True)
class Shaping:
    """What is made of exact outlines, in this order; metres and square metres on the ground, 0 = nothing."""

    separate: float = 0.0
    """Objects of one class are parted where they are narrower than this, between parts that are wider."""
    fill_holes: float = 0.0
    """Holes below this area are filled, unless an object that is kept is in them."""
    min_area: float = 0.0
    """Objects below this area are dropped, by their exact outlines without the holes that are filled."""
    smooth: float = 0.0
    """Each point of an outline becomes the mean of it so far before and behind; shared walls stay shared."""
    simplify: float = 0.0
    """How far outlines may leave that, with fewer vertices (Douglas-Peucker); shared walls stay shared."""
    regularise: bool = False
    """Straight walls and right angles, for the buildings of one class; see `geoseg.regularise`. They are laid by the
    exact outlines; those of which none can be made are smoothed and simplified."""

    def __post_init__(self) -> None:
        """Refuse what is no length or area."""
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                msg = f"--{name.replace('_', '-')} {value}: must be 0 or more"
                raise OptionError(msg)


@dataclass(frozen=True)
class ClassCount:
    """What became of one class; areas in square metres."""

    name: str
    pixels: int
    """Of the raster."""
    objects: int
    """Found: their pixels are those of the raster, each once."""
    dropped: int
    """Smaller than the least area."""
    holes_filled: int
    raster_area: float
    """Of the pixels, each as large as the one at the raster's centre."""
    area: float
    """Of the layer, on the ground."""

    @property
    def kept(self) -> int:
        """Polygons of the layer."""
        return self.objects - self.dropped


@dataclass(frozen=True, eq=False)
class Traced:
    """A layer of polygons, and how it compares with its raster."""

    frame: gpd.GeoDataFrame
    counts: tuple[ClassCount, ...]
    """Of the classes that have objects."""
    others: int
    """Pixels of labels that make no objects."""
    nodata: int
    """Pixels without a label."""
    legend: Legend
    geobox: Any
    """The raster's grid."""


def vectorize(
    labels: str | Path | xr.DataArray,
    *,
    classes: dict[int, str] | None = None,
    background: int | None = 0,
    min_area: float = 0.0,
    simplify: float = 0.0,
    only: Sequence[str] = (),
    shaping: Shaping | None = None,
) -> gpd.GeoDataFrame:
    """Polygons of all objects (4-connected pixels of one label) of a label raster, in its CRS.

    `labels`: a raster file or Zarr store of whole numbers from 0 to 254, or a DataArray (y, x) of uint8 with a CRS;
    255 = nodata; read in windows.
    `classes` names the labels (what the raster tells is used otherwise); `background` is no object (None: every label
    is one); `only` these classes. `min_area` in square metres, `simplify` in pixels (0 = exactly the pixels' sides);
    `shaping` says the same and more in metres, as the command does. Columns as in a run's footprints. Raises
    `SceneError` for what is no label raster, `OptionError` for a class that it does not have.
    """
    shaping = shaping or Shaping(min_area=min_area)
    return trace(labels, shaping, classes=classes, background=background, only=only, simplify_pixels=simplify).frame


def trace(
    labels: str | Path | xr.DataArray,
    shaping: Shaping,
    *,
    classes: dict[int, str] | None = None,
    background: int | None = 0,
    only: Sequence[str] = (),
    simplify_pixels: float = 0.0,
    observe: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> Traced:
    """The same with its numbers; `observe` is told how many pixels are outlined."""
    raster = open_labels(labels)
    raster = replace(raster, names=raster.names | (classes or {}))
    legend = legend_of(raster, background)
    wanted, ignored = wanted_labels(legend, only)
    layer = Layer(raster.geobox, replace(legend, background=ignored), raster.name, simplify=0.0, confident=False)
    metres = 1 / layer.pixel_area**0.5  # to pixels
    layer = replace(
        layer,
        simplify=simplify_pixels or shaping.simplify * metres,
        smooth=shaping.smooth * metres,
        fill_holes=shaping.fill_holes,
        min_area=shaping.min_area,
        regularise=shaping.regularise,
    )
    table = np.where(wanted, np.arange(256), NODATA if ignored is None else ignored).astype(np.uint8)
    table[NODATA] = NODATA
    pixels = np.zeros(256, np.int64)
    pieces = _pieces(raster, table, ignored, _Parting.of(shaping.separate, layer), pixels, observe)
    objects = _whole(pieces, raster.geobox.shape)
    _check_balance(objects, pixels, wanted)
    kept, filled = _shaped(objects, layer)
    frame = frame_of(kept, layer)
    counts = _counts(pixels, objects, kept, filled, frame, layer)
    nodata = int(pixels[NODATA])
    others = int(pixels.sum()) - nodata - sum(each.pixels for each in counts)
    return Traced(frame, counts, others, nodata, legend, raster.geobox)


def legend_of(raster: LabelRaster, background: int | None) -> Legend:
    """All labels from 0 to 254, named and coloured as the raster tells, or by their number and grey."""
    named = [
        LegendClass(value, raster.names.get(value, str(value)), raster.colours.get(value, UNKNOWN))
        for value in range(NODATA)
    ]
    return Legend(tuple(named), background)


def wanted_labels(legend: Legend, only: Sequence[str]) -> tuple[NDArray[np.bool_], int | None]:
    """(256,): which labels make objects, and the label that all others are given."""
    names = [c.name for c in legend.classes]
    for name in only:
        if name not in names:
            there = ", ".join(name for name in names if not name.isdecimal()) or "only numbers"
            msg = f"--class {name}: the raster has no class of this name; it names {there}; see --classes"
            raise OptionError(msg)
    wanted = np.array([not only or name in only for name in names] + [False])
    if legend.background is not None:
        wanted[legend.background] = False
        return wanted, legend.background
    others = np.flatnonzero(~wanted[:NODATA])
    return wanted, int(others[0]) if len(others) else None


# --- windows


@dataclass(frozen=True)
class _Parting:
    """Objects parted by how far their pixels are from their outline: where they are narrow between wide parts."""

    reach: float
    """Pixels, or the sampling's unit, from the outline from which on a pixel is a seed's."""
    sampling: tuple[float, float]

    @classmethod
    def of(cls, width: float, layer: Layer) -> _Parting | None:
        """Of objects that are parted where they are narrower than `width` metres."""
        if not width:
            return None
        down, along = ground_resolution(layer.geobox)
        if abs(down / along - 1) < SQUARE_WITHIN:
            return cls(width / 2 / layer.pixel_area**0.5, (1.0, 1.0))
        return cls(width / 2, (down, along))

    @property
    def margin(self) -> int:
        """Pixels round a window that have a say in it."""
        return math.ceil(self.reach / min(self.sampling)) + 1

    def score(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Codes (y, x): the distance to the nearest pixel of another label as a share of the reach."""
        codes = np.zeros(labels.shape, np.uint8)
        for value in np.unique(labels[labels != NODATA]):
            inside = labels == value
            if inside.all():
                codes[:] = CONFIDENCE_STEPS
                continue
            share = distance_transform_edt(inside, self.sampling) / self.reach
            codes[inside] = np.minimum(np.floor(share[inside] * CONFIDENCE_STEPS + 1e-6), CONFIDENCE_STEPS)
        return codes


def _pieces(
    raster: LabelRaster,
    table: NDArray[np.uint8],
    ignored: int | None,
    parting: _Parting | None,
    pixels: NDArray[np.int64],
    observe: Callable[[str, int, int], None],
) -> Iterator[Piece]:
    """What each window contributes; the labels' pixels are counted on the way."""
    whole = Window.of_shape((raster.geobox.shape[0], raster.geobox.shape[1]))
    done = 0
    for window in whole.blocks(AT_ONCE):
        around = window if parting is None else _grown(window, parting.margin, whole)
        read = table[raster.read(around)]
        place = window.relative_to(around).slices
        labels = np.ascontiguousarray(read[place])
        pixels += np.bincount(labels.ravel(), minlength=256)
        score = None if parting is None else np.ascontiguousarray(parting.score(read)[place])
        yield polygonise(
            labels, window, background=ignored, score=score, separation=None if parting is None else Separation(1.0)
        )
        done += window.size
        observe("outlining", done, whole.size)


def _grown(window: Window, margin: int, whole: Window) -> Window:
    return Window(
        max(window.row_start - margin, 0),
        min(window.row_stop + margin, whole.row_stop),
        max(window.col_start - margin, 0),
        min(window.col_stop + margin, whole.col_stop),
    )


@no_collecting()
def _whole(pieces: Iterator[Piece], shape: Any) -> Objects:
    """All objects, each whole."""
    complete: list[Objects] = []

    def seams() -> Iterator[Piece]:
        for piece in pieces:
            complete.append(piece.complete)
            yield piece.without_complete()

    joined = join(seams(), (shape[0], shape[1]))
    return Objects.concatenate([*complete, joined])


def _check_balance(objects: Objects, pixels: NDArray[np.int64], wanted: NDArray[np.bool_]) -> None:
    """The outlines of each class enclose as many pixels as the raster has of it: true, or geoseg is wrong."""
    found = np.bincount(objects.label, shapely.area(objects.geometry), minlength=256)
    if not np.array_equal(found[wanted], pixels[wanted]):
        value = int(np.flatnonzero(wanted & (found != pixels))[0])
        msg = f"label {value}: its outlines enclose {found[value]:g} pixels, the raster has {pixels[value]}"
        raise AssertionError(msg)


# --- shapes


def _shaped(objects: Objects, layer: Layer) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Columns of the objects that are kept, and (256,) how many holes of each label were filled."""
    objects, filled = layer.cleared(objects)
    if len(np.unique(objects.label)) > 1 and layer.regularise:
        msg = "--regularise: is for the buildings of one class, these are of several; name it with --class"
        raise OptionError(msg)
    if len(np.unique(objects.label)) > 1 and (layer.simplify or layer.smooth):
        objects = objects.as_one_block()
    return describe(objects, layer), filled


def _counts(
    pixels: NDArray[np.int64],
    objects: Objects,
    kept: dict[str, NDArray[Any]],
    filled: NDArray[np.int64],
    frame: gpd.GeoDataFrame,
    layer: Layer,
) -> tuple[ClassCount, ...]:
    found = np.bincount(objects.label, minlength=256)
    label = kept["class"][np.lexsort((kept["col"], kept["row"]))]  # of each row of the frame
    left = np.bincount(label, minlength=256)
    area = np.bincount(label, frame["area_m2"], minlength=256)
    return tuple(
        ClassCount(
            layer.legend.name(value),
            int(pixels[value]),
            int(found[value]),
            int(found[value] - left[value]),
            int(filled[value]),
            float(pixels[value] * layer.pixel_area),
            float(area[value]),
        )
        for value in map(int, np.flatnonzero(found))
    )
