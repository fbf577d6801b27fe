"""What an evaluation measured of each row, before any figure is made of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data.rows import Record
from tasks.evaluation_answers import Answers, column_texts
from tasks.evaluation_job import EvaluationJob, Name
from tasks.likelihood import Likelihoods

Flags = npt.NDArray[np.bool_]

NULL = "null"
VALUE_CHARACTERS = 80
"""Most characters of a value by which rows are told apart."""


@dataclass(frozen=True)
class ModelRows:
    """One model, by row: whether it has no result, and whether its answer is right and matches, where that is asked."""

    name: str
    path: str
    failed: Flags
    right: Flags | None = None
    matches: Flags | None = None


@dataclass(frozen=True)
class Measured:
    """Everything by row. `models` begins with the candidate; `same_answer` is set if two models answered."""

    models: tuple[ModelRows, ...]
    likelihoods: Likelihoods
    same_answer: Flags | None
    slices: Mapping[str, Sequence[str]]
    """By column the value of each row."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.likelihoods.tokens)

    @property
    def compared(self) -> Flags:
        """The rows whose likelihood is known under every model: perplexity and agreement are over them."""
        known = self.likelihoods
        sums = known.candidate if len(self.models) == 1 else known.candidate + known.reference
        found: Flags = (known.tokens > 0) & np.isfinite(sums)
        return found

    @property
    def divergences(self) -> npt.NDArray[np.float64]:
        """Nats a token of each row that was compared."""
        rows = self.compared
        found: npt.NDArray[np.float64] = self.likelihoods.divergence[rows] / self.likelihoods.tokens[rows]
        return found


def measured_of(
    job: EvaluationJob,
    records: Sequence[Record],
    answers: Mapping[Name, Answers],
    likelihoods: Likelihoods,
    without_prompt: Sequence[bool],
) -> Measured:
    """Hold the answers against what they should be, and put everything together."""
    settings = job.settings
    expected = None if settings.job.expected is None else column_texts(records, settings.job.expected)
    sums = {"candidate": likelihoods.candidate, "reference": likelihoods.reference}
    models = []
    for name, checkpoint in job.models.items():
        failed = np.array(without_prompt, np.bool_) | np.isnan(sums[name])
        right = matches = None
        if name in answers:
            failed |= answers[name].failed
            right = None if expected is None else answers[name].equal(expected)
            pattern = settings.evaluate.pattern
            matches = None if pattern is None else answers[name].matching(pattern)
        models.append(ModelRows(name, os.path.abspath(checkpoint.folder), failed, right, matches))
    same = answers["candidate"].equal(answers["reference"].texts) if len(answers) == 2 else None
    slices = {column: [_shown(record.get(column)) for record in records] for column in settings.evaluate.slices}
    return Measured(tuple(models), likelihoods, same, slices)


def _shown(value: Any) -> str:
    text = NULL if value is None else str(value)
    return text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 1] + "…"
