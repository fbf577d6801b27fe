"""A worker looks at its weights before it commits, and ends once they have changed in memory.

It looks as often as its share of the time allows (engine.weight_sums), so what it has committed since it last found
them intact may be wrong: it names these shards before it goes. Those that it holds are not to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from data.errors import RunError
from tasks.shard_in_progress import ShardInProgress

if TYPE_CHECKING:
    from engine.weight_sums import WeightWatch

WEIGHTS_CHANGED = "weights_changed"
"""Code of the warning that a worker ends with."""
_NAMED = 5  # shards in the message; the event has them all


class WeightsChanged(Exception):
    """The weights in memory are not those that were loaded. Nobody catches it: engine.child ends the process."""


class WeightsGuard:
    """What one worker knows of its weights."""

    def __init__(self, worker: int, watch: WeightWatch | None, tell: Callable[[dict[str, Any]], object]) -> None:
        self._worker, self._watch, self._tell = worker, watch, tell
        self._unquestioned: list[str] = []

    def look(self, held: Iterable[ShardInProgress]) -> None:
        """Raise WeightsChanged, after telling of it and clearing the shards that are held, if they have changed."""
        if self._watch is None:
            return
        if self._watch.intact():
            if self._watch.looked:
                self._unquestioned.clear()
            return
        for work in held:
            with suppress(OSError, RunError):  # its death then counts against the shard once
                work.survive()
        message = f"the model's weights in the memory of worker {self._worker} have changed since they were loaded"
        doubtful = self._unquestioned
        if doubtful:
            more = f" and {len(doubtful) - _NAMED} more" if len(doubtful) > _NAMED else ""
            names = ", ".join(shard[:12] for shard in doubtful[:_NAMED]) + more
            message += f"; it may have computed these committed shards with them: {names}. Use --fresh to be sure"
        self._tell({"event": "warning", "code": WEIGHTS_CHANGED, "message": message, "shards": doubtful})
        raise WeightsChanged(message)

    def committed(self, shard: str) -> None:
        """A shard was committed."""
        if self._watch is not None:
            self._unquestioned.append(shard)
