"""Decoder layers run from their weights, with every step between two products fused.

A recipe is a structure, not an architecture: pre-norm layers of attention with q, k, v and o projections and a gated
MLP with SiLU, whatever the class is called (Llama, Mistral, Qwen2, Qwen3 and their kin). A model that has the parts may
still do more with them than they show (multipliers, other norms), so recipe.py tries the layers first, on a copy with
random weights. How tokens attend to each other is the caller's: over a paged cache (decoder.py) or a pack (trunk.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.attention import attending
from engine.cuda import elementwise, sparse
from engine.cuda.elementwise import Activations
from engine.cuda.projection import Projection
from engine.cuda.structure import epsilon
from engine.fp8 import Fp8Linear
from engine.trunk import trunk

# Layers whose products are timed: more than a cache holds.
_TIMED_LAYERS = 4


class Norm(NamedTuple):
    """An RMS norm."""

    weight: Tensor
    eps: float


class Call(NamedTuple):
    """How a layer calls attention."""

    heads: int
    """H: query heads."""
    keys: int
    """K: key heads."""
    size: int
    """D: of each head."""
    scale: float
    causal: bool
    window: int | None


@dataclass(frozen=True)
class Layer:
    """One decoder layer."""

    number: int
    before: Norm
    qkv: Projection
    head_norms: tuple[Tensor, Tensor] | None
    """Weights [D] of the norms of query and key heads."""
    head_eps: float
    call: Call
    out: Projection
    between: Norm
    gate_up: Projection
    down: Projection


Mix = Callable[[Layer, Tensor], Tensor]
"""What attention gives, [T, H D], for a layer and the queries, keys and values of its tokens, [T, (H + 2 K) D]."""


class FusedLayers:
    """The forward pass from token ids to the last hidden state. Legend: T tokens, N hidden size, R tokens kept."""

    def __init__(self, model: PreTrainedModel, *, invariant: bool = False, repeatable: bool = True) -> None:
        """model: one that structure.recognise knows; invariant: as for Projection.

        repeatable: whether a batch is to be computed alike in every process: without algorithms chosen by their times.

        Raises ValueError where it differs from the structure inside.
        """
        base: Any = trunk(model)
        self._embedding: Tensor = base.embed_tokens.weight.detach()
        self._last = Norm(base.norm.weight.detach(), epsilon(base.norm))
        calls = _calls(base)
        project = partial(Projection, dtype=model.dtype, invariant=invariant)
        project_mlp = partial(project, sparse=not (invariant or repeatable) and _compressible(model.dtype, base))
        self._layers = [
            _layer(number, layer, calls[number], project, project_mlp) for number, layer in enumerate(base.layers)
        ]
        self._rotary_embedding = base.rotary_emb
        turned, sizes = 2 * self.rotary(1)[0].shape[1], {call.size for call in calls.values()}
        if sizes != {turned}:
            raise ValueError(f"the rotary embedding turns {turned} dimensions, heads have {sorted(sizes)}")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    def hidden(self, ids: Tensor, mix: Mix, keep: Tensor | None = None, *, quantized: bool = False) -> Activations:
        """Last hidden states [R, N], behind the final norm, of the packed tokens ids int64 [T].

        mix: attention; keep: int64 [R], which tokens, None for all; quantized: whether in 8 bits.
        """
        layers = self._layers
        residual = self._embedding[ids]
        x = elementwise.add_norm(residual, None, *layers[0].before, quantized=layers[0].qkv.quantized)
        for layer, after in pairwise([*layers, None]):
            assert layer is not None
            a = mix(layer, layer.qkv(x))
            if after is None and keep is not None:
                # Behind the last attention, only what is kept matters.
                a, residual = a[keep], residual[keep]
            mixed = elementwise.quantize(a) if layer.out.quantized else a
            x = _add_norm(layer.out, mixed, residual, layer.between, quantized=layer.gate_up.quantized)
            gated = elementwise.silu_multiply(layer.gate_up.unscaled(x), quantized=layer.down.quantized)
            norm, rounded = (self._last, quantized) if after is None else (after.before, after.qkv.quantized)
            x = _add_norm(layer.down, gated, residual, norm, quantized=rounded)
        return x

    def products(self, rows: int) -> Callable[[], None]:
        """The products of the first layers for so many rows, for their time alone."""
        work: list[tuple[Projection, Activations]] = []
        for layer in self._layers[:_TIMED_LAYERS]:
            for projection in (layer.qkv, layer.out, layer.gate_up, layer.down):
                x = torch.ones(rows, projection.inputs, dtype=self._embedding.dtype, device=self.device)
                work.append((projection, elementwise.quantize(x) if projection.quantized else x))

        def multiply() -> None:
            for projection, x in work:
                projection(x)

        return multiply

    def rotary(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the first `positions` positions, float32 [positions, D / 2] each, as the model's own."""
        at = torch.arange(positions, device=self.device)[None]
        with torch.inference_mode():
            cos, sin = self._rotary_embedding(torch.zeros(1, dtype=torch.float32, device=self.device), at)
        half = cos.shape[-1] // 2
        return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def _add_norm(projection: Projection, x: Activations, residual: Tensor, norm: Norm, *, quantized: bool) -> Activations:
    """RMS norm of residual [T, N] and the product for x [T, in] together; `residual` becomes that sum."""
    if projection.adds and isinstance(x, Tensor):
        projection.add(x, residual)
        return elementwise.add_norm(residual, None, *norm, quantized=quantized)
    return elementwise.add_norm(projection.unscaled(x), residual, *norm, quantized=quantized)


class _Calls:
    """An attention backend that notes how each layer calls it."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, /, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        if k.shape != v.shape:
            raise ValueError(f"keys have shape {list(k.shape)}, values {list(v.shape)}")
        self.calls[layer] = Call(q.shape[0], k.shape[0], q.shape[2], scale, causal, window)
        return v.new_zeros(q.shape[1], q.shape[0], v.shape[2])


def _calls(base: Any) -> dict[int, Call]:
    backend = _Calls()
    ids = torch.zeros(1, 1, dtype=torch.int64, device=base.device)
    with torch.inference_mode(), attending(backend):
        base(input_ids=ids, position_ids=ids, use_cache=False)
    return backend.calls


def _compressible(dtype: torch.dtype, base: Any) -> bool:
    """Whether the MLPs' weights, if they are sparse, can be kept compressed, too."""
    parts = [part for layer in base.layers for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)]
    size = sum(part.weight.nbytes for part in parts if isinstance(part, Fp8Linear))
    return dtype == torch.bfloat16 and size > 0 and sparse.usable(size, base.device)


_Project = Callable[[list[Any]], Projection]


def _layer(number: int, layer: Any, call: Call, project: _Project, project_mlp: _Project) -> Layer:
    attn, mlp = layer.self_attn, layer.mlp
    query_norm = getattr(attn, "q_norm", None)
    norms = None if query_norm is None else (query_norm.weight.detach(), attn.k_norm.weight.detach())
    return Layer(
        number=number,
        before=Norm(layer.input_layernorm.weight.detach(), epsilon(layer.input_layernorm)),
        qkv=project([attn.q_proj, attn.k_proj, attn.v_proj]),
        head_norms=norms,
        head_eps=0.0 if query_norm is None else epsilon(query_norm),
        call=call,
        out=project([attn.o_proj]),
        between=Norm(layer.post_attention_layernorm.weight.detach(), epsilon(layer.post_attention_layernorm)),
        gate_up=project_mlp([mlp.gate_proj, mlp.up_proj]),
        down=project_mlp([mlp.down_proj]),
    )
