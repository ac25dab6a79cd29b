"""Files that are not what they seem: damaged, cut off, or lying. One sentence, no crash, no flood of memory."""

from __future__ import annotations

import bz2
import gc
import gzip
import json
import random
import shutil
import struct
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import google_crc32c
import numcodecs
import numpy as np
import pyarrow as pa
import pytest
import rasterio.shutil
import xarray as xr
import zarr
from conftest import BANEPA, write_tif

from geoseg.errors import GeosegError, SceneError
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source, survey
from geoseg.io.zarr_bounds import TOLD, within
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROWS, COLS = 60, 70
RGB = ("red", "green", "blue")


def picture(bands: int = 3, dtype: str = "uint8") -> Any:
    return np.random.default_rng(1).integers(1, 200, (bands, ROWS, COLS)).astype(dtype)


def attempt(path: str | Path | dict[str, Any], **asked: Any) -> str | None:
    """Open, survey and read a scene; what geoseg says of it, if it is no scene. Anything else is a defect."""
    try:
        scene, bands = as_asked(open_scene(path), RGB, Asked(**asked))
        source = open_source(scene, bands, estimate_stretch(scene, bands))
        rows, cols = scene.shape
        source.cache_bytes()
        for window in (Window(-3, 20, -3, 20), Window(rows - 5, rows + 5, cols - 5, cols + 9)):
            raster = source.read(window)
            assert raster.values.shape == (3, *window.shape)
            assert raster.valid.shape == window.shape
        survey(scene)
    except GeosegError as error:
        return str(error)
    return None


def store(path: Path, version: int, **attributes: Any) -> Path:
    axes = {"y": BANEPA.f + (np.arange(ROWS) + 0.5) * BANEPA.e, "x": BANEPA.c + (np.arange(COLS) + 0.5) * BANEPA.a}
    attrs = {"proj:code": "EPSG:32645", "long_name": list(RGB), **attributes}
    array = xr.DataArray(picture(dtype="int16"), dims=("band", "y", "x"), coords=axes, attrs=attrs, name="image")
    chunks = {"image": {"chunks": (1, 32, 32)}}
    array.to_dataset().to_zarr(path, zarr_format=version, consolidated=False, encoding=chunks)
    return path


# --- what `benchmarks/fuzz.py` has found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # rasterio cannot log what is no text
@pytest.mark.parametrize(
    ("driver", "spoilt_file", "old", "new"),
    [
        ("HFA", "a.img", b"+proj", b"\xff\xff\xff\xff\xff"),
        ("HFA", "a.img", b"Eprj_Coordinate", b"7prj_Coordinate"),
        ("PNG", "a.png.aux.xml", b'["EPSG","4326"]', b'["EPS\xff","4326"]'),
        ("VRT", "a.vrt", b"<MDI key", b"<MDI \x87ey"),
        ("VRT", "a.vrt", b"first.tif", b"fir\xb1t.tif"),
    ],
)
def test_text_that_is_none_is_told(driver: str, spoilt_file: str, old: bytes, new: bytes, tmp_path: Path) -> None:
    write_tif(tmp_path / "first.tif", picture())
    path = tmp_path / {"HFA": "a.img", "PNG": "a.png", "VRT": "a.vrt"}[driver]
    rasterio.shutil.copy(tmp_path / "first.tif", path, driver=driver)
    whole = (tmp_path / spoilt_file).read_bytes()
    (tmp_path / spoilt_file).write_bytes(whole.replace(old, new))
    told = attempt(path)
    assert told is None or (str(path) in told and "\n" not in told)


def test_numbers_that_are_none_warn_of_nothing(tmp_path: Path) -> None:
    values = picture(dtype="float32")
    values[:, ::3, ::3] = np.inf
    values[:, 1::3, ::3] = np.float32(np.nan)
    write_tif(tmp_path / "a.tif", values)
    assert attempt(tmp_path / "a.tif") is None


# --- anything at all


def spoilt(data: bytes, rng: random.Random) -> bytes:
    """Cut off, or with other bytes in its header or anywhere."""
    kind = rng.randrange(3)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        changed[rng.randrange(700 if kind == 1 else len(data))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


PROFILES: dict[str, dict[str, Any]] = {
    "striped": {},
    "deflate": {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"},
    "lzw": {"compress": "lzw", "interleave": "band", "nodata": 0},
    "jpeg": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "jpeg"},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_spoilt_geotiff_is_read_or_told(profile: str, tmp_path: Path) -> None:
    data = write_tif(tmp_path / "a.tif", picture(), **PROFILES[profile]).read_bytes()
    rng, path = random.Random(profile), tmp_path / "b.tif"
    outcomes = set()
    for _ in range(15):
        path.write_bytes(spoilt(data, rng))
        said = attempt(path)
        assert said is None or str(path) in said
        outcomes.add(said is None)
    assert False in outcomes


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON, as what holds it and where."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from places(node[key])


VALUES = (
    None,
    0,
    -1,
    1,
    "",
    [],
    {},
    "x",
    1e308,
    2**40,
    10**12,
    [10**9, 10**9],
    True,
    "NaN",
    [None],
    [0, 0],
    "<f8",
    "|S5",
)


def changed(content: Any, rng: random.Random, *more: Any) -> Any:
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 2))):
        found = list(places(content))
        if not found:
            break
        holder, key = rng.choice(found)
        if rng.random() < 0.2:
            holder.pop(key)
        else:
            holder[key] = rng.choice((*VALUES, *more))
    return content


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_with_wrong_metadata_is_read_or_told(version: int, tmp_path: Path) -> None:
    path, rng = store(tmp_path / "a.zarr", version, _FillValue=np.int16(-7)), random.Random(version)
    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup"}
    files = sorted(file for file in path.rglob("*") if file.name in names)
    outcomes = set()
    for _ in range(40):
        file = rng.choice(files)
        text = file.read_text(encoding="utf-8")
        file.write_text(json.dumps(changed(json.loads(text), rng)), encoding="utf-8")
        said = attempt(path)
        assert said is None or str(path) in said
        outcomes.add(said is None)
        file.write_text(text, encoding="utf-8")
    assert outcomes == {True, False}


def test_an_item_that_says_anything_is_read_or_told(tmp_path: Path) -> None:
    for name in (*RGB, "scl"):
        write_tif(tmp_path / f"{name}.tif", picture(1))
    bands = {name: [{"eo:common_name": name, "name": "x"}] for name in (*RGB, "scl")}
    assets = {
        name: {"href": f"{name}.tif", "type": "image/tiff", "roles": ["data"], "bands": told, "gsd": 10}
        for name, told in bands.items()
    }
    item = {"type": "Feature", "id": "a", "properties": {"datetime": "2024-01-01T00:00:00Z"}, "assets": assets}
    path, rng = tmp_path / "item.json", random.Random(1)
    outcomes = set()
    for _ in range(60):
        text = json.dumps(changed(item, rng, "../x.tif", "item.json", ".", "/vsicurl/http://x", "red.tif"))
        path.write_text(text, encoding="utf-8")
        outcomes.add(attempt(path, mask="scl") is None)
    assert outcomes == {True, False}


def test_a_path_of_anything_is_told() -> None:
    rng = random.Random(1)
    words = (
        "red",
        "=",
        ",",
        "nir",
        "a.tif",
        "/",
        "#",
        ".json",
        " ",
        "B04",
        "scl",
        "é",
        "\0",
        "..",
        "{",
        "\n",
        ":",
    )
    for _ in range(100):
        assert attempt("".join(rng.choices(words, k=rng.randrange(1, 8)))) is not None


# --- what broke


def test_a_crs_that_is_nowhere_on_the_ground_is_told(tmp_path: Path) -> None:
    local = 'LOCAL_CS["a building site",UNIT["metre",1],AXIS["x",EAST],AXIS["y",NORTH]]'
    path = write_tif(tmp_path / "a.tif", picture(), local)
    with pytest.raises(SceneError, match=r"a\.tif: its CRS cannot be brought to longitude and latitude"):
        open_scene(path)


@pytest.mark.parametrize("code", ["EPSG:-1", [10**9, 10**9], "EPSG:999999", {"type": "nothing"}])
def test_a_crs_that_there_is_not_is_told(code: Any, tmp_path: Path) -> None:
    said = attempt(store(tmp_path / "a.zarr", 3, **{"proj:code": code}))
    assert said is not None
    assert "a.zarr: has no CRS" in said


def test_chunks_of_no_size_are_told(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", 2)
    file = path / "image" / ".zarray"
    content = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(content | {"chunks": [1, 0, 32]}), encoding="utf-8")
    said = attempt(path)
    assert said is not None
    assert "a.zarr" in said


def test_sides_that_cannot_be_are_told_before_coordinates_are_read(tmp_path: Path) -> None:
    """A thousand million numbers for an axis that no chunk holds."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=3)
    for name, shape, dims in (("image", (10**9, 10**9), ("y", "x")), ("y", (10**9,), ("y",)), ("x", (10**9,), ("x",))):
        group.create_array(name, shape=shape, chunks=(1000,) * len(shape), dtype="float64", dimension_names=dims)
    tracemalloc.start()
    said = attempt(tmp_path / "a.zarr")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said is not None
    assert "has 1000000000 values, at most 16777216 can be right" in said
    assert peak < 100e6


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path: Path) -> None:
    """Two thousand million columns in every file of a band: what is computed for a scene has no number for each."""
    source = write_tif(tmp_path / "f.tif", picture(1))
    size, where = 2**31 - 1, "334000, 0.0001, 0, 3057000, 0, -0.0001"
    band = (
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">f.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    text = f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>EPSG:32645</SRS>'
    text += f"<GeoTransform>{where}</GeoTransform>"
    for name in RGB:
        (tmp_path / f"{name}.vrt").write_text(f"{text}{band}</VRTDataset>", encoding="utf-8")
    assert source.exists()
    tracemalloc.start()
    scene, bands = as_asked(open_scene({name: tmp_path / f"{name}.vrt" for name in RGB}), RGB, Asked())
    opened = open_source(scene, bands)
    assert opened.read(Window(0, 30, 0, 30)).valid.all()
    assert opened.overview(64).shape == (3, 64, 64)
    assert opened.cache_bytes() <= 1 << 30
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scene.shape == (size, size)
    assert peak < 50e6


# --- chunks of Zarr that become too much


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "blosc": numcodecs.Blosc("zstd").encode,
    "lz4": numcodecs.LZ4().encode,
    "zstd": numcodecs.Zstd().encode,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
}


def streamed_zstd(data: bytes) -> bytes:
    """A frame that does not say how much it holds."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", [*ENCODED, "zstd streamed"])
def test_bytes_are_decoded_up_to_a_limit(kind: str) -> None:
    encode, kind = ENCODED.get(kind, streamed_zstd), kind.split(maxsplit=1)[0]
    data = bytes(range(250)) * 400
    for limit in (len(data), 2 * len(data)):
        made = within(kind, encode(data), limit)
        assert made is None or made == data
    with pytest.raises(ValueError, match=r"at most 99999 can be right"):
        within(kind, encode(data), len(data) - 1)
    bomb = encode(bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="can be right"):
        within(kind, memoryview(bomb), 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_zstd_frame_that_is_alone_or_large_tells_its_size() -> None:
    for size in (1, 200, 256, 300, 70_000, 5_000_000):
        data = np.random.default_rng(size).bytes(size)
        assert TOLD["zstd"](numcodecs.Zstd().encode(data)) == size
        assert TOLD["zstd"](streamed_zstd(data)) is None
        assert within("zstd", streamed_zstd(data), size) == data


def test_streams_behind_each_other_are_all_decoded() -> None:
    two = gzip.compress(b"abc") + gzip.compress(b"def")
    assert within("gzip", two, 6) == b"abcdef"
    assert within("gzip", two + bytes(9), 6) == b"abcdef"
    for cut in (two[:-3], two[:25], b""):
        if cut:
            with pytest.raises(ValueError, match="cut off"):
                within("gzip", cut, 6)
    with pytest.raises(ValueError, match="at most 5 can be right"):
        within("gzip", two, 5)


def chunked(path: Path, version: int, codec: Any, **how: Any) -> tuple[Path, Path]:
    """A store of one codec, and the file of its first chunk."""
    path = store(path, version)
    shutil.rmtree(path / "image")
    group = zarr.open_group(path, mode="a")
    made = group.create_array(
        "image",
        shape=(3, ROWS, COLS),
        dtype="int16",
        compressors=codec,
        attributes={"long_name": list(RGB), "proj:code": "EPSG:32645"},
        **({"chunks": (1, 32, 32), "dimension_names": ("band", "y", "x")} if version == 3 else {"chunks": (1, 32, 32)}),
        **how,
    )
    if version == 2:
        made.attrs["_ARRAY_DIMENSIONS"] = ["band", "y", "x"]
    made[:] = picture(dtype="int16")
    return path, path / "image" / ("c/0/0/0" if version == 3 else "0.0.0")


CODECS: dict[str, tuple[int, Any, dict[str, Any]]] = {
    "blosc": (2, numcodecs.Blosc(), {}),
    "lz4": (2, numcodecs.LZ4(), {}),
    "zstd": (2, numcodecs.Zstd(), {}),
    "gzip": (2, numcodecs.GZip(), {}),
    "zlib": (2, numcodecs.Zlib(), {"filters": [numcodecs.Delta("<i2")]}),
    "bz2": (2, numcodecs.BZ2(), {}),
    "blosc 3": (3, zarr.codecs.BloscCodec(), {}),
    "zstd 3": (3, zarr.codecs.ZstdCodec(), {}),
    "gzip 3": (3, zarr.codecs.GzipCodec(), {}),
    "gzip shards": (3, zarr.codecs.GzipCodec(), {"shards": (3, 64, 96)}),
}


@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_of_any_codec_is_read_and_a_bomb_is_told(name: str, tmp_path: Path) -> None:
    version, codec, how = CODECS[name]
    path, chunk = chunked(tmp_path / "a.zarr", version, codec, **how)
    before = zarr.config.get("codec_pipeline.path")
    scene = open_scene(path)
    values, _ = open_source(scene, (1, 2, 3)).raw(Window.of_shape(scene.shape))
    np.testing.assert_array_equal(values, picture(dtype="int16"))
    assert zarr.config.get("codec_pipeline.path") == before
    if "shards" in how:
        return
    chunk.write_bytes(ENCODED[name.split(maxsplit=1)[0]](bytes(300 << 20)))
    tracemalloc.start()
    said = attempt(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said is not None
    assert "a.zarr" in said
    assert peak < 100 << 20


@pytest.mark.parametrize("version", [2, 3])
def test_a_chunk_that_lies_about_its_own_length_is_told(version: int, tmp_path: Path) -> None:
    """Blosc reads as far as its header says, which was a crash."""
    codec = numcodecs.Blosc() if version == 2 else zarr.codecs.BloscCodec()
    path, chunk = chunked(tmp_path / "a.zarr", version, codec)
    good = chunk.read_bytes()
    for where, value in ((15, 0x7F), (7, 0x7F), (7, 0xFF), (0, 9)):
        chunk.write_bytes(good[:where] + bytes([value]) + good[where + 1 :])
        said = attempt(path)
        assert said is not None
        assert "a.zarr" in said
    for cut in (0, 3, 15, 20):
        chunk.write_bytes(good[:cut])
        assert attempt(path) is not None


def test_a_bomb_in_a_shard_is_told(tmp_path: Path) -> None:
    inner = zarr.codecs.GzipCodec()
    path, chunk = chunked(tmp_path / "a.zarr", 3, inner, shards=(1, 32, 32))
    bomb = gzip.compress(bytes(300 << 20))
    index = struct.pack("<QQ", 0, len(bomb))
    chunk.write_bytes(bomb + index + google_crc32c.value(index).to_bytes(4, "little"))
    tracemalloc.start()
    said = attempt(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said is not None
    assert peak < 100 << 20


def test_damaged_attributes_of_netcdf_print_no_traceback(tmp_path: Path) -> None:
    """Of h5netcdf's file that was opened by half, when it is collected; pytest makes an error of that."""
    h5py = pytest.importorskip("h5py", reason="the extra `netcdf` is not installed")
    path = tmp_path / "a.nc"
    dataset = xr.Dataset({"a": (("y", "x"), np.zeros((9, 9)))}, attrs={"title": "a town " * 9})
    dataset.to_netcdf(path, engine="h5netcdf")
    good = path.read_bytes()
    place = next(place for place in range(40, 1200) if is_half_open(h5py, path, good, place))
    said = attempt(path)
    gc.collect()
    assert said is not None
    assert "a.nc: cannot be read as NetCDF" in said
    path.write_bytes(good[: place + 1])
    assert attempt(path) is not None


def is_half_open(h5py: Any, path: Path, good: bytes, place: int) -> bool:
    """Whether a file with another byte at a place is one of HDF5 whose attributes cannot be read."""
    path.write_bytes(good[:place] + b"\xff" + good[place + 1 :])
    try:
        file = h5py.File(path)
    except (OSError, RuntimeError):
        return False
    with file:
        try:
            file.attrs.get("_nc3_strict")
        except (OSError, RuntimeError, KeyError):
            return True
    return False
