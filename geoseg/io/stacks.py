"""Two scenes of one place as one: on one grid, the bands of one behind those of the other.

So whatever takes a scene window by window takes two dates: plans, engine, store and files know nothing of it. A pixel
is valid where it is in both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from odc.geo.geobox import GeoBox
from rasterio import Affine

from geoseg.io.grids import on_grid
from geoseg.io.pixels import SceneSource, Stretch, Survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.window import Window

BETWEEN: Final = "--"
"""Between the ids of both scenes in the name of a pair."""


def stacked(before: Scene, after: Scene, *, name: str | None = None, moved: tuple[float, float] = (0.0, 0.0)) -> Scene:
    """Both scenes as one on the grid of the later one.

    `name`: its id, or else both of theirs. `moved`: by how much the earlier one is, along x and y of the other's CRS.
    """
    return replace(
        after,
        id=name or f"{before.id}{BETWEEN}{after.id}",
        path=f"{before.path} and {after.path}",
        item=None,
        files=(),
        masks=(),
        fill=(),
        mask=None,
        scaling=(),
        parts=(before, after),
        stacked=True,
        moved=moved,
        file=None,
        memory=None,
    )


def parts_on(scenes: Sequence[Scene], grid: GeoBox, moved: tuple[float, float]) -> tuple[Scene, ...]:
    """Scenes on a grid, as they are where it is their own; to move the first one is to read it the other way aside."""
    along, down = moved
    aside = GeoBox(grid.shape, Affine.translation(-along, -down) @ grid.affine, grid.crs) if any(moved) else grid
    grids = [aside, *[grid] * (len(scenes) - 1)]
    return tuple(
        scene if scene.geobox == each else on_grid(scene, each) for scene, each in zip(scenes, grids, strict=True)
    )


def stretch_of(stretches: Sequence[Stretch | None], bands: int) -> Stretch | None:
    """The stretches of scenes, as one for all of their bands; None where none of them needs one.

    What is uint8 already keeps its values by one from 0 to 255.
    """
    if not any(stretches):
        return None
    each = [one or Stretch((0.0,) * bands, (255.0,) * bands) for one in stretches]
    return Stretch(tuple(v for one in each for v in one.low), tuple(v for one in each for v in one.high))


def stretches_of(stretch: Stretch | None, count: int) -> list[Stretch | None]:
    """The other way round."""
    if stretch is None:
        return [None] * count
    bands = len(stretch.low) // count
    spans = [slice(first * bands, (first + 1) * bands) for first in range(count)]
    return [Stretch(stretch.low[span], stretch.high[span]) for span in spans]


class StackSource(SceneSource):
    """Pixels of scenes on one grid, one scene's bands behind the other's."""

    errors = ()
    """None: the scenes tell of their own."""

    def __init__(
        self,
        scene: Scene,
        bands: tuple[int, ...],
        sources: Sequence[SceneSource],
        inside: Callable[[Window], NDArray[np.bool_]] | None = None,
    ) -> None:
        """`sources`: one for each of the scene's parts, on its grid."""
        super().__init__(scene, bands, None, inside)
        self._sources = tuple(sources)

    def _read_file(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        rasters = [source.read(window) for source in self._sources]
        valid: NDArray[np.bool_] = np.logical_and.reduce([raster.valid for raster in rasters])
        return np.concatenate([raster.values for raster in rasters]), valid

    def _read_overview(self, shape: tuple[int, int]) -> np.ma.MaskedArray[Any, Any]:
        each = [source.overview(max(shape)) for source in self._sources]
        missing = np.concatenate([np.ma.getmaskarray(one) for one in each])
        return np.ma.MaskedArray(np.concatenate([one.data for one in each]), missing)

    def close(self) -> None:
        """Close the files of all scenes."""
        for source in self._sources:
            source.close()

    def survey(self) -> Survey:
        """As the later scene has it."""
        return self._sources[-1].survey()

    def cache_bytes(self) -> int:
        """What all scenes ask for."""
        return sum(source.cache_bytes() for source in self._sources)
