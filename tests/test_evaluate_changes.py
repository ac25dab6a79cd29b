"""Maps of changes against drawn ones: with and without a place, rasters and polygons, and pictures that have none."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from conftest import BANEPA, write_tif
from rasterio.errors import NotGeoreferencedWarning
from test_cli import command  # noqa: F401  # a fixture

import geoseg
from geoseg.errors import EvaluationError, OptionError, SceneError
from geoseg.io.scenes import open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

NODATA = 255


def plot(*boxes: tuple[int, int, int, int], shape: tuple[int, int] = (60, 80)) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    for top, bottom, left, right in boxes:
        labels[top:bottom, left:right] = 1
    return labels


PREDICTED = plot((10, 20, 10, 30), (40, 50, 40, 50), (2, 6, 60, 64))
DRAWN = plot((12, 20, 10, 30), (40, 50, 40, 50), (30, 34, 2, 6))


def picture(path: Path, values: NDArray[np.uint8]) -> Path:
    """A PNG: a file without a place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "PNG", "width": values.shape[-1], "height": values.shape[-2], "dtype": "uint8"}
    bands = values.reshape(-1, *values.shape[-2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile, count=len(bands)) as dataset:
            dataset.write(bands)
    return path


def scores(*sides: Any, **options: Any) -> tuple[float, float, int]:
    """Dice of changed pixels, F1 of places, and pixels that were compared."""
    found = geoseg.evaluate(*sides, task="change", **options)
    changed = next(each for each in found.pixels.classes if each.name == "changed")
    return changed.dice, found.objects[0].f1, found.coverage.compared


def expected(predicted: NDArray[Any], drawn: NDArray[Any]) -> float:
    return float(2 * (predicted & drawn).sum() / (predicted.sum() + drawn.sum()))


def polygons(labels: NDArray[np.uint8], status: list[str] | None = None) -> gpd.GeoDataFrame:
    shapes = [shapely.geometry.shape(s) for s, value in rasterio.features.shapes(labels, transform=BANEPA) if value]
    columns = {} if status is None else {"status": status[: len(shapes)]}
    return gpd.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32645")


def test_a_map_of_changes_is_scored_whatever_it_comes_as(tmp_path: Path) -> None:
    """Masks of 0 and 1, or 0 and 255; codes of transitions; polygons; with a place and without."""
    dice, places = expected(PREDICTED == 1, DRAWN == 1), 2 * 2 / 6
    codes = (PREDICTED * np.arange(1, 61, dtype=np.uint8)[:, None]).astype(np.uint8)
    predicted = {
        "raster": write_tif(tmp_path / "codes.tif", codes[None], nodata=NODATA),
        "mask of 255": write_tif(tmp_path / "mask.tif", PREDICTED[None] * np.uint8(255)),
        "picture": picture(tmp_path / "found.png", PREDICTED * np.uint8(255)),
        "polygons": polygons(PREDICTED),
    }
    drawn = {
        "raster": write_tif(tmp_path / "drawn.tif", DRAWN[None]),
        "picture": picture(tmp_path / "drawn.png", DRAWN * np.uint8(255)),
        "polygons": polygons(DRAWN),
    }
    for one, given in predicted.items():
        for other, reference in drawn.items():
            if (one, other) in {("picture", "polygons"), ("polygons", "picture")}:
                with pytest.raises(EvaluationError, match="has no place on the ground, so polygons cannot"):
                    scores(given, reference)
                continue
            if one == other == "polygons":
                assert scores(given, reference, resolution=0.1)[1] == pytest.approx(places)
                continue
            found = scores(given, reference)
            assert found[:2] == (pytest.approx(dice), pytest.approx(places)), (one, other)
            assert found[2] == 60 * 80
    # of two pictures the metres of a pixel are told
    sized = geoseg.evaluate(predicted["picture"], drawn["picture"], task="change", resolution=0.5)
    assert sized.pixel_m == pytest.approx((0.5, 0.5), rel=1e-3)


def test_a_picture_lies_on_the_ground_of_the_other_side(tmp_path: Path) -> None:
    """Also where that has pixels of another size, as a map at twice the resolution has."""
    fine = write_tif(tmp_path / "fine.tif", PREDICTED.repeat(2, 0).repeat(2, 1)[None], nodata=NODATA)
    drawn = picture(tmp_path / "drawn.png", DRAWN * np.uint8(255))
    assert scores(fine, drawn)[0] == pytest.approx(expected(PREDICTED == 1, DRAWN == 1))
    wide = picture(tmp_path / "wide.png", np.zeros((60, 120), np.uint8))
    with pytest.raises(EvaluationError, match="60 x 120 pixels, the other side has 120 x 160"):
        scores(fine, wide)


def test_what_was_not_compared_does_not_count(tmp_path: Path) -> None:
    holed = PREDICTED.copy()
    holed[:30] = NODATA
    found = write_tif(tmp_path / "found.tif", holed[None], nodata=NODATA)
    dice, _, compared = scores(found, write_tif(tmp_path / "drawn.tif", DRAWN[None]))
    assert compared == 30 * 80
    assert dice == pytest.approx(expected(PREDICTED[30:] == 1, DRAWN[30:] == 1))


@pytest.mark.parametrize(
    ("dtype", "value", "nodata"), [("uint16", 65535, 7), ("int16", -1, -9), ("float32", 0.5, np.nan)]
)
@pytest.mark.parametrize("aside", [0.0, 0.2])
def test_changes_may_be_of_any_type(dtype: str, value: float, nodata: float, aside: float, tmp_path: Path) -> None:
    holed = np.where(PREDICTED == 1, value, 0).astype(dtype)
    holed[:30] = nodata
    place = BANEPA @ rasterio.Affine.translation(aside, aside)
    found = write_tif(tmp_path / "found.tif", holed[None], transform=place, nodata=nodata)
    dice, _, compared = scores(found, write_tif(tmp_path / "drawn.tif", DRAWN[None].astype(dtype)))
    assert compared == 30 * 80
    assert dice == pytest.approx(expected(PREDICTED[30:] == 1, DRAWN[30:] == 1))


def test_rows_that_are_no_change_are_none(tmp_path: Path) -> None:
    rows = polygons(PREDICTED, ["new", "uncertain", "unchanged"])
    rows.to_parquet(tmp_path / "changes.parquet")
    rows.to_file(tmp_path / "changes.geojson")
    kept = rasterio.features.rasterize(rows.geometry[:1], PREDICTED.shape, transform=BANEPA).astype(bool)
    drawn = write_tif(tmp_path / "drawn.tif", DRAWN[None])
    for given in (rows, tmp_path / "changes.parquet", tmp_path / "changes.geojson"):
        assert scores(given, drawn)[0] == pytest.approx(expected(kept, DRAWN == 1))


def test_what_is_no_map_of_changes_is_told(tmp_path: Path) -> None:
    drawn = write_tif(tmp_path / "drawn.tif", DRAWN[None])
    for given, options, error, says in (
        (tmp_path, {}, EvaluationError, "holds neither changes.tif nor transitions.tif"),
        (tmp_path / "none.tif", {}, EvaluationError, "there is no such file"),
        (write_tif(tmp_path / "rgb.tif", np.stack([DRAWN] * 3)), {}, EvaluationError, "one band, this has 3"),
        (drawn, {"classes": {0: "a"}}, OptionError, "leave --classes and --class-column out"),
    ):
        with pytest.raises(error, match=says):
            scores(given, drawn, **options)


def test_the_command_prints_scores_of_changes(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    one, other = picture(tmp_path / "a.png", PREDICTED), picture(tmp_path / "b.png", DRAWN)
    status, out, err = command(
        "evaluate", one, other, "--task", "change", "--resolution", 0.5, "--json", tmp_path / "s"
    )
    assert (status, err) == (0, "")
    (line,) = [each for each in out.splitlines() if each.startswith("changed")][:1]
    assert float(line.split()[2]) == pytest.approx(expected(PREDICTED == 1, DRAWN == 1), abs=5e-4)
    assert json.loads((tmp_path / "s").read_text("utf-8"))["objects"][0]["matched"] == 2


# --- pictures without a place as scenes


def test_a_picture_without_a_place_has_the_pixels_that_are_told(tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 256, (3, 40, 50)).astype(np.uint8)
    path = picture(tmp_path / "town.png", values)
    with pytest.raises(SceneError, match=r"no geotransform.*town.png#pixel=0.5"):
        open_scene(path)
    scene = open_scene(f"{path}#pixel=0.5")
    assert (scene.id, scene.shape) == ("town", (40, 50))
    assert scene.ground_resolution == pytest.approx((0.5, 0.5), rel=1e-4)
    read = open_source(scene, (1, 2, 3)).read(Window.of_shape(scene.shape))
    np.testing.assert_array_equal(read.values, values)
    placed = write_tif(tmp_path / "placed.tif", values)
    for text, says in (
        (f"{path}#pixel=0", "how many metres a pixel"),
        (f"{path}#pixel=half", "how many metres a pixel"),
        (f"{path}#time=2020", "nothing can be chosen"),
        (f"{placed}#pixel=0.5", "tells its place and pixels itself"),
        (f"{tmp_path}/none.png#pixel=0.5", "none.png: there is no such file"),
    ):
        with pytest.raises(SceneError, match=says):
            open_scene(text)


def test_changes_of_pictures_without_a_place(tiny_model: Path, tmp_path: Path) -> None:
    """Buildings and spectra, at twice the resolution; against a mask without a place."""
    rng = np.random.default_rng(1)
    before = (rng.random((3, 13, 15)).repeat(8, 1).repeat(8, 2) * 180 + rng.random((3, 104, 120)) * 75).astype(np.uint8)
    after = before.copy()
    after[:, 40:80, 40:96] = rng.integers(0, 256, (3, 40, 56))
    paths = [f"{picture(tmp_path / f'{n}.png', v)}#pixel=0.5" for n, v in (("then", before), ("now", after))]
    found = geoseg.change(*paths, "buildings", tmp_path / "maps", model=str(tiny_model), resolution=0.25)
    with rasterio.open(found.folder / "changes.tif") as dataset:
        assert dataset.shape == (208, 240)
        assert set(np.unique(dataset.read(1))) <= {0, 1, 2, NODATA}
    drawn = np.zeros((104, 120), np.uint8)
    drawn[40:80, 40:96] = 255
    assert 0 <= scores(found.folder, picture(tmp_path / "drawn.png", drawn))[0] <= 1
    other = geoseg.change(*paths, "spectral", tmp_path / "spectral")
    assert scores(other.folder, tmp_path / "drawn.png")[0] > 0.5
