"""Decoder layers run from their weights, with every step between two products fused.

A recipe is a structure, not an architecture: pre-norm layers of attention with q, k, v and o projections and a gated
MLP with SiLU, whatever the class is called (Llama, Mistral, Qwen2, Qwen3 and their kin). A model that has the parts may
still do more with them than they show (multipliers, other norms), so the recipe is tried first on a copy of two layers
with random weights against transformers' own modules, and is used only if it gives the same.

Fused weights replace those of the modules they came from, which keep working on views of them.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from engine.attention import attending
from engine.cuda import elementwise
from engine.cuda.batch import Batch, attend, paged
from engine.cuda.elementwise import Activations
from engine.fp8 import Fp8Linear, Rounded
from engine.paged import PagedKV

_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_LINEAR = (nn.Linear, Fp8Linear)

Call = tuple[int, float, bool, int | None]
"""How a layer attends: query heads, scale, whether causally, and its window."""


@dataclass(frozen=True)
class Norm:
    """An RMS norm."""

    weight: Tensor
    eps: float


@dataclass(frozen=True)
class Layer:
    """One decoder layer. Legend: N hidden size, H query heads, K key heads, D head size, I intermediate size."""

    number: int
    before: Norm
    qkv: Projection
    query_norm: Tensor | None
    key_norm: Tensor | None
    head_eps: float
    out: Projection
    between: Norm
    gate_up: Projection
    down: Projection
    heads: int
    scale: float
    window: int | None


class Projection:
    """A product with the weights of one linear layer, or of several over the same input."""

    def __init__(self, parts: Seq[Any], dtype: torch.dtype) -> None:
        """parts: linear layers of one kind and input, whose outputs are given side by side in `dtype`."""
        self._dtype = dtype
        if all(isinstance(part, Fp8Linear) for part in parts):
            self.quantized = True
        elif all(type(part) is nn.Linear for part in parts):
            self.quantized = False
        else:
            raise ValueError("projections of one input are of different kinds")
        weights, biases = [part.weight for part in parts], [part.bias for part in parts]
        self._weight: Tensor = (
            weights[0].detach() if len(parts) == 1 else _fuse([weight.detach() for weight in weights])
        )
        self._bias: Tensor | None = None
        some = next((bias for bias in biases if bias is not None), None)
        if some is not None:
            pairs = zip(weights, biases, strict=True)
            self._bias = torch.cat([some.new_zeros(len(w)) if b is None else b.detach() for w, b in pairs])
        if self.quantized:
            scales = torch.cat([part.scale for part in parts])
            self._product = Fp8Linear(self._weight, scales, self._bias)
        if len(parts) > 1:
            start = 0
            for part in parts:
                stop = start + len(part.weight)
                part.weight = (
                    nn.Buffer(self._weight[start:stop])
                    if self.quantized
                    else nn.Parameter(self._weight[start:stop], requires_grad=False)
                )
                start = stop

    def __call__(self, x: Activations) -> Tensor:
        """x [T, in] -> [T, out]."""
        if isinstance(x, Rounded):
            return self._product.multiply(x, self._dtype)
        return linear(x, self._weight, self._bias)


def _fuse(weights: list[Tensor]) -> Tensor:
    if weights[0].dtype.itemsize == 1:
        return torch.cat([weight.view(torch.uint8) for weight in weights]).view(weights[0].dtype)
    return torch.cat(weights)


class _Calls:
    """An attention backend that notes how each layer calls it."""

    def __init__(self) -> None:
        self.calls: dict[int, Call] = {}

    def attend(
        self, layer: int, q: Tensor, _k: Tensor, v: Tensor, /, *, scale: float, causal: bool, window: int | None
    ) -> Tensor:
        self.calls[layer] = (q.shape[0], scale, causal, window)
        return v.new_zeros(q.shape[1], q.shape[0], v.shape[2])


class FusedDecoder:
    """The forward pass of a decoder whose structure is known. Use `recognise`, then `FusedDecoder(model, ...)`."""

    def __init__(self, model: PreTrainedModel, kv: PagedKV, positions: int) -> None:
        """positions: most positions of a sequence."""
        base: Any = model.model
        self._head = Projection([_head(model)], model.dtype)
        self._embedding: Tensor = base.embed_tokens.weight.detach()
        self._last = Norm(base.norm.weight.detach(), _eps(base.norm))
        calls = _calls(model)
        self._layers = [_layer(number, layer, calls[number], model.dtype) for number, layer in enumerate(base.layers)]
        self._kv = kv
        self._rotary = _rotary(base, positions, kv.layers[0].key_size)

    def logits(self, ids: Tensor, batch: Batch, keep: Tensor | None) -> Tensor:
        """Logits [R, V] of the packed tokens ids int64 [T]; keep: int64 [R], which of them; None for all."""
        layers = self._layers
        residual = self._embedding[ids]
        x = elementwise.add_norm(residual, None, *_norm(layers[0].before), quantized=layers[0].qkv.quantized)
        for layer, after in pairwise([*layers, None]):
            assert layer is not None
            a = self._attention(layer, x, batch)
            if after is None and keep is not None:
                # Behind the last attention, only what is sampled matters.
                a, residual = a[keep], residual[keep]
            x = layer.out(elementwise.quantize(a) if layer.out.quantized else a)
            x = elementwise.add_norm(x, residual, *_norm(layer.between), quantized=layer.gate_up.quantized)
            x = layer.down(elementwise.silu_multiply(layer.gate_up(x), quantized=layer.down.quantized))
            norm, quantized = (
                (self._last, self._head.quantized) if after is None else (after.before, after.qkv.quantized)
            )
            x = elementwise.add_norm(x, residual, *_norm(norm), quantized=quantized)
        return self._head(x)

    def _attention(self, layer: Layer, x: Activations, batch: Batch) -> Tensor:
        """[T, H D]: what attention gives for the normed input x [T, N]."""
        norms = None
        if layer.query_norm is not None and layer.key_norm is not None:
            norms = (layer.query_norm, layer.key_norm)
        cache = paged(self._kv, layer.number)
        q = elementwise.rotate(
            layer.qkv(x), self._rotary, norms, layer.head_eps, layer.heads, cache,
            batch.tables, batch.rows, batch.positions,
        )  # fmt: skip
        return attend(q, cache, batch, scale=layer.scale, window=layer.window).flatten(1)


def recognise(model: PreTrainedModel) -> bool:
    """Whether the model has the parts that a FusedDecoder is made of, and no others."""
    base: Any = getattr(model, "model", None)
    if base is None or {name for name, _ in base.named_children()} != {"embed_tokens", "layers", "norm", "rotary_emb"}:
        return False
    if not isinstance(_head(model), _LINEAR) or type(base.embed_tokens) is not nn.Embedding:
        return False
    for layer in base.layers:
        if {name for name, _ in layer.named_children()} != _LAYER:
            return False
        heads = {name for name, _ in layer.self_attn.named_children()}
        if (
            heads not in (_PROJECTIONS, _PROJECTIONS | _NORMS)
            or {name for name, _ in layer.mlp.named_children()} != _MLP
        ):
            return False
        if not isinstance(layer.mlp.act_fn, nn.SiLU) and type(layer.mlp.act_fn).__name__ != "SiLUActivation":
            return False
        attn, mlp = layer.self_attn, layer.mlp
        parts = [attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        if any(type(part) not in _LINEAR for part in parts):
            return False
        norms = [layer.input_layernorm, layer.post_attention_layernorm, base.norm]
        if any(_eps(norm) is None for norm in norms):
            return False
    return True


def _layer(number: int, layer: Any, call: Call, dtype: torch.dtype) -> Layer:
    attn, mlp = layer.self_attn, layer.mlp
    heads, scale, causal, window = call
    assert causal
    query_norm = getattr(attn, "q_norm", None)
    return Layer(
        number=number,
        before=Norm(layer.input_layernorm.weight.detach(), _eps(layer.input_layernorm)),
        qkv=Projection([attn.q_proj, attn.k_proj, attn.v_proj], dtype),
        query_norm=None if query_norm is None else query_norm.weight.detach(),
        key_norm=None if query_norm is None else attn.k_norm.weight.detach(),
        head_eps=0.0 if query_norm is None else _eps(query_norm),
        out=Projection([attn.o_proj], dtype),
        between=Norm(layer.post_attention_layernorm.weight.detach(), _eps(layer.post_attention_layernorm)),
        gate_up=Projection([mlp.gate_proj, mlp.up_proj], dtype),
        down=Projection([mlp.down_proj], dtype),
        heads=heads,
        scale=scale,
        window=window,
    )


def _calls(model: PreTrainedModel) -> dict[int, Call]:
    backend = _Calls()
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.inference_mode(), attending(backend):
        model(input_ids=ids, position_ids=ids, use_cache=False)
    return backend.calls


def _rotary(base: Any, positions: int, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [positions, D / 2] each, as the model's own embedding gives them."""
    device = base.embed_tokens.weight.device
    at = torch.arange(positions, device=device)[None]
    with torch.inference_mode():
        cos, sin = base.rotary_emb(torch.zeros(1, dtype=torch.float32, device=device), at)
    half = cos.shape[-1] // 2
    if half != size // 2:
        raise ValueError(f"the rotary embedding turns {2 * half} of {size} dimensions")
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def _norm(norm: Norm) -> tuple[Tensor, float]:
    return norm.weight, norm.eps


def _eps(norm: Any) -> Any:
    """The norm's epsilon, None if it is no such norm."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
