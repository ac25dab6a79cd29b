"""Which scenes a job is about, and which hrefs a catalog may not name."""

from __future__ import annotations

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import pytest
import shapely
import stac_geoparquet.arrow

from geoseg.errors import OptionError, SceneError
from geoseg.selection import Fault, Narrowing, Rule, SceneRef, Scenes, read_area, select, unique

if TYPE_CHECKING:
    from collections.abc import Iterator

BOX = (10.0, 50.0, 10.1, 50.1)


def item(
    name: str, href: str, when: str | None = "2024-05-01T10:00:00Z", west: float = 10.0, **extra: Any
) -> dict[str, Any]:
    box = shapely.box(west, 50.0, west + 0.1, 50.1)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "geometry": json.loads(shapely.to_geojson(box)),
        "bbox": list(box.bounds),
        "properties": {"datetime": when, **({} if when else {"start_datetime": None})},
        "links": [],
        "assets": {"image": {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"]}},
        **extra,
    }


def put(path: Path, content: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def catalog(folder: Path, links: list[tuple[str, str]], kind: str = "Catalog") -> Path:
    content = {"type": kind, "stac_version": "1.1.0", "id": folder.name, "description": "a test"}
    return put(folder / "catalog.json", {**content, "links": [{"rel": rel, "href": href} for rel, href in links]})


def chosen(data: Path, **scenes: Any) -> tuple[dict[str, SceneRef], dict[str, str]]:
    """Scenes by id, and faults by name."""
    found = list(select(Scenes.model_validate(scenes), data))
    refs = [ref for ref in found if isinstance(ref, SceneRef)]
    assert len({ref.id for ref in refs}) == len(refs)
    return {ref.id: ref for ref in refs}, {ref.name: ref.why for ref in found if isinstance(ref, Fault)}


# --- files


def test_lists_globs_and_what_the_list_knows(tmp_path: Path) -> None:
    for name in ("b.tif", "a.tif", "below/deep/c.tif", "a[1].tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = ["?.tif", "**/c.tif", "a[1].tif", {"href": "a.tif", "id": "town-2024", "datetime": "2024-05-01"}]
    refs, faults = chosen(tmp_path, files=files)
    assert list(refs) == ["a", "b", "c", "a[1]", "town-2024"]
    assert not faults
    assert refs["c"].href == str(tmp_path / "below" / "deep" / "c.tif")
    assert refs["a[1]"].href == str(tmp_path / "a[1].tif")
    assert refs["town-2024"].datetime == dt.datetime(2024, 5, 1)  # noqa: DTZ001  # as the job has it
    refs, faults = chosen(
        tmp_path, files=["*.jp2", {"href": "?.tif", "id": "one"}, str(tmp_path / "a.tif"), "gone.tif"]
    )
    assert set(refs) == {"a", "gone"}  # that a file is not there is told by whoever opens it
    assert "no file is named like this" in faults["*.jp2"]
    assert "is 2 files, and one id" in faults["?.tif"]


def test_a_scene_comes_once_and_a_namesake_is_a_fault() -> None:
    a, again, other = SceneRef("/x/a.tif", "a"), SceneRef("/x/a.tif", "a"), SceneRef("/y/a.tif", "a")
    first, second = list(unique([a, again, other]))
    assert first is a
    assert isinstance(second, Fault)
    assert "/y/a.tif: is named a like /x/a.tif" in second.why


# --- catalogs


def test_a_catalog_is_walked_once_however_its_links_go(tmp_path: Path) -> None:
    root = tmp_path / "stac"
    catalog(root, [("child", "./sub/catalog.json"), ("item", "one.json"), ("self", "https://example.org/catalog.json")])
    catalog(
        root / "sub", [("child", "../catalog.json"), ("item", "./two.json"), ("root", "../catalog.json")], "Collection"
    )
    put(root / "one.json", item("one", "./one.tif"))
    put(root / "sub" / "two.json", item("two/../2", "../pixels/two.tif", None))
    refs, faults = chosen(tmp_path, catalogs=["stac/catalog.json"])
    assert not faults
    assert set(refs) == {"one", "two_.._2"}  # what is a folder's name has no slash
    assert refs["one"].datetime == dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC)
    assert Path(refs["one"].href) == root / "one.tif"
    assert Path(refs["two_.._2"].href).resolve() == root / "pixels" / "two.tif"
    assert refs["one"].item == str(root / "one.json")
    assert refs["one"].footprint is not None
    assert refs["one"].footprint.bounds == pytest.approx(BOX)


def test_what_is_broken_in_a_catalog_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    catalog(tmp_path, [("item", f"{name}.json") for name in ("good", "gone", "text", "other", "empty", "two")])
    put(tmp_path / "good.json", item("good", "good.tif"))
    (tmp_path / "text.json").write_text("{", encoding="utf-8")
    put(tmp_path / "other.json", {"type": "Table"})
    put(tmp_path / "empty.json", item("empty", "x.tif", assets={}))
    put(tmp_path / "two.json", item("two", "x.tif", assets={"a": {"href": "a.tif"}, "b": {"href": "b.tif"}}))
    refs, faults = chosen(tmp_path, catalogs=["catalog.json"])
    assert set(refs) == {"good"}
    told = {Path(name).stem: why for name, why in faults.items()}
    assert "cannot be read as STAC" in told["gone"]
    assert "cannot be read as STAC" in told["text"]
    assert "is no STAC object (its type is 'Table')" in told["other"]
    assert "There are: none" in told["empty"]
    assert "There are: a, b; name one: scenes.asset" in told["two"]
    refs, _ = chosen(tmp_path, catalogs=["two.json"], asset="b")
    assert Path(refs["two"].href).name == "b.tif"
    with pytest.raises(OptionError, match=r"none\.json: cannot be read as STAC"):
        chosen(tmp_path, catalogs=["none.json"])


def test_the_asset_that_is_meant_is_found(tmp_path: Path) -> None:
    def tiff(name: str, *roles: str) -> dict[str, Any]:
        return {"href": name, "type": "image/tiff", "roles": list(roles)}

    picture = {"href": "t.png", "type": "image/png", "roles": ["thumbnail"]}
    for assets, expected in (
        ({"a": tiff("a.tif"), "thumbnail": picture}, "a.tif"),
        ({"a": tiff("a.tif", "data"), "mask": tiff("m.tif", "mask")}, "a.tif"),
        ({"visual": tiff("v.tif"), "b4": tiff("b4.tif", "data"), "b8": tiff("b8.tif", "data")}, "v.tif"),
    ):
        put(tmp_path / "item.json", item("x", "", assets=assets))
        assert Path(chosen(tmp_path, catalogs=["item.json"])[0]["x"].href).name == expected


def test_item_collections_and_geoparquet_say_the_same(tmp_path: Path) -> None:
    items = [item("one", "./one.tif"), item("two", "./two.tif", west=11.0)]
    put(tmp_path / "items.json", {"type": "FeatureCollection", "features": items})
    table = stac_geoparquet.arrow.parse_stac_items_to_arrow(items)
    stac_geoparquet.arrow.to_parquet(table, tmp_path / "items.parquet")
    listed, faults = chosen(tmp_path, catalogs=["items.json"])
    indexed, more_faults = chosen(tmp_path, catalogs=["items.parquet"])
    assert not faults
    assert not more_faults
    for name in ("one", "two"):
        assert listed[name].href == indexed[name].href == str(tmp_path / f"{name}.tif")
        assert listed[name].datetime == indexed[name].datetime is not None
        assert shapely.equals(listed[name].footprint, indexed[name].footprint)
    assert listed["one"].item == str(tmp_path / "items.json")


def test_area_and_dates_choose(tmp_path: Path) -> None:
    items = [
        item("here", "a.tif"),
        item("there", "b.tif", west=12.0),
        item("early", "c.tif", "2023-12-31T23:59:59Z"),
        item("late", "d.tif", "2024-12-31T23:59:59Z"),
        item("elsewhere", "e.tif", "2025-01-01T01:00:00+02:00"),  # the last day of 2024 in UTC
        item("undated", "f.tif", None),
    ]
    put(tmp_path / "items.json", {"type": "FeatureCollection", "features": items})
    gpd.GeoSeries([shapely.box(9.9, 49.9, 10.05, 50.05)], crs=4326).to_crs(32632).to_file(tmp_path / "aoi.gpkg")
    refs, faults = chosen(tmp_path, catalogs=["items.json"], aoi="aoi.gpkg", dates=["2024-01-01", "2024-12-31"])
    assert set(refs) == {"here", "late", "elsewhere", "undated"}, "whose file or name may tell its date"
    assert not faults
    refs, _ = chosen(tmp_path, catalogs=["items.json"], dates=[None, "2023-12-31"])
    assert set(refs) == {"early", "undated"}
    with pytest.raises(OptionError, match=r"none\.gpkg"):
        chosen(tmp_path, catalogs=["items.json"], aoi="none.gpkg")


def test_a_scene_that_touches_the_area_is_meant() -> None:
    wanted = Narrowing(shapely.box(0, 0, 1, 1))
    assert wanted.wants("x", shapely.box(0.9, 0.9, 3, 3), None)
    assert not wanted.wants("x", shapely.box(1.1, 0, 3, 3), None)
    assert wanted.wants("x", None, None)  # where it is will be known from its file


def test_an_area_needs_polygons(tmp_path: Path) -> None:
    gpd.GeoSeries([shapely.Point(1, 1)], crs=4326).to_file(tmp_path / "points.gpkg")
    with pytest.raises(OptionError, match="has no polygons"):
        read_area(tmp_path / "points.gpkg")


# --- what is refused

ESCAPES = (
    "../secret.tif",
    "sub/../../secret.tif",
    "file://{outside}/secret.tif",
    "{outside}/secret.tif",
    "link/secret.tif",
)

TRICKS = (
    "/vsicurl/http://example.org/a.tif",
    "/vsizip/{outside}/a.zip/a.tif",
    "sub/..//vsimem/a.tif",
    "GTIFF_DIR:1:{outside}/a.tif",
    'NETCDF:"{outside}/a.nc":x',
    "vrt://{outside}/a.tif?bands=1",
    "<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>",
    "zip+https://example.org/a.zip",
    "ftp://example.org/a.tif",
)


@pytest.mark.parametrize("href", ESCAPES)
def test_a_catalog_names_no_file_outside_of_its_folder(href: str, tmp_path: Path) -> None:
    outside, home = tmp_path / "outside", tmp_path / "home"
    outside.mkdir()
    (outside / "secret.tif").touch()
    (tmp_path / "secret.tif").touch()
    (home / "sub").mkdir(parents=True)
    (home / "link").symlink_to(outside)
    put(home / "items.json", item("x", href.format(outside=outside)))
    refs, faults = chosen(tmp_path, catalogs=["home/items.json"])
    assert not refs
    assert "lies outside of its catalog's folder" in faults["x"]
    assert "scenes.roots" in faults["x"]
    refs, faults = chosen(tmp_path, catalogs=["home/items.json"], roots=["."])
    assert set(refs) == {"x"}


@pytest.mark.parametrize("href", TRICKS)
def test_what_only_gdal_understands_is_refused(href: str, tmp_path: Path) -> None:
    href = href.format(outside=tmp_path)
    put(tmp_path / "items.json", item("x", href))
    for scenes in ({"catalogs": ["items.json"]}, {"files": [href]}):
        refs, faults = chosen(tmp_path, **scenes)
        assert not refs
        assert "vsi is not allowed by this job" in next(iter(faults.values()))
    assert len(chosen(tmp_path, files=[href], allow=["vsi"])[0]) == 1


def test_remote_schemes_are_refused_one_by_one(tmp_path: Path) -> None:
    for scheme in ("http", "https", "s3", "gs", "az"):
        href = f"{scheme}://example.org/a.tif"
        put(tmp_path / "items.json", item("x", href))
        for scenes in ({"catalogs": ["items.json"]}, {"files": [href]}):
            refs, faults = chosen(tmp_path, **scenes, allow=[s for s in ("https", "s3") if s != scheme])
            assert not refs
            assert f"{scheme} is not allowed by this job" in next(iter(faults.values()))
            refs, faults = chosen(tmp_path, **scenes, allow=[scheme])
            assert [ref.href for ref in refs.values()] == [href]
            assert not faults


def test_a_description_may_name_anything_so_it_is_refused(tmp_path: Path) -> None:
    """A VRT by another name: GDAL goes by what is in it."""
    (tmp_path / "a.tif").write_text("\n <VRTDataset/>", encoding="utf-8")
    put(tmp_path / "items.json", item("x", "a.tif"))
    refs, faults = chosen(tmp_path, catalogs=["items.json"])
    assert not refs
    assert "is a description (VRT or other XML)" in faults["x"]
    assert set(chosen(tmp_path, catalogs=["items.json"], allow=["vsi"])[0]) == {"x"}


def test_links_between_catalogs_are_bound_alike(tmp_path: Path) -> None:
    catalog(tmp_path / "home", [("child", "../other/catalog.json"), ("item", "http://example.org/item.json")])
    catalog(tmp_path / "other", [("item", "x.json")])
    put(tmp_path / "other" / "x.json", item("x", "x.tif"))
    refs, faults = chosen(tmp_path, catalogs=["home/catalog.json"])
    assert not refs
    assert len(faults) == 2
    refs, faults = chosen(tmp_path, catalogs=["home/catalog.json"], roots=["other"])
    assert set(refs) == {"x"}
    assert len(faults) == 1


def test_a_remote_catalog_names_no_local_file() -> None:
    rule = Rule(("https",), ())
    assert rule.permit("../a.tif", "https://example.org/stac/item.json") == "https://example.org/a.tif"
    for href in ("/etc/passwd", "file:///etc/passwd"):
        with pytest.raises(SceneError, match="outside of its catalog"):
            rule.permit(href, "https://example.org/stac/item.json")
    with pytest.raises(SceneError, match="http is not allowed"):
        rule.permit("http://example.org/a.tif", "https://example.org/stac/item.json")


# --- a search


@pytest.fixture
def api() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A STAC API of two pages, and what it was asked."""
    asked: list[dict[str, Any]] = []
    conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
    conforms += ["https://api.stacspec.org/v1.0.0/item-search#query"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            links = [{"rel": "search", "href": f"{address}/search", "type": "application/geo+json", "method": "POST"}]
            links += [{"rel": "root", "href": address}, {"rel": "self", "href": address}]
            page = {"type": "Catalog", "stac_version": "1.0.0", "id": "api", "description": "-", "links": links}
            self.answer({**page, "conformsTo": conforms})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            name = "two" if body.get("token") else "one"
            features = [item(name, f"{address}/{name}.tif", links=[{"rel": "self", "href": f"{address}/{name}"}])]
            onward = {"rel": "next", "href": f"{address}/search", "method": "POST", "body": {**body, "token": "2"}}
            links = [] if body.get("token") else [onward]
            self.answer({"type": "FeatureCollection", "features": features, "links": links})

        def answer(self, content: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield address, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_search_asks_for_what_the_job_says(api: tuple[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    address, asked = api
    gpd.GeoSeries([shapely.box(9.9, 49.9, 10.05, 50.05)], crs=4326).to_file(tmp_path / "aoi.geojson")
    search = {"api": address, "collections": ["aerial"], "query": {"eo:cloud_cover": {"lt": 10}}}
    scenes = {"search": search, "aoi": "aoi.geojson", "dates": ["2024-01-01", None], "allow": ["http"]}
    refs, faults = chosen(tmp_path, **scenes)
    assert not faults
    assert [ref.href for ref in refs.values()] == [f"{address}/one.tif", f"{address}/two.tif"]
    assert refs["one"].item == f"{address}/one"
    assert asked[0]["collections"] == ["aerial"]
    assert asked[0]["query"] == {"eo:cloud_cover": {"lt": 10}}
    assert asked[0]["datetime"].startswith("2024-01-01")
    assert shapely.from_geojson(json.dumps(asked[0]["intersects"])).bounds == pytest.approx((9.9, 49.9, 10.05, 50.05))
    refs, faults = chosen(tmp_path, search={**search, "limit": 1})
    assert not refs
    assert set(faults) == {"one"}  # its scheme is not allowed, and no more was asked for


def test_an_api_that_does_not_answer_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"http://127\.0\.0\.1:9: cannot be searched"):
        chosen(tmp_path, search={"api": "http://127.0.0.1:9", "collections": ["x"]})
