"""Assembling a result: the input read once more, each row joined with its outcome and written to the result's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from data.arrow_values import records
from data.lines import dump, extended
from data.manifest import PartFile
from data.output import Layout
from data.parts import Parts
from data.results import OK

if TYPE_CHECKING:
    from data.chunk import Chunk
    from data.dataset import Dataset


class OutcomeStream(Protocol):
    """Where outcomes come from (`data.outcomes`)."""

    def take(self, rows: int) -> pa.Table:
        """The next rows, one outcome each."""

    def finish(self) -> None:
        """No more rows are asked for."""


@dataclass(slots=True)
class Totals:
    """Counts of a result, taken from the rows as they are written."""

    rows: int = 0
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, outcomes: pa.Table) -> None:
        self.rows += outcomes.num_rows
        self.ok += pc.sum(pc.equal(outcomes["status"], OK)).as_py() or 0
        for entry in outcomes["code"].drop_null().value_counts().to_pylist():
            self.errors[entry["values"]] += entry["counts"]
        for name in ("input", "output"):
            self.tokens[name] += pc.sum(outcomes[f"{name}_tokens"]).as_py() or 0


def assemble(
    place: Path, single: str | None, dataset: Dataset, outcomes: OutcomeStream, layout: Layout
) -> tuple[tuple[PartFile, ...], Totals]:
    """Write the whole result under `place` (`parts.Parts`), durable and checked, and count it.

    RunError: the input has more or fewer rows than were planned, a row has no result, or a file does not read back.
    """
    totals = Totals()
    parts = Parts(place, layout, single)
    names = layout.input.names or (dataset.columns or ())[:1]
    lines = layout.format == "jsonl"
    # A line is taken apart only if some of its keys are not published.
    whole = layout.whole and dataset._settings.columns is None
    for chunk in dataset.chunks(columns=names if dataset.columns is not None else None):
        table = outcomes.take(len(chunk))
        totals.add(table)
        added = layout.added_table(table)
        if not lines:
            parts.write(layout.table(chunk, added))
        elif dataset.format == "jsonl":
            parts.write(_extended_lines(chunk, added, layout, whole))
        else:
            parts.write([dump(record) for record in records(layout.table(chunk, added))])
    outcomes.finish()
    return parts.close(), totals


def _extended_lines(chunk: Chunk, added: pa.Table, layout: Layout, whole: bool) -> list[str]:
    """The input's lines with the added keys, folder columns first among them; a bad line is an object of nulls."""
    keep = frozenset(layout.input.names)
    folders = {name: value for name, value in chunk.partition if name in keep}
    bad: Mapping[str, Any] = {**dict.fromkeys(layout.input.names), **folders}
    pairs = zip(chunk.lines(), added.to_pylist(), strict=True)
    return [
        dump({**bad, **record})
        if line is None
        else extended(line, dump({**folders, **record}), None if whole else keep)
        for line, record in pairs
    ]
