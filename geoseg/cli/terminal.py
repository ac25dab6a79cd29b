"""What all commands share: words on the terminal, a progress bar, reports, and how help looks."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from geoseg.errors import OptionError, OutputError

if TYPE_CHECKING:
    from pathlib import Path

NEVER_FOLD = 1000  # columns of a table that goes into a file or a pipe
INCOMPLETE = 3  # the status of a run of which something failed
INTERRUPTED = 130  # what a shell expects of a command stopped with Ctrl-C


def say(text: str) -> None:
    """Tell people something, on a line of its own, beside what goes into a pipe."""
    click.echo(text, err=True)


class Kept(click.Command):
    r"""A command that keeps what it is given: each value of its options, and lines of its help where `\b` says so.

    Of an option that takes one value click has the last one in silence. `\b` is two characters in a raw docstring,
    click wants one.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options. Raises `UsageError` where one that takes one value is given two."""
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        for option in given:
            one = isinstance(option, click.Option) and not (option.multiple or option.is_flag or option.count)
            if one and given.count(option) > 1:
                several = "," in (option.metavar or "")
                what = f"write all of it in one, as {option.metavar}" if several else "leave one of them out"
                msg = f"{option.opts[0]} is given {given.count(option)} times, and takes one value; {what}"
                raise click.UsageError(msg, ctx)
        return super().parse_args(ctx, args)

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


def write_report(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is there as a whole or not at all. Raises `OutputError` if the disk refuses."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror}; choose another place with --json"
        raise OutputError(msg) from error


def need(extra: str, *modules: str) -> None:
    """Raises `OptionError` if what an extra brings is not there."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        msg = f"this command needs {', '.join(missing)}: pip install 'geoseg[{extra}]'"
        raise OptionError(msg)


def start_log(verbose: int) -> None:
    """Log to the terminal: warnings, or with `verbose` 1 and 2 more."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("geoseg").setLevel(level)


class ProgressBar:
    """A progress bar with what is done per second and time left; nothing where nobody watches."""

    def __init__(self, unit: str = "Mpx", scale: float = 1e6) -> None:
        self._unit, self._scale = unit, scale
        self._notes: dict[str, str] = {}

    def note(self, stage: str, text: str) -> None:
        """Say something beside a stage's bar."""
        self._notes[stage] = text
        for task in self._bar.tasks:
            if task.description == stage:
                self._bar.update(task.id, note=text)

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
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar.start()
        tasks: dict[str, TaskID] = {}

        def observe(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = self._bar.add_task(
                    stage, total=total, completed=done, rate="", note=self._notes.get(stage, "")
                )
            task = tasks[stage]
            self._bar.update(task, completed=done)
            speed = self._bar.tasks[task].speed
            self._bar.update(task, rate=f"{speed / self._scale:.2f} {self._unit}/s" if speed and total > 1 else "")

        return observe

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def balance_line(counts: dict[str, float]) -> str:
    """How much of the raster is of objects, and how much of it the layer has, as an item's counts tell."""
    return (
        f"Raster: {counts['object_pixels']} pixels of objects, {counts['object_area_m2']:.0f} m2; "
        f"layer: {counts['footprints']} footprints, {counts['footprint_area_m2']:.0f} m2."
    )
