"""The encoded rows of a window: per-row facts in arrays, token ids spilled to an unnamed temporary file.

Token ids are the one thing that does not fit in memory at ten million rows, and shards need them in another order than
they come. The file is gone with the process, however that ends.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.folding import Hashes, Integers, join_hashes, prefix_hashes
from data.rows import BadRow
from data.shards import TokenIds, sequence_key

_BLOCK_TOKENS = 1 << 20


class EncodedRows:
    """Rows are appended in order, a chunk at a time, and numbered from 0. Call `seal` before reading."""

    def __init__(self, tmp: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=tmp, prefix="prompts-")  # noqa: SIM115 - lives as long as the object
        self._lengths: list[npt.NDArray[np.int32]] = []
        self._keys: list[Hashes] = []
        self._hashes: list[Hashes] = []
        self._scored: list[npt.NDArray[np.int32]] = []
        self._codes: list[pa.Array] = []
        self._messages: list[pa.Array] = []
        self.rows = 0

    def append(self, ids: Sequence[TokenIds], scored_from: Sequence[int] | None, errors: dict[int, BadRow]) -> None:
        """Add the rows of a chunk. `errors` by position in the chunk; their ids do not matter."""
        for start, stop in _blocks(ids):
            self._append_tokens(ids[start:stop], scored_from[start:stop] if scored_from is not None else None)
        none: list[str | None] = [None] * len(ids)
        codes, messages = none, list(none)
        for position, error in errors.items():
            codes[position], messages[position] = error.code, error.message
        self._codes.append(pa.array(codes, pa.string()))
        self._messages.append(pa.array(messages, pa.string()))
        self.rows += len(ids)

    def _append_tokens(self, ids: Sequence[TokenIds], scored_from: Sequence[int] | None) -> None:
        lengths = np.array([len(sequence) for sequence in ids], np.int32)
        flat = np.concatenate(ids).astype("<u4", copy=False)
        view = memoryview(flat.tobytes())
        self._file.write(view)
        ends = np.cumsum(lengths, dtype=np.int64) * 4
        starts = scored_from if scored_from is not None else [0] * len(ids)
        keys = bytearray()
        begin = 0
        for end, scored in zip(ends.tolist(), starts, strict=True):
            keys += sequence_key(view[begin:end], scored)
            begin = end
        self._keys.append(np.frombuffer(bytes(keys), "<u8").reshape(-1, 2))
        self._hashes.append(prefix_hashes(flat, lengths.astype(np.int64)))
        self._lengths.append(lengths)
        if scored_from is not None:
            self._scored.append(np.array(scored_from, np.int32))

    def seal(self) -> None:
        """No more rows: join the columns and open the tokens for reading."""
        self._file.flush()
        self.lengths = np.concatenate([np.empty(0, np.int32), *self._lengths])
        self.keys: Hashes = np.concatenate([np.empty((0, 2), np.uint64), *self._keys])
        self.hashes: Hashes = join_hashes(self._hashes)
        self.scored_from = np.concatenate(self._scored) if self._scored else None
        self.codes: pa.ChunkedArray = pa.chunked_array(self._codes, pa.string())
        self.messages: pa.ChunkedArray = pa.chunked_array(self._messages, pa.string())
        self.offsets = np.zeros(self.rows + 1, np.int64)
        np.cumsum(self.lengths, out=self.offsets[1:])
        empty = not self.offsets[-1]
        self._map = None if empty else mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._tokens: TokenIds = np.frombuffer(b"" if self._map is None else self._map, "<u4")
        for spent in (self._keys, self._hashes, self._lengths, self._scored):
            spent.clear()

    @property
    def answerable(self) -> Integers:
        """The rows that have a prompt."""
        valid = self.codes.is_null().to_numpy() if self.rows else np.empty(0, bool)
        return np.flatnonzero(valid).astype(np.int64)

    def ids(self, row: int) -> TokenIds:
        """The token ids of a row (uint32, a view of the file)."""
        return self._tokens[self.offsets[row] : self.offsets[row + 1]]

    def release(self) -> None:
        """Give back the memory of token ids that were read; they are read again where they are needed."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


def _blocks(ids: Sequence[TokenIds]) -> Iterator[tuple[int, int]]:
    """Ranges of sequences with about a million tokens at most, so that temporary arrays stay small."""
    start = tokens = 0
    for position, sequence in enumerate(ids):
        if tokens and tokens + len(sequence) > _BLOCK_TOKENS:
            yield start, position
            start, tokens = position, 0
        tokens += len(sequence)
    if start < len(ids):
        yield start, len(ids)
