"""How a run stands to its deadline and to other runs, in words: the same in the live view, a log and in `status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def other_run(event: Mapping[str, Any]) -> str:
    """The run that an event of tasks.turns names."""
    urgency = f", urgency {event['urgency']}" if event["urgency"] else ""
    return f"run {event['run']} (process {event['process']}{urgency})"


def devices(names: list[str]) -> str:
    """The devices that such an event names."""
    return "the CPU" if names == ["cpu"] else ", ".join(names)
