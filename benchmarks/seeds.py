"""By which seeds a building model tells houses apart best, on ground that it was trained on.

    python benchmarks/seeds.py DATA --model FOLDER_OR_NAME

The `separation` of a model's job is the score `interior` from which on a pixel may be of a seed, and the least area of
a seed in square metres. This maps the training part of Banepa once (the western two thirds of its labelled part), and
outlines it with each pair: footprints matched one to one with OpenStreetMap's at IoU above 0.5, F1 and count error. It
is a choice, not a score: how good the model is, `benchmarks/accuracy.py` tells, on other ground.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import geopandas as gpd
import rasterio
import shapely
from accuracy import BANEPA, HELD_OUT_FROM_COLUMN, in_metres, outlines, predict, to_pixels

from geoseg.catalog import find_model
from geoseg.evaluation.objects import object_scores
from geoseg.memory import keep_freed_memory
from geoseg.models.weights import choose_device, load_predict
from geoseg.predict import Decision, Engine, default_batch, default_lanes

SCORES = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
AREAS = (1.0, 2.0, 3.0, 5.0, 8.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="buildings-deeplabv3plus")
    args = parser.parse_args()
    keep_freed_memory()
    model, device = find_model(None, args.model), choose_device("auto")
    with rasterio.open(args.data / "banepa" / "labelled_train.tif") as source:
        image, transform = source.read()[..., :HELD_OUT_FROM_COLUMN], source.transform
    houses = to_pixels(gpd.read_file(args.data / "banepa" / "footprints_train.geojson").geometry, transform)
    houses = shapely.intersection(houses, shapely.box(0, 0, image.shape[2], image.shape[1]))
    truth = in_metres(houses[~shapely.is_empty(houses)], BANEPA)
    fill, by = tuple(round(255 * mean) for mean in model.mean), load_predict(model, device)
    with Engine(by, Decision(model.legend), fill, default_batch(device), default_lanes(device)) as engine:
        found = predict(image, BANEPA, engine, model)
    rows = []
    for score, area in product(SCORES, AREAS):
        told = object_scores(outlines(found, BANEPA, replace(model, separation=(score, area))), truth)
        rows.append((told.f1, told.count_error, score, area))
    for f1, error, score, area in sorted(rows, reverse=True):
        print(f"score {score:.2f}, {area:.0f} square metres: object F1 {f1:.3f}, count error {error:+.0%}")


if __name__ == "__main__":
    main()
