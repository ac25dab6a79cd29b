"""What a forward pass takes, in different ways, beside what the processor can do.

    python benchmarks/forward.py [MODEL ...] [--repeats 9] [--patch 512] [--lanes 1] [--device cpu] [--batch 1]
    python benchmarks/forward.py --untrained deeplabv3plus:resnet50

One patch at a time on each lane, a thread, as the command does it; all ways in turn, again and again, in one process.
On a GPU (--device cuda) a batch of 16 patches that is there already, and the time until its scores are there. Prints
the median CPU time of a patch (on a GPU wall time), with the shortest and the longest, and per megapixel of the
network's input; floating-point operations per second (those of the network with layers made one, in each way), also as
a share of the rate of oneDNN's matrix product of 1024 x 1024 x 1024 in the same run (on a GPU, torch's of 8192); how
much the scores differ from those of the network as trained, as a share of their range; how many of the most probable
classes are the same; and the seconds that making it took. What is not installed is left out. `torch` is what the
command does, `OpenVINO` and `ONNX Runtime` what it does with these as --backend.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_model
from torch.utils.flop_counter import FlopCounterMode

from geoseg.catalog import find_model, sha256_of
from geoseg.memory import keep_freed_memory
from geoseg.models.backends import BACKENDS, BY_TORCH
from geoseg.models.networks import at_own_stride, build_network
from geoseg.models.rewrites import EXACT, PackedLinear, relative_difference, rewritten
from geoseg.models.weights import choose_device, load_network, load_predict
from geoseg.predict import default_batch, one_torch_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from geoseg.catalog import ModelSpec

    Pass = Callable[[torch.Tensor], torch.Tensor]

CPU = torch.device("cpu")
SIDE, SIDE_ON_GPU = 1024, 8192  # of the matrices whose product is the measure


def trained(spec: ModelSpec) -> torch.nn.Module:
    return at_own_stride(load_network(spec)).eval()


def made_one(spec: ModelSpec) -> torch.nn.Module:
    return rewritten(lambda: trained(spec), lambda _: torch.randn(1, 3, 64, 64), EXACT)


def untrained(name: str, folder: Path) -> ModelSpec:
    """A model for buildings with the weights that an ARCHITECTURE:ENCODER begins with."""
    architecture, _, encoder = name.partition(":")
    like, weights = find_model("buildings", None), folder / f"{name.replace(':', '-')}.safetensors"
    network = build_network(architecture, encoder=encoder, bands=len(like.bands), outputs=like.outputs)
    save_model(network, str(weights))
    told, digest = f"{name}, untrained", sha256_of(weights)
    return replace(like, name=told, architecture=architecture, encoder=encoder, weights=weights, sha256=digest)


def in_order(network: torch.nn.Module, memory: torch.memory_format) -> Pass:
    """A pass with channels or rows of pixels side by side; what goes in lies as it should."""
    placed = network.to(memory_format=memory)
    return lambda values: placed(values.contiguous(memory_format=memory))


def frozen(spec: ModelSpec, values: torch.Tensor) -> Pass:
    """Only to know what it would give: torch gives it up."""
    graph = torch.jit.freeze(torch.jit.trace(made_one(spec), values.contiguous()))
    optimised = torch.jit.optimize_for_inference(graph)
    return lambda values: optimised(values.contiguous())


def by(backend: str) -> Callable[[ModelSpec, torch.Tensor], Pass]:
    """As the command does it by a backend."""
    return lambda spec, values: in_order(load_predict(spec, values.device, backend).network, torch.channels_last)


WAYS: dict[str, Callable[[ModelSpec, torch.Tensor], Pass]] = {
    "torch, as trained, channels last": lambda spec, _: in_order(trained(spec), torch.channels_last),
    "torch, as trained, contiguous": lambda spec, _: in_order(trained(spec), torch.contiguous_format),
    "torch, layers made one, channels last": lambda spec, _: in_order(made_one(spec), torch.channels_last),
    "torch, layers made one, contiguous": lambda spec, _: in_order(made_one(spec), torch.contiguous_format),
    "torch, layers made one, frozen graph": frozen,
    "torch": by("torch"),
    "ONNX Runtime": lambda spec, _: load_predict(spec, CPU, "onnxruntime").network,
    "OpenVINO": lambda spec, _: load_predict(spec, CPU, "openvino").network,
    "torch, bfloat16": by("torch-bf16"),
    "OpenVINO, bfloat16": lambda spec, _: load_predict(spec, CPU, "openvino-bf16").network,
}
WAYS_ON_GPU: dict[str, Callable[[ModelSpec, torch.Tensor], Pass]] = {
    "torch, as trained, channels last": lambda spec, values: in_order(
        trained(spec).to(values.device), torch.channels_last
    ),
    **{backend: by(backend) for backend in (*BY_TORCH, "onnxruntime")},
}
NEEDS = {
    "ONNX Runtime": BACKENDS["onnxruntime"],
    "OpenVINO": BACKENDS["openvino"],
    "OpenVINO, bfloat16": BACKENDS["openvino"],
    "onnxruntime": BACKENDS["onnxruntime"],
}
LANES = ThreadPoolExecutor(1)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Way:
    """A way that is made, and what it took."""

    call: Pass
    making: float
    seconds: list[float] = field(default_factory=list)

    def measure(self, values: torch.Tensor, lanes: int = 1) -> torch.Tensor:
        """One pass on each lane at the same time."""
        clock = time.process_time if values.device.type == "cpu" else time.perf_counter
        wait_for(values.device)
        began = clock()
        scores = [each.result() for each in [LANES.submit(self.once, values) for _ in range(lanes)]]
        wait_for(values.device)
        self.seconds.append((clock() - began) / lanes)
        return scores[0]

    @torch.inference_mode()
    def once(self, values: torch.Tensor) -> torch.Tensor:
        return self.call(values)


def made(spec: ModelSpec, values: torch.Tensor) -> dict[str, Way]:
    ways = {}
    for name, make in (WAYS if values.device.type == "cpu" else WAYS_ON_GPU).items():
        missing = NEEDS[name].missing if name in NEEDS else []
        if missing:
            print(f"   {name}: left out, {', '.join(missing)} not installed")
            continue
        began = time.perf_counter()
        call = make(spec, values)
        LANES.submit(Way(call, 0).once, values).result()  # some are ready only when they were called
        ways[name] = Way(call, time.perf_counter() - began)
    return ways


def products(device: torch.device) -> dict[str, Way]:
    """The matrix product by torch's own library, and by oneDNN on a CPU."""
    by_torch = {"torch": Way(lambda values: values @ values, 0)}
    if device.type != "cpu":
        return by_torch
    return {**by_torch, "oneDNN": Way(PackedLinear(torch.nn.Linear(SIDE, SIDE, bias=False)), 0)}


def measure(spec: ModelSpec, repeats: int, lanes: int, device: torch.device, batch: int) -> None:
    print(f"{spec.name}, patch {spec.patch}, batch {batch}, {lanes} lanes, {device}:", flush=True)
    shape = batch, len(spec.bands), spec.patch, spec.patch
    values = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
    side = SIDE if device.type == "cpu" else SIDE_ON_GPU
    matrix, ways, rates = torch.randn(side, side, device=device), made(spec, values), products(device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        made_one(spec)(values[:1].cpu())
    operations = counter.get_total_flops()
    scores = {name: way.measure(values, lanes) for name, way in ways.items()}
    for way in rates.values():
        way.measure(matrix, lanes)
    for way in (*ways.values(), *rates.values()):
        way.seconds.clear()  # the first pass is not like the others
    for _ in range(repeats):
        for way in ways.values():
            way.measure(values, lanes)
        for way in rates.values():
            way.measure(matrix, lanes)
    rate = {name: 2 * side**3 / statistics.median(way.seconds) for name, way in rates.items()}
    print(f"   {operations / spec.patch**2 / 1e3:.0f} GFLOP per megapixel; matrix product: ", end="")
    print(", ".join(f"{name} {each / 1e9:.0f} GFLOP/s" for name, each in rate.items()))
    expected = scores["torch, as trained, channels last"]
    best = rate.get("oneDNN", rate["torch"])
    for name, way in ways.items():
        print(f"   {name:38} {told(way, spec, operations, best, batch)}", end="")
        same = (scores[name].argmax(1) == expected.argmax(1)).float().mean()
        difference = relative_difference(scores[name], expected)
        print(f"; differs by {difference:.0e}, {100 * same:.3f} % of labels the same; {way.making:.1f} s", flush=True)


def told(way: Way, spec: ModelSpec, operations: int, rate: float, batch: int) -> str:
    """Of a patch."""
    median, least, most = (each(way.seconds) / batch for each in (statistics.median, min, max))
    times = f"{1e3 * median:6.1f} ms ({1e3 * least:.1f} to {1e3 * most:.1f})"
    done = operations / median
    return f"{times}, {median / spec.patch**2 * 1e6:.2f} s/Mpx, {done / 1e9:.0f} GFLOP/s, {100 * done / rate:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--untrained", metavar="ARCHITECTURE:ENCODER", help="a network that no model has")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--patch", type=int)
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=int, help="patches of a pass  [default: 1 on a CPU, 16 on a GPU]")
    args = parser.parse_args()
    device = choose_device(args.device)
    batch = args.batch or default_batch(device)
    warnings.simplefilter("ignore")  # exporters have much to say
    keep_freed_memory()
    torch.set_num_threads(1)
    global LANES  # noqa: PLW0603
    LANES = ThreadPoolExecutor(args.lanes, initializer=one_torch_thread)
    names = args.models or ([] if args.untrained else ["buildings-deeplabv3plus", "buildings-segformer"])
    with tempfile.TemporaryDirectory() as folder:
        specs = [find_model(None, name) for name in names]
        if args.untrained:
            specs.append(untrained(args.untrained, Path(folder)))
        for spec in specs:
            measure(replace(spec, patch=args.patch or spec.patch), args.repeats, args.lanes, device, batch)


if __name__ == "__main__":
    main()
