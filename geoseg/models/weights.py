"""From a `ModelSpec` to a callable on patches. Weights are untrusted input: safetensors only, digest checked first."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional

from geoseg.catalog import catalogs_folder, sha256_of
from geoseg.errors import ModelError, OptionError
from geoseg.models.architectures import dates_of
from geoseg.models.backends import BACKENDS, BY_TORCH, TORCH, check_backend, is_coarse
from geoseg.models.compiled import CompiledNetwork
from geoseg.models.networks import at_own_stride, build_network, side_multiple
from geoseg.models.other_networks import OtherNetwork, noise_of
from geoseg.models.rewrites import COARSE_TOLERANCE, EXACT, ON_CPU, in_half_precision, rewritten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from geoseg.catalog import ModelSpec
    from geoseg.models.rewrites import Rewrite


class Predict(Protocol):
    """Scores of patches.

    `patches`: uint8 (n, bands, y, x) on any device; the result is float32 (n, outputs, *cells) on `device`: logits of
    the classes, then the auxiliary scores, for each of so many equal parts of the patch; the caller may change it. The
    scores of a patch depend on that patch alone, and on n. It may be called from several threads at a time.
    """

    @property
    def device(self) -> torch.device:
        """Where the scores are."""
        ...

    @property
    def outputs(self) -> int:
        """How many scores a cell gets."""
        ...

    def __call__(self, patches: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
        """Scores (n, outputs, *cells) of patches (n, bands, y, x)."""
        ...


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises `OptionError` if this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        msg = f"device {name!r}: choose auto, cpu, cuda or cuda:N"
        raise OptionError(msg) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        msg = f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu or auto"
        raise OptionError(msg)
    if device.type not in {"cpu", "cuda"}:
        msg = f"device {name!r}: choose auto, cpu, cuda or cuda:N"
        raise OptionError(msg)
    return device


class NetworkPredict:
    """A network on a device, with the scaling of its model's card before it and resampling around it.

    The network's scores are at its own stride. Where as many are asked for they are left alone; otherwise they are
    brought to the cells that are, in one step.
    """

    def __init__(self, spec: ModelSpec, network: torch.nn.Module, device: torch.device) -> None:
        self.device, self.outputs = device, spec.outputs
        self._side = spec.patch
        self._uploads = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layout = torch.contiguous_format if isinstance(network, OtherNetwork) else torch.channels_last
        scale, shift = [1 / (255 * s) for s in spec.std], [-m / s for m, s in zip(spec.mean, spec.std, strict=True)]
        self._scale, self._shift = (
            torch.tensor(each * spec.dates, device=device).view(-1, 1, 1) for each in (scale, shift)
        )

    def prepare(self, patches: int) -> None:
        """Do what takes long before so many patches go through it at a time.

        Raises `ModelError` if it is a backend's, and that cannot do the network as torch does.
        """
        if isinstance(self.network, OtherNetwork):
            self.network.prepare(self._shape(patches))
        elif isinstance(self.network, CompiledNetwork):
            self.network.prepare(self._shape(patches), self.device)

    def is_prepared(self, patches: int) -> bool:
        """Whether `prepare` is a matter of a second at most, now or because an earlier process has done it."""
        if isinstance(self.network, OtherNetwork):
            return self.network.is_kept(self._shape(patches))
        return not isinstance(self.network, CompiledNetwork) or self.network.is_ready(self._shape(patches))

    def _shape(self, patches: int) -> tuple[int, int, int, int]:
        """Of what the network itself takes for so many patches."""
        return patches, len(self._scale), self._side, self._side

    @torch.inference_mode()
    def __call__(self, patches: torch.Tensor, cells: tuple[int, int] | None = None) -> torch.Tensor:
        """Scores (n, outputs, *cells) of patches (n, bands, y, x), whatever their size; None: one for each pixel."""
        shape = cells or (patches.shape[2], patches.shape[3])
        scores: torch.Tensor = self.network(self.scaled(patches)).float()
        # one by one: three at a time take torch's way for images, which is slower
        return torch.cat([_resized(score, shape) for score in scores.contiguous().split(1, dim=1)], dim=1)

    def scaled(self, patches: torch.Tensor) -> torch.Tensor:
        """What the network itself takes: float32, scaled as the card says, at the network's own size."""
        values = _resized(self._on_device(patches), (self._side, self._side)).to(torch.float32, copy=True)
        # band by band as they lie, and laid out anew at last: the other way round takes longer
        return values.mul_(self._scale).add_(self._shift).contiguous(memory_format=self._layout)

    def _on_device(self, patches: torch.Tensor) -> torch.Tensor:
        """The patches there; to a GPU from pinned memory on a stream of their own, while it is at what came before."""
        if self._uploads is None:
            return patches.to(self.device)
        with torch.cuda.stream(self._uploads):
            values = patches.pin_memory().to(self.device, non_blocking=True)
        now = torch.cuda.current_stream(self.device)
        now.wait_stream(self._uploads)
        values.record_stream(now)  # its memory is not to be used again before that is done with it
        return values


def _resized(values: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Bilinear, pixel areas on pixel areas; where it shrinks, every pixel counts."""
    if tuple(values.shape[2:]) == shape:
        return values
    shrinks = shape[0] < values.shape[2] or shape[1] < values.shape[3]
    return functional.interpolate(values, size=shape, mode="bilinear", antialias=shrinks)


@contextmanager
def with_one_torch_thread() -> Iterator[None]:
    """One thread for each operation meanwhile, so that the number of cores cannot change a bit.

    Cores are filled by lanes. What is done when a network is loaded is so small that threads wait for each other
    longer than they work, and they wait busily. Also a decorator.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@with_one_torch_thread()
def load_predict(spec: ModelSpec, device: torch.device, backend: str = TORCH) -> NetworkPredict:
    """The model ready for patches, on the device, by a backend; another than torch takes it over when it is used first.

    Raises `ModelError` as `load_network` does, `OptionError` as `check_backend` does.
    """
    check_backend(backend, device.type)
    if backend in BACKENDS:
        return NetworkPredict(spec, other_network(spec, backend, device), device)
    return NetworkPredict(spec, network_to_predict(spec, device, backend), device)


def other_network(spec: ModelSpec, backend: str, device: torch.device) -> OtherNetwork:
    """The model's network by a backend that is not torch."""
    known = {"weights": spec.sha256, "architecture": spec.architecture, "encoder": spec.encoder}
    return OtherNetwork(backend, spec.name, known, lambda: _with_layers_made_one(spec, EXACT), device)


def network_to_predict(spec: ModelSpec, device: torch.device, backend: str = TORCH) -> torch.nn.Module:
    """The model's network as patches go through it by torch: at its own stride, as is best on the device.

    Raises `ModelError` as `load_network` does, and where numbers of 16 bits give scores that are far from the
    original's; `OptionError` for a GPU that has no bfloat16.
    """
    way = BY_TORCH[backend]
    packed = device.type == "cpu" and not way.compiled  # a compiler has its own ways with layers
    if way.numbers == "float32":
        network = _with_layers_made_one(spec, ON_CPU if packed else EXACT)
    else:
        if way.numbers == "bfloat16" and device.type == "cuda":
            _check_bfloat16(backend, device)
        network = _coarse_network(spec, way.numbers, packed=packed)
    return CompiledNetwork(spec.name, network, coarse=is_coarse(backend)) if way.compiled else network


def _coarse_network(spec: ModelSpec, numbers: str, *, packed: bool) -> torch.nn.Module:
    network = _with_layers_made_one(spec, EXACT)
    sample = _sample_of(network, spec)
    coarse, difference = in_half_precision(network, sample, getattr(torch, numbers), pack=packed)
    if not difference <= COARSE_TOLERANCE:  # it may be no number
        msg = f"{spec.name}: in {numbers} it gives other scores, by {difference:.1e} of their range"
        raise ModelError(f"{msg}; use --backend {TORCH}")
    return coarse


def _check_bfloat16(backend: str, device: torch.device) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        msg = f"--backend {backend}: the device {device} has no bfloat16; use --backend {TORCH} or torch-compile-fp16"
        raise OptionError(msg)


def _with_layers_made_one(spec: ModelSpec, rewrites: Sequence[Rewrite]) -> torch.nn.Module:
    def make() -> torch.nn.Module:
        return at_own_stride(load_network(spec))

    return rewritten(make, lambda network: _sample_of(network, spec), rewrites)


def _sample_of(network: torch.nn.Module, spec: ModelSpec) -> torch.Tensor:
    side = min(spec.patch, 4 * side_multiple(network))
    return noise_of((1, spec.dates * len(spec.bands), side, side))


def load_network(spec: ModelSpec) -> torch.nn.Module:
    """The model's network with its weights: scaled patches in, logits of the patch's size out.

    Raises `ModelError` if the weights are missing, damaged, not those of the card, or of another shape, or if the
    network is an unknown one.
    """
    check_weights(spec)
    try:
        tensors = load_file(spec.weights)
    except SafetensorError as error:
        msg = f"{spec.weights}: not a readable safetensors file ({error}); other formats may run code and are refused"
        raise ModelError(msg) from error
    try:
        network = build_network(spec.architecture, encoder=spec.encoder, bands=len(spec.bands), outputs=spec.outputs)
    except ModelError as error:
        msg = f"{spec.weights.parent / 'item.json'}: this version of geoseg cannot build its network: {error}"
        raise ModelError(msg) from error
    if dates_of(spec.architecture) != spec.dates:
        msg = f"{spec.weights.parent / 'item.json'}: its input is {spec.dates} dates, {spec.architecture} takes "
        raise ModelError(msg + f"{dates_of(spec.architecture)}; correct the shape of mlm:input")
    if spec.patch % (multiple := side_multiple(network)):
        msg = (
            f"{spec.weights.parent / 'item.json'}: a patch of {spec.patch} pixels does not fit {spec.encoder}: choose "
        )
        raise ModelError(msg + f"a multiple of {multiple} for the shape of mlm:input")
    _fill(network, tensors, spec)
    return network


def check_weights(spec: ModelSpec) -> None:
    """Raises `ModelError` if the weights are missing or not those of the model's card; opens nothing."""
    try:
        digest = sha256_of(spec.weights)
    except OSError as error:
        ours = spec.weights.is_relative_to(catalogs_folder())
        remedy = "install geoseg again" if ours else "put them there, beside the model's item.json"
        msg = f"{spec.weights}: the weights of {spec.name} cannot be read: {error.strerror}; {remedy}"
        raise ModelError(msg) from error
    if digest != spec.sha256:
        msg = f"{spec.weights}: the weights are not those of the model's card: SHA-256 {digest}, expected {spec.sha256}"
        raise ModelError(msg)


def _fill(network: torch.nn.Module, tensors: dict[str, torch.Tensor], spec: ModelSpec) -> None:
    expected = network.state_dict()
    for name in expected.keys() | tensors.keys():
        have = tuple(tensors[name].shape) if name in tensors else "nothing"
        want = tuple(expected[name].shape) if name in expected else "nothing"
        if have != want:
            msg = f"{spec.weights}: layer {name}: the file has {have}, {spec.architecture} needs {want}"
            raise ModelError(msg)
    network.load_state_dict(tensors)
