"""What reading costs over bare rasterio and zarr, at the same windows.

    python benchmarks/read.py [--side 4096] [--repeats 9] [--limit 1.2]

Writes one picture in several formats, then reads windows of it (patches at random places, and rows of the whole width)
as geoseg does and as rasterio or zarr alone do, by turns in one process, each time with a newly opened file. Where a
file tells what is valid, both ask for it. On another grid the other side is GDAL's `WarpedVRT`, as it is by default:
off by up to an eighth of a pixel, and by another one in each window. Prints the medians of the repeats and their ratio;
exits with status 1 if a ratio is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import rasterio
import rasterio.windows
import xarray as xr
import zarr
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from geoseg.io.scenes import Asked, as_asked, open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RGB = ("red", "green", "blue")
GRIDS: dict[str, dict[str, Any]] = {
    "other pixels, same CRS": {"resolution": 0.29},
    "other CRS": {"crs": "EPSG:3857"},
    "pixels twice as large": {"resolution": 0.6},
    "5 times, other CRS": {"resolution": 1.7, "crs": "EPSG:3857"},
}
PLACE = rasterio.Affine(0.3, 0.0, 334_000.0, 0.0, -0.3, 3_057_000.0)
PATCH = 512


Opened: TypeAlias = "Callable[[], Callable[[Window], None]]"
"""Opens a file; what it gives reads a window."""


class Case(NamedTuple):
    """One format, and how it is read without geoseg."""

    name: str
    scene: Path | dict[str, Path]
    bare: Opened
    grid: dict[str, Any] = {}  # noqa: RUF012  never written to
    """The resolution and CRS that are asked for."""


def picture(side: int) -> NDArray[np.uint8]:
    """Something that compresses like imagery: smooth, with a little noise."""
    rng = np.random.default_rng(1)
    smooth = rng.random((3, -(-side // 64), -(-side // 64))).repeat(64, 1).repeat(64, 2)[:, :side, :side]
    return (smooth * 200 + rng.random((3, side, side)) * 12 + 1).astype(np.uint8)


def place_of(window: Window) -> Any:
    rows, cols = window.shape
    return rasterio.windows.Window(window.col_start, window.row_start, cols, rows)


def by_rasterio(*paths: Path, masks: bool = False) -> Opened:
    """Reads all bands of a file, or the only one of each of several."""

    def opened() -> Callable[[Window], None]:
        datasets = [rasterio.open(path) for path in paths]

        def read(window: Window) -> None:
            for dataset in datasets:
                dataset.read([1, 2, 3] if len(paths) == 1 else 1, window=place_of(window))
                if masks:
                    dataset.read_masks(1, window=place_of(window))

        return read

    return opened


def by_zarr(path: Path) -> Opened:
    def opened() -> Callable[[Window], None]:
        array: Any = zarr.open_array(path / "image", mode="r")
        return lambda window: array[:, *window.slices]

    return opened


def by_warper(path: Path, grid: dict[str, Any]) -> Opened:
    """Reads a file on the grid that geoseg would read it on; larger pixels are means."""
    target = open_scene(path, **grid).geobox
    means = target.resolution.x > 1.5 * PLACE.a
    rows, cols = target.shape
    how = {"crs": target.crs.wkt, "transform": target.affine, "height": rows, "width": cols} if target.crs else {}

    def opened() -> Callable[[Window], None]:
        resampling = Resampling.average if means else Resampling.bilinear
        warped = WarpedVRT(rasterio.open(path), resampling=resampling, **how)

        def read(window: Window) -> None:
            warped.read([1, 2, 3], window=place_of(window))
            warped.read_masks(1, window=place_of(window))

        return read

    return opened


def by_geoseg(scene: Path | dict[str, Path], grid: dict[str, Any]) -> Opened:
    def opened() -> Callable[[Window], None]:
        found, bands = as_asked(open_scene(scene), RGB, Asked(**grid))
        source = open_source(found, bands)

        def read(window: Window) -> None:
            source.read(window)

        return read

    return opened


def write(path: Path, values: NDArray[np.uint8], **profile: Any) -> Path:
    count, rows, cols = values.shape
    grid = {"count": count, "height": rows, "width": cols, "dtype": "uint8", "crs": "EPSG:32645", "transform": PLACE}
    colours = {"photometric": "RGB"} if count == 3 else {}
    with rasterio.open(path, "w", driver="GTiff", **{**grid, **colours, **profile}) as dataset:
        dataset.write(values)
    return path


def write_zarr(path: Path, values: NDArray[np.uint8], version: int) -> Path:
    rows, cols = values.shape[1:]
    centres = {"y": PLACE.f + (np.arange(rows) + 0.5) * PLACE.e, "x": PLACE.c + (np.arange(cols) + 0.5) * PLACE.a}
    attributes = {"proj:code": "EPSG:32645", "long_name": list(RGB)}
    image = xr.DataArray(values, dims=("band", "y", "x"), coords=centres, attrs=attributes, name="image")
    chunks = {"image": {"chunks": (3, PATCH, PATCH)}}
    image.to_dataset().to_zarr(path, zarr_format=version, consolidated=False, encoding=chunks)
    return path


def cases(folder: Path, side: int) -> list[Case]:
    values = picture(side)
    tiles = {"tiled": True, "blockxsize": 256, "blockysize": 256}
    kinds: dict[str, dict[str, Any]] = {
        "tiled": tiles,
        "striped": {"tiled": False, "blockysize": 16},
        "deflate": {**tiles, "compress": "deflate"},
        "zstd": {**tiles, "compress": "zstd"},
        "bands apart": {**tiles, "compress": "deflate", "interleave": "band"},
        "JPEG": {**tiles, "compress": "jpeg", "photometric": "YCBCR"},
    }
    made = []
    for number, (name, profile) in enumerate(kinds.items()):
        path = write(folder / f"{number}.tif", values, **profile)
        made.append(Case(name, path, by_rasterio(path)))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masked = write(folder / "masked.tif", values, **tiles, compress="deflate")
        with rasterio.open(masked, "r+") as dataset:
            dataset.write_mask(values[0] > 9)
    made.append(Case("deflate, internal mask", masked, by_rasterio(masked, masks=True)))
    files = {
        name: write(folder / f"{name}.tif", band[None], **tiles, compress="deflate")
        for name, band in zip(RGB, values, strict=True)
    }
    made.append(Case("a file for each band", files, by_rasterio(*files.values())))
    for version in (2, 3):
        store = write_zarr(folder / f"{version}.zarr", values, version)
        made.append(Case(f"Zarr {version}", store, by_zarr(store)))
    deflated = next(case.scene for case in made if case.name == "deflate")
    assert isinstance(deflated, Path)
    for name, grid in GRIDS.items():
        made.append(Case(name, deflated, by_warper(deflated, grid), grid))
    return made


def windows_of(scene: Path | dict[str, Path], grid: dict[str, Any]) -> list[Window]:
    side = min(open_scene(scene, **grid).shape)
    starts = np.random.default_rng(2).integers(0, side - PATCH, (16, 2)).tolist()
    patches = [Window(row, row + PATCH, col, col + PATCH) for row, col in starts]
    return patches + [Window(row, row + PATCH, 0, side) for row in range(0, side, PATCH)]


def seconds(opened: Opened, windows: list[Window]) -> float:
    read = opened()
    read(Window(0, 1, 0, 1))
    began = time.perf_counter()
    for window in windows:
        read(window)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--limit", type=float, default=1.2)
    args = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        print(f"{'':24}{'bare':>10}{'geoseg':>10}{'ratio':>8}   (ms for all windows)")
        for case in cases(Path(folder), args.side):
            windows = windows_of(case.scene, case.grid)
            sides = [case.bare, by_geoseg(case.scene, case.grid)]
            times = [[seconds(side, windows) for side in sides] for _ in range(args.repeats + 1)][1:]
            bare, ours = (statistics.median(column) for column in zip(*times, strict=True))
            worst = max(worst, ours / bare)
            print(f"{case.name:24}{bare * 1e3:10.0f}{ours * 1e3:10.0f}{ours / bare:8.2f}", flush=True)
    if worst > args.limit:
        sys.exit(f"above {args.limit}: reading costs up to {worst:.2f} times what it does without geoseg")


if __name__ == "__main__":
    main()
