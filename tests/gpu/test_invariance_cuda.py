"""Batch-invariant mode on a GPU: the text of a row does not depend on the rows beside it, to the last bit."""

from __future__ import annotations

import gc
from collections.abc import Sequence as Seq
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen3Config

from engine.cuda.product import TILES, product
from engine.fp8 import product as library_product
from engine.fp8 import round_rows
from engine.generation import Generator
from engine.precision import quantize
from engine.random_model import build_random_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

# Large enough that the library divides long sums of small batches among processors.
SIZES = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2, "vocab_size": 5000,
    "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {"qwen2": Qwen2Config(**SIZES), "qwen3": Qwen3Config(**SIZES, head_dim=128)}
CUDA = torch.device("cuda")


def prompts() -> list[list[int]]:
    """513 of different lengths, of which every third begins like others."""
    random = np.random.default_rng(4)
    stem = random.integers(0, 5000, 300).tolist()
    made = []
    for number in range(513):
        own = random.integers(0, 5000, random.integers(1, 700)).tolist()
        made.append(stem[: 37 * (number % 8)] + own if number % 3 == 0 else own)
    return made


PROMPTS = prompts()


def answers(
    architecture: str,
    batches: Seq[Seq[int]],
    deterministic: bool | Literal["batch-invariant"] = "batch-invariant",
    *,
    quantization: str = "none",
    kv_dtype: Literal["auto", "fp8"] = "auto",
    budget: int = 8192,
    graphs: bool = True,
) -> dict[int, list[int]]:
    """The tokens of the prompts with these numbers, given to one engine batch by batch."""
    torch.manual_seed(5)
    model = build_random_model(CONFIGS[architecture], dtype=torch.bfloat16, device=CUDA)
    quantize(model, quantization)
    gc.collect()
    torch.cuda.empty_cache()
    settings = EngineSettings(
        deterministic=deterministic, kv_dtype=kv_dtype, max_batch_tokens=budget, memory_fraction=0.3
    )
    engine = Generator(
        model,
        SamplingSettings(max_tokens=64),
        settings,
        stop_ids=(),
        token_bytes=(),
        context_length=2048,
        graphs=graphs,
    )
    found = {}
    for batch in batches:
        requests = [Request(id=n, prompt=PROMPTS[n], max_tokens=16 + n % 48) for n in batch]
        found |= {done.id: done.token_ids for done in run(engine, requests)}
    return found


@pytest.mark.parametrize("kv_dtype", ["auto", "fp8"])
@pytest.mark.parametrize("quantization", ["none", "fp8"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_text_is_the_same_in_any_batch(architecture: str, quantization: str, kv_dtype: Literal["auto", "fp8"]) -> None:
    forms = {"quantization": quantization, "kv_dtype": kv_dtype}
    numbers = list(range(len(PROMPTS)))
    whole = answers(architecture, [numbers], **forms)  # type: ignore[arg-type]
    few = numbers[:40]
    alone = answers(architecture, [[number] for number in few], **forms)  # type: ignore[arg-type]
    assert alone == {number: whole[number] for number in few}
    sevens = [numbers[start : start + 7] for start in range(0, 140, 7)]
    assert answers(architecture, sevens, graphs=False, **forms) == {n: whole[n] for n in numbers[:140]}  # type: ignore[arg-type]
    # In chunks of prompts that end elsewhere, behind others.
    assert answers(architecture, [numbers[::-1]], budget=500, **forms) == whole  # type: ignore[arg-type]


def test_batches_are_what_would_make_a_difference() -> None:
    numbers = list(range(len(PROMPTS)))
    sevens = [numbers[start : start + 7] for start in range(0, len(numbers), 7)]
    assert answers("qwen2", sevens, False) != answers("qwen2", [numbers[::-1]], False, budget=500)


@pytest.mark.parametrize("eight", [False, True], ids=["bf16", "fp8"])
def test_every_tile_adds_alike(monkeypatch: pytest.MonkeyPatch, eight: bool) -> None:
    torch.manual_seed(7)
    x, weight = (torch.randn(rows, 1024, device=CUDA, dtype=torch.bfloat16) for rows in (300, 768))
    found = []
    for tile in TILES[1 if eight else 2]:
        monkeypatch.setitem(TILES, 1 if eight else 2, (tile, tile))
        if eight:
            rounded = round_rows(weight)
            found.append(product(round_rows(x), rounded.values, rounded.scales, None, torch.bfloat16))
        else:
            found.append(product(x, weight, None, None, torch.float32))
    assert torch.equal(*found)


def test_products_in_8_bits_are_the_librarys() -> None:
    torch.manual_seed(6)
    x, weight = (round_rows(torch.randn(rows, 1024, device=CUDA)) for rows in (300, 768))
    bias = torch.randn(768, device=CUDA, dtype=torch.bfloat16)
    found = product(x, weight.values, weight.scales, bias, torch.bfloat16)
    wanted = library_product(x, weight, bias, torch.bfloat16)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-1)
