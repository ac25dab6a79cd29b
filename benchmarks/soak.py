"""An archive under ill treatment: the same results, nothing done twice but what was killed, and flat memory.

    python benchmarks/soak.py SCENE.tif [--scenes 50] [--kills 20] [--seed 1]

Cuts the scene into an archive of small scenes that overlap by a quarter. First they are mapped by two workers that
nobody disturbs: resident memory of each worker after every scene, its slope by least squares, its peak against the
plan's bound. The slope of the second half is what counts: in the first half caches fill, and what the allocator keeps
for the next tile comes up to what the hungriest tile needs; the slope over all scenes is printed beside it.

Then once more into another folder, while at random moments a worker, the client (`geoseg run`) or the scheduler is
killed with SIGKILL, or the client is interrupted with SIGINT; what was killed is started again, and `geoseg run` again
goes on. Compares all files of all scenes byte by byte with the undisturbed run, and counts in the ledgers the rows of
chunks that were entered more than once. At last `geoseg verify` has to find nothing wrong.

Exits with status 1 if a byte differs, `verify` finds something, memory exceeds the plan's bound, or it grows by more
than `--growth-mb` per scene in the second half.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import rasterio
import rasterio.windows
import yaml
from workers import Cluster

from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.cluster import crew, recipe_of
from geoseg.io.store import STORE, entries_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SIDE, STEP = 1280, 960  # rows and columns of a scene of the archive, and from one to the next
WORKERS = 2
RESULTS = ("labels.tif", "confidence.tif", "footprints.geojson", "footprints.parquet")


def cut(scene: Path, folder: Path, count: int) -> None:
    """An archive of so many parts of a scene, from its middle outwards."""
    with rasterio.open(scene) as source:
        places = [(r, c) for r in range(0, source.height - SIDE, STEP) for c in range(0, source.width - SIDE, STEP)]
        middle = source.height / 2, source.width / 2
        places.sort(key=lambda place: max(abs(place[0] - middle[0]), abs(place[1] - middle[1])))
        if len(places) < count:
            raise SystemExit(f"{scene} has room for {len(places)} scenes only")
        for row, col in places[:count]:
            window = rasterio.windows.Window(col, row, SIDE, SIDE)
            profile = source.profile | {"width": SIDE, "height": SIDE, "transform": source.window_transform(window)}
            with rasterio.open(folder / f"part-{row:05}-{col:05}.tif", "w", **profile) as target:
                target.write(source.read(window=window))


@dataclass(frozen=True)
class Memory:
    """Of the workers of a run that nobody disturbed."""

    slope: float
    """Megabytes per scene that a worker grows by, in the second half of the scenes; of the worker that grows most."""
    slope_of_all: float
    """The same over all scenes."""
    peak: int
    """Bytes."""
    bound: int
    """What the plan said, in bytes."""

    def __str__(self) -> str:
        """In words."""
        grows = f"{self.slope:+.2f} MB per scene in the second half ({self.slope_of_all:+.2f} over all)"
        return f"memory of a worker: {grows}, peak {self.peak / 1e6:.0f} MB, plan {self.bound / 1e6:.0f} MB"


def steepest(megabytes: NDArray[np.float64]) -> float:
    """By least squares, of (scene, worker): the largest of the workers' slopes."""
    return float(np.polyfit(np.arange(len(megabytes)), megabytes, 1)[0].max())


def undisturbed(job: RunJob, data: Path, out: Path, cluster: Cluster) -> Memory:
    """Map the archive; what it took of memory."""
    plan = plan_archive(job, data, out)
    processes = [psutil.Process(worker.pid) for worker in cluster.workers]
    resident: list[list[int]] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "scene done":
            resident.append([process.memory_info().rss for process in processes])

    with crew(recipe_of(cluster.address)) as workers:
        while workers.threads < len(processes):
            time.sleep(0.5)
        report = run_archive(plan, workers, tell=tell)
    if report.failures:
        raise SystemExit(f"failed: {report.failures[0].why}")
    print(f"undisturbed: {report.done} scenes in {report.wall:.0f} s, {report.footprints} footprints", flush=True)
    megabytes = np.array(resident) / 1e6
    slope = steepest(megabytes[len(megabytes) // 2 :])
    return Memory(slope, steepest(megabytes), cluster.peak(), plan.estimate().memory)


def command(job: Path, out: Path, cluster: Cluster) -> subprocess.Popen[bytes]:
    """`geoseg run` in a process of its own."""
    line = [sys.executable, "-m", "geoseg", "run", str(job), "--out", str(out), "--cluster", cluster.address]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


VICTIMS = ("worker", "worker", "client", "client, by SIGINT", "scheduler")


def disturbed(job: Path, out: Path, cluster: Cluster, kills: int, chance: random.Random) -> Counter[str]:
    """Map the archive although somebody kills; what was killed how often."""
    victims: Counter[str] = Counter()
    client = command(job, out, cluster)
    while sum(victims.values()) < kills:
        until = time.monotonic() + chance.uniform(1, 8)
        while time.monotonic() < until and client.poll() is None:
            time.sleep(0.05)
        if client.poll() is not None:
            break  # done before all kills, or for a reason that nobody here has given
        victim = chance.choice(VICTIMS)
        victims[victim] += 1
        if strike(victim, client, cluster, chance):
            client.wait()
            client = command(job, out, cluster)
    _, said = client.communicate()
    if client.returncode:
        raise SystemExit(f"the run ended with status {client.returncode}: {said.decode()}")
    return victims


def strike(victim: str, client: subprocess.Popen[bytes], cluster: Cluster, chance: random.Random) -> bool:
    """Kill something, and start it again; whether the client is lost with it."""
    if victim == "worker":
        cluster.kill(cluster.workers.pop(chance.randrange(len(cluster.workers))))
        cluster.add()
        return False
    if victim == "scheduler":
        cluster.restart()
        for _ in range(WORKERS):
            cluster.add()
    else:
        client.send_signal(signal.SIGINT if "SIGINT" in victim else signal.SIGKILL)
    return True


def files_of(out: Path) -> Iterator[tuple[str, bytes]]:
    """All results of an archive that must not depend on how a run went."""
    for folder in sorted(path.parent for path in out.glob("*/item.json")):
        chunks = sorted(path for path in (folder / STORE).rglob("*") if path.is_file())
        for path in [*(folder / name for name in RESULTS), *chunks]:
            yield str(path.relative_to(out)), path.read_bytes()


def again(out: Path) -> tuple[int, int]:
    """How many rows of chunks were entered in the ledgers, and how many of them more than once."""
    entered = Counter(
        (folder.name, *entry["window"]) for folder in out.iterdir() for entry in entries_of(folder) if "window" in entry
    )
    return len(entered), sum(count - 1 for count in entered.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth-mb", type=float, default=1.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        cut(args.scene, data, args.scenes)
        values = {"product": "buildings", "scenes": {"files": ["*.tif"]}, "tile": 1024, "cluster": "tcp://"}
        job = RunJob.model_validate(values)
        (data / "job.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        with Cluster(folder / "dask") as cluster:
            for _ in range(WORKERS):
                cluster.add()
            memory = undisturbed(job, data, folder / "calm", cluster)
            print(memory, flush=True)
            began = time.monotonic()
            victims = disturbed(data / "job.yaml", folder / "wild", cluster, args.kills, random.Random(args.seed))
        what = ", ".join(f"{name} {count}" for name, count in sorted(victims.items()))
        print(f"disturbed: {time.monotonic() - began:.0f} s; killed: {what}")
        calm, wild = dict(files_of(folder / "calm")), dict(files_of(folder / "wild"))
        differ = sorted(key for key in calm.keys() | wild.keys() if calm.get(key) != wild.get(key))
        print(f"{len(calm)} files, {len(differ)} differ{': ' if differ else ''}{', '.join(differ[:5])}")
        rows, twice = again(folder / "wild")
        print(f"{rows} rows of chunks, {twice} entered again")
        verified = subprocess.run([sys.executable, "-m", "geoseg", "verify", str(folder / "wild")], check=False)
    if differ or verified.returncode or memory.peak > memory.bound or memory.slope > args.growth_mb:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
