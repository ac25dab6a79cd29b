"""What STAC catalogs hold: their items as scenes, of whose files nothing is read yet.

    collection.json                 a catalog, a collection or an item collection (a FeatureCollection)
    items.parquet                   stac-geoparquet (extra `archive`)
    collection.json#B04,B03,B02     of each item the assets of these keys

Catalogs are other people's text. What they name is used only as far as a `Rule` permits it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from geoseg.errors import OptionError, SceneError
from geoseg.io.band_names import assets_of, cloud_cover_of, date_of, join_pairs, name_of, permitted_masks, split_keys
from geoseg.io.hrefs import Rule, kind_of, scheme_of

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Iterator

    from shapely.geometry.base import BaseGeometry

SUFFIXES = (".json", ".geojson")


@dataclass(frozen=True)
class SceneRef:
    """A scene as a list or catalog tells of it; nothing of its file was read."""

    href: str
    """Absolute path or address of its raster, or of several as in `red=...,green=...`."""
    id: str
    datetime: dt.datetime | None = None
    item: str | None = None
    """Absolute path or address of the STAC item."""
    footprint: BaseGeometry | None = None
    """Longitude and latitude, if known."""
    bands: tuple[str, ...] = ()
    """STAC common names, if the item tells them."""
    masks: tuple[tuple[str, str], ...] = ()
    """Rasters of the item that tell what can be seen: what they are, and where."""
    cloud_cover: float | None = None
    """Per cent, if the item tells it."""


@dataclass(frozen=True)
class Fault:
    """A scene that cannot be mapped, and why, in a sentence."""

    name: str
    why: str


# --- catalogs


KINDS = ("Catalog", "Collection", "FeatureCollection")
"""Types of STAC objects that hold several items, or none."""


def catalog_of(path: str) -> tuple[str, tuple[str, ...] | None] | None:
    """The file of a path that is a catalog's, and which assets of its items are meant; None: it is no catalog's."""
    where, keys = split_keys(path)
    if scheme_of(where) or kind_of(where) != "file":
        return None
    if Path(where).suffix == ".parquet":
        return where, keys
    try:
        return (where, keys) if Path(where).suffix in SUFFIXES and _read_json(where).get("type") in KINDS else None
    except SceneError:
        return None  # opening it will tell what is wrong


def title_of(where: str) -> str:
    """What a catalog is called: its id, or else its file's name."""
    known = None if Path(where).suffix == ".parquet" else _read_json(where).get("id")
    return name_of({"id": known or Path(where).stem})


def refs_of(where: str, asset: str | tuple[str, ...] | None, rule: Rule) -> Iterator[SceneRef | Fault]:
    """The scenes of a catalog, in its order; lazy. `asset` is the key of the one that is read, or keys of several.

    Raises `OptionError` if the catalog itself cannot be read; what is wrong with one item is a `Fault`.
    """
    for found in _items(where, rule):
        yield found if isinstance(found, Fault) else ref_of(found, asset, rule)


@dataclass(frozen=True)
class Found:
    """A STAC item."""

    content: dict[str, Any]
    home: str
    """What its hrefs count from."""
    alone: bool
    """Whether it is all that its file holds, so that the file's path is the item's."""


def _items(where: str, rule: Rule) -> Iterator[Found | Fault]:
    """STAC items below a catalog; no object is visited twice, however its links go."""
    if Path(where).suffix == ".parquet":
        yield from (Found(item, where, alone=False) for item in _read_parquet(where))
        return
    seen: set[str] = set()
    coming = [where]
    while coming:
        here = coming.pop()
        if here in seen:
            continue
        seen.add(here)
        try:
            content = _read_json(here)
        except SceneError as error:
            if here == where:
                raise OptionError(str(error)) from error
            yield Fault(here, str(error))
            continue
        below, found = _opened(content, here, rule)
        coming += reversed(below)
        yield from found


def _opened(content: dict[str, Any], here: str, rule: Rule) -> tuple[list[str], list[Found | Fault]]:
    """What a STAC object leads to, and the items that it holds itself."""
    kind = content.get("type")
    if kind == "Feature":
        return [], [Found(content, here, alone=True)]
    if kind == "FeatureCollection":
        return [], [_held(item, here) for item in _listed(content, "features")]
    if kind in {"Catalog", "Collection"}:
        return _links(content, here, rule)
    return [], [Fault(here, f"{here}: is no STAC object (its type is {kind!r})")]


def _listed(content: dict[str, Any], key: str) -> list[Any]:
    """A list that a STAC object holds; nothing where there is none."""
    held = content.get(key)
    return held if isinstance(held, list) else []


def _held(item: Any, here: str) -> Found | Fault:
    """An item of an item collection."""
    return Found(item, here, alone=False) if isinstance(item, dict) else Fault(here, f"{here}: holds what is no item")


def _links(content: dict[str, Any], here: str, rule: Rule) -> tuple[list[str], list[Found | Fault]]:
    below: list[str] = []
    faults: list[Found | Fault] = []
    for link in _listed(content, "links"):
        if isinstance(link, dict) and link.get("rel") in ("child", "item"):
            href = str(link.get("href"))
            try:
                below.append(_normal(rule.permit(href, here)))
            except SceneError as error:
                faults.append(Fault(href, f"{here}: {error}"))
    return below, faults


def _normal(where: str) -> str:
    return where if scheme_of(where) else str(Path(where).resolve())


def _read_json(where: str) -> dict[str, Any]:
    try:
        if scheme_of(where):
            import pystac

            text = pystac.StacIO.default().read_text(where)
        else:
            text = Path(where).read_text(encoding="utf-8")
        content = json.loads(text)
    except Exception as error:  # pystac raises what its library for addresses does
        msg = f"{where}: cannot be read as STAC: {getattr(error, 'strerror', None) or error}"
        raise SceneError(msg) from error
    if not isinstance(content, dict):
        msg = f"{where}: cannot be read as STAC: it holds no JSON object"
        raise SceneError(msg)
    return content


def _read_parquet(where: str) -> Iterator[dict[str, Any]]:
    """Items of a stac-geoparquet file, batch by batch."""
    need_archive("stac_geoparquet")
    import pyarrow.parquet as pq
    import stac_geoparquet.arrow

    try:
        with pq.ParquetFile(where) as file:
            for batch in file.iter_batches(1024):
                yield from stac_geoparquet.arrow.stac_table_to_items(_table(batch, file.schema_arrow))
    except OSError as error:
        msg = f"{where}: cannot be read as stac-geoparquet: {error}"
        raise OptionError(msg) from error


def _table(batch: Any, schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_batches([batch], schema=schema)


def need_archive(module: str) -> None:
    """Raises `OptionError` if a package of the extra `archive` is not there."""
    if find_spec(module) is None:
        msg = f"this needs {module.replace('_', '-')}: pip install 'geoseg[archive]'"
        raise OptionError(msg)


# --- items


def self_href(item: dict[str, Any]) -> str:
    """Where an item says that it is; nothing if it does not."""
    return next((str(link["href"]) for link in item.get("links", ()) if link.get("rel") == "self"), "")


def ref_of(found: Found, asset: str | tuple[str, ...] | None, rule: Rule) -> SceneRef | Fault:
    """The scene of a STAC item; what is wrong with it is a `Fault` with its name."""
    item, home = found.content, found.home
    name = str(item.get("id"))
    try:
        return _scene_of(found, asset, rule)
    except SceneError as error:
        return Fault(name, f"{name}: {error}")
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.GEOSException) as error:
        return Fault(name, f"{name}: not a STAC item that can be used: {type(error).__name__}: {error} (in {home})")


def _scene_of(found: Found, asset: str | tuple[str, ...] | None, rule: Rule) -> SceneRef:
    item = found.content
    chosen = assets_of(item, (asset,) if isinstance(asset, str) else asset)
    hrefs = {name: rule.permit(str(each["href"]), found.home) for name, each in chosen.items()}
    bands = chosen.get("", {}).get("bands") or chosen.get("", {}).get("eo:bands") or ()
    names = tuple(str(band.get("eo:common_name") or band.get("common_name") or "") for band in bands)
    geometry = item.get("geometry")
    return SceneRef(
        href=hrefs[""] if "" in hrefs else join_pairs(hrefs),
        id=name_of(item),
        datetime=date_of(item),
        item=found.home if found.alone else self_href(item) or found.home,
        footprint=None if geometry is None else shapely.from_geojson(json.dumps(geometry)),
        bands=names if any(names) else (),
        masks=permitted_masks(item, found.home, rule),
        cloud_cover=cloud_cover_of(item),
    )
