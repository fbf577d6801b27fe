"""The fused elementwise kernels against torch, and products that add to their result."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from engine.cuda import elementwise
from engine.cuda.projection import Projection
from engine.cuda.sparse import Scaled
from engine.fp8 import Fp8Linear, Rounded, round_rows

DTYPES = [torch.float32, torch.float16]  # the interpreter cannot multiply in bfloat16


@pytest.mark.parametrize("size", [16, 48, 1000, 1040])
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_multiply_in_8_bits_is_rounded_as_in_torch(device: torch.device, size: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2 * size, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(size))
    x[1] = 0  # a row without magnitude
    plain = silu(x[:, :size].float()).to(dtype) * x[:, size:]
    whole = elementwise.silu_multiply(x, quantized=False)
    assert isinstance(whole, torch.Tensor)
    torch.testing.assert_close(whole, plain, rtol=2e-2, atol=1e-6)
    found, wanted = elementwise.silu_multiply(x, quantized=True), round_rows(whole)
    assert isinstance(found, Rounded)
    torch.testing.assert_close(found.scales, wanted.scales)
    same = (found.values.float() == wanted.values.float()).float().mean()
    # Triton's interpreter loses the carry where rounding reaches the next power of two.
    assert same == 1 if x.is_cuda else same > 0.9


def scaled(rows: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Scaled, torch.Tensor]:
    """A product without its scales, of magnitudes far from one, and with them."""
    generator = torch.Generator(device).manual_seed(size)
    values = 100 * torch.randn(rows, size, dtype=dtype, device=device, generator=generator)
    values[1] = 0
    by_row = 0.01 * (0.5 + torch.rand(rows, 1, device=device, generator=generator))
    by_column = 0.5 + torch.rand(size, device=device, generator=generator)
    return Scaled(values, by_row, by_column), (values.float() * by_row * by_column).to(dtype)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("size", [16, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scales_that_a_product_lacks_are_multiplied_in(
    device: torch.device, dtype: torch.dtype, size: int, quantized: bool
) -> None:
    product, plain = scaled(3, 2 * size, dtype, device)
    close(
        elementwise.silu_multiply(product, quantized=quantized), elementwise.silu_multiply(plain, quantized=quantized)
    )
    product, plain = scaled(3, size, dtype, device)
    residual = torch.randn(3, size, dtype=dtype, device=device)
    weight = 1 + torch.rand(size, dtype=dtype, device=device)
    for beside in (None, residual):
        sums = [None if beside is None else beside.clone() for _ in range(2)]
        close(
            elementwise.add_norm(product, sums[0], weight, 1e-6, quantized=quantized),
            elementwise.add_norm(plain, sums[1], weight, 1e-6, quantized=quantized),
        )
        torch.testing.assert_close(sums[0], sums[1], rtol=2e-3, atol=2e-3)


def close(found: elementwise.Activations, wanted: elementwise.Activations) -> None:
    """But for a rounding of the wanted one, which goes with its scales through memory."""
    if isinstance(found, Rounded):
        assert isinstance(wanted, Rounded)
        torch.testing.assert_close(found.scales, wanted.scales, rtol=2e-3, atol=0)
        same = (found.values.float() == wanted.values.float()).float().mean()
        assert same > 0.9  # Triton's interpreter loses the carry where rounding reaches the next power of two
    else:
        torch.testing.assert_close(found, wanted, rtol=4e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_is_added_to_what_is_there(device: torch.device, dtype: torch.dtype) -> None:
    linear = nn.Linear(32, 16, bias=False, dtype=dtype, device=device)
    x, total = torch.randn(5, 32, dtype=dtype, device=device), torch.randn(5, 16, dtype=dtype, device=device)
    wanted = total.float() + x.float() @ linear.weight.float().t()
    projection = Projection([linear], dtype)
    assert projection.adds
    with torch.no_grad():
        projection.add(x, total)
    torch.testing.assert_close(total.float(), wanted, rtol=1e-2, atol=1e-2)


def test_neither_a_bias_nor_8_bits_can_be_added(device: torch.device) -> None:
    biased = nn.Linear(32, 16, dtype=torch.bfloat16, device=device)
    assert not Projection([biased], torch.bfloat16).adds
    assert not Projection([Fp8Linear.of(nn.Linear(32, 16, bias=False, device=device))], torch.bfloat16).adds
