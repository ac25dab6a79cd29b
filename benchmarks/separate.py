"""What telling objects apart that touch costs, in CPU time for each megapixel of scene.

    python benchmarks/separate.py DATA [--repeats 3] [--limit 60]

DATA is the folder that holds `banepa/`. The mask is that of Banepa's mapped buildings, grown by 0.6 m, so that most of
them touch; the score is the distance from a building's own outline, divided by the largest inside it, blurred and with
some noise, as a network gives it. That is a dense town, 60 % of it buildings: where a quarter is built up, expect less
than half. Prints, without and with the score: outlining in windows of 512 x 4096 pixels and joining, outlining
as one window, simplifying, and how many objects there are. Exits with status 1 if outlining in windows with the score
takes more milliseconds for each megapixel than the limit.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import rasterio
from rasterio.features import rasterize
from scipy import ndimage

from geoseg.polygonise import Objects, join, polygonise
from geoseg.separate import Separation
from geoseg.simplify import simplified
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SEPARATION = Separation(0.5, 100)
WINDOW = (512, 4096)


def town(data: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Labels and scores."""
    with rasterio.open(data / "banepa" / "labelled_train.tif") as source:
        shape, transform = source.shape, source.transform
    buildings = gpd.read_file(data / "banepa" / "footprints_train.geojson").geometry
    labels = rasterize(buildings.buffer(0.6), shape, transform=transform, dtype="uint8")
    number = rasterize(zip(buildings, range(1, len(buildings) + 1), strict=True), shape, transform=transform)
    outline = ndimage.maximum_filter(number, 3) != ndimage.minimum_filter(number, 3)
    inner = ndimage.distance_transform_edt((number > 0) & ~outline)
    top = np.asarray(ndimage.maximum(inner, number, np.arange(int(number.max()) + 1)))
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 6) / 2
    score = ndimage.gaussian_filter(inner / np.maximum(top[number], 1), 2) + noise
    return labels, np.rint(250 * score.clip(0, 1)).astype(np.uint8)


def outlined(labels: NDArray[np.uint8], window: tuple[int, int], score: NDArray[np.uint8] | None) -> Objects:
    """All objects, window by window."""
    pieces = []
    for at in Window.of_shape((labels.shape[0], labels.shape[1])).blocks(window):
        more: dict[str, Any] = {} if score is None else {"score": score[at.slices], "separation": SEPARATION}
        pieces.append(polygonise(labels[at.slices], at, **more))
    return Objects.concatenate([*(p.complete for p in pieces), join(pieces, (labels.shape[0], labels.shape[1]))])


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """CPU time of the quickest of some tries: what else the machine does disturbs that least."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return 1e3 * min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=math.inf, help="status 1 above these milliseconds")
    args = parser.parse_args()
    labels, score = town(args.data)
    megapixels = labels.size / 1e6
    print(f"{megapixels:.1f} Mpx, {labels.mean():.0%} of them buildings; CPU milliseconds for each:")
    for name, given in (("without", None), ("with", score)):
        objects = outlined(labels, labels.shape, given)
        seconds = [
            milliseconds(lambda: outlined(labels, WINDOW, given), args.repeats),  # noqa: B023  called in this round
            milliseconds(lambda: outlined(labels, labels.shape, given), args.repeats),  # noqa: B023
            milliseconds(lambda: simplified(objects.geometry, objects.block, 1.0), args.repeats),  # noqa: B023
        ]
        windows, whole, fewer = (value / megapixels for value in seconds)
        print(
            f"{name} score: {windows:.1f} in windows of {WINDOW[0]} x {WINDOW[1]}, {whole:.1f} as a whole, "
            f"simplifying {fewer:.1f}; {len(objects)} objects in {len(np.unique(objects.block))} blocks"
        )
    if windows > args.limit:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
