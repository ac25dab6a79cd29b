"""What the choice of an architecture, a loss, a patch and a stride is worth.

    python workflows/prepare_buildings.py --data DATA --out PREPARED
    python benchmarks/choices.py DATA PREPARED --out RUNS [--seconds 150] [--only architecture|loss|patch]

Every network is trained on the same data for the same time, steps being as many as fit into it at the speed that its
own first steps have; so one that is quick sees more. Judged on the validation places of the job that it is a change
of, which no network learns from:

* architectures, on the building sets (`workflows/buildings-deeplabv3plus.yaml`): IoU of buildings at 0.15 and 0.3 m;
* losses, on the land-cover set, whose classes are very unequal (`workflows/landcover-deeplabv3plus.yaml`): IoU of each;
* patch and stride, by the bundled building model on the Banepa block at 0.15 m: IoU, forward passes, and how many of
  the labels differ from those of a network that saw the whole block at once, in all and beside the patches' borders.

Runs that are finished are kept in RUNS, and not done again: times are comparable only if nothing else was running.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import BANEPA, Whole, places, predict

from geoseg.catalog import find_model, read_model
from geoseg.jobs import read_job
from geoseg.memory import keep_freed_memory
from geoseg.models.weights import choose_device, load_predict
from geoseg.predict import Decision, Engine, default_lanes
from geoseg.tiling import patch_starts
from geoseg.train.job import TrainJob
from geoseg.train.run import train

WORKFLOWS = Path(__file__).parents[1] / "workflows"
LITE0, IMAGENET = "tu-tf_efficientnet_lite0", "package:efficientnet-lite0"
TIMED = slice(5, 15)  # steps whose speed counts: after the warm-up of allocator and loader
NEAR = 8  # pixels on either side of a patch's border


def network(architecture: str, encoder: str = LITE0, weights: str | None = IMAGENET) -> dict[str, Any]:
    return {"network": {"architecture": architecture, "encoder": encoder, "weights": weights}}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "U-Net, EfficientNet-Lite0 from ImageNet": network("unet"),
    "DeepLabv3+, EfficientNet-Lite0 from ImageNet": network("deeplabv3plus"),
    "DeepLabv3+, EfficientNet-Lite0 from nothing": network("deeplabv3plus", weights=None),
    "SegFormer (MiT-B0) from nothing": network("segformer", "mit_b0", None),
}
CROSS_ENTROPY, DICE = {"kind": "cross_entropy", "label_smoothing": 0.02}, {"kind": "dice"}
LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"losses": [CROSS_ENTROPY]},
    "focal": {"losses": [{"kind": "focal"}]},
    "Dice": {"losses": [DICE]},
    "cross-entropy + Dice": {"losses": [CROSS_ENTROPY, DICE]},
}


@dataclass
class Clock:
    """An observer that notes when each step was done."""

    times: list[float] = field(default_factory=list)

    def __call__(self, stage: str, _done: int, _total: int) -> None:
        """One more."""
        if stage == "training":
            self.times.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        """Over the steps that count."""
        times = self.times[TIMED]
        return (times[-1] - times[0]) / (len(times) - 1)


def changed(job: TrainJob, name: str, steps: int, change: dict[str, Any]) -> TrainJob:
    """The job with a change, that many steps and one look at the validation places, at the end."""
    values = job.model_dump(exclude_unset=True) | {"validate_every": steps, "class_weights": "none"}
    values |= change | {"name": name}
    values["optimiser"] |= {"steps": steps, "warm_up": min(50, steps), "averaging": 0.99}
    return TrainJob.model_validate(values)


def compare(base: str, variants: dict[str, dict[str, Any]], data: Path, out: Path, seconds: float) -> None:
    """Train each variant for so many seconds, and print a table."""
    job = read_job(WORKFLOWS / base, TrainJob)
    names: list[str] = []
    for number, (title, change) in enumerate(variants.items()):
        name = f"{job.product}-{number}"
        if not (out / name / "item.json").exists():
            clock = Clock()
            train(changed(job, f"{name}-timed", TIMED.stop, change), data, out, overwrite=True, observe=clock)
            steps = max(50, round(seconds / clock.seconds_per_step))
            train(changed(job, name, steps, change), data, out, overwrite=True)
        steps = read_job(out / name / "job.yaml", TrainJob).optimiser.steps
        scores = {score.removesuffix(", validation places"): v for score, v in read_model(out / name).scores}
        if not names:
            names = list(scores)
            print(f"\n| {base.removesuffix('.yaml')}, {seconds:.0f} s each | steps | {' | '.join(names)} |")
            print(f"|---|---|{'---|' * len(names)}")
        print(f"| {title} | {steps} | {' | '.join(f'{scores[n]:.2f}' for n in names)} |", flush=True)


def beside_borders(shape: tuple[int, int], patch: int, stride: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Pixels near an inner border of a patch."""
    near = [np.zeros(side, bool) for side in shape]
    for flags, side in zip(near, shape, strict=True):
        for start in patch_starts(side, patch, stride):
            for border in (start, start + patch):
                if 0 < border < side:
                    flags[max(0, border - NEAR) : border + NEAR] = True
    return near[0][:, None] | near[1]


def patches(data: Path) -> None:
    """IoU, cost and seams of some patches and strides."""
    model = replace(find_model("buildings", None), resolution=(BANEPA, BANEPA))
    _, _, image, truth, _ = next(places(data))
    shape = (truth.shape[0], truth.shape[1])
    side = -(-max(shape) // 32) * 32

    def mapped(patch: int, stride: int) -> Whole:
        sized = replace(model, patch=patch, stride=stride)
        engine = Engine(load_predict(sized, choose_device("cpu")), Decision(model.legend), (128,) * 3, 1, lanes)
        with engine:
            return predict(image, BANEPA, engine, sized)

    lanes = default_lanes(choose_device("cpu"))
    whole = mapped(side, side).labels
    print("\n| patch | stride | pixels seen per pixel | IoU | labels that differ | within 8 pixels of a border |")
    print("|---|---|---|---|---|---|")
    for patch, stride in ((256, 256), (256, 192), (512, 512), (512, 448), (512, 384), (512, 256), (1024, 768)):
        labels = mapped(patch, stride).labels
        found, differs = labels == 1, labels != whole
        iou = (found & truth).sum() / (found | truth).sum()
        seen = np.prod([len(patch_starts(n, patch, stride)) for n in shape]) * patch**2 / truth.size
        near = beside_borders(shape, patch, stride)
        print(f"| {patch} | {stride} | {seen:.2f} | {iou:.3f} | {differs.mean():.2%} | {differs[near].mean():.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trained networks")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--only", choices=("architecture", "loss", "patch"))
    args = parser.parse_args()
    keep_freed_memory()
    if args.only in {None, "patch"}:
        patches(args.data)
    if args.only in {None, "architecture"}:
        compare("buildings-deeplabv3plus.yaml", ARCHITECTURES, args.prepared, args.out, args.seconds)
    if args.only in {None, "loss"}:
        compare("landcover-deeplabv3plus.yaml", LOSSES, args.data, args.out, args.seconds)


if __name__ == "__main__":
    main()
