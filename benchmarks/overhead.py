"""What everything but the forward passes costs.

    python benchmarks/overhead.py SCENE.tif [--repeats 3] [--backend torch]

In one process, in turn: the bare forward passes that the scene needs (real patches that are already scaled and in
memory, as many as the plan has, on as many threads), and the whole command (reading, scaling, predicting, blending,
writing, outlining, exporting), one right after the other; which of them comes first alternates. Prints wall time, CPU
time of all threads, and their ratios for each repeat, then the medians of these ratios: a machine that becomes slower
meanwhile makes both slower. Beside other work, trust the CPU time. For each stage of the command: the seconds that its
threads spent in it (stages overlap), and when it had ended.

The bare passes are those of the very network that the command uses, at its own stride, by the same backend: its limit.
`--limit` is for torch's: the rest costs the same by a backend whose passes are shorter, and so a larger share of them.
Beside them, for comparison with other tools, are passes of the network as it was trained, from scaled pixels to scores
of the patch's size (the command's has layers made one, and leaves out the last, which enlarges the scores: it enlarges
blended scores instead, once for each pixel).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from geoseg.memory import keep_freed_memory
from geoseg.models.backends import TORCH
from geoseg.models.weights import NetworkPredict, choose_device, load_network, load_predict
from geoseg.pipeline import run
from geoseg.planned import Plan, SegmentJob, plan
from geoseg.predict import default_lanes
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

DISTINCT = 16  # patches held in memory; the network's time does not depend on what they show


@dataclass(frozen=True)
class Cost:
    """Seconds that something took."""

    wall: float
    cpu: float
    """Of all threads of this process."""

    def __truediv__(self, other: Cost) -> Cost:
        """How many times the other's."""
        return Cost(self.wall / other.wall, self.cpu / other.cpu)

    def __str__(self) -> str:
        """For people."""
        return f"{self.wall:.1f} s ({self.cpu:.1f} s CPU)"


def cost_of(work: Callable[[], object]) -> Cost:
    """Time of some work that ends all its threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def median_ratio(costs: list[Cost], others: list[Cost]) -> Cost:
    """Of each to the other of the same repeat; of wall and CPU time, each on its own."""
    ratios = [cost / other for cost, other in zip(costs, others, strict=True)]
    return Cost(statistics.median(each.wall for each in ratios), statistics.median(each.cpu for each in ratios))


def scaled_patches(planned: Plan, predict: NetworkPredict) -> list[torch.Tensor]:
    """Patches from the middle of the scene, as the network takes them."""
    (rows, cols), (height, width) = planned.scene.shape, planned.tiling.patch
    patches = []
    for index in range(DISTINCT):
        row = max(0, min(rows // 2, rows - height))
        col = max(0, min(index * width, cols - width))
        values = planned.source.read(Window(row, row + height, col, col + width)).values
        patches.append(predict.scaled(torch.from_numpy(values[None].copy())))
    return patches


def forward_passes(planned: Plan, network: torch.nn.Module, patches: list[torch.Tensor]) -> None:
    """The bare forward passes of all patches of the plan."""
    count = sum(len(t.patch_rows) * len(t.patch_cols) for t in planned.tiling.tiles())

    def one(index: int) -> None:
        with torch.inference_mode():
            network(patches[index % len(patches)])

    with ThreadPoolExecutor(default_lanes(torch.device("cpu")), initializer=lambda: torch.set_num_threads(1)) as lanes:
        for _ in lanes.map(one, range(count)):
            pass


def command(job: SegmentJob) -> None:
    """The whole command, planning and loading of the model included; prints when its stages had ended."""
    began = time.perf_counter()
    ended: dict[str, float] = {}

    run(plan(job), lambda stage, _done, _total: ended.update({stage: time.perf_counter() - began}))
    ended["all"] = time.perf_counter() - began
    print("   ended: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in ended.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default=TORCH, help="who does the forward passes, such as openvino")
    parser.add_argument("--limit", type=float, default=1.08, help="status 1 above this ratio")
    args = parser.parse_args()
    logging.basicConfig(format="   %(message)s", stream=sys.stdout)
    logging.getLogger("geoseg").setLevel(logging.INFO)  # tells the seconds of each stage of a tile
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        job = SegmentJob(args.scene, "buildings", folder, device="cpu", backend=args.backend, overwrite=True)
        planned = plan(job)
        predict = load_predict(planned.model, choose_device("cpu"), args.backend)
        patches = scaled_patches(planned, predict)
        trained = load_network(planned.model).eval().to(memory_format=torch.channels_last)
        networks = {"trained": trained, "forward": predict.network}
        work = {
            **{name: partial(forward_passes, planned, network, patches) for name, network in networks.items()},
            "whole": partial(command, job),
        }
        costs: dict[str, list[Cost]] = {name: [] for name in work}
        for repeat in range(args.repeats):
            for name in [*work][:: -1 if repeat % 2 else 1]:
                costs[name].append(cost_of(work[name]))
            trained_, forward, whole = (costs[name][-1] for name in work)
            print(
                f"{repeat + 1}: forward passes {forward}, of the network as trained {trained_}, whole command {whole}: "
                f"{_ratios(whole / forward)}",
                flush=True,
            )
    naive, ratio = (median_ratio(costs["whole"], costs[name]) for name in networks)
    megapixels = planned.scene.shape[0] * planned.scene.shape[1] / 1e6
    print(f"{megapixels:.0f} Mpx: whole / forward, median: {_ratios(ratio)}")
    print(f"   against forward passes of the network as trained: {_ratios(naive)}")
    if ratio.wall > args.limit:
        raise SystemExit(1)


def _ratios(ratio: Cost) -> str:
    return f"{ratio.wall:.3f} by wall time, {ratio.cpu:.3f} by CPU time"


if __name__ == "__main__":
    main()
