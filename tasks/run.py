"""A run that this process drives: the run folder and the output locked, its workers alive, its events told.

Opening a run is what the command line does before Prefect is imported, so that a second driver is refused at once, the
workers load the model while Prefect starts, and have their first shards by then. A deployed flow opens the run itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from data.attempts import attempts, read_attempts
from data.errors import InputError, RunError
from data.ledger import Ledger
from data.manifest import Manifest
from data.run_folder import RunFolder
from data.shards import Shard
from data.suspect import alone
from data.window import Window
from tasks.canary import rounds_alike
from tasks.canary_records import remember
from tasks.cross_check import CrossCheck, open_checks
from tasks.data_warnings import data_warnings
from tasks.deadline import Deadline
from tasks.devices import alike, worker_devices
from tasks.display import Display
from tasks.events import EventLog
from tasks.fresh_start import remember_fresh_start
from tasks.hits import Hits, count_hits
from tasks.job import Job, cached_answers
from tasks.open_files import raise_open_files
from tasks.placement import device_names
from tasks.places import locked_places
from tasks.planner import Planner, plan_options
from tasks.pool import WorkerPool
from tasks.progress import Progress
from tasks.rehearsal import Rehearsal
from tasks.seat import Event
from tasks.summary import RunReport
from tasks.turns import Turn, turn_of
from tasks.workers import start_pool

WORKER_TARGET = "tasks.worker:main"
DRAIN_SECONDS = 10.0


@dataclass
class OpenRun:
    """What the tasks of a run share in the driver's process."""

    job: Job
    folder: RunFolder
    ledger: Ledger
    events: EventLog
    progress: Progress
    workers: WorkerPool | None
    """None if there is nothing to compute."""
    finished: Manifest | None
    """The complete result of this very run, if it was published before; verified."""
    started: float
    planner: Planner = field(init=False)
    deadline: Deadline | None = field(init=False)
    checks: CrossCheck | None = None
    """Who has rows repeated by another worker; None until there are workers."""
    report: RunReport | None = None
    """Of the result, once that is published."""
    failure: RunError | None = None
    """What ended the run, where something other than the user did; the rest is not computed then."""
    _handed: dict[str, Future[Event]] = field(init=False, default_factory=dict)
    """By shard: answers to come that no task waits for yet."""

    def __post_init__(self) -> None:
        options = replace(plan_options(self.job.settings), answers=cached_answers(self.job, self.folder))
        self.deadline = Deadline(self.job.deadline) if self.job.deadline is not None else None
        self.planner = Planner(
            self.job,
            self.folder,
            self.ledger,
            self.events,
            options,
            begin=lambda: self.pool.begin(),
            hand_out=self.hand_out,
            deadline=self.deadline,
        )

    @property
    def pool(self) -> WorkerPool:
        """The workers, which a run that has something to compute has."""
        assert self.workers is not None
        return self.workers

    @property
    def workers_begun(self) -> int:
        """How many workers had something to do; 0 where nothing was left to compute."""
        return self.job.placement.workers if self.workers is not None and self.workers.begun else 0

    @property
    def windows(self) -> list[Window]:
        """The windows planned so far."""
        return self.planner.windows

    @property
    def late(self) -> bool:
        """Whether the deadline has ended the work."""
        return self.planner.late or (self.workers is not None and self.workers.late)

    @property
    def complete(self) -> bool:
        """Whether all windows are planned and every shard is committed."""
        planned = bool(self.windows) and self.windows[-1].last
        return planned and all(not self.ledger.missing(window.shards) for window in self.windows)

    @property
    def partial(self) -> bool:
        """Whether the deadline has left something undone, so that a partial result is to be published."""
        return self.late and not self.complete

    @property
    def answered_rows(self) -> int:
        """Rows with an outcome, those not counted that are folded onto a sequence of an earlier window."""
        commits = self.ledger.commits()
        answered = sum(shard.rows for window in self.windows for shard in window.shards if shard.id in commits)
        return answered + sum(sum(window.errors.values()) for window in self.windows)

    @property
    def resumed_rows(self) -> int:
        """Rows of these windows that were answered before."""
        return self.planner.resumed_rows

    @property
    def hits(self) -> Hits:
        """What of the windows planned so far need not be computed."""
        return count_hits(self.windows, self.ledger.commits())

    def hand_out(self, shards: Sequence[Shard]) -> None:
        """Give the shards that are not committed to the workers, in this order; `answers` tells what comes of it."""
        for shard in self.ledger.missing(shards):
            self._handed[shard.id] = self._submit(shard)

    def hand_out_again(self, shard: Shard) -> Future[Event] | None:
        """The same before all others: its window would else end behind a later one. None if it is committed by now."""
        return None if self.ledger.committed(shard.id) else self._submit(shard, first=True)

    def answers(self, shards: Sequence[Shard]) -> dict[str, Future[Event]]:
        """By shard the answers to come, of those that are not committed.

        Shards are handed out when they are planned, and anew if this is asked for again.
        """
        futures: dict[str, Future[Event]] = {}
        for shard in reversed(shards):
            future = self._handed.pop(shard.id, None) or self.hand_out_again(shard)
            if future is not None:
                futures[shard.id] = future
        return futures

    def _submit(self, shard: Shard, *, first: bool = False) -> Future[Event]:
        started = attempts(self.folder, shard.id)
        suspected = bool(started) and alone(read_attempts(self.folder, shard.id))
        return self.pool.submit(shard.to_json(), first=first, alone=suspected)

    def stop(self, patience: float) -> None:
        """End the workers, after up to `patience` seconds for what they hold. Ends the wait of every lot."""
        if self.workers is not None:
            self.workers.close(patience)

    def fail(self, error: RunError) -> None:
        """Give out no more work: the run cannot end well. The first error is the one that is told."""
        self.failure = self.failure or error
        if self.workers is not None:
            self.workers.drain()


# The command line opens the run before it starts Prefect; the flow then takes it from here.
OPENED: ContextVar[OpenRun | None] = ContextVar("opened", default=None)


@contextmanager
def opened(job: Job) -> Iterator[OpenRun]:
    """Lock the run and its output, start the workers, and end them however the block ends.

    Raises:
        InputError, Held: of `locked_places`.
        Held: the devices are another run's, and `schedule.overlap` is to refuse.
        InputError: too few files may be open.
    """
    started = time.monotonic()
    raise_open_files()
    progress = Progress()
    with data_warnings(progress.tell), locked_places(job) as (folder, finished), ExitStack() as stack:
        if job.options.fresh and job.options.flow_run is not None:
            remember_fresh_start(folder, job.options.flow_run)
        events = EventLog(folder.events, progress.tell)
        stack.callback(events.close)
        run = OpenRun(job, folder, Ledger(folder), events, progress, None, finished, started)
        if finished is None:
            turn = stack.enter_context(turn_of(folder.id, job.settings, device_names(job.placement), events.tell))
            stack.enter_context(Display(progress))
            stack.enter_context(_at_work(run, turn))
        yield run


@contextmanager
def _at_work(run: OpenRun, turn: Turn) -> Iterator[None]:
    """Start the workers at their turn; end them however the block ends, with a delay after an interrupt."""
    open_checks(run.folder)
    run.events.tell(_run_started(run.job, run.folder))
    rehearsal = Rehearsal(run.deadline, run.folder, run.job) if run.deadline is not None else None
    if rehearsal is not None:
        run.progress.listen(rehearsal.tell)
    for warning in run.job.warnings:
        run.events.tell({"event": "warning", "message": warning})
    run.workers = start_pool(WORKER_TARGET, run.job, run.folder, run.events, run.deadline, turn)
    placed = run.job.placement
    strict = rounds_alike(run.job.settings, placed.device, alike=alike(placed))
    run.checks = CrossCheck(
        run.folder, run.workers, strict=strict, devices=worker_devices(placed), tell=run.events.tell, fail=run.fail
    )
    run.progress.listen(run.checks.listen)
    ended = {"event": "finished", "state": "interrupted"}
    try:
        with interruptible(run):
            yield
        ended["state"] = "partial" if run.partial else "completed"
        remember(run.folder)
    except KeyboardInterrupt as stop:
        ended |= {"message": str(stop) or "by SIGINT"}
        raise
    except Exception as error:
        ended |= {"state": "failed" if run.report is None else run.report.state, "message": str(error)}
        raise
    finally:
        run.stop(0.0)
        run.checks.close()
        if rehearsal is not None:
            rehearsal.end()
        run.events.tell(ended)


@contextmanager
def interruptible(run: OpenRun) -> Iterator[None]:
    """End the workers when the block is left by an exception, and so the wait of every task for them.

    An interrupt (Ctrl-C, SIGTERM, a cancellation by Prefect) is no Exception: what is nearly done then is committed.
    """
    state = "interrupted"
    try:
        yield
        state = "completed"
    except (RunError, InputError, OSError):
        state = "failed"
        raise
    finally:
        if state != "completed":
            run.stop(DRAIN_SECONDS if state == "interrupted" else 0.0)


@contextmanager
def taken_or_opened(job: Job | None) -> Iterator[OpenRun]:
    """The run that the command line has opened, or the one of `job`, opened here."""
    run = OPENED.get()
    if run is not None:
        with interruptible(run):
            yield run
        return
    assert job is not None
    with opened(job) as run:
        yield run


def _run_started(job: Job, folder: RunFolder) -> dict[str, Any]:
    return {
        "event": "run_started",
        "run": folder.id,
        "folder": str(folder.path),
        "workers": job.placement.workers,
        "device": job.placement.device,
        "command": job.command,
        **({"deadline": job.deadline.isoformat()} if job.deadline is not None else {}),
    }
