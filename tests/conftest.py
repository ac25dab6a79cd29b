"""What tests share: a tiny model, small files, and the data that is too large for the repository."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, settings
from safetensors.torch import save_file

from geoseg.cache import cache_folder
from geoseg.catalog import MULTIHASH_SHA256, Legend, LegendClass, catalogs_folder
from geoseg.models.networks import build_network
from geoseg.raster import Raster
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# How long an example takes depends on what else the machine does, and says nothing about the code.
settings.register_profile("geoseg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("geoseg")

BANEPA = rasterio.Affine(0.3, 0.0, 334_000.0, 0.0, -0.3, 3_057_000.0)
"""North up, 0.3 m, in EPSG:32645: the default place of `write_tif`."""


def write_tif(
    path: Path,
    values: NDArray[Any],
    crs: str | None = "EPSG:32645",
    transform: rasterio.Affine = BANEPA,
    **profile: Any,
) -> Path:
    """A GeoTIFF of values (band, y, x) or (y, x); `profile` goes to rasterio (nodata, tiled, compress ...)."""
    values = values[None] if values.ndim == 2 else values
    count, rows, cols = values.shape
    grid = {"count": count, "height": rows, "width": cols, "dtype": str(values.dtype)}
    if count in {3, 4} and values.dtype == np.uint8:
        profile = {"photometric": "RGB", **profile}
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=transform, **grid, **profile) as dataset:
        dataset.write(values)
    return path


def write_model(folder: Path, name: str = "tiny") -> Path:
    """A model of random weights, as the bundled one is written: item.json, model.safetensors, README.md.

    Its network is the bundled one's at another patch size; its last layer is set so that a noisy image gets both
    classes, at probabilities between 0 and 1, and an auxiliary score that varies within them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    architecture, encoder, patch = "deeplabv3plus", "tu-tf_efficientnet_lite0", 64
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        network = build_network(architecture, encoder=encoder, bands=3, outputs=3)
        noise = torch.rand(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
        noise = (noise + torch.randn(4, 3, patch, patch) * 0.3).clamp(-1, 1)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # statistics of all that it sees, not of most of what it saw last
        network.train()(noise)
        difference = torch.diff(network.eval()(noise)[:, :2], dim=1)
        last = network.segmentation_head[0]
        last.weight *= 2 / difference.std()
        last.bias.zero_()
        scores = network(noise)
        last.bias[1] = -torch.diff(scores[:, :2], dim=1).median()
        last.bias[2] = -scores[:, 2].median()
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    weights = (folder / "model.safetensors").read_bytes()

    item = json.loads((catalogs_folder() / "models" / "buildings-deeplabv3plus" / "item.json").read_text("utf-8"))
    item["id"] = name
    properties = item["properties"]
    properties |= {"title": f"{name}, of random weights", "description": "For tests.", "geoseg:scores": []}
    properties |= {"mlm:name": name, "mlm:architecture": architecture, "geoseg:encoder": encoder}
    properties |= {"geoseg:product": "buildings", "geoseg:stride": 48, "geoseg:resolution": [0.1, 0.6]}
    properties |= {"geoseg:auxiliary": ["interior"], "geoseg:separation": {"seed": 0.5, "min_seed_area": 1.0}}
    properties["mlm:input"][0]["bands"] = [{"name": band} for band in ("red", "green", "blue")]
    properties["mlm:input"][0]["input"]["shape"] = [-1, 3, patch, patch]
    properties["mlm:output"][0]["result"]["shape"] = [-1, 3, patch, patch]
    assert [c["name"] for c in properties["mlm:output"][0]["classification:classes"]] == ["background", "building"]
    checksum = MULTIHASH_SHA256 + hashlib.sha256(weights).hexdigest()
    item["assets"]["weights"] |= {"file:checksum": checksum, "file:size": len(weights)}
    (folder / "item.json").write_text(json.dumps(item, indent=2), encoding="utf-8")
    (folder / "README.md").write_text(f"# {name}\n\nRandom weights, for tests.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, or what was found out about this machine would have a say in maps; but for samples."""
    samples, folder = cache_folder() / "samples", tmp_path_factory.mktemp("cache")
    samples.mkdir(parents=True, exist_ok=True)
    (folder / "samples").symlink_to(samples)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GEOSEG_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model named "tiny" for the product "buildings": patch 64, stride 48, 0.1 to 0.6 m. Do not change."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def results(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT with the maps of two dates and what has changed between them, and the scenes in OUT/../imagery."""
    import geoseg

    folder = tmp_path_factory.mktemp("view")
    pixels = np.random.default_rng(5).integers(0, 256, (2, 3, 20, 30)).astype(np.uint8)
    scenes = []
    for year, cells in zip((2019, 2024), pixels, strict=True):
        values = cells.repeat(8, 1).repeat(8, 2)
        values[:, :8] = 0
        scenes.append(write_tif(folder / "imagery" / f"town-{year}.tif", values, nodata=0))
    geoseg.change(*scenes, "buildings", folder / "maps", model=str(tiny_model), min_confidence=0.2, tolerance=0.5)
    return folder / "maps"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scenes beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real scenes are not part of the repository: there is no folder {folder}")
    return folder


@contextlib.contextmanager
def chunks_of(size: int) -> Iterator[None]:
    """Storage chunks of another size, so that scenes of many chunks are small. Also a decorator, below `given`."""
    import geoseg.io.store
    import geoseg.predict

    with pytest.MonkeyPatch.context() as patched:
        for name, module in list(sys.modules.items()):
            if name.startswith("geoseg") and hasattr(module, "CHUNK"):
                patched.setattr(module, "CHUNK", size)
        assert geoseg.predict.CHUNK == geoseg.io.store.CHUNK == size
        yield


def legend_of(classes: int, background: int | None = 0) -> Legend:
    """A legend of so many classes."""
    return Legend(tuple(LegendClass(value, f"class {value}", "#e4572e") for value in range(classes)), background)


INVALID = 13
"""What an `ArraySource` gives where nothing is valid, and nowhere else: no network may see it."""


class ArraySource:
    """A scene in memory that records how it is read, and refuses to be read by two threads at a time."""

    def __init__(self, values: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None, pause: float = 0.0) -> None:
        self.valid = np.ones(values.shape[1:], bool) if valid is None else valid
        self.values = np.where(self.valid, np.where(values == INVALID, INVALID + 1, values), INVALID).astype(np.uint8)
        self.pause = pause
        self.windows: list[Window] = []
        self._reading = threading.Lock()

    @property
    def shape(self) -> tuple[int, int]:
        return self.valid.shape

    def read(self, window: Window) -> Raster:
        assert self._reading.acquire(blocking=False), "two threads read at a time"
        try:
            time.sleep(self.pause)
            self.windows.append(window)
            values = np.full((len(self.values), *window.shape), INVALID, np.uint8)
            valid = np.zeros(window.shape, bool)
            within = Window.of_shape(self.shape).intersection(window)
            if within is not None:
                rows, cols = within.relative_to(window).slices
                values[:, rows, cols] = self.values[:, *within.slices]
                valid[rows, cols] = self.valid[within.slices]
            return Raster(values, valid)
        finally:
            self._reading.release()


class MixingPredict:
    """Scores that depend on the whole patch and on the place in it, so that no two patches agree about a pixel.

    They do not depend on the batch, to the last bit. What it was called with is recorded.
    """

    device = torch.device("cpu")

    def __init__(self, outputs: int, bands: int, cells: tuple[int, int], seed: int = 0) -> None:
        draw = np.random.default_rng(seed).normal
        self.outputs, self._cells = outputs, cells
        self._bands, self._place, self._mix = (
            torch.from_numpy(draw(size=shape).astype(np.float32))
            for shape in ((bands, outputs, 1, 1), (outputs, *cells), (outputs, *cells))
        )
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        assert patches.dtype == torch.uint8
        assert cells == self._cells
        self.shapes.append(tuple(patches.shape))
        mean = patches.flatten(1).sum(1, dtype=torch.int64) / (255 * patches[0].numel())
        scores = self._place + 3 * mean[:, None, None, None] * self._mix
        for band, weights in enumerate(self._bands):
            scores = scores + weights * (at_centres(patches[:, band, None], cells) / 255)
        return scores


def at_centres(patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """The pixel at the centre of each cell of patches (n, bands, y, x); with a cell for each pixel, the patches."""
    rows, cols = ((2 * torch.arange(n) + 1) * side // (2 * n) for n, side in zip(cells, patches.shape[2:], strict=True))
    return patches[..., rows[:, None], cols]
