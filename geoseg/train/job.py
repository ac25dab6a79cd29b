"""`TrainJob`: all that a training run is, as its YAML file says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from geoseg.jobs import Strict
from geoseg.models.architectures import ARCHITECTURES, dates_of
from geoseg.train.augment import Augmentation
from geoseg.train.losses import CrossEntropy, Dice, LossTerm

CLASSES_OF_CHANGE: dict[str, Any] = {
    "classes": ({"name": "unchanged", "colour": "#000000"}, {"name": "changed", "colour": "#E4572E"}),
    "background": "unchanged",
}
"""Those of a model of change, unless its job has others."""


Called = Annotated[str, Field(coerce_numbers_to_str=True)]
"""What a file calls a class; a number need not be quoted."""


class ClassOf(Strict):
    """One class of the map; its value is its place in the list."""

    name: str = Field(description="of the class, in legends and cards")
    colour: str = Field(pattern="^#[0-9A-Fa-f]{6}$", description="#rrggbb, for maps")


class Network(Strict):
    """What is trained."""

    architecture: str = Field(description=", ".join(ARCHITECTURES))
    encoder: str = Field(description="an encoder of segmentation-models-pytorch, or tu- and a name of timm's")
    weights: str | None = Field(
        default=None,
        description="how it starts: imagenet, package:efficientnet-lite0, hf:org/name, torchgeo:ENUM or a path from "
        "the working folder",
    )


class Ground(Strict):
    """Georeferenced rasters with labels: polygons in a vector file, or a label raster for each of them."""

    rasters: tuple[str, ...] = Field(min_length=1, description="paths or globs, from the data folder")
    after: tuple[str, ...] | None = Field(
        default=None, description="task change: the later scenes of the same places, in the order of `rasters`"
    )
    labels: str = Field(description="a vector file (any CRS), or a folder of label rasters named like the rasters")
    class_column: str | None = Field(
        default=None, description="column of the vector file that names each polygon's class"
    )
    values: dict[Called, str] | None = Field(
        default=None,
        description="what the file calls a class (a raster's value, a column's entry): the class; the rest is ignored",
    )
    area: str | None = Field(
        default=None, description="vector file of polygons in which the labels are complete; all else is ignored"
    )
    validation_area: str | None = Field(
        default=None, description="vector file of polygons kept for validation: never trained on, not even seen"
    )
    use: Literal["train", "validation"] | None = Field(
        default=None,
        description="what all of it is for; None: train, except where the job's split or validation_area says",
    )
    weight: float = Field(default=1.0, gt=0, description="how often crops come from here, relative to the others")


class Chips(Strict):
    """Folders of small images without georeference, each with a label image of the same stem."""

    images: str = Field(description="folder of the images, from the data folder")
    after: str | None = Field(default=None, description="task change: folder of the later images, of the same names")
    labels: str = Field(description="folder of the label images")
    resolution: float = Field(gt=0, description="metres on the ground per pixel")
    values: dict[Called, str] | None = Field(
        default=None, description="value of the label images: class; others are ignored"
    )
    validation: tuple[str, ...] = Field(
        default=(), description="names kept for validation: globs, or first..last of the sorted names"
    )
    weight: float = Field(default=1.0, gt=0, description="how often crops come from here, relative to the others")


def _kind_of_data(given: Any) -> str:
    """Which of the two it is by its keys, so that what is wrong with it is told of that one."""
    return "chips" if isinstance(given, Chips) or (isinstance(given, dict) and "images" in given) else "ground"


Data = Annotated[Annotated[Ground, Tag("ground")] | Annotated[Chips, Tag("chips")], Discriminator(_kind_of_data)]


class Split(Strict):
    """Validation places among the rasters: whole square blocks of ground, never random tiles."""

    block: float = Field(gt=0, description="side of a block in metres")
    share: float = Field(default=0.2, gt=0, lt=1, description="share of the blocks that is kept for validation")
    seed: int = Field(default=0, description="of the choice of blocks")


class Optimiser(Strict):
    """AdamW, with a warm-up and a cosine to nothing."""

    steps: int = Field(default=2000, gt=0, description="updates of the weights")
    batch: int = Field(default=8, gt=0, description="crops per forward pass")
    accumulate: int = Field(default=1, gt=0, description="forward passes per update")
    rate: float = Field(default=1.5e-3, gt=0, description="learning rate of the decoder")
    encoder_rate: float = Field(
        default=0.33,
        ge=0,
        description="the encoder's learning rate as a share of the decoder's; 0: its weights stay, which is faster",
    )
    weight_decay: float = Field(default=1e-2, ge=0, description="of AdamW: how strongly weights are drawn to zero")
    warm_up: int = Field(default=100, ge=0, description="updates until the full learning rate")
    clip: float = Field(default=2.0, gt=0, description="norm that gradients are clipped to")
    averaging: float = Field(
        default=0.998, ge=0, lt=1, description="decay of the averaged weights (EMA), which are kept"
    )
    precision: Literal["32", "bf16", "16"] = Field(
        default="32", description="bf16 or 16: mixed precision, for GPUs; bf16 also for processors that have it"
    )
    checkpoint_gradients: bool = Field(
        default=False, description="less memory for more time, where the encoder knows how"
    )


class Training(Strict):
    """A dataset or imagery that a model learned from, for its card."""

    name: str = Field(description="of the data, with whom it is of")
    license: str = Field(description="SPDX identifier of its licence, or other")


class TrainJob(Strict):
    """A training run: `geoseg train JOB.yaml`."""

    name: str = Field(pattern=r"^\w[\w.-]*$", description="of the model, and of its folder")
    product: str = Field(description="what the model maps, such as buildings")
    task: Literal["segment", "change"] = Field(
        default="segment", description="change: two scenes of one place in, what has changed between them out"
    )
    title: str = Field(default="", description="one line for the model's card; empty: its name")
    description: str = Field(default="", description="a paragraph for the card: what it maps, and where it fails")
    license: str = Field("other", description="SPDX identifier of the licence of the weights")
    start: str | None = Field(
        default=None,
        description="fine-tune this model (a name of `geoseg models`, or a folder from the working folder); it "
        "fills network and classes",
    )
    start_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the weights of `start` in the result, the rest being what was learned: with 0.5 most of "
        "what it knew of other places and sensors stays, at little loss on those learned (Wortsman et al. 2022, Robust "
        "fine-tuning of zero-shot models)",
    )
    network: Network | None = Field(default=None, description="what is trained; with `start`, that one's if left out")
    bands: tuple[str, ...] = Field(
        default=("red", "green", "blue"), min_length=1, description="STAC common names, in order"
    )
    mean: float = Field(default=0.5, description="of values scaled to 0..1")
    std: float = Field(default=0.5, gt=0, description="standard deviation of them")
    classes: tuple[ClassOf, ...] = Field(default=(), description="value 0, 1, 2 ...")
    background: str | None = Field(
        default=None, description="the class that is no object; unlabelled ground inside an area"
    )
    auxiliary: tuple[Literal["interior"], ...] = Field(
        default=(),
        description="interior: how far inside its object a pixel lies, by which objects that touch are separated",
    )
    separation: tuple[float, float] | None = Field(
        None,
        description="with interior: least score of the seed that every object grows from, and its least area in m2",
    )
    resolution: tuple[float, float] = Field(description="metres on the ground that the model is for, finest, coarsest")
    patch: int = Field(
        default=512, gt=0, multiple_of=32, description="pixels that the network sees at once when it predicts"
    )
    stride: int = Field(default=384, gt=0, description="pixels from one patch to the next")
    data: tuple[Data, ...] = Field(
        min_length=1, description="what it learns from: georeferenced rasters, or folders of small images"
    )
    split: Split | None = Field(default=None, description="which blocks of the rasters are kept for validation")
    crop: int = Field(default=320, gt=0, multiple_of=32, description="pixels of a training crop")
    scales: tuple[float, float] | None = Field(
        default=None, description="resolutions in metres that crops are drawn at; None: a little beyond `resolution`"
    )
    balance: float = Field(default=0.0, ge=0, le=1, description="share of the crops that are centred on a rare class")
    losses: tuple[LossTerm, ...] = Field(
        (CrossEntropy(label_smoothing=0.02), Dice()),
        min_length=1,
        description="terms that are summed, by their weights",
    )
    class_weights: Literal["none", "inverse", "effective"] = Field(
        default="none",
        description="cross-entropy and focal: weigh classes by the inverse of how many pixels they have, or of their "
        "effective number (Cui et al. 2019)",
    )
    gap_weight: float = Field(default=0.0, ge=0, description="how much more pixels count that lie between two objects")
    boundary_weight: float = Field(
        default=0.0, ge=0, description="how much more pixels count within two of where two classes meet"
    )
    auxiliary_weight: float = Field(
        default=1.0, ge=0, description="of the auxiliary scores' loss beside that of classes"
    )
    augmentation: Augmentation = Field(
        default=Augmentation(), description="how crops are made more various than they are"
    )
    optimiser: Optimiser = Field(default=Optimiser(), description="how long and how fast it learns")
    validate_every: int = Field(default=250, gt=0, description="updates between two looks at the validation places")
    validation_resolutions: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(), description="metres; empty: that of the data, or the nearest"
    )
    patience: int | None = Field(
        default=None, gt=0, description="stop after so many validations without a better score"
    )
    seed: int = Field(default=0, description="of all chance: the same seed gives the same weights on a CPU")
    workers: int = Field(default=1, ge=0, description="processes that make crops beside the training")
    training_data: tuple[Training, ...] = Field(default=(), description="what it learned from, for its card")

    @property
    def dates(self) -> int:
        """Scenes of one place that the network takes at once."""
        return 2 if self.task == "change" else 1

    @property
    def drawn_at(self) -> tuple[float, float]:
        """Resolutions in metres that crops are drawn at, finest and coarsest."""
        return self.scales or (self.resolution[0] * 0.7, self.resolution[1] * 1.1)

    @model_validator(mode="before")
    @classmethod
    def _with_classes(cls, given: Any) -> Any:
        """What has changed, where a job of change says nothing else."""
        if isinstance(given, dict) and given.get("task") == "change" and not {"start", "classes"} & given.keys():
            return {**given, **CLASSES_OF_CHANGE}
        return given

    @model_validator(mode="after")
    def _fits_its_task(self) -> TrainJob:
        known = None if self.network is None else dates_of(self.network.architecture)
        if self.network is not None and self.network.architecture in ARCHITECTURES and known != self.dates:
            fitting = ", ".join(name for name, one in ARCHITECTURES.items() if one.dates == self.dates)
            msg = f"the architecture {self.network.architecture} takes {_scenes(known)} and the task {self.task} "
            raise ValueError(msg + f"has {_scenes(self.dates)}: choose one of {fitting}")
        for number, data in enumerate(self.data):
            if (data.after is not None) != (self.dates > 1):
                msg = f"data.{number} has {'no `after`' if self.dates > 1 else '`after`'}, the later scenes, which "
                raise ValueError(msg + "the task change needs, and no other")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TrainJob:
        names = [c.name for c in self.classes]
        if self.start is None and self.start_share:
            msg = "start_share is the share of a model that the job starts from: name it (start), or leave this out"
            raise ValueError(msg)
        if self.start is None and (self.network is None or not names):
            msg = "network and classes are needed where the job does not start from a model"
            raise ValueError(msg)
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            msg = f"classes: {', '.join(twice)} comes twice; give each class a name of its own"
            raise ValueError(msg)
        if self.background is not None and names and self.background not in names:
            msg = f"the background {self.background!r} must be one of the classes {', '.join(names)}"
            raise ValueError(msg)
        if names and self.separation is not None and "interior" not in self.auxiliary:
            msg = "separation needs the auxiliary score interior, by which objects are told apart"
            raise ValueError(msg)
        if not 0 < self.resolution[0] <= self.resolution[1]:
            msg = f"resolution goes from fine to coarse, got {self.resolution}"
            raise ValueError(msg)
        if self.scales is not None and not 0 < self.scales[0] <= self.scales[1]:
            msg = f"scales goes from fine to coarse, in metres above 0, got {self.scales}"
            raise ValueError(msg)
        if self.stride > self.patch:
            msg = f"the stride {self.stride} must not exceed the patch {self.patch}, or pixels are left out"
            raise ValueError(msg)
        return self


def _scenes(count: int | None) -> str:
    return "two scenes" if count == 2 else "one scene"  # noqa: PLR2004  dates
