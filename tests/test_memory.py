"""The pause of Python's collector: over when the last one that asked for it is done."""

from __future__ import annotations

import gc
import threading

import pytest

from geoseg.memory import no_collecting


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
