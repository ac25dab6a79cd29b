"""Networks, built from the table of architectures."""

from __future__ import annotations

import difflib
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from geoseg.errors import ModelError
from geoseg.models import siamese
from geoseg.models.architectures import ARCHITECTURES, Architecture

if TYPE_CHECKING:
    from collections.abc import Iterable


class FullyConvolutional(nn.Module):
    """FCN: torchvision's head on the deepest features of an encoder, brought to the input's size."""

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        from torchvision.models.segmentation.fcn import FCNHead

        super().__init__()
        self.encoder = encoder
        self.decoder = FCNHead(_int(encoder, "out_channels", -1), outputs)
        enlarge = nn.Upsample(scale_factor=_int(encoder, "output_stride"), mode="bilinear", align_corners=False)
        self.segmentation_head = nn.Sequential(enlarge)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Logits (n, outputs, y, x) of scaled values (n, bands, y, x)."""
        stride = side_multiple(self)
        if values.shape[2] % stride or values.shape[3] % stride:
            msg = f"an image's sides must be multiples of {stride}, got {tuple(values.shape[2:])}"
            raise ValueError(msg)
        logits: torch.Tensor = self.segmentation_head(self.decoder(self.encoder(values)[-1]))
        return logits


def build_network(architecture: str, *, encoder: str, bands: int, outputs: int) -> nn.Module:
    """An untrained network: scaled float (n, dates x bands, y, x) in, logits (n, outputs, y, x) out.

    Every upsampling maps pixel centres to pixel centres. With corners aligned instead (the library's default), the
    output is stretched by up to 1.5 pixels towards the rim of the patch, by another amount for each patch size.

    The sides of what goes in are multiples of `side_multiple(network)`.

    Args:
        architecture: One of `ARCHITECTURES`.
        encoder: An encoder of segmentation-models-pytorch, or `tu-` and the name of one of timm's.
        bands: Of each date.
        outputs: Channels of the output.

    Raises:
        ModelError: One of the two is unknown, or they do not go together.
    """
    if architecture not in ARCHITECTURES:
        msg = f"there is no architecture {architecture!r}: choose one of {_nearest(architecture, ARCHITECTURES)}"
        raise ModelError(msg)
    _check_encoder(encoder, architecture)
    if ARCHITECTURES[architecture].from_torchgeo and find_spec("torchgeo") is None:
        msg = f"{architecture}: is built with torchgeo, which is not installed: pip install 'geoseg[train]'"
        raise ModelError(msg)
    try:
        network = _built(ARCHITECTURES[architecture], encoder, bands, outputs)
    except (
        AssertionError,
        AttributeError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        msg = f"{architecture} cannot be built on the encoder {encoder!r} ({' '.join(str(error).split())}): choose "
        raise ModelError(msg + "another encoder, or upernet, segformer or unet, which ask least of one") from error
    for module in network.modules():
        if isinstance(module, nn.Upsample) and module.mode != "nearest":
            module.align_corners = False
    return network


def at_own_stride(network: nn.Module) -> nn.Module:
    """The same network without its last, parameterless upsampling: its scores are at its own stride.

    Whoever wants them at another size resamples them once instead of twice. U-Net and UNet++ end at full size: theirs
    are as before.
    """
    head = network.get_submodule("segmentation_head")
    for name, module in head.named_children():
        if isinstance(module, nn.Upsample):
            head.add_module(name, nn.Identity())
    return network


def side_multiple(network: nn.Module) -> int:
    """What the sides of a network's input have to be multiples of: the stride of its encoder's deepest features."""
    return _int(network.get_submodule("encoder"), "output_stride")


def _built(architecture: Architecture, encoder: str, bands: int, outputs: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    if architecture.library_class is None:
        return FullyConvolutional(_dilated_encoder(encoder, bands), outputs)
    if architecture.fusion == "own":
        return siamese.from_torchgeo(architecture.library_class, encoder, bands, outputs)
    build = getattr(smp, architecture.library_class)
    network: nn.Module = build(
        encoder, encoder_weights=None, in_channels=bands, classes=outputs, **architecture.options
    )
    if architecture.fusion == "difference":
        return siamese.Siamese(network, siamese.difference)
    if architecture.fusion == "mixin":
        channels = _int(network.get_submodule("segmentation_head.0"), "in_channels")
        parts = network.get_submodule("encoder"), network.get_submodule("decoder")
        return siamese.ChangeStar(*parts, channels, outputs, architecture.stride)
    return network


def _dilated_encoder(name: str, bands: int) -> nn.Module:
    """Features at stride 16, which keep more of what is small; at 32 for an encoder that cannot be dilated."""
    from segmentation_models_pytorch.encoders import get_encoder

    encoder: nn.Module
    try:
        encoder = get_encoder(name, in_channels=bands, weights=None, output_stride=16)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        encoder = get_encoder(name, in_channels=bands, weights=None)
    return encoder


def _check_encoder(name: str, architecture: str) -> None:
    """Raise `ModelError` unless it is the plain name of an encoder: other names would be fetched from somewhere."""
    import timm
    from segmentation_models_pytorch.encoders import get_encoder_names

    few = ARCHITECTURES[architecture].encoders
    if few:
        if name in few:
            return
        msg = f"there is no encoder {name!r} for {architecture}: choose one of {_nearest(name, few)}"
        raise ModelError(msg)
    if re.fullmatch(r"[\w.-]+", name):
        known = name.startswith("tu-") and timm.is_model(name.removeprefix("tu-"))
        if known or name in get_encoder_names():
            return
    names = [*get_encoder_names(), *(f"tu-{model}" for model in timm.list_models())]
    msg = f"there is no encoder {name!r}; the nearest are {_nearest(name, names, count=6)}; the others are those of "
    raise ModelError(msg + "segmentation-models-pytorch, and of timm with tu- before their names")


def _nearest(name: str, known: Iterable[str], count: int | None = None) -> str:
    """Known names, the most similar ones first."""
    similar = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, name.lower(), other).ratio())
    return ", ".join(similar[:count])


def _int(module: nn.Module, attribute: str, index: int | None = None) -> int:
    """A number among a library's attributes, which have no types."""
    value: Any = getattr(module, attribute)
    return int(value if index is None else value[index])
