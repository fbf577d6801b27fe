"""Columns that prompts are made of: whether their types will do, and the ids in a column of ids."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from data.error_codes import Code
from data.errors import InputError
from data.rows import BadRow

_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


def check_type(name: str, found: pa.DataType, ids: bool) -> None:
    """InputError if a column of type `found` cannot be read as text, or with `ids` as a list of token ids."""
    types = pa.types
    if types.is_dictionary(found):
        found = found.value_type
    if ids:
        lists = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
        if not lists or not types.is_integer(found.value_type):
            raise InputError(f"job.prompt_ids: column {name!r} is {found}, not a list of integers")
    elif any(is_kind(found) for is_kind in _BINARY):
        raise InputError(f"the prompt reads column {name!r}, which is {found}: store text as a string column")


def parse_ids(value: Any, vocab_size: int) -> list[int] | BadRow:
    """The token ids in a row's value, or why it has none."""
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        return BadRow(Code.BAD_PROMPT_IDS, "not a list of integers")
    if not value:
        return BadRow(Code.BLANK_PROMPT, "the list of ids is empty")
    if min(value) < 0 or max(value) >= vocab_size:
        return BadRow(Code.BAD_PROMPT_IDS, f"an id is not in 0 to {vocab_size - 1}")
    return value
