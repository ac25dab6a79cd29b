"""A network as torch compiles it (`torch.compile`), for GPUs above all: fewer and larger kernels, and CUDA graphs.

What `mode="reduce-overhead"` does, and no more: no kernel is chosen by the clock, for another worker's clock might
choose another one, of other last bits. Patches have one shape, so a network is compiled once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import nn

from geoseg.cache import cache_folder
from geoseg.errors import ModelError
from geoseg.models.backends import TORCH
from geoseg.models.other_networks import noise_of, quiet
from geoseg.models.rewrites import relative_difference, tolerance

log = logging.getLogger("geoseg")

OPTIONS: dict[str, Any] = {
    "triton.cudagraphs": True,  # without effect on a CPU
    "triton.autotune_pointwise": False,
    "deterministic": True,  # older versions of torch do not know it
    "cpp.threads": 1,
}

PASSES = 3
"""Before a network is ready: one compiles, one more records a CUDA graph, and one is done by that."""


class CompiledNetwork(nn.Module):
    """A network that is compiled for patches of a shape when these come first.

    All that is compiled is called by one thread of the process: a CUDA graph belongs to the thread that has recorded it
    (in torch before 2.14, the whole machinery does). A GPU has one queue as it is; on a CPU, other lanes wait.
    """

    def __init__(self, name: str, network: nn.Module, *, coarse: bool) -> None:
        """`name`: of the model, for messages; `coarse`: whether the network works with numbers of 16 bits."""
        super().__init__()
        self._name, self._coarse, self.network = name, coarse, network
        _keep_in_own_folder()
        known = torch._inductor.list_options()  # noqa: SLF001  torch documents it so
        options = {option: value for option, value in OPTIONS.items() if option in known}
        self._compiled = torch.compile(network.forward, fullgraph=True, dynamic=False, options=options)
        self._ready = set[tuple[int, ...]]()
        self._lock = threading.Lock()

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Scores of scaled patches, from any thread."""
        self.prepare(tuple(values.shape), values.device)
        return _thread().submit(self._pass, values).result()

    def is_ready(self, shape: tuple[int, ...]) -> bool:
        """Whether it was compiled for patches of this shape."""
        return shape in self._ready

    def prepare(self, shape: tuple[int, ...], device: torch.device) -> None:
        """Compile it for patches of a shape (n, bands, y, x), unless that is done.

        Raises `ModelError` if torch cannot, or if what it has compiled says something else than the network.
        """
        with self._lock:
            if shape not in self._ready:
                _thread().submit(self._compile, noise_of(shape).to(device)).result()
                self._ready.add(shape)

    @torch.no_grad()
    def _compile(self, noise: torch.Tensor) -> None:
        log.info("%s: is compiled by torch, which may take a minute or two", self._name)
        began = time.perf_counter()
        try:
            expected = self.network(_channels_last(noise))
            with quiet():
                scores = [self._pass(noise) for _ in range(PASSES)][-1]
        except torch.OutOfMemoryError:
            raise  # fewer patches may fit
        except Exception as error:
            log.debug("", exc_info=error)
            what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            on_cpu = noise.device.type == "cpu"
            needs = "a C++ compiler and Python's headers" if on_cpu else "Triton, which torch for CUDA brings on Linux,"
            msg = (
                f"{self._name}: torch cannot compile this network, for which it needs {needs} ({what}); use --backend "
            )
            raise ModelError(msg + TORCH) from error
        difference = relative_difference(scores, expected)
        log.info(
            "%s: compiled in %.1f s; differs from the network as it was by %.1e of the scores' range",
            self._name,
            time.perf_counter() - began,
            difference,
        )
        if not difference <= tolerance(noise.device.type, coarse=self._coarse):  # it may be no number
            msg = f"{self._name}: compiled, it gives other scores, by {difference:.1e} of their range"
            raise ModelError(f"{msg}; use --backend {TORCH}")

    @torch.no_grad()
    def _pass(self, values: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        scores: torch.Tensor = self._compiled(_channels_last(values))
        return scores.clone()  # where a CUDA graph puts them, the next pass's will be


def _channels_last(values: torch.Tensor) -> torch.Tensor:
    """A copy that lies as every other one does: it would be compiled anew for other strides, also of one patch.

    Nor is it a tensor of inference mode, for which it would be, too.
    """
    copy = torch.empty(values.shape, device=values.device, memory_format=torch.channels_last)
    return copy.copy_(values)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "compiled", initializer=torch.set_num_threads, initargs=(1,))


def _keep_in_own_folder() -> None:
    """What torch compiles is code, and kept: in a folder of the user's own, where torch would take one below /tmp."""
    folder = cache_folder() / "compiled"
    with contextlib.suppress(OSError):  # as said there: a cache that cannot be written costs time, and is no error
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
