"""`evaluate` and `geoseg evaluate` on files: grids, windows, nodata, areas, what is no map, and what is told."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import BANEPA, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.features import geometry_mask, rasterize
from rasterio.warp import transform_bounds
from scipy.ndimage import label

import geoseg
from geoseg.cli import main
from geoseg.errors import EvaluationError, OptionError, SceneError
from geoseg.evaluation import compare
from geoseg.evaluation.inputs import GridLabels
from geoseg.evaluation.pixels import confusion_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.window import Window

UTM = "EPSG:32645"


def town(seed: int, shape: tuple[int, int] = (150, 190), classes: int = 2, nodata: float = 0.0) -> NDArray[np.uint8]:
    """Labels in blocks of some pixels, with ragged outlines."""
    rng = np.random.default_rng(seed)
    rows, cols = shape
    coarse = rng.integers(0, classes, (-(-rows // 11), -(-cols // 9))).astype(np.uint8)
    labels = coarse.repeat(11, 0).repeat(9, 1)[:rows, :cols]
    ragged = rng.random(shape) < 0.02
    labels[ragged] = rng.integers(0, classes, ragged.sum())
    labels[(rng.random((-(-rows // 20), -(-cols // 20))) < nodata).repeat(20, 0).repeat(20, 1)[:rows, :cols]] = 255
    return labels


def houses(crs: str = UTM, shift: float = 0.0, n: int = 12) -> gpd.GeoDataFrame:
    """Two rows of houses of 6 x 4.5 m in the upper left of the scene of `write_tif`."""
    i = np.arange(n)
    x, y = BANEPA.c + 3.05 + 9 * (i % 6) + shift, BANEPA.f - 3.05 - 9 * (i // 6)
    return gpd.GeoDataFrame(geometry=shapely.box(x, y - 4.5, x + 6, y), crs=UTM).to_crs(crs)


def scored(evaluation: geoseg.Evaluation) -> dict[str, Any]:
    return {k: v for k, v in evaluation.to_dict().items() if k not in {"prediction", "reference"}}


def same(one: Any, other: Any) -> bool:
    """Whether two reports are equal, but for the order in which fractions were added up."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == pytest.approx(other, rel=1e-12)) if isinstance(one, float) else bool(one == other)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`geoseg evaluate` in this process: status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["geoseg", "evaluate", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return call


# --- grids and windows


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**32 - 1),
    block=st.tuples(st.integers(13, 90), st.integers(13, 90)),
    vector=st.booleans(),
    area=st.booleans(),
)
def test_windows_are_of_no_consequence(
    tmp_path_factory: pytest.TempPathFactory, seed: int, block: tuple[int, int], *, vector: bool, area: bool
) -> None:
    """All of a report, with boundaries and objects that cross many windows, and a prediction on another grid."""
    folder = tmp_path_factory.mktemp("maps")
    rng = np.random.default_rng(seed)
    turned = BANEPA @ Affine.translation(-3.3, 2.2) @ Affine.rotation(7) @ Affine.scale(1.3)
    prediction = write_tif(folder / "p.tif", town(seed, (140, 160), nodata=0.1), transform=turned)
    reference: Any = write_tif(folder / "r.tif", town(seed + 1, nodata=0.1))
    confidence = write_tif(folder / "c.tif", rng.integers(100, 251, (140, 160)).astype(np.uint8), transform=turned)
    if vector:
        reference = houses("EPSG:4326")
    options: dict[str, Any] = {"confidence": confidence}
    if area:
        middle = shapely.Point(BANEPA @ (90, 70)).buffer(15)
        gpd.GeoSeries([middle], crs=UTM).to_crs(4326).to_file(folder / "area.gpkg")
        options["aoi"] = folder / "area.gpkg"
    whole = geoseg.evaluate(prediction, reference, **options)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compare, "BLOCK", block)
        parts = geoseg.evaluate(prediction, reference, **options)
    assert whole.boundaries
    assert whole.objects[0].reference
    assert same(scored(parts), scored(whole))


@pytest.mark.parametrize("crs", ["EPSG:32645", "EPSG:32644", "EPSG:4326", "EPSG:3857"])
def test_a_map_is_read_on_the_grid_of_the_reference_by_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crs: str
) -> None:
    """Against the label at each pixel's centre, looked up one by one."""
    monkeypatch.setattr(compare, "BLOCK", (64, 50))
    p, r = town(3, (210, 230), classes=4, nodata=0.1), town(4, classes=4, nodata=0.1)
    west, south, east, north = transform_bounds(UTM, crs, *rasterio.transform.array_bounds(100, 150, BANEPA))
    place = rasterio.transform.from_bounds(west, south, east, north, 230, 210)
    prediction = write_tif(tmp_path / "p.tif", p, crs=crs, transform=place)
    reference = write_tif(tmp_path / "r.tif", r)
    found = geoseg.evaluate(prediction, reference, classes=dict(enumerate("abcd")), objects=())
    row, col = np.mgrid[: r.shape[0], : r.shape[1]]
    x, y = Transformer.from_crs(UTM, crs, always_xy=True).transform(*(BANEPA @ (col + 0.5, row + 0.5)))
    there = np.floor(np.array(~place @ (x, y))).astype(int)
    inside = (there[0] >= 0) & (there[0] < 230) & (there[1] >= 0) & (there[1] < 210)
    expected = np.where(inside, p[there[1].clip(0, 209), there[0].clip(0, 229)], np.uint8(255))
    assert (~inside).any()
    assert (found.pixels.confusion == confusion_of(expected, r, 4)).all()
    coverage = found.coverage
    assert coverage.pixels == r.size
    assert coverage.compared == ((expected != 255) & (r != 255)).sum() == found.pixels.confusion.sum()
    assert (coverage.prediction_nodata, coverage.reference_nodata) == ((expected == 255).sum(), (r == 255).sum())


def test_no_more_than_a_window_and_its_margin_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[Window] = []

    def read(self: Any, window: Window, _read: Any = GridLabels.read) -> Any:
        windows.append(window)
        return _read(self, window)

    monkeypatch.setattr(GridLabels, "read", read)
    monkeypatch.setattr(compare, "BLOCK", (100, 100))
    place = BANEPA @ Affine.scale(1.5)
    prediction = write_tif(tmp_path / "p.tif", town(1, (400, 500)), transform=place)
    found = geoseg.evaluate(prediction, write_tif(tmp_path / "r.tif", town(2, (600, 750))), tolerance=0.6)
    margin = found.ruler.margin[0]
    assert len(windows) >= 2 * 48
    assert max(max(w.shape) for w in windows) <= 100 + 2 * margin < 250


@pytest.mark.parametrize("tag", ["255", "200", "mask"])
@pytest.mark.parametrize("moved", [0, 7])
def test_nodata_of_every_kind_is_not_compared(tmp_path: Path, tag: str, moved: int) -> None:
    """The value 255, another one that is tagged, and a mask; on the reference's grid, and shifted by whole pixels."""
    p, r = town(5), town(6)
    hidden = np.zeros(p.shape, bool)
    hidden[30:60, 20:90] = True
    path = tmp_path / "p.tif"
    place = BANEPA @ Affine.translation(moved, 0)
    if tag == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_tif(path, p, transform=place)
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(~hidden)
    else:
        write_tif(path, np.where(hidden, np.uint8(tag), p), transform=place, nodata=None if tag == "255" else int(tag))
    found = geoseg.evaluate(path, write_tif(tmp_path / "r.tif", r))
    p = np.where(hidden, np.uint8(255), p)[:, : p.shape[1] - moved]
    assert (found.pixels.confusion == confusion_of(p, r[:, moved:], 2)).all()
    assert found.coverage.prediction_nodata == hidden.sum() + moved * len(r)


def test_only_the_area_of_interest_counts(tmp_path: Path) -> None:
    p, r = town(7), town(8)
    ring = shapely.Point(BANEPA @ (70, 80)).buffer(17)
    gpd.GeoSeries([ring], crs=UTM).to_crs(3857).to_file(tmp_path / "area.gpkg")
    files = write_tif(tmp_path / "p.tif", p), write_tif(tmp_path / "r.tif", r)
    found = geoseg.evaluate(*files, aoi=tmp_path / "area.gpkg")
    inside = geometry_mask([ring], r.shape, BANEPA, invert=True)
    assert abs(found.coverage.compared - inside.sum()) <= 2  # the ring went to another CRS and back
    assert found.coverage.outside_aoi + found.coverage.compared == r.size
    expected = confusion_of(np.where(inside, p, np.uint8(255)), r, 2)
    assert abs(found.pixels.confusion - expected).sum() <= 4
    everything = geoseg.evaluate(*files)
    assert found.objects[0].reference < everything.objects[0].reference
    assert found.boundaries[0] != everything.boundaries[0]


# --- polygons, and folders of results


def test_polygons_are_burnt_where_a_centre_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "BLOCK", (40, 33))
    p = town(9)
    path = tmp_path / "drawn.geojson"
    houses("EPSG:4326").to_file(path)
    found = geoseg.evaluate(write_tif(tmp_path / "p.tif", p), path)
    r = rasterize(houses().geometry, p.shape, transform=BANEPA, dtype="uint8")
    assert r.sum() > 3000
    assert (found.pixels.confusion == confusion_of(p, r, 2)).all()
    assert found.objects[0].reference == 12
    assert found.objects[0].predicted == label(p == 1)[1]
    assert found.calibration is None


def test_objects_of_rasters_are_the_regions_of_a_class(tmp_path: Path) -> None:
    """Their number, areas and IoU, from regions that scipy finds; what is nodata on either side is no part of them."""
    p, r = town(10, nodata=0.1), town(11, nodata=0.1)
    seen = (p != 255) & (r != 255)
    found = geoseg.evaluate(write_tif(tmp_path / "p.tif", p), write_tif(tmp_path / "r.tif", r)).objects[0]
    (predicted, n), (reference, m) = (label((x == 1) & seen) for x in (p, r))
    both = np.histogram2d(predicted.ravel(), reference.ravel(), (np.arange(n + 2), np.arange(m + 2)))[0]
    either = both.sum(1)[:, None] + both.sum(0)[None] - both
    iou = (both / np.maximum(either, 1))[1:, 1:]
    assert (found.predicted, found.reference) == (n, m)
    assert found.matched == (iou > 0.5).sum()
    assert found.segmentation_quality == pytest.approx(iou[iou > 0.5].mean(), rel=1e-3)  # metres of another projection


def results_folder(folder: Path, labels: NDArray[np.uint8], confidence: NDArray[np.uint8]) -> Path:
    """As `geoseg segment` leaves it, as far as an evaluation looks."""
    write_tif(folder / "labels.tif", labels, nodata=255)
    write_tif(folder / "confidence.tif", confidence, nodata=255)
    footprints = houses(shift=0.3)
    footprints["class"], footprints["confidence"] = "building", np.linspace(0.5, 1, 12)
    footprints["area_m2"], footprints["perimeter_m"] = footprints.area, footprints.length
    footprints.to_parquet(folder / "footprints.parquet")
    return folder


def test_a_folder_of_results_has_footprints_and_confidence(tmp_path: Path) -> None:
    p = rasterize(houses(shift=0.3).geometry, (150, 190), transform=BANEPA, dtype="uint8")
    confidence = np.random.default_rng(0).integers(125, 251, p.shape).astype(np.uint8)
    p[100:110], confidence[100:110] = 255, 255
    folder = results_folder(tmp_path / "town", p, confidence)
    houses("EPSG:4326").to_file(tmp_path / "drawn.gpkg")
    found = geoseg.evaluate(folder, tmp_path / "drawn.gpkg")
    assert found.classes == ((0, "background"), (1, "building"))
    one = found.objects[0]
    assert (one.name, one.predicted, one.reference, one.matched, one.ap50) == ("building", 12, 12, 12, 1)
    assert one.polis_m == pytest.approx(0.15, rel=0.01)  # two of four vertices are 0.3 m off
    assert found.coverage.prediction_nodata == 1900
    r = rasterize(houses().geometry, p.shape, transform=BANEPA, dtype="uint8")
    seen = p != 255
    right, said = (p == r)[seen], confidence[seen] / 250
    number = np.ceil(said * 15 - 1e-9).astype(int) - 1
    gaps = [abs(right[number == b].mean() - said[number == b].mean()) * (number == b).sum() for b in set(number)]
    assert found.calibration is not None
    assert found.calibration.expected_error == pytest.approx(sum(gaps) / seen.sum())
    edge = found.boundaries[0]
    assert (edge.precision, edge.recall, edge.f1) == (1, 1, 1)  # one pixel off, 1 m allowed
    assert 0 < edge.assd_m < edge.hd95_m == pytest.approx(0.3, rel=0.01)


def test_two_layers_are_compared_on_a_grid_of_their_own() -> None:
    found = geoseg.evaluate(houses("EPSG:3857", shift=3.0), houses(), resolution=0.25)
    assert found.pixel_m == (0.25, 0.25)
    assert found.pixels.classes[1].iou == pytest.approx(1 / 3, abs=0.02)
    assert (found.objects[0].matched, found.objects[0].f1) == (0, 0)
    low = geoseg.evaluate(houses(shift=3.0), houses(), iou=0.3).objects[0]
    assert (low.matched, low.precision, low.recall) == (12, 1, 1)
    assert low.polis_m == pytest.approx(1.5, rel=0.01)
    again = geoseg.evaluate(houses(), houses())
    assert (again.pixels.mean_iou, again.objects[0].ap, again.boundaries[0].hd95_m) == (1, 1, 0)


def test_classes_by_a_column_and_objects_by_name(tmp_path: Path) -> None:
    frame = houses()
    frame["kind"] = ["car", "house"] * 6
    r = rasterize(zip(frame.geometry, [2, 1] * 6, strict=True), (150, 190), transform=BANEPA, dtype="uint8")
    p = write_tif(tmp_path / "p.tif", r)
    names = {0: "ground", 1: "house", 2: "car"}
    # the ground has the name of a thing here, but is not in any polygon
    with pytest.raises(EvaluationError, match="name the column that tells them with --class-column"):
        geoseg.evaluate(p, frame, classes=names)
    names[0] = "background"
    found = geoseg.evaluate(p, frame, classes=names, class_column="kind", objects=("car",))
    assert [(c.name, c.iou) for c in found.pixels.classes] == [("background", 1), ("house", 1), ("car", 1)]
    assert [(o.name, o.reference, o.matched) for o in found.objects] == [("car", 6, 6)]
    assert [b.name for b in found.boundaries] == ["house", "car"]
    assert geoseg.evaluate(p, frame, classes=names, class_column="kind", objects=()).objects == ()
    with pytest.raises(EvaluationError, match="there is no class 'boat'; there are: 0 background, 1 house, 2 car"):
        geoseg.evaluate(p, frame, classes=names, class_column="kind", objects=("boat",))


def test_an_object_counts_where_its_place_is_compared(tmp_path: Path) -> None:
    """A row of houses under nodata is neither missed nor a false alarm."""
    r = rasterize(houses().geometry, (150, 190), transform=BANEPA, dtype="uint8")
    p = r.copy()
    p[35:70] = 255
    found = geoseg.evaluate(write_tif(tmp_path / "p.tif", p), houses()).objects[0]
    assert (found.predicted, found.reference, found.matched, found.recall) == (6, 6, 6, 1)


def test_a_map_without_objects_finds_nothing(tmp_path: Path) -> None:
    found = geoseg.evaluate(houses().iloc[:0], houses())
    assert (found.objects[0].recall, found.pixels.classes[1].recall, found.boundaries[0].f1) == (0, 0, 0)
    blank = write_tif(tmp_path / "p.tif", np.zeros((150, 190), np.uint8))
    found = geoseg.evaluate(blank, houses())
    assert (found.objects[0].matched, found.objects[0].ap) == (0, 0)
    assert math.isnan(found.pixels.classes[1].precision)


# --- the command


def test_the_command_prints_tables_and_writes_json(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    p = rasterize(houses(shift=0.3).geometry, (150, 190), transform=BANEPA, dtype="uint8")
    folder = results_folder(tmp_path / "town", p, np.full(p.shape, 200, np.uint8))
    houses("EPSG:4326").to_file(tmp_path / "drawn.gpkg")
    report = tmp_path / "scores.json"
    status, out, err = command(folder, tmp_path / "drawn.gpkg", "--json", report, "--tolerance", 0.9)
    assert (status, err) == (0, "")
    assert out.startswith("100.0% of 0.0 megapixels of 0.3 x 0.3 m were compared.\nNodata: 0 pixels of the prediction")
    found = json.loads(report.read_text("utf-8"), parse_constant=pytest.fail)
    assert found == geoseg.evaluate(folder, tmp_path / "drawn.gpkg", tolerance=0.9).to_dict()
    assert set(found) >= {"coverage", "pixels", "boundaries", "objects", "calibration", "classes", "ruler"}
    assert found["pixels"]["confusion"][1][1] > 0
    heads = {line.split("  ")[0]: line.split() for line in out.splitlines() if "  " in line}
    building = [line.split() for line in out.splitlines() if line.startswith("building ")]
    assert len(building) == 4  # pixels, boundaries, objects twice
    assert [float(v) for v in building[0][1:5]] == [
        pytest.approx(found["pixels"]["classes"][1][k], abs=6e-4) for k in ("iou", "dice", "precision", "recall")
    ]
    assert building[1][2] == f"{found['boundaries'][0]['f1']:.3f}"
    assert building[2][1:4] == ["12", "12", "12"]
    assert building[3][1:4] == [f"{found['objects'][0][k]:.3f}" for k in ("ap50", "ap75", "ap")]
    assert "mean IoU" in out
    assert "balanced" in out
    assert heads["boundaries within 0.9 m"][-3:] == ["hd95,", "m", "capped"]
    assert f"expected calibration error {found['calibration']['expected_error']:.3f}" in out


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("aside", [0.0, 0.4])
def test_labels_may_be_of_any_type(dtype: str, aside: float, tmp_path: Path) -> None:
    """As other programs write them, with a nodata of that type, on the same grid and on another."""
    nodata = {"u": 9, "i": -9, "f": np.nan}[np.dtype(dtype).kind]
    labels, holed = town(1), town(2)
    holed[40:60] = 255
    other = np.where(holed == 255, nodata, holed.astype(dtype)).astype(dtype)
    place = BANEPA @ Affine.translation(aside, aside)
    expected = geoseg.evaluate(
        write_tif(tmp_path / "a.tif", holed, transform=place, nodata=255), write_tif(tmp_path / "b.tif", labels)
    )
    found = geoseg.evaluate(
        write_tif(tmp_path / "c.tif", other, transform=place, nodata=nodata),
        write_tif(tmp_path / "d.tif", labels.astype(dtype)),
    )
    assert scored(found) == scored(expected)
    assert found.coverage.prediction_nodata > 0


def test_what_is_undefined_is_null_and_a_dash(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    blank = write_tif(tmp_path / "p.tif", np.zeros((150, 190), np.uint8))
    houses().to_file(tmp_path / "drawn.gpkg")
    status, out, _ = command(blank, tmp_path / "drawn.gpkg", "--json", tmp_path / "s.json")
    assert status == 0
    found = json.loads((tmp_path / "s.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert found["pixels"]["classes"][1]["precision"] is None
    assert " - " in out
    assert "nan" not in out


def bad_inputs(folder: Path) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Arguments, and what the error says."""
    good = write_tif(folder / "good.tif", town(1))
    houses().to_file(folder / "good.gpkg")
    (folder / "notes.txt").write_text("neither\n")
    far = write_tif(folder / "far.tif", town(1), transform=Affine.translation(9000, 0) @ BANEPA)
    gpd.GeoSeries([shapely.box(-80, 20, -79, 21)], crs=4326).to_file(folder / "antipodes.gpkg")
    nowhere = write_tif(folder / "nowhere.tif", town(1), crs=None)
    lost = houses().set_crs(None, allow_override=True)
    lost.to_parquet(folder / "lost.parquet")
    houses().iloc[:0].to_parquet(folder / "empty.parquet")
    wide = write_tif(folder / "wide.tif", town(1).astype(np.uint16) * 300)
    aside = write_tif(folder / "aside.tif", town(1).astype(np.int32) * 300, transform=BANEPA @ Affine.scale(1.1))
    half = write_tif(folder / "half.tif", town(1).astype(np.float32) / 2)
    two = write_tif(folder / "two.tif", np.stack([town(1)] * 2).astype(np.int16))
    gpd.GeoDataFrame(geometry=shapely.points([[334_001, 3_056_990]]), crs=UTM).to_file(folder / "points.gpkg")
    hidden = write_tif(folder / "hidden.tif", np.full((150, 190), 255, np.uint8))
    mask = write_tif(folder / "mask.tif", np.where(town(1) == 1, np.uint8(255), np.uint8(0)))
    (folder / "maps").mkdir()
    gpd.GeoSeries([shapely.box(0, 0, 1, 1)], crs=4326).to_file(folder / "sea.gpkg")
    return {
        "missing": ((good, folder / "none.tif"), "none.tif: there is no such file; check the path"),
        "neither": ((good, folder / "notes.txt"), "notes.txt: is neither a raster nor a vector file that can be read"),
        "far": ((far, good), "do not overlap on the ground"),
        "far polygons": ((far, folder / "good.gpkg"), "do not overlap on the ground"),
        "antipodes": ((good, folder / "antipodes.gpkg"), "do not overlap on the ground"),
        "no crs": ((nowhere, good), "nowhere.tif: "),
        "no crs of polygons": ((good, folder / "lost.parquet"), "lost.parquet: has no CRS"),
        "empty": ((good, folder / "empty.parquet"), "empty.parquet: holds no polygons"),
        "uint16": ((wide, good), "wide.tif: 300 is no label: they are whole numbers from 0 to 254"),
        "aside": ((aside, good), "aside.tif: 300 is no label: they are whole numbers from 0 to 254"),
        "float32": ((good, half), "half.tif: 0.5 is no label: they are whole numbers from 0 to 254"),
        "bands": ((two, good), "two.tif: a label raster has one band, this has 2 of int16"),
        "points": ((good, folder / "points.gpkg"), "points.gpkg: has no polygons but Point"),
        "all nodata": ((hidden, good), "have no pixel in common that has data on both sides"),
        "0 and 255": ((good, mask), "mask.tif: holds nothing but 0 and nodata"),
        "folder": ((folder / "maps", good), "maps: is a folder without labels.tif"),
        "column": ((good, folder / "good.gpkg", "--class-column", "kind"), "has no column 'kind' for --class-column"),
        "area": ((good, good, "--aoi", folder / "sea.gpkg"), "sea.gpkg"),
        "tolerance": ((good, good, "--tolerance", 0), "--tolerance 0.0: must be above 0 and at most 10000"),
        "iou": ((good, good, "--iou", 1), "--iou 1.0: must be above 0 and below 1"),
        "classes": ((good, good, "--classes", "a=b"), "'a=b' is not VALUE=NAME"),
        "class value": ((good, good, "--classes", "255=b"), "class values must be 0 to 254"),
        "report": ((good, good, "--json", folder / "none" / "s.json"), "cannot be written"),
        "confidence": ((good, good, "--confidence", wide), "a confidence has one band of uint8"),
    }


def test_what_cannot_be_compared_is_told_in_a_sentence(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for name, (arguments, says) in bad_inputs(tmp_path).items():
        status, out, err = command(*arguments)
        assert (status, out) == (2, ""), (name, err)
        assert err.startswith("Error: "), name
        assert err.count("\n") == 1, (name, err)
        assert says in err, (name, err)
        assert "defect" not in err


def test_errors_have_their_kinds(tmp_path: Path) -> None:
    good = write_tif(tmp_path / "good.tif", town(1))
    with pytest.raises(SceneError):
        geoseg.evaluate(write_tif(tmp_path / "nowhere.tif", town(1), crs=None), good)
    with pytest.raises(EvaluationError):
        geoseg.evaluate(good, tmp_path / "none.tif")
    with pytest.raises(OptionError):
        geoseg.evaluate(good, good, resolution=-1)


# --- real footprints


def test_real_footprints_against_themselves_and_shifted(shared_data: Path) -> None:
    path = shared_data / "banepa" / "footprints_train.geojson"
    drawn = gpd.read_file(path)
    found = geoseg.evaluate(path, drawn)
    assert (found.pixels.mean_iou, found.boundaries[0].f1, found.boundaries[0].assd_m) == (1, 1, 0)
    assert found.objects[0].matched == found.objects[0].reference > 900
    shifted = drawn.set_geometry(drawn.translate(1.15, 0))  # map metres, about 1 m on the ground
    near = geoseg.evaluate(shifted, drawn)
    assert near.boundaries[0].f1 > 0.95
    assert near.boundaries[0].hd95_m == pytest.approx(1, abs=0.3)
    assert 0.6 < near.pixels.classes[1].iou < 0.9
    assert near.objects[0].polis_m == pytest.approx(0.5, abs=0.2)
