"""Which file holds which band, where each band has its own: told by the user, a STAC item, or the files' names.

    red=B04.tif,green=B03.tif    pairs, of STAC common names (or Sentinel-2's B02 ...) and paths
    item.json                    a STAC item; item.json#B04,B03,B02 for assets of these keys
    FOLDER                       files whose names end in a band: B02 of Sentinel-2, B2 of Landsat, red ...

Nothing of a file's content is read here.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.catalog import COLLECTION
from geoseg.errors import SceneError
from geoseg.io.hrefs import Rule, absolute, kind_of, scheme_of, split_labels
from geoseg.io.pixels import DESCRIBED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SENTINEL2 = {
    "B01": "coastal",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge071",
    "B06": "rededge075",
    "B07": "rededge078",
    "B08": "nir",
    "B8A": "nir08",
    "B09": "nir09",
    "B10": "cirrus",
    "B11": "swir16",
    "B12": "swir22",
}
"""STAC common names of the bands of Sentinel-2's MSI."""

LANDSAT8 = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22", "pan", "cirrus", "lwir11", "lwir12")
LANDSAT7 = ("blue", "green", "red", "nir08", "swir16", "lwir", "swir22", "pan")
LANDSAT = {
    f"{satellite}:B{number}": name
    for satellites, names in ((("LC08", "LC09", "LO08", "LO09"), LANDSAT8), (("LT04", "LT05", "LE07"), LANDSAT7))
    for satellite in satellites
    for number, name in enumerate(names, 1)
}
"""The same of Landsat's, whose numbers mean other bands on other satellites."""

MASKS = ("scl", "qa_pixel")
"""What a raster that comes with the bands may be, of those that tell what can be seen."""

KNOWN = DESCRIBED | {"grey", "alpha"} | set(MASKS)

SUFFIXES = {".tif", ".tiff", ".jp2", ".j2k", ".img"}
"""What files of a folder are looked at."""

STEM = re.compile(r"(?:(.*?)[^A-Za-z0-9]+)??(qa_pixel|[A-Za-z0-9]+?)(?:_(\d+)m)?", re.IGNORECASE)
"""A file's stem, or an asset's key: what comes before its last word, that word, and the metres of a pixel behind it."""

PAIR = re.compile(r"(?:^|,)\s*([A-Za-z]\w*)=")

ITEM = re.compile(r"(.*\.(?:geo)?json)(?:#(.*))?", re.DOTALL)

RASTERS = (
    "image/tiff",
    "image/jp2",
    "application/vnd.zarr",
    "application/vnd+zarr",
    "application/netcdf",
    "application/x-netcdf",
)
"""How media types begin that are scenes."""


@dataclass(frozen=True)
class BandFiles:
    """The files of a scene."""

    id: str
    files: tuple[tuple[str, str], ...]
    """Common name of each band, and path or address of its file."""
    masks: tuple[tuple[str, str], ...] = ()
    """The same of masks."""
    datetime: dt.datetime | None = None
    item: str | None = None
    raster: str | None = None
    """An item's only raster, which has all bands."""
    cloud_cover: float | None = None
    """Per cent, as an item tells it."""


# --- pairs


def is_pairs(path: str) -> bool:
    """Whether a path is a list of bands and paths; a folder may well be called `year=2020`."""
    found = PAIR.match(path)
    if found is None or kind_of(path):
        return False
    return _known(found[1]) is not None or len(PAIR.findall(path)) > 1


def pairs_of(path: str) -> BandFiles:
    """The files of `red=B04.tif,green=B03.tif`. Raises `SceneError` for a name that is no band's, or comes twice."""
    files: dict[str, str] = {}
    for name, file in split_pairs(path):
        known = _known(name)
        if known is None:
            msg = f"{path}: {name} is no band; bands are called {', '.join(sorted(DESCRIBED))}, or B01 to B12"
            raise SceneError(msg)
        if known in files or not file:
            what = f"has two files for {known}" if known in files else f"names no file for {known}"
            msg = f"{path}: {what}; write each band once, as in red=B04.tif,green=B03.tif"
            raise SceneError(msg)
        files[known] = file
    return _parted(_id_of(tuple(files.values())), files)


def split_pairs(path: str) -> Iterator[tuple[str, str]]:
    """Names and files as they are written. A comma is part of a file's name unless `name=` follows."""
    found = [*PAIR.finditer(path)]
    for here, following in zip(found, [*found[1:], None], strict=True):
        yield here[1], path[here.end() : following.start() if following else None].strip()


def join_pairs(files: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """What `split_pairs` takes apart. Raises `SceneError` for a path that it would take apart, too."""
    pairs = [(str(name), str(file)) for name, file in dict(files).items()]
    text = ",".join(f"{name}={file}" for name, file in pairs)
    if [*split_pairs(text)] != pairs:
        msg = f"{text}: a band's name is a word, and a path has no comma and name= in it; rename the file"
        raise SceneError(msg)
    return text


def _known(name: str) -> str | None:
    if name.upper() in SENTINEL2:
        return SENTINEL2[name.upper()]
    return name.lower() if name.lower() in KNOWN else None


def _parted(name: str, files: Mapping[str, str], **more: Any) -> BandFiles:
    bands = tuple((band, file) for band, file in files.items() if band not in MASKS)
    return BandFiles(name, bands, tuple((band, file) for band, file in files.items() if band in MASKS), **more)


def _id_of(files: tuple[str, ...]) -> str:
    """What files of one scene have in common: their names without the band, or else their folder's."""
    stems = {found[1] or "" if (found := STEM.fullmatch(Path(file).stem)) else "" for file in files}
    first = Path(files[0]).absolute() if not scheme_of(files[0]) else Path(files[0])
    common = stems.pop() if len(stems) == 1 else ""
    return re.sub(r"[^\w .-]+", "_", common or first.parent.name).lstrip(". ") or "scene"


# --- folders


def is_band_folder(path: str) -> bool:
    """Whether a path is a folder with rasters in it, or Sentinel-2's own (`.SAFE`)."""
    return not scheme_of(path) and kind_of(path) == "folder" and any(_rasters(Path(path)))


def names_bands(path: str) -> bool:
    """Whether a path is a folder with a raster in it whose name tells a band."""
    return is_band_folder(path) and any(_told(file.stem) for file in _rasters(Path(path)))


def _rasters(folder: Path) -> Iterator[Path]:
    below = folder.glob("GRANULE/*/IMG_DATA/**/*") if (folder / "GRANULE").is_dir() else folder.iterdir()
    yield from (path for path in sorted(below) if path.suffix.lower() in SUFFIXES and path.is_file())


def folder_of(path: str) -> BandFiles:
    """The files of a folder, of each band the finest. Raises `SceneError` if no name tells a band, or two the same."""
    found: dict[str, tuple[float, Path]] = {}
    for file in _rasters(Path(path)):
        told = _told(file.stem)
        if told is None:
            continue
        band, metres = told
        before = found.get(band)
        if before is not None and before[0] == metres:
            msg = f"{path}: {before[1].name} and {file.name} are both {band}; name the files that belong together: "
            raise SceneError(msg + f"{band}={file.name},...")
        if before is None or metres < before[0]:
            found[band] = metres, file
    if not set(found) - set(MASKS):
        names = ", ".join(file.name for file in list(_rasters(Path(path)))[:3])
        msg = f"{path}: cannot be read as a raster, nor as a file for each band: no name ends in one (B02, red ...), "
        raise SceneError(msg + f"there are {names} ...; name one file of it, or each band's: red=FILE,green=FILE")
    return _parted(id_of_folder(path), {band: str(file) for band, (_, file) in found.items()})


PRODUCT = re.compile(r"_(?:SR|ST|TOA)$")
"""What Landsat puts between a scene's name and a band's, and not before a mask."""


def scenes_among(paths: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Path], list[Path]]]:
    """Rasters by the scene that they belong to, as names tell: a path that stands for it, its bands, and all its files.

    Bands are common names, or `scl` and `qa_pixel`; of several resolutions the finest is taken; a raster alone is named
    "". All that lies in a Sentinel-2 product (`.SAFE`) is of that one. Scenes are named by what their files' names have
    in common.
    """
    together: dict[Path, list[Path]] = {}
    for path in paths:
        together.setdefault(_scene_of(path), []).append(path)
    for scene, files in together.items():
        found = _finest(files)
        if len(found.keys() - set(MASKS)) > 1 and (
            scene.suffix.upper() == ".SAFE" or len(files) == len({_told(file.stem) for file in files})
        ):
            yield scene, found, files
        else:
            yield from ((file, {"": file}, [file]) for file in files)


def _scene_of(path: Path) -> Path:
    """A path that stands for the scene of a file: its product's folder, or one named like the file without the band."""
    product = next((above for above in path.parents if above.suffix.upper() == ".SAFE"), None)
    if product is not None:
        return product
    found = STEM.fullmatch(path.stem)
    if found is None or _told(path.stem) is None:
        return path
    return path.parent / (PRODUCT.sub("", found[1] or "") or path.parent.name)


def _finest(files: Iterable[Path]) -> dict[str, Path]:
    """Of each band the finest file."""
    best: dict[str, tuple[float, Path]] = {}
    for file in files:
        band, metres = _told(file.stem) or ("", 0.0)
        if band not in {"", "grey", "alpha"} and (band not in best or metres < best[band][0]):
            best[band] = metres, file
    return {band: file for band, (_, file) in best.items()}


def own_name(path: Path) -> str:
    """What a file calls its band: B04, red, SCL."""
    found = STEM.fullmatch(path.stem)
    return found[2] if found else path.stem


def id_of_folder(path: str) -> str:
    """The name of a folder as that of its scene."""
    folder = Path(path).absolute()
    return folder.stem if folder.suffix.upper() == ".SAFE" else folder.name


def _told(stem: str) -> tuple[str, float] | None:
    """The band that a file's name ends in, and the metres of its pixels if it says so."""
    found = STEM.fullmatch(stem)
    if found is None:
        return None
    band = LANDSAT.get(f"{stem[:4].upper()}:{found[2].upper()}") or _known(found[2])
    return None if band is None else (band, float(found[3] or "inf"))


# --- STAC items


def is_item(path: str) -> bool:
    """Whether a path is a STAC item's, with or without keys of assets."""
    found = ITEM.fullmatch(path)
    return found is not None and not scheme_of(path) and kind_of(found[1]) == "file"


def split_keys(path: str) -> tuple[str, tuple[str, ...] | None]:
    """The file of a STAC object, and the keys of assets that are chosen of it: `item.json#B04,B03,B02`."""
    found = ITEM.fullmatch(path)
    home, keys = (found[1], found[2]) if found else (path, None)
    return home, tuple(keys.split(",")) if keys else None


def item_of(path: str) -> BandFiles:
    """The files of an item's bands, or its only raster.

    Raises `SceneError` for what is no item, or names files outside of its folder.
    """
    home, keys = split_keys(path)
    try:
        item = json.loads(Path(home).read_text(encoding="utf-8"))
        return _files_of(item, home, keys)
    except SceneError as error:
        msg = f"{home}: {error}; or name the files yourself: red=FILE,green=FILE,blue=FILE"
        raise SceneError(msg) from error
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        msg = f"{home}: not a STAC item that can be used: {type(error).__name__}: {error}; give the scene's file itself"
        raise SceneError(msg) from error


def _files_of(item: dict[str, Any], home: str, keys: tuple[str, ...] | None) -> BandFiles:
    if item.get("type") != "Feature":
        msg = f"is no STAC item but of type {item.get('type')!r}; "
        msg += f"map the scenes of a catalog as one with mosaic:{home}, or each of them in a job (scenes.catalogs)"
        raise SceneError(msg)
    rule = Rule((), (_root_of(Path(home).resolve()),))
    files = {band: rule.permit(str(asset["href"]), home) for band, asset in assets_of(item, keys).items()}
    raster = files.pop("", None)
    masks, where = permitted_masks(item, home, rule), str(Path(home).absolute())
    return BandFiles(name_of(item), tuple(files.items()), masks, date_of(item), where, raster, cloud_cover_of(item))


def _root_of(item: Path) -> Path:
    """The folder that an item's files lie in: its own, or that of the collection above which links it."""
    above = item.parent.parent
    try:
        links = json.loads((above / COLLECTION).read_text(encoding="utf-8"))["links"]
        hrefs = {
            Path(absolute(str(link["href"]), str(above / "_"))).resolve() for link in links if link["rel"] == "item"
        }
    except (OSError, ValueError, KeyError, TypeError):
        return item.parent
    return above if item in hrefs else item.parent


def name_of(item: dict[str, Any]) -> str:
    """An item's id as the name of a folder."""
    return re.sub(r"[^\w.-]+", "_", str(item["id"])).lstrip(".") or "scene"


def date_of(item: dict[str, Any]) -> dt.datetime | None:
    """When the scene was taken, if that is known."""
    properties = item.get("properties", {})
    when = properties.get("datetime") or properties.get("start_datetime")
    if when is None or properties.get("geoseg:datetime_known") is False:
        return None  # what stands there says that nothing is known
    found = dt.datetime.fromisoformat(str(when))
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)


def cloud_cover_of(item: dict[str, Any]) -> float | None:
    """Per cent of the scene that its item calls clouded, if it says so."""
    told = item.get("properties", {}).get("eo:cloud_cover")
    return float(told) if isinstance(told, (int, float)) and math.isfinite(told) else None


def assets_of(item: dict[str, Any], keys: tuple[str, ...] | None = None) -> dict[str, dict[str, Any]]:
    """What is to be read of an item: one asset, named "", or the assets of single bands by common name.

    Those of these keys; or else the only raster, or the one whose role or key is visual or data, or else all bands.
    Raises `SceneError` if that tells nothing.
    """
    assets: dict[str, dict[str, Any]] = item.get("assets", {})
    for key in keys or ():
        if key not in assets:
            msg = f"has no asset {key!r}; there are: {', '.join(assets) or 'none'}; choose another scenes.asset"
            raise SceneError(msg)
    if keys is not None and len(keys) == 1:
        return {"": assets[keys[0]]}
    if keys is not None:
        bands = _bands_among({key: assets[key] for key in keys})
        if len(bands) != len(keys):
            msg = (
                f"its assets {', '.join(keys)} are not a known band each; those that are: {', '.join(bands) or 'none'}"
            )
            raise SceneError(msg)
        return bands
    rasters = {k: a for k, a in assets.items() if str(a.get("type", "image/tiff")).startswith(RASTERS)}
    for kind in ("visual", "data"):
        of_kind = [a for k, a in rasters.items() if k == kind or kind in (a.get("roles") or ())]
        if len(rasters) > 1 and len(of_kind) == 1:
            rasters = {kind: of_kind[0]}
    if len(rasters) == 1:
        return {"": next(iter(rasters.values()))}
    bands = _bands_among(rasters)
    if not bands:
        msg = f"which of its assets is to be read? There are: {', '.join(assets) or 'none'}; name one: scenes.asset"
        raise SceneError(msg)
    return bands


def permitted_masks(item: dict[str, Any], home: str, rule: Rule) -> tuple[tuple[str, str], ...]:
    """An item's masks that may be read."""
    found: dict[str, str] = {}
    for key, asset in item.get("assets", {}).items():
        href = str(asset.get("href", ""))
        told = _told(key) or _told(Path(href).stem)
        kind = str(asset.get("type", "image/tiff"))
        if told is None or told[0] not in MASKS or told[0] in found or not kind.startswith(RASTERS):
            continue
        try:
            found[told[0]] = rule.permit(href, home)
        except SceneError:
            continue  # who asks for it is told that there is none
    return tuple(found.items())


def _bands_among(assets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Assets of one band by its common name: of several of a name, the finest, and GeoTIFF before JPEG 2000."""
    found: dict[str, tuple[tuple[float, bool], dict[str, Any]]] = {}
    for key, asset in assets.items():
        name = _common_name_of(key, asset)
        merit = _spacing(key, asset), "jp2" in str(asset.get("type", ""))
        if name and (name not in found or merit < found[name][0]):
            found[name] = merit, asset
    return {name: asset for name, (_, asset) in found.items()}


def _common_name_of(key: str, asset: dict[str, Any]) -> str:
    """The common name of an asset's only band; "" if it has several, or none that is known."""
    bands = asset.get("bands") or asset.get("eo:bands") or [{}]
    if len(bands) != 1 or {"thumbnail", "overview", "metadata"} & set(asset.get("roles") or ()):
        return ""
    band = bands[0]
    told = [band.get("eo:common_name"), band.get("common_name"), asset.get("eo:common_name")]
    name = next((str(name).lower() for name in told if name), "")
    exact = next((SENTINEL2[n] for n in (str(band.get("name", "")).upper(), key.upper()[:3]) if n in SENTINEL2), "")
    if name == "rededge" and exact.startswith("rededge"):
        return exact  # up to 1.0 three bands had this name
    return name if name in DESCRIBED else "" if name else exact


def _spacing(key: str, asset: dict[str, Any]) -> float:
    """Metres of a pixel, as far as an asset tells."""
    raster = (asset.get("raster:bands") or [{}])[0]
    told = asset.get("gsd") or asset.get("raster:spatial_resolution") or raster.get("spatial_resolution")
    return float(told) if told else float((_told(key) or ("", "inf"))[1])


def parts_of(path: str) -> list[str]:
    """The files that will be opened for a path, as far as it names or holds them itself."""
    if is_pairs(path):
        return [file for _, file in split_pairs(path)]
    return [str(file) for file in _rasters(Path(path))] if is_band_folder(path) else [split_labels(path)[0]]


def in_full(path: str, home: Path) -> str:
    """Pairs or a path with what is relative counted from a folder."""
    if not is_pairs(path):
        return absolute(path, str(home / "_"))
    return join_pairs((name, absolute(file, str(home / "_"))) for name, file in split_pairs(path))
