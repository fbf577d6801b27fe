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
from tasks.job import Job
from tasks.settings import Settings


class Planner:
    """Plans the windows of a run.

    Args:
        options: how windows are planned.
        hand_out: gives shards to the workers; called with those of each window in the order of the plan.
    """

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        ledger: Ledger,
        events: EventLog,
        options: PlanOptions,
        hand_out: Callable[[Sequence[Shard]], None],
    ) -> None:
        self.windows: list[Window] = []
        """Those planned so far."""
        self.resumed_rows = 0
        """Their rows that were answered before."""
        self._job, self._ledger, self._events, self._hand_out = job, ledger, events, hand_out
        self._planning = plan_windows(folder, job.dataset, job.prompter, job.run_id, options)
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
        self._events.tell(_planned(window))
        self._tell_finished(window)
        self._tell_mixed(window)
        self._hand_out(window.shards)
        return window

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

    def _tell_finished(self, window: Window) -> None:
        """Shards that no worker of this start computes: finished in an earlier one, or answered by the cache."""
        commits = self._ledger.commits()
        done = [(shard, commits[shard.id]) for shard in window.shards if shard.id in commits]
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
        "last": window.last,
    }
