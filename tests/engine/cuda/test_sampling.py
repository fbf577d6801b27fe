"""The fused sampler draws what the reference draws, and follows the distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.cuda.sampling import draw
from engine.sampling import Sampler
from engine.sequence import Sequence
from engine.settings import SamplingSettings

ROWS, VOCABULARY = 6, 4200

SETTINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.7},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.6},
    {"temperature": 1.3, "top_k": 50, "top_p": 0.8},
    {"temperature": 2.0, "min_p": 0.2},
    {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3},
]


def prepared(settings: SamplingSettings, device: torch.device) -> Sampler:
    """A sampler with sequences of different streams and prompts in its rows."""
    sampler = Sampler(settings, rows=ROWS + 1, vocabulary=VOCABULARY, device=device)
    sequences = []
    for row in range(ROWS):
        sequence = Sequence([row], np.arange(row, VOCABULARY, 7), 10, bytes([row] * 16))
        sequence.row = row
        sequences.append(sequence)
    sampler.admit(sequences)
    return sampler


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_the_same_tokens_as_the_reference(options: dict[str, float], device: torch.device) -> None:
    settings = SamplingSettings(seed=11, **options)  # type: ignore[arg-type]
    reference, fused = prepared(settings, torch.device("cpu")), prepared(settings, device)
    rows = torch.tensor([3, 0, 5, 1])
    index = torch.tensor([0, 4, 9, 70])
    same = total = 0
    for turn in range(2):
        logits = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(turn)) * 3
        wanted = reference.sample(logits.clone(), rows, index + turn)
        found = draw(
            logits.to(device), settings, fused.streams, fused.seen, rows.to(device), (index + turn).to(device)
        ).cpu()  # fmt: skip
        reference.see(rows, wanted)
        fused.see(rows.to(device), wanted.to(device))
        same += int((wanted == found).sum())
        total += len(rows)
    # Sums of shares are added up in another order, so a token at the very edge may fall on either side.
    assert same >= total - (1 if settings.top_p < 1 else 0)


def test_nan_is_told(device: torch.device) -> None:
    settings = SamplingSettings(temperature=1.0, top_p=0.5)
    sampler = prepared(settings, device)
    logits = torch.randn(2, VOCABULARY, device=device)
    logits[1, 4150] = math.nan
    rows = torch.tensor([0, 1], device=device)
    tokens = draw(logits, settings, sampler.streams, sampler.seen, rows, rows)
    assert tokens[0] >= 0
    assert tokens[1] == -1
