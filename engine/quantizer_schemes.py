"""The number formats that a checkpoint can be quantized to: how they round, and what compressed-tensors calls them.

A scheme rounds a weight to what it will be computed with, and to what is stored. Both come from the same scales, which
are rounded to the model's dtype first, since that is what loaders keep them in. How good a rounding is, and what could
be done to the weight before it, is left to engine.awq_search.

int4: groups of inputs share a scale and a zero point; activations stay as they are (W4A16). fp8: e4m3, a scale for each
output, activations by one scale a token, found while the model runs, or by one calibrated scale a layer. int8: a scale
for each output, activations by one scale a token, so that the product is one of whole numbers (W8A8).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from engine import int4
from engine.fp8 import FP8, MAX
from engine.quantizer_settings import QuantizerSettings

_TINY = 1e-12
_INT8 = 127


@dataclass(frozen=True)
class Scheme(ABC):
    """One number format. `dtype` is that of the scales, the model's own."""

    dtype: torch.dtype
    format: ClassVar[str]  # what compressed-tensors calls it

    @abstractmethod
    def rounded(self, weight: Tensor, kept: Tensor | None = None) -> Tensor:
        """The weight [out, in] as it will be computed with, in its own dtype.

        `kept` [out, groups] is the share of each group's range that the levels cover; None for all of it.
        """

    @abstractmethod
    def stored(self, weight: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """The tensors of a linear by their names in a checkpoint, for its weight [out, in]; `kept` as in rounded."""

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """compressed-tensors' "weights" of a config group."""

    def inputs(self) -> dict[str, Any] | None:
        """compressed-tensors' "input_activations" of a config group."""
        return None

    def rounded_input(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Activations [..., in] as they will be computed with; `scale`, where it is static, is that of the layer."""
        del scale
        return x

    def config(self, ignore: list[str]) -> dict[str, Any]:
        """The `quantization_config` of config.json, for a model whose linears `ignore` stay as they are."""
        group = {"targets": ["Linear"], "weights": self.weights(), "input_activations": self.inputs()}
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group | {"output_activations": None}},
            "ignore": ignore,
            "kv_cache_scheme": None,
        }


@dataclass(frozen=True)
class Int4(Scheme):
    """4 bits in groups of `group` inputs."""

    group: int
    symmetric: bool
    format = "pack-quantized"

    def grid(self, grouped: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scales and zero points [out, groups] for weights [out, groups, group] whose range is cut to `kept`."""
        share = 1 if kept is None else kept
        if self.symmetric:
            return int4.symmetric_grid(grouped.abs().amax(-1) * share, self.dtype)
        return int4.grid(grouped.amin(-1) * share, grouped.amax(-1) * share, self.dtype)

    def rounded_groups(self, grouped: Tensor, kept: Tensor | None = None) -> Tensor:
        """Weights [out, groups, group] as computed with, float32."""
        scales, zeros = self.grid(grouped, kept)
        values = int4.levels(grouped, scales, zeros)
        return values.sub_(zeros.unsqueeze(-1)).mul_(scales.float().unsqueeze(-1))

    def grouped(self, weight: Tensor) -> Tensor:
        """float32 [out, groups, group] of a weight [out, in]."""
        return weight.float().view(len(weight), -1, self.group)

    def rounded(self, weight: Tensor, kept: Tensor | None = None) -> Tensor:
        """See Scheme."""
        return self.rounded_groups(self.grouped(weight), kept).view_as(weight).to(weight.dtype)

    def stored(self, weight: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """See Scheme."""
        grouped = self.grouped(weight)
        scales, zeros = self.grid(grouped, kept)
        packed = int4.pack(int4.levels(grouped, scales, zeros).view_as(weight))
        tensors = {"weight_packed": packed, "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
        return tensors if self.symmetric else tensors | {"weight_zero_point": int4.pack_zeros(zeros)}

    def weights(self) -> dict[str, Any]:
        """See Scheme."""
        group: dict[str, Any] = {"strategy": "group", "group_size": self.group, "symmetric": self.symmetric}
        return {"num_bits": 4, "type": "int", "dynamic": False} | group


@dataclass(frozen=True)
class EightBits(Scheme):
    """8 bits with a scale for each output; what fp8 and int8 have in common."""

    kind: ClassVar[str]
    largest: ClassVar[float]

    @abstractmethod
    def values(self, x: Tensor) -> Tensor:
        """The nearest values of the format, in its dtype, for float32 ones in units of the scale."""

    def _scales(self, weight: Tensor) -> Tensor:
        """[out, 1], rounded so that the largest weight of a row is not beyond the largest value by much."""
        return (weight.float().abs().amax(1, keepdim=True).clamp_(min=_TINY) / self.largest).to(self.dtype)

    def rounded(self, weight: Tensor, kept: Tensor | None = None) -> Tensor:
        """See Scheme."""
        assert kept is None, "rows of 8 bits are not clipped"
        scales = self._scales(weight).float()
        return self.values(weight.float() / scales).float().mul_(scales).to(weight.dtype)

    def stored(self, weight: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """See Scheme."""
        assert kept is None, "rows of 8 bits are not clipped"
        scales = self._scales(weight)
        return {"weight": self.values(weight.float() / scales.float()), "weight_scale": scales}

    def rounded_input(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """See Scheme."""
        if scale is None:
            scale = x.float().abs().amax(-1, keepdim=True).clamp_(min=_TINY) / self.largest
        return self.values(x.float() / scale).float().mul_(scale).to(x.dtype)

    def input_scale(self, largest: Tensor) -> Tensor:
        """[1]: the static scale for activations of the magnitude `largest`."""
        return (largest.float().clamp(min=_TINY) / self.largest).to(self.dtype).view(1)

    def weights(self) -> dict[str, Any]:
        """See Scheme."""
        return {"num_bits": 8, "type": self.kind, "symmetric": True, "strategy": "channel", "dynamic": False}

    def inputs(self) -> dict[str, Any] | None:
        """See Scheme."""
        return {"num_bits": 8, "type": self.kind, "symmetric": True, "strategy": "token", "dynamic": True}


@dataclass(frozen=True)
class Float8(EightBits):
    """e4m3; `static`: one calibrated scale for a layer's activations."""

    static: bool
    format = "float-quantized"
    kind, largest = "float", MAX

    def values(self, x: Tensor) -> Tensor:
        """See EightBits."""
        return x.clamp(-MAX, MAX).to(FP8)

    def inputs(self) -> dict[str, Any] | None:
        """See Scheme."""
        found = super().inputs()
        assert found is not None
        return found | {"strategy": "tensor", "dynamic": False} if self.static else found


@dataclass(frozen=True)
class Int8(EightBits):
    """Whole numbers -127..127."""

    format = "int-quantized"
    kind, largest = "int", _INT8

    def values(self, x: Tensor) -> Tensor:
        """See EightBits."""
        return x.round().clamp_(-_INT8, _INT8).to(torch.int8)


def scheme_of(settings: QuantizerSettings, dtype: torch.dtype) -> Scheme:
    """The scheme that the settings name, for a model whose weights are stored in `dtype`."""
    if settings.int4:
        return Int4(dtype, settings.group_size, settings.symmetric)
    return Float8(dtype, settings.static_activations) if settings.quant_method == "fp8" else Int8(dtype)
