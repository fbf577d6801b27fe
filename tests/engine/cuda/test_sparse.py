"""Which weights are multiplied as sparse ones and for how many rows; the library's two functions are stood in for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config

from engine import execution
from engine.cuda import layers, projection, sparse
from engine.cuda.projection import Projection
from engine.cuda.sizes import Sizes
from engine.cuda.trunk import FusedTrunk
from engine.fp8 import FP8, Fp8Linear, round_rows, to_fp8
from engine.packing import pack
from engine.pruning import mlp, prune
from engine.random_model import build_random_model

CONFIG = Qwen3Config(
    vocab_size=99, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=24, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    pad_token_id=None,
)  # fmt: skip


def rounded(outputs: int, inputs: int, *, pruned: bool) -> Tensor:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs))
    if pruned:
        prune(weight)
    return round_rows(weight).values


def test_the_pattern_is_at_most_two_of_every_four_inputs() -> None:
    assert sparse.has_pattern(rounded(32, 64, pruned=True))
    assert sparse.has_pattern(torch.zeros(32, 64).to(FP8))
    assert not sparse.has_pattern(rounded(32, 64, pruned=False))
    one = rounded(32, 64, pruned=True)
    one.view(torch.uint8)[31, 60:63] = 1
    assert not sparse.has_pattern(one)
    assert not sparse.has_pattern(rounded(32, 48, pruned=True))
    assert not sparse.has_pattern(rounded(48, 32, pruned=True))


def test_minus_zeros_are_zeros() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    kept = weight.clone()
    prune(kept)
    found = round_rows(weight * (kept != 0)).values
    assert not sparse.has_pattern(found)
    assert sparse.has_pattern(sparse.positive_zeros(found))
    assert torch.equal(sparse.positive_zeros(found).float(), found.float())


def test_no_step_that_is_captured_has_as_many_rows() -> None:
    """Steps that only decode are captured; a search for an algorithm, and what it finds, must not be."""
    assert max(Sizes(rows).largest for rows in range(1, execution._ROWS_ON_GPU + 1)) <= sparse.MOST_DENSE


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """cuSPARSELt's functions as dense ones; the numbers of rows of the products made so."""
    made: list[int] = []

    def multiply(compressed: Tensor, dense: Tensor, **options: Any) -> Tensor:
        assert (options["transpose_result"], options["alg_id"]) == (True, 7)
        made.append(dense.shape[1])
        return dense.t().float().nan_to_num() @ compressed.float().t()

    monkeypatch.setattr(torch, "_cslt_compress", lambda weight: weight)
    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    monkeypatch.setattr(torch, "_cslt_sparse_mm_search", lambda *_, **__: 7)
    monkeypatch.setattr(sparse, "_fastest", {})
    monkeypatch.setattr(layers, "_compressible", lambda *_: True)
    monkeypatch.setattr(projection, "MOST_DENSE", 20)
    return made


def model(pruned: bool) -> Any:
    found = build_random_model(CONFIG, dtype=torch.float32, device=torch.device("cpu"))
    if pruned:
        for layer in found.model.layers:
            for linear in mlp(layer).values():
                prune(linear.weight)
    to_fp8(found)
    return found


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu has the library itself")
@pytest.mark.parametrize("pruned", [False, True])
def test_many_rows_are_multiplied_as_sparse_with_the_same_result(pruned: bool, stand_ins: list[int]) -> None:
    prompts = [torch.arange(count).numpy() * 7 % 90 for count in (19, 24)]
    few, many = next(iter(pack(prompts[:1], 64))), next(iter(pack(prompts, 64)))
    whole = model(pruned)
    with torch.inference_mode():
        dense, fast = FusedTrunk(whole), FusedTrunk(whole, repeatable=False)
        torch.testing.assert_close(fast.hidden(few), dense.hidden(few), rtol=0, atol=0)
        assert stand_ins == []
        found, wanted = fast.hidden(many), dense.hidden(many)
    assert stand_ins == ([48] * 6 if pruned else [])
    # Values that are rounded to 8 bits may tip over.
    assert (found - wanted).norm() / wanted.norm() < 0.02
    assert pruned != torch.equal(found, wanted)


def test_repeatable_and_invariant_batches_stay_dense(stand_ins: list[int]) -> None:
    del stand_ins
    whole = model(True)
    for options in ({}, {"repeatable": True}, {"invariant": True, "repeatable": False}):
        made = layers.FusedLayers(whole, **options)
        assert all(layer.gate_up._sparse is None for layer in made._layers)
    assert layers.FusedLayers(whole, repeatable=False)._layers[0].down._sparse is not None


def test_a_bias_stays_dense(stand_ins: list[int]) -> None:
    del stand_ins
    linear = torch.nn.Linear(32, 32)
    prune(linear.weight)
    assert Projection([Fp8Linear.of(linear)], torch.float32, sparse=True)._sparse is None
