"""The bundled model quantized: how many of the sample's answers it keeps, and its perplexity on them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import PreTrainedModel

from engine.model import load_model
from engine.quantizer import Quantizer
from engine.sample_examples import MESSAGE, Example, collate, encode, read
from engine.sample_training import wrong

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "messages-4m"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """The sample's rows."""
    return encode(Tokenizer.from_file(str(MODEL / "tokenizer.json")), read(ROOT / "data" / "sample" / "messages.jsonl"))


def _loaded(folder: Path) -> PreTrainedModel:
    model = load_model(folder, dtype=torch.float32, device=CPU)
    model.set_attn_implementation("sdpa")
    return model


@torch.no_grad()
def _perplexity(model: PreTrainedModel, examples: list[Example]) -> float:
    """Of the messages and the answers; the instruction around them is always the same."""
    total, count = 0.0, 0
    for start in range(0, len(examples), 60):
        ids, parts = collate(examples[start : start + 60])
        logits = model(input_ids=ids).logits[:, :-1].float()
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        chosen = parts[:, 1:].flatten() >= MESSAGE
        total, count = total + losses[chosen].sum().item(), count + int(chosen.sum())
    return math.exp(total / count)


@pytest.mark.parametrize(("method", "bits", "answers", "rise"), [("awq", 4, 0.98, 1.08), ("fp8", 8, 0.995, 1.02)])
def test_the_bundled_model_keeps_its_answers(
    method: str, bits: int, answers: float, rise: float, examples: list[Example], tmp_path: Path
) -> None:
    """Calibrated by the sample's first 32 rows, counted on the others."""
    rows, examples = [np.array(example.ids) for example in examples[:32]], examples[32:]
    report = Quantizer(MODEL, method, bits, 128, calibration=rows, output=tmp_path / "out", device=CPU).apply()
    assert report.linear_bytes_after <= (0.27 if bits == 4 else 0.51) * report.linear_bytes_before
    assert all((layer.error_after or 1) <= (layer.error_before or 0) for layer in report.layers)
    exact, quantized = _loaded(MODEL), _loaded(tmp_path / "out")
    right = [len(examples) - len(wrong(model, examples, CPU)) for model in (exact, quantized)]
    perplexities = [_perplexity(model, examples) for model in (exact, quantized)]
    print(method, right, perplexities)
    assert right[1] >= answers * right[0]
    assert perplexities[1] <= rise * perplexities[0]
