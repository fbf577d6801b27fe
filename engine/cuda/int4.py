"""Weights of 4 bits unpacked on the device: the same numbers as engine.int4.unpack_pairs gives, at memory speed."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from engine.cuda.int4_kernels import unpack_kernel

_GROUPS = 16  # of one program


def unpack(pairs: Tensor, steps: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] in `dtype` of pairs uint8 [out, in / 2], steps float32 and zeros uint8 [out, groups].

    All are contiguous, and a group has 32, 64 or 128 inputs.
    """
    outputs, half = pairs.shape
    out = torch.empty(outputs, 2 * half, dtype=dtype, device=pairs.device)
    groups = steps.numel()
    unpack_kernel[(triton.cdiv(groups, _GROUPS),)](
        pairs, steps, zeros, out, groups, HALF=half * outputs // groups, GROUPS=_GROUPS, num_warps=4
    )
    return out
