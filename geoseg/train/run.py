"""`train`: from a job and a folder of labelled imagery to a model's folder that `geoseg segment` takes."""

from __future__ import annotations

import logging
import shutil
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import numpy as np
import shapely
import torch

from geoseg.catalog import find_model
from geoseg.errors import OptionError, OutputError
from geoseg.models.networks import build_network
from geoseg.models.pretrained import load_pretrained
from geoseg.models.weights import choose_device, load_network
from geoseg.train.data import places_of, rare_classes
from geoseg.train.heads import quicken_segformer_heads
from geoseg.train.job import CLASSES_OF_CHANGE, ClassOf, Network, TrainJob
from geoseg.train.loop import fit
from geoseg.train.places import GroundPlace, LabelledRaster
from geoseg.train.publish import Learned, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shapely.geometry.base import BaseGeometry

    from geoseg.catalog import ModelSpec
    from geoseg.train.places import Place

log = logging.getLogger("geoseg")


def train(
    job: TrainJob,
    data: Path,
    out: Path,
    *,
    device: str = "auto",
    overwrite: bool = False,
    observe: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
    say: Callable[[str], None] = log.info,
) -> Path:
    """Train as the job says, on imagery whose paths count from `data`; returns the model's folder, `out/<name>`.

    A run that was stopped goes on from its last checkpoint. Raises the errors of `geoseg.errors` for a job, data or
    weights that are not right, before anything is trained.
    """
    folder, runs = out / job.name, out / f".{job.name}.run"
    if (folder / "item.json").exists() and not overwrite:
        msg = f"{folder}: holds a trained model already; choose another --out, or --overwrite"
        raise OutputError(msg)
    if overwrite:
        shutil.rmtree(runs, ignore_errors=True)
    start = None if job.start is None else find_model(None, job.start)
    job = job if start is None else _filled(job, start)
    where = choose_device(device)
    places = places_of(job, data)
    _find_rare(places)
    if start is not None and job.start_share:
        _check_same_outputs(job, start)
    network = _network(job, start)
    quicken_segformer_heads(network)
    runs.mkdir(parents=True, exist_ok=True)
    scores = fit(job, network, places, runs, where, observe=observe, say=say)
    named = {
        f"IoU of {k.removeprefix('iou_')}, validation places": v for k, v in scores.items() if k.startswith("iou_")
    }
    software = {name: version(name) for name in ("geoseg", "torch", "torchgeo", "segmentation-models-pytorch")}
    return publish(folder, job, network, Learned(named, _ground(places), software))


def _filled(job: TrainJob, start: ModelSpec) -> TrainJob:
    """The job with network, bands and classes of the model that it starts from, where it says nothing else."""
    if start.dates > job.dates:
        msg = f"{job.name}: {start.name} takes two scenes of one place: say `task: change`, or start from another model"
        raise OptionError(msg)
    if start.dates < job.dates:
        return _of_change(job, start)
    legend = start.legend
    background = None if legend.background is None else legend.name(legend.background)
    if job.classes and background not in {c.name for c in job.classes}:
        background = None  # other classes than the model's: what is no object, the job itself would have to say
    defaults = {
        "network": Network(architecture=start.architecture, encoder=start.encoder, weights=None),
        "bands": start.bands,
        "mean": start.mean[0],
        "std": start.std[0],
        "classes": tuple(ClassOf(name=c.name, colour=c.colour) for c in legend.classes),
        "background": background,
        "auxiliary": start.auxiliary,
    }
    given = job.model_fields_set
    if "interior" in (job.auxiliary if "auxiliary" in given else start.auxiliary):
        defaults["separation"] = start.separation
    merged = job.model_dump() | {name: value for name, value in defaults.items() if name not in given}
    return TrainJob.model_validate(merged)


def _check_same_outputs(job: TrainJob, start: ModelSpec) -> None:
    """Raises `OptionError` unless each weight of the job's network means what it means in the model it starts from."""
    before = [*(c.name for c in start.legend.classes), *start.auxiliary]
    now = [*(c.name for c in job.classes), *job.auxiliary]
    if job.dates != start.dates or before != now:
        msg = f"{job.name}: start_share needs the outputs of {start.name} ({', '.join(before)}), and the job has "
        raise OptionError(f"{msg}{', '.join(now)}; leave start_share out")


def _of_change(job: TrainJob, start: ModelSpec) -> TrainJob:
    """The job of a model of change that begins as one of single scenes: what it sees is that one's, if nothing else."""
    if job.network is None:
        msg = f"{job.name}: {start.name} takes one scene; name the network that is to take two, on its encoder: "
        raise OptionError(msg + f"network: {{architecture: siamese-{start.architecture}, encoder: {start.encoder}}}")
    defaults: dict[str, Any] = {"bands": start.bands, "mean": start.mean[0], "std": start.std[0]}
    if not job.classes:
        defaults |= CLASSES_OF_CHANGE
    given = job.model_fields_set
    return TrainJob.model_validate(job.model_dump() | {k: v for k, v in defaults.items() if k not in given})


def _network(job: TrainJob, start: ModelSpec | None) -> torch.nn.Module:
    """The network as training begins."""
    if job.network is None:
        msg = f"{job.name}: name a network, or a model to start from"
        raise OptionError(msg)
    torch.manual_seed(job.seed)
    wish, outputs = job.network, len(job.classes) + len(job.auxiliary)
    network = build_network(wish.architecture, encoder=wish.encoder, bands=len(job.bands), outputs=outputs)
    if start is not None:
        _take_over(network, start, job)
    elif wish.weights is not None:
        load_pretrained(network, wish.weights, encoder=wish.encoder, bands=job.bands)
    return network


def _take_over(network: torch.nn.Module, start: ModelSpec, job: TrainJob) -> None:
    """The weights of a model, with its outputs kept for classes of the same name; what is new starts at random.

    Of a model of single scenes a network for two takes what sees a scene; its last layers see something else.
    """
    before = [*(c.name for c in start.legend.classes), *start.auxiliary]
    now = [*(c.name for c in job.classes), *job.auxiliary]
    known = [(now.index(name), before.index(name)) for name in now if name in before]
    own, given = network.state_dict(), load_network(start).state_dict()
    for name, value in given.items():
        mine = own.get(name)
        if name.startswith("segmentation_head") and start.dates != job.dates:
            continue
        is_head = name.startswith("segmentation_head") and before != now
        outputs_aside = 1 if is_head else 0
        if mine is None or mine.shape[outputs_aside:] != value.shape[outputs_aside:]:
            msg = f"{job.name}: cannot start from {start.name}: layer {name} is {tuple(value.shape)} there and "
            msg += f"{'missing' if mine is None else tuple(mine.shape)} here; leave network out to keep its own"
            raise OptionError(msg)
        if is_head:
            for here, there in known:
                mine[here] = value[there]
        else:
            mine.copy_(value)
    network.load_state_dict(own)


def _find_rare(places: Sequence[Place]) -> None:
    """Tell each place which classes are rare over all of them."""
    rare = rare_classes(np.sum([place.class_pixels() for place in places], axis=0))
    for place in places:
        place.rare = rare


def _ground(places: Sequence[Place]) -> BaseGeometry | None:
    """Where the training part of the places lies, as boxes in longitude and latitude."""
    rasters = [p.train for p in places if isinstance(p, GroundPlace) and p.train is not None]
    boxes = [_box(raster) for raster in rasters]
    return shapely.normalize(shapely.union_all(boxes)) if boxes else None


def _box(raster: LabelledRaster) -> BaseGeometry:
    outline = gpd.GeoSeries([shapely.box(*raster.ground.bounds)], crs=raster.crs).to_crs(4326)
    return shapely.box(*(round(v, 4) for v in outline.total_bounds))
