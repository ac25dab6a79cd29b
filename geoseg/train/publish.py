"""A trained network as a model's folder: weights (safetensors), card (STAC item with MLM extension, README), job."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pystac
import shapely
import yaml
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
from safetensors.torch import save_file

from geoseg.catalog import MULTIHASH_SHA256, sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from shapely.geometry.base import BaseGeometry

    from geoseg.train.job import TrainJob


@dataclass(frozen=True)
class Learned:
    """What is to be said of a trained network besides its job."""

    scores: dict[str, float]
    """Name: value, on the validation places."""
    ground: BaseGeometry | None
    """Where it was trained, longitude and latitude; None where that is not known."""
    software: dict[str, str]


def publish(folder: Path, job: TrainJob, network: torch.nn.Module, learned: Learned) -> Path:
    """Write the model's folder, which `geoseg segment --model` takes; returns it. Weights are halved in precision."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in network.state_dict().items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    (folder / "job.yaml").write_text(job_file(job), encoding="utf-8")
    item = _item(job, weights, sum(value.numel() for value in tensors.values()), learned)
    text = json.dumps(item.to_dict(include_self_link=False), indent=2)
    (folder / "item.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_page(job, learned), encoding="utf-8")
    return folder


def job_file(job: TrainJob) -> str:
    """The job as YAML that gives the same job again: what differs from the defaults."""
    settings = job.model_dump(mode="json", exclude_defaults=True)
    if "losses" in settings:  # a term's kind is the default of its own class, and tells which that is
        told = zip(job.losses, settings["losses"], strict=True)
        settings["losses"] = [{"kind": term.kind, **options} for term, options in told]
    text: str = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return text


def _item(job: TrainJob, weights: Path, parameters: int, learned: Learned) -> pystac.Item:
    item = pystac.Item(
        id=job.name,
        geometry=None if learned.ground is None else json.loads(shapely.to_geojson(learned.ground)),
        bbox=None if learned.ground is None else [round(v, 6) for v in learned.ground.bounds],
        datetime=dt.datetime.now(dt.UTC).replace(microsecond=0),
        properties=_properties(job, learned),
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
    item.add_asset("job", pystac.Asset("./job.yaml", "Training job", media_type="application/yaml", roles=["metadata"]))
    FileExtension.ext(asset, add_if_missing=True).apply(
        size=weights.stat().st_size, checksum=MULTIHASH_SHA256 + sha256_of(weights)
    )
    _describe(item, job, parameters)
    return item


def _properties(job: TrainJob, learned: Learned) -> dict[str, Any]:
    background = next((value for value, c in enumerate(job.classes) if c.name == job.background), None)
    return {
        "title": job.title or job.name,
        "description": job.description or f"{_does(job)} See README.md beside this item.",
        "license": job.license,
        "processing:software": learned.software,
        "geoseg:product": job.product,
        "geoseg:encoder": _network(job)[1],
        "geoseg:background": background,
        "geoseg:auxiliary": list(job.auxiliary),
        "geoseg:separation": _separation(job),
        "geoseg:stride": job.stride,
        "geoseg:resolution": list(job.resolution),
        "geoseg:scores": [{"name": name, "value": round(value, 3)} for name, value in learned.scores.items()],
        "geoseg:training_data": [source.model_dump() for source in job.training_data],
    }


def _does(job: TrainJob) -> str:
    return f"Maps changes of {job.product}." if job.dates > 1 else f"Maps {job.product}."


def _taken(job: TrainJob) -> str:
    """What the network takes, where that is more than a scene."""
    return "two scenes of one place on one grid, the earlier one first; of each, " if job.dates > 1 else ""


def _separation(job: TrainJob) -> dict[str, float] | None:
    return None if job.separation is None else dict(zip(("seed", "min_seed_area"), job.separation, strict=True))


def _network(job: TrainJob) -> tuple[str, str]:
    """Architecture and encoder. A job that is carried out has both."""
    if job.network is None:
        msg = f"{job.name}: the job names no network"
        raise ValueError(msg)
    return job.network.architecture, job.network.encoder


def _describe(item: pystac.Item, job: TrainJob, parameters: int) -> None:
    """The fields of the Machine Learning Model extension."""
    outputs = len(job.classes) + len(job.auxiliary)
    dates, time = ([job.dates], ["time"]) if job.dates > 1 else ([], [])
    side, shape = job.patch, ["batch", *time, "bands", "height", "width"]
    MLMExtension.ext(item, add_if_missing=True).apply(
        name=job.name,
        architecture=_network(job)[0],
        tasks=[TaskType.SEMANTIC_SEGMENTATION],
        framework="pytorch",
        pretrained=True,
        pretrained_source=job.start or (job.network.weights if job.network else None),
        total_parameters=parameters,
        batch_size_suggestion=1,
        input=[
            ModelInput.create(
                name="patch",
                bands=[ModelBand.create(name=band) for band in job.bands],
                input=InputStructure.create([-1, *dates, len(job.bands), side, side], shape, DataType.UINT8),
                resize_type=ResizeType.INTERPOLATION_LINEAR,
                description=f"{_taken(job)}uint8 / 255, then (value - mean) / stddev; pixels without data are set to "
                "the mean.",
            )
        ],
        output=[
            ModelOutput.create(
                name="scores",
                tasks=[TaskType.SEMANTIC_SEGMENTATION],
                result=ResultStructure.create(
                    [-1, outputs, side, side], ["batch", "score", "height", "width"], DataType.FLOAT32
                ),
                classes=[
                    Classification.create(
                        value=value, name=c.name, description=c.name, color_hint=c.colour.removeprefix("#").upper()
                    )
                    for value, c in enumerate(job.classes)
                ],
            )
        ],
    )
    # one for each band, as the extension's schema has it; the library's own setter knows a single one only
    scaling = ValueScaling.create(type=ValueScalingType.Z_SCORE, mean=job.mean, stddev=job.std).to_dict()
    item.properties["mlm:input"][0]["value_scaling"] = [scaling for _ in job.bands]


def _page(job: TrainJob, learned: Learned) -> str:
    """The model's page for people."""
    architecture, encoder = _network(job)
    fine, coarse = job.resolution
    scores = "".join(f"| {name} | {value:.3f} |\n" for name, value in learned.scores.items())
    sources = "".join(f"| {source.name} | {source.license} |\n" for source in job.training_data)
    scores = scores or "| nothing: the job keeps no validation place | |\n"
    sources = sources or "| not stated | |\n"
    return (
        f"# {job.name}\n\n{job.title or job.product}\n\n{job.description}\n\n| | |\n|---|---|\n"
        f"| Architecture | {architecture}, encoder {encoder} |\n"
        f"| Input | {_taken(job)}{', '.join(job.bands)}; patches of {job.patch} x {job.patch} pixels, "
        f"one every {job.stride} |\n"
        f"| Resolution | {fine:g} to {coarse:g} m on the ground |\n"
        f"| Output | {', '.join(c.name for c in job.classes)} |\n| Licence | {job.license} |\n\n"
        f"## What it learned from\n\n| data | licence |\n|---|---|\n{sources}\n"
        "The job file beside this page is the recipe: `geoseg train job.yaml --data DATA --out FOLDER`.\n\n"
        "## Scores on the validation places\n\nOn ground that was kept out of training by the job's split.\n\n"
        f"| measured | value |\n|---|---|\n{scores}"
    )
