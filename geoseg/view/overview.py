"""The page of an archive: where its scenes are, how far each is, totals; details are on a page for each scene."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from geoseg.changes.planned import BETWEEN
from geoseg.errors import GeosegError
from geoseg.io.zarr_maps import MAPS
from geoseg.records import FAILED, RUN, read_list
from geoseg.view.facts import (
    LABEL_FILE,
    Map,
    Share,
    Work,
    confidence_histogram,
    date_of,
    flattened,
    ground_of,
    ground_told,
    now,
    provenance_of,
    size_histogram,
    stages_of,
    work_of,
)
from geoseg.view.pages import outlines, told_without_maps, viewer_of
from geoseg.view.render import REPORT, UNKNOWN, Page, Row, amount
from geoseg.view.shapes import packed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.export import Observer

SAMPLED: Final = 1024
"""Rows and columns of a label map's overview by which an archive's areas are counted."""

ACROSS: Final = 4096
"""Pixels across the map of an archive."""

SEEN: Final = 7
"""CSS pixels along a scene's mark at least: scenes may be far apart."""

WHERE: Final = ["id", "state", "footprints", "density_per_ha", "confidence", "seen_ha", "page"]

HEAD: Final = ("Date", "Megapixels", "Has data", "Seen, ha", "Footprints", "Per ha", "Median confidence", "Mpx per s")


@dataclass(frozen=True)
class Entry:
    """A scene of an archive that is mapped, in numbers."""

    mapped: Map
    outline: Any
    """Longitude and latitude."""
    seen: float
    """Hectares."""
    share: float
    """Of pixels, with data."""
    classes: tuple[Share, ...]
    areas: NDArray[np.float64]
    confidence: NDArray[np.float64]
    work: Work

    @property
    def name(self) -> str:
        """Of the scene's folder."""
        return self.mapped.folder.name


def entry_of(folder: Path) -> Entry:
    """What is told of a scene, from its item, its ledger, two columns and an overview. Raises `OutputError`."""
    mapped = Map.of(folder)
    ground = ground_told(mapped) or ground_of(mapped, SAMPLED)
    table = pq.read_table(folder / "footprints.parquet", columns=["area_m2", "confidence"])
    rows, cols = (int(side) for side in mapped.grid.shape)
    valid = int(mapped.item["properties"].get("geoseg:counts", {}).get("valid_pixels", ground.seen))
    return Entry(
        mapped,
        shapely.from_geojson(json.dumps(mapped.item["geometry"])),
        ground.hectares,
        valid / (rows * cols),
        ground.classes,
        table["area_m2"].to_numpy().astype(np.float64),
        table["confidence"].to_numpy().astype(np.float64),
        work_of(folder, (rows, cols)),
    )


@dataclass(frozen=True)
class Archive:
    """What a folder with many results tells."""

    entries: tuple[Entry, ...]
    others: tuple[tuple[str, str, str], ...]
    """Name, state and why, of scenes that are not mapped."""
    run: dict[str, Any] | None
    """The list of the latest run, if there was one."""
    places: tuple[tuple[str, Any], ...]
    """Names and outlines of what failed, as far as they are known."""


def read_archive(
    out: Path,
    observe: Observer = lambda _stage, _done, _total: None,
    known: dict[str, tuple[int, Entry]] | None = None,
) -> Archive:
    """Look at all results below a folder; one that is damaged is among those that are not mapped.

    `known`: what was read before, by the folder's name with the time of its item; it is brought up to date.
    """
    known = {} if known is None else known
    folders = sorted(path.parent for path in out.glob("*/item.json") if _is_map(path.parent))
    entries, others = [], {}
    for count, folder in enumerate(folders, 1):
        try:
            when = (folder / "item.json").stat().st_mtime_ns
            if known.get(folder.name, (0,))[0] != when:
                known[folder.name] = when, entry_of(folder)
            entries.append(known[folder.name][1])
        except (GeosegError, OSError, ValueError, KeyError) as error:
            others[folder.name] = ("failed", str(error))
        observe("reading", count, len(folders))
    run = read_list(out) if (out / RUN).exists() else None
    if run is not None:
        from geoseg.audit import status  # which knows all that maps

        listed, faults = status(out)
        done = {entry.name for entry in entries}
        others |= {each.id: (each.how, each.why or "") for each in listed if each.id not in done}
        others |= {name: ("failed", why) for name, why in faults}
    return Archive(
        tuple(entries), tuple((name, *told) for name, told in others.items()), run, tuple(_failed_places(out))
    )


def _is_map(folder: Path) -> bool:
    return (folder / LABEL_FILE).exists() or (folder / MAPS).is_dir()


def _failed_places(out: Path) -> Iterable[tuple[str, Any]]:
    if not (out / FAILED).exists():
        return
    content = json.loads((out / FAILED).read_text(encoding="utf-8"))
    for feature in content["features"]:
        if feature.get("geometry"):
            yield str(feature["properties"]["scene"]), shapely.from_geojson(json.dumps(feature["geometry"]))


def archive_page(out: Path, archive: Archive, notes: tuple[str, ...] = ()) -> Page:
    """The page of many scenes."""
    entries, states = archive.entries, Counter(how for _, how, _ in archive.others)
    failures = tuple((name, why) for name, how, why in archive.others if how == "failed" or why)
    footprints, seen = sum(len(e.areas) for e in entries), sum(e.seen for e in entries)
    numbers = [("Scenes mapped", f"{len(entries):,}")]
    numbers += [(how.capitalize(), f"{count:,}") for how, count in states.items()]
    numbers += [("Footprints", f"{footprints:,}"), ("Seen", f"{amount(seen)} ha")]
    sure = np.concatenate([e.confidence for e in entries]) if entries else np.zeros(0)
    numbers += [("Median confidence", f"{np.median(sure):.2f}" if sure.size else UNKNOWN)]
    return Page(
        title=_title(out, archive),
        subtitle=" · ".join(_about(entries)),
        numbers=tuple(numbers),
        made=now(),
        viewer=_viewer(archive),
        notes=notes,
        areas=_areas(entries),
        histograms=_histograms(entries, sure),
        work=_work(entries),
        failures=failures,
        provenance=provenance_of(entries[0].mapped.item, None)[2:] if entries else (),
        parameters=tuple(flattened((archive.run or {}).get("job", {}))),
        links=tuple((folder.name.replace(BETWEEN, " to "), _href(folder.name)) for folder in changes_in(out)),
        head=HEAD,
        rows=(*map(_row, entries), *(_blank(name, how) for name, how, _ in archive.others)),
    )


def changes_in(out: Path) -> list[Path]:
    """Folders of changes between maps below a folder."""
    folders = (path.parent for path in out.glob("*/summary.json"))
    made = (each for each in folders if (each / "item.json").exists())
    return sorted(each for each in made if told_without_maps(each) is None)


def _title(out: Path, archive: Archive) -> str:
    told = (archive.run or {}).get("job", {}).get("title")
    return str(told or f"Results in {out.resolve().name}")


def _about(entries: tuple[Entry, ...]) -> list[str]:
    models = Counter(str(e.mapped.item["properties"].get("geoseg:model", {}).get("name", "")) for e in entries)
    dates = sorted(filter(None, (date_of(e.mapped.item) for e in entries)))
    span = [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"] if dates else []
    return [
        ", ".join(filter(None, models)),
        *span,
        "where scenes overlap, their ground and buildings count more than once",
    ]


def _histograms(entries: tuple[Entry, ...], sure: NDArray[np.float64]) -> tuple[Any, ...]:
    if not entries:
        return ()
    return size_histogram(np.concatenate([e.areas for e in entries])), confidence_histogram(sure)


def _areas(entries: tuple[Entry, ...]) -> tuple[Share, ...]:
    """Of all scenes together, class by class; by overviews, so to about a thousandth."""
    total: dict[str, float] = {}
    colours: dict[str, str] = {}
    for entry in entries:
        for share in entry.classes:
            total[share.name] = total.get(share.name, 0.0) + share.value
            colours.setdefault(share.name, share.colour)
    everything = sum(total.values())
    return tuple(Share(n, v, v / everything if everything else 0.0, colours[n]) for n, v in total.items())


def _work(entries: tuple[Entry, ...]) -> Work | None:
    seconds = Counter[str]()
    for entry in entries:
        seconds.update({stage.name: stage.value for stage in entry.work.stages})
    pixels, patches = (sum(getattr(e.work, name) for e in entries) for name in ("pixels", "patches"))
    return Work(stages_of(seconds), pixels, patches, 0, ()) if seconds else None


def _row(entry: Entry) -> Row:
    rows, cols = (int(side) for side in entry.mapped.grid.shape)
    density, seconds = _density(entry), entry.work.seconds
    rate = entry.work.pixels / 1e6 / seconds if seconds else math.nan
    sure = float(np.median(entry.confidence)) if entry.confidence.size else math.nan
    date, megapixels = date_of(entry.mapped.item), rows * cols / 1e6
    cells = (
        (date, date or UNKNOWN),
        _cell(megapixels, amount(megapixels)),
        _cell(entry.share, f"{entry.share:.1%}"),
        _cell(entry.seen, amount(entry.seen)),
        _cell(len(entry.areas), f"{len(entry.areas):,}"),
        _cell(density, amount(density)),
        _cell(sure, f"{sure:.3f}"),
        _cell(rate, f"{rate:.2f}"),
    )
    return Row(entry.name, "complete", cells, _href(entry.name))


def _cell(value: float, text: str) -> tuple[float | str, str]:
    return (round(value, 6), text) if math.isfinite(value) else (-1.0, UNKNOWN)


def _blank(name: str, how: str) -> Row:
    return Row(name, how, tuple(((-1.0, UNKNOWN),) * len(HEAD)))


def _href(name: str) -> str:
    return f"{quote(name, safe='')}/{REPORT}"


def _density(entry: Entry) -> float:
    return len(entry.areas) / entry.seen if entry.seen else 0.0


def _viewer(archive: Archive) -> dict[str, Any] | None:
    """Outlines of scenes on a map of longitude and latitude, as wide as it is high where they are."""
    rows = [_told(entry) for entry in archive.entries]
    rows += [{"id": name, "state": "failed", "geometry": outline} for name, outline in archive.places]
    if not rows:
        return None
    frame = gpd.GeoDataFrame(rows, columns=[*WHERE, "geometry"], geometry="geometry", crs=4326)
    frame["footprints"] = frame["footprints"].astype("Float64")
    grid, metres = _world(frame.total_bounds)
    layer = outlines("scenes", "Scenes", packed(frame, grid, {}), "state")
    return viewer_of(grid, metres, [{**layer, "fill": 0.45, "least": SEEN}])


def _told(entry: Entry) -> dict[str, Any]:
    sure = float(np.median(entry.confidence)) if entry.confidence.size else None
    return {
        "id": entry.name,
        "state": "complete",
        "footprints": len(entry.areas),
        "density_per_ha": _density(entry),
        "confidence": sure,
        "seen_ha": entry.seen,
        "page": _href(entry.name),
        "geometry": entry.outline,
    }


METRES_PER_DEGREE: Final = 111_320.0


def _world(bounds: NDArray[np.float64]) -> tuple[GeoBox, float]:
    """A grid over longitudes and latitudes with some room around, and metres along the side of its pixels."""
    west, south, east, north = (float(v) for v in bounds)
    flat = max(math.cos(math.radians((south + north) / 2)), 0.05)
    span = max((east - west) * flat, north - south, 1e-5) * 1.08
    step = span / ACROSS
    cols, rows = (max(16, math.ceil(side / step)) for side in ((east - west) * flat * 1.08, (north - south) * 1.08))
    left, top = (west + east) / 2 - cols * step / flat / 2, (south + north) / 2 + rows * step / 2
    return GeoBox((rows, cols), Affine(step / flat, 0, left, 0, -step, top), 4326), step * METRES_PER_DEGREE
