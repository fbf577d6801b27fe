"""The fused layers over a pack, without a KV cache: the forward pass of the prefill-only kinds."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from engine.cuda import elementwise
from engine.cuda.layers import FusedLayers, Layer
from engine.packed import PackedAttention, upload
from engine.packing import Pack


class FusedTrunk:
    """The same interface as engine.trunk.ModuleTrunk, for models that recipe.choose_trunk accepts."""

    def __init__(self, model: PreTrainedModel, *, repeatable: bool = True) -> None:
        """repeatable: as for FusedLayers. Raises ValueError where the model is not made of such layers."""
        self._layers = FusedLayers(model, repeatable=repeatable)

    def hidden(self, pack: Pack) -> Tensor:
        """The last hidden states [T, N] of a pack's tokens, behind the final norm."""
        device = self._layers.device
        attention, positions = PackedAttention(pack, device), upload(pack.positions(), device)
        # Only as far as this pack reaches: frequencies that depend on that are then those of the modules.
        rotary = self._layers.rotary(pack.reach)

        def mix(layer: Layer, qkv: Tensor) -> Tensor:
            call = layer.call
            q, k, v = elementwise.rotate_apart(
                qkv, rotary, layer.head_norms, layer.head_eps, call.heads, call.keys, positions
            )
            q, k, v = (part.transpose(0, 1) for part in (q, k, v))
            out = attention.attend(layer.number, q, k, v, scale=call.scale, causal=call.causal, window=call.window)
            return out.flatten(1)

        hidden = self._layers.hidden(upload(pack.ids(), device), mix)
        assert isinstance(hidden, Tensor)
        return hidden
