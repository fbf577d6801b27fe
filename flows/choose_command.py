"""`overnight bench --choose`: the choose flow in this process, with its figures on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from flows.exits import exit_status
from flows.options import Config, Input, Model, Sets, SettingsHelp, given_settings
from flows.session import run_flow

Int4 = Annotated[
    str | None, typer.Option("--int4", help="A checkpoint with int4 weights; one is made if not given.", metavar="PATH")
]
Rows = Annotated[int, typer.Option("--rows", help="Rows of the input to measure on, drawn at random.", min=1)]
Repeats = Annotated[int, typer.Option("--repeats", help="Runs of each precision that count.", min=1)]
Output = Annotated[Path, typer.Option("--output", help="The JSON file for the figures.", metavar="FILE")]

_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def choose(arguments: Sequence[str]) -> None:
    """Run the command with the arguments beside --choose; ends the program."""
    typer.main.get_command(_app)(args=list(arguments), prog_name="overnight bench --choose")  # see flows.cli.main


@_app.command(cls=SettingsHelp)
def _choose(
    config: Config = None,
    sets: Sets = None,
    input_path: Input = None,
    model: Model = None,
    int4: Int4 = None,
    rows: Rows = 1000,
    repeats: Repeats = 3,
    output: Output = Path("choice.json"),
) -> None:
    """Measure in which precision a job is best run: without quantization, in FP8 or in int4."""
    from rich.console import Console

    from tasks.choice_job import CHECKED, ChoiceOptions, prepared_choice
    from tasks.choice_screen import print_choice

    with exit_status(), ExitStack() as stack:
        settings = given_settings(config, sets, input_path=input_path, model=model)
        options = ChoiceOptions(output, int4, rows, repeats)
        CHECKED.set(stack.enter_context(prepared_choice(settings, options, datetime.now())))
        print_choice(run_flow("choose", ""), output.absolute(), Console())
