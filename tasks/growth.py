"""Whether a worker's memory grows without end, judged by what its process holds at the end of each shard.

A healthy process grows too: caches fill, allocators keep what they were given once, and pinned memory is taken on first
need. But it comes to rest. So a process is to be replaced only if both hold: it has grown by more than its share of the
machine since the model was loaded, and of its last values nearly every later one is above nearly every earlier one.
Noise around a level makes half of the pairs rise (9 of 10 among 20 values is five deviations from that), one large step
three quarters, two steps 85 %. Values of a process count for that process alone.
"""

from __future__ import annotations

from collections import deque
from itertools import combinations

SHARE = 0.25
"""Of the machine's memory, divided among its workers: how much a worker may grow by."""
SHARDS = 20
"""Values that are compared."""
RISING = 0.9
"""Share of pairs among them of which the later value is above the earlier one."""


class Growth:
    """The memory of one process.

    Args:
        limit: bytes by which it may grow after the model is loaded.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._base: int | None = None
        self._values: deque[int] = deque(maxlen=SHARDS)

    def begin(self, held: int | None) -> None:
        """A process has loaded its model and holds this many bytes."""
        self._base = held
        self._values.clear()

    def note(self, held: int | None) -> None:
        """It holds this many at the end of a shard."""
        if held is not None:
            self._values.append(held)

    @property
    def grown(self) -> int:
        """Bytes above what it held with the model loaded."""
        return self._values[-1] - self._base if self._values and self._base is not None else 0

    @property
    def endless(self) -> bool:
        """Whether it is to be replaced."""
        if self.grown <= self._limit or len(self._values) < SHARDS:
            return False
        rises = [later > earlier for earlier, later in combinations(self._values, 2)]
        return sum(rises) > RISING * len(rises)


def growth_limit(machine: int, workers: int) -> float:
    """Bytes by which each of the workers of a machine, or a container, with so much memory may grow."""
    return SHARE * machine / workers
