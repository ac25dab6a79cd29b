"""What a comparison takes beside two plain segmentations: seconds, and peak memory.

    python benchmarks/change.py SCENE.tif [--side 3072] [--repeats 2] [--limit 1.15] [--product buildings]
    python benchmarks/change.py SCENE.tif --growth [--side 3072] [--growth-mb 150] [--product buildings]

Two scenes are cut from the middle of SCENE: one as it is, one brighter, with a part of it replaced. They are mapped by
`geoseg segment`, one after the other, and compared by `geoseg change` into another folder, each command in a process of
its own, in turns. Printed are the smallest seconds of each, their ratio, and peak resident megabytes. Exits with
status 1 if the ratio is above the limit, or if `change` takes 1.15 times the memory of `segment`.

With --growth the same pair is compared, and a pair of four times the area (virtual mosaics of it, so that nothing is
copied): once with the mapping, once more when the maps are there. Printed are the peaks of each. Exits with status 1 if
one of the larger pair is more than the growth above that of the smaller one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from memory import mosaic
from rasterio.windows import Window

MORE = 1.15  # times the memory of `segment`: what the first scene has left is given back before the second is mapped
MAPPED = "with the mapping", "of maps that are there"


def two_dates(scene: Path, side: int, folder: Path) -> tuple[Path, Path]:
    """A part of a scene, and the same at another date."""
    with rasterio.open(scene) as source:
        rows, cols = (min(side, length) for length in source.shape)
        place = Window((source.width - cols) // 2, (source.height - rows) // 2, cols, rows)
        before = source.read([1, 2, 3], window=place)
        profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "width": cols, "height": rows, "crs": source.crs}
        profile |= {"transform": source.window_transform(place), "tiled": True, "compress": "deflate"}
    after = np.clip(before.astype(np.int16) + 8, 0, 255).astype(np.uint8)
    third = rows // 3, cols // 3
    after[:, third[0] : 2 * third[0], third[1] : 2 * third[1]] = after[:, : third[0], : third[1]]
    paths = folder / "then.tif", folder / "now.tif"
    for path, values in zip(paths, (before, after), strict=True):
        with rasterio.open(path, "w", **profile) as target:
            target.write(values)
    return paths


def taken(*arguments: str) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a command."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "geoseg", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"geoseg {arguments[0]} failed with status {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def peaks(then: Path, now: Path, product: str, out: Path) -> list[float]:
    """Peak resident megabytes of a comparison with all that comes before it, and of the comparison alone."""
    found = []
    for _ in MAPPED:
        seconds, memory = taken("change", str(then), str(now), product, "--out", str(out))
        found.append(memory)
        print(f"  {memory:6.0f} MB in {seconds:.1f} s", flush=True)
        shutil.rmtree(out / f"{then.stem}--{now.stem}")
    return found


def check_growth(scene: Path, side: int, product: str, limit: float) -> None:
    """Compare a pair, and one of four times the area. Exits with status 1 if that takes more memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pair = two_dates(scene, side, folder)
        larger = folder / "then-large.vrt", folder / "now-large.vrt"
        for one, path in zip(pair, larger, strict=True):
            mosaic(one, path)
        found = []
        for what, (then, now) in (("one pair", pair), ("four times the area", larger)):
            print(what, flush=True)
            found.append(peaks(then, now, product, folder / "maps"))
    more = [second - first for first, second in zip(*found, strict=True)]
    for what, growth in zip(MAPPED, more, strict=True):
        print(f"{what}: {growth:+.0f} MB")
    if max(more) > limit:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--side", type=int, default=3072, help="rows and columns of both scenes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1.15)
    parser.add_argument("--product", default="buildings")
    parser.add_argument("--growth", action="store_true", help="memory against the area, and nothing else")
    parser.add_argument("--growth-mb", type=float, default=150)
    given = parser.parse_args()
    if given.growth:
        check_growth(given.scene, given.side, given.product, given.growth_mb)
        return
    plain, compared = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        then, now = two_dates(given.scene, given.side, folder)
        for _ in range(given.repeats):
            each = [taken("segment", str(path), given.product, "--out", str(folder / "plain")) for path in (then, now)]
            plain.append((sum(seconds for seconds, _ in each), max(memory for _, memory in each)))
            compared.append(taken("change", str(then), str(now), given.product, "--out", str(folder / "compared")))
            for name in ("plain", "compared"):
                shutil.rmtree(folder / name)
    (seconds, memory), (all_seconds, all_memory) = (
        (min(each[0] for each in runs), max(each[1] for each in runs)) for runs in (plain, compared)
    )
    print(f"two segmentations {seconds:6.1f} s, {memory:5.0f} MB")
    print(f"change            {all_seconds:6.1f} s, {all_memory:5.0f} MB")
    print(f"ratio             {all_seconds / seconds:6.3f} of time, {all_memory / memory:.3f} of memory")
    if all_seconds > given.limit * seconds or all_memory > MORE * memory:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
