"""Weights kept in 4 bits on a GPU: the answers of unpacked ones, in a quarter of bfloat16's memory."""

from __future__ import annotations

import gc
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig

from engine import int4
from engine.cuda.projection import Projection
from engine.cuda.recipe import choose
from engine.footprint import fits_unpacked
from engine.fp8 import round_rows
from engine.generation import Generator
from engine.int4_linear import Int4Linear
from engine.model import load_model
from engine.precision import quantize
from engine.random_model import build_random_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "data" / "models" / "messages-4m"
CUDA = torch.device("cuda")


def layers(outputs: list[int], inputs: int, dtype: torch.dtype) -> list[Int4Linear]:
    """Layers of one input, the first with a bias."""
    made = []
    for number, count in enumerate(outputs):
        plain = torch.nn.Linear(inputs, count, bias=number == 0, device=CUDA, dtype=dtype).requires_grad_(False)
        made.append(Int4Linear.of(plain, 128))
    return made


@pytest.mark.parametrize("tokens", [1, 7, 64, 333])
@pytest.mark.parametrize("fp8", [True, False])
def test_fused_products_are_those_of_the_unpacked_layers(tokens: int, fp8: bool) -> None:
    parts = layers([512, 128, 128], 384, torch.bfloat16)
    x = torch.randn(tokens, 384, device=CUDA, dtype=torch.bfloat16)
    decoded = torch.cat([int4.unpack_pairs(part.pairs, part.steps, part.zeros, torch.float32) for part in parts])
    wanted = x.float() @ decoded.t()
    wanted[:, :512] += parts[0].bias.float()
    if fp8:
        for part in parts:
            part.to_fp8()
    unpacked = Projection([part.unpacked(torch.bfloat16) for part in parts], torch.bfloat16)
    packed = Projection(parts, torch.bfloat16)
    assert packed.quantized is unpacked.quantized is fp8
    given = round_rows(x) if fp8 else x
    found = packed(given)
    assert torch.equal(found, unpacked(given))
    assert (found.float() - wanted).norm() / wanted.norm() < (0.06 if fp8 else 0.01)
    alone = torch.cat([part(x) for part in parts], 1)  # on views of the fused weights
    assert (alone.float() - wanted).norm() / wanted.norm() < (0.06 if fp8 else 0.01)


def test_no_tokens_give_no_outputs() -> None:
    (part,) = layers([128], 256, torch.bfloat16)
    part.to_fp8()
    assert part(torch.empty(0, 256, device=CUDA, dtype=torch.bfloat16)).shape == (0, 128)


@pytest.mark.parametrize("method", ["awq-fp8", "awq-dtype"])
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_answers_are_those_of_unpacked_weights(method: str, graphs: bool) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    rows = [json.loads(line) for line in (ROOT / "data/sample/messages.jsonl").read_text("utf-8").splitlines()]
    prompts = [tokenizer.encode(row["text"]).ids for row in rows]
    answers = []
    for fits in (True, False):
        model = load_model(MODEL, dtype=torch.bfloat16, device=CUDA)
        shown = quantize(model, method, lambda *_, fits=fits: fits)
        assert ("kept in 4 bits" in shown) is not fits
        gc.collect()
        torch.cuda.empty_cache()
        settings = EngineSettings(memory_fraction=0.2, deterministic=True)
        engine = Generator(
            model, SamplingSettings(), settings, stop_ids=(), token_bytes=(), context_length=1024, graphs=graphs
        )
        assert choose(model, settings)
        done = run(engine, [Request(id=number, prompt=ids, max_tokens=24) for number, ids in enumerate(prompts)])
        answers.append({completion.id: completion.token_ids for completion in done})
        del engine
    assert answers[0] == answers[1]


def test_memory_decides() -> None:
    """Two GB in bfloat16: they are packed where half of that, beside KV, is too much."""
    shape = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 5, "vocab_size": 1024}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 4096}
    total = torch.cuda.get_device_properties(CUDA).total_memory
    sizes = {}
    for room in (0.5e9, 40e9):
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        model = build_random_model(LlamaConfig(**shape, **heads), dtype=torch.bfloat16, device=CUDA)
        settings = EngineSettings(memory_fraction=min(1.0, room / total), max_batch_tokens=256, deterministic=True)
        shown = quantize(model, "awq", partial(fits_unpacked, settings=settings, positions=0))
        assert ("kept in 4 bits" in shown) is (room < 1e9)
        sizes[room] = torch.cuda.memory_allocated() - before
        del model
    assert sizes[0.5e9] < 0.6 * sizes[40e9]
