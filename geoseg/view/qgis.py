"""A project for QGIS beside results: `project.qgs`, with every layer in its colours and names, from one drag.

A project, because it also says what lies above what, and what is hidden at first. Rasters have a style (`.qml`) beside
them, too, which QGIS takes when one of them is dragged: else it lists all 256 values of the file's colour table. Both
are plain XML with the elements that QGIS 3 reads; what is left out has QGIS's own defaults. Paths are relative, so
folder and project move together.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from geoseg.changes.objects import MIRROR
from geoseg.io.geopackage import categorised
from geoseg.io.grids import LONLAT
from geoseg.raster import crs_of
from geoseg.view.facts import CONFIDENCE_FILE, LABEL_FILE, Below, Map, classes_in, read_item, scene_below
from geoseg.view.pages import TRANSITIONS_FILE, Pair
from geoseg.view.pictures import RAMP
from geoseg.view.render import write_page
from geoseg.view.shapes import OWN

if TYPE_CHECKING:
    from odc.geo.crs import CRS
    from odc.geo.geobox import GeoBox

PROJECT: Final = "project.qgs"

VERSION: Final = "3.16.0"
"""Of QGIS, whose elements these are."""

NO_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


@dataclass(frozen=True)
class Drawn:
    """A layer of a project."""

    name: str
    file: str
    """As it is found from the project."""
    look: ET.Element | None
    """A raster's pipe, a vector's renderer; None: QGIS's own choice."""
    crs: CRS
    vector: bool = False
    visible: bool = True


def write_project(folder: Path, sources: tuple[Path, ...] = ()) -> Path:
    """Write the project of a scene's or a change's results, and a style beside each of their rasters; its path.

    `sources`: where the scene is, or that before and that after, if not where they were.

    Raises `OutputError` for a folder that holds no results, or if the disk refuses.
    """
    item = read_item(folder)
    if "changes" in item["assets"]:
        pair = Pair.of(folder, (sources[0], sources[1]) if sources else (None, None))
        grid, layers = pair.maps[1].grid, _of_change(pair)
    else:
        mapped = Map.of(folder)
        grid, layers = mapped.grid, _of_scene(mapped, scene_below(mapped, sources[0] if sources else None))
    root = _project(str(item["properties"].get("title") or item["id"]), grid, layers)
    for layer in layers:
        if layer.look is not None and not layer.vector and Path(layer.file).parent == Path():
            style = ET.Element("qgis", version=VERSION)
            style.append(layer.look)
            _write(folder / Path(layer.file).with_suffix(".qml"), style)
    return _write(folder / PROJECT, root)


def _write(path: Path, root: ET.Element) -> Path:
    ET.indent(root)
    text = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + ET.tostring(root, encoding="unicode")
    return write_page(path, text + "\n")


def _of_scene(mapped: Map, below: Below) -> list[Drawn]:
    """From above to below."""
    colours = {name: colour for value, name, colour in mapped.classes if value not in mapped.background}
    return [
        Drawn("footprints", "./footprints.geojson", categorised(_clean(colours), "class"), LONLAT, vector=True),
        Drawn(
            "labels", f"./{LABEL_FILE}", paletted(mapped.classes, mapped.background), crs_of(mapped.grid), visible=False
        ),
        Drawn("confidence", f"./{CONFIDENCE_FILE}", graded(), crs_of(mapped.grid), visible=False),
        *_scene_of(mapped, mapped.folder, below),
    ]


def _of_change(pair: Pair) -> list[Drawn]:
    told = classes_in(read_item(pair.folder)["assets"].get("transitions", {}))
    colours = {name: colour for value, name, colour in told if value} or {status: OWN[status] for status in MIRROR}
    layers = [Drawn("changes", "./changes.geojson", categorised(_clean(colours), "status"), LONLAT, vector=True)]
    if told:
        layers.append(
            Drawn("transitions", f"./{TRANSITIONS_FILE}", paletted(told, {0}), crs_of(pair.maps[1].grid), visible=False)
        )
    before, after = pair.maps
    for mapped, when in ((after, "after"), (before, "before")):
        file = f"../{mapped.folder.name}/{LABEL_FILE}"
        layers.append(
            Drawn(
                f"labels {when}", file, paletted(mapped.classes, mapped.background), crs_of(mapped.grid), visible=False
            )
        )
    return [*layers, *_scene_of(after, pair.folder, pair.below[1]), *_scene_of(before, pair.folder, pair.below[0])]


def _scene_of(mapped: Map, folder: Path, below: Below) -> list[Drawn]:
    """The scene, if it is one file of this machine."""
    imagery = below.imagery
    if imagery is None or imagery.scene.parts or not Path(imagery.scene.path).is_file():
        return []
    crs = crs_of(imagery.scene.geobox)
    return [Drawn(str(mapped.item["id"]), os.path.relpath(imagery.scene.path, folder.resolve()), None, crs)]


def _clean(colours: dict[str, str]) -> dict[str, str]:
    return {_text(name): colour for name, colour in colours.items()}


def _text(text: str) -> str:
    """What of a text XML can hold."""
    return NO_XML.sub("", text)


def paletted(classes: list[tuple[int, str, str]], clear: set[int]) -> ET.Element:
    """What QGIS draws a raster of classes by; `clear` are values that are not seen."""
    pipe = ET.Element("pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="0.7", alphaBand="-1")
    palette = ET.SubElement(renderer, "colorPalette")
    for value, name, colour in classes:
        alpha = "0" if value in clear else "255"
        ET.SubElement(palette, "paletteEntry", value=str(value), label=_text(name), color=colour, alpha=alpha)
    return pipe


def graded() -> ET.Element:
    """What QGIS draws confidence by. The file's scale is QGIS's, too, so values are from 0 to 1."""
    pipe = ET.Element("pipe")
    told = {"type": "singlebandpseudocolor", "band": "1", "opacity": "0.8", "alphaBand": "-1"}
    renderer = ET.SubElement(pipe, "rasterrenderer", told | {"classificationMin": "0", "classificationMax": "1"})
    shader = ET.SubElement(renderer, "rastershader")
    ramp = ET.SubElement(
        shader,
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        minimumValue="0",
        maximumValue="1",
    )
    for index, colour in enumerate(RAMP):
        value = f"{index / (len(RAMP) - 1):.4g}"
        ET.SubElement(ramp, "item", value=value, label=value, color=colour, alpha="255")
    return pipe


def _project(title: str, grid: GeoBox, layers: list[Drawn]) -> ET.Element:
    root = ET.Element("qgis", projectname=_text(title), version=VERSION)
    ET.SubElement(root, "title").text = _text(title)
    crs = ET.SubElement(root, "projectCrs")
    crs.append(_crs(crs_of(grid)))
    tree = ET.SubElement(root, "layer-tree-group")
    held = ET.SubElement(root, "projectlayers")
    for index, layer in enumerate(layers):
        id_ = f"geoseg_layer_{index}"  # QGIS takes no id of ten characters or less
        provider = "ogr" if layer.vector else "gdal"
        checked = "Qt::Checked" if layer.visible else "Qt::Unchecked"
        told = {"id": id_, "name": _text(layer.name), "source": _text(layer.file), "providerKey": provider}
        told |= {"checked": checked, "expanded": "1" if layer.visible else "0"}
        ET.SubElement(tree, "layer-tree-layer", told)
        held.append(_layer(id_, layer, provider))
    root.append(_canvas(grid))
    properties = ET.SubElement(root, "properties")
    for group, name, kind, value in (
        ("Paths", "Absolute", "bool", "false"),
        ("SpatialRefSys", "ProjectionsEnabled", "int", "1"),
    ):
        ET.SubElement(ET.SubElement(properties, group), name, type=kind).text = value
    return root


def _layer(id_: str, layer: Drawn, provider: str) -> ET.Element:
    kind: dict[str, str] = {"type": "vector", "geometry": "Polygon"} if layer.vector else {"type": "raster"}
    made = ET.Element("maplayer", kind)
    for tag, text in (("id", id_), ("datasource", layer.file), ("layername", layer.name), ("provider", provider)):
        ET.SubElement(made, tag).text = _text(text)
    ET.SubElement(made, "srs").append(_crs(layer.crs))
    if layer.look is not None:
        made.append(layer.look)
    return made


def _crs(crs: CRS) -> ET.Element:
    made = ET.Element("spatialrefsys")
    ET.SubElement(made, "wkt").text = crs.to_wkt()
    if crs.epsg:
        ET.SubElement(made, "authid").text = f"EPSG:{crs.epsg}"
    return made


def _canvas(grid: GeoBox) -> ET.Element:
    """What is seen first: all of the grid."""
    made = ET.Element("mapcanvas", name="theMapCanvas")
    extent, box = ET.SubElement(made, "extent"), grid.boundingbox
    for tag, value in (("xmin", box.left), ("ymin", box.bottom), ("xmax", box.right), ("ymax", box.top)):
        ET.SubElement(extent, tag).text = repr(float(value))
    destination = ET.SubElement(made, "destinationsrs")
    destination.append(_crs(crs_of(grid)))
    return made
