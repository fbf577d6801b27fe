"""The Triton kernels of engine.cuda.elementwise, which says what they do. One program works on one token, or a part."""

from __future__ import annotations

import triton
import triton.language as tl

from engine.cuda.attention_kernels import BLOCK

_TINY = tl.constexpr(1e-12)


@triton.jit
def norm_kernel(x_ptr, row_ptr, column_ptr, residual_ptr, weight_ptr, out_ptr, scale_ptr, size, eps,
          SCALED: tl.constexpr, ADD: tl.constexpr, FP8: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < size
    x = tl.load(x_ptr + token * size + lane, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        x *= tl.load(row_ptr + token) * tl.load(column_ptr + lane, mask=inside, other=0.0)
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
def _gated(gate_ptr, row_ptr, column_ptr, lane, size, SCALED: tl.constexpr):
    """silu(gate) * up of part of a row, gates first."""
    inside = lane < size
    gate = tl.load(gate_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + size + lane, mask=inside, other=0.0)
    if SCALED:
        row = tl.load(row_ptr)
        gate *= row * tl.load(column_ptr + lane, mask=inside, other=0.0)
        up = (up.to(tl.float32) * (row * tl.load(column_ptr + size + lane, mask=inside, other=0.0))).to(up.dtype)
    return (gate / (1.0 + tl.exp(-gate))).to(up.dtype) * up


@triton.jit
def silu_multiply_kernel(x_ptr, row_ptr, column_ptr, out_ptr, size, SCALED: tl.constexpr, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    y = _gated(x_ptr + token * 2 * size, row_ptr + token, column_ptr, lane, size, SCALED)
    tl.store(out_ptr + token * size + lane, y, mask=lane < size)


@triton.jit
def silu_round_kernel(x_ptr, row_ptr, column_ptr, out_ptr, scale_ptr, size,
          SCALED: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):  # fmt: skip
    """The same in 8 bits. A scale is of the whole row, which stays in registers, in parts, until it is known."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    parts = ()
    highest = 0.0
    for part in tl.static_range(PARTS):
        y = _gated(x_ptr + token * 2 * size, row_ptr + token, column_ptr, part * WIDTH + lane, size, SCALED)
        highest = tl.maximum(highest, tl.max(tl.abs(y.to(tl.float32))))
        parts = parts + (y,)  # type: ignore[assignment]  # noqa: RUF005 - Triton cannot unpack
    scale = tl.maximum(highest, _TINY) / 448.0
    for part in tl.static_range(PARTS):
        spots = part * WIDTH + lane
        y = (parts[part].to(tl.float32) / scale).to(tl.float8e4nv)
        tl.store(out_ptr + token * size + spots, y, mask=spots < size)
    tl.store(scale_ptr + token, scale)


@triton.jit
def quantize_kernel(x_ptr, out_ptr, scale_ptr, size, WIDTH: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < size
    x = tl.load(x_ptr + token * size + lane, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x)), _TINY) / 448.0
    tl.store(out_ptr + token * size + lane, (x / scale).to(tl.float8e4nv), mask=inside)
    tl.store(scale_ptr + token, scale)


@triton.jit
def rotate_kernel(
    qkv_ptr, cos_ptr, sin_ptr, qn_ptr, kn_ptr, rows, positions, tables, q_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr,
    table_stride, eps,
    HEADS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HP: tl.constexpr, KP: tl.constexpr,
    NORM: tl.constexpr, FP8: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """One token: rotate its queries into q, its keys into k, and copy its values into v. HALF: of D, padded.

    PAGED: k and v are the cache, and the token's place there is in the block table; else they have a line a token.
    """
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    line = token
    if PAGED:
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
        w_low = tl.where(
            is_key, tl.load(kn_ptr + lane[None, :], mask=width), tl.load(qn_ptr + lane[None, :], mask=width)
        )
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
        tl.store(
            ks_ptr + (block * KEYS + own) * BLOCK + position % BLOCK,
            scale,
            mask=(head >= HEADS) & (head < HEADS + KEYS),
        )
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
def likeliest_kernel(logits_ptr, out_ptr, size, WIDTH: tl.constexpr):
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


@triton.jit
def widen_kernel(store_ptr, scale_ptr, blocks, out_ptr, KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    number, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    block = tl.load(blocks + number).to(tl.int64)
    at = tl.arange(0, BLOCK)
    dims = tl.arange(0, DP)
    inside = (dims < D)[None, :]
    spots = (at * KEYS + head)[:, None] * D + dims[None, :]
    x = tl.load(store_ptr + block * BLOCK * KEYS * D + spots, mask=inside, other=0.0).to(tl.float32)
    x *= tl.load(scale_ptr + (block * KEYS + head) * BLOCK + at)[:, None]
    tl.store(out_ptr + number * BLOCK * KEYS * D + spots, x.to(out_ptr.dtype.element_ty), mask=inside)
