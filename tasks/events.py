"""What happens in a run, told once: to the display at once, and to RUN/events.jsonl for later readers.

Progress counters are for the display alone; everything else is appended as one JSON line. The file is a convenience:
the ledger is the truth, so lines are not made durable one by one.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to a file and passes them on.

    Args:
        path: the file; made private if new.
        listeners: called with each event, from whichever thread tells it.
    """

    def __init__(self, path: Path, *listeners: Callable[[dict[str, Any]], None]) -> None:
        self._listeners = listeners
        self._lock = threading.Lock()
        self._broken = False
        self._file = open(path, "a", encoding="utf-8", opener=_private)  # noqa: SIM115 - open as long as the run

    def tell(self, event: dict[str, Any]) -> None:
        """Record one event; it has a key `event`."""
        if event["event"] != "progress":
            line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event})
            with self._lock:
                self._write(line)
        for listener in self._listeners:
            listener(event)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what a full disk left in the buffer
            self._file.close()

    def _write(self, line: str) -> None:
        """A full disk ends the file, not the run: what must not be lost is in the ledger."""
        if self._broken:
            return
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            self._broken = True
            for listener in self._listeners:
                listener({"event": "warning", "message": f"events are no longer recorded: {error}"})


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
