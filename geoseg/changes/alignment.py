"""How the image before lies beside the image after, measured on the images and told in metres."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geoseg.changes import shift
from geoseg.changes.ground import blocks
from geoseg.errors import SceneError

if TYPE_CHECKING:
    from geoseg.export import Observer
    from geoseg.io.pixels import SceneSource
    from geoseg.window import Window


@dataclass(frozen=True)
class Measured:
    """The shift between two scenes, as it was estimated and as it is applied."""

    found: shift.Shift
    """In cells."""
    cell: float
    """Pixels of the scene after that a cell has along its side."""
    pixel_m: tuple[float, float]
    align: bool

    @classmethod
    def of(
        cls, before: SceneSource, after: SceneSource, overlap: Window, observe: Observer, *, align: bool
    ) -> Measured:
        """Estimate it from the images. Raises `SceneError` if it is to be applied and is not known."""
        observe("aligning", 0, 1)
        cell, pairs = blocks(before, after, overlap)
        found = shift.estimate(pairs)
        observe("aligning", 1, 1)
        if align and not found.known:
            msg = (
                f"--align: only {found.agreeing} of {found.blocks} blocks of {before.scene.path} agree on how it lies "
            )
            raise SceneError(msg + f"beside {after.scene.path}; leave --align out, and give maps a larger --tolerance")
        return cls(found, cell, after.scene.ground_resolution, align)

    @property
    def pixels(self) -> tuple[float, float]:
        """Rows and columns of the scene after."""
        return self.found.rows * self.cell, self.found.cols * self.cell

    @property
    def metres(self) -> tuple[float, float]:
        """The same on the ground: down, and to the right."""
        return self.pixels[0] * self.pixel_m[0], self.pixels[1] * self.pixel_m[1]

    @property
    def applied(self) -> tuple[float, float]:
        """What the map before is moved by."""
        return self.pixels if self.align else (0.0, 0.0)

    def told(self) -> dict[str, Any]:
        """What goes into the record."""
        found = self.found
        return {
            "pixels": [round(value, 3) for value in self.pixels],
            "metres": [round(value, 3) for value in self.metres],
            "length_m": round(math.hypot(*self.metres), 3),
            "known": found.known,
            "blocks": found.blocks,
            "agreeing": found.agreeing,
            "agreement": round(found.agreement, 3),
            "spread_m": round(found.spread * self.cell * max(self.pixel_m), 3),
            "applied": self.align,
        }
