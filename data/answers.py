"""The answers of a run, all of them: whether they suffice for a result, and the stream of outcomes that it is made of.

They come from the ledger or, once shard data was deleted after publication, from the published result; the latest
committed retry of a sequence counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from data.destination import Destination
from data.errors import RunError
from data.ledger import Ledger
from data.manifest import Manifest
from data.outcomes import Outcomes, committed_by_index, joined, ledger_results, outcome_schema
from data.published import published_outcomes
from data.retry import count_rows, failures, latest_places
from data.run_folder import RunFolder
from data.window import Window, read_table


class OverBudget(RunError):
    """More rows failed than `output.error_budget` allows; the answers are kept."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Where the outcomes of a result come from."""

    run: RunFolder
    windows: Sequence[Window]
    retries: Sequence[Window]
    ledger: Ledger
    results: pa.Schema
    base: tuple[Destination, Manifest] | None
    partial: bool

    def check(self, error_budget: float) -> None:
        """RunError: shards are missing. OverBudget: more than this share of the rows are errors."""
        missing = [shard for window in self.windows for shard in self.ledger.missing(window.shards)]
        if not self.partial and (missing or not self.windows or not self.windows[-1].last):
            raise RunError(
                f"{len(missing)} shards are not finished, or not all windows are planned; run again to resume"
            )
        failed = failures(self.run, self.windows, self.retries, self.ledger, self.base)
        counts = count_rows(self.run, self.windows, failed)
        errors, rows = sum(counts.values()), sum(window.rows for window in self.windows)
        if errors > error_budget * rows:
            codes = ", ".join(f"{code} {count}" for code, count in sorted(counts.items()))
            raise OverBudget(
                f"{errors} of {rows} rows are errors ({codes}), more than output.error_budget = {error_budget}; "
                "the answers are kept: raise the budget to publish them, or use --retry-errors"
            )

    def outcomes(self) -> Outcomes:
        """The outcome of every row; retries that a published result includes are not applied again."""
        retries = self.retries[self.base[1].retries :] if self.base else self.retries
        if self.base:
            given = published_outcomes(*self.base, self.results)
        else:
            given = ledger_results(self.run, self.windows, self.ledger, self.results)
        again = self._retried(retries) if retries else iter(())
        return Outcomes(self.run, self.windows, outcome_schema(self.results), given, again, partial=self.partial)

    def _retried(self, retries: Sequence[Window]) -> Iterator[pa.RecordBatch]:
        commits = committed_by_index(retries, self.ledger)
        places = latest_places(self.run, retries, self.ledger)
        for window in self.windows:
            plan = read_table(self.run, window, ".parquet", ["row", "shard", "slot"])
            plan = plan.join(places, ["shard", "slot"], join_type="inner")
            plan = plan.select(["row", "new_shard", "new_slot"]).rename_columns(["row", "shard", "slot"])
            yield from joined(self.run, plan, commits, self.results)
