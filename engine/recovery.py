"""Computes in parts what runs out of memory whole.

Nothing is lost when a launch fails: a forward pass writes the KV of its own tokens, which is the same when written
again, and what rows have sampled is noted last of all, without allocating. So the step is cut in the middle of its
tokens, its halves likewise, until each part fits; prompts stay in their order, since one may read what the one before
it writes. A sequence of which not even one token can be computed is given up, and with it those that begin with the
same blocks.

The largest part that was computed is what later steps are cut to before they are tried, and what the scheduler should
plan by. Parts give the answers of the whole but for the rounding of sums, which can turn a greedy choice between two
equally likely tokens, as any other batch can.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import TypeVar

from engine.execution import Executes, Launched
from engine.faults import out_of_memory
from engine.paged import BLOCK
from engine.sampling import NOT_A_NUMBER
from engine.sequence import Sequence
from engine.step import Chunk, Step

_Result = TypeVar("_Result")

# Steps are never cut to fewer tokens or rows before they are tried.
_LEAST = 16


@dataclass(frozen=True)
class Shortage:
    """What came of a step that ran out of memory."""

    lost: list[Sequence]
    """Sequences that cannot be computed."""
    tokens: int
    """Most tokens of a step from now on."""
    rows: int
    """Most sequences that decode at once from now on."""


class Parts:
    """A step that was launched in parts."""

    def __init__(self, step: Step, parts: Seq[Launched]) -> None:
        self.step = step
        self._parts = parts

    def tokens(self) -> list[int]:
        """The tokens of step.sampled; NOT_A_NUMBER for a sequence that was lost."""
        found: dict[Sequence, int] = {}
        for part in self._parts:
            found.update(zip(part.step.sampled, part.tokens(), strict=True))
        return [found.get(sequence, NOT_A_NUMBER) for sequence in self.step.sampled]

    def seconds(self) -> tuple[float, float]:
        """How long the device worked on the parts that were computed, and had waited before them. After tokens()."""
        spent = [part.seconds() for part in self._parts]
        return sum(busy for busy, _ in spent), sum(idle for _, idle in spent)


class Recovery:
    """Launches steps on a runner, in parts where they do not fit."""

    def __init__(self, runner: Executes, *, tokens: int, rows: int) -> None:
        """tokens, rows: most of a step, and of its decoding sequences, that the scheduler plans."""
        self._runner = runner
        self._planned = tokens, rows
        self._tokens, self._rows = self._planned

    def reset(self) -> None:
        """Forget which steps did not fit."""
        self._tokens, self._rows = self._planned

    def launch(self, step: Step) -> tuple[Launched, Shortage | None]:
        """Start to compute the step; what came of it where it ran out of memory.

        torch.OutOfMemoryError where there is no memory even to update block tables.
        """
        failed = False
        if self._within(step):
            launched = self._attempt(self._runner.launch, step)
            if launched is not None:
                self._runner.foresee(step)
                return launched, None
            failed = True
        if failed or not self._attempt(self._move, step):
            self._runner.release()
            self._runner.move(step)
        return self._halve(step, failed)

    def _halve(self, step: Step, failed: bool) -> tuple[Launched, Shortage | None]:
        """Launch a step, whose moves are made, in parts."""
        waiting = list(reversed(halves(step)))
        parts: list[Launched] = []
        lost = _Lost()
        while waiting:
            part = lost.spare(waiting.pop())
            if not part.tokens:
                continue
            if self._within(part):
                launched = self._attempt(self._runner.launch, part)
                if launched is not None:
                    parts.append(launched)
                    continue
                failed = True
                self._runner.release()
                if part.tokens == 1:
                    lost.add(part)
                    continue
            waiting += reversed(halves(part))
        if not failed:
            return Parts(step, parts), None
        largest = max((launched.step.tokens for launched in parts), default=step.tokens)
        if step.chunks:
            self._tokens = min(self._tokens, max(_LEAST, largest))
        else:
            self._rows = min(self._rows, max(_LEAST, largest))
        return Parts(step, parts), Shortage(list(lost.sequences), self._tokens, self._rows)

    def _within(self, part: Step) -> bool:
        return part.tokens <= self._tokens and len(part.decode) <= self._rows

    def _move(self, step: Step) -> bool:
        self._runner.move(step)
        return True

    def _attempt(self, work: Callable[[Step], _Result], step: Step) -> _Result | None:
        """The work's result, or None where it ran out of memory; what its frames held is free by then."""
        try:
            return work(step)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return None


@dataclass
class _Lost:
    """Sequences of a step that are given up, and the blocks that are not written therefore."""

    sequences: dict[Sequence, None] = field(default_factory=dict)
    blocks: set[int] = field(default_factory=set)

    def add(self, part: Step) -> None:
        """Give up the sequence of a part of one token."""
        self.sequences.update(dict.fromkeys(part.decode))
        for chunk in part.chunks:
            self._add(chunk)

    def spare(self, part: Step) -> Step:
        """The part without what is given up, or would read what is not written."""
        chunks = []
        for chunk in part.chunks:
            if chunk.sequence in self.sequences or not self.blocks.isdisjoint(chunk.sequence.blocks):
                self._add(chunk)
            else:
                chunks.append(chunk)
        return Step(part.decode, chunks)

    def _add(self, chunk: Chunk) -> None:
        self.sequences[chunk.sequence] = None
        self.blocks.update(chunk.sequence.blocks[chunk.start // BLOCK :])


def halves(step: Step) -> tuple[Step, Step]:
    """Two steps of half the tokens each, without moves, that do the same one after the other."""
    left = step.tokens // 2
    first, second = Step(step.decode[:left]), Step(step.decode[left:])
    left -= len(first.decode)
    for chunk in step.chunks:
        cut = min(chunk.stop, chunk.start + left)
        left -= cut - chunk.start
        if cut > chunk.start:
            first.chunks.append(Chunk(chunk.sequence, chunk.start, cut))
        if cut < chunk.stop:
            second.chunks.append(Chunk(chunk.sequence, cut, chunk.stop))
    return first, second
