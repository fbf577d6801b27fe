"""Readers of one file: from any row on, in chunks, remembering what makes the next start cheap.

Both count rows and stored bytes from the start of their file; `data.dataset` strings files together.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

from data.formats import Compression
from data.jsonl import JsonlChunk, Line, group_lines, split_lines
from data.parquet import ParquetChunk, ParquetSource
from data.sources import Source
from data.streams import HashedStream, blocks


class JsonlReader:
    """Lines of a JSONL file. Places of chunks already read are kept, so that a later window starts without a scan."""

    def __init__(self, source: Source, compression: Compression) -> None:
        self._source = source
        self._compression = compression
        self._marks: list[tuple[int, int, int]] = [(0, 0, 1)]  # row, byte offset, line number; plain files only
        self._rows: int | None = None
        self._digest: str | None = None

    def chunks(self, first_row: int, columns: Sequence[str] | None) -> Iterator[JsonlChunk]:
        """Rows from `first_row` on. InputError for damaged compression and for a decompression bomb."""
        row, offset, number = self._marks[bisect.bisect_right(self._marks, (first_row + 1,)) - 1]
        keep = None if columns is None else frozenset(columns)
        self._digest = None
        stream = HashedStream(self._source, offset)
        try:
            lines = split_lines(blocks(stream, self._compression), offset, number)
            row += sum(1 for _ in itertools.islice(lines, first_row - row))
            for group in group_lines(lines):
                self._mark(row, group[0])
                yield JsonlChunk(group, self._source.relative, self._source.partition, row, stream.count, keep)
                row += len(group)
            self._rows = row
            self._digest = stream.digest()
        finally:
            stream.close()

    def _mark(self, row: int, line: Line) -> None:
        if self._compression is None and row > self._marks[-1][0]:
            self._marks.append((row, line.offset, line.number))

    def rows(self) -> int | None:
        return self._rows

    def digest(self) -> str | None:
        return self._digest


class ParquetReader:
    """Row groups of a Parquet file; starts at the group that holds the first row."""

    def __init__(self, source: Source, rows: int) -> None:
        self._source = source
        self._rows = rows

    def chunks(self, first_row: int, columns: Sequence[str] | None) -> Iterator[ParquetChunk]:
        """Rows from `first_row` on. InputError for a damaged or encrypted file."""
        partition = self._source.partition
        if columns is not None:
            partition = tuple(pair for pair in partition if pair[0] in columns)
        opened = ParquetSource(self._source)
        try:
            names = [name for name in opened.schema.names if columns is None or name in columns]
            if columns is not None:
                names.sort(key=list(columns).index)
            row = first_row
            for batch in opened.batches(names, first_row):
                read = self._source.size * (row + batch.num_rows) // max(self._rows, 1)
                yield ParquetChunk(batch, self._source.relative, partition, row, read)
                row += batch.num_rows
        finally:
            opened.close()

    def rows(self) -> int:
        return self._rows

    def digest(self) -> None:
        """Parquet is read by column and not from end to end, so nothing is hashed on the way."""
        return
