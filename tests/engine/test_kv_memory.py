"""What layers store, and how many blocks a CPU worker gets: a function of model and settings alone."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from engine.kv_memory import kv_blocks, layer_shapes
from engine.paged import BLOCK, LayerShape
from engine.settings import EngineSettings

SETTINGS = EngineSettings()


def test_shapes_follow_the_architecture(models: dict[str, PreTrainedModel]) -> None:
    shapes = {name: layer_shapes(model, SETTINGS) for name, model in models.items()}
    assert all(list(layers) == [0, 1, 2] for layers in shapes.values())
    assert shapes["qwen3"][0] == LayerShape(2, 24, 24, torch.float32)
    assert shapes["llama"][2] == LayerShape(4, 16, 16, torch.float32)
    eight = layer_shapes(models["llama"], EngineSettings(kv_dtype="fp8"))[2]
    assert eight.bytes - 2 * 4 * eight.heads == shapes["llama"][2].bytes // 4  # a scale of float32 each


def test_the_cpu_budget_is_bounded(models: dict[str, PreTrainedModel]) -> None:
    layers = layer_shapes(models["qwen2"], SETTINGS)
    blocks = kv_blocks(layers, 256)
    assert blocks * BLOCK >= 256
    assert blocks * BLOCK * sum(shape.bytes for shape in layers.values()) <= 1 << 30


def test_a_long_context_gets_room_for_one_sequence() -> None:
    layers = {i: LayerShape(64, 128, 128, torch.float32) for i in range(16)}
    context = 3 << 10
    assert kv_blocks(layers, context) * BLOCK >= context
