"""How quantized checkpoints store a linear layer: which tensors, of which shapes, and what they amount to.

AutoAWQ's "gemm" int4 (github.com/casper-hansen/AutoAWQ) and compressed-tensors' "pack-quantized" int4,
"float-quantized" FP8 and "int-quantized" int8 (github.com/vllm-project/compressed-tensors). The layers that a config
lists as left out need no look: their tensors have ordinary names. What the checkpoint says of activations is not used:
which precision the engine computes in is its own setting. Reading the tensors is left to engine.quantized.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from engine import int4

SUPPORTED = (
    "supported are awq (4 bits, version gemm, with zero points) and compressed-tensors "
    "(pack-quantized with 4 bits, float-quantized and symmetric int-quantized with 8)"
)


class Format(ABC):
    """How one linear's weight is stored: which tensors, of which shapes, and what they amount to."""

    anchor: ClassVar[str]  # the tensor whose presence marks a quantized linear
    parts: ClassVar[tuple[str, ...]]  # those that must be there
    optional: ClassVar[tuple[str, ...]] = ()  # those that are taken along if they are there
    unused: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def shape(self, name: str, shapes: Mapping[str, list[int]]) -> list[int]:
        """[out, in] of the linear `name`. Raises ValueError where the tensors' shapes do not fit together."""

    @abstractmethod
    def weight(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """The linear's weight [out, in] in `dtype`, on its tensors' device."""


class Int4Format(Format):
    """One of 4 bits, whose weights can also be had as they stay packed."""

    scales: ClassVar[str]  # the tensor of the groups' scales
    offsets: ClassVar[str]  # that of their zero points

    @abstractmethod
    def pairs(self, stored: torch.Tensor) -> torch.Tensor:
        """uint8 [out, in / 2] of the tensor `anchor`."""

    @abstractmethod
    def zeros(self, stored: torch.Tensor) -> torch.Tensor:
        """uint8 [out, groups] of the tensor `offsets`."""

    @abstractmethod
    def steps(self, stored: torch.Tensor) -> torch.Tensor:
        """float32 [out, groups] of the tensor `scales`."""

    @abstractmethod
    def groups(self, shapes: Mapping[str, list[int]]) -> int:
        """How many groups a row has."""


@dataclass(frozen=True)
class Awq(Int4Format):
    """AutoAWQ "gemm": qweight int32 [in, out / 8], qzeros int32 [groups, out / 8], scales float16 [groups, out]."""

    group_size: int  # -1: one group
    anchor = "qweight"
    parts = ("qweight", "qzeros", "scales")
    scales, offsets = "scales", "qzeros"

    def shape(self, name: str, shapes: Mapping[str, list[int]]) -> list[int]:
        inputs, packed = shapes["qweight"]
        groups = _groups(name, inputs, self.group_size)
        _expect(name, shapes, {"qzeros": [groups, packed], "scales": [groups, packed * 8]})
        return [packed * 8, inputs]

    def weight(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return int4.decode_awq(tensors["qweight"], tensors["qzeros"], tensors["scales"], dtype)

    def pairs(self, stored: torch.Tensor) -> torch.Tensor:
        return int4.pairs_of_awq(stored)

    def zeros(self, stored: torch.Tensor) -> torch.Tensor:
        return int4.zeros_of_awq(stored)

    def steps(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.float().t().contiguous()

    def groups(self, shapes: Mapping[str, list[int]]) -> int:
        return shapes["scales"][0]


@dataclass(frozen=True)
class PackQuantized(Int4Format):
    """compressed-tensors int4: weight_packed int32 [out, in / 8], weight_scale [out, groups], and if not symmetric
    weight_zero_point int32 [out / 8, groups]."""

    schemes: frozenset[tuple[int, bool]]  # the config's group sizes (-1: one group), and whether symmetric
    anchor = "weight_packed"
    parts = ("weight_packed", "weight_scale")
    optional = ("weight_zero_point", "weight_g_idx")
    unused = ("weight_shape",)
    scales, offsets = "weight_scale", "weight_zero_point"

    def shape(self, name: str, shapes: Mapping[str, list[int]]) -> list[int]:
        if "weight_g_idx" in shapes:
            raise ValueError(f"weight {name} is quantized in activation order (weight_g_idx), which is not supported")
        outputs, packed = shapes["weight_packed"]
        inputs = packed * 8
        groups = shapes["weight_scale"][-1]
        symmetric = {symmetric for size, symmetric in self.schemes if _groups(name, inputs, size) == groups}
        if not symmetric:
            raise ValueError(f"weight {name} has {groups} scales a row for {inputs} inputs, unlike config.json says")
        if ("weight_zero_point" not in shapes) not in symmetric:
            stored = "has" if "weight_zero_point" in shapes else "lacks"
            raise ValueError(f"weight {name} {stored} zero points (weight_zero_point), unlike config.json says")
        _expect(name, shapes, {"weight_scale": [outputs, groups], "weight_zero_point": [-(-outputs // 8), groups]})
        return [outputs, inputs]

    def weight(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return int4.decode(tensors["weight_packed"], tensors["weight_scale"], tensors.get("weight_zero_point"), dtype)

    def pairs(self, stored: torch.Tensor) -> torch.Tensor:
        return int4.pairs_of(stored)

    def zeros(self, stored: torch.Tensor) -> torch.Tensor:
        return int4.zeros_of(stored)

    def steps(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.float()

    def groups(self, shapes: Mapping[str, list[int]]) -> int:
        return shapes["weight_scale"][1]


@dataclass(frozen=True)
class EightBits(Format):
    """compressed-tensors FP8 or int8: weight float8_e4m3fn or int8 [out, in], weight_scale [out, 1] or a single one."""

    anchor = "weight_scale"
    parts = ("weight", "weight_scale")
    unused = ("input_scale",)

    def shape(self, name: str, shapes: Mapping[str, list[int]]) -> list[int]:
        outputs, inputs = shapes["weight"]
        if shapes["weight_scale"] not in ([], [1], [1, 1], [outputs, 1]):
            raise ValueError(f"weight {name} has scales of shape {shapes['weight_scale']}: neither one nor one a row")
        return [outputs, inputs]

    def weight(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return tensors["weight"].float().mul_(tensors["weight_scale"]).to(dtype)


def read_format(quantization: Mapping[str, Any]) -> Format:
    """The format that a config's `quantization_config` names. Raises ValueError for one that cannot be read."""
    method = quantization.get("quant_method")
    if method == "awq":
        _require("bits", quantization.get("bits"), 4)
        _require("version", str(quantization.get("version", "gemm")).lower(), "gemm")
        _require("zero_point", quantization.get("zero_point", True), True)
        return Awq(int(quantization.get("group_size", 128)))
    if method != "compressed-tensors":
        raise ValueError(f"the checkpoint's quantization method {method!r} is not supported; {SUPPORTED}")
    if (quantization.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ValueError(f"the checkpoint's weights are stored sparse, which is not supported; {SUPPORTED}")
    if (quantization.get("transform_config") or {}).get("config_groups"):
        raise ValueError(f"the checkpoint transforms its activations, which is not supported; {SUPPORTED}")
    groups = [group for group in quantization.get("config_groups", {}).values() if group.get("weights")]
    weights = [group["weights"] for group in groups]
    form = quantization.get("format")
    for group in groups:
        _require("config_groups.format", group.get("format"), None, form)
    if form == "pack-quantized":
        return PackQuantized(frozenset(_int4_scheme(scheme) for scheme in weights))
    if form in ("float-quantized", "int-quantized"):
        for scheme in weights:
            _require("num_bits", scheme.get("num_bits"), 8)
            _require("type", scheme.get("type"), form.removesuffix("-quantized"))
            _require("strategy", scheme.get("strategy"), "channel", "tensor")
            _require("symmetric", scheme.get("symmetric", True), True)
        return EightBits()
    raise ValueError(f"the checkpoint's compressed-tensors format {form!r} is not supported; {SUPPORTED}")


def is_int4(quantization: Mapping[str, Any]) -> bool:
    """Whether the format that can be read is one of 4 bits."""
    return isinstance(read_format(quantization), Int4Format)


def _int4_scheme(scheme: Mapping[str, Any]) -> tuple[int, bool]:
    """Group size (-1: one group) and whether it is symmetric."""
    _require("num_bits", scheme.get("num_bits"), 4)
    _require("type", scheme.get("type"), "int")
    _require("strategy", scheme.get("strategy"), "group", "channel")
    _require("actorder", scheme.get("actorder"), None, False, "weight", "static")
    return int(scheme["group_size"]) if scheme["strategy"] == "group" else -1, bool(scheme.get("symmetric", True))


def _require(key: str, value: object, *allowed: object) -> None:
    if value not in allowed:
        raise ValueError(f"the checkpoint's quantization has {key} = {value!r}, which is not supported; {SUPPORTED}")


def _groups(name: str, inputs: int, group_size: int) -> int:
    if group_size == -1:
        return 1
    if inputs % group_size:
        raise ValueError(f"weight {name} has {inputs} inputs, not a multiple of its group size {group_size}")
    return inputs // group_size


def _expect(name: str, shapes: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    for part, shape in expected.items():
        if part in shapes and shapes[part] != shape:
            raise ValueError(f"weight {name}.{part} has shape {shapes[part]} where {shape} is expected")
