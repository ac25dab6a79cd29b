"""Laws of the watershed: the forest that a slow loop finds, and the same however the scene is cut."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from rasterio import Affine
from rasterio.features import rasterize
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from test_polygonise import assert_identical, covers, random_confidence

from geoseg.catalog import Legend, LegendClass
from geoseg.footprints import GroundSeparation, Layer, footprints
from geoseg.polygonise import Objects, Piece, join, polygonise, polygonise_whole
from geoseg.raster import NODATA
from geoseg.separate import Edges, Separation, forest
from geoseg.simplify import simplified
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@st.composite
def scenes(draw: st.DrawFn) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels of large patches with some holes, and scores of few values, so that many tie: noise, or hills."""
    rows, cols = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    palette = draw(st.sampled_from([(1,), (0, 1), (0, 1, 1, 1), (0, 1, 1, 1, 2, 2, NODATA), (0, 1, 2, 254)]))
    coarse = draw(hnp.arrays(np.uint8, (rows, cols), elements=st.sampled_from(palette), fill=st.nothing()))
    times = draw(st.integers(1, 3))
    labels = coarse.repeat(times, axis=0).repeat(times, axis=1)[: rows + 3, : cols + 3]
    steps = draw(st.sampled_from([2, 3, 5, 250]))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 251, labels.shape)
    if draw(st.booleans()):
        noise = ndimage.uniform_filter(noise, 3)
    score = (noise // (250 // steps) * (250 // steps)).astype(np.uint8)
    score[np.random.default_rng(0).random(score.shape) < draw(st.sampled_from([0, 0, 0.1]))] = NODATA
    return labels, score


SEPARATIONS = st.builds(Separation, st.sampled_from([0.1, 0.4, 0.5, 0.6, 0.8, 1.0]), st.integers(1, 4))


def parted_cover(
    scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], windows: list[Window], separation: Separation
) -> Objects:
    labels, score = scene
    confidence = random_confidence(labels.shape)
    pieces: list[Piece] = []
    for window in windows:
        at = window.slices
        piece = polygonise(labels[at], window, confidence=confidence[at], score=score[at], separation=separation)
        pieces.append(piece)
    return Objects.concatenate([*(piece.complete for piece in pieces), join(iter(pieces), labels.shape)])


def slow_seeds(labels: NDArray[np.uint8], score: NDArray[np.uint8], separation: Separation) -> NDArray[np.bool_]:
    """(rows, columns): which pixels are in a seed."""
    seed = np.zeros(labels.shape, np.bool_)
    for label in set(np.unique(labels)) - {0, NODATA}:
        numbers, count = ndimage.label((labels == label) & (score != NODATA) & (score / 250 >= separation.seed))
        for number in range(1, count + 1):
            seed |= (numbers == number) & ((numbers == number).sum() >= separation.min_seed_pixels)
    return seed


def slow_edges(labels: NDArray[np.uint8], score: NDArray[np.uint8]) -> Iterator[tuple[int, int, int, int, int]]:
    """Lower and higher score, both negative, row and column of the left or upper pixel, and 1 if downwards."""
    code = np.where(score == NODATA, 0, score).astype(int)
    for row, col in np.ndindex(labels.shape):
        for down, other in enumerate([(row, col + 1), (row + 1, col)]):
            inside = other[0] < labels.shape[0] and other[1] < labels.shape[1]
            if inside and labels[row, col] == labels[other] and labels[row, col] not in {0, NODATA}:
                low, high = sorted((code[row, col], code[other]))
                yield -low, -high, row, col, down


def slow_numbers(
    labels: NDArray[np.uint8], score: NDArray[np.uint8], separation: Separation
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Kruskal 1956 in a loop, with a rule: two trees that hold a seed each are not joined.

    (rows, columns): for each pixel the flat index of the first pixel of its object, -1 for none; and which are seeds.
    """
    seed = slow_seeds(labels, score, separation)
    cols = labels.shape[1]
    parent = list(range(labels.size))
    seeded = seed.ravel().tolist()

    def find(pixel: int) -> int:
        while parent[pixel] != pixel:
            pixel = parent[pixel]
        return pixel

    for low, _, row, col, down in sorted(slow_edges(labels, score)):
        one, other = sorted((find(row * cols + col), find((row + down) * cols + col + 1 - down)))
        within_seed = -low / 250 >= separation.seed
        if one != other and (within_seed or not (seeded[one] and seeded[other])):
            parent[other] = one
            seeded[one] |= seeded[other]
    numbers = np.array([find(pixel) for pixel in range(labels.size)]).reshape(labels.shape)
    return np.where((labels != 0) & (labels != NODATA), numbers, -1), seed


def burnt(objects: Objects, shape: tuple[int, int]) -> NDArray[np.int64]:
    """(rows, columns): for each pixel the flat index of its object's first pixel; -1 for none."""
    out = np.full(shape, -1, np.int32)
    if len(objects):
        first = objects.first_row * shape[1] + objects.first_col
        rasterize(zip(objects.geometry, first.tolist(), strict=True), out=out)
    return out.astype(np.int64)


@settings(max_examples=150)
@given(scenes(), SEPARATIONS)
def test_objects_are_the_trees_that_a_slow_loop_finds(
    scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], separation: Separation
) -> None:
    labels, score = scene
    objects = polygonise_whole(labels, score=score, separation=separation)
    expected, seed = slow_numbers(labels, score, separation)
    np.testing.assert_array_equal(burnt(objects, labels.shape), expected)
    assert shapely.is_valid(objects.geometry).all()
    np.testing.assert_array_equal(shapely.area(objects.geometry), objects.pixels)
    whole = polygonise_whole(labels)
    block = dict(zip((whole.first_row << 32) + whole.first_col, whole.geometry, strict=True))
    for first, name, label, geometry in zip(
        objects.first_row * labels.shape[1] + objects.first_col,
        objects.block.tolist(),
        objects.label,
        objects.geometry,
        strict=True,
    ):
        owned = expected == first
        assert (labels[owned] == label).all()
        assert ndimage.label(owned)[1] == 1
        seeds = ndimage.label(seed & owned)[1]
        first_of_block = (name >> 32) * labels.shape[1] + (name & 0xFFFFFFFF)
        in_block = seed & (burnt(whole, labels.shape) == first_of_block)
        assert seeds == (1 if in_block.any() else 0)
        assert block[name].covers(geometry)


@settings(max_examples=200)
@given(st.data(), scenes(), SEPARATIONS)
def test_every_cover_gives_the_same_objects(
    data: st.DataObject, scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], separation: Separation
) -> None:
    labels, score = scene
    windows = data.draw(covers(labels.shape))
    whole = polygonise_whole(labels, confidence=random_confidence(labels.shape), score=score, separation=separation)
    assert_identical(parted_cover(scene, windows, separation), whole)


@settings(max_examples=30)
@given(scenes(), SEPARATIONS)
def test_pieces_can_be_sent(scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], separation: Separation) -> None:
    labels, score = scene
    pieces: list[Piece] = []
    for window in Window.of_shape(labels.shape).blocks((3, 4)):
        piece = polygonise(labels[window.slices], window, score=score[window.slices], separation=separation)
        pieces.append(pickle.loads(pickle.dumps(piece)))  # noqa: S301 - our own, written a moment ago
    objects = Objects.concatenate(
        [*(p.complete for p in pieces), join((p.without_complete() for p in pieces), labels.shape)]
    )
    assert_identical(objects, polygonise_whole(labels, score=score, separation=separation))


@settings(max_examples=50)
@given(scenes(), SEPARATIONS)
def test_a_piece_hands_on_no_more_than_a_forest(
    scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], separation: Separation
) -> None:
    labels, score = scene
    piece = polygonise(labels, Window.of_shape(labels.shape), score=score, separation=separation)
    assert piece.scores
    links = piece.scores.links
    assert len(links) <= max(0, len(piece.parts) - 1)
    pairs = coo_array((np.ones(len(links)), (links.first, links.second)), shape=(len(piece.parts),) * 2)
    assert connected_components(pairs, directed=False)[0] == len(piece.parts) - len(links)


@settings(max_examples=50)
@given(scenes(), st.integers(1, 4))
def test_a_threshold_above_all_scores_parts_nothing(
    scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], least: int
) -> None:
    labels, score = scene
    low = np.minimum(score, 249)  # also where it was nodata
    assert_identical(polygonise_whole(labels, score=low, separation=Separation(1.0, least)), polygonise_whole(labels))


@settings(max_examples=50)
@given(st.data(), st.integers(1, 12), st.integers(0, 40))
def test_the_forest_is_the_best_one(data: st.DataObject, nodes: int, count: int) -> None:
    """Kruskal's loop, on any graph: parallel edges, loops and roots included."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ends = rng.integers(0, nodes, (2, count))
    edges = Edges(*ends, rng.integers(0, 4, count).astype(np.uint16), rng.permutation(count)).best_first()
    rooted = rng.random(nodes) < 0.4
    tree, has_root, expected = np.arange(nodes), rooted.copy(), []
    for one, other in zip(tree[edges.first], tree[edges.second], strict=True):
        a, b = tree[one], tree[other]
        expected.append(a != b and not (has_root[a] and has_root[b]))
        if expected[-1]:
            tree[tree == b] = a
            has_root[a] |= has_root[b]
    assert forest(edges, rooted).tolist() == expected
    assert all(
        (-int(h), k) < (-int(i), m)
        for (h, k), (i, m) in pairwise(zip(edges.height.tolist(), edges.key.tolist(), strict=True))
    )


def hills(shape: tuple[int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A town: labels with holes, and a smooth score whose values are many."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), 2.5)
    score = np.round(250 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    return (score > 80).astype(np.uint8), score


def test_another_watershed_differs_on_plateaus_only() -> None:
    """Where the two disagree, a path leads from the pixel to the other object's seed as high as to its own."""
    segmentation = pytest.importorskip("skimage.segmentation", reason="scikit-image is not installed")
    labels, score = hills((120, 150), 3)
    ours = burnt(polygonise_whole(labels, score=score, separation=Separation(0.6)), labels.shape)
    seeds, count = ndimage.label((labels == 1) & (score >= 150))
    assert count > 20
    theirs = segmentation.watershed(-score.astype(int), seeds, mask=labels == 1)
    first = np.array([ours[seeds == number][0] for number in range(1, count + 1)])
    differ = (theirs > 0) & (first[theirs - 1] != ours)
    assert 0 < differ.sum() < 0.05 * (labels == 1).sum()
    own, other = (first[:, np.newaxis] == ours[differ]).argmax(axis=0) + 1, theirs[differ]
    highest = np.zeros((2, differ.sum()), int)
    for level in range(151):
        reached = ndimage.label((labels == 1) & (score >= level))[0]
        for path, seed in zip(highest, (own, other), strict=True):
            at_seed = ndimage.maximum(reached, seeds, np.arange(count + 1))[seed]
            path[reached[differ] == at_seed] = level
    np.testing.assert_array_equal(*highest)


@pytest.mark.parametrize(
    ("seed", "least", "message"),
    [
        (0.0, 1, "must lie above 0 and not above 1, got 0.0"),
        (1.1, 1, "must lie above 0 and not above 1, got 1.1"),
        (float("nan"), 1, "must lie above 0 and not above 1, got nan"),
        (0.5, 0, "at least one pixel, got 0"),
    ],
)
def test_seeds_that_make_no_sense(seed: float, least: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Separation(seed, least)


def test_the_threshold_is_a_code_that_reaches_it() -> None:
    assert [Separation(seed).code for seed in (0.5, 0.501, 0.004, 0.0001, 1.0, 0.7)] == [125, 126, 1, 1, 250, 175]


def test_what_does_not_go_together_is_refused() -> None:
    ones, window = np.ones((2, 2), np.uint8), Window(0, 2, 0, 2)
    with pytest.raises(ValueError, match="go together"):
        polygonise(ones, window, score=ones)
    with pytest.raises(ValueError, match="go together"):
        polygonise(ones, window, separation=Separation(0.5))
    with pytest.raises(ValueError, match=r"score must be a uint8 array of shape \(2, 2\), got uint8 of shape \(1, 2\)"):
        polygonise(ones, window, score=ones[:1], separation=Separation(0.5))
    beside = Window(0, 2, 2, 4)
    pieces = [polygonise(ones, window), polygonise(ones, beside, score=ones, separation=Separation(0.5))]
    with pytest.raises(ValueError, match="parted in different ways"):
        join(pieces, (2, 4))


# --- outlines with fewer vertices


@settings(max_examples=60)
@example(0, 6, 0.5)  # where a hole that steps back from the outside would be too far away
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 6]), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_walls_stay_shared(seed: int, size: int, tolerance: float) -> None:
    """Of objects of any shape that fill the plane: no gap, no overlap, no outline further away than it may be."""
    rng = np.random.default_rng(seed)
    noise = ndimage.uniform_filter(rng.random((24, 30)), size)
    labels = np.digitize(noise, np.quantile(noise, [0.25, 0.5, 0.75])).astype(np.uint8)
    objects = polygonise_whole(labels, background=None)
    block = np.zeros(len(objects), np.int64)
    out = simplified(objects.geometry, block, tolerance)
    assert shapely.is_valid(out).all()
    assert (shapely.get_type_id(out) == shapely.GeometryType.POLYGON).all()
    assert (shapely.area(out) > 0).all()
    assert shapely.coverage_is_valid(out)
    assert not shapely.coverage_invalid_edges(out).any()
    union = shapely.union_all(out)
    assert union.geom_type == "Polygon"
    assert len(union.interiors) == 0
    assert shapely.area(out).sum() == pytest.approx(union.area)
    # At most one vertex more for every two corners: where two corners meet the straight side of a third object.
    assert shapely.get_num_coordinates(out).sum() <= 1.5 * shapely.get_num_coordinates(objects.geometry).sum()
    for before, after in zip(objects.geometry, out, strict=True):
        assert shapely.hausdorff_distance(before.boundary, after.boundary, densify=0.2) <= tolerance + 1e-9
        assert shapely.is_ccw(after.exterior) == shapely.is_ccw(before.exterior)


@settings(max_examples=20)
@example(8794, 1.0)  # where a strip of background one pixel wide would close between two objects
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 2.0]))
def test_a_block_is_simplified_for_itself(seed: int, tolerance: float) -> None:
    labels, score = hills((40, 50), seed)
    objects = polygonise_whole(labels, score=score, separation=Separation(0.6))
    together = simplified(objects.geometry, objects.block, tolerance)
    for name in np.unique(objects.block):
        mine = objects.block == name
        alone = simplified(objects.geometry[mine], objects.block[mine], tolerance)
        assert shapely.to_wkb(alone).tolist() == shapely.to_wkb(together[mine]).tolist()
        assert shapely.coverage_is_valid(alone)


def test_a_wall_is_straight_and_is_the_same_for_both() -> None:
    """A stair between two squares becomes one line."""
    labels, score = np.ones((20, 40), np.uint8), np.zeros((20, 40), np.uint8)
    score[:, :5] = score[:, -5:] = 200
    row, col = np.mgrid[:20, :40]
    score[col < 15 + row // 4] = 200
    score[col > 16 + row // 4] = 200
    objects = polygonise_whole(labels, score=score, separation=Separation(0.5))
    assert shapely.get_num_coordinates(objects.geometry).tolist() == [13, 13]
    one, other = simplified(objects.geometry, objects.block, 1.0)
    assert [len(one.exterior.coords), len(other.exterior.coords)] == [5, 5]
    assert one.intersection(other).length == pytest.approx(np.hypot(20, 4))


# --- footprints

GRID = Affine(0.3, 0, 334_000, 0, -0.3, 3_057_000)
LEGEND = Legend((LegendClass(0, "background", "#000000"), LegendClass(1, "building", "#ff0000")), 0)


def outlined(scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], windows: list[Window], **more: Any) -> Any:
    labels, score = scene
    separation = GroundSeparation(0.6, 0.2)
    layer = Layer(GeoBox(labels.shape, GRID, 32645), LEGEND, "town", **{"separation": separation, **more})
    confidence = random_confidence(labels.shape)
    return footprints(((w, labels[w.slices], confidence[w.slices], score[w.slices]) for w in windows), layer)


@settings(max_examples=25)
@given(st.data(), st.integers(0, 1000), st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 2.0]))
def test_every_cover_gives_the_same_footprints(
    data: st.DataObject, seed: int, simplify: float, min_area: float
) -> None:
    scene = hills((40, 50), seed)
    options = {"simplify": simplify, "min_area": min_area}
    windows = data.draw(covers((40, 50)))
    whole, parts = outlined(scene, [Window(0, 40, 0, 50)], **options), outlined(scene, windows, **options)
    assert shapely.to_wkb(whole.geometry.to_numpy()).tolist() == shapely.to_wkb(parts.geometry.to_numpy()).tolist()
    assert whole.drop(columns="geometry").equals(parts.drop(columns="geometry"))
    assert min_area or len(outlined(scene, windows, **options, separation=None)) <= len(whole)
    pixels = shapely.transform(whole.geometry.to_numpy(), lambda xy: np.rint((xy - [GRID.c, GRID.f]) / [0.3, -0.3]))
    if simplify:
        assert shapely.coverage_is_valid(pixels)


def test_a_seeds_area_is_in_square_metres() -> None:
    labels, score = np.ones((10, 40), np.uint8), np.zeros((10, 40), np.uint8)
    score[4:6, [5, 6]] = score[3:6, 20:23] = score[2:6, 30:34] = 200
    pixel = Layer(GeoBox(labels.shape, GRID, 32645), LEGEND, "town").pixel_area
    found = [
        len(outlined((labels, score), [Window(0, 10, 0, 40)], separation=GroundSeparation(0.8, pixels * pixel)))
        for pixels in (0, 4, 4.01, 9, 9.01, 17)
    ]
    assert found == [3, 3, 2, 2, 1, 1]
    with pytest.raises(ValueError, match="0 square metres or more, got -1"):
        GroundSeparation(0.5, -1)
    with pytest.raises(ValueError, match="above 0 and not above 1, got 2"):
        GroundSeparation(2)


def test_a_separation_needs_a_score_and_a_score_needs_none() -> None:
    labels, score = hills((20, 20), 1)
    layer = Layer(GeoBox((20, 20), GRID, 32645), LEGEND, "town", separation=GroundSeparation(0.5), confident=False)
    with pytest.raises(ValueError, match="go together"):
        footprints([(Window(0, 20, 0, 20), labels, None)], layer)
    plain = Layer(layer.geobox, LEGEND, "town", confident=False)
    one = footprints([(Window(0, 20, 0, 20), labels, None, score)], plain)
    assert one.equals(footprints([(Window(0, 20, 0, 20), labels, None)], plain))
    window = Window(0, 120, 0, 150)
    town = hills((120, 150), 3)
    assert len(outlined(town, [window])) > 2 * len(outlined(town, [window], separation=None))
