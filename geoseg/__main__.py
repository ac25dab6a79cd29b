"""The process `geoseg`, or `python -m geoseg`: the command, how Ctrl-C stops it, and a quick end.

Nothing is imported here before Ctrl-C is taken care of.
"""

from __future__ import annotations

import _thread
import gc
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

AGAIN = 0.05
"""Seconds after which it is looked whether an interrupt that could do nothing can come again."""

_waits = threading.Event()
"""Whether an interrupt waits for that."""


def program() -> None:
    """The command `geoseg`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = _unraisable
    from geoseg.cli import main

    try:
        main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # there is nothing left to stop
        gc.freeze()  # at its end Python would look through a million objects of libraries, for a second and more


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, but in the middle of an import only when that is done, or when asked a second time.

    There, libraries take it for a module that cannot be had and go on without, or make another error of it.
    """
    if _imports(frame) and not _waits.is_set():
        _waits.set()
        threading.Thread(target=_later, args=(number,), daemon=True).start()
        return
    _waits.clear()
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a thread is in the middle of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(told: sys.UnraisableHookArgs) -> None:
    """What is raised where nobody can catch it, in a destructor for instance, is told; an interrupt comes again."""
    if issubclass(told.exc_type, KeyboardInterrupt):
        _waits.set()
        threading.Thread(target=_later, args=(signal.SIGINT,), daemon=True).start()
    else:
        sys.__unraisablehook__(told)


def _later(number: int) -> None:
    """Interrupt the main thread when it is not in the middle of an import any more."""
    main = threading.main_thread().ident or 0
    while True:
        time.sleep(AGAIN)
        if not _imports(sys._current_frames().get(main)):  # noqa: SLF001  # documented, though it looks private
            break
    if _waits.is_set():  # nobody was impatient meanwhile
        _waits.clear()
        _send(main, number)


def _send(thread: int, number: int) -> None:
    """As if the signal had come: it wakes the main thread up, where the system can do that."""
    send = getattr(signal, "pthread_kill", None)
    if send is None:
        _thread.interrupt_main(signal.Signals(number))
    else:
        send(thread, number)


if __name__ == "__main__":
    program()
