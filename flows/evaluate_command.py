"""`overnight evaluate`: the evaluate flow in this process, with its figures on the screen."""

from __future__ import annotations

import shlex
import signal
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import Config, Input, Limit, Model, Output, Sets, SettingsHelp, _exit_status, _settings, app
from flows.session import load_flow, start_server

if TYPE_CHECKING:
    from tasks.evaluation import Evaluation
    from tasks.evaluation_job import EvaluationJob

Reference = Annotated[str | None, typer.Option("--reference", help="Sets evaluate.reference.", metavar="MODEL")]


@app.command(cls=SettingsHelp)
def evaluate(
    input_path: Input = None,
    output_path: Output = None,
    model: Model = None,
    reference: Reference = None,
    limit: Limit = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Measure a model on rows of a job, alone or against a reference, with a report. Running it again resumes."""
    from rich.console import Console

    from tasks.evaluation_job import prepare_evaluation
    from tasks.evaluation_screen import print_evaluation

    with _exit_status():
        named = [f"evaluate.reference={reference}"] if reference is not None else []
        settings = _settings(config, [*(sets or ()), *named], input_path, output_path, model, limit)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        job = prepare_evaluation(settings, datetime.now(), shlex.join(["overnight", *sys.argv[1:]]))
        print_evaluation(_evaluate(job), Console())


def _evaluate(job: EvaluationJob) -> Evaluation:
    """Run the flow on the configured Prefect server or on one of its own."""
    from data.errors import RunError
    from tasks.evaluation_job import CHECKED

    CHECKED.set(job)
    with ExitStack() as stack:
        server = start_server(stack, Path(stack.enter_context(TemporaryDirectory(prefix="overnight-evaluate-"))))
        flow = load_flow("evaluate", stack, server)
        from httpx import HTTPError
        from prefect.exceptions import PrefectException

        try:
            evaluation: Evaluation = flow(config="")
        except (PrefectException, HTTPError) as error:
            raise RunError(f"Prefect failed: {error}") from error
        return evaluation
