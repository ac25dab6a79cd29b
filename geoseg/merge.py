"""`merge`: the footprints of an archive's overlapping scenes as one layer, each building once.

Writes OUT/footprints.parquet and OUT/footprints.geojson, assets of the collection, which also says how they were made
and from what. What is kept and what is joined is decided in `geoseg.duplicates`; here are the files around it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RasterioWindow

from geoseg.borders import View
from geoseg.catalog import MULTIHASH_SHA256, file_asset, sha256_of
from geoseg.dates import date_reader
from geoseg.duplicates import Merge, one_layer
from geoseg.errors import OptionError, OutputError
from geoseg.footprints import in_pixels
from geoseg.io.geoparquet import ROWS_TOGETHER, parquet_file
from geoseg.io.vectors import geojson_file
from geoseg.raster import NODATA
from geoseg.records import BACKGROUND, MERGE, MERGED, alone_in, items_of, read_collection, write_merged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.duplicates import Observe
    from geoseg.window import Window


@dataclass(frozen=True)
class Merged:
    """How merging went."""

    scenes: int
    footprints: int
    """Of the layer."""
    duplicates: int
    """Left out, because a better view of the same was kept."""
    joined: int
    """Of the layer, put together across borders."""
    covered: int
    """Left out, because less than the least area was left of them beside better ones."""
    anew: bool
    """Whether anything was to be done."""


def merge(
    out: Path,
    how: Merge,
    *,
    overwrite: bool = False,
    cell: float | None = None,
    observe: Observe = lambda _stage, _done, _total: None,
) -> Merged:
    """Merge the footprints of all results in OUT; see `geoseg.duplicates.one_layer`.

    Raises `OutputError` if OUT holds no results, cannot be written, or is at work; `OptionError` if there is nothing to
    be merged, as in land cover, or no CRS that holds all of it.
    """
    read_collection(out)
    with alone_in(out):
        return merge_results(out, how, overwrite=overwrite, cell=cell, observe=observe)


def merge_results(
    out: Path,
    how: Merge,
    *,
    overwrite: bool = False,
    cell: float | None = None,
    observe: Observe = lambda _stage, _done, _total: None,
) -> Merged:
    """The same for who is alone in OUT already."""
    content = read_collection(out)
    check_background(out, content.get(BACKGROUND, "unknown"))
    views = views_of(out, content["id"])
    wanted = {**how.model_dump(), "inputs": _fingerprint(views, out)}
    before = content.get(MERGE, {})
    if not overwrite and before.items() >= wanted.items() and _are_there(out, content):
        return Merged(**before["counts"], anew=False)
    footprints = 0
    with (
        tempfile.TemporaryFile(dir=out) as spool,
        parquet_file(out / MERGED["footprints_parquet"]) as rows,
        geojson_file(out / MERGED["footprints"]) as features,
    ):
        layer = one_layer(views, how, cell=cell, spool=spool, observe=observe)
        for frame in layer.frames(observe):
            rows(frame)
            features(frame)
            footprints += len(frame)
    merged = Merged(len(views), footprints, **asdict(layer.counts), anew=True)
    counts = {name: value for name, value in asdict(merged).items() if name != "anew"}
    write_merged(out, content, _assets(out), {**wanted, "counts": counts, "software": {"geoseg": version("geoseg")}})
    return merged


def check_background(where: Path | str, background: int | str | None) -> None:
    """Raises `OptionError` for a product whose polygons cover all of the ground."""
    if background is None:
        msg = f"{where}: its product has no background class, so its polygons cover all of the ground of each scene; "
        raise OptionError(msg + "merging is for objects such as buildings")
    if isinstance(background, str):
        msg = (
            f"{where}: was mapped by an earlier version of geoseg; `geoseg run` the job again, which computes nothing "
        )
        raise OutputError(msg + "anew, and then merge")


def findings(out: Path, *, wanted: bool) -> Iterator[str]:
    """What is wrong with the merged footprints in OUT; `wanted`: whether its job asks for any.

    Raises `OutputError` if OUT has no collection.
    """
    content = read_collection(out)
    if MERGE not in content:
        if wanted:
            yield f"{MERGED['footprints_parquet']}: is not there; `geoseg merge` makes it"
        return
    for key, name in MERGED.items():
        path = out / name
        if not path.exists():
            yield f"{name}: is not there"
        elif MULTIHASH_SHA256 + sha256_of(path) != content["assets"][key]["file:checksum"]:
            yield f"{name}: its checksum is not that of its collection; it was changed or damaged"
    if content[MERGE]["inputs"] != _fingerprint(views_of(out, content["id"]), out):
        yield f"{MERGED['footprints_parquet']}: was made of other results than are there now; `geoseg merge` renews it"


def _are_there(out: Path, content: dict[str, Any]) -> bool:
    def size(name: str) -> int:
        return (out / name).stat().st_size if (out / name).exists() else -1

    return all(size(name) == content["assets"][key]["file:size"] for key, name in MERGED.items())


def _assets(out: Path) -> dict[str, Any]:
    told = {
        "footprints": ("application/geo+json", "all footprints as one layer, longitude and latitude"),
        "footprints_parquet": ("application/vnd.apache.parquet", "all footprints as one layer"),
    }
    return {key: file_asset(out / MERGED[key], kind, title, ["data"], {}) for key, (kind, title) in told.items()}


# --- results as they lie in OUT


@dataclass(frozen=True)
class FileResults:
    """What is read of a scene's folder."""

    folder: Path

    @cached_property
    def _path(self) -> Path:
        return self.folder / "footprints.parquet"

    def footprints(self, bounds: tuple[float, float, float, float] | None = None) -> Iterator[gpd.GeoDataFrame]:
        """As `Results` has it. Raises `OutputError` if the file is damaged."""
        try:
            if bounds is not None:
                yield gpd.read_parquet(self._path, bbox=bounds)
                return
            frame = None
            for batch in pq.ParquetFile(self._path).iter_batches(ROWS_TOGETHER):
                frame = _frame(batch.drop_columns(["bbox"]))
                yield frame
            if frame is None:
                yield gpd.read_parquet(self._path)
        except (OSError, ValueError, pa.ArrowException) as error:
            msg = f"{self._path}: cannot be read: {error}; `geoseg verify` tells what else is damaged"
            raise OutputError(msg) from error

    def columns(self) -> frozenset[str]:
        """As `Results` has it. Raises `OutputError` if the file is damaged."""
        return self._columns

    @cached_property
    def _columns(self) -> frozenset[str]:
        try:
            return frozenset(pq.read_schema(self._path).names) - {"bbox", "geometry"}
        except (OSError, pa.ArrowException) as error:
            msg = f"{self._path}: cannot be read: {error}; `geoseg verify` tells what else is damaged"
            raise OutputError(msg) from error

    def valid(self, window: Window, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """As `Results` has it. Raises `OutputError` if the file is damaged."""
        path = self.folder / "labels.tif"
        (row, col), (rows, cols) = (window.row_start, window.col_start), window.shape
        try:
            with rasterio.open(path) as dataset:
                labels = dataset.read(1, window=RasterioWindow(col, row, cols, rows), out_shape=shape)
        except rasterio.errors.RasterioError as error:
            msg = f"{path}: cannot be read: {error}; `geoseg verify` tells what else is damaged"
            raise OutputError(msg) from error
        return np.asarray(labels != NODATA)


def _frame(batch: Any) -> gpd.GeoDataFrame:
    """Footprints of a part of a file, without a CRS."""
    rows = batch.to_pandas()
    return gpd.GeoDataFrame(rows.drop(columns="geometry"), geometry=shapely.from_wkb(rows["geometry"].to_numpy()))


def views_of(out: Path, collection: str) -> list[View]:
    """The results in OUT that are of a collection. Raises `OutputError` if there are none."""
    views = [_view(out / item["id"], item) for item in items_of(out, collection)]
    if not views:
        msg = f"{out}: holds no results of {collection}; `geoseg run` its job first"
        raise OutputError(msg)
    return views


def _view(folder: Path, item: dict[str, Any]) -> View:
    properties = item["properties"]
    try:
        crs = properties.get("proj:code") or properties["proj:wkt2"]
        rows, cols = properties["proj:shape"]
        parameters = properties["geoseg:parameters"]
        known = properties["geoseg:datetime_known"]
        grid = GeoBox((rows, cols), rasterio.Affine(*properties["proj:transform"][:6]), crs)
        return View(
            item["id"],
            grid,
            FileResults(folder),
            dt.datetime.fromisoformat(properties["datetime"]) if known else date_reader(None)(item["id"]),
            float(parameters["simplify"]) + in_pixels(float(parameters.get("smooth", 0)), grid),
            float(parameters["min_area"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{folder / 'item.json'}: not the item of a result: {type(error).__name__}: {error}; map the scene again"
        raise OutputError(msg) from error


def _fingerprint(views: list[View], out: Path) -> str:
    """What the merged footprints are made of, in short."""
    told = []
    for view in sorted(views, key=lambda view: view.scene):
        item = json.loads((out / view.scene / "item.json").read_text(encoding="utf-8"))
        files = [item["assets"][key]["file:checksum"] for key in ("footprints_parquet", "labels")]
        told.append([view.scene, *files, str(view.datetime), view.simplify, view.min_area])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
