"""Linear layers whose weights stay in 4 bits on the device, for models that do not fit it otherwise.

A product unpacks the layer's weight into memory that the next one takes over, and then is the product of the unpacked
layer: in FP8 where the layer was rounded to it, else in the dtype of its input. So whether weights stay packed decides
about memory and time, and never about the numbers. Kernels that multiply 4 bits as they read them save the way through
memory, which counts for batches of a few rows; but an offline batch has hundreds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine import int4
from engine.fp8 import FP8, MAX, Fp8Linear, Rounded, fits_fp8, product, round_rows

GROUPS = (128, 64, 32)
"""Inputs of a group, as the kernel takes them; larger groups are stored as several equal ones."""

_TINY = 1e-12


def group_of(inputs: int, group_size: int) -> int | None:
    """How many inputs a group has here, for a weight with `inputs` in groups of `group_size`; None if none divides."""
    return next((size for size in GROUPS if inputs % size == 0 and group_size % size == 0), None)


class Int4Linear(nn.Module):
    """A linear layer whose weight is kept in 4 bits.

    `pairs` uint8 [out, in / 2], `steps` float32 and `zeros` uint8 [out, groups], as engine.int4 has them; `scale`
    float32 [out, 1] where the layer computes in FP8: then `steps` are in units of it.
    """

    def __init__(
        self, pairs: Tensor, steps: Tensor, zeros: Tensor, bias: Tensor | None, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        self.pairs = nn.Buffer(pairs)
        self.steps = nn.Buffer(steps)
        self.zeros = nn.Buffer(zeros)
        self.scale: Tensor | None
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Buffer(bias)

    @classmethod
    def like(cls, linear: nn.Linear, group: int) -> Int4Linear:
        """A layer of the same shape and place, whose weight is to be filled in."""
        outputs, inputs = linear.weight.shape
        pairs = linear.weight.new_empty(outputs, inputs // 2, dtype=torch.uint8)
        steps = linear.weight.new_empty(outputs, inputs // group, dtype=torch.float32)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(pairs, steps, torch.empty_like(steps, dtype=torch.uint8), bias)

    @classmethod
    def of(cls, linear: nn.Linear, group: int) -> Int4Linear:
        """The layer rounded from a linear layer in higher precision, in groups of `group` inputs."""
        packed, scales, zeros = int4.encode(linear.weight.detach(), group)
        bias = None if linear.bias is None else linear.bias.detach()
        return cls(int4.pairs_of(packed), scales.float(), int4.zeros_of(zeros), bias)

    @property
    def out_features(self) -> int:
        return len(self.pairs)

    @property
    def in_features(self) -> int:
        return 2 * self.pairs.shape[1]

    @property
    def group(self) -> int:
        """Inputs of a group."""
        return self.in_features // self.steps.shape[1]

    @property
    def rows(self) -> tuple[str, ...]:
        """The tensors that have a row for each output."""
        return ("pairs", "steps", "zeros") if self.scale is None else ("pairs", "steps", "zeros", "scale")

    def to_fp8(self) -> None:
        """Compute in FP8 from now on, if the shape allows it: each row gets a scale."""
        if self.scale is None and fits_fp8(self.out_features, self.in_features):
            scale = int4.largest(self.pairs, self.steps, self.zeros).clamp_(min=_TINY) / MAX
            self.scale, self.steps = scale, nn.Buffer(self.steps / scale)

    def unpacked(self, dtype: torch.dtype) -> nn.Linear | Fp8Linear:
        """The layer with its weight in 8 bits where it computes so, else in `dtype`."""
        if self.scale is not None:
            return Fp8Linear(self.weight_in(FP8), self.scale, self.bias)
        weight = self.weight_in(dtype)
        made = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias, requires_grad=False)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        if self.scale is None:
            return self.multiply(x, x.dtype)
        return self.multiply(round_rows(x.reshape(-1, x.shape[-1])), x.dtype).view(*x.shape[:-1], self.out_features)

    def multiply(self, x: Tensor | Rounded, dtype: torch.dtype) -> Tensor:
        """The product [R, out] in `dtype`; x [R, in] is rounded already where the layer computes in FP8."""
        if isinstance(x, Rounded):
            assert self.scale is not None
            return product(x, Rounded(self.weight_in(FP8), self.scale), self.bias, dtype)
        return linear(x, self.weight_in(dtype), self.bias)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in `dtype`, without `scale`."""
        if self.pairs.is_cuda:
            from engine.cuda.int4 import unpack  # Triton is there where a GPU is

            return unpack(self.pairs, self.steps, self.zeros, dtype)
        return int4.unpack_pairs(self.pairs, self.steps, self.zeros, dtype)
