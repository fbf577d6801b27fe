"""Lines of a JSONL output: the input's own text with keys added, or a record written from values.

Values of the input keep their digits, escapes and key order, because they are copied as text. The three characters
that some readers take for line ends (U+0085, U+2028, U+2029) are escaped; inside a JSON text they occur in strings
only, so that replacing them is safe.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

_SEPARATORS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_SPACE = " \t\n\r"


def dump(record: Mapping[str, Any]) -> str:
    """One line, no line end. Times are ISO 8601, bytes base64, decimals text; a NaN or an infinity is null."""
    try:
        text = _encode(record)
    except (ValueError, TypeError):
        text = _encode(_plain(record))
    return escaped(text)


def extended(line: str, added: str, keep: Collection[str] | None = None) -> str:
    """The object in `line` with the members of the object `added` after its own; of these only the `keep` names.

    A line that loses no member stays as it was, spaces included.
    """
    own = list(members(line)) if keep is not None else []
    if keep is None or all(name in keep for name, _ in own):
        body = line.strip(_SPACE)[:-1].rstrip(_SPACE)
    else:
        body = "{" + ", ".join(text for name, text in own if name in keep)
    separator = "" if body == "{" or added == "{}" else ", "
    return escaped(f"{body}{separator}{added[1:]}")


def members(line: str) -> Iterator[tuple[str, str]]:
    """The names of a valid JSON object's members, and each member's verbatim text."""
    position = _skip(line, line.index("{") + 1)
    while line[position] != "}":
        start = position
        name, position = _DECODER.raw_decode(line, position)
        position = _skip(line, _skip(line, position) + 1)
        _, position = _DECODER.raw_decode(line, position)
        yield name, line[start:position]
        position = _skip(line, position)
        if line[position] == ",":
            position = _skip(line, position + 1)


def escaped(text: str) -> str:
    """The text without the characters that could be taken for line ends."""
    if not text.isascii():
        for character, escape in _SEPARATORS.items():
            if character in text:
                text = text.replace(character, escape)
    return text


def _skip(line: str, position: int) -> int:
    while line[position] in _SPACE:
        position += 1
    return position


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal | UUID):
        return str(value)
    return value


# Numbers stay text: only their extent matters, and an integer of thousands of digits is refused by int().
_DECODER = json.JSONDecoder(strict=False, parse_int=str, parse_float=str)
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
