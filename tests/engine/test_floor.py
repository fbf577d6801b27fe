"""The floor: its parts by hand, and the published figures of an H100."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine import attention
from engine.floor import Ceilings, ModelCost, UniqueRow, floor_seconds, measure_ceilings, model_cost, unique_rows
from engine.random_model import read_config
from engine.settings import EngineSettings
from engine.workloads import Row, Workload

PLENTY = 10**9
# A device and a model whose figures can be added up in the head.
DEVICE = Ceilings(copy_bytes_s=1000, matrix_flop_s=100)
COST = ModelCost(layer_parameters=40, head_parameters=10, parameter_bytes=2, kv_bytes=5, pair_flops=3)
H100 = Ceilings(copy_bytes_s=3.02e12, matrix_flop_s=7.0e14)
H100_KV_POSITIONS = 900_000
"""What 72 GB leave beside the 7B weights."""


def shapeless(name: str) -> PreTrainedModel:
    """A model without memory for its weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            read_config(name), dtype=torch.bfloat16, attn_implementation=attention.NAME
        )
    assert isinstance(model, PreTrainedModel)
    return model


def test_one_row() -> None:
    # Prompt: 3 tokens through the layers, one through the head, 1 + 2 + 3 pairs. Then two steps, each of them bound by
    # the products of its one token, which read 4 and 5 positions.
    prefill = (2 * 40 * 3 + 2 * 10 + 3 * 6) / 100
    decode = 2 * max(50 * 2 / 1000, 2 * 50 / 100)
    read = (4 + 5) * 5 / 1000
    assert floor_seconds([Row([7, 8, 9], 3)], COST, DEVICE, PLENTY) == pytest.approx(prefill + decode + read)


def test_repeated_rows_cost_nothing() -> None:
    rows = [Row([1, 2], 4), Row([3], 2)]
    assert floor_seconds(rows * 5, COST, DEVICE, PLENTY) == floor_seconds(rows, COST, DEVICE, PLENTY)
    assert unique_rows(rows * 5) == [UniqueRow(2, 0, 4), UniqueRow(1, 0, 2)]


def test_the_prefix_tree_is_exact() -> None:
    prompts = [[1, 2, 3, 4], [9, 9], [1, 2, 3], [1, 2, 5, 4], [1, 2, 3, 4, 8], [2, 2, 3]]
    rows = unique_rows(Row(prompt, 1) for prompt in prompts)
    nodes = {tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))}
    assert sum(row.prompt - row.shared for row in rows) == len(nodes)


def test_a_shared_beginning_is_computed_once() -> None:
    alone = floor_seconds([Row([1, 2, 3], 1)], COST, DEVICE, PLENTY)
    both = floor_seconds([Row([1, 2, 3], 1), Row([1, 2, 4], 1)], COST, DEVICE, PLENTY)
    assert both - alone == pytest.approx((2 * 40 + 2 * 10 + 3 * 3) / 100)


def test_steps_are_bound_by_the_weights_where_the_batch_is_small() -> None:
    slow = Ceilings(copy_bytes_s=10, matrix_flop_s=1e9)
    free = ModelCost(40, 10, parameter_bytes=2, kv_bytes=0, pair_flops=0)
    rows = [Row([1], 5), Row([2], 3)]
    # Four steps read the weights; with room for one row at a time, the two of the shorter one read them again.
    assert floor_seconds(rows, free, slow, 10) == pytest.approx(4 * 10, rel=1e-6)
    assert floor_seconds(rows, free, slow, 5) == pytest.approx((4 + 2) * 10, rel=1e-6)
    assert floor_seconds(rows, free, slow, 1) == pytest.approx((4 + 2) * 10, rel=1e-6)


@pytest.mark.parametrize(
    ("model", "workload", "seconds"),
    [
        ("r1-7b", "decode:1024", 33),
        ("r1-7b", "label:4096", 13),
        ("r1-7b", "prefill:2048", 21),
        ("qwen3-0.6b", "decode:1024", 21),
    ],
)
def test_the_published_floors(model: str, workload: str, seconds: float) -> None:
    cost = model_cost(shapeless(model), EngineSettings(), 2)
    floor = floor_seconds(Workload.parse(workload).rows(), cost, H100, H100_KV_POSITIONS)
    assert floor == pytest.approx(seconds, abs=0.7)  # they are published in whole seconds, for 690 to 718 TFLOP/s


def test_the_cost_of_a_model() -> None:
    cost = model_cost(shapeless("r1-7b"), EngineSettings(), 2)
    layer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    small = 28 * (3584 + 2 * 512 + 2 * 3584) + 3584  # biases of query, key and value, and norms
    assert cost.layer_parameters == 28 * layer + small
    assert cost.head_parameters == 152064 * 3584
    assert cost.kv_bytes == 28 * 2 * 4 * 128 * 2
    assert cost.pair_flops == 28 * 4 * 28 * 128
    tied = model_cost(shapeless("qwen3-0.6b"), EngineSettings(kv_dtype="fp8"), 1)
    assert tied.head_parameters == 151936 * 1024
    assert tied.kv_bytes == 28 * 8 * (2 * 128 + 8)


def test_ceilings_are_measured() -> None:
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32, fp8=True)
    assert 1e8 < ceilings.copy_bytes_s < 1e13
    assert 1e8 < ceilings.matrix_flop_s < 1e15
