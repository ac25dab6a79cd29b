"""One scene through a network as users of other tools would write it; one way for each process.

    python benchmarks/others.py WAY SCENE.tif MODEL --out FOLDER [--passes N] [--backend torch]

Called by `benchmarks/compare.py`. Writes labels.tif (tiled, deflate, 255 = nodata) and footprints.geojson (longitude
and latitude) into the folder: class by argmax, polygons by `rasterio.features.shapes` and geopandas. WAY is

* `monai`: the scene in memory, `SlidingWindowInferer` with its Gaussian blend, 4 patches at a time, and the overlap
  that makes the model's stride;
* `torchgeo`: `RasterDataset`, `GridGeoSampler` and a `DataLoader` that reads in this process, 4 patches at a time; each
  patch's classes are put where it lies, the last one counts;
* `trained`: no tool at all, only forward passes of the network as it was trained, of N patches of the scene that are in
  memory and scaled, 4 at a time;
* `best`: the same of the network as `geoseg segment` uses it, with its memory allocator and lanes, 1 at a time.

All of them use torch as it is by default, on all cores, without gradients (`inference_mode`), except for `best`, which
does what the command does. Prints as JSON the seconds of the forward passes alone, of the last two.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio

from geoseg.catalog import ModelSpec, find_model
from geoseg.models.backends import USUAL

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

BATCH = 4  # patches at a time: MONAI's tutorials and torchgeo's take 4 and more
DISTINCT = 16  # patches held in memory; the network's time does not depend on what they show


def scaled(spec: ModelSpec, values: torch.Tensor) -> torch.Tensor:
    """Bytes (..., band, y, x) as the network takes them."""
    import torch

    mean, std = (torch.tensor(each)[:, None, None] for each in (spec.mean, spec.std))
    return (values.float() / 255 - mean) / std


def network_of(spec: ModelSpec) -> torch.nn.Module:
    from geoseg.models.weights import load_network

    return load_network(spec).eval()


def write(labels: NDArray[np.uint8], scene: Path, out: Path) -> None:
    """The mask as GeoTIFF, and what is not background as polygons in GeoJSON."""
    import geopandas as gpd
    from rasterio.features import shapes
    from shapely.geometry import shape

    with rasterio.open(scene) as source:
        crs, transform = source.crs, source.transform
    grid = {"height": labels.shape[0], "width": labels.shape[1], "count": 1, "dtype": "uint8", "nodata": 255}
    layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(out / "labels.tif", "w", driver="GTiff", crs=crs, transform=transform, **grid, **layout) as file:
        file.write(labels, 1)
    found = [(shape(outline), value) for outline, value in shapes(labels, mask=labels > 0, transform=transform)]
    layer = gpd.GeoDataFrame({"value": [v for _, v in found]}, geometry=[s for s, _ in found], crs=crs)
    layer.to_crs(4326).to_file(out / "footprints.geojson", driver="GeoJSON")


def monai(spec: ModelSpec, scene: Path, out: Path) -> None:
    import torch
    from monai.inferers import SlidingWindowInferer

    network = network_of(spec)
    with rasterio.open(scene) as source:
        image = scaled(spec, torch.from_numpy(source.read(range(1, len(spec.bands) + 1))))[None]
    inferer = SlidingWindowInferer(
        (spec.patch, spec.patch), sw_batch_size=BATCH, overlap=1 - spec.stride / spec.patch, mode="gaussian"
    )
    with torch.inference_mode():
        scores = inferer(image, network)
        labels = scores[0, : len(spec.legend.classes)].argmax(0).byte()
    write(labels.numpy(), scene, out)


def torchgeo(spec: ModelSpec, scene: Path, out: Path) -> None:
    import numpy as np
    import torch
    from torch.utils.data import DataLoader
    from torchgeo.datasets import RasterDataset, stack_samples
    from torchgeo.samplers import GridGeoSampler

    def prepared(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": scaled(spec, sample["image"])}

    dataset = RasterDataset([scene], transforms=prepared)
    sampler = GridGeoSampler(dataset, size=spec.patch, stride=spec.stride)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=BATCH, sampler=sampler, collate_fn=stack_samples)
    network = network_of(spec)
    with rasterio.open(scene) as source:
        labels, transform = np.full(source.shape, 255, np.uint8), ~source.transform
    rows, cols = labels.shape
    with torch.inference_mode():
        for batch in loader:
            found = network(batch["image"])[:, : len(spec.legend.classes)].argmax(1).byte().numpy()
            for patch, (x, y, _) in zip(found, batch["bounds"], strict=True):
                place: tuple[float, float] = transform @ (x.start, y.stop)
                left, top = (round(each) for each in place)
                # the last patch of a column lies below the scene's lower edge, or above the upper one
                first, last = max(top, 0), min(top + spec.patch, rows)
                right = min(left + spec.patch, cols)
                labels[first:last, left:right] = patch[first - top : last - top, : right - left]
    write(labels, scene, out)


def patches_of(spec: ModelSpec, scene: Path) -> torch.Tensor:
    """Some patches along the middle of the scene, bytes (n, band, y, x)."""
    import torch

    with rasterio.open(scene) as source:
        wide = source.read(range(1, len(spec.bands) + 1))
    top = (wide.shape[1] - spec.patch) // 2
    lefts = [index * (wide.shape[2] - spec.patch) // (DISTINCT - 1) for index in range(DISTINCT)]
    rows = slice(top, top + spec.patch)
    return torch.stack([torch.from_numpy(wide[:, rows, left : left + spec.patch].copy()) for left in lefts])


def timed(work: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))


def trained(spec: ModelSpec, scene: Path, passes: int) -> None:
    import torch

    network, patches = network_of(spec), scaled(spec, patches_of(spec, scene))
    batches = patches.split(BATCH)

    def work() -> None:
        for index in range(-(-passes // BATCH)):
            network(batches[index % len(batches)][: passes - index * BATCH])

    with torch.inference_mode():
        network(batches[0])
        timed(work)


def best(spec: ModelSpec, scene: Path, passes: int, backend: str) -> None:
    from geoseg.memory import keep_freed_memory

    keep_freed_memory()
    import torch

    from geoseg.models.weights import load_predict
    from geoseg.predict import default_lanes, one_torch_thread

    device = torch.device("cpu")
    predict = load_predict(spec, device, backend)
    predict.prepare(1)
    patches = [predict.scaled(each) for each in patches_of(spec, scene).split(1)]

    def one(index: int) -> None:
        with torch.inference_mode():
            predict.network(patches[index % DISTINCT])

    one_torch_thread()
    with ThreadPoolExecutor(default_lanes(device), initializer=one_torch_thread) as lanes:
        list(lanes.map(one, range(default_lanes(device))))  # the first passes are not like the others
        timed(lambda: list(lanes.map(one, range(passes))))


WAYS: dict[str, Callable[..., None]] = {
    "monai": monai,
    "torchgeo": torchgeo,
    "trained": trained,
    "best": best,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("scene", type=Path)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--passes", type=int, default=100, help="of `trained` and `best`")
    parser.add_argument("--backend", default=USUAL, help="of `best`")
    args = parser.parse_args()
    more = {"trained": (args.passes,), "best": (args.passes, args.backend)}.get(args.way, (args.out,))
    WAYS[args.way](find_model(None, args.model), args.scene, *more)


if __name__ == "__main__":
    main()
