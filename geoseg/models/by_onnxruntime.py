"""Forward passes by ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from geoseg.models.other_networks import Parts, Pass


def convert(network: nn.Module, values: torch.Tensor) -> Parts:
    """Take over a network for values of one shape, as ONNX."""
    program: Any = torch.onnx.export(network, (values,), dynamo=True, verbose=False)
    return {"onnx": program.model_proto.SerializeToString()}


def opened(parts: Parts, *, coarse: bool) -> Callable[[], Pass]:  # noqa: ARG001  no backend of this library is
    """One session for all threads: each calls it, and does the work itself."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(parts["onnx"], options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def infer(values: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {name: values.contiguous().numpy()})[0])

    return lambda: infer
