"""The signals that end the program: SIGINT, which is Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends.

They raise KeyboardInterrupt, the latter two with the signal's name, so that what is at work is ended in order. A
terminal that closes sends SIGHUP more than once, from the kernel and from the shell, where a second Ctrl-C means that
the user will not wait; so SIGHUP counts once. What is ignored, as under nohup or in the background of a script, stays
ignored.
"""

from __future__ import annotations

import signal
from types import FrameType

_taken: list[int] = []


def take_signals() -> None:
    """Have all three signals raise KeyboardInterrupt in the main thread from now on."""
    signal.signal(signal.SIGTERM, _interrupt)
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def interrupted() -> bool:
    """Whether a signal was taken. What it raised may be another error by now, where it came while a library worked."""
    return bool(_taken)


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """The interrupt that was dealt with when an error came, as where Prefect cannot tell its server of it."""
    from prefect.exceptions import TerminationSignal  # what SIGTERM raises while a flow runs

    behind = error.__context__
    while behind is not None and not isinstance(behind, (KeyboardInterrupt, TerminationSignal)):
        behind = behind.__context__
    return KeyboardInterrupt("by SIGTERM") if isinstance(behind, TerminationSignal) else behind


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _taken.append(number)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number == signal.SIGHUP:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt(f"by {signal.Signals(number).name}")
