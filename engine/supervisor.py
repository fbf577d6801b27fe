"""Processes of any callable that live no longer than their parent.

A child is a fresh interpreter (never a fork: CUDA and threads do not survive one) that runs `module:function` with a
mailbox. Parent and child share one socket pair and nothing else, so the end of the connection means the end of the
other side. Who gets which work, and what a death means for it, is left to the caller.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LOG_TAIL_BYTES = 4096
REAP_SECONDS = 10.0


class Child:
    """One supervised process.

    Args:
        target: `module:function`; the function is called with an engine.child.Mailbox.
        environment: variables on top of this process's own; in force before the child imports anything.
        log: file that takes the child's stdout and stderr; made anew.
    """

    def __init__(self, target: str, *, environment: Mapping[str, str], log: Path) -> None:
        ours, theirs = socket.socketpair()
        self.log = log
        self.connection = Connection(ours.detach())
        with theirs, log.open("wb") as output:
            # -P: a tasks.py or data/ in the user's folder must not stand in for ours.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.child", target, str(theirs.fileno())],
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send one message; False if the child is gone."""
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message, once `connection` is readable; None if the child is gone."""
        try:
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        assert isinstance(message, dict)
        return message

    def kill(self) -> None:
        """Kill the child without waiting for its end."""
        self._process.kill()

    def end(self, patience: float = 0.0) -> str:
        """Kill the child if it still runs after `patience` seconds, reap it, and say how it ended."""
        self.connection.close()
        try:
            code = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                code = self._process.wait(REAP_SECONDS)
            except subprocess.TimeoutExpired:  # in the kernel's hands; waiting for it would hold the others up
                return f"process {self.pid} cannot be ended"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit status {code}"

    def last_words(self) -> str:
        """The end of what the child printed, for a message to the user."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""
