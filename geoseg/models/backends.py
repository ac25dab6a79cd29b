"""Which libraries do a network's forward passes: the table, and what can be known of them without loading any.

A new one is added to `BACKENDS`, with a module of its own beside this one that has two functions:

    convert(network, values)   takes over a network (an `nn.Module`) for values of one shape, float32 (n, bands, y, x):
                               the content of files, by names of its choice; it may raise whatever it likes
    opened(parts, coarse)      reads these, and returns what makes a forward pass ready for one thread on one core;
                               coarse: in bfloat16

Those that end in -bf16 do most of the work in bfloat16 (8 bits of fraction instead of 24), for which recent processors
and GPUs have instructions. They are far faster there, and change a label here and there: so nobody gets them unasked.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from geoseg.errors import OptionError

AUTO, TORCH, TORCH_BF16 = "auto", "torch", "torch-bf16"


@dataclass(frozen=True)
class Backend:
    """A library that does forward passes in torch's place, on a CPU."""

    module: str
    """Of this package."""
    extra: str
    """Of geoseg, that brings it."""
    packages: tuple[str, ...]
    """What the extra brings and is needed."""
    coarse: bool = False
    """Whether it works in bfloat16."""

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]

    @property
    def versions(self) -> dict[str, str]:
        """Of its packages, as far as they are installed."""
        return {package: version(package) for package in self.packages if find_spec(package) is not None}


BACKENDS = {
    "openvino": Backend("by_openvino", "openvino", ("openvino",)),
    "onnxruntime": Backend("by_onnxruntime", "onnx", ("onnx", "onnxruntime", "onnxscript")),
    "openvino-bf16": Backend("by_openvino", "openvino", ("openvino",), coarse=True),
}
"""By the names that users give them. Each passes the same tests by being here."""

NAMES = (AUTO, TORCH, TORCH_BF16, *BACKENDS)
"""What users may ask for."""


def check_backend(name: str, device: str = "cpu") -> None:
    """Raises `OptionError` for a backend that is unknown, not installed, or not for a device of this type."""
    if name in {AUTO, TORCH, TORCH_BF16}:
        return
    if name not in BACKENDS:
        msg = f"--backend {name}: choose {', '.join(NAMES[:-1])} or {NAMES[-1]}"
        raise OptionError(msg)
    if missing := BACKENDS[name].missing:
        msg = f"--backend {name}: {', '.join(missing)} is not installed: pip install 'geoseg[{BACKENDS[name].extra}]'"
        raise OptionError(f"{msg}; results that were begun with it go on with it alone, or anew with --overwrite")
    if device != "cpu":
        msg = f"--backend {name}: is for a CPU, and the device is {device}; use --backend {TORCH} or {TORCH_BF16}, or "
        raise OptionError(f"{msg}--device cpu")


def installed_backends() -> tuple[str, ...]:
    """Those that can be chosen here; torch first."""
    return TORCH, TORCH_BF16, *(name for name, backend in BACKENDS.items() if not backend.missing)


def is_coarse(name: str) -> bool:
    """Whether a backend works in bfloat16."""
    return name == TORCH_BF16 or (name in BACKENDS and BACKENDS[name].coarse)
