"""How good networks for two dates are on pairs, and in cities, that they have not learned from.

    python workflows/prepare_change.py --data DATA --out PREPARED
    python benchmarks/change_networks.py PREPARED --out RUNS [buildings|sentinel2 ...] [--only NAME] [--steps N]

Trains `workflows/change-buildings.yaml` three times, each time without a third of the pairs (a pair is kept as a
whole), and `workflows/change-sentinel2.yaml` four times, each time without one city. What was left out is mapped as
`geoseg change` does it, and scored: pixels where both dates see something, and objects (connected changed pixels of
at least 4 square metres, one to one at IoU above 0.5); pooled means that counts were added first. Runs that are
finished are kept in RUNS, and not done again; `--only a` or `--only paris` does one of them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import geoseg
from geoseg.catalog import find_model
from geoseg.evaluation.inputs import raster_on
from geoseg.evaluation.objects import object_scores
from geoseg.evaluation.pixels import confusion_of, pixel_scores, ratio
from geoseg.io.scenes import open_scene
from geoseg.jobs import read_job
from geoseg.memory import keep_freed_memory
from geoseg.train.job import TrainJob
from geoseg.train.run import train
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

WORKFLOWS = Path(__file__).parents[1] / "workflows"
PAIRS = {
    "a": ("test_1", "test_102", "test_55", "train_36"),
    "b": ("test_2", "test_121", "test_77", "train_412"),
    "c": ("test_3", "test_7", "val_27"),
}
"""The pairs that each network is judged by: one of 1024 pixels, and parts of others."""
NEVER = 10**6
"""Updates between two looks at the validation places: these are judged by the engine, afterwards."""
CITIES = ("aguasclaras", "bordeaux", "hongkong", "paris")


def without_pairs(fold: str, steps: int | None) -> TrainJob:
    values = read_job(WORKFLOWS / "change-buildings.yaml", TrainJob).model_dump(exclude_unset=True)
    values |= {"name": f"{values['name']}-{fold}", "validate_every": NEVER}
    values["data"][0]["validation"] = [f"{pair}_*" for pair in PAIRS[fold]]
    values["optimiser"] |= {} if steps is None else {"steps": steps}
    return TrainJob.model_validate(values)


def without_city(city: str, steps: int | None) -> TrainJob:
    values = read_job(WORKFLOWS / "change-sentinel2.yaml", TrainJob).model_dump(exclude_unset=True)
    values |= {"name": f"{values['name']}-{city}", "validate_every": NEVER}
    values["optimiser"] |= {} if steps is None else {"steps": steps}
    for data, names in zip(values["data"], ([c for c in CITIES if c != city], [city]), strict=True):
        data |= {"rasters": [f"change_sentinel2/t1/{name}-t1.tif" for name in names]}
        data |= {"after": [f"change_sentinel2/t2/{name}-t2.tif" for name in names]}
    return TrainJob.model_validate(values)


def trained(job: TrainJob, data: Path, out: Path) -> Path:
    """The folder of a trained model, now or before."""
    folder = out / job.name
    if not (folder / "item.json").exists():
        began = time.perf_counter()
        train(job, data, out, say=lambda line: print(f"{job.name}: {line}", flush=True))
        print(f"{job.name}: trained in {(time.perf_counter() - began) / 60:.0f} minutes", flush=True)
    return folder


@dataclass(frozen=True)
class Counts:
    """Pixels and objects of one map of changes against its labels."""

    confusion: NDArray[np.int64]
    objects: NDArray[np.int64]
    """Matched, predicted, in the labels."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.confusion + other.confusion, self.objects + other.objects)

    def row(self, name: str) -> str:
        changed = pixel_scores(self.confusion).classes[1]
        matched, predicted, there = (int(count) for count in self.objects)
        cells = [f"{value:.3f}" for value in (changed.dice, changed.iou, changed.precision, changed.recall)]
        return f"| {name} | {' | '.join(cells)} | {ratio(2 * matched, predicted + there):.3f} | {there} |"


def scored(before: Path, after: Path, model: Path, truth: Path, out: Path) -> Counts:
    spec = find_model(None, str(model))
    found = geoseg.change(before, after, spec.product, out / "maps", model=str(model))
    labels = open_scene(truth)
    whole = Window.of_shape(labels.shape)
    mapped = raster_on(open_scene(found.folder / "changes.tif"), labels.geobox).read(whole)
    confusion = confusion_of(mapped, raster_on(labels, labels.geobox).read(whole), 2)
    shapes = geoseg.vectorize(truth, classes={0: "unchanged", 1: "changed"}, min_area=4)
    crs = shapes.estimate_utm_crs()
    sides = (found.changes.to_crs(crs).geometry.to_numpy(), shapes.to_crs(crs).geometry.to_numpy())
    objects = object_scores(*sides)
    return Counts(confusion, np.array([objects.matched, objects.predicted, objects.reference]))


def buildings(prepared: Path, out: Path, only: str | None, steps: int | None) -> Iterator[tuple[str, Counts]]:
    """Each pair that was left out."""
    folder = prepared / "change_buildings" / "pairs"
    for fold, names in PAIRS.items():
        if only not in {None, fold}:
            continue
        model = trained(without_pairs(fold, steps), prepared, out)
        for path in sorted((folder / "label").glob("*.tif")):
            stem = path.stem.removesuffix("-label")
            if any(stem == name or stem.startswith(f"{name}_") for name in names):
                before, after = folder / "A" / f"{stem}-before.tif", folder / "B" / f"{stem}-after.tif"
                yield stem, scored(before, after, model, path, out)


def sentinel2(prepared: Path, out: Path, only: str | None, steps: int | None) -> Iterator[tuple[str, Counts]]:
    """Each city that was left out."""
    folder = prepared / "change_sentinel2"
    for city in CITIES:
        if only not in {None, city}:
            continue
        model = trained(without_city(city, steps), prepared, out)
        before, after = folder / "t1" / f"{city}-t1.tif", folder / "t2" / f"{city}-t2.tif"
        yield city, scored(before, after, model, folder / "truth" / f"{city}.tif", out)


SETS = {"buildings": buildings, "sentinel2": sentinel2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--steps", type=int, help="updates of the weights, in place of the jobs'")
    parser.add_argument("--only", help="one of a, b, c or of the cities")
    args = parser.parse_intermixed_args()
    if unknown := set(args.sets) - set(SETS):
        parser.error(f"{unknown.pop()}: choose from {', '.join(SETS)}")
    keep_freed_memory()
    for name in args.sets:
        print(f"\n| {name}, left out | F1 | IoU | precision | recall | object F1 | objects |\n|{'---|' * 7}")
        each = []
        for what, counts in SETS[name](args.prepared, args.out, args.only, args.steps):
            print(counts.row(what), flush=True)
            each.append(counts)
        print(sum(each[1:], each[0]).row("pooled"), flush=True)


if __name__ == "__main__":
    main()
