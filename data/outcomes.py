"""The outcome of every row, in the input's order: the plan joined with the results of the ledger, in bounded memory.

Three sorted streams are merged: the plan's rows, the results by row, and the results of retried rows, which win. The
results come from shard files whose bytes match their commits or, once these were dropped, from the result that is
published. A row without any is an error unless the result is a partial one, where its code is `deadline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.error_codes import Code
from data.errors import RunError
from data.ledger import Commit, Ledger, read_results
from data.results import ERROR
from data.row_order import RowOrder
from data.run_folder import RunFolder
from data.window import Window, read_table

_BATCH_ROWS = 8192


def outcome_schema(results: pa.Schema) -> pa.Schema:
    """`row` and the columns of a result without its slot."""
    return pa.schema([pa.field("row", pa.int64()), *[results.field(name) for name in results.names if name != "slot"]])


class Outcomes:
    """Hands out the outcomes of consecutive rows."""

    def __init__(
        self,
        run: RunFolder,
        windows: Sequence[Window],
        schema: pa.Schema,
        results: Iterable[pa.RecordBatch],
        retried: Iterable[pa.RecordBatch],
        *,
        partial: bool,
    ) -> None:
        """`schema` is an `outcome_schema`; `results` and `retried` have it, with rows in rising order."""
        self._schema = schema
        self._planned = sum(window.rows for window in windows)
        self._whole = bool(windows) and windows[-1].last
        self._partial = partial
        self._plan = _Cursor(_plan_rows(run, windows), _PLAN)
        self._results = _Cursor(results, schema)
        self._retried = _Cursor(retried, schema)
        self._row = 0

    def take(self, rows: int) -> pa.Table:
        """The next rows, one outcome each. RunError: a row has no result, or is not in the plan."""
        start, stop = self._row, self._row + rows
        self._row = stop
        if stop > self._planned and (self._whole or not self._partial):
            raise RunError(f"the input has more rows than the {self._planned} that were planned: it has changed")
        plan = self._plan.until(stop)
        sources = pa.concat_tables([self._results.until(stop), self._retried.until(stop)])
        where = np.full(rows, -1, np.int64)
        # Retried results come last, so they overwrite what they replace.
        where[sources["row"].to_numpy() - start] = np.arange(sources.num_rows)
        absent = where < 0
        shard = np.full(rows, 0, np.int32)
        shard[: plan.num_rows] = plan["shard"].to_numpy()
        unanswered = absent & (shard >= 0)
        if unanswered.any() and not self._partial:
            raise RunError(f"row {start + int(unanswered.argmax())} has no result although every shard is committed")
        found = sources.take(pa.array(where, mask=absent))
        return self._fill(found, plan, start, rows, absent)

    def finish(self) -> None:
        """RunError if rows of the plan were not asked for."""
        if self._row < self._planned:
            raise RunError(f"the input has {self._row} rows, {self._planned} were planned: it has changed")

    def _fill(self, found: pa.Table, plan: pa.Table, start: int, rows: int, absent: Any) -> pa.Table:
        """Outcomes of the rows without a result: the plan's error, or the deadline."""
        missing = pa.array(absent)
        pad = rows - plan.num_rows
        late = "no answer before the deadline; run the same command again to finish"
        for name, otherwise in (("code", Code.DEADLINE), ("message", late)):
            planned = pa.concat_arrays([plan[name].combine_chunks(), pa.nulls(pad, pa.string())])
            filled = pc.if_else(missing, pc.fill_null(planned, otherwise), found[name].combine_chunks())
            found = found.set_column(found.schema.get_field_index(name), name, filled)
        status = pc.if_else(missing, ERROR, found["status"].combine_chunks())
        found = found.set_column(found.schema.get_field_index("status"), "status", status)
        number = pa.array(np.arange(start, start + rows), pa.int64())
        return found.set_column(0, "row", number).cast(self._schema)


def ledger_results(
    run: RunFolder, windows: Sequence[Window], ledger: Ledger, results: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The results of committed shards by row, with folded rows answered by the sequence that they share."""
    commits = committed_by_index(windows, ledger)
    for window in windows:
        plan = read_table(run, window, ".parquet", ["row", "shard", "slot"])
        yield from joined(run, plan.filter(pc.greater_equal(plan["shard"], 0)), commits, results)


def committed_by_index(windows: Iterable[Window], ledger: Ledger) -> dict[int, Commit]:
    """The commits of the windows' finished shards, by shard index."""
    commits = ledger.commits()
    return {shard.index: commits[shard.id] for window in windows for shard in window.shards if shard.id in commits}


def joined(run: RunFolder, plan: pa.Table, commits: dict[int, Commit], results: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The results that the `row, shard, slot` of `plan` point at, by rising row; rows without a commit are left out."""
    if not plan.num_rows:
        return
    row, shard, slot = (plan[name].to_numpy() for name in ("row", "shard", "slot"))
    order = np.argsort(shard, kind="stable")
    indexes, starts = np.unique(shard[order], return_index=True)
    sorter = RowOrder(run.tmp, int(row.min()), int(np.ptp(row)) + 1)
    with closing(sorter):
        for index, members in zip(indexes.tolist(), np.split(order, starts[1:]), strict=True):
            if index in commits:
                table = read_results(run, commits[index])
                if not table.schema.equals(results):
                    raise RunError(f"the results of shard {commits[index].shard} have other columns than this run's")
                taken = table.drop_columns("slot").combine_chunks().take(pa.array(slot[members]))
                sorter.add(taken.add_column(0, "row", pa.array(row[members])))
        yield from sorter.batches()


_PLAN = pa.schema([("row", pa.int64()), ("shard", pa.int32()), ("code", pa.string()), ("message", pa.string())])


def _plan_rows(run: RunFolder, windows: Sequence[Window]) -> Iterator[pa.RecordBatch]:
    for window in windows:
        yield from read_table(run, window, ".parquet", _PLAN.names).cast(_PLAN).to_batches(_BATCH_ROWS)


class _Cursor:
    """A stream of batches sorted by `row`, cut where the reader wants it. RunError if the rows do not rise."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        self._batches = iter(batches)
        self._schema = schema
        self._rest: pa.RecordBatch | None = None
        self._last = -1

    def until(self, row: int) -> pa.Table:
        """The rows before `row` that were not handed out yet."""
        pieces: list[pa.RecordBatch] = []
        while (batch := self._rest if self._rest is not None else self._next()) is not None:
            count = int(np.searchsorted(batch.column(0).to_numpy(), row))
            pieces.append(batch.slice(0, count))
            self._rest = batch.slice(count)
            if self._rest.num_rows:
                break
            self._rest = None
        return pa.Table.from_batches(pieces, self._schema)

    def _next(self) -> pa.RecordBatch | None:
        batch = next(self._batches, None)
        if batch is not None and batch.num_rows:
            rows = np.concatenate([[self._last], batch.column(0).to_numpy()])
            if not (rows[1:] > rows[:-1]).all():
                raise RunError("two results claim one row; the plan is damaged: start again with --fresh")
            self._last = int(rows[-1])
        return batch
