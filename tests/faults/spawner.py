"""Worker processes forked from an imported parent, behind the few methods of `subprocess.Popen` that a driver uses.

A worker spends seconds on imports, hundreds of workers the patience of whoever waits for the harness. The spawner is
forked off the driver before that has threads, and forks the workers in its stead; in all else they are those of
engine.supervisor: the same mailbox, pipe and log.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO

import engine.child
import engine.supervisor


class Spawner:
    """Forks this process, which must have one thread; the fork serves until this process is gone."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _serve(theirs)
            os._exit(0)
        theirs.close()

    def replace_popen(self) -> None:
        """Have engine.supervisor start its children here."""
        engine.supervisor.subprocess = SimpleNamespace(  # type: ignore[assignment]
            Popen=self._popen, TimeoutExpired=subprocess.TimeoutExpired, DEVNULL=subprocess.DEVNULL, STDOUT=-2
        )

    def _popen(
        self, command: list[str], *, env: Mapping[str, str], pass_fds: list[int], stdout: BinaryIO, **_: Any
    ) -> Any:
        assert command[3] == "engine.child"
        message = json.dumps({"target": command[4], "environment": dict(env)}).encode()
        self._socket.sendall(len(message).to_bytes(4, "big"))
        socket.send_fds(self._socket, [message[:1]], [pass_fds[0], stdout.fileno()])
        self._socket.sendall(message[1:])
        pid = int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big")
        return ForkedProcess(pid)


class ForkedProcess:
    """A worker that somebody else forked; its exit status is its parent's to know."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = None

    def kill(self) -> None:
        if self._descriptor is not None:
            try:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            except ProcessLookupError:
                return

    def wait(self, timeout: float) -> int:
        if self._descriptor is not None:
            ended = select.poll()
            ended.register(self._descriptor, select.POLLIN)
            if not ended.poll(timeout * 1000):
                raise subprocess.TimeoutExpired("worker", timeout)
            os.close(self._descriptor)
            self._descriptor = None
        return -signal.SIGKILL


def _serve(orders: socket.socket) -> None:
    while length := orders.recv(4, socket.MSG_WAITALL):
        first, descriptors, _, _ = socket.recv_fds(orders, 1, 2)
        message = json.loads(first + orders.recv(int.from_bytes(length, "big") - 1, socket.MSG_WAITALL))
        pid = os.fork()
        if pid == 0:
            orders.close()
            _work(message, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        orders.sendall(pid.to_bytes(4, "big"))


def _work(message: dict[str, Any], mailbox: int, log: int) -> None:
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(message["environment"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        engine.child.main(message["target"], mailbox)
    except BaseException:  # noqa: BLE001 - as the interpreter ends a process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
