"""Holes that are filled and objects that are dropped: before anything is shaped, and the same in whatever windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
from conftest import BANEPA
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr
from scipy import ndimage

from geoseg.catalog import Legend, LegendClass
from geoseg.footprints import Layer, footprints
from geoseg.polygons import Shaping, trace
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEGEND = Legend((LegendClass(0, "ground", "#000000"), LegendClass(1, "building", "#ff0000")), 0)
GRID = GeoBox((60, 60), BANEPA, 32645)
PIXEL = Layer(GRID, LEGEND, "town").pixel_area


def speckled(seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    labels = (ndimage.gaussian_filter(rng.standard_normal((60, 60)), 2) > -0.05).astype(np.uint8)
    flip = rng.random(labels.shape) < 0.1
    return np.where(flip, 1 - labels, labels).astype(np.uint8)


def cleared_by_loop(labels: NDArray[np.uint8], fill: float, least: float) -> NDArray[np.uint8]:
    """The same on pixels, innermost first: a component of ground is filled, one of buildings dropped."""
    shape = np.pad(labels, 1)

    def kept(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """An object that fills a mask of one component, with its holes filled, or nothing."""
        whole = mask.copy()
        holes, count = ndimage.label(~mask)
        for number in range(1, count + 1):
            hole = holes == number
            if hole[0, 0]:
                continue
            parts, inner = ndimage.label(hole & (shape == 1))
            empty = not any(kept(parts == part).any() for part in range(1, inner + 1))
            if empty and hole.sum() < fill:
                whole |= hole
        return whole if whole.sum() >= least else np.zeros_like(whole)

    objects, count = ndimage.label(shape == 1)
    found = np.zeros_like(shape)
    for number in range(1, count + 1):
        found |= kept(objects == number).astype(np.uint8)
    return found[1:-1, 1:-1]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    fill=st.sampled_from([1.5, 6.5, 40.5]),
    least=st.sampled_from([0.0, 1.5, 8.5]),
    rows=st.integers(5, 60),
    cols=st.integers(5, 60),
)
def test_against_a_loop_over_pixels_in_any_windows(seed: int, fill: float, least: float, rows: int, cols: int) -> None:
    labels = speckled(seed)
    layer = Layer(GRID, LEGEND, "town", simplify=0, confident=False, fill_holes=fill * PIXEL, min_area=least * PIXEL)
    parts = [(window, labels[window.slices], None) for window in Window.of_shape(labels.shape).blocks((rows, cols))]
    frame = footprints(parts, layer)
    expected = cleared_by_loop(labels, fill, least)
    assert frame.geometry.area.sum() / PIXEL == pytest.approx(frame.union_all().area / PIXEL)
    x, y = BANEPA @ tuple(axis.ravel() for axis in np.meshgrid(np.arange(60) + 0.5, np.arange(60) + 0.5))
    inside = shapely.contains_xy(frame.union_all(), x, y).reshape(labels.shape).astype(np.uint8)
    np.testing.assert_array_equal(inside, expected)


def test_small_is_said_before_shaping() -> None:
    """A bar of 1 x 20 pixels is nothing once it is simplified by two of them, and as large as it was before."""
    labels = np.zeros((60, 60), np.uint8)
    labels[10, 10:30] = labels[30:35, 10:14] = 1
    raster = wrap_xr(labels, GRID)
    for shaping in (Shaping(), Shaping(simplify=0.6), Shaping(smooth=0.6), Shaping(smooth=0.6, simplify=0.3)):
        shaped = {name: getattr(shaping, name) for name in ("smooth", "simplify")}
        assert len(trace(raster, Shaping(min_area=19.9 * PIXEL, **shaped)).frame) == 2
        assert len(trace(raster, Shaping(min_area=20.1 * PIXEL, **shaped)).frame) == 0


def test_small_is_said_with_holes_filled() -> None:
    """A ring of eight pixels round one; and one with a speck in it that is dropped, or kept."""
    labels = np.zeros((60, 60), np.uint8)
    labels[5:8, 5:8] = labels[20:27, 20:27] = 1
    labels[6, 6] = 0
    labels[21:26, 21:26] = 0
    labels[23, 23] = 1
    raster = wrap_xr(labels, GRID)
    for fill, least, kept in ((1.5, 8.5, 2), (0.0, 8.5, 1), (25.5, 8.5, 2), (25.5, 40.0, 1), (25.5, 0.5, 3)):
        frame = trace(raster, Shaping(fill_holes=fill * PIXEL, min_area=least * PIXEL)).frame
        assert len(frame) == kept
