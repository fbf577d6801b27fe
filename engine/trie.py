"""The token trie of a closed set of choices.

To rate every choice behind one prompt, the choices' tokens are appended to it once, as the nodes of a trie: a node has
the position prompt length + depth, and sees the prompt, its ancestors and itself. One prefill then holds the prediction
after every prefix of every choice, at the cost of the distinct prefixes rather than of one forward pass a choice.

This module knows only the shape of the trie; packed.py makes it attention, classify.py probabilities. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Trie:
    """Nodes in order of first appearance, so that a parent stands before its children. Legend: N nodes, C choices."""

    tokens: tuple[int, ...]  # token id of each node
    parents: tuple[int, ...]  # node before it, -1 where that is the prompt's last token
    depths: tuple[int, ...]  # 0 for the first token of a choice
    ends: tuple[int, ...]  # of each choice, the node of its last token

    @classmethod
    def of(cls, choices: Sequence[Sequence[int]]) -> Trie:
        """The trie of token id sequences. ValueError: no choice, an empty one, or two with the same tokens."""
        if not choices:
            raise ValueError("classification needs at least one choice; set job.choices")
        nodes: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        ends: dict[int, int] = {}
        for number, choice in enumerate(choices):
            if len(choice) == 0:
                raise ValueError(f"choice {number} has no tokens; remove it from job.choices or give it text")
            node = -1
            for depth, token in enumerate(map(int, choice)):
                edge = (node, token)
                if edge not in nodes:
                    nodes[edge] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                    depths.append(depth)
                node = nodes[edge]
            if node in ends:
                raise ValueError(f"choices {ends[node]} and {number} have the same tokens; remove one from job.choices")
            ends[node] = number
        return cls(tuple(tokens), tuple(parents), tuple(depths), tuple(ends))

    def __len__(self) -> int:
        """Number of nodes, N."""
        return len(self.tokens)

    @property
    def height(self) -> int:
        """Tokens of the longest choice."""
        return max(self.depths) + 1

    def ancestors(self) -> np.ndarray:
        """bool [N, N]: row n marks the nodes that node n attends to, which are its ancestors and itself."""
        mask = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask

    def paths(self) -> np.ndarray:
        """bool [C, N]: row c marks the nodes of choice c."""
        return self.ancestors()[list(self.ends)]
