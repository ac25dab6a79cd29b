"""A scene's footprints above streets from the web, in lonboard's map.

lonboard draws on the graphics card, but is no map for a machine without internet: its browser side loads the reader of
its tables, and the tiles below them, from servers of others. So it is what `explore` gives where a base map is asked
for, and only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio.warp
from odc.geo.geobox import GeoBox

from geoseg.errors import OptionError
from geoseg.view.atlas import OVERVIEW, Atlas
from geoseg.view.facts import Map, scene_below
from geoseg.view.pages import footprints_in
from geoseg.view.pictures import data_uri, overview_grid, scene_picture

if TYPE_CHECKING:
    from pathlib import Path

    from geoseg.view.pictures import Imagery

OPACITY = 0.7


def map_on_streets(folder: Path, height: int) -> Any:
    """Lonboard's map of footprints by their confidence, the scene below them, streets below that.

    Raises `OptionError` without lonboard (extra `jupyter`), `OutputError` for a folder without results of one scene.
    """
    mapped = Map.of(folder)
    lonboard = _lonboard()
    below = scene_below(mapped).imagery
    layers = [] if below is None else [_picture(lonboard, below)]
    return lonboard.Map([*layers, _footprints(lonboard, folder)], height=height)


def _lonboard() -> Any:
    try:
        import lonboard
    except ImportError as error:
        msg = "explore(basemap=True) needs lonboard: pip install 'geoseg[jupyter]'"
        raise OptionError(msg) from error
    return lonboard


def _footprints(lonboard: Any, folder: Path) -> Any:
    colours = Atlas(folder)
    by = colours.colours("confidence")
    frame = footprints_in(folder).set_index("id").loc[colours.table.index].reset_index().to_crs(4326)
    fill = np.column_stack([by.table[by.codes], np.full(len(frame), round(255 * OPACITY))]).astype(np.uint8)
    colours_of = {"get_fill_color": fill, "get_line_color": [20, 20, 20], "auto_highlight": True}
    # its own way to smaller columns warns of what pandas will not have any more
    return lonboard.PolygonLayer.from_geopandas(frame, auto_downcast=False, **colours_of)


def _picture(lonboard: Any, imagery: Imagery) -> Any:
    """The scene in Web Mercator, in which the map is drawn."""
    grid = overview_grid(imagery.grid, OVERVIEW)
    mercator = _mercator(grid)
    west, south, east, north = rasterio.warp.transform_bounds("EPSG:3857", "EPSG:4326", *mercator.boundingbox)
    pixels = scene_picture(imagery.on(mercator).overview(OVERVIEW))
    return lonboard.BitmapLayer(image=data_uri(pixels), bounds=(west, south, east, north))


def _mercator(grid: GeoBox) -> GeoBox:
    rows, cols = map(int, grid.shape)
    own = tuple(grid.boundingbox)
    transform, width, high = rasterio.warp.calculate_default_transform(grid.crs, "EPSG:3857", cols, rows, *own)
    return GeoBox((high, width), transform, "EPSG:3857")
