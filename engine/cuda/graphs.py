"""Decode steps as CUDA graphs: a whole step is launched as one, whatever its layers.

The first step of a size is launched kernel by kernel, which sets up libraries and compiles what capture could not; a
graph is captured when the size is needed again, so that a run pays for those it uses. Sizes are a sixteenth apart; rows
that only fill up a batch work on a row and a block of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def size_for(rows: int) -> int:
    """The batch size, at least `rows`, of the graph that decodes so many rows."""
    step = max(1, 1 << max(0, (rows - 1).bit_length() - 4))
    step = max(step, min(8, 1 << (rows - 1).bit_length() >> 1))
    return -(-rows // step) * step


class Graphs:
    """Captured steps by key. `work` is run with a key's parts and must leave its results in fixed tensors."""

    def __init__(self, work: Callable[..., None]) -> None:
        self._work = work
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._pool: Any = None

    def run(self, key: tuple[int, ...]) -> None:
        """Do the work for `key`."""
        if key not in self._seen:
            self._work(*key)
            self._seen.add(key)
            return
        if key not in self._graphs:
            self._graphs[key] = self._capture(key)
        self._graphs[key].replay()

    def drop(self) -> None:
        """Forget the captured steps and give their memory back; none may be under way."""
        self._graphs.clear()
        self._pool = None

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
