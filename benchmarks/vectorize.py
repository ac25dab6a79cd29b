"""From labels to polygons to files: seconds, and how they compare with what everybody would use.

    python benchmarks/vectorize.py [--footprints 500000] [--repeats 3] [--only write] [--side 4096]

`write`: so many footprints of twelve vertices are written as GeoJSON and GeoParquet by geoseg and by geopandas, in
turns, so that other work on the machine is in both; medians, their ratios, and sizes. geopandas' GeoJSON is brought to
longitude and latitude first, as RFC 7946 wants it. Wanted: GeoJSON 5 times as fast, GeoParquet as fast.

`trace`: a land-cover map of five classes and `--side` pixels is vectorised, exactly and simplified.

Prints CPU time beside wall time; it is what one thread would take.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from scipy import ndimage

from geoseg.io.layers import write_layer
from geoseg.polygons import Shaping, trace

if TYPE_CHECKING:
    from collections.abc import Callable

EPSG = 32645


def footprints(count: int) -> gpd.GeoDataFrame:
    """Blobs of twelve vertices with the columns of a run's footprints."""
    rng = np.random.default_rng(0)
    turn = (np.arange(12) + rng.random((count, 12)) * 0.8) * np.pi / 6
    reach = 5 + 5 * rng.random((count, 12))
    centre = rng.random((count, 2)) * 30_000 + np.array([334_000, 3_057_000])
    xy = centre[:, np.newaxis] + np.stack([np.cos(turn) * reach, np.sin(turn) * reach], axis=-1)
    shapes = shapely.polygons(xy)
    columns = {
        "id": [f"r{i}c{i}" for i in range(count)],
        "class": "building",
        "area_m2": shapely.area(shapes).round(2),
        "perimeter_m": shapely.length(shapes).round(2),
        "confidence": rng.random(count).round(4),
        "touches_nodata": False,
        "scene": "town",
    }
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=EPSG)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def write(count: int, repeats: int, folder: Path) -> None:
    frame = footprints(count)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "GeoJSON": (
            lambda: write_layer(frame, folder / "ours.geojson"),
            lambda: frame.to_crs(4326).to_file(folder / "theirs.geojson", driver="GeoJSON", RFC7946="YES"),
        ),
        "GeoParquet": (
            lambda: write_layer(frame, folder / "ours.parquet"),
            lambda: frame.to_parquet(folder / "theirs.parquet", write_covering_bbox=True, compression="zstd"),
        ),
        "GeoParquet, geopandas without bbox and zstd": (
            lambda: write_layer(frame, folder / "ours.parquet"),
            lambda: frame.to_parquet(folder / "theirs.parquet"),
        ),
    }
    print(f"{count} footprints, medians of {repeats} turns: wall (CPU) seconds, MB")
    for name, (ours, theirs) in ways.items():
        turns = [(timed(ours), timed(theirs)) for _ in range(repeats)]
        wall, cpu = ([statistics.median(turn[side][kind] for turn in turns) for side in (0, 1)] for kind in (0, 1))
        suffix = "geojson" if name == "GeoJSON" else "parquet"
        sizes = [(folder / f"{whose}.{suffix}").stat().st_size / 1e6 for whose in ("ours", "theirs")]
        told = ", ".join(
            f"{whose} {wall[i]:.2f} ({cpu[i]:.2f}) s {sizes[i]:.0f} MB"
            for i, whose in enumerate(("geoseg", "geopandas"))
        )
        print(f"{name}: {told}: {wall[1] / wall[0]:.2f} times as fast, {cpu[1] / cpu[0]:.2f} by CPU time")


def trace_land_cover(side: int, folder: Path) -> None:
    rng = np.random.default_rng(0)
    fields = [ndimage.gaussian_filter(rng.standard_normal((side, side)).astype(np.float32), 6) for _ in range(5)]
    path = folder / "labels.tif"
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8", "tiled": True}
    place = rasterio.Affine(0.3, 0, 334_000, 0, -0.3, 3_057_000)
    with rasterio.open(path, "w", **profile, crs=EPSG, transform=place) as dataset:
        dataset.write(np.argmax(fields, axis=0).astype(np.uint8), 1)
    for name, shaping in {"exact": Shaping(), "simplified, walls shared": Shaping(simplify=0.5)}.items():
        start, begun = time.perf_counter(), time.process_time()
        found = len(trace(path, shaping, background=None).frame)
        wall, cpu = time.perf_counter() - start, time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{side} x {side} pixels, five classes, {name}: {found} polygons, {wall:.1f} s wall, {cpu:.1f} s CPU, "
            f"peak of the process so far {peak:.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--footprints", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--only", choices=("write", "trace"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "write":
            trace_land_cover(arguments.side, Path(folder))
        if arguments.only != "trace":
            write(arguments.footprints, arguments.repeats, Path(folder))


if __name__ == "__main__":
    main()
