"""Commands for archives: run, plan, status, verify, merge, catalog."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from geoseg.cli.terminal import (
    INCOMPLETE,
    Kept,
    ProgressBar,
    balance_line,
    say,
    start_log,
    write_report,
)
from geoseg.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_AROUND = (
    click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        help="Folder that the job's paths count from.  [default: the job file's own]",
    ),
    click.option("--out", type=click.Path(path_type=Path), help="Folder for results.  [default: as the job says]"),
    click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Put a value into the job; repeatable."),
    click.option(
        "--cluster",
        metavar="WHERE",
        help="local, processes:N, tcp://host:port, or a recipe (YAML).  [default: as the job says, or local]",
    ),
    click.option(
        "--max-memory", metavar="BYTES", help="What a worker may take, such as 2GB.  [default: as the job says]"
    ),
)


def _around_a_job(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say where a job's scenes, results and workers are."""
    for option in reversed(_AROUND):
        command = option(command)
    return command


@click.command(cls=Kept)
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path), required=False)
@_around_a_job
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
      BEFORE--AFTER/      what has changed, as `geoseg change` writes it, if it has the key `change`
      changes.json        STAC collection of these

    A scene that cannot be mapped is told and left out; the status is 3 then. The same command again does what is
    missing, and maps anew whatever scene's file, model or parameters have changed.

    \b
    Examples:
      geoseg run workflows/buildings.yaml
      geoseg run job.yaml --out maps --set 'scenes.files=["/data/*.tif"]' --set threshold=0.4
      geoseg run job.yaml --cluster processes:4
      geoseg run --schema > run.schema.json
    """
    start_log(verbose)
    if schema:
        from geoseg.archive import RunJob

        click.echo(json.dumps(RunJob.model_json_schema(), indent=2))
        return
    planned = _archive_plan(job, **how)
    bar = ProgressBar()
    with bar as observe, _Events(log_json, _Counted(bar, planned)) as tell:
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
    from geoseg.archive import lacks, run_archive

    if planned.job.cluster == "local" or not planned.unfinished:
        _warn(lacks(planned))
        return run_archive(planned, observe=observe, tell=tell)
    from geoseg.cluster import crew, recipe_of

    with crew(recipe_of(planned.job.cluster)) as workers:
        if workers.dashboard is not None:
            say(f"{workers.threads} workers; dashboard: {workers.dashboard}")
        _warn(lacks(planned, workers))
        return run_archive(planned, workers, observe=observe, tell=tell)


@click.command("plan", cls=Kept)
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path))
@_around_a_job
@click.option(
    "--time/--no-time", "measured", default=True, help="Measure a few forward passes, to tell how long it will take."
)
def plan_(job: Path, measured: bool, **how: Any) -> None:  # noqa: FBT001
    r"""Tell what a run would do and take, and every error that it would meet; reads headers only, writes nothing.

    The memory is an upper bound for each worker, or for each of its threads if it has several. The time is that of this
    machine now: an estimate. A scheduler that the job names is asked what its workers have; no cluster is started. The
    status is 3 if some scene cannot be mapped, or disk, memory or workers are too few.

    \b
    Examples:
      geoseg plan workflows/buildings.yaml --data /my/imagery
      geoseg plan job.yaml --cluster processes:4 --max-memory 2GB
    """
    start_log(0)
    planned = _archive_plan(job, **how)
    for fault in planned.faults:
        say(f"Cannot be mapped: {fault.name}: {fault.why}")
    for name, value in _plan_lines(planned, measured=measured):
        click.echo(f"{name:22} {value}")
    missing = _lacks(planned)
    _warn(missing)
    if planned.faults or missing:
        sys.exit(INCOMPLETE)


def _warn(missing: list[str]) -> None:
    for what in missing:
        say(f"Not enough: {what}")


def _lacks(planned: Any) -> list[str]:
    """What a run would run out of; workers are asked if they are there already."""
    from geoseg.archive import lacks
    from geoseg.cluster import crew, joins, recipe_of
    from geoseg.errors import ClusterError, OptionError

    if planned.job.cluster == "local" or not joins(recipe := recipe_of(planned.job.cluster)):
        return lacks(planned)
    try:
        with crew(recipe) as workers:
            return lacks(planned, workers)
    except (ClusterError, OptionError) as error:
        return [str(error)]


def _plan_lines(planned: Any, *, measured: bool) -> Iterator[tuple[str, str]]:
    from geoseg.archive import seconds_of, workers_of

    states = Counter(entry.state for entry in planned.entries)
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield "scenes", f"{len(planned.entries)} ({told or 'none'}), {len(planned.faults)} cannot be mapped"
    if planned.pairs:
        yield "comparisons", f"{len(planned.pairs)} ({sum(pair.complete for pair in planned.pairs)} complete)"
    wanted = planned.estimate()
    if not wanted.scenes:
        yield "to be mapped", "nothing"
        return
    yield "to be mapped", f"{wanted.scenes} scenes, {wanted.tiles} tiles, {wanted.pixels / 1e6:.1f} megapixels"
    yield "forward passes", f"{wanted.passes}, {wanted.repeated:.1%} of them again at borders of tiles"
    yield "memory per worker", f"at most {wanted.memory / 1e9:.1f} GB, with {planned.lanes} passes side by side"
    yield "disk", f"about {wanted.disk / 1e9:.2g} GB in {planned.out}"
    if measured and wanted.passes:
        workers = workers_of(planned.job.cluster)
        seconds = seconds_of(planned) * wanted.passes / (workers or planned.lanes)
        who = "this process" if workers is None else f"{workers} workers like this machine"
        yield "time", f"about {dt.timedelta(seconds=math.ceil(seconds))} by {who}"


@click.command(cls=Kept)
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
        if there := audit.compared(out):
            click.echo(f"{sum(there.values())} of {len(there)} comparisons are there.")
        if watch is None or all(scene.how in {"complete", "failed"} for scene in scenes):
            break
        time.sleep(watch)
    if report is not None:
        faulty = [{"name": name, "why": why} for name, why in faults]
        write_report(report, {"scenes": [_plain(scene) for scene in scenes], "faults": faulty})
    if faults or any(scene.how == "failed" for scene in scenes):
        sys.exit(INCOMPLETE)


def _plain(scene: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(scene), "workers": sorted(scene.workers)}


def _print_status(scenes: Any, faults: Any, rate: float | None) -> None:
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


@click.command(cls=Kept)
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

    with ProgressBar() as observe:
        proof = audit.verify(out, observe)
    for scene, what in proof.findings:
        say(f"Wrong: {scene}: {what}")
    again = f"; {proof.again} chunks were predicted more than once" if proof.again else ""
    click.echo(
        f"{proof.scenes} scenes, {proof.pixels} valid pixels, {proof.footprints} footprints looked at: "
        f"{len(proof.findings) or 'nothing'} wrong{again}."
    )
    if proof.findings:
        sys.exit(INCOMPLETE)


@click.command(cls=Kept)
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
    whole. What is left out is there by the share --overlap in better views, so a shed never stands for the house
    around it. What ground two footprints that stay still share, the better one has. Where scenes meet edge to edge, the
    pieces of a building are joined. The scenes' own results stay as they are.

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

    with ProgressBar(unit="steps", scale=1) as observe:
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


class _Counted:
    """Tells beside the bars how many tiles and scenes are done, and how many failed."""

    def __init__(self, bar: ProgressBar, planned: Any) -> None:
        scenes = len(planned.pending) + len(planned.faults)
        self._bar, self._totals = bar, {"tile": planned.estimate().tiles, "scene": scenes}
        self._counts: Counter[str] = Counter()

    def add(self, event: str) -> None:
        """Something has happened; what a cluster is not asked for, such as tiles in this process, is not counted."""
        self._counts[event] += 1
        what, _, how = event.partition(" ")
        if how in {"done", "failed"} and what in self._totals:
            failed = f", {self._counts[f'{what} failed']} failed" if self._counts[f"{what} failed"] else ""
            stage = {"tile": "predicting", "scene": "finishing"}[what]
            self._bar.note(stage, f"{self._counts[f'{what} done']} of {self._totals[what]} {what}s{failed}")


class _Events:
    """Appends events to a file as JSON, a line for each, with the time; or to nothing."""

    def __init__(self, path: Path | None, counted: _Counted) -> None:
        self._path, self._counted = path, counted
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
        self._counted.add(event["event"])
        if self._stream is not None:
            now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
            self._stream.write(json.dumps({"time": now, **event}) + "\n")


def _print_report(report: Any, planned: Any) -> None:
    """What was done, where it is, and what it took."""
    for failure in report.failures:
        say(f"Failed: {failure.scene}: {failure.why}")
    outside = f", {planned.outside} outside the area or dates" if planned.outside else ""
    failed = f"{len(report.failures)} failed{outside}"
    made = "comparison" if report.compared == 1 else "comparisons"
    compared = f"{report.compared} {made} made, {report.compared_before} were there already"
    if planned.model is None:
        click.echo(f"{compared}, {failed}.")
    else:
        mapped = f"{report.done} scenes mapped, {report.kept} were there already"
        click.echo(f"{mapped}, {failed}; {report.footprints} footprints in all.")
        if "object_pixels" in report.counts:
            click.echo(balance_line(report.counts))
        if planned.pairs:
            click.echo(f"{compared}.")
    if report.merged is not None:
        click.echo(_merged_line(report.merged))
    if report.pixels:
        _print_seconds(report)
    for name in ("collection.json", *(("changes.json",) if planned.pairs else ())):
        if (planned.out / name).exists():
            click.echo(str(planned.out / name))
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


@click.command(cls=Kept)
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

    Files of single bands that lie on each other and are named alike but for the band (T45_B02 ..., LC08_..._SR_B4, a
    .SAFE folder, red.tif and green.tif) are one scene with an asset for each.

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
    start_log(verbose)
    from geoseg.inventory import CatalogJob, write_catalog

    with ProgressBar(unit="scenes", scale=1) as observe:
        report = write_catalog(CatalogJob(folder, id=id_, **options), observe)
    for fault in report.faults:
        say(f"Left out: {fault.why}")
    for path in report.outside:
        say(f"Not followed: {path} leads out of {folder}")
    if report.virtual:
        say(f"{report.virtual} are descriptions of other files (VRT): a job takes them with scenes.allow: [vsi]")
    click.echo(
        f"{report.made} scenes catalogued, {report.kept} were there already, {report.removed} are gone, "
        f"{len(report.faults)} left out."
    )
    click.echo(str(report.path))
    if report.path.parent.resolve() not in (folder.resolve(), *folder.resolve().parents):
        say(f"The scenes lie elsewhere: a job takes them with scenes.roots: [{folder}]")
    if report.faults:
        sys.exit(INCOMPLETE)
