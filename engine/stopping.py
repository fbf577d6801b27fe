"""When an answer ends: a stop id, a stop string, or its length.

Stop strings are matched on bytes over a token-to-bytes table, so a match may begin and end inside tokens and inside
multi-byte characters, and no text is decoded while generating. Stop ids come from the caller (generation_config or
config, never the tokenizer). No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Literal

from engine.sequence import Sequence


class Stopping:
    """The stop conditions of a run, applied to one new token at a time."""

    def __init__(self, stop_ids: Seq[int], stop: Seq[str], token_bytes: Seq[bytes]) -> None:
        self._ids = frozenset(stop_ids)
        self._strings = [(text, text.encode()) for text in stop]
        self._token_bytes = token_bytes
        # The longest end of the text that can still grow into a match.
        self._keep = max((len(data) for _, data in self._strings), default=1) - 1

    def accept(self, sequence: Sequence, token: int) -> Literal["stop", "length"] | None:
        """Append `token` to the sequence unless it is a stop id; the reason if the sequence ends with it."""
        if token in self._ids:
            return "stop"
        sequence.tokens.append(token)
        if self._strings and self._match(sequence, token):
            return "stop"
        return "length" if len(sequence.tokens) >= sequence.max_tokens else None

    def _match(self, sequence: Sequence, token: int) -> bool:
        """Whether a stop string ends in the bytes of `token`; the one that ends first is remembered."""
        # A vocabulary padded for the hardware has ids beyond the table; they stand for no text.
        text = sequence.tail + (self._token_bytes[token] if token < len(self._token_bytes) else b"")
        first = len(text) + 1
        for stop, data in self._strings:
            at = text.find(data)
            if at >= 0 and at + len(data) < first:
                first, sequence.stop = at + len(data), stop
        sequence.tail = text[-self._keep :] if self._keep else b""
        return sequence.stop is not None
