"""Bring the building data sets into the form that the job files beside this script take.

    python workflows/prepare_buildings.py --data DATA --out PREPARED [--outlined RESULT]

DATA is the folder that holds `banepa/` and `buildings_oam/` (OpenAerialMap imagery, CC-BY-4.0; OpenStreetMap
footprints, ODbL), and `landcover_aerial/` (small aerial images with label images). The map tiles of `buildings_oam/`
are put together again: one GeoTIFF for each contiguous group of the finest tiles, whose coarser copies show the same
ground and are left out. Beside them go the footprints, the area in which they are complete, and for Banepa what is kept
for validation: the eastern third of its labelled part. The aerial images are parted by the scene that they were cut
from.

RESULT is the folder that `geoseg segment DATA/banepa/scene.tif buildings` writes. Its footprints become labels for the
rest of that scene, which nobody has labelled: from them a network that starts from nothing learns what a trained one
knows already (Hinton et al. 2015, "Distilling the knowledge in a neural network", with hard labels).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from scipy import ndimage

TILE = 256
FINEST = 21  # zoom
SCENE_NAME = 10  # characters
KEPT_FROM_COLUMN, MARGIN = 2048, 64  # of banepa/labelled_train.tif; the margin belongs to neither side


def mosaic(folder: Path, tiles: pd.DataFrame, path: Path) -> None:
    """One group of tiles as a GeoTIFF with an alpha band: what no tile covers is not valid."""
    x0, y0 = tiles.x.min(), tiles.y.min()
    shape = ((tiles.y.max() - y0 + 1) * TILE, (tiles.x.max() - x0 + 1) * TILE)
    image = np.zeros((4, *shape), np.uint8)
    for tile in tiles.itertuples():
        row, col = (int(tile.y) - y0) * TILE, (int(tile.x) - x0) * TILE
        with rasterio.open(folder / "images" / f"{tile.tile}.jpg") as source:
            values = source.read()
        image[:3, row : row + TILE, col : col + TILE] = values
        image[3, row : row + TILE, col : col + TILE] = 255 * (values > 8).any(0)  # black: beyond the flight
    pixel = (tiles.xmax_3857 - tiles.xmin_3857).iloc[0] / TILE
    grid = {"crs": "EPSG:3857", "transform": from_origin(tiles.xmin_3857.min(), tiles.ymax_3857.max(), pixel, pixel)}
    grid |= {"count": 4, "height": shape[0], "width": shape[1], "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", tiled=True, compress="zstd", photometric="RGB", **grid) as target:
        target.write(image)
        target.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]


def prepare_tiles(folder: Path, out: Path) -> None:
    tiles = pd.read_csv(folder / "tiles.csv")
    tiles = tiles[tiles.z == FINEST]
    rows, cols = tiles.y - tiles.y.min(), tiles.x - tiles.x.min()
    occupied = np.zeros((rows.max() + 1, cols.max() + 1), bool)
    occupied[rows, cols] = True
    groups, _ = ndimage.label(occupied, np.ones((3, 3)))
    out.mkdir(parents=True, exist_ok=True)
    for number, group in tiles.groupby(groups[rows, cols]):
        mosaic(folder, group, out / f"{folder.name}_{number:02d}.tif")
    squares = shapely.box(tiles.xmin_3857, tiles.ymin_3857, tiles.xmax_3857, tiles.ymax_3857)
    gpd.GeoSeries([shapely.union_all(squares)], crs=3857).to_file(out / "area.geojson")
    gpd.read_file(folder / "footprints.geojson").to_crs(3857)[["geometry"]].to_file(out / "footprints.geojson")


def prepare_banepa(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in ("labelled_train.tif", "footprints_train.geojson"):
        shutil.copyfile(folder / name, out / name)
    with rasterio.open(folder / "labelled_train.tif") as source:
        west, south, east, north = source.bounds
        edges = [source.xy(0, col, offset="ul")[0] for col in (KEPT_FROM_COLUMN - MARGIN, KEPT_FROM_COLUMN)]
    for name, box in (("train", (west, south, edges[0], north)), ("validation", (edges[1], south, east, north))):
        gpd.GeoSeries([shapely.box(*box)], crs=3857).to_file(out / f"{name}_area.geojson")
    both = shapely.union(shapely.box(west, south, edges[0], north), shapely.box(edges[1], south, east, north))
    gpd.GeoSeries([both], crs=3857).to_file(out / "area.geojson")


def prepare_aerial(folder: Path, out: Path) -> None:
    """A folder for each scene, by the first characters of the images' names."""
    for kind in ("images", "labels"):
        for path in sorted((folder / kind).iterdir()):
            scene = out / f"aerial_{path.name[:SCENE_NAME]}" / kind
            scene.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, scene / path.name)


def prepare_outlined(folder: Path, result: Path, out: Path) -> None:
    """The whole scene with the footprints that a model found in it, but for the ground that people have labelled."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "scene.tif", out / "scene.tif")
    gpd.read_parquet(result / "footprints.parquet").to_crs(3857)[["geometry"]].to_file(out / "footprints.geojson")
    with rasterio.open(folder / "scene.tif") as scene, rasterio.open(folder / "labelled_train.tif") as labelled:
        margin = MARGIN * scene.res[0]
        area = shapely.box(*scene.bounds).difference(shapely.box(*labelled.bounds).buffer(margin, join_style="mitre"))
    gpd.GeoSeries([area], crs=3857).to_file(out / "area.geojson")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--outlined", type=Path, metavar="RESULT", help="a model's footprints of banepa/scene.tif")
    args = parser.parse_args()
    prepare_banepa(args.data / "banepa", args.out / "banepa")
    for folder in sorted((args.data / "buildings_oam").iterdir()):
        if (folder / "tiles.csv").exists():
            prepare_tiles(folder, args.out / folder.name)
    prepare_aerial(args.data / "landcover_aerial", args.out)
    if args.outlined:
        prepare_outlined(args.data / "banepa", args.outlined, args.out / "banepa_outlined")
    print(args.out)


if __name__ == "__main__":
    main()
