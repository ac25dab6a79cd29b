"""Multivariate alteration detection: canonical variates of both dates, and what becomes of their differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from sklearn.cross_decomposition import CCA
from test_cli import command  # noqa: F401  # a fixture
from test_spectral import ground, image, two_dates

import geoseg
from geoseg.changes import spectral
from geoseg.changes.variates import VariateScales, canonical
from geoseg.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def dates(seed: int, bands: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Ground, and the same with its bands mixed, in noise, and with a new roof."""
    rng = np.random.default_rng(seed)
    before = ground(seed, 60, 70, bands)
    mixed = np.einsum("ij,jyx->iyx", np.eye(bands) * 0.5 + rng.uniform(0, 0.15, (bands, bands)), before)
    after = (
        (mixed + rng.normal(size=mixed.shape) * np.arange(2, 2 + bands)[:, None, None]).clip(1, 254).astype(np.uint8)
    )
    after[:, 10:20, 10:25] = 200
    return before, after


def squared(scales: VariateScales, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Squared length of the differences."""
    one, other = scales.normalised(before, after)
    total: NDArray[np.float64] = ((one.astype(np.float64) - other) ** 2).sum(axis=0)
    return total


ALL = np.ones((60, 70), bool)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20), st.integers(2, 6))
def test_variates_are_those_of_others(seed: int, bands: int) -> None:
    """Lengths by the generalised eigenvalue problem of the paper (scipy), correlations by scikit-learn's CCA."""
    before, after = dates(seed, bands)
    scales = VariateScales.of(before, after, ALL)
    one, other = (each.reshape(bands, -1).astype(np.float64) for each in (before, after))
    whole = np.cov(np.concatenate([one, other]), bias=True)
    own, cross, own_after = whole[:bands, :bands], whole[:bands, bands:], whole[bands:, bands:]
    squares, left = linalg.eigh(cross @ np.linalg.solve(own_after, cross.T), own)
    right = np.linalg.solve(own_after, cross.T) @ left
    right /= np.sqrt(np.diag(right.T @ own_after @ right))
    apart = left.T @ (one - one.mean(axis=1, keepdims=True)) - right.T @ (other - other.mean(axis=1, keepdims=True))
    expected = (apart**2 / (2 * (1 - np.sqrt(squares)))[:, None]).sum(axis=0)
    np.testing.assert_allclose(squared(scales, before, after).ravel(), expected, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(scales.correlations, np.sqrt(squares)[::-1], atol=2e-3)
    pairs = CCA(bands, max_iter=5000, tol=1e-9).fit_transform(one.T, other.T)
    first = np.corrcoef(pairs[0][:, 0], pairs[1][:, 0])[0, 1]
    assert scales.correlations[0] == pytest.approx(first, abs=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20))
def test_differences_are_measured_in_their_deviations(seed: int) -> None:
    """Each variate's has the deviation 1, and goes with no other's; only what both dates see counts."""
    before, after = dates(seed)
    seen = ALL.copy()
    seen[40:, 30:] = False
    scales = VariateScales.of(before, after, seen)
    apart = np.subtract(*scales.normalised(before, after))[:, seen].astype(np.float64)
    np.testing.assert_allclose(apart.mean(axis=1), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(apart, bias=True), np.eye(4), atol=0.02)
    before[:, 40:, 30:] = after[:, 40:, 30:] = 0
    assert VariateScales.of(before, after, seen) == scales


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**20))
def test_gains_and_mixtures_of_bands_are_of_no_consequence(seed: int) -> None:
    before, after = dates(seed)
    before = before // 2
    mixed = np.stack([before[1], before[0] + before[1], before[3] * 2, 250 - before[2]]).astype(np.uint8)
    one, other = (squared(VariateScales.of(each, after, ALL), each, after) for each in (before, mixed))
    np.testing.assert_allclose(np.sqrt(one), np.sqrt(other), rtol=0.02, atol=0.02)


def dull(kind: str, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bands of which some say nothing new."""
    values = values.copy()
    if kind == "constant":
        values[1:] = 7
    elif kind == "alike":
        values[1:] = values[0]
    elif kind == "all the same":
        values[:] = 7
    return values


KINDS = ("as it is", "constant", "alike", "all the same")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(KINDS), st.integers(1, 4000))
def test_a_scene_has_not_changed_since_itself(seed: int, kind: str, known: int) -> None:
    """Whatever its bands are like, and however little of it the scales are taken from."""
    before = dull(kind, dates(seed)[0])
    seen = ALL.copy()
    seen.ravel()[known:] = False
    assert squared(VariateScales.of(before, before, seen), before, before).max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_exchanging_the_dates_exchanges_the_variates(seed: int, kind: str, later: str) -> None:
    """To the bit; and where nothing else has changed, a step that was never seen is a finite one."""
    before, after = (dull(which, each) for which, each in zip((kind, later), dates(seed), strict=True))
    there, back = VariateScales.of(before, after, ALL), VariateScales.of(after, before, ALL)
    pair, exchanged = there.normalised(before, after), back.normalised(after, before)
    for one, other in zip(pair, exchanged[::-1], strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_canonical_weights_are_of_whatever_order_they_are_asked_in() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(8, 500)) @ rng.normal(size=(500, 500))
    whole = np.cov(values)
    one, other, correlations = canonical(whole[:4, :4], whole[4:, 4:], whole[:4, 4:])
    assert (np.diff(correlations) <= 0).all()
    for weights, own in ((one, whole[:4, :4]), (other, whole[4:, 4:])):
        np.testing.assert_allclose(weights @ own @ weights.T, np.eye(4), atol=1e-8)
    np.testing.assert_allclose(one @ whole[:4, 4:] @ other.T, np.diag(correlations), atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 3), st.integers(0, 4))
def test_a_mean_is_of_what_is_seen_around(seed: int, rows: int, cols: int) -> None:
    """Pixel by pixel; what is not seen neither counts nor gets a mean."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 251, (12, 13)).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.3] = 255
    found = spectral.mean_around(codes, (rows, cols))
    assert found.shape == (12 - 2 * rows, 13 - 2 * cols)
    for row, col in np.ndindex(found.shape):
        inside = codes[row : row + 2 * rows + 1, col : col + 2 * cols + 1]
        if codes[row + rows, col + cols] == 255:
            assert found[row, col] == 255
        else:
            assert found[row, col] == int(np.floor(inside[inside != 255].mean() + 0.5))


# --- whole scenes


def test_a_new_roof_is_found_in_light_that_mixes_bands(tmp_path: Path) -> None:
    then, now, built = two_dates(tmp_path)
    found = geoseg.change(then, now, "spectral", tmp_path / "maps", mad=True)
    codes = rasterio.open(found.folder / "changes.tif").read(1)
    assert (codes[120:, :30] == 255).all()
    assert (codes == 255).sum() == 30 * 30
    assert ((codes == 1) & built).sum() > 0.9 * built.sum()
    assert ((codes == 1) & ~built).sum() < 0.2 * built.sum()
    summary = found.summary
    assert summary["method"] == found.item["properties"]["geoseg:parameters"]["method"]
    assert summary["method"] == "multivariate alteration detection"
    assert len(summary["scales"]["correlations"]) == 4
    assert summary["threshold"] >= spectral.LEAST
    plain = geoseg.change(then, now, "spectral", tmp_path / "maps")  # is not taken for the other
    assert plain.summary["method"] == "change vector analysis"


@pytest.mark.parametrize("around", [0, 1])
def test_variates_have_the_laws_of_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around: float) -> None:
    """change(a, a) is empty, change(b, a) is change(a, b), windows do not matter."""
    then, now, _ = two_dates(tmp_path)
    with rasterio.open(then) as dataset:
        same = image(tmp_path / "same.tif", dataset.read(), nodata=0)
    options: dict[str, Any] = {"mad": True, "any_order": True, "around": around}
    assert geoseg.change(then, same, "spectral", tmp_path / "maps", **options).changes.empty
    there = geoseg.change(then, now, "spectral", tmp_path / "maps", **options).folder
    back = geoseg.change(now, then, "spectral", tmp_path / "maps", **options).folder
    codes = [rasterio.open(folder / "magnitude.tif").read(1) for folder in (there, back)]
    np.testing.assert_array_equal(*codes)
    assert len(np.unique(codes[0])) > 20
    for owner, name in (("_Pair", "magnitudes"), ("_Cut", "codes")):
        monkeypatch.setattr(f"geoseg.changes.by_spectrum.{owner}.{name}.__defaults__", ((37, 53),))
    small = geoseg.change(then, now, "spectral", tmp_path / "small", **options).folder
    np.testing.assert_array_equal(rasterio.open(small / "magnitude.tif").read(1), codes[0])
    assert (small / "changes.geojson").read_bytes() == (there / "changes.geojson").read_bytes()


def test_the_command_compares_variates(
    command: Callable[..., tuple[int, str, str]],  # noqa: F811  # the fixture
    tmp_path: Path,
) -> None:
    then, now, _ = two_dates(tmp_path)
    arguments = ("change", then, now, "spectral", "--out", tmp_path / "maps", "--mad")
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].endswith("item.json")
    status, _, err = command(*arguments, "--index", "ndvi")
    assert status == 2
    assert "--mad: is of the vectors of all bands, and --index ndvi is not; leave one of both out" in err
    with pytest.raises(OptionError, match="--around 30: is of the vectors of all bands"):
        geoseg.change(then, now, "spectral", tmp_path / "maps", around=30, index="ndvi")
    with pytest.raises(OptionError, match="--around -1: must be 0 metres or more"):
        geoseg.change(then, now, "spectral", tmp_path / "maps", around=-1)
    with pytest.raises(OptionError, match=r"--mad: is of the bands of scenes \(PRODUCT spectral\)"):
        geoseg.change(then, now, "buildings", tmp_path / "maps", mad=True, bands={"red": 1, "green": 2, "blue": 3})


def test_a_city_in_another_season_is_told_better(shared_data: Path, tmp_path: Path) -> None:
    """What summer and autumn differ by all over a city is common to both dates, and is no change."""
    city = shared_data / "change_sentinel2" / "bordeaux"
    scores = []
    for options in ({}, {"mad": True}, {"mad": True, "around": 30}):
        found = geoseg.change(city / "t1", city / "t2", "spectral", tmp_path / "maps", cut="triangle", **options)
        told = geoseg.evaluate(found.folder, city / "change.png", task="change").pixels.classes
        scores.append(next(each for each in told if each.name == "changed").dice)
    assert min(scores[1:]) > 1.5 * scores[0]
