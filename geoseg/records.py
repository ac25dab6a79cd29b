"""What a run leaves in OUT about itself, and what can be read from it.

OUT/run.json         the job, its scenes, and those that could not be planned: the latest run's
OUT/failed.geojson   where something failed in the latest run; absent where nothing did
OUT/collection.json  STAC collection of all results; each scene's item lies in its folder
OUT/footprints.*     all footprints as one layer, if they were merged (see `geoseg.merge`); assets of the collection
OUT/changes.json     STAC collection of all comparisons, if pairs were compared
OUT/items.parquet    the same items as stac-geoparquet (with the extra `archive`)
OUT/<scene>/         results, with a ledger of what is done
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import posixpath
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import shapely

from geoseg.catalog import COLLECTION
from geoseg.errors import OutputError
from geoseg.globe import outline_of
from geoseg.io.store import cannot_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pystac
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import ModelSpec
    from geoseg.io.catalogs import Fault
    from geoseg.window import Window

log = logging.getLogger("geoseg")

BACKGROUND = "geoseg:background"
"""The class of a collection's label maps that is no object; null where every class is one."""

MERGE = "geoseg:merge"
"""What a collection says of its merged footprints: how, from what, and how many."""

MERGED = {"footprints": "footprints.geojson", "footprints_parquet": "footprints.parquet"}
"""Assets of a collection, and their files."""

RUN, FAILED, INDEX, LOCK = "run.json", "failed.geojson", "items.parquet", ".lock"

CHANGES = "changes.json"
"""The STAC collection of a run's comparisons, beside that of its maps."""


@dataclass(frozen=True)
class Listed:
    """A scene of a run."""

    id: str
    href: str
    shape: tuple[int, int]
    """Rows, columns."""


@dataclass(frozen=True)
class Failure:
    """What could not be done, and where."""

    scene: str
    why: str
    geobox: GeoBox | None = None
    windows: tuple[Window, ...] = ()
    """Tiles; none: all of the scene."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Nobody else runs in OUT meanwhile; a lock that the system lets go of with the process, however that ends.

    Raises `OutputError` if somebody does. Where the system has no such locks, nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (out / LOCK).open("a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"{out}: another run is at work here; wait for it, or choose another --out"
            raise OutputError(msg) from error
        except OSError:
            log.info("%s: this file system has no locks", out)
        yield


def write_list(
    out: Path,
    job: dict[str, Any],
    data: Path,
    scenes: Iterable[Listed],
    faults: Iterable[Fault],
    comparisons: Iterable[str] = (),
) -> None:
    """Write `run.json`: the job, the folder that its paths count from, its scenes, and those that are none.

    `comparisons`: ids of what is compared.
    """
    content = {
        "began": _now().isoformat(),
        "job": job,
        "data": str(data),
        "scenes": [asdict(scene) for scene in scenes],
        "faults": [asdict(fault) for fault in faults],
        "comparisons": list(comparisons),
    }
    write_json(out / RUN, content)


def read_list(out: Path) -> dict[str, Any]:
    """What `run.json` says. Raises `OutputError` if OUT holds no run."""
    try:
        content: dict[str, Any] = json.loads((out / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{out}: holds no archive run ({RUN}: {getattr(error, 'strerror', None) or error}); name its --out"
        raise OutputError(msg) from error
    return content


def listed_in(content: dict[str, Any]) -> Iterator[Listed]:
    """The scenes of a `run.json`."""
    for scene in content["scenes"]:
        yield Listed(scene["id"], scene["href"], (scene["shape"][0], scene["shape"][1]))


def write_failures(out: Path, failures: Iterable[Failure]) -> None:
    """Write `failed.geojson` (longitude and latitude), or remove it where nothing failed.

    A feature for each tile that failed, or for a scene as a whole, without geometry where its place is unknown.
    """
    features = [feature for failure in failures for feature in _features(failure)]
    if features:
        write_json(out / FAILED, {"type": "FeatureCollection", "features": features})
    else:
        (out / FAILED).unlink(missing_ok=True)


def _features(failure: Failure) -> Iterator[dict[str, Any]]:
    for window in failure.windows or (None,):
        properties: dict[str, Any] = {"scene": failure.scene, "why": failure.why}
        geometry = None
        if failure.geobox is not None:
            part = failure.geobox if window is None else failure.geobox[window.slices]
            outline = outline_of(part)
            geometry = json.loads(shapely.to_geojson(shapely.transform(outline, lambda xy: xy.round(7))))
        if window is not None:
            properties["tile"] = [*window.row_range, *window.col_range]
        yield {"type": "Feature", "properties": properties, "geometry": geometry}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is there as a whole or not at all. Raises `OutputError` if the disk refuses."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def items_of(out: Path, collection: str) -> Iterator[dict[str, Any]]:
    """The STAC items of a collection's results that are complete, by folder."""
    for path in sorted(out.glob("*/item.json")):
        item: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if item.get("collection") == collection:
            yield item


def read_collection(out: Path) -> dict[str, Any]:
    """The collection of the results in OUT. Raises `OutputError` if there is none."""
    try:
        content: dict[str, Any] = json.loads((out / COLLECTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        msg = f"{out}: holds no results of an archive run ({COLLECTION}: {why}); name the --out of `geoseg run`"
        raise OutputError(msg) from error
    return content


def write_merged(out: Path, content: dict[str, Any], assets: dict[str, pystac.Asset], record: dict[str, Any]) -> None:
    """Write a collection that has merged footprints among its assets, and the record of them."""
    told = {**content["assets"], **{key: asset.to_dict() for key, asset in assets.items()}}
    write_json(out / COLLECTION, {**content, "assets": told, MERGE: record})


def write_collection(out: Path, collection: str, title: str, licence: str, model: ModelSpec) -> dict[str, float]:
    """Write the STAC collection of all results in OUT, and their index; what all of them count, added up.

    Nothing is written where there are no results, and nothing counted.
    """
    items = list(items_of(out, collection))
    if not items:
        return {}
    made = _collection(collection, title, licence, model, items, out)
    if (out / COLLECTION).exists():
        made = _with_merged(made, read_collection(out))
    write_json(out / COLLECTION, made)
    _write_index(out / INDEX, items)
    counts = [item["properties"]["geoseg:counts"] for item in items]
    # results of earlier versions do not tell areas, and a sum without them would be wrong
    return {name: sum(each[name] for each in counts) for name in counts[0] if all(name in each for each in counts)}


def set_interval(item: pystac.Item, first: dt.datetime | None, last: dt.datetime | None) -> None:
    """The interval between both dates; as in results of one scene, from 1970 to now where a date is not known."""
    began, ended = first or dt.datetime(1970, 1, 1, tzinfo=dt.UTC), last or _now()
    item.datetime = None
    item.common_metadata.start_datetime, item.common_metadata.end_datetime = min(began, ended), max(began, ended)
    item.properties["geoseg:datetime_known"] = first is not None and last is not None


def derived_from(href: str, title: str) -> pystac.Link:
    """A link to the item of what another one was derived from."""
    import pystac

    return pystac.Link("derived_from", href, media_type="application/geo+json", title=title)


def join_changes(item: pystac.Item, collection: str | None) -> None:
    """Let a comparison's item belong to the comparisons of a run, if its maps belong to one."""
    import pystac

    if collection is None:
        return
    item.collection_id = changes_of(collection)
    for rel in ("root", "parent", "collection"):
        item.add_link(pystac.Link(rel, f"../{CHANGES}", media_type="application/json"))


def changes_of(collection: str) -> str:
    """Id of the collection of a run's comparisons, by that of its maps."""
    return f"{collection}-changes"


def write_changes(out: Path, collection: str, title: str, licence: str, product: str) -> int:
    """Write the STAC collection of all comparisons in OUT; how many there are, and nothing is written for none."""
    import pystac

    items = list(items_of(out, changes_of(collection)))
    if not items:
        return 0
    boxes = [item["bbox"] for item in items]
    around = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    known = [item["properties"] for item in items if item["properties"].get("geoseg:datetime_known")]
    ends = [sorted(dt.datetime.fromisoformat(each[f"{end}_datetime"]) for each in known) for end in ("start", "end")]
    interval: list[dt.datetime | None] = [ends[0][0], ends[1][-1]] if known else [None, None]
    made = pystac.Collection(
        id=changes_of(collection),
        title=f"{title or product}: changes",
        description=f"What has changed between scenes: {len(items)} comparisons by geoseg, of {product}.",
        extent=pystac.Extent(pystac.SpatialExtent([around]), pystac.TemporalExtent([interval])),
        license=licence,
    )
    for item in items:
        made.add_link(pystac.Link("item", f"./{item['id']}/item.json", media_type="application/geo+json"))
    if (out / COLLECTION).exists():
        made.add_link(pystac.Link("related", f"./{COLLECTION}", media_type="application/json", title="the maps"))
    content: dict[str, Any] = made.to_dict(include_self_link=False)
    content["links"] = [link for link in content["links"] if link["rel"] != "root"] + [
        {"rel": "root", "href": f"./{CHANGES}", "type": "application/json"}
    ]
    write_json(out / CHANGES, content)
    return len(items)


def _with_merged(made: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A collection, with what an earlier one says of merged footprints."""
    if MERGE not in before:
        return made
    kept = {key: asset for key, asset in before["assets"].items() if key in MERGED}
    return {**made, "assets": {**made.get("assets", {}), **kept}, MERGE: before[MERGE]}


def _collection(
    collection: str, title: str, licence: str, model: ModelSpec, items: list[dict[str, Any]], out: Path
) -> dict[str, Any]:
    import pystac

    boxes = [item["bbox"] for item in items]
    around = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
    known = [_when(item) for item in items if item["properties"].get("geoseg:datetime_known")]
    interval: list[dt.datetime | None] = [min(known), max(known)] if known else [None, None]
    made = pystac.Collection(
        id=collection,
        title=title or f"{model.product}, mapped with {model.name}",
        description=f"{model.product} in {len(items)} scenes, mapped by geoseg with the model {model.name}.",
        extent=pystac.Extent(pystac.SpatialExtent([around]), pystac.TemporalExtent([interval])),
        license=licence,
        summaries=pystac.Summaries({"geoseg:model": [{"name": model.name, "sha256": model.sha256}]}),
        extra_fields={BACKGROUND: model.legend.background},
    )
    made.add_link(pystac.Link("root", f"./{COLLECTION}", media_type="application/json"))
    for item in items:
        made.add_link(pystac.Link("item", f"./{item['id']}/item.json", media_type="application/geo+json"))
    href = os.path.relpath(model.weights.parent / "item.json", out)
    made.add_link(pystac.Link("derived_from", href, media_type="application/geo+json", title=model.name))
    if find_spec("stac_geoparquet") is not None:
        kind = "application/vnd.apache.parquet"
        made.add_asset("items", pystac.Asset(f"./{INDEX}", "all items as stac-geoparquet", media_type=kind))
    content: dict[str, Any] = made.to_dict(include_self_link=False)
    content["links"] = [link for link in content["links"] if link["rel"] != "root"] + [
        {"rel": "root", "href": f"./{COLLECTION}", "type": "application/json"}
    ]
    return content


def _when(item: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(item["properties"]["datetime"])


def _write_index(path: Path, items: list[dict[str, Any]]) -> None:
    """All items as stac-geoparquet, hrefs counting from the index."""
    if find_spec("stac_geoparquet") is None:
        log.info("%s is not written: pip install 'geoseg[archive]'", path)
        return
    import stac_geoparquet.arrow

    part = path.with_name(f".{path.name}.part")
    try:
        table = stac_geoparquet.arrow.parse_stac_items_to_arrow([_from_above(item) for item in items])
        stac_geoparquet.arrow.to_parquet(table, part)
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _from_above(item: dict[str, Any]) -> dict[str, Any]:
    """The same item, its relative hrefs counting from the folder above."""

    def moved(entry: dict[str, Any]) -> dict[str, Any]:
        href = entry["href"]
        away = "://" in href or href.startswith("/")
        return entry if away else {**entry, "href": posixpath.normpath(f"{item['id']}/{href}")}

    assets = {key: moved(asset) for key, asset in item["assets"].items()}
    return {**item, "assets": assets, "links": [moved(link) for link in item["links"]]}


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
