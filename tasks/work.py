"""How much a job computes, in the quantities that cost time: tokens, pairs of attention, KV that is read, steps.

Counts are of sequences after folding, with what prompts share computed once. How long answers are is known only
afterwards, so it comes as a distribution: that of this job's earlier answers, or the limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from data.histogram import count_lengths, middles


@dataclass(frozen=True, slots=True)
class Outputs:
    """How long answers get: the bins of `data.histogram`, and their exact mean."""

    counts: tuple[int, ...]
    mean: float

    @classmethod
    def all_of(cls, length: int) -> Outputs:
        """Every answer has this length."""
        return cls(count_lengths([length]), float(length))

    @property
    def _lengths(self) -> Any:
        """A typical length for each bin, such that their mean is the exact one."""
        found, counts = middles(self.counts), np.array(self.counts, np.float64)
        mean = float((found * counts).sum() / max(counts.sum(), 1.0))
        return found * (self.mean / mean) if mean else found

    @property
    def mean_square(self) -> float:
        """Mean of the squared length."""
        counts = np.array(self.counts, np.float64)
        return float((self._lengths**2 * counts).sum() / max(counts.sum(), 1.0))

    def longest(self, answers: float) -> float:
        """The length to expect of the longest of so many answers."""
        counts = np.array(self.counts, np.float64)
        if not counts.sum():
            return 0.0
        below = np.cumsum(counts) / counts.sum()
        chance = np.diff(below ** max(answers, 1.0), prepend=0.0)
        return float((self._lengths * chance).sum())


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed; amounts add up."""

    sequences: float = 0.0
    prefill_tokens: float = 0.0
    """Tokens of prompts that no other prompt computes."""
    prefill_pairs: float = 0.0
    """A query that sees a key, while prompts are computed."""
    decode_tokens: float = 0.0
    """Tokens of answers but for the first of each, which the prompt's last step gives."""
    kv_positions: float = 0.0
    """Positions of KV that decoding reads."""
    decode_steps: float = 0.0
    prefill_steps: float = 0.0


@dataclass(frozen=True, slots=True)
class Prompts:
    """What is known of some sequences before they are answered."""

    sequences: float
    tokens: float
    shared: float
    """Tokens that others of them begin with too."""

    @classmethod
    def together(cls, parts: Iterable[Prompts]) -> Prompts:
        """All of some."""
        sums = np.array([astuple(part) for part in parts]).reshape(-1, 3).sum(axis=0)
        return cls(*map(float, sums))

    def part(self, share: float) -> Prompts:
        """An average part of them."""
        return Prompts(self.sequences * share, self.tokens * share, self.shared * share)


def work_of(prompts: Prompts, outputs: Outputs, batch: float, step_tokens: int) -> Work:
    """The work of answering sequences together on one device.

    Args:
        prompts: the sequences.
        outputs: how long their answers get.
        batch: most sequences that run at once.
        step_tokens: most tokens of one forward pass.
    """
    count = prompts.sequences
    if not count:
        return Work()
    length, shared = prompts.tokens / count, prompts.shared / count
    own = prompts.tokens - prompts.shared
    decoded = count * max(0.0, outputs.mean - 1)
    pairs_of_answers = count * max(0.0, outputs.mean_square - outputs.mean) / 2
    longest = max(0.0, outputs.longest(count) - 1)
    return Work(
        sequences=count,
        prefill_tokens=own,
        prefill_pairs=own * (length + shared + 1) / 2,
        decode_tokens=decoded,
        kv_positions=decoded * length + pairs_of_answers,
        # The longest answer is given step by step; and no step is wider than the batch.
        decode_steps=max(longest, decoded / max(batch, 1.0)) if decoded else 0.0,
        prefill_steps=max(1.0, own / step_tokens),
    )
