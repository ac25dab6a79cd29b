"""Which libraries do a network's forward passes: the tables, and what can be known of them without loading any.

`BY_TORCH` are torch's own ways. Another library is added to `BACKENDS`, with a module of its own beside this one that
has two functions:

    convert(network, values)        takes over a network (an `nn.Module`) for values of one shape, float32
                                    (n, bands, y, x): the content of files, by names of its choice; it may raise
                                    whatever it likes
    opened(parts, coarse, device)   reads these, and returns what makes a forward pass ready for one thread;
                                    coarse: in bfloat16

and, if it is for a GPU as well, a third, `check_gpu()`, which raises `OptionError` if it cannot work on one.

Those that end in -bf16 do most of the work in bfloat16 (8 bits of fraction instead of 24), for which recent processors
and GPUs have instructions, that in -fp16 in float16 (11 bits, and no numbers beyond 65504), for GPUs that are older.
They are far faster there, and change a label here and there: so nobody gets them unasked.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from geoseg.errors import OptionError

AUTO, TORCH, TORCH_BF16 = "auto", "torch", "torch-bf16"

USUAL = "openvino"
"""Who does the passes on a CPU where nobody names a backend and nothing was measured, if it is installed: it was the
fastest in float32 wherever we have looked (docs/speed.md)."""


@dataclass(frozen=True)
class Torch:
    """A way in which torch does forward passes, on any device."""

    numbers: str = "float32"
    """The type of weights and values, by torch's name for it."""
    compiled: bool = False
    """Whether torch compiles the network: see `geoseg.models.compiled`."""


BY_TORCH = {
    TORCH: Torch(),
    TORCH_BF16: Torch("bfloat16"),
    "torch-compile": Torch(compiled=True),
    "torch-compile-bf16": Torch("bfloat16", compiled=True),
    "torch-compile-fp16": Torch("float16", compiled=True),
}
"""By the names that users give them."""


@dataclass(frozen=True)
class Backend:
    """A library that does forward passes in torch's place."""

    module: str
    """Of this package."""
    extra: str
    """Of geoseg, that brings it."""
    packages: tuple[str, ...]
    """What the extra brings and is needed."""
    coarse: bool = False
    """Whether it works in bfloat16."""
    on_gpu: bool = False
    """Whether it is for a GPU, too."""

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]

    @property
    def versions(self) -> dict[str, str]:
        """Of its packages, as far as they are installed."""
        return {package: _version(package) for package in self.packages if find_spec(package) is not None}


def _version(package: str) -> str:
    """Of a package that another one may stand in for which is made for GPUs and named after it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return version(f"{package}-gpu")


BACKENDS = {
    "openvino": Backend("by_openvino", "openvino", ("openvino",)),
    "onnxruntime": Backend("by_onnxruntime", "onnx", ("onnx", "onnxruntime", "onnxscript"), on_gpu=True),
    "openvino-bf16": Backend("by_openvino", "openvino", ("openvino",), coarse=True),
}
"""By the names that users give them. Each passes the same tests by being here."""

NAMES = (AUTO, *BY_TORCH, *BACKENDS)
"""What users may ask for."""


def check_backend(name: str, device: str = "cpu") -> None:
    """Raises `OptionError` for a backend that is unknown, not installed, or not for a device of this type."""
    if name == AUTO or name in BY_TORCH:
        return
    if name not in BACKENDS:
        msg = f"--backend {name}: choose {', '.join(NAMES[:-1])} or {NAMES[-1]}"
        raise OptionError(msg)
    if missing := BACKENDS[name].missing:
        msg = f"--backend {name}: {', '.join(missing)} is not installed: pip install 'geoseg[{BACKENDS[name].extra}]'"
        raise OptionError(f"{msg}; results that were begun with it go on with it alone, or anew with --overwrite")
    if device == "cpu":
        return
    if not BACKENDS[name].on_gpu:
        msg = f"--backend {name}: is for a CPU, and the device is {device}; use --backend {TORCH} or {TORCH_BF16}, or "
        raise OptionError(f"{msg}--device cpu")
    import_module(f"geoseg.models.{BACKENDS[name].module}").check_gpu()


def installed_backends(device: str = "cpu") -> tuple[str, ...]:
    """Those that can be chosen here for a device of this type; torch first."""
    fit = {name: backend for name, backend in BACKENDS.items() if device == "cpu" or backend.on_gpu}
    return *BY_TORCH, *(name for name, backend in fit.items() if not backend.missing)


def is_coarse(name: str) -> bool:
    """Whether a backend works with numbers of 16 bits."""
    return BY_TORCH[name].numbers != "float32" if name in BY_TORCH else name in BACKENDS and BACKENDS[name].coarse
