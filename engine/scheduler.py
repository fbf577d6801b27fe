"""Which tokens the next forward pass computes: continuous batching under one token budget.

Every sequence that decodes gets one token of the budget, then prompts get the rest, in chunks where a prompt is longer
than what is left. Sequences that were added together start with the longest answers, so that a batch does not end with
a few of them, then with the longest prompts; those of about equal length keep the order in which they came, so that
common beginnings stay together. Who may start and who has to sit out for want of KV blocks is left to engine.residence.

A step that only decodes can be launched whole from a recording, one with prompts cannot; so prompts may be made to wait
for one another, until they are worth a step.

Prompt blocks are published when the step that writes them is planned, not when it has run: a forward pass writes KV
before it attends, so rows with a common instruction share it even when they start in the same step.

Plain Python without torch and without clocks: without a forecast the steps are a pure function of the requests. A step
may be planned before the previous one's tokens are read; a sequence that turns out to have stopped then computes one
token too many, which is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from operator import attrgetter

from engine.blocks import BlockPool
from engine.lengths import AnswerLengths
from engine.residence import Residence
from engine.sequence import Sequence
from engine.step import Chunk, Step

_written = attrgetter("written")


class Scheduler:
    """The queue of waiting sequences, those that run, and their rows."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_rows: int,
        max_batch_tokens: int,
        lengths: AnswerLengths | None = None,
        least_prefill: int = 1,
        most_wait: int = 0,
        share: bool = True,
    ) -> None:
        """lengths: admit by the demand forecast from these, which learn from each answer; None reserves the longest.

        least_prefill: prompt tokens that must be ready to join decoding sequences. They wait for more for at most
        `most_wait` steps, and not while less than a quarter of the rows decode.
        share: whether sequences with a common beginning share its blocks.
        """
        assert max_rows > 0
        assert max_batch_tokens > 0
        self.pool = pool
        self._planned = max_batch_tokens, min(max_rows, max_batch_tokens)
        self._budget, self._most_rows = self._planned
        self._least_prefill = least_prefill
        self._most_wait = most_wait
        self._share = share
        self._waited = 0
        self._lengths = lengths
        self._residence = Residence(pool, lengths)
        self._waiting: deque[Sequence] = deque()
        self._prefilling: dict[Sequence, None] = {}
        # Longest first. A new list whenever it changes, since steps hold the old ones.
        self._decoding: list[Sequence] = []
        self._joined: list[Sequence] = []
        self._changed = False
        self._before: list[Sequence] = []
        self._rows: list[int] = list(range(self._most_rows - 1, -1, -1))
        self._admitted = 0
        self.shared_tokens = 0
        """Prompt positions that were found in shared blocks instead of being computed."""

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._residence.here or self._residence.away)

    @property
    def running(self) -> int:
        """Sequences of the batch."""
        return len(self._residence.here)

    @property
    def waiting(self) -> int:
        """Sequences that were not admitted yet."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """KV positions of the blocks that sequences hold."""
        return self.pool.held * self.pool.size

    @property
    def swaps(self) -> int:
        """How often a sequence was sent to the host for want of blocks."""
        return self._residence.swaps

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence could ever be admitted."""
        return self.pool.blocks_for(sequence.positions) <= self.pool.count

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue these behind those of earlier calls, the longest first."""
        ordered = sorted(sequences, key=_length_class, reverse=True)
        for sequence in ordered:
            self._residence.expect(sequence)
        self._waiting.extend(ordered)

    def lower(self, max_batch_tokens: int, max_rows: int) -> None:
        """Plan no more than this from now on; those that decode already go on, even if they are more."""
        self._budget = min(self._budget, max_batch_tokens)
        self._most_rows = min(self._most_rows, max_rows)

    def plan(self, most_prompt: int | None = None) -> Step | None:
        """The next step, with its sequences moved past it; None while nothing can be computed.

        most_prompt: most prompt tokens of it; None for all that the budget leaves.
        """
        step = Step()
        self._decode(step)
        left = max(0, self._budget - len(step.decode))
        if most_prompt is not None:
            left = min(left, most_prompt)
        if left and self._starts_prompts(len(step.decode), left):
            for sequence in list(self._prefilling):
                if left:
                    left -= self._prefill(step, sequence, left)
            while left and self._waiting and self._admits() and self._admit(self._waiting[0]):
                sequence = self._waiting.popleft()
                step.admitted.append(sequence)
                left -= self._prefill(step, sequence, left)
        if not step.decode and not step.chunks:
            assert not step.swapped_out
            return None
        step.same = step.decode == self._before
        self._before = step.decode
        return step

    def finish(self, sequence: Sequence, *, spoiled: bool = False) -> list[int]:
        """Free what a running sequence holds. With `spoiled`, nobody may share its blocks from now on.

        Returns the blocks that nobody holds any more.
        """
        assert not sequence.finished
        sequence.finished = True
        self._prefilling.pop(sequence, None)
        if spoiled:
            self.pool.withdraw(sequence.blocks)
        elif self._lengths is not None:
            tokens = len(sequence.tokens)
            self._lengths.observe(tokens, ended=tokens < sequence.max_tokens)
        self._changed = True
        self._rows.append(sequence.row)
        return self._residence.leave(sequence)

    def reset(self) -> None:
        """Forget shared prefixes, lower limits and the order in which rows were used; nothing may be left to do."""
        assert not self.has_work
        self.pool.reset()
        self._budget, self._most_rows = self._planned
        self._rows = list(range(self._most_rows - 1, -1, -1))
        self._waited = self._admitted = 0

    def _decode(self, step: Step) -> None:
        """Plan a token for each decoding sequence that has a block for it."""
        if self._changed:
            self._compose(self._decoding + self._joined)
        out = self._residence.grow(step, self._decoding)
        if out:
            step.decode = [s for s in self._decoding if s not in out]
            self._changed = True
        else:
            if self._residence.away:
                back = self._residence.bring_back(step)
                if back:
                    self._compose(self._decoding + back)
            step.decode = self._decoding
        for sequence in step.decode:
            sequence.written += 1
            sequence.launched = launched = sequence.launched + 1
            if launched >= sequence.max_tokens:
                self._changed = True

    def _compose(self, sequences: list[Sequence]) -> None:
        """Decode those of `sequences` that still do. Neighbours have similar lengths: a backend may pad them alike."""
        here = self._residence.here
        self._decoding = [s for s in sequences if s in here and s.launched < s.max_tokens]
        self._decoding.sort(key=_written, reverse=True)
        self._joined = []
        self._changed = False

    def _starts_prompts(self, decoding: int, left: int) -> bool:
        """Whether this step may have prompts beside `decoding` sequences."""
        if self._least_prefill > 1 and decoding * 4 >= self._most_rows and self._waited < self._most_wait:
            least = min(self._least_prefill, left)
            ready = sum(len(s.prompt) - s.written for s in self._prefilling)
            if ready < least and not self._residence.away:
                ready += self._residence.prompt_tokens(self._waiting, self._free_rows, least - ready)
            if ready < least:
                self._waited += ready > 0
                return False
        self._waited = 0
        return True

    @property
    def _free_rows(self) -> int:
        """Sequences that may be admitted for all that rows matter. Those on the host keep theirs."""
        return max(0, len(self._rows) - (self._planned[1] - self._most_rows))

    def _admits(self) -> bool:
        return self._free_rows > 0 and not self._residence.away

    def _admit(self, sequence: Sequence) -> bool:
        """Give the sequence a row and blocks, if they can be had."""
        if not self._residence.admit(sequence):
            return False
        self._admitted += 1
        sequence.admission = self._admitted
        sequence.row = self._rows.pop()
        sequence.published = sequence.shared
        sequence.written = sequence.shared * self.pool.size
        self.shared_tokens += sequence.written
        self._prefilling[sequence] = None
        return True

    def _prefill(self, step: Step, sequence: Sequence, left: int) -> int:
        """Plan the next chunk of a prompt within `left` tokens; its length."""
        start = sequence.written
        stop = min(len(sequence.prompt), start + left)
        step.chunks.append(Chunk(sequence, start, stop))
        sequence.written = stop
        if stop == len(sequence.prompt):
            sequence.launched = 1
            del self._prefilling[sequence]
            self._joined.append(sequence)
            self._changed = True
        if self._share:
            self._publish(sequence, stop // self.pool.size)
        return stop - start

    def _publish(self, sequence: Sequence, full: int) -> None:
        """Offer the first `full` blocks of a sequence to others."""
        assert sequence.hashes is not None
        for index in range(sequence.published, full):
            self.pool.publish(sequence.blocks[index], sequence.hashes[index])
        sequence.published = max(sequence.published, full)


def _length_class(sequence: Sequence) -> tuple[int, int, int, int]:
    """Orders by the steps that an answer may take, then by the positions to hold; equal within about a tenth."""
    return *_tenth(sequence.max_tokens), *_tenth(sequence.positions)


def _tenth(number: int) -> tuple[int, int]:
    octave = number.bit_length()
    return octave, number >> max(0, octave - 4)
