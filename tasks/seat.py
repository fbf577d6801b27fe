"""The seat of one worker: the process that has it now, the shards that it holds, and whether it still lives and works.

Two clocks run. A process that says nothing at all, not even that it lives, for `SILENCE_SECONDS` or the stall limit if
that is shorter, was stopped or hangs where nothing else of it can run. One that lives, and has work, but reports no
progress for the stall limit hangs in its work. Time that this process itself was not running is not held against it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.child import BEAT
from engine.supervisor import Child
from tasks.figures import size
from tasks.growth import Growth
from tasks.shard_queue import Waiting

START_SECONDS = 3600.0  # a large model from a slow disk says nothing while it loads
SILENCE_SECONDS = 60.0
START_SILENCE_SECONDS = 600.0  # libraries from a slow disk hold the interpreter while they are loaded
MAX_RESTART_DELAY_SECONDS = 30.0
ALONE_DEATHS = 64
"""Deaths that a seat may have with suspected shards, on top of those that count against itself, while nothing survives.

A search has its own end (data.suspect), but where every row kills, the device is to blame and not the rows. The first
bad row of a shard of 2^n costs n + 4 deaths and one right beside it three at most, after which others survive: so this
is some 16 neighbours in the largest shards, and no limit to those that lie apart or in other shards.
"""

SURVIVED = "survived"
"""A worker's message that it has computed a trial of a suspected shard and lives."""

Event = dict[str, Any]


class Given(NamedTuple):
    """A shard that a worker has, and its predicted tokens."""

    future: Future[Event]
    tokens: float
    alone: bool


@dataclass(slots=True)
class Seat:
    """One worker's seat. `retries`: deaths in a row without a finished shard after which it stays empty."""

    index: int
    retries: int
    growth: Growth
    child: Child | None = None
    ready: bool = False
    held: dict[str, Given] = field(default_factory=dict)
    leaving: bool = False
    """Whether its process is to be replaced once it holds nothing."""
    heard: float = 0.0  # monotonic time of its last message
    moved: float = 0.0  # of the last sign of progress
    work: float | None = None  # what the worker last said it had done; the same again is no progress
    failures: int = 0  # deaths in a row without a finished shard
    suspected: int = 0  # with a shard that had the worker to itself, since the seat has survived any part of a shard
    restart_at: float = 0.0
    refused: bool = False
    """Whether its last process failed its canaries."""

    @property
    def tokens(self) -> float:
        """Predicted tokens of the shards it holds."""
        return sum(given.tokens for given in self.held.values())

    @property
    def alone(self) -> bool:
        """Whether it holds a shard that is to have it to itself."""
        return any(given.alone for given in self.held.values())

    @property
    def gone(self) -> bool:
        """Whether no process is started for it again."""
        return self.child is None and (
            self.failures > self.retries or self.suspected + self.failures > self.retries + ALONE_DEATHS
        )

    @property
    def stopped(self) -> Event | None:
        """What to tell if its worker is ended with the run: the shards that it holds are not to blame."""
        if self.child is None or not (self.ready and self.held):
            return None
        return {"worker": self.index, "event": "stopped", "shards": list(self.held), "pid": self.child.pid}

    @property
    def outgrown(self) -> Event:
        """What to tell if its process is replaced for its memory."""
        message = f"the memory of worker {self.index} grew by {size(self.growth.grown)} and went on growing; "
        message += "a new process has taken its place"
        return {"worker": self.index, "event": "warning", "code": "memory", "message": message}

    def given_up(self, how: str, left: str) -> Event:
        """What to tell if it stays empty; how its last process ended, and who goes on."""
        message = f"worker {self.index} is given up after deaths in a row, the last one: {how}"
        message += f"; the run goes on with {left}"
        return {"worker": self.index, "event": "warning", "code": "worker_gone", "message": message}

    def take(self, child: Child) -> None:
        """A new process has the seat."""
        self.child, self.ready, self.leaving, self.work = child, False, False, None
        self.heard = self.moved = time.monotonic()

    def give(self, waiting: Waiting) -> None:
        """Hand a shard to the process; one that is gone is found at its connection."""
        assert self.child is not None
        self.held[waiting.shard["id"]] = Given(waiting.future, waiting.cost, waiting.alone)
        self.moved = time.monotonic()
        self.child.send(waiting.shard)

    def note(self, message: Mapping[str, Any]) -> None:
        """A message has come. A beat says that the process lives, and no more."""
        now = self.heard = time.monotonic()
        if message["event"] == BEAT or (message["event"] == "progress" and message.get("work") == self.work):
            return
        self.moved, self.work = now, message.get("work")
        if message["event"] == SURVIVED:
            self.suspected = 0

    def finish(self, shard: str) -> Given | None:
        """Take back a shard that the process has finished; None for one that it does not hold."""
        given = self.held.pop(shard, None)
        if given is not None and self.child is not None:
            self.failures = self.suspected = 0
            self.growth.note(self.child.memory)
            self.leaving = self.leaving or self.growth.endless
        return given

    def overdue(self, now: float, stall: float) -> str | None:
        """Why the process is to be replaced at once, if it is."""
        if self.child is None:
            return None
        silence = min(stall, SILENCE_SECONDS) if self.ready else START_SILENCE_SECONDS
        if self.child.beats and now - self.heard > silence:
            return f"no sign of life for {silence:g} s"
        limit = stall if self.ready else max(stall, START_SECONDS)
        if (self.held or not self.ready) and now - self.moved > limit:
            return f"no progress for {limit:g} s"
        return None

    def excuse(self, seconds: float) -> None:
        """So long nobody could listen."""
        self.heard += seconds
        self.moved += seconds

    def lose(self) -> list[tuple[str, Given]]:
        """The process is dead, or could not be started: count it. Returns what it held.

        The next start is delayed the more, the more often the seat itself seems to be to blame.
        """
        if self.alone:
            self.suspected += 1
        else:
            self.failures += 1
        delay = 0.5 * 2 ** min(max(0, self.failures - 1), 10)
        self.restart_at = time.monotonic() + min(MAX_RESTART_DELAY_SECONDS, delay)
        return self.empty()

    def empty(self) -> list[tuple[str, Given]]:
        """Take its process and its shards away."""
        held = list(self.held.items())
        self.held.clear()
        self.child, self.ready = None, False
        return held


def vacate(seats: Sequence[Seat]) -> list[Given]:
    """End every process; what they held is the caller's to fail."""
    children = [seat.child for seat in seats if seat.child is not None]
    for child in children:
        child.kill()  # all of them before the first is waited for: a GPU takes a while to be given back
    for child in children:
        child.end()
    return [given for seat in seats for _, given in seat.empty()]
