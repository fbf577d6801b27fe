"""2:4 sparsity: of every four consecutive inputs of an output two have weights of zero.

Such weights are multiplied faster by NVIDIA's matrix units since Ampere (engine.cuda.sparse). Only the linears of the
MLP are pruned: they are most of a decoder's weights, and smaller products gain nothing.

Which two go is decided by Wanda (Sun et al. 2023, arXiv 2306.11695): those of the lowest |w| ||x||, ||x|| the norm of
the input over all calibration tokens. The other weights stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.trunk import trunk

MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
"""The linears that are pruned, by their names within a decoder layer; engine.cuda.layers knows the same."""

_INPUTS, _ZEROS = 4, 2
# Of a norm: of inputs that were always zero, the lighter weights go.
_LEAST = 1e-20


def mlp(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linears of a decoder layer that are pruned, by their names.

    Raises ValueError, to be said of a layer, where it has no such ones or their inputs are no multiple of four.
    """
    found = {name: module for name, module in layer.named_modules() if name in MLP and isinstance(module, nn.Linear)}
    if len(found) < len(MLP):
        raise ValueError(f"has no linears {', '.join(name for name in MLP if name not in found)}")
    for name, linear in found.items():
        if linear.in_features % _INPUTS:
            raise ValueError(f"has {linear.in_features} inputs of {name}, no multiple of {_INPUTS}")
    return found


@torch.no_grad()
def prune(weight: Tensor, norms: Tensor | None = None) -> None:
    """Set two of every four consecutive inputs of each output of `weight` [out, in] to zero, in place.

    norms: float32 [in], those of the inputs; None for equal ones, so that the lightest weights go.
    """
    scores = weight.float().abs()
    if norms is not None:
        scores *= norms.clamp(min=_LEAST)
    lowest = scores.view(-1, _INPUTS).topk(_ZEROS, -1, largest=False).indices
    weight.view(-1, _INPUTS).scatter_(-1, lowest, 0)


def prune_model(model: PreTrainedModel) -> None:
    """Prune the lightest weights of every layer's MLP, in place. Raises ValueError where a layer has no such one."""
    layers: Any = getattr(trunk(model), "layers", ())
    for number, layer in enumerate(layers):
        try:
            linears = mlp(layer)
        except ValueError as error:
            raise ValueError(f"layer {number} of {type(model).__name__} {error}; it cannot be pruned") from None
        for linear in linears.values():
            prune(linear.weight)
