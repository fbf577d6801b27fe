"""What is read, asked and written: the settings of the input, the job and the output.

Frozen models that are parsed once and passed down. Every field carries the one line that appears in `--help`, in the
commented configuration file and in docs/configuration.md. Composition, precedence and files belong to tasks.settings.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_CREDENTIALS = re.compile(r"[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@", re.IGNORECASE)

Kind = Literal["generate", "classify", "embed", "score"]


class Section(BaseModel):
    """One section of the configuration: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class ChatMessage(Section):
    """One message of a chat prompt; both fields are set by the user."""

    role: Annotated[str, Field(description="Who speaks: system, user, assistant or another role of the model.")]
    content: Annotated[str, Field(description="A Jinja template over the input columns.")]


def no_credentials(url: str) -> str:
    """ValueError for a URL with a password in it: it would be shown wherever the run's settings are."""
    if _CREDENTIALS.match(url):
        raise ValueError("must not hold a password: credentials come from the environment or the cloud's own files")
    return url


class InputSettings(Section):
    """Where the rows come from."""

    path: str = Field("", description="A file, folder, glob or fsspec URL of Parquet or JSONL, plain, gzip or zstd.")
    columns: tuple[str, ...] | None = Field(None, description="Columns to read; all of them if not set.")
    limit: int | None = Field(None, ge=0, description="Read at most this many rows.")
    on_too_long: Literal["error", "truncate"] = Field(
        "error", description="What becomes of a prompt longer than the model's context: an error row, or its beginning."
    )

    @field_validator("path")
    @classmethod
    def _no_credentials(cls, path: str) -> str:
        return no_credentials(path)


class JobSettings(Section):
    """What is asked of the model for every row."""

    kind: Kind = Field("generate", description="generate text, classify into choices, embed, or score a text.")
    prompt: str | tuple[ChatMessage, ...] | None = Field(
        None, description="A Jinja template over the columns, as raw text or as a list of {role, content} messages."
    )
    prompt_ids: str | None = Field(None, description="A list<int> column of token ids to use instead of a prompt.")
    choices: tuple[str, ...] = Field((), description="The answers that classify chooses from.")
    json_schema: dict[str, Any] | None = Field(
        None, alias="schema", description="A JSON schema that every answer follows."
    )
    column: str | None = Field(None, description="The text column that embed and score read.")
    budget: str | None = Field(
        None,
        description="Refuse a job predicted to be more than this: 100_000 rows, 5M tokens, 2h, or a price like 50 EUR.",
    )

    expected: str | None = Field(
        None, description="A column with the right answers; the report then gives the accuracy."
    )

    def problem(self) -> str | None:
        """What is wrong between the settings of this section, in one line; None if nothing is."""
        if self.kind == "classify" and len(self.choices) < 2:
            return "job.choices needs at least two choices for job.kind = 'classify'"
        if self.kind != "classify" and self.choices:
            return f"job.choices is only for job.kind = 'classify', not {self.kind!r}"
        if len(set(self.choices)) != len(self.choices) or "" in self.choices:
            return "job.choices holds the same choice twice, or an empty one"
        if self.prompt is not None and self.prompt_ids is not None:
            return "set job.prompt or job.prompt_ids, not both"
        if self.kind in ("generate", "classify") and self.prompt is None and self.prompt_ids is None:
            return f"job.kind = {self.kind!r} needs job.prompt or job.prompt_ids"
        if self.kind == "score" and self.column is None and self.prompt_ids is None:
            return "job.kind = 'score' needs job.column, the text to score"
        if self.kind == "embed" and self.column is None and self.prompt is None and self.prompt_ids is None:
            return "job.kind = 'embed' needs job.column or job.prompt"
        return None


class OutputSettings(Section):
    """Where the results go and what they hold."""

    path: str = Field(
        "", description="A folder or one .parquet or .jsonl file, local or s3://BUCKET/...; may hold {date} and {run}."
    )
    format: Literal["parquet", "jsonl"] = Field("parquet", description="Format of a folder's files.")
    error_budget: float = Field(0.01, ge=0, le=1, description="Share of error rows above which nothing is published.")
    include: tuple[str, ...] | None = Field(None, description="Input columns to publish; all of them if not set.")
    prefix: str = Field("", description="Put before the name of every added column.")

    @field_validator("path")
    @classmethod
    def _known_suffix(cls, path: str) -> str:
        name = path.rstrip("/").rsplit("/", 1)[-1]
        if name.endswith((".csv", ".json", ".gz", ".zst", ".arrow", ".feather")):
            raise ValueError("must be a folder, or one file named .parquet or .jsonl")
        return no_credentials(path)
