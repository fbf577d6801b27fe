"""The command line. Heavy parts are imported where they are used, so that `overnight --help` answers at once.

Exit status: 0 the complete result exists and verifies; 1 failed or over the error budget; 2 a setting or input is wrong
and nothing was started; 3 a valid partial result; 4 another driver holds the run or the output; 130 interrupted.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from engine.bytecode import keep_bytecode
from engine.quiet_traceback import print_quietly
from flows.session import load_flow, start_server

if TYPE_CHECKING:
    from tasks.job import Job
    from tasks.run import OpenRun
    from tasks.settings import Settings
    from tasks.summary import RunReport

app = typer.Typer(
    name="overnight",
    help="Offline batch inference for large language models: a dataset in, every row answered.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEFAULT_CONFIG = Path("config.toml")
WORK_POOL = "overnight"
ROOT = Path(__file__).parent.parent

Input = Annotated[str | None, typer.Option("--input", help="Sets input.path.", metavar="PATH")]
Output = Annotated[str | None, typer.Option("--output", help="Sets output.path.", metavar="PATH")]
Model = Annotated[str | None, typer.Option("--model", help="Sets model.path.", metavar="MODEL")]
Limit = Annotated[int | None, typer.Option("--limit", help="Sets input.limit: the first rows alone.", metavar="N")]
Config = Annotated[Path | None, typer.Option("--config", help="Configuration file; ./config.toml if there is one.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any setting below.", metavar="SECTION.KEY=VALUE")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run's folder; beside the output if not set.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Set earlier work aside, and replace another result.")]
Retry = Annotated[bool, typer.Option("--retry-errors", help="Compute the rows that ended in an error again.")]


class SettingsHelp(typer.core.TyperCommand):
    """A command whose help ends with the reference of all settings."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """List every setting with its default and description."""
        from tasks.reference import help_lines

        with formatter.section("Settings (--set, OVERNIGHT_SECTION__KEY, or the configuration file)"):
            formatter.write_dl(list(help_lines()))


@app.command(cls=SettingsHelp)
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

    with _exit_status():
        settings = _settings(config, sets, input_path, output_path, model, limit)
        options = RunOptions(run_dir, fresh, retry_errors)
        job = prepare(settings, options, datetime.now(), _resume_command())
        report = _answer(job, config)
    _print(report)
    ended = {"completed": ExitStatus.COMPLETE, "partial": ExitStatus.PARTIAL}
    raise typer.Exit(ended.get(report.state, ExitStatus.FAILED))


@app.command(cls=SettingsHelp)
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
    from tasks.preflight import begun, plan_report, refuse_over_budget, scratch_folder
    from tasks.preflight_screen import print_plan

    with _exit_status():
        settings = _settings(config, sets, input_path, output_path, model, limit)
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


@app.command()
def status(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; the newest one below here if not given.")] = None,
) -> None:
    """Show how far a run is, from its folder alone."""
    from rich.console import Console

    from tasks.status import print_status, run_status

    with _exit_status():
        print_status(run_status(run), Console())


@app.command()
def audit(output: Annotated[str, typer.Argument(help="A published folder or file, or an s3:// URL.")]) -> None:
    """Verify a published result from its bytes. Exit status 0 if it is valid, 1 if not."""
    from data.audit import audit as verify
    from tasks.summary import print_audit

    with _exit_status():
        report = verify(output)
    print_audit(report)
    raise typer.Exit(0 if report.valid else 1)


@app.command()
def cache(
    config: Config = None,
    sets: Sets = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete every answer that is kept.")] = False,
) -> None:
    """Show which answers of earlier runs are kept, and where."""
    from rich.console import Console

    from data.answer_cache import AnswerCache
    from tasks.cache import cache_folder
    from tasks.cache_screen import print_cache

    with _exit_status():
        settings = _settings(config, sets, None, None, None, None).cache
        kept = AnswerCache(cache_folder(settings).absolute(), settings.max_bytes)
        kept.check()
        if clear:
            typer.echo(f"Deleted {kept.clear():,} answers", err=True)
        print_cache(kept, Console())


@app.command()
def doctor(config: Config = None, sets: Sets = None, model: Model = None) -> None:
    """Check versions, devices, memory, disk and the model, and answer ten rows."""
    from rich.console import Console

    from tasks.doctor import checks, print_checks
    from tasks.dry_run import dry_run

    with _exit_status():
        settings = _settings(config, sets, None, None, model, None)
        healthy = print_checks(checks(settings, lambda: dry_run(settings)), Console())
    raise typer.Exit(0 if healthy else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure the engine on fixed workloads, or with --choose which precision suits a job; both have a --help."""
    if "--choose" in context.args:
        from flows.choose_command import choose

        return choose([word for word in context.args if word != "--choose"])
    from engine.bench_settings import parse

    settings = parse(context.args, "overnight bench")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _exit_status(), ExitStack() as stack:
        server = start_server(stack, Path(stack.enter_context(TemporaryDirectory(prefix="overnight-bench-"))))
        flow = load_flow("bench", stack, server)
        from httpx import HTTPError
        from prefect.exceptions import PrefectException

        from engine.bench_process import BenchFailed

        try:
            flow(settings)
        except ValueError as error:
            _fail(str(error), 2)
        except (BenchFailed, PrefectException, HTTPError) as error:
            _fail(str(error), 1)


@app.command()
def deploy() -> None:
    """Create the work pool of prefect.yaml if it is not there, and register the deployments."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    create = [*prefect, "work-pool", "create", "--type", "process", WORK_POOL]
    # Prefect bounds its requests; a user who waits at the terminal bounds the rest.
    made = subprocess.run(create, capture_output=True, text=True, check=False)
    if made.returncode and "already exists" not in made.stdout + made.stderr:
        _fail(f"the work pool {WORK_POOL} cannot be created: {(made.stdout + made.stderr).strip()}", 1)
    raise typer.Exit(subprocess.run([*prefect, "deploy", "--all"], cwd=ROOT, check=False).returncode)


def main() -> None:
    """The `overnight` program.

    It ends once all is done that is registered for its end, without taking apart what it imported: after a run Python
    would spend a third of a second on that.
    """
    code = 1  # an exception that nobody foresaw, whose traceback Python prints first

    @atexit.register  # before any other, so that it is called last
    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):  # a reader that went away
                stream.flush()
        os._exit(code)

    sys.excepthook = print_quietly
    keep_bytecode()
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        raise


def _answer(job: Job, config: Path | None) -> RunReport:
    """Run the flow in this process, on the configured Prefect server or on one of the run's own."""
    from data.errors import InputError, RunError
    from tasks.outage import report_of
    from tasks.outcome import failed_report, verified_report
    from tasks.run import OPENED, opened

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run: OpenRun | None = None
    ours: tuple[type[Exception], ...] = (RunError, InputError, OSError)
    failures = ours
    try:
        with ExitStack() as stack:
            run = stack.enter_context(opened(job))
            if run.finished is not None:
                return verified_report(run)
            OPENED.set(run)
            server = start_server(stack, run.folder.path / "prefect")
            run.planner.plan_ahead()  # before Prefect is imported: no worker is to wait for that
            flow = load_flow("infer", stack, server)
            from httpx import HTTPError
            from prefect.exceptions import PrefectException

            failures += (PrefectException, HTTPError)
            report: RunReport = flow(config=str(config or ""), run_dir=str(job.run_path))
            return report
    except failures as error:
        if run is None:
            raise
        return report_of(run, error, ours=isinstance(error, ours))
    except KeyboardInterrupt:
        if run is not None:
            _print(failed_report(run, "finished shards are kept", "interrupted"))
        raise


@contextmanager
def _exit_status() -> Iterator[None]:
    """Turn the errors a user can meet into one line and the exit status of their kind."""
    from data.errors import Held, InputError, RunError
    from data.exit_status import ExitStatus

    try:
        yield
    except (InputError, RunError, Held) as error:
        _fail(str(error), error.status)
    except OSError as error:
        _fail(str(error), ExitStatus.FAILED)
    except KeyboardInterrupt:
        _fail("interrupted", ExitStatus.INTERRUPTED)


def _fail(message: str, status: int) -> NoReturn:
    from data.errors import one_line

    typer.echo(f"overnight: {one_line(message)}", err=True)
    raise typer.Exit(status)


def _print(report: RunReport) -> None:
    from rich.console import Console

    from tasks.summary import print_summary

    print_summary(report, Console())


def _settings(
    config: Path | None,
    sets: list[str] | None,
    input_path: str | None,
    output_path: str | None,
    model: str | None,
    limit: int | None,
) -> Settings:
    from tasks.configuration import load_settings

    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    if config is not None:
        typer.echo(f"Settings from {config}", err=True)
    options: dict[str, dict[str, Any]] = {
        "input": {"path": input_path, "limit": limit},
        "output": {"path": output_path},
        "model": {"path": model},
    }
    given = {section: {k: v for k, v in values.items() if v is not None} for section, values in options.items()}
    return load_settings(config, {section: values for section, values in given.items() if values}, sets or ())


def _resume_command() -> str:
    program = "overnight" if shutil.which("overnight") else sys.argv[0]
    return shlex.join([program, "infer", *(word for word in sys.argv[2:] if word != "--fresh")])


import flows.evaluate_command  # noqa: E402 - it adds its command to those above
import flows.promote_command  # noqa: E402 - so does this
import flows.quantize_command  # noqa: E402, F401 - and this
