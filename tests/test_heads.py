"""SegFormer's head as it is trained is the published one: scores, gradients, names."""

from __future__ import annotations

import copy

import pytest
import torch

from geoseg.models.networks import build_network
from geoseg.train.heads import quicken_segformer_heads


@pytest.mark.parametrize(("architecture", "encoder"), [("segformer", "mit_b0"), ("segformer", "resnet18")])
@pytest.mark.parametrize("size", [(64, 96), (128, 64)])
def test_scores_and_gradients_are_those_of_the_published_head(
    architecture: str, encoder: str, size: tuple[int, int]
) -> None:
    torch.manual_seed(3)
    published = build_network(architecture, encoder=encoder, bands=3, outputs=4).double()
    quick = copy.deepcopy(published)
    assert quicken_segformer_heads(quick) == 1
    assert quick.state_dict().keys() == published.state_dict().keys()

    images = torch.randn(2, 3, *size, dtype=torch.float64)
    wanted = torch.randn(2, 4, *size, dtype=torch.float64)
    found = []
    for network in (published, quick):
        torch.manual_seed(5)  # that of dropout
        scores = network(images)
        (scores * wanted).sum().backward()
        found.append((scores.detach(), [p.grad for p in network.parameters()]))
    (scores, gradients), (quick_scores, quick_gradients) = found
    torch.testing.assert_close(quick_scores, scores, rtol=1e-7, atol=1e-7)
    largest = max(float(each.abs().max()) for each in gradients if each is not None)
    for mine, theirs in zip(quick_gradients, gradients, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9 * largest)


def test_heads_for_two_dates_are_found_and_others_left_alone() -> None:
    assert quicken_segformer_heads(build_network("siamese-segformer", encoder="mit_b0", bands=3, outputs=2)) == 1
    assert quicken_segformer_heads(build_network("unet", encoder="resnet18", bands=3, outputs=2)) == 0
