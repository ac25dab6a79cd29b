"""Two dates' label maps compared, and the files of it."""

from __future__ import annotations

import csv
import io
import math
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geoseg.changes import transitions
from geoseg.changes.ground import Ground, around
from geoseg.export import AT_ONCE, Count, Observer
from geoseg.footprints import Layer, Outlined, assemble, in_pixels, measure, outline
from geoseg.io.cog import Look, write_cog
from geoseg.io.geoparquet import write_parquet
from geoseg.io.store import cannot_write
from geoseg.io.vectors import to_world, write_geojson
from geoseg.raster import CONFIDENCE_STEPS, NODATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from geoseg.catalog import Legend
    from geoseg.changes.planned import ChangePlan
    from geoseg.window import Window

AREA_UNIT: Final = 1e-4
"""Square metres in which the ground of pixels is added up in whole numbers."""


def by_class(planned: ChangePlan, ground: Ground, observe: Observer) -> tuple[dict[str, Any], dict[str, int]]:
    """Compare labels, write the transitions; what the summary says of them, and counts for the item."""
    model = planned.after.model
    layer = _transition_layer(planned, ground.grid, transitions.transition_legend(model.legend))
    sweep = _Sweep(planned, ground, layer, Count(observe, "comparing", math.prod(ground.shape)))
    write_codes(planned, sweep.codes(), ground.grid, "transitions.tif")
    if not sweep.areas.any():
        raise planned.nothing_seen()
    frame = _transition_frame(planned, assemble(sweep.outlined, layer))
    write_geojson(frame, planned.folder / "changes.geojson")
    write_parquet(frame, planned.folder / "changes.parquet")
    names = [c.name for c in model.legend.classes]
    counted, tolerated = sweep.areas * (AREA_UNIT / 10_000)
    _write_matrix(planned.folder / "transitions.csv", names, counted, tolerated)
    content = {
        "classes": names,
        "hectares": counted.round(6).tolist(),
        "within_tolerance_hectares": tolerated.round(6).tolist(),
        "compared_hectares": round(float(counted.sum() + tolerated.sum()), 6),
        "polygons": len(frame),
    }
    return content, {"polygons": len(frame)}


def write_codes(
    planned: ChangePlan, windows: Iterable[tuple[Window, NDArray[np.uint8]]], grid: GeoBox, name: str
) -> None:
    """Write codes of transitions between the classes of a plan's model, with their names and colours."""
    model = planned.after.model
    tags = {"TIFFTAG_SOFTWARE": f"geoseg {version('geoseg')}", "GEOSEG_MODEL": model.name}
    look = Look(f"{model.product} transitions", transitions.transition_legend(model.legend))
    write_cog(planned.folder / name, windows, grid, look, tags)


def sure_codes(
    planned: ChangePlan, ground: Ground, least: float, most: tuple[int, int] = AT_ONCE
) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Windows that cover the grid, and the transitions in each whose joint confidence is not below the least."""
    margin, classes = (2 * planned.reach[0], 2 * planned.reach[1]), len(planned.after.model.legend.classes)
    for window in ground.windows(most):
        before, after, *confidence = ground.read(around(window, margin))
        codes = transitions.transitions(before, after, classes, planned.reach)
        inner = tuple(slice(side, -side or None) for side in margin)
        sure = transitions.joint_confidence(confidence[0][inner], confidence[1][inner])
        doubtful = (codes != NODATA) & (sure < least * CONFIDENCE_STEPS)
        yield window, np.where(doubtful, np.uint8(transitions.UNCHANGED), codes)


def _transition_layer(planned: ChangePlan, grid: GeoBox, legend: Legend) -> Layer:
    job = planned.job.after
    return Layer(grid, legend, planned.folder.name, simplify=in_pixels(job.simplify, grid), min_area=job.min_area)


class _Sweep:
    """Two label maps compared window by window: codes for a raster, outlines and areas on the way."""

    def __init__(self, planned: ChangePlan, ground: Ground, layer: Layer, progress: Count) -> None:
        self._ground, self._layer, self._progress = ground, layer, progress
        self._reach, self._classes = planned.reach, len(planned.after.model.legend.classes)
        self._pixel_areas = np.rint(pixel_areas(ground.grid) / AREA_UNIT).astype(np.int64)
        self.outlined: list[Outlined] = []
        self.areas = np.zeros((2, self._classes, self._classes), np.int64)

    def codes(self, most: tuple[int, int] = AT_ONCE) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Windows that cover the grid, and the transitions in each."""
        margin = (2 * self._reach[0], 2 * self._reach[1])
        inner = tuple(slice(side, -side or None) for side in margin)
        for window in self._ground.windows(most):
            before, after, sure_before, sure_after = self._ground.read(around(window, margin))
            codes = transitions.transitions(before, after, self._classes, self._reach)
            sure = transitions.joint_confidence(sure_before[inner], sure_after[inner])
            self.outlined.append(outline(window, codes, sure, layer=self._layer))
            areas = self._pixel_areas[slice(*window.row_range)]
            self.areas += transitions.tally(before[inner], after[inner], codes, areas, self._classes)
            yield window, codes
            self._progress.add(window.size)


def pixel_areas(grid: GeoBox) -> NDArray[np.float64]:
    """(rows,) square metres on the ground of a pixel of each row, in the middle column."""
    rows, cols = grid.shape
    top, left = np.arange(rows), cols // 2
    return measure(to_world(shapely.box(left, top, left + 1, top + 1), grid), grid)[0]


def _transition_frame(planned: ChangePlan, polygons: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Polygons of transitions: what was there, what is there now, and both dates."""
    codes = {
        f"{old.name} to {new.name}": (old.name, new.name)
        for old in planned.after.model.legend.classes
        for new in planned.after.model.legend.classes
    }
    pairs = [codes[name] for name in polygons["class"]]
    kept = ("area_m2", "perimeter_m", "confidence", "touches_nodata")
    return gpd.GeoDataFrame(
        {
            "id": polygons["id"],
            "status": polygons["class"],
            "class_before": pd.Series([old for old, _ in pairs], dtype=str),
            "class_after": pd.Series([new for _, new in pairs], dtype=str),
            **{name: polygons[name] for name in kept},
            **{
                name: pd.Series([value] * len(pairs), dtype="datetime64[us, UTC]")
                for name, value in planned.dates.items()
            },
        },
        geometry=polygons.geometry.to_numpy(),
        crs=polygons.crs,
    )


def _write_matrix(path: Path, names: list[str], counted: NDArray[np.float64], tolerated: NDArray[np.float64]) -> None:
    """Hectares from each class (a row) to each other (a column); with what differs within the tolerance, and totals."""
    rows: list[list[Any]] = [["hectares, from \\ to", *names, "within tolerance", "total before"]]
    for name, line, beside in zip(names, counted, tolerated.sum(axis=1), strict=True):
        rows.append([name, *(f"{v:.6f}" for v in (*line, beside, line.sum() + beside))])
    beside, total = tolerated.sum(axis=0), counted.sum(axis=0) + tolerated.sum(axis=0)
    rows.append(["within tolerance", *(f"{v:.6f}" for v in (*beside, beside.sum())), ""])
    rows.append(["total after", *(f"{v:.6f}" for v in total), "", f"{total.sum():.6f}"])
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)
