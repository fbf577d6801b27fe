"""From settings to a checked evaluation: what is compared, on which rows, and what lies in its folder.

FOLDER/rows.jsonl or .parquet    the rows that were drawn
FOLDER/answers-candidate         results of the infer flow, one for each model
FOLDER/answers-reference
FOLDER/report.html, evaluation.json    evaluation.json last: without it there is no evaluation
FOLDER/.overnight/               the runs of both models, and the logs of the comparison
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from data.checkpoint import Checkpoint
from data.destination import is_url
from data.drawn_rows import drawn_suffix
from data.durable import make_folder
from data.errors import InputError
from data.lock import locked
from data.run_folder import run_id
from engine.version import ANSWERS
from tasks.job import Job, RunOptions, prepare
from tasks.job_paths import dated
from tasks.settings import Settings

Name = Literal["candidate", "reference"]
RECORD, REPORT, HIDDEN = "evaluation.json", "report.html", ".overnight"
ROWS = ("rows.jsonl", "rows.parquet")


@dataclass(frozen=True)
class EvaluationJob:
    """A checked evaluation. `job` is the candidate's, on the whole input."""

    job: Job
    reference: Checkpoint | None
    folder: Path

    @property
    def settings(self) -> Settings:
        """The settings with every "auto" resolved."""
        return self.job.settings

    @property
    def models(self) -> dict[Name, Checkpoint]:
        """The checkpoints that are measured."""
        found: dict[Name, Checkpoint] = {"candidate": self.job.checkpoint}
        return found if self.reference is None else {**found, "reference": self.reference}

    @property
    def identity(self) -> str:
        """A digest of what decides the figures, but for what a file of a task of lm-eval holds."""
        settings = self.settings
        models = {name: {"path": str(found.folder), **found.digests()} for name, found in self.models.items()}
        judged = {"evaluate": settings.evaluate.model_dump(mode="json"), "expected": settings.job.expected}
        engine = {"answers": ANSWERS, "device": self.job.placement.device}
        return run_id({"run": self.job.identity, "models": models, **judged, **engine})

    @property
    def answering(self) -> tuple[Name, ...]:
        """The models that are asked for answers: none if the job's kind has none."""
        return () if self.settings.job.kind == "score" else tuple(self.models)

    @property
    def hidden(self) -> Path:
        """What nobody needs once the evaluation is there."""
        return self.folder / HIDDEN

    @property
    def rows(self) -> Path:
        """The file of the rows that are drawn, in the format of the input."""
        return self.folder / f"rows{drawn_suffix(self.job.dataset)}"

    def answers(self, name: Name) -> Path:
        """Where a model's answers are published."""
        return self.folder / f"answers-{name}"

    def run_path(self, name: Name) -> Path:
        """The folder of the run that gives a model's answers."""
        return self.hidden / name

    def model_settings(self, name: Name) -> Settings:
        """What the run of one model is given, for the rows that were drawn.

        Rows without an answer are counted, so no budget of errors holds them back.
        """
        settings = self.loading(name)
        output: dict[str, Any] = {"path": str(self.answers(name)), "format": "parquet", "error_budget": 1.0}
        changes: dict[str, Any] = {
            "input": settings.input.model_copy(update={"path": str(self.rows), "columns": None, "limit": None}),
            "output": settings.output.model_copy(update=output),
        }
        return settings.model_copy(update=changes)

    def loading(self, name: Name) -> Settings:
        """The settings with [model] for one model; the reference is loaded as it is stored.

        Quantization, revision and adapter are those of model.path.
        """
        if name == "candidate":
            return self.settings
        assert self.reference is not None
        stored = {"path": str(self.reference.folder), "revision": None, "quantization": "none", "adapter": None}
        return self.settings.model_copy(update={"model": self.settings.model.model_copy(update=stored)})


CHECKED: ContextVar[EvaluationJob | None] = ContextVar("checked", default=None)
"""The command line checks before it starts Prefect; the flow then takes the evaluation from here."""


def prepare_evaluation(settings: Settings, started: datetime, command: str) -> EvaluationJob:
    """Check settings, input, columns and both models. Nothing is written.

    A deadline is dropped: an evaluation has no use for what it would leave of the answers. InputError names what is
    wrong and what would be right.
    """
    settings = dated(settings, started)
    _check_kind(settings)
    _check_tasks(settings.evaluate.tasks)
    folder = _folder(settings.output.path)
    output = settings.output.model_copy(update={"path": str(folder / "answers-candidate")})
    changes = {"output": output, "schedule": settings.schedule.model_copy(update={"deadline": None})}
    options = RunOptions(folder / HIDDEN / "candidate")
    job = prepare(settings.model_copy(update=changes), options, started, command)
    columns = job.dataset.sample_columns()
    for column in settings.evaluate.slices:
        if columns and column not in columns:
            raise InputError(f"evaluate.slices: no column {column!r} in the input, which has {', '.join(columns)}")
    reference = None
    if settings.evaluate.reference is not None:
        code = settings.model.trust_remote_code
        reference = Checkpoint.open(settings.evaluate.reference, None, code)
        _check_vocabularies(job.checkpoint, reference)
    return EvaluationJob(job, reference, folder)


@contextmanager
def folder_of(job: EvaluationJob) -> Iterator[None]:
    """The evaluation's folder, made and locked for the block; Held if another evaluation is at work there."""
    try:
        make_folder(job.folder)
        make_folder(job.hidden, 0o700)
    except OSError as error:
        raise InputError(f"output.path {job.folder} cannot be made: {error.strerror}") from error
    with locked(job.hidden / "lock", f"output.path {job.folder}"):
        yield


def _check_kind(settings: Settings) -> None:
    kind = settings.job.kind
    if kind == "embed":
        raise InputError(
            "overnight evaluate measures answers and likelihoods, and job.kind = 'embed' has neither: compare "
            "embeddings by the task that they are for"
        )
    if kind == "score" and settings.evaluate.pattern is not None:
        raise InputError("evaluate.pattern is for answers, and job.kind = 'score' has none: leave it unset")


def _check_tasks(names: tuple[str, ...]) -> None:
    """InputError if lm-eval is not installed, or a file that describes a task is not there."""
    if names and find_spec("lm_eval") is None:
        raise InputError("evaluate.tasks needs lm-eval, which is not installed: pip install 'overnight[harness]'")
    for name in names:
        if names_file(name) and not Path(name).is_file():
            raise InputError(f"evaluate.tasks: {name} does not exist")


def names_file(task: str) -> bool:
    """Whether a task of lm-eval is one that a file describes."""
    return task.endswith((".yaml", ".yml"))


def _folder(path: str) -> Path:
    if not path:
        raise InputError("output.path is not set: give --output, the folder for the evaluation")
    if is_url(path) or path.endswith((".parquet", ".jsonl")) or "{run}" in path:
        raise InputError(f"output.path {path} must be a local folder for the report and the answers, without {{run}}")
    folder = Path(os.path.abspath(path))
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output.path {path} is a file; set it to a folder for the report and the answers")
    ours = {RECORD, REPORT, HIDDEN, *ROWS, "answers-candidate", "answers-reference"}
    if folder.is_dir():
        foreign = sorted(
            entry for entry in os.listdir(folder) if entry not in ours and not entry.startswith(".answers-")
        )
        if foreign:
            raise InputError(
                f"output.path {path} holds {foreign[0]!r}, which is no evaluation's: choose another folder"
            )
    return folder


def _check_vocabularies(candidate: Checkpoint, reference: Checkpoint) -> None:
    """Distributions over different tokens cannot be compared."""
    if candidate.vocab_size != reference.vocab_size:
        raise InputError(
            f"evaluate.reference {reference.folder} has a vocabulary of {reference.vocab_size:,} tokens and model.path "
            f"{candidate.folder} of {candidate.vocab_size:,}: only models of one vocabulary can be compared"
        )
    if candidate.tokenizer().vocabulary != reference.tokenizer().vocabulary:
        raise InputError(
            f"evaluate.reference {reference.folder} has other tokens than model.path {candidate.folder}: only models "
            "of one vocabulary can be compared"
        )
