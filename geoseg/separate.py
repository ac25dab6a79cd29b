"""Objects that touch, told apart by a score that is high in the middle of each: a watershed, exact under any tiling.

**What is cut.** The pixels of one label are the nodes of a graph, neighbours in rows and columns its edges. The height
of an edge is the lower of its two scores; among equals the higher score counts, then the place, so that no two edges
are equal. Where a connected group of pixels reaches a threshold and is large enough, it is a seed. The maximum
spanning forest of which every tree holds one seed is a watershed (Meyer 1994, "Minimum spanning forests for
morphological segmentation"; Cousty, Bertrand, Najman & Couprie 2009, "Watershed cuts"), and as no two edges are equal,
it is the only one. Each of its trees is an object. What no seed can reach stays one object.

**In one window.** All edges of a pixel that does not lie on the window's border are known, so the best edge out of a
tree that holds no seed and no such pixel belongs to the forest of the scene, whatever lies beyond (cut property). So
trees grow (Boruvka 1926) until each holds a seed, a group that may go on beyond the border, or a pixel on it. The
first round of growing is a look at the four neighbours: an edge to a higher neighbour is the better one, so every
pixel hangs on its highest.

**What stays open** is a small graph of such trees. An edge that is the worst of a circle belongs to no forest of the
scene either (cycle property), so of the edges between trees only a forest is handed on. Where all windows were seen,
groups become whole, the edges across the seams are added, and one and the same routine decides.

On a plateau of three pixels and more the place decides, which leaves the wall straight but not in its middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from geoseg.compiled import Compiled
from geoseg.raster import CONFIDENCE_STEPS, NODATA
from geoseg.runs import Runs, components, connect, first_of, pad, sides

if TYPE_CHECKING:
    from collections.abc import Iterable

    from geoseg.window import Window

__all__ = ["Edges", "Separation", "Watershed", "heights", "merge", "pair_keys", "separate"]

_Ints: TypeAlias = NDArray[np.int64]
_Bools: TypeAlias = NDArray[np.bool_]

_ROW_BITS: Final = 33  # a key has room for 2**30 rows and 2**32 columns, and one bit for the direction


@dataclass(frozen=True)
class Separation:
    """What a seed is: connected pixels of one label with at least this score (0..1), and at least that many."""

    seed: float
    min_seed_pixels: int = 1

    def __post_init__(self) -> None:
        """Refuse what no pixel or every pixel fulfils."""
        if not 0 < self.seed <= 1:
            msg = f"the seeds' score must lie above 0 and not above 1, got {self.seed}"
            raise ValueError(msg)
        if self.min_seed_pixels < 1:
            msg = f"a seed needs at least one pixel, got {self.min_seed_pixels}"
            raise ValueError(msg)

    @property
    def code(self) -> int:
        """The least code of a score that reaches the threshold."""
        return math.ceil(round(self.seed * CONFIDENCE_STEPS, 6))


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of pixels, or of the parts they belong to, that meet: a struct of arrays of length n."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    height: NDArray[np.uint16]
    """The lower score times 256, plus the higher."""
    key: NDArray[np.int64]
    """The place of the pair of pixels, counted from the scene's origin; no two are equal."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.key)

    def select(self, index: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Edges:
        """Those that a mask (n,) or an array of places picks."""
        return Edges(self.first[index], self.second[index], self.height[index], self.key[index])

    def between(self, number: NDArray[np.integer[Any]]) -> Edges:
        """The same edges between what their ends belong to."""
        return replace(self, first=number[self.first].astype(np.int64), second=number[self.second].astype(np.int64))

    def best_first(self) -> Edges:
        """Sorted by height, the highest first, and by place."""
        return self.select(np.lexsort((self.key, ~self.height)))

    @classmethod
    def concatenate(cls, edges: Iterable[Edges]) -> Edges:
        """All of them, in their order."""
        none = cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint16), np.empty(0, np.int64))
        every = [none, *edges]
        return cls(*(np.concatenate([getattr(e, f.name) for e in every]) for f in fields(cls)))


def heights(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Heights of the edges between pixels of these scores."""
    low, high = np.minimum(one, other).astype(np.uint16), np.maximum(one, other)
    height: NDArray[np.uint16] = (low << np.uint16(8)) | high
    return height


def pair_keys(row: _Ints, col: _Ints, down: int | _Ints) -> _Ints:
    """Keys of pairs: the row and column of the left or upper pixel in the scene, and 1 if the other lies below."""
    keys: _Ints = (row << _ROW_BITS) + (col << 1) | down
    return keys


@dataclass(frozen=True, eq=False)
class Watershed:
    """What one window tells of its objects. A pixel is its place in the padded window, as in `Runs`."""

    runs: Runs
    """With walls between parts: objects, or what may become one with others."""
    seeds: _Ints
    """A pixel of every group that is a seed, or may be part of one."""
    seed_pixels: _Ints
    """The pixels of each of these groups in the window."""
    links: Edges
    """Between pixels of parts that may become one."""
    sides: tuple[NDArray[np.uint8], ...]
    """The scores along the window's border, nodata being 0: top, bottom, left, right."""
    separation: Separation


def separate(
    runs: Runs, block: NDArray[np.int32], score: NDArray[np.uint8], window: Window, separation: Separation
) -> Watershed:
    """Part what touches in one window, as far as this does not depend on what lies beyond.

    `block`: number of the connected component of each run, -1 for none. `score` (rows, columns): codes of 1/250, where
    nodata counts as 0.
    """
    score = score * (score != NODATA)
    flat = pad(score, 0).ravel()
    groups = _Groups.of(runs, block, flat, separation)
    first, second, key, fixed = _trees(runs, block, groups, flat)
    place = key >> 1
    edges = Edges(first, second, heights(flat[place], flat[place + np.where(key & 1, runs.width, 1)]), key)
    known = np.zeros(len(fixed), np.bool_)
    known[: len(groups.first)] = groups.is_seed
    candidates = edges.select(~(known[edges.first] & known[edges.second])).best_first()
    candidates = candidates.select(forest(candidates, known))
    settled = forest(candidates, fixed)
    part = connect(len(fixed), candidates.first[settled], candidates.second[settled])
    walls = edges.key[part[edges.first] != part[edges.second]]
    told = groups.is_seed | groups.is_open
    return Watershed(
        runs=runs.walled(walls[walls & 1 == 0] >> 1, walls[walls & 1 == 1] >> 1),
        seeds=groups.first[told],
        seed_pixels=groups.pixels[told],
        links=_in_scene(candidates.select(~settled), runs.width, window),
        sides=sides(score),
        separation=separation,
    )


def merge(edges: Edges, seed_pixels: _Ints, separation: Separation) -> NDArray[np.int32]:
    """(parts,): the number of the object that each part belongs to, counted in the order of their first parts.

    `edges`: all links of all windows and all pairs of pixels across their seams. `seed_pixels`: the pixels of each
    part's group, 0 if it has none.
    """
    one_group = edges.height >> 8 >= separation.code
    group = connect(len(seed_pixels), edges.first[one_group], edges.second[one_group])
    pixels = np.zeros(int(group.max(initial=-1)) + 1, np.int64)
    np.add.at(pixels, group, seed_pixels)
    rest = edges.select(~one_group).between(group).best_first()
    chosen = forest(rest, pixels >= separation.min_seed_pixels)
    number: NDArray[np.int32] = connect(len(pixels), rest.first[chosen], rest.second[chosen])[group]
    return number


def forest(edges: Edges, rooted: _Bools) -> _Bools:
    """(n,): which of the edges, the best first, make the best forest on the nodes 0 to len(rooted) - 1.

    No two rooted nodes are in one tree; a tree without one spans all that hangs together. In every round each tree
    that has no root takes the best edge that leads out of it (Boruvka 1926), so there are half as many such trees in
    the next.
    """
    tree = np.arange(len(rooted))
    chosen = np.zeros(len(edges), np.bool_)
    left = np.arange(len(edges))
    while True:
        one, other = tree[edges.first[left]], tree[edges.second[left]]
        useful = (one != other) & ~(rooted[one] & rooted[other])
        left, one, other = left[useful], one[useful], other[useful]
        if not len(left):
            return chosen
        best = np.full(len(rooted), len(left))
        np.minimum.at(best, one, np.arange(len(left)))
        np.minimum.at(best, other, np.arange(len(left)))
        growing = np.flatnonzero((best < len(left)) & ~rooted)
        taken = best[growing]
        chosen[left[taken]] = True
        target = np.arange(len(rooted))
        target[growing] = one[taken] + other[taken] - growing
        tree = _roots(target)[tree]


def _roots(target: _Ints) -> _Ints:
    """Where every node ends that follows the targets: at one that is its own, or at the first of a pair of twins.

    Twins are each other's target; there are no longer circles. By pointer doubling.
    """
    back = np.flatnonzero(target.take(target) == np.arange(len(target)))
    target = target.copy()
    target[back] = np.minimum(target[back], back)
    while True:
        further = target.take(target)
        if np.array_equal(further, target):
            return target
        target = further


# --- one window ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Groups:
    """Connected pixels of one label that reach the threshold: k of them, and the runs that they are made of."""

    run_start: _Ints
    run_pixels: _Ints
    run_group: NDArray[np.int32]
    first: _Ints
    pixels: _Ints
    block: NDArray[np.int32]
    is_open: _Bools
    """Whether it touches the window's border."""
    is_seed: _Bools
    """Whether it is large enough, whatever lies beyond the border."""

    @classmethod
    def of(cls, runs: Runs, block: NDArray[np.int32], score: NDArray[np.uint8], separation: Separation) -> _Groups:
        """Find them."""
        cut, is_high = _cut(runs.start, runs.flat[runs.start] != NODATA, score, separation.code)
        number = components(cut, is_high, runs.down, runs.width)
        run = np.flatnonzero(is_high)
        start, length, group = cut[run], cut[run + 1] - cut[run], number[run]
        count = int(group.max(initial=-1)) + 1
        pixels = np.zeros(count, np.int64)
        np.add.at(pixels, group, length)
        first = start[first_of(group, count)]
        is_open = np.zeros(count + 1, np.bool_)
        side = np.searchsorted(cut, np.concatenate(runs.sides()), side="right") - 1
        is_open[number[side]] = True  # the last place is that of no group
        is_open = is_open[:-1]
        is_seed = pixels >= separation.min_seed_pixels
        return cls(start, length, group, first, pixels, block[runs.find(first)], is_open, is_seed)


@Compiled
def _cut(start: _Ints, is_object: _Bools, score: NDArray[np.uint8], code: int) -> tuple[_Ints, _Bools]:
    """Cut those of the runs that are objects where they reach a score: the starts of all, and which of them do."""
    cut, is_high = np.empty(1 << 12, np.int64), np.empty(1 << 12, np.bool_)
    count = 0
    for run in range(len(start)):
        end = start[run + 1] if is_object[run] else start[run] + 1
        if count + end - start[run] > len(cut):
            cut = np.concatenate((cut, np.empty(len(cut) + end - start[run], np.int64)))
            is_high = np.concatenate((is_high, np.empty(len(cut) - len(is_high), np.bool_)))
        high = is_object[run] and score[start[run]] >= code
        cut[count], is_high[count] = start[run], high
        count += 1
        for pixel in range(start[run] + 1, end):
            if (score[pixel] >= code) != high:
                high = not high
                cut[count], is_high[count] = pixel, high
                count += 1
    return cut[:count].copy(), is_high[:count].copy()


def _trees(
    runs: Runs, block: NDArray[np.int32], groups: _Groups, score: NDArray[np.uint8]
) -> tuple[_Ints, _Ints, _Ints, _Bools]:
    """First round of the forest, without the blocks that are whole and hold no two seeds.

    All edges between two trees: both trees, and the keys: twice the left or upper place, plus 1 if downwards. And
    (trees,) whether a tree holds a seed, or what is not wholly known. Those of groups come first, in their order.
    """
    border = np.concatenate(runs.sides())
    blocks = int(block.max(initial=-1)) + 1
    wanted = np.zeros(blocks + 1, np.bool_)
    wanted[:-1] = np.bincount(groups.block[groups.is_seed], minlength=blocks) > 1
    wanted[block[runs.find(border)]] = True
    wanted[-1] = False  # the place of no block
    run = np.flatnonzero(wanted[block])
    high = np.flatnonzero(wanted[groups.block][groups.run_group])
    fixed = groups.is_seed.copy()
    first, second, key, at_border, trees = _climb(
        score,
        runs.down,
        runs.width,
        runs.start[run],
        runs.lengths[run],
        groups.run_start[high],
        groups.run_pixels[high],
        groups.run_group[high],
        border[runs.flat[border] != NODATA],
        fixed,
    )
    more = np.zeros(trees - len(fixed), np.bool_)
    more[:at_border] = True
    return first, second, key, np.concatenate([fixed, more])


@Compiled
def _climb(  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  # compiled functions call no others
    score: NDArray[np.uint8],
    down: _Bools,
    width: int,
    start: _Ints,
    length: _Ints,
    high_start: _Ints,
    high_length: _Ints,
    high_group: NDArray[np.int32],
    border: _Ints,
    fixed: _Bools,
) -> tuple[_Ints, _Ints, _Ints, int, int]:
    """The edges between trees of the pixels of runs: see `_trees`. High runs belong to their groups, which are trees.

    So is each other pixel at the border; the groups that lie there are marked as `fixed`. How many such pixels there
    are, and trees, is told, too.

    Of a pixel's edges, the one to the highest neighbour is the best; among equals that which comes first, which is the
    one from above, from the left, to the right, downwards. Who follows the best edges ends in a group, at a pixel at
    the border, at one without edges, or at two that lead to each other. There are no longer circles.

    What is the same for all pixels of a run is done without a branch, in numbers that are small: many in one go.
    """
    tree = np.empty(len(score), np.int32)  # only that of pixels of the runs is looked at
    for run in range(len(start)):
        tree[start[run] : start[run] + length[run]] = -1
    for run in range(len(high_start)):
        tree[high_start[run] : high_start[run] + high_length[run]] = high_group[run]
    count = len(fixed)
    for pixel in border:
        if tree[pixel] < 0:
            tree[pixel] = count
            count += 1
        elif tree[pixel] < len(fixed):
            fixed[tree[pixel]] = True
    at_border = count - len(fixed)
    step = np.array([width, 1, -1, -width])
    ways = np.empty(width, np.int16)  # four times the height of the best neighbour, the way there, and 1; 0 for none
    for run in range(len(start)):
        begin, end, last = start[run], start[run] + length[run], length[run] - 1
        below, above = score[begin + width : end + width], score[begin - width : end - width]
        right, left = score[begin + 1 : end + 1], score[begin - 1 : end - 1]
        no_below, no_above = down[begin:end], down[begin - width : end - width]
        for k in range(length[run]):
            best = np.int16((np.int16(below[k]) * np.int16(4) + np.int16(1)) * np.int16(not no_below[k]))
            other = np.int16((np.int16(right[k]) * np.int16(4) + np.int16(2)) * np.int16(k != last))
            best = other if other > best else best  # noqa: FURB136  # as in `_sum_confidence`
            other = np.int16((np.int16(left[k]) * np.int16(4) + np.int16(3)) * np.int16(k != 0))
            best = other if other > best else best  # noqa: FURB136
            other = np.int16((np.int16(above[k]) * np.int16(4) + np.int16(4)) * np.int16(not no_above[k]))
            best = other if other > best else best  # noqa: FURB136
            ways[k] = best
        for k in range(length[run]):
            own, way = tree[begin + k], (ways[k] - 1) & 3
            beyond = begin + k + step[way]
            to = tree[beyond]
            if ways[k] == 0 or to == way - 5:  # without edges, or the other one leads here
                if own < 0:
                    tree[begin + k] = count
                    if ways[k]:
                        tree[beyond] = count
                    count += 1
                continue
            code = to if to >= 0 else -2 - way  # which way to go, where the tree is not known yet
            tree[begin + k] = own if own >= 0 else code
    for run in range(len(start)):
        for pixel in range(start[run], start[run] + length[run]):
            here = pixel
            while tree[here] < 0:
                here += step[-2 - tree[here]]
            root = tree[here]
            here = pixel
            while tree[here] < 0:
                further = here + step[-2 - tree[here]]
                tree[here] = root
                here = further
    first = np.empty(1 << 12, np.int64)
    second = np.empty_like(first)
    key = np.empty_like(first)
    links = 0
    parted = np.zeros((width + 7) // 8 * 8, np.uint8)  # 1: a pixel and the next one lie in two trees; 2: the one below
    eight = parted.view(np.uint64)
    for run in range(len(start)):
        begin, end, words = start[run], start[run] + length[run], (length[run] + 7) // 8
        if links + 2 * length[run] > len(first):
            more = np.empty(len(first) + 2 * length[run], np.int64)
            first = np.concatenate((first, more))
            second = np.concatenate((second, more))
            key = np.concatenate((key, more))
        row, next_one = tree[begin:end], tree[begin + 1 : end + 1]
        lower, no_lower = tree[begin + width : end + width], down[begin:end]
        for k in range(length[run]):
            across = np.uint8(row[k] != next_one[k])
            parted[k] = across | np.uint8(row[k] != lower[k]) * np.uint8(not no_lower[k]) * np.uint8(2)
        parted[length[run] - 1] &= 2  # what is behind the run belongs to another one
        parted[length[run] : 8 * words] = 0
        for word in range(words):
            if eight[word]:
                for k in range(8 * word, 8 * word + 8):
                    if parted[k] & 1:
                        first[links], second[links], key[links] = row[k], next_one[k], 2 * (begin + k)
                        links += 1
                    if parted[k] & 2:
                        first[links], second[links], key[links] = row[k], lower[k], 2 * (begin + k) + 1
                        links += 1
    return first[:links].copy(), second[:links].copy(), key[:links].copy(), at_border, count


def _in_scene(edges: Edges, width: int, window: Window) -> Edges:
    """The edges with the pixels of the padded window for their ends, and keys that hold in the scene."""
    place, down = edges.key >> 1, edges.key & 1
    row, col = np.divmod(place, width)
    key = pair_keys(row - 1 + window.row_start, col - 1 + window.col_start, down)
    return Edges(place, place + np.where(down, width, 1), edges.height, key)
