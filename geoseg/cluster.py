"""Workers on this machine or many: the only module that knows dask.distributed.

A `Crew` takes calls and gives back what they returned, in the order in which they end. Whoever uses it keeps few calls
under way, so that an archive of any length is never a graph. Workers that are lost are Dask's to notice and replace;
what they were at is done by others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import queue
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from geoseg.errors import ClusterError, OptionError
from geoseg.jobs import Strict, read_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger("geoseg")

LOCALHOST = "127.0.0.1"

FIRST_WORKER_WITHIN = 120.0
"""Seconds that a scheduler which is joined has to show a worker."""

ANSWER_WITHIN = 60.0
"""Seconds that a scheduler has to answer."""

ASK_EVERY = 1.0
"""Seconds between two looks at whether the cluster is still there."""

BACK_WITHIN = 10.0
"""Seconds in which a connection that broke has to be back."""

DEATHS_ALLOWED = 10
"""Workers that may die with a call before it is given up, where we start the scheduler."""

SETTINGS = {"distributed.scheduler.allowed-failures": DEATHS_ALLOWED, "distributed.worker.profile.enabled": False}
"""Of Dask, where we start it. The profile that a worker keeps of its own last hour grows to 100 MB."""

Kind: TypeAlias = Literal[
    "processes", "address", "ssh", "slurm", "pbs", "lsf", "sge", "htcondor", "kubernetes", "coiled", "cuda"
]

CLUSTERS: dict[str, tuple[str, str, str]] = {
    "ssh": ("distributed", "SSHCluster", "geoseg[cluster] asyncssh"),
    "slurm": ("dask_jobqueue", "SLURMCluster", "dask-jobqueue"),
    "pbs": ("dask_jobqueue", "PBSCluster", "dask-jobqueue"),
    "lsf": ("dask_jobqueue", "LSFCluster", "dask-jobqueue"),
    "sge": ("dask_jobqueue", "SGECluster", "dask-jobqueue"),
    "htcondor": ("dask_jobqueue", "HTCondorCluster", "dask-jobqueue"),
    "kubernetes": ("dask_kubernetes.operator", "KubeCluster", "dask-kubernetes"),
    "coiled": ("coiled", "Cluster", "coiled"),
    "cuda": ("dask_cuda", "LocalCUDACluster", "dask-cuda"),
}
"""Module, class, and what to install, of each kind of cluster that a recipe may start."""


class Tls(Strict):
    """Certificates, as files."""

    ca_file: str = Field(description="certificate of the authority")
    cert: str = Field(description="this client's certificate")
    key: str = Field(description="and its key")


class Recipe(Strict):
    """A cluster, as a file tells it: `geoseg run JOB.yaml --cluster RECIPE.yaml`."""

    kind: Kind = Field(description="address: join a scheduler; the others start what they are named after")
    address: str | None = Field(default=None, description="with kind address: such as tls://10.0.0.5:8786")
    tls: Tls | None = Field(default=None, description="for addresses that begin with tls://")
    workers: int | None = Field(
        default=None, gt=0, description="how many to start; None: as many as the options or the service say"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="what each tile asks of a worker, such as {GPU: 1}"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the cluster's class, as its documentation has them"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if (self.kind == "address") != (self.address is not None):
            msg = "kind address needs an address, and no other kind takes one"
            raise ValueError(msg)
        if self.kind == "processes" and self.workers is None:
            msg = "kind processes needs the number of workers"
            raise ValueError(msg)
        return self


def recipe_of(text: str) -> Recipe:
    """The recipe of `processes:N`, an address, or a YAML file. Raises `OptionError` if it is none of them."""
    kind, _, count = text.partition(":")
    if kind == "processes" and count.isdecimal() and int(count) > 0:
        return Recipe(kind="processes", workers=int(count))
    if "://" in text:
        return Recipe(kind="address", address=text)
    if Path(text).suffix in {".yaml", ".yml"}:
        return read_job(Path(text), Recipe)
    msg = f"--cluster {text}: write local, processes:4, tcp://host:8786, or the name of a recipe such as slurm.yaml"
    raise OptionError(msg)


@dataclass(frozen=True)
class Lost:
    """What comes back for a call that took too many workers with it."""

    why: str


def joins(recipe: Recipe) -> bool:
    """Whether it joins a scheduler that runs already, and starts nothing."""
    return recipe.kind == "address"


@dataclass(frozen=True)
class _Call:
    tag: Any
    function: Callable[..., Any]
    args: tuple[Any, ...]


class Crew:
    """The workers of a cluster."""

    def __init__(self, client: Any, resources: Mapping[str, float]) -> None:
        """`resources`: what each call asks of its worker."""
        self._client, self._resources = client, dict(resources)
        self._calls: dict[str, tuple[_Call, Any]] = {}
        self._ended: queue.Queue[Any] = queue.Queue()
        self._counted = -ASK_EVERY, 0

    @property
    def threads(self) -> int:
        """Calls that run at the same time, now: workers come and go."""
        when, threads = self._counted
        if time.monotonic() - when >= ASK_EVERY:
            threads = sum(self.threads_by_worker.values())
            self._counted = time.monotonic(), threads
        return threads

    @property
    def threads_by_worker(self) -> dict[str, int]:
        """Calls that each worker, by its address, runs at the same time."""
        with self._talking():
            threads: dict[str, int] = self._client.nthreads()
        return threads

    @property
    def pending(self) -> int:
        """Calls whose outcome was not taken yet."""
        return len(self._calls)

    @property
    def dashboard(self) -> str | None:
        """Where to look at it."""
        link: str | None = self._client.dashboard_link
        return link

    def ask(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """What a function returns on every worker that is there, by the worker's address; without those that die."""
        with self._talking():
            answers: dict[str, Any] = self._client.run(function, *args, on_error="return")
        for answer in answers.values():
            if isinstance(answer, Exception) and not isinstance(answer, OSError):
                raise answer
        return {worker: answer for worker, answer in answers.items() if not isinstance(answer, OSError)}

    def submit(self, tag: Any, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on some worker; `tag` comes back with the outcome."""
        self._submit(_Call(tag, function, args))

    def _submit(self, call: _Call) -> None:
        key, resources = f"{call.function.__name__}-{uuid.uuid4().hex}", self._resources or None
        options = {"key": key, "pure": False, "resources": resources}
        with self._talking():
            future = self._client.submit(call.function, *call.args, **options)
        self._calls[future.key] = call, future
        future.add_done_callback(self._ended.put)

    def next(self) -> tuple[Any, Any]:
        """Tag and outcome of the next call that has ended: what it returned, or `Lost`.

        Raises `ClusterError` if the scheduler is gone, and what a call raised.
        """
        while True:
            future = self._wait()
            call, _ = self._calls.pop(future.key, (None, None))
            if call is None:
                continue
            try:
                return call.tag, self._outcome(future)
            except (concurrent.futures.CancelledError, asyncio.CancelledError) as error:
                # so it is with all calls when the connection breaks, though only for a moment
                log.debug("%s", error)
                self._await_connection()
                self._submit(call)

    def _outcome(self, future: Any) -> Any:
        from distributed import KilledWorker

        try:
            # where a worker has died with what it returned, another one is at it again, and this waits
            return future.result()
        except KilledWorker:
            return Lost("the workers that were at it died, one after the other (out of memory?)")

    def _await_connection(self) -> None:
        """Raises `ClusterError` if it does not come back."""
        until = time.monotonic() + BACK_WITHIN
        while self._client.status != "running":
            if self._client.status != "connecting" or time.monotonic() > until:
                raise self._gone()
            time.sleep(0.1)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Whatever a client raises whose scheduler is gone, as `ClusterError`."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) or self._client.status != "running":
                raise self._gone() from error
            raise

    def _wait(self) -> Any:
        warned = time.monotonic()
        while True:
            try:
                return self._ended.get(timeout=ASK_EVERY)
            except queue.Empty:
                if self._client.status not in {"running", "connecting"}:
                    raise self._gone() from None
                if time.monotonic() - warned > FIRST_WORKER_WITHIN:
                    warned = time.monotonic()
                    if self._client.status == "running" and not self.threads:
                        log.warning("no worker is left; waiting for one to come")

    def _gone(self) -> ClusterError:
        return ClusterError(
            "the scheduler does not answer any more; what was computed is kept: the same command goes on from there"
        )


@contextmanager
def crew(recipe: Recipe) -> Iterator[Crew]:
    """Start or join a cluster, and let go of it again.

    Raises `OptionError` if a package is missing or a resource is offered by no worker, `ClusterError` if no worker can
    be had.
    """
    if find_spec("distributed") is None:
        msg = "this needs dask.distributed: pip install 'geoseg[cluster]'"
        raise OptionError(msg)
    import dask
    import distributed

    quiet, beneath = logging.getLogger("distributed"), logging.getLogger("tornado.application")
    before, before_beneath = quiet.level, beneath.level
    quiet.setLevel(max(logging.ERROR, before))
    beneath.setLevel(logging.CRITICAL)  # it tells of callbacks that an interrupt caught, with a traceback
    cluster = client = None
    try:
        with dask.config.set(SETTINGS), _cluster_errors(recipe):
            cluster = None if recipe.kind == "address" else _start(recipe)
            security = None if recipe.tls is None else _security(recipe.tls)
            client = distributed.Client(
                cluster or recipe.address, security=security, timeout=ANSWER_WITHIN, set_as_default=False
            )
            client.wait_for_workers(1, timeout=FIRST_WORKER_WITHIN if recipe.kind in {"address", "processes"} else None)
        _check_resources(client, recipe)
        yield Crew(client, recipe.resources)
    finally:
        quiet.setLevel(logging.CRITICAL)  # what Dask says about a cluster that goes is of no use to anyone
        for each in (client, cluster):
            if each is not None:
                with suppress(Exception):
                    each.close(timeout=10)
        quiet.setLevel(before)
        beneath.setLevel(before_beneath)


@contextmanager
def _cluster_errors(recipe: Recipe) -> Iterator[None]:
    """Whatever the many kinds of clusters raise, as one kind of error."""
    try:
        yield
    except (ClusterError, OptionError):
        raise
    except Exception as error:
        where = recipe.address or f"a cluster of kind {recipe.kind}"
        msg = f"{where}: no worker can be had ({type(error).__name__}: {error}); check that it runs and can be reached"
        raise ClusterError(msg) from error


def _start(recipe: Recipe) -> Any:
    if recipe.kind == "processes":
        return _processes(recipe)
    module, name, package = CLUSTERS[recipe.kind]
    if find_spec(module.partition(".")[0]) is None:
        msg = f"a cluster of kind {recipe.kind} needs {module}: pip install {package}"
        raise OptionError(msg)
    cluster = getattr(import_module(module), name)(**recipe.options)
    if recipe.workers is not None and recipe.kind not in {"ssh", "cuda"}:
        cluster.scale(recipe.workers)
    return cluster


def _processes(recipe: Recipe) -> Any:
    """Worker processes on this machine, which nobody beyond it can reach.

    Without a limit of memory: a worker keeps what it has freed, which Dask would take for a leak, and pause it.
    """
    import distributed

    options = {"n_workers": recipe.workers, "threads_per_worker": 1, "memory_limit": 0, **recipe.options}
    return distributed.LocalCluster(
        **{"processes": True, "host": LOCALHOST, "dashboard_address": f"{LOCALHOST}:0", **options}
    )


def _security(tls: Tls) -> Any:
    import distributed

    return distributed.Security(
        tls_ca_file=tls.ca_file, tls_client_cert=tls.cert, tls_client_key=tls.key, require_encryption=True
    )


def _check_resources(client: Any, recipe: Recipe) -> None:
    """Raises `OptionError` if no worker offers what each tile asks for."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    offered = [worker.get("resources", {}) for worker in workers]
    if not any(all(each.get(k, 0) >= v for k, v in recipe.resources.items()) for each in offered):
        have = ", ".join(sorted({f"{k}={v:g}" for each in offered for k, v in each.items()})) or "none"
        msg = f"no worker offers {recipe.resources}; they offer {have}; start them with dask worker --resources"
        raise OptionError(msg)
