"""Decode steps as CUDA graphs: a whole step is launched as one, whatever its layers.

A capture takes the host some ten milliseconds. Graphs are captured behind a launched step, while the device works on
it, for the steps that are likely to follow; a step that was not foreseen is launched kernel by kernel, as all are once
a capture failed.
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
        self._stream: Any = None
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
        # Not torch.cuda.graph: it waits for the device and empties the cache before every capture, not only the first.
        if self._pool is None:
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(self._pool, "thread_local")
            try:
                self._work(*key)
            finally:
                graph.capture_end()
        return graph
