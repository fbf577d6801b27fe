"""Products with 2:4 sparse weights in 8 bits, by cuSPARSELt, for many rows.

The library takes neither a scale for each row nor, in FP8, one for each output, and a pass over the result for them
would cost what is gained. So the product goes with its scales to the kernel that reads it next.

Up to some thousand rows the dense product is faster: the library plans every call anew on the host. So a compressed
weight, 5/8 of the dense one's bytes, lies beside that.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from engine.fp8 import FP8, MULTIPLE, Rounded

MOST_DENSE = 4096
"""Rows up to which the dense product is used; a step that only decodes, which is captured in a graph, has no more."""

# cuSPARSELt wants outputs and inputs that this divides.
_MULTIPLE = 32
_MINUS_ZERO = 0x80
# Hopper: cuSPARSELt has FP8 for older GPUs only in its newest versions.
_CAPABILITY = (9, 0)
# Of a weight's bytes, what it is compressed to: half of its values, and which they are.
_COMPRESSED = 5 / 8
# Of the memory that is free, what compressed weights may take; the KV cache gains more from the rest.
_SHARE = 1 / 4

_fastest: dict[tuple[int, int, int], int] = {}
"""The number of the fastest algorithm, by outputs, inputs and the order of magnitude of rows."""


class Scaled(NamedTuple):
    """A product that is still to be multiplied by its scales: values [R, N], rows float32 [R, 1], columns [N]."""

    values: Tensor
    rows: Tensor
    columns: Tensor


class SparseWeight:
    """A compressed weight [out, in] with a scale for each output."""

    def __init__(self, compressed: Tensor, outputs: int, scale: Tensor) -> None:
        self._compressed, self._outputs = compressed, outputs
        self._scale = scale.flatten()

    def multiply(self, x: Rounded) -> Scaled:
        """[R, out] in bfloat16 of x [R, in], of engine.cuda.elementwise: with room for rows up to a multiple."""
        rows, inputs = x.values.shape
        whole = -(-rows // MULTIPLE) * MULTIPLE
        # Whatever the memory behind the rows holds, it is in the product's rows behind them alone.
        dense = x.values.as_strided((whole, inputs), (inputs, 1)).t()
        values = torch._cslt_sparse_mm(
            self._compressed, dense, out_dtype=torch.bfloat16, transpose_result=True, alg_id=self._algorithm(dense)
        )
        return Scaled(values[:rows], x.scales, self._scale)

    def _algorithm(self, dense: Tensor) -> int:
        inputs, rows = dense.shape
        key = self._outputs, inputs, rows.bit_length()
        if key not in _fastest:
            with warnings.catch_warnings():
                # Its successor is not in torch's interface yet.
                warnings.filterwarnings("ignore", "torch._cslt_sparse_mm_search is deprecated")
                _fastest[key] = torch._cslt_sparse_mm_search(
                    self._compressed, dense, out_dtype=torch.bfloat16, transpose_result=True
                )
        return _fastest[key]


def sparse_weight(weight: Tensor, scale: Tensor) -> SparseWeight | None:
    """The weight e4m3 [out, in], its scales [out, 1], compressed; None where it has not the pattern."""
    plain = positive_zeros(weight)
    return SparseWeight(torch._cslt_compress(plain), len(weight), scale) if has_pattern(plain) else None


def positive_zeros(weight: Tensor) -> Tensor:
    """The weight e4m3 with its minus zeros, which pruning by a product leaves, made plus zeros: of no bit."""
    bits = weight.view(torch.uint8)
    return bits.masked_fill(bits == _MINUS_ZERO, 0).view(FP8)


def has_pattern(weight: Tensor) -> bool:
    """Whether at most two of every four consecutive inputs of `weight` e4m3 [out, in] have any bit, and sizes fit."""
    if any(size % _MULTIPLE for size in weight.shape):
        return False
    return bool((weight.view(torch.uint8) != 0).view(-1, 4).sum(-1, dtype=torch.uint8).max() <= 2)


def usable(size: int, device: torch.device) -> bool:
    """Whether 8-bit weights of `size` bytes can be compressed on the device, and leave most of its free memory."""
    if device.type != "cuda" or not torch.backends.cusparselt.is_available():
        return False
    if torch.cuda.get_device_capability(device) < _CAPABILITY:
        return False
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return size * _COMPRESSED <= free * _SHARE
