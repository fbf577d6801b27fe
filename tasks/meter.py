"""The rate of growing counts over the last while, from samples of their running totals.

A rate falls to nothing when the counts stand still, because the end of the span is the moment of asking, not the last
sample. Samples closer together than a second are merged, which bounds the memory.
"""

from __future__ import annotations

from collections import deque

Counts = tuple[float, ...]

SPACING_SECONDS = 1.0


class Meter:
    """Running totals of `width` counts and their rates.

    Args:
        width: how many counts.
        start: when they began to grow, in seconds of some clock.
        seconds: the longest span that `rates` can look back.
    """

    def __init__(self, width: int, start: float, seconds: float) -> None:
        self.totals: Counts = (0.0,) * width
        self._start, self._seconds = start, seconds
        self._samples: deque[tuple[float, Counts]] = deque([(start, self.totals)])

    def add(self, now: float, growth: Counts) -> None:
        """Add to the totals at time `now`."""
        self.totals = tuple(total + more for total, more in zip(self.totals, growth, strict=True))
        if len(self._samples) > 1 and now - self._samples[-2][0] < SPACING_SECONDS:
            self._samples.pop()
        self._samples.append((now, self.totals))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self._seconds:
            self._samples.popleft()

    def rates(self, now: float, seconds: float) -> Counts:
        """Growth per second over the last `seconds`, or since the start if that is later."""
        begin, base = self._samples[0]
        for when, totals in self._samples:
            if when > now - seconds:
                break
            begin, base = when, totals
        span = now - begin
        if span <= 0:
            return (0.0,) * len(self.totals)
        return tuple((total - before) / span for total, before in zip(self.totals, base, strict=True))

    def age(self, now: float) -> float:
        """Seconds since the start."""
        return now - self._start
