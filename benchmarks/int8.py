"""What a network in int8 would give: how fast it is, and what it loses, beside float32 and bfloat16.

    python benchmarks/int8.py SCENE [MODEL ...] [--patches 48] [--repeats 7]

Static quantisation after training (QDQ, weights per channel), calibrated with patches of the scene: by ONNX Runtime's
`quantize_static`, done by itself and by OpenVINO, and by NNCF where that is installed, done by OpenVINO; what is not
int8 is float32. As many other patches of the same scene are what is compared: labels of pixels, and scores as a share
of their range. Patches that are white for more than a twentieth are left out. Prints the median CPU time of a pass of
one patch on one thread, all ways in turn, with the shortest and the longest, and the seconds that calibrating took.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import openvino
import rasterio
import torch
from forward import made_one
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from geoseg.catalog import bundled_models
from geoseg.memory import keep_freed_memory
from geoseg.models.by_onnxruntime import convert
from geoseg.models.by_openvino import PRECISION, SETTINGS
from geoseg.models.weights import load_predict

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from geoseg.catalog import ModelSpec

    Values = NDArray[np.float32]
    Pass = Callable[[Values], Values]

WHITE, MOST_WHITE = 255, 0.05


class Patches(CalibrationDataReader):  # type: ignore[misc] # it has no types
    """Patches for calibration, one by one."""

    def __init__(self, name: str, patches: list[Values]) -> None:
        self._given = iter([{name: patch} for patch in patches])

    def get_next(self) -> dict[str, Values] | None:
        return next(self._given, None)


def patches_of(scene: Path, spec: ModelSpec, count: int) -> list[Values]:
    """So many patches (1, bands, y, x), scaled, from anywhere in the scene, the same each time."""
    side, found = spec.patch, list[Values]()
    scaled = load_predict(spec, torch.device("cpu")).scaled
    with rasterio.open(scene) as dataset:
        rows, cols = (np.arange(0, size - side, side) for size in dataset.shape)
        places = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1).reshape(-1, 2)
        for row, col in np.random.default_rng(0).permutation(places):
            values = dataset.read((1, 2, 3), window=((row, row + side), (col, col + side)))
            if (values == WHITE).all(0).mean() < MOST_WHITE:
                found.append(scaled(torch.from_numpy(values[None])).contiguous().numpy())
            if len(found) == count:
                return found
    raise SystemExit(f"{scene}: has {len(found)} patches with data, not {count}: choose fewer --patches")


def by_onnxruntime(path: Path) -> Pass:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})[0]


def by_openvino(model: Any, precision: str) -> Pass:
    compiled = openvino.Core().compile_model(model, "CPU", {**SETTINGS, PRECISION: precision})
    request = compiled.create_infer_request()

    def infer(values: Values) -> Values:
        request.infer([values], share_inputs=True)
        scores: Values = request.get_output_tensor().data.copy()
        return scores

    return infer


def ways(spec: ModelSpec, patches: list[Values], folder: Path) -> dict[str, Pass]:
    plain, cleaned, quantised = (str(folder / f"{name}.onnx") for name in ("plain", "cleaned", "quantised"))
    with torch.no_grad():
        Path(plain).write_bytes(convert(made_one(spec), torch.from_numpy(patches[0]))["onnx"])
    read = openvino.Core().read_model
    made = {
        "OpenVINO, float32": by_openvino(read(plain), "f32"),
        "OpenVINO, bfloat16": by_openvino(read(plain), "bf16"),
    }
    began = time.perf_counter()
    quant_pre_process(plain, cleaned, skip_symbolic_shape=True)
    name = onnxruntime.InferenceSession(plain).get_inputs()[0].name
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(cleaned, quantised, Patches(name, patches), QuantFormat.QDQ, per_channel=True, **types)
    print(f"   calibrated by ONNX Runtime in {time.perf_counter() - began:.0f} s", flush=True)
    made["int8 of ONNX Runtime, by itself"] = by_onnxruntime(Path(quantised))
    made["int8 of ONNX Runtime, by OpenVINO"] = by_openvino(read(quantised), "f32")
    if find_spec("nncf") is None:
        print("   int8 of NNCF: left out, nncf is not installed")
        return made
    import nncf

    began = time.perf_counter()
    preset = nncf.QuantizationPreset.MIXED
    of_nncf = nncf.quantize(read(plain), nncf.Dataset(patches), preset=preset, subset_size=len(patches))
    print(f"   calibrated by NNCF in {time.perf_counter() - began:.0f} s", flush=True)
    made["int8 of NNCF, by OpenVINO"] = by_openvino(of_nncf, "f32")
    return made


def measure(spec: ModelSpec, scene: Path, count: int, repeats: int) -> None:
    print(f"{spec.name}, {count} patches of {spec.patch} to calibrate, {count} others to compare:", flush=True)
    patches = patches_of(scene, spec, 2 * count)
    with tempfile.TemporaryDirectory() as folder:
        made = ways(spec, patches[:count], Path(folder))
    compared, seconds = patches[count:], {name: list[float]() for name in made}
    scores = {name: np.concatenate([call(values) for values in compared]) for name, call in made.items()}
    for values in compared[:repeats]:
        for name, call in made.items():
            began = time.process_time()
            call(values)
            seconds[name].append(time.process_time() - began)
    expected = scores["OpenVINO, float32"]
    for name, each in scores.items():
        median, least, most = (1e3 * of(seconds[name]) for of in (statistics.median, min, max))
        differ, off = (labels(each, spec) != labels(expected, spec)).mean(), np.abs(each - expected) / np.ptp(expected)
        print(f"   {name:34} {median:6.1f} ms ({least:.1f} to {most:.1f})", end="")
        print(
            f"; labels differ on {100 * differ:.3f} %; scores by {off.mean():.1e}, at most {off.max():.1e}", flush=True
        )


def labels(scores: Values, spec: ModelSpec) -> NDArray[np.int64]:
    """The most probable class of each pixel."""
    classes = torch.from_numpy(scores[:, : len(spec.legend.classes)])
    return torch.cat(
        [
            torch.nn.functional.interpolate(each, size=(spec.patch, spec.patch), mode="bilinear").argmax(1)
            for each in classes.split(1)
        ]
    ).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("models", nargs="*", default=["buildings-deeplabv3plus", "buildings-segformer"])
    parser.add_argument("--patches", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # exporters have much to say
    keep_freed_memory()
    torch.set_num_threads(1)
    for spec in bundled_models():
        if spec.name in args.models:
            measure(spec, args.scene, args.patches, args.repeats)


if __name__ == "__main__":
    main()
