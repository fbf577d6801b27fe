"""The measurement of precisions on rows of a job: what is checked before it, and what each of its runs is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from data.checkpoint import Checkpoint
from data.errors import InputError, RunError
from engine.quantizer_settings import QuantizerSettings
from tasks.calibration_rows import of_input
from tasks.choice import Precision
from tasks.job import Job, RunOptions, prepare
from tasks.quantization_place import report_of
from tasks.settings import Settings

SAMPLE = "rows"
INT4 = "int4"


@dataclass(frozen=True)
class ChoiceOptions:
    """What the caller asks beside the settings: `output` is the JSON file, `int4` a checkpoint to measure."""

    output: Path
    int4: str | None
    rows: int
    repeats: int


@dataclass(frozen=True)
class ChoiceJob:
    """A checked measurement; `scratch` is there while it goes on."""

    job: Job
    options: ChoiceOptions
    scratch: Path
    int4: Checkpoint | None
    """The one that was given."""

    @property
    def settings(self) -> Settings:
        """Those of the job, resolved."""
        return self.job.settings

    @property
    def warm(self) -> int:
        """First repeats that do not count: on a GPU kernels are compiled and products timed in them."""
        return 1 if self.job.placement.device == "cuda" else 0

    @property
    def rounds(self) -> range:
        """The runs of each precision."""
        return range(self.options.repeats + self.warm)

    @property
    def limit(self) -> float:
        """The share that may be lost."""
        return self.settings.quantize.max_loss

    @property
    def calibrated(self) -> int:
        """How many rows of the draw are left out, because int4 weights are calibrated with them.

        A checkpoint that was given tells how many it took, of what may have been another input; one that does not tell
        is taken for made with today's settings.
        """
        told = (report_of(self.int4.folder) or {}).get("calibration") if self.int4 is not None else None
        if isinstance(told, dict):
            return int(told.get("rows", 0)) + int(told.get("skipped", 0))
        return self.settings.quantize.rows if of_input(self.settings) else 0

    def answers(self, precision: Precision, number: int) -> Path:
        """Where a run publishes."""
        return self.scratch / f"answers-{precision}-{number}"

    def run_path(self, precision: Precision, number: int) -> Path:
        """The folder of a run."""
        return self.scratch / f"run-{precision}-{number}"

    def run_settings(self, precision: Precision, number: int) -> Settings:
        """What a run over the sample is given: the job's settings, with one worker and nothing that would stop it."""
        settings = self.settings
        sample = next(self.scratch.glob(f"{SAMPLE}.*"))
        output: dict[str, Any] = {"path": str(self.answers(precision, number)), "format": "parquet", "include": None}
        changes: dict[str, dict[str, Any]] = {
            "input": {"path": str(sample), "columns": None, "limit": None},
            "job": {"budget": None},
            "model": self.model_settings(precision),
            "output": output | {"error_budget": 1.0},
            "schedule": {"deadline": None, "priority": None},
            "cache": {"enabled": False},
        }
        sections = {name: getattr(settings, name).model_copy(update=update) for name, update in changes.items()}
        return settings.model_copy(update=sections)

    def model_settings(self, precision: Precision) -> dict[str, str]:
        """The settings of [model] that give a precision."""
        if precision != "int4":
            return {"quantization": precision}
        folder = self.scratch / INT4 if self.int4 is None else self.int4.folder
        return {"path": str(folder), "quantization": "awq"}

    def shown_settings(self, precision: Precision) -> dict[str, str]:
        """The same for the user, to whom a checkpoint in the scratch folder is of no use."""
        given = {f"model.{key}": value for key, value in self.model_settings(precision).items()}
        if precision == "int4" and self.int4 is None:
            given["model.path"] = "the folder that overnight quantize makes"
        return given

    @property
    def quantizer(self) -> QuantizerSettings:
        """How an int4 checkpoint is made: as [quantize] says, where that is a method for int4."""
        settings = self.settings.quantize.quantizer()
        return settings if settings.int4 else QuantizerSettings(group_size=settings.group_size)


CHECKED: ContextVar[ChoiceJob | None] = ContextVar("checked", default=None)
"""The command line checks before it starts Prefect; the flow then takes the job from here."""


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder for the block. If a run failed it stays, since the logs of its workers are in it."""
    scratch = Path(mkdtemp(prefix=".overnight-choice-", dir=folder))
    keep = False
    try:
        yield scratch
    except RunError as error:
        keep = True
        raise RunError(f"{error}; what was done lies in {scratch}") from error
    finally:
        if not keep:
            rmtree(scratch)


@contextmanager
def prepared_choice(settings: Settings, options: ChoiceOptions, started: datetime) -> Iterator[ChoiceJob]:
    """Check settings, input, columns and models, and have a scratch folder beside the output for the block.

    InputError names what is wrong and what would be right.
    """
    if settings.job.kind not in ("generate", "classify"):
        raise InputError(
            f"bench --choose compares answers, and job.kind = {settings.job.kind!r} gives numbers: compare those by "
            "the task that they are for"
        )
    folder = options.output.absolute().parent
    if options.output.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"--output {options.output} cannot be written: name a file in a folder that is there")
    with _scratch(folder) as scratch:
        changes = {
            "output": settings.output.model_copy(update={"path": str(scratch / "answers")}),
            "workers": settings.workers.model_copy(update={"dp_degree": 1}),
            "model": settings.model.model_copy(update={"quantization": "none"}),
        }
        job = prepare(settings.model_copy(update=changes), RunOptions(scratch / "run"), started, "")
        if "quantization_config" in job.checkpoint.config:
            raise InputError(
                f"model.path {job.checkpoint.folder} is quantized already: name the checkpoint that it was made from, "
                "and the quantized one with --int4"
            )
        int4 = None if options.int4 is None else Checkpoint.open(options.int4)
        yield ChoiceJob(job, options, scratch, int4)
