"""Clouds and their shadows, found by ukis-csmask's networks (extra `clouds`): what they hide is not valid.

The networks know Sentinel-2 and Landsat at 30 m (Wieland et al., Multi-sensor cloud and cloud shadow segmentation with
a convolutional neural network, Remote Sensing of Environment 230, 2019; version 1.0 of the package, trained on SPARCS
and CloudSEN12+). They see cells of about 30 m, means of the scene's pixels, in patches of one lattice that lies where
the scene begins: one raster for the scene, made once, before it is predicted, so that no window and no worker sees
another one. Lattice, taper and padding are those of the package, so that the classes are the package's own.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from geoseg.catalog import Legend, LegendClass, Scene
from geoseg.errors import OptionError, SceneError
from geoseg.io.cog import Look, write_cog
from geoseg.io.scenes import only_these, open_source
from geoseg.raster import NODATA
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

log = logging.getLogger("geoseg")

FILE, NUMBERED = "clouds.tif", "clouds-{}.tif"
"""What the raster of clouds is called, and that of each part of a mosaic."""

CLEAR, CLOUD, SHADOW, BESIDE = range(4)

LEGEND = Legend(
    (
        LegendClass(CLEAR, "clear", "#5b8c5a"),
        LegendClass(CLOUD, "cloud", "#f5f5f5"),
        LegendClass(SHADOW, "shadow", "#4a4e69"),
        LegendClass(BESIDE, "beside", "#c9c9c9"),
    ),
    CLEAR,
)

CELL = 30.0
"""Metres on the ground between cells, which are whole pixels."""

FINEST, COARSEST = 3.0, 61.0
"""Metres on the ground between a scene's pixels."""

PATCH, OVERLAP = 256, 51
"""Cells along a patch, and of it those that it shares with the next."""

SHARE = 0.2
"""The overlap as the taper has it."""

STEP = PATCH - OVERLAP - 1
"""Cells from one patch to the next: the package rounds down twice."""

AROUND = 4
"""Cells around clouds and shadows that are not valid either, for their edges are soft."""

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
FEWEST = 4
"""Bands that the networks know: all of these, or the first four."""

SENTINEL2 = re.compile(r"MSIL(1C|2A)_\d{8}T\d{6}_N(\d{4})")
LANDSAT = re.compile(r"L[COTE]0\d_L([12])[SGT][PRTS]_")
OFFSET_SINCE = 400
"""The processing baseline (04.00) since which Sentinel-2's numbers have an offset."""


@dataclass(frozen=True)
class Clouds:
    """How clouds are found in a scene."""

    scene: Scene
    """With the bands that the network wants."""
    bands: tuple[int, ...]
    names: tuple[str, ...]
    level: str
    """Before (`l1c`) or after (`l2a`) the correction of the atmosphere."""
    scale: float
    offset: float
    """Reflectance is the scene's numbers times `scale`, plus `offset`."""
    cell: tuple[int, int]
    """Rows and columns of a cell."""
    file: str = FILE
    """What the raster of them is called."""

    @property
    def grid(self) -> GeoBox:
        """The cells."""
        rows, cols = (-(-side // step) for side, step in zip(self.scene.shape, self.cell, strict=True))
        whole = self.scene.geobox
        return GeoBox((rows, cols), whole.affine @ Affine.scale(self.cell[1], self.cell[0]), whole.crs)

    @property
    def parameters(self) -> dict[str, Any]:
        """What the result depends on besides the scene."""
        from importlib.metadata import version

        reflectance = {"level": self.level, "scale": self.scale, "offset": self.offset, "bands": list(self.names)}
        return {**reflectance, "ukis-csmask": version("ukis-csmask")}


def clouds_of(asked: str, scene: Scene, named: Mapping[str, int]) -> Clouds:
    """How clouds are to be found in a scene as the user has it: `auto`, `l1c`, `l2a`, or `l2a,SCALE,OFFSET`.

    `named`: bands of the scene, from 1, by common name, which go before what it says. Raises `OptionError` for a scene
    whose reflectance is not known, `SceneError` for one that has not the bands.
    """
    missing = [name for name in ("ukis_csmask", "onnxruntime") if find_spec(name) is None]
    if missing:
        msg = f"--mask-clouds: clouds are found with {missing[0].replace('_', '-')}: pip install 'geoseg[clouds]'"
        raise OptionError(msg)
    level, scale, offset = _reflectance(asked, scene)
    down, along = scene.ground_resolution
    if not FINEST <= min(down, along) <= max(down, along) <= COARSEST:
        msg = f"{scene.path}: its pixels are {down:.3g} x {along:.3g} m on the ground, clouds are found in images of "
        raise OptionError(msg + f"{FINEST:g} to {COARSEST:g} m; leave --mask-clouds out, or give a mask (--mask)")
    own = {name: index for index, name in enumerate(scene.bands, 1) if name} | dict(named)
    own.setdefault("nir", own.get("nir08", 0))  # Landsat's only one
    wanted = BANDS if all(own.get(name) for name in BANDS) else BANDS[:FEWEST]
    absent = [name for name in wanted if not own.get(name)]
    if absent:
        msg = f"{scene.path}: clouds are found in blue, green, red and nir, and it has no {absent[0]}; name its bands: "
        raise SceneError(msg + "--bands blue=1,green=2,red=3,nir=4, or leave --mask-clouds out")
    chosen, bands = only_these(scene, tuple(own[name] for name in wanted))
    cell = tuple(max(1, round(CELL / metres)) for metres in chosen.ground_resolution)
    fill = scene.fill if len(scene.fill) == 1 else ()
    plain = replace(chosen, mask=None, clouds=None, fill=fill)
    return Clouds(plain, bands, wanted, level, scale, offset, (cell[0], cell[1]))


def under_clouds(
    scene: Scene, opened: Scene, asked: str, named: Mapping[str, int], fill: tuple[float, ...], folder: Path
) -> tuple[Scene, tuple[Clouds, ...]]:
    """A scene in which clouds are not valid, and how they are found: of a mosaic in each part by itself.

    So where one part is clouded, another one fills it. `scene` is how it will be read, `opened` the same with all its
    bands; rasters of clouds will lie in `folder`. The rest, and what it raises, is as `clouds_of` has it.
    """
    found = [clouds_of(asked, replace(part, fill=fill), named) for part in opened.parts or (opened,)]
    if len(found) > 1:
        found = [replace(each, file=NUMBERED.format(number)) for number, each in enumerate(found, 1)]
    rasters = [("clouds", str(folder.absolute() / each.file)) for each in found]
    if len(found) == 1:
        return replace(scene, clouds=rasters[0]), tuple(found)
    parts = tuple(replace(part, clouds=raster) for part, raster in zip(scene.parts, rasters, strict=True))
    return replace(scene, parts=parts), tuple(found)


def parameters_of(clouds: Sequence[Clouds]) -> dict[str, Any]:
    """What goes into the parameters of a result."""
    each = [one.parameters for one in clouds]
    return {"clouds": each[0] if len(each) == 1 else each} if each else {}


def files_of(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The rasters of clouds that belong to a result of these parameters."""
    told = parameters.get("clouds", [])
    return (FILE,) if isinstance(told, dict) else tuple(NUMBERED.format(number) for number in range(1, len(told) + 1))


def find_missing(folder: Path, clouds: Sequence[Clouds], entries: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """Write the rasters that are not there as far as the ledger's `entries` tell; what is to be entered for each."""
    counted = _counted(entries)
    for each in clouds:
        if not (folder / each.file).exists() or each.file not in counted:
            told = {"clouds": write_clouds(folder, each)}
            yield told if each.file == FILE else told | {"of": each.file}


def hidden_pixels(entries: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many pixels with data are hidden by what, as a ledger's entries tell: in all parts of a mosaic together."""
    counted = [*_counted(entries).values()]
    return {name: sum(counts[name] for counts in counted) for name in ("cloud", "shadow", "beside")} if counted else {}


def _counted(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The latest counts of each raster."""
    return {str(entry.get("of", FILE)): dict(entry["clouds"]) for entry in entries if "clouds" in entry}


def remove_clouds(folder: Path) -> None:
    """Remove all rasters of clouds, and what tells the names of their classes."""
    for path in folder.glob("clouds*.tif*"):
        path.unlink()


def _reflectance(asked: str, scene: Scene) -> tuple[str, float, float]:
    """Level, scale and offset: as asked, or as the scene's name tells."""
    level, *numbers = asked.strip().lower().split(",")
    if np.dtype(scene.dtype) == np.uint8:
        msg = f"--mask-clouds: {scene.path} holds bytes, which are no reflectance; give the scene as it was published"
        raise OptionError(msg)
    told = _told(" ".join((scene.path, *scene.files)))
    if level not in {"auto", "l1c", "l2a"} or len(numbers) not in {0, 2}:
        msg = f"--mask-clouds {asked}: write auto, l1c or l2a, or with scale and offset of its numbers: l2a,0.0001,-0.1"
        raise OptionError(msg)
    if level == "auto" and told is None:
        msg = f"--mask-clouds auto: the name of {scene.path} does not tell its level; say it: l1c (as measured) or l2a "
        raise OptionError(msg + "(corrected for the atmosphere)")
    try:
        own = (float(numbers[0]), float(numbers[1])) if numbers else None
    except ValueError as error:
        msg = f"--mask-clouds {asked}: scale and offset are numbers, as in l2a,0.0001,-0.1"
        raise OptionError(msg) from error
    floating = (1.0, 0.0) if np.issubdtype(np.dtype(scene.dtype), np.floating) else (0.0001, 0.0)
    scale, offset = own or (told[1:] if told else floating)
    return (told[0] if told and level == "auto" else level), scale, offset


def _told(name: str) -> tuple[str, float, float] | None:
    """What a product's name tells: Sentinel-2's by its processing baseline, Landsat's Collection 2."""
    if found := SENTINEL2.search(name):
        return f"l{found[1].lower()}", 0.0001, -0.1 if int(found[2]) >= OFFSET_SINCE else 0.0
    if found := LANDSAT.search(name):
        return ("l2a", 0.0000275, -0.2) if found[1] == "2" else ("l1c", 0.00002, -0.1)
    return None


def write_clouds(folder: Path, clouds: Clouds) -> dict[str, int]:
    """Write the raster of clouds; how many pixels with data are under clouds, in shadows, and beside them.

    Codes are those of `LEGEND`, 255 where no pixel of a cell has data. Memory is that of a row of patches. Raises
    `SceneError` for a scene that cannot be read, `OutputError` if the disk refuses.
    """
    shape = (int(clouds.grid.shape[0]), int(clouds.grid.shape[1]))
    log.info("%s: looking for clouds in %d x %d cells", clouds.scene.path, *shape)
    parts = [folder / f".clouds.{name}" for name in ("codes", "counts")]
    counts = dict.fromkeys(("cloud", "shadow", "beside"), 0)
    try:
        codes = np.memmap(parts[0], np.uint8, "w+", shape=shape)
        seen = np.memmap(parts[1], np.uint16, "w+", shape=shape)
        for rows, found in _classes(clouds, _network(clouds), seen):
            codes[rows] = np.where(seen[rows] > 0, found, NODATA)

        def bands() -> Iterator[tuple[Window, NDArray[np.uint8]]]:
            for window in Window.of_shape(shape).blocks((1024, shape[1])):
                made = _with_edges(codes, window)
                for name, code in (("cloud", CLOUD), ("shadow", SHADOW), ("beside", BESIDE)):
                    counts[name] += int(seen[window.slices][made == code].sum(dtype=np.int64))
                yield window, made

        write_cog(folder / clouds.file, bands(), clouds.grid, Look("clouds", LEGEND), {})
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return counts


def _with_edges(codes: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """Codes of whole rows, with what is beside clouds and shadows."""
    from scipy import ndimage  # a tenth of a second to import, of every start of a command or worker

    first, last = max(0, window.row_start - AROUND), min(len(codes), window.row_stop + AROUND)
    near = codes[first:last]
    hidden = ndimage.binary_dilation((near == CLOUD) | (near == SHADOW), iterations=AROUND)
    own = slice(window.row_start - first, window.row_stop - first)
    made: NDArray[np.uint8] = np.where((near == CLEAR) & hidden, BESIDE, near)[own].astype(np.uint8)
    return made


def _classes(
    clouds: Clouds, network: Callable[[NDArray[np.float32]], NDArray[np.float32]], seen: NDArray[np.uint16]
) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Rows of cells with their classes, in order; `seen` is filled with how many pixels of each cell have data."""
    from scipy.signal.windows import tukey  # a second to import, of every start of a command or worker

    source = open_source(clouds.scene, clouds.bands)
    rows, cols = seen.shape
    taper = tukey(PATCH, SHARE * 2)
    weight = np.outer(taper, taper)
    total = np.zeros((3, PATCH, _starts(cols)[-1] + PATCH + OVERLAP))
    for top in _starts(rows):
        down = _mirrored(top, rows)
        for left in _starts(cols):
            cells = _cells(clouds, source, seen, down, _mirrored(left, cols))
            total[:, :, left + OVERLAP : left + OVERLAP + PATCH] += network(cells) * weight
        done = slice(max(0, top), min(rows, top + STEP))
        yield done, total[:, done.start - top : done.stop - top, OVERLAP : OVERLAP + cols].argmax(0).astype(np.uint8)
        total = np.concatenate([total[:, STEP:], np.zeros_like(total[:, :STEP])], axis=1)


def _starts(side: int) -> range:
    """Where patches begin along a side, so that all of it is in one's inner part or in two."""
    return range(-OVERLAP, side, STEP)


def _mirrored(start: int, side: int) -> NDArray[np.intp]:
    """Cells along a patch; beyond the scene's edge those on this side of it, as in a mirror."""
    place = np.arange(start, start + PATCH) % (2 * side)
    return np.where(place < side, place, 2 * side - 1 - place)


def _cells(
    clouds: Clouds, source: Any, seen: NDArray[np.uint16], down: NDArray[np.intp], along: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Reflectance (band, y, x) of cells: means of pixels with data, 0 where none has."""
    (top, bottom), (left, right) = ((int(places.min()), int(places.max()) + 1) for places in (down, along))
    (high, wide), (height, width) = clouds.cell, clouds.scene.shape
    window = Window(top * high, min(bottom * high, height), left * wide, min(right * wide, width))
    values, valid = source.raw(window)
    edges = [np.arange(0, side, step) for side, step in zip(window.shape, clouds.cell, strict=True)]
    count = _sums(valid.astype(np.float64)[None], edges)[0]
    total = _sums(np.where(valid, values, 0).astype(np.float64), edges)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0) * clouds.scale + clouds.offset
    mean[:, count == 0] = 0
    seen[top:bottom, left:right] = count
    cells: NDArray[np.float32] = mean[:, down[:, None] - top, along[None] - left].astype(np.float32)
    return cells


def _sums(values: NDArray[np.float64], edges: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    """Sums (band, y, x) of blocks that begin at these rows and columns."""
    sums: NDArray[np.float64] = np.add.reduceat(np.add.reduceat(values, edges[0], axis=1), edges[1], axis=2)
    return sums


def _network(clouds: Clouds) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Probabilities (class, y, x) of a patch's reflectance (band, y, x): clear, cloud, shadow. On one thread."""
    import onnxruntime
    from scipy import special

    home = Path(str((find_spec("ukis_csmask") or _lost()).origin)).parent
    model = home / f"model_{len(clouds.names)}b_{clouds.level}.onnx"
    told = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))["data"]["dataset_statistics"]
    mean, deviation = (np.asarray(each, np.float32)[:, None, None] for each in told["img"])
    order = [clouds.names.index(name) for name in told["band_names"]]
    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = how.inter_op_num_threads = 1  # other threads give other last bits
    session = onnxruntime.InferenceSession(str(model), how, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def predict(cells: NDArray[np.float32]) -> NDArray[np.float32]:
        (scores,) = session.run(None, {given.name: ((cells[order] - mean) / deviation)[None]})
        probabilities: NDArray[np.float32] = special.softmax(scores, axis=1)[0]
        return probabilities

    return predict


def _lost() -> Any:
    msg = "--mask-clouds: ukis-csmask is not installed any more: pip install 'geoseg[clouds]'"
    raise OptionError(msg)
