"""`check` finds what was put in, and nothing else."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geoseg.cli import main
from geoseg.errors import OptionError
from geoseg.flaws import KINDS, Limits, check, flaws_of
from geoseg.io.layers import read_layer, write_layer
from geoseg.io.vectors import write_geojson

if TYPE_CHECKING:
    from pathlib import Path

ORIGIN = np.array([334_000.0, 3_057_000.0])


def layer(*shapes: Any, **columns: Any) -> gpd.GeoDataFrame:
    moved = shapely.transform(np.array(shapes, object), lambda xy: xy + ORIGIN)
    return gpd.GeoDataFrame({"id": [f"h{i}" for i in range(len(shapes))], **columns}, geometry=list(moved), crs=32645)


HOUSES = [shapely.box(20 * i, 0, 20 * i + 10, 12) for i in range(5)]
BOW = shapely.Polygon([(0, 50), (10, 60), (10, 50), (0, 60)])
PINCHED = shapely.Polygon([(0, 50), (10, 50), (10, 60), (0, 60)], [[(0, 50), (4, 52), (2, 54)]])
FLAWED = {
    "invalid": [BOW],
    "touches itself": [PINCHED],
    "duplicate": [shapely.Polygon(np.roll(np.array(HOUSES[2].exterior.coords)[:-1], 2, axis=0))],
    "overlap": [shapely.box(5, 5, 14, 16)],
    "sliver": [shapely.box(0, 50, 30, 50.08)],
}


@pytest.mark.parametrize("kind", FLAWED)
def test_each_flaw_is_found_alone(kind: str) -> None:
    found = flaws_of(layer(*HOUSES, *FLAWED[kind]), Limits())
    assert found.features == len(HOUSES) + 1
    assert {k: n for k, n in found.counts.items() if n} == {kind: 1}
    row = found.places.iloc[0]
    if kind == "overlap":
        assert (row["feature"], row["other"]) == ("h0", "h5")
        assert row["m2"] == pytest.approx(5 * 7, rel=3e-3)
        assert shapely.box(5, 5, 10, 12).contains(shapely.Point(np.array(row.geometry.coords[0]) - ORIGIN))
    else:
        assert row["feature"] == "h5"
    if kind == "touches itself":
        assert shapely.equals_exact(row.geometry, shapely.Point(ORIGIN[0], ORIGIN[1] + 50)), "where it does"


def test_neighbours_and_courtyards_are_no_flaws() -> None:
    yard = shapely.box(0, 50, 20, 70) - shapely.box(5, 55, 15, 65)
    two = shapely.MultiPolygon([shapely.box(60, 50, 65, 55), shapely.box(65, 55, 70, 60)])
    sound = layer(*HOUSES, shapely.box(10, 0, 20, 12), yard, shapely.box(6, 56, 14, 64), two)
    assert sum(flaws_of(sound, Limits()).counts.values()) == 0
    assert sum(flaws_of(sound.iloc[:0], Limits()).counts.values()) == 0


def test_nothing_and_none_are_empty() -> None:
    frame = layer(*HOUSES)
    frame.loc[1, "geometry"] = None
    frame.loc[2, "geometry"] = shapely.Polygon()
    assert {k: n for k, n in flaws_of(frame, Limits()).counts.items() if n} == {"empty": 2}


def test_areas_are_compared_on_the_ground() -> None:
    """In Web Mercator, too, where a square metre of the map is 0.78 on the ground here."""
    frame = layer(*HOUSES)
    frame["area_m2"] = frame.area / 0.9996**2
    there = frame.to_crs(3857)
    assert flaws_of(there, Limits()).counts["area off"] == 0
    there["area_m2"] = there.area
    assert flaws_of(there, Limits()).counts["area off"] == 5
    there["area_m2"] = [None, *frame["area_m2"][1:]]
    assert flaws_of(there, Limits()).places["feature"].tolist() == ["h0"]


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 9)] * 2), max_size=12))
def test_overlaps_are_those_of_a_loop(boxes: list[tuple[int, int, int, int]]) -> None:
    shapes = [shapely.box(x, y, x + w, y + h) for x, y, w, h in dict.fromkeys(boxes)]
    found = flaws_of(layer(*shapes), Limits()).places
    pairs = {
        (f"h{i}", f"h{j}") for j, b in enumerate(shapes) for i, a in enumerate(shapes[:j]) if a.intersection(b).area
    }
    assert set(zip(found["feature"], found["other"], strict=True)) == pairs


def test_axes_the_wrong_way_round() -> None:
    frame = layer(*HOUSES)
    exchanged = frame.set_geometry(shapely.transform(frame.geometry.to_numpy(), lambda xy: xy[:, ::-1])).set_crs(32645)
    assert flaws_of(exchanged, Limits()).counts["axis order"] == 1
    assert flaws_of(frame.to_crs(4326), Limits()).counts["axis order"] == 0
    lonlat = gpd.GeoDataFrame(geometry=[shapely.box(-33.9, 151.1, -33.8, 151.2)], crs=4326)
    assert flaws_of(lonlat, Limits()).counts["axis order"] == 1


def test_a_crs_member_is_told_and_believed(tmp_path: Path) -> None:
    layer(*HOUSES).to_file(tmp_path / "utm.geojson")
    assert "crs" in json.loads((tmp_path / "utm.geojson").read_text("utf-8"))
    assert {k: n for k, n in check(tmp_path / "utm.geojson").counts.items() if n} == {"crs member": 1}
    write_geojson(layer(*HOUSES, crs_=["crs"] * 5), tmp_path / "a.geojson")
    assert sum(check(tmp_path / "a.geojson").counts.values()) == 0
    told = json.loads((tmp_path / "a.geojson").read_text("utf-8"))
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    (tmp_path / "a.geojson").write_text(json.dumps({**told, "crs": crs}), encoding="utf-8")
    assert check(tmp_path / "a.geojson").counts["crs member"] == 1, "behind its features"


def test_what_has_no_crs_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="crs"):
        gpd.GeoDataFrame(geometry=HOUSES).to_file(tmp_path / "a.fgb")
    with pytest.raises(OptionError, match=r"a\.fgb: names no CRS, .* assign one"):
        check(tmp_path / "a.fgb")


def test_a_ring_that_is_not_closed_is_told(tmp_path: Path) -> None:
    open_ring = {"type": "Polygon", "coordinates": [[[85.5, 27.6], [85.6, 27.6], [85.6, 27.7], [85.5, 27.7]]]}
    feature = {"type": "Feature", "properties": {}, "geometry": open_ring}
    text = json.dumps({"type": "FeatureCollection", "features": [feature]})
    (tmp_path / "a.geojson").write_text(text, encoding="utf-8")
    with (
        pytest.warns(RuntimeWarning, match="Non closed ring"),  # GDAL's
        pytest.raises(OptionError, match=r"a\.geojson: has a geometry that is none: .* the last of which is its first"),
    ):
        check(tmp_path / "a.geojson")


def test_lines_are_no_slivers() -> None:
    lines = layer(shapely.LineString([(0, 0), (10, 0), (10, 10)]), shapely.LineString([(5, -5), (5, 5)]))
    assert sum(flaws_of(lines, Limits()).counts.values()) == 0


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".parquet", ".fgb"])
def test_the_command(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["geoseg", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().out
        return 0, capsys.readouterr().out

    write_layer(layer(*HOUSES), tmp_path / f"sound{suffix}")
    assert call("check", tmp_path / f"sound{suffix}") == (0, "5 features, no flaws.\n")
    shapes = [*HOUSES, *FLAWED["overlap"], *FLAWED["sliver"]]
    write_layer(layer(*shapes), tmp_path / f"a{suffix}")
    status, told = call("check", tmp_path / f"a{suffix}", "--out", tmp_path / f"flaws{suffix}")
    assert status == 3
    assert [line.split()[:2] for line in told.splitlines()[:3]] == [
        ["1", "overlap"],
        ["1", "sliver"],
        ["7", "features,"],
    ]
    places = read_layer(tmp_path / f"flaws{suffix}").to_crs(32645)
    assert sorted(places["flaw"]) == ["overlap", "sliver"]
    assert places.distance(layer(*HOUSES).union_all()).min() < 0.1
    assert call("check", tmp_path / f"a{suffix}", "--overlap", "50", "--sliver", "0.01")[0] == 0
    assert all(kind in call("check", "--help")[1] for kind in KINDS)
