"""One file of the input and what identifies its bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from data.formats import Compression, Format
from data.sources import Partition, Source, unreadable
from data.streams import BLOCK, HashedStream, blocks


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input as the manifest records it. `sha256` is empty until `Dataset.fingerprint`.

    On an object store that versions its objects, `sha256` holds the store's name of the version ("etag:...") instead.
    """

    path: str
    relative: str
    size: int
    sha256: str
    format: Format
    compression: Compression
    partition: Partition


def identity(source: Source) -> str:
    """sha256 of the bytes, or the version that an object store gives the object. InputError if it cannot be read."""
    version = source.version()
    if version is not None:
        return version
    digest = hashlib.sha256()
    with source.open() as stream:
        try:
            while block := stream.read(BLOCK):
                digest.update(block)
        except OSError as error:
            raise unreadable(source.path, error) from error
    return digest.hexdigest()


def checked_identity(source: Source, compression: Compression) -> str:
    """`identity`, and InputError if the file cannot be decompressed to its end."""
    if compression is None or source.version() is not None:
        return identity(source)
    stream = HashedStream(source)
    try:
        for _ in blocks(stream, compression):
            pass
        digest = stream.digest()
    finally:
        stream.close()
    return digest if digest is not None else identity(source)
