"""The engine: one tile of a scene through a network, in bounded memory.

Strategy. The patches of a tile are taken row by row. A reader thread keeps the strip of pixels under the next row of
patches ready, each pixel being read once. Batches of patches of one fixed shape go to `lanes` (on a CPU one
single-threaded forward pass per core; on a GPU one queue) and come back in order. Each patch's scores, weighted by the
taper, are added to an accumulator that holds only the rows under one row of patches; as soon as no later patch can
touch a row, it is finished on the device (divided by the total weight, argmax, probability, uint8) and written.

So memory is O(patch x tile width x outputs), and a pixel gets the same additions in the same order whatever the tile,
the number of lanes, or the order in which batches end: equal bit by bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from geoseg.errors import ModelError
from geoseg.raster import CONFIDENCE_STEPS, NODATA, Band
from geoseg.tiling import CHUNK, taper, total_taper
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from geoseg.catalog import Legend
    from geoseg.models.weights import Predict
    from geoseg.raster import Sink, Source
    from geoseg.tiling import Tile, Tiling


OutOfMemory = torch.OutOfMemoryError
"""What a device raises whose memory is too small for a batch."""

ROWS_AT_ONCE = 32
"""Rows that are decided together: few enough to stay in the cache from one operation to the next."""


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


class Engine:
    """A network on a device, with the threads that feed it. Use it as a context manager."""

    def __init__(self, predict: Predict, decision: Decision, fill: tuple[int, ...], batch: int, lanes: int) -> None:
        """`fill`: what the network sees where there is no data, per band; `batch`: patches per forward pass."""
        self.predict, self.decision, self.batch, self.lanes = predict, decision, batch, lanes
        self.fill = np.array(fill, np.uint8)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start the threads."""
        self._stack.enter_context(_one_torch_thread())
        self._forward = self._pool(self.lanes, lambda: torch.set_num_threads(1))
        self._reader = self._pool(1)
        self._writer = self._pool(1)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the threads, dropping what is queued."""
        self._stack.close()

    def _pool(self, threads: int, initializer: Callable[[], None] | None = None) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(threads, initializer=initializer)
        self._stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool

    @torch.inference_mode()
    def run(
        self, source: Source, tile: Tile, tiling: Tiling, sink: Sink, observe: Callable[[int], None] = lambda _: None
    ) -> TileReport:
        """Predict one tile and write it, chunk row by chunk row; `observe` is told how many pixels were written."""
        clock = Counter[str]()
        sums = _Accumulator(tile, tiling, self.predict)
        rows = _RowWriter(tile.core, sink, self._writer, observe, clock)
        taper_of_patch = _taper(tiling, self.predict.device)
        begun: deque[_Strip] = deque()
        count = 0

        @torch.inference_mode()  # a setting of each thread
        def forward(patches: list[_Patch]) -> torch.Tensor:
            with _timed(clock, "forward"):
                scores = self.predict(self._fixed_batch(patches))
                if not math.isfinite(float(scores.sum())):
                    place = f"the patch at row {patches[0].strip.window.row_start} or one of the next {self.batch - 1}"
                    raise ModelError(f"the network's scores for {place} are not numbers: its weights are damaged")
                return scores.mul_(taper_of_patch)

        def finish_until(strip: _Strip | None) -> None:
            while begun and begun[0] is not strip:
                rows.take(sums.finish(begun.popleft(), self.decision))

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
        batch = np.zeros((self.batch, *patches[0].values.transpose(1, 2, 0).shape), np.uint8)
        for index, patch in enumerate(patches):
            batch[index] = patch.values.transpose(1, 2, 0)
        return torch.from_numpy(batch.transpose(0, 3, 1, 2))

    def _ahead(self, strips: Iterator[_Strip]) -> Iterator[_Strip]:
        """The same strips, the next one being read while this one is worked on."""
        coming = self._reader.submit(next, strips, None)
        while (strip := coming.result()) is not None:
            coming = self._reader.submit(next, strips, None)
            yield strip

    def _in_order(
        self, forward: Callable[[list[_Patch]], torch.Tensor], batches: Iterable[list[_Patch]]
    ) -> Iterator[tuple[list[_Patch], torch.Tensor]]:
        """Batches with their scores, in order, while the lanes work on the following ones."""
        running: deque[tuple[list[_Patch], Future[torch.Tensor]]] = deque()
        for batch in batches:
            running.append((batch, self._forward.submit(forward, batch)))
            if len(running) > self.lanes + 1:
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
    left, right = tile.patch_cols[0], tile.patch_cols[-1] + tiling.patch[1]
    height = tiling.patch[0]
    values = _interleaved(len(fill), 0, right - left)
    valid = np.empty((0, right - left), bool)
    known = tile.patch_rows[0]
    for row, following in zip(tile.patch_rows, [*tile.patch_rows[1:], None], strict=True):
        with _timed(clock, "read"):
            raster = source.read(Window(known, row + height, left, right))
            above, values = values, _interleaved(len(fill), height, right - left)
            shared = known - row
            values[:, :shared] = above[:, above.shape[1] - shared :]
            complete = raster.valid.all()
            for band, (fresh, instead) in enumerate(zip(raster.values, fill, strict=True)):
                values[band, shared:] = fresh if complete else np.where(raster.valid, fresh, instead)
            valid = np.concatenate([valid[valid.shape[0] - shared :], raster.valid])
        known = row + height
        final_rows = height if following is None else following - row
        yield _Strip(Window(row, row + height, left, right), final_rows, values, valid)


def _interleaved(bands: int, rows: int, cols: int) -> NDArray[np.uint8]:
    """Room for values (band, y, x), a pixel's bands side by side as the network takes them."""
    return np.empty((rows, cols, bands), np.uint8).transpose(2, 0, 1)


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


def _taper(tiling: Tiling, device: torch.device) -> torch.Tensor:
    down, along = (taper(side) for side in tiling.patch)
    return torch.from_numpy((down[:, None] * along).astype(np.float32)).to(device)


def decide(
    scores: torch.Tensor, decision: Decision, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and confidence, both uint8 (y, x), of blended logits (class, y, x).

    `scale` (y, x), positive: what the logits are to be multiplied by first. The confidence is the softmax probability
    of the label, in steps of 1/250.
    """
    best, labels = _best(scores, range(len(scores)))
    total = _odds(scores[0], best, scale)
    for each in scores[1:]:
        total += _odds(each, best, scale)
    probability = total.reciprocal_()
    background = decision.legend.background
    if decision.threshold is not None and background is not None and len(scores) > 1:
        of_background = _odds(scores[background], best, scale) * probability
        is_object = 1 - of_background >= decision.threshold
        best_object, object_labels = _best(scores, [v for v in range(len(scores)) if v != background])
        labels = torch.where(is_object, object_labels, background).to(torch.uint8)
        probability = torch.where(is_object, _odds(best_object, best, scale) * probability, of_background)
    return labels, probability.mul_(CONFIDENCE_STEPS).round_().to(torch.uint8)


def _best(scores: torch.Tensor, values: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of some scores (y, x), and its value as uint8; the first where several are equal.

    Class by class: `torch.max` along an axis also gives int64 indices, and is five times slower on a CPU.
    """
    best = scores[values[0]].clone()
    labels = torch.full(best.shape, values[0], dtype=torch.uint8, device=best.device)
    for value in values[1:]:
        labels.masked_fill_(scores[value] > best, value)
        torch.maximum(best, scores[value], out=best)
    return best, labels


def _odds(score: torch.Tensor, best: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """How probable a score is relative to the best: exp(score - best), 1 where it is the best."""
    difference = score - best
    return (difference if scale is None else difference.mul_(scale)).exp_()


class _Accumulator:
    """Sums of weighted scores under the current strip."""

    def __init__(self, tile: Tile, tiling: Tiling, predict: Predict) -> None:
        self._core, self._left, self._patch = tile.core, tile.patch_cols[0], tiling.patch
        self._down, self._along = (
            torch.from_numpy(total_taper(size, patch, stride)).to(predict.device)
            for size, patch, stride in zip(tiling.shape, tiling.patch, tiling.stride, strict=True)
        )
        width = tile.patch_cols[-1] + tiling.patch[1] - self._left
        self._sums = torch.zeros((predict.outputs, tiling.patch[0], width), device=predict.device)

    def add(self, col: int, scores: torch.Tensor) -> None:
        """Add the weighted scores (outputs, y, x) of a patch that starts at this column of the strip."""
        self._sums[:, :, col : col + self._patch[1]] += scores

    def finish(self, strip: _Strip, decision: Decision) -> Band | None:
        """The strip's final rows as far as they lie in the core; then the sums move on to the next strip."""
        rows = Window(strip.window.row_start, strip.window.row_start + strip.final_rows, *self._core.col_range)
        window = self._core.intersection(rows)
        band = None if window is None else self._band(window, strip, decision)
        kept = self._sums[:, strip.final_rows :].clone()
        self._sums[:, : kept.shape[1]] = kept
        self._sums[:, kept.shape[1] :] = 0
        return band

    def _band(self, window: Window, strip: _Strip, decision: Decision) -> Band:
        rows, cols = window.slices
        local = window.relative_to(strip.window).slices
        sums, down, along = self._sums[:, *local], self._down[rows, None], self._along[cols]
        classes = len(decision.legend.classes)
        decided = []
        for few in range(0, len(down), ROWS_AT_ONCE):
            some = slice(few, few + ROWS_AT_ONCE)
            decided.append(decide(sums[:classes, some], decision, (down[some] * along).reciprocal_()))
        labels, confidence = (torch.cat(values).cpu().numpy() for values in zip(*decided, strict=True))
        auxiliary = _codes(sums[classes:] / (down * along)).cpu().numpy()
        valid = strip.valid[local]
        if not valid.all():
            labels[~valid], confidence[~valid], auxiliary[:, ~valid] = NODATA, NODATA, NODATA
        return Band(window, labels, confidence, auxiliary)


def _codes(scores: torch.Tensor) -> torch.Tensor:
    """Auxiliary scores as uint8 codes, in steps of 1/250 of what is between 0 and 1."""
    return scores.sigmoid_().mul_(CONFIDENCE_STEPS).round_().to(torch.uint8)


class _RowWriter:
    """Collects finished rows of a tile until a row of storage chunks is whole, and has it written by a thread."""

    def __init__(
        self, core: Window, sink: Sink, pool: ThreadPoolExecutor, observe: Callable[[int], None], clock: Counter[str]
    ) -> None:
        self._core, self._sink, self._pool, self._observe, self._clock = core, sink, pool, observe, clock
        self._bands: list[Band] = []
        self._valid_pixels = 0
        self._writing: Future[None] | None = None

    def take(self, band: Band | None) -> None:
        """Take the next rows of the core."""
        while band is not None:
            row, stop = band.window.row_range
            limit = min(row - row % CHUNK + CHUNK, self._core.row_stop)
            head, band = band.split(limit) if stop > limit else (band, None)
            self._bands.append(head)
            if head.window.row_stop == limit:
                self._write()

    def close(self) -> int:
        """Wait until all is written; how many pixels have data."""
        if self._writing is not None:
            self._writing.result()
        return self._valid_pixels

    def _write(self) -> None:
        band, self._bands = Band.concatenate(self._bands), []
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


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    """One thread for each operation: cores are filled by lanes, and the number of threads cannot change a bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_torch_thread() -> None:
    """One thread for each operation, from now on: for a process that runs engines in several threads at a time."""
    torch.set_num_threads(1)


def default_lanes(device: torch.device) -> int:
    """Forward passes side by side: one for each core that this process may use; one on a GPU."""
    return len(os.sched_getaffinity(0)) if device.type == "cpu" and hasattr(os, "sched_getaffinity") else 1


def default_batch(device: torch.device) -> int:
    """Patches per forward pass: on a CPU one is as fast as many, and needs the least memory."""
    return 1 if device.type == "cpu" else 16


def keep_freed_memory() -> None:
    """Ask glibc to keep large blocks that were freed instead of giving them back to the kernel after each layer.

    Otherwise up to half of a CPU's time goes into page faults. Does nothing with another C library.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    never_mmap, never_trim, grow_by, arenas = (-4, 0), (-1, 2**31 - 1), (-2, 64 << 20), (-8, 1)
    for option in (never_mmap, never_trim, grow_by, arenas):
        mallopt(*option)
