"""Two models over the same text, token by token: how likely each finds it, and how far apart they are.

Both walk the same packs of prompts, teacher-forced. At every position that predicts a scored token their distributions
over the whole vocabulary are compared in float32, a block of positions at a time, so that no more than a block's logits
are held. With one model it is the likelihood alone.

The divergence is D(reference || candidate) = sum over the vocabulary of p (log p - log q), in nats, p the reference's
and q the candidate's probabilities (Kullback and Leibler 1951). Means, changes and intervals are left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.logprobs import BLOCK_LOGITS, TokenRows, block_rows, head_of
from engine.packing import Pack
from engine.prefill import Answer, PrefillEngine, fastest_trunk, is_causal, learned_positions, to_host
from engine.request import Completion, Request
from engine.settings import EngineSettings
from engine.trunk import Trunk

# Of a block's logits six copies are held: two models' in float32, as logarithms, and what is made of both.
COMPARED_LOGITS = BLOCK_LOGITS // 4

Head = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class Compared(Completion):
    """`scored` tokens of a text; `logprob` is the candidate's. Both sums in nats are None if they are no numbers."""

    reference: float | None = None
    """Summed log-probability under the reference."""
    same: int = 0
    """Positions at which both models find the same token likeliest."""
    divergence: float = 0.0
    """Summed over the positions, in nats."""


class Comparison(PrefillEngine):
    """Compares a candidate with a reference on each request's tokens from `scored_from` on."""

    def __init__(self, candidate: PreTrainedModel, reference: PreTrainedModel | None, settings: EngineSettings) -> None:
        """ValueError for encoders, and for models of different vocabularies or on different devices."""
        super().__init__(candidate, settings)
        self._reference = reference
        self._other: Trunk | None = None
        if reference is not None:
            sizes = [model.config.get_text_config().vocab_size for model in (candidate, reference)]
            if sizes[0] != sizes[1]:
                raise ValueError(
                    f"the candidate has a vocabulary of {sizes[0]:,} tokens, the reference of {sizes[1]:,}"
                )
            if reference.device != candidate.device:
                raise ValueError(f"the candidate is on {candidate.device}, the reference on {reference.device}")
            if not is_causal(reference):
                raise ValueError(f"{type(reference).__name__} is an encoder, which predicts no next token")
            first_position, positions = learned_positions(reference)
            self._other = fastest_trunk(reference, settings, first_position)
            known = [count for count in (self._positions, positions) if count is not None]
            self._positions = min(known, default=None)

    def compute(self, pack: Pack, requests: Sequence[Request], hidden: Tensor) -> Answer:
        firsts = [max(request.scored_from, 1) for request in requests]
        # The row of a token predicts the next one.
        rows = [pack.rows(number)[first - 1 : -1] for number, first in enumerate(firsts)]
        tokens = [prompt[first:] for prompt, first in zip(pack.prompts, firsts, strict=True)]
        pairs = TokenRows(np.concatenate(rows), np.concatenate(tokens), hidden.device)
        result = to_host(self._figures(pack, hidden, pairs))
        ends = np.cumsum([len(part) for part in tokens])

        def answer() -> list[Completion]:
            parts = np.split(result().astype(np.float64), ends[:-1])
            return [self._compared(request, part) for request, part in zip(requests, parts, strict=True)]

        return answer

    def _figures(self, pack: Pack, hidden: Tensor, pairs: TokenRows) -> Tensor:
        """float32 [P, 4]: log-probability under the candidate and the reference, same or not, divergence.

        Without a reference [P, 1].
        """
        other = None if self._other is None else self._other.hidden(pack)
        parts = [hidden.new_empty(0, 1 if other is None else 4, dtype=torch.float32)]
        with ExitStack() as stack:
            head: Head = stack.enter_context(head_of(self.model))
            other_head: Any = None if self._reference is None else stack.enter_context(head_of(self._reference))
            for rows_at, at, tokens_at in pairs.blocks(block_rows(self.model, COMPARED_LOGITS)):
                ours = head(hidden[rows_at]).float().log_softmax(1)
                columns = [ours[at, tokens_at]]
                if other is not None:
                    theirs = other_head(other[rows_at]).float().log_softmax(1)
                    columns.append(theirs[at, tokens_at])
                    columns += [column[at] for column in _apart(ours, theirs)]
                parts.append(torch.stack(columns, 1))
        return pairs.restored(torch.cat(parts))

    def _compared(self, request: Request, figures: np.ndarray) -> Compared:
        sums = figures.sum(0)
        found = Compared(id=request.id, prompt_tokens=len(request.prompt), key=request.key, scored=len(figures))
        found.logprob = _number(sums[0])
        wrong = [] if found.logprob is not None else ["candidate"]
        if self._reference is not None:
            found.reference = _number(sums[1])
            found.same, found.divergence = int(np.nan_to_num(sums[2])), sums[3]
            wrong += [] if found.reference is not None else ["reference"]
        if wrong:
            found.error = ("nan_logits", f"the {' and the '.join(wrong)} gave logits that are not numbers")
        return found


def _apart(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Of log-probabilities [R, V] each: whether the likeliest token is the same, and the divergence, float32 [R]."""
    same = (ours.argmax(1) == theirs.argmax(1)).float()
    difference = (theirs - ours).masked_fill_(theirs == -torch.inf, 0)  # what has no probability adds nothing
    return same, theirs.exp().mul_(difference).sum(1).clamp_(min=0)  # rounding can leave less than nothing


def _number(total: float) -> float | None:
    return float(total) if math.isfinite(total) else None
