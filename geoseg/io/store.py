"""The working store of a run: labels and confidence as chunked arrays, and the ledger of what is done.

Regions are disjoint and aligned to chunks, so writing is idempotent and needs no lock; a region is entered in the
ledger after it was written, so a killed run goes on from there. Whoever opens the store with xarray gets coordinates
and CRS.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from geoseg.errors import OutputError
from geoseg.raster import CONFIDENCE_STEPS, NODATA
from geoseg.tiling import CHUNK
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import Legend
    from geoseg.raster import Band

STORE, LEDGER = "result.zarr", "ledger.jsonl"


@dataclass
class ResultStore:
    """The store of one scene: `result.zarr` and `ledger.jsonl` in the scene's folder. A `Sink`."""

    folder: Path
    shape: tuple[int, int]
    auxiliary: tuple[str, ...]
    """Names of the arrays of auxiliary scores, in the order of a band's."""
    valid_by_chunk: NDArray[np.int64]
    """Per chunk (row of chunks, column of chunks): how many of its pixels have data; -1 until it was written."""
    _latest: tuple[Window, dict[str, NDArray[np.uint8]]] | None = field(
        default=None, init=False, repr=False, compare=False
    )
    """What was written last: who follows the store is spared from reading it back."""
    _changed: threading.Condition = field(default_factory=threading.Condition, init=False, repr=False, compare=False)
    _abandoned: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def done(self) -> NDArray[np.bool_]:
        """Per chunk: True once it was written."""
        return self.valid_by_chunk >= 0

    @property
    def valid_pixels(self) -> int:
        """How many of the pixels written have data, however often they were written."""
        return int(self.valid_by_chunk[self.done].sum())

    @classmethod
    def create(
        cls, folder: Path, geobox: GeoBox, legend: Legend, job: dict[str, Any], auxiliary: tuple[str, ...] = ()
    ) -> ResultStore:
        """A new store, all nodata; one that is there is removed. `job` is what the results depend on.

        `auxiliary`: names of scores that are kept besides labels and confidence.
        """
        import xarray as xr
        from odc.geo.xr import xr_coords

        grid = xr.Dataset(coords=xr_coords(geobox))
        try:
            cls._create(folder, grid, geobox, legend, job, auxiliary)
        except OSError as error:
            raise cannot_write(folder, error) from error
        return cls.open(folder)

    @staticmethod
    def _create(
        folder: Path,
        grid: xr.Dataset,
        geobox: GeoBox,
        legend: Legend,
        job: dict[str, Any],
        auxiliary: tuple[str, ...],
    ) -> None:
        remove(folder)
        grid.to_zarr(folder / STORE, zarr_format=3, consolidated=False)
        group = zarr.open_group(folder / STORE, mode="r+")
        flags: dict[str, Any] = {
            "flag_values": [c.value for c in legend.classes],
            "flag_meanings": " ".join(c.name.replace(" ", "_") for c in legend.classes),
        }
        percent: dict[str, Any] = {
            "scale_factor": 1 / CONFIDENCE_STEPS,
            "_FillValue": NODATA,
            "long_name": "probability of the label",
            "units": "1",
        }
        extra = {name: {**percent, "long_name": f"auxiliary score {name}"} for name in auxiliary}
        for name, attributes in {"labels": flags, "confidence": percent, **extra}.items():
            group.create_array(
                name,
                shape=geobox.shape,
                chunks=(CHUNK, CHUNK),
                dtype="uint8",
                fill_value=NODATA,
                compressors=BloscCodec(cname="lz4", clevel=1, shuffle="noshuffle", typesize=1),
                dimension_names=[str(d) for d in geobox.dimensions],
                attributes={"grid_mapping": "spatial_ref", **attributes},
            )
        first = {"job": job, "auxiliary": list(auxiliary)}
        (folder / LEDGER).write_text(json.dumps(first) + "\n", encoding="utf-8")

    @classmethod
    def open(cls, folder: Path) -> ResultStore:
        """The store that is in this folder, with all that its ledger says is done."""
        shape = zarr.open_array(folder / STORE / "labels", mode="r").shape
        _drop_torn_line(folder / LEDGER)
        entries = list(_entries(folder / LEDGER))
        auxiliary = tuple(entries[0].get("auxiliary", ())) if entries else ()
        return cls(folder, (shape[0], shape[1]), auxiliary, valid_by_chunk(entries, (shape[0], shape[1])))

    def write(self, band: Band) -> None:
        """Write a chunk-aligned band, then enter it in the ledger. Raises `OutputError` if the disk refuses.

        The store keeps the band until the next one comes, so its arrays must not change any more.
        """
        self.enter(self.put(band))

    def put(self, band: Band) -> dict[str, Any]:
        """Write a chunk-aligned band; returns what is to be entered in the ledger, by whoever keeps it."""
        valid_by_chunk = _valid_by_chunk(band.labels)
        try:
            if any(map(any, valid_by_chunk)):
                kept = {"labels": band.labels, "confidence": band.confidence}
                kept |= dict(zip(self.auxiliary, band.auxiliary, strict=True))
                for name, values in kept.items():
                    self._arrays[name][band.window.slices] = values
                self._latest = band.window, {name: _read_only(values) for name, values in kept.items()}
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        return {"window": [*band.window.row_range, *band.window.col_range], "valid_by_chunk": valid_by_chunk}

    def enter(self, *entries: dict[str, Any]) -> None:
        """Append entries to the ledger, all or none of them. One process at a time may do so."""
        try:
            _append(self.folder / LEDGER, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        with self._changed:
            for entry in entries:
                if "valid_by_chunk" in entry:
                    self.valid_by_chunk[_chunks(Window(*entry["window"]))] = entry["valid_by_chunk"]
            self._changed.notify_all()

    def read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Labels and confidence (y, x) of a window."""
        return self.read_one("labels", window), self.read_one("confidence", window)

    def read_one(self, name: str, window: Window) -> NDArray[np.uint8]:
        """`labels`, `confidence` or an auxiliary score (y, x) of a window, not to be changed."""
        latest = self._latest
        if latest and latest[0].intersection(window) == window:
            return latest[1][name][window.relative_to(latest[0]).slices]
        return _read_only(np.asarray(self._arrays[name][window.slices], np.uint8))

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        # zarr would look for chunks of nothing but nodata, at the price of the writing itself
        with zarr.config.set({"array.write_empty_chunks": True}):
            names = ("labels", "confidence", *self.auxiliary)
            return {name: zarr.open_array(self.folder / STORE / name, mode="r+") for name in names}

    def bands(self) -> Iterator[Window]:
        """Windows of whole rows of chunks that cover the scene."""
        return Window.of_shape(self.shape).blocks((CHUNK, self.shape[1]))

    def is_done(self, window: Window) -> bool:
        """Whether every chunk that the window touches was written."""
        return bool(self.done[_chunks(window)].all())

    def wait(self, window: Window) -> None:
        """Return once every chunk that the window touches was written, by whichever thread.

        Raises `CancelledError` once the store was abandoned, so that nobody waits for what will not come.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self.is_done(window))
        if self._abandoned:
            raise CancelledError

    def abandon(self) -> None:
        """Let all who wait go: nothing more will be written."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def undone(self, core: Window) -> Window | None:
        """What is left of a tile's core: its rows from the first row of chunks that is not done; None if all is."""
        chunk_rows = np.flatnonzero(~self.done[_chunks(core)].all(axis=1))
        if not chunk_rows.size:
            return None
        return core.rows(core.row_start + int(chunk_rows[0]) * CHUNK, core.row_stop)


def job_of(folder: Path) -> dict[str, Any] | None:
    """What the results in this folder depend on, or None if no run has begun here."""
    first = next(_entries(folder / LEDGER), None) if (folder / LEDGER).exists() else None
    if first is None or "job" not in first or not (folder / STORE / "labels").exists():
        return None
    job: dict[str, Any] = first["job"]
    return job


def told_apart(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between the parameters of two jobs, in words: of what has parts, those parts that do.

    A hash is told only where nothing beside it differs.

    >>> list(told_apart({"model": {"name": "a"}, "stride": 4}, {"model": {"name": "b"}, "threshold": 0.3, "stride": 4}))
    ['model name was a, now b', 'threshold was not set, now 0.3']
    """
    if isinstance(before, dict) or isinstance(now, dict):
        one, other = (each if isinstance(each, dict) else {} for each in (before, now))
        differing = [key for key in {**other, **one} if one.get(key) != other.get(key)]
        for key in [key for key in differing if key != "sha256"] or differing:
            yield from told_apart(one.get(key), other.get(key), f"{name} {key}".lstrip())
    elif _is_hash(before) and _is_hash(now):
        yield f"{name.removesuffix(' sha256')} has other contents"
    else:
        was, now = ("not set" if told is None else "a file" if _is_hash(told) else told for told in (before, now))
        yield f"{name} was {was}, now {now}"


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def remove(folder: Path) -> None:
    """Remove the store and the ledger of this folder: the ledger first, so that it never speaks of a lost store."""
    (folder / LEDGER).unlink(missing_ok=True)
    if (folder / STORE).exists():
        shutil.rmtree(folder / STORE)


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error for results that cannot be written, with what to do about it."""
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error}; free or choose another place with --out; "
        "what was computed is kept and the same command goes on from there"
    )


def entries_of(folder: Path) -> Iterator[dict[str, Any]]:
    """What a folder's ledger says, in the order of events: its job, then chunks, tiles and failures."""
    return _entries(folder / LEDGER) if (folder / LEDGER).exists() else iter(())


def valid_by_chunk(entries: Iterable[dict[str, Any]], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Per chunk of a scene: how many of its pixels have data, as a ledger says; -1 where it says nothing."""
    valid = np.full([-(-side // CHUNK) for side in shape], -1, np.int64)
    for entry in entries:
        if "valid_by_chunk" in entry:
            valid[_chunks(Window(*entry["window"]))] = entry["valid_by_chunk"]
    return valid


def chunks_of(window: Window) -> tuple[slice, slice]:
    """Index of the chunks that a window touches."""
    return _chunks(window)


def _append(ledger: Path, lines: bytes) -> None:
    """Append to a ledger; where the disk takes only a part, that is taken back, for more lines may follow."""
    taken = 0
    with ledger.open("ab", buffering=0) as stream:
        size = stream.tell()
        try:
            taken = stream.write(lines)
        finally:
            if taken != len(lines):
                stream.truncate(size)
    if taken != len(lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _entries(ledger: Path) -> Iterator[dict[str, Any]]:
    for line in ledger.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def _drop_torn_line(ledger: Path) -> None:
    """A run that was killed while it wrote leaves half a line, to which nothing may be appended."""
    content = ledger.read_bytes()
    if not content.endswith(b"\n"):
        ledger.write_bytes(content[: content.rfind(b"\n") + 1])


def _chunks(window: Window) -> tuple[slice, slice]:
    return (
        slice(window.row_start // CHUNK, -(-window.row_stop // CHUNK)),
        slice(window.col_start // CHUNK, -(-window.col_stop // CHUNK)),
    )


def _read_only(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    view = values.view()
    view.flags.writeable = False
    return view


def _valid_by_chunk(labels: NDArray[np.uint8]) -> list[list[int]]:
    rows, cols = (range(0, side, CHUNK) for side in labels.shape)
    return [[int(np.count_nonzero(labels[r : r + CHUNK, c : c + CHUNK] != NODATA)) for c in cols] for r in rows]
