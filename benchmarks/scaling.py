"""What a second worker is worth, and what handing out tiles costs.

    python benchmarks/scaling.py SCENE.tif [--repeats 3] [--least 1.85]

1. One worker against two, of one thread each and bound to one core each (a worker of one thread that may use a second
   core reads and blends on it, and would look twice as good as it is): seconds of `geoseg run` on the scene, workers
   warm, in turn; which comes first alternates. Predictions that are repeated at tiles' borders.
2. Milliseconds that scheduling takes for each tile: calls that do nothing, with a real tile's order, one by one.
3. Seconds to plan a scene of a million tiles, and to hand out the first of them.
4. The most memory that a worker has held while it mapped the scene, against the plan's bound: as planned, and, by two
   workers once more, with `max_memory`.

Exits with status 1 if the median of the ratios is below `--least`, a tenth or more is repeated, the plan takes 2 s, or
a worker has held more than the plan says.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
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
def warm(folder: Path, part: Path, cores: list[int]) -> Iterator[tuple[Crew, Cluster]]:
    """Workers on these cores that have loaded all that they need."""
    with Cluster(folder / f"dask-{len(cores)}") as cluster:
        for core in cores:
            cluster.add(core)
        with crew(recipe_of(cluster.address)) as workers:
            while workers.threads < len(cores):
                time.sleep(0.5)
            run_archive(planned(part, folder / "warm", cluster.address, tile=CHUNK), workers)
            yield workers, cluster


@dataclass(frozen=True)
class Mapped:
    """What mapping the scene took."""

    seconds: float
    peak: int
    """Bytes that the hungriest worker has held at any time."""
    bound: int
    """Bytes that it may hold, as the plan says."""


def mapped(scene: Path, folder: Path, part: Path, cores: list[int], **options: Any) -> Mapped:
    """Map the scene with one worker on each of these cores."""
    plan = planned(scene, folder / "maps", "tcp://", **options)
    with warm(folder, part, cores) as (workers, cluster):
        report = run_archive(plan, workers)
        taken = Mapped(report.wall, cluster.peak(), plan.estimate().memory)
    if report.failures:
        raise SystemExit(f"failed: {report.failures[0].why}")
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    memory = f"{taken.peak / 1e6:.0f} of at most {taken.bound / 1e6:.0f} MB"
    print(f"{len(cores)} worker(s): {report.wall:.1f} s ({stages}), {memory}", flush=True)
    return taken


def nothing(_order: SceneOrder, core: Window) -> Window:
    """What a worker does of a tile where only the scheduling is of interest."""
    return core


def milliseconds_per_tile(scene: Path, folder: Path, part: Path, core: int) -> float:
    """Of handing out a tile and taking what comes back, with one worker that has nothing to do."""
    order = planned(scene, folder / "idle", "tcp://").entries[0].order
    tile = next(order.tiling.tiles()).core
    with warm(folder, part, [core]) as (workers, _):
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
    parser.add_argument("--max-memory", default="2GB")
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
        runs: dict[int, list[Mapped]] = {1: [], 2: []}
        for _, turn in zip(range(args.repeats), itertools.cycle([(1, 2), (2, 1)]), strict=False):
            for count in turn:
                runs[count].append(mapped(scene, folder, part, cores[:count]))
        ratios = [one.seconds / two.seconds for one, two in zip(runs[1], runs[2], strict=True)]
        print(f"with at most {args.max_memory} for each:")
        narrow = mapped(scene, folder, part, cores, max_memory=args.max_memory)
    ratio = statistics.median(ratios)
    print(f"two workers are {ratio:.2f} times as fast as one ({', '.join(f'{each:.2f}' for each in ratios)})")
    above = [run for run in (*runs[1], *runs[2], narrow) if run.peak > run.bound]
    if ratio < args.least or repeated >= 0.1 or counted >= 2 or above:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
