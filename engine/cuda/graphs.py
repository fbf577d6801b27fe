"""Decode steps as CUDA graphs: a whole step is launched as one, whatever its layers.

A capture takes the host some ten milliseconds, and torch waits for the device before it. Graphs are captured behind a
launched step, for the steps that are likely to follow; a step that was not foreseen is launched kernel by kernel, as
all are once a capture failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


class Graphs:
    """Captured steps by key. `work` is run with a key's parts and must leave its results in fixed tensors."""

    def __init__(self, work: Callable[..., None]) -> None:
        self._work = work
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._pool: Any = None
        self._failed = False

    def run(self, key: tuple[int, ...]) -> None:
        """Do the work for `key`."""
        graph = self._graphs.get(key)
        if graph is None:
            self._work(*key)
        else:
            graph.replay()

    def foresee(self, key: tuple[int, ...]) -> bool:
        """Capture the work for `key`; whether that was to be done.

        Where that fails, for want of memory or otherwise, nothing is captured any more.
        """
        if key in self._graphs or self._failed:
            return False
        try:
            self._graphs[key] = self._capture(key)
        except (RuntimeError, MemoryError) as error:
            self._failed = True
            warnings.warn(f"decode steps are launched kernel by kernel: a capture failed ({error})", stacklevel=2)
        return True

    def drop(self) -> None:
        """Forget the captured steps and give their memory back; none may be under way. Later ones are tried anew."""
        self._graphs.clear()
        self._pool = None
        self._failed = False

    def _capture(self, key: tuple[int, ...]) -> Any:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._work(*key)
        finally:
            # A capture that fails at its end leaves its own stream the current one.
            torch.cuda.set_stream(stream)
        self._pool = graph.pool()
        return graph
