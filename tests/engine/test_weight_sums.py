"""The checksum of a model's weights: any bit changes it, nothing else does."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from engine.fp8 import Fp8Linear
from engine.int4_linear import Int4Linear
from engine.weight_sums import WeightWatch, weight_sum


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 8), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bit", [0, 7, 15])
def test_one_bit_changes_it(dtype: torch.dtype, bit: int) -> None:
    changed = model(dtype)
    before = weight_sum(changed)
    assert weight_sum(model(dtype)) == before
    bits = changed[1].weight.data.view(torch.int16).view(-1)
    bits[4] ^= -(1 << 15) if bit == 15 else 1 << bit
    assert weight_sum(changed) != before


def test_it_knows_which_parameter_holds_what() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    assert weight_sum(nn.Sequential(a, b)) != weight_sum(nn.Sequential(b, a))


def test_values_that_are_not_numbers_and_layouts_that_are_not_contiguous() -> None:
    strange = nn.Linear(4, 4)
    strange.weight = nn.Parameter(torch.full((4, 4), float("nan")).t())
    assert weight_sum(strange) == weight_sum(strange)


def test_views_of_one_tensor_are_told_apart_by_their_bits() -> None:
    whole = torch.arange(33, dtype=torch.float32)
    parts = nn.ParameterList([nn.Parameter(whole[1:17]), nn.Parameter(whole[17:33])])
    before = weight_sum(parts)
    whole[20] += 1
    assert weight_sum(parts) != before


def quantized(to_fp8: bool) -> Int4Linear:
    layer = Int4Linear.of(nn.Linear(64, 16), 32)
    if to_fp8:
        layer.to_fp8()
        assert layer.scale is not None
    return layer


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        *((Fp8Linear.of(nn.Linear(32, 16)), name) for name in ("weight", "scale", "bias")),
        *((quantized(False), name) for name in ("pairs", "steps", "zeros", "bias")),
        *((quantized(True), name) for name in ("pairs", "steps", "scale")),
    ],
)
def test_quantized_weights_are_watched_too(layer: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Linear(8, 64), layer)
    before = weight_sum(model)
    bits = getattr(layer, name).data.view(torch.uint8).view(-1)
    bits[5] ^= 4
    assert weight_sum(model) != before
    bits[5] ^= 4
    assert weight_sum(model) == before


def test_what_the_model_computes_itself_does_not_count() -> None:
    rotary = model()
    before = weight_sum(rotary)
    rotary.register_buffer("inv_freq", torch.arange(4.0), persistent=False)
    assert weight_sum(rotary) == before


def test_the_watch_looks_as_often_as_its_share_allows() -> None:
    watched = model()
    clock = iter([0.0, 1.0, 1.0, 100.0, 300.0, 301.0, 302.0, 600.0, 601.0]).__next__
    watch = WeightWatch(watched, clock)  # takes a second, so it looks again after 200
    watched[0].weight.data.view(torch.int32)[0, 0] ^= 1
    assert watch.intact(), "looked too soon"
    assert not watch.looked
    assert not watch.intact()
    assert watch.looked


def test_the_sum_runs_at_the_speed_of_memory() -> None:
    large = nn.Linear(4096, 4096, bias=False)
    began = time.perf_counter()
    weight_sum(large)
    assert time.perf_counter() - began < 2.0  # 64 MB; some 10 ms
