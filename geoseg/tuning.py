"""Which backend does a model's forward passes where nobody says: the one that is fastest here.

As a rule that is `USUAL`, on a CPU where it is installed, and torch otherwise, or where `USUAL` cannot do the network.
A long run is preceded by a few passes of real patches by this and each other backend that is installed, in turn, on all
lanes at the same time as the run will have them. Measuring and taking over networks for it never take more than `SHARE`
of what the run would take otherwise; what cannot be tried within that is left for a longer run. What came of it is kept
for this machine, model and batch, and any later run takes it from there, however short.

Nothing else is measured. On a CPU a pass of one patch on one core is the best there is for each backend, so lanes are
as many as cores, and batches of one (docs/speed.md).
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from geoseg.cache import cache_folder, keep, kept
from geoseg.errors import ModelError
from geoseg.models.backends import BACKENDS, TORCH, USUAL, installed_backends, is_coarse
from geoseg.models.weights import load_predict
from geoseg.predict import Lanes, OutOfMemory
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from geoseg.catalog import ModelSpec
    from geoseg.models.weights import NetworkPredict
    from geoseg.raster import Source
    from geoseg.tiling import Tiling

log = logging.getLogger("geoseg")

LONG = 300.0
"""Seconds from which on a run is long: in a shorter one, a `SHARE` is too little to try anything."""

SHARE = 0.03
"""Of a run, for finding out."""

SLOWEST = 1.0
"""Seconds that a pass may well take, for each megapixel of the network's input: a run that is short even so is given no
look at the clock."""

OPENING, CONVERTING = 1.5, 15.0
"""Seconds for a backend to be ready: with a network that was taken over before, and with a new one."""

ROUNDS = 5
"""Passes of each lane by each backend."""


@dataclass(frozen=True)
class Work:
    """What is to be predicted, and how."""

    model: ModelSpec
    device: torch.device
    batch: int
    lanes: int
    """Passes side by side."""
    source: Source
    tiling: Tiling
    patches: int
    """All that the run will see, of this scene and others."""


def fastest(work: Work, among: Collection[str] | None = None) -> tuple[str, NetworkPredict | None]:
    """A backend's name, and the model by it if it was loaded for that.

    `among`: those that everybody has who is to work; None: those that are installed here. Raises `ModelError` as
    `load_predict` does.
    """
    if work.device.type != "cpu":
        return TORCH, None
    exact = [TORCH, *(name for name in installed_backends() if name in BACKENDS and not is_coarse(name))]
    names = [name for name in exact if among is None or name in among or name == TORCH]
    known = _known(work)
    if known is not None and known["backend"] in names:
        best: str = known["backend"]
        log.info("%s: by %s, the fastest here before: %s", work.model.name, best, _told(known["seconds"]))
        return best, None
    usual = _usual(work) if USUAL in names else (TORCH, None)
    if len(names) > 1 and may_be_long(work.model, work.patches / work.lanes):
        return _measured(work, *usual, names)
    return usual


def _usual(work: Work) -> tuple[str, NetworkPredict | None]:
    """By `USUAL`, if it can do the network; which it can or cannot on every machine, so all make the same maps."""
    predict = load_predict(work.model, work.device, USUAL)
    try:
        predict.prepare(work.batch)
    except ModelError as error:
        log.warning("%s, as is done now", error)
        return TORCH, None
    except OutOfMemory:
        log.debug("fewer patches may fit, which is found out where they are predicted")
    return USUAL, predict


def may_be_long(model: ModelSpec, patches: float) -> bool:
    """Whether so many patches, one after the other, may take long enough for a look at the clock."""
    return patches * SLOWEST * model.patch**2 / 1e6 >= LONG


def _measured(
    work: Work, usual: str, loaded: NetworkPredict | None, names: list[str]
) -> tuple[str, NetworkPredict | None]:
    predicts = {usual: loaded or load_predict(work.model, work.device, usual)}
    began = time.perf_counter()
    with _trial(work) as trial:
        trial.run(predicts, 2)
        run = trial.seconds(usual) * work.patches / work.lanes
        left_out = []
        for name in names:
            if name in {usual, USUAL}:  # that is measured already, or cannot do the network
                continue
            other = load_predict(work.model, work.device, name)
            ready = OPENING if other.is_prepared(work.batch) else CONVERTING
            passes = ROUNDS * (len(predicts) + 1) * trial.seconds(usual) * work.batch
            if run < LONG or time.perf_counter() - began + ready + passes > SHARE * run:
                left_out.append(name)
                continue
            try:
                other.prepare(work.batch)
            except ModelError as error:
                log.warning("%s", error)
            else:
                predicts[name] = other
        if len(predicts) > 1:
            trial.run(predicts, ROUNDS)
        seconds = {name: trial.seconds(name) for name in predicts}
    best = min(seconds, key=lambda name: seconds[name])
    log.info("%s: by %s: %s; found out in %.1f s", work.model.name, best, _told(seconds), time.perf_counter() - began)
    if left_out:
        log.info("%s: not tried, for this run of about %.0f s is too short for it", ", ".join(left_out), run)
    else:
        found = {"backend": best, "seconds": seconds, "machine": machine()}
        keep(_place(work), json.dumps(found, indent=2).encode())
    return best, predicts[best]


def _told(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * each:.0f} ms per patch and core" for name, each in seconds.items())


@dataclass
class _Trial:
    """Passes of the same real patches."""

    batch: torch.Tensor
    cells: tuple[int, int]
    lanes: Lanes
    spent: dict[str, list[float]] = field(default_factory=dict)

    def run(self, predicts: dict[str, NetworkPredict], rounds: int) -> None:
        """One pass on each lane, so often, by each in turn; the first of each is not counted."""
        for _ in range(rounds):
            for name, predict in predicts.items():
                if name not in self.spent:
                    self._round(predict)
                    self.spent[name] = []
                self.spent[name].append(self._round(predict))

    def _round(self, predict: NetworkPredict) -> float:
        began = time.perf_counter()
        for each in [self.lanes.forward.submit(predict, self.batch, self.cells) for _ in range(self.lanes.count)]:
            each.result()
        return time.perf_counter() - began

    def seconds(self, name: str) -> float:
        """Of a patch on one lane."""
        return statistics.median(self.spent[name]) / len(self.batch)


@contextmanager
def _trial(work: Work) -> Iterator[_Trial]:
    lanes = Lanes(work.lanes)
    try:
        axes = work.tiling.axes
        yield _Trial(_patches(work), (axes[0].cells, axes[1].cells), lanes)
    finally:
        lanes.close()


def _patches(work: Work) -> torch.Tensor:
    """A batch of patches (n, bands, y, x) from the middle of the scene on."""
    high, wide = work.tiling.patch
    places = list(product(*(axis.starts for axis in work.tiling.axes)))
    chosen = [places[(len(places) // 2 + step) % len(places)] for step in range(work.batch)]
    values = [work.source.read(Window(row, row + high, col, col + wide)).values for row, col in chosen]
    return torch.stack([torch.from_numpy(each) for each in values])


# --- what is kept


def machine() -> dict[str, str]:
    """What of this machine, and of what is installed, decides how fast something is."""
    packages = {name: version(name) for name in ("geoseg", "torch")}
    for backend in BACKENDS.values():
        packages |= backend.versions
    return {"processor": _processor(), "instructions": torch.backends.cpu.get_cpu_capability(), **packages}


def _processor() -> str:
    """Its name, and on Linux its family, model and stepping, for many share a name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    wanted = ("model name", "cpu family", "model", "stepping")
    return " ".join(told[name].strip() for name in wanted if name in told) or platform.machine()


def _place(work: Work) -> Path:
    # not of lanes: a machine's workers are to make the same maps as the command on all of its cores
    known = {"model": work.model.sha256, "patch": work.model.patch, "batch": work.batch}
    name = hashlib.sha256(json.dumps({**machine(), **known}, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "backends" / f"{name}.json"


def _known(work: Work) -> dict[str, Any] | None:
    content = kept(_place(work))
    if content is None:
        return None
    found: dict[str, Any] = json.loads(content)
    return found
