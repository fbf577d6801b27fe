"""Quantized checkpoints: each quantized linear's tensors become one source of its dequantized weight.

A weight is dequantized on the device when it is read, one at a time, so that beside the model only one tensor's worth
of memory is needed; the rest of the loader sees an ordinary checkpoint. Weights that are to stay in 4 bits are read in
the form of engine.int4_linear instead, whichever of the formats they are stored in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from types import EllipsisType
from typing import Any

import torch

from engine import int4
from engine.int4_linear import group_of
from engine.quantized_formats import Int4Format, read_format
from engine.weights import Source

# One weight is dequantized at a time, though several threads read: the device would do them one by one anyway, and so
# the intermediate float32 values exist once.
_DEQUANTIZING = Lock()


Stays = Callable[[str, list[int], int], bool]
"""Whether a linear, given its name, its weight's shape and the inputs of a group, is to stay in 4 bits."""


def dequantized(
    quantization: Mapping[str, Any],
    sources: Mapping[str, Source],
    dtype: torch.dtype,
    stays: Stays | None = None,
) -> dict[str, Source]:
    """The checkpoint's sources with each quantized linear's replaced by one "weight" in `dtype`.

    Those that `stays` chooses, among the ones that can stay in 4 bits, are replaced by "pairs", "steps" and "zeros".
    Raises ValueError for a format that cannot be read, and for tensors missing or of shapes that do not fit.
    """
    form = read_format(quantization)
    plain = dict(sources)
    suffix = "." + form.anchor
    for name in [name.removesuffix(suffix) for name in sources if name.endswith(suffix)]:
        parts = {part: plain.pop(f"{name}.{part}") for part in form.parts + form.optional if f"{name}.{part}" in plain}
        for part in form.unused:
            plain.pop(f"{name}.{part}", None)
        for part in form.parts:
            if part not in parts:
                raise ValueError(f"weight {name}.{part} is missing from the quantized checkpoint")
        shapes = {part: list(source.get_shape()) for part, source in parts.items()}
        if len(shapes[form.parts[0]]) != 2:
            raise ValueError(f"weight {name} is quantized with {len(shapes[form.parts[0]])} dimensions, not 2")
        shape = form.shape(name, shapes)
        if isinstance(form, Int4Format):
            group = group_of(shape[1], shape[1] // form.groups(shapes))
            if group is not None and stays is not None and stays(name, shape, group):
                plain |= {f"{name}.{part}": source for part, source in _packed(form, parts, shape, group).items()}
                continue
        plain[f"{name}.weight"] = _Derived(parts, shape, dtype, partial(form.weight, dtype=dtype))
    return plain


def _packed(form: Int4Format, parts: Mapping[str, Source], shape: list[int], group: int) -> dict[str, Source]:
    """The sources of a linear that stays in 4 bits, its groups cut into such of `group` inputs."""
    outputs, inputs = shape
    groups = inputs // group

    def derived(part: str, columns: int, dtype: torch.dtype, read: Callable[[torch.Tensor], torch.Tensor]) -> Source:
        def convert(stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
            found = read(stored[part])
            return found if found.shape[1] == columns else found.repeat_interleave(columns // found.shape[1], 1)

        return _Derived({part: parts[part]}, [outputs, columns], dtype, convert)

    def middle(stored: Mapping[str, torch.Tensor]) -> torch.Tensor:
        del stored
        return torch.full((outputs, groups), int4.SYMMETRIC_ZERO, dtype=torch.uint8)

    symmetric = form.offsets not in parts
    return {
        "pairs": derived(form.anchor, inputs // 2, torch.uint8, form.pairs),
        "steps": derived(form.scales, groups, torch.float32, form.steps),
        "zeros": _Derived({}, [outputs, groups], torch.uint8, middle)
        if symmetric
        else derived(form.offsets, groups, torch.uint8, form.zeros),
    }


_Convert = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


class _Derived:
    """A tensor made from stored ones, when it is read."""

    def __init__(self, parts: Mapping[str, Source], shape: list[int], dtype: torch.dtype, convert: _Convert) -> None:
        self._parts, self._shape, self._dtype, self._convert = parts, shape, dtype, convert

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return str(self._dtype)

    def __getitem__(self, index: EllipsisType) -> torch.Tensor:
        tensors = {part: source[...] for part, source in self._parts.items()}
        with _DEQUANTIZING:
            return self._convert(tensors)
