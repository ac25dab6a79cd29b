"""Pages of results: what is on them is so, what is packed can be unpacked, and no metadata get out as HTML."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import write_tif
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import geoseg
from geoseg.cli import main
from geoseg.errors import OptionError, OutputError
from geoseg.records import Listed, write_list
from geoseg.selection import Fault
from geoseg.view.facts import Map, ground_of, ground_told, proof_of, read_item, scene_below, size_histogram
from geoseg.view.overview import read_archive
from geoseg.view.pages import Detail
from geoseg.view.pictures import Imagery, confidence_picture, labels_picture, ramp, read_map
from geoseg.view.render import embedded, rendered
from geoseg.view.report import kind_of, page_of, report
from geoseg.view.shapes import columns, encoded, packed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"' {{ 7*7 }} \u2028 \ud800"


@pytest.fixture
def town(results: Path, tmp_path: Path) -> Path:
    """A copy of one scene's results that may be damaged."""
    shutil.copytree(results.parent, tmp_path / "copy")
    return tmp_path / "copy" / "maps" / "town-2024"


# --- outlines, packed


def numbers_of(data: bytes) -> list[int]:
    """Protocol buffers' varints, read as their documentation has it."""
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            found.append(value)
            value = shift = 0
    assert shift == 0
    return found


def unpacked(streams: dict[str, bytes], step: float) -> list[list[list[tuple[float, float]]]]:
    """For each polygon its rings, each a list of places."""
    rings, points, deltas = (iter(numbers_of(streams[name])) for name in ("rings", "points", "deltas"))
    x = y = 0
    polygons = []
    for count in rings:
        polygons.append([])
        for _ in range(count):
            ring = []
            for _ in range(next(points)):
                dx, dy = next(deltas), next(deltas)
                x += -(dx + 1) // 2 if dx % 2 else dx // 2
                y += -(dy + 1) // 2 if dy % 2 else dy // 2
                ring.append((x * step, y * step))
            polygons[-1].append(ring)
    assert not any(True for stream in (points, deltas) for _ in stream), "something was left"
    return polygons


@st.composite
def polygons(draw: st.DrawFn) -> Any:
    west, north = draw(st.integers(-5, 70_000)), draw(st.integers(-5, 70_000))
    wide, high = draw(st.integers(3, 3000)), draw(st.integers(3, 40))
    box = shapely.box(west, north, west + wide, north + high)
    hole = shapely.box(west + 1, north + 1, west + 2, north + 2)
    kind = draw(st.sampled_from(["box", "hole", "two"]))
    if kind == "two":
        return shapely.MultiPolygon([box, shapely.box(west - 9, north - 9, west - 7, north - 6)])
    return box - hole if kind == "hole" else box


@given(st.lists(polygons(), max_size=5), st.sampled_from([0.5, 1.0]))
def test_what_is_packed_can_be_unpacked(shapes: list[Any], step: float) -> None:
    geometry = np.array(shapes, object)
    found = unpacked(encoded(geometry, step), step)
    assert len(found) == len(shapes)
    for rings, shape in zip(found, shapes, strict=True):
        parts = shapely.get_parts(shape)
        again = iter(rings)
        for part in parts:  # shells turn one way and holes the other, so that outlines may overlap in one path
            shell, *holes = (next(again) for _ in shapely.get_rings(part))
            assert shapely.is_ccw(shapely.linearrings(shell))
            assert not any(shapely.is_ccw(shapely.linearrings(hole)) for hole in holes)
            assert shapely.equals(shapely.Polygon(shell, holes), part)
            assert len(shell) == len(part.exterior.coords) - 1
        assert next(again, None) is None


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_numbers_of_any_size_come_back(numbers: list[int]) -> None:
    from geoseg.view.shapes import varints

    assert numbers_of(varints(np.array(numbers, np.int64))) == numbers


def test_outlines_lie_in_pixels_of_the_grid() -> None:
    grid = GeoBox((100, 200), Affine(0.5, 0, 1000, 0, -0.5, 5000), "EPSG:32645")
    frame = gpd.GeoDataFrame({"class": ["a"]}, geometry=[shapely.box(1005, 4990, 1010, 4995)], crs=32645)
    layer = packed(frame, grid, {"a": "#123456"})
    streams = {name: base64.b64decode(layer[name]) for name in ("rings", "points", "deltas")}
    (((*corners,),),) = unpacked(streams, layer["step"])
    assert set(corners) == {(10, 10), (20, 10), (20, 20), (10, 20)}
    assert layer["colours"]["a"] == "#123456"


def test_too_many_outlines_are_rounded_and_then_the_smallest_left_out() -> None:
    grid = GeoBox((1000, 1000), Affine(1, 0, 0, 0, -1, 1000), "EPSG:32645")
    boxes = [shapely.box(20 * i, 100, 20 * i + 2 + i, 110).segmentize(1) for i in range(40)]
    frame = gpd.GeoDataFrame({"id": range(40)}, geometry=boxes, crs=32645)
    whole = packed(frame, grid, {})
    assert (whole["step"], whole["count"], whole["left_out"]) == (0.5, 40, 0)
    some = packed(frame, grid, {}, most=10)
    assert (some["count"], some["left_out"], list(some["kept"])) == (10, 30, list(range(30, 40)))
    few = packed(frame, grid, {}, budget=150)
    size = sum(len(few[name]) for name in ("rings", "points", "deltas"))
    assert few["count"] + few["left_out"] == 40
    assert size <= 160
    assert list(few["kept"]) == list(range(40 - few["count"], 40)), "the largest stay"


def test_columns_are_numbers_categories_texts_or_one_value() -> None:
    frame = gpd.pd.DataFrame(
        {
            "class": ["house", "shed", "house", None],
            "area_m2": [1.0, 2.123456, np.nan, 4.0],
            "touches": [True, False, True, True],
            "id": ["a", "b", "c", "d"],
            "scene": ["town"] * 4,
        }
    )
    told = {column["name"]: column for column in columns(frame)}
    assert told["area_m2"]["values"] == [1, 2.1235, None, 4]
    assert told["touches"] == {"name": "touches", "kind": "category", "names": ["yes", "no"], "codes": [0, 1, 0, 0]}
    assert told["id"] == {"name": "id", "kind": "text", "values": ["a", "b", "c", "d"]}
    assert told["scene"] == {"name": "scene", "kind": "same", "value": "town"}
    assert told["class"]["kind"] == "text"
    assert told["class"]["values"] == ["house", "shed", "house", ""]


# --- nothing gets out


class Looked(HTMLParser):
    """What a page holds, as a parser that knows nothing of us has it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._within = tag
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._within, []).append(data)

    def handle_endtag(self, _tag: str) -> None:
        self._within = ""

    @property
    def data(self) -> Any:
        """What the page gives its script."""
        return json.loads(next(text for text in self.texts["script"] if text.startswith("{")))


def check_harmless(text: str) -> Looked:
    page = Looked(text)
    assert page.tags.count("script") == 2, "the data and our own"
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] == "style"], "the policy forbids them"
    for tag, name, value in page.attributes:
        if name in {"href", "src", "action"}:
            assert re.fullmatch(
                r"#map|data:(image/(png|webp);base64,[\w+/=]+)?,?|[\w.%-]+/report\.html", value or ""
            ), (tag, value)
    assert "img" not in page.tags
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    return page


@given(
    st.recursive(
        st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
    )
)
def test_embedded_data_cannot_end_its_element(content: Any) -> None:
    text = str(embedded(content))
    assert not set("<>&") & set(text)
    assert json.loads(text) == content


def make_hostile(folder: Path) -> None:
    """Put HTML wherever a result's metadata has text."""
    item = read_item(folder)
    item["id"] = HOSTILE
    item["properties"] |= {"title": HOSTILE, "processing:lineage": HOSTILE, "license": HOSTILE, "created": HOSTILE}
    item["properties"]["processing:software"] = {HOSTILE: HOSTILE}
    item["properties"]["geoseg:model"] = {"name": HOSTILE, "sha256": HOSTILE}
    item["properties"]["geoseg:parameters"][HOSTILE] = [HOSTILE, {HOSTILE: None}]
    item["properties"]["geoseg:parameters"]["nested"] = {HOSTILE: HOSTILE}
    for asset in item["assets"].values():
        for told in asset.get("classification:classes", []):
            told |= {"name": HOSTILE + str(told["value"]), "color_hint": '"><script>'}
    (folder / "item.json").write_text(json.dumps(item), encoding="utf-8")
    frame = gpd.read_parquet(folder / "footprints.parquet")
    frame["class"] = HOSTILE.replace("\ud800", "")
    frame['<b onclick="x">'] = [f"{HOSTILE[:-1]}{i}" for i in range(len(frame))]
    frame.to_parquet(folder / "footprints.parquet")
    with (folder / "ledger.jsonl").open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps({"failed": [0, 9**6, 0, 9], "why": HOSTILE, "worker": HOSTILE}) + "\n")


def test_metadata_reach_a_page_as_text_only(town: Path) -> None:
    make_hostile(town)
    page = check_harmless(report(town).read_text(encoding="utf-8"))
    everything = "".join(text for tag, texts in page.texts.items() if tag != "script" for text in texts)
    assert HOSTILE[:40] in everything
    assert "49" not in page.texts["h1"][0], "no template either"
    names = [
        column["name"] for layer in page.data["layers"] if layer["kind"] == "shapes" for column in layer["columns"]
    ]
    assert '<b onclick="x">' in names


def test_metadata_reach_the_page_of_an_archive_as_text_only(town: Path) -> None:
    out = town.parent
    make_hostile(town)
    write_list(out, {"title": HOSTILE}, out, [Listed(HOSTILE, HOSTILE, (9, 9))], [Fault(HOSTILE, HOSTILE)])
    page = check_harmless(report(out).read_text(encoding="utf-8"))
    assert HOSTILE[:40] in "".join(page.texts["td"])


def test_a_page_allows_nothing_but_its_own(results: Path) -> None:
    import hashlib

    text = rendered(page_of(results / "town-2024", Detail()))
    page = Looked(text)
    policy = next(
        value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value
    )
    told = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert told["default-src"] == "'none'"
    for kind in ("script", "style"):
        (own,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert told[f"{kind}-src"] == f"'sha256-{digest}'"
    assert told["img-src"] == "data:"
    assert "http" not in policy


# --- numbers


def test_a_page_says_what_the_files_hold(results: Path) -> None:
    folder = results / "town-2024"
    page, frame = page_of(folder, Detail(worst=5)), gpd.read_parquet(folder / "footprints.parquet")
    numbers = dict(page.numbers)
    assert numbers["Footprints"] == f"{len(frame):,}"
    assert numbers["Has data"] == "95.0%", "one row of cells of twenty is nodata"
    with rasterio.open(folder / "labels.tif") as dataset:
        labels = dataset.read(1)
    hectares = {area.name: area.value for area in page.areas}
    for value, name in enumerate(("background", "building")):
        assert hectares[name] == pytest.approx((labels == value).sum() * 0.09 / 1e4, rel=2e-3)  # UTM's scale
    assert sum(area.share for area in page.areas) == pytest.approx(1)
    assert sum(page.histograms[1].counts) == len(frame)
    sizes = page.histograms[0]
    assert sum(sizes.counts) + sizes.lowest + sizes.highest == len(frame)
    assert [float(thumb.title) for thumb in page.worst] == sorted(round(c, 2) for c in frame["confidence"])[:5]
    assert all(check.holds for check in page.proof.checks)
    assert page.proof.hashed
    assert page.work.pixels == 152 * 240


def test_areas_are_those_of_the_ground_whatever_the_grid(town: Path) -> None:
    with rasterio.open(town / "labels.tif") as dataset:
        labels = dataset.read(1)
    write_tif(town / "labels.tif", labels, "EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 60), nodata=255)
    ground = ground_of(Map.of(town))
    square = (1e-5 * 111_412) * (1e-5 * 55_800)  # metres along a degree at 60 degrees north, by the books
    assert ground.hectares == pytest.approx(152 * 240 * square / 1e4, rel=1e-3)


def test_an_overview_gives_about_the_same_areas(results: Path) -> None:
    mapped = Map.of(results / "town-2024")
    whole, some = ground_of(mapped), ground_of(mapped, 120)
    assert some.hectares == pytest.approx(whole.hectares, rel=0.02)
    assert [s.share for s in some.classes] == pytest.approx([s.share for s in whole.classes], abs=0.02)


def test_an_item_tells_the_areas_that_are_counted(town: Path) -> None:
    told, counted = ground_told(Map.of(town)), ground_of(Map.of(town))
    assert told is not None
    assert told.seen == counted.seen
    assert told.hectares == pytest.approx(counted.hectares, rel=1e-5)  # the item has square metres to a hundredth
    assert [(s.name, s.colour) for s in told.classes] == [(s.name, s.colour) for s in counted.classes]
    assert [s.value for s in told.classes] == pytest.approx([s.value for s in counted.classes], rel=1e-5)
    assert [s.share for s in told.classes] == pytest.approx([s.share for s in counted.classes], rel=1e-5)
    item = read_item(town)
    item["properties"]["geoseg:counts"] |= {"object_pixels": 0, "object_area_m2": 0.0}
    bare = ground_told(Map(town, item, Map.of(town).grid))
    assert bare is not None
    assert bare.hectares == pytest.approx(counted.hectares, rel=1e-6)
    assert [s.share for s in bare.classes] == [1.0, 0.0]
    item["assets"]["labels"]["classification:classes"].append({"value": 2, "name": "shed"})
    assert ground_told(Map(town, item, Map.of(town).grid)) is None
    assert ground_told(Map(town, {**item, "properties": {}}, Map.of(town).grid)) is None


def test_an_archive_of_buildings_is_told_without_its_rasters(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [ground_of(Map.of(entry.mapped.folder)).hectares for entry in read_archive(results).entries]
    monkeypatch.setattr("geoseg.view.facts.read_part", lambda *_: pytest.fail("a raster is read"))
    assert [entry.seen for entry in read_archive(results).entries] == pytest.approx(expected, rel=1e-5)
    assert len(expected) > 1


def test_sizes_are_counted_between_round_edges() -> None:
    sizes = size_histogram(np.array([3.0, 4, 7, 12, 12, 18, 30]))
    assert sizes.edges == (2, 5, 10, 20, 50)
    assert sizes.counts == (2, 1, 3, 1)
    assert size_histogram(np.array([np.nan])).counts == ()


def failing(folder: Path) -> list[str]:
    mapped = Map.of(folder)
    count = len(gpd.read_parquet(folder / "footprints.parquet"))
    return [check.text for check in proof_of(mapped, ground_of(mapped), count).checks if not check.holds]


def test_the_proof_finds_what_is_damaged(town: Path) -> None:
    assert failing(town) == []
    lines = (town / "ledger.jsonl").read_text().splitlines(keepends=True)
    (town / "ledger.jsonl").write_text("".join(line for line in lines if "valid_by_chunk" not in line))
    assert "0 of 1 storage chunks" in failing(town)[0]
    (town / "ledger.jsonl").write_text("".join(lines).replace('"min_area": 4.0', '"min_area": 5.0'))
    assert [text[:28] for text in failing(town)] == ["The ledger is of the same sc"]
    (town / "ledger.jsonl").write_text("".join(lines))
    content = (town / "footprints.geojson").read_bytes()
    (town / "footprints.geojson").write_bytes(content[:-3] + b"\n\n\n")
    assert ["not footprints.geojson" in text for text in failing(town)] == [True]
    (town / "footprints.geojson").write_bytes(content)
    gpd.read_parquet(town / "footprints.parquet").iloc[1:].to_parquet(town / "footprints.parquet")
    assert len(failing(town)) == 2


def test_a_failed_tile_is_told_until_it_is_done(town: Path) -> None:
    lines = (town / "ledger.jsonl").read_text()
    failed = json.dumps({"failed": [0, 160, 0, 240], "why": "the disk is gone", "worker": "w"}) + "\n"
    (town / "ledger.jsonl").write_text(lines + failed)
    assert page_of(town, Detail()).failures == ()
    first = lines.splitlines(keepends=True)[0]
    (town / "ledger.jsonl").write_text(first + failed)
    assert page_of(town, Detail()).failures == (("rows 0 to 159, columns 0 to 239", "the disk is gone"),)


# --- pictures


def decoded(data: bytes) -> NDArray[np.uint8]:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))


def test_labels_have_their_colours_and_nodata_none() -> None:
    pixels = decoded(labels_picture(np.array([[0, 1], [2, 255]], np.uint8), {0: "#000000", 1: "#e4572e"}, {0}))
    assert pixels[0, 1].tolist() == [0xE4, 0x57, 0x2E, 255]
    assert pixels[..., 3].tolist() == [[0, 255], [0, 0]], "background, what has no colour, and nodata are clear"


def test_confidence_goes_from_dark_to_light_and_nodata_is_clear() -> None:
    codes = np.array([[0, 125, 250, 255]], np.uint8)
    pixels = decoded(confidence_picture(codes, None))
    assert pixels[0, 3, 3] == 0
    assert pixels[0, 0, :3].tolist() == ramp()[0].tolist()
    assert pixels[0, 2, :3].tolist() == ramp()[255].tolist()
    light = ramp().astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all(), "lightness alone tells which is more"


def test_a_scene_is_shown_where_it_lies(results: Path) -> None:
    mapped = Map.of(results / "town-2024")
    imagery = scene_below(mapped).imagery
    assert imagery is not None
    with rasterio.open(results.parent / "imagery" / "town-2024.tif") as dataset:
        values = dataset.read()
    whole = imagery.overview(500)
    assert np.array_equal(whole.values[:, 8:], values[:, 8:])
    assert not whole.valid[:8].any()
    assert whole.valid[8:].all()
    half = imagery.overview(120)
    means = values.reshape(3, 80, 2, 120, 2).mean((2, 4))
    assert np.abs(half.values[:, 5:].astype(float) - means[:, 5:]).max() <= 1
    assert labels_shape(results) == half.valid.shape


def labels_shape(results: Path) -> tuple[int, ...]:
    return read_map(results / "town-2024" / "labels.tif", 120).shape


def test_sixteen_bits_and_one_band_are_shown(tmp_path: Path) -> None:
    values = np.arange(100 * 120, dtype=np.uint16).reshape(100, 120)
    scene = geoseg.open_scene(write_tif(tmp_path / "pan.tif", values))
    shown = Imagery(scene, {"stretch": {"low": [0.0] * 3, "high": [12_000.0] * 3}}).overview(500)
    assert shown.values[0, -1, -1] in {254, 255}
    assert Imagery(scene, {}).overview(50).values.shape == (3, 34, 40)


# --- which scene is opened


@pytest.mark.parametrize(
    "href", ["https://example.org/a.tif", "/vsicurl/https://example.org/a.tif", "s3://bucket/a.tif", "<VRTDataset/>"]
)
def test_addresses_in_an_item_are_not_followed(town: Path, href: str) -> None:
    relink(town, href)
    below = scene_below(Map.of(town))
    assert below.imagery is None
    assert "is not shown" in below.why


def relink(folder: Path, href: str) -> None:
    item = read_item(folder)
    next(link for link in item["links"] if link["type"] == "image/tiff")["href"] = href
    (folder / "item.json").write_text(json.dumps(item), encoding="utf-8")


def test_a_vrt_in_an_item_is_not_followed_but_may_be_named(town: Path) -> None:
    vrt = town.parent / "town.vrt"
    source = town.parent.parent / "imagery" / "town-2024.tif"
    with rasterio.open(source) as dataset:
        rasterio.shutil.copy(dataset, vrt, driver="VRT")
    relink(town, "../town.vrt")
    below = scene_below(Map.of(town))
    assert below.imagery is None
    assert "may name any file" in below.why
    assert scene_below(Map.of(town), vrt).imagery is not None


def test_a_scene_outside_of_the_folders_that_are_allowed_is_not_shown(town: Path) -> None:
    assert scene_below(Map.of(town)).imagery is not None
    assert scene_below(Map.of(town), roots=[town]).imagery is None
    assert scene_below(Map.of(town), roots=[town.parent.parent / "imagery"]).imagery is not None


def test_a_scene_that_is_another_file_now_is_not_shown(town: Path) -> None:
    source = town.parent.parent / "imagery" / "town-2024.tif"
    with source.open("ab") as stream:
        stream.write(b"more")
    page = page_of(town, Detail())
    assert any("is not the file that was mapped" in note for note in page.notes)
    assert [layer["id"] for layer in page.viewer["layers"]] == ["labels", "confidence", "footprints"]
    assert page.viewer["layers"][0]["visible"]


# --- change and archives


def test_a_change_is_shown_with_both_dates(results: Path) -> None:
    folder = results / "town-2019--town-2024"
    page = page_of(folder, Detail())
    assert page.sides == ("town-2019", "town-2024")
    sides = {layer["id"]: layer.get("side") for layer in page.viewer["layers"]}
    assert sides["before"] == "before"
    assert sides["after"] == "after"
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row[0]: row[1] for row in page.tables[0].rows}
    assert rows == {name.replace("_", " "): f"{row['count']:,}" for name, row in summary["statuses"].items()}
    check_harmless(rendered(page))


def test_what_lies_beside_a_change_is_all_that_it_opens(town: Path) -> None:
    folder = town.parent / "town-2019--town-2024"
    summary = json.loads((folder / "summary.json").read_text())
    summary["before"]["scene"] = "../../../town-2019"
    (folder / "summary.json").write_text(json.dumps(summary))
    assert page_of(folder, Detail()).sides == ("town-2019", "town-2024"), "the name alone counts"


def test_an_archive_has_a_page_and_one_for_each_scene(town: Path) -> None:
    out = town.parent
    scenes = [Listed(name, f"{name}.tif", (160, 240)) for name in ("town-2019", "town-2024", "lost")]
    write_list(out, {"title": "Towns"}, out, scenes, [Fault("broken.tif", "is no raster")])
    path = report(out)
    page = check_harmless(path.read_text(encoding="utf-8"))
    assert page.texts["h1"] == ["Towns"]
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href") and "/" in value]
    assert links == [f"{name}/report.html" for name in ("town-2019", "town-2024", "town-2019--town-2024")]
    assert all((out / link).exists() for link in links)
    archive = read_archive(out)
    assert archive.others == (("lost", "waiting", ""), ("broken.tif", "failed", "is no raster"))
    assert sum(len(e.areas) for e in archive.entries) == sum(
        len(gpd.read_parquet(out / link.split("/")[0] / "footprints.parquet")) for link in links[:2]
    )


def test_pages_that_are_newer_than_their_results_stay(town: Path) -> None:
    report(town.parent)
    (town / "report.html").write_text("mine")
    report(town.parent)
    assert (town / "report.html").read_text() == "mine"
    report(town.parent, anew=True)
    assert (town / "report.html").read_text() != "mine"


def test_a_damaged_scene_of_an_archive_does_not_hide_the_others(town: Path) -> None:
    (town / "item.json").write_text("{}")
    archive = read_archive(town.parent)
    assert [entry.name for entry in archive.entries] == ["town-2019"]
    assert [(name, how) for name, how, _ in archive.others] == [("town-2024", "failed")]


def test_folders_without_results_are_refused(tmp_path: Path, town: Path) -> None:
    with pytest.raises(OutputError, match="holds no results"):
        report(tmp_path)
    with pytest.raises(OptionError, match=r"--source .* holds many"):
        report(town.parent, sources=("a.tif",))
    with pytest.raises(OptionError, match=r"--to .* leave it out"):
        report(town.parent, to=tmp_path / "elsewhere.html")
    (town / "labels.tif").unlink()
    with pytest.raises(OutputError, match=r"labels\.tif: cannot be read"):
        report(town)
    assert kind_of(town) == "scene"


def test_changes_without_maps_are_told_where_to_look(town: Path) -> None:
    change = town.parent / "town-2019--town-2024"
    (change / "magnitude.tif").touch()
    with pytest.raises(OutputError, match=r"between two maps, and these are not; look at .*magnitude\.tif in QGIS"):
        report(change)


def test_the_command_writes_where_it_is_told(
    town: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = town.parent / "elsewhere.html"
    monkeypatch.setattr("sys.argv", ["geoseg", "report", str(town), "--to", str(target)])
    main()
    captured = capsys.readouterr()
    assert captured.out.strip() == str(target)
    assert "MB; open it in a browser" in captured.err
    assert not (town / "report.html").exists()
    assert target.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_page_of_a_thousand_scenes_is_small_and_quick(results: Path) -> None:
    from dataclasses import replace
    from time import perf_counter

    from geoseg.view.overview import archive_page

    archive = read_archive(results)
    one = archive.entries[0]
    many = tuple(
        replace(one, outline=shapely.affinity.translate(one.outline, 0.002 * (i % 40), 0.002 * (i // 40)))
        for i in range(1000)
    )
    began = perf_counter()
    html = rendered(archive_page(results, replace(archive, entries=many)))
    assert len(html) < 3e6
    assert perf_counter() - began < 20
    assert html.count("<tr>") > 1000
