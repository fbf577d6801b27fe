"""The shards that wait for a worker, in the order in which they are handed out. Used from several threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from data.errors import RunError


class Waiting(NamedTuple):
    """A shard, and what its submitter waits for. `alone`: it is to have a worker to itself."""

    shard: Mapping[str, Any]
    future: Future[dict[str, Any]]
    alone: bool = False

    @property
    def cost(self) -> float:
        """Its predicted tokens, 0 if they do not count."""
        return float(self.shard.get("cost", 0.0))


class ShardQueue:
    """First in, first out, but for shards that are too large for the time that is left, or wait for an idle worker."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, waiting: Waiting, *, first: bool = False) -> None:
        """Add a shard at the end, or before all others."""
        with self._lock:
            if first:
                self._waiting.appendleft(waiting)
            else:
                self._waiting.append(waiting)

    def take(self, room: float, *, alone: bool = True) -> Waiting | None:
        """Remove the first shard whose cost is at most `room`; None if there is none.

        alone: whether it may be one that is to have a worker to itself.
        """
        with self._lock:
            for position, waiting in enumerate(self._waiting):
                if waiting.cost <= room and (alone or not waiting.alone):
                    del self._waiting[position]
                    return waiting
        return None

    def holds_only_above(self, room: float) -> bool:
        """Whether shards wait and `take` would find none of them."""
        with self._lock:
            return bool(self._waiting) and all(waiting.cost > room for waiting in self._waiting)

    def fail(self, error: RunError) -> None:
        """Remove every shard and end the wait for it."""
        with self._lock:
            failed = list(self._waiting)
            self._waiting.clear()
        for waiting in failed:
            waiting.future.set_exception(error)
