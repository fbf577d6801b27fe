"""Generation on a GPU against the same engine on CPU, with the bundled model and its sample."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from engine.generation import Generator
from engine.model import load_model
from engine.precision import quantize
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "data" / "models" / "messages-4m"
SYSTEM = "Give the intent and the sentiment of the message as JSON."
ROWS = [json.loads(line) for line in (ROOT / "data" / "sample" / "messages.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    texts = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{row['text']}<|im_end|>\n<|im_start|>assistant\n"
        for row in ROWS
    )
    return [tokenizer.encode(text).ids for text in texts]


def answers(
    prompts: list[list[int]],
    device: str,
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.0,
    graphs: bool = True,
    **engine_settings: Any,
) -> list[list[int]]:
    eos = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
    model = load_model(MODEL, dtype=dtype, device=torch.device(device))
    sampling = SamplingSettings(max_tokens=32, temperature=temperature, seed=3)
    stop_ids = [eos] if isinstance(eos, int) else eos
    gc.collect()  # the KV cache of the engine before this one
    torch.cuda.empty_cache()
    settings = EngineSettings(memory_fraction=0.2, **engine_settings)
    engine = Generator(model, sampling, settings, stop_ids=stop_ids, token_bytes=(), context_length=1024, graphs=graphs)
    done = run(engine, [Request(id=number, prompt=ids, max_tokens=32) for number, ids in enumerate(prompts)])
    by_id = {completion.id: completion.token_ids for completion in done}
    return [by_id[number] for number in range(len(prompts))]


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize("count", [1, 7, 64, 513])
def test_greedy_float32_equals_cpu(prompts: list[list[int]], count: int, shared: bool, graphs: bool) -> None:
    """Prompts with a common beginning, computed once, and prompts that differ from the first token on."""
    chosen = [[number % 500 + 300, *prompts[number % len(prompts)]] for number in range(count)]
    if shared:
        chosen = [[*prompts[number % len(prompts)], number % 500 + 300] for number in range(count)]
    assert answers(chosen, "cuda", graphs=graphs) == answers(chosen, "cpu")


@pytest.mark.parametrize("settings", [{"temperature": 0.8, "top_k": 20}, {"temperature": 1.0, "top_p": 0.9}])
def test_float32_samples_equal_those_on_cpu(prompts: list[list[int]], settings: dict[str, Any]) -> None:
    """But for tokens closer than the rounding of logarithms, which change the rest of an answer."""
    model_settings = SamplingSettings(max_tokens=16, seed=5, **settings)
    results = []
    for device in ("cuda", "cpu"):
        model = load_model(MODEL, dtype=torch.float32, device=torch.device(device))
        engine = Generator(
            model, model_settings, EngineSettings(memory_fraction=0.2), stop_ids=(), token_bytes=(), context_length=1024
        )  # fmt: skip
        done = run(engine, [Request(id=number, prompt=ids) for number, ids in enumerate(prompts[:64])])
        results.append({completion.id: completion.token_ids for completion in done})
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    same = sum(results[0][number] == results[1][number] for number in range(64))
    assert same >= 62


@pytest.mark.parametrize(("kv", "quantization"), [("fp8", "none"), ("auto", "fp8"), ("fp8", "fp8"), ("auto", "awq")])
def test_the_sample_survives_eight_bits(
    tokenizer: Tokenizer, prompts: list[list[int]], kv: str, quantization: str
) -> None:
    eos = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
    model = load_model(MODEL, dtype=torch.bfloat16, device=torch.device("cuda"))
    quantize(model, quantization)
    engine = Generator(
        model,
        SamplingSettings(max_tokens=32),
        EngineSettings(memory_fraction=0.2, kv_dtype=kv),
        stop_ids=[eos] if isinstance(eos, int) else eos,
        token_bytes=(),
        context_length=1024,
    )
    done = run(engine, [Request(id=number, prompt=ids) for number, ids in enumerate(prompts)])
    made = {completion.id: tokenizer.decode(completion.token_ids) for completion in done}
    right = sum(made[number] == row["expected"] for number, row in enumerate(ROWS))
    assert right / len(ROWS) >= (0.85 if quantization == "awq" else 0.92)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_sample_is_answered_right(tokenizer: Tokenizer, prompts: list[list[int]], dtype: torch.dtype) -> None:
    made = [tokenizer.decode(ids) for ids in answers(prompts, "cuda", dtype)]
    right = sum(answer == row["expected"] for answer, row in zip(made, ROWS, strict=True))
    assert right / len(ROWS) >= 0.94


def test_samples_do_not_depend_on_neighbours(prompts: list[list[int]]) -> None:
    together = answers(prompts[:64], "cuda", temperature=1.0)
    alone = [answers([ids], "cuda", temperature=1.0)[0] for ids in prompts[:4]]
    assert together[:4] == alone
