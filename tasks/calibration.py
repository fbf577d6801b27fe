"""What earlier runs on this machine took and how long their answers were: a small file in the user's cache folder.

A run is kept with the terms that the arithmetic of tasks.cost gave for its work and the seconds that it took. Answers
are kept by job: a digest of the question, the sampling and the model, whatever the input. What cannot be read or
written costs a better estimate and nothing else.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.digests import user_cache
from data.histogram import BINS, add
from data.model_shape import ModelShape
from engine.settings import Deterministic
from tasks.cost import VERSION, Precision, Terms
from tasks.work import Outputs

RUNS_OF_A_SETUP = 8
RUNS_KEPT = 400
JOBS_KEPT = 400
ANSWERS_KEPT = 10_000_000
"""A job's answers weigh no more than this many, so that later ones still count."""


class Setup(BaseModel):
    """What rates hold for: runs of equal setups take equal time for equal work."""

    model_config = ConfigDict(frozen=True)

    kind: str
    shape: ModelShape
    precision: Precision
    device: str
    deterministic: Deterministic

    def like(self, other: Setup) -> bool:
        """Whether rates of `other` say something of this one: on the same device, the arithmetic errs alike."""
        return self.device == other.device and self.deterministic == other.deterministic


class MeasuredRun(BaseModel):
    """One run. Seconds of work are those of all workers together."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    version: int
    setup: Setup
    terms: Terms
    seconds: float = Field(gt=0)
    start: float | None = None
    """Seconds from the start until workers computed; None where nobody measured that, as for the two below."""
    finish: float | None = None
    """Seconds of publishing."""


class Answers(BaseModel):
    """The answers of a job so far."""

    model_config = ConfigDict(frozen=True)

    sequences: int = Field(gt=0)
    tokens: int = Field(ge=0)
    counts: tuple[Annotated[int, Field(ge=0)], ...] = Field(max_length=BINS)

    @property
    def outputs(self) -> Outputs:
        """How long they were."""
        return Outputs(self.counts, self.tokens / self.sequences)


class Calibration(BaseModel):
    """Everything that is remembered, the newest last."""

    model_config = ConfigDict(frozen=True)

    runs: tuple[MeasuredRun, ...] = ()
    jobs: dict[str, Answers] = Field(default_factory=dict)

    def runs_of(self, setup: Setup) -> list[MeasuredRun]:
        """The runs of this very setup."""
        return [run for run in self._current if run.setup == setup]

    def runs_like(self, setup: Setup) -> list[MeasuredRun]:
        """Runs of other models or precisions on such a device: of this precision, if there are any."""
        like = [run for run in self._current if setup.like(run.setup)]
        return [run for run in like if run.setup.precision == setup.precision] or like

    @property
    def _current(self) -> list[MeasuredRun]:
        return [run for run in self.runs if run.version == VERSION and sum(run.terms) > 0]

    def with_run(self, run: MeasuredRun) -> Calibration:
        """One run more; the oldest one of a setup goes."""
        same = [old for old in self.runs if old.setup == run.setup][-RUNS_OF_A_SETUP + 1 :]
        others = [old for old in self.runs if old.setup != run.setup]
        return self.model_copy(update={"runs": (*others, *same, run)[-RUNS_KEPT:]})

    def with_answers(self, job: str, counts: Sequence[int], tokens: int) -> Calibration:
        """Answers more of a job."""
        jobs = dict(self.jobs)
        old = jobs.pop(job, None)
        if old is not None and old.sequences < ANSWERS_KEPT:
            counts, tokens = add([old.counts, counts]), tokens + old.tokens
        jobs[job] = Answers(sequences=sum(counts), tokens=tokens, counts=tuple(counts))
        return self.model_copy(update={"jobs": dict(list(jobs.items())[-JOBS_KEPT:])})


def load_calibration() -> Calibration:
    """What is remembered; nothing where there is no file, or one that cannot be used."""
    try:
        content: Any = json.loads(_path().read_text(encoding="utf-8"))
        return Calibration.model_validate(content)
    except (OSError, ValueError, ValidationError):
        return Calibration()


def store_calibration(calibration: Calibration) -> None:
    """Put in place by rename; of two runs that end at once, one is forgotten."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            stream.write(calibration.model_dump_json())
        os.replace(stream.name, path)
    except OSError:  # a read-only home costs the next estimate's precision
        return


def _path() -> Path:
    return user_cache() / "calibration.json"
