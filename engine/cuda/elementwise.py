"""What stands between the matrix products of a decoder layer, fused so that each value passes through memory once.

Norms add the residual first, as every pre-norm decoder does; the rotary kernel also normalises queries and keys where
the architecture does, and writes keys and values straight into the paged cache. The results are rounded where
transformers' modules round them. Outputs that are `quantized` have
each token's activations in 8 bits with one scale, for engine.fp8's products.

Legend of shapes: T tokens, N hidden size, I intermediate size, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.cuda.attention import BLOCK, Paged
from engine.fp8 import FP8, Rounded

_TINY = tl.constexpr(1e-12)


@triton.jit
def _norm(x_ptr, residual_ptr, weight_ptr, out_ptr, scale_ptr, size, eps,
          ADD: tl.constexpr, FP8: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < size
    x = tl.load(x_ptr + token * size + lane, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + token * size + lane, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + token * size + lane, rounded, mask=inside)
        x = rounded.to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x) / size + eps)
    weight = tl.load(weight_ptr + lane, mask=inside, other=0.0)
    y = x.to(x_ptr.dtype.element_ty) * weight
    if FP8:
        y = y.to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(y)), _TINY) / 448.0
        tl.store(out_ptr + token * size + lane, (y / scale).to(tl.float8e4nv), mask=inside)
        tl.store(scale_ptr + token, scale)
    else:
        tl.store(out_ptr + token * size + lane, y, mask=inside)


@triton.jit
def _silu_multiply(x_ptr, out_ptr, scale_ptr, size, FP8: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    gate_ptr = x_ptr + token * 2 * size
    highest = 0.0
    for turn in range(2 if FP8 else 1):
        for step in range(PARTS):
            lane = (part * PARTS + step) * WIDTH + tl.arange(0, WIDTH)
            inside = lane < size
            gate = tl.load(gate_ptr + lane, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(gate_ptr + size + lane, mask=inside, other=0.0)
            y = (gate / (1.0 + tl.exp(-gate))).to(up.dtype) * up
            if FP8:
                y = y.to(tl.float32)
                if turn == 0:
                    highest = tl.maximum(highest, tl.max(tl.abs(y)))
                else:
                    scaled = (y * (448.0 / tl.maximum(highest, _TINY))).to(tl.float8e4nv)
                    tl.store(out_ptr + token * size + lane, scaled, mask=inside)
            else:
                tl.store(out_ptr + token * size + lane, y, mask=inside)
    if FP8:
        tl.store(scale_ptr + token, tl.maximum(highest, _TINY) / 448.0)


@triton.jit
def _quantize(x_ptr, out_ptr, scale_ptr, size, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < size
    x = tl.load(x_ptr + token * size + lane, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x)), _TINY) / 448.0
    tl.store(out_ptr + token * size + lane, (x / scale).to(tl.float8e4nv), mask=inside)
    tl.store(scale_ptr + token, scale)


@triton.jit
def _rotate(  # noqa: PLR0913
    qkv_ptr, cos_ptr, sin_ptr, qn_ptr, kn_ptr, rows, positions, tables, q_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr,
    table_stride, eps,
    HEADS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr,
    NORM: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """One token: rotate its queries into q, its keys into the cache, and copy its values there. HALF: of D, padded."""
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    table = tables + tl.load(rows + token) * table_stride
    block = tl.load(table + position // BLOCK).to(tl.int64)
    line = block * BLOCK + position % BLOCK
    lane = tl.arange(0, HALF)
    head = tl.arange(0, HP)
    half: tl.constexpr = D // 2
    inside = (head < HEADS + KEYS)[:, None] & (lane < half)[None, :]
    start = qkv_ptr + token * (HEADS + 2 * KEYS) * D
    low = tl.load(start + head[:, None] * D + lane[None, :], mask=inside, other=0.0)
    high = tl.load(start + head[:, None] * D + half + lane[None, :], mask=inside, other=0.0)
    kind = low.dtype
    is_key = (head >= HEADS)[:, None]
    if NORM:
        a, b = low.to(tl.float32), high.to(tl.float32)
        factor = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        width = (lane < half)[None, :]
        w_low = tl.where(is_key, tl.load(kn_ptr + lane[None, :], mask=width), tl.load(qn_ptr + lane[None, :], mask=width))
        w_high = tl.where(
            is_key,
            tl.load(kn_ptr + half + lane[None, :], mask=width),
            tl.load(qn_ptr + half + lane[None, :], mask=width),
        )
        low = (a * factor).to(kind) * w_low
        high = (b * factor).to(kind) * w_high
    cos = tl.load(cos_ptr + position * half + lane, mask=lane < half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + position * half + lane, mask=lane < half, other=0.0)[None, :]
    a, b = low.to(tl.float32), high.to(tl.float32)
    first = a * cos - b * sin
    second = b * cos + a * sin
    is_query = inside & (head < HEADS)[:, None]
    q_place = q_ptr + token * HEADS * D + head[:, None] * D + lane[None, :]
    tl.store(q_place, first.to(kind), mask=is_query)
    tl.store(q_place + half, second.to(kind), mask=is_query)
    is_own = inside & is_key
    own = head - HEADS
    k_place = k_ptr + (line * KEYS + own[:, None]) * D + lane[None, :]
    key = tl.arange(0, KP)
    held = (key < KEYS)[:, None] & (lane < half)[None, :]
    v_start = start + (HEADS + KEYS) * D + key[:, None] * D + lane[None, :]
    v_low = tl.load(v_start, mask=held, other=0.0)
    v_high = tl.load(v_start + half, mask=held, other=0.0)
    v_place = v_ptr + (line * KEYS + key[:, None]) * D + lane[None, :]
    if FP8:
        highest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        scale = tl.maximum(highest, _TINY) / 448.0
        tl.store(ks_ptr + (block * KEYS + own) * BLOCK + position % BLOCK, scale, mask=(head >= HEADS) & (head < HEADS + KEYS))
        tl.store(k_place, (first / scale[:, None]).to(tl.float8e4nv), mask=is_own)
        tl.store(k_place + half, (second / scale[:, None]).to(tl.float8e4nv), mask=is_own)
        x, y = v_low.to(tl.float32), v_high.to(tl.float32)
        scale = tl.maximum(tl.maximum(tl.max(tl.abs(x), 1), tl.max(tl.abs(y), 1)), _TINY) / 448.0
        tl.store(vs_ptr + (block * KEYS + key) * BLOCK + position % BLOCK, scale, mask=key < KEYS)
        tl.store(v_place, (x / scale[:, None]).to(tl.float8e4nv), mask=held)
        tl.store(v_place + half, (y / scale[:, None]).to(tl.float8e4nv), mask=held)
    else:
        tl.store(k_place, first.to(k_ptr.dtype.element_ty), mask=is_own)
        tl.store(k_place + half, second.to(k_ptr.dtype.element_ty), mask=is_own)
        tl.store(v_place, v_low.to(v_ptr.dtype.element_ty), mask=held)
        tl.store(v_place + half, v_high.to(v_ptr.dtype.element_ty), mask=held)


@triton.jit
def _likeliest(logits_ptr, out_ptr, size, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = tl.full([WIDTH], float("-inf"), tl.float32)
    where = tl.zeros([WIDTH], tl.int32)
    wrong = tl.zeros([WIDTH], tl.int32)
    for start in range(0, size, WIDTH):
        lane = start + tl.arange(0, WIDTH)
        x = tl.load(logits_ptr + row * size + lane, mask=lane < size, other=float("-inf")).to(tl.float32)
        wrong += (x != x).to(tl.int32)
        where = tl.where(x > best, lane, where)
        best = tl.maximum(best, x)
    highest = tl.max(best)
    # Of equal logits the first, as torch.argmax on CPU.
    token = tl.min(tl.where(best == highest, where, 2147483647))
    tl.store(out_ptr + row, tl.where(tl.sum(wrong) > 0, -1, token).to(tl.int64))


Activations = Tensor | Rounded


def _rounded(tokens: int, size: int, device: torch.device) -> Rounded:
    return Rounded(
        torch.empty(tokens, size, dtype=FP8, device=device), torch.empty(tokens, 1, dtype=torch.float32, device=device)
    )


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, quantized: bool) -> Activations:
    """RMS norm of x [T, N], after `residual` [T, N] is added to it where given; `residual` becomes that sum."""
    tokens, size = x.shape
    out = _rounded(tokens, size, x.device) if quantized else torch.empty_like(x)
    values, scales = (out.values, out.scales) if isinstance(out, Rounded) else (out, out)
    width = triton.next_power_of_2(size)
    _norm[(tokens,)](
        x, x if residual is None else residual, weight, values, scales, size, eps,
        ADD=residual is not None, FP8=quantized, WIDTH=width, num_warps=_warps(width),
    )  # fmt: skip
    return out


def silu_multiply(x: Tensor, *, quantized: bool) -> Activations:
    """silu(gate) * up [T, I] of x [T, 2 I], gate first."""
    tokens, size = x.shape[0], x.shape[1] // 2
    out = _rounded(tokens, size, x.device) if quantized else torch.empty(tokens, size, dtype=x.dtype, device=x.device)
    values, scales = (out.values, out.scales) if isinstance(out, Rounded) else (out, out)
    width = min(triton.next_power_of_2(size), 4096 if quantized else 2048)
    parts = -(-size // width)
    _silu_multiply[(tokens, 1 if quantized else parts)](
        x, values, scales, size, FP8=quantized, WIDTH=width, PARTS=parts if quantized else 1, num_warps=_warps(width)
    )
    return out


def quantize(x: Tensor) -> Rounded:
    """x [T, N] in 8 bits, a scale for each token."""
    tokens, size = x.shape
    out = _rounded(tokens, size, x.device)
    width = triton.next_power_of_2(size)
    _quantize[(tokens,)](x, out.values, out.scales, size, WIDTH=width, num_warps=_warps(width))
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
    _rotate[(tokens,)](
        qkv, *rotary, q_weight, k_weight, rows, positions, tables, q, paged.keys, paged.values, *scales,
        tables.stride(0), eps,
        HEADS=heads, KEYS=paged.heads, D=size, HALF=triton.next_power_of_2(size // 2),
        HP=triton.next_power_of_2(heads + paged.heads), KP=triton.next_power_of_2(paged.heads),
        NORM=norms is not None, FP8=paged.key_scales is not None, num_warps=4,
    )  # fmt: skip
    return q


def likeliest(logits: Tensor) -> Tensor:
    """int64 [B]: index of the highest of each row of logits [B, V], the first of equal ones; -1 for a row with NaN."""
    out = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        _likeliest[(len(logits),)](logits, out, logits.shape[1], WIDTH=4096, num_warps=8)
    return out


def _warps(width: int) -> int:
    return min(16, max(1, width // 512))
