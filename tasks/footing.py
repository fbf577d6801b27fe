"""What a worker's device must hold: weights, what a step needs, and KV, which decides how many sequences run at once.

An estimate for people and for the cost model; the engine measures for itself (engine/cuda/memory.py, kv_memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from data.model_shape import ModelShape
from tasks.cost import Precision
from tasks.job import Job
from tasks.machine import read_gpus

# The KV budget on CPU, as engine.kv_memory has it.
_CPU_BYTES = 1 << 30
_CPU_MOST_BYTES = 4 << 30
# Numbers of a token's hidden state that a step's activations hold at once, with the engine's reserve.
_ACTIVATIONS = 48


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one worker."""

    weights: float
    step: float
    """Activations of the largest step."""
    sequence: float
    """KV of an average sequence, at its end."""
    longest: float
    """KV of the longest one."""
    room: float
    """What is left for KV; below `longest` the job cannot run there."""
    device: float | None
    """All of a GPU's memory; None on CPU, where workers share the host's."""
    rows: int
    """Most sequences that a step can hold, whatever the memory."""

    @property
    def batch(self) -> float:
        """Average sequences that run at once, where there are enough."""
        return max(1.0, min(self.room / self.sequence, self.rows)) if self.sequence else float(self.rows)

    @property
    def fits(self) -> bool:
        """Whether even the longest sequence finds room."""
        return self.room >= self.longest


def memory_of(job: Job, shape: ModelShape, precision: Precision, mean: float, longest: float) -> Memory:
    """The memory of a worker whose sequences have `mean` tokens, the longest one `longest`, answer included."""
    settings = job.settings
    generates = settings.job.kind == "generate"
    position = shape.kv_bytes(precision.kv_itemsize) if generates else 0.0
    whole = max(job.checkpoint.parameters, shape.parameters)
    weights = shape.layer_parameters * precision.weight_bytes
    weights += (whole - shape.layer_parameters) * precision.itemsize
    step = settings.engine.max_batch_tokens * shape.hidden * precision.itemsize * _ACTIVATIONS
    gpus = read_gpus().devices[: job.placement.workers] if job.placement.device == "cuda" else ()
    device = float(min(gpu.memory for gpu in gpus)) if gpus else None
    if device is not None:
        room = device * settings.engine.memory_fraction - weights - step
    else:
        context = job.checkpoint.context_length * position
        room = max(float(_CPU_BYTES), min(context, float(_CPU_MOST_BYTES)))
    longest = min(longest, job.checkpoint.context_length)
    rows = settings.engine.max_batch_tokens
    return Memory(weights, step, mean * position, longest * position, room, device, rows)
