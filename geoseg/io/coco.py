"""COCO instances (https://cocodataset.org/#format-data): footprints in the pixels of a raster, for those who train.

Polygons without holes are lists of vertices; those with holes are masks (uncompressed RLE), as COCO's polygons cannot
say where a hole is. Where the raster lies is kept beside its name, in `geoseg`, so that the file can be brought back.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import rasterio.features
import shapely
from odc.geo.geobox import GeoBox
from rasterio import Affine

from geoseg.errors import OptionError
from geoseg.io.vectors import to_pixels, to_world
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DIGITS = 3  # a thousandth of a pixel
HERE = "geoseg"
"""The key of what COCO has no word for."""


def write_coco(frame: gpd.GeoDataFrame, path: Path, geobox: GeoBox, image: str) -> None:
    """The polygons of a frame in the pixels of a grid, as the instances of one image of that name."""
    crs = crs_of(geobox).wkt
    polygons = to_pixels(frame.geometry.to_crs(crs).to_numpy(), geobox)
    names = frame["class"].astype(str).tolist() if "class" in frame else ["object"] * len(frame)
    categories = {name: number for number, name in enumerate(sorted(set(names)), 1)}
    scores = frame["confidence"].tolist() if "confidence" in frame else None
    rows, cols = geobox.shape
    place = {"crs": crs, "transform": list(geobox.affine)[:6]}
    content = {
        "info": {"description": f"footprints of {image}", "version": "1.0"},
        "images": [{"id": 1, "file_name": image, "width": cols, "height": rows, HERE: place}],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    with path.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content)[:-1] + ', "annotations": [')
        for index, (polygon, name) in enumerate(zip(polygons, names, strict=True)):
            told: dict[str, Any] = {"id": index + 1, "image_id": 1, "category_id": categories[name], "iscrowd": 0}
            told |= _instance(polygon, (rows, cols))
            told |= {} if scores is None else {"score": scores[index]}
            stream.write((",\n" if index else "\n") + json.dumps(told))
        stream.write("\n]}\n")


def _instance(polygon: Any, shape: tuple[int, int]) -> dict[str, Any]:
    left, top, right, bottom = polygon.bounds
    box = [round(value, DIGITS) for value in (left, top, right - left, bottom - top)]
    parts = shapely.get_parts(polygon)
    segmentation: Any = [
        np.round(shapely.get_coordinates(shapely.get_exterior_ring(part))[:-1], DIGITS).ravel().tolist()
        for part in parts
    ]
    if shapely.get_num_interior_rings(parts).any():
        segmentation = {"size": list(shape), "counts": _runs_of(polygon, shape)}
    return {"bbox": box, "area": round(polygon.area, DIGITS), "segmentation": segmentation}


def _runs_of(polygon: Any, shape: tuple[int, int]) -> list[int]:
    """Lengths of runs outside, inside, outside ..., column by column, of pixels whose centre is in a polygon."""
    left, top, right, bottom = (np.rint(polygon.bounds) + np.array([-1, -1, 1, 1])).astype(int).tolist()
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, shape[1]), min(bottom, shape[0])
    mask = rasterio.features.rasterize(
        [polygon], (bottom - top, right - left), transform=Affine.translation(left, top), dtype="uint8"
    )
    cols, rows = np.nonzero(mask.T)
    inside = (cols + left) * shape[0] + rows + top
    breaks = np.flatnonzero(np.diff(inside) != 1)
    first, last = inside[np.append(0, breaks + 1)], inside[np.append(breaks, len(inside) - 1)] + 1
    borders = np.concatenate([[0], np.column_stack([first, last]).ravel(), [shape[0] * shape[1]]])
    counts: list[int] = np.diff(borders).tolist()
    return counts


def read_coco(path: Path) -> gpd.GeoDataFrame:
    """The instances of a file of one image that says where it lies, as `write_coco` leaves it, in the image's CRS."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        (image,) = content["images"]
        place, shape = image[HERE], (image["height"], image["width"])
        geobox = GeoBox(shape, Affine(*place["transform"]), place["crs"])
        names = {each["id"]: each["name"] for each in content["categories"]}
        annotations = content["annotations"]
        polygons = np.array([_polygon(each["segmentation"], shape) for each in annotations], object)
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path}: is no COCO file of one image that says where it lies ({type(error).__name__}: {error}); "
        raise OptionError(msg + "convert one that geoseg has written") from error
    kinds = [names[each["category_id"]] for each in annotations]
    return gpd.GeoDataFrame({"class": kinds}, geometry=to_world(polygons, geobox), crs=place["crs"])


def _polygon(segmentation: Any, shape: tuple[int, int]) -> Any:
    if isinstance(segmentation, dict):
        return _of_runs(np.asarray(segmentation["counts"]), shape)
    parts = [shapely.Polygon(np.reshape(ring, (-1, 2))) for ring in segmentation]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _of_runs(counts: NDArray[np.int64], shape: tuple[int, int]) -> Any:
    """The outline of a mask that is told by its runs, column by column."""
    stops = np.cumsum(counts)
    inside = np.concatenate([np.arange(a, b) for a, b in zip(stops[::2], stops[1::2], strict=False)])
    cols, rows = np.divmod(inside, shape[0])
    mask = np.zeros((rows.max() - rows.min() + 1, cols.max() - cols.min() + 1), np.uint8)
    mask[rows - rows.min(), cols - cols.min()] = 1
    place = Affine.translation(cols.min(), rows.min())
    shapes = rasterio.features.shapes(mask, mask=mask.astype(bool), transform=place)
    parts = [shapely.geometry.shape(each) for each, _ in shapes]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
