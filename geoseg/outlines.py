"""Outlines of windows, kept beside the store: made by whoever predicts a tile, joined by whoever makes the files.

What is kept of a window is small: the footprints that are whole, and what lies on its borders. As footprints do not
depend on how a scene is cut, it does not matter which windows have been outlined, nor by whom: what is missing is
outlined from the store. Files are plain arrays, read without running anything.
"""

from __future__ import annotations

import shutil
import uuid
import zipfile
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from geoseg.footprints import Outlined
from geoseg.io.store import cannot_write
from geoseg.pieces import Border, Objects, Parts, Piece, Rim, Scores, Vertices
from geoseg.separate import Edges
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.separate import Separation

    Arrays = dict[str, NDArray[Any]]

FOLDER = "outlines"
"""In a scene's folder, beside its store."""

GEOMETRY = "geometry"


def keep(folder: Path, outlined: Outlined) -> None:
    """Keep what was found in a window. Raises `OutputError` if the disk refuses."""
    path = folder / FOLDER / _name(outlined.piece.window)
    part = path.with_name(f".{uuid.uuid4().hex}")  # another worker may be at the same window
    try:
        path.parent.mkdir(exist_ok=True)
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **_arrays_of(outlined))
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def kept(folder: Path, band: Window, separation: Separation | None) -> Iterator[tuple[Window, Outlined | None]]:
    """Windows that cover a band of the scene, each as high as the band, with what is kept of them or None."""
    col = band.col_start
    for window in sorted(_windows(folder / FOLDER), key=lambda each: each.col_range):
        if window.row_range != band.row_range or window.col_start < col:
            continue
        outlined = _read(folder / FOLDER / _name(window), window, separation)
        if outlined is None:
            continue
        if window.col_start > col:
            yield Window(*band.row_range, col, window.col_start), None
        yield window, outlined
        col = window.col_stop
    if col < band.col_stop:
        yield Window(*band.row_range, col, band.col_stop), None


def forget(folder: Path) -> None:
    """Remove all that is kept of a scene's windows."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _name(window: Window) -> str:
    return "-".join(map(str, (*window.row_range, *window.col_range))) + ".npz"


def _windows(folder: Path) -> Iterator[Window]:
    for path in folder.glob("[0-9]*.npz"):
        yield Window(*map(int, path.stem.split("-")))


# --- as plain arrays


def _arrays_of(outlined: Outlined) -> Arrays:
    piece, columns = outlined.piece, dict(outlined.columns)
    wkb = shapely.to_wkb(columns.pop(GEOMETRY))
    arrays = {f"column.{name}": values for name, values in columns.items()}
    arrays["wkb"] = np.frombuffer(b"".join(wkb), np.uint8)
    arrays["wkb.length"] = np.array([len(each) for each in wkb], np.int64)
    arrays["version"] = np.array(version("geoseg"))
    for name, record in {"parts": piece.parts, "vertices": piece.vertices, "border": piece.border}.items():
        arrays |= _fields_of(name, record)
    if piece.scores is not None:
        arrays |= _fields_of("scores", piece.scores) | _fields_of("links", piece.scores.links)
    if piece.rim is not None:
        arrays |= _fields_of("rim", piece.rim)
    return arrays


def _fields_of(name: str, record: object) -> Arrays:
    """The arrays of a record; what else it holds is known otherwise."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}  # type: ignore[arg-type]  # all are dataclasses
    return {f"{name}.{key}": value for key, value in values.items() if isinstance(value, np.ndarray)}


def _read(path: Path, window: Window, separation: Separation | None) -> Outlined | None:
    """What is kept of a window; None if it is damaged, or if another version of geoseg has made it."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            arrays: Arrays = dict(stored)
        return _outlined(arrays, window, separation) if str(arrays["version"]) == version("geoseg") else None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, shapely.GEOSException):
        return None


def _outlined(arrays: Arrays, window: Window, separation: Separation | None) -> Outlined:
    scores = None
    if separation is not None:
        scores = Scores(separation=separation, links=Edges(**_of("links", arrays)), **_of("scores", arrays))
    parts, vertices = Parts(**_of("parts", arrays)), Vertices(**_of("vertices", arrays))
    border = Border(**_of("border", arrays))
    rim = Rim(**_of("rim", arrays)) if "rim.top" in arrays else None
    columns = _of("column", arrays)
    columns[GEOMETRY] = _geometry(arrays["wkb"], arrays["wkb.length"])
    return Outlined(columns, Piece(window, Objects.empty(), parts, vertices, border, scores, rim))


def _of(name: str, arrays: Arrays) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): values for key, values in arrays.items() if key.startswith(f"{name}.")}


def _geometry(wkb: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.object_]:
    everything, ends = wkb.tobytes(), np.cumsum(lengths).tolist()
    starts = [0, *ends[:-1]]
    each = [everything[start:end] for start, end in zip(starts, ends, strict=True)] if ends else []
    return np.asarray(shapely.from_wkb(np.array(each, object)), object)
