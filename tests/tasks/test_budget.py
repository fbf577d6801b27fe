"""Budgets are read, and refuse with what would fit."""

from __future__ import annotations

import re

import pytest

from data.errors import InputError
from tasks.budget import Budget, Predicted

JOB = Predicted(rows=10_000, tokens=3e6, seconds=3630.0, start=30.0, money=2.0)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("100_000 rows", Budget(100_000, "rows")),
        ("1 row", Budget(1, "rows")),
        ("1.5M tokens", Budget(1.5e6, "tokens")),
        ("2h", Budget(7200, "seconds")),
        ("1h 30m", Budget(5400, "seconds")),
        ("0.5 h", Budget(1800, "seconds")),
        ("50 EUR", Budget(50, "money", "EUR")),
    ],
)
def test_amounts(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "2", "rows", "two hours", "2h rows", "50 euros", "-1 rows"])
def test_what_is_not_an_amount_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=re.escape("job.budget")):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["10_000 rows", "3M tokens", "1h 1m", "2 EUR"])
def test_a_job_within_its_budget_passes(text: str) -> None:
    Budget.parse(text).refuse(JOB, "a guess")


@pytest.mark.parametrize(
    ("text", "limit"), [("999 rows", 990), ("1M tokens", 3300), ("30m 30s", 5000), ("1 EUR", 4900)]
)
def test_a_larger_one_is_refused_with_the_limit_that_fits(text: str, limit: int) -> None:
    with pytest.raises(InputError, match=f"--limit {limit}, or raise job.budget"):
        Budget.parse(text).refuse(JOB, "a guess")


def test_nothing_fits_into_less_than_the_start() -> None:
    with pytest.raises(InputError, match="not one row fits"):
        Budget.parse("20s").refuse(JOB, "a guess")
