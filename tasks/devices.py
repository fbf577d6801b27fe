"""What devices do at best: the rates that a cost is estimated from before anything was measured on them.

Of an H100 and an H200 they are measured (docs/performance-log.md). Of others they are what the vendor's data sheet
says, times what these two reach of theirs: 0.9 of the bandwidth and 0.72 of the matrix rate. Of a CPU they are those of
one thread of a usual server, which errs by a factor; the first run of a model there replaces them.
"""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tasks.machine import read_gpus
from tasks.placement import Placement


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of a device, in a second."""

    copy_bytes: float
    """Bytes read plus bytes written by a large copy."""
    matrix_flop: float
    """FLOPs of a large matrix product in 16 bits; in float32 on a CPU."""
    matrix_flop_fp8: float
    """The same with FP8 operands; that in 16 bits where the device has no FP8."""
    step: float
    """Seconds of a step of 28 layers that are neither products nor attention, whatever its size."""
    known: bool = True
    """False where the device is not in the table and another one's rates stand for its own."""


# The first name that is part of the device's counts.
_GPUS = (
    ("GH200", Ceilings(3.6e12, 702e12, 1300e12, 1.1e-3)),
    ("H200", Ceilings(4.2e12, 718e12, 1350e12, 1.1e-3)),
    ("B200", Ceilings(7.2e12, 1620e12, 3240e12, 1.1e-3)),
    ("H100 NVL", Ceilings(3.5e12, 600e12, 1100e12, 1.1e-3)),
    ("H100 PCIe", Ceilings(1.8e12, 540e12, 1000e12, 1.1e-3)),
    ("H100", Ceilings(2.98e12, 702e12, 1300e12, 1.1e-3)),
    ("A100", Ceilings(1.75e12, 225e12, 225e12, 1.3e-3)),
    ("L40S", Ceilings(0.78e12, 260e12, 520e12, 1.3e-3)),
    ("L40", Ceilings(0.78e12, 130e12, 260e12, 1.3e-3)),
    ("A10", Ceilings(0.54e12, 90e12, 90e12, 1.5e-3)),
    ("L4", Ceilings(0.27e12, 87e12, 174e12, 1.5e-3)),
    ("4090", Ceilings(0.9e12, 119e12, 238e12, 1.2e-3)),
)
_OTHER_GPU = Ceilings(1.75e12, 225e12, 225e12, 1.3e-3, known=False)
_CPU_THREAD = Ceilings(8e9, 40e9, 40e9, 80e-3, known=False)


def worker_devices(placement: Placement) -> tuple[str, ...]:
    """The name of each worker's device. Those of one name round alike, and are equally fast."""
    if placement.names:
        return placement.names
    if placement.device == "cuda":
        return tuple(gpu.name for gpu in read_gpus().devices[: placement.workers]) or ("GPU",) * placement.workers
    threads = f"{placement.threads} thread{'s' * (placement.threads != 1)}"
    return (f"{_processor()}, {threads}",) * placement.workers


def device_name(placement: Placement) -> str:
    """What the workers' devices are called: rates measured on them hold for others that are called so.

    One name where all have it, else how many have which.
    """
    names = Counter(worker_devices(placement))
    return next(iter(names)) if len(names) == 1 else ", ".join(f"{count} {name}" for name, count in names.items())


def alike(placement: Placement) -> bool:
    """Whether the devices of all workers have one name."""
    return len(set(worker_devices(placement))) <= 1


def unlike_notice(placement: Placement) -> str | None:
    """What the user should know of devices that are not alike; None if they are."""
    if alike(placement):
        return None
    return (
        f"the workers' devices are unlike and round differently ({device_name(placement)}): an answer can depend on "
        "the worker that gives it, and where workers disagree nobody can say that one is at fault; "
        "CUDA_VISIBLE_DEVICES chooses devices of one name"
    )


def ceilings(placement: Placement) -> Ceilings:
    """The rates of a worker's device; of unlike ones the lowest."""
    if placement.device == "cuda":
        found = [gpu_ceilings(name) for name in set(worker_devices(placement))]
        return Ceilings(
            min(each.copy_bytes for each in found),
            min(each.matrix_flop for each in found),
            min(each.matrix_flop_fp8 for each in found),
            max(each.step for each in found),
            known=all(each.known for each in found),
        )
    threads = placement.threads
    return Ceilings(
        _CPU_THREAD.copy_bytes * min(threads, 8),  # memory is shared, and a few threads fill its bus
        _CPU_THREAD.matrix_flop * threads,
        _CPU_THREAD.matrix_flop_fp8 * threads,
        _CPU_THREAD.step,
        known=False,
    )


def gpu_ceilings(name: str) -> Ceilings:
    """The rates of a GPU, by the name that its driver gives."""
    return next((found for part, found in _GPUS if part in name), _OTHER_GPU)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine() or "CPU"
