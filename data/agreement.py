"""Whether the files of an input can be read as one table: one format, one schema, the same partition folders."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pyarrow as pa

from data.errors import InputError
from data.input_file import InputFile
from data.sources import Source


def distinct(columns: Iterable[str]) -> None:
    """InputError if `input.columns` names a column twice."""
    for name, group in itertools.groupby(sorted(columns)):
        if len(list(group)) > 1:
            raise InputError(f"input.columns names {name!r} twice")


def agree(files: Sequence[InputFile]) -> None:
    """InputError naming the first file whose format or partition folders are not those of the first file."""
    first = files[0]
    for file in files:
        if file.format != first.format:
            raise InputError(f"{file.path} is {file.format} but {first.path} is {first.format}: give one format")
        if [name for name, _ in file.partition] != [name for name, _ in first.partition]:
            raise InputError(f"{file.path} has other k=v folders than {first.path}")


def same_schema(first: Source, expected: pa.Schema, source: Source, schema: pa.Schema) -> None:
    """Names and types must be equal, in any order of columns; whether a column may be null does not matter."""
    for name in expected.names:
        if name not in schema.names:
            raise InputError(f"{source.path} lacks column {name!r}, which {first.path} has")
        if schema.field(name).type != expected.field(name).type:
            types = f"{schema.field(name).type} but {expected.field(name).type} in {first.path}"
            raise InputError(f"{source.path}: column {name!r} is {types}: write both with one schema")
    for name in schema.names:
        if name not in expected.names:
            raise InputError(f"{source.path} has column {name!r}, which {first.path} lacks")
