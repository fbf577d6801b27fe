"""Bytes of an input file as a stream: hashed and counted while they are read, decompressed within caps.

Hashing while reading proves that what was answered is what was fingerprinted, without a second pass. The caps stop a
decompression bomb: a few megabytes on disk must not become days of work.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa

from data.errors import InputError
from data.formats import Compression
from data.sources import REMEDY, Source, unreadable

BLOCK = 1 << 20
MAX_RATIO = 1000  # ordinary text stays under 50; gzip itself cannot exceed 1032
RATIO_FROM = 256 << 20  # bytes that may always be decompressed: a small file of equal rows is no attack
MAX_BYTES = 1 << 42  # 4 TiB from one compressed file


class HashedStream:
    """A raw file that hashes and counts what is read from it. A file object, as far as pyarrow needs one."""

    closed = False

    def __init__(self, source: Source, offset: int = 0) -> None:
        self.source = source
        self.count = offset
        self._raw: BinaryIO = source.open()
        self._whole = offset == 0
        self._at_end = False
        self._sha256 = hashlib.sha256()
        if offset:
            self._raw.seek(offset)

    def read(self, size: int = BLOCK) -> bytes:
        """Up to `size` bytes, empty at the end."""
        try:
            block = self._raw.read(size)
        except OSError as error:
            raise unreadable(self.source.path, error) from error
        self._at_end = self._at_end or not block
        self.count += len(block)
        if self._whole:
            self._sha256.update(block)
        return block

    def digest(self) -> str | None:
        """sha256 of the file, None unless it was read from the first byte to the last."""
        return self._sha256.hexdigest() if self._whole and self._at_end else None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()


def blocks(stream: HashedStream, compression: Compression) -> Iterator[bytes]:
    """The decompressed content in blocks of about 1 MiB. InputError for damaged data and for bombs."""
    if compression is None:
        while block := stream.read(BLOCK):
            yield block
        return
    total = 0
    for block in _gunzip(stream) if compression == "gzip" else _unzstd(stream):
        total += len(block)
        if total > MAX_BYTES or (total > RATIO_FROM and total > MAX_RATIO * stream.count):
            raise InputError(
                f"{stream.source.path} decompresses to more than {MAX_RATIO} times its size or {MAX_BYTES >> 40} TiB: "
                "it is taken for a decompression bomb; decompress it yourself if it is not"
            )
        yield block


def _gunzip(stream: HashedStream) -> Iterator[bytes]:
    """zlib directly, because gzip.GzipFile reads ahead without a bound on its output; members may be concatenated."""
    inflate = zlib.decompressobj(wbits=31)
    pending = b""
    try:
        while True:
            pending = pending or stream.read(BLOCK)
            if not pending:
                break
            if inflate.eof:
                pending = pending.lstrip(b"\0")  # padding between members, as gzip allows
                if not pending:
                    continue
                inflate = zlib.decompressobj(wbits=31)
            if data := inflate.decompress(pending, BLOCK):
                yield data
            pending = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"{stream.source.path} is damaged: {error}; {REMEDY}") from error
    if not inflate.eof:
        raise InputError(f"{stream.source.path} is truncated: the gzip data ends early; {REMEDY}")


def _unzstd(stream: HashedStream) -> Iterator[bytes]:
    try:
        with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd") as decompressed:
            while block := decompressed.read(BLOCK):
                yield bytes(block)
    except OSError as error:
        raise InputError(
            f"{stream.source.path} is damaged or truncated: zstd data cannot be decompressed; {REMEDY}"
        ) from error
