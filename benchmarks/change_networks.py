"""How good networks for two dates are on pairs, and in cities, that they have not learned from.

    python workflows/prepare_change.py --data DATA --out PREPARED
    python benchmarks/change_networks.py PREPARED --out RUNS [buildings|sentinel2 ...]

Trains `workflows/change-buildings.yaml` three times, each time without a third of the pairs (a pair is kept as a
whole), and `workflows/change-sentinel2.yaml` four times, each time without one city.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from geoseg.jobs import read_job
from geoseg.memory import keep_freed_memory
from geoseg.train.job import TrainJob
from geoseg.train.run import train

WORKFLOWS = Path(__file__).parents[1] / "workflows"
PAIRS = {
    "a": ("test_1", "test_102", "test_55", "train_36"),
    "b": ("test_2", "test_121", "test_77", "train_412"),
    "c": ("test_3", "test_7", "val_27"),
}
"""The pairs that each network is judged by: one of 1024 pixels, and parts of others."""
CITIES = ("aguasclaras", "bordeaux", "hongkong", "paris")


def without_pairs(fold: str) -> TrainJob:
    values = read_job(WORKFLOWS / "change-buildings.yaml", TrainJob).model_dump(exclude_unset=True)
    values["name"] += f"-{fold}"
    values["data"][0]["validation"] = [f"{pair}_*" for pair in PAIRS[fold]]
    return TrainJob.model_validate(values)


def without_city(city: str) -> TrainJob:
    values = read_job(WORKFLOWS / "change-sentinel2.yaml", TrainJob).model_dump(exclude_unset=True)
    values["name"] += f"-{city}"
    for data, names in zip(values["data"], ([c for c in CITIES if c != city], [city]), strict=True):
        data |= {"rasters": [f"change_sentinel2/t1/{name}.tif" for name in names]}
        data |= {"after": [f"change_sentinel2/t2/{name}.tif" for name in names]}
    return TrainJob.model_validate(values)


def trained(job: TrainJob, data: Path, out: Path) -> Path:
    """The folder of a trained model, now or before."""
    folder = out / job.name
    if not (folder / "item.json").exists():
        began = time.perf_counter()
        train(job, data, out, say=lambda line: print(f"{job.name}: {line}", flush=True))
        print(f"{job.name}: trained in {(time.perf_counter() - began) / 60:.0f} minutes", flush=True)
    return folder


SETS: dict[str, Any] = {
    "buildings": [without_pairs(fold) for fold in PAIRS],
    "sentinel2": [without_city(city) for city in CITIES],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    args = parser.parse_args()
    keep_freed_memory()
    for name in args.sets:
        for job in SETS[name]:
            trained(job, args.prepared, args.out)


if __name__ == "__main__":
    main()
