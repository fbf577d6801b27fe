"""The forward pass through transformers' own modules over the paged cache, for models without a recipe."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.attention import attending
from engine.cuda.batch import Batch, attend, paged
from engine.kv_memory import autocast
from engine.paged import BLOCK, PagedKV
from engine.settings import EngineSettings


class ModuleDecoder:
    """The same interface as FusedDecoder, for any decoder-only model."""

    def __init__(self, model: PreTrainedModel, settings: EngineSettings, kv: PagedKV) -> None:
        self._model = model
        self._settings = settings
        self._kv = kv

    def logits(self, ids: Tensor, batch: Batch, keep: Tensor | None) -> Tensor:
        """Logits [R, V] of the packed tokens ids int64 [T]; keep: int64 [R], which of them; None for all."""
        kept: Tensor | int = 0 if keep is None else keep
        with autocast(self._model, self._settings), attending(_Attention(self._kv, batch)):
            logits: Tensor = self._model(
                input_ids=ids[None], position_ids=batch.positions[None], use_cache=False, logits_to_keep=kept
            ).logits[0]
        return logits


class _Attention:
    """engine.attention's backend over the kernels of engine.cuda.attention."""

    def __init__(self, kv: PagedKV, batch: Batch) -> None:
        self._kv = kv
        self._batch = batch
        at = batch.positions
        self._lines = batch.tables[batch.rows, at // BLOCK].to(torch.int64) * BLOCK + at % BLOCK

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        """q [H, T, D], k and v [K, T, D] -> [T, H, D]; see engine.attention."""
        if not causal:
            raise ValueError("this model attends in both directions; it cannot generate")
        self._kv.write(layer, self._lines, k.to(v.dtype), v)
        q = q.to(v.dtype).transpose(0, 1).contiguous()
        return attend(q, paged(self._kv, layer), self._batch, scale=scale, window=window)
