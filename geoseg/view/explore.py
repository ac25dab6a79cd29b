"""`explore` and `plot`: a map to move about in, in a notebook, and one to print, in a paper."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from geoseg.errors import OptionError, OutputError
from geoseg.raster import crs_of
from geoseg.view.facts import CONFIDENCE_FILE, LABEL_FILE, Map, read_item, scene_below
from geoseg.view.pages import SMALL, footprints_in
from geoseg.view.pictures import RAMP, confidence_picture, labels_picture, read_map
from geoseg.view.render import rendered, write_page
from geoseg.view.report import page_of

if TYPE_CHECKING:
    from geoseg.changes.pair import Change
    from geoseg.pipeline import Result

FIGURE: Final = 1600
"""Rows and columns at most of a picture in a figure."""

MANY: Final = 20_000
"""Footprints up to which a map holds them all; above, a browser that draws each of them is slow."""

ROUND: Final = (5, 2, 1)
"""Lengths of a scale bar, times a power of ten."""


@dataclass(frozen=True)
class Explorer:
    """A map that a notebook shows in a frame of its own, which can ask nobody for anything."""

    html: str = field(repr=False)
    height: int = 560

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts" title="Map" '
            f'style="width:100%;height:{self.height}px;border:1px solid #8888;border-radius:6px"></iframe>'
        )

    def save(self, path: str | Path) -> Path:
        """Write the map as a page of its own. Raises `OutputError` if the disk refuses."""
        return write_page(Path(path), self.html)


def explore(
    results: Result | Change | str | Path,
    *,
    height: int = 560,
    live: bool | None = None,
    basemap: bool = False,
    source: str | Path | tuple[str | Path, str | Path] | None = None,
) -> Any:
    """A map of results or of a change to move about in: scene, labels, confidence, outlines by any attribute, swipe.

    There are two, and neither asks the internet for anything. One is all in the notebook, an `Explorer`: it holds
    overviews, and stays when the kernel is gone. The other (`live`, extra `jupyter`) has its kernel draw what is in
    view, in full resolution, and holds any number of footprints. `live` None: that one from `MANY` footprints on,
    if it is installed. With `basemap` it is a map of lonboard instead (the same extra), above streets from the web:
    that one loads parts of itself and its tiles from the internet.

    `height` is in CSS pixels; `source`: where the scene is, of a change where both are, the earlier one first; None:
    where the results say. Raises `OutputError` for a folder that holds no results, `OptionError` for what is not
    installed or another number of sources than there are scenes.
    """
    folder = Path(results) if isinstance(results, (str, Path)) else results.folder
    if not (folder / "item.json").exists():
        msg = f"{folder}: holds no complete result of one scene or change; for many, see `geoseg report`"
        raise OutputError(msg)
    if basemap:
        from geoseg.view.streets import map_on_streets

        return map_on_streets(folder, height)
    sources = () if source is None else tuple(map(Path, source if isinstance(source, tuple) else (source,)))
    if _is_many(folder) if live is None else live:
        from geoseg.view.live import live_map

        return live_map(folder, height, *sources)
    return Explorer(rendered(page_of(folder, SMALL, sources), bare=True), height)


def _is_many(folder: Path) -> bool:
    """Whether a live map is wanted and can be."""
    told = read_item(folder)
    footprints = told["properties"].get("geoseg:counts", {}).get("footprints", 0)
    return "labels" in told["assets"] and footprints > MANY and find_spec("anywidget") is not None


def plot(
    folder: Path, layer: Literal["labels", "confidence"] = "labels", *, outlines: bool = False, ax: Any = None
) -> Any:
    """A figure of a scene's results, with the classes' colours, a legend and a scale bar; matplotlib's axes.

    `layer`: labels, above the scene if that is there, or confidence. `outlines`: those of footprints, too. `ax`: the
    axes to draw into. Raises `OptionError` without matplotlib (extra `notebooks`).
    """
    if layer not in {"labels", "confidence"}:
        msg = f"layer {layer!r}: is labels or confidence"
        raise OptionError(msg)
    plt = _pyplot()
    mapped = Map.of(folder)
    axes = plt.subplots(figsize=(8, 8), layout="constrained")[1] if ax is None else ax
    _draw_raster(axes, mapped, layer)
    if outlines:
        frame = footprints_in(folder)
        if len(frame):
            frame.boundary.plot(ax=axes, color="black", linewidth=0.4)
    _frame(axes, mapped)
    return axes


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        msg = "plot() needs matplotlib: pip install 'geoseg[notebooks]'"
        raise OptionError(msg) from error
    return plt


def _draw_raster(axes: Any, mapped: Map, layer: str) -> None:
    """The scene and a map above it, where they lie."""
    box = mapped.grid.boundingbox
    extent = (box.left, box.right, box.bottom, box.top)
    if layer == "confidence":
        axes.imshow(_pixels(confidence_picture(read_map(mapped.folder / CONFIDENCE_FILE, FIGURE), None)), extent=extent)
        _colour_bar(axes)
        return
    below = scene_below(mapped).imagery
    if below is not None:
        raster = below.overview(FIGURE)
        alpha = np.where(raster.valid, 255, 0).astype(np.uint8)[None]
        shown = np.broadcast_to(raster.values, (3, *raster.valid.shape)) if len(raster.values) == 1 else raster.values
        axes.imshow(np.moveaxis(np.concatenate([shown[:3], alpha]), 0, -1), extent=extent)
    colours = {value: colour for value, _, colour in mapped.classes}
    clear = mapped.background if below is not None else set()
    picture = labels_picture(read_map(mapped.folder / LABEL_FILE, FIGURE), colours, clear)
    axes.imshow(_pixels(picture), extent=extent, alpha=0.6 if below is not None else 1.0, interpolation="nearest")
    _legend(axes, [(name, colour) for value, name, colour in mapped.classes if value not in clear])


def _pixels(picture: bytes) -> Any:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGBA"))


def _legend(axes: Any, classes: list[tuple[str, str]]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name) for name, colour in classes]
    axes.legend(handles=handles, loc="upper right", framealpha=0.9)


def _colour_bar(axes: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("confidence", list(RAMP))
    axes.figure.colorbar(ScalarMappable(cmap=ramp), ax=axes, label="confidence", shrink=0.7)


def _frame(axes: Any, mapped: Map) -> None:
    """What a map in a paper has around it: where it is, and how long a metre."""
    crs = crs_of(mapped.grid)
    axes.set_title(str(mapped.item["properties"].get("title") or mapped.item["id"]), parse_math=False)
    axes.set_xlabel(f"EPSG:{crs.epsg}" if crs.epsg else crs.proj.name, parse_math=False)
    axes.set_ylabel("")
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.tick_params(axis="x", labelrotation=30)
    box, cols = mapped.grid.boundingbox, mapped.grid.shape[1]
    metres = float(cols) * mapped.metres  # across the map
    length = scale_length(metres / 4)
    left, width = box.left + 0.04 * (box.right - box.left), length / metres * (box.right - box.left)
    low = box.bottom + 0.04 * (box.top - box.bottom)
    for colour, thick in (("white", 6), ("black", 3)):
        axes.plot([left, left + width], [low, low], color=colour, linewidth=thick, solid_capstyle="butt")
    told = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"  # noqa: PLR2004  metres in a kilometre
    style = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    axes.annotate(told, (left, low), (0, 6), textcoords="offset points", bbox=style, fontsize=9)
    axes.set_xlim(box.left, box.right)
    axes.set_ylim(box.bottom, box.top)


def scale_length(most: float) -> float:
    """The longest round length of at most so many metres.

    >>> [scale_length(most) for most in (730, 20, 0.3)]
    [500.0, 20.0, 0.2]
    """
    power = 10.0 ** np.floor(np.log10(most) + 1e-9)
    return float(round(next(step for step in ROUND if step * power <= most * (1 + 1e-9)) * power, 9))
