"""Canary rows: a few fixed texts that every process which reads a checkpoint must turn into the same token ids.

The driver renders and tokenizes the rows of a run, a worker decodes their answers; between the two somebody may have
replaced a file of the model. So the driver says what it made of the canaries, and a worker compares what it makes of
them with its own tokenizer and chat template. The texts are short, so that answering them costs a fraction of a second,
and of several kinds, so that no plausible change of a vocabulary leaves all of them alone.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from data.chat import ChatTemplate
from data.checkpoint import Checkpoint
from data.errors import InputError
from data.templates import TemplateFailed

TEXTS = (
    "The capital of France is",
    "1, 2, 3, 4, 5, 6,",
    "My parcel has not arrived. Where is my order?",
    "def add(a, b):\n    return a",
    "Sehr geehrte Damen und Herren, vielen Dank für Ihre Nachricht",
    "Yes or no: is water wet?",
)
_DAY = datetime(2020, 1, 1)  # some chat templates write the date


def canary_prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """The token ids of the texts, framed as raw prompts are. Those over the context are left out."""
    found = checkpoint.tokenizer().encode_batch(TEXTS, special=True)
    return [ids.tolist() for ids in found if 0 < len(ids) < checkpoint.context_length]


def canary_outline(checkpoint: Checkpoint) -> dict[str, str]:
    """The checkpoint's outline, with digests of the canaries' token ids, as raw prompts and as messages."""
    tokenizer = checkpoint.tokenizer()
    chats = [text for text in map(_Chat(checkpoint), TEXTS) if text is not None]
    return {
        **checkpoint.outline(),
        "token ids": _digest([ids.tolist() for ids in tokenizer.encode_batch(TEXTS, special=True)]),
        "token ids of messages": _digest([ids.tolist() for ids in tokenizer.encode_batch(chats, special=False)]),
    }


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What two outlines do not agree on, by name."""
    return [name for name in expected if expected[name] != found.get(name)]


class _Chat:
    """A text as the only message of a chat; None where the model has no template, or one that refuses it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._template: ChatTemplate | None = None
        if checkpoint.chat_template is not None:
            try:
                self._template = ChatTemplate(checkpoint.chat_template, checkpoint.tokenizer().special_tokens, _DAY)
            except InputError:  # raw prompts need none; a job that does is refused elsewhere
                self._template = None

    def __call__(self, text: str) -> str | None:
        try:
            return None if self._template is None else self._template.render([{"role": "user", "content": text}])
        except TemplateFailed:
            return None


def _digest(ids: list[list[int]]) -> str:
    return hashlib.sha256(repr(ids).encode()).hexdigest()
