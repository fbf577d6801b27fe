"""Generation goes on when the GPU's memory runs out: the same answers from smaller steps, with and without graphs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from engine.generation import Generator
from engine.model import load_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings
from tests.gpu.test_generation_cuda import MODEL, prompts, tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

__all__ = ["prompts", "tokenizer"]  # fixtures


def generator(folder: Path, *, graphs: bool) -> Generator:
    """It forgets what it did, so that every turn computes the same."""
    gc.collect()  # the KV cache of the engine before this one
    torch.cuda.empty_cache()
    return Generator(
        load_model(folder, dtype=torch.float32, device=torch.device("cuda")),
        SamplingSettings(max_tokens=8),
        EngineSettings(memory_fraction=0.2, max_batch_tokens=32768, deterministic=True),
        stop_ids=(),
        token_bytes=(),
        context_length=1024,
        graphs=graphs,
    )


def answers(engine: Generator, texts: list[list[int]]) -> list[list[int]]:
    done = {completion.id: completion for completion in run(engine, [Request(i, ids) for i, ids in enumerate(texts)])}
    assert sorted(done) == list(range(len(texts)))
    assert all(completion.error is None for completion in done.values())
    return [done[i].token_ids for i in range(len(texts))]


@contextmanager
def at_most(extra: int) -> Iterator[None]:
    """torch may hold so many bytes more than it does now."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("share", [2, 4])
def test_answers_are_the_same_with_a_part_of_the_memory(prompts: list[list[int]], graphs: bool, share: int) -> None:
    texts = [prompts[i] + prompts[(i + turn) % len(prompts)] for turn in range(4) for i in range(len(prompts))]
    engine = generator(MODEL, graphs=graphs)
    engine._runner.release()
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    plain = answers(engine, texts)
    need = torch.cuda.max_memory_allocated() - base
    assert engine.statistics()["out_of_memory"] == 0
    engine._runner.release()
    with at_most(need // share):
        crowded = answers(engine, texts)
    assert engine.statistics()["out_of_memory"] > 0
    # Other sums are rounded otherwise: a choice between two equally likely tokens may differ.
    assert sum(a == b for a, b in zip(plain, crowded, strict=True)) >= 0.99 * len(texts)
    assert answers(engine, texts) == plain
