"""Results put in the order of the rows, in bounded memory: an external sort over buckets of consecutive rows.

Results arrive by shard, in any order, and can be far larger than memory (an embedding of a million rows is gigabytes).
Each goes to the bucket of its rows, a temporary file without a name; then one bucket after another is read back and
sorted. Every value is written once and read once, and equal prompts that share a result cost no memory until then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BUCKET_BYTES = 32 << 20
MAX_BUCKETS = 512
_BATCH_ROWS = 8192


class RowOrder:
    """Takes tables with a `row` column first, each row in `[first, first + rows)`, and hands them out by row."""

    def __init__(self, tmp: Path, first: int, rows: int) -> None:
        self._tmp = tmp
        self._first = first
        self._rows = rows
        self._bucket_rows = 0
        self._files: dict[int, IO[bytes]] = {}
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}
        self._waiting: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Take results. The first table decides, by its width, how many rows a bucket has."""
        if not table.num_rows:
            return
        if not self._bucket_rows:
            width = max(table.nbytes // table.num_rows, 1)
            self._bucket_rows = max(BUCKET_BYTES // width, -(-self._rows // MAX_BUCKETS), _BATCH_ROWS)
        self._waiting.append(table)
        if sum(waiting.nbytes for waiting in self._waiting) >= BUCKET_BYTES:
            self._spill()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Everything by rising row. Nothing may be added afterwards; the files are gone at the end."""
        self._spill()
        for writer in self._writers.values():
            writer.close()
        for number in sorted(self._files):
            with self._files.pop(number) as file:
                file.seek(0)
                with pa.ipc.open_stream(file) as reader:
                    table = reader.read_all()
            yield from _by_row(table).to_batches(_BATCH_ROWS)

    def close(self) -> None:
        """Drop what was not handed out."""
        for file in self._files.values():
            file.close()

    def _spill(self) -> None:
        if not self._waiting:
            return
        table = _by_row(pa.concat_tables(self._waiting))
        self._waiting = []
        bucket = (table["row"].to_numpy() - self._first) // self._bucket_rows
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(bucket)], strict=True):
            self._writer(int(bucket[start]), table.schema).write_table(table.slice(start, stop - start))

    def _writer(self, number: int, schema: pa.Schema) -> pa.RecordBatchStreamWriter:
        if number not in self._writers:
            self._files[number] = tempfile.TemporaryFile(dir=self._tmp, prefix="rows-")  # noqa: SIM115 - closed by batches
            self._writers[number] = pa.ipc.new_stream(self._files[number], schema)
        return self._writers[number]


def _by_row(table: pa.Table) -> pa.Table:
    return table.combine_chunks().take(pc.sort_indices(table["row"]))
