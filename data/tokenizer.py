"""Text to token ids and back, over the `tokenizers` library alone: importing transformers would cost seconds and torch.

The ids are those of transformers' AutoTokenizer for the same folder: the tokens that tokenizer_config.json adds are
added here too, its add_bos_token is ignored beside a tokenizer.json as it is there, and truncation and padding stored
in tokenizer.json are switched off. Control tokens written in a template are encoded as control tokens; the same text
inside a row's value must not be, and `encode_guarded` is how (`data.special_text` finds and marks such text).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from data.errors import InputError
from data.special_text import SpecialText
from data.token_bytes import token_bytes

Ids = npt.NDArray[np.uint32]

# An encoding keeps every token as a string until it is dropped, so the text of a batch is bounded; and batches of a few
# hundred short texts stay in the processor's cache: 47 us of CPU a row, where batches of 20,000 took 73.
_BATCH_CHARACTERS = 1 << 19
_BATCH_TEXTS = 256
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A tokenizer.json with its tokenizer_config.json. Ids are uint32 arrays of shape [tokens]."""

    def __init__(self, folder: Path) -> None:
        """InputError if tokenizer.json is missing or invalid."""
        path = folder / "tokenizer.json"
        if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
            raise InputError(f"{path} is not a regular file")
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = RustTokenizer.from_str(text)
        except FileNotFoundError:
            raise InputError(f"{folder} has no tokenizer.json: save the tokenizer in the fast format") from None
        except Exception as error:  # the Rust library raises nothing narrower
            raise InputError(f"{path} is not a valid tokenizer: {str(error).splitlines()[0]}") from error
        self.config = read_config(folder)
        self._complete()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token.content: number for number, token in added.items() if token.special}
        self.special_text = SpecialText(special, any(t.normalized for t in added.values() if t.special))
        self._guarded: RustTokenizer | None = None
        probe = self._tokenizer.encode("a", add_special_tokens=True)
        body = [index for index, mask in enumerate(probe.special_tokens_mask) if not mask]
        self.prefix: tuple[int, ...] = tuple(probe.ids[: body[0]]) if body else ()
        self.suffix: tuple[int, ...] = tuple(probe.ids[body[-1] + 1 :]) if body else ()
        """Control tokens that `special=True` puts before and after a text."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included; the model's embedding may have more rows."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def highest_id(self) -> int:
        """The highest id that a text can give; a padding token, which some add beyond the vocabulary, is left out."""
        vocabulary = self.vocabulary
        vocabulary.pop(self._named("pad_token") or "", None)
        return max(vocabulary.values(), default=0)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which `decode` leaves out."""
        return frozenset(self.special_text.ids.values())

    @property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token and so on, as far as the model has them: what chat templates may refer to."""
        return {name: content for name in _NAMED if (content := self._named(name)) is not None}

    def encode_batch(self, texts: Sequence[str], special: bool) -> list[Ids]:
        """Ids of each text, in parallel threads. `special` frames each with `prefix` and `suffix`."""
        return _encode(self._tokenizer, texts, special)

    def encode_guarded(self, texts: Sequence[str], special: bool) -> list[Ids]:
        """As `encode_batch`, for texts in which `SpecialText.guard` marked the control texts that are literal."""
        if not texts:
            return []
        if self._guarded is None:
            self._guarded = self.special_text.renamed(self._tokenizer)
        return _encode(self._guarded, [self.special_text.rename(text) for text in texts], special)

    def encode_literal(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text with no control token at all, whatever it contains."""
        found = self.encode_batch(texts, special=False)
        for index, text in enumerate(texts):
            if self.special_text.occurs(text):
                found[index] = self.encode_guarded([self.special_text.guard(text, [(0, len(text))])], special=False)[0]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, control tokens left out, spaces exactly as the model wrote them."""
        return str(self._tokenizer.decode([int(number) for number in ids], skip_special_tokens=True))

    def token_bytes(self) -> list[bytes]:
        """The bytes each id stands for, index = id: joined, they are the UTF-8 of the decoded text. Control: b""."""
        return token_bytes(json.loads(self._tokenizer.to_str()), self.vocab_size, self.special_ids)

    @cached_property
    def _longest_token(self) -> int | None:
        state = json.loads(self._tokenizer.to_str())
        kinds = {(state.get(part) or {"type": None})["type"] for part in ("normalizer", "decoder")}
        if kinds not in ({None, "ByteLevel"}, {"NFC", "ByteLevel"}):
            return None  # a normalizer may drop characters, and an unknown word of any length is one token
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def most_characters(self, tokens: int) -> int | None:
        """A text of more characters than this has more than `tokens` ids. None where only encoding can tell.

        Encoding a 60 MB text takes gigabytes, and a prompt over the context needs no ids.
        """
        longest = self._longest_token
        return None if longest is None else 4 * tokens * longest  # 4: what NFC can join into one character

    def _named(self, name: str) -> str | None:
        value = self.config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        return content if isinstance(content, str) else None

    def _complete(self) -> None:
        """Add what transformers adds when it loads the folder: the tokens that only the configuration names."""
        known = {token.content: token for token in self._tokenizer.get_added_tokens_decoder().values()}
        decoder: dict[str, Any] = self.config.get("added_tokens_decoder") or {}
        for _, token in sorted(decoder.items(), key=lambda pair: int(pair[0])):
            if token["content"] not in known:
                flags = {key: token.get(key, False) for key in ("single_word", "lstrip", "rstrip", "special")}
                known[token["content"]] = AddedToken(token["content"], normalized=token.get("normalized"), **flags)
                self._tokenizer.add_tokens([known[token["content"]]])
        extra = self.config.get("additional_special_tokens") or self.config.get("extra_special_tokens") or []
        contents = [token.get("content") if isinstance(token, dict) else token for token in extra]
        for content in [*self.special_tokens.values(), *contents]:
            if isinstance(content, str) and not (content in known and known[content].special):
                token = known.get(content) or AddedToken(content, normalized=False)
                token.special = True
                self._tokenizer.add_special_tokens([token])


def read_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, over special_tokens_map.json for the names that it leaves out; empty if neither exists."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            try:
                merged.update(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError, RecursionError) as error:
                raise InputError(f"{path} is not a JSON object: {error}") from error
    return merged


def _encode(tokenizer: RustTokenizer, texts: Sequence[str], special: bool) -> list[Ids]:
    found: list[Ids] = []
    for batch in _batches(texts):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=special)
        found.extend(np.array(encoding.ids, np.uint32) for encoding in encodings)
    return found


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = characters = 0
    for index, text in enumerate(texts):
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or index + 1 - start == _BATCH_TEXTS:
            yield texts[start : index + 1]
            start, characters = index + 1, 0
    if start < len(texts):
        yield texts[start:]
