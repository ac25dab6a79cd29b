"""From labels to polygons to files: seconds, and how they compare with what everybody would use.

    python benchmarks/vectorize.py [--footprints 500000] [--repeats 3] [--only write] [--side 4096]

`write`: so many footprints of twelve vertices are written as GeoJSON and GeoParquet by geoseg and by geopandas, in
turns, so that other work on the machine is in both; medians, their ratios, and sizes. geopandas' GeoJSON is brought to
longitude and latitude first, as RFC 7946 wants it. Wanted: GeoJSON 5 times as fast, GeoParquet as fast. `parquet`: the
latter alone.

`trace`: a land-cover map of five classes and `--side` pixels is vectorised, exactly and simplified.

`outline`, with `--scene SCENE.tif` (of three bands) or `--labels labels.tif`: polygons of seven classes made of the
scene's brightness (`--side` pixels from its middle, and four times the side, tiled), and of a label map, by geoseg and
by `rasterio.features.shapes` with `shapely.geometry.shape`, in turns, each once before it counts, so that all have the
memory that they need; what memory each takes at most beyond that for the labels; and whether they are the same
polygons. Wanted: 10 times as fast on classes, 3 times on buildings, and no slower for each pixel on the larger map.

Prints CPU time beside wall time; it is what one thread would take.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import rasterio
import rasterio.features
import shapely
from scipy import ndimage
from shapely.geometry import shape

from geoseg.io.geoparquet import write_parquet
from geoseg.io.layers import write_layer
from geoseg.memory import give_back_freed_memory, keep_freed_memory
from geoseg.polygonise import polygonise_whole
from geoseg.polygons import Shaping, trace
from geoseg.raster import NODATA

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

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
        "confidence_min": rng.random(count).round(4),
        "edge_sharpness": rng.random(count).round(4),
        "touches_nodata": False,
        "touches_edge": False,
        "vertices": 12,
        "orientation_deg": (180 * rng.random(count)).round(1),
        "scene": "town",
        "model": "buildings",
    }
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=EPSG)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def write(count: int, repeats: int, folder: Path, names: str = "Geo") -> None:
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
        "GeoParquet, geopandas with bbox": (
            lambda: write_layer(frame, folder / "ours.parquet"),
            lambda: frame.to_parquet(folder / "theirs.parquet", write_covering_bbox=True),
        ),
        "GeoParquet as a run writes it, in the order of the scene": (
            lambda: write_parquet(frame, folder / "ours.parquet"),
            lambda: frame.to_parquet(folder / "theirs.parquet", write_covering_bbox=True),
        ),
        "GeoParquet, geopandas as it is called without options": (
            lambda: write_layer(frame, folder / "ours.parquet"),
            lambda: frame.to_parquet(folder / "theirs.parquet"),
        ),
    }
    print(f"{count} footprints, medians of {repeats} turns: wall (CPU) seconds, MB")
    for name, (ours, theirs) in ways.items():
        if not name.startswith(names):
            continue
        turns = []
        for _ in range(repeats + 1):
            for path in folder.glob("*.*"):  # a file that is replaced takes time to go
                path.unlink()
            turns.append((timed(ours), timed(theirs)))
        turns = turns[1:]  # memory is asked for, and loops are compiled, before it counts
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


SEVEN = 7


def seven_classes(path: Path, side: int) -> NDArray[np.uint8]:
    """(side, side): of the middle of a scene, from its dark to its bright ground, as many pixels of each class."""
    with rasterio.open(path) as dataset:
        first = (dataset.height - side) // 2, (dataset.width - side) // 2
        bands = dataset.read(window=((first[0], first[0] + side), (first[1], first[1] + side)))
    bright = ndimage.uniform_filter(bands.astype(np.float32).sum(axis=0), 5)
    limits = np.quantile(bright, np.arange(1, SEVEN) / SEVEN)
    classes: NDArray[np.uint8] = np.searchsorted(limits, bright).astype(np.uint8)
    return classes


def by_rasterio(labels: NDArray[np.uint8], background: int | None) -> NDArray[np.object_]:
    """What everybody uses."""
    wanted = None if background is None else labels != background
    found = [shape(each) for each, _ in rasterio.features.shapes(labels, mask=wanted)]
    return np.array(found, object)


def same_polygons(one: NDArray[np.object_], other: NDArray[np.object_]) -> bool:
    """Whether two lists are the same polygons, wherever their rings begin and in whatever order they come."""
    first, second = (np.sort(shapely.to_wkb(shapely.normalize(each)).astype(object)) for each in (one, other))
    return bool(np.array_equal(first, second))


def peak_of(work: Callable[[], object]) -> float:
    """Megabytes that the process takes at most while it is at work, more than before; Linux alone tells."""
    give_back_freed_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        return math.nan
    before = _status("VmRSS")
    done = work()
    del done
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def outline(name: str, maps: list[NDArray[np.uint8]], background: int | None, repeats: int) -> None:
    """Of label maps, the first of which rasterio outlines, too; all in turns."""

    def ours(labels: NDArray[np.uint8]) -> NDArray[np.object_]:
        return polygonise_whole(labels, background=background).geometry

    ways: list[Callable[[], NDArray[np.object_]]] = [partial(ours, labels) for labels in maps]
    ways.append(partial(by_rasterio, maps[0], background))
    for way in ways:  # compiled, if it was not yet, and its memory asked for: who comes first is not to pay for it
        way()
    turns = [[timed(way)[1] for way in ways] for _ in range(repeats)]
    *mine, theirs = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
    for labels, way, seconds in zip(maps, ways, mine, strict=False):
        per_pixel = seconds / labels.size * 1e9
        print(
            f"{name}, {labels.shape[0]} x {labels.shape[1]}: {len(way())} polygons, {seconds:.2f} s CPU "
            f"({per_pixel:.1f} ms per megapixel), {peak_of(way):.0f} MB at most",
            flush=True,
        )
    same = "the same polygons" if same_polygons(ways[0](), ways[-1]()) else "OTHER POLYGONS"
    print(
        f"{name}, rasterio and shapely: {theirs:.2f} s, {peak_of(ways[-1]):.0f} MB at most; geoseg is "
        f"{theirs / mine[0]:.1f} times as fast, {same}",
        flush=True,
    )


def outlines(scene: Path | None, labels: Path | None, side: int, repeats: int) -> None:
    if scene is not None:
        classes = seven_classes(scene, side)
        outline("seven classes", [classes, np.tile(classes, (4, 4))], None, repeats)
    if labels is not None:
        with rasterio.open(labels) as dataset:
            buildings = dataset.read(1)
        outline("labels", [np.where(buildings == NODATA, 0, buildings).astype(np.uint8)], 0, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--footprints", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--scene", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--only", choices=("write", "parquet", "trace", "outline"))
    arguments = parser.parse_args()
    keep_freed_memory()  # as the commands do
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only in {None, "outline"}:
            outlines(arguments.scene, arguments.labels, arguments.side, arguments.repeats)
        if arguments.only in {None, "trace"}:
            trace_land_cover(arguments.side, Path(folder))
        if arguments.only in {None, "write", "parquet"}:
            names = "GeoParquet" if arguments.only == "parquet" else "Geo"
            write(arguments.footprints, arguments.repeats, Path(folder), names)


if __name__ == "__main__":
    main()
