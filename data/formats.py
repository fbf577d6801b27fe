"""What a file is, told from its first bytes: Parquet or JSONL, and how it is compressed.

Names are not trusted, with one exception: a file of zero bytes has no content to go by, so its extension decides.
Something that is neither is refused here, before a million of its lines are each reported as invalid JSON.
"""

from __future__ import annotations

import gzip
import zlib
from typing import Literal, TypeAlias

import pyarrow as pa

from data.errors import InputError
from data.sources import REMEDY, Source, unreadable

Format: TypeAlias = Literal["parquet", "jsonl"]
Compression: TypeAlias = Literal["gzip", "zstd"] | None

_SNIFFED = 1 << 16
_JSONL_NAMES = (".jsonl", ".ndjson", ".json")
_PARQUET_NAMES = (".parquet", ".parq", ".pq")
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"ARROW1": "an Arrow IPC file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x04\x22\x4d\x18": "lz4-compressed",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"{\0": "UTF-16 text",  # without a byte order mark
    b"\0": "UTF-16 text or binary data",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
}
_COMPRESSED_NAMES = (".gz", ".zst", ".zstd")
_JUDGED_LINES = 10  # fewer are left to become error rows, each for itself


def sniff(source: Source) -> tuple[Format, Compression]:
    """Format and compression of a file. Reads at most 64 KiB. InputError names a file that is neither format."""
    name = source.path.lower()
    try:
        with source.open() as stream:
            head = _head(stream.read, _SNIFFED)
    except OSError as error:
        raise unreadable(source.path, error) from error
    if not head:
        if name.endswith(_PARQUET_NAMES):
            raise InputError(f"{source.path} is empty: not a Parquet file")
        if name.endswith(_COMPRESSED_NAMES):
            raise InputError(f"{source.path} is empty, which compressed data never are; {REMEDY}")
        return "jsonl", None
    if head[:4] in (b"PAR1", b"PARE"):
        return "parquet", None
    compression = _compression(head)
    text = _decompressed_head(source, head, compression)
    for magic, what in _OTHERS.items():
        if text.startswith(magic):
            raise InputError(f"{source.path} is {what}: Parquet and JSONL, plain, gzip or zstd, are read")
    if name.endswith(_PARQUET_NAMES):
        raise InputError(f"{source.path} is named Parquet but its content is not")
    if compression and text[:4] == b"PAR1":
        raise InputError(f"{source.path} is a compressed Parquet file: decompress it, Parquet compresses inside")
    _expect_json_lines(source, text, name.removesuffix(".gz").removesuffix(".zst").removesuffix(".zstd"))
    return "jsonl", compression


def _head(read: object, size: int) -> bytes:
    """The first `size` bytes from a raw stream, which may return fewer at a time."""
    parts: list[bytes] = []
    missing = size
    while missing > 0:
        part: bytes = read(missing)  # type: ignore[operator]
        if not part:
            break
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _compression(head: bytes) -> Compression:
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    skippable = head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50  # a zstd frame of notes, as pzstd writes first
    return "zstd" if skippable or head[:4] == b"\x28\xb5\x2f\xfd" else None


def _decompressed_head(source: Source, head: bytes, compression: Compression) -> bytes:
    if compression is None:
        return head
    try:
        if compression == "gzip":
            return zlib.decompressobj(wbits=31).decompress(head, _SNIFFED)
        with pa.CompressedInputStream(pa.BufferReader(head), "zstd") as stream:
            return bytes(stream.read(4096))
    except (zlib.error, gzip.BadGzipFile, OSError) as error:
        if isinstance(error, OSError) and "Truncated" in str(error):
            return b""  # the frame goes on after the bytes that were sniffed: nothing to judge by
        raise InputError(f"{source.path} is damaged: {compression} data cannot be decompressed; {REMEDY}") from error


def _expect_json_lines(source: Source, text: bytes, name: str) -> None:
    lines = [line.strip() for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n")]
    lines = [line for line in lines if line]
    if not lines:
        return
    if _is_array(lines):
        raise InputError(
            f"{source.path} is one JSON array, not JSON lines: write one object a line (jq -c '.[]' FILE > NEW does)"
        )
    if lines[0] == b"{" and len(lines) > 1:
        raise InputError(
            f"{source.path} has JSON objects over several lines, not JSON lines: write one object a line "
            "(jq -c . FILE > NEW does)"
        )
    if any(line[:1] == b"{" for line in lines):
        return
    if not name.endswith(_JSONL_NAMES):
        raise InputError(f"{source.path} is neither Parquet nor JSON lines")
    if len(lines) >= _JUDGED_LINES:
        raise InputError(f"{source.path} is named JSON lines, but none of its first {len(lines)} lines is an object")


def _is_array(lines: list[bytes]) -> bool:
    """Whether the lines that a file begins with are those of an array: several of one line each are rows."""
    first = lines[0]
    if first.endswith(b"]"):
        return len(lines) == 1 and first.startswith(b"[")
    return first == b"[" or first.startswith((b"[{", b"[ "))
