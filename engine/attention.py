"""The one seam between transformers' model definitions and our attention.

Every model is loaded with `attn_implementation="overnight"`. Its attention modules then call `attention_forward`
below, which hands the packed query, key and value to the backend of the forward pass in progress: paged KV for
generation, packed without KV for prefill-only kinds, another kernel on CUDA. A backend owns everything that depends on
where one sequence ends and the next begins, and writes KV where it keeps any.

No mask function is registered under the name: transformers then builds no mask and skips its search for packed
sequences, which reads a tensor on the host every step and cannot be captured in a CUDA graph. What a mask would have
expressed is passed as `causal` and `window`. A feature that no backend honours is refused by name, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "overnight"

# Keyword arguments of transformers' attention functions that change the result and that no backend implements.
_UNSUPPORTED = {
    "softcap": "attention logit soft-capping",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a learned position bias",
    "head_mask": "a head mask",
}


class AttentionBackend(Protocol):
    """Attention over the sequences packed in one forward pass."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        /,
        *,
        scale: float,
        causal: bool,
        window: int | None,
    ) -> Tensor:
        """Return the attention output [T, H, D] of query heads H [H, T, D] over key/value heads K [K, T, D].

        The inputs hold the T tokens of this forward pass, sequence after sequence, rotary embedding applied; their
        strides are arbitrary and, under autocast, their dtypes may differ. H is a multiple of K, and query head h
        reads key head h // (H // K). `layer` is the module's index, -1 where it has none. With `window`, a query sees
        its own key and the `window - 1` before it, and as many after it where not causal.
        """


_current: ContextVar[AttentionBackend | None] = ContextVar("attention_backend", default=None)


@contextmanager
def attending(backend: AttentionBackend) -> Iterator[None]:
    """Let `backend` serve the attention of the forward passes run inside."""
    token = _current.set(backend)
    try:
        yield
    finally:
        _current.reset(token)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    **features: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    Raises ValueError for a feature no backend honours, RuntimeError outside of `attending`.
    """
    for name, meaning in _UNSUPPORTED.items():
        if features.get(name) is not None:
            raise ValueError(f"{type(module).__name__} uses {meaning} ({name}), which this engine does not support")
    if attention_mask is not None:
        raise ValueError(f"{type(module).__name__} passes an attention mask of its own, which is not supported")
    backend = _current.get()
    if backend is None:
        raise RuntimeError("a model loaded by engine.model runs only inside engine.attention.attending(backend)")
    assert query.shape[0] == 1, "sequences are packed along the token dimension"
    layer = getattr(module, "layer_idx", None)
    out = backend.attend(
        -1 if layer is None else layer,
        query[0],
        key[0],
        value[0],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        causal=_is_causal(module, is_causal),
        window=sliding_window,
    )
    return out.unsqueeze(0), None


def _is_causal(module: torch.nn.Module, explicit: bool | None) -> bool:
    if explicit is not None:
        return explicit
    # A decoder made bidirectional says so in its config; transformers would express it in the mask.
    config = getattr(module, "config", None)
    return bool(getattr(module, "is_causal", True)) and getattr(config, "is_causal", None) is not False


ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
