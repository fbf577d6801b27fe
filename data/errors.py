"""The errors a user can meet, one class for each exit status of the command line.

Every message is one line that names the bad thing (file, row, setting) and the remedy, and never holds text of a row.
Faults of single rows are not errors: they travel as `data.rows.BadRow` and are published as error rows.
"""

from __future__ import annotations

from typing import ClassVar

from data.exit_status import ExitStatus


class InputError(ValueError):
    """A setting, an input or a model is wrong; nothing was started."""

    status: ClassVar[ExitStatus] = ExitStatus.REFUSED


class RunError(RuntimeError):
    """The run failed after it had started; finished work is kept."""

    status: ClassVar[ExitStatus] = ExitStatus.FAILED


class Held(RuntimeError):
    """Another driver holds the lock of the run or of the output, or the devices, which are not to be waited for."""

    status: ClassVar[ExitStatus] = ExitStatus.HELD


def one_line(message: str) -> str:
    """The message with what a terminal would act on, line ends too, as escapes: names of files may hold anything."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in message)
