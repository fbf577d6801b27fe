"""In which precision the weights of a run are computed with, chosen once, after loading.

"none" computes with the weights as they were loaded. "fp8" rounds every linear layer's weight and activations to 8
bits. "awq" is for int4 weights in groups of 128: those of an int4 checkpoint are used as they are, others are rounded
to nearest first. Int4 saves memory, not time, once a few hundred tokens share a step, so such weights are computed with
in FP8 where the GPU can, which holds each group's values closely, and else in the model's dtype: "awq-fp8" and
"awq-dtype" are these two, for whoever must know before which one "awq" is.

Whether int4 weights are unpacked here, once, or stay in 4 bits on the device and are unpacked for each product, is
another matter (engine.footprint): it changes no number.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from engine.fp8 import require_fp8, supports_fp8, to_fp8
from engine.int4_linear import Int4Linear
from engine.model import stored_in_int4

GROUP = 128


def quantize(model: PreTrainedModel, method: str, fits: Callable[[PreTrainedModel, int], bool] | None = None) -> str:
    """Apply model.quantization to a loaded model in place; how the products are computed, to be shown.

    `fits` is asked whether the model, now with Int4Linear layers, fits its device once their weights are unpacked to so
    many bytes each; without it they do. Raises ValueError where the device cannot.
    """
    fp8 = method in ("fp8", "awq-fp8") or (method == "awq" and supports_fp8(model.device))
    if fp8:
        require_fp8(model.device, f"model.quantization = {method!r}")
    what = ""
    if stored_in_int4(model):
        what = "int4 weights"
    elif method.startswith("awq"):
        what = _round_to_int4(model)
    layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
    keep = bool(layers) and fits is not None and not fits(model, 1 if fp8 else model.dtype.itemsize)
    if fp8:
        for layer in layers:
            layer.to_fp8()
    _unpack(model, keep=keep)
    if any(isinstance(module, Int4Linear) for module in model.modules()):
        what += ", kept in 4 bits"
    if fp8:
        to_fp8(model)
    numbers = "fp8" if fp8 else str(model.dtype).removeprefix("torch.")
    if what:
        return f"{what}, computed in {numbers}"
    return "fp8 weights and activations" if fp8 else numbers


def _unpack(model: PreTrainedModel, *, keep: bool) -> None:
    """Unpack int4 layers, one at a time; with `keep` only those whose neighbours are of another kind.

    Neighbours may be fused, and are fused only where they are alike.
    """
    for parent in list(model.modules()):
        linears = {name: child for name, child in parent.named_children() if isinstance(child, _LINEAR)}
        alike = len({(type(child), *_form(child)) for child in linears.values()}) == 1
        for name, child in linears.items():
            if isinstance(child, Int4Linear) and not (keep and alike):
                setattr(parent, name, child.unpacked(model.dtype))


_LINEAR = (nn.Linear, Int4Linear)


def _form(layer: nn.Linear | Int4Linear) -> tuple[int | bool, ...]:
    return (layer.group, layer.scale is None) if isinstance(layer, Int4Linear) else ()


def _round_to_int4(model: PreTrainedModel) -> str:
    """Round the linear layers' weights to int4, the head's excepted; what was rounded, to be shown.

    Layers whose inputs are not whole groups stay as they are.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    count = rounded = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or child is head:
                continue
            count += 1
            if child.in_features % GROUP == 0 and child.out_features % 8 == 0:
                setattr(parent, name, Int4Linear.of(child, GROUP))
                rounded += 1
    which = "" if rounded == count else f" in {rounded} of {count} layers"
    return f"weights rounded to int4 in groups of {GROUP}{which}"
