"""Loops over pixels that run as fast as C does: compiled by numba when they are first called.

numba is imported then, not before: who only asks for help, or reads a card, does not wait for it. The machine code is
kept beside the module, or in the user's cache folder where that cannot be written, and is made once for each machine.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_P = ParamSpec("_P")
_R = TypeVar("_R")

_compiling = threading.Lock()


class Compiled(Generic[_P, _R]):
    """A function of numbers and contiguous, writable arrays, whose loops hold up no other thread.

    It may not call another one. Every other dtype, or layout, of an argument is another compilation of about a second.
    """

    def __init__(self, function: Callable[_P, _R]) -> None:
        """Nothing is compiled yet. Use it as a decorator."""
        self.__doc__ = function.__doc__
        self._function = function
        self._fast: Callable[_P, _R] | None = None

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call it, compiled."""
        return (self._fast or self._compile())(*args, **kwargs)

    def _compile(self) -> Callable[_P, _R]:
        with _compiling:
            self._fast = fast = self._fast or _compiled(self._function)
        return fast


def _compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    import numba

    options: dict[str, Any] = {"nogil": True}
    try:
        fast: Callable[_P, _R] = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for it can be written: it is compiled for this process alone
        fast = numba.njit(**options)(function)
    return fast
