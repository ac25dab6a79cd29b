"""Outlines that are kept beside the store: whatever is there, the footprints are the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import chunks_of, legend_of
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import grid

import geoseg.outlines
from geoseg import outlines
from geoseg.errors import OutputError
from geoseg.export import Exports, arrays_of, outlined
from geoseg.footprints import GroundSeparation, Layer, Outlined, assemble
from geoseg.io.cog import Look
from geoseg.io.store import ResultStore
from geoseg.raster import Band
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator


SIDE = 16
LEGEND = legend_of(3)


def scene(shape: tuple[int, int], seed: int) -> Band:
    """Blobs of labels with holes of nodata, and scores that part them."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 1, 2, 255], (-(-shape[0] // 4), -(-shape[1] // 4))).astype(np.uint8)
    labels = coarse.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
    confidence, score = (rng.integers(low, 251, shape).astype(np.uint8) for low in (126, 0))
    for codes in (confidence, score):
        codes[labels == 255] = 255
    return Band(Window.of_shape(shape), labels, confidence, score[None])


def layer_for(shape: tuple[int, int], *, apart: bool) -> Layer:
    return Layer(grid(shape), LEGEND, "s", separation=GroundSeparation(0.8) if apart else None)


def part(whole: Band, window: Window, layer: Layer) -> Iterator[Outlined]:
    arrays = [whole.labels, whole.confidence, whole.auxiliary[0]][: len(arrays_of(layer))]
    return outlined(window, [values[window.slices] for values in arrays], layer)


def exported(folder: Path, whole: Band, layer: Layer) -> Exports:
    """What makes the files of a scene, all of whose chunks are written."""
    store = ResultStore.create(folder, layer.geobox, LEGEND, {}, ("interior",))
    for window in store.bands():
        rows = window.slices
        store.write(Band(window, whole.labels[rows], whole.confidence[rows], whole.auxiliary[:, *rows]))
    return Exports(store, layer, Look("x", LEGEND), {}, lambda _stage, _done, _total: None)


@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    seed=st.integers(0, 1000),
    apart=st.booleans(),
    kept=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.booleans()), max_size=8),
)
@settings(max_examples=60, deadline=None)
@chunks_of(SIDE)
def test_whatever_is_kept_the_footprints_are_the_same(
    *, shape: tuple[int, int], seed: int, apart: bool, kept: list[tuple[int, int, int, bool]]
) -> None:
    """Windows of any tiling, in any order, some of them damaged; others are outlined from the store."""
    whole, layer = scene(shape, seed), layer_for(shape, apart=apart)
    with tempfile.TemporaryDirectory() as folder:
        for row, col, chunks, damaged in kept:
            if row * SIDE >= shape[0] or col * SIDE >= shape[1]:
                continue
            stop = min((row + 1) * SIDE, shape[0]), min((col + chunks) * SIDE, shape[1])
            window = Window(row * SIDE, stop[0], col * SIDE, stop[1])
            for each in part(whole, window, layer):
                outlines.keep(Path(folder), each)
            if damaged:
                for path in Path(folder, outlines.FOLDER).glob(f"{row * SIDE}-*-{col * SIDE}-{stop[1]}.npz"):
                    path.write_bytes(path.read_bytes()[:-40])
        exported(Path(folder), whole, layer).write_footprints()
        found = (Path(folder) / "footprints.parquet").read_bytes()
        outlines.forget(Path(folder))
        exported(Path(folder), whole, layer).write_footprints()
        assert found == (Path(folder) / "footprints.parquet").read_bytes()


@chunks_of(SIDE)
def test_what_is_kept_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = 40, 40
    whole, layer = scene(shape, 1), layer_for(shape, apart=True)
    for window in Window.of_shape(shape).blocks((SIDE, 2 * SIDE)):
        for each in part(whole, window, layer):
            outlines.keep(tmp_path, each)
    exports = exported(tmp_path, whole, layer)
    monkeypatch.setattr("geoseg.export.outline", lambda *_, **__: pytest.fail("outlined again"))
    assert exports.write_footprints()["footprints"] > 5
    assert not list((tmp_path / outlines.FOLDER).glob(".*"))


@chunks_of(SIDE)
def test_what_comes_back_is_what_was_kept(tmp_path: Path) -> None:
    shape = 40, 40
    whole, layer = scene(shape, 2), layer_for(shape, apart=True)
    bands = list(Window.of_shape(shape).blocks((SIDE, 40)))
    made = [each for band in bands for each in part(whole, band, layer)]
    for each in made:
        outlines.keep(tmp_path, each)
    back = [known for band in bands for _, known in outlines.kept(tmp_path, band, layer.apart)]
    assert_geodataframe_equal(assemble(made, layer), assemble([each for each in back if each], layer))


@chunks_of(SIDE)
def test_another_version_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, layer = scene((16, 16), 3), layer_for((16, 16), apart=False)
    for each in part(whole, whole.window, layer):
        outlines.keep(tmp_path, each)
    assert [known is not None for _, known in outlines.kept(tmp_path, whole.window, layer.apart)] == [True]
    monkeypatch.setattr(geoseg.outlines, "version", lambda _: "another")
    assert list(outlines.kept(tmp_path, whole.window, layer.apart)) == [(whole.window, None)]


@chunks_of(SIDE)
def test_nothing_in_it_is_run(tmp_path: Path) -> None:
    """An array of objects would be a pickle: it is not opened."""
    whole, layer = scene((16, 16), 3), layer_for((16, 16), apart=False)
    for each in part(whole, whole.window, layer):
        outlines.keep(tmp_path, each)
    (path,) = (tmp_path / outlines.FOLDER).iterdir()
    with np.load(path) as stored:
        arrays = dict(stored) | {"column.class": np.array([print], object)}
    np.savez(path, **arrays)
    assert list(outlines.kept(tmp_path, whole.window, None)) == [(whole.window, None)]


def test_a_disk_that_refuses(tmp_path: Path) -> None:
    whole, layer = scene((16, 16), 3), layer_for((16, 16), apart=False)
    (tmp_path / outlines.FOLDER).write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        outlines.keep(tmp_path, *part(whole, whole.window, layer))
