"""`change`: two scenes of one place in, what has changed between them out.

Both scenes are mapped by `geoseg.pipeline` into their own folders of OUT, as `segment` does it, so maps that are there
are used and a stopped run goes on. The comparison lies beside them in `OUT/<before>--<after>/`; it takes little next to
the maps, so it is made anew whenever it is asked for with other parameters. `item.json` is written last.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import rasterio

from geoseg.catalog import Provenance, file_asset, result_item
from geoseg.changes import transitions
from geoseg.changes.alignment import Measured
from geoseg.changes.by_class import by_class
from geoseg.changes.by_network import Compared, PairPlan, plan_pair, run_pair, takes_two
from geoseg.changes.by_object import by_object, moved
from geoseg.changes.by_spectrum import SPECTRAL, SpectralPlan, plan_spectral, run_spectral
from geoseg.changes.ground import CACHED, common_ground, has_data
from geoseg.changes.planned import BETWEEN, ChangePlan, begun, job_of, plan_change, planned_of
from geoseg.errors import SceneError
from geoseg.io.store import cannot_write
from geoseg.memory import give_back_freed_memory
from geoseg.pipeline import Result, decided, machine_of, run
from geoseg.raster import NODATA, crs_of
from geoseg.records import alone_in, derived_from, join_changes, set_interval, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pystac

    from geoseg.catalog import Scene
    from geoseg.changes.planned import ChangeJob
    from geoseg.export import Observer
    from geoseg.pipeline import Predictor
    from geoseg.planned import Plan


@dataclass(frozen=True)
class Change:
    """The folder of a comparison, and what is in it."""

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        """`folder` holds the files; nothing of it is read yet."""
        object.__setattr__(self, "folder", Path(folder))

    @property
    def changes(self) -> gpd.GeoDataFrame:
        """What has changed, in the CRS of the scene after."""
        return gpd.read_parquet(self.folder / "changes.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers: what was compared, the shift, and each status or transition."""
        return _json(self.folder / "summary.json")

    @property
    def item(self) -> dict[str, Any]:
        """The STAC item that tells how the results came about."""
        return _json(self.folder / "item.json")

    def _repr_html_(self) -> str:
        from geoseg.view.cards import change_card

        return change_card(self.folder)


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def change(
    before: str | Path | Scene,
    after: str | Path | Scene,
    product: str,
    out: str | Path,
    *,
    observe: Observer | None = None,
    **options: Any,
) -> Change | Compared:
    """Map two scenes and compare them; returns at once if the results are there already.

    With a model that takes two scenes nothing is mapped but what has changed: see `geoseg.changes.by_network`.

    Options are those of `ChangeJob`, and those of `SegmentJob` for both scenes. Writes `OUT/<scene id>/` for each as
    `segment` does, and `OUT/<before>--<after>/` with changes.geojson, changes.parquet, changes.tif, summary.json and
    item.json; for products without a background transitions.tif and transitions.csv in place of changes.tif. With the
    product `spectral` nothing is mapped: see `geoseg.changes.spectral`. Raises the errors of `geoseg.errors`.
    """
    planned = plan_of(job_of(before, after, product, out, **options))
    if planned.complete:
        return (Compared if isinstance(planned, PairPlan) else Change)(planned.folder)
    return run_change(planned, observe or (lambda _stage, _done, _total: None))


def plan_of(job: ChangeJob) -> ChangePlan | SpectralPlan | PairPlan:
    """Look at every input of a job, in the way of its product or model. Raises the errors of `geoseg.errors`."""
    if job.after.product == SPECTRAL:
        return plan_spectral(job)
    return plan_pair(job) if takes_two(job) else plan_change(job)


def run_change(planned: ChangePlan | SpectralPlan | PairPlan, observe: Observer) -> Change | Compared:
    """Carry out a plan: estimate the shift, map what is not mapped yet, compare; nobody else is at work in OUT.

    Raises `SceneError` if `align` is asked for and blocks do not agree on a shift, or if nothing is seen by both, which
    of a scene without any data is found before the other one is mapped; `OutputError` if another run is at work in OUT.
    """
    with _alone_in(planned.folder.parent):
        if isinstance(planned, SpectralPlan):
            return Change(run_spectral(planned, observe))
        if isinstance(planned, PairPlan):
            return run_pair(planned, observe)
        _check_data(planned)
        measured = measure(planned, observe)
        (before, after), model = decided(planned.before, planned.after)
        planned = planned_of(planned.job, before, after)
        return compare(planned, _map_both(planned, model, observe), measured, observe)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    with alone_in(out):
        yield


def _check_data(planned: ChangePlan) -> None:
    """Raises `SceneError` if one of the scenes has no data at all."""
    with rasterio.Env(GDAL_CACHEMAX=CACHED):
        for each in (planned.before, planned.after):
            if not has_data(each.source):
                msg = f"{each.scene.path}: no pixel has data, so nothing can be compared; check its nodata value, "
                raise SceneError(msg + "--mask and --aoi")


def measure(planned: ChangePlan, observe: Observer) -> Measured:
    """How the scenes lie beside each other. Raises `SceneError` if that is to be corrected and not known."""
    sources = planned.before.source, planned.after.source
    with rasterio.Env(GDAL_CACHEMAX=CACHED):
        return Measured.of(*sources, planned.overlap, observe, align=planned.job.align)


def compare(planned: ChangePlan, maps: tuple[Result, Result], measured: Measured, observe: Observer) -> Change:
    """Compare two scenes that are mapped, and write the files of it. Raises `SceneError` if nothing is seen by both."""
    with rasterio.Env(GDAL_CACHEMAX=CACHED):
        return _compare(planned, maps, measured, observe)


def _compare(planned: ChangePlan, maps: tuple[Result, Result], measured: Measured, observe: Observer) -> Change:
    folder = begun(planned.folder)
    ground = common_ground(maps[0].folder, maps[1].folder, measured.applied)
    if planned.by_class:
        content, counts = by_class(planned, ground, observe)
    else:
        before = maps[0].footprints.to_crs(crs_of(ground.grid).wkt)
        layers = moved(before, ground.grid, measured.applied), maps[1].footprints
        content, counts = by_object(planned, ground, layers, observe)
    write_json(folder / "summary.json", _about(planned, measured) | content)
    _write_item(planned, maps, measured, counts)
    return Change(folder)


def _map_both(planned: ChangePlan, model: Callable[[str], Predictor], observe: Observer) -> tuple[Result, Result]:
    """The results of both scenes, with one model for both."""

    def result(when: str, each: Plan) -> Result:
        if each.complete:
            return Result(each.folder)
        made = run(each, lambda stage, done, total: observe(f"{when}: {stage}", done, total), model=model)
        give_back_freed_memory()  # it is in pieces that little of what comes next fits into
        return made

    return result("before", planned.before), result("after", planned.after)


def _about(planned: ChangePlan, measured: Measured) -> dict[str, Any]:
    """What the summary says whatever was compared."""
    scenes = {"before": planned.before.scene, "after": planned.after.scene}
    return {
        "product": planned.after.model.product,
        "model": planned.after.model.name,
        **{when: {"scene": scene.id, "datetime": _iso(scene.taken)} for when, scene in scenes.items()},
        "tolerance_m": planned.tolerance,
        "shift": measured.told(),
    }


def _iso(when: dt.datetime | None) -> str | None:
    return None if when is None else when.isoformat().replace("+00:00", "Z")


# --- the record


COG, GEOJSON = "image/tiff; application=geotiff; profile=cloud-optimized", "application/geo+json"
ASSETS: Final = {
    "changes": ("changes.geojson", GEOJSON, "what has changed, longitude and latitude"),
    "changes_parquet": ("changes.parquet", "application/vnd.apache.parquet", "what has changed, in the scene's CRS"),
    "summary": ("summary.json", "application/json", "numbers of the comparison"),
    "changes_raster": ("changes.tif", COG, "which pixels have changed, and how"),
    "transitions": ("transitions.tif", COG, "what each pixel was and is now"),
    "transitions_csv": ("transitions.csv", "text/csv", "hectares from each class to each other"),
    "zones": ("zones.geojson", GEOJSON, "numbers of each zone"),
}
"""File, media type and title of each asset."""


def _write_item(planned: ChangePlan, maps: tuple[Result, Result], measured: Measured, counts: dict[str, int]) -> None:
    """Write the item, by which the comparison is complete."""
    folder, wanted = planned.folder, planned.files
    scene = dataclasses.replace(planned.after.scene, id=folder.name)
    machine = machine_of(planned.job.after)
    made = Provenance(
        planned.after.model,
        {"geoseg": version("geoseg"), "torch": machine["torch"]},
        {**planned.parameters, "shift": measured.told()},
        dt.datetime.now(dt.UTC).replace(microsecond=0),
        counts,
    )
    assets = {
        key: file_asset(folder / name, kind, title, ["data"], _extra(planned, key))
        for key, (name, kind, title) in ASSETS.items()
        if name in wanted
    }
    item = result_item(scene, folder, assets, made)
    item.properties["title"] = f"change of {planned.after.model.product}: {folder.name.replace(BETWEEN, ' to ')}"
    files = " and ".join(scene.name for scene in planned.scenes)
    item.properties["processing:lineage"] = f"{planned.after.model.name} on {files}, compared"
    set_interval(item, *(scene.taken for scene in planned.scenes))
    _link_sources(item, planned, maps)
    join_changes(item, planned.job.after.collection)
    write_json(folder / "item.json", item.to_dict(include_self_link=False, transform_hrefs=False))


def _extra(planned: ChangePlan, key: str) -> dict[str, Any]:
    """What is told about a raster's values."""
    if key not in {"transitions", "changes_raster"}:
        return {}
    classes = [
        {"value": c.value, "name": c.name, "color_hint": c.colour.removeprefix("#").upper()}
        for c in transitions.transition_legend(planned.after.model.legend).classes
    ]
    return {"data_type": "uint8", "nodata": NODATA, "classification:classes": classes}


def _link_sources(item: pystac.Item, planned: ChangePlan, maps: tuple[Result, Result]) -> None:
    """Both results, beside the scene after and the model; the scene before is found by its result."""
    for result in maps:
        item.add_link(derived_from(os.path.relpath(result.folder / "item.json", planned.folder), result.folder.name))
