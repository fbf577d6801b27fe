"""The texts of control tokens, and how such a text inside a row's value stays literal.

A value that contains `<|im_end|>` must not end the message. Its occurrences are guarded: a mark is put inside the text,
so that neither a chat template nor a search for control tokens sees it. Before encoding, the control tokens that were
written in templates are renamed to private names, known to a copy of the tokenizer and occurring nowhere else; then
the marks are removed and the text is encoded whole. So spaces and merges around a literal are those of plain text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as RustTokenizer


class SpecialText:
    """Finds, guards and renames the texts of the control tokens in `ids` (text to id)."""

    def __init__(self, ids: Mapping[str, int], ignore_case: bool = False) -> None:
        """`ignore_case`: the tokenizer matches some of them after normalizing, which may fold case."""
        self.ids = dict(ids)
        # Longest first, so that the one that the tokenizer would match is found.
        alternatives = sorted((re.escape(text) for text in self.ids if text), key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(alternatives) or r"(?!)", re.IGNORECASE if ignore_case else 0)
        self._exact = re.compile("|".join(alternatives) or r"(?!)")
        # Random, so that no row can contain them; noncharacters and digits, so that no filter alters them.
        secret = secrets.randbits(64)
        self._mark = f"\ufdd0{secret}\ufdd0"
        self._names = {text: f"\ufdd1{secret}-{number}\ufdd1" for number, text in enumerate(self.ids)}

    def occurs(self, text: str) -> bool:
        """Whether `text` contains the text of a control token."""
        return self._pattern.search(text) is not None

    def count(self, text: str) -> int:
        """How many texts of control tokens `text` contains."""
        return sum(1 for _ in self._pattern.finditer(text))

    def guard(self, text: str, regions: Sequence[tuple[int, int]]) -> str:
        """Mark every control text that overlaps one of `regions` (start, end), in order, that came from a row."""
        parts: list[str] = []
        done = 0
        position = 0
        while (match := self._pattern.search(text, position)) is not None:
            start, end = match.span()
            if any(start < stop and begin < end for begin, stop in regions):
                parts += [text[done : start + 1], self._mark]
                done = position = start + 1
            else:
                position = end
        return "".join((*parts, text[done:]))

    def rename(self, text: str) -> str:
        """Private names for the control texts that are not guarded, then no marks."""
        return self._exact.sub(lambda match: self._names[match[0]], text).replace(self._mark, "")

    def renamed(self, tokenizer: RustTokenizer) -> RustTokenizer:
        """A copy of `tokenizer` that knows the control tokens by their private names only, under the same ids."""
        state: dict[str, Any] = json.loads(tokenizer.to_str())
        for token in state["added_tokens"]:
            if token["content"] in self._names:
                token["content"] = self._names[token["content"]]
                token["normalized"] = False
        model = state["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._names.get(text, text): number for text, number in vocabulary.items()}
        else:
            model["vocab"] = [[self._names.get(text, text), score] for text, score in vocabulary]
        if model.get("unk_token") in self._names:
            model["unk_token"] = self._names[model["unk_token"]]
        copy = RustTokenizer.from_str(json.dumps(state))
        assert all(copy.token_to_id(self._names[text]) == number for text, number in self.ids.items())
        return copy
