"""One drive of a run under watch: the driver forked, its calls and its workers' answered, faults brought about.

Runs in a process of its own for each drive, forked from the warm one.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from prefect.context import refresh_global_settings_context

import tasks.run
from flows import cli
from tests.faults.descent import signal_below
from tests.faults.durability import Durable
from tests.faults.fault import Point, folder_or_file, place_of
from tests.faults.interception import HeldCall, Listener, adopt_orphans, intercept, process_of
from tests.faults.order import Order, Outcome
from tests.faults.plants import deafen, plant
from tests.faults.spawner import Spawner

UNWATCHED = ("run/workers", "run/prefect")
"""Logs and the Prefect server's files, which no invariant rests on."""


class Supervision:
    """Forks the driver of an order at once; `watch` follows it to its end and its workers'."""

    def __init__(self, order: Order, place: Path) -> None:
        self._order, self._place = order, place
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._faults = {Point.parse(text): action for text, action in order.faults.items()}
        self._reached: list[str] = []
        self._trace: list[str] = []
        self._stopped: list[int] = []
        self._driver_ended = 0.0
        self._status: int | None = None
        self._timed_out = self._over = False
        self._durable = Durable(Path(order.root)) if order.power is not None else None
        self._log = place.with_suffix(".log")
        adopt_orphans()
        self._start(order.arguments)

    def _start(self, arguments: tuple[str, ...]) -> None:
        ours, theirs = socket.socketpair()
        self.driver = os.fork()
        if self.driver == 0:
            ours.close()
            _drive(self._order.model_copy(update={"arguments": arguments}), theirs, self._log)
        theirs.close()
        self._listener = None
        if self._order.watched:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
            if descriptors:  # else it could not be; its log says why
                self._listener = Listener(descriptors[0])

    def watch(self) -> None:
        """Until the driver and its descendants have ended; the outcome is written then, and when the driver ends."""
        deadline = time.monotonic() + self._order.seconds
        self._follow(deadline)
        if self._order.resumed and self._status is not None and self._status < 0 and not self._timed_out:
            self._counts.clear()
            self._faults = {Point.parse(self._order.cut): "kill-all"} if self._order.cut else {}
            self._start(self._order.resumed)
            self._follow(deadline)
        survivors, told = time.monotonic() - self._driver_ended, self._told()
        if self._durable is not None:
            assert self._order.power is not None
            self._durable.cut(self._order.power)
            self._durable.release()
        self._write("all", survivors, told)

    def _follow(self, deadline: float) -> None:
        while self._reap():
            call = self._listener.receive(0.05) if self._listener is not None else time.sleep(0.02)
            if call is not None:
                self._decide(call)
            if time.monotonic() > deadline and not self._timed_out:
                self._timed_out = True
                self._kill_all()
            if self._listener is not None and self._listener.gone:
                self._listener = None

    def _reap(self) -> bool:
        """Whether there is a descendant left. This process adopts those whose parent has ended."""
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
            while pid:
                if pid == self.driver:
                    self._status = os.waitstatus_to_exitcode(status)
                    self._driver_ended = time.monotonic()
                    self._write("driver", 0.0, self._told())
                pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        return True

    def _decide(self, call: HeldCall) -> None:
        assert self._listener is not None
        if self._over:  # started while the others were being killed
            self._kill_all()
            return
        path = call.paths[-1] if call.paths else ""
        place = place_of(path, self._order.root)
        if place is None or place in UNWATCHED:
            self._listener.proceed(call)
            return
        if call.name == "fsync":
            place = folder_or_file(path, place)
        try:
            who = "driver" if process_of(call.thread) == self.driver else "worker"
        except (FileNotFoundError, ProcessLookupError):  # killed meanwhile
            return
        self._counts[who, call.name, place] += 1
        point = Point(who, call.name, place, self._counts[who, call.name, place])
        if self._order.trace:
            self._trace.append(str(point))
        action = self._faults.get(point) or self._faults.get(point._replace(nth=0))
        if action is not None:
            self._reached.append(str(point))
            self._act(call, action)
            return
        if self._durable is not None and call.name in ("fsync", "unlink", "rmdir", "rename"):
            self._durable.synced(path) if call.name == "fsync" else self._durable.keep(path)
        self._listener.proceed(call)

    def _act(self, call: HeldCall, action: str) -> None:
        assert self._listener is not None
        if action == "kill-all":
            self._kill_all()
        elif action == "kill":
            os.kill(process_of(call.thread), signal.SIGKILL)
        elif action == "orphan":
            self._stopped.append(process_of(call.thread))
            os.kill(self._stopped[-1], signal.SIGSTOP)  # once it goes on, it makes the call anew
            os.kill(self.driver, signal.SIGKILL)
        elif action == "short":
            self._listener.shorten(call)
        else:
            self._listener.fail(call, getattr(errno, action))

    def _kill_all(self) -> None:
        """Nothing happens to a file meanwhile: each call that changes one waits for its answer, and gets none now."""
        self._over = True
        signal_below(os.getpid(), signal.SIGKILL)

    def _told(self) -> tuple[str, ...]:
        try:
            lines = (Path(self._order.root) / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return ()
        shards = []
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:  # torn by the kill
                continue
            if event["event"] == "done":
                shards.append(event["shard"])
        return tuple(shards)

    def _write(self, phase: str, survivors: float, told: tuple[str, ...]) -> None:
        assert self._status is not None
        outcome = Outcome(
            status=self._status,
            phase="driver" if phase == "driver" else "all",
            reached=tuple(self._reached),
            trace=tuple(self._trace),
            told=told,
            stopped=tuple(self._stopped),
            survivors=survivors,
            timed_out=self._timed_out,
            limit=self._order.seconds,
            output=self._log.read_text(encoding="utf-8", errors="replace")[-20_000:],
        )
        half = self._place.with_suffix(f".{phase}.half")
        half.write_text(outcome.model_dump_json(), encoding="utf-8")
        half.rename(self._place.with_suffix(f".{phase}"))


def _drive(order: Order, supervisor: socket.socket, log: Path) -> None:
    """The driver's process; does not return."""
    try:
        _become(order, supervisor, log)
        cli.main()
    except SystemExit:
        atexit._run_exitfuncs()  # the first of them ends the process with the status of the program
    except BaseException:  # noqa: BLE001 - as the interpreter ends a process
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)


def _become(order: Order, supervisor: socket.socket, log: Path) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    os.environ.update(order.environment)
    refresh_global_settings_context()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order.watched:
        listener = intercept()
        socket.send_fds(supervisor, [b"l"], [listener])
        os.close(listener)
    supervisor.close()
    for name, value in order.limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(kind, (value, value))
    plant(order.plant)
    if order.deaf:
        deafen()
    if order.forked:
        Spawner().replace_popen()
    tasks.run.WORKER_TARGET = order.worker
    sys.argv = ["overnight", *order.arguments]
