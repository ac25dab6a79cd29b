"""`serve`: the pages of `report` on localhost, with tiles at full resolution straight from COGs, Zarr and the scenes.

Tiles are squares of the map's own grid, so nothing is brought to another projection: what is seen are pixels of the
file, or of the overview that fits. For web maps and QGIS there are tiles of Web Mercator, too. Only files of the
folder are given out, whatever a path, a link or an item says. Pages and tiles are made when they are asked for.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

import numpy as np

from geoseg.errors import OptionError, OutputError
from geoseg.io.zarr_maps import MAPS
from geoseg.raster import CONFIDENCE_STEPS, NODATA
from geoseg.view.facts import CONFIDENCE_FILE, LABEL_FILE, MAP_FILES, Map, classes_in, read_item, scene_below
from geoseg.view.pages import IN_ARCHIVE, TRANSITIONS_FILE, Pair, change_page, scene_page
from geoseg.view.pictures import (
    Imagery,
    confidence_picture,
    labels_picture,
    overview_grid,
    ramp,
    read_part,
    scene_picture,
)
from geoseg.view.render import UP, Page, rendered
from geoseg.view.report import kind_of
from geoseg.view.webmap import SUFFIX
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from odc.geo.geobox import GeoBox

    from geoseg.export import Observer
    from geoseg.raster import Raster
    from geoseg.view.overview import Entry
    from geoseg.view.report import Kind
    from geoseg.view.webserver import Server

    Painter: TypeAlias = Callable[[Window, tuple[int, int]], bytes]

TILE: Final = 512
"""Pixels along a tile."""

COARSEST: Final = 20
"""Level of a tile at most: that of every 2^20th pixel."""

WHOLE: Final = 2048
"""Rows and columns at most of a scene that is kept for coarse tiles; many have no overviews."""

KEPT: Final = 8
"""Pages that are kept once they were made."""

TILE_PATH: Final = re.compile(
    r"(?:(?P<folder>[^/]+)/)?tiles/(?P<layer>[\w-]+)/(?P<z>\d{1,2})/(?P<r>\d{1,7})/(?P<c>\d{1,7})"
)


@dataclass(frozen=True)
class Shown:
    """A page that is served, and what paints the tiles of its layers."""

    html: str
    shape: tuple[int, int]
    """Rows and columns of its grid."""
    painters: Mapping[str, Painter]
    lock: threading.Lock

    def tile(self, layer: str, level: int, row: int, col: int) -> bytes | None:
        """A picture of a square of the grid; None where there is none."""
        side = TILE << min(level, COARSEST)
        inside = Window.of_shape(self.shape).intersection(
            Window(row * side, (row + 1) * side, col * side, (col + 1) * side)
        )
        if layer not in self.painters or level > COARSEST or inside is None:
            return None
        shape = tuple(max(1, -(-length >> level)) for length in inside.shape)
        with self.lock:  # a source is read by one thread at a time
            return self.painters[layer](inside, (shape[0], shape[1]))


@dataclass(frozen=True)
class Layer:
    """A raster that is given out as web tiles."""

    source: Path | Imagery
    """A COG, an array of a Zarr store, or a scene."""
    colours: dict[int, tuple[int, int, int, int]] | None = None
    """Of values, red to opacity; None: as they are."""
    whole: tuple[GeoBox, Raster] | None = None
    """All of a scene in few pixels, for tiles that are as coarse."""


class Site:
    """What is served of a folder of results: its page or pages, and its files."""

    def __init__(self, out: Path, data: tuple[Path, ...] = ()) -> None:
        """`out` may be a PMTiles file, too: then it is all that is given out, and `tiles` its name.

        `data`: folders besides OUT whose scenes may be shown. Raises `OutputError` if OUT holds no results.
        """
        tiles = out.suffix == SUFFIX and out.is_file()
        self.tiles = out.name if tiles else None
        self.root = (out.parent if tiles else out).resolve()
        self.kind: Kind | None = None if tiles else kind_of(self.root)
        self._roots = (self.root, *(folder.resolve() for folder in data))
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._layers: OrderedDict[tuple[str, str], Layer] = OrderedDict()
        self._entries: dict[str, tuple[int, Entry]] = {}
        self._lock = threading.Lock()

    def prepare(self, observe: Observer) -> None:
        """Read what the first page tells, so that it opens at once; of many scenes only what is new is read later."""
        if self.kind == "archive":
            self._overview(observe)
        else:
            self.shown("")

    def page(self, name: str = "") -> str | None:
        """The HTML of OUT, or of a folder in it; None if there is none."""
        if self.kind == "archive" and not name:
            return self._overview()
        shown = self.shown(name)
        return None if shown is None else shown.html

    def tile(self, name: str, layer: str, level: int, row: int, col: int) -> bytes | None:
        """A tile of a page's layer; None if there is none."""
        shown = self.shown(name)
        return None if shown is None else shown.tile(layer, level, row, col)

    def shown(self, name: str) -> Shown | None:
        """What is shown of OUT, or of a folder in it; None if that is no result."""
        folder = self._result(name)
        if folder is None:
            return None
        with self._lock:
            if name not in self._shown:
                self._shown[name] = self._made(folder)
                while len(self._shown) > KEPT:
                    self._shown.popitem(last=False)
            self._shown.move_to_end(name)
            return self._shown[name]

    def _result(self, name: str) -> Path | None:
        """The folder of a result. Raises `OutputError` for one in which a link leads out of OUT."""
        if self.tiles is not None or (self.kind == "archive") != bool(name):
            return None
        folder = self.within(name)
        if folder is None or not (folder / "item.json").exists():
            return None
        for each in folder.rglob("*"):
            if each.is_symlink() and self.root not in each.resolve().parents:
                msg = f"{each}: is a link that leads out of {self.root}, which is not served"
                raise OutputError(msg)
        return folder

    def web_layer(self, folder: str, name: str) -> Layer:
        """A map or the scene of a result for web tiles. Raises `OutputError` if there is none."""
        with self._lock:
            found = self._layers.get((folder, name)) or self._web_layer(folder, name)
            self._layers[folder, name] = found
            while len(self._layers) > KEPT:
                self._layers.popitem(last=False)
            return found

    def _web_layer(self, folder: str, name: str) -> Layer:
        mapped = self._scene_in(folder)
        if mapped is not None and name in MAP_FILES:
            return Layer(map_source(mapped.folder, name), _web_colours(mapped, name))
        imagery = scene_below(mapped, roots=self._roots).imagery if mapped is not None and name == "scene" else None
        if imagery is None:
            msg = f"{folder}/web/{name}: is no map of these results; name labels, confidence or scene"
            raise OutputError(msg)
        return Layer(imagery, whole=(overview_grid(imagery.grid, WHOLE), imagery.overview(WHOLE)))

    def _scene_in(self, name: str) -> Map | None:
        folder = self._result(name)
        return Map.of(folder) if folder is not None and kind_of(folder) == "scene" else None

    def rasters(self, folder: str) -> tuple[dict[str, Any], ...]:
        """What a web map shows below the polygons of a folder."""
        mapped = self._scene_in(folder)
        if mapped is None:
            return ()
        legend = [[colour, name] for value, name, colour in mapped.classes if value not in mapped.background]
        found = (
            _raster("labels", "Labels", 0.6, legend=legend),
            _raster("confidence", "Confidence", 0.8, ramp=[0, 1]),
        )
        below = scene_below(mapped, roots=self._roots)
        seen = () if below.imagery is None else (_raster("scene", "Scene", 1.0, visible=True, smooth=True),)
        return (*seen, *found)

    def within(self, path: str) -> Path | None:
        """A file or folder of OUT, or None: for what leads out of it, by whatever way, and for what is hidden."""
        if self.tiles is not None and path != self.tiles:
            return None
        parts = path.split("/") if path else []
        if "\0" in path or "\\" in path or any(part in {"", ".."} or part.startswith(".") for part in parts):
            return None
        found = self.root.joinpath(*parts)
        try:
            real = found.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return real if real == self.root or self.root in real.parents else None

    def _overview(self, observe: Observer = lambda _stage, _done, _total: None) -> str:
        from geoseg.view.overview import archive_page, read_archive

        archive = read_archive(self.root, observe, self._entries)
        return rendered(archive_page(self.root, archive), served=True)

    def _made(self, folder: Path) -> Shown:
        if kind_of(folder) == "change":
            pair = Pair.of(folder, roots=self._roots)
            led_away = [each.folder for each in pair.maps if each.folder.resolve() != each.folder]
            if led_away:
                msg = f"{led_away[0]}: is a link to another folder, which is not served"
                raise OutputError(msg)
            page, painters, mapped = change_page(pair, IN_ARCHIVE), _change_painters(pair), pair.maps[1]
        else:
            mapped = Map.of(folder)
            below = scene_below(mapped, roots=self._roots)
            page, painters = scene_page(mapped, below, IN_ARCHIVE), _scene_painters(mapped, below.imagery)
        above = UP if self.kind == "archive" else ""
        return _shown(replace(page, above=above, maps=tuple(web_maps_in(folder))), painters, mapped)


def _shown(page: Page, painters: dict[str, Painter], mapped: Map) -> Shown:
    """A page whose layers have tiles."""
    viewer = page.viewer or {"layers": []}
    layers = [
        {**layer, "tiles": f"tiles/{layer['id']}", "tile": TILE} if layer["id"] in painters else layer
        for layer in viewer["layers"]
    ]
    rows, cols = mapped.grid.shape
    html = rendered(replace(page, viewer={**viewer, "layers": layers}), served=True)
    return Shown(html, (int(rows), int(cols)), painters, threading.Lock())


def _scene_painters(mapped: Map, imagery: Imagery | None) -> dict[str, Painter]:
    found = {"labels": _labels(mapped), "confidence": _confidence(mapped)}
    return found if imagery is None else {**found, "scene": _pixels(imagery)}


def _change_painters(pair: Pair) -> dict[str, Painter]:
    found: dict[str, Painter] = {}
    for when, mapped, below in zip(("before", "after"), pair.maps, pair.below, strict=True):
        if below.imagery is not None:
            found[when] = _pixels(below.imagery)
        if mapped.grid == pair.maps[1].grid:
            found[f"labels-{when}"] = _labels(mapped)
    if (pair.folder / TRANSITIONS_FILE).exists():
        told = classes_in(read_item(pair.folder)["assets"]["transitions"])
        colours = {value: colour for value, _, colour in told if value}
        found["transitions"] = _coloured(pair.folder / TRANSITIONS_FILE, colours, {0})
    return found


def web_maps_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Names and addresses of the pages of vector tiles that are in a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield path.stem, quote(f"{path.stem}.html")


def map_source(folder: Path, name: str) -> Path:
    """Where a map is: its COG, or the array in the Zarr store."""
    cog = folder / MAP_FILES[name]
    return cog if cog.exists() else folder / MAPS / name


def _web_colours(mapped: Map, name: str) -> dict[int, tuple[int, int, int, int]]:
    if name == "confidence":
        codes = np.minimum(np.arange(NODATA) * 255 // CONFIDENCE_STEPS, 255)
        return {code: (int(red), int(green), int(blue), 255) for code, (red, green, blue) in enumerate(ramp()[codes])}
    told = {value: bytes.fromhex(colour[1:]) for value, _, colour in mapped.classes}
    return {v: (rgb[0], rgb[1], rgb[2], 0 if v in mapped.background else 255) for v, rgb in told.items()}


def _raster(id_: str, title: str, opacity: float, **more: Any) -> dict[str, Any]:
    tiles = f"web/{id_}/tiles/WebMercatorQuad/{{z}}/{{x}}/{{y}}.png"
    return {"id": id_, "title": title, "tiles": tiles, "visible": False, "opacity": opacity, "smooth": False, **more}


def _labels(mapped: Map) -> Painter:
    return _coloured(mapped.folder / LABEL_FILE, {v: colour for v, _, colour in mapped.classes}, mapped.background)


def _coloured(path: Path, colours: dict[int, str], clear: set[int]) -> Painter:
    return lambda window, shape: labels_picture(read_part(path, window, shape), colours, clear)


def _confidence(mapped: Map) -> Painter:
    path = mapped.folder / CONFIDENCE_FILE
    return lambda window, shape: confidence_picture(read_part(path, window, shape))


def _pixels(imagery: Imagery) -> Painter:
    def paint(window: Window, shape: tuple[int, int]) -> bytes:
        raster = imagery.read(window) if shape == window.shape else imagery.part(window, shape)
        return scene_picture(raster)

    return paint


def server_of(
    out: str | Path,
    *,
    data: tuple[str | Path, ...] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    observe: Observer = lambda _stage, _done, _total: None,
) -> Server:
    """A server of OUT's pages that listens, but does not answer before `serve_forever` is called.

    OUT is a folder of results, or a PMTiles file, of which only the file and its page are given out. `data`: folders
    besides OUT whose scenes may be shown. `port` 0: any that is free. Raises `OutputError` if OUT holds no results,
    `OptionError` if nobody can listen there.
    """
    site = Site(Path(out), tuple(Path(each) for each in data))
    try:
        from geoseg.view.webserver import Server
    except ImportError as error:
        msg = f"serving needs {error.name}, which is not installed; pip install 'geoseg[serve]'"
        raise OptionError(msg) from error
    site.prepare(observe)
    return Server(site, host, port)
