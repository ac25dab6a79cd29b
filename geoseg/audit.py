"""`status` and `verify`: how far an archive run is, and the proof that nothing of it is missing.

Both only read. `status` looks at the list of scenes and at their ledgers, and may do so while the run is on. `verify`
believes neither: it reads the scenes, the stores and the files again and compares.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import geopandas as gpd
import numpy as np
import shapely

from geoseg import merge
from geoseg.archive import RunJob, plan_archive
from geoseg.catalog import COLLECTION, MULTIHASH_SHA256, sha256_of
from geoseg.errors import GeosegError
from geoseg.export import INTERIOR
from geoseg.footprints import footprints
from geoseg.io.store import ResultStore, chunks_of, entries_of, valid_by_chunk
from geoseg.pipeline import layer_of
from geoseg.raster import NODATA
from geoseg.records import CHANGES, Listed, changes_of, items_of, listed_in, read_list
from geoseg.tiling import CHUNK
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from geoseg.archive import ArchivePlan, SceneEntry
    from geoseg.export import Observer
    from geoseg.planned import Plan

How: TypeAlias = Literal["complete", "under way", "failed", "waiting"]

SEAMS_ELSEWHERE = (CHUNK // 2 + 1, CHUNK // 2 + 3)
"""Windows in which outlines are found again: none of their seams is where the run had one."""


@dataclass(frozen=True)
class SceneStatus:
    """How far a scene is, as its ledger tells."""

    id: str
    how: How
    pixels: int
    predicted: int
    """Pixels."""
    why: str | None
    """What its latest failure was, of a tile that is not done since."""
    seconds: dict[str, float]
    """By stage."""
    workers: frozenset[str]


def status(out: Path) -> tuple[list[SceneStatus], list[tuple[str, str]]]:
    """How far the latest run in OUT is: its scenes, and name and error of those that could not be planned.

    Raises `OutputError` if OUT holds no run.
    """
    content = read_list(out)
    return [_status_of(out, scene) for scene in listed_in(content)], [(f["name"], f["why"]) for f in content["faults"]]


def compared(out: Path) -> dict[str, bool]:
    """Whether each comparison of the latest run in OUT is there. Raises `OutputError` if OUT holds no run."""
    return {name: (out / name / "item.json").exists() for name in read_list(out).get("comparisons", ())}


def _status_of(out: Path, scene: Listed) -> SceneStatus:
    folder = out / scene.id
    entries = list(entries_of(folder))
    done = valid_by_chunk(entries, scene.shape) >= 0
    seconds = Counter[str]()
    for entry in entries:
        seconds.update(entry.get("seconds", {}))
    open_failures = [e["why"] for e in entries if "failed" in e and not done[chunks_of(Window(*e["failed"]))].all()]
    complete = (folder / "item.json").exists()
    how: How = "complete" if complete else "failed" if open_failures else "under way" if len(entries) > 1 else "waiting"
    return SceneStatus(
        scene.id,
        how,
        scene.shape[0] * scene.shape[1],
        _pixels_of(done, scene.shape),
        open_failures[-1] if open_failures and not complete else None,
        dict(seconds),
        frozenset(entry["worker"] for entry in entries if "tile" in entry),
    )


def _pixels_of(chunks: NDArray[np.bool_], shape: tuple[int, int]) -> int:
    """Pixels of the chunks of a scene that are marked."""
    down, along = (np.diff(np.append(np.arange(0, side, CHUNK), side)) for side in shape)
    return int((chunks * np.outer(down, along)).sum())


# --- the proof


@dataclass(frozen=True)
class Proof:
    """What was looked at, and what was found to be wrong."""

    scenes: int
    pixels: int
    """Valid ones, each of which was predicted."""
    footprints: int
    again: int
    """Chunks that were predicted more than once, which costs time and changes nothing."""
    findings: tuple[tuple[str, str], ...]
    """Scene and what is wrong with it; none: all is proved."""


def verify(out: Path, observe: Observer = lambda _stage, _done, _total: None) -> Proof:
    """Prove that the latest run in OUT is complete, from its scenes and files; what is not so is among the findings.

    Each scene's valid pixels, read again, are those that have a label, and the ledger has as many of each chunk. Each
    file has the size and checksum that its item tells. Outlines, found again in other windows, are those of the file.
    The collection has all results, and every link and asset is there; merged footprints are of these
    results, too. Raises `OutputError` if OUT holds no run.
    """
    content = read_list(out)
    plan = plan_archive(RunJob.model_validate(content["job"]), Path(content["data"]), out)
    findings = [(fault.name, fault.why) for fault in plan.faults]
    listed = {scene.id for scene in listed_in(content)}
    findings += [
        (name, "is not what the job finds any more") for name in listed - {e.order.scene.id for e in plan.entries}
    ]
    pixels = found = again = 0
    total = sum(entry.pixels for entry in plan.entries)
    seen = 0
    for entry in plan.entries:
        look = _Look(entry)
        findings += [(entry.order.scene.id, what) for what in look.findings()]
        pixels, found, again = pixels + look.pixels, found + look.footprints, again + look.again
        seen += entry.pixels
        observe("verifying", seen, total)
    for pair in plan.pairs:
        told = _file_findings(plan.out / pair.id) if pair.complete else ["was not compared"]
        findings += [(pair.id, what) for what in told]
    findings += [("collection", what) for what in _collection_findings(plan)]
    return Proof(len(plan.entries), pixels, found, again, tuple(findings))


class _Look:
    """A look at one scene's results."""

    def __init__(self, entry: SceneEntry) -> None:
        self._entry, self._folder = entry, entry.order.folder
        self.pixels = self.footprints = self.again = 0

    def findings(self) -> Iterator[str]:
        """What is wrong, in the order from grave to small; a result that is not complete is not looked into."""
        if self._entry.state != "complete":
            yield {
                "new": "was not mapped",
                "begun": "is not complete",
                "changed": "was mapped from another file, with another model or with other parameters",
            }[self._entry.state]
            return
        try:
            planned, store = self._entry.order.planned(), ResultStore.open(self._folder)
            yield from self._ledger_findings(store)
            yield from self._pixel_findings(planned, store)
            yield from _file_findings(self._folder)
            yield from self._outline_findings(planned, store)
        except (GeosegError, OSError, ValueError, KeyError) as error:
            yield f"cannot be looked into: {error}"

    def _ledger_findings(self, store: ResultStore) -> Iterator[str]:
        times = np.zeros(store.done.shape, int)
        for entry in entries_of(self._folder):
            if "valid_by_chunk" in entry:
                times[chunks_of(Window(*entry["window"]))] += 1
        self.again = int((times > 1).sum())
        if not times.all():
            yield f"{int((times == 0).sum())} of its {times.size} chunks were not predicted, the ledger says"

    def _pixel_findings(self, planned: Plan, store: ResultStore) -> Iterator[str]:
        """Valid in the scene is labelled in the store, chunk by chunk, and counted in the ledger."""
        for band in store.bands():
            valid = planned.source.read(band).valid
            labelled = store.read_one("labels", band) != NODATA
            self.pixels += int(np.count_nonzero(valid & labelled))
            missing, surplus = np.count_nonzero(valid & ~labelled), np.count_nonzero(labelled & ~valid)
            rows = f"rows {band.row_start} to {band.row_stop - 1}"
            if missing or surplus:
                yield f"{rows}: {missing} valid pixels have no label, {surplus} labels have no valid pixel"
            for window in band.blocks((CHUNK, CHUNK)):
                count = np.count_nonzero(labelled[window.relative_to(band).slices])
                if count != (told := int(store.valid_by_chunk[chunks_of(window)].sum())):
                    yield f"{window}: {count} pixels have labels, the ledger counted {told}"

    def _outline_findings(self, planned: Plan, store: ResultStore) -> Iterator[str]:
        """Outlines found again in windows of another size are those of the file: no seam was left open."""
        names = ["labels", "confidence", *([INTERIOR] if layer_of(planned).separation else [])]

        def parts() -> Iterator[Any]:
            for window in Window.of_shape(store.shape).blocks(SEAMS_ELSEWHERE):
                yield window, *(store.read_one(name, window) for name in names)

        again, kept = footprints(parts(), layer_of(planned)), gpd.read_parquet(self._folder / "footprints.parquet")
        self.footprints = len(kept)
        same = len(again) == len(kept) and list(again["id"]) == list(kept["id"])
        if not same or not shapely.equals_exact(again.geometry.to_numpy(), kept.geometry.to_numpy()).all():
            yield f"footprints.parquet: its {len(kept)} outlines are not the {len(again)} of the labels"


def _file_findings(folder: Path) -> Iterator[str]:
    """What of the files that an item tells of is not as it says."""
    item = json.loads((folder / "item.json").read_text(encoding="utf-8"))
    for asset in item["assets"].values():
        path = folder / asset["href"]
        if not path.exists():
            yield f"{asset['href']}: is not there"
        elif MULTIHASH_SHA256 + sha256_of(path) != asset["file:checksum"]:
            yield f"{asset['href']}: its checksum is not that of its item; it was changed or damaged"
    yield from _dead_links(item, folder)


def _dead_links(content: dict[str, Any], folder: Path) -> Iterator[str]:
    for link in content["links"]:
        href = link["href"]
        if "://" not in href and not href.startswith("/vsi") and not (folder / href).exists():
            yield f"its link {link['rel']} leads to {href}, which is not there"


def _collection_findings(plan: ArchivePlan) -> Iterator[str]:
    """What is wrong with the collection of the maps, and with that of the comparisons."""
    alone = plan.model is not None and plan.model.dates == 1
    yield from _listing_findings(plan.out / COLLECTION, plan.collection, wanted=alone and bool(plan.entries))
    yield from _listing_findings(plan.out / CHANGES, changes_of(plan.collection), wanted=bool(plan.pairs))
    if (plan.out / COLLECTION).exists():
        yield from merge.findings(plan.out, wanted=plan.job.merge is not None)


def _listing_findings(path: Path, collection: str, *, wanted: bool) -> Iterator[str]:
    if not path.exists():
        if wanted:
            yield f"{path}: is not there"
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    yield from _dead_links(content, path.parent)
    linked = {Path(link["href"]).parent.name for link in content["links"] if link["rel"] == "item"}
    for item in items_of(path.parent, collection):
        if item["id"] not in linked:
            yield f"{path}: does not have {item['id']}"
