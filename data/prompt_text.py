"""The text of a row's prompt: templates of the job, put through the model's chat template where it is a chat.

Texts are rendered twice only where a row contains the text of a control token: the second time the row's parts are
marked, and such texts in them are guarded, so that they stay literal (`data.special_text`). Token ids and the limits
of the context are left to `data.prompts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from data.chat import ROLES, ChatTemplate
from data.checkpoint import Checkpoint
from data.error_codes import Code
from data.errors import InputError
from data.rows import BadRow
from data.settings import ChatMessage, JobSettings
from data.templates import ColumnText, Rendered, Template, TextSource
from data.tokenizer import Tokenizer


class Refused(Exception):
    """A row that has no prompt."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.row = BadRow(code, message)


class PromptText:
    """Renders the prompt of a job; `empty` if the job has none (score without a condition)."""

    def __init__(self, job: JobSettings, checkpoint: Checkpoint, tokenizer: Tokenizer, now: datetime) -> None:
        """InputError for an invalid template, a prompt that the kind lacks, or messages that the model refuses."""
        self._special = tokenizer.special_text
        self._chat: ChatTemplate | None = None
        self._roles: list[Template] = []
        self._sources: list[TextSource] = []
        self.warnings: list[str] = []
        if job.prompt is None:
            self._read_column(job)
        elif isinstance(job.prompt, str):
            self._sources = [Template(job.prompt, "job.prompt")]
            if checkpoint.has_chat_template and job.kind in ("generate", "classify"):
                self.warnings.append(
                    "job.prompt is raw text, but the model has a chat template: a list of {role, content} would use it"
                )
        else:
            self._read_messages(job.prompt, checkpoint, tokenizer, now)
        # Control tokens that the templates themselves write, as a raw prompt with its own chat marks does.
        templates = [source for source in self._sources if isinstance(source, Template)]
        self._written = sum(self._special.count(template.source) for template in templates)

    def _read_column(self, job: JobSettings) -> None:
        if job.kind == "embed" and job.column is not None:
            self._sources = [ColumnText(job.column)]
        elif job.kind != "score":
            missing = "job.prompt or job.column" if job.kind == "embed" else "job.prompt"
            raise InputError(f"{missing} is not set: say what is asked of the model for every row")

    def _read_messages(
        self, messages: Sequence[ChatMessage], checkpoint: Checkpoint, tokenizer: Tokenizer, now: datetime
    ) -> None:
        if checkpoint.chat_template is None:
            raise InputError("job.prompt is a list of messages, but the model has no chat template: write it as text")
        if not messages:
            raise InputError("job.prompt has no messages")
        self._chat = ChatTemplate(checkpoint.chat_template, tokenizer.special_tokens, now)
        self._roles = [Template(message.role, "a role in job.prompt") for message in messages]
        self._sources = [Template(message.content, "job.prompt") for message in messages]
        if not any(role.columns for role in self._roles):
            for message in messages:
                if message.role not in ROLES:
                    raise InputError(f"job.prompt: unknown role {message.role!r}: use one of {', '.join(ROLES)}")
            self._chat.check([message.role for message in messages])
        if self._chat.writes_date:
            self.warnings.append("the model's chat template may write the date of the run into every prompt")

    @property
    def empty(self) -> bool:
        return not self._sources

    @property
    def framed(self) -> bool:
        """Whether the tokenizer's control tokens go around the text; a chat template writes its own."""
        return self._chat is None

    @property
    def writes_date(self) -> bool:
        return self._chat is not None and self._chat.writes_date

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(sorted({name for source in (*self._sources, *self._roles) for name in source.columns}))

    def check_names(self, columns: Sequence[str]) -> None:
        """InputError if a column that the templates seem to read is hidden by a template function."""
        for template in (*self._sources, *self._roles):
            for name in template.functions if isinstance(template, Template) else ():
                if name in columns:
                    raise InputError(
                        f"job.prompt reads {name!r}, a template function: write row[{name!r}] for the column"
                    )

    def text(self, record: Mapping[str, Any]) -> tuple[str, bool]:
        """The text, and whether control texts in it are guarded. TemplateFailed or Refused if the row has none."""
        contents = [source.render(record) for source in self._sources]
        if self._holds_special(contents, record):
            return self.compose(self.marked(record), record), True
        return self._compose(contents, record), False

    def marked(self, record: Mapping[str, Any]) -> list[Rendered]:
        """The rendered templates with the row's parts of them, to be shortened and composed."""
        return [source.render_marked(record) for source in self._sources]

    def compose(self, contents: Sequence[Rendered], record: Mapping[str, Any]) -> str:
        """One text of rendered templates, the control texts in the row's parts guarded."""
        return self._compose([self._special.guard(content.text, content.regions) for content in contents], record)

    def _compose(self, contents: Sequence[str], record: Mapping[str, Any]) -> str:
        if self._chat is None:
            if not contents[0].strip():
                raise Refused(Code.BLANK_PROMPT, "the prompt is blank")
            return contents[0]
        roles = [role.render(record) for role in self._roles]
        if not all(role in ROLES for role in roles):
            raise Refused(Code.UNKNOWN_ROLE, f"the role of a message is none of {', '.join(ROLES)}")
        asked = [text for role, text in zip(roles, contents, strict=True) if role not in ("system", "developer")]
        if not any(text.strip() for text in asked or contents):
            raise Refused(Code.BLANK_PROMPT, "the messages are blank")
        return self._chat.render([{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)])

    def _holds_special(self, contents: Sequence[str], record: Mapping[str, Any]) -> bool:
        """Whether the row's part of the contents has the text of a control token."""
        if not self._written:
            return any(map(self._special.occurs, contents))
        if sum(map(self._special.count, contents)) != self._written:
            return True
        return any(self._special.occurs(str(record.get(name))) for source in self._sources for name in source.columns)
