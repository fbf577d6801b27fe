"""`overnight quantize`: the quantize flow in this process, with its report on the screen."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import Config, Fresh, Input, Model, Sets, SettingsHelp, _exit_status, _settings, app
from flows.session import load_flow, start_server

if TYPE_CHECKING:
    from tasks.quantization_job import QuantizationJob

Output = Annotated[str | None, typer.Option("--output", help="Sets quantize.output.", metavar="FOLDER")]


@app.command(cls=SettingsHelp)
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

    with _exit_status():
        named = [f"quantize.output={output}"] if output is not None else []
        settings = _settings(config, [*(sets or ()), *named], input_path, None, model, None)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _quantize(prepare(settings, fresh=fresh, started=datetime.now()), config)


def _quantize(job: QuantizationJob, config: Path | None) -> None:
    """Run the flow, and print what it came to, also of a checkpoint that is refused."""
    from rich.console import Console

    from data.errors import RunError
    from tasks.quantization import OPENED, opened
    from tasks.quantization_screen import print_quantization

    with ExitStack() as stack:
        work = stack.enter_context(opened(job))
        if not work.finished:
            OPENED.set(work)
            server = start_server(stack, Path(stack.enter_context(TemporaryDirectory(prefix="overnight-quantize-"))))
            flow = load_flow("quantize", stack, server)
            from httpx import HTTPError
            from prefect.exceptions import PrefectException

            try:
                flow(config=str(config or ""))
            except (PrefectException, HTTPError) as error:
                raise RunError(f"{error}; finished layers are kept") from error
            finally:
                if work.report is not None:
                    print_quantization(work.report, Console())
        elif work.report is not None:
            print_quantization(work.report, Console(), before=True)
