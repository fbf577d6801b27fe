"""What a model's layers store in the KV cache, and how much of that it gets on CPU.

The shapes come from a forward pass over one token with a backend that only looks, so they hold for any architecture,
precision and tensor-parallel split. On CPU the budget is fixed: workers share the host's memory, and batches that
depended on free memory would not be repeatable.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.attention import attending
from engine.paged import BLOCK, LayerShape
from engine.settings import EngineSettings

_CPU_BYTES = 1 << 30
_CPU_MOST_BYTES = 4 << 30


def autocast(model: PreTrainedModel, settings: EngineSettings) -> AbstractContextManager[object]:
    """Mixed precision for float32 weights where settings.amp asks for it."""
    if not settings.amp or model.dtype != torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, dtype=torch.bfloat16)


class _Shapes:
    """An attention backend that notes what each layer would store."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        del scale, causal, window
        self.layers[layer] = LayerShape(k.shape[0], k.shape[2], v.shape[2], v.dtype)
        return v.new_zeros(q.shape[1], q.shape[0], v.shape[2])


def layer_shapes(model: PreTrainedModel, settings: EngineSettings) -> dict[int, LayerShape]:
    """What each attention layer stores for a position. ValueError where the layers cannot be told apart."""
    shapes = _Shapes()
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.inference_mode(), autocast(model, settings), attending(shapes):
        model(input_ids=ids, position_ids=ids, use_cache=False)
    layers = model.config.get_text_config().num_hidden_layers
    if -1 in shapes.layers or not 0 < len(shapes.layers) <= layers:
        raise ValueError(f"{type(model).__name__} does not number its attention layers; it cannot generate here")
    if settings.kv_dtype == "fp8":
        return {i: LayerShape(s.heads, s.key_size, s.value_size, torch.float8_e4m3fn) for i, s in shapes.layers.items()}
    return shapes.layers


def kv_blocks(layers: dict[int, LayerShape], context_length: int) -> int:
    """Blocks of the KV cache on CPU: at least the longest sequence, within bounds."""
    block = BLOCK * sum(shape.bytes for shape in layers.values())
    longest = -(-context_length // BLOCK) * block
    return max(1, max(_CPU_BYTES, min(longest, _CPU_MOST_BYTES)) // block)
