"""A worker whose engine answers at once: what remains is the cost of everything around the model."""

from __future__ import annotations

from collections.abc import Iterable

from data.checkpoint import Checkpoint
from engine.child import Mailbox
from engine.request import Completion, Request
from tasks.results import ResultTable
from tasks.worker import Worker
from tasks.worker_order import WorkerOrder


class InstantEngine:
    """Answers every request with the last four tokens of its prompt."""

    def __init__(self) -> None:
        self._waiting: list[Request] = []

    def add(self, requests: Iterable[Request]) -> None:
        self._waiting += requests

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def step(self) -> list[Completion]:
        done = [
            Completion(
                id=r.id,
                token_ids=[int(t) for t in r.prompt[-4:]],
                finish_reason="stop",
                prompt_tokens=len(r.prompt),
                key=r.key,
            )
            for r in self._waiting
        ]
        self._waiting = []
        return done

    def statistics(self) -> dict[str, float]:
        return {}


def main(mailbox: Mailbox) -> None:
    """The worker process."""
    order = WorkerOrder.model_validate(mailbox.receive(wait=True))
    checkpoint = Checkpoint.open(order.settings.model.path)
    mailbox.send({"event": "ready", "seconds": 0.0, "device": order.device})
    table = ResultTable(order.settings, checkpoint.tokenizer(), None)
    Worker(mailbox, order, InstantEngine(), table, checkpoint.context_length).serve()
