"""Scenes: pixels as GDAL gives them, validity, bands, stretch, ground resolution and areas of interest."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.windows
import shapely
from conftest import BANEPA, write_tif
from hypothesis import example, given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from rasterio.enums import ColorInterp
from rasterio.features import geometry_mask

from geoseg.errors import OptionError, SceneError
from geoseg.io.scenes import GdalSource, Stretch, estimate_stretch, open_scene
from geoseg.io.vectors import read_aoi, read_polygons
from geoseg.raster import ground_resolution
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

ROWS, COLS = 70, 90
WANTED = ("red", "green", "blue")


def noise(*shape: int, dtype: str = "uint8", seed: int = 1) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    high = {"uint8": 256, "uint16": 5000, "float32": 1000, "float64": 1000, "int16": 3000}[dtype]
    return (rng.random(shape) * high).astype(dtype)


def source_of(path: Path) -> GdalSource:
    scene = open_scene(path)
    bands = scene.bands_for(WANTED)
    return GdalSource(scene, bands, estimate_stretch(scene, bands))


def valid_of(path: Path) -> NDArray[np.bool_]:
    source = source_of(path)
    return source.read(Window.of_shape(source.shape)).valid


# --- windows


def striped(path: Path) -> Path:
    return write_tif(path, noise(3, ROWS, COLS), tiled=False, blockysize=7)


def tiled(path: Path) -> Path:
    return write_tif(path, noise(3, ROWS, COLS), tiled=True, blockxsize=32, blockysize=16, compress="zstd")


def jpeg(path: Path) -> Path:
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "jpeg", "photometric": "YCBCR"}
    return write_tif(path, noise(3, ROWS, COLS), **profile)


def virtual(path: Path) -> Path:
    rasterio.shutil.copy(tiled(path), path.with_suffix(".vrt"), driver="VRT")
    return path.with_suffix(".vrt")


def sixteen_bits(path: Path) -> Path:
    return write_tif(path, noise(4, ROWS, COLS, dtype="uint16"), tiled=True, blockxsize=32, blockysize=32)


def floats(path: Path) -> Path:
    values = noise(3, ROWS, COLS, dtype="float32")
    values[:, 10:20, 30:50] = -9999
    values[1, 40, 40] = np.nan
    return write_tif(path, values, nodata=-9999, interleave="band")


def masked(path: Path) -> Path:
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_tif(path, noise(3, ROWS, COLS))
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.arange(ROWS * COLS).reshape(ROWS, COLS) % 7 > 2)
    return path


MAKERS = [striped, tiled, jpeg, virtual, sixteen_bits, floats, masked]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param(tmp_path_factory.mktemp("scenes") / f"{request.param.__name__}.tif")


def spans(size: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(-20, size + 20), st.integers(1, size + 40)).map(lambda s: (s[0], s[0] + s[1]))


@given(rows=spans(ROWS), cols=spans(COLS))
@example(rows=(0, ROWS), cols=(0, COLS))
@example(rows=(-5, ROWS + 5), cols=(-5, COLS + 5))  # beyond every edge
@example(rows=(ROWS, ROWS + 3), cols=(0, COLS))  # outside entirely
@example(rows=(-9, 0), cols=(-9, 0))
def test_a_window_is_what_rasterio_reads_there(made: Path, rows: tuple[int, int], cols: tuple[int, int]) -> None:
    source = source_of(made)
    raster = source.read(Window(*rows, *cols))
    with rasterio.open(made) as dataset:
        raw = dataset.read(list(source.bands))
        valid = dataset.dataset_mask() > 0
    if made.stem == "floats":
        valid &= np.isfinite(raw).all(axis=0)
        valid &= (raw != -9999).all(axis=0)
    whole = raw if source.stretch is None else source.stretch.apply(raw)
    reach = 200
    padding = (reach, reach)
    expected = np.pad(whole, ((0, 0), padding, padding))
    there = slice(rows[0] + reach, rows[1] + reach), slice(cols[0] + reach, cols[1] + reach)
    expected_valid = np.pad(valid, (padding, padding))[there]
    assert raster.values.dtype == np.uint8
    np.testing.assert_array_equal(raster.valid, expected_valid)
    np.testing.assert_array_equal(raster.values, expected[:, *there])


def test_a_window_inside_knows_its_place(tmp_path: Path) -> None:
    raster = source_of(tiled(tmp_path / "a.tif")).read(Window(10, 20, 30, 50))
    assert raster.geobox is not None
    assert raster.geobox.shape == (10, 20)
    assert raster.geobox.affine @ (0, 0) == pytest.approx(BANEPA @ (30, 10))


# --- validity


def hole() -> NDArray[np.bool_]:
    """True where there is data."""
    data = np.ones((ROWS, COLS), bool)
    data[10:20, 30:50] = data[40, 40] = data[0] = False
    return data


def with_nodata(dtype: str, nodata: float) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        values = noise(3, ROWS, COLS, dtype=dtype)
        values[values == nodata] += 1
        values[:, ~hole()] = nodata
        return write_tif(path, values, nodata=nodata)

    return make


def with_alpha(opaque: int) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        alpha = np.where(hole(), opaque, 0).astype("uint8")
        return write_tif(path, np.concatenate([noise(3, ROWS, COLS), alpha[None]]), alpha="yes")

    return make


def with_internal_mask(path: Path) -> Path:
    write_tif(path, noise(3, ROWS, COLS))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(hole())
    assert not path.with_name(f"{path.name}.msk").exists()
    return path


def with_sidecar_mask(path: Path) -> Path:
    write_tif(path, noise(3, ROWS, COLS))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(hole())
    assert path.with_name(f"{path.name}.msk").exists()
    return path


def with_not_a_number(value: float, nodata: float | None = None) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        values = noise(3, ROWS, COLS, dtype="float32")
        values[1, ~hole()] = value  # in one band only
        return write_tif(path, values, **({} if nodata is None else {"nodata": nodata}))

    return make


INVALID: dict[str, Callable[[Path], Path]] = {
    "nodata tag": with_nodata("uint8", 0),
    "nodata tag of 16 bits": with_nodata("uint16", 65535),
    "nodata tag of signed 16 bits": with_nodata("int16", -32768),
    "nodata tag of floats": with_nodata("float32", -9999),
    "the lowest float32": with_nodata("float32", float(np.finfo("float32").min)),
    "the lowest float64": with_nodata("float64", float(np.finfo("float64").min)),
    "alpha": with_alpha(255),
    "faint alpha": with_alpha(1),
    "internal mask": with_internal_mask,
    "sidecar mask": with_sidecar_mask,
    "NaN": with_not_a_number(np.nan),
    "NaN as nodata tag": with_not_a_number(np.nan, nodata=np.nan),
    "NaN beside a nodata tag": with_not_a_number(np.nan, nodata=-9999),
    "infinity": with_not_a_number(np.inf),
    "-9999 in one band of floats": with_not_a_number(-9999, nodata=-9999),
}


@pytest.mark.parametrize("kind", INVALID)
def test_what_has_no_data_is_not_valid(kind: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(valid_of(INVALID[kind](tmp_path / "a.tif")), hole())


def test_integers_are_nodata_when_all_bands_are(tmp_path: Path) -> None:
    """A dark roof is 0 in one band."""
    values = noise(3, ROWS, COLS)
    values[0, 5:9], values[:, 20:30] = 0, 0
    values[2, 20:30, :4] = 1
    expected = (values != 0).any(axis=0)
    np.testing.assert_array_equal(valid_of(write_tif(tmp_path / "a.tif", values, nodata=0)), expected)
    assert expected[5:9].all()


def test_without_a_tag_all_is_valid(tmp_path: Path) -> None:
    assert valid_of(write_tif(tmp_path / "a.tif", np.zeros((3, ROWS, COLS), np.uint8))).all()


# --- bands


def set_colours(path: Path, *colours: ColorInterp) -> Path:
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = colours
    return path


def describe(path: Path, *names: str) -> Path:
    with rasterio.open(path, "r+") as dataset:
        dataset.descriptions = names
    return path


def plain(path: Path, bands: int, dtype: str = "uint8") -> Path:
    return write_tif(path, noise(bands, ROWS, COLS, dtype=dtype), photometric="MINISBLACK")


def test_bands_are_chosen_by_name_order_or_grey(tmp_path: Path) -> None:
    red, green, blue, grey = ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.gray
    alpha, unknown = ColorInterp.alpha, ColorInterp.undefined
    rgb = write_tif(tmp_path / "rgb.tif", noise(3, ROWS, COLS))
    rgba = set_colours(write_tif(tmp_path / "rgba.tif", noise(4, ROWS, COLS)), red, green, blue, alpha)
    four = set_colours(write_tif(tmp_path / "four.tif", noise(4, ROWS, COLS)), red, green, blue, unknown)
    bgr = set_colours(write_tif(tmp_path / "bgr.tif", noise(3, ROWS, COLS)), blue, green, red)
    grey_alpha = set_colours(plain(tmp_path / "ga.tif", 2), grey, alpha)
    named = describe(plain(tmp_path / "named.tif", 4, "uint16"), "nir", "Red", "green", "blue")
    numbered = describe(plain(tmp_path / "numbered.tif", 4), "Band_1", "Band_2", "Band_3", "Band_4")
    expected = {
        rgb: (("red", "green", "blue"), (1, 2, 3)),
        rgba: (("red", "green", "blue", "alpha"), (1, 2, 3)),
        four: (("red", "green", "blue", ""), (1, 2, 3)),
        bgr: (("blue", "green", "red"), (3, 2, 1)),
        plain(tmp_path / "one.tif", 1): (("grey",), (1, 1, 1)),
        grey_alpha: (("grey", "alpha"), (1, 1, 1)),
        plain(tmp_path / "unnamed.tif", 4): (("", "", "", ""), (1, 2, 3)),
        named: (("nir", "red", "green", "blue"), (2, 3, 4)),
        numbered: (("", "", "", ""), (1, 2, 3)),
    }
    found = {path: ((scene := open_scene(path)).bands, scene.bands_for(WANTED)) for path in expected}
    assert found == expected


def test_chosen_bands_are_read_in_the_networks_order(tmp_path: Path) -> None:
    values = noise(3, ROWS, COLS)
    path = set_colours(write_tif(tmp_path / "bgr.tif", values), ColorInterp.blue, ColorInterp.green, ColorInterp.red)
    np.testing.assert_array_equal(source_of(path).read(Window(0, ROWS, 0, COLS)).values, values[::-1])
    one = plain(tmp_path / "one.tif", 1)
    read = source_of(one).read(Window(0, ROWS, 0, COLS)).values
    with rasterio.open(one) as dataset:
        np.testing.assert_array_equal(read, np.repeat(dataset.read(), 3, axis=0))


def test_two_unnamed_bands_are_refused(tmp_path: Path) -> None:
    path = set_colours(plain(tmp_path / "two.tif", 2), ColorInterp.undefined, ColorInterp.undefined)
    with pytest.raises(SceneError, match=r"two\.tif: .*needs the bands red, green, blue, the scene has unnamed, unnam"):
        open_scene(path).bands_for(WANTED)


def test_a_palette_is_refused_with_its_remedy(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "palette.tif", noise(ROWS, COLS))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {1: (255, 0, 0, 255)})
    with pytest.raises(SceneError, match=r"palette\.tif: .*gdal_translate -expand rgb"):
        open_scene(path).bands_for(WANTED)


# --- stretch


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
def test_the_stretch_is_of_the_scene_not_of_the_window(dtype: str, tmp_path: Path) -> None:
    """A dark half and a bright one: read by windows, the dark one stays dark."""
    values = noise(3, ROWS, COLS, dtype=dtype)
    values[:, :, : COLS // 2] = values[:, :, : COLS // 2] / 20
    source = source_of(write_tif(tmp_path / "a.tif", values))
    whole = source.read(Window(0, ROWS, 0, COLS)).values
    for row in range(0, ROWS, 23):
        for col in range(0, COLS, 31):
            window = Window(row, min(row + 23, ROWS), col, min(col + 31, COLS))
            np.testing.assert_array_equal(source.read(window).values, whole[:, *window.slices])
    assert whole[:, :, : COLS // 2].max() < 20
    for band in whole:
        assert (band.min(), band.max()) == (0, 255)
        assert len(np.unique(band)) > 200
    assert isinstance(source.stretch, Stretch)
    expected = [np.percentile(band.astype(float), (1, 99)) for band in values]
    np.testing.assert_allclose(np.column_stack([source.stretch.low, source.stretch.high]), expected)


def test_the_stretch_does_not_see_nodata(tmp_path: Path) -> None:
    values = noise(3, ROWS, COLS, dtype="float32")
    values[:, : ROWS // 2] = -9999
    values[0, -1, -1] = np.inf
    stretch = source_of(write_tif(tmp_path / "a.tif", values, nodata=-9999)).stretch
    assert stretch is not None
    assert min(stretch.low) >= 0
    assert max(stretch.high) <= 1000


def test_bytes_are_not_stretched(tmp_path: Path) -> None:
    assert source_of(write_tif(tmp_path / "a.tif", noise(3, ROWS, COLS) // 4)).stretch is None


def test_a_constant_or_empty_scene_has_a_stretch(tmp_path: Path) -> None:
    source = source_of(write_tif(tmp_path / "a.tif", np.full((3, ROWS, COLS), 700, np.uint16)))
    assert np.unique(source.read(Window(0, ROWS, 0, COLS)).values).size == 1
    source = source_of(write_tif(tmp_path / "b.tif", np.full((3, ROWS, COLS), 700, np.uint16), nodata=700))
    assert not source.read(Window(0, ROWS, 0, COLS)).valid.any()


def test_complex_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match=r"a\.tif: its values are complex"):
        source_of(write_tif(tmp_path / "a.tif", np.zeros((3, 8, 8), np.complex64)))


# --- the grid


def test_ground_resolution_is_what_a_tape_would_measure() -> None:
    """Web Mercator at 60 degrees north: half of the map's metre, and a little less along a meridian."""
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(10.0, 60.0)
    box = GeoBox((2, 2), rasterio.Affine(0.5, 0, x - 0.5, 0, -0.5, y + 0.5), 3857)
    down, along = ground_resolution(box)
    # k = a / (M or N x cos): radii of curvature at 60 degrees on WGS 84
    e2, a, sin2 = 0.00669437999014, 6378137.0, 0.75
    assert down == pytest.approx(0.5 * (a * (1 - e2) / (1 - e2 * sin2) ** 1.5) / a * 0.5, rel=1e-4)
    assert along == pytest.approx(0.5 * (a / (1 - e2 * sin2) ** 0.5) / a * 0.5, rel=1e-4)


@pytest.mark.parametrize("turn", [0.0, 33.0, 90.0, 180.0])
@pytest.mark.parametrize("flip", [1, -1])
def test_ground_resolution_of_turned_and_south_up_grids(turn: float, flip: int) -> None:
    """UTM: the map's metre over the scale factor, 0.9996 on the central meridian."""
    place = rasterio.Affine.translation(500_000, 3_000_000) @ rasterio.Affine.rotation(turn)
    down, along = ground_resolution(GeoBox((10, 20), place @ rasterio.Affine.scale(0.3, flip * 0.2), 32645))
    assert (down, along) == (pytest.approx(0.2 / 0.9996, rel=1e-5), pytest.approx(0.3 / 0.9996, rel=1e-5))


def test_ground_resolution_of_degrees() -> None:
    step = 3e-6
    down, along = ground_resolution(GeoBox((10, 10), rasterio.Affine(step, 0, 85.5, 0, -step, 27.6), 4326))
    geod = Geod(ellps="WGS84")
    assert down == pytest.approx(geod.inv(85.5, 27.6, 85.5, 27.601)[2] / 1000 * step * 1e6, rel=1e-4)
    assert along == pytest.approx(geod.inv(85.5, 27.6, 85.501, 27.6)[2] / 1000 * step * 1e6, rel=1e-4)
    assert along == pytest.approx(down * np.cos(np.radians(27.6)), rel=0.01)


def test_a_scene_tells_its_date_id_and_type(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "my.scene.tif", noise(3, ROWS, COLS, dtype="uint16"))
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2022:07:25 10:11:12")
    scene = open_scene(path)
    assert scene.datetime == dt.datetime(2022, 7, 25, 10, 11, 12, tzinfo=dt.UTC)
    assert (scene.id, scene.dtype, scene.shape) == ("my.scene", "uint16", (ROWS, COLS))
    assert scene.geobox.affine == BANEPA
    assert scene.geobox.crs.epsg == 32645
    assert open_scene(write_tif(tmp_path / "b.tif", noise(3, 8, 8))).datetime is None


def test_a_container_is_told_from_its_subdatasets(tmp_path: Path) -> None:
    path = write_tif(tmp_path / "a.tif", noise(3, ROWS, COLS))
    with rasterio.open(path) as dataset:
        points = [
            rasterio.control.GroundControlPoint(row=r, col=c, x=x, y=y)
            for (r, c), (x, y) in zip([(0, 0), (0, 9), (9, 0)], [(85, 27), (86, 27), (85, 26)], strict=True)
        ]
        values = dataset.read()
    with rasterio.open(
        tmp_path / "gcps.tif",
        "w",
        driver="GTiff",
        width=COLS,
        height=ROWS,
        count=3,
        dtype="uint8",
        gcps=points,
        crs=4326,
    ) as dataset:
        dataset.write(values)
    with pytest.raises(SceneError, match=r"gcps\.tif: has ground control points only.*gdalwarp"):
        open_scene(tmp_path / "gcps.tif")


# --- areas of interest

GRIDS = {
    "north up": GeoBox((140, 180), rasterio.Affine(0.3, 0, 334_000, 0, -0.3, 3_057_000), 32645),
    "south up": GeoBox((140, 180), rasterio.Affine(0.3, 0, 334_000, 0, 0.3, 3_057_000), 32645),
    "turned": GeoBox(
        (140, 180),
        rasterio.Affine.translation(334_000, 3_057_000)
        @ rasterio.Affine.rotation(25)
        @ rasterio.Affine.scale(0.3, -0.3),
        32645,
    ),
    "degrees": GeoBox((140, 180), rasterio.Affine(3e-6, 0, 85.31, 0, -3e-6, 27.62), 4326),
}


def write_aoi(path: Path, geobox: GeoBox, crs: int = 4326) -> Path:
    """A star with a hole, and a triangle that reaches beyond the grid, given in another CRS."""
    angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    star = np.column_stack([85 + np.cos(angles) * ([60.3, 25.7] * 7), 66 + np.sin(angles) * ([55.1, 30.2] * 7)])
    pixels = [
        shapely.Polygon(star, [[(80, 60), (95, 61), (90, 75)]]),
        shapely.Polygon([(-40, -30), (50.5, -20), (20, 44.4)]),
        shapely.Polygon([(1000, 1000), (1010, 1000), (1010, 1010)]),
    ]
    world = [shapely.transform(p, lambda xy: np.array([geobox.affine @ tuple(v) for v in xy])) for p in pixels]
    gpd.GeoSeries(world, crs=geobox.crs.wkt).to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize("name", GRIDS)
def test_an_area_of_interest_is_the_same_whole_and_by_windows(name: str, tmp_path: Path) -> None:
    geobox = GRIDS[name]
    path = write_aoi(tmp_path / "aoi.gpkg", geobox, 3857 if name == "degrees" else 4326)
    inside = read_aoi(path, geobox)
    whole = inside(Window.of_shape(geobox.shape))
    polygons = gpd.read_file(path).to_crs(geobox.crs.wkt).geometry
    expected = geometry_mask(polygons, geobox.shape, geobox.affine, invert=True)
    outlines, pixel = shapely.union_all(polygons.boundary), abs(geobox.affine.determinant) ** 0.5
    for row, col in np.argwhere(whole != expected):
        # outlines are kept in 1/1024 of a pixel: a centre that lies nearer than that to a side may fall to either
        assert shapely.distance(shapely.Point(geobox.affine @ (col + 0.5, row + 0.5)), outlines) < pixel / 1000
    assert 0.1 < whole.mean() < 0.6
    for rows, cols in ((17, 23), (64, 64), (140, 7)):
        for row in range(-20, geobox.shape[0] + 20, rows):
            for col in range(-20, geobox.shape[1] + 20, cols):
                window = Window(row, row + rows, col, col + cols)
                part = Window.of_shape(geobox.shape).intersection(window)
                if part is not None:
                    np.testing.assert_array_equal(inside(window)[part.relative_to(window).slices], whole[part.slices])


def test_what_is_outside_the_area_is_not_valid_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = open_scene(write_tif(tmp_path / "a.tif", noise(3, ROWS, COLS)))

    def inside(window: Window) -> NDArray[np.bool_]:
        rows, cols = np.ogrid[slice(*window.row_range), slice(*window.col_range)]
        return (rows > 30) & (cols >= 0)

    source = GdalSource(scene, (1, 2, 3), None, inside)
    raster = source.read(Window(-5, ROWS, 0, COLS))
    np.testing.assert_array_equal(raster.valid.all(axis=1), np.arange(-5, ROWS) > 30)

    def refuse(_: Window) -> None:
        pytest.fail("was read")

    monkeypatch.setattr(source, "_read_file", refuse)
    assert not source.read(Window(0, 30, 0, COLS)).valid.any()


def test_an_area_may_have_odd_polygons(tmp_path: Path) -> None:
    """A bow tie, heights, a line beside the polygons and a row without geometry are no reason to stop."""
    geobox = GRIDS["north up"]
    x, y = geobox.affine @ (20, 20)
    tie = shapely.Polygon([(x, y), (x + 9, y - 9), (x + 9, y), (x, y - 9)])
    high = shapely.Polygon([(x, y, 5), (x + 3, y, 5), (x, y - 3, 5)])
    line = shapely.LineString([(x, y), (x + 1, y)])
    gpd.GeoSeries([tie, high, line, None], crs=32645).to_file(tmp_path / "aoi.gpkg")
    assert read_aoi(tmp_path / "aoi.gpkg", geobox)(Window.of_shape(geobox.shape)).any()


def test_polygons_that_cross_themselves_are_united(tmp_path: Path) -> None:
    """In an invalid polygon no scene would be found."""
    tie = shapely.Polygon([(85, 27), (86, 28), (86, 27), (85, 28)])
    gpd.GeoSeries([tie, shapely.box(85.2, 27.2, 85.3, 27.3)], crs=4326).to_file(tmp_path / "aoi.gpkg")
    assert read_polygons(tmp_path / "aoi.gpkg").union_all().area == pytest.approx(0.505)


@pytest.mark.parametrize(
    ("geometry", "crs", "says"),
    [
        (shapely.box(334_000, 3_056_990, 334_010, 3_057_000), 4326, "3057000 is no longitude or latitude"),
        (shapely.LineString([(85, 27), (86, 28)]), 4326, "has no polygons"),
        (shapely.box(10, 50, 11, 51), 4326, "do not meet the scene"),
        (shapely.box(334_000, 3_056_990, 334_010, 3_057_000), None, "has no CRS"),
    ],
)
def test_an_area_that_is_none_is_refused(geometry: Any, crs: int | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "aoi.shp"
    gpd.GeoSeries([geometry], crs=crs or 4326).to_file(path)
    if crs is None:
        path.with_suffix(".prj").unlink()
    with pytest.raises(OptionError, match=rf"aoi\.shp: .*{says}"):
        read_aoi(path, GRIDS["north up"])
