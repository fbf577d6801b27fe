"""A worker process whose device computes wrongly after a sound start: every token of worker 1 is off by one."""

from __future__ import annotations

import tasks.worker
from engine.child import Mailbox
from engine.request import Completion

sound = tasks.worker.Worker._take


def lie(self: tasks.worker.Worker, completion: Completion) -> None:
    """Take in a completion as it left the faulty device."""
    if self._order.worker == 1:
        completion.token_ids = [token ^ 1 for token in completion.token_ids]
    sound(self, completion)


def main(mailbox: Mailbox) -> None:
    """The worker's own main, on the faulty device."""
    tasks.worker.Worker._take = lie  # type: ignore[method-assign]
    tasks.worker.main(mailbox)
