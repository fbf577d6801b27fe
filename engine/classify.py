"""Classification: the probability of each of a closed set of choices as the answer to a prompt.

A choice's score is the summed log-probability of its tokens and of an end token behind them, and P(choice) is the
softmax of the scores: the model's own distribution over answers, restricted to the choices. Without the end token, a
choice that begins another could never be the less likely of the two. Where a model has several end tokens, any of
them ends the answer, so their probabilities add. All choices are rated in one prefill, behind one copy of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from engine.logprobs import token_logprobs
from engine.packing import Pack
from engine.prefill import Answer, PrefillEngine, failure, to_host
from engine.request import Completion, Request
from engine.settings import EngineSettings
from engine.trie import Trie


class Classifier(PrefillEngine):
    """Probabilities of the choices, in their order; token_ids of a completion are the likeliest choice's."""

    def __init__(
        self,
        model: PreTrainedModel,
        engine: EngineSettings,
        *,
        choices: Sequence[Sequence[int]],
        end_ids: Sequence[int],
    ) -> None:
        """choices: token ids of each. ValueError for an empty or a repeated one, or without an end token."""
        if not end_ids:
            raise ValueError("classification needs an end token; set eos_token_id in the model's config.json")
        trie = Trie.of(choices)
        super().__init__(model, engine, trie)
        self._choices = [[int(token) for token in choice] for choice in choices]
        self._paths = trie.paths()
        # Predictions read behind each prompt, as (place in [prompt's last token, nodes...], token): each node's token
        # where its parent stands, then each end token where a choice's last node stands.
        ends = list(dict.fromkeys(map(int, end_ids)))
        self._places = np.array([*(p + 1 for p in trie.parents), *(e + 1 for e in trie.ends for _ in ends)], np.int64)
        self._tokens = np.array([*trie.tokens, *ends * len(trie.ends)], np.int64)

    def compute(self, pack: Pack, requests: Sequence[Request], hidden: Tensor) -> Answer:
        count = len(pack.prompts)
        rows = np.stack([np.append(pack.rows(number)[-1:], pack.node_rows(number)) for number in range(count)])
        tokens = np.tile(self._tokens, count)
        result = to_host(token_logprobs(self.model, hidden, rows[:, self._places].ravel(), tokens))

        def answer() -> list[Completion]:
            parts = result().astype(np.float64).reshape(count, -1)
            return [self._completion(request, part) for request, part in zip(requests, parts, strict=True)]

        return answer

    def _completion(self, request: Request, logprobs: np.ndarray) -> Completion:
        nodes, ends = np.split(logprobs, [self._paths.shape[1]])
        if np.isnan(logprobs).any():
            return failure(request, "nan_logits", "the model gave logits that are not numbers")
        ended = np.logaddexp.reduce(ends.reshape(len(self._choices), -1), axis=1)
        scores = np.where(self._paths, nodes, 0.0).sum(axis=1) + ended
        if not np.isfinite(scores.max()):
            return failure(request, "nan_logits", "the model gave every choice a probability of zero")
        weights = np.exp(scores - scores.max())
        return Completion(
            id=request.id,
            prompt_tokens=len(request.prompt),
            key=request.key,
            token_ids=list(self._choices[int(scores.argmax())]),
            finish_reason="stop",
            probabilities=(weights / weights.sum()).tolist(),
        )
