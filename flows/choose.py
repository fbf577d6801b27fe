"""The choose flow: rows of a job answered in each precision, in turns, and the precision that suits the job best."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from data.errors import InputError, RunError
from flows.infer import infer
from tasks.choice import Choice, Precision
from tasks.choice_job import CHECKED, ChoiceOptions, prepared_choice
from tasks.choice_stages import conclude, draw_sample, make_int4
from tasks.configuration import load_settings
from tasks.settings import Settings, set_explicitly

PRECISIONS: tuple[Precision, ...] = ("none", "fp8", "int4")


@flow(name="choose", persist_result=False)
def choose(
    config: str = "config.toml",
    settings: Settings = Settings(),  # noqa: B008 - frozen, and Prefect makes the form from it
    int4: str | None = None,
    rows: int = 1000,
    repeats: int = 3,
    output: str = "choice.json",
) -> Choice:
    """Measure speed and answers without quantization, in FP8 and in int4, and recommend one.

    Args:
        config: path of the configuration file; empty for none.
        settings: settings that go before those of the file; what is left out is taken from there.
        int4: a checkpoint with int4 weights; one is made for the measurement if not given.
        rows: rows of the input to measure on, drawn at random.
        repeats: runs of each precision that count.
        output: the JSON file for the figures.
    """
    with ExitStack() as stack:
        job = CHECKED.get()
        if job is None:
            loaded = load_settings(Path(config) if config else None, set_explicitly(settings))
            options = ChoiceOptions(Path(output), int4, rows, repeats)
            started = flow_run.scheduled_start_time.astimezone()
            job = stack.enter_context(prepared_choice(loaded, options, started))
        sample = draw_sample(job)
        failures: dict[Precision, str] = {}
        if reason := make_int4(job):
            failures["int4"] = reason
        for number in job.rounds:  # in turns, so that a machine that gets busier slows all of them
            for precision in PRECISIONS:
                if precision not in failures:
                    try:
                        infer("", job.run_settings(precision, number), str(job.run_path(precision, number)))
                    except (RunError, InputError) as error:
                        if precision == "none":
                            raise
                        failures[precision] = str(error)
        return conclude(job, sample, failures)
