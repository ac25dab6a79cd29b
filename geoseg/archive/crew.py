"""Scenes mapped by a crew of workers: tiles are handed out as workers ask for them, and then files."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from geoseg.archive.tally import Done, failure_of
from geoseg.errors import GeosegError, OutputError
from geoseg.pipeline import begin, failed_entry
from geoseg.planning import tiles_of
from geoseg.work import FilesOutcome, SceneOrder, TileOutcome, files_of, make_files, make_item, predict_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from geoseg.agreement import Crew
    from geoseg.archive.plan import SceneEntry
    from geoseg.io.store import ResultStore
    from geoseg.pipeline import Machine
    from geoseg.tiling import Tile, Tiling
    from geoseg.window import Window

TRIES = 2
"""How often a tile is handed out whose workers all died."""


ITEM = "item"


FEW = 4096
"""Tiles of a scene up to which the largest are handed out first, so that nobody waits long for the last."""


def by_turns(
    crew: Crew | None, ask: Callable[[], Any], hand_out: Callable[[Any], None], take: Callable[[Any, Any], None]
) -> None:
    """Hand out what is asked for as workers are free, and take what comes back; without a crew, one by one.

    `ask` gives None where nothing is to be handed out, or not before something has come back.
    """
    while True:
        item = ask() if crew is None or crew.pending < max(1, crew.threads) else None
        if item is not None:
            hand_out(item)
        elif crew is not None and crew.pending:
            take(*crew.next())
        else:
            return


@dataclass
class _Scene:
    """A scene that is under way."""

    order: SceneOrder
    store: ResultStore
    began: float
    waiting: int = 0
    """Tiles whose outcome is not known."""
    listed: bool = False
    """Whether all of its tiles were handed out."""
    machine: Machine | None = None
    failed: list[tuple[Window, str]] = field(default_factory=list)
    made: dict[str, FilesOutcome] = field(default_factory=dict)
    """What came of its files, and at last of its item."""


@dataclass(frozen=True)
class _Tile:
    """A tile that was handed out."""

    scene: _Scene
    core: Window
    tries: int = 1


@dataclass(frozen=True)
class _Files:
    """Some of a scene's files that are being made, or its item when they are there."""

    scene: _Scene
    names: tuple[str, ...]


class ByCrew:
    """Hands out tiles, and then the files of each scene whose tiles are done."""

    def __init__(self, crew: Crew, done: Done) -> None:
        self._crew, self._done = crew, done
        self._files: deque[_Files] = deque()
        """What can be made now. A call is handed out when a worker is free: given to one that is at work, it would wait
        for that one, while another may be done first."""

    def run(self, entries: Iterable[SceneEntry]) -> None:
        """Do all of it."""
        tiles = self._tiles(entries)
        by_turns(
            self._crew,
            lambda: self._files.popleft() if self._files else next(tiles, None),
            self._hand_out,
            self._take,
        )

    def _tiles(self, entries: Iterable[SceneEntry]) -> Iterator[_Tile | _Scene]:
        """What is missing of all scenes, as it is asked for: tiles, then the scene, all of whose tiles were given.

        A scene's store is made when its first tile is.
        """
        for entry in entries:
            scene = self._begin(entry)
            if scene is None:
                continue
            for tile in _largest_first(entry.order.tiling):
                core = scene.store.undone(tile.core)
                self._done.skipped(tile.core.size - (0 if core is None else core.size))
                if core is not None:
                    yield _Tile(scene, core)
            scene.listed = True
            yield scene

    def _begin(self, entry: SceneEntry) -> _Scene | None:
        order = entry.order
        self._done.begun(order)
        try:
            return _Scene(order, begin(order.planned()), time.perf_counter())
        except GeosegError as error:
            self._done.failed(failure_of(order, str(error)))
            return None

    def _hand_out(self, item: _Tile | _Scene | _Files) -> None:
        """A tile, or files; or a scene that has no more tiles."""
        if isinstance(item, _Scene):
            self._close(item)
            return
        if isinstance(item, _Files):
            self._have_made(item)
            return
        if item.tries == 1:
            item.scene.waiting += 1
        self._crew.submit(item, predict_tile, item.scene.order, item.core)

    def _take(self, tag: _Tile | _Files, outcome: Any) -> None:
        if isinstance(tag, _Tile):
            self._take_tile(tag, outcome)
        else:
            self._take_files(tag, outcome)

    def _take_tile(self, tile: _Tile, outcome: Any) -> None:
        scene = tile.scene
        if not isinstance(outcome, TileOutcome):
            if tile.tries < TRIES:
                self._hand_out(replace(tile, tries=tile.tries + 1))
                return
            outcome = TileOutcome(tile.core, (failed_entry(tile.core, outcome.why, "lost"),), None, outcome.why)
        if outcome.hopeless:
            raise OutputError(outcome.why)
        scene.waiting -= 1
        scene.store.enter(*outcome.entries)
        self._done.tile(scene.order, outcome)
        if outcome.why is None:
            scene.machine = outcome.machine
        else:
            scene.failed.append((tile.core, outcome.why))
        self._close(scene)

    def _close(self, scene: _Scene) -> None:
        """Have the files made of a scene whose last tile is done."""
        if not scene.listed or scene.waiting:
            return
        if scene.failed:
            what = f"{len(scene.failed)} of its tiles failed: {scene.failed[0][1]}"
            self._done.failed(failure_of(scene.order, what, (core for core, _ in scene.failed)))
        else:
            many = tiles_of(scene.order.tiling) > 1
            files = files_of(scene.order.job)
            self._files.extend(_Files(scene, names) for names in ([(name,) for name in files] if many else [files]))

    def _have_made(self, files: _Files) -> None:
        scene = files.scene
        if files.names == (ITEM,):
            counts = {name: count for made in scene.made.values() for name, count in made.counts.items()}
            self._crew.submit(files, make_item, scene.order, counts, scene.machine)
        else:
            self._crew.submit(files, make_files, scene.order, files.names)

    def _take_files(self, made: _Files, outcome: Any) -> None:
        scene = made.scene
        if not isinstance(outcome, FilesOutcome):
            outcome = FilesOutcome(0.0, why=outcome.why)
        if outcome.hopeless:
            raise OutputError(outcome.why)
        self._done.spent({"files": outcome.seconds})
        scene.made |= dict.fromkeys(made.names, outcome)
        if len(scene.made) < len(files_of(scene.order.job)):
            return
        why = next((each.why for each in scene.made.values() if each.why), None)
        if why is not None:
            self._done.failed(failure_of(scene.order, why))
        elif ITEM in scene.made:
            self._done.scene(scene.order, time.perf_counter() - scene.began)
        else:
            self._files.append(_Files(scene, (ITEM,)))


def _largest_first(tiling: Tiling) -> Iterable[Tile]:
    tiles = tiling.tiles()
    return tiles if tiles_of(tiling) > FEW else sorted(tiles, key=lambda tile: -tile.core.size)
