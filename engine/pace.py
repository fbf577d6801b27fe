"""How many prompt tokens a step takes beside the decoding sequences, chosen by measured time.

The largest steps are usually the fastest, since they read the weights least often; where what lies between two layers
only fits into a cache when it is small, they are not. So halves and quarters are tried now and then: a few steps of
each size in turn, because prompts change along a run, and the sizes must be compared on the same ones. What counts is
the time of a step beyond that of its decoding sequences alone, for each prompt token. A size is given up after one step
that was much slower, and replaced only by one that is clearly faster.

How many sequences decode at once is not chosen this way. A further one never lowers the tokens a second, so a limit
could only lose; and since every sequence grows, measured rates fall along a run whatever the size.

Plain Python without torch and without a clock: the choice follows from the measurements.
"""

from __future__ import annotations

from collections import deque
from statistics import median

# Sizes that are tried: the largest, a half and a quarter of it, but none below so many tokens.
_SIZES = 3
_LEAST = 256
# Steps with prompts before sizes are compared for the first time; then twice as many each time, up to a most.
_PAUSE = 32
_LONGEST_PAUSE = 512
# Steps of each size in a comparison, and all that one may take: steps that are not full say nothing.
_SAMPLES = 3
_PATIENCE = 48
# A size this much slower than another is given up; one is chosen instead of another if it takes this much less.
_HOPELESS = 1.25
_FASTER = 0.97
# Steps without prompts by which the time of decoding is known.
_DECODED = 5


class Pace:
    """Tell it every step, and give the next one as many prompt tokens as `size` says."""

    def __init__(self, most: int) -> None:
        """most: prompt tokens of the largest step."""
        self.most = self.size = most
        self._sizes = [most] + [most >> i for i in range(1, _SIZES) if most >> i >= _LEAST]
        self._chosen = most
        self._warm: set[int] = set()
        self._decoded: deque[float] = deque(maxlen=_DECODED)
        self._costs: dict[int, list[float]] = {}
        self._pause = _PAUSE
        self._left = _PAUSE

    def observe(self, prompt: int, decoding: int, seconds: float) -> None:
        """A step of `prompt` tokens of prompts, beside `decoding` sequences, took `seconds` on the device."""
        if not prompt:
            self._decoded.append(seconds / decoding)
            return
        self._left -= 1
        size = next((size for size in self._sizes if 0.7 * size < prompt <= size), None)
        if size is not None and size not in self._warm:
            self._warm.add(size)  # libraries prepare themselves in the first step of a size
        elif size is not None and self._costs:
            alone = decoding * median(self._decoded) if self._decoded else 0.0
            self._costs[size].append(max(0.0, seconds - alone) / prompt)
        self._proceed()

    def _proceed(self) -> None:
        """Begin a comparison, go on with it or end it, as it is time to."""
        if not self._costs:
            if self._left <= 0 and len(self._sizes) > 1:
                self._costs = {size: [] for size in self._sizes}
                self._left = _PATIENCE
                self.size = self._next()
            return
        if self._next() and self._left > 0:
            self.size = self._next()
            return
        costs = {size: median(found) for size, found in self._costs.items() if found}
        if self._chosen in costs:
            best = min(costs, key=lambda size: costs[size])
            if costs[best] < _FASTER * costs[self._chosen]:
                self._chosen = best
        self.size = self._chosen
        self._costs = {}
        self._pause = self._left = min(2 * self._pause, _LONGEST_PAUSE)

    def _next(self) -> int:
        """The size to try next, the one tried least; 0 if each was tried enough."""
        fastest = min((median(found) for found in self._costs.values() if found), default=0.0)
        open_sizes = [
            size
            for size, found in self._costs.items()
            if len(found) < _SAMPLES and (not found or size == self._chosen or min(found) <= _HOPELESS * fastest)
        ]
        return min(open_sizes, key=lambda size: len(self._costs[size]), default=0)
