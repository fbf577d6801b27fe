"""Which sequences have their KV on the device, and in which blocks.

Without a forecast, a sequence gets blocks for the longest answer it may give when it comes, so it never waits for
memory. With one (engine.demand), it gets blocks for its prompt and a little more, and further ones as it grows. Where
the pool is exhausted, the sequence admitted last goes to the host: it has the least to copy, and the oldest, which
never goes, always ends. So nothing waits for ever: alone, a sequence can have every block.

Only a sequence whose tokens are all read may go, since the last one may end it, or show that its KV is not numbers;
until then it sits out. It keeps its row. All of its KV is copied, shared blocks too, and its hold on them given up:
held for sequences that do not run, they could fill the pool. Those still there when it returns are shared again.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from copy import copy
from operator import attrgetter

from engine.blocks import BlockPool, prefix_hashes
from engine.demand import Demand
from engine.lengths import AnswerLengths
from engine.sequence import Sequence
from engine.step import Step, Swap

# Blocks that a growing sequence gets at a time, so that block tables change rarely.
_GROUP = 4
# Blocks are handed out one by one when less than one in so many is left.
_SCARCE = 64

_admission = attrgetter("admission")


class Residence:
    """The sequences that hold blocks of the pool, and those that were sent to the host."""

    def __init__(self, pool: BlockPool, lengths: AnswerLengths | None) -> None:
        """lengths: admit by the demand forecast from these; None reserves the longest answer."""
        self.pool = pool
        self.here: dict[Sequence, None] = {}
        self.away: list[Sequence] = []
        """Oldest first."""
        self.swaps = 0
        """How often a sequence was sent to the host."""
        self._demand = None if lengths is None else Demand(pool, lengths, self.here)

    def expect(self, sequence: Sequence) -> None:
        """The sequence is going to be admitted."""
        assert self.pool.blocks_for(sequence.positions) <= self.pool.count
        if self._demand is not None:
            self._demand.expect(sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Give the sequence blocks to start with, if they can be had."""
        return self._hold(sequence, self._shared(sequence), len(sequence.prompt))

    def leave(self, sequence: Sequence) -> list[int]:
        """Free what the sequence holds; the blocks that nobody holds any more."""
        del self.here[sequence]
        if self._demand is not None:
            self._demand.remove(sequence)
        return self.pool.release(sequence.blocks)

    def prompt_tokens(self, sequences: Iterable[Sequence], rows: int, enough: int) -> int:
        """Prompt tokens to compute if as many of these as possible were admitted now, into at most `rows` rows.

        Counted no further than `enough`. Nothing changes.
        """
        tokens, available = 0, self.pool.available
        if self._demand is not None:
            self._demand.refresh()
        demand = copy(self._demand)
        for sequence in sequences:
            if tokens >= enough or not rows:
                break
            shared = len(self._shared(sequence))
            available -= self._first_blocks(sequence, len(sequence.prompt)) - shared
            if available < 0 or not (demand is None or demand.admits(sequence, shared)):
                break
            if demand is not None:
                demand.add(sequence, shared)
            rows -= 1
            tokens += len(sequence.prompt) - shared * self.pool.size
        return tokens

    def grow(self, step: Step, decoding: list[Sequence]) -> set[Sequence]:
        """Give blocks to those of `decoding` that need one for their next position, the oldest first.

        Returns those that have to sit this step out, because they get none or were sent to the host.
        """
        if self._demand is None:
            return set()
        self._demand.tick()
        size, available = self.pool.size, self.pool.available
        growers = [s for s in decoding if s.written == len(s.blocks) * size]
        if available < len(growers):
            growers.sort(key=_admission)
            return self._grow_scarce(step, growers, sorted(decoding, key=_admission)[1:])
        group = _GROUP if available >= _GROUP * len(growers) + self.pool.count // _SCARCE else 1
        for sequence in growers:
            grown = self._extend(step, sequence, group)
            assert grown
        return set()

    def bring_back(self, step: Step) -> list[Sequence]:
        """Give sequences on the host new blocks, oldest first, while there is room; those that are back."""
        back = []
        for sequence in self.away:
            assert sequence.hashes is not None
            if not self._hold(sequence, self.pool.shared(sequence.hashes), sequence.written + 1):
                break
            for block, content in zip(sequence.blocks, sequence.hashes, strict=False):
                self.pool.publish(block, content)
            stop = self.pool.blocks_for(sequence.written)
            step.swapped_in.append(Swap(sequence, sequence.blocks[sequence.shared : stop], sequence.shared))
            back.append(sequence)
        del self.away[: len(back)]
        return back

    def _grow_scarce(self, step: Step, growers: list[Sequence], victims: list[Sequence]) -> set[Sequence]:
        """The same where the pool may not have a block for each; `victims` may go, the last first."""
        out: set[Sequence] = set()
        promised = 0
        for sequence in growers:
            while sequence not in out and not self._extend(step, sequence, 1):
                if promised or not victims:
                    promised = max(0, promised - 1)
                    out.add(sequence)
                    continue
                # Growers come oldest first, victims youngest first: none of these got a block in this step.
                victim = victims.pop()
                out.add(victim)
                if len(victim.tokens) == victim.launched:
                    self._send_away(step, victim)
                else:
                    promised = len(victim.blocks) - victim.shared
        return out

    def _extend(self, step: Step, sequence: Sequence, group: int) -> bool:
        first = len(sequence.blocks)
        fresh = self.pool.allocate([], min(group, self.pool.blocks_for(sequence.positions) - first))
        if fresh is None:
            return False
        sequence.blocks += fresh
        step.grown.append((sequence, first))
        return True

    def _send_away(self, step: Step, sequence: Sequence) -> None:
        self.swaps += 1
        step.swapped_out.append(Swap(sequence, sequence.blocks[: self.pool.blocks_for(sequence.written)]))
        self.leave(sequence)
        sequence.blocks = []
        insort(self.away, sequence, key=_admission)

    def _shared(self, sequence: Sequence) -> list[int]:
        """Blocks of the prompt's beginning that are there. At least its last position is computed, for its logits."""
        if sequence.hashes is None:
            sequence.hashes = prefix_hashes(sequence.prompt, self.pool.size)
        return self.pool.shared(sequence.hashes[: (len(sequence.prompt) - 1) // self.pool.size])

    def _first_blocks(self, sequence: Sequence, positions: int) -> int:
        """Blocks that a sequence gets at once to write this many positions."""
        if self._demand is not None:
            return self.pool.blocks_for(min(sequence.positions, positions + (_GROUP - 1) * self.pool.size))
        return self.pool.blocks_for(sequence.positions)

    def _hold(self, sequence: Sequence, shared: list[int], positions: int) -> bool:
        """Give the sequence blocks for these positions, if they can be had and it may run. Alone it always may."""
        if self._demand is not None and self.here and not self._demand.admits(sequence, len(shared)):
            return False
        blocks = self.pool.allocate(shared, self._first_blocks(sequence, positions))
        if blocks is None:
            return False
        sequence.blocks = blocks
        sequence.shared = len(shared)
        self.here[sequence] = None
        if self._demand is not None:
            self._demand.add(sequence, len(shared))
        return True
