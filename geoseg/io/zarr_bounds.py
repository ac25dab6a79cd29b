"""Chunks of Zarr stores that are decoded no further than a chunk can reach.

A chunk's metadata say how large it is, and its compressed bytes say so again, or not at all: a few kilobytes may become
gigabytes (a decompression bomb), and Blosc, which is told where its input ends by that input alone, reads beyond it. So
what bytes promise is looked at before they are decoded, and what promises nothing is decoded up to the limit.

Zarr decodes inside a pipeline of codecs that its configuration names. `bounded` names another one while arrays are
opened, which keep it; arrays that others open are as they were.
"""

from __future__ import annotations

import asyncio
import bz2
import struct
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

LEAST = 16 << 20
"""Bytes that a chunk may have whatever its metadata say: texts have no size."""

TIMES = 4
"""How many times larger than a chunk what it is made of may be, before filters and with the index of a shard."""

BLOSC = struct.Struct("<4x3I")
"""A header's bytes behind the first four: of what it holds, of a block, of all that is compressed."""

ZSTD = b"\x28\xb5\x2f\xfd"
SKIPPED_ZSTD = 0x184D2A50

AUTO = 47
"""`wbits` of zlib by which it takes its own headers and those of gzip."""


def limit_of(spec: Any) -> int:
    """Bytes that a chunk may decode to (zarr's `ArraySpec`)."""
    size = getattr(spec.dtype, "item_size", 1)
    for side in spec.shape:
        size *= int(side)
    return max(LEAST, TIMES * size)


def within(kind: str, data: bytes | memoryview, limit: int) -> bytes | None:
    """Decoded bytes, or None where the codec of this kind may be trusted with them.

    Raises `ValueError` where they would become more than `limit` or are damaged in a way that the codec does not bear.
    """
    if kind in UNTOLD:
        return _decoded(UNTOLD[kind], bytes(data), limit)
    if kind in TOLD:
        size = TOLD[kind](data)
        if size is None:
            return _streamed(data, limit)
        _check(size, limit)
    return None


def _is_told(kind: str, data: bytes | memoryview, limit: int) -> bool:
    """Whether bytes say how many they become, if that can be many at all; where they do, raises as `within`."""
    if kind not in TOLD:
        return kind not in UNTOLD
    size = TOLD[kind](data)
    _check(size or 0, limit)
    return size is not None


def _check(size: int, limit: int) -> None:
    if size > limit:
        msg = f"a chunk becomes {size} bytes or more, at most {limit} can be right"
        raise ValueError(msg)


def _blosc_size(data: bytes | memoryview) -> int:
    if len(data) < BLOSC.size:
        msg = "a chunk is cut off"
        raise ValueError(msg)
    size, _, compressed = BLOSC.unpack_from(data)
    if compressed != len(data):
        msg = f"a chunk has {len(data)} bytes and says that it has {compressed}"
        raise ValueError(msg)
    return int(size)


def _lz4_size(data: bytes | memoryview) -> int:
    if len(data) < 4:  # noqa: PLR2004  # bytes of the size
        msg = "a chunk is cut off"
        raise ValueError(msg)
    return int.from_bytes(data[:4], "little")


def _zstd_size(data: bytes | memoryview) -> int | None:
    """What a frame's header says of its content (RFC 8878, 3.1.1.1), which may be nothing."""
    if bytes(data[:4]) != ZSTD or len(data) < 6:  # noqa: PLR2004  # the least that a frame can have
        return None
    flags = data[4]
    alone, dictionary = bool(flags & 32), (0, 1, 2, 4)[flags & 3]
    width = (1 if alone else 0, 2, 4, 8)[flags >> 6]
    start = 5 + (not alone) + dictionary
    if not width or len(data) < start + width:
        return None
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)  # noqa: PLR2004  # the RFC's


def _streamed(data: bytes | memoryview, limit: int) -> bytes:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(bytes(data))), "zstd") as stream:
            made = bytes(stream.read(limit + 1))
    except (OSError, pa.ArrowException) as error:
        msg = f"a chunk is damaged: {error}"
        raise ValueError(msg) from error
    _check(len(made), limit)
    return made


def _decoded(begin: Callable[[], Any], data: bytes, limit: int) -> bytes:
    """All streams of some bytes, one behind the other."""
    made, rest = bytearray(), data
    while rest and (not made or rest.strip(b"\0")):
        stream = begin()
        made += stream.decompress(rest, limit + 1 - len(made))
        _check(len(made), limit)
        if not stream.eof:
            msg = "a chunk is cut off"
            raise ValueError(msg)
        rest = stream.unused_data
    return bytes(made)


UNTOLD: dict[str, Callable[[], Any]] = {
    "gzip": lambda: zlib.decompressobj(AUTO),
    "zlib": lambda: zlib.decompressobj(AUTO),
    "bz2": bz2.BZ2Decompressor,
}
"""What decodes bytes that do not say how many they become."""

TOLD: dict[str, Callable[[bytes | memoryview], int | None]] = {
    "blosc": _blosc_size,
    "lz4": _lz4_size,
    "zstd": _zstd_size,
}
"""How many bytes they become where they say it; None: these do not."""


@dataclass(frozen=True)
class _Bounded(BytesBytesCodec):
    """A codec that decodes up to a limit."""

    inner: BytesBytesCodec
    kind: str
    is_fixed_size = False

    def evolve_from_array_spec(self, array_spec: Any) -> _Bounded:
        return replace(self, inner=self.inner.evolve_from_array_spec(array_spec))

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return int(self.inner.compute_encoded_size(input_byte_length, chunk_spec))

    def to_dict(self) -> dict[str, Any]:
        return cast("dict[str, Any]", self.inner.to_dict())

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        what = self.kind, _bytes_of(chunk_data), limit_of(chunk_spec)
        made = None if _is_told(*what) else await asyncio.to_thread(within, *what)
        if made is not None:
            return chunk_spec.prototype.buffer.from_bytes(made)
        return await self.inner._decode_single(chunk_data, chunk_spec)  # noqa: SLF001  # what `decode` calls

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        return await self.inner._encode_single(chunk_data, chunk_spec)  # noqa: SLF001  # what `encode` calls


@dataclass(frozen=True)
class _BoundedV2(V2Codec):
    """The codecs of an array of Zarr 2, of which the compressor decodes up to a limit."""

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        what = str(getattr(self.compressor, "codec_id", "")), _bytes_of(chunk_bytes), limit_of(chunk_spec)
        made = None if _is_told(*what) else await asyncio.to_thread(within, *what)
        if made is None:
            return await super()._decode_single(chunk_bytes, chunk_spec)
        (chunk,) = await V2Codec(self.filters, None).decode(
            [(chunk_spec.prototype.buffer.from_bytes(made), chunk_spec)]
        )
        return chunk


def _bytes_of(buffer: Any) -> memoryview:
    return memoryview(buffer.as_numpy_array()).cast("B")


def _bounded(codec: Any) -> Any:
    """A codec, bounded if it can become large."""
    if isinstance(codec, V2Codec):
        return _BoundedV2(codec.filters, codec.compressor)
    if isinstance(codec, ShardingCodec):
        return replace(codec, codecs=tuple(_bounded(each) for each in codec.codecs))
    if not isinstance(codec, BytesBytesCodec) or isinstance(codec, _Bounded):
        return codec
    kind = str(codec.to_dict()["name"]).removeprefix("numcodecs.")
    return _Bounded(codec, kind) if kind in UNTOLD or kind in TOLD else codec


class Pipeline(BatchedCodecPipeline):
    """Zarr's own, with codecs that decode up to a limit."""

    @classmethod
    def from_codecs(cls, codecs: Iterable[Any], *, batch_size: int | None = None) -> Any:
        """The pipeline of these codecs."""
        return super().from_codecs([_bounded(codec) for codec in codecs], batch_size=batch_size)


register_pipeline(Pipeline)


def bounded() -> AbstractContextManager[Any]:
    """While it lasts, arrays are opened that decode no further than a chunk can reach."""
    where = f"{Pipeline.__module__}.{Pipeline.__qualname__}"
    return cast("AbstractContextManager[Any]", zarr.config.set({"codec_pipeline.path": where}))
