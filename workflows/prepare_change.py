"""Bring the sets of labelled pairs into the form that the job files beside this script take.

    python workflows/prepare_change.py --data DATA --out PREPARED

DATA is the folder that holds `change_buildings/` (pairs of LEVIR-CD, academic use only) and `change_sentinel2/` (pairs
of OSCD; imagery Copernicus, labels CC-BY-NC-SA).

The large pairs of buildings are cut into chips of 256 pixels, whose names begin with that of the pair, so that a job
can keep a pair as a whole; `pairs/` has all of them whole, as GeoTIFFs of half a metre in a place that is made up. Each
date of a city becomes one GeoTIFF with a band for each of its files, on a grid of 10 m, for the pixels of the set are
half as high again as wide. The labels are brought to it by nearest, and are in `truth/` as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject

from geoseg.io.grids import target_grid
from geoseg.io.scenes import open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CHIP = 256
CITIES = {"aguasclaras": 32722, "bordeaux": 32630, "hongkong": 32650, "paris": 32631}
PLACE = GeoBox((1, 1), from_origin(600_000, 3_300_000, 0.5, 0.5), "EPSG:32614")
DATES = {"A": "before", "B": "after", "label": "label"}


def prepare_buildings(folder: Path, out: Path) -> None:
    for path in sorted(folder.glob("*/*/*.png")):
        image, kind = np.asarray(Image.open(path)), path.parent.name
        bands = image[None] > 127 if kind == "label" else image.transpose(2, 0, 1)
        whole = out / "pairs" / kind / f"{path.stem}-{DATES[kind]}.tif"
        write(whole, bands.astype(np.uint8), PLACE, ("red", "green", "blue")[: len(bands)])
        for name, chip in chips(path.stem, image):
            target = out / kind / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chip).save(target)


def chips(name: str, image: NDArray[np.uint8]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    if len(image) == CHIP:
        yield name, image
        return
    for row in range(0, image.shape[0], CHIP):
        for col in range(0, image.shape[1], CHIP):
            yield f"{name}_{row:04d}_{col:04d}", image[row : row + CHIP, col : col + CHIP]


def prepare_city(folder: Path, out: Path) -> None:
    crs = f"EPSG:{CITIES[folder.name]}"
    for date in ("t1", "t2"):
        scene = open_scene(folder / date)
        bands = tuple(range(1, len(scene.bands) + 1))
        values, _ = open_source(scene, bands).raw(Window.of_shape(scene.shape))
        grid = target_grid([scene], 10, CRS(crs))
        write(out / date / f"{folder.name}-{date}.tif", warped(values, scene.geobox, grid, 0), grid, scene.bands, 0)
    own = open_scene(folder / "t1" / "B04.tif").geobox
    changed = (np.asarray(Image.open(folder / "change.png"))[None] > 127).astype(np.uint8)
    write(out / "truth" / f"{folder.name}.tif", changed, own, ("changed",))
    grid = target_grid([open_scene(folder / "t1" / "B04.tif")], 10, CRS(crs))
    write(out / "label" / f"{folder.name}-t1.tif", warped(changed, own, grid, 255), grid, ("changed",), 255)


def warped(values: NDArray[Any], own: GeoBox, grid: GeoBox, nodata: int) -> NDArray[Any]:
    made = np.full((len(values), *grid.shape), nodata, values.dtype)
    places = {"src_transform": own.affine, "src_crs": str(own.crs), "dst_transform": grid.affine}
    how = Resampling.nearest if values.dtype == np.uint8 else Resampling.bilinear
    reproject(values, made, **places, dst_crs=str(grid.crs), resampling=how, dst_nodata=nodata)
    return made


def write(path: Path, values: NDArray[Any], grid: GeoBox, names: tuple[str, ...], nodata: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"crs": str(grid.crs), "transform": grid.affine, "count": len(values), "dtype": str(values.dtype)}
    profile |= {"height": values.shape[1], "width": values.shape[2], "compress": "zstd", "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", **profile) as target:
        target.write(values)
        target.descriptions = names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    prepare_buildings(args.data / "change_buildings", args.out / "change_buildings")
    for city in CITIES:
        prepare_city(args.data / "change_sentinel2" / city, args.out / "change_sentinel2")


if __name__ == "__main__":
    main()
