"""How far a run is, added up from its events.

The plan counts rows; the workers count sequences, of which one may answer several equal rows. Rows done are therefore
scaled from the share of sequences that are done, and are exact once all are. Work of a worker that died counts until it
died and then only as far as it was committed. What is left is judged by tokens (tasks.remaining). Nothing here prints,
waits or touches a file.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tasks.meter import Counts, Meter
from tasks.outlook import against_deadline, other_run
from tasks.record import Record
from tasks.remaining import Remaining
from tasks.worker_progress import NOTHING, WorkerProgress, WorkerView

Event = Mapping[str, Any]

RATE_SECONDS = 30.0
ETA_SECONDS = 300.0
EVIDENCE_SECONDS = 3.0  # a forecast from less than this would jump about


@dataclass(slots=True)
class _Planned:
    rows: int = 0
    sequences: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    final: bool = False


class Progress:
    """What is known of a run. `tell` it every event; properties may be read from any thread.

    Args:
        clock: seconds; for a replay of recorded events, their time.
        rate_seconds: the span over which rates are taken.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, rate_seconds: float = RATE_SECONDS) -> None:
        self._clock, self._rate_seconds = clock, rate_seconds
        self._lock = threading.RLock()
        self._started = clock()
        self._plan = _Planned()
        self._workers: dict[int, WorkerProgress] = {}
        self._expected_workers = 0
        self._meter: Meter | None = None
        self._ok = self._errors = 0  # committed sequences
        self._remaining = Remaining()
        self._published: Event | None = None
        self._ended: float | None = None
        self.run_id = self.device = ""
        self.resumed_rows = 0
        self.deadline: datetime | None = None
        self.state = "planning"
        self.waits_for: str | None = None
        """The run, in words, that has this one's devices."""
        self.record = Record(clock)
        self._listeners: list[Callable[[Event], None]] = []

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Pass every event on to `listener`, which must return at once."""
        self._listeners.append(listener)

    def tell(self, event: Event) -> None:
        """Take one event into account; kinds that say nothing of progress are only passed on."""
        take = getattr(self, f"_on_{event['event']}", None)
        with self._lock:
            if take is not None:
                take(event)
            self.record.tell(event)
        for listener in self._listeners:
            listener(event)

    @property
    def rows_total(self) -> int:
        """Rows planned so far; all of the input's once `rows_final`."""
        return self._plan.rows

    @property
    def rows_final(self) -> bool:
        """Whether the last window is planned."""
        return self._plan.final

    @property
    def rows_done(self) -> int:
        """Rows with an outcome, those being answered at the moment included as far as they are finished."""
        with self._lock:
            if self._published is not None:
                return int(self._published["rows"])
            return self._unanswerable + self._scaled(self._sequences_done)

    @property
    def ok(self) -> int:
        """Rows with a committed answer."""
        with self._lock:
            return int(self._published["ok"]) if self._published is not None else self._scaled(self._ok)

    @property
    def errors(self) -> int:
        """Rows that ended in an error, found while planning or committed."""
        with self._lock:
            if self._published is not None:
                return int(self._published["errors"])
            return self._unanswerable + self._scaled(self._errors)

    @property
    def sequence_rate(self) -> float:
        """Sequences a second."""
        return self._rates(self._rate_seconds)[0]

    @property
    def input_rate(self) -> float:
        """Prompt tokens a second."""
        return self._rates(self._rate_seconds)[1]

    @property
    def output_rate(self) -> float:
        """Generated tokens a second."""
        return self._rates(self._rate_seconds)[2]

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until every row is answered at the pace of the last minutes; None while that cannot be said."""
        with self._lock:
            if not self._plan.final or self.state in ("publishing", "published") or self._ended is not None:
                return None
            if self.waits_for is not None:
                return None
            if self._sequences_done >= self._plan.sequences:
                return 0.0
            if self._meter is None or self._meter.age(self._now()) < EVIDENCE_SECONDS:
                return None
            recent = self._rates(self._rate_seconds)[0]
            flying = [worker.uncommitted for worker in self._workers.values()]
            left = self._remaining.left(self._plan.sequences, self._sequences_done, flying)
            return self.seconds_for(left) if recent > 0 else None

    def seconds_for(self, left: Counts) -> float | None:
        """Seconds for sequences with tokens in and out, at the pace of the last minutes; None where there was none."""
        return self._remaining.seconds(left, self._rates(max(ETA_SECONDS, self._rate_seconds)))

    @property
    def outlook(self) -> str | None:
        """How the run stands to its deadline; None without one, or once it is no longer at work."""
        if self.deadline is None or self._ended is not None or self.state in ("publishing", "published"):
            return None
        left = self.deadline.timestamp() - time.time()
        return against_deadline(left, self.eta_seconds, self.rows_total - self.rows_done)

    @property
    def workers(self) -> tuple[WorkerView, ...]:
        """Every worker that was ever started, by index."""
        with self._lock:
            return tuple(self._workers[index].view(self._now()) for index in sorted(self._workers))

    @property
    def workers_expected(self) -> int:
        """How many workers the run was started with."""
        return self._expected_workers

    def _now(self) -> float:
        return self._clock() if self._ended is None else self._ended

    @property
    def _unanswerable(self) -> int:
        return sum(self._plan.errors.values())

    @property
    def _sequences_done(self) -> int:
        return min(
            self._plan.sequences, self._ok + self._errors + sum(worker.in_flight for worker in self._workers.values())
        )

    def _scaled(self, sequences: int) -> int:
        if not self._plan.sequences:
            return 0
        answerable = self._plan.rows - self._unanswerable
        return min(answerable, sequences * answerable // self._plan.sequences)

    def _rates(self, seconds: float) -> Counts:
        with self._lock:
            return self._meter.rates(self._now(), seconds) if self._meter is not None else NOTHING

    def _worker(self, event: Event) -> WorkerProgress:
        index = int(event["worker"])
        if index not in self._workers:
            self._workers[index] = WorkerProgress(index, self._clock(), self._rate_seconds)
        return self._workers[index]

    def _grow(self, growth: Counts) -> None:
        if any(growth):
            self._begin()
            assert self._meter is not None
            self._meter.add(self._clock(), growth)
            self.state = "running" if self.state in ("planning", "starting") else self.state

    def _begin(self) -> None:
        """Rates count from the moment that there is something to do and a worker to do it."""
        if self._meter is None:
            self._meter = Meter(3, self._clock(), max(ETA_SECONDS, self._rate_seconds))

    def _on_run_started(self, event: Event) -> None:
        self.run_id, self.device = str(event["run"]), str(event["device"])
        self._expected_workers = int(event["workers"])
        self.deadline = datetime.fromisoformat(event["deadline"]) if "deadline" in event else None

    def _on_planned(self, event: Event) -> None:
        plan = self._plan
        plan.rows += event["rows"]
        plan.sequences += event["sequences"]
        self._remaining.plan(event)
        plan.final = plan.final or event["last"]
        for code, count in event["errors"].items():
            plan.errors[code] = plan.errors.get(code, 0) + count
        self.state = "starting" if self.state == "planning" else self.state
        if plan.sequences and any(worker.loaded for worker in self._workers.values()):
            self._begin()

    def _on_resumed(self, event: Event) -> None:
        self.resumed_rows += event["rows"]
        self._ok += event["ok"]
        self._errors += event["errors"]
        self._remaining.commit(event)

    def _on_cached(self, event: Event) -> None:
        self._ok += event["ok"]
        self._remaining.commit(event)

    def _on_started(self, event: Event) -> None:
        self._worker(event).start(self._clock())

    def _on_ready(self, event: Event) -> None:
        self._worker(event).ready(self._clock(), event.get("device"))
        if self._plan.sequences:
            self._begin()

    def _on_progress(self, event: Event) -> None:
        counted = (event["sequences"], event["input_tokens"], event["output_tokens"])
        self._grow(self._worker(event).count(self._clock(), counted))

    def _on_done(self, event: Event) -> None:
        self._ok += event["ok"]
        self._errors += event["errors"]
        self._remaining.commit(event)
        shard = (event["rows"], event["input_tokens"], event["output_tokens"])
        self._grow(self._worker(event).commit(self._clock(), shard, event["errors"]))

    def _on_died(self, event: Event) -> None:
        self._worker(event).die(self._clock())

    def _on_waiting(self, event: Event) -> None:
        self.waits_for = other_run(event)

    def _on_left(self, event: Event) -> None:
        self._meter = None  # a rate over the time of waiting would be none
        self._worker(event).leave(self._clock())

    def _on_going_on(self, _event: Event) -> None:
        self.waits_for = None

    def _on_publishing(self, _event: Event) -> None:
        self.waits_for = None
        self.state = "publishing"

    def _on_published(self, event: Event) -> None:
        self._published = event
        self.state = "published"

    def _on_finished(self, event: Event) -> None:
        self.waits_for = None
        self.state = str(event["state"])
        self._ended = self._clock()
