"""A worker that takes a moment for each shard, so that there is time to disturb a run from outside."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from data.checkpoint import Checkpoint
from engine.child import Mailbox
from engine.request import Completion
from tasks.results import ResultTable
from tasks.worker import Worker
from tasks.worker_order import WorkerOrder
from tests.scale.instant_worker import InstantEngine


class PacedEngine(InstantEngine):
    """Answers after as many seconds as FAULTS_PACE says, the first FAULTS_FREE batches at once."""

    def __init__(self) -> None:
        super().__init__()
        self._free = int(os.environ.get("FAULTS_FREE", "0"))

    def step(self) -> list[Completion]:
        if self.has_work and self._free > 0:
            self._free -= 1
        elif self.has_work:
            time.sleep(float(os.environ.get("FAULTS_PACE", "0.3")))
        return super().step()


class FailingEngine(InstantEngine):
    """Has no answer for one of as many prompts as FAULTS_EVERY says, about; those of 14 are among those of 7."""

    def step(self) -> list[Completion]:
        every = int(os.environ.get("FAULTS_EVERY", "7"))
        prompts = {request.id: request.prompt for request in self._waiting}
        return [
            replace(done, token_ids=[], finish_reason=None, error=("nan_logits", "planted"))
            if sum(map(int, prompts[done.id])) % every == 3
            else done
            for done in super().step()
        ]


def main(mailbox: Mailbox) -> None:
    """The worker process."""
    _serve(mailbox, PacedEngine())


def failing(mailbox: Mailbox) -> None:
    """The worker process whose engine fails."""
    _serve(mailbox, FailingEngine())


def _serve(mailbox: Mailbox, engine: InstantEngine) -> None:
    order = WorkerOrder.model_validate(mailbox.receive(wait=True))
    checkpoint = Checkpoint.open(order.settings.model.path)
    mailbox.send({"event": "ready", "seconds": 0.0, "device": order.device})
    table = ResultTable(order.settings, checkpoint.tokenizer(), None)
    Worker(mailbox, order, engine, table, checkpoint.context_length).serve()
