"""Batch-invariant mode on CPU: the text of a row does not depend on the rows beside it."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config

from engine.generation import Generator
from engine.random_model import build_random_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings
from tests.engine.test_generation import prompts

PROMPTS = [[1, 2, 3, *prompt] for prompt in prompts(14, 20, 60)]  # with a beginning that could be shared


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """One whose tokens come in pairs that are about equally likely, so that rounding chooses."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 2000}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    made = build_random_model(config, dtype=torch.float32, device=torch.device("cpu"))
    weight = made.lm_head.weight.data
    weight[1::2] = weight[::2] * (1 + torch.randn(weight[::2].shape) * 2e-8)
    return made


def answers(
    model: PreTrainedModel, batches: Seq[Seq[int]], deterministic: bool | Literal["batch-invariant"]
) -> dict[int, list[int]]:
    """The tokens of the prompts with these numbers, given to one engine batch by batch."""
    engine = Generator(
        model,
        SamplingSettings(max_tokens=24),
        EngineSettings(deterministic=deterministic),
        stop_ids=(),
        token_bytes=(),
        context_length=256,
    )
    found = {}
    for batch in batches:
        found |= {done.id: done.token_ids for done in run(engine, [Request(id=n, prompt=PROMPTS[n]) for n in batch])}
    return found


def test_text_is_the_same_in_any_batch(model: PreTrainedModel) -> None:
    numbers = range(len(PROMPTS))
    alone = answers(model, [[number] for number in numbers], "batch-invariant")
    assert answers(model, [numbers], "batch-invariant") == alone
    assert answers(model, [numbers[::-1][:7], numbers[::3], numbers], "batch-invariant") == alone
    # Batches are what would make a difference.
    assert answers(model, [numbers], True) != alone
