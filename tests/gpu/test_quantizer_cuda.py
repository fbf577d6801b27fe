"""Quantizing on a GPU: as good as on a CPU, with no more of its memory than a layer needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from engine.model import load_model
from engine.quantizer import Quantizer
from engine.random_model import build_random_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MODEL = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def rows(vocabulary: int, count: int = 16) -> list[np.ndarray]:
    """Calibration rows of unequal lengths."""
    generator = np.random.default_rng(4)
    return [generator.integers(3, vocabulary, generator.integers(20, 200)) for _ in range(count)]


@pytest.mark.parametrize(("method", "bits"), [("awq", 4), ("fp8", 8), ("int8", 8)])
def test_errors_are_those_of_a_cpu(method: str, bits: int, tmp_path: Path) -> None:
    """bfloat16 products find other scales than float32 ones here and there, and scales as good."""
    options: dict[str, Any] = {"calibration": rows(3072), "quant_method": method, "bits": bits}
    found, wanted = (
        Quantizer(MODEL, output=tmp_path / device.type, device=device, **options).apply() for device in (CUDA, CPU)
    )
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert one.folds == other.folds
        assert one.error_after is not None
        assert other.error_after is not None
        # The hidden states themselves are rounded to bfloat16, and are larger than what a layer adds to them.
        assert one.error_after == pytest.approx(other.error_after, rel=0.1, abs=0.02)
    load_model(tmp_path / "cuda", dtype=torch.bfloat16, device=CUDA)


def test_memory_is_that_of_a_layer(tmp_path: Path) -> None:
    """16 layers of 90 MB in bfloat16, whose search holds a layer several times over, though never the model."""
    config = LlamaConfig(vocab_size=1000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=16)
    config.num_attention_heads = config.num_key_value_heads = 16
    config.head_dim = 128
    build_random_model(config, dtype=torch.bfloat16, device=CUDA).save_pretrained(tmp_path / "model")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    report = Quantizer(tmp_path / "model", calibration=rows(1000), output=tmp_path / "out", search_steps=2).apply()
    assert report.bytes_before > 1.4e9
    assert torch.cuda.max_memory_allocated() - before < report.bytes_before / 2
