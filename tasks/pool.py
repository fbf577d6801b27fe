"""The workers of a run behind one small interface: `submit` a shard, get a future, `close`.

One thread waits on all connections at once. An idle worker takes the next shard; outside deterministic mode it also
holds further ones, up to its share of those left, so that small shards fill its batch and the tail of one does not
drain it. A worker that dies, or shows no progress for the stall limit, is replaced, and the futures of its shards end
in `WorkerDied`, which the caller retries. Under a deadline a shard that cannot be finished in time is not handed out,
and once nothing more can be, or the time is over, the workers are ended and every future that is left ends in
`OutOfTime`. What a shard is, and what is done when it is finished, is the business of the worker process itself
(tasks.worker).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from data.errors import RunError
from engine.supervisor import Child
from tasks.deadline import Deadline, OutOfTime
from tasks.shard_queue import ShardQueue, Waiting

TICK_SECONDS = 0.5
START_SECONDS = 3600.0  # a large model from a slow disk says nothing while it loads
EXIT_PATIENCE_SECONDS = 5.0
MAX_RESTART_DELAY_SECONDS = 30.0

Event = dict[str, Any]


class WorkerDied(RunError):
    """A worker ended while it held a shard; the shard may be tried again."""


class Interrupted(RunError):
    """The pool was closed before the shard was finished."""


class NoWorkers(RunError):
    """Workers refuse to start, so that waiting for one is pointless."""


class Held(NamedTuple):
    """A shard that a worker has, and its predicted tokens."""

    future: Future[Event]
    tokens: float


@dataclass(slots=True)
class Slot:
    """The place of one worker: its process now, and what it holds."""

    index: int
    child: Child | None = None
    ready: bool = False
    held: dict[str, Held] = field(default_factory=dict)
    seen: float = 0.0  # monotonic time of the last sign of progress
    work: float | None = None  # what the worker last said it had done; the same again is no progress
    failures: int = 0  # deaths in a row without a finished shard
    restart_at: float = 0.0
    suspect: bool = False  # whether its canaries disagreed with those of another worker

    @property
    def tokens(self) -> float:
        """Predicted tokens of the shards it holds."""
        return sum(held.tokens for held in self.held.values())


class WorkerPool:
    """Workers of this machine.

    Args:
        size: number of workers.
        depth: shards a worker may hold at once, whatever their size.
        tokens: it may hold more shards as long as they have fewer predicted tokens than this in all.
        start: makes the process of the worker with this index.
        stall_timeout: seconds without progress after which a worker is replaced.
        retries: deaths in a row without a finished shard after which a worker is not started again.
        deadline: when work must end; without one it goes on until it is done.
        on_event: told of every message and death, from the pool's thread; must return quickly.
    """

    def __init__(
        self,
        size: int,
        depth: int,
        start: Callable[[int], Child],
        *,
        tokens: float = 0.0,
        deadline: Deadline | None = None,
        stall_timeout: float,
        retries: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self._depth, self._tokens, self._start = depth, tokens, start
        self._stall, self._retries = stall_timeout, retries
        self._deadline = deadline
        self.late = False
        """Whether the deadline has ended the work."""
        self._on_event = on_event
        self._slots = [Slot(index) for index in range(size)]
        self._waiting = ShardQueue()
        self._draining = self._closed = False
        self._refusal = ""
        self._proved = False  # a worker has been ready
        self._wake, self._waker = Pipe(duplex=False)
        self._poked = False
        for slot in self._slots:
            self._spawn(slot)
        self._thread = threading.Thread(target=self._serve, name="workers", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether a shard given now can still be worked on."""
        return not (self._draining or self._closed or self._refusal)

    def submit(self, shard: Mapping[str, Any], *, first: bool = False) -> Future[Event]:
        """Queue a shard; `shard["id"]` is its id, `shard["cost"]` its predicted tokens if they are to count.

        With `first` it goes before those that wait.
        The future gives the worker's `done` message.
        It raises WorkerDied (try again), Interrupted (the pool was closed), OutOfTime (by the deadline) or NoWorkers
        (workers refuse to start).
        """
        future: Future[Event] = Future()
        self._waiting.put(Waiting(dict(shard), future), first=first)
        if self._closed:
            self._waiting.fail(self._ending())
        else:
            self._poke()
        return future

    def ask(self, message: Mapping[str, Any], *, besides: int) -> int | None:
        """Send a message to a ready worker other than `besides`, the one that holds least; its index, None if none is.

        To be called from `on_event`, that is, in the pool's own thread.
        """
        others = [slot for slot in self._slots if slot.index != besides and slot.ready and slot.child is not None]
        for slot in sorted(others, key=lambda slot: slot.tokens):
            if slot.child is not None and slot.child.send(message):
                return slot.index
        return None

    def drain(self) -> None:
        """Give out no further shard; those being worked on go on. Callable from a signal handler."""
        self._draining = True
        self._poke()

    def dismiss(self) -> None:
        """End every worker, whatever it holds, without waiting for that. Idempotent."""
        self._draining = self._closed = True
        self._poke()

    def close(self, patience: float = 0.0) -> None:
        """End every worker, after waiting up to `patience` seconds for shards being worked on. Idempotent."""
        self._draining = True
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(slot.held for slot in self._slots):
            time.sleep(0.05)
        self.dismiss()
        self._thread.join()

    def _poke(self) -> None:
        if not self._poked:  # more would fill the pipe, and then block whoever queues a whole window
            self._poked = True
            self._waker.send_bytes(b"look")

    def _serve(self) -> None:
        try:
            self._work()
        finally:  # however the loop ends, no process and no unanswered future is left
            error = self._ending() if self._closed else NoWorkers("the pool of workers failed")
            self._closed = True
            children = [slot.child for slot in self._slots if slot.child is not None]
            for child in children:
                child.kill()  # all of them before the first is waited for: a GPU takes a while to be given back
            for child in children:
                child.end()
            for slot in self._slots:
                self._fail(slot, error)
            self._waiting.fail(error)

    def _work(self) -> None:
        while not self._closed:
            connections = {slot.child.connection: slot for slot in self._slots if slot.child is not None}
            for ready in wait([self._wake, *connections], timeout=TICK_SECONDS):
                if ready is self._wake:
                    self._wake.recv_bytes()
                    self._poked = False
                else:
                    self._hear(connections[ready])  # type: ignore[index]
            self._watch()
            self._dispatch()
            self._keep_time()

    def _hear(self, slot: Slot) -> None:
        assert slot.child is not None
        message = slot.child.receive()
        if message is None:
            self._bury(slot, slot.child.end(EXIT_PATIENCE_SECONDS))
            return
        if message["event"] != "progress" or message.get("work") != slot.work:
            slot.seen, slot.work = time.monotonic(), message.get("work")
        event = {"worker": slot.index, **message}
        if message["event"] == "ready":
            slot.ready = self._proved = True
            slot.suspect = False
        elif message["event"] == "refused" and self._hopeless(slot, message):
            self._refusal = str(message["message"])
        elif message["event"] == "done":
            slot.failures = 0
            held = slot.held.pop(message["shard"])
            if self._deadline is not None:
                self._deadline.learn(held.tokens, message["seconds"])
            held.future.set_result(event)
        elif message["event"] == "failed":
            slot.held.pop(message["shard"]).future.set_exception(RunError(str(message["message"])))
        self._on_event(event)

    def _hopeless(self, slot: Slot, message: Event) -> bool:
        """Whether a worker's refusal holds for all.

        If nobody could load the model, the next one will not either: it is wrong, not unlucky. Where canaries disagree,
        the run ends once most workers do: then the one that was first may be the one that is wrong.
        """
        slot.suspect = bool(message.get("canary"))
        suspects = sum(slot.suspect for slot in self._slots)
        return not self._proved or bool(message.get("certain")) or 2 * suspects > len(self._slots)

    def _watch(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.child is None and now >= slot.restart_at and slot.failures <= self._retries and self.open:
                self._spawn(slot)
            elif slot.child is not None and (slot.held or not slot.ready):
                limit = self._stall if slot.ready else max(self._stall, START_SECONDS)
                if now - slot.seen > limit:
                    slot.child.end()
                    self._bury(slot, f"no progress for {limit:g} s")
        if not self._refusal and all(s.child is None and s.failures > self._retries for s in self._slots):
            self._refusal = "every worker died repeatedly; the last words are in the run's folder workers/"
        if self._refusal:
            self._waiting.fail(NoWorkers(self._refusal))

    def _dispatch(self) -> None:
        if self._draining:
            self._waiting.fail(Interrupted("the run was stopped"))
            return
        while roomy := [slot for slot in self._slots if self._has_room(slot)]:
            slot = min(roomy, key=lambda slot: len(slot.held))
            given = self._waiting.take(math.inf if self._deadline is None else self._deadline.room)
            if given is None:
                return
            assert slot.child is not None
            slot.held[given.shard["id"]] = Held(given.future, given.cost)
            slot.seen = time.monotonic()
            slot.child.send(given.shard)  # a worker that is gone is found at its connection

    def _keep_time(self) -> None:
        """End the work once the time is over, or when no worker has any and none that waits can be finished."""
        if self._deadline is None or self._draining:
            return
        held = sum(len(slot.held) for slot in self._slots)
        idle = not held and self._waiting.holds_only_above(self._deadline.room)
        if idle or self._deadline.passed:
            self.late = self._draining = self._closed = True
            self._on_event({"event": "deadline", "given_up": held, "waiting": len(self._waiting)})

    def _has_room(self, slot: Slot) -> bool:
        """Whether a worker may take one more shard. One that is ready before the others leaves them their share."""
        if slot.child is None or not slot.ready:
            return False
        if len(slot.held) < self._depth:
            return True
        left = len(self._waiting) + sum(len(slot.held) for slot in self._slots)
        return slot.tokens < self._tokens and len(slot.held) * len(self._slots) < left

    def _spawn(self, slot: Slot) -> None:
        try:
            slot.child = self._start(slot.index)
        except OSError as error:
            self._count_death(slot, f"it could not be started: {error}")
            return
        slot.ready, slot.seen = False, time.monotonic()
        self._on_event({"worker": slot.index, "event": "started", "pid": slot.child.pid})

    def _bury(self, slot: Slot, how: str) -> None:
        assert slot.child is not None
        words = slot.child.last_words()
        slot.child, slot.ready = None, False
        held = self._count_death(slot, how)
        message = f"worker {slot.index} ended: {how}" + (f" ({words})" if words else "")
        for future in held:
            future.set_exception(WorkerDied(message))

    def _count_death(self, slot: Slot, how: str) -> list[Future[Event]]:
        """Tell of a death and delay the next start; the shards that the worker held are the caller's to fail."""
        slot.failures += 1
        slot.restart_at = time.monotonic() + min(MAX_RESTART_DELAY_SECONDS, 0.5 * 2 ** (slot.failures - 1))
        shards, held = list(slot.held), [shard.future for shard in slot.held.values()]
        slot.held.clear()
        self._on_event({"worker": slot.index, "event": "died", "how": how, "shards": shards})
        return held

    def _ending(self) -> RunError:
        return OutOfTime("the deadline came first") if self.late else Interrupted("the run was stopped")

    @staticmethod
    def _fail(slot: Slot, error: Exception) -> None:
        for held in slot.held.values():
            held.future.set_exception(error)
        slot.held.clear()
