"""The architectures, in one table: what is known of them without a library that builds networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A way from an encoder's features to a map."""

    description: str
    """For people: what it is, and what for."""
    library_class: str | None
    """Its class in segmentation-models-pytorch; None for what is built here."""
    stride: int = 4
    """Pixels of its input from one score to the next, before they are brought to the input's size."""
    options: dict[str, Any] = field(default_factory=dict)


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
}
"""Every architecture by its name. A new one is added here, and is tested like the others by being here."""


def own_stride(architecture: str) -> int:
    """Pixels from one score to the next of an architecture; 1 if it is an unknown one, which cannot be built anyway."""
    return ARCHITECTURES[architecture].stride if architecture in ARCHITECTURES else 1
