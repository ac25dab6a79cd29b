"""Dates in names: of scenes whose files do not tell when they were taken."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

from geoseg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable

DATE_IN_NAME = (
    r"(?<!\d)(?P<year>(?:19|20)\d\d)(?P<dash>[-_.]?)(?P<month>0[1-9]|1[0-2])(?P=dash)(?P<day>0[1-9]|[12]\d|3[01])"
    r"(?:[T_ ]?(?P<hour>[01]\d|2[0-3])[-:_]?(?P<minute>[0-5]\d)[-:_]?(?P<second>[0-5]\d)(?!\d)|(?!\d))"
)
"""A date in a file's name, with or without a time of day: 2024-05-31, 20240531, 20240531T101112, 20240531_101112."""

DIRECTIVES = {
    "Y": r"(?P<year>\d{4})",
    "y": r"(?P<year>\d{2})",
    "m": r"(?P<month>\d{2})",
    "d": r"(?P<day>\d{2})",
    "j": r"(?P<yearday>\d{3})",
    "H": r"(?P<hour>\d{2})",
    "M": r"(?P<minute>\d{2})",
    "S": r"(?P<second>\d{2})",
    "%": "%",
}
"""What of strptime's may stand in a pattern."""

CENTURY_TURNS = 69
"""The last two-digit year of this century, as strptime has it."""


def date_reader(pattern: str | None) -> Callable[[str], dt.datetime | None]:
    """A function that finds the date in a name, in UTC; None where there is none.

    Args:
        pattern: With strptime's %Y %y %m %d %j %H %M %S, found anywhere in the name, or a regular expression with the
            groups year and, as far as known, month, day (or yearday), hour, minute, second. None: `DATE_IN_NAME`.

    Raises:
        OptionError: It is neither.

    >>> date_reader(None)("town_20240531T101112_v2").isoformat()
    '2024-05-31T10:11:12+00:00'
    >>> date_reader("%d.%m.%y")("town 31.05.24").date().isoformat()
    '2024-05-31'

    """
    text = DATE_IN_NAME if pattern is None else pattern
    try:
        found = re.compile(text if "(?P<" in text else _as_expression(text))
    except re.error as error:
        msg = f"--datetime-pattern {pattern}: is no regular expression: {error}"
        raise OptionError(msg) from error
    if "year" not in found.groupindex:
        msg = f"--datetime-pattern {pattern}: tells no year; write %Y%m%d or the like, or (?P<year>...)(?P<month>...)"
        raise OptionError(msg)
    return lambda name: next((when for m in found.finditer(name) if (when := _date_of(m.groupdict()))), None)


def _as_expression(pattern: str) -> str:
    """A pattern with strptime's directives as a regular expression; digits beside these are not part of a date."""
    parts = [part for part in re.split("(%.?)", pattern) if part]
    unknown = [part for part in parts if part.startswith("%") and part[1:] not in DIRECTIVES]
    if unknown:
        msg = f"--datetime-pattern {pattern}: {unknown[0]} is not understood; there are: %{' %'.join(DIRECTIVES)}"
        raise OptionError(msg)
    text = "".join(DIRECTIVES[part[1:]] if part.startswith("%") else re.escape(part) for part in parts)
    before = r"(?<!\d)" if pattern.startswith("%") else ""
    return before + text + (r"(?!\d)" if parts and parts[-1].startswith("%") else "")


def _date_of(groups: dict[str, str | None]) -> dt.datetime | None:
    """The date that groups of digits tell; None if there is no such day or time."""
    told = {key: value for key, value in groups.items() if value}
    try:
        year = int(told["year"])
        if len(told["year"]) == len("24"):
            year += 1900 if year >= CENTURY_TURNS else 2000
        hour, minute, second = (int(told.get(key, 0)) for key in ("hour", "minute", "second"))
        month, day = (int(told.get(key, 1)) for key in ("month", "day"))
        when = dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC)
        if "yearday" in told:
            when = when.replace(month=1, day=1) + dt.timedelta(days=int(told["yearday"]) - 1)
    except (ValueError, KeyError, OverflowError):
        return None
    return when if when.year == year else None
