"""Memory that is free is kept, and given back in time; the collector's pause is over when the last one is done."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import threading

import pytest

from geoseg.memory import Tidying, no_collecting


def test_the_collector_goes_on_when_the_last_one_is_done() -> None:
    assert gc.isenabled()
    entered, leave = threading.Event(), threading.Event()

    @no_collecting()
    def other() -> None:
        entered.set()
        leave.wait(10)

    thread = threading.Thread(target=other)
    with no_collecting():
        thread.start()
        assert entered.wait(10)
        assert not gc.isenabled()
    assert not gc.isenabled(), "the other one is still at it"
    leave.set()
    thread.join()
    assert gc.isenabled()


def fails() -> None:
    msg = "no"
    raise ValueError(msg)


def test_what_fails_lets_it_go_on_and_who_has_none_gets_none() -> None:
    with pytest.raises(ValueError, match="no"):
        no_collecting()(fails)()
    assert gc.isenabled()
    gc.disable()
    try:
        with no_collecting(), no_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


KEPT = """
import numpy as np, psutil
from geoseg.memory import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
resident = lambda: psutil.Process().memory_info().rss >> 20
blocks = [np.ones(10 << 20, np.uint8) for _ in range(20)]
end = np.ones(1 << 20, np.uint8)  # lies behind them, or so much would be given back by itself
full = resident()
del blocks
kept = resident()
give_back_freed_memory()
print(full - kept, kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc, which this system has not")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, timeout=100)
    lost, given_back = map(int, done.stdout.split())
    assert lost < 20
    assert given_back > 150


def test_freed_memory_is_given_back_each_so_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    monkeypatch.setattr("geoseg.memory.give_back_freed_memory", lambda: times.append(1))
    tidying = Tidying(100)
    for pixels in (60, 39, 1, 99, 500, 50, 50):
        tidying.after(pixels)
    assert len(times) == 3, "after 100, 599 and 100 more"
