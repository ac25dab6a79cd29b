"""Label rasters, ours or not: their grid, what their values mean, and their pixels window by window."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import rasterio.shutil
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from geoseg.errors import SceneError
from geoseg.io.gdal_scenes import open_dataset
from geoseg.io.pixels import Stretch
from geoseg.io.scenes import open_scene, open_source
from geoseg.io.zarr_scenes import is_zarr
from geoseg.raster import NODATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from geoseg.io.pixels import SceneSource
    from geoseg.window import Window

LABELS = "labels"
"""What the array of labels is called in a store that holds others, too, as ours does."""


@dataclass(frozen=True)
class LabelRaster:
    """A raster whose values are classes."""

    geobox: GeoBox
    name: str
    read: Callable[[Window], NDArray[np.uint8]]
    """Labels (y, x) uint8 of a window, 255 = nodata."""
    names: dict[int, str] = field(default_factory=dict)
    """Names of values, as far as the raster tells any."""
    colours: dict[int, str] = field(default_factory=dict)
    """`#rrggbb` of values, as far as the raster tells any."""


def open_labels(labels: str | Path | xr.DataArray) -> LabelRaster:
    """A label raster of any format that scenes have, or an array (y, x) with a CRS; no pixel is read.

    Names and colours are those of GDAL's category names, attribute table and colour table, or of the CF attributes
    `flag_values`, `flag_meanings` and `flag_colors`. Files may be of any type of numbers; a value other than 0 to 254
    that is not nodata is told when it is read. Raises `SceneError` for what is no raster of one band, or lies nowhere.
    """
    if not isinstance(labels, (str, Path)):
        return _of_array(labels, "labels" if labels.name is None else str(labels.name))
    if is_zarr(str(labels)) and (array := _labels_in(Path(labels))) is not None:
        return _of_array(array, Path(labels).stem)
    return _of_file(str(labels))


def _of_file(path: str) -> LabelRaster:
    scene = open_scene(path)
    if len(scene.bands) != 1:
        msg = f"{path}: a label raster has one band, this has {len(scene.bands)} of {scene.dtype}; "
        raise SceneError(msg + "choose one (gdal_translate -b 1)")
    source = open_source(scene, (1,))
    told: tuple[dict[int, str], dict[int, str]] = ({}, {}) if is_zarr(path) else _told_by_gdal(path)
    return LabelRaster(scene.geobox, scene.id, lambda window: labels_of(source, window), *told)


class _AsLabels(Stretch):
    """How values of any type become labels: as they are, and 255 where they are none."""

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Labels uint8 of any shape."""
        if values.dtype == np.uint8:
            return values
        with np.errstate(invalid="ignore"):  # what is no label may be NaN, or too large
            labels = values.astype(np.uint8)
        return np.where(labels == values, labels, np.uint8(NODATA))


AS_LABELS = _AsLabels((0.0,), (float(NODATA - 1),))


def labels_of(source: SceneSource, window: Window) -> NDArray[np.uint8]:
    """Labels (y, x) uint8 of a window of a source of one band of any type, 255 = nodata.

    Raises `SceneError` for a value of another type than uint8 that is no label.
    """
    (values,), valid = source.raw(window)
    labels = AS_LABELS.apply(values)
    if values.dtype != np.uint8:
        strange = valid & (labels == NODATA)
        if strange.any():
            msg = f"{source.scene.path}: {values[strange][0]} is no label: they are whole numbers from 0 to 254; "
            raise SceneError(msg + "give its pixels another, or say that it is no data (gdal_edit.py -a_nodata)")
    return np.where(valid, labels, np.uint8(NODATA))


def _of_array(labels: xr.DataArray, name: str) -> LabelRaster:
    from odc.geo.xr import ODCExtensionDa

    geobox = ODCExtensionDa(labels).geobox
    if (
        not isinstance(geobox, GeoBox)
        or geobox.crs is None
        or labels.dtype != "uint8"
        or len(labels.dims) > len(geobox.dimensions)
    ):
        msg = f"labels: must be uint8 (y, x) with a CRS, got {labels.dtype} {labels.dims} with {geobox}"
        raise SceneError(msg)
    values = [int(value) for value in np.atleast_1d(labels.attrs.get("flag_values", ()))]
    told = [_words(labels.attrs.get(key, "")) for key in ("flag_meanings", "flag_colors")]
    names, colours = (dict(zip(values, words, strict=False)) for words in told)
    fill = int(labels.attrs.get("_FillValue", NODATA))

    def read(window: Window) -> NDArray[np.uint8]:
        read = labels[window.slices].to_numpy()
        return read if fill == NODATA else np.where(read == fill, np.uint8(NODATA), read)

    return LabelRaster(geobox, name, read, names, _only_colours(colours))


def _words(told: Any) -> list[str]:
    return told.split() if isinstance(told, str) else [str(word) for word in told]


def _only_colours(told: dict[int, str]) -> dict[int, str]:
    hexadecimal = "0123456789abcdefABCDEF"
    return {v: c for v, c in told.items() if len(c) == 7 and c[0] == "#" and not set(c[1:]) - set(hexadecimal)}  # noqa: PLR2004  # `#` and six digits


def _labels_in(path: Path) -> xr.DataArray | None:
    """The array of labels of a store that holds others, too, or that says what its values mean."""
    import xarray as xr

    try:
        dataset = xr.open_dataset(
            path, engine="zarr", chunks=None, cache=False, consolidated=False, mask_and_scale=False, decode_coords="all"
        )
    except Exception:  # noqa: BLE001  # whatever it is, `open_scene` has the words for it
        return None
    flat = [array for array in dataset.data_vars.values() if array.ndim == 2 and array.dtype == "uint8"]  # noqa: PLR2004  # rows and columns
    meant = [array for array in flat if array.name == LABELS or "flag_values" in array.attrs]
    return meant[0] if len(meant) == 1 else None


# --- what GDAL knows of a file's values


def _told_by_gdal(path: str) -> tuple[dict[int, str], dict[int, str]]:
    """Names and colours of values.

    rasterio has no call for category names and attribute tables, but a VRT of a file repeats them, whatever the format.
    """
    with tempfile.TemporaryDirectory() as folder:
        vrt = Path(folder) / "labels.vrt"
        try:
            with open_dataset(path) as dataset:
                rasterio.shutil.copy(dataset, vrt, driver="VRT")
            band = ET.parse(vrt).getroot().find("VRTRasterBand")  # noqa: S314  # GDAL has just written it
        except (RasterioError, OSError, ET.ParseError):
            return {}, {}
    if band is None:
        return {}, {}
    names = {value: text for value, text in enumerate(_texts(band, "CategoryNames/Category")) if text}
    colours = dict(_colour_table(band))
    for value, name, colour in _attribute_table(band):
        names.setdefault(value, name)
        if colour is not None:
            colours[value] = colour
    return {v: n for v, n in names.items() if n and 0 <= v < NODATA}, colours


def _texts(element: ET.Element, path: str) -> list[str]:
    return [each.text or "" for each in element.findall(path)]


def _colour_table(band: ET.Element) -> Iterator[tuple[int, str]]:
    for value, entry in enumerate(band.findall("ColorTable/Entry")):
        yield value, _hex(*(float(entry.get(f"c{channel}", "0")) for channel in (1, 2, 3)))


def _hex(red: float, green: float, blue: float) -> str:
    return "#" + "".join(f"{min(max(round(channel), 0), 255):02x}" for channel in (red, green, blue))


_NAME, _VALUE, _RED, _GREEN, _BLUE = "2", "5", "6", "7", "8"  # GDALRATFieldUsage


def _attribute_table(band: ET.Element) -> Iterator[tuple[int, str, str | None]]:
    """Value, name and colour of each row of an attribute table that has the first two."""
    table = band.find("GDALRasterAttributeTable")
    if table is None:
        return
    usage = {use: index for index, use in enumerate(_texts(table, "FieldDefn/Usage"))}
    names = [name.lower() for name in _texts(table, "FieldDefn/Name")]
    for use, known in ((_VALUE, ("value",)), (_NAME, ("class_name", "class", "name", "category"))):
        places = [names.index(name) for name in known if name in names]
        if places:
            usage.setdefault(use, places[0])
    if not {_NAME, _VALUE} <= set(usage):
        return
    coloured = {_RED, _GREEN, _BLUE} <= set(usage)
    for row in table.findall("Row"):
        fields = _texts(row, "F")
        colour = _hex(*(float(fields[usage[use]]) for use in (_RED, _GREEN, _BLUE))) if coloured else None
        yield int(float(fields[usage[_VALUE]])), fields[usage[_NAME]], colour
