"""How many tokens of a set of prompts need not be computed, because another of them begins with the same tokens.

Exact: sorted by their tokens, each prompt shares with those before it what it shares with its neighbour, so the sum
over neighbours is the number of tokens that a tree of the prompts stores once. Neighbours are compared a piece at a
time, all pairs at once, and those that differ are done, so prompts that share little cost little.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.uint32]

_PIECE = 32


def shared_tokens(prompts: Sequence[TokenIds]) -> int:
    """Tokens of the prompts that another one of them has at the same place after the same beginning."""
    if len(prompts) < 2:
        return 0
    # Big-endian bytes sort as the tokens do, and bytes compare fastest.
    texts = [prompt.astype(">u4").tobytes() for prompt in prompts]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    flat = np.concatenate([*(prompts[number] for number in order), np.zeros(_PIECE, np.uint32)])
    lengths = np.array([len(prompts[number]) for number in order], np.int64)
    starts = np.cumsum(lengths) - lengths
    left, right, both = starts[:-1], starts[1:], np.minimum(lengths[:-1], lengths[1:])
    total, piece = 0, np.arange(_PIECE)
    while len(both):
        equal = flat[left[:, None] + piece] == flat[right[:, None] + piece]
        alike = np.minimum(np.where(equal.all(axis=1), _PIECE, equal.argmin(axis=1)), both)
        total += int(alike.sum())
        same = alike == _PIECE
        left, right, both = left[same] + _PIECE, right[same] + _PIECE, both[same] - _PIECE
    return total
