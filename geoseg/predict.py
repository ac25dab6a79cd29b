"""The engine: one tile of a scene through a network, in bounded memory.

Strategy. The patches of a tile are taken row by row. A reader thread keeps the strip of pixels under the next row of
patches ready, each pixel being read once. Batches of patches of one fixed shape go to `lanes` (on a CPU one
single-threaded forward pass per core; on a GPU one queue) and come back in order. Each patch's scores, weighted by the
taper, are added, cell by cell, to an accumulator that holds only the rows under one row of patches. As soon as no later
patch can touch what a row of pixels depends on, it is finished on the device (the cells' sums divided by their weights,
brought to pixels, argmax, probability, uint8) and written.

So memory is O(patch x tile width x outputs), and a pixel gets the same additions in the same order whatever the tile,
the number of lanes, or the order in which batches end: equal bit by bit. Between cells, every step is one addition or
one multiplication, which have the same bits wherever in a tensor a number stands; not so the library's interpolation,
which takes another way at the end of a row.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from geoseg.errors import ModelError
from geoseg.labelling import Between, label, ready
from geoseg.models.weights import with_one_torch_thread
from geoseg.raster import CONFIDENCE_STEPS, NODATA, Band
from geoseg.tiling import CHUNK, taper
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from geoseg.catalog import Legend
    from geoseg.models.weights import Predict
    from geoseg.raster import Sink, Source
    from geoseg.tiling import Axis, Tile, Tiling


OutOfMemory = torch.OutOfMemoryError
"""What a device raises whose memory is too small for a batch."""

ROWS_AT_ONCE = 256
"""Rows that torch decides together: so many that a device is seldom waited for, so few that its memory is enough."""

FUSED_ON = "cpu"
"""Devices of this type decide all of a pixel in one pass, and are at hand. Others decide operation by operation, and
are waited for when rows are finished, not from one batch to the next."""


@dataclass(frozen=True)
class Decision:
    """How blended scores become labels."""

    legend: Legend
    threshold: float | None = None
    """With a background class: the probability of being any object from which on a pixel is one; None = argmax."""


@dataclass(frozen=True)
class TileReport:
    """What is known of a tile when it is done."""

    core: Window
    valid_pixels: int
    patches: int
    seconds: dict[str, float]
    """Time by stage (read, forward, blend, write); stages overlap, and forward is summed over the lanes."""


class Lanes:
    """The threads of an engine: those of the forward passes side by side, one that reads, one that writes.

    They may serve one engine after the other. A thread that lives on finds the memory that it has freed; one that is
    new may be given that of any thread that is gone, of which then nothing is left for others.
    """

    def __init__(self, count: int) -> None:
        """`count`: forward passes side by side."""
        self.count = count
        self.forward = ThreadPoolExecutor(count, initializer=one_torch_thread)
        self.reader, self.writer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)

    def close(self) -> None:
        """End the threads, dropping what is queued."""
        for pool in (self.writer, self.reader, self.forward):
            pool.shutdown(wait=True, cancel_futures=True)


class Engine:
    """A network on a device, with the threads that feed it. Use it as a context manager."""

    def __init__(
        self, predict: Predict, decision: Decision, fill: tuple[int, ...], batch: int, lanes: int | Lanes
    ) -> None:
        """`fill`: what the network sees where there is no data, per band; `batch`: patches per forward pass.

        `lanes`: how many forward passes side by side, or threads that are there already and stay, unless something
        goes wrong.
        """
        self.predict, self.decision, self.batch = predict, decision, batch
        self.fill = np.array(fill, np.uint8)
        self._borrowed = isinstance(lanes, Lanes)
        self._lanes = lanes if isinstance(lanes, Lanes) else Lanes(lanes)
        self._torch = with_one_torch_thread()

    def __enter__(self) -> Self:
        """Start."""
        self._torch.__enter__()
        if self.predict.device.type == FUSED_ON:
            self._lanes.writer.submit(ready)  # the first rows to write are seconds away
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop the threads, dropping what is queued."""
        if kind is not None or not self._borrowed:
            self._lanes.close()
        self._torch.__exit__(None, None, None)

    @torch.inference_mode()
    def run(
        self, source: Source, tile: Tile, tiling: Tiling, sink: Sink, observe: Callable[[int], None] = lambda _: None
    ) -> TileReport:
        """Predict one tile and write it, chunk row by chunk row; `observe` is told how many pixels were written."""
        clock = Counter[str]()
        sums = _Accumulator(tile, tiling, self.predict)
        scores_beside = self.predict.outputs - len(self.decision.legend.classes)
        rows = _RowWriter(tile.core, scores_beside, sink, self._lanes.writer, observe, clock)
        cells = (tiling.axes[0].cells, tiling.axes[1].cells)
        taper_of_patch = _taper(cells, self.predict.device)
        begun: deque[_Strip] = deque()
        count = 0

        @torch.inference_mode()  # a setting of each thread
        def forward(patches: list[_Patch]) -> torch.Tensor:
            with _timed(clock, "forward"):
                scores = self.predict(self._fixed_batch(patches), cells)
                if scores.device.type == FUSED_ON and not math.isfinite(float(scores.sum())):
                    raise _no_numbers(f"at row {patches[0].strip.window.row_start} or one of the next {self.batch - 1}")
                return scores.mul_(taper_of_patch)

        def finish_until(strip: _Strip | None) -> None:
            while begun and begun[0] is not strip:
                sums.finish(begun.popleft(), self.decision, rows.places)

        strips = self._ahead(_strips(source, tile, tiling, self.fill, clock))
        batches = _batched(_patches(strips, tile, tiling, begun), self.batch)
        for patches, scores in self._in_order(forward, batches):
            with _timed(clock, "blend"):
                for patch, patch_scores in zip(patches, scores, strict=False):  # the batch may be padded
                    finish_until(patch.strip)
                    sums.add(patch.col, patch_scores)
            count += len(patches)
        finish_until(None)
        return TileReport(tile.core, rows.close(), count, dict(clock))

    def _fixed_batch(self, patches: list[_Patch]) -> torch.Tensor:
        """Always the same shape, so that a kernel chosen by batch size cannot change a bit."""
        batch = np.empty((self.batch, *patches[0].values.shape), np.uint8)
        for place, patch in zip(batch, patches, strict=False):
            place[:] = patch.values
        batch[len(patches) :] = 0
        return torch.from_numpy(batch)

    def _ahead(self, strips: Iterator[_Strip]) -> Iterator[_Strip]:
        """The same strips, the next one being read while this one is worked on."""
        coming = self._lanes.reader.submit(next, strips, None)
        while (strip := coming.result()) is not None:
            coming = self._lanes.reader.submit(next, strips, None)
            yield strip

    def _in_order(
        self, forward: Callable[[list[_Patch]], torch.Tensor], batches: Iterable[list[_Patch]]
    ) -> Iterator[tuple[list[_Patch], torch.Tensor]]:
        """Batches with their scores, in order, while the lanes work on the following ones."""
        running: deque[tuple[list[_Patch], Future[torch.Tensor]]] = deque()
        for batch in batches:
            running.append((batch, self._lanes.forward.submit(forward, batch)))
            if len(running) > self._lanes.count + 1:
                done, future = running.popleft()
                yield done, future.result()
        while running:
            done, future = running.popleft()
            yield done, future.result()


@dataclass(frozen=True, eq=False)
class _Strip:
    """The pixels under one row of patches."""

    window: Window
    final_rows: int
    """How many of its rows no later strip's patches touch."""
    values: NDArray[np.uint8]
    valid: NDArray[np.bool_]

    def without_pixels(self) -> _Strip:
        """The same place, nothing valid, in no memory: strips without data may queue up by the hundred."""
        nothing = np.broadcast_to(np.False_, self.valid.shape)
        return _Strip(self.window, self.final_rows, self.values[:, :0, :0].copy(), nothing)


@dataclass(frozen=True, eq=False)
class _Patch:
    strip: _Strip
    col: int
    """Column of its first pixel, counted from the strip's."""
    values: NDArray[np.uint8]


def _strips(
    source: Source, tile: Tile, tiling: Tiling, fill: NDArray[np.uint8], clock: Counter[str]
) -> Iterator[_Strip]:
    """The strips of a tile from top to bottom; rows that two of them share are read once."""
    left, right = tile.strip(0, tiling.patch).col_range
    height = tiling.patch[0]
    values = np.empty((len(fill), 0, right - left), np.uint8)
    valid = np.empty((0, right - left), bool)
    known = tile.patch_rows[0]
    for row, following in zip(tile.patch_rows, [*tile.patch_rows[1:], None], strict=True):
        with _timed(clock, "read"):
            raster = source.read(Window(known, row + height, left, right))
            above, values = values, np.empty((len(fill), height, right - left), np.uint8)
            shared = known - row
            values[:, :shared] = above[:, above.shape[1] - shared :]
            missing = None if raster.valid.all() else ~raster.valid  # often the few pixels behind the scene's edge
            for band, fresh, instead in zip(values, raster.values, fill, strict=True):
                band[shared:] = fresh
                if missing is not None:
                    np.copyto(band[shared:], instead, where=missing)
            valid = np.concatenate([valid[valid.shape[0] - shared :], raster.valid])
        known = row + height
        final_rows = height if following is None else following - row
        yield _Strip(tile.strip(row, tiling.patch), final_rows, values, valid)


def _patches(strips: Iterable[_Strip], tile: Tile, tiling: Tiling, begun: deque[_Strip]) -> Iterator[_Patch]:
    """The patches that have any data, in order; each strip is entered in `begun` before its first patch comes."""
    for strip in strips:
        if not strip.valid.any():
            begun.append(strip.without_pixels())
            continue
        begun.append(strip)
        for col in tile.patch_cols:
            start = col - strip.window.col_start
            cols = slice(start, start + tiling.patch[1])
            if strip.valid[:, cols].any():
                yield _Patch(strip, start, strip.values[:, :, cols])


def _batched(patches: Iterator[_Patch], size: int) -> Iterator[list[_Patch]]:
    while batch := list(islice(patches, size)):
        yield batch


def _taper(cells: tuple[int, int], device: torch.device) -> torch.Tensor:
    down, along = (taper(side) for side in cells)
    return torch.from_numpy((down[:, None] * along).astype(np.float32)).to(device)


def decide(scores: torch.Tensor, decision: Decision) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and confidence, both uint8 (y, x), of blended logits (class, y, x).

    The confidence is the softmax probability of the label, in steps of 1/250.
    """
    if len(scores) == 2 and decision.threshold is None:  # noqa: PLR2004  two classes: their difference says it all
        difference = scores[1] - scores[0]
        return (difference > 0).view(torch.uint8), _steps(_probability(difference.abs_()))
    best, labels = _best(scores, range(len(scores)))
    total = _odds(scores[0], best)
    for each in scores[1:]:
        total += _odds(each, best)
    probability = total.reciprocal_()
    background = decision.legend.background
    if decision.threshold is not None and background is not None and len(scores) > 1:
        of_background = _odds(scores[background], best) * probability
        is_object = 1 - of_background >= decision.threshold
        best_object, object_labels = _best(scores, [v for v in range(len(scores)) if v != background])
        labels = torch.where(is_object, object_labels, background).to(torch.uint8)
        probability = torch.where(is_object, _odds(best_object, best) * probability, of_background)
    return labels, _steps(probability)


def _best(scores: torch.Tensor, values: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of some scores (y, x), and its value as uint8; the first where several are equal.

    Class by class: `torch.max` along an axis also gives int64 indices, and is five times slower on a CPU. As values
    rise, the last one that was better is the highest one, and a maximum is ten times as fast as a masked fill.
    """
    best = scores[values[0]].clone()
    labels = torch.full(best.shape, values[0], dtype=torch.uint8, device=best.device)
    for value in values[1:]:
        better = (scores[value] > best).view(torch.uint8)
        torch.maximum(labels, better.mul_(value), out=labels)
        torch.maximum(best, scores[value], out=best)
    return best, labels


def _odds(score: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """How probable a score is relative to the best: exp(score - best), 1 where it is the best."""
    return (score - best).exp_()


def _no_numbers(place: str) -> ModelError:
    return ModelError(f"the network's scores for the patch {place} are not numbers: its weights are damaged")


class _Accumulator:
    """Sums of weighted scores, cell by cell, under the current strip.

    Where cells are larger than pixels, the pixels of a strip's last half cell depend on the next strip's cells, too:
    they wait, with the one row of cells above the next strip.
    """

    def __init__(self, tile: Tile, tiling: Tiling, predict: Predict) -> None:
        self._core, (self._down, self._along) = tile.core, tiling.axes
        left, right = tile.strip(0, tiling.patch).col_range
        self._left = self._along.cells_of(left)
        self._above = int(self._down.cells < self._down.patch)
        height, width = self._above + self._down.cells, self._along.cells_of(right - left)
        self._sums = torch.zeros((predict.outputs, height, width), device=predict.device)
        self._weights = torch.zeros((height, width), device=predict.device)
        self._taper = _taper((self._down.cells, self._along.cells), predict.device)
        self._cols = _Between(self._along, *tile.core.col_range, self._left, predict.device)
        self._waiting = np.empty((0, right - left), bool)

    def add(self, col: int, scores: torch.Tensor) -> None:
        """Add the weighted scores (outputs, *cells) of a patch that starts at this column of the strip, in pixels."""
        first = self._along.cells_of(col)
        place = slice(self._above, None), slice(first, first + self._along.cells)
        self._sums[:, *place] += scores
        self._weights[place] += self._taper

    def finish(self, strip: _Strip, decision: Decision, places: Callable[[Window], Iterator[Band]]) -> None:
        """Decide what no later strip's patches have a part in, as far as it lies in the core; move on to the next.

        `places` gives the bands to be filled that together are a window. Raises `ModelError` for sums that are no
        numbers, as far as that was not seen patch by patch.
        """
        if self._sums.device.type != FUSED_ON and not self._sums.isfinite().all():
            raise _no_numbers(f"at row {strip.window.row_start} or above")
        stop = strip.window.row_start + strip.final_rows
        settled = self._down.settled(self._down.cells_of(stop))
        valid = np.concatenate([self._waiting, strip.valid[: strip.final_rows]])
        first = stop - len(valid)
        self._waiting = valid[settled - first :].copy()
        window = self._core.intersection(Window(first, settled, *self._core.col_range))
        if window is not None:
            top = self._down.cells_of(strip.window.row_start) - self._above
            known = Window(first, settled, *strip.window.col_range)
            for place in places(window):
                self._decide(place, valid[place.window.relative_to(known).slices], top, decision)
        self._move(self._down.cells_of(strip.final_rows))

    def _move(self, cells: int) -> None:
        """Drop so many rows of cells at the top."""
        for sums in (self._sums, self._weights[None]):
            kept = sums[:, cells:].clone()
            sums[:, : kept.shape[1]] = kept
            sums[:, kept.shape[1] :] = 0

    def _decide(self, place: Band, valid: NDArray[np.bool_], top: int, decision: Decision) -> None:
        """Fill some rows; `top`: where the first row of sums lies among all rows of cells."""
        (self._fused if self._sums.device.type == FUSED_ON else self._by_torch)(place, top, decision)
        if not valid.all():
            for values in (place.labels, place.confidence, *place.auxiliary):
                values[~valid] = NODATA

    def _fused(self, place: Band, top: int, decision: Decision) -> None:
        window = place.window
        rows, cols = (
            Between.of(*axis)
            for axis in ((self._down, *window.row_range, top), (self._along, *window.col_range, self._left))
        )
        sums, weights = self._sums.numpy(), self._weights.numpy()
        label(sums, weights, rows, cols, decision.legend.background, decision.threshold, place)

    def _by_torch(self, place: Band, top: int, decision: Decision) -> None:
        classes, decided = len(decision.legend.classes), []
        for few in place.window.blocks((ROWS_AT_ONCE, place.window.shape[1])):
            scores = self._pixels(_Between(self._down, *few.row_range, top, self._sums.device))
            decided.append((*decide(scores[:classes], decision), _codes(scores[classes:])))
        for values, found in zip(
            (place.labels, place.confidence, place.auxiliary), zip(*decided, strict=True), strict=True
        ):
            values[:] = torch.cat(found, -2).cpu().numpy()

    def _pixels(self, rows: _Between) -> torch.Tensor:
        """Scores (outputs, y, x) of some rows of the core.

        A cell whose patches have no data has no score. A pixel with data lies in a cell that has one; what is missing
        around it is left out.
        """
        sums, weights = self._sums[:, rows.cells, self._cols.cells], self._weights[rows.cells, self._cols.cells]
        seen = weights > 0
        scores = torch.cat([sums / weights.where(seen, 1), seen[None]])
        pixels = _upsampled(scores, rows, self._cols)
        return pixels[:-1] / pixels[-1:].where(pixels[-1:] > 0, 1)


class _Between:
    """Some pixels of an axis, and the cells around them."""

    def __init__(self, axis: Axis, low: int, high: int, origin: int, device: torch.device) -> None:
        """`origin`: the cell that `cells` is counted from."""
        first, second, share = axis.around(np.arange(low, high))
        self.cells = slice(int(first[0]) - origin, int(second[-1]) + 1 - origin)
        self._same = axis.cells == axis.patch
        self._between = first - first[0], second - first[0]
        self._near, self._far, self._share = (
            torch.from_numpy(each).to(device) for each in (*self._between, share[:, None, None])
        )

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The values (pixel, a, b) of those of the cells (cell, a, b), where a and b are short."""
        if self._same:
            return values
        near, far = values.index_select(0, self._near), values.index_select(0, self._far)
        return far.sub_(near).mul_(self._share).add_(near)

    def of_long(self, values: torch.Tensor) -> torch.Tensor:
        """The same bits, faster where a and b are long: what pixels between the same cells share is done once."""
        if self._same:
            return values
        near, far = self._between
        starts = [0, *(np.flatnonzero(np.diff(near) | np.diff(far)) + 1).tolist()]
        found = values.new_empty((len(near), *values.shape[1:]))
        for start, stop in zip(starts, [*starts[1:], len(near)], strict=True):
            low, high = values[int(near[start])], values[int(far[start])]
            torch.mul(high - low, self._share[start:stop], out=found[start:stop]).add_(low)
        return found


def _upsampled(scores: torch.Tensor, rows: _Between, cols: _Between) -> torch.Tensor:
    """Scores (score, y, x) of pixels of those of cells, bilinear; each axis in turn comes first, as it lies best."""
    along = cols.of(scores.permute(2, 1, 0).contiguous())
    return rows.of_long(along.permute(1, 2, 0).contiguous()).permute(1, 0, 2)


def _codes(scores: torch.Tensor) -> torch.Tensor:
    """Auxiliary scores as uint8 codes, in steps of 1/250 of what is between 0 and 1; they are used up."""
    return _steps(_probability(scores))


def _probability(score: torch.Tensor) -> torch.Tensor:
    """The logistic function, in place.

    `torch.sigmoid` gives other last bits at the end of a row than in its middle, `torch.exp` does not.
    """
    return score.neg_().exp_().add_(1).reciprocal_()


def _steps(probability: torch.Tensor) -> torch.Tensor:
    """Probabilities as uint8 codes, in steps of 1/250; they are used up."""
    return probability.mul_(CONFIDENCE_STEPS).round_().to(torch.uint8)


class _RowWriter:
    """Has finished rows of a tile collected until a row of storage chunks is whole, and that written by a thread."""

    def __init__(
        self,
        core: Window,
        scores: int,
        sink: Sink,
        pool: ThreadPoolExecutor,
        observe: Callable[[int], None],
        clock: Counter[str],
    ) -> None:
        """`scores`: auxiliary ones."""
        self._core, self._scores, self._sink = core, scores, sink
        self._pool, self._observe, self._clock = pool, observe, clock
        self._band: Band | None = None
        self._valid_pixels = 0
        self._writing: Future[None] | None = None

    def places(self, window: Window) -> Iterator[Band]:
        """Bands that make up the next rows of the core; each is to be filled before the next one is asked for."""
        row = window.row_start
        while row < window.row_stop:
            if self._band is None:
                limit = min(row - row % CHUNK + CHUNK, self._core.row_stop)
                self._band = Band.empty(self._core.rows(row, limit), self._scores)
            limit = self._band.window.row_stop
            stop = min(limit, window.row_stop)
            yield self._band.rows(row, stop)
            if stop == limit:
                self._write(self._band)
                self._band = None
            row = stop

    def close(self) -> int:
        """Wait until all is written; how many pixels have data."""
        if self._writing is not None:
            self._writing.result()
        return self._valid_pixels

    def _write(self, band: Band) -> None:
        self._valid_pixels += int(np.count_nonzero(band.labels != NODATA))
        self.close()  # one write under way at most: what is finished must not pile up
        self._writing = self._pool.submit(self._write_band, band)

    def _write_band(self, band: Band) -> None:
        with _timed(self._clock, "write"):
            self._sink.write(band)
        self._observe(band.window.size)


@contextlib.contextmanager
def _timed(clock: Counter[str], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[stage] += time.perf_counter() - began  # type: ignore[assignment]


def one_torch_thread() -> None:
    """One thread for each operation, from now on: for a thread of forward passes, or a process that runs many."""
    torch.set_num_threads(1)


def default_lanes(device: torch.device) -> int:
    """Forward passes side by side: one for each core that this process may use; one on a GPU."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" and hasattr(os, "sched_getaffinity") else 1


def default_batch(device: torch.device) -> int:
    """Patches per forward pass: on a CPU one is as fast as many, and needs the least memory."""
    return 1 if device.type == "cpu" else 16
