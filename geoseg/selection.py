"""Which scenes a job is about: files, STAC catalogs and searches, narrowed by area and date.

Catalogs are other people's text. What they name is used only if it lies in the catalog's own folder (or in a folder
that the job names), or has a scheme that the job allows; GDAL's own ways to name things (`/vsi...`, `NETCDF:...`, XML)
are refused, because they reach anywhere.
"""

from __future__ import annotations

import datetime as dt
import glob
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import urlsplit

import shapely
from pydantic import BeforeValidator, Field, model_validator

from geoseg.errors import OptionError, SceneError
from geoseg.io.band_names import (
    assets_of,
    date_of,
    id_of_folder,
    in_full,
    is_band_folder,
    is_pairs,
    join_pairs,
    name_of,
    pairs_of,
    parts_of,
    permitted_masks,
)
from geoseg.io.hrefs import Rule, Scheme, absolute, join_labels, labelled, scheme_of, split_labels
from geoseg.io.mosaics import Order, is_mosaic
from geoseg.io.scenes import selected
from geoseg.io.vectors import read_polygons
from geoseg.jobs import Strict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shapely.geometry.base import BaseGeometry


Label: TypeAlias = Annotated[str, BeforeValidator(lambda given: given if isinstance(given, list) else str(given))]
"""A label as YAML has it: a date, a number or a word."""


class SceneFile(Strict):
    """One scene of a list, with what its file does not say."""

    href: str = Field(description="path, counted from the data folder, or address")
    id: str | None = Field(
        default=None, pattern=r"^\w[\w .-]*$", description="name of the scene and of its folder; None: the file's"
    )
    datetime: dt.datetime | None = Field(default=None, description="when it was taken; None: as the file says")


class Search(Strict):
    """A query to a STAC API."""

    api: str = Field(description="address of the API's landing page")
    collections: tuple[str, ...] = Field(min_length=1, description="ids of the collections to search")
    query: dict[str, Any] = Field(
        default_factory=dict, description="the query extension, such as {'eo:cloud_cover': {lt: 10}}"
    )
    limit: int | None = Field(default=None, gt=0, description="at most so many scenes; None: all")


class Mosaic(Strict):
    """All scenes of a job as one: where they overlap, a pixel is that of the first that is valid there."""

    order: Order = Field(
        default="first", description="which goes before the others: first (as listed), newest, oldest or least-cloud"
    )
    id: str = Field(default="mosaic", pattern=r"^\w[\w .-]*$", description="name of the mosaic and of its folder")


class Scenes(Strict):
    """Which scenes are mapped. At least one of files, catalogs and search is needed; they add up."""

    files: tuple[str | SceneFile, ...] = Field(
        default=(), description="paths, globs (** for all folders below) or {href, id, datetime}"
    )
    catalogs: tuple[str, ...] = Field(
        default=(), description="STAC catalogs, collections, items, item collections (.json), or stac-geoparquet"
    )
    search: Search | None = Field(default=None, description="a search of a STAC API (extra `archive`)")
    asset: str | tuple[str, ...] | None = Field(
        default=None,
        description="key of the asset to read of each item, or keys of assets that hold a band each; None: the only "
        "raster, or data or visual, or else all bands",
    )
    aoi: str | None = Field(default=None, description="vector file: only scenes that meet its polygons")
    dates: tuple[dt.date | None, dt.date | None] | None = Field(
        default=None, description="first and last day, in UTC, null for open; a scene without a date is an error then"
    )
    select: dict[str, Label] = Field(
        default_factory=dict,
        description="of Zarr stores and NetCDF files the one step of a dimension that is meant, such as "
        "{time: 2024-05-01}",
    )
    allow: tuple[Scheme, ...] = Field(
        default=(), description="remote schemes that scenes may come by; vsi: GDAL's own file systems and XML"
    )
    roots: tuple[str, ...] = Field(default=(), description="folders besides its own that a catalog may name files in")
    mosaic: Mosaic | None = Field(
        default=None, description="map all of them as one scene, such as {order: newest, id: town}; {} for the defaults"
    )

    @model_validator(mode="after")
    def _some(self) -> Scenes:
        if not (self.files or self.catalogs or self.search):
            msg = "files, catalogs or search must say where scenes come from"
            raise ValueError(msg)
        return self


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


@dataclass(frozen=True)
class Fault:
    """A scene that cannot be mapped, and why, in a sentence."""

    name: str
    why: str


@dataclass(frozen=True)
class Narrowing:
    """What of the scenes is wanted."""

    area: BaseGeometry | None = None
    """Longitude and latitude."""
    dates: tuple[dt.date | None, dt.date | None] | None = None

    def wants(self, name: str, footprint: BaseGeometry | None, when: dt.datetime | None) -> bool:
        """Whether a scene is wanted, as far as it is known. Raises `SceneError` if dates are asked for in vain."""
        if self.area is not None and footprint is not None and not self.area.intersects(footprint):
            return False
        if self.dates is None:
            return True
        if when is None:
            msg = f"{name}: its date is unknown, and the job chooses by date; give it in the job ({{href, datetime}})"
            raise SceneError(msg)
        first, last = self.dates
        day = _utc(when).date()
        return (first is None or first <= day) and (last is None or day <= last)


def narrowing(scenes: Scenes, data: Path) -> Narrowing:
    """The area and dates of a job. Raises `OptionError` for a file that is no area."""
    return Narrowing(None if scenes.aoi is None else read_area(data / scenes.aoi), scenes.dates)


def read_area(path: Path) -> BaseGeometry:
    """All polygons of a vector file, in longitude and latitude. Raises `OptionError` if there are none."""
    area: BaseGeometry = read_polygons(path).to_crs(4326).union_all()
    shapely.prepare(area)
    return area


def select(scenes: Scenes, data: Path) -> Iterator[SceneRef | Fault]:
    """All scenes of a job that its area and dates do not rule out, as far as nothing of their files is read.

    Relative paths count from `data`. Raises `OptionError` if a list or catalog of the job itself cannot be read; what
    is wrong with one scene is a `Fault`. Lazy: a catalog is read as far as scenes are taken.
    """
    wanted = narrowing(scenes, data)
    for found in _all(scenes, data, wanted):
        try:
            if (
                isinstance(found, Fault)
                or found.item is None
                or wanted.wants(found.id, found.footprint, found.datetime)
            ):
                yield found
        except SceneError as error:
            yield Fault(found.id if isinstance(found, SceneRef) else found.name, str(error))


def _all(scenes: Scenes, data: Path, wanted: Narrowing) -> Iterator[SceneRef | Fault]:
    for entry in scenes.files:
        yield from _files(entry if isinstance(entry, SceneFile) else SceneFile(href=entry), scenes, data)
    roots = tuple((data / root).resolve() for root in scenes.roots)
    for catalog in scenes.catalogs:
        where = catalog if scheme_of(catalog) else str((data / catalog).resolve())
        rule = Rule(scenes.allow, (*roots, Path(where).parent) if not scheme_of(where) else roots)
        _permit_catalog(rule, where)
        for found in _items(where, rule):
            yield _labelled(_ref(found, scenes.asset, rule), scenes)
    if scenes.search is not None:
        rule = Rule(scenes.allow, roots)
        for item in _search(scenes.search, wanted):
            yield _labelled(_ref(Found(item, _self_href(item), alone=False), scenes.asset, rule), scenes)


def _permit_catalog(rule: Rule, where: str) -> None:
    try:
        rule.permit(where, "", listed=True)
    except SceneError as error:
        raise OptionError(str(error)) from error


# --- lists


def _files(entry: SceneFile, scenes: Scenes, data: Path) -> Iterator[SceneRef | Fault]:
    rule = Rule(scenes.allow, ())
    if is_mosaic(entry.href):
        yield Fault(entry.href, f"{entry.href}: in a job, list its scenes, and add scenes.mosaic: {{order: newest}}")
        return
    try:
        alone = scheme_of(entry.href) or is_pairs(entry.href)
        paths = [in_full(entry.href, data)] if alone else _glob(entry, data)
        paths = [selected(path, scenes.select) for path in paths]
    except (SceneError, OptionError) as error:
        yield Fault(entry.href, str(error))
        return
    for path in paths:
        try:
            for part in parts_of(path):
                rule.permit(part, "", listed=True)
            yield SceneRef(path, entry.id or _id_of(path), entry.datetime)
        except SceneError as error:
            yield Fault(path, str(error))


def _id_of(path: str) -> str:
    if is_pairs(path):
        return pairs_of(path).id
    if is_band_folder(path):
        return id_of_folder(path)
    where, labels = split_labels(path)
    return labelled(Path(urlsplit(where).path if scheme_of(where) else where).stem, labels)


def _glob(entry: SceneFile, data: Path) -> list[str]:
    href, labels = split_labels(entry.href)
    return [join_labels(path, labels) for path in _globbed(href, entry, data)]


def _globbed(href: str, entry: SceneFile, data: Path) -> list[str]:
    path = absolute(href, "")
    path = path if Path(path).is_absolute() else str(data / path)
    if Path(path).exists() or not glob.has_magic(path):
        return [str(Path(path).absolute())]
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # Path has none for absolute patterns
    if not found:
        msg = f"{path}: no file is named like this; check the pattern"
        raise SceneError(msg)
    if entry.id is not None and len(found) > 1:
        msg = f"{path}: is {len(found)} files, and one id; leave the id out"
        raise SceneError(msg)
    return [str(Path(each).absolute()) for each in found]


# --- catalogs


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
        return [], [Found(item, here, alone=False) for item in content.get("features", ())]
    if kind in {"Catalog", "Collection"}:
        return _links(content, here, rule)
    return [], [Fault(here, f"{here}: is no STAC object (its type is {kind!r})")]


def _links(content: dict[str, Any], here: str, rule: Rule) -> tuple[list[str], list[Found | Fault]]:
    below: list[str] = []
    faults: list[Found | Fault] = []
    for link in content.get("links", ()):
        if link.get("rel") in {"child", "item"}:
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
    _need_archive("stac_geoparquet")
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


def _search(search: Search, wanted: Narrowing) -> Iterator[dict[str, Any]]:
    _need_archive("pystac_client")
    import pystac_client

    first, last = wanted.dates or (None, None)
    when = None if wanted.dates is None else f"{first or '..'}/{last or '..'}"
    try:
        client = pystac_client.Client.open(search.api)
        found = client.search(
            collections=list(search.collections),
            query=search.query or None,
            datetime=when,
            intersects=None if wanted.area is None else json.loads(shapely.to_geojson(wanted.area)),
            max_items=search.limit,
        )
        yield from found.items_as_dicts()
    except Exception as error:  # whatever the network has, and what pystac-client makes of it
        msg = f"{search.api}: cannot be searched: {error}"
        raise OptionError(msg) from error


def _need_archive(module: str) -> None:
    """Raises `OptionError` if a package of the extra `archive` is not there."""
    from importlib.util import find_spec

    if find_spec(module) is None:
        msg = f"this job needs {module.replace('_', '-')}: pip install 'geoseg[archive]'"
        raise OptionError(msg)


def _self_href(item: dict[str, Any]) -> str:
    return next((str(link["href"]) for link in item.get("links", ()) if link.get("rel") == "self"), "")


# --- items


def _ref(found: Found | Fault, asset: str | tuple[str, ...] | None, rule: Rule) -> SceneRef | Fault:
    """The scene of a STAC item; what is wrong with it is a `Fault` with its name."""
    if isinstance(found, Fault):
        return found
    item, home = found.content, found.home
    name = str(item.get("id"))
    try:
        return _scene_of(found, asset, rule)
    except SceneError as error:
        return Fault(name, f"{name}: {error}")
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.GEOSException) as error:
        return Fault(name, f"{name}: not a STAC item that can be used: {type(error).__name__}: {error} (in {home})")


def _labelled(ref: SceneRef | Fault, scenes: Scenes) -> SceneRef | Fault:
    """The step of an item's scene that the job chooses."""
    try:
        return ref if isinstance(ref, Fault) else replace(ref, href=selected(ref.href, scenes.select))
    except OptionError as error:
        return Fault(ref.href if isinstance(ref, SceneRef) else ref.name, str(error))


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
        item=found.home if found.alone else _self_href(item) or found.home,
        footprint=None if geometry is None else shapely.from_geojson(json.dumps(geometry)),
        bands=names if any(names) else (),
        masks=permitted_masks(item, found.home, rule),
    )


def _utc(when: dt.datetime) -> dt.datetime:
    return when.replace(tzinfo=dt.UTC) if when.tzinfo is None else when.astimezone(dt.UTC)


def unique(refs: Iterable[SceneRef | Fault]) -> Iterator[SceneRef | Fault]:
    """The same without scenes that come twice; two scenes of one id would share a folder, so the second is a fault."""
    taken: dict[str, str] = {}
    for ref in refs:
        if isinstance(ref, Fault):
            yield ref
        elif ref.id not in taken:
            taken[ref.id] = ref.href
            yield ref
        elif taken[ref.id] != ref.href:
            why = f"{ref.href}: is named {ref.id} like {taken[ref.id]}, so their results would share a folder; "
            yield Fault(ref.href, why + "give it another id in the job ({href, id})")
