"""A scheduler and workers as people start them, with the `dask` command over TCP: what benchmarks of clusters share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

PATIENCE = 120.0  # seconds that a scheduler may take to start


def peak_of(process: int) -> int:
    """Bytes of memory that a process has held at any time, as Linux counts them."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    kibibytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024


@dataclass
class Cluster:
    """A scheduler, and workers of one thread each; a context manager that ends them all."""

    folder: Path
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    address: str = ""

    def __enter__(self) -> Self:
        """Start the scheduler."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs."""
        self.kill(*self.workers, self.scheduler)

    def restart(self) -> None:
        """Start a scheduler, and end the one before with its workers."""
        self.kill(*self.workers, self.scheduler)
        self.workers.clear()
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        self.scheduler = self._start(["scheduler", "--port", "0", "--scheduler-file", str(file)])
        until = time.monotonic() + PATIENCE
        while not file.exists() or not file.read_text(encoding="utf-8").endswith("}"):
            if self.scheduler.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"dask scheduler does not start; see {self.folder / 'log.txt'}")
            time.sleep(0.1)
        self.address = json.loads(file.read_text(encoding="utf-8"))["address"]

    def add(self, core: int | None = None) -> subprocess.Popen[bytes]:
        """Start a worker, bound to a core of this machine if one is named."""
        options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--local-directory", str(self.folder)]
        worker = self._start(["worker", self.address, *options])
        if core is not None:
            os.sched_setaffinity(worker.pid, {core})  # its threads, none of which is there yet, are bound with it
        self.workers.append(worker)
        return worker

    def peak(self) -> int:
        """Bytes of memory that the hungriest of the workers has held at any time."""
        return max(peak_of(worker.pid) for worker in self.workers)

    def kill(self, *processes: subprocess.Popen[bytes] | None) -> None:
        """End processes at once, without a word to them."""
        for process in processes:
            if process is not None:
                process.kill()
                process.wait()

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        dask = Path(sys.executable).with_name("dask")
        line = [str(dask), *command, "--host", "127.0.0.1", "--no-dashboard"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(line, env=environment, stdout=log, stderr=log)
