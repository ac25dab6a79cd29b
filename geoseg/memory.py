"""What happens to memory that is free: whether glibc keeps it or gives it back, and how often Python looks for it."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def keep_freed_memory() -> None:
    """Ask glibc to keep large blocks that were freed instead of giving them back to the kernel after each layer.

    Otherwise up to half of a CPU's time goes into page faults. Threads share two pools, for what a pool of each of them
    would keep, others could not use. Does nothing with another C library.
    """
    mallopt = getattr(_c_library(), "mallopt", None)
    if mallopt is None:
        return
    never_mmap, never_trim, grow_by, pools = (-4, 0), (-1, 2**31 - 1), (-2, 64 << 20), (-8, 2)
    for option in (never_mmap, never_trim, grow_by, pools):
        mallopt(*option)


def give_back_freed_memory() -> None:
    """Give back to the kernel what `keep_freed_memory` has kept, where something else needs memory now."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Tidying:
    """Gives back memory that is free, now and then. It may be told from any thread.

    What the allocator keeps for the next tile, in ever other places, would become more and more otherwise.
    """

    def __init__(self, every: int) -> None:
        """`every`: pixels predicted. To predict 16 million takes a hundred times as long as giving back does."""
        self._every, self._pixels, self._lock = every, 0, threading.Lock()

    def after(self, pixels: int) -> None:
        """So many more pixels were predicted."""
        with self._lock:
            self._pixels += pixels
            due = self._pixels >= self._every
            if due:
                self._pixels = 0
        if due:
            give_back_freed_memory()


class _Pause:
    """How many are at it, in all threads, and whether the collector is to go on when the last one is done."""

    lock = threading.Lock()
    count = 0
    goes_on = False


@contextmanager
def no_collecting() -> Iterator[None]:
    """Keep Python's garbage collector from looking through a million new geometries again and again.

    That takes as long as making them, and finds nothing: none refers to another. Also to be used as a decorator.
    """
    with _Pause.lock:
        if not _Pause.count:
            _Pause.goes_on = gc.isenabled()
            gc.disable()
        _Pause.count += 1
    try:
        yield
    finally:
        with _Pause.lock:
            _Pause.count -= 1
            if not _Pause.count and _Pause.goes_on:
                gc.enable()


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
