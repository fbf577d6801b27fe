"""The least time a workload can take on a device: what the answers need, at the rates the device was measured at.

    prefill FLOPs / matrix rate + sum over decode steps of max(weight bytes / bandwidth, FLOPs / matrix rate)
    + KV bytes read / bandwidth

Only unique work counts: equal rows are answered once and shared beginnings of prompts computed once, exactly, over
token ids. The floor is serial, so an engine that overlaps attention with matrix products may beat it. It holds for
models in which every weight serves every token and every token sees all before it: neither experts nor windows.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.kv_memory import layer_shapes
from engine.settings import EngineSettings
from engine.workloads import Row

_COPY_BYTES = {"cpu": 1 << 25}
_COPY_BYTES_ON_GPU = 1 << 29
_PRODUCT = {"cpu": 512}
_PRODUCT_ON_GPU = 8192
_CALLS = {"cpu": 1}
_CALLS_ON_GPU = 20
_TRIALS = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device does at best."""

    copy_bytes_s: float
    """Bytes read plus bytes written in a second by a large copy."""
    matrix_flop_s: float
    """FLOPs in a second of a large matrix product."""


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What a model costs, whatever runs it."""

    layer_parameters: int
    """Weights that every token passes: all but the embedding and the head."""
    head_parameters: int
    """Weights of the language-model head, which sampled positions alone pass."""
    parameter_bytes: float
    """Bytes of a weight as it is read from memory."""
    kv_bytes: int
    """Bytes of KV that one position stores in all layers."""
    pair_flops: int
    """FLOPs of attention, in all layers, for one query that sees one key."""

    @property
    def decode_flops(self) -> int:
        """FLOPs of the matrix products for one decoded token."""
        return 2 * (self.layer_parameters + self.head_parameters)

    @property
    def step_bytes(self) -> float:
        """Bytes of weights that a decode step reads."""
        return (self.layer_parameters + self.head_parameters) * self.parameter_bytes


def model_cost(model: PreTrainedModel, settings: EngineSettings, parameter_bytes: float) -> ModelCost:
    """The cost of `model`, which is not quantized yet, with weights of `parameter_bytes` each."""
    shapes = layer_shapes(model, settings)
    modules: Any = model
    head = modules.get_output_embeddings().weight
    apart = {id(modules.get_input_embeddings().weight), id(head)}
    heads = int(model.config.get_text_config().num_attention_heads)
    return ModelCost(
        layer_parameters=sum(weight.numel() for weight in model.parameters() if id(weight) not in apart),
        head_parameters=head.numel(),
        parameter_bytes=parameter_bytes,
        kv_bytes=sum(shape.bytes for shape in shapes.values()),
        pair_flops=sum(2 * heads * (shape.key_size + shape.value_size) for shape in shapes.values()),
    )


@dataclass(frozen=True, slots=True)
class UniqueRow:
    """A row that is computed, and what of its prompt no row before it has."""

    prompt: int
    """Tokens of the prompt."""
    shared: int
    """Leading tokens of the prompt that another row computes."""
    output: int

    @property
    def own_positions(self) -> int:
        """KV positions that it alone holds: the last token is never fed back."""
        return self.prompt - self.shared + self.output - 1


def unique_rows(rows: Iterable[Row]) -> list[UniqueRow]:
    """Rows without exact repeats; their unshared prompt tokens add up to the nodes of the prompts' prefix tree."""
    unique: list[UniqueRow] = []
    before: tuple[int, ...] = ()
    # Sorted, a prompt shares most with the one before it.
    for prompt, output in sorted({(tuple(row.prompt), row.output) for row in rows}):
        unique.append(UniqueRow(len(prompt), _common(before, prompt), output))
        before = prompt
    return unique


def floor_seconds(rows: Iterable[Row], cost: ModelCost, ceilings: Ceilings, kv_positions: int) -> float:
    """Seconds to answer `rows` where `kv_positions` positions of KV fit into memory at once."""
    unique = unique_rows(rows)
    return (
        _prefill_flops(unique, cost) / ceilings.matrix_flop_s
        + _decode_seconds(unique, cost, ceilings, kv_positions)
        + _kv_positions_read(unique) * cost.kv_bytes / ceilings.copy_bytes_s
    )


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, fp8: bool) -> Ceilings:
    """Measure `device` within about a second; needs 1.5 GiB of a GPU's memory.

    The matrix product is in `dtype`, or with `fp8` in that where the device has it. Values are random, because a GPU
    that multiplies zeros draws less power and runs faster.
    """
    copied = _COPY_BYTES.get(device.type, _COPY_BYTES_ON_GPU)
    size = _PRODUCT.get(device.type, _PRODUCT_ON_GPU)
    return Ceilings(
        copy_bytes_s=2 * copied / _best_seconds(device, _copy(device, copied)),
        matrix_flop_s=2 * size**3 / _best_seconds(device, _product(device, dtype, size, fp8=fp8)),
    )


def _copy(device: torch.device, size: int) -> Callable[[], Tensor]:
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(device: torch.device, dtype: torch.dtype, size: int, *, fp8: bool) -> Callable[[], Tensor]:
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    if not fp8 or device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        return lambda: a @ b
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    scale = torch.ones(size, 1, device=device)
    return lambda: torch._scaled_mm(
        a8, b8, scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _best_seconds(device: torch.device, work: Callable[[], Tensor]) -> float:
    """Seconds of one call, from the best of a few series of calls after a first series that does not count."""
    calls = _CALLS.get(device.type, _CALLS_ON_GPU)
    seconds = []
    for _ in range(1 + _TRIALS):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds[1:])


def _prefill_flops(rows: Sequence[UniqueRow], cost: ModelCost) -> int:
    tokens = sum(row.prompt - row.shared for row in rows)
    pairs = sum(row.prompt * (row.prompt + 1) - row.shared * (row.shared + 1) for row in rows) // 2
    return 2 * cost.layer_parameters * tokens + 2 * cost.head_parameters * len(rows) + cost.pair_flops * pairs


def _decode_seconds(rows: Sequence[UniqueRow], cost: ModelCost, ceilings: Ceilings, kv_positions: int) -> float:
    """Seconds of the matrix products of all decode steps, the longest answers started first, as many as fit."""
    waiting = sorted(rows, key=lambda row: (row.output, row.own_positions))
    running: list[tuple[int, int]] = []  # a heap of (step it ends at, positions it frees)
    free, step, seconds = kv_positions, 0, 0.0
    while waiting or running:
        while waiting and (not running or waiting[-1].own_positions <= free):
            row = waiting.pop()
            free -= row.own_positions
            heapq.heappush(running, (step + row.output - 1, row.own_positions))
        end = running[0][0]
        products = len(running) * cost.decode_flops / ceilings.matrix_flop_s
        seconds += (end - step) * max(cost.step_bytes / ceilings.copy_bytes_s, products)
        step = end
        while running and running[0][0] == end:
            free += heapq.heappop(running)[1]
    return seconds


def _kv_positions_read(rows: Sequence[UniqueRow]) -> int:
    """Positions read by decode steps: each sees the prompt and the answer up to its own token."""
    return sum((row.output - 1) * row.prompt + row.output * (row.output - 1) // 2 for row in rows)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
