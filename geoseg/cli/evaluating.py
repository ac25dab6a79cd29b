"""Commands that tell how good something is: evaluate, a map; seams, a stride."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.terminal import (
    NEVER_FOLD,
    Kept,
    ProgressBar,
    start_log,
    write_report,
)
from geoseg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from geoseg.overlap import Seams


@click.command(cls=Kept)
@click.argument("prediction", metavar="PREDICTION")
@click.argument("reference", metavar="REFERENCE")
@click.option(
    "--aoi",
    type=click.Path(path_type=Path),
    help="Vector file, any CRS; only what is inside its polygons counts: where the reference is complete.",
)
@click.option(
    "--classes",
    metavar="NAMES",
    help="Names of the values 0, 1, 2 ..., or VALUE=NAME, with commas.  [default: as the files have it]",
)
@click.option(
    "--class-column",
    metavar="NAME",
    help="Column of the reference's polygons that tells their class, by name or value.  [default: all are of one]",
)
@click.option(
    "--objects",
    metavar="NAMES",
    help="Classes to compare as objects, with commas; none = no class.  [default: the only one; of several, buildings, "
    "cars and the like; of two vector files, all]",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="M",
    help="Metres by which a boundary may be off.  [default: 1, or two pixels where those are larger]",
)
@click.option(
    "--iou",
    type=float,
    default=0.5,
    show_default=True,
    metavar="T",
    help="An object is found by one whose intersection over union with it is above this.",
)
@click.option(
    "--resolution",
    type=float,
    metavar="M",
    help="Pixels on which two vector files are compared, in metres, or of pictures without a place.  [default: 0.5; 1]",
)
@click.option(
    "--confidence",
    type=click.Path(path_type=Path),
    help="Raster of the prediction's confidence: 0..250 = probability in steps of 1/250.  [default: the folder's]",
)
@click.option(
    "--task",
    type=click.Choice(["map", "change"]),
    default="map",
    show_default=True,
    help="change: both tell what has changed between two dates, whatever became of it.",
)
@click.option("--json", "report", type=click.Path(path_type=Path), help="File to write all numbers to.")
def evaluate(
    prediction: str,
    reference: str,
    *,
    classes: str | None,
    objects: str | None,
    report: Path | None,
    **options: Any,
) -> None:
    r"""Tell how well a map agrees with a reference: pixels, boundaries, objects, confidence.

    \b
    Each of PREDICTION and REFERENCE is, in any CRS and on any grid,
      a label raster (0 to 254 in any type, 255 = nodata), such as labels.tif;
      a vector file (GeoPackage, GeoJSON, GeoParquet ...), each of its polygons an object;
      a folder that `geoseg segment` wrote, OUT/<name of the scene>.

    Pixels are compared on the reference's grid, or on the prediction's if the reference has polygons only. What is
    nodata on either side is not compared. An object counts if a point inside it lies on ground that is compared.

    With --task change both tell what has changed: a folder or file of `geoseg change`, polygons (with a status that is
    a change, if they have one), or a raster of which everything but 0 is a change, such as a mask in PNG. What has no
    place on the ground lies on the other's; if neither has, --resolution tells the metres of a pixel.

    \b
    Examples:
      geoseg evaluate maps/town drawn.gpkg --aoi drawn_here.gpkg
      geoseg evaluate maps/town/footprints.geojson drawn.gpkg --iou 0.3
      geoseg evaluate landcover.tif truth.tif --classes water,forest,meadow --json scores.json
      geoseg evaluate landcover.tif truth.gpkg --class-column kind --tolerance 5
      geoseg evaluate maps/town-2019--town-2024 changed.png --task change
    """
    from geoseg.evaluation import compare

    options["classes"] = None if classes is None else class_values(classes)
    if objects is not None:
        options["objects"] = () if objects == "none" else tuple(objects.split(","))
    with ProgressBar() as observe:
        found = compare.evaluate(prediction, reference, observe=observe, **options)
    if report is not None:
        write_report(report, found.to_dict())
    _print_evaluation(found)


def class_values(text: str) -> dict[int, str]:
    """`a,b` or `0=a,3=b` as names by value."""
    names: dict[int, str] = {}
    for place, part in enumerate(text.split(",")):
        value, told, name = part.strip().partition("=")
        if told and not value.strip().isdecimal():
            msg = f"--classes {text}: {part.strip()!r} is not VALUE=NAME, such as 3=water"
            raise OptionError(msg)
        number, called = (int(value), name.strip()) if told else (place, value)
        if names.setdefault(number, called) != called:
            msg = f"--classes {text}: {number} is both {names[number]} and {called}; leave one of them out"
            raise OptionError(msg)
    return names


def _print_evaluation(found: Any) -> None:
    """Tables of what was found, the same for a terminal and for a file."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = NEVER_FOLD
    seen = found.coverage
    down, along = found.pixel_m
    click.echo(
        f"{seen.compared / seen.pixels:.1%} of {seen.pixels / 1e6:.1f} megapixels of {down:.3g} x {along:.3g} m were "
        f"compared.\nNodata: {seen.prediction_nodata} pixels of the prediction, {seen.reference_nodata} of the "
        f"reference; outside the area: {seen.outside_aoi}."
    )
    for table in _evaluation_tables(found):
        console.print()
        console.print(table)


def _evaluation_tables(found: Any) -> Iterator[Any]:
    pixels, ruler = found.pixels, found.ruler
    yield _numbers("pixels", ("iou", "dice", "precision", "recall", "predicted", "reference"), pixels.classes)
    yield (
        f"mean IoU {_number(pixels.mean_iou)}, frequency-weighted {_number(pixels.frequency_weighted_iou)}; "
        f"accuracy {_number(pixels.accuracy)}, balanced {_number(pixels.balanced_accuracy)}"
    )
    columns: tuple[str, ...]
    if found.boundaries:
        columns = ("iou", "f1", "precision", "recall", "assd_m", "hd95_m", "capped")
        yield _numbers(f"boundaries within {ruler.tolerance:.3g} m", columns, found.boundaries)
        yield f"Distances above {ruler.cap:.3g} m count as that, and are told to {ruler.resolution:.2g} m."
    if found.objects:
        columns = ("predicted", "reference", "matched", "precision", "recall", "f1", "count_error", "polis_m")
        yield _numbers(f"objects, IoU above {found.iou_threshold:g}", columns, found.objects)
        columns = ("ap50", "ap75", "ap", "panoptic_quality", "segmentation_quality", "recognition_quality")
        yield _numbers("", columns, found.objects)
    if found.calibration is not None:
        filled = [b for b in found.calibration.bins if b.pixels]
        yield _numbers("confidence", ("confidence", "accuracy", "pixels"), filled)
        yield f"expected calibration error {_number(found.calibration.expected_error)}"


def _numbers(title: str, columns: tuple[str, ...], rows: Any) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(
            column.removesuffix("_m").replace("_", " ") + (", m" if column.endswith("_m") else ""), justify="right"
        )
    for row in rows:
        table.add_row(row.name, *(_number(getattr(row, column)) for column in columns))
    return table


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3f}"


def _strides(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...]:
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise click.BadParameter(f"{text}: write whole numbers of pixels with commas, as 512,384,256")
    return tuple(int(part) for part in parts)


@click.command(cls=Kept)
@click.argument("scene", metavar="SCENE")
@click.argument("model", metavar="[MODEL]", default="buildings")
@click.option(
    "--strides",
    callback=_strides,
    metavar="PX,...",
    help="Strides to compare, in pixels of the model's input.  [default: from a patch to half of one in eighths, and "
    "the model's own]",
)
@click.option(
    "--aoi",
    type=click.Path(path_type=Path),
    help="Vector file, any CRS; only what is inside its polygons is looked at.",
)
@click.option(
    "--windows",
    type=int,
    default=4,
    show_default=True,
    metavar="N",
    help="Places to look at, two patches by two each, spread over the scene; more are surer and slower.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="File to write all numbers to.")
@click.option("-v", "--verbose", count=True, help="More to read; -vv for everything.")
def seams(scene: str, model: str, report: Path | None, verbose: int, **options: Any) -> None:
    r"""Measure what the overlap of patches is worth on a scene, and what it costs.

    The model sees a scene patch by patch, one every --stride pixels of `geoseg segment`. Where patches barely overlap,
    labels change at their borders; where they overlap much, the same ground is seen again and again. This compares
    strides with a dense lattice of patches, one every eighth of a patch, in a few windows of SCENE. MODEL is a product,
    such as `buildings`, for its default model; or the name of a model or path of its folder.

    \b
    The table tells for each stride:
      passes/Mpx     patches for each megapixel of the scene: nine tenths of the time
      time           the same against patches without overlap
      differ         labels that are other ones than the dense lattice's, anywhere
      near, far      the same beside borders of patches (8 pixels on either side), and the same
                     pixels where patches lie so that they are far from borders
      seam excess    near less far: what the borders do; with its 95 % interval
      of all         the same as a share of all pixels, near borders or not
      boundaries     of the lines between classes, how much is more than 2 pixels off: near
                     borders less far from them

    The cheapest stride with a seam excess under 0.1 % is told. Lengths are pixels of the model's input. What differs
    far from borders is no seam: near the model's limits a label depends on what else is seen.

    \b
    Examples:
      geoseg seams town.tif
      geoseg seams town.tif landcover-segformer --aoi district.gpkg
      geoseg seams town.tif buildings --strides 512,448,384 --windows 9 --json seams.json
    """
    start_log(verbose)
    from geoseg.overlap import measure_seams

    with ProgressBar(unit="patches", scale=1) as observe:
        found = measure_seams(scene, model, observe=observe, **options)
    if report is not None:
        write_report(report, found.to_dict())
    _print_seams(found)


def _print_seams(found: Seams) -> None:
    """The table, and what follows from it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = NEVER_FOLD
    (down, along), dense = found.patch_on_scene, found.reference_stride
    resampled = "" if {down, along} == {found.patch} else f", {down} x {along} of the scene's"
    click.echo(
        f"{found.model}: patches of {found.patch} x {found.patch} pixels{resampled}; {len(found.windows)} windows, "
        f"{found.pixels / 1e6:.1f} megapixels with data; against a patch every {dense} pixels.\n"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("stride", "passes/Mpx", "time", "differ", "near", "far", "seam excess", "of all", "boundaries"):
        table.add_column(column, justify="right")
    for each in found.strides:
        table.add_row(
            f"{each.stride}{'*' if each.stride == found.default_stride else ''}",
            f"{each.passes_per_megapixel:.2f}",
            f"{each.relative_time:.2f}",
            *(_percent(value) for value in (each.differ, each.near, each.far)),
            f"{_percent(each.excess)} ± {_percent(each.excess_error)}",
            _percent(each.excess_of_all),
            _percent(each.boundary_excess),
        )
    console.print(table)
    click.echo("\nPercentages, but for passes and time. * is the model's own stride.")
    best, limit = found.cheapest, f"a seam excess under {_percent(found.limit)} %"
    click.echo(f"None of these has {limit}." if best is None else f"The cheapest with {limit}: {best.stride}.")
    if found.uncertain:
        strides = ", ".join(str(each.stride) for each in found.uncertain)
        click.echo(f"Not certain, for the limit is in the interval of {strides}: look at more --windows or scenes.")


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}"
