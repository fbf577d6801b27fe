"""The Triton kernels of engine.cuda.sampling, which says what they do. One program works on one row of logits."""

from __future__ import annotations

import triton
import triton.language as tl

_LOWEST = tl.constexpr(-2147483648)


@triton.jit
def _adjusted(logits_ptr, seen_ptr, lane, size, penalty, temperature, SEEN: tl.constexpr):
    """Logits [WIDTH] after repetition penalty and temperature; -inf beyond the row."""
    x = tl.load(logits_ptr + lane, mask=lane < size, other=float("-inf")).to(tl.float32)
    if SEEN:
        seen = tl.load(seen_ptr + lane, mask=lane < size, other=0) != 0
        x = tl.where(seen, tl.where(x < 0, x * penalty, x / penalty), x)
    return x / temperature


@triton.jit
def _ordered(x):
    """Integers in the order of floats."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _float(order):
    bits = tl.where(order < 0, order ^ 0x7FFFFFFF, order)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def cutoff_kernel(
    logits_ptr, seen_ptr, rows, out_ptr, size, penalty, temperature, top_k, top_p, log_min_p,
    SEEN: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr, MIN_P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The lowest logit that top-k, top-p and min-p keep, found by bisection over the floats."""
    number = tl.program_id(0).to(tl.int64)
    logits_ptr += number * size
    seen_ptr += tl.load(rows + number) * size
    highest = float("-inf")
    for start in range(0, size, WIDTH):
        lane = start + tl.arange(0, WIDTH)
        x = _adjusted(logits_ptr, seen_ptr, lane, size, penalty, temperature, SEEN)
        highest = tl.maximum(highest, tl.max(x))
    top = _ordered(highest)
    least = tl.full([], _LOWEST, tl.int32)
    if TOP_K:
        # The largest number that at least top_k logits reach.
        low, high = least, top
        for _ in range(32):
            middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
            count = 0
            for start in range(0, size, WIDTH):
                lane = start + tl.arange(0, WIDTH)
                x = _adjusted(logits_ptr, seen_ptr, lane, size, penalty, temperature, SEEN)
                count += tl.sum(((_ordered(x) >= middle) & (lane < size)).to(tl.int32))
            low = tl.where(count >= top_k, middle, low)
            high = tl.where(count >= top_k, high, middle - 1)
        least = low
    if TOP_P:
        whole = 0.0
        for start in range(0, size, WIDTH):
            lane = start + tl.arange(0, WIDTH)
            x = _adjusted(logits_ptr, seen_ptr, lane, size, penalty, temperature, SEEN)
            whole += tl.sum(tl.where(_ordered(x) >= least, tl.exp(x - highest), 0.0))
        # The largest number above which lies at least the share top_p; the likeliest token is always kept.
        low, high = least, top
        for _ in range(32):
            middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
            share = 0.0
            for start in range(0, size, WIDTH):
                lane = start + tl.arange(0, WIDTH)
                x = _adjusted(logits_ptr, seen_ptr, lane, size, penalty, temperature, SEEN)
                share += tl.sum(tl.where(_ordered(x) >= middle, tl.exp(x - highest), 0.0))
            enough = share >= top_p * whole
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle - 1)
        least = low
    cutoff = _float(least)
    if MIN_P:
        cutoff = tl.where(cutoff >= highest + log_min_p, cutoff, highest + log_min_p)
    tl.store(out_ptr + number, cutoff)


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox 4x32-10; see engine.philox."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _gumbel(word):
    """Gumbel noise from 32 random bits, as engine.philox makes exponentials."""
    uniform = tl.minimum((word.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 1 - 2.0**-24)
    # log1p(-u): the rounding of 1 - u is divided out again.
    rest = 1.0 - uniform
    lost = rest - 1.0
    exponential = tl.where(lost == 0, uniform, tl.log(rest) * (uniform / tl.where(lost == 0, 1.0, lost)))
    return -tl.log(exponential)


@triton.jit
def draw_kernel(
    logits_ptr, seen_ptr, cutoff_ptr, streams_ptr, rows, index_ptr, out_ptr, size, penalty, temperature,
    SEEN: tl.constexpr, CUT: tl.constexpr, NOISE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The token with the highest logit after penalty, temperature, cut-off and noise; -1 for a row with NaN."""
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + number)
    logits_ptr += number * size
    seen_ptr += row * size
    cutoff = float("-inf")
    if CUT:
        cutoff = tl.load(cutoff_ptr + number)
    key0 = tl.load(streams_ptr + row * 4).to(tl.uint32)
    key1 = tl.load(streams_ptr + row * 4 + 1).to(tl.uint32)
    word2 = tl.load(streams_ptr + row * 4 + 2).to(tl.uint32)
    word3 = tl.load(streams_ptr + row * 4 + 3).to(tl.uint32)
    index = tl.load(index_ptr + number).to(tl.uint32)
    best = tl.full([WIDTH], float("-inf"), tl.float32)
    where = tl.zeros([WIDTH], tl.int32)
    wrong = tl.zeros([WIDTH], tl.int32)
    for start in range(0, size, WIDTH):
        lane = start + tl.arange(0, WIDTH)
        x = _adjusted(logits_ptr, seen_ptr, lane, size, penalty, temperature, SEEN)
        wrong += (x != x).to(tl.int32)
        if CUT:
            x = tl.where(x < cutoff, float("-inf"), x)
        if NOISE:
            zeros = tl.zeros([WIDTH // 4], tl.uint32)
            block = (start // 4 + tl.arange(0, WIDTH // 4)).to(tl.uint32)
            a, b, c, d = _philox(block, zeros + index, zeros + word2, zeros + word3, zeros + key0, zeros + key1)
            words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [WIDTH])
            x += _gumbel(words)
        where = tl.where(x > best, lane, where)
        best = tl.maximum(best, x)
    highest = tl.max(best)
    # Of equal logits the first, as torch.argmax on CPU.
    token = tl.min(tl.where(best == highest, where, 2147483647))
    tl.store(out_ptr + number, tl.where(tl.sum(wrong) > 0, -1, token).to(tl.int64))
