"""The events of a run that a person wants to read as a line, and those lines. None of them holds text of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.figures import clock_time, duration, plural, printable
from tasks.outlook import devices, other_run

MESSAGE_LENGTH = 400


def milestone(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """The line for an event and its rich style; None for events that only move counters."""
    line = _LINES.get(event["event"])
    if line is None:
        return None
    text, style = line(event)
    return printable(text), style


def _run_started(event: Mapping[str, Any]) -> tuple[str, str]:
    where = "the CPU" if event["device"] == "cpu" else "GPUs"
    until = f", until {clock_time(event['deadline'])}" if "deadline" in event else ""
    return f"Run {event['run']} with {plural(event['workers'], 'worker')} on {where}{until}, in {event['folder']}", ""


def _planned(event: Mapping[str, Any]) -> tuple[str, str]:
    parts = [plural(event["input_tokens"], "input token"), plural(event["shards"], "shard")]
    if event["folded"]:
        parts.append(f"{event['folded']:,} answered with an equal prompt")
    if event["errors"]:
        listed = ", ".join(f"{count:,} {code}" for code, count in sorted(event["errors"].items()))
        parts.append(f"without a prompt: {listed}")
    which = "" if event["window"] == 0 and event["last"] else f" of window {event['window']}"
    return f"Planned {plural(event['rows'], 'row')}{which}: {'; '.join(parts)}", ""


def _resumed(event: Mapping[str, Any]) -> tuple[str, str]:
    return (
        f"Resumed: {plural(event['rows'], 'row')} in {plural(event['shards'], 'shard')} are finished already",
        "green",
    )


def _cached(event: Mapping[str, Any]) -> tuple[str, str]:
    return f"{plural(event['rows'], 'row')} answered by earlier runs", "green"


def _ready(event: Mapping[str, Any]) -> tuple[str, str]:
    precision = f" in {event['precision']}" if "precision" in event else ""
    return f"Worker {event['worker']} is ready on {event['device']}{precision} after {duration(event['seconds'])}", ""


def _died(event: Mapping[str, Any]) -> tuple[str, str]:
    held = len(event["shards"])
    again = f"; {plural(held, 'shard')} will be tried again" if held else ""
    return f"Worker {event['worker']} ended: {event['how']}{again}", "yellow"


def _failed(event: Mapping[str, Any]) -> tuple[str, str]:
    return _cut(f"Worker {event['worker']} could not finish shard {event['shard']}: {event['message']}"), "red"


def _refused(event: Mapping[str, Any]) -> tuple[str, str]:
    return _cut(f"Worker {event['worker']} refused to start: {event['message']}"), "red"


def _warning(event: Mapping[str, Any]) -> tuple[str, str]:
    return _cut(f"Warning: {event['message']}"), "yellow"


def _deadline(event: Mapping[str, Any]) -> tuple[str, str]:
    parts = [f"{plural(event['waiting'], 'shard')} not begun"] if event["waiting"] else []
    if event["given_up"]:
        parts.append(f"{plural(event['given_up'], 'shard')} given up")
    return f"Out of time{': ' if parts else ''}{', '.join(parts)}", "yellow"


def _yielding(event: Mapping[str, Any]) -> tuple[str, str]:
    return f"Makes way for {other_run(event)}: shards in flight are finished first", "yellow"


def _waiting(event: Mapping[str, Any]) -> tuple[str, str]:
    return f"Waits for {other_run(event)} to leave {devices(event['devices'])}", "yellow"


def _going_on(_event: Mapping[str, Any]) -> tuple[str, str]:
    return "The devices are this run's now", "green"


def _publishing(event: Mapping[str, Any]) -> tuple[str, str]:
    if event.get("partial"):
        return "Assembling a partial result of what is answered", "yellow"
    return "Every row is answered; assembling the result", ""


def _published(event: Mapping[str, Any]) -> tuple[str, str]:
    return f"Published {plural(event['rows'], 'row')} in {event['path']}", "green"


def _finished(event: Mapping[str, Any]) -> tuple[str, str]:
    message = event.get("message")
    style = {"completed": "green", "partial": "yellow"}.get(event["state"], "red")
    return _cut(f"Run {event['state']}" + (f": {message}" if message else "")), style


def _note(event: Mapping[str, Any]) -> tuple[str, str]:
    return str(event["message"]), ""


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 3] + "..."


_LINES = {
    "run_started": _run_started,
    "planned": _planned,
    "resumed": _resumed,
    "cached": _cached,
    "ready": _ready,
    "died": _died,
    "failed": _failed,
    "refused": _refused,
    "warning": _warning,
    "note": _note,
    "deadline": _deadline,
    "yielding": _yielding,
    "waiting": _waiting,
    "going_on": _going_on,
    "publishing": _publishing,
    "published": _published,
    "finished": _finished,
}
