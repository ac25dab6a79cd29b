"""How fast the live map of `geoseg.explore` answers with half a million footprints.

    python benchmarks/live_map.py DATA [--folder OUT]

Repeats the 939 drawn buildings of Banepa (DATA/banepa) beside each other until they are as many as asked for, with a
label map of 2 m below them, and times what a browser asks for: the first look at all of it, looks while moving from
far, at a middle distance and from near, and a click; the median of nine each, in milliseconds. With --folder the result
is kept, to be looked at in JupyterLab.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
from rasterio.features import rasterize

from geoseg.io.geoparquet import write_parquet
from geoseg.view.atlas import Atlas
from geoseg.view.live import answer

if TYPE_CHECKING:
    from collections.abc import Callable

ACROSS = 27
PIXEL = 2.0
SCREEN = (1000, 560)


def repeated(data: Path, count: int) -> gpd.GeoDataFrame:
    """The drawn buildings, beside and below each other, with a confidence by chance."""
    drawn = gpd.read_file(data / "banepa" / "footprints_train.geojson").geometry
    shapes = drawn.to_numpy()
    west, south, east, north = drawn.total_bounds
    copies = -(-count // len(shapes))
    steps = [((n % ACROSS) * (east - west + 5), -(n // ACROSS) * (north - south + 5)) for n in range(copies)]
    every = np.concatenate([shapely.transform(shapes, lambda xy, s=step: xy + s) for step in steps])[:count]
    rng = np.random.default_rng(0)
    told = {"id": [f"r{n}c0" for n in range(count)], "class": "building", "area_m2": shapely.area(every)}
    return gpd.GeoDataFrame(told | {"confidence": rng.uniform(0.5, 1, count)}, geometry=every, crs=drawn.crs)


def write(frame: gpd.GeoDataFrame, folder: Path) -> Path:
    """A folder of results, as far as a map needs it."""
    west, _, _, north = frame.total_bounds
    rows, cols = (int(np.ptp(frame.total_bounds[[k, k + 2]]) / PIXEL) + 1 for k in (1, 0))
    transform = rasterio.transform.from_origin(west, north, PIXEL, PIXEL)
    labels = rasterize(frame.geometry.to_numpy(), (rows, cols), transform=transform, dtype="uint8")
    folder.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "COG", "count": 1, "dtype": "uint8", "crs": frame.crs, "compress": "deflate", "nodata": 255}
    for name, values in (("labels.tif", labels), ("confidence.tif", np.full_like(labels, 200))):
        with rasterio.open(folder / name, "w", height=rows, width=cols, transform=transform, **profile) as made:
            made.write(values, 1)
    write_parquet(frame, folder / "footprints.parquet", sort=False)
    classes = [{"value": 0, "name": "background"}, {"value": 1, "name": "building", "color_hint": "E4572E"}]
    properties = {"geoseg:counts": {"footprints": len(frame)}}
    item = {"id": folder.name, "properties": properties, "assets": {"labels": {"classification:classes": classes}}}
    (folder / "item.json").write_text(json.dumps(item), encoding="utf-8")
    return folder


def looks(atlas: Atlas, step: float) -> list[dict[str, Any]]:
    """Nine looks at different places, pixels of the grid for one of the screen being given."""
    rows, cols = atlas.shape
    places = np.random.default_rng(1).uniform(0.1, 0.8, (9, 2)) * (cols, rows)
    return [{"ask": "look", "left": float(x), "top": float(y), **screen(step)} for x, y in places]


def screen(step: float) -> dict[str, Any]:
    """What else a browser tells."""
    layers = ["scene", "labels", "footprints"]
    return {"step": step, "width": SCREEN[0], "height": SCREEN[1], "layers": layers, "column": "confidence"}


def timed(does: Callable[[], Any]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    does()
    return (time.perf_counter() - began) * 1000


def median(atlas: Atlas, asked: list[dict[str, Any]]) -> str:
    """Of what was asked for; and the slowest."""
    times = [timed(partial(answer, atlas, each)) for each in asked]
    return f"{statistics.median(times):.0f} ms, at most {max(times):.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=500_000)
    parser.add_argument("--folder", type=Path, default=None)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp()) / "many"
    write(repeated(given.data, given.count), folder)
    began = time.perf_counter()
    atlas = Atlas(folder)
    print(f"{len(atlas.table):,} footprints, {(folder / 'footprints.parquet').stat().st_size / 1e6:.0f} MB")
    print(f"opened in {time.perf_counter() - began:.1f} s")
    fit = max(side / size for side, size in zip(atlas.shape[::-1], SCREEN, strict=True))
    first = {"ask": "look", "left": 0.0, "top": 0.0, **screen(fit)}
    print(f"first look at all of it: {timed(lambda: answer(atlas, first)):.0f} ms")
    for name, step in (
        ("all of it", fit),
        ("a quarter", fit / 2),
        ("a 64th", fit / 8),
        ("0.5 m", 0.25),
        ("0.2 m", 0.1),
    ):
        print(f"{name} in view: {median(atlas, looks(atlas, step))}")
    clicks = [{"ask": "at", "x": each["left"], "y": each["top"], "slack": 5.0} for each in looks(atlas, 1)]
    print(f"a click: {median(atlas, clicks)}")
    print(f"the next least confident: {median(atlas, [{'ask': 'place', 'place': n} for n in range(9)])}")


if __name__ == "__main__":
    main()
