"""What everything but the forward passes costs.

    python benchmarks/overhead.py SCENE.tif [--repeats 3]

In one process, in turn: the bare forward passes that the scene needs (real patches that are already scaled and in
memory, as many as the plan has, on as many threads), and the whole command (reading, scaling, predicting, blending,
writing, outlining, exporting). Prints each time, and the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from geoseg.models.weights import NetworkPredict, choose_device, load_network, load_predict
from geoseg.pipeline import Plan, SegmentJob, plan, run
from geoseg.predict import default_lanes, keep_freed_memory
from geoseg.window import Window

DISTINCT = 16  # patches held in memory; the network's time does not depend on what they show


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


def forward_seconds(planned: Plan, network: torch.nn.Module, patches: list[torch.Tensor]) -> float:
    """Time of the bare forward passes of all patches of the plan."""
    count = sum(len(t.patch_rows) * len(t.patch_cols) for t in planned.tiling.tiles())

    def one(index: int) -> None:
        with torch.inference_mode():
            network(patches[index % len(patches)])

    began = time.perf_counter()
    with ThreadPoolExecutor(default_lanes(torch.device("cpu")), initializer=lambda: torch.set_num_threads(1)) as lanes:
        for _ in lanes.map(one, range(count)):
            pass
    return time.perf_counter() - began


def command_seconds(job: SegmentJob) -> float:
    """Time of the whole command, planning and loading of the model included."""
    began = time.perf_counter()
    run(plan(job), lambda _stage, _done, _total: None)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.08, help="status 1 above this ratio")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        job = SegmentJob(args.scene, "buildings", folder, device="cpu", overwrite=True)
        planned = plan(job)
        predict = load_predict(planned.model, choose_device("cpu"))
        patches = scaled_patches(planned, predict)
        network = load_network(planned.model).eval().to(memory_format=torch.channels_last)
        forward, whole = [], []
        for repeat in range(args.repeats):
            forward.append(forward_seconds(planned, network, patches))
            whole.append(command_seconds(job))
            print(f"{repeat + 1}: forward passes {forward[-1]:.1f} s, whole command {whole[-1]:.1f} s", flush=True)
    ratio = statistics.median(whole) / statistics.median(forward)
    megapixels = planned.scene.shape[0] * planned.scene.shape[1] / 1e6
    print(f"{megapixels:.0f} Mpx: whole / forward = {ratio:.3f}")
    if ratio > args.limit:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
