"""The machine: its GPUs, cores, memory and limits, and whether a filesystem can keep the promises of a run folder."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pynvml

from data.durable import link_file, stage, sync_folder
from tasks.check import Check
from tasks.figures import plural, size
from tasks.host_memory import host_memory
from tasks.placement import gpu_handle, visible_gpus

FILES_WANTED = 4096
DISK_WANTED = 5 << 30
MEMORY_WANTED = 4 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; memory in bytes."""

    name: str
    memory: int
    free: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """The visible GPUs, the driver's version, and the newest CUDA it can run (12080 for 12.8)."""

    devices: tuple[Gpu, ...]
    driver: str | None
    cuda: int | None


def read_gpus() -> Gpus:
    """Ask the driver; no torch, no CUDA context."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return Gpus((), None, None)
    try:
        devices = tuple(_read_gpu(visible) for visible in visible_gpus())
        return Gpus(devices, str(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlSystemGetCudaDriverVersion_v2())
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(visible: str) -> Gpu:
    pynvml.nvmlInit()  # visible_gpus has shut it down; the calls are counted
    handle = gpu_handle(visible)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))


def check_gpus(gpus: Gpus, wanted: int) -> Iterator[Check]:
    """The devices; `wanted` is the number of workers asked for."""
    if not gpus.devices:
        advice = "" if gpus.driver is None else "the driver sees GPUs, but CUDA_VISIBLE_DEVICES hides them"
        yield Check("gpu", "ok" if gpus.driver is None else "warn", "none: workers run on the CPU", advice)
        return
    for number, gpu in enumerate(gpus.devices):
        found = f"{gpu.name}, {size(gpu.free)} of {size(gpu.memory)} free, driver {gpus.driver}"
        busy = gpu.free < 0.8 * gpu.memory
        advice = "another process uses this GPU (nvidia-smi shows which): end it or lower engine.memory_fraction"
        yield Check(f"gpu {number}", "warn" if busy else "ok", found, advice if busy else "")
    if wanted > len(gpus.devices):
        found = f"workers.dp_degree = {wanted}, {plural(len(gpus.devices), 'GPU')} here"
        yield Check(
            "workers", "warn", found, f"the run will use {len(gpus.devices)}; set workers.dp_degree to silence this"
        )


def check_processor() -> Iterator[Check]:
    """Cores, memory and the limit on open files."""
    cores = len(os.sched_getaffinity(0))
    yield Check("cores", "ok", f"{cores} usable of {os.cpu_count()}")
    memory = host_memory()
    short = memory.available < MEMORY_WANTED
    advice = "less than 4 GiB is free: close other programs or lower workers.dp_degree" if short else ""
    found = f"{size(memory.available)} of {size(memory.total)} free"
    yield Check("memory", "warn" if short else "ok", found, advice)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < min(FILES_WANTED, 1024)
    advice = f"raise it: ulimit -n {FILES_WANTED}" if few else ""
    yield Check("open files", "warn" if few else "ok", f"{soft:,} allowed, {hard:,} at most", advice)


def check_place(output: str) -> Iterator[Check]:
    """The disk that the run folder and the result will lie on."""
    if "://" in output:
        yield Check("disk", "ok", "the output is on an object store: not checked here")
        return
    place = Path(output).absolute().parent if output else Path().absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    low = free < DISK_WANTED
    advice = (
        "prompts and answers need room: free some, or set output.path and --run-dir to a larger disk" if low else ""
    )
    yield Check("disk", "warn" if low else "ok", f"{size(free)} free at {place}", advice)
    yield check_filesystem(place)


def check_filesystem(place: Path) -> Check:
    """Whether write, fsync, link and rename work in a folder, tried on files that are removed again."""
    linked = place / f".overnight-probe-{secrets.token_hex(8)}"
    renamed = linked.with_suffix(".renamed")
    steps = "write"
    try:
        staged = stage(place, lambda file: file.write(b"probe"))
        try:
            steps = "link"
            link_file(staged, linked)
            steps = "rename"
            os.rename(linked, renamed)
            steps = "sync the folder"
            sync_folder(place)
        finally:
            for path in (staged, linked, renamed):
                path.unlink(missing_ok=True)
    except OSError as error:
        advice = "set output.path and --run-dir to a folder on a local disk that you may write"
        return Check("filesystem", "fail", f"cannot {steps} in {place}: {error.strerror}", advice)
    return Check("filesystem", "ok", "write, fsync, link and rename work there")
