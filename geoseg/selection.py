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
from geoseg.io.band_names import id_of_folder, in_full, is_band_folder, is_pairs, pairs_of, parts_of
from geoseg.io.catalogs import Fault, Found, SceneRef, need_archive, ref_of, refs_of, self_href
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
    datetime: dt.datetime | None = Field(
        default=None, description="when it was taken, in UTC if no zone is told; None: as the file says"
    )


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
        default=None,
        description="first and last day, in UTC, null for open; a scene whose date neither item, file nor name tells "
        "is an error then",
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
            if isinstance(found, Fault) or found.item is None:
                yield found
                continue
            # where an item tells no date, its file or its name may
            known = wanted if found.datetime else replace(wanted, dates=None)
            if known.wants(found.id, found.footprint, found.datetime):
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
        for found in refs_of(where, scenes.asset, rule):
            yield _labelled(found, scenes)
    if scenes.search is not None:
        rule = Rule(scenes.allow, roots)
        for item in _search(scenes.search, wanted):
            yield _labelled(ref_of(Found(item, self_href(item), alone=False), scenes.asset, rule), scenes)


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


def _search(search: Search, wanted: Narrowing) -> Iterator[dict[str, Any]]:
    need_archive("pystac_client")
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


def _labelled(ref: SceneRef | Fault, scenes: Scenes) -> SceneRef | Fault:
    """The step of an item's scene that the job chooses."""
    try:
        return ref if isinstance(ref, Fault) else replace(ref, href=selected(ref.href, scenes.select))
    except OptionError as error:
        return Fault(ref.href if isinstance(ref, SceneRef) else ref.name, str(error))


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
