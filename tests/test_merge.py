"""`geoseg merge`: the footprints of overlapping scenes as one layer, against its laws and against whole rasters."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from conftest import BANEPA, legend_of
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from scipy.ndimage import gaussian_filter
from test_archive import carry_out, command, job_of, picture, scene  # noqa: F401  # a fixture among them

from geoseg.archive import RunJob
from geoseg.audit import verify
from geoseg.borders import JOIN_WITHIN, LEAST_CONTACT, SHORT_OF, View, transformed
from geoseg.duplicates import MATCHING, Merge, Nodes, OneLayer, Pairs, common_crs, decide, one_layer
from geoseg.errors import OptionError, OutputError
from geoseg.footprints import Layer, footprints, measure
from geoseg.io.geoparquet import parquet_file, write_parquet
from geoseg.io.vectors import geojson_file, write_geojson
from geoseg.merge import FileResults, _fingerprint, _view, merge
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

HOW = Merge()
NODATA = 255


class Drawn:
    """Results of a label raster, in memory."""

    def __init__(self, labels: NDArray[np.uint8], frame: gpd.GeoDataFrame) -> None:
        self.labels, self.frame = labels, frame

    def footprints(self, bounds: tuple[float, float, float, float] | None = None) -> Iterator[gpd.GeoDataFrame]:
        if bounds is None:
            yield self.frame.iloc[:2].reset_index(drop=True)
            yield self.frame.iloc[2:].reset_index(drop=True)
            return
        box = shapely.bounds(self.frame.geometry.to_numpy())
        apart = (box[:, :2] > bounds[2:]).any(1) | (box[:, 2:] < bounds[:2]).any(1)
        yield self.frame[~apart].reset_index(drop=True)

    def columns(self) -> frozenset[str]:
        return frozenset(self.frame.columns) - {"geometry"}

    def valid(self, window: Window, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        valid = self.labels[window.slices] != NODATA
        if shape is None:
            return valid
        rows, cols = ((np.arange(n) + 0.5) * side / n for n, side in zip(shape, valid.shape, strict=True))
        return valid[np.ix_(rows.astype(int), cols.astype(int))]


def view(
    name: str,
    labels: NDArray[np.uint8],
    geobox: GeoBox,
    codes: int | NDArray[np.uint8] = 200,
    when: dt.datetime | None = None,
    **options: float,
) -> View:
    """A scene's results; `codes` is its confidence."""
    confidence = np.where(labels == NODATA, NODATA, codes).astype(np.uint8)
    layer = Layer(geobox, legend_of(3), name, when, **{"simplify": 0.0, **options})
    frame = footprints([(Window.of_shape(labels.shape), labels, confidence)], layer)
    return View(name, geobox, Drawn(labels, frame), when, layer.simplify, layer.min_area)


def at(row: float, col: float, shape: tuple[int, ...], crs: str = "EPSG:32645") -> GeoBox:
    """A grid whose origin lies so many pixels from a common one."""
    return GeoBox((shape[0], shape[1]), BANEPA @ rasterio.Affine.translation(col, row), crs)


def cut_out(whole: NDArray[np.uint8], name: str, rows: slice, cols: slice, **options: Any) -> View:
    """A sheet of a raster."""
    part = whole[rows, cols]
    return view(name, part, at(rows.indices(len(whole))[0], cols.indices(whole.shape[1])[0], part.shape), **options)


def blocks(rows: int, cols: int, *boxes: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Labels with 1 in half-open boxes: first and last row, first and last column."""
    labels = np.zeros((rows, cols), np.uint8)
    for top, bottom, left, right in boxes:
        labels[top:bottom, left:right] = 1
    return labels


def merged(layer: OneLayer) -> gpd.GeoDataFrame:
    return pd.concat(list(layer.frames()), ignore_index=True)


def same_shapes(one: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> bool:
    """Whether two frames have the same polygons in some order, vertex for vertex to a hundredth of a millimetre."""

    def told(frame: gpd.GeoDataFrame) -> list[str]:
        # normalised first, for a ring keeps the vertex that it begins with, be it on a straight line
        at_corners = shapely.normalize(shapely.set_precision(frame.geometry.to_numpy(), 1e-5))
        return sorted(shapely.to_wkt(shapely.normalize(shapely.simplify(at_corners, 0)), rounding_precision=5))

    return told(one) == told(other)


def equal(one: gpd.GeoDataFrame, other: gpd.GeoDataFrame) -> bool:
    pd.testing.assert_frame_equal(one.drop(columns="geometry"), other.drop(columns="geometry"))
    return shapely.to_wkb(one.geometry.to_numpy()).tolist() == shapely.to_wkb(other.geometry.to_numpy()).tolist()


# --- the laws, on scenes that overlap somehow


@st.composite
def overlapping(draw: st.DrawFn) -> list[View]:
    """Two to four scenes of one ground, each with its own errors, grid and holes; sides are a multiple of nothing."""
    seed = draw(st.integers(0, 2**20))
    rng = np.random.default_rng(seed)
    views = []
    for name in "abcd"[: draw(st.integers(2, 4))]:
        rows, cols = draw(st.integers(9, 33)), draw(st.integers(9, 33))
        ground = gaussian_filter(np.random.default_rng(1).normal(size=(60, 60)), 1.6) > 0.06
        row, col = draw(st.integers(0, 60 - rows)), draw(st.integers(0, 60 - cols))
        labels = ground[row : row + rows, col : col + cols].astype(np.uint8)
        labels ^= (rng.random(labels.shape) < draw(st.sampled_from([0, 0.02, 0.2]))).astype(np.uint8)
        if draw(st.booleans()):
            labels[rng.integers(rows) :, rng.integers(cols) :] = NODATA
        shift = draw(st.sampled_from([(0, 0), (0.4, -0.3)]))
        when = draw(
            st.sampled_from([None, dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)])
        )
        geobox = at(row + shift[0], col + shift[1], labels.shape)
        codes = rng.integers(125, 251, labels.shape)
        views.append(view(name, labels, geobox, codes, when, simplify=draw(st.sampled_from([0.0, 1.0])), min_area=0.2))
    return views


RULES = st.builds(Merge, keep=st.sampled_from(["confidence", "date", "edge"]), overlap=st.sampled_from([0.3, 0.5, 1.0]))


@settings(max_examples=25)
@given(views=overlapping(), how=RULES, cell=st.sampled_from([1.7, 4.1]), order=st.randoms())
def test_the_layer_keeps_its_laws(views: list[View], how: Merge, cell: float, order: Any) -> None:
    layer = one_layer(views, how)
    frame = merged(layer)
    # neither the cells nor the order of the scenes have a say
    mixed = views.copy()
    order.shuffle(mixed)
    again = one_layer(mixed, how, cell=cell)
    assert equal(frame, merged(again))
    assert layer.counts == again.counts
    # polygons are valid, and as large as they say
    assert frame.is_valid.all()
    assert set(frame.geom_type) <= {"Polygon", "MultiPolygon"}
    assert frame["id"].is_unique
    area, perimeter = measure(frame.geometry.to_numpy(), views[0].geobox)
    np.testing.assert_allclose(frame["area_m2"], area, atol=0.02)
    np.testing.assert_allclose(frame["perimeter_m"], perimeter, atol=0.02)
    # no ground is counted twice, but for what simplifying did within one scene
    one, other = shapely.STRtree(frame.geometry).query(frame.geometry, predicate="intersects")
    apart = (one < other) & (frame["scene"].to_numpy()[one] != frame["scene"].to_numpy()[other])
    twice = shapely.area(shapely.intersection(*(frame.geometry.to_numpy()[side[apart]] for side in (one, other))))
    assert twice.max(initial=0) < 1e-4
    # each footprint is there, or is matched by or joined to one that is
    kept = frame.geometry.to_numpy()
    for own in views:
        for shape in own.results.frame.geometry:
            covered = shapely.area(shapely.intersection(kept, shape)).sum()
            assert covered >= min(how.overlap, 1) * shape.area / len(views) or shape.area < 1
    # nothing is there that nobody saw, but for the gaps of borders, as far as `bridge` reaches over the widest
    seen = shapely.union_all([shape for own in views for shape in own.results.frame.geometry])
    pixels = JOIN_WITHIN + SHORT_OF + LEAST_CONTACT + max(own.simplify for own in views)
    reach = pixels * max(own.side for own in views)
    assert shapely.difference(frame.geometry.to_numpy(), shapely.buffer(seen, reach)).tolist() == [
        shapely.Polygon()
    ] * len(frame)
    assert frame["views"].between(1, len(views)).all()


def test_one_scene_is_its_footprints() -> None:
    labels = (np.random.default_rng(2).random((30, 41)) < 0.4).astype(np.uint8)
    own = view("a", labels, at(0, 0, labels.shape), when=dt.datetime(2024, 5, 1, tzinfo=dt.UTC))
    frame = merged(one_layer([own], HOW))
    assert (frame.pop("views") == 1).all()
    assert list(frame["id"]) == [f"a/{name}" for name in own.results.frame["id"]]
    assert equal(frame.assign(id=own.results.frame["id"]), own.results.frame)
    far = view("b", labels, at(0, 500, labels.shape))
    both = merged(one_layer([far, own], HOW))
    assert list(both["id"]) == [*frame["id"], *(f"b/{name}" for name in own.results.frame["id"])]
    assert both["datetime"].isna().sum() == len(frame)
    assert equal(both.iloc[: len(frame)].drop(columns="views"), frame)


# --- sheets that meet


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**20),
    row=st.integers(6, 23),
    col=st.integers(6, 31),
    more=st.sampled_from([0, 0, 1, 5]),
    hole=st.integers(0, 1),
    cell=st.sampled_from([None, 3.3]),
)
def test_sheets_of_one_raster_give_its_footprints(
    seed: int, row: int, col: int, more: int, hole: int, cell: float | None
) -> None:
    """Also where they overlap by some pixels, and where three or four meet."""
    rng = np.random.default_rng(seed)
    whole = (rng.random((6, 10)) < 0.4).astype(np.uint8).repeat(5, 0).repeat(4, 1)[:29, :37]
    whole = np.where(rng.random(whole.shape) < 0.08, 1 - whole, whole).astype(np.uint8)
    if hole:
        whole[row // 2 : row + 3, 20:26] = NODATA
    parts = [(slice(0, row + more), "n"), (slice(row, 29), "s")]
    sides = [(slice(0, col + more), "w"), (slice(col, 37), "e")]
    sheets = [cut_out(whole, a + b, rows, cols) for rows, a in parts for cols, b in sides]
    layer = one_layer(sheets, HOW, cell=cell)
    frame, expected = merged(layer), view("whole", whole, at(0, 0, whole.shape)).results.frame
    assert same_shapes(frame, expected)
    np.testing.assert_allclose(sorted(frame["area_m2"]), sorted(expected["area_m2"]), atol=0.011)
    np.testing.assert_allclose(frame["confidence"], 0.8)


def test_a_building_across_a_border_is_one() -> None:
    whole = blocks(20, 40, (4, 12, 10, 27), (14, 17, 19, 20), (14, 17, 20, 21))
    codes = np.where(np.arange(40) < 20, 250, 125) * np.ones((20, 1), int)
    sheets = [
        cut_out(whole, "a", slice(20), slice(20), codes=codes[:, :20]),
        cut_out(whole, "b", slice(20), slice(20, 40), codes=codes[:, 20:]),
    ]
    layer = one_layer(sheets, HOW)
    frame = merged(layer)
    assert list(frame["id"]) == ["a/r4c10", "a/r14c19"]  # the larger piece, and the better one of equals
    assert (layer.counts.joined, layer.counts.duplicates) == (2, 0)
    assert frame["views"].tolist() == [2, 2]
    assert frame["area_m2"][0] == pytest.approx(8 * 17 * 0.09, rel=2e-3)
    assert frame["confidence"].tolist() == [
        pytest.approx((10 * 1 + 7 * 0.5) / 17, abs=1e-3),
        pytest.approx(0.75, abs=1e-3),
    ]
    assert [len(shape.exterior.coords) for shape in shapely.simplify(frame.geometry.to_numpy(), 0)] == [5, 5]


def test_where_an_outline_begins_does_not_tell_in_which_order_pieces_were_joined() -> None:
    whole = blocks(60, 60, (10, 50, 10, 50))
    parts = {"a": (slice(33), slice(33)), "b": (slice(33), slice(27, 60)), "c": (slice(27, 60), slice(60))}
    (joined,) = merged(one_layer([cut_out(whole, name, *part) for name, part in parts.items()], HOW)).geometry
    assert joined.wkb == shapely.orient_polygons(shapely.normalize(joined)).wkb


@pytest.mark.parametrize("simplify", [0.0, 1.0])
def test_a_piece_that_ends_a_pixel_short_is_joined_unless_outlines_are_exact(simplify: float) -> None:
    """As what networks find along the rim does; two that both stand off the border are two."""
    west, east = blocks(40, 20, (2, 10, 9, 19), (20, 28, 9, 19)), blocks(40, 20, (2, 10, 0, 8), (20, 28, 1, 8))
    sheets = [view("a", west, at(0, 0, west.shape), simplify=simplify)]
    sheets.append(view("b", east, at(0, 20, east.shape), simplify=simplify))
    layer = one_layer(sheets, HOW)
    frame = merged(layer)
    assert (layer.counts.joined, len(frame)) == ((1, 3) if simplify else (0, 4))
    assert set(frame.geom_type) == {"Polygon"}
    assert max(frame["area_m2"]) == pytest.approx((19 if simplify else 10) * 8 * 0.09, rel=0.05)


@pytest.mark.parametrize("simplify", [0.0, 1.0])
def test_neighbours_at_a_border_stay_apart(simplify: float) -> None:
    """A corner is no edge, and what ends well before the border is not cut by it; nor are two classes one building."""
    west = blocks(40, 20, (2, 10, 12, 20), (20, 28, 9, 17), (30, 38, 12, 20))
    east = blocks(40, 20, (10, 18, 0, 8), (20, 28, 0, 8), (30, 38, 0, 8)) * np.where(np.arange(40) < 29, 1, 2)[:, None]
    for gap in (0, 0.6):
        sheets = [view("a", west, at(0, 0, west.shape), simplify=simplify)]
        sheets.append(view("b", east.astype(np.uint8), at(0, 20 + gap, east.shape), simplify=simplify))
        layer = one_layer(sheets, HOW)
        assert layer.counts.joined == 0
        assert len(merged(layer)) == 6


@pytest.mark.parametrize("shift", [-1.3, -0.4, 0.4, 1.3])
@pytest.mark.parametrize("simplify", [0.0, 1.0])
def test_grids_that_do_not_coincide_leave_no_gap(shift: float, simplify: float) -> None:
    west, east = blocks(30, 20, (4, 20, 5, 20)), blocks(30, 20, (4, 20, 0, 9))
    sheets = [
        view("a", west, at(0, 0, west.shape), simplify=simplify),
        view("b", east, at(0.3, 20 + shift, east.shape), simplify=simplify),
    ]
    frame = merged(one_layer(sheets, HOW))
    (shape,) = frame.geometry
    assert shape.geom_type == "Polygon"
    assert not shape.interiors
    assert shape.area == pytest.approx(16 * (24 + shift) * 0.09, rel=0.02)
    assert (
        shapely.area(shapely.difference(shapely.union_all([s.results.frame.geometry[0] for s in sheets]), shape)) < 1e-6
    )


def test_sheets_too_far_apart_are_not_joined() -> None:
    west, east = blocks(30, 20, (4, 20, 5, 20)), blocks(30, 20, (4, 20, 0, 9))
    sheets = [view("a", west, at(0, 0, west.shape)), view("b", east, at(0, 23, east.shape))]
    assert len(merged(one_layer(sheets, HOW))) == 2


def rasterised(shapes: list[Any], crs: str, geobox: GeoBox, keep: Callable[[Any, Any], Any]) -> NDArray[np.uint8]:
    """Labels of polygons in a CRS on a grid, nodata where `keep` of longitude and latitude is false."""
    from rasterio.features import rasterize

    own = transformed(np.array(shapes), CRS.from_user_input(crs), CRS.from_wkt(geobox.crs.wkt))
    labels = rasterize(own, geobox.shape, transform=geobox.affine, dtype="uint8")
    rows, cols = np.indices(geobox.shape)
    x, y = geobox.affine @ (cols + 0.5, rows + 0.5)
    lon, lat = Transformer.from_crs(geobox.crs, 4326, always_xy=True).transform(x, y)
    return np.where(keep(lon, lat), labels, NODATA).astype(np.uint8)


@pytest.mark.parametrize("simplify", [0.0, 1.0])
def test_two_utm_zones_meet_at_their_meridian(simplify: float) -> None:
    """Sheets that end at 12 degrees east, whose grids are turned by some five degrees against each other."""
    centre = 12.0, 47.3
    local = f"+proj=laea +lat_0={centre[1]} +lon_0={centre[0]} +ellps=WGS84"
    houses = [shapely.affinity.rotate(shapely.box(-9, y, 8, y + 11), 17 * n) for n, y in enumerate(range(-92, 80, 24))]
    houses += [shapely.box(12, y, 20, y + 8) for y in range(-92, 80, 24)]
    side, views = 0.5, []
    for name, zone, keep in (("a", 32632, lambda lon, _: lon < 12), ("b", 32633, lambda lon, _: lon >= 12)):
        x, y = Transformer.from_crs(4326, zone, always_xy=True).transform(*centre)
        geobox = GeoBox((420, 400), rasterio.Affine(side, 0, round(x) - 100, 0, -side, round(y) + 105), f"EPSG:{zone}")
        views.append(view(name, rasterised(houses, local, geobox, keep), geobox, simplify=simplify))
    layer = one_layer(views, HOW)
    frame = merged(layer)
    assert frame.crs.to_epsg() == 4326
    assert layer.counts.joined == 8
    assert len(frame) == len(houses)
    assert not shapely.get_num_interior_rings(frame.geometry.to_numpy()).any()
    assert set(frame.geom_type) == {"Polygon"}
    back = frame.geometry.to_crs(local)
    pieces = np.concatenate([each.results.frame.geometry.to_crs(local).to_numpy() for each in views])
    for house in houses:
        (best,) = back[shapely.area(shapely.intersection(back.to_numpy(), house)) > 0.5 * house.area]
        assert best.intersection(house).area / best.union(house).area > 0.88
        own = shapely.union_all(pieces[shapely.intersects(pieces, house.buffer(-1))])
        assert best.difference(own.convex_hull.buffer(0.01)).area < 0.01, "a bridge bulges"
        assert best.area < 1.04 * max(own.area, house.area)
    assert equal(frame, merged(one_layer(views[::-1], HOW, cell=0.0002)))


# --- scenes that overlap


def two(first: View, second: View, **how: Any) -> gpd.GeoDataFrame:
    return merged(one_layer([first, second], Merge(**how)))


def test_the_better_view_is_kept() -> None:
    labels = blocks(30, 30, (10, 16, 10, 17))
    old, new = dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    a = view("a", labels, at(0, 0, labels.shape), 200, new)
    b = view("b", labels, at(0.4, 0, labels.shape), 240, old)
    c = view("c", labels, at(0, 0.4, labels.shape), 220)
    assert list(two(a, b)["id"]) == ["b/r10c10"]
    assert list(two(a, b, keep="date")["id"]) == ["a/r10c10"]
    assert list(two(b, c, keep="date")["id"]) == ["b/r10c10"]  # an unknown date is the last
    near = np.pad(labels, ((0, 40), (0, 40)))
    d = view("d", near, at(0, 0, near.shape), 130)
    wide = np.pad(labels, 20)
    e = view("e", wide, at(-20, -20, wide.shape), 130)
    assert list(two(d, e, keep="edge")["id"]) == ["e/r30c30"]
    assert list(two(d, e)["id"]) == ["d/r10c10"]  # of equals, the scene that comes first
    frame = merged(one_layer([a, b, c, d], HOW))
    assert list(frame["views"]) == [4]


@pytest.mark.parametrize("keep", ["confidence", "date", "edge"])
def test_what_an_edge_cuts_gives_way(keep: Any) -> None:
    whole = blocks(30, 40, (10, 16, 10, 27))
    sure = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    cut = cut_out(whole, "a", slice(30), slice(20), codes=250, when=sure)
    hidden = whole.copy()
    hidden[:, 20:] = NODATA
    behind = view("c", hidden, at(0, 0, whole.shape), 250, sure)
    full = view("b", whole, at(0, 0, whole.shape), 130)
    for other in (cut, behind):
        frame = two(other, full, keep=keep)
        assert list(frame["id"]) == ["b/r10c10"]
        assert list(frame["views"]) == [2]


def test_two_views_that_the_same_edge_cuts_are_one() -> None:
    """Of two dates, in the same sheet, or in sheets a pixel apart."""
    for shift in (0, 1, 0.5):
        a = view("a", blocks(30, 20, (10, 20, 8, 20)), at(0, 0, (30, 20)), 200)
        b = view("b", blocks(30, 20, (11, 21, 9, 20)), at(0, shift, (30, 20)), 230)
        layer = one_layer([a, b], HOW)
        assert layer.counts.joined == 0
        assert list(merged(layer)["id"]) == ["b/r11c9"]


def test_a_block_over_houses_leaves_out_no_other() -> None:
    """It matches three houses; each of them stays if it is better, and nothing follows from who was left out."""
    houses, block = blocks(30, 60, *[(10, 20, c, c + 9) for c in (10, 20, 30)]), blocks(30, 60, (10, 20, 10, 39))
    a, b = view("a", houses, at(0, 0, houses.shape), 200), view("b", block, at(0, 0, block.shape), 150)
    assert list(two(a, b)["id"]) == ["a/r10c10", "a/r10c20", "a/r10c30"]
    better = replace(b, results=view("b", block, b.geobox, 240).results)
    assert list(two(a, better)["id"]) == ["b/r10c10"]
    # a suppresses b, which would have suppressed c: c stays
    nodes = Nodes(
        np.arange(3, dtype=np.int32), np.zeros(3, np.int64), np.zeros(3, bool), np.array([3.0, 2.0, 1.0]),
        np.ones(3), np.ones(3), np.ones(3), np.zeros(3, bool), np.zeros(3, np.int8), np.zeros((3, 4)),
    )  # fmt: skip
    pairs = Pairs(np.array([0, 1]), np.array([1, 2]), np.full(2, MATCHING, np.int8), np.ones((2, 2)))
    assert decide(nodes, pairs, 0.5).kept.tolist() == [True, False, True]


def test_a_shed_does_not_stand_for_the_house_around_it() -> None:
    """However sure its scene is: what is left out must be there by the share that matching asks for."""
    shed, house = blocks(30, 30, (12, 14, 12, 14)), blocks(30, 30, (10, 20, 10, 20))
    a, b = view("a", shed, at(0, 0, shed.shape), 245), view("b", house, at(0, 0, house.shape), 150)
    frame = two(a, b)
    assert frame["area_m2"].sum() == pytest.approx(100 * 0.09, rel=0.01)
    assert "b/r10c10" in set(frame["id"])


def test_an_outline_that_changes_tells_what_is_known_of_it() -> None:
    """A building in two sheets of which one is less sure: measured anew, and nothing is said that only pixels tell."""
    whole = blocks(20, 40, (4, 12, 10, 27), (14, 17, 2, 6))
    codes = np.where(np.arange(40) < 20, 240, 210)[None].repeat(20, 0).astype(np.uint8)
    codes[5, 12] = 130
    west, east = (
        view(name, whole[:, cols], at(0, cols.start, (20, 20)), codes[:, cols])
        for name, cols in (("w", slice(0, 20)), ("e", slice(20, 40)))
    )
    frame = merged(one_layer([west, east], HOW)).set_index("id")
    together, alone = frame.loc["w/r4c10"], frame.loc["w/r14c2"]
    expected = view("whole", whole, at(0, 0, whole.shape), codes).results.frame.set_index("id").loc["r4c10"]
    assert together["vertices"] == len(together["geometry"].exterior.coords) - 1
    for name in ("area_m2", "perimeter_m", "confidence", "confidence_min"):
        assert together[name] == pytest.approx(expected[name], abs=0.011), name
    assert abs((together["orientation_deg"] - expected["orientation_deg"] + 90) % 180 - 90) < 0.2
    assert np.isnan(together["edge_sharpness"])
    assert together["touches_edge"]
    own = west.results.frame.set_index("id").loc["r14c2"]
    pd.testing.assert_series_equal(alone.drop(["views", "geometry"]), own.drop("geometry"), check_names=False)


def test_results_of_earlier_versions_are_merged_with_what_they_tell() -> None:
    """What is missing is found out again or null; the columns and their types are those of all."""
    labels = blocks(20, 20, (2, 6, 2, 9), (10, 14, 14, 20))
    new, far = (view(name, labels, at(0, col, labels.shape)) for name, col in (("n", 0), ("o", 500)))
    joins = view("p", blocks(20, 20, (10, 14, 0, 3)), at(0, 520, (20, 20)))
    gone = ["confidence_min", "edge_sharpness", "touches_edge", "vertices", "orientation_deg"]
    old = replace(far, results=Drawn(labels, far.results.frame.drop(columns=gone)))
    frames = list(one_layer([new, old, joins], HOW).frames())
    assert len({tuple(frame.dtypes.astype(str)) for frame in frames}) == 1
    frame = pd.concat(frames).set_index("id")
    today = merged(one_layer([new, far, joins], HOW)).set_index("id")
    assert list(frame.columns) == list(today.columns)
    for name in ("vertices", "orientation_deg", "area_m2"):
        pd.testing.assert_series_equal(frame[name], today[name])
    assert frame.loc["n/r2c2", "confidence_min"] == 0.8
    assert frame.loc[["o/r2c2", "o/r10c14"], ["confidence_min", "edge_sharpness"]].isna().all(axis=None)
    assert frame.loc["o/r10c14", "views"] == 2
    assert frame["touches_edge"].isna().sum() == 1
    assert frame.loc["o/r10c14", "touches_edge"], "its other piece says so"
    assert not frame.loc["n/r2c2", "touches_edge"]


def test_ground_that_is_shared_goes_to_the_better_one() -> None:
    a = view("a", blocks(30, 40, (10, 20, 8, 18)), at(0, 0, (30, 40)), 200)
    b = view("b", blocks(30, 40, (10, 20, 15, 30)), at(0, 0, (30, 40)), 230)
    frame = two(a, b)
    assert list(frame["id"]) == ["a/r10c8", "b/r10c15"]
    np.testing.assert_allclose(frame.area / 0.09, [70, 150])
    np.testing.assert_allclose(frame["area_m2"], measure(frame.geometry.to_numpy(), a.geobox)[0], atol=0.006)
    assert frame["perimeter_m"][0] == pytest.approx(2 * (7 + 10) * 0.3, rel=2e-3)
    assert frame["views"].tolist() == [1, 1]
    assert list(two(a, b, overlap=0.2)["id"]) == ["b/r10c15"]


def test_pieces_below_the_least_area_go() -> None:
    """A bar across a house: its short end goes, the long one stays; if it is nothing but short ends, all of it goes."""
    house = view("b", blocks(40, 40, (0, 40, 10, 20)), at(0, 0, (40, 40)), 230)
    house = replace(house, results=view("b", blocks(40, 40, (2, 38, 10, 20)), house.geobox, 230).results)
    bar = view("a", blocks(40, 40, (10, 14, 7, 35)), at(0, 0, (40, 40)), 200, min_area=2.0)
    frame = two(bar, house)
    np.testing.assert_allclose(frame.area / 0.09, [4 * 15, 36 * 10])
    short = view("a", blocks(40, 40, (10, 14, 5, 25)), at(0, 0, (40, 40)), 200, min_area=2.0)
    layer = one_layer([short, house], Merge(overlap=0.9))
    assert list(merged(layer)["id"]) == ["b/r2c10"]
    assert layer.counts.covered == 1
    both = merged(one_layer([replace(short, min_area=1.0), house], Merge(overlap=0.9)))
    assert list(both.geom_type) == ["MultiPolygon", "Polygon"]
    np.testing.assert_allclose(both.area / 0.09, [40, 360])


def test_scenes_at_the_180th_meridian_are_refused_if_they_must_meet_there() -> None:
    labels = blocks(30, 30, (4, 9, 4, 9))
    x = Transformer.from_crs(4326, 32660, always_xy=True).transform(180, -17)
    west = view("w", labels, GeoBox((30, 30), rasterio.Affine(1, 0, x[0] - 40, 0, -1, x[1]), "EPSG:32660"))
    x = Transformer.from_crs(4326, 32601, always_xy=True).transform(-180, -17)
    east = view("e", labels, GeoBox((30, 30), rasterio.Affine(1, 0, x[0] + 4, 0, -1, x[1]), "EPSG:32601"))
    with pytest.raises(OptionError, match="180th meridian"):
        one_layer([west, east], HOW)
    assert common_crs([west, west]).to_epsg() == 32660


# --- files


def test_files_made_in_parts_are_those_made_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    labels = (np.random.default_rng(2).random((30, 41)) < 0.4).astype(np.uint8)
    frame = view("a", labels, at(0, 0, labels.shape), when=dt.datetime(2024, 5, 1, tzinfo=dt.UTC)).results.frame
    write_geojson(frame, tmp_path / "whole.geojson")
    write_parquet(frame, tmp_path / "whole.parquet")
    for step in (7, 1000):
        monkeypatch.setattr("geoseg.io.geoparquet.ROWS_TOGETHER", 16)
        with parquet_file(tmp_path / "parts.parquet") as rows, geojson_file(tmp_path / "parts.geojson") as features:
            for start in range(0, len(frame) + step, step):
                rows(frame.iloc[start : start + step])
                features(frame.iloc[start : start + step])
        assert (tmp_path / "parts.geojson").read_bytes() == (tmp_path / "whole.geojson").read_bytes()
        back, bounds = gpd.read_parquet(tmp_path / "parts.parquet"), frame.total_bounds
        assert equal(back, frame)
        assert back.crs == frame.crs
        some = (bounds[0], bounds[1], bounds[0] + 3, bounds[1] + 2)
        assert equal(
            gpd.read_parquet(tmp_path / "parts.parquet", bbox=some),
            gpd.read_parquet(tmp_path / "whole.parquet", bbox=some),
        )
        about = pq.read_metadata(tmp_path / "parts.parquet")
        wanted, told = (
            json.loads(pq.read_metadata(tmp_path / f"{n}.parquet").metadata[b"geo"])["columns"]["geometry"]
            for n in ("whole", "parts")
        )
        assert {key: told[key] for key in wanted} == wanted
        assert about.num_row_groups == -(-len(frame) // 16)
        (tmp_path / f"{step}.parquet").write_bytes((tmp_path / "parts.parquet").read_bytes())
    assert (tmp_path / "7.parquet").read_bytes() == (tmp_path / "1000.parquet").read_bytes()


@pytest.fixture
def archive(tiny_model: Path, tmp_path: Path) -> tuple[Path, Any]:
    """Two scenes of one ground that overlap by a third, mapped: OUT and its job."""
    whole = picture(130, 150, 4)
    from conftest import write_tif

    write_tif(tmp_path / "a.tif", whole[:, :, :90])
    write_tif(tmp_path / "b.tif", whole[:, :, 60:], transform=BANEPA @ rasterio.Affine.translation(60, 0))
    job = job_of(tiny_model, ["*.tif"])
    carry_out(job, tmp_path)
    return tmp_path / "maps", job


def test_the_command_merges_and_verify_proves_it(
    archive: tuple[Path, Any],
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
) -> None:
    out, job = archive
    status, told, err = command("merge", out)
    assert (status, err) == (0, "")
    frame = gpd.read_parquet(out / "footprints.parquet")
    own = {name: gpd.read_parquet(out / name / "footprints.parquet") for name in "ab"}
    assert told.splitlines()[0].startswith(f"{len(frame)} footprints of 2 scenes: ")
    assert told.splitlines()[1:] == [str(out / "footprints.parquet"), str(out / "footprints.geojson")]
    assert list(frame.columns) == [*(c for c in own["a"].columns if c != "geometry"), "views", "geometry"]
    assert 0 < len(frame) < len(own["a"]) + len(own["b"])
    assert (frame["views"] == 2).any()
    drawn = gpd.read_file(out / "footprints.geojson")
    assert list(drawn["id"]) == list(frame["id"])
    assert drawn.crs.to_epsg() == 4326
    collection = json.loads((out / "collection.json").read_text("utf-8"))
    assert {"footprints", "footprints_parquet", "items"} <= set(collection["assets"])
    assert collection["geoseg:merge"]["counts"]["footprints"] == len(frame)
    before = {
        p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (out / "footprints.parquet", out / "footprints.geojson")
    }
    assert command("merge", out)[1].startswith("Nothing left to do")
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before} == before
    assert command("merge", out, "--overwrite")[0] == 0
    assert {p: p.read_bytes() for p in before} == {p: content for p, (content, _) in before.items()}
    # a run that does nothing keeps it, verify finds what is wrong with it
    carry_out(job, tmp_path)
    assert json.loads((out / "collection.json").read_text("utf-8"))["assets"].keys() == collection["assets"].keys()
    assert verify(out).findings == ()
    (out / "footprints.geojson").write_text("{}", "utf-8")
    assert [what for _, what in verify(out).findings] == [
        "footprints.geojson: its checksum is not that of its collection; it was changed or damaged"
    ]
    assert not command("merge", out)[1].startswith("Nothing")
    assert verify(out).findings == ()
    assert not command("merge", out, "--keep", "edge")[1].startswith("Nothing")
    scene(tmp_path / "c.tif", 1)
    carry_out(job, tmp_path)
    assert ["renews it" in what for _, what in verify(out).findings] == [True]
    (out / "footprints.parquet").unlink()
    assert "footprints.parquet: is not there" in [what for _, what in verify(out).findings]


def test_a_job_may_ask_for_it(archive: tuple[Path, Any], tmp_path: Path) -> None:
    out, job = archive
    report = carry_out(job.model_copy(update={"merge": Merge(keep="edge")}), tmp_path)
    assert report.merged is not None
    assert report.merged.anew
    assert report.merged.footprints == len(gpd.read_parquet(out / "footprints.parquet"))
    assert verify(out).findings == ()
    again = carry_out(job.model_copy(update={"merge": Merge(keep="edge")}), tmp_path)
    assert again.merged == replace(report.merged, anew=False)
    content = json.loads((out / "collection.json").read_text("utf-8"))
    del content["geoseg:merge"]
    (out / "collection.json").write_text(json.dumps(content), "utf-8")
    assert [what for _, what in verify(out).findings] == ["footprints.parquet: is not there; `geoseg merge` makes it"]


def test_what_cannot_be_merged_is_told(
    archive: tuple[Path, Any],
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
) -> None:
    out, _ = archive
    (tmp_path / "empty").mkdir()
    status, _, err = command("merge", tmp_path / "empty")
    assert status == 2
    assert "holds no results of an archive run" in err
    assert command("merge", out, "--overlap", "0")[0] == 2
    content = json.loads((out / "collection.json").read_text("utf-8"))
    for background, says in ((None, "no background class"), ("absent", "earlier version")):
        content["geoseg:background"] = background
        if background == "absent":
            del content["geoseg:background"]
        (out / "collection.json").write_text(json.dumps(content), "utf-8")
        status, _, err = command("merge", out)
        assert status == 2
        assert says in err
    landcover = RunJob.model_validate({"product": "landcover", "scenes": {"files": ["*.tif"]}, "merge": {}})
    with pytest.raises(OptionError, match="no background class"):
        carry_out(landcover, tmp_path)
    content["geoseg:background"] = 0
    (out / "collection.json").write_text(json.dumps(content), "utf-8")
    (out / "a" / "footprints.parquet").write_bytes(b"nothing")
    with pytest.raises(OutputError, match=r"footprints\.parquet: cannot be read"):
        merge(out, HOW)
    (out / "a" / "labels.tif").write_bytes(b"nothing")
    with pytest.raises(OutputError, match=r"labels\.tif: cannot be read"):
        FileResults(out / "a").valid(Window(0, 2, 0, 2))


def test_outlines_that_were_smoothed_may_end_further_from_the_edge(tmp_path: Path) -> None:
    properties = {
        "proj:code": "EPSG:32645",
        "proj:shape": [40, 50],
        "proj:transform": [0.3, 0, 334_000, 0, -0.3, 3_057_000],
        "geoseg:datetime_known": False,
    }
    for more, pixels in (({}, 1.0), ({"smooth": 0.6}, 3.0)):
        told = {**properties, "geoseg:parameters": {"simplify": 1.0, "min_area": 4.0, **more}}
        assert _view(tmp_path, {"id": "town", "properties": told}).simplify == pytest.approx(pixels, rel=1e-3)


ITEM: dict[str, Any] = {
    "id": "town",
    "properties": {
        "proj:code": "EPSG:32645",
        "proj:shape": [40, 50],
        "proj:transform": [0.3, 0, 334_000, 0, -0.3, 3_057_000],
        "geoseg:datetime_known": True,
        "datetime": "2024-05-01T00:00:00Z",
        "geoseg:parameters": {"simplify": 1.0, "min_area": 4.0},
    },
    "assets": {"footprints_parquet": {"file:checksum": "1220aa"}, "labels": {"file:checksum": "1220bb"}},
}


def test_a_layer_is_known_by_all_that_it_is_made_of(tmp_path: Path) -> None:
    """Whatever changes of a result that merging looks at; in which order results are found says nothing."""

    def known_by(*items: dict[str, Any]) -> str:
        for item in items:
            (tmp_path / item["id"]).mkdir(exist_ok=True)
            (tmp_path / item["id"] / "item.json").write_text(json.dumps(item), "utf-8")
        return _fingerprint([_view(tmp_path / item["id"], item) for item in items], tmp_path)

    def other(*keys: str, value: Any) -> dict[str, Any]:
        item: dict[str, Any] = json.loads(json.dumps(ITEM))
        inner = item
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return item

    second = other("id", value="village")
    found = [known_by(ITEM), known_by(second), known_by(ITEM, second)]
    found.append(known_by(other("assets", "footprints_parquet", "file:checksum", value="1220cc")))
    found.append(known_by(other("assets", "labels", "file:checksum", value="1220cc")))
    found.append(known_by(other("properties", "datetime", value="2024-05-02T00:00:00Z")))
    found.append(known_by(other("properties", "geoseg:datetime_known", value=False)))
    found.append(known_by(other("properties", "geoseg:parameters", "simplify", value=2.0)))
    found.append(known_by(other("properties", "geoseg:parameters", "min_area", value=2.0)))
    assert len(set(found)) == len(found)
    assert known_by(second, ITEM) == found[2]


def test_a_grid_without_a_code_is_known_by_its_words(tmp_path: Path) -> None:
    properties = {**ITEM["properties"], "proj:code": None, "proj:wkt2": CRS.from_epsg(32645).to_wkt()}
    assert _view(tmp_path, {**ITEM, "properties": properties}).geobox.crs.to_epsg() == 32645
    del properties["proj:wkt2"]
    with pytest.raises(OutputError, match=r"item\.json: not the item of a result: KeyError: .*; map the scene again"):
        _view(tmp_path, {**ITEM, "properties": properties})


def test_results_are_read_as_they_lie_in_files(tmp_path: Path) -> None:
    """By window and with fewer pixels, too; and what holds no footprint has its columns."""
    from conftest import write_tif

    labels = np.zeros((20, 30), np.uint8)
    labels[3:5, 10:30] = NODATA
    write_tif(tmp_path / "labels.tif", labels, nodata=NODATA)
    results = FileResults(tmp_path)
    np.testing.assert_array_equal(results.valid(Window(2, 6, 8, 25)), labels[2:6, 8:25] != NODATA)
    np.testing.assert_array_equal(results.valid(Window(0, 20, 0, 30), (10, 15)), labels[1::2, 1::2] != NODATA)
    frame = view("a", blocks(20, 30, (2, 6, 2, 9), (9, 14, 20, 28)), at(0, 0, (20, 30))).results.frame
    for some in (frame, frame.iloc[:0]):
        write_parquet(some, tmp_path / "footprints.parquet")
        (back,) = FileResults(tmp_path).footprints()
        assert list(back.columns) == list(frame.columns)
        assert list(back["id"]) == list(some["id"])
        assert FileResults(tmp_path).columns() == set(frame.columns) - {"geometry"}
        (near,) = FileResults(tmp_path).footprints(tuple(frame.geometry[1].bounds))
        assert list(near["id"]) == list(some["id"])[1:]
