"""Maps of several dates as one series, and the files of it: see `geoseg.changes.series`."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import shapely

from geoseg.catalog import Legend, LegendClass, Provenance, file_asset, result_item
from geoseg.changes.ground import AT_ONCE, CACHED, around, padded
from geoseg.changes.objects import Objects, Rules
from geoseg.changes.planned import ALL_FILES, begun, default_tolerance, reach_of
from geoseg.changes.series import Stay, smoothed, tracks
from geoseg.changes.transitions import MOST_CLASSES, joint_confidence, transition_legend, transitions
from geoseg.dates import date_reader
from geoseg.errors import OptionError, SceneError
from geoseg.evaluation.inputs import Labels, Side, metric_crs, open_side, raster_on
from geoseg.export import Count, Observer
from geoseg.footprints import Layer, Outlined, assemble, in_pixels, outline
from geoseg.io.cog import Look, write_cog
from geoseg.io.geoparquet import write_parquet
from geoseg.io.scenes import open_scene
from geoseg.io.store import cannot_write, job_of
from geoseg.io.vectors import write_geojson
from geoseg.planned import fingerprint
from geoseg.raster import CONFIDENCE_STEPS, NODATA, crs_of
from geoseg.records import alone_in, derived_from, join_changes, set_interval, write_json
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from geoseg.catalog import Scene

FEWEST: Final = 2
PIXELS_AT_ONCE: Final = 6_000_000
"""Of a window, times dates and classes: some 40 bytes of memory for each."""
LEAST_WINDOW: Final = (64, 128)
"""Rows and columns of a window, however many dates there are."""

COLOURS: Final = ("#f2f2f2", "#440154", "#3b528b", "#21918c", "#5ec962", "#fde725", "#f98e09", "#bc3754", "#57106e")


@dataclass(frozen=True)
class SeriesJob:
    """What the user asks for."""

    maps: tuple[str | Path, ...]
    """In the order of their dates: folders that `geoseg segment` wrote, or label rasters (uint8, 255 = nodata)."""
    out: str | Path
    dates: tuple[dt.datetime, ...] = ()
    """Of each map; (): as the folders' items or the rasters say."""
    stay: float = 0.9
    """How probable it is that a pixel keeps its class from one date to the next."""
    confidence: float = 0.95
    """Of the labels of rasters that come without one."""
    tolerance: float | None = None
    """Metres by which outlines and borders may be off; None = 1.5, or three pixels where those are larger."""
    min_area: float = 4.0
    """Square metres below which a place of change is dropped."""
    simplify: float | None = None
    """Metres by which outlines may leave the pixels' sides; None = one pixel."""
    collection: str | None = None
    """Id of the STAC collection of the maps, if this is to be one of the comparisons beside it."""

    def __post_init__(self) -> None:
        """Refuse what is no series. Raises `OptionError`."""
        for fits, what in (
            (len(self.maps) >= FEWEST, f"a series has {FEWEST} maps or more, got {len(self.maps)}"),
            (
                len(self.dates) in {0, len(self.maps)},
                f"{len(self.maps)} maps and {len(self.dates)} dates; give one each",
            ),
            (0 < self.stay < 1, f"--stay {self.stay}: must be above 0 and below 1"),
            (0 < self.confidence <= 1, f"--confidence {self.confidence}: must be above 0 and at most 1"),
            (self.tolerance is None or self.tolerance >= 0, f"--tolerance {self.tolerance}: must be 0 metres or more"),
        ):
            if not fits:
                raise OptionError(what)


@dataclass(frozen=True, eq=False)
class _Map:
    """The map of one date."""

    side: Side
    scene: Scene
    date: dt.datetime | None
    model: str | None
    """Which one made it, if that is known."""

    @property
    def name(self) -> str:
        path = Path(self.side.path)
        return path.name if path.is_dir() else path.stem

    @property
    def told(self) -> str:
        return self.name if self.date is None else f"{self.date:%Y-%m-%d}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What the map depends on, or else what tells it from another."""
        made = job_of(Path(self.side.path)) if Path(self.side.path).is_dir() else None
        return {"name": self.name, "date": self.date and self.date.isoformat(), "of": made or fingerprint(self.scene)}


@dataclass(frozen=True, eq=False)
class Series:
    """Maps of several dates on the grid of the last one."""

    job: SeriesJob
    maps: tuple[_Map, ...]
    names: dict[int, str]
    tolerance: float

    @cached_property
    def scene(self) -> Scene:
        """Of the last map, on whose grid all are compared."""
        return self.maps[-1].scene

    @cached_property
    def legend(self) -> Legend:
        """The classes, as far as they have names."""
        return Legend(
            tuple(
                LegendClass(value, self.names.get(value, str(value)), COLOURS[value % len(COLOURS)])
                for value in range(max(1, *self.names) + 1)
            ),
            background=None,
        )

    @property
    def model(self) -> Stay:
        """How pixels change."""
        return Stay(len(self.legend.classes), max(self.job.stay, 1 / len(self.legend.classes)))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, columns."""
        return self.scene.shape

    @cached_property
    def parameters(self) -> dict[str, Any]:
        """What the result depends on."""
        job = self.job
        told = {
            "maps": [each.parameters for each in self.maps],
            "stay": self.model.stay,
            "confidence": job.confidence,
            "tolerance": self.tolerance,
            "min_area": job.min_area,
            "simplify": in_pixels(job.simplify, self.scene.geobox),
        }
        as_read: dict[str, Any] = json.loads(json.dumps(told))
        return as_read

    @property
    def complete(self) -> bool:
        """Whether the results of these parameters are there already."""
        folder = Path(self.job.out)
        try:
            item = json.loads((folder / "item.json").read_text(encoding="utf-8"))
            told, assets = item["properties"]["geoseg:parameters"], item["assets"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(told == self.parameters) and all((folder / asset["href"]).exists() for asset in assets.values())


def open_series(job: SeriesJob) -> Series:
    """Look at all maps. Raises the errors of `geoseg.errors`, among them for the wrong order, and other classes."""
    maps = []
    for place, given in enumerate(job.maps):
        _check_apart(Path(given), Path(job.out))
        side = open_side(given)
        if side.raster is None:
            msg = f"{given}: is no label raster; give folders that `geoseg segment` wrote, or label rasters"
            raise OptionError(msg)
        date, model = _told_of(Path(given), side.raster)
        maps.append(_Map(side, side.raster, job.dates[place] if job.dates else date, model))
    check_dates([(str(each.side.path), each.date) for each in maps])
    for one, other in itertools.pairwise(maps):
        if one.model is not None and other.model is not None and one.model != other.model:
            msg = (
                f"{one.side.path} and {other.side.path} are maps of {one.model} and {other.model}; a series is of maps "
            )
            raise OptionError(msg + "that one model made")
        if one.side.names and other.side.names and one.side.names != other.side.names:
            msg = f"{one.side.path} and {other.side.path} have other classes; a series is of maps that one model made"
            raise OptionError(msg)
    names = next((each.side.names for each in maps if each.side.names), {0: "background", 1: "object"})
    if max(names) >= MOST_CLASSES:
        msg = f"{maps[0].side.path}: has classes up to {max(names)}; a series is of at most {MOST_CLASSES}"
        raise OptionError(msg)
    scenes = [each.scene for each in maps]
    tolerance = max(default_tolerance(each, scenes[-1]) for each in scenes) if job.tolerance is None else job.tolerance
    return Series(job, tuple(maps), names, tolerance)


def _check_apart(given: Path, out: Path) -> None:
    """Refuse a folder for results in which a map would be written over. Raises `OptionError`."""
    file, folder = given.resolve(), out.resolve()
    if folder == file or (folder == file.parent and file.name in ALL_FILES):
        msg = f"--out {out}: {given}, one of the maps, is there and would be written over; choose another folder"
        raise OptionError(msg)


def check_dates(dated: Sequence[tuple[str, dt.datetime | None]]) -> None:
    """Refuse paths that are not in the order of their dates, as far as these are known. Raises `OptionError`."""
    for (one, first), (other, second) in itertools.pairwise(dated):
        if first is not None and second is not None and first >= second:
            msg = f"{one} is of {first:%Y-%m-%d}, not before {other} of {second:%Y-%m-%d}; give the maps in "
            raise OptionError(msg + "the order of their dates")


def _told_of(path: Path, scene: Scene) -> tuple[dt.datetime | None, str | None]:
    """The date of a map, or else of its name, and the name of its model, as its item has them, or else its raster."""
    in_name = date_reader(None)(path.name if path.is_dir() else path.stem)
    try:
        told = json.loads((path / "item.json").read_text("utf-8"))["properties"]
        when = told["datetime"]
        return in_name if when is None else dt.datetime.fromisoformat(when), str(told["geoseg:model"]["name"])
    except (OSError, ValueError, KeyError):
        return scene.datetime or in_name, None


# --- the run


def run_series(series: Series, observe: Observer) -> Path:
    """Smooth the history of all pixels, find what has changed and when; the folder of the files.

    Raises `SceneError` if no two dates see anything in common.
    """
    out = Path(series.job.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    with alone_in(out), rasterio.Env(GDAL_CACHEMAX=CACHED):
        begun(out)
        swept = _Swept(series, Count(observe, "comparing", math.prod(series.shape)))
        tags = {"TIFFTAG_SOFTWARE": f"geoseg {version('geoseg')}"}
        since = Legend(
            tuple(
                LegendClass(place, f"{'since' if place else 'before'} {each.told}", COLOURS[place % len(COLOURS)])
                for place, each in enumerate(series.maps)
            ),
            background=None,
        )
        write_cog(out / "since.tif", swept.since(), series.scene.geobox, Look("present class since", since), tags)
        if not swept.compared:
            msg = (
                f"{series.maps[0].side.path} and the others: no pixel is seen at two dates; check that they are of one "
            )
            raise SceneError(msg + "place, and their CRS")
        frame = swept.frame()
        write_geojson(frame, out / "changes.geojson")
        write_parquet(frame, out / "changes.parquet")
        content = _summary(series, frame, swept)
        if all(each.side.vector is not None for each in series.maps):
            layer = _track_frame(series)
            write_geojson(layer, out / "objects.geojson")
            write_parquet(layer, out / "objects.parquet")
            content["objects"] = layer["status"].value_counts().sort_index().to_dict()
        write_json(out / "summary.json", content)
        _write_item(series, content)
    return out


class _Swept:
    """The history of all pixels, window by window: when the present class came, and outlines on the way."""

    def __init__(self, series: Series, progress: Count) -> None:
        self._series, self._progress = series, progress
        grid = series.scene.geobox
        self._labels = [raster_on(each.scene, grid) for each in series.maps]
        self._sure = [self._confidence(each) for each in series.maps]
        self._reach = reach_of(series.tolerance, series.scene)
        legend = transition_legend(series.legend)
        job = series.job
        fewer = in_pixels(job.simplify, grid)
        self._layer = Layer(grid, legend, Path(job.out).name, simplify=fewer, min_area=job.min_area)
        self._found: dict[tuple[int, int], dict[Window, Outlined]] = {}
        self._windows: list[Window] = []
        self.compared = 0

    def _confidence(self, each: _Map) -> Any:
        if each.side.confidence is None:
            return None
        return raster_on(open_scene(each.side.confidence), self._series.scene.geobox)

    def _read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Labels and confidence of all dates (date, y, x) of a window, which may reach beyond the grid."""
        labels = np.stack([padded(each, window, self._series.shape) for each in self._labels])
        code = round(self._series.job.confidence * CONFIDENCE_STEPS)
        sure = [
            np.full(window.shape, code, np.uint8) if each is None else padded(each, window, self._series.shape)
            for each in self._sure
        ]
        return labels, np.stack(sure)

    def _most(self) -> tuple[int, int]:
        side = math.isqrt(PIXELS_AT_ONCE // (len(self._labels) * len(self._series.legend.classes)))
        rows, cols = (min(most, max(least, side)) for most, least in zip(AT_ONCE, LEAST_WINDOW, strict=True))
        return rows, cols

    def since(self, most: tuple[int, int] | None = None) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Windows that cover the grid: the first date of each pixel's present class; 0 = it always had it."""
        margin = (2 * self._reach[0], 2 * self._reach[1])
        inner = tuple(slice(side, -side or None) for side in margin)
        for window in Window.of_shape(self._series.shape).blocks(most or self._most()):
            labels, sure = smoothed(*self._read(around(window, margin)), self._series.model)
            self._windows.append(window)
            yield window, self._compare(window, labels, sure, inner)
            self._progress.add(window.size)

    def _compare(
        self, window: Window, labels: NDArray[np.uint8], sure: NDArray[np.uint8], inner: tuple[slice, ...]
    ) -> NDArray[np.uint8]:
        known, certain, last = labels[0].copy(), sure[0].copy(), np.where(labels[0] == NODATA, NODATA, 0)
        since = last[inner].astype(np.uint8)
        for date in range(1, len(labels)):
            codes = transitions(known, labels[date], len(self._series.legend.classes), self._reach)
            self.compared += int(np.count_nonzero(codes != NODATA))
            changed = (codes != NODATA) & (codes != 0)
            for before in np.unique(last[inner][changed]).tolist():
                mine = np.where(changed & (last[inner] != before), np.uint8(0), codes)
                joint = joint_confidence(certain[inner], sure[date][inner])
                self._found.setdefault((before, date), {})[window] = outline(window, mine, joint, layer=self._layer)
            here = labels[date] != NODATA
            since = np.where(changed | (here[inner] & (since == NODATA)), np.uint8(date * changed), since)
            known, certain = np.where(here, labels[date], known), np.where(here, sure[date], certain)
            last = np.where(here, date, last)
        return since

    def frame(self) -> gpd.GeoDataFrame:
        """A row for each place of one transition between two dates: when its class was last, and first, seen."""
        classes = self._series.legend.classes
        pairs = {f"{a.name} to {b.name}": (a.name, b.name) for a in classes for b in classes}
        parts = []
        for (before, after), pieces in sorted(self._found.items()):
            empty = (window for window in self._windows if window not in pieces)
            whole = {**pieces, **{window: self._nothing(window) for window in empty}}
            found = assemble([whole[window] for window in self._windows], self._layer)
            old, new = (self._series.maps[place] for place in (before, after))
            columns = {
                "id": pd.Series([f"{old.name}/{new.name}/{name}" for name in found["id"]], dtype=str),
                "status": found["class"],
                "class_before": pd.Series([pairs[name][0] for name in found["class"]], dtype=str),
                "class_after": pd.Series([pairs[name][1] for name in found["class"]], dtype=str),
                "area_m2": found["area_m2"],
                "confidence": found["confidence"],
                "last_seen": pd.Series([old.date] * len(found), dtype="datetime64[us, UTC]"),
                "first_seen": pd.Series([new.date] * len(found), dtype="datetime64[us, UTC]"),
                "last_seen_in": pd.Series([old.name] * len(found), dtype=str),
                "first_seen_in": pd.Series([new.name] * len(found), dtype=str),
            }
            parts.append(gpd.GeoDataFrame(columns, geometry=found.geometry.to_numpy(), crs=found.crs))
        if parts:
            return gpd.GeoDataFrame(pd.concat(parts, ignore_index=True), crs=parts[0].crs)
        names = ("id", "status", "class_before", "class_after")
        wkt = crs_of(self._series.scene.geobox).wkt
        return gpd.GeoDataFrame({name: pd.Series([], dtype=str) for name in names}, geometry=[], crs=wkt)

    def _nothing(self, window: Window) -> Outlined:
        nothing = np.zeros(window.shape, np.uint8)
        return outline(window, nothing, nothing, layer=self._layer)


def _summary(series: Series, frame: gpd.GeoDataFrame, swept: _Swept) -> dict[str, Any]:
    told = [{"map": each.side.path, "datetime": each.date and each.date.isoformat()} for each in series.maps]
    areas = frame.groupby(["last_seen_in", "first_seen_in", "status"])["area_m2"].sum() if len(frame) else {}
    return {
        "maps": told,
        "classes": [each.name for each in series.legend.classes],
        "stay": series.model.stay,
        "tolerance_m": series.tolerance,
        "compared_pixels": swept.compared,
        "places": len(frame),
        "hectares": [
            {"last_seen_in": a, "first_seen_in": b, "status": status, "hectares": round(float(area) / 10_000, 6)}
            for (a, b, status), area in dict(areas).items()
        ],
    }


COG, GEOJSON, PARQUET = (
    "image/tiff; application=geotiff; profile=cloud-optimized",
    "application/geo+json",
    "application/vnd.apache.parquet",
)
ASSETS: Final = {
    "history": ("changes.geojson", GEOJSON, "what has changed and when, longitude and latitude"),
    "history_parquet": ("changes.parquet", PARQUET, "what has changed and when, in the last map's CRS"),
    "since": ("since.tif", COG, "since which date each pixel has its present class"),
    "objects": ("objects.geojson", GEOJSON, "each object once, longitude and latitude"),
    "objects_parquet": ("objects.parquet", PARQUET, "each object once, in the last map's CRS"),
    "summary": ("summary.json", "application/json", "numbers of the series"),
}
"""File, media type and title of each asset; those of objects only where the maps have some."""


def _write_item(series: Series, content: dict[str, Any]) -> None:
    """Write the item, by which the series is complete."""
    out, maps = Path(series.job.out), series.maps
    scene = replace(series.scene, id=out.resolve().name, datetime=maps[-1].date)
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    counts = {"places": content["places"], **content.get("objects", {})}
    made = Provenance(None, {"geoseg": version("geoseg")}, series.parameters, now, counts)
    assets = {
        key: file_asset(out / name, kind, title, ["data"], {})
        for key, (name, kind, title) in ASSETS.items()
        if "objects" in content or not name.startswith("objects")
    }
    item = result_item(scene, out, assets, made)
    item.properties["title"] = f"series: {', '.join(each.name for each in maps)}"
    item.properties["processing:lineage"] = f"{', '.join(each.told for each in maps)}, smoothed and compared"
    set_interval(item, maps[0].date, maps[-1].date)
    for each in maps:
        path = Path(each.side.path)
        item.add_link(derived_from(os.path.relpath(path / "item.json" if path.is_dir() else path, out), each.name))
    join_changes(item, series.job.collection)
    write_json(out / "item.json", item.to_dict(include_self_link=False, transform_hrefs=False))


# --- objects


def _track_frame(series: Series) -> gpd.GeoDataFrame:
    """A row for each object of the series: its id in all dates, when it was first and last seen, its latest outline."""
    crs = crs_of(series.scene.geobox).wkt
    layers = [_footprints(each, crs) for each in series.maps]
    found = tracks([_objects(layer, series) for layer in layers], Rules(series.tolerance))
    rows = pd.concat(
        [
            pd.DataFrame(
                {"track": track, "date": date, "id": layer["id"].astype(str).to_numpy(), "at": range(len(layer))}
            )
            for date, (layer, track) in enumerate(zip(layers, found, strict=True))
        ],
        ignore_index=True,
    )
    rasters = [raster_on(each.scene, series.scene.geobox) for each in series.maps]
    told = [_track_row(series, layers, rasters, members) for _, members in rows.groupby("track", sort=True)]
    columns = pd.DataFrame(told, columns=["id", "status", "first_seen", "last_seen", "seen", "ids", "geometry"])
    for name in ("first_seen", "last_seen"):
        columns[name] = pd.Series(columns[name], dtype="datetime64[us, UTC]")
    return gpd.GeoDataFrame(columns.drop(columns="geometry"), geometry=list(columns["geometry"]), crs=crs)


def _footprints(each: _Map, crs: str) -> gpd.GeoDataFrame:
    return gpd.read_parquet(Path(each.side.path) / "footprints.parquet").to_crs(crs)


def _objects(layer: gpd.GeoDataFrame, series: Series) -> Objects:
    shapes = layer.to_crs(metric_crs(series.scene.geobox)).geometry.to_numpy()
    broken = ~shapely.is_valid(shapes)
    shapes[broken] = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
    sure = np.ones(len(layer))
    return Objects(layer["id"].to_numpy(object), shapes, sure, sure, sure)


def _track_row(
    series: Series, layers: Sequence[gpd.GeoDataFrame], rasters: Sequence[Labels], members: pd.DataFrame
) -> tuple[Any, ...]:
    first, last = int(members["date"].min()), int(members["date"].max())
    latest = members[members["date"] == last]
    geometry = shapely.union_all(layers[last].geometry.to_numpy()[latest["at"].to_numpy()])
    point = shapely.point_on_surface(geometry)
    came, left = (any(_sees(each, point, series) for each in some) for some in (rasters[:first], rasters[last + 1 :]))
    status = {(False, False): "there", (True, False): "new", (False, True): "gone", (True, True): "new and gone"}
    beginning = members[members["date"] == first].iloc[0]
    ids = ";".join(
        f"{series.maps[date].name}:{name}" for date, name in zip(members["date"], members["id"], strict=True)
    )
    name = f"{series.maps[first].name}:{beginning['id']}"
    dates = series.maps[first].date, series.maps[last].date
    return name, status[came, left], *dates, int(members["date"].nunique()), ids, geometry


def _sees(raster: Labels, point: shapely.Point, series: Series) -> bool:
    """Whether a map has data where a point in the last one's CRS is."""
    col, row = ~series.scene.geobox.affine @ (point.x, point.y)
    window = Window(math.floor(row), math.floor(row) + 1, math.floor(col), math.floor(col) + 1)
    return bool(padded(raster, window, series.shape)[0, 0] != NODATA)
