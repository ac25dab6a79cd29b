"""A page beside a PMTiles file that shows it on localhost and on any host that answers range requests.

MapLibre and the reader of PMTiles stand in the page (`page/vendor/`), so it asks for nothing but the file beside it.
Colours are those of the legend that the result's item tells, else of the file's own values.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyogrio

from geoseg.errors import GeosegError, OptionError, OutputError
from geoseg.view.facts import classes_in, now, read_item
from geoseg.view.render import embedded, framed, hash_of, own, write_page
from geoseg.view.shapes import CATEGORIES, DIGITS, OWN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SUFFIX: Final = ".pmtiles"

HEADER: Final = struct.Struct("<7sB11Q6B4iB2i")
"""Of PMTiles 3: magic, version, places and counts, kinds and zooms, bounds, and where to look first."""

GZIP: Final = 2
VECTORS: Final = 1

LOOKED_AT: Final = 200_000
"""Polygons at most that are asked for their attributes."""

SHOWN_BY: Final = ("class", "status")
"""Columns by which polygons are coloured at first, the first that there is."""

SCRIPTS: Final = ("viewer.js", "page.js", "webmap.js")
LIBRARIES: Final = ("vendor/maplibre-gl.js", "vendor/pmtiles.js")


@dataclass(frozen=True)
class Tiles:
    """What a PMTiles file says of itself."""

    bounds: tuple[float, float, float, float]
    """West, south, east, north; degrees."""
    zooms: tuple[int, int]
    layers: tuple[str, ...]


def read_tiles(path: Path) -> Tiles:
    """The header and metadata of a PMTiles file of vector tiles. Raises `OutputError` if it is none."""
    try:
        with path.open("rb") as stream:
            head = HEADER.unpack(stream.read(HEADER.size))
            magic, edition, start, length = head[0], head[1], head[4], head[5]
            packing, kind = head[14], head[16]
            stream.seek(start)
            data = stream.read(min(length, 1 << 24))
        told = json.loads(gzip.decompress(data) if packing == GZIP else data)
        names = tuple(str(layer["id"]) for layer in told["vector_layers"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, struct.error, zlib.error) as error:
        msg = f"{path}: cannot be read as PMTiles ({error}); make it with `geoseg convert X.geojson {path.name}`"
        raise OutputError(msg) from error
    if (magic, edition, kind) != (b"PMTiles", 3, VECTORS):
        msg = f"{path}: is no PMTiles file of vector tiles, version 3; make it with `geoseg convert`"
        raise OutputError(msg)
    west, south, east, north = (value / 1e7 for value in head[19:23])
    return Tiles((west, south, east, north), (head[17], head[18]), names)


def columns_of(path: Path, layer: str, zoom: int, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Columns by which polygons can be coloured: names with their colours, or the range of numbers."""
    try:
        table = pyogrio.read_dataframe(
            path, layer=layer, read_geometry=False, max_features=LOOKED_AT, ZOOM_LEVEL=str(zoom)
        )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        return []
    found = (_column(str(name), table[name], colours) for name in table.columns)
    return [column for column in found if column is not None]


def _column(name: str, values: pd.Series, colours: Mapping[str, str]) -> dict[str, Any] | None:
    known = values.dropna()
    if not len(known) or name in {"id", "mvt_id"}:
        return None
    if pd.api.types.is_numeric_dtype(known) and not pd.api.types.is_bool_dtype(known):
        low, high = (round(float(v), DIGITS) for v in np.percentile(known.to_numpy(np.float64), (2, 98)))
        return {"name": name, "kind": "number", "range": [low, high]} if high > low else None
    names = sorted({str(value).lower() if isinstance(value, bool) else str(value) for value in known.unique()})
    if len(names) > CATEGORIES or (len(names) == 1 and name not in SHOWN_BY):
        return None
    return {"name": name, "kind": "category", "names": names, "colours": [colours.get(each) for each in names]}


def legend_beside(path: Path) -> dict[str, str]:
    """Colours by class or status: the page's own of statuses, and those of the item in the file's folder."""
    try:
        assets = read_item(path.parent)["assets"]
    except GeosegError:
        return dict(OWN)
    told = (entry for name in ("labels", "transitions") for entry in classes_in(assets.get(name, {})))
    return OWN | {name: colour for _, name, colour in told}


def web_map(path: Path, rasters: tuple[dict[str, Any], ...] = ()) -> str:
    """The page of a PMTiles file that lies beside it, as HTML. Raises `OutputError` for a file that is none.

    `rasters`: layers below the polygons, with an address `tiles` that has {z}, {x} and {y}.
    """
    tiles, colours = read_tiles(path), legend_beside(path)
    layers = [_layer(name, columns_of(path, name, tiles.zooms[1], colours)) for name in tiles.layers]
    data = {
        "tiles": quote(path.name),
        "file": path.name,
        "bounds": tiles.bounds,
        "rasters": rasters,
        "layers": layers,
    }
    return framed(
        "webmap.html",
        bare=False,
        title=path.stem,
        file=path.name,
        subtitle=f"zoom {tiles.zooms[0]} to {tiles.zooms[1]} · {path.stat().st_size / 1e6:,.1f} MB of vector tiles",
        made=now(),
        policy=policy(),
        styles=_styles(),
        scripts=_scripts(),
        data=embedded(data),
    )


def _layer(name: str, columns: list[dict[str, Any]]) -> dict[str, Any]:
    names = [column["name"] for column in columns]
    by = next((each for each in SHOWN_BY if each in names), names[0] if names else "")
    return {"id": name, "title": name.replace("_", " "), "by": by, "columns": columns}


def policy() -> str:
    """What the page may load and run: its own scripts, and files of the host that it comes from."""
    scripts, styles = (" ".join(map(hash_of, texts)) for texts in (_scripts(), _styles()))
    return (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src 'self' data: blob:; "
        "connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'"
    )


def _scripts() -> tuple[str, str]:
    """The libraries, and our own."""
    return "".join(_without_map(own(name)) for name in LIBRARIES), "".join(map(own, SCRIPTS))


def _styles() -> tuple[str, str]:
    """The same of style."""
    return own("vendor/maplibre-gl.css"), own("page.css") + own("webmap.css")


def _without_map(text: str) -> str:
    """A script that sends no browser for a file that is not there."""
    return text.partition("//# sourceMappingURL=")[0].rstrip() + "\n"


def write_web_map(path: Path, to: Path | None = None) -> Path:
    """Write the page of a PMTiles file beside it: X.html for X.pmtiles; its path.

    Raises `OutputError` for a file that is no PMTiles, or if the disk refuses, `OptionError` for a page elsewhere.
    """
    target = path.with_suffix(".html") if to is None else to
    if target.resolve().parent != path.resolve().parent:
        msg = f"--to {to}: the page asks for {path.name} beside it, so it lies in {path.parent}; leave it out"
        raise OptionError(msg)
    return write_page(target, web_map(path))
