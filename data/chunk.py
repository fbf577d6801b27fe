"""A run of consecutive rows as they were read, the unit in which rows move from a reader to the plan and the output.

A chunk never crosses a file, so its partition values hold for all of its rows. What it holds is converted on demand:
the plan asks for records, the output for Arrow columns or for the verbatim lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pyarrow as pa

from data.rows import BadRow, Record


class Chunk(Protocol):
    """Up to 8192 rows of one file, in order. `first_row` is the position of the first of them in the dataset."""

    first_row: int
    bytes_read: int
    """Bytes of input consumed up to the end of this chunk, over all files, compressed bytes counted as stored."""
    partition: tuple[tuple[str, str | None], ...]
    """`k=v` folders of the file: column and value, None for Hive's null. Part of the records and of `arrow`."""

    def __len__(self) -> int: ...

    @property
    def records(self) -> Sequence[Record | BadRow]:
        """One record a row, partition columns included, or the reason why there is none."""

    def head(self, rows: int) -> Chunk:
        """The first `rows` rows."""

    def arrow(self, schema: pa.Schema) -> pa.RecordBatch:
        """The columns of `schema` as one batch of len(self) rows; bad rows and missing keys are null."""

    def lines(self) -> list[str | None]:
        """JSONL: each row's text as it was, without the line end; None where it was unparsable. Parquet: all None."""
