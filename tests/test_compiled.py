"""Loops that are compiled when they are first called."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

from geoseg.compiled import Compiled


def test_the_compiler_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, geoseg.polygonise; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_a_folder_for_a_cache_it_is_compiled_all_the_same() -> None:
    names: dict[str, Any] = {}
    exec("def add(numbers):\n    total = 0\n    for n in numbers:\n        total += n\n    return total\n", names)  # noqa: S102  # a function without a file
    add = Compiled(names["add"])  # of no file, so there is no folder beside it
    assert [add(np.arange(5)) for _ in range(2)] == [10, 10]
