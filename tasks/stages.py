"""The Prefect tasks of the infer flow: plan the next window, run a lot, publish.

A lot is a few consecutive shards. The workers have those that are not committed since they were planned; its task waits
for all of them. When a worker dies, its shards are handed out again by their tasks at once; the task run of a lot fails
only with what cannot be retried. What a task passes on is names: windows and shards by index and id, results by path.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import replace
from itertools import pairwise
from typing import cast

from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed
from prefect.utilities.annotations import quote

from data.errors import RunError
from data.histogram import add
from data.publish import publish, published_base
from data.retry import plan_retry
from data.shards import Shard
from data.window import Window
from tasks.deadline import OutOfTime
from tasks.endings import Interrupted, ShardFailed, WorkerDied
from tasks.job import results_of
from tasks.lessons import learn
from tasks.outcome import manifest_fields, partial_message, published_report, warnings
from tasks.planner import Planner, plan_options
from tasks.run import OpenRun
from tasks.summary import RunReport

MAX_LOTS = 500
SETTLE_SECONDS = 10.0
WAIT_SECONDS = 5.0
PARTIAL = "Partial"
"""The name of Prefect's state Completed where the deadline has left something undone."""


@task(name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_next_window(planner: Planner) -> Window | None:
    """Plan one window of the input, unless that is done already. None if the deadline came first."""
    return planner.next()


@task(name="plan-retry", cache_policy=NO_CACHE, persist_result=False)
def plan_failed_again(run: OpenRun) -> Window | None:
    """Plan the sequences that ended in an error again, after the last window; None if there are none."""
    job = run.job
    base = published_base(run.folder, job.output)
    options = plan_options(job.settings)
    window = plan_retry(run.folder, job.dataset, job.prompter, job.run_id, options, run.windows, base)
    if window is not None:
        run.hand_out(window.shards)
    return window


@task(cache_policy=NO_CACHE, persist_result=False)
def run_lot(run: OpenRun, shards: Sequence[Shard]) -> State[None] | None:
    """Have the shards of a lot answered and committed, those that are not yet, as far as the deadline allows.

    A shard whose worker dies is handed out again at once, until it is answered or `data.suspect` gives it up.

    Raises:
        RunError: a shard cannot be computed or stored; what was finished is committed.
    """
    by_id = {shard.id: shard for shard in shards}
    futures = run.answers(shards)
    late, errors = False, list[BaseException]()
    while futures:
        wait(futures.values(), timeout=WAIT_SECONDS, return_when=FIRST_COMPLETED)  # the pool answers every future
        for identifier in [identifier for identifier, future in futures.items() if future.done()]:
            error = futures.pop(identifier).exception()
            again = run.hand_out_again(by_id[identifier]) if isinstance(error, WorkerDied) else None
            if again is not None:
                futures[identifier] = again
            elif isinstance(error, OutOfTime):
                late = True
            elif error is not None and not _stored(run, identifier, error):
                errors.append(error)
    if errors:
        error = next((error for error in errors if not isinstance(error, Interrupted)), errors[0])
        if isinstance(error, RunError) and not isinstance(error, Interrupted):
            run.fail(error)  # no other shard is computed for a run that cannot end well
        raise error
    return Completed(name=PARTIAL, message="the deadline came first") if late else None


def _stored(run: OpenRun, shard: str, error: BaseException) -> bool:
    """Whether a shard is committed all the same. One whose worker failed may have a name that was never synced."""
    return not isinstance(error, ShardFailed) and run.ledger.committed(shard)


def submit_lots(run: OpenRun, window: Window) -> list[PrefectFuture[State[None] | None]]:
    """Start the lots of a window, at most 500 over all windows, each a Prefect task run of its own."""
    cached = {commit.shard for commit in window.cached}
    shards = [s for s in window.shards if s.id not in cached or not run.ledger.committed(s.id)]
    count = max(1, min(len(shards), MAX_LOTS // _windows_expected(run, window)))
    bounds = [len(shards) * number // count for number in range(count + 1)]
    lots = [shards[start:stop] for start, stop in pairwise(bounds) if stop > start]
    return [
        run_lot.with_options(task_run_name=f"{window.name} lot {number}").submit(
            cast(OpenRun, quote(run)),
            lot,  # quoted, or Prefect would search all of it for futures
        )
        for number, lot in enumerate(lots)
    ]


def _windows_expected(run: OpenRun, window: Window) -> int:
    """How many windows the input will have, judged by the bytes that those so far took."""
    if window.last or not window.bytes_read:
        return max(1, window.index + 1)
    total = sum(file.size for file in run.job.dataset.files)
    return max(window.index + 2, -(-total * (window.index + 1) // window.bytes_read))


@task(name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_result(run: OpenRun) -> RunReport:
    """Assemble the result of every committed shard, rename it into place, and write its manifest.

    After the deadline the result is a partial one, unless everything was finished by then.

    Raises:
        RunError: the error budget is exceeded, a committed file is damaged, or nothing was answered before the
            deadline; nothing was published.
    """
    job = run.job
    if run.partial and not run.ledger.commits():
        # A partial result is replaced by the complete one alone: without answers it would only be in the way.
        raise RunError(
            "the deadline came before anything was answered, so there is no partial result; a deadline must leave time "
            "to load the model and to finish a shard"
        )
    if run.late:
        run.stop(0.0)  # a worker that still lived could commit a shard under the eyes of whoever reads the ledger
    else:
        _settle(run)
        run.pool.dismiss()
    run.events.tell({"event": "publishing", "partial": run.partial})
    schema = results_of(job.settings, job.checkpoint)
    fields = manifest_fields(run)
    manifest = publish(run.folder, run.windows, job.dataset, job.output, schema, fields, partial=run.partial)
    run.events.tell(
        {
            "event": "published",
            "path": job.output_path,
            "rows": manifest.rows,
            "ok": manifest.ok,
            "errors": sum(manifest.errors.values()),
        }
    )
    seconds = time.monotonic() - run.started
    learn(run)
    report = published_report(
        job,
        manifest,
        seconds=seconds,
        message=partial_message(run, manifest),
        resumed_rows=run.resumed_rows,
        hits=run.hits,
    )
    record = run.progress.record
    run.report = replace(
        report,
        workers=run.workers_begun,
        deaths=dict(record.deaths),
        finish_spread=record.finish_spread,
        prompt_lengths=add(window.lengths for window in run.windows),
        answer_lengths=record.lengths,
        warnings=warnings(run),
    )
    return run.report


def _settle(run: OpenRun) -> None:
    """Hear what comes of rows that are being repeated. RunError if that speaks against the result."""
    if run.checks is not None:
        run.checks.settle(SETTLE_SECONDS)
    if run.failure is not None:
        raise run.failure


def final_state(report: RunReport) -> RunReport | State[RunReport]:
    """What the flow returns, and so the state in which Prefect has its run end."""
    return Completed(name=PARTIAL, message=report.message, data=report) if report.state == "partial" else report
