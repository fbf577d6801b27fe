"""The token ids of an answer as the model would have written it behind its prompt, with the token that ends it.

Which end token that is, of the several that may end an answer, a chat template tells: the first one behind an answer
that it renders. Raw text ends with the tokenizer's end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from data.chat import ChatTemplate
from data.checkpoint import Checkpoint
from data.errors import InputError
from data.settings import JobSettings
from data.templates import TemplateFailed
from data.tokenizer import Ids

_QUESTION, _ANSWER = "question", "answer"


class AnswerTokens:
    """Encodes the answers of one job for one checkpoint."""

    def __init__(self, job: JobSettings, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer()
        self._stops = checkpoint.stop_ids
        chat = job.prompt is not None and not isinstance(job.prompt, str)
        end = self._chat_end(checkpoint.chat_template or "") if chat else None
        self.end: int | None = self._text_end() if end is None else end
        """The id that ends an answer; None if the model has none."""

    def encode(self, answers: Sequence[str], ended: Sequence[bool]) -> list[Ids]:
        """The ids of each answer, uint32 [tokens]; with the end token where it `ended`, rather than was cut off."""
        end = np.array([] if self.end is None else [self.end], np.uint32)
        found = self._tokenizer.encode_literal(answers)
        return [np.append(ids, end) if whole else ids for ids, whole in zip(found, ended, strict=True)]

    def _chat_end(self, template: str) -> int | None:
        messages = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
        try:
            rendered = ChatTemplate(template, self._tokenizer.special_tokens, datetime.now()).render(messages)
        except (InputError, TemplateFailed):
            return None
        behind = rendered.rpartition(_ANSWER)[2]
        ids = self._tokenizer.encode_batch([behind], special=False)[0].tolist()
        return next((number for number in ids if number in self._stops), None)

    def _text_end(self) -> int | None:
        named = self._tokenizer.special_text.ids.get(self._tokenizer.special_tokens.get("eos_token", ""))
        return named if named in self._stops else next(iter(self._stops), None)
