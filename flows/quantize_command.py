"""`overnight quantize`: the quantize flow in this process, with its report on the screen."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.exits import exit_status
from flows.options import Config, Fresh, Input, Model, Sets, given_settings
from flows.session import run_flow

if TYPE_CHECKING:
    from tasks.quantization_job import QuantizationJob

Output = Annotated[str | None, typer.Option("--output", help="Sets quantize.output.", metavar="FOLDER")]


def quantize(
    model: Model = None,
    input_path: Input = None,
    output: Output = None,
    config: Config = None,
    sets: Sets = None,
    fresh: Fresh = False,
) -> None:
    """Make a smaller checkpoint of a model, and refuse it if it answers worse. Running it again resumes."""
    from tasks.quantization_job import prepare

    with exit_status():
        named = [f"quantize.output={output}"] if output is not None else []
        settings = given_settings(config, [*(sets or ()), *named], input_path=input_path, model=model)
        _quantize(prepare(settings, fresh=fresh, started=datetime.now()), config)


def _quantize(job: QuantizationJob, config: Path | None) -> None:
    """Run the flow, and print what it came to, also of a checkpoint that is refused."""
    from rich.console import Console

    from tasks.quantization import OPENED, opened
    from tasks.quantization_screen import print_quantization

    with opened(job) as work:
        if not work.finished:
            OPENED.set(work)
            try:
                run_flow("quantize", str(config or ""), advice="finished layers are kept")
            finally:
                if work.report is not None:
                    print_quantization(work.report, Console())
        elif work.report is not None:
            print_quantization(work.report, Console(), before=True)
