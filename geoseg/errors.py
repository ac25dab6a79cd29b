"""Every error that geoseg raises on purpose.

    GeosegError
    ├── InputError           what the user gave cannot be used; the command exits with status 2
    │   ├── OptionError      an option or argument is out of range, or two contradict each other
    │   ├── SceneError       a scene cannot be read or is not one that can be mapped
    │   ├── ModelError       a model is unknown, damaged, or does not fit the scene
    │   ├── EvaluationError  a map and a reference cannot be compared
    │   └── OutputError      the results cannot be written where they were asked for
    ├── SampleError          a sample scene could not be fetched; status 1
    └── ClusterError         a cluster cannot be started, joined or asked any more; status 1

Each message is one sentence or two that names the file, the value and the remedy. Anything else that escapes is a
defect of geoseg: the command says so and exits with status 1.
"""

from __future__ import annotations


class GeosegError(Exception):
    """Base of all errors that geoseg raises on purpose."""


class InputError(GeosegError):
    """What the user gave cannot be used."""


class OptionError(InputError):
    """An option or argument is out of range, or two contradict each other."""


class SceneError(InputError):
    """A scene cannot be read, or is not one that can be mapped."""


class ModelError(InputError):
    """A model is unknown, damaged, or does not fit the scene."""


class EvaluationError(InputError):
    """A map and a reference cannot be read as such, or cannot be compared."""


class OutputError(InputError):
    """The results cannot be written where they were asked for."""


class SampleError(GeosegError):
    """A sample scene could not be fetched."""


class ClusterError(GeosegError):
    """A cluster cannot be started or joined, or does not answer any more."""


def reason_of(error: Exception) -> str:
    """What is told of an error that is not raised, for the rest of a night's work goes on without what failed."""
    return str(error) if isinstance(error, GeosegError) else f"a defect: {type(error).__name__}: {error}"
