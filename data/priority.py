"""Which rows are to be answered first: a number for each row, the higher the earlier.

It is an expression over the columns, most often the name of one. It decides an order and nothing else: a row whose
value is no number is answered last, whatever is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.errors import InputError
from data.rows import BadRow, Record
from data.templates import Template, TemplateFailed

SETTING = "schedule.priority"
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
_TRUTH = {"True": 1.0, "False": 0.0}


class Priority:
    """The expression of `schedule.priority`, in the language of prompts: `score`, `2 * urgent + (tier == "gold")`."""

    def __init__(self, text: str) -> None:
        """InputError if it is no expression, or reads no column."""
        if "{{" in text or "}}" in text or "{%" in text:
            raise InputError(f"{SETTING} = {text!r}: write the expression alone, without braces")
        self.text = text
        self.missing = 0
        """Rows without a number so far, besides those that cannot be read at all."""
        self._template = Template(f"{{{{ {text} }}}}", SETTING)
        self.columns = self._template.columns
        if not self.columns:
            raise InputError(f"{SETTING} = {text!r} reads no column of the input")

    def check(self, columns: Sequence[str], schema: pa.Schema | None) -> None:
        """InputError if the input lacks a column that it reads, or a column that it names is of no numbers."""
        for name in self.columns:
            if name not in columns:
                raise InputError(f"{SETTING} reads column {name!r}, which the input lacks: it has {', '.join(columns)}")
        if schema is not None and self.columns == (self.text.strip(),):
            found = schema.field(self.columns[0]).type
            if not any(is_kind(found) for is_kind in _NUMBERS):
                raise InputError(f"{SETTING}: column {self.text!r} is {found}, not a number")

    def of(self, records: Sequence[Record | BadRow]) -> npt.NDArray[np.float64]:
        """The priority of each row, minus infinity for one without."""
        values = np.full(len(records), -math.inf)
        for row, record in enumerate(records):
            if not isinstance(record, BadRow):
                value = self._number(record)
                self.missing += value is None
                values[row] = -math.inf if value is None else value
        return values

    def _number(self, record: Record) -> float | None:
        try:
            text = self._template.render(record)
            value = _TRUTH[text] if text in _TRUTH else float(text)
        except (TemplateFailed, ValueError):
            return None
        return None if math.isnan(value) else value
