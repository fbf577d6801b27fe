"""Linear layers in FP8: weights and activations as e4m3 with one scale a row, products in bfloat16 out.

Weights get a scale for each output, activations one for each token, computed from their largest magnitude while the
model runs; nothing is calibrated. On a GPU of compute capability 8.9 or newer the product is torch._scaled_mm. On CPU
the rounded values are multiplied as ordinary numbers: slow, and the same function. The head stays as it is, since the
choice of a token hangs on small differences.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

FP8 = torch.float8_e4m3fn
MAX = torch.finfo(FP8).max
_TINY = 1e-12
MULTIPLE = 16
"""torch._scaled_mm wants outputs and inputs that this divides, sparse products rows."""


class Rounded(NamedTuple):
    """Rows in 8 bits: values float8 [R, N], scales float32 [R, 1]."""

    values: Tensor
    scales: Tensor


def round_rows(x: Tensor) -> Rounded:
    """x [R, N] in 8 bits, each row by its own scale."""
    scales = x.abs().amax(-1, keepdim=True).float().clamp_(min=_TINY) / MAX
    return Rounded((x.float() / scales).to(FP8), scales)


class Fp8Linear(nn.Module):
    """A linear layer whose weight is kept in 8 bits. `weight` [out, in] float8, `scale` float32 [out, 1]."""

    rows = ("weight", "scale")
    """The tensors that have a row for each output."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight)
        self.scale = nn.Buffer(scale)
        self.bias = None if bias is None else nn.Buffer(bias)

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return len(self.weight)

    @classmethod
    def of(cls, linear: nn.Linear) -> Fp8Linear:
        """The layer rounded from a linear layer in higher precision."""
        rounded = round_rows(linear.weight.detach())
        return cls(rounded.values, rounded.scales, None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] in the dtype of x."""
        return self.multiply(round_rows(x.reshape(-1, x.shape[-1])), x.dtype).view(*x.shape[:-1], self.out_features)

    def weight_in(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in], without `scale`, which is kept in 8 bits alone."""
        assert dtype == FP8
        return self.weight

    def multiply(self, x: Rounded, dtype: torch.dtype) -> Tensor:
        """The product for activations rounded already: [R, out] in `dtype`."""
        return product(x, Rounded(self.weight, self.scale), self.bias, dtype)


def product(x: Rounded, weight: Rounded, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[R, out] in `dtype` of x [R, in], weight [out, in] and bias [out]."""
    if not x.values.is_cuda:
        wide = (x.values.float() * x.scales) @ (weight.values.float() * weight.scales).t()
        return (wide if bias is None else wide + bias.float()).to(dtype)
    if not len(x.values):
        return torch.empty(0, len(weight.values), dtype=dtype, device=x.values.device)
    return torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scales, scale_b=weight.scales.t(),
        bias=None if bias is None else bias.to(torch.bfloat16), out_dtype=torch.bfloat16, use_fast_accum=True,
    ).to(dtype)  # fmt: skip


def fits_fp8(outputs: int, inputs: int) -> bool:
    """Whether a weight [outputs, inputs] can be multiplied in 8 bits."""
    return outputs % MULTIPLE == 0 and inputs % MULTIPLE == 0


def supports_fp8(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floats, or is slow at it either way, as a CPU is."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def require_fp8(device: torch.device, setting: str) -> None:
    """Raises ValueError, naming the setting with its value, on a GPU without 8-bit floats."""
    if not supports_fp8(device):
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ValueError(
            f"{setting} needs a GPU of compute capability 8.9 or newer (Ada, Hopper); this one has {capability}"
        )


def to_fp8(model: PreTrainedModel) -> None:
    """Replace the model's linear layers by FP8 ones, in place, one at a time; the head is left alone."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child is head:
                continue
            if fits_fp8(child.out_features, child.in_features):
                setattr(parent, name, Fp8Linear.of(child))
