"""Scenes on target grids: what a pixel is does not depend on the window, and is what an exact warper makes of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import shapely
from click.testing import CliRunner
from conftest import BANEPA, chunks_of, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import MaskFlags, Resampling
from rasterio.vrt import WarpedVRT

import geoseg
from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.changes.planned import job_of
from geoseg.cli import cli
from geoseg.errors import GeosegError, ModelError, OptionError, OutputError, SceneError
from geoseg.io import grids
from geoseg.io.grids import on_grid
from geoseg.io.resampling import CELL, Route
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.planned import SegmentJob, plan
from geoseg.planning import estimate
from geoseg.window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.catalog import Scene

ROWS, COLS = 210, 260
TURNED = BANEPA @ rasterio.Affine.rotation(31)
SOUTH_UP = BANEPA @ rasterio.Affine(1, 0, 0, 0, -1, ROWS)


def picture(rows: int = ROWS, cols: int = COLS) -> NDArray[np.uint8]:
    """Noise on blocks, 1 to 255."""
    rng = np.random.default_rng(3)
    blocks = rng.random((3, -(-rows // 9), -(-cols // 9))).repeat(9, 1).repeat(9, 2)[:, :rows, :cols]
    return (blocks * 180 + rng.random((3, rows, cols)) * 74 + 1).astype(np.uint8)


def holes(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same with pixels of nodata (0): many together, and single ones."""
    holed = values.copy()
    rows, cols = values.shape[1:]
    holed[:, rows // 3 : rows // 2, cols // 4 : cols // 2] = 0
    holed[:, np.random.default_rng(4).random((rows, cols)) < 0.02] = 0
    return holed


@dataclass(frozen=True)
class Case:
    """A scene, and the grid that is asked for."""

    crs: str
    transform: rasterio.Affine
    to: str | None = None
    resolution: float | None = None
    shape: tuple[int, int] = (ROWS, COLS)


def spanning(west: float, south: float, east: float, north: float, shape: tuple[int, int]) -> rasterio.Affine:
    return rasterio.transform.from_bounds(west, south, east, north, shape[1], shape[0])


WORLD = (180, 360)

CASES = {
    "same CRS, aside": Case("EPSG:32645", BANEPA, None, 0.29),
    "a third of a pixel aside": Case("EPSG:32645", BANEPA, None, 0.3),
    "same CRS, finer": Case("EPSG:32645", BANEPA, None, 0.11),
    "means of 2": Case("EPSG:32645", BANEPA, None, 0.6),
    "means of 5, aside": Case("EPSG:32645", BANEPA, None, 1.4),
    "means of 3 in another CRS": Case("EPSG:32645", BANEPA, "EPSG:3857", 1.0),
    "UTM to Mercator": Case("EPSG:32645", BANEPA, "EPSG:3857"),
    "degrees to UTM": Case("EPSG:4326", rasterio.Affine(9e-5, 0, 114, 0, -9e-5, 22.4), "EPSG:32650"),
    "UTM to degrees": Case("EPSG:32645", BANEPA, "EPSG:4326", 3e-6),
    "turned": Case("EPSG:32645", TURNED, None, 0.3),
    "turned, means": Case("EPSG:32645", TURNED, "EPSG:3857", 0.7),
    "south up": Case("EPSG:32645", SOUTH_UP, None, 0.3),
    "at the north pole": Case("EPSG:32633", rasterio.Affine(40, 0, 480_000, 0, -40, 9_300_000), "EPSG:3413"),
    "beside the south pole": Case("EPSG:3031", rasterio.Affine(30, 0, -4_000, 0, -30, 4_000), "EPSG:3031", 29.0),
    "across the antimeridian, from degrees": Case(
        "EPSG:4326", rasterio.Affine(1e-4, 0, 179.99, 0, -1e-4, 52), "EPSG:32601"
    ),
    "across the antimeridian, to degrees": Case(
        "EPSG:32601", rasterio.Affine(10, 0, 294_000, 0, -10, 5_762_000), "EPSG:4326", 1e-4
    ),
    "across the antimeridian, to Mercator": Case(
        "EPSG:32601", rasterio.Affine(10, 0, 294_000, 0, -10, 5_762_000), "EPSG:3857"
    ),
    "half the world, from the pole": Case("EPSG:4326", spanning(-180, 0, 180, 90, WORLD), "EPSG:3413", 6e4, WORLD),
    "the world, from the date line": Case("EPSG:4326", spanning(0, -60, 360, 60, WORLD), "EPSG:3832", 9e4, WORLD),
}


def made(case: Case, path: Path, **profile: Any) -> Path:
    values = holes(picture(*case.shape))
    return write_tif(path, values, case.crs, case.transform, nodata=0, **profile)


def read_on(scene: Scene, *, by_nearest: bool = False) -> Any:
    bands = tuple(range(1, len(scene.bands) + 1))
    return open_source(replace(scene, by_nearest=by_nearest), bands)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the cases' files."""
    there = tmp_path_factory.mktemp("cases")
    for name, case in CASES.items():
        made(case, there / f"{name}.tif")
    return there


# --- the law


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8)
@given(st.data())
def test_a_window_is_that_part_of_the_whole(name: str, folder: Path, data: st.DataObject) -> None:
    case = CASES[name]
    scene = open_scene(folder / f"{name}.tif", crs=case.to, resolution=case.resolution)
    by_nearest = data.draw(st.booleans())
    whole = read_on(scene, by_nearest=by_nearest).read(Window.of_shape(scene.shape))
    assert whole.valid.any()
    spans = []
    for side in scene.shape:
        start = data.draw(st.integers(-9, side - 1))
        spans += [start, start + data.draw(st.integers(1, side))]
    window = Window(*spans)
    raster = read_on(scene, by_nearest=by_nearest).read(window)
    within = Window.of_shape(scene.shape).intersection(window)
    valid = np.zeros(window.shape, bool)
    values = np.zeros((3, *window.shape), np.uint8)
    if within is not None:
        there = within.relative_to(window).slices
        valid[there], values[:, *there] = whole.valid[within.slices], whole.values[:, *within.slices]
    np.testing.assert_array_equal(raster.valid, valid)
    np.testing.assert_array_equal(raster.values, values)


@pytest.mark.parametrize("limit", [1 << 7, 1 << 10, 1 << 14])
@pytest.mark.parametrize("name", ["turned, means", "half the world, from the pole"])
def test_neither_is_it_changed_by_how_much_is_read_at_once(
    name: str, limit: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    scene = open_scene(folder / f"{name}.tif", crs=case.to, resolution=case.resolution)
    window = Window(scene.shape[0] // 2 - 10, scene.shape[0] // 2 + 14, 40, 70)
    whole = read_on(scene).read(window)
    monkeypatch.setattr(grids, "BLOCK_SOURCE", limit)
    monkeypatch.setattr(grids, "BLOCK", (48, 80))
    parts = read_on(scene).read(window)
    np.testing.assert_array_equal(parts.values, whole.values)
    np.testing.assert_array_equal(parts.valid, whole.valid)


# --- oracles


def exactly(scene: Scene, own: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where each pixel of a scene's grid is in the file, worked out for each by PROJ: down and along."""
    rows, cols = scene.shape
    col, row = np.meshgrid(np.arange(cols) + 0.5, np.arange(rows) + 0.5)
    to = scene.geobox.affine
    x, y = to.a * col + to.b * row + to.c, to.d * col + to.e * row + to.f
    if scene.geobox.crs != own.geobox.crs:
        x, y = Transformer.from_crs(scene.geobox.crs.proj, own.geobox.crs.proj, always_xy=True).transform(x, y)
    if own.geobox.crs.proj.is_geographic:
        left, right = own.geobox.extent.boundingbox.range_x
        x = np.where(x < left, x + 360, np.where(x > right, x - 360, x))
    back = ~own.geobox.affine
    return back.d * x + back.e * y + back.f, back.a * x + back.b * y + back.c


def weighted(
    values: NDArray[Any], valid: NDArray[np.bool_], down: NDArray[Any], along: NDArray[Any]
) -> NDArray[np.float64]:
    """What is between four pixels, those that are not valid left out; in double precision."""
    padded = np.pad(np.where(valid, values, 0).astype(np.float64), ((0, 0), (2, 2), (2, 2)))
    there = np.pad(valid.astype(np.float64), 2)
    high, wide = np.floor(down - 0.5), np.floor(along - 0.5)
    sums, weights = 0.0, 0.0
    for r in (0, 1):
        for c in (0, 1):
            weight = np.abs(1 - r - (down - 0.5 - high)) * np.abs(1 - c - (along - 0.5 - wide))
            row, col = (high + r + 2).astype(int), (wide + c + 2).astype(int)
            weight = weight * there[row, col]
            sums, weights = sums + weight * padded[:, row, col], weights + weight
    return sums / np.maximum(weights, 1e-30)


EXACT = [name for name in CASES if "means" not in name]


@pytest.mark.parametrize("name", EXACT)
def test_pixels_are_those_of_an_exact_warper(name: str, folder: Path) -> None:
    case = CASES[name]
    path = folder / f"{name}.tif"
    own, scene = open_scene(path), open_scene(path, crs=case.to, resolution=case.resolution)
    with rasterio.open(path) as dataset:
        values, valid = dataset.read(), dataset.dataset_mask() > 0
    down, along = exactly(scene, own)
    rows, cols = own.shape
    inside = (down > 0) & (down < rows) & (along > 0) & (along < cols)
    row, col = (np.where(inside, place, 0).astype(int) for place in (down, along))
    with np.errstate(invalid="ignore"):
        clear = ~(np.minimum(abs(down - np.rint(down)), abs(along - np.rint(along))) < 1e-3)
    assert (clear & inside).sum() > 1000
    window = Window.of_shape(scene.shape)
    near, mixed = (read_on(scene, by_nearest=each).read(window) for each in (True, False))
    there = inside & valid[row, col]
    np.testing.assert_array_equal(near.valid[clear], there[clear])
    np.testing.assert_array_equal(near.values[:, clear & there], values[:, row, col][:, clear & there])
    np.testing.assert_array_equal(mixed.valid, near.valid)
    between = weighted(values, valid, np.where(inside, down, 0), np.where(inside, along, 0))
    off = np.abs(mixed.values - between)[:, clear & there]
    assert off.max() < 0.5 + 255 * 2e-3
    assert abs((mixed.values - between)[:, clear & there].mean()) < 0.02  # rounded, not cut off


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_pixels_that_are_so_many_times_larger_are_means(tmp_path: Path, factor: int) -> None:
    place = rasterio.Affine(0.5, 0, 1000.0 * factor, 0, -0.5, 2000.0 * factor)
    values = holes(picture(factor * 20, factor * 31))
    path = write_tif(tmp_path / "a.tif", values, "EPSG:32645", place, nodata=0)
    scene = open_scene(path, resolution=0.5 * factor)
    assert scene.shape == (20, 31)
    raster = read_on(scene).read(Window.of_shape(scene.shape))
    cut = values.reshape(3, 20, factor, 31, factor).astype(float)
    there = (cut > 0).any(axis=0)
    means = cut.sum(axis=(2, 4)) / np.maximum(there.sum(axis=(1, 3)), 1)
    assert np.abs(raster.values - means)[:, raster.valid].max() <= 0.5 + 1e-6
    if factor % 2:
        np.testing.assert_array_equal(raster.valid, there[:, factor // 2, :, factor // 2])


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.3, 0.35, 0.8]), st.floats(0, 1))
def test_what_has_no_data_colours_nothing(seed: int, resolution: float, share: float) -> None:
    values = np.full((3, 40, 50), 77, np.uint8)
    values[:, np.random.default_rng(seed).random((40, 50)) < share] = 255
    with rasterio.MemoryFile() as memory:
        profile = {"driver": "GTiff", "width": 50, "height": 40, "count": 3, "dtype": "uint8", "nodata": 255}
        with memory.open(crs="EPSG:32645", transform=BANEPA, photometric="RGB", **profile) as dataset:
            dataset.write(values)
        scene = open_scene(memory.name, crs="EPSG:3857", resolution=resolution)
        raster = read_on(scene).read(Window.of_shape(scene.shape))
    assert (raster.values[:, raster.valid] == 77).all()


REAL = {
    "banepa/labelled_train.tif": "EPSG:32645",
    "scenes/RGB.byte.tif": "EPSG:3857",
    "scenes/landsat7_rgb_3857.tif": "EPSG:4326",
    "scenes/naip_5m_timeseries/m_4709963_se_14_1_20200831.tif": "EPSG:3857",
}


@pytest.mark.parametrize("name", REAL)
def test_real_scenes_are_warped_as_gdal_does(name: str, shared_data: Path) -> None:
    path = shared_data / name
    if not path.exists():
        pytest.skip(f"there is no {path}")
    check_against_gdal(path, REAL[name], (1, 2, 3))


def test_a_satellite_scene_in_degrees_is_warped_as_gdal_does(shared_data: Path, tmp_path: Path) -> None:
    """Of the bytes that it is stretched to, as a file of its own."""
    own = open_scene(shared_data / "change_sentinel2" / "hongkong" / "t1" / "B04.tif")
    stretched = open_source(own, (1,), estimate_stretch(own, (1,))).read(Window.of_shape(own.shape)).values
    path = write_tif(tmp_path / "a.tif", stretched, own.geobox.crs.wkt, own.geobox.affine)
    check_against_gdal(path, "EPSG:32650", (1,))


def all_valid(path: Path) -> bool:
    """Whether GDAL has to be told to tell where a file does not reach."""
    with rasterio.open(path) as dataset:
        return dataset.mask_flag_enums[0] == [MaskFlags.all_valid]


def check_against_gdal(path: Path, crs: str, bands: tuple[int, ...]) -> None:
    scene = open_scene(path, crs=crs)
    rows, cols = scene.shape
    window = Window(rows // 3, min(rows, rows // 3 + 500), cols // 3, min(cols, cols // 3 + 500))
    place = rasterio.windows.Window.from_slices(*window.slices)
    for method, nearest in ((Resampling.nearest, True), (Resampling.bilinear, False)):
        raster = open_source(replace(scene, by_nearest=nearest), bands).read(window)
        how = {"transform": scene.geobox.affine, "height": rows, "width": cols, "resampling": method}
        how |= {"tolerance": 1e-8, "XSCALE": 1, "YSCALE": 1, "add_alpha": all_valid(path)}
        with rasterio.open(path) as dataset, WarpedVRT(dataset, crs=crs, **how) as warped:
            values, valid = warped.read(list(bands), window=place), warped.dataset_mask(window=place) > 0
        assert raster.valid.any()
        both = raster.valid & valid
        assert (raster.valid != valid).mean() < 1e-3
        off = np.abs(values.astype(int) - raster.values)[:, both]
        if nearest:
            assert (off > 0).mean() < 1e-3  # ties: a place may be off by a thousandth of a pixel
        else:
            assert (off > 1).mean() == 0


def test_values_of_other_types_are_stretched_as_on_their_own_grid(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", picture().astype("uint16") * 40, photometric="MINISBLACK")
    own, scene = open_scene(path), open_scene(path, crs="EPSG:3857")
    stretch = estimate_stretch(own, (1, 2, 3))
    assert estimate_stretch(scene, (1, 2, 3)) == stretch
    window = Window.of_shape(own.shape)
    shifted = on_grid(own, GeoBox((ROWS, COLS), BANEPA, 32645))
    same = open_source(shifted, (1, 2, 3), stretch).read(window)
    np.testing.assert_array_equal(same.values, open_source(own, (1, 2, 3), stretch).read(window).values)


def test_places_are_interpolated_only_where_that_is_exact() -> None:
    near = Route(GeoBox((64, 64), BANEPA, 3857), GeoBox((64, 64), BANEPA, 32645)).lattice(Window(0, 64, 0, 64))
    assert not near.bent.any()
    polar = GeoBox((64, 64), rasterio.Affine(1e4, 0, -3.2e5, 0, -1e4, 3.2e5), 3413)
    world = GeoBox((180, 360), rasterio.Affine(1, 0, -180, 0, -1, 90), 4326)
    route = Route(polar, world)
    lattice = route.lattice(Window(0, 64, 0, 64))
    assert lattice.bent.all()
    rows, cols = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5, indexing="ij")
    exact = route.exact(rows, cols)
    found = [np.concatenate(parts) for parts in zip(*((d, a) for _, d, a in lattice.slabs()), strict=True)]
    np.testing.assert_array_equal(found, exact)
    assert lattice.bent.shape == (64 // CELL, 64 // CELL)


# --- which grid


def test_edges_are_at_multiples_so_that_neighbours_share_a_lattice(tmp_path: Path) -> None:
    paths = [
        write_tif(tmp_path / f"{k}.tif", picture(), transform=BANEPA @ rasterio.Affine.translation(COLS * k + 0.3, 7.7))
        for k in range(2)
    ]
    one, other = (open_scene(path, resolution=0.25).geobox for path in paths)
    for grid in (one, other):
        corner = np.array([grid.affine.c, grid.affine.f]) / 0.25
        np.testing.assert_allclose(corner, np.rint(corner), atol=1e-6)
    steps = (other.affine.c - one.affine.c) / 0.25
    assert math.isclose(steps, round(steps), abs_tol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_target_grid_covers_the_scene_and_little_more(name: str, folder: Path) -> None:
    case = CASES[name]
    scene = open_scene(folder / f"{name}.tif", crs=case.to, resolution=case.resolution)
    assert scene.name == f"{name}.tif"
    source = open_source(replace(scene, by_nearest=True), (1,))
    valid = source.read(Window.of_shape(scene.shape)).valid
    for side in (valid[:3], valid[-3:], valid[:, :3], valid[:, -3:]):
        assert side.any() or "world" in name


def test_the_scenes_own_crs_alone_changes_nothing(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", picture())
    assert open_scene(path, crs=32645) == open_scene(path)


ARCTIC = rasterio.Affine(1000, 0, -130_000, 0, -1000, 105_000)

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown CRS": ({}, {"crs": "EPSG:99999"}, r"--crs EPSG:99999: is no coordinate reference system.*EPSG:32645"),
    "no CRS": ({}, {"crs": "metres"}, r"--crs metres: is no coordinate reference system"),
    "heights": ({}, {"crs": "EPSG:5773"}, r"--crs EPSG:5773: EGM96 height is Vertical CRS, without x and y"),
    "geocentric": ({}, {"crs": "EPSG:4978"}, r"--crs EPSG:4978: WGS 84 is Geocentric CRS, without x and y"),
    "another place": (
        {},
        {"crs": "EPSG:28992"},
        r"--crs EPSG:28992: is meant for longitude 3.2 to 7.2.*a\.tif is elsewhere; choose.*EPSG:32645",
    ),
    "no side": ({}, {"resolution": 0.0}, r"--resolution 0: must be above 0, in metres"),
    "negative": ({}, {"resolution": -1.0, "crs": "EPSG:4326"}, r"--resolution -1: must be above 0, in degrees"),
    "not a number": ({}, {"resolution": math.nan}, r"--resolution nan: must be above 0"),
    "absurdly fine": ({}, {"resolution": 1e-5}, r"--resolution 1e-05 \(metres\): .*a\.tif would have 6.3e\+06 x 7.8e"),
    "larger than the scene": (
        {},
        {"resolution": 0.3, "crs": "EPSG:4326"},
        r"--resolution 0.3 \(degrees\): a pixel would be larger than .*a\.tif, which is 0.0007.* x 0.0005.* degrees",
    ),
    "a pole in degrees": (
        {"crs": "EPSG:3413", "transform": ARCTIC},
        {"crs": "EPSG:4326"},
        r"--crs EPSG:4326: .*a\.tif holds a pole.*EPSG:3413 in the north",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_grids_that_cannot_be_are_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    place, asked, why = REFUSED[name]
    path = write_tif(tmp_path / "a.tif", picture(), **place)
    with pytest.raises(OptionError, match=why):
        open_scene(path, **asked)


def test_a_resolution_that_the_model_does_not_see_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    path = write_tif(tmp_path / "a.tif", picture())
    job = SegmentJob(path, "buildings", tmp_path / "out", str(tiny_model), resolution=5.0)
    with pytest.raises(ModelError, match=r"a\.tif at --resolution 5: its pixels are 5 x 5 m on the ground, tiny was"):
        plan(job)


def test_rational_polynomials_are_refused_with_the_line_to_run(tmp_path: Path) -> None:
    line = {"line_num_coeff": [0.0] * 20, "line_den_coeff": [1.0] + [0.0] * 19}
    samp = {"samp_num_coeff": [0.0] * 20, "samp_den_coeff": [1.0] + [0.0] * 19}
    offsets = {f"{name}_{what}": 1.0 for name in ("lat", "long", "line", "samp", "height") for what in ("off", "scale")}
    rpcs = rasterio.rpc.RPC(**line, **samp, **offsets, err_bias=0, err_rand=0)
    size = {"driver": "GTiff", "width": 8, "height": 8, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", rpcs=rpcs, **size) as dataset:
        dataset.write(np.ones((1, 8, 8), np.uint8))
    with pytest.raises(SceneError, match=r"a\.tif: has rational polynomials.*gdalwarp -rpc .*a\.tif placed\.tif"):
        open_scene(tmp_path / "a.tif", crs="EPSG:32645")


def test_control_points_are_refused_with_the_line_to_run(tmp_path: Path) -> None:
    points = [rasterio.control.GroundControlPoint(r, c, 85 + c / 9, 27 - r / 9) for r, c in ((0, 0), (0, 9), (9, 0))]
    size = {"driver": "GTiff", "width": 9, "height": 9, "count": 1, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", gcps=points, crs=4326, **size) as dataset:
        dataset.write(np.ones((1, 9, 9), np.uint8))
    with pytest.raises(SceneError, match=r"control points only.*gdalwarp -tps -t_srs EPSG:4326 a\.tif placed\.tif"):
        open_scene(tmp_path / "a.tif", resolution=0.1)


# --- maps on them


def town(path: Path) -> Path:
    return write_tif(path, holes(picture(120, 150)), nodata=0)


def labels_of(result: geoseg.Result) -> tuple[NDArray[np.uint8], Any]:
    with rasterio.open(result.folder / "labels.tif") as dataset:
        return dataset.read(1), dataset


@chunks_of(64)
def test_a_map_lies_on_the_grid_whatever_the_tiling(tmp_path: Path, tiny_model: Path) -> None:
    path = town(tmp_path / "town.tif")
    asked = {"model": str(tiny_model), "resolution": 0.3, "crs": "EPSG:3857"}
    whole, tiled = (
        geoseg.segment(path, "buildings", tmp_path / f"out{tile}", tile=tile, **asked) for tile in (None, 64)
    )
    (labels, dataset), (others, _) = labels_of(whole), labels_of(tiled)
    np.testing.assert_array_equal(labels, others)
    scene = open_scene(path, resolution=0.3, crs="EPSG:3857")
    assert dataset.crs == "EPSG:3857"
    assert dataset.transform == scene.geobox.affine
    assert labels.shape == scene.shape
    assert {0, 1, 255} <= set(np.unique(labels).tolist())
    valid = open_source(scene, (1, 2, 3)).read(Window.of_shape(scene.shape)).valid
    np.testing.assert_array_equal(labels != 255, valid)
    outlines = [shapely.to_wkb(each.footprints.geometry.to_numpy()).tolist() for each in (whole, tiled)]
    assert outlines[0] == outlines[1] != []
    told = whole.item["properties"]["geoseg:parameters"]["grid"]
    assert told == {"crs": "EPSG:3857", "transform": list(scene.geobox.affine[:6])}
    assert any(link["href"].endswith("town.tif") for link in whole.item["links"])
    assert whole.item["properties"]["geoseg:counts"]["pixels"] == labels.size


def test_a_map_of_an_opened_scene_is_that_of_the_same_options(tmp_path: Path, tiny_model: Path) -> None:
    path = town(tmp_path / "town.tif")
    asked = {"resolution": 0.5, "crs": "EPSG:32645"}
    one = geoseg.segment(path, "buildings", tmp_path / "one", model=str(tiny_model), **asked)
    scene = open_scene(path, **asked)
    other = geoseg.segment(scene, "buildings", tmp_path / "two", model=str(tiny_model))
    np.testing.assert_array_equal(labels_of(one)[0], labels_of(other)[0])
    job = SegmentJob(path, "buildings", tmp_path / "one", str(tiny_model), **asked)
    assert plan(job).complete
    with pytest.raises(OutputError, match=r"grid crs was EPSG:32645, now not set; grid transform was .*, now not set"):
        plan(replace(job, resolution=None))


def test_an_area_of_interest_is_that_of_the_target_grid(tmp_path: Path, tiny_model: Path) -> None:
    path = town(tmp_path / "town.tif")
    area = shapely.box(334_005, 3_056_970, 334_035, 3_057_000)
    content = {"type": "Polygon", "coordinates": [list(map(list, area.exterior.coords))]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32645"}}
    feature = {"type": "Feature", "properties": {}, "geometry": content}
    (tmp_path / "aoi.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "crs": crs, "features": [feature]}), encoding="utf-8"
    )
    options = {"out": tmp_path / "out", "model": tiny_model, "aoi": tmp_path / "aoi.geojson", "resolution": 0.5}
    words = [f"--{name}={value}" for name, value in options.items()]
    done = CliRunner().invoke(cli, ["segment", str(path), "buildings", "--crs", "EPSG:32645", *words])
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "out" / "town" / "labels.tif") as dataset:
        labels, (pixel, _) = dataset.read(1), dataset.res
        rows, cols = np.nonzero(labels != 255)
        x, y = dataset.transform @ (cols + 0.5, rows + 0.5)
    assert pixel == 0.5
    assert 2500 < len(rows) <= 3600  # of 30 m x 30 m, but for holes
    assert x.min() >= 334_005
    assert x.max() <= 334_035
    assert y.min() >= 3_056_970


def test_a_job_has_the_keys_and_its_plan_counts_the_target_grids_pixels(tmp_path: Path, tiny_model: Path) -> None:
    path = town(tmp_path / "town.tif")
    asked = {"product": "buildings", "model": str(tiny_model), "scenes": {"files": [path.name]}}
    job = RunJob(**asked, resolution=0.5, crs="EPSG:3857")
    planned = plan_archive(job, tmp_path)
    scene = open_scene(path, resolution=0.5, crs="EPSG:3857")
    total = estimate((entry.order.tiling for entry in planned.entries), planned.model, 1, 1)
    assert total.pixels == scene.shape[0] * scene.shape[1] != 120 * 150
    assert run_archive(planned).done == 1
    assert [entry.state for entry in plan_archive(job, tmp_path).entries] == ["complete"]
    assert [entry.state for entry in plan_archive(RunJob(**asked), tmp_path).entries] == ["changed"]
    with rasterio.open(tmp_path / "maps" / "town" / "labels.tif") as dataset:
        assert dataset.transform == scene.geobox.affine
    with pytest.raises(GeosegError, match="no coordinate reference system"):
        raise SceneError(plan_archive(RunJob(**asked, crs="EPSG:1"), tmp_path).faults[0].why)


def test_masks_and_fill_count_before_anything_is_between(tmp_path: Path) -> None:
    values = np.full((3, 60, 80), 50, np.uint8)
    values[:, :, 40:] = 255
    path = write_tif(tmp_path / "a.tif", values)
    cloud = np.ones((60, 80), np.uint8)
    cloud[:20] = 0
    values[:, :20, :] = 200
    path = write_tif(tmp_path / "a.tif", values)
    mask = write_tif(tmp_path / "mask.tif", cloud)
    asked = Asked(nodata=(255.0,), mask=str(mask), resolution=0.37, crs="EPSG:3857")
    scene, bands = as_asked(open_scene(path), ("red", "green", "blue"), asked)
    raster = open_source(scene, bands).read(Window.of_shape(scene.shape))
    assert raster.valid.any()
    assert (raster.values[:, raster.valid] == 50).all()


def test_the_model_may_see_another_grid_than_the_maps_have(tmp_path: Path, tiny_model: Path) -> None:
    """As it does for a scene beyond its range: patches are resampled, and scores brought back."""
    path = town(tmp_path / "town.tif")
    asked = {"model": str(tiny_model), "resolution": 0.45, "output_grid": "source"}
    planned = plan(SegmentJob(path, "buildings", tmp_path / "out", **asked))
    assert planned.tiling.patch == (96, 96)  # 64 pixels of 0.45 m
    assert planned.scene == open_scene(path)
    labels, dataset = labels_of(geoseg.segment(path, "buildings", tmp_path / "out", **asked))
    assert (dataset.transform, labels.shape) == (BANEPA, (120, 150))
    other, _ = labels_of(geoseg.segment(path, "buildings", tmp_path / "plain", model=str(tiny_model)))
    assert (labels != other).any()
    np.testing.assert_array_equal(labels == 255, other == 255)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"crs": "EPSG:3857", "resolution": 0.4}, r"--output-grid source: is target, or source with a --resolution"),
        ({}, r"--output-grid source: is target, or source with a --resolution and no --crs"),
        ({"resolution": -1.0}, r"--resolution -1: must be above 0"),
        ({"resolution": 0.7}, r"town\.tif: --resolution 0.7 is 0.7 m on the ground, tiny sees 0.1 to 0.6 m; choose"),
    ],
)
def test_what_a_scene_cannot_keep_its_grid_with_is_refused(
    tmp_path: Path, tiny_model: Path, asked: dict[str, Any], why: str
) -> None:
    path = town(tmp_path / "town.tif")
    with pytest.raises(OptionError, match=why):
        plan(SegmentJob(path, "buildings", tmp_path / "out", str(tiny_model), output_grid="source", **asked))


def test_scenes_that_were_opened_on_a_grid_are_compared_on_it(tmp_path: Path) -> None:
    path = town(tmp_path / "town.tif")
    scene = open_scene(path, resolution=0.5, crs="EPSG:3857")
    job = job_of(scene, path, "buildings", tmp_path / "out")
    assert (job.before.resolution, job.before.crs) == (0.5, "EPSG:3857")
    assert (job.after.resolution, job.after.crs) == (None, None)
    assert open_scene(path, resolution=job.before.resolution, crs=job.before.crs).geobox == scene.geobox
