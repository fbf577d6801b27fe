"""Arrow values as Python's, also where Python has none: text that is not UTF-8, a date beyond the year 9999.

Parquet writers check neither, and pyarrow raises for the whole column. Here such a value costs its own row alone.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

UNREADABLE = (ValueError, OverflowError, KeyError)
"""What `as_py` raises: UnicodeDecodeError and ArrowInvalid are ValueErrors; KeyError is an unknown time zone."""


def records(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table. A value that Python cannot hold becomes text: replacement characters, or its number."""
    try:
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows
    except UNREADABLE:
        columns = [[_shown(value) for value in column] for column in table.columns]
        return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _shown(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        # A text inside a list or struct has no bytes of its own to show.
        return scalar.as_buffer().to_pybytes().decode(errors="replace") if hasattr(scalar, "as_buffer") else None
    except UNREADABLE:
        return str(scalar.value) if isinstance(getattr(scalar, "value", None), int) else None
