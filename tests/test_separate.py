"""Laws of the watershed: the forest that a slow loop finds, and the same however the scene is cut."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio.features import rasterize
from scipy import ndimage
from test_polygonise import assert_identical, covers, random_confidence

from geoseg.polygonise import Objects, Piece, join, polygonise, polygonise_whole
from geoseg.raster import NODATA
from geoseg.separate import Edges, Separation, forest
from geoseg.window import Window

if TYPE_CHECKING:
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


def slow_numbers(
    labels: NDArray[np.uint8], score: NDArray[np.uint8], separation: Separation
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Kruskal 1956 in a loop, with a rule: two trees that hold a seed each are not joined.

    (rows, columns): for each pixel the flat index of the first pixel of its object, -1 for none; and which are seeds.
    """
    rows, cols = labels.shape
    score = np.where(score == NODATA, 0, score).astype(int)
    owned = (labels != 0) & (labels != NODATA)
    seed = np.zeros(labels.shape, np.bool_)
    for label in np.unique(labels[owned]):
        numbers, count = ndimage.label((labels == label) & (score / 250 >= separation.seed))
        for number in range(1, count + 1):
            if (numbers == number).sum() >= separation.min_seed_pixels:
                seed |= numbers == number
    edges = []
    for row in range(rows):
        for col in range(cols):
            for down in (0, 1):
                other = (row + down, col + 1 - down)
                if other[0] < rows and other[1] < cols and owned[row, col] and labels[row, col] == labels[other]:
                    low, high = sorted((score[row, col], score[other]))
                    edges.append((-low, -high, row, col, down))
    parent = list(range(labels.size))
    seeded = seed.ravel().tolist()

    def find(pixel: int) -> int:
        while parent[pixel] != pixel:
            pixel = parent[pixel]
        return pixel

    for low, _, row, col, down in sorted(edges):
        one, other = sorted((find(row * cols + col), find((row + down) * cols + col + 1 - down)))
        within_seed = -low / 250 >= separation.seed
        if one != other and (within_seed or not (seeded[one] and seeded[other])):
            parent[other] = one
            seeded[one] |= seeded[other]
    numbers = np.array([find(pixel) for pixel in range(labels.size)]).reshape(labels.shape)
    return np.where(owned, numbers, -1), seed


def burnt(objects: Objects, shape: tuple[int, int]) -> NDArray[np.int64]:
    """(rows, columns): for each pixel the flat index of its object's first pixel; -1 for none."""
    out = np.full(shape, -1, np.int32)
    if len(objects):
        first = objects.first_row * shape[1] + objects.first_col
        rasterize(zip(objects.geometry, first.tolist(), strict=True), out=out)
    return out.astype(np.int64)


@settings(max_examples=300)
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
        in_block = seed & (labels == label) & (burnt(whole, labels.shape) == (name >> 32) * labels.shape[1] + (name & 0xFFFFFFFF))
        assert seeds == (1 if in_block.any() else 0)
        assert block[name].covers(geometry)


@settings(max_examples=400)
@given(st.data(), scenes(), SEPARATIONS)
def test_every_cover_gives_the_same_objects(
    data: st.DataObject, scene: tuple[NDArray[np.uint8], NDArray[np.uint8]], separation: Separation
) -> None:
    labels, score = scene
    windows = data.draw(covers(labels.shape))
    whole = polygonise_whole(labels, confidence=random_confidence(labels.shape), score=score, separation=separation)
    assert_identical(parted_cover(scene, windows, separation), whole)
