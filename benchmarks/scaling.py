"""What a second worker is worth, and what handing out tiles costs.

    python benchmarks/scaling.py SCENE.tif [--repeats 3] [--least 1.85]

1. One worker against two, of one thread each and bound to one core each (a worker of one thread that may use a second
   core reads and blends on it, and would look twice as good as it is): seconds of `geoseg run` on the scene, workers
   warm, in turn; which comes first alternates. Predictions that are repeated at tiles' borders.
2. Milliseconds that scheduling takes for each tile: calls that do nothing, with a real tile's order, one by one.
3. Seconds to plan a scene of a million tiles, and to hand out the first of them.

Exits with status 1 if the median of the ratios is below `--least`, a tenth or more is repeated, or the plan takes 2 s.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio
import rasterio.windows
from workers import Cluster

from geoseg.archive import ArchivePlan, RunJob, plan_archive, run_archive
from geoseg.catalog import find_model
from geoseg.cluster import Crew, crew, recipe_of
from geoseg.planning import estimate
from geoseg.tiling import CHUNK, Tiling

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoseg.window import Window
    from geoseg.work import SceneOrder

CALLS = 500
WARM = 2 * CHUNK  # rows and columns of the part of the scene that warms workers up


def planned(scene: Path, out: Path, cluster: str, **options: Any) -> ArchivePlan:
    """The plan of one scene as the planner would have it on a cluster."""
    values = {"product": "buildings", "scenes": {"files": [str(scene)]}, "cluster": cluster, **options}
    return plan_archive(RunJob.model_validate(values), scene.parent, out, overwrite=True)


@contextmanager
def warm(folder: Path, part: Path, cores: list[int]) -> Iterator[Crew]:
    """Workers on these cores that have loaded all that they need."""
    with Cluster(folder / f"dask-{len(cores)}") as cluster:
        for core in cores:
            cluster.add(core)
        with crew(recipe_of(cluster.address)) as workers:
            while workers.threads < len(cores):
                time.sleep(0.5)
            run_archive(planned(part, folder / "warm", cluster.address, tile=CHUNK), workers)
            yield workers


def seconds(scene: Path, folder: Path, part: Path, cores: list[int]) -> float:
    """Of mapping the scene with one worker on each of these cores."""
    with warm(folder, part, cores) as workers:
        report = run_archive(planned(scene, folder / "maps", "tcp://"), workers)
    if report.failures:
        raise SystemExit(f"failed: {report.failures[0].why}")
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    print(f"{len(cores)} worker(s): {report.wall:.1f} s ({stages})", flush=True)
    return report.wall


def nothing(_order: SceneOrder, core: Window) -> Window:
    """What a worker does of a tile where only the scheduling is of interest."""
    return core


def milliseconds_per_tile(scene: Path, folder: Path, part: Path, core: int) -> float:
    """Of handing out a tile and taking what comes back, with one worker that has nothing to do."""
    order = planned(scene, folder / "idle", "tcp://").entries[0].order
    tile = next(order.tiling.tiles()).core
    with warm(folder, part, [core]) as workers:
        began = time.perf_counter()
        for _ in range(CALLS):
            workers.submit(None, nothing, order, tile)
            workers.next()
        return (time.perf_counter() - began) / CALLS * 1000


def million() -> tuple[float, float]:
    """Seconds to count a scene of a million tiles, and to come by the first of them."""
    side = 1000 * CHUNK
    tiling = Tiling((side, side), (512, 512), (384, 384), (CHUNK, CHUNK))
    began = time.perf_counter()
    estimate([tiling], find_model("buildings", None), 1, 1)
    counted = time.perf_counter()
    next(tiling.tiles())
    return counted - began, time.perf_counter() - counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=float, default=1.85)
    args = parser.parse_args()
    scene, cores = args.scene.resolve(), sorted(os.sched_getaffinity(0))[:2]
    counted, first = million()
    print(f"a million tiles: {counted:.2f} s to plan, {first * 1000:.1f} ms to the first")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = folder / "part.tif"
        with rasterio.open(scene) as source:
            place = rasterio.windows.Window(source.width // 2, source.height // 2, WARM, WARM)
            profile = source.profile | {"width": WARM, "height": WARM, "transform": source.window_transform(place)}
            with rasterio.open(part, "w", **profile) as target:
                target.write(source.read(window=place))
        repeated = planned(scene, folder / "maps", "tcp://").estimate().repeated
        print(f"predictions repeated at tiles' borders: {repeated:.1%}")
        print(f"scheduling: {milliseconds_per_tile(scene, folder, part, cores[0]):.1f} ms per tile")
        times: dict[int, list[float]] = {1: [], 2: []}
        for _, turn in zip(range(args.repeats), itertools.cycle([(1, 2), (2, 1)]), strict=False):
            for count in turn:
                times[count].append(seconds(scene, folder, part, cores[:count]))
        ratios = [one / two for one, two in zip(times[1], times[2], strict=True)]
    ratio = statistics.median(ratios)
    print(f"two workers are {ratio:.2f} times as fast as one ({', '.join(f'{each:.2f}' for each in ratios)})")
    if ratio < args.least or repeated >= 0.1 or counted >= 2:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
