"""Building IoU of a model on ground it was not trained on.

    python benchmarks/accuracy.py DATA [--model NAME] [--json scores.json]

DATA is the folder of labelled imagery that `workflows/train_buildings.py` takes. Measured, each as the intersection
over union of all building pixels of the place:

* Banepa: the eastern third of `banepa/labelled_train.tif`, left out of training (the rest of that town was not);
  at its own 0.13 m (which the model takes at its finest resolution) and resampled to 0.3 and 0.5 m;
* two aerial scenes of `landcover_aerial/`, 0.1 m, 300-pixel chips: other towns, another sensor;
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
import torch
import torch.nn.functional as F
from rasterio.features import rasterize

from geoseg.catalog import ModelSpec, find_model
from geoseg.io.scenes import GdalSource, estimate_stretch, open_scene
from geoseg.models.weights import choose_device, load_predict
from geoseg.pipeline import patch_on_scene
from geoseg.predict import Decision, Engine, default_batch, default_lanes, keep_freed_memory
from geoseg.raster import Band, Raster
from geoseg.samples import fetch
from geoseg.tiling import Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Labelled = tuple[str, float, NDArray[np.uint8], NDArray[np.bool_]]

BANEPA = 0.1323  # metres on the ground per pixel
HELD_OUT_FROM_COLUMN = 2048  # as in workflows/train_buildings.py


class Whole:
    """An image in memory, as a source and a sink of one tile."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.values = values
        self.shape = (values.shape[1], values.shape[2])
        self.labels = np.empty(self.shape, np.uint8)

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
        """Keep the labels."""
        self.labels[band.window.slices] = band.labels


def predict(image: NDArray[np.uint8], resolution: float, engine: Engine, model: ModelSpec) -> NDArray[np.bool_]:
    whole = Whole(image)
    patch, stride = patch_on_scene(model, (resolution, resolution))
    tiling = Tiling(whole.shape, patch, stride, whole.shape)
    (tile,) = tiling.tiles()
    engine.run(whole, tile, tiling, whole)
    found: NDArray[np.bool_] = whole.labels == 1
    return found


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
    yield "Banepa block, 0.13 m", BANEPA, image, truth
    for resolution in (0.3, 0.5):
        yield f"Banepa block, {resolution} m", resolution, *resampled(image, truth, BANEPA / resolution)
    for chip in sorted((data / "landcover_aerial" / "images").iterdir()):
        (label,) = (data / "landcover_aerial" / "labels").glob(f"{chip.stem}.*")
        with rasterio.open(chip) as source, rasterio.open(label) as classes:
            yield f"aerial scene {chip.name[:10]}, 0.1 m", 0.1, source.read([1, 2, 3]), classes.read(1) == 0
    path = fetch("atlanta")
    scene = open_scene(path)
    bands = scene.bands_for(("red", "green", "blue"))
    whole = Window.of_shape(scene.shape)
    image = GdalSource(scene, bands, estimate_stretch(scene, bands)).read(whole).values.astype(np.uint8)
    shapes = gpd.read_file(path.with_name("atlanta_footprints.geojson")).to_crs(str(scene.geobox.crs)).geometry
    yield (
        "Atlanta, panchromatic 0.5 m",
        0.5,
        image,
        rasterize(shapes, scene.shape, transform=scene.geobox.affine).astype(bool),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    keep_freed_memory()
    model, device = find_model("buildings", args.model), choose_device("auto")
    fill = tuple(round(255 * mean) for mean in model.mean)
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, np.int64))
    network, decision = load_predict(model, device), Decision(model.legend)
    with Engine(network, decision, fill, default_batch(device), default_lanes(device)) as engine:
        for name, resolution, image, truth in places(args.data):
            found = predict(image, resolution, engine, model)
            counts[name] += [(found & truth).sum(), found.sum(), truth.sum()]
    scores = []
    for name, (both, found, true) in counts.items():
        iou = both / (found + true - both)
        print(f"{name:32} IoU {iou:.3f}  precision {both / found:.3f}  recall {both / true:.3f}")
        scores.append({"name": f"IoU, {name}", "value": round(float(iou), 3)})
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
