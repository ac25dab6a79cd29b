"""GeoPackage with a style that QGIS finds by itself: colours by class, in the table `layer_styles`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pyogrio
import shapely

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import geopandas as gpd

# As QGIS makes it: https://docs.qgis.org, "save style to database".
_TABLE = """CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
    update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))"""
_CONTENTS = """INSERT INTO gpkg_contents (table_name, data_type, identifier, description, srs_id)
    VALUES ('layer_styles', 'attributes', 'layer_styles', 'styles of QGIS', 0)"""
_STYLE = """INSERT INTO layer_styles
    (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, styleQML, styleSLD, useAsDefault,
     description, owner, ui)
    VALUES ('', '', ?, 'geom', 'classes', ?, '', 1, 'colours of the classes', '', NULL)"""


def write_geopackage(frame: gpd.GeoDataFrame, path: Path, layer: str, colours: Mapping[str, str], column: str) -> None:
    """One layer, spatially indexed, in the frame's CRS; `colours` (`#rrggbb`) of the values of a column go with it."""
    kinds = shapely.get_type_id(frame.geometry.to_numpy())
    lines = bool(len(kinds)) and bool(np.isin(kinds, _LINES).all())
    multi = len(np.unique(kinds)) > 1 or not (lines or (kinds == shapely.GeometryType.POLYGON).all())
    pyogrio.write_dataframe(
        frame, path, driver="GPKG", layer=layer, promote_to_multi=multi, geometry_type=None if len(frame) else "Polygon"
    )
    if not colours:
        return
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(_TABLE)
        database.execute(_CONTENTS)
        database.execute(_STYLE, (layer, _qml(colours, column, lines=lines)))


_LINES = (shapely.GeometryType.LINESTRING, shapely.GeometryType.MULTILINESTRING)


def _qml(colours: Mapping[str, str], column: str, *, lines: bool = False) -> str:
    """A style of QGIS 3."""
    root = ET.Element("qgis", version="3.28.0", styleCategories="Symbology")
    root.append(categorised(colours, column, lines=lines))
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, encoding="unicode")


def categorised(colours: Mapping[str, str], column: str, *, lines: bool = False) -> ET.Element:
    """What QGIS draws by: for each value of a column a fill, half transparent, with a darker outline; or a line."""
    renderer = ET.Element("renderer-v2", type="categorizedSymbol", attr=column, enableorderby="0")
    categories, symbols = ET.SubElement(renderer, "categories"), ET.SubElement(renderer, "symbols")
    for index, (name, colour) in enumerate(colours.items()):
        ET.SubElement(categories, "category", value=name, symbol=str(index), label=name, render="true", type="string")
        kind, how = ("line", "SimpleLine") if lines else ("fill", "SimpleFill")
        symbol = ET.SubElement(symbols, "symbol", type=kind, name=str(index), alpha="1", clip_to_extent="1")
        fill = ET.SubElement(symbol, "layer", {"class": how, "enabled": "1", "locked": "0", "pass": "0"})
        options = ET.SubElement(fill, "Option", type="Map")
        red, green, blue = bytes.fromhex(colour.removeprefix("#"))
        told = {
            "color": f"{red},{green},{blue},128",
            "outline_color": f"{red * 2 // 3},{green * 2 // 3},{blue * 2 // 3},255",
            "outline_width": "0.3",
            "outline_width_unit": "MM",
            "outline_style": "solid",
            "style": "solid",
        }
        if lines:
            told = {"line_color": f"{red},{green},{blue},255", "line_width": "0.7", "line_width_unit": "MM"}
        for key, value in told.items():
            ET.SubElement(options, "Option", type="QString", name=key, value=value)
    return renderer
