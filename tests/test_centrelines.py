"""Roads and rivers as lines: along the middle, joined at crossings, without the ends that point to corners."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import xarray as xr
from click.testing import CliRunner
from conftest import write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio import Affine

from geoseg.centrelines import Thinning, _chained, _links, centrelines
from geoseg.cli import cli
from geoseg.errors import OptionError
from geoseg.io.layers import read_layer
from geoseg.io.vectors import to_lonlat, to_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

METRES = 2.0
CRS = 32645


def grid(shape: tuple[int, int]) -> GeoBox:
    return GeoBox(shape, Affine(METRES, 0, 500_000, 0, -METRES, 3_057_000), CRS)


def labelled(values: NDArray[np.uint8]) -> xr.DataArray:
    geobox = grid((values.shape[0], values.shape[1]))
    return xr.DataArray(values, coords=xr_coords(geobox, dims=("y", "x")), dims=("y", "x"), name="map")


def lines_of(values: NDArray[np.uint8], **thinning: float) -> gpd.GeoDataFrame:
    return centrelines(labelled(values), Thinning(**thinning)).frame


def in_pixels(frame: gpd.GeoDataFrame, shape: tuple[int, int]) -> NDArray[np.object_]:
    return to_pixels(frame.geometry.to_numpy(), grid(shape))


def cross(width: int = 5, size: int = 101) -> NDArray[np.uint8]:
    """Two roads from edge to edge."""
    values = np.zeros((size, size), np.uint8)
    middle = slice(size // 2 - width // 2, size // 2 + width // 2 + 1)
    values[middle] = values[:, middle] = 1
    return values


@pytest.mark.parametrize("width", [1, 3, 5, 11])
def test_two_roads_that_cross_are_four_lines_of_their_width(width: int) -> None:
    frame = lines_of(cross(width), simplify=1.5 * METRES)
    assert len(frame) == 4
    ends = np.stack([shapely.get_coordinates(shapely.get_point(in_pixels(frame, (101, 101)), e)) for e in (0, -1)])
    at = np.hypot(*(ends - 50.5).transpose(2, 0, 1)).min(axis=0)
    assert (at < 2).all(), "all begin at the crossing"
    assert np.allclose(frame["length_m"], 50 * METRES, rtol=0.05)
    assert np.allclose(frame["width_m"], width * METRES, atol=METRES)
    assert frame["touches_edge"].all()
    assert set(frame["class"]) == {"1"}
    assert set(frame["scene"]) == {"map"}
    assert frame["id"].is_unique


def test_a_road_that_ends_in_the_scene_has_no_fork_at_its_end() -> None:
    values = np.zeros((60, 120), np.uint8)
    values[20:31, 15:105] = 1
    frame = lines_of(values)
    assert len(frame) == 1
    assert not frame["touches_edge"].any()
    assert 70 * METRES < frame["length_m"][0] <= 90 * METRES


def test_short_ends_go_and_long_ones_stay() -> None:
    values = np.zeros((80, 120), np.uint8)
    values[40:43, :] = 1
    values[20:40, 30:33] = 1  # 20 pixels long
    values[5:7, 100:106] = 1  # alone
    assert len(lines_of(values)) == 4
    assert len(lines_of(values, spur=15 * METRES)) == 3, "what is alone is 6 pixels long"
    (line,) = lines_of(values, spur=30 * METRES).geometry
    assert line.length == pytest.approx(119 * METRES, rel=0.03)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.bool_, st.tuples(st.integers(2, 14), st.integers(2, 14))), st.randoms())
def test_lines_pass_each_pixel_with_a_neighbour_and_meet_at_ends_only(mask: NDArray[np.bool_], order: Any) -> None:
    links = _links(mask)
    lines = _chained(links)
    pixels = {(int(y), int(x)) for x, y in shapely.get_coordinates(lines)}
    padded = np.pad(mask, 1)
    near = [
        padded[1 + y : 1 + y + mask.shape[0], 1 + x : 1 + x + mask.shape[1]] for y in (-1, 0, 1) for x in (-1, 0, 1)
    ]
    assert pixels == set(map(tuple, np.argwhere(mask & (np.sum(near, axis=0) > 1)).tolist()))
    assert shapely.length(lines).sum() == pytest.approx(shapely.length(links).sum())
    inner = [tuple(xy) for line in lines for xy in shapely.get_coordinates(line)[1:-1].tolist()]
    assert len(inner) == len(set(inner))
    shuffled = list(links)
    order.shuffle(shuffled)
    assert [line.wkb for line in _chained(np.array(shuffled, object))] == [line.wkb for line in lines]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.0, 4.0))
def test_lines_lie_in_their_class_and_have_names_of_their_own(seed: int, blur: float) -> None:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((60, 70)), blur)
    values = np.digitize(noise, np.quantile(noise, [0.4, 0.7])).astype(np.uint8)
    frame = lines_of(values)
    assert frame["id"].is_unique or frame.duplicated(["id", "class"]).sum() == 0
    for line, name in zip(in_pixels(frame, (60, 70)), frame["class"], strict=True):
        col, row = np.floor(shapely.get_coordinates(line)).astype(int).T
        assert (values[row, col] == int(name)).all()
    shorter = lines_of(values, spur=10 * METRES)
    assert shorter["length_m"].sum() <= frame["length_m"].sum() + 1e-6


def test_nothing_gives_an_empty_layer() -> None:
    frame = lines_of(np.zeros((20, 20), np.uint8))
    assert not len(frame)
    assert frame.crs == CRS


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet", ".fgb", ".geojsonl", ".pmtiles"])
def test_the_command_writes_every_format(tmp_path: Path, suffix: str) -> None:
    write_tif(tmp_path / "map.tif", cross(), transform=grid((101, 101)).affine)
    out = tmp_path / f"roads{suffix}"
    arguments = ["vectorize", str(tmp_path / "map.tif"), "--out", str(out), "--classes", "1=road", "--lines"]
    done = CliRunner().invoke(cli, [*arguments, "--simplify", "3"])
    assert done.exit_code == 0, done.output
    assert "road: 4 lines, 4" in done.output
    if suffix == ".pmtiles":
        return
    found = read_layer(out)
    assert set(found.geom_type) == {"LineString"}
    assert set(found["class"]) == {"road"}
    if suffix == ".gpkg":
        with closing(sqlite3.connect(out)) as database:
            (style,) = database.execute("SELECT styleQML FROM layer_styles").fetchone()
        assert 'type="line"' in style
        assert "SimpleLine" in style
        assert "SimpleFill" not in style
    if suffix == ".geojson":
        assert json.loads(out.read_text())["features"][0]["geometry"]["type"] == "LineString"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--regularise"], "--regularise and --lines"),
        (["--min-area", "3"], "--min-area and --lines"),
        (["--spur", "-1"], "--spur -1"),
        (["--out", "a.coco.json"], "COCO"),
    ],
)
def test_what_lines_have_not_is_refused(tmp_path: Path, more: list[str], words: str) -> None:
    write_tif(tmp_path / "map.tif", cross(), transform=grid((101, 101)).affine)
    arguments = ["vectorize", str(tmp_path / "map.tif"), "--out", "a.gpkg", "--lines", *more]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert words in f"{done.output} {done.exception}"
    if "--spur" in more:
        with pytest.raises(OptionError):
            Thinning(spur=-1)


def test_a_line_across_the_antimeridian_is_cut_there() -> None:
    frame = gpd.GeoDataFrame(geometry=[shapely.LineString([(800_000, 8_000_000), (850_000, 8_010_000)])], crs=32760)
    (line,) = to_lonlat(frame)
    assert line.geom_type == "MultiLineString"
    assert shapely.bounds(line).tolist()[::2] == [-180, 180]
    assert all(part.bounds[2] - part.bounds[0] < 1 for part in line.geoms)
