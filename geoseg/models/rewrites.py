"""A network as it is trained, made one that says the same with less work.

Each rewrite is exact in real numbers, and so within rounding in those of a computer: layers that are linear and follow
each other are made one, or change places. They are for predicting alone; what is trained and written keeps every layer.

Whatever a rewrite assumes of a network is checked by its result: `rewritten` compares what both networks say of the
same random input, and the original is taken, with a warning, where that differs by more than `TOLERANCE`. A map by the
original is right and slow, an error would be neither.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("geoseg")

TOLERANCE = 1e-4
"""How much the scores of a rewritten network may differ from the original's, of these scores' range."""


def rewritten(make: Callable[[], nn.Module], sample_of: Callable[[nn.Module], torch.Tensor]) -> nn.Module:
    """The network that `make` makes, in evaluation mode, with all rewrites that apply, or as it is if they are wrong.

    `make` is called a second time only then: so there is never more than one network in memory. A network that says
    what are no numbers is left alone.

    Args:
        make: Gives the network.
        sample_of: Gives scaled values (n, bands, y, x) of any size that the network takes.
    """
    network = make().eval()
    sample = sample_of(network)
    with torch.inference_mode():
        expected = network(sample)
    if not expected.isfinite().all():
        return network
    for rewrite in REWRITES:
        count = rewrite(network, sample)
        if count:
            log.debug("network: %s, %d times", rewrite.__name__.replace("_", " "), count)
    with torch.inference_mode():
        difference = relative_difference(network(sample), expected)
    log.info("the network with layers made one differs from the original by %.1e of its scores' range", difference)
    if difference <= TOLERANCE:
        return network
    log.warning("layers of this network cannot be made one without changing its scores; going on with the slower one")
    return make().eval()


def relative_difference(scores: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the range of what is expected; infinite if the shapes differ."""
    if scores.shape != expected.shape:
        return float("inf")
    largest, between = float((scores - expected).abs().max()), float(expected.max() - expected.min())
    return largest / between if between else float("inf") if largest else 0.0


# --- BatchNorm


def fold_batch_norms(network: nn.Module, sample: torch.Tensor) -> int:
    """Scale and shift of a BatchNorm become part of the convolution before it. How many did.

    A BatchNorm has a convolution before it if it sees its output each time, and nothing else does. That is found by
    following the sample through the network, for which layer follows another is written in nothing but code.
    """
    flow = _Flow(network)
    with torch.inference_mode(), flow:
        network(sample)
    pairs = flow.pairs()
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


class _Flow(TorchFunctionMode):
    """Who takes what convolutions give, while a network is called."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        modules = dict(network.named_modules())  # each of them once
        self._convolutions = {id(m.weight): m for m in modules.values() if isinstance(m, nn.Conv2d)}
        self._norms = {id(m.running_mean): name for name, m in modules.items() if _is_foldable(m)}
        self._outputs: dict[int, tuple[torch.Tensor, nn.Conv2d]] = {}
        """By their id, which no other tensor has while they are kept."""
        self._takers: dict[int, list[str | None]] = {}
        """The BatchNorms that took an output, or None for anything else."""
        self._taken: dict[str, set[int | None]] = {}
        """Ids of the outputs that a BatchNorm took, or None for anything else."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call it, and take note."""
        result = func(*args, **(kwargs or {}))
        if not any(isinstance(each, torch.Tensor) for each in tree_iter(result)):
            return result  # asked for a shape, or the like
        norm = self._norms.get(id(args[1])) if func is functional.batch_norm else None
        for each in tree_iter((args, kwargs)):
            if id(each) in self._outputs:
                self._takers[id(each)].append(norm)
        if norm is not None:
            self._taken.setdefault(norm, set()).add(id(args[0]) if id(args[0]) in self._outputs else None)
        if func is torch.conv2d and id(args[1]) in self._convolutions:
            self._outputs[id(result)] = result, self._convolutions[id(args[1])]
            self._takers[id(result)] = []
        return result

    def pairs(self) -> dict[str, nn.Conv2d]:
        """The convolution before each BatchNorm that has one for itself."""
        made: dict[nn.Conv2d, set[int]] = {}
        for output, (_, convolution) in self._outputs.items():
            made.setdefault(convolution, set()).add(output)
        found = {}
        for norm, taken in self._taken.items():
            makers = {self._outputs[each][1] for each in taken if each is not None}
            for maker in makers:
                if made[maker] == taken and all(self._takers[each] == [norm] for each in made[maker]):
                    found[norm] = maker
        return found


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
        weights = fuse.weight[:, :, 0, 0].double().chunk(len(head.mlp_stage), 1)
        bias = torch.zeros(fuse.out_channels) if fuse.bias is None else fuse.bias
        shift = bias.double() + sum(
            w @ each.linear.bias.double() for w, each in zip(weights, head.mlp_stage, strict=True)
        )
        self.levels = nn.ModuleList(
            _pointwise(weight @ each.linear.weight.double())
            for weight, each in zip(weights, head.mlp_stage, strict=True)
        )
        last: Any = self.levels[-1]
        last.bias = nn.Parameter(shift.to(bias.dtype))

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


REWRITES = (fold_batch_norms, fold_segformer_head)
"""In the order in which they are done. A new one is added here, and is tested like the others by being here."""
