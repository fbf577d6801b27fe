"""On CUDA the flash kernels answer as float32 attention does, for stems, tries, windows and unequal lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from engine.classify import Classifier
from engine.cuda.recipe import fused_trunk
from engine.embed import Embedder
from engine.fp8 import to_fp8
from engine.model import load_model
from engine.packed import PackedAttention
from engine.packing import Pack, pack
from engine.request import Request, run
from engine.score import Scorer
from engine.settings import EngineSettings
from engine.trie import Trie
from engine.trunk import ModuleTrunk

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TRIE = Trie.of([[3, 4, 5], [3, 4], [3, 6], [7]])
CUDA = torch.device("cuda")


def _prompts(common: int) -> list[np.ndarray]:
    random = np.random.default_rng(common)
    beginning = random.integers(1, 90, common)
    lengths = (1, 2, 9, 9, 30, 130, 300)
    return [np.append(beginning, random.integers(1, 90, length)).astype(np.int64) for length in lengths]


def _attention(made: Pack, device: torch.device, inputs: tuple[Tensor, Tensor, Tensor], **options: Any) -> Tensor:
    q, k, v = (x.to(device).transpose(0, 1) for x in inputs)
    return PackedAttention(made, device).attend(0, q, k, v, scale=0.2, **options).float().cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("window", [None, 1, 8, 100])
@pytest.mark.parametrize("trie", [None, TRIE], ids=["plain", "trie"])
@pytest.mark.parametrize("common", [0, 200])
def test_causal_attention_equals_float32_on_cpu(
    dtype: torch.dtype, window: int | None, trie: Trie | None, common: int
) -> None:
    (made,) = pack(_prompts(common), 10_000, trie=trie, share=True)
    assert (made.stem > 0) == (common > 0)
    inputs = tuple(torch.randn(made.tokens, heads, 64).to(dtype) for heads in (8, 2, 2))
    expected = _attention(made, torch.device("cpu"), tuple(x.float() for x in inputs), causal=True, window=window)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        _attention(made, CUDA, inputs, causal=True, window=window), expected, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("window", [None, 1, 8, 100])
def test_bidirectional_attention_equals_float32_on_cpu(window: int | None) -> None:
    (made,) = pack(_prompts(0), 10_000)
    inputs = tuple(torch.randn(made.tokens, 4, 32).to(torch.bfloat16) for _ in range(3))
    expected = _attention(made, torch.device("cpu"), tuple(x.float() for x in inputs), causal=False, window=window)
    torch.testing.assert_close(
        _attention(made, CUDA, inputs, causal=False, window=window), expected, atol=2e-2, rtol=2e-2
    )


@pytest.mark.parametrize(("dtype", "amp"), [("float32", False), ("float32", True), ("bfloat16", False)])
def test_engines_answer_as_on_cpu(tmp_path: Path, dtype: str, amp: bool) -> None:
    torch.manual_seed(5)
    shape = {"vocab_size": 97, "hidden_size": 256, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    config = AutoConfig.for_model("llama", **shape, **heads, max_position_embeddings=1024, initializer_range=0.05)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    requests = [Request(id, prompt) for id, prompt in enumerate(_prompts(0) + _prompts(200))]
    results = []
    for device, name, mixed in ((torch.device("cpu"), "float32", False), (CUDA, dtype, amp)):
        model = load_model(tmp_path, dtype=getattr(torch, name), device=device)
        settings = EngineSettings(max_batch_tokens=1500, amp=mixed)
        classifier = Classifier(model, settings, choices=[[7, 8, 9], [7, 8], [11]], end_ids=[2])
        scores = {c.id: c.logprob for c in run(Scorer(model, settings), requests)}
        shares = {c.id: c.probabilities for c in run(classifier, requests)}
        results.append((scores, shares))
    (cpu_scores, cpu_shares), (scores, shares) = results
    exact = dtype == "float32" and not amp
    for request in requests:
        assert scores[request.id] == pytest.approx(cpu_scores[request.id], rel=1e-5 if exact else 5e-3, abs=0.05)
        assert shares[request.id] == pytest.approx(cpu_shares[request.id], abs=1e-4 if exact else 0.02)


MODEL = Path(__file__).parent.parent.parent / "data" / "models" / "messages-4m"
PROMPTS = [np.append(np.arange(5, 205), np.arange(length) * 7 % 1000 + 300) for length in (300, 130, 30, 9, 9, 2, 1)]
# Norm of the difference, relative to the norm: rounding, in eight bits also that of activations.
TOLERANCE = {("float32", False): 1e-4, ("float16", False): 5e-3, ("bfloat16", False): 3e-2, ("bfloat16", True): 0.12}


def _relative(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.float().cpu(), wanted.float().cpu()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("head", [True, False], ids=["with head", "bare"])
@pytest.mark.parametrize("trie", [None, TRIE], ids=["plain", "trie"])
@pytest.mark.parametrize(("dtype", "fp8"), list(TOLERANCE))
def test_the_fused_trunk_gives_the_hidden_states_of_the_modules(
    dtype: str, fp8: bool, trie: Trie | None, head: bool
) -> None:
    """Against float32 on CPU, where attention and modules are transformers' and torch's."""
    (made,) = pack(PROMPTS, 10_000, trie=trie, share=True)
    assert made.stem == 200
    reference = load_model(MODEL, dtype=torch.float32, device=torch.device("cpu"), head=head)
    model = load_model(MODEL, dtype=getattr(torch, dtype), device=CUDA, head=head)
    if fp8:
        to_fp8(model)
    fused = fused_trunk(model, EngineSettings())
    assert fused is not None, "the bundled model keeps its modules"
    with torch.inference_mode():
        wanted = ModuleTrunk(reference).hidden(made)
        found = fused.hidden(made)
    assert _relative(found, wanted) < TOLERANCE[dtype, fp8]


@pytest.mark.parametrize(("dtype", "fp8"), list(TOLERANCE))
def test_embeddings_equal_those_on_cpu(dtype: str, fp8: bool) -> None:
    requests = [Request(id, prompt) for id, prompt in enumerate(PROMPTS)]
    results = []
    for device, name in ((torch.device("cpu"), "float32"), (CUDA, dtype)):
        model = load_model(MODEL, dtype=getattr(torch, name), device=device, head=False)
        if fp8 and device == CUDA:
            to_fp8(model)
        engine = Embedder(model, EngineSettings(max_batch_tokens=700), pooling="mean", normalize=True)
        vectors = {c.id: c.embedding for c in run(engine, requests)}
        results.append(torch.from_numpy(np.stack([vectors[request.id] for request in requests])))
    assert _relative(results[1], results[0]) < TOLERANCE[dtype, fp8]


def test_two_engines_of_one_model_hold_its_weights_once() -> None:
    model = load_model(MODEL, dtype=torch.bfloat16, device=CUDA)
    engines = [Scorer(model, EngineSettings())]
    before = torch.cuda.memory_allocated()
    engines.append(Scorer(model, EngineSettings()))
    grown = torch.cuda.memory_allocated() - before
    assert grown < sum(p.numel() * p.element_size() for p in model.parameters()) // 10
