"""How long publishing takes, measured: the beginning of the input assembled with real answers, and thrown away.

What is timed is `assemble` itself on the rows, columns and format of the run, with the answers of one finished shard in
place of their own. What it leaves out is the sorting of all answers into the input's order, and the final check.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from data.assemble import assemble
from data.dataset import Dataset
from data.destination import destination
from data.json_types import JsonTypes
from data.ledger import Commit, read_results
from data.outcomes import outcome_schema
from data.output import Layout
from data.run_folder import RunFolder
from data.settings import InputSettings, OutputSettings

ROWS = 20_000


class Pace(NamedTuple):
    """Seconds that publishing takes: for a row of the input, and for reading the answers of a shard."""

    row: float
    shard: float


class Repeated:
    """The answers of one shard, again and again, as the outcomes of consecutive rows."""

    def __init__(self, results: pa.Table) -> None:
        self._results = results.drop_columns("slot").combine_chunks()
        self._schema = outcome_schema(results.schema)
        self._row = 0

    def take(self, rows: int) -> pa.Table:
        """The next rows, one outcome each."""
        number = np.arange(self._row, self._row + rows)
        self._row += rows
        taken = self._results.take(pa.array(number % self._results.num_rows))
        return taken.add_column(0, self._schema.field("row"), pa.array(number))

    def finish(self) -> None:
        """Nothing is left over."""


def rehearse(run: RunFolder, source: InputSettings, output: OutputSettings, commit: Commit) -> Pace:
    """Measure with answers like those of `commit`.

    Opens the input itself: another thread may be reading it. InputError, RunError or OSError as in publishing.
    """
    limit = min(ROWS, source.limit if source.limit is not None else ROWS)
    dataset = Dataset.open(source.model_copy(update={"limit": limit}))
    columns = dataset.schema
    if columns is None:
        types = JsonTypes()
        for chunk in dataset.chunks():
            types.observe(chunk.records)
        columns = types.schema()
    read_results(run, commit)  # the first file that a process reads takes a hundred times as long as the next one
    started = time.perf_counter()
    results = read_results(run, commit)
    reading = time.perf_counter() - started
    layout = Layout.of(columns, results.schema, output, destination(output.path).format(output.format))
    place = Path(tempfile.mkdtemp(dir=run.tmp, prefix="rehearsal-"))
    try:
        started = time.perf_counter()
        _, totals = assemble(place / "new", None, dataset, Repeated(results), layout)
        return Pace((time.perf_counter() - started) / max(1, totals.rows), reading)
    finally:
        shutil.rmtree(place, ignore_errors=True)
