"""Roads and rivers as lines: along the middle, joined at crossings, without the ends that point to corners."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from click.testing import CliRunner
from conftest import write_tif
from hypothesis import example, given, settings
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
from geoseg.raster import ground_resolution

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

METRES = 2.0
CRS = 32645


def grid(shape: tuple[int, int], along: float = METRES) -> GeoBox:
    return GeoBox(shape, Affine(along, 0, 500_000, 0, -METRES, 3_057_000), CRS)


def labelled(values: NDArray[np.uint8], along: float = METRES) -> xr.DataArray:
    geobox = grid((values.shape[0], values.shape[1]), along)
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


def test_of_short_ends_at_one_place_the_shortest_goes_first() -> None:
    """A road that ends in a fork goes on along the longer arm, however short it is."""
    values = np.zeros((40, 80), np.uint8)
    values[20, 5:50] = 1
    values[12:20, 50] = values[21:26, 50] = 1
    frame = lines_of(values, spur=12 * METRES)
    (ends,) = ends_of(frame, (40, 80))
    assert sorted(ends) == [(12, 50), (20, 5)]


def test_what_goes_on_beyond_the_raster_is_not_short() -> None:
    values = np.zeros((30, 60), np.uint8)
    values[10, :6] = 1  # comes from the west, and ends
    values[:4, 30] = values[3, 30:] = 1  # from north to east
    values[12:, 40] = values[24, 40:44] = values[24, 30:40] = 1  # of both arms only one reaches nothing
    values[25:, 30] = 1
    frame = lines_of(values, spur=8 * METRES)
    ends = {frozenset(both) for both in ends_of(frame, (30, 60))}
    assert {frozenset({(10, 0), (10, 5)}), frozenset({(0, 30), (3, 59)})} <= ends
    assert frozenset({(24, 40), (29, 40)}) in ends, "five pixels long, from a crossing to the edge"
    assert not any((24, 43) in both for both in ends)


@pytest.mark.parametrize("length", [19.9, 20.0, 20.1])
def test_what_is_as_long_as_asked_stays(length: float) -> None:
    values = np.zeros((30, 60), np.uint8)
    values[10, 20:31] = 1
    pixel = ground_resolution(grid((30, 60)))[1]
    assert len(lines_of(values, spur=length / METRES * pixel)) == (length <= 20)


@pytest.mark.parametrize(("bump", "lines"), [(1, 1), (2, 1), (12, 3)])
def test_what_only_points_to_a_corner_is_no_line(bump: int, lines: int) -> None:
    """Of a road nine pixels wide: what sticks out by less than half of its width, and its own corners."""
    values = np.zeros((60, 90), np.uint8)
    values[30:39, 10:80] = 1
    values[30 - bump : 30, 44:47] = 1
    assert len(lines_of(values)) == lines


def test_lengths_and_widths_are_on_the_ground_where_pixels_are_not_square() -> None:
    """Pixels four times as high as wide."""
    values = np.zeros((60, 200), np.uint8)
    values[27:32] = 1
    values[:, 100:121] = 2
    frame = centrelines(labelled(values, METRES / 4)).frame.groupby("class").agg({"length_m": "sum", "width_m": "mean"})
    assert frame.loc["2", "length_m"] == pytest.approx(59 * METRES, rel=0.05)
    assert frame.loc["2", "width_m"] == pytest.approx(21 * METRES / 4, abs=METRES / 2)
    assert frame.loc["1", "length_m"] == pytest.approx(178 * METRES / 4, rel=0.1)
    assert frame.loc["1", "width_m"] == pytest.approx(5 * METRES, abs=METRES)
    short = np.zeros((60, 200), np.uint8)
    short[30, 20:32] = 1  # 11 steps of half a metre, and 11 of two
    short[10:22, 150] = 1
    assert len(centrelines(labelled(short, METRES / 4), Thinning(spur=5.4)).frame) == 2
    (line,) = centrelines(labelled(short, METRES / 4), Thinning(spur=5.6)).frame.geometry
    assert line.length == pytest.approx(11 * METRES)


def test_names_are_those_that_are_given_and_places_those_of_the_middle() -> None:
    values = np.zeros((20, 60), np.uint8)
    values[10, 20:31] = 1
    labels = labelled(values).assign_attrs(flag_values=[1], flag_meanings="path")
    assert list(centrelines(labels).frame["class"]) == ["path"]
    frame = centrelines(labels, classes={1: "road"}).frame
    assert list(frame["class"]) == ["road"]
    assert list(frame["id"]) == ["r10c24e"]


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
    middles = [line.interpolate(0.5, normalized=True).coords[0][::-1] for line in lines]
    assert middles == sorted(set(middles))
    shuffled = [line.reverse() if order.random() < 0.5 else line for line in links]
    order.shuffle(shuffled)
    assert [line.wkb for line in _chained(np.array(shuffled, object))] == [line.wkb for line in lines]


def patches(shape: tuple[int, int], seed: int, blur: float) -> NDArray[np.uint8]:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), blur)
    return np.digitize(noise, np.quantile(noise, [0.4, 0.7])).astype(np.uint8)


def ends_of(frame: gpd.GeoDataFrame, shape: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Pixels (row, column) that each line ends at."""
    lines = in_pixels(frame, shape)
    return [[(int(y), int(x)) for x, y in (line.coords[0], line.coords[-1])] for line in lines]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.0, 3.0), st.sampled_from([6, 11, 25]))
def test_no_end_is_shorter_than_asked(seed: int, blur: float, pixels: int) -> None:
    """Nor is a line on its own. What reaches the raster's edge goes on there, and is no end."""
    rows, cols = shape = 30, 75
    values = (patches(shape, seed, blur) == 1).astype(np.uint8)
    frame = lines_of(values, spur=pixels * METRES)
    ends = ends_of(frame, shape)
    count = Counter(end for both in ends for end in both)
    for both, length in zip(ends, frame["length_m"], strict=True):
        free = [count[r, c] == 1 and 0 < r < rows - 1 and 0 < c < cols - 1 for r, c in both]
        other = max(count[end] for end in both)
        if all(free) or (any(free) and other > 1):
            assert length >= pixels * METRES * 0.995


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.0, 3.0), st.sampled_from([1.0, 2.5, 6.0]))
@example(0, 1.0, 6.0)
def test_simplified_lines_are_lines_that_stay_near(seed: int, blur: float, pixels: float) -> None:
    """Loops that are smaller than the tolerance, too; and two lines that would become one are one."""
    shape = 50, 70
    values = patches(shape, seed, blur)
    exact, frame = lines_of(values), lines_of(values, simplify=pixels * METRES)
    lines = frame.geometry.to_numpy()
    assert shapely.is_valid(lines).all()
    assert not pd.Series(shapely.to_wkb(shapely.normalize(lines))).duplicated().any()
    of_same = exact.set_index(["id", "class"]).loc[pd.MultiIndex.from_frame(frame[["id", "class"]])]
    skeleton = of_same.geometry.to_numpy()
    assert shapely.hausdorff_distance(skeleton, lines, 0.1).max(initial=0) <= pixels * METRES * 1.001
    assert ends_of(frame, shape) == ends_of(of_same, shape)
    left_out = exact.loc[~pd.MultiIndex.from_frame(exact[["id", "class"]]).isin(of_same.index)]
    assert set(map(frozenset, ends_of(left_out, shape))) <= set(map(frozenset, ends_of(frame, shape)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1.0, 4.0))
def test_lines_lie_in_their_class_and_have_names_of_their_own(seed: int, blur: float) -> None:
    values = patches((60, 70), seed, blur)
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
    out = [] if "--out" in more else ["--out", "a.gpkg"]
    arguments = ["vectorize", str(tmp_path / "map.tif"), *out, "--lines", *more]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert words in f"{done.output} {done.exception}"


@pytest.mark.parametrize("value", [-1.0, np.inf, np.nan])
@pytest.mark.parametrize("name", ["spur", "simplify"])
def test_what_is_no_length_is_refused(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"--{name} {value}: must be 0 or more"):
        Thinning(**{name: value})


def test_a_line_across_the_antimeridian_is_cut_there() -> None:
    frame = gpd.GeoDataFrame(geometry=[shapely.LineString([(800_000, 8_000_000), (850_000, 8_010_000)])], crs=32760)
    (line,) = to_lonlat(frame)
    assert line.geom_type == "MultiLineString"
    assert shapely.bounds(line).tolist()[::2] == [-180, 180]
    assert all(part.bounds[2] - part.bounds[0] < 1 for part in line.geoms)
