"""The driver's side of the cross-check: asks another worker to repeat what one has left, and judges the outcome.

A disagreement is an alert in any case. Where rounding turns no answer, it also ends the run: one of two workers
computes wrongly, and nobody knows since when. That is kept in RUN/doubts, so that no resumed run publishes those
answers either. Devices of different names round differently, so that their disagreement proves nothing.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from data.durable import make_folder, write_file
from data.errors import RunError
from data.run_folder import RunFolder
from tasks.repeats import FOLDER

_DOUBTS = "doubts"


class Asks(Protocol):
    """The pool, as far as it is needed here."""

    def ask(self, message: Mapping[str, Any], *, besides: int) -> int | None:
        """Send a message to a worker other than `besides` that is ready; its index, None if there is none."""


class CrossCheck:
    """Follows the events of a run, in the pool's thread."""

    def __init__(
        self,
        folder: RunFolder,
        pool: Asks,
        *,
        strict: bool,
        devices: Sequence[str] = (),
        tell: Callable[[dict[str, Any]], None],
        fail: Callable[[RunError], None],
    ) -> None:
        """strict: whether a disagreement ends the run; devices: names by worker; tell: takes events; fail: ends it."""
        self._folder, self._pool, self._strict, self._tell, self._fail = folder, pool, strict, tell, fail
        self._devices = devices
        self._left: dict[str, int] = {}  # sample of a shard -> the worker that left it
        self._asked: dict[str, int] = {}  # sample -> the worker that repeats it
        self._changed = threading.Condition()
        self.alerts: list[str] = []

    def listen(self, event: Mapping[str, Any]) -> None:
        """Take one event of a worker into account."""
        kind, giver = event["event"], None
        with self._changed:
            if kind == "done" and event.get("repeat"):
                self._left[event["repeat"]] = event["worker"]
            elif kind in ("died", "left", "replaced"):  # what it left is worth repeating still
                for sample in [sample for sample, worker in self._asked.items() if worker == event["worker"]]:
                    del self._asked[sample]
                    if kind == "died":  # perhaps of this, and the next worker would die of it too
                        self._left.pop(sample, None)
            elif kind == "repeated":
                giver = self._left.pop(event["sample"], None)
                self._asked.pop(event["sample"], None)
            if kind in ("done", "died", "left", "replaced", "ready", "repeated"):
                self._ask()
                self._changed.notify_all()
        if kind == "repeated" and event["differ"]:
            self._alert(event, giver)

    def settle(self, patience: float) -> None:
        """Wait for what other workers are repeating at the moment, so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._asked, patience)

    def close(self) -> None:
        """Drop what was left and not repeated; it holds prompts."""
        shutil.rmtree(self._folder.path / FOLDER, ignore_errors=True)

    def _ask(self) -> None:
        for sample, worker in self._left.items():
            if sample not in self._asked:
                asked = self._pool.ask({"repeat": sample}, besides=worker)
                if asked is not None:
                    self._asked[sample] = asked

    def _alert(self, event: Mapping[str, Any], giver: int | None) -> None:
        shard = event["shard"]
        names = {self._devices[worker] for worker in (event["worker"], giver) if worker is not None and self._devices}
        why = "one of their devices computes wrongly"
        if len(names) > 1:
            why = f"their devices round differently ({', '.join(sorted(names))}), or one of them computes wrongly"
        message = (
            f"worker {event['worker']} answers {event['differ']} of {event['rows']} rows of shard {shard[:12]} "
            f"otherwise than the worker that was given it: {why}"
        )
        if self._strict:
            self._fail(_doubtful(message))  # before anything that may go wrong
        self.alerts.append(message)
        self._tell({"event": "warning", "message": message})
        if self._strict:
            self._keep(shard, message)

    def _keep(self, shard: str, message: str) -> None:
        """Keep a resumed run from publishing. On a disk that is full the user has to."""
        content = json.dumps({"shard": shard, "message": message}).encode()
        folder = self._folder.path / _DOUBTS
        try:
            make_folder(folder, 0o700)
            write_file(self._folder.tmp, folder / f"{shard}.json", lambda file: file.write(content))
        except OSError as error:
            text = f"this could not be recorded ({error}): start the run again with --fresh only, or it is forgotten"
            self.alerts.append(text)
            self._tell({"event": "warning", "message": text})


def open_checks(folder: RunFolder) -> None:
    """Make room for what workers leave. RunError for a run whose workers have disagreed before."""
    for doubt in sorted((folder.path / _DOUBTS).glob("*.json")):
        try:
            message = str(json.loads(doubt.read_bytes())["message"])
        except (ValueError, KeyError, TypeError):
            message = f"{doubt} is damaged"
        raise _doubtful(message)
    shutil.rmtree(folder.path / FOLDER, ignore_errors=True)  # a killed driver's
    make_folder(folder.path / FOLDER, 0o700)


def _doubtful(message: str) -> RunError:
    return RunError(f"{message}. Nothing is published; find the device, then compute everything again with --fresh")
