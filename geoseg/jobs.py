"""Jobs: YAML files that are a typed object. Unknown keys are refused, each with the nearest right name.

A job file holds values only: it is read with the safe loader and can run nothing.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from geoseg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Strict(BaseModel):
    """A part of a job: frozen, and without room for keys that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Job = TypeVar("Job", bound=Strict)


def read_job(path: Path, kind: type[Job], settings: Iterable[str] = ()) -> Job:
    """The job of a YAML file, with `settings` such as `optimiser.steps=200` taking the place of what it says.

    Raises `OptionError`, naming file, key and remedy, if the file cannot be read or a key or value is not right.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _EachOnce)  # noqa: S506  # a safe loader
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: the job cannot be read: {getattr(error, 'strerror', None) or error}"
        raise OptionError(msg) from error
    except yaml.YAMLError as error:
        msg = f"{path}: not a YAML file: {' '.join(str(error).split())}"
        raise OptionError(msg) from error
    if not isinstance(values, dict):
        msg = f"{path}: a job is a table of keys and values, this is {type(values).__name__}"
        raise OptionError(msg)
    told: dict[str, str] = {}
    for setting in settings:
        key = setting.partition("=")[0]
        if told.setdefault(key, setting) != setting:
            msg = f"--set {setting}: {told[key]} is given, too; leave one of them out"
            raise OptionError(msg)
        _set(values, setting)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        msg = f"{path}: " + "; ".join(_sentences(error.errors(), kind))
        raise OptionError(msg) from error


class _EachOnce(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """YAML's safe loader, which has the last one in silence where a key comes twice; this one refuses it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """The table. Raises `yaml.YAMLError` for a key that comes twice."""
        names = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if names.count(key.value) > 1:
                what = f"{key.value} comes twice; leave one of them out;"
                raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
        table: dict[Any, Any] = super().construct_mapping(node, deep)
        return table


def _set(values: dict[str, Any], setting: str) -> None:
    """Put one `key.key=value` into a table of tables and lists (`data.0.weight=2`); the value is read as YAML."""
    keys, found, text = setting.partition("=")
    if not found:
        msg = f"--set {setting}: write key=value, such as --set seed=1"
        raise OptionError(msg)
    *outer, last = keys.split(".")
    place: Any = values
    try:
        for key in outer:
            place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
        place[int(last) if isinstance(place, list) else last] = yaml.load(text, _EachOnce)  # noqa: S506
    except (AttributeError, IndexError, TypeError, ValueError, yaml.YAMLError) as error:
        msg = f"--set {setting}: there is no such place in the job, or the value is no YAML"
        raise OptionError(msg) from error


def _sentences(details: Iterable[Any], kind: type[BaseModel]) -> Iterator[str]:
    """Pydantic's complaints, as a person would say them: one for each place of a job.

    Where a value may be one of several kinds, pydantic has a complaint for each. A list whose items are not right it
    calls too short as well; and where keys contradict each other, it has the whole job for the value.
    """
    told: dict[str, list[Any]] = {}
    for detail in details:
        told.setdefault(_place(detail, kind), []).append(detail)
    for place, (detail, *others) in told.items():
        if detail["type"] == "too_short" and any(other.startswith(f"{place}.") for other in told):
            continue
        if detail["type"] == "extra_forbidden":
            known = [key for key in _keys_at(kind, detail["loc"][:-1]) if key != detail["loc"][-1]]
            near = difflib.get_close_matches(str(detail["loc"][-1]), known, 1)
            yield f"{place} is not a key of this job" + (f"; did you mean {near[0]}?" if near else "")
        elif detail["type"] == "missing":
            yield f"{place} is missing"
        else:
            first, *further = dict.fromkeys(_wanted(each) for each in (detail, *others))
            wanted = " or ".join((first, *(each.removeprefix("should be ") for each in further)))
            yield f"{place}: {wanted}, got {detail['input']!r}" if place else wanted


def _place(detail: Any, kind: type[BaseModel]) -> str:
    """Where in a job a complaint is about; pydantic names the kind of value that it has tried, too."""
    place: list[int | str] = []
    for part in detail["loc"]:
        if isinstance(part, int) or part in _keys_at(kind, tuple(place)):
            place.append(part)
    if detail["type"] in {"extra_forbidden", "missing"} and detail["loc"][-1] not in place[-1:]:
        place.append(detail["loc"][-1])
    return ".".join(map(str, place))


WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table of keys and values",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "model_type": "a table of keys and values",
    "string_type": "a text",
    "tuple_type": "a list",
}
"""What pydantic wants to have, by the name of its complaint, in the words of a job file."""


def _wanted(detail: Any) -> str:
    """What a value should be."""
    if detail["type"] in WANTED:
        return f"should be {WANTED[detail['type']]}"
    message: str = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:]


def _keys_at(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Keys of the models that may stand at a place of a job."""
    models = [kind]
    for part in place:
        if isinstance(part, str):
            fields = [m.model_fields[part] for m in models if part in m.model_fields]
            models = [model for field in fields for model in _models(field.annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
