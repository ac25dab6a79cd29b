"""Buildings made regular: square where they are, round where they are, and neighbours still."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
import shapely.affinity
from conftest import BANEPA
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio import Affine
from rasterio.features import rasterize
from scipy import ndimage
from test_vectors import LEGEND, covers

from geoseg import regularise
from geoseg.footprints import GroundSeparation, Layer, _keep_apart, footprints
from geoseg.polygonise import Objects, polygonise_whole
from geoseg.regularise import Style, regularised, without_overlaps
from geoseg.separate import Separation
from geoseg.simplify import simplified
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXEL = (0.25, 0.25)


def traced(shapes: list[Any], size: int = 120) -> Objects:
    """Shapes burnt into pixels, each apart from the others."""
    number = rasterize(zip(shapes, range(1, len(shapes) + 1), strict=True), (size, size), dtype="uint8")
    score = np.where(number > 0, 250, 0).astype(np.uint8)
    inner = ndimage.minimum_filter(number, 3) == ndimage.maximum_filter(number, 3)
    score[~inner] = 0
    return polygonise_whole((number > 0).astype(np.uint8), score=score, separation=Separation(1.0, 9))


def drawn(objects: Objects, **style: Any) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    return regularised(objects.geometry, objects.block, 1.0, PIXEL, style=Style(**style))


def angles(polygon: Any) -> NDArray[np.float64]:
    """Of all corners, in degrees from 0 to 180."""
    found = []
    for ring in shapely.get_rings(polygon):
        way = np.diff(shapely.get_coordinates(ring), axis=0)
        heading = np.degrees(np.arctan2(way[:, 1], way[:, 0]))
        found.append((np.diff(heading, append=heading[:1])) % 180)
    return np.concatenate(found)


def iou(one: Any, other: Any) -> float:
    return float(one.intersection(other).area / one.union(other).area)


# --- one building


@settings(max_examples=40, deadline=None)
@given(st.floats(-90, 90), st.integers(14, 60), st.integers(14, 60), st.floats(0, 1))
@example(45.0, 40, 30, 0.0)
@example(0.0, 20, 50, 0.5)
def test_a_rectangle_has_four_corners_wherever_it_points(turn: float, width: int, height: int, shift: float) -> None:
    box = shapely.affinity.rotate(shapely.box(60 - width / 2, 60 - height / 2, 60 + width / 2, 60 + height / 2), turn)
    shape = shapely.affinity.translate(box, shift, shift / 3)
    objects = traced([shape])
    (polygon,), (done,) = drawn(objects)
    assert done
    assert shapely.get_num_coordinates(polygon) == 5
    np.testing.assert_allclose(angles(polygon), 90, atol=0.5)
    assert iou(polygon, shape) > 1 - 0.6 * shape.length / shape.area, "half a pixel on each side"
    assert polygon.area == pytest.approx(objects.geometry[0].area, rel=0.04), "lines lie where outlines are on average"


@pytest.mark.parametrize("turn", [0, 17, 45, 71])
def test_an_l_and_a_courtyard_keep_their_corners(turn: float) -> None:
    corner = shapely.box(20, 20, 100, 100) - shapely.box(60, 60, 110, 110)
    yard = shapely.box(20, 20, 100, 100) - shapely.box(40, 40, 80, 70)
    for shape, vertices in ((corner, 6), (yard, 8)):
        turned = shapely.affinity.rotate(shape, turn, origin=(60, 60))
        (polygon,), (done,) = drawn(traced([turned]))
        assert done
        assert shapely.get_num_coordinates(polygon) - len(shapely.get_rings(polygon)) == vertices
        np.testing.assert_allclose(angles(polygon), 90, atol=0.5)
        assert iou(polygon, turned) > 0.95


def test_a_ragged_wall_is_straight_and_a_speck_of_a_hole_is_gone() -> None:
    labels = np.zeros((100, 120), np.uint8)
    labels[20:80, 20:100] = 1
    rng = np.random.default_rng(0)
    for col in range(20, 100):
        labels[20 : 20 + rng.integers(0, 3), col] = 0
    labels[40:42, 50:52] = 0
    (polygon,), (done,) = drawn(polygonise_whole(labels))
    assert done
    assert shapely.get_num_coordinates(polygon) == 5
    assert polygon.area == pytest.approx(labels.sum(), rel=0.01)


def test_what_is_round_stays_round() -> None:
    tank, house = shapely.Point(40, 60).buffer(20), shapely.box(70, 30, 110, 70)
    polygons, done = drawn(traced([tank, house]))
    assert done.all()
    round_one = next(p for p in polygons if p.intersects(shapely.Point(40, 60)))
    square = next(p for p in polygons if p.intersects(shapely.Point(90, 50)))
    assert shapely.get_num_coordinates(round_one) > 12
    distance = np.hypot(*(shapely.get_coordinates(round_one) - np.array([40, 60])).T)
    assert np.ptp(distance) < 1.5
    assert round_one.area == pytest.approx(tank.area, rel=0.02)
    assert shapely.get_num_coordinates(square) == 5
    octagon = shapely.Polygon([(20, 40), (40, 20), (80, 20), (100, 40), (100, 80), (80, 100), (40, 100), (20, 80)])
    assert shapely.get_num_coordinates(drawn(traced([octagon]))[0][0]) == 9


def test_a_long_slanting_wall_stays_so() -> None:
    shape = shapely.Polygon([(20, 20), (100, 20), (100, 60), (60, 100), (20, 100)])
    (polygon,), (done,) = drawn(traced([shape]))
    assert done
    assert shapely.get_num_coordinates(polygon) == 6
    assert iou(polygon, shape) > 0.97


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(10, 40)] * 4), st.integers(-90, 90), st.integers(0, 20))
@example((20, 26, 16, 40), -46, 0)
@example((10, 10, 38, 28), 2, 6)
@example((30, 30, 30, 30), 0, 8)
def test_walls_have_no_kinks(cut: tuple[int, int, int, int], turn: float, bulge: int) -> None:
    """A wall that is neither along nor across is 20 degrees off both, and off the slanting one that follows it."""
    one, two, three, four = cut
    middle = (20 + (three - bulge) / 2, 100 - (four - bulge) / 2)
    corners = [(20, 20), (100, 20), (100, 100 - two), (100 - one, 100), (20 + three, 100), middle, (20, 100 - four)]
    shape = shapely.affinity.rotate(shapely.Polygon(corners), turn, origin=(60, 60))
    (polygon,), (done,) = drawn(traced([shape]))
    assert done
    off = angles(polygon)
    assert np.minimum(off, 180 - off).min() >= 20 - 0.05
    assert iou(polygon, shape) > 0.85


def test_what_would_be_another_is_left_as_it_was_simplified() -> None:
    """A thin slanting cross, with a step as large as itself."""
    cross = (
        shapely.LineString([(20, 20), (100, 60)]).buffer(2).union(shapely.LineString([(30, 90), (80, 25)]).buffer(2))
    )
    objects = traced([cross])
    (polygon,), (done,) = drawn(objects, iou=0.97)
    assert not done
    assert polygon.equals_exact(simplified(objects.geometry, objects.block, 1.0)[0])


def test_a_step_is_levelled_where_the_outline_is_as_rough() -> None:
    """A bay of three pixels, 0.75 m: it has its corners where walls are even, and none where they are not."""
    even = np.zeros((120, 140), np.uint8)
    even[23:100, 20:120], even[20:100, 30:110] = 1, 1
    rough = even.copy()
    wave = np.arange(140) // 2 % 2 * 2 - 1
    for col in range(20, 120):
        top = (20 if 30 <= col < 110 else 23) + wave[col]
        rough[15:30, col] = np.arange(15, 30) >= top
    for labels, corners in ((even, 8), (rough, 4)):
        (polygon,), (done,) = drawn(polygonise_whole(labels))
        assert done
        assert shapely.get_num_coordinates(polygon) - 1 == corners


# --- neighbours


def test_neighbours_whose_walls_tell_their_directions_keep_them() -> None:
    """Three degrees apart, which outlines as exact as these leave no doubt about."""
    one = shapely.box(10, 20, 60, 100)
    other = shapely.affinity.rotate(shapely.box(60, 20, 112, 100), 3, origin=(60, 60))
    polygons, done = drawn(traced([one, other - one]))
    assert done.all()
    ways = [np.diff(shapely.get_coordinates(p.exterior), axis=0) for p in polygons]
    turns = [np.degrees(np.arctan2(w[:, 1], w[:, 0])) for w in ways]
    longest = [turn[np.argmax(np.hypot(*w.T))] % 90 for turn, w in zip(turns, ways, strict=True)]
    apart = abs(longest[0] - longest[1]) % 90
    assert min(apart, 90 - apart) == pytest.approx(3, abs=0.7)
    assert polygons[0].intersection(polygons[1]).area < 1e-3


@pytest.mark.parametrize("metres", [(0.25, 0.25), (0.2, 0.3)])
def test_what_gives_way_keeps_its_right_angles(metres: tuple[float, float]) -> None:
    """Cut along its own walls on the ground, where a unit is not as wide as high, too; without a step at the end."""
    hall = shapely.affinity.rotate(shapely.box(0, 0, 20, 30), 3)
    east = hall.bounds[2]
    shed = shapely.box(east - 2, 3, east + 15, 26)
    units = np.array([shapely.transform(p, lambda xy: xy / metres) for p in (hall, shed)], object)
    (hall_now, shed_now), cut = without_overlaps(units, metres=metres)
    assert cut.tolist() == [False, True]
    assert hall_now.intersection(shed_now).area == 0
    ground = shapely.transform(shed_now, lambda xy: xy * metres)
    assert shapely.get_num_coordinates(ground) == 5
    np.testing.assert_allclose(angles(ground), 90, atol=1e-6)
    assert 0.93 * (shed - hall).area <= ground.area < (shed - hall).area
    slanting = shapely.transform(without_overlaps(units)[0][1], lambda xy: xy * metres)
    assert not np.allclose(angles(slanting), 90, atol=1), "as the other lies"


@pytest.mark.parametrize("metres", [(0.25, 0.25), (0.2, 0.3)])
@pytest.mark.parametrize(("deep", "corners"), [(0.5, 4), (1.5, 8)])
@pytest.mark.parametrize("turn", [0, 30])
def test_a_shallow_cut_takes_the_whole_wall(
    metres: tuple[float, float], deep: float, corners: int, turn: float
) -> None:
    """No step is left that is less than two and a half pixels; a deeper one is, as the building has it."""
    shed = shapely.box(20 - deep, -6, 30, 20)
    units = np.array(
        [
            shapely.transform(shapely.affinity.rotate(p, turn, origin=(0, 0)), lambda xy: xy / metres)
            for p in (shapely.box(-30, 0, 20, 12), shed)
        ],
        object,
    )
    (_, left), cut = without_overlaps(units, metres=metres, shallow=0.6)
    assert cut.tolist() == [False, True]
    assert shapely.get_num_coordinates(left) == corners + 1
    lost = 26 if corners == 4 else 12  # metres of wall
    assert left.area * np.prod(metres) == pytest.approx(shed.area - lost * deep, abs=0.1)
    assert left.intersection(units[0]).area == 0


def test_what_gives_way_is_cut_along_the_other_where_square_cuts_cost_too_much() -> None:
    hall = shapely.affinity.rotate(shapely.box(0, 0, 40, 40), 45)
    shed = shapely.box(40, 5, 58, 35)
    (_, left), cut = without_overlaps(np.array([hall, shed], object), metres=(1.0, 1.0))
    assert cut.tolist() == [False, True]
    assert left.equals(shed - hall)


@pytest.mark.parametrize("turn", [0, 11, 33, 45])
def test_a_terrace_keeps_its_walls(turn: float) -> None:
    """Five houses of two depths: no gap, no overlap, one direction."""
    houses = [shapely.box(10 + 20 * i, 40, 30 + 20 * i, 70 + 8 * (i % 2)) for i in range(5)]
    houses = [shapely.affinity.rotate(house, turn, origin=(60, 55)) for house in houses]
    objects = traced(houses)
    assert len(objects) == 5
    polygons, done = drawn(objects)
    assert done.all()
    overlap = sum(a.intersection(b).area for i, a in enumerate(polygons) for b in polygons[:i])
    assert overlap < 0.05
    whole = shapely.union_all(shapely.buffer(polygons, 0.01))
    assert whole.geom_type == "Polygon"
    gaps = whole.buffer(0.5, join_style="mitre").buffer(-0.5, join_style="mitre").area - whole.area
    assert gaps < 1, "pixels, of 2900"
    assert len(whole.interiors) == 0
    assert sum(p.area for p in polygons) == pytest.approx(sum(h.area for h in houses), rel=0.02)
    for polygon in polygons:
        np.testing.assert_allclose(angles(polygon)[np.abs(angles(polygon) - 90) < 45], 90, atol=0.5)


def blobs(seed: int, size: tuple[int, int] = (60, 80)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(size), 3)
    labels = (field > 0).astype(np.uint8)
    score = np.clip(ndimage.distance_transform_edt(labels) * 40, 0, 250).astype(np.uint8)
    return labels, score


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.95]))
def test_whatever_it_is_it_is_valid_apart_and_like_it_was(seed: int, least: float) -> None:
    labels, score = blobs(seed)
    objects = polygonise_whole(labels, score=score, separation=Separation(0.6, 5))
    polygons, done = drawn(objects, iou=least)
    assert shapely.is_valid(polygons).all()
    assert (shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON).all()
    simple = simplified(objects.geometry, objects.block, 1.0)
    for polygon, exact, plain, is_done in zip(polygons, objects.geometry, simple, done, strict=True):
        assert iou(polygon, exact) >= least if is_done else polygon.equals_exact(plain)
    one, two = shapely.STRtree(polygons).query(polygons)
    near = (one < two) & (objects.block[one] == objects.block[two])
    assert shapely.area(shapely.intersection(polygons[one[near]], polygons[two[near]])).sum() < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 200, 100_000]))
def test_company_and_order_have_no_say(seed: int, at_once: int) -> None:
    labels, score = blobs(seed)
    objects = polygonise_whole(labels, score=score, separation=Separation(0.6, 5))
    together, done = drawn(objects)
    order = np.random.default_rng(seed).permutation(np.unique(objects.block))
    for block in order[:3]:
        mine = objects.block == block
        alone, done_alone = drawn(objects.select(mine))
        assert shapely.to_wkb(alone).tolist() == shapely.to_wkb(together[mine]).tolist()
        assert done_alone.tolist() == done[mine].tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geoseg.steps.SIDES_AT_ONCE", at_once)
        assert shapely.to_wkb(drawn(objects)[0]).tolist() == shapely.to_wkb(together).tolist()


@settings(max_examples=12, deadline=None)
@given(covers(), st.integers(0, 1000))
def test_the_cover_changes_nothing(cover: list[Window], seed: int) -> None:
    labels, score = blobs(seed)
    layer = Layer(
        GeoBox(labels.shape, BANEPA, 32645),
        LEGEND,
        "town",
        simplify=1.0,
        min_area=0.5,
        confident=False,
        separation=GroundSeparation(0.6, 0.4),
        regularise=True,
    )
    whole = footprints([(Window(0, 60, 0, 80), labels, None, score)], layer)
    parts = footprints(((w, labels[w.slices], None, score[w.slices]) for w in cover), layer)
    assert shapely.to_wkb(whole.geometry.to_numpy()).tolist() == shapely.to_wkb(parts.geometry.to_numpy()).tolist()
    assert whole.drop(columns="geometry").equals(parts.drop(columns="geometry"))
    assert {"regularised"} <= set(whole.columns)
    one, two = shapely.STRtree(whole.geometry.to_numpy()).query(whole.geometry.to_numpy())
    pairs = whole.geometry.to_numpy()[one[one < two]], whole.geometry.to_numpy()[two[one < two]]
    assert shapely.area(shapely.intersection(*pairs)).sum() < 1e-4


@pytest.mark.parametrize("seed", [108, 147])
def test_houses_that_do_not_touch_are_not_brought_over_each_other(seed: int) -> None:
    """Corners that stick out; areas are measured after the cut."""
    labels, _ = blobs(seed, (100, 100))
    polygons, _ = drawn(polygonise_whole(labels))
    one, two = shapely.STRtree(polygons).query(polygons)
    assert shapely.area(shapely.intersection(polygons[one[one < two]], polygons[two[one < two]])).sum() > 2
    grid = GeoBox((100, 100), BANEPA @ Affine.scale(PIXEL[0] / BANEPA.a), 32645)
    layer = Layer(grid, LEGEND, "town", simplify=1.0, confident=False, regularise=True)
    frame = footprints([(Window(0, 100, 0, 100), labels, None)], layer)
    shapes = frame.geometry.to_numpy()
    one, two = shapely.STRtree(shapes).query(shapes)
    assert shapely.area(shapely.intersection(shapes[one[one < two]], shapes[two[one < two]])).sum() < 1e-3
    large = frame[frame.area > 3]
    assert (large["area_m2"] / large.area).to_numpy() == pytest.approx(1, abs=3e-3)
    assert frame["vertices"].tolist() == [
        len(p.exterior.coords) - 1 + sum(len(h.coords) - 1 for h in p.interiors) for p in shapes
    ]


def test_a_hall_does_not_take_a_sheds_wall() -> None:
    """Straightened, it lies over half of the shed beside it, a sliver of the hall. Else the smaller one gives way."""
    place = np.array([334_000, 3_057_000])
    hall, shed, hut = shapely.box(0, 0, 100, 80), shapely.box(98, 10, 102, 14), shapely.box(20, 79.9, 30, 90)
    columns = {
        "geometry": np.array([hall, shed, hut], object),
        "regularised": np.ones(3, np.bool_),
        **{name: np.zeros(3) for name in ("area_m2", "perimeter_m", "orientation_deg")},
        "vertices": np.zeros(3, np.int64),
    }
    moved = {**columns, "geometry": shapely.transform(columns["geometry"], lambda xy: xy + place)}
    layer = Layer(GeoBox((1000, 1000), BANEPA, 32645), LEGEND, "a", regularise=True)
    _keep_apart(moved, layer)
    shapes = shapely.transform(moved["geometry"], lambda xy: xy - place)
    assert shapes[1].equals(shed)
    assert shapes[0].area == pytest.approx(8000 - 8)
    assert shapes[2].area == pytest.approx(10 * 10)
    assert shapes[0].intersection(shapes[1]).area == shapes[0].intersection(shapes[2]).area == 0
    assert moved["vertices"].tolist() == [8, 0, 4], "what is cut is measured again"
    assert moved["area_m2"][[0, 2]] == pytest.approx([7992, 100], rel=1e-2)


@pytest.mark.parametrize("turn", [0.0, 30.0, 100.0, 179.0])
def test_orientation_is_from_north_to_east(turn: float) -> None:
    house = shapely.affinity.rotate(shapely.box(50, 20, 70, 100), turn, origin=(60, 60))
    labels = rasterize([house], (120, 120), dtype="uint8")
    layer = Layer(GeoBox((120, 120), BANEPA, 32645), LEGEND, "a", confident=False, regularise=True)
    frame = footprints([(Window(0, 120, 0, 120), labels, None)], layer)
    # y grows downwards, so what turns right in pixels does so on the map; UTM's north is 0.8 degrees off here
    assert abs((frame["orientation_deg"].iloc[0] - turn + 90) % 180 - 90) < 1.5
    assert frame["touches_edge"].tolist() == [False]


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 9)] * 2), max_size=8))
@example([(0, 0, 9, 9), (2, 3, 2, 2)])
@example([(0, 0, 9, 9), (2, 3, 4, 4), (3, 4, 2, 2)])
@example([(0, 0, 6, 2), (3, 0, 8, 8), (1, 0, 3, 1)])
def test_the_smaller_one_gives_way(boxes: list[tuple[int, int, int, int]]) -> None:
    """Or those that it lies under, where nothing would be left of it; nothing vanishes."""
    polygons = np.array([shapely.box(x, y, x + w, y + h) for x, y, w, h in boxes], object)
    polygons = polygons[np.argsort(-shapely.area(polygons), kind="stable")]
    apart, cut = without_overlaps(polygons)
    assert shapely.is_valid(apart).all()
    assert (shapely.area(apart) > 0).all()
    assert [after is before for before, after in zip(polygons, apart, strict=True)] == (~cut).tolist()
    left = [shapely.difference(each, shapely.union_all(polygons[:i])) for i, each in enumerate(polygons)]
    for i, (before, after) in enumerate(zip(polygons, apart, strict=True)):
        if all(part.area for part in left):
            assert cut[i] == (left[i].area < before.area)
            assert after.difference(left[i]).area == pytest.approx(0)
        elif shapely.area(shapely.intersection(np.delete(apart, i), after)).max() > 1e-9:
            # the same ground as others that have to be kept: it cannot be shared out
            assert sum(part.area == 0 for part in left) > 1 or shapely.equals(np.delete(polygons, i), before).any()


@pytest.mark.parametrize("turn", [0, 20])
def test_a_speck_under_a_hall_is_left_and_the_hall_is_cut(turn: float) -> None:
    """Unless the hall is firm, and the speck is not; then the caller has to make the speck firm, too."""
    hall, speck, far = shapely.box(0, 0, 30, 20), shapely.box(29, 8, 30, 9), shapely.box(50, 0, 51, 1)
    polygons = shapely.affinity.rotate(shapely.MultiPolygon([hall, speck, far]), turn, origin=(0, 0))
    polygons = shapely.get_parts(polygons)
    apart, cut = without_overlaps(polygons, metres=(1.0, 1.0), shallow=0.3)
    assert cut.tolist() == [True, False, False]
    assert apart[0].intersection(apart[1]).area < 1e-9
    assert shapely.area(apart) == pytest.approx([599, 1, 1], abs=1e-2)
    np.testing.assert_allclose(angles(apart[0])[np.abs(angles(apart[0]) - 90) < 45], 90, atol=0.1)
    apart, cut = without_overlaps(polygons, firm=np.array([True, False, False]))
    assert (cut.tolist(), shapely.is_empty(apart).tolist()) == ([False, True, False], [False, True, False])
    apart, cut = without_overlaps(polygons, firm=np.array([True, True, False]))
    assert cut.tolist() == [True, False, False]


def test_one_under_another_under_another_is_left() -> None:
    polygons = np.array([shapely.box(0, 0, 9, 9), shapely.box(2, 3, 6, 7), shapely.box(3, 4, 5, 6)], object)
    apart, _ = without_overlaps(polygons)
    assert shapely.area(apart).tolist() == [81 - 16, 16 - 4, 4]
    assert shapely.union_all(apart).equals(polygons[0])


@given(st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2, st.booleans()), max_size=6))
@example([(0, 0, 9, 9, True), (7, 2, 1, 1, True)])
@example([(0, 0, 9, 9, False), (7, 2, 1, 1, True)])
@example([(0, 0, 10, 2, True), (0, 0, 6, 3, True), (4, 0, 6, 3, True)])
def test_nothing_vanishes_under_those_of_other_blocks(boxes: list[tuple[int, int, int, int, bool]]) -> None:
    place = np.array([334_000, 3_057_000])
    shapes = np.array([shapely.box(x, y, x + w, y + h) for x, y, w, h, _ in boxes], object)
    columns = {
        "geometry": shapely.transform(shapes, lambda xy: xy + place),
        "regularised": np.array([regular for *_, regular in boxes], np.bool_),
        **{name: np.zeros(len(boxes)) for name in ("area_m2", "perimeter_m", "orientation_deg")},
        "vertices": np.zeros(len(boxes), np.int64),
    }
    _keep_apart(columns, Layer(GeoBox((1000, 1000), BANEPA, 32645), LEGEND, "a", regularise=True))
    apart = shapely.transform(columns["geometry"], lambda xy: xy - place)
    assert (shapely.area(apart) > 0).all()
    cut = columns["vertices"] > 0
    assert (shapely.equals(shapes, apart) | cut).all(), "what is cut is measured again"
    one, two = np.triu_indices(len(boxes), 1)
    over = shapely.area(shapely.intersection(apart[one], apart[two])) > 1e-6
    assert (~cut[one] | ~cut[two])[over].all(), "ground that cannot be shared out"
    if len(boxes) == 2 and not shapes[0].equals(shapes[1]):
        assert not over.any()


def test_nothing_is_nothing() -> None:
    polygons, done = regularised(np.zeros(0, object), np.zeros(0, np.int64), 1.0, PIXEL)
    assert (len(polygons), len(done)) == (0, 0)
    assert regularise.__all__
