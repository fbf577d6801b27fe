"""Products with the weights of linear layers, those over the same input as one.

Fused weights replace those of the modules they came from, which keep working on views of them. Where the weights of
modules adjoin already, as they do after that, they are used as they lie: a model that is fused twice holds them once.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.cuda.elementwise import Activations
from engine.fp8 import Fp8Linear, Rounded

LINEAR = (nn.Linear, Fp8Linear)


class Projection:
    """A product with the weights of one linear layer, or of several over the same input."""

    def __init__(self, parts: Seq[Any], dtype: torch.dtype) -> None:
        """parts: linear layers of one kind and input, whose outputs are given side by side in `dtype`.

        Raises ValueError for layers of different kinds.
        """
        self._dtype = dtype
        if all(isinstance(part, Fp8Linear) for part in parts):
            self.quantized = True
        elif all(type(part) is nn.Linear for part in parts):
            self.quantized = False
        else:
            raise ValueError("projections of one input are of different kinds")
        weights, biases = [part.weight for part in parts], [part.bias for part in parts]
        self._weight = _fuse([weight.detach() for weight in weights])
        self._bias: Tensor | None = None
        some = next((bias for bias in biases if bias is not None), None)
        if some is not None:
            pairs = zip(weights, biases, strict=True)
            self._bias = torch.cat([some.new_zeros(len(w)) if b is None else b.detach() for w, b in pairs])
        if self.quantized:
            scales = torch.cat([part.scale for part in parts])
            self._product = Fp8Linear(self._weight, scales, self._bias)
        start = 0
        for part in parts:
            stop = start + len(part.weight)
            view = self._weight[start:stop]
            if view.data_ptr() != part.weight.data_ptr():
                part.weight = nn.Buffer(view) if self.quantized else nn.Parameter(view, requires_grad=False)
            start = stop

    @property
    def inputs(self) -> int:
        """Numbers of a row of x."""
        return self._weight.shape[1]

    @property
    def adds(self) -> bool:
        """Whether `add` can be used."""
        return not self.quantized and self._bias is None

    def add(self, x: Tensor, total: Tensor) -> None:
        """Add the product for x [T, in] to `total` [T, out], without a pass over memory of its own."""
        total.addmm_(x, self._weight.t())

    def __call__(self, x: Activations) -> Tensor:
        """x [T, in] -> [T, out]."""
        if isinstance(x, Rounded):
            return self._product.multiply(x, self._dtype)
        return linear(x, self._weight, self._bias)


def _fuse(weights: list[Tensor]) -> Tensor:
    """The weights [out, in] one below the other: copied, unless they adjoin in memory."""
    first = weights[0]
    if all(_adjoin(above, below) for above, below in pairwise(weights)):
        return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride(), first.storage_offset())
    if first.dtype.itemsize == 1:  # torch cannot concatenate 8-bit floats everywhere
        return torch.cat([weight.view(torch.uint8) for weight in weights]).view(first.dtype)
    return torch.cat(weights)


def _adjoin(above: Tensor, below: Tensor) -> bool:
    return (
        above.untyped_storage().data_ptr() == below.untyped_storage().data_ptr()
        and above.is_contiguous()
        and below.is_contiguous()
        and (above.dtype, above.shape[1]) == (below.dtype, below.shape[1])
        and above.storage_offset() + above.numel() == below.storage_offset()
    )
