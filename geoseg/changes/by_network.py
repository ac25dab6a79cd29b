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
from geoseg.changes.alignment import Measured
from geoseg.changes.ground import seen_by_both, window_on
from geoseg.changes.planned import BETWEEN, ChangeJob, check_order, no_ground
from geoseg.errors import OptionError
from geoseg.io.geoparquet import write_parquet
from geoseg.io.scenes import as_asked, estimate_stretch, open_scene, open_source
from geoseg.io.stacks import stacked
from geoseg.io.store import cannot_write
from geoseg.io.vectors import write_geojson
from geoseg.pipeline import Result, run
from geoseg.planned import Plan, asked_by, plan
from geoseg.records import join_changes, set_interval, write_json
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from geoseg.catalog import ModelSpec, Scene
    from geoseg.export import Observer
    from geoseg.io.pixels import SceneSource
    from geoseg.planned import SegmentJob

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
    measured: Measured | None
    """How the scenes lie beside each other, if the one before is moved."""
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
    before, after = (open_scene(each.scene, select=each.select) for each in (job.before, job.after))
    scene, measured = pair_of(job, before, after, find_model(job.after.product, job.after.model))
    mapped = plan(job.after, scene)
    return PairPlan(job, before, after, measured, mapped, mapped.complete and has_changes(mapped.folder))


def pair_of(job: ChangeJob, before: Scene, after: Scene, model: ModelSpec) -> tuple[Scene, Measured | None]:
    """Both scenes as the one that a network for two dates maps; and by how much the first was moved, if that is asked.

    Reads blocks of both for that. Raises `OptionError` or `SceneError` for what cannot be a pair, `SceneError` if the
    shift is to be corrected and not known.
    """
    _check_options(job)
    check_order(job, before, after)
    if window_on(after.geobox, before.geobox) is None:
        raise no_ground(before, after)
    name = f"{before.id}{BETWEEN}{after.id}{BETWEEN}{model.name}"
    if not job.align:
        return stacked(before, after, name=name), None
    sources = [_source(scene, model, each) for scene, each in ((before, job.before), (after, job.after))]
    grid = sources[1].scene.geobox
    overlap = window_on(grid, sources[0].scene.geobox) or Window.of_shape(sources[1].shape)
    measured = Measured.of(sources[0], sources[1], overlap, lambda _stage, _done, _total: None, align=True)
    rows, cols = measured.applied
    affine = grid.affine
    moved = (affine.a * cols + affine.b * rows, affine.d * cols + affine.e * rows)
    return stacked(before, after, name=name, moved=moved), measured


def _source(scene: Scene, model: ModelSpec, job: SegmentJob) -> SceneSource:
    """A scene as the network will see it."""
    asked, bands = as_asked(scene, model.bands, asked_by(job))
    return open_source(asked, bands, estimate_stretch(asked, bands))


def _check_options(job: ChangeJob) -> None:
    """Refuse what is of use for maps that are compared only."""
    defaults = ChangeJob(job.before, job.after)
    for option in ("tolerance", "match", "min_confidence", "unchanged", "zones", "index"):
        if getattr(job, option) != getattr(defaults, option):
            msg = f"--{option.replace('_', '-')}: is for two maps that are compared, and {job.after.model} sees both "
            raise OptionError(msg + "scenes at once; leave it out, or choose a model of one scene")


def has_changes(folder: Path) -> bool:
    """Whether the item of a folder tells of all files of a comparison."""
    try:
        told = json.loads((folder / "item.json").read_text(encoding="utf-8"))["assets"]
    except (OSError, ValueError, KeyError):
        return False
    return all(key in told and (folder / name).exists() for key, (name, _, _) in ASSETS.items())


def run_pair(planned: PairPlan, observe: Observer) -> Compared:
    """Carry out a plan, going on from what an earlier run has left.

    Raises `SceneError` if no pixel is seen by both.
    """
    if not planned.mapped.complete:
        run(planned.mapped, observe)
    return tell_changes(planned)


def tell_changes(planned: PairPlan) -> Compared:
    """Write what has changed of a plan both of whose scenes are mapped as one.

    Raises `SceneError` if no pixel is seen by both.
    """
    folder, item = planned.folder, planned.folder / "item.json"
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
        f"date_{name}": pd.Series([scene.taken] * len(found), dtype="datetime64[us, UTC]")
        for name, scene in dates.items()
    }
    columns = {"id": found["id"], "status": found["class"], **{name: found[name] for name in KEPT}, **when}
    return gpd.GeoDataFrame(columns, geometry=found.geometry.to_numpy(), crs=found.crs)


def _with_changes(item: dict[str, Any], planned: PairPlan) -> dict[str, Any]:
    """The item of the result, with the changes and the time between both dates."""
    import pystac

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
    if planned.measured is not None:
        properties["geoseg:parameters"]["shift"] = planned.measured.told()
    made = pystac.Item.from_dict(item)
    set_interval(made, before.taken, after.taken)
    if (collection := planned.mapped.job.collection) is not None:
        for rel in ("root", "parent", "collection"):
            made.clear_links(rel)
        join_changes(made, collection)
    return made.to_dict(include_self_link=False, transform_hrefs=False)
