"""Networks that take two scenes: trained on pairs, told apart from others, run by the same engine under its laws."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import torch
from click.testing import CliRunner
from conftest import BANEPA, chunks_of, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from safetensors.torch import load_file

import geoseg
from geoseg.catalog import MULTIHASH_SHA256, read_model
from geoseg.changes.by_network import plan_pair
from geoseg.changes.planned import job_of, plan_change
from geoseg.cli import cli
from geoseg.errors import ModelError, OptionError, OutputError, SceneError
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.io.stacks import stacked
from geoseg.jobs import read_job
from geoseg.models.networks import build_network
from geoseg.models.weights import load_network
from geoseg.train.data import Crops, places_of
from geoseg.train.job import TrainJob
from geoseg.train.losses import IGNORED
from geoseg.train.publish import Learned, publish
from geoseg.train.run import _filled, _network, train
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

NODATA = 255
SIDE = 96
"""Of the toy images, at 0.3 m."""


def roofs(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    there = np.zeros((SIDE, SIDE), bool)
    for top, left, bottom, right in boxes:
        there[top:bottom, left:right] = True
    return there


STANDING, NEW, GONE = roofs((10, 10, 30, 34)), roofs((50, 12, 78, 36)), roofs((8, 60, 32, 84), (60, 60, 80, 90))


def image(there: NDArray[np.bool_], seed: int) -> NDArray[np.uint8]:
    """Bright roofs on dark noisy ground."""
    noise = np.random.default_rng(seed).integers(0, 60, (3, *there.shape))
    return (noise + 40 + 130 * there).astype(np.uint8)


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chips A, B and label; and the same as rasters on the ground, with labels as a raster and as polygons."""
    folder = tmp_path_factory.mktemp("pairs")
    for number, flipped in enumerate((False, True)):
        dates = [STANDING | GONE, STANDING | NEW]
        label = (NEW | GONE).astype(np.uint8)
        for name, there in zip("AB", dates[::-1] if flipped else dates, strict=True):
            write_tif(folder / name / f"chip{number}.tif", image(there, number))
        write_tif(folder / "label" / f"chip{number}.tif", 255 * label)
    write_tif(folder / "t1" / "town.tif", image(STANDING | GONE, 7))
    write_tif(folder / "t2" / "town-later.tif", image(STANDING | NEW, 8))
    write_tif(folder / "codes" / "town.tif", label)
    boxes = [(50, 12, 78, 36), (8, 60, 32, 84), (60, 60, 80, 90)]
    corners = [(*(BANEPA @ (left, bottom)), *(BANEPA @ (right, top))) for top, left, bottom, right in boxes]
    gpd.GeoDataFrame(geometry=gpd.GeoSeries.from_wkt([_box(c) for c in corners]), crs="EPSG:32645").to_file(
        folder / "changes.geojson"
    )
    return folder


def _box(bounds: tuple[float, ...]) -> str:
    west, south, east, north = bounds
    return f"POLYGON (({west} {south}, {east} {south}, {east} {north}, {west} {north}, {west} {south}))"


CHIPS = {"images": "A", "after": "B", "labels": "label", "resolution": 0.3}
CHIPS |= {"values": {"0": "unchanged", "255": "changed"}}
GROUND = {"rasters": ["t1/town.tif"], "after": ["t2/town-later.tif"], "labels": "codes"}
GROUND |= {"values": {"0": "unchanged", "1": "changed"}}


def job(**changes: Any) -> TrainJob:
    values: dict[str, Any] = {
        "name": "toy-change",
        "product": "buildings",
        "task": "change",
        "network": {"architecture": "fc-siam-diff", "encoder": "tu-test_resnet"},
        "resolution": [0.2, 0.6],
        "patch": 64,
        "stride": 48,
        "crop": 64,
        "scales": [0.3, 0.3],
        "data": [CHIPS],
        "optimiser": {"steps": 3, "batch": 2, "warm_up": 1, "averaging": 0},
        "workers": 0,
    }
    return TrainJob.model_validate(values | changes)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for two dates of random weights, which finds both classes in noise. Do not change."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        network = build_network("fc-siam-diff", encoder="tu-test_resnet", bands=3, outputs=2)
        noise = torch.rand(4, 6, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
        network.train()(noise)
        last = network.eval().get_submodule("segmentation_head.0")
        difference = torch.diff(network(noise), dim=1)
        last.weight *= 2 / difference.std()
        last.bias.zero_()
        last.bias[1] = -torch.diff(network(noise), dim=1).median()
    return publish(tmp_path_factory.mktemp("models") / "toy-change", job(), network, Learned({}, None, {}))


def cells(seed: int, shape: tuple[int, int] = (150, 210)) -> NDArray[np.uint8]:
    """A picture of squares, with something in it for a network of random weights."""
    small = np.random.default_rng(seed).integers(0, 256, (3, -(-shape[0] // 8), -(-shape[1] // 8)))
    return small.repeat(8, 1).repeat(8, 2)[:, : shape[0], : shape[1]].astype(np.uint8)


def textured(rows: int, cols: int) -> NDArray[np.uint8]:
    """Squares with noise in them, by which a shift is known."""
    noise = np.random.default_rng(11).integers(0, 60, (3, rows, cols))
    return (cells(12, (rows, cols)) * 0.7 + noise).astype(np.uint8)


def scene(path: Path, seed: int, year: int | None = None, **profile: Any) -> Path:
    write_tif(path, cells(seed), **profile)
    if year is not None:
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(TIFFTAG_DATETIME=f"{year}:06:01 12:00:00")
    return path


def read(folder: Path, name: str = "changes") -> NDArray[np.uint8]:
    with rasterio.open(folder / f"{name}.tif") as dataset:
        values: NDArray[np.uint8] = dataset.read(1)
        return values


def changed(before: Path, after: Path, model: Path, out: Path, **options: Any) -> Path:
    return geoseg.change(before, after, "buildings", out, model=str(model), any_order=True, **options).folder


# --- two scenes as one


class TestStack:
    """`geoseg.io.stacks`."""

    @given(data=st.data())
    @settings(max_examples=25)
    def test_it_reads_what_both_scenes_read(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        """In any window, also beyond the scene; what one date does not see is not valid."""
        folder = tmp_path_factory.mktemp("stack")
        values = [cells(seed, (40, 50)) for seed in (1, 2)]
        for each in values:
            top, left = data.draw(st.integers(0, 39)), data.draw(st.integers(0, 49))
            each[:, top : top + 8, left : left + 9] = 0
        scenes = [
            open_scene(write_tif(folder / f"{name}.tif", each, nodata=0))
            for name, each in zip("ab", values, strict=True)
        ]
        row, col = data.draw(st.integers(-5, 39)), data.draw(st.integers(-5, 49))
        window = Window(row, row + data.draw(st.integers(1, 20)), col, col + data.draw(st.integers(1, 20)))
        pair, bands = as_asked(stacked(*scenes), ("red", "green", "blue"), Asked())
        got = open_source(pair, bands).read(window)
        each = [open_source(one, (1, 2, 3)).read(window) for one in scenes]
        assert np.array_equal(got.values, np.concatenate([one.values for one in each]))
        assert np.array_equal(got.valid, each[0].valid & each[1].valid)

    def test_another_grid_is_brought_to_that_of_the_later_scene(self, tmp_path: Path) -> None:
        finer = cells(3, (80, 100)).repeat(2, 1).repeat(2, 2)
        place = BANEPA @ rasterio.Affine.translation(8, 4) @ rasterio.Affine.scale(0.5)
        before = open_scene(write_tif(tmp_path / "a.tif", finer, transform=place))
        after = open_scene(write_tif(tmp_path / "b.tif", cells(4, (60, 70))))
        pair, bands = as_asked(stacked(before, after), ("red", "green", "blue"), Asked())
        assert pair.geobox == after.geobox
        assert bands == (1, 2, 3, 1, 2, 3)
        got = open_source(pair, bands).read(Window.of_shape(pair.shape))
        assert not got.valid[:4].any()
        assert not got.valid[:, :8].any()
        assert got.valid[4:, 8:].all()
        assert np.array_equal(got.values[3:], cells(4, (60, 70)))
        assert np.array_equal(got.values[:3, 5:59, 9:69], cells(3, (80, 100))[:, 1:55, 1:61])

    def test_each_date_has_its_own_bands_and_stretch(self, tmp_path: Path) -> None:
        """Bytes stay what they are beside 16 bits that are stretched; bands are found by name."""
        values = cells(5, (40, 50))
        bytes_ = write_tif(tmp_path / "a.tif", values[::-1], photometric="MINISBLACK")
        with rasterio.open(bytes_, "r+") as dataset:
            dataset.descriptions = ("blue", "green", "red")
        deep = write_tif(tmp_path / "b.tif", values.astype(np.uint16) * 10 + 3)
        pair, bands = as_asked(stacked(open_scene(bytes_), open_scene(deep)), ("red", "green", "blue"), Asked())
        assert bands == (3, 2, 1, 1, 2, 3)
        stretch = estimate_stretch(pair, bands)
        got = open_source(pair, bands, stretch).read(Window.of_shape(pair.shape)).values
        alone = open_source(open_scene(deep), (1, 2, 3), estimate_stretch(open_scene(deep), (1, 2, 3)))
        assert np.array_equal(got[:3], values)
        assert np.array_equal(got[3:], alone.read(Window.of_shape(pair.shape)).values)

    def test_a_grid_that_is_asked_for(self, tmp_path: Path, model: Path) -> None:
        one, other = scene(tmp_path / "a.tif", 1), scene(tmp_path / "b.tif", 2)
        folder = changed(one, other, model, tmp_path / "out", resolution=0.6)
        with rasterio.open(folder / "changes.tif") as dataset:
            assert dataset.res == (0.6, 0.6)


# --- the engine's laws


class TestLaws:
    """What holds for a scene holds for a pair."""

    def test_tiles_do_not_matter(self, tmp_path: Path, model: Path) -> None:
        """Equal bit by bit, on the scene's own grid and on another, with nodata in it."""
        values = cells(1)
        values[:, 40:60, 30:80] = 0
        one = write_tif(tmp_path / "a.tif", values, nodata=0)
        aside = BANEPA @ rasterio.Affine.translation(3.4, -2.7)
        for name, place in (("b", BANEPA), ("c", aside)):
            other = write_tif(tmp_path / f"{name}.tif", cells(2), transform=place, nodata=0)
            whole = changed(one, other, model, tmp_path / "whole")
            with chunks_of(64):
                tiled = changed(one, other, model, tmp_path / "tiled", tile=64)
            for layer in ("changes", "confidence"):
                assert np.array_equal(read(whole, layer), read(tiled, layer)), (name, layer)
            assert set(np.unique(read(whole))) == {0, 1, NODATA}

    def test_exchanging_the_dates_changes_nothing(self, tmp_path: Path, model: Path) -> None:
        one, other = scene(tmp_path / "a.tif", 1), scene(tmp_path / "b.tif", 2)
        there = changed(one, other, model, tmp_path / "out")
        back = changed(other, one, model, tmp_path / "out")
        assert there != back
        sure = read(there, "confidence") > 0.51 * 250
        assert sure.mean() > 0.9
        assert np.array_equal(read(there)[sure], read(back)[sure])

    def test_what_one_date_does_not_see_is_not_compared(self, tmp_path: Path, model: Path) -> None:
        values = [cells(seed) for seed in (1, 2)]
        values[0][:, :20], values[1][:, :, :30] = 0, 0
        one, other = (
            write_tif(tmp_path / f"{name}.tif", each, nodata=0) for name, each in zip("ab", values, strict=True)
        )
        found = read(changed(one, other, model, tmp_path / "out"))
        seen = (values[0] != 0).any(0) & (values[1] != 0).any(0)
        assert np.array_equal(found != NODATA, seen)

    def test_it_is_what_the_network_says(self, tmp_path: Path, model: Path) -> None:
        """Of one patch, scaled as the card has it, the earlier date first."""
        small = [cells(seed, (64, 64)) for seed in (1, 2)]
        one, other = (write_tif(tmp_path / f"{n}.tif", v) for n, v in zip("ab", small, strict=True))
        folder = changed(one, other, model, tmp_path / "out", stride=64)
        values = torch.from_numpy(np.concatenate(small)[None]).float() / 255
        with torch.inference_mode():
            scores = load_network(read_model(model)).float().eval()((values - 0.5) / 0.5)[0]
        sure = (scores[1] - scores[0]).abs() > 0.02
        assert np.array_equal(read(folder)[sure], scores.argmax(0).numpy()[sure])


# --- the command and its files


class TestCommand:
    """`geoseg change` with a model for two."""

    def test_its_files_and_where_they_came_from(self, tmp_path: Path, model: Path) -> None:
        one, other = scene(tmp_path / "old.tif", 1, 2019), scene(tmp_path / "new.tif", 2, 2024)
        args = ["change", str(one), str(other), "--model", str(model), "--out", str(tmp_path / "out")]
        told = CliRunner().invoke(cli, args)
        assert told.exit_code == 0, told.output
        folder = tmp_path / "out" / "old--new--toy-change"
        assert all(Path(line).is_file() for line in told.stdout.split())
        item = json.loads((folder / "item.json").read_text("utf-8"))
        assert JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
        properties = item["properties"]
        assert properties["start_datetime"].startswith("2019")
        assert properties["end_datetime"].startswith("2024")
        sources = {link["title"] for link in item["links"] if link["rel"] == "derived_from"}
        assert {"old", "new"} <= sources
        assert [c["name"] for c in item["assets"]["changed_raster"]["classification:classes"]] == [
            "unchanged",
            "changed",
        ]
        frame = gpd.read_parquet(folder / "changes.parquet")
        assert set(frame["status"]) == {"changed"}
        assert frame["date_before"].iloc[0] == dt.datetime(2019, 6, 1, 12, tzinfo=dt.UTC)
        assert len(gpd.read_file(folder / "changes.geojson")) == len(frame) > 0
        before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        again = CliRunner().invoke(cli, args)
        assert "Nothing left to do" in again.output
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    def test_what_was_stopped_before_its_changes_goes_on(self, tmp_path: Path, model: Path) -> None:
        one, other = scene(tmp_path / "a.tif", 1), scene(tmp_path / "b.tif", 2)
        folder = changed(one, other, model, tmp_path / "out")
        labels = (folder / "labels.tif").stat().st_mtime_ns
        (folder / "changes.geojson").unlink()
        assert not plan_pair(job_of(one, other, "buildings", tmp_path / "out", model=str(model))).complete
        changed(one, other, model, tmp_path / "out")
        assert (folder / "changes.geojson").exists()
        assert (folder / "labels.tif").stat().st_mtime_ns == labels

    def test_a_pair_that_lies_aside_is_moved(self, tmp_path: Path, model: Path) -> None:
        """By a known shift; what has changed is that of a pair that lies right, bit for bit."""
        ground = textured(220, 260)
        later = ground.copy()
        later[:, 60:84, 100:130] = 250
        other = write_tif(tmp_path / "b.tif", later)
        right = write_tif(tmp_path / "right" / "a.tif", ground)
        aside = BANEPA @ rasterio.Affine.translation(3, -2)
        wrong = write_tif(tmp_path / "wrong" / "a.tif", ground, transform=aside)
        args = ["change", str(wrong), str(other), "--model", str(model), "--out", str(tmp_path / "wrong")]
        told = CliRunner().invoke(cli, [*args, "--align"])
        assert told.exit_code == 0, told.output
        assert "BEFORE was moved by 1.08 m (+2.00 rows, -3.00 columns; " in told.stdout
        folder = tmp_path / "wrong" / "a--b--toy-change"
        moved, asis = read(folder), read(changed(wrong, other, model, tmp_path / "asis"))
        expected = read(changed(right, other, model, tmp_path / "out"))
        inner = np.s_[70:-70, 70:-70]  # patches there see nothing of the rim that the wrong place leaves blank
        assert np.array_equal(moved[inner], expected[inner])
        assert (asis[inner] != expected[inner]).mean() > 0.02
        item = json.loads((folder / "item.json").read_text("utf-8"))
        assert item["properties"]["geoseg:parameters"]["shift"]["pixels"] == [2.0, -3.0]
        assert "Nothing left to do" in CliRunner().invoke(cli, [*args, "--align"]).output
        with pytest.raises(OutputError, match="holds results of another job"):  # the same folder has what was moved
            changed(wrong, other, model, tmp_path / "wrong")

    def test_without_a_product_a_model_is_needed(self, tmp_path: Path) -> None:
        told = CliRunner().invoke(cli, ["change", "a.tif", "b.tif", "--out", str(tmp_path)])
        assert told.exit_code == 2
        assert "name a PRODUCT" in told.output


class TestRefused:
    """One scene where two are meant, and the other way round."""

    def test_one_scene(self, tmp_path: Path, model: Path) -> None:
        one = scene(tmp_path / "a.tif", 1)
        with pytest.raises(ModelError, match=r"two scenes of one place, and .*a\.tif is one; use geoseg change"):
            geoseg.segment(one, "buildings", tmp_path / "out", model=str(model))
        with pytest.raises(ModelError, match="is one; use geoseg change BEFORE AFTER"):
            plan_change(job_of(one, scene(tmp_path / "b.tif", 2), "buildings", tmp_path, model=str(model)))

    def test_a_model_of_one_scene_for_a_pair(self, tmp_path: Path, tiny_model: Path) -> None:
        pair = stacked(open_scene(scene(tmp_path / "a.tif", 1)), open_scene(scene(tmp_path / "b.tif", 2)))
        with pytest.raises(ModelError, match=r"tiny: maps one scene at a time, and .* is two"):
            geoseg.segment(pair, "buildings", tmp_path / "out", model=str(tiny_model))

    @pytest.mark.parametrize(
        "options", [{"match": True}, {"tolerance": 2.0}, {"unchanged": True}, {"zones": "z.gpkg"}], ids=str
    )
    def test_options_of_maps_that_are_compared(self, options: dict[str, Any], tmp_path: Path, model: Path) -> None:
        one, other = scene(tmp_path / "a.tif", 1), scene(tmp_path / "b.tif", 2)
        with pytest.raises(OptionError, match=f"--{next(iter(options))}: is for two maps"):
            changed(one, other, model, tmp_path / "out", **options)

    def test_scenes_that_do_not_go_together(self, tmp_path: Path, model: Path) -> None:
        old, new = scene(tmp_path / "a.tif", 1, 2019), scene(tmp_path / "b.tif", 2, 2024)
        elsewhere = scene(tmp_path / "c.tif", 3, transform=BANEPA @ rasterio.Affine.translation(900, 0))
        dark = write_tif(tmp_path / "d.tif", np.zeros_like(cells(1)), nodata=0)
        with pytest.raises(OptionError, match="the scene before comes first"):
            geoseg.change(new, old, "buildings", tmp_path / "out", model=str(model))
        with pytest.raises(OptionError, match="both are named 'a'"):
            changed(old, old, model, tmp_path / "out")
        with pytest.raises(SceneError, match="no ground in common"):
            changed(old, elsewhere, model, tmp_path / "out")
        for _ in range(2):  # nor is it complete the second time
            with pytest.raises(SceneError, match="no pixel has data in both"):
                changed(old, dark, model, tmp_path / "out")
        grey = write_tif(tmp_path / "e.tif", cells(1)[:2], photometric="MINISBLACK")
        with pytest.raises(SceneError, match=r"e\.tif: the model needs the bands red, green, blue"):
            changed(grey, new, model, tmp_path / "out")

    def test_a_card_that_contradicts_its_network(self, model: Path, tmp_path: Path) -> None:
        copy = _with_card(model, tmp_path / "copy", lambda p: p["mlm:input"][0]["input"].update(shape=[-1, 3, 64, 64]))
        with pytest.raises(ModelError, match="its input is 1 dates, fc-siam-diff takes 2"):
            load_network(read_model(copy))
        three = _with_card(
            model, tmp_path / "three", lambda p: p["mlm:input"][0]["input"].update(shape=[-1, 3, 3, 64, 64])
        )
        with pytest.raises(ModelError, match="one scene or two, got 3"):
            read_model(three)

    def test_a_pickle_does_not_run(self, model: Path, tmp_path: Path) -> None:
        copy = _with_card(model, tmp_path / "copy", lambda _: None)
        data = pickle.dumps(_Touch(str(tmp_path / "ran")))
        (copy / "model.safetensors").write_bytes(data)
        item = json.loads((copy / "item.json").read_text("utf-8"))
        item["assets"]["weights"]["file:checksum"] = MULTIHASH_SHA256 + hashlib.sha256(data).hexdigest()
        (copy / "item.json").write_text(json.dumps(item), "utf-8")
        one, other = scene(tmp_path / "a.tif", 1), scene(tmp_path / "b.tif", 2)
        with pytest.raises(ModelError, match="may run code and are refused"):
            changed(one, other, copy, tmp_path / "out")
        assert not (tmp_path / "ran").exists()


class _Touch:
    """What writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def _with_card(model: Path, folder: Path, change: Any) -> Path:
    """A copy of a model whose item's properties are changed."""
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    item = json.loads((folder / "item.json").read_text("utf-8"))
    change(item["properties"])
    (folder / "item.json").write_text(json.dumps(item), "utf-8")
    return folder


# --- training


class TestTraining:
    """`task: change`."""

    @pytest.mark.parametrize("data", [CHIPS, GROUND, GROUND | {"labels": "changes.geojson", "values": None}])
    def test_a_crop_has_both_dates_and_what_changed(self, data: dict[str, Any], pairs: Path) -> None:
        calm = dict.fromkeys(("missing", "affine", "colour", "gain", "gamma", "blur", "noise", "jpeg", "resample"), 0)
        calm |= {"swap": 0, "grey": 0, "band_order": 0}
        wanted = job(data=[data], augmentation=calm)
        crops = Crops(wanted, places_of(wanted, pairs))
        for _, (values, maps) in zip(range(6), crops, strict=False):
            assert values.shape == (6, 64, 64)
            differs = (values[:3].float().mean(0) - values[3:].float().mean(0)).abs() > 80
            known = maps["labels"] != IGNORED
            assert known.float().mean() > 0.3
            assert ((maps["labels"] == 1) == differs)[known].float().mean() > 0.95  # edges lie between pixels

    def test_it_learns_and_its_card_says_what_it_takes(self, pairs: Path, tmp_path: Path) -> None:
        said: list[str] = []
        wanted = job(
            data=[CHIPS | {"validation": ["chip1"]}, GROUND],
            optimiser={"steps": 30, "batch": 4, "warm_up": 2, "averaging": 0, "rate": 5e-3, "encoder_rate": 1},
            validate_every=30,
            augmentation={"affine": 0, "colour": 0, "gain": 0, "gamma": 0, "missing": 0, "resample": 0},
        )
        folder = train(wanted, pairs, tmp_path / "models", device="cpu", say=said.append)
        spec = read_model(folder)
        assert spec.dates == 2
        assert spec.bands == ("red", "green", "blue")
        name, score = spec.scores[0]
        assert name == "IoU of changed, validation places"
        assert score > 0.5
        item = json.loads((folder / "item.json").read_text("utf-8"))
        assert JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
        given = item["properties"]["mlm:input"][0]["input"]
        assert given["shape"] == [-1, 2, 3, 64, 64]
        assert given["dim_order"] == ["batch", "time", "bands", "height", "width"]
        assert "two scenes of one place" in (folder / "README.md").read_text("utf-8")
        assert read_job(folder / "job.yaml", TrainJob) == wanted
        assert len(list((tmp_path / "models" / ".toy-change.run" / "pictures").glob("*.png"))) == 1
        one, other = pairs / "t1" / "town.tif", pairs / "t2" / "town-later.tif"
        found = read(changed(one, other, folder, tmp_path / "out")) == 1
        truth = NEW | GONE
        assert (found & truth).sum() / (found | truth).sum() > 0.5

    @pytest.mark.parametrize("architecture", ["siamese-deeplabv3plus", "changestar-deeplabv3plus"])
    def test_it_starts_from_a_model_of_single_scenes(self, architecture: str, tiny_model: Path) -> None:
        start = read_model(tiny_model)
        network = {"architecture": architecture, "encoder": start.encoder}
        filled = _filled(job(start=str(tiny_model), network=network), start)
        assert [c.name for c in filled.classes] == ["unchanged", "changed"]
        assert filled.auxiliary == ()
        own, given = _network(filled, start).state_dict(), load_file(start.weights)
        shared = [name for name in given if not name.startswith("segmentation_head")]
        assert all(torch.equal(own[name].half(), given[name].half()) for name in shared if given[name].ndim)
        assert {
            name for name in own if name not in shared and not name.startswith(("segmentation_head", "mixin"))
        } == set()

    def test_an_encoder_without_a_rate_keeps_its_weights(self, pairs: Path, tmp_path: Path) -> None:
        wanted = job(optimiser={"steps": 2, "batch": 2, "warm_up": 1, "averaging": 0, "encoder_rate": 0})
        folder = train(wanted, pairs, tmp_path, device="cpu")
        before, after = _network(wanted, None).state_dict(), load_file(folder / "model.safetensors")
        learned = {name for name, value in before.items() if not torch.equal(value.half(), after[name].half())}
        kinds = ("running_mean", "running_var", "num_batches_tracked")
        assert not [name for name in learned if name.startswith("encoder") and not name.endswith(kinds)]
        assert {name.split(".")[0] for name in learned} >= {"decoder", "segmentation_head"}

    def test_it_goes_on_from_a_model_of_change(self, model: Path) -> None:
        start = read_model(model)
        values = job().model_dump(exclude={"network", "classes", "background"}, exclude_unset=True)
        filled = _filled(TrainJob.model_validate(values | {"start": str(model)}), start)
        own, given = _network(filled, start).state_dict(), load_file(start.weights)
        assert all(torch.equal(own[name].half(), given[name].half()) for name in given if given[name].ndim)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"task": "segment"},
                "fc-siam-diff takes two scenes and the task segment has one scene: choose one of deep",
            ),
            ({"network": {"architecture": "unet", "encoder": "x"}}, "unet takes one scene and the task change has two"),
            ({"data": [{k: v for k, v in CHIPS.items() if k != "after"}]}, "data.0 has no `after`, the later scenes"),
            ({"data": [CHIPS, {k: v for k, v in GROUND.items() if k != "after"}]}, "data.1 has no `after`"),
        ],
    )
    def test_jobs_that_contradict_themselves(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            job(**changes)

    def test_data_that_does_not_fit(self, pairs: Path, tmp_path: Path) -> None:
        for name, rows in (("A", 40), ("B", 48), ("label", 40)):
            write_tif(tmp_path / name / "x.tif", np.zeros((3 if name != "label" else 1, rows, 40), np.uint8))
        with pytest.raises(SceneError, match=r"x\.tif: has 48 x 40 pixels, .*x\.tif has 40 x 40; .*cut them alike"):
            places_of(job(), tmp_path)
        with pytest.raises(OptionError, match=r"no image has one of its name in .*nowhere and .*label"):
            places_of(job(data=[CHIPS | {"after": "nowhere"}]), pairs)
        with pytest.raises(OptionError, match="has 1 rasters and 2 after; name as many"):
            places_of(job(data=[GROUND | {"after": ["t2/town-later.tif", "t1/town.tif"]}]), pairs)

    def test_models_that_do_not_fit_the_task(self, model: Path, tiny_model: Path) -> None:
        values = job().model_dump(exclude={"network", "classes", "background", "task"}, exclude_unset=True)
        alone = {"data": [{"rasters": ["a.tif"], "labels": "b"}], "start": str(model)}
        with pytest.raises(OptionError, match="takes two scenes of one place: say `task: change`"):
            _filled(TrainJob.model_validate(values | alone), read_model(model))
        with pytest.raises(OptionError, match=r"tiny takes one scene; name the network .*siamese-deeplabv3plus"):
            _filled(
                TrainJob.model_validate(values | {"task": "change", "start": str(tiny_model)}), read_model(tiny_model)
            )
