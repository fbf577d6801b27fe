"""The windows of a run, planned one at a time as they are asked for, and handed to the workers at once.

The command line has the first window planned before it imports Prefect, which takes longer than a worker may need to
be ready; the flow's task then finds it done. So nothing here imports Prefect. Workers are started when a shard is
handed out, so that a run with nothing to compute starts none; a large input has them load the model while it is
planned. Rows that cannot be asked are known by then: a run that they alone keep from being published is refused before
it computes anything. Under a deadline planning ends when work must end; a window that is planned by then stays. What a
plan is, and how it survives the death of its planner, is told by data.plan.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from data.cached_shards import commit_cached
from data.destination import destination
from data.errors import InputError, RunError
from data.json_types import JsonTypes
from data.ledger import Ledger
from data.plan import load_windows, plan_windows
from data.run_folder import RunFolder
from data.sharding import PlanOptions
from data.shards import Shard
from data.window import Window
from tasks.deadline import Deadline, OutOfTime
from tasks.events import EventLog
from tasks.figures import plural
from tasks.forecast import Forecaster, Planned
from tasks.job import Job
from tasks.settings import Settings

EAGER_ROWS = 50_000
"""So many rows take seconds to read and encode: as many beyond the known answers, and workers are begun meanwhile."""


class Planner:
    """Plans the windows of a run.

    Args:
        options: how windows are planned.
        begin: starts the workers; called, perhaps often, when it is likely that a shard will be handed out.
        hand_out: gives shards to the workers; called with those of each window in the order of the plan.
        deadline: when planning must end; told how many rows there are.
    """

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        ledger: Ledger,
        events: EventLog,
        options: PlanOptions,
        begin: Callable[[], None],
        hand_out: Callable[[Sequence[Shard]], None],
        deadline: Deadline | None,
    ) -> None:
        self.windows: list[Window] = []
        """Those planned so far."""
        self.resumed_rows = 0
        """Their rows that were answered before."""
        self.late = False
        """Whether the deadline has ended the planning."""
        self._job, self._ledger, self._events, self._hand_out = job, ledger, events, hand_out
        self._folder, self._deadline, self._begin = folder, deadline, begin
        self._known = options.answers.count if options.answers is not None else 0
        options = replace(options, priority=job.priority, on_progress=self._watch)
        self._planning = plan_windows(folder, job.dataset, job.prompter, job.run_id, options)
        self._ahead: Future[Window | None] | None = None
        self._mixed: set[str] = set()
        self._order_told = False

    @property
    def ended(self) -> bool:
        """Whether `next` has given the last window, or the deadline keeps it from giving another one."""
        return self._ahead is None and (self.late or (bool(self.windows) and self.windows[-1].last))

    def plan_ahead(self) -> None:
        """Plan the next window now. What is wrong with it is raised by `next`, where the flow can record it."""
        ahead: Future[Window | None] = Future()
        try:
            ahead.set_result(self._plan())
        except (RunError, InputError, OSError) as error:
            ahead.set_exception(error)
        self._ahead = ahead

    def next(self) -> Window | None:
        """The next window: planned, or loaded if it was planned before. A run has at least one.

        None if the deadline came first.

        Raises:
            RunError, InputError: the input or a plan file is damaged or has changed.
        """
        ahead, self._ahead = self._ahead, None
        return ahead.result() if ahead is not None else self._plan()

    def _plan(self) -> Window | None:
        try:
            if self._deadline is not None:
                self._deadline.check()
            window = next(self._planning)
        except OutOfTime:
            self.late = True
            for earlier in load_windows(self._folder)[len(self.windows) :]:  # planned by an attempt before this one
                commit_cached(self._folder, earlier, self._ledger)
                self._take(earlier)
            return None
        self._take(window)
        self._hand_out(window.shards)
        return window

    def _take(self, window: Window) -> None:
        self.windows.append(window)
        if self._deadline is not None:
            self._deadline.rows = self._rows_expected(sum(past.rows for past in self.windows), window.bytes_read)
        self._events.tell({**_planned(window), "token_seconds": self._token_seconds(window)})
        self._tell_finished(window)
        self._tell_mixed(window)
        self._tell_order(window)
        if window.last:
            self._judge_errors()

    def _watch(self, rows: int, bytes_read: int) -> None:
        """Rows have been read for the plan: is there time to go on? OutOfTime if not."""
        if rows - self._known >= EAGER_ROWS:
            self._begin()
        if self._deadline is not None:
            self._deadline.rows = self._rows_expected(rows, bytes_read)
            self._deadline.check()

    def _rows_expected(self, rows: int, bytes_read: int) -> int:
        """The rows of the whole input, judged by the bytes that those so far took."""
        if (self.windows and self.windows[-1].last) or not bytes_read:
            return rows
        limit = self._job.settings.input.limit
        expected = max(rows, rows * self._job.dataset.size // bytes_read)
        return expected if limit is None else min(expected, limit)

    def _token_seconds(self, window: Window) -> tuple[float, float]:
        """What a token in and one out weigh in the time that is left."""
        return Forecaster(self._job).token_seconds(Planned.of([window]))

    def _judge_errors(self) -> None:
        """An input that holds nothing, or too little that can be asked, is often the wrong one.

        RunError: it has more such rows than the error budget allows, and nothing is computed yet.
        """
        if not sum(window.rows for window in self.windows):
            self._events.tell({"event": "warning", "message": "the input has no rows: the result will be empty"})
        if (message := over_error_budget(self._job, self.windows)) is not None:
            if not begun(self._folder):
                raise RunError(message)
            self._events.tell({"event": "warning", "message": message})

    def _tell_mixed(self, window: Window) -> None:
        """JSON columns without one type are published as JSON text, which a reader should hear of."""
        output = self._job.output
        if window.json_types is None or destination(output.path).format(output.format) == "jsonl":
            return
        for name in JsonTypes.from_json(window.json_types).mixed:
            if name not in self._mixed:
                self._mixed.add(name)
                message = f"column {name!r} has values of several JSON types: it is published as JSON text"
                self._events.tell({"event": "warning", "message": message})

    def _tell_order(self, window: Window) -> None:
        """An order that is not the one asked for, and rows that have no place in it, should be known."""
        priority = self._job.priority
        if window.priority != (priority.text if priority is not None else None) and not self._order_told:
            self._order_told = True
            by = f"by schedule.priority = {window.priority!r}" if window.priority is not None else "without a priority"
            message = f"the plan of this run exists already, {by}, and keeps its order; --fresh plans it anew"
            self._events.tell({"event": "warning", "message": message})
        if priority is not None and priority.missing:
            message = f"{plural(priority.missing, 'row')} without a number for schedule.priority: answered last"
            priority.missing = 0
            self._events.tell({"event": "warning", "message": message})

    def _tell_finished(self, window: Window) -> None:
        """Shards that no worker of this start computes: finished in an earlier one, or answered by the cache."""
        commits = self._ledger.commits()
        done = [(shard, commits[shard.id]) for shard in window.shards if shard.id in commits]
        if self._deadline is not None:
            self._deadline.shards += len(done)
        resumed = [(shard, commit) for shard, commit in done if not commit.cached]
        self.resumed_rows += sum(shard.rows for shard, _ in resumed)
        for event, finished in (("cached", [pair for pair in done if pair[1].cached]), ("resumed", resumed)):
            if finished:
                self._events.tell(
                    {
                        "event": event,
                        "shards": len(finished),
                        "sequences": sum(shard.sequences for shard, _ in finished),
                        "rows": sum(shard.rows for shard, _ in finished),
                        "ok": sum(commit.ok for _, commit in finished),
                        "errors": sum(commit.errors for _, commit in finished),
                        "input_tokens": sum(commit.tokens["input"] for _, commit in finished),
                        "output_tokens": sum(commit.tokens["output"] for _, commit in finished),
                    }
                )


def plan_options(settings: Settings) -> PlanOptions:
    """How a job with these settings is planned."""
    return PlanOptions(
        kind=settings.job.kind,
        max_tokens=settings.sampling.max_tokens,
        fold=settings.job.kind != "generate" or settings.sampling.temperature == 0,
    )


def begun(folder: RunFolder) -> bool:
    """Whether a worker has begun a shard of the run: then it is gone on with, whatever it takes."""
    return any(folder.attempts.iterdir())


def over_error_budget(job: Job, windows: Sequence[Window]) -> str | None:
    """What is to be said of a whole plan with more rows without a prompt than the error budget allows; else None."""
    rows, errors = sum(window.rows for window in windows), Counter[str]()
    for window in windows:
        errors.update(window.errors)
    budget, wrong = job.settings.output.error_budget, errors.total()
    if wrong <= budget * rows:
        return None
    codes = ", ".join(f"{code} {count:,}" for code, count in sorted(errors.items()))
    enough = math.ceil(1000 * wrong / rows) / 1000
    return (
        f"{wrong:,} of {plural(rows, 'row')} cannot be asked ({codes}), more than output.error_budget = {budget:g}"
        f" allows: correct them (overnight plan lists them), or set output.error_budget={enough:g} to have the others"
        " answered and published, with these as error rows"
    )


def _planned(window: Window) -> dict[str, Any]:
    return {
        "event": "planned",
        "window": window.index,
        "rows": window.rows,
        "sequences": sum(shard.sequences for shard in window.shards),
        "shards": len(window.shards),
        "errors": dict(window.errors),
        "folded": window.folded,
        "input_tokens": window.input_tokens,
        "sequence_tokens": sum(shard.input_tokens for shard in window.shards),
        "last": window.last,
    }
