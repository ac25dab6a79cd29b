"""What geoseg keeps on the user's disk because it can be made again: where it lies, and whether it may be believed.

A file that is kept begins with the SHA-256 of the rest. It is written beside its place and then renamed, so that it is
there as a whole or not at all, and it is read only if it belongs to whoever asks and is what was written. Whatever else
is found is as good as nothing. A cache that cannot be written costs time, and is no error. What nobody has used for
`UNUSED` goes when something is kept beside it: new versions of libraries leave their like behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

log = logging.getLogger("geoseg")

UNUSED = 60 * 24 * 3600.0
"""Seconds for which what is kept may lie there without being used."""


def cache_folder() -> Path:
    """Where it lies: $GEOSEG_CACHE, or `geoseg` in the user's cache folder."""
    if own := os.environ.get("GEOSEG_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "geoseg"


def keep(path: Path, content: bytes) -> None:
    """Keep some bytes at a path, for this user alone."""
    part = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as stream:
            part = Path(stream.name)
            stream.write(_digest(content) + b"\n" + content)
        part.replace(path)
    except OSError as error:
        log.info("%s: cannot be kept for the next time: %s", path, error.strerror)
        if part is not None:
            part.unlink(missing_ok=True)
    _tidy(path.parent)


def kept(path: Path) -> bytes | None:
    """What was kept at a path; None if there is nothing, or something that was not kept by this user, or is damaged."""
    try:
        with path.open("rb") as stream:
            if hasattr(os, "getuid") and os.fstat(stream.fileno()).st_uid != os.getuid():
                log.info("%s: belongs to another user, and is not used", path)
                return None
            digest, _, content = stream.read().partition(b"\n")
    except OSError:
        return None
    if digest != _digest(content):
        log.info("%s: is damaged, and is not used", path)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # by which it counts as used now
    return content


def _tidy(folder: Path) -> None:
    """Remove what has not been used for long, parts that were never whole among it."""
    for each in folder.glob("*"):
        with contextlib.suppress(OSError):
            if each.is_file() and time.time() - each.stat().st_mtime > UNUSED:
                each.unlink()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
