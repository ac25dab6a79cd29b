"""Two dates' footprints compared, and the files of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geoseg.changes import objects
from geoseg.changes.by_class import sure_codes, write_codes
from geoseg.changes.ground import Evidence, Ground, evidence
from geoseg.evaluation.inputs import metric_crs
from geoseg.export import Count, Observer
from geoseg.io.geoparquet import write_parquet
from geoseg.io.vectors import read_polygons, write_geojson

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.changes.planned import ChangePlan


def by_object(
    planned: ChangePlan, ground: Ground, layers: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame], observe: Observer
) -> tuple[dict[str, Any], dict[str, int]]:
    """Compare footprints, write them; what the summary says of them, and counts for the item."""
    events = objects.compare(
        *_sides(planned, ground, layers, observe), objects.Rules(planned.tolerance, planned.job.min_confidence)
    )
    frame = _object_frame(planned, events, layers)
    kept = frame if planned.job.unchanged else frame[frame["status"] != "unchanged"].reset_index(drop=True)
    write_geojson(kept, planned.folder / "changes.geojson")
    write_parquet(kept, planned.folder / "changes.parquet")
    write_codes(planned, sure_codes(planned, ground, planned.job.min_confidence), ground.grid, "changes.tif")
    numbers = objects.summary(events.table)
    content: dict[str, Any] = {"statuses": numbers}
    if planned.job.zones is not None:
        content["zones"] = _zones(planned, frame)
    return content, {name: int(row["count"]) for name, row in numbers.items() if name != "all"}


def _sides(
    planned: ChangePlan, ground: Ground, layers: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame], observe: Observer
) -> tuple[objects.Objects, objects.Objects]:
    """The objects of both dates in metres, with what the maps say about their ground."""
    before, after = _evidence(planned, ground, layers, observe)
    metres = metric_crs(ground.grid)

    def side(layer: gpd.GeoDataFrame, seen: Evidence, own: str, other: str) -> objects.Objects:
        present, elsewhere = (getattr(seen, f"present_{when}") for when in (own, other))
        polygons = _valid(layer.to_crs(metres).geometry.to_numpy())
        return objects.Objects(layer["id"].to_numpy(object), polygons, seen.seen, present, 1 - elsewhere)

    return side(layers[0], before, "before", "after"), side(layers[1], after, "after", "before")


def _evidence(
    planned: ChangePlan, ground: Ground, layers: tuple[gpd.GeoDataFrame, ...], observe: Observer
) -> list[Evidence]:
    """What both maps say about the ground of each layer's objects. Raises `SceneError` if they see none in common."""
    progress = Count(observe, "comparing", math.prod(ground.shape))
    polygons = [layer.geometry.to_numpy() for layer in layers]
    background = planned.after.model.legend.background or 0
    found, seen = evidence(ground, polygons, background, planned.reach, progress=progress.add)
    if not seen:
        raise planned.nothing_seen()
    return found


def moved(layer: gpd.GeoDataFrame, grid: GeoBox, shift_px: tuple[float, float]) -> gpd.GeoDataFrame:
    """Footprints moved by rows and columns of a grid."""
    rows, cols = shift_px
    affine = grid.affine
    by = np.array([affine.a * cols + affine.b * rows, affine.d * cols + affine.e * rows])
    return layer.set_geometry(shapely.transform(layer.geometry.to_numpy(), lambda xy: xy + by), crs=layer.crs)


def _valid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    """Polygons that another projection has made invalid, mended."""
    broken = ~shapely.is_valid(polygons)
    polygons[broken] = shapely.make_valid(polygons[broken], method="structure", keep_collapsed=False)
    return polygons


def _object_frame(
    planned: ChangePlan, events: objects.Events, layers: tuple[gpd.GeoDataFrame, gpd.GeoDataFrame]
) -> gpd.GeoDataFrame:
    """The events with dates and geometry: that of the objects after, else of those before."""
    table, (before, after) = events.table, layers
    first = [table[name].fillna("").str.partition(objects.TOGETHER)[0] for name in ("id_before", "id_after")]
    return gpd.GeoDataFrame(
        {
            "id": (first[0] + "/" + first[1]).astype(str),
            **{name: table[name] for name in table.columns},
            **{
                name: pd.Series([value] * len(table), dtype="datetime64[us, UTC]")
                for name, value in planned.dates.items()
            },
        },
        geometry=_geometry_of(events, before.geometry.to_numpy(), after.geometry.to_numpy()),
        crs=after.crs,
    )


def _geometry_of(
    events: objects.Events, before: NDArray[np.object_], after: NDArray[np.object_]
) -> NDArray[np.object_]:
    """A geometry for each event; what several objects cover is united."""
    geometry = np.full(len(events.table), None, object)
    for of, polygons in ((events.of_before, before), (events.of_after, after)):  # the latter has the last word
        geometry[of] = polygons
        several = np.flatnonzero((np.bincount(of, minlength=len(geometry)) > 1)[of])
        members = pd.Series(several).groupby(of[several])
        for event, places in members:
            geometry[event] = shapely.union_all(polygons[places.to_numpy()])
    return geometry


def _zones(planned: ChangePlan, frame: gpd.GeoDataFrame) -> list[dict[str, Any]]:
    """The summary of each polygon of a file: an event is where a point inside it is. Writes zones.geojson."""
    path = Path(planned.job.zones or "")
    polygons = read_polygons(path).to_crs(frame.crs)
    columns = gpd.read_file(path, ignore_geometry=True)
    names = columns["name"].astype(str) if "name" in columns else pd.Series(polygons.index.astype(str), polygons.index)
    points = shapely.point_on_surface(frame.geometry.to_numpy())
    zone, event = shapely.STRtree(points).query(polygons.to_numpy(), predicate="intersects")
    found = [objects.summary(frame.iloc[np.sort(event[zone == place])]) for place in range(len(polygons))]
    told = [
        {"zone": int(row), "name": names[row], "statuses": numbers}
        for row, numbers in zip(polygons.index, found, strict=True)
    ]
    flat = pd.DataFrame([_flat(each) for each in told]).fillna(0)
    flat = flat.astype({name: int for name in flat if name.endswith("_count")})  # what one zone lacks made them floats
    write_geojson(gpd.GeoDataFrame(flat, geometry=polygons.to_numpy(), crs=frame.crs), planned.folder / "zones.geojson")
    return told


def _flat(zone: dict[str, Any]) -> dict[str, Any]:
    """A zone's numbers as columns: <status>_count and <status>_m2, the latter being the difference."""
    columns = {"id": zone["zone"], "name": zone["name"]}
    for status, numbers in zone["statuses"].items():
        columns |= {f"{status}_count": numbers["count"], f"{status}_m2": numbers["difference_m2"]}
    return columns
