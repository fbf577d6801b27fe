"""What runs planned steps on a model's device, sized to it: the reference runner, or the fast one on a GPU."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedModel

from engine.fp8 import require_fp8
from engine.kv_memory import kv_blocks, layer_shapes
from engine.paged import BLOCK, PagedKV
from engine.runner import Runner
from engine.sampling import Sampler
from engine.settings import EngineSettings, SamplingSettings
from engine.step import Step

# Sequences of a batch. On CPU more of them gain nothing once the matrix products are large.
_ROWS_ON_CPU = 256
_ROWS_ON_GPU = 4096
# Logits of a step: bytes on CPU, and the part of a GPU's memory.
_LOGIT_BYTES_ON_CPU = 256 << 20
_LOGIT_PART_ON_GPU = 64
# On a GPU, prompt tokens that are worth a step without a graph, and the decode steps that others wait for them.
_LEAST_PREFILL = 2048
_MOST_WAIT = 64


class Launched(Protocol):
    """A step under way."""

    step: Step

    def tokens(self) -> list[int]:
        """The tokens of step.sampled; waits for this step, not for those launched after it."""

    def seconds(self) -> tuple[float, float]:
        """How long the device worked on it, and had waited before it. After tokens()."""


class Executes(Protocol):
    """Computes steps in the order in which they are launched."""

    def launch(self, step: Step) -> Launched:
        """Start to compute the step. Where it runs out of memory, it may be launched again, whole or in parts."""

    def move(self, step: Step) -> None:
        """Only the step's swaps, and its rows' block tables; `launch` includes this. May be repeated."""

    def foresee(self, step: Step) -> None:
        """Prepare for steps like this one, which is launched; for speed alone, and never in its way."""

    def release(self) -> None:
        """Give back memory that is kept for speed."""

    def clear(self, blocks: list[int]) -> None:
        """Zero the KV of blocks that held NaN."""


@dataclass(frozen=True)
class Execution:
    """A runner, and the sizes to plan steps by."""

    runner: Executes
    blocks: int
    rows: int
    ahead: int
    """Steps that are launched before the first of them is read."""
    least_prefill: int
    most_wait: int
    shares: bool = True
    """Whether prompts may use what others have computed of a common beginning."""


def execution(
    model: PreTrainedModel, sampling: SamplingSettings, settings: EngineSettings, context: int, *, graphs: bool = True
) -> Execution:
    """The runner for the model's device. context: most positions of a sequence. ValueError for an unsuitable model."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"{type(model).__name__} cannot leave out logits (no logits_to_keep); it cannot generate")
    cpu = model.device.type == "cpu"
    vocabulary = model.config.get_text_config().vocab_size
    if cpu:
        most, logit_bytes = _ROWS_ON_CPU, _LOGIT_BYTES_ON_CPU
    else:
        most = _ROWS_ON_GPU
        logit_bytes = torch.cuda.get_device_properties(model.device).total_memory // _LOGIT_PART_ON_GPU
    rows = max(1, min(most, settings.max_batch_tokens, logit_bytes // (4 * vocabulary)))
    layers = layer_shapes(model, settings)
    widest = -(-context // BLOCK)
    if not cpu:
        if any(shape.key_size != shape.value_size for shape in layers.values()):
            raise ValueError(
                f"{type(model).__name__} has keys and values of different sizes; it cannot run on a GPU here"
            )
        if settings.kv_dtype == "fp8":
            require_fp8(model.device, "engine.kv_dtype = 'fp8'")
        from engine.cuda.memory import sized_runner  # Triton is there where a GPU is

        runner, blocks = sized_runner(model, sampling, settings, layers, rows=rows, widest=widest, graphs=graphs)
        least = min(_LEAST_PREFILL, settings.max_batch_tokens // 4)
        return Execution(runner, blocks, rows, 1, least, _MOST_WAIT)
    if settings.invariant:
        rows = 1  # the products of torch round by the number of their rows
    blocks = kv_blocks(layers, context)
    sampler = Sampler(sampling, rows=rows, vocabulary=vocabulary, device=model.device)
    reference = Runner(model, settings, PagedKV(layers, blocks, model.device), sampler, rows=rows, blocks=widest)
    return Execution(reference, blocks, rows, 0, 1, 0, shares=not settings.invariant)
