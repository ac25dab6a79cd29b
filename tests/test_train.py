"""Training: job files, labels that land where they belong, and runs that can be repeated, stopped and published."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
import torch
from click.testing import CliRunner
from conftest import BANEPA, write_tif
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.features import rasterize
from torch.utils.data import DataLoader

from geoseg.catalog import find_model, read_model
from geoseg.cli import cli
from geoseg.errors import InputError, OptionError, SceneError
from geoseg.jobs import read_job
from geoseg.models.weights import load_network
from geoseg.train import loop
from geoseg.train.data import Crops, _blocks, places_of
from geoseg.train.job import TrainJob
from geoseg.train.labels import Grid, VectorLabels
from geoseg.train.losses import IGNORED, class_weights_of
from geoseg.train.places import GroundPlace
from geoseg.train.publish import job_file
from geoseg.train.run import _filled, _network, train

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKFLOWS = sorted((Path(__file__).parents[1] / "workflows").glob("*-*.yaml"))  # the others are not to train
CRS = "EPSG:32645"
SIDE = 160
"""Of the toy scene, at 0.3 m."""


def boxes() -> list[shapely.Polygon]:
    """Roofs of the toy scene, in its CRS: on whole pixels, two of them touching."""
    corners = [(10, 10, 40, 34), (60, 20, 84, 60), (84, 20, 110, 60), (20, 90, 60, 120), (100, 100, 140, 140)]
    return [shapely.box(*(BANEPA @ (c0, r1)), *(BANEPA @ (c1, r0))) for r0, c0, r1, c1 in corners]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright roofs on dark noisy ground; the labels are in longitude and latitude."""
    folder = tmp_path_factory.mktemp("toy")
    inside = rasterize(boxes(), (SIDE, SIDE), transform=BANEPA)
    noise = np.random.default_rng(0).integers(0, 60, (3, SIDE, SIDE))
    write_tif(folder / "town.tif", (noise + 60 + 120 * inside).astype(np.uint8))
    write_tif(folder / "classes" / "town.tif", np.where(inside, 7, 3).astype(np.uint8))
    frame = gpd.GeoDataFrame({"kind": ["roof", "roof", "shed", "roof", "roof"]}, geometry=boxes(), crs=CRS)
    frame.to_crs(4326).to_file(folder / "roofs.geojson")
    west, south, east, north = area_bounds()
    for name, shape in (
        ("area", shapely.box(west, south, east, north)),
        ("kept", shapely.box(west + 30, south, east, north)),
    ):
        gpd.GeoDataFrame(geometry=[shape], crs=CRS).to_file(folder / f"{name}.geojson")
    return folder


def area_bounds() -> tuple[float, float, float, float]:
    """All but the southern 40 rows of the toy scene."""
    west, north = BANEPA @ (0, 0)
    east, south = BANEPA @ (SIDE, SIDE - 40)
    return west, south, east, north


def job_of(**changes: Any) -> TrainJob:
    values: dict[str, Any] = {
        "name": "toy",
        "product": "buildings",
        "network": {"architecture": "unet", "encoder": "tu-test_resnet"},
        "classes": [{"name": "background", "colour": "#000000"}, {"name": "building", "colour": "#e4572e"}],
        "background": "background",
        "resolution": [0.2, 0.6],
        "patch": 64,
        "stride": 48,
        "crop": 64,
        "scales": [0.3, 0.3],
        "data": [{"rasters": ["town.tif"], "labels": "roofs.geojson"}],
        "optimiser": {"steps": 4, "batch": 2, "warm_up": 1, "averaging": 0},
        "workers": 0,
    }
    return TrainJob.model_validate(values | changes)


def ground(toy: Path, **data: Any) -> GroundPlace:
    place = places_of(job_of(data=[{"rasters": ["town.tif"], "labels": "roofs.geojson"} | data]), toy)[0]
    assert isinstance(place, GroundPlace)
    return place


def whole(raster: Any) -> dict[str, Any]:
    """Everything of the toy scene, on its own grid."""
    west, north = BANEPA @ (0, 0)
    east, south = BANEPA @ (SIDE, SIDE)
    item: dict[str, Any] = raster[slice(west, east, 0.3), slice(south, north, 0.3)]
    return item


class TestJobs:
    """Job files."""

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_those_of_the_repository(self, path: Path) -> None:
        assert read_job(path, TrainJob).name

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(job_of().model_dump_json(exclude_defaults=True), "utf-8")  # JSON is YAML
        return path

    def test_settings_take_the_place_of_values(self, file: Path) -> None:
        job = read_job(file, TrainJob, ["optimiser.steps=9", "data.0.weight=2", "split.block=20", "scales=[0.1, 0.2]"])
        assert (job.optimiser.steps, job.data[0].weight, job.scales) == (9, 2, (0.1, 0.2))
        assert job.split is not None
        assert job.optimiser.batch == 2

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("optimizer.steps=9", "optimizer is not a key of this job; did you mean optimiser"),
            ("optimiser.step=9", r"optimiser\.step is not a key of this job; did you mean steps"),
            ("optimiser.steps=-1", r"optimiser\.steps: should be greater than 0, got -1"),
            ("background=lake", "background 'lake' must be one of the classes"),
            ("stride=65", "stride 65 must not exceed the patch 64"),
            ("resolution=[2, 1]", "from fine to coarse"),
            ("separation=[0.5, 3]", "separation needs the auxiliary score interior"),
            ("data.0.aoi=x", r"job\.yaml: data\.0\.aoi is not a key of this job$"),
            ("data.0={images: i, labels: l}", r"job\.yaml: data\.0\.resolution is missing$"),
            ("losses=[]", "losses: tuple should have at least 1 item"),
            ("scales=[0.3, 0.2]", r"scales goes from fine to coarse, in metres above 0, got \(0\.3, 0\.2\)$"),
            ("scales=[0, 0.2]", "scales goes from fine to coarse, in metres above 0"),
            ("validation_resolutions=[0]", r"validation_resolutions\.0: should be greater than 0, got 0"),
            ("classes.1.name=background", "background comes twice; give each class a name of its own$"),
            ("name=..", "name: string should match"),
            ("data.4.weight=2", "no such place in the job"),
            ("seed", "write key=value"),
        ],
    )
    def test_what_is_not_right(self, file: Path, setting: str, message: str) -> None:
        with pytest.raises(OptionError, match=message) as raised:
            read_job(file, TrainJob, [setting])
        assert "\n" not in str(raised.value)
        assert str(file) in str(raised.value) or setting in str(raised.value)

    def test_files_that_are_no_jobs(self, tmp_path: Path) -> None:
        for content in ("- 1", "a: [", "a: !!python/object/apply:os.getcwd []"):
            (tmp_path / "job.yaml").write_text(content, "utf-8")
            with pytest.raises(OptionError, match=r"job\.yaml"):
                read_job(tmp_path / "job.yaml", TrainJob)
        with pytest.raises(OptionError, match="No such file"):
            read_job(tmp_path / "absent.yaml", TrainJob)


class TestData:
    """Labels on the ground."""

    def test_polygons_of_another_crs_land_on_their_pixels(self, toy: Path) -> None:
        item = whole(ground(toy).train)
        expected = rasterize(boxes(), (SIDE, SIDE), transform=BANEPA)
        differs = item["labels"].numpy() != expected
        assert differs.sum() == 40  # the wall between two that touch
        assert set(np.argwhere(differs)[:, 0]) == {83}
        with rasterio.open(toy / "town.tif") as dataset:
            assert np.array_equal(item["image"].numpy(), dataset.read())

    def test_at_half_the_resolution(self, toy: Path) -> None:
        west, north = BANEPA @ (0, 0)
        raster = ground(toy).train
        assert raster is not None
        item = raster[slice(west, west + 48, 0.6), slice(north - 48, north, 0.6)]
        expected = rasterize(boxes(), (80, 80), transform=BANEPA @ rasterio.Affine.scale(2))
        differs = item["labels"].numpy() != expected
        assert set(np.argwhere(differs)[:, 0]) == {41}

    def test_outside_of_the_area_nothing_is_known(self, toy: Path) -> None:
        labels = whole(ground(toy, area="area.geojson").train)["labels"].numpy()
        assert (labels[SIDE - 40 :] == IGNORED).all()
        assert (labels[: SIDE - 40] != IGNORED).all()
        beyond = ground(toy).train
        assert beyond is not None
        west, north = BANEPA @ (0, 0)
        item = beyond[slice(west - 9, west, 0.3), slice(north - 9, north, 0.3)]
        assert (item["labels"] == IGNORED).all()
        assert (item["image"] == 128).all()

    def test_what_is_kept_is_neither_learned_from_nor_seen(self, toy: Path) -> None:
        place = ground(toy, area="area.geojson", validation_area="kept.geojson")
        item = whole(place.train)
        assert (item["labels"][:, 100:] == IGNORED).all()
        assert (item["image"][:, : SIDE - 40, 100:] == 128).all()
        assert (item["labels"][: SIDE - 40, :100] != IGNORED).all()
        squares = list(place.validation((), 64))
        assert sum(int((s.maps["labels"] != IGNORED).sum()) for s in squares) == 60 * 120
        rng = np.random.default_rng(0)
        for _ in range(20):
            sample = place.draw(0.3, 64, rng, rare=False)
            assert sample.known <= 1
            seen = sample.image[0][sample.maps["labels"] != IGNORED]
            assert (seen != 128).any()

    def test_interior_is_that_of_the_object_not_of_the_crop(self) -> None:
        square = np.array([shapely.box(10, 10, 31, 31)], object)
        labels = VectorLabels(square, np.array([1]), 0, 2, 1.0)
        grid = Grid(rasterio.Affine(1, 0, 0, 0, -1, 41), (41, 41))
        interior = labels.maps(grid, (0, 0, 41, 41))["interior"]
        assert interior[20, 20] == 1
        assert (interior[:10] == 0).all()
        assert 0 < interior[10, 20] < 0.2
        cut = Grid(rasterio.Affine(1, 0, 0, 0, -1, 20), (20, 41))
        part = labels.maps(cut, (0, 0, 41, 20))["interior"]
        near_frame = np.s_[4:, :]
        assert np.abs(part - interior[21:])[near_frame].max() < 1e-6

    def test_a_gap_lies_between_two_that_nearly_touch(self) -> None:
        two = np.array([shapely.box(0, 0, 10, 20), shapely.box(11, 0, 20, 20)], object)
        labels = VectorLabels(two, np.array([1, 1]), 0, 2, 1.0)
        maps = labels.maps(Grid(rasterio.Affine(0.1, 0, 0, 0, -0.1, 20), (200, 200)), (0, 0, 20, 20))
        assert (maps["gap"][:, 103:107] == 1).all()  # the middle of it
        assert (maps["gap"][maps["labels"] == 1] == 0).all()
        far = VectorLabels(two[:1], np.array([1]), 0, 2, 1.0)
        assert not far.maps(Grid(rasterio.Affine(0.1, 0, 0, 0, -0.1, 20), (200, 200)), (0, 0, 20, 20))["gap"].any()

    def test_label_rasters_with_values(self, toy: Path) -> None:
        place = ground(toy, labels="classes", values={"7": "building", "3": "background"})
        expected = rasterize(boxes(), (SIDE, SIDE), transform=BANEPA)
        assert np.array_equal(whole(place.train)["labels"].numpy(), expected)
        others = ground(toy, labels="classes", values={"7": "building"})
        assert np.array_equal(whole(others.train)["labels"].numpy(), np.where(expected, 1, IGNORED))

    def test_class_column(self, toy: Path) -> None:
        classes = [*job_of().classes, {"name": "hut", "colour": "#00ff00"}]
        data = {"rasters": ["town.tif"], "labels": "roofs.geojson", "class_column": "kind"}
        job = job_of(classes=classes, data=[data | {"values": {"roof": "building", "shed": "hut"}}])
        labels = whole(places_of(job, toy)[0].train)["labels"].numpy()  # type: ignore[attr-defined]  ground
        assert (labels[85:109, 21:59] == 2).all()
        assert (labels[61:82, 21:59] == 1).all()

    def test_what_is_of_no_class_is_unknown_and_not_background(self, toy: Path) -> None:
        data = {"class_column": "kind", "values": {"roof": "building"}}
        labels = whole(ground(toy, **data).train)["labels"].numpy()
        assert (labels[85:109, 21:59] == IGNORED).all()
        assert (labels[:9] == 0).all()

    @pytest.mark.parametrize("labels", ["roofs.geojson", "classes"])
    def test_labels_outside_of_the_area_do_not_count(self, toy: Path, labels: str) -> None:
        west, south, east, _north = area_bounds()
        gpd.GeoDataFrame(geometry=[shapely.box(west, south, west + 2, south + 2)], crs=CRS).to_file(
            toy / "bare.geojson"
        )
        data = {"labels": labels, "values": {"7": "building", "3": "background"} if labels == "classes" else None}
        with pytest.raises(OptionError, match=r"no label of the data is of class building.*lie on the same ground"):
            ground(toy, **data, area="bare.geojson")
        area = (east - west) * (area_bounds()[3] - south)
        counts = ground(toy, **data, area="area.geojson").class_pixels()
        roofs = sum(b.intersection(shapely.box(*area_bounds())).area for b in boxes())
        assert counts[1] == pytest.approx(roofs, rel=0.01)
        assert counts[0] == pytest.approx(area - roofs if labels == "classes" else 0, rel=0.01)

    @pytest.mark.parametrize("dtype", ["uint16", "int32"])
    def test_labels_of_any_whole_number(self, toy: Path, dtype: str) -> None:
        with rasterio.open(toy / "classes" / "town.tif") as dataset:
            values = dataset.read(1).astype(dtype) * 100
        values[0, 0] = 65535 if dtype == "uint16" else -5
        write_tif(toy / f"codes-{dtype}" / "town.tif", values)
        place = ground(toy, labels=f"codes-{dtype}", values={700: "building", 300: "background"})
        labels = whole(place.train)["labels"].numpy()
        expected = rasterize(boxes(), (SIDE, SIDE), transform=BANEPA)
        expected[0, 0] = IGNORED
        assert np.array_equal(labels, expected)

    @pytest.mark.parametrize(
        ("image", "label", "message"),
        [
            (np.ones((3, 20, 30), np.uint16), np.ones((20, 30), np.uint8), r"a\.tif: is uint16.*must be uint8"),
            (np.ones((3, 20, 30), np.float32), np.ones((20, 30), np.uint8), r"a\.tif: is float32.*must be uint8"),
            (np.ones((2, 20, 30), np.uint8), np.ones((20, 30), np.uint8), "has 2 bands, the job has red, green, blue"),
            (np.ones((3, 20, 30), np.uint8), np.ones((20, 20), np.uint8), "has 20 x 20 pixels, .* has 20 x 30"),
            (np.ones((3, 20, 30), np.uint8), np.ones((20, 30), np.float32), "is float32; the values of labels"),
        ],
    )
    def test_chips_that_are_not_right(
        self, tmp_path: Path, image: np.ndarray[Any, Any], label: np.ndarray[Any, Any], message: str
    ) -> None:
        write_tif(tmp_path / "images" / "a.tif", image, None)
        write_tif(tmp_path / "labels" / "a.tif", label, None)
        with pytest.raises(InputError, match=message):
            places_of(job_of(data=[{"images": "images", "labels": "labels", "resolution": 0.3}]), tmp_path)

    def test_a_scene_without_the_bands_is_refused_with_what_a_job_can_do(self, toy: Path) -> None:
        """There is no `--bands` here."""
        write_tif(toy / "two" / "town.tif", np.ones((2, 20, 30), np.uint8))
        with pytest.raises(SceneError, match=r"two/town\.tif: .*, or other ones under `bands`") as why:
            ground(toy, rasters=["two/town.tif"])
        assert "--" not in str(why.value)

    def test_chips_that_are_no_images_or_not_found(self, tmp_path: Path) -> None:
        for name in ("images", "labels"):
            write_tif(tmp_path / name / "a.tif", np.ones((3, 20, 30), np.uint8), None)
        data = {"images": "images", "labels": "labels", "resolution": 0.3}
        with pytest.raises(OptionError, match=r"no image is called b\*, so none would be kept for validation"):
            places_of(job_of(data=[data | {"validation": ["b*"]}]), tmp_path)
        for value in ("roof", "70000", "-1"):
            with pytest.raises(OptionError, match=f"`values` has '{value}'.* whole number of theirs"):
                places_of(job_of(data=[data | {"values": {value: "building"}}]), tmp_path)
        (tmp_path / "images" / "a.tif").write_text("no image")
        with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image"):
            places_of(job_of(data=[data]), tmp_path)

    def test_chips(self, tmp_path: Path) -> None:
        for number in range(6):
            values = np.full((3, 20, 30), number, np.uint8)
            write_tif(tmp_path / "images" / f"a-{number}.tif", values, None)
            write_tif(tmp_path / "labels" / f"a-{number}.tif", np.full((20, 30), 4 + number % 2, np.uint8), None)
        data = {"images": "images", "labels": "labels", "resolution": 0.3, "validation": ["a-1..a-2", "*-5"]}
        values = {"4": "background", "5": "building"}
        place = places_of(job_of(data=[data | {"values": values}]), tmp_path)[0]
        kept = [int(s.image[0, 0, 0]) for s in place.validation((), 64)]
        assert kept == [1, 2, 5]
        sample = place.draw(0.3, 64, np.random.default_rng(0), rare=False)
        assert set(sample.image.unique().tolist()) <= {0, 3, 4}
        assert torch.equal(sample.maps["labels"] == 1, sample.image[0] == 3)
        assert sample.known == 1

    def test_blocks_are_whole_and_always_the_same(self) -> None:
        area = shapely.box(3, 5, 103, 85)
        kept = area & _blocks(area, 20, 0.25, 7)
        assert kept.area == pytest.approx(0.25 * area.area)
        assert kept.equals(area & _blocks(area, 20, 0.25, 7))
        assert not kept.equals(area & _blocks(area, 20, 0.25, 8))

    def test_a_split_keeps_its_places_apart(self, toy: Path) -> None:
        place = places_of(job_of(split={"block": 12, "share": 0.3}), toy)[0]
        assert isinstance(place, GroundPlace)
        learned, kept = (whole(raster)["labels"].numpy() != IGNORED for raster in (place.train, place.validate))
        assert kept.any()
        assert (learned ^ kept).all()

    def test_the_same_seed_gives_the_same_crops(self, toy: Path) -> None:
        job = job_of()
        places = places_of(job, toy)
        firsts = [next(iter(Crops(job, places, start)))[0] for start in (0, 0, 1)]
        assert torch.equal(firsts[0], firsts[1])
        assert not torch.equal(firsts[0], firsts[2])

    @pytest.mark.parametrize("workers", [1, 2])
    def test_workers_and_a_later_start_change_no_crop(self, toy: Path, workers: int) -> None:
        job = job_of(optimiser={"batch": 2, "accumulate": 2})
        places = places_of(job, toy)

        def batches(count: int, start: int = 0, workers: int = 0) -> list[torch.Tensor]:
            loader = DataLoader(Crops(job, places, start), batch_size=2, num_workers=workers)
            return [images for images, _ in islice(loader, count)]

        undisturbed = batches(6)
        assert all(map(torch.equal, undisturbed, batches(6, workers=workers)))
        assert all(map(torch.equal, undisturbed[2:], batches(4, start=1, workers=workers)))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"rasters": ["absent.tif"]}, r"absent\.tif: there is no such file"),
            ({"rasters": ["*.png"]}, "there is no such file"),
            ({"labels": "absent.geojson"}, r"absent\.geojson: there is no such file"),
            ({"class_column": "sort"}, "has no column 'sort'; there are kind"),
            ({"class_column": "kind", "values": {"hall": "building"}}, "no label of the data is of class building"),
            ({"values": {"roof": "tower"}, "class_column": "kind"}, "none of the classes background, building"),
            ({"rasters": ["south_up.tif"]}, "upside down; for training, warp it"),
            ({"labels": "nowhere.shp"}, "has no CRS"),
            ({"area": "far.geojson"}, r"none of the rasters town\.tif meets the area far\.geojson"),
            (
                {"validation_area": "far.geojson"},
                r"in the validation_area far\.geojson; check that",
            ),
            ({"labels": "utm44"}, r"its CRS is EPSG:32644, that of its image EPSG:32645; .* -t_srs EPSG:32645"),
            ({"labels": "halves"}, "is float32; the values of labels are whole numbers"),
        ],
    )
    def test_what_is_not_right(self, toy: Path, data: dict[str, Any], message: str) -> None:
        south_up = rasterio.Affine(0.3, 0, 334_000, 0, 0.3, 3_056_950)
        write_tif(toy / "south_up.tif", np.ones((3, 90, 90), np.uint8), transform=south_up)
        write_tif(toy / "utm44" / "town.tif", np.ones((90, 90), np.uint8), "EPSG:32644")
        write_tif(toy / "halves" / "town.tif", np.full((90, 90), 0.5, np.float32))
        gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)], crs=CRS).to_file(toy / "far.geojson")
        if not (toy / "nowhere.shp").exists():
            with pytest.warns(UserWarning, match="crs"):
                gpd.GeoDataFrame(geometry=boxes()).to_file(toy / "nowhere.shp")
        with pytest.raises(InputError, match=message) as raised:
            ground(toy, **data)
        assert "\n" not in str(raised.value)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class Stop(Exception):  # noqa: N818  what a kill is to a run
    """Raised in the middle of a run."""


def stop_after(steps: int) -> Any:
    def observe(_stage: str, done: int, _total: int) -> None:
        if done >= steps:
            raise Stop

    return observe


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A checkpoint every two steps."""
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    return


def test_averaged_weights_forget_where_a_short_run_began() -> None:
    """And in a long one, the average is that of the decay."""
    value = torch.tensor(0.0)
    for step in range(1, 101):
        value = loop.averaged(value, torch.tensor(1.0), step, decay=0.998)
    assert value > 0.999
    assert loop.averaged(torch.tensor(0.0), torch.tensor(1.0), 10**6, decay=0.75) == 0.25


def test_class_weights_are_those_of_pixels_not_of_square_metres() -> None:
    """The effective number of samples has a limit, so it matters what is counted."""
    pixels = np.array([4e6, 3e5])
    for scales in ([0.1, 0.4], [5, 20]):
        job = job_of(class_weights="effective", scales=scales)
        task = loop.Task(job, torch.nn.Identity(), pixels * scales[0] * scales[1], Path())
        torch.testing.assert_close(task.class_weights, class_weights_of(pixels.tolist(), "effective"))


class TestRuns:
    """Whole runs, on the toy scene."""

    def test_the_same_seed_gives_the_same_weights(
        self, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        one, two, other = (
            weights(train(job_of(seed=seed), toy, tmp_path / name, device="cpu"))
            for seed, name in ((0, "a"), (0, "b"), (1, "c"))
        )
        assert one == two
        assert one != other
        assert not capfd.readouterr().err

    @pytest.mark.usefixtures("often")
    def test_a_run_that_was_stopped_goes_on(self, toy: Path, tmp_path: Path) -> None:
        """And comes to the same weights, to the bit, as one that was not: with dropout, mixing and averaging."""
        job = job_of(
            network={"architecture": "deeplabv3plus", "encoder": "tu-test_resnet"},  # its decoder drops out
            optimiser={"steps": 7, "batch": 2, "warm_up": 1, "averaging": 0.9},
            augmentation={"cutmix": 0.5, "mixup": 0.5},
        )
        with pytest.raises(Stop):
            train(job, toy, tmp_path, device="cpu", observe=stop_after(5))
        done: list[int] = []
        folder = train(job, toy, tmp_path, device="cpu", observe=lambda _stage, at, _total: done.append(at))
        assert done == [5, 6, 7]
        assert weights(folder) == weights(train(job, toy, tmp_path / "undisturbed", device="cpu"))
        assert read_model(folder).name == "toy"
        with pytest.raises(InputError, match="holds a trained model already"):
            train(job, toy, tmp_path, device="cpu")

    @pytest.mark.usefixtures("often")
    @pytest.mark.parametrize("at", [2, 3, 4])
    def test_a_run_that_was_stopped_as_it_judged_goes_on(
        self, toy: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights, scores, what is said of validations and the log are those of a run that was not stopped."""
        job = job_of(
            split={"block": 12, "share": 0.3},
            optimiser={"steps": 4, "batch": 2, "warm_up": 1, "averaging": 0.9, "accumulate": 2},
            validate_every=1 if at == 3 else 2,
        )
        end, said = loop.Task.on_validation_epoch_end, list[str]()

        def stop(task: loop.Task) -> None:
            if task.global_step == at:
                raise Stop
            end(task)

        monkeypatch.setattr(loop.Task, "on_validation_epoch_end", stop)
        with pytest.raises(Stop):
            train(job, toy, tmp_path, device="cpu", say=said.append)
        monkeypatch.setattr(loop.Task, "on_validation_epoch_end", end)
        folder = train(job, toy, tmp_path, device="cpu", say=said.append)
        told, scores = list[str](), read_model(folder).scores
        whole = train(job, toy, tmp_path / "undisturbed", device="cpu", say=told.append)
        assert weights(folder) == weights(whole)
        assert scores == read_model(whole).scores
        assert scores
        assert [line.split(", ")[::2] for line in dict.fromkeys(said)] == [line.split(", ")[::2] for line in told]
        logs = [(path / ".toy.run" / "logs" / "metrics.csv").read_text() for path in (tmp_path, whole.parent)]
        assert logs[0] == logs[1]

    @pytest.mark.usefixtures("often")
    def test_a_run_that_was_stopped_as_all_was_learned_goes_on(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its weights are the averaged ones, too."""
        job = job_of(optimiser={"steps": 4, "batch": 2, "warm_up": 1, "averaging": 0.9})
        with monkeypatch.context() as patch:
            patch.setattr("geoseg.train.run.publish", stop_after(0))
            with pytest.raises(TypeError):
                train(job, toy, tmp_path, device="cpu")
        assert weights(train(job, toy, tmp_path, device="cpu")) == weights(
            train(job, toy, tmp_path / "undisturbed", device="cpu")
        )

    @pytest.mark.parametrize(("steps", "every"), [(5, 3), (2, 9)])
    def test_the_scores_are_those_of_the_weights(self, toy: Path, tmp_path: Path, steps: int, every: int) -> None:
        """Also where the last update is none that is validated."""
        data = [{"rasters": ["town.tif"], "labels": "roofs.geojson", "validation_area": "kept.geojson"}]
        wish = {"steps": steps, "batch": 2, "warm_up": 1, "averaging": 0.9, "rate": 5e-3, "encoder_rate": 1}
        job = {"data": data, "optimiser": wish}
        now, then = (
            train(job_of(**job, validate_every=n), toy, tmp_path / str(n), device="cpu") for n in (every, steps)
        )
        assert weights(now) == weights(then)
        assert read_model(now).scores == read_model(then).scores
        assert read_model(now).scores

    def test_what_is_not_right(self, toy: Path, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="patience counts validations, and no place is kept for any"):
            train(job_of(patience=2), toy, tmp_path, device="cpu")
        network = {"architecture": "deeplabv3plus", "encoder": "tu-test_resnet"}  # it takes the mean over the crop
        with pytest.raises(OptionError, match=r"optimiser\.batch is 1 and crop 64: .* take a batch of 2 or more"):
            train(job_of(network=network, optimiser={"steps": 1, "batch": 1}), toy, tmp_path, device="cpu")

    @pytest.mark.usefixtures("often")
    def test_a_damaged_checkpoint_is_refused(self, toy: Path, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            train(job_of(), toy, tmp_path, device="cpu", observe=stop_after(3))
        last = tmp_path / ".toy.run" / "checkpoints" / "last.ckpt"
        last.write_bytes(last.read_bytes()[:999])
        with pytest.raises(OptionError, match=r"last\.ckpt: the checkpoint of an earlier run is damaged.*--overwrite"):
            train(job_of(), toy, tmp_path, device="cpu")

    @pytest.mark.usefixtures("often")
    def test_another_job_in_the_same_folder_is_refused(self, toy: Path, tmp_path: Path) -> None:
        with pytest.raises(Stop):
            train(job_of(), toy, tmp_path, device="cpu", observe=stop_after(3))
        with pytest.raises(OptionError, match="holds a run of another job"):
            train(job_of(seed=5), toy, tmp_path, device="cpu")

    @pytest.mark.parametrize("kind", ["cross_entropy", "focal", "dice", "tversky", "lovasz"])
    def test_the_job_beside_the_weights_is_the_job(self, kind: str, tmp_path: Path) -> None:
        job = job_of(
            losses=[{"kind": kind}, {"kind": "dice", "weight": 0.5}], class_weights="inverse", boundary_weight=1
        )
        (tmp_path / "job.yaml").write_text(job_file(job), "utf-8")
        assert read_job(tmp_path / "job.yaml", TrainJob) == job

    def test_it_learns_and_its_folder_makes_maps(self, toy: Path, tmp_path: Path) -> None:
        """With the auxiliary score, a split and its scores, and a card that is right."""
        said: list[str] = []
        job = job_of(
            data=[{"rasters": ["town.tif"], "labels": "roofs.geojson", "validation_area": "kept.geojson"}],
            auxiliary=["interior"],
            optimiser={"steps": 40, "batch": 4, "warm_up": 2, "averaging": 0, "rate": 5e-3, "encoder_rate": 1},
            validate_every=20,
            augmentation={"affine": 0, "colour": 0, "gain": 0, "gamma": 0, "missing": 0, "resample": 0},
        )
        folder = train(job, toy, tmp_path / "models", device="cpu", say=said.append)
        spec = read_model(folder)
        assert spec.auxiliary == ("interior",)
        name, score = spec.scores[0]
        assert name == "IoU of building, validation places"
        assert score > 0.6
        assert len(said) == 2
        item = json.loads((folder / "item.json").read_text("utf-8"))
        assert JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
        assert read_job(folder / "job.yaml", TrainJob) == job
        told = CliRunner().invoke(
            cli,
            ["segment", str(toy / "town.tif"), "buildings", "--out", str(tmp_path / "maps"), "--model", str(folder)],
        )
        assert told.exit_code == 0, told.output
        with rasterio.open(next((tmp_path / "maps").rglob("labels.tif"))) as dataset:
            labels = dataset.read(1)
        truth = rasterize(boxes(), (SIDE, SIDE), transform=BANEPA).astype(bool)
        assert ((labels == 1) & truth).sum() / ((labels == 1) | truth).sum() > 0.6

    def test_classes_of_its_own_take_no_background_over(self) -> None:
        start = find_model(None, "buildings-deeplabv3plus")
        values = job_of().model_dump(exclude={"network", "background", "auxiliary", "separation"})
        classes = [{"name": n, "colour": "#123456"} for n in ("roof", "road")]
        job = _filled(TrainJob.model_validate(values | {"start": start.name, "classes": classes}), start)
        assert job.background is None
        assert job.auxiliary == ("interior",)

    def test_a_share_of_the_start_stays(self, toy: Path, tmp_path: Path) -> None:
        """The weights are between the start's and those of the same run without it; the scores are of these weights."""
        data = [{"rasters": ["town.tif"], "labels": "roofs.geojson", "validation_area": "kept.geojson"}]
        start = train(job_of(seed=3), toy, tmp_path / "start", device="cpu")
        job = {"data": data, "start": str(start), "validate_every": 4}
        job["optimiser"] = {"steps": 8, "batch": 2, "warm_up": 1, "averaging": 0.5, "rate": 5e-3, "encoder_rate": 1}
        alone = train(job_of(**job), toy, tmp_path / "alone", device="cpu")
        said: list[str] = []
        mixed = train(job_of(**job, start_share=0.25), toy, tmp_path / "mixed", device="cpu", say=said.append)
        assert [line.partition(",")[0] for line in said] == ["step 4", "step 8", "step 8"]
        before, learned, between = (load_network(read_model(f)).state_dict() for f in (start, alone, mixed))
        for name, value in between.items():
            if value.is_floating_point():
                wanted = 0.25 * before[name].float() + 0.75 * learned[name].float()
                torch.testing.assert_close(value.float(), wanted, rtol=2e-3, atol=1e-3)
        assert any(not torch.equal(between[name], learned[name]) for name in between)
        # Nearly all of it is the start's, statistics of BatchNorm included, so it is judged as the start was.
        still = job | {"start": str(mixed), "optimiser": job["optimiser"] | {"averaging": 0}}
        again = train(job_of(**still, start_share=0.999), toy, tmp_path / "again", device="cpu")
        assert read_model(again).scores[0][1] == pytest.approx(read_model(mixed).scores[0][1], abs=0.02)

    def test_a_share_of_other_outputs_is_refused(self, toy: Path, tmp_path: Path) -> None:
        classes = [{"name": name, "colour": "#123456"} for name in ("background", "roof")]
        changes = {"start": "buildings-deeplabv3plus", "start_share": 0.5}
        with pytest.raises(OptionError, match="start_share needs the outputs of buildings-deeplabv3plus"):
            train(job_of(**changes, classes=classes), toy, tmp_path, device="cpu")
        with pytest.raises(ValueError, match="start_share is the share of a model"):
            job_of(start_share=0.5)

    def test_it_starts_from_a_model(self) -> None:
        """Same outputs for classes of the same name, in another order and beside a new one."""
        start = find_model(None, "buildings-deeplabv3plus")
        names = [c.name for c in start.legend.classes]
        classes = [{"name": n, "colour": "#123456"} for n in ("pool", *reversed(names))]
        values = job_of(classes=classes, background=start.legend.name(0)).model_dump(exclude={"network"})
        job = _filled(TrainJob.model_validate(values | {"start": start.name, "auxiliary": ["interior"]}), start)
        network, image = _network(job, start).eval(), torch.rand(1, 3, 64, 64)
        with torch.inference_mode():
            mine, its = network(image), load_network(start).float().eval()(image)
        assert mine.shape[1] == 4
        for name in names:
            here = [c.name for c in job.classes].index(name)
            torch.testing.assert_close(mine[:, here], its[:, names.index(name)])


class TestCommand:
    """`geoseg train`."""

    def test_schema(self) -> None:
        import jsonschema

        told = CliRunner().invoke(cli, ["train", "--schema"])
        schema = json.loads(told.stdout)
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.validate(job_of().model_dump(mode="json"), schema)
        for table in (schema, *schema["$defs"].values()):
            assert {key for key, value in table["properties"].items() if not value.get("description")} == set()

    def test_without_the_extra_it_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lightning" else name)
        told = CliRunner().invoke(cli, ["train", "--schema"])
        assert isinstance(told.exception, OptionError)
        assert "needs lightning: pip install 'geoseg[train]'" in str(told.exception)
