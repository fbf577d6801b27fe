"""The CUDA libraries that torch finds at run time, against those it was built with, and the driver beneath them.

What torch was built with is in its binary and in the requirements of its package. A library of another minor version
that an environment variable or another package brings is the usual cause of errors that appear hours into a run.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from tasks.check import Check
from tasks.figures import plural

REINSTALL = "reinstall torch into a fresh .venv, and unset LD_LIBRARY_PATH"


def check_cuda(gpus: int, driver: int | None) -> Iterator[Check]:
    """CUDA, cuDNN and NCCL. `driver` is the newest CUDA that the driver can run, as 1000 * major + 10 * minor."""
    import torch

    built = torch.version.cuda
    if built is None:
        if gpus:
            advice = "this torch has no CUDA: install it with deploy/constraints-cuda.txt"
            yield Check(
                "cuda",
                "fail",
                f"{plural(gpus, 'GPU')} here, but torch {torch.__version__} is built for the CPU",
                advice,
            )
        else:
            yield Check("cuda", "ok", f"no GPU; torch {torch.__version__} is built for the CPU")
        return
    if driver is None:
        yield Check("cuda", "warn", f"torch is built with CUDA {built}; no driver here", "runs will use the CPU")
        return
    yield check_driver(built, driver)
    if not torch.cuda.is_available():
        advice = "the driver does not take this torch: update the driver, or check CUDA_VISIBLE_DEVICES"
        yield Check("cuda runtime", "fail", "torch finds no usable GPU", advice)
        return
    yield compare("cuda runtime", ".".join(built.split(".")[:2]), _runtime())
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    found = _cudnn_text(cudnn) if cudnn else None
    yield compare("cudnn", _required("nvidia-cudnn"), found)
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else None  # type: ignore[no-untyped-call]
    yield compare("nccl", _required("nvidia-nccl"), ".".join(map(str, nccl[:3])) if nccl else None)


def check_driver(built: str, driver: int) -> Check:
    """Whether the driver can run what torch was built with; within one major version an older one can."""
    newest = f"{driver // 1000}.{driver % 1000 // 10}"
    found = f"driver up to CUDA {newest}, torch built with {built}"
    if driver // 1000 < int(built.split(".")[0]):
        return Check(
            "driver", "fail", found, f"update the NVIDIA driver to one for CUDA {built}, or install an older torch"
        )
    return Check("driver", "ok", found)


def compare(name: str, built: str | None, found: str | None) -> Check:
    """A library at run time against the one that was built with, by major and minor version."""
    if found is None:
        return Check(name, "fail", "torch finds none", REINSTALL)
    if built is None:
        return Check(name, "ok", f"{found}; torch's package does not say what it was built with")
    if found.split(".")[:2] != built.split(".")[:2]:
        return Check(name, "warn", f"{found} at run time, torch built with {built}", REINSTALL)
    return Check(name, "ok", f"{found}, torch built with {built}")


def _runtime(maps: Path = Path("/proc/self/maps")) -> str | None:
    """The version that the loaded CUDA runtime library gives of itself; None if none is loaded."""
    loaded = (line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines() if "libcudart" in line)
    path = next(loaded, None)
    if path is None:
        return None
    number = ctypes.c_int()
    ctypes.CDLL(path).cudaRuntimeGetVersion(ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _cudnn_text(number: int) -> str:
    """91002 is 9.10.2; up to version 8 it was 8902 for 8.9.2."""
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number >= 10000 else (
        f"{number // 1000}.{number // 100 % 10}.{number % 100}"
    )  # fmt: skip


def _required(name: str) -> str | None:
    """The version of a library that torch's package asks for."""
    for line in requires("torch") or ():
        requirement = Requirement(line)
        if re.fullmatch(rf"{name}(-cu\d+)?", requirement.name):
            return next((pin.version for pin in requirement.specifier if pin.operator == "=="), None)
    return None
