"""Commands for vector files: made of label rasters, brought into other formats, looked through."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.evaluating import class_values
from geoseg.cli.terminal import INCOMPLETE, NEVER_FOLD, Kept, ProgressBar
from geoseg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

    from geoseg.centrelines import Centrelines
    from geoseg.polygons import Traced

_SUFFIXES = """\\b
    The suffix of OUT chooses the format:
      .geojson            GeoJSON (RFC 7946): longitude and latitude, 7 digits
      .geojsonl .ndjson   the same, a feature on each line
      .geojsons           the same as a text sequence (RFC 8142)
      .parquet            GeoParquet 1.1, in the file's own CRS, sorted so that a window is read fast
      .fgb                FlatGeobuf
      .gpkg               GeoPackage, with the classes' colours for QGIS
      .pmtiles            vector tiles in one file, for maps on the web
      .coco.json          COCO instances, in pixels"""


def _metres(name: str, text: str, unit: str = "M") -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, type=float, default=0.0, metavar=unit, help=text)


@click.command(cls=Kept)
@click.argument("labels", metavar="LABELS")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write; its suffix is its format.")
@click.option("--classes", metavar="VALUE=NAME,...", help="Names of values.  [default: as the raster tells]")
@click.option("--class", "only", multiple=True, metavar="NAME", help="Only this class; may be given more than once.")
@click.option(
    "--background",
    default="0",
    show_default=True,
    metavar="VALUE",
    help="The value that is no object; none = every value is one.",
)
@_metres("--separate", "Part objects of a class where they are narrower than this, between wider parts.")
@_metres("--fill-holes", "Fill holes below this area in which no object lies that is kept.", "M2")
@_metres("--min-area", "Drop objects below this area, by the raster.", "M2")
@_metres(
    "--smooth",
    "Smooth the pixels' staircase: each point of an outline is the mean of this length before and behind it; shared "
    "walls stay shared.",
)
@_metres("--simplify", "Leave out vertices where the outline moves by no more than this; shared walls stay shared.")
@click.option(
    "--regularise", is_flag=True, help="Buildings: straight walls and right angles, where that agrees with the raster."
)
@click.option("--lines", is_flag=True, help="Lines along the middle of each object instead: roads, rivers.")
@_metres("--spur", "With --lines: leave out ends, and lines on their own, that are shorter.")
@click.option("--dsm", metavar="RASTER", help="With --dtm: heights of the surface in metres, for `height_m`.")
@click.option("--dtm", metavar="RASTER", help="Heights of the bare ground, of the same datum; any grid and CRS.")
def vectorize(
    labels: str,
    *,
    out: Path,
    classes: str | None,
    only: tuple[str, ...],
    background: str,
    dsm: str | None,
    dtm: str | None,
    **shape: Any,
) -> None:
    r"""Turn a label raster into polygons: any raster of classes, ours or not.

    LABELS has one band of whole numbers from 0 to 254 in any type; 255 is nodata beside what the file calls nodata. It
    is a GeoTIFF or whatever GDAL reads, or a Zarr store. Names and colours come from category names, attribute table
    and colour table, or CF's flag_meanings.

    An object is what hangs together of one class by the pixels' sides. It is outlined exactly and counted first, so
    areas are those of the raster, however large it is; then it is shaped, in this order, lengths in metres and areas in
    square metres on the ground: separate, fill holes, drop, smooth, simplify, regularise. Classes that touch still do
    afterwards. `regularised` says which buildings are regular, by what the raster has of them; the others are smoothed
    and simplified. `height_m`, with --dsm and --dtm, is the median height inside. With --lines, ends that only point to
    a corner of the outline are left out, and the raster is held in memory as a whole.

    FORMATS

    \b
    Examples:
      geoseg vectorize maps/town/labels.tif --out town.gpkg --simplify 0.3 --min-area 4
      geoseg vectorize landcover.tif --out landcover.fgb --background none --smooth 10 --simplify 3
      geoseg vectorize mask.tif --out roofs.fgb --classes 1=roof --separate 2 --regularise
      geoseg vectorize landcover.tif --out water.parquet --class water
      geoseg vectorize landcover.tif --out rivers.gpkg --class water --lines --spur 50 --simplify 10
    """
    from geoseg.centrelines import Thinning, centrelines
    from geoseg.export import image_of
    from geoseg.heights import heights
    from geoseg.io.layers import About, format_of, write_layer
    from geoseg.io.vectors import check_place
    from geoseg.memory import keep_freed_memory
    from geoseg.polygons import Shaping, trace

    format_of(out)
    check_place(out)
    if (dsm is None) != (dtm is None):
        given, missing = (f"--dsm {dsm}", "--dtm") if dtm is None else (f"--dtm {dtm}", "--dsm")
        msg = "--dsm and --dtm go together: heights are those of the surface above the ground; "
        msg += f"add {missing}, or leave out {given}"
        raise OptionError(msg)
    keep_freed_memory()
    named = None if classes is None else _names(classes)
    lines, spur = shape.pop("lines"), shape.pop("spur")
    if lines:
        _refuse_outlines(out, shape, height=dsm)
        thinning = Thinning(spur, shape["simplify"])
        _write_lines(
            centrelines(labels, thinning, classes=named, background=_value(background), only=only), out, labels
        )
        return
    if spur:
        msg = f"--spur {spur:g}: is for --lines; add it, or leave this out"
        raise OptionError(msg)
    with ProgressBar() as observe:
        traced = trace(
            labels, Shaping(**shape), classes=named, background=_value(background), only=only, observe=observe
        )
    if dsm is not None and dtm is not None:
        traced.frame.insert(len(traced.frame.columns) - 2, "height_m", heights(traced.frame, dsm, dtm))
    colours = {c.name: c.colour for c in traced.legend.classes}
    found = {each.name: colours[each.name] for each in traced.counts}
    write_layer(traced.frame, out, About(out.name.split(".")[0], found, traced.geobox, image_of(Path(labels))))
    _print_counts(traced)
    click.echo(str(out))


def _refuse_outlines(out: Path, shape: dict[str, Any], height: str | None) -> None:
    """Raise `OptionError` for what lines have not."""
    other = [name for name, value in {**shape, "dsm": height}.items() if value and name != "simplify"]
    if other:
        msg = f"--{other[0].replace('_', '-')} and --lines: is for outlines; leave one of them out"
        raise OptionError(msg)
    if out.name.lower().endswith(".coco.json"):
        msg = f"{out}: COCO instances are no lines; choose another suffix"
        raise OptionError(msg)


def _write_lines(found: Centrelines, out: Path, labels: str) -> None:
    from geoseg.io.layers import About, write_layer

    told = found.frame.groupby("class")["length_m"].agg(["size", "sum"])
    colours = {c.name: c.colour for c in found.legend.classes if c.name in told.index}
    write_layer(found.frame, out, About(out.name.split(".")[0], colours, found.geobox, Path(labels).name))
    for name, count, metres in told.itertuples():
        click.echo(f"{name}: {count} lines, {metres:.0f} m")
    click.echo(str(out))


def _names(text: str) -> dict[int, str]:
    """`1=roof,2=road` by value; names alone would count from 0, which makes no objects."""
    if bare := [part.strip() for part in text.split(",") if "=" not in part]:
        msg = f"--classes {text}: {bare[0]!r} is not VALUE=NAME, such as 1=roof"
        raise OptionError(msg)
    return class_values(text)


def _value(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdecimal() or int(text) > 254:  # noqa: PLR2004  # 255 is nodata
        msg = f"--background {text}: is a value from 0 to 254, or none"
        raise OptionError(msg)
    return int(text)


def _print_counts(traced: Traced) -> None:
    """What became of the raster's pixels, class by class: a table, the same for a terminal and for a file."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = NEVER_FOLD
    table = Table(box=None, pad_edge=False)
    for column in ("class", "pixels", "m2", "objects", "dropped", "holes filled", "polygons", "m2 of polygons"):
        table.add_column(column, justify="left" if column == "class" else "right", overflow="fold")
    for each in traced.counts:
        numbers = (each.pixels, round(each.raster_area), each.objects, each.dropped, each.holes_filled, each.kept)
        table.add_row(each.name, *map(str, numbers), str(round(each.area)))
    console.print(table)
    pixels, objects = (sum(getattr(each, what) for each in traced.counts) for what in ("pixels", "objects"))
    click.echo(
        f"Each of {pixels} pixels is in one of {objects} exact outlines; of the others {traced.others} make no object, "
        f"and {traced.nodata} are nodata (255, or what the file calls so)."
    )


@click.command(cls=Kept)
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--image", metavar="RASTER", help="For COCO: the raster in whose pixels it is told, by its name.")
def convert(source: Path, out: Path, image: str | None) -> None:
    r"""Bring a vector file into another format: the suffixes say from which and to which.

    IN is any of them but PMTiles, or what else GDAL reads. Nothing is lost or made up: polygons and their attributes
    stay as they are, but for what a format wants (RFC 7946: longitude and latitude; PMTiles: tiles; COCO: classes and
    scores alone).

    FORMATS

    \b
    Examples:
      geoseg convert maps/town/footprints.parquet town.gpkg
      geoseg convert town.geojson town.pmtiles
      geoseg convert roofs.gpkg roofs.coco.json --image town.tif
    """
    from geoseg.io.hrefs import split_labels
    from geoseg.io.layers import About, format_of, read_layer, write_layer
    from geoseg.io.scenes import open_scene
    from geoseg.io.vectors import check_place

    format_of(out)
    check_place(out)
    frame = read_layer(source)
    about = About(out.name.split(".")[0])
    if image is not None:
        about = About(about.name, geobox=open_scene(image).geobox, image=Path(split_labels(image)[0]).name)
    write_layer(frame, out, about)
    click.echo(f"{len(frame)} features\n{out}")


@click.command(cls=Kept)
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Layer of points to write, one for each flaw.")
@click.option(
    "--overlap",
    type=float,
    default=0.05,
    show_default=True,
    metavar="M2",
    help="Square metres that two polygons may share.",
)
@click.option(
    "--sliver", type=float, default=0.1, show_default=True, metavar="M", help="Least width of a polygon, on average."
)
def check(source: Path, out: Path | None, *, overlap: float, sliver: float) -> None:
    r"""Look for what is wrong with a vector file, ours or not; the status is 3 if there is anything.

    It is read as `geoseg convert` reads it, and looked through for

    KINDS

    \b
    Examples:
      geoseg check maps/town/footprints.geojson
      geoseg check delivered.gpkg --out flaws.gpkg --overlap 0.5
    """
    from geoseg.flaws import KINDS, Limits
    from geoseg.flaws import check as look
    from geoseg.io.layers import format_of, write_layer
    from geoseg.io.vectors import check_place

    if out is not None:
        format_of(out)
        check_place(out)
    found = look(source, Limits(overlap, sliver))
    for kind, count in found.counts.items():
        if count:
            click.echo(f"{count:8} {kind:16} {KINDS[kind]}")
    total = len(found.places)
    click.echo(f"{found.features} features, {total or 'no'} flaw{'' if total == 1 else 's'}.")
    if out is not None:
        write_layer(found.places, out)
        click.echo(str(out))
    if total:
        sys.exit(INCOMPLETE)


_KINDS = """\\b
      empty           without a geometry
      invalid         rings that cross themselves or each other
      touches itself  an outline that passes one point twice
      duplicate       the same polygon again
      overlap         pairs of polygons that share ground
      sliver          polygons narrower than --sliver on average
      area off        area_m2 is not the polygon's area on the ground
      axis order      coordinates that would be right the other way round, or are nowhere
      crs member      GeoJSON with a CRS of its own, which RFC 7946 does not know"""

check.help = (check.help or "").replace("KINDS", _KINDS.replace("\\b", r"\b"))
for each in (vectorize, convert):
    each.help = (each.help or "").replace("FORMATS", _SUFFIXES.replace("\\b", r"\b"))
