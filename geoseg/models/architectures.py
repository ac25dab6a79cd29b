"""The architectures, in one table: what is known of them without a library that builds networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Architecture:
    """A way from an encoder's features to a map."""

    description: str
    """For people: what it is, and what for."""
    library_class: str | None
    """Its class in segmentation-models-pytorch or torchgeo; None for what is built here."""
    stride: int = 4
    """Pixels of its input from one score to the next, before they are brought to the input's size."""
    options: dict[str, Any] = field(default_factory=dict)
    dates: int = 1
    """Scenes of one place that it takes at once, the bands of one behind those of the other."""
    fusion: Literal["", "difference", "mixin", "own"] = ""
    """How the dates come together: by how much their features differ, by ChangeStar's layers on the decoded features of
    both, or in its own way."""
    from_torchgeo: bool = False
    """Whether it is built of torchgeo's parts, and so needs the extra `train`."""
    encoders: tuple[str, ...] = ()
    """The encoders that it takes, where these are few."""


ARCHITECTURES = {
    "deeplabv3plus": Architecture(
        "DeepLabv3+ (Chen et al. 2018): wide context and sharp edges at moderate cost", "DeepLabV3Plus"
    ),
    "segformer": Architecture(
        "SegFormer (Xie et al. 2021): a light head, at its best on the encoders mit_b0 to mit_b5", "Segformer"
    ),
    "unet": Architecture("U-Net (Ronneberger et al. 2015): the finest detail, at every scale", "Unet", 1),
    "unetplusplus": Architecture(
        "UNet++ (Zhou et al. 2018): U-Net with denser connections, and dearer", "UnetPlusPlus", 1
    ),
    "upernet": Architecture("UPerNet (Xiao et al. 2018): a pyramid of features, for large encoders", "UPerNet"),
    "deeplabv3": Architecture(
        "DeepLabv3 (Chen et al. 2017): wide context, blunt edges", "DeepLabV3", 16, {"encoder_output_stride": 16}
    ),
    "fcn": Architecture("FCN (Long et al. 2015): the deepest features alone; simple, a baseline", None, 16),
    "fc-siam-diff": Architecture(
        "FC-Siam-diff (Daudt et al. 2018): U-Net on how much the features of two dates differ; light",
        "Unet",
        1,
        dates=2,
        fusion="difference",
    ),
    "fc-siam-conc": Architecture(
        "FC-Siam-conc (Daudt et al. 2018): U-Net on the features of two dates; the order of the dates matters",
        "FCSiamConc",
        1,
        dates=2,
        fusion="own",
        from_torchgeo=True,
    ),
    "siamese-deeplabv3plus": Architecture(
        "DeepLabv3+ (Chen et al. 2018) on how much the features of two dates differ",
        "DeepLabV3Plus",
        dates=2,
        fusion="difference",
    ),
    "siamese-segformer": Architecture(
        "SegFormer (Xie et al. 2021) on how much the features of two dates differ",
        "Segformer",
        dates=2,
        fusion="difference",
    ),
    "changestar-deeplabv3plus": Architecture(
        "ChangeStar (Zheng et al. 2021) on DeepLabv3+: each date decoded, then compared; for few labels of change",
        "DeepLabV3Plus",
        dates=2,
        fusion="mixin",
        from_torchgeo=True,
    ),
    "changestar-segformer": Architecture(
        "ChangeStar (Zheng et al. 2021) on SegFormer",
        "Segformer",
        dates=2,
        fusion="mixin",
        from_torchgeo=True,
    ),
    "changestar-farseg": Architecture(
        "ChangeStar (Zheng et al. 2021) on FarSeg, as it was published, for three bands",
        "ChangeStarFarSeg",
        dates=2,
        fusion="own",
        from_torchgeo=True,
        encoders=("resnet18", "resnet34", "resnet50", "resnet101"),
    ),
    "btc": Architecture(
        "BTC (Rolih et al. 2025): UPerNet on how much Swin's features of two dates differ, for three bands; large",
        "BTC",
        dates=2,
        fusion="own",
        from_torchgeo=True,
        encoders=("swin_tiny", "swin_small", "swin_base"),
    ),
    "changevit": Architecture(
        "ChangeViT (Zhu et al. 2024): a plain vision transformer with finer details; the order of the dates matters",
        "ChangeViT",
        1,
        dates=2,
        fusion="own",
        from_torchgeo=True,
    ),
}
"""Every architecture by its name. A new one is added here, and is tested like the others by being here."""


def own_stride(architecture: str) -> int:
    """Pixels from one score to the next of an architecture; 1 if it is an unknown one, which cannot be built anyway."""
    return ARCHITECTURES[architecture].stride if architecture in ARCHITECTURES else 1


def dates_of(architecture: str) -> int:
    """Scenes of one place that an architecture takes at once; 1 if it is an unknown one, which cannot be built."""
    return ARCHITECTURES[architecture].dates if architecture in ARCHITECTURES else 1
