"""A real worker around an engine without a model: it answers by the prompt, and does what some prompts tell it to."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.checkpoint import Checkpoint
from engine.child import Mailbox
from engine.request import Completion, Request
from tasks.results import ResultTable
from tasks.worker import Worker
from tasks.worker_order import WorkerOrder

KILL, ABORT, ILLEGAL, NAN, LOSE, SWAP, TWICE, HANG, MEMORY, STOP = range(40, 50)
"""First tokens of prompts that make trouble."""


class TroubledEngine:
    """Answers with the last four tokens of the prompt and the number of prompts in its batch."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: list[Request] = []

    def add(self, requests: Iterable[Request]) -> None:
        self._waiting += requests

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    def step(self) -> list[Completion]:
        batch, self._waiting = self._waiting, []
        with (self._folder / "batches").open("a") as file:
            file.write(json.dumps([os.getpid(), [int(request.prompt[1]) for request in batch]]) + "\n")
        done = [self._answer(request, len(batch)) for request in batch]
        firsts = [int(request.prompt[0]) for request in batch]
        if LOSE in firsts:
            del done[firsts.index(LOSE)]
        if SWAP in firsts:
            first, second = done[firsts.index(SWAP)], done[firsts.index(SWAP) - 1]
            first.id, second.id = second.id, first.id
        if TWICE in firsts:
            done.insert(0, done[firsts.index(TWICE)])
        return done

    def statistics(self) -> dict[str, float]:
        return {}

    def _answer(self, request: Request, batch: int) -> Completion:
        first = int(request.prompt[0])
        once = self._folder / f"once-{first}"
        if first == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if first == ABORT:
            os.abort()
        if first == ILLEGAL:
            raise RuntimeError(
                "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`"
            )
        if first == MEMORY:
            raise MemoryError("out of memory")
        if first in (HANG, STOP) and not once.exists():
            once.touch()
            if first == HANG:
                time.sleep(1000)
            os.kill(os.getpid(), signal.SIGSTOP)
        if first == NAN:
            return Completion(
                request.id, error=("nan_logits", "not numbers"), prompt_tokens=len(request.prompt), key=request.key
            )
        tokens = [*(int(token) for token in request.prompt[-4:]), batch]
        return Completion(request.id, tokens, finish_reason="stop", prompt_tokens=len(request.prompt), key=request.key)


class Watch:
    """Finds the weights changed when it looks for the first time, at the second shard."""

    looked = False

    def intact(self) -> bool:
        before, self.looked = self.looked, True
        return not before


def main(mailbox: Mailbox) -> None:
    """The worker process. One whose number is in a file `broken` ends at its start; `flipped`: its weights change."""
    order = WorkerOrder.model_validate(mailbox.receive(wait=True))
    folder = Path(os.environ["TROUBLE"])
    broken = folder / "broken"
    if broken.exists() and str(order.worker) in broken.read_text().split():
        sys.exit("no such device")
    checkpoint = Checkpoint.open(order.settings.model.path)
    mailbox.send({"event": "ready", "seconds": 0.0, "device": order.device})
    table = ResultTable(order.settings, checkpoint.tokenizer(), None)
    flipped = folder / "flipped"
    watch: Any = Watch() if flipped.exists() and str(order.worker) in flipped.read_text().split() else None
    Worker(mailbox, order, TroubledEngine(folder), table, checkpoint.context_length, watch).serve()


def holding(mailbox: Mailbox) -> None:
    """Starts a process of its own, says its id, then holds the interpreter in a call into C."""
    grandchild = subprocess.Popen(["sleep", "1000"])
    mailbox.send({"event": "ready", "pid": os.getpid(), "grandchild": grandchild.pid})
    mailbox.receive(wait=True)
    ctypes.PyDLL(None).sleep(1000)


def parent(mailbox: Mailbox) -> None:
    """The same without the call."""
    grandchild = subprocess.Popen(["sleep", "1000"])
    mailbox.send({"event": "ready", "pid": os.getpid(), "grandchild": grandchild.pid})
    mailbox.receive(wait=True)
    time.sleep(1000)
