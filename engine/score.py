"""The likelihood of given text: the summed log-probability of a prompt's tokens from `scored_from` on.

Perplexity is exp(-logprob / scored) and left to whoever writes the result. The first token of a prompt has nothing that
predicts it, so it is never scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from engine.logprobs import token_logprobs
from engine.packing import Pack
from engine.prefill import Answer, PrefillEngine, failure, to_host
from engine.request import Completion, Request
from engine.settings import EngineSettings


class Scorer(PrefillEngine):
    """Log-probability in nats and count of the scored tokens of each request; with none scored, 0 and 0."""

    def __init__(self, model: PreTrainedModel, engine: EngineSettings) -> None:
        super().__init__(model, engine)

    def compute(self, pack: Pack, requests: Sequence[Request], hidden: Tensor) -> Answer:
        firsts = [max(request.scored_from, 1) for request in requests]
        # The row of a token predicts the next one.
        rows = [pack.rows(number)[first - 1 : -1] for number, first in enumerate(firsts)]
        tokens = [prompt[first:] for prompt, first in zip(pack.prompts, firsts, strict=True)]
        result = to_host(token_logprobs(self.model, hidden, np.concatenate(rows), np.concatenate(tokens)))
        ends = np.cumsum([len(part) for part in tokens])

        def answer() -> list[Completion]:
            parts = np.split(result().astype(np.float64), ends[:-1])
            return [_completion(request, part) for request, part in zip(requests, parts, strict=True)]

        return answer


def _completion(request: Request, logprobs: np.ndarray) -> Completion:
    total = float(logprobs.sum())
    if math.isnan(total):
        return failure(request, "nan_logits", "the model gave logits that are not numbers")
    return Completion(
        id=request.id, prompt_tokens=len(request.prompt), key=request.key, logprob=total, scored=len(logprobs)
    )
