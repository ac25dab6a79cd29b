"""Losses against slow definitions of them, pixel by pixel; what is unknown has no say."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from geoseg.train.losses import (
    BOUNDARY,
    IGNORED,
    CrossEntropy,
    Dice,
    Focal,
    LossTerm,
    Lovasz,
    Tversky,
    auxiliary_loss,
    boundary,
    class_weights_of,
    total_loss,
)

TERMS = [
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.1),
    Focal(gamma=2),
    Focal(gamma=0.5),
    Dice(),
    Dice(smooth=0),
    Tversky(alpha=0.2, beta=0.9),
    Lovasz(),
]


def softmax(scores: np.ndarray) -> np.ndarray:
    odds = np.exp(scores - scores.max())
    return odds / odds.sum()


def known_pixels(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> list[tuple]:
    """(probabilities, class, weight) of each pixel about which something is known."""
    n, _, rows, cols = logits.shape
    return [
        (softmax(logits[i, :, y, x].double().numpy()), int(target[i, y, x]), float(weight[i, y, x]))
        for i, y, x in itertools.product(range(n), range(rows), range(cols))
        if target[i, y, x] != IGNORED
    ]


def pointwise(term: CrossEntropy | Focal, pixels: list[tuple], classes: np.ndarray) -> float:
    total = 0.0
    for probability, label, weight in pixels:
        if isinstance(term, Focal):
            loss = classes[label] * (1 - probability[label]) ** term.gamma * -math.log(probability[label])
        else:
            share = np.full(len(probability), term.label_smoothing / len(probability))
            share[label] += 1 - term.label_smoothing
            loss = sum(share * classes * -np.log(probability))
        total += weight * loss
    return total / sum(weight * classes[label] for _, label, weight in pixels)


def tversky(pixels: list[tuple], alpha: float, beta: float, smooth: float) -> float:
    losses = []
    for value in {label for _, label, _ in pixels}:
        right = sum(p[value] for p, label, _ in pixels if label == value)
        wrong = sum(p[value] for p, label, _ in pixels if label != value)
        missed = sum(1 - p[value] for p, label, _ in pixels if label == value)
        losses.append(1 - (right + smooth) / (right + alpha * wrong + beta * missed + smooth))
    return float(np.mean(losses))


def lovasz(pixels: list[tuple]) -> float:
    """The Lovasz extension of the Jaccard loss by its definition: the set function along the sorted errors."""
    losses = []
    for value in {label for _, label, _ in pixels}:
        object_ = np.array([label == value for _, label, _ in pixels])
        errors = np.array([abs((label == value) - p[value]) for p, label, _ in pixels])
        order, loss, before = np.argsort(-errors), 0.0, 0.0
        for count in range(1, len(order) + 1):
            wrong = set(order[:count])
            right = sum(1 for i in range(len(order)) if object_[i] and i not in wrong)
            union = sum(1 for i in range(len(order)) if object_[i] or i in wrong)
            loss += errors[order[count - 1]] * ((1 - right / union) - before)
            before = 1 - right / union
        losses.append(loss)
    return float(np.mean(losses))


def by_definition(term: LossTerm, pixels: list[tuple], classes: np.ndarray) -> float:
    match term:
        case Dice():
            return tversky(pixels, 0.5, 0.5, term.smooth)
        case Tversky():
            return tversky(pixels, term.alpha, term.beta, term.smooth)
        case Lovasz():
            return lovasz(pixels)
        case _:
            return pointwise(term, pixels, classes)


def draw(seed: int, classes: int = 4, present: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, target (the last classes are absent, a third is unknown) and weights of pixels."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, classes, 4, 5, generator=rng)
    target = torch.randint(0, present, (2, 4, 5), generator=rng)
    target[torch.rand(target.shape, generator=rng) < 0.3] = IGNORED
    target[0, 0, 0] = 0
    return logits, target, torch.rand(target.shape, generator=rng) * 3


@pytest.mark.parametrize("term", TERMS, ids=repr)
@given(seed=st.integers(0, 2**32), weighted=st.booleans())
@settings(max_examples=8)
def test_each_loss_is_what_its_definition_says(term: LossTerm, seed: int, weighted: bool) -> None:  # noqa: FBT001  hypothesis passes it by name
    logits, target, weight = draw(seed)
    classes = torch.tensor([0.5, 1.0, 2.0, 3.0]) if weighted else torch.ones(4)
    weight = weight if weighted else torch.ones_like(weight)
    expected = by_definition(term, known_pixels(logits, target, weight), classes.numpy())
    given_weights = (weight, classes) if weighted else (None, None)
    assert float(term(logits, target, *given_weights)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("term", TERMS, ids=repr)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=8)
def test_what_is_ignored_changes_neither_value_nor_gradient(term: LossTerm, seed: int) -> None:
    logits, target, weight = draw(seed)
    classes, ignored = torch.tensor([0.5, 1.0, 2.0, 3.0]), target == IGNORED
    results = []
    for factor in (1, -30):
        mine = torch.where(ignored[:, None], logits * factor, logits).requires_grad_()
        loss = total_loss([term], mine, target, torch.where(ignored, weight * abs(factor), weight), classes)
        (gradient,) = torch.autograd.grad(loss, mine)
        results.append((loss.detach(), gradient))
        assert (gradient[ignored[:, None].expand_as(gradient)] == 0).all()
        assert gradient.abs().sum() > 0
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    # Nor does it matter how many there are: the same pixels beside a sample of nothing but unknown ones.
    more = torch.cat([target, torch.full_like(target[:1], IGNORED)])
    weights = torch.cat([weight, torch.ones_like(weight[:1])])
    beside = total_loss([term], torch.cat([logits, logits[:1]]), more, weights, classes)
    torch.testing.assert_close(results[0][0], beside)


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_nothing_known_is_nothing_lost(term: LossTerm) -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = total_loss([term, CrossEntropy()], logits, torch.full((2, 4, 4), IGNORED))
    loss.backward()
    assert loss.shape == ()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("term", TERMS, ids=repr)
def test_certain_predictions_give_finite_gradients(term: LossTerm) -> None:
    target = torch.tensor([[[0, 1], [1, 0]]])
    values = []
    for sign in (1, -1):
        logits = sign * 200 * (torch.nn.functional.one_hot(target, 2).permute(0, 3, 1, 2) - 0.5)
        loss = term(logits.requires_grad_(), target)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(gradient).all()
        values.append(float(loss.detach()))
    right, wrong = values
    assert right == pytest.approx(0 if getattr(term, "label_smoothing", 0) == 0 else 10, abs=1e-6)
    assert wrong > right + 0.4


def test_half_precision_is_summed_in_single() -> None:
    """More pixels than half precision can count."""
    logits, target = torch.zeros(1, 2, 300, 300), torch.zeros(1, 300, 300, dtype=torch.int64)
    for term in TERMS:
        loss = total_loss([term], logits.half(), target)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, total_loss([term], logits, target))


def test_a_sum_is_weighted() -> None:
    logits, target, weight = draw(1)
    terms = [CrossEntropy(weight=0.3), Dice(weight=2.0), Lovasz()]
    expected = 0.3 * terms[0](logits, target, weight) + 2 * terms[1](logits, target) + terms[2](logits, target)
    torch.testing.assert_close(total_loss(terms, logits, target, weight), expected)


def test_terms_are_known_by_their_kind() -> None:
    adapter = TypeAdapter(tuple[LossTerm, ...])
    read = adapter.validate_python([{"kind": "dice", "weight": 0.5}, {"kind": "focal", "gamma": 3}, {"kind": "lovasz"}])
    assert read == (Dice(weight=0.5), Focal(gamma=3), Lovasz())
    for wrong in ({"kind": "hinge"}, {"kind": "dice", "gamma": 2}, {"kind": "dice", "weight": -1}):
        with pytest.raises(ValidationError):
            adapter.validate_python([wrong])


def test_class_weights_by_inverse_frequency() -> None:
    weights = class_weights_of([100, 300, 0, 50], "inverse")
    present = weights[[0, 1, 3]]
    torch.testing.assert_close(present * torch.tensor([100, 300, 50]), torch.full((3,), float(present[0] * 100)))
    assert float(present.mean()) == pytest.approx(1)
    assert weights[2] == weights.max() == weights[3]


@given(counts=st.lists(st.integers(1, 3000), min_size=1, max_size=5), beta=st.sampled_from([0.9, 0.99, 0.999]))
def test_class_weights_by_effective_number(counts: list[int], beta: float) -> None:
    """The effective number by its recursion: 1, and then 1 + beta times the one before (Cui et al., proposition 1)."""
    effective = np.array([sum(beta**i for i in range(n)) for n in counts])
    expected = (1 / effective) / (1 / effective).mean()
    np.testing.assert_allclose(class_weights_of(counts, "effective", beta=beta).numpy(), expected, rtol=1e-5)


def test_effective_number_of_very_many_pixels() -> None:
    weights = class_weights_of([10**12, 10**10, 10, 1], "effective")
    assert weights[0] == weights[1]
    assert float(weights[3] / weights[2]) == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("counts", [[], [0, 0], [1, -1], [[1, 2]]])
def test_counts_that_are_none(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="pixels of each class"):
        class_weights_of(counts, "inverse")


@given(seed=st.integers(0, 2**32), per_map=st.booleans())
@settings(max_examples=20)
def test_auxiliary_loss_is_what_its_definition_says(seed: int, per_map: bool) -> None:  # noqa: FBT001  as above
    rng = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(2, 2, 3, 4, generator=rng), torch.rand(2, 2, 3, 4, generator=rng)
    known = torch.rand(2, 2, 3, 4, generator=rng) < 0.6
    known = known if per_map else known[:, :1].expand_as(known)
    cross, dice = [], []
    for layer in range(2):
        p, g = (v[:, layer][known[:, layer]].double().numpy() for v in (logits.sigmoid(), target))
        cross += list(-g * np.log(p) - (1 - g) * np.log(1 - p))
        dice.append(1 - (2 * (p * g).sum() + 1) / ((p**2).sum() + (g**2).sum() + 1))
    expected = (np.mean(cross) if cross else 0) + np.mean(dice)
    found = auxiliary_loss(logits, target, known if per_map else known[:, 0])
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_auxiliary_loss_ignores_even_what_is_no_number() -> None:
    logits, target = torch.randn(2, 1, 4, 4).requires_grad_(), torch.rand(2, 1, 4, 4)
    known = torch.rand(2, 4, 4) < 0.5
    expected = auxiliary_loss(logits, target, known)
    loss = auxiliary_loss(logits, torch.where(known[:, None], target, math.nan), known)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    assert not gradient[~known[:, None]].any()
    assert float(auxiliary_loss(logits.detach(), target, torch.zeros_like(known))) == 0


def test_auxiliary_loss_is_least_where_prediction_is_target() -> None:
    target = torch.linspace(0.05, 0.95, 50)[None, None, None]
    known = torch.ones(1, 1, 50, dtype=torch.bool)
    logits = target.logit().requires_grad_()
    (gradient,) = torch.autograd.grad(auxiliary_loss(logits, target, known), logits)
    assert float(gradient.abs().max()) < 1e-6


def test_losses_are_light() -> None:
    code = (
        "import sys, geoseg.train.losses, geoseg.train.augment; print({'lightning', 'torchgeo'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@given(seed=st.integers(0, 2**32))
def test_a_boundary_is_where_another_class_is_near(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.choice([0, 0, 0, 0, 0, 0, 1, 2, IGNORED], (2, *rng.integers(1, 9, 2)))
    found = boundary(torch.from_numpy(target)).numpy()
    for image, row, col in np.ndindex(target.shape):
        near = target[image, max(0, row - BOUNDARY) : row + BOUNDARY + 1, max(0, col - BOUNDARY) : col + BOUNDARY + 1]
        others = set(near.ravel().tolist()) - {IGNORED, target[image, row, col]}
        assert found[image, row, col] == (target[image, row, col] != IGNORED and bool(others))
