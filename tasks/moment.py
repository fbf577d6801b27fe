"""When something is due, as a setting says it: so long after the start, or at a time of the clock."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from data.errors import InputError

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])")


def seconds_of(text: str) -> float | None:
    """Seconds of a duration such as `8h`, `1h 30m` or `45s`; None if the text is none."""
    compact = text.replace(" ", "")
    if not _DURATION.fullmatch(compact):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(compact))


def parse(text: str) -> timedelta | datetime:
    """A duration, or an ISO time with a zone. ValueError says what would be right."""
    seconds = seconds_of(text)
    if seconds is not None and 0 < seconds < timedelta.max.total_seconds():
        return timedelta(seconds=seconds)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("must be a duration such as 8h or 1h30m, or a time with a zone such as 2026-01-31T06:00+01:00")
    return moment


def moment_of(text: str, now: datetime) -> datetime:
    """When a deadline is for an attempt that starts `now` (with a zone), in UTC. InputError: that is over."""
    given = parse(text)
    try:
        moment = (now + given if isinstance(given, timedelta) else given).astimezone(UTC)
    except OverflowError:
        raise InputError(f"schedule.deadline = {text!r} is too far away; leave it out to have none") from None
    if moment <= now:
        raise InputError(f"schedule.deadline = {text!r} has passed: set a later one, or leave it out to finish the run")
    return moment
