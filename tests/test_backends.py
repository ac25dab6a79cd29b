"""Backends: the map does not depend on tiles, lanes, workers or luck, whoever does the forward passes."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import ArraySource, chunks_of, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cluster import NAMES, Dask, Inline, assert_same, by, job_of, on, picture, scenes
from test_predict import VALIDITY, Case, assert_identical, covers, run
from torch import nn

from geoseg import tuning
from geoseg.archive import plan_archive, run_archive
from geoseg.cache import UNUSED, keep, kept
from geoseg.catalog import read_model
from geoseg.errors import ModelError, OptionError, OutputError
from geoseg.io.store import job_of as begun_job
from geoseg.models import backends, other_networks
from geoseg.models.backends import (
    AUTO,
    BACKENDS,
    BY_TORCH,
    TORCH,
    TORCH_BF16,
    USUAL,
    check_backend,
    installed_backends,
    is_coarse,
)
from geoseg.models.other_networks import OtherNetwork, noise_of
from geoseg.models.rewrites import COARSE_TOLERANCE, TOLERANCE, in_half_precision
from geoseg.models.weights import NetworkPredict, load_predict
from geoseg.pipeline import run as carry_out
from geoseg.planned import SegmentJob, plan
from geoseg.tiling import Tiling
from geoseg.work import backends_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from geoseg.catalog import ModelSpec

CPU = torch.device("cpu")
OTHERS = tuple(BACKENDS)
NOT_TORCH = (TORCH_BF16, *OTHERS)
EXACT = tuple(name for name in OTHERS if not is_coarse(name))
SHAPE = (1, 3, 16, 16)


class Small(nn.Module):
    """A network that is taken over in no time. Scores of a quarter of the side, each of which knows the whole patch."""

    def __init__(self, seed: int = 0, shift: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.near = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 3, 3, 2, 1)
            )
            self.far = nn.Conv2d(3, 3, 1)
        self.shift = shift

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = 4 * self.near(values) + 4 * self.far(values.mean((2, 3), keepdim=True))
        return scores + self.shift


def taken_over(backend: str, name: str = "small", make: Callable[[], nn.Module] = Small) -> OtherNetwork:
    return OtherNetwork(backend, name, {"weights": name}, make, CPU)


@functools.cache
def small(backend: str, spec: ModelSpec) -> NetworkPredict:
    return NetworkPredict(replace(spec, patch=16, stride=8), network_by(backend), CPU)


def network_by(backend: str) -> nn.Module:
    if backend != TORCH_BF16:
        return taken_over(backend)
    return in_half_precision(Small().eval(), noise_of(SHAPE), torch.bfloat16, pack=True)[0]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In place of the one of all tests: what is found out here would have a say in others' maps."""
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("cache-of-backends")
        patched.setenv("GEOSEG_CACHE", str(folder))
        yield folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that have converted a network since, each as often as it has."""
    done: list[str] = []
    for name in EXACT:
        library = taken_over(name)._library

        def convert(*given: Any, name: str = name, honest: Any = library.convert) -> Any:
            done.append(name)
            return honest(*given)

        monkeypatch.setattr(library, "convert", convert)
    return done


# --- what they say


@pytest.mark.parametrize("backend", NOT_TORCH)
@torch.inference_mode()
def test_it_says_what_torch_says(backend: str, tiny_model: Path) -> None:
    spec = read_model(tiny_model)
    patches = torch.from_numpy(np.stack([picture(64, 64, seed) for seed in range(2)]))
    expected, predict = load_predict(spec, CPU)(patches, (16, 16)), load_predict(spec, CPU, backend)
    scores = predict(patches, (16, 16))
    assert (predict.outputs, predict.device, scores.dtype, scores.shape) == (3, CPU, torch.float32, expected.shape)
    differences, between = (scores - expected).abs(), float(expected.max() - expected.min())
    if is_coarse(backend):  # of a network that has learned nothing, which makes much of little
        assert 1e-3 < differences.mean() / between < 0.05
    else:
        assert differences.max() < 1e-3
    assert 0.01 < scores[:, :2].argmax(1).float().mean() < 0.99
    kept_for_later = scores.clone()
    predict(255 - patches, (16, 16)).zero_()  # a caller may change what it gets, and gets it for good
    assert torch.equal(predict(patches, (16, 16)), scores)
    assert torch.equal(scores, kept_for_later)


@pytest.mark.parametrize("backend", NOT_TORCH)
@settings(max_examples=15)
@given(
    data=st.data(),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    validity=st.sampled_from(list(VALIDITY)),
    seed=st.integers(0, 2**32 - 1),
    lanes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.sampled_from([1, 3]),
)
def test_tiled_is_whole(
    backend: str,
    tiny_model: Path,
    data: st.DataObject,
    shape: tuple[int, int],
    validity: str,
    seed: int,
    lanes: tuple[int, int],
    batch: int,
) -> None:
    """Any tiles in any order, any number of lanes: the same bits."""
    case = Case(shape, (16, 16), (12, 8), 3, 2, 1, None, validity, 8, seed, (4, 4))
    predict = small(backend, read_model(tiny_model))
    tiled = run(case, data.draw(covers(shape, 8)), lanes=lanes[0], batch=batch, predict=predict)
    assert_identical(tiled, run(case, lanes=lanes[1], batch=batch, predict=predict))


@pytest.mark.parametrize("backend", NOT_TORCH)
@torch.inference_mode()
def test_a_patch_has_the_same_bits_wherever_it_stands(backend: str) -> None:
    network = network_by(backend)
    one, bits = noise_of(SHAPE), set[bytes]()
    for place in range(3):
        batch = torch.randn(3, *SHAPE[1:], generator=torch.Generator().manual_seed(place))
        batch[place] = one
        for lying in (batch, batch.contiguous(memory_format=torch.channels_last)):
            bits.add(network(lying)[place].numpy().tobytes())
    assert len(bits) == 1


def test_processes_of_their_own_give_the_same_bits(tmp_path: Path, tiny_model: Path) -> None:
    """Each takes the network over for itself."""
    code = (
        "import pathlib, sys, torch; sys.path[:0] = sys.argv[2:]; from test_backends import *\n"
        "spec = read_model(pathlib.Path(sys.argv[1])); batch = torch.from_numpy(picture(16, 16)[None])\n"
        "print([small(each, spec)(batch, (4, 4)).numpy().tobytes().hex() for each in NOT_TORCH])"
    )
    told = []
    for name in ("one", "other"):
        own = {**os.environ, "GEOSEG_CACHE": str(tmp_path / name)}
        command = [sys.executable, "-c", code, str(tiny_model), *sys.path]
        told.append(subprocess.run(command, env=own, check=True, capture_output=True, text=True).stdout)
    assert told[0] == told[1] != ""


REPORTED = """
    import sys
    from urllib import request

    def told(*args, **_):
        print("reported", flush=True)
        raise OSError

    request.urlopen = told
    if sys.argv[1] == "geoseg":
        import torch
        from geoseg.models import by_openvino

        network = torch.nn.Conv2d(3, 3, 1)
        parts = by_openvino.convert(network, torch.zeros(1, 3, 8, 8))
        by_openvino.opened(parts, coarse=False, device=torch.device("cpu"))()(torch.zeros(1, 3, 8, 8))
        print("openvino_telemetry" in sys.modules)
    else:
        import openvino
"""


@pytest.mark.parametrize(("who", "said"), [("geoseg", "False"), ("anybody", "reported")])
def test_openvino_reports_nothing(who: str, said: str, tmp_path: Path) -> None:
    """It does so, by the standard library, when it is imported by itself."""
    home = {name: value for name, value in os.environ.items() if name not in {"CI", "TF_BUILD", "JENKINS_URL"}} | {
        "HOME": str(tmp_path)
    }
    command = [sys.executable, "-c", textwrap.dedent(REPORTED), who]
    done = subprocess.run(command, env=home, check=True, capture_output=True, text=True)
    assert done.stdout.split()[:1] == [said]
    assert (tmp_path / "intel").exists() == (who == "anybody"), "where it keeps a number for this user"


INTERRUPTED = """
    import os
    import signal
    import threading
    import torch
    from geoseg.models import by_openvino

    values = torch.zeros(1, 3, 8, 8)
    parts = by_openvino.convert(torch.nn.Conv2d(3, 3, 1), values)
    held = [by_openvino.opened(parts, coarse=False, device=torch.device("cpu"))()]
    held[0](values)
    last = threading.Thread(target=held.clear)  # as the garbage collector may do it in any thread
    last.start()
    last.join()
    signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
    os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signal")
def test_signals_are_heard_when_another_thread_lets_a_network_go() -> None:
    """Where Python's handlers run must not be unmapped: a Ctrl-C would end the process by a segmentation fault."""
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["heard"]), done.stderr


# --- what is kept


@pytest.mark.parametrize("backend", OTHERS)
@torch.inference_mode()
def test_a_network_is_taken_over_once(backend: str, own_cache: Path, conversions: list[str]) -> None:
    library = backend.removesuffix("-bf16")
    expected = taken_over(backend)(noise_of(SHAPE))
    assert conversions == [library]
    network = taken_over(backend, make=lambda: pytest.fail("the original is not needed"))
    assert network.is_kept(SHAPE)
    assert not network.is_kept((2, *SHAPE[1:]))
    assert torch.equal(network(noise_of(SHAPE)), expected)
    assert conversions == [library]
    assert [path.suffix for path in (own_cache / "networks").iterdir()] == [f".{library}"]
    other = taken_over(backend, "other", lambda: Small(1))(noise_of(SHAPE))
    assert conversions == [library] * 2
    assert not torch.equal(other, expected)


def test_what_it_depends_on_is_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    network = taken_over("openvino")
    names = {network._place(SHAPE), taken_over("onnxruntime")._place(SHAPE), taken_over("openvino", "b")._place(SHAPE)}
    names.add(network._place((2, *SHAPE[1:])))
    honest = other_networks.version
    for package in ("torch", "timm", "segmentation-models-pytorch"):
        with monkeypatch.context() as patched:
            patched.setattr(other_networks, "version", lambda name, p=package: "0" if name == p else honest(name))
            names.add(network._place(SHAPE))
    with monkeypatch.context() as patched:
        patched.setattr("geoseg.models.backends.version", lambda _: "0")
        names.add(network._place(SHAPE))
    with monkeypatch.context() as patched:
        patched.setattr(other_networks, "_code", lambda: "other")
        names.add(network._place(SHAPE))
    assert len(names) == 9
    assert network._place(SHAPE) in names


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def swap(path: Path) -> None:
    """What another network was, in its place, and whole."""
    other = taken_over(path.suffix[1:], "other", lambda: Small(1))
    other.prepare(SHAPE)
    parts = other_networks.load(kept(other._place(SHAPE)))
    parts["scores"] = other_networks.load(kept(path))["scores"]
    keep(path, other_networks.save(parts))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "cut": cut,
    "of another network": swap,
    "no network": lambda path: keep(path, b"import os"),
    "without scores": lambda path: keep(path, other_networks.save({"xml": torch.zeros(3, dtype=torch.uint8)})),
    "nothing the library knows": lambda path: keep(
        path, other_networks.save({"xml": torch.zeros(3, dtype=torch.uint8), "scores": torch.zeros(1, 3, 4, 4)})
    ),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.usefixtures("own_cache")
@torch.inference_mode()
def test_what_is_damaged_is_made_again(backend: str, damage: str, conversions: list[str]) -> None:
    network = taken_over(backend)
    expected = network(noise_of(SHAPE))
    DAMAGE[damage](network._place(SHAPE))
    conversions.clear()
    assert torch.equal(taken_over(backend)(noise_of(SHAPE)), expected)
    assert conversions == [backend.removesuffix("-bf16")]
    taken_over(backend).prepare(SHAPE)
    assert len(conversions) == 1  # it is right again


def test_a_file_that_is_not_what_was_kept_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert kept(path) is None
    keep(path, b"content")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert kept(path) is None
        path.write_bytes(whole[:place])
        assert kept(path) is None
    path.write_bytes(whole)
    assert kept(path) == b"content"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owner here")
def test_what_belongs_to_somebody_else_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path / "own" / "file", b"content")
    assert kept(tmp_path / "own" / "file") == b"content"
    assert (tmp_path / "own").stat().st_mode & 0o077 == 0
    assert (tmp_path / "own" / "file").stat().st_mode & 0o077 == 0
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["file"]
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert kept(tmp_path / "own" / "file") is None


def test_what_nobody_has_used_for_long_goes_when_something_is_kept(tmp_path: Path) -> None:
    long_ago = time.time() - UNUSED - 60
    for name in ("unused", "used", ".begun.part", "new"):
        keep(tmp_path / name, name.encode())
    for name in ("unused", "used", ".begun.part"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "folder", (long_ago, long_ago))
    assert kept(tmp_path / "used") == b"used"
    keep(tmp_path / "another", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "folder", "new", "used"]


@torch.inference_mode()
def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "file"))
    network = taken_over("openvino")
    assert network(noise_of(SHAPE)).shape == (1, 3, 4, 4)
    assert not taken_over("openvino").is_kept(SHAPE)


# --- what is refused


@pytest.mark.parametrize("backend", OTHERS)
def test_other_scores_than_torchs_are_refused(backend: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = taken_over(backend)._library
    honest, between = library.convert, float(np.ptp(Small().eval()(noise_of(SHAPE)).detach().numpy()))
    for factor, refused in ((0.5, False), (1.5, True), (float("nan"), True)):
        shifted = Small(shift=factor * (COARSE_TOLERANCE if is_coarse(backend) else TOLERANCE) * between).eval()
        with monkeypatch.context() as patched:
            patched.setattr(library, "convert", lambda _, values, shifted=shifted: honest(shifted, values))
            network = taken_over(backend, f"by {factor}")
            if not refused:
                network.prepare(SHAPE)
                continue
            with pytest.raises(ModelError, match=f"{backend} gives other scores than torch, .*use --backend torch"):
                network.prepare(SHAPE)
            assert not network.is_kept(SHAPE)
    assert len(list((own_cache / "networks").iterdir())) == 1


class Odd(nn.Module):
    """What no exporter follows: another way for other values."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values[:, :, ::4, ::4] if float(values.sum()) > 0 else -values[:, :, ::4, ::4]


@pytest.mark.parametrize("backend", OTHERS)
def test_a_network_that_cannot_be_taken_over_is_told(backend: str) -> None:
    with pytest.raises(ModelError) as raised:
        taken_over(backend, "odd", Odd).prepare(SHAPE)
    assert str(raised.value).startswith(f"odd: {backend} cannot do this network (")
    assert str(raised.value).endswith("use --backend torch")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("backend", OTHERS)
def test_a_missing_extra_is_named(
    backend: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tif(tmp_path / "a.tif", picture(80, 80))
    monkeypatch.setattr("geoseg.models.backends.find_spec", lambda _: None)
    assert installed_backends() == tuple(BY_TORCH)
    extra = {"openvino": "openvino", "onnxruntime": "onnx", "openvino-bf16": "openvino"}[backend]
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "out", str(tiny_model), backend=backend)
    with pytest.raises(OptionError, match=rf"--backend {backend}: .* not installed: pip install 'geoseg\[{extra}\]'"):
        plan(job)
    assert not (tmp_path / "out").exists()
    assert plan(replace(job, backend=AUTO)).parameters.get("backend") is None


def test_names_and_devices() -> None:
    with pytest.raises(OptionError, match=r"choose auto, torch, torch-bf16, .*, onnxruntime or openvino-bf16"):
        check_backend("tensorflow")
    with pytest.raises(OptionError, match="is for a CPU, and the device is cuda"):
        check_backend("openvino", "cuda")
    for name in (AUTO, *BY_TORCH):
        check_backend(name, "cuda")
    assert installed_backends() == (*BY_TORCH, *OTHERS)
    coarse = {name for name in installed_backends() if is_coarse(name)}
    assert coarse == {name for name in backends.NAMES if name.endswith(("-bf16", "-fp16"))}


def test_a_job_names_what_there_is() -> None:
    assert job_of(None, backend="openvino").backend == "openvino"
    with pytest.raises(ValueError, match=r"'auto', 'torch', 'torch-bf16', .* 'onnxruntime' or 'openvino-bf16'"):
        job_of(None, backend="tensorflow")
    assert [job_of(None, backend=name).backend for name in backends.NAMES] == [*backends.NAMES]


# --- what a folder was begun with


def stopped_after(tiles: int) -> Callable[[str, int, int], None]:
    """An observer that stops a run."""
    seen: list[int] = []

    def observe(stage: str, done: int, _total: int) -> None:
        if stage == "predicting":
            seen.append(done)
            if len(set(seen)) > tiles:
                raise KeyboardInterrupt

    return observe


@pytest.mark.parametrize("backend", NOT_TORCH)
def test_a_folder_goes_on_with_the_backend_that_began_it(
    backend: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tif(tmp_path / "a.tif", picture(2600, 70))
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "out", str(tiny_model), tile=1024, backend=backend)
    whole = carry_out(plan(replace(job, out=tmp_path / "whole")), lambda *_: None)
    assert whole.item["properties"]["geoseg:parameters"]["backend"] == backend
    assert backend.removesuffix("-bf16") in whole.item["properties"]["processing:software"]
    with pytest.raises(KeyboardInterrupt):
        carry_out(plan(job), stopped_after(1))
    going_on = plan(replace(job, backend=AUTO))
    assert (going_on.job.backend, going_on.complete) == (backend, False)
    with pytest.raises(OutputError, match=f"backend was {backend}, now torch"):
        plan(replace(job, backend=TORCH))
    with monkeypatch.context() as patched:
        patched.setattr("geoseg.models.backends.find_spec", lambda _: None)
        if backend != TORCH_BF16:
            with pytest.raises(OptionError, match="pip install 'geoseg"):
                plan(replace(job, backend=AUTO))
    carry_out(going_on, lambda *_: None)
    assert_same(tmp_path / "out", tmp_path / "whole", ("a",))
    assert plan(replace(job, backend=AUTO)).complete
    with monkeypatch.context() as patched:  # what is complete needs nothing
        patched.setattr("geoseg.models.backends.find_spec", lambda _: None)
        assert plan(replace(job, backend=AUTO)).complete
    anew = plan(replace(job, backend=AUTO, overwrite=True))
    assert (anew.job.backend, "backend" in anew.parameters) == (AUTO, False)


def test_results_by_torch_say_nothing_of_it(tiny_model: Path, tmp_path: Path) -> None:
    """So those of before there were backends are what they are."""
    write_tif(tmp_path / "a.tif", picture(80, 80))
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "out", str(tiny_model))
    planned = plan(replace(job, backend=TORCH))
    assert "backend" not in planned.parameters
    with pytest.raises(KeyboardInterrupt):
        carry_out(planned, stopped_after(0))
    assert plan(replace(job, backend=AUTO)).job.backend == TORCH
    assert "backend" not in (begun_job(planned.folder) or {"backend": ""})
    with pytest.raises(OutputError, match="backend was torch, now openvino"):
        plan(replace(job, backend="openvino"))


# --- many who work


def test_workers_over_tcp_give_the_same(tiny_model: Path, tmp_path: Path) -> None:
    """Processes of their own, each with OpenVINO's network for itself, and tiles that one process does not have."""
    folder = scenes(tmp_path / "town", 1500, 70)
    here = plan_archive(job_of(tiny_model, backend="openvino"), folder, tmp_path / "here")
    assert run_archive(here).done == 3
    (tmp_path / "dask").mkdir()
    started = Dask(tmp_path / "dask")
    try:
        started.add(2, threads=1)
        job = job_of(tiny_model, tile=1024, cluster=started.address, backend="openvino")
        with on(started, 2) as members:
            report = run_archive(plan_archive(job, folder, tmp_path / "there"), members)
    finally:
        started.stop()
    assert (report.done, report.failures) == (3, ())
    assert_same(tmp_path / "there", tmp_path / "here")
    item = json.loads((tmp_path / "there" / "a" / "item.json").read_text("utf-8"))["properties"]
    assert item["geoseg:parameters"]["backend"] == "openvino"
    assert "openvino" in item["processing:software"]


class Lacking(Inline):
    """A crew of which one worker has nothing but torch."""

    def ask(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        there = {"there": (TORCH,)} if function in {installed_backends, backends_here} else {}
        return super().ask(function, *args) | there


def backends_of(out: Path) -> set[str]:
    return {(begun_job(out / name) or {}).get("backend", TORCH) for name in NAMES}


def test_a_worker_that_lacks_what_is_needed_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scenes(tmp_path / "town", 140, 100)
    with pytest.raises(OptionError, match=r"backend openvino: the workers there .*pip install 'geoseg\[openvino\]'"):
        by(Lacking(), folder, tmp_path / "a", tiny_model, backend="openvino")
    assert not (tmp_path / "a" / "a").exists()
    monkeypatch.setattr(tuning, "LONG", 0.0)
    monkeypatch.setattr(tuning, "SHARE", 1e9)
    assert by(Lacking(), folder, tmp_path / "b", tiny_model, backend=AUTO).done == 3
    assert backends_of(tmp_path / "b") == {TORCH}


@pytest.mark.usefixtures("quick")
def test_a_worker_chooses_for_all(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a folder that was begun stays with what began it, whatever is chosen for the others."""
    folder = scenes(tmp_path / "town", 140, 100)
    slow_but(monkeypatch, "openvino")
    job = SegmentJob(folder / "b.tif", "buildings", tmp_path / "out", str(tiny_model), min_area=1, tile=64)
    with chunks_of(64), pytest.raises(KeyboardInterrupt):
        carry_out(plan(replace(job, backend=TORCH)), stopped_after(0))
    assert by(Inline(), folder, tmp_path / "out", tiny_model, cluster="processes:2", backend=AUTO).done == 3
    assert [(begun_job(tmp_path / "out" / name) or {}).get("backend", TORCH) for name in NAMES] == [
        "openvino",
        TORCH,
        "openvino",
    ]
    monkeypatch.setattr(tuning, "LONG", 1e9)
    assert by(Inline(), folder, tmp_path / "later", tiny_model, cluster="processes:2", backend=AUTO).done == 3
    assert backends_of(tmp_path / "later") == {"openvino"}, "a short run takes what a long one has found, here as well"


# --- how it is chosen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run is long enough, and there is time for everything."""
    monkeypatch.setattr(tuning, "LONG", 0.0)
    monkeypatch.setattr(tuning, "SHARE", 1e9)


def slow_but(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Have all backends but one take their time; returns who is called."""
    honest, called = NetworkPredict.__call__, list[str]()

    def call(self: NetworkPredict, *args: Any) -> torch.Tensor:
        backend = getattr(self.network, "_backend", TORCH)
        called.append(backend)
        if backend != name:
            time.sleep(0.2)
        return honest(self, *args)

    monkeypatch.setattr(NetworkPredict, "__call__", call)
    return called


def work_of(folder: Path, **changes: Any) -> tuning.Work:
    source = ArraySource(picture(200, 180))
    tiling = Tiling((200, 180), (64, 64), (48, 48), (200, 180), (16, 16))
    return replace(tuning.Work(read_model(folder), CPU, 1, 2, source, tiling, 16), **changes)


def chosen(cache: Path) -> list[Path]:
    return sorted((cache / "backends").glob("*")) if (cache / "backends").exists() else []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("best", [TORCH, *EXACT])
def test_the_fastest_is_taken_and_remembered(
    best: str, tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for each in chosen(cache):
        each.unlink()
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO, "geoseg"):
        called = slow_but(patched, best)
        name, predict = tuning.fastest(work_of(tiny_model))
        assert name == best
        assert predict is not None
        assert getattr(predict.network, "_backend", TORCH) == best
        assert set(called) == {TORCH, *EXACT}
        assert all(called.count(each) % 2 == 0 for each in called), "all lanes are at it"
    assert f"tiny: by {best}: " in caplog.text
    assert all(f"{each} " in caplog.text for each in (TORCH, *EXACT))
    (path,) = chosen(cache)
    found = json.loads(kept(path) or b"")
    assert found["seconds"][best] == min(found["seconds"].values())
    assert found["machine"] == tuning.machine()
    monkeypatch.setattr(tuning, "LONG", 1e9)  # a short run knows it, too
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "load_predict", lambda *_: pytest.fail("there is nothing to be found out"))
        assert tuning.fastest(work_of(tiny_model)) == (best, None)
        assert tuning.fastest(work_of(tiny_model), {TORCH, best}) == (best, None)
        assert tuning.fastest(work_of(tiny_model, lanes=1)) == (best, None), "workers make the same maps"
    monkeypatch.setattr(tuning, "_usual", lambda _: ("the usual", None))
    for other in ({"batch": 2}, {"model": replace(read_model(tiny_model), sha256="0" * 64)}):
        assert tuning.fastest(work_of(tiny_model, **other)) == ("the usual", None)
    monkeypatch.setattr(tuning, "_processor", lambda: "another")
    assert tuning.fastest(work_of(tiny_model)) == ("the usual", None)


@pytest.mark.usefixtures("own_cache")
def test_a_short_run_is_not_measured(tiny_model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_trial", lambda *_: pytest.fail("it is too short"))
    name, predict = tuning.fastest(work_of(tiny_model))
    assert (name, predict is not None and predict.is_prepared(1)) == (USUAL, True)
    assert tuning.fastest(work_of(tiny_model), {TORCH}) == (TORCH, None), "not everybody has it"
    assert tuning.fastest(work_of(tiny_model, device=torch.device("cuda"))) == (TORCH, None)
    assert chosen(own_cache) == []
    spec = read_model(tiny_model)
    at_most = tuning.LONG / tuning.SLOWEST / spec.patch**2 * 1e6
    assert not tuning.may_be_long(spec, at_most * 0.99)
    assert tuning.may_be_long(spec, at_most * 1.01)


@pytest.mark.usefixtures("quick")
def test_finding_out_takes_a_small_share_of_the_run(
    tiny_model: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[str]
) -> None:
    """What would take longer is not tried, and nothing is remembered then."""
    monkeypatch.setattr(tuning, "SHARE", 1.0)
    monkeypatch.setattr(tuning, "OPENING", 1e9)
    monkeypatch.setattr(tuning, "CONVERTING", 1e9)
    name, _ = tuning.fastest(work_of(tiny_model, patches=10**6))
    assert (name, conversions, chosen(own_cache)) == (USUAL, [USUAL], [])
    monkeypatch.setattr(tuning, "OPENING", 0.0)
    monkeypatch.setattr(tuning, "CONVERTING", 0.0)
    monkeypatch.setattr(tuning, "LONG", 1.0)
    assert tuning.fastest(work_of(tiny_model, patches=1))[0] == USUAL
    assert (conversions, chosen(own_cache)) == ([USUAL], [])
    monkeypatch.setattr(tuning, "LONG", 0.0)
    other = "onnxruntime"
    load_predict(read_model(tiny_model), CPU, other).prepare(1)
    monkeypatch.setattr(tuning, "CONVERTING", 1e9)
    conversions.clear()
    slow_but(monkeypatch, other)
    assert tuning.fastest(work_of(tiny_model, patches=10**6))[0] == other  # it was taken over before
    assert conversions == []


@pytest.mark.usefixtures("own_cache")
def test_a_network_that_the_usual_one_cannot_do_is_done_by_torch(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(*_: Any) -> Any:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(taken_over(USUAL)._library, "convert", convert)
    write_tif(tmp_path / "a.tif", picture(80, 80))
    planned = plan(SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "out", str(tiny_model)))
    assert "backend" not in carry_out(planned, lambda *_: None).item["properties"]["geoseg:parameters"]
    assert "cannot do this network" in caplog.text
    assert "no such layer" in caplog.text
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "named", str(tiny_model), backend=USUAL)
    with pytest.raises(ModelError, match="use --backend torch"):
        carry_out(plan(job), lambda *_: None)


@pytest.mark.usefixtures("quick", "own_cache")
def test_a_backend_that_cannot_do_it_is_told_and_left_out(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(*_: Any) -> Any:
        raise RuntimeError("no such layer")

    for name in EXACT:
        monkeypatch.setattr(taken_over(name)._library, "convert", convert)
    assert tuning.fastest(work_of(tiny_model))[0] == TORCH
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [message.partition(" cannot do")[0] for message in told] == [f"tiny: {name}" for name in EXACT]


@pytest.mark.usefixtures("quick")
def test_a_run_goes_by_what_was_chosen(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tif(tmp_path / "a.tif", picture(200, 180))
    job = SegmentJob(tmp_path / "a.tif", "buildings", tmp_path / "out", str(tiny_model), backend=AUTO)
    named = carry_out(plan(replace(job, backend="openvino", out=tmp_path / "named")), lambda *_: None)
    monkeypatch.setattr("geoseg.tuning._known", lambda _: {"backend": "openvino", "seconds": {}})
    assert carry_out(plan(job), lambda *_: None).item["properties"]["geoseg:parameters"]["backend"] == "openvino"
    assert_same(tmp_path / "out", named.folder.parent, ("a",))
    assert plan(job).complete
    folder = scenes(tmp_path / "town", 70, 70)
    assert run_archive(plan_archive(job_of(tiny_model, backend=AUTO), folder, tmp_path / "many")).done == 3
    assert backends_of(tmp_path / "many") == {"openvino"}
    assert SegmentJob(job.scene, "buildings", tmp_path / "plain").backend == job_of(tiny_model).backend == AUTO
