"""geoseg: satellite and aerial archives into maps.

    import geoseg

    result = geoseg.segment("scene.tif", "buildings", out="maps")
    result.footprints            # a GeoDataFrame
    result.labels                # an xarray view of the label map, read when used
    geoseg.explore(result)       # a map to move about in, in a notebook
    geoseg.review(result)        # footprints to accept or reject, the least confident first
    geoseg.report("maps/scene")  # a page that needs neither server nor internet
    geoseg.evaluate("maps/scene", "reference.gpkg").objects  # how good it is

What is named here is imported when it is first used, so that `import geoseg` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geoseg.changes.pair import Change, change
    from geoseg.evaluation.compare import Evaluation, evaluate
    from geoseg.io.scenes import open_scene
    from geoseg.pipeline import Result, segment
    from geoseg.polygons import vectorize
    from geoseg.view.explore import explore
    from geoseg.view.report import report
    from geoseg.view.reviewing import review

__all__ = [
    "Change",
    "Evaluation",
    "Result",
    "change",
    "evaluate",
    "explore",
    "open_scene",
    "report",
    "review",
    "segment",
    "vectorize",
]

_HOME = {
    "change": "geoseg.changes.pair",
    "Change": "geoseg.changes.pair",
    "open_scene": "geoseg.io.scenes",
    "segment": "geoseg.pipeline",
    "vectorize": "geoseg.polygons",
    "Result": "geoseg.pipeline",
    "evaluate": "geoseg.evaluation.compare",
    "explore": "geoseg.view.explore",
    "report": "geoseg.view.report",
    "review": "geoseg.view.reviewing",
    "Evaluation": "geoseg.evaluation.compare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'geoseg' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
