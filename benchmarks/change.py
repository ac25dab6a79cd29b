"""What a comparison takes beside two plain segmentations: seconds, and peak memory.

    python benchmarks/change.py SCENE.tif [--side 3072] [--repeats 2] [--limit 1.15] [--product buildings]

Two scenes are cut from the middle of SCENE: one as it is, one brighter, with a part of it replaced. They are mapped by
`geoseg segment`, one after the other, and compared by `geoseg change` into another folder, each command in a process of
its own, in turns. Printed are the smallest seconds of each, their ratio, and peak resident megabytes. Exits with
status 1 if the ratio is above the limit, or if `change` takes more than a quarter more memory than `segment`.
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
from rasterio.windows import Window

MORE = (
    1.25  # times the memory of `segment`: the second scene is mapped by a process that keeps what the first one freed
)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--side", type=int, default=3072, help="rows and columns of both scenes")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1.15)
    parser.add_argument("--product", default="buildings")
    given = parser.parse_args()
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
