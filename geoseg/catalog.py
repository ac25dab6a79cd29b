"""Scenes, models and legends, as STAC tells them.

A model is a folder of `catalogs/models/` (or anywhere else): a STAC item with the Machine Learning Model extension
(`item.json`), the weights it names, and a page for people (`README.md`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely

from geoseg.dates import date_reader
from geoseg.errors import ModelError, SceneError
from geoseg.globe import bbox_of, outline_of
from geoseg.raster import crs_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pystac
    from odc.geo.geobox import GeoBox


MULTIHASH_SHA256 = "1220"
"""What precedes a SHA-256 digest of 32 bytes in `file:checksum` (https://multiformats.io/multihash)."""

RESIZED = "interpolate-linear"
"""How a model's card says that what has another resolution is brought to its own (STAC MLM's `resize_type`)."""

COLLECTION = "collection.json"

MAX_CLASSES = 255  # 0 to 254; 255 is nodata

EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("processing/v1.2.0", "file/v2.1.0", "classification/v2.0.0", "raster/v2.0.0")
)
"""Whose fields a result's item and its assets have, besides projection's."""


@dataclass(frozen=True)
class LegendClass:
    """One class of a label raster."""

    value: int
    name: str
    colour: str
    """`#rrggbb`."""

    def __post_init__(self) -> None:
        """Refuse colours that are none."""
        if not re.fullmatch("#[0-9A-Fa-f]{6}", self.colour):
            msg = f"the colour of {self.name} must be #rrggbb, got {self.colour}"
            raise ValueError(msg)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue from 0 to 255."""
        red, green, blue = bytes.fromhex(self.colour.removeprefix("#"))
        return red, green, blue


@dataclass(frozen=True)
class Legend:
    """The classes of a label raster; value i is the network's output i."""

    classes: tuple[LegendClass, ...]
    background: int | None
    """The class that is no object, if there is one: it is not vectorised."""

    def __post_init__(self) -> None:
        """Refuse values that are not 0, 1, 2 ... or that would collide with nodata."""
        if [c.value for c in self.classes] != list(range(len(self.classes))) or len(self.classes) > MAX_CLASSES:
            msg = f"class values must be 0, 1, 2 ... (at most 254), got {[c.value for c in self.classes]}"
            raise ValueError(msg)
        if self.background is not None and not 0 <= self.background < len(self.classes):
            msg = f"the background must be one of the {len(self.classes)} classes or null, got {self.background}"
            raise ValueError(msg)

    @property
    def has_several(self) -> bool:
        """Whether several classes make objects, which then lie side by side."""
        return sum(c.value != self.background for c in self.classes) > 1

    def name(self, value: int) -> str:
        """Name of a class by its value."""
        return self.classes[value].name


@dataclass(frozen=True)
class ModelSpec:
    """Everything about a trained network but its weights' values; hashable."""

    name: str
    product: str
    architecture: str
    encoder: str
    weights: Path
    sha256: str
    bands: tuple[str, ...]
    """STAC common names, in the network's order."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Per band, of values scaled to 0..1 (uint8 / 255)."""
    legend: Legend
    auxiliary: tuple[str, ...]
    """Names of the scores that the network gives besides those of the classes, behind them in its output."""
    separation: tuple[float, float] | None
    """How objects that touch are told apart by the auxiliary score `interior`: the least score of a seed (0..1), and
    the square metres that it covers at least. None: the network has no such score."""
    patch: int
    stride: int
    resolution: tuple[float, float]
    """Metres on the ground per pixel, finest and coarsest, that the network was trained for."""
    licence: str
    scores: tuple[tuple[str, float], ...]
    """(what was measured and where, value), the first one being the headline."""
    dates: int = 1
    """Scenes of one place that it takes at once, each with all bands: 2 for a model of what has changed."""

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other, and encoders that would be fetched from somewhere."""
        for fits, what in (
            (len(self.bands) == len(self.mean) == len(self.std) > 0, f"a scaling for each of the bands {self.bands}"),
            (min(self.std, default=0) > 0, f"deviations above 0, got {self.std}"),
            (1 <= self.stride <= self.patch, f"a stride from 1 to the patch's {self.patch} pixels, got {self.stride}"),
            (0 < self.resolution[0] <= self.resolution[1], f"resolutions from fine to coarse, got {self.resolution}"),
            (
                self.separation is None or ("interior" in self.auxiliary and 0 < self.separation[0] <= 1),
                f"a score `interior` and a seed above 0 to tell objects apart, got {self.separation}",
            ),
            (self.dates in {1, 2}, f"one scene or two, got {self.dates}"),
            (re.fullmatch(r"[\w.-]+", self.encoder), f"an encoder's plain name, got {self.encoder!r}"),
        ):
            if not fits:
                msg = f"a model needs {what}"
                raise ValueError(msg)

    @property
    def outputs(self) -> int:
        """Channels of the network's output."""
        return len(self.legend.classes) + len(self.auxiliary)


@dataclass(frozen=True)
class Scene:
    """One georeferenced raster."""

    id: str
    path: str
    geobox: GeoBox
    bands: tuple[str, ...]
    """STAC common name of each band of the file ("" where unknown; "alpha" for a mask stored as a band)."""
    dtype: str
    datetime: dt.datetime | None
    ground_resolution: tuple[float, float]
    """Metres on the ground between pixel centres, down a column and along a row."""
    item: str | None = None
    """Where its STAC item is, if it came from a catalog."""
    files: tuple[str, ...] = ()
    """The file of each band, where each band has one of its own."""
    masks: tuple[tuple[str, str], ...] = ()
    """Rasters that come with it and tell what can be seen: what they are (`scl`, `qa_pixel`), and where."""
    fill: tuple[float, ...] = ()
    """Values that stand for no data besides what the file says: one, or one for each band that is read."""
    mask: tuple[str, str] | None = None
    """The raster that tells what is not valid: what it is (`mask`, `scl`, `qa_pixel`), and where."""
    scaling: tuple[tuple[float, float], ...] = ()
    """Of each band what its numbers are multiplied by, and what is added, to be a quantity; () if they are one."""
    parts: tuple[Scene, ...] = ()
    """The scenes that it is read from, where its grid is not their own; the first that is valid in a pixel counts."""
    stacked: bool = False
    """Whether the bands of its parts lie one behind the other's, as networks for two dates take them, and a pixel is
    valid where it is in all of them."""
    moved: tuple[float, float] = (0.0, 0.0)
    """By how much the first of those is moved before it is laid on the other: along x and y, in units of the CRS."""
    by_nearest: bool = False
    """Whether a pixel takes what it lies in of those, as codes want it, and not what is between."""
    clouds: tuple[str, str] | None = None
    """The same of the raster of clouds that is made before the scene is predicted."""
    file: str | None = None
    """What of `path` is a file or an address, where the path chooses a part of it."""
    cloud_cover: float | None = None
    """Per cent of it that is clouded, as its STAC item tells."""
    memory: Any = field(default=None, compare=False, repr=False)
    """The pixels themselves, where they are in no file; such a scene cannot leave this process."""

    @property
    def name(self) -> str:
        """What people call it: the file's name, or its id where it is several files."""
        if len(self.parts) == 1:
            return self.parts[0].name
        return self.id if self.files or self.parts else Path(self.path).name

    @property
    def taken(self) -> dt.datetime | None:
        """When it was taken, with its zone: as it tells itself, or else as its id does, mostly its file's name."""
        when = self.datetime or date_reader(None)(self.id)
        return when.replace(tzinfo=dt.UTC) if when is not None and when.tzinfo is None else when

    def _repr_html_(self) -> str:
        from geoseg.view.cards import scene_card

        return scene_card(self)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        rows, cols = self.geobox.shape
        return int(rows), int(cols)

    def bands_for(
        self,
        wanted: tuple[str, ...],
        remedy: str = "name its bands (--bands red=1,..., or gdal_edit.py -colorinterp_1 red ...) "
        "or choose another model",
    ) -> tuple[int, ...]:
        """Which bands of the file (from 1) serve a network that wants these common names.

        A grey scene serves each visible band; bands without names are taken in order if there are enough of them.
        Raises `SceneError` if they cannot be found, with a `remedy`.
        """
        named = {name: index for index, name in enumerate(self.bands, 1) if name}
        if all(name in named for name in wanted):
            return tuple(named[name] for name in wanted)
        data = [index for index, name in enumerate(self.bands, 1) if name != "alpha"]
        if "palette" in self.bands:
            msg = f"{self.path}: its values point into a colour table; expand it first: gdal_translate -expand rgb"
            raise SceneError(msg)
        if len(data) == 1 and set(wanted) <= {"red", "green", "blue"}:
            return tuple(data * len(wanted))
        if len(data) >= len(wanted) and not any(self.bands[index - 1] for index in data):
            return tuple(data[: len(wanted)])
        have = ", ".join(name or "unnamed" for name in self.bands)
        msg = f"{self.path}: the model needs the bands {', '.join(wanted)}, the scene has {have}; "
        raise SceneError(msg + remedy)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; of a folder, that of the list of its files' own, as sha256sum prints it.

    `find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` in the folder says the same.
    """
    if path.is_dir():
        below = sorted(f"./{each.relative_to(path).as_posix()}" for each in path.rglob("*") if each.is_file())
        lines = (f"{sha256_of(path / name)}  {name}\n" for name in below)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def catalogs_folder() -> Path:
    """Where the catalogs are: inside an installed package, or beside it in a checkout."""
    package = Path(str(files("geoseg")))
    inside = package / "catalogs"
    return inside if inside.is_dir() else package.parent / "catalogs"


def bundled_models() -> Iterator[ModelSpec]:
    """The models that come with geoseg, by name."""
    for item in sorted((catalogs_folder() / "models").glob("*/item.json")):
        yield read_model(item)


def find_model(product: str | None, model: str | None) -> ModelSpec:
    """A model by name or path, or else the product's default: the first bundled one.

    Raises `ModelError` if there is none, or if it makes another product.
    """
    if model is not None and (Path(model).exists() or "/" in model):
        spec = read_model(Path(model))
    else:
        bundled = list(bundled_models())
        found = [m for m in bundled if (m.name == model if model else m.product == product and m.dates == 1)]
        if not found:
            known = ", ".join(f"{m.name} ({m.product})" for m in bundled)
            what = f"a model named {model!r}" if model else f"a model for {product!r}"
            msg = f"there is no {what.removeprefix('a ')}; there are: {known}; or give the path of a model's folder"
            raise ModelError(msg)
        spec = found[0]
    if product is not None and spec.product != product:
        msg = f"{spec.name} maps {spec.product}, not {product}: ask for {spec.product!r} or choose another model"
        raise ModelError(msg)
    return spec


def read_model(path: Path) -> ModelSpec:
    """The model of a folder or of its `item.json`. Raises `ModelError` if it is not one."""
    path = path / "item.json" if path.is_dir() else path
    try:
        item = json.loads(path.read_text(encoding="utf-8"))
        return _spec_of(item, path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"{path}: not a model: {error}; a model is a folder with item.json and its weights"
        raise ModelError(msg) from error
    except (KeyError, IndexError, TypeError, ValueError) as error:
        msg = f"{path}: not a model that geoseg can use: {type(error).__name__}: {error} in its STAC item"
        raise ModelError(msg) from error


def _spec_of(item: dict[str, Any], path: Path) -> ModelSpec:
    properties = item["properties"]
    given, made = properties["mlm:input"][0], properties["mlm:output"][0]
    asset = item["assets"]["weights"]
    href = asset["href"]
    weights = (path.parent / href).resolve()
    if path.parent.resolve() not in weights.parents:
        msg = f"its weights {href!r} are outside the model's folder"
        raise ValueError(msg)
    if given.get("resize_type", RESIZED) != RESIZED:
        msg = f"it wants bands and scenes resampled by {given['resize_type']!r}, geoseg does {RESIZED!r} only"
        raise ValueError(msg)
    classes = tuple(
        LegendClass(int(c["value"]), str(c["name"]), f"#{c['color_hint']}".lower())
        for c in made["classification:classes"]
    )
    return ModelSpec(
        name=str(properties["mlm:name"]),
        product=str(properties["geoseg:product"]),
        architecture=str(properties["mlm:architecture"]),
        encoder=str(properties["geoseg:encoder"]),
        weights=weights,
        sha256=str(asset["file:checksum"]).removeprefix(MULTIHASH_SHA256),
        bands=tuple(str(band if isinstance(band, str) else band["name"]) for band in given["bands"]),
        mean=tuple(float(s["mean"]) for s in given["value_scaling"]),
        std=tuple(float(s["stddev"]) for s in given["value_scaling"]),
        legend=Legend(classes, properties["geoseg:background"]),
        auxiliary=tuple(str(name) for name in properties.get("geoseg:auxiliary", ())),
        separation=_separation_of(properties.get("geoseg:separation")),
        patch=int(given["input"]["shape"][-1]),
        stride=int(properties["geoseg:stride"]),
        resolution=(float(properties["geoseg:resolution"][0]), float(properties["geoseg:resolution"][1])),
        licence=str(properties["license"]),
        scores=tuple((str(s["name"]), float(s["value"])) for s in properties.get("geoseg:scores", ())),
        dates=_dates_of(given["input"]["shape"]),
    )


def _dates_of(shape: list[int]) -> int:
    """Of an input (batch, bands, y, x) or (batch, time, bands, y, x)."""
    return int(shape[1]) if len(shape) == 5 else 1  # noqa: PLR2004  as said


def _separation_of(given: dict[str, float] | None) -> tuple[float, float] | None:
    return None if given is None else (float(given["seed"]), float(given["min_seed_area"]))


@dataclass(frozen=True)
class Provenance:
    """How a result came about."""

    model: ModelSpec | None
    """None: no network had a part in it."""
    software: dict[str, str]
    """Name and version of each package that has a say in the pixels."""
    parameters: dict[str, Any]
    created: dt.datetime
    counts: Mapping[str, float]
    """Pixels with data, footprints and the like."""
    collection: str | None = None
    """Id of the collection whose `collection.json` lies in the folder above, if the result belongs to one."""


def result_item(scene: Scene, folder: Path, assets: dict[str, pystac.Asset], made: Provenance) -> pystac.Item:
    """The STAC item of a scene's results; `assets` by key, with hrefs relative to `folder`.

    A scene whose date is unknown gets the interval from 1970 to now, which STAC wants in its place.
    """
    import pystac
    from pystac.extensions.projection import ProjectionExtension

    outline = outline_of(scene.geobox)
    began = scene.datetime or dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    properties: dict[str, Any] = {
        "title": f"{made.model.product} of {scene.id}" if made.model else scene.id,
        "created": made.created.isoformat().replace("+00:00", "Z"),
        "license": "other",
        "processing:software": made.software,
        "processing:lineage": f"{made.model.name} on {scene.name}" if made.model else scene.name,
        "processing:level": "L4",
        "gsd": round(max(scene.ground_resolution), 4),
        **({"geoseg:model": {"name": made.model.name, "sha256": made.model.sha256}} if made.model else {}),
        "geoseg:parameters": made.parameters,
        "geoseg:counts": dict(made.counts),
        "geoseg:datetime_known": scene.datetime is not None,
    }
    item = pystac.Item(
        id=scene.id,
        geometry=json.loads(shapely.to_geojson(shapely.transform(outline, lambda xy: xy.round(7)))),
        bbox=[round(value, 7) for value in bbox_of(outline)],
        datetime=scene.datetime,
        start_datetime=None if scene.datetime else began,
        end_datetime=None if scene.datetime else made.created,
        properties=properties,
        stac_extensions=list(EXTENSIONS),
    )
    for key, asset in assets.items():
        item.add_asset(key, asset)
    projection = ProjectionExtension.ext(item, add_if_missing=True)
    epsg = crs_of(scene.geobox).epsg
    projection.apply(
        code=f"EPSG:{epsg}" if epsg else None,
        wkt2=None if epsg else crs_of(scene.geobox).wkt,
        shape=list(scene.shape),
        transform=[*scene.geobox.affine][:9],
    )
    for target, kind in _sources(scene, made.model):
        href = target if target.startswith("/vsi") or "://" in target else os.path.relpath(target, folder)
        item.add_link(pystac.Link("derived_from", href, media_type=kind, title=Path(target).stem))
    if made.collection is not None:
        item.collection_id = made.collection
        for rel in ("root", "parent", "collection"):
            item.add_link(pystac.Link(rel, f"../{COLLECTION}", media_type="application/json"))
    return item


MEDIA_TYPES = {
    **dict.fromkeys((".jp2", ".j2k"), "image/jp2"),
    **dict.fromkeys((".nc", ".nc4"), "application/netcdf"),
    **dict.fromkeys((".jpg", ".jpeg"), "image/jpeg"),
    ".png": "image/png",
}
"""Of what is no GeoTIFF, by its suffix."""


def _leaves(scene: Scene) -> Iterator[Scene]:
    """The scenes that it is read from in the end."""
    for part in scene.parts:
        yield from _leaves(part)
    if not scene.parts:
        yield scene


def _sources(scene: Scene, model: ModelSpec | None) -> Iterator[tuple[str, str]]:
    """What a result was made from, with media types: the pixels, their STAC item if there is one, and the model's."""
    for part in _leaves(scene):
        own = () if part.memory is not None else part.files or (part.file or part.path,)
        for path in (*own, *((part.mask[1],) if part.mask else ())):
            folder = Path(path).is_dir() or ".zarr" in Path(path).suffixes
            yield path, "application/vnd.zarr" if folder else MEDIA_TYPES.get(Path(path).suffix.lower(), "image/tiff")
        if part.item is not None:
            yield part.item, "application/geo+json"
    if scene.parts and scene.mask is not None:
        yield scene.mask[1], "image/tiff"
    if model is not None:
        yield str(model.weights.parent / "item.json"), "application/geo+json"


def file_asset(path: Path, media_type: str, title: str, roles: list[str], extra: dict[str, Any]) -> pystac.Asset:
    """An asset beside the item, with its size and checksum; of a folder, see `sha256_of`."""
    import pystac

    size = sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())
    fields = {"file:size": size, "file:checksum": MULTIHASH_SHA256 + sha256_of(path), **extra}
    return pystac.Asset(f"./{path.name}", title=title, media_type=media_type, roles=roles, extra_fields=fields)
