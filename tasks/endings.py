"""How the wait for a shard may end without its answers, besides the deadline (tasks.deadline)."""

from __future__ import annotations

from data.errors import RunError


class WorkerDied(RunError):
    """A worker ended while it held a shard; the shard may be tried again."""


class ShardFailed(RunError):
    """A worker could not compute or store a shard; another one would meet the same."""


class Interrupted(RunError):
    """The pool was closed before the shard was finished."""


class NoWorkers(RunError):
    """Workers refuse to start, so that waiting for one is pointless."""
