"""Cloud Optimized GeoTIFFs that a GIS opens with the right colours and names."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import rasterio
import rasterio.shutil
import rasterio.windows
from rasterio._err import CPLE_BaseError  # what GDAL says while copying comes in no public class
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from geoseg.io.store import cannot_write
from geoseg.raster import CONFIDENCE_STEPS, NODATA, crs_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import Legend
    from geoseg.window import Window

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

    Each overview is half the one before, rounded up: for labels the nearest pixel's, otherwise the mean without nodata.
    A legend's colour table is inside the file; class names (as categories and as an attribute table) are beside it in
    `path.aux.xml`, the only place that GDAL and QGIS read them from. Raises `OutputError` if the disk refuses.
    """
    parts = {kind: path.with_name(f".{path.name}.{kind}") for kind in ("plain", "names", "tif")}
    try:
        with _disk_errors(path):
            _write_plain(parts["plain"], bands, geobox, look, tags)
            rasterio.shutil.copy(
                parts["plain"],
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
        for part in parts.values():
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
    path: Path, bands: Iterable[tuple[Window, NDArray[np.uint8]]], geobox: GeoBox, look: Look, tags: dict[str, str]
) -> None:
    """All that the COG will hold, uncompressed.

    Overviews of an uncompressed file are made three times faster than those that the COG driver makes for itself.
    """
    rows, cols = geobox.shape
    profile = {"driver": "GTiff", "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "IF_SAFER"}
    grid = {"width": cols, "height": rows, "crs": crs_of(geobox).wkt, "transform": geobox.affine}
    with rasterio.open(path, "w+", **profile, **grid, count=1, dtype="uint8", nodata=NODATA) as dataset:
        dataset.update_tags(**tags)
        dataset.set_band_description(1, look.description)
        if look.legend is not None:
            dataset.write_colormap(1, _colours(look.legend))
        if look.scale is not None:
            dataset.scales = (look.scale,)
            dataset.offsets = (look.offset,)
        for window, values in bands:
            (row, row_stop), (col, col_stop) = window.row_range, window.col_range
            place = rasterio.windows.Window(col, row, col_stop - col, row_stop - row)
            dataset.write(values, 1, window=place)
        factors = [2**level for level in range(1, _overviews(max(rows, cols)) + 1)]
        if factors:
            dataset.build_overviews(factors, Resampling.average if look.legend is None else Resampling.nearest)


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
