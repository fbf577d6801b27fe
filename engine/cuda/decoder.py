"""The fused layers over the paged cache, with the head: the forward pass of generation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from engine.cuda import elementwise
from engine.cuda.batch import Batch, attend, paged
from engine.cuda.layers import FusedLayers, Layer
from engine.cuda.projection import Projection
from engine.cuda.structure import head
from engine.model import steady_positions
from engine.paged import PagedKV


class FusedDecoder:
    """The forward pass of a decoder whose structure is known, for models that recipe.choose accepts."""

    def __init__(
        self, model: PreTrainedModel, kv: PagedKV, positions: int, *, invariant: bool = False, repeatable: bool = True
    ) -> None:
        """positions: most positions of a sequence; invariant: whether a token's logits are the same in any batch.

        repeatable: as for FusedLayers.

        Raises ValueError where the model is no such decoder.
        """
        self._layers = FusedLayers(model, invariant=invariant, repeatable=repeatable)
        self._head = Projection([head(model)], model.dtype, invariant=invariant)
        self._kv = kv
        # Positions beyond the steady ones are only ever those of the rows that fill a batch up.
        steady = min(positions, steady_positions(model) or positions)
        cos, sin = (pad(part, (0, 0, 0, positions - steady)) for part in self._layers.rotary(steady))
        self._rotary = cos, sin

    def logits(self, ids: Tensor, batch: Batch, keep: Tensor | None) -> Tensor:
        """Logits [R, V] of the packed tokens ids int64 [T]; keep: int64 [R], which of them; None for all."""
        mix = partial(self._attention, batch)
        return self._head(self._layers.hidden(ids, mix, keep, quantized=self._head.quantized))

    def products(self, rows: int) -> Callable[[], None]:
        """The products of some layers for so many rows, for their time alone."""
        return self._layers.products(rows)

    def _attention(self, batch: Batch, layer: Layer, qkv: Tensor) -> Tensor:
        call, cache = layer.call, paged(self._kv, layer.number)
        if not call.causal:
            raise ValueError("this model attends in both directions; it cannot generate")
        q = elementwise.rotate(
            qkv, self._rotary, layer.head_norms, layer.head_eps, call.heads, cache,
            batch.tables, batch.rows, batch.positions,
        )  # fmt: skip
        return attend(q, cache, batch, scale=call.scale, window=call.window).flatten(1)
