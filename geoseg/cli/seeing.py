"""Commands for looking at results: report and serve."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from geoseg.cli.terminal import Kept, ProgressBar, say, start_log


@click.command(cls=Kept)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, exists=True))
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
      maps/town           a scene's results: map, areas, sizes, confidence, times, coverage, origin
      maps/old--new       what has changed: both dates with a swipe, numbers, outlines
      maps                a run's --out: where its scenes are, totals, a table; and report.html in
                          the folder of each scene
      town.pmtiles        town.html beside it: the vector tiles on a web map, for any web host

    Beside it, in the folder of each scene, lies project.qgs: the same layers with their colours in QGIS.

    The scene is shown if it is still where it was, is a file here, and is no VRT; --source names it otherwise. A scene
    may be large: the page holds overviews. `geoseg serve` shows full resolution.

    \b
    Examples:
      geoseg report maps/town
      geoseg report maps/town --source town.tif --to town.html
      geoseg report maps --verify
      geoseg report maps/town/footprints.pmtiles
    """
    start_log(verbose)
    from geoseg.view.report import report as write

    with ProgressBar(unit="scenes", scale=1) as observe:
        path = write(out, observe=observe, **options)
    size = path.stat().st_size / 1e6
    say(f"{size:.1f} MB; open it in a browser:")
    click.echo(str(path))


@click.command(cls=Kept)
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder besides OUT whose scenes may be shown; repeatable.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8008, show_default=True, help="0: any that is free.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Where to listen; anything else lets other machines in."
)
@click.option("-v", "--verbose", count=True, help="A line for each request; -vv for everything.")
def serve(out: Path, data: tuple[Path, ...], port: int, host: str, verbose: int) -> None:
    r"""Show results in a browser, at full resolution: the pages of `geoseg report`, with tiles from the files.

    OUT is as in `geoseg report`; PMTiles in it are shown as web maps. Only this machine is answered, and only files of
    OUT are given out; links that lead out of it are not followed. Scenes are shown if they lie in OUT or in a folder
    of --data. Web maps and QGIS get tiles of Web Mercator by SCENE/web/labels/WebMercatorQuad/tilejson.json.

    \b
    Examples:
      geoseg serve maps/town --data imagery
      geoseg serve maps --data imagery --port 9000
      geoseg serve town.pmtiles

    Needs geoseg[serve].
    """
    start_log(verbose)
    from geoseg.view.serve import server_of

    with ProgressBar(unit="scenes", scale=1) as observe:
        found = server_of(out, data=data, host=host, port=port, observe=observe)
    with found as server:
        click.echo(f"http://{'localhost' if host == '127.0.0.1' else host}:{server.server_address[1]}/")
        say("Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
