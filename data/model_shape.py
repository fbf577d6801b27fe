"""The dimensions of a decoder, from its config.json: what its cost and memory are computed from, without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.model_config import text_config

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "num_heads")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of weights and dimensions; equal for models that cost the same."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    layer_parameters: int
    """Weights that every token passes: all but the embedding and the head."""
    head_parameters: int
    """Weights of the language-model head, which sampled positions alone pass."""

    @classmethod
    def of(cls, config: Mapping[str, Any], parameters: int | None = None) -> ModelShape:
        """The shape that a config.json describes.

        Args:
            config: its content.
            parameters: elements of the checkpoint's tensors; added up from the dimensions if not given.
        """
        inner = text_config(config)
        layers, hidden, heads = (_first(inner, names, 1) for names in (_LAYERS, _WIDTH, _HEADS))
        kv_heads = _first(inner, ("num_key_value_heads",), heads)
        head_dim = _first(inner, ("head_dim",), hidden // heads)
        embedding = _first(inner, ("vocab_size",), 0) * hidden
        tied = bool(inner.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
        if parameters is None:
            mlp = 3 * _first(inner, ("intermediate_size",), 4 * hidden)
            layer = hidden * (2 * (heads + kv_heads) * head_dim + mlp)
        else:
            layer = max(0, parameters - embedding * (1 if tied else 2)) // layers
        return cls(layers, hidden, heads, kv_heads, head_dim, layers * layer, embedding)

    @property
    def parameters(self) -> int:
        """Weights that a forward pass multiplies with."""
        return self.layer_parameters + self.head_parameters

    def kv_bytes(self, itemsize: float) -> float:
        """Bytes of KV that one position stores in all layers, with numbers of `itemsize` bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize

    @property
    def pair_flops(self) -> int:
        """FLOPs of attention, in all layers, for one query that sees one key."""
        return 4 * self.layers * self.heads * self.head_dim


def _first(config: Mapping[str, Any], names: tuple[str, ...], default: int) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), default)
