"""The columns of a published result: the input's that were asked for, then the added ones under their prefix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from data.errors import InputError
from data.outcomes import outcome_schema
from data.settings import OutputSettings
from data.target import Format

if TYPE_CHECKING:
    from data.chunk import Chunk

ERROR_TYPE = pa.struct([pa.field("code", pa.string()), pa.field("message", pa.string())])


def added_schema(results: pa.Schema, prefix: str) -> pa.Schema:
    """The added columns for a `results.result_schema`: output, status, error, finish_reason, tokens, the kind's own."""
    fields = [
        pa.field("output", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", ERROR_TYPE),
        *[results.field(name) for name in results.names if name not in ("slot", "output", "status", "code", "message")],
    ]
    return pa.schema([field.with_name(prefix + field.name) for field in fields])


def published_columns(columns: Sequence[str], output: OutputSettings, added: pa.Schema) -> tuple[str, ...]:
    """The input columns that `output.include` publishes. InputError: one is missing, or named like an added one."""
    chosen = tuple(columns) if output.include is None else output.include
    unknown = [name for name in chosen if name not in columns]
    if unknown:
        raise InputError(f"output.include names {unknown[0]!r}; the input has the columns {', '.join(columns)}")
    clash = [name for name in chosen if name in added.names]
    if clash:
        raise InputError(f"the input has a column {clash[0]!r} like the result; set output.prefix to rename ours")
    return tuple(name for name in columns if name in chosen)


@dataclass(frozen=True, slots=True)
class Layout:
    """What every file of a result looks like."""

    format: Format
    input: pa.Schema
    """The published input columns. A file of JSON lines may hold fewer keys in a line than there are columns."""
    added: pa.Schema
    outcomes: pa.Schema
    prefix: str
    whole: bool = True
    """Whether every column of the input is published."""

    @classmethod
    def of(cls, columns: pa.Schema, results: pa.Schema, output: OutputSettings, form: Format) -> Layout:
        """`columns` is the schema of the whole input. InputError as in `published_columns`."""
        added = added_schema(results, output.prefix)
        names = published_columns(columns.names, output, added)
        chosen = pa.schema([columns.field(name) for name in names])
        return cls(form, chosen, added, outcome_schema(results), output.prefix, len(names) == len(columns))

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*self.input, *self.added])

    def added_table(self, outcomes: pa.Table) -> pa.Table:
        """The added columns for a table of outcomes."""
        columns: list[Any] = []
        for field in self.added:
            name = field.name.removeprefix(self.prefix)
            columns.append(_error(outcomes) if name == "error" else outcomes[name])
        return pa.table(columns, schema=self.added)

    def outcome_table(self, added: pa.Table, first_row: int) -> pa.Table:
        """The inverse of `added_table`, for consecutive rows."""
        error = added[f"{self.prefix}error"].combine_chunks()
        columns: list[Any] = []
        for field in self.outcomes:
            if field.name == "row":
                columns.append(pa.array(range(first_row, first_row + added.num_rows), pa.int64()))
            elif field.name in ("code", "message"):
                columns.append(pc.struct_field(error, field.name))
            else:
                columns.append(added[self.prefix + field.name])
        return pa.table(columns, schema=self.outcomes)

    def table(self, chunk: Chunk, added: pa.Table) -> pa.Table:
        """A chunk of the input with its added columns."""
        if not len(self.input):
            return added
        given = pa.Table.from_batches([chunk.arrow(self.input)])
        return pa.table([*given.columns, *added.columns], schema=self.schema)


def _error(outcomes: pa.Table) -> pa.Array:
    code, message = (outcomes[name].combine_chunks() for name in ("code", "message"))
    return pa.StructArray.from_arrays([code, message], fields=list(ERROR_TYPE), mask=code.is_null())
