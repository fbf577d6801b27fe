"""The inside of a supervised process: `python -m engine.child MODULE:FUNCTION FD`.

The function gets a `Mailbox` and runs until it returns. A thread reads the parent's messages; when the parent is gone,
however it went, the pipe ends and the process exits at once, also in the middle of a computation, so that no orphan
keeps a device. Signals meant for the driver's process group are ignored: the driver decides when a worker ends.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from engine.bytecode import keep_bytecode
from engine.quiet_traceback import print_quietly

PARENT_GONE = 3


class Mailbox:
    """Messages from and to the parent: JSON objects, in order."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True, name="mailbox").start()

    def receive(self, *, wait: bool) -> dict[str, Any] | None:
        """The next message; None if there is none and `wait` is false. Waiting ends with the parent at the latest."""
        try:
            return self._inbox.get(block=wait)
        except queue.Empty:
            return None

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message; the process ends here if the parent is gone."""
        try:
            self._connection.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(PARENT_GONE)

    def _read(self) -> None:
        while True:
            try:
                text = self._connection.recv_bytes()
            except (EOFError, OSError):
                os._exit(PARENT_GONE)
            self._inbox.put(json.loads(text))


def main(target: str, descriptor: int) -> None:
    """Run `module:function` with the mailbox on `descriptor`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = print_quietly
    mailbox = Mailbox(Connection(descriptor))
    keep_bytecode()
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(mailbox)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
