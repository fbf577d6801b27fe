"""Choosing the next token: the likeliest at temperature 0, else one draw by Gumbel-max.

The processors are transformers', in its order: repetition penalty over prompt and answer, temperature, top-k, top-p,
min-p. The one difference: tokens exactly as likely as the last one that top-p keeps are kept too, where transformers
keeps an arbitrary subset of them. The draw adds Gumbel noise to the logits and takes the maximum, which samples the
softmax; the noise is keyed by seed, prompt, occurrence and token index, so it does not depend on the batch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence as Seq
from hashlib import blake2b

import torch
from torch import Tensor

from engine.philox import exponentials
from engine.sequence import Sequence
from engine.settings import SamplingSettings

NOT_A_NUMBER = -1
"""The token of a row whose logits hold NaN."""

# Variates made at a time, to stay in the CPU's cache.
_DRAW = 1 << 16
# A partial sort of this many tokens usually holds the whole nucleus.
_NUCLEUS = 256


def stream(seed: int, sequence: Sequence) -> list[int]:
    """Four 32-bit words that name the sequence's random stream."""
    data = seed.to_bytes(8, "little") + sequence.occurrence.to_bytes(8, "little") + sequence.key
    return list(struct.unpack("<4I", blake2b(data, digest_size=16).digest()))


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the positive and multiply the negative logits [B, V] of tokens in `seen` (bool [B, V]) by `penalty`."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def truncate(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Set the logits [B, V] outside of top-k, top-p and min-p to -inf, in place. Temperature is applied already."""
    size = logits.shape[-1]
    if 0 < settings.top_k < size:
        kth = logits.topk(settings.top_k).values[:, -1:]
        logits.masked_fill_(logits < kth, -math.inf)
    if settings.top_p < 1:
        limit = settings.top_k if 0 < settings.top_k < size else size
        logits.masked_fill_(logits < _nucleus(logits, settings.top_p, limit), -math.inf)
    if settings.min_p > 0:
        logits.masked_fill_(logits < logits.amax(-1, keepdim=True) + math.log(settings.min_p), -math.inf)
    return logits


def _nucleus(logits: Tensor, top_p: float, limit: int) -> Tensor:
    """[B, 1]: the smallest logit among the likeliest tokens that hold probability `top_p`, at most `limit` of them."""
    total = logits.logsumexp(-1, keepdim=True)
    for count in (_NUCLEUS, limit) if limit > _NUCLEUS else (limit,):
        ordered = logits.topk(count).values
        probability = (ordered - total).exp()
        cumulative = probability.cumsum(-1)
        if count == limit or bool((cumulative[:, -1] >= top_p).all()):
            break
    # At least one is kept; a row with NaN compares false everywhere.
    kept = (cumulative - probability < top_p).sum(-1, keepdim=True).clamp_(min=1)
    return ordered.gather(-1, kept - 1)


class Sampler:
    """Draws for the rows of a batch on CPU; keeps what is needed per row across steps, on a GPU too."""

    def __init__(self, settings: SamplingSettings, *, rows: int, vocabulary: int, device: torch.device) -> None:
        self.settings = settings
        self.streams = torch.zeros(rows, 4, dtype=torch.int64, device=device)
        self.seen: Tensor | None = None
        if settings.repetition_penalty != 1:
            self.seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)
            self._yes = torch.ones((), dtype=torch.bool, device=device)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken as the logits stand."""
        return self.settings.temperature == 0 and self.seen is None

    def admit(self, sequences: Seq[Sequence]) -> None:
        """Prepare the rows of new sequences."""
        if not sequences:
            return
        device = self.streams.device
        if self.settings.temperature > 0:
            rows = torch.tensor([sequence.row for sequence in sequences], device=device)
            words = [stream(self.settings.seed, sequence) for sequence in sequences]
            self.streams[rows] = torch.tensor(words, device=device)
        if self.seen is not None:
            for sequence in sequences:
                self.seen[sequence.row] = False
                self.seen[sequence.row, torch.from_numpy(sequence.prompt).to(device)] = True

    def sample(self, logits: Tensor, rows: Tensor, index: Tensor) -> Tensor:
        """Tokens int64 [B] from float32 logits [B, V], which are overwritten; NOT_A_NUMBER where a row holds NaN.

        rows: int64 [B], each sequence's row; index: int64 [B], how many tokens it has sampled before. Nothing is kept:
        a token that is taken is told to `see`.
        """
        settings = self.settings
        invalid = logits.amax(-1).isnan()
        if self.seen is not None:
            logits = penalize(logits, self.seen[rows], settings.repetition_penalty)
        if settings.temperature > 0:
            logits = truncate(logits.div_(settings.temperature), settings)
            self._perturb(logits, self.streams[rows], index)
        return logits.argmax(-1).masked_fill(invalid, NOT_A_NUMBER)

    def see(self, rows: Tensor, tokens: Tensor) -> None:
        """Penalize `tokens` int64 [B] in `rows` int64 [B] from now on. Allocates nothing."""
        if self.seen is not None:
            self.seen.index_put_((rows, tokens), self._yes)

    def _perturb(self, logits: Tensor, streams: Tensor, index: Tensor) -> None:
        """Add Gumbel noise, which is minus the logarithm of exponential noise, in place."""
        size = logits.shape[-1]
        step = max(1, _DRAW // size)
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            logits[part] -= exponentials(streams[part], index[part], size).log_()
