"""The Triton kernel of engine.cuda.int4, which says what it does. One program works on a few groups of weights."""

from __future__ import annotations

import triton
import triton.language as tl

# The bits of the float32 2^23, whose last place is 1: an integer of up to 23 bits in its lowest ones is added exactly,
# which costs a logical operation where a conversion would cost eight cycles.
_BITS = tl.constexpr(0x4B000000)
_TWO_23 = tl.constexpr(8388608.0)


@triton.jit
def unpack_kernel(pairs_ptr, steps_ptr, zeros_ptr, out_ptr, groups, HALF: tl.constexpr, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    inside = group < groups
    step = tl.load(steps_ptr + group, mask=inside, other=0.0)[:, None]
    zero = _TWO_23 + tl.load(zeros_ptr + group, mask=inside, other=0).to(tl.float32)[:, None]
    at = group[:, None] * HALF + tl.arange(0, HALF)[None, :]
    pairs = tl.load(pairs_ptr + at, mask=inside[:, None], other=0).to(tl.int32)
    first = (((pairs & 15) | _BITS).to(tl.float32, bitcast=True) - zero) * step
    second = (((pairs >> 4) | _BITS).to(tl.float32, bitcast=True) - zero) * step
    lane = group[:, None] * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :]
    tl.store(out_ptr + lane, tl.interleave(first, second).to(out_ptr.dtype.element_ty), mask=inside[:, None])
