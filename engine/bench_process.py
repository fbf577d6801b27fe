"""The benchmark in a supervised child, for a caller that lives on: no figure is disturbed by what the caller loaded,
the device is free again afterwards, and no process is left behind however the caller ends. No torch here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from engine.bench_settings import BenchSettings
from engine.supervisor import Child

SILENCE_SECONDS = 3600.0  # a workload on a CPU, or kernels that are compiled first


class BenchFailed(RuntimeError):
    """The benchmark ended without all of its figures, for another reason than a wrong setting."""


def bench_in_child(settings: BenchSettings, progress: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """The figures of engine.bench, as they come; `progress` takes lines of text about what is going on.

    Raises ValueError for a setting that cannot run here, BenchFailed for wrong answers and for a child that died;
    what it printed goes to `progress` first.
    """
    with tempfile.TemporaryDirectory(prefix="overnight-bench-") as folder:
        child = Child("engine.bench:serve", environment={}, log=Path(folder) / "log")
        try:
            child.send(settings.model_dump(mode="json"))
            while "done" not in (message := _next(child, progress)):
                if "progress" in message:
                    progress(message["progress"])
                elif "figures" in message:
                    yield message["figures"]
                else:
                    failure = ValueError if message["setting"] else BenchFailed
                    raise failure(message["error"])
        finally:
            child.end()


def _next(child: Child, progress: Callable[[str], None]) -> dict[str, Any]:
    message = child.receive() if wait([child.connection], SILENCE_SECONDS) else None
    if message is None:
        ending = child.end(patience=5)
        progress(child.log.read_text(errors="replace").rstrip())
        raise BenchFailed(f"the benchmark's process has ended ({ending}): {child.last_words() or 'no message'}")
    return message
