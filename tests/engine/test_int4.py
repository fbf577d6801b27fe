"""Int4 packings against loops written from the formats' definitions, and the error of encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.int4 import decode, decode_awq, encode

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack_rows(values: np.ndarray, order: list[int] = list(range(8))) -> torch.Tensor:  # noqa: B006
    """int32 [rows, columns / 8]: bits 4i to 4i+3 hold the column order[i] of each eight."""
    rows, columns = values.shape
    packed = np.zeros((rows, columns // 8), dtype=np.uint32)
    for row in range(rows):
        for word in range(columns // 8):
            for nibble in range(8):
                packed[row, word] |= np.uint32(int(values[row, word * 8 + order[nibble]]) << (4 * nibble))
    return torch.from_numpy(packed.view(np.int32))


def random_linear(outputs: int, inputs: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values and zero points in 0..15, float16 scales, and the weight, element by element in float64."""
    generator = np.random.default_rng(5)
    values = generator.integers(0, 16, (outputs, inputs))
    zeros = generator.integers(0, 16, (outputs, groups))
    scales = generator.uniform(0.001, 0.1, (outputs, groups)).astype(np.float16)
    weight = np.zeros((outputs, inputs))
    for row in range(outputs):
        for column in range(inputs):
            group = column * groups // inputs
            weight[row, column] = (values[row, column] - zeros[row, group]) * float(scales[row, group])
    return values, zeros, scales, weight


def test_pack_quantized_weight() -> None:
    values, zeros, scales, weight = random_linear(24, 64, 4)
    packed_zeros = pack_rows(zeros.T).t().contiguous()
    decoded = decode(pack_rows(values), torch.from_numpy(scales), packed_zeros, torch.float32)
    np.testing.assert_allclose(decoded, weight, rtol=1e-6)


def test_symmetric_values_are_stored_with_eight_added() -> None:
    values, _, scales, _ = random_linear(8, 32, 2)
    expected = (values - 8) * np.repeat(scales.astype(np.float32), 16, axis=1)
    np.testing.assert_allclose(decode(pack_rows(values), torch.from_numpy(scales), None, torch.float32), expected)


def test_awq_weight() -> None:
    values, zeros, scales, weight = random_linear(24, 64, 4)
    qweight, qzeros = pack_rows(values.T, AWQ_ORDER), pack_rows(zeros.T, AWQ_ORDER)
    decoded = decode_awq(qweight, qzeros, torch.from_numpy(scales.T.copy()), torch.float32)
    np.testing.assert_allclose(decoded, weight, rtol=1e-6)


def test_a_weight_is_rounded_once_to_its_dtype() -> None:
    values, zeros, scales, weight = random_linear(8, 32, 2)
    decoded = decode(pack_rows(values), torch.from_numpy(scales), pack_rows(zeros.T).t(), torch.bfloat16)
    torch.testing.assert_close(decoded, torch.from_numpy(weight).float().bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group_size", [8, 32, 128])
def test_decoding_misses_by_at_most_half_a_scale(dtype: torch.dtype, group_size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(48, 256, generator=generator).to(dtype)
    weight[0], weight[1], weight[2] = 0, weight[1].abs(), -weight[2].abs()
    packed, scales, zeros = encode(weight, group_size)
    assert packed.shape == (48, 32)
    assert scales.shape == (48, 256 // group_size)
    assert zeros.shape == (6, 256 // group_size)
    assert (packed.dtype, scales.dtype, zeros.dtype) == (torch.int32, dtype, torch.int32)
    error = (decode(packed, scales, zeros, torch.float32) - weight.float()).abs()
    half_step = scales.float().repeat_interleave(group_size, 1) / 2
    assert (error <= half_step * 1.0001).all()
    assert (error[0] == 0).all()
    assert error.max() > 0


def test_encoding_what_was_decoded_changes_nothing() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(4))
    first = decode(*encode(weight, 32), torch.float32)
    again = decode(*encode(first, 32), torch.float32)
    torch.testing.assert_close(again, first)


@pytest.mark.parametrize(("shape", "group_size"), [((8, 60), 32), ((12, 64), 32), ((8, 60), 12)])
def test_shapes_that_do_not_pack_are_refused(shape: tuple[int, int], group_size: int) -> None:
    with pytest.raises(ValueError, match=f"{shape[0]} x {shape[1]} .* groups of {group_size}"):
        encode(torch.zeros(shape), group_size)
