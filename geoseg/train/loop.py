"""The training run itself: Lightning does the loop, this says what a step is, how it is judged and what is kept.

A run has a folder. `checkpoints/last.ckpt` in it is written every so many steps; the same command on the same folder
goes on from there after a kill, as if nothing had been. `logs/` holds CSV and TensorBoard logs, `pictures/` predictions
beside labels.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.callbacks.weight_averaging import WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import save_image

from geoseg.errors import OptionError
from geoseg.train.data import Crops
from geoseg.train.losses import IGNORED, auxiliary_loss, boundary, class_weights_of, total_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
    from numpy.typing import NDArray

    from geoseg.train.job import TrainJob
    from geoseg.train.places import Maps, Place, Sample

SAVE_EVERY = 100
"""Updates between two checkpoints: what a kill may cost."""
PICTURES = 4
"""How many validation squares are drawn each time."""
SCORE = "mean_iou"


class Task(lightning.LightningModule):
    """A network that learns the classes of a job, and its auxiliary scores if it has any."""

    def __init__(self, job: TrainJob, network: torch.nn.Module, counts: NDArray[np.float64], pictures: Path) -> None:
        """`counts`: (classes,), how much there is of each class, in square metres."""
        super().__init__()
        self.job, self.network, self.pictures = job, network, pictures
        self.classes = len(job.classes)
        self.background = next((v for v, c in enumerate(job.classes) if c.name == job.background), None)
        self.objects = [value for value in range(self.classes) if value != self.background]
        pixels = (counts / math.prod(job.drawn_at)).tolist()  # of the middle of the resolutions, as factors go
        weights = None if job.class_weights == "none" else class_weights_of(pixels, job.class_weights)
        self.class_weights: torch.Tensor | None
        self.register_buffer("class_weights", weights, persistent=False)
        self.confusion = np.zeros((self.classes, self.classes), np.int64)
        self.chance, self._step_of_chance = torch.Generator(), -1
        self.judged = 0
        """The step of the newest validation."""
        self.updates_before = 0
        """Those of another trainer, before the present one began to count."""

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """What the network takes: uint8 (n, dates x bands, y, x) as float, scaled as the card will say."""
        values = images.float().div_(255).sub_(self.job.mean).div_(self.job.std)
        return values.contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[torch.Tensor, Maps], _index: int) -> torch.Tensor:
        """The loss of a batch of crops."""
        self._begin_chance()
        mixed = self.job.augmentation.batch(*batch, self.chance, background=self.background)
        outputs = self.network(self.scaled(mixed.images))
        loss: torch.Tensor = mixed.loss(lambda maps: self._loss(outputs, maps))
        self.log("loss", loss, prog_bar=True, batch_size=len(mixed.images))
        return loss

    def _begin_chance(self) -> None:
        """Chance begins anew with each update, so that a run that goes on is the one that was stopped."""
        if self.global_step != self._step_of_chance:
            self._step_of_chance = self.global_step
            seed = int(np.random.SeedSequence((self.job.seed, self.global_step)).generate_state(1)[0])
            self.chance.manual_seed(seed)
            torch.manual_seed(seed)  # that of dropout

    def _loss(self, outputs: torch.Tensor, maps: Maps) -> torch.Tensor:
        job, target = self.job, maps["labels"].long()
        weight = _pixel_weight(job, target, maps["gap"])
        loss = total_loss(job.losses, outputs[:, : self.classes], target, weight, self.class_weights)
        if job.auxiliary:
            wanted = torch.stack([maps[name] for name in job.auxiliary], 1)
            extra = auxiliary_loss(outputs[:, self.classes :], wanted, target != IGNORED)
            loss = loss + job.auxiliary_weight * extra
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say which job it is of."""
        checkpoint["job"] = self.job.model_dump_json()

    def on_validation_epoch_start(self) -> None:
        """Count anew."""
        self.confusion[:] = 0

    @property
    def updates(self) -> int:
        """How many there were by now."""
        return self.updates_before + self.global_step

    def validation_step(self, batch: tuple[torch.Tensor, Maps], index: int) -> None:
        """Count what is right and wrong of one square."""
        images, maps = batch
        found = self.network(self.scaled(images))[:, : self.classes].argmax(1)
        known = maps["labels"] != IGNORED
        pairs = maps["labels"][known].long() * self.classes + found[known]
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).reshape(self.classes, -1).cpu().numpy()
        if index < PICTURES:
            self._draw(images[0], maps["labels"][0], found[0], index)

    def on_validation_epoch_end(self) -> None:
        """IoU per class and their mean, over the classes that are objects and occur."""
        self.judged = self.global_step
        both = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(0) + self.confusion.sum(1) - both
        iou = np.divide(both, union, out=np.full(self.classes, np.nan), where=union > 0)
        for value in self.objects:
            if np.isfinite(iou[value]):
                self.log(f"iou_{self.job.classes[value].name}", float(iou[value]))
        seen = iou[self.objects][np.isfinite(iou[self.objects])]
        self.log(SCORE, float(seen.mean()) if seen.size else 0.0, prog_bar=True)

    def _draw(self, image: torch.Tensor, labels: torch.Tensor, found: torch.Tensor, index: int) -> None:
        """Image, labels and prediction side by side; grey = nothing known."""
        table = torch.full((256, 3), 127, dtype=torch.uint8)
        for value, c in enumerate(self.job.classes):
            table[value] = torch.tensor(list(bytes.fromhex(c.colour.removeprefix("#"))), dtype=torch.uint8)
        maps = [table[values.long().cpu()].permute(2, 0, 1) for values in (labels, found)]
        dates = image.cpu().chunk(self.job.dates)
        shown = [one[[0, 1, 2]] if len(one) >= 3 else one[[0, 0, 0]] for one in dates]  # noqa: PLR2004  red, green, blue
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"step-{self.updates:06d}-{index}.png"
        save_image([values.float() / 255 for values in (*shown, *maps)], path, nrow=len(dates) + 2, padding=4)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with two learning rates, a warm-up and a cosine."""
        wish = self.job.optimiser
        encoder = {id(p) for p in self.network.get_submodule("encoder").parameters()}
        groups = [
            {"params": [p for p in self.network.parameters() if (id(p) in encoder) == inside], "lr": wish.rate * factor}
            for inside, factor in ((True, wish.encoder_rate), (False, 1.0))
        ]
        optimiser = torch.optim.AdamW(groups, weight_decay=wish.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _pace(step, wish.warm_up, wish.steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _pixel_weight(job: TrainJob, target: torch.Tensor, gap: torch.Tensor) -> torch.Tensor | None:
    """(n, y, x): how much each pixel counts; None where all count alike."""
    if not job.gap_weight and not job.boundary_weight:
        return None
    weight = 1 + job.gap_weight * gap
    return weight + job.boundary_weight * boundary(target) if job.boundary_weight else weight


def _pace(step: int, warm_up: int, steps: int) -> float:
    """The learning rate as a share of its highest: up in a line, down in a cosine."""
    down = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - warm_up) / max(1, steps - warm_up))))
    return min((step + 1) / max(1, warm_up), down + 1e-3)


def averaged(before: torch.Tensor, now: torch.Tensor, updates: torch.Tensor | int, *, decay: float) -> torch.Tensor:
    """A weight's moving average after one more update (EMA).

    Its memory grows with the run, up to that of `decay`: otherwise a run shorter than that memory would end with
    what it began with (the warm-up of TensorFlow's ExponentialMovingAverage).
    """
    kept = min(decay, (1 + float(updates)) / (10 + float(updates)))
    return kept * before + (1 - kept) * now


def mixed_with(before: Mapping[str, torch.Tensor], network: torch.nn.Module, share: float) -> None:
    """Move a network's weights towards what they were before, of which so large a share is in the result.

    So it keeps most of what it knew beyond what it has learned from now (WiSE-FT: Wortsman et al. 2022, "Robust
    fine-tuning of zero-shot models", CVPR).
    """
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.lerp_(before[name].to(value.device), share)


class Squares(Dataset[tuple[torch.Tensor, "Maps"]]):
    """The validation squares, made once."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        """How many there are."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Maps]:
        """Image and maps of one."""
        return self.samples[index].image, self.samples[index].maps


class Progress(lightning.Callback):
    """Tells an observer how many updates are done."""

    def __init__(self, observe: Callable[[str, int, int], None]) -> None:
        self._observe = observe

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """One more."""
        self._observe("training", trainer.global_step, trainer.max_steps)


class Checkpoints(Checkpoint):
    """Writes all that a run needs to go on from here, every `SAVE_EVERY` updates.

    Where validation is due that comes first, so that a run that goes on has it behind it. The last update is not
    written: nothing would be left to do from there, and averaging, which ends with the training, would be left out.
    """

    def __init__(self, path: Path, done: int, validate_every: int | None) -> None:
        self._path, self._saved, self._validate_every = path, done, validate_every

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """After an update."""
        if not self._validate_every or trainer.global_step % self._validate_every:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, *_: object) -> None:
        """After a validation."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        step = trainer.global_step
        if step % SAVE_EVERY or step == self._saved or step >= trainer.max_steps:
            return
        self._saved = step
        for logger in trainer.loggers:
            logger.save()
        whole = self._path.with_suffix(".part")
        trainer.save_checkpoint(whole)
        whole.replace(self._path)  # a kill leaves the one before, or this one


class Notes(lightning.Callback):
    """One line for each validation, for whoever reads a log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._began = say, time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, task: Any) -> None:
        """The scores so far."""
        if trainer.sanity_checking:
            return
        scores = {k: float(v) for k, v in trainer.callback_metrics.items() if k == SCORE or k.startswith("iou_")}
        told = ", ".join(f"{name} {value:.3f}" for name, value in sorted(scores.items()))
        self._say(f"step {task.updates}, {time.monotonic() - self._began:.0f} s: {told}")


def fit(
    job: TrainJob,
    network: torch.nn.Module,
    places: Sequence[Place],
    folder: Path,
    device: torch.device,
    *,
    observe: Callable[[str, int, int], None],
    say: Callable[[str], None],
) -> dict[str, float]:
    """Train; the network then has the averaged weights of the last step, and of its start's the job's share.

    Returns the validation scores.

    Goes on from `folder/checkpoints/last.ckpt` if there is one. Raises `OptionError` if that is of another job.
    """
    lightning.seed_everything(job.seed, workers=True, verbose=False)
    counts = np.asarray(sum(place.class_pixels() for place in places), np.float64)
    samples = [s for place in places for s in place.validation(job.validation_resolutions, job.patch)]
    if job.patience is not None and not samples:
        msg = f"{job.name}: patience counts validations, and no place is kept for any: give a split, or leave it out"
        raise OptionError(msg)
    last = _last(folder)
    done = _checked_step(last, job)
    if job.optimiser.checkpoint_gradients and hasattr(network.get_submodule("encoder"), "model"):
        encoder: Any = network.get_submodule("encoder.model")
        encoder.set_grad_checkpointing()
    if not job.optimiser.encoder_rate:
        network.get_submodule("encoder").requires_grad_(requires_grad=False)
    before = {name: value.clone() for name, value in network.state_dict().items()} if job.start_share else {}
    task = Task(job, network.to(memory_format=torch.channels_last), counts, folder / "pictures")
    with _quiet():
        trainer = _trainer(job, folder, device, [Progress(observe), Notes(say)], done, validates=bool(samples))
    crops = DataLoader(
        Crops(job, places, done),
        batch_size=job.optimiser.batch,
        num_workers=job.workers,
        prefetch_factor=3 if job.workers else None,
        persistent_workers=job.workers > 0,
        worker_init_fn=_one_thread,
    )
    validation = DataLoader(Squares(samples), batch_size=1)
    with _quiet():
        try:
            trainer.fit(
                task, crops, validation if samples else None, ckpt_path=last if done else None, weights_only=True
            )
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            msg = f"{job.name}: optimiser.batch is {job.optimiser.batch} and crop {job.crop}: some layer has a single "
            msg += "value to normalise; take a batch of 2 or more, or a larger crop"
            raise OptionError(msg) from error
        if before:
            mixed_with(before, network, job.start_share)
            task.updates_before = trainer.global_step
            # the weights that a callback has averaged would be put in place of these
            trainer = _judge(device, Notes(say))
        if samples and (before or task.judged != trainer.global_step):  # the scores are those of what is kept
            trainer.validate(task, validation, verbose=False)
    return {k: float(v) for k, v in trainer.callback_metrics.items() if k == SCORE or k.startswith("iou_")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning without its advice, which is for those who call it; what goes wrong is still told.

    Its logger has a handler of its own, by which lines would come twice.
    """
    logger = logging.getLogger("lightning.pytorch")
    logger.handlers.clear()
    debugging = logging.getLogger("geoseg").isEnabledFor(logging.DEBUG)
    logger.setLevel(logging.INFO if debugging else logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # few workers, no validation places
        warnings.filterwarnings("ignore", message=r".*treespec, LeafSpec\)", category=FutureWarning)  # its own affair
        warnings.filterwarnings(
            "ignore", message="(Experiment logs|Checkpoint) directory"
        )  # a run that goes on has its folder
        yield


def _one_thread(_worker: int) -> None:
    """What makes crops must not take the cores from what learns from them."""
    torch.set_num_threads(1)


def _checked_step(last: Path, job: TrainJob) -> int:
    """The step that an earlier run of this job came to."""
    if not last.exists():
        return 0
    try:
        state = torch.load(last, weights_only=True, map_location="cpu")
    except Exception as error:  # what is damaged or hostile may fail in any way
        msg = f"{last}: the checkpoint of an earlier run is damaged ({type(error).__name__}); --overwrite trains anew"
        raise OptionError(msg) from error
    if state.get("job") != job.model_dump_json():
        msg = f"{last.parent.parent}: holds a run of another job; choose another --out, or --overwrite"
        raise OptionError(msg)
    return int(state["global_step"])


def _judge(device: torch.device, notes: Notes) -> lightning.Trainer:
    """What looks at the validation places once more, and leaves nothing behind."""
    where = {"accelerator": "gpu", "devices": [device.index or 0]} if device.type == "cuda" else {"accelerator": "cpu"}
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return lightning.Trainer(**where, **quiet, enable_checkpointing=False, callbacks=[notes])


def _trainer(
    job: TrainJob,
    folder: Path,
    device: torch.device,
    callbacks: list[lightning.Callback],
    done: int,
    *,
    validates: bool,
) -> lightning.Trainer:
    wish = job.optimiser
    callbacks.append(Checkpoints(_last(folder), done, job.validate_every if validates else None))
    if wish.averaging:
        callbacks.append(WeightAveraging(avg_fn=partial(averaged, decay=wish.averaging)))
    if job.patience is not None:
        callbacks.append(EarlyStopping(SCORE, mode="max", patience=job.patience))
    return lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        precision={"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[wish.precision],  # type: ignore[arg-type]
        max_steps=wish.steps,
        accumulate_grad_batches=wish.accumulate,
        gradient_clip_val=wish.clip,
        val_check_interval=job.validate_every * wish.accumulate if validates else None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=[_table(folder, done), TensorBoardLogger(folder, "logs", version="tensorboard")],
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _last(folder: Path) -> Path:
    """The checkpoint of a run."""
    return folder / "checkpoints" / "last.ckpt"


def _table(folder: Path, done: int) -> CSVLogger:
    """The CSV log of a run, with what is in it of the updates that are done; the library begins each one anew."""
    told, rows = folder / "logs" / "metrics.csv", list[dict[str, Any]]()
    if told.exists():
        with told.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"] or done) < done]
    logger = CSVLogger(folder, "logs", version="")
    logger.experiment.metrics += rows
    return logger
