"""Forward passes by OpenVINO, for Intel's processors above all."""

from __future__ import annotations

import sys
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from geoseg.models.other_networks import Parts, Pass

SETTINGS = {
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,  # or all processes would be bound to the same core
}
PRECISION = "INFERENCE_PRECISION_HINT"  # without it, bfloat16 wherever the processor has it


@cache
def _openvino() -> Any:
    """The library, which reports to its makers whenever it is imported, unless what it does that with is not there."""
    reporter = "openvino_telemetry"
    before = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]  # so Python is told that there is no such module
    try:
        import openvino
    finally:
        sys.modules.pop(reporter, None)  # which another thread may have done
        if before is not None:
            sys.modules[reporter] = before
    return openvino


_ONE_AT_A_TIME = threading.Lock()


def _core() -> Any:
    """Its `Core`: one for all networks, which lives as long as the process.

    The first network that a `Core` compiles gives the thread that is at it another stack for its signals, on which
    Python's handlers run. The end of the `Core` unmaps that, and restores the former one of whatever thread it ends in.
    Where that is another thread, the next signal, such as Ctrl-C or that a child has ended, would be the process's end.
    """
    with _ONE_AT_A_TIME:
        return _only_core()


@cache
def _only_core() -> Any:
    return _openvino().Core()


def convert(network: nn.Module, values: torch.Tensor) -> Parts:
    """By its reader of torch's own graphs, which `openvino.convert_model` is made of."""
    openvino = _openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    decoder = TorchFXPythonDecoder.from_exported_program(torch.export.export(network, (values,)), dynamic_shapes=False)
    reader = FrontEndManager().load_by_framework("pytorch")
    model = reader.convert(reader.load(decoder))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return {"xml": path.read_bytes(), "bin": path.with_suffix(".bin").read_bytes()}


def opened(parts: Parts, *, coarse: bool, device: torch.device) -> Callable[[], Pass]:  # noqa: ARG001  a CPU
    """The network as it was converted."""
    core = _core()
    model = core.read_model(parts["xml"], parts["bin"])
    settings = {**SETTINGS, PRECISION: "bf16" if coarse else "f32"}

    def make() -> Pass:
        # compiled once for each: requests of one, on one stream, wait for each other
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def infer(values: torch.Tensor) -> torch.Tensor:
            request.infer([values.contiguous().numpy()], share_inputs=True)
            return torch.from_numpy(request.get_output_tensor().data.copy())

        return infer

    return make
