"""One self-contained HTML page: template, style and scripts put together under a policy that lets nothing else in.

Whatever comes from metadata is escaped, by the template where it is text and by `embedded` where it is data. The policy
names the page's own style and scripts by their hashes and allows neither other scripts nor any address, so even what
slipped through could neither run nor tell anybody.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from geoseg.io.store import cannot_write

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Sequence

    from geoseg.view.facts import Histogram, Proof, Share, Work

FOLDER = Path(__file__).parent / "page"
REPORT = "report.html"
UP = f"../{REPORT}"
"""From the page of a scene to that of its archive."""

UNKNOWN = "-"
"""What a cell says that has nothing to say."""


@dataclass(frozen=True)
class Thumb:
    """One outline on the ground around it."""

    index: int
    """Of the outlines on the map."""
    title: str
    text: str
    side: int
    """Pixels along the picture, in which `path` counts."""
    path: str
    """SVG's."""
    picture: str = ""
    """As an address that holds it."""


@dataclass(frozen=True)
class Row:
    """A scene of an archive."""

    name: str
    state: str
    cells: tuple[tuple[float | str, str], ...]
    """What is sorted by, and what is shown."""
    href: str = ""
    """Its own page."""


@dataclass(frozen=True)
class Table:
    """Numbers, a first column with names."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Page:
    """What a page shows; what is empty is left out."""

    title: str
    subtitle: str
    numbers: tuple[tuple[str, str], ...]
    made: dt.datetime
    viewer: dict[str, Any] | None = None
    sides: tuple[str, str] | None = None
    """What is on the left and on the right of a swipe."""
    notes: tuple[str, ...] = ()
    areas: tuple[Share, ...] = ()
    """Hectares."""
    tables: tuple[Table, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    worst: tuple[Thumb, ...] = ()
    worst_layer: str = ""
    work: Work | None = None
    proof: Proof | None = None
    proof_notes: tuple[str, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    parameters: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """Text and address of pages of changes."""
    maps: tuple[tuple[str, str], ...] = ()
    """Name and address of web maps."""
    above: str = ""
    """Address of the page of the archive that this scene is of."""
    head: tuple[str, ...] = ()
    rows: tuple[Row, ...] = field(default=(), repr=False)


def embedded(content: Any) -> Markup:
    r"""Data as JSON that may stand in a script element: nothing in it can end the element or begin a comment.

    >>> embedded({"name": "</script>"})
    Markup('{"name":"\\u003c/script\\u003e"}')
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  escaped just now


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """What fills in templates, escaping all."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["amount"] = amount
    return made


def amount(value: float) -> str:
    """A number for people, with three digits that count.

    >>> [amount(value) for value in (0, 0.01234, 3.14159, 1234.5, 98041856)]
    ['0', '0.0123', '3.14', '1,234', '98,041,856']
    """
    if value == 0 or abs(value) >= 100:  # noqa: PLR2004  from here on there are three digits before the point
        return f"{value:,.0f}"
    return f"{value:.3g}"


@lru_cache(maxsize=16)
def own(name: str) -> str:
    """A file of the page, as the browser will hash it."""
    return (FOLDER / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def hash_of(text: str) -> str:
    """A text as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def policy(*, served: bool = False) -> str:
    """What a page may load and run (Content Security Policy 3): its own, and if it is served its server's pictures."""
    pictures = "'self' data:" if served else "data:"
    script, style = hash_of(own("viewer.js") + own("page.js")), hash_of(own("page.css"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src {pictures}; "
        "base-uri 'none'; form-action 'none'"
    )


def rendered(page: Page, *, served: bool = False, bare: bool = False) -> str:
    """The page as HTML; `bare`: the map alone, as it stands in a notebook."""
    return framed(
        "page.html",
        page=page,
        bare=bare,
        title=page.title,
        subtitle=page.subtitle,
        made=page.made,
        policy=policy(served=served),
        styles=[own("page.css")],
        scripts=[own("viewer.js") + own("page.js")],
        data=None if page.viewer is None else embedded(page.viewer),
    )


def framed(template: str, *, styles: Sequence[str], scripts: Sequence[str], **told: Any) -> str:
    """A template in the frame of all pages; `styles` and `scripts`, the package's own, stand there as they are."""
    safe = {"styles": map(Markup, styles), "scripts": map(Markup, scripts)}
    return environment().get_template(template).render(version=version("geoseg"), **safe, **told)


def write_page(path: Path, html: str) -> Path:
    """Write a page that is there as a whole or not at all. Raises `OutputError` if the disk refuses."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(html, encoding="utf-8", errors="replace")  # metadata may hold halves of characters
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)
    return path
