"""What an error of the device means for the process that meets it. No torch here: an error is known by name and text.

Running out of memory leaves a process as it was, so that it may try again with less. After a fault it may not: an
illegal access, a failed assert on the device, memory that cannot be corrected, a library that lost its state. CUDA then
answers every later call with the same error, or works on with what is wrong, so such a process ends at once.

Frameworks wrap errors and raise others while they handle one, so the whole chain is looked at; and a fault counts
before memory, since a process that has met both cannot be trusted.
"""

from __future__ import annotations

import re

# How torch, Triton, FlashInfer and the CUDA libraries say it, and what it is called here; the first match counts.
_FAULTS = (
    (r"illegal memory access|misaligned address|invalid device pointer", "an illegal memory access"),
    (r"device-side assert", "a failed assert on the device"),
    (r"\bECC\b|uncorrectable", "a memory error of the device (ECC)"),
    (r"\bXid\b|fallen off the bus|GPU is lost|device is lost", "a lost device (Xid)"),
    (
        r"unspecified launch failure|illegal instruction|invalid program counter|[Hh]ardware stack error"
        r"|launch timed out",
        "a failed kernel",
    ),
    (r"NCCL|nccl[A-Z]\w*Error|DistBackendError", "a failure of NCCL"),
)
# These follow from a lack of memory, too: a capture of a graph fails with it, and then with one of them.
_DOUBTFUL = (
    (r"CUBLAS_STATUS_", "a failure of cuBLAS"),
    (r"CUDNN_STATUS_|CUSOLVER_STATUS_|CUSPARSE_STATUS_", "a failure of a CUDA library"),
    (r"AcceleratorError|CUDA error|CUDA driver error|Triton Error \[CUDA\]", "a CUDA error"),
)
# How libraries under torch say that memory ran out; torch's own allocator on a GPU has a class for it.
_MEMORY = re.compile(r"OutOfMemoryError|MemoryError|out of memory|ALLOC_FAILED|can't allocate memory")


def fault(error: BaseException | None) -> str | None:
    """The name of the fault after which this process must end; None if there was none."""
    texts = _texts(error)
    known = _FAULTS if any(map(_MEMORY.search, texts)) else _FAULTS + _DOUBTFUL
    return next((name for text in texts for pattern, name in known if re.search(pattern, text)), None)


def out_of_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, or the error came up while that was being handled, and nothing worse happened."""
    return any(map(_MEMORY.search, _texts(error))) and fault(error) is None


def _texts(error: BaseException | None) -> list[str]:
    """The error, and those that it was raised from or while handling."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return [f"{type(part).__name__}: {part}" for part in seen]
