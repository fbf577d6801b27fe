"""Philox 4x32-10, a counter-based random generator, in integer tensor operations.

The output is a pure function of key and counter: no state, no order of calls, equal bits on CPU and CUDA. A row's
random numbers therefore do not depend on the batch it is in. Source: Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011. 32-bit words are held in int64 tensors, since torch multiplies no unsigned integers; products
wrap modulo 2^64 and the masks below make shifts logical.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four int64 tensors of 32-bit words from four counter words and two key words, broadcast against each other."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _WORD) ^ (c1 ^ k0)
        c2 = ((p0 >> 32) & _WORD) ^ (c3 ^ k1)
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def exponentials(streams: Tensor, index: Tensor, size: int) -> Tensor:
    """Standard exponential variates float32 [B, size], all above 0 and finite.

    streams: int64 [B, 4], 32-bit words that name each row's stream; index: int64 [B], the draw within the stream.
    Variate j of a row comes from word j % 4 of counter block j // 4.
    """
    block = torch.arange(-(-size // 4), device=streams.device).unsqueeze(0)
    k0, k1, c2, c3 = (word.unsqueeze(1) for word in streams.unbind(1))
    words = torch.stack(philox((block, index.unsqueeze(1), c2, c3), (k0, k1)), -1)
    # Fine near 0, where an exponential is smallest and the largest Gumbel variates come from; kept below 1.
    uniform = (words.flatten(1)[:, :size].float() + 0.5) * 2.0**-32
    return uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_()
