"""A network as it is trained, made one that says the same with less work.

Each rewrite is exact in real numbers, and so within rounding in those of a computer: layers that are linear and follow
each other are made one, or change places, or are done by other kernels. They are for predicting alone; what is trained
and written keeps every layer.

Whatever a rewrite assumes of a network is checked by its result: `rewritten` compares what both networks say of the
same random input, and the original is taken, with a warning, where that differs by more than `TOLERANCE` or fails. A
map by the original is right and slow, an error would be neither.
"""

from __future__ import annotations

import logging
import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Rewrite = Callable[[nn.Module, torch.Tensor], int]

log = logging.getLogger("geoseg")

TOLERANCE = 1e-4
"""How much the scores of a rewritten network may differ from the original's, of these scores' range."""

COARSE_TOLERANCE = 0.1
"""The same for a network whose numbers have 16 bits. The bundled ones are at 0.01; a network that it does not suit, as
one whose numbers grow too large or whose scores are small differences of them, is beyond."""

GPU_TOLERANCE = 0.01
"""The same between two ways of doing float32 on a GPU, where torch's convolutions and others' take numbers with 11 bits
of fraction (TF32), bfloat16's and three more."""


def tolerance(device: str, *, coarse: bool) -> float:
    """How much a backend's scores may differ from torch's on a device of this type."""
    return COARSE_TOLERANCE if coarse else TOLERANCE if device == "cpu" else GPU_TOLERANCE


def rewritten(
    make: Callable[[], nn.Module],
    sample_of: Callable[[nn.Module], torch.Tensor],
    rewrites: Sequence[Rewrite],
) -> nn.Module:
    """The network that `make` makes, in evaluation mode, with all rewrites that apply, or as it is if they are wrong.

    `make` is called a second time only then: so there is never more than one network in memory. A network that says
    what are no numbers is left alone.

    Args:
        make: Gives the network.
        sample_of: Gives scaled values (n, bands, y, x) of any size that the network takes.
        rewrites: Change a network in place, knowing what goes in, and say how often; one after the other.
    """
    network = make().eval()
    sample = sample_of(network)
    with torch.inference_mode():
        expected = network(sample)
    if not expected.isfinite().all():
        return network
    try:
        difference = _difference_when_rewritten(network, sample, expected, rewrites)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        log.debug("", exc_info=error)
        difference = math.inf
    log.info("the network with layers made one differs from the original by %.1e of its scores' range", difference)
    if difference <= TOLERANCE:
        return network
    log.warning("layers of this network cannot be made one without changing its scores; going on with the slower one")
    return make().eval()


def _difference_when_rewritten(
    network: nn.Module, sample: torch.Tensor, expected: torch.Tensor, rewrites: Sequence[Rewrite]
) -> float:
    for rewrite in rewrites:
        count = rewrite(network, sample)
        log.debug("network: %s, %d times", getattr(rewrite, "__name__", "").replace("_", " "), count)
    with torch.inference_mode():
        difference = relative_difference(network(sample), expected)
    _forget_shapes(network)
    return difference


def _forget_shapes(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _Packed):
            module.forget()


def relative_difference(scores: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the range of what is expected; infinite if the shapes differ."""
    if scores.shape != expected.shape:
        return math.inf
    largest, between = float((scores - expected).abs().max()), float(expected.max() - expected.min())
    return largest / between if between else math.inf if largest else 0.0


# --- which layer follows which


def _convolutions_before(
    followers: dict[str, nn.Module], network: nn.Module, sample: torch.Tensor
) -> dict[str, nn.Conv2d]:
    """The convolution before each of these layers, by their names, that has one for itself."""
    flow = _Flow(network)
    hooks = []
    for name, module in followers.items():
        hooks.append(module.register_forward_pre_hook(partial(flow.enter, name)))
        hooks.append(module.register_forward_hook(flow.leave))
    try:
        with torch.inference_mode(), _out_of_place(network), flow:
            network(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return flow.pairs()


@contextmanager
def _out_of_place(network: nn.Module) -> Iterator[None]:
    """Have activations make new tensors meanwhile, so that what came before them can be told from what they make."""
    modules: list[Any] = [module for module in network.modules() if getattr(module, "inplace", False) is True]
    for module in modules:
        module.inplace = False
    try:
        yield
    finally:
        for module in modules:
            module.inplace = True


class _Flow(TorchFunctionMode):
    """Who takes what convolutions give, while a network is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._convolutions = {id(m.weight): m for m in network.modules() if isinstance(m, nn.Conv2d)}
        self._outputs: dict[int, tuple[torch.Tensor, nn.Conv2d]] = {}
        """By their id, which no other tensor has while they are kept."""
        self._takers: dict[int, list[str | None]] = {}
        """The followers that took an output, or None for anything else, once for each operation."""
        self._taken: dict[str, set[int | None]] = {}
        """Ids of the outputs that a follower took, or None for anything else."""
        self._inside: list[str] = []

    def enter(self, name: str, _module: nn.Module, given: tuple[Any, ...]) -> None:
        """A follower is called."""
        self._inside.append(name)
        known = bool(given) and id(given[0]) in self._outputs
        self._taken.setdefault(name, set()).add(id(given[0]) if known else None)

    def leave(self, _module: nn.Module, _given: tuple[Any, ...], _made: Any) -> None:
        """It is done."""
        self._inside.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call it, and take note."""
        result = func(*args, **(kwargs or {}))
        if not any(isinstance(each, torch.Tensor) for each in tree_iter(result)):
            return result  # asked for a shape, or the like
        for each in tree_iter((args, kwargs)):
            if id(each) in self._outputs:
                self._takers[id(each)].append(self._inside[-1] if self._inside else None)
        if func is torch.conv2d and id(args[1]) in self._convolutions:
            self._outputs[id(result)] = result, self._convolutions[id(args[1])]
            self._takers[id(result)] = []
        return result

    def pairs(self) -> dict[str, nn.Conv2d]:
        """The convolution before each follower that has one for itself."""
        made: dict[nn.Conv2d, set[int | None]] = {}
        for output, (_, convolution) in self._outputs.items():
            made.setdefault(convolution, set()).add(output)
        return {
            name: convolution
            for name, taken in self._taken.items()
            for convolution, outputs in made.items()
            if outputs == taken and all(self._takers[each] == [name] for each in outputs if each is not None)
        }


# --- BatchNorm


def fold_batch_norms(network: nn.Module, sample: torch.Tensor) -> int:
    """Scale and shift of a BatchNorm become part of the convolution before it. How many did.

    A BatchNorm has a convolution before it if it sees its output each time, and nothing else does. That is found by
    following the sample through the network, for which layer follows another is written in nothing but code.
    """
    norms = {name: module for name, module in network.named_modules() if _is_foldable(module)}
    pairs = _convolutions_before(norms, network, sample)
    for name, convolution in pairs.items():
        norm: Any = network.get_submodule(name)
        _fold(convolution, norm)
        network.set_submodule(name, norm.act if hasattr(norm, "act") else nn.Identity())
    return len(pairs)


@torch.no_grad()
def _fold(convolution: nn.Conv2d, norm: Any) -> None:
    """In float64, so that only the result is rounded."""
    bias = convolution.bias if convolution.bias is not None else torch.zeros_like(norm.running_mean)
    numbers = [convolution.weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias]
    numbers = [each.double() if isinstance(each, torch.Tensor) else each for each in numbers]
    weight, shift = fuse_conv_bn_weights(*numbers)
    convolution.weight.copy_(weight)
    convolution.bias = nn.Parameter(shift.to(bias.dtype))


def _is_foldable(module: nn.Module) -> bool:
    """Whether it is a BatchNorm with statistics; timm's has an activation behind it, and maybe something between."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    return type(module) is nn.BatchNorm2d or isinstance(getattr(module, "drop", None), nn.Identity)


# --- SegFormer


def fold_segformer_head(network: nn.Module, sample: torch.Tensor) -> int:  # noqa: ARG001  as every rewrite has it
    """Each level of a SegFormer's features is projected and fused in one step, before it is enlarged. How many heads.

    Xie et al. (2021) project each level, enlarge it, and fuse all of them by a convolution of 1 x 1. That is linear,
    and the same at each place, as bilinear enlarging is the same for each channel: so they may change places, and the
    two matrices of a level become one.
    """
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder

    heads = [(name, module) for name, module in network.named_modules() if type(module) is SegformerDecoder]
    for name, head in heads:
        network.set_submodule(name, FoldedSegformerHead(head))
    return len(heads)


class FoldedSegformerHead(nn.Module):
    """A `SegformerDecoder` whose layers are one for each level."""

    @torch.no_grad()
    def __init__(self, head: Any) -> None:
        super().__init__()
        fuse, *rest = head.fuse_stage
        self.rest = nn.Sequential(*rest)
        matrices, shift = projected_and_fused(head, torch.float64)
        self.levels = nn.ModuleList(map(_pointwise, matrices))
        last: Any = self.levels[-1]
        last.bias = nn.Parameter(shift.to(fuse.weight.dtype))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """The finest level's (n, channels, y / 4, x / 4) of an encoder's features, those of the input before them."""
        size = [side // 4 for side in features[0].shape[2:]]
        coarsest_first = features[: -len(self.levels) - 1 : -1]
        total: torch.Tensor | None = None
        for level, feature in zip(self.levels, coarsest_first, strict=True):
            given = _resized(level(_shrunk(feature, size)), size)
            total = given if total is None else total.add_(given)
        fused: torch.Tensor = self.rest(total)
        return fused


def projected_and_fused(head: Any, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Of a `SegformerDecoder`, what projecting a level and fusing all of them is as one, multiplied in a type.

    The matrix (channels, features) of each level, in the order of `mlp_stage`, and (channels,) what is added to their
    sum.
    """
    fuse, projections = head.fuse_stage[0], [stage.linear for stage in head.mlp_stage]
    weights = fuse.weight[:, :, 0, 0].to(dtype).chunk(len(projections), 1)
    pairs = list(zip(weights, projections, strict=True))
    shift = torch.stack([w @ p.bias.to(dtype) for w, p in pairs]).sum(0)
    return [w @ p.weight.to(dtype) for w, p in pairs], shift if fuse.bias is None else shift + fuse.bias.to(dtype)


def _pointwise(matrix: torch.Tensor) -> nn.Conv2d:
    """A convolution of 1 x 1 without bias, with this matrix (out, in)."""
    convolution = nn.Conv2d(matrix.shape[1], matrix.shape[0], 1, bias=False)
    convolution.weight.copy_(matrix[:, :, None, None])
    return convolution


def _shrunk(feature: torch.Tensor, size: list[int]) -> torch.Tensor:
    """A feature that is finer than that, so that no more of it is worked on than needed; others as they are."""
    return _resized(feature, size) if feature.shape[2] > size[0] else feature


def _resized(values: torch.Tensor, size: list[int]) -> torch.Tensor:
    if list(values.shape[2:]) == size:
        return values
    return functional.interpolate(values, size=size, mode="bilinear", align_corners=False)


# --- oneDNN's own kernels


def pack_layers(network: nn.Module, sample: torch.Tensor) -> int:
    """Convolutions and linear layers are done by oneDNN, on weights that are packed for it, activation included.

    With one thread, torch takes matrix products of MKL's for convolutions of 1 x 1 and linear layers, and lays out
    weights anew for others each time. On a processor without kernels of its own in MKL that takes twice as long. How
    many layers; none where torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return 0
    activations = {name: module for name, module in network.named_modules() if type(module) in ACTIVATIONS}
    before = _convolutions_before(activations, network, sample)
    behind = {convolution: name for name, convolution in before.items() if type(convolution) is nn.Conv2d}
    layers = [(name, module) for name, module in network.named_modules() if _is_packable(module)]
    for name, layer in layers:
        if isinstance(layer, nn.Linear):
            network.set_submodule(name, PackedLinear(layer))
            continue
        follower = behind.get(layer)
        activation = ("none", []) if follower is None else ACTIVATIONS[type(activations[follower])]
        network.set_submodule(name, PackedConvolution(layer, *activation))
        if follower is not None:
            network.set_submodule(follower, nn.Identity())
    return len(layers)


ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}
"""What oneDNN does behind a convolution: its name there, and its numbers."""


def _is_packable(module: nn.Module) -> bool:
    """Whether it is a layer whose every setting is known; other classes have ways of their own."""
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def _onednn(name: str) -> Any:
    """What torch calls oneDNN by when it compiles a network. It has no public name, so a later torch may differ."""
    return getattr(torch.ops.mkldnn, f"_{name}")


class _Packed(nn.Module):
    """A layer with its weights as oneDNN wants them, which depends on the shape of what goes in.

    So they are packed for each shape when it comes first, and a result does not depend on which came before. Two
    threads that are at it at once make the same.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._packed: dict[tuple[int, ...], torch.Tensor] = {}

    def weight_for(self, values: torch.Tensor) -> torch.Tensor:
        """The weights for values of this shape."""
        shape = tuple(values.shape)
        packed = self._packed.get(shape)
        if packed is None:
            packed = self._packed[shape] = self.pack(shape)
        return packed

    def pack(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Pack the weights for a shape."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forget the shapes that have come."""
        self._packed.clear()


class PackedConvolution(_Packed):
    """A convolution and the activation behind it."""

    def __init__(self, layer: nn.Conv2d, activation: str, numbers: list[float]) -> None:
        """`activation`: as oneDNN calls it, with its numbers."""
        super().__init__(layer)
        self._settings = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
        self._activation = activation, numbers, ""

    def pack(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Pack the weights for a shape."""
        packed: torch.Tensor = _onednn("reorder_convolution_weight")(self.weight, *self._settings, list(shape))
        return packed

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """What the layers give for values (n, channels, y, x)."""
        weight = self.weight_for(values)
        convolution = _onednn("convolution_pointwise")
        result: torch.Tensor = convolution(values, weight, self.bias, *self._settings, *self._activation)
        return result


class PackedLinear(_Packed):
    """A linear layer."""

    def pack(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Pack the weights for a shape."""
        packed: torch.Tensor = _onednn("reorder_linear_weight")(self.weight, math.prod(shape[:-1]))
        return packed

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """What the layer gives for values (..., features)."""
        weight = self.weight_for(values)
        result: torch.Tensor = _onednn("linear_pointwise")(values, weight, self.bias, "none", [], "")
        return result


# --- numbers of 16 bits


class InHalfPrecision(nn.Module):
    """A network whose weights and values have 16 bits, for float32 in and out; sums are float32 inside each layer."""

    def __init__(self, network: nn.Module, numbers: torch.dtype) -> None:
        """`network`: is changed; `numbers`: bfloat16 or float16."""
        super().__init__()
        self.network, self._numbers = network.to(numbers), numbers

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Scores (n, outputs, y, x) of scaled values (n, bands, y, x)."""
        scores: torch.Tensor = self.network(values.to(self._numbers))
        return scores.float()


@torch.no_grad()  # not in inference mode: its tensors are not for those who compile
def in_half_precision(
    network: nn.Module, sample: torch.Tensor, numbers: torch.dtype, *, pack: bool
) -> tuple[nn.Module, float]:
    """The network in bfloat16 or float16, and how far its scores are from what they were, as a share of their range.

    `network` is changed; `pack`: see `pack_layers`.
    """
    expected = network(sample)
    coarse = InHalfPrecision(network, numbers)
    if pack:
        pack_layers(network, sample.to(numbers))
    difference = relative_difference(coarse(sample), expected)
    _forget_shapes(network)
    return coarse, difference


EXACT = (fold_batch_norms, fold_segformer_head)
"""In the order in which they are done. A new one is added here, and is tested like the others by being here."""

ON_CPU = (*EXACT, pack_layers)
"""Those for a CPU."""
