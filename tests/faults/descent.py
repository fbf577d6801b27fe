"""The processes that a process has started, and those that these have started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def descendants(process: int) -> Iterator[int]:
    """All that live below a process now. Workers lead groups of their own, so that no group holds all of them."""
    with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in children.read_text(encoding="ascii").split():
                yield int(child)
                yield from descendants(int(child))


def signal_below(process: int, number: int) -> bool:
    """Send a signal to each of them; whether there were any."""
    found = list(descendants(process))
    for descendant in found:
        with suppress(ProcessLookupError):
            os.kill(descendant, number)
    return bool(found)
