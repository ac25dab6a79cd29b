"""Models: what their cards say is what is loaded, and what is damaged or foreign is refused before it does harm."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pystac
import pytest
import torch
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from safetensors.torch import load_file, save_file

from geoseg.catalog import MULTIHASH_SHA256, bundled_models, catalogs_folder, find_model, read_model
from geoseg.errors import ModelError, OptionError
from geoseg.models.networks import build_network
from geoseg.models.weights import NetworkPredict, choose_device, load_predict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPU = torch.device("cpu")
ITEMS = sorted((catalogs_folder() / "models").glob("*/item.json"))


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def predict(tiny_model: Path) -> NetworkPredict:
    return load_predict(read_model(tiny_model), CPU)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def edit(model: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change a model's card."""
    item = json.loads((model / "item.json").read_text("utf-8"))
    change(item)
    (model / "item.json").write_text(json.dumps(item), "utf-8")
    return model


def sign(model: Path, name: str = "model.safetensors") -> Path:
    """Have the card say that the weights are those that are there, so that nothing but their content is wrong."""
    digest = hashlib.sha256((model / name).read_bytes()).hexdigest()
    return edit(model, lambda item: item["assets"]["weights"].update({"file:checksum": MULTIHASH_SHA256 + digest}))


def patches(count: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(values)


def refused(model: Path) -> str:
    """The message with which loading fails."""
    with pytest.raises(ModelError) as raised:
        load_predict(read_model(model), CPU)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_the_tiny_model_is_what_its_card_says(tiny_model: Path, predict: NetworkPredict) -> None:
    spec = read_model(tiny_model)
    assert (spec.name, spec.product, spec.patch, spec.stride) == ("tiny", "buildings", 64, 48)
    assert (spec.resolution, spec.bands) == ((0.1, 0.6), ("red", "green", "blue"))
    assert [c.name for c in spec.legend.classes] == ["background", "building"]
    assert hash(spec) == hash(read_model(tiny_model / "item.json"))
    assert (predict.outputs, predict.device) == (3, CPU)
    share = predict(patches(4)).argmax(1).float().mean()
    assert 0.01 < share < 0.99


def test_scores_are_those_of_the_bare_network_on_scaled_values(tiny_model: Path, predict: NetworkPredict) -> None:
    spec = read_model(tiny_model)
    network = build_network(spec.architecture, encoder=spec.encoder, bands=3, outputs=3)
    network.load_state_dict(load_file(spec.weights))
    values = patches(2)
    mean, std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))
    with torch.inference_mode():
        expected = network.eval()((values / 255 - mean) / std)
    scores = predict(values)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 3, 64, 64)
    assert not predict.network.training
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_scores_at_the_networks_own_stride_are_left_alone(predict: NetworkPredict) -> None:
    values = patches(2)
    with torch.inference_mode():
        bare = predict.network(predict.scaled(values))
    assert bare.shape == (2, 3, 16, 16)
    assert torch.equal(predict(values, (16, 16)), bare)
    for cells in ((64, 64), (16, 40), (7, 16)):
        assert predict(values, cells).shape == (2, 3, *cells)
    assert torch.equal(predict(values, (64, 64)), predict(values))
    larger = torch.nn.functional.interpolate(values, scale_factor=2, mode="nearest")
    assert predict(larger, (16, 16)).shape == (2, 3, 16, 16)


def test_scaling_has_the_bits_of_band_by_band(predict: NetworkPredict, tiny_model: Path) -> None:
    """Multiplied, then shifted, whichever way the pixels lie in memory; what was handed in is left alone."""
    spec = read_model(tiny_model)
    patches = torch.randint(0, 256, (2, len(spec.bands), spec.patch, spec.patch), dtype=torch.uint8)
    before = patches.clone()
    expected = torch.empty(patches.shape)
    for band, (mean, std) in enumerate(zip(spec.mean, spec.std, strict=True)):
        factor, shift = (torch.tensor(value, dtype=torch.float32) for value in (1 / (255 * std), -mean / std))
        expected[:, band] = (patches[:, band].float() * factor) + shift
    for lying in (patches, patches.contiguous(memory_format=torch.channels_last)):
        scaled = predict.scaled(lying)
        assert torch.equal(scaled, expected)
        assert scaled.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(patches, before)


@pytest.mark.parametrize("side", [(64, 64), (96, 80), (40, 33), (200, 200)], ids=str)
def test_resampling_around_the_network_moves_nothing(tiny_model: Path, side: tuple[int, int]) -> None:
    echo = NetworkPredict(read_model(tiny_model), torch.nn.Conv2d(3, 2, 1), CPU)
    with torch.no_grad():
        echo.network.weight.zero_()
        echo.network.bias.zero_()
        echo.network.weight[:, 0] = 1
    ramp = torch.linspace(0, 255, side[1]).round() * torch.ones(side[0], 1)
    scores = echo(torch.stack([ramp] * 3)[None].to(torch.uint8))
    assert scores.shape == (1, 2, *side)
    difference = (scores[0, 0] - (ramp / 255 - 0.5) / 0.5)[:, side[1] // 8 : -side[1] // 8]
    assert float(difference.abs().max()) < 0.01
    assert abs(float(difference.mean())) < 0.05 * 2 / (side[1] - 1)  # of the step from one pixel to the next


@pytest.mark.usefixtures("one_thread")
def test_a_patch_has_the_same_bits_wherever_it_stands_and_whatever_stands_beside_it(predict: NetworkPredict) -> None:
    """With one thread for each pass, from any thread: what `tiled == whole` is built on."""
    patch, expected = patches(1), None
    for place in range(3):
        for seed in (1, 2):
            batch = patches(3, seed=seed)
            batch[place] = patch[0]
            scores = predict(batch)[place]
            expected = scores if expected is None else expected
            assert torch.equal(scores, expected), (place, seed)
    batch = torch.zeros_like(batch)
    batch[0] = patch[0]
    elsewhere: list[torch.Tensor] = []

    def lane() -> None:
        torch.set_num_threads(1)
        elsewhere.append(predict(batch)[0])

    threads = [threading.Thread(target=lane) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(scores, expected) for scores in elsewhere)
    assert len(elsewhere) == 2


def test_no_upsampling_aligns_corners() -> None:
    network = build_network("deeplabv3plus", encoder="tu-tf_efficientnet_lite0", bands=4, outputs=3)
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Upsample)]
    assert layers
    assert all(layer.mode == "nearest" or layer.align_corners is False for layer in layers)
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 4, 64, 64)).shape == (1, 3, 64, 64)


def test_other_weights_than_the_cards_are_refused(model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[-1] ^= 1
    (model / "model.safetensors").write_bytes(content)
    message = refused(model)
    assert str(model / "model.safetensors") in message
    assert expected in message
    assert hashlib.sha256(content).hexdigest() in message


@pytest.mark.parametrize("size", [0, 1, 8, 1000, -1], ids=str)
def test_truncated_weights_are_refused(model: Path, size: int) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    message = refused(sign(model))
    assert str(weights) in message
    assert "not a readable safetensors file" in message


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.trace, "code ran")


def as_pickle(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload))


def as_torch_archive(payload: Payload, path: Path) -> None:
    torch.save({"weight": payload}, path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])  # torch itself goes by the name
@pytest.mark.parametrize("save", [as_pickle, as_torch_archive])
def test_a_pickle_is_refused_and_does_not_run(
    model: Path, tmp_path: Path, save: Callable[[Payload, Path], None], name: str
) -> None:
    trace = tmp_path / "trace"
    (model / "model.safetensors").unlink()
    save(Payload(trace), model / name)
    edit(model, lambda item: item["assets"]["weights"].update(href=f"./{name}"))
    message = refused(sign(model, name))
    assert str(model / name) in message
    assert "may run code" in message
    assert not trace.exists()
    if save is as_pickle:  # it would have
        pickle.loads((model / name).read_bytes())  # noqa: S301
        assert trace.exists()


def test_a_missing_layer_is_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["segmentation_head.0.bias"]
    save_file(tensors, model / "model.safetensors")
    message = refused(sign(model))
    assert str(model / "model.safetensors") in message
    assert "layer segmentation_head.0.bias: the file has nothing, deeplabv3plus needs (3,)" in message


def test_a_layer_too_many_is_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["another"] = torch.zeros(3)
    save_file(tensors, model / "model.safetensors")
    assert "layer another: the file has (3,), deeplabv3plus needs nothing" in refused(sign(model))


def test_a_layer_of_another_shape_is_named(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["segmentation_head.0.bias"] = torch.zeros(5)
    save_file(tensors, model / "model.safetensors")
    message = refused(sign(model))
    assert str(model / "model.safetensors") in message
    assert "layer segmentation_head.0.bias: the file has (5,), deeplabv3plus needs (3,)" in message


def test_missing_weights_are_named(model: Path) -> None:
    (model / "model.safetensors").unlink()
    message = refused(model)
    assert str(model / "model.safetensors") in message
    assert "put them there, beside the model's item.json" in message


@pytest.mark.parametrize("href", ["../../x", "../model.safetensors", "/etc/hostname", ".", "a/../../x"])
def test_weights_outside_the_models_folder_are_refused(model: Path, href: str) -> None:
    edit(model, lambda item: item["assets"]["weights"].update(href=href))
    message = refused(model)
    assert str(model / "item.json") in message
    assert repr(href) in message


def test_a_link_out_of_the_models_folder_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(tmp_path / "elsewhere")
    (model / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    assert "outside the model's folder" in refused(model)


def test_another_way_to_resample_is_refused(model: Path) -> None:
    edit(model, lambda item: item["properties"]["mlm:input"][0].update(resize_type="interpolate-cubic"))
    assert "resampled by 'interpolate-cubic', geoseg does 'interpolate-linear' only" in refused(model)


def properties(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda item: item["properties"].update({key.replace("_", ":", 1): v for key, v in changes.items()})


def scaling(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda item: item["properties"]["mlm:input"][0]["value_scaling"][1].update(changes)


def classes(change: Callable[[list[dict[str, Any]]], None]) -> Callable[[dict[str, Any]], None]:
    return lambda item: change(item["properties"]["mlm:output"][0]["classification:classes"])


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no properties": lambda item: item.pop("properties"),
    "no weights": lambda item: item["assets"].pop("weights"),
    "no name": lambda item: item["properties"].pop("mlm:name"),
    "no checksum": lambda item: item["assets"]["weights"].pop("file:checksum"),
    "no input": properties(mlm_input=[]),
    "no mean": scaling(mean=None),
    "a spread of zero": scaling(stddev=0),
    "a band too few": lambda item: item["properties"]["mlm:input"][0]["bands"].pop(),
    "a class with a gap": classes(lambda c: c[1].update(value=2)),
    "a class on nodata": classes(lambda c: c.extend({**c[0], "value": v, "name": str(v)} for v in range(2, 256))),
    "a class without a colour": classes(lambda c: c[1].pop("color_hint")),
    "a colour that is none": classes(lambda c: c[1].update(color_hint=None)),
    "a colour that is no colour": classes(lambda c: c[1].update(color_hint="red")),
    "a background that is no class": properties(geoseg_background=2),
    "a stride of zero": properties(geoseg_stride=0),
    "a stride wider than the patch": properties(geoseg_stride=65),
    "a resolution upside down": properties(geoseg_resolution=[0.6, 0.1]),
    "a resolution of one number": properties(geoseg_resolution=[0.6]),
    "a patch of no size": lambda item: item["properties"]["mlm:input"][0]["input"].update(shape=[-1, 3, 0, 0]),
    "another architecture": properties(mlm_architecture="unheard_of"),
    "another encoder": properties(geoseg_encoder="unheard_of"),
    "another encoder of timm": properties(geoseg_encoder="tu-unheard_of"),
    "an encoder from the internet": properties(geoseg_encoder="tu-hf-hub:someone/something"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_card_is_named(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    assert str(model / "item.json") in refused(edit(model, change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"a model"'], ids=repr)
def test_a_card_that_is_none_is_named(model: Path, content: bytes) -> None:
    (model / "item.json").write_bytes(content)
    assert str(model / "item.json") in refused(model)


def test_a_folder_without_a_card_is_no_model(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match="not a model"):
            find_model("buildings", str(path))


def test_models_are_found_by_product_name_and_path(tiny_model: Path) -> None:
    first = next(bundled_models())
    assert find_model(first.product, None) == find_model(None, first.name) == find_model(first.product, first.name)
    assert find_model("buildings", str(tiny_model)).name == "tiny"
    assert find_model(None, str(tiny_model / "item.json")).name == "tiny"


@pytest.mark.parametrize(("product", "name"), [("buildings", "unheard-of"), ("unheard-of", None)])
def test_an_unknown_model_lists_the_known_ones(product: str, name: str | None) -> None:
    with pytest.raises(ModelError, match=r"unheard-of.*buildings-deeplabv3plus \(buildings\)"):
        find_model(product, name)


def test_a_model_of_another_product_is_refused(tiny_model: Path) -> None:
    for name in (str(tiny_model), "buildings-deeplabv3plus"):
        with pytest.raises(ModelError, match="maps buildings, not rivers"):
            find_model("rivers", name)


@pytest.mark.parametrize("name", ["tpu", "cpu:x", "", "meta", "cuda:99"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match=f"device '{name}'"):
        choose_device(name)


def test_known_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in {"cpu", "cuda"}


@pytest.mark.parametrize("path", ITEMS, ids=lambda path: path.parent.name)
class TestBundled:
    """Every model that comes with geoseg."""

    def test_its_weights_are_those_of_its_card(self, path: Path) -> None:
        spec = read_model(path)
        assert spec.name == path.parent.name
        assert hashlib.sha256(spec.weights.read_bytes()).hexdigest() == spec.sha256
        item = json.loads(path.read_text("utf-8"))
        assert item["assets"]["weights"]["file:size"] == spec.weights.stat().st_size
        assert load_predict(spec, CPU).outputs == spec.outputs

    def test_it_has_a_page_for_people(self, path: Path) -> None:
        page = (path.parent / "README.md").read_text("utf-8")
        assert page.startswith(f"# {path.parent.name}\n")
        assert "icence" in page

    def test_its_card_is_a_stac_item(self, path: Path) -> None:
        """By the core schemas that pystac brings along: those of the extensions are on the network only."""
        item = json.loads(path.read_text("utf-8"))
        checked = JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, item["stac_version"])
        assert checked is not None
        del item["geometry"]
        with pytest.raises(pystac.STACValidationError):
            JsonSchemaSTACValidator().validate_core(item, pystac.STACObjectType.ITEM, "1.1.0")

    def test_its_card_has_what_the_model_extension_asks_for(self, path: Path) -> None:
        """The required fields of MLM 1.4, by hand, as its schema cannot be reached."""
        item = json.loads(path.read_text("utf-8"))
        assert any("/mlm/v1." in extension for extension in item["stac_extensions"])
        assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= item["properties"].keys()
        for given in item["properties"]["mlm:input"]:
            assert {"name", "bands", "input"} <= given.keys()
            assert {"shape", "dim_order", "data_type"} <= given["input"].keys()
            assert len(given["input"]["shape"]) == len(given["input"]["dim_order"])
        for made in item["properties"]["mlm:output"]:
            assert {"name", "tasks", "result"} <= made.keys()
            assert len(made["result"]["shape"]) == len(made["result"]["dim_order"])
            assert made["result"]["shape"][1] == read_model(path).outputs
        assert any("mlm:model" in asset.get("roles", ()) for asset in item["assets"].values())


def test_there_is_a_bundled_model() -> None:
    assert ITEMS
