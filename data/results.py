"""The table that a worker hands in for a shard: its schema, one row a sequence, and what makes it acceptable.

Slots are positions in the shard. `status` is ok or error; an error has a code and no answer. The schema depends on the
kind of job alone, so that every file of a run has the same one, also where a column is all null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import RunError
from data.settings import Kind

OK, ERROR = "ok", "error"

BASE = pa.schema(
    [
        pa.field("slot", pa.int32(), nullable=False),
        pa.field("output", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("input_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
    ]
)
"""The columns of every kind. `finish_reason` is stop, length or null; token counts may be null in an error."""


def result_schema(kind: Kind, embedding_size: int | None = None, choices: Sequence[str] = ()) -> pa.Schema:
    """`BASE` and the columns of the kind: probabilities by choice, an embedding, or logprob, tokens and perplexity."""
    extra: list[pa.Field] = []
    if kind == "classify":
        extra = [pa.field("probabilities", pa.struct([pa.field(choice, pa.float64()) for choice in choices]))]
    elif kind == "embed":
        assert embedding_size is not None, "an embedding has a size"
        extra = [pa.field("embedding", pa.list_(pa.float32(), embedding_size))]
    elif kind == "score":
        extra = [
            pa.field("logprob", pa.float64()),
            pa.field("tokens", pa.int32()),
            pa.field("perplexity", pa.float64()),
        ]
    return pa.schema([*BASE, *extra])


def check_results(table: pa.Table, sequences: int, what: str) -> None:
    """RunError unless the table has the base columns, one row for each slot in order, and consistent outcomes."""
    if table.schema.names[: len(BASE)] != BASE.names or table.schema.types[: len(BASE)] != BASE.types:
        raise RunError(f"{what} has the columns {table.schema.names}, not those of a result")
    if table.num_rows != sequences:
        raise RunError(f"{what} has {table.num_rows} results for {sequences} sequences")
    if not np.array_equal(table["slot"].to_numpy(), np.arange(sequences)):
        raise RunError(f"{what} does not have one result for each sequence")
    failed = pc.equal(table["status"], ERROR)
    known = pc.or_(failed, pc.equal(table["status"], OK))
    if not _all(known) or not _all(pc.equal(failed, pc.is_valid(table["code"]))):
        raise RunError(f"{what} has a status that is neither ok without a code nor error with one")


def _all(column: Any) -> bool:
    return pc.all(column, min_count=0).as_py() is True
