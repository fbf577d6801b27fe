"""From rows to token ids: what is asked of the model for every row.

A prompt is a text (`data.prompt_text`), a column of ids, or for score the text that is scored behind an optional
prompt. Rows are encoded in batches. Whatever is wrong with one row becomes an error of that row, never of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from data.checkpoint import Checkpoint
from data.error_codes import Code
from data.errors import InputError
from data.prompt_columns import check_type, parse_ids
from data.prompt_text import PromptText, Refused
from data.rows import BadRow, Record
from data.settings import JobSettings
from data.templates import ColumnText, Rendered, TemplateFailed
from data.tokenizer import Ids, TokenizerFailed
from data.truncation import cut, shorten

_NO_IDS: Ids = np.empty(0, np.uint32)


@dataclass(slots=True)
class Prompts:
    """Token ids of rows, by position.

    Attributes:
        ids: one array [tokens] of uint32 a row, empty for an error row.
        scored_from: kind score: index of the first id of the scored text. None for the other kinds.
        errors: position to the reason why the row has no prompt.
    """

    ids: list[Ids]
    scored_from: list[int] | None = None
    errors: dict[int, BadRow] = field(default_factory=dict)

    def refuse(self, row: int, code: Code, message: str) -> None:
        """Make `row` an error row."""
        self.ids[row] = _NO_IDS
        self.errors[row] = BadRow(code, message)


class Prompter:
    """Makes the prompts of a job for one checkpoint. Not for several threads at a time."""

    def __init__(
        self,
        job: JobSettings,
        on_too_long: Literal["error", "truncate"],
        checkpoint: Checkpoint,
        max_tokens: int,
        now: datetime | None = None,
    ) -> None:
        """InputError for a template that is not valid, a prompt that the kind lacks, or messages the model refuses.

        Args:
            max_tokens: tokens of an answer, for which a truncated prompt leaves room.
            now: the time that chat templates see; pass the run's own, so that a resumed run renders the same.
        """
        if job.kind == "score" and job.column is None and job.prompt_ids is None:
            raise InputError("job.column is not set: name the text column that score reads")
        self._job = job
        self._truncate = on_too_long == "truncate"
        self._tokenizer = checkpoint.tokenizer()
        self._vocab_size = checkpoint.vocab_size
        self._context = checkpoint.context_length
        self._max_tokens = max_tokens
        self._ids_column = job.prompt_ids
        self._text: PromptText | None = None
        if job.prompt_ids is None:
            self._text = PromptText(job, checkpoint, self._tokenizer, now or datetime.now())
        self._scored = ColumnText(job.column) if job.kind == "score" and job.column and self._text else None
        self._room = self._most_tokens()

    @property
    def columns(self) -> tuple[str, ...]:
        """The input columns that prompts are made of, sorted."""
        names = set(self._text.columns) if self._text else set()
        names.update(self._scored.columns if self._scored else ())
        return tuple(sorted(names | ({self._ids_column} if self._ids_column else set())))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user may not have meant, one line each."""
        return tuple(self._text.warnings) if self._text else ()

    @property
    def writes_date(self) -> bool:
        """Whether prompts may depend on `now`, because the chat template can write the date."""
        return self._text is not None and self._text.writes_date

    def check(self, columns: Sequence[str], schema: pa.Schema | None = None) -> None:
        """InputError for a column that the prompts read and the input lacks, or (with `schema`) of a wrong type."""
        for name in self.columns:
            if name not in columns:
                raise InputError(
                    f"the prompt reads column {name!r}, which the input lacks: it has {', '.join(columns)}"
                )
        if self._text:
            self._text.check_names(columns)
        if schema is not None:
            for name in self.columns:
                check_type(name, schema.field(name).type, ids=name == self._ids_column)

    def choices(self) -> list[list[int]]:
        """Kind classify: the ids of each choice, without control tokens. InputError if two have the same ids."""
        found: list[list[int]] = [ids.tolist() for ids in self._tokenizer.encode_literal(self._job.choices)]
        for choice, ids in zip(self._job.choices, found, strict=True):
            if not ids or found.count(ids) > 1:
                raise InputError(f"job.choices: {choice!r} has no tokens of its own")
        return found

    def encode(self, records: Sequence[Record | BadRow]) -> Prompts:
        """The prompts of `records`, in order; never raises for what a row contains."""
        prompts = Prompts([_NO_IDS] * len(records), [0] * len(records) if self._job.kind == "score" else None)
        good: dict[int, Record] = {}
        for row, record in enumerate(records):
            if isinstance(record, BadRow):
                prompts.errors[row] = record
            else:
                good[row] = record
        if self._ids_column is not None:
            self._take_ids(self._ids_column, good, prompts)
        elif self._text is not None and not self._text.empty:
            self._encode_texts(self._text, good, prompts)
        if self._scored is not None:
            self._append_scored(self._scored, good, prompts)
        return prompts

    def _most_tokens(self) -> int:
        """The most ids that a prompt may have."""
        if self._job.kind == "generate":
            return self._context - 1
        if self._job.kind == "classify":
            return self._context - max(map(len, self.choices()))
        return self._context - 1 if self._scored else self._context

    def _take_ids(self, column: str, records: Mapping[int, Record], prompts: Prompts) -> None:
        for row, record in records.items():
            value = parse_ids(record.get(column), self._vocab_size)
            if isinstance(value, BadRow):
                prompts.errors[row] = value
            elif len(value) > self._room and not self._truncate:
                self._refuse_long(row, prompts, len(value))
            else:
                prompts.ids[row] = np.array(value[: self._target(len(value))], np.uint32)

    def _encode_texts(self, source: PromptText, records: Mapping[int, Record], prompts: Prompts) -> None:
        plain: dict[int, str] = {}
        guarded: dict[int, str] = {}
        most = self._tokenizer.most_characters(self._context)
        for row, record in records.items():
            try:
                text, guards = source.text(record)
            except TemplateFailed as error:
                prompts.refuse(row, Code.TEMPLATE_ERROR, str(error))
                continue
            except Refused as error:
                prompts.errors[row] = error.row
                continue
            if most is not None and len(text) > most:
                self._too_long(source, row, record, prompts, None)
            else:
                (guarded if guards else plain)[row] = text
        for texts, encode in ((plain, self._tokenizer.encode_batch), (guarded, self._tokenizer.encode_guarded)):
            for row, ids in zip(texts, _each(encode, list(texts.values()), source.framed), strict=True):
                if isinstance(ids, TokenizerFailed):
                    prompts.refuse(row, Code.TOKENIZER_ERROR, str(ids))
                    continue
                prompts.ids[row] = ids
                if len(ids) > self._room:
                    self._too_long(source, row, records[row], prompts, ids)
                elif len(ids) == 0:
                    prompts.refuse(row, Code.BLANK_PROMPT, "the prompt has no tokens")

    def _too_long(self, source: PromptText, row: int, record: Record, prompts: Prompts, ids: Ids | None) -> None:
        """Shorten the prompt of a row where that is asked for, else make it an error row."""
        found: Ids | None = None
        if self._truncate and ids is not None and self._job.kind == "embed":
            found = cut(ids, self._room, self._tokenizer.suffix if source.framed else ())
        elif self._truncate:
            found = self._shortened(source, record)
        if found is None:
            self._refuse_long(row, prompts, None if ids is None else len(ids))
        else:
            prompts.ids[row] = found

    def _shortened(self, source: PromptText, record: Mapping[str, Any]) -> Ids | None:
        room = self._target(self._room + 1)
        most = self._tokenizer.most_characters(room)

        def encode(contents: Sequence[Rendered]) -> Ids | None:
            try:
                text = source.compose(contents, record)
            except Refused:  # nothing is left
                return _NO_IDS
            return None if most is not None and len(text) > most else self._guarded(text, source.framed)

        try:
            return shorten(source.marked(record), encode, room)
        except (TemplateFailed, TokenizerFailed):
            return None

    def _guarded(self, text: str, special: bool) -> Ids:
        return self._tokenizer.encode_guarded([text], special)[0]

    def _target(self, length: int) -> int:
        """How many ids to keep of `length`: all that fit; else what leaves room to answer."""
        if length <= self._room:
            return length
        if self._job.kind != "generate":
            return self._room
        return min(self._room, max(self._context - self._max_tokens, self._context // 2, 1))

    def _append_scored(self, column: ColumnText, records: Mapping[int, Record], prompts: Prompts) -> None:
        """The scored text behind the prompt, or behind the opening control tokens if there is none."""
        assert prompts.scored_from is not None
        assert self._text is not None
        rows = [row for row in records if row not in prompts.errors]
        most = self._tokenizer.most_characters(self._context)
        texts = [column.render(records[row]) for row in rows]
        kept = texts if most is None else [text[: most + 1] for text in texts]
        opening = np.array(self._tokenizer.prefix, np.uint32)
        closing = len(self._tokenizer.suffix) if self._text.framed and not self._text.empty else 0
        for row, text, scored in zip(rows, kept, _each(self._tokenizer.encode_literal, kept), strict=True):
            if isinstance(scored, TokenizerFailed):
                prompts.refuse(row, Code.TOKENIZER_ERROR, str(scored))
                continue
            if not text.strip() or not len(scored):
                prompts.refuse(row, Code.BLANK_PROMPT, f"column {column.column!r} is blank")
                continue
            start = opening if self._text.empty else prompts.ids[row][: len(prompts.ids[row]) - closing]
            if len(start) + len(scored) > self._context and not self._truncate:
                self._refuse_long(row, prompts, len(start) + len(scored))
                continue
            prompts.scored_from[row] = len(start)
            prompts.ids[row] = np.concatenate([start, scored])[: self._context]

    def _refuse_long(self, row: int, prompts: Prompts, length: int | None) -> None:
        size = "has too many tokens" if length is None else f"has {length:,} tokens"
        limit = self._context if self._scored else self._room
        with_answer = "" if self._scored else " with an answer"
        message = f"the prompt {size}; at most {limit:,} fit into the model's context of {self._context:,}{with_answer}"
        prompts.refuse(row, Code.PROMPT_TOO_LONG, message)


def _each(encode: Callable[..., list[Ids]], texts: list[str], *options: bool) -> list[Ids | TokenizerFailed]:
    """The ids of each text, or why it has none: after a failure the texts are encoded one by one."""
    try:
        return [*encode(texts, *options)]
    except TokenizerFailed as error:
        return [error] if len(texts) == 1 else [ids for text in texts for ids in _each(encode, [text], *options)]
