"""`seams`: what the overlap of patches is worth on a scene, beside what it costs.

A network knows least at the rim of a patch, so where patches only just meet labels change at their borders (Huang et
al. 2018, "Tiling and Stitching Segmentation Output for Remote Sensing", arXiv:1805.12219). Accuracy over all pixels
does not see that, for few pixels lie there. So labels are compared beside the borders, with labels that do not depend
on where patches lie: those of a dense lattice, a patch every eighth of one. (Buglakova et al. 2025, arXiv:2503.19545,
compare patches that overlap, as "tile mismatch"; a dense lattice also tells strides apart whose patches are blended.)

**Near** is a pixel less than `NEAR` pixels of the network's input from a line on which a patch begins or ends, along
either axis; **far** one that is more than `FAR` away from all of them. Some ground is harder than other ground, so both
must be the same: a stride's lattice is laid several times, each time moved, and only pixels count that are near in one
of them and far in another. The **seam excess** is the share of them that differ from the reference where they are near,
less the share of the very same pixels that differ where they are far. For **boundaries** (pixels beside one of another
class, in either map) it is the share with none of the other map within `TOLERANCE` pixels, near less far: what a
boundary F1 (Csurka et al. 2013) leaves out.

All lattices go through the engine of a run, and a patch that several of them have goes through the network once.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from geoseg.catalog import bundled_models, find_model
from geoseg.errors import OptionError, SceneError
from geoseg.models.backends import TORCH
from geoseg.planned import SegmentJob, check_machine, look, patch_on_scene
from geoseg.raster import NODATA, Raster
from geoseg.tiling import Tiling
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.export import Observer
    from geoseg.models.weights import Predict
    from geoseg.predict import Decision, Lanes
    from geoseg.raster import Band, Source
    from geoseg.tiling import Axis

DENSE = 8
"""Patches of the reference along a patch."""

OVERLAPS = (8, 7, 6, 5, 4)
"""Strides that are looked at unless it is told, in eighths of a patch: from none to half a patch."""

LATTICES = 4
"""How often a stride's lattice is laid, each time moved by this part of it along both axes."""

NEAR, FAR, TOLERANCE = 8, 16, 2
"""Pixels of the network's input: nearer than the first to a border, farther than the second from all; see above."""

LIMIT = 0.001
"""The seam excess under which a stride's seams are not worth another forward pass: a thousandth of the pixels."""

WINDOWS = 4
"""Places that are looked at, of two patches by two each."""

KEPT = 1 << 30
"""Bytes of scores that are kept for the next lattice; what is above is computed again."""

SURE = 1.96
"""Standard errors on either side of an estimate between which the truth lies in 95 of 100 cases."""


@dataclass(frozen=True)
class Zones:
    """Lengths in pixels of the scene."""

    near: int
    far: int
    tolerance: int
    block: int
    """Side of the squares whose scatter tells how sure the shares are."""

    @classmethod
    def of(cls, patch: int, on_scene: int) -> Zones:
        """Those of a network's `patch`, which has so many pixels `on_scene`."""
        near, far, tolerance = (max(1, round(length * on_scene / patch)) for length in (NEAR, FAR, TOLERANCE))
        return cls(near, far, tolerance, max(1, on_scene // 2))


@dataclass(frozen=True)
class StrideSeams:
    """What a stride costs, and what of the labels differs from the reference; shares from 0 to 1, NaN of nothing."""

    stride: int
    """Pixels of the network's input from one patch to the next."""
    stride_on_scene: tuple[int, int]
    """The same in pixels of the scene, down a column and along a row."""
    passes_per_megapixel: float
    """Patches of the whole scene for each megapixel of it."""
    relative_time: float
    """Patches of the whole scene for each one that there would be without overlap."""
    differ: float
    """Share of all pixels compared whose label is another one."""
    near: float
    """Share that differs near borders."""
    far: float
    """Share of the same pixels that differs where they are far from borders."""
    excess: float
    """The first less the second."""
    excess_error: float
    """Half of the interval in which the excess of more ground like this lies, in 95 of 100 cases."""
    excess_of_all: float
    """The excess as a share of all pixels, most of which are not near borders."""
    boundary_near: float
    """Share of the boundaries near borders that are off."""
    boundary_far: float
    boundary_excess: float


@dataclass(frozen=True)
class Seams:
    """What was found on a scene."""

    scene: str
    model: str
    patch: int
    patch_on_scene: tuple[int, int]
    default_stride: int
    """The model's own."""
    reference_stride: int
    near_pixels: int
    """Pixels of the scene on either side of a border that are near it."""
    far_pixels: int
    windows: tuple[Window, ...]
    pixels: int
    """How many were compared."""
    limit: float
    strides: tuple[StrideSeams, ...]
    """From the cheapest on."""

    @property
    def cheapest(self) -> StrideSeams | None:
        """The first whose seam excess is under the limit."""
        return next((each for each in self.strides if each.excess < self.limit), None)

    @property
    def uncertain(self) -> tuple[StrideSeams, ...]:
        """Those up to the cheapest of which the limit is inside the interval: more ground could say otherwise."""
        last = len(self.strides) if self.cheapest is None else self.strides.index(self.cheapest) + 1
        return tuple(each for each in self.strides[:last] if abs(each.excess - self.limit) <= each.excess_error)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        told = asdict(self)
        told["windows"] = [[*window.row_range, *window.col_range] for window in self.windows]
        told["strides"] = [
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in each.items()}
            for each in told["strides"]
        ]
        told["cheapest"] = None if self.cheapest is None else self.cheapest.stride
        told["uncertain"] = [each.stride for each in self.uncertain]
        return told


def measure_seams(
    scene: str | Path,
    model: str = "buildings",
    *,
    strides: Sequence[int] = (),
    aoi: str | Path | None = None,
    windows: int = WINDOWS,
    device: str = "auto",
    observe: Observer = lambda _stage, _done, _total: None,
) -> Seams:
    """Measure seams and cost of some strides of a model on a scene, in a few windows of it.

    Args:
        scene: Whatever `geoseg.segment` takes as a path.
        model: A product, whose default model is taken; or the name of a model or path of its folder.
        strides: Pixels of the network's input; none = from a patch to half of one in eighths, and the model's own.
        aoi: Vector file, any CRS: only what is inside its polygons is looked at.
        windows: How many, of two patches by two, spread over the scene.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        observe: Is told the stage, and how many patches of how many are done.

    Raises the errors of `geoseg.errors`.
    """
    if windows < 1:
        msg = f"--windows {windows}: must be 1 or more"
        raise OptionError(msg)
    products = {each.product for each in bundled_models()}
    spec = find_model(model, None) if model in products else find_model(None, model)
    for stride in strides:
        if not 1 <= stride <= spec.patch:
            msg = f"--strides {stride}: must be from 1 to the patch of {spec.name}, {spec.patch} pixels"
            raise OptionError(msg)
    planned = look(SegmentJob(scene, spec.product, ".", aoi=aoi, device=device), model=spec)
    check_machine(device, TORCH, spec)
    wanted = sorted(
        {*(strides or (spec.patch * part // DENSE for part in OVERLAPS)), *(() if strides else (spec.stride,))}
    )

    def tiling(stride: int) -> Tiling:
        patch, step, cells = patch_on_scene(spec, planned.scene.ground_resolution, stride, planned.scene.path)
        return Tiling(planned.scene.shape, patch, step, planned.scene.shape, cells)

    from geoseg.memory import keep_freed_memory
    from geoseg.models.weights import choose_device, load_predict
    from geoseg.predict import Decision, Lanes, default_lanes

    reference = tiling(max(1, spec.patch // DENSE))
    zones = Zones.of(spec.patch, max(reference.patch))
    places = tuple(windows_of(planned.source, reference, windows, planned.scene.path))
    keep_freed_memory()
    where = choose_device(device)
    lanes = Lanes(default_lanes(where))
    try:
        comparison = Comparison(
            load_predict(spec, where),
            Decision(spec.legend),
            tuple(round(255 * m) for m in spec.mean) * spec.dates,
            lanes,
        )
        found = comparison.run(
            planned.source, reference, {stride: tiling(stride) for stride in wanted[::-1]}, places, zones, observe
        )
    finally:
        lanes.close()
    return Seams(
        planned.scene.path,
        spec.name,
        spec.patch,
        reference.patch,
        spec.stride,
        max(1, spec.patch // DENSE),
        zones.near,
        zones.far,
        places,
        comparison.pixels,
        LIMIT,
        tuple(found),
    )


def windows_of(source: Source, tiling: Tiling, count: int, name: str = "the scene") -> Iterator[Window]:
    """Some windows of two patches by two, spread evenly over what has data.

    A patch away from the scene's edges, as far as it has room, for there patches lie closer. Raises `SceneError` if no
    window has data, or if the scene is no larger than a patch.
    """
    if all(axis.size <= axis.patch for axis in tiling.axes):
        rows, cols = tiling.shape
        msg = f"{name}: its {rows} x {cols} pixels are seen in one patch of {tiling.patch[0]} x {tiling.patch[1]}: "
        raise SceneError(msg + "there are no borders to look at; take a larger scene")
    (top, bottom), (left, right) = (_inner(axis) for axis in tiling.axes)
    down, along = (min(2 * axis.patch, axis.size) for axis in tiling.axes)
    inner = Window(top, bottom, left, right)
    every = [each for each in inner.blocks((down, along)) if each.shape == (down, along)]
    every = every or [Window(top, min(top + down, bottom), left, min(left + along, right))]
    chosen = 0
    for index in range(min(count, len(every))):
        first, stop = (at * len(every) // min(count, len(every)) for at in (index, index + 1))
        middle = (first + stop) // 2
        for window in every[middle:stop] + every[first:middle]:
            valid = source.read(window).valid
            if valid.mean() > 1 / 2 or (len(every) == 1 and valid.any()):
                chosen += 1
                yield window
                break
    if not chosen:
        msg = f"{name}: none of {len(every)} windows of {down} x {along} pixels has data in half of it: "
        raise SceneError(msg + "there is too little to compare")


def _inner(axis: Axis) -> tuple[int, int]:
    """Between which pixels windows lie."""
    low = min(axis.patch, max(0, axis.size - 2 * axis.patch))
    return low, axis.size - min(axis.patch, max(0, axis.size - low - 2 * axis.patch))


@dataclass(frozen=True, eq=False)
class Block:
    """Part of a scene in memory: a window, with what the patches that touch it see."""

    window: Window
    raster: Raster

    @classmethod
    def read(cls, source: Source, window: Window, patch: tuple[int, int]) -> Block:
        """The pixels of a window and of a patch around it, as far as the scene reaches."""
        (down, along), (rows, cols) = patch, source.shape
        wide = Window(
            max(0, window.row_start - down),
            min(rows, window.row_stop + down),
            max(0, window.col_start - along),
            min(cols, window.col_stop + along),
        )
        return cls(wide, source.read(wide))


@dataclass(frozen=True, eq=False)
class _From:
    """The block as a source: the scene from a row and a column on, as if it began there."""

    block: Block
    shape: tuple[int, int]
    row: int
    col: int

    def read(self, window: Window) -> Raster:
        """The pixels of a window; zeros, not valid, where the block has none."""
        (top, bottom), (left, right) = window.row_range, window.col_range
        placed = Window(top + self.row, bottom + self.row, left + self.col, right + self.col)
        bands = self.block.raster.values.shape[0]
        values, valid = np.zeros((bands, *window.shape), np.uint8), np.zeros(window.shape, bool)
        within = placed.intersection(self.block.window)
        if within is not None:
            to, here = within.relative_to(placed).slices, within.relative_to(self.block.window).slices
            values[:, *to], valid[to] = self.block.raster.values[:, *here], self.block.raster.valid[here]
        return Raster(values, valid)


class _Labels:
    """A sink that keeps the labels of a window."""

    def __init__(self, window: Window) -> None:
        self.window, self.labels = window, np.full(window.shape, NODATA, np.uint8)

    def write(self, band: Band) -> None:
        """Take a band."""
        self.labels[band.window.relative_to(self.window).slices] = band.labels


class _Remembering:
    """A `Predict` that knows the scores of patches that it has seen before."""

    def __init__(self, predict: Predict, observe: Callable[[], None]) -> None:
        self._predict, self._observe = predict, observe
        self.device, self.outputs = predict.device, predict.outputs
        self._known: dict[tuple[bytes, tuple[int, int]], Any] = {}
        self._bytes = 0

    def __call__(self, patches: Any, cells: tuple[int, int]) -> Any:
        """Scores (n, outputs, *cells) of patches (n, bands, y, x)."""
        key = hashlib.sha256(patches.numpy().tobytes()).digest(), cells
        if key not in self._known:
            scores = self._predict(patches, cells)
            self._observe()
            size = scores.element_size() * scores.nelement()
            if self._bytes + size > KEPT:
                return scores
            self._bytes += size
            self._known[key] = scores
        return self._known[key].clone()  # the engine changes what it gets


class Comparison:
    """Strides of one network compared on some windows."""

    def __init__(self, predict: Predict, decision: Decision, fill: tuple[int, ...], lanes: Lanes) -> None:
        """`fill`: what the network sees where there is no data, per band."""
        self._predict, self._decision, self._fill, self._lanes = predict, decision, fill, lanes
        self.pixels = 0
        """How many were compared."""

    def run(
        self,
        source: Source,
        reference: Tiling,
        tilings: dict[int, Tiling],
        windows: Sequence[Window],
        zones: Zones,
        observe: Observer = lambda _stage, _done, _total: None,
    ) -> list[StrideSeams]:
        """Seams and cost of each stride, `tilings` being those of the whole scene by their stride."""
        lattices = {
            stride: [shifts_of(tiling, reference, window) for window in windows] for stride, tiling in tilings.items()
        }
        total = 0
        for at, window in enumerate(windows):
            distinct = set(_patches(reference, (0, 0), window))
            for stride, tiling in tilings.items():
                distinct.update(*(_patches(tiling, shift, window) for shift in lattices[stride][at]))
            total += len(distinct)
        done = 0

        def passed() -> None:
            nonlocal done
            done += 1
            observe("comparing", min(done, total), total)

        counts: dict[int, list[NDArray[np.float64]]] = {stride: [] for stride in tilings}
        down, along = zip(*(tiling.patch for tiling in (reference, *tilings.values())), strict=True)
        for at, window in enumerate(windows):
            block = Block.read(source, window, (max(down), max(along)))
            predict = _Remembering(self._predict, passed)
            expected = self._labels(predict, block, reference, (0, 0), window)
            self.pixels += int((expected != NODATA).sum())
            for stride, tiling in tilings.items():
                laid = [
                    Laid(self._labels(predict, block, tiling, shift, window), *zones_of(tiling, shift, window, zones))
                    for shift in lattices[stride][at]
                ]
                counts[stride].append(counts_of(expected, laid, zones))
        observe("comparing", total, total)
        return [_seams(stride, tiling, np.concatenate(counts[stride])) for stride, tiling in tilings.items()]

    def _labels(
        self, predict: Predict, block: Block, tiling: Tiling, shift: tuple[int, int], window: Window
    ) -> NDArray[np.uint8]:
        """Labels (y, x) of a window, by the patches of the lattice that begins at `shift`."""
        from geoseg.predict import Engine

        tiling, core = _moved(tiling, shift, window)
        labels = _Labels(core)
        with Engine(predict, self._decision, self._fill, 1, self._lanes) as engine:
            engine.run(_From(block, tiling.shape, *shift), tiling.tile_of(core), tiling, labels)
        return labels.labels


def _moved(tiling: Tiling, shift: tuple[int, int], window: Window) -> tuple[Tiling, Window]:
    """The lattice of the scene from a row and a column on, and a window counted from there."""
    (rows, cols), (row, col) = tiling.shape, shift
    shape = rows - row, cols - col
    core = Window(window.row_start - row, window.row_stop - row, window.col_start - col, window.col_stop - col)
    return replace(tiling, shape=shape, tile=shape), core


def _patches(tiling: Tiling, shift: tuple[int, int], window: Window) -> Iterator[tuple[int, ...]]:
    """Where the patches lie that a window depends on, and their size."""
    tile = (moved := _moved(tiling, shift, window))[0].tile_of(moved[1])
    for row in tile.patch_rows:
        for col in tile.patch_cols:
            yield row + shift[0], col + shift[1], *tiling.patch


def shifts_of(tiling: Tiling, reference: Tiling, window: Window) -> list[tuple[int, int]]:
    """Where lattices of one stride begin, as far as there is room above and left of a window; the first at the origin.

    They are moved by whole strides of the reference, so that their patches are among its own.
    """
    moves = [
        [move if move <= room else 0 for part in range(LATTICES) for move in [part * stride // LATTICES // unit * unit]]
        for stride, unit, room in zip(
            tiling.stride, reference.stride, (window.row_start, window.col_start), strict=True
        )
    ]
    return list(dict.fromkeys(zip(*moves, strict=True)))


def zones_of(
    tiling: Tiling, shift: tuple[int, int], window: Window, zones: Zones
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pixels (y, x) of a window are near a border of the lattice's patches, and which are far from all."""
    moved, core = _moved(tiling, shift, window)
    near, far = [], []
    for axis, (low, high) in zip(moved.axes, (core.row_range, core.col_range), strict=True):
        borders = {border for start in axis.starts for border in (start, start + axis.patch) if 0 < border < axis.size}
        distance = np.full(high - low, np.inf)
        for border in borders:
            np.minimum(distance, np.abs(np.arange(low, high) + 0.5 - border), out=distance)
        near.append(distance < zones.near)
        far.append(distance > zones.far)
    return near[0][:, None] | near[1], far[0][:, None] & far[1]


@dataclass(frozen=True, eq=False)
class Laid:
    """Labels of a window by one lattice, and where that has its borders: (y, x) each."""

    labels: NDArray[np.uint8]
    near: NDArray[np.bool_]
    far: NDArray[np.bool_]


COLUMNS = (
    *("pixels", "differ", "beside", "near_ground", "near", "off_near", "edge_near"),
    *("far_ground", "far", "off_far", "edge_far"),
)
"""What `counts_of` counts: pixels compared, those that differ, those near borders; then near borders the ground, how
much of it differs, boundaries that are off, and all of them; and the same far from borders."""


def counts_of(expected: NDArray[np.uint8], laid: Sequence[Laid], zones: Zones) -> NDArray[np.float64]:
    """Counts (block, `COLUMNS`) of a window's squares: how lattices of one stride differ from the reference.

    A pixel counts once, by the share of the lattices that it is near, or far, in. If there is but one lattice, near and
    far are other ground.
    """
    seen = expected != NODATA
    edge = boundary(expected)
    close = _widened(edge, zones.tolerance)
    sums = np.zeros((8, *expected.shape))  # lattices, those that differ, boundaries off, boundaries: near, then far
    differ = np.zeros(expected.shape)
    for each in laid:
        wrong, own = (each.labels != expected) & seen, boundary(each.labels)
        off = (own & ~close).astype(int) + (edge & ~_widened(own, zones.tolerance))
        differ += wrong / len(laid)
        for first, zone in ((0, each.near & seen), (4, each.far & seen)):
            for at, values in enumerate((1, wrong, off, own.astype(int) + edge), first):
                sums[at] += zone * values
    ground = seen if len(laid) == 1 else (sums[0] > 0) & (sums[4] > 0)
    zone_sums = [each * (ground / np.maximum(each[0], 1)) for each in (sums[:4], sums[4:])]
    layers = (seen, differ, sums[0] / len(laid), *zone_sums[0], *zone_sums[1])
    squares = Window.of_shape(expected.shape).blocks((zones.block, zones.block))
    return np.array([[layer[square.slices].sum() for layer in layers] for square in squares], float)


def boundary(labels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Pixels (y, x) beside one of another class; nodata makes no boundary."""
    edge = np.zeros(labels.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        one, other = labels[first], labels[second]
        differs = (one != other) & (one != NODATA) & (other != NODATA)
        edge[first] |= differs
        edge[second] |= differs
    return edge


def _widened(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Pixels within so many of one of the mask, along both axes."""
    wide: NDArray[np.bool_] = ndimage.maximum_filter(mask, 2 * pixels + 1, mode="constant")
    return wide


def _seams(stride: int, tiling: Tiling, counts: NDArray[np.float64]) -> StrideSeams:
    total = dict(zip(COLUMNS, counts.sum(0), strict=True))
    column = {name: counts[:, at] for at, name in enumerate(COLUMNS)}
    near, far = _share(total["near"], total["near_ground"]), _share(total["far"], total["far_ground"])
    # of a ratio of sums over squares, to the first order
    rest = [
        (column[name] - share * column[ground]) / max(total[ground], 1)
        for name, ground, share in (("near", "near_ground", near), ("far", "far_ground", far))
    ]
    scatter = rest[0] - rest[1]
    off_near, off_far = (_share(total[f"off_{zone}"], total[f"edge_{zone}"]) for zone in ("near", "far"))
    patches, alone = (
        math.prod(len(axis.starts) for axis in each.axes) for each in (tiling, replace(tiling, stride=tiling.patch))
    )
    return StrideSeams(
        stride,
        tiling.stride,
        1e6 * patches / math.prod(tiling.shape),
        patches / alone,
        _share(total["differ"], total["pixels"]),
        near,
        far,
        near - far,
        SURE * math.sqrt(len(scatter) / max(len(scatter) - 1, 1) * float((scatter**2).sum())),
        (near - far) * _share(total["beside"], total["pixels"]),
        off_near,
        off_far,
        off_near - off_far,
    )


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan
