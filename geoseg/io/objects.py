"""Zarr stores at addresses: https, and the object stores s3, gs and az, through obstore (extra `remote`).

What GDAL is told of an object store by the environment (`AWS_S3_ENDPOINT`, `AWS_HTTPS`, `AWS_VIRTUAL_HOSTING`,
`AWS_NO_SIGN_REQUEST`) counts here, too, besides obstore's own names, so that a GeoTIFF and a Zarr store of one bucket
are read alike. A connection that drops is tried again; an error is never a chunk that does not exist.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import WrapperStore

from geoseg.errors import SceneError
from geoseg.io import remote
from geoseg.io.cubes import LONGEST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

log = logging.getLogger("geoseg")

RETRY: dict[str, Any] = {
    "max_retries": 4,
    "backoff": {"init_backoff": dt.timedelta(seconds=0.3), "max_backoff": dt.timedelta(seconds=8), "base": 3},
    "retry_timeout": dt.timedelta(seconds=60),
}
"""How often a request is made again, and within which time."""

WITHIN = "30s"
"""How long a connection may say nothing."""

SIGNED = ("AWS_ACCESS_KEY_ID", "AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE")
"""Where one of these is set, a bucket can be asked without looking for credentials elsewhere."""


def group_at(url: str) -> tuple[Any, str | None]:
    """The `zarr.Group` at an address; or the one above, and the name of the array in it that the address is of.

    Raises `SceneError` if there is none that can be read.
    """
    found, name = _node(url), None
    if isinstance(found, zarr.Array):
        above, _, name = url.rstrip("/").rpartition("/")
        found = _node(above)
    if not isinstance(found, zarr.Group):
        msg = f"{url}: cannot be read as a Zarr group; give that of one that xarray, rioxarray or GDAL wrote"
        raise SceneError(msg)
    for key, array in _arrays(found, url):
        if array.ndim == 1 and array.shape[0] > LONGEST:
            msg = f"{url}: {key} has {array.shape[0]} values, at most {LONGEST} can be right; check its metadata"
            raise SceneError(msg)
    return found, name


def _node(url: str) -> Any:
    store = _store(url)
    try:
        return zarr.open(store, mode="r")
    except Exception as error:  # whatever obstore has of networks and servers, and zarr of metadata
        msg = f"{url}: cannot be read as a Zarr store ({_why(error)}); check the address, and AWS_... for your bucket"
        raise SceneError(msg) from error


def _why(error: BaseException) -> str:
    """What went wrong, without what obstore tells of its own insides."""
    return " ".join(str(error).partition("Debug source")[0].split())[:300]


def _arrays(group: Any, url: str) -> Iterator[tuple[str, Any]]:
    try:
        yield from group.arrays()
    except Exception as error:  # a web server lists no folder
        msg = f"{url}: its server does not list what is there; put its metadata in one: zarr.consolidate_metadata"
        raise SceneError(msg) from error


def _store(url: str) -> Any:
    """What zarr reads an address through. Raises `SceneError` if obstore is not there."""
    from zarr.storage import ObjectStore

    return _Patient(ObjectStore(_objects(url), read_only=True))


class _Patient(WrapperStore[Any]):
    """Asks again where an answer broke off; what still fails is an `OSError`."""

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The value of a key, or a part of it; None if there is no such key."""
        return await self._patiently(lambda: super(_Patient, self).get(key, prototype, byte_range))

    async def get_partial_values(self, prototype: Any, key_ranges: Iterable[Any]) -> list[Any]:
        """Parts of values."""
        wanted = list(key_ranges)
        found: list[Any] = await self._patiently(lambda: super(_Patient, self).get_partial_values(prototype, wanted))
        return found

    @staticmethod
    async def _patiently(ask: Callable[[], Awaitable[Any]]) -> Any:
        from obstore.exceptions import BaseError

        for wait in remote.REMOTE_WAITS:
            try:
                return await ask()
            except BaseError as error:
                log.info("%s; trying again in %.1f s", _why(error), wait)
                await asyncio.sleep(wait)
        try:
            return await ask()
        except BaseError as error:
            raise OSError(_why(error)) from error


def _objects(url: str) -> Any:
    if find_spec("obstore") is None:
        msg = f"{url}: a Zarr store at an address is read with obstore: pip install 'geoseg[remote]'"
        raise SceneError(msg)
    from obstore.store import from_url

    plain = url.startswith("http://")
    options = {"timeout": WITHIN, "allow_http": plain or os.environ.get("AWS_HTTPS", "").upper() == "NO"}
    how: dict[str, Any] = {"client_options": options, "retry_config": RETRY}
    if url.startswith("s3://"):
        how["config"] = _as_gdal_has_it()
    try:
        return from_url(url, **how)
    except Exception as error:  # of a URL that is none, or of settings that contradict each other
        msg = f"{url}: is no address of an object store that can be used: {_why(error)}"
        raise SceneError(msg) from error


def _as_gdal_has_it() -> dict[str, Any]:
    """What GDAL's settings for /vsis3 are in obstore's words."""
    told = os.environ.get
    config: dict[str, Any] = {}
    if endpoint := told("AWS_S3_ENDPOINT"):
        secure = told("AWS_HTTPS", "YES").upper() != "NO"
        config["endpoint"] = endpoint if "://" in endpoint else f"http{'s' if secure else ''}://{endpoint}"
    if told("AWS_VIRTUAL_HOSTING"):
        config["virtual_hosted_style_request"] = told("AWS_VIRTUAL_HOSTING", "").upper() not in {"NO", "FALSE", "OFF"}
    if told("AWS_NO_SIGN_REQUEST", "NO").upper() in {"YES", "TRUE", "ON"}:
        config["skip_signature"] = True
    if region := told("AWS_REGION") or told("AWS_DEFAULT_REGION"):
        config["region"] = region
    return config


def state_at(url: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Size, time and entity tag of the first of these objects that an address has; all unknown if it has none.

    Nobody is asked where that would need credentials that the environment does not hold.
    """
    unknown = {"bytes": None, "modified": None, "etag": None}
    if url.startswith(("gs://", "az://")) or (url.startswith("s3://") and not any(map(os.environ.get, SIGNED))):
        return unknown
    if find_spec("obstore") is None:
        return unknown
    above, _, last = url.rstrip("/").rpartition("/")
    for name in names or (last,):
        try:
            told = _objects(url if names else above).head(name)
        except Exception:  # noqa: BLE001, S112  # that it cannot be told is all there is to say
            continue
        when = told["last_modified"]
        return {"bytes": told["size"], "modified": when and when.isoformat(), "etag": told["e_tag"]}
    return unknown
