"""Which tokens the next forward pass computes: continuous batching under one token budget.

Every sequence that decodes gets one token of the budget, then prompts get the rest in the order in which requests
came, in chunks where a prompt is longer than what is left. A sequence is admitted when blocks for the longest answer
it may give are reserved, so a running sequence never waits for memory and admission cannot deadlock: with nothing
running, every block can be had, and what is larger than the whole pool was refused on arrival.

Prompt blocks are published when the step that writes them is planned, not when it has run: a forward pass writes KV
before it attends, so rows with a common instruction share it even when they start in the same step.

Plain Python without torch and without clocks: the steps are a pure function of the requests. A step may be planned
before the previous one's tokens are read; a sequence that turns out to have stopped then computes one token too many,
which is dropped.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from engine.blocks import BlockPool, prefix_hashes
from engine.sequence import Sequence


@dataclass(slots=True)
class Chunk:
    """Prompt positions [start, stop) of a sequence."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def samples(self) -> bool:
        """Whether it ends the prompt, so that the first token is sampled from it."""
        return self.stop == len(self.sequence.prompt)


@dataclass(slots=True)
class Step:
    """One forward pass: a token of each decoding sequence, then chunks of prompts."""

    decode: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    """Sequences whose row and blocks are new in this step."""

    @property
    def sampled(self) -> list[Sequence]:
        """Sequences that get a token from this step, in the order of its logits."""
        return self.decode + [chunk.sequence for chunk in self.chunks if chunk.samples]

    @property
    def tokens(self) -> int:
        return len(self.decode) + sum(chunk.stop - chunk.start for chunk in self.chunks)


class Scheduler:
    """The queue of waiting sequences, those that run, and their blocks."""

    def __init__(self, pool: BlockPool, *, max_rows: int, max_batch_tokens: int) -> None:
        assert max_rows > 0
        assert max_batch_tokens > 0
        self.pool = pool
        self._budget = max_batch_tokens
        self._max_rows = min(max_rows, max_batch_tokens)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._rows: list[int] = list(range(self._max_rows - 1, -1, -1))
        self.shared_tokens = 0
        """Prompt positions that were found in shared blocks instead of being computed."""

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def running(self) -> int:
        return len(self._running)

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence could ever be admitted."""
        return self.pool.blocks_for(sequence.positions) <= self.pool.count

    def add(self, sequence: Sequence) -> None:
        assert self.fits(sequence)
        self._waiting.append(sequence)

    def plan(self) -> Step | None:
        """The next step, with its sequences moved past it; None while nothing can be computed."""
        step = Step()
        left = self._budget
        for sequence in self._running:
            if sequence.decodes:
                step.decode.append(sequence)
                sequence.written += 1
                sequence.launched += 1
        # Neighbours of similar length, so that a backend can pad them to a common one.
        step.decode.sort(key=lambda sequence: -sequence.written)
        left -= len(step.decode)
        for sequence in self._running:
            if left and sequence.launched == 0:
                left -= self._prefill(step, sequence, left)
        while left and self._waiting and self._rows and self._admit(self._waiting[0]):
            sequence = self._waiting.popleft()
            step.admitted.append(sequence)
            left -= self._prefill(step, sequence, left)
        return step if step.decode or step.chunks else None

    def finish(self, sequence: Sequence, *, spoiled: bool = False) -> list[int]:
        """Free what a running sequence holds. With `spoiled`, nobody may share its blocks from now on.

        Returns the blocks that nobody holds any more.
        """
        assert not sequence.finished
        sequence.finished = True
        if spoiled:
            self.pool.withdraw(sequence.blocks)
        self._running.remove(sequence)
        self._rows.append(sequence.row)
        return self.pool.release(sequence.blocks)

    def reset(self) -> None:
        """Forget shared prefixes and the order in which rows were used; nothing may be running or waiting."""
        assert not self.has_work
        self.pool.reset()
        self._rows = list(range(self._max_rows - 1, -1, -1))

    def _admit(self, sequence: Sequence) -> bool:
        """Reserve a row and blocks for the whole of the sequence, if they can be had."""
        if sequence.hashes is None:
            sequence.hashes = prefix_hashes(sequence.prompt, self.pool.size)
        # At least the last prompt position is computed, for its logits.
        shared = self.pool.shared(sequence.hashes[: (len(sequence.prompt) - 1) // self.pool.size])
        blocks = self.pool.allocate(shared, self.pool.blocks_for(sequence.positions))
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.row = self._rows.pop()
        sequence.published = len(shared)
        sequence.written = len(shared) * self.pool.size
        self.shared_tokens += sequence.written
        self._running.append(sequence)
        return True

    def _prefill(self, step: Step, sequence: Sequence, left: int) -> int:
        """Plan the next chunk of a prompt within `left` tokens; its length."""
        start = sequence.written
        stop = min(len(sequence.prompt), start + left)
        step.chunks.append(Chunk(sequence, start, stop))
        sequence.written = stop
        if stop == len(sequence.prompt):
            sequence.launched = 1
        assert sequence.hashes is not None
        full = stop // self.pool.size
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = max(sequence.published, full)
        return stop - start
