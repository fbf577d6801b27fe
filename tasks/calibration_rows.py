"""The rows that a quantization is calibrated with: text that the model will meet, as token ids.

They are the job's own prompts with the right answers behind them where the job knows those, or rows of a dataset of
their own: asked as the job asks where they have the columns for it, else the text of their column `text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from data.answer_tokens import AnswerTokens
from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.drawn_rows import DrawnRows, draw_rows
from data.errors import InputError
from data.prompts import Prompter
from data.settings import InputSettings, JobSettings
from data.tokenizer import Ids
from tasks.evaluation_answers import column_texts
from tasks.figures import plural
from tasks.settings import Settings

LEAST_ROWS = 8
TEXT = "text"
DAY = datetime(2025, 1, 1)
"""What a chat template is told of the time: work that goes on after midnight needs the same rows."""


@dataclass(frozen=True)
class CalibrationRows:
    """What was drawn: `ids` of each row, of where they come from, and of how many rows there was no prompt."""

    ids: tuple[Ids, ...]
    source: str
    text: str
    """What of a row: `prompts`, `prompts and right answers`, or `column text`."""
    skipped: int
    wanted: int
    others: int | None
    """How many rows the job's input has beside them, `LEAST_ROWS` at most; None if they are not of that input."""

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.ids))

    @property
    def digest(self) -> str:
        """sha256 of the token ids, row by row."""
        state = hashlib.sha256()
        for row in self.ids:
            state.update(len(row).to_bytes(8, "little") + row.astype("<i8").tobytes())
        return state.hexdigest()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user may not have meant, a line each."""
        if len(self.ids) >= self.wanted:
            return ()
        skipped = f" ({self.skipped:,} more cannot be asked)" if self.skipped else ""
        return (f"only {len(self.ids):,} of {self.wanted:,} rows to calibrate with in {self.source}{skipped}",)


def calibration_rows(settings: Settings, checkpoint: Checkpoint) -> CalibrationRows:
    """Draw the rows and encode them; the same rows for the same input.

    InputError for an input that cannot be read or asked, and where the method needs rows and there are fewer than
    `LEAST_ROWS`. Without a dataset and without an input there are none, which is for methods that calibrate nothing.
    """
    wanted, needed = settings.quantize, settings.quantize.quantizer().calibrated
    source = wanted.dataset or settings.input.path
    if not source:
        if needed:
            raise InputError(
                f"quantize.method = {wanted.method!r} is calibrated with rows: name the job's with --input, or others "
                "with quantize.dataset"
            )
        return CalibrationRows((), "", "", 0, 0, others=None)
    own = of_input(settings)
    dataset = Dataset.open(_reading(settings, own=own))
    asking = _asking(settings, checkpoint, dataset)
    drawn, others = draw_rows(dataset, [wanted.rows, LEAST_ROWS])
    ids, skipped = asking.encode(drawn, checkpoint, min(wanted.max_tokens, checkpoint.context_length))
    if len(ids) < LEAST_ROWS and needed:
        raise InputError(
            f"{source} gives {plural(len(ids), 'row')} to calibrate with ({skipped:,} more cannot be asked), but "
            f"{LEAST_ROWS} at least are needed: name more of them with quantize.dataset"
        )
    return CalibrationRows(tuple(ids), source, asking.text, skipped, wanted.rows, len(others.records) if own else None)


def of_input(settings: Settings) -> bool:
    """Whether the rows are drawn of the job's input: no dataset is named, or one that has the same files."""
    named = settings.quantize.dataset
    if named is None or not settings.input.path:
        return named is None
    return Dataset.open(settings.input).same_files(Dataset.open(InputSettings(path=named)))


def _reading(settings: Settings, *, own: bool) -> InputSettings:
    """The input is read as its job reads it, so that its rows have the same places; but with all columns of a dataset.

    Those of a dataset need not be the job's.
    """
    named = settings.quantize.dataset
    if named is None:
        return settings.input
    return settings.input.model_copy(update={"columns": None}) if own else InputSettings(path=named)


@dataclass(frozen=True)
class _Asking:
    """How rows become token ids."""

    job: JobSettings
    prompter: Prompter
    expected: str | None
    """The column of the right answers, where the rows have it."""

    @property
    def text(self) -> str:
        if self.job.kind == "score":
            return f"column {self.job.column}"
        return "prompts" if self.expected is None else "prompts and right answers"

    def encode(self, drawn: DrawnRows, checkpoint: Checkpoint, most: int) -> tuple[list[Ids], int]:
        """The first `most` ids of each row, and how many rows have none."""
        prompts = self.prompter.encode(drawn.records)
        good = [row for row in range(len(drawn.records)) if row not in prompts.errors and len(prompts.ids[row])]
        ids = [prompts.ids[row] for row in good]
        if self.expected is not None:
            texts = column_texts([drawn.records[row] for row in good], self.expected)
            found = AnswerTokens(self.job, checkpoint).encode([text or "" for text in texts], [True] * len(texts))
            answers = [found[row] if text is not None else found[row][:0] for row, text in enumerate(texts)]
            ids = [np.concatenate(pair) for pair in zip(ids, answers, strict=True)]
        return [row[:most] for row in ids], len(drawn.records) - len(good)


def _asking(settings: Settings, checkpoint: Checkpoint, dataset: Dataset) -> _Asking:
    """The job's prompts, if the rows have what they are made of; else the text of a dataset of their own."""
    columns, job, own = dataset.sample_columns(), settings.job, settings.quantize.dataset is None
    if not columns:
        raise InputError(f"{settings.quantize.dataset or settings.input.path} holds no rows to calibrate with")
    lacks: set[str] = set()
    if (problem := job.problem()) is None:
        prompter = Prompter(job, settings.input.on_too_long, checkpoint, 1, DAY)
        lacks = set(prompter.columns) - set(columns)
        if own or not lacks:
            prompter.check(columns, dataset.schema)
            return _Asking(job, prompter, _expected(job, columns, required=own))
    elif own:
        raise InputError(problem)
    if TEXT not in columns:
        missing = f"not the columns that job.prompt reads ({', '.join(sorted(lacks))}), and " if lacks else ""
        raise InputError(
            f"quantize.dataset {settings.quantize.dataset} has {missing}no column {TEXT!r} to calibrate with; it has "
            f"{', '.join(columns)}: rename one, or set a job.prompt that reads them"
        )
    job = JobSettings(kind="score", column=TEXT)
    prompter = Prompter(job, "truncate", checkpoint, 1, DAY)
    prompter.check(columns, dataset.schema)
    return _Asking(job, prompter, None)


def _expected(job: JobSettings, columns: Sequence[str], *, required: bool) -> str | None:
    if job.expected is None or job.kind not in ("generate", "classify"):
        return None
    if job.expected not in columns and required:
        raise InputError(f"job.expected = {job.expected!r} is not a column of the input; it has {', '.join(columns)}")
    return job.expected if job.expected in columns else None
