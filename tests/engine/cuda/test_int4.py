"""The unpacking kernel against torch."""

from __future__ import annotations

import pytest
import torch

from engine import int4
from engine.cuda.int4 import unpack
from engine.fp8 import FP8

SHAPES = [(24, 64, 32), (8, 64, 64), (40, 384, 128), (3, 128, 128)]


def stored(outputs: int, inputs: int, group: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(outputs)
    pairs = torch.randint(0, 256, (outputs, inputs // 2), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 16, (outputs, inputs // group), generator=generator, dtype=torch.uint8)
    steps = torch.rand(outputs, inputs // group, generator=generator).add_(0.1)
    return pairs.to(device), steps.to(device), zeros.to(device)


@pytest.mark.parametrize(("outputs", "inputs", "group"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, FP8])
def test_weights_are_those_of_torch(
    outputs: int, inputs: int, group: int, dtype: torch.dtype, device: torch.device
) -> None:
    if dtype not in (torch.float32, torch.float16) and device.type == "cpu":
        pytest.skip("Triton's interpreter rounds these otherwise; test_near_in_the_interpreter")
    pairs, steps, zeros = stored(outputs, inputs, group, device)
    found, wanted = unpack(pairs, steps, zeros, dtype), int4.unpack_pairs(pairs, steps, zeros, dtype)
    assert found.dtype == dtype
    assert torch.equal(found.float(), wanted.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_near_in_the_interpreter(dtype: torch.dtype, device: torch.device) -> None:
    """Which truncates bfloat16, and halves 8-bit floats that round up to the next power of two."""
    pairs, steps, zeros = stored(40, 384, 128, device)
    found, wanted = unpack(pairs, steps, zeros, dtype), int4.unpack_pairs(pairs, steps, zeros, dtype)
    assert (found.float() - wanted.float()).norm() / wanted.float().norm() < 0.15
    assert ((found.float() - wanted.float()).abs() > wanted.float().abs() / 64).float().mean() < 0.05


def test_parts_of_larger_tensors_are_unpacked_alone(device: torch.device) -> None:
    pairs, steps, zeros = stored(40, 384, 128, device)
    whole = unpack(pairs, steps, zeros, torch.float32)
    assert torch.equal(unpack(pairs[5:17], steps[5:17], zeros[5:17], torch.float32), whole[5:17])
