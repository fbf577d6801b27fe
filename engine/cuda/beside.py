"""Two kernels at a time: one that waits for memory beside one that waits for the matrix units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch


@contextmanager
def beside(device: torch.device) -> Iterator[AbstractContextManager[Any]]:
    """Gives a context whose kernels run beside the others of the block; what follows the block waits for all of them.

    Kernels of that context read and write tensors that live until the block ends; what is allocated in it must be freed
    in it.
    """
    if device.type != "cuda":
        yield nullcontext()
        return
    main, side = torch.cuda.current_stream(device), _side(device)
    side.wait_stream(main)
    try:
        yield torch.cuda.stream(side)
    finally:
        main.wait_stream(side)  # also where memory ran out: what the other kernels use is freed then


@cache
def _side(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
