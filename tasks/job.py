"""From settings to a checked job: everything that can be wrong is found here, before anything is started.

A job knows its input, checkpoint and prompts, and its identity: the digest of whatever decides the answers, which names
the run. Paths, workers, output, schedule, cache, monitoring and budgets are not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.errors import InputError
from data.model_config import text_config
from data.output import added_schema, published_columns
from data.prompts import Prompter
from data.results import result_schema
from data.run_folder import run_id
from data.settings import OutputSettings
from tasks.placement import Placement, place, resolve
from tasks.settings import Settings


@dataclass(frozen=True)
class RunOptions:
    """What the caller asks of a run beside its settings."""

    run_dir: Path | None = None
    fresh: bool = False
    retry_errors: bool = False


@dataclass(frozen=True)
class Job:
    """A checked job. `settings` have every "auto" resolved, `output` its placeholders filled."""

    settings: Settings
    options: RunOptions
    placement: Placement
    dataset: Dataset
    checkpoint: Checkpoint
    prompter: Prompter
    identity: dict[str, Any]
    output: OutputSettings
    run_path: Path
    command: str

    @property
    def run_id(self) -> str:
        """The run's id."""
        return run_id(self.identity)

    @property
    def output_path(self) -> Path:
        """The folder or file that is published."""
        return Path(self.output.path).absolute()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before the run, a line each."""
        notice = (self.placement.notice,) if self.placement.notice else ()
        return (*notice, *self.prompter.warnings)


def prepare(settings: Settings, options: RunOptions, started: datetime, command: str) -> Job:
    """Check settings, input, columns and model, and name the run.

    Args:
        settings: as loaded.
        options: what the caller asks beside them.
        started: the scheduled start, which fills `{date}` in paths.
        command: the command that resumes this run, for messages.

    Raises:
        InputError: something is wrong; the message names it.
    """
    settings = _dated(settings, started)
    _check_sections(settings)
    placement = place(settings)
    settings = resolve(settings, placement)
    checkpoint = Checkpoint.open(settings.model.path, settings.model.revision, settings.model.trust_remote_code)
    # A chat template that writes the date sees the day alone, so that a run resumed that day renders the same prompts.
    day = datetime.combine(started.date(), time.min)
    prompter = Prompter(settings.job, settings.input.on_too_long, checkpoint, settings.sampling.max_tokens, day)
    dataset = Dataset.open(settings.input)
    _check_columns(settings, prompter, dataset, checkpoint)
    _check_places(settings)
    identity = identify(settings, dataset, checkpoint)
    if prompter.writes_date:
        identity["date"] = day.date().isoformat()
    run = run_id(identity)
    output = settings.output.model_copy(update={"path": settings.output.path.replace("{run}", run)})
    place_of_run = options.run_dir or Path(output.path).absolute().parent / ".overnight" / run
    return Job(
        settings=settings,
        options=options,
        placement=placement,
        dataset=dataset,
        checkpoint=checkpoint,
        prompter=prompter,
        identity=identity,
        output=output,
        run_path=place_of_run.absolute(),
        command=command,
    )


def identify(settings: Settings, dataset: Dataset, checkpoint: Checkpoint) -> dict[str, Any]:
    """Whatever decides the answers of a run, as plain JSON values."""
    return {
        "input": [{"sha256": file.sha256, "size": file.size} for file in dataset.fingerprint()],
        "reading": settings.input.model_dump(mode="json", exclude={"path"}),
        "job": settings.job.model_dump(mode="json", by_alias=True, exclude={"budget", "expected"}),
        "sampling": settings.sampling.model_dump(mode="json"),
        "model": checkpoint.digests(),
        "adapter": settings.model.adapter,
        "dtype": settings.engine.dtype,
        "amp": settings.engine.amp,
        "kv_dtype": settings.engine.kv_dtype,
        "quantization": settings.model.quantization,
        "deterministic": settings.engine.deterministic,
    }


def _dated(settings: Settings, started: datetime) -> Settings:
    date = started.date().isoformat()
    fill = {"path": settings.output.path.replace("{date}", date)}
    take = {"path": settings.input.path.replace("{date}", date)}
    return settings.model_copy(
        update={"output": settings.output.model_copy(update=fill), "input": settings.input.model_copy(update=take)}
    )


def _check_sections(settings: Settings) -> None:
    for name, value, remedy in (
        ("input.path", settings.input.path, "--input"),
        ("output.path", settings.output.path, "--output"),
        ("model.path", settings.model.path, "--model"),
    ):
        if not value:
            raise InputError(f"{name} is not set: give {remedy}, or set it in the configuration file")
    problem = settings.job.problem()
    if problem:
        raise InputError(problem)
    if "://" in settings.output.path:
        raise InputError(f"output.path {settings.output.path}: object stores are not supported as an output yet")


def _check_columns(settings: Settings, prompter: Prompter, dataset: Dataset, checkpoint: Checkpoint) -> None:
    """What the job reads must be there, and what it adds must not. Of JSONL the first rows tell."""
    columns = dataset.sample_columns()
    if not columns:  # no rows, or none that can be read: those become error rows, each for itself
        return
    prompter.check(columns, dataset.schema)
    expected = settings.job.expected
    if expected is not None and expected not in columns:
        raise InputError(f"job.expected = {expected!r} is not a column of the input; it has {', '.join(columns)}")
    published_columns(columns, settings.output, added_schema(results_of(settings, checkpoint), settings.output.prefix))


def results_of(settings: Settings, checkpoint: Checkpoint) -> pa.Schema:
    """The schema of this job's results."""
    size = text_config(checkpoint.config).get("hidden_size")
    return result_schema(settings.job.kind, size, settings.job.choices)


def _check_places(settings: Settings) -> None:
    if "://" in settings.input.path:
        return
    source, target = Path(settings.input.path).resolve(), Path(settings.output.path).resolve()
    if target == source or source in target.parents:
        raise InputError(f"output.path {settings.output.path} lies inside input.path {settings.input.path}")
