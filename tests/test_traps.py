"""The traps that tools of this field fell into, as a user of the command meets them.

What can be mapped is mapped. What cannot be: one sentence that names the file or the value and the remedy, status 2,
and nothing half-written.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from conftest import BANEPA, write_tif

import geoseg
from geoseg.cli import main
from geoseg.tiling import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ROWS, COLS = 100, 130


def picture(rows: int = ROWS, cols: int = COLS, bands: int = 3) -> NDArray[np.uint8]:
    """Blocks and noise: of what the tiny model makes both classes."""
    rng = np.random.default_rng(1)
    blocks = rng.random((bands, -(-rows // 8), -(-cols // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :cols]
    return (blocks * 180 + rng.random((bands, rows, cols)) * 75).astype(np.uint8)


def labels_of(folder: Path) -> NDArray[np.uint8]:
    with rasterio.open(folder / "labels.tif") as dataset:
        return dataset.read(1)


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Command:
    """`geoseg` in this process: status, output and errors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["geoseg", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *self.capsys.readouterr()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture
def segment(command: Command, tiny_model: Path, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """`geoseg segment SCENE buildings --out maps --model tiny`, or another model, and more."""

    def call(scene: Path, *more: object) -> tuple[int, str, str]:
        model = () if "--model" in more else ("--model", tiny_model)
        return command("segment", scene, "buildings", "--out", tmp_path / "maps", *model, *more)

    return call


def is_refused(outcome: tuple[int, str, str], *says: str) -> None:
    status, out, err = outcome
    assert (status, out) == (2, ""), err
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("Error: ")
    for part in says:
        assert part in lines[0]


# --- scenes that are mapped


def with_mask(path: Path) -> Path:
    write_tif(path, picture())
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        mask = np.ones((ROWS, COLS), bool)
        mask[:40] = False
        dataset.write_mask(mask)
    return path


def emptied(values: NDArray[Any], nodata: float) -> NDArray[Any]:
    values = values.copy()
    values[values == nodata] += 1
    values[:, :40] = nodata
    return values


def alpha() -> NDArray[np.uint8]:
    values = picture(bands=4)
    values[3] = 255
    values[3, :40] = 0
    return values


WITH_A_HOLE: dict[str, Callable[[Path], Path]] = {
    "nodata tag": lambda path: write_tif(path, emptied(picture(), 0), nodata=0),
    "alpha band": lambda path: write_tif(path, alpha(), alpha="yes"),
    "internal mask": with_mask,
    "NaN": lambda path: write_tif(path, emptied(picture().astype("float32"), np.nan)),
    "-9999": lambda path: write_tif(path, emptied(picture().astype("float32"), -9999), nodata=-9999),
    "16 bits": lambda path: write_tif(path, emptied(picture().astype("uint16") * 37, 65535), nodata=65535),
    "grey": lambda path: write_tif(path, emptied(picture(bands=1), 0), nodata=0),
    "striped": lambda path: write_tif(path, emptied(picture(), 0), nodata=0, tiled=False, blockysize=3),
    "turned": lambda path: write_tif(
        path, emptied(picture(), 0), nodata=0, transform=BANEPA @ rasterio.Affine.rotation(20)
    ),
    "degrees": lambda path: write_tif(
        path, emptied(picture(), 0), "EPSG:4326", rasterio.Affine(3e-6, 0, 85.5, 0, -3e-6, 27.6), nodata=0
    ),
}


@pytest.mark.parametrize("kind", WITH_A_HOLE)
def test_what_has_no_data_is_nodata_and_nothing_else_is(
    kind: str, segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = WITH_A_HOLE[kind](tmp_path / "town.tif")
    status, out, err = segment(path, "--min-area", 0)
    assert (status, err) == (0, "")
    folder = tmp_path / "maps" / "town"
    assert [line for line in out.splitlines() if line.startswith(str(folder))]
    labels = labels_of(folder)
    assert (labels[:40] == 255).all()
    assert (labels[40:] != 255).all()
    assert len(np.unique(labels[40:])) == 2, "the model should find something and not everything"
    with rasterio.open(path) as scene, rasterio.open(folder / "labels.tif") as made:
        assert (scene.crs, scene.transform) == (made.crs, made.transform)
        corners = [scene.transform @ corner for corner in ((0, 0), (COLS, 0), (0, ROWS), (COLS, ROWS))]
    found = gpd.read_parquet(folder / "footprints.parquet")
    assert len(found) > 0
    assert found["touches_nodata"].any() == (labels[40] == 1).any()
    (x_0, y_0, x_1, y_1), tolerance = found.total_bounds, 1e-6
    assert min(x for x, _ in corners) - tolerance <= x_0 <= x_1 <= max(x for x, _ in corners) + tolerance
    assert min(y for _, y in corners) - tolerance <= y_0 <= y_1 <= max(y for _, y in corners) + tolerance


@pytest.mark.parametrize("shape", [(1, 1), (9, 300), (63, 65), (64, 64), (131, 67)])
def test_any_size_is_mapped_to_its_edges(
    shape: tuple[int, int], segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Smaller than a patch, or of sides that are multiples of nothing: no pixel is left out."""
    assert segment(write_tif(tmp_path / "town.tif", picture(*shape)), "--min-area", 0)[0] == 0
    labels = labels_of(tmp_path / "maps" / "town")
    assert labels.shape == shape
    assert (labels != 255).all()


def test_all_nodata_is_an_empty_map(segment: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, err = segment(write_tif(tmp_path / "void.tif", np.zeros((3, ROWS, COLS), np.uint8), nodata=0))
    assert (status, err) == (0, "")
    assert out.startswith("0 footprints; 0.0% of 0.0 megapixels have data.")
    folder = tmp_path / "maps" / "void"
    assert (labels_of(folder) == 255).all()
    assert json.loads((folder / "footprints.geojson").read_text("utf-8"))["features"] == []
    assert len(gpd.read_parquet(folder / "footprints.parquet")) == 0


def test_four_bands_are_used_by_name_or_order(segment: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """The fourth band has no say."""
    first = picture(bands=4)
    second = np.concatenate([first[:3], 255 - first[3:]])
    maps = []
    for name, values in (("a", first), ("b", second)):
        assert segment(write_tif(tmp_path / f"{name}.tif", values, photometric="MINISBLACK"))[0] == 0
        maps.append(labels_of(tmp_path / "maps" / name))
    np.testing.assert_array_equal(*maps)


# --- scenes that are refused


def test_scenes_without_a_place_are_refused(segment: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    bare = tmp_path / "bare.tif"
    write_tif(bare, picture(), crs=None)
    is_refused(segment(bare), str(bare), "has no CRS", "gdal_edit.py -a_srs")
    nowhere = tmp_path / "nowhere.tif"
    rasterio.shutil.copy(bare, tmp_path / "plain.png", driver="PNG")
    (tmp_path / "plain.png.aux.xml").unlink(missing_ok=True)
    is_refused(segment(tmp_path / "plain.png"), "plain.png", "no geotransform", "georeference it first")
    write_tif(nowhere, picture(), "EPSG:32645", rasterio.Affine(0.3, 0, 1e12, 0, -0.3, 1e12))
    is_refused(segment(nowhere), str(nowhere), "check its CRS and geotransform")
    assert not (tmp_path / "maps").exists()


def test_pixels_that_are_too_large_or_small_are_refused(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for name, crs, step in (("ten", "EPSG:32645", 10), ("degrees", "EPSG:4326", 1e-4), ("tiny", "EPSG:32645", 0.001)):
        corner = (85.5, 27.6) if crs == "EPSG:4326" else (334_000, 3_057_000)
        transform = rasterio.Affine(step, 0, corner[0], 0, -step, corner[1])
        path = write_tif(tmp_path / f"{name}.tif", picture(), crs, transform)
        said = {"ten": "10 x 10 m", "degrees": "11.1 x 9.87 m", "tiny": "0.001 x 0.001 m"}[name]
        is_refused(segment(path), str(path), said, "0.1 to 0.6 m", "geoseg models")
    assert not (tmp_path / "maps").exists()


def test_files_that_are_no_scene_are_refused(segment: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    text = tmp_path / "letter.tif"
    text.write_text("Dear user,", encoding="utf-8")
    is_refused(segment(text), str(text), "cannot be read as a raster", "give a GeoTIFF")
    is_refused(segment(tmp_path / "none.tif"), str(tmp_path / "none.tif"), "there is no such file", "check the path")
    is_refused(segment(tmp_path), str(tmp_path), "cannot be read as a raster")
    (tmp_path / "empty.tif").touch()
    is_refused(segment(tmp_path / "empty.tif"), "empty.tif", "cannot be read as a raster")
    two = write_tif(tmp_path / "two.tif", picture(bands=2))
    is_refused(segment(two), "two.tif", "the scene has unnamed, unnamed", "gdal_edit.py -colorinterp_1 red")
    assert not (tmp_path / "maps").exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "error::UserWarning", "COLUMNS": "200"}


def in_a_process(*arguments: object, before: str = "") -> list[str]:
    """The command line of `geoseg` in a process of its own, whatever that inherits from this one."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{before}"
    return [sys.executable, "-c", f"{code}\nfrom geoseg.cli import main; main()", *map(str, arguments)]


def test_a_truncated_file_is_an_error_not_background(tiny_model: Path, tmp_path: Path) -> None:
    """What was mapped before the damage is kept; no result speaks of what was not seen."""
    path = write_tif(tmp_path / "town.tif", picture(2200, 70), tiled=True, blockxsize=64, blockysize=64)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 6 // 10)
    arguments = ["segment", path, "buildings", "--out", tmp_path / "maps", "--model", tiny_model]
    done = subprocess.run(in_a_process(*arguments), capture_output=True, text=True, check=False, env=environment())
    is_refused((done.returncode, done.stdout, done.stderr), str(path), "rows", "damaged or incomplete", "again")
    folder = tmp_path / "maps" / "town"
    assert not [name for name in files_in(folder) if not name.startswith(("result.zarr", "ledger.jsonl"))]
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text("utf-8").splitlines()]
    kept = [entry["window"] for entry in entries if "window" in entry]
    assert kept[0] == [0, CHUNK, 0, 70]
    assert max(window[1] for window in kept) <= 2200 * 6 // 10


def test_a_truncated_file_that_must_be_stretched_is_refused_before_the_work(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = write_tif(tmp_path / "town.tif", picture(400, 150).astype("uint16") * 50, compress="deflate")
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    is_refused(segment(path), str(path), "damaged or incomplete")
    assert not (tmp_path / "maps").exists()


# --- places that cannot be written


def test_places_that_cannot_be_written_are_refused(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture())
    for out in (scene / "maps", Path("/proc/geoseg")):
        outcome = command("segment", scene, "buildings", "--out", out, "--model", tiny_model)
        is_refused(outcome, str(out / "town"), "cannot be written", "choose another place with --out")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "town").touch()
    outcome = command("segment", scene, "buildings", "--out", tmp_path / "maps", "--model", tiny_model)
    is_refused(outcome, str(tmp_path / "maps" / "town"), "cannot be written")


def test_too_little_room_is_told_before_the_work(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    is_refused(segment(write_tif(tmp_path / "town.tif", picture())), "town", "0 MB free", "may need", "--out")
    assert not files_in(tmp_path / "maps")


def on_a_small_disk(scene: str, model: str, disk: Path) -> list[tuple[int, list[str], str]]:
    """The same command on a disk that grows between one run and the next: status, files, and what it said, of each."""
    import contextlib
    import io

    import geoseg.planned

    libc = ctypes.CDLL(None)
    geoseg.planned.BYTES_PER_PIXEL = 0  # as if something else had filled the disk meanwhile
    outcomes = []
    for index, kilobytes in enumerate((20, 60, 100, 300, 600, 20_000)):
        assert libc.mount(b"tmpfs", bytes(disk), b"tmpfs", 32 if index else 0, f"size={kilobytes}k".encode()) == 0
        sys.argv = ["geoseg", "segment", scene, "buildings", "--out", str(disk), "--model", model]
        status, said = 0, io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        outcomes.append((status, files_in(disk / "town"), said.getvalue()))
    shutil.copytree(disk / "town", disk.parent / "town")
    return outcomes


SMALL_DISK = """
    import json, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_traps import on_a_small_disk
    _, _, scene, model, disk = sys.argv
    outcomes = on_a_small_disk(scene, model, Path(disk))
    Path(disk).with_name("outcomes.json").write_text(json.dumps(outcomes))
"""


def test_a_full_disk_is_told_and_the_same_command_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs the right to unshare")
    scene = write_tif(tmp_path / "town.tif", picture(700, 200))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [unshare, "--mount", sys.executable, "-c", textwrap.dedent(SMALL_DISK), str(Path(__file__).parent)]
    subprocess.run([*command, str(scene), str(tiny_model), str(disk)], check=True)
    outcomes = json.loads((tmp_path / "outcomes.json").read_text("utf-8"))
    assert [status for status, _, _ in outcomes] == [2, 2, 2, 2, 2, 0] or outcomes[-2][0] == 0, outcomes
    for status, files, said in outcomes[:-1]:
        if status == 2:
            is_refused((status, "", said), str(disk / "town"), "cannot be written", "choose another place with --out")
            assert "item.json" not in files
            assert not [name for name in files if name.startswith(".")]
    assert outcomes[0][0] == 2
    assert len({said.split(":")[1] for status, _, said in outcomes if status == 2}) > 1, (
        "it should fail in several places"
    )
    alone = geoseg.segment(scene, "buildings", tmp_path / "alone", model=str(tiny_model))
    np.testing.assert_array_equal(labels_of(tmp_path / "town"), labels_of(alone.folder))
    footprints = "footprints.geojson"
    assert (tmp_path / "town" / footprints).read_bytes() == (alone.folder / footprints).read_bytes()


# --- Ctrl-C


CTRL_C = """
    import os
    from geoseg.io.store import ResultStore

    write, presses = ResultStore.write, iter([True])

    def write_and_press(self, band):
        write(self, band)
        if next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)

    ResultStore.write = write_and_press
"""


def test_ctrl_c_stops_with_a_sentence_and_the_next_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture(2600, 70))
    arguments = ["segment", scene, "buildings", "--out", tmp_path / "maps", "--model", tiny_model]
    command = in_a_process(*arguments, before=textwrap.dedent(CTRL_C))
    done = subprocess.run(command, check=False, env=environment(), capture_output=True, text=True)
    err, ledger = done.stderr, tmp_path / "maps" / "town" / "ledger.jsonl"
    assert (done.returncode, done.stdout) == (130, ""), err
    assert err.strip().startswith("Stopped. What was computed is kept: the same command")
    assert len(err.strip().splitlines()) == 1
    assert not (ledger.parent / "item.json").exists()
    resumed = geoseg.segment(scene, "buildings", tmp_path / "maps", model=str(tiny_model))
    alone = geoseg.segment(scene, "buildings", tmp_path / "alone", model=str(tiny_model))
    np.testing.assert_array_equal(labels_of(resumed.folder), labels_of(alone.folder))
    for name in ("footprints.geojson", "labels.tif", "confidence.tif"):
        assert (resumed.folder / name).read_bytes() == (alone.folder / name).read_bytes()


# --- options


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "abacus"), ("device 'abacus'", "choose auto, cpu, cuda or cuda:N")),
        (("--device", "cuda:77"), ("device 'cuda:77'", "use --device cpu or auto")),
        (("--device", "mps"), ("device 'mps'", "choose auto, cpu, cuda or cuda:N")),
        (("--stride", 0), ("--stride 0", "must be from 1")),
        (("--stride", 65), ("--stride 65", "must be from 1 to the model's patch of 64 pixels")),
        (("--tile", 0), ("--tile 0", "must be from 1")),
        (("--batch", 0), ("--batch 0", "must be from 1")),
        (("--threshold", 2), ("--threshold 2", "must be from 0 to 1")),
        (("--threshold", "nan"), ("--threshold nan", "must be from 0 to 1")),
        (("--min-area", -1), ("--min-area -1", "must be from 0")),
        (("--min-area", "inf"), ("--min-area inf", "must be from 0")),
        (("--model", "none"), ("no model named 'none'", "buildings-deeplabv3plus")),
        (("--model", "/none/at/all"), ("/none/at/all", "not a model", "item.json")),
    ],
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_bad_options_are_refused(
    options: tuple[object, ...], says: tuple[str, ...], segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    is_refused(segment(write_tif(tmp_path / "town.tif", picture()), *options), *says)
    assert not (tmp_path / "maps").exists()


def test_unknown_products_are_refused(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture())
    is_refused(command("segment", scene, "castles", "--out", tmp_path / "maps"), "'castles'", "(buildings)")
    outcome = command("segment", scene, "castles", "--out", tmp_path / "maps", "--model", tiny_model)
    is_refused(outcome, "tiny maps buildings, not castles")
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("kind", ["missing", "not vector", "no polygons", "elsewhere", "folder"])
def test_bad_areas_are_refused(kind: str, segment: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    scene, path = write_tif(tmp_path / "town.tif", picture()), tmp_path / "area.geojson"
    if kind == "not vector":
        path.write_text("hello", encoding="utf-8")
    elif kind == "no polygons":
        gpd.GeoSeries([shapely.Point(85.3, 27.6)], crs=4326).to_file(path)
    elif kind == "elsewhere":
        gpd.GeoSeries([shapely.box(10, 50, 10.1, 50.1)], crs=4326).to_file(path)
    elif kind == "folder":
        path.mkdir()
    says = {
        "missing": "cannot be read as a vector file",
        "not vector": "cannot be read as a vector file",
        "no polygons": "has no polygons",
        "elsewhere": "do not meet the scene",
        "folder": "is a folder",
    }
    is_refused(segment(scene, "--aoi", path), str(path), says[kind])
    assert not (tmp_path / "maps").exists()


def test_a_defect_of_ours_is_status_1_and_asks_for_a_report(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a cat on the keyboard")

    monkeypatch.setattr("geoseg.export.assemble", fail)
    status, out, err = segment(write_tif(tmp_path / "town.tif", picture()))
    assert (status, out) == (1, "")
    assert re.match(
        r"Error: a defect of geoseg [\d.]+: ZeroDivisionError: a cat on the keyboard\nPlease report it", err
    )
    assert "Traceback" not in err
    assert not (tmp_path / "maps" / "town" / "item.json").exists()
