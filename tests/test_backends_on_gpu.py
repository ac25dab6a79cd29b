"""What is for a GPU, as far as it can be seen without one: what torch compiles, and ONNX Runtime's providers."""

from __future__ import annotations

import functools
import shutil
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import rasterio
import torch
from conftest import write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from test_backends import CPU, SHAPE, Odd, Small, taken_over
from test_cluster import assert_same, picture
from test_predict import Case, assert_identical, covers, run
from torch import nn

from geoseg.catalog import read_model
from geoseg.errors import ModelError, OptionError, OutputError
from geoseg.models import backends, by_onnxruntime, compiled
from geoseg.models.backends import AUTO, BACKENDS, BY_TORCH, TORCH, check_backend
from geoseg.models.by_onnxruntime import ON_CPU, ON_GPU, providers_on
from geoseg.models.compiled import OPTIONS, CompiledNetwork
from geoseg.models.other_networks import noise_of
from geoseg.models.rewrites import COARSE_TOLERANCE, GPU_TOLERANCE, TOLERANCE, tolerance
from geoseg.models.weights import NetworkPredict, load_predict, network_to_predict
from geoseg.pipeline import run as carry_out
from geoseg.planned import SegmentJob, plan
from geoseg.predict import OutOfMemory

COMPILED = tuple(name for name, way in BY_TORCH.items() if way.compiled)
TENSORRT, CUDA = ON_GPU
HEADERS = Path(sysconfig.get_path("include"), "Python.h")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))) or not HEADERS.exists(),
    reason="there is no C++ compiler, or none of Python's headers, by which torch compiles",
)


@functools.cache
def small() -> CompiledNetwork:
    with torch.inference_mode(mode=False):  # its weights lie as `NetworkPredict` lays them, before it is compiled
        return CompiledNetwork("small", Small().eval().to(memory_format=torch.channels_last), coarse=False)


def not_compiled(call: Any, *, coarse: bool = False) -> CompiledNetwork:
    """One that has something else in place of what torch compiles."""
    network = CompiledNetwork("small", Small().eval(), coarse=coarse)
    network._compiled = call
    return network


# --- torch.compile


@needs_compiler
@torch.inference_mode()
def test_compiled_says_the_same_in_the_same_bits_on_any_thread() -> None:
    values = noise_of((4, *SHAPE[1:])).split(1)
    scores = [small()(each) for each in values]
    kept_for_later = [each.clone() for each in scores]
    for each, expected in zip(values, scores, strict=True):
        assert (each.shape, expected.dtype) == (SHAPE, torch.float32)
        assert torch.allclose(expected, Small().eval()(each), atol=1e-5)
    with ThreadPoolExecutor(3) as threads:
        again = list(threads.map(small(), [each.contiguous(memory_format=torch.channels_last) for each in values] * 3))
    assert all(torch.equal(*pair) for pair in zip(again, kept_for_later * 3, strict=True))
    again[0].zero_()  # a caller may change what it gets
    assert torch.equal(small()(values[0]), kept_for_later[0])
    assert all(map(torch.equal, scores, kept_for_later))


@needs_compiler
@settings(max_examples=10)
@given(data=st.data(), shape=st.tuples(st.integers(1, 60), st.integers(1, 60)), lanes=st.integers(1, 3))
def test_compiled_tiled_is_whole(tiny_model: Path, data: st.DataObject, shape: tuple[int, int], lanes: int) -> None:
    case = Case(shape, (16, 16), (12, 8), 3, 2, 1, None, "speckle", 8, 0, (4, 4))
    predict = NetworkPredict(replace(read_model(tiny_model), patch=16, stride=8), small(), CPU)
    small().prepare(SHAPE, CPU)
    with torch.compiler.set_stance("fail_on_recompile"):  # however patches lie, and in inference mode or not
        tiled = run(case, data.draw(covers(shape, 8)), lanes=lanes, batch=1, predict=predict)
        assert_identical(tiled, run(case, lanes=1, batch=1, predict=predict))


@needs_compiler
def test_a_folder_that_compiled_passes_began(tiny_model: Path, tmp_path: Path) -> None:
    write_tif(tmp_path / "a.tif", picture(150, 70))
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "out", str(tiny_model), backend="torch-compile")
    result = carry_out(plan(job), lambda *_: None)
    assert result.item["properties"]["geoseg:parameters"]["backend"] == "torch-compile"
    assert plan(replace(job, backend="auto")).complete
    with pytest.raises(OutputError, match="backend was torch-compile, now torch"):
        plan(replace(job, backend=TORCH))
    by_torch = carry_out(plan(replace(job, out=tmp_path / "torch", backend=TORCH)), lambda *_: None)
    labels = [rasterio.open(each.folder / "labels.tif").read(1) for each in (result, by_torch)]
    assert (labels[0] == labels[1]).mean() >= 0.9999


def test_all_that_is_compiled_has_one_thread_which_has_one_core() -> None:
    seen = set[tuple[int, int]]()

    def call(values: torch.Tensor) -> torch.Tensor:
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return network.network(values)

    network = not_compiled(call)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(network, [noise_of(SHAPE)] * 9))
    not_compiled(call)(noise_of(SHAPE))
    ((thread, cores),) = seen
    assert (thread != threading.get_ident(), cores) == (True, 1)


def test_it_is_compiled_once_for_a_shape(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations: list[tuple[int, ...]] = []
    monkeypatch.setattr(CompiledNetwork, "_compile", lambda _, noise: compilations.append(tuple(noise.shape)))
    network = not_compiled(Small().eval())
    predict = NetworkPredict(replace(read_model(tiny_model), patch=16, stride=8), network, CPU)
    assert not predict.is_prepared(2)
    predict.prepare(2)
    assert predict.is_prepared(2)
    network(noise_of((2, *SHAPE[1:])))
    predict.prepare(1)
    assert compilations == [(2, *SHAPE[1:]), SHAPE]


@pytest.mark.parametrize("coarse", [False, True])
def test_other_scores_than_the_networks_are_refused(*, coarse: bool) -> None:
    expected = Small().eval()(noise_of(SHAPE)).detach()
    between = float(expected.max() - expected.min())
    for factor, refused in ((0.5, False), (1.5, True), (float("nan"), True)):
        shifted = Small(shift=factor * (COARSE_TOLERANCE if coarse else TOLERANCE) * between).eval()
        network = not_compiled(shifted, coarse=coarse)
        if not refused:
            network.prepare(SHAPE, CPU)
            assert network.is_ready(SHAPE)
            continue
        with pytest.raises(ModelError, match=r"small: compiled, it gives other scores, .*use --backend torch"):
            network.prepare(SHAPE, CPU)
        assert not network.is_ready(SHAPE)


def test_a_network_that_cannot_be_compiled_is_told() -> None:
    with pytest.raises(ModelError) as raised:
        CompiledNetwork("odd", Odd().eval(), coarse=False).prepare(SHAPE, CPU)
    told = str(raised.value)
    assert told.startswith("odd: torch cannot compile this network, for which it needs a C++ compiler and ")
    assert told.endswith("use --backend torch")
    assert "\n" not in told


@pytest.mark.parametrize(("backend", "tried"), [(TORCH, [4, 2, 1]), (AUTO, [4, 4, 2, 1])])
def test_too_many_patches_for_the_device_become_fewer(
    backend: str, tried: list[int], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is found out while the network is compiled."""

    def call(_: torch.Tensor) -> torch.Tensor:
        raise OutOfMemory("too many")

    with pytest.raises(OutOfMemory):
        not_compiled(call).prepare(SHAPE, CPU)
    prepared: list[int] = []

    def prepare(_: NetworkPredict, patches: int) -> None:
        prepared.append(patches)
        if patches > 1:
            raise OutOfMemory("too many")

    monkeypatch.setattr(NetworkPredict, "prepare", prepare)
    write_tif(tmp_path / "a.tif", picture(80, 80))
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "four", str(tiny_model), batch=4, backend=backend)
    carry_out(plan(job), lambda *_: None)
    assert prepared == tried
    carry_out(plan(replace(job, batch=1, out=tmp_path / "one")), lambda *_: None)
    assert_same(tmp_path / "four", tmp_path / "one", ("a",))


@pytest.mark.parametrize("backend", COMPILED)
def test_what_is_compiled(backend: str, tiny_model: Path) -> None:
    """The network with layers made one, in the numbers that are asked for, none of its layers by oneDNN alone."""
    network = load_predict(read_model(tiny_model), CPU, backend).network
    assert isinstance(network, CompiledNetwork)
    numbers = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(backend.rpartition("-")[2], torch.float32)
    assert {each.dtype for each in network.parameters()} == {numbers}
    kinds = {type(each) for each in network.modules()}
    assert nn.BatchNorm2d not in kinds
    assert not any("Packed" in kind.__name__ for kind in kinds)


def test_no_kernel_is_chosen_by_the_clock() -> None:
    assert OPTIONS.keys() <= set(torch._inductor.list_options())
    assert OPTIONS["triton.cudagraphs"] == torch._inductor.list_mode_options("reduce-overhead")["triton.cudagraphs"]
    told: Any = torch._inductor.config
    assert not any([told.max_autotune, told.max_autotune_gemm, told.coordinate_descent_tuning])


def test_a_gpu_without_bfloat16_is_told(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for backend in ("torch-bf16", "torch-compile-bf16"):
        with pytest.raises(OptionError, match=f"--backend {backend}: .* no bfloat16; use .*torch-compile-fp16"):
            network_to_predict(read_model(tiny_model), torch.device("cuda"), backend)


def test_what_is_compiled_is_kept_in_a_folder_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    compiled._keep_in_own_folder()
    assert compiled.os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "compiled")
    assert (tmp_path / "cache" / "compiled").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "own")
    compiled._keep_in_own_folder()
    assert compiled.os.environ["TORCHINDUCTOR_CACHE_DIR"] == "own"


# --- ONNX Runtime


@pytest.mark.parametrize(
    ("device", "available", "expected"),
    [
        ("cpu", [ON_CPU], [ON_CPU]),
        ("cpu", [TENSORRT, CUDA, ON_CPU], [ON_CPU]),
        ("cuda", [CUDA, ON_CPU], [CUDA, ON_CPU]),
        ("cuda", [ON_CPU, CUDA, TENSORRT], [TENSORRT, CUDA, ON_CPU]),
        ("cuda", ["AzureExecutionProvider", TENSORRT, ON_CPU], [TENSORRT, ON_CPU]),
    ],
)
def test_execution_providers(device: str, available: list[str], expected: list[str]) -> None:
    assert providers_on(device, available) == expected


def test_a_package_for_cpus_alone_is_told() -> None:
    with pytest.raises(OptionError, match="pip uninstall onnxruntime, then pip install onnxruntime-gpu"):
        providers_on("cuda", ["AzureExecutionProvider", ON_CPU])
    if not {*ON_GPU} & {*onnxruntime.get_available_providers()}:
        with pytest.raises(OptionError, match="onnxruntime-gpu"):
            check_backend("onnxruntime", "cuda")
    for name in BACKENDS:
        if name != "onnxruntime":
            with pytest.raises(OptionError, match="is for a CPU, and the device is cuda"):
                check_backend(name, "cuda")


@pytest.mark.skipif(bool({*ON_GPU} & {*onnxruntime.get_available_providers()}), reason="ONNX Runtime is one for GPUs")
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_libraries_that_cannot_be_loaded_are_no_reason_to_go_on_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ONNX Runtime would: it leaves out what it cannot load."""
    parts = by_onnxruntime.convert(Small().eval(), noise_of(SHAPE))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, ON_CPU])
    with pytest.raises(RuntimeError, match="none of TensorrtExecutionProvider, CUDAExecutionProvider finds the libr"):
        by_onnxruntime.opened(parts, coarse=False, device=torch.device("cuda"))


def test_a_package_for_gpus_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return name

    monkeypatch.setattr(backends, "version", version)
    told = BACKENDS["onnxruntime"].versions
    assert told == {"onnx": "onnx", "onnxruntime": "onnxruntime-gpu", "onnxscript": "onnxscript"}
    assert taken_over("onnxruntime")._place(SHAPE).suffix == ".onnxruntime"


def test_how_much_scores_may_differ() -> None:
    assert [tolerance(device, coarse=False) for device in ("cpu", "cuda")] == [TOLERANCE, GPU_TOLERANCE]
    assert [tolerance(device, coarse=True) for device in ("cpu", "cuda")] == [COARSE_TOLERANCE] * 2
    assert TOLERANCE < GPU_TOLERANCE < COARSE_TOLERANCE
