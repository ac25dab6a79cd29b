"""What the site shows besides `docs/`: written when it is built, from where it is kept, so nothing is told twice.

How-tos are sections of README.md, decisions and laws of CONTRIBUTING.md, workflows the job files themselves, model
cards those of `catalogs/models`, commands what `--help` says, and the API what `geoseg.__all__` names.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[1]

HOW_TO = {
    "Map your own scene": "how-to/map-a-scene.md",
    "Map an archive": "how-to/map-an-archive.md",
    "Look at it": "how-to/look-at-it.md",
    "Polygons": "how-to/polygons.md",
    "What has changed": "how-to/what-has-changed.md",
    "Train on your own labels": "how-to/train.md",
    "How good is a map?": "how-to/how-good.md",
    "From Python": "how-to/from-python.md",
    "What it takes": "how-to/what-it-takes.md",
    "Models": "models/index.md",
}
"""Sections of README.md and the pages that they become."""

DECISIONS, LAWS = "decisions.md", "laws.md"

HOMES = {
    "README.md": "index.md",
    "README.md#models": "models/index.md",
    "CONTRIBUTING.md": DECISIONS,
    "CHANGELOG.md": "changelog.md",
}
"""Files that are pages under another name."""

LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """Path and Markdown of each page that is made."""
    readme, contributing = (sections(ROOT / name) for name in ("README.md", "CONTRIBUTING.md"))
    for title, path in HOW_TO.items():
        yield path, moved(f"# {title}\n{readme[title]}", "README.md", path)
    yield DECISIONS, moved(f"# Decisions\n{contributing['Decisions']}", "CONTRIBUTING.md", DECISIONS)
    yield LAWS, moved(f"# Laws\n{contributing['Laws']}", "CONTRIBUTING.md", LAWS)
    yield "changelog.md", moved((ROOT / "CHANGELOG.md").read_text("utf-8"), "CHANGELOG.md", "changelog.md")
    for card in sorted((ROOT / "catalogs" / "models").glob("*/README.md")):
        path = f"models/{card.parent.name}.md"
        yield path, moved(card.read_text("utf-8"), card.relative_to(ROOT).as_posix(), path) + facts(card.parent)
    for job in sorted((ROOT / "workflows").glob("*.yaml")):
        yield f"workflows/{job.stem}.md", workflow(job)
    yield "commands.md", commands()
    yield "api.md", api()


def sections(path: Path) -> dict[str, str]:
    """A file's parts by their headings of the second level."""
    parts = re.split(r"^## (.+)\n", path.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def moved(text: str, source: str, path: str) -> str:
    """Markdown of a file of the repository as it stands on another page: links lead to pages, or are told as paths."""
    return LINK.sub(lambda link: linked(link, source, path), text)


def linked(link: re.Match[str], source: str, path: str) -> str:
    """A link's target from another page."""
    target, _, anchor = link[1].partition("#")
    full = os.path.normpath(os.path.join(os.path.dirname(source), target)) if target else source  # noqa: PTH118, PTH120
    page = HOMES.get(f"{full}#{anchor}") or HOMES.get(full) or full.removeprefix("docs/")
    anchor = "" if f"{full}#{anchor}" in HOMES else anchor
    to = os.path.relpath(page, os.path.dirname(path) or ".")  # noqa: PTH120
    return f"]({to}{'#' * bool(anchor)}{anchor})"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of `docs/` that lead out of it lead to the pages that are made."""
    if page.file.generated_by:
        return markdown
    outside = re.compile(r"\]\((\.\./[^)\s]+)\)")
    return outside.sub(lambda link: linked(link, f"docs/{page.file.src_uri}", page.file.src_uri), markdown)


def facts(folder: Path) -> str:
    """What a model's item says of its weights."""
    item = json.loads((folder / "item.json").read_text("utf-8"))
    told, weights = item["properties"], item["assets"]["weights"]
    classes = told["mlm:output"][0]["result"], told["mlm:output"][0]["classification:classes"]
    rows = [
        ("Name", f"`{told['mlm:name']}`"),
        ("Classes", ", ".join(entry["name"] for entry in classes[1])),
        ("Weights", f"{weights['file:size'] / 1e6:.1f} MB, `{weights['file:checksum']}`"),
    ]
    table = "\n".join(f"| {name} | {text} |" for name, text in rows)
    return f"\n## From its STAC item\n\n| | |\n|---|---|\n{table}\n"


def workflow(path: Path) -> str:
    """A job file: what it says of itself, and all of it."""
    lines = path.read_text("utf-8").splitlines()
    count = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = [line.removeprefix("#") for line in lines[:count]]
    text = "\n".join(line if line.startswith("   ") else line.strip() for line in about)
    text = re.sub(r"^ {3}(?=\S)", "    ", text, flags=re.MULTILINE)
    body = "\n".join(lines[count:]).strip()
    return f'# {path.stem}\n\n{text}\n\n```yaml title="workflows/{path.name}"\n{body}\n```\n'


def commands() -> str:
    """What each command says of itself."""
    import click

    from geoseg.cli import cli

    found = ["# Commands\n"]
    context = click.Context(cli, info_name="geoseg")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None and not command.hidden:
            text = command.get_help(click.Context(command, info_name=name, parent=context, max_content_width=100))
            found.append(f"## geoseg {name}\n\n```text\n{text}\n```\n")
    return "\n".join(found)


def api() -> str:
    """The functions and classes that the package names."""
    import geoseg

    found = [f"# Python\n\n{(geoseg.__doc__ or '').strip()}\n"]
    found += [f"::: {geoseg._HOME[name]}.{name}\n" for name in geoseg.__all__]  # noqa: SLF001  where they are
    return "\n".join(found)
