"""The signals that end the program as Ctrl-C does: SIGTERM, and SIGHUP, which a closed terminal sends.

They raise KeyboardInterrupt with the signal's name, so that what is at work is ended in order. A terminal that closes
sends SIGHUP more than once, from the kernel and from the shell, where a second Ctrl-C means that the user will not
wait; so SIGHUP counts once. Where it is ignored, as under nohup, it stays ignored.
"""

from __future__ import annotations

import signal
from types import FrameType


def take_signals() -> None:
    """Have both signals raise KeyboardInterrupt in the main thread from now on."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)


def interrupted(error: BaseException) -> bool:
    """Whether an error came while an interrupt was dealt with, as where Prefect cannot tell its server of it."""
    from prefect.exceptions import TerminationSignal  # what SIGTERM raises while a flow runs

    behind = error.__context__
    while behind is not None and not isinstance(behind, (KeyboardInterrupt, TerminationSignal)):
        behind = behind.__context__
    return behind is not None


def _interrupt(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt(f"by {signal.Signals(number).name}")
