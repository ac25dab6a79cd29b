"""The files that people use, made from the working store while the network still predicts.

Each file has a thread that follows the store: as soon as a row of chunks is done, it goes into the plain raster or is
outlined, out of memory if it was written just now. That keeps both cores busy where one would otherwise wait for the
other; at the end only the last row, the joining of objects and the compressing are left. What an earlier run has left
is there at once.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, Self, TypeAlias

import numpy as np

from geoseg import outlines
from geoseg.footprints import Layer, Outlined, assemble, outline
from geoseg.io.cog import CONFIDENCE, Look, write_cog
from geoseg.io.geoparquet import write_parquet
from geoseg.io.hrefs import split_labels
from geoseg.io.layers import About, write_layer
from geoseg.io.store import job_of
from geoseg.io.vectors import write_geojson
from geoseg.io.zarr_maps import MAPS, write_zarr
from geoseg.raster import NODATA
from geoseg.tiling import CHUNK
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.io.store import ResultStore

LABELS = "labels.tif"

INTERIOR = "interior"
"""The auxiliary score by which objects that touch are told apart: high in the middle of each."""

AT_ONCE = (CHUNK, 4 * CHUNK)
"""Rows and columns of what is outlined, or read from the store, in one go, however wide a scene is.

Outlining takes some 20 bytes of memory for each pixel.
"""


SIDE_BY_SIDE = 2
"""Windows that are outlined at a time once the last forward pass is done, when nothing else keeps the cores busy.

Before, one at a time keeps up with the network, and takes half the memory.
"""


Counts: TypeAlias = "dict[str, float]"
"""What a scene's files hold, as its item tells it."""


class Observer(Protocol):
    """Who wants to know how far a run is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` pixels of a stage ("predicting", "outlining", "writing"); `done` counts from the start.

        Stages overlap, and each may call from another thread.
        """
        ...


class Count:
    """Adds up a stage's pixels for an observer, from any thread."""

    def __init__(self, observe: Observer, stage: str, total: int, done: int = 0) -> None:
        """`done` of `total` pixels are done already."""
        self._observe, self._stage, self._total, self._done = observe, stage, total, done
        self._lock = threading.Lock()

    def add(self, pixels: int) -> None:
        """Some more pixels are done."""
        with self._lock:
            self._done += pixels
            self._observe(self._stage, self._done, self._total)


class Exports:
    """labels.tif, confidence.tif, labels.zarr, footprints.geojson and .parquet and more. Use it as a context manager.

    They follow the store from the moment of entering. Leaving with an error gives them up, with nothing half written.
    """

    def __init__(
        self,
        store: ResultStore,
        layer: Layer,
        look: Look,
        tags: dict[str, str],
        observe: Observer,
        *,
        in_zarr: bool = False,
        layers: Sequence[str] = (),
    ) -> None:
        """`look` is that of the labels; `tags` go into both rasters. `in_zarr`: whether they go into one store, too.

        `layers`: names of further files of footprints, see `geoseg.io.layers.layers_of`.
        """
        self._layers = layers
        self._store, self._layer, self._tags, self._in_zarr = store, layer, tags, in_zarr
        self._looks = {"confidence": CONFIDENCE, "labels": look}
        pixels = store.shape[0] * store.shape[1]
        self._outlined = Count(observe, "outlining", pixels)
        self._written = Count(observe, "writing", pixels * len(self._looks) * (1 + in_zarr))

    def __enter__(self) -> Self:
        """Start following the store."""
        self._pool = ThreadPoolExecutor(2 + len(self._looks))
        self._footprints = self._pool.submit(self.write_footprints)
        rasters = [self._pool.submit(self.write_raster, name) for name in self._looks]
        maps = [self._pool.submit(self.write_maps)] if self._in_zarr else []
        self._files = [*rasters, *maps, self._footprints]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the threads, which end at once where there was an error."""
        if kind is not None:
            self._store.abandon()
        self._pool.shutdown()

    def counts(self) -> Counts:
        """Wait until all files are there; what was counted for each. Raises what went wrong with any."""
        return {name: count for file in self._files for name, count in file.result().items()}

    def write_footprints(self) -> Counts:
        """Write all files of footprints; how many each holds, and their area in square metres."""
        found, folder = assemble(self._outlined_windows(), self._layer), self._store.folder
        with ThreadPoolExecutor(1) as beside:
            parquet = beside.submit(write_parquet, found, folder / "footprints.parquet")
            write_geojson(found, folder / "footprints.geojson")
            parquet.result()
        if self._layers:
            colours = {c.name: c.colour for c in self._layer.legend.classes}
            about = About(colours=colours, geobox=self._layer.geobox, image=image_of(folder / LABELS))
            for name in self._layers:
                write_layer(found, folder / name, about)
        return {"footprints": len(found), "footprint_area_m2": round(float(found["area_m2"].sum()), 2)}

    def _outlined_windows(self) -> Iterator[Outlined]:
        """All of the store, in order; the windows of the last rows of chunks side by side."""
        whole = Window.of_shape(self._store.shape)
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            ahead: deque[Future[Outlined]] = deque()
            for window, known in self._windows():
                if known is not None:
                    yield known
                    continue
                ahead.append(pool.submit(self._outline, window))
                while len(ahead) > (SIDE_BY_SIDE if self._store.is_done(whole) else 0):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _windows(self) -> Iterator[tuple[Window, Outlined | None]]:
        for band in self._store.bands():
            self._store.wait(band)
            for window, known in outlines.kept(self._store.folder, band, self._layer.apart):
                if known is not None:
                    yield window, known
                    continue
                yield from ((block, None) for block in window.blocks(AT_ONCE))

    def _outline(self, window: Window) -> Outlined:
        arrays = (self._store.read_one(name, window) for name in arrays_of(self._layer))
        found = outline(window, *arrays, layer=self._layer)
        self._outlined.add(window.size)
        return found

    def write_maps(self) -> Counts:
        """Write labels and confidence as one Zarr store with overviews; counts nothing."""

        def blocks() -> Iterator[tuple[str, Window, NDArray[np.uint8]]]:
            for band in self._store.bands():
                self._store.wait(band)
                for block in band.blocks(AT_ONCE):
                    yield from ((name, block, self._store.read_one(name, block)) for name in sorted(self._looks))
                self._written.add(band.size * len(self._looks))

        write_zarr(self._store.folder / MAPS, blocks(), self._layer.geobox, self._looks, self._tags)
        return {}

    def write_raster(self, name: str) -> Counts:
        """Write `labels` or `confidence` as a COG; of labels, how many pixels are of objects, and their area."""
        pixels = 0

        def bands() -> Iterator[tuple[Window, NDArray[np.uint8]]]:
            nonlocal pixels
            for band in self._store.bands():
                self._store.wait(band)
                for block in band.blocks(AT_ONCE):
                    values = self._store.read_one(name, block)
                    if name == "labels":
                        pixels += self._pixels_of_objects(values)
                    yield block, values
                self._written.add(band.size)

        path = self._store.folder / f"{name}.tif"
        write_cog(path, bands(), self._layer.geobox, self._looks[name], self._tags)
        area = round(pixels * self._layer.pixel_area, 2)
        return {"object_pixels": pixels, "object_area_m2": area} if name == "labels" else {}

    def _pixels_of_objects(self, labels: NDArray[np.uint8]) -> int:
        known, background = labels != NODATA, self._layer.legend.background
        return int(np.count_nonzero(known if background is None else known & (labels != background)))


def image_of(labels: Path) -> str:
    """The name of the image whose pixels a label raster has: of the scene that was mapped on its own grid, or its own.

    For what is told in pixels of an image, as COCO's instances are.
    """
    job = job_of(labels.parent) if labels.name == LABELS else None
    return labels.name if job is None or "grid" in job else split_labels(job["scene"]["name"])[0]


def arrays_of(layer: Layer) -> tuple[str, ...]:
    """Which of a store's arrays a layer's outlines are made of."""
    return "labels", "confidence", *((INTERIOR,) if layer.separation else ())


def outlined(window: Window, arrays: Sequence[NDArray[np.uint8]], layer: Layer) -> Iterator[Outlined]:
    """Outline a window, so many columns at a time that memory has a bound; `arrays` (y, x) as `arrays_of` tells."""
    for block in window.blocks(AT_ONCE):
        _, cols = block.relative_to(window).slices
        labels, confidence, *score = (values[:, cols] for values in arrays)
        yield outline(block, labels, confidence, *score, layer=layer)
