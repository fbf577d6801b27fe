"""The Triton kernels of engine.cuda.attention, which says what they do.

Legend of shapes: M lines of queries (queries times heads of a group), D head size, DP the power of two that holds it,
S splits, B sequences, H query heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = tl.constexpr(16)
"""Positions of a block of the cache."""


@triton.jit
def _attend(weights, peak, total, at, keys, last, window, MASKED: tl.constexpr, WINDOWED: tl.constexpr):
    """One turn of the online softmax over logits [M, TILE]: shares of the tile, the new peak and total, and by how
    much what was summed so far shrinks."""
    if MASKED:
        weights = tl.where((keys[None, :] <= at[:, None]) & (keys < last)[None, :], weights, float("-inf"))
    if WINDOWED:
        weights = tl.where(keys[None, :] > at[:, None] - window, weights, float("-inf"))
    higher = tl.maximum(peak, tl.max(weights, 1))
    # A query that has seen no key yet would subtract infinity from infinity.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    shrink = tl.exp2(peak - base)
    weights = tl.exp2(weights - base[:, None])
    return weights, higher, total * shrink + tl.sum(weights, 1), shrink[:, None]


@triton.jit
def _walk(
    q, acc, peak, total, k_ptr, v_ptr, table, head, at, first, last, window,
    KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Attend the queries q [M, DP] at positions `at` [M] to keys [first, last); first is a multiple of TILE."""
    dims = tl.arange(0, DP)
    for start in range(first, last, TILE):
        keys = start + tl.arange(0, TILE)
        blocks = tl.load(table + keys // BLOCK, mask=keys < last, other=0) if MASKED else tl.load(table + keys // BLOCK)
        lines = (blocks.to(tl.int64) * BLOCK + keys % BLOCK) * KEYS + head
        places = lines[:, None] * D + dims[None, :]
        if MASKED:
            here = (keys < last)[:, None] & (dims < D)[None, :]
            k = tl.load(k_ptr + places, mask=here, other=0.0)
        elif D == DP:
            k = tl.load(k_ptr + places)
        else:
            k = tl.load(k_ptr + places, mask=(dims < D)[None, :], other=0.0)
        weights = tl.dot(q, tl.trans(k), input_precision="ieee") if EXACT else tl.dot(q, tl.trans(k))
        weights, peak, total, shrink = _attend(weights, peak, total, at, keys, last, window, MASKED, WINDOWED)
        if MASKED:
            v = tl.load(v_ptr + places, mask=here, other=0.0)
        elif D == DP:
            v = tl.load(v_ptr + places)
        else:
            v = tl.load(v_ptr + places, mask=(dims < D)[None, :], other=0.0)
        if EXACT:
            acc = tl.dot(weights, v, acc * shrink, input_precision="ieee")
        else:
            acc = tl.dot(weights.to(v.dtype), v, acc * shrink)
    return acc, peak, total


@triton.jit
def _unpack(pairs, ASM: tl.constexpr):
    """Two float16 tensors from pairs of e4m3 numbers in int16: those in the low bytes, those in the high ones."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{ .reg .b16 a, b; .reg .b32 x, y;
            mov.b32 {a, b}, $2;
            cvt.rn.f16x2.e4m3x2 x, a;
            cvt.rn.f16x2.e4m3x2 y, b;
            prmt.b32 $0, x, y, 0x5410;
            prmt.b32 $1, x, y, 0x7632; }""",
            "=r,=r,r",
            [pairs],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    # The same bits one place further right are the number divided by 256: float16 has a larger bias by 8.
    high = (pairs >> 8) & 0xFF
    low = pairs & 0xFF
    low = (((low & 0x80) << 8) | ((low & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    high = (((high & 0x80) << 8) | ((high & 0x7F) << 7)).to(tl.int16).to(tl.float16, bitcast=True) * 256.0
    return low.to(tl.float16), high.to(tl.float16)


@triton.jit
def _walk8(
    q0, q1, acc0, acc1, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, first, last, window,
    KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """As _walk over an 8-bit cache, taken as pairs: queries and sums [M, DP / 2] of even and of odd dimensions.

    Two numbers at a time are as wide as one of float16, so that they reach the registers in the order in which the
    matrix units want them.
    """
    half: tl.constexpr = D // 2
    dims = tl.arange(0, DP // 2)
    for start in range(first, last, TILE):
        keys = start + tl.arange(0, TILE)
        inside = keys < last
        blocks = tl.load(table + keys // BLOCK, mask=inside, other=0) if MASKED else tl.load(table + keys // BLOCK)
        lines = (blocks.to(tl.int64) * BLOCK + keys % BLOCK) * KEYS + head
        scales = (blocks.to(tl.int64) * KEYS + head) * BLOCK + keys % BLOCK
        places = lines[:, None] * half + dims[None, :]
        if MASKED:
            here = inside[:, None] & (dims < half)[None, :]
            k = tl.load(k_ptr + places, mask=here, other=0)
            v = tl.load(v_ptr + places, mask=here, other=0)
            k_scale = tl.load(ks_ptr + scales, mask=inside, other=0.0)
            v_scale = tl.load(vs_ptr + scales, mask=inside, other=0.0)
        else:
            here = (dims < half)[None, :]
            k = tl.load(k_ptr + places) if D == DP else tl.load(k_ptr + places, mask=here, other=0)
            v = tl.load(v_ptr + places) if D == DP else tl.load(v_ptr + places, mask=here, other=0)
            k_scale = tl.load(ks_ptr + scales)
            v_scale = tl.load(vs_ptr + scales)
        k0, k1 = _unpack(k, ASM)
        weights = tl.dot(q1, tl.trans(k1), tl.dot(q0, tl.trans(k0))) * k_scale[None, :]
        weights, peak, total, shrink = _attend(weights, peak, total, at, keys, last, window, MASKED, WINDOWED)
        weights = (weights * v_scale[None, :]).to(tl.float16)
        v0, v1 = _unpack(v, ASM)
        acc0 = tl.dot(weights, v0, acc0 * shrink)
        acc1 = tl.dot(weights, v1, acc1 * shrink)
    return acc0, acc1, peak, total


@triton.jit
def _tile(
    q_ptr, out_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, places, seen, at, first, whole, last, window, scale,
    M: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, TILE: tl.constexpr,
    FP8: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Attend M lines of queries, whose numbers begin at `places` [M], to keys [first, last), masked from `whole` on.

    Writes them at the same places of out_ptr where `seen` [M], and returns the base-2 log-sum-exp [M].
    """
    peak = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if FP8:
        dims = tl.arange(0, DP // 2) * 2
        here = seen[:, None] & (dims < D)[None, :]
        spots = places[:, None] + dims[None, :]
        q0 = (tl.load(q_ptr + spots, mask=here, other=0.0).to(tl.float32) * scale).to(tl.float16)
        q1 = (tl.load(q_ptr + spots + 1, mask=here, other=0.0).to(tl.float32) * scale).to(tl.float16)
        acc0 = tl.zeros([M, DP // 2], tl.float32)
        acc1 = tl.zeros([M, DP // 2], tl.float32)
        acc0, acc1, peak, total = _walk8(
            q0, q1, acc0, acc1, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, first, whole, window,
            KEYS, D, DP, TILE, False, WINDOWED, ASM,
        )  # fmt: skip
        acc0, acc1, peak, total = _walk8(
            q0, q1, acc0, acc1, peak, total, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head, at, whole, last, window,
            KEYS, D, DP, TILE, True, WINDOWED, ASM,
        )  # fmt: skip
        share = 1.0 / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(out_ptr + spots, (acc0 * share).to(out_ptr.dtype.element_ty), mask=here)
        tl.store(out_ptr + spots + 1, (acc1 * share).to(out_ptr.dtype.element_ty), mask=here)
    else:
        dims = tl.arange(0, DP)
        here = seen[:, None] & (dims < D)[None, :]
        spots = places[:, None] + dims[None, :]
        q = tl.load(q_ptr + spots, mask=here, other=0.0)
        q = (q.to(tl.float32) * scale).to(q_ptr.dtype.element_ty)
        acc = tl.zeros([M, DP], tl.float32)
        acc, peak, total = _walk(
            q, acc, peak, total, k_ptr, v_ptr, table, head, at, first, whole, window,
            KEYS, D, DP, TILE, False, WINDOWED, EXACT,
        )  # fmt: skip
        acc, peak, total = _walk(
            q, acc, peak, total, k_ptr, v_ptr, table, head, at, whole, last, window,
            KEYS, D, DP, TILE, True, WINDOWED, EXACT,
        )  # fmt: skip
        acc /= tl.where(total == 0, 1.0, total)[:, None]
        tl.store(out_ptr + spots, acc.to(out_ptr.dtype.element_ty), mask=here)
    return tl.where(total == 0, float("-inf"), peak + tl.log2(tl.where(total == 0, 1.0, total)))


@triton.jit
def decode_kernel(
    q_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr, tables, rows, positions, out_ptr, lse_ptr, table_stride, window, scale, split,
    HEADS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr, TILE: tl.constexpr,
    WHOLE: tl.constexpr, FP8: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """One sequence, key head and split: out [S, B, H, D] and log-sum-exp [S, B, H], which WHOLE (S is 1) needs not."""
    number, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = HEADS // KEYS
    length = (tl.load(positions + number) + 1).to(tl.int32)
    first = part * split
    last = tl.minimum(first + split, length)
    if WINDOWED:
        first = tl.maximum(first, (length - window) // TILE * TILE)
    members = tl.arange(0, GP)
    heads = head * group + members
    index = (part * tl.num_programs(0) + number) * HEADS
    if first < last:
        table = tables + tl.load(rows + number) * table_stride
        at = tl.zeros([GP], tl.int32) + (length - 1)
        # The last tile alone may reach beyond the end.
        whole = first + (last - first) // TILE * TILE
        lse = _tile(
            q_ptr, out_ptr + index.to(tl.int64) * D - number * HEADS * D, k_ptr, v_ptr, ks_ptr, vs_ptr, table, head,
            (number * HEADS + heads) * D, members < group, at, first, whole, last, window, scale,
            GP, KEYS, D, DP, TILE, FP8, WINDOWED, EXACT, ASM,
        )  # fmt: skip
        if not WHOLE:
            tl.store(lse_ptr + index + heads, lse, mask=members < group)
    elif not WHOLE:
        tl.store(lse_ptr + index + heads, tl.full([GP], float("-inf"), tl.float32), mask=members < group)


@triton.jit(do_not_specialize=["count", "parts"])  # else compiled anew for numbers that 16 divides
def merge_kernel(
    part_ptr, lse_ptr, out_ptr, count, parts, D: tl.constexpr, DP: tl.constexpr, LINES: tl.constexpr
):  # fmt: skip
    """Merge the parts of LINES of the B H lines of the result, weighted by their log-sum-exp. count: B H."""
    lines = tl.program_id(0) * LINES + tl.arange(0, LINES)
    real = lines < count
    dims = tl.arange(0, DP)
    here = real[:, None] & (dims < D)[None, :]
    peak = tl.full([LINES], float("-inf"), tl.float32)
    for part in range(parts):
        peak = tl.maximum(peak, tl.load(lse_ptr + part * count + lines, mask=real, other=0.0))
    total = tl.zeros([LINES], tl.float32)
    acc = tl.zeros([LINES, DP], tl.float32)
    for part in range(parts):
        lse = tl.load(lse_ptr + part * count + lines, mask=real, other=0.0)
        weight = tl.exp2(lse - peak)
        total += weight
        # A part without keys was never written.
        there = here & (lse > float("-inf"))[:, None]
        spots = (part * count + lines).to(tl.int64)[:, None] * D + dims[None, :]
        acc += weight[:, None] * tl.load(part_ptr + spots, mask=there, other=0.0)
    spots = lines[:, None] * D + dims[None, :]
    tl.store(out_ptr + spots, (acc / total[:, None]).to(out_ptr.dtype.element_ty), mask=here)


@triton.jit
def prefill_kernel(
    q_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr, tables, tiles, out_ptr, table_stride, window, scale,
    HEADS: tl.constexpr, KEYS: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, GP: tl.constexpr, QUERIES: tl.constexpr,
    TILE: tl.constexpr, FP8: tl.constexpr, WINDOWED: tl.constexpr, EXACT: tl.constexpr, ASM: tl.constexpr,
    ALIKE: tl.constexpr,
):  # fmt: skip
    """Up to QUERIES consecutive queries of one prompt, all heads of one key head. tiles: int32 [N, 4], see tiling."""
    tile, head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = HEADS // KEYS
    row = tl.load(tiles + tile * 4).to(tl.int64)
    begin = tl.load(tiles + tile * 4 + 1)
    position = tl.load(tiles + tile * 4 + 2)
    count = tl.load(tiles + tile * 4 + 3)
    lines = tl.arange(0, QUERIES * GP)
    query, member = lines // GP, lines % GP
    first = 0
    if WINDOWED:
        first = tl.maximum(position - window + 1, 0) // TILE * TILE
    # Up to here every query sees every key, unless a window ends before it.
    whole = tl.maximum((position + 1) // TILE * TILE, first)
    if ALIKE:
        # A scaled logit is rounded before it is masked, and may not be where no mask is in the way.
        whole = first
    _tile(
        q_ptr, out_ptr, k_ptr, v_ptr, ks_ptr, vs_ptr, tables + row * table_stride, head,
        ((begin + query).to(tl.int64) * HEADS + head * group + member) * D, (query < count) & (member < group),
        position + query, first, whole, position + count, window, scale,
        QUERIES * GP, KEYS, D, DP, TILE, FP8, WINDOWED, EXACT, ASM,
    )  # fmt: skip
