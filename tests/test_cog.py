"""The COGs that a run leaves behind: valid, complete, coloured and named, or not there at all."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import signal
import sys
import textwrap
from pathlib import Path
from subprocess import run
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
from conftest import BANEPA
from odc.geo.geobox import GeoBox

from geoseg.catalog import Legend, LegendClass
from geoseg.errors import OutputError
from geoseg.io.cog import CONFIDENCE, Look, write_cog
from geoseg.io.overviews import halved
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LEGEND = Legend(
    (
        LegendClass(0, "background", "#000000"),
        LegendClass(1, "building", "#e6194b"),
        LegendClass(2, 'road & "rail" <paved>', "#3cb44b"),
    ),
    background=0,
)
LABELS = Look("buildings", LEGEND)
NORTH_UP = GeoBox((700, 1300), BANEPA, 32645)


def blobs(shape: tuple[int, int] = (700, 1300), seed: int = 1) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    small = rng.choice(np.array([0, 1, 2, 255], np.uint8), [-(-side // 16) for side in shape], p=[0.5, 0.3, 0.1, 0.1])
    return small.repeat(16, 0).repeat(16, 1)[: shape[0], : shape[1]]


def in_bands(values: NDArray[np.uint8], rows: int = 512) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    for row in range(0, values.shape[0], rows):
        part = values[row : row + rows]
        yield Window(row, row + len(part), 0, values.shape[1]), part


def written(folder: Path, values: NDArray[np.uint8], geobox: GeoBox = NORTH_UP, look: Look = LABELS) -> Path:
    write_cog(folder / "labels.tif", in_bands(values), geobox, look, {"TIFFTAG_SOFTWARE": "geoseg test"})
    return folder / "labels.tif"


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_labels_are_a_cog(tmp_path: Path) -> None:
    """As GDAL says itself: the layout that the COG driver vouches for, in tiles, compressed, with overviews."""
    with rasterio.open(written(tmp_path, blobs())) as dataset:
        structure = dataset.tags(ns="IMAGE_STRUCTURE")
        assert structure["LAYOUT"] == "COG"
        assert structure["COMPRESSION"] == "ZSTD"
        assert dataset.block_shapes == [(512, 512)]
        assert dataset.overviews(1) == [2, 4]
        assert (dataset.nodata, dataset.dtypes, dataset.descriptions) == (255, ("uint8",), ("buildings",))
        assert dataset.tags()["TIFFTAG_SOFTWARE"] == "geoseg test"
        offsets = [int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", 1, ovr)) for ovr in (None, 0, 1)]
    assert offsets == sorted(offsets, reverse=True)  # overviews come first in the file
    assert names_in(tmp_path) == ["labels.tif", "labels.tif.aux.xml"]


def test_overviews_are_of_whole_classes(tmp_path: Path) -> None:
    """Each of their values is one of the four below it, never one between."""
    values = np.random.default_rng(1).choice(np.array([0, 2, 255], np.uint8), (700, 1300))
    with rasterio.open(written(tmp_path, values)) as dataset:
        half = dataset.read(1, out_shape=(350, 650))
    fours = np.stack([values[row::2, col::2] for row in (0, 1) for col in (0, 1)])
    assert (half == fours).any(axis=0).all()
    assert len(np.unique(half)) == 3


@pytest.mark.parametrize("shape", [(700, 1300), (1301, 777), (3, 1030), (1537, 1), (513, 512), (512, 512)])
def test_overviews_halve_until_one_block_holds_all(shape: tuple[int, int], tmp_path: Path) -> None:
    """Each from the one before; where a side is odd, the last row or column counts."""
    values = np.random.default_rng(2).choice(np.array([0, 1, 2, 255], np.uint8), shape, p=[0.5, 0.2, 0.1, 0.2])
    geobox = GeoBox(shape, BANEPA, 32645)
    for look in (LABELS, CONFIDENCE):
        path = written(tmp_path, values, geobox, look)
        with rasterio.open(path) as dataset:
            levels = len(dataset.overviews(1))
        finer = values
        for level in range(levels):
            with rasterio.open(path, overview_level=level) as dataset:
                coarser = dataset.read(1)
            assert coarser.shape == tuple(-(-side // 2) for side in finer.shape)
            np.testing.assert_array_equal(coarser, halved(finer, classes=look is LABELS))
            assert (coarser[-1] != 255).any() == (finer[-2:] != 255).any()
            finer = coarser
        assert max(finer.shape) <= 512
        assert not levels or max(finer.shape) > 256


def test_colours_and_names(tmp_path: Path) -> None:
    """Names and colours are where GDAL and QGIS look for them."""
    path = written(tmp_path, blobs())
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[0].name == "palette"
        colours = dataset.colormap(1)
    assert [colours[i] for i in range(3)] == [(0, 0, 0, 255), (230, 25, 75, 255), (60, 180, 75, 255)]
    root = ET.parse(path.with_name("labels.tif.aux.xml")).getroot()  # noqa: S314  written three lines before
    assert [e.text for e in root.findall(".//CategoryNames/Category")] == [c.name for c in LEGEND.classes]
    table = root.find(".//GDALRasterAttributeTable")
    assert table is not None
    assert [e.findtext("Name") for e in table.findall("FieldDefn")] == ["Value", "Class", "Red", "Green", "Blue"]
    rows = [[f.text for f in row.findall("F")] for row in table.findall("Row")]
    assert rows == [[str(c.value), c.name, *map(str, c.rgb)] for c in LEGEND.classes]


GRIDS = {
    "wide": NORTH_UP,
    "high": GeoBox((1300, 40), BANEPA, 32645),
    "one pixel": GeoBox((1, 1), BANEPA, 32645),
    "turned": GeoBox((600, 530), BANEPA @ rasterio.Affine.rotation(30), 32645),
    "south up": GeoBox((530, 520), rasterio.Affine(0.3, 0, 334_000, 0, 0.3, 3_057_000), 32645),
    "degrees": GeoBox((520, 530), rasterio.Affine(3e-6, 0, 85.31, 0, -2e-6, 27.62), 4326),
}


@pytest.mark.parametrize("look", [LABELS, CONFIDENCE], ids=["labels", "confidence"])
@pytest.mark.parametrize("name", GRIDS)
def test_the_pixels_and_the_grid_are_as_given(name: str, look: Look, tmp_path: Path) -> None:
    geobox = GRIDS[name]
    values = blobs((int(geobox.shape[0]), int(geobox.shape[1])))
    with rasterio.open(written(tmp_path, values, geobox, look)) as dataset:
        np.testing.assert_array_equal(dataset.read(1), values)
        assert dataset.crs.to_epsg() == geobox.crs.epsg
        np.testing.assert_allclose(tuple(dataset.transform), tuple(geobox.affine), rtol=1e-12, atol=1e-12)
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_confidence_says_what_a_step_is(tmp_path: Path) -> None:
    values = np.full((600, 600), 250, np.uint8)
    values[::2] = 150
    values[:, :301] = 255
    with rasterio.open(written(tmp_path, values, GeoBox((600, 600), BANEPA, 32645), CONFIDENCE)) as dataset:
        assert dataset.scales == (1 / 250,)
        assert dataset.descriptions == ("confidence",)
        assert dataset.colorinterp[0].name == "gray"
        assert dataset.tags(ns="IMAGE_STRUCTURE")["COMPRESSION"] == "ZSTD"
        overview = dataset.read(1, out_shape=(300, 300))
        assert (overview[:, :150] == 255).all()
        assert (overview[:, 150:] == 200).all()  # the mean, of which nodata has no part
    assert names_in(tmp_path) == ["labels.tif"]


def test_bands_may_be_windows_of_any_shape(tmp_path: Path) -> None:
    values = blobs((300, 400))
    windows = [Window(0, 130, 0, 400), Window(130, 300, 200, 400), Window(130, 300, 0, 200)]
    bands = ((w, values[w.slices]) for w in windows)
    write_cog(tmp_path / "a.tif", bands, GeoBox((300, 400), BANEPA, 32645), LABELS, {})
    with rasterio.open(tmp_path / "a.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), values)


def test_a_run_that_breaks_leaves_the_old_file(tmp_path: Path) -> None:
    path = written(tmp_path, blobs())
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    def broken() -> Iterator[tuple[Window, NDArray[np.uint8]]]:
        yield from in_bands(blobs(seed=2)[:512])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cog(path, broken(), NORTH_UP, LABELS, {})
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


FULL_DISK = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from test_cog import sweep
    sweep(Path(sys.argv[2]))
"""


def sweep(folder: Path) -> None:
    """Write to disks of growing size, mounted where only this process sees them, until one is large enough."""
    libc = ctypes.CDLL(None, use_errno=True)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (600, 600)).astype(np.uint8)  # hard to compress: 1.3 MB plain, 80 kB as a COG
    geobox = GeoBox(values.shape, BANEPA, 32645)
    refused = taken = 0
    for kilobytes in [0, 300, *range(1030, 1430, 10)]:
        size = f"size={kilobytes + 8}k".encode()
        if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, size):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for look in (LABELS, CONFIDENCE):
            said = ""
            try:
                written(folder, values, geobox, look)
            except OutputError as error:
                said = str(error)
            if said:
                refused += 1
                assert str(folder / "labels.tif") in said, said
                assert "choose another place with --out" in said, said
                assert not names_in(folder), names_in(folder)
            else:
                taken += 1
                with rasterio.open(folder / "labels.tif") as dataset:
                    np.testing.assert_array_equal(dataset.read(1), values)
                with rasterio.open(folder / "labels.tif", overview_level=0) as dataset:
                    np.testing.assert_array_equal(dataset.read(1), halved(values, classes=look is LABELS))
                for path in folder.iterdir():
                    path.unlink()
        assert libc.umount2(bytes(folder), 2) == 0
    assert refused > 20, refused
    assert taken > 5, taken


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """GDAL closes a file without a word when the disk does not take the last of it: every size is tried."""
    unshare = shutil.which("unshare")
    if unshare is None or run([unshare, "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs the right to unshare")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [unshare, "--mount", sys.executable, "-c", textwrap.dedent(FULL_DISK), str(Path(__file__).parent)]
    done = run([*command, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_quota_is_told_like_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"labels\.tif: cannot be written: .*--out"):
            written(tmp_path, blobs())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, was)
    assert not names_in(tmp_path)


def test_what_the_system_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OutputError, match=r"labels\.tif: cannot be written: No space left on device; .*--out"):
        written(tmp_path, blobs())
    assert not names_in(tmp_path)
