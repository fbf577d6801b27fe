"""Decode steps as CUDA graphs: a whole step is launched as one, whatever its layers.

The first step of a size is launched kernel by kernel, which sets up libraries and compiles what capture could not; a
graph is captured when the size is needed again, so that a run pays for those it uses. A capture takes as long as a
large step, so sizes are few: multiples of what products are cut into, at most an eighth apart where batches are large.
Rows that only fill up a batch work on a row and a block of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Rows that products are cut into, and the smallest batch: one row takes as long as these.
_TILE = 64
_LEAST = 16


def size_for(rows: int) -> int:
    """The batch size, at least `rows`, of the graph that decodes so many rows."""
    power = 1 << (rows - 1).bit_length()
    if rows <= 2 * _TILE:  # as long as the weights take to read
        return max(_LEAST, power)
    step = max(_TILE, power >> 4)
    return -(-rows // step) * step


class Graphs:
    """Captured steps by key. `work` is run with a key's parts and must leave its results in fixed tensors."""

    def __init__(self, work: Callable[..., None]) -> None:
        self._work = work
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._seen: set[tuple[int, ...]] = set()
        self._pool: Any = None

    def prepare(self, key: tuple[int, ...]) -> None:
        """Capture the work for `key` if that pays; nothing is queued on the device."""
        if key in self._seen and key not in self._graphs:
            self._graphs[key] = self._capture(key)

    def run(self, key: tuple[int, ...]) -> None:
        """Do the work for `key`."""
        graph = self._graphs.get(key)
        if graph is None:
            self._work(*key)
            self._seen.add(key)
        else:
            graph.replay()

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
