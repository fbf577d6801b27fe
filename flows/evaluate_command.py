"""`overnight evaluate`: the evaluate flow in this process, with its figures on the screen."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from typing import Annotated

import typer

from flows.exits import exit_status
from flows.options import Config, Input, Limit, Model, Output, Sets, given_settings
from flows.session import run_flow

Reference = Annotated[str | None, typer.Option("--reference", help="Sets evaluate.reference.", metavar="MODEL")]


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

    from tasks.evaluation_job import CHECKED, prepare_evaluation
    from tasks.evaluation_screen import print_evaluation

    with exit_status():
        named = [f"evaluate.reference={reference}"] if reference is not None else []
        settings = given_settings(
            config, [*(sets or ()), *named], input_path=input_path, output_path=output_path, model=model, limit=limit
        )
        job = prepare_evaluation(settings, datetime.now(), shlex.join(["overnight", *sys.argv[1:]]))
        CHECKED.set(job)
        print_evaluation(run_flow("evaluate", ""), Console())
