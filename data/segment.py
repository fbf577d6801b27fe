"""A segment of the result cache: one immutable file with the answers of a shard and what they answer.

`<job>-<rows>-<sha256>.answers` is the 16 byte keys of its sequences, their occurrences (int32, little-endian), and an
Arrow stream of their results. The name tells the job (a digest of whatever decides an answer beside the prompt), how
many answers there are, and the digest of the bytes, against which they are checked before any of them is used. Every
plan reads the keys of all segments of its job, so these come first and need no decoding: a damaged one matches nothing,
and Arrow, which trusts the offsets in its files, sees checked bytes alone. No prompt is in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.folding import Hashes

Occurrences = npt.NDArray[np.int32]

_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})-([0-9a-f]{64})\.answers")
_KEY_BYTES, _OCCURRENCE_BYTES = 16, 4


class Damaged(Exception):
    """The bytes are not those that the name tells."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment file that was there when it was listed; reading it raises FileNotFoundError once it was evicted."""

    path: Path
    job: str
    rows: int
    sha256: str
    size: int
    written: float
    """When it was written, seconds since the epoch: its modification time."""
    used: float
    """When its answers were last used: its access time, which is set for that."""

    def keys(self) -> tuple[Hashes, Occurrences]:
        """Keys [N, 2] and occurrences [N], not checked. Damaged: there are fewer."""
        with open(self.path, "rb", buffering=0, opener=_unnoticed) as file:
            return self._keys(file.read(self._head))

    def read(self) -> tuple[Hashes, Occurrences, pa.Table]:
        """Keys, occurrences and results (all columns but the slot), from checked bytes. Damaged: they do not match."""
        with open(self.path, "rb", buffering=0, opener=_unnoticed) as file:
            content = file.readall()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise Damaged(self.path.name)
        with pa.ipc.open_stream(pa.py_buffer(content)[self._head :]) as reader:
            return *self._keys(content[: self._head]), reader.read_all().combine_chunks()

    @property
    def _head(self) -> int:
        return self.rows * (_KEY_BYTES + _OCCURRENCE_BYTES)

    def _keys(self, head: bytes) -> tuple[Hashes, Occurrences]:
        if len(head) != self._head:
            raise Damaged(self.path.name)
        keys = np.frombuffer(head, "<u8", 2 * self.rows).reshape(-1, 2)
        return keys, np.frombuffer(head, "<i4", self.rows, self.rows * _KEY_BYTES)


def _unnoticed(path: str, flags: int) -> int:
    """Open without a new access time: a plan looks into every segment, and uses few."""
    return os.open(path, flags | getattr(os, "O_NOATIME", 0))


def segment_at(entry: os.DirEntry[str]) -> Segment | None:
    """The segment of this name; None if the name is no segment's, or the file is gone."""
    parts = _NAME.fullmatch(entry.name)
    if parts is None:
        return None
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return Segment(
        Path(entry.path), parts[1], int(parts[2]), parts[3], status.st_size, status.st_mtime, status.st_atime
    )


def segment_name(job: str, rows: int, sha256: str) -> str:
    return f"{job}-{rows}-{sha256}.answers"


def write_segment(
    file: BinaryIO, keys: Sequence[bytes], occurrences: Sequence[int], results: pa.Table, about: Mapping[str, str]
) -> None:
    """Write the bytes of a segment; `about` is what a person is told of the job (`about_of`)."""
    file.write(b"".join(keys))
    file.write(np.array(occurrences, "<i4").tobytes())
    results = results.replace_schema_metadata({"about": json.dumps(dict(about), sort_keys=True)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(file, results.schema, options=options) as writer:
        writer.write_table(results)


def about_of(results: pa.Table) -> dict[str, str]:
    """What the writer of a segment said of its job."""
    about: dict[str, str] = json.loads(results.schema.metadata[b"about"])
    return about
