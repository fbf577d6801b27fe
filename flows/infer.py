"""The main flow: plan the dataset window by window, run its lots on the workers, publish, report.

The flow only wires; what each step does is in tasks. The next window is planned while the lots of the last one run, and
at most two windows are in flight, which bounds what lies on disk.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from prefect import State, flow
from prefect.futures import PrefectFuture, wait
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.artifacts import show_progress, show_report, start_progress
from tasks.configuration import load_settings
from tasks.job import Job, RunOptions, prepare
from tasks.outcome import final_report, verified_report
from tasks.run import OPENED, OpenRun, taken_or_opened
from tasks.settings import Settings, set_explicitly
from tasks.stages import final_state, plan_failed_again, plan_next_window, publish_result, submit_lots
from tasks.summary import RunReport

LOTS_AT_ONCE = 64
PROGRESS_SECONDS = 5.0
WATCH_SECONDS = 1.0  # under a deadline


@flow(
    name="infer",
    task_runner=ThreadPoolTaskRunner(max_workers=LOTS_AT_ONCE),  # type: ignore[arg-type] # invariant in its futures
    persist_result=False,
)
def infer(
    config: str = "config.toml",
    settings: Settings = Settings(),  # noqa: B008 - frozen, and Prefect makes the form from it
    run_dir: str | None = None,
    fresh: bool = False,
    retry_errors: bool = False,
) -> RunReport | State[RunReport]:
    """Answer every row of a dataset and publish the result; at the deadline, what there is of it.

    Args:
        config: path of the configuration file; empty for none.
        settings: settings that go before those of the file; what is left out is taken from there.
        run_dir: the run's folder; beside the output unless set.
        fresh: set an earlier ledger of this run aside and compute everything again; a retry goes on from there.
        retry_errors: compute the rows that ended in an error again.
    """
    options = RunOptions(_path(run_dir), fresh, retry_errors, flow_run.id)
    job = None if OPENED.get() else _prepare(config, settings, options)
    with taken_or_opened(job) as run:
        if run.finished is None:
            answer_rows(run)
            report = publish_result(run)
        else:
            report = verified_report(run)
    report = final_report(run, report)
    show_report(report)
    return final_state(report)


def answer_rows(run: OpenRun) -> None:
    """Plan and run every window; each lot is a task run of its own."""
    bar = start_progress(run.folder.id)
    planner = run.planner
    in_flight: list[list[PrefectFuture[State[None] | None]]] = []
    while not planner.ended:
        window = plan_next_window(planner)
        if window is not None:
            in_flight.append(submit_lots(run, window))
        if len(in_flight) > 1:
            _finish(in_flight.pop(0), run, bar)
    for lots in in_flight:
        _finish(lots, run, bar)
    if run.job.options.retry_errors and not run.late and (again := plan_failed_again(run)) is not None:
        _finish(submit_lots(run, again), run, bar)


def _finish(lots: list[PrefectFuture[State[None] | None]], run: OpenRun, bar: UUID | None) -> None:
    """Wait until every lot has ended, then raise what the first failed one raised.

    After the deadline what becomes of the lots is no longer of interest: publishing cannot wait for Prefect.
    """
    while not run.late and wait(lots, timeout=PROGRESS_SECONDS if run.deadline is None else WATCH_SECONDS).not_done:
        show_progress(bar, run.progress)
    show_progress(bar, run.progress)
    if run.failure is not None:  # the cause, rather than what became of the lots after it
        raise run.failure
    if run.late:
        return
    for lot in lots:
        lot.result()


def _prepare(config: str, settings: Settings, options: RunOptions) -> Job:
    loaded = load_settings(Path(config) if config else None, set_explicitly(settings))
    command = f"prefect flow-run retry {flow_run.id}"
    return prepare(loaded, options, flow_run.scheduled_start_time.astimezone(), command)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
