"""The web server of `serve`: uvicorn and FastAPI below, TiTiler for maps as web tiles, and what may be asked.

Everything is decided in `geoseg.view.serve.Site`; here it gets addresses, and rules for browsers.
"""

from __future__ import annotations

import logging
import mimetypes
import socket
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from titiler.core.errors import DEFAULT_STATUS_CODES, add_exception_handlers

from geoseg.errors import GeosegError, OptionError
from geoseg.view.render import REPORT, policy
from geoseg.view.serve import TILE_PATH
from geoseg.view.webmap import SUFFIX, web_map
from geoseg.view.webmap import policy as web_policy
from geoseg.view.webtiles import ALONE, WITHIN, web_tiles

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from geoseg.view.serve import Site

log = logging.getLogger("geoseg")

LOCAL: Final = {"localhost", "127.0.0.1", "[::1]"}


class Guard:
    """What every request goes through: who is asked, by which name, and what a browser may do with the answer."""

    def __init__(self, app: ASGIApp, *, local: bool) -> None:
        """`local`: whether only this machine is answered."""
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in RULES.items():
                    headers.setdefault(name, value)
            await send(message)

        if self.local and Headers(scope=scope).get("host", "").rsplit(":", 1)[0].lower() not in LOCAL:
            # else any site could have a name that leads here
            refused = PlainTextResponse("Not a name of this machine", HTTPStatus.FORBIDDEN)
            await refused(scope, receive, guarded)
            return
        # Nothing is asked by queries: so nobody can ask for a picture of any size, or for other files.
        await self.app({**scope, "query_string": b""}, receive, guarded)


RULES: Final = {
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def application(site: Site, *, local: bool = True) -> FastAPI:
    """The pages, tiles and files of a folder, and its maps as web tiles, as an ASGI application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_exception_handlers(app, DEFAULT_STATUS_CODES)
    for kind in (GeosegError, OSError, UnicodeError):
        app.add_exception_handler(kind, _not_found)
    for prefix in (ALONE, WITHIN):
        app.include_router(web_tiles(site.web_layer, within=prefix == WITHIN), prefix=prefix)

    def answered(path: str) -> Response:
        return _answer(site, path)

    app.add_api_route("/{path:path}", answered, methods=["GET", "HEAD"], response_model=None)
    app.add_middleware(Guard, local=local)
    return app


def _not_found(request: Request, error: Exception) -> Response:
    log.warning("%s: %s", request.url.path, error)
    return Response(status_code=HTTPStatus.NOT_FOUND)


def _answer(site: Site, path: str) -> Response:
    tile = TILE_PATH.fullmatch(path)
    if tile is not None:
        place = (int(tile[name]) for name in ("z", "r", "c"))
        picture = site.tile(tile["folder"] or "", tile["layer"], *place)
        if picture is None:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        return Response(picture, media_type="image/png" if picture.startswith(b"\x89PNG") else "image/webp")
    if not path and site.tiles is not None:
        path = site.tiles.removesuffix(SUFFIX) + ".html"
    folder, _, last = path.rpartition("/")
    if not path or last == REPORT:
        html, rules = site.page(folder), policy(served=True)
    elif last.endswith(".html") and (tiles := site.within(path.removesuffix(".html") + SUFFIX)) is not None:
        html, rules = web_map(tiles, site.rasters(folder)), web_policy()
    else:
        return _file(site.within(path))
    if html is None:
        return Response(status_code=HTTPStatus.NOT_FOUND)
    return HTMLResponse(html.encode(errors="replace"), headers={"Content-Security-Policy": rules})


def _file(path: Path | None) -> Response:
    """A file as a download, or a part of it: whatever it is, no browser is to run it."""
    if path is None or not path.is_file():
        return Response(status_code=HTTPStatus.NOT_FOUND)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    told = {"Content-Security-Policy": "sandbox", "Content-Disposition": "attachment"}
    return FileResponse(path, media_type=kind, headers=told)


class Server:
    """A server of a folder's pages that listens, but does not answer before `serve_forever` is called."""

    def __init__(self, site: Site, host: str, port: int) -> None:
        """Raises `OptionError` if nobody can listen there."""
        app = application(site, local=host in {"127.0.0.1", "localhost", "::1"})
        self._socket = _listening(host, port)
        self._ended = threading.Event()
        self._ended.set()
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", ws="none", server_header=False, timeout_graceful_shutdown=2
        )
        self._server = uvicorn.Server(config)

    @property
    def server_address(self) -> tuple[str, int]:
        """Where it listens."""
        address = self._socket.getsockname()
        return str(address[0]), int(address[1])

    def serve_forever(self) -> None:
        """Answer until `shutdown` is called, or the process is interrupted."""
        self._ended.clear()
        try:
            if not self._server.should_exit:
                self._server.run(sockets=[self._socket])
        finally:
            self._ended.set()

    def shutdown(self) -> None:
        """End `serve_forever`, from another thread, and wait for it."""
        self._server.should_exit = True
        self._ended.wait()

    def server_close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        self.server_close()


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        msg = f"--host {host} --port {port}: cannot be listened on ({error}); choose another port"
        raise OptionError(msg) from error
    return listening
