"""Answers of sequences that were sent to the host and came back are the same as of those that stayed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from engine.blocks import BlockPool
from engine.generation import Generator
from engine.lengths import AnswerLengths
from engine.paged import BLOCK, NULL_BLOCK, LayerShape, PagedKV
from engine.request import Request, run
from engine.scheduler import Scheduler
from engine.settings import EngineSettings, SamplingSettings
from tests.engine.conftest import CONTEXT, VOCABULARY


def crowded(model: PreTrainedModel, *, blocks: int, ahead: int, **sampling: object) -> Generator:
    """A generator that expects answers of two tokens, and so admits too many for its few blocks."""
    engine = Generator(
        model,
        SamplingSettings(**sampling),  # type: ignore[arg-type]
        EngineSettings(deterministic=False),
        stop_ids=(),
        token_bytes=(),
        context_length=CONTEXT,
    )
    lengths = AnswerLengths()
    for _ in range(2000):
        lengths.observe(2, ended=True)
    pool = BlockPool(blocks, BLOCK, NULL_BLOCK + 1)
    engine._scheduler = Scheduler(pool, max_rows=64, max_batch_tokens=256, lengths=lengths)
    engine._ahead = ahead
    return engine


def prompts() -> list[list[int]]:
    """Eight of their own, and four with a common beginning of three blocks."""
    numbers = np.random.default_rng(0)

    def text(low: int, high: int) -> list[int]:
        return list(numbers.integers(0, VOCABULARY, numbers.integers(low, high + 1)).tolist())

    stem = text(50, 50)
    return [text(1, 40) for _ in range(8)] + [stem + text(1, 9) for _ in range(4)]


def answers(engine: Generator, max_tokens: int) -> dict[int, list[int]]:
    requests = [Request(i, text, max_tokens) for i, text in enumerate(prompts())]
    return {completion.id: completion.token_ids for completion in run(engine, requests)}


def test_greedy_answers_equal_generate(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]
) -> None:
    found = {}
    for ahead in (0, 1):
        engine = crowded(models["qwen2"], blocks=20, ahead=ahead)
        found[ahead] = answers(engine, 80)
        assert engine.statistics()["swaps"] >= 4
        assert engine.statistics()["shared_tokens"] > 0
    for i, text in enumerate(prompts()):
        ids = torch.tensor([text])
        out = references["qwen2"].generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False, pad_token_id=0
        )
        assert found[0][i] == found[1][i] == out[0, len(text) :].tolist(), i


def test_samples_and_penalties_go_on_where_they_stopped(models: dict[str, PreTrainedModel]) -> None:
    """What a row keeps beside its KV, the tokens seen and the random stream, survives."""
    sampling = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.3, "seed": 3}
    small = crowded(models["llama"], blocks=16, ahead=1, **sampling)
    large = crowded(models["llama"], blocks=400, ahead=1, **sampling)
    assert answers(small, 90) == answers(large, 90)
    assert small.statistics()["swaps"] > 0
    assert large.statistics()["swaps"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_saved_blocks_are_read_the_same_elsewhere(dtype: torch.dtype) -> None:
    kv = PagedKV({0: LayerShape(2, 8, 4, dtype), 3: LayerShape(1, 8, 8, dtype)}, 9, torch.device("cpu"))
    lines = torch.arange(BLOCK, 5 * BLOCK)
    for layer, shape in kv.layers.items():
        kv.write(
            layer, lines, torch.randn(shape.heads, 64, shape.key_size), torch.randn(shape.heads, 64, shape.value_size)
        )
    before = {layer: kv.read(layer, torch.tensor([3, 2]), torch.float32) for layer in kv.layers}
    saved = kv.save([1, 3, 2])
    kv.clear([1, 2, 3])
    kv.restore([7, 5], [part[1:] for part in saved])
    for layer, (k, v) in before.items():
        after = kv.read(layer, torch.tensor([7, 5]), torch.float32)
        assert torch.equal(after[0], k)
        assert torch.equal(after[1], v)
        assert k.abs().min() > 0
