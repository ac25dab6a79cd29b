"""Ctrl-C, at moments when libraries would swallow it."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SWALLOWING = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except BaseException:
    came = True
else:
    came = False
"""

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import geoseg.__main__ as command
import geoseg.cli

def work():
    {work}
    time.sleep(60)

geoseg.cli.main = lambda: stopped(work)

def stopped(work):
    try:
        work()
    except KeyboardInterrupt:
        print("stopped")

command.program()
"""


def said(tmp_path: Path, work: str) -> tuple[str, str]:
    """What the process prints, as `geoseg` does that work, on both streams."""
    (tmp_path / "swallowing.py").write_text(SWALLOWING, encoding="utf-8")
    code = PROGRAM.format(work=work)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    return done.stdout, done.stderr


def test_an_interrupt_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    assert said(tmp_path, "import swallowing; print(swallowing.came)") == ("False\nstopped\n", "")


def test_who_is_impatient_need_not_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('goes on')\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(60)\n",
        encoding="utf-8",
    )
    assert said(tmp_path, "import slow") == ("goes on\nstopped\n", "")


def test_an_interrupt_comes_at_once_elsewhere(tmp_path: Path) -> None:
    work = "import os; os.kill(os.getpid(), signal.SIGINT); print('went on')"
    assert said(tmp_path, work) == ("stopped\n", "")


def test_an_interrupt_in_a_destructor_is_not_lost(tmp_path: Path) -> None:
    dies = "type('Dies', (), {'__del__': lambda _: (os.kill(os.getpid(), signal.SIGINT), sum(range(999)))})"
    assert said(tmp_path, f"import os; it = {dies}(); del it; print('went on')") == ("went on\nstopped\n", "")
    fails = "type('Fails', (), {'__del__': lambda _: 1 / 0})"
    printed, told = said(tmp_path, f"import os; it = {fails}(); del it; os.kill(os.getpid(), signal.SIGINT)")
    assert (printed, "ZeroDivisionError" in told) == ("stopped\n", True), "other errors are told as ever"


def test_what_a_shell_ignores_stays_ignored(tmp_path: Path) -> None:
    work = "import os; os.kill(os.getpid(), signal.SIGINT); print('went on'); raise KeyboardInterrupt"
    code = PROGRAM.replace("signal.default_int_handler", "signal.SIG_IGN").format(work=work)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.stderr) == ("went on\nstopped\n", "")
