"""The events of a run as they were recorded, read back by those who look from outside.

They come from a file that a living process appends to: its last line may be torn, and its beginning is not read when it
has grown large. Whatever is not an event of this version is left out.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.progress import Progress

TAIL_BYTES = 4 << 20  # hours of work, since a shard takes about a minute
RATE_SECONDS = 600.0


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events since the driver last started, as far as they lie in the end of the file; torn lines are left out."""
    try:
        with path.open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES)
            file.seek(start)
            lines = file.read(TAIL_BYTES).split(b"\n")
    except FileNotFoundError:
        return
    events = [event for line in (lines[1:] if start else lines) if (event := _event(line)) is not None]
    starts = [number for number, event in enumerate(events) if event["event"] == "run_started"]
    yield from events[starts[-1] if starts else 0 :]


def _event(line: bytes) -> dict[str, Any] | None:
    """One line; None for one that is torn or not an event."""
    try:
        event = json.loads(line)
        event_time(event)
        return event if isinstance(event["event"], str) else None
    except (ValueError, TypeError, KeyError):
        return None


def event_time(event: Mapping[str, Any]) -> float:
    """When it happened, in seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).astimezone(UTC).timestamp()


def replay(events: Iterable[Mapping[str, Any]]) -> Progress:
    """Progress as the driver saw it, by the times of the events; asked afterwards, it goes by the wall clock."""
    now: float | None = None

    def clock() -> float:
        return time.time() if now is None else now

    events = list(events)
    now = event_time(events[0]) if events else None
    progress = Progress(clock, rate_seconds=RATE_SECONDS)
    for event in events:
        now = event_time(event)
        try:
            progress.tell(event)
        except (KeyError, TypeError, AttributeError):
            continue  # an event of another version of this program
    now = None
    return progress
