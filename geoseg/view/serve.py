"""`serve`: the pages of `report` on localhost, with tiles at full resolution straight from the COGs and the scenes.

Tiles are squares of the map's own grid, so nothing is brought to another projection: what is seen are pixels of the
file, or of the overview of the COG that fits. Only files of the folder are given out, whatever a path, a link or an
item says. Pages and tiles are made when they are asked for.
"""

from __future__ import annotations

import logging
import mimetypes
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from rasterio.enums import Resampling

from geoseg.errors import GeosegError, OptionError, OutputError
from geoseg.view.facts import CONFIDENCE_FILE, LABEL_FILE, Map, classes_in, read_item, scene_below
from geoseg.view.pages import IN_ARCHIVE, TRANSITIONS_FILE, Pair, change_page, scene_page
from geoseg.view.pictures import Imagery, confidence_picture, labels_picture, read_part, scene_picture
from geoseg.view.render import REPORT, Page, policy, rendered
from geoseg.view.report import kind_of
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Painter: TypeAlias = Callable[[Window, tuple[int, int]], bytes]

log = logging.getLogger("geoseg")

TILE: Final = 512
"""Pixels along a tile."""

COARSEST: Final = 20
"""Level of a tile at most: that of every 2^20th pixel."""

KEPT: Final = 8
"""Pages that are kept once they were made."""

TILE_PATH: Final = re.compile(
    r"(?:(?P<folder>[^/]+)/)?tiles/(?P<layer>[\w-]+)/(?P<z>\d{1,2})/(?P<r>\d{1,7})/(?P<c>\d{1,7})"
)

LOCAL: Final = {"localhost", "127.0.0.1", "[::1]"}


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


class Site:
    """What is served of a folder of results: its page or pages, and its files."""

    def __init__(self, out: Path, data: tuple[Path, ...] = ()) -> None:
        """`data`: folders besides OUT whose scenes may be shown. Raises `OutputError` if OUT holds no results."""
        self.root = out.resolve()
        self.kind = kind_of(self.root)
        self._roots = (self.root, *(folder.resolve() for folder in data))
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._lock = threading.Lock()

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
        if (self.kind == "archive") != bool(name):
            return None
        folder = self.within(name)
        if folder is None or not (folder / "item.json").exists():
            return None
        with self._lock:
            if name not in self._shown:
                self._shown[name] = self._made(folder)
                while len(self._shown) > KEPT:
                    self._shown.popitem(last=False)
            self._shown.move_to_end(name)
            return self._shown[name]

    def within(self, path: str) -> Path | None:
        """A file or folder of OUT, or None: for what leads out of it, by whatever way, and for what is hidden."""
        parts = path.split("/") if path else []
        if "\0" in path or "\\" in path or any(part in {"", ".."} or part.startswith(".") for part in parts):
            return None
        found = self.root.joinpath(*parts)
        try:
            real = found.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            return None
        return real if real == self.root or self.root in real.parents else None

    def _overview(self) -> str:
        from geoseg.view.overview import archive_page, read_archive

        return rendered(archive_page(self.root, read_archive(self.root)), served=True)

    def _made(self, folder: Path) -> Shown:
        if kind_of(folder) == "change":
            pair = Pair.of(folder, roots=self._roots)
            led_away = [each.folder for each in pair.maps if each.folder.resolve() != each.folder]
            if led_away:
                msg = f"{led_away[0]}: is a link to another folder, which is not served"
                raise OutputError(msg)
            return _shown(change_page(pair, IN_ARCHIVE), _change_painters(pair), pair.maps[1])
        mapped = Map.of(folder)
        below = scene_below(mapped, roots=self._roots)
        return _shown(scene_page(mapped, below, IN_ARCHIVE), _scene_painters(mapped, below.imagery), mapped)


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


def _labels(mapped: Map) -> Painter:
    return _coloured(mapped.folder / LABEL_FILE, {v: colour for v, _, colour in mapped.classes}, mapped.background)


def _coloured(path: Path, colours: dict[int, str], clear: set[int]) -> Painter:
    return lambda window, shape: labels_picture(read_part(path, window, shape, Resampling.nearest), colours, clear)


def _confidence(mapped: Map) -> Painter:
    path = mapped.folder / CONFIDENCE_FILE
    return lambda window, shape: confidence_picture(read_part(path, window, shape, Resampling.nearest))


def _pixels(imagery: Imagery) -> Painter:
    def paint(window: Window, shape: tuple[int, int]) -> bytes:
        raster = imagery.read(window) if shape == window.shape else imagery.part(window, shape)
        return scene_picture(raster)

    return paint


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD: pages, tiles, and files of the folder as downloads."""

    site: Site
    local: bool
    """Whether only this machine is answered."""
    server_version = "geoseg"
    sys_version = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a request."""
        if self.local and (self.headers.get("Host") or "").rsplit(":", 1)[0].lower() not in LOCAL:
            self.send_error(HTTPStatus.FORBIDDEN, "Not a name of this machine")  # else any site could have one
            return
        try:
            self._answer(unquote(urlsplit(self.path).path, errors="strict").removeprefix("/"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except (GeosegError, OSError, UnicodeError) as error:
            log.warning("%s: %s", self.path, error)
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815  the library's name

    def _answer(self, path: str) -> None:
        tile = TILE_PATH.fullmatch(path)
        if tile is not None:
            place = (int(tile[name]) for name in ("z", "r", "c"))
            picture = self.site.tile(tile["folder"] or "", tile["layer"], *place)
            self._send(picture, "image/png" if picture and picture.startswith(b"\x89PNG") else "image/webp")
            return
        folder, _, last = path.rpartition("/")
        if not path or last == REPORT:
            html = self.site.page(folder)
            self._send(html and html.encode(errors="replace"), "text/html; charset=utf-8", policy(served=True))
            return
        self._send_file(self.site.within(path))

    def _send_file(self, path: Path | None) -> None:
        """A file as a download: whatever it is, no browser is to run it."""
        if path is None or not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with path.open("rb") as stream:
            self._head(mimetypes.guess_type(path.name)[0] or "application/octet-stream", path.stat().st_size, "sandbox")
            while self.command != "HEAD" and (part := stream.read(1 << 20)):
                self.wfile.write(part)

    def _send(self, content: bytes | str | None, kind: str, rules: str = "default-src 'none'") -> None:
        if not isinstance(content, bytes):
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self._head(kind, len(content), rules)
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, kind: str, size: int, rules: str) -> None:
        self.send_response(HTTPStatus.OK)
        told = {
            "Content-Type": kind,
            "Content-Length": str(size),
            "Content-Security-Policy": rules,
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-cache",
        }
        if rules == "sandbox":
            told["Content-Disposition"] = "attachment"
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Tell the log instead of the terminal."""
        log.info(format, *args)


def server_of(
    out: str | Path, *, data: tuple[str | Path, ...] = (), host: str = "127.0.0.1", port: int = 0
) -> ThreadingHTTPServer:
    """A server of OUT's pages that listens, but does not answer before `serve_forever` is called.

    `data`: folders besides OUT whose scenes may be shown. `port` 0: any that is free. Raises `OutputError` if OUT holds
    no results, `OptionError` if nobody can listen there.
    """
    site = Site(Path(out), tuple(Path(each) for each in data))
    local = host in {"127.0.0.1", "localhost", "::1"}
    handler = type("Handler", (Handler,), {"site": site, "local": local})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as error:
        msg = f"--host {host} --port {port}: cannot be listened on ({error}); choose another port"
        raise OptionError(msg) from error
