"""What a network is trained to make small.

`logits` are those of the classes alone, float (n, classes, y, x); `target` is int64 (n, y, x) with 255 where nothing
is known. Such a pixel has no say: neither in a loss nor in its gradient, nor in what the loss is divided by. A batch
without a known pixel has the loss 0 (and a gradient of zeros).

Dice, Tversky and Lovasz are segmentation-models-pytorch's. Its other two are not used, as they are something else
than their names say here: its cross-entropy divides by all pixels, the ignored ones included, so that a patch that is
half unknown counts half; its focal loss takes each class against the rest through a sigmoid, where the classes'
scores here are a softmax. Likewise its Dice counts absent classes into the mean as if they were predicted perfectly,
unless it is told which are present.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from segmentation_models_pytorch import losses as library
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

IGNORED = 255
"""The value of a target's pixel about which nothing is known."""
BOUNDARY = 2
"""Pixels on either side of where two classes meet that are their boundary."""


class _Term(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: float = Field(default=1.0, gt=0, description="factor of this term in the sum")


class CrossEntropy(_Term):
    """Cross-entropy: its mean over the known pixels, weighted by their class and by `pixel_weight`."""

    kind: Literal["cross_entropy"] = Field(default="cross_entropy", description="which term it is")
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="share of the target that is spread over all classes"
    )

    def __call__(
        self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None, class_weights: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar; its `weight` is applied by `total_loss`."""
        loss = functional.cross_entropy(
            logits,
            target,
            class_weights,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
        return _mean(loss, target, pixel_weight, class_weights)


class Focal(_Term):
    """Focal loss (Lin et al. 2017) of the softmax: pixels that are right already count little."""

    kind: Literal["focal"] = Field(default="focal", description="which term it is")
    gamma: float = Field(
        default=2.0, ge=0, description="how little: the power of (1 - probability); 0 is cross-entropy"
    )

    def __call__(
        self, logits: Tensor, target: Tensor, pixel_weight: Tensor | None = None, class_weights: Tensor | None = None
    ) -> Tensor:
        """The loss, a scalar; its `weight` is applied by `total_loss`."""
        loss = functional.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none")
        missing = -torch.expm1(-loss)  # 1 - probability, also where that is tiny
        # Below the least value the slope of a power under 1 is infinite.
        loss = missing.clamp(min=torch.finfo(loss.dtype).eps) ** self.gamma * loss
        if class_weights is not None:
            loss = loss * _of_target(class_weights, target)
        return _mean(loss, target, pixel_weight, class_weights)


class Dice(_Term):
    """1 - Dice, per class over the whole batch; the mean over the classes that the batch has.

    It balances classes by itself: `pixel_weight` and `class_weights` have no part in it.
    """

    kind: Literal["dice"] = Field(default="dice", description="which term it is")
    smooth: float = Field(
        default=0.5, ge=0, description="pixels added above and below the fraction bar: steadier for tiny areas"
    )

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None = None,  # noqa: ARG002  every term is called alike
        class_weights: Tensor | None = None,  # noqa: ARG002  the same
    ) -> Tensor:
        """The loss, a scalar; its `weight` is applied by `total_loss`."""
        return Tversky(alpha=0.5, beta=0.5, smooth=self.smooth)(logits, target)


class Tversky(_Term):
    """Tversky loss (Salehi et al. 2017): Dice with a price for each kind of error.

    The mean over the classes that the batch has; `pixel_weight` and `class_weights` have no part in it.
    """

    kind: Literal["tversky"] = Field(default="tversky", description="which term it is")
    alpha: float = Field(default=0.3, ge=0, description="price of a pixel claimed wrongly")
    beta: float = Field(default=0.7, ge=0, description="price of a pixel missed")
    smooth: float = Field(
        default=0.5, ge=0, description="pixels added above and below the fraction bar: steadier for tiny areas"
    )

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None = None,  # noqa: ARG002  every term is called alike
        class_weights: Tensor | None = None,  # noqa: ARG002  the same
    ) -> Tensor:
        """The loss, a scalar; its `weight` is applied by `total_loss`."""
        present = [int(value) for value in target.unique() if value != IGNORED]
        if not present:
            return logits.sum() * 0
        loss = library.TverskyLoss(
            library.MULTICLASS_MODE,
            classes=present,
            smooth=self.smooth,
            ignore_index=IGNORED,
            alpha=self.alpha,
            beta=self.beta,
        )
        value: Tensor = loss(logits, target)
        return value


class Lovasz(_Term):
    """Lovasz-softmax (Berman et al. 2018): the intersection over union itself, made differentiable.

    The mean over the classes that the batch has; `pixel_weight` and `class_weights` have no part in it.
    """

    kind: Literal["lovasz"] = Field(default="lovasz", description="which term it is")

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None = None,  # noqa: ARG002  every term is called alike
        class_weights: Tensor | None = None,  # noqa: ARG002  the same
    ) -> Tensor:
        """The loss, a scalar; its `weight` is applied by `total_loss`."""
        if bool((target == IGNORED).all()):  # the library's answer would be an empty tensor
            return logits.sum() * 0
        loss: Tensor = library.LovaszLoss(library.MULTICLASS_MODE, ignore_index=IGNORED)(logits, target)
        return loss


LossTerm = Annotated[CrossEntropy | Focal | Dice | Tversky | Lovasz, Field(discriminator="kind")]
"""One term of a loss, by its `kind`."""


def total_loss(
    terms: Sequence[LossTerm],
    logits: Tensor,
    target: Tensor,
    pixel_weight: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The sum of the terms, each times its weight: a float32 scalar.

    Args:
        terms: What is summed.
        logits: Float (n, classes, y, x); half precision is widened first.
        target: Int64 (n, y, x), 255 where nothing is known.
        pixel_weight: Float (n, y, x), not negative: how much a pixel counts in cross-entropy and focal loss, such as
            more between two objects that must not grow together.
        class_weights: Float (classes,), likewise for the pixels of a class; see `class_weights_of`.
    """
    logits = logits.float()
    values = [term.weight * term(logits, target, pixel_weight, class_weights) for term in terms]
    return torch.stack(values).sum()


def auxiliary_loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy plus Dice of maps from 0 to 1 that need not be 0 or 1, such as the distance to an outline.

    Dice is that on squares (V-Net, Milletari et al. 2016), which is smallest where prediction and target are equal,
    as the one on sums is for hard targets only. It is taken per map, over the batch.

    Args:
        logits: Float (n, maps, y, x), before the sigmoid.
        target: Float (n, maps, y, x), from 0 to 1.
        known: Bool (n, y, x), or (n, maps, y, x): elsewhere a pixel has no say.
    """
    logits = logits.float()
    known = (known if known.ndim == logits.ndim else known[:, None]).expand_as(logits)
    target = torch.where(known, target.float(), 0)  # nothing that is unknown, not even NaN, gets into a sum
    cross = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    cross = torch.where(known, cross, 0).sum() / known.sum().clamp(min=1)
    probability, dims = torch.where(known, logits.sigmoid(), 0), (0, 2, 3)
    shared, both = (probability * target).sum(dims), (probability.square() + target.square()).sum(dims)
    return cross + (1 - (2 * shared + 1) / (both + 1)).mean()


def boundary(target: Tensor) -> Tensor:
    """Float32 (n, y, x): 1 on pixels within `BOUNDARY` pixels of one of another class, in rows, columns or between.

    For `pixel_weight`: what decides where an outline runs are the few pixels beside it (the weight map of U-Net,
    Ronneberger et al. 2015, without its distance). Ignored pixels are no other class, and no boundary.
    """
    known = target != IGNORED
    values, side = target[:, None].float(), 2 * BOUNDARY + 1
    highest, lowest = (
        functional.max_pool2d(torch.where(known[:, None], sign * values, -torch.inf), side, 1, BOUNDARY)[:, 0]
        for sign in (1, -1)
    )
    return ((highest != -lowest) & known).float()


def class_weights_of(counts: Sequence[int], how: Literal["inverse", "effective"], *, beta: float = 1 - 1e-6) -> Tensor:
    """Weights of classes by their pixels, float32 (classes,), 1 in the mean of the classes that have any.

    Args:
        counts: Pixels of each class in the training data.
        how: `inverse` to the number of pixels, or to the `effective` number (1 - beta^n) / (1 - beta) of Cui et al.
            2019, which stops growing at 1 / (1 - beta): classes beyond it are alike.
        beta: Of the effective number; the default's limit is a million pixels.

    A class without pixels gets the weight of the rarest: a weight without limit would be the other choice.
    """
    pixels = torch.as_tensor(counts, dtype=torch.float64)
    if pixels.ndim != 1 or not bool((pixels >= 0).all()) or not bool((pixels > 0).any()):
        msg = f"class weights need the pixels of each class, some above 0, got {list(counts)}"
        raise ValueError(msg)
    number = pixels if how == "inverse" else -torch.expm1(pixels * math.log(beta))
    present = pixels > 0
    weights = torch.where(present, 1 / number, 0)
    weights = torch.where(present, weights, weights.max())
    return (weights / weights[present].mean()).float()


def _of_target(class_weights: Tensor, target: Tensor) -> Tensor:
    """(n, y, x): each pixel's class's weight; whatever where it is ignored."""
    return class_weights[torch.where(target == IGNORED, 0, target)]


def _mean(loss: Tensor, target: Tensor, pixel_weight: Tensor | None, class_weights: Tensor | None) -> Tensor:
    """The mean over the known pixels of a loss (n, y, x) that has the class weights in it, but not the pixels'."""
    counts = (target != IGNORED).to(loss.dtype)
    if pixel_weight is not None:
        counts = counts * torch.where(target == IGNORED, 0, pixel_weight)
    total = (loss * counts).sum()
    if class_weights is not None:
        counts = counts * _of_target(class_weights, target)
    # Where next to nothing counts, the loss is next to nothing, and not the mean over a millionth of a pixel.
    return total / counts.sum().clamp(min=1e-3)
