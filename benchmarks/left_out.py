"""How good a building model is in a town that it knows nothing of, and what a few labelled tiles of it are worth.

    python workflows/prepare_buildings.py --data DATA --out PREPARED
    python benchmarks/left_out.py DATA PREPARED --out RUNS [--town TOWN] [--steps N]

Trains `workflows/buildings-deeplabv3plus.yaml` three times, each time without one town (Kampala, Zanzibar, all of
Banepa), with crops of 256 pixels and 1000 steps: about a quarter of an hour each on two cores. The town left out is
where it is judged: IoU of its building pixels, at 0.15 and 0.3 m together. Then `workflows/finetune-buildings.yaml`
is run from the network that does not know Banepa: IoU, object F1 and count error of the Banepa block (see
`benchmarks/accuracy.py`) before and after. Runs that are finished are kept in RUNS, and not done again.
`--town` leaves out this one alone; with other `--steps` RUNS has to be another folder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import in_metres, outlines, places, predict

from geoseg.catalog import find_model, read_model
from geoseg.evaluation.objects import object_scores
from geoseg.jobs import read_job
from geoseg.memory import keep_freed_memory
from geoseg.models.weights import choose_device, load_predict
from geoseg.predict import Decision, Engine, default_batch, default_lanes
from geoseg.train.job import TrainJob
from geoseg.train.run import train

WORKFLOWS = Path(__file__).parents[1] / "workflows"
STEPS, CROP = 1000, 256
BANEPA, KAMPALA, ZANZIBAR, BANEPA_B = range(4)  # places among the job's data
EVERYWHERE = {"area": "banepa/train_area.geojson", "validation_area": None}  # of Banepa, what may be learned from
BLOCK = {"area": "banepa/validation_area.geojson", "validation_area": None, "use": "validation"}
JUDGED: dict[str, Any] = {"use": "validation"}
LEFT_OUT: dict[str, dict[int, dict[str, Any]]] = {
    "without-kampala": {BANEPA: EVERYWHERE, KAMPALA: JUDGED},
    "without-zanzibar": {BANEPA: EVERYWHERE, ZANZIBAR: JUDGED},
    "without-banepa": {BANEPA: BLOCK, BANEPA_B: JUDGED},
}


def without(name: str, steps: int) -> TrainJob:
    """The job of the bundled model, with a town to be judged by and not to be learned from."""
    values = read_job(WORKFLOWS / "buildings-deeplabv3plus.yaml", TrainJob).model_dump()
    values |= {"name": name, "crop": CROP, "validate_every": steps // 2}
    values["optimiser"] |= {"steps": steps}
    values["data"] = [each | LEFT_OUT[name].get(number, {}) for number, each in enumerate(values["data"])]
    return TrainJob.model_validate(values)


def trained(job: TrainJob, data: Path, out: Path) -> Path:
    """The folder of a trained model, now or before."""
    folder = out / job.name
    if not (folder / "item.json").exists():
        began = time.perf_counter()
        train(job, data, out)
        print(f"{job.name}: trained in {(time.perf_counter() - began) / 60:.0f} minutes", flush=True)
    return folder


def block(folder: Path, data: Path) -> str:
    """Scores of a model on the Banepa block, at the scene's own resolution."""
    model, device = find_model("buildings", str(folder)), choose_device("auto")
    fill = tuple(round(255 * mean) for mean in model.mean)
    _, resolution, image, truth, houses = next(places(data))
    predicts = load_predict(model, device)
    with Engine(predicts, Decision(model.legend), fill, default_batch(device), default_lanes(device)) as engine:
        whole = predict(image, resolution, engine, model)
    found = whole.labels == 1
    iou = np.count_nonzero(found & truth) / np.count_nonzero(found | truth)
    assert houses is not None
    objects = object_scores(outlines(whole, resolution, model), in_metres(houses, resolution))
    return f"IoU {iou:.3f}, object F1 {objects.f1:.3f}, count error {objects.count_error:+.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--town", choices=[name.removeprefix("without-") for name in LEFT_OUT])
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    keep_freed_memory()
    names = [f"without-{args.town}"] if args.town else list(LEFT_OUT)
    for name in names:
        ((_, score),) = read_model(trained(without(name, args.steps), args.prepared, args.out)).scores
        print(f"{name}: IoU {score:.3f} there", flush=True)
    if "without-banepa" not in names:
        return
    job = read_job(WORKFLOWS / "finetune-buildings.yaml", TrainJob)
    start = args.out / "without-banepa"
    fine = job.model_copy(update={"name": "fine-banepa", "start": str(start)})
    print(f"Banepa block, before: {block(start, args.data)}")
    print(f"after fine-tuning on the rest of it: {block(trained(fine, args.prepared, args.out), args.data)}")


if __name__ == "__main__":
    main()
