"""The deadline of a run: when it is, what work can still be finished before it, and when to stop and publish.

A shard is handed out only if it would be finished in time. How long it will take follows from its predicted tokens and
from what the shards finished in this attempt took for theirs; an earlier attempt may have had other devices. Before the
first one is finished, that is not known and shards are handed out. The end of all work lies before the deadline by what
publishing will take: a little for every row of the input and for every finished shard, measured while the run goes on
(tasks.rehearsal).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

from data.errors import RunError
from data.rehearsal import Pace

FIXED_SECONDS = 3.0  # ending the workers, which may hold a GPU, and what of publishing does not grow with the rows
UNMEASURED = Pace(row=25e-6, shard=0.005)  # a million short rows took 16 s to publish on two cores
MARGIN = 2.0  # sorting and checking a large result is not in the measure; a late result helps nobody
RECENT_SHARDS = 32
CAUTION = 0.9  # the share of recent shards that did not take longer than is predicted


class OutOfTime(RunError):
    """The deadline came before this was finished; what is answered is published."""


class Deadline:
    """What is left of the time. Told from several threads, each of its values by one."""

    def __init__(self, moment: datetime, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch."""
        self.moment = moment
        self.rows = 0
        """Rows of the result, as far as they are known or can be told from the bytes read so far."""
        self.shards = 0
        """Finished shards, of this attempt and of earlier ones."""
        self.publishing = UNMEASURED
        """What each of both takes to publish."""
        self._end = moment.timestamp()
        self._clock = clock
        self._paces: deque[float] = deque(maxlen=RECENT_SHARDS)  # seconds a predicted token
        self._pace = 0.0

    @property
    def publishing_seconds(self) -> float:
        """What is set aside for publishing."""
        return FIXED_SECONDS + MARGIN * (self.rows * self.publishing.row + self.shards * self.publishing.shard)

    @property
    def seconds_left(self) -> float:
        """Until work must end."""
        return self._end - self.publishing_seconds - self._clock()

    @property
    def passed(self) -> bool:
        """Whether it is time to publish."""
        return self.seconds_left <= 0

    def check(self) -> None:
        """OutOfTime if it is time to publish."""
        if self.passed:
            raise OutOfTime("the deadline came first")

    def learn(self, tokens: float, seconds: float) -> None:
        """A shard with these predicted tokens took so long, from its arrival at a worker to its commit."""
        self.shards += 1
        if tokens > 0:
            self._paces.append(seconds / tokens)
            ordered = sorted(self._paces)
            self._pace = ordered[math.ceil(CAUTION * (len(ordered) - 1))]

    @property
    def room(self) -> float:
        """The predicted tokens of the largest shard that can still be finished in time, if it is begun now."""
        left = self.seconds_left
        if left <= 0:
            return -1.0
        return left / self._pace if self._pace else math.inf
