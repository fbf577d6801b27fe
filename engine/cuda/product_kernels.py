"""The Triton kernel of engine.cuda.product, which says what it does."""

from __future__ import annotations

import triton
import triton.language as tl

# Tiles of rows whose programs are neighbours, so that they find each other's weights in the cache.
_GROUP = tl.constexpr(8)


@triton.jit(do_not_specialize=["rows"])
def product_kernel(
    x_ptr, weight_ptr, x_scale_ptr, weight_scale_ptr, bias_ptr, out_ptr, rows, outputs, inner,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr, EXACT: tl.constexpr,
    SCALED: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """A tile [M, N] of x [rows, inner] times weight [outputs, inner]. EVEN: K divides inner."""
    tall, wide = tl.cdiv(rows, M), tl.cdiv(outputs, N)
    program = tl.program_id(0)
    group = program // (_GROUP * wide)
    height = tl.minimum(tall - group * _GROUP, _GROUP)
    within = program % (_GROUP * wide)
    row = (group * _GROUP + within % height) * M + tl.arange(0, M)
    column = within // height * N + tl.arange(0, N)
    # Beyond the ends something is read that is there, and not written.
    x_line = x_ptr + (row % rows).to(tl.int64)[:, None] * inner
    weight_line = weight_ptr + (column % outputs).to(tl.int64)[:, None] * inner
    acc = tl.zeros([M, N], tl.float32)
    for start in range(0, inner, K):
        lane = start + tl.arange(0, K)
        if EVEN:
            x = tl.load(x_line + lane[None, :])
            weight = tl.load(weight_line + lane[None, :])
        else:
            x = tl.load(x_line + lane[None, :], mask=(lane < inner)[None, :], other=0.0)
            weight = tl.load(weight_line + lane[None, :], mask=(lane < inner)[None, :], other=0.0)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision="ieee" if EXACT else None)
    if SCALED:
        x_scale = tl.load(x_scale_ptr + row, mask=row < rows, other=0.0)
        weight_scale = tl.load(weight_scale_ptr + column, mask=column < outputs, other=0.0)
        acc = acc * x_scale[:, None] * weight_scale[None, :]
    if BIAS:
        acc += tl.load(bias_ptr + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
    spots = row.to(tl.int64)[:, None] * outputs + column[None, :]
    inside = (row < rows)[:, None] & (column < outputs)[None, :]
    tl.store(out_ptr + spots, acc.to(out_ptr.dtype.element_ty), mask=inside)
