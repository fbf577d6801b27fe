"""From settings to a checked job: everything that can be wrong is found here, before anything is started.

A job knows its input, checkpoint and prompts, and its identity: the digest of whatever decides the answers, which names
the run. Paths, workers, output, schedule, cache, monitoring and budgets are not part of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.destination import destination, destination_name, is_url
from data.durable import write_file
from data.errors import InputError
from data.job_answers import JobAnswers
from data.model_config import text_config
from data.output import added_schema, published_columns
from data.priority import Priority
from data.prompts import Prompter
from data.results import result_schema
from data.run_folder import RunFolder, run_id
from data.settings import OutputSettings
from tasks.budget import budget_of
from tasks.cache import check_cache, job_answers
from tasks.devices import unlike_notice
from tasks.fresh_start import started_afresh
from tasks.identity import identify
from tasks.job_paths import beside, check_apart, check_places, dated, followed
from tasks.moment import moment_of
from tasks.placement import Placement, place, resolve
from tasks.settings import Settings

DAY = "day"
AFRESH = "afresh"


@dataclass(frozen=True)
class RunOptions:
    """What the caller asks of a run beside its settings."""

    run_dir: Path | None = None
    fresh: bool = False
    retry_errors: bool = False
    flow_run: str | None = None
    """The id of the flow run that asks, all attempts at which are to have one fresh start; None for a command."""


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
    day: datetime
    """Midnight of the day on which the run was first started: all that a chat template sees of the time."""
    command: str
    deadline: datetime | None
    """When this attempt ends with what is answered by then, in UTC."""
    priority: Priority | None
    """Which rows are answered first."""
    pointer: str | None = None
    """What model.path was if that is a link; in `settings` it is the folder that the link led to."""

    @property
    def run_id(self) -> str:
        """The run's id."""
        return run_id(self.identity)

    @property
    def output_path(self) -> str:
        """The folder, file or URL that is published."""
        return destination_name(self.output.path)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know before the run, a line each."""
        notices = (self.placement.notice, unlike_notice(self.placement))
        return (*filter(None, notices), *self.prompter.warnings)


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
    deadline = settings.schedule.deadline
    ends = None if deadline is None else moment_of(deadline, datetime.now(UTC))  # also in a retry of a flow run
    settings = dated(settings, started)
    _check_sections(settings)
    placement = place(settings)
    settings = resolve(settings, placement)
    pointer = settings.model.path if Path(settings.model.path).expanduser().is_symlink() else None
    checkpoint = Checkpoint.open(settings.model.path, settings.model.revision, settings.model.trust_remote_code)
    settings = settings.model_copy(  # every worker loads what was digested here, also one that starts at night
        update={"model": settings.model.model_copy(update={"path": str(checkpoint.folder)})}
    )
    check_places(settings)
    check_cache(settings.cache)
    dataset = Dataset.open(settings.input)
    _check_columns(settings, _prompter(settings, checkpoint, started), dataset, checkpoint)
    priority = _priority(settings, dataset)
    identity = identify(settings, dataset, checkpoint)
    run = run_id(identity)
    output = settings.output.model_copy(update={"path": followed(settings.output.path.replace("{run}", run))})
    run_path = (options.run_dir or beside(output.path) / ".overnight" / run).absolute()
    check_apart(run_path, output.path)
    if options.fresh and options.flow_run is not None and started_afresh(run_path, options.flow_run):
        options = replace(options, fresh=False)  # goes on with what it has
    day = _remembered_day(run_path, options) or started
    return Job(
        settings=settings,
        options=options,
        placement=placement,
        dataset=dataset,
        checkpoint=checkpoint,
        prompter=_prompter(settings, checkpoint, day),
        day=datetime.combine(day.date(), time.min),
        identity=identity,
        output=output,
        run_path=run_path,
        command=command,
        deadline=ends,
        priority=priority,
        pointer=pointer,
    )


def remember_afresh(folder: RunFolder) -> None:
    """Keep that this run computes everything again, whatever the cache holds."""
    write_file(folder.tmp, folder.path / AFRESH, lambda file: file.write(b""))


def cached_answers(job: Job, folder: RunFolder) -> JobAnswers | None:
    """The answers of earlier runs that may stand for those of this one; None if there are to be none."""
    if (folder.path / AFRESH).exists():
        return None
    return job_answers(job.settings, job.identity, results_of(job.settings, job.checkpoint))


def remember_day(job: Job, folder: RunFolder) -> None:
    """Keep the day of the first start, so that a run resumed after midnight renders the same prompts."""
    text = job.day.date().isoformat().encode()
    write_file(folder.tmp, folder.path / DAY, lambda file: file.write(text))


def _remembered_day(run_path: Path, options: RunOptions) -> datetime | None:
    try:
        return None if options.fresh else datetime.fromisoformat((run_path / DAY).read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InputError(f"the run folder {run_path} is a file: choose another --run-dir") from None
    except ValueError:
        raise InputError(
            f"{run_path / DAY} is damaged: write the day of the run's first start there, such as "
            f"{datetime.now().date()}, or set the run aside with --fresh"
        ) from None


def _prompter(settings: Settings, checkpoint: Checkpoint, day: datetime) -> Prompter:
    midnight = datetime.combine(day.date(), time.min)
    return Prompter(settings.job, settings.input.on_too_long, checkpoint, settings.sampling.max_tokens, midnight)


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
    if settings.engine.invariant and settings.job.kind != "generate":
        raise InputError(
            f"engine.deterministic = 'batch-invariant' is for job.kind = 'generate', not {settings.job.kind!r}"
        )
    budget_of(settings)
    if is_url(settings.output.path):
        destination(settings.output.path)  # the scheme and the bucket's name can be judged without asking it


def _check_columns(settings: Settings, prompter: Prompter, dataset: Dataset, checkpoint: Checkpoint) -> None:
    """What the job reads must be there, and what it adds must not. Of JSONL the first rows tell."""
    columns = dataset.sample_columns()
    if not columns and dataset.schema is None:  # no rows, or none that can be read: each becomes an error row
        return
    prompter.check(columns, dataset.schema)
    expected = settings.job.expected
    if expected is not None and expected not in columns:
        raise InputError(f"job.expected = {expected!r} is not a column of the input; it has {', '.join(columns)}")
    published_columns(columns, settings.output, added_schema(results_of(settings, checkpoint), settings.output.prefix))


def _priority(settings: Settings, dataset: Dataset) -> Priority | None:
    text = settings.schedule.priority
    if text is None:
        return None
    priority = Priority(text)
    columns = dataset.sample_columns()
    if columns:
        priority.check(columns, dataset.schema)
    return priority


def results_of(settings: Settings, checkpoint: Checkpoint) -> pa.Schema:
    """The schema of this job's results."""
    size = text_config(checkpoint.config).get("hidden_size")
    return result_schema(settings.job.kind, size, settings.job.choices)
