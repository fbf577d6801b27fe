"""A model up to its last hidden state, over a pack of prompts and without a KV cache.

The head is left to logprobs.py, which needs it for few of the tokens. Precision other than the weights' own
(autocast) is left to the caller.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.attention import attending
from engine.packed import PackedAttention, upload
from engine.packing import Pack


class Trunk(Protocol):
    """The forward pass of the prefill-only kinds."""

    def hidden(self, pack: Pack) -> Tensor:
        """The last hidden states [T, N] of a pack's tokens, behind the final norm."""


class ModuleTrunk:
    """transformers' own modules: any architecture, encoders too."""

    def __init__(self, model: PreTrainedModel, first_position: int = 0) -> None:
        """first_position: that of a prompt's first token."""
        self._trunk = trunk(model)
        self._device: torch.device = model.device
        self._first_position = first_position

    def hidden(self, pack: Pack) -> Tensor:
        """See Trunk."""
        ids = upload(pack.ids(), self._device)
        positions = upload(pack.positions() + self._first_position, self._device)
        with attending(PackedAttention(pack, self._device)):
            output = self._trunk(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def trunk(model: PreTrainedModel) -> nn.Module:
    """The part of a model that ends with the last hidden state; the model itself where it has no head."""
    base: nn.Module = model.base_model
    return base
