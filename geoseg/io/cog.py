"""Cloud Optimized GeoTIFFs that a GIS opens with the right colours and names."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import rasterio
import rasterio.shutil
import rasterio.windows
from affine import Affine
from rasterio._err import CPLE_BaseError  # what GDAL says while copying comes in no public class
from rasterio.errors import RasterioError

from geoseg.io.overviews import halved
from geoseg.io.store import cannot_write
from geoseg.raster import CONFIDENCE_STEPS, NODATA, crs_of
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox
    from rasterio.io import DatasetWriter

    from geoseg.catalog import Legend

BLOCK = 512
USAGE_NAME, USAGE_VALUE = 2, 5  # GDALRATFieldUsage
USAGE_RED = 6
FULL = 1 << 20  # bytes free below which a disk is called full
INTEGER, STRING = 0, 2  # GDALRATFieldType


@dataclass(frozen=True)
class Look:
    """What a GIS is told about a band besides its pixels."""

    description: str
    legend: Legend | None = None
    """Colours and names of the values; None = a measured quantity."""
    scale: float | None = None
    """What a stored value is to be multiplied by."""
    offset: float = 0.0
    """What is added then."""


CONFIDENCE = Look("confidence", scale=1 / CONFIDENCE_STEPS)


def write_cog(
    path: Path, bands: Iterable[tuple[Window, NDArray[np.uint8]]], geobox: GeoBox, look: Look, tags: dict[str, str]
) -> None:
    """Write a uint8 raster, 255 = nodata, band by band in bounded memory; `path` appears only when it is whole.

    Windows begin, and end, at even rows and columns or at the raster's edge. Each overview is the one before, `halved`.
    A legend's colour table is inside the file; class names (as categories and as an attribute table) are beside it in
    `path.aux.xml`, the only place that GDAL and QGIS read them from. Raises `OutputError` if the disk refuses.
    """
    parts = {kind: path.with_name(f".{path.name}.{kind}") for kind in ("vrt", "names", "tif")}
    levels = [path.with_name(f".{path.name}.{2**level}") for level in range(_overviews(max(geobox.shape)) + 1)]
    try:
        with _disk_errors(path):
            _write_plain(levels, bands, geobox, look, tags)
            _write_together(parts["vrt"], levels)
            rasterio.shutil.copy(
                parts["vrt"],
                parts["tif"],
                driver="COG",
                COMPRESS="ZSTD",
                LEVEL=1,
                PREDICTOR="YES" if look.legend is None else "NO",
                BLOCKSIZE=BLOCK,
                NUM_THREADS="ALL_CPUS",
                BIGTIFF="IF_SAFER",
            )
            _check_whole(parts["tif"])
            if look.legend is not None:
                parts["names"].write_text(_names(look.description, look.legend), encoding="utf-8")
                parts["names"].replace(path.with_name(f"{path.name}.aux.xml"))
            parts["tif"].replace(path)
    finally:
        for part in (*parts.values(), *levels):
            part.unlink(missing_ok=True)


def _check_whole(path: Path) -> None:
    """GDAL closes a file without a word when the disk does not take the last of it: look whether it is there.

    The full resolution comes last in a COG, so a file that was cut lacks blocks of it.
    """
    size = path.stat().st_size
    with rasterio.open(path) as dataset:
        for (row, col), _ in dataset.block_windows(1):
            place, length = (
                dataset.get_tag_item(f"BLOCK_{what}_{col}_{row}", "TIFF", 1) for what in ("OFFSET", "SIZE")
            )
            if place is None or int(place) + int(length) > size:
                raise OSError(errno.EIO, _cause(path, "the file was cut short"))


def _write_plain(
    paths: list[Path],
    bands: Iterable[tuple[Window, NDArray[np.uint8]]],
    geobox: GeoBox,
    look: Look,
    tags: dict[str, str],
) -> None:
    """All that the COG will hold, uncompressed: the map, and its overviews from the finest to the coarsest.

    The first overview is made of what is written, while it is in memory. GDAL would read it again, holding up all other
    threads meanwhile.
    """
    classes = look.legend is not None
    with ExitStack() as stack:
        levels = [stack.enter_context(_plain(path, geobox, 2**level)) for level, path in enumerate(paths)]
        levels[0].update_tags(**tags)
        levels[0].set_band_description(1, look.description)
        if look.legend is not None:
            levels[0].write_colormap(1, _colours(look.legend))
        if look.scale is not None:
            levels[0].scales = (look.scale,)
            levels[0].offsets = (look.offset,)
        for window, values in bands:
            levels[0].write(values, 1, window=_place(window))
            for finest in levels[1:2]:
                finest.write(halved(values, classes=classes), 1, window=_place(_half(window)))
        for finer, coarser in pairwise(levels[1:]):
            for window in Window.of_shape(finer.shape).blocks((2 * BLOCK, 8 * BLOCK)):
                values = finer.read(1, window=_place(window))
                coarser.write(halved(values, classes=classes), 1, window=_place(_half(window)))


def _plain(path: Path, geobox: GeoBox, factor: int) -> DatasetWriter:
    """A file for a map at so many times coarser pixels."""
    rows, cols = (-(-side // factor) for side in geobox.shape)
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "IF_SAFER"}
    grid = {"crs": crs_of(geobox).wkt, "transform": geobox.affine @ Affine.scale(factor)}
    return rasterio.open(path, "w+", **profile, **grid, width=cols, height=rows, count=1, dtype="uint8", nodata=NODATA)


def _place(window: Window) -> rasterio.windows.Window:
    (row, row_stop), (col, col_stop) = window.row_range, window.col_range
    return rasterio.windows.Window(col, row, col_stop - col, row_stop - row)


def _half(window: Window) -> Window:
    """What becomes of a window in the next overview. Raises `ValueError` if it begins in the middle of a pixel."""
    (row, row_stop), (col, col_stop) = window.row_range, window.col_range
    if row % 2 or col % 2:
        msg = f"{window}: begins at an odd row or column"
        raise ValueError(msg)
    return Window(row // 2, -(-row_stop // 2), col // 2, -(-col_stop // 2))


def _write_together(path: Path, levels: list[Path]) -> None:
    """A virtual raster of a map and its overviews, which rasterio has no call for."""
    rasterio.shutil.copy(levels[0], path, driver="VRT")
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  GDAL wrote it the line before
    for band in root.findall("VRTRasterBand"):
        for level in levels[1:]:
            overview = ET.SubElement(band, "Overview")
            ET.SubElement(overview, "SourceFilename", relativeToVRT="1").text = level.name
            ET.SubElement(overview, "SourceBand").text = "1"
    path.write_text(ET.tostring(root, encoding="unicode"), encoding="utf-8")


def _overviews(side: int) -> int:
    """How often a side must be halved until it fits into a block."""
    return max(0, (-(-side // BLOCK) - 1).bit_length())


def _colours(legend: Legend) -> dict[int, tuple[int, int, int, int]]:
    """Colour table; a TIFF's knows no transparency."""
    return {c.value: (*c.rgb, 255) for c in legend.classes}


def _names(description: str, legend: Legend) -> str:
    """The names of a legend's classes as GDAL keeps them beside a file; rasterio has no call for them."""
    root = ET.Element("PAMDataset")
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    ET.SubElement(band, "Description").text = description
    names = ET.SubElement(band, "CategoryNames")
    for c in legend.classes:
        ET.SubElement(names, "Category").text = c.name
    band.append(_attribute_table(legend))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _attribute_table(legend: Legend) -> ET.Element:
    table = ET.Element("GDALRasterAttributeTable", tableType="thematic")
    colours = (("Red", INTEGER, USAGE_RED), ("Green", INTEGER, USAGE_RED + 1), ("Blue", INTEGER, USAGE_RED + 2))
    fields = (("Value", INTEGER, USAGE_VALUE), ("Class", STRING, USAGE_NAME), *colours)
    for index, (name, kind, usage) in enumerate(fields):
        field = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, text in (("Name", name), ("Type", str(kind)), ("Usage", str(usage))):
            ET.SubElement(field, tag).text = text
    for index, c in enumerate(legend.classes):
        row = ET.SubElement(table, "Row", index=str(index))
        for value in (c.value, c.name, *c.rgb):
            ET.SubElement(row, "F").text = str(value)
    return table


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """GDAL's errors while writing, as those of the disk that they are."""
    try:
        yield
    except (RasterioError, CPLE_BaseError, SystemError) as error:
        raise cannot_write(path, OSError(errno.EIO, _cause(path, error.__cause__ or error))) from error
    except OSError as error:
        raise cannot_write(path, error) from error


def _cause(path: Path, error: BaseException | str) -> str:
    statistics = os.statvfs(path.parent)
    free = statistics.f_bavail * statistics.f_frsize
    return "the disk is full" if free < FULL else f"{error} ({free / 1e6:.0f} MB free on that disk)"
