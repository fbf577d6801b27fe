"""The workers of a run behind one small interface: `submit` a shard, get a future, `close`.

One thread starts the processes, once there is a shard for them or will be, and waits on all connections at once. An
idle worker takes the next shard; outside deterministic mode it also holds further ones, up to its share of those left,
so that small shards fill its batch and the tail of one does not drain it. A worker that dies, falls silent or makes no
progress (tasks.seat) is replaced, never used again, and the futures of its shards end in `WorkerDied`: the caller
submits them again. One whose memory grows without end is replaced between two shards. A seat whose workers die in a row
stays empty; the run goes on with the others, until none is left. Under a deadline a shard that cannot be finished in
time is not handed out, and once nothing more can be, or the time is over, the workers are ended and every future that
is left ends in `OutOfTime`. When it is another run's turn (tasks.turns) no shard is handed out, those in flight end,
the workers are dismissed, and new ones go on later with the shards that wait. What a shard is, and what is done when it
is finished, is the business of the worker process itself (tasks.worker).
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from data.errors import RunError
from engine.child import BEAT
from engine.quiet_traceback import described
from engine.supervisor import Child
from tasks.deadline import Deadline, OutOfTime
from tasks.endings import Interrupted, NoWorkers, ShardFailed, WorkerDied
from tasks.growth import Growth
from tasks.seat import Event, Seat, vacate
from tasks.shard_queue import ShardQueue, Waiting
from tasks.trust import Faults, free_for_questions, hopeless
from tasks.turns import Turn
from tasks.weights_guard import WEIGHTS_CHANGED

TICK_SECONDS = 0.5
PAUSE_SECONDS = 5.0  # a turn that took longer than this did not happen: the process was stopped, or starved
EXIT_PATIENCE_SECONDS = 5.0
CLOSE_SECONDS = 60.0  # what it takes to kill and reap every worker, at most


class WorkerPool:
    """Workers of this machine.

    Args:
        size: number of workers.
        depth: shards a worker may hold at once, whatever their size.
        tokens: it may hold more shards as long as they have fewer predicted tokens than this in all.
        start: makes the process of the worker with this index.
        stall_timeout: seconds without progress after which a worker is replaced.
        retries: deaths in a row without a finished shard after which a worker is not started again.
        growth: bytes of memory that a worker may grow by after its start.
        deadline: when work must end; without one it goes on until it is done.
        turn: when the devices are this run's; without one they always are.
        on_event: told of every message and death, from the pool's thread; must return quickly.
    """

    def __init__(
        self,
        size: int,
        depth: int,
        start: Callable[[int], Child],
        *,
        tokens: float = 0.0,
        growth: float = math.inf,
        deadline: Deadline | None = None,
        turn: Turn | None = None,
        stall_timeout: float,
        retries: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self._depth, self._tokens, self._start = depth, tokens, start
        self._stall, self._on_event = stall_timeout, on_event
        self._deadline, self._turn = deadline, turn
        self._ours = turn is None
        self.begun = False
        """Whether there was ever work, or was going to be: before that no worker is started and no turn taken."""
        self.late = False
        """Whether the deadline has ended the work."""
        self._seats = [Seat(index, retries, Growth(growth)) for index in range(size)]
        self._waiting = ShardQueue()
        self._draining = self._closed = self._poked = False
        self._refusal = ""
        self._proved, self._faults = False, Faults()  # whether a worker has been ready
        self._wake, self._waker = Pipe(duplex=False)
        self._thread = threading.Thread(target=self._serve, name="workers", daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether a shard given now can still be worked on."""
        return not (self._draining or self._closed or self._refusal)

    def submit(self, shard: Mapping[str, Any], *, first: bool = False, alone: bool = False) -> Future[Event]:
        """Queue a shard; `shard["id"]` is its id, `shard["cost"]` its predicted tokens if they are to count.

        With `first` it goes before those that wait; with `alone` it gets a worker that holds nothing else meanwhile.
        The future gives the worker's `done` message.
        It raises WorkerDied (try again), ShardFailed, Interrupted (the pool was closed), OutOfTime (by the deadline) or
        NoWorkers (workers refuse to start).
        """
        future: Future[Event] = Future()
        self.begun = True
        self._waiting.put(Waiting(dict(shard), future, alone), first=first)
        if self._closed:
            self._waiting.fail(self._ending())
        else:
            self._poke()
        return future

    def begin(self) -> None:
        """Start the workers now: there will be shards. Idempotent."""
        if not self.begun:
            self.begun = True
            self._poke()

    def ask(self, message: Mapping[str, Any], *, besides: int) -> int | None:
        """Send a message to a worker other than `besides` that is free for it; its index, None if none is.

        To be called from `on_event`, that is, in the pool's own thread.
        """
        free = free_for_questions(self._seats, besides)
        return next((seat.index for seat in free if seat.child is not None and seat.child.send(message)), None)

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
        while time.monotonic() < deadline and any(seat.held for seat in self._seats):
            time.sleep(0.05)
        self.dismiss()
        self._thread.join(CLOSE_SECONDS)  # it waits for nothing longer; the processes end with this one at the latest

    def _poke(self) -> None:
        if not self._poked:  # more would fill the pipe, and then block whoever queues a whole window
            self._poked = True
            self._waker.send_bytes(b"look")

    def _serve(self) -> None:
        try:
            self._work()
        finally:  # however the loop ends, no process and no unanswered future is left
            ordered = self._closed
            failure = sys.exception()
            why = "" if failure is None else f": {described(failure)}"
            error = self._ending() if ordered else NoWorkers(f"the pool of workers failed{why}")
            self._closed = True
            stopped = [event for seat in self._seats if ordered and (event := seat.stopped) is not None]
            for given in vacate(self._seats):
                given.future.set_exception(error)
            self._waiting.fail(error)
            if self._turn is not None:
                self._turn.end()  # whoever waits for the devices need not wait for the result too
            for event in stopped:
                self._on_event(event)

    def _work(self) -> None:
        turn = time.monotonic()
        while not self._closed:
            if self.begun:
                self._keep_turn()
                self._watch()
            self._dispatch()
            self._keep_time()
            connections = {seat.child.connection: seat for seat in self._seats if seat.child is not None}
            found = wait([self._wake, *connections], timeout=TICK_SECONDS)
            if (passed := time.monotonic() - turn) > PAUSE_SECONDS:
                for seat in self._seats:
                    seat.excuse(passed)
            turn = time.monotonic()
            for ready in found:
                if ready is self._wake:
                    self._wake.recv_bytes()  # never waits: it is readable
                    self._poked = False
                else:
                    self._hear(connections[ready])  # type: ignore[index]

    def _hear(self, seat: Seat) -> None:
        assert seat.child is not None
        message = seat.child.receive()
        if message is None:
            self._bury(seat, seat.child.end(EXIT_PATIENCE_SECONDS))
            return
        seat.note(message)
        if message["event"] == BEAT:
            return
        event = {"worker": seat.index, **message}
        if message["event"] == "ready":
            seat.ready = self._proved = True
            seat.refused = False
            seat.growth.begin(seat.child.memory)
        elif message["event"] == "refused" and hopeless(self._seats, seat, message, proved=self._proved):
            self._refusal = str(message["message"])
        elif message.get("code") == WEIGHTS_CHANGED:
            self._faults.note(seat)
        elif message["event"] == "done":
            if (given := seat.finish(message["shard"])) is None:
                return
            if self._deadline is not None:
                self._deadline.learn(given.tokens, message["seconds"])
            given.future.set_result(event)
        elif message["event"] == "failed" and (given := seat.held.pop(message["shard"], None)) is not None:
            given.future.set_exception(ShardFailed(str(message["message"])))
        self._on_event(event)

    def _watch(self) -> None:
        now = time.monotonic()
        for seat in self._seats:
            if seat.child is None:
                if now >= seat.restart_at and not seat.gone and self.open and self._ours:
                    self._spawn(seat)
            elif (why := seat.overdue(now, self._stall)) is not None:
                seat.child.end()
                self._bury(seat, why)
            elif seat.leaving and not seat.held:
                self._renew(seat)
        if not self._refusal and all(seat.gone for seat in self._seats):
            self._refusal = "every worker died repeatedly; the last words are in the run's folder workers/"
        if self._refusal:
            self._waiting.fail(NoWorkers(self._refusal))

    def _dispatch(self) -> None:
        if self._draining:
            self._waiting.fail(Interrupted("the run was stopped"))
            return
        while self._ours and (roomy := [seat for seat in self._seats if self._has_room(seat)]):
            seat = min(roomy, key=lambda seat: len(seat.held))
            room = math.inf if self._deadline is None else self._deadline.room
            given = self._waiting.take(room, alone=not seat.held)
            if given is None:
                return
            seat.give(given)

    def _keep_turn(self) -> None:
        """Leave the devices to a run that goes first, once no shard is in flight, and come back when it has left."""
        self._ours = self._turn is None or self._turn.ours()
        if self._turn is not None and not self._ours and not any(seat.held for seat in self._seats):
            gone = [seat.index for seat in self._seats if seat.child is not None]
            vacate(self._seats)
            for index in gone:
                self._on_event({"worker": index, "event": "left"})
            self._turn.leave()

    def _keep_time(self) -> None:
        """End the work once the time is over, or when no worker has any and none that waits can be finished."""
        if self._deadline is None or self._draining:
            return
        held = sum(len(seat.held) for seat in self._seats)
        idle = not held and self._waiting.holds_only_above(self._deadline.room)
        if idle or self._deadline.passed:
            self.late = self._draining = self._closed = True
            self._on_event({"event": "deadline", "given_up": held, "waiting": len(self._waiting)})

    def _has_room(self, seat: Seat) -> bool:
        """Whether a worker may take one more shard. One that is ready before the others leaves them their share."""
        if not seat.ready or seat.leaving or seat.alone:
            return False
        if len(seat.held) < self._depth:
            return True
        left = len(self._waiting) + sum(len(seat.held) for seat in self._seats)
        return seat.tokens < self._tokens and len(seat.held) * len(self._seats) < left

    def _spawn(self, seat: Seat) -> None:
        try:
            child = self._start(seat.index)
        except OSError as error:
            seat.lose()
            self._tell_death(seat, [], f"it could not be started: {error}", None)
            return
        seat.take(child)
        self._on_event({"worker": seat.index, "event": "started", "pid": child.pid})

    def _renew(self, seat: Seat) -> None:
        """Replace a worker that holds nothing and whose memory grows without end."""
        assert seat.child is not None
        warning = seat.outgrown
        seat.child.end()
        seat.empty()
        self._on_event({"worker": seat.index, "event": "replaced"})
        self._on_event(warning)

    def _bury(self, seat: Seat, how: str) -> None:
        assert seat.child is not None
        words = seat.child.last_words()
        message = f"worker {seat.index} ended: {how}" + (f" ({words})" if words else "")
        process, lost = seat.child.pid, seat.lose()
        try:
            self._tell_death(seat, [shard for shard, _ in lost], how, process)
        finally:  # whoever waits for them tries again once the death is told, and waits for nobody who failed at it
            for _, given in lost:
                given.future.set_exception(WorkerDied(message))

    def _tell_death(self, seat: Seat, shards: list[str], how: str, process: int | None) -> None:
        self._on_event({"worker": seat.index, "event": "died", "how": how, "shards": shards, "pid": process})
        left = sum(not seat.gone for seat in self._seats)
        if seat.gone and left:
            self._on_event(seat.given_up(how, f"{left} of {len(self._seats)} workers"))

    def _ending(self) -> RunError:
        return OutOfTime("the deadline came first") if self.late else Interrupted("the run was stopped")
