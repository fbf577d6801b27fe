"""`overnight infer` and its dry run, `overnight plan`."""

from __future__ import annotations

import shlex
import shutil
import sys
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows.exits import exit_status
from flows.interrupts import interrupt_behind
from flows.options import Config, Fresh, Input, Limit, Model, Output, Retry, RunDir, Sets, given_settings
from flows.session import load_flow, start_server

if TYPE_CHECKING:
    from tasks.job import Job
    from tasks.run import OpenRun
    from tasks.summary import RunReport


def infer(
    input_path: Input = None,
    output_path: Output = None,
    model: Model = None,
    limit: Limit = None,
    config: Config = None,
    sets: Sets = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    retry_errors: Retry = False,
) -> None:
    """Answer every row of a dataset and publish the result. Running it again resumes."""
    from data.exit_status import ExitStatus
    from tasks.job import RunOptions, prepare

    with exit_status():
        settings = given_settings(
            config, sets, input_path=input_path, output_path=output_path, model=model, limit=limit
        )
        options = RunOptions(run_dir, fresh, retry_errors)
        job = prepare(settings, options, datetime.now(), _resume_command())
        report = _answer(job, config)
    _print(report)
    ended = {"completed": ExitStatus.COMPLETE, "partial": ExitStatus.PARTIAL}
    raise typer.Exit(ended.get(report.state, ExitStatus.FAILED))


def plan(
    input_path: Input = None,
    output_path: Output = None,
    model: Model = None,
    limit: Limit = None,
    config: Config = None,
    sets: Sets = None,
    run_dir: RunDir = None,
    fresh: Fresh = False,
    retry_errors: Retry = False,
) -> None:
    """Check and plan a job without running it, and predict its tokens, memory, time and cost. infer uses the plan."""
    from rich.console import Console

    from tasks.job import RunOptions, prepare
    from tasks.places import locked_places
    from tasks.planner import begun
    from tasks.preflight import plan_report, refuse_over_budget, refuse_too_many_errors, scratch_folder
    from tasks.preflight_screen import print_plan

    with exit_status():
        settings = given_settings(
            config, sets, input_path=input_path, output_path=output_path, model=model, limit=limit
        )
        options = RunOptions(run_dir, fresh, retry_errors)
        job = prepare(settings, options, datetime.now(), _resume_command())
        if fresh:  # what infer would set aside is left alone here
            with scratch_folder(job) as folder:
                report, goes_on = plan_report(job, folder, published=False), False
        else:
            with locked_places(job, dry=True) as (folder, finished):
                report, goes_on = plan_report(job, folder, published=finished is not None), begun(folder)
        print_plan(report, Console())
        if not goes_on:
            refuse_over_budget(job, report.planned, report.forecaster)
            refuse_too_many_errors(report)


def _answer(job: Job, config: Path | None) -> RunReport:
    """Run the flow in this process, on the configured Prefect server or on one of the run's own."""
    from data.errors import InputError, RunError
    from tasks.outage import failed, published_without_prefect
    from tasks.outcome import failed_report, final_report, verified_report
    from tasks.run import OPENED, opened

    run: OpenRun | None = None
    report: RunReport
    ours: tuple[type[Exception], ...] = (RunError, InputError, OSError)
    failures = ours
    try:
        with ExitStack() as stack:
            run = stack.enter_context(opened(job))
            if run.finished is not None:
                report = verified_report(run)
            else:
                OPENED.set(run)
                server = start_server(stack, run.folder.path / "prefect")
                run.planner.plan_ahead()  # before Prefect is imported: no worker is to wait for that
                try:
                    flow = load_flow("infer", stack, server)
                except InputError:  # of Prefect's settings: exit status 2, though the workers were started meanwhile
                    run = None
                    raise
                from httpx import HTTPError
                from prefect.exceptions import PrefectException

                failures += (PrefectException, HTTPError)
                try:
                    report = flow(config=str(config or ""), run_dir=str(job.run_path))
                except (PrefectException, HTTPError) as error:
                    if (interrupt := interrupt_behind(error)) is not None:
                        raise interrupt from error
                    published = published_without_prefect(run, error)
                    if published is None:
                        raise
                    report = published
    except failures as error:
        if run is None:
            raise
        report = failed(run, error, ours=isinstance(error, ours))
    except KeyboardInterrupt:
        if run is not None:
            with suppress(OSError, RunError):  # of a folder that cannot be read: it was interrupted all the same
                _print(failed_report(run, "finished shards are kept", "interrupted"))
        raise
    assert run is not None
    return final_report(run, report)


def _print(report: RunReport) -> None:
    from tasks.live_display import Terminal
    from tasks.summary import print_summary

    with suppress(OSError):  # nobody can see it: that changes nothing in how the run ended
        print_summary(report, Terminal())


def _resume_command() -> str:
    program = "overnight" if shutil.which("overnight") else sys.argv[0]
    return shlex.join([program, "infer", *(word for word in sys.argv[2:] if word != "--fresh")])
