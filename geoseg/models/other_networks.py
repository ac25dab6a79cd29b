"""A network whose forward passes another library than torch does: see `geoseg.models.backends` for those there are.

A network is taken over for patches of one shape: torch exports it with its layers made one (`geoseg.models.rewrites`),
and the library converts that. It takes seconds, so what came of it is kept in the user's cache folder, under a name
that tells all that it depends on, beside what torch says of an image of noise. Whenever it is opened, converted just
now or long ago, it has to say the same of that noise: within `TOLERANCE`, as every rewrite has to, or within a wider
one if it works in bfloat16 or on a GPU.

What is kept is read as safetensors, and then as OpenVINO's own format or ONNX, none of which can run code, and only if
it is what was kept there (`geoseg.cache`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import warnings
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from geoseg.cache import cache_folder, keep, kept
from geoseg.errors import ModelError
from geoseg.models.backends import BACKENDS, TORCH
from geoseg.models.rewrites import relative_difference, tolerance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pass = Callable[[torch.Tensor], torch.Tensor]
    """Scaled patches (n, bands, y, x) in, scores (n, outputs, cells down, cells along) out, float32 both."""
    Parts = dict[str, bytes]
    """A network as a library has it: the content of each of its files."""

log = logging.getLogger("geoseg")

SCORES = "scores"
"""What torch says of the noise, beside the parts of a network that are kept."""


def noise_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Scaled values of nothing, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class OtherNetwork(nn.Module):
    """A network whose passes another library does. It is taken over when patches of a shape come first."""

    def __init__(
        self,
        backend: str,
        name: str,
        known: dict[str, Any],
        original: Callable[[], nn.Module],
        device: torch.device,
    ) -> None:
        """Do nothing yet.

        `name`: of the model, for messages; `known`: what tells this network from all others; `original`: makes it as
        torch does it, where that is needed; `device`: where patches come from and scores are to be.
        """
        super().__init__()
        self._backend, self._name, self._known, self._original = backend, name, known, original
        self._device = device
        self._library: Any = import_module(f"geoseg.models.{BACKENDS[backend].module}")
        self._coarse = BACKENDS[backend].coarse
        self._ready: dict[tuple[int, ...], _Passes] = {}
        self._lock = threading.Lock()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Scores of scaled patches, from any thread."""
        shape = tuple(values.shape)
        if shape not in self._ready:
            self.prepare(shape)
        return self._ready[shape](values)

    def is_kept(self, shape: tuple[int, ...]) -> bool:
        """Whether it was taken over before, so that making it ready takes a second at most."""
        return shape in self._ready or self._place(shape).exists()

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Make it ready for patches of a shape (n, bands, y, x).

        Raises `ModelError` if the library cannot do this network, or says something else than torch.
        """
        with self._lock:
            if shape not in self._ready:
                self._ready[shape] = self._kept(shape) or self._made(shape)

    def _kept(self, shape: tuple[int, ...]) -> _Passes | None:
        """From the cache, if it is there and right."""
        content = kept(self._place(shape))
        if content is None:
            return None
        try:
            tensors = load(content)
            scores = tensors.pop(SCORES)
            parts = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
            return self._checked(parts, noise_of(shape), scores)
        except (KeyError, ModelError, SafetensorError) as error:
            log.info("%s: is made again: %s", self._place(shape), error)
            return None

    def _made(self, shape: tuple[int, ...]) -> _Passes:
        """By converting it; kept for the next time."""
        began = time.perf_counter()
        with torch.inference_mode(mode=False), torch.no_grad():  # what is made by a thread that infers is not exported
            noise, network = noise_of(shape), self._original().eval()
            try:
                with quiet():
                    parts, scores = self._library.convert(network, noise), network(noise)
            except Exception as error:
                raise self._cannot(error) from error
        passes = self._checked(parts, noise, scores)
        log.info("%s: taken over by %s in %.1f s", self._name, self._backend, time.perf_counter() - began)
        tensors = {name: torch.from_numpy(np.frombuffer(part, np.uint8).copy()) for name, part in parts.items()}
        keep(self._place(shape), save({**tensors, SCORES: scores.contiguous()}))
        return passes

    def _checked(self, parts: Parts, noise: torch.Tensor, scores: torch.Tensor) -> _Passes:
        """Ready, and sure to say what torch says of the noise. Raises `ModelError` otherwise."""
        try:
            passes = _Passes(self._library.opened(parts, coarse=self._coarse, device=self._device))
            difference = relative_difference(passes(noise.to(self._device)).cpu(), scores)
        except Exception as error:
            raise self._cannot(error) from error
        log.info("%s: %s differs from torch by %.1e of the scores' range", self._name, self._backend, difference)
        if not difference <= tolerance(self._device.type, coarse=self._coarse):  # it may be no number
            msg = f"{self._name}: {self._backend} gives other scores than torch, by {difference:.1e} of their range"
            raise ModelError(f"{msg}; use --backend {TORCH}")
        return passes

    def _cannot(self, error: Exception) -> ModelError:
        log.debug("", exc_info=error)
        what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return ModelError(f"{self._name}: {self._backend} cannot do this network ({what}); use --backend {TORCH}")

    def _place(self, shape: tuple[int, ...]) -> Path:
        """Where it is kept: under a name for all that it depends on."""
        packages = {name: version(name) for name in ("torch", "timm", "segmentation-models-pytorch")}
        known = {**self._known, "shape": shape, "code": _code(), **packages, **BACKENDS[self._backend].versions}
        name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        library = BACKENDS[self._backend].module.removeprefix("by_")  # in bfloat16 or not: it takes over the same
        return cache_folder() / "networks" / f"{name}.{library}"


class _Passes:
    """As many of a library's passes as are under way at the same time, each made when it is needed first."""

    def __init__(self, make: Callable[[], Pass]) -> None:
        self._make, self._idle = make, list[Any]()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        try:
            one = self._idle.pop()
        except IndexError:  # none, or another thread was faster
            one = self._make()
        scores: torch.Tensor = one(values)
        self._idle.append(one)
        return scores


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters have much to say, and say it to everybody."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@cache
def _code() -> str:
    """What geoseg makes of a network, whichever version it calls itself."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
