"""How long work takes on the device alone, without the host's time to launch it."""

from __future__ import annotations

from collections.abc import Callable

import torch

_REPLAYS = 2


def device_seconds(work: Callable[[], object]) -> float:
    """Seconds of one run of `work` on the current device, as a graph; the first ones do not count."""
    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()
    began.record()
    for _ in range(_REPLAYS):
        graph.replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3 / _REPLAYS
