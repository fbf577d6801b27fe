"""Products row by row: as torch's, and equal to the last bit in whatever batch a row is."""

from __future__ import annotations

import pytest
import torch

from engine.cuda.product import product


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inner"), [(96, 64), (300, 70)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_are_torchs(device: torch.device, dtype: torch.dtype, outputs: int, inner: int, bias: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(131, inner, device=device).to(dtype)
    weight = torch.randn(outputs, inner, device=device).to(dtype)
    offsets = torch.randn(outputs, device=device).to(dtype) if bias else None
    wanted = x.double() @ weight.double().t()
    if offsets is not None:
        wanted += offsets.double()
    found = product(x, weight, None, offsets, dtype)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=20 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_row_is_the_same_beside_any_others(device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    x = torch.randn(150, 200, device=device).to(dtype)
    weight = torch.randn(80, 200, device=device).to(dtype)
    whole = product(x, weight, None, None, dtype)
    for rows in ([7], [149, 3], list(range(100, 137))):
        assert torch.equal(product(x[rows], weight, None, None, dtype), whole[rows])


def test_nothing_times_a_weight_is_nothing(device: torch.device) -> None:
    weight = torch.ones(8, 16, device=device)
    assert product(weight[:0], weight, None, None, torch.float32).shape == (0, 8)
