"""Parquet files: footers checked before anything starts, rows read in batches of bounded size.

`iter_batches` without pre-buffering and threads is the fastest way measured and holds 65 MB where the defaults hold
three times that. The batch size follows the footer's bytes a row, so that a table of long documents is read in small
batches. Values go to Python only for the columns that a prompt reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.arrow_values import UNREADABLE
from data.error_codes import Code
from data.errors import InputError, RunError
from data.rows import BadRow, Record
from data.sources import REMEDY, Partition, Source

CHUNK_ROWS = 8192
CHUNK_BYTES = 16 << 20
MAX_RATIO = 1000  # decompressed to stored bytes; dictionaries and run lengths of real tables stay far below
RATIO_FROM = 1 << 30
MAX_BATCH_BYTES = 2 << 30
STEP_BYTES = 1 << 30  # what one reading step can come to at the very worst, by the footer


class ParquetSource:
    """One Parquet file with a footer that can be read. Holds the file open until `close`."""

    def __init__(self, source: Source) -> None:
        """InputError for a file that is truncated, encrypted, a decompression bomb, or has two columns of one name."""
        self.source = source
        stream = source.open()
        try:
            self._file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            self.schema: pa.Schema = self._file.schema_arrow.remove_metadata()
        except (OSError, pa.ArrowException) as error:
            stream.close()
            raise _damaged(source, error) from error
        self._stream = stream
        try:
            self._check()
        except InputError:
            self.close()
            raise

    @property
    def rows(self) -> int:
        return int(self._file.metadata.num_rows)

    def close(self) -> None:
        self._file.close()
        self._stream.close()

    def _check(self) -> None:
        names = self.schema.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{self.source.path} has two columns named {twice[0]!r}")
        size = sum(self._group_bytes(group) for group in range(self._file.metadata.num_row_groups))
        if size > RATIO_FROM and size > MAX_RATIO * self.source.size:
            raise InputError(
                f"{self.source.path} claims to hold {size >> 30} GiB in {self.source.size:,} bytes: "
                "it is taken for a decompression bomb"
            )

    def _group_bytes(self, group: int) -> int:
        return int(self._file.metadata.row_group(group).total_byte_size)

    def batches(self, columns: Sequence[str], first_row: int) -> Iterator[pa.RecordBatch]:
        """The rows from `first_row` on, in order, with `columns` in that order. InputError names a damaged file."""
        metadata = self._file.metadata
        groups = list(range(metadata.num_row_groups))
        while groups and first_row >= metadata.row_group(groups[0]).num_rows:
            first_row -= metadata.row_group(groups.pop(0)).num_rows
        if not groups:
            return
        stored = sum(self._group_bytes(group) for group in groups)
        rows = sum(metadata.row_group(group).num_rows for group in groups)
        size = max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows // max(stored, 1)))
        step = max(1, min(size, STEP_BYTES // max(self._largest_value(groups, columns), 1)))
        decoded = 0
        try:
            batches = self._file.iter_batches(step, row_groups=groups, columns=list(columns), use_threads=False)
            for batch in batches if step == size else _joined(batches, size):
                decoded += batch.nbytes
                self._check_decoded(batch, decoded)
                skipped = min(first_row, batch.num_rows)
                first_row -= skipped
                if batch.num_rows > skipped:
                    yield batch.slice(skipped).select(list(columns))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(self.source, error) from error

    def _largest_value(self, groups: Sequence[int], columns: Sequence[str]) -> int:
        """An upper bound of the bytes of one text: a dictionary page can hold a single one that every row repeats."""
        metadata = self._file.metadata
        leaves = [metadata.schema.column(leaf) for leaf in range(metadata.num_columns)]
        texts = [
            leaf
            for leaf, column in enumerate(leaves)
            if column.physical_type == "BYTE_ARRAY"
            and any(column.path == name or column.path.startswith(f"{name}.") for name in columns)
        ]
        sizes = [metadata.row_group(group).column(leaf).total_uncompressed_size for group in groups for leaf in texts]
        return max(sizes, default=0)

    def _check_decoded(self, batch: pa.RecordBatch, decoded: int) -> None:
        """InputError for what the footer does not tell: rows that repeat one long text cost it a bit each."""
        if batch.nbytes > MAX_BATCH_BYTES:
            raise InputError(f"{self.source.path}: {batch.num_rows} rows take more than 2 GiB in memory")
        if decoded > RATIO_FROM and decoded > MAX_RATIO * self.source.size:
            raise InputError(
                f"{self.source.path} decodes to more than {MAX_RATIO} times its {self.source.size:,} bytes: "
                "it is taken for a decompression bomb"
            )


def _joined(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Small batches put together up to so many rows or about 16 MiB."""
    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        size += batch.nbytes
        if count >= rows or size >= CHUNK_BYTES:
            yield pa.concat_batches(held)
            held, count, size = [], 0, 0
    if held:
        yield pa.concat_batches(held)


def _damaged(source: Source, error: Exception) -> InputError:
    """One line: Arrow's messages may run over several and repeat what was in the file."""
    text = str(error).lower()
    if "encrypt" in text or "decrypt" in text or "pare" in text:
        return InputError(f"{source.path} is encrypted Parquet, which is not read")
    if isinstance(error, pa.ArrowException) or not isinstance(error, OSError) or error.errno is None:
        return InputError(f"{source.path} is not a whole Parquet file: it is truncated or damaged; {REMEDY}")
    return InputError(f"{source.path} cannot be read: {error.strerror}")


@dataclass
class ParquetChunk:
    """Rows of one Parquet file; a `data.chunk.Chunk`. `batch` holds the columns that were asked for."""

    batch: pa.RecordBatch
    file: str
    partition: Partition
    first_row: int = 0
    bytes_read: int = 0

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @cached_property
    def records(self) -> list[Record | BadRow]:
        names = [*self.batch.schema.names, *(name for name, _ in self.partition)]
        fixed = [[value] * len(self) for _, value in self.partition]
        try:
            columns = [column.to_pylist() for column in self.batch.columns]
        except UNREADABLE:
            return [self._record(row) for row in range(len(self))]
        if not names:
            return [{} for _ in range(len(self))]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, *fixed, strict=True)]

    def _record(self, row: int) -> Record | BadRow:
        """One row on its own, so that a value which Parquet writers do not check costs that row only."""
        record: dict[str, Any] = dict(self.partition)
        for name, column in zip(self.batch.schema.names, self.batch.columns, strict=True):
            try:
                record[name] = column[row].as_py()
            except UnicodeDecodeError as error:
                message = f"invalid UTF-8 at byte {error.start} of column {name!r}"
                return BadRow(Code.INVALID_UTF8, f"{self._place(row)}: {message}")
            except UNREADABLE:
                message = f"the {column.type} of column {name!r} is out of range"
                return BadRow(Code.UNREADABLE_VALUE, f"{self._place(row)}: {message}")
        return record

    def _place(self, row: int) -> str:
        return f"row {self.first_row + row} ({self.file})"

    def head(self, rows: int) -> ParquetChunk:
        """The first `rows` rows."""
        return replace(self, batch=self.batch.slice(0, rows))

    def lines(self) -> list[str | None]:
        """Parquet rows have no text of their own: all None."""
        return [None] * len(self)

    def arrow(self, schema: pa.Schema) -> pa.RecordBatch:
        """The columns of `schema`, cast where their types differ; RunError if a column was not read or cannot be."""
        fixed = dict(self.partition)
        arrays = []
        for field in schema:
            if field.name in self.batch.schema.names:
                array = self.batch.column(field.name)
            elif field.name in fixed:
                array = pa.array([fixed[field.name]] * len(self), pa.string())
            else:
                raise RunError(f"{self.file}: column {field.name!r} was not read")
            try:
                arrays.append(array if array.type == field.type else array.cast(field.type))
            except pa.ArrowException as error:
                raise RunError(f"{self.file}: column {field.name!r} does not fit type {field.type}") from error
        return pa.RecordBatch.from_arrays(arrays, schema=schema)
