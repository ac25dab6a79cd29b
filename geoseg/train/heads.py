"""SegFormer's head as it is trained: the same function of the same weights, in an order that takes less work."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from geoseg.models.rewrites import projected_and_fused

if TYPE_CHECKING:
    from collections.abc import Sequence


def quicken_segformer_heads(network: nn.Module) -> int:
    """Have each SegFormer head in a network work in the quicker order. How many there are.

    In place. What is learned, and what it is called, stays: the network is saved and loaded as it was.
    """
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

    heads = [(name, module) for name, module in network.named_modules() if type(module) is SegformerDecoder]
    for name, head in heads:
        network.set_submodule(name, QuickSegformerHead(head))
    return len(heads)


class QuickSegformerHead(nn.Module):
    """A `SegformerDecoder` that fuses each level before it is enlarged, and enlarges by matrix products.

    Xie et al. (2021) project each level of the features, enlarge it, and fuse all of them by a convolution of 1 x 1.
    That is linear, and the same at each place, as bilinear enlarging is the same for each channel, so they may change
    places: `geoseg.models.rewrites` has more of it. Here the two matrices of a level stay apart, as both are learned,
    and are multiplied anew each time, which is little. Bilinear enlarging is a matrix for the rows and one for the
    columns, whose products are faster on a CPU, there and back, than torch's own.
    """

    def __init__(self, head: Any) -> None:
        """`head`: a `SegformerDecoder`, whose layers are taken over."""
        super().__init__()
        self.mlp_stage, self.fuse_stage = head.mlp_stage, head.fuse_stage

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The fused level (n, channels, y / 4, x / 4) of an encoder's features, the input before them."""
        fuse, *rest = self.fuse_stage
        size = (features[0].shape[2] // 4, features[0].shape[3] // 4)
        with torch.autocast(features[0].device.type, enabled=False):  # little work, and a product of two roundings
            matrices, shift = projected_and_fused(self, fuse.weight.dtype)
        coarsest_first = features[: -len(matrices) - 1 : -1]
        total = shift[:, None, None]
        for matrix, feature in zip(matrices, coarsest_first, strict=True):
            total = total + _enlarged(functional.conv2d(feature, matrix[:, :, None, None]), size)
        for layer in rest:
            total = layer(total)
        return total


def _enlarged(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(n, channels, y, x) enlarged bilinearly, as `interpolate` does without `align_corners`."""
    if tuple(values.shape[2:]) == size:
        return values
    rows, cols = (_bilinear(*sides).to(values) for sides in zip(values.shape[2:], size, strict=True))
    return torch.matmul(rows, torch.matmul(values.contiguous(), cols.T))


@cache
def _bilinear(small: int, large: int) -> torch.Tensor:
    """(large, small): the weights of `small` values in each of `large`."""
    with torch.inference_mode(mode=False):
        each = functional.interpolate(torch.eye(small)[None], size=large, mode="linear", align_corners=False)[0]
    return each.T.contiguous()
