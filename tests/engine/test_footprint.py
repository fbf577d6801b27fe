"""When int4 weights fit unpacked, with made-up memories."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from engine.footprint import fits_unpacked, growth, working_bytes
from engine.int4_linear import Int4Linear
from engine.kv_memory import layer_shapes
from engine.precision import quantize
from engine.settings import EngineSettings

GIB = 1 << 30
SETTINGS = EngineSettings(memory_fraction=0.5, max_batch_tokens=64)


@pytest.fixture
def model() -> PreTrainedModel:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 99}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "overnight"}
    made: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**shape, **heads))
    made.eval().requires_grad_(False)
    quantize(made, "awq-dtype", lambda *_: False)
    return made


def test_growth_is_what_unpacking_adds(model: PreTrainedModel) -> None:
    layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
    assert len(layers) == 2 * 7
    weights = sum(layer.out_features * layer.in_features for layer in layers)
    before = sum(buffer.nbytes for layer in layers for buffer in layer.buffers())
    assert growth(model, 1) == weights - before
    assert growth(model, 2) == 2 * weights - before


def test_kv_counts_where_it_is_kept(model: PreTrainedModel) -> None:
    position = sum(shape.bytes for shape in layer_shapes(model, SETTINGS).values())
    assert working_bytes(model, SETTINGS, 100) - working_bytes(model, SETTINGS, 0) == 100 * position
    assert working_bytes(model, SETTINGS, 0) >= 64 * 4 * (128 + 256)


def test_on_cpu_they_always_fit(model: PreTrainedModel) -> None:
    assert fits_unpacked(model, 1 << 40, SETTINGS, 1 << 40)


@pytest.mark.parametrize(
    ("others", "deterministic", "itemsize", "wanted"),
    [
        (0, False, 1, True),
        (30 * GIB, False, 1, True),
        (40 * GIB, False, 1, False),
        (40 * GIB, True, 1, True),  # batches that must be repeatable get the same memory whatever others hold
        (0, False, 1 << 20, False),
    ],
)
def test_half_of_a_hundred_gigabytes(
    others: int,
    deterministic: bool,
    itemsize: int,
    wanted: bool,
    model: PreTrainedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten are taken by the model as it was loaded, two more reserved."""
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 12 * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (88 * GIB - others, 100 * GIB))
    settings = SETTINGS.model_copy(update={"deterministic": deterministic})
    assert fits_unpacked(model, itemsize, settings, 0) is wanted
