"""Files that are spoilt at random, opened and read: each has to be a scene, or be told in one sentence.

    python benchmarks/fuzz.py [--minutes 3] [--seed 1] [--keep FOLDER]

Makes one small scene of each kind (GeoTIFFs of several compressions, JPEG, PNG, JPEG 2000, a virtual raster, NetCDF,
Zarr 2 and 3, shards, files by band, STAC items and a catalog of them), spoils one of its files (cut off, bytes changed
in the header or anywhere, a piece doubled or left out) and opens, surveys and reads it as a run would, in a process of
its own with 4 GB of address space beyond what it has and a minute of time. A traceback, a crash, too much memory or
time, or a sentence of several lines is a defect: it is told with the kind and the seed, and the spoilt scene is kept in
`--keep`. Status 1 if there are any.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.shutil
import xarray as xr
import zarr

from geoseg.errors import GeosegError
from geoseg.inventory import CatalogJob, write_catalog
from geoseg.io.scenes import Asked, as_asked, estimate_stretch, open_scene, open_source, survey
from geoseg.window import Window

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, COLS = 120, 150
RGB = ("red", "green", "blue")
PLACE = rasterio.Affine(0.3, 0, 355000, 0, -0.3, 3055000)
ADDRESS_SPACE = 4 << 30
SECONDS = 60
LONGEST = 2000  # letters of a sentence


def picture(dtype: str = "uint8") -> Any:
    """(3, y, x): smooth, so that compressions have something to do."""
    rng = np.random.default_rng(1)
    return (rng.random((3, 8, 10)).repeat(15, 1).repeat(15, 2) * 90 + rng.random((3, ROWS, COLS)) * 20 + 1).astype(
        dtype
    )


def raster(path: Path, dtype: str = "uint8", **profile: Any) -> Path:
    """A file that rasterio writes."""
    size = {"height": ROWS, "width": COLS, "count": 3, "dtype": dtype}
    with rasterio.open(path, "w", crs="EPSG:32645", transform=PLACE, **size, **{"driver": "GTiff", **profile}) as file:
        file.write(picture(dtype))
    return path


def copied(folder: Path, name: str, driver: str, **options: Any) -> Path:
    """The same in a format that can only be copied to."""
    first = raster(folder / "first.tif")
    rasterio.shutil.copy(first, folder / name, driver=driver, **options)
    first.unlink()
    return folder / name


def virtual(folder: Path) -> Path:
    """A virtual raster beside the file that it is of."""
    raster(folder / "a.tif", tiled=True, blockxsize=64, blockysize=64)
    rasterio.shutil.copy(folder / "a.tif", folder / "a.vrt", driver="VRT")
    return folder / "a.vrt"


def dataset() -> xr.Dataset:
    """An image as xarray has it."""
    axes = {"y": PLACE.f + (np.arange(ROWS) + 0.5) * PLACE.e, "x": PLACE.c + (np.arange(COLS) + 0.5) * PLACE.a}
    attrs = {"proj:code": "EPSG:32645", "long_name": list(RGB)}
    return xr.DataArray(picture("int16"), dims=("band", "y", "x"), coords=axes, attrs=attrs, name="image").to_dataset()


def store(folder: Path, version: int) -> Path:
    """A Zarr store."""
    path = folder / "a.zarr"
    encoding = {"image": {"chunks": (1, 64, 64)}}
    dataset().to_zarr(path, zarr_format=version, consolidated=version == 2, encoding=encoding)
    return path


def shards(folder: Path) -> Path:
    """A Zarr store whose chunks lie in shards."""
    path = folder / "a.zarr"
    how = {"chunks": (1, 64, 64), "shards": (3, 128, 192), "compressors": [zarr.codecs.GzipCodec()]}
    dataset().to_zarr(path, zarr_format=3, consolidated=False, encoding={"image": how})
    return path


def netcdf(folder: Path) -> Path:
    """A NetCDF file."""
    dataset().to_netcdf(folder / "a.nc", engine="h5netcdf")
    return folder / "a.nc"


def by_band(folder: Path) -> str:
    """A file for each band."""
    for index, name in enumerate(RGB):
        size = {"height": ROWS, "width": COLS, "count": 1, "dtype": "uint8"}
        with rasterio.open(folder / f"{name}.tif", "w", "GTiff", crs="EPSG:32645", transform=PLACE, **size) as file:
            file.write(picture()[index], 1)
    return ",".join(f"{name}={folder / name}.tif" for name in RGB)


def item(folder: Path) -> Path:
    """A STAC item of a raster."""
    raster(folder / "a.tif")
    write_catalog(CatalogJob(folder))
    return next(folder.rglob("a.json"))


def catalog(folder: Path) -> str:
    """A STAC collection of two rasters, as one scene."""
    raster(folder / "a.tif")
    raster(folder / "b.tif", nodata=90)
    write_catalog(CatalogJob(folder))
    return f"mosaic:{folder / 'collection.json'}"


def zipped(folder: Path) -> str:
    """A raster inside an archive."""
    first = raster(folder / "a.tif")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(first, "a.tif")
    first.unlink()
    return f"/vsizip/{folder / 'a.zip'}/a.tif"


TILES: dict[str, Any] = {"tiled": True, "blockxsize": 64, "blockysize": 64}
KINDS: dict[str, Callable[[Path], str | Path]] = {
    "striped": lambda folder: raster(folder / "a.tif"),
    "deflate": lambda folder: raster(folder / "a.tif", compress="deflate", predictor=2, **TILES),
    "zstd, nodata, 16 bit": lambda folder: raster(folder / "a.tif", "uint16", compress="zstd", nodata=0, **TILES),
    "lzw, float": lambda folder: raster(folder / "a.tif", "float32", compress="lzw", interleave="band"),
    "jpeg": lambda folder: raster(folder / "a.tif", compress="jpeg", photometric="ycbcr", **TILES),
    "big": lambda folder: raster(folder / "a.tif", bigtiff="yes"),
    "cog": lambda folder: copied(folder, "a.tif", "COG", blocksize=64),
    "png": lambda folder: copied(folder, "a.png", "PNG", worldfile="yes"),
    "jpg": lambda folder: copied(folder, "a.jpg", "JPEG", worldfile="yes"),
    "jp2": lambda folder: copied(folder, "a.jp2", "JP2OpenJPEG"),
    "img": lambda folder: copied(folder, "a.img", "HFA"),
    "vrt": virtual,
    "zip": zipped,
    "netcdf": netcdf,
    "zarr 2": lambda folder: store(folder, 2),
    "zarr 3": lambda folder: store(folder, 3),
    "zarr 3, shards": shards,
    "by band": by_band,
    "item": item,
    "catalog": catalog,
}


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Other bytes."""
    if not data:
        return bytes(chance.randrange(256) for _ in range(chance.randrange(1, 50)))
    kind, place = chance.randrange(5), chance.randrange(len(data))
    if kind == 0:
        return data[:place]
    if kind == 1:  # a piece is missing, or twice there
        other = min(len(data), place + chance.randrange(1, 200))
        return data[:place] + data[other:] if chance.random() < 0.5 else data[:other] + data[place:]
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 8)):
        where = chance.randrange(min(len(data), 900) if kind == 2 else len(data))
        changed[where] = chance.choice((0, 255, 127, 48 + chance.randrange(10), chance.randrange(256)))
    return bytes(changed)


def attempt(path: str | Path) -> str | None:
    """Open, survey and read a scene as a run would; what geoseg says of it if it is none."""
    try:
        scene, bands = as_asked(open_scene(path), RGB, Asked())
        source = open_source(scene, bands, estimate_stretch(scene, bands))
        rows, cols = scene.shape
        for window in (Window(-3, 64, -3, 64), Window(rows - 50, rows + 5, cols - 50, cols + 9)):
            source.read(window)
        survey(scene)
    except GeosegError as error:
        return str(error)
    return None


def in_a_process(path: str | Path) -> str:
    """How an attempt ends: "read", "told", or what the defect is."""
    into, out_of = os.pipe()
    child = os.fork()
    if not child:
        os.close(into)
        size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESS_SPACE,) * 2)
        signal.alarm(SECONDS)
        try:
            told = attempt(path)
            said = "read" if told is None else "told" if "\n" not in told and len(told) < LONGEST else f"says {told!r}"
        except BaseException:  # noqa: BLE001  # whatever it is, it is what is looked for
            said = traceback.format_exc()
        os.write(out_of, said.encode()[-60000:])
        os._exit(0)
    os.close(out_of)
    with os.fdopen(into, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return said if not status else f"ended by signal {signal.Signals(status & 127).name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz"))
    args = parser.parse_args()
    ends: Counter[str] = Counter()
    defects: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        good, tried = Path(name) / "good", Path(name) / "tried"
        paths = {}
        for kind, make in KINDS.items():
            folder = good / kind.translate({ord(" "): "_", ord(","): None})
            folder.mkdir(parents=True)
            paths[kind] = folder, str(make(folder))
            if (said := in_a_process(paths[kind][1])) != "read":
                raise SystemExit(f"{kind}: is not read even as it is: {said}")
        until, seed = time.monotonic() + 60 * args.minutes, args.seed
        while time.monotonic() < until:
            chance = random.Random(seed)
            kind = list(KINDS)[seed % len(KINDS)]
            folder, path = paths[kind]
            shutil.rmtree(tried, ignore_errors=True)
            shutil.copytree(folder, tried)
            files = sorted(file for file in tried.rglob("*") if file.is_file())
            victim = chance.choice(files)
            victim.write_bytes(spoil(victim.read_bytes(), chance))
            said = in_a_process(path.replace(str(folder), str(tried)))
            ends[said if said in {"read", "told"} else "defect"] += 1
            if said not in {"read", "told"}:
                last = said.strip().splitlines()[-1]
                if not defects[last]:
                    shutil.copytree(tried, args.keep / f"{seed}", dirs_exist_ok=True)
                    print(f"{kind}, {victim.name}, seed {seed}: {said}", flush=True)
                defects[last] += 1
            seed += 1
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    sys.exit(bool(defects))


if __name__ == "__main__":
    main()
