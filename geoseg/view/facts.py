"""What a folder of results tells of itself, gathered for people: numbers, areas, stages, proof and provenance."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from odc.geo.geobox import GeoBox

from geoseg.catalog import MULTIHASH_SHA256, sha256_of
from geoseg.changes.by_class import pixel_areas
from geoseg.errors import GeosegError, OutputError, SceneError
from geoseg.io.hrefs import Rule
from geoseg.io.scenes import open_scene
from geoseg.io.store import chunks_of, entries_of, job_of, valid_by_chunk
from geoseg.raster import CONFIDENCE_STEPS, NODATA, crs_of, ground_resolution
from geoseg.view.pictures import Imagery, map_grid, read_map, read_part
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

ROWS: Final = 512
"""Of a label map that are counted at a time."""

HASHED: Final = 2_000_000_000
"""Bytes of a folder's files up to which their checksums are looked at for a page."""

CHUNKS_DRAWN: Final = 2_500

LABEL_FILE, CONFIDENCE_FILE = "labels.tif", "confidence.tif"

MAP_FILES: Final = {"labels": LABEL_FILE, "confidence": CONFIDENCE_FILE}


@dataclass(frozen=True)
class Share:
    """Ground of one class, or seconds of one stage, and what part of all it is."""

    name: str
    value: float
    share: float
    colour: str = ""
    """`#rrggbb`; none: the page's own."""


@dataclass(frozen=True)
class Histogram:
    """How often values lie between two edges."""

    title: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    lowest: int = 0
    """How many lie below the first edge."""
    highest: int = 0
    """How many lie above the last one."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and whether it is so."""

    holds: bool
    text: str


@dataclass(frozen=True)
class Work:
    """What a ledger tells of the work."""

    stages: tuple[Share, ...]
    """Seconds, over all workers."""
    pixels: int
    """Predicted, as often as they were."""
    patches: int
    workers: int
    failures: tuple[tuple[str, str], ...]
    """Tile and why, of those that are not done since."""

    @property
    def seconds(self) -> float:
        """Of all stages and workers."""
        return sum(stage.value for stage in self.stages)


@dataclass(frozen=True)
class Map:
    """A scene's folder of results: what its files say, without looking into the rasters."""

    folder: Path
    item: dict[str, Any]
    grid: GeoBox

    @classmethod
    def of(cls, folder: Path) -> Map:
        """Raises `OutputError` for a folder that holds no complete result."""
        item = read_item(folder)
        if "labels" not in item["assets"]:
            msg = f"{folder / 'item.json'}: has no label map among its assets; name a folder that geoseg has written"
            raise OutputError(msg)
        return cls(folder, item, map_grid(folder / LABEL_FILE))

    @property
    def parameters(self) -> dict[str, Any]:
        """What the result depends on."""
        found = self.item["properties"].get("geoseg:parameters", {})
        return found if isinstance(found, dict) else {}

    @property
    def classes(self) -> list[tuple[int, str, str]]:
        """Value, name and colour of each class."""
        return classes_in(self.item["assets"]["labels"])

    @property
    def background(self) -> set[int]:
        """Values of what is no object."""
        return {value for value, name, _ in self.classes if name.lower() == "background"}

    @property
    def metres(self) -> float:
        """Side of a pixel on the ground."""
        return math.prod(ground_resolution(self.grid)) ** 0.5

    @property
    def count(self) -> int:
        """Footprints."""
        return int(self.item["properties"].get("geoseg:counts", {}).get("footprints", 0))


def read_item(folder: Path) -> dict[str, Any]:
    """The STAC item of a folder of results. Raises `OutputError` if there is none."""
    try:
        content = json.loads((folder / "item.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{folder}: holds no complete result (item.json: {getattr(error, 'strerror', None) or error}); "
        raise OutputError(msg + "name a folder that `geoseg segment`, `run` or `change` has written") from error
    if not isinstance(content, dict) or not {"id", "properties", "assets"} <= content.keys():
        msg = f"{folder / 'item.json'}: is no STAC item; name a folder that geoseg has written"
        raise OutputError(msg)
    return content


def classes_in(asset: Mapping[str, Any]) -> list[tuple[int, str, str]]:
    """Value, name and colour of each class that an asset tells."""
    told = asset.get("classification:classes", [])
    return [(int(c["value"]), str(c["name"]), _colour(c.get("color_hint"))) for c in told]


def _colour(hint: object) -> str:
    """A colour of STAC as `#rrggbb`; grey for what is none, for it goes into attributes."""
    text = str(hint or "")
    good = len(text) == len("rrggbb") and all(c in "0123456789abcdefABCDEF" for c in text)
    return f"#{text.lower()}" if good else "#808080"


# --- the scene below a map


@dataclass(frozen=True)
class Below:
    """The scene that a map is of, or why it is not shown."""

    imagery: Imagery | None
    why: str = ""


def scene_below(mapped: Map, given: str | Path | None = None, roots: Iterable[Path] | None = None) -> Below:
    """The scene that a map was made from, if it is still there and the same.

    `given`: where it is, named by the user; any kind of scene. Otherwise the item's links are followed, to local files
    and folders only, never to addresses or to descriptions (VRT) that may name any file. `roots`: the only folders that
    they may lie in; None: anywhere.
    """
    try:
        scene = open_scene(str(given)) if given is not None else open_scene(_linked(mapped, roots))
        imagery = Imagery(scene, mapped.parameters, mapped.grid)
    except (GeosegError, OSError, ValueError) as error:
        return Below(None, f"The scene is not shown: {error}")
    told = mapped.parameters.get("scene", {})
    if given is None and told.get("bytes") and Path(scene.path).is_file():
        now = Path(scene.path).stat().st_size
        if now != told["bytes"]:
            return Below(None, f"The scene is not shown: {scene.name} is not the file that was mapped any more.")
    return Below(imagery)


def _linked(mapped: Map, roots: Iterable[Path] | None) -> Any:
    """What `open_scene` takes: the file, the files by band, or the list of files. Raises `SceneError` if refused."""
    rule = Rule((), tuple(root.resolve() for root in roots or ()))
    home = str(mapped.folder / "item.json")
    links = [link for link in mapped.item.get("links", []) if link.get("rel") == "derived_from"]
    hrefs = [str(link["href"]) for link in links if not str(link.get("type", "")).startswith("application/geo+json")]
    paths = [_permitted(rule, href, home, roots) for href in hrefs]
    told = mapped.parameters.get("scene", {})
    if isinstance(told.get("mask"), dict):
        paths = [path for path in paths if Path(path).name != told["mask"].get("name")]
    if isinstance(told.get("files"), dict):
        return {band: _named(paths, str(state.get("name"))) for band, state in told["files"].items()}
    if not paths:
        msg = "its item links no local file; name the scene with --source"
        raise OutputError(msg)
    return paths[0] if len(paths) == 1 else paths


def _permitted(rule: Rule, href: str, home: str, roots: Iterable[Path] | None) -> str:
    """The path of an href. Raises `SceneError` if it is refused."""
    try:
        return rule.permit(href, home, listed=roots is None)
    except SceneError as error:
        if roots is None:
            raise
        msg = f"{Path(href).name} is no file of the folders that are served; name its folder with --data"
        raise SceneError(msg) from error


def _named(paths: list[str], name: str) -> str:
    found = [path for path in paths if Path(path).name == name]
    if not found:
        msg = f"its item links no file {name}; name the scene with --source"
        raise OutputError(msg)
    return found[0]


# --- numbers


@dataclass(frozen=True)
class Ground:
    """Areas of a label map."""

    classes: tuple[Share, ...]
    """Hectares, of classes in the legend's order; shares of what is seen."""
    seen: int
    """Pixels that have a label."""
    hectares: float
    """Of these."""


def ground_of(mapped: Map, most: int | None = None) -> Ground:
    """Areas by counting pixels, of a map's full resolution, or of an overview of at most so many rows and columns."""
    by_value, seen = np.zeros(256), 0
    for rows, labels, factor in _label_rows(mapped, most):
        counts = np.bincount(labels.ravel(), minlength=256)
        seen += round(int(counts[:NODATA].sum()) * factor)
        by_value += counts * factor * _pixel_area(mapped.grid, rows) / 10_000
    total = float(by_value[:NODATA].sum())
    shares = [
        Share(name, float(by_value[value]), float(by_value[value]) / total if total else 0.0, colour)
        for value, name, colour in mapped.classes
    ]
    return Ground(tuple(shares), seen, total)


def ground_told(mapped: Map) -> Ground | None:
    """Areas as the item has counted them, without a look at the map; None for several kinds of objects."""
    counts = mapped.item["properties"].get("geoseg:counts", {})
    objects = [value for value, _, _ in mapped.classes if value not in mapped.background]
    if len(objects) != 1 or not {"valid_pixels", "object_pixels", "object_area_m2"} <= counts.keys():
        return None
    seen, of_objects = int(counts["valid_pixels"]), int(counts["object_pixels"])
    hectares = counts["object_area_m2"] / 10_000
    total = seen * (
        hectares / of_objects if of_objects else _pixel_area(mapped.grid, (0, int(mapped.grid.shape[0]))) / 10_000
    )
    areas = {value: hectares if value in objects else total - hectares for value, _, _ in mapped.classes}
    shares = (Share(n, areas[v], areas[v] / total if total else 0.0, colour) for v, n, colour in mapped.classes)
    return Ground(tuple(shares), seen, total)


def _label_rows(mapped: Map, most: int | None) -> Iterator[tuple[tuple[int, int], NDArray[np.uint8], float]]:
    """Rows of the map from and to, their labels, and how many of its pixels one of these stands for."""
    rows, cols = (int(side) for side in mapped.grid.shape)
    path = mapped.folder / LABEL_FILE
    if most is not None and max(rows, cols) > most:
        scale = most / max(rows, cols)
        shape = (max(1, round(rows * scale)), max(1, round(cols * scale)))
        yield (0, rows), read_part(path, Window.of_shape((rows, cols)), shape), rows * cols / math.prod(shape)
        return
    for row in range(0, rows, ROWS):
        strip = Window(row, min(row + ROWS, rows), 0, cols)
        yield strip.row_range, read_part(path, strip, strip.shape), 1.0


def _pixel_area(grid: GeoBox, rows: tuple[int, int]) -> float:
    """Square metres on the ground of a pixel in the middle of some rows."""
    middle = (rows[0] + rows[1] - 1) // 2
    part = GeoBox((1, grid.shape[1]), grid.affine @ grid.affine.translation(0, middle), grid.crs)
    return float(pixel_areas(part)[0])


def size_histogram(areas: NDArray[np.float64], title: str = "Size of footprints") -> Histogram:
    """Square metres in steps of a third of an octave of ten, from the smallest to the largest hundredth."""
    known = areas[np.isfinite(areas) & (areas > 0)]
    if not known.size:
        return Histogram(title, "m²", (), ())
    steps = (1, 2, 5)
    low, high = np.percentile(known, (0.5, 99.5))
    edges = [s * 10.0**p for p in range(-2, 9) for s in steps]
    first = max(i for i, edge in enumerate(edges) if edge <= max(low, edges[0]))
    last = next((i for i, edge in enumerate(edges) if edge > high), len(edges) - 1)
    return _histogram(title, "m²", edges[first : last + 1], known)


def confidence_histogram(values: NDArray[np.float64], title: str = "Confidence of footprints") -> Histogram:
    """Confidence from 0 to 1 in twentieths, from the first that is not empty."""
    known = values[np.isfinite(values)]
    first = int(np.floor(known.min() * 20)) if known.size else 0
    return _histogram(title, "", [step / 20 for step in range(min(first, 18), 21)], known)


def _histogram(title: str, unit: str, edges: list[float], values: NDArray[np.float64]) -> Histogram:
    counts, _ = np.histogram(values, edges)
    below, above = int((values < edges[0]).sum()), int((values > edges[-1]).sum())
    return Histogram(title, unit, tuple(edges), tuple(int(c) for c in counts), below, above)


# --- the ledger


def work_of(folder: Path, shape: tuple[int, int]) -> Work:
    """What a scene's ledger tells of the work."""
    entries = list(entries_of(folder))
    tiles = [entry for entry in entries if "tile" in entry]
    seconds = Counter[str]()
    for entry in tiles:
        seconds.update(entry.get("seconds", {}))
    done = valid_by_chunk(entries, shape) >= 0
    failed = [e for e in entries if "failed" in e and not done[chunks_of(Window(*e["failed"]))].all()]
    return Work(
        stages_of(seconds),
        sum(entry.get("valid_pixels", 0) for entry in tiles),
        sum(entry.get("patches", 0) for entry in tiles),
        len({entry.get("worker") for entry in tiles}),
        tuple((_rectangle(Window(*entry["failed"])), str(entry["why"])) for entry in failed),
    )


def stages_of(seconds: Mapping[str, float]) -> tuple[Share, ...]:
    """Seconds by stage, with shares."""
    total = sum(seconds.values())
    return tuple(Share(name, value, value / total if total else 0.0) for name, value in seconds.items())


def _rectangle(window: Window) -> str:
    (row, row_stop), (col, col_stop) = window.row_range, window.col_range
    return f"rows {row} to {row_stop - 1}, columns {col} to {col_stop - 1}"


@dataclass(frozen=True)
class Proof:
    """What was looked at of a result's being complete, and when."""

    checks: tuple[Check, ...]
    when: dt.datetime
    hashed: bool
    """Whether files were compared with their checksums, and not only by their sizes."""
    chunks: tuple[tuple[str, ...], ...]
    """full, part, none (of data) or open (not predicted) for each storage chunk; () if there are too many to draw."""


def proof_of(mapped: Map, ground: Ground, footprints: int) -> Proof:
    """Whether a result is complete, as far as its own files and ledger tell; the scene itself is not read again."""
    shape = (int(mapped.grid.shape[0]), int(mapped.grid.shape[1]))
    valid = valid_by_chunk(entries_of(mapped.folder), shape)
    done, told = int((valid >= 0).sum()), mapped.item["properties"].get("geoseg:counts", {})
    predicted = int(valid[valid >= 0].sum())
    checks = [
        Check(done == valid.size, f"{done:,} of {valid.size:,} storage chunks are predicted, by the ledger."),
        Check(
            predicted == ground.seen == told.get("valid_pixels"),
            f"{ground.seen:,} pixels of labels.tif have a label; the ledger counted {predicted:,} pixels with data, "
            f"the item {told.get('valid_pixels', 0):,}.",
        ),
        Check(
            footprints == told.get("footprints"),
            f"footprints.parquet holds {footprints:,} footprints, the item counted {told.get('footprints', 0):,}.",
        ),
        _same_job(mapped),
    ]
    files, hashed = _file_check(mapped)
    return Proof((*checks, files), now(), hashed, _chunk_states(valid, shape))


def _same_job(mapped: Map) -> Check:
    job = job_of(mapped.folder) or {}
    same = bool(job) and all(mapped.parameters.get(name) == value for name, value in job.items())
    return Check(same, "The ledger is of the same scene, model and parameters as the item.")


def _file_check(mapped: Map) -> tuple[Check, bool]:
    """Whether files are those of the item, by checksum unless that would take long."""
    assets = {str(a["href"]).removeprefix("./"): a for a in mapped.item["assets"].values() if "file:size" in a}
    within = {name: mapped.folder / name for name in assets if Path(name).name == name}
    hashed = sum(int(assets[name]["file:size"]) for name in within) <= HASHED
    wrong = [name for name, path in within.items() if not _is_file_of(path, assets[name], hashed=hashed)]
    how = "size and checksum" if hashed else "size"
    text = f"{len(within) - len(wrong)} of {len(assets)} files have the {how} that the item tells"
    return Check(not wrong and len(within) == len(assets), f"{text}{': not ' * bool(wrong)}{', '.join(wrong)}."), hashed


def _is_file_of(path: Path, asset: dict[str, Any], *, hashed: bool) -> bool:
    if not path.exists():
        return False
    files = [each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()]
    same = sum(each.stat().st_size for each in files) == int(asset["file:size"])
    return same and (not hashed or MULTIHASH_SHA256 + sha256_of(path) == asset.get("file:checksum"))


def _chunk_states(valid: NDArray[np.int64], shape: tuple[int, int]) -> tuple[tuple[str, ...], ...]:
    from geoseg.tiling import CHUNK

    if valid.size > CHUNKS_DRAWN:
        return ()
    rows, cols = (np.diff(np.append(np.arange(0, side, CHUNK), side)) for side in shape)
    sizes = np.outer(rows, cols)
    states = np.select([valid < 0, valid == 0, valid == sizes], ["open", "none", "full"], "part")
    return tuple(tuple(str(state) for state in row) for row in states)


def now() -> dt.datetime:
    """UTC, in whole seconds."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


# --- provenance


def provenance_of(item: dict[str, Any], grid: GeoBox | None) -> tuple[tuple[str, str], ...]:
    """How a result came about, as names and texts."""
    properties = item["properties"]
    model = properties.get("geoseg:model", {})
    software = properties.get("processing:software", {})
    told = [
        ("Made from", str(properties.get("processing:lineage", ""))),
        ("Date of the scene", date_of(item) or "not known"),
        ("Mapped", str(properties.get("created", "")).replace("T", " ").replace("Z", " UTC")),
        ("Model", str(model.get("name", ""))),
        ("Weights, SHA-256", str(model.get("sha256", ""))),
        ("Software", ", ".join(f"{name} {version}" for name, version in software.items())),
        ("Licence of the result", str(properties.get("license", ""))),
    ]
    if grid is not None:
        rows, cols = grid.shape
        down, along = ground_resolution(grid)
        crs = crs_of(grid)
        told += [
            ("Grid", f"{cols:,} x {rows:,} pixels of {down:.3g} x {along:.3g} m on the ground"),
            ("CRS", f"EPSG:{crs.epsg} ({crs.proj.name})" if crs.epsg else crs.proj.name),
        ]
    return tuple((name, text) for name, text in told if text)


def date_of(item: dict[str, Any]) -> str:
    """When the scene was taken; nothing where that is not known."""
    properties = item["properties"]
    if not properties.get("geoseg:datetime_known"):
        return ""
    span = [properties.get("datetime") or properties.get("start_datetime"), properties.get("end_datetime")]
    return " to ".join(str(text)[:10] for text in span if text)


def flattened(parameters: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested parameters as names with dots, and texts."""
    for name, value in parameters.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{above}{name}.")
        else:
            yield (
                f"{above}{name}",
                "none" if value is None else json.dumps(value) if isinstance(value, list) else str(value),
            )


def mean_confidence(mapped: Map, most: int = 1024) -> float | None:
    """Mean probability of all labels, of an overview."""
    codes = read_map(mapped.folder / CONFIDENCE_FILE, most)
    known = codes[codes != NODATA]
    return float(known.mean()) / CONFIDENCE_STEPS if known.size else None
