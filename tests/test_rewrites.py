"""Networks with less work to do: they say what the original says, whatever it is made of."""

from __future__ import annotations

import copy
import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.windows
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from geoseg.catalog import bundled_models
from geoseg.models.architectures import ARCHITECTURES, dates_of
from geoseg.models.backends import BACKENDS, TORCH, TORCH_BF16, is_coarse
from geoseg.models.networks import at_own_stride, build_network, side_multiple
from geoseg.models.rewrites import (
    ACTIVATIONS,
    ON_CPU,
    FoldedSegformerHead,
    PackedConvolution,
    PackedLinear,
    fold_batch_norms,
    fold_segformer_head,
    pack_layers,
    relative_difference,
    rewritten,
)
from geoseg.models.weights import NetworkPredict, load_network, load_predict, network_to_predict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from geoseg.catalog import ModelSpec

LITE0, RESNET, MIT = "tu-tf_efficientnet_lite0", "tu-test_resnet", "mit_b0"
FEW = {"btc": "swin_tiny", "changestar-farseg": "resnet18", "changevit": "tu-vit_tiny_patch16_224"}
PAIRS = [(name, FEW.get(name, MIT if "segformer" in name else RESNET)) for name in ARCHITECTURES]
PAIRS += [("deeplabv3plus", LITE0), ("segformer", LITE0), ("segformer", RESNET), ("unet", MIT), ("upernet", LITE0)]


def noise(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def trained(architecture: str, encoder: str) -> nn.Module:
    """A network whose BatchNorms have seen something, each with factors of its own."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        network = at_own_stride(build_network(architecture, encoder=encoder, bands=3, outputs=3))
        norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean of all that it sees
        network.train()(noise((2, 3 * dates_of(architecture), 64, 64)))
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.2, 0.2)
    return network.eval()


def copy_of(architecture: str, encoder: str) -> nn.Module:
    return copy.deepcopy(trained(architecture, encoder))


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(("architecture", "encoder"), PAIRS)
@torch.inference_mode()
def test_every_architecture_says_the_same(architecture: str, encoder: str, caplog: pytest.LogCaptureFixture) -> None:
    """At sizes that it was not checked at; and no BatchNorm is left of any of them."""
    network, bands = trained(architecture, encoder), 3 * dates_of(architecture)
    with caplog.at_level(logging.INFO, "geoseg"):
        faster = rewritten(lambda: copy_of(architecture, encoder), lambda _: noise((1, bands, 64, 64)), ON_CPU)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "differs from the original by" in caplog.text
    assert count(network, nn.BatchNorm2d) > 0
    assert count(faster, nn.BatchNorm2d) == 0
    assert count(faster, FoldedSegformerHead) == architecture.endswith("segformer")
    side = side_multiple(network)
    for rows, cols in ((2, 2), (4, 4)) if architecture == "changevit" else ((2, 3), (4, 2)):
        values = noise((2, bands, rows * side, cols * side), seed=3)
        assert relative_difference(faster(values), network(values)) < 1e-4


@pytest.mark.parametrize("spec", tuple(bundled_models()), ids=lambda spec: spec.name)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 4), cols=st.integers(1, 4))
@settings(max_examples=3)
@torch.inference_mode()
def test_bundled_models_say_the_same(spec: ModelSpec, seed: int, rows: int, cols: int) -> None:
    original, faster = both(spec)
    values = noise((1, 3, 32 * rows, 32 * cols), seed)
    assert relative_difference(faster(values), original(values)) < 2e-5


@functools.cache
def both(spec: ModelSpec) -> tuple[nn.Module, nn.Module]:
    return at_own_stride(load_network(spec)).eval(), network_to_predict(spec, torch.device("cpu"))


class Made(nn.Module):
    """Layers, called in a way that is theirs."""

    def __init__(self, call: Callable[[Made, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call = call
        self.one, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, bias=False)
        self.norm, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.norm, self.second):
            norm.running_mean, norm.running_var = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.5, 2.0, 3.0])

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.call(self, values)


def shared_by_two(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(x)) + m.second(m.one(x))


def kept_for_a_sum(m: Made, x: torch.Tensor) -> torch.Tensor:
    y = m.one(x)
    return m.norm(y) + y


def kept_in_a_list(m: Made, x: torch.Tensor) -> torch.Tensor:
    y = m.one(x)
    return torch.cat([m.norm(y), y])


def once_without(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(x)) + m.one(x + 1)


def returned_itself(m: Made, x: torch.Tensor) -> torch.Tensor:
    y = m.one(x)
    z = m.norm(y)
    return torch.stack([z, y * 2])


def after_another(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(x)) * m.norm(m.other(x))


def after_a_sum(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(x) + x)


def sometimes_of_the_input(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(x)) + m.norm(x)


def before_it(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.one(m.norm(x))


def changed_between(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(x).relu_())


def twice(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.one(m.norm(m.one(x))))


def one_after_the_other(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.second(m.other(m.norm(m.one(x)).relu()))


def separable(m: Made, x: torch.Tensor) -> torch.Tensor:
    return m.norm(m.other(m.one(x)))


def asked_for_its_shape(m: Made, x: torch.Tensor) -> torch.Tensor:
    y = m.one(x)
    return m.norm(y)[:, :, : y.shape[2] - y.size(0)]


@pytest.mark.parametrize(
    ("call", "folded"),
    [
        (shared_by_two, 0),
        (kept_for_a_sum, 0),
        (kept_in_a_list, 0),
        (once_without, 0),
        (returned_itself, 0),
        (after_another, 0),
        (after_a_sum, 0),
        (sometimes_of_the_input, 0),
        (before_it, 0),
        (changed_between, 0),
        (twice, 1),
        (one_after_the_other, 2),
        (separable, 1),
        (asked_for_its_shape, 1),
    ],
)
@torch.inference_mode()
def test_a_norm_is_folded_where_a_convolution_is_its_own(
    call: Callable[[Made, torch.Tensor], torch.Tensor], folded: int
) -> None:
    network, values = Made(call).eval(), noise((1, 3, 8, 8))
    expected = network(values)
    assert fold_batch_norms(network, values) == folded
    assert count(network, nn.BatchNorm2d) == 2 - folded
    torch.testing.assert_close(network(values), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_folded_convolution(*, bias: bool, affine: bool, groups: int) -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, bias=bias, groups=groups), nn.BatchNorm2d(8, affine=affine, eps=0.1))
    network.train()(noise((4, 4, 9, 9)) * 3 + 1)
    values = noise((2, 4, 9, 11), seed=1)
    with torch.inference_mode():
        expected = network.eval()(values)
        assert fold_batch_norms(network, values) == 1
        torch.testing.assert_close(network(values), expected)


def test_a_norm_without_statistics_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    assert fold_batch_norms(network, noise((1, 3, 8, 8))) == 0


def test_a_head_of_segformer_has_less_to_do() -> None:
    """What an encoder says at a stride of 2 is worked on where it has been shrunk to 4."""
    network = copy_of("segformer", RESNET)
    assert fold_segformer_head(network, noise((1, 3, 64, 64))) == 1
    sides = []
    for level in network.get_submodule("decoder.levels"):
        level.register_forward_hook(lambda _module, _given, made: sides.append(made.shape[2]))
    with torch.inference_mode():
        network(noise((1, 3, 64, 64)))
    assert sides == [2, 4, 8, 16, 16]


class TestPackedLayers:
    """Those that oneDNN does."""

    @torch.inference_mode()
    def test_bundled_models_have_hardly_any_others(self) -> None:
        for spec in bundled_models():
            _, faster = both(spec)
            others = [m for m in faster.modules() if type(m) in {nn.Conv2d, nn.Linear, nn.BatchNorm2d}]
            packed = [m for m in faster.modules() if isinstance(m, PackedConvolution | PackedLinear)]
            assert len(packed) > 50
            assert not others

    @pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.GELU()])
    @pytest.mark.parametrize("bias", [True, False])
    @torch.inference_mode()
    def test_an_activation(self, activation: nn.Module, *, bias: bool) -> None:
        layers = (
            nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias),
            activation,
            nn.Conv2d(6, 2, 1),
        )
        network, values = nn.Sequential(*layers).eval(), 6 * noise((2, 4, 13, 17))
        expected = network(values)
        assert pack_layers(network, values) == 2
        assert isinstance(network[1], nn.Identity) == (type(activation) in ACTIVATIONS)
        assert getattr(activation, "inplace", True) == (not isinstance(activation, nn.ReLU6 | nn.Hardswish | nn.SiLU))
        torch.testing.assert_close(network(values), expected)

    @pytest.mark.parametrize(
        ("call", "own"),
        [
            (lambda m, x: m.act(m.one(x)) + m.one(x), False),
            (lambda m, x: m.act(m.one(x) + x), False),
            (lambda m, x: m.act(m.one(x)) * m.act(m.other(x)), False),
            (lambda m, x: m.other(m.act(m.one(x))) + m.other(x), True),
        ],
    )
    @torch.inference_mode()
    def test_an_activation_is_taken_where_a_convolution_is_its_own(
        self, call: Callable[[Made, torch.Tensor], torch.Tensor], *, own: bool
    ) -> None:
        network, values = Made(call).eval(), noise((1, 3, 8, 8))
        network.act = nn.ReLU(inplace=True)
        expected = network(values)
        assert pack_layers(network, values) == 2
        assert isinstance(network.act, nn.Identity) == own
        torch.testing.assert_close(network(values), expected)

    @torch.inference_mode()
    def test_what_has_ways_of_its_own_is_left_alone(self) -> None:
        class Own(nn.Conv2d):
            def forward(self, values: torch.Tensor) -> torch.Tensor:
                return super().forward(values) * 2

        around = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        network = nn.Sequential(Own(3, 3, 1), nn.ReLU(), around, nn.Conv2d(3, 3, 3, padding="same")).eval()
        expected = network(noise((1, 3, 8, 8)))
        assert pack_layers(network, noise((1, 3, 8, 8))) == 0
        assert torch.equal(network(noise((1, 3, 8, 8))), expected)

    @torch.inference_mode()
    def test_bits_depend_on_the_shape_alone(self) -> None:
        """Not on what shapes came before, on where in memory the values lie, or on the thread."""
        spec = next(bundled_models())
        first, second = (network_to_predict(spec, torch.device("cpu")) for _ in range(2))
        shapes = (1, 3, 96, 128), (2, 3, 64, 64), (1, 3, 64, 64)
        there = [first(noise(shape)) for shape in shapes]
        back = [second(noise(shape)) for shape in shapes[::-1]][::-1]
        for one, other, shape in zip(there, back, shapes, strict=True):
            assert torch.equal(one, other)
            lying = noise(shape).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(first(lying), one, rtol=1e-4, atol=1e-4)

    def test_many_threads_at_once_give_the_same_bits(self) -> None:
        network = network_to_predict(next(bundled_models()), torch.device("cpu"))
        values = noise((1, 3, 64, 64)).contiguous(memory_format=torch.channels_last)

        @torch.inference_mode()
        def call(_: int) -> torch.Tensor:
            return network(values)

        with ThreadPoolExecutor(4, initializer=lambda: torch.set_num_threads(1)) as pool:
            first, *others = pool.map(call, range(16))
        assert all(torch.equal(first, each) for each in others)

    @torch.inference_mode()
    def test_none_without_onednn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert pack_layers(copy_of("deeplabv3plus", RESNET), noise((1, 3, 64, 64))) == 0

    def test_none_on_other_devices(self) -> None:
        network = network_to_predict(next(bundled_models()), torch.device("cuda"))
        assert count(network, PackedConvolution) == count(network, nn.BatchNorm2d) == 0


class TestARewriteThatIsWrong:
    """Costs speed, and nothing else."""

    def wrong(self, network: nn.Module, factor: float) -> int:
        def changed(_module: object, _given: object, made: torch.Tensor) -> torch.Tensor:
            made[0, 0, 1, 1] += factor * (made.max() - made.min())
            return made

        network.register_forward_hook(changed)
        return 1

    @pytest.mark.parametrize("factor", [2e-4, -2e-4, float("nan")])
    def test_the_original_is_taken(self, factor: float, caplog: pytest.LogCaptureFixture) -> None:
        self.check(lambda network, _: self.wrong(network, factor), caplog)

    def test_or_where_it_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        self.check(lambda network, sample: network(sample[:, :2]), caplog)

    def check(self, rewrite: Any, caplog: pytest.LogCaptureFixture) -> None:
        values = noise((1, 3, 64, 64))
        with torch.inference_mode():
            rewrites = (fold_batch_norms, rewrite)
            network = rewritten(lambda: copy_of("deeplabv3plus", RESNET), lambda _: values, rewrites)
            assert torch.equal(network(values), trained("deeplabv3plus", RESNET)(values))
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert count(network, nn.BatchNorm2d) > 0
        assert not network.training

    def test_a_network_that_says_no_numbers_is_left_alone(self, caplog: pytest.LogCaptureFixture) -> None:
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
        nn.init.constant_(network[0].weight, float("nan"))
        assert rewritten(lambda: network, lambda _: noise((1, 3, 8, 8)), ON_CPU) is network
        assert count(network, nn.BatchNorm2d) == 1
        assert not caplog.records


def test_differences_are_of_the_range() -> None:
    expected = torch.tensor([[0.0, 10.0], [4.0, 2.0]])
    assert relative_difference(expected + torch.tensor([[0, 0], [0, -0.5]]), expected) == pytest.approx(0.05)
    assert relative_difference(expected, expected) == 0
    assert relative_difference(torch.ones(3), torch.ones(3)) == 0
    assert relative_difference(torch.ones(3), torch.ones(3) + 1) == float("inf")
    assert relative_difference(torch.ones(2), torch.ones(3)) == float("inf")


@pytest.mark.parametrize("backend", [TORCH, TORCH_BF16, *BACKENDS])
@pytest.mark.parametrize("spec", [s for s in bundled_models() if s.product == "buildings"], ids=lambda spec: spec.name)
@torch.inference_mode()
def test_on_real_ground(spec: ModelSpec, backend: str, shared_data: Path) -> None:
    """Labels and probabilities of patches as the command predicts them, by each backend."""
    cpu = torch.device("cpu")
    original = NetworkPredict(spec, at_own_stride(load_network(spec)), cpu)
    with rasterio.open(shared_data / "banepa" / "labelled_train.tif") as dataset:
        values = dataset.read((1, 2, 3), window=rasterio.windows.Window(600, 600, 1024, 512))
    patches = torch.from_numpy(np.stack(np.split(values, 2, axis=2)))
    expected, scores = (predict(patches) for predict in (original, load_predict(spec, cpu, backend)))
    assert 0.05 < expected[:, :2].argmax(1).float().mean() < 0.95
    same = (scores[:, :2].argmax(1) == expected[:, :2].argmax(1)).float().mean()
    if is_coarse(backend):
        assert 0.995 < same < 1
        return
    assert same >= 0.9999
    assert (scores.softmax(1) - expected.softmax(1)).abs().max() < 1e-3
    assert (scores - expected).abs().max() < 1e-3
