"""In which precision the weights of a run are computed with, chosen once, after loading.

"none" computes with the weights as they were loaded. "fp8" rounds every linear layer's weight and activations to 8
bits. "awq" is for int4 weights in groups of 128: those of an int4 checkpoint are used as they are, others are rounded
to nearest first. Int4 saves memory, not time, once a few hundred tokens share a step, so such weights are computed with
in FP8 where the GPU can, which holds each group's values closely, and else in the model's dtype.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from engine import int4
from engine.fp8 import supports_fp8, to_fp8
from engine.model import stored_in_int4

GROUP = 128


def quantize(model: PreTrainedModel, method: str) -> str:
    """Apply model.quantization to a loaded model in place; how the products are computed, to be shown.

    Raises ValueError where the device cannot.
    """
    dtype = str(model.dtype).removeprefix("torch.")
    if method == "none":
        return dtype
    if method == "awq":
        what = "int4 weights" if stored_in_int4(model) else _round_to_int4(model)
        if not supports_fp8(model.device):
            return f"{what}, computed in {dtype}"
        to_fp8(model)
        return f"{what}, computed in fp8"
    to_fp8(model)
    return "fp8 weights and activations"


@torch.no_grad()
def _round_to_int4(model: PreTrainedModel) -> str:
    """Round the linear layers' weights to int4, the head's excepted; what was rounded, to be shown.

    Layers whose inputs are not whole groups stay as they are.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    layers = [module for module in model.modules() if type(module) is nn.Linear and module is not head]
    rounded = [layer for layer in layers if layer.in_features % GROUP == 0]
    for layer in rounded:
        layer.weight.copy_(int4.decode(*int4.encode(layer.weight, GROUP), layer.weight.dtype))
    which = "" if len(rounded) == len(layers) else f" in {len(rounded)} of {len(layers)} layers"
    return f"weights rounded to int4 in groups of {GROUP}{which}"
