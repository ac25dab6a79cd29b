"""What happens to memory that was freed: whether glibc keeps it for the next layer, or gives it back to the kernel."""

from __future__ import annotations

import ctypes
import sys


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


def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
