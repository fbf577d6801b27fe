"""One forward pass as the scheduler plans it and a runner executes it. Plain records without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

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
class Swap:
    """KV of a sequence that goes to the host, or comes back from there."""

    sequence: Sequence
    blocks: list[int]
    """Where it lies on the device: when it goes, all that is written; when it comes back, what is not shared."""
    first: int = 0
    """Index of the first of these among the sequence's blocks."""


@dataclass(slots=True)
class Step:
    """A token of each decoding sequence, then chunks of prompts. Swaps come first: out, then in, then the pass.

    A block may be freed by a swap and used again in the same step.
    """

    decode: list[Sequence] = field(default_factory=list)
    """By decreasing length; not to be changed."""
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    """Sequences whose row and blocks are new in this step."""
    grown: list[tuple[Sequence, int]] = field(default_factory=list)
    """Sequences with more blocks than before, and the index of the first new one."""
    swapped_out: list[Swap] = field(default_factory=list)
    """Their rows stay theirs, with all that is stored for a row but the block table."""
    swapped_in: list[Swap] = field(default_factory=list)
    """Their block tables are new."""
    same: bool = False
    """Whether `decode` is that of the step before: the same sequences in the same order."""

    @property
    def sampled(self) -> list[Sequence]:
        """Sequences that get a token from this step, in the order of its logits."""
        return self.decode + [chunk.sequence for chunk in self.chunks if chunk.samples]

    @property
    def tokens(self) -> int:
        return len(self.decode) + sum(chunk.stop - chunk.start for chunk in self.chunks)
