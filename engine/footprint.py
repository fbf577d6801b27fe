"""Whether a model's int4 weights fit the device unpacked, beside what computing with them needs.

Unpacked weights are faster: a step need not unpack them. But where they leave little memory for the KV cache, few rows
run at once, and more of them with packed weights are faster again. So unpacked weights fit if KV for a batch of usual
size fits beside them. Kinds that only prefill keep no KV. On CPU they always fit: nothing is gained there by packing.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from engine.int4_linear import Int4Linear
from engine.kv_memory import layer_shapes
from engine.settings import EngineSettings

LEAST_POSITIONS = 1 << 16
"""Positions of KV that generation should have: 128 rows of 512."""

# Of the largest layer's inputs and outputs, how many copies a step holds at once; and memory.py's spare for its peak.
_COPIES = 4
_SPARE = 2
_LOGIT_PART = 64


def fits_unpacked(model: PreTrainedModel, itemsize: int, settings: EngineSettings, positions: int) -> bool:
    """Whether settings.memory_fraction of the device holds the loaded model with its int4 weights unpacked.

    itemsize: bytes of an unpacked weight; positions: of KV, beside them.
    """
    if model.device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(model.device)
    # As for the KV cache: what other processes hold counts unless batches must be repeatable.
    others = 0 if settings.shardwise else total - free - torch.cuda.memory_reserved(model.device)
    budget = int(total * settings.memory_fraction) - others
    needed = torch.cuda.memory_allocated(model.device) + growth(model, itemsize) + total // _LOGIT_PART
    return needed + working_bytes(model, settings, positions) <= budget


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of the model's tensors as they are held, tied ones once."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def growth(model: PreTrainedModel, itemsize: int) -> int:
    """Bytes by which the model grows when its int4 weights are unpacked to `itemsize` bytes each."""
    layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
    packed = sum(tensor.nbytes for layer in layers for tensor in (layer.pairs, layer.steps, layer.zeros))
    return sum(layer.out_features * layer.in_features for layer in layers) * itemsize - packed


def working_bytes(model: PreTrainedModel, settings: EngineSettings, positions: int) -> int:
    """Bytes of KV for `positions` and, roughly, of a step's activations."""
    widths = [layer.in_features + layer.out_features for layer in model.modules() if isinstance(layer, Int4Linear)]
    step = settings.max_batch_tokens * model.dtype.itemsize * _COPIES * max(widths, default=0)
    kv = sum(shape.bytes for shape in layer_shapes(model, settings).values()) if positions else 0
    return positions * kv + _SPARE * step
