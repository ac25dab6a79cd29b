"""Changes without a model: the laws of magnitudes, thresholds against other people's, whole scenes and real cities."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
import shapely
from conftest import BANEPA, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from pystac.validation import JsonSchemaSTACValidator
from scipy.ndimage import gaussian_filter
from skimage.filters import threshold_otsu, threshold_triangle
from test_cli import command  # noqa: F401  # a fixture

import geoseg
from geoseg.changes import spectral
from geoseg.changes.indices import IndexScales, Quantities
from geoseg.errors import OptionError, SceneError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def ground(seed: int, rows: int, cols: int, bands: int = 3) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    return (
        np.stack([gaussian_filter(rng.normal(size=(rows, cols)), 1.5) * 120 + 128 for _ in range(bands)])
        .clip(1, 254)
        .astype(np.uint8)
    )


def magnitude(
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    reach: tuple[int, int],
    holes: tuple[NDArray[np.bool_], NDArray[np.bool_]] | None = None,
) -> NDArray[np.uint8]:
    """Of all of two arrays (band, y, x), nothing being seen around them."""
    seen = holes or (np.ones(before.shape[1:], bool),) * 2
    scales = spectral.scales_of(before, after, seen[0] & seen[1])
    pair = spectral.normalised(before, after, scales)
    margin = [(reach[0] + 1,) * 2, (reach[1] + 1,) * 2]
    wide = [np.pad(each, [(0, 0), *margin]) for each in pair]
    return spectral.magnitudes(*wide, *(np.pad(each, margin) for each in seen), reach)


def by_hand(
    before: NDArray[np.uint8], after: NDArray[np.uint8], reach: tuple[int, int], seen: tuple[Any, Any]
) -> NDArray[np.uint8]:
    """The definition, pixel by pixel."""
    pair = spectral.normalised(before, after, spectral.scales_of(before, after, seen[0] & seen[1]))
    rows, cols = seen[0].shape
    codes = np.full((rows, cols), -1)

    def nearest(one: int, other: int, row: int, col: int) -> float:
        apart = [
            float(((pair[one][:, row, col] - pair[other][:, r, c]) ** 2).sum())
            for r in range(max(0, row - reach[0]), min(rows, row + reach[0] + 1))
            for c in range(max(0, col - reach[1]), min(cols, col + reach[1] + 1))
            if seen[other][r, c]
        ]
        return float(np.sqrt(min(apart)))

    for row, col in np.argwhere(seen[0] & seen[1]):
        largest = max(nearest(0, 1, row, col), nearest(1, 0, row, col))
        codes[row, col] = min(round(largest * spectral.STEPS), spectral.LARGEST)
    made = np.full((rows, cols), 255)
    for row, col in np.argwhere(codes >= 0):
        total = weight = 0
        for r, c in np.ndindex(3, 3):
            y, x = row + r - 1, col + c - 1
            if 0 <= y < rows and 0 <= x < cols and codes[y, x] >= 0:
                w = (2 - abs(r - 1)) * (2 - abs(c - 1))
                total, weight = total + w * codes[y, x], weight + w
        made[row, col] = (2 * total + weight) // (2 * weight)
    return made.astype(np.uint8)


REACHES = st.tuples(st.integers(0, 2), st.integers(0, 2))


@st.composite
def two_grounds(draw: st.DrawFn) -> tuple[Any, Any, tuple[Any, Any]]:
    rows, cols = draw(st.integers(9, 15)), draw(st.integers(9, 17))
    seed = draw(st.integers(0, 2**20))
    before, rng = ground(seed, rows, cols), np.random.default_rng(seed)
    after = (before.astype(int) * 0.8 + 20 + rng.normal(size=before.shape) * 3).clip(1, 254).astype(np.uint8)
    after[:, 2:6, 3:8] = ground(seed + 1, 4, 5)
    seen = [np.ones((rows, cols), bool) for _ in range(2)]
    if draw(st.booleans()):
        seen[0][rng.integers(rows) :, rng.integers(cols) :] = False
        seen[1][: rng.integers(rows), : rng.integers(cols)] = False
        seen[0][0, 0] = seen[1][0, 0] = True
    return before, after, (seen[0], seen[1])


@settings(max_examples=25, deadline=None)
@given(two_grounds(), REACHES)
def test_magnitudes_are_what_they_are_defined_to_be(grounds: tuple[Any, Any, Any], reach: tuple[int, int]) -> None:
    before, after, seen = grounds
    found, expected = magnitude(before, after, reach, seen), by_hand(before, after, reach, seen)
    np.testing.assert_array_equal(found == 255, expected == 255)
    # a half may be rounded the other way
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
    assert (found == expected).mean() > 0.98


@settings(max_examples=30, deadline=None)
@given(two_grounds(), REACHES)
def test_exchanging_the_dates_changes_no_magnitude(grounds: tuple[Any, Any, Any], reach: tuple[int, int]) -> None:
    before, after, seen = grounds
    np.testing.assert_array_equal(magnitude(before, after, reach, seen), magnitude(after, before, reach, seen[::-1]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**20), st.integers(-2, 2), st.integers(-2, 2))
def test_a_shift_within_the_tolerance_is_no_magnitude(seed: int, rows: int, cols: int) -> None:
    """And neither is another light, if it is the same everywhere."""
    before = ground(seed, 30, 34) // 2 + 20
    moved = np.roll(before, (rows, cols), (1, 2))
    scales = spectral.scales_of(before, before, np.ones(before.shape[1:], bool))
    pair = spectral.normalised(before, moved, scales)
    seen = np.ones(before.shape[1:], bool)
    codes = spectral.magnitudes(*pair, seen, seen, (2, 2))
    assert not codes[2:-2, 2:-2].any()
    bright = (before * 1.5 + 7).astype(np.uint8)
    assert magnitude(before, bright, (0, 0)).max() <= spectral.LEAST * spectral.STEPS


def test_thresholds_are_those_of_others() -> None:
    """Against scikit-image on the same bars; Kittler and Illingworth's by a mixture whose border is known."""
    rng = np.random.default_rng(5)
    codes = np.concatenate([rng.gamma(4, 6, 60_000), rng.normal(160, 15, 4000)]).clip(0, 250).astype(np.uint8)
    bars = np.bincount(codes, minlength=251)
    whole = np.repeat(np.arange(251), bars)
    assert spectral.threshold_of(bars, "otsu") == pytest.approx(threshold_otsu(whole, nbins=251), abs=1)
    assert spectral.threshold_of(bars, "triangle") == pytest.approx(threshold_triangle(whole, nbins=251), abs=1)
    falling = np.rint(20_000 * np.exp(-np.arange(251) / 40)).astype(np.int64)  # where the line's slope decides
    corner = threshold_triangle(np.repeat(np.arange(251), falling), nbins=251)
    assert spectral.threshold_of(falling, "triangle") == pytest.approx(corner, abs=1)
    normal = np.concatenate([rng.normal(60, 8, 50_000), rng.normal(120, 8, 50_000)]).clip(0, 250).astype(np.uint8)
    assert spectral.threshold_of(np.bincount(normal, minlength=251), "kittler") == pytest.approx(90, abs=2)
    # what nothing exceeds, and what is below what unchanged ground has by itself
    none = np.zeros(251, np.int64)
    assert spectral.threshold_of(none) == spectral.LARGEST
    none[0] = 10_000
    for cut in spectral.CUTS:
        assert spectral.threshold_of(none, cut) == spectral.LEAST * spectral.STEPS


# --- whole scenes


def image(path: Path, values: NDArray[Any], **profile: Any) -> Path:
    write_tif(path, values, **profile)
    names = ("blue", "green", "red", "nir")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [rasterio.enums.ColorInterp.undefined] * len(values)
        for band, name in enumerate(names[: len(values)], 1):
            dataset.set_band_description(band, name)
    return path


def two_dates(folder: Path) -> tuple[Path, Path, NDArray[np.bool_]]:
    """A field, uint16, and the same in other light with a new roof and a hole."""
    before = ground(3, 150, 190, 4).astype(np.uint16) * 20 + 300
    after = (before * 0.7 + 500 + np.random.default_rng(0).normal(size=before.shape) * 30).astype(np.uint16)
    built = np.zeros((150, 190), bool)
    built[40:70, 60:100] = True
    after[:, built] = 9000
    after[:, 120:, :30] = 0
    return (
        image(folder / "then.tif", before, nodata=0),
        image(folder / "now.tif", after, nodata=0),
        built,
    )


def test_a_new_roof_is_found_in_other_light(tmp_path: Path) -> None:
    then, now, built = two_dates(tmp_path)
    found = geoseg.change(then, now, "spectral", tmp_path / "maps")
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"then--now", ".lock"}
    with rasterio.open(found.folder / "changes.tif") as dataset:
        codes = dataset.read(1)
        assert (dataset.nodata, dataset.transform) == (255, BANEPA)
    assert (codes[120:, :30] == 255).all()
    assert (codes == 255).sum() == 30 * 30
    right = (codes == 1) & built
    assert right.sum() > 0.9 * built.sum()
    assert ((codes == 1) & ~built).sum() < 0.2 * built.sum()
    summary = found.summary
    assert summary["bands"] == ["blue", "green", "red", "nir"]
    assert summary["changed_hectares"] == pytest.approx((codes == 1).sum() * 0.09 / 1e4, rel=2e-3)
    assert summary["compared_hectares"] == pytest.approx((codes != 255).sum() * 0.09 / 1e4, rel=2e-3)
    assert f"above {found.summary['threshold']:g}, ha" in found._repr_html_()
    largest = found.changes.sort_values("area_m2").iloc[-1]
    assert largest["magnitude"] > summary["threshold"]
    assert set(found.changes["status"]) == {"changed"}
    JsonSchemaSTACValidator().validate_core(found.item, pystac.STACObjectType.ITEM, found.item["stac_version"])
    before = (found.folder / "changes.tif").stat().st_mtime_ns
    again = geoseg.change(then, now, "spectral", tmp_path / "maps")
    assert (again.folder / "changes.tif").stat().st_mtime_ns == before
    other = geoseg.change(then, now, "spectral", tmp_path / "maps", cut="triangle")
    assert other.summary["cut"] == "triangle"


def test_spectra_have_the_laws_of_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """change(a, a) is empty, change(b, a) is change(a, b), windows do not matter."""
    then, now, _ = two_dates(tmp_path)
    with rasterio.open(then) as dataset:
        same = image(tmp_path / "same.tif", dataset.read(), nodata=0)
    assert geoseg.change(then, same, "spectral", tmp_path / "maps").changes.empty
    there = geoseg.change(then, now, "spectral", tmp_path / "maps").folder
    back = geoseg.change(now, then, "spectral", tmp_path / "maps", any_order=True).folder
    codes = [rasterio.open(folder / "magnitude.tif").read(1) for folder in (there, back)]
    np.testing.assert_array_equal(*codes)
    monkeypatch.setattr("geoseg.changes.by_spectrum.AT_ONCE", (37, 53))
    for name in ("magnitudes", "codes"):
        owner = {"magnitudes": "_Pair", "codes": "_Cut"}[name]
        monkeypatch.setattr(f"geoseg.changes.by_spectrum.{owner}.{name}.__defaults__", ((37, 53),))
    small = geoseg.change(then, now, "spectral", tmp_path / "small")
    np.testing.assert_array_equal(rasterio.open(small.folder / "magnitude.tif").read(1), codes[0])
    assert (small.folder / "changes.geojson").read_bytes() == (there / "changes.geojson").read_bytes()


def test_what_a_mask_hides_is_not_compared(tmp_path: Path) -> None:
    then, now, built = two_dates(tmp_path)
    cloud = np.ones((1, 150, 190), np.uint8)
    cloud[:, 30:80, 50:110] = 0
    write_tif(tmp_path / "clear.tif", cloud)
    found = geoseg.change(then, now, "spectral", tmp_path / "maps", mask=tmp_path / "clear.tif")
    codes = rasterio.open(found.folder / "changes.tif").read(1)
    assert (codes[built] == 255).all()
    assert found.summary["changed_hectares"] < 0.01
    area = shapely.transform(shapely.box(0, 0, 190, 75), lambda xy: np.column_stack(BANEPA @ xy.T))
    gpd.GeoDataFrame(geometry=[area], crs="EPSG:32645").to_file(tmp_path / "half.gpkg")
    half = geoseg.change(then, now, "spectral", tmp_path / "half", aoi=tmp_path / "half.gpkg")
    codes = rasterio.open(half.folder / "changes.tif").read(1)
    assert (codes[75:] == 255).all()
    assert (codes[:75] != 255).all()


def test_what_spectra_cannot_tell_is_said(tmp_path: Path) -> None:
    then, now, _ = two_dates(tmp_path)
    grey = write_tif(tmp_path / "grey.tif", ground(1, 60, 60, 1))
    aside = image(tmp_path / "aside.tif", ground(1, 60, 60, 4), transform=BANEPA @ rasterio.Affine.translation(4000, 0))
    cloudy = write_tif(tmp_path / "cloudy.tif", np.zeros((1, 150, 190), np.uint8))
    for one, other, options, error, says in (
        (then, grey, {}, SceneError, "has the bands blue, green, red, nir, .*grey.tif grey: at least 2 of .*--bands"),
        (then, aside, {}, SceneError, "no ground in common"),
        (then, then, {}, OptionError, "both are named 'then'"),
        (then, now, {"model": "buildings-segformer"}, OptionError, "--model buildings-segformer: spectral compares"),
        (then, now, {"zones": "wards.gpkg"}, OptionError, "--zones wards.gpkg: spectral"),
        (then, now, {"cut": "half"}, OptionError, "--cut half: is one of triangle, otsu, kittler"),
        (then, now, {"mask": cloudy}, SceneError, "no pixel has data, so nothing can be compared.*--mask"),
        (then, now, {"bands": {"red": 9}}, OptionError, "--bands red=9"),
    ):
        with pytest.raises(error, match=says):
            geoseg.change(one, other, "spectral", tmp_path / "maps", **options)
    assert not list((tmp_path / "maps").glob("*/item.json"))


def test_the_command_tells_what_lies_above_the_threshold(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    then, now, _ = two_dates(tmp_path)
    status, out, err = command("change", then, now, "spectral", "--out", tmp_path / "maps")
    assert (status, err) == (0, "")
    assert re.search(r"^above \d+\.\d: changed +0\.\d{4}$", out, re.MULTILINE)
    assert out.splitlines()[-1].endswith("item.json")


# --- one index


def fields(folder: Path) -> tuple[Path, Path]:
    """Ground, uint16, whose NDVI is 0.5; at the second date it is 0.8 in one place, and 0 in another."""
    red, nir = np.full((90, 120), 1000.0), np.full((90, 120), 3000.0)
    bands = [np.stack([red, red, red, nir]) + np.random.default_rng(seed).normal(size=(4, 90, 120)) for seed in (1, 2)]
    for band, value in ((2, 500.0), (3, 4500.0)):
        bands[1][band, 10:40, 10:40] = value
    bands[1][3, 50:80, 60:110] = 1000
    paths = [
        image(folder / f"{name}.tif", each.astype(np.uint16)) for name, each in zip(("then", "now"), bands, strict=True)
    ]
    return paths[0], paths[1]


def difference(folder: Path) -> NDArray[np.float64]:
    with rasterio.open(folder / "difference.tif") as dataset:
        codes = dataset.read(1)
        told: NDArray[np.float64] = codes * dataset.scales[0] + dataset.offsets[0]
        return np.where(codes == 255, np.nan, told.round(6))


def test_an_index_tells_what_has_risen_and_what_has_fallen(tmp_path: Path) -> None:
    """By as much as the formula has it, to a hundredth; the threshold is found, or given."""
    then, now = fields(tmp_path)
    found = geoseg.change(then, now, "spectral", tmp_path / "maps", index="ndvi")
    told = difference(found.folder)
    assert told[12:38, 12:38] == pytest.approx(0.3, abs=0.011)
    assert told[52:78, 62:108] == pytest.approx(-0.5, abs=0.011)
    assert told[5, 50:] == pytest.approx(0, abs=0.011)
    codes = rasterio.open(found.folder / "changes.tif").read(1)
    assert (codes[11:39, 11:39] == 1).all()
    assert (codes[51:79, 61:109] == 2).all()
    assert (codes == 0).sum() > 0.95 * (90 * 120 - 30 * 30 - 30 * 50)
    summary = found.summary
    assert (summary["index"], summary["bands"]) == ("ndvi", ["nir", "red"])
    assert summary["fallen_hectares"] == pytest.approx((codes == 2).sum() * 0.09 / 1e4, rel=2e-3)
    assert sorted(found.changes["status"]) == ["fallen", "risen"]
    assert sorted(found.changes["magnitude"]) == pytest.approx([0.3, 0.5], abs=0.05)
    assert "difference" in found.item["assets"]
    assert not (found.folder / "magnitude.tif").exists()
    high = geoseg.change(then, now, "spectral", tmp_path / "maps", index="ndvi", cut=0.4)
    assert (high.summary["threshold"], set(high.changes["status"])) == (0.4, {"fallen"})
    assert "fallen" in high._repr_html_()
    vectors = geoseg.change(then, now, "spectral", tmp_path / "maps")
    assert {path.name for path in vectors.folder.glob("*.tif")} == {"changes.tif", "magnitude.tif"}


def test_an_index_has_the_laws_of_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """change(a, a) is empty, change(b, a) falls where change(a, b) rises, windows do not matter; nodata stays."""
    then, now, _ = two_dates(tmp_path)
    with rasterio.open(then) as dataset:
        same = image(tmp_path / "same.tif", dataset.read(), nodata=0)
    options = {"index": "ndvi"}
    assert geoseg.change(then, same, "spectral", tmp_path / "maps", **options).changes.empty
    there = geoseg.change(then, now, "spectral", tmp_path / "maps", **options).folder
    back = geoseg.change(now, then, "spectral", tmp_path / "maps", any_order=True, **options).folder
    np.testing.assert_array_equal(difference(there), -difference(back))
    codes = [rasterio.open(folder / "changes.tif").read(1) for folder in (there, back)]
    assert set(np.unique(codes[0])) == {0, 1, 2, 255}
    np.testing.assert_array_equal(np.array([0, 2, 1, *[0] * 252, 255])[codes[0]], codes[1])
    for owner, name in (("_Pair", "magnitudes"), ("_Cut", "codes")):
        monkeypatch.setattr(f"geoseg.changes.by_spectrum.{owner}.{name}.__defaults__", ((37, 53),))
    small = geoseg.change(then, now, "spectral", tmp_path / "small", **options).folder
    assert (small / "changes.geojson").read_bytes() == (there / "changes.geojson").read_bytes()
    np.testing.assert_array_equal(difference(small), difference(there))


def test_an_index_is_of_quantities(tmp_path: Path) -> None:
    """As a scene's scale and offset make them of its numbers, whatever its bands are read as."""
    then, now = fields(tmp_path)
    with rasterio.open(now) as dataset:
        shifted = image(tmp_path / "later.tif", ((dataset.read() + 1000) * 2).astype(np.uint16))
    with rasterio.open(shifted, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.5,) * 4, (-1000.0,) * 4
    one, other = (
        difference(geoseg.change(then, each, "spectral", tmp_path / "maps", index="ndvi").folder)
        for each in (now, shifted)
    )
    assert np.abs(one - other).max() < 0.021
    small = np.array([[[10, 0]], [[30, 0]]], np.uint8)
    assert Quantities((0.0, 0.0), (1.0, 1.0)).index(small).tolist() == [[-0.5, 0.0]]


@given(seed=st.integers(0, 9), haze=st.floats(-0.2, 0.2), noise=st.floats(0.01, 0.05))
@settings(max_examples=10)
def test_what_all_of_the_ground_differs_by_is_no_difference(seed: int, haze: float, noise: float) -> None:
    """Its median is taken off, half of it on either side; no threshold is below three robust deviations."""
    rng = np.random.default_rng(seed)
    one = rng.normal(0.1, 0.1, (60, 60))
    other = one + haze + rng.normal(0, noise, one.shape)
    bands = [np.stack([100 * (1 + each), 100 * (1 - each)]).round().astype(np.uint8) for each in (one, other)]
    bytes_ = Quantities((0.0, 0.0), (1.0, 1.0))
    scales = IndexScales.of((bytes_, bytes_), *bands, np.ones(one.shape, bool))
    assert scales.offset == pytest.approx(-haze, abs=0.015)
    assert scales.least == pytest.approx(300 * noise, abs=3)
    before, after = scales.normalised(*bands)
    assert np.median(after - before) * spectral.STEPS == pytest.approx(0, abs=1e-3)
    quiet = np.bincount(np.zeros(500, int), minlength=251)
    assert spectral.threshold_of(quiet, "otsu", scales.least) == scales.least


def test_what_no_index_can_tell_is_said(tmp_path: Path) -> None:
    then, now, _ = two_dates(tmp_path)
    for options, error, says in (
        (
            {"index": "mndwi"},
            SceneError,
            "then.tif: has the bands blue, green, red, nir, and --index mndwi is of green",
        ),
        ({"index": "evi"}, OptionError, "--index evi: is one of ndvi, ndbi, mndwi"),
        ({"cut": 0.0}, OptionError, r"--cut 0.0: is one of .*, or a threshold above 0"),
    ):
        with pytest.raises(error, match=says):
            geoseg.change(then, now, "spectral", tmp_path / "maps", **options)
    assert geoseg.change(then, now, "spectral", tmp_path / "m", index="ndbi", bands={"swir16": 1}).summary["bands"] == [
        "swir16",
        "nir",
    ]


def test_the_command_tells_by_how_much_an_index_differs(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    arguments = ("change", *fields(tmp_path), "spectral", "--out", tmp_path / "maps", "--index", "ndvi")
    status, out, err = command(*arguments, "--cut", "0.25")
    assert (status, err) == (0, "How the images lie beside each other is not known: 1 of 4 blocks agree.\n")
    assert re.search(r"^risen by more than 0.25 +0.00\d\d$", out, re.MULTILINE)
    assert re.search(r"^fallen by more than 0.25 +0.01\d\d$", out, re.MULTILINE)
    status, _, err = command(*arguments, "--cut", "much")
    assert status == 2
    assert "'much' is not one of 'triangle', 'otsu', 'kittler'" in err


def test_a_city_on_a_second_grid_is_compared(shared_data: Path, tmp_path: Path) -> None:
    """Its second date has pixels of another size; the shift is told, and most of what was drawn is found."""
    city = shared_data / "change_sentinel2" / "hongkong"
    found = geoseg.change(city / "t1", city / "t2", "spectral", tmp_path / "maps")
    shift = found.summary["shift"]
    assert shift["known"]
    assert shift["length_m"] < 5
    scores = geoseg.evaluate(found.folder, city / "change.png", task="change")
    changed = next(each for each in scores.pixels.classes if each.name == "changed")
    assert changed.dice > 0.4


def test_dates_of_a_series_of_aerial_images_are_compared(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "scenes" / "naip_5m_timeseries"
    then, now = sorted(folder.glob("*.tif"))[:2]
    found = geoseg.change(then, now, "spectral", tmp_path / "maps")
    assert found.summary["shift"]["blocks"] > 3
    assert 0 < found.summary["changed_hectares"] < 0.5 * found.summary["compared_hectares"]
