"""A step under way on a GPU, and how long it and the wait before it took."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.step import Step


class LaunchedOnDevice:
    """Make it before the step's work is queued and `give` it the tokens behind that.

    The tokens are copied to the host as soon as they are there, beside later steps.
    """

    def __init__(self, step: Step, before: LaunchedOnDevice | None) -> None:
        """before: the step launched last, for the time the device waited between the two."""
        self.step = step
        self._before = None if before is None else before._ended
        self._began: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._ended: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._began.record()
        self._tokens: Tensor | None = None

    def give(self, tokens: Tensor) -> None:
        """tokens: int64 [R] on the device, those of step.sampled."""
        self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        self._tokens.copy_(tokens, non_blocking=True)
        self._ended.record()

    def tokens(self) -> list[int]:
        """The tokens of step.sampled; waits for this step, not for those launched after it."""
        assert self._tokens is not None
        self._ended.synchronize()
        tokens: list[int] = self._tokens.tolist()
        return tokens

    def seconds(self) -> tuple[float, float]:
        """How long the device worked on this step, and how long it had waited since the one before. After tokens()."""
        waited = 0.0 if self._before is None else self._before.elapsed_time(self._began)
        return self._began.elapsed_time(self._ended) / 1e3, waited / 1e3
