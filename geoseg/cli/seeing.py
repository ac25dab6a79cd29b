"""Commands for looking at results: report and serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from geoseg.cli.terminal import Kept, ProgressBar, say, start_log


@click.command(cls=Kept)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="The page.  [default: OUT/report.html]")
@click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="SCENE",
    help="Where the scene is, if not where it was; of a change give it twice, BEFORE first.",
)
@click.option("--anew", is_flag=True, help="Many scenes: make pages again that are newer than their results.")
@click.option("--verify", is_flag=True, help="A run: prove it complete first, as `geoseg verify` does, and tell it.")
@click.option("-v", "--verbose", count=True, help="More to read; -vv for everything.")
def report(out: Path, verbose: int, **options: Any) -> None:
    r"""Write a page that shows results: one HTML file that needs neither server nor internet.

    \b
    OUT is one of
      maps/town           a scene's results: map, areas, sizes, confidence, times, coverage, provenance
      maps/old--new       what has changed: both dates with a swipe, numbers, outlines
      maps                a run's --out: where its scenes are, totals, a table; and report.html in
                          the folder of each scene

    The scene is shown if it is still where it was, is a file here, and is no VRT; --source names it otherwise. A scene
    may be large: the page holds overviews. `geoseg serve` shows full resolution.

    \b
    Examples:
      geoseg report maps/town
      geoseg report maps/town --source town.tif --to town.html
      geoseg report maps --verify
    """
    start_log(verbose)
    from geoseg.view.report import report as write

    with ProgressBar(unit="scenes", scale=1) as observe:
        path = write(out, observe=observe, **options)
    size = path.stat().st_size / 1e6
    say(f"{size:.1f} MB; open it in a browser:")
    click.echo(str(path))
