"""The windows of a run, planned one at a time as they are asked for, and handed to the workers at once.

The command line has the first window planned before it imports Prefect, which takes longer than a worker may need to
be ready; the flow's task then finds it done. So nothing here imports Prefect. What a plan is, and how it survives the
death of its planner, is told by data.plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from data.errors import InputError, RunError
from data.json_types import JsonTypes
from data.ledger import Ledger
from data.plan import plan_windows
from data.run_folder import RunFolder
from data.sharding import PlanOptions
from data.shards import Shard
from data.target import Target
from data.window import Window
from tasks.events import EventLog
from tasks.forecast import Forecaster, Planned
from tasks.job import Job
from tasks.settings import Settings


class Planner:
    """Plans the windows of a run.

    Args:
        hand_out: gives shards to the workers; called with those of each window in the order of the plan.
    """

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        ledger: Ledger,
        events: EventLog,
        hand_out: Callable[[Sequence[Shard]], None],
    ) -> None:
        self.windows: list[Window] = []
        """Those planned so far."""
        self.resumed_rows = 0
        """Their rows that were answered before."""
        self._job, self._ledger, self._events, self._hand_out = job, ledger, events, hand_out
        self._planning = plan_windows(folder, job.dataset, job.prompter, job.run_id, plan_options(job.settings))
        self._ahead: Future[Window] | None = None
        self._mixed: set[str] = set()

    @property
    def ended(self) -> bool:
        """Whether `next` has given the last window."""
        return self._ahead is None and bool(self.windows) and self.windows[-1].last

    def plan_ahead(self) -> None:
        """Plan the next window now. What is wrong with it is raised by `next`, where the flow can record it."""
        self._ahead = Future()
        try:
            self._ahead.set_result(self._plan())
        except (RunError, InputError, OSError) as error:
            self._ahead.set_exception(error)

    def next(self) -> Window:
        """The next window: planned, or loaded if it was planned before. A run has at least one.

        Raises:
            RunError, InputError: the input or a plan file is damaged or has changed.
        """
        ahead, self._ahead = self._ahead, None
        return ahead.result() if ahead is not None else self._plan()

    def _plan(self) -> Window:
        window = next(self._planning)
        self.windows.append(window)
        self._events.tell({**_planned(window), "token_seconds": self._token_seconds(window)})
        self._tell_resumed(window)
        self._tell_mixed(window)
        self._hand_out(window.shards)
        return window

    def _token_seconds(self, window: Window) -> tuple[float, float]:
        """What a token in and one out weigh in the time that is left."""
        return Forecaster(self._job).token_seconds(Planned.of([window]))

    def _tell_mixed(self, window: Window) -> None:
        """JSON columns without one type are published as JSON text, which a reader should hear of."""
        output = self._job.output
        if window.json_types is None or Target.at(output.path).format(output.format) == "jsonl":
            return
        for name in JsonTypes.from_json(window.json_types).mixed:
            if name not in self._mixed:
                self._mixed.add(name)
                message = f"column {name!r} has values of several JSON types: it is published as JSON text"
                self._events.tell({"event": "warning", "message": message})

    def _tell_resumed(self, window: Window) -> None:
        commits = self._ledger.commits()
        done = [(shard, commits[shard.id]) for shard in window.shards if shard.id in commits]
        if done:
            self.resumed_rows += sum(shard.rows for shard, _ in done)
            self._events.tell(
                {
                    "event": "resumed",
                    "shards": len(done),
                    "rows": sum(shard.rows for shard, _ in done),
                    "ok": sum(commit.ok for _, commit in done),
                    "errors": sum(commit.errors for _, commit in done),
                    "input_tokens": sum(commit.tokens["input"] for _, commit in done),
                    "output_tokens": sum(commit.tokens["output"] for _, commit in done),
                }
            )


def plan_options(settings: Settings) -> PlanOptions:
    """How a job with these settings is planned."""
    return PlanOptions(
        kind=settings.job.kind,
        max_tokens=settings.sampling.max_tokens,
        fold=settings.job.kind != "generate" or settings.sampling.temperature == 0,
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
