"""What an evaluation calls things, what it takes for objects, and maps that geoseg itself has made."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from conftest import BANEPA, write_tif
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

import geoseg
from geoseg.catalog import Legend, LegendClass
from geoseg.errors import EvaluationError
from geoseg.evaluation import compare
from geoseg.evaluation.inputs import background_of, class_names, classes_of, open_side
from geoseg.evaluation.objects import object_scores
from geoseg.io.cog import Look, write_cog
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

UTM = "EPSG:32645"
SHAPE = (60, 80)


def blocks(classes: int, seed: int = 0, side: int = 10) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (SHAPE[0] // side, SHAPE[1] // side)).astype(np.uint8)
    return coarse.repeat(side, 0).repeat(side, 1)


def named(path: Path, labels: NDArray[np.uint8], names: list[str]) -> Path:
    """A label map as geoseg writes it."""
    legend = Legend(tuple(LegendClass(i, name, "#0a0b0c") for i, name in enumerate(names)), 0)
    grid = GeoBox(SHAPE, BANEPA, UTM)
    path.parent.mkdir(exist_ok=True)
    write_cog(path, [(Window.of_shape(SHAPE), labels)], grid, Look("map", legend), {})
    return path


# --- names


def test_names_come_from_the_file_itself(tmp_path: Path) -> None:
    """Categories, or where there are none, the attribute table; else there are none."""
    path = named(tmp_path / "map.tif", blocks(3), ["water", "wood", "meadow"])
    assert class_names(path) == {0: "water", 1: "wood", 2: "meadow"}
    aside = tmp_path / "map.tif.aux.xml"
    text = aside.read_text("utf-8")
    start, stop = text.index("<CategoryNames"), text.index("</CategoryNames>") + len("</CategoryNames>")
    aside.write_text(text[:start] + text[stop:], "utf-8")
    assert class_names(path) == {0: "water", 1: "wood", 2: "meadow"}
    aside.unlink()
    assert class_names(path) == {}


def test_names_come_from_the_item_beside_the_file(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "labels.tif", blocks(2))
    classes = [{"value": 0, "name": "land"}, {"value": 1, "name": "ice"}]
    item = {"assets": {"x": {"href": "./other.tif"}, "y": {"href": "./labels.tif", "classification:classes": classes}}}
    (tmp_path / "item.json").write_text(json.dumps(item))
    assert class_names(path) == {0: "land", 1: "ice"}
    for broken in ("{", "[]", '{"assets": 3}', '{"assets": {"y": {"href": "./labels.tif"}}}'):
        (tmp_path / "item.json").write_text(broken)
        assert class_names(path) == {}


def test_both_sides_are_told_in_the_same_names(tmp_path: Path) -> None:
    ours = named(tmp_path / "p.tif", blocks(3), ["background", "road", "building"])
    found = geoseg.evaluate(ours, write_tif(tmp_path / "r.tif", blocks(3, 1)))
    assert found.classes == ((0, "background"), (1, "road"), (2, "building"))
    assert [o.name for o in found.objects] == ["building"]  # a road has no number
    assert [b.name for b in found.boundaries] == ["road", "building"]
    theirs = named(tmp_path / "t.tif", blocks(3, 1), ["background", "Building", "road"])
    with pytest.raises(EvaluationError, match=r"t\.tif: its class 'Building' is 1, in .*p\.tif it is 2"):
        geoseg.evaluate(ours, theirs)
    assert geoseg.evaluate(ours, theirs, classes=dict(enumerate("abc"))).classes == ((0, "a"), (1, "b"), (2, "c"))


def test_classes_without_names_have_numbers_and_are_no_objects(tmp_path: Path) -> None:
    """One class beside 0 is taken for buildings; of several, none is."""
    files = write_tif(tmp_path / "p.tif", blocks(4)), write_tif(tmp_path / "r.tif", blocks(4, 1))
    found = geoseg.evaluate(*files)
    assert found.classes == tuple((i, str(i)) for i in range(4))
    assert found.objects == ()
    files = write_tif(tmp_path / "p.tif", blocks(2)), write_tif(tmp_path / "r.tif", blocks(2, 1))
    found = geoseg.evaluate(*files)
    assert found.classes == ((0, "background"), (1, "building"))
    assert [o.name for o in found.objects] == ["building"]
    with pytest.raises(EvaluationError, match="--class-column"):
        geoseg.evaluate(write_tif(tmp_path / "p.tif", blocks(4)), layer([1, 2]).drop(columns="kind"))


@pytest.mark.parametrize(
    ("names", "background"),
    [
        ({0: "land", 1: "water"}, 0),
        ({0: "Background", 1: "car", 2: "house"}, 0),
        ({0: "building", 1: "clutter", 2: "water"}, None),
        ({1: "car", 2: "house", 3: "tree"}, 0),
    ],
)
def test_what_is_background(names: dict[int, str], background: int | None) -> None:
    assert background_of(names) == background


def layer(kinds: list[Any]) -> gpd.GeoDataFrame:
    x = BANEPA.c + 1.5 + 6 * np.arange(len(kinds))
    return gpd.GeoDataFrame({"kind": kinds}, geometry=shapely.box(x, BANEPA.f - 7.5, x + 4.5, BANEPA.f - 1.5), crs=UTM)


def test_polygons_have_their_class_by_name_or_by_number() -> None:
    names = {0: "background", 1: "car", 3: "house"}
    for kinds in (["house", "CAR", "house"], ["3", "1", "3"], [3, 1, 3], [3.0, 1.0, 3.0]):
        assert classes_of(open_side(layer(kinds), "kind"), names).tolist() == [3, 1, 3]
    for kinds, word in ((["ship"], "ship"), ([2], "2"), ([float("nan")], "")):
        with pytest.raises(EvaluationError, match=f"there is no class '{word}'; there are: 0 background, 1 car, 3 h"):
            classes_of(open_side(layer(kinds), "kind"), names)


def test_layers_tell_their_names_themselves() -> None:
    """Those of a class column, in the order of the alphabet; every class has objects."""
    found = geoseg.evaluate(layer(["pond"]), layer(["pond"]))
    assert found.classes == ((0, "background"), (1, "building"))
    theirs = layer(["wood", "pond", "wood"])
    ours = theirs.rename(columns={"kind": "class"}).assign(area_m2=1.0, perimeter_m=1.0)  # as geoseg writes them
    found = geoseg.evaluate(ours, theirs, class_column="kind")
    assert found.classes == ((0, "background"), (1, "pond"), (2, "wood"))
    assert [(o.name, o.reference, o.f1) for o in found.objects] == [("pond", 1, 1), ("wood", 2, 1)]
    assert found.pixels.mean_iou == 1


# --- grids and objects


@pytest.mark.parametrize("block", [(60, 80), (7, 9), (16, 33)])
def test_a_centre_between_two_pixels_is_of_the_same_one_in_all_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: tuple[int, int]
) -> None:
    """Reference pixels of twice the size: all their centres are corners of the prediction's pixels."""
    fine = np.random.default_rng(0).integers(0, 3, (2 * SHAPE[0], 2 * SHAPE[1])).astype(np.uint8)
    half = BANEPA @ rasterio.Affine.scale(0.5)
    files = write_tif(tmp_path / "p.tif", fine, transform=half), write_tif(tmp_path / "r.tif", blocks(3))
    monkeypatch.setattr(compare, "BLOCK", block)
    found = geoseg.evaluate(*files).pixels.confusion
    r, p = blocks(3), fine[1::2, 1::2]
    assert found.tolist() == [[int(((r == i) & (p == j)).sum()) for j in range(3)] for i in range(3)]


def test_where_polygons_overlap_the_last_of_the_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = BANEPA @ (rng.random((2, 60)) * np.array([[70], [50]]))
    frame = gpd.GeoDataFrame({"kind": rng.integers(1, 4, 60)}, geometry=shapely.box(x, y - 4, x + 5, y), crs=UTM)
    shapes = zip(frame.geometry, frame["kind"].tolist(), strict=True)
    r = rasterize(shapes, SHAPE, transform=BANEPA, dtype="uint8")
    monkeypatch.setattr(compare, "BLOCK", (25, 31))
    names = dict(enumerate(["background", "a", "b", "c"]))
    found = geoseg.evaluate(write_tif(tmp_path / "p.tif", r), frame, classes=names, class_column="kind")
    assert len(found.pixels.classes) == 4
    assert found.pixels.accuracy == 1


def test_an_object_on_the_border_of_the_area_is_neither_lost_nor_punished(tmp_path: Path) -> None:
    """Five houses; the middle of the third is inside the area as it was drawn, and outside as it was found."""
    drawn = layer([0] * 5).drop(columns="kind")
    found = drawn.copy()
    found.geometry = found.translate(0.9, 0)
    x = drawn.geometry[2].centroid.x + 0.5
    area = gpd.GeoSeries([shapely.box(BANEPA.c - 5, BANEPA.f - 50, x, BANEPA.f + 5)], crs=UTM)
    area.to_file(tmp_path / "area.gpkg")
    for p, r, counted in ((found, drawn, (2, 3, 3)), (drawn, found, (3, 2, 2))):
        scores = geoseg.evaluate(p, r, aoi=tmp_path / "area.gpkg").objects[0]
        assert (scores.predicted, scores.reference, scores.matched) == counted
        assert (scores.precision, scores.recall, scores.ap50) == (1, 1, 1)


def test_a_reference_that_counts_is_taken_before_one_that_does_not() -> None:
    """Also where the other one overlaps more, as COCO has it."""
    reference = shapely.box(0, 0, [10, 10, 10], [9, 10, 9.1])
    found = np.array([shapely.box(0, 0, 10, 9)], object)
    scores = object_scores(found, reference, reference_counts=np.array([False, True, False]))
    assert (scores.matched, scores.recall, scores.ap50) == (1, 1, 1)


def test_an_outline_with_a_spike_is_mended_to_an_outline() -> None:
    """The spike is a line, and no part of the object."""
    spiked = shapely.Polygon([(0, 0), (10, 0), (10, 10), (10, 20), (10, 10), (0, 10)])
    scores = object_scores(np.array([spiked], object), shapely.box([0], 0, 10, 10))
    assert (scores.ap, scores.polis_m) == (1, 0)


def test_the_confidence_of_a_map_orders_its_objects(tmp_path: Path) -> None:
    """Average precision knows which of the objects that were outlined are sure: the false alarm is, or is not."""
    r = rasterize(layer([0] * 4).geometry, SHAPE, transform=BANEPA, dtype="uint8")
    p = r.copy()
    p[40:50, 10:30] = 1
    for alarm, house, better in ((130, 240, True), (240, 130, False)):
        confidence = np.full(SHAPE, house, np.uint8)
        confidence[40:50] = alarm
        paths = [write_tif(tmp_path / f"{name}.tif", x) for name, x in (("p", p), ("r", r), ("c", confidence))]
        scores = geoseg.evaluate(*paths[:2], confidence=paths[2]).objects[0]
        assert (scores.ap50 == 1) is better
        assert scores.ap50 == pytest.approx(1 if better else 4 / 5)


# --- maps that geoseg has made


def test_a_map_agrees_with_itself(tiny_model: Path, tmp_path: Path) -> None:
    """A folder of `geoseg segment` against its own labels: names, footprints and confidence are found in it."""
    rng = np.random.default_rng(1)
    picture = (rng.random((3, 13, 17)).repeat(8, 1).repeat(8, 2) * 180).astype(np.uint8)
    picture[:, :20, :20] = 0
    scene = write_tif(tmp_path / "town.tif", picture, nodata=0)
    # a label raster knows blocks only: so must the footprints
    result = geoseg.segment(scene, "buildings", tmp_path / "maps", model=tiny_model, simplify=0.0, separate=False)
    with rasterio.open(result.folder / "labels.tif") as dataset:
        labels = dataset.read(1)
    found = geoseg.evaluate(result.folder, result.folder / "labels.tif")
    assert found.classes == ((0, "background"), (1, "building"))
    assert found.coverage.compared == (labels != 255).sum() == labels.size - found.coverage.prediction_nodata
    assert (found.pixels.mean_iou, found.boundaries[0].iou) == (1, 1)
    assert found.calibration is not None
    assert {b.accuracy for b in found.calibration.bins if b.pixels} == {1.0}
    objects = found.objects[0]
    assert objects.precision == 1
    assert objects.predicted == len(result.footprints) <= objects.reference  # small ones are no footprints
    again = geoseg.evaluate(result.folder / "footprints.geojson", result.footprints).objects[0]
    assert (again.f1, again.ap) == (1, 1)
    assert again.polis_m == pytest.approx(0, abs=0.01)  # longitude and latitude have seven digits


def test_real_footprints_some_left_out_some_elsewhere(shared_data: Path) -> None:
    """A known answer: every tenth is not found, every twentieth of the others lies where there is none."""
    drawn = gpd.read_file(shared_data / "banepa" / "footprints_train.geojson").explode(ignore_index=True)
    alone = drawn.geometry.apply(lambda g: drawn.geometry.intersects(g).sum() == 1)
    drawn = drawn[alone].reset_index(drop=True)  # no two of them touch, so that nothing is to be chosen
    n = len(drawn)
    kept = drawn[drawn.index % 10 != 0].reset_index(drop=True)
    moved = kept.index % 20 == 0
    kept.loc[moved, "geometry"] = kept.geometry[moved].translate(0, 2000)
    scores = geoseg.evaluate(kept, drawn, resolution=2.0).objects[0]
    right = len(kept) - moved.sum()
    assert n > 300
    assert (scores.reference, scores.predicted, scores.matched) == (n, len(kept), right)
    assert scores.recall == pytest.approx(right / n)
    assert scores.precision == pytest.approx(right / len(kept))
    assert scores.count_error == pytest.approx(len(kept) / n - 1)
    assert scores.segmentation_quality == pytest.approx(1)
    assert scores.panoptic_quality == pytest.approx(right / ((n + len(kept)) / 2))
    assert scores.polis_m == pytest.approx(0, abs=1e-6)


# --- the command


def test_help_keeps_its_lines() -> None:
    for command in ([], ["segment"], ["evaluate"], ["models"], ["sample"]):
        arguments = [sys.executable, "-m", "geoseg", *command, "--help"]
        text = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        assert "\\b" not in text
        assert all(line.startswith("    geoseg ") for line in text.splitlines() if line.strip().startswith("geoseg "))


def test_an_evaluation_asks_for_no_torch(tmp_path: Path) -> None:
    path = str(write_tif(tmp_path / "p.tif", blocks(2)))
    code = "import sys; from geoseg.evaluation.compare import evaluate; evaluate(sys.argv[1], sys.argv[1])\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 0
