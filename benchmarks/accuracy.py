"""How good a model is on ground it was not trained on: pixels, and house by house.

    python benchmarks/accuracy.py DATA [--model NAME] [--record]

`--record` writes the scores into the model's card. DATA is the folder of labelled imagery that
`workflows/prepare_buildings.py` takes.

A land-cover model is measured on the chips that its job keeps for validation, each by itself, at their own resolution:
IoU of each class over all of them, the mean of building, vegetation and ground, and of all classes.

A building model is measured on three kinds of ground, each as the intersection
over union of all building pixels of the place, and where there are footprints as objects too (matched one to one at IoU
above 0.5: F1, and how many too many or too few there are; the same with houses that touch left as one, and whether
telling them apart leaves each pixel what it was, so that IoU is the same):

* Banepa: the eastern third of `banepa/labelled_train.tif`, left out of training (the rest of that town was not);
  at its own 0.13 m (which the model takes at its finest resolution) and resampled to 0.3 and 0.5 m;
* two aerial scenes of `landcover_aerial/`, 0.1 m, 300-pixel chips: of each the range that
  `workflows/buildings-aerial.yaml` keeps for validation;
* Atlanta: the panchromatic satellite sample of `geoseg sample atlanta`, 0.5 m, with its footprints.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import shapely.affinity
import torch
import torch.nn.functional as F
from rasterio.features import rasterize

from geoseg.catalog import ModelSpec, find_model
from geoseg.evaluation.objects import ObjectScores, object_scores
from geoseg.evaluation.pixels import confusion_of, pixel_scores
from geoseg.footprints import GroundSeparation
from geoseg.io.scenes import estimate_stretch, open_scene, open_source
from geoseg.jobs import read_job
from geoseg.memory import keep_freed_memory
from geoseg.models.backends import NAMES, USUAL
from geoseg.models.weights import choose_device, load_predict
from geoseg.planned import patch_on_scene
from geoseg.polygonise import polygonise_whole
from geoseg.predict import Decision, Engine, default_batch, default_lanes
from geoseg.raster import NODATA, Band, Raster
from geoseg.samples import fetch
from geoseg.tiling import Tiling
from geoseg.train.data import places_of
from geoseg.train.job import Chips, TrainJob
from geoseg.train.places import ChipPlace
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Labelled = tuple[str, float, NDArray[np.uint8], NDArray[np.bool_], NDArray[np.object_] | None]

LEAST_AREA = 4.0  # square metres, the command's default
BANEPA = 0.1323  # metres on the ground per pixel
MAIN_CLASSES = ("building", "vegetation", "ground")  # the others are a few thousandths of the chips
WORKFLOWS = Path(__file__).parents[1] / "workflows"
HELD_OUT_FROM_COLUMN = 2048  # as in workflows/prepare_buildings.py


class Whole:
    """An image in memory, as a source and a sink of one tile."""

    def __init__(self, values: NDArray[np.uint8], auxiliary: int) -> None:
        self.values = values
        self.shape = (values.shape[1], values.shape[2])
        self.labels, self.auxiliary = np.empty(self.shape, np.uint8), np.empty((auxiliary, *self.shape), np.uint8)

    def read(self, window: Window) -> Raster:
        """The pixels of a window; zeros, not valid, outside."""
        values = np.zeros((len(self.values), *window.shape), np.uint8)
        valid = np.zeros(window.shape, bool)
        within = Window.of_shape(self.shape).intersection(window)
        if within is not None:
            here = within.relative_to(window).slices
            values[:, *here], valid[here] = self.values[:, *within.slices], True
        return Raster(values, valid)

    def write(self, band: Band) -> None:
        """Keep labels and auxiliary scores."""
        self.labels[band.window.slices] = band.labels
        self.auxiliary[:, *band.window.slices] = band.auxiliary


def predict(image: NDArray[np.uint8], resolution: float, engine: Engine, model: ModelSpec) -> Whole:
    whole = Whole(image, len(model.auxiliary))
    patch, stride, cells = patch_on_scene(model, (resolution, resolution))
    tiling = Tiling(whole.shape, patch, stride, whole.shape, cells)
    (tile,) = tiling.tiles()
    engine.run(whole, tile, tiling, whole)
    return whole


def outlines(found: Whole, resolution: float, model: ModelSpec, *, separated: bool = True) -> NDArray[np.object_]:
    """The buildings of a prediction as a run would have them, without simplification, in metres."""
    told = model.separation if separated else None
    apart = GroundSeparation(*told).in_pixels(resolution**2) if told else None
    score = found.auxiliary[model.auxiliary.index("interior")] if apart else None
    objects = polygonise_whole(found.labels, score=score, separation=apart)
    large = objects.pixels * resolution**2 >= LEAST_AREA
    return in_metres(objects.geometry[large], resolution)


def in_metres(pixels: NDArray[np.object_], resolution: float) -> NDArray[np.object_]:
    """Polygons in pixel corners with a metre for their unit."""
    moved: NDArray[np.object_] = shapely.transform(pixels, lambda xy: xy * resolution)
    return moved


def to_pixels(shapes: gpd.GeoSeries, transform: rasterio.Affine, first_column: int = 0) -> NDArray[np.object_]:
    """Polygons in a raster's CRS in the pixel corners of its part from a column on."""
    back = (~transform).to_shapely()
    moved = shapely.affinity.translate
    pixels = shapes.affine_transform(back).to_numpy()
    return np.array([moved(polygon, -first_column) for polygon in pixels], object)


def resampled(
    image: NDArray[np.uint8], truth: NDArray[np.bool_], factor: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    size = [round(side * factor) for side in truth.shape]
    both = torch.from_numpy(np.concatenate([image, truth[None] * np.uint8(255)]))[None].float()
    small = F.interpolate(both, size=size, mode="bilinear", antialias=True)[0].round().byte().numpy()
    return small[:3], small[3] > 127


def places(data: Path) -> Iterator[Labelled]:
    with rasterio.open(data / "banepa" / "labelled_train.tif") as source:
        image, transform = source.read(), source.transform
    shapes = gpd.read_file(data / "banepa" / "footprints_train.geojson").geometry
    truth = rasterize(shapes, image.shape[1:], transform=transform).astype(bool)
    image, truth = image[..., HELD_OUT_FROM_COLUMN:], truth[..., HELD_OUT_FROM_COLUMN:]
    houses = to_pixels(shapes, transform, HELD_OUT_FROM_COLUMN)
    houses = shapely.intersection(houses, shapely.box(0, 0, truth.shape[1], truth.shape[0]))
    yield "Banepa block, 0.13 m", BANEPA, image, truth, houses[~shapely.is_empty(houses)]
    for resolution in (0.3, 0.5):
        yield f"Banepa block, {resolution} m", resolution, *resampled(image, truth, BANEPA / resolution), None
    for chip in sorted((data / "landcover_aerial" / "images").iterdir()):
        if not any(first <= chip.stem <= last for first, last in kept_chips()):
            continue
        (label,) = (data / "landcover_aerial" / "labels").glob(f"{chip.stem}.*")
        with rasterio.open(chip) as source, rasterio.open(label) as classes:
            yield f"aerial scene {chip.name[:10]}, 0.1 m", 0.1, source.read([1, 2, 3]), classes.read(1) == 0, None
    path = fetch("atlanta")
    scene = open_scene(path)
    bands = scene.bands_for(("red", "green", "blue"))
    whole = Window.of_shape(scene.shape)
    image = open_source(scene, bands, estimate_stretch(scene, bands)).read(whole).values.astype(np.uint8)
    shapes = gpd.read_file(path.with_name("atlanta_footprints.geojson")).to_crs(str(scene.geobox.crs)).geometry
    yield (
        "Atlanta, panchromatic 0.5 m",
        0.5,
        image,
        rasterize(shapes, scene.shape, transform=scene.geobox.affine).astype(bool),
        to_pixels(shapes, scene.geobox.affine),
    )


def kept_chips() -> list[tuple[str, str]]:
    """The first and the last name of each range of aerial images that no building model learns from."""
    data = read_job(WORKFLOWS / "buildings-aerial.yaml", TrainJob).data
    ranges = (kept.split("..") for each in data if isinstance(each, Chips) for kept in each.validation)
    return [(first, last) for first, last in ranges]


def buildings(model: ModelSpec, engine: Engine, data: Path) -> dict[str, float]:
    """Scores by name: IoU for every place, of objects too where there are footprints."""
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, np.int64))
    objects: dict[str, ObjectScores] = {}
    for name, resolution, image, truth, houses in places(data):
        whole = predict(image, resolution, engine, model)
        found = whole.labels == 1
        counts[name] += [(found & truth).sum(), found.sum(), truth.sum()]
        if houses is not None:
            objects[name] = object_scores(outlines(whole, resolution, model), in_metres(houses, resolution))
            print_unseparated(name, whole, in_metres(houses, resolution), resolution, model)
    scores = {}
    for name, (both, found, true) in counts.items():
        scores[f"IoU, {name}"] = float(both / (found + true - both))
        print(f"{name:32} precision {both / found:.3f}  recall {both / true:.3f}")
    for name, each in objects.items():
        scores[f"object F1, {name}"], scores[f"count error, {name}"] = each.f1, each.count_error
    return scores


def print_unseparated(
    name: str, whole: Whole, houses: NDArray[np.object_], resolution: float, model: ModelSpec
) -> None:
    """What object F1 would be if houses that touch were one, and whether telling them apart leaves each pixel alone."""
    score = object_scores(outlines(whole, resolution, model, separated=False), houses)
    apart = GroundSeparation(*model.separation).in_pixels(resolution**2) if model.separation else None
    interior = whole.auxiliary[model.auxiliary.index("interior")] if apart else None
    pixels = rasterize(polygonise_whole(whole.labels, score=interior, separation=apart).geometry, whole.shape)
    same = np.array_equal(pixels == 1, whole.labels == 1)
    print(f"{name}: unseparated object F1 {score.f1:.3f}, count error {score.count_error:+.0%}; ", end="")
    print(f"pixels of the separated are {'the same' if same else 'OTHERS'}")


def landcover(model: ModelSpec, engine: Engine, data: Path) -> dict[str, float]:
    """Scores by name, over all chips that the model's job keeps for validation."""
    names = [c.name for c in model.legend.classes]
    confusion = np.zeros((len(names), len(names)), np.int64)
    for place in places_of(read_job(model.weights.parent / "job.yaml", TrainJob), data):
        if not isinstance(place, ChipPlace):
            continue
        for (chip,), label in place.kept:  # one date
            with rasterio.open(chip) as image, rasterio.open(label) as classes:
                found = predict(image.read([1, 2, 3]), place.resolution, engine, model).labels
                truth = place.values[classes.read(1)]
            confusion += confusion_of(found[truth != NODATA], truth[truth != NODATA], len(names))
    iou = {each.name: each.iou for each in pixel_scores(confusion, names).classes}
    means = {
        f"mean of {', '.join(some)}": float(np.mean([iou[name] for name in some])) for some in (MAIN_CLASSES, names)
    }
    return {f"IoU, {name}, validation chips": value for name, value in {**iou, **means}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="buildings-deeplabv3plus")
    parser.add_argument("--backend", default=USUAL, choices=NAMES[1:], help="who does the forward passes")
    parser.add_argument("--record", action="store_true", help="write the scores into the model's item.json")
    args = parser.parse_args()
    keep_freed_memory()
    model, device = find_model(None, args.model), choose_device("auto")
    fill = tuple(round(255 * mean) for mean in model.mean)
    measure = landcover if model.product == "landcover" else buildings
    decision = Decision(model.legend)
    with Engine(
        load_predict(model, device, args.backend), decision, fill, default_batch(device), default_lanes(device)
    ) as engine:
        scores = measure(model, engine, args.data)
    for name, value in scores.items():
        print(f"{name:72} {value:.3f}")
    if args.record:
        card = model.weights.parent / "item.json"
        item = json.loads(card.read_text(encoding="utf-8"))
        kept = [{"name": name, "value": round(value, 3)} for name, value in scores.items()]
        item["properties"]["geoseg:scores"] = kept
        card.write_text(json.dumps(item, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
