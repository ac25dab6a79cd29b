"""Two scenes compared by their spectra alone, and the files of it: see `geoseg.changes.spectral`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
from odc.geo.geobox import GeoBox
from rasterio import Affine

from geoseg.catalog import Legend, LegendClass, Provenance, file_asset, result_item, sha256_of
from geoseg.changes import spectral
from geoseg.changes.alignment import Measured
from geoseg.changes.by_class import AREA_UNIT, pixel_areas
from geoseg.changes.ground import CACHED, SAMPLE, around, on, sample, seen_by_both, window_on
from geoseg.changes.indices import INDICES, SAME, UNITS, IndexScales, Quantities, signed, unsigned
from geoseg.changes.planned import BETWEEN, begun, check_order, no_ground, reach_of
from geoseg.changes.variates import VariateScales
from geoseg.errors import OptionError, SceneError
from geoseg.export import AT_ONCE, Count, Observer
from geoseg.footprints import Layer, Outlined, assemble, in_pixels, outline
from geoseg.io.clouds import find_missing, parameters_of, under_clouds
from geoseg.io.cog import Look, write_cog
from geoseg.io.geoparquet import write_parquet
from geoseg.io.pixels import SceneSource, Stretch
from geoseg.io.scenes import as_asked, open_scene, open_source
from geoseg.io.stacks import stacked
from geoseg.io.vectors import read_aoi, write_geojson
from geoseg.planned import asked_by, check_output, fingerprint
from geoseg.raster import NODATA
from geoseg.records import join_changes, set_interval, write_json
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from geoseg.catalog import Scene
    from geoseg.changes.indices import Index
    from geoseg.changes.planned import ChangeJob
    from geoseg.io.clouds import Clouds
    from geoseg.planned import SegmentJob

SPECTRAL: Final = "spectral"
"""The product that needs no model."""

BANDS: Final = ("blue", "green", "red", "rededge", "nir", "nir08", "swir16", "swir22")
"""Bands that are compared if both scenes have them, by common name."""

FEWEST: Final = 2
"""Bands that both scenes must have."""

WIDE: Final = 12.0
"""Robust deviations on either side of a band's median that are told apart when it is read as bytes."""

BRIGHTEST: Final = 99.9
"""Per cent of a band's values that are told apart when an index is taken: from the darkest on."""

UNCHANGED: Final = LegendClass(0, "unchanged", "#f2f2f2")
LEGEND: Final = Legend((UNCHANGED, LegendClass(1, "changed", "#d7301f")), background=0)
INDEX_LEGEND: Final = Legend(
    (UNCHANGED, LegendClass(1, "risen", "#1a9850"), LegendClass(2, "fallen", "#d7301f")), background=0
)
"""Of the difference of an index."""

FILES: Final = ("changes.geojson", "changes.parquet", "changes.tif", "summary.json")

COG, GEOJSON = "image/tiff; application=geotiff; profile=cloud-optimized", "application/geo+json"
ASSETS: Final = {
    "changes": ("changes.geojson", GEOJSON, "what has changed, longitude and latitude"),
    "changes_parquet": ("changes.parquet", "application/vnd.apache.parquet", "what has changed, in the scene's CRS"),
    "changes_raster": ("changes.tif", COG, "which pixels have changed"),
    "magnitude": ("magnitude.tif", COG, "by how much, in tenths of what unchanged ground differs by"),
    "difference": ("difference.tif", COG, "the index after, less the index before"),
    "summary": ("summary.json", "application/json", "numbers of the comparison"),
}


@dataclass(frozen=True, eq=False)
class SpectralPlan:
    """A job whose every input was looked at."""

    job: ChangeJob
    before: SceneSource
    after: SceneSource
    names: tuple[str, ...]
    """Of the bands that are compared."""
    clouds: tuple[tuple[Path, tuple[Clouds, ...]], ...]
    """Of each scene the folder that its clouds are looked for in, if they are to be."""
    folder: Path
    overlap: Window
    tolerance: float
    parameters: dict[str, Any]
    complete: bool

    @property
    def scenes(self) -> tuple[Scene, Scene]:
        """Before and after."""
        return self.before.scene, self.after.scene

    @property
    def raster(self) -> str:
        """The file of what is thresholded."""
        return _raster(self.job.index)

    @property
    def reach(self) -> tuple[int, int]:
        """The tolerance in whole pixels of the scene after: rows, columns."""
        return reach_of(self.tolerance, self.after.scene)


def _method(job: ChangeJob) -> str:
    if job.mad:
        return "multivariate alteration detection"
    return "change vector analysis" if job.index is None else f"difference of {job.index}"


def _raster(index: str | None) -> str:
    return "magnitude.tif" if index is None else "difference.tif"


def plan_spectral(job: ChangeJob) -> SpectralPlan:
    """Look at every input of a job; reads headers and overviews. Raises the errors of `geoseg.errors`."""
    opened = (open_scene(each.scene, select=each.select) for each in (job.before, job.after))
    planned = look_at_spectra(job, *opened)
    if not planned.complete:
        check_output(Path(job.after.out), planned.after.scene)
    return planned


def look_at_spectra(job: ChangeJob, before: Scene, after: Scene) -> SpectralPlan:
    """The same of scenes that are known, without a look at the disk's room."""
    _check_options(job)
    opened = [before, after]
    check_order(job, *opened)
    names = _common_bands(opened, job.after) if job.index is None else _bands_of(job.index, opened, job.after)
    read = [
        _Read.of(scene, names, each, job.index) for scene, each in zip(opened, (job.before, job.after), strict=True)
    ]
    overlap = window_on(read[1].source.scene.geobox, read[0].source.scene.geobox)
    if overlap is None:
        raise no_ground(*opened)
    pixel = max(*read[0].source.scene.ground_resolution, *read[1].source.scene.ground_resolution)
    tolerance = round(pixel, 3) if job.tolerance is None else job.tolerance
    parameters = {
        "method": _method(job),
        "bands": list(names),
        **{when: one.parameters for when, one in zip(("before", "after"), read, strict=True)},
        "aoi": None if job.after.aoi is None else sha256_of(Path(job.after.aoi)),
        "tolerance": tolerance,
        **({"around": job.around} if job.around else {}),  # results without it stay what they are
        "align": job.align,
        "cut": job.cut,
        "min_area": job.after.min_area,
        "simplify": in_pixels(job.after.simplify, read[1].source.scene.geobox),
    }
    parameters = json.loads(json.dumps(parameters))
    folder = Path(job.after.out) / f"{opened[0].id}{BETWEEN}{opened[1].id}"
    clouds = tuple((one.folder, one.clouds) for one in read if one.clouds)
    sources = read[0].source, read[1].source
    complete = not job.after.overwrite and _is_complete(folder, parameters, (*FILES, _raster(job.index)))
    return SpectralPlan(job, *sources, names, clouds, folder, overlap, tolerance, parameters, complete=complete)


def _check_options(job: ChangeJob) -> None:
    """Refuse what needs a map of objects or a model."""
    mapping = job.after
    given = {
        "--model": mapping.model,
        "--match": job.match or None,
        "--threshold": mapping.threshold,
        "--zones": job.zones,
    }
    given["--output-grid"] = None if mapping.output_grid == "target" else mapping.output_grid
    for name, value in given.items():
        if value is not None:
            msg = f"{name} {value}: {SPECTRAL} compares pixels without a model, and knows no objects; leave it out"
            raise OptionError(msg)


def _common_bands(scenes: list[Scene], job: SegmentJob) -> tuple[str, ...]:
    """Names of the bands to compare; of scenes whose bands have no names, their numbers."""
    has = [{name for name in (*scene.bands, *(job.bands or {})) if name} - {"alpha"} for scene in scenes]
    names = tuple(name for name in BANDS if all(name in each for each in has))
    counts = [sum(name != "alpha" for name in scene.bands) for scene in scenes]
    if not any(has) and counts[0] == counts[1] >= FEWEST:
        return tuple(f"band{number}" for number in range(1, counts[0] + 1))
    if len(names) < FEWEST:
        have = [", ".join(name or "unnamed" for name in scene.bands) for scene in scenes]
        msg = f"{scenes[0].path} has the bands {have[0]}, {scenes[1].path} {have[1]}: at least {FEWEST} of "
        raise SceneError(msg + f"{', '.join(BANDS)} must be in both; name them: --bands red=1,nir=4")
    return names


def _bands_of(index: Index, scenes: list[Scene], job: SegmentJob) -> tuple[str, ...]:
    """The two bands of an index. Raises `SceneError` if one of them is not known."""
    names = INDICES[index]
    for scene in scenes:
        lacking = [name for name in names if name not in {*scene.bands, *(job.bands or {})}]
        if lacking:
            have = ", ".join(name or "unnamed" for name in scene.bands)
            msg = f"{scene.path}: has the bands {have}, and --index {index} is of {' and '.join(names)}; name them: "
            raise SceneError(msg + f"--bands {','.join(f'{name}=NUMBER' for name in names)}, or choose another index")
    return names


@dataclass(frozen=True, eq=False)
class _Read:
    """A scene as it is read."""

    source: SceneSource
    folder: Path
    clouds: tuple[Clouds, ...]
    parameters: dict[str, Any]

    @classmethod
    def of(cls, opened: Scene, names: tuple[str, ...], job: SegmentJob, index: Index | None) -> _Read:
        asked, folder = asked_by(job), Path(job.out) / opened.id
        clouds: tuple[Clouds, ...] = ()
        scene, bands = as_asked(opened, names, asked)
        if job.mask_clouds is not None:
            scene, clouds = under_clouds(scene, opened, job.mask_clouds, job.bands or {}, asked.nodata, folder)
        stretch = _wide_stretch(scene, bands, _about_median if index is None else _from_darkest)
        inside = None if job.aoi is None else read_aoi(Path(job.aoi), scene.geobox)
        told = {**fingerprint(scene), "stretch": stretch and dataclasses.asdict(stretch), **parameters_of(clouds)}
        return cls(open_source(scene, bands, stretch, inside), folder, clouds, told)


def _about_median(data: NDArray[np.float64]) -> tuple[float, float]:
    """Many robust deviations about the median, so that bright roofs stay apart."""
    centre = float(np.median(data))
    spread = spectral.MAD * float(np.median(np.abs(data - centre))) or float(data.std()) or 1.0
    return centre - WIDE * spread, centre + WIDE * spread


def _from_darkest(data: NDArray[np.float64]) -> tuple[float, float]:
    """Nearly all of it, so that land in a scene of water stays what it is."""
    low = float(data.min())
    return low, max(float(np.percentile(data, BRIGHTEST)), low + 1)


def _wide_stretch(
    scene: Scene, bands: tuple[int, ...], limits_of: Callable[[NDArray[np.float64]], tuple[float, float]]
) -> Stretch | None:
    """How values become bytes; None: they are bytes already.

    Raises `SceneError` for a scene without data.
    """
    values = open_source(scene, bands).overview(SAMPLE)
    limits = []
    for band in values:
        data = band.compressed().astype(np.float64)
        data = data[np.isfinite(data)]
        if not data.size:
            msg = f"{scene.path}: no pixel has data, so nothing can be compared; check its nodata value, and --mask"
            raise SceneError(msg)
        limits.append(limits_of(data))
    if scene.dtype == "uint8":
        return None
    return Stretch(tuple(low for low, _ in limits), tuple(high for _, high in limits))


def _is_complete(folder: Path, parameters: dict[str, Any], files: tuple[str, ...]) -> bool:
    try:
        item = json.loads((folder / "item.json").read_text(encoding="utf-8"))
        told = item["properties"]["geoseg:parameters"]
    except (OSError, ValueError, KeyError):
        return False
    same = all(told.get(name) == value for name, value in parameters.items())
    return same and all((folder / name).exists() for name in files)


# --- the run


def run_spectral(planned: SpectralPlan, observe: Observer) -> Path:
    """Carry out a plan; the folder of the comparison. Raises `SceneError` if nothing is seen by both."""
    with rasterio.Env(GDAL_CACHEMAX=CACHED + planned.before.cache_bytes() + planned.after.cache_bytes()):
        return _run(planned, observe)


def _run(planned: SpectralPlan, observe: Observer) -> Path:
    for folder, clouds in planned.clouds:
        folder.mkdir(parents=True, exist_ok=True)
        list(find_missing(folder, clouds, ()))
    measured = Measured.of(planned.before, planned.after, planned.overlap, observe, align=planned.job.align)
    pair = _Pair(planned, measured.applied)
    folder = begun(planned.folder)
    tags = {"TIFFTAG_SOFTWARE": f"geoseg {version('geoseg')}"}
    windows = pair.magnitudes(Count(observe, "comparing", pair.size).add)
    write_cog(folder / planned.raster, windows, pair.grid, _look(planned), tags)
    if not pair.histogram.any():
        raise seen_by_both(*planned.scenes)
    cut = _Cut(planned, pair.grid, _threshold(planned, pair))
    with _Codes(folder / planned.raster) as read:
        windows = cut.codes(read, Count(observe, "outlining", pair.size).add)
        write_cog(folder / "changes.tif", windows, pair.grid, Look("changes", cut.legend), tags)
    frame = cut.frame()
    write_geojson(frame, folder / "changes.geojson")
    write_parquet(frame, folder / "changes.parquet")
    content = _summary(planned, measured, pair, cut, len(frame))
    write_json(folder / "summary.json", content)
    _write_item(planned, content)
    return folder


def _units(planned: SpectralPlan) -> int:
    """Codes of a magnitude of 1."""
    return spectral.STEPS if planned.job.index is None else UNITS


def _look(planned: SpectralPlan) -> Look:
    if planned.job.index is None:
        return Look("magnitude", scale=1 / spectral.STEPS)
    return Look(f"difference of {planned.job.index}", scale=1 / UNITS, offset=-SAME / UNITS)


def _threshold(planned: SpectralPlan, pair: _Pair) -> int:
    """The code above which a pixel has changed."""
    cut = planned.job.cut
    if isinstance(cut, str):
        return spectral.threshold_of(pair.histogram, cut, pair.scales.least)
    return min(round(cut * _units(planned)), spectral.LARGEST)


class _Pair:
    """Both scenes on the grid of the second, and how their magnitudes are spread."""

    def __init__(self, planned: SpectralPlan, shift: tuple[float, float]) -> None:
        self.grid, self._reach, self._index = planned.after.scene.geobox, planned.reach, planned.job.index
        self._around = reach_of(planned.job.around, planned.after.scene)
        rows, cols = shift
        elsewhere = GeoBox(self.grid.shape, self.grid.affine @ Affine.translation(-cols, -rows), self.grid.crs)
        self._sources = on(planned.before, elsewhere if any(shift) else self.grid), on(planned.after, self.grid)
        self.histogram = np.zeros(spectral.LARGEST + 1, np.int64)
        self.scales = self._scales(planned, (rows, cols))

    @property
    def size(self) -> int:
        """Pixels."""
        return math.prod(self.grid.shape)

    def _scales(
        self, planned: SpectralPlan, shift: tuple[float, float]
    ) -> spectral.Scales | VariateScales | IndexScales:
        """Of a sample of the ground in common."""
        one, other = sample(planned.before, planned.after, planned.overlap, shift)
        seen = one.valid & other.valid
        if not seen.any():
            raise seen_by_both(*planned.scenes)
        values = one.values.astype(np.uint8), other.values.astype(np.uint8)
        if planned.job.mad:
            return VariateScales.of(*values, seen)
        if planned.job.index is None:
            return spectral.scales_of(*values, seen)
        return IndexScales.of((Quantities.of(planned.before), Quantities.of(planned.after)), *values, seen)

    def magnitudes(
        self, progress: Callable[[int], None], most: tuple[int, int] = AT_ONCE
    ) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Windows that cover the grid, and the magnitude of change in each; of an index, the difference."""
        margin = self._reach[0] + self._around[0] + 1, self._reach[1] + self._around[1] + 1
        for window in Window.of_shape((int(self.grid.shape[0]), int(self.grid.shape[1]))).blocks(most):
            one, other = (source.read(around(window, margin)) for source in self._sources)
            pair = self.scales.normalised(one.values.astype(np.uint8), other.values.astype(np.uint8))
            codes = spectral.magnitudes(*pair, one.valid, other.valid, self._reach)
            if any(self._around):
                codes = spectral.mean_around(codes, self._around)
            if self._index is not None:
                codes = signed(codes, *pair, self._reach)
            apart = codes if self._index is None else unsigned(codes)
            self.histogram += np.bincount(apart[apart != NODATA], minlength=spectral.LARGEST + 1)
            yield window, codes
            progress(window.size)


class _Codes:
    """A raster of codes that was just written, window by window."""

    def __init__(self, path: Path) -> None:
        self._source = open_source(open_scene(path), (1,))

    def __enter__(self) -> Callable[[Window], NDArray[np.uint8]]:
        return lambda window: np.where((raster := self._source.read(window)).valid, raster.values[0], NODATA)

    def __exit__(self, *_: object) -> None:
        self._source.close()


class _Cut:
    """What is above the threshold: codes for a raster, outlines and areas on the way."""

    def __init__(self, planned: SpectralPlan, grid: GeoBox, threshold: int) -> None:
        self._planned, self._grid, self.threshold = planned, grid, threshold
        self.legend = LEGEND if planned.job.index is None else INDEX_LEGEND
        job = planned.job.after
        fewer = in_pixels(job.simplify, grid)
        self._layer = Layer(grid, self.legend, planned.folder.name, simplify=fewer, min_area=job.min_area)
        self._areas = np.rint(pixel_areas(grid) / AREA_UNIT).astype(np.int64)
        self._outlined: list[Outlined] = []
        self.compared = 0
        self.changed = dict.fromkeys((c.value for c in self.legend.classes[1:]), 0)

    def codes(
        self,
        read: Callable[[Window], NDArray[np.uint8]],
        progress: Callable[[int], None],
        most: tuple[int, int] = AT_ONCE,
    ) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        """Windows that cover the grid; 0 unchanged, 1 changed (of an index: risen, 2 fallen), 255 not compared."""
        for window in Window.of_shape((int(self._grid.shape[0]), int(self._grid.shape[1]))).blocks(most):
            told = read(window)
            magnitude = told if self._planned.job.index is None else unsigned(told)
            kind = np.where((self._planned.job.index is None) | (told > SAME), 1, 2)
            codes = np.where(magnitude == NODATA, NODATA, kind * (magnitude > self.threshold)).astype(np.uint8)
            self._outlined.append(outline(window, codes, magnitude, layer=self._layer))
            areas = self._areas[slice(*window.row_range)]
            self.compared += int(areas @ np.count_nonzero(codes != NODATA, axis=1))
            for value in self.changed:
                self.changed[value] += int(areas @ np.count_nonzero(codes == value, axis=1))
            yield window, codes
            progress(window.size)

    def frame(self) -> gpd.GeoDataFrame:
        """A row for each place that has changed."""
        found = assemble(self._outlined, self._layer)
        scenes = zip(("date_before", "date_after"), self._planned.scenes, strict=True)
        return gpd.GeoDataFrame(
            {
                "id": found["id"],
                "status": found["class"],
                "area_m2": found["area_m2"],
                "perimeter_m": found["perimeter_m"],
                "magnitude": (found["confidence"] * spectral.LARGEST / _units(self._planned)).round(2),
                "touches_nodata": found["touches_nodata"],
                **{name: pd.Series([scene.taken] * len(found), dtype="datetime64[us, UTC]") for name, scene in scenes},
            },
            geometry=found.geometry.to_numpy(),
            crs=found.crs,
        )


def _summary(planned: SpectralPlan, measured: Measured, pair: _Pair, cut: _Cut, polygons: int) -> dict[str, Any]:
    scenes = zip(("before", "after"), planned.scenes, strict=True)
    hectares = {each.name: cut.changed.get(each.value, 0) * AREA_UNIT / 10_000 for each in cut.legend.classes[1:]}
    return {
        "product": SPECTRAL,
        **({} if planned.job.index is None else {"index": planned.job.index}),
        "method": planned.parameters["method"],
        "bands": list(planned.names),
        **{
            when: {"scene": s.id, "datetime": s.taken and s.taken.isoformat().replace("+00:00", "Z")}
            for when, s in scenes
        },
        "tolerance_m": planned.tolerance,
        "shift": measured.told(),
        "scales": dataclasses.asdict(pair.scales),
        "cut": planned.job.cut,
        "threshold": cut.threshold / _units(planned),
        "compared_hectares": round(cut.compared * AREA_UNIT / 10_000, 6),
        **{f"{name}_hectares": round(each, 6) for name, each in hectares.items()},
        "polygons": polygons,
    }


def _write_item(planned: SpectralPlan, content: dict[str, Any]) -> None:
    """Write the item, by which the comparison is complete."""
    scene = stacked(*planned.scenes, name=planned.folder.name)
    created = dt.datetime.now(dt.UTC).replace(microsecond=0)
    parameters = {**planned.parameters, "shift": content["shift"]}
    made = Provenance(None, {"geoseg": version("geoseg")}, parameters, created, {"polygons": content["polygons"]})
    assets = {
        key: file_asset(planned.folder / name, kind, title, ["data"], {})
        for key, (name, kind, title) in ASSETS.items()
        if name in {*FILES, planned.raster}
    }
    item = result_item(scene, planned.folder, assets, made)
    item.properties["title"] = f"spectral change: {planned.folder.name.replace(BETWEEN, ' to ')}"
    item.properties["processing:lineage"] = (
        f"{planned.parameters['method']} of {' and '.join(s.name for s in planned.scenes)}"
    )
    set_interval(item, *(each.taken for each in planned.scenes))
    join_changes(item, planned.job.after.collection)
    write_json(planned.folder / "item.json", item.to_dict(include_self_link=False, transform_hrefs=False))
