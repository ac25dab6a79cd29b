"""Forward passes by OpenVINO, for Intel's processors above all."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

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


def convert(network: nn.Module, values: torch.Tensor) -> Parts:
    """By its reader of torch's own graphs; `openvino.convert_model` would do the same, and report it to the makers."""
    import openvino
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
    import openvino

    core = openvino.Core()
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
