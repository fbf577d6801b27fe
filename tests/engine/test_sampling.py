"""The processed distribution equals transformers', and samples follow it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.sampling import NOT_A_NUMBER, Sampler, penalize, truncate
from engine.sequence import Sequence
from engine.settings import SamplingSettings

CPU = torch.device("cpu")


def logits(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def reference(settings: SamplingSettings, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """transformers' processors, in the order of its generate."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        steps.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        steps.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        steps.append(MinPLogitsWarper(settings.min_p))
    return steps(ids, scores.clone()).softmax(-1)


@pytest.mark.parametrize("size", [40, 1000])
@pytest.mark.parametrize("temperature", [0.7, 4.0])
@pytest.mark.parametrize("top_k", [0, 1, 20, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.05])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_distribution_equals_transformers(
    size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    settings = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=1.3)
    scores = logits(16, size)
    ids = torch.randint(0, size, (16, 12), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(16, size, dtype=torch.bool).scatter_(1, ids, True)
    ours = truncate(penalize(scores, seen, 1.3) / temperature, settings).softmax(-1)
    theirs = reference(settings, ids, scores)
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_equally_likely_tokens_at_the_border_are_kept_together() -> None:
    scores = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    assert (truncate(scores.clone(), SamplingSettings(top_k=2)) > -9).sum() == 4
    assert (truncate(scores.clone(), SamplingSettings(top_p=0.5)) > -9).sum() == 4


def sampler(settings: SamplingSettings, rows: int, size: int) -> Sampler:
    made = Sampler(settings, rows=rows, vocabulary=size, device=CPU)
    made.admit([sequence(row, row) for row in range(rows)])
    return made


def sequence(row: int, occurrence: int) -> Sequence:
    return Sequence([0], np.array([2, 3]), 5, b"k" * 16, occurrence, row=row)


def test_samples_follow_the_distribution() -> None:
    """Chi-square over 20,000 draws: rows, and token indexes within a row, are independent draws."""
    size, rows, draws = 24, 1000, 20
    settings = SamplingSettings(temperature=1.5, top_p=0.95)
    scores = logits(1, size)
    want = truncate(scores / 1.5, settings).softmax(-1)[0].double()
    made = sampler(settings, rows, size)
    counts = torch.zeros(size, dtype=torch.int64)
    for index in range(draws):
        tokens = made.sample(scores.repeat(rows, 1), torch.arange(rows), torch.full((rows,), index))
        counts += tokens.bincount(minlength=size)
    assert counts[want == 0].sum() == 0
    held = want > 0
    statistic = ((counts[held] - want[held] * rows * draws) ** 2 / (want[held] * rows * draws)).sum()
    freedom = int(held.sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_a_draw_depends_on_its_own_row_only() -> None:
    settings = SamplingSettings(temperature=1.0, seed=3)
    scores = logits(8, 500)
    made = sampler(settings, 8, 500)
    whole = made.sample(scores.clone(), torch.arange(8), torch.arange(8))
    order = torch.tensor([6, 1, 4])
    assert torch.equal(made.sample(scores[order], order, order), whole[order])
    # Another row number, another batch: the stream follows the prompt and its occurrence.
    moved = Sampler(settings, rows=2, vocabulary=500, device=CPU)
    moved.admit([sequence(1, 6)])
    assert moved.sample(scores[6:7].clone(), torch.tensor([1]), torch.tensor([6])) == whole[6]


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"occurrence": 1}, {"key": b"other key 123456"}, {"index": 1}], ids=lambda c: next(iter(c))
)
def test_everything_that_names_a_draw_changes_it(change: dict[str, object]) -> None:
    def draw(seed: int = 3, occurrence: int = 0, key: bytes = b"k" * 16, index: int = 0) -> list[int]:
        made = Sampler(SamplingSettings(temperature=1.0, seed=seed), rows=1, vocabulary=50, device=CPU)
        made.admit([Sequence([0], np.array([1]), 5, key, occurrence, row=0)])
        flat = torch.zeros(1, 50)
        return [int(made.sample(flat.clone(), torch.tensor([0]), torch.tensor([index + 2 * i]))) for i in range(8)]

    assert draw(**change) != draw()  # type: ignore[arg-type]


def test_temperature_zero_takes_the_likeliest() -> None:
    scores = logits(5, 100)
    made = sampler(SamplingSettings(), 5, 100)
    assert torch.equal(made.sample(scores.clone(), torch.arange(5), torch.zeros(5).long()), scores.argmax(-1))


def test_the_penalty_covers_prompt_and_answer() -> None:
    made = sampler(SamplingSettings(repetition_penalty=2.0), 1, 6)
    scores = torch.tensor([[1.0, 0.9, 1.9, -0.1, 0.8, 1.2]])
    row, zero = torch.tensor([0]), torch.tensor([0])
    # The prompt is [2, 3]: 1.9 becomes 0.95; what was chosen is halved in turn.
    tokens = []
    for _ in range(3):
        token = made.sample(scores.clone(), row, zero)
        made.see(row, token)
        tokens.append(int(token))
    assert tokens == [5, 0, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_is_reported_for_its_row_only(temperature: float) -> None:
    scores = logits(4, 300)
    scores[2, 7] = float("nan")
    made = sampler(SamplingSettings(temperature=temperature, top_p=0.9, top_k=40), 4, 300)
    tokens = made.sample(scores, torch.arange(4), torch.zeros(4).long()).tolist()
    assert tokens[2] == NOT_A_NUMBER
    assert all(token >= 0 for i, token in enumerate(tokens) if i != 2)
