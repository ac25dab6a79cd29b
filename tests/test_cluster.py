"""`geoseg run` on workers: real schedulers and processes over TCP, killed while they work, and crews that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.windows
import yaml
from conftest import BANEPA, chunks_of, write_tif

import geoseg.work
from geoseg.archive import ArchivePlan, RunJob, RunReport, lacks, plan_archive, run_archive
from geoseg.cluster import Lost, Recipe, crew, recipe_of
from geoseg.errors import ClusterError, OptionError, OutputError
from geoseg.io.store import entries_of
from geoseg.models.backends import USUAL
from geoseg.planning import memory_here
from geoseg.window import Window
from geoseg.work import FILES, TileOutcome, make_files, make_item, predict_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

ROWS, COLS, NAMES = 2600, 70, ("a", "b", "c")
"""Three tiles of 1024 rows each."""

ATTEMPTS = 8
PATIENCE = 600
"""Seconds to wait for a process on a machine that has other things to do."""


def picture(rows: int, cols: int, seed: int = 1) -> NDArray[np.uint8]:
    """Blocks and noise: of what the tiny model makes both classes."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((3, -(-rows // 8), -(-cols // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :cols]
    return (blocks * 180 + rng.random((3, rows, cols)) * 75).astype(np.uint8)


def scenes(folder: Path, rows: int, cols: int) -> Path:
    for seed, name in enumerate(NAMES, 1):
        values = picture(rows, cols, seed)
        values[:, rows // 3 : rows // 2, cols // 2 :] = 0
        place = BANEPA @ rasterio.Affine.translation(seed * 200, 0)
        write_tif(folder / f"{name}.tif", values, nodata=0, transform=place)
    return folder


def job_of(model: Path | None, **options: Any) -> RunJob:
    values = {"product": "buildings", "scenes": {"files": ["*.tif"]}, "min_area": 1, **options}
    return RunJob.model_validate(values | ({} if model is None else {"model": str(model)}))


def results(folder: Path) -> dict[str, bytes]:
    """All of a scene's results that must not depend on how a run went."""
    names = ("labels.tif", "confidence.tif", "footprints.geojson", "footprints.parquet")
    kept = {name: (folder / name).read_bytes() for name in names}
    for path in sorted((folder / "result.zarr").rglob("*")):
        if path.is_file():
            kept[str(path.relative_to(folder))] = path.read_bytes()
    return kept


def assert_same(out: Path, other: Path, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        have, want = results(out / name), results(other / name)
        assert have.keys() == want.keys()
        assert [key for key in have if have[key] != want[key]] == []


def chunks_entered(folder: Path) -> list[tuple[int, ...]]:
    """Every row of chunks that the ledger has, as often as it was entered."""
    return sorted(tuple(entry["window"]) for entry in entries_of(folder) if "window" in entry)


def tiles_of(folder: Path) -> list[dict[str, Any]]:
    return [entry for entry in entries_of(folder) if "tile" in entry]


# --- crews that misbehave


class Inline:
    """A crew in this process: calls travel as bytes, end in any order, and fail as the script says."""

    def __init__(self, seed: int = 0, threads: int = 2, fate: Callable[[Any], Any] = lambda _: None) -> None:
        self.threads, self.most, self.sizes = threads, 0, list[int]()
        self.handed: list[Any] = []
        self._random, self._fate = random.Random(seed), fate
        self._waiting: list[tuple[Any, bytes]] = []

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def ask(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        return {"inline": function(*args)}

    def submit(self, tag: Any, function: Callable[..., Any], *args: Any) -> None:
        call = pickle.dumps((function, args))
        self.sizes.append(len(call))
        self.handed.append((function, args[0].scene.id, args[1]))
        self._waiting.append((tag, call))
        self.most = max(self.most, len(self._waiting))

    @staticmethod
    def _call(waiting: tuple[Any, bytes]) -> Any:
        return pickle.loads(waiting[1])  # noqa: S301  # our own

    def next(self) -> tuple[Any, Any]:
        waiting = self._waiting.pop(self._random.randrange(len(self._waiting)))
        function, args = self._call(waiting)
        fate = self._fate((function, args[0].scene.id, args[1]))
        return waiting[0], function(*args) if fate is None else fate


@pytest.fixture(scope="module")
def small(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small scenes, mapped in this process with chunks of 64 into "through"."""
    folder = scenes(tmp_path_factory.mktemp("small"), 140, 100)
    with chunks_of(64):
        assert run_archive(plan_archive(job_of(tiny_model), folder, folder / "through")).done == 3
    return folder


def by(workers: Inline, folder: Path, out: Path, model: Path, **options: Any) -> RunReport:
    with chunks_of(64):
        return run_archive(plan_archive(job_of(model, tile=64, **options), folder, out), workers)


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_tiles_gives_the_same(seed: int, small: Path, tiny_model: Path, tmp_path: Path) -> None:
    workers = Inline(seed)
    report = by(workers, small, tmp_path, tiny_model)
    assert (report.done, report.pixels, report.failures) == (3, 3 * 140 * 100, ())
    assert_same(tmp_path, small / "through")
    for name in NAMES:
        entered = chunks_entered(tmp_path / name)
        assert len(entered) == len(set(entered)) == len(tiles_of(tmp_path / name)) == 6
        assert not (tmp_path / name / "outlines").exists()
    assert set(report.seconds) == {"read", "forward", "blend", "outline", "write", "files"}


def test_few_tiles_are_under_way_and_they_are_small(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    workers = Inline(threads=3)
    by(workers, small, tmp_path, tiny_model)
    assert workers.most == 3
    assert max(workers.sizes) < 6000  # hrefs, windows, the header of the scene and the model's card
    assert len(workers.handed) == 1 + 3 * (6 + len(FILES) + 1), "the choice of a backend, tiles, files, ending"
    sizes = [what.size for function, scene, what in workers.handed if function is predict_tile and scene == "a"]
    assert sizes == sorted(sizes, reverse=True), "or everybody may wait for a large one at the end"
    assert sizes[-1] < sizes[0]
    order = [scene for _, scene, _ in workers.handed]
    assert order.index("b") < max(i for i, scene in enumerate(order) if scene == "a")  # scenes overlap


def test_the_model_is_loaded_once(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geoseg.models import weights

    honest, loaded = weights.load_predict, []
    monkeypatch.setattr(weights, "load_predict", lambda *args: loaded.append(args) or honest(*args))
    geoseg.work._load.cache_clear()
    by(Inline(), small, tmp_path, tiny_model)
    assert len(loaded) == 1


def test_threads_of_one_worker_do_not_meet(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of one scene at the same time in one process, each with the open file to itself."""
    from geoseg.io.scenes import GdalSource
    from geoseg.pipeline import begin
    from geoseg.work import SceneOrder

    honest, reading, met = GdalSource.read, set[int](), list[int]()

    def read(source: GdalSource, window: Window) -> Any:
        if id(source) in reading:
            met.append(id(source))
        reading.add(id(source))
        time.sleep(0.05)
        try:
            return honest(source, window)
        finally:
            reading.discard(id(source))

    monkeypatch.setattr(GdalSource, "read", read)

    with chunks_of(64):
        plan = plan_archive(job_of(tiny_model, tile=64), small, tmp_path)
        order: SceneOrder = plan.entries[0].order.by(USUAL)
        store = begin(order.planned())
        first, *others = order.tiling.tiles()
        outcomes = [predict_tile(order, first.core)]  # from now on there is an open file to be had
        with ThreadPoolExecutor(4) as pool:
            outcomes += pool.map(lambda tile: predict_tile(order, tile.core), others)
        assert [outcome.why for outcome in outcomes] == [None] * 6
        assert len(list((order.folder / "outlines").glob("*.npz"))) == 6
        assert all(outcome.seconds["outline"] > 0 for outcome in outcomes)
        for outcome in outcomes:
            store.enter(*outcome.entries)
        made = make_files(order, FILES)
        assert made.counts["footprints"]
        assert make_item(order, made.counts, outcomes[0].machine).why is None
    assert met == []
    assert_same(tmp_path, small / "through", ("a",))


def test_a_tile_whose_workers_die_is_done_by_others(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    died: list[Any] = []

    def fate(call: Any) -> Any:
        if call[0] is predict_tile and call[1] == "b" and call not in died:
            died.append(call)
            return Lost("killed")
        return None

    assert not by(Inline(fate=fate), small, tmp_path, tiny_model).failures
    assert len(died) == 6
    assert_same(tmp_path, small / "through")


def test_what_fails_for_good_is_recorded_and_only_it_is_done_again(
    small: Path, tiny_model: Path, tmp_path: Path
) -> None:
    def fate(call: Any) -> Any:
        deadly = call[0] is predict_tile and call[1] == "b" and call[2].row_start == 64 and call[2].col_start == 64
        return Lost("killed") if deadly else None

    report = by(Inline(fate=fate), small, tmp_path, tiny_model)
    assert (report.done, [f.scene for f in report.failures]) == (2, ["b"])
    assert report.failures[0].why == "1 of its tiles failed: killed"
    assert [e["failed"] for e in entries_of(tmp_path / "b") if "failed" in e] == [[64, 128, 64, 100]]
    (feature,) = json.loads((tmp_path / "failed.geojson").read_text("utf-8"))["features"]
    assert feature["properties"] == {"scene": "b", "why": report.failures[0].why, "tile": [64, 128, 64, 100]}
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert np.ptp(ring[:, 1]) * 111_000 == pytest.approx(64 * 0.3, rel=0.1)
    again = by(Inline(), small, tmp_path, tiny_model)
    assert (again.done, again.kept, again.pixels) == (1, 2, 64 * 36)
    assert not (tmp_path / "failed.geojson").exists()
    assert_same(tmp_path, small / "through")


@pytest.mark.parametrize("stage", ["tiles", "files"])
def test_a_defect_costs_one_scene(
    stage: str, small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("oops")

    with monkeypatch.context() as patched:
        if stage == "files":
            patched.setattr("geoseg.work.exports_of", broken)
        else:
            patched.setattr("geoseg.pipeline.Predictor.run", broken)
        report = by(Inline(), small, tmp_path, tiny_model)
    assert (report.done, len(report.failures)) == (0, 3)
    assert all("a defect: ZeroDivisionError: oops" in failure.why for failure in report.failures)
    again = by(Inline(), small, tmp_path, tiny_model)
    assert (again.done, again.pixels) == (3, 0 if stage == "files" else 3 * 140 * 100)
    assert_same(tmp_path, small / "through")


def test_a_disk_that_is_full_for_the_ledger_loses_nothing(
    small: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line must not stay before the lines of the next run."""
    from geoseg.io import store

    honest, lines = store._append, []

    def full(path: Path, content: bytes) -> None:
        lines.append(content)
        if len(lines) != 5:
            honest(path, content)
            return

        class Full:
            def write(self, _: bytes) -> int:
                return os.write(stream.fileno(), content[:20])

            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

        stream = path.open("ab", buffering=0)
        with stream, monkeypatch.context() as patched:
            patched.setattr(type(path), "open", lambda *_, **__: contextlib.nullcontext(Full()))
            honest(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(store, "_append", full)
        with pytest.raises(OutputError, match="No space left on device"):
            by(Inline(), small, tmp_path, tiny_model)
    report = by(Inline(), small, tmp_path, tiny_model)
    assert (report.done, report.failures) == (3, ())
    assert 0 < report.pixels < 3 * 140 * 100
    assert_same(tmp_path, small / "through")


def test_a_worker_whose_disk_is_full_ends_the_run(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Nothing else could be written either, and forward passes would be for nothing."""
    full = TileOutcome(Window(0, 64, 0, 64), (), None, "out: cannot be written: no space", hopeless=True)

    def fate(call: Any) -> Any:
        return full if call[1] == "b" else None

    workers = Inline(fate=fate)
    with pytest.raises(OutputError, match="out: cannot be written: no space"):
        by(workers, small, tmp_path, tiny_model)
    assert "c" not in {scene for _, scene, _ in workers.handed}
    report = by(Inline(), small, tmp_path, tiny_model)
    assert (report.failures, report.done + report.kept) == ((), 3)
    assert report.pixels < 3 * 140 * 100
    assert_same(tmp_path, small / "through")


def test_workers_that_do_not_see_the_folder_are_told(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    class Blind(Inline):
        def ask(self, *_: Any) -> dict[str, Any]:
            return {"tcp://far:1": False, "tcp://near:1": True}

    with pytest.raises(OutputError, match="the workers tcp://far:1 do not see this folder"):
        by(Blind(), small, tmp_path, tiny_model)


# --- recipes


def test_recipes(tmp_path: Path) -> None:
    assert recipe_of("processes:3") == Recipe(kind="processes", workers=3)
    assert recipe_of("tls://host:8786") == Recipe(kind="address", address="tls://host:8786")
    (tmp_path / "slurm.yaml").write_text("kind: slurm\nworkers: 4\noptions: {cores: 1, memory: 4GB}\n", "utf-8")
    recipe = recipe_of(str(tmp_path / "slurm.yaml"))
    assert (recipe.kind, recipe.workers, recipe.options) == ("slurm", 4, {"cores": 1, "memory": "4GB"})
    with pytest.raises(OptionError, match="needs dask_jobqueue: pip install dask-jobqueue"), crew(recipe):
        pass
    for text in ("processes:0", "processes", "threads:2", "many"):
        with pytest.raises(OptionError, match=re.escape(f"--cluster {text}: write local, processes:4")):
            recipe_of(text)
    for content, says in (
        ("kind: os.system", "kind: should be 'processes'"),
        ("kind: address", "kind address needs an address"),
        ("kind: processes", "needs the number of workers"),
        ("kind: ssh\nopts: {}", "opts is not a key of this job; did you mean options?"),
        ("!!python/object/apply:os.system [true]", "not a YAML file"),
    ):
        (tmp_path / "bad.yaml").write_text(content, "utf-8")
        with pytest.raises(OptionError, match=re.escape(says)):
            recipe_of(str(tmp_path / "bad.yaml"))


def test_the_recipes_in_the_docs_are_recipes() -> None:
    recipes = sorted((Path(__file__).parents[1] / "docs" / "clusters").glob("*.yaml"))
    assert [recipe_of(str(path)).kind for path in recipes] == [path.stem for path in recipes]
    assert len(recipes) >= 5


# --- real processes


class Dask:
    """A scheduler and workers as people start them: with the `dask` command, over TCP."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        root = str(Path(__file__).parents[1])
        self._environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
        self.scheduler = self._start("scheduler", "--port", "0", "--scheduler-file", str(self.file))
        deadline = time.monotonic() + PATIENCE
        while not self.file.exists():
            assert self.scheduler.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(0.5)
        self.address: str = json.loads(self.file.read_text("utf-8"))["address"]
        self.workers: list[subprocess.Popen[bytes]] = []

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        dask = Path(sys.executable).with_name("dask")
        options = ["--host", "127.0.0.1", "--no-dashboard"]
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen([dask, *command, *options], env=self._environment, stdout=log, stderr=log)

    def add(self, count: int, threads: int) -> None:
        options = (
            "--nthreads",
            str(threads),
            "--no-nanny",
            "--memory-limit",
            "0",
            "--local-directory",
            str(self.folder),
        )
        self.workers += [self._start("worker", self.address, *options) for _ in range(count)]

    def command(self, job: RunJob, data: Path, out: Path) -> subprocess.Popen[str]:
        """`geoseg run` in a process of its own."""
        # a check that a shell runs in the background ignores SIGINT, and so would what it starts
        signal.signal(signal.SIGINT, signal.default_int_handler)
        (data / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json")), "utf-8")
        command = [sys.executable, "-m", "geoseg", "run", str(data / "job.yaml"), "--out", str(out)]
        command += ["--cluster", self.address]
        return subprocess.Popen(
            command, env=self._environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def town(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of three tiles each, mapped in this process into "through"."""
    folder = scenes(tmp_path_factory.mktemp("town"), ROWS, COLS)
    assert run_archive(plan_archive(job_of(tiny_model), folder, folder / "through")).done == 3
    return folder


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    started = Dask(tmp_path_factory.mktemp("dask"))
    try:
        yield started
    finally:
        started.stop()


def on(dask: Dask, workers: int) -> contextlib.AbstractContextManager[Any]:
    @contextlib.contextmanager
    def joined() -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("geoseg.cluster.FIRST_WORKER_WITHIN", PATIENCE)
            stack = contextlib.ExitStack()
            members = stack.enter_context(crew(recipe_of(dask.address)))
        with stack:
            members._client.wait_for_workers(workers, timeout=PATIENCE)
            yield members

    return joined()


def remote_job(model: Path, dask: Dask) -> RunJob:
    return job_of(model, tile=1024, cluster=dask.address)


def test_one_worker_of_two_threads_gives_the_same(
    dask: Dask, town: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dask.add(1, threads=2)
    plan = plan_archive(remote_job(tiny_model, dask), town, tmp_path)
    with on(dask, 1) as workers:
        assert workers.threads == 2
        assert lacks(plan, workers) == []
        _, memory = memory_here()
        wanted = replace(plan.estimate(), memory=int(0.6 * memory))
        with monkeypatch.context() as patched:
            patched.setattr(ArchivePlan, "estimate", lambda _: wanted)
            (told,) = lacks(plan, workers)  # each of the two threads may take that much
            assert "2 workers may take" in told
        report = run_archive(plan, workers)
    assert (report.done, report.failures) == (3, ())
    assert_same(tmp_path, town / "through")
    assert {entry["worker"].partition(":")[2] for n in NAMES for entry in tiles_of(tmp_path / n)} == {
        str(dask.workers[0].pid)
    }


def test_four_workers_one_of_which_is_killed_give_the_same(
    dask: Dask, town: Path, tiny_model: Path, tmp_path: Path
) -> None:
    dask.add(3, threads=1)
    plan = plan_archive(remote_job(tiny_model, dask), town, tmp_path)
    done: list[dict[str, Any]] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "tile done":
            if not done:
                dask.workers[0].kill()
            done.append(event)

    with on(dask, 4) as workers:
        report = run_archive(plan, workers, tell=tell)
    assert (report.done, report.failures, len(done)) == (3, (), 9)
    assert_same(tmp_path, town / "through")
    for name in NAMES:
        assert chunks_entered(tmp_path / name) == [(0, 1024, 0, 70), (1024, 2048, 0, 70), (2048, 2600, 0, 70)]
    seen = {entry["worker"].partition(":")[2] for n in NAMES for entry in tiles_of(tmp_path / n)}
    assert seen <= {str(worker.pid) for worker in dask.workers}
    assert len(seen) > 1


def test_what_a_worker_returned_and_nobody_took_before_it_died_is_done_again(tmp_path: Path) -> None:
    dask = Dask(tmp_path)
    try:
        dask.add(2, threads=1)
        with on(dask, 2) as members:
            pids = members.ask(os.getpid)
            members.submit("call", time.sleep, 4)  # so that it is being done again when its outcome is asked for
            deadline = time.monotonic() + PATIENCE
            while members._ended.empty():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            ((holder,),) = members._client.who_has().values()
            os.kill(pids[holder], signal.SIGKILL)
            while len(members._client.nthreads()) > 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert members.next() == ("call", None)
    finally:
        dask.stop()


def test_a_worker_that_dies_while_it_is_asked_is_not_heard(tmp_path: Path) -> None:
    dask = Dask(tmp_path)
    try:
        dask.add(2, threads=1)
        with on(dask, 2) as members:
            victim = min(members.ask(os.getpid).values())
            threading.Timer(1, os.kill, (victim, signal.SIGKILL)).start()
            assert list(members.ask(time.sleep, 4).values()) == [None]
            with pytest.raises(ZeroDivisionError):
                members.ask(divmod, 1, 0)
    finally:
        dask.stop()


def test_a_connection_that_breaks_for_a_moment_ends_nothing(tmp_path: Path) -> None:
    dask = Dask(tmp_path)
    try:
        dask.add(1, threads=2)
        with on(dask, 1) as members:
            for tag in range(3):
                members.submit(tag, time.sleep, 1)
            client = members._client
            client.loop.add_callback(client.scheduler_comm.comm.abort)
            assert sorted(members.next() for _ in range(3)) == [(0, None), (1, None), (2, None)]
            assert members.pending == 0
    finally:
        dask.stop()


def tiles_done(out: Path) -> int:
    return sum(len(tiles_of(out / name)) for name in NAMES)


def test_a_client_that_is_stopped_or_killed_loses_nothing(
    dask: Dask, town: Path, tiny_model: Path, tmp_path: Path
) -> None:
    job = remote_job(tiny_model, dask)
    if not dask.workers:
        dask.add(3, threads=1)
    for _ in range(ATTEMPTS):  # nine tiles of this model are done in the twinkling of an eye
        before = 0
        for how in (signal.SIGINT, signal.SIGKILL):
            client = dask.command(job, town, tmp_path)
            deadline = time.monotonic() + PATIENCE
            while tiles_done(tmp_path) == before and time.monotonic() < deadline and client.poll() is None:
                time.sleep(0.002)
            client.send_signal(how)
            _, err = client.communicate(timeout=PATIENCE)
            assert "Traceback" not in err, err
            before = tiles_done(tmp_path)
            assert before > 0, err
            if client.returncode == 0:
                break
            assert client.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), err
            assert how == signal.SIGKILL or "Stopped. What was computed is kept" in err
        if client.returncode != 0:
            break
        shutil.rmtree(tmp_path)
    assert client.returncode == -signal.SIGKILL
    with on(dask, 3) as workers:
        report = run_archive(plan_archive(job, town, tmp_path), workers)
    assert report.failures == ()
    assert tiles_done(tmp_path) == 9  # each tile was entered once, whoever did it
    assert_same(tmp_path, town / "through")


def test_a_scheduler_that_is_killed_loses_nothing(dask: Dask, town: Path, tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_archive(remote_job(tiny_model, dask), town, tmp_path)

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "tile done":
            dask.scheduler.kill()

    with pytest.raises(ClusterError, match="the scheduler does not answer any more"), on(dask, 3) as workers:
        run_archive(plan, workers, tell=tell)
    done = tiles_done(tmp_path)
    assert 0 < done < 9
    with pytest.raises(ClusterError, match="no worker can be had"), crew(recipe_of("tcp://127.0.0.1:1")):
        pass
    report = run_archive(plan_archive(job_of(tiny_model, tile=1024), town, tmp_path))
    assert report.failures == ()
    assert tiles_done(tmp_path) == 9
    assert_same(tmp_path, town / "through")


def test_the_bundled_model_on_two_processes_of_this_machine(tmp_path: Path, shared_data: Path) -> None:
    """As the command does it with `--cluster processes:2`; a real scene, of two tiles."""
    with rasterio.open(shared_data / "banepa" / "labelled_train.tif") as dataset:
        place = rasterio.windows.Window(0, 0, 520, 1200)
        values, transform, crs = dataset.read([1, 2, 3], window=place), dataset.window_transform(place), dataset.crs
    write_tif(tmp_path / "banepa.tif", values, crs=crs.to_wkt(), transform=transform)
    run_archive(plan_archive(job_of(None), tmp_path, tmp_path / "through"))
    job = job_of(None, tile=1024, cluster="processes:2")
    with crew(recipe_of("processes:2")) as workers:
        address = workers._client.scheduler.address
        assert address.startswith("tcp://127.0.0.1:")
        report = run_archive(plan_archive(job, tmp_path, tmp_path / "maps"), workers)
    assert (report.done, report.failures) == (1, ())
    assert report.footprints > 20
    assert_same(tmp_path / "maps", tmp_path / "through", ("banepa",))


def test_what_no_worker_offers_is_told() -> None:
    from geoseg import cluster

    class Client:
        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            assert n_workers == -1
            return {"workers": {"a": {"resources": {"GPU": 1}}, "b": {"resources": {}}}}

    cluster._check_resources(Client(), Recipe(kind="processes", workers=1, resources={"GPU": 1}))
    cluster._check_resources(Client(), Recipe(kind="processes", workers=1))
    with pytest.raises(OptionError, match=r"no worker offers \{'GPU': 2.0\}; they offer GPU=1"):
        cluster._check_resources(Client(), Recipe(kind="processes", workers=1, resources={"GPU": 2}))
