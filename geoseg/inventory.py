"""`catalog`: a folder of scenes as a static STAC catalog, which `geoseg run` and every other STAC reader takes.

FOLDER/collection.json   what there is: extent, summaries, a link to each item
FOLDER/items/ID.json     a scene: where it has data, when it was taken, its grid, its bands, its file

All links are relative, so the folder can be moved as a whole. Written again, it is brought up to date: what is
unchanged keeps its item, byte for byte.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import os
import re
from dataclasses import dataclass, fields
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.features
import shapely
import shapely.geometry
from scipy import ndimage

from geoseg.catalog import COLLECTION, MULTIHASH_SHA256, Scene, sha256_of
from geoseg.dates import date_reader
from geoseg.errors import GeosegError, OptionError, OutputError, SceneError
from geoseg.globe import HALF_TURN, bbox_of, outline_of
from geoseg.io.band_names import own_name, scenes_among
from geoseg.io.catalogs import Fault
from geoseg.io.gdal_scenes import media_type_of
from geoseg.io.mosaics import RASTERS
from geoseg.io.pixels import DESCRIBED, Survey
from geoseg.io.remote import size_and_time
from geoseg.io.scenes import open_scene, survey
from geoseg.io.store import LEDGER, cannot_write
from geoseg.io.zarr_scenes import is_zarr
from geoseg.raster import crs_of
from geoseg.records import write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pystac
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

    from geoseg.export import Observer

log = logging.getLogger("geoseg")

ITEMS = "items"
"""Folder of the items, beside the collection."""

OURS = "geoseg:catalog"
"""The property of a collection that this module wrote: how it was made."""

FORMAT = 1
"""To be counted up when items are written in another way, so that those that are there are made anew."""

EXTENSIONS = tuple(f"https://stac-extensions.github.io/{name}/schema.json" for name in ("eo/v2.0.0", "file/v2.1.0"))
"""Whose fields an item's assets have, besides projection's."""

KNOWN = "geoseg:datetime_known"
"""The property of an item that tells whether its date is one, or stands for none."""

METRES_PER_DEGREE = 111_320.0

UNKNOWN_SINCE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

MOST_PARTS = 12
"""Parts and holes at most of a footprint; where there are more, gaps between them are closed."""

SIMPLIFIED_BY = 2.0
"""Pixels of the overview by which a footprint's outline may be off."""


@dataclass(frozen=True)
class CatalogJob:
    """What is to be catalogued, and how; None stands for what the catalog that is there says, or else the default."""

    folder: Path
    out: Path | None = None
    """Folder for the catalog, or the collection's file (.json); None: the scenes' own folder."""
    id: str | None = None
    """Of the collection; None: the folder's name."""
    title: str | None = None
    license: str | None = None
    """SPDX identifier of the scenes' licence; None: other."""
    datetime_pattern: str | None = None
    """Where a file's name tells its date: see `geoseg.dates`. None: as it does usually, for files that say nothing."""
    checksum: bool | None = None
    """Whether files are hashed, which reads all of them; None: no."""

    @property
    def path(self) -> Path:
        """The collection's file, absolute."""
        out = (self.out or self.folder).absolute()
        return out if out.suffix == ".json" else out / COLLECTION


@dataclass(frozen=True)
class CatalogReport:
    """How cataloguing went."""

    path: Path
    """The collection."""
    made: int
    """Scenes whose item was written now."""
    kept: int
    """Scenes whose item was there, and is as it was."""
    removed: int
    """Items whose scene is gone."""
    faults: tuple[Fault, ...]
    """What looks like a scene, and cannot be catalogued."""
    outside: tuple[Path, ...]
    """Links that lead out of the folder; they are not followed."""
    virtual: int
    """Scenes that are descriptions of others (VRT), which a job has to allow."""


def write_catalog(job: CatalogJob, observe: Observer = lambda _stage, _done, _total: None) -> CatalogReport:
    """Write the STAC catalog of a folder of scenes, or bring it up to date.

    What is wrong with one scene is among the faults. Raises `OptionError` for a folder without scenes or a pattern that
    is none, `OutputError` if files are in the way that are not ours, or if the disk refuses.
    """
    folder, path = job.folder.resolve(), job.path
    if not folder.is_dir():
        msg = f"{job.folder}: is no folder; name the folder that the scenes lie in"
        raise OptionError(msg)
    before = _Before.read(path)
    how = How.of(job, before)
    found, outside = scenes_below(folder)
    if not found:
        msg = f"{job.folder}: holds no scenes ({', '.join(sorted(RASTERS))}, Zarr); check the folder"
        raise OptionError(msg)
    maker = _Maker(how, path, before)
    contents: list[dict[str, Any]] = []
    scenes = dict(_scenes(found))
    for done, (name, scene) in enumerate(ids_of(scenes, folder).items()):
        observe("scenes", done, len(scenes))
        contents += maker.take(name, scene, scenes[scene])
    observe("scenes", len(scenes), len(scenes))
    if not contents:
        first = maker.faults[0].why
        msg = f"{job.folder}: none of its {len(scenes)} scenes can be catalogued; the first: {first}"
        raise SceneError(msg)
    write_json(path, collection_of(how, path, contents))
    removed = before.remove_all_but({content["id"] for content in contents})
    virtual = sum(scene.suffix.lower() == ".vrt" for scene in found)
    return CatalogReport(path, maker.made, maker.kept, removed, tuple(maker.faults), tuple(outside), virtual)


# --- what there is


def scenes_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """The rasters below a resolved folder, sorted, and the links that lead out of it.

    Hidden files and the results of geoseg are left out, and links to what is found anyway.
    """
    found: list[Path] = []
    outside: list[Path] = []
    for here, folders, files in os.walk(folder):
        if LEDGER in files:  # what was mapped here is no scene
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        stores: set[str] = set()
        for name in (*folders, *files):
            path = Path(here, name)
            wanted = not name.startswith(".") and (name in folders or path.suffix.lower() in RASTERS)
            wanted = wanted and (name in files or is_zarr(str(path)))
            if path.is_symlink() and not path.resolve().is_relative_to(folder):
                outside += [path] if wanted or path.is_dir() else []
            elif wanted:
                found.append(path)
                stores.add(name)
        folders[:] = [name for name in folders if name not in stores]
    known = {path for path in found if not path.is_symlink()}
    return sorted(p for p in found if not p.is_symlink() or p.resolve() not in known), sorted(outside)


def _scenes(found: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Scenes by a path that names them, each with its files: of bands that lie on each other, or one named ""."""
    for path, files, everything in scenes_among(found):
        try:
            if "" not in files:
                open_scene(files)
        except SceneError as error:
            log.info("%s: %s; so each of its files is a scene", path, error)
            yield from ((file, {"": file}) for file in everything)
        else:
            yield path, files


def ids_of(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Each scene by an id that is a file's name on every system.

    It is the stem; where several share it, more of the path stands before it, and at last a digest behind it.
    """
    level = dict.fromkeys(paths, 0)
    while True:
        taken: dict[str, list[Path]] = {}
        for path, depth in level.items():
            taken.setdefault(_name(path.relative_to(folder), depth).casefold(), []).append(path)
        shared = [path for group in taken.values() if len(group) > 1 for path in group]
        if not shared:
            return {_name(path.relative_to(folder), depth): path for path, depth in level.items()}
        level |= {path: level[path] + 1 for path in shared}


def _name(path: Path, level: int) -> str:
    """Names of a scene, each longer than the one before: stem, with the folder, with all folders and the suffix."""
    stem, suffix = path.stem, path.suffix.removeprefix(".")
    above = path.parent.parts
    candidates = (stem, "_".join((*above[-1:], stem)), "_".join((*above, stem, suffix)))
    digest = sha256(path.as_posix().encode()).hexdigest()
    text = candidates[level] if level < len(candidates) else f"{candidates[-1]}_{digest[: 8 + level]}"
    return re.sub(r"[^\w.-]+", "_", text).lstrip(".") or "scene"


# --- what was there


@dataclass(frozen=True)
class _Before:
    """The catalog of an earlier time."""

    path: Path
    content: dict[str, Any]
    """The collection; empty: there is none."""

    @classmethod
    def read(cls, path: Path) -> _Before:
        """What is there. Raises `OutputError` if it is not ours."""
        if not path.exists():
            return cls(path, {})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or not isinstance(content.get(OURS), dict):
            msg = f"{path}: was not written by geoseg catalog and is left as it is; choose another --out"
            raise OutputError(msg)
        return cls(path, content)

    @property
    def made(self) -> dict[str, Any]:
        """How it was made."""
        how: dict[str, Any] = self.content.get(OURS, {})
        return how

    def item(self, name: str, collection: str) -> dict[str, Any] | None:
        """An item; None if there is none that can be read. Raises `OutputError` for one that belongs to somebody else.

        A run that was stopped leaves items that no collection links yet: they are of this collection, then.
        """
        path = self.path.parent / ITEMS / f"{name}.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            begun = content["collection"] == collection and KNOWN in content["properties"]
        except (OSError, ValueError, KeyError, TypeError):
            content, begun = None, False
        if not begun and f"./{ITEMS}/{name}.json" not in self._linked:
            msg = f"{path}: belongs to another catalog and is left as it is; choose another --out"
            raise OutputError(msg)
        return content if isinstance(content, dict) else None

    @cached_property
    def _linked(self) -> set[str]:
        return {str(link.get("href")) for link in self.content.get("links", ()) if link.get("rel") == "item"}

    def remove_all_but(self, names: set[str]) -> int:
        """Remove the items that the collection linked and links no more; how many there were."""
        stale = self._linked - {f"./{ITEMS}/{name}.json" for name in names}
        gone = [href for href in stale if re.fullmatch(rf"\./{ITEMS}/[\w-][\w.-]*\.json", href)]
        for href in gone:
            (self.path.parent / href).unlink(missing_ok=True)
        return len(gone)


@dataclass(frozen=True)
class How:
    """All that decides about items besides the scenes themselves."""

    id: str
    title: str
    license: str
    datetime_pattern: str | None
    checksum: bool

    @classmethod
    def of(cls, job: CatalogJob, before: _Before) -> How:
        """As the job has it, or else the catalog that is there. Raises `OptionError` for what cannot be."""
        name = re.sub(r"[^\w.-]+", "_", job.folder.resolve().name).lstrip(".") or "scenes"
        default = {"id": name, "title": "", "license": "other", "datetime_pattern": None, "checksum": False}
        kept = default | {key: value for key, value in before.made.items() if key in default}
        given = {field.name: getattr(job, field.name) for field in fields(cls)}
        how = cls(**(kept | {key: value for key, value in given.items() if value is not None}))
        if not how.id.strip() or not re.fullmatch(r"[\w.-]+", how.license):
            msg = f"--id {how.id!r} and --license {how.license!r}: a name and an SPDX identifier such as CC-BY-4.0"
            raise OptionError(msg)
        date_reader(how.datetime_pattern)
        return how

    @property
    def mark(self) -> dict[str, Any]:
        """What a collection tells about how it was made."""
        return {"format": FORMAT, **{field.name: getattr(self, field.name) for field in fields(self)}}


class _Maker:
    """Makes items, or finds that they are as they should be."""

    def __init__(self, how: How, path: Path, before: _Before) -> None:
        self._how, self._path, self._before = how, path, before
        different = {key for key, value in how.mark.items() if before.made.get(key) != value} - {"title"}
        self._fresh = bool(different)
        self.made = self.kept = 0
        self.faults: list[Fault] = []

    def take(self, name: str, path: Path, files: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
        """The item of a scene, written if need be; nothing where it cannot be catalogued, which is a fault then."""
        old = self._before.item(name, self._how.id)
        try:
            if old and not self._fresh and self._is_of(old, files.values()):
                self.kept += 1
                yield old
                return
            item = scene_item(path, self._path, name, self._how, files).to_dict(include_self_link=False)
        except GeosegError as error:
            self.faults.append(Fault(str(path), str(error)))
        except Exception as error:  # the other scenes go on without this one
            log.debug("", exc_info=error)
            self.faults.append(Fault(str(path), f"{path}: a defect: {type(error).__name__}: {error}"))
        else:
            self._write(name, item)
            self.made += 1
            yield item

    def _is_of(self, item: dict[str, Any], files: Iterable[Path]) -> bool:
        """Whether an item tells of files as they are now."""
        now = {href_of(path, self._path): _state(path) for path in files}
        assets = {asset.get("href"): asset for asset in item.get("assets", {}).values()}
        return now.keys() == assets.keys() and all(
            assets[href].get(key) == value for href, state in now.items() for key, value in state.items()
        )

    def _write(self, name: str, item: dict[str, Any]) -> None:
        folder = self._path.parent / ITEMS
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        write_json(folder / f"{name}.json", item)


# --- an item


def scene_item(
    path: Path, collection: Path, name: str, how: How, files: Mapping[str, Path] | None = None
) -> pystac.Item:
    """The STAC item of a scene, as it is to lie in the folder of items beside the collection's file.

    `files`: of a scene with a file for each band, by what these call their bands; `path` is its name alone, then.

    Raises `SceneError` if the file is no scene, or has no data.
    """
    import pystac
    from pystac.extensions.projection import ProjectionExtension

    files = files or {"": path}
    for file in files.values():
        _refuse_descriptions(file)
    scene = open_scene(files.get("", files))
    seen = survey(scene)
    outline = footprint(scene, seen.valid)
    updated = max(_state(file)["updated"] for file in files.values())
    when = _when(scene, path.stem, how.datetime_pattern)
    item = pystac.Item(
        id=name,
        geometry=json.loads(shapely.to_geojson(outline)),
        bbox=bbox_of(outline),
        datetime=when,
        start_datetime=None if when else UNKNOWN_SINCE,
        end_datetime=None if when else max(UNKNOWN_SINCE, dt.datetime.fromisoformat(updated)),
        properties={
            "title": path.stem,
            "license": how.license,
            "gsd": round(max(scene.ground_resolution), 4),
            KNOWN: when is not None,
        },
        stac_extensions=list(EXTENSIONS),
        collection=how.id,
    )
    epsg = crs_of(scene.geobox).epsg
    ProjectionExtension.ext(item, add_if_missing=True).apply(
        code=f"EPSG:{epsg}" if epsg else None,
        wkt2=None if epsg else crs_of(scene.geobox).wkt,
        shape=list(scene.shape),
        transform=[*scene.geobox.affine][:9],
    )
    bands = list(bands_of(scene, seen))
    if "" in files:
        colours = {"red", "green", "blue"} <= set(scene.bands) and scene.dtype == "uint8"
        roles = ["data", "visual"] if colours else ["data"]
        more = {**_file_fields(path, how), "bands": bands}
        asset = pystac.Asset(href_of(path, collection), media_type=seen.media_type, roles=roles, extra_fields=more)
        item.add_asset("visual" if colours else "data", asset)
    else:
        told = dict(zip(scene.files, bands, strict=True))
        for file in files.values():
            item.add_asset(own_name(file), _band_asset(file, told.get(str(file)), collection, how))
    for rel in ("root", "parent", "collection"):
        item.add_link(pystac.Link(rel, f"../{collection.name}", media_type="application/json"))
    return item


def _file_fields(path: Path, how: How) -> dict[str, Any]:
    """What STAC's file extension tells of a file."""
    checksum = {"file:checksum": MULTIHASH_SHA256 + sha256_of(path)} if how.checksum and path.is_file() else {}
    return {**_state(path), **checksum}


def _band_asset(file: Path, band: dict[str, Any] | None, collection: Path, how: How) -> pystac.Asset:
    """The asset of a file with one band, or, without one, with what tells what can be seen."""
    import pystac

    header, kind = open_scene(file), media_type_of(str(file))
    more = {**_file_fields(file, how), "gsd": round(max(header.ground_resolution), 4)}
    if band is not None:
        more["bands"] = [{**band, "name": own_name(file), "data_type": COMPLEX.get(header.dtype, header.dtype)}]
    roles = ["data"] if band is not None else ["data-mask"]
    return pystac.Asset(href_of(file, collection), media_type=kind, roles=roles, extra_fields=more)


def href_of(path: Path, collection: Path) -> str:
    """Where a file is, seen from the items beside a collection."""
    return Path(os.path.relpath(path, collection.parent / ITEMS)).as_posix()


def _state(path: Path) -> dict[str, Any]:
    """What tells whether a file is still the same, in the words of STAC."""
    size, time = size_and_time(path)
    changed = UNKNOWN_SINCE + dt.timedelta(microseconds=time // 1000)
    return {"file:size": size, "updated": changed.isoformat().replace("+00:00", "Z")}


def _refuse_descriptions(path: Path) -> None:
    """Raises `SceneError` for XML under another name than .vrt: nobody expects that it names other files."""
    if path.is_dir():
        return
    with path.open("rb") as stream:
        if path.suffix.lower() != ".vrt" and stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            msg = f"{path}: is a description (VRT or other XML) that may name any file; call it .vrt if you trust it"
            raise SceneError(msg)


def bands_of(scene: Scene, seen: Survey) -> Iterator[dict[str, Any]]:
    """STAC's `bands` of a scene, in the file's order."""
    for number, (name, own, dtype, nodata) in enumerate(
        zip(scene.bands, seen.names, seen.dtypes, seen.nodata, strict=True), 1
    ):
        band: dict[str, Any] = {"name": own or name or f"band {number}"}
        if name in DESCRIBED:
            band["eo:common_name"] = name
        band["data_type"] = COMPLEX.get(dtype, dtype)
        if nodata is not None:
            band["nodata"] = _number(nodata, dtype)
        yield band


COMPLEX = {"complex_int16": "cint16", "complex64": "cfloat32", "complex128": "cfloat64"}
"""What STAC calls numpy's types, where it differs."""


def _number(value: float, dtype: str) -> float | int | str:
    """A number, or the word for what JSON has none for."""
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return int(value) if np.issubdtype(np.dtype(dtype), np.integer) else float(value)


# --- where it has data


def footprint(scene: Scene, valid: NDArray[np.bool_] | None) -> BaseGeometry:
    """Where a scene has data: polygons in longitude and latitude of 7 digits, outer rings anticlockwise.

    `valid` (y, x) is an overview of its pixels; None: all have data. Where there are many gaps, narrow ones are closed;
    outlines are simplified by two pixels of the overview. What crosses the antimeridian is cut there. Raises
    `SceneError` if there is no data, or no such polygon.
    """
    if valid is None or valid.all():
        pixels: BaseGeometry = shapely.box(0, 0, *scene.shape[::-1])
    elif valid.any():
        pixels = _outline(valid, scene.shape)
    else:
        msg = f"{scene.path}: has no data, as far as an overview of {valid.shape[0]} x {valid.shape[1]} pixels tells"
        raise SceneError(msg)
    lonlat = outline_of(scene.geobox, pixels)
    straight = shapely.simplify(lonlat, min(scene.ground_resolution) / METRES_PER_DEGREE / 4)
    rounded = shapely.transform(straight, lambda xy: xy.round(7))
    polygons = _polygons(rounded if rounded.is_valid else shapely.make_valid(rounded))
    if polygons.is_empty:
        msg = f"{scene.path}: its place cannot be told in longitude and latitude; check its CRS and geotransform"
        raise SceneError(msg)
    return shapely.orient_polygons(polygons)


def _outline(valid: NDArray[np.bool_], shape: tuple[int, int]) -> BaseGeometry:
    """Outlines of an overview in pixels of a scene of this shape."""
    closed, reach = valid, 1
    while _parts(closed) > MOST_PARTS and reach < max(valid.shape):
        closed = _closed(valid, reach)
        reach *= 2
    place = rasterio.Affine.scale(shape[1] / valid.shape[1], shape[0] / valid.shape[0])
    shapes = rasterio.features.shapes(closed.astype(np.uint8), mask=closed, transform=place)
    polygons = shapely.union_all([shapely.geometry.shape(outline) for outline, _ in shapes])
    pixel = max(place.a, place.e)
    for by in (SIMPLIFIED_BY, SIMPLIFIED_BY / 2, SIMPLIFIED_BY / 4):
        simple = shapely.simplify(polygons, by * pixel)
        # each line stays near, but where two of them enclose little, what is between them may go
        if shapely.buffer(simple, (SIMPLIFIED_BY - 0.25) * pixel).covers(polygons):
            return simple
    return polygons


def _parts(valid: NDArray[np.bool_]) -> int:
    """Parts and holes."""
    return int(ndimage.label(valid)[1] + ndimage.label(~valid)[1])


def _closed(valid: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """The same without gaps up to twice so many pixels wide; what is valid stays so."""
    padded = np.pad(valid, reach)
    near = ndimage.distance_transform_edt(~padded) <= reach
    far = ndimage.distance_transform_edt(near) > reach
    closed: NDArray[np.bool_] = far[reach:-reach, reach:-reach] | valid
    return closed


def _polygons(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons alone of what may be a collection, as one polygon if it is one."""
    parts = [part for part in shapely.get_parts(shapely.get_parts(geometry)) if part.geom_type == "Polygon"]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


# --- when it was taken


def _when(scene: Scene, name: str, pattern: str | None) -> dt.datetime | None:
    """A pattern that the user gave goes before what the file says, which goes before the usual pattern."""
    if pattern is not None and (told := date_reader(pattern)(name)):
        return told
    return scene.datetime or date_reader(None)(name)


# --- the collection


def collection_of(how: How, path: Path, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The STAC collection of items that lie in the folder of items beside its file."""
    import pystac

    content: dict[str, Any] = pystac.Collection(
        id=how.id,
        title=how.title or how.id,
        description=f"{len(items)} scenes, catalogued by geoseg.",
        extent=pystac.Extent(
            pystac.SpatialExtent([_around([item["bbox"] for item in items])]), pystac.TemporalExtent([_interval(items)])
        ),
        license=how.license,
        extra_fields={OURS: how.mark},
        summaries=pystac.Summaries(_summaries(items)),
    ).to_dict(include_self_link=False)
    links = [("root", f"./{path.name}", "application/json")]
    links += [("item", f"./{ITEMS}/{item['id']}.json", "application/geo+json") for item in items]
    content["links"] = [{"rel": rel, "href": href, "type": kind} for rel, href, kind in links]
    return content


def _around(boxes: list[list[float]]) -> list[float]:
    """The box around boxes; all longitudes where one of them lies across the antimeridian."""
    west, south, east, north = np.array(boxes).T
    whole = bool((west > east).any())
    return [
        -HALF_TURN if whole else float(west.min()),
        float(south.min()),
        HALF_TURN if whole else float(east.max()),
        float(north.max()),
    ]


def _interval(items: list[dict[str, Any]]) -> list[dt.datetime | None]:
    known = [item["properties"]["datetime"] for item in items if item["properties"][KNOWN]]
    times = [dt.datetime.fromisoformat(text) for text in known]
    return [min(times), max(times)] if times else [None, None]


def _summaries(items: list[dict[str, Any]]) -> dict[str, Any]:
    sizes = [item["properties"]["gsd"] for item in items]
    bands = [band for item in items for asset in item["assets"].values() for band in asset.get("bands", ())]
    found = {
        "proj:code": {item["properties"].get("proj:code") for item in items} - {None},
        "eo:common_name": {band.get("eo:common_name") for band in bands} - {None},
    }
    lists = {key: sorted(values) for key, values in found.items() if values}
    return {"gsd": {"minimum": min(sizes), "maximum": max(sizes)}, **lists}
