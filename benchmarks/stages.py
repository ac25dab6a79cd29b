"""What each stage of a run but the forward passes takes alone, on one thread, beside what memory and processor can do.

    python benchmarks/stages.py SCENE.tif --labels maps/SCENE/labels.tif [--model buildings-deeplabv3plus] [--repeats 5]

LABELS is what `geoseg segment` has made of the scene. All stages in turn, again and again, in one process: reading
strips as high as a patch; scaling patches; blending their scores; deciding blended scores; outlining the labels;
writing the working store, and the GeoTIFF with its overviews. Prints the median milliseconds for each megapixel of the
scene, with the shortest and the longest; how often a pixel of the scene goes through a stage is counted in, by the
overlap of a large scene. The share is that of the rate of copying an array of 256 MB in the same run, counted with the
bytes that a stage must read and write at the least; what has to decode, compress or decide cannot come near it. For the
forward pass it is the share of the rate of oneDNN's matrix product of 1024 x 1024 x 1024.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rasterio
import torch
from forward import SIDE, made_one
from torch.utils.flop_counter import FlopCounterMode

from geoseg.catalog import find_model
from geoseg.io.cog import Look, write_cog
from geoseg.io.store import ResultStore
from geoseg.labelling import Between, label
from geoseg.memory import keep_freed_memory
from geoseg.models.backends import USUAL
from geoseg.models.rewrites import PackedLinear
from geoseg.models.weights import load_predict
from geoseg.planned import Plan, SegmentJob, look
from geoseg.polygonise import polygonise_whole
from geoseg.raster import Band
from geoseg.tiling import CHUNK, taper
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

COPIED = 1 << 25  # doubles


@dataclass
class Stage:
    """Some work on so many pixels of the scene, and what it must move at the least."""

    work: Callable[[], object]
    pixels: float
    bytes_per_pixel: float
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        began = time.perf_counter()
        self.work()
        self.seconds.append(time.perf_counter() - began)

    def told(self, bandwidth: float) -> str:
        median, least, most = (1e9 * f(self.seconds) / self.pixels for f in (statistics.median, min, max))
        share = 1e6 * self.bytes_per_pixel / (median / 1e3) / bandwidth
        return f"{median:7.2f} ms/Mpx ({least:.2f} to {most:.2f}), {share:5.1%} of the memory's rate"


def stages(planned: Plan, labels: NDArray[np.uint8], folder: Path) -> dict[str, Stage]:
    model, tiling = planned.model, planned.tiling
    (rows, cols), height = planned.scene.shape, tiling.patch[0]
    down, along = tiling.axes
    per_pixel = model.patch**2 / (tiling.stride[0] * tiling.stride[1])  # pixels of network input for one of the scene
    predict = load_predict(model, torch.device("cpu"), USUAL)
    patch = torch.from_numpy(planned.source.read(Window(0, height, 0, height)).values[None].copy())
    scores = torch.randn(predict.outputs, down.cells, along.cells)
    weights = torch.from_numpy(np.outer(taper(down.cells), taper(along.cells)).astype(np.float32))
    strip = torch.zeros(predict.outputs, down.cells + 1, along.total_cells)
    total = torch.ones(strip.shape[1:])
    kept = strip.clone().normal_().numpy()
    final = Window(0, tiling.stride[0], 0, cols)
    between = Between.of(down, *final.row_range, 0), Between.of(along, *final.col_range, 0)
    auxiliary = np.zeros((len(model.auxiliary), min(CHUNK, rows), cols), np.uint8)
    first = labels[: len(auxiliary[0]) if len(auxiliary) else CHUNK]
    band = Band(Window(0, first.shape[0], 0, cols), first, first, auxiliary)
    store = ResultStore.create(folder, planned.scene.geobox, model.legend, planned.parameters, model.auxiliary)
    bytes_of_cells = 4 * predict.outputs * down.cells * along.cells / (tiling.patch[0] * tiling.patch[1])

    def read() -> None:
        planned.source.close()  # GDAL remembers the blocks of a file that is open
        for window in Window.of_shape((rows, cols)).blocks((height, cols)):
            planned.source.read(window)

    def blend() -> None:
        scores.mul_(weights)
        strip[:, 1:, : along.cells] += scores
        total[1:, : along.cells] += weights

    def decide() -> None:
        place = Band.empty(final, len(model.auxiliary))
        label(kept, total.numpy(), *between, model.legend.background, None, place)

    def tif() -> None:
        bands = ((window, labels[window.slices]) for window in Window.of_shape((rows, cols)).blocks((CHUNK, cols)))
        write_cog(folder / "labels.tif", bands, planned.scene.geobox, Look(model.product, model.legend), {})

    seen = model.patch**2 / per_pixel  # pixels of the scene that a patch stands for
    return {
        "read": Stage(read, rows * cols, len(model.bands)),
        "scale": Stage(lambda: predict.scaled(patch), seen, 5 * len(model.bands) * per_pixel),
        "blend": Stage(blend, seen, 3 * bytes_of_cells * per_pixel),
        "decide": Stage(decide, final.size, bytes_of_cells + 2 + len(model.auxiliary)),
        "outline": Stage(lambda: polygonise_whole(labels, background=model.legend.background), rows * cols, 1),
        "write store": Stage(lambda: store.put(band), first.size, 2 + len(model.auxiliary)),
        "write GeoTIFF": Stage(tif, rows * cols, 1),
    }


def forward(planned: Plan) -> tuple[Stage, Stage, float]:
    """A pass as the command does it, the matrix product, and the operations of a pass for each one of the product."""
    model = planned.model
    predict = load_predict(model, torch.device("cpu"), USUAL)
    shape = (1, len(model.bands), model.patch, model.patch)
    values = predict.scaled(torch.randint(256, shape, dtype=torch.uint8))
    with FlopCounterMode(display=False) as counter:
        made_one(model)(values)
    matrix, layer = torch.randn(SIDE, SIDE), PackedLinear(torch.nn.Linear(SIDE, SIDE, bias=False))
    seen = planned.tiling.stride[0] * planned.tiling.stride[1]
    times = counter.get_total_flops() / (2 * SIDE**3)
    return Stage(lambda: predict.network(values), seen, 0), Stage(lambda: layer(matrix), 1, 0), times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--model", default="buildings-deeplabv3plus")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    logging.getLogger("rasterio").setLevel(logging.ERROR)
    keep_freed_memory()
    torch.set_num_threads(1)
    spec = find_model(None, args.model)
    planned = look(SegmentJob(args.scene, spec.product, ".", device="cpu"), model=spec)
    with rasterio.open(args.labels) as source:
        labels = source.read(1)
    numbers = np.random.default_rng(0).random(COPIED)
    room = np.empty_like(numbers)
    copy = Stage(lambda: np.copyto(room, numbers), 1, 0)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        each = stages(planned, labels, Path(folder))
        network, product, times = forward(planned)
        for _ in range(args.repeats + 1):
            for stage in (*each.values(), network, product, copy):
                stage.measure()
        for stage in (*each.values(), network, product, copy):
            del stage.seconds[0]  # the first time is not like the others
    bandwidth = 2 * numbers.nbytes / statistics.median(copy.seconds)
    rate = 2 * SIDE**3 / statistics.median(product.seconds)
    print(f"\n{spec.name}, one thread; memory {bandwidth / 1e9:.1f} GB/s, matrix product {rate / 1e9:.0f} GFLOP/s")
    for name, stage in each.items():
        print(f"   {name:13} {stage.told(bandwidth)}")
    share = times * statistics.median(product.seconds) / statistics.median(network.seconds)
    told = network.told(bandwidth).partition(",")[0]
    print(f"   {'forward pass':13} {told}, {share:5.1%} of the matrix product's rate", flush=True)


if __name__ == "__main__":
    main()
