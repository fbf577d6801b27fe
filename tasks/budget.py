"""`job.budget`: how much a job may be before it is refused, in rows, tokens, hours or money.

A job that is larger is refused before a worker is started; it is not cut, because a part of the rows is another run,
with an id of its own, and the user should be the one who chooses it. The message says which --limit would fit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from data.errors import InputError
from tasks.figures import duration, plural
from tasks.moment import seconds_of
from tasks.settings import Settings

Unit = Literal["rows", "tokens", "seconds", "money"]

_SHAPES = "'100_000 rows', '5M tokens', '90m', '2h', '1h 30m' or, with workers.hourly_price, '50 EUR'"
_SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_COUNT = re.compile(r"(?P<number>\d[\d_]*(?:\.\d+)?)\s*(?P<scale>[kMG]?)\s*(?P<unit>rows?|tokens?|[A-Z]{3})")


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a job is predicted to be; seconds on the run's own workers."""

    rows: int
    tokens: float
    seconds: float
    start: float
    """Seconds of these that pass however few rows there are."""
    money: float


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount of one unit."""

    amount: float
    unit: Unit
    currency: str = ""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read the setting. InputError names what it may look like."""
        if found := _COUNT.fullmatch(text.strip()):
            amount = float(found["number"].replace("_", "")) * _SCALES[found["scale"]]
            if found["unit"].isupper():
                return cls(amount, "money", found["unit"])
            return cls(amount, "rows" if found["unit"].startswith("row") else "tokens")
        seconds = seconds_of(text)
        if seconds is not None:
            return cls(seconds, "seconds")
        raise InputError(f"job.budget = {text!r} is not understood: give {_SHAPES}")

    def refuse(self, predicted: Predicted, source: str) -> None:
        """InputError if the job is predicted to be more than this.

        Args:
            predicted: what the job is predicted to be.
            source: where predictions of time and tokens come from.
        """
        found = self._of(predicted)
        if found <= self.amount:
            return
        fixed = self._of_start(predicted)
        share = max(0.0, self.amount - fixed) / (found - fixed) if found > fixed else 0.0
        rows = _rounded_down(predicted.rows * share)
        remedy = f"take --limit {rows}, or raise job.budget" if rows else "raise job.budget: not one row fits"
        why = "" if self.unit == "rows" else f" ({source})"
        raise InputError(
            f"job.budget allows {self._shown(self.amount)}, and this job of {plural(predicted.rows, 'row')} is"
            f" predicted to take {self._shown(found)}{why}: {remedy}"
        )

    def _of(self, predicted: Predicted) -> float:
        by_unit = {"rows": predicted.rows, "tokens": predicted.tokens}
        return by_unit.get(self.unit, predicted.money if self.unit == "money" else predicted.seconds)

    def _of_start(self, predicted: Predicted) -> float:
        """The part of it that does not depend on the number of rows."""
        if self.unit in ("rows", "tokens") or not predicted.seconds:
            return 0.0
        return self._of(predicted) * predicted.start / predicted.seconds

    def _shown(self, amount: float) -> str:
        if self.unit == "seconds":
            return duration(amount)
        if self.unit == "money":
            return f"{amount:,.2f} {self.currency}"
        return f"{round(amount):,} {self.unit}"


def budget_of(settings: Settings) -> Budget | None:
    """The budget of a job, if it has one. InputError: it is not understood, or lacks the price that it needs."""
    if settings.job.budget is None:
        return None
    budget = Budget.parse(settings.job.budget)
    if budget.unit == "money" and not settings.workers.hourly_price:
        raise InputError(
            "job.budget is an amount of money: set workers.hourly_price, the price of a device for an hour"
        )
    return budget


def _rounded_down(rows: float) -> int:
    """To two digits, since it follows from an estimate; never up."""
    if rows < 100:
        return int(rows)
    unit = 10 ** (int(math.log10(rows)) - 1)
    return int(rows // unit * unit)
