"""Laws of the engine: what a scene becomes is a matter of the scene, and of nothing else.

The network of these tests is deliberately not shift-invariant and mixes its whole patch, so patches disagree about
every pixel: any change in which of them are blended, how, or in what order shows in the result.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import threading
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import INVALID, ArraySource, MixingPredict, at_centres, chunks_of, legend_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geoseg import labelling, predict
from geoseg.compiled import Compiled
from geoseg.errors import ModelError
from geoseg.labelling import Between, label, ready
from geoseg.predict import Decision, Engine, TileReport, _Accumulator, decide, default_batch, default_lanes
from geoseg.raster import CONFIDENCE_STEPS, NODATA, Band, Raster
from geoseg.tiling import CHUNK, Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

UNWRITTEN = 77

VALIDITY = {
    "all": lambda shape, rng: np.ones(shape, bool),  # noqa: ARG005  as the others
    "speckle": lambda shape, rng: rng.random(shape) < 0.5,
    "few": lambda shape, rng: rng.random(shape) < 0.01,
    "a row": lambda shape, rng: np.arange(shape[0])[:, None] == np.full(shape, rng.integers(shape[0])),
    "two halves": lambda shape, rng: (np.arange(shape[0])[:, None] // 7 + np.zeros(shape[1], int)) % 5 < 2,  # noqa: ARG005
    "a quarter": lambda shape, rng: np.logical_and.outer(*(np.arange(side) < side // 2 for side in shape)),  # noqa: ARG005
    "a corner": lambda shape, rng: np.add.outer(np.arange(shape[0]), np.arange(shape[1])) > rng.integers(sum(shape)),
}


@dataclass(frozen=True)
class Case:
    """A scene, a network, and how one is mapped by the other; the tile covers the scene."""

    shape: tuple[int, int]
    patch: tuple[int, int] = (9, 7)
    stride: tuple[int, int] = (6, 5)
    bands: int = 2
    classes: int = 3
    auxiliary: int = 0
    threshold: float | None = None
    validity: str = "all"
    chunk: int = 8
    seed: int = 0
    cells: tuple[int, int] | None = None
    """Along a patch; None: one for each pixel."""

    @property
    def fill(self) -> tuple[int, ...]:
        return (127, 3, 250)[: self.bands]

    @property
    def decision(self) -> Decision:
        return Decision(legend_of(self.classes), self.threshold)

    def tiling(self, tile: tuple[int, int] | None = None) -> Tiling:
        return Tiling(self.shape, self.patch, self.stride, tile or self.shape, self.cells)

    def source(self) -> ArraySource:
        rng = np.random.default_rng(self.seed)
        values = rng.integers(0, 256, (self.bands, *self.shape), dtype=np.uint8)
        return ArraySource(values, VALIDITY[self.validity](self.shape, rng))

    def predict(self) -> MixingPredict:
        return MixingPredict(self.classes + self.auxiliary, self.bands, self.cells or self.patch, self.seed)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Patch, stride and cells: as many as pixels, or fewer, each of which need not be whole pixels."""
    if draw(st.booleans()):
        patch = draw(st.integers(1, 16))
        return patch, draw(st.integers(-(-patch // 3), patch)), patch
    per_unit = draw(st.integers(1, 4))
    unit, units = draw(st.integers(per_unit, 3 * per_unit)), draw(st.integers(1, max(1, 8 // per_unit)))
    return unit * units, unit * draw(st.integers(-(-units // 3), units)), per_unit * units


@st.composite
def cases(draw: st.DrawFn) -> Case:
    patch, stride, cells = zip(draw(axes()), draw(axes()), strict=True)
    shape = tuple(draw(st.integers(1, min(45, side + 5 * step))) for side, step in zip(patch, stride, strict=True))
    return Case(
        shape,
        patch,
        stride,
        bands=draw(st.integers(1, 3)),
        classes=draw(st.integers(1, 9)),
        auxiliary=draw(st.integers(0, 2)),
        threshold=draw(st.sampled_from([None, None, 0.3, 0.5, 0.9])),
        validity=draw(st.sampled_from(list(VALIDITY))),
        chunk=draw(st.sampled_from([8, 16])),
        seed=draw(st.integers(0, 2**32 - 1)),
        cells=draw(st.sampled_from([cells, cells, None])) if cells != patch else None,
    )  # fmt: skip


@st.composite
def covers(draw: st.DrawFn, shape: tuple[int, int], chunk: int) -> list[Window]:
    """Chunk-aligned cores that cover a scene, by recursive cuts, in any order."""

    def cut(window: Window, depth: int) -> Iterator[Window]:
        """In chunks."""
        rows, cols = window.shape
        if depth == 0 or window.size == 1 or draw(st.integers(0, 5)) == 0:
            row, row_stop, col, col_stop = (edge * chunk for edge in (*window.row_range, *window.col_range))
            yield Window(row, min(row_stop, shape[0]), col, min(col_stop, shape[1]))
        elif rows > 1 and (cols == 1 or draw(st.booleans())):
            at = window.row_start + draw(st.integers(1, rows - 1))
            yield from cut(window.rows(window.row_start, at), depth - 1)
            yield from cut(window.rows(at, window.row_stop), depth - 1)
        else:
            at = window.col_start + draw(st.integers(1, cols - 1))
            yield from cut(Window(*window.row_range, window.col_start, at), depth - 1)
            yield from cut(Window(*window.row_range, at, window.col_stop), depth - 1)

    chunks = Window(0, -(-shape[0] // chunk), 0, -(-shape[1] // chunk))
    return draw(st.permutations(list(cut(chunks, 4))))


class ArraySink:
    """A result in memory that checks what it is given."""

    def __init__(self, case: Case) -> None:
        self.labels = np.full(case.shape, UNWRITTEN, np.uint8)
        self.confidence = np.full(case.shape, UNWRITTEN, np.uint8)
        self.auxiliary = np.full((case.auxiliary, *case.shape), UNWRITTEN, np.uint8)
        self.times = np.zeros(case.shape, int)
        self.windows: list[Window] = []
        self.chunk = case.chunk

    def write(self, band: Band) -> None:
        assert band.labels.dtype == band.confidence.dtype == band.auxiliary.dtype == np.uint8
        assert band.labels.shape == band.confidence.shape == band.auxiliary.shape[1:] == band.window.shape
        assert band.window.row_start % self.chunk == 0
        assert band.window.row_stop % self.chunk == 0 or band.window.row_stop == len(self.labels)
        self.times[band.window.slices] += 1
        self.windows.append(band.window)
        self.labels[band.window.slices] = band.labels
        self.confidence[band.window.slices] = band.confidence
        self.auxiliary[:, *band.window.slices] = band.auxiliary


def run(
    case: Case,
    cores: Iterable[Window] | None = None,
    *,
    lanes: int = 1,
    batch: int = 1,
    source: Any = None,
    predict: Any = None,
) -> ArraySink:
    """The case's result, tile by tile."""
    sink, source, predict = ArraySink(case), source or case.source(), predict or case.predict()
    with chunks_of(case.chunk), Engine(predict, case.decision, case.fill, batch, lanes) as engine:
        tiling = case.tiling()
        for core in [Window.of_shape(case.shape)] if cores is None else cores:
            engine.run(source, tiling.tile_of(core), tiling, sink)
    return sink


def assert_identical(one: ArraySink, other: ArraySink, window: Window | None = None) -> None:
    """Bit by bit; within a window."""
    inside = (slice(None), slice(None)) if window is None else window.slices
    assert (one.times[inside] == 1).all()
    assert (other.times[inside] == 1).all()
    np.testing.assert_array_equal(one.labels[inside], other.labels[inside])
    np.testing.assert_array_equal(one.confidence[inside], other.confidence[inside])
    np.testing.assert_array_equal(one.auxiliary[:, *inside], other.auxiliary[:, *inside])


@settings(max_examples=120)
@given(st.data(), cases(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_tiled_is_whole(data: st.DataObject, case: Case, lanes: int, other_lanes: int, batch: int) -> None:
    cores = data.draw(covers(case.shape, case.chunk))
    assert_identical(run(case, cores, lanes=lanes, batch=batch), run(case, lanes=other_lanes, batch=batch))


@settings(max_examples=40)
@given(cases(), st.integers(1, 3), st.integers(1, 3))
def test_the_planned_tiles_are_whole(case: Case, rows: int, cols: int) -> None:
    with chunks_of(case.chunk):
        tiling = case.tiling((rows * case.chunk, cols * case.chunk))
    assert_identical(run(case, [tile.core for tile in tiling.tiles()]), run(case, batch=3))


@settings(max_examples=40)
@given(st.data(), cases())
def test_a_tile_begun_in_the_middle_is_the_rest_of_the_whole(data: st.DataObject, case: Case) -> None:
    first = data.draw(st.integers(0, (case.shape[0] - 1) // case.chunk)) * case.chunk
    rest = Window(first, case.shape[0], 0, case.shape[1])
    resumed = run(case, [rest], lanes=2)
    assert_identical(resumed, run(case), rest)
    assert not resumed.times[:first].any()


def test_tiled_is_whole_at_the_real_chunk() -> None:
    case = Case(
        (CHUNK + 188, 2 * CHUNK + 76), (128, 96), (90, 96), classes=4, auxiliary=1, validity="a corner", chunk=CHUNK
    )
    cores = [tile.core for tile in case.tiling((CHUNK, CHUNK)).tiles()]
    assert len(cores) == 6
    assert_identical(run(case, reversed(cores), lanes=2, batch=4), run(case, lanes=1, batch=4))
    in_cells = replace(case, patch=(148, 96), stride=(111, 96), cells=(32, 24))  # of 37/8 x 4 pixels
    cores = [tile.core for tile in in_cells.tiling((CHUNK, CHUNK)).tiles()]
    assert_identical(run(in_cells, cores, lanes=2, batch=4), run(in_cells, batch=4))


class Jittery(MixingPredict):
    """The first of every three passes takes longest, so that with three lanes passes end in another order."""

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        scores = super().__call__(patches, cells)
        time.sleep((0.004, 0.001, 0)[len(self.shapes) % 3])
        return scores


def test_the_order_in_which_passes_end_does_not_matter() -> None:
    case = Case((40, 30), classes=4, auxiliary=2)
    jittery = Jittery(6, case.bands, case.cells or case.patch, case.seed)
    assert_identical(run(case, lanes=3, predict=jittery), run(case))


def by_definition(case: Case) -> NDArray[np.float64]:
    """Scores (output, y, x), in float64, NaN where nothing is known.

    First those of each cell of the lattice: the mean of those of all patches with data, weighted by the taper. Then, at
    each pixel's centre, the bilinear mean of the cells around it that have one; beyond the rim, a cell is as its
    nearest.
    """
    source, predict = case.source(), case.predict()
    cells = case.cells or case.patch
    (rows, row_cells), (cols, col_cells) = (
        by_definition_along(*axis) for axis in zip(case.shape, case.patch, case.stride, cells, strict=True)
    )
    shape = rows[-1] + case.patch[0], cols[-1] + case.patch[1]
    scene = np.broadcast_to(np.array(case.fill, np.uint8)[:, None, None], (case.bands, *shape)).copy()
    np.copyto(scene[:, : case.shape[0], : case.shape[1]], source.values, where=source.valid)
    tapers = [0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(count) + 0.5) / count) for count in cells]
    sums, weights = np.zeros((predict.outputs, row_cells, col_cells)), np.zeros((row_cells, col_cells))
    for row in rows:
        for col in cols:
            here = slice(row, row + case.patch[0]), slice(col, col + case.patch[1])
            if not source.valid[here].any():
                continue
            scores = predict(torch.from_numpy(scene[None, :, *here].copy()), cells).numpy()[0]
            at = round(row * cells[0] / case.patch[0]), round(col * cells[1] / case.patch[1])
            place = slice(at[0], at[0] + cells[0]), slice(at[1], at[1] + cells[1])
            weight = np.outer(*tapers)
            sums[:, *place] += weight * scores.astype(np.float64)
            weights[place] += weight
    blended = np.divide(sums, weights, where=weights > 0, out=np.zeros_like(sums))
    down, along = (
        bilinear(size, patch / count, total)
        for size, patch, count, total in zip(case.shape, case.patch, cells, (row_cells, col_cells), strict=True)
    )
    with np.errstate(invalid="ignore"):
        return (down @ blended @ along.T) / (down @ (weights > 0) @ along.T)


def by_definition_along(size: int, patch: int, stride: int, cells: int) -> tuple[list[int], int]:
    """Where patches start, and how many cells the axis has."""
    unit = next(unit for unit in range(1, patch + 1) if patch % unit == 0 and unit * cells % patch == 0)
    last = max(0, next(start for start in range(0, size + unit, unit) if start + patch >= size))
    starts = sorted({min(start, last) for start in range(0, size, stride)})
    return starts, (starts[-1] + patch) * cells // patch


def bilinear(size: int, side: float, cells: int) -> NDArray[np.float64]:
    """How much of each cell (columns), each being `side` pixels long, is in each pixel (rows)."""
    centres = (np.arange(cells) + 0.5) * side
    pixels = np.clip(np.arange(size) + 0.5, centres[0], centres[-1])
    share = np.clip(1 - abs(pixels[:, None] - centres) / side, 0, None)
    return share / share.sum(1, keepdims=True)


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.softmax(torch.from_numpy(scores), 0).numpy()


def assert_decided(
    scores: NDArray[np.float64],
    decision: Decision,
    labels: NDArray[np.uint8],
    confidence: NDArray[np.uint8],
    where: NDArray[np.bool_],
) -> None:
    """Labels and confidence are what the definition says of these scores (class, y, x), where it is clear."""
    probability = softmax(scores)
    expected = probability.argmax(0)
    sorted_scores = np.sort(scores, axis=0)
    clear = where & (sorted_scores[-1] - sorted_scores[-2] > 1e-3) if len(scores) > 1 else where
    if decision.threshold is not None:
        rest = probability[0]
        objects = np.where(np.arange(len(scores))[:, None, None] == 0, -1, probability)
        expected = np.where(1 - rest >= decision.threshold, objects.argmax(0), 0)
        sorted_scores = np.sort(scores[1:], axis=0)
        apart = sorted_scores[-1] - sorted_scores[-2] > 1e-3 if len(scores) > 2 else True
        clear = where & apart & (abs(1 - rest - decision.threshold) > 1e-4)
    np.testing.assert_array_equal(labels[clear], expected[clear])
    code = np.take_along_axis(probability, labels[None] * where, axis=0)[0] * CONFIDENCE_STEPS
    assert (abs(confidence.astype(float) - code)[where] <= 0.51).all()


@settings(max_examples=100)
@given(cases(), st.sampled_from(["cpu", "no device"]))
def test_the_blend_is_the_weighted_mean_of_all_patches(case: Case, fused_on: str) -> None:
    with mock.patch.object(predict, "FUSED_ON", fused_on):
        check_definition(case)


def test_a_run_takes_what_was_made_ready_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other types of an argument would be compiled once more, while the lanes wait."""
    fresh: Compiled[..., None] = Compiled(labelling._label._function)
    monkeypatch.setattr(labelling, "_label", fresh)
    ready()
    made = fresh._fast.signatures  # type: ignore[union-attr]  # numba's
    assert len(made) == 1
    for classes, threshold in ((2, None), (3, 0.4)):
        run(Case((20, 20), classes=classes, auxiliary=1, threshold=threshold))
    assert fresh._fast.signatures == made  # type: ignore[union-attr]


@settings(max_examples=40)
@given(cases())
def test_one_pass_gives_what_torch_does(case: Case) -> None:
    fused = run(case)
    with mock.patch.object(predict, "FUSED_ON", "no device"):
        by_torch = run(case)
    if case.threshold is None:  # by the scores alone, which have the same bits
        np.testing.assert_array_equal(fused.labels, by_torch.labels)
        assert abs(fused.confidence.astype(int) - by_torch.confidence).max() <= 1
    assert abs(fused.auxiliary.astype(int) - by_torch.auxiliary).max(initial=0) <= 1


@settings(max_examples=40)
@given(st.data(), cases())
def test_tiled_is_whole_on_other_devices(data: st.DataObject, case: Case) -> None:
    cores = data.draw(covers(case.shape, case.chunk))
    with mock.patch.object(predict, "FUSED_ON", "no device"):
        assert_identical(run(case, cores), run(case))


def test_a_device_is_not_waited_for_between_batches() -> None:
    """It is when rows are finished, as often for eight times as many batches. Counted on the CPU, which stands for it.

    Whatever brings a number or an array to the host has to come through one of these.
    """
    waits, batches = Counter[str](), list[int]()

    def counted(name: str) -> Any:
        honest = getattr(torch.Tensor, name)

        def call(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            waits[name] += 1
            return honest(self, *args, **kwargs)

        return mock.patch.object(torch.Tensor, name, call)

    def count(cols: int, *, patched: bool) -> Counter[str]:
        case = Case((45, cols), auxiliary=1, cells=(3, 7), validity="speckle")
        network = case.predict()
        waits.clear()
        with contextlib.ExitStack() as stack:
            for name in (
                "item",
                "cpu",
                "numpy",
                "tolist",
                "__bool__",
                "__float__",
                "__int__",
                "__index__",
                "__array__",
            ):
                stack.enter_context(counted(name))
            if patched:
                stack.enter_context(mock.patch.object(predict, "FUSED_ON", "no device"))
            run(case, predict=network, source=case.source())
        batches.append(len(network.shapes))
        return Counter(waits)

    few, many = count(30, patched=True), count(240, patched=True)
    assert batches[1] > 7 * batches[0]
    assert few == many
    assert few["cpu"] > 0
    assert count(240, patched=False)["__float__"] == batches[2]  # what is counted does tell


class Damaged(MixingPredict):
    """What no number comes of for one patch."""

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        scores = super().__call__(patches, cells)
        if len(self.shapes) == self.at:
            scores[0, 0, 0, 0] = math.nan if self.at % 2 else math.inf
        return scores

    at = 0


@pytest.mark.parametrize("at", [1, 6, 17, 40])
@pytest.mark.parametrize("fused_on", ["cpu", "no device"])
def test_scores_that_are_no_numbers_are_seen_wherever_they_are(at: int, fused_on: str) -> None:
    case = Case((45, 30), auxiliary=1, cells=(3, 7))
    network = Damaged(case.classes + case.auxiliary, case.bands, case.cells or case.patch, case.seed)
    network.at = at
    with mock.patch.object(predict, "FUSED_ON", fused_on), pytest.raises(ModelError, match="not numbers"):
        run(case, predict=network)
    assert len(network.shapes) >= at


def check_definition(case: Case) -> None:
    result, scores, valid = run(case, lanes=2, batch=2), by_definition(case), case.source().valid
    assert (result.times == 1).all()
    between_0_and_1 = CONFIDENCE_STEPS / (1 + np.exp(-scores[case.classes :]))
    assert (abs(result.auxiliary - between_0_and_1)[:, valid] <= 0.51).all()
    assert (result.auxiliary[:, ~valid] == NODATA).all()
    # one class is the most probable one, whatever the threshold
    decision = case.decision if case.classes > 1 else replace(case.decision, threshold=None)
    assert_decided(scores[: case.classes], decision, result.labels, result.confidence, valid)
    np.testing.assert_array_equal(result.labels == NODATA, ~valid)
    np.testing.assert_array_equal(result.confidence == NODATA, ~valid)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (40, 1), (3, 5), (9, 7), (10, 8), (8, 6), (37, 41), (4, 33), (16, 16), (17, 15)], ids=str
)
@pytest.mark.parametrize("validity", ["all", "speckle"])
@pytest.mark.parametrize("cells", [None, (3, 7), (6, 2)], ids=str)
def test_scenes_of_every_shape(shape: tuple[int, int], validity: str, cells: tuple[int, int] | None) -> None:
    """With patches of 9 x 7 pixels, of 9 x 7 with cells of 3 x 1, and of 9 x 8 with cells of 1.5 x 4."""
    patch, stride = ((9, 8), (6, 4)) if cells == (6, 2) else ((9, 7), (6, 5))
    check_definition(Case(shape, patch, stride, auxiliary=1, validity=validity, cells=cells))


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("validity", ["a quarter", "speckle", "a corner"])
def test_large_cells_beside_what_has_no_data(validity: str, stride: int) -> None:
    """Where data ends with a patch, the cells behind have no score; rows that wait keep their validity in order."""
    case = Case((64, 64), (16, 16), (stride, stride), auxiliary=1, validity=validity, cells=(2, 2))
    check_definition(case)
    assert_identical(run(case, every_chunk(case)), run(case))


def every_chunk(case: Case) -> list[Window]:
    """Each storage chunk a tile."""
    return list(Window.of_shape(case.shape).blocks((case.chunk, case.chunk)))


class OneHot:
    """A network that sees the first band as classes, and is sure."""

    device = torch.device("cpu")

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        assert patches.dtype == torch.uint8
        classes = torch.arange(self.outputs)[:, None, None]
        return 30 * (at_centres(patches[:, :1], cells) == classes).float()


@settings(max_examples=60)
@given(cases(), st.integers(1, 3))
def test_an_identity_model_reproduces_its_input(case: Case, lanes: int) -> None:
    case, source = replace(case, auxiliary=0, cells=None), case.source()
    source.values[:] = np.where(source.valid, source.values % case.classes, INVALID)
    result = run(case, lanes=lanes, batch=2, source=source, predict=OneHot(case.classes))
    np.testing.assert_array_equal(result.labels, np.where(source.valid, source.values[0], NODATA))
    np.testing.assert_array_equal(result.confidence, np.where(source.valid, CONFIDENCE_STEPS, NODATA))


class Plane:
    """A scene that goes on beyond its edges: a function of row and column."""

    def __init__(
        self, shape: tuple[int, int], value: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]]
    ) -> None:
        self.shape, self.value = shape, value

    def read(self, window: Window) -> Raster:
        values = self.value(np.arange(*window.row_range)[:, None], np.arange(*window.col_range)[None])
        assert values.max() < 256
        return Raster(values[None].astype(np.uint8), np.ones(window.shape, bool))


@settings(max_examples=60)
@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0, 1]), st.integers(2, 5))
def test_stripes_as_wide_as_cells_are_reproduced(
    data: st.DataObject, down: int, along: int, axis: int, classes: int
) -> None:
    """A pixel is more of the cell it lies in than of any other: no class creeps over a cell's side."""
    sides, cells = (down, along), (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6)))
    patch, stride = (
        tuple(side * n for side, n in zip(sides, many, strict=True))
        for many in (cells, [data.draw(st.integers(-(-n // 3), n)) for n in cells])
    )
    shape = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    case = Case(shape, patch, stride, bands=1, classes=classes, cells=cells, seed=data.draw(st.integers(0, 99)))
    stripes = np.random.default_rng(case.seed).integers(0, classes, 99)
    plane = Plane(shape, lambda rows, cols: stripes[(rows, cols)[axis] // sides[axis]] + 0 * rows + 0 * cols)
    result = run(case, batch=2, source=plane, predict=OneHot(classes))
    np.testing.assert_array_equal(result.labels, plane.read(Window.of_shape(shape)).values[0])


class Brightness:
    """Scores are the mean of each cell's pixels, of which the last one may be a part."""

    device, outputs = torch.device("cpu"), 3

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        down, along = (self.parts(side, count) for side, count in zip(patches.shape[2:], cells, strict=True))
        bright = (down @ patches[:, :1].double() @ along.T).float() / 80
        return torch.cat([bright, 1 - bright, bright - 1], dim=1)

    @staticmethod
    def parts(side: int, count: int) -> torch.Tensor:
        """Which part of each cell (rows) each pixel (columns) is."""
        edges, size = torch.arange(count + 1).double()[:, None] * side / count, side / count
        below = (edges - torch.arange(side)).clamp(0, 1)
        return (below[1:] - below[:-1]) / size


@pytest.mark.parametrize(("patch", "cells", "stride"), [(12, 4, 6), (15, 6, 10), (74, 16, 37), (8, 8, 5)])
@pytest.mark.parametrize("shape", [(60, 66), (61, 47), (9, 61)], ids=str)
def test_a_slope_is_reproduced(patch: int, cells: int, stride: int, shape: tuple[int, int]) -> None:
    """What is between the means of a slope's cells lies on it: nothing moves, by whatever part of a pixel."""
    case = Case(shape, (patch, patch), (stride, stride), 1, 2, 1, cells=(cells, cells))
    result = run(case, source=Plane(shape, np.add), predict=Brightness())
    slope = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))
    half = -(-patch // (2 * cells))  # at the rim, the outermost cell's score goes on
    expected = CONFIDENCE_STEPS / (1 + np.exp(1 - slope / 80))
    # a part of a pixel is as bright as the whole: the mean of a cell of two pixels and a half is 0.05 off its centre
    assert abs(result.auxiliary[0] - expected)[half:-half, half:-half].max() <= (0.6 if patch % cells else 0.51)


@settings(max_examples=60)
@given(st.data(), cases(), st.booleans())
def test_shifting_the_origin_shifts_the_output(data: st.DataObject, case: Case, bare: bool) -> None:  # noqa: FBT001
    shape, offset, larger = [], [], []
    for patch, stride in zip(case.patch, case.stride, strict=True):
        shape.append(patch + data.draw(st.integers(0, 3)) * stride)  # the last patch lies on the lattice
        offset.append(data.draw(st.integers(0, 2)) * math.lcm(stride, case.chunk))
        larger.append(offset[-1] + shape[-1] + patch + data.draw(st.integers(0, 20)))
    case = replace(case, shape=tuple(shape))
    small = case.source()
    around = np.random.default_rng(1).integers(0, 256, (case.bands, *larger), dtype=np.uint8)
    valid = np.full(larger, not bare)
    place = Window(offset[0], offset[0] + shape[0], offset[1], offset[1] + shape[1])
    around[:, *place.slices], valid[place.slices] = small.values, small.valid
    shifted = run(replace(case, shape=tuple(larger)), source=ArraySource(around, valid))
    # nearer to the rim, patches from outside are blended in too
    starts = [at and patch - stride for at, patch, stride in zip(offset, case.patch, case.stride, strict=True)]
    stops = [side - (patch - stride) for side, patch, stride in zip(shape, case.patch, case.stride, strict=True)]
    if case.cells is not None:  # and half a cell more depends on theirs
        half = [-(-patch // (2 * count)) for patch, count in zip(case.patch, case.cells, strict=True)]
        starts = [start + more if at else 0 for start, more, at in zip(starts, half, offset, strict=True)]
        stops = [stop - more for stop, more in zip(stops, half, strict=True)]
    assume(all(start < stop for start, stop in zip(starts, stops, strict=True)))
    inner = Window(starts[0], stops[0], starts[1], stops[1])
    outer = Window(starts[0] + offset[0], stops[0] + offset[0], starts[1] + offset[1], stops[1] + offset[1])
    whole = run(case, source=small)
    np.testing.assert_array_equal(shifted.labels[outer.slices], whole.labels[inner.slices])
    np.testing.assert_array_equal(shifted.confidence[outer.slices], whole.confidence[inner.slices])
    np.testing.assert_array_equal(shifted.auxiliary[:, *outer.slices], whole.auxiliary[:, *inner.slices])


class Watching(MixingPredict):
    """Refuses to see what is not valid, and nothing but what is not valid."""

    def __init__(self, case: Case, batch: int) -> None:
        super().__init__(case.classes + case.auxiliary, case.bands, case.cells or case.patch, case.seed)
        self.fill = torch.tensor(case.fill, dtype=torch.uint8)[:, None, None]
        self.batch = batch
        self.padding: list[int] = []

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        assert not (patches == INVALID).any(), "the network saw what is not valid"
        empty = (patches == self.fill).flatten(1).all(1) | (patches == 0).flatten(1).all(1)
        self.padding.append(int(empty.sum()))
        assert not empty.all(), "a forward pass without any data"
        assert len(patches) == self.batch, "a batch of another shape"
        return super().__call__(patches, cells)


def patches_with_data(case: Case, tiling: Tiling) -> int:
    valid = case.source().valid
    (tile,) = tiling.tiles()
    return sum(
        bool(valid[row : row + case.patch[0], col : col + case.patch[1]].any())
        for row in tile.patch_rows
        for col in tile.patch_cols
    )


@settings(max_examples=80)
@given(cases(), st.integers(1, 4), st.integers(1, 3))
def test_the_network_sees_valid_pixels_and_every_batch_has_one_shape(case: Case, batch: int, lanes: int) -> None:
    case = replace(case, bands=3)
    if min(case.patch) < 2:  # a patch of one pixel may look like the fill by chance
        case = replace(case, patch=(max(case.patch[0], 2), max(case.patch[1], 2)), cells=None)
    watching, sink, source = Watching(case, batch), ArraySink(case), case.source()
    told: list[int] = []
    with chunks_of(case.chunk), Engine(watching, case.decision, case.fill, batch, lanes) as engine:
        tiling = case.tiling()
        (tile,) = tiling.tiles()
        report = engine.run(source, tile, tiling, sink, told.append)
    count = patches_with_data(case, tiling)
    assert set(watching.shapes) <= {(batch, case.bands, *case.patch)}
    assert len(watching.shapes) == -(-count // batch)
    assert sum(watching.padding) == -count % batch
    np.testing.assert_array_equal(sink.labels == NODATA, ~source.valid)
    np.testing.assert_array_equal(sink.confidence == NODATA, ~source.valid)
    for score in sink.auxiliary:
        np.testing.assert_array_equal(score == NODATA, ~source.valid)
    assert report == TileReport(tile.core, int(source.valid.sum()), count, report.seconds)
    assert sum(told) == tile.core.size
    assert set(report.seconds) <= {"read", "forward", "blend", "write"}


def test_patches_without_data_are_left_out() -> None:
    case = Case((50, 40))
    valid = np.zeros(case.shape, bool)
    valid[:3, :3] = valid[-3:, -3:] = True
    source = ArraySource(np.ones((2, 50, 40), np.uint8), valid)
    predict = case.predict()
    sink = run(case, source=source, predict=predict)
    assert len(predict.shapes) == 2
    np.testing.assert_array_equal(sink.labels != NODATA, valid)


def test_a_scene_without_data_makes_no_forward_pass() -> None:
    case = Case((50, 40), auxiliary=1)
    source = ArraySource(np.zeros((2, 50, 40), np.uint8), np.zeros((50, 40), bool))
    predict = case.predict()
    sink = run(case, lanes=2, batch=3, source=source, predict=predict)
    assert predict.shapes == []
    assert (sink.times == 1).all()
    assert (sink.labels == NODATA).all()
    assert (sink.confidence == NODATA).all()
    assert (sink.auxiliary == NODATA).all()


@settings(max_examples=60)
@given(st.data(), cases())
def test_every_pixel_is_read_once_for_each_tile(data: st.DataObject, case: Case) -> None:
    for core in data.draw(covers(case.shape, case.chunk)):
        source = case.source()
        run(case, [core], lanes=2, source=source)
        with chunks_of(case.chunk):
            tile = case.tiling().tile_of(core)
        times = np.zeros([sum(pair) for pair in zip(case.shape, case.patch, strict=True)], int)
        for window in source.windows:
            times[window.slices] += 1
        expected = np.zeros_like(times)
        expected[tile.patch_rows[0] : tile.patch_rows[-1] + case.patch[0],
                 tile.patch_cols[0] : tile.patch_cols[-1] + case.patch[1]] = 1  # fmt: skip
        np.testing.assert_array_equal(times, expected)
        assert source.windows == sorted(source.windows)


def test_only_one_thread_reads_at_a_time() -> None:
    case = Case((60, 20))
    source = case.source()
    source.pause = 0.002
    assert_identical(run(case, lanes=3, source=source), run(case))


@pytest.mark.parametrize("rows", [9, 100, 100_000])
def test_the_accumulator_is_as_high_as_a_patch(rows: int) -> None:
    case = Case((rows, 40), auxiliary=2)
    with chunks_of(8):
        tiling = case.tiling()
        sums = _Accumulator(tiling.tile_of(Window(0, rows, 0, 40)), tiling, case.predict())
    assert tuple(sums._sums.shape) == (5, 9, 40)
    assert tuple(sums._weights.shape) == (9, 40)


@pytest.mark.parametrize("rows", [9, 100, 100_000])
def test_the_accumulator_has_a_patchs_cells_and_one_row(rows: int) -> None:
    case = Case((rows, 40), (12, 16), (9, 8), auxiliary=2, cells=(4, 4))
    with chunks_of(8):
        tiling = case.tiling()
        sums = _Accumulator(tiling.tile_of(Window(0, rows, 0, 40)), tiling, case.predict())
    assert tuple(sums._sums.shape) == (5, 5, 10)
    assert tuple(sums._weights.shape) == (5, 10)


class Endless:
    """A scene that is made while it is read: its rows are valid from one on, up to another."""

    def __init__(self, shape: tuple[int, int], first: int, stop: int) -> None:
        self.shape, self.first, self.stop = shape, first, stop

    def read(self, window: Window) -> Raster:
        rows = np.arange(*window.row_range)[:, None]
        valid = (rows >= self.first) & (rows < self.stop) & np.ones(window.shape, bool)
        return Raster(np.full((3, *window.shape), 50, np.uint8), valid)


class Discard:
    def write(self, band: Band) -> None:
        pass


def peak_bytes(rows: int, first: int, stop: int) -> int:
    """Most memory in use by numpy and Python while a scene of so many rows is predicted."""
    predict = OneHot(2)
    with Engine(predict, Decision(legend_of(2)), (1, 2, 3), 2, 2) as engine:
        tiling = Tiling((rows, 1024), (64, 64), (64, 64), (rows, 1024))
        (tile,) = tiling.tiles()
        gc.collect()
        tracemalloc.start()
        try:
            engine.run(Endless(tiling.shape, first, stop), tile, tiling, Discard())
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("data", ["none", "top", "bottom", "everywhere"])
def test_memory_does_not_grow_with_the_height_of_the_scene(data: str) -> None:
    def peak(rows: int) -> int:
        return peak_bytes(rows, *{"none": (0, 0), "top": (0, 1), "bottom": (rows - 1, rows)}.get(data, (0, rows)))

    peak(256)  # what is allocated once
    low, high = peak(2048), peak(7168)
    assert high < low + 4_000_000  # there are 80 more strips of 260 kB each; 1 MB more or less may be on its way out


def by_torch(scores: torch.Tensor, decision: Decision) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    labels, confidence = decide(scores, decision)
    return labels.numpy(), confidence.numpy()


def in_one_pass(scores: torch.Tensor, decision: Decision) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Of cells that are pixels."""
    rows, cols = (
        Between(np.arange(side, dtype=np.int32), np.arange(side, dtype=np.int32), np.zeros(side, np.float32))
        for side in scores.shape[1:]
    )
    legend, weights = decision.legend, np.ones(scores.shape[1:], np.float32)
    band = Band.empty(Window.of_shape((scores.shape[1], scores.shape[2])), 0)
    label(scores.numpy(), weights, rows, cols, legend.background, decision.threshold, band)
    return band.labels, band.confidence


Decide: TypeAlias = "Callable[[torch.Tensor, Decision], tuple[NDArray[np.uint8], NDArray[np.uint8]]]"

decided = pytest.mark.parametrize("decide", [by_torch, in_one_pass])


@settings(max_examples=60)
@given(
    st.integers(2, 9), st.sampled_from([None, 0.0, 0.2, 0.5, 0.75, 0.99]), st.floats(0.1, 20), st.integers(0, 2**32 - 1)
)
@decided
def test_labels_and_confidence_are_those_of_the_softmax(
    decide: Decide, classes: int, threshold: float | None, spread: float, seed: int
) -> None:
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(classes, 13, 11)).astype(np.float32) * spread)
    decision = Decision(legend_of(classes), threshold)
    labels, confidence = decide(scores.clone(), decision)
    assert labels.dtype == confidence.dtype == np.uint8
    everywhere = np.ones((13, 11), bool)
    assert_decided(scores.double().numpy(), decision, labels, confidence, everywhere)
    assert int(confidence.max()) <= CONFIDENCE_STEPS


@decided
def test_the_threshold_itself_is_an_object(decide: Decide) -> None:
    even = torch.zeros((2, 1, 1))
    assert decide(even.clone(), Decision(legend_of(2), 0.5))[0].item() == 1
    assert decide(even.clone(), Decision(legend_of(2)))[0].item() == 0
    labels, confidence = decide(even.clone(), Decision(legend_of(2), 0.51))
    assert (labels.item(), confidence.item()) == (0, CONFIDENCE_STEPS / 2)


@decided
def test_the_threshold_is_that_of_any_object(decide: Decide) -> None:
    scores = torch.log(torch.tensor([0.4, 0.248, 0.352]))[:, None, None]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3)))] == [0, 100]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3), 0.55))] == [2, 88]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3), 0.65))] == [0, 100]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3, background=1), 0.7))] == [0, 100]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3, background=None), 0.99))] == [0, 100]


@decided
def test_as_many_classes_as_there_can_be(decide: Decide) -> None:
    scores = torch.zeros((255, 1, 255))
    scores[torch.arange(255), 0, torch.arange(255)] = 50
    labels, confidence = decide(scores, Decision(legend_of(255)))
    assert labels[0].tolist() == list(range(255))
    assert (confidence == CONFIDENCE_STEPS).all()


@decided
def test_scores_far_apart_do_not_overflow(decide: Decide) -> None:
    scores = torch.tensor([-1e4, 1e4, 0.0])[:, None, None]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3)))] == [1, CONFIDENCE_STEPS]
    assert [v.item() for v in decide(scores.clone(), Decision(legend_of(3), 0.5))] == [1, CONFIDENCE_STEPS]


class Broken:
    """A source, network or sink that fails at its n-th call."""

    def __init__(self, working: Any, method: str, nth: int) -> None:
        self.working, self.method, self.left = working, method, nth
        self.error = OSError(f"{method} number {nth}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.working, name)

    def _call(self, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return getattr(self.working, self.method)(*args)

    read = write = __call__ = _call


def in_time(call: Callable[[], Any], seconds: float = 60) -> Any:
    """What the call returns or raises; fails if it hangs."""
    outcome: list[Any] = []

    def target() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001  the caller looks at it
            outcome.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, "it hangs"
    return outcome[0]


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("nth", [1, 2, 4])
@pytest.mark.parametrize("what", ["read", "__call__", "write"])
def test_an_error_surfaces_as_itself_and_never_becomes_background(what: str, nth: int, lanes: int) -> None:
    case = Case((45, 30), classes=2)
    whole, threads = run(case), set(threading.enumerate())
    source, predict, sink = case.source(), case.predict(), ArraySink(case)
    broken = Broken({"read": source, "__call__": predict, "write": sink}[what], what, nth)

    def attempt() -> None:
        with chunks_of(case.chunk):
            tiling = case.tiling()
            with Engine(predict if what != "__call__" else broken, case.decision, case.fill, 2, lanes) as engine:
                engine.run(
                    source if what != "read" else broken,
                    tiling.tile_of(Window.of_shape(case.shape)),
                    tiling,
                    sink if what != "write" else broken,
                )

    assert in_time(attempt) is broken.error
    assert set(threading.enumerate()) <= threads
    written = sink.times == 1
    assert not sink.times[-1].any()
    assert sink.windows == sorted(sink.windows)
    assert what != "write" or len(sink.windows) == nth - 1
    np.testing.assert_array_equal(sink.labels, np.where(written, whole.labels, UNWRITTEN))
    np.testing.assert_array_equal(sink.confidence, np.where(written, whole.confidence, UNWRITTEN))


def test_the_last_write_counts_too() -> None:
    case = Case((45, 30))
    broken = Broken(ArraySink(case), "write", 6)
    with chunks_of(case.chunk), Engine(case.predict(), case.decision, case.fill, 1, 1) as engine:
        tiling = case.tiling()
        (tile,) = tiling.tiles()
        with pytest.raises(OSError, match="write number 6"):
            engine.run(case.source(), tile, tiling, broken)


def test_an_engine_goes_on_after_an_error() -> None:
    case = Case((45, 30))
    sink = ArraySink(case)
    with chunks_of(case.chunk), Engine(case.predict(), case.decision, case.fill, 1, 2) as engine:
        tiling = case.tiling()
        (tile,) = tiling.tiles()
        with pytest.raises(OSError, match="read number 3"):
            engine.run(Broken(case.source(), "read", 3), tile, tiling, Discard())
        engine.run(case.source(), tile, tiling, sink)
    assert_identical(sink, run(case))


@pytest.mark.parametrize("fails", [False, True])
def test_the_number_of_torch_threads_is_restored(fails: bool) -> None:  # noqa: FBT001
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[int] = []

    class Counting(OneHot):
        def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            if fails:
                raise ZeroDivisionError
            return super().__call__(patches, cells)

    case = Case((20, 20))
    try:
        if fails:
            with pytest.raises(ZeroDivisionError):
                run(case, lanes=2, predict=Counting(3))
        else:
            run(case, lanes=2, predict=Counting(3))
        assert torch.get_num_threads() == 3
        assert set(seen) == {1}
    finally:
        torch.set_num_threads(before)


def test_defaults_follow_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert 1 <= default_lanes(cpu) <= (os.cpu_count() or 1)
    assert default_lanes(gpu) == default_batch(cpu) == 1
    assert default_batch(gpu) > 1


def test_scores_that_are_no_numbers_are_an_error() -> None:
    class Damaged(MixingPredict):
        def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
            return super().__call__(patches, cells) * torch.nan

    case = Case((20, 20))
    with pytest.raises(ModelError, match="not numbers"):
        run(case, predict=Damaged(case.classes, case.bands, case.patch))
