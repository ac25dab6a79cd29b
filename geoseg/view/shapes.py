"""Polygons packed for a page: outlines in pixels as differences of whole numbers, attributes column by column.

Three streams of numbers, 7 bits a byte with the lowest first (as protocol buffers have them), in base64: rings of each
polygon, points of each ring (without the last, which is the first), and for each point how far it is from the one
before, x and y, with the sign in the lowest bit. That takes a sixth of the GeoJSON.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import shapely

from geoseg.changes.transitions import GONE_COLOUR, NEW_COLOUR
from geoseg.io.vectors import to_pixels

if TYPE_CHECKING:
    from collections.abc import Mapping

    import geopandas as gpd
    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

STEPS: Final = (0.5, 1.0, 2.0, 4.0)
"""Pixels to which coordinates are rounded, and by which outlines may be off: the first whose bytes fit is taken."""

BUDGET: Final = 5_000_000
"""Bytes that the outlines of a page may take."""

MOST: Final = 200_000
"""Polygons on a page."""

DIGITS: Final = 4

FULL: Final = np.array([1 << 7, 1 << 14, 1 << 21, 1 << 28], np.uint64)
"""Numbers from which on another byte is needed."""

CATEGORIES: Final = 64
"""Values of a column up to which each is told once."""

OWN: Final = {
    "new": NEW_COLOUR,
    "demolished": GONE_COLOUR,
    "enlarged": "#56b4e9",
    "reduced": "#e69f00",
    "reshaped": "#cc79a7",
    "split": "#009e73",
    "merged": "#f0e442",
    "regrouped": "#8a6d00",
    "uncertain": "#9a9a9a",
    "not_compared": "#5f5f5f",
    "unchanged": "#c8c8c8",
    "complete": "#0072b2",
    "under way": "#56b4e9",
    "waiting": "#9a9a9a",
    "failed": "#d55e00",
}
"""Colours of statuses that can be told apart without red and green (Okabe and Ito 2008)."""


def packed(
    frame: gpd.GeoDataFrame, grid: GeoBox, colours: Mapping[str, str], budget: int = BUDGET, most: int = MOST
) -> dict[str, Any]:
    """Polygons and their attributes as the viewer takes them.

    The frame's CRS is the grid's; `colours` are of classes. Where the polygons are more than `most`, or
    take more than `budget` bytes however they are rounded, the largest are kept, and `left_out` says how many are not.
    `kept` are their rows in the frame.
    """
    geometry = to_pixels(frame.geometry.to_numpy(), grid)
    kept = _largest(geometry, most)
    streams, step = _within(geometry[kept], budget)
    while streams is None:
        kept = _largest(geometry, len(kept) // 2)
        streams, step = _within(geometry[kept], budget)
    shown = frame.iloc[kept]
    return {
        **{name: base64.b64encode(data).decode() for name, data in streams.items()},
        "step": step,
        "count": len(kept),
        "left_out": len(frame) - len(kept),
        "columns": columns(shown.drop(columns=frame.geometry.name)),
        "colours": {**OWN, **colours},
        "kept": kept,
    }


def _largest(geometry: NDArray[Any], most: int) -> NDArray[np.intp]:
    """Rows of the largest polygons, in the order in which they come."""
    if len(geometry) <= most:
        return np.arange(len(geometry))
    return np.sort(np.argsort(-shapely.area(geometry), kind="stable")[:most])


def _within(geometry: NDArray[Any], budget: int) -> tuple[dict[str, bytes] | None, float]:
    """The streams of the finest step that fits into the budget, and the step; None if none does."""
    for step in STEPS:
        streams = encoded(shapely.simplify(geometry, step), step)
        if sum(map(len, streams.values())) * 4 // 3 <= budget or len(geometry) <= 1:
            return streams, step
    return None, STEPS[-1]


def encoded(geometry: NDArray[Any], step: float) -> dict[str, bytes]:
    """The streams `rings`, `points` and `deltas` of polygons in pixels, rounded to steps; holes turn the other way."""
    parts, of_polygon = shapely.get_parts(shapely.orient_polygons(geometry), return_index=True)
    rings, of_part = shapely.get_rings(parts, return_index=True)
    xy, of_ring = shapely.get_coordinates(rings, return_index=True)
    per_ring = np.bincount(of_ring, minlength=len(rings))
    last = np.zeros(len(xy), bool)
    last[np.cumsum(per_ring)[per_ring > 0] - 1] = True
    places = np.rint(xy[~last] / step).astype(np.int64)
    deltas = np.diff(places, axis=0, prepend=np.zeros((1, 2), np.int64)).ravel()
    per_polygon = np.bincount(of_polygon[of_part], minlength=len(geometry))
    signed = np.where(deltas < 0, -2 * deltas - 1, 2 * deltas)
    return {"rings": varints(per_polygon), "points": varints(np.maximum(per_ring - 1, 0)), "deltas": varints(signed)}


def varints(numbers: NDArray[np.int64]) -> bytes:
    """Whole numbers from 0 to 2^32 - 1, 7 bits a byte, the lowest first; the high bit says that more come.

    >>> varints(np.array([1, 300])).hex()
    '01ac02'
    """
    values = numbers.astype(np.uint64)
    lengths = 1 + np.searchsorted(FULL, values, side="right")
    starts = np.cumsum(lengths) - lengths
    out = np.zeros(int(lengths.sum()), np.uint8)
    for place in range(int(lengths.max(initial=0))):
        there = lengths > place
        low = (values[there] >> np.uint64(7 * place)) & np.uint64(127)
        more = (lengths[there] > place + 1) * np.uint64(128)
        out[starts[there] + place] = (low | more).astype(np.uint8)
    return out.tobytes()


def columns(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each column as numbers, as categories with a code for each row, as texts, or as the one value that all have."""
    return [{"name": str(name), **_column(table[name])} for name in table.columns]


def _column(values: pd.Series) -> dict[str, Any]:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return _numbers(values.to_numpy(np.float64, na_value=np.nan))
    texts = values.map(_text, na_action="ignore").astype(object).where(values.notna(), "")
    codes, names = pd.factorize(texts)
    if len(names) == 1 and len(values) > 1:
        return {"kind": "same", "value": str(names[0])}
    if len(names) <= min(CATEGORIES, max(2, len(values) // 2)):
        return {"kind": "category", "names": [str(name) for name in names], "codes": codes.tolist()}
    return {"kind": "text", "values": [str(text) for text in texts]}


def _numbers(values: NDArray[np.float64]) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    told = [round(float(v), DIGITS) if np.isfinite(v) else None for v in values]
    whole = [int(v) if v is not None and v == int(v) else v for v in told]
    return {"kind": "number", "values": whole, "range": [round(float(low), DIGITS), round(float(high), DIGITS)]}


def _text(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    return str(value.isoformat() if isinstance(value, pd.Timestamp) else value)
