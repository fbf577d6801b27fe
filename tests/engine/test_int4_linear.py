"""Layers of 4 bits are the layers of the weights that they amount to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from engine import int4
from engine.fp8 import Fp8Linear, round_rows
from engine.int4_linear import Int4Linear, group_of
from tests.engine.test_int4 import AWQ_ORDER, pack_rows, random_linear


def layer(outputs: int = 48, inputs: int = 256, group: int = 128, *, bias: bool = True) -> tuple[Int4Linear, nn.Linear]:
    """A layer and the linear layer of its weight, float32."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    plain = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    plain.weight.copy_(torch.randn(outputs, inputs, generator=generator))
    packed, scales, zeros = int4.encode(plain.weight, group)
    made = Int4Linear.of(plain, group)
    plain.weight.copy_(int4.decode(packed, scales, zeros, torch.float32))
    return made, plain


def test_both_formats_come_to_one_form() -> None:
    values, zeros, scales, weight = random_linear(24, 64, 2)
    steps = torch.from_numpy(scales).float()
    stored = [
        (int4.pairs_of(pack_rows(values)), int4.zeros_of(pack_rows(zeros.T).t())),
        (int4.pairs_of_awq(pack_rows(values.T, AWQ_ORDER)), int4.zeros_of_awq(pack_rows(zeros.T, AWQ_ORDER))),
    ]
    for pairs, offsets in stored:
        assert (pairs.shape, pairs.dtype) == ((24, 32), torch.uint8)
        assert (offsets.shape, offsets.dtype) == ((24, 2), torch.uint8)
        found = int4.unpack_pairs(pairs, steps, offsets, torch.float32)
        torch.testing.assert_close(found, torch.from_numpy(weight).float(), rtol=1e-6, atol=0)
        largest = int4.largest(pairs, steps, offsets)
        torch.testing.assert_close(largest, found.abs().amax(1, keepdim=True), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("outputs", "inputs", "group"), [(48, 256, 128), (24, 192, 64), (8, 96, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_decoded_weight(outputs: int, inputs: int, group: int, bias: bool) -> None:
    made, plain = layer(outputs, inputs, group, bias=bias)
    assert (made.out_features, made.in_features, made.group) == (outputs, inputs, group)
    x = torch.randn(3, 5, inputs, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made(x), plain(x))
    assert torch.equal(made.unpacked(torch.float32)(x), plain(x))
    half = made.unpacked(torch.bfloat16)
    assert torch.equal(half.weight, plain.weight.bfloat16())


def test_a_product_in_fp8_is_that_of_the_layer_unpacked_to_fp8() -> None:
    made, plain = layer()
    made.to_fp8()
    unpacked = made.unpacked(torch.float32)
    assert isinstance(unpacked, Fp8Linear)
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made(x), unpacked(x))
    assert torch.equal(made.multiply(round_rows(x[0]), torch.float32), unpacked(x[0]))
    kept = unpacked.weight.float() * unpacked.scale
    assert (kept - plain.weight).norm() / plain.weight.norm() < 0.03
    # The largest of each row uses the whole range, as in a layer rounded from higher precision.
    assert (unpacked.weight.float().abs().amax(1) == 448).all()
    direct = Fp8Linear.of(plain)
    torch.testing.assert_close(unpacked.scale, direct.scale, rtol=1e-6, atol=0)
    # But for numbers in the middle between two, which the last place of a float32 decides.
    assert (unpacked.weight.float() != direct.weight.float()).float().mean() < 0.02
    torch.testing.assert_close(unpacked.weight.float(), direct.weight.float(), rtol=0.13, atol=2**-9)


def test_a_row_of_zeros_stays_one_in_fp8() -> None:
    plain = nn.Linear(128, 16, bias=False).requires_grad_(False)
    plain.weight[3] = 0
    made = Int4Linear.of(plain, 128)
    made.to_fp8()
    assert (made(torch.ones(1, 128))[0, 3]) == 0
    assert made(torch.ones(1, 128)).isfinite().all()


def test_shapes_that_fp8_cannot_multiply_stay_in_the_dtype() -> None:
    made, plain = layer(24, 64, 32)
    made.to_fp8()
    assert made.scale is None
    x = torch.randn(2, 64)
    assert torch.equal(made(x), linear(x, plain.weight, plain.bias))


def test_four_bits_and_a_little() -> None:
    made, _ = layer(64, 1024, bias=False)
    made.to_fp8()
    assert sum(buffer.nbytes for buffer in made.buffers()) <= 64 * (512 + 5 * 8 + 4)


@pytest.mark.parametrize(
    ("inputs", "size", "group"),
    [(256, 128, 128), (256, 256, 128), (192, 192, 64), (96, 96, 32), (256, 64, 64), (256, 32, 32), (256, 16, None)],
)
def test_groups_are_those_of_the_kernel(inputs: int, size: int, group: int | None) -> None:
    assert group_of(inputs, size) == group
