"""How the program ends, for scripts and schedulers: the statuses, each with its meaning and what to do.

docs/errors.md is written from this table.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """The exit statuses of `overnight infer`; the other commands use those that apply to them."""

    meaning: str
    remedy: str

    def __new__(cls, value: int, meaning: str, remedy: str) -> ExitStatus:
        """A member is its number, with two sentences beside it."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning, member.remedy = meaning, remedy
        return member

    COMPLETE = (0, "This run's complete result exists and verifies.", "Nothing: running it again changes nothing.")
    FAILED = (
        1,
        "The run failed after it had started, or has more error rows than output.error_budget allows. Nothing is "
        "published; finished work is kept.",
        "Do what the message says, then run the same command again: it resumes.",
    )
    REFUSED = (
        2,
        "A setting, an input or a model is wrong. Nothing was started and no result changed.",
        "The message names the setting, file or column, and what would be right.",
    )
    PARTIAL = (
        3,
        "A valid partial result is published: the deadline came first.",
        "Run the same command again without the deadline, or with a later one, to finish it.",
    )
    HELD = (
        4,
        "Another process holds the run or the output; or the devices, with schedule.overlap = 'refuse'.",
        "Wait for it to end, or end it; `overnight status` shows how far it is.",
    )
    INTERRUPTED = (
        130,
        "Interrupted by SIGINT, SIGTERM or SIGHUP (a closed terminal); finished work is kept.",
        "Run the same command to resume; `overnight status` shows it. Under nohup SIGHUP is ignored.",
    )
