"""`Result.footprints_in`: the footprints of a box, and nothing read of what lies elsewhere."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

import geoseg
from geoseg.errors import OptionError, OutputError
from geoseg.io import geoparquet
from geoseg.io.geoparquet import write_parquet

if TYPE_CHECKING:
    from pathlib import Path

ZONE = "EPSG:32645"


def written(frame: gpd.GeoDataFrame, folder: Path, rows: int = 16) -> geoseg.Result:
    """A folder with these footprints, in row groups of so many rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(geoparquet, "ROWS_TOGETHER", rows)
        write_parquet(frame, folder / "footprints.parquet")
    return geoseg.Result(folder)


def squares(count: int, seed: int = 0) -> gpd.GeoDataFrame:
    """Squares from north to south, as footprints are sorted."""
    x, y = np.random.default_rng(seed).uniform(0, 1000, (2, count))
    y = np.sort(y)[::-1]
    boxes = shapely.box(334_000 + x, 3_056_000 + y, 334_008 + x, 3_056_008 + y)
    return gpd.GeoDataFrame({"id": [f"r{n}c0" for n in range(count)], "area_m2": 64.0}, geometry=boxes, crs=ZONE)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> geoseg.Result:
    return written(squares(500), tmp_path_factory.mktemp("many"))


sides = st.tuples(st.floats(-50, 1050), st.floats(-50, 1050)).map(sorted)


@given(sides, sides)
def test_it_is_what_meets_the_box(many: geoseg.Result, x: list[float], y: list[float]) -> None:
    box = (334_000 + x[0], 3_056_000 + y[0], 334_000 + x[1], 3_056_000 + y[1])
    every = many.footprints
    west, south, east, north = every.bounds.to_numpy().T
    meets = (west <= box[2]) & (east >= box[0]) & (south <= box[3]) & (north >= box[1])
    assert list(many.footprints_in(box)["id"]) == list(every["id"][meets])


def test_the_box_may_be_in_another_crs(many: geoseg.Result) -> None:
    every = many.footprints
    inner = every[every["id"] == "r250c0"].to_crs(4326)
    found = many.footprints_in(tuple(inner.total_bounds), "EPSG:4326")
    assert "r250c0" in set(found["id"])
    assert found.crs == every.crs
    assert len(found) < 12


def test_columns_may_be_fewer(many: geoseg.Result) -> None:
    box = tuple(many.footprints.total_bounds)
    assert list(many.footprints_in(box, columns=["area_m2"]).columns) == ["area_m2", "geometry"]
    assert list(many.footprints_in(box, columns=[]).columns) == ["geometry"]
    assert list(many.footprints_in(box).columns) == list(many.footprints.columns)


@pytest.mark.parametrize("box", [(1, 0, 0, 1), (0, 1, 1, 0), (0, 0, float("nan"), 1), (0, 0, float("inf"), 1)])
def test_what_is_no_box_is_refused(many: geoseg.Result, box: tuple[float, float, float, float]) -> None:
    with pytest.raises(OptionError, match="west, south, east, north"):
        many.footprints_in(box)


def test_what_else_is_refused(many: geoseg.Result, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="EPSG:nowhere"):
        many.footprints_in((0, 0, 1, 1), "EPSG:nowhere")
    with pytest.raises(OptionError, match="no column colour; there are id, area_m2"):
        many.footprints_in((0, 0, 1, 1), columns=["colour"])
    with pytest.raises(OutputError, match=r"footprints\.parquet: cannot be read"):
        geoseg.Result(tmp_path).footprints_in((0, 0, 1, 1))


def spoil(path: Path, kept: set[int]) -> int:
    """Overwrite all row groups but some; how many bytes that were."""
    groups = [pq.read_metadata(path).row_group(n) for n in range(pq.read_metadata(path).num_row_groups)]
    spoilt = 0
    with path.open("r+b") as file:
        for number, group in enumerate(groups):
            columns = [group.column(n) for n in range(group.num_columns)]
            for column in columns if number not in kept else []:
                file.seek(min(filter(None, (column.dictionary_page_offset, column.data_page_offset))))
                file.write(b"\xff" * column.total_compressed_size)
                spoilt += column.total_compressed_size
    return spoilt


def test_only_a_part_of_real_footprints_is_read(shared_data: Path, tmp_path: Path) -> None:
    """The 939 drawn buildings of Banepa, 40 times beside each other: what lies elsewhere may be damaged, then."""
    drawn = gpd.read_file(shared_data / "banepa" / "footprints_train.geojson")[["geometry"]]
    width, height = np.ptp(drawn.total_bounds[[0, 2]]) + 5, np.ptp(drawn.total_bounds[[1, 3]]) + 5
    steps = [(col * width, -row * height) for row in range(8) for col in range(5)]
    town = pd.concat([drawn.translate(*step) for step in steps], ignore_index=True)
    frame = gpd.GeoDataFrame({"id": town.index.astype(str)}, geometry=town, crs=drawn.crs)
    result = written(frame, tmp_path, 4096)
    box = tuple(drawn.translate(2 * width, -3 * height).total_bounds)
    whole = result.footprints_in(box)
    assert set(whole["id"]) == {str(n) for n in range(17 * 939, 18 * 939)}
    path = tmp_path / "footprints.parquet"
    needed = {int(n) // 4096 for n in whole["id"]}
    shutil.copy(path, tmp_path / "copy.parquet")
    assert spoil(path, needed) > 0.7 * path.stat().st_size
    assert result.footprints_in(box).equals(whole)
    with pytest.raises(OSError, match=r".+"):
        result.footprints  # noqa: B018  reading it is what is tried
