"""How soon something is there: `geoseg --help`, and the first tile of a scene.

    python benchmarks/start.py SCENE.tif [--model NAME] [--tile 1024] [--repeats 5]

Each in a process of its own, in turn, from the moment in which it is started: `--help` until it has ended, `segment`
until the ledger has the first tile of `--tile` pixels, whereupon it is stopped. One round before those that count fills
the caches, the disk's and geoseg's own, in which the network is kept. Prints medians, the shortest and the longest.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from geoseg.catalog import find_model

if TYPE_CHECKING:
    from collections.abc import Callable

GEOSEG = (sys.executable, "-m", "geoseg")
PATIENCE = 120.0
"""Seconds for a first tile."""


def help_is_there() -> float:
    """Seconds of `geoseg --help`."""
    began = time.perf_counter()
    subprocess.run([*GEOSEG, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_tile_is_there(scene: Path, model: str, tile: int) -> float:
    """Seconds until the ledger has the first tile. Raises `SystemExit` if the command ends before."""
    with tempfile.TemporaryDirectory() as out:
        ledger = Path(out) / scene.stem / "ledger.jsonl"
        product = find_model(None, model).product
        command = [*GEOSEG, "segment", str(scene), product, "--model", model, "--tile", str(tile), "--out", out]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
            try:
                while not (ledger.exists() and '"tile"' in ledger.read_text(encoding="utf-8")):
                    if running.poll() is not None or time.perf_counter() - began > PATIENCE:
                        raise SystemExit(f"no tile after {time.perf_counter() - began:.0f} s: {' '.join(command)}")
                    time.sleep(0.005)
                return time.perf_counter() - began
            finally:
                running.terminate()
                running.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--model", default="buildings-deeplabv3plus")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    ways: dict[str, Callable[[], float]] = {
        "geoseg --help": help_is_there,
        "first tile": partial(first_tile_is_there, args.scene, args.model, args.tile),
    }
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            seconds[name].append(way())
    for name, each in seconds.items():
        print(f"{name}: {statistics.median(each):.2f} s ({min(each):.2f} to {max(each):.2f})")


if __name__ == "__main__":
    main()
