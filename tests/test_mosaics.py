"""Several scenes as one: cut into pieces, a scene gives the same map; where pieces overlap, one rule decides."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.merge
from click.testing import CliRunner
from conftest import BANEPA, chunks_of, write_tif
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

import geoseg
from geoseg.archive import RunJob, plan_archive, run_archive
from geoseg.cli import cli
from geoseg.errors import OptionError, OutputError, SceneError
from geoseg.io import grids
from geoseg.io.mosaics import is_mosaic, read_from, written
from geoseg.io.remote import differs, state_of_scene
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.planned import SegmentJob, plan
from geoseg.window import Window
from geoseg.work import SceneOrder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from geoseg.catalog import Scene

ROWS, COLS = 150, 200
RGB = ("red", "green", "blue")
PIECES = (Window(0, 90, 0, 120), Window(0, 80, 100, 200), Window(70, 150, 0, 130), Window(60, 150, 90, 200))
"""They overlap, and cover all."""


def picture(dtype: str = "uint8", seed: int = 1) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    blocks = rng.random((3, -(-ROWS // 8), -(-COLS // 8))).repeat(8, 1).repeat(8, 2)[:, :ROWS, :COLS]
    values = blocks * 180 + rng.random((3, ROWS, COLS)) * 74 + 1
    values[:, 40:80, 110:150] = 0
    return (values * (1 if dtype == "uint8" else 200)).astype(dtype)


def at(window: Window, transform: rasterio.Affine = BANEPA) -> rasterio.Affine:
    return transform @ rasterio.Affine.translation(window.col_start, window.row_start)


def cut(values: NDArray[Any], folder: Path, pieces: tuple[Window, ...] = PIECES, **profile: Any) -> list[Path]:
    """A file for each piece, with 0 for no data."""
    return [
        write_tif(folder / f"{k}.tif", values[:, *piece.slices], transform=at(piece), nodata=0, **profile)
        for k, piece in enumerate(pieces)
    ]


def dated(path: Path, when: str) -> Path:
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME=when)
    return path


def whole_of(scene: Scene, bands: tuple[int, ...] = (1, 2, 3)) -> Any:
    return open_source(scene, bands, estimate_stretch(scene, bands)).read(Window.of_shape(scene.shape))


def labels_of(folder: Path) -> NDArray[np.uint8]:
    with rasterio.open(folder / "labels.tif") as dataset:
        return dataset.read(1)


# --- the same as the whole


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_pieces_of_a_scene_are_that_scene(tmp_path: Path, dtype: str) -> None:
    values = picture(dtype)
    how = {} if dtype == "uint8" else {"photometric": "MINISBLACK"}
    whole = open_scene(write_tif(tmp_path / "whole.tif", values, nodata=0, **how))
    scene = open_scene(cut(values, tmp_path / "tiles", **how))
    assert scene.shape == whole.shape
    np.testing.assert_allclose(scene.geobox.affine, whole.geobox.affine, atol=1e-6)
    assert estimate_stretch(scene, (1, 2, 3)) == estimate_stretch(whole, (1, 2, 3))
    one, other = whole_of(scene), whole_of(whole)
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.values[:, one.valid], other.values[:, one.valid])


@chunks_of(64)
def test_the_map_of_pieces_is_that_of_the_whole(tmp_path: Path, tiny_model: Path) -> None:
    values = picture()
    whole = write_tif(tmp_path / "whole.tif", values, nodata=0)
    cut(values, tmp_path / "tiles")
    maps = {
        name: geoseg.segment(scene, "buildings", tmp_path / "out", model=str(tiny_model), tile=tile)
        for name, scene, tile in (("whole", whole, None), ("tiles", f"mosaic:{tmp_path / 'tiles'}", 64))
    }
    assert labels_of(maps["tiles"].folder).tobytes() == labels_of(maps["whole"].folder).tobytes()
    assert maps["tiles"].folder.name == "tiles"
    assert len(maps["tiles"].footprints) == len(maps["whole"].footprints) > 0
    item = maps["tiles"].item
    sources = [link["href"] for link in item["links"] if link["rel"] == "derived_from"]
    assert [href for href in sources if href.endswith(".tif")] == [f"../../tiles/{k}.tif" for k in range(4)]


def test_a_real_scene_in_four_files_gives_the_map_of_the_whole(
    shared_data: Path, tmp_path: Path, tiny_model: Path
) -> None:
    with rasterio.open(shared_data / "banepa" / "labelled_train.tif") as dataset:
        values = dataset.read([1, 2, 3], window=rasterio.windows.Window(500, 700, 300, 280))
        place, crs = dataset.transform @ rasterio.Affine.translation(500, 700), dataset.crs
    pieces = (Window(0, 150, 0, 160), Window(0, 140, 130, 300), Window(120, 280, 0, 170), Window(135, 280, 150, 300))
    whole = write_tif(tmp_path / "whole.tif", values, crs, place)
    parts = [
        write_tif(tmp_path / f"{k}.tif", values[:, *piece.slices], crs, at(piece, place))
        for k, piece in enumerate(pieces)
    ]
    one, other = (
        geoseg.segment(scene, "buildings", tmp_path / "out", model=str(tiny_model)) for scene in (whole, parts)
    )
    assert labels_of(one.folder).tobytes() == labels_of(other.folder).tobytes()


@pytest.mark.parametrize("method", ["first", "last"])
def test_overlaps_are_merged_as_rasterio_does(tmp_path: Path, method: str) -> None:
    paths = []
    for k, piece in enumerate(PIECES):
        values = picture(seed=k + 1)[:, *piece.slices]
        values[:, np.random.default_rng(k).random(piece.shape) < 0.3] = 0
        paths.append(write_tif(tmp_path / f"{k}.tif", values, transform=at(piece), nodata=0))
    merged, place = rasterio.merge.merge(paths, method=method)
    scene = open_scene(paths if method == "first" else paths[::-1])
    np.testing.assert_allclose(scene.geobox.affine, place, atol=1e-6)
    raster = whole_of(scene)
    np.testing.assert_array_equal(raster.valid, (merged != 0).any(axis=0))
    np.testing.assert_array_equal(raster.values, merged)


# --- the law


@pytest.fixture(scope="module")
def two_zones(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Neighbours in two UTM zones, the second of coarser pixels, on a third grid; both with holes."""
    folder = tmp_path_factory.mktemp("zones")
    east = rasterio.Affine(10, 0, 205_000, 0, -10, 3_100_000)
    x, y = Transformer.from_crs(32645, 32644, always_xy=True).transform(205_000, 3_100_000)
    west = rasterio.Affine(20, 0, round(x) - 2_800, 0, -20, round(y) + 500)
    paths = [
        write_tif(folder / "a.tif", picture(seed=1), "EPSG:32645", east, nodata=0),
        write_tif(folder / "b.tif", picture(seed=2), "EPSG:32644", west, nodata=0),
    ]
    return open_scene(paths, crs="EPSG:3857", resolution=9)


@settings(max_examples=20)
@given(st.data())
def test_a_window_is_that_part_of_the_whole(two_zones: Scene, data: st.DataObject) -> None:
    whole = whole_of(two_zones)
    (a, b), (rows, cols) = (read_alone(two_zones, k) for k in (0, 1)), two_zones.shape
    assert (a & b).any()
    assert (a & ~b).any()
    assert (b & ~a).any()
    np.testing.assert_array_equal(whole.valid, a | b)
    row, col = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, cols - 1))
    window = Window(row, data.draw(st.integers(row + 1, rows)), col, data.draw(st.integers(col + 1, cols)))
    raster = open_source(two_zones, (1, 2, 3)).read(window)
    np.testing.assert_array_equal(raster.values, whole.values[:, *window.slices])
    np.testing.assert_array_equal(raster.valid, whole.valid[window.slices])


def read_alone(scene: Scene, part: int) -> NDArray[np.bool_]:
    return whole_of(replace(scene, parts=scene.parts[part : part + 1])).valid


def test_a_mosaic_goes_on_across_the_antimeridian(tmp_path: Path) -> None:
    place = rasterio.Affine(1e-4, 0, 179.99, 0, -1e-4, 52)
    values = picture()
    beyond = rasterio.Affine.translation(-360, 0) @ at(Window(0, 1, 100, 101), place)
    paths = [
        write_tif(tmp_path / "west.tif", values[:, :, :100], "EPSG:4326", place, nodata=0),
        write_tif(tmp_path / "east.tif", values[:, :, 100:], "EPSG:4326", beyond, nodata=0),
    ]
    scene = open_scene(paths)
    assert scene.shape == (ROWS, COLS)
    np.testing.assert_array_equal(whole_of(scene).values, values)
    aside = open_scene(paths, crs="EPSG:32601")
    assert aside.shape[1] < 3 * COLS
    assert whole_of(aside).valid.mean() > 0.6


def test_the_grid_is_that_of_the_finest(tmp_path: Path) -> None:
    paths = [
        write_tif(tmp_path / "coarse.tif", picture(), transform=BANEPA @ rasterio.Affine.scale(2)),
        write_tif(tmp_path / "fine.tif", picture(), transform=at(Window(0, 1, 0, 1))),
    ]
    scene = open_scene(paths)
    assert scene.shape == (2 * ROWS, 2 * COLS)
    assert scene.geobox.resolution.x == pytest.approx(0.3)
    assert open_scene(paths, resolution=0.5).geobox.resolution.x == 0.5


def test_only_files_that_a_window_meets_are_opened_and_few_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grids, "OPEN_AT_ONCE", 2)
    source = open_source(open_scene(cut(picture(), tmp_path)), (1, 2, 3))
    source.read(Window(0, 20, 0, 20))
    assert [part.source._dataset is not None for part in source._parts] == [True, False, False, False]
    whole = source.read(Window(0, ROWS, 0, COLS))
    assert sum(part.source._dataset is not None for part in source._parts) == 2
    np.testing.assert_array_equal(whole.values, picture())
    source.close()
    assert not any(part.source._dataset for part in source._parts)


# --- which goes first


@pytest.mark.parametrize(("order", "wins"), [("first", 1), ("newest", 2), ("oldest", 3)])
def test_the_order_decides_where_scenes_overlap(tmp_path: Path, order: Any, wins: int) -> None:
    paths = []
    for k, when in ((1, "2021"), (2, "2023"), (3, "2019"), (4, "2023")):
        values = np.full((3, 40, 50), k, np.uint8)
        values[:, :, :k] = 0
        paths.append(dated(write_tif(tmp_path / f"{k}.tif", values, nodata=0), f"{when}:05:06 00:00:00"))
    scene = open_scene(paths, order=order)
    raster = whole_of(scene)
    assert raster.values[0, 5, 40] == wins
    assert raster.values[0, 5, 1] == 1
    assert not raster.valid[:, 0].any()
    assert scene.datetime is None
    again = open_scene(scene.path)
    assert [part.path for part in again.parts] == [part.path for part in scene.parts]


def item(folder: Path, name: str, clouds: float | None) -> Path:
    assets = {"visual": {"href": f"./{name}.tif", "type": "image/tiff; application=geotiff", "roles": ["visual"]}}
    properties = {"datetime": "2024-05-06T07:08:09Z"} | ({} if clouds is None else {"eo:cloud_cover": clouds})
    content = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": properties,
        "links": [],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content | {"assets": assets}), encoding="utf-8")
    return path


def test_the_clearest_goes_first_as_items_tell(tmp_path: Path) -> None:
    for k, clouds in ((1, 30.0), (2, 5.5), (3, None)):
        write_tif(tmp_path / f"{k}.tif", np.full((3, 40, 50), k, np.uint8))
        item(tmp_path, str(k), clouds)
    scene = open_scene(f"mosaic-least-cloud:{tmp_path}/1.json,{tmp_path}/2.json")
    assert whole_of(scene).values[0, 5, 5] == 2
    assert scene.datetime is not None
    with pytest.raises(SceneError, match=r"3\.tif: has no STAC item that tells its cloud cover"):
        open_scene([tmp_path / "1.json", tmp_path / "3.json"], order="least-cloud")


# --- what a job knows


def test_masks_and_bands_are_those_of_all_parts(tmp_path: Path) -> None:
    paths = cut(picture(), tmp_path)
    there = np.ones((ROWS, COLS), np.uint8)
    there[:50, :60] = 0
    mask = write_tif(tmp_path / "mask" / "m.tif", there)
    asked = Asked((("red", 3), ("blue", 1)), (0.0,), str(mask))
    scene, bands = as_asked(open_scene(paths), RGB, asked)
    assert bands == (3, 2, 1)
    raster = whole_of(scene, bands)
    np.testing.assert_array_equal(raster.valid, (picture() != 0).any(axis=0) & (there == 1))
    np.testing.assert_array_equal(raster.values[:, raster.valid], picture()[::-1][:, raster.valid])
    before = state_of_scene(scene)
    assert set(before) == {"parts", "mask"}
    write_tif(mask, there[::-1])
    assert differs(before, state_of_scene(scene))


def test_one_mask_may_lie_on_some_parts_only(tmp_path: Path) -> None:
    mask = write_tif(tmp_path / "mask" / "m.tif", np.ones((ROWS, 80), np.uint8))
    scene, bands = as_asked(open_scene(cut(picture(), tmp_path)), RGB, Asked(mask=str(mask)))
    valid = whole_of(scene, bands).valid
    np.testing.assert_array_equal(valid, (picture() != 0).any(axis=0) & (np.arange(COLS) < 80))


def test_the_stretch_is_that_of_pixels_that_are_seen(tmp_path: Path) -> None:
    """What lies below another scene has no say in it."""
    paths = [
        write_tif(tmp_path / f"{k}.tif", picture("uint16") * k, nodata=0, photometric="MINISBLACK") for k in (1, 3)
    ]
    alone, both = (open_scene(each) for each in (paths[0], paths))
    assert estimate_stretch(both, (1, 2, 3)) == estimate_stretch(alone, (1, 2, 3))


def test_clouds_of_one_date_are_filled_by_the_next(tmp_path: Path) -> None:
    for k, cloudy in ((1, slice(0, 60)), (2, slice(40, 90))):
        folder = tmp_path / f"S2_{k}"
        codes = np.full((ROWS, COLS), 4, np.uint8)
        codes[cloudy] = 9
        for band in ("B02", "B03", "B04"):
            write_tif(folder / f"T45_{band}.tif", np.full((ROWS, COLS), 100 * k, np.uint16))
        write_tif(folder / "T45_SCL.tif", codes)
    scene, bands = as_asked(open_scene(f"mosaic:{tmp_path}"), RGB, Asked(mask="scl"))
    source = open_source(scene, bands)
    raster = source.read(Window.of_shape(scene.shape))
    np.testing.assert_array_equal(raster.values[0, :, 3], [200] * 40 + [0] * 20 + [100] * 90)
    np.testing.assert_array_equal(raster.valid[:, 3], np.arange(ROWS) // 20 != 2)
    assert all(part.source._masks for part in source._parts)
    source.close()
    assert not any(part.source._masks for part in source._parts)


def test_a_result_is_made_again_when_a_part_is_another(tmp_path: Path, tiny_model: Path) -> None:
    paths = cut(picture(), tmp_path / "tiles")
    text = f"mosaic:{tmp_path / 'tiles'}"
    job = SegmentJob(text, "buildings", tmp_path / "out", str(tiny_model))
    planned = plan(job)
    geoseg.segment(text, "buildings", tmp_path / "out", model=str(tiny_model))
    assert plan(job).complete
    write_tif(paths[2], picture()[:, *PIECES[2].slices] // 2, transform=at(PIECES[2]), nodata=0, compress="deflate")
    with pytest.raises(OutputError, match="holds results of another job"):
        plan(job)
    with pytest.raises(SceneError, match="has changed since the run was planned"):
        SceneOrder.of(planned).planned()
    paths[2].unlink()
    with pytest.raises(OutputError, match="holds results of another job"):
        plan(job)
    with pytest.raises(SceneError, match="is not there any more"):
        SceneOrder.of(planned).planned()


# --- jobs and the command line


def test_all_scenes_of_a_job_are_one(tmp_path: Path, tiny_model: Path) -> None:
    values = picture()
    for k, path in enumerate(cut(values, tmp_path / "tiles")):
        dated(path, f"202{k}:01:01 00:00:00")
    scenes = {"files": ["tiles/*.tif"], "mosaic": {"order": "newest", "id": "town"}}
    job = RunJob(product="buildings", model=str(tiny_model), scenes=scenes)
    planned = plan_archive(job, tmp_path)
    assert [entry.order.scene.id for entry in planned.entries] == ["town"]
    assert planned.entries[0].pixels == ROWS * COLS
    assert run_archive(planned).done == 1
    assert [entry.state for entry in plan_archive(job, tmp_path).entries] == ["complete"]
    whole = write_tif(tmp_path / "whole.tif", values, nodata=0)
    other = geoseg.segment(whole, "buildings", tmp_path / "other", model=str(tiny_model))
    assert labels_of(tmp_path / "maps" / "town").tobytes() == labels_of(other.folder).tobytes()


def test_a_job_makes_no_mosaic_where_a_scene_is_missing(tmp_path: Path, tiny_model: Path) -> None:
    cut(picture(), tmp_path)
    scenes = {"files": ["*.tif", "5.tif"], "mosaic": {}}
    planned = plan_archive(RunJob(product="buildings", model=str(tiny_model), scenes=scenes), tmp_path)
    assert not planned.entries
    assert [fault.why.partition(":")[2] for fault in planned.faults] == [" there is no such file; check the path"]
    scenes["files"] = ["*.tif"]
    scenes["mosaic"] = {"order": "newest"}
    planned = plan_archive(RunJob(product="buildings", model=str(tiny_model), scenes=scenes), tmp_path)
    assert "its date is unknown, and newest goes by it" in planned.faults[0].why
    scenes["files"] = ["mosaic:*.tif"]
    planned = plan_archive(RunJob(product="buildings", model=str(tiny_model), scenes=scenes), tmp_path)
    assert [fault.why for fault in planned.faults] == [
        "mosaic:*.tif: in a job, list its scenes, and add scenes.mosaic: {order: newest}"
    ]


def test_the_command_line_takes_a_pattern(tmp_path: Path, tiny_model: Path) -> None:
    cut(picture(), tmp_path / "north")
    words = ["--out", str(tmp_path / "out"), "--model", str(tiny_model), "--resolution", "0.4", "--crs", "EPSG:3857"]
    done = CliRunner().invoke(cli, ["segment", f"mosaic:{tmp_path}/north/*.tif", "buildings", *words])
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "out" / "north" / "labels.tif") as dataset:
        assert dataset.crs == "EPSG:3857"
        assert (dataset.read(1) != 255).mean() > 0.8


# --- what is refused


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"photometric": "MINISBLACK"}, r"b\.tif: has the bands grey.*and .*a\.tif has red, green, blue; scenes of a"),
        ({"dtype": "uint16"}, r"b\.tif: has values of type uint16, and .*a\.tif of type uint8; scenes of a mosaic are"),
        (None, r"b\.tif: there is no such file; check the path"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(
    tmp_path: Path, other: dict[str, Any] | None, why: str
) -> None:
    a, b = write_tif(tmp_path / "a.tif", picture()), tmp_path / "b.tif"
    if other is not None:
        values = picture(other.pop("dtype", "uint8"))
        write_tif(b, values[:1] if other else values, **(other or {"photometric": "RGB"}))
    with pytest.raises(SceneError, match=why):
        open_scene([a, b])


def test_parts_whose_numbers_mean_something_else_are_refused(tmp_path: Path) -> None:
    a, b = (write_tif(tmp_path / name, picture("uint16"), photometric="RGB") for name in ("a.tif", "b.tif"))
    for path, offsets in ((a, (0, 0, 0)), (b, (-0.1, -0.1, -0.1))):
        with rasterio.open(path, "r+") as dataset:
            dataset.scales, dataset.offsets = (0.0001,) * 3, offsets
    with pytest.raises(SceneError, match=r"b\.tif: has the scales and offsets 0.0001 -0.1, .*a\.tif has 0.0001 \+0, "):
        open_scene([a, b])


def test_scenes_far_apart_are_no_mosaic(tmp_path: Path) -> None:
    a = write_tif(tmp_path / "a.tif", picture())
    b = write_tif(tmp_path / "b.tif", picture(), transform=rasterio.Affine(0.3, 0, 500_000, 0, -0.3, 9_000_000))
    with pytest.raises(OptionError, match=r"a\.tif would have .* pixels; choose .* closer together"):
        open_scene([a, b])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mosaic:{0}/none", r"none: there is no such file"),
        ("mosaic:{0}/empty", r"empty: holds no scenes"),
        ("mosaic:{0}/*.img", r"\*\.img: holds no scenes"),
    ],
)
def test_folders_and_patterns_without_scenes_are_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match=why):
        open_scene(text.format(tmp_path))


def test_an_order_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="order 'best': is none; choose one of first, newest"):
        open_scene([tmp_path / "a.tif"], order="best")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(OptionError, match="order 'best': is none"):
        open_scene(f"mosaic-best:{tmp_path}")
    with pytest.raises(SceneError, match="none with a semicolon"):
        open_scene([tmp_path / "a;b.tif"])


@given(
    st.lists(st.sampled_from(["a.tif", "b/c.tif", "red=x.tif,green=y.tif", "i.json#B04,B03"]), min_size=2),
    st.sampled_from(["first", "newest", "oldest", "least-cloud"]),
)
def test_what_is_written_is_read(paths: list[str], order: Any) -> None:
    text = written(paths, order)
    assert is_mosaic(text)
    assert read_from(text) == (order, None, paths)
