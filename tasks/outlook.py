"""How a run stands to its deadline, in words: the same in the live view, in a log and in `overnight status`."""

from __future__ import annotations

from tasks.figures import duration, plural


def against_deadline(seconds_left: float, eta: float | None, rows_left: int) -> str:
    """`eta` is in how many seconds the rows that are left would be answered; None while that cannot be said."""
    if seconds_left <= 0:
        return "the deadline has come"
    text = f"deadline in {duration(seconds_left)}"
    if eta is None:
        return text
    if eta <= seconds_left:
        return f"{text}, to be finished {duration(seconds_left - eta)} before it"
    return f"{text}, about {plural(round(rows_left * (1 - seconds_left / eta)), 'row')} will have no answer then"
