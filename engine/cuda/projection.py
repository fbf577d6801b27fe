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

from engine.cuda.elementwise import Activations, Product
from engine.cuda.product import product
from engine.cuda.sparse import MOST_DENSE, sparse_weight
from engine.fp8 import FP8, Fp8Linear, Rounded
from engine.int4_linear import Int4Linear

LINEAR = (nn.Linear, Fp8Linear, Int4Linear)


class Projection:
    """A product with the weights of one linear layer, or of several over the same input."""

    def __init__(self, parts: Seq[Any], dtype: torch.dtype, *, invariant: bool = False, sparse: bool = False) -> None:
        """parts: linear layers of one kind and input, whose outputs are given side by side in `dtype`.

        invariant: whether a row's product is to be the same beside whatever other rows; sparse: whether weights that
        are 2:4 sparse may be multiplied as such by many rows.
        Raises ValueError for layers of different kinds.
        """
        self._dtype, self._invariant = dtype, invariant
        self.inputs: int = parts[0].in_features
        """Numbers of a row of x."""
        kind, names = type(parts[0]), _names(parts[0])
        if kind not in LINEAR or any(type(part) is not kind or _names(part) != names for part in parts):
            raise ValueError("projections of one input are of different kinds")
        self._whole = {name: _fuse_in(parts, name) for name in names}
        self._bias = _bias(parts)
        self._product: Any = None if kind is nn.Linear else kind(**self._whole, bias=self._bias)
        self._sparse = sparse_weight(**self._whole) if sparse and kind is Fp8Linear and self._bias is None else None

    @property
    def quantized(self) -> bool:
        """Whether activations are to be in 8 bits."""
        return self._product is not None and self._product.scale is not None

    @property
    def adds(self) -> bool:
        """Whether `add` can be used."""
        return not self.quantized and self._bias is None and not self._invariant

    def add(self, x: Tensor, total: Tensor) -> None:
        """Add the product for x [T, in] to `total` [T, out], without a pass over memory of its own."""
        weight = self._whole["weight"] if self._product is None else self._product.weight_in(x.dtype)
        total.addmm_(x, weight.t())

    def __call__(self, x: Activations) -> Tensor:
        """x [T, in] -> [T, out]."""
        if self._invariant:
            return self._alone(x)
        if self._product is not None:
            multiplied: Tensor = self._product.multiply(x, self._dtype)
            return multiplied
        assert not isinstance(x, Rounded)
        return linear(x, self._whole["weight"], self._bias)

    def unscaled(self, x: Activations) -> Product:
        """The same [T, out], or still without its scales where that is faster; for kernels that take both."""
        if self._sparse is None or not isinstance(x, Rounded) or len(x.values) <= MOST_DENSE:
            return self(x)
        return self._sparse.multiply(x)

    def _alone(self, x: Activations) -> Tensor:
        if self._product is None:
            return product(x, self._whole["weight"], None, self._bias, self._dtype)
        weight = self._product.weight_in(FP8 if self.quantized else self._dtype)
        return product(x, weight, self._product.scale, self._bias, self._dtype)


def _names(part: Any) -> tuple[str, ...]:
    """The tensors of a layer that have a row for each output."""
    names: tuple[str, ...] = getattr(part, "rows", ("weight",))
    return names


def _fuse_in(parts: Seq[Any], name: str) -> Tensor:
    """The tensors `name` of the parts, one below the other; the parts get views of that."""
    whole = _fuse([getattr(part, name).detach() for part in parts])
    start = 0
    for part in parts:
        old = getattr(part, name)
        view = whole[start : start + len(old)]
        if view.data_ptr() != old.data_ptr():
            setattr(part, name, nn.Parameter(view, requires_grad=False) if isinstance(old, nn.Parameter) else view)
        start += len(old)
    return whole


def _bias(parts: Seq[Any]) -> Tensor | None:
    """The biases end to end, zeros where a part has none; None where no part has one."""
    some = next((part.bias for part in parts if part.bias is not None), None)
    if some is None:
        return None
    biases = [some.new_zeros(part.out_features) if part.bias is None else part.bias.detach() for part in parts]
    return torch.cat(biases)


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
