"""How many KV blocks the running sequences will come to need at once.

A sequence grows by one position a step and gives everything back when its answer ends. With the chance of each answer
to go on (engine.lengths), the blocks needed in the steps to come have a mean and a variance; a further sequence is
admitted while the mean and a deviation stay within the pool at every time. So sequences of known length are packed by
when they end, without any risk, and those of unknown length by what is usual. A forecast is kept for a few steps and
only added to, since making it takes about as long as planning a step.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from engine.blocks import BlockPool
from engine.lengths import AnswerLengths
from engine.sequence import Sequence

# Share of the pool that is kept for what a forecast leaves out, and standard deviations on top of the mean.
_RESERVE = 0.02
_DEVIATIONS = 1.0
# A forecast is made anew after so many steps, or when one of so many running sequences ended.
_STEPS = 8
_ENDED = 32


def _times() -> np.ndarray:
    """Steps from now at which demand is looked at: as far apart as blocks, later an eighth of the way."""
    times = [0]
    while times[-1] < 1 << 24:
        times.append(times[-1] + max(8, times[-1] // 8))
    return np.array(times, np.int64)


_TIMES = _times()


class Demand:
    """The forecast for the sequences that run; what was admitted since it was made is added to it."""

    def __init__(self, pool: BlockPool, lengths: AnswerLengths, running: Collection[Sequence]) -> None:
        """running: the sequences that hold blocks, kept up to date by its owner."""
        self._pool = pool
        self._lengths = lengths
        self._running = running
        self._limit = math.floor(pool.count * (1 - _RESERVE))
        # Blocks of all running sequences, and of the largest one, if each answer were as long as it may be.
        self._worst = 0
        self._largest = 0
        self._stale = True
        self._age = 0
        self._ended = 0
        self._longest = 1
        self._ends = np.zeros(1)
        self._mean = np.zeros(1)
        self._variance = np.zeros(1)

    def tick(self) -> None:
        """A step was planned."""
        self._age += 1

    def expect(self, sequence: Sequence) -> None:
        """The sequence may be asked for later."""
        self._largest = max(self._largest, self._pool.blocks_for(sequence.positions))
        if sequence.max_tokens > self._longest:
            self._longest = sequence.max_tokens
            self._stale = True

    def refresh(self) -> None:
        """Make the forecast anew if it is needed and out of date."""
        if self._worst + self._largest <= self._pool.count:
            return
        if self._stale or self._age >= _STEPS or self._ended * _ENDED > len(self._running):
            self._forecast()

    def admits(self, sequence: Sequence, shared: int) -> bool:
        """Whether it can run beside the running sequences; its first `shared` blocks are there already."""
        if self._worst + self._pool.blocks_for(sequence.positions) <= self._pool.count:
            return True
        self.refresh()
        mean, variance = self._curve([sequence], np.array([shared]), np.zeros(1, np.int64))
        peak = (self._mean + mean + _DEVIATIONS * np.sqrt(self._variance + variance)).max()
        return bool(peak <= self._limit)

    def add(self, sequence: Sequence, shared: int) -> None:
        """The sequence runs from now on."""
        self._worst += self._pool.blocks_for(sequence.positions)
        if not self._stale:
            mean, variance = self._curve([sequence], np.array([shared]), np.array([len(sequence.blocks)]))
            self._mean = self._mean + mean
            self._variance = self._variance + variance

    def remove(self, sequence: Sequence) -> None:
        """The sequence runs no longer."""
        self._worst -= self._pool.blocks_for(sequence.positions)
        self._ended += 1

    def _forecast(self) -> None:
        running = self._running
        tokens = np.array([s.launched for s in running], np.int64)
        self._ends = self._lengths.ends(tokens, self._longest)
        shared = np.array([s.shared for s in running], np.int64)
        held = np.array([len(s.blocks) for s in running], np.int64)
        self._mean, self._variance = self._curve(running, shared, held)
        # Shared blocks whose first owner is gone belong to nobody's curve.
        self._mean = self._mean + (self._pool.held - int((held - shared).sum()))
        self._stale = False
        self._age = self._ended = 0

    def _curve(
        self, sequences: Collection[Sequence], shared: np.ndarray, held: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of the blocks that these hold alone, float64 [T], at most anywhere between two times."""
        times = _TIMES[: int(np.searchsorted(_TIMES, self._longest)) + 1]
        tokens = np.array([s.launched for s in sequences], np.int64)[:, None]
        most = np.array([s.max_tokens for s in sequences], np.int64)[:, None]
        prompts = np.array([len(s.prompt) for s in sequences], np.int64)[:, None]
        at = tokens + times
        # Alive at the beginning of an interval, and as large as at its end.
        alive = np.exp(
            self._ends[np.minimum(tokens, self._longest)] - self._ends[np.minimum(at[:, :-1], self._longest)]
        )
        alive *= at[:, :-1] < np.maximum(most, tokens + 1)
        blocks = np.ceil((prompts + np.minimum(at[:, 1:], most - 1)) * (1 / self._pool.size))
        blocks = np.maximum(blocks, held[:, None]) - shared[:, None]
        mean = alive * blocks
        return mean.sum(0), (mean * blocks * (1 - alive)).sum(0)
