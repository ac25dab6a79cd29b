"""Bring the sets of labelled pairs into the form that the job files beside this script take.

    python workflows/prepare_change.py --data DATA --out PREPARED

DATA is the folder that holds `change_buildings/` (pairs of LEVIR-CD, academic use only) and `change_sentinel2/` (pairs
of OSCD; imagery Copernicus, labels CC-BY-NC-SA). The large pairs of buildings are cut into chips of 256 pixels, whose
names begin with that of the pair, so that a job can keep a pair as a whole. Each date of a city becomes one GeoTIFF with
a band for each of its files, on its own grid, and the labels one on that of the earlier date.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from PIL import Image

from geoseg.io.scenes import open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.catalog import Scene

CHIP = 256
CITIES = ("aguasclaras", "bordeaux", "hongkong", "paris")


def prepare_buildings(folder: Path, out: Path) -> None:
    for path in sorted(folder.glob("*/*/*.png")):
        image = np.asarray(Image.open(path))
        target = out / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        if len(image) == CHIP:
            Image.fromarray(image).save(target / path.name)
            continue
        for row in range(0, image.shape[0], CHIP):
            for col in range(0, image.shape[1], CHIP):
                chip = image[row : row + CHIP, col : col + CHIP]
                Image.fromarray(chip).save(target / f"{path.stem}_{row:04d}_{col:04d}.png")


def prepare_city(folder: Path, out: Path) -> None:
    for date in ("t1", "t2"):
        scene = open_scene(folder / date)
        bands = tuple(range(1, len(scene.bands) + 1))
        values, _ = open_source(scene, bands).raw(Window.of_shape(scene.shape))
        write(out / date / f"{folder.name}.tif", values, scene, scene.bands)
    grid = open_scene(folder / "t1" / "B04.tif")
    changed = (np.asarray(Image.open(folder / "change.png"))[None] > 127).astype(np.uint8)
    write(out / "label" / f"{folder.name}.tif", changed, grid, ("changed",))


def write(path: Path, values: NDArray[Any], scene: Scene, names: tuple[str, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    geobox = scene.geobox
    profile = {"crs": str(geobox.crs), "transform": geobox.affine, "count": len(values), "dtype": str(values.dtype)}
    profile |= {"height": values.shape[1], "width": values.shape[2], "compress": "zstd"}
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
