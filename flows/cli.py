"""The command line. Heavy parts are imported where they are used, so that `overnight --help` answers at once.

Exit status: 0 the complete result exists and verifies; 1 failed or over the error budget; 2 a setting or input is wrong
and nothing was started; 3 a valid partial result; 4 another driver holds the run or the output; 130 interrupted.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from engine.bytecode import keep_bytecode
from engine.quiet_traceback import print_quietly, print_threads_quietly
from flows.evaluate_command import evaluate
from flows.exits import exit_status, fail
from flows.infer_command import infer, plan
from flows.interrupts import interrupted, take_signals
from flows.options import Config, Model, Sets, SettingsHelp, given_settings
from flows.promote_command import promote
from flows.quantize_command import quantize
from flows.session import run_flow

app = typer.Typer(
    name="overnight",
    help="Offline batch inference for large language models: a dataset in, every row answered.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WORK_POOL = "overnight"
ROOT = Path(__file__).parent.parent

app.command(cls=SettingsHelp)(infer)
app.command(cls=SettingsHelp)(plan)
app.command(cls=SettingsHelp)(evaluate)
app.command(cls=SettingsHelp)(quantize)


@app.command()
def status(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; the newest one below here if not given.")] = None,
) -> None:
    """Show how far a run is, from its folder alone."""
    from rich.console import Console

    from tasks.status import print_status, run_status

    with exit_status():
        print_status(run_status(run), Console())


@app.command()
def audit(output: Annotated[str, typer.Argument(help="A published folder or file, or an s3:// URL.")]) -> None:
    """Verify a published result from its bytes. Exit status 0 if it is valid, 1 if not."""
    from data.audit import audit as verify
    from tasks.summary import print_audit

    with exit_status():
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

    with exit_status():
        settings = given_settings(config, sets).cache
        kept = AnswerCache(cache_folder(settings).absolute(), settings.max_bytes)
        kept.check()
        if clear:
            typer.echo(f"Deleted {kept.clear():,} answers", err=True)
        print_cache(kept, Console())


app.command()(promote)


@app.command()
def doctor(config: Config = None, sets: Sets = None, model: Model = None) -> None:
    """Check versions, devices, memory, disk and the model, and answer ten rows."""
    from rich.console import Console

    from tasks.doctor import checks, print_checks
    from tasks.dry_run import dry_run

    with exit_status():
        settings = given_settings(config, sets, model=model)
        healthy = print_checks(checks(settings, lambda: dry_run(settings)), Console())
    raise typer.Exit(0 if healthy else 1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure the engine on fixed workloads, or with --choose which precision suits a job."""
    if "--choose" in context.args:
        from flows.choose_command import choose

        return choose([word for word in context.args if word != "--choose"])
    from engine.bench_settings import parse

    settings = parse(
        context.args, "overnight bench", "overnight bench --choose --help: which precision suits the rows of a job"
    )
    with exit_status():
        from engine.bench_process import BenchFailed

        try:
            run_flow("bench", settings)
        except ValueError as error:
            fail(str(error), 2)
        except BenchFailed as error:
            fail(str(error), 1)


@app.command()
def deploy() -> None:
    """Create the work pool of prefect.yaml if it is not there, and register the deployments."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    create = [*prefect, "work-pool", "create", "--type", "process", WORK_POOL]
    # Prefect bounds its requests; a user who waits at the terminal bounds the rest.
    made = subprocess.run(create, capture_output=True, text=True, check=False)
    if made.returncode and "already exists" not in made.stdout + made.stderr:
        fail(f"the work pool {WORK_POOL} cannot be created: {(made.stdout + made.stderr).strip()}", 1)
    raise typer.Exit(subprocess.run([*prefect, "deploy", "--all"], cwd=ROOT, check=False).returncode)


def main() -> None:
    """The `overnight` program.

    It ends once all is done that is registered for its end, without taking apart what it imported: after a run Python
    would spend a third of a second on that.
    """
    code = 1  # an exception that nobody foresaw, whose traceback Python prints first

    @atexit.register  # before any other, so that it is called last
    def leave() -> None:
        for stream in _streams():
            with suppress(OSError):  # a reader that went away, a terminal that was closed
                stream.flush()
        os._exit(code)

    for stream in _streams():
        stream.reconfigure(errors="replace")  # what a terminal cannot show decides nothing
    sys.excepthook = print_quietly
    print_threads_quietly()
    keep_bytecode()
    take_signals()
    try:
        typer.main.get_command(app)()  # an app that is called sets an excepthook of its own
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        if code == 1 and interrupted():  # before a command could tell, or inside a library that made an error of it
            code = 130
        raise


def _streams() -> Iterator[TextIOWrapper]:
    """What the program was given to write to: nothing where it was started with them closed."""
    return (stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper))
