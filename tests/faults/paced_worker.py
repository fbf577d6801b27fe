"""A worker that takes a moment for each shard, so that there is time to disturb a run from outside."""

from __future__ import annotations

import os
import time

from data.checkpoint import Checkpoint
from engine.child import Mailbox
from engine.request import Completion
from tasks.results import ResultTable
from tasks.worker import Worker, WorkerOrder
from tests.scale.instant_worker import InstantEngine


class PacedEngine(InstantEngine):
    """Answers after as many seconds as FAULTS_PACE says."""

    def step(self) -> list[Completion]:
        if self.has_work:
            time.sleep(float(os.environ.get("FAULTS_PACE", "0.3")))
        return super().step()


def main(mailbox: Mailbox) -> None:
    """The worker process."""
    order = WorkerOrder.model_validate(mailbox.receive(wait=True))
    checkpoint = Checkpoint.open(order.settings.model.path)
    mailbox.send({"event": "ready", "seconds": 0.0, "device": order.device})
    table = ResultTable(order.settings, checkpoint.tokenizer(), None)
    Worker(mailbox, order, PacedEngine(), table, checkpoint.context_length).serve()
