"""Which models have the structure of engine.cuda.layers, whatever their class is called."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from engine.cuda.projection import LINEAR
from engine.trunk import trunk

_BASE = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
_NORMS = {"q_norm", "k_norm"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def recognise(model: PreTrainedModel) -> bool:
    """Whether the model, with a head or without, has the parts that FusedLayers are made of, and no others."""
    base: Any = trunk(model)
    if _children(base) != _BASE or type(base.embed_tokens) is not nn.Embedding or epsilon(base.norm) is None:
        return False
    return all(_is_layer(layer) for layer in base.layers)


def head(model: PreTrainedModel) -> Any:
    """The layer that gives logits, None without one."""
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


def epsilon(norm: Any) -> Any:
    """What an RMS norm adds to the mean square, None if it is no such norm."""
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _is_layer(layer: Any) -> bool:
    if _children(layer) != _LAYER or _children(layer.mlp) != _MLP:
        return False
    attn, mlp = layer.self_attn, layer.mlp
    if _children(attn) not in (_PROJECTIONS, _PROJECTIONS | _NORMS):
        return False
    if not isinstance(mlp.act_fn, nn.SiLU) and type(mlp.act_fn).__name__ != "SiLUActivation":
        return False
    parts = [attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(part) not in LINEAR for part in parts):
        return False
    return all(epsilon(norm) is not None for norm in (layer.input_layernorm, layer.post_attention_layernorm))


def _children(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}
