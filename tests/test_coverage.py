"""Walls that meet where they should not: what shapely tells of edges, and of coverages, is the oracle."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from geoseg import coverage
from geoseg.coverage import meeting, twisted
from geoseg.polygonise import polygonise_whole
from geoseg.walls import Lines, Walls

if TYPE_CHECKING:
    from numpy.typing import NDArray


def mosaic(seed: int, size: int, blob: int, background: int | None) -> NDArray[np.object_]:
    rng = np.random.default_rng(seed)
    labels = ndimage.uniform_filter(rng.random((3, size, size)), (0, blob, blob)).argmax(axis=0).astype(np.uint8)
    return polygonise_whole(labels, background=background).geometry


def drawn(
    seed: int, size: int, blob: int, tolerance: float, moved: float, background: int | None
) -> tuple[NDArray[np.object_], Walls, Lines]:
    """Outlines, and their walls with some vertices left out and some moved, without a look at what they meet then."""
    exact = mosaic(seed, size, blob, background)
    assume(len(exact))
    walls = Walls.of(exact, np.zeros(len(exact), np.int64))
    lines = Lines.of(shapely.simplify(walls.exact.shapes(), tolerance, preserve_topology=False))
    short = walls.too_short(lines.count)
    lines = lines.with_others(short, walls.exact.select(short))
    some = np.random.default_rng(seed).random((64, 64)) < moved  # of the pixels' corners: the same in all walls
    return exact, walls, Lines(lines.xy + 0.25 * some[tuple(lines.xy.astype(int).T)][:, np.newaxis], lines.start)


GIVEN = {
    "seed": st.integers(0, 2**32 - 1),
    "size": st.sampled_from([8, 16, 24]),
    "blob": st.sampled_from([1, 2, 3]),
    "tolerance": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    "moved": st.sampled_from([0.0, 0.02, 0.2]),
    "background": st.sampled_from([0, None]),
}


@settings(max_examples=60, deadline=None)
@example(how={"seed": 15545, "size": 16, "blob": 1, "tolerance": 1.0, "moved": 0.2, "background": None}, tile=5)
@given(how=st.fixed_dictionaries(GIVEN), tile=st.sampled_from([1, 5, 256]))
def test_edges_that_meet_are_those_that_shapely_finds(how: dict[str, Any], tile: int) -> None:
    _, walls, lines = drawn(**how)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(coverage, "TILE", tile)
        found = meeting(lines, walls.node, walls.block, walls.owner, np.ones(len(lines), np.bool_))
    assert found.tolist() == slowly(lines, walls.node, owners(walls))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    many=st.sampled_from([2, 12, 40]),
    wide=st.sampled_from([2, 8, 200]),
    whole=st.sampled_from([0.0, 0.9, 1.0]),
    tile=st.sampled_from([9, 4096]),
)
def test_long_edges_that_meet_are_those_that_shapely_finds(
    seed: int, many: int, wide: int, whole: float, tile: int
) -> None:
    """Of lines that lie anyhow, with places at their ends, and pass several of the cells into which a tile is cut."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-wide, wide, (many, 2))
    corners = np.where(rng.random((many, 1)) < whole, np.rint(corners), corners)
    paths = [[tuple(corners[k]) for k, _ in itertools.groupby(rng.integers(0, many, 4))] for _ in range(many)]
    paths = [path for path in paths if all(one != other for one, other in itertools.pairwise(path)) and len(path) > 1]
    assume(paths)
    lines = Lines(np.array([xy for path in paths for xy in path]), np.cumsum([0, *map(len, paths)]))
    places: dict[tuple[float, float], int] = {}
    node = np.array([[places.setdefault(path[end], len(places)) for end in (0, -1)] for path in paths])
    owner, some = np.arange(len(paths)) % 3 - 1, rng.random(len(paths)) < rng.random()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(coverage, "TILE", tile)
        found = meeting(lines, node, np.zeros(len(paths), np.int64), owner, some)
    assert found.tolist() == slowly(lines, node, owner.tolist(), some)


def slowly(
    lines: Lines, node: NDArray[np.int64], owner: list[int], asked: NDArray[np.bool_] | None = None
) -> list[int]:
    """The same, each edge held against each that GEOS says it meets."""
    begin = np.delete(np.arange(len(lines.xy)), lines.start[1:] - 1)
    name = np.arange(len(lines.xy)) + len(lines.xy) * 9
    name[lines.start[:-1]], name[lines.start[1:] - 1] = node.T
    edges = shapely.linestrings(np.stack([lines.xy[begin], lines.xy[begin + 1]], axis=1))
    line = np.searchsorted(lines.start, begin, side="right") - 1
    found = set()
    for i, j in shapely.STRtree(edges).query(edges, predicate="intersects").T:
        if i == j or not (asked is None or asked[line[[i, j]]].any()):
            continue
        common = {name[begin[i]], name[begin[i] + 1]} & {name[begin[j]], name[begin[j] + 1]}
        both = shapely.intersection(edges[i], edges[j])
        closed = len(common) == 2 and len({-1, owner[line[i]], owner[line[j]]}) == 3
        if not closed and not (common and both.geom_type == "Point"):
            found |= {int(begin[i]), int(begin[j])}
    return sorted(found)


def owners(walls: Walls) -> list[int]:
    """The polygon on the one side of each wall, where it has background on the other, else -1."""
    sides: list[list[int]] = [[] for _ in range(len(walls.exact))]
    for wall, ring in zip(walls.wall, walls.ring, strict=True):
        sides[wall].append(int(walls.polygon[ring]))
    return [polygons[0] if len(polygons) == 1 else -1 for polygons in sides]


@settings(max_examples=100, deadline=None)
@given(how=st.fixed_dictionaries(GIVEN))
def test_what_is_in_order_is_a_coverage(how: dict[str, Any]) -> None:
    """And what is none is not in order."""
    exact, walls, lines = drawn(**how)
    every = np.ones(len(lines), np.bool_)
    meets = meeting(lines, walls.node, walls.block, walls.owner, every)
    twist = twisted(walls.exact, lines, walls.node, walls.nodes, walls.owner, every)
    outlines, turned = walls.outlines(lines, np.arange(len(exact)))
    valid = shapely.is_valid(outlines).all()
    in_order = not (len(meets) or len(twist) or turned.any()) and valid
    if in_order:
        assert shapely.coverage_is_valid(outlines)
    if valid and not shapely.coverage_is_valid(outlines):
        assert len(meets) or len(twist)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), blob=st.sampled_from([1, 2, 3]), background=st.sampled_from([0, None]))
def test_walls_make_the_outlines_again(seed: int, blob: int, background: int | None) -> None:
    exact = mosaic(seed, 16, blob, background)
    if not len(exact):
        return
    block = np.arange(len(exact)) % 2
    walls = Walls.of(exact, block)
    outlines, turned = walls.outlines(walls.exact, np.arange(len(exact)))
    assert shapely.equals(outlines, exact).all()
    assert not turned.any()
    sides = shapely.length(walls.exact.shapes()).sum()
    assert sides == sum(
        shapely.length(shapely.union_all(shapely.boundary(exact[block == b]))) for b in np.unique(block)
    )
    for wall, (one, other) in enumerate(walls.node):
        ends = walls.exact.xy[[walls.exact.start[wall], walls.exact.start[wall + 1] - 1]]
        assert (one == other) == (ends[0] == ends[1]).all()
    for which in itertools.islice(range(len(exact)), 5):
        few, _ = walls.outlines(walls.exact, np.array([which]))
        assert shapely.equals_exact(few[0], outlines[which])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    blob=st.sampled_from([1, 2, 3]),
    background=st.sampled_from([0, None]),
    blocks=st.integers(1, 3),
)
def test_walls_are_cut_where_more_than_two_sides_of_pixels_meet(
    seed: int, blob: int, background: int | None, blocks: int
) -> None:
    exact = mosaic(seed, 16, blob, background)
    assume(len(exact))
    block = np.random.default_rng(seed).integers(0, blocks, len(exact)) * 7
    sides = {
        (mine, *sorted((here, there)))
        for mine, polygon in zip(block.tolist(), exact, strict=True)
        for ring in shapely.get_rings(polygon)
        for here, there in itertools.pairwise(map(tuple, shapely.get_coordinates(shapely.segmentize(ring, 1)).tolist()))
    }
    meet = Counter((mine, end[1], end[0]) for mine, *ends in sides for end in ends)
    corners = sorted(corner for corner, count in meet.items() if count > 2)
    walls = Walls.of(exact, block)
    names = np.unique(block)
    found, on_the_way = {}, set()
    for wall, (line, ends) in enumerate(zip(walls.exact.shapes(), walls.node, strict=True)):
        mine = int(names[walls.block[wall]])
        passed = [(mine, y, x) for x, y in shapely.get_coordinates(shapely.segmentize(line, 1)).tolist()]
        found |= {
            int(node): place for node, place in zip(ends, (passed[0], passed[-1]), strict=True) if node < walls.nodes
        }
        on_the_way |= set(passed[1:-1])
    assert found == dict(enumerate(corners))
    assert walls.nodes == len(corners)
    assert not on_the_way & set(corners)
    assert shapely.length(walls.exact.shapes()).sum() == len(sides)


def test_a_ring_that_has_turned_round_is_told() -> None:
    labels = np.zeros((4, 4), np.uint8)
    labels[1, 1] = 1
    exact = polygonise_whole(labels, background=None).geometry
    walls = Walls.of(exact, np.zeros(2, np.int64))
    assert len(walls.exact) == 2, "the inner one is a wall of both"
    inner = np.flatnonzero(walls.exact.boxes()[:, 0] > 0)
    mirrored = walls.exact.select(inner)
    lines = walls.exact.with_others(inner, Lines(mirrored.xy[:, ::-1], mirrored.start))
    outlines, turned = walls.outlines(lines, np.arange(2))
    assert shapely.is_valid(outlines).all()
    assert turned.tolist() == [True, True]
    assert walls.outlines(walls.exact, np.arange(2))[1].tolist() == [False, False]


STAR = [(0, 0), (1, 0), (0, 1), (-1, 0)]


@pytest.mark.parametrize(
    ("ends", "twist"),
    [
        ([(1, 0), (0, 1), (-1, 0)], False),
        ([(2, 1), (1, 2), (-1, -1)], False),
        ([(1, 1), (1, 0), (-1, 0)], True),  # the first two have changed places
        ([(1, 1), (2, 2), (-1, 0)], True),  # one way
    ],
)
def test_walls_leave_a_place_in_their_order(ends: list[tuple[int, int]], *, twist: bool) -> None:
    exact, now = (
        Lines(np.array([xy for end in some for xy in ((0, 0), end)]), np.arange(0, 7, 2)) for some in (STAR[1:], ends)
    )
    node = np.array([[0, 1], [0, 2], [0, 3]])
    shared, every = np.full(3, -1), np.ones(3, np.bool_)
    assert twisted(exact, now, node, 1, shared, every).tolist() == ([0, 1, 2] if twist else [])
    assert not len(twisted(exact, now, node, 1, shared, ~every))
    few = np.array([True, False, False])
    assert twisted(exact, now, node, 1, shared, few).tolist() == ([0, 1, 2] if twist else [])


@pytest.mark.parametrize(
    ("owner", "twist"),
    [([0, 1, -1], False), ([0, 0, -1], True), ([0, -1, 1], True), ([-1, -1, 1], True)],
)
@pytest.mark.parametrize("second", [(2, 2), (2, 2 - 1e-15), (2, 2 + 1e-15)])
def test_a_gap_may_close(owner: list[int], second: tuple[float, float], *, twist: bool) -> None:
    """Two walls of two polygons go one way, if what lay between them was background."""
    exact, now = (
        Lines(np.array([xy for end in ends for xy in ((0, 0), end)], float), np.arange(0, 7, 2))
        for ends in (STAR[1:], [(1, 1), second, (-1, 0)])
    )
    node, every = np.array([[0, 1], [0, 2], [0, 3]]), np.ones(3, np.bool_)
    assert bool(len(twisted(exact, now, node, 1, np.array(owner), every))) == twist
    turned = Lines(np.array([(0, 0), (1, 1), (0, 0), (1, 0), (0, 0), (-1, 0)], float), np.arange(0, 7, 2))
    assert len(twisted(exact, turned, node, 1, np.array(owner), every)), "two that changed places are no closed gap"


@pytest.mark.parametrize(
    ("one", "other", "meets"),
    [
        ([(0, 0), (2, 0)], [(1, -1), (1, 1)], True),
        ([(0, 0), (2, 0)], [(1, 0), (1, 1)], True),  # at a vertex of one
        ([(0, 0), (2, 0), (2, 2)], [(4, 0), (2, 0), (4, 2)], True),  # at a vertex of both that is no end
        ([(0, 0), (2, 0)], [(0, 0), (1, 1)], False),
        ([(0, 0), (2, 0)], [(0, 0), (1, 0)], True),  # one way from the same place
        ([(0, 0), (2, 0)], [(2, 0), (0, 0)], True),  # between the same places
        ([(0, 0), (2, 0)], [(0, 0), (2, 0)], True),
        ([(0, 0), (2, 0)], [(2, 0), (1, 1), (0, 0)], False),
        ([(0, 0), (2, 0)], [(0, 1), (2, 1)], False),
    ],
)
def test_two_walls(one: list[tuple[int, int]], other: list[tuple[int, int]], *, meets: bool) -> None:
    lines = Lines(np.array(one + other, float), np.cumsum([0, len(one), len(other)]))
    places = {xy: number for number, xy in enumerate((one[0], one[-1]))}
    node = np.array([[0, 1], [places.get(other[0], 2), places.get(other[-1], 3)]])
    every, together = np.ones(2, np.bool_), np.zeros(2, np.int64)
    is_gap = {one[0], one[-1]} == {other[0], other[-1]} and len(one) == len(other) == 2
    for owner in ([-1, -1], [4, -1], [4, 4], [4, 5]):
        closes = is_gap and owner == [4, 5]
        whose = np.array(owner)
        assert bool(len(meeting(lines, node, together, whose, every))) == (meets and not closes)
        assert bool(len(meeting(lines, node, together, whose, np.array([False, True])))) == (meets and not closes)
        assert not len(meeting(lines, node, np.arange(2), whose, every)), "blocks have nothing to do with each other"
        assert not len(meeting(lines, node, together, whose, ~every))
