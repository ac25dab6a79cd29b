"""How scenes, results and changes look in a notebook: a small picture, what it is, and where it came from.

Made of headers and overviews alone, so that showing costs nothing: nothing is asked over a network, and a large file
without overviews gets no picture. What cannot be read is shown as text; showing something is no time to raise an error.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from geoseg.errors import GeosegError
from geoseg.io.remote import is_remote
from geoseg.io.scenes import open_source
from geoseg.raster import Raster, crs_of
from geoseg.view.facts import LABEL_FILE, Map, Share, date_of, ground_of, read_item, scene_below
from geoseg.view.pages import maps_beside, read_summary, told_without_maps
from geoseg.view.pictures import Imagery, data_uri, labels_picture, read_map, scene_picture
from geoseg.view.render import amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from geoseg.catalog import Scene

ACROSS: Final = 300
"""Pixels along a picture."""

CHEAP: Final = 40_000_000
"""Pixels of a scene up to which an overview is made of all of it."""

FAILURES: Final = (GeosegError, OSError, RasterioError, ValueError, KeyError)


def scene_card(scene: Scene) -> str:
    """A scene: its picture, grid and bands."""
    rows, cols = scene.shape
    down, along = scene.ground_resolution
    crs = crs_of(scene.geobox)
    bands = ", ".join(f"{index} {name or 'unnamed'}" for index, name in enumerate(scene.bands, 1))
    told = [
        ("Grid", f"{cols:,} x {rows:,} pixels of {down:.3g} x {along:.3g} m on the ground"),
        ("CRS", f"EPSG:{crs.epsg}" if crs.epsg else crs.proj.name),
        ("Bands", f"{bands} ({scene.dtype})"),
        ("Date", "" if scene.datetime is None else scene.datetime.isoformat()),
        ("From", scene.path if scene.memory is None else "memory"),
    ]
    return _card(f"Scene {scene.id}", [_quick_look(scene)], told)


def result_card(folder: Path) -> str:
    """A scene's results: scene and labels, areas, and how they came about."""
    try:
        mapped = Map.of(folder)
        ground, labels = ground_of(mapped, 512), _labels(mapped)
    except FAILURES as error:
        return f"<pre>{escape(f'{folder}: {error}')}</pre>"
    below = scene_below(mapped)
    look = None if below.imagery is None else _quick_look(below.imagery.scene)
    properties = mapped.item["properties"]
    told = [
        ("Footprints", f"{mapped.count:,}"),
        ("Grid", _grid(mapped)),
        ("Seen", f"{amount(ground.hectares)} ha"),
        ("Model", f"{properties.get('geoseg:model', {}).get('name', '')}"),
        ("Made from", str(properties.get("processing:lineage", ""))),
        ("Date of the scene", date_of(mapped.item)),
        ("Mapped", str(properties.get("created", ""))),
        ("In", str(folder)),
    ]
    return _card(str(properties.get("title") or mapped.item["id"]), [look, labels], told, _class_bar(ground.classes))


def _labels(mapped: Map) -> str:
    """A label map in its colours, as an address that holds it."""
    colours = {value: colour for value, _, colour in mapped.classes}
    return data_uri(labels_picture(read_map(mapped.folder / LABEL_FILE, ACROSS), colours, set()))


def _grid(mapped: Map) -> str:
    rows, cols = (int(side) for side in mapped.grid.shape)
    crs = crs_of(mapped.grid)
    return f"{cols:,} x {rows:,} pixels of {mapped.metres:.3g} m, {f'EPSG:{crs.epsg}' if crs.epsg else crs.proj.name}"


def change_card(folder: Path) -> str:
    """What has changed: both maps, and the numbers."""
    try:
        item, summary = read_item(folder), read_summary(folder)
        if "statuses" in summary:
            told = [(name.replace("_", " "), f"{row['count']:,}") for name, row in summary["statuses"].items()]
        elif "index" in summary:
            told = [(f"{how}, ha", f"{summary[f'{how}_hectares']:,.2f}") for how in ("risen", "fallen")]
        elif "changed_hectares" in summary:
            told = [(f"above {summary['threshold']:g}, ha", f"{summary['changed_hectares']:,.2f}")]
        else:
            told = _moves(summary["classes"], summary["hectares"])
        shift = summary.get("shift", {})
        told.append(("Images", f"{shift['length_m']:.2f} m apart" if shift.get("known") else "shift not known"))
    except FAILURES as error:
        return f"<pre>{escape(f'{folder}: {error}')}</pre>"
    told += [("Made from", str(item["properties"].get("processing:lineage", ""))), ("In", str(folder))]
    try:
        maps = () if told_without_maps(folder) else maps_beside(folder, summary)
        pictures = [_labels(each) for each in maps]
    except FAILURES:
        maps, pictures = (), []  # they were moved away; the numbers are here
    told += [("Grid", _grid(each)) for each in maps[1:]]
    return _card(str(item["properties"].get("title") or folder.name), pictures, told)


def _moves(names: list[str], hectares: list[list[float]]) -> list[tuple[str, str]]:
    """What has become of what, the largest first."""
    every = [
        (value, f"{names[i]} to {names[j]}") for i, row in enumerate(hectares) for j, value in enumerate(row) if i != j
    ]
    return [(name, f"{amount(value)} ha") for value, name in sorted(every, reverse=True)[:8] if value > 0]


def _quick_look(scene: Scene) -> str | None:
    """A scene's picture as an address that holds it; None where that would take long, or cannot be."""
    if scene.memory is not None or is_remote(scene.path) or not _is_cheap(scene):
        return None
    try:
        imagery = Imagery(scene, {}) if scene.parts else Imagery(scene, {}, scene.geobox)
        values = open_source(imagery.scene, imagery.bands).overview(ACROSS)
    except FAILURES:
        return None
    valid = np.asarray(~np.ma.getmaskarray(values).all(axis=0), bool)
    stretched = np.asarray(values.data) if imagery.stretch is None else imagery.stretch.apply(values.data)
    return data_uri(scene_picture(Raster(stretched.astype(np.uint8), valid)))


def _is_cheap(scene: Scene) -> bool:
    """Whether an overview is there, or is soon made."""
    rows, cols = scene.shape
    if rows * cols <= CHEAP:
        return True
    if not Path(scene.path).is_file():
        return False
    try:
        with rasterio.open(scene.path) as dataset:
            return bool(dataset.overviews(1))
    except RasterioError:
        return False


def _class_bar(shares: Iterable[Share]) -> str:
    """Shares of classes beside each other, and below them their names."""
    at, bars, names = 0.0, [], []
    for share in shares:
        width, text = share.share * 100, escape(f"{share.name} {share.share:.1%}")
        bars.append(f'<rect x="{at:.2f}" width="{width:.2f}" height="6" fill="{share.colour}"/>')
        names.append(f'<span style="color:{share.colour};text-shadow:0 0 1px #888">&#9632;</span> {text}')
        at += width
    svg = '<svg viewBox="0 0 100 6" preserveAspectRatio="none" style="width:100%;height:10px;display:block">'
    return f'<div style="margin:.4em 0">{svg}{"".join(bars)}</svg><small>{" &nbsp; ".join(names)}</small></div>'


PICTURE: Final = "max-width:220px;max-height:220px;border:1px solid #8888"


def _card(title: str, pictures: Sequence[str | None], told: list[tuple[str, str]], more: str = "") -> str:
    """Everything of metadata is escaped; pictures are ours, and nothing else is loaded."""
    shown = "".join(f'<img src="{each}" alt="" style="{PICTURE}">' for each in pictures if each)
    rows = "".join(
        f"<tr><th style='text-align:left;font-weight:500;opacity:.75'>{escape(name)}</th>"
        f"<td style='text-align:left;overflow-wrap:anywhere'>{escape(text)}</td></tr>"
        for name, text in told
        if text
    )
    return (
        "<div style='display:flex;gap:1em;flex-wrap:wrap;align-items:flex-start;max-width:60em'>"
        f"<div style='display:flex;gap:.5em;flex-wrap:wrap'>{shown}</div>"
        f"<div style='flex:1 1 22em;min-width:0'><b>{escape(title)}</b>{more}<table>{rows}</table></div></div>"
    )
