"""The widget of `geoseg.explore` for large layers: the browser says what it looks at, the kernel draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from geoseg.view.atlas import LAYERS, Atlas, Look
from geoseg.view.pictures import RAMP
from geoseg.view.widget import WIDGETS, widget_base

if TYPE_CHECKING:
    from pathlib import Path

Answer = tuple[dict[str, Any], list[bytes]]


def live_map(folder: Path, height: int, source: Path | None = None) -> Any:
    """A map of a scene's results that asks its kernel for what is in view, and nobody else for anything.

    `height` is in CSS pixels. Raises `OptionError` without anywidget, `OutputError` for a folder without results.
    """
    return _widget_class()(Atlas(folder, source), height)


def about(atlas: Atlas, height: int) -> dict[str, Any]:
    """What the browser is told once."""
    rows, cols = atlas.shape
    titles = [(name, name.capitalize()) for name in LAYERS if name != "scene" or atlas.below.imagery is not None]
    columns = list(atlas.columns)
    return {
        "width": cols,
        "height": rows,
        "height_css": height,
        "label": f"Map of {len(atlas.table):,} footprints",
        "layers": [list(pair) for pair in titles],
        "shown": ["labels" if atlas.below.imagery is None else "scene", "footprints"],
        "columns": columns,
        "column": "confidence" if "confidence" in columns else next(iter(columns), ""),
        "near": max(0.05, 0.15 / atlas.mapped.metres),
        "ramp": list(RAMP),
    }


def answer(atlas: Atlas, told: dict[str, Any]) -> Answer | None:
    """What the browser asked for; None for what is no question. Raises `ValueError` or `KeyError` for a damaged one."""
    if told.get("ask") == "look":
        return _look(atlas, told)
    if told.get("ask") == "at":
        return _at(atlas, float(told["x"]), float(told["y"]), float(told["slack"]), None)
    if told.get("ask") == "place":
        centre = atlas.centre(int(told["place"]))
        return None if centre is None else _at(atlas, *centre, 1.0, centre)
    return None


def _look(atlas: Atlas, told: dict[str, Any]) -> Answer:
    look = Look.of(told)
    rows, cols = atlas.shape
    whole = look.left <= 0 and look.top <= 0 and look.right >= cols and look.bottom >= rows
    outlines = atlas.outlines(look)
    seen = {"left": look.left, "top": look.top, "step": look.step, "width": look.width, "height": look.height}
    legend = atlas.colours(look.column).legend
    head = {"of": "look", "look": seen, "whole": whole, "legend": legend}
    note = "" if atlas.below.imagery is not None else atlas.below.why
    return {**head, "outlines": [list(pair) for pair in outlines], "note": note}, [atlas.picture(look)]


def _at(atlas: Atlas, x: float, y: float, slack: float, centre: tuple[float, float] | None) -> Answer:
    rows, path = atlas.at(x, y, slack) or ([], "")
    told = {"of": "at", "rows": [list(row) for row in rows], "path": path}
    return told | ({"centre": list(centre)} if centre is not None else {}), []


def _widget_class() -> Any:
    """The class, made when it is first needed: the library is an extra."""
    base = widget_base("explore() of so many footprints")
    import traitlets as t

    class LiveMap(base):  # type: ignore[misc, valid-type]  # made by a function: the library is an extra
        """A map; `atlas` draws it."""

        _esm = WIDGETS / "live.js"
        _css = WIDGETS / "live.css"
        about = t.Dict().tag(sync=True)

        def __init__(self, atlas: Atlas, height: int) -> None:
            super().__init__(about=about(atlas, height))
            self.atlas = atlas

        def heard(self, told: dict[str, Any]) -> None:
            found = answer(self.atlas, told)
            if found is not None:
                self._answer(told, *found)

        def failed(self, told: dict[str, Any], why: str) -> None:
            self._answer(told, {"of": "error", "why": why}, [])

        def _answer(self, told: dict[str, Any], found: dict[str, Any], pictures: list[bytes]) -> None:
            """All views of a widget hear it: each of them knows its own questions by these two."""
            self.send({**found, "number": told.get("number"), "view": told.get("view")}, pictures)

    return LiveMap
