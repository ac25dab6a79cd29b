"""The commands that tell what has changed between two scenes, and over a series of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.scenes import mapping_options
from geoseg.cli.terminal import NEVER_FOLD, Kept, ProgressBar, say, start_log

if TYPE_CHECKING:
    from collections.abc import Iterator


class _NameOrNumber(click.Choice[str]):
    """One of some names, or a number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click wants it."""
        try:
            return float(value)
        except ValueError:
            return super().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002  # as click has it
        """What may stand there."""
        return f"[{'|'.join(self.choices)}|NUMBER]"


@click.command(cls=Kept)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.argument("product", metavar="[PRODUCT]", required=False)
@click.option(
    "--tolerance",
    type=float,
    metavar="M",
    help="Metres by which outlines and borders may be off without being a change.  [default: 1.5, or three pixels "
    "where those are larger]",
)
@click.option(
    "--align", is_flag=True, help="Move BEFORE by the shift estimated between the images.  [default: only tell it]"
)
@click.option(
    "--match",
    is_flag=True,
    help="Bring BEFORE to the brightness and contrast of AFTER, band by band, before it is mapped.",
)
@click.option(
    "--min-confidence",
    type=float,
    default=0.5,
    show_default=True,
    metavar="P",
    help="Objects: below this confidence, what is new or demolished is told as uncertain.",
)
@click.option("--unchanged", is_flag=True, help="Objects: write those that did not change, too.")
@click.option(
    "--zones",
    type=click.Path(path_type=Path),
    help="Objects: vector file, any CRS; a summary for each of its polygons.",
)
@click.option(
    "--cut",
    type=_NameOrNumber(["triangle", "otsu", "kittler"]),
    default="otsu",
    show_default=True,
    help="spectral: how the threshold is found above which a pixel has changed, or what it is.",
)
@click.option(
    "--index",
    type=click.Choice(["ndvi", "ndbi", "mndwi"]),
    help="spectral: look at the difference of this index.  [default: at the vectors of all bands]",
)
@click.option("--mad", is_flag=True, help="spectral: compare canonical variates of the bands (MAD), not the bands.")
@click.option(
    "--around",
    type=float,
    default=0.0,
    show_default=True,
    metavar="METRES",
    help="spectral: a pixel's magnitude is the mean of all so far to each side; 3 pixels or so tell building sites.",
)
@click.option("--any-order", is_flag=True, help="Let BEFORE be the later one.")
@mapping_options
def change(before: str, after: str, product: str | None, verbose: int, **options: Any) -> None:
    r"""Tell what has changed between two scenes of one place: new and demolished buildings, or what land has become.

    Each scene is mapped as `geoseg segment` does it, into OUT/<its name>/; maps that are there are used. Then they are
    compared on AFTER's grid. What one of them does not see is not compared, and never gone.

    \b
    Writes into OUT/<before>--<after>/:
      changes.geojson     objects (PRODUCT buildings): new, demolished, enlarged, reduced, reshaped,
                          split, merged, regrouped; uncertain; not_compared
                          classes (PRODUCT landcover): a polygon for each place with another class
      changes.parquet     the same as GeoParquet, in AFTER's CRS
      changes.tif         objects: 1 = is one now, 2 = was one; 0 = unchanged, 255 = not compared
      transitions.tif     classes: what each pixel was and is now; 0 = unchanged, 255 = not compared
      transitions.csv     classes: hectares from each class to each other
      zones.geojson       objects: numbers for each polygon of --zones
      summary.json        numbers of all of it, and the shift between the images
      item.json           STAC item: how, from what and when it was made

    A --model that takes two scenes sees both at once and needs no PRODUCT. It maps neither, and writes into
    OUT/<before>--<after>--<model>/ changes.tif (0 = unchanged, 1 = changed, 255 = not compared), confidence.tif,
    changes.geojson, changes.parquet and item.json.

    PRODUCT spectral needs no model: bands that both scenes have are compared, and changes.tif says what differs by more
    than a threshold, magnitude.tif by how much. With --index it is the difference of an index, difference.tif, and
    changes.tif has 1 where it has risen, 2 where it has fallen. With --mad what is common to both dates is taken off
    first (multivariate alteration detection), which is better on satellite images of other light and season.

    The shift between the images is told, and corrected with --align. Whatever is within --tolerance of where it was is
    no change. A run that was stopped goes on where it was; another --tolerance compares the same maps again.
    --overwrite maps both scenes again.

    \b
    Examples:
      geoseg change town-2019.tif town-2024.tif buildings --out maps
      geoseg change town-2019.tif town-2024.tif buildings --out maps --align --zones wards.gpkg
      geoseg change town-2019.tif town-2024.tif landcover --out maps --tolerance 3 --min-area 50
      geoseg change town-2019.tif town-2024.tif --model models/change-buildings --out maps
      geoseg change S2-2016 S2-2018 spectral --out maps --mask clear.tif
      geoseg change S2-2016 S2-2018 spectral --out maps --index ndvi --cut 0.2
    """
    start_log(verbose)
    from geoseg.catalog import find_model
    from geoseg.changes.pair import Change, plan_of, run_change
    from geoseg.changes.planned import job_of

    if product is None:
        if options.get("model") is None:
            raise click.UsageError("name a PRODUCT, such as buildings, or a --model that takes two scenes")
        product = find_model(None, options["model"]).product
    planned = plan_of(job_of(before, after, product, **options))
    if planned.complete:
        click.echo(f"Nothing left to do: {planned.folder} holds the changes (--overwrite maps both scenes again).")
        return
    with ProgressBar() as observe:
        found = run_change(planned, observe)
    if isinstance(found, Change):
        _print_change(found)
    elif (shift := found.item["properties"]["geoseg:parameters"].get("shift")) is not None:
        _print_shift(shift, math.inf)
    _print_files(found)


def _print_files(found: Any) -> None:
    for asset in found.item["assets"].values():
        click.echo(str(found.folder / Path(asset["href"]).name))
    click.echo(str(found.folder / "item.json"))


@click.command(cls=Kept)
@click.argument("maps", metavar="MAP...", nargs=-1, required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for results.")
@click.option(
    "--date",
    "dates",
    multiple=True,
    type=click.DateTime(["%Y-%m-%d", "%Y"]),
    help="Of each map, in their order; repeatable.  [default: as the folders or rasters say, or their names]",
)
@click.option(
    "--stay",
    type=float,
    default=0.9,
    show_default=True,
    metavar="P",
    help="How probable it is that a pixel keeps its class from one date to the next.",
)
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    metavar="P",
    help="Of the labels of rasters that come without a confidence.",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="M",
    help="Metres by which outlines and borders may be off.  [default: 1.5, or three pixels where those are larger]",
)
@click.option(
    "--min-area",
    type=float,
    default=4.0,
    show_default=True,
    metavar="M2",
    help="Drop places below so many square metres.",
)
def series(maps: tuple[str, ...], dates: tuple[Any, ...], **options: Any) -> None:
    r"""Tell what has changed over several dates, and when: of maps of one place, in the order of their dates.

    Each MAP is a folder that `geoseg segment`, `change` or `run` wrote, or a label raster (255 = nodata). All
    are compared on the last one's grid. The history of each pixel is smoothed: what was one class at most dates, and
    another one at a single doubtful date, was that class all along.

    \b
    Writes into OUT:
      changes.geojson     a polygon for each place of one transition, with last_seen and first_seen
      changes.parquet     the same as GeoParquet
      since.tif           since which date each pixel has its present class
      objects.geojson     of folders: each object once, with one id, first_seen and last_seen
      objects.parquet     the same as GeoParquet
      summary.json        numbers of all of it
      item.json           STAC item: from which maps it was made; it comes last

    \b
    Examples:
      geoseg series maps/town-2015 maps/town-2019 maps/town-2024 --out maps/town-series
      geoseg series land-09.tif land-14.tif --date 2009 --date 2014 --out history
    """
    import datetime as dt

    from geoseg.changes.by_series import SeriesJob, open_series, run_series

    when = tuple(date.replace(tzinfo=dt.UTC) for date in dates)
    opened = open_series(SeriesJob(maps, dates=when, **options))
    with ProgressBar() as observe:
        folder = run_series(opened, observe)
    _print_series(folder)


def _print_series(folder: Path) -> None:
    import json

    from rich.console import Console

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = NEVER_FOLD
    table = _table("last seen in", "first seen in", "what has become of it", "hectares")
    for row in summary["hectares"]:
        table.add_row(row["last_seen_in"], row["first_seen_in"], row["status"], f"{row['hectares']:.4f}")
    console.print(table)
    if "objects" in summary:
        click.echo("Objects: " + ", ".join(f"{count} {status}" for status, count in summary["objects"].items()) + ".")
    for path in sorted(folder.glob("*.*")):
        if not path.name.startswith(".") and path.suffix != ".xml":
            click.echo(str(path))


def _print_change(found: Any) -> None:
    """The shift, and a table of what has changed."""
    from rich.console import Console

    summary = found.summary
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = NEVER_FOLD
    _print_shift(summary["shift"], summary["tolerance_m"])
    if summary["product"] == "spectral":
        console.print(_spectral_table(summary))
    else:
        console.print(_status_table(summary) if "statuses" in summary else _class_table(summary))


def _print_shift(shift: Any, tolerance: float) -> None:
    agreed = f"{shift['agreeing']} of {shift['blocks']} blocks agree"
    if not shift["known"]:
        say(f"How the images lie beside each other is not known: {agreed}.")
        return
    rows, cols = shift["pixels"]
    told = f"{shift['length_m']:.2f} m ({rows:+.2f} rows, {cols:+.2f} columns; {agreed})"
    if shift["applied"]:
        click.echo(f"BEFORE was moved by {told}.")
        return
    click.echo(f"BEFORE lies {told} from AFTER; nothing was moved.")
    if shift["length_m"] > tolerance:
        say(f"That is more than the tolerance of {tolerance:g} m: use --align, or expect changes that are none.")


def _spectral_table(summary: Any) -> Any:
    index, threshold, compared = summary.get("index"), summary["threshold"], summary["compared_hectares"]
    if index is None:
        title = f"magnitude of change in {', '.join(summary['bands'])}"
        rows = {f"above {threshold:.1f}: changed": summary["changed_hectares"]}
    else:
        title = f"difference of {index}"
        rows = {f"{how} by more than {threshold:.2f}": summary[f"{how}_hectares"] for how in ("risen", "fallen")}
    table = _table(title, "hectares")
    for what, hectares in (rows | {"below: unchanged": compared - sum(rows.values())}).items():
        table.add_row(what, f"{hectares:.4f}")
    return table


def _status_table(summary: Any) -> Any:
    table = _table("status", "count", "before, m2", "after, m2", "difference, m2")
    for name, row in summary["statuses"].items():
        areas = (row[f"{what}_m2"] for what in ("area_before", "area_after", "difference"))
        table.add_row(name.replace("_", " "), str(row["count"]), *(f"{area:.2f}" for area in areas))
    return table


def _class_table(summary: Any) -> Any:
    table = _table("what has become of it", "hectares")
    for what, hectares in _largest_first(summary):
        table.add_row(what, f"{hectares:.4f}")
    return table


def _largest_first(summary: Any) -> Iterator[tuple[str, float]]:
    """Transitions, and what is none."""
    names, matrix = summary["classes"], summary["hectares"]
    every = [(f"{old} to {new}", matrix[i][j]) for i, old in enumerate(names) for j, new in enumerate(names) if i != j]
    yield from sorted((move for move in every if move[1] > 0), key=lambda move: -move[1])
    yield "another class, within the tolerance", sum(map(sum, summary["within_tolerance_hectares"]))
    yield "the same class", sum(matrix[i][i] for i in range(len(names)))


def _table(first: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table
