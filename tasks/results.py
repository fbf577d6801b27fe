"""From what the engine completed to the table of a shard: text is decoded here, once, when the shard is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data.error_codes import Code
from data.results import result_schema
from data.tokenizer import Tokenizer
from engine.request import Completion
from tasks.settings import Settings


class ResultTable:
    """Builds the result table of the job's kind.

    Args:
        settings: the run's settings.
        tokenizer: decodes the answers.
        embedding_size: length of an embedding, for kind embed.
    """

    def __init__(self, settings: Settings, tokenizer: Tokenizer, embedding_size: int | None) -> None:
        self._job = settings.job
        self._tokenizer = tokenizer
        self.schema = result_schema(self._job.kind, embedding_size, self._job.choices)

    def build(self, completions: Sequence[Completion], sequences: int) -> pa.Table:
        """One row a slot, in slot order; `completions` hold exactly one result a slot."""
        assert len(completions) == sequences
        errors = [completion.error for completion in completions]
        columns: dict[str, Any] = {
            "slot": np.arange(sequences, dtype=np.int32),
            "output": [self._text(completion) for completion in completions],
            "status": ["ok" if error is None else "error" for error in errors],
            "code": [error and Code.registered(error[0]) for error in errors],
            "message": [error and error[1] for error in errors],
            "finish_reason": [None if c.error else c.finish_reason for c in completions],
            "input_tokens": [completion.prompt_tokens for completion in completions],
            "output_tokens": [len(completion.token_ids) for completion in completions],
        }
        columns.update(self._kind_columns(completions))
        return pa.table([pa.array(columns[field.name], field.type) for field in self.schema], schema=self.schema)

    def _text(self, completion: Completion) -> str | None:
        if completion.error is not None:
            return None
        if self._job.kind == "classify":
            assert completion.probabilities is not None
            return self._job.choices[int(np.argmax(completion.probabilities))]
        if self._job.kind != "generate":
            return None
        text = self._tokenizer.decode(completion.token_ids)
        if completion.stop is not None and completion.stop in text:
            text = text[: text.index(completion.stop)]
        return text

    def _kind_columns(self, completions: Sequence[Completion]) -> dict[str, Any]:
        if self._job.kind == "classify":
            choices = self._job.choices
            return {
                "probabilities": [
                    dict(zip(choices, c.probabilities, strict=True)) if c.probabilities is not None else None
                    for c in completions
                ]
            }
        if self._job.kind == "embed":
            return {"embedding": [c.embedding for c in completions]}
        if self._job.kind == "score":
            return {
                "logprob": [c.logprob for c in completions],
                "tokens": [None if c.error else c.scored for c in completions],
                "perplexity": [_perplexity(c) for c in completions],
            }
        return {}


def _perplexity(completion: Completion) -> float | None:
    """exp of the mean negative log-probability; None where no token was scored."""
    if completion.error is not None or not completion.scored or completion.logprob is None:
        return None
    return float(np.exp(-completion.logprob / completion.scored))
