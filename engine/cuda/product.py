"""Products whose every row is the same in whatever batch it is.

A library chooses tiles, and how a sum is divided among them, by the number of rows; so a row is rounded differently in
another batch. Here one program adds all of a sum's terms in their order, whatever the number of rows (He 2025,
"Defeating Nondeterminism in LLM Inference"). The few tile shapes that there are all add in the same steps, so that
small batches may have smaller ones: tests/gpu compares them bit by bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from engine.cuda.elementwise import Activations
from engine.cuda.product_kernels import product_kernel
from engine.fp8 import Rounded


class _Tile(NamedTuple):
    rows: int
    outputs: int
    inner: int
    warps: int
    stages: int


_FEW = 128
"""Rows up to which the first tile is the faster one."""
TILES = {
    1: (_Tile(128, 128, 128, 4, 4), _Tile(128, 256, 128, 8, 3)),
    2: (_Tile(64, 128, 64, 4, 5), _Tile(256, 128, 64, 8, 3)),
    4: (_Tile(32, 64, 32, 4, 2), _Tile(32, 64, 32, 4, 2)),
}
"""For few rows and for many, by bytes of a number. Their steps along a sum are alike."""


def product(x: Activations, weight: Tensor, scale: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[R, out] in `dtype` of x [R, in], weight [out, in] and bias [out].

    Where x is in 8 bits, `scale` float32 [out, 1] is that of the weight.
    """
    values, scales = (x.values, x.scales) if isinstance(x, Rounded) else (x, None)
    values = values.contiguous()
    rows, inner = values.shape
    out = torch.empty(rows, len(weight), dtype=dtype, device=values.device)
    if not rows:
        return out
    tile = TILES[values.element_size()][rows > _FEW]
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(len(weight), tile.outputs),)
    product_kernel[grid](
        values, weight, values if scales is None else scales, weight if scale is None else scale,
        weight if bias is None else bias, out, rows, len(weight), inner,
        M=tile.rows, N=tile.outputs, K=tile.inner, EVEN=inner % tile.inner == 0, EXACT=values.dtype == torch.float32,
        SCALED=scales is not None, BIAS=bias is not None, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out
