"""The bytes that each token id stands for, read off the decoder in tokenizer.json.

Stop strings are matched on bytes while tokens arrive, long before the text can be decoded. Three families exist:
byte-level BPE (GPT-2's table of printable stand-ins for bytes), SentencePiece (`▁` for a space, `<0xNN>` for a byte)
and WordPiece (`##` for a piece that continues a word).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def byte_characters() -> dict[str, int]:
    """GPT-2's table, inverted: printable character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    hidden = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + index): byte for index, byte in enumerate(hidden)}


def token_bytes(tokenizer: Mapping[str, Any], size: int, silent: Collection[int] = ()) -> list[bytes]:
    """Bytes of each id below `size`, b"" for ids of `silent` (control tokens) and for ids that no token has.

    Args:
        tokenizer: the parsed tokenizer.json.
    """
    vocabulary = tokenizer["model"]["vocab"]
    if not isinstance(vocabulary, Mapping):
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    kinds = _decoder_types(tokenizer.get("decoder"))
    table = [b""] * size
    convert = _converter(kinds, tokenizer.get("decoder") or {})
    for text, number in vocabulary.items():
        if number < size:
            table[number] = convert(text)
    for token in tokenizer.get("added_tokens", ()):
        table[token["id"]] = token["content"].encode()  # added tokens are text as they stand
    for number in silent:
        table[number] = b""
    return table


def _decoder_types(decoder: Mapping[str, Any] | None) -> set[str]:
    if not decoder:
        return set()
    if decoder["type"] == "Sequence":
        return set().union(*(_decoder_types(part) for part in decoder["decoders"]))
    return {decoder["type"]}


def _converter(kinds: set[str], decoder: Mapping[str, Any]) -> Any:
    if "ByteLevel" in kinds:
        characters = byte_characters()

        def byte_level(text: str) -> bytes:
            return b"".join(
                bytes([characters[character]]) if character in characters else character.encode() for character in text
            )

        return byte_level
    if "WordPiece" in kinds:
        prefix = decoder.get("prefix", "##")

        def word_piece(text: str) -> bytes:
            return text.removeprefix(prefix).encode() if text.startswith(prefix) else f" {text}".encode()

        return word_piece

    def sentence_piece(text: str) -> bytes:
        match = _BYTE.match(text) if "ByteFallback" in kinds else None
        return bytes([int(match[1], 16)]) if match else text.replace("▁", " ").encode()

    return sentence_piece
