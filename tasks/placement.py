"""Which device each worker gets, and what that resolves: the number of workers, dtype, determinism and threads.

GPUs are counted through the driver's own library, so that the driver process of a run never imports torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import pynvml

from data.errors import InputError
from engine.settings import Deterministic
from tasks.settings import Settings

# A shard's bytes must not depend on how many cores its machine has, so a deterministic CPU worker uses one thread.
DETERMINISTIC_THREADS = 1


@dataclass(frozen=True)
class Placement:
    """Devices of the workers of this machine."""

    device: Literal["cpu", "cuda"]
    gpus: tuple[str, ...]
    workers: int
    threads: int
    notice: str | None
    names: tuple[str, ...] = ()
    """Of the workers' devices, where they are known; else `tasks.devices` asks for them."""

    def environment(self, worker: int) -> dict[str, str]:
        """Variables that must be in force before the worker imports anything."""
        threads = str(self.threads)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if self.device == "cuda":
            variables["CUDA_VISIBLE_DEVICES"] = self.gpus[worker]
            variables["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as the driver's library counts
        else:
            variables["CUDA_VISIBLE_DEVICES"] = ""
        return variables


def visible_gpus() -> tuple[str, ...]:
    """The GPUs this process may use, as values for CUDA_VISIBLE_DEVICES; empty without a driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        present = tuple(str(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()
    if chosen is None:
        return present
    asked = (part.strip() for part in chosen.split(","))
    return tuple(part for part in asked if part in present or part.startswith(("GPU-", "MIG-")))


def gpu_handle(visible: str) -> Any:
    """The driver's handle of a GPU that visible_gpus named. Between nvmlInit and nvmlShutdown."""
    if visible.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible))
    return pynvml.nvmlDeviceGetHandleByUUID(visible)


def device_names(placement: Placement) -> frozenset[str]:
    """The devices of the workers by names that every process of this machine gives them."""
    if placement.device == "cpu":
        return frozenset({"cpu"})
    pynvml.nvmlInit()
    try:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        uuids = [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()
    return frozenset(_uuid(visible, uuids) for visible in placement.gpus)


def _uuid(visible: str, uuids: list[str]) -> str:
    """CUDA takes the beginning of a UUID too. A part of a GPU (MIG) is not in the list, and known by its whole name."""
    if visible.isdigit():
        return uuids[int(visible)]
    return next((uuid for uuid in uuids if uuid.startswith(visible)), visible)


def place(settings: Settings) -> Placement:
    """Give each worker a device; fewer workers than asked for where there are fewer devices, with a notice."""
    wanted = settings.workers.dp_degree
    gpus = visible_gpus()
    cores = len(os.sched_getaffinity(0))
    workers = min(wanted, len(gpus) or cores)
    device: Literal["cpu", "cuda"] = "cuda" if gpus else "cpu"
    notice = None
    if workers < wanted:
        there = f"{len(gpus)} GPU{'s' * (len(gpus) != 1)}" if gpus else f"no GPU and {cores} CPU cores"
        notice = f"workers.dp_degree = {wanted} lowered to {workers}: {there} here"
    deterministic = resolve_deterministic(settings, device)
    threads = DETERMINISTIC_THREADS if deterministic and not gpus else max(1, cores // workers)
    return Placement(device, gpus[:workers], workers, threads, notice)


def resolve_deterministic(settings: Settings, device: str) -> Deterministic:
    """engine.deterministic, which is on for CPU and off for CUDA unless set."""
    chosen = settings.engine.deterministic
    return device == "cpu" if chosen is None else chosen


def resolve(settings: Settings, placement: Placement) -> Settings:
    """The settings with every "auto" of the engine, and "awq", replaced by what it means on these devices.

    So all workers compute alike, and the run's id says how.
    """
    dtype = settings.engine.dtype
    if dtype == "auto":
        dtype = "bfloat16" if placement.device == "cuda" else "float32"
    if settings.engine.dtype == "float16" and placement.device == "cpu":
        raise InputError("engine.dtype = 'float16' needs a GPU: use 'float32' or 'bfloat16' on CPU")
    engine = settings.engine.model_copy(
        update={"dtype": dtype, "deterministic": resolve_deterministic(settings, placement.device)}
    )
    quantization = settings.model.quantization
    if quantization == "awq":
        quantization = "awq-fp8" if all(map(has_fp8, placement.gpus)) else "awq-dtype"
    model = settings.model.model_copy(update={"quantization": quantization})
    return settings.model_copy(update={"engine": engine, "model": model})


def has_fp8(visible: str) -> bool:
    """Whether a GPU multiplies 8-bit floats. InputError where the driver does not know it by this name."""
    pynvml.nvmlInit()
    try:
        gpu = gpu_handle(visible)
        if visible.startswith("MIG-"):
            gpu = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(gpu)
        return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(gpu)) >= (8, 9)
    except pynvml.NVMLError as error:
        raise InputError(
            f"CUDA_VISIBLE_DEVICES: {visible} is no GPU here ({error}); give its index or whole UUID"
        ) from error
    finally:
        pynvml.nvmlShutdown()
