"""The command as a user meets it: help that teaches, tables, progress, and real scenes."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click
import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.windows
from conftest import write_tif
from rasterio.features import rasterize

from geoseg.catalog import ModelSpec, bundled_models, catalogs_folder, find_model
from geoseg.cli import cli, main
from geoseg.samples import SAMPLES
from geoseg.tiling import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BUNDLED = "buildings-deeplabv3plus"


def picture(rows: int = 100, cols: int = 130) -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    blocks = rng.random((3, -(-rows // 8), -(-cols // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :cols]
    return (blocks * 180 + rng.random((3, rows, cols)) * 75).astype(np.uint8)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`geoseg` in this process: status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoseg", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


def _range(model: ModelSpec) -> str:
    return f"{model.resolution[0]:g} to {model.resolution[1]:g} m"


# --- help


def test_version(command: Callable[..., tuple[int, str, str]]) -> None:
    assert command("--version") == (0, f"geoseg {version('geoseg')}\n", "")


def test_help_begins_where_a_newcomer_does(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, _ = command("--help")
    assert status == 0
    assert "geoseg segment SCENE.tif buildings --out maps" in out
    commands = re.findall(r"^  (\w+)  +\w", out.partition("Commands:")[2], re.MULTILINE)
    assert commands == [
        "segment",
        "change",
        "series",
        "report",
        "serve",
        "run",
        "plan",
        "status",
        "verify",
        "merge",
        "vectorize",
        "convert",
        "check",
        "catalog",
        "evaluate",
        "seams",
        "models",
        "sample",
        "train",
    ]
    assert command("-h")[1] == out


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_no_option_forgets_a_value(name: str, command: Callable[..., tuple[int, str, str]]) -> None:
    """One that takes one value is refused where two are given; the others have a list."""
    asked = cli.commands[name]
    for option in asked.params:
        if not isinstance(option, click.Option) or option.is_flag or option.count or option.multiple:
            continue
        longest = max(option.opts, key=len)
        status, _, err = command(name, longest, "a", longest, "b")
        assert (status, f"{longest} is given 2 times, and takes one value; " in err) == (2, True), err
        assert ("write all of it in one, as" in err) == ("," in (option.metavar or ""))
    assert "is given" not in command(name, "-v", "-v", "--zarr", "--zarr", "--select", "a=1", "--select", "b=1")[2]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("segment", "a.tif", "buildings", "--out", "o", "--bands", "red=1,nir=4,red=2"), "red is both 1 and 2"),
        (("segment", "a.zarr", "buildings", "--out", "o", "--select", "t=1", "--select", "t=2"), "t is both 1 and 2"),
        (("evaluate", "a.tif", "b.tif", "--classes", "1=roof,1=road"), "1 is both roof and road"),
        (("vectorize", "a.tif", "--out", "a.gpkg", "--classes", "1=roof,1=road"), "1 is both roof and road"),
    ],
)
def test_no_name_has_two_values(
    arguments: tuple[str, ...], why: str, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = command(*arguments)
    assert (status, f"{why}; leave one of them out" in err) == (2, True), err


def test_each_help_teaches(command: Callable[..., tuple[int, str, str]]) -> None:
    for name, words in {
        "segment": (
            *("labels.tif", "confidence.tif", "footprints.geojson", "footprints.parquet", "item.json", "result.zarr"),
            *("--out", "--model", "--tile", "--stride", "--batch", "--device", "--aoi", "--threshold", "--min-area"),
            *("--overwrite", "goes on where it was", "square metres", "auto, cpu, cuda or cuda:N", "[default: 4.0]"),
        ),
        "change": (
            *("BEFORE", "AFTER", "PRODUCT", "changes.geojson", "changes.parquet", "transitions.tif"),
            *(
                "transitions.csv",
                "zones.geojson",
                "summary.json",
                "item.json",
                "--out",
                "--model",
                "--tile",
                "--stride",
            ),
            *("--batch", "--device", "--threshold", "--min-area", "--overwrite", "--tolerance", "--align", "--zones"),
            *("--min-confidence", "--any-order", "--unchanged", "not compared", "goes on where it was"),
            *("spectral", "--cut", "--match", "changes.tif", "magnitude.tif"),
        ),
        "series": (
            "--out",
            "--date",
            "--stay",
            "--tolerance",
            "since.tif",
            "objects.geojson",
            "first_seen",
            "[default: 0.9]",
        ),
        "run": (
            *("JOB.yaml", "collection.json", "items.parquet", "failed.geojson", "run.json", "--data", "--out", "--set"),
            *("--cluster", "processes:N", "--max-memory", "--overwrite", "--log-json", "--schema", "the status is 3"),
        ),
        "report": ("OUT/report.html", "--to", "--source", "--verify", "neither server nor internet"),
        "serve": ("--data", "--port", "--host", "Only this machine is answered", "[default: 8008;"),
        "plan": ("reads headers only", "--max-memory", "--no-time"),
        "status": ("--watch", "also while it runs"),
        "vectorize": (
            *(
                "--fill-holes",
                "--min-area",
                "--simplify",
                "--smooth",
                "--separate",
                "--regularise",
                "--class",
                "--classes",
            ),
            *(".geojson", ".parquet", ".fgb", ".gpkg", ".pmtiles", ".coco.json", "square metres on the ground"),
        ),
        "convert": (".geojsonl", ".ndjson", "--image", "RFC 7946"),
        "check": ("--out", "--overlap", "--sliver", "the status is 3", "axis order"),
        "verify": ("every valid pixel has a label", "checksum"),
        "evaluate": (
            *("PREDICTION", "REFERENCE", "255 = nodata", "GeoPackage", "a folder that `geoseg segment` wrote"),
            *("--aoi", "--classes", "--class-column", "--objects", "--tolerance", "--iou", "--json", "[default: 0.5]"),
        ),
        "seams": (
            *("SCENE [MODEL]", "--strides", "--aoi", "--windows", "--json", "passes/Mpx", "seam excess", "0.1 %"),
            *("one every eighth of a patch", "[default: 4]"),
        ),
        "catalog": (
            *("collection.json", "items/ID.json", "--out", "--license", "--checksum", "--datetime-pattern", "yearday"),
            *("the status is 3", "[default: other]", "20240531T101112", "what is gone loses it"),
        ),
        "models": ("geoseg models buildings-deeplabv3plus",),
        "sample": ("geoseg segment", "list the samples", "--all", "--into"),
        "train": ("geoseg train", "--schema", "geoseg[train]"),
    }.items():
        status, out, err = command(name, "--help")
        assert (status, err) == (0, "")
        assert "Example" in out
        text = " ".join(out.split())
        assert not [word for word in words if word not in text], out
        assert max(map(len, out.splitlines())) <= 100


def test_what_is_missing_or_unknown_is_told(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for arguments, says in (
        (("segment", "a.tif", "buildings"), "Missing option '--out'"),
        (("segment", "--out", tmp_path), "Missing argument 'SCENE'"),
        (("segment", "a.tif", "buildings", "--out", tmp_path, "--tile", "large"), "'large' is not a valid integer"),
        (("segmnt",), "No such command 'segmnt'"),
    ):
        status, out, err = command(*arguments)
        assert (status, out) == (2, "")
        assert says in err
        assert "Traceback" not in err


def test_the_command_is_quick_to_answer() -> None:
    """Help, version and samples ask for none of the heavy libraries."""
    code = "import sys; from geoseg.cli import main; sys.argv = ['geoseg', *sys.argv[1:]]\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print('heavy:', sorted({'torch', 'rasterio', 'geopandas', 'zarr'} & set(sys.modules)))"
    for arguments in (["--help"], ["segment", "--help"], ["evaluate", "--help"], ["sample"], ["models"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        heavy = done.stdout.splitlines()[-1]
        assert "torch" not in heavy
        assert heavy == "heavy: []" or arguments == ["models"]


def test_python_m_geoseg_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "geoseg", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"geoseg {version('geoseg')}\n"


# --- models and samples


def test_the_table_of_models_is_whole(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a pipe pretends to have few columns: a line for each model, nothing cut or folded."""
    monkeypatch.setenv("COLUMNS", "20")
    status, out, err = command("models")
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["name", "product", "architecture", "resolution", "classes", "score", "licence"]
    specs = list(bundled_models())
    assert len(lines) == len(specs) > 0
    for spec, line in zip(specs, lines, strict=True):
        classes = ", ".join(c.name for c in spec.legend.classes)
        for part in (spec.name, spec.product, spec.architecture, _range(spec), classes, spec.licence):
            assert part in line, line
    assert "…" not in out


def test_a_models_card_is_printed(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = command("models", BUNDLED)
    assert (status, err) == (0, "")
    card = (catalogs_folder() / "models" / BUNDLED / "README.md").read_text("utf-8")
    assert out.split() == card.split()
    status, out, err = command("models", "none")
    assert (status, out) == (2, "")
    assert err.startswith("Error: there is no model named 'none'; there are: ")


def test_samples_are_listed(command: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = command("sample")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(SAMPLES)
    assert command("sample", "atlantis")[0] == 2


# --- a run


def test_a_run_says_what_it_made_and_a_second_that_nothing_is_left(
    command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path
) -> None:
    """Quiet, but for the result, where nobody watches."""
    scene = write_tif(tmp_path / "town.tif", picture())
    arguments = ("segment", scene, "buildings", "--out", tmp_path / "maps", "--model", tiny_model)
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    head, balance, *paths = out.splitlines()
    assert re.fullmatch(r"\d+ footprints; 100\.0% of 0\.0 megapixels have data\.", head)
    told = re.fullmatch(r"Raster: (\d+) pixels of objects, (\d+) m2; layer: (\d+) footprints, (\d+) m2\.", balance)
    assert told is not None
    with rasterio.open(tmp_path / "maps" / "town" / "labels.tif") as labels:
        pixels = int((labels.read(1) == 1).sum())
    frame = gpd.read_parquet(tmp_path / "maps" / "town" / "footprints.parquet")
    assert [int(told[1]), int(told[3])] == [pixels, len(frame)]
    assert int(told[4]) == round(frame["area_m2"].sum())
    assert [Path(path).name for path in paths] == [
        "footprints.geojson",
        "footprints.parquet",
        "labels.tif",
        "confidence.tif",
        "item.json",
    ]
    assert all(Path(path).is_file() for path in paths)
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Nothing left to do: ")
    assert str(tmp_path / "maps" / "town") in out
    assert "--overwrite" in out
    status, out, err = command(*arguments, "--threshold", 0.4)
    assert status == 2
    assert "threshold was not set, now 0.4" in err
    assert command(*arguments, "--threshold", 0.4, "--overwrite")[0] == 0


def test_options_reach_the_run(command: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture())
    options = ("--stride", 32, "--tile", 512, "--batch", 2, "--threshold", 0.6, "--min-area", 20, "--device", "cpu")
    assert command("segment", scene, "buildings", "--out", tmp_path, "--model", tiny_model, *options)[0] == 0
    item = json.loads((tmp_path / "town" / "item.json").read_text("utf-8"))
    parameters = item["properties"]["geoseg:parameters"]
    expected = {"stride": [32, 32], "batch": 2, "threshold": 0.6, "min_area": 20.0, "device": "cpu"}
    assert {name: parameters[name] for name in expected} == expected
    assert (gpd.read_file(tmp_path / "town" / "footprints.geojson")["area_m2"] >= 20).all()
    with (
        rasterio.open(tmp_path / "town" / "labels.tif") as labels,
        rasterio.open(tmp_path / "town" / "confidence.tif") as confidence,
    ):
        said = confidence.read(1)
        assert said[labels.read(1) == 1].min() >= 150
        assert said[labels.read(1) == 0].min() >= 100


def run_in_a_terminal(*arguments: object) -> str:
    """What the command shows to somebody at a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    command = [sys.executable, "-m", "geoseg", *map(str, arguments)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            ready, _, _ = select.select([ours], [], [], 0.1)
            if not ready and process.poll() is not None:
                break
            if ready:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # the other end was closed
                    break
        assert process.wait() == 0, shown.decode()
    os.close(ours)
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_shows_progress(tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture(1100, 150))
    shown = run_in_a_terminal("segment", scene, "buildings", "--out", tmp_path, "--model", tiny_model, "-v")
    for stage in ("predicting", "outlining", "writing"):
        assert re.search(rf"{stage} .* 100 %", shown), shown
    assert re.search(r"predicting .* \d+\.\d+ Mpx/s +-?\d*:", shown), shown
    assert "tile Window(row_start=0, row_stop=1100" in shown
    assert "footprints; 100.0%" in shown


def test_verbose_logs_a_line_for_each_tile(tiny_model: Path, tmp_path: Path) -> None:
    scene = write_tif(tmp_path / "town.tif", picture(CHUNK + 88, 70))
    command = [sys.executable, "-m", "geoseg", "segment", str(scene), "buildings", "--out", str(tmp_path)]
    command += ["--model", str(tiny_model), "--tile", str(CHUNK), "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tiny: openvino differs from torch by" in done.stderr
    tiles = [line for line in done.stderr.splitlines() if " tile " in line]
    assert len(tiles) == 2
    assert all(
        re.search(r"tile Window\(.*\): \d+ patches, \d+ valid pixels; .*forward \d+\.\d s", line) for line in tiles
    )


# --- real scenes and the bundled model


def test_a_real_town_is_mapped(command: Callable[..., tuple[int, str, str]], shared_data: Path, tmp_path: Path) -> None:
    """A part of Banepa, against footprints that people drew."""
    whole = shared_data / "banepa" / "labelled_train.tif"
    with rasterio.open(whole) as dataset:
        place = rasterio.windows.Window((dataset.width - 1000) // 2, (dataset.height - 800) // 2, 1000, 800)
        values, transform, crs = dataset.read([1, 2, 3], window=place), dataset.window_transform(place), dataset.crs
    scene = write_tif(tmp_path / "banepa.tif", values, crs=crs.to_wkt(), transform=transform)
    status, out, err = command("segment", scene, "buildings", "--out", tmp_path / "maps")
    assert (status, err) == (0, "")
    assert out
    with rasterio.open(tmp_path / "maps" / "banepa" / "labels.tif") as dataset:
        found = dataset.read(1) == 1
    drawn = gpd.read_file(shared_data / "banepa" / "footprints_train.geojson").to_crs(crs).geometry
    true = rasterize(drawn, found.shape, transform=transform, dtype="uint8") == 1
    iou = (found & true).sum() / (found | true).sum()
    assert iou > 0.5, f"IoU {iou:.3f}"
    footprints = gpd.read_parquet(tmp_path / "maps" / "banepa" / "footprints.parquet")
    outlined = rasterize(footprints.geometry, found.shape, transform=transform, dtype="uint8") == 1
    assert (outlined & found).sum() / (outlined | found).sum() > 0.95


def test_a_real_scene_of_coarse_pixels_is_refused(
    command: Callable[..., tuple[int, str, str]], shared_data: Path, tmp_path: Path
) -> None:
    scene = shared_data / "scenes" / "naip_5m_timeseries" / "m_4709963_se_14_1_20200831.tif"
    status, out, err = command("segment", scene, "buildings", "--out", tmp_path / "maps")
    assert (status, out) == (2, "")
    model = find_model("buildings", None)
    says = f"Error: {scene}: its pixels are 5 x 5 m on the ground, {model.name} was trained for {_range(model)}"
    assert err.startswith(says)
    assert not (tmp_path / "maps").exists()
