"""Processes of any callable that live no longer than their parent.

A child is a fresh interpreter (never a fork: CUDA and threads do not survive one) that runs `module:function` with a
mailbox. Parent and child share one socket pair and nothing else, so the end of the connection means the end of the
other side. A child leads a process group of its own and ends with all of it, so that what it has started does not
outlive it. Who gets which work, and what a death means for it, is left to the caller.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from engine.child import FAULT

LOG_TAIL_BYTES = 4096
REAP_SECONDS = 10.0
MESSAGE_SECONDS = 60  # for one message, which a child that is stopped may leave half said, or not take
_POLL_SECONDS = 0.01


class Child:
    """One supervised process.

    Args:
        target: `module:function`; the function is called with an engine.child.Mailbox.
        environment: variables on top of this process's own; in force before the child imports anything.
        log: file that takes the child's stdout and stderr; made anew.
        beats: whether it is to send `{"event": engine.child.BEAT}` every second as long as it lives.
    """

    def __init__(self, target: str, *, environment: Mapping[str, str], log: Path, beats: bool = False) -> None:
        self.beats = beats
        ours, theirs = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", MESSAGE_SECONDS, 0))
        self.log = log
        self.connection = Connection(ours.detach())
        watched, lifeline = os.pipe()
        self._lifeline = open(lifeline, "wb", buffering=0)  # noqa: SIM115 - open as long as the child shall live
        with theirs, open(watched, "rb") as pipe, log.open("wb") as output:
            # -P: a tasks.py or data/ in the user's folder must not stand in for ours.
            words = [target, str(theirs.fileno()), str(watched), "beats" if beats else "silent"]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.child", *words],
                env={**os.environ, **environment},
                pass_fds=[theirs.fileno(), pipe.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def memory(self) -> int | None:
        """Bytes of the machine's memory that the process holds; None if it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send one message; False if the child is gone, or does not take it for `MESSAGE_SECONDS`."""
        try:
            self.connection.send_bytes(json.dumps(message).encode())
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message, once `connection` is readable; None if the child is gone, or has not said all of it."""
        try:
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        assert isinstance(message, dict)
        return message

    def kill(self) -> None:
        """Kill the child, and what it has started, without waiting for their end."""
        if self._process.returncode is None:  # else its id may be another's by now
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def end(self, patience: float = 0.0) -> str:
        """Kill the child if it still runs after `patience` seconds, reap it, and say how it ended. May be repeated."""
        self._wait(patience)
        self.connection.close()
        self._lifeline.close()
        self.kill()  # also where it has ended: what it has started may go on
        try:
            code = self._process.wait(REAP_SECONDS)
        except subprocess.TimeoutExpired:  # in the kernel's hands; waiting for it would hold the others up
            return f"process {self.pid} cannot be ended"
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return "a fault of its device" if code == FAULT else f"exit status {code}"

    def _wait(self, patience: float) -> None:
        """Wait for the child's end without reaping it: as long as it is not, its id is its group's."""
        deadline = time.monotonic() + patience
        while self._process.returncode is None:
            try:
                ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # somebody else in this process has reaped it
                return
            if ended is not None:
                return
            if (left := deadline - time.monotonic()) <= 0:
                return
            time.sleep(min(_POLL_SECONDS, left))

    def last_words(self) -> str:
        """The end of what the child printed, for a message to the user."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""
