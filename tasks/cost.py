"""How long work takes on a device: the rates of its ceilings, corrected by what earlier runs took.

    seconds = prefill + decode + KV + steps

Each term is arithmetic: FLOPs over the matrix rate, bytes over the bandwidth, and what lies between for each token and
step. The constants were fitted to three runs of a 7B model on an H100 (docs/performance-log.md, 2026-11-25). Where runs
were measured, each term gets a factor: one run gives all terms the same one, further ones that differ tell them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.model_shape import ModelShape
from tasks.devices import Ceilings
from tasks.work import Work

VERSION = 1
"""Of the arithmetic: factors that were found with another one say nothing."""

Terms = tuple[float, float, float, float]
"""Seconds of prefill, decode, KV reads and steps."""

# Kernels between the products read and write this many times a token's hidden state in each layer.
_TRAFFIC = 27
_TRAFFIC_FP8 = 36  # inputs are rounded on the way
# Reading an 8-bit cache reaches this much of the bandwidth, because it converts what it reads.
_READ_FP8 = 0.78
# Attention over prompts reaches this much of the rate of large products.
_ATTENTION = 0.31
_STEP_LAYERS = 28
# How much a factor may differ from the common one: small, because runs that are alike tell terms apart badly.
_STIFFNESS = 0.03
_LEAST, _MOST = 0.1, 10.0

_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
_FP8 = ("fp8", "awq-fp8")


@dataclass(frozen=True, slots=True)
class Precision:
    """How a run computes; every "auto" is resolved."""

    dtype: str
    quantization: str
    kv_dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is not quantized."""
        return _ITEMSIZE[self.dtype]

    @property
    def fp8(self) -> bool:
        """Whether products are in FP8."""
        return self.quantization in _FP8

    @property
    def weight_bytes(self) -> float:
        """Bytes of a layer's weight in memory; int4 ones are unpacked where they fit."""
        return 1.0 if self.fp8 else float(self.itemsize)

    @property
    def kv_itemsize(self) -> float:
        """Bytes of a number in the KV cache; in FP8 with its share of the scales."""
        return 1.04 if self.kv_dtype == "fp8" else float(self.itemsize)

    @property
    def name(self) -> str:
        """As people call it."""
        short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[self.dtype]
        weights = short if self.quantization == "none" else self.quantization
        return f"{weights}, fp8 KV" if self.kv_dtype == "fp8" else weights


def terms(work: Work, shape: ModelShape, precision: Precision, rates: Ceilings) -> Terms:
    """Seconds that the work takes by arithmetic alone."""
    flop = rates.matrix_flop_fp8 if precision.fp8 else rates.matrix_flop
    if precision.dtype == "float32" and rates.matrix_flop > 1e13:
        flop = rates.matrix_flop / 12  # a GPU's products in float32, without its matrix units
    between = (
        (_TRAFFIC_FP8 if precision.fp8 else _TRAFFIC)
        * shape.layers
        * shape.hidden
        * precision.itemsize
        / rates.copy_bytes
    )
    reading = rates.copy_bytes * (_READ_FP8 if precision.kv_dtype == "fp8" else 1)
    weights = shape.layer_parameters * precision.weight_bytes + shape.head_parameters * precision.itemsize
    prefill = 2 * (shape.layer_parameters * work.prefill_tokens + shape.head_parameters * work.sequences) / flop
    prefill += shape.pair_flops * work.prefill_pairs / (_ATTENTION * rates.matrix_flop) + between * work.prefill_tokens
    decode = max(
        work.decode_steps * weights / rates.copy_bytes, 2 * shape.parameters * work.decode_tokens / flop
    )  # a step reads every weight, and multiplies it with every row
    return (
        prefill,
        decode + between * work.decode_tokens,
        shape.kv_bytes(precision.kv_itemsize) * work.kv_positions / reading,
        (work.prefill_steps + work.decode_steps) * rates.step * shape.layers / _STEP_LAYERS,
    )


def fit(runs: Sequence[tuple[Terms, float]], trusted: float = 0.0) -> Terms:
    """Factors of the terms that give, as nearly as may be, what the runs took; a longer run counts for more.

    Args:
        runs: of each, its terms and the seconds measured; one at least.
        trusted: the arithmetic counts as a run of so many seconds, so that a short run, which is mostly warming up,
            does not decide alone.
    """
    computed, measured = np.array([run for run, _ in runs]), np.array([seconds for _, seconds in runs])
    if trusted:
        usual = computed.sum(axis=0) / computed.sum()
        computed, measured = np.vstack([computed, trusted * usual]), np.append(measured, trusted)
    weights = measured / measured.sum()
    common = float(np.exp((weights * np.log(measured / computed.sum(axis=1))).sum()))
    # Ridge regression of the relative errors: min w |A(1 + d) - 1|^2 + stiffness |d|^2.
    relative = computed * common / measured[:, None]
    scale = np.sqrt(weights)
    rows = np.vstack([relative * scale[:, None], np.sqrt(_STIFFNESS) * np.eye(relative.shape[1])])
    wanted = np.concatenate([(1 - relative.sum(axis=1)) * scale, np.zeros(relative.shape[1])])
    off = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    first, second, third, fourth = (common * np.clip(1 + off, _LEAST, _MOST)).tolist()
    return first, second, third, fourth


def seconds_of(computed: Terms, factors: Terms) -> float:
    """Seconds of terms with their factors."""
    return sum(term * factor for term, factor in zip(computed, factors, strict=True))
