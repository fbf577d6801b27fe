"""The fused forward pass is the same function as transformers' modules, or is not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from engine.cuda.batch import Batch
from engine.cuda.decoder import FusedDecoder
from engine.cuda.modules import ModuleDecoder
from engine.cuda.recipe import choose, choose_trunk
from engine.fp8 import to_fp8
from engine.int4_linear import Int4Linear
from engine.kv_memory import layer_shapes
from engine.paged import PagedKV
from engine.random_model import build_random_model
from engine.settings import EngineSettings

COMMON = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FUSED = {
    "qwen2": lambda: Qwen2Config(**COMMON, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=24),
    "llama": lambda: LlamaConfig(**(COMMON | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5})),
    "llama3": lambda: LlamaConfig(
        **COMMON,
        attention_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral": lambda: MistralConfig(**COMMON, sliding_window=7),
}
OTHERS = {
    # The same parts as Llama, with multipliers between them that only the numbers show.
    "granite": lambda: GraniteConfig(**COMMON, residual_multiplier=0.5, embedding_multiplier=3.0),
    "phi3": lambda: Phi3Config(**COMMON),
}


def build(config: Any, device: torch.device) -> Any:
    return build_random_model(config, dtype=torch.float32, device=device)


@pytest.mark.parametrize("name", list(FUSED))
def test_known_structures_are_fused(name: str, device: torch.device) -> None:
    assert choose(build(FUSED[name](), device), EngineSettings())


@pytest.mark.parametrize("name", list(OTHERS))
def test_others_keep_their_modules(name: str, device: torch.device) -> None:
    assert not choose(build(OTHERS[name](), device), EngineSettings())


@pytest.mark.parametrize("name", ["qwen3", "both ways"])
def test_models_without_a_head_are_fused_over_packs_alone(name: str, device: torch.device) -> None:
    config = LlamaConfig(**COMMON, is_causal=False) if name == "both ways" else FUSED[name]()
    model = build(config, device).base_model
    assert choose_trunk(model, EngineSettings())
    assert not choose(model, EngineSettings())


def test_packs_of_others_keep_their_modules(device: torch.device) -> None:
    assert not choose_trunk(build(OTHERS["granite"](), device), EngineSettings())
    shape = {name: COMMON[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    assert not choose_trunk(AutoModel.from_config(BertConfig(**shape)), EngineSettings())


def test_mixed_precision_keeps_the_modules(device: torch.device) -> None:
    model, settings = build(FUSED["qwen2"](), device), EngineSettings(amp=True)
    assert not choose(model, settings)
    assert not choose_trunk(model, settings)


@pytest.mark.parametrize("kv", ["auto", "fp8"])
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_fp8_is_fused_alike(name: str, kv: str, device: torch.device) -> None:
    """Rounded by the fused kernels or in the modules of FP8 layers: the same logits but for roundings that tip over."""
    model = build(FUSED[name](), device)
    to_fp8(model)
    settings = EngineSettings(kv_dtype=kv)
    cache = PagedKV(layer_shapes(model, settings), 1, device)
    ids = torch.arange(16, device=device) * 5
    zeros = torch.zeros(16, dtype=torch.int64, device=device)
    tiles = torch.tensor([[0, i, i, 8] for i in (0, 8)], dtype=torch.int32, device=device)
    tables = torch.tensor([[1]], dtype=torch.int32, device=device)
    batch = Batch(zeros, torch.arange(16, device=device), tables, 0, 0, 0, tiles)
    with torch.inference_mode():
        wanted = ModuleDecoder(model, settings, cache).logits(ids, batch, None)
        found = FusedDecoder(model, cache, 16).logits(ids, batch, None)
    # Triton's interpreter halves numbers that round up to the next power of two: one in forty.
    assert (found - wanted).norm() / wanted.norm() < (0.02 if device.type == "cuda" else 0.15)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_int4_is_fused_alike(name: str, fp8: bool, device: torch.device) -> None:
    """Packed layers, with biases, side by side in one: the same logits, and the modules keep working on views."""
    model = build(FUSED[name](), device)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear and child is not model.lm_head:
                packed = Int4Linear.of(child, 32)
                if fp8:
                    packed.to_fp8()
                setattr(parent, child_name, packed)
    cache = PagedKV(layer_shapes(model, EngineSettings()), 1, device)
    ids = torch.arange(16, device=device) * 5
    zeros = torch.zeros(16, dtype=torch.int64, device=device)
    tiles = torch.tensor([[0, i, i, 8] for i in (0, 8)], dtype=torch.int32, device=device)
    tables = torch.tensor([[1]], dtype=torch.int32, device=device)
    batch = Batch(zeros, torch.arange(16, device=device), tables, 0, 0, 0, tiles)
    with torch.inference_mode():
        wanted = ModuleDecoder(model, EngineSettings(), cache).logits(ids, batch, None)
        found = FusedDecoder(model, cache, 16).logits(ids, batch, None)
        again = ModuleDecoder(model, EngineSettings(), cache).logits(ids, batch, None)
    torch.testing.assert_close(again, wanted, rtol=1e-6, atol=1e-6)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.pairs.untyped_storage().data_ptr() == attention.v_proj.pairs.untyped_storage().data_ptr()
    limit = (0.02 if device.type == "cuda" else 0.15) if fp8 else 1e-5
    assert (found - wanted).norm() / wanted.norm() < limit


def test_frequencies_are_those_of_steady_positions(device: torch.device) -> None:
    """A cache with room beyond the positions at which frequencies change: they stay those of shorter sequences."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    sizes = {"num_hidden_layers": 1, "max_position_embeddings": 10, "rope_parameters": rope}
    model = build(LlamaConfig(**(COMMON | sizes)), device)
    cache = PagedKV(layer_shapes(model, EngineSettings()), 1, device)
    at = torch.arange(10, device=device)
    tiles = torch.tensor([[0, i, i, 1] for i in range(10)], dtype=torch.int32, device=device)
    tables = torch.tensor([[1]], dtype=torch.int32, device=device)
    batch = Batch(torch.zeros_like(at), at, tables, 0, 0, 0, tiles)
    with torch.inference_mode():
        wanted = ModuleDecoder(model, EngineSettings(), cache).logits(at * 5, batch, None)
        found = FusedDecoder(model, cache, 16).logits(at * 5, batch, None)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
