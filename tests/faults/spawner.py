"""Worker processes forked from an imported parent, behind the few methods of `subprocess.Popen` that a driver uses.

A worker spends seconds on imports, hundreds of workers the patience of whoever waits for the harness. The spawner is
forked off the driver before that has threads, and forks the workers in its stead; in all else they are those of
engine.supervisor: children of the driver, each the leader of a session, with the same mailbox, lifeline and log.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, BinaryIO

import engine.child
import engine.supervisor
from tests.faults.interception import adopt_orphans

POLL_SECONDS = 0.005


class Spawner:
    """Forks this process, which must have one thread; the fork serves until this process is gone."""

    def __init__(self) -> None:
        adopt_orphans()
        self._socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._socket.close()
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
        message = json.dumps({"target": command[4], "beats": command[7] == "beats", "environment": dict(env)}).encode()
        self._socket.sendall(len(message).to_bytes(4, "big"))
        socket.send_fds(self._socket, [message[:1]], [*pass_fds, stdout.fileno()])
        self._socket.sendall(message[1:])
        return ForkedProcess(int.from_bytes(self._socket.recv(4, socket.MSG_WAITALL), "big"))


class ForkedProcess:
    """A worker that this process has adopted, which makes it a child like any other."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            else:
                time.sleep(POLL_SECONDS)
        return self.returncode


def _serve(orders: socket.socket) -> None:
    while length := orders.recv(4, socket.MSG_WAITALL):
        first, descriptors, _, _ = socket.recv_fds(orders, 1, 3)
        message = json.loads(first + orders.recv(int.from_bytes(length, "big") - 1, socket.MSG_WAITALL))
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:  # its end makes the driver the parent of the worker
            worker = os.fork()
            if worker == 0:
                orders.close()
                os.close(told)
                os.close(tell)
                _work(message, *descriptors)
            os.write(tell, worker.to_bytes(4, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        orders.sendall(os.read(told, 4))
        for descriptor in (*descriptors, told, tell):
            os.close(descriptor)


def _work(message: dict[str, Any], mailbox: int, lifeline: int, log: int) -> None:
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.update(message["environment"])
    try:
        engine.child.main(message["target"], mailbox, lifeline, message["beats"])
    except BaseException:  # noqa: BLE001 - as the interpreter ends a process
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
