"""The architectures, in one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def build_network(architecture: str, *, encoder: str, bands: int, outputs: int) -> nn.Module:
    """An untrained network: scaled float (n, bands, y, x) in, logits (n, outputs, y, x) out.

    Every upsampling maps pixel centres to pixel centres. With corners aligned instead (the library's default), the
    output is stretched by up to 1.5 pixels towards the rim of the patch, by another amount for each patch size.
    """
    import segmentation_models_pytorch as smp
    from torch import nn

    table = {"deeplabv3plus": smp.DeepLabV3Plus}
    network: nn.Module = table[architecture](encoder, encoder_weights=None, in_channels=bands, classes=outputs)
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.align_corners = False
    return network


def at_own_stride(network: nn.Module) -> nn.Module:
    """The same network without its last, parameterless upsampling: its scores are at its own stride.

    Whoever wants them at another size resamples them once instead of twice.
    """
    from torch import nn

    head = network.get_submodule("segmentation_head")
    for name, module in head.named_children():
        if isinstance(module, nn.Upsample):
            head.add_module(name, nn.Identity())
    return network
