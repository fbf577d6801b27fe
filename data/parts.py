"""The files of a result as they are written: parts of a million rows or about a gibibyte, Parquet or JSON lines.

Their bytes are a pure function of the rows: no ids, no times, and row groups of a fixed size, wherever the pieces that
arrive are cut.

Files are written under the hidden folder or name that the caller moves into place; each is synced, then hashed again
from what can be read back and compared with what was written.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from data.durable import digest_file, sync_folder
from data.errors import RunError
from data.manifest import PartFile
from data.output import Layout

PART_ROWS = 1_000_000
PART_BYTES = 1 << 30
"""A part ends with the row group that reaches this: an object store takes at most 5 GiB in one put."""

ROW_GROUP_ROWS = 20_000


class Part(Protocol):
    """One file being written."""

    rows: int

    @property
    def size(self) -> int:
        """Bytes written so far."""

    def write(self, piece: Any) -> None:
        """Append rows: a pa.Table for Parquet, a list of lines for JSON lines."""

    def close(self) -> PartFile:
        """End the file, make it durable and check it."""


class Parts:
    """The files of a result in row order; a folder gets as many as it needs and at least one, a file is one."""

    def __init__(self, place: Path, layout: Layout, single: str | None) -> None:
        """`place` is a folder to create, or the file to write when `single` is the name that it will have."""
        self._place = place
        self._layout = layout
        self._single = single
        self._files: list[PartFile] = []
        if single is None:
            place.mkdir()
        self._part = self._open()

    def write(self, piece: Any) -> None:
        """Append rows: a pa.Table for Parquet, a list of lines for JSON lines."""
        while len(piece):
            if self._single is None and self._full:
                self._files.append(self._part.close())
                self._part = self._open()
            # Row group by row group, so that where a part ends does not depend on how the rows arrived.
            rows = self._part.rows
            room = len(piece) if self._single else min(PART_ROWS - rows, ROW_GROUP_ROWS - rows % ROW_GROUP_ROWS)
            self._part.write(piece[:room])
            piece = piece[room:]

    @property
    def _full(self) -> bool:
        rows = self._part.rows
        return rows >= PART_ROWS or (rows > 0 and rows % ROW_GROUP_ROWS == 0 and self._part.size >= PART_BYTES)

    def close(self) -> tuple[PartFile, ...]:
        """End the last file and make all names durable."""
        self._files.append(self._part.close())
        if self._single is None:
            sync_folder(self._place)
        sync_folder(self._place.parent)
        return tuple(self._files)

    def _open(self) -> Part:
        suffix = self._layout.format
        name = self._single or f"part-{len(self._files):05d}.{suffix}"
        path = self._place if self._single else self._place / name
        return LinesPart(path, name) if suffix == "jsonl" else ParquetPart(path, name, self._layout.schema)


class ParquetPart:
    """Row groups of `ROW_GROUP_ROWS` rows, zstd."""

    def __init__(self, path: Path, name: str, schema: pa.Schema) -> None:
        self.rows = 0
        self._file = _Hashed(path, name)
        self._schema = schema
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, piece: pa.Table) -> None:
        self.rows += piece.num_rows
        self._waiting.append(piece)
        self._waiting_rows += piece.num_rows
        while self._waiting_rows >= ROW_GROUP_ROWS:
            table = pa.concat_tables(self._waiting)
            self._write_group(table.slice(0, ROW_GROUP_ROWS))
            self._waiting = [table.slice(ROW_GROUP_ROWS)]
            self._waiting_rows -= ROW_GROUP_ROWS

    def close(self) -> PartFile:
        if self._waiting_rows:
            self._write_group(pa.concat_tables(self._waiting))
        self._writer.close()
        part = self._file.finish(self.rows)
        if pq.read_metadata(self._file.path).num_rows != self.rows:
            raise RunError(f"{self._file.path} does not read back with {self.rows} rows")
        return part

    def _write_group(self, table: pa.Table) -> None:
        # One chunk a column, so that the encoding does not depend on how the rows arrived.
        self._writer.write_table(table.combine_chunks(), row_group_size=ROW_GROUP_ROWS)


class LinesPart:
    """UTF-8, one object a line, each line ended by a line feed."""

    def __init__(self, path: Path, name: str) -> None:
        self.rows = 0
        self._file = _Hashed(path, name)

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, piece: list[str]) -> None:
        self.rows += len(piece)
        self._file.write(("\n".join(piece) + "\n").encode())

    def close(self) -> PartFile:
        return self._file.finish(self.rows)


class _Hashed(io.RawIOBase):
    """A new file that hashes what is written to it."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__()
        self.path = path
        self._name = name
        self._file = open(path, "xb", buffering=1 << 20)  # noqa: SIM115 - closed by finish
        self._digest = hashlib.sha256()
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._digest.update(data)
        written = self._file.write(data)
        self._size += written
        return written

    def tell(self) -> int:
        return self._size

    def finish(self, rows: int) -> PartFile:
        """Sync and close; RunError if other bytes are read back than were written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = self._digest.hexdigest()
        if os.path.getsize(self.path) != self._size or digest_file(self.path) != sha256:
            raise RunError(f"{self.path} does not read back as it was written")
        return PartFile(self._name, rows, self._size, sha256)
