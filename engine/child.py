"""The inside of a supervised process: `python -m engine.child MODULE:FUNCTION FD LIFELINE BEATS`.

The function gets a `Mailbox` and runs until it returns. A thread reads the parent's messages; when the parent is gone,
however it went, the socket ends and the process exits at once with everything that it has started, also in the middle
of a computation, so that no orphan keeps a device. A call into C that holds the interpreter would keep that thread from
running, so a shell of the same process group waits on a pipe of its own that ends with the parent, the lifeline, and
then kills the group. (The kernel's own signal on a parent's death would end this process alone, and often before it
could end what it has started.) Signals meant for the driver's process group are ignored: the driver decides when a
worker ends.

A second thread says every second that the process lives, whatever the function is at: a process that was stopped, or
hangs in a call that holds the interpreter, falls silent. That work goes forward is for the function to say.

An error that leaves the function ends the process at once, without the interpreter's farewell, which could wait for a
broken device for ever. After a fault of the device (engine.faults) the exit status is `FAULT`.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from engine.bytecode import keep_bytecode
from engine.faults import fault
from engine.quiet_traceback import print_quietly, print_threads_quietly

FAILED, PARENT_GONE, FAULT = 1, 3, 86
BEAT = "beat"
BEAT_SECONDS = 1.0


class Mailbox:
    """Messages from and to the parent: JSON objects, in order. `send` may be called from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._sending = threading.Lock()
        threading.Thread(target=self._read, daemon=True, name="mailbox").start()

    def receive(self, *, wait: bool) -> dict[str, Any] | None:
        """The next message; None if there is none and `wait` is false.

        Waiting has no bound of its own: it ends with the parent, since the reading thread then ends the process.
        """
        try:
            return self._inbox.get(block=wait)
        except queue.Empty:
            return None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; the process ends here if the parent is gone, which also bounds the wait for a slow one."""
        content = json.dumps(message).encode()
        try:
            with self._sending:
                self._connection.send_bytes(content)
        except OSError:
            _end_orphan()

    def beat(self, seconds: float) -> None:
        """Say from now on that the process lives."""

        def beat() -> None:
            while True:
                self.send({"event": BEAT})
                time.sleep(seconds)

        threading.Thread(target=beat, daemon=True, name="heartbeat").start()

    def _read(self) -> None:
        while True:
            try:
                text = self._connection.recv_bytes()  # until there is a message or no parent
            except (EOFError, OSError):
                _end_orphan()
            self._inbox.put(json.loads(text))


def main(target: str, descriptor: int, lifeline: int, beats: bool) -> None:
    """Run `module:function` with the mailbox on `descriptor`; `lifeline` is a pipe that ends with the parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _watch(lifeline)
    mailbox = Mailbox(Connection(descriptor))
    sys.excepthook = _end_failed
    print_threads_quietly()
    if beats:
        mailbox.beat(BEAT_SECONDS)
    keep_bytecode()
    module, _, function = target.partition(":")
    run: Callable[[Mailbox], None] = getattr(importlib.import_module(module), function)
    run(mailbox)


def _watch(lifeline: int) -> None:
    """Have a shell kill this process's group, itself included, once the lifeline has ended: at once, if it has."""
    if os.getpgrp() != os.getpid():
        return
    with suppress(OSError):  # a system without a shell has the reading thread
        subprocess.Popen(
            ["/bin/sh", "-c", "read _; kill -KILL 0"],
            stdin=lifeline,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    os.close(lifeline)


def _end_orphan() -> None:
    """End this process, and what it has started: all of them are of the group that it leads."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(PARENT_GONE)


def _end_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End this process because of an error that nothing has caught; the last line printed says why."""
    print_quietly(kind, error, trace)
    reason = fault(error)
    if reason is not None:
        print(f"ended by {reason}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED if reason is None else FAULT)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "beats")
