"""Logits on a GPU in low precision against transformers in float32 on CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.cuda.batch import Batch
from engine.cuda.recipe import decoder
from engine.kv_memory import layer_shapes
from engine.model import load_model
from engine.paged import BLOCK, PagedKV
from engine.precision import quantize
from engine.settings import EngineSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MODEL = Path(__file__).parent.parent.parent / "data" / "models" / "messages-4m"
CUDA = torch.device("cuda")
TOKENS = 150

# Norm of the difference of the logits, relative to their norm.
TOLERANCE = {
    ("float32", "auto", "none"): 1e-4,
    ("float16", "auto", "none"): 5e-3,
    ("bfloat16", "auto", "none"): 3e-2,
    ("bfloat16", "fp8", "none"): 5e-2,
    ("bfloat16", "auto", "fp8"): 0.12,
    ("bfloat16", "fp8", "fp8"): 0.12,
}


@pytest.mark.parametrize(("dtype", "kv", "quantization"), list(TOLERANCE))
def test_logits_are_those_of_transformers(dtype: str, kv: str, quantization: str) -> None:
    """A prompt in two chunks, the second behind the first's keys, then single tokens behind both."""
    ids = torch.arange(TOKENS) * 7 % 1000 + 5
    reference = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = reference(input_ids=ids[None]).logits[0]
    model = load_model(MODEL, dtype=getattr(torch, dtype), device=CUDA)
    quantize(model, quantization)
    settings = EngineSettings(kv_dtype=kv)  # type: ignore[arg-type]
    blocks = -(-TOKENS // BLOCK)
    cache = PagedKV(layer_shapes(model, settings), blocks, CUDA)
    forward = decoder(model, settings, cache, TOKENS)
    tables = (torch.randperm(blocks, device=CUDA) + 1).int()[None]
    found = []
    with torch.inference_mode():
        for start, stop in ((0, 37), (37, 140)):
            tiles = torch.tensor([[0, at - start, at, 1] for at in range(start, stop)], dtype=torch.int32, device=CUDA)
            at = torch.arange(start, stop, device=CUDA)
            batch = Batch(torch.zeros_like(at), at, tables, 0, 0, 0, tiles)
            found.append(forward.logits(ids[start:stop].to(CUDA), batch, None))
        for position in range(140, TOKENS):
            at = torch.tensor([position], device=CUDA)
            batch = Batch(torch.zeros_like(at), at, tables, 1, 64, 4)
            found.append(forward.logits(ids[position : position + 1].to(CUDA), batch, None))
    error = (torch.cat(found).float().cpu() - wanted).norm() / wanted.norm()
    assert error < TOLERANCE[dtype, kv, quantization]
