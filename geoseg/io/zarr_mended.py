"""Zarr 3 as GDAL has written it before the standard was done: arrays without a fill value, or without codecs.

zarr refuses such metadata. They are completed while they are read: what is not said is 0, and bytes are little-endian.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

METADATA = "zarr.json"

TO_BYTES = {"bytes", "sharding_indexed", "vlen-utf8", "vlen-bytes"}
"""Codecs that make bytes of an array; each array needs one."""


def mended(home: Path) -> Any:
    """A store that completes the metadata of a group's arrays; None where nothing is to be completed."""
    lacking = {file.parent.name for file in home.glob(f"*/{METADATA}") if _completed(_content(file)) is not None}
    return _store(home) if lacking else None


def _content(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # xarray tells what is wrong with it


def _completed(content: Any) -> dict[str, Any] | None:
    """The metadata of an array with what they lack; None where they lack nothing, or are those of no array."""
    if not isinstance(content, dict) or content.get("node_type") != "array":
        return None
    codecs = content.get("codecs", [])
    if not isinstance(codecs, list) or not all(isinstance(codec, dict) for codec in codecs):
        return None
    made = dict(content)
    if content.get("fill_value", 0) is None:
        made["fill_value"] = 0
    if not TO_BYTES & {str(codec.get("name")) for codec in codecs}:
        before = [codec for codec in codecs if codec.get("name") == "transpose"]
        after = [codec for codec in codecs if codec.get("name") != "transpose"]
        made["codecs"] = [*before, {"name": "bytes", "configuration": {"endian": "little"}}, *after]
    return None if made == content else made


def _store(home: Path) -> Any:
    from zarr.storage import LocalStore, WrapperStore

    class Mended(WrapperStore[Any]):
        """A folder whose arrays' metadata are complete."""

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            """The value of a key."""
            found = await super().get(key, prototype, byte_range)
            if found is None or not key.endswith(METADATA):
                return found
            made = _completed(json.loads(found.to_bytes()))
            return found if made is None else prototype.buffer.from_bytes(json.dumps(made).encode())

    return Mended(LocalStore(home, read_only=True))
