"""Two scenes through one network that takes both: what has changed, without a map of either date.

Both are stacked on the grid of the later one (`geoseg.io.stacks`) and mapped as one scene is, by `geoseg.pipeline`: so
tiles, stopped runs and missing data are what they are there. What the folder of a result has besides are the names by
which `geoseg change` tells what has changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import pandas as pd

from geoseg.catalog import file_asset, find_model
from geoseg.changes.ground import seen_by_both, window_on
from geoseg.changes.planned import ChangeJob, check_order, no_ground
from geoseg.errors import OptionError
from geoseg.io.geoparquet import write_parquet
from geoseg.io.scenes import open_scene
from geoseg.io.stacks import stacked
from geoseg.io.store import cannot_write
from geoseg.io.vectors import write_geojson
from geoseg.pipeline import Plan, Result, plan, run
from geoseg.records import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from geoseg.catalog import Scene
    from geoseg.export import Observer

COG: Final = "image/tiff; application=geotiff; profile=cloud-optimized"
ASSETS: Final = {
    "changed": ("changes.geojson", "application/geo+json", "what has changed, longitude and latitude"),
    "changed_parquet": ("changes.parquet", "application/vnd.apache.parquet", "what has changed, in the scene's CRS"),
    "changed_raster": ("changes.tif", COG, "which pixels have changed"),
}
"""File, media type and title of each asset that a result of one scene has not."""

KEPT: Final = ("area_m2", "perimeter_m", "confidence", "touches_nodata")


@dataclass(frozen=True)
class Compared(Result):
    """The folder of what a network for two dates says: labels and confidence as those of a scene, and the changes."""

    @property
    def changes(self) -> gpd.GeoDataFrame:
        """What has changed, in the CRS of the scene after."""
        return gpd.read_parquet(self.folder / "changes.parquet")


@dataclass(frozen=True)
class PairPlan:
    """A job whose every input was looked at."""

    job: ChangeJob
    before: Scene
    after: Scene
    mapped: Plan
    """Of both scenes as one."""
    complete: bool

    @property
    def folder(self) -> Path:
        """Of the results."""
        return self.mapped.folder


def takes_two(job: ChangeJob) -> bool:
    """Whether the model of a job takes both scenes at once. Raises `ModelError` if there is no such model."""
    return find_model(job.after.product, job.after.model).dates > 1


def plan_pair(job: ChangeJob) -> PairPlan:
    """Look at every input of a job whose model takes two scenes; reads headers, and overviews of what is not uint8.

    Raises the errors of `geoseg.errors`, those of mapping a scene among them.
    """
    _check_options(job)
    before, after = (open_scene(each.scene, select=each.select) for each in (job.before, job.after))
    check_order(job, before, after)
    if window_on(after.geobox, before.geobox) is None:
        raise no_ground(before, after)
    model = find_model(job.after.product, job.after.model)
    pair = stacked(before, after)
    mapped = plan(job.after, stacked(before, after, name=f"{pair.id}--{model.name}"))
    return PairPlan(job, before, after, mapped, mapped.complete and _has_changes(mapped.folder))


def _check_options(job: ChangeJob) -> None:
    """Refuse what is of use for maps that are compared only."""
    defaults = ChangeJob(job.before, job.after)
    for option in ("tolerance", "align", "match", "min_confidence", "unchanged", "zones"):
        if getattr(job, option) != getattr(defaults, option):
            msg = f"--{option.replace('_', '-')}: is for two maps that are compared, and {job.after.model} sees both "
            raise OptionError(msg + "scenes at once; leave it out, or choose a model of one scene")


def _has_changes(folder: Path) -> bool:
    """Whether the item of a folder tells of all files."""
    try:
        told = json.loads((folder / "item.json").read_text(encoding="utf-8"))["assets"]
    except (OSError, ValueError, KeyError):
        return False
    return all(key in told and (folder / name).exists() for key, (name, _, _) in ASSETS.items())


def run_pair(planned: PairPlan, observe: Observer) -> Compared:
    """Carry out a plan, going on from what an earlier run has left.

    Raises `SceneError` if no pixel is seen by both.
    """
    folder, item = planned.folder, planned.folder / "item.json"
    if not planned.mapped.complete:
        run(planned.mapped, observe)
    told = json.loads(item.read_text(encoding="utf-8"))
    if not told["properties"]["geoseg:counts"]["valid_pixels"]:
        raise seen_by_both(planned.before, planned.after)
    frame = _changes(planned)
    write_geojson(frame, folder / "changes.geojson")
    write_parquet(frame, folder / "changes.parquet")
    try:
        shutil.copyfile(folder / "labels.tif", folder / "changes.tif")
    except OSError as error:
        raise cannot_write(folder / "changes.tif", error) from error
    write_json(item, _with_changes(told, planned))
    return Compared(folder)


def _changes(planned: PairPlan) -> gpd.GeoDataFrame:
    """The polygons of what has changed, with both dates."""
    found, dates = Result(planned.folder).footprints, {"before": planned.before, "after": planned.after}
    when = {
        f"date_{name}": pd.Series([scene.datetime] * len(found), dtype="datetime64[us, UTC]")
        for name, scene in dates.items()
    }
    columns = {"id": found["id"], "status": found["class"], **{name: found[name] for name in KEPT}, **when}
    return gpd.GeoDataFrame(columns, geometry=found.geometry.to_numpy(), crs=found.crs)


def _with_changes(item: dict[str, Any], planned: PairPlan) -> dict[str, Any]:
    """The item of the result, with the changes and the time between both dates."""
    folder, properties = planned.folder, item["properties"]
    before, after = planned.before, planned.after
    extra = item["assets"]["labels"]
    raster = {key: extra[key] for key in ("data_type", "nodata", "classification:classes")}
    for key, (name, kind, title) in ASSETS.items():
        told = raster if key == "changed_raster" else {}
        item["assets"][key] = file_asset(folder / name, kind, title, ["data"], told).to_dict()
    names = f"{before.name} and {after.name}"
    properties["title"] = f"change of {planned.mapped.model.product}: {before.id} to {after.id}"
    properties["processing:lineage"] = f"{planned.mapped.model.name} on {names}"
    known = [scene.datetime for scene in (before, after) if scene.datetime is not None]
    properties["geoseg:datetime_known"] = len(known) == 2  # noqa: PLR2004  both
    if known:
        began, ended = (each.isoformat().replace("+00:00", "Z") for each in (min(known), max(known)))
        ended = ended if after.datetime is not None else properties["created"]
        began = began if before.datetime is not None else "1970-01-01T00:00:00Z"
        properties |= {"datetime": None, "start_datetime": began, "end_datetime": ended}
    return item
