"""What a run will take, before it takes it: tiles, forward passes, memory, disk and time.

Everything here is counted from headers, on the two lattices; only the time of a forward pass is measured. Counting does
not walk over tiles: an axis at a time is enough, because tiles and patches are products of their rows and columns.
"""

from __future__ import annotations

import math
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from geoseg.errors import OptionError
from geoseg.raster import Raster
from geoseg.tiling import CHUNK, Axis, Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

    from geoseg.catalog import ModelSpec
    from geoseg.pipeline import Predictor
    from geoseg.planned import Plan
    from geoseg.raster import Band

LIBRARIES = 1.0e9
"""Bytes of a process that has loaded what it needs, and no model."""

ACTIVATIONS = 900
"""Bytes that a forward pass holds for each pixel of its patches, at most, of the networks that geoseg builds."""

WEIGHTS = 4
"""Bytes for each byte of a file of weights, at most: half precision there, float32 here, and packed once more."""

RAW = 8
"""Bytes of a band's value as it is read, at most."""

EXPORT_PER_PIXEL = 24
"""Bytes that outlining takes for each pixel of the windows that it looks at together."""

SHAPED_PER_PIXEL = 8
"""Bytes for each pixel of a scene whose polygons all touch, as those of land cover do: its outlines, and its layer.

Of a dense town in six classes it was 5 (benchmarks/change.py --growth)."""

KEPT_PER_PIXEL, KEPT_PER_SCORE, KEPT_IN_ZARR = 2.4, 0.8, 0.8
"""Bytes on the disk for each pixel of a scene, when it is complete: store and exports, what each auxiliary score adds,
and what the maps as a Zarr store do. It is the most that real scenes of 0.9 to 392 million pixels took, dense towns
(0.4 to 2.4, 0.4 to 0.9 and 0.5 to 0.8); a scene that is half white takes half of it."""

MOST_REPEATED = 1.10
"""Passes of a scene in tiles, relative to those of the scene as one tile, at the planner's own choice."""

MOST_CUTS = 64

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def read_bytes(text: str) -> int:
    """`2GB`, `500 MiB` or a number as bytes. Raises `OptionError` for anything else.

    >>> read_bytes("2GB"), read_bytes("1.5 GiB")
    (2000000000, 1610612736)
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?I?)B?\s*", text.upper())
    try:
        if match is not None and match[2] in UNITS:
            return int(float(match[1]) * UNITS[match[2]])
    except ValueError:
        pass
    msg = f"{text!r} is no amount of memory; write it like 2GB or 500MB"
    raise OptionError(msg)


def memory_here() -> tuple[str, int]:
    """This machine's name, and the bytes of memory that it, or the container, has."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return socket.gethostname(), min(limits)


def tiles_of(tiling: Tiling) -> int:
    """How many tiles a scene has."""
    down, along = tiling.bounds
    return (len(down) - 1) * (len(along) - 1)


def passes_of(tiling: Tiling) -> int:
    """Patches that the network sees of a scene, those that two tiles share counted for each."""
    down, along = (int(axis.touched(each).sum()) for axis, each in zip(tiling.axes, tiling.bounds, strict=True))
    return down * along


def whole(tiling: Tiling) -> Tiling:
    """The same scene as one tile."""
    return replace(tiling, tile=tiling.shape, first=None)


def repeated(tiling: Tiling) -> float:
    """Patches that are predicted again because tiles share them, as a share of those of the scene."""
    return passes_of(tiling) / passes_of(whole(tiling)) - 1


def memory_of(tiling: Tiling, model: ModelSpec, batch: int, lanes: int) -> int:
    """An upper bound of the bytes that a process holds at any time that predicts tiles and exports scenes."""
    (high, wide), cols = tiling.patch, min(tiling.tile[1], tiling.shape[1])
    width = cols + 2 * wide
    network = ACTIVATIONS * model.patch**2 * batch * lanes
    patches = (lanes + 2) * batch * high * wide * (len(model.bands) + 8 * model.outputs)
    sums = 2 * 4 * model.outputs * high * width
    strips = high * width * (4 * (len(model.bands) + 1) + RAW * len(model.bands))
    rows = 4 * CHUNK * cols * (2 + len(model.auxiliary))
    reading = 2 * CHUNK * tiling.shape[1] * len(model.bands) + (64 << 20)
    shapes = SHAPED_PER_PIXEL * math.prod(tiling.shape) * model.legend.has_several
    export = CHUNK * (4 * tiling.shape[1] * (2 + len(model.auxiliary)) + 8 * CHUNK * EXPORT_PER_PIXEL)
    return int(
        LIBRARIES
        + network
        + patches
        + sums
        + strips
        + rows
        + reading
        + export
        + shapes
        + WEIGHTS * model.weights.stat().st_size
    )


def fitting_tile(tiling: Tiling, model: ModelSpec, batch: int, lanes: int, limit: int) -> tuple[Tiling, int]:
    """Tiles as wide as fit, and the largest batch up to `batch`, that a process with `limit` bytes can do.

    Raises `OptionError` if even the smallest is too large.
    """
    while True:
        for wide in (tiling.tile[1], *range((tiling.tile[1] - 1) // CHUNK * CHUNK, 0, -CHUNK)):
            tried = tiling if wide == tiling.tile[1] else replace(tiling, tile=(tiling.tile[0], wide), first=None)
            if memory_of(tried, model, batch, lanes) <= limit:
                return (tiling if wide == tiling.tile[1] else _narrowed(tiling, wide)), batch
        if batch == 1:
            need = memory_of(tried, model, 1, lanes)
            msg = f"{limit / 1e9:.2g} GB of memory are too little: this scene needs up to {need / 1e9:.2g} GB"
            raise OptionError(msg)
        batch //= 2


@lru_cache(maxsize=1024)
def _narrowed(tiling: Tiling, wide: int) -> Tiling:
    """Tiles at most so wide, none with more to do than the largest was to have, that repeat the fewest passes.

    They may be higher than they were, for that takes no memory.
    """
    down, along = tiling.axes
    most = math.prod(int(axis.touched(each).max()) for axis, each in zip(tiling.axes, tiling.bounds, strict=True))
    as_it_is = (-(-side // CHUNK) for side in (tiling.tile[0], (tiling.first or tiling.tile)[0]))
    rows = [*_cuts(down), _cut_at(down, *as_it_is)]
    cols = [cut for cut in _cuts(along) if cut.tile <= wide] or [_cut_at(along, wide // CHUNK, wide // CHUNK)]
    _, _, high, broad = min(
        (each.passes * other.passes, each.most * other.most, each, other)
        for each in rows
        for other in cols
        if each.most * other.most <= most
    )
    return replace(tiling, tile=(high.tile, broad.tile), first=(high.first, broad.first))


@lru_cache(maxsize=1024)
def tile_for_many(tiling: Tiling) -> Tiling:
    """Tiles that keep many workers busy: the largest as small as it can be with a tenth of the passes repeated.

    Where an axis is cut matters as much as how often: a tile's border may cross one row of patches or two.
    """
    rows, cols = (_cuts(axis) for axis in tiling.axes)
    once = rows[0].passes * cols[0].passes
    _, _, down, along = min(
        (down.most * along.most, down.passes * along.passes, down, along)
        for down in rows
        for along in cols
        if down.passes * along.passes <= MOST_REPEATED * once
    )
    return replace(tiling, tile=(down.tile, along.tile), first=(down.first, along.first))


@dataclass(frozen=True, order=True)
class _Cut:
    """An axis, cut into tiles."""

    passes: int
    """Patches that tiles touch, added up."""
    most: int
    """Patches that the tile touches which touches most."""
    tile: int
    first: int


def _cuts(axis: Axis) -> list[_Cut]:
    """An axis cut into ever more tiles, each time where the fewest patches are crossed."""
    chunks = -(-axis.size // CHUNK)
    lengths = sorted({-(-chunks // count) for count in range(1, min(chunks, MOST_CUTS) + 1)}, reverse=True)
    return [min(_cut_at(axis, length, first) for first in _firsts(chunks, length)) for length in lengths]


def _firsts(chunks: int, length: int) -> range:
    """How long the first of tiles of that length may be without there being more of them."""
    return range(chunks - (-(-chunks // length) - 1) * length, length + 1)


def _cut_at(axis: Axis, length: int, first: int) -> _Cut:
    touched = axis.touched(np.array([0, *range(first * CHUNK, axis.size, length * CHUNK), axis.size]))
    tile = min(length * CHUNK, axis.size)
    return _Cut(int(touched.sum()), int(touched.max()), tile, min(first * CHUNK, tile))


# --- time


@dataclass(frozen=True)
class Flat:
    """A source without relief: what a forward pass takes does not depend on what it sees."""

    shape: tuple[int, int]
    bands: int

    def read(self, window: Window) -> Raster:
        """Grey."""
        return Raster(np.full((self.bands, *window.shape), 127, np.uint8), np.ones(window.shape, bool))


class Nowhere:
    """A sink that keeps nothing."""

    def write(self, band: Band) -> None:
        """Take a band."""


def seconds_per_pass(planned: Plan, predictor: Predictor, passes: int = 4) -> float:
    """Seconds of one forward pass on this machine now, all that belongs to it included; the first is not counted."""
    high, wide = planned.tiling.patch
    counts = (1, passes)
    spent = []
    for count in counts:
        shape = (high * count, wide)
        tiling = Tiling(shape, (high, wide), (high, wide), shape)
        flat = replace(planned, source=cast("Any", Flat(shape, len(planned.model.bands))), tiling=tiling)
        report = predictor.run(flat, Window.of_shape(shape), Nowhere(), lambda _: None)
        spent.append(sum(report.seconds.values()) / report.patches)
    return spent[-1]


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    scenes: int
    tiles: int
    pixels: int
    passes: int
    repeated: float
    """Share of the passes that are done again at borders of tiles."""
    memory: int
    """Bytes per worker, at most."""
    disk: int
    """Bytes that the results will take, about."""


def estimate(tilings: Iterable[Tiling], model: ModelSpec, batch: int, lanes: int, *, zarr: bool = False) -> Estimate:
    """Add up scenes. `zarr`: the maps are kept as a Zarr store, too."""
    scenes = tiles = pixels = passes = once = memory = 0
    for tiling in tilings:
        scenes += 1
        tiles += tiles_of(tiling)
        pixels += tiling.shape[0] * tiling.shape[1]
        passes += passes_of(tiling)
        once += passes_of(whole(tiling))
        memory = max(memory, memory_of(tiling, model, batch, lanes))
    again = passes / once - 1 if once else 0.0
    kept = KEPT_PER_PIXEL + len(model.auxiliary) * KEPT_PER_SCORE + zarr * KEPT_IN_ZARR
    return Estimate(scenes, tiles, pixels, passes, again, memory, int(pixels * kept))
