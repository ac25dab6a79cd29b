"""How well changes are found, on pairs of images with changes that somebody has drawn.

    python benchmarks/change_scores.py DATA [--only NAME ...] [--out FOLDER] [--json FILE]

DATA is a folder with `change_buildings/full1024` and `crop256` (pairs A and B in PNG, 0.5 m, without a place; masks
in `label`) and `change_sentinel2` (a folder for each city: t1, t2 with a file for each band, `change.png`). Each pair
is compared as `geoseg change` does it, and the result with the mask as `geoseg evaluate --task change` does it. Printed
are precision, recall, F1 and IoU of changed pixels, and F1 of places of change (4-connected, matched one to one at IoU
above 0.5), over all pixels and places of a set of pairs. No model has seen any of these pairs.

A method is a line of `METHODS`: it takes a pair and a folder, and gives what is to be evaluated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import geoseg

PIXEL = 0.5  # metres, of the pairs without a place
SETS = ("full1024", "crop256")


@dataclass(frozen=True)
class Pair:
    """Two images of one place, and what has changed between them."""

    name: str
    before: Path
    after: Path
    reference: Path
    pixel: float | None
    """Metres of a pixel, where the images have no place."""

    def scenes(self, folder: Path) -> tuple[str, str]:
        """Both as `geoseg change` takes them: each under a name of its own."""
        told = "" if self.pixel is None else f"#pixel={self.pixel:g}"
        return f"{_link(folder, self.name, self.before)}{told}", f"{_link(folder, self.name, self.after)}{told}"


def _link(folder: Path, name: str, path: Path) -> Path:
    side = path.parent.name if path.is_file() else path.name
    link = folder / f"{name}-{side}{path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(path.resolve())
    return link


Method: TypeAlias = Callable[[Pair, Path], Path]


def post_classification(model: str, resolution: float | None, *, match: bool = False) -> Method:
    """Each image mapped by itself, at a resolution in metres, and the maps compared."""

    def method(pair: Pair, folder: Path) -> Path:
        scenes = pair.scenes(folder / "images")
        return geoseg.change(*scenes, "buildings", folder, model=model, resolution=resolution, match=match).folder

    return method


def spectral(cut: str, index: str | None = None, *, mad: bool = False, around: float = 0) -> Method:
    """Differences of the bands, of their canonical variates or of an index, without any model."""

    def method(pair: Pair, folder: Path) -> Path:
        scenes = pair.scenes(folder / "images")
        options: dict[str, Any] = {"cut": cut, "index": index, "mad": mad, "around": around}
        return geoseg.change(*scenes, "spectral", folder, **options).folder

    return method


METHODS: dict[str, tuple[str, Method]] = {
    "post-classification, deeplabv3plus at 0.5 m": ("buildings", post_classification("buildings-deeplabv3plus", None)),
    "post-classification, deeplabv3plus at 0.25 m": ("buildings", post_classification("buildings-deeplabv3plus", 0.25)),
    "post-classification, deeplabv3plus, matched": (
        "buildings",
        post_classification("buildings-deeplabv3plus", 0.25, match=True),
    ),
    "post-classification, segformer at 0.5 m": ("buildings", post_classification("buildings-segformer", None)),
    "post-classification, segformer at 0.25 m": ("buildings", post_classification("buildings-segformer", 0.25)),
    "spectral, triangle": ("both", spectral("triangle")),
    "spectral, otsu": ("both", spectral("otsu")),
    "spectral, kittler": ("both", spectral("kittler")),
    "mad, triangle": ("both", spectral("triangle", mad=True)),
    "mad, otsu": ("both", spectral("otsu", mad=True)),
    "mad, kittler": ("both", spectral("kittler", mad=True)),
    "mad, triangle, around 30 m": ("sentinel2", spectral("triangle", mad=True, around=30)),
    "mad, otsu, around 20 m": ("sentinel2", spectral("otsu", mad=True, around=20)),
    "mad, otsu, around 30 m": ("sentinel2", spectral("otsu", mad=True, around=30)),
    "mad, otsu, around 40 m": ("sentinel2", spectral("otsu", mad=True, around=40)),
    "mad, kittler, around 30 m": ("sentinel2", spectral("kittler", mad=True, around=30)),
    "spectral, otsu, around 30 m": ("sentinel2", spectral("otsu", around=30)),
    "index ndvi, otsu": ("sentinel2", spectral("otsu", "ndvi")),
    "index ndbi, otsu": ("sentinel2", spectral("otsu", "ndbi")),
    "index mndwi, otsu": ("sentinel2", spectral("otsu", "mndwi")),
}
"""Name, on which pairs (buildings, sentinel2 or both), and the method: a network of two dates gets a line here."""


def buildings(data: Path) -> Iterator[tuple[str, Pair]]:
    """Name of a set, and a pair of it."""
    for name in SETS:
        folder = data / "change_buildings" / name
        for image in sorted((folder / "A").iterdir()):
            yield name, Pair(image.stem, image, folder / "B" / image.name, folder / "label" / image.name, PIXEL)


def sentinel2(data: Path) -> Iterator[tuple[str, Pair]]:
    """Name of a city, and its pair."""
    for mask in sorted((data / "change_sentinel2").glob("*/change.png")):
        city = mask.parent
        yield city.name, Pair(city.name, city / "t1", city / "t2", mask, None)


@dataclass
class Counts:
    """Of changed pixels and places: found rightly, found, and drawn; sums over pairs."""

    pixels: Any
    places: Any

    @classmethod
    def of(cls, found: geoseg.Evaluation) -> Counts:
        changed = next(each for each in found.pixels.classes if each.name == "changed")
        (places,) = found.objects
        both = found.pixels.confusion[1, 1]
        return cls(
            np.array([both, changed.predicted, changed.reference]),
            np.array([places.matched, places.predicted, places.reference]),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.pixels + other.pixels, self.places + other.places)

    def scores(self) -> dict[str, float]:
        """Precision, recall and F1 of pixels, F1 of places."""
        (both, found, drawn), (matched, places, there) = self.pixels, self.places
        return {
            "precision": both / max(found, 1),
            "recall": both / max(drawn, 1),
            "F1": 2 * both / max(found + drawn, 1),
            "IoU": both / max(found + drawn - both, 1),
            "places F1": 2 * matched / max(places + there, 1),
        }


def measured(method: Method, pairs: Iterator[tuple[str, Pair]], folder: Path, total: str) -> dict[str, Counts]:
    """Counts by set, and of all of them."""
    counts: dict[str, Counts] = {}
    for name, pair in pairs:
        result = method(pair, folder / name)
        one = Counts.of(geoseg.evaluate(result, pair.reference, task="change"))
        for key in (name, total):
            counts[key] = counts[key] + one if key in counts else one
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", help="methods whose name holds one of these words")
    parser.add_argument("--out", type=Path, help="folder for maps, which are kept; else they are not")
    parser.add_argument("--json", type=Path, help="file for all scores")
    given = parser.parse_args()
    told: dict[str, Any] = {}
    print(f"{'':46} {'pairs':12} {'precision':>9} {'recall':>7} {'F1':>6} {'IoU':>6} {'places F1':>10}")
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, (kind, method)) in enumerate(METHODS.items()):
            if given.only and not any(word in name for word in given.only):
                continue
            folder = (given.out or Path(scratch)) / str(number)
            for what, pairs, total in (("buildings", buildings, "all"), ("sentinel2", sentinel2, "all cities")):
                if kind not in {what, "both"}:
                    continue
                for key, counts in measured(method, pairs(given.data), folder / what, total).items():
                    scores = told.setdefault(name, {})[f"{what}: {key}"] = counts.scores()
                    columns = " ".join(
                        f"{value:{width}.3f}" for value, width in zip(scores.values(), (9, 7, 6, 6, 10), strict=True)
                    )
                    print(f"{name:46} {key:12} {columns}", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(told, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
