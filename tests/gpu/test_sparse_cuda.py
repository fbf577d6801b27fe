"""2:4 sparse products on a GPU against dense ones with the same weights, alone and in a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel

from engine.cuda import elementwise, sparse
from engine.cuda.projection import Projection
from engine.cuda.sparse import Scaled
from engine.cuda.trunk import FusedTrunk
from engine.fp8 import Fp8Linear, to_fp8
from engine.generation import Generator
from engine.model import load_model
from engine.packing import pack
from engine.precision import quantize
from engine.pruning import prune, prune_model
from engine.quantizer import Quantizer
from engine.random_model import build_random_model
from engine.request import Request, run
from engine.settings import EngineSettings, SamplingSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(
        not torch.cuda.is_available() or not sparse.usable(0, torch.device("cuda")), reason="needs Hopper, cuSPARSELt"
    ),
]

CUDA = torch.device("cuda")
CONFIG = LlamaConfig(
    vocab_size=256, hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=2, max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, pad_token_id=None,
)  # fmt: skip


def linear(outputs: int, inputs: int, *, pruned: bool = True) -> Fp8Linear:
    """Weights with rows of unequal magnitude, so that each output has a scale of its own."""
    made = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16, device=CUDA)
    generator = torch.Generator(CUDA).manual_seed(outputs)
    with torch.no_grad():
        made.weight.normal_(generator=generator)
        made.weight *= 0.1 + torch.rand(outputs, 1, device=CUDA, generator=generator)
        if pruned:
            prune(made.weight)
    return Fp8Linear.of(made)


def activations(rows: int, inputs: int) -> torch.Tensor:
    generator = torch.Generator(CUDA).manual_seed(rows)
    x = torch.randn(rows, inputs, dtype=torch.bfloat16, device=CUDA, generator=generator)
    return x * (0.1 + torch.rand(rows, 1, dtype=torch.bfloat16, device=CUDA, generator=generator))


@pytest.mark.parametrize("rows", [4097, 5003, 8192])
@pytest.mark.parametrize(("outputs", "inputs"), [(37888, 3584), (3584, 18944), (6144, 1024)])
@torch.inference_mode()
def test_the_sparse_product_is_the_dense_one(outputs: int, inputs: int, rows: int) -> None:
    layer = linear(outputs, inputs)
    x = elementwise.quantize(activations(rows, inputs))
    dense, fast = (Projection([layer], torch.bfloat16, sparse=sparse) for sparse in (False, True))
    wanted, found = dense.unscaled(x), fast.unscaled(x)
    assert isinstance(wanted, torch.Tensor)
    assert isinstance(found, Scaled)
    assert found.values.shape == (rows, outputs)
    # Rounded to bfloat16 before or after the scales, and sums of 8-bit products are not float32 to the last bit.
    for start in range(0, rows, 1024):
        part = slice(start, start + 1024)
        one = found.values[part].float() * found.rows[part] * found.columns
        other = wanted[part].float()
        assert (one - other).norm() / other.norm() < 5e-3
        assert (one - other).abs().max() < 0.05 * other.abs().max()
    few = elementwise.quantize(activations(4096, inputs))
    assert torch.equal(fast(few), dense(few))
    assert isinstance(fast.unscaled(few), torch.Tensor)


@torch.inference_mode()
def test_the_kernels_that_follow_take_its_scales() -> None:
    rows, size = 5003, 4096
    x = elementwise.quantize(activations(rows, 1024))
    up, down = linear(2 * size, 1024), linear(1024, size)
    gated, sums = [], []
    for is_sparse in (False, True):
        first, second = (Projection([layer], torch.bfloat16, sparse=is_sparse) for layer in (up, down))
        middle = elementwise.silu_multiply(first.unscaled(x), quantized=True)
        gated.append(middle.values.float() * middle.scales)
        residual = activations(rows, 1024)
        weight = torch.ones(1024, dtype=torch.bfloat16, device=CUDA)
        elementwise.add_norm(second.unscaled(middle), residual, weight, 1e-6, quantized=True)
        sums.append(residual.float())
    # Values of 8 bits tip over to their neighbours, a sixteenth away, where they lay between two.
    for found, wanted in (gated, sums):
        assert (found - wanted).norm() / wanted.norm() < 0.05


def test_weights_without_the_pattern_stay_dense() -> None:
    x = elementwise.quantize(activations(8192, 1024))
    dense = Projection([linear(2048, 1024, pruned=False)], torch.bfloat16, sparse=True)
    assert isinstance(dense.unscaled(x), torch.Tensor)


def model() -> PreTrainedModel:
    found = build_random_model(CONFIG, dtype=torch.bfloat16, device=CUDA)
    prune_model(found)
    to_fp8(found)
    return found


@torch.inference_mode()
def test_hidden_states_are_those_of_dense_products() -> None:
    generator = np.random.default_rng(5)
    prompts = [generator.integers(0, 256, length) for length in (700, 801, 902, 1003, 604, 505, 606)]
    chosen, whole = next(iter(pack(prompts, 8192))), model()
    assert len(chosen.ids()) > sparse.MOST_DENSE
    wanted, found = (FusedTrunk(whole, repeatable=repeatable).hidden(chosen).float() for repeatable in (True, False))
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() / wanted.norm() < 0.08


def first_tokens(whole: PreTrainedModel, prompts: list[list[int]], share: float) -> list[int]:
    """Two tokens of each prompt: the second of a decode step, which is captured. The engine takes `share` of memory."""
    engine = Generator(
        whole, SamplingSettings(max_tokens=2), EngineSettings(memory_fraction=share), stop_ids=(), token_bytes=(),
        context_length=1024,
    )  # fmt: skip
    done = run(engine, [Request(id=number, prompt=ids, max_tokens=2) for number, ids in enumerate(prompts)])
    by_id = {completion.id: completion.token_ids for completion in done}
    assert all(len(ids) == 2 for ids in by_id.values())
    return [by_id[number][0] for number in range(len(prompts))]


def test_greedy_tokens_are_those_of_dense_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those that are as likely as another one to the rounding of 8 bits."""
    generator = np.random.default_rng(6)
    prompts = [[int(token) for token in generator.integers(0, 256, generator.integers(300, 400))] for _ in range(100)]
    whole = model()
    monkeypatch.setattr(sparse, "_fastest", {})
    found = first_tokens(whole, prompts, 0.2)
    assert sparse._fastest
    monkeypatch.setattr(sparse, "usable", lambda *_: False)
    monkeypatch.setattr(sparse, "_fastest", {})
    wanted = first_tokens(whole, prompts, 0.5)
    assert not sparse._fastest
    assert len(set(wanted)) > 20
    assert sum(one == other for one, other in zip(found, wanted, strict=True)) >= 80


def test_a_pruned_checkpoint_keeps_the_pattern_when_it_is_loaded(tmp_path: Path) -> None:
    """Written with explicit zeros, read as bfloat16 and rounded again."""
    build_random_model(CONFIG, dtype=torch.bfloat16, device=CUDA).save_pretrained(tmp_path / "model")
    rows = [np.random.default_rng(1).integers(0, 256, 200) for _ in range(8)]
    Quantizer(tmp_path / "model", "fp8", 8, calibration=rows, output=tmp_path / "out", sparsity="2:4").apply()
    loaded = load_model(tmp_path / "out", dtype=torch.bfloat16, device=CUDA)
    quantize(loaded, "fp8")
    for layer in loaded.model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            assert sparse.sparse_weight(part.weight, part.scale) is not None
