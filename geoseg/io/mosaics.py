"""Mosaics: several scenes as one, read on one grid, window by window; nothing of them is put together on a disk.

    mosaic:FOLDER, mosaic:'tiles/*.tif'     the scenes of a folder, or those that a pattern names, by name
    mosaic:west.tif,east.tif                these; with `;` between them where one has a comma in its own name
    mosaic:collection.json                  all scenes of a STAC catalog, see `geoseg.io.catalogs`
    mosaic-newest:..., mosaic-oldest:..., mosaic-least-cloud:...

Where scenes overlap, a pixel is that of the first of them that is valid there: the first by name or as they are listed,
or the newest, the oldest, the one with the fewest clouds as its STAC item tells. Of equals it is again the first.
"""

from __future__ import annotations

import glob
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

import numpy as np

from geoseg.errors import OptionError, SceneError
from geoseg.io.band_names import is_item, names_bands, split_keys
from geoseg.io.catalogs import catalog_of, title_of
from geoseg.io.grids import on_grid, target_grid
from geoseg.io.hrefs import kind_of, scheme_of
from geoseg.io.zarr_scenes import is_zarr

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from geoseg.catalog import Scene

Order: TypeAlias = Literal["first", "newest", "oldest", "least-cloud"]
"""Which scene goes before the others where they overlap."""

WRITTEN = re.compile(r"mosaic(?:-([\w-]+))?:(.+)", re.DOTALL)

RASTERS = {".tif", ".tiff", ".jp2", ".vrt"}
"""How files are named that are taken of a folder, in small letters."""


def is_mosaic(path: str) -> bool:
    """Whether a path is that of several scenes."""
    return WRITTEN.fullmatch(path) is not None and not kind_of(path)


def written(paths: Sequence[str], order: Order = "first") -> str:
    """What `read_from` takes apart. Raises `SceneError` for a path with a semicolon, `OptionError` for no order."""
    _check_order(order)
    if not paths or any(";" in path for path in paths):
        msg = f"a mosaic of {list(paths)}: needs scenes, none with a semicolon in its path; rename it"
        raise SceneError(msg)
    head = "mosaic:" if order == "first" else f"mosaic-{order}:"
    return head + (";" if any("," in path for path in paths) else ",").join(paths)


def _check_order(order: str) -> None:
    if order not in get_args(Order):
        msg = f"order {order!r}: is none; choose one of {', '.join(get_args(Order))}"
        raise OptionError(msg)


def read_from(text: str) -> tuple[Order, str | None, list[str]]:
    """The order of a mosaic, its name if it is a folder's, pattern's or catalog's, and the paths of its scenes.

    Raises `SceneError` if a folder or pattern holds none, `OptionError` for an order that is none.
    """
    found = WRITTEN.fullmatch(text)
    order: Order = cast("Order", found[1] or "first") if found else "first"
    rest = found[2] if found else text
    _check_order(order)
    alone = kind_of(rest) or (is_item(rest) and not any(kind_of(key) for key in split_keys(rest)[1] or ()))
    entries = [rest] if alone else rest.split(";" if ";" in rest else ",")
    paths = [path for entry in entries for path in _scenes_of(entry.strip())]
    name = None
    if len(entries) == 1 and (catalog := catalog_of(rest)):
        name = title_of(catalog[0])
    elif len(entries) == 1 and paths != entries:
        name = Path(rest if kind_of(rest) else str(rest).rpartition("/")[0] or "mosaic").absolute().name
    return order, name, paths


def _scenes_of(entry: str) -> list[str]:
    """The scenes of a folder or a pattern, by name, or the one that it is itself."""
    if scheme_of(entry) or kind_of(entry) == "file":
        return [entry]
    if kind_of(entry) == "folder" and not is_zarr(entry) and not names_bands(entry):
        held = sorted(Path(entry).iterdir())
        found = [str(path) for path in held if not path.name.startswith(".") and _is_scene(path)]
    elif not kind_of(entry) and glob.has_magic(entry):
        found = sorted(glob.glob(entry, recursive=True))  # noqa: PTH207  # Path has none for absolute patterns
    else:
        return [entry]
    if not found:
        msg = f"{entry}: holds no scenes ({', '.join(sorted(RASTERS))}, Zarr, folders of bands); check the path"
        raise SceneError(msg)
    return found


def _is_scene(path: Path) -> bool:
    return path.suffix.lower() in RASTERS or is_zarr(str(path)) or names_bands(str(path))


def mosaic(scenes: Sequence[Scene], order: Order, path: str, name: str | None = None) -> Scene:
    """Several scenes as one: on the grid of the finest, or the first of those; see `target_grid`.

    `path`: what it is opened by; `name`: its id, or else one made of the first scene's. It has a date if all have the
    same. Raises `SceneError` for no scenes, or some that have other bands than the first, or do not tell what the order
    needs.
    """
    if not scenes:
        msg = f"{path}: holds no scenes; check the catalog"
        raise SceneError(msg)
    first, *others = (part for scene in scenes for part in (scene.parts or (scene,)))
    for other in others:
        _check_alike(other, first)
    parts = _sorted([first, *others], order)
    dates = {part.datetime for part in parts}
    return replace(
        on_grid(replace(first, parts=tuple(parts)), target_grid([first, *others])),
        id=name or (f"{first.id}_and_{len(others)}_more" if others else first.id),
        path=path,
        dtype=str(np.result_type(*(part.dtype for part in parts))),
        datetime=dates.pop() if len(dates) == 1 else None,
        item=None,
    )


def _check_alike(other: Scene, first: Scene) -> None:
    """Raises `SceneError` unless a scene has the bands of another, in the same order, as values of the same kind."""
    if other.bands != first.bands or bool(other.files) != bool(first.files):
        here, there = (", ".join(band or "unnamed" for band in scene.bands) for scene in (other, first))
        what = f"has the bands {here}, and {first.path} has {there}"
        remedy = "scenes of a mosaic have the same in the same order: gdal_translate -b can choose them"
    elif other.dtype != first.dtype:
        what = f"has values of type {other.dtype}, and {first.path} of type {first.dtype}"
        remedy = "scenes of a mosaic are stretched alike: convert one of them with gdal_translate -ot"
    elif other.scaling != first.scaling:
        own, of_first = (", ".join(f"{a:g} {b:+g}" for a, b in scene.scaling) or "none" for scene in (other, first))
        what = f"has the scales and offsets {own}, and {first.path} has {of_first}"
        remedy = "scenes of a mosaic are stretched alike: convert them with gdal_translate -unscale -ot Float32"
    else:
        return
    msg = f"{other.path}: {what}; {remedy}"
    raise SceneError(msg)


def _sorted(parts: list[Scene], order: Order) -> list[Scene]:
    """Scenes by the order's rule; equal ones as they were."""
    if order == "first":
        return parts
    if order == "least-cloud":
        return sorted(parts, key=_cloud_cover)
    when = {id(part): _when(part, order) for part in parts}
    return sorted(parts, key=lambda part: when[id(part)], reverse=order == "newest")


def _when(scene: Scene, order: Order) -> dt.datetime:
    if scene.taken is None:
        msg = (
            f"{scene.path}: its date is unknown, and {order} goes by it; tag the file (TIFFTAG_DATETIME), list it with "
        )
        raise SceneError(msg + "its datetime in a job, or leave the order out")
    return scene.taken


def _cloud_cover(scene: Scene) -> float:
    """Per cent of a scene that its STAC item calls clouded."""
    if scene.cloud_cover is None:
        msg = (
            f"{scene.path}: has no STAC item that tells its cloud cover (eo:cloud_cover), and least-cloud goes by it; "
        )
        raise SceneError(msg + "give the item (.json) in its place, or choose another order")
    return scene.cloud_cover
