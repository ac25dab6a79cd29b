"""The page of one scene, and of the change between two: what is on it, from the files of their folders."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import numpy as np
import shapely
from rasterio.enums import Resampling

from geoseg.errors import GeosegError, OutputError
from geoseg.io.vectors import to_pixels
from geoseg.view.facts import (
    CONFIDENCE_FILE,
    LABEL_FILE,
    Below,
    Map,
    classes_in,
    confidence_histogram,
    date_of,
    flattened,
    ground_of,
    now,
    proof_of,
    provenance_of,
    read_item,
    scene_below,
    size_histogram,
    work_of,
)
from geoseg.view.pictures import (
    Imagery,
    confidence_picture,
    data_uri,
    labels_picture,
    map_grid,
    read_map,
    scene_picture,
    shrunk,
)
from geoseg.view.render import UNKNOWN, Page, Table, Thumb, amount
from geoseg.view.shapes import packed
from geoseg.window import Window

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

TRANSITIONS_FILE: Final = "transitions.tif"


@dataclass(frozen=True)
class Detail:
    """How much of a result goes into a page."""

    scene: int = 3600
    """Rows and columns at most of the scene's picture."""
    labels: int = 3600
    confidence: int = 1600
    worst: int = 24
    """Thumbnails."""


IN_ARCHIVE: Final = Detail(scene=2048, labels=2048, confidence=1024, worst=12)
SMALL: Final = Detail(scene=1200, labels=1200, confidence=800, worst=0)
"""What goes into a notebook, whose outputs are kept in the file."""


def scene_page(mapped: Map, below: Below, detail: Detail) -> Page:
    """The page of one scene's results."""
    frame, properties = footprints_in(mapped.folder), mapped.item["properties"]
    ground, work = ground_of(mapped), work_of(mapped.folder, _shape(mapped.grid))
    shapes = packed(frame, mapped.grid, {name: colour for _, name, colour in mapped.classes})
    layers = [*_pictures(mapped, below, detail), outlines("footprints", "Footprints", shapes, "class", mapped.classes)]
    pixels = math.prod(_shape(mapped.grid))
    objects = [share for value, share in enumerate(ground.classes) if value not in mapped.background]
    numbers = [
        ("Footprints", f"{len(frame):,}"),
        *([(f"{share.name}".capitalize(), f"{amount(share.value)} ha") for share in objects[:3]]),
        ("Seen", f"{amount(ground.hectares)} ha"),
        ("Median confidence", _median(frame, "confidence")),
        ("Has data", f"{ground.seen / pixels:.1%}"),
    ]
    return Page(
        title=str(properties.get("title") or mapped.item["id"]),
        subtitle=_subtitle(mapped),
        numbers=tuple(numbers),
        made=now(),
        viewer=viewer_of(mapped.grid, mapped.metres, layers),
        notes=tuple(note for note in (below.why, _left_out(shapes)) if note),
        areas=ground.classes,
        histograms=histograms_of(frame),
        worst=worst_of(frame, shapes, mapped.grid, below.imagery, detail.worst),
        worst_layer="footprints",
        work=work,
        proof=proof_of(mapped, ground, len(frame)),
        proof_notes=(
            "The scene itself was not read again, nor outlines found again: geoseg verify does that for a run.",
        ),
        failures=work.failures,
        provenance=provenance_of(mapped.item, mapped.grid),
        parameters=tuple(flattened(mapped.parameters)),
    )


def footprints_in(folder: Path, name: str = "footprints.parquet") -> gpd.GeoDataFrame:
    """Polygons of a result. Raises `OutputError` if they are not there."""
    try:
        return gpd.read_parquet(folder / name)
    except (OSError, ValueError) as error:
        msg = f"{folder / name}: cannot be read ({error}); make the result again"
        raise OutputError(msg) from error


def viewer_of(grid: GeoBox, metres: float | None, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """What the viewer is told: the grid and its layers, from below to above."""
    rows, cols = _shape(grid)
    epsg = grid.crs.epsg if grid.crs is not None else None
    told = {
        "width": cols,
        "height": rows,
        "affine": [float(number) for number in grid.affine[:6]],
        "crs": f"EPSG:{epsg}" if epsg else "the scene's CRS",
        "metres": metres,
    }
    return {"grid": told, "layers": layers}


def _shape(grid: GeoBox) -> tuple[int, int]:
    rows, cols = grid.shape
    return int(rows), int(cols)


def picture(id_: str, title: str, data: bytes, **more: Any) -> dict[str, Any]:
    """A layer that is a picture of all of the grid."""
    return {
        "id": id_,
        "title": title,
        "kind": "image",
        "src": data_uri(data),
        "visible": True,
        "opacity": 1,
        "smooth": True,
        **more,
    }


def _pictures(mapped: Map, below: Below, detail: Detail) -> list[dict[str, Any]]:
    """The scene, its labels and their confidence."""
    labels, seen = labels_layer(mapped, detail.labels), []
    if below.imagery is not None:
        seen = [picture("scene", "Scene", scene_picture(below.imagery.overview(detail.scene)))]
    codes = read_map(mapped.folder / CONFIDENCE_FILE, detail.confidence, Resampling.nearest)
    sure = picture("confidence", "Confidence", confidence_picture(codes), visible=False, opacity=0.8, ramp=[0, 1])
    return [*seen, {**labels, "visible": not seen or not mapped.background}, sure]


def labels_layer(mapped: Map, most: int, id_: str = "labels", title: str = "Labels", **more: Any) -> dict[str, Any]:
    """The label map in its legend's colours, without its background."""
    colours = {value: colour for value, _, colour in mapped.classes}
    data = labels_picture(read_map(mapped.folder / LABEL_FILE, most), colours, mapped.background)
    legend = [[colour, name] for value, name, colour in mapped.classes if value not in mapped.background]
    return picture(id_, title, data, smooth=False, opacity=0.6, legend=legend, **more)


def outlines(
    id_: str, title: str, shapes: dict[str, Any], by: str, classes: list[tuple[int, str, str]] | None = None
) -> dict[str, Any]:
    """A layer of polygons."""
    many = classes is not None and len(classes) > 3  # noqa: PLR2004  a background, one class, perhaps another
    told = {name: value for name, value in shapes.items() if name != "kept"}
    return {
        "id": id_,
        "title": title,
        "kind": "shapes",
        "visible": not many,
        "opacity": 0.95,
        "fill": 0.25,
        "by": by,
        **told,
    }


def _left_out(shapes: dict[str, Any]) -> str:
    if not shapes["left_out"]:
        return ""
    return f"The map shows the {shapes['count']:,} largest outlines; {shapes['left_out']:,} more are in the files."


def _subtitle(mapped: Map) -> str:
    properties = mapped.item["properties"]
    rows, cols = _shape(mapped.grid)
    parts = [
        str(properties.get("geoseg:model", {}).get("name", "")),
        f"{cols:,} x {rows:,} pixels at {mapped.metres:.3g} m",
        date_of(mapped.item),
    ]
    return " · ".join(part for part in parts if part)


def _median(frame: gpd.GeoDataFrame, column: str) -> str:
    return f"{frame[column].median():.2f}" if column in frame and len(frame) else UNKNOWN


def histograms_of(frame: gpd.GeoDataFrame, column: str = "area_m2", what: str = "footprints") -> tuple[Any, ...]:
    """Sizes and confidence of polygons."""
    found = []
    if column in frame:
        found.append(size_histogram(frame[column].to_numpy(np.float64), f"Size of {what}"))
    if "confidence" in frame:
        found.append(confidence_histogram(frame["confidence"].to_numpy(np.float64), f"Confidence of {what}"))
    return tuple(found)


# --- where to look next

THUMB: Final = 160
"""Pixels along a thumbnail."""

LEAST_GROUND: Final = 80
"""Pixels of the scene along a thumbnail, at least."""


def worst_of(
    frame: gpd.GeoDataFrame, shapes: dict[str, Any], grid: GeoBox, imagery: Imagery | None, count: int
) -> tuple[Thumb, ...]:
    """The least confident outlines of those on the map, with the ground around them."""
    if not count or "confidence" not in frame or not len(frame):
        return ()
    kept = shapes["kept"]
    sure = frame["confidence"].to_numpy(np.float64)[kept]
    order = [int(place) for place in np.argsort(sure, kind="stable")[:count] if np.isfinite(sure[place])]
    outlines = to_pixels(frame.geometry.to_numpy()[kept[order]], grid)
    rows = frame.iloc[kept[order]]
    return tuple(
        _thumb(place, row, outline, imagery)
        for place, (_, row), outline in zip(order, rows.iterrows(), outlines, strict=True)
    )


def _thumb(place: int, row: Any, outline: Any, imagery: Imagery | None) -> Thumb:
    window = _around(outline)
    scale = THUMB / window.shape[0]
    moved = shapely.transform(outline, lambda xy: (xy - [window.col_start, window.row_start]) * scale)
    size = next(
        (f" · {row[name]:,.0f} m²" for name in ("area_m2", "area_after_m2") if name in row and row[name] > 0), ""
    )
    what = str(row.get("status", row.get("class", "")))
    return Thumb(
        place,
        f"{row['confidence']:.2f}",
        f"{what.replace('_', ' ')}{size}",
        THUMB,
        _path(moved),
        _ground(window, imagery),
    )


def _around(outline: Any) -> Window:
    """A square window around an outline."""
    west, north, east, south = outline.bounds
    half = math.ceil(max(east - west, south - north, LEAST_GROUND / 1.7) * 1.7 / 2)
    row, col = math.floor((north + south) / 2), math.floor((west + east) / 2)
    return Window(row - half, row + half, col - half, col + half)


def _ground(window: Window, imagery: Imagery | None) -> str:
    if imagery is None:
        return ""
    try:
        raster = shrunk(imagery.read(window), THUMB)
    except GeosegError:
        return ""  # the page says elsewhere what cannot be read
    return data_uri(scene_picture(raster, quality=60))


def _path(polygon: Any) -> str:
    """SVG's path of a polygon."""
    rings = shapely.get_rings(polygon)
    return "".join(
        "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in shapely.get_coordinates(ring)[:-1]) + "Z" for ring in rings
    )


# --- change


def told_without_maps(folder: Path) -> Path | None:
    """The raster beside changes that are told without two maps, or from more of them; None for those between two."""
    rasters = (folder / name for name in ("magnitude.tif", "difference.tif", "since.tif"))
    return next((path for path in rasters if path.exists()), None)


@dataclass(frozen=True)
class Pair:
    """What was compared: a change's folder, both maps, and the scenes below them on the grid of the later one."""

    folder: Path
    maps: tuple[Map, Map]
    below: tuple[Below, Below]

    @classmethod
    def of(
        cls,
        folder: Path,
        sources: tuple[Path | None, Path | None] = (None, None),
        roots: tuple[Path, ...] | None = None,
    ) -> Pair:
        """Raises `OutputError` for a folder that holds no comparison, or one of maps that are not beside it."""
        other = told_without_maps(folder)
        if other is not None:
            msg = f"{folder}: pages show changes between two maps, and these are not; look at {other} in QGIS"
            raise OutputError(msg)
        maps = maps_beside(folder, read_summary(folder))
        before, after = (scene_below(each, given, roots) for each, given in zip(maps, sources, strict=True))
        grid = maps[1].grid
        moved = None if before.imagery is None else before.imagery.on(grid)
        return cls(folder, maps, (Below(moved, before.why), after))


def change_page(pair: Pair, detail: Detail) -> Page:
    """The page of what has changed between two scenes."""
    folder, maps, below = pair.folder, pair.maps, pair.below
    item, summary, after = read_item(folder), read_summary(folder), maps[1]
    frame = footprints_in(folder, "changes.parquet")
    shapes = packed(frame, after.grid, _status_colours(item))
    layers = _both_dates(maps, below, detail)
    layers += _transitions(folder, item, detail)
    layers.append(outlines("changes", "What has changed", shapes, "status"))
    names = tuple(str(mapped.item["id"]) for mapped in maps)
    column = next((name for name in ("area_m2", "area_after_m2") if name in frame), "area_m2")
    return Page(
        title=str(item["properties"].get("title") or folder.name),
        subtitle=_shift_text(summary),
        numbers=_change_numbers(summary, frame),
        made=now(),
        viewer=viewer_of(after.grid, after.metres, layers),
        sides=(names[0], names[1]),
        notes=tuple(dict.fromkeys(note for note in (*(b.why for b in below), _left_out(shapes)) if note)),
        tables=_change_tables(summary),
        histograms=histograms_of(frame, column, "what has changed"),
        worst=worst_of(frame, shapes, after.grid, below[1].imagery, detail.worst),
        worst_layer="changes",
        provenance=provenance_of(item, after.grid),
        parameters=tuple(flattened(item["properties"].get("geoseg:parameters", {}))),
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """The numbers of a change. Raises `OutputError` if they are not there."""
    import json

    try:
        found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder / 'summary.json'}: cannot be read ({error}); compare the scenes again"
        raise OutputError(msg) from error
    return found


def maps_beside(folder: Path, summary: dict[str, Any]) -> tuple[Map, Map]:
    """The maps that were compared: folders beside the change's, and nowhere else."""
    before, after = (Path(str(summary[when]["scene"])).name for when in ("before", "after"))
    return Map.of(folder.parent / before), Map.of(folder.parent / after)


def _both_dates(maps: tuple[Map, Map], below: tuple[Below, Below], detail: Detail) -> list[dict[str, Any]]:
    """A picture of each date on the later one's grid: of the scenes, or where they are not there of the labels."""
    grid, found = maps[1].grid, []
    for mapped, under, side in zip(maps, below, ("before", "after"), strict=True):
        if under.imagery is None:
            continue
        title = f"{side.capitalize()}: {mapped.item['id']}"
        found.append(picture(side, title, scene_picture(under.imagery.overview(detail.scene)), side=side))
    for mapped, side in zip(maps, ("before", "after"), strict=True):
        if mapped.grid != grid:
            continue  # labels of another grid would have to be resampled
        layer = labels_layer(mapped, detail.labels, f"labels-{side}", f"Labels {side}", side=side)
        found.append({**layer, "visible": not any(each["id"] == side for each in found)})
    return found


def _transitions(folder: Path, item: dict[str, Any], detail: Detail) -> list[dict[str, Any]]:
    """The raster of what each pixel was and is, where classes were compared."""
    if not (folder / TRANSITIONS_FILE).exists():
        return []
    mapped = Map(
        folder, {**item, "assets": {"labels": item["assets"]["transitions"]}}, map_grid(folder / TRANSITIONS_FILE)
    )
    colours = {value: colour for value, _, colour in mapped.classes if value}
    data = labels_picture(read_map(folder / TRANSITIONS_FILE, detail.labels), colours, {0})
    return [picture("transitions", "Transitions", data, smooth=False, opacity=0.7)]


def _status_colours(item: dict[str, Any]) -> dict[str, str]:
    asset = item["assets"].get("transitions", {})
    return {name: colour for _, name, colour in classes_in(asset)}


def _shift_text(summary: dict[str, Any]) -> str:
    shift, tolerance = summary.get("shift", {}), summary.get("tolerance_m")
    parts = [f"{summary['before']['scene']} to {summary['after']['scene']}", str(summary.get("model", ""))]
    if tolerance is not None:
        parts.append(f"tolerance {tolerance:g} m")
    if shift.get("known"):
        parts.append(f"images {shift['length_m']:.2f} m apart{', corrected' if shift.get('applied') else ''}")
    elif shift:
        parts.append("how the images lie beside each other is not known")
    return " · ".join(part for part in parts if part)


def _change_numbers(summary: dict[str, Any], frame: gpd.GeoDataFrame) -> tuple[tuple[str, str], ...]:
    if "statuses" in summary:
        told = [(name.replace("_", " ").capitalize(), f"{row['count']:,}") for name, row in summary["statuses"].items()]
        return tuple(entry for entry in told if entry[0] != "All")[:7]
    changed = sum(v for i, row in enumerate(summary["hectares"]) for j, v in enumerate(row) if i != j)
    return (
        ("Changed", f"{amount(changed)} ha"),
        ("Compared", f"{amount(summary['compared_hectares'])} ha"),
        ("Polygons", f"{len(frame):,}"),
    )


def _change_tables(summary: dict[str, Any]) -> tuple[Table, ...]:
    if "statuses" in summary:
        head = ("Status", "Count", "Before, m²", "After, m²", "Difference, m²")
        keys = ("area_before_m2", "area_after_m2", "difference_m2")
        rows = tuple(
            (name.replace("_", " "), f"{row['count']:,}", *(f"{row[key]:,.1f}" for key in keys))
            for name, row in summary["statuses"].items()
        )
        return (Table("What has changed", head, rows),)
    names = [str(name) for name in summary["classes"]]
    rows = tuple((name, *(amount(v) for v in row)) for name, row in zip(names, summary["hectares"], strict=True))
    return (Table("Hectares from each class (row) to each other (column)", ("From / to", *names), rows),)
