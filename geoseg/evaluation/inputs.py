"""What is compared: label rasters, vector files and results folders, each readable as labels on any grid."""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol
from xml.etree import ElementTree as ET

import geopandas as gpd
import numpy as np
import rasterio
import rasterio.shutil
import shapely
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.features import rasterize

from geoseg.errors import EvaluationError
from geoseg.io.grids import on_grid
from geoseg.io.label_rasters import AS_LABELS, labels_of
from geoseg.io.scenes import open_scene, open_source
from geoseg.io.vectors import to_pixels
from geoseg.raster import NODATA, crs_of
from geoseg.window import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from geoseg.catalog import Scene

MAX_PIXELS = 10**11

PARQUET: Final = {".parquet", ".geoparquet", ".pq"}
OURS: Final = {"class", "area_m2", "perimeter_m"}
"""Columns by which footprints that geoseg wrote are known."""

BACKGROUND_NAMES: Final = {"background", "nothing", "none", "other", "others", "unlabelled", "unlabeled", "unknown"}


@dataclass(frozen=True, eq=False)
class Side:
    """The prediction, or the reference: a raster, a vector layer, or (a results folder) both."""

    path: str
    raster: Scene | None = None
    vector: gpd.GeoDataFrame | None = None
    """Polygons with a CRS, and as far as it is known their `class` (a number or a name) and `confidence`."""
    confidence: str | None = None
    """Path of a raster of confidence codes."""
    names: dict[int, str] = field(default_factory=dict)


class Labels(Protocol):
    """Labels on a grid, window by window."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Labels (y, x) of a window inside the grid, 255 = nodata."""
        ...


def open_side(given: str | Path | gpd.GeoDataFrame, class_column: str | None = None) -> Side:
    """What a path (or a layer in memory) holds.

    Raises `EvaluationError` if that is neither a label raster nor polygons, `SceneError` for a raster without a place.
    """
    if isinstance(given, gpd.GeoDataFrame):
        return Side("the given layer", vector=_polygons(given, "the given layer", class_column))
    path = Path(given)
    text = str(given)
    remote = text.startswith("/vsi") or "://" in text
    if not remote and not path.exists():
        msg = f"{given}: there is no such file; check the path"
        raise EvaluationError(msg)
    if path.is_dir():
        return _open_folder(path, class_column)
    if path.suffix.lower() not in PARQUET and is_raster(text):
        scene = open_scene(text)
        _check_labels(scene)
        return Side(text, raster=scene, names=class_names(path))
    return Side(text, vector=_polygons(read_vector(path if not remote else text), text, class_column))


def _open_folder(folder: Path, class_column: str | None) -> Side:
    labels, confidence, footprints = (folder / n for n in ("labels.tif", "confidence.tif", "footprints.parquet"))
    if not labels.exists():
        msg = f"{folder}: is a folder without labels.tif; name one that `geoseg segment` wrote, or one file"
        raise EvaluationError(msg)
    side = open_side(labels)
    vector = open_side(footprints, class_column).vector if footprints.exists() else None
    return Side(str(folder), side.raster, vector, str(confidence) if confidence.exists() else None, side.names)


def is_raster(path: str) -> bool:
    """Whether GDAL reads a file, and finds bands in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return bool(dataset.count)
    except RasterioError:
        return False


def _check_labels(scene: Scene) -> None:
    if len(scene.bands) != 1:
        msg = f"{scene.path}: a label raster has one band, this has {len(scene.bands)} of {scene.dtype}; "
        raise EvaluationError(msg + "choose one (gdal_translate -b 1)")


def read_vector(path: Path | str) -> gpd.GeoDataFrame:
    """The rows of a vector file. Raises `EvaluationError` if it is none."""
    if isinstance(path, Path) and not path.exists():
        msg = f"{path}: there is no such file; check the path"
        raise EvaluationError(msg)
    try:
        return gpd.read_parquet(path) if Path(path).suffix.lower() in PARQUET else gpd.read_file(path)
    except Exception as error:  # pyogrio, pyarrow and GDAL raise various errors of their own
        cause = str(error).strip().splitlines()[:1] or [type(error).__name__]
        msg = f"{path}: is neither a raster nor a vector file that can be read ({cause[0]}); give a label raster "
        raise EvaluationError(msg + "(GeoTIFF) or polygons (GeoPackage, GeoJSON, GeoParquet)") from error


def _polygons(frame: gpd.GeoDataFrame, path: str, class_column: str | None) -> gpd.GeoDataFrame:
    """The polygons of a layer with their `class` and `confidence`, as far as it has them."""
    if not isinstance(frame, gpd.GeoDataFrame) or frame.geometry.isna().all() != frame.empty:
        msg = f"{path}: its rows have no geometry; give polygons"
        raise EvaluationError(msg)
    if class_column is None and set(frame.columns) >= OURS:
        class_column = "class"
    if class_column is not None and class_column not in frame.columns:
        have = ", ".join(str(c) for c in frame.columns if c != frame.geometry.name) or "none"
        msg = f"{path}: has no column {class_column!r} for --class-column; there are: {have}"
        raise EvaluationError(msg)
    if frame.crs is None:
        msg = f"{path}: has no CRS, so its place on the ground is unknown; assign one first: ogr2ogr -a_srs EPSG:XXXX"
        raise EvaluationError(msg)
    areal = frame[frame.geom_type.isin(["Polygon", "MultiPolygon"]) & ~frame.geometry.is_empty]
    if areal.empty and not frame.empty:
        kinds = ", ".join(sorted({str(kind) for kind in frame.geom_type.dropna()}))
        msg = f"{path}: has no polygons but {kinds}; give the outlines of objects"
        raise EvaluationError(msg)
    columns: dict[str, NDArray[np.generic]] = {}
    if class_column is not None:
        columns["class"] = areal[class_column].to_numpy()
    if "confidence" in areal.columns and np.issubdtype(areal["confidence"].dtype, np.number):
        columns["confidence"] = areal["confidence"].fillna(0).to_numpy(np.float64)
    return gpd.GeoDataFrame(columns, geometry=shapely.force_2d(areal.geometry.to_numpy()), crs=frame.crs)


def class_names(path: Path) -> dict[int, str]:
    """What a label raster's values are called: by the STAC item beside it, its categories or attribute table, or {}."""
    return _names_of_item(path) or _names_of_raster(path)


def _names_of_item(path: Path) -> dict[int, str]:
    try:
        item = json.loads((path.parent / "item.json").read_text("utf-8"))
        assets = [a for a in item["assets"].values() if Path(a["href"]).name == path.name]
        return {int(c["value"]): str(c["name"]) for a in assets for c in a.get("classification:classes", ())}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no item, or one of something else: it was not asked for


def _names_of_raster(path: Path) -> dict[int, str]:
    """Categories and attribute table through a virtual dataset: rasterio hands them out nowhere else."""
    with tempfile.TemporaryDirectory() as folder:
        vrt = Path(folder) / "names.vrt"
        rasterio.shutil.copy(str(path), vrt, driver="VRT")
        band = ET.fromstring(vrt.read_text("utf-8")).find("VRTRasterBand")  # noqa: S314  GDAL wrote it the line before
    if band is None:
        return {}
    categories = {i: c.text for i, c in enumerate(band.iterfind("CategoryNames/Category")) if c.text}
    return categories or _names_of_table(band)


def _names_of_table(band: ET.Element) -> dict[int, str]:
    usage = {
        f.findtext("Usage"): int(f.get("index", -1))
        for f in band.iterfind("GDALRasterAttributeTable/FieldDefn")
        if f.findtext("Usage") in {"2", "5"}  # GDALRATFieldUsage: name, value
    }
    if len(usage) < 2:  # noqa: PLR2004  a name and a value
        return {}
    rows = [[f.text or "" for f in row] for row in band.iterfind("GDALRasterAttributeTable/Row")]
    return {int(float(row[usage["5"]])): row[usage["2"]] for row in rows}


# --- classes ---------------------------------------------------------------------------------------------------------


def legend_of(prediction: Side, reference: Side, given: dict[int, str] | None) -> dict[int, str]:
    """Names of the class values that both sides are told in; {} where nothing tells them.

    Those that were given, or the prediction's, or the reference's; else from the class columns, by name. Raises
    `EvaluationError` where one name means two values.
    """
    if given:
        return given
    _check_agreement(prediction, reference)
    known = prediction.names or reference.names
    columns = [s.vector["class"] for s in (prediction, reference) if s.vector is not None and "class" in s.vector]
    if known or not columns:
        return known
    values = {v for column in columns for v in column.dropna().tolist()}
    numbers = sorted(int(v) for v in values if not isinstance(v, str))
    words = sorted(v for v in values if isinstance(v, str) and v.casefold() not in BACKGROUND_NAMES)
    if numbers:
        return {0: "background"} | {v: str(v) for v in numbers}
    return {0: "background"} | dict(enumerate(words, 1))


def _check_agreement(prediction: Side, reference: Side) -> None:
    values = {name.casefold(): value for value, name in prediction.names.items()}
    for value, name in reference.names.items():
        if values.get(name.casefold(), value) != value:
            msg = f"{reference.path}: its class {name!r} is {value}, in {prediction.path} it is "
            msg += f"{values[name.casefold()]}; renumber one of them, or name the values with --classes"
            raise EvaluationError(msg)


def background_of(names: dict[int, str]) -> int | None:
    """The class that is no object: 0, unless several classes have a name and 0's is one of a thing."""
    several = len(names) > 2  # noqa: PLR2004  a background and a thing
    return None if several and names.get(0, "background").casefold() not in BACKGROUND_NAMES else 0


def values_of(names: dict[int, str], wanted: list[str], where: str) -> list[int]:
    """Class values by name (whatever the case) or number. Raises `EvaluationError` if there is no such class."""
    known = {name.casefold(): value for value, name in names.items()} | {str(value): value for value in names}
    for word in wanted:
        if word.strip().casefold() not in known:
            have = ", ".join(f"{value} {name}" for value, name in sorted(names.items()))
            msg = f"{where}: there is no class {word!r}; there are: {have}; name others with --classes"
            raise EvaluationError(msg)
    return [known[word.strip().casefold()] for word in wanted]


def classes_of(side: Side, names: dict[int, str]) -> NDArray[np.uint8]:
    """(n,) the class value of each polygon of a side's vector layer.

    Raises `EvaluationError` for a class that is not in `names`, and if several could be meant and no column tells.
    """
    frame = side.vector
    if frame is None:
        msg = f"{side.path} has no vector layer"
        raise ValueError(msg)
    if "class" not in frame:
        things = [value for value in names if value != background_of(names)]
        if len(things) > 1:
            msg = f"{side.path}: the map has several classes ({', '.join(names[v] for v in things)}); "
            raise EvaluationError(msg + "name the column that tells them with --class-column")
        return np.full(len(frame), (things or [1])[0], np.uint8)
    words = ["" if v is None or v != v else f"{v:g}" if isinstance(v, float) else str(v) for v in frame["class"]]  # noqa: PLR0124  NaN
    value = {word: values_of(names, [word], side.path)[0] for word in dict.fromkeys(words)}
    return np.array([value[word] for word in words], np.uint8)


# --- grids -----------------------------------------------------------------------------------------------------------


def metric_crs(geobox: GeoBox) -> CRS:
    """Metres of equal area about a grid's centre: Lambert azimuthal (Snyder 1987) on WGS 84.

    Lengths are right within 0.1 % up to some 500 km from there.
    """
    to_lonlat = Transformer.from_crs(CRS.from_wkt(crs_of(geobox).wkt), 4326, always_xy=True)
    return _laea(*to_lonlat.transform(*(geobox.affine @ (geobox.shape[1] / 2, geobox.shape[0] / 2))))


def _laea(lon: float, lat: float) -> CRS:
    return CRS.from_user_input(f"+proj=laea +lat_0={float(lat)!r} +lon_0={float(lon)!r} +ellps=WGS84 +units=m")


def grid_of_layers(layers: list[gpd.GeoDataFrame], resolution: float, aoi: gpd.GeoSeries | None) -> GeoBox:
    """A grid of square metres about the last layer, over all of them, within the bounds of the area of interest.

    Two pixels of ground stand round it, so that no object ends at its edge unseen. Raises `EvaluationError` if it would
    be absurdly large, or if area and layers do not meet.
    """
    west, south, east, north = layers[-1].to_crs(4326).total_bounds
    crs = _laea((west + east) / 2, (south + north) / 2)
    bounds = np.array([layer.to_crs(crs).total_bounds for layer in layers if len(layer)])
    low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
    if aoi is not None:
        limits = aoi.to_crs(crs).total_bounds
        low, high = np.maximum(low, limits[:2]), np.minimum(high, limits[2:])
    if not (low < high).all():
        msg = "--aoi: none of the polygons that are to be compared lie in it; check that it is the right area"
        raise EvaluationError(msg)
    first, last = np.floor(low / resolution) - 2, np.ceil(high / resolution) + 2
    cols, rows = (int(n) for n in last - first)
    if rows * cols > MAX_PIXELS:
        msg = f"the two layers span {rows} x {cols} pixels of {resolution:g} m; choose a district with --aoi, or a "
        raise EvaluationError(msg + "coarser --resolution")
    place = Affine(resolution, 0, first[0] * resolution, 0, -resolution, last[1] * resolution)
    return GeoBox((rows, cols), place, crs.to_wkt())


def labels_on(side: Side, grid: GeoBox, names: dict[int, str]) -> Labels:
    """A side's labels on a grid: its raster by nearest, else its polygons, burnt where a pixel's centre is inside."""
    if side.raster is not None:
        return raster_on(side.raster, grid)
    return PolygonLabels(side, grid, classes_of(side, names))


def raster_on(scene: Scene, grid: GeoBox) -> Labels:
    """A raster of labels of any type, or of other bytes, on a grid by nearest."""
    return GridLabels(scene, grid)


class GridLabels:
    """The same, window by window."""

    def __init__(self, scene: Scene, grid: GeoBox) -> None:
        self._own = open_source(scene, (1,))
        moved = on_grid(scene, grid, by_nearest=True)
        self._moved = None if scene.geobox == grid else open_source(moved, (1,), AS_LABELS)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Labels (y, x) of a window. Raises `SceneError` for a value that is no label."""
        if self._moved is None:
            return labels_of(self._own, window)
        raster = self._moved.read(window)
        labels = np.where(raster.valid, raster.values[0], np.uint8(NODATA))
        if self._own.scene.dtype != "uint8" and (raster.valid & (labels == NODATA)).any():
            for block in Window.of_shape(self._own.shape).blocks(AT_ONCE):
                labels_of(self._own, block)  # which tells the value
        return labels


AT_ONCE: Final = (2048, 2048)


class PolygonLabels:
    """Polygons burnt into a grid; what none covers is 0, and where several do, the last one of the file counts."""

    def __init__(self, side: Side, grid: GeoBox, values: NDArray[np.uint8]) -> None:
        frame = side.vector
        if frame is None:
            msg = f"{side.path} has no vector layer"
            raise ValueError(msg)
        # a fixed binary fraction of a pixel makes later shifts by whole pixels exact, so windows agree on every pixel
        self._polygons = to_pixels(frame.to_crs(crs_of(grid).wkt).geometry.to_numpy(), grid, fraction=1024)
        self._tree, self._values = shapely.STRtree(self._polygons), values

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Labels (y, x) of a window."""
        (top, bottom), (left, right) = window.row_range, window.col_range
        here = np.sort(self._tree.query(shapely.box(left, top, right, bottom)))
        if not len(here):
            return np.zeros(window.shape, np.uint8)
        shapes = zip(self._polygons[here], self._values[here].tolist(), strict=True)
        place = Affine.translation(left, top)
        labels: NDArray[np.uint8] = rasterize(shapes, window.shape, transform=place, dtype="uint8")
        return labels
