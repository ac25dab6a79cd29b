"""Blending at the network's own stride against blending a score for each pixel: accuracy, and seams.

    python benchmarks/blending.py DATA [--models buildings-deeplabv3plus buildings-segformer]

DATA is the folder of labelled imagery that `benchmarks/accuracy.py` takes. The ground is the Banepa block that was left
out of training, at its own 0.13 m and brought to 0.3 m, as far as whole strides go, so that both see the same patches.
"own stride" is what the command does: scores of cells are blended, and brought to pixels once. "each pixel" brings
every patch's scores to pixels first, and blends those: sixteen times the numbers. Prints IoU of buildings, the F1 of
their boundaries within half a metre, the seam excess as `geoseg seams` has it (against a patch every quarter of one,
blended in the same way), how many labels the two ways tell differently, and the milliseconds of one megapixel's
blending and deciding.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from accuracy import Whole, places

from geoseg.catalog import find_model
from geoseg.evaluation.boundaries import Ruler, boundary_counts, boundary_scores
from geoseg.memory import keep_freed_memory
from geoseg.models.weights import choose_device, load_predict
from geoseg.overlap import Comparison, Zones, windows_of
from geoseg.planned import patch_on_scene
from geoseg.predict import Decision, Engine, Lanes, default_lanes
from geoseg.tiling import Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.catalog import ModelSpec

WITHIN = 0.5  # metres


def compare(
    model: ModelSpec, lanes: Lanes, name: str, resolution: float, image: NDArray[np.uint8], truth: NDArray[np.bool_]
) -> None:
    patch, stride, _ = patch_on_scene(model, (resolution, resolution))
    rows, cols = (
        side + max(0, size - side) // step * step for size, side, step in zip(truth.shape, patch, stride, strict=True)
    )
    image, truth = image[:, :rows, :cols], truth[:rows, :cols]  # whole strides, so that both ways see the same patches
    predict, decision = load_predict(model, choose_device("cpu")), Decision(model.legend)
    fill = tuple(round(255 * mean) for mean in model.mean)
    shape = (truth.shape[0], truth.shape[1])

    def tiling(stride: int, *, own: bool) -> Tiling:
        patch, step, cells = patch_on_scene(model, (resolution, resolution), stride)
        return Tiling(shape, patch, step, shape, cells if own else None)

    labels = {}
    everywhere, ruler = np.ones(shape, bool), Ruler((resolution, resolution), WITHIN, 10 * WITHIN)
    for way, own in (("own stride", True), ("each pixel", False)):
        laid = tiling(model.stride, own=own)
        whole = Whole(image, len(model.auxiliary))
        for _ in range(2):  # what is compiled at first is not counted
            with Engine(predict, decision, fill, 1, lanes) as engine:
                report = engine.run(whole, next(laid.tiles()), laid, whole)
        labels[way] = found = whole.labels == 1
        iou = (found & truth).sum() / (found | truth).sum()
        f1 = boundary_scores(boundary_counts(found, truth, everywhere, Window.of_shape(shape), ruler), ruler).f1
        reference = replace(laid, stride=tiling(model.patch // 4, own=own).stride)
        comparison = Comparison(predict, decision, fill, lanes)
        source = Whole(image, 0)
        windows = list(windows_of(source, reference, 2))
        (seams,) = comparison.run(
            source, reference, {model.stride: laid}, windows, Zones.of(model.patch, max(laid.patch))
        )
        blended = 1e9 * report.seconds["blend"] / truth.size
        print(
            f"| {model.name}, {name} | {way} | {iou:.4f} | {f1:.4f} | "
            f"{seams.excess:.2%} ± {seams.excess_error:.2%} | {blended:.0f} |",
            flush=True,
        )
    one, other = labels.values()
    print(f"   {(one != other).mean():.3%} of labels differ between the two")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", default=["buildings-deeplabv3plus", "buildings-segformer"])
    args = parser.parse_args()
    keep_freed_memory()
    lanes = Lanes(default_lanes(choose_device("cpu")))
    print("| ground | blending | IoU | boundary F1 | seam excess | ms/Mpx |\n|---|---|---|---|---|---|")
    for name in args.models:
        for place, resolution, image, truth, _ in islice(places(args.data), 2):
            compare(find_model(None, name), lanes, place, resolution, image, truth)
    lanes.close()


if __name__ == "__main__":
    main()
