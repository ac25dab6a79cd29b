"""One backend for all who work at a run: the same bits, whoever predicts a tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from geoseg.errors import OptionError
from geoseg.models.backends import AUTO, BACKENDS, BY_TORCH, TORCH, installed_backends
from geoseg.work import SceneOrder, backends_here, fastest_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Crew(Protocol):
    """Workers: see `geoseg.cluster.Crew`."""

    @property
    def threads(self) -> int:
        """Calls that run at the same time."""
        ...

    @property
    def threads_by_worker(self) -> dict[str, int]:
        """The same for each worker."""
        ...

    @property
    def pending(self) -> int:
        """Calls whose outcome was not taken yet."""
        ...

    def ask(self, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
        """What a function returns on every worker."""
        ...

    def submit(self, tag: Any, function: Callable[..., Any], *args: Any) -> None:
        """Call a function on some worker."""
        ...

    def next(self) -> tuple[Any, Any]:
        """Tag and outcome of the next call that has ended."""
        ...


def agreed(orders: Sequence[SceneOrder], patches: int, crew: Crew | None) -> list[SceneOrder]:
    """The same orders, those for which no backend was named or has begun with the fastest one.

    `patches`: all that the run will see. `crew`: who will work, and has nothing to do yet; None: this process. Raises
    `OptionError` if a worker has not what an order names.
    """
    if crew is not None:
        _check_named(crew, {order.job.backend for order in orders} - {AUTO, *BY_TORCH})
    first = next((order for order in orders if order.job.backend == AUTO), None)
    if first is None:
        return list(orders)
    if crew is None:
        backend = fastest_backend(first, patches)
    else:
        backend = _by_a_worker(crew, first, patches // max(1, crew.threads))
    return [order.by(backend) if order.job.backend == AUTO else order for order in orders]


def _check_named(crew: Crew, names: set[str]) -> None:
    installed = crew.ask(installed_backends) if names else {}
    for name in sorted(names):
        lacking = [worker for worker, names in installed.items() if name not in names]
        if lacking:
            msg = f"backend {name}: the workers {', '.join(lacking[:3])} do not have it, and all need the same: "
            raise OptionError(f"{msg}pip install 'geoseg[{BACKENDS[name].extra}]' there")


def _by_a_worker(crew: Crew, order: SceneOrder, patches: int) -> str:
    """What one of them finds, of what all have, while the others wait; torch where it dies of that."""
    have = crew.ask(backends_here, order.job.device).values()
    among = tuple(name for name in BACKENDS if all(name in names for names in have))
    if not among:
        return TORCH
    crew.submit(order, fastest_backend, order, patches, among, 1)
    _, backend = crew.next()
    return backend if isinstance(backend, str) else TORCH
