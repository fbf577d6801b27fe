"""The answers of a model to the rows of an evaluation, read from the result that its run published, and held against
what they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.destination import destination
from data.errors import RunError
from data.output import added_schema
from data.published import added_tables
from data.results import OK
from data.rows import Record
from tasks.evaluation_job import EvaluationJob, Name
from tasks.job import results_of

Flags = npt.NDArray[np.bool_]

MATCH_SECONDS = 2.0
"""For one answer: an expression can take for ever over an unlucky text."""


@dataclass(frozen=True)
class Answers:
    """By row: the text, None for a row without an answer, and whether it ended by itself."""

    texts: tuple[str | None, ...]
    ended: tuple[bool, ...]

    @property
    def failed(self) -> Flags:
        """Rows without an answer."""
        return np.array([text is None for text in self.texts], np.bool_)

    def equal(self, wanted: Sequence[str | None]) -> Flags:
        """Rows whose answer is the wanted text. A row without either is not right."""
        pairs = zip(self.texts, wanted, strict=True)
        return np.array([text is not None and text == other for text, other in pairs], np.bool_)

    def matching(self, pattern: str) -> Flags:
        """Rows whose whole answer matches. RunError if that takes too long to find out."""
        import regex

        compiled = regex.compile(pattern)
        try:
            found = [
                text is not None and compiled.fullmatch(text, timeout=MATCH_SECONDS) is not None for text in self.texts
            ]
        except TimeoutError:
            raise RunError(
                f"evaluate.pattern takes more than {MATCH_SECONDS:g} seconds for one answer: repeat less within repeats"
            ) from None
        return np.array(found, np.bool_)


def read_answers(job: EvaluationJob, name: Name) -> Answers:
    """The published answers of a model, in the order of the rows. RunError if there are none."""
    return published_answers(job.answers(name), results_of(job.settings, job.job.checkpoint))


def published_answers(path: Path, results: pa.Schema) -> Answers:
    """The answers published at a path, in the order of the rows. RunError if there is no complete result."""
    target = destination(path)
    manifest = target.read_manifest()
    if manifest is None or not manifest.complete:
        raise RunError(f"{path} is no complete result")
    added = added_schema(results, manifest.prefix)
    texts: list[str | None] = []
    ended: list[bool] = []
    for table in added_tables(target, manifest, added):
        output, status, reason = (
            table[f"{manifest.prefix}{column}"].to_pylist() for column in ("output", "status", "finish_reason")
        )
        texts += [text if state == OK else None for text, state in zip(output, status, strict=True)]
        ended += [why != "length" for why in reason]
    return Answers(tuple(texts), tuple(ended))


def column_texts(records: Sequence[Record], column: str) -> list[str | None]:
    """A column of the input as text, as answers are compared with it."""
    values: list[Any] = [record.get(column) for record in records]
    return [None if value is None else str(value) for value in values]
