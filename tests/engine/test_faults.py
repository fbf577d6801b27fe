"""Errors by what they mean for their process, in the words that torch and the CUDA libraries use."""

from __future__ import annotations

import pytest
import torch

from engine.faults import fault, out_of_memory


class DistBackendError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "an illegal memory access"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "an illegal memory access"),
        (RuntimeError("CUDA error: device-side assert triggered"), "a failed assert on the device"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "a memory error of the device (ECC)"),
        (RuntimeError("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus"), "a lost device (Xid)"),
        (RuntimeError("CUDA error: unspecified launch failure"), "a failed kernel"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), "a failure of cuBLAS"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "a failure of a CUDA library"),
        (DistBackendError("watchdog timeout"), "a failure of NCCL"),
        (RuntimeError("CUDA error: invalid argument"), "a CUDA error"),
        (ValueError("CUDA is a word"), None),
        (RuntimeError("shapes do not fit"), None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), None),
        (RuntimeError("CUDA error: out of memory"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), None),
        (MemoryError(), None),
    ],
)
def test_faults_by_name(error: Exception, name: str | None) -> None:
    assert fault(error) == name
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "memory" in str(error) or "ALLOC" in str(error)
    assert out_of_memory(error) == (memory and name is None)


def handling(first: Exception, second: Exception) -> Exception:
    try:
        try:
            raise first
        except type(first):
            raise second  # noqa: B904 - what is tested is the context
    except type(second) as error:
        return error


def test_what_was_being_handled_counts() -> None:
    memory, illegal = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("an illegal memory access")
    assert fault(handling(illegal, ValueError("cleanup failed"))) == "an illegal memory access"
    assert fault(handling(memory, illegal)) == "an illegal memory access"
    assert not out_of_memory(handling(memory, illegal)), "a process with a fault would be used again"
    capture = handling(memory, torch.AcceleratorError("CUDA error: operation failed during capture"))
    assert out_of_memory(capture), "a capture that fails for want of memory fails twice"
    assert fault(capture) is None
