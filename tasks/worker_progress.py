"""What one worker has done, over all of the processes that have had its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tasks.meter import Counts, Meter

WorkerState = Literal["starting", "ready", "running", "restarting", "dead", "away"]

RESTART_PATIENCE_SECONDS = 60.0  # the pool waits at most 30 s before it starts a worker again
NOTHING: Counts = (0.0, 0.0, 0.0)  # sequences, input tokens, output tokens


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker at a moment. Rates are tokens a second; `since` is the age of its state in seconds."""

    index: int
    state: WorkerState
    sequences: int
    errors: int
    input_rate: float
    output_rate: float
    deaths: int
    since: float
    device: str | None


class WorkerProgress:
    """Counts of one worker. A process counts from 0; what it had not committed when it died is lost."""

    def __init__(self, index: int, now: float, seconds: float) -> None:
        self.index = index
        self.committed = 0  # sequences, by all of its processes
        self.errors = 0
        self.deaths = 0
        self._seconds = seconds
        self.start(now)

    def start(self, now: float) -> None:
        """A new process."""
        self._state: WorkerState = "starting"
        self._changed = now
        self._device: str | None = None
        self._counted = self._shards = NOTHING  # what this process has counted, and the part that is committed
        self._meter = Meter(3, now, self._seconds)

    def ready(self, now: float, device: str | None) -> None:
        """The model is loaded; rates count from here."""
        self._state, self._changed, self._device = "ready", now, device
        self._meter = Meter(3, now, self._seconds)

    def count(self, now: float, counted: Counts) -> Counts:
        """The totals of this process are now at least `counted`. Returns by how much they grew."""
        grown = tuple(max(0.0, new - old) for new, old in zip(counted, self._counted, strict=True))
        if any(grown):
            self._counted = tuple(old + more for old, more in zip(self._counted, grown, strict=True))
            self._meter.add(now, grown)
            if self._state != "running":
                self._state, self._changed = "running", now
        return grown

    def commit(self, now: float, shard: Counts, errors: int) -> Counts:
        """A shard with these counts is committed. Returns the growth, as `count` does."""
        self._shards = tuple(old + more for old, more in zip(self._shards, shard, strict=True))
        self.committed += int(shard[0])
        self.errors += errors
        return self.count(now, self._shards)

    def die(self, now: float) -> None:
        """The process is gone."""
        self.start(now)
        self._state = "restarting"
        self.deaths += 1

    def leave(self, now: float) -> None:
        """The process was ended in good order, with nothing in its hands; another one comes later."""
        self.start(now)
        self._state = "away"

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded."""
        return self._state in ("ready", "running")

    @property
    def uncommitted(self) -> Counts:
        """Sequences, and their tokens in and out, that this process has finished and not committed."""
        return tuple(max(0.0, counted - done) for counted, done in zip(self._counted, self._shards, strict=True))

    @property
    def in_flight(self) -> int:
        """Sequences that this process has finished and not committed."""
        return int(self.uncommitted[0])

    def view(self, now: float) -> WorkerView:
        """The worker at time `now`."""
        since = now - self._changed
        lost = self._state == "restarting" and since > RESTART_PATIENCE_SECONDS
        _, input_rate, output_rate = self._meter.rates(now, self._seconds) if self._state == "running" else NOTHING
        return WorkerView(
            index=self.index,
            state="dead" if lost else self._state,
            sequences=self.committed + self.in_flight,
            errors=self.errors,
            input_rate=input_rate,
            output_rate=output_rate,
            deaths=self.deaths,
            since=since,
            device=self._device,
        )
