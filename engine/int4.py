"""Weights in four bits: unpacking what AutoAWQ and compressed-tensors store, and round-to-nearest encoding.

Eight unsigned values q of 0 to 15 lie in each int32, and a group of neighbouring inputs shares a scale s and a zero
point z; the weight is (q - z) s. Decoding multiplies in float32 and rounds once. Little-endian int32 are four bytes of
two values each, so values are unpacked from bytes, one byte a value. Which tensors of a checkpoint hold what is
left to engine.quantized.

Weights that stay in 4 bits lie in one form, whatever they were read from (engine.int4_linear): pairs, uint8
[out, in / 2], the first input of each two in the low bits; zeros, uint8 [out, groups]; steps, float32 [out, groups].
"""

from __future__ import annotations

import torch

SYMMETRIC_ZERO = 8  # symmetric values -8..7 are stored with 8 added


def encode(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round each group of a row of `weight` [out, in] to the nearest of 16 levels between its extremes (and zero).

    Returns:
        packed (int32 [out, in / 8]), scales (weight's dtype, [out, in / group_size]) and zeros (int32
        [out / 8, in / group_size], packed along out): the layout of compressed-tensors' "pack-quantized". `decode`
        gives a weight that differs by at most half a scale.

    Raises:
        ValueError: `in` is not a multiple of `group_size`, or `out` or `group_size` not one of 8.
    """
    outputs, inputs = weight.shape
    if inputs % group_size or group_size % 8 or outputs % 8:
        raise ValueError(f"a weight of {outputs} x {inputs} cannot be packed to int4 in groups of {group_size}")
    grouped = weight.float().view(outputs, -1, group_size)
    scales, zeros = grid(grouped.amin(-1), grouped.amax(-1), weight.dtype)
    return pack(levels(grouped, scales, zeros).view(outputs, inputs)), scales, pack_zeros(zeros)


def grid(low: torch.Tensor, high: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales in `dtype` and whole zero points 0..15 (float32) whose 16 levels reach from low to high and hold zero.

    All are [out, groups].
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    # Rounding the scale to the weight's dtype must not shrink the range, or the extremes would miss by more.
    scales = _not_zero(((high - low) / 15 * (1 + torch.finfo(dtype).eps)).to(dtype))
    return scales, (-low / scales.float()).round().clamp(0, 15)


def symmetric_grid(largest: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for levels around zero up to the magnitude `largest` [out, groups], as compressed-tensors has them."""
    scales = _not_zero((largest / 7.5 * (1 + torch.finfo(dtype).eps)).to(dtype))
    return scales, torch.full_like(largest, SYMMETRIC_ZERO)


def _not_zero(scales: torch.Tensor) -> torch.Tensor:
    return scales.where(scales > 0, 1)


def levels(grouped: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """The nearest whole levels 0..15, float32, of weights [out, groups, inputs of a group]."""
    return (grouped / scales.float().unsqueeze(-1)).round_().add_(zeros.unsqueeze(-1)).clamp_(0, 15)


def pack_zeros(zeros: torch.Tensor) -> torch.Tensor:
    """int32 [out / 8, groups] of zero points [out, groups]."""
    return pack(zeros.t()).t().contiguous()


def unpack_pairs(pairs: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] in `dtype` of pairs uint8 [out, in / 2], steps float32 and zeros uint8 [out, groups]."""
    return _weight(_unpack(pairs), steps, zeros, dtype)


def largest(pairs: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """float32 [out, 1]: the largest magnitude of each row of the weight, without making the weight."""
    values = _unpack(pairs).view(*steps.shape, -1)
    above, below = values.amax(-1).float() - zeros, zeros - values.amin(-1).float()
    return (torch.maximum(above, below) * steps).amax(-1, keepdim=True)


def pairs_of(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [out, in / 2] of compressed-tensors' int32 [out, in / 8]: the same bytes."""
    return packed.contiguous().view(torch.uint8)


def zeros_of(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [out, groups] of compressed-tensors' int32 [out / 8, groups]."""
    return _unpack(packed.t()).t().contiguous()


def pairs_of_awq(qweight: torch.Tensor) -> torch.Tensor:
    """uint8 [out, in / 2] of AutoAWQ's int32 [in, out / 8]."""
    return pairs_of(pack(_deinterleave(_unpack(qweight)).t()))


def zeros_of_awq(qzeros: torch.Tensor) -> torch.Tensor:
    """uint8 [out, groups] of AutoAWQ's int32 [groups, out / 8]."""
    return _deinterleave(_unpack(qzeros)).t().contiguous()


def decode(packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] in `dtype` of packed (int32 [out, in / 8]), scales ([out, groups]) and zeros.

    `zeros` is int32 [out / 8, groups], packed along out; None means symmetric.
    """
    offsets = None if zeros is None else zeros_of(zeros)
    return _weight(_unpack(packed), scales, offsets, dtype)


def decode_awq(qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] in `dtype` of AutoAWQ's "gemm" tensors, which lie transposed and interleaved.

    `qweight` is int32 [in, out / 8], `qzeros` int32 [groups, out / 8], `scales` [groups, out].
    """
    values, offsets = _deinterleave(_unpack(qweight)), _deinterleave(_unpack(qzeros))
    return _weight(values.t().contiguous(), scales.t(), offsets.t(), dtype)


def _weight(
    values: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """(values - offsets) scales, for values uint8 [out, in], scales and offsets [out, groups]."""
    outputs, groups = scales.shape
    product = values.view(outputs, groups, -1).float()
    product.sub_(SYMMETRIC_ZERO if offsets is None else offsets.unsqueeze(-1))
    product.mul_(scales.unsqueeze(-1))
    return product.view(outputs, -1).to(dtype)


def pack(values: torch.Tensor) -> torch.Tensor:
    """int32 [rows, columns / 8] of whole values 0..15 [rows, columns]; the first lies in the lowest bits."""
    pairs = values.to(torch.uint8).contiguous().view(len(values), -1, 2)
    return (pairs[..., 0] | (pairs[..., 1] << 4)).view(torch.int32)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns] of 0..15 for int32 [rows, columns / 8]."""
    octets = packed.contiguous().view(torch.uint8)
    return torch.stack((octets & 15, octets >> 4), dim=-1).view(len(packed), -1)


def _deinterleave(values: torch.Tensor) -> torch.Tensor:
    """Columns in order, where each eight were stored as 0, 2, 4, 6, 1, 3, 5, 7."""
    return values.view(len(values), -1, 2, 4).transpose(2, 3).reshape(len(values), -1)
