"""Forward passes by ONNX Runtime: on a CPU, or on a GPU by TensorRT or CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from geoseg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import nn

    from geoseg.models.other_networks import Parts, Pass

ON_CPU = "CPUExecutionProvider"
ON_GPU = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
"""The fastest first. Which libraries these are made for: https://onnxruntime.ai/docs/execution-providers"""

SETTINGS = {"CUDAExecutionProvider": {"cudnn_conv_algo_search": "HEURISTIC"}}
"""Of execution providers. By default CUDA's measures kernels, and another worker would choose others."""


def convert(network: nn.Module, values: torch.Tensor) -> Parts:
    """Take over a network for values of one shape, as ONNX."""
    program: Any = torch.onnx.export(network, (values,), dynamo=True, verbose=False)
    return {"onnx": program.model_proto.SerializeToString()}


def check_gpu() -> None:
    """Raises `OptionError` if the package that is installed is for CPUs alone."""
    import onnxruntime

    providers_on("cuda", onnxruntime.get_available_providers())


def providers_on(device: str, available: Collection[str]) -> list[str]:
    """The execution providers for a device of this type, of those that the package has been built with.

    On a GPU each does what those before it cannot. Raises `OptionError` where there is none for a GPU.
    """
    if device == "cpu":
        return [ON_CPU]
    if there := [name for name in ON_GPU if name in available]:
        return [*there, ON_CPU]
    msg = "--backend onnxruntime: the package that is installed is for CPUs, and the device is a GPU: pip uninstall "
    raise OptionError(f"{msg}onnxruntime, then pip install onnxruntime-gpu; or use --backend torch")


def opened(parts: Parts, *, coarse: bool, device: torch.device) -> Callable[[], Pass]:  # noqa: ARG001  none is
    """One session for all threads: each calls it, and on a CPU does the work itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    wanted = providers_on(device.type, onnxruntime.get_available_providers())
    if device.type != "cpu" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # of CUDA, those that torch has brought
    index = {} if device.type == "cpu" else {"device_id": device.index or 0}
    providers = [(name, {} if name == ON_CPU else {**index, **SETTINGS.get(name, {})}) for name in wanted]
    session = onnxruntime.InferenceSession(parts["onnx"], options, providers=providers)
    if session.get_providers() == [ON_CPU] != wanted:  # what cannot be loaded is left out, and written to stderr alone
        msg = f"none of {', '.join(wanted[:-1])} finds the libraries of CUDA that it was made for"
        raise RuntimeError(msg)
    return lambda: lambda values: _pass(session, values)


def _pass(session: Any, values: torch.Tensor) -> torch.Tensor:
    """Scores of values where these are: neither goes through other memory than the device's."""
    values = values.contiguous()
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    scores = torch.empty(made.shape, device=values.device)
    binding = session.io_binding()
    for bind, name, tensor in (
        (binding.bind_input, given.name, values),
        (binding.bind_output, made.name, scores),
    ):
        place = tensor.device.type, tensor.device.index or 0
        bind(name, *place, np.float32, tuple(tensor.shape), tensor.data_ptr())
    if values.is_cuda:
        torch.cuda.current_stream(values.device).synchronize()  # it goes on on a stream of its own
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return scores
