"""Coverages: what shapely tells of them is the oracle."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geoseg.coverage import clashing
from geoseg.polygonise import polygonise_whole
from geoseg.simplify import Walls, touching

if TYPE_CHECKING:
    from numpy.typing import NDArray


@settings(max_examples=100, deadline=None)
@example(seed=15545, size=20, blob=1, tolerance=1.0, moved=0.2, background=None)  # where holes touch their outlines
@example(seed=844143155, size=16, blob=3, tolerance=2.0, moved=0.0, background=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([8, 16, 24]),
    blob=st.sampled_from([1, 2, 3]),
    tolerance=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    moved=st.sampled_from([0.0, 0.02, 0.2]),
    background=st.sampled_from([0, None]),
)
def test_what_clashes_is_what_shapely_finds(
    seed: int, size: int, blob: int, tolerance: float, moved: float, background: int | None
) -> None:
    """Walls of label maps with some vertices left out and some moved, without a look at what they meet then."""
    rng = np.random.default_rng(seed)
    labels = ndimage.uniform_filter(rng.random((3, size, size)), (0, blob, blob)).argmax(axis=0).astype(np.uint8)
    exact = polygonise_whole(labels, background=background).geometry
    block = touching(exact)
    walls = Walls.of(exact, block)
    lines = shapely.simplify(walls.lines, tolerance, preserve_topology=False)
    short = walls.too_short(lines)
    lines[short] = walls.lines[short]
    some = rng.random((size + 1, size + 1)) < moved  # of the pixels' corners: the same in all outlines

    def shift(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        shifted: NDArray[np.float64] = xy + 0.25 * some[tuple(xy.astype(int).T)][:, np.newaxis]
        return shifted

    outlines = shapely.transform(walls.outlines(lines), shift)
    valid = shapely.is_valid(outlines)
    outlines, block = outlines[valid], block[valid]
    found = clashing(outlines, block)
    told = np.zeros(len(outlines), np.bool_)
    for each in np.unique(block):
        told[block == each] = ~shapely.is_empty(shapely.coverage_invalid_edges(outlines[block == each]))
    assert not (told & ~found).any()
    # shapely tells sometimes only one of two, and none where they touch at a hole's corner
    one, other = shapely.STRtree(outlines).query(outlines, predicate="intersects")
    pairs = [(i, j) for i, j in zip(one, other, strict=True) if i < j and block[i] == block[j]]
    by_hand = np.zeros(len(outlines), np.bool_)
    for i, j in pairs:
        if overlap_or_touch_aside(outlines[i], outlines[j]):
            by_hand[[i, j]] = True
    assert not (by_hand & ~found).any()
    # a hole's corner on its own outline is a vertex for what fills the hole, and none for the edge that it is on
    if not any(touches_itself_aside(each) for each in outlines):
        np.testing.assert_array_equal(found, by_hand)


def touches_itself_aside(polygon: shapely.Polygon) -> bool:
    """Whether a ring of a polygon has a vertex on another one that has none there."""
    rings = shapely.get_rings(polygon)
    for one, other in itertools.permutations(rings, 2):
        aside = np.unique(shapely.get_coordinates(one), axis=0)
        aside = shapely.points(aside[~(aside[:, np.newaxis] == shapely.get_coordinates(other)).all(axis=2).any(axis=1)])
        if shapely.intersects(aside, other).any():
            return True
    return False


def overlap_or_touch_aside(one: shapely.Polygon, other: shapely.Polygon) -> bool:
    """Whether two polygons share area, or a vertex of one is on the outline of the other but none of its vertices."""
    if shapely.intersection(one, other).area > 1e-9:
        return True
    corners = [shapely.points(np.unique(shapely.get_coordinates(each), axis=0)) for each in (one, other)]
    both = np.isin(shapely.to_wkb(corners[0]), shapely.to_wkb(corners[1]))
    only_other = corners[1][~np.isin(shapely.to_wkb(corners[1]), shapely.to_wkb(corners[0]))]
    return bool(
        shapely.intersects(corners[0][~both], other.boundary).any()
        or shapely.intersects(only_other, one.boundary).any()
    )


@pytest.mark.parametrize(
    ("other", "clash"),
    [
        ([(2, 0), (4, 0), (4, 2), (2, 2), (3, 1)], False),
        ([(2, 0), (4, 0), (4, 2), (2, 2), (1.5, 1)], True),  # across at vertices of both, where no edge is
        ([(2, 0), (4, 0), (4, 2), (2, 2)], True),
        ([(2, 0), (4, 0), (4, 2), (2, 2), (2.5, 1.5), (3, 1)], True),  # a vertex where the first one has none
        ([(2, 2), (3, 1), (4, 2), (4, 4), (2, 4)], False),
        ([(0, 2), (1, 2), (2, 2), (2, 4), (0, 4)], True),
        ([(5, 0), (6, 0), (6, 1)], False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_that_touch(other: list[tuple[float, float]], clash: bool, turned: bool) -> None:  # noqa: FBT001
    one = shapely.Polygon([(0, 0), (2, 0), (3, 1), (2, 2), (0, 2)])
    two = shapely.Polygon(other[::-1] if turned else other)
    both = np.array([one, two], object)
    assert (not shapely.coverage_is_valid(both)) == clash, "the example is what it says"
    assert clashing(both, np.zeros(2, np.int64)).tolist() == [clash, clash]
    assert not clashing(both, np.arange(2)).any(), "blocks have nothing to do with each other"


def test_holes_that_touch_their_outline_are_in_order() -> None:
    ring, hole = [(0, 0), (4, 0), (4, 4), (0, 4)], [(0, 0), (1, 2), (2, 1)]
    both = np.array([shapely.Polygon(ring, [hole]), shapely.Polygon(hole)], object)
    assert shapely.coverage_is_valid(both)
    assert not clashing(both, np.zeros(2, np.int64)).any()
    on_an_edge = np.array([shapely.Polygon(ring, [[(0, 2), (1, 2), (1, 1)]])], object)
    assert on_an_edge[0].is_valid
    assert not clashing(on_an_edge, np.zeros(1, np.int64)).any()
    assert not len(clashing(np.zeros(0, object), np.zeros(0, np.int64)))
