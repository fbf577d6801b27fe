"""The deadline of a run: when it is, what work can still be finished before it, and when to stop and publish.

A shard is handed out only if it would be finished in time. How long it will take follows from its predicted tokens and
from what the shards finished in this attempt took for theirs; an earlier attempt may have had other devices. Before the
first one is finished, that is not known and shards are handed out. The end of all work lies before the deadline by what
publishing will take: a little for every row of the input, measured while the run goes on (tasks.rehearsal).
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from data.errors import InputError, RunError

FIXED_SECONDS = 3.0  # ending the workers, which may hold a GPU, and what of publishing does not grow with the rows
ROW_SECONDS = 25e-6  # of publishing, before it is measured: a million short rows took 16 s on two cores
MARGIN = 2.0  # sorting and checking a large result is not in the measure; a late result helps nobody
RECENT_SHARDS = 32
CAUTION = 0.9  # the share of recent shards that did not take longer than is predicted

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


class OutOfTime(RunError):
    """The deadline came before this was finished; what is answered is published."""


def parse(text: str) -> timedelta | datetime:
    """`8h`, `1h30m`, `45s` or an ISO time with a zone. ValueError says what would be right."""
    compact = text.replace(" ", "")
    if _DURATION.fullmatch(compact):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))
        if 0 < seconds < timedelta.max.total_seconds():
            return timedelta(seconds=seconds)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("must be a duration such as 8h or 1h30m, or a time with a zone such as 2026-01-31T06:00+01:00")
    return moment


def moment_of(text: str, now: datetime) -> datetime:
    """When a deadline is for an attempt that starts `now` (with a zone), in UTC. InputError: that is over."""
    given = parse(text)
    try:
        moment = (now + given if isinstance(given, timedelta) else given).astimezone(UTC)
    except OverflowError:
        raise InputError(f"schedule.deadline = {text!r} is too far away; leave it out to have none") from None
    if moment <= now:
        raise InputError(f"schedule.deadline = {text!r} has passed: set a later one, or leave it out to finish the run")
    return moment


class Deadline:
    """What is left of the time. Told from several threads, each of its values by one."""

    def __init__(self, moment: datetime, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since the epoch."""
        self.moment = moment
        self.rows = 0
        """Rows of the result, as far as they are known or can be told from the bytes read so far."""
        self.row_seconds = ROW_SECONDS
        """What each of them takes to publish."""
        self._end = moment.timestamp()
        self._clock = clock
        self._paces: deque[float] = deque(maxlen=RECENT_SHARDS)  # seconds a predicted token
        self._pace = 0.0

    @property
    def publishing_seconds(self) -> float:
        """What is set aside for publishing."""
        return FIXED_SECONDS + MARGIN * self.rows * self.row_seconds

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
