"""Embeddings: the hidden states of a prompt pooled to one vector, as sentence-transformers does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.packed import upload
from engine.packing import Pack
from engine.prefill import Answer, PrefillEngine, failure, to_host
from engine.request import Completion, Request
from engine.settings import EngineSettings

Pooling = Literal["mean", "last", "cls"]


class Embedder(PrefillEngine):
    """One float32 vector a request, from an encoder or a decoder."""

    causal_only: ClassVar[bool] = False

    def __init__(self, model: PreTrainedModel, engine: EngineSettings, *, pooling: Pooling, normalize: bool) -> None:
        """pooling: the mean over tokens, the last token, or the first. normalize: to length 1 in the Euclidean norm."""
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling {pooling!r} is unknown; use {', '.join(get_args(Pooling))}")
        super().__init__(model, engine)
        self._pooling = pooling
        self._normalize = normalize

    @property
    def size(self) -> int:
        """Numbers in an embedding."""
        return int(self.model.config.get_text_config().hidden_size)

    def compute(self, pack: Pack, requests: Sequence[Request], hidden: Tensor) -> Answer:
        pooled = self._pool(pack, hidden)
        if self._normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        result = to_host(pooled)
        return lambda: [_completion(request, row) for request, row in zip(requests, result(), strict=True)]

    def _pool(self, pack: Pack, hidden: Tensor) -> Tensor:
        """[T, D] -> float32 [n, D], in the pack's order."""
        if self._pooling == "mean":
            stem = hidden[: pack.stem].float().sum(0)
            sums = [
                hidden[group.start : group.start + group.count * group.length].view(group.count, group.length, -1)
                for group in pack.groups
            ]
            lengths = np.array([len(prompt) for prompt in pack.prompts], np.float32)
            total = torch.cat([bodies.float().sum(1) for bodies in sums]) + stem
            return total / upload(lengths, hidden.device)[:, None]
        token = 0 if self._pooling == "cls" else -1
        rows = np.array([pack.rows(number)[token] for number in range(len(pack.prompts))])
        return hidden[upload(rows, hidden.device)].float()


def _completion(request: Request, vector: np.ndarray) -> Completion:
    if not np.isfinite(vector).all():
        return failure(request, "nan_logits", "the embedding is not finite")
    return Completion(id=request.id, prompt_tokens=len(request.prompt), key=request.key, embedding=vector)
