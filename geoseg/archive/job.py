"""The job of a run: which scenes, and how they are mapped, merged and compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from geoseg.changes.many import Comparison  # noqa: TC001
from geoseg.duplicates import Merge  # noqa: TC001  # pydantic wants it at run time
from geoseg.io.layers import layers_of
from geoseg.io.masks import in_full
from geoseg.jobs import Strict
from geoseg.planned import SegmentJob
from geoseg.selection import Scenes  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path


class RunJob(Strict):
    """An archive run: `geoseg run JOB.yaml`."""

    product: str = Field(
        description="what to map, such as buildings; spectral: nothing, pairs are compared by their bands"
    )
    model: str | None = Field(
        default=None, description="a name of `geoseg models`, or a model's folder; None: the product's own"
    )
    title: str = Field(default="", description="of the collection of all results")
    license: str = Field(default="other", description="SPDX identifier of the licence of the results")
    scenes: Scenes = Field(description="which scenes are mapped")
    out: str = Field(default="maps", description="folder for all results; each scene gets one in it")
    aoi: str | None = Field(default=None, description="vector file: what is outside its polygons is nodata")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="call a pixel an object from this probability on; None: the best class"
    )
    separate: bool = Field(default=True, description="tell objects that touch apart, where the model can")
    fill_holes: float = Field(
        default=0.0,
        ge=0,
        le=1e12,
        description="square metres below which a hole in a footprint is filled, unless a footprint is in it",
    )
    min_area: float = Field(
        default=4.0, ge=0, le=1e12, description="square metres below which a footprint is dropped, its holes filled"
    )
    smooth: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="metres of the outline, before and behind each point, over which the pixels' staircase is smoothed",
    )
    simplify: float | None = Field(
        default=None,
        ge=0,
        le=1e6,
        description="metres by which outlines may leave that, with fewer vertices; None: one pixel, 0: not at all",
    )
    regularise: bool = Field(default=False, description="give buildings straight walls and right angles")
    merge: Merge | None = Field(
        default=None,
        description="at the end, make one layer of all footprints: each once where scenes overlap, whole where they "
        "meet; {} for the defaults, None: `geoseg merge` can do it later",
    )
    change: Comparison | None = Field(
        default=None,
        description="when scenes are mapped, compare pairs or series of them: what is new, gone or became another; "
        "{} for each scene with the latest one before it",
    )
    bands: dict[str, int] | None = Field(
        default=None, description="bands of each scene by number, from 1, such as {red: 4, green: 3, blue: 2}"
    )
    nodata: float | tuple[float, ...] | None = Field(
        default=None, description="value that stands for no data, or one for each band that the model needs"
    )
    mask: str | None = Field(
        default=None,
        description="what is not valid: scl or qa_pixel, of each scene's own, with =FILE of one for all; or a raster's "
        "path, whose 0 is not valid",
    )
    resolution: float | None = Field(
        default=None, gt=0, description="side of a pixel of all maps, in the units of the CRS; None: each scene's own"
    )
    crs: str | int | None = Field(
        default=None, description="CRS of all maps, such as EPSG:32645; None: each scene's own"
    )
    output_grid: Literal["target", "source"] = Field(
        default="target", description="source: models see the resolution, and the maps keep each scene's own grid"
    )
    mask_clouds: str | None = Field(
        default=None,
        description="find clouds and their shadows, which are not valid then (extra `clouds`): auto, by the scene's "
        "name, l1c, l2a, or l2a,SCALE,OFFSET",
    )
    zarr: bool = Field(default=False, description="write the maps as a Zarr store with overviews, too: labels.zarr")
    formats: tuple[str, ...] = Field(
        default=(), description="further formats of footprints, by their suffix, such as [gpkg, fgb, pmtiles]"
    )
    stride: int | None = Field(default=None, gt=0, description="pixels from one patch to the next; None: the model's")
    tile: int | None = Field(
        default=None, gt=0, description="side of a tile in pixels, which never changes the result; None: chosen"
    )
    batch: int | None = Field(default=None, gt=0, le=4096, description="patches per forward pass; None: chosen")
    max_memory: str | None = Field(
        default=None,
        description="what a worker may take, such as 2GB, for each of its threads: tile and batch are chosen, and in "
        "one process how many forward passes go side by side",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:N")
    backend: Literal[
        "auto",
        "torch",
        "torch-bf16",
        "torch-compile",
        "torch-compile-bf16",
        "torch-compile-fp16",
        "openvino",
        "onnxruntime",
        "openvino-bf16",
    ] = Field(
        default="auto",
        description="who does the forward passes, of which the last bits of scores depend; auto: for scenes that were "
        "begun the one that began, for others the fastest here, measured before a long run; -bf16: in bfloat16, "
        "which is far faster on recent processors, and changes a label here and there; torch-compile: for a GPU, "
        "-fp16: in float16",
    )
    cluster: str = Field(
        default="local", description="local, processes:N, tcp://host:port or a recipe (YAML); --cluster goes before it"
    )

    @field_validator("formats")
    @classmethod
    def _known(cls, formats: tuple[str, ...]) -> tuple[str, ...]:
        layers_of(formats)
        return formats

    def segment_job(self, scene: str, out: Path, data: Path, collection: str) -> SegmentJob:
        """The job of one scene."""
        names = (
            "threshold",
            "separate",
            "fill_holes",
            "min_area",
            "smooth",
            "simplify",
            "regularise",
            "stride",
            "tile",
            "batch",
            "device",
            "backend",
            "bands",
            "nodata",
            "resolution",
            "crs",
            "output_grid",
            "zarr",
            "formats",
            "mask_clouds",
        )
        mask = None if self.mask is None else in_full(self.mask, data)
        aoi = None if self.aoi is None else str((data / self.aoi).absolute())
        options = {name: getattr(self, name) for name in names}
        return SegmentJob(
            scene, self.product, str(out), self.model, aoi=aoi, mask=mask, collection=collection, **options
        )
