"""Packs: several prompts laid end to end, for one forward pass without padding.

A pack is a row of T tokens. Its prompts may have unequal lengths; those of equal length stand together, so that
attention can take them as one batch. What all prompts of a pack begin with is computed once: the stem. With a trie,
each prompt has a copy of the trie's nodes, all of them at the end of the pack.

    [ stem S | body 0 | body 1 | ... | nodes of prompt 0 | nodes of prompt 1 | ... ]

Which prompts share a pack follows from their tokens and the token budget alone, so that equal requests always give
equal packs. Attention over this layout is packed.py's; what is made of it is left to the engines. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby

import numpy as np

from engine.trie import Trie

# A shared stem costs attention two parts instead of one, so it must save at least this share of the prompts' tokens.
STEM_SAVES = 1 / 8


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts `first` to `first + count` of a pack; their bodies of equal length start at packed token `start`."""

    first: int
    count: int
    length: int
    start: int


@dataclass(frozen=True)
class Pack:
    """The prompts of one forward pass, longest first. Legend: T packed tokens, S stem, L body length, N trie nodes."""

    prompts: tuple[np.ndarray, ...]  # token ids of each prompt, at least one
    indices: tuple[int, ...]  # where each prompt stands in the sequence that was packed
    stem: int  # S: tokens that every prompt begins with and that are computed once; 0 for none
    trie: Trie | None = None

    @property
    def nodes(self) -> int:
        """N: trie nodes behind each prompt."""
        return len(self.trie) if self.trie else 0

    @cached_property
    def bodies(self) -> tuple[int, ...]:
        """L: tokens of each prompt behind the stem."""
        return tuple(len(prompt) - self.stem for prompt in self.prompts)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Packed index of each body's first token, and that behind the last body."""
        return tuple(accumulate(self.bodies, initial=self.stem))

    @property
    def tokens(self) -> int:
        """T."""
        return self.starts[-1] + self.nodes * len(self.prompts)

    @property
    def reach(self) -> int:
        """Positions of the longest prompt with its trie: an attention window of this size or more changes nothing."""
        return len(self.prompts[0]) + (self.trie.height if self.trie else 0)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs of prompts of equal length, in order."""
        runs = [(length, len(list(run))) for length, run in groupby(self.bodies)]
        firsts = accumulate((count for _, count in runs), initial=0)
        return tuple(
            Group(first, count, length, self.starts[first])
            for first, (length, count) in zip(firsts, runs, strict=False)
        )

    def rows(self, number: int) -> np.ndarray:
        """int64 [S + L]: packed index of every token of the prompt at place `number`."""
        return np.concatenate([np.arange(self.stem), np.arange(self.starts[number], self.starts[number + 1])])

    def node_rows(self, number: int) -> np.ndarray:
        """int64 [N]: packed index of every trie node behind the prompt at place `number`."""
        return self.starts[-1] + number * self.nodes + np.arange(self.nodes)

    def ids(self) -> np.ndarray:
        """int64 [T]: token ids."""
        nodes = np.array(self.trie.tokens if self.trie else (), np.int64)
        parts = [self.prompts[0][: self.stem], *(prompt[self.stem :] for prompt in self.prompts)]
        return np.concatenate([*parts, *[nodes] * len(self.prompts)]).astype(np.int64)

    def positions(self) -> np.ndarray:
        """int64 [T]: place of each token in its own sequence, from 0."""
        depths = np.array(self.trie.depths if self.trie else (), np.int64)
        parts = [np.arange(self.stem), *(np.arange(self.stem, len(prompt)) for prompt in self.prompts)]
        return np.concatenate([*parts, *(len(prompt) + depths for prompt in self.prompts)]).astype(np.int64)

    def halves(self) -> tuple[Pack, Pack]:
        """The same prompts as two packs, for when one does not fit the memory. At least two prompts."""
        middle = len(self.prompts) // 2
        assert middle > 0
        first, second = self.prompts[:middle], self.prompts[middle:]
        return (
            Pack(first, self.indices[:middle], shared(self.stem, len(first), sum(map(len, first))), self.trie),
            Pack(second, self.indices[middle:], shared(self.stem, len(second), sum(map(len, second))), self.trie),
        )


def shared(stem: int, count: int, tokens: int) -> int:
    """Stem to use for `count` prompts of `tokens` tokens in all that begin with the same `stem` tokens: it, or 0."""
    return stem if stem > 0 and stem * (count - 1) >= STEM_SAVES * tokens else 0


def pack(
    prompts: Sequence[np.ndarray], budget: int, *, trie: Trie | None = None, share: bool = False
) -> Iterator[Pack]:
    """Lay prompts into packs of at most `budget` tokens, longest first; a prompt over the budget has a pack of its own.

    `share` computes a common beginning once, which only causal attention allows. Prompts have at least one token.
    """
    nodes = len(trie) if trie else 0
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    taken: list[int] = []
    stem = tokens = 0  # what all taken prompts begin with, and their tokens together

    def close() -> Pack:
        used = shared(stem, len(taken), tokens)
        return Pack(tuple(prompts[index] for index in taken), tuple(taken), used, trie)

    for index in order:
        prompt = prompts[index]
        assert len(prompt) > 0, "an empty prompt reached the engine"
        # Every body keeps a token of its own, so that the prompt's last token is never in the stem.
        limit = len(prompt) - 1 if share else 0
        if taken:
            common = _common(prompts[taken[0]], prompt, min(stem, limit))
            count, total = len(taken) + 1, tokens + len(prompt)
            used = shared(common, count, total)
            if used + total + count * (nodes - used) > budget:
                yield close()
                taken, tokens = [], 0
            else:
                limit = common
        taken.append(index)
        tokens += len(prompt)
        stem = limit
    if taken:
        yield close()


def common_beginning(prompts: Sequence[np.ndarray]) -> int:
    """How many tokens all prompts begin with."""
    length = min(map(len, prompts), default=0)
    for prompt in prompts:
        length = _common(prompts[0], prompt, length)
    return length


def _common(one: np.ndarray, other: np.ndarray, limit: int) -> int:
    """How many of the first `limit` tokens two prompts have in common."""
    differ = one[:limit] != other[:limit]
    return int(differ.argmax()) if differ.any() else limit
