"""The input as one ordered stream of rows, whatever files it comes from.

`open` looks at names, first bytes and footers, so that a wrong input is refused within a second; `fingerprint` reads
every byte once and gives the run its identity; `chunks` streams the rows; `verify` proves that the bytes are still
those of the fingerprint. A row's position is its place in this stream and never changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from data.agreement import agree, distinct, same_schema
from data.chunk import Chunk
from data.errors import InputError, RunError
from data.formats import Format, sniff
from data.input_file import InputFile, checked_identity, identity
from data.json_types import check_keys
from data.parquet import ParquetSource
from data.readers import JsonlReader, ParquetReader
from data.rows import BadRow
from data.settings import InputSettings
from data.sources import Source, list_sources

CHECKED_BYTES = 256 << 20
"""Stored bytes of an input whose compressed files are decompressed once before the start; about five seconds."""


class Reader(Protocol):
    """Reads the rows of one file."""

    def chunks(self, first_row: int, columns: Sequence[str] | None) -> Iterator[Chunk]:
        """Rows from `first_row` of the file on; `first_row` and `bytes_read` of the chunks count from the file's."""

    def digest(self) -> str | None:
        """sha256 of the bytes that `chunks` read last, None if it did not read the whole file."""

    def rows(self) -> int | None:
        """Number of rows where known without reading (Parquet), or because a pass has ended."""


class Dataset:
    """Files in order, of one format and one schema. Make it with `Dataset.open`."""

    def __init__(self, settings: InputSettings, sources: Sequence[Source], files: Sequence[InputFile]) -> None:
        self.files: tuple[InputFile, ...] = tuple(files)
        self.format: Format = self.files[0].format
        self.schema: pa.Schema | None = None  # Parquet: the columns that are read, partition columns last
        self._settings = settings
        self._sources = tuple(sources)
        self._stamps = tuple(source.stamp() for source in sources)
        self._read: dict[int, str] = {}  # file index: sha256 of what the latest complete pass read
        self._readers: list[Reader] = []

    @classmethod
    def open(cls, settings: InputSettings) -> Dataset:
        """List the files of `settings.path` and check that they can be read together.

        InputError names the file and what is wrong: missing, empty folder, no permission, neither Parquet nor JSONL,
        formats or schemas that differ, truncated or encrypted Parquet, duplicate or missing columns.
        """
        sources = list_sources(settings.path)
        files = []
        for source in sources:
            format_, compression = sniff(source)
            files.append(
                InputFile(source.path, source.relative, source.size, "", format_, compression, source.partition)
            )
        agree(files)
        dataset = cls(settings, sources, files)
        if dataset.format == "parquet":
            dataset._open_parquet()
        else:
            distinct(settings.columns or ())
            dataset._readers = [
                JsonlReader(source, file.compression) for source, file in zip(sources, files, strict=True)
            ]
        return dataset

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the columns that are read; None for JSONL, whose keys are known only after reading."""
        return None if self.schema is None else tuple(self.schema.names)

    @property
    def size(self) -> int:
        """Bytes of all files as stored."""
        return sum(file.size for file in self.files)

    def _open_parquet(self) -> None:
        first: pa.Schema | None = None
        for source in self._sources:
            opened = ParquetSource(source)
            opened.close()
            first = first or opened.schema
            same_schema(self._sources[0], first, source, opened.schema)
            for name, _ in source.partition:
                if name in opened.schema.names:
                    raise InputError(f"{source.path}: column {name!r} is in the file and in its folder's name")
            self._readers.append(ParquetReader(source, opened.rows))
        assert first is not None
        schema = first
        for name, _ in self._sources[0].partition:
            schema = schema.append(pa.field(name, pa.string()))
        wanted = self._settings.columns
        if wanted is not None:
            distinct(wanted)
            for name in wanted:
                if name not in schema.names:
                    raise InputError(
                        f"input.columns: no column {name!r} in the input, which has {', '.join(schema.names)}"
                    )
            schema = pa.schema([schema.field(name) for name in wanted])
        self.schema = schema

    def sample_columns(self, rows: int = 1000) -> tuple[str, ...]:
        """Names of the columns; for JSONL the keys of the first `rows` rows, to tell a mistyped column early."""
        if self.columns is not None:
            return self.columns
        found: dict[str, None] = {}
        for chunk in self.chunks():
            for record in chunk.records[:rows]:
                if not isinstance(record, BadRow):
                    found.update(dict.fromkeys(record))
                    check_keys(len(found))
            rows -= len(chunk)
            if rows <= 0:
                break
        return tuple(found)

    def fingerprint(self) -> tuple[InputFile, ...]:
        """Read every file once and fill `files` with their sha256. InputError if one cannot be read.

        Compressed files are decompressed on the way where that takes seconds, so that a truncated one or a bomb is
        found before anything is started; of a larger input, or of its first rows alone, that is left to `chunks`.
        """
        self._stamps = tuple(source.stamp() for source in self._sources)
        check = self._settings.limit is None and self.size <= CHECKED_BYTES
        self.files = tuple(
            replace(file, sha256=checked_identity(source, file.compression) if check else identity(source))
            for file, source in zip(self.files, self._sources, strict=True)
        )
        return self.files

    def same_files(self, other: Dataset) -> bool:
        """Whether both hold the same bytes, in files of whatever order; read where paths differ and sizes do not."""
        ours, theirs = self._sources, other._sources
        if sorted(source.size for source in ours) != sorted(source.size for source in theirs):
            return False
        paths, others = (sorted(os.path.realpath(source.path) for source in group) for group in (ours, theirs))
        return paths == others or sorted(map(identity, ours)) == sorted(map(identity, theirs))

    def verify(self, expected: Sequence[InputFile]) -> None:
        """RunError naming the first file whose bytes are not those of `expected` (paths may differ, content not).

        Files that a complete pass of `chunks` hashed while reading are compared by that hash; the others, Parquet
        among them, are read again.
        """
        if [file.relative for file in expected] != [source.relative for source in self._sources]:
            raise RunError(f"{self._settings.path}: files were added or removed since the run was planned")
        for index, (file, source) in enumerate(zip(expected, self._sources, strict=True)):
            read = self._read.get(index)
            if source.stamp() != self._stamps[index] or (read or identity(source)) != file.sha256:
                raise RunError(f"{source.path} changed during the run: restore it, or start a new run")

    def chunks(self, first_row: int = 0, columns: Sequence[str] | None = None) -> Iterator[Chunk]:
        """Rows from `first_row` on, in order, up to `input.limit`, in chunks of at most 8192 that cross no file.

        Args:
            columns: read only these; all that are configured if None. Unknown names are ignored.
        Raises:
            InputError: a file is damaged. RunError: a file changed since `fingerprint`.
        """
        wanted = self._wanted(columns)
        limit = self._settings.limit
        position = 0  # of the first row of the current file
        stored = 0  # bytes of the files before it
        for index, reader in enumerate(self._readers):
            if limit is not None and position >= limit:
                return
            known = reader.rows()
            if known is not None and position + known <= first_row:
                position += known
                stored += self.files[index].size
                continue
            skip = max(0, first_row - position)
            for chunk in self._read_file(index, reader, skip, wanted):
                chunk.first_row += position
                chunk.bytes_read += stored
                end = chunk.first_row + len(chunk)
                if limit is not None and end > limit:
                    if limit > chunk.first_row:
                        yield chunk.head(limit - chunk.first_row)
                    return
                yield chunk
            position += reader.rows() or 0
            stored += self.files[index].size

    def _read_file(self, index: int, reader: Reader, skip: int, columns: Sequence[str] | None) -> Iterator[Chunk]:
        self._read.pop(index, None)
        self._expect_unchanged(index)
        yield from reader.chunks(skip, columns)
        self._expect_unchanged(index)
        digest = reader.digest()
        if digest is not None and self._sources[index].version() is None:
            self._read[index] = digest
            if self.files[index].sha256 not in ("", digest):
                raise RunError(f"{self._sources[index].path} changed during the run: restore it, or start a new run")

    def _expect_unchanged(self, index: int) -> None:
        if self._sources[index].stamp() != self._stamps[index]:
            raise RunError(f"{self._sources[index].path} changed during the run: restore it, or start a new run")

    def _wanted(self, columns: Sequence[str] | None) -> Sequence[str] | None:
        if columns is None:
            return self.columns if self.format == "parquet" else self._settings.columns
        if self.columns is not None:
            return [name for name in self.columns if name in columns]
        configured = self._settings.columns
        return columns if configured is None else [name for name in configured if name in columns]
