"""What stands between the matrix products of a decoder layer, fused so that each value passes through memory once.

Norms add the residual first, as every pre-norm decoder does; the rotary kernel also normalises queries and keys where
the architecture does, and writes keys and values straight into the paged cache where there is one. The results are
rounded where transformers' modules round them. Outputs that are `quantized` have each token's activations in 8 bits
with one scale, for engine.fp8's products. Products of engine.cuda.sparse come with scales that are multiplied in first.

Legend of shapes: T tokens, N hidden size, I intermediate size, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from engine.cuda.attention import Paged
from engine.cuda.elementwise_kernels import (
    likeliest_kernel,
    norm_kernel,
    quantize_kernel,
    rotate_kernel,
    silu_multiply_kernel,
    silu_round_kernel,
    widen_kernel,
)
from engine.cuda.sparse import Scaled
from engine.fp8 import FP8, MULTIPLE, Rounded
from engine.paged import BLOCK

Activations = Tensor | Rounded
Product = Tensor | Scaled

# Powers of two that a long row is made of at most; one alone would be filled to little more than a half.
_PARTS = 4


def _rounded(tokens: int, size: int, device: torch.device) -> Rounded:
    """Room for the tokens' values and scales, and behind the values for those that sparse products fill up with."""
    room = torch.empty(triton.cdiv(tokens, MULTIPLE) * MULTIPLE, size, dtype=FP8, device=device)
    return Rounded(room[:tokens], torch.empty(tokens, 1, dtype=torch.float32, device=device))


def _apart(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """A product's values and its scales, or tensors in their place."""
    return product if isinstance(product, Scaled) else (product, product, product)


def add_norm(x: Product, residual: Tensor | None, weight: Tensor, eps: float, *, quantized: bool) -> Activations:
    """RMS norm of x [T, N], after `residual` [T, N] is added to it where given; `residual` becomes that sum."""
    x, rows, columns = _apart(x)
    tokens, size = x.shape
    out = _rounded(tokens, size, x.device) if quantized else torch.empty_like(x)
    values, scales = (out.values, out.scales) if isinstance(out, Rounded) else (out, out)
    width = triton.next_power_of_2(size)
    norm_kernel[(tokens,)](
        x, rows, columns, x if residual is None else residual, weight, values, scales, size, eps,
        SCALED=rows is not x, ADD=residual is not None, FP8=quantized, WIDTH=width, num_warps=_warps(width),
    )  # fmt: skip
    return out


def silu_multiply(x: Product, *, quantized: bool) -> Activations:
    """silu(gate) * up [T, I] of x [T, 2 I], gate first."""
    x, rows, columns = _apart(x)
    tokens, size = x.shape[0], x.shape[1] // 2
    if quantized:
        rounded = _rounded(tokens, size, x.device)
        width = triton.next_power_of_2(triton.cdiv(size, _PARTS))
        silu_round_kernel[(tokens,)](
            x, rows, columns, rounded.values, rounded.scales, size,
            SCALED=rows is not x, WIDTH=width, PARTS=triton.cdiv(size, width), num_warps=_warps(width),
        )  # fmt: skip
        return rounded
    out = torch.empty(tokens, size, dtype=x.dtype, device=x.device)
    width = min(triton.next_power_of_2(size), 2048)
    silu_multiply_kernel[(tokens, triton.cdiv(size, width))](
        x, rows, columns, out, size, SCALED=rows is not x, WIDTH=width, num_warps=_warps(width)
    )
    return out


def quantize(x: Tensor) -> Rounded:
    """x [T, N] in 8 bits, a scale for each token."""
    tokens, size = x.shape
    out = _rounded(tokens, size, x.device)
    width = triton.next_power_of_2(size)
    quantize_kernel[(tokens,)](x, out.values, out.scales, size, WIDTH=width, num_warps=_warps(width))
    return out


def rotate(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], norms: tuple[Tensor, Tensor] | None, eps: float, heads: int,
    paged: Paged, tables: Tensor, rows: Tensor, positions: Tensor,
) -> Tensor:  # fmt: skip
    """Rotated queries [T, H, D] of qkv [T, (H + 2 K) D]; keys and values go into the cache at `positions`.

    rotary: cosines and sines, float32 [positions, D / 2]; norms: weights [D] of the query and key norms, if any;
    tables: int32 [rows, blocks]; rows and positions: int64 [T], where each token belongs.
    """
    tokens, size = len(qkv), paged.size
    q = torch.empty(tokens, heads, size, dtype=qkv.dtype, device=qkv.device)
    q_weight, k_weight = norms or (qkv, qkv)
    scales = (paged.key_scales, paged.value_scales) if paged.key_scales is not None else (paged.keys, paged.values)
    rotate_kernel[(tokens,)](
        qkv, *rotary, q_weight, k_weight, rows, positions, tables, q, paged.keys, paged.values, *scales,
        tables.stride(0), eps,
        HEADS=heads, KEYS=paged.heads, D=size, HALF=triton.next_power_of_2(size // 2),
        HP=triton.next_power_of_2(heads + paged.heads), KP=triton.next_power_of_2(paged.heads),
        NORM=norms is not None, FP8=paged.key_scales is not None, PAGED=True, num_warps=4,
    )  # fmt: skip
    return q


def rotate_apart(
    qkv: Tensor, rotary: tuple[Tensor, Tensor], norms: tuple[Tensor, Tensor] | None, eps: float, heads: int, keys: int,
    positions: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Rotated queries [T, H, D] and keys [T, K, D], and values [T, K, D], of qkv [T, (H + 2 K) D], without a cache.

    rotary, norms and positions are those of `rotate`; keys: K.
    """
    tokens, size = len(qkv), qkv.shape[1] // (heads + 2 * keys)
    q, k, v = (
        torch.empty(tokens, count, size, dtype=qkv.dtype, device=qkv.device) for count in (heads, keys, keys)
    )  # fmt: skip
    q_weight, k_weight = norms or (qkv, qkv)
    rotate_kernel[(tokens,)](
        qkv, *rotary, q_weight, k_weight, positions, positions, positions, q, k, v, k, v, 0, eps,
        HEADS=heads, KEYS=keys, D=size, HALF=triton.next_power_of_2(size // 2),
        HP=triton.next_power_of_2(heads + keys), KP=triton.next_power_of_2(keys),
        NORM=norms is not None, FP8=False, PAGED=False, num_warps=4,
    )  # fmt: skip
    return q, k, v


def widen(paged: Paged, blocks: Tensor, dtype: torch.dtype) -> Paged:
    """These blocks of an 8-bit cache in `dtype`, as a cache of their own. blocks: int32 [N]."""
    assert paged.key_scales is not None
    assert paged.value_scales is not None
    found = []
    for store, scales in ((paged.keys, paged.key_scales), (paged.values, paged.value_scales)):
        out = torch.empty(len(blocks) * BLOCK, paged.heads * paged.size, dtype=dtype, device=store.device)
        widen_kernel[(len(blocks), paged.heads)](
            store, scales, blocks, out, KEYS=paged.heads, D=paged.size, DP=triton.next_power_of_2(paged.size)
        )
        found.append(out)
    return Paged(found[0], found[1], None, None, paged.heads, paged.size)


def likeliest(logits: Tensor) -> Tensor:
    """int64 [B]: index of the highest of each row of logits [B, V], the first of equal ones; -1 for a row with NaN."""
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        likeliest_kernel[(len(logits),)](logits, out, logits.shape[1], WIDTH=4096, num_warps=8)
    return out


def _warps(width: int) -> int:
    return min(16, max(1, width // 512))
