"""Every kind of scene that an archive may hold, window by window, beside what rasterio or xarray reads of the whole.

One row of the table is one variant: format, layout, type, compression, validity or CRS. Where a format keeps what it is
given, the whole is also what was written, so an oracle that is wrong together with the source is found, too.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rioxarray
import xarray as xr
import zarr
from conftest import BANEPA, write_tif
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning

from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

ROWS, COLS = 83, 101
"""Multiples of nothing."""

RGB = ("red", "green", "blue")


@dataclass(frozen=True)
class Made:
    """A scene, and what it holds by another's reading."""

    scene: str | Path | dict[str, Path] | xr.DataArray | xr.Dataset
    values: NDArray[Any]
    """(band, y, x), as stored."""
    valid: NDArray[np.bool_]


def picture(dtype: str = "uint8") -> NDArray[Any]:
    """Values 1 to 99 of a type, and so none that the variants use as nodata."""
    rng = np.random.default_rng(7)
    smooth = rng.random((3, 12, 15)).repeat(7, 1).repeat(7, 2)[:, :ROWS, :COLS]
    return (smooth * 80 + rng.random((3, ROWS, COLS)) * 18 + 1).astype(dtype)


def hole() -> NDArray[np.bool_]:
    """True where there is data."""
    data = np.ones((ROWS, COLS), bool)
    data[0] = data[:, -1] = data[30:52, 40:77] = data[-1, 0] = False
    return data


def whole(path: str | Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        return dataset.read([1, 2, 3])


def kept(path: str | Path, values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Made:
    """A file of a format that keeps what it is given."""
    np.testing.assert_array_equal(whole(path), values)
    return Made(path, values, np.ones(values.shape[1:], bool) if valid is None else valid)


def tif(dtype: str = "uint8", **profile: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values = picture(dtype)
        return kept(write_tif(folder / "a.tif", values, **profile), values)

    return make


def blocks(**profile: Any) -> Callable[[Path], Made]:
    return tif(tiled=True, blockxsize=32, blockysize=16, **profile)


def nodata(dtype: str, value: float, **profile: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values = picture(dtype)
        values[:, ~hole()] = value
        return kept(write_tif(folder / "a.tif", values, nodata=value, **profile), values, hole())

    return make


def not_a_number(folder: Path) -> Made:
    values = picture("float32")
    values[1, ~hole()] = np.nan
    return kept(write_tif(folder / "a.tif", values), values, hole())


def dark_roofs(folder: Path) -> Made:
    """A pixel that is nodata in one band only is there."""
    values = picture()
    values[0, 20:40] = 0
    values[:, 60:70] = 0
    return kept(write_tif(folder / "a.tif", values, nodata=0), values, (values != 0).any(axis=0))


def alpha(dtype: str = "uint8", opaque: int = 255, **profile: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        values = picture(dtype)
        layers = np.concatenate([values, np.where(hole(), opaque, 0).astype(dtype)[None]])
        path = write_tif(folder / "a.tif", layers, photometric="RGB", alpha="yes", **profile)
        return kept(path, values, hole())

    return make


def mask(*, internal: bool, **profile: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        path = write_tif(folder / "a.tif", picture(), **profile)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(hole())
        assert path.with_name("a.tif.msk").exists() != internal
        return Made(path, whole(path), hole())

    return make


def lossy(folder: Path) -> Made:
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "jpeg", "photometric": "YCBCR"}
    path = write_tif(folder / "a.tif", picture(), **profile)
    return Made(path, whole(path), np.ones((ROWS, COLS), bool))


def place(crs: str, transform: rasterio.Affine) -> Callable[[Path], Made]:
    return tif(crs=crs, transform=transform)


def copied(
    driver: str, suffix: str, *, exact: bool = True, dtype: str = "uint8", **options: Any
) -> Callable[[Path], Made]:
    """What GDAL writes of a GeoTIFF in another format."""

    def make(folder: Path) -> Made:
        with rasterio.Env() as env:
            drivers = {*env.drivers()}
        if driver not in drivers:
            pytest.skip(f"this build of GDAL has no driver {driver}")
        values = picture(dtype)
        made = folder / f"a.{suffix}"
        rasterio.shutil.copy(write_tif(folder / "from.tif", values), made, driver=driver, **options)
        return kept(made, values) if exact else Made(made, whole(made), np.ones((ROWS, COLS), bool))

    return make


def png_with_a_world_file(folder: Path) -> Made:
    values = picture()
    size = {"width": COLS, "height": ROWS, "count": 3, "dtype": "uint8"}
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(folder / "a.png", "w", driver="PNG", **size) as dataset,
    ):
        dataset.write(values)
    for path in folder.glob("a.png.*"):
        path.unlink()
    numbers = (BANEPA.a, BANEPA.d, BANEPA.b, BANEPA.e, *(BANEPA @ (0.5, 0.5)))
    (folder / "a.pgw").write_text("\n".join(map(str, numbers)), encoding="utf-8")
    crs = "<PAMDataset><SRS>EPSG:32645</SRS></PAMDataset>"
    (folder / "a.png.aux.xml").write_text(crs, encoding="utf-8")
    return kept(folder / "a.png", values)


def zipped(folder: Path) -> Made:
    values = picture()
    write_tif(folder / "a.tif", values, tiled=True, blockxsize=32, blockysize=32)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "a.tif", "in/a.tif")
    return kept(f"/vsizip/{folder / 'a.zip'}/in/a.tif", values)


def mosaic(folder: Path) -> Made:
    """A VRT of two files with a gap between them."""
    values = picture()
    values[:, :, 50:60] = 0
    write_tif(folder / "left.tif", values[:, :, :50])
    write_tif(folder / "right.tif", values[:, :, 60:], transform=BANEPA @ rasterio.Affine.translation(60, 0))
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>0</NoDataValue>'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="1">{name}.tif</SourceFilename>'
            f"<SourceBand>{band}</SourceBand>"
            f'<SrcRect xOff="0" yOff="0" xSize="{width}" ySize="{ROWS}"/>'
            f'<DstRect xOff="{left}" yOff="0" xSize="{width}" ySize="{ROWS}"/></SimpleSource>'
            for name, left, width in (("left", 0, 50), ("right", 60, COLS - 60))
        )
        + "</VRTRasterBand>"
        for band in (1, 2, 3)
    )
    where = ", ".join(map(str, BANEPA.to_gdal()))
    text = f'<VRTDataset rasterXSize="{COLS}" rasterYSize="{ROWS}"><SRS>EPSG:32645</SRS>'
    text += f"<GeoTransform>{where}</GeoTransform>{bands}</VRTDataset>"
    (folder / "a.vrt").write_text(text, encoding="utf-8")
    return kept(folder / "a.vrt", values, (np.arange(COLS) // 10 != 5) & np.ones((ROWS, 1), bool))


def image(values: NDArray[Any], affine: rasterio.Affine = BANEPA) -> xr.DataArray:
    centres = {
        "y": affine.f + (np.arange(ROWS) + 0.5) * affine.e,
        "x": affine.c + (np.arange(COLS) + 0.5) * affine.a,
    }
    return xr.DataArray(
        values,
        dims=("band", "y", "x"),
        coords=centres,
        attrs={"proj:code": "EPSG:32645", "long_name": list(RGB)},
        name="image",
    )


def stored(
    version: int, dtype: str = "uint8", *, fill: float | None = None, south_up: bool = False, **encoding: Any
) -> Callable[[Path], Made]:
    """A Zarr store; the oracle is xarray's reading of it."""

    def make(folder: Path) -> Made:
        values = picture(dtype)
        if fill is not None:
            values[:, ~hole()] = fill
        there = image(values)
        if south_up:
            there = there.isel(y=slice(None, None, -1))
        if fill is not None:
            there.attrs["_FillValue"] = np.asarray(fill, dtype)[()]
        how = {"image": {"chunks": (1, 32, 40), **encoding}}
        there.to_dataset().to_zarr(folder / "a.zarr", zarr_format=version, consolidated=False, encoding=how)
        read = xr.open_dataset(folder / "a.zarr", engine="zarr", consolidated=False, mask_and_scale=False, chunks=None)
        whole = read["image"].sortby("y", ascending=False).to_numpy()
        np.testing.assert_array_equal(whole, values)
        return Made(folder / "a.zarr", whole, np.ones((ROWS, COLS), bool) if fill is None else hole())

    return make


def netcdf(
    engine: str, dtype: str = "uint8", *, fill: float | None = None, south_up: bool = False, **encoding: Any
) -> Callable[[Path], Made]:
    """A NetCDF file, its grid mapping as CF has it; the oracle is xarray's reading of it."""

    def make(folder: Path) -> Made:
        values = picture(dtype)
        if fill is not None:
            values[:, ~hole()] = fill
        there = image(values).drop_attrs(deep=False).assign_attrs(long_name=" ".join(RGB))
        there = there.isel(y=slice(None, None, -1)) if south_up else there
        there = there.assign_coords(spatial_ref=((), 0, {"crs_wkt": rasterio.CRS.from_epsg(32645).to_wkt()}))
        how = {"grid_mapping": "spatial_ref", "_FillValue": None if fill is None else np.asarray(fill, dtype)[()]}
        there.to_dataset().to_netcdf(folder / "a.nc", engine=engine, encoding={"image": {**how, **encoding}})
        with xr.open_dataset(folder / "a.nc", engine=engine, mask_and_scale=False) as read:
            whole = read["image"].sortby("y", ascending=False).to_numpy()
        np.testing.assert_array_equal(whole, values)
        return Made(folder / "a.nc", whole, np.ones((ROWS, COLS), bool) if fill is None else hole())

    return make


def in_memory(dtype: str, *, flat: bool = False, chunks: dict[str, int] | None = None) -> Callable[[Path], Made]:
    """What rioxarray reads of a GeoTIFF, or the same as an array for each band, whole or in Dask's chunks."""

    def make(folder: Path) -> Made:
        values = picture(dtype)
        values[:, ~hole()] = 0
        path = write_tif(folder / "a.tif", values, nodata=0)
        with rioxarray.open_rasterio(path) as read:
            there = read.load()
        there = there if chunks is None else there.chunk(chunks)
        there.name = "a"
        if not flat:
            return Made(there, values, hole())
        layers = xr.Dataset({name: there[k].drop_vars("band") for k, name in enumerate(RGB)})
        return Made(layers.assign_attrs(id="a"), values, hole())

    return make


def band_arrays(folder: Path) -> Made:
    values = picture("uint16")
    arrays = {
        name: image(values)[k].drop_attrs().assign_attrs({"proj:code": "EPSG:32645"}) for k, name in enumerate(RGB)
    }
    xr.Dataset(arrays).to_zarr(folder / "a.zarr", zarr_format=3, consolidated=False)
    np.testing.assert_array_equal(zarr.open_array(folder / "a.zarr" / "red", mode="r")[:], values[0])
    return Made(folder / "a.zarr", values, np.ones((ROWS, COLS), bool))


def band_files(names: tuple[str, ...], folder_is_scene: bool, **profile: Any) -> Callable[[Path], Made]:  # noqa: FBT001
    def make(folder: Path) -> Made:
        values = picture("uint16")
        paths = [
            write_tif(folder / "s" / f"{name}.tif", band, **profile) for name, band in zip(names, values, strict=True)
        ]
        scene = folder / "s" if folder_is_scene else dict(zip(RGB, paths, strict=True))
        return Made(scene, values, np.ones((ROWS, COLS), bool))

    return make


def described(folder: Path) -> Made:
    """Bands in another order, known by their descriptions."""
    values = picture("uint16")
    path = write_tif(folder / "a.tif", np.concatenate([values[::-1], values[:1]]), photometric="MINISBLACK")
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = (ColorInterp.undefined,) * 4
        dataset.descriptions = ("blue", "green", "red", "nir")
    return Made(path, whole(path)[::-1], np.ones((ROWS, COLS), bool))


def grey(folder: Path) -> Made:
    path = write_tif(folder / "a.tif", picture()[0])
    return Made(path, picture()[[0, 0, 0]], np.ones((ROWS, COLS), bool))


DEGREES = rasterio.Affine(3e-6, 0, 85.5, 0, -3e-6, 27.6)
MERCATOR = rasterio.Affine(0.5, 0, 9_518_000, 0, -0.5, 3_200_000)

VARIANTS: dict[str, Callable[[Path], Made]] = {
    "striped": tif(tiled=False, blockysize=7),
    "one strip": tif(tiled=False, blockysize=ROWS),
    "tiled": blocks(),
    "deflate": blocks(compress="deflate", predictor=2),
    "zstd": blocks(compress="zstd"),
    "lzw": blocks(compress="lzw"),
    "packbits": tif(compress="packbits"),
    "jpeg": lossy,
    "bands apart": tif(interleave="band", compress="deflate"),
    "bands together": tif(interleave="pixel", compress="deflate"),
    "BigTIFF": tif(BIGTIFF="YES"),
    "big-endian": tif("uint16", ENDIANNESS="BIG"),
    "cloud-optimised": copied("COG", "tif", blocksize=128),
    "uint16": tif("uint16", tiled=True, blockxsize=48, blockysize=48),
    "int16": tif("int16", compress="zstd", predictor=2),
    "uint32": tif("uint32"),
    "int32": tif("int32"),
    "float32": tif("float32", compress="deflate", predictor=3),
    "float64": tif("float64"),
    "int8": tif("int8"),
    "nodata 0": nodata("uint8", 0),
    "nodata 255": nodata("uint8", 255, compress="lzw"),
    "nodata 65535": nodata("uint16", 65535, interleave="band"),
    "nodata -32768": nodata("int16", -32768),
    "nodata -9999": nodata("float32", -9999),
    "nodata NaN": nodata("float32", float("nan")),
    "NaN and no tag": not_a_number,
    "nodata in one band": dark_roofs,
    "alpha": alpha(),
    "alpha of 16 bits": alpha("uint16", 65535),
    "faint alpha, bands apart": alpha(opaque=1, interleave="band"),
    "internal mask": mask(internal=True),
    "internal mask and JPEG": mask(internal=True, compress="jpeg", photometric="YCBCR"),
    "sidecar mask": mask(internal=False),
    "degrees": place("EPSG:4326", DEGREES),
    "web Mercator": place("EPSG:3857", MERCATOR),
    "south up": place("EPSG:32645", BANEPA @ rasterio.Affine(1, 0, 0, 0, -1, ROWS)),
    "turned": place("EPSG:32645", BANEPA @ rasterio.Affine.rotation(30)),
    "VRT": copied("VRT", "vrt"),
    "VRT of two files": mosaic,
    "in a zip": zipped,
    "PNG with a world file": png_with_a_world_file,
    "PNG of 16 bits": copied("PNG", "png", dtype="uint16"),
    "JPEG file": copied("JPEG", "jpg", exact=False),
    "JPEG 2000": copied("JP2OpenJPEG", "jp2", QUALITY="100", REVERSIBLE="YES"),
    "JPEG 2000 of 16 bits": copied("JP2OpenJPEG", "jp2", dtype="uint16", QUALITY="100", REVERSIBLE="YES"),
    "Erdas Imagine": copied("HFA", "img"),
    "ENVI": copied("ENVI", "dat", dtype="int16"),
    "described bands": described,
    "grey": grey,
    "Zarr 2": stored(2),
    "Zarr 3": stored(3, "uint16"),
    "Zarr 3, shards": stored(3, "float32", chunks=(1, 16, 16), shards=(3, 32, 48)),
    "Zarr 2, south up and nodata": stored(2, "int16", fill=-7, south_up=True),
    "Zarr 3, NaN": stored(3, "float32", fill=float("nan")),
    "Zarr, an array for each band": band_arrays,
    "Zarr 2 of GDAL": copied("Zarr", "zarr", FORMAT="ZARR_V2", COMPRESS="BLOSC", BLOCKSIZE="16,32,2"),
    "Zarr 2 of GDAL, bands apart": copied("Zarr", "zarr", dtype="int16", FORMAT="ZARR_V2", INTERLEAVE="BAND"),
    "Zarr 3 of GDAL": copied("Zarr", "zarr", dtype="uint16", FORMAT="ZARR_V3"),
    "Zarr 3 of GDAL, compressed": copied("Zarr", "zarr", dtype="float32", FORMAT="ZARR_V3", COMPRESS="GZIP"),
    "NetCDF 4": netcdf("h5netcdf", "uint16", chunksizes=(1, 32, 40), zlib=True),
    "NetCDF 4, south up and nodata": netcdf("h5netcdf", "int16", fill=-7, south_up=True),
    "NetCDF 4, NaN": netcdf("h5netcdf", "float32", fill=float("nan")),
    "NetCDF 3": netcdf("scipy", "int16", fill=-7),
    "DataArray": in_memory("uint16"),
    "DataArray of Dask": in_memory("uint16", chunks={"band": 2, "y": 20, "x": 31}),
    "Dataset of Dask, an array for each band": in_memory("uint8", flat=True, chunks={"y": 7, "x": 200}),
    "files of bands": band_files(("x", "y", "z"), folder_is_scene=False),
    "folder of Sentinel-2": band_files(("T45_B04", "T45_B03", "T45_B02"), folder_is_scene=True, tiled=True),
}


WINDOWS = (
    *(Window(row, row + 1, col, col + 1) for row in (0, ROWS - 1) for col in (0, COLS - 1)),
    *(Window(row, row + 20, col, col + 30) for row in (-10, ROWS - 10) for col in (-10, COLS - 10)),
    Window(0, ROWS, 0, COLS),
    Window(-7, ROWS + 9, -3, COLS + 5),
    Window(-20, 0, -20, 0),
    Window(ROWS, ROWS + 4, 0, COLS),
    Window(0, ROWS, COLS, COLS + 1),
    Window(0, 1, 0, COLS),
    Window(ROWS - 1, ROWS, 0, COLS),
    Window(0, ROWS, 0, 1),
    Window(0, ROWS, COLS - 1, COLS),
    Window(15, 33, 31, 65),
    Window(16, 32, 32, 64),
    Window(29, 53, 39, 78),
    *(
        Window(int(row), int(row + height), int(col), int(col + width))
        for row, height, col, width in np.random.default_rng(5).integers((-9, 1, -9, 1), (ROWS, 60, COLS, 70), (12, 4))
    ),
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_windows_are_parts_of_what_others_read(variant: str, tmp_path: Path) -> None:
    made = VARIANTS[variant](tmp_path)
    scene, bands = as_asked(open_scene(made.scene), RGB, Asked())
    assert scene.shape == (ROWS, COLS)
    assert np.dtype(scene.dtype) == made.values.dtype
    source = open_source(scene, bands, estimate_stretch(scene, bands))
    stretched = made.values if source.stretch is None else source.stretch.apply(made.values)
    reach = ((200, 200), (200, 200))
    values, valid = np.pad(stretched, ((0, 0), *reach)), np.pad(made.valid, reach)
    for window in WINDOWS:
        there = (
            slice(window.row_start + 200, window.row_stop + 200),
            slice(window.col_start + 200, window.col_stop + 200),
        )
        raster = source.read(window)
        assert raster.values.dtype == np.uint8
        np.testing.assert_array_equal(raster.valid, valid[there], err_msg=str(window))
        np.testing.assert_array_equal(raster.values, values[:, *there], err_msg=str(window))


def test_the_table_is_long_enough_and_tells_variants_apart() -> None:
    assert len(VARIANTS) >= 50
    assert len(set(map(id, VARIANTS.values()))) == len(VARIANTS)


REAL = ("landsat7_rgb_3857.tif", "landsat_pucallpa_timeseries", "naip_5m_timeseries", "RGB.byte.tif")


@pytest.mark.parametrize("name", REAL)
def test_real_scenes_are_read_as_rasterio_does(name: str, shared_data: Path) -> None:
    there = shared_data / "scenes" / name
    paths = sorted(there.glob("*.tif")) if there.is_dir() else [there]
    if not paths or not paths[0].exists():
        pytest.skip(f"there is no {there}")
    for path in paths:
        scene, bands = as_asked(open_scene(path), RGB, Asked())
        source = open_source(scene, bands, estimate_stretch(scene, bands))
        rows, cols = scene.shape
        with rasterio.open(path) as dataset:
            values = dataset.read(list(bands))
            valid = dataset.dataset_mask() > 0
        for window in (Window(0, 70, 0, 90), Window(rows // 2, rows, cols // 3, cols), Window(rows - 1, rows, 0, 1)):
            raster = source.read(window)
            np.testing.assert_array_equal(raster.values, values[:, *window.slices])
            np.testing.assert_array_equal(raster.valid, valid[window.slices])
