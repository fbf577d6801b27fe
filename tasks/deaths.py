"""Deaths of workers, as later attempts at their shards learn of them."""

from __future__ import annotations

from collections.abc import Callable

from data.attempts import record_death
from data.errors import RunError
from data.run_folder import RunFolder
from tasks.events import EventLog
from tasks.seat import Event


def recording(folder: RunFolder, events: EventLog) -> Callable[[Event], None]:
    """Tells `events` of what the pool tells, after recording it if it is a death."""

    def tell(event: Event) -> None:
        if event["event"] in ("died", "stopped"):
            _record(folder, event, events)
        events.tell(event)

    return tell


def _record(folder: RunFolder, event: Event, events: EventLog) -> None:
    """Make a worker's death known to later attempts at the shards that it held, before these are handed out again."""
    try:
        for shard in event["shards"]:
            record_death(folder, shard, event["pid"], event["event"])
    except (OSError, RunError) as error:  # it then counts half, as a death that nobody saw
        events.tell({"event": "warning", "message": f"a worker's death could not be recorded: {error}"})
