"""What a run's workers did, kept for the end: when each began and finished, and how long their answers were.

Counts what this start of the driver saw; answers of an earlier one are in the ledger alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from data.histogram import add

WARNINGS = 20


class Record:
    """Adds up the events of a run.

    Args:
        clock: seconds; for a replay of recorded events, their time.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._planned: float | None = None
        self._ready: dict[int, float] = {}
        self._finished: dict[int, float] = {}
        self.deaths: Counter[str] = Counter()
        """Of workers, by how they ended."""
        self.waited = False
        """Whether another run had the devices for a while."""
        self.publishing: float | None = None
        """When the result began to be assembled: later than the last commit where Prefect was not ready yet."""
        self.lengths: tuple[int, ...] = ()
        """How many answers have what length, in the bins of `data.histogram`."""
        self.tokens = 0
        """Of these answers."""
        self._warnings: dict[str, None] = {}
        self._unsaid = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was warned of, each once; the first ones, and how many more there were."""
        more = (f"and {self._unsaid} more warnings; they are in the run's events.jsonl",) if self._unsaid else ()
        return (*self._warnings, *more)

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take one event into account."""
        kind, now = event["event"], self._clock()
        if kind == "planned" and self._planned is None:
            self._planned = now
        elif kind == "ready":
            self._ready.setdefault(int(event["worker"]), now)
        elif kind == "publishing":
            self.publishing = now
        elif kind == "died":
            self.deaths[str(event["how"])] += 1
        elif kind == "waiting":
            self.waited = True
        elif kind == "warning":
            self._warn(str(event["message"]))
        elif kind == "done":
            self._finished[int(event["worker"])] = now
            if "lengths" in event:
                self.lengths = add([self.lengths, event["lengths"]])
                self.tokens += int(event["output_tokens"])

    def _warn(self, message: str) -> None:
        if len(self._warnings) < WARNINGS:
            self._warnings[message] = None
        elif message not in self._warnings:
            self._unsaid += 1

    @property
    def spans(self) -> tuple[tuple[float, float], ...]:
        """When each worker could begin to compute, and when it committed last, by the clock; of those that did."""
        planned = self._planned or 0.0
        return tuple((max(self._ready.get(worker, 0.0), planned), end) for worker, end in self._finished.items())

    @property
    def finish_spread(self) -> float | None:
        """Seconds between the last commits of the first and the last worker; None with fewer than two."""
        ends = self._finished.values()
        return max(ends) - min(ends) if len(ends) > 1 else None
