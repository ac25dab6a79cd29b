"""Networks that take two scenes of one place: one encoder for both dates, and what they say compared.

What goes in is (n, 2 x bands, y, x): the earlier date's bands, then the later one's. Their encoder, decoder and head
have the names of a network for one date, so that its weights can be taken over. torchgeo's networks are taken apart the
same way, as far as they are made like that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Features = list[torch.Tensor]
    Fuse = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], Features]

RGB = 3


def difference(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> Features:
    """How much features differ: the order of the dates is of no consequence (Daudt et al. 2018)."""
    return [(one - other).abs() for one, other in zip(before, after, strict=True)]


class Siamese(nn.Module):
    """Both dates' features, level by level made one, then decoded as those of one date are."""

    def __init__(self, network: Any, fuse: Fuse) -> None:
        """`network`: of whose encoder, decoder and segmentation head it is made."""
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder
        self.segmentation_head = network.segmentation_head
        self.fuse = fuse

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits (n, outputs, y, x) of scaled values (n, 2 x bands, y, x)."""
        both = _one_behind_the_other(values, int(self.encoder.output_stride))
        halves = [feature.chunk(2) for feature in self.encoder(both)]
        fused = self.fuse([half[0] for half in halves], [half[1] for half in halves])
        logits: torch.Tensor = self.segmentation_head(self.decoder(fused))
        return logits


class ChangeStar(nn.Module):
    """ChangeStar (Zheng et al. 2021): each date decoded by itself, then torchgeo's ChangeMixin on both.

    Its layers see both orders of the dates, and the mean of what they say is the answer: so the order is of no
    consequence. They end with a class's scores instead of one score, which is what the engine blends. The last
    rectifier is left out: behind it nothing speaks for what little has changed but a bias, which learns slowly.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, channels: int, outputs: int, stride: int) -> None:
        """`decoder`: gives (n, channels, y / stride, x / stride)."""
        from torchgeo.models import ChangeMixin

        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        layers = list(ChangeMixin(in_channels=2 * channels, scale_factor=stride).convs)
        last_block: Any = layers[-3]
        self.mixin = nn.Sequential(*layers[:-3], last_block[:-1])
        last: Any = layers[-2]
        self.segmentation_head = nn.Sequential(nn.Conv2d(last.in_channels, outputs, 3, padding=1), layers[-1])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits (n, outputs, y, x) of scaled values (n, 2 x bands, y, x)."""
        both: torch.Tensor = self.decoder(self.encoder(_one_behind_the_other(values, _stride(self.encoder))))
        before, after = both.chunk(2)
        orders = torch.cat([torch.cat([before, after], 1), torch.cat([after, before], 1)])
        one, other = self.mixin(orders).chunk(2)
        logits: torch.Tensor = self.segmentation_head((one + other) / 2)
        return logits


class ChangeViT(nn.Module):
    """torchgeo's ChangeViT (Zhu et al. 2024), for patches of any size that is as high as wide."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        network.encoder.output_stride = int(network.encoder.patch_embed.patch_size[0])
        self.segmentation_head = nn.Identity()  # its scores are at the input's size

    @property
    def encoder(self) -> nn.Module:
        """What sees each date by itself."""
        encoder: nn.Module = self.network.encoder
        return encoder

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits (n, outputs, y, x) of scaled values (n, 2 x bands, y, x)."""
        if values.shape[2] != values.shape[3]:
            msg = f"a patch must be as high as wide, got {tuple(values.shape[2:])}"
            raise ValueError(msg)
        _one_behind_the_other(values, _stride(self.encoder))
        logits: torch.Tensor = self.network(values.unflatten(1, (2, -1)))
        return logits


def from_torchgeo(name: str, encoder: str, bands: int, outputs: int) -> nn.Module:
    """A network of torchgeo's by its class. Raises `ValueError` for what it cannot do."""
    from torchgeo import models

    build: Any = getattr(models, name)
    if name == "FCSiamConc":
        network = build(encoder, encoder_weights=None, in_channels=bands, classes=outputs)
        return Siamese(network, lambda before, after: [torch.cat(pair, 1) for pair in zip(after, before, strict=True)])
    if name == "ChangeViT":
        vit = encoder.removeprefix("tu-")
        return ChangeViT(build(vit, in_channels=bands, num_classes=outputs, pretrained=False))
    if bands != RGB:
        msg = f"it takes three bands, not {bands}"
        raise ValueError(msg)
    if name == "BTC":
        return _btc(build(encoder, backbone_pretrained=False, classes=outputs))
    network = build(encoder, backbone_pretrained=False)
    features = network.dense_feature_extractor
    features.output_stride = 32
    channels = int(network.seg_classifier[0].in_channels)
    return ChangeStar(features, nn.Identity(), channels, outputs, 4)


def _btc(network: Any) -> Siamese:
    """BTC, its scaling of values left to the model's card, and its last enlarging a layer like that of others."""
    network.encoder.image_normalization = nn.Identity()
    network.encoder.output_stride = 32
    head = [network.final_layer[0], nn.Upsample(scale_factor=4, mode="bilinear", align_corners=False)]
    network.segmentation_head = nn.Sequential(*head)

    def fuse(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> Features:
        return [before[0], before[0], *difference(before, after)]  # the decoder leaves out the first two

    return Siamese(network, fuse)


def _stride(encoder: Any) -> int:
    return int(encoder.output_stride)


def _one_behind_the_other(values: torch.Tensor, stride: int) -> torch.Tensor:
    """Both dates (2n, bands, y, x), those of the earlier one first."""
    if values.shape[2] % stride or values.shape[3] % stride:
        msg = f"an image's sides must be multiples of {stride}, got {tuple(values.shape[2:])}"
        raise ValueError(msg)
    return torch.cat(values.chunk(2, 1)).contiguous(memory_format=torch.channels_last)
