"""What one row of the input is before it becomes a prompt: a record, or the reason why it could not be read.

A `BadRow` is published as an error row under its code. The message names places (line, byte) and never repeats the
row's text, so that it may be logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from data.error_codes import Code


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that has no answer. `message` is one line without row text."""

    code: Code
    message: str

    def __post_init__(self) -> None:
        """ValueError for a code that is not registered."""
        object.__setattr__(self, "code", Code.registered(self.code))


Record: TypeAlias = Mapping[str, Any]
"""Column name to plain Python value (None, bool, int, float, str, list, dict; Parquet adds dates, decimals, bytes)."""
