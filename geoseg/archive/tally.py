"""What a run has done so far, told as it happens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from geoseg.export import Count, Observer
from geoseg.records import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from geoseg.archive.plan import ArchivePlan
    from geoseg.changes.many import PairEntry, PairOutcome
    from geoseg.window import Window
    from geoseg.work import SceneOrder, TileOutcome

log = logging.getLogger("geoseg")


Tell: TypeAlias = "Callable[[dict[str, Any]], None]"
"""Who wants to know of events: `{"event": "scene done", "scene": ..., ...}`."""


class Done:
    """Keeps count of a run."""

    def __init__(self, plan: ArchivePlan, observe: Observer, tell: Tell) -> None:
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = {}
        self.scenes = self.pixels = self.pairs = 0
        self._observe, self._tell = observe, tell
        total = sum(entry.pixels for entry in plan.pending)
        self._predicted = Count(observe, "predicting", total)
        self._finished = Count(observe, "finishing", total)

    def begun(self, order: SceneOrder) -> None:
        """A scene is begun."""
        self._tell({"event": "scene begun", "scene": order.scene.id})

    def skipped(self, pixels: int) -> None:
        """So many pixels were predicted by an earlier run."""
        self._predicted.add(pixels)

    def predicted(self, pixels: int) -> None:
        """Some pixels are predicted."""
        self.pixels += pixels
        self._predicted.add(pixels)

    def spent(self, seconds: Mapping[str, float]) -> None:
        """Some more seconds went into stages."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value

    def tile(self, order: SceneOrder, outcome: TileOutcome) -> None:
        """A tile came back."""
        window = [*outcome.core.row_range, *outcome.core.col_range]
        if outcome.why is None:
            self.predicted(outcome.core.size)
            self.spent(outcome.seconds)
            self._tell({"event": "tile done", "scene": order.scene.id, "tile": window, "seconds": outcome.seconds})
        else:
            self._tell({"event": "tile failed", "scene": order.scene.id, "tile": window, "why": outcome.why})

    def scene(self, order: SceneOrder, seconds: float) -> None:
        """A scene is complete."""
        self.scenes += 1
        self._finished.add(int(np.prod(order.scene.shape)))
        self._tell({"event": "scene done", "scene": order.scene.id, "seconds": round(seconds, 3)})

    def pair(self, entry: PairEntry, outcome: PairOutcome) -> None:
        """A comparison came back."""
        if outcome.why is not None:
            self.failed(Failure(entry.id, outcome.why, entry.order.scene.geobox))
            return
        self.pairs += 1
        self.spent({"compare": outcome.seconds})
        self._tell({"event": "pair done", "pair": entry.id, "seconds": round(outcome.seconds, 3)})

    def failed(self, failure: Failure) -> None:
        """A scene, or some of its tiles, failed."""
        self.failures.append(failure)
        self._tell({"event": "scene failed", "scene": failure.scene, "why": failure.why})
        log.info("%s: %s", failure.scene, failure.why)


def failure_of(order: SceneOrder, why: str, windows: Iterable[Window] = ()) -> Failure:
    """What is told of a scene of which all, or these windows, failed."""
    return Failure(order.scene.id, why, order.scene.geobox, tuple(windows))
