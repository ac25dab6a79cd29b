"""Samples made more various than they are, so that another sensor, season or place is not foreign to a network.

A sample is an image (bands, y, x), uint8 or float, of values 0 to 255, and maps by name, each (y, x) or (k, y, x),
that belong to its pixels and move with them:

* `labels`, integer: classes, 255 where nothing is known, as it is outside of the image;
* other integer maps and bool ones, such as `instances` (0 = none) or `known`: 0 outside, moved without mixing values;
* float maps, such as `weight` or distances: 0 outside, interpolated.

Any number of bands will do; what makes sense for red, green and blue alone is left out for others. All chance comes
from the generator that is passed: same state, same result, on a CPU. torchvision draws from torch's global generator,
which is therefore seeded from the other for the time of a call, and put back: one thread of a process at a time.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from geoseg.train.losses import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Maps = dict[str, Tensor]

LABELS, INSTANCES = "labels", "instances"
RGB = 3


def _chance(default: float, description: str) -> float:
    field: float = Field(default=default, ge=0, le=1, description=f"probability of {description}")
    return field


def _strength(default: float, description: str) -> float:
    field: float = Field(default=default, ge=0, description=description)
    return field


@dataclass(frozen=True)
class Batch:
    """Samples that were mixed, (n, ...) each: `share` of them is what `maps` says, the rest what `others` says."""

    images: Tensor
    maps: Maps
    others: Maps
    share: float
    """Above or equal to a half; 1 where images were not added to each other."""

    def loss(self, of: Callable[[Maps], Tensor]) -> Tensor:
        """The loss by one's own labels and the other's, `of` giving that of maps.

        MixUp asks for soft targets where cross-entropy is all there is. The sum of two losses is the same for
        cross-entropy, and defined for Dice and Lovasz and where one of the labels is unknown.
        """
        own = of(self.maps)
        return own if self.share == 1 else self.share * own + (1 - self.share) * of(self.others)


class Augmentation(BaseModel):
    """How often and how strongly samples are changed; a probability of 0 turns a change off.

    The defaults are those that the bundled building model was trained with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flip: float = _chance(0.5, "a mirror image, left to right and, by itself, top to bottom")
    quarter_turn: float = _chance(1.0, "a turn by 0, 90, 180 or 270 degrees (0 or 180 where the sides differ)")
    affine: float = _chance(0.5, "a free turn, with another scale and a shear")
    rotation: float = _strength(45.0, "degrees to either side that it turns at most")
    scale: float = Field(default=0.12, ge=0, lt=1, description="share by which it enlarges or shrinks at most")
    shear: float = _strength(3.0, "degrees to either side that it shears at most, along each axis")
    elastic: float = _chance(0.0, "a warp as of cloth; not for straight objects")
    elastic_shift: float = _strength(3.0, "pixels by which it moves a point, as standard deviation")
    elastic_smoothness: float = Field(
        default=4.0, gt=0, description="pixels over which it stays alike, as standard deviation"
    )

    missing: float = _chance(0.15, "one flat colour beyond a line: imagery that ends and no nodata tag says so")
    resample: float = _chance(0.2, "a sensor that resolves less than its pixels: shrunk and enlarged again")
    resample_factor: float = Field(default=3.0, ge=1.3, description="by how much at most; 1.3 at least")
    gain: float = _chance(0.4, "another gain per band, with haze or deep shadow over all")
    gain_range: float = Field(
        default=0.2, ge=0, lt=1, description="share by which a band gets brighter or darker at most"
    )
    haze: float = _strength(25.0, "grey values, of 255, that are added or taken away at most")
    gamma: float = _chance(0.3, "another gamma")
    gamma_range: float = _strength(0.6, "its natural logarithm at most, to either side")
    colour: float = _chance(0.8, "a change of brightness, contrast and, for RGB, saturation and hue")
    brightness: float = Field(default=0.4, ge=0, lt=1, description="share by which brightness changes at most")
    contrast: float = Field(default=0.4, ge=0, lt=1, description="share by which contrast changes at most")
    saturation: float = Field(default=0.5, ge=0, lt=1, description="share by which saturation changes at most")
    hue: float = Field(
        default=0.08, ge=0, le=0.5, description="share of the colour circle by which hue changes at most"
    )
    band_order: float = _chance(0.05, "red, green and blue in another order")
    grey: float = _chance(0.15, "an image in shades of grey, for RGB")
    blur: float = _chance(0.25, "a Gaussian blur")
    blur_sigma: float = Field(default=1.8, ge=0.3, description="pixels, its standard deviation at most; 0.3 at least")
    jpeg: float = _chance(0.4, "traces of JPEG, for one band or three")
    jpeg_quality: int = Field(default=25, ge=1, le=95, description="its quality at least; 95 at most")
    noise: float = _chance(0.2, "Gaussian noise")
    noise_sigma: float = Field(
        default=12.0, ge=2, description="grey values, of 255, its standard deviation at most; 2 at least"
    )

    swap: float = _chance(0.5, "both dates exchanged, of a pair of scenes")
    repeat: float = _chance(0.0, "one date taken for both, so that nothing has changed, of a pair of scenes")

    cutmix: float = _chance(0.0, "a rectangle of another sample, with its labels (Yun et al. 2019)")
    copy_paste: float = _chance(0.0, "objects of another sample, with their labels (Ghiasi et al. 2021)")
    copy_paste_share: float = Field(default=0.5, gt=0, le=1, description="share of the objects that are pasted")
    mixup: float = _chance(0.0, "two samples added to each other (Zhang et al. 2018), for a whole batch")
    mixup_alpha: float = Field(default=0.4, gt=0, description="parameter of the Beta distribution of their shares")

    def sample(
        self,
        image: Tensor,
        maps: Maps,
        rng: torch.Generator,
        *,
        size: tuple[int, int] | None = None,
        background: int | None = None,
        dates: int = 1,
    ) -> tuple[Tensor, Maps]:
        """A sample, changed; the images of several dates are moved alike, and each gets colours of its own.

        Args:
            image: Uint8 or float (bands, y, x), 0 to 255; the result has the same dtype.
            maps: See the module.
            rng: Where all chance comes from.
            size: Rows and columns of the result, cut out of the sample at random; the sample's own if None. A sample
                that is read larger than this has fewer unknown corners when it is turned.
            background: The class where imagery is missing; without one, nothing is known there.
            dates: Images that lie one behind the other in `image`, the same bands of each.
        """
        with _seeded(rng):
            values, moved = self._moved(image.float(), maps, size)
            if dates > 1:
                values, moved = self._exchanged(values, moved, dates, background)
            missing = _beyond_a_line(values) if _happens(self.missing) else None
            if missing is None:
                return _like(self._of_each(values, dates), image), moved
            colour = _flat_colour(len(values))
            values = torch.where(missing, colour, values)
            moved = {name: _without(values_, missing, name, background) for name, values_ in moved.items()}
            values = self._of_each(values, dates)
            if _happens(0.5):  # nothing of a sensor or a codec is in what was filled in later
                values = torch.where(missing, colour, values)
            return _like(values, image), moved

    def batch(self, images: Tensor, maps: Maps, rng: torch.Generator, *, background: int | None = None) -> Batch:
        """Samples mixed with each other: each takes from the one after it, as that one was before.

        Float maps such as distances come along as they are: those of an object that is now half covered are as before.

        Args:
            images: (n, bands, y, x).
            maps: (n, y, x) or (n, k, y, x); `labels` at least.
            rng: Where all chance comes from; on the CPU, wherever the samples are.
            background: The class that is no object, for CopyPaste without `instances`.
        """
        if len(images) == 1 or self.cutmix == self.copy_paste == self.mixup == 0:
            return Batch(images, maps, maps, 1.0)
        with _seeded(rng):
            taken = self._taken(images, maps, background).to(images.device)
            images, maps = _pasted(images, maps, taken)
            if not _happens(self.mixup):
                return Batch(images, maps, maps, 1.0)
            alpha = torch.tensor(self.mixup_alpha)
            share = float(torch.distributions.Beta(alpha, alpha).sample())
            share = max(share, 1 - share)
            mixed = share * images.float() + (1 - share) * images.roll(-1, 0).float()
            others = {name: values.roll(-1, 0) for name, values in maps.items()}
            return Batch(_like(mixed, images), maps, others, share)

    def _moved(self, image: Tensor, maps: Maps, size: tuple[int, int] | None) -> tuple[Tensor, Maps]:
        """Image and maps, moved alike. Outside is 0 for all: a map whose outside is another value is shifted first."""
        flat = [tv_tensors.Image(image)]
        for name, values in maps.items():
            layers = (values.reshape(-1, *values.shape[-2:]).float()) - _outside(name)
            flat.append(tv_tensors.Image(layers) if values.is_floating_point() else tv_tensors.Mask(layers))
        flat = [v.as_subclass(torch.Tensor) for v in self._turned(self._geometry(size)(flat))]
        moved = {
            name: (after + _outside(name)).reshape(*before.shape[:-2], *after.shape[-2:]).to(before.dtype)
            for (name, before), after in zip(maps.items(), flat[1:], strict=True)
        }
        return flat[0], moved

    def _exchanged(self, image: Tensor, maps: Maps, dates: int, background: int | None) -> tuple[Tensor, Maps]:
        """Dates in the other order, or one of them for all."""
        each = image.chunk(dates)
        if _happens(self.swap):
            each = each[::-1]
        if background is not None and _happens(self.repeat):
            each = each[:1] * dates
            known = maps[LABELS] != IGNORED
            maps = {**maps, LABELS: torch.where(known, background, maps[LABELS]).to(maps[LABELS].dtype)}
        return torch.cat(each), maps

    def _of_each(self, image: Tensor, dates: int) -> Tensor:
        """The images of all dates, each with colours, noise and the like of its own."""
        return torch.cat([self._recoloured(each) for each in image.chunk(dates)])

    def _geometry(self, size: tuple[int, int] | None) -> v2.Transform:
        bilinear = v2.InterpolationMode.BILINEAR
        affine = v2.RandomAffine(
            degrees=self.rotation,
            scale=(1 - self.scale, 1 / (1 - self.scale)),
            shear=(-self.shear, self.shear, -self.shear, self.shear),
            interpolation=bilinear,
        )
        # A blur of white noise from -1 to 1 leaves this standard deviation of it.
        left = 1 / math.sqrt(3) / (2 * math.sqrt(math.pi) * self.elastic_smoothness)
        # The library's grid runs from -1 to 1 over the image: a pixel is 2 / side.
        elastic = v2.ElasticTransform(2 * self.elastic_shift / left, self.elastic_smoothness, bilinear)
        steps: list[v2.Transform] = [
            v2.RandomHorizontalFlip(self.flip),
            v2.RandomVerticalFlip(self.flip),
            v2.RandomApply([affine], self.affine),
            v2.RandomApply([elastic], self.elastic),
        ]
        if size is not None:
            steps.append(v2.RandomCrop(size, pad_if_needed=True))
        return v2.Compose(steps)

    def _turned(self, flat: list[Tensor]) -> list[Tensor]:
        rows, cols = flat[0].shape[-2:]
        turns = _draw(0, 4) if rows == cols else 2 * _draw(0, 2)
        return [torch.rot90(v, turns, (-2, -1)) for v in flat] if _happens(self.quarter_turn) else flat

    def _recoloured(self, image: Tensor) -> Tensor:
        """What changes the image alone; float (bands, y, x), 0 to 255."""
        if _happens(self.resample):
            image = _less_resolved(image, _uniform(1.3, self.resample_factor))
        if _happens(self.gain):
            gain = torch.empty(len(image), 1, 1).uniform_(1 - self.gain_range, 1 + self.gain_range)
            image = image * gain + _uniform(-self.haze, self.haze)
        image = image.clamp(0, 255)
        if _happens(self.gamma):
            image = 255 * (image / 255) ** math.exp(_uniform(-self.gamma_range, self.gamma_range))
        image = 255 * self._photometry(len(image))(image / 255)  # the library's floats are from 0 to 1
        if len(image) in {1, RGB} and _happens(self.jpeg):
            image = _through_jpeg(image, _draw(self.jpeg_quality, 96))
        if _happens(self.noise):
            image = image + torch.randn(image.shape) * _uniform(2, self.noise_sigma)
        return image

    def _photometry(self, bands: int) -> v2.Transform:
        jitter = v2.ColorJitter(self.brightness, self.contrast, *((self.saturation, self.hue) if bands == RGB else ()))
        steps = [v2.RandomApply([jitter if bands == RGB else _band_by_band(jitter)], self.colour)]
        if bands == RGB:
            steps += [v2.RandomApply([v2.RandomChannelPermutation()], self.band_order), v2.RandomGrayscale(self.grey)]
        steps.append(v2.RandomApply([v2.GaussianBlur(7, (0.3, self.blur_sigma))], self.blur))
        return v2.Compose(steps)

    def _taken(self, images: Tensor, maps: Maps, background: int | None) -> Tensor:
        """Bool (n, y, x): what each sample takes from the one after it."""
        taken = torch.zeros(images.shape[0], *images.shape[-2:], dtype=torch.bool)
        for index in range(len(taken)):
            if _happens(self.cutmix):
                taken[(index, *_rectangle(*images.shape[-2:]))] = True
            if _happens(self.copy_paste):
                giver = (index + 1) % len(taken)
                instances = _instances({name: values[giver] for name, values in maps.items()}, background)
                taken[index] |= _some_of(instances, self.copy_paste_share)
        return taken


@contextlib.contextmanager
def _seeded(rng: torch.Generator) -> Iterator[None]:
    seed = int(torch.randint(2**63 - 1, (), generator=rng, device=rng.device))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would seed the GPUs, too
        yield


def _happens(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _draw(low: int, high: int) -> int:
    return int(torch.randint(low, high, ()))


def _outside(name: str) -> int:
    return IGNORED if name == LABELS else 0


def _like(values: Tensor, image: Tensor) -> Tensor:
    """Float values in the range and the dtype of an image."""
    values = values.clamp(0, 255)
    return (values if image.is_floating_point() else values.round()).to(image.dtype)


def _beyond_a_line(image: Tensor) -> Tensor:
    rows, cols = image.shape[-2:]
    angle, offset = _uniform(0, 2 * math.pi), _uniform(-0.4, 0.4) * min(rows, cols)
    y, x = torch.meshgrid(torch.arange(rows) - rows / 2, torch.arange(cols) - cols / 2, indexing="ij")
    return x * math.cos(angle) + y * math.sin(angle) > offset


def _flat_colour(bands: int) -> Tensor:
    """White or black, mostly; float (bands, 1, 1)."""
    if _happens(0.85):
        return torch.full((bands, 1, 1), 255.0 if _happens(0.6) else 0.0)
    return torch.randint(0, 256, (bands, 1, 1)).float()


def _without(values: Tensor, missing: Tensor, name: str, background: int | None) -> Tensor:
    """A map where a part of the image is missing: background, if there is such a class, and then that is known."""
    known = {LABELS: background, "known": 1, "weight": 1}
    value = known.get(name, 0) if background is not None else _outside(name)
    return torch.where(missing, torch.tensor(value, dtype=values.dtype), values)


def _less_resolved(image: Tensor, factor: float) -> Tensor:
    shape = image.shape[-2:]
    small = tuple(max(1, int(side / factor)) for side in shape)
    image = functional.interpolate(image[None], size=small, mode="bilinear", antialias=True)
    return functional.interpolate(image, size=shape, mode="bicubic")[0]


def _through_jpeg(image: Tensor, quality: int) -> Tensor:
    """Float (1 or 3, y, x) as a JPEG file gives it back; Pillow's, as torchvision's own is about to be removed."""
    file, values = BytesIO(), image.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(values if values.shape[2] == RGB else values[..., 0]).save(file, "JPEG", quality=quality)
    decoded = np.array(Image.open(file)).reshape(values.shape)
    return torch.from_numpy(decoded).permute(2, 0, 1).float()


def _band_by_band(transform: v2.Transform) -> v2.Transform:
    """The same change for each band of an image of any number of them: the library takes one band or three."""
    return v2.Lambda(lambda image: transform(image[:, None])[:, 0])


def _rectangle(rows: int, cols: int) -> tuple[slice, slice]:
    """A part of uniformly distributed area about any point, cut off at the sides."""
    side = math.sqrt(_uniform(0, 1))
    row, col = _draw(0, rows), _draw(0, cols)
    half_rows, half_cols = round(rows * side / 2), round(cols * side / 2)
    return slice(max(0, row - half_rows), row + half_rows), slice(max(0, col - half_cols), col + half_cols)


def _instances(maps: Maps, background: int | None) -> Tensor:
    """Int (y, x): the objects of one sample, 0 where there is none; connected parts if they are not given."""
    if INSTANCES in maps:
        return maps[INSTANCES].cpu()
    if background is None:
        msg = "copy_paste needs a map of instances, or a class that is the background; set it to 0 for this legend"
        raise ValueError(msg)
    labels = maps[LABELS].cpu().numpy()
    parts = np.zeros(labels.shape, np.int64)
    for value in np.unique(labels[(labels != background) & (labels != IGNORED)]):
        found, _ = ndimage.label(labels == value)
        parts[found > 0] = found[found > 0] + parts.max()
    return torch.from_numpy(parts)


def _some_of(instances: Tensor, share: float) -> Tensor:
    """Bool (y, x): where some of the instances are, each with the probability `share`."""
    present = instances.unique()
    chosen = present[(present != 0) & (torch.rand(present.shape) < share)]
    return torch.isin(instances, chosen)


def _pasted(images: Tensor, maps: Maps, taken: Tensor) -> tuple[Tensor, Maps]:
    """Each sample with what it takes of the one after it. Instances that come get numbers that are not in use yet."""
    result = {}
    for name, values in {"": images, **maps}.items():
        given = values.roll(-1, 0)
        if name == INSTANCES:
            given = torch.where(given > 0, given + values.amax((-2, -1), keepdim=True), 0)
        mask = taken if values.ndim == taken.ndim else taken[:, None]
        result[name] = torch.where(mask, given, values)
    return result.pop(""), result
