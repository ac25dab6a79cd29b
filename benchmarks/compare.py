"""How long a map takes, beside other tools and beside bare forward passes of the same patches.

    pip install 'geoseg[benchmarks]'
    python benchmarks/compare.py SCENE.tif [--side 4096] [--repeats 3] [--json FILE] [--check]

Cuts a square out of the middle of the scene, with pixels of `--resolution` metres on the ground (so that no tool has to
resample: the models know that size), and takes it from GeoTIFF to a mask in GeoTIFF and polygons in GeoJSON:

* `geoseg`: `geoseg segment`, as a user starts it; its polygons are parted, simplified and measured besides, and it
  writes confidence, GeoParquet and a STAC item, too;
* `monai`, `torchgeo`: see `benchmarks/others.py`; same network as it was trained, same patch and stride, same cores;
* `trained`: only forward passes of the network as it was trained, of as many patches: what no tool around it can beat;
* `best`: only those of the network as the command uses it: the command's own limit.

Every way is a process of its own, the model's loading included, except for the last two, of which the passes alone are
timed. A model's first map on a machine, before which its network is converted and kept, comes before and does not
count. All of them are done in turn, `--repeats` times, first forwards, then backwards. Prints the medians of wall time,
the shortest and the longest, CPU time of all threads, peak resident memory, and the ratios to the command's time. Where
other work is on the machine, wall times of processes are longer than they would be alone, and so are ratios off;
compare the CPU time then.

Then, in the same run, what the command's stages take alone (`benchmarks/stages.py`). For memory against the scene's
area, beyond the peaks here, see `benchmarks/memory.py`; for each way of a forward pass beside the rate of a matrix
product, `benchmarks/forward.py`.

`--check` exits with status 1 if a ratio is worse than its limit. Limits are ratios, never seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import rasterio
from rasterio.enums import Resampling
from rasterio.windows import Window

from geoseg.catalog import find_model
from geoseg.io.scenes import open_scene
from geoseg.models.backends import USUAL
from geoseg.tiling import patch_starts

HERE = Path(__file__).parent
MODELS = ("buildings-deeplabv3plus", "buildings-segformer")
OURS, OTHERS, BARE = "geoseg", ("monai", "torchgeo"), ("trained", "best")


@dataclass
class Taken:
    """What a way took, one number for each repeat."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def told(self) -> str:
        wall, cpu = statistics.median(self.wall), statistics.median(self.cpu)
        return (
            f"{wall:6.1f} s ({min(self.wall):.1f} to {max(self.wall):.1f}), {cpu:6.1f} s of CPU, "
            f"{max(self.megabytes):5.0f} MB"
        )


def crop(scene: Path, side: int, resolution: float, out: Path) -> Path:
    """A square of `side` pixels from the middle of a scene, brought to a resolution: a tiled GeoTIFF."""
    down, along = open_scene(scene).ground_resolution
    path = out / "scene.tif"
    with rasterio.open(scene) as source:
        rows, cols = side * resolution / down, side * resolution / along
        if rows > source.height or cols > source.width:
            most = int(min(source.height * down, source.width * along) / resolution)
            raise SystemExit(f"{scene}: has {most} pixels of {resolution} m at most; choose a smaller --side")
        window = Window((source.width - cols) / 2, (source.height - rows) / 2, cols, rows)
        values = source.read([1, 2, 3], window=window, out_shape=(3, side, side), resampling=Resampling.average)
        place = source.window_transform(window) @ rasterio.Affine.scale(cols / side, rows / side)
        layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "photometric": "RGB"}
        grid = {"height": side, "width": side, "count": 3, "dtype": "uint8", "crs": source.crs, "transform": place}
    with rasterio.open(path, "w", driver="GTiff", **grid, **layout) as file:
        file.write(values)
    return path


def take(way: str, scene: Path, model: str, out: Path, passes: int, backend: str, taken: Taken) -> None:
    """Do it once, in a process of its own."""
    if way == OURS:
        command = ["-m", "geoseg", "segment", str(scene), find_model(None, model).product, "--model", model]
        command += ["--out", str(out), "--overwrite", "--device", "cpu", "--backend", backend]
    else:
        command = [str(HERE / "others.py"), way, str(scene), model, "--out", str(out), "--passes", str(passes)]
        command += ["--backend", backend]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as told:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], stdout=told, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
        if status:
            raise SystemExit(f"{way} on {scene} failed with status {os.waitstatus_to_exitcode(status)}")
        if way in BARE:
            told.seek(0)
            alone = json.loads(told.read().splitlines()[-1])
            wall, cpu = alone["wall"], alone["cpu"]
    taken.wall.append(wall)
    taken.cpu.append(cpu)
    taken.megabytes.append(usage.ru_maxrss / 1024)


def agreement(first: Path, second: Path) -> float:
    """Share of the pixels of two label rasters that are the same."""
    with rasterio.open(first) as one, rasterio.open(second) as other:
        return float((one.read(1) == other.read(1)).mean())


def measure(model: str, scene: Path, folder: Path, repeats: int, backend: str) -> dict[str, Taken]:
    spec = find_model(None, model)
    with rasterio.open(scene) as source:
        rows, cols = source.shape
    passes = len(patch_starts(rows, spec.patch, spec.stride)) * len(patch_starts(cols, spec.patch, spec.stride))
    print(f"\n{model}: {rows * cols / 1e6:.1f} megapixels, {passes} patches of {spec.patch}, one every {spec.stride}")
    ways = [OURS, *(way for way in OTHERS if find_spec(way) is not None), *BARE]
    for way in set(OTHERS) - set(ways):
        print(f"   {way}: left out, not installed (pip install 'geoseg[benchmarks]')")
    taken = {way: Taken() for way in ways}
    (folder / OURS).mkdir(exist_ok=True)
    take(OURS, scene, model, folder / OURS, passes, backend, Taken())  # the network is kept from now on
    for repeat in range(repeats):
        for way in ways[:: -1 if repeat % 2 else 1]:
            out = folder / way
            out.mkdir(exist_ok=True)
            take(way, scene, model, out, passes, backend, taken[way])
            print(f"   {repeat + 1}: {way} {taken[way].wall[-1]:.1f} s", file=sys.stderr, flush=True)
    for way, each in taken.items():
        print(f"   {way:9} {each.told()}; {ratio(taken, way)}")
    for way in ways:
        if way in OTHERS:
            same = agreement(folder / OURS / scene.stem / "labels.tif", folder / way / "labels.tif")
            print(f"   {way}: {same:.2%} of labels are those of geoseg")
    return taken


def ratio(taken: dict[str, Taken], way: str) -> str:
    wall, cpu = ratios(taken, way)
    return f"{wall:.2f} times geoseg's wall time, {cpu:.2f} times its CPU time"


def ratios(taken: dict[str, Taken], way: str) -> tuple[float, float]:
    """How many times the command's median wall time, and CPU time."""
    ours, other = taken[OURS], taken[way]
    return (
        statistics.median(other.wall) / statistics.median(ours.wall),
        statistics.median(other.cpu) / statistics.median(ours.cpu),
    )


def failures(model: str, taken: dict[str, Taken], times: float, above: float) -> list[str]:
    """What is worse than its limit."""
    walls = {way: ratios(taken, way)[0] for way in OTHERS if way in taken}
    found = [
        f"{model}: {way} takes {wall:.2f} times geoseg's time, wanted at least {times:g}"
        for way, wall in walls.items()
        if wall < times
    ]
    if (wall := 1 / ratios(taken, "best")[0]) > above:
        found.append(f"{model}: geoseg takes {wall:.2f} times the bare forward passes, wanted at most {above:g}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--side", type=int, default=4096, help="pixels of the square")
    parser.add_argument("--resolution", type=float, default=0.16, help="metres on the ground")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backend", default=USUAL, help="who does the forward passes of geoseg")
    parser.add_argument("--no-stages", action="store_true", help="leave out what stages take alone")
    parser.add_argument("--json", type=Path, help="file to write all times to")
    parser.add_argument("--check", action="store_true", help="status 1 if a ratio is worse than its limit")
    parser.add_argument("--times-faster", type=float, default=3, help="at least, than each other tool, end to end")
    parser.add_argument("--above-best", type=float, default=2, help="at most, end to end over the best bare passes")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *OTHERS) if find_spec(name) is not None)
    print(f"{cores} cores of {processor()}; {versions}")
    results, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        scene = crop(args.scene, args.side, args.resolution, Path(folder))
        for model in args.models:
            taken = measure(model, scene, Path(folder), args.repeats, args.backend)
            results[model] = {way: vars(each) for way, each in taken.items()}
            wrong += failures(model, taken, args.times_faster, args.above_best)
        if not args.no_stages:
            labels = Path(folder) / OURS / scene.stem / "labels.tif"
            for model in args.models:
                command = [str(HERE / "stages.py"), str(scene), "--model", model, "--labels", str(labels)]
                subprocess.run([sys.executable, *command], check=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for each in wrong:
        print(each)
    if args.check and wrong:
        raise SystemExit(1)


def processor() -> str:
    """What Linux calls this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
