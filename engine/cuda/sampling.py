"""Choosing the next token on a GPU in one or two passes over the logits.

The same function as engine.sampling's: repetition penalty, temperature, top-k, top-p, min-p, then the highest logit
with Gumbel noise from the row's own random stream. Where torch would sort every row, the lowest logit that is kept is
found by bisection: at most 32 readings of a row, which stays in the cache. Draws differ from the CPU's only where two
tokens are closer than the rounding of logarithms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.cuda.sampling_kernels import cutoff_kernel, draw_kernel
from engine.settings import SamplingSettings

_WIDTH = 4096


def draw(
    logits: Tensor, settings: SamplingSettings, streams: Tensor, seen: Tensor | None, rows: Tensor, index: Tensor
) -> Tensor:
    """Tokens int64 [B] for logits [B, V] of any float type; -1 for a row that holds NaN.

    streams: int64 [rows, 4], the random stream of each row; seen: bool [rows, V], tokens to penalize, None without
    penalty; rows: int64 [B], each logit row's row; index: int64 [B], how many tokens it has drawn before.
    """
    count, size = logits.shape
    out = torch.empty(count, dtype=torch.int64, device=logits.device)
    if not count:
        return out
    noise = settings.temperature > 0
    temperature = settings.temperature if noise else 1.0
    marks = streams if seen is None else seen.view(torch.uint8)
    top_k = 0 < settings.top_k < size
    cut = noise and (top_k or settings.top_p < 1 or settings.min_p > 0)
    cutoff = torch.empty(count if cut else 0, dtype=torch.float32, device=logits.device)
    common = {"SEEN": seen is not None, "WIDTH": _WIDTH, "num_warps": 8}
    if cut:
        cutoff_kernel[(count,)](
            logits, marks, rows, cutoff, size, settings.repetition_penalty, temperature, settings.top_k, settings.top_p,
            math.log(settings.min_p) if settings.min_p > 0 else 0.0,
            TOP_K=top_k, TOP_P=settings.top_p < 1, MIN_P=settings.min_p > 0, **common,
        )  # fmt: skip
    draw_kernel[(count,)](
        logits, marks, cutoff if cut else logits, streams, rows, index, out, size,
        settings.repetition_penalty, temperature, CUT=cut, NOISE=noise, **common,
    )  # fmt: skip
    return out
