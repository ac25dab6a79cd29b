"""`report`: a folder of results in, pages that need neither server nor internet out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from geoseg.errors import OptionError, OutputError
from geoseg.view.facts import Map, now, read_item, scene_below
from geoseg.view.pages import IN_ARCHIVE, Detail, Pair, change_page, scene_page
from geoseg.view.qgis import write_project
from geoseg.view.render import REPORT, UP, rendered, write_page
from geoseg.view.webmap import SUFFIX, write_web_map

if TYPE_CHECKING:
    from geoseg.export import Observer
    from geoseg.view.render import Page

Kind = Literal["scene", "change", "archive"]


def kind_of(folder: Path) -> Kind:
    """What a folder holds. Raises `OutputError` if that is no result."""
    if (folder / "item.json").exists():
        return "change" if "changes" in read_item(folder)["assets"] else "scene"
    if (folder / "run.json").exists() or any(folder.glob("*/item.json")):
        return "archive"
    msg = f"{folder}: holds no results; name a scene's folder, a change's, or the --out of a run"
    raise OutputError(msg)


def page_of(folder: Path, detail: Detail, sources: tuple[Path, ...] = ()) -> Page:
    """The page of a scene's folder or a change's. `sources`: where the scenes are, if the user says it.

    Raises `OptionError` for another number of sources than there are scenes.
    """
    kind = kind_of(folder)
    scenes = 2 if kind == "change" else 1
    if sources and len(sources) != scenes:
        msg = f"--source {sources[0]}: give it {'twice, BEFORE first,' if scenes > 1 else 'once'} for {folder}"
        raise OptionError(msg)
    if kind == "change":
        return change_page(Pair.of(folder, (sources[0], sources[1]) if sources else (None, None)), detail)
    mapped = Map.of(folder)
    return scene_page(mapped, scene_below(mapped, sources[0] if sources else None), detail)


def report(
    out: str | Path,
    *,
    to: str | Path | None = None,
    sources: tuple[str | Path, ...] = (),
    anew: bool = False,
    verify: bool = False,
    observe: Observer = lambda _stage, _done, _total: None,
) -> Path:
    """Write the page of a scene's folder, of a change's, or of a run's with a page for each of its scenes; its path.

    Of a PMTiles file X.pmtiles the page is X.html beside it, a web map for localhost or any host.

    In the folder of each scene and change `project.qgs` is written, too, for QGIS, unless the page goes elsewhere.

    `to`: where to; OUT/report.html. `sources`: the scene, or the one before and the one after, if they are not where
    the item says or are refused. `anew`: pages of scenes that are newer than their results are made again, too.
    `verify`: prove the run complete first (see `geoseg verify`), and tell what was found. Raises `OutputError` for a
    folder that holds no results, or if the disk refuses.
    """
    folder = Path(out)
    if folder.suffix == SUFFIX and not folder.is_dir():
        return write_web_map(folder, None if to is None else Path(to))
    target = folder / REPORT if to is None else Path(to)
    if kind_of(folder) != "archive":
        named = tuple(Path(each) for each in sources)
        written = write_page(target, rendered(page_of(folder, Detail(), named)))
        if to is None:
            write_project(folder, named)
        return written
    if sources:
        msg = f"--source {sources[0]}: is for one scene or change, and {folder} holds many; leave it out"
        raise OptionError(msg)
    if target.resolve().parent != folder.resolve():
        msg = f"--to {target}: the page of a run links to those of its scenes, so it lies in {folder}; leave it out"
        raise OptionError(msg)
    return _report_archive(folder, target, observe, anew=anew, verify=verify)


def _report_archive(folder: Path, target: Path, observe: Observer, *, anew: bool, verify: bool) -> Path:
    from geoseg.view.overview import archive_page, changes_in, read_archive

    proved = _proved(folder, observe) if verify else ()
    archive = read_archive(folder, observe)
    names = [entry.name for entry in archive.entries]
    pages = [each for each in changes_in(folder) if each.name not in names]
    todo = [each for each in (*(folder / name for name in names), *pages) if anew or _is_old(each)]
    written = write_page(target, rendered(archive_page(folder, archive, proved)))
    for count, each in enumerate(todo, 1):
        write_page(each / REPORT, rendered(replace(page_of(each, IN_ARCHIVE), above=UP)))
        write_project(each)
        observe("pages", count, len(todo))
    return written


def _is_old(folder: Path) -> bool:
    """Whether a folder's page is older than its results, or is not there."""
    page = folder / REPORT
    return not page.exists() or page.stat().st_mtime_ns < (folder / "item.json").stat().st_mtime_ns


def _proved(folder: Path, observe: Observer) -> tuple[str, ...]:
    """What `verify` finds, as sentences."""
    from geoseg.audit import verify

    proof = verify(folder, observe)
    wrong = [f"Wrong: {scene}: {what}." for scene, what in proof.findings]
    looked = (
        f"{proof.scenes:,} scenes, {proof.pixels:,} valid pixels and {proof.footprints:,} footprints were looked at"
    )
    return (f"Verified on {now():%Y-%m-%d %H:%M} UTC: {looked}, {len(wrong) or 'nothing'} wrong.", *wrong)
