"""Laws of the working store: writing twice is writing once, and killed and resumed is run through."""

from __future__ import annotations

import json
import resource
import tempfile
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from conftest import ArraySource, MixingPredict, chunks_of, legend_of
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import ODCExtensionDa

from geoseg.errors import OutputError
from geoseg.io.store import LEDGER, STORE, ResultStore, job_of, remove
from geoseg.predict import Decision, Engine
from geoseg.raster import CONFIDENCE_STEPS, NODATA, Band, crs_of
from geoseg.tiling import CHUNK, Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

UTM = Affine(0.3, 0.0, 334_000.0, 0.0, -0.3, 3_057_000.0)
LEGEND = legend_of(3)
JOB = {"scene": "a.tif", "threshold": None}


def grid(shape: tuple[int, int]) -> GeoBox:
    return GeoBox(shape, UTM, "EPSG:32645")


def result(shape: tuple[int, int], seed: int = 0) -> Band:
    """All of a result."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([0, 1, 2, NODATA], np.uint8), shape)
    labels[: shape[0] // 3, : shape[1] // 2] = NODATA
    confidence = rng.integers(0, CONFIDENCE_STEPS + 1, shape, dtype=np.uint8)
    confidence[labels == NODATA] = NODATA
    return Band(Window.of_shape(shape), labels, confidence, np.empty((0, *shape), np.float32))


def part(whole: Band, window: Window) -> Band:
    return Band(window, whole.labels[window.slices], whole.confidence[window.slices], whole.auxiliary)


def assert_holds(store: ResultStore, whole: Band) -> None:
    """The store has all of a result, and says so when it is opened again, too."""
    for seen in (store, ResultStore.open(store.folder)):
        labels, confidence = seen.read(whole.window)
        np.testing.assert_array_equal(labels, whole.labels)
        np.testing.assert_array_equal(confidence, whole.confidence)
        assert seen.valid_pixels == np.count_nonzero(whole.labels != NODATA)
        assert seen.done.all()
        assert seen.undone(whole.window) is None


def test_a_new_store_is_all_nodata_and_nothing_is_done(tmp_path: Path) -> None:
    rows, cols = CHUNK + 88, 2 * CHUNK + 76
    store = ResultStore.create(tmp_path, grid((rows, cols)), LEGEND, JOB)
    labels, confidence = store.read(Window(0, rows, 0, cols))
    assert (labels == NODATA).all()
    assert (confidence == NODATA).all()
    assert store.done.shape == (2, 3)
    assert not store.done.any()
    assert store.valid_pixels == 0
    assert store.shape == (rows, cols)
    assert store.undone(Window(0, rows, 0, cols)) == Window(0, rows, 0, cols)
    assert [(w.row_start, w.row_stop) for w in store.bands()] == [(0, CHUNK), (CHUNK, rows)]


@settings(max_examples=20)
@given(st.data(), st.integers(1, 40), st.integers(1, 40))
def test_regions_in_any_order_and_again_are_the_whole(data: st.DataObject, rows: int, cols: int) -> None:
    whole = result((rows, cols), rows)
    regions = [Window(r, min(r + 8, rows), c, min(c + 16, cols)) for r in range(0, rows, 8) for c in range(0, cols, 16)]
    order = data.draw(st.permutations(regions))
    again = data.draw(st.lists(st.sampled_from(regions), max_size=4))
    with chunks_of(8), tempfile.TemporaryDirectory() as folder:
        store = ResultStore.create(Path(folder), grid((rows, cols)), LEGEND, JOB)
        for window in [*again, *order, *again]:
            store.write(part(whole, window))
        assert_holds(store, whole)


def test_writing_twice_is_writing_once_at_the_real_chunk(tmp_path: Path) -> None:
    shape = rows, cols = CHUNK + 88, CHUNK + 188
    whole = result(shape)
    store = ResultStore.create(tmp_path, grid(shape), LEGEND, JOB)
    store.write(part(whole, Window(0, CHUNK, 0, CHUNK)))
    assert store.is_done(Window(5, 6, 7, 8))
    assert not store.is_done(Window(5, 6, 7, CHUNK + 1))
    assert store.undone(Window.of_shape(shape)) == Window.of_shape(shape)
    store.write(part(whole, Window(0, CHUNK, 0, cols)))  # a part of it was done
    assert store.undone(Window.of_shape(shape)) == Window(CHUNK, rows, 0, cols)
    valid_pixels = np.count_nonzero(whole.labels[:CHUNK] != NODATA)
    assert store.valid_pixels == ResultStore.open(tmp_path).valid_pixels == valid_pixels
    store.write(whole)
    assert_holds(store, whole)


def test_what_is_left_of_a_tile_begins_with_its_first_row_that_is_not_done(tmp_path: Path) -> None:
    shape = 5 * CHUNK, 2 * CHUNK
    whole = result(shape)
    store = ResultStore.create(tmp_path, grid(shape), LEGEND, JOB)
    core = Window(CHUNK, 4 * CHUNK, CHUNK, 2 * CHUNK)
    assert store.undone(core) == core
    store.write(part(whole, core.rows(CHUNK, 2 * CHUNK)))
    assert store.undone(core) == core.rows(2 * CHUNK, 4 * CHUNK)
    store.write(part(whole, core.rows(3 * CHUNK, 4 * CHUNK)))
    assert store.undone(core) == core.rows(2 * CHUNK, 4 * CHUNK)
    store.write(part(whole, core.rows(2 * CHUNK, 3 * CHUNK)))
    assert store.undone(core) is None
    assert store.undone(Window.of_shape(shape)) == Window.of_shape(shape)


class Killed(Exception):  # noqa: N818  no error, but the end of a run
    pass


class Mortal:
    """A sink that dies before its n-th write."""

    def __init__(self, store: ResultStore, writes: int) -> None:
        self.store, self.writes = store, writes

    def write(self, band: Band) -> None:
        if self.writes == 0:
            raise Killed
        self.writes -= 1
        self.store.write(band)


@settings(max_examples=25)
@given(st.data(), st.integers(1, 45), st.integers(1, 45), st.integers(0, 2**32 - 1))
def test_killed_and_resumed_is_run_through(data: st.DataObject, rows: int, cols: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = ArraySource(rng.integers(0, 256, (2, rows, cols), dtype=np.uint8), rng.random((rows, cols)) < 0.7)
    sides = st.sampled_from([8, 16, 24])
    with chunks_of(8), tempfile.TemporaryDirectory() as folder:
        geobox = grid((rows, cols))
        whole = ResultStore.create(Path(folder) / "whole", geobox, LEGEND, JOB)
        killed = ResultStore.create(Path(folder) / "killed", geobox, LEGEND, JOB)

        def attempt(store: ResultStore, tile: tuple[int, int], writes: int) -> int:
            """How many writes were left."""
            tiling, sink = Tiling((rows, cols), (9, 7), (6, 5), tile), Mortal(store, writes)
            with Engine(MixingPredict(3, 2, (9, 7)), Decision(LEGEND), (127, 3), 1, 1) as engine:
                for core in [t.core for t in tiling.tiles()]:
                    rest = store.undone(core)
                    if rest is not None:
                        engine.run(source, tiling.tile_of(rest), tiling, sink)
            return sink.writes

        attempt(whole, (rows, cols), 10**6)
        for _ in range(3):
            try:
                attempt(killed, (data.draw(sides), data.draw(sides)), data.draw(st.integers(0, 6)))
            except Killed:
                ledger = Path(folder) / "killed" / LEDGER
                ledger.write_text(ledger.read_text() + data.draw(st.sampled_from(["", '{"window": [0, 8,', "{"])))
            killed = ResultStore.open(Path(folder) / "killed")
        attempt(killed, (data.draw(sides), data.draw(sides)), 10**6)
        assert attempt(killed, (8, 8), 1) == 1  # nothing was left to do
        band = Band(
            Window.of_shape((rows, cols)), *whole.read(Window.of_shape((rows, cols))), np.empty((0, rows, cols))
        )
        assert_holds(whole, band)
        assert_holds(killed, band)
        np.testing.assert_array_equal(band.labels != NODATA, source.valid)


@pytest.mark.parametrize("torn", ["", '{"window": [0, 512, 0, 700], "val', "{", "\n"], ids=repr)
def test_a_torn_last_line_is_as_if_it_had_not_been(tmp_path: Path, torn: str) -> None:
    shape = rows, cols = CHUNK + 88, CHUNK + 188
    whole = result(shape)
    store = ResultStore.create(tmp_path, grid(shape), LEGEND, JOB)
    store.write(part(whole, Window(CHUNK, rows, 0, cols)))
    lines = (tmp_path / LEDGER).read_text()
    (tmp_path / LEDGER).write_text(lines + torn.strip())
    store = ResultStore.open(tmp_path)
    assert store.done.tolist() == [[False, False], [True, True]]
    assert (tmp_path / LEDGER).read_text() == lines
    store.write(part(whole, Window(0, CHUNK, 0, cols)))
    assert_holds(store, whole)
    assert job_of(tmp_path) == JOB


def test_a_job_is_known_from_the_first_line_on(tmp_path: Path) -> None:
    assert job_of(tmp_path) is None
    assert job_of(tmp_path / "absent") is None
    ResultStore.create(tmp_path, grid((5, 5)), LEGEND, JOB)
    assert job_of(tmp_path) == JOB
    header = (tmp_path / LEDGER).read_text()
    for broken in ("", header[:-1], header[:5], '{"window": [0, 5, 0, 5], "valid_by_chunk": [[0]]}\n'):
        (tmp_path / LEDGER).write_text(broken)
        assert job_of(tmp_path) is None
    (tmp_path / LEDGER).write_text(header)
    assert job_of(tmp_path) == JOB
    remove(tmp_path)
    assert job_of(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    remove(tmp_path)


def test_a_ledger_without_its_store_is_no_job(tmp_path: Path) -> None:
    ResultStore.create(tmp_path, grid((5, 5)), LEGEND, JOB)
    (tmp_path / STORE).rename(tmp_path / "elsewhere")
    assert job_of(tmp_path) is None


def test_creating_again_begins_anew(tmp_path: Path) -> None:
    whole = result((5, 5))
    ResultStore.create(tmp_path, grid((5, 5)), LEGEND, JOB).write(whole)
    store = ResultStore.create(tmp_path, grid((7, 6)), LEGEND, {"other": 1})
    assert (store.shape, store.valid_pixels, bool(store.done.any())) == ((7, 6), 0, False)
    assert (store.read_one("labels", Window(0, 7, 0, 6)) == NODATA).all()
    assert job_of(tmp_path) == {"other": 1}


@pytest.mark.parametrize("name", ["labels", "confidence"])
def test_what_could_not_be_written_is_not_in_the_ledger(tmp_path: Path, name: str) -> None:
    whole = result((600, 700))
    store = ResultStore.create(tmp_path, grid((600, 700)), LEGEND, JOB)
    lines = (tmp_path / LEDGER).read_text()
    (tmp_path / STORE / name / "c").write_text("a file where the chunks' folder is wanted")
    with pytest.raises(OutputError, match="cannot be written") as raised:
        store.write(whole)
    assert str(tmp_path) in str(raised.value)
    assert (tmp_path / LEDGER).read_text() == lines
    assert not store.done.any()
    assert store.valid_pixels == 0
    (tmp_path / STORE / name / "c").unlink()
    store.write(whole)
    assert_holds(store, whole)


def test_rows_without_data_take_no_space_but_are_done(tmp_path: Path) -> None:
    store = ResultStore.create(tmp_path, grid((600, 700)), LEGEND, JOB)
    nothing = np.full((600, 700), NODATA, np.uint8)
    store.write(Band(Window.of_shape((600, 700)), nothing, nothing, np.empty((0, 600, 700), np.float32)))
    assert not (tmp_path / STORE / "labels" / "c").exists()
    assert store.undone(Window.of_shape((600, 700))) is None
    assert ResultStore.open(tmp_path).done.all()
    assert ResultStore.open(tmp_path).valid_pixels == 0


@settings(max_examples=20)
@given(st.data(), st.integers(1, 40), st.integers(1, 40))
def test_what_is_handed_on_is_what_is_on_the_disk(data: st.DataObject, rows: int, cols: int) -> None:
    """Whatever was written last, auxiliary score included, and whichever window is asked for."""
    rng = np.random.default_rng(rows)
    with chunks_of(8), tempfile.TemporaryDirectory() as folder:
        store = ResultStore.create(Path(folder), grid((rows, cols)), LEGEND, JOB, ("middle",))
        regions = [*store.bands(), Window.of_shape((rows, cols)), Window(0, min(8, rows), 0, min(8, cols))]
        for window in data.draw(st.lists(st.sampled_from(regions), min_size=1, max_size=4)):
            labels, confidence, score = rng.integers(0, 3, (3, *window.shape), dtype=np.uint8)
            labels[rng.random(window.shape) < data.draw(st.sampled_from([0, 0.5, 1]))] = NODATA
            store.write(Band(window, labels, confidence, score[np.newaxis]))
            on_disk = ResultStore.open(store.folder)
            for asked in regions:
                for name in ("labels", "confidence", "middle"):
                    seen = store.read_one(name, asked)
                    np.testing.assert_array_equal(seen, on_disk.read_one(name, asked))
                    assert not seen.flags.writeable


def test_the_latest_band_is_not_read_back_and_stays_writable_for_who_made_it(tmp_path: Path) -> None:
    store, whole = ResultStore.create(tmp_path, grid((60, 70)), LEGEND, JOB), result((60, 70))
    store.write(whole)
    assert np.shares_memory(store.read_one("confidence", whole.window), whole.confidence)
    assert whole.confidence.flags.writeable


def test_zarr_does_not_look_for_empty_chunks(tmp_path: Path) -> None:
    """Which would take as long as writing them: so a chunk without data beside one with data is there."""
    store, whole = ResultStore.create(tmp_path, grid((60, 2 * CHUNK)), LEGEND, JOB), result((60, 2 * CHUNK))
    whole.labels[:, :CHUNK] = NODATA
    store.write(whole)
    assert {path.name for path in (tmp_path / STORE / "labels" / "c" / "0").iterdir()} == {"0", "1"}


def test_every_ledger_line_is_json_and_names_a_window(tmp_path: Path) -> None:
    whole = result((600, 700))
    store = ResultStore.create(tmp_path, grid((600, 700)), LEGEND, JOB)
    for window in store.bands():
        store.write(part(whole, window))
    job, *entries = (json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines())
    assert job == {"job": JOB, "auxiliary": []}
    assert [Window(*entry["window"]) for entry in entries] == list(store.bands())


def open_store(folder: Path) -> xr.Dataset:
    return xr.open_zarr(folder / STORE, consolidated=False)


def filled(folder: Path, geobox: GeoBox) -> tuple[Band, xr.Dataset]:
    whole = result(geobox.shape)
    ResultStore.create(folder, geobox, LEGEND, JOB).write(whole)
    return whole, open_store(folder)


def assert_values(dataset: xr.Dataset, whole: Band) -> None:
    assert dataset["labels"].dtype == np.uint8
    np.testing.assert_array_equal(dataset["labels"], whole.labels)
    expected: NDArray[np.float64] = np.where(
        whole.labels == NODATA, np.nan, whole.confidence.astype(float) / CONFIDENCE_STEPS
    )
    confidence = dataset["confidence"].to_numpy()
    np.testing.assert_allclose(confidence, expected, atol=1e-6)
    assert 0 <= np.nanmin(confidence) <= np.nanmax(confidence) <= 1


def test_xarray_finds_values_coordinates_and_crs(tmp_path: Path) -> None:
    geobox = grid((30, 40))
    whole, dataset = filled(tmp_path, geobox)
    assert_values(dataset, whole)
    np.testing.assert_allclose(dataset["x"], 334_000 + 0.3 * (np.arange(40) + 0.5))
    np.testing.assert_allclose(dataset["y"], 3_057_000 - 0.3 * (np.arange(30) + 0.5))
    assert dataset["labels"].attrs["flag_values"] == [0, 1, 2]
    assert dataset["labels"].attrs["flag_meanings"] == "class_0 class_1 class_2"
    for name in ("labels", "confidence"):
        assert dataset[name].dims == ("y", "x")
        assert dataset[name].chunks is not None  # read when used
        found = ODCExtensionDa(dataset[name]).geobox
        assert found == geobox
        assert found.crs.epsg == 32645


def test_geographic_grids_have_latitude_and_longitude(tmp_path: Path) -> None:
    geobox = GeoBox((20, 30), Affine(1e-5, 0, 85.5, 0, -1e-5, 27.6), "EPSG:4326")
    whole, dataset = filled(tmp_path, geobox)
    assert_values(dataset, whole)
    assert dataset["labels"].dims == ("latitude", "longitude")
    np.testing.assert_allclose(dataset["longitude"], 85.5 + 1e-5 * (np.arange(30) + 0.5))
    assert crs_of(ODCExtensionDa(dataset["labels"]).geobox).epsg == 4326


def test_rotated_grids_open_too(tmp_path: Path) -> None:
    geobox = GeoBox((20, 30), UTM @ Affine.rotation(17), "EPSG:32645")
    whole, dataset = filled(tmp_path, geobox)
    assert_values(dataset, whole)
    found = ODCExtensionDa(dataset["labels"]).geobox
    assert crs_of(found).epsg == 32645
    np.testing.assert_allclose(found.affine, geobox.affine, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)], ids=str)
def test_a_single_row_or_column_opens_too(tmp_path: Path, shape: tuple[int, int]) -> None:
    whole, dataset = filled(tmp_path, grid(shape))
    np.testing.assert_array_equal(dataset["labels"], whole.labels)
    assert ODCExtensionDa(dataset["labels"]).geobox == grid(shape)


def test_waiting_ends_with_the_last_chunk_or_the_store(tmp_path: Path) -> None:
    whole = result((100, 130))
    with chunks_of(64), ThreadPoolExecutor(3) as pool:
        store = ResultStore.create(tmp_path, grid((100, 130)), LEGEND, JOB)
        upper, lower, left = Window(0, 64, 0, 130), Window(64, 100, 0, 130), Window(0, 64, 0, 64)
        waiting = {window: pool.submit(store.wait, window) for window in (upper, lower, left)}
        store.write(part(whole, left))
        waiting[left].result(60)
        assert not waiting[upper].done()
        store.write(part(whole, Window(0, 64, 64, 130)))
        waiting[upper].result(60)
        assert not waiting[lower].done()
        store.abandon()
        for window in (lower, upper):
            with pytest.raises(CancelledError):
                pool.submit(store.wait, window).result(60)
        with pytest.raises(CancelledError):
            waiting[lower].result(60)
        ResultStore.open(tmp_path).wait(upper)


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    """A file that may not grow any more takes a part of the line, as a disk does that is full."""
    store = ResultStore.create(tmp_path, grid((5, 5)), LEGEND, JOB)
    entry = {"window": [0, 5, 0, 5], "valid_by_chunk": [[3]]}
    before = (tmp_path / LEDGER).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 7, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            store.enter(entry)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / LEDGER).read_bytes() == before
    assert not store.done.any()
    store.enter(entry)
    assert ResultStore.open(tmp_path).valid_pixels == 3
