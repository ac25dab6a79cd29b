"""Whether a file is still the same, without reading it: also one that comes over a network."""

from __future__ import annotations

import datetime as dt
import logging
import os
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geoseg.io.array_scenes import state_of_array
from geoseg.io.zarr_scenes import METADATA, is_zarr

if TYPE_CHECKING:
    from geoseg.catalog import Scene

log = logging.getLogger("geoseg")

ANSWER_WITHIN = 30.0
"""Seconds that a server has to tell of a file."""

WAITS = (1.0, 4.0)
"""Seconds to wait before it is asked again."""

REMOTE_WAITS = (1.0, 4.0, 16.0)
"""Seconds to wait before pixels are read again that come over a network."""

State = dict[str, Any]


def is_remote(path: str) -> bool:
    """Whether a scene comes over a network, as far as its path tells."""
    return "://" in path or path.startswith("/vsi")


def state_of(path: str) -> State:
    """Size in bytes, time of the last change and, of what a web server gives, the entity tag (RFC 9110, 8.8.3).

    None for what is unknown: all of it where nothing is there, or where nobody can be asked but with credentials. Of a
    Zarr store at an address only its metadata tell: nobody could ask for every chunk.
    """
    if is_zarr(path) and is_remote(path):
        return _of_objects(path, METADATA)
    if is_remote(path):
        return _told_by_server(path.removeprefix("/vsicurl/"))
    if not Path(path).exists():
        return {"bytes": None, "modified": None}
    size, time_ns = size_and_time(Path(path))
    return {"bytes": size, "modified": dt.datetime.fromtimestamp(time_ns / 1e9, dt.UTC).isoformat()}


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change, in nanoseconds since 1970; of a folder, of all that is in it."""
    state = path.stat()
    if not path.is_dir():
        return state.st_size, state.st_mtime_ns
    states = [Path(here, name).lstat() for here, folders, files in os.walk(path) for name in (*folders, *files)]
    size = sum(each.st_size for each in states if not stat.S_ISDIR(each.st_mode))
    return size, max([state.st_mtime_ns, *(each.st_mtime_ns for each in states)])


def state_of_scene(scene: Scene) -> State:
    """The same of a scene: of each file by its band where there are several, of its mask, and of its parts."""
    if scene.parts:
        return _state_of_parts(scene)
    files = dict(zip(scene.bands, scene.files, strict=True)) if scene.files else {}
    if scene.memory is not None:
        state = state_of_array(scene)
    elif files:
        state = {"files": {band: _named(file) for band, file in files.items()}}
    else:
        state = state_of(scene.file or scene.path)
    return state if scene.mask is None else {**state, "mask": {"is": scene.mask[0], **_named(scene.mask[1])}}


def _state_of_parts(scene: Scene) -> State:
    states = [state_of_scene(part) for part in scene.parts]
    if len(states) == 1:
        return states[0]
    numbered = enumerate(zip(scene.parts, states, strict=True), 1)
    state: State = {"parts": {str(number): {"name": part.name, **each} for number, (part, each) in numbered}}
    return state if scene.mask is None else {**state, "mask": {"is": scene.mask[0], **_named(scene.mask[1])}}


def _named(path: str) -> State:
    return {"name": Path(path).name, **state_of(path)}


def is_gone(before: State, now: State) -> bool:
    """Whether a file that was there is not there any more."""
    parts = [key for key, value in before.items() if isinstance(value, dict)]
    gone = before.get("bytes") is not None and now.get("bytes") is None
    return gone or any(is_gone(before[key], now.get(key, {})) for key in parts)


def differs(before: State, now: State) -> bool:
    """Whether a file is another one; what is not known now says nothing of a remote one."""
    parts = {key for key, value in (before | now).items() if isinstance(value, dict)}
    if parts:
        alone, now_alone = ({k: v for k, v in state.items() if k not in parts} for state in (before, now))
        return differs(alone, now_alone) or any(differs(before.get(key, {}), now.get(key, {})) for key in parts)
    if "etag" not in before:
        return before != now
    return any(now[key] is not None and now[key] != value for key, value in before.items())


def _told_by_server(url: str) -> State:
    if not url.startswith(("http://", "https://")):
        return _of_objects(url) if url.startswith("s3://") else {"bytes": None, "modified": None, "etag": None}
    headers = _headers(url)
    length = headers.get("Content-Length")
    return {
        "bytes": int(length) if length and length.isdecimal() else None,
        "modified": headers.get("Last-Modified"),
        "etag": headers.get("ETag"),
    }


def _of_objects(url: str, names: tuple[str, ...] = ()) -> State:
    from geoseg.io.objects import state_at

    return state_at(url, names)


def _headers(url: str) -> dict[str, str]:
    """What a server says of a file; nothing if it does not want to, or cannot be reached after some tries."""
    request = urllib.request.Request(url, method="HEAD")  # noqa: S310  http and https alone come here
    why: Exception | None = None
    for wait in (0.0, *WAITS):
        time.sleep(wait)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_WITHIN) as answer:  # noqa: S310
                return dict(answer.headers)
        except urllib.error.HTTPError as error:
            error.close()
            why = error
            break
        except (OSError, ValueError) as error:
            why = error
    log.info("%s: its server does not tell whether it has changed: %s", url, why)
    return {}
