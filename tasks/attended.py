"""Supervised processes that are listened to until they are done, with a bound on every silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

from data.errors import RunError
from engine.child import BEAT
from engine.supervisor import Child
from tasks.seat import START_SECONDS, START_SILENCE_SECONDS

SILENCE_SECONDS = 60.0
"""Without a beat, which comes every second from a process that lives."""


def attend(children: Sequence[Child], patience: float, take: Callable[[dict[str, Any]], bool]) -> None:
    """Give what the processes say to `take`, which tells whether its sender is done, until all of them are.

    RunError for one that ends before, falls silent, or says nothing but that it lives for `patience` seconds. Before
    its first message, sent once its models are loaded, it may take as long as a worker that starts. Ending the
    processes is left to the caller.
    """
    waiting = {child.connection: child for child in children}
    heard = dict.fromkeys(waiting, time.monotonic())
    moved = dict(heard)
    loading = set(waiting)
    while waiting:
        for connection in wait(list(waiting), timeout=1.0):
            child = next(child for known, child in waiting.items() if known is connection)
            message = child.receive()
            if message is None:
                ending, words = child.end(patience=5), child.last_words() or "no message"
                raise RunError(f"a process that measures a model has ended ({ending}): {words}; see {child.log}")
            heard[child.connection] = time.monotonic()
            if message.get("event") != BEAT:
                moved[child.connection] = heard[child.connection]
                loading.discard(connection)
                if take(message):
                    del waiting[child.connection]
        for connection, child in waiting.items():
            silent, still = time.monotonic() - heard[connection], time.monotonic() - moved[connection]
            if connection in loading:
                _check_loading(child, silent, still)
            else:
                _check(child, silent, still, patience)


def _check_loading(child: Child, silent: float, still: float) -> None:
    if silent > START_SILENCE_SECONDS or still > START_SECONDS:
        raise RunError(
            f"process {child.pid}, which measures a model, was not ready after {still:,.0f} seconds; see {child.log}"
        )


def _check(child: Child, silent: float, still: float, patience: float) -> None:
    if silent > min(SILENCE_SECONDS, patience):
        raise RunError(f"process {child.pid}, which measures a model, was stopped or hangs; see {child.log}")
    if still > patience:
        raise RunError(
            f"process {child.pid}, which measures a model, made no progress for workers.stall_timeout = {patience:g} "
            f"seconds; see {child.log}"
        )
