"""What model.quantization does to a loaded model."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from engine import int4
from engine.fp8 import Fp8Linear
from engine.int4_linear import Int4Linear
from engine.precision import GROUP, quantize

IDS = torch.arange(24)[None] * 5 % 99


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(4)
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99}
    made: PreTrainedModel = AutoModelForCausalLM.from_config(LlamaConfig(**shape, **heads, initializer_range=0.1))
    return made.eval().requires_grad_(False)


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def test_none_changes_nothing(model: PreTrainedModel) -> None:
    before = logits(model)
    assert quantize(model, "none") == "float32"
    assert torch.equal(logits(model), before)


def test_fp8_takes_a_quarter_of_the_memory_and_stays_near(model: PreTrainedModel) -> None:
    before, head = logits(model), model.lm_head
    assert quantize(model, "fp8") == "fp8 weights and activations"
    layers = [module for module in model.modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == 2 * 7
    assert all(layer.weight.nbytes == layer.weight.numel() for layer in layers)
    assert model.lm_head is head
    error = (logits(model) - before).norm() / before.norm()
    assert 0 < error < 0.2


def test_awq_rounds_weights_to_sixteen_steps_a_group(model: PreTrainedModel) -> None:
    """The projections down from 192 inputs are no whole groups and stay, which is told."""
    weight = model.model.layers[0].self_attn.q_proj.weight.clone()
    rounded = int4.decode(*int4.encode(weight, GROUP), weight.dtype)
    shown = quantize(model, "awq")
    assert "in 12 of 14 layers" in shown
    layer = model.model.layers[0].self_attn.q_proj
    kept = layer.weight.float() * layer.scale
    assert (kept - rounded).norm() / rounded.norm() < 0.04
    assert (kept - weight).norm() / weight.norm() > 0.05


@pytest.mark.parametrize(
    ("method", "shown", "itemsize"),
    [
        ("awq-fp8", "weights rounded to int4 in groups of 128 in 12 of 14 layers, kept in 4 bits, computed in fp8", 1),
        (
            "awq-dtype",
            "weights rounded to int4 in groups of 128 in 12 of 14 layers, kept in 4 bits, computed in float32",
            4,
        ),
    ],
)
def test_kept_in_four_bits_the_answers_are_the_same(
    method: str, shown: str, itemsize: int, model: PreTrainedModel
) -> None:
    asked = []

    def fits(loaded: PreTrainedModel, size: int) -> bool:
        asked.append((loaded, size))
        return False

    unpacked = deepcopy(model)
    assert ", kept in 4 bits" not in quantize(unpacked, method, lambda *_: True)
    assert not any(isinstance(module, Int4Linear) for module in unpacked.modules())
    assert quantize(model, method, fits) == shown
    assert asked == [(model, itemsize)]
    # Of the MLP, whose projection down stayed as it was, neighbours are alike again.
    kept = {name.rsplit(".", 1)[1] for name, module in model.named_modules() if isinstance(module, Int4Linear)}
    assert kept == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert torch.equal(logits(model), logits(unpacked))


def test_what_has_no_int4_layers_is_not_asked_about(model: PreTrainedModel) -> None:
    def fits(loaded: PreTrainedModel, size: int) -> bool:
        raise AssertionError(loaded, size)

    assert quantize(model, "fp8", fits) == "fp8 weights and activations"
