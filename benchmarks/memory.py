"""Peak memory of the command against the area of the scene.

    python benchmarks/memory.py SCENE.tif [--limit-mb 2500] [--growth-mb 150]

Maps the scene, then a mosaic of twice as many rows and columns made of it (a virtual raster, so that nothing is
copied), each in a process of its own, and prints the peak resident memory of both, and what `geoseg plan` says that it
is at most. Exits with status 1 if the first is above the limit, the second more than the growth above the first, or one
above its plan.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import rasterio
import rasterio.shutil

from geoseg.archive import RunJob, plan_archive


def mosaic(scene: Path, path: Path, times: int = 2) -> None:
    """A virtual raster of `times` x `times` copies of a scene, side by side."""
    rasterio.shutil.copy(scene, path, driver="VRT")
    root = ET.fromstring(path.read_text(encoding="utf-8"))  # noqa: S314  GDAL wrote it the line before
    width, height = int(root.attrib["rasterXSize"]), int(root.attrib["rasterYSize"])
    root.attrib |= {"rasterXSize": str(width * times), "rasterYSize": str(height * times)}
    for band in root.findall("VRTRasterBand"):
        (source,) = band.findall("SimpleSource")
        band.remove(source)
        for name in source.findall("SourceFilename"):
            name.text, name.attrib["relativeToVRT"] = str(scene.resolve()), "0"
        for index in range(times * times):
            copy = ET.fromstring(ET.tostring(source))  # noqa: S314
            (place,) = copy.findall("DstRect")
            place.attrib |= {"xOff": str(index % times * width), "yOff": str(index // times * height)}
            band.append(copy)
    path.write_text(ET.tostring(root, encoding="unicode"), encoding="utf-8")


def peak_megabytes(scene: Path, out: Path) -> tuple[float, float]:
    """Peak resident megabytes, and seconds, of mapping a scene in a process of its own."""
    began = time.time()
    command = [sys.executable, "-m", "geoseg", "segment", str(scene), "buildings", "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"mapping {scene} failed with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024, time.time() - began


def planned_megabytes(scene: Path) -> float:
    """What a plan says that mapping a scene takes at most, in megabytes of 2^20 bytes, as those above."""
    job = RunJob.model_validate({"product": "buildings", "scenes": {"files": [str(scene)], "allow": ["vsi"]}})
    return plan_archive(job, scene.parent).estimate().memory / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--limit-mb", type=float, default=2500)
    parser.add_argument("--growth-mb", type=float, default=150)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "mosaic.vrt"
        mosaic(args.scene, large)
        peaks, bounds = [], []
        for scene in (args.scene, large):
            peak, seconds = peak_megabytes(scene, Path(folder) / "out")
            with rasterio.open(scene) as dataset:
                megapixels = dataset.width * dataset.height / 1e6
            bound = planned_megabytes(scene.resolve())
            taken = f"peak {peak:.0f} MB, planned at most {bound:.0f} MB"
            print(f"{scene.name}: {megapixels:.0f} Mpx, {taken}, {seconds:.0f} s", flush=True)
            peaks.append(peak)
            bounds.append(bound)
    growth = peaks[1] - peaks[0]
    print(f"four times the area: {growth:+.0f} MB")
    above = any(peak > bound for peak, bound in zip(peaks, bounds, strict=True))
    if peaks[0] > args.limit_mb or growth > args.growth_mb or above:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
