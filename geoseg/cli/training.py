"""The command that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from geoseg.cli.terminal import (
    Kept,
    ProgressBar,
    need,
    start_log,
)


@click.command(cls=Kept)
@click.argument("job", metavar="JOB.yaml", type=click.Path(path_type=Path), required=False)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the paths of the job's data count from.  [default: the job file's own]",
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
    start_log(1 + int(how.pop("verbose")))
    need("train", "torchgeo", "lightning", "tensorboard")
    from geoseg.jobs import read_job
    from geoseg.memory import keep_freed_memory
    from geoseg.train.job import TrainJob

    if schema:
        click.echo(json.dumps(TrainJob.model_json_schema(), indent=2))
        return
    if job is None:
        raise click.UsageError("name a job file, such as workflows/finetune-buildings.yaml")
    keep_freed_memory()
    from geoseg.train.run import train as carry_out

    wanted = read_job(job, TrainJob, settings)
    with ProgressBar(unit="steps", scale=1) as observe:
        folder = carry_out(wanted, data or job.parent, out, observe=observe, **how)
    click.echo(str(folder))
