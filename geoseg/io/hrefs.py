"""Which files and addresses a catalog may name: other people's text decides about nothing that lies elsewhere."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import unquote, urljoin, urlsplit

from geoseg.errors import SceneError

Scheme: TypeAlias = Literal["http", "https", "s3", "gs", "az", "vsi"]

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Dimensions of a Zarr store or a NetCDF file, and which step of each is meant."""

LABELS = re.compile(r"\w+=[^#]+")


@dataclass(frozen=True)
class Rule:
    """Which hrefs are followed."""

    allow: tuple[Scheme, ...]
    roots: tuple[Path, ...]
    """Resolved folders that a catalog's files lie in."""

    def permit(self, href: str, home: str, *, listed: bool = False) -> str:
        """The absolute path or address of an href that stands in the file `home`. Raises `SceneError` if refused.

        `listed`: the user named it, so it may lie in any folder.
        """
        path = absolute(href, home)
        scheme = scheme_of(path)
        if scheme and scheme not in self.allow:
            msg = f"{href}: {scheme} is not allowed by this job; if you trust it, add it to scenes.allow: [{scheme}]"
            raise SceneError(msg)
        if scheme:
            return path
        real = Path(path).resolve()
        if not listed and not any(real == root or root in real.parents for root in self.roots):
            msg = f"{href}: lies outside of its catalog's folder; if you trust it, add its folder to scenes.roots"
            raise SceneError(msg)
        if "vsi" not in self.allow and _is_text(real):
            msg = f"{href}: is a description (VRT or other XML) that may name any file or address; if you trust it, "
            raise SceneError(msg + "add vsi to scenes.allow")
        return str(Path(path))


def scheme_of(href: str) -> str:
    """`https` and the like; `vsi` for what only GDAL understands; nothing for a path."""
    if "/vsi" in href.lower().replace("\\", "/") or href.lstrip().startswith("<"):
        return "vsi"
    scheme, colon, rest = href.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z][\w+.-]+", scheme):  # one letter is a drive
        return ""
    known = scheme.lower() in {"http", "https", "s3", "gs", "az"} and rest.startswith("//")
    return scheme.lower() if known else "vsi"


def kind_of(path: str) -> Literal["file", "folder", ""]:
    """What is there, also for what is no path at all: the files of many bands make a longer text than a path may be."""
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return ""
    return "folder" if stat.S_ISDIR(mode) else "file"


def split_labels(path: str) -> tuple[str, Labels]:
    """A path, and what is chosen of it: `cube.zarr#time=2024-05-01` is one step of a store.

    >>> split_labels("cube.zarr/r10m#time=2024-05-01T10:20,band=B04")
    ('cube.zarr/r10m', (('time', '2024-05-01T10:20'), ('band', 'B04')))
    >>> split_labels("item.json#B04,B03")
    ('item.json#B04,B03', ())
    """
    where, _, text = path.rpartition("#")
    if not where or not LABELS.match(text) or kind_of(path):
        return path, ()
    pairs = re.split(r",(?=\w+=)", text)
    return where, tuple((dim.strip(), label.strip()) for dim, _, label in (pair.partition("=") for pair in pairs))


def join_labels(path: str, labels: Labels) -> str:
    """What `split_labels` takes apart."""
    return path + "#" * bool(labels) + ",".join(f"{dim}={label}" for dim, label in labels)


def labelled(name: str, labels: Labels) -> str:
    """The name of one step of what is called so.

    >>> labelled("cube", (("time", "2024-05-01T10:20"),))
    'cube_2024-05-01T10_20'
    """
    return name + re.sub(r"[^\w.-]+", "_", "".join(f"_{label}" for _, label in labels))


def absolute(href: str, home: str) -> str:
    """The path or address of an href that stands in the file `home`; as it is if nothing is said of a file."""
    if href.lower().startswith("file://"):
        href = unquote(urlsplit(href).path)
    if scheme_of(href):
        return href
    if not home or Path(href).is_absolute():
        return href
    if scheme_of(home) == "vsi":
        return href
    return urljoin(home, href) if scheme_of(home) else str(Path(home).parent / href)


def _is_text(path: Path) -> bool:
    """Whether a file is XML, which GDAL takes for a raster whatever its name is."""
    try:
        with path.open("rb") as stream:
            return stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    except OSError:
        return False  # opening it will tell what is wrong
