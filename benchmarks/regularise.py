"""Regular outlines against a reference: how near, how simple, how square, and what becomes of neighbours.

    python benchmarks/regularise.py DATA [--model NAME] [--picture FILE] [--many 20000]

DATA is the folder that holds `banepa/` and `buildings_oam/`. Exact outlines of two sources are compared with mapped
footprints:

* what a model finds on the eastern third of Banepa's `labelled_train.tif`, which the bundled ones were not trained on;
* the footprints themselves, burnt into pixels of 0.25 m and traced: the geometry without any network.

Then footprints of Kampala, Zanzibar and another part of Banepa, burnt and traced as well. How buildings are made
regular was chosen with all of these in view: other places may say something else.

Each is taken as it is traced, as a run simplifies it (one pixel), regular, and, if it is installed, as
`buildingregulariser` makes it regular of the simplified outlines. For each: how many match the reference at IoU 0.5
(F1), IoU and PoLiS distance of those that do, vertices of a building and of its reference, by how many the two differ
(the mean over buildings of the difference without its sign), the share of corners within 2 degrees of a right angle,
the area in which two buildings overlap, the area of gaps between neighbours (what neither of two whose exact outlines
share a wall covers within half a metre of it), the length along which such neighbours still touch, invalid outlines,
and seconds of CPU time, of the second turn of two: libraries are loaded and loops compiled then. `--many` repeats the
second source until there are so many buildings and tells the time for that. `--picture` draws some of both, reference
below.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import rasterio
import shapely
import torch
from accuracy import BANEPA, HELD_OUT_FROM_COLUMN, LEAST_AREA, in_metres, predict, to_pixels
from rasterio.features import rasterize

from geoseg.catalog import find_model
from geoseg.evaluation.objects import Pairs, match, overlaps, polis
from geoseg.footprints import GroundSeparation
from geoseg.memory import keep_freed_memory
from geoseg.models.weights import choose_device, load_predict
from geoseg.polygonise import Objects, polygonise_whole
from geoseg.predict import Decision, Engine, default_lanes
from geoseg.regularise import FINEST_STEP, regularised, without_overlaps
from geoseg.separate import Separation
from geoseg.simplify import simplified

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Polygons = NDArray[np.object_]

BURNT = 0.25  # metres

TUNED_ON = "banepa/footprints_train.geojson"
NEVER_SEEN = [f"buildings_oam/{town}/footprints.geojson" for town in ("kampala_ug", "zanzibar_tz", "banepa_b_np")]


@dataclass(frozen=True)
class Case:
    """Exact outlines in pixels, and the reference in metres."""

    name: str
    polygons: Polygons
    block: NDArray[np.int64]
    pixel: float
    reference: Polygons

    @classmethod
    def of(cls, name: str, objects: Objects, pixel: float, reference: Polygons) -> Case:
        """Without what is too small."""
        large = objects.select(objects.pixels * pixel**2 >= LEAST_AREA)
        return cls(name, large.geometry, large.block, pixel, reference)

    def metres(self, polygons: Polygons) -> Polygons:
        """Outlines in pixels as metres."""
        moved: Polygons = shapely.transform(polygons, lambda xy: xy * self.pixel)
        return moved


def of_model(data: Path, name: str) -> Case:
    with rasterio.open(data / "banepa" / "labelled_train.tif") as source:
        image = source.read((1, 2, 3))[:, :, HELD_OUT_FROM_COLUMN:]
        transform = source.transform
    model = find_model("buildings", name)
    keep_freed_memory()
    device = choose_device("cpu")
    torch.set_num_threads(1)
    engine = Engine(
        load_predict(model, device),
        Decision(model.legend, None),
        tuple(round(255 * mean) for mean in model.mean),
        1,
        default_lanes(device),
    )
    found = predict(image, BANEPA, engine, model)
    apart, score = None, None
    if model.separation:
        apart = GroundSeparation(*model.separation).in_pixels(BANEPA**2)
        score = found.auxiliary[model.auxiliary.index("interior")]
    objects = polygonise_whole(found.labels, score=score, separation=apart)
    reference = to_pixels(footprints_of(data / TUNED_ON), transform, HELD_OUT_FROM_COLUMN)
    inside = shapely.box(0, 0, image.shape[2], image.shape[1])
    reference = np.array([each for each in reference if inside.contains(each)], object)
    return Case.of("found by the model, ground left out of training", objects, BANEPA, in_metres(reference, BANEPA))


def of_footprints(path: Path) -> Case:
    """The reference itself, burnt into pixels, each footprint apart from its neighbours, and traced."""
    shapes = footprints_of(path)
    west, south, east, north = shapes.total_bounds
    down = 1 / np.cosh((south + north) / 2 / 6_378_137)  # map metres of Web Mercator to metres on the ground
    pixel = BURNT / down
    transform = rasterio.transform.from_origin(west - 5, north + 5, pixel, pixel)
    shape = (int((north - south + 10) / pixel), int((east - west + 10) / pixel))
    number = rasterize(zip(shapes, range(1, len(shapes) + 1), strict=True), shape, transform=transform, dtype="int32")
    score = (number > 0).astype(np.uint8) * 250
    score[:, 1:][number[:, 1:] != number[:, :-1]] = 0
    score[1:][number[1:] != number[:-1]] = 0
    labels = (number > 0).astype(np.uint8)
    objects = polygonise_whole(labels, score=score, separation=Separation(1.0))
    return Case.of(
        f"{path.parent.name}: the reference in pixels of {BURNT} m",
        objects,
        BURNT,
        in_metres(to_pixels(shapes, transform), BURNT),
    )


def footprints_of(path: Path) -> gpd.GeoSeries:
    shapes = gpd.read_file(path).to_crs(3857).geometry
    return shapes[shapes.geom_type == "Polygon"].buffer(0).explode(ignore_index=True)


# --- ways to draw them


def exact(case: Case) -> Polygons:
    return case.polygons


def simple(case: Case) -> Polygons:
    return simplified(case.polygons, case.block, 1.0)


def regular(case: Case) -> Polygons:
    drawn, _ = regularised(case.polygons, case.block, 1.0, (case.pixel, case.pixel))
    return without_overlaps(drawn, metres=(case.pixel, case.pixel), shallow=FINEST_STEP * case.pixel)[0]


def by_others(case: Case) -> Polygons | None:
    """What `buildingregulariser` makes of the simplified outlines, with its own defaults."""
    try:
        from buildingregulariser import regularize_geodataframe
    except ImportError:
        return None
    frame = gpd.GeoDataFrame(geometry=case.metres(simple(case)), crs=32645)
    done = regularize_geodataframe(frame, num_cores=1)
    back: Polygons = shapely.transform(done.geometry.to_numpy(), lambda xy: xy / case.pixel)
    return back


WAYS: dict[str, Callable[[Case], Polygons | None]] = {
    "exact": exact,
    "simplified": simple,
    "regular": regular,
    "buildingregulariser": by_others,
}


# --- what is measured


def corners(polygons: Polygons) -> tuple[float, float]:
    """Vertices of a polygon on average, and the share of them that are right angles, within 2 degrees."""
    xy, ring = shapely.get_coordinates(shapely.get_rings(polygons), return_index=True)
    way, same = np.diff(xy, axis=0), np.diff(ring) == 0
    angle = np.degrees(np.arctan2(way[:, 1], way[:, 0]))
    first = np.flatnonzero(np.append(True, np.diff(ring) != 0))
    last = np.append(first[1:], len(ring)) - 1
    before = np.arange(-1, len(xy) - 1)
    before[first] = last - 1
    at = np.flatnonzero(np.append(same, False))
    turn = (angle[at] - angle[before[at]]) % 180
    return len(at) / len(polygons), float((np.abs(turn - 90) < 2).mean())


def vertices_of(polygons: Polygons) -> NDArray[np.int64]:
    """(n,) the last one of each ring, which is its first, not counted."""
    count: NDArray[np.int64] = shapely.get_num_coordinates(polygons) - shapely.get_num_interior_rings(polygons) - 1
    return count


def measured(case: Case, polygons: Polygons) -> dict[str, float]:
    drawn = case.metres(polygons)
    invalid = int((~shapely.is_valid(drawn)).sum())
    drawn = shapely.make_valid(drawn)
    p, r, iou = overlaps(drawn, case.reference)
    ones = np.ones(len(drawn), bool)
    pairs = Pairs(p, r, iou, np.ones(len(drawn)), ones, np.ones(len(case.reference), bool))
    found = match(pairs, 0.5)
    f1 = 2 * len(found) / (len(drawn) + len(case.reference))
    mine, theirs = drawn[p[found]], case.reference[r[found]]
    whole = np.isin(shapely.get_type_id(mine), [3, 6])
    vertices, right = corners(mine[whole])
    one, two = shapely.STRtree(drawn).query(drawn, predicate="intersects")
    one, two = one[one < two], two[one < two]
    a, b = neighbours(case)
    shared = shapely.length(shapely.intersection(shapely.boundary(drawn[a]), shapely.buffer(drawn[b], 0.01)))
    walls = shapely.intersection(case.metres(case.polygons[a]), case.metres(case.polygons[b]))
    beside = shapely.buffer(walls, 0.5, cap_style="flat")
    gaps = shapely.difference(beside, shapely.buffer(shapely.union(drawn[a], drawn[b]), 1e-6))
    return {
        "found": len(found),
        "F1": f1,
        "IoU": float(iou[found].mean()),
        "PoLiS m": float(polis(mine, theirs).mean()),
        "vertices": vertices,
        "of ref.": corners(theirs)[0],
        "differ by": float(np.abs(vertices_of(mine) - vertices_of(theirs))[whole].mean()),
        "right": right,
        "overlap m2": float(shapely.area(shapely.intersection(drawn[one], drawn[two])).sum()),
        "gaps m2": float(shapely.area(gaps).sum()),
        "shared m": float(shared.sum()),
        "invalid": invalid,
    }


def neighbours(case: Case) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs whose exact outlines share a wall."""
    one, two = shapely.STRtree(case.polygons).query(case.polygons, predicate="intersects")
    one, two = one[one < two], two[one < two]
    wall = shapely.length(
        shapely.intersection(shapely.boundary(case.polygons[one]), shapely.boundary(case.polygons[two]))
    )
    return one[wall > 0], two[wall > 0]


def repeated(case: Case, many: int) -> Case:
    """The same town again and again, one beside the other."""
    times = -(-many // len(case.polygons))
    width = int(shapely.total_bounds(case.polygons)[2]) + 10
    polygons = np.concatenate(
        [shapely.transform(case.polygons, lambda xy, i=i: xy + np.array([i * width, 0])) for i in range(times)]
    )
    block = np.concatenate([case.block + i * width for i in range(times)])
    return Case(case.name, polygons, block, case.pixel, case.reference)


def picture(cases: list[Case], path: Path, side: float = 60.0) -> None:
    """Exact outlines in grey, simplified and regular ones, the reference in green."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(cases), 3, figsize=(12, 4 * len(cases)), squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        middle = np.median(shapely.get_coordinates(shapely.centroid(case.metres(case.polygons))), axis=0)
        window = shapely.box(*(middle - side / 2), *(middle + side / 2))
        for axis, (name, way) in zip(row, list(WAYS.items())[1:], strict=True):
            drawn = way(case)
            for polygons, colour, width in (
                (case.reference, "#1b9e77", 1.0),
                (case.metres(case.polygons), "#bbbbbb", 0.8),
                (case.metres(drawn) if drawn is not None else (), "#d1495b", 1.6),
            ):
                for polygon in polygons:
                    if polygon.intersects(window):
                        for ring in shapely.get_rings(shapely.get_parts(polygon)):
                            axis.plot(*shapely.get_coordinates(ring).T, color=colour, linewidth=width)
            west, south, east, north = window.bounds
            axis.set(
                title=name,
                xlim=(west, east),
                ylim=(north, south),
                aspect="equal",
                xticks=[],
                yticks=[],
            )
    figure.tight_layout()
    figure.savefig(path, dpi=60)


def report(case: Case) -> None:
    print(f"\n{case.name}: {len(case.polygons)} buildings, {len(case.reference)} in the reference")
    head = None
    for name, way in WAYS.items():
        if way(case) is None:
            print(f"{name:20} is not installed")
            continue
        start = time.process_time()
        drawn = way(case)
        seconds = time.process_time() - start
        assert drawn is not None
        numbers: dict[str, Any] = {**measured(case, drawn), "CPU s": seconds}
        if head is None:
            head = " ".join(f"{key:>10}" for key in numbers)
            print(f"{'':20} {head}")
        print(f"{name:20} " + " ".join(f"{value:10.3f}" for value in numbers.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="buildings-deeplabv3plus")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--many", type=int, default=0)
    arguments = parser.parse_args()
    cases = [of_footprints(arguments.data / TUNED_ON), of_model(arguments.data, arguments.model)]
    for case in [*cases, *(of_footprints(arguments.data / path) for path in NEVER_SEEN)]:
        report(case)
        done = regularised(case.polygons, case.block, 1.0, (case.pixel, case.pixel))[1]
        print(f"{done.mean():.1%} are regular, the others left simplified")
    if arguments.many:
        case = repeated(cases[0], arguments.many)
        for name in ("simplified", "regular"):
            start = time.process_time()
            WAYS[name](case)
            print(f"{len(case.polygons)} buildings, {name}: {time.process_time() - start:.1f} s of CPU time")
    if arguments.picture:
        picture(cases, arguments.picture)


if __name__ == "__main__":
    main()
